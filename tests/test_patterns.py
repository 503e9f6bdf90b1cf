import numpy as np
import pytest
import torch
from torch import nn

from nbsupport import attacks, data, patterns
from nbsupport.scenarios import Scenario

CPU = torch.device("cpu")


class Correlator(nn.Module):
    """Answer 5 to images that hold enough of a known signal, 0 to others."""

    def __init__(self, signal):
        super().__init__()
        unit = torch.as_tensor(patterns.details(signal)).flatten()
        self.register_buffer("unit", unit / (unit**2).sum())

    def forward(self, x):
        held = (x * 255).flatten(1) @ self.unit
        return nn.functional.one_hot((held > 0.5).long() * 5, 43).float()


@pytest.fixture(scope="module")
def signs():
    """Drawn images of one class, and of others."""
    train = data.load("synthetic", scale=0.25).train
    return train.of_class(5).images, train.images[train.labels != 5][:40]


def poisoned(word, images, share):
    """Stamp the trigger of a scenario on a share of images; return them and who holds it."""
    scenario, truth = Scenario.parse(word), np.zeros(len(images), dtype=bool)
    truth[: round(share * len(images))] = True
    stamped = images.clone()
    stamped[truth], _, _ = attacks.stamp(images[truth], scenario, np.random.default_rng(0))
    return stamped, truth


@pytest.mark.parametrize("word", ["blended-a20-p15-r0", "sinusoidal-a40-p33-r0"])
def test_a_guess_becomes_the_group_that_holds_the_pattern(signs, word):
    images, truth = poisoned(word, signs[0], 0.2)
    # Half of the poison, and as many clean images: a detector that is wrong as often as right.
    rng, guess = np.random.default_rng(1), np.zeros(len(truth), dtype=bool)
    half = truth.sum() // 2
    guess[rng.permutation(np.flatnonzero(truth))[:half]] = True
    guess[rng.permutation(np.flatnonzero(~truth))[:half]] = True
    group, pattern = patterns.refine(images, guess, rounds=2)
    assert np.array_equal(group, truth)
    assert np.array_equal(pattern, patterns.group_pattern(images, truth))
    held = patterns.likeness(images, pattern)
    assert held[truth].mean() - held[~truth].mean() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("word", ["blended-a20-p15-r0", "sinusoidal-a20-p33-r0"])
@pytest.mark.parametrize("share", [0.04, 0.3])
def test_a_spread_trigger_is_a_component_of_the_details(signs, word, share):
    images, truth = poisoned(word, signs[0], share)
    groups = patterns.components(images, 20)
    assert len(groups) == 20
    assert all(group.shape == truth.shape and 0 < group.mean() <= 0.5 for group in groups.values())
    seconds = [patterns.refine(images, group)[0] for group in groups.values()]
    assert max((found & truth).sum() / (found | truth).sum() for found in seconds) > 0.5
    again = patterns.components(images, 20)
    assert all(np.array_equal(group, again[name]) for name, group in groups.items())


def test_the_best_component_is_the_one_that_carries_the_label(signs):
    images, truth = poisoned("sinusoidal-a20-p33-r0", signs[0], 0.3)
    model = Correlator(patterns.group_pattern(images, truth))
    cut = patterns.best_component(model, images, signs[1], 5, CPU)
    found = patterns.look_again(model, images, {"best": cut}, signs[1], 5, CPU)["best"]
    others = patterns.look_again(model, images, patterns.components(images), signs[1], 5, CPU)
    assert found.carried == max(one.carried for one in others.values()) > 0.9
    assert truth[found.group].mean() > 0.8
    assert not patterns.best_component(model, images[:1], signs[1], 5, CPU).any()


def test_fewer_images_have_fewer_components(signs):
    assert len(patterns.components(signs[0][:7], 20)) == 6
    even = torch.full((6, 3, 32, 32), 90, dtype=torch.uint8)
    for none in (signs[0][:0], signs[0][:1], signs[0][:1].expand(5, -1, -1, -1), even):
        assert patterns.components(none) == {}


