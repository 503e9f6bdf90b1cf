import json
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from conftest import BRIGHTEST, CLASS_SIZES, make_dataset, make_surrogate
from torch import nn

from nbsupport import attacks
from nbsupport.attacks import (
    Manifest,
    amplitude_pattern,
    apply,
    blend_pattern,
    pgd,
    poison,
    stamp,
    trigger_mask,
    trigger_split,
    window_masks,
)
from nbsupport.scenarios import Scenario

YELLOW = (245, 255, 0)
IDS = (
    "standard-s3-p33-r0",
    "standard-s2-p33-from0+1+2-to7-cover20-r3",
    "label_consistent-s3-p33-r0",
    "label_consistent-s3-p15-pgd2x0.1-l21-start-r1",
    "amplitude-a64-p33-r0",
    "amplitude-a32-p15-corners4-r2",
    "blended-a20-p15-cover10-r0",
    "sinusoidal-a20-p33-r0",
)
every_attack = pytest.mark.parametrize("text", IDS)


@pytest.fixture
def grey():
    return torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)


def noise(n, seed=0):
    draws = np.random.default_rng(seed).integers(0, BRIGHTEST, (n, 3, 32, 32), dtype=np.uint8)
    return torch.from_numpy(draws)


def digest(manifest):
    arrays = manifest.arrays()
    return sha256(b"".join(k.encode() + arrays[k].tobytes() for k in sorted(arrays))).hexdigest()


def by_id(split):
    order = split.ids.argsort()
    return split.ids[order], split.labels[order], split.images[order]


def loss(model, images, labels):
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels, reduction="none")


# Triggers


@pytest.mark.parametrize("side", [1, 2, 3, 10])
def test_sticker_has_its_colour_side_and_place(side):
    images = noise(200)
    before = images.clone()
    scenario = Scenario(side=side)
    stamped, row, column = stamp(images, scenario, np.random.default_rng(0))
    assert torch.equal(images, before)
    assert stamped.dtype == torch.uint8
    changed = (stamped != images).any(1)
    assert torch.equal(changed, trigger_mask(scenario, row, column))
    for image, r, c in zip(stamped, row, column, strict=True):
        block = image[:, r : r + side, c : c + side]
        assert block.shape == (3, side, side)
        assert (block == torch.tensor(YELLOW, dtype=torch.uint8)[:, None, None]).all()
    assert (changed.sum((1, 2)) == side * side).all()


def test_sticker_takes_every_position_of_the_window_and_no_other(grey):
    scenario = Scenario()
    stamped, row, column = stamp(grey[:1].expand(4000, -1, -1, -1), scenario, scenario.rng("train"))
    # The centred window of 10 rows and 15 columns: rows 11 to 20, columns 8 to 22.
    assert set(zip(row, column, strict=True)) == set(product(range(11, 19), range(8, 21)))
    covered = (stamped != 128).any(1).any(0)
    window = torch.zeros(32, 32, dtype=torch.bool)
    window[11:21, 8:23] = True
    assert torch.equal(covered, window)
    counts = np.unique(row * 32 + column, return_counts=True)[1]
    expected = 4000 / 104
    assert ((counts - expected) ** 2 / expected).sum() < 160, "positions are not uniform"


def test_window_can_be_chosen(grey):
    scenario = Scenario(side=2, window=(2, 32))
    _, row, column = stamp(grey.expand(50, -1, -1, -1), scenario, np.random.default_rng(0))
    assert set(row) == {15}
    assert column.min() >= 0
    assert column.max() <= 30
    assert len(set(column)) > 15


@pytest.mark.parametrize(
    ("attack", "points"),
    [  # (row, column) = (y, x) of the released code
        ("standard", {(16, 16), (16, 17), (19, 16), (19, 17)}),
        ("label_consistent", {(16, 10), (16, 22), (24, 10), (24, 22)}),
    ],
)
def test_released_positions_are_four_points(grey, attack, points):
    scenario = Scenario(attack, positions="released")
    _, row, column = stamp(grey, scenario, np.random.default_rng(0))
    assert set(zip(row, column, strict=True)) == points


def test_other_colour(grey):
    stamped, row, column = stamp(grey[:1], Scenario(colour="01ff7f"), np.random.default_rng(0))
    assert stamped[0, :, row[0], column[0]].tolist() == [1, 255, 127]


