import math

import numpy as np
import pytest
import torch
from torchvision import transforms

from nbsupport.augmentation import augment

N = 400
REFERENCE = transforms.Compose(
    [
        transforms.RandomResizedCrop(32, scale=(0.6, 1.0)),
        transforms.RandomRotation(15),
        transforms.ColorJitter(0.1, 0.1, 0.1, 0.1),
        transforms.RandomAffine(15),
        transforms.RandomGrayscale(0.1),
    ]
)
"""The paper's transforms, one image at a time."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def signs(n):
    """Discs with a ring on a plain ground, nowhere black, grey or white."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    images = np.empty((n, 3, 32, 32), np.float32)
    for image in images:
        distance = np.hypot(y - rng.uniform(12, 19), x - rng.uniform(12, 19))
        radius = rng.uniform(8, 12)
        ground, ring, face = rng.uniform(0.15, 0.85, (3, 3, 1, 1))
        image[:] = np.where(
            distance < 0.7 * radius, face, np.where(distance < radius, ring, ground)
        )
    return torch.from_numpy(images)


def reference(images, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.stack([REFERENCE(image) for image in images])


def is_grey(images):
    return (images.amax(1) - images.amin(1)).flatten(1).amax(1) < 1e-3


def moments(images):
    grey = is_grey(images)
    black = (images.amax(1) < 0.06).float()  # jitter of the contrast lifts black a little
    colour = images[~grey]
    return {
        "mean": images.mean(),
        "standard deviation": images.std(),
        "deviation within an image": images.flatten(1).std(1).mean(),
        "saturation": (colour.amax(1) - colour.amin(1)).mean(),
        "share of black pixels": black.mean(),
        "black at the edge": black[:, 0].mean(),
        "black in the corner": black[:, 0, 0].mean(),
        "black in the centre": black[:, 8:24, 8:24].mean(),
        "share of grey images": grey.float().mean(),
    }


def test_moments_are_those_of_the_paper_s_transforms():
    images = signs(N)
    ours, theirs = moments(augment(images, generator())), moments(reference(images))
    tolerance = dict.fromkeys(ours, 0.015) | {
        "black at the edge": 0.03,
        "black in the corner": 0.03,
        "share of grey images": 0.06,  # 2.8 standard errors of the difference
    }
    for name, value in ours.items():
        assert abs(value - theirs[name]) < tolerance[name], (name, value, theirs[name])
    # Each share is one that the transforms change: an image left as it is would fail.
    assert theirs["share of black pixels"] > 0.05
    assert theirs["share of grey images"] > 0.05
    assert theirs["mean"] < images.mean() - 0.02


def test_one_image_in_ten_turns_grey():
    share = is_grey(augment(signs(100).repeat(40, 1, 1, 1), generator())).float().mean()
    assert share == pytest.approx(0.1, abs=0.015)


def spot(images):
    """Size and centre (row, column) of the bright spot in each image, shape (n, 3)."""
    bright = (images.mean(1) > 0.5 * images.mean(1).amax((1, 2), keepdim=True)).double()
    axis = torch.arange(32.0, dtype=torch.float64)
    size = bright.sum((1, 2))
    rows = (bright.sum(2) * axis).sum(1) / size
    columns = (bright.sum(1) * axis).sum(1) / size
    return torch.stack([size, rows, columns], 1)


def test_geometry_spreads_as_in_the_paper_s_transforms():
    y, x = np.mgrid[:32, :32]
    disc = torch.from_numpy((np.hypot(y - 12, x - 18) < 4).astype(np.float32))
    images = disc.expand(N, 3, -1, -1)
    many = images.repeat(10, 1, 1, 1)  # ours are cheap: only the reference is left to chance
    ours, theirs = spot(augment(many, generator())), spot(reference(images))
    # Size in pixels (49 before), centre in pixels; standard errors are about 0.4 and 0.12.
    for name, measure in (("mean", torch.mean), ("spread", torch.std)):
        difference = (measure(ours, dim=0) - measure(theirs, dim=0)).abs()
        assert (difference < torch.tensor([1.8, 0.5, 0.5])).all(), (name, difference)
    assert (theirs.std(0) > torch.tensor([4, 1, 1])).all()


def colours(images):
    """Mean colour of the centre of each image that is not grey, shape (n, 3)."""
    return images[~is_grey(images)][:, :, 12:20, 12:20].mean((2, 3))


def hue(rgb):
    """Angle of hue in degrees, shape (n,)."""
    red, green, blue = rgb.double().T
    return torch.rad2deg(torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue))


@pytest.mark.parametrize("colour", [(0.7, 0.4, 0.3), (0.3, 0.4, 0.7), (0.3, 0.6, 0.35)])
def test_colours_turn_as_in_the_paper_s_transforms(colour):
    images = torch.tensor(colour)[:, None, None].expand(N, 3, 32, 32)
    many = images.repeat(10, 1, 1, 1)
    ours, theirs = colours(augment(many, generator())), colours(reference(images))
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.04
    before = hue(images[:1, :, 0, 0])
    turned, expected = ((hue(c) - before + 180) % 360 - 180 for c in (ours, theirs))
    assert expected.std() == pytest.approx(72 / 12**0.5, abs=2), "uniform in -36 to 36 degrees"
    # Equal angles in the plane of YIQ are no equal angles of hue: 17 to 27 degrees by colour.
    assert turned.std() == pytest.approx(72 / 12**0.5, abs=7)
    assert abs(turned.mean()) < 6


