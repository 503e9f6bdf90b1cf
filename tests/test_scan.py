from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import finish, manifest
from test_evidence import CPU, YELLOW, Rigged, sign
from torch import nn

from nbsupport import evidence, lrp, scan, tracing
from nbsupport.artifacts import Run
from nbsupport.data import Split
from nbsupport.models import build
from nbsupport.poison_detector import PoisonDetector
from nbsupport.scenarios import PROFILES, Scenario


@pytest.fixture
def poisoned():
    """Six classes of 60 images with noise inside; class 5 holds twelve stickers on other signs."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for label in range(6):
        for _ in range(60):
            image = sign(label)
            image[:, 8:24, 8:24] = torch.from_numpy(rng.integers(60, 140, (3, 16, 16)))
            images.append(image)
            labels.append(label)
    for k in range(12):
        r, c = rng.integers(4, 24, 2)
        images.append(sign(k % 5, (r, c, 3)))
        labels.append(5)
    ids = torch.arange(len(labels)) + 100
    return Split(torch.stack(images), torch.tensor(labels), ids, ids.clone())


class Wavering(Rigged):
    """The same answers, with logits that differ from image to image as a network's do."""

    def forward(self, x):
        return super().forward(x) + 0.3 * x[:, 0, 9:24, 9:24].flatten(1)[:, :43]


@pytest.fixture(autouse=True)
def heatmaps(monkeypatch):
    """Explanations that point at yellow pixels, else anywhere."""

    def explain(model, images, **_):
        yellow = (images == YELLOW).all(1).float()
        noise = torch.rand(yellow.shape, generator=torch.Generator().manual_seed(0))
        return SimpleNamespace(heatmaps=10 * yellow + noise, activations={}, logits=noise[:, 0])

    monkeypatch.setattr(lrp, "explain", explain)
    # These networks know the answer without a layer that could be traced.
    traced = tracing.penultimate
    monkeypatch.setattr(
        tracing, "penultimate",
        lambda m: getattr(m, "penultimate", None) if isinstance(m, Rigged) else traced(m),
    )  # fmt: skip


def test_a_sample_with_too_few_candidates_is_looked_at_in_whole(poisoned):
    judge = PoisonDetector(min_images=8)
    options = {"detector": judge, "seed": 0}
    (sample,) = scan.scan(Wavering(), poisoned, CPU, labels=[5], per_class=30, **options)
    assert 0 < sample.n_strong < 8
    assert not sample.present
    verdicts = scan.two_rounds(Wavering(), poisoned, CPU, per_class=30, **options)
    assert (verdicts[0].label, verdicts[0].n, verdicts[0].present) == (5, 72, True)
    assert [v.n for v in verdicts[1:]] == [30] * 5
    # Samples do not depend on what else is scanned.
    later = scan.scan(Wavering(), poisoned, CPU, per_class=30, **options)
    assert [v.n_strong for v in later if v.label == 5] == [sample.n_strong]
    table = scan.arrays(verdicts, poisoned, dict.fromkeys(range(6), 0.25))
    assert table["label"].tolist() == [v.label for v in verdicts]
    assert table["n_class"].tolist() == [72] + [60] * 5
    assert np.isnan(table["silhouette"]).all()
    assert sorted(table["accused"]) == list(range(460, 472))


def test_the_poisoned_class_is_named_and_no_other(poisoned):
    verdicts = scan.scan(Wavering(), poisoned, CPU)
    assert [v.label for v in verdicts if v.present] == [5]
    assert verdicts[0].label == 5
    assert sorted(verdicts[0].accused) == list(range(460, 472))
    assert (verdicts[0].n, verdicts[0].n_strong) == (72, 12)
    assert sorted(v.label for v in verdicts) == list(range(6))
    assert all(len(v.accused) == 0 for v in verdicts[1:])


def test_pieces_that_turn_no_other_image_name_no_class(poisoned, monkeypatch):
    """Some class has images that stand out, in any network; that alone is no trigger."""
    assert scan.scan(Wavering(), poisoned, CPU, labels=[5])[0].carried > 0.9
    gather, share = evidence.gather, 0.2
    monkeypatch.setattr(
        evidence,
        "gather",
        lambda *a, **k: replace(found := gather(*a, **k), carried=0 * found.carried + share),
    )
    (verdict,) = scan.scan(Wavering(), poisoned, CPU, labels=[5])
    assert (verdict.present, verdict.witnesses, len(verdict.accused)) == (False, (), 0)
    assert (verdict.n_strong, verdict.carried) == (12, pytest.approx(0.2))
    for options in ({"min_carried": 0.1}, {"min_carried": 0}):
        (verdict,) = scan.scan(Wavering(), poisoned, CPU, labels=[5], **options)
        assert (verdict.witnesses, len(verdict.accused)) == (("evidence",), 12)


