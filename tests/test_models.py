import pytest
import torch
from torch import nn

from nbsupport.models import Inception, build, count_parameters


@pytest.fixture(scope="module")
def network():
    return build().eval()


@pytest.fixture(scope="module")
def outputs(network):
    """What leaves each module for four images, as (name, tensor) in order of the calls."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: calls.append((name, m, o)))
        for name, module in network.named_modules()
        if name
    ]
    with torch.no_grad():
        network(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    return calls


def test_network_has_the_parameters_of_the_released_one(network):
    assert count_parameters(network) == 1_110_027
    parts = {
        "inception": count_parameters(network.inception),
        "convolutions": sum(count_parameters(getattr(network, f"conv{i}")) for i in (1, 2, 3)),
        "dense": sum(count_parameters(getattr(network, f"fc{i}")) for i in (1, 2, 3)),
    }
    assert parts == {"inception": 217_056, "convolutions": 788_736, "dense": 104_235}


def test_count_leaves_frozen_parameters_out():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


def test_shapes_of_the_layers(outputs):
    shapes = {name: tuple(output.shape) for name, _, output in outputs}
    expected = {
        "inception.b1": (4, 64, 32, 32),
        "inception.b2": (4, 64, 32, 32),
        "inception.b3": (4, 96, 32, 32),
        "inception.b4": (4, 32, 32, 32),
        "inception.concat": (4, 256, 32, 32),
        "pool1": (4, 256, 16, 16),
        "conv1": (4, 256, 15, 15),
        "pool2": (4, 256, 7, 7),
        "conv2": (4, 256, 6, 6),
        "pool3": (4, 256, 3, 3),
        "conv3": (4, 256, 2, 2),
        "pool4": (4, 256, 1, 1),
        "flatten": (4, 256),
        "fc1": (4, 256),
        "fc2": (4, 128),
        "relu2": (4, 128),
        "fc3": (4, 43),
    }
    assert {name: shapes[name] for name in expected} == expected


def test_branches_are_joined_in_order(outputs):
    found = {name: output for name, _, output in outputs}
    branches = [found[f"inception.b{i}"] for i in (1, 2, 3, 4)]
    assert torch.equal(found["inception.concat"], torch.cat(branches, 1))


def test_pooling_branch_takes_the_maximum(network):
    image = torch.zeros(1, 3, 32, 32)
    image[0, :, 10, 10] = 1
    pooled = network.inception.b4[0](image)
    assert pooled.shape == image.shape
    assert pooled.sum() == 27


def test_every_leaf_is_called_once_so_that_hooks_see_all(network, outputs):
    leaves = [name for name, module in network.named_modules() if not list(module.children())]
    called = [name for name, module, _ in outputs if not list(module.children())]
    assert sorted(called) == sorted(leaves)
    assert len(called) == len(set(called))


def test_named_layers_exist(network):
    assert isinstance(network.get_submodule(Inception.penultimate), nn.ReLU)
    assert network.get_submodule(Inception.first_features) is network.inception.concat


def test_seed_decides_the_weights():
    one, same, other = build(seed=3), build(seed=3), build(seed=4)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(one.fc3.weight, other.fc3.weight)


@pytest.mark.usefixtures("keeps_global_rng")
def test_building_leaves_global_generators_alone():
    build(seed=5)


def test_dropout_and_classes_are_passed_on():
    network = build(n_classes=7, dropout=0.25)
    assert (network.drop1.p, network.drop2.p) == (0.25, 0.25)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert build().drop1.p == 0.5


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"unknown model 'vgg'.*'inception'"):
        build("vgg")