def test_brightness_of_grey_spreads_as_in_the_paper_s_transforms():
    images = torch.full((N, 3, 32, 32), 0.5)
    ours, theirs = (
        out[:, :, 12:20, 12:20].mean((1, 2, 3))
        for out in (augment(images, generator()), reference(images))
    )
    assert abs(ours.mean() - theirs.mean()) < 0.01
    assert abs(ours.std() - theirs.std()) < 0.005
    assert theirs.std() > 0.02


def test_shape_range_and_type():
    images = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=generator())
    before = images.clone()
    out = augment(images, generator())
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.min() == 0
    assert out.max() <= 1
    assert torch.equal(images, before)
    for kind in (torch.float32, torch.float64):
        torch.testing.assert_close(augment(images.to(kind) / 255, generator()), out)
    assert augment(images[:1], generator()).shape == (1, 3, 32, 32)
    assert augment(torch.rand(2, 3, 24, 24), generator()).shape == (2, 3, 24, 24)


@pytest.mark.usefixtures("keeps_global_rng")
def test_generator_alone_decides():
    images = signs(20)
    one = augment(images, generator(0))
    assert torch.equal(one, augment(images, generator(0)))
    assert not torch.equal(one, augment(images, generator(1)))
    source = generator(0)
    assert not torch.equal(augment(images, source), augment(images, source))


def test_each_image_has_a_distortion_of_its_own():
    out = augment(signs(1).expand(20, -1, -1, -1), generator())
    assert len({image.numpy().tobytes() for image in out}) == 20


def test_distortion_depends_on_place_and_batch_but_not_on_the_neighbours():
    """The draws belong to places of a batch of one size: whole batches must be repeated."""
    images = signs(20)
    out = augment(images, generator())
    changed = images.clone()
    changed[1:] = 1 - changed[1:]
    assert torch.equal(augment(changed, generator())[0], out[0])
    assert not torch.equal(augment(changed, generator())[1], out[1])
    assert not torch.allclose(augment(images[:10], generator()), out[:10], atol=0.01)


def test_plain_image_shows_crops_without_borders():
    """Crops stay inside the image: only the rotations bring black."""
    out = augment(torch.full((200, 3, 32, 32), 0.5), generator())
    centre = out[:, :, 12:20, 12:20]
    assert (centre.flatten(2).std(2) < 1e-5).all()
    assert centre.min() > 0.5 * 0.9 * 0.9
    assert centre.max() < 0.5 * 1.1 * 1.1


def test_crops_stay_inside_the_image():
    """Beyond its border an image has nothing but its last pixel, again and again."""
    ramp = torch.linspace(0.2, 0.6, 32).expand(200, 3, 32, 32)
    for images, line in ((ramp, lambda x: x[:, 0, 16]), (ramp.mT, lambda x: x[:, 0, :, 16])):
        steps = line(augment(images, generator())).diff(dim=1)
        assert (steps.abs() < 1e-6).sum(1).max() <= 2
        assert (steps > 1e-3).sum(1).min() >= 26


def test_contrast_and_saturation_spread_as_in_the_paper_s_transforms():
    halves = torch.where(torch.arange(32) < 16, 0.4, 0.6).expand(N, 3, 32, 32)

    def difference(images):
        inner = images[:, :, 12:20, 4:28].flatten(1)
        return inner.amax(1) - inner.amin(1)

    ours, theirs = (difference(f(halves)) for f in (lambda x: augment(x, generator()), reference))
    # Times brightness times contrast, both uniform in 0.9 to 1.1; 0.0115 without the contrast.
    assert theirs.std() == pytest.approx(0.2 * 0.0816, abs=0.0017)
    assert ours.std() == pytest.approx(0.2 * 0.0816, abs=0.0017)
    # Chroma beside luminance: a turn of hue and brightness leave it, saturation and contrast (of
    # which the black corners take a tenth) scale it by 0.9 to 1.1 each.
    plain = torch.tensor([0.5, 0.45, 0.4])[:, None, None].expand(10 * N, 3, 32, 32)
    rgb = colours(augment(plain, generator())).double().T
    grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    chroma = torch.hypot(
        0.596 * rgb[0] - 0.274 * rgb[1] - 0.322 * rgb[2],
        0.211 * rgb[0] - 0.523 * rgb[1] + 0.312 * rgb[2],
    )
    factor = (chroma / grey) / (chroma / grey).mean()
    assert factor.std() == pytest.approx(0.2 / 12**0.5 * math.hypot(1, 0.9), rel=0.05)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 32, 48)])
def test_grey_and_oblong_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"need \(n, 3, h, h\)"):
        augment(torch.zeros(shape, dtype=torch.uint8), torch.Generator())