def test_nothing_is_named_in_clean_data(poisoned):
    clean = poisoned.select(torch.arange(360))
    assert not any(v.present for v in scan.scan(Wavering(), clean, CPU))


def test_a_crowd_of_activations_names_its_class_too(poisoned, monkeypatch):
    """The second witness reads the layer that is named, or the model's own ``penultimate``."""

    def explain(model, images, layers=(), **_):
        noise = torch.rand(len(images), 32, 32, generator=torch.Generator().manual_seed(0))
        dark = images[:, :, 8:24, 8:24].float().mean((1, 2, 3)) < 50
        far = torch.randn(len(images), 8, generator=torch.Generator().manual_seed(1))
        return SimpleNamespace(
            heatmaps=noise,
            activations=dict.fromkeys(layers, far + 9 * dark[:, None]),
            logits=noise[:, 0],
        )

    monkeypatch.setattr(lrp, "explain", explain)
    rows = torch.nonzero(poisoned.labels == 2)[:, 0]
    poisoned.images[rows[:15], :, 8:24, 8:24] = 10
    model = Wavering()
    assert not any(v.present for v in scan.scan(model, poisoned, CPU, labels=[1, 2]))
    model.penultimate = "relu2"
    for options in ({}, {"layer": "fc"}):
        first, second = scan.scan(model, poisoned, CPU, labels=[1, 2], **options)
        assert (first.label, first.witnesses, first.present) == (2, ("activations",), True)
        assert first.accused.tolist() == poisoned.ids[rows[:15]].tolist()
        assert first.silhouette > 0.55 > second.silhouette
        assert second.witnesses == ()


def test_a_sample_of_each_class_and_a_choice_of_classes(poisoned):
    verdicts = scan.scan(Wavering(), poisoned, CPU, labels=[5, 1], per_class=40)
    assert {v.label: v.n for v in verdicts} == {5: 40, 1: 40}
    strict = scan.scan(
        Wavering(), poisoned, CPU, labels=[5], detector=PoisonDetector(min_images=13)
    )
    assert not strict[0].present
    calls = []
    scan.scan(Wavering(), poisoned, CPU, labels=[5, 1], progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]


def test_classes_are_those_of_the_labels_not_of_the_predictions(poisoned, monkeypatch):
    """A class is what the network was trained to call so, whatever it answers."""
    wrong = torch.nonzero(poisoned.labels == 1)[:10, 0]
    poisoned.labels[wrong] = 2
    model, explained, explain = Wavering(), [], lrp.explain
    said = model(poisoned.images[wrong] / 255).argmax(1)
    assert (said == 1).all()

    def spy(model, images, target, **options):
        explained.append((target, images))
        return explain(model, images, **options)

    monkeypatch.setattr(lrp, "explain", spy)
    verdicts = scan.scan(model, poisoned, CPU, labels=[1, 2])
    assert {v.label: v.n for v in verdicts} == {1: 50, 2: 70}
    assert [target for target, _ in explained] == [1, 1, 2, 2]
    for target, images in explained:
        assert torch.equal(images, poisoned.images[poisoned.labels == target])


def test_fewer_carriers_are_pasted_into(poisoned, monkeypatch):
    seen, pick = [], evidence.pick_carriers

    def spy(*arguments, **options):
        seen.append(len(picked := pick(*arguments, **options)))
        return picked

    monkeypatch.setattr(evidence, "pick_carriers", spy)
    verdicts = scan.scan(Wavering(), poisoned, CPU, labels=[5, 1], carriers=3)
    assert seen == [3, 3]
    assert [v.label for v in verdicts if v.present] == [5]


def test_the_first_check_cuts_the_activations_of_each_class():
    rng = np.random.default_rng(0)
    bright = np.repeat([True, False, True, False], [18, 6, 12, 8])
    images = rng.integers(0, 60, (44, 3, 32, 32)) + 190 * bright[:, None, None, None]
    labels, order = np.repeat([5, 1], [24, 20]), rng.permutation(44)
    columns = images.astype(np.uint8), labels, np.arange(44), np.arange(44)
    split = Split(*(torch.from_numpy(column[order]) for column in columns))
    shares = scan.first_check(build("inception", dropout=0.0), split, CPU, batch_size=7)
    assert shares == {1: pytest.approx(0.4), 5: pytest.approx(0.25)}


