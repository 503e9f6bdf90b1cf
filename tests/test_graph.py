import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nbsupport.graph import (
    INPUT,
    Network,
    UnsupportedLayerError,
    fold_batch_norm,
    target_weights,
    trace,
)
from nbsupport.models import build


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_statistics(model, images):
    with torch.no_grad():
        for _ in range(5):
            model.train()(images)  # BatchNorm statistics worth folding
    return model.eval()


@pytest.fixture(scope="module")
def model(images):
    return with_statistics(build(seed=0), images)


@pytest.fixture(scope="module")
def resnet(images):
    return with_statistics(build("resnet", seed=0), images)


def test_trace_lists_every_layer_once_in_order(model):
    layers = trace(model)
    leaves = [name for name, module in model.named_modules() if not [*module.children()]]
    assert [layer.name for layer in layers] == leaves
    inputs = {layer.name: layer.inputs for layer in layers}
    assert inputs["inception.b4.0"] == (INPUT,)
    assert inputs["inception.concat"] == (
        "inception.b1.relu",
        "inception.b2.1.relu",
        "inception.b3.2.relu",
        "inception.b4.1.relu",
    )


def test_trace_of_a_residual_network(resnet):
    inputs = {layer.name: layer.inputs for layer in trace(resnet)}
    leaves = {name for name, module in resnet.named_modules() if not [*module.children()]}
    assert set(inputs) == leaves
    assert inputs["stage1.1.shortcut"] == inputs["stage1.1.one.conv"] == ("stage1.0.relu2",)
    assert inputs["stage1.1.add"] == ("stage1.1.two.norm", "stage1.1.shortcut")
    assert inputs["stage2.0.add"] == ("stage2.0.two.norm", "stage2.0.shortcut.norm")


