"""Heatmaps per second: nbsupport.lrp against zennit and captum, same weights, same run.

    python benchmarks/lrp.py [--images 64] [--device cpu] [--threads 1] [--json FILE]

Each baseline computes the same relevance; `max_rel_diff` is the largest difference of a pixel
over the largest relevance of any pixel. Ratios are baseline seconds over ours, best of the
repeats, which take turns so that a busy machine slows both.
"""

import copy

import torch
from measure import Report, parser, take_turns
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nbsupport import lrp
from nbsupport.models import Concat, build

TARGET = 5


def network(device):
    """The paper's network with random weights and BatchNorm statistics of its own."""
    model = build(seed=0).train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return model.eval().to(device)


def folded(model):
    """The same network with BatchNorm merged by torch: zennit's own merging is not exact."""
    model = copy.deepcopy(model)
    for block in model.modules():
        if hasattr(block, "norm"):
            block.conv, block.norm = fuse_conv_bn_eval(block.conv, block.norm), nn.Identity()
    return model


class BehindConcat(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.inception = nn.Identity()

    def forward(self, maps):
        return self.model(maps)


def zennit_composites():
    from zennit import rules, types
    from zennit.composites import LayerMapComposite
    from zennit.core import BasicHook, ParamMod, Stabilizer

    squared = BasicHook(
        input_modifiers=[torch.square],
        param_modifiers=[ParamMod(lambda w, _: w**2, zero_params=["bias"])],
        output_modifiers=[lambda z: z],
        gradient_mapper=lambda R, z: R / Stabilizer(1e-6)(z[0]),
        reducer=lambda a, c: a[0] * c[0],
    )

    def composite(conv, dense, norm):
        layers = [(types.Activation, rules.Pass()), (types.Convolution, conv)]
        return LayerMapComposite([*layers, (nn.Linear, dense), (types.BatchNorm, norm)])

    return {
        "paper": composite(rules.Epsilon(), rules.Epsilon(), rules.Epsilon()),
        "squared": composite(squared, squared, rules.Pass()),
        "released": composite(squared, squared, rules.Pass()),
        "gamma": composite(rules.Gamma(0.25), rules.Epsilon(), rules.Pass()),
    }


def zennit_heatmaps(model, images, name, batch_size):
    from zennit.attribution import Gradient

    inception = model.inception
    model = {"gamma": folded, "released": BehindConcat}.get(name, copy.deepcopy)(model)
    heatmaps = []
    with Gradient(model, zennit_composites()[name]) as attributor:
        for batch in images.split(batch_size):
            if name == "released":
                with torch.no_grad():
                    batch = inception(batch)
            start = F.one_hot(torch.tensor(TARGET, device=batch.device), 43)
            relevance = attributor(batch, lambda logits, start=start: logits * start)[1]
            heatmaps.append(relevance.sum(1).cpu())
    return torch.cat(heatmaps)


def captum_heatmaps(model, images, batch_size):
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    model, heatmaps = copy.deepcopy(model), []
    shared = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.MaxPool2d | nn.Flatten | Concat
    for batch in images.split(batch_size):
        for module in model.modules():
            if isinstance(module, shared):
                module.rule = EpsilonRule(1e-6)  # captum forgets the rules after each call
        heatmaps.append(LRP(model).attribute(batch, target=TARGET).sum(1).detach().cpu())
    return torch.cat(heatmaps)


def main():
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--repeats", type=int, default=3)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    n, size = arguments.images, arguments.batch_size
    model = network(arguments.device)
    images = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = images.to(arguments.device)

    def ours(name):
        return lambda: (
            lrp.explain(model, images, composite=name, target=TARGET, batch_size=size).heatmaps
        )

    pairs = []
    for name in lrp.COMPOSITES:
        for label, batch in (("zennit batched", size), ("zennit one image at a time", 1)):
            theirs = lambda name=name, batch=batch: zennit_heatmaps(model, images, name, batch)  # noqa: E731
            pairs.append((name, label, ours(name), theirs))
        if name == "paper":
            theirs = lambda: captum_heatmaps(model, images, size)  # noqa: E731
            pairs.append((name, "captum batched", ours(name), theirs))

    report = Report(device=arguments.device, threads=arguments.threads)
    for name, label, own, theirs in pairs:
        seconds, maps = take_turns(
            {"ours": own, "theirs": theirs}, arguments.repeats, arguments.device
        )
        difference = (maps["ours"] - maps["theirs"]).abs().max() / maps["theirs"].abs().max()
        report.row(f"lrp {name}", label, n, *seconds.values(), float(difference))
    report.write(arguments.json)


if __name__ == "__main__":
    main()