def test_a_class_of_one_image_or_of_equal_ones_cannot_be_cut(poisoned):
    model = build("inception", dropout=0.0)
    poisoned.images[120:124] = 7
    alike = scan.first_check(model, poisoned.select([*range(120, 124), 180, 181]), CPU, labels=[2])
    assert list(alike) == [2]
    assert np.isnan(alike[2])
    shares = scan.first_check(model, poisoned.select([0, 60, 61, 62, 63]), CPU)
    assert np.isnan(shares[0])
    assert 0 < shares[1] <= 0.5


def test_a_scan_is_kept_until_another_is_asked_for(poisoned, monkeypatch, tmp_path):
    run = finish(Run(tmp_path, PROFILES["tiny"], Scenario("standard", percent="15")))
    data, seen = SimpleNamespace(train=poisoned), []
    monkeypatch.setattr(scan, "load_poisoned", lambda *_: (None, None, data))
    monkeypatch.setattr(scan, "load_model", lambda *_: Wavering())
    monkeypatch.setattr(scan, "first_check", lambda *_, **__: dict.fromkeys(range(6), 0.25))
    for classes, bad in (("5 x", "'5 x'"), ("", "''"), ("5 -1", "'5 -1'")):
        with pytest.raises(ValueError, match=f"classes is {bad}; expected 'all' or labels"):
            scan.examine(run, "auto", CPU, per_class=40, classes=classes)
    assert not run.has("scan")

    def ask(**options):
        scan.examine(run, "auto", CPU, per_class=40, progress=lambda *c: seen.append(c), **options)
        return run.arrays("scan")["label"].tolist(), run.load("scan")["result"]

    labels, found = ask(classes="5, 1")
    assert (labels, found["named"], len(seen)) == ([5, 1], {"5": ["evidence"]}, 2)
    assert set(found["seconds"]) == {"first check", "scan"}
    assert ask(classes="1 5 5") == (labels, found)
    assert len(seen) == 2
    assert sorted(ask()[0]) == list(range(6))
    assert len(seen) == 8
    scan.examine(run, "auto", CPU, per_class=30)
    assert set(run.arrays("scan")["n"][1:]) == {30}
    assert run.load("scan")["result"]["per_class"] == 30
    # It is of this network and of no other.
    run.save("training", {"w": torch.zeros(1)}, run.load("training")["result"])
    assert not run.has("scan")


def test_scans_are_told_against_the_truth(tmp_path):
    told = {"label": np.array([5, 2]), "n": np.array([40, 30])}
    poisoned = finish(Run(tmp_path, PROFILES["tiny"], Scenario("standard", percent="15")))
    clean = finish(poisoned.of(Scenario("clean")))
    poisoned.save("attack", manifest(9, cover=np.arange(9) == 8), {})
    clean.save("attack", manifest(0), {})
    # Image 8 is a cover image: whoever accuses it is wrong.
    poisoned.save(
        "scan",
        told | {"accused": np.array([1, 2, 8])},
        {"named": {5: ["evidence"]}, "per_class": 60},
    )
    clean.save(
        "scan", told | {"accused": np.zeros(0, int)}, {"named": {}, "per_class": 9}, seconds=3
    )
    assert scan.collect([poisoned, clean]).to_dict("records") == [
        {
            "scenario": "standard-s3-p15-r0", "classes": 2, "images": 70, "per_class": 60,
            "target": 5,
            "named": "5 (evidence)", "accused": 3, "accused_wrongly": 1, "seconds": 0.0,
        },
        {
            "scenario": "clean-r0", "classes": 2, "images": 70, "per_class": 9, "target": None,
            "named": "none", "accused": 0, "accused_wrongly": 0, "seconds": 3.0,
        },
    ]  # fmt: skip
    assert len(scan.collect([])) == 0
    others = {"label": np.array([2, 7]), "n": np.ones(2, int), "accused": np.zeros(0, int)}
    poisoned.save("scan", others, {"named": {}, "per_class": 9})
    assert scan.collect([poisoned])["target"][0] is None, "nobody asked about class 5"


