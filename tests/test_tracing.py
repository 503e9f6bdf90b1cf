import copy
import operator
import threading

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from nbsupport import lrp
from nbsupport.graph import Network
from nbsupport.models import Add, Concat, Gate, Normalise, build
from nbsupport.tracing import (
    INPUT,
    UnsupportedLayerError,
    copied,
    named_by,
    penultimate,
    trace,
)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return build(seed=0).eval()


@pytest.fixture(scope="module")
def resnet():
    return build("resnet", seed=0).eval()


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


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.act, self.function = nn.Conv2d(3, 3, 1), nn.ReLU(), function
        self.over = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.function(self, x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def branch(block, x):
    return block.conv(x) if x.sum() > 0 else x


def unused(block, x):
    block.conv(x)
    return block.act(x)


def early(block, x):
    y = block.conv(x)
    block.act(y)
    return y


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return x + self.scale


class Second(nn.Module):
    def forward(self, x, other):
        return operator.add(x, other)


class Third(nn.Module):
    def forward(self, x, other=None):
        return operator.add(x, other)


class Optional(nn.Module):
    """As many are written: arguments that a classifier is called without."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(3600, 5)

    def forward(self, x, mask=None, *, return_features=False):
        if mask is not None:
            x = x * mask
        features = self.body(x)
        if return_features:
            return self.head(features), features
        return self.head(features)


def hooked(module):
    module.register_forward_hook(lambda module, x, y: -y)
    return module


def hooked_before(module):
    module.register_forward_pre_hook(lambda module, x: None)
    return module


def replaced(module):
    module.forward = torch.sigmoid
    return module


def add_in_place(block, x):
    y = z = block.conv(x)
    y += x
    return block.act(z + x)


def multiply_in_place(y, x):
    z = y
    y *= x.sigmoid()
    return z + x


REFUSED = {
    "product": (Block(lambda b, x: b.conv(x) * x), r"'0.mul' multiplies: one factor.*sigmoid"),
    "product with a number": (Block(lambda b, x: b.conv(x) * 2), r"'0.mul' must be called with"),
    "product of gates": (
        Block(lambda b, x: b.act(b.conv(x.sigmoid() * torch.sigmoid(x)))),
        r"'0.mul' multiplies: one factor, and one alone",
    ),
    "signal overwritten by a product": (
        Block(lambda b, x: (y := b.conv(x)).mul_(x.sigmoid()) + y),
        r"'0.mul_' overwrites what 'add' reads",
    ),
    "product over what is read again": (
        Block(lambda b, x: multiply_in_place(b.conv(x), x)),
        r"'0.imul' overwrites what 'add' reads",
    ),
    "layer behind a sigmoid": (
        Block(lambda b, x: b.conv(F.hardsigmoid(x))),
        r"'0.conv' reads a sigmoid, which may only weigh",
    ),
    "layer behind a sigmoid in another shape": (
        nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.Linear(3, 2)),
        r"'0.2' reads a sigmoid",
    ),
    "signal stretched by hand": (
        Block(lambda b, x: torch.cat([x, b.conv(x).mean((2, 3), keepdim=True).expand_as(x)], 1)),
        r"'expand_as' in '0'",
    ),
    "quotient": (Block(lambda b, x: b.conv(x) / x), r"'truediv' in '0'.*\bAdd\b"),
    "maps out of rows of no image": (nn.Unflatten(0, (2, 2)), r"'0' must keep the images apart"),
    "maps of some pixels": (
        Block(lambda b, x: b.conv(x).view(x.size(0), x.size(1), 2, 2)),
        r"'view' in '0'",
    ),
    "sum with a number": (Block(lambda b, x: b.conv(x) + 1.0), r"'0.add' must be called with out"),
    "scaled sum": (Block(lambda b, x: torch.add(b.conv(x), x, alpha=2)), r"'add' in '0'"),
    "method": (Block(lambda b, x: b.conv(x).exp()), r"'exp' in '0'"),
    "sigmoid": (nn.Sigmoid(), r"'1' makes probabilities: at the end leave it out"),
    "method of a sigmoid": (Block(lambda b, x: b.conv(x).sigmoid()), r"'1' makes probabilities"),
    "maps side by side": (Block(lambda b, x: torch.cat([b.conv(x), x], 2)), r"'cat' in '0'"),
    "images as one": (
        Block(lambda b, x: torch.flatten(b.conv(x))),
        r"'0.flatten' must keep the im",
    ),
    "three axes": (Block(lambda b, x: b.conv(x).view(x.size(0), 3, -1)), r"'view' in '0'"),
    "rows of a number": (Block(lambda b, x: b.conv(x).view(x.size(1), -1)), r"'view' in '0'"),
    "rows of no axis": (Block(lambda b, x: b.conv(x).view(x.size(7), -1)), r"'size' in '0'"),
    "maximum of a map": (
        Block(lambda b, x: F.max_pool2d(y := b.conv(x), y.size(3))),
        r"'max_pool2d' in '0'",
    ),
    "mean by another's size": (
        Block(lambda b, x: F.avg_pool2d(b.conv(x), x.size(3))),
        r"'avg_pool2d' in '0'",
    ),
    "mean of a strip": (
        Block(lambda b, x: F.avg_pool2d(y := b.conv(x), (y.size(2), 1))),
        r"'avg_pool2d' in '0'",
    ),
    "mean by steps of a size": (
        Block(lambda b, x: F.avg_pool2d(y := b.conv(x), 4, stride=y.size(3))),
        r"'avg_pool2d' in '0'",
    ),
    "mean with a border of a size": (
        Block(lambda b, x: F.avg_pool2d(y := b.conv(x), 4, 4, (y.size(3), 0))),
        r"'avg_pool2d' in '0'",
    ),
    "mean of a padded map": (
        Block(lambda b, x: F.avg_pool2d(y := b.conv(x), y.size(3), padding=1)),
        r"'avg_pool2d' in '0'",
    ),
    "mean of one axis": (Block(lambda b, x: b.conv(x).mean(2)), r"'mean' in '0'"),
    "mean of all": (Block(lambda b, x: b.conv(x).mean()), r"'mean' in '0'"),
    "probabilities": (nn.Softmax(1), r"'0' makes probabilities: at the end leave it out"),
    "number of images": (Block(lambda b, x: b.conv(x).view(int(x.size(0)), -1)), "Python numbers"),
    "length": (Block(lambda b, x: b.conv(x).view(len(x), -1)), "cannot be read layer by layer"),
    "unpacked shape": (Block(lambda b, x: b.conv(x).view(*[*x.shape][:1], -1)), "cannot be read"),
    "tensor of its own": (Scaled(), r"'scale' in 'Scaled' is a tensor beside the images"),
    "second argument": (Second(), r"'other'.*give its other arguments defaults"),
    "sum with a default": (Third(), r"'add' must be called with outputs of other layers only"),
    "layer made on the spot": (
        Block(lambda b, x: nn.ReLU()(b.conv(x))),
        "make each layer in __init__ and keep it as an attribute",
    ),
    "own complaint": (Block(lambda b, x: {}[x]), "cannot be read layer by layer"),
    "functional probabilities": (
        Block(lambda b, x: F.log_softmax(b.conv(x), dim=1)),
        r"'0.log_softmax' makes probabilities: at the end leave it out",
    ),
    "method of probabilities": (
        Block(lambda b, x: b.conv(x).softmax(1)),
        r"'0.softmax' makes probabilities: at the end leave it out",
    ),
    "three axes at once": (
        Block(lambda b, x: b.conv(x).view((x.size(0), 3, -1))),
        r"'view' in '0'",
    ),
    "hook": (hooked(nn.ReLU()), r"'0' has a hook or a forward of its own"),
    "hook before": (hooked_before(nn.ReLU()), r"'0' has a hook"),
    "replaced forward": (replaced(nn.ReLU()), r"'0' has a hook or a forward of its own"),
    "overwritten by +=": (Block(add_in_place), r"'0.iadd' overwrites what 'add' reads after it"),
    "where the winners are": (
        Block(lambda b, x: F.max_pool2d(b.conv(x), 2, return_indices=True)),
        r"'max_pool2d_with_indices' in '0'",
    ),
    "layer that tells them": (nn.MaxPool2d(2, return_indices=True), r"'0' must return the largest"),
    "functional pool with a divisor": (
        Block(lambda b, x: F.avg_pool2d(x, 3, divisor_override=2)),
        r"'0.avg_pool2d' must divide",
    ),
    "keyword": (Block(lambda b, x: b.conv(input=x)), r"'0.conv' must be called without keywords"),
    "overwritten by a layer": (
        Block(lambda b, x: b.over(y := b.conv(x)) + y),
        r"'0.over' overwrites what 'add' reads after it: set inplace=False",
    ),
    "overwritten by a function": (
        Block(lambda b, x: F.relu(y := b.conv(x), inplace=True) + y),
        r"'0.relu' overwrites what 'add' reads",
    ),
    "overwritten by a method": (
        Block(lambda b, x: (y := b.conv(x)).relu_() + y),
        r"'0.relu_' overwrites what 'add' reads",
    ),
    "branch on values": (Block(branch), "branches on tensors"),
    "dead end": (Block(unused), r"'0.conv' is computed but never"),
    "early exit": (Block(early), r"'0.act' is computed but never"),
    "unknown type": (nn.Softplus(), r"'0' is of type Softplus"),
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
    own = isinstance(module, Scaled | Second | Third)
    model = module if own else nn.Sequential(module, nn.Identity())
    with pytest.raises(UnsupportedLayerError, match=message):
        trace(model)


def test_padding_that_is_not_there_need_not_be_counted(images):
    plain, told = (nn.AvgPool2d(2, count_include_pad=counted) for counted in (True, False))
    maps = []
    for pool in (plain, told):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(900, 3))
        maps.append(lrp.explain(model, images, target=1, composite="paper").heatmaps)
    assert torch.equal(*maps)


def test_logits_must_be_one_tensor():
    with pytest.raises(UnsupportedLayerError, match="output of its last layer"):
        trace(Block(lambda b, x: (b.act(b.conv(x)), x)))


def test_a_module_that_is_used_again_gets_a_number(images):
    block = Block(lambda b, x: b.act(b.conv(b.act(b.conv(x)))))
    assert [layer.name for layer in trace(block)] == ["conv", "act", "conv:2", "act:2"]
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared)
    assert [layer.name for layer in trace(model)] == ["0", "1", "0:2"]
    for twice in (block, model):
        with torch.no_grad():
            assert torch.allclose(Network(twice).forward(images).logits, twice(images), atol=1e-6)


def written_out(block, x):
    """Use functions for all that the layers of `LAYERS` do, as most networks are written."""
    y = F.relu(block.conv(x), inplace=True)
    y += x
    y = torch.cat([F.max_pool2d(y, 3, 2, padding=1), F.avg_pool2d(y, 2)], dim=1)
    y = F.adaptive_avg_pool2d(torch.relu(y), (3, 2)).relu()
    y = F.dropout(y.view(y.size(0), -1), training=block.training)
    return y.reshape(y.shape[0], -1).flatten(1)


class Layers(Block):
    def __init__(self):
        super().__init__(written_out)
        self.add, self.concat, self.flatten = Add(), Concat(), nn.Flatten()
        self.most, self.mean = nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(2)
        self.small, self.relu2, self.relu3 = nn.AdaptiveAvgPool2d((3, 2)), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        y = self.add(self.act(self.conv(x)), x)
        y = self.concat(self.most(y), self.mean(y))
        return self.flatten(self.relu3(self.small(self.relu2(y))))


@pytest.mark.parametrize("composite", ["gamma", "squared", "paper"])
def test_functions_explain_as_the_layers_they_stand_for(images, composite):
    layers, head = Layers().eval(), nn.Linear(36, 5)
    functions = Block(written_out).eval()
    functions.load_state_dict(layers.state_dict())
    names = [layer.name for layer in trace(nn.Sequential(functions, head))]
    assert names == [
        "0.conv", "0.relu", "0.iadd", "0.max_pool2d", "0.avg_pool2d", "0.cat", "0.relu_1",
        "0.adaptive_avg_pool2d", "0.relu_2", "0.view", "0.dropout", "0.reshape", "0.flatten", "1",
    ]  # fmt: skip
    models = [nn.Sequential(each, head).double() for each in (layers, functions)]
    expected, found = (
        lrp.explain(model, images.double(), target=2, composite=composite) for model in models
    )
    assert torch.allclose(found.logits, expected.logits)
    assert torch.allclose(found.heatmaps, expected.heatmaps)
    assert abs(expected.heatmaps).max() > 0


class Deep(nn.Module):
    """Functions two modules deep, in the forms that many networks have."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(Block(lambda b, x: F.relu(b.conv(x) + x)))
        self.drop, self.last = nn.Dropout2d(), nn.Linear(3, 2)

    def forward(self, x, unused=None):
        x = self.drop(self.stage(x)).contiguous()
        x += F.dropout2d(x, training=self.training)
        return self.last(x.mean([2, 3]).view(-1, 3))


def test_functions_are_named_by_the_module_that_calls_them(images):
    model = Deep().eval()
    assert [layer.name for layer in trace(model)] == [
        "stage.0.conv", "stage.0.add", "stage.0.relu", "drop", "contiguous", "dropout2d", "iadd",
        "mean", "mean:2", "view", "last",
    ]  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(Network(model).forward(images).logits, model(images), atol=1e-6)
    model.stage[0].function = lambda b, x: torch.exp(b.conv(x))
    with pytest.raises(UnsupportedLayerError, match=r"'exp' in 'stage\.0'"):
        trace(model)


def unpacked(x):
    n, c, h, w = x.size()
    return F.avg_pool2d(x, (h, w)).view(n, c)


GLOBAL_MEANS = {
    "size": lambda x: F.avg_pool2d(x, x.size(3)).view(x.size(0), -1),
    "part of the size": lambda x: F.avg_pool2d(x, x.size()[3]).view(x.size()[0], -1),
    "no border": lambda x: F.avg_pool2d(x, x.size(2), x.size(2), (0, 0)).view(x.size(0), 3),
    "named axis": lambda x: F.avg_pool2d(x, x.size(dim=-1)).flatten(1),
    "sides": lambda x: F.avg_pool2d(x, x.shape[-2:]).reshape(x.shape[0], x.shape[1]),
    "keyword": lambda x: F.avg_pool2d(x, kernel_size=x.size()[2:]).view(-1, x.size(1)),
    "unpacked": unpacked,
}


@pytest.mark.parametrize("form", GLOBAL_MEANS)
def test_a_mean_over_the_map_may_be_told_its_size(form, images):
    block = Block(lambda b, x: GLOBAL_MEANS[form](b.act(b.conv(x))))
    kinds = [type(layer.module) for layer in trace(block)]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten]
    layers = nn.Sequential(block.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected, found = (
        lrp.explain(m.double(), images.double(), target=1, composite="gamma")
        for m in (layers, block)
    )
    assert torch.equal(found.heatmaps, expected.heatmaps)
    # One side is not the other: what a map of other proportions would make of it is refused.
    if form in ("size", "part of the size", "named axis"):
        with pytest.raises(UnsupportedLayerError, match="something else than its layers"):
            Network(block).forward(images[..., :16].double())


def test_normalisation_by_torchvision_is_that_of_the_package(images):
    layers = nn.Flatten(), nn.Linear(3072, 5)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    theirs = nn.Sequential(torchvision.transforms.Normalize(mean, std), *layers)
    ours = nn.Sequential(Normalise(mean, std), *layers)
    expected, found = (lrp.explain(m, images, target=1, composite="gamma") for m in (ours, theirs))
    assert torch.allclose(found.heatmaps, expected.heatmaps)
    assert torch.allclose(found.logits, expected.logits)
    # It is made anew while the model is read, which may be on another device by then.
    layers = Network(theirs.double(), "meta").layers
    tensors = [t for layer in layers for t in layer.module.state_dict().values()]
    assert {(str(t.device), t.dtype) for t in tensors} == {("meta", torch.float64)}


def test_a_model_that_cannot_be_copied_says_why():
    layer = nn.Linear(3072, 5)
    prune.random_unstructured(layer, "weight", 0.5)
    with pytest.raises(UnsupportedLayerError, match=r"cannot be copied .*prune\.remove"):
        Network(nn.Sequential(nn.Flatten(), layer))
    prune.remove(layer, "weight")
    model = nn.Sequential(nn.Flatten(), layer)
    Network(model)
    model.log = threading.Lock()  # as a writer of logs holds one
    with pytest.raises(UnsupportedLayerError, match=r"cannot be copied .*writers or locks"):
        Network(model)


def test_arguments_besides_the_images_keep_their_defaults(images):
    model = Optional().eval()
    plain = nn.Sequential(model.body, model.head)
    maps = [lrp.explain(m, images, target=1, composite="gamma").heatmaps for m in (model, plain)]
    assert torch.equal(*maps)


@pytest.mark.parametrize(
    "rows",
    [
        lambda x: x.view((x.size(0), -1)),
        lambda x: x.reshape([-1, 3072]),
        lambda x: torch.reshape(x, (x.shape[0], -1)),
    ],
)
def test_one_row_an_image_may_be_asked_for_by_a_tuple(rows):
    layers = trace(nn.Sequential(Block(lambda b, x: rows(b.conv(x))), nn.Linear(3072, 2)))
    assert [type(layer.module) for layer in layers] == [nn.Conv2d, nn.Flatten, nn.Linear]


def test_a_network_may_keep_its_weights_as_buffers(images):
    head = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    frozen = copy.deepcopy(head)
    for name in ("weight", "bias"):
        values = getattr(frozen[1], name).detach()
        delattr(frozen[1], name)
        frozen[1].register_buffer(name, values)
    maps = [lrp.explain(m, images, target=1, composite="gamma").heatmaps for m in (head, frozen)]
    assert torch.equal(*maps)


ACTIVATIONS = {
    "relu6": (nn.ReLU6(), F.relu6),
    "leaky relu": (nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
    "elu": (nn.ELU(0.7), lambda x: F.elu(x, alpha=0.7)),
    "silu": (nn.SiLU(), F.silu),
    "silu by hand": (nn.SiLU(), lambda x: x * torch.sigmoid(x)),
    "gelu": (nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "hardswish": (nn.Hardswish(), F.hardswish),
    "tanh": (nn.Tanh(), torch.tanh),
}


class Squeezed(nn.Module):
    """A convolution whose channels are weighed by what dense layers make of their means."""

    def __init__(self, activation, weigh):
        super().__init__()
        self.activation, self.weigh = activation, weigh
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 5, stride=3, bias=False)
            self.less, self.more = nn.Linear(6, 2), nn.Linear(2, 6)
            self.head = nn.Linear(600, 4, bias=False)
        self.conv.weight.data *= 5  # values far enough from 0 to be bent

    def forward(self, x):
        x = self.activation(self.conv(x))
        n, c, _, _ = x.size()
        gate = torch.sigmoid(self.more(F.relu(self.less(x.mean((2, 3))))))
        return self.head(self.weigh(x, gate.view(n, c, 1, 1)).flatten(1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_relevance_on_and_gates_get_none(name, images):
    layer, function = ACTIVATIONS[name]
    images = images.double()
    forms = {
        "layers": Squeezed(layer, Gate()),
        "functions": Squeezed(function, lambda x, gate: gate.expand_as(x) * x),
        "in place": Squeezed(layer, operator.imul),
    }
    exact = lrp.Composite(convolution=lrp.Epsilon(1e-14), dense=lrp.Epsilon(1e-14))
    found = {
        form: lrp.explain(model.double(), images, target=2, composite=exact)
        for form, model in forms.items()
    }
    # Without biases the epsilon rule is gradient times input, once activation and gate are numbers
    # by which a unit is multiplied, and not functions of it.
    held = Squeezed(lambda z: z * (layer(z) / z).detach(), lambda x, gate: x * gate.detach())
    point = images.clone().requires_grad_()
    logit = held.double()(point)[:, 2]
    (gradient,) = torch.autograd.grad(logit.sum(), point)
    expected = (images * gradient).sum(1)
    assert torch.allclose(expected.sum((1, 2)), logit, rtol=1e-9)
    for form, explanation in found.items():
        assert torch.allclose(explanation.heatmaps, expected, rtol=1e-6, atol=1e-9), form
    gamma = lrp.Composite(convolution=lrp.Gamma(0.25, epsilon=1e-14), dense=lrp.Epsilon(1e-14))
    other = lrp.explain(forms["layers"], images, target=2, composite=gamma)
    assert torch.allclose(other.heatmaps.sum((1, 2)), logit, rtol=1e-9)
    assert not torch.allclose(other.heatmaps, expected, rtol=0.1)


def test_a_gate_must_stretch_to_its_signal(images):
    model = nn.Sequential(Block(lambda b, x: x.mean((2, 3), keepdim=True) * b.conv(x).sigmoid()))
    with pytest.raises(UnsupportedLayerError, match=r"'0.mul' weighs \(4, 3, 1, 1\) by \(4, 3, 32"):
        Network(model).forward(images)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "googlenet", "vgg11_bn", "squeezenet1_1", "densenet121", "mobilenet_v3_small",
        "efficientnet_b0",
    ],
)  # fmt: skip
def test_networks_of_torchvision_are_understood(name, images):
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(num_classes=7, **options).double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = lrp.explain(model, images[:2].double(), target=3, composite="gamma")
    with torch.no_grad():
        expected = model(images[:2].double())
    assert torch.allclose(found.logits.double(), expected, rtol=1e-5)
    assert found.heatmaps.shape == (2, 32, 32)
    assert found.heatmaps.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_penultimate_layer_is_named_by_the_model_or_read_off(model, resnet):
    assert penultimate(model) == "relu2"
    # What the last dense layer reads, behind a layer that only normalises as well.
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 5))
    assert penultimate(plain) == "2"
    front = Normalise((0.5,) * 3, (0.2,) * 3)
    assert penultimate(nn.Sequential(front, plain)) == "1.2"
    assert penultimate(nn.Sequential(front, model)) == "1.relu2"
    assert penultimate(nn.Sequential(nn.Sequential(front), nn.Sequential(resnet))) == "1.0.flatten"
    assert penultimate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())) is None
    assert named_by(nn.Sequential(front, model), "first_features") == "1.inception.concat"
    # Whoever is asked is not changed, nor left in another mode.
    plain.train()
    penultimate(plain)
    assert plain.training