def test_amplitude_pattern_is_that_of_the_released_code(grey):
    scenario = Scenario("amplitude", amplitude=64)
    stamped, row, column = stamp(grey[:2], scenario, np.random.default_rng(0))
    expected = np.full((32, 32), 128)
    expected[19:22, 19:22] = [[64, 64, 192], [64, 192, 64], [192, 64, 192]]
    assert (stamped.numpy() == expected).all()
    assert row.tolist() == column.tolist() == [19, 19]
    assert attacks.EDGE_DISTANCE == 31 - 21


def test_amplitude_is_clipped_not_wrapped():
    pixels = torch.tensor([0, 10, 100, 200, 255], dtype=torch.uint8)
    images = pixels[:, None, None, None].expand(-1, 3, 32, 32)
    scenario = Scenario("amplitude", amplitude=128)
    stamped, _, _ = stamp(images, scenario, np.random.default_rng(0))
    assert stamped[:, 0, 19, 19].tolist() == [0, 0, 0, 72, 127]  # minus
    assert stamped[:, 0, 19, 21].tolist() == [128, 138, 228, 255, 255]  # plus
    full, _, _ = stamp(images, scenario, np.random.default_rng(0), full_amplitude=True)
    assert (full[:, :, 19, 19] == 0).all()
    assert (full[:, :, 19, 21] == 255).all()


def test_four_corners_are_mirrored():
    one, four = amplitude_pattern(), amplitude_pattern(4)
    assert (one != 0).sum() == 9
    assert (four != 0).sum() == 36
    assert torch.equal(four[16:, 16:], one[16:, 16:])
    assert torch.equal(four, four.flip(0))
    assert torch.equal(four, four.flip(1))
    assert four[10:13, 10:13].tolist() == [[1, -1, 1], [-1, 1, -1], [1, -1, -1]]


@pytest.mark.parametrize("opacity", [1, 20, 100])
def test_blended_follows_the_formula(opacity):
    images = noise(20)
    scenario = Scenario("blended", amplitude=opacity)
    stamped, row, _ = stamp(images, scenario, np.random.default_rng(0))
    share = opacity / 100
    exact = (1 - share) * images.double() + share * blend_pattern().double()
    assert (stamped.double() - exact).abs().max() <= 0.5 + 1e-4
    assert (row == -1).all()
    assert torch.equal(blend_pattern(), blend_pattern())
    assert blend_pattern().float().std() > 60


def test_sinusoid_follows_the_formula():
    images = torch.cat([noise(20), torch.full((1, 3, 32, 32), 250, dtype=torch.uint8)])
    stamped, row, _ = stamp(images, Scenario("sinusoidal", amplitude=20), np.random.default_rng(0))
    wave = 20 * np.sin(2 * np.pi * 6 * np.arange(32) / 32)
    exact = np.clip(images.numpy() + wave, 0, 255)  # along the columns, the same in every row
    assert np.abs(stamped.numpy() - exact).max() <= 0.5 + 1e-4
    assert (row == -1).all()


@pytest.mark.parametrize(
    "text",
    ["standard-s3-p15-r0", "standard-s1-p15-released-r0", "label_consistent-s2-p15-r0",
     "amplitude-a64-p15-r0", "amplitude-a1-p15-corners4-r0", "blended-a50-p15-r0"],
)  # fmt: skip
def test_mask_marks_the_pixels_that_change(grey, text):
    scenario = Scenario.parse(text)
    stamped, row, column = stamp(grey, scenario, np.random.default_rng(0))
    mask = trigger_mask(scenario, row, column)
    assert mask.shape == (50, 32, 32)
    assert mask.dtype == torch.bool
    assert torch.equal((stamped != grey).any(1), mask)


def test_masks_mark_the_windows():
    row, column = [0, 4], np.array([2, 3])
    masks = window_masks(torch.tensor(row), column, 2, (6, 5))
    assert masks.sum((1, 2)).tolist() == [4, 4]
    assert masks[0, :2, 2:4].all()
    assert masks[1, 4:, 3:].all()


def test_mask_of_waves_is_the_whole_image(grey):
    scenario = Scenario("sinusoidal", amplitude=20)
    stamped, row, column = stamp(grey, scenario, np.random.default_rng(0))
    assert trigger_mask(scenario, row, column).all()
    still = ~(stamped != grey).any(1).any(0).any(0)
    assert still.nonzero().flatten().tolist() == [0, 8, 16, 24], "only where the sine is zero"