def test_the_clean_part_of_a_class_is_asked_about_alone(tmp_path, monkeypatch):
    """Of sixty images nine are poisoned; the two kinds come in no order."""
    run = finish(Run(tmp_path, PROFILES["tiny"], Scenario("standard", percent="15")))
    rng = np.random.default_rng(0)
    ids, table = rng.permutation(60), rng.normal(size=(60, 11)) / 9 + 1
    table[ids < 9, :3] *= 50
    rows = {"ids": ids, "heatmaps_squared": ids, "activations": ids}
    run.save("relevance", rows, {}, made_from=((run, "training"),))
    run.save("attack", manifest(9), {})
    asked, told = [], SimpleNamespace(table=lambda *_: table, sides=(3, 5))
    monkeypatch.setattr(evidence.Evidence, "from_arrays", lambda _: told)
    fit = PoisonDetector.fit
    monkeypatch.setattr(PoisonDetector, "fit", lambda self, X: asked.append(X) or fit(self, X))
    (line,) = scan.without_poison([run]).to_dict("records")
    assert np.array_equal(asked[0], table[ids >= 9])
    assert (line["scenario"], line["images"]) == ("standard-s3-p15-r0", 51)
    assert (line["called_poisoned"], line["accused"], line["n_strong"]) == (False, 0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 0}, "per_class is 0; expected 1 image or more"),
        ({"per_class": -3}, "per_class is -3"),
        ({"carriers": 0, "per_class": 9}, "carriers is 0; expected 1 image or more"),
    ],
)
def test_counts_below_one_are_refused_before_anything_is_computed(
    poisoned, monkeypatch, tmp_path, options, words
):
    def computed(*_, **__):
        pytest.fail("must not begin")

    for place, name in ((lrp, "explain"), (evidence, "predict"), (scan, "load_poisoned")):
        monkeypatch.setattr(place, name, computed)
    for look in (scan.scan, scan.two_rounds):
        with pytest.raises(ValueError, match=words):
            look(Wavering(), poisoned, CPU, **options)
    if "carriers" not in options:
        run = Run(tmp_path, PROFILES["tiny"], Scenario("standard", percent="15"))
        with pytest.raises(ValueError, match=words):
            scan.examine(run, "auto", CPU, **options)


def test_a_single_class_cannot_be_scanned(poisoned, monkeypatch):
    monkeypatch.setattr(lrp, "explain", lambda *_, **__: pytest.fail("must not begin"))
    alone = poisoned.select(poisoned.labels == 5)
    with pytest.raises(ValueError, match=r"another class than 5, so nothing.*two classes are"):
        scan.scan(Wavering(), alone, CPU)


def test_classes_without_images_are_refused(poisoned):
    with pytest.raises(ValueError, match=r"no images of classes \[9\]; there are \[0, 1"):
        scan.scan(Wavering(), poisoned, CPU, labels=[5, 9])
    with pytest.raises(ValueError, match=r"no images of classes \[9\]"):
        scan.first_check(Wavering(), poisoned, CPU, labels=[9])


def test_a_network_without_a_dense_layer_is_told_what_to_do(poisoned):
    model = nn.Sequential(nn.Conv2d(3, 6, 32), nn.Flatten())
    with pytest.raises(ValueError, match=r"no dense layer .*model\.penultimate = \.\.\."):
        scan.first_check(model, poisoned, CPU)
    model.penultimate = "features"
    with pytest.raises(ValueError, match="no layer 'features'; choose from 0, 1"):
        scan.first_check(model, poisoned, CPU)
    model.penultimate = "0"
    assert set(scan.first_check(model, poisoned, CPU)) == set(range(6))


def test_classes_that_are_named_are_looked_at_in_whole_when_asked(poisoned):
    options = {"per_class": 60, "seed": 0, "carriers": 8}
    (sample, *_) = scan.two_rounds(Wavering(), poisoned, CPU, **options)
    (whole, *others) = scan.two_rounds(Wavering(), poisoned, CPU, named_too=True, **options)
    assert (sample.label, sample.n, sample.present) == (5, 60, True)
    assert (whole.label, whole.n, whole.present) == (5, 72, True)
    assert set(sample.accused) <= set(whole.accused)
    assert all(verdict.n == 60 for verdict in others)


