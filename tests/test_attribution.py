import copy
from dataclasses import replace

import networks
import pytest
import torch
from networks import (
    TINY,
    N,
    channels,
    cosine,
    layer_names,
    relative,
    unbiased,
    unbiased_residual,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock

from nbsupport import lrp
from nbsupport.models import Add, Concat


@pytest.fixture(scope="module", name="images")
def images_fixture():
    return networks.images()


@pytest.fixture(scope="module")
def model():
    return networks.trained()


@pytest.fixture(scope="module")
def exact():
    return networks.exact()


@pytest.fixture(scope="module")
def resnet():
    return networks.exact("resnet")


@pytest.fixture(scope="module", params=["inception", "resnet"])
def either(request):
    return networks.exact(request.param)


@pytest.fixture(scope="module")
def folded(exact):
    folded = copy.deepcopy(exact)
    for block in folded.modules():
        if hasattr(block, "norm"):
            block.conv, block.norm = fuse_conv_bn_eval(block.conv, block.norm), nn.Identity()
    return folded


def zennit_relevance(
    model, images, *, conv, dense=None, norm=None, add=None, first=None, canonizers=(), k=5
):
    pytest.importorskip("zennit")
    from zennit import rules, types
    from zennit.attribution import Gradient
    from zennit.composites import NameLayerMapComposite
    from zennit.layer import Sum

    layers = [
        (types.Activation, rules.Pass()),
        (types.Convolution, conv),
        (nn.Linear, dense or rules.Epsilon()),
        (types.BatchNorm, norm or rules.Pass()),
        ((Sum, types.AvgPool), add or rules.Norm()),
    ]
    firsts = [f"inception.{name}.conv" for name in ("b1", "b2.0", "b3.0", "b4.1")]
    composite = NameLayerMapComposite([(firsts, first)] if first else [], layers, [*canonizers])

    def start(logits):
        return logits * F.one_hot(torch.tensor(k), logits.shape[1])

    with Gradient(copy.deepcopy(model), composite) as attributor:
        return attributor(images.clone(), start)[1].detach()


def zennit_squared(epsilon=1e-6):
    pytest.importorskip("zennit")
    from zennit.core import BasicHook, ParamMod, Stabilizer

    return BasicHook(
        input_modifiers=[torch.square],
        param_modifiers=[ParamMod(lambda w, _: w**2, zero_params=["bias"])],
        output_modifiers=[lambda z: z],
        gradient_mapper=lambda R, z: R / Stabilizer(epsilon)(z[0]),
        reducer=lambda a, c: a[0] * c[0],
    )


def zennit_cases():
    from zennit import rules

    gamma = rules.Gamma(0.25)
    fold = lrp.Composite()
    return {
        "gamma": (lrp.COMPOSITES["gamma"], {"conv": gamma}),
        "epsilon": (fold, {"conv": rules.Epsilon()}),
        "alpha_beta": (
            replace(fold, convolution=lrp.AlphaBeta(2, 1)),
            {"conv": rules.AlphaBeta(2, 1)},
        ),
        "z_plus": (
            replace(fold, convolution=lrp.ZPlus(), dense=lrp.ZPlus()),
            {"conv": rules.ZPlus(), "dense": rules.ZPlus()},
        ),
        "z_box": (
            replace(fold, convolution=lrp.Gamma(0.25), first=lrp.ZBox(0, 1)),
            {"conv": gamma, "first": rules.ZBox(0, 1)},
        ),
        "w_squared": (
            replace(fold, convolution=lrp.Gamma(0.25), first=lrp.WSquared()),
            {"conv": gamma, "first": rules.WSquare(zero_params=["bias"])},
        ),
        "flat": (
            replace(fold, convolution=lrp.Gamma(0.25), first=lrp.Flat()),
            {"conv": gamma, "first": rules.Flat()},
        ),
    }


@pytest.mark.parametrize(
    "case", ["gamma", "epsilon", "alpha_beta", "z_plus", "z_box", "w_squared", "flat"]
)
def test_folded_composites_agree_with_zennit(case, exact, folded, images):
    pytest.importorskip("zennit")
    composite, theirs = zennit_cases()[case]
    ours = channels(exact, images, composite)
    # zennit gets the network folded by torch: its own merging changes the outputs, see below.
    assert relative(ours, zennit_relevance(folded, images.double(), **theirs)) < 1e-6


def test_paper_agrees_with_zennit(exact, images):
    rules = pytest.importorskip("zennit.rules")
    theirs = zennit_relevance(exact, images.double(), conv=rules.Epsilon(), norm=rules.Epsilon())
    assert relative(channels(exact, images, "paper"), theirs) < 1e-6


def test_squared_agrees_with_zennit(exact, images):
    theirs = zennit_relevance(exact, images.double(), conv=zennit_squared(), dense=zennit_squared())
    assert relative(channels(exact, images, "squared"), theirs) < 1e-6


def test_released_agrees_with_zennit_on_the_layers_behind_the_concat(exact, images):
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.behind = copy.deepcopy(exact)
            self.behind.inception = nn.Identity()

        def forward(self, maps):
            return self.behind(maps)

    with torch.no_grad():
        maps = exact.inception(images.double())
    theirs = zennit_relevance(Behind(), maps, conv=zennit_squared(), dense=zennit_squared())
    ours = lrp.explain(exact, images, composite="released", channels=True)
    assert ours.relevance.shape == (N, 256, 32, 32)
    assert relative(ours.relevance, theirs) < 1e-6
    assert torch.allclose(ours.heatmaps, theirs.sum(1))


def test_single_precision_agrees_with_zennits_own_batch_norm_merging(model, images):
    # zennit leaves eps = 1e-5 in the emptied BatchNorm, which scales every layer by 1 - 5e-6.
    rules = pytest.importorskip("zennit.rules")
    from zennit.canonizers import SequentialMergeBatchNorm

    merge = [SequentialMergeBatchNorm()]
    for composite, conv in (("gamma", rules.Gamma(0.25)), (lrp.Composite(), rules.Epsilon())):
        theirs = zennit_relevance(model, images, conv=conv, canonizers=merge)
        assert cosine(channels(model, images, composite), theirs) > 0.999


def torchvisions(resnet, *, fold=False):
    """The same network built of torchvision's blocks, for which zennit has a canonizer."""
    layers = [*resnet.stem, resnet.relu]
    for block in (*resnet.stage1, *resnet.stage2, *resnet.stage3):
        conv = block.one.conv
        same = isinstance(block.shortcut, nn.Identity)
        down = None if same else nn.Sequential(*copy.deepcopy([*block.shortcut]))
        twin = BasicBlock(conv.in_channels, conv.out_channels, conv.stride, down)
        twin.double().load_state_dict(
            dict(zip(twin.state_dict(), block.state_dict().values(), strict=True))
        )
        twin.relu = nn.ReLU()
        if fold:
            twin.conv1 = fuse_conv_bn_eval(twin.conv1.eval(), twin.bn1.eval())
            twin.conv2 = fuse_conv_bn_eval(twin.conv2.eval(), twin.bn2.eval())
            twin.bn1, twin.bn2 = nn.Identity(), nn.Identity()
            if down:
                twin.downsample = fuse_conv_bn_eval(down[0].eval(), down[1].eval())
        layers.append(twin)
    if fold:
        layers[:2] = [fuse_conv_bn_eval(*layers[:2])]
    layers += [resnet.pool, resnet.flatten, resnet.drop, resnet.fc]
    return copy.deepcopy(nn.Sequential(*layers)).eval()


def zennit_residual_cases():
    from zennit import rules

    epsilon, squared = rules.Epsilon(), zennit_squared(TINY)
    own, fold = lrp.Squared(epsilon=TINY), lrp.Composite()
    return {
        "gamma": (lrp.COMPOSITES["gamma"], {"conv": rules.Gamma(0.25)}),
        "epsilon": (fold, {"conv": epsilon}),
        "alpha_beta": (
            replace(fold, convolution=lrp.AlphaBeta(2, 1)),
            {"conv": rules.AlphaBeta(2, 1)},
        ),
        "paper": (lrp.COMPOSITES["paper"], {"conv": epsilon, "norm": epsilon}),
        # zennit squares no weights of a pooling, which has none there: epsilon would weigh more.
        "squared": (
            replace(lrp.COMPOSITES["squared"], convolution=own, dense=own, addition=own),
            {"conv": squared, "dense": squared, "add": squared},
        ),
    }


@pytest.mark.parametrize("case", ["gamma", "epsilon", "alpha_beta", "paper", "squared"])
def test_residual_network_agrees_with_zennits_canonizer(case, resnet, images):
    pytest.importorskip("zennit")
    from zennit.torchvision import ResNetBasicBlockCanonizer

    composite, theirs = zennit_residual_cases()[case]
    twin = torchvisions(resnet, fold=composite.batch_norm == "fold")
    with torch.no_grad():
        assert relative(twin(images.double()), resnet(images.double())) < 1e-12
    canonizers = [ResNetBasicBlockCanonizer()]
    expected = zennit_relevance(twin, images.double(), canonizers=canonizers, **theirs)
    assert expected.abs().max() > 0
    assert relative(channels(resnet, images, composite), expected) < 1e-6


def captum_relevance(model, images, conv, dense):
    attr = pytest.importorskip("captum.attr")
    from captum.attr._utils.lrp_rules import EpsilonRule

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.rule = conv()
        elif isinstance(module, nn.Linear):
            module.rule = dense()
        elif isinstance(module, nn.BatchNorm2d | nn.MaxPool2d | nn.Flatten | Concat):
            module.rule = EpsilonRule()
    return attr.LRP(model).attribute(images.clone(), target=5).detach()


@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_paper_agrees_with_captum(exact, images):
    rules = pytest.importorskip("captum.attr._utils.lrp_rules")
    epsilon = lrp.Epsilon(1e-9)
    ours = replace(lrp.COMPOSITES["paper"], convolution=epsilon, dense=epsilon)
    theirs = captum_relevance(exact, images.double(), rules.EpsilonRule, rules.EpsilonRule)
    assert relative(channels(exact, images, ours), theirs) < 1e-3


@pytest.mark.filterwarnings("ignore:Input Tensor")
@pytest.mark.parametrize("rule", ["GammaRule", "Alpha1_Beta0_Rule"])
def test_convolution_rules_agree_with_captum(rule, images):
    # Where captum follows the formulas: no bias, ReLU behind each convolution, one path.
    rules = pytest.importorskip("captum.attr._utils.lrp_rules")
    model = unbiased()
    model[0] = model[0].one
    model[3] = nn.Conv2d(4, 12, 3, stride=2, bias=False).double()
    own = {"GammaRule": lrp.Gamma(0.25, epsilon=1e-9), "Alpha1_Beta0_Rule": lrp.ZPlus(epsilon=1e-9)}
    ours = lrp.Composite(convolution=own[rule], dense=lrp.Epsilon(1e-9))
    theirs = captum_relevance(
        model.eval(), images.double(), getattr(rules, rule), rules.EpsilonRule
    )
    assert relative(channels(model, images, ours), theirs) < 1e-5


def everywhere(rule, **settings):
    return lrp.Composite(convolution=rule, dense=rule, addition=rule, **settings)


def test_folding_and_the_batch_norm_rule_agree_for_epsilon_to_zero(either, images):
    folding, ruling = (everywhere(lrp.Epsilon(TINY), batch_norm=b) for b in ("fold", "rule"))
    assert relative(channels(either, images, folding), channels(either, images, ruling)) < 1e-6
    # Not so for gamma, which sees other weights in the two: the choice is part of the method.
    folding, ruling = (replace(one, convolution=lrp.Gamma(0.25)) for one in (folding, ruling))
    assert relative(channels(either, images, folding), channels(either, images, ruling)) > 0.01


@pytest.mark.parametrize("network", [unbiased, unbiased_residual])
def test_epsilon_to_zero_is_gradient_times_input_without_biases(network, images):
    ours = channels(network(), images, everywhere(lrp.Epsilon(TINY)))
    assert relative(ours, channels(network(), images, "gradient_x_input")) < 1e-6


SWEEPS = {
    unbiased: ["7", "6", "5", "4", "3", "2", "1", "0.concat", "0.two", "0.pool", "0.one"],
    unbiased_residual: ["7", "6", "5", "4", "3.add", "3.shortcut", "3.conv", "2", "1", "0"],
}


@pytest.mark.parametrize("network", SWEEPS)
@pytest.mark.parametrize(
    "rule", [lrp.Epsilon(1e-9), lrp.Gamma(epsilon=1e-9), lrp.Squared(epsilon=1e-9)]
)
def test_relevance_is_conserved_without_biases(rule, network, images):
    composite = everywhere(rule)
    explanation = lrp.explain(network(), images, composite=composite)
    assert explanation.gap.abs().max() < 1e-4
    assert (explanation.bias_share == 0).all()
    records = lrp.per_layer_conservation(network(), images, composite)
    assert [record.layer for record in records] == SWEEPS[network]
    for record in records:
        assert record.gap < 1e-4
        assert record.bias == 0
        assert record.total == pytest.approx(float(explanation.start.mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["paper", "gamma"])
def test_pixels_and_biases_share_the_logit(name, either, images):
    explanation = lrp.explain(either, images, composite=name)
    assert explanation.bias_share.abs().min() > 0.01
    assert (explanation.gap - explanation.bias_share).abs().max() < 1e-3
    assert torch.allclose(
        explanation.gap,
        (explanation.start - explanation.heatmaps.sum((1, 2))) / explanation.start.abs(),
    )
    records = lrp.per_layer_conservation(either, images, name)
    assert [r.layer for r in records] == layer_names(either)[::-1]
    assert max(record.gap for record in records) < 1e-3
    drawn = sum(record.bias for record in records)
    assert drawn == pytest.approx(
        float((explanation.bias_share * explanation.start.abs()).mean()), rel=1e-6
    )
    assert records[-1].total == pytest.approx(
        float(explanation.heatmaps.sum((1, 2)).mean()), rel=1e-6
    )


@pytest.mark.parametrize("name", ["released", "squared"])
def test_squared_rule_keeps_the_sum_and_the_sign_of_the_logit(name, either, images):
    target = torch.tensor([0, 6, 7])
    explanation = lrp.explain(either, images, composite=name, target=target)
    assert explanation.gap.abs().max() < 0.05  # what its epsilon of 1e-6 costs
    signs = explanation.start.sign()
    assert {-1.0, 1.0} <= set(signs.tolist())
    assert ((explanation.heatmaps * signs[:, None, None]) >= 0).all()


def test_overlapping_wins_of_a_pooling_add_up():
    model = nn.Sequential(
        nn.MaxPool2d(3, stride=1, padding=1), nn.Flatten(), nn.Linear(25, 1, bias=False)
    )
    nn.init.ones_(model[2].weight)
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 3
    heatmap = lrp.explain(model, image, target=0, composite=lrp.Composite()).heatmaps[0]
    assert heatmap[2, 2] == pytest.approx(27, rel=1e-5)  # wins nine windows
    assert heatmap.sum() == pytest.approx(27, rel=1e-5)


@pytest.mark.parametrize(
    "method",
    [*lrp.COMPOSITES, "gradient_x_input", lrp.IntegratedGradients(steps=2), "grad_cam"],
    ids=lambda method: method if isinstance(method, str) else type(method).__name__,
)
def test_result_does_not_depend_on_the_batch(method, either, images):
    target = torch.tensor([5, 0, 42])
    whole = lrp.explain(either, images, composite=method, target=target)
    for batch_size in (1, 2):
        parts = lrp.explain(either, images, composite=method, target=target, batch_size=batch_size)
        assert relative(parts.heatmaps, whole.heatmaps) < 1e-8
        assert torch.allclose(parts.start, whole.start)
        assert torch.allclose(parts.gap, whole.gap, atol=1e-8)


def test_first_rule_applies_to_the_first_convolution_of_every_branch(exact, images):
    # A black image has no relevance by proportion, and plenty by the w-squared rule.
    black = torch.zeros_like(images)
    composite = lrp.Composite(convolution=lrp.Gamma(), first=lrp.WSquared())
    assert (channels(exact, black, "gamma") == 0).all()
    attributor = lrp.Attributor(exact, composite)
    ledger = {}
    attributor(black, 5, watch=lambda name, R, shares, drawn: ledger.update({name: (R, shares)}))
    for name in ("b1", "b2.0", "b3.0", "b4.1"):
        R, shares = ledger[f"inception.{name}.conv"]
        assert R.abs().sum() > 0
        assert torch.allclose(shares[0].sum((1, 2, 3)), R.sum((1, 2, 3)), atol=1e-4)


@pytest.mark.parametrize(("name", "maps"), [("inception", 256), ("resnet", 32)])
def test_released_ends_where_the_model_says(name, maps, images):
    model = networks.trained(name)
    explanation = lrp.explain(model, images, composite="released", channels=True)
    assert explanation.relevance.shape == (N, maps, 32, 32)
    named = replace(lrp.COMPOSITES["released"], stop_at=model.first_features)
    assert torch.equal(channels(model, images, named), explanation.relevance)
    with pytest.raises(ValueError, match=r"Sequential does not name them.*`first_features`"):
        lrp.explain(unbiased(), images, composite="released")


def test_relevance_must_not_pass_the_end_by_a_shortcut(resnet, images):
    inside = replace(lrp.COMPOSITES["gamma"], stop_at="stage1.0.relu1")
    with pytest.raises(ValueError, match=r"'stage1\.0\.relu1' does not see all .*\['relu'\]"):
        lrp.Attributor(resnet, inside)


def test_nothing_is_propagated_from_the_last_layer_to_itself(resnet):
    last = lrp.Attributor(resnet, lrp.COMPOSITES["gamma"]).network.names[-1]
    with pytest.raises(ValueError, match=f"'{last}' is the last layer.*choose an earlier one"):
        lrp.Attributor(resnet, replace(lrp.COMPOSITES["gamma"], stop_at=last))


def test_an_addition_may_add_a_layer_to_itself(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.add = nn.Conv2d(3, 4, 32, bias=False), Add()
            self.flatten = nn.Flatten()

        def forward(self, x):
            x = self.conv(x)
            return self.flatten(self.add(x, x))

    explanation = lrp.explain(Twice(), images, target=0, composite="paper")
    assert explanation.gap.abs().max() < 1e-3


def test_stop_at_an_inner_layer_continues_to_the_pixels(exact, images):
    inner = lrp.Attributor(exact, replace(lrp.COMPOSITES["gamma"], stop_at="conv1.relu"))
    ledger = {}
    lrp.Attributor(exact, lrp.COMPOSITES["gamma"])(
        images, 5, watch=lambda name, R, shares, drawn: ledger.update({name: R})
    )
    assert torch.equal(inner(images, 5).relevance, ledger["conv1.relu"])
