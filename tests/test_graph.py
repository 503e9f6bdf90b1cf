import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from nbsupport import lrp
from nbsupport.graph import Network, target_weights
from nbsupport.models import Add, build
from nbsupport.tracing import INPUT, UnsupportedLayerError


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


def test_the_unit_of_images_is_not_guessed(model):
    bytes_ = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    network = Network(model)
    assert network.images(bytes_).max() == 1 == network.images(bytes_.float() / 255).max()
    with pytest.raises(ValueError, match=r"torch.int64; give uint8 from 0 to 255, or floats"):
        network.images(bytes_.long())


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_explained_in_full(model, images, dtype):
    half = copy.deepcopy(model).to(dtype)
    network = Network(half, fold=True)
    found = network.forward(network.images(images)).logits
    assert found.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found, half.float()(images), atol=1e-4, rtol=1e-4)


def test_full_precision_holds_under_autocast_and_leaves_settings_as_they_were(model, images):
    network, cudnn = Network(model), torch.backends.cudnn
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            cudnn.flags(enabled=True, deterministic=True, allow_tf32=True),
        ):
            with network.full_precision():
                assert network.forward(network.images(images)).logits.dtype == torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
                assert (cudnn.deterministic, cudnn.allow_tf32) == (True, False)
            assert cudnn.allow_tf32
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


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


def test_a_batch_norm_without_a_convolution_of_its_own_is_left_as_it_is(images):
    """As in residual networks that normalise first: there the gamma composite passes it by."""
    body = [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()]
    model = with_statistics(nn.Sequential(*body, nn.Linear(3600, 5)), images).double()
    network = Network(model, fold=True)
    kept = [layer.name for layer in network.layers if isinstance(layer.module, nn.BatchNorm2d)]
    assert kept == ["0", "3"]
    with torch.no_grad():
        expected = model(images.double())
    assert torch.allclose(network.forward(network.images(images)).logits, expected)
    found = lrp.explain(model, images.double(), target=1, composite="gamma")
    # What is passed on is kept: only the biases of convolution and dense layer draw some.
    lost = (found.gap - found.bias_share) * found.start  # in logits: one close to 0 is no scale
    assert lost.abs().max() < 1e-5


def uses(function):
    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(3600, 5)

        def forward(self, x):
            return self.last(torch.flatten(function(self, self.conv(x)), 1))

    return Uses().eval()


def test_what_a_trace_cannot_see_is_noticed_on_the_first_images(images):
    """Both give the layers that a trace lists, and compute something else."""

    def aliased(model, y):
        z = y.view(y.size(0), -1)
        y += y
        return F.relu(z)

    always = uses(lambda model, y: F.dropout(y, 0.5))
    with pytest.raises(UnsupportedLayerError, match=r"differently each time.*training=self\.train"):
        Network(always).forward(images)
    with pytest.raises(UnsupportedLayerError, match=r"overwrites|never reaches|something else"):
        Network(uses(aliased)).forward(images)
    rows = uses(lambda model, y: y.view(-1, 1800))
    rows.last = nn.Linear(1800, 5)
    with pytest.raises((UnsupportedLayerError, RuntimeError), match=r"something else|shapes"):
        Network(rows).forward(images)
    broken = uses(lambda model, y: y)
    with torch.no_grad():
        broken.last.bias.fill_(torch.nan)
    network = Network(broken)
    for _ in range(2):  # asked again, it is not believed either
        with pytest.raises(UnsupportedLayerError, match="logits that are not finite"):
            network.forward(images)


class Odd(nn.Module):
    """Computes 0.3 x for its first logit where images are not black; its layers say 0."""

    def __init__(self, forward):
        super().__init__()
        self.flatten, self.last, self.alter = nn.Flatten(), nn.Linear(3072, 2, bias=False), forward

    def __len__(self):
        return 0

    def forward(self, x):
        return self.last(self.alter(self.flatten(x)))