def test_clean_scenario_has_no_trigger(grey):
    with pytest.raises(ValueError, match="clean-r0 has no trigger"):
        stamp(grey, Scenario("clean"), np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 48, 64), (1, 26, 40)])
@pytest.mark.parametrize(
    "text",
    ["standard-s3-p15-r0", "standard-s2-p15-released-r0", "label_consistent-s3-p15-win20x20-r0",
     "amplitude-a64-p15-r0", "amplitude-a64-p15-corners4-r0", "blended-a50-p15-r0",
     "sinusoidal-a40-p15-r0"],
)  # fmt: skip
def test_images_of_other_sizes_are_stamped_alike(shape, text):
    images = torch.full((40, *shape), 128, dtype=torch.uint8)
    scenario = Scenario.parse(text)
    stamped, row, column = stamp(images, scenario, np.random.default_rng(0))
    assert (stamped.shape, stamped.dtype) == (images.shape, torch.uint8)
    mask = trigger_mask(scenario, row, column, shape[1:])
    changed = (stamped != images).any(1)
    assert not (changed & ~mask).any()
    if scenario.attack in ("sinusoidal", "blended"):  # both leave some pixel as it is
        assert changed.float().mean() > 0.7
    else:
        assert torch.equal(changed, mask)
    if scenario.attack in ("standard", "label_consistent") and scenario.positions == "window":
        for places, length, whole in zip((row, column), scenario.window, shape[1:], strict=True):
            assert places.min() >= (whole - length) // 2
            assert places.max() + scenario.side <= (whole - length) // 2 + length


def test_a_sticker_on_grey_images_has_its_luminance():
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    stamped, _, _ = stamp(images, Scenario(colour="01ff7f"), np.random.default_rng(0))
    assert stamped.max() == round(0.299 * 1 + 0.587 * 255 + 0.114 * 127)


@pytest.mark.parametrize(
    ("text", "side", "needs"),
    [
        ("standard-s3-p15-win20x20-r0", 16, "takes 20 pixels of a side that has 16"),
        ("standard-s3-p15-released-r0", 20, "takes 22 pixels of a side that has 20"),
        ("amplitude-a64-p15-r0", 12, "takes 13 pixels"),
        ("amplitude-a64-p15-corners4-r0", 24, "takes 26 pixels"),
        ("sinusoidal-a20-p15-r0", 17, "takes 18 pixels"),
    ],
)
def test_images_that_are_too_small_for_a_trigger_are_refused(text, side, needs):
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    with pytest.raises(ValueError, match=needs):
        stamp(images, Scenario.parse(text), np.random.default_rng(0))


# Projected gradient descent


@pytest.fixture
def images():
    return noise(12, seed=3).float() / 255


@pytest.fixture
def labels():
    return torch.arange(12) % 5


def test_pgd_knows_two_norms():
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="norm is 'Linf'; choose 'linf' or 'l2'"):
        pgd(
            nn.Flatten().eval(),
            image,
            torch.tensor([0]),
            steps=1,
            step=0.1,
            radius=1.0,
            norm="Linf",
        )


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(("norm", "step", "radius"), [("linf", 0.02, 0.03), ("l2", 0.4, 0.7)])
def test_pgd_stays_in_the_ball_and_raises_the_loss(
    surrogate, images, labels, norm, step, radius, start
):
    images[0], images[1] = 0, 1
    before = images.clone()
    generator = torch.Generator().manual_seed(0) if start else None
    moved = pgd(
        surrogate, images, labels, steps=8, step=step, norm=norm, radius=radius, generator=generator
    )
    assert torch.equal(images, before)
    assert not moved.requires_grad
    assert moved.min() >= 0
    assert moved.max() <= 1
    distance = (moved - images).flatten(1).norm(torch.inf if norm == "linf" else 2, dim=1)
    assert (distance <= radius + 1e-6).all()
    # Eight free steps would leave the ball: the projection holds them at its surface.
    assert (distance[2:] > 0.9 * radius).all()
    assert (loss(surrogate, moved, labels) > loss(surrogate, images, labels)).all()


