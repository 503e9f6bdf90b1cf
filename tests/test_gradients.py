import networks
import pytest
import torch
from networks import N, channels, relative
from torch import nn

from nbsupport import lrp


@pytest.fixture(scope="module", name="images")
def images_fixture():
    return networks.images()


@pytest.fixture(scope="module")
def exact():
    return networks.exact()


@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_gradient_methods_agree_with_captum(exact, images):
    attr = pytest.importorskip("captum.attr")
    x = images.double()
    theirs = attr.InputXGradient(exact).attribute(x.clone(), target=5)
    assert relative(channels(exact, images, "gradient_x_input"), theirs.detach()) < 1e-9
    theirs = attr.IntegratedGradients(exact).attribute(
        x.clone(), target=5, n_steps=4, method="riemann_middle"
    )
    assert relative(channels(exact, images, lrp.IntegratedGradients(steps=4)), theirs) < 1e-9
    labels = torch.arange(N) + 5
    theirs = attr.LayerGradCam(exact, exact.inception.concat).attribute(
        x.clone(), target=labels, relu_attributions=True
    )
    theirs = attr.LayerAttribution.interpolate(theirs.detach(), (32, 32), "bilinear")
    ours = channels(exact, images, lrp.GradCam("inception.concat"), target=labels)
    assert relative(ours, theirs) < 1e-9


def test_integrated_gradients_add_up_to_the_difference_from_black(surrogate, images):
    explanation = lrp.explain(surrogate, images, composite=lrp.IntegratedGradients(steps=128))
    with torch.no_grad():
        difference = surrogate(images)[:, 5] - surrogate(0 * images)[:, 5]
    assert torch.allclose(explanation.heatmaps.sum((1, 2)), difference, rtol=0.02)


def test_grad_cam_of_a_network_without_maps_names_what_works(images):
    dense = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5))
    for composite in ("grad_cam", lrp.GradCam("2")):
        with pytest.raises(ValueError, match="has none; choose 'gradient_x_input'"):
            lrp.explain(dense, images, composite=composite, target=1)


def test_grad_cam_takes_the_last_map_with_more_than_one_pixel(exact, images):
    ours = lrp.explain(exact, images, target="predicted", composite="grad_cam").heatmaps
    last = lrp.GradCam("conv3.relu")
    expected = lrp.explain(exact, images, target="predicted", composite=last).heatmaps
    assert torch.equal(ours, expected)
    assert ours.min() >= 0
    assert ours.max() > 0
