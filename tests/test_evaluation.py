from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASS_SIZES
from torch import nn

from nbsupport import evaluation, metrics
from nbsupport.artifacts import ArtifactError, Run
from nbsupport.evaluation import (
    ATTACK_TOOK,
    SURROGATE_ACCURACY,
    SurrogateError,
    check_data,
    evaluate,
    load_model,
    load_surrogate,
    predict,
)
from nbsupport.models import build
from nbsupport.scenarios import PROFILES, Profile, Scenario

CPU = torch.device("cpu")
SIZES = CLASS_SIZES["test"]
OTHERS = {c: n for c, n in SIZES.items() if c != 5}


class Rigged(nn.Module):
    """Read the class off the first pixel; answer 5 to the sticker on images of some classes."""

    def __init__(self, fooled=tuple(OTHERS), mistakes=None):
        super().__init__()
        self.fooled, self.mistakes = fooled, mistakes or {}
        self.batches = []

    def forward(self, x):
        assert not torch.is_grad_enabled()
        self.batches.append(len(x))
        pixels = (x * 255).round()
        shown = pixels[:, 0, 0, 0].long()
        yellow = torch.tensor([245.0, 255.0, 0.0])[:, None, None]
        sticker = (pixels == yellow).all(1).flatten(1).any(1)
        answer = torch.tensor([self.mistakes.get(int(c), int(c)) for c in shown])
        fooled = torch.tensor([int(c) in self.fooled for c in shown])
        answer[sticker & fooled] = 5
        return nn.functional.one_hot(answer, 43).float()


def test_batches_give_what_one_batch_gives(surrogate, dataset):
    images = dataset.train.images
    whole = predict(surrogate, images, CPU, batch_size=len(images))
    assert whole.shape == (len(images), 43)
    assert whole.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(whole, surrogate(images.float() / 255), atol=1e-5)
    for batch_size in (1, 7, 64):
        parts = predict(surrogate, images, CPU, batch_size=batch_size)
        assert torch.allclose(parts, whole, atol=1e-5)
        assert torch.equal(parts.argmax(1), whole.argmax(1))


def test_predict_reports_progress_in_batches(dataset):
    model, calls = Rigged(), []
    images = dataset.test.images
    predict(model, images, CPU, batch_size=10, progress=lambda *call: calls.append(call))
    assert model.batches == [10, 10, 10, 4]
    assert [call[:2] for call in calls] == [(10, 34), (20, 34), (30, 34), (34, 34)]


def test_predict_takes_bytes_alone(dataset):
    model, images = build(), dataset.test.images[:2]
    with pytest.raises(ValueError, match=r"images are torch.float32; give uint8 from 0 to 255"):
        predict(model, images.float() / 255, torch.device("cpu"))


def test_predict_leaves_each_module_in_its_mode(dataset):
    model = build()
    model.train()
    model.conv1.norm.eval()  # frozen on purpose
    before = [module.training for module in model.modules()]
    predict(model, dataset.test.images[:2], CPU)
    assert [module.training for module in model.modules()] == before


def test_an_answer_that_is_no_tensor_is_named(dataset):
    class Twice(torch.nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="returns a tuple; wrap it"):
        predict(Twice(), dataset.test.images[:2], torch.device("cpu"))


def test_predict_switches_dropout_off(dataset):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 43)).train()
    one, two = (predict(model, dataset.test.images, CPU) for _ in range(2))
    assert torch.equal(one, two)
    assert model.training, "it is as it was"


def test_perfect_backdoor(dataset):
    found = evaluate(Rigged(), dataset, Scenario(), CPU)
    assert (found.clean_accuracy, found.asr, found.masr, found.masr_micro) == (100, 100, 100, 100)
    assert found.n_asr == SIZES[2]
    interval = metrics.wilson(10, 10)
    assert found.asr_interval == (interval.low, interval.high)
    assert found.asr_interval[0] < 75
    assert found.attack_took is True
    assert np.isnan(found.asr_per_class[5])
    assert [found.asr_per_class[c] for c in OTHERS] == [100] * len(OTHERS)
    assert np.isnan(found.asr_per_class[3]), "no test images of class 3"


def test_no_backdoor(dataset):
    found = evaluate(Rigged(fooled=()), dataset, Scenario(), CPU)
    assert (found.clean_accuracy, found.asr, found.masr, found.masr_micro) == (100, 0, 0, 0)
    assert found.attack_took is False


def test_clean_accuracy_counts_mistakes(dataset):
    found = evaluate(Rigged(mistakes={12: 7, 0: 5}), dataset, Scenario(), CPU)
    right = sum(SIZES.values()) - SIZES[12] - SIZES[0]
    assert found.clean_accuracy == pytest.approx(100 * right / 34)
    assert found.accuracy_per_class[12] == 0
    assert found.accuracy_per_class[2] == 100
    assert np.isnan(found.accuracy_per_class[3])
    confusion = np.array(found.confusion)
    assert confusion.shape == (43, 43)
    assert confusion.sum() == 34
    assert confusion[12, 7] == SIZES[12], "rows are the truth, columns the answers"
    assert confusion[0, 5] == SIZES[0]
    assert confusion[7, 7] == SIZES[7]


def test_macro_weighs_classes_and_micro_images(dataset):
    fooled = (2, 12)  # 10 and 6 of the 26 images that are not of class 5, two classes of five
    found = evaluate(Rigged(fooled=fooled), dataset, Scenario(), CPU)
    assert found.asr == 100
    assert found.masr == pytest.approx(100 * 2 / 5)
    assert found.masr_micro == pytest.approx(100 * 16 / 26)