def test_folding_a_residual_network_is_exact(resnet, images):
    resnet = copy.deepcopy(resnet).double()
    network = Network(resnet, fold=True)
    assert not any(isinstance(layer.module, nn.BatchNorm2d) for layer in network.layers)
    logits = network.forward(network.images(images)).logits
    with torch.no_grad():
        expected = resnet(images.double())
    assert (logits - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("fold", [False, True])
def test_network_computes_what_the_model_computes(model, images, fold):
    network = Network(model, fold=fold)
    run = network.forward(network.images(images), ["relu2", INPUT])
    with torch.no_grad():
        assert torch.allclose(run.logits, model(images), atol=1e-5)
    assert set(run.values) == {"relu2", INPUT, "fc3"}
    assert run.shapes["inception.concat"] == (4, 256, 32, 32)


def test_model_stays_untouched_and_is_run_in_evaluation_mode(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        network = Network(model, fold=True)
        logits = network.forward(network.images(images)).logits
        assert model.training
        assert model.conv1.norm.training
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.allclose(logits, model(images), atol=1e-5)


def test_uint8_is_divided_by_255(model):
    network = Network(model)
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.allclose(network.images(images).flatten(), torch.tensor([0, 0.2, 1]))


def test_in_place_relu_keeps_what_it_reads(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.ReLU())
    run = Network(model).forward(images, ["0"])
    with torch.no_grad():
        assert torch.allclose(run.values["0"], model[0](images), atol=1e-6)
    assert run.values["0"].min() < 0


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.act, self.function = nn.Conv2d(3, 3, 1), nn.ReLU(), function

    def forward(self, x):
        return self.function(self, x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def reuse(block, x):
    return block.act(block.conv(block.act(x)))


def branch(block, x):
    return block.conv(x) if x.sum() > 0 else x


def unused(block, x):
    block.conv(x)
    return block.act(x)


def early(block, x):
    y = block.conv(x)
    block.act(y)
    return y


REFUSED = {
    "functional relu": (Block(lambda b, x: F.relu(b.conv(x))), r"'relu' in '0'"),
    "method": (Block(lambda b, x: b.conv(x).relu()), r"'relu' in '0'"),
    "functional pool": (Block(lambda b, x: F.max_pool2d(b.conv(x), 2)), r"'max_pool2d' in '0'"),
    "residual sum": (Block(lambda b, x: b.conv(x) + x), r"'add' in '0'.*\bAdd\b"),
    "function on the way out": (Block(lambda b, x: b.conv(x).flatten(1)), r"'flatten' in '0'"),
    "module used twice": (Block(reuse), r"'0.act' is used more than once"),
    "branch on values": (Block(branch), "branches on tensors"),
    "dead end": (Block(unused), r"'0.conv' is computed but never"),
    "early exit": (Block(early), r"'0.act' is computed but never"),
    "unknown type": (nn.GELU(), r"'0' is of type GELU"),
    "subclass": (Standardised(3, 3, 1), r"'0' is of type Standardised"),
    "parametrised": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
        r"'0' is of type ParametrizedConv2d",
    ),
    "padding by name": (nn.Conv2d(3, 3, 3, padding="same"), r"'0' must pad with zeros"),
    "reflected padding": (
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        r"'0' must pad with zeros",
    ),
    "pooling to more than one pixel": (nn.AdaptiveAvgPool2d(2), r"'0' must average over whole"),
    "pooling that leaves the padding out": (
        nn.AvgPool2d(3, padding=1, count_include_pad=False),
        r"'0' must divide the sum of each window",
    ),
    "pooling by windows cut short": (nn.AvgPool2d(3, ceil_mode=True), r"'0' must divide"),
    "pooling with a divisor of its own": (nn.AvgPool2d(3, divisor_override=2), r"'0' must divide"),
    "statistics of the batch": (
        nn.BatchNorm2d(3, track_running_stats=False),
        r"'0' keeps no running statistics",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exact_is_refused_by_name(case):
    module, message = REFUSED[case]
    with pytest.raises(UnsupportedLayerError, match=message):
        trace(nn.Sequential(module, nn.Identity()))


def test_logits_must_be_one_tensor():
    with pytest.raises(UnsupportedLayerError, match="output of its last layer"):
        trace(Block(lambda b, x: (b.act(b.conv(x)), x)))


def test_shared_module_under_two_names_is_refused():
    shared = nn.ReLU()
    with pytest.raises(UnsupportedLayerError, match="more than once"):
        trace(nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared))


def test_fold_refuses_a_batch_norm_without_convolution():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    with pytest.raises(UnsupportedLayerError, match=r"'2' does not follow .* batch_norm=\"rule\""):
        fold_batch_norm(trace(model))


def test_target_weights():
    logits = torch.tensor([[1.0, 3, 2], [5, 4, 6]])
    assert target_weights(logits, 1).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert target_weights(logits, "predicted").tolist() == [[0, 1, 0], [0, 0, 1]]
    assert target_weights(logits, torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    small = torch.tensor([2, 0], dtype=torch.int32)
    assert target_weights(logits, small).tolist() == [[0, 0, 1], [1, 0, 0]]
    weights = torch.tensor([[0.5, 0, -1], [0, 2, 0]])
    assert target_weights(logits, weights) is weights
    assert target_weights(logits, ("predicted", 0)).tolist() == [[-1, 1, 0], [-1, 0, 1]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "choose from 0 to 2"),
        (-1, "choose from 0 to 2"),
        ("label", '"predicted"'),
        (torch.tensor([0, 1, 2]), r"shape \(3,\), but there are 2 images"),
        # A label out of a column of floats is no weight: it once explained the sum of all logits.
        (2.0, "2.0 is no class: give an integer"),
        (torch.tensor(2.0), "is no class"),
        (torch.tensor([2.0, 0.0]), "is no class"),
        (torch.ones(2, 4), r"weights have shape \(2, 4\), but logits \(2, 3\)"),
    ],
)
def test_wrong_targets(target, message):
    with pytest.raises(ValueError, match=message):
        target_weights(torch.zeros(2, 3), target)