@pytest.mark.parametrize("name", ["0", "0.0", "2"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_named_before_it_is_given_anything(name, kind):
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), nn.Flatten(), nn.Linear(2, 2)
    )
    kept = []
    getattr(model.get_submodule(name), kind)(lambda *told: kept.append(told) and None)
    with pytest.raises(UnsupportedLayerError, match=f"layer '{name}' has a hook"):
        trace(model)
    assert kept == []


def test_a_hook_on_the_whole_network_is_no_part_of_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model.register_forward_hook(lambda *_: None)
    assert [layer.name for layer in trace(model)] == ["0", "1"]


class Gated(nn.Module):
    """Squeeze and excitation made of dense layers, and a head of the given kind."""

    def __init__(self, dense):
        super().__init__()
        self.conv, self.pool, self.flat = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.down, self.relu, self.up = nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4)
        self.head = nn.Linear(4, 5) if dense else nn.Conv2d(4, 5, 1)
        self.dense = dense

    def forward(self, x):
        x = self.conv(x)
        gate = self.up(self.relu(self.down(self.flat(self.pool(x)))))
        x = x * torch.sigmoid(gate).view(x.size(0), -1, 1, 1)
        if self.dense:
            return self.head(torch.flatten(self.pool(x), 1))
        return torch.flatten(F.adaptive_avg_pool2d(self.head(x), 1), 1)


def test_what_only_makes_a_gate_says_nothing_of_the_classes():
    assert penultimate(Gated(dense=False)) is None
    assert penultimate(Gated(dense=True)) == "flatten"


def test_a_compiled_network_is_read_as_what_it_was_made_from():
    model = Gated(dense=True)
    compiled = torch.compile(model)
    assert penultimate(compiled) == penultimate(model)
    assert [layer.name for layer in trace(copied(compiled))] == [
        layer.name for layer in trace(copied(model))
    ]
    model.penultimate = "relu"
    assert penultimate(compiled) == "relu"