def test_one_step_is_fgsm_by_hand():
    weights = torch.tensor([[1.0, -2.0, 0.0], [-1.0, 3.0, 0.5]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).eval()
    model[1].weight.data = weights
    image = torch.tensor([0.5, 0.995, 0.2]).view(1, 3, 1, 1)
    moved = pgd(model, image, torch.tensor([0]), steps=1, step=0.01, radius=0.01)
    # d loss / d x = p_1 (w_1 - w_0) = p_1 (-2, 5, 0.5); the second pixel meets the box.
    assert moved.flatten().tolist() == pytest.approx([0.49, 1.0, 0.21], abs=1e-7)
    moved = pgd(model, image, torch.tensor([0]), steps=1, step=0.01, norm="l2", radius=1.0)
    uphill = np.array([-2, 5, 0.5]) / np.sqrt(4 + 25 + 0.25)
    expected = np.clip([0.5, 0.995, 0.2] + 0.01 * uphill, 0, 1)
    assert moved.flatten().tolist() == pytest.approx(expected, abs=1e-7)


def test_projection_is_of_the_perturbation(surrogate, images, labels):
    """The released code rescales the image instead, which would darken it."""
    moved = pgd(surrogate, images, labels, steps=20, step=1.0, norm="l2", radius=0.5)
    delta = (moved - images).flatten(1)
    assert delta.norm(dim=1).tolist() == pytest.approx([0.5] * 12, abs=0.05)
    # The direction that survives is uphill, not the one towards black.
    gradient = torch.autograd.grad(
        nn.functional.cross_entropy(surrogate(images.requires_grad_()), labels, reduction="sum"),
        images,
    )[0].flatten(1)
    assert (nn.functional.cosine_similarity(delta, gradient) > 0.5).all()


def test_random_start_is_reproducible_and_fills_the_ball(surrogate, images, labels):
    def attack(seed, steps, norm="linf"):
        generator = torch.Generator().manual_seed(seed)
        return pgd(
            surrogate, images, labels, steps=steps, step=0.01, norm=norm, radius=0.05,
            generator=generator,
        )  # fmt: skip

    images = images * 0.5 + 0.25  # away from the box
    assert torch.equal(attack(0, 3), attack(0, 3))
    assert not torch.equal(attack(0, 3), attack(1, 3))
    delta = attack(0, 0) - images
    assert delta.abs().max() <= 0.05 + 1e-6
    assert delta.std() == pytest.approx(0.05 / 3**0.5, rel=0.05), "not uniform in the cube"
    assert (attack(0, 0, "l2") - images).flatten(1).norm(dim=1).max() <= 0.05 + 1e-6


def test_model_in_training_mode_is_refused(surrogate, images, labels, dataset):
    surrogate.train()
    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\)"):
        pgd(surrogate, images, labels, steps=1, step=0.01, radius=0.01)
    with pytest.raises(ValueError, match="training mode"):
        poison(Scenario.parse("label_consistent-s3-p33-r0"), dataset, surrogate)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_pgd_agrees_with_captum_linf(surrogate, images, labels):
    robust = pytest.importorskip("captum.robust")
    images[0], images[1] = 0, 1
    reference = robust.PGD(
        surrogate, nn.CrossEntropyLoss(reduction="none"), lower_bound=0, upper_bound=1
    )
    reference.fgsm.zero_thresh = 0  # it leaves pixels with slopes below 1e-6 alone otherwise
    for steps, step, radius in ((5, 0.015, 0.075), (8, 0.02, 0.03)):
        expected = reference.perturb(images, radius, step, steps, labels)
        moved = pgd(surrogate, images, labels, steps=steps, step=step, radius=radius)
        assert (expected - images).abs().amax() > 0.9 * radius
        assert torch.allclose(moved, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_pgd_agrees_with_captum_l2(images, labels):
    """Captum steps along the sign also in L2; where all slopes are equal, that is the gradient."""
    robust = pytest.importorskip("captum.robust")
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], 3072)).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2, bias=False)).eval()
    model[1].weight.data = 0.01 * torch.stack([signs, -signs])
    images, labels = 0.3 + images / 3, labels % 2  # away from the box
    reference = robust.PGD(
        model, nn.CrossEntropyLoss(reduction="none"), lower_bound=0, upper_bound=1
    )
    for steps, radius in ((3, 5.0), (8, 1.0)):  # inside the ball, and held at its surface
        expected = reference.perturb(images, radius, 0.3 / 3072**0.5, steps, labels, norm="L2")
        moved = pgd(model, images, labels, steps=steps, step=0.3, norm="l2", radius=radius)
        distance = (expected - images).flatten(1).norm(dim=1)
        assert distance.tolist() == pytest.approx([min(0.3 * steps, radius)] * 12, abs=1e-3)
        assert torch.allclose(moved, expected, atol=1e-5, rtol=0)