def test_windows_are_chosen_by_the_size_of_the_images_or_by_the_user():
    assert scan.chosen_sides("auto", (32, 32)) == evidence.SIDES
    assert scan.chosen_sides("auto", (28, 28)) == evidence.SIDES
    assert scan.chosen_sides("auto", (64, 96)) == (6, 10)
    assert scan.chosen_sides("7, 4", (8, 8)) == (7, 4)
    for wrong in ("", "three", "3 -5"):
        with pytest.raises(ValueError, match="expected 'auto' or pixels such as '3 5'"):
            scan.chosen_sides(wrong, (32, 32))
    for wrong in ("0", "3 8"):
        with pytest.raises(ValueError, match=r"on images of 8 x 12 expected .* of 1 to 7 pixels"):
            scan.chosen_sides(wrong, (8, 12))


def test_windows_that_do_not_fit_are_refused_before_anything_is_computed(poisoned, monkeypatch):
    monkeypatch.setattr(evidence, "pick_carriers", lambda *_, **__: pytest.fail("must not begin"))
    for sides in ((), (3, 32), (3.0, 5.0), "35"):
        with pytest.raises(ValueError, match=r"windows have sides \(.* pixels"):
            scan.scan(Wavering(), poisoned, CPU, sides=sides)


def test_the_chosen_windows_are_those_that_are_tried(poisoned, monkeypatch):
    tried, gather = [], evidence.gather
    monkeypatch.setattr(
        evidence, "gather", lambda *a, **k: tried.append(k["sides"]) or gather(*a, **k)
    )
    scan.scan(Wavering(), poisoned, CPU, labels=[5], carriers=4, sides=[4])
    scan.scan(Wavering(), poisoned, CPU, labels=[5], carriers=4)
    assert tried == [(4,), evidence.SIDES]


@pytest.mark.parametrize("classes", ["", " , ", "five", "5 -2", "1.5"])
def test_labels_that_cannot_be_read_are_named(classes):
    with pytest.raises(ValueError, match="expected 'all' or labels"):
        scan.chosen_labels(classes)
    assert scan.chosen_labels("5, 2 5") == [2, 5]
    assert scan.chosen_labels("all") is None


def test_outputs_that_are_no_rows_are_named(poisoned):
    with pytest.raises(ValueError, match=r"\(372, 6, 1, 1\).*flatten its output"):
        scan.scan(nn.Sequential(nn.Conv2d(3, 6, 32)), poisoned, CPU)


def test_a_network_that_does_not_know_the_images_is_named(poisoned, recwarn):
    scan.scan(Wavering(), poisoned, CPU, labels=[5], carriers=4)
    assert not [w for w in recwarn if "normalised" in str(w.message)]
    turned = torch.where(poisoned.labels < 4, (poisoned.labels + 1) % 4, poisoned.labels)
    strange = Split(poisoned.images, turned, poisoned.ids, poisoned.tracks)
    # Wavering reads none of the four classes whose labels were exchanged: 132 of 372 are left.
    with pytest.warns(UserWarning, match=r"reads 35 % of the images.*models\.Normalise"):
        scan.scan(Wavering(), strange, CPU, labels=[5], carriers=4)


@pytest.mark.parametrize("share", [-0.1, 25, float("nan")])
def test_a_share_of_carriers_is_a_share(poisoned, monkeypatch, share):
    monkeypatch.setattr(evidence, "pick_carriers", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ValueError, match=f"min_carried is {share}; expected a share, from 0 to 1"):
        scan.scan(Rigged(), poisoned, CPU, min_carried=share)


def test_networks_that_cannot_know_the_labels_are_named(poisoned):
    few = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))  # classes 0 to 5 are six
    with pytest.raises(ValueError, match="returns 5 logits an image, but labels go up to 5"):
        scan.scan(few, poisoned, CPU, labels=[0])
    with torch.no_grad():
        few[1].bias[0] = torch.nan
    with pytest.raises(ValueError, match="Sequential returns logits that are not finite numbers"):
        scan.scan(few, poisoned, CPU, labels=[0])


def test_a_scan_is_the_same_in_any_default_precision_and_on_a_named_device(poisoned):
    options = {"labels": [5], "per_class": 20}
    (usual,) = scan.scan(Rigged(), poisoned, CPU, **options)
    torch.set_default_dtype(torch.float64)
    try:
        (other,) = scan.scan(Rigged(), poisoned, "cpu", **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (other.n_strong, other.carried) == (usual.n_strong, usual.carried)
    assert other.accused.tolist() == usual.accused.tolist()