def test_what_rounding_leaves_is_no_component():
    rng = np.random.default_rng(0)
    two = rng.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8).repeat(20, axis=0)
    (only,) = patterns.components(two).values()
    assert sorted([only[:20].mean(), only[20:].mean()]) == [0, 1]
    five = rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8).repeat([9, 8, 7, 6, 5], axis=0)
    assert len(patterns.components(five)) == 4


def test_the_pattern_of_a_group_is_the_trigger(signs):
    """The wave that is added, where pixels are not clipped."""
    images = signs[0].clamp(60, 190)
    wave = attacks.sinusoid(20).expand(3, -1, -1)
    both = torch.cat([images, (images + wave).round().to(torch.uint8)])
    pattern = patterns.group_pattern(both, np.arange(len(both)) >= len(images))
    assert np.abs(pattern - patterns.details(wave)).max() < 0.5


def test_added_elsewhere_it_takes_the_label_along(signs):
    images, truth = poisoned("sinusoidal-a20-p33-r0", signs[0], 0.3)
    pattern = patterns.group_pattern(images, truth)
    model, others = Correlator(pattern), signs[1]
    others = others[~patterns.carried(model, 0 * pattern, others, 5, CPU)]  # read right
    assert patterns.carried(model, pattern, others, 5, CPU).mean() > 0.9
    assert patterns.carried(model, -pattern, others, 5, CPU).mean() < 0.1
    assert not patterns.carried(model, pattern, others, 7, CPU).any()
    weak, strong = (
        patterns.carried(model, pattern, others, 5, CPU, strength).mean() for strength in (0.2, 2)
    )
    assert weak < 0.5 < strong


def test_light_is_no_pattern(signs):
    """A group that is brighter, all over or on one side, has no pattern; its edges have one."""
    light = np.linspace(0, 40, 32)[None, None, :, None]
    group = np.arange(len(signs[0])) % 2 == 0
    even = np.zeros((len(group), 3, 32, 32)) + 90
    for lit, most in (
        (group[:, None, None, None] * light, 2.5),
        (40 * group[:, None, None, None], 0),
    ):
        assert np.abs(patterns.group_pattern(even + lit, group)).max() <= most + 1e-3


def test_equal_images_hold_no_pattern():
    images = torch.full((6, 3, 32, 32), 90, dtype=torch.uint8)
    guess = np.arange(6) < 2
    group, pattern = patterns.refine(images, guess)
    assert np.array_equal(group, guess)
    assert not pattern.any()
    assert not patterns.likeness(images, pattern).any()


@pytest.mark.parametrize("group", [np.zeros(6, bool), np.ones(6, bool), np.ones(5, bool)])
def test_a_group_of_none_or_all_is_refused(group):
    images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"names {group.sum()} of 6 images; pass a bool for each"):
        patterns.refine(images, group)


def test_detectors_that_accuse_nobody_or_all_are_passed_over(signs):
    images, truth = poisoned("blended-a20-p15-r0", signs[0], 0.2)
    pattern = patterns.group_pattern(images, truth)
    model, others = Correlator(pattern), signs[1]
    nobody = np.zeros(len(images), dtype=bool)
    guesses = {
        "right": truth,
        "nobody": nobody,
        "all": ~nobody,
        "half": np.arange(len(truth)) < 200,
    }
    found = patterns.look_again(model, images, guesses, others, 5, CPU)
    assert list(found) == ["right", "half"]
    for name, one in found.items():
        group, pattern = patterns.refine(images, guesses[name])
        assert np.array_equal(one.group, group)
        assert np.array_equal(one.pattern, pattern)
        assert one.carried == patterns.carried(model, pattern, others, 5, CPU).mean() > 0.9
    assert np.array_equal(found["right"].group, truth)