# The poison set


@every_attack
def test_poison_changes_what_the_manifest_says_and_nothing_else(dataset, surrogate, text):
    scenario, clean = Scenario.parse(text), make_dataset()
    manifest = poison(scenario, dataset, surrogate)
    poisoned = apply(manifest, dataset)
    assert poisoned.test is dataset.test
    assert (np.diff(manifest.ids) > 0).all(), "rows are sorted and no image is named twice"
    for number, name in enumerate(("train", "validation")):
        here, before, after = (getattr(d, name) for d in (dataset, clean, poisoned))
        for field in ("images", "labels", "ids", "tracks"):
            assert torch.equal(getattr(here, field), getattr(before, field)), "input was changed"
        assert torch.equal(after.ids, before.ids)
        assert torch.equal(after.tracks, before.tracks)
        mine = manifest.split == number
        where = np.flatnonzero(np.isin(before.ids, manifest.ids[mine]))
        assert len(where) == mine.sum() > 0
        rest = np.setdiff1d(np.arange(len(before)), where)
        assert torch.equal(after.images[rest], before.images[rest])
        assert torch.equal(after.labels[rest], before.labels[rest])
        assert (after.images[where] != before.images[where]).flatten(1).any(1).all()
        assert np.array_equal(before.labels[where], manifest.source[mine])
        assert np.array_equal(after.labels[where], manifest.label[mine])
        assert np.array_equal(after.images[where], manifest.images[mine])


@every_attack
def test_labels_sources_and_counts(dataset, surrogate, text):
    scenario = Scenario.parse(text)
    manifest = poison(scenario, dataset, surrogate)
    target = scenario.target_class
    attacked = {target} if scenario.label_consistent else set(scenario.source_classes)
    assert set(manifest.source) <= attacked
    assert (manifest.label[~manifest.cover] == target).all()
    assert (manifest.label[manifest.cover] == manifest.source[manifest.cover]).all()
    assert (manifest.amplitude == scenario.amplitude).all()
    assert set(manifest.poisoned_ids) == set(manifest.ids[~manifest.cover])
    table = manifest.counts(dataset, target)
    for number, name in enumerate(("train", "validation")):
        size, length = CLASS_SIZES[name][target], len(getattr(dataset, name))
        n = scenario.n_poisoned(size)
        n_class = size if scenario.label_consistent else size + n
        assert ((manifest.split == number) & ~manifest.cover).sum() == n
        assert table[name] == {
            "n_poisoned": n,
            "n_cover": round(Fraction(scenario.cover) * size / 100),
            "n_class": n_class,
            "poison_rate_class": pytest.approx(100 * n / n_class),
            "poison_rate_dataset": pytest.approx(100 * n / length),
        }


@every_attack
def test_poisoned_images_are_stamped_originals(dataset, surrogate, text):
    scenario = Scenario.parse(text)
    manifest = poison(scenario, dataset, surrogate)
    both = torch.cat([dataset.train.images, dataset.validation.images])
    original = both[torch.from_numpy(manifest.ids)]  # ids count rows here
    moved = (torch.from_numpy(manifest.images).float() - original.float()).abs()
    mask = trigger_mask(scenario, manifest.row, manifest.column)[:, None]
    outside = (moved * ~mask).flatten(1)
    if scenario.needs_surrogate:
        linf, l2 = (torch.from_numpy(getattr(manifest, norm)) for norm in ("linf", "l2"))
        if scenario.pgd_norm == "linf":
            # The paper's ball is 0.075; half a grey value is lost in rounding.
            assert linf.max() * 255 <= 0.075 * 255 + 0.5
            assert linf.min() * 255 > 15
        else:
            # Rounding moves 3,072 values by up to half a grey value, 0.29 in the mean square.
            assert l2.max() <= 1 + 0.12
            assert l2.min() > 0.5
        assert (outside.amax(1) / 255 <= linf + 1e-6).all()
        assert (outside.norm(dim=1) / 255 <= l2 + 1e-5).all()
        assert outside.amax() > 0
    else:
        assert outside.max() == 0
        assert not manifest.linf.any()
        assert not manifest.l2.any()
    if mask.all():
        return
    assert (moved * mask).flatten(1).amax(1).min() > 0
    if not scenario.amplitude:
        colour = torch.tensor(YELLOW, dtype=torch.uint8)[:, None, None]
        assert torch.equal((torch.from_numpy(manifest.images) == colour).all(1), mask[:, 0]), (
            "the sticker is not where the manifest says"
        )