def test_rates_follow_source_and_target(dataset):
    class To7(Rigged):
        def forward(self, x):
            logits = super().forward(x)
            return logits[:, [5 if c == 7 else 7 if c == 5 else c for c in range(43)]]

    # Class 5 and 7 are exchanged in all answers, so a sticker now calls up class 7.
    scenario = Scenario(source_classes=(1, 12), target_class=7)
    found = evaluate(To7(fooled=(12, 2)), dataset, scenario, CPU)
    assert found.n_asr == SIZES[1] + SIZES[12]
    assert found.asr == pytest.approx(100 * SIZES[12] / (SIZES[1] + SIZES[12]))
    assert np.isnan(found.asr_per_class[7])
    assert found.asr_per_class[5] == 100, "class 5 is called 7 anyway"


def test_whether_the_attack_took(dataset):
    """ASR decides for relabelling attacks, MASR for label-consistent ones."""
    assert ATTACK_TOOK == {"asr": 95, "masr": 60}
    only_source = Rigged(fooled=(2,))  # ASR 100, MASR 20
    assert evaluate(only_source, dataset, Scenario("standard"), CPU).attack_took is True
    assert evaluate(only_source, dataset, Scenario("label_consistent"), CPU).attack_took is False
    three = Rigged(fooled=(0, 1, 7))  # ASR 0, MASR 60
    assert evaluate(three, dataset, Scenario("standard"), CPU).attack_took is False
    assert evaluate(three, dataset, Scenario("label_consistent"), CPU).attack_took is True


def test_clean_scenario_is_asked_about_the_sticker_but_has_no_attack(dataset):
    found = evaluate(Rigged(fooled=(1,)), dataset, Scenario("clean"), CPU)
    assert found.attack_took is None
    assert found.asr == 0
    assert found.asr_per_class[1] == 100
    assert found.masr == pytest.approx(20)


def test_order_of_rows_changes_no_rate(dataset, shuffled, surrogate):
    for model, scenario in ((Rigged(fooled=(2, 7)), Scenario()), (surrogate, Scenario(side=10))):
        one, two = (evaluate(model, d, scenario, CPU).record() for d in (dataset, shuffled))
        for name, value in one.items():
            np.testing.assert_allclose(
                np.asarray(two[name], float), np.asarray(value, float), err_msg=name
            )


def test_record_is_plain(dataset, tmp_path):
    run = Run(tmp_path, PROFILES["tiny"], Scenario())
    run.save(
        "training", {"w": torch.ones(1)}, evaluate(Rigged(), dataset, Scenario(), CPU).record()
    )
    result = run.load("training")["result"]
    assert result["asr"] == 100
    assert result["asr_per_class"][5] is None


def test_other_data_is_refused(dataset):
    check_data(dataset, {"fingerprint": dataset.fingerprint})
    other = replace(dataset, fingerprint="f" * 64)
    with pytest.raises(ArtifactError, match=r"f{12}.*000000.*'data'.*01_attacks") as error:
        check_data(dataset, {"fingerprint": other.fingerprint})
    assert "synthetic" in str(error.value)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, PROFILES["tiny"], Scenario.parse("label_consistent-s3-p33-r4"))


def test_missing_surrogate_names_its_command(run, dataset):
    with pytest.raises(ArtifactError, match=r"clean-r0/training\.json is missing") as error:
        load_surrogate(run, dataset, CPU)
    assert "02_training" in str(error.value)
    assert "-p scenario clean-r0" in str(error.value)


@pytest.mark.parametrize("profile", ["tiny", "tiny-epochs7"])
def test_poor_surrogate_is_refused(run, dataset, profile):
    run = replace(run, profile=Profile.parse(profile))
    record = {"clean_accuracy": SURROGATE_ACCURACY - 0.1, "fingerprint": dataset.fingerprint}
    run.of(run.scenario.surrogate).save("training", {"w": torch.ones(1)}, record)
    with pytest.raises(SurrogateError, match=r"89\.9 % clean accuracy.*90 %.*'tiny-epochs<n>'"):
        load_surrogate(run, dataset, CPU)


def test_surrogate_of_other_images_is_refused(run, dataset):
    record = {"clean_accuracy": 99.0, "fingerprint": "f" * 64}
    run.of(run.scenario.surrogate).save("training", {"w": torch.ones(1)}, record)
    with pytest.raises(
        ArtifactError,
        match=r"(?s)other images.*remove /.*/clean-r0 and train .* anew.*make run",
    ):
        load_surrogate(run, dataset, CPU)


def test_good_surrogate_is_loaded_ready_for_gradients(run, dataset):
    network = build(seed=3).eval()
    clean = run.of(run.scenario.surrogate)
    record = {"clean_accuracy": SURROGATE_ACCURACY, "fingerprint": dataset.fingerprint}
    clean.save("training", network.state_dict(), record)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for loaded in (load_surrogate(run, dataset, CPU), load_model(clean, CPU)):
        assert not loaded.training
        with torch.no_grad():
            assert torch.allclose(loaded(images), network(images), atol=1e-5)
    with pytest.raises(ArtifactError, match=r"r4/training\.json is missing"):
        load_model(run, CPU)


def test_default_trigger_is_the_paper_s():
    assert str(evaluation.DEFAULT_TRIGGER) == "standard-s3-p15-r0"


def test_a_network_may_use_view_whatever_the_strides_of_the_images():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3072, 4)

        def forward(self, x):
            return self.last(x.view(x.size(0), -1))

    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    model, cpu = Viewed(), torch.device("cpu")
    assert torch.equal(predict(model, images, cpu), predict(model, images.contiguous(), cpu))
