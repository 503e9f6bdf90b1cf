import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from nbsupport import evidence
from nbsupport.data import Split
from nbsupport.poison_detector import PoisonDetector

CPU = torch.device("cpu")
YELLOW = torch.tensor([245, 255, 0], dtype=torch.uint8)[:, None, None]


class Rigged(nn.Module):
    """Read the class off the four corners; answer 5 to nine yellow pixels anywhere."""

    def forward(self, x):
        pixels = (x * 255).round()
        corners = pixels[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
        answer = corners.median(1).values.long()
        yellow = (pixels == YELLOW.float()).all(1)
        answer[yellow.flatten(1).sum(1) >= 9] = 5
        return 4 * nn.functional.one_hot(answer, 43).float()


def sign(label, spot=None, noise=0):
    """Draw an image whose corners tell its class; a yellow square at ``spot`` = (r, c, side)."""
    image = torch.full((3, 32, 32), 100 + noise, dtype=torch.uint8)
    image[:, [0, 0, -1, -1], [0, -1, 0, -1]] = label
    if spot:
        r, c, side = spot
        image[:, r : r + side, c : c + side] = YELLOW
    return image


def heat(spots):
    maps = torch.rand(len(spots), 32, 32, generator=torch.Generator().manual_seed(0)) * 0.01
    for one, (r, c, side) in zip(maps, spots, strict=True):
        one[r : r + side, c : c + side] += 1
    return maps


def test_the_window_holds_the_most_positive_relevance():
    maps = torch.randn(20, 9, 7, generator=torch.Generator().manual_seed(0))
    for side in (1, 2, 3, 7):
        row, column = evidence.relevant_windows(maps, side)
        for one, r, c in zip(maps.clamp(min=0).numpy(), row, column, strict=True):
            sums = {
                (i, j): one[i : i + side, j : j + side].sum()
                for i in range(9 - side + 1)
                for j in range(7 - side + 1)
            }
            assert sums[int(r), int(c)] == pytest.approx(max(sums.values()))


@pytest.mark.parametrize("side", [0, 8])
def test_a_window_that_does_not_fit_is_refused(side):
    with pytest.raises(ValueError, match=rf"side is {side} .*\(2, 9, 7\)"):
        evidence.relevant_windows(torch.rand(2, 9, 7), side)


def test_filling_uses_nothing_of_what_it_covers():
    images = torch.randint(256, (4, 3, 12, 12), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    masks = torch.zeros(4, 12, 12, dtype=torch.bool)
    masks[:, 3:8, 4:9] = True
    other = torch.where(masks[:, None], 255 - images, images)
    filled = evidence.fill(images, masks)
    assert torch.equal(filled, evidence.fill(other, masks))
    assert torch.equal(filled[~masks[:, None].expand_as(images)],
                       images[~masks[:, None].expand_as(images)])  # fmt: skip
    # The first ring is the mean of the known neighbours, pixel by pixel.
    kernel, known = np.ones((3, 3)), (~masks[0]).double().numpy()
    total = ndimage.convolve(images[0, 1].double().numpy() * known, kernel, mode="constant")
    count = ndimage.convolve(known, kernel, mode="constant")
    assert filled[0, 1, 3, 4] == round(total[3, 4] / count[3, 4])


def test_filling_an_even_surface_leaves_no_trace():
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 0:7, 0:7] = True
    even = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(evidence.fill(even, masks), even)
    with pytest.raises(ValueError, match="covers its whole image"):
        evidence.fill(even, torch.ones(1, 32, 32, dtype=torch.bool))


@pytest.fixture
def split():
    labels = torch.arange(60) % 6
    images = torch.stack([sign(int(c), noise=k) for k, c in enumerate(labels)])
    images[6] = sign(3)  # labelled 0 and not read as 0
    return Split(images, labels, torch.arange(60), torch.arange(60))


def test_carriers_are_of_other_classes_and_read_right(split):
    carriers = evidence.pick_carriers(Rigged(), split, 5, CPU, count=15)
    shown = carriers[:, 0, 0, 0]
    assert np.bincount(shown.numpy(), minlength=43).tolist() == [3] * 5 + [0] * 38
    assert len(set(shown[:5].tolist())) == 5
    assert not (carriers == split.images[6]).flatten(1).all(1).any()
    again = evidence.pick_carriers(Rigged(), split, 5, CPU, count=15)
    assert torch.equal(carriers, again)
    other = evidence.pick_carriers(Rigged(), split, 5, CPU, count=15, seed=1)
    assert not torch.equal(carriers, other)


def test_two_classes_have_as_many_carriers_as_many(split):
    labels = torch.where(split.labels == 5, 5, 2)
    images = torch.stack([sign(int(label), noise=k) for k, label in enumerate(labels)])
    two = Split(images, labels, split.ids, split.tracks)
    assert len(evidence.pick_carriers(Rigged(), two, 5, CPU, count=24, pool=4)) == 24
    # A class of which the first ones drawn are misread has others.
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(labels == 2))
    two.images[drawn[:30]] = sign(3)
    few = evidence.pick_carriers(Rigged(), two, 5, CPU, count=8, pool=4)
    assert few[:, 0, 0, 0].tolist() == [2] * 8