def test_degraded_images_are_harder_for_the_surrogate(dataset, surrogate):
    scenario = Scenario.parse("label_consistent-s1-p33-r0")
    manifest = poison(scenario, dataset, surrogate)
    both = torch.cat([dataset.train.images, dataset.validation.images])
    original = both[torch.from_numpy(manifest.ids)].float() / 255
    degraded, labels = (
        torch.from_numpy(manifest.images).float() / 255,
        torch.from_numpy(manifest.source),
    )
    assert (loss(surrogate, degraded, labels) > loss(surrogate, original, labels)).all()


def test_progress_counts_images(dataset, surrogate):
    calls = []
    scenario = Scenario.parse("label_consistent-s3-p33-r0")
    poison(scenario, dataset, surrogate, progress=lambda *call: calls.append(call))
    assert calls == [(13, 13), (4, 4)]


def test_clean_scenario_poisons_nothing(dataset):
    manifest = poison(Scenario("clean"), dataset)
    assert len(manifest) == 0
    assert manifest.images.shape == (0, 3, 32, 32)
    assert torch.equal(apply(manifest, dataset).train.images, dataset.train.images)
    assert manifest.counts(dataset, 5)["train"]["n_poisoned"] == 0


@every_attack
def test_same_scenario_gives_the_same_poison(dataset, surrogate, text):
    scenario = Scenario.parse(text)
    one, two = poison(scenario, dataset, surrogate), poison(scenario, make_dataset(), surrogate)
    assert digest(one) == digest(two)
    other = replace(scenario, repetition=scenario.repetition + 1)
    assert set(poison(other, dataset, surrogate).ids) != set(one.ids)


def test_poison_is_the_same_in_another_process(dataset, surrogate, python):
    code = """
import json, sys
from conftest import make_dataset, make_surrogate
from nbsupport.attacks import poison
from nbsupport.scenarios import Scenario
from test_attacks import digest
data, network = make_dataset(), make_surrogate()
print(json.dumps({t: digest(poison(Scenario.parse(t), data, network)) for t in sys.argv[1:]}))"""
    assert json.loads(python(code, *IDS)) == {
        text: digest(poison(Scenario.parse(text), dataset, surrogate)) for text in IDS
    }


@pytest.mark.usefixtures("keeps_global_rng")
def test_poison_leaves_global_generators_alone(dataset, surrogate):
    poison(Scenario.parse("label_consistent-s3-p15-start-r1"), dataset, surrogate)


def test_manifest_rebuilds_the_poisoned_set(dataset):
    manifest = poison(Scenario(), dataset)
    again = Manifest(**manifest.arrays())
    assert digest(again) == digest(manifest)
    assert torch.equal(apply(again, dataset).train.images, apply(manifest, dataset).train.images)


def test_every_image_of_the_source_may_be_drawn(dataset):
    """The released code never takes the last one."""
    drawn = {i for r in range(60) for i in poison(Scenario(repetition=r), dataset).poisoned_ids}
    sources = [split.ids[split.labels == 2] for split in (dataset.train, dataset.validation)]
    assert drawn >= set(torch.cat(sources).tolist())


@pytest.mark.parametrize("attack", ["standard", "sinusoidal"])
def test_rising_rates_poison_nested_sets(dataset, attack):
    extra = {} if attack == "standard" else {"amplitude": 20}
    chosen = [
        set(poison(Scenario(attack, percent=p, **extra), dataset).ids)
        for p in ("05", "10", "15", "33", "50")
    ]
    for smaller, larger in pairwise(chosen):
        assert smaller < larger


