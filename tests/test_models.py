import pytest
import torch
from torch import nn

from nbsupport.models import Normalise, build, count_parameters

NAMES = ("inception", "resnet")


@pytest.fixture(scope="module")
def network():
    return build().eval()


@pytest.fixture(scope="module")
def resnet():
    return build("resnet").eval()


@pytest.fixture(scope="module")
def outputs(network):
    return calls_of(network)


def calls_of(network):
    """What leaves each module for four images, as (name, module, tensor) in order of the calls."""
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


def test_resnet_is_as_large_as_the_inception(resnet):
    parts = {name: count_parameters(part) for name, part in resnet.named_children()}
    assert {name: n for name, n in parts.items() if n} == {
        "stem": 3 * 32 * 9 + 64,
        "stage1": 3 * 2 * (32 * 32 * 9 + 64),
        "stage2": (32 + 5 * 64) * 64 * 9 + 32 * 64 + 7 * 128,
        "stage3": (64 + 5 * 128) * 128 * 9 + 64 * 128 + 7 * 256,
        "fc": 129 * 43,
    }
    assert count_parameters(resnet) == 1_088_843


def test_resnet_has_twenty_layers_and_no_idle_bias(resnet):
    names = [name for name, module in resnet.named_modules() if isinstance(module, nn.Conv2d)]
    assert len([name for name in names if "shortcut" not in name]) == 19
    assert [name for name in names if "shortcut" in name] == [
        "stage2.0.shortcut.conv", "stage3.0.shortcut.conv"
    ]  # fmt: skip
    assert all(resnet.get_submodule(name).bias is None for name in names)


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


def test_shapes_of_the_residual_layers(resnet):
    shapes = {name: tuple(output.shape) for name, _, output in calls_of(resnet)}
    expected = {
        "relu": (4, 32, 32, 32),
        "stage1": (4, 32, 32, 32),
        "stage2.0.shortcut": (4, 64, 16, 16),
        "stage2": (4, 64, 16, 16),
        "stage3": (4, 128, 8, 8),
        "pool": (4, 128, 1, 1),
        "flatten": (4, 128),
        "fc": (4, 43),
    }
    assert {name: shapes[name] for name in expected} == expected


def test_residual_block_adds_its_input(resnet):
    found = {name: output for name, _, output in calls_of(resnet)}
    block = found["stage1.1.two"] + found["stage1.0"]
    assert torch.equal(found["stage1.1.add"], block)
    assert torch.equal(found["stage1.1"], block.clamp(min=0))
    assert torch.equal(found["stage2.0.add"], found["stage2.0.two"] + found["stage2.0.shortcut"])


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


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_is_called_once_so_that_hooks_see_all(name):
    network = build(name).eval()
    outputs = calls_of(network)
    leaves = [name for name, module in network.named_modules() if not list(module.children())]
    called = [name for name, module, _ in outputs if not list(module.children())]
    assert sorted(called) == sorted(leaves)
    assert len(called) == len(set(called))


def test_named_layers_exist(network, resnet):
    assert isinstance(network.get_submodule(network.penultimate), nn.ReLU)
    assert network.get_submodule(network.first_features) is network.inception.concat
    found = {name: output for name, _, output in calls_of(resnet)}
    assert found[resnet.penultimate].shape == (4, 128)
    assert found[resnet.penultimate].min() >= 0
    assert found[resnet.first_features].shape == (4, 32, 32, 32)
    assert found[resnet.first_features].min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_the_weights(name):
    one, same, other = (build(name, seed=seed).state_dict() for seed in (3, 3, 4))
    for key, tensor in one.items():
        assert torch.equal(tensor, same[key])
    last = [*one][-1]
    assert not torch.equal(one[last], other[last])


@pytest.mark.usefixtures("keeps_global_rng")
@pytest.mark.parametrize("name", NAMES)
def test_building_leaves_global_generators_alone(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeds the GPU"))
    build(name, seed=5)


def test_dropout_and_classes_are_passed_on():
    network = build(n_classes=7, dropout=0.25)
    assert (network.drop1.p, network.drop2.p) == (0.25, 0.25)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert build().drop1.p == 0.5
    network = build("resnet", n_classes=7, dropout=0.25)
    assert network.drop.p == 0.25
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"unknown model 'vgg'.*'inception', 'resnet'"):
        build("vgg")


def test_normalise_works_channel_by_channel():
    images = torch.rand(2, 3, 4, 4)
    layer = Normalise((0.1, 0.2, 0.3), (0.5, 1, 0.2))
    wanted = [(images[:, c] - m) / s for c, (m, s) in enumerate(((0.1, 0.5), (0.2, 1), (0.3, 0.2)))]
    torch.testing.assert_close(layer(images), torch.stack(wanted, 1))
    for mean, std in (
        ((0, 0), (1, 1, 1)), ((0, 0, 0), (1, 0, 1)), ((), ()), ((125.3,), (63.0,)), ((0.5,), (2,)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"one number per channel, .*divide by 255"):
            Normalise(mean, std)


def test_normalise_goes_with_the_channels_of_the_images():
    one, three = Normalise((0.5,), (0.2,)), Normalise((0.5,) * 3, (0.2,) * 3)
    colour, grey = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(one(colour), three(colour))
    assert one(grey).shape == grey.shape
    with pytest.raises(ValueError, match=r"3 numbers for images of 1 channels; give one number"):
        three(grey)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_normalising_keeps_the_precision_of_the_images(dtype):
    layer = Normalise([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    images = torch.rand(2, 3, 4, 4)
    found = layer(images.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), layer(images), atol=0.05, rtol=0.05)