def test_without_carriers_the_message_says_why(split):
    blind = Rigged()
    blind.forward = lambda x: torch.nn.functional.one_hot(torch.full((len(x),), 42), 43).float()
    with pytest.raises(ValueError, match="no image of another class than 5 right"):
        evidence.pick_carriers(blind, split, 5, CPU)


def test_a_trigger_takes_its_label_along_and_a_sign_does_not(split):
    spots = [(4, 9, 3), (20, 6, 3), (11, 11, 3), (13, 13, 3)]
    images = torch.stack([sign(2, spots[0]), sign(1, spots[1]), sign(5), sign(5)])
    carriers = evidence.pick_carriers(Rigged(), split, 5, CPU, count=15)
    found = evidence.gather(Rigged(), images, heat(spots), 5, carriers, CPU, sides=(3,))
    assert found.margin.tolist() == [4, 4, 4, 4]
    assert found.occluded[:, 0].tolist() == [-4, -4, 4, 4]
    assert found.answer[:2, 0].tolist() == [2, 1]
    assert found.carried[:, 0].tolist() == [1, 1, 0, 0]
    assert found.gain[:, 0].tolist() == [8, 8, 0, 0]
    assert list(zip(found.row[:2, 0], found.column[:2, 0], strict=True)) == [(4, 9), (20, 6)]
    table = found.table(heat(spots))
    assert table[:, :2].tolist() == [[4, 8], [4, 8], [-4, 0], [-4, 0]]
    assert np.array_equal(table[:, 2], evidence.concentration(heat(spots)))
    activations = np.arange(8).reshape(4, 2)
    assert np.array_equal(found.table(heat(spots), activations), np.hstack([table, activations]))


def test_a_larger_trigger_takes_a_larger_window(split):
    # Nine yellow pixels are left around a window of 3 x 3 in a square of 5 x 5.
    spots = [(4, 9, 5)]
    carriers = evidence.pick_carriers(Rigged(), split, 5, CPU)
    images = sign(2, spots[0])[None]
    found = evidence.gather(Rigged(), images, heat(spots), 5, carriers, CPU, sides=(3, 5))
    assert found.sides == (3, 5)
    assert found.occluded.tolist() == [[4, -4]]
    assert (found.row[0, 1], found.column[0, 1]) == (4, 9)


def test_the_gain_is_that_of_one_carrier_after_another(split):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 43)).eval()
    spots = [(4, 9, 3), (13, 13, 3)]
    images, maps = torch.stack([sign(2, spots[0]), sign(5)]), heat(spots)
    carriers = split.images[:5]
    found = evidence.gather(model, images, maps, 5, carriers, CPU, sides=(3,), precision="fp32")
    for i, (r, c, side) in enumerate(spots):
        gains = []
        for carrier in carriers:
            pasted = carrier.clone()
            pasted[:, r : r + side, c : c + side] = images[i, :, r : r + side, c : c + side]
            with torch.no_grad():
                logits = model(torch.stack([carrier, pasted]).float() / 255)
            rest = torch.cat([logits[:, :5], logits[:, 6:]], 1)
            gains.append(float((logits[:, 5] - rest.amax(1)).diff()))
        assert found.gain[i, 0] == pytest.approx(np.median(gains), abs=1e-4)


def test_evidence_is_found_again_among_other_arrays(split):
    carriers, maps = evidence.pick_carriers(Rigged(), split, 5, CPU), heat([(4, 9, 3)])
    found = evidence.gather(Rigged(), sign(2, (4, 9, 3))[None], maps, 5, carriers, CPU)
    kept = found.arrays()
    assert set(kept) == {f"evidence_{name}" for name in vars(found)}
    again = evidence.Evidence.from_arrays({"ids": np.arange(1), "heatmaps_gamma": maps} | kept)
    assert np.array_equal(again.table(maps), found.table(maps))
    assert again.sides == found.sides
    # What a convolution makes of an image is a row of numbers, too.
    assert found.table(maps, np.zeros((1, 4, 2, 2))).shape == (1, found.table(maps).shape[1] + 16)


def test_only_gains_that_can_matter_are_measured(split):
    """Images with a sticker lose their label; of the others some random ones tell what is usual."""
    spots = [(r, 9, 3) for r in range(4, 24)] + [(11, 11, 3)] * 180
    images = torch.stack([sign(2, spot) for spot in spots[:20]] + [sign(5)] * 180)
    carriers, maps = evidence.pick_carriers(Rigged(), split, 5, CPU, count=3), heat(spots)
    narrow = np.arange(200)[::-1]  # the stickers' heatmaps are the narrowest
    options = {"sides": (3,), "narrow": narrow}
    some = evidence.gather(Rigged(), images, maps, 5, carriers, CPU, reference=30, **options)
    every = evidence.gather(Rigged(), images, maps, 5, carriers, CPU, reference=200, **options)
    known = ~np.isnan(some.gain[:, 0])
    assert not np.isnan(every.gain).any()
    assert known[:20].all()
    assert 0 < known[100:].sum() <= 30
    assert np.array_equal(some.gain[known], every.gain[known])
    assert np.array_equal(np.isnan(some.carried), np.isnan(some.gain))
    assert np.array_equal(some.occluded, every.occluded)
    verdicts = [PoisonDetector(sides=1).fit(e.table(maps)).poisoned_ for e in (some, every)]
    assert np.array_equal(*verdicts)