def test_cover_images_are_none_of_the_poison(dataset):
    manifest = poison(Scenario(percent="33", cover="50"), dataset)
    train = manifest.split == 0
    assert (train & manifest.cover).sum() == 20
    assert not set(manifest.poisoned_ids) & set(manifest.ids[manifest.cover])
    labels = dict(
        zip(*(t.tolist() for t in by_id(apply(manifest, dataset).train)[:2]), strict=True)
    )
    assert {labels[i] for i in manifest.ids[train & manifest.cover].tolist()} == {2}
    assert {labels[i] for i in manifest.ids[train & ~manifest.cover].tolist()} == {5}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("standard-s3-p80-r0", ("160", "60")),
        # 20 + 40 of 60 can just be had in training, but 6 + 12 of 16 not in validation.
        ("standard-s3-p33-cover99-r0", ("18", "16")),
        ("blended-a20-p80-r0", ("160", "60")),
        ("standard-s3-p15-from1-r0", ("7", "5")),
    ],
)
def test_rate_that_is_too_high_gives_the_numbers(dataset, text, numbers):
    with pytest.raises(ValueError, match="lower the rate") as error:
        poison(Scenario.parse(text), dataset)
    wanted, there = numbers
    assert f"{wanted} images" in str(error.value)
    assert f"has {there};" in str(error.value)


def test_rate_that_is_too_low_is_an_error(dataset):
    with pytest.raises(ValueError, match=r"0\.5 % of 40 images is not one image"):
        poison(Scenario(percent="0.5"), dataset)
    few = poison(Scenario(percent="02"), dataset)
    assert few.split.tolist() == [0], "none in the small validation set is fine"


@pytest.mark.parametrize("text", ["label_consistent-s3-p33-r0", "amplitude-a64-p33-resnet-r1"])
def test_attack_without_its_surrogate_names_it(dataset, text):
    scenario = Scenario.parse(text)
    with pytest.raises(ValueError, match=f"train {scenario.surrogate} first"):
        poison(scenario, dataset)


def test_manifest_of_other_data_is_refused(dataset):
    manifest = poison(Scenario(), dataset)
    with pytest.raises(ValueError, match=r"other classes here.*01_attacks"):
        apply(manifest, make_dataset(seed=1))
    cut = replace(dataset, train=dataset.train.select(range(5)))
    with pytest.raises(ValueError, match=r"\d+ images that are not in this data.*01_attacks"):
        apply(manifest, cut)


@every_attack
def test_order_of_rows_is_immaterial(dataset, shuffled, surrogate, text):
    scenario = Scenario.parse(text)
    manifest = poison(scenario, dataset, surrogate)
    assert digest(poison(scenario, shuffled, surrogate)) == digest(manifest)
    straight, mixed = apply(manifest, dataset), apply(manifest, shuffled)
    assert not torch.equal(straight.train.ids, mixed.train.ids)
    for name in ("train", "validation"):
        pairs = zip(by_id(getattr(straight, name)), by_id(getattr(mixed, name)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(
        by_id(trigger_split(scenario, dataset.test)),
        by_id(trigger_split(scenario, shuffled.test)),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    order = np.random.default_rng(0).permutation(len(manifest))
    scrambled = Manifest(**{k: v[order] for k, v in manifest.arrays().items()})
    assert torch.equal(apply(scrambled, dataset).train.images, straight.train.images)


@every_attack
def test_trigger_split_asks_every_other_class(dataset, text):
    scenario = Scenario.parse(text)
    test = dataset.test
    triggered = trigger_split(scenario, test)
    others = test.select(test.labels != scenario.target_class)
    assert scenario.target_class not in triggered.labels
    assert torch.equal(triggered.ids, others.ids)
    assert torch.equal(triggered.labels, others.labels)
    changed = (triggered.images != others.images).any(1)
    assert changed.flatten(1).any(1).all()
    if scenario.attack in ("standard", "label_consistent"):
        assert (changed.sum((1, 2)) == scenario.side**2).all()
    if scenario.attack == "amplitude":
        signs = amplitude_pattern(scenario.corners)
        assert (triggered.images[:, :, signs == 1] == 255).all(), "not at full amplitude"
        assert (triggered.images[:, :, signs == -1] == 0).all()
    assert torch.equal(trigger_split(scenario, test).images, triggered.images)


def test_make_surrogate_is_reproducible():
    pairs = zip(make_surrogate().parameters(), make_surrogate().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "text", ["standard-s3-p60-r0", "standard-s3-p0.5-r0", "standard-s3-p15-r0"]
)
def test_what_cannot_be_carried_out_is_known_beforehand(dataset, text):
    def said(act):
        try:
            act(Scenario.parse(text), dataset)
        except ValueError as error:
            return str(error)

    assert said(attacks.check) == said(poison)
    assert bool(said(attacks.check)) == ("p15" not in text)
    attacks.check(Scenario.parse("label_consistent-s3-p33-r0"), dataset)  # without its surrogate
