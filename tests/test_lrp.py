import copy

import networks
import numpy as np
import pytest
import torch
from networks import N, relative
from torch import nn

from nbsupport import lrp
from nbsupport.models import Normalise


@pytest.fixture(scope="module", name="images")
def images_fixture():
    return networks.images()


@pytest.fixture(scope="module")
def model():
    return networks.trained()


@pytest.fixture(scope="module")
def exact():
    return networks.exact()


def test_targets(exact, images):
    explain = lambda target: lrp.explain(exact, images, target=target, composite="paper")  # noqa: E731
    five, seven = explain(5), explain(7)
    assert torch.equal(five.start, five.logits[:, 5])
    mixed = explain(torch.tensor([5, 7, 5]))
    expected = torch.stack([five.heatmaps[0], seven.heatmaps[1], five.heatmaps[2]])
    assert relative(mixed.heatmaps, expected) < 1e-8
    difference = explain((5, 7))
    assert torch.allclose(difference.start, five.logits[:, 5] - five.logits[:, 7])
    assert relative(difference.heatmaps, five.heatmaps - seven.heatmaps) < 1e-6
    predicted = explain("predicted")
    assert torch.equal(predicted.start, five.logits.amax(1))
    assert relative(explain((5, "predicted")).heatmaps, five.heatmaps - predicted.heatmaps) < 1e-6
    with pytest.raises(ValueError, match="choose from 0 to 42"):
        explain(43)


@pytest.mark.parametrize("count", [N - 1, N + 1, 2 * N])
@pytest.mark.parametrize("paired", [False, True])
def test_there_is_one_target_an_image(model, images, count, paired):
    """Labels of other images must not be cut to fit."""
    target = torch.zeros(count, dtype=torch.int64)
    target = (target.numpy(), 1) if paired else target
    for batch_size in (1, N):
        with pytest.raises(ValueError, match=rf"target has shape \({count},\), .* {N} images"):
            lrp.explain(model, images, target=target, batch_size=batch_size)


def test_pairs_take_arrays(exact, images):
    classes = torch.tensor([5, 7, 5])
    explain = lambda target: lrp.explain(exact, images, target=target, batch_size=2)  # noqa: E731
    assert torch.equal(explain((classes.numpy(), 1)).start, explain((classes, 1)).start)


def test_weights_may_come_from_numpy(model, images):
    classes = torch.arange(N) % 43
    explain = lambda target: lrp.explain(model, images, target=target)  # noqa: E731
    assert torch.equal(explain(np.eye(43)[classes]).heatmaps, explain(classes).heatmaps)


def test_a_layer_may_be_asked_for_twice(model, images):
    found = lrp.explain(model, images, target=5, layers=("flatten", "flatten"))
    assert list(found.activations) == ["flatten"]


def test_a_value_of_zero_has_no_gap(model, images):
    predicted = int(lrp.explain(model, images[:1]).logits.argmax())
    found = lrp.per_layer_conservation(
        model, images[:1], "gamma", target=("predicted", predicted)
    )  # fmt: skip
    assert {record.gap for record in found} == {0.0}


@pytest.mark.parametrize("name", ["released", "gamma", "grad_cam"])
def test_activations_come_out_of_the_same_pass(name, model, images):
    layers = ("inception.concat", "relu2", "fc3")
    seen = {}
    hooks = [
        model.get_submodule(layer).register_forward_hook(
            lambda _, __, out, layer=layer: seen.update({layer: out})
        )
        for layer in layers
    ]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    explanation = lrp.explain(model, images, composite=name, layers=layers, batch_size=2)
    assert list(explanation.activations) == list(layers)
    for layer in layers:
        assert torch.allclose(explanation.activations[layer], seen[layer], atol=1e-5)
    assert torch.allclose(explanation.logits, logits, atol=1e-5)


def test_a_convolution_that_swallowed_its_batch_norm_has_no_output_of_its_own(model, images):
    name, behind = "inception.b1.conv", "inception.b1.norm"
    seen = {}
    watched = copy.deepcopy(model).eval()
    watched.get_submodule(name).register_forward_hook(lambda *told: seen.update(out=told[2]))
    with torch.no_grad():
        watched(images)
    found = lrp.explain(model, images, composite="released", layers=(name,))
    assert torch.allclose(found.activations[name], seen["out"], atol=1e-5)
    with pytest.raises(ValueError, match=f"merged into layer '{name}'.*take '{behind}'"):
        lrp.explain(model, images, composite="gamma", layers=(name,))