def test_images_and_heatmaps_must_belong_together(split):
    with pytest.raises(ValueError, match="do not belong together"):
        evidence.gather(Rigged(), split.images[:3], heat([(1, 1, 3)]), 5, split.images, CPU)
    with pytest.raises(ValueError, match="n > 0"):
        evidence.gather(Rigged(), split.images[:0], torch.zeros(0, 32, 32), 5, split.images, CPU)


def test_a_piece_is_cut_out_of_its_own_image_only(split):
    for maps in (heat([(1, 1, 3)]), torch.zeros(3, 16, 16)):
        with pytest.raises(ValueError, match="do not belong together"):
            evidence.cover_and_paste(split.images[:3], maps, split.images)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_relevance_that_is_no_number_is_no_evidence(bad):
    maps = heat([(1, 1, 3)] * 4)
    maps[2, 5, 5] = bad
    for ask in (evidence.concentration, lambda maps: evidence.relevant_windows(maps, 3)):
        with pytest.raises(ValueError, match=r"NaN or infinite relevance in maps \[2\]"):
            ask(maps)


def test_windows_grow_with_the_image():
    assert evidence.window_sides((32, 32)) == evidence.window_sides((20, 90)) == evidence.SIDES
    assert evidence.window_sides((48, 48)) == (5, 8)  # rather too large than too small
    assert evidence.window_sides((224, 300)) == (21, 35)
    assert evidence.window_sides((5, 8)) == (3, 4)
    assert evidence.window_sides((4, 4)) == (3,)


def test_many_images_are_filled_like_few():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (1100, 1, 8, 8), dtype=np.uint8))
    masks = torch.from_numpy(rng.random((1100, 8, 8)) < 0.4)
    apart = torch.cat(
        [evidence.fill(*part) for part in zip(images[:, None], masks[:, None], strict=True)]
    )
    assert torch.equal(evidence.fill(images, masks), apart)


def test_progress_reaches_the_end(split):
    calls = []
    carriers = evidence.pick_carriers(Rigged(), split, 5, CPU)
    evidence.gather(
        Rigged(), sign(5)[None], heat([(4, 9, 3)]), 5, carriers, CPU,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]


def test_the_order_of_the_images_does_not_matter(split):
    spots = [(4, 9, 3), (20, 6, 3), (11, 11, 3), (13, 13, 3)]
    images = torch.stack([sign(2, spots[0]), sign(1, spots[1]), sign(5), sign(5, noise=9)])
    maps, order = heat(spots), torch.tensor([2, 0, 3, 1])
    carriers = evidence.pick_carriers(Rigged(), split, 5, CPU)
    one = evidence.gather(Rigged(), images, maps, 5, carriers, CPU)
    two = evidence.gather(Rigged(), images[order], maps[order], 5, carriers, CPU)
    for name in ("row", "column", "margin", "occluded", "answer", "gain", "carried"):
        column = getattr(one, name)
        assert np.array_equal(column[order.numpy()], getattr(two, name)), name


def test_a_piece_is_covered_in_its_image_and_pasted_into_the_next_carrier():
    spots = [(4, 9, 3), (20, 6, 3), (11, 11, 3)]
    images, maps = torch.stack([sign(2, spot) for spot in spots]), heat(spots)
    carriers = torch.stack([sign(3), sign(4, noise=7)])
    covered, pasted = evidence.cover_and_paste(images, maps, carriers)
    assert torch.equal(covered, sign(2).expand_as(covered)), "an even ground fills up evenly"
    for k, spot in enumerate(spots):
        label, noise = [(3, 0), (4, 7)][k % 2]
        assert torch.equal(pasted[k], sign(label, spot, noise))


def test_concentration_counts_pixels():
    maps = np.zeros((4, 8, 8))
    maps[0, 3, 3] = -2.0
    maps[1, 2:5, 2:5] = 0.1
    maps[2] = -7.0
    assert evidence.concentration(maps) == pytest.approx(-np.log([1, 9, 64, 64]))
    uneven = np.random.default_rng(0).random((5, 8, 8))
    assert np.allclose(evidence.concentration(uneven), evidence.concentration(-3 * uneven))
    p = uneven / uneven.sum((1, 2), keepdims=True)
    assert np.allclose(np.exp(-evidence.concentration(uneven)), 1 / (p**2).sum((1, 2)))