def test_the_proof_looks_at_more_than_black_images_and_at_every_logit():
    def differs(x):
        # A traced forward takes the other branch than a real one.
        return x if isinstance(x, torch.fx.Proxy) else x * 1.05

    black = torch.zeros(2, 3, 32, 32)
    for bias in (0, 1e3):
        torch.manual_seed(0)
        model = Odd(differs)
        model.last.bias = nn.Parameter(torch.tensor([float(bias), 0]))
        with pytest.raises(UnsupportedLayerError, match="computes something else"):
            Network(model).forward(black)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(32, 5)), r"'0' is dense and reads \(2, 3, 32, 32\); flatten"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Linear(32, 5)), "'1' is dense and reads"),
    ],
)
def test_a_dense_layer_reads_rows(model, message):
    with pytest.raises(UnsupportedLayerError, match=message):
        Network(model)._forward(torch.rand(2, 3, 32, 32), ())


def test_summands_have_one_shape():
    class Broad(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.pool, self.add = nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), Add()
            self.flatten = nn.Flatten()

        def forward(self, x):
            return self.flatten(self.add(self.one(x), self.pool(x)))

    with pytest.raises(
        UnsupportedLayerError, match=r"'add' adds \(4, 3, 8, 8\) and \(4, 3, 1, 1\)"
    ):
        Network(Broad()).forward(torch.rand(2, 3, 8, 8))


def test_target_weights():
    logits = torch.tensor([[1.0, 3, 2], [5, 4, 6]])
    assert target_weights(logits, 1).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert target_weights(logits, "predicted").tolist() == [[0, 1, 0], [0, 0, 1]]
    assert target_weights(logits, torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    small = torch.tensor([2, 0], dtype=torch.int32)
    assert target_weights(logits, small).tolist() == [[0, 0, 1], [1, 0, 0]]
    weights = torch.tensor([[0.5, 0, -1], [0, 2, 0]])
    assert target_weights(logits, weights) is weights
    assert torch.equal(target_weights(logits, weights.double()), weights)
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
        ((0, 1, 2), r"\(0, 1, 2\) has 3 parts; a pair"),
    ],
)
def test_wrong_targets(target, message):
    with pytest.raises(ValueError, match=message):
        target_weights(torch.zeros(2, 3), target)


def test_logits_are_rows():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 1, 1\); needs .*flatten its output"):
        target_weights(torch.zeros(2, 3, 1, 1), 0)


SWITCHES = """
import torch
from torch import nn
from nbsupport.graph import Network

def at(place):
    found = torch.backends
    for name in place.split("."):
        found = getattr(found, name) if name else found
    return found

def older(read):
    try:
        return read()
    except RuntimeError:
        return "refused"

def all_switches():
    places = "", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv"
    cudnn = torch.backends.cudnn
    olds = torch.get_float32_matmul_precision, lambda: cudnn.allow_tf32
    said = [at(place).fp32_precision for place in places] + [older(read) for read in olds]
    return said + [cudnn.enabled, cudnn.benchmark, cudnn.deterministic]

network = Network(nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(2, 2)))
"""


@pytest.mark.parametrize(
    "place", ["", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv"]
)
def test_full_precision_holds_whichever_switches_of_torch_were_used(python, place):
    # In a process of its own: what these switches were before cannot be put back.
    kinds = ("ieee", "tf32") if place.startswith("cud") else ("ieee", "tf32", "bf16")
    python(f"""{SWITCHES}
for precision in {kinds}:
    at("{place}").fp32_precision = precision
    before = all_switches()
    with network.full_precision():
        for name in ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv"):
            assert at(name).fp32_precision == "ieee", (precision, name)
        if before[-5] != "refused":
            assert not torch._C._get_cublas_allow_tf32()  # raises if older and newer ones differ
        network.forward(network.images(torch.rand(2, 3, 2, 2)))
    assert all_switches() == before, (precision, all_switches(), before)
""")


def test_a_look_leaves_torch_s_newer_switches_as_free_as_they_were(python):
    python(f"""{SWITCHES}
before = all_switches()
with network.full_precision():
    pass
assert all_switches() == before
torch.backends.fp32_precision = "tf32"
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
""")


def test_images_that_are_overwritten_are_given_anew(images):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = transforms.Normalize([0.4] * 3, [0.2] * 3, inplace=True)
            self.flat, self.head = nn.Flatten(), nn.Linear(3072, 4)

        def forward(self, x):
            return self.head(self.flat(self.norm(x)))

    model = Centred()
    network = Network(model)
    found = network.forward(network.images(images)).logits
    assert torch.allclose(found, model(images.clone()), atol=1e-4)


def test_logits_that_are_no_numbers_are_named(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(UnsupportedLayerError, match="not finite numbers; look for NaN or infinity"):
        Network(model).forward(images)