def test_heatmaps_sum_the_channels_on_the_cpu(model, images):
    uint8 = (images * 255).to(torch.uint8)
    explanation = lrp.explain(model, uint8, composite="gamma", channels=True)
    assert explanation.heatmaps.shape == (N, 32, 32)
    assert explanation.heatmaps.dtype == torch.float32
    assert explanation.heatmaps.device.type == "cpu"
    assert explanation.heatmaps.is_contiguous()
    assert explanation.relevance.is_contiguous()
    assert explanation.heatmaps.min() < 0 < explanation.heatmaps.max()
    assert torch.allclose(explanation.relevance.sum(1), explanation.heatmaps)
    floats = lrp.explain(model, uint8 / 255, composite="gamma")
    assert torch.equal(floats.heatmaps, explanation.heatmaps)
    assert floats.relevance is None


def test_model_is_read_only_and_explained_in_evaluation_mode(model, images):
    before = copy.deepcopy(model.state_dict())
    expected = lrp.explain(model, images, composite="gamma").heatmaps
    model.train()
    try:
        assert torch.equal(lrp.explain(model, images, composite="gamma").heatmaps, expected)
        assert model.training
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_progress(model, images):
    seen = []
    lrp.explain(
        model, images, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 3), (3, 3)]


def test_wrong_settings_name_the_choices(model, images):
    with pytest.raises(ValueError, match=r"'lrp'.*paper, released, squared, gamma.*grad_cam"):
        lrp.explain(model, images, composite="lrp")
    with pytest.raises(ValueError, match=r"no layer 'relu9'; choose from inception\.b1\.conv"):
        lrp.explain(model, images, layers=("relu9",))
    with pytest.raises(ValueError, match="no layer 'inception'"):
        lrp.explain(model, images, composite=lrp.Composite(stop_at="inception"))
    with pytest.raises(ValueError, match=r"'inception\.b1\.relu' does not see all relevance"):
        lrp.explain(model, images, composite=lrp.Composite(stop_at="inception.b1.relu"))
    with pytest.raises(ValueError, match=r"shape \(3, 256\) is no map"):
        lrp.explain(model, images, composite=lrp.Composite(stop_at="relu1"))
    with pytest.raises(ValueError, match=r"batch_norm='merge'.*'fold'"):
        lrp.Composite(batch_norm="merge")
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\)"):
        lrp.explain(model, images[0])
    with pytest.raises(ValueError, match="no layers to follow"):
        lrp.per_layer_conservation(model, images, "grad_cam")
    for wrong in (images[0], images[:0]):
        with pytest.raises(ValueError, match=r"needs \(n > 0, c, h, w\)"):
            lrp.per_layer_conservation(model, wrong, "gamma")


def test_unsupported_layers_are_refused_by_name(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(3600, 10))
    with pytest.raises(lrp.UnsupportedLayerError, match="'1' is of type Softplus"):
        lrp.explain(model, images, composite="paper")


def test_every_composite_says_what_it_is():
    for name, composite in {**lrp.COMPOSITES, **lrp.BASELINES}.items():
        assert composite.description, name
        assert "\n" not in composite.description


@pytest.mark.parametrize("composite", ["gamma", "squared", "paper"])
def test_a_network_of_normalised_images_explains_as_it_would_without_the_layer(composite):
    model, layer = networks.exact(), Normalise((0.3, 0.4, 0.5), (0.2, 0.3, 0.1)).double()
    images = networks.images().double()
    settings = {"target": 5, "composite": composite}
    inside = lrp.explain(nn.Sequential(layer, model), images, layers=["1.relu2"], **settings)
    outside = lrp.explain(model, layer(images), layers=["relu2"], **settings)
    assert relative(inside.heatmaps, outside.heatmaps) < 1e-9
    assert relative(inside.activations["1.relu2"], outside.activations["relu2"]) < 1e-9
