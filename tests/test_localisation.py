import pytest
import torch

from nbsupport.localisation import (
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)


@pytest.fixture
def masks():
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[:, :2, :2] = True
    return masks


@pytest.fixture
def heatmaps():
    heatmaps = torch.zeros(4, 4, 4)
    heatmaps[0, 0, 0] = 3  # on target
    heatmaps[0, 3, 3] = 1
    heatmaps[1, 3, 3] = 2  # off target
    heatmaps[1, 0, 0] = -6
    heatmaps[2] = 1  # everywhere
    heatmaps[3] = -1  # against the class, least so in the mask
    heatmaps[3, 1, 1] = -0.5
    return heatmaps


def test_mass(heatmaps, masks):
    dropped = relevance_mass_accuracy(heatmaps, masks)
    assert dropped[:3].tolist() == [0.75, 0, 0.25]
    assert dropped[3].isnan()
    assert torch.equal(relevance_mass_accuracy(7 * heatmaps[:3], masks[:3]), dropped[:3])


def test_rank_counts_the_top_k_pixels(masks):
    heatmaps = torch.arange(16.0).view(1, 4, 4).repeat(4, 1, 1)
    heatmaps[1] *= -1
    heatmaps[2][:2, :2] += 100
    heatmaps[3][0] += 100  # the first row: 2 of its 4 pixels are in the mask
    assert relevance_rank_accuracy(heatmaps, masks).tolist() == [0, 0.5, 1, 0.5]


def test_a_heatmap_of_one_value_ranks_nothing(heatmaps, masks):
    assert relevance_rank_accuracy(heatmaps, masks).isnan().tolist() == [False, False, True, False]


def test_rank_draws_lots_where_values_are_equal(masks):
    plateau = torch.zeros(1, 4, 4)
    plateau[0, :2, 1:3] = 1  # two of its four pixels are in the mask
    plateau[0, 0, 0] = 2
    # One for sure, and three of the four of the plateau, of which two are in the mask.
    expected = [(1 + 2 * 3 / 4) / 4]
    mask = masks[:1]
    for turned in ((), (1,), (2,), (1, 2)):
        found = relevance_rank_accuracy(plateau.flip(turned), mask.flip(turned))
        assert found.tolist() == pytest.approx(expected)
    one = torch.zeros(1, 4, 4)
    one[0, 3, 0] = 1
    # The hot pixel is off target; the other three places fall among fifteen pixels, four inside.
    assert relevance_rank_accuracy(one, mask).tolist() == pytest.approx([4 * 3 / 15 / 4])


def test_rank_uses_the_size_of_each_mask(masks):
    heatmaps = torch.zeros(4, 4, 4)
    heatmaps[:, 0] = torch.tensor([4.0, 3, 2, 1])
    masks[1] = False
    masks[1, 0, 0] = True
    assert relevance_rank_accuracy(heatmaps, masks)[:2].tolist() == [0.5, 1]


def test_pointing_game(heatmaps, masks):
    # The third has one value, and points nowhere.
    assert pointing_game(heatmaps, masks).tolist() == [True, False, False, True]
    heatmaps[2, 2, 2] = 0
    assert pointing_game(heatmaps, masks).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "metric", [relevance_mass_accuracy, relevance_rank_accuracy, pointing_game]
)
def test_refusals(metric, heatmaps, masks):
    with pytest.raises(ValueError, match=r"both need \(n, h, w\)"):
        metric(heatmaps, masks[:, 1:])
    with pytest.raises(ValueError, match=r"torch\.bool"):
        metric(heatmaps, masks.float())
    masks[2] = False
    with pytest.raises(ValueError, match=r"masks \[2\] are empty"):
        metric(heatmaps, masks)
