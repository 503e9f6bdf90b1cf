"""Numbers in the sentences of the README, and of the results in full, are those of the tables."""

import json
import math
import re

import pandas as pd
import pytest

from nbsupport import ROOT, ablation, lrp, paper, tables
from nbsupport.poison_detector import PoisonDetector
from nbsupport.scenarios import PAPER, Scenario

PAGES = [(ROOT / name).read_text() for name in ("README.md", "figures/README.md")]
TEXT = " ".join(" ".join(PAGES).split())
COUNTS = ["n_tp", "n_fn", "n_tn", "n_fp"]
WORDS = [
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
]  # fmt: skip


def read(name):
    """Read a published table; the id without its repetition is the experiment."""
    table = pd.read_csv(ROOT / "figures" / f"{name}.csv")
    if "scenario" in table:
        table["experiment"] = table.scenario.str.replace(r"-r\d+$", "", regex=True)
    return table


def judged(method, by="experiment"):
    """Give the counts and rates of a method, repetitions pooled."""
    table = read("results").query("method == @method").groupby(by)[COUNTS].sum()
    table["acc"] = 100 * (table.n_tp + table.n_tn) / table[COUNTS].sum(axis=1)
    table["tpr"] = 100 * table.n_tp / (table.n_tp + table.n_fn)
    table["tnr"] = 100 * table.n_tn / (table.n_tn + table.n_fp)
    return table


def rates(line):
    return " / ".join(
        f"{value:.1f}".rstrip("0").rstrip(".") for value in line[["acc", "tpr", "tnr"]]
    )


def network(scenario):
    (line,) = read("networks").query("scenario == @scenario").to_dict("records")
    return line


def training_minutes():
    """How long each published Inception was trained, and on what."""
    runs = json.loads((ROOT / "figures" / "networks.json").read_text())["runs"]
    told = {run: stages["training"] for run, stages in runs.items() if "resnet" not in run}
    return pd.DataFrame(
        {
            "minutes": [each["seconds"] / 60 for each in told.values()],
            "float32": ["float32" in each["device"] for each in told.values()],
            "threads": [int(re.search(r"(\d+) threads", e["device"])[1]) for e in told.values()],
        },
        index=list(told),
    )


def what_came_out():
    cells = read("scoreboard").set_index("method").loc["heatmap"]
    yield (
        f"Of its {cells.cells} printed rates {cells.within} may agree with ours, {cells.open} stay "
        f"open, {cells.better} are better here and {cells.worse} worse, two of these"
    )
    took = set(read("networks").query("attack_took == True").experiment)
    name = r"(standard|label_consistent)-s3-p(10|15|33)"
    found = judged("heatmap").loc[lambda t: t.index.str.fullmatch(name) & t.index.isin(took)].tpr
    assert len(found) == 6
    rows = [paper.published(f"{experiment}-r0", "heatmap") for experiment in found.index]
    printed = [row.tpr for row in rows if row.valid]
    assert (min(printed), max(printed)) == (92.9, 100)
    yield (
        f"finds {found.min():.1f} to {found.max():.1f} % of the poison (in print {min(printed):g} "
        f"to {max(printed):g}; the two networks at 10 % of the standard attack"
    )
    alone = judged("heatmap", "scenario").tpr
    pair = sorted(alone.filter(like="standard-s3-p10"))
    yield "standard attack {:.1f} and {:.0f})".format(*pair)
    (five,) = alone.filter(like="label_consistent-s3-p05")
    yield f"and {five:.1f} % in the one label-consistent network at 5 %"
    faint = judged("heatmap").tpr["amplitude-a128-p33"]
    printed = paper.published("amplitude-a128-p33-r0", "heatmap").tpr
    yield f"128, where the attack works, it finds {faint:.0f} % (in print {printed:.0f})"
    assert network("amplitude-a128-p33-r0")["attack_took"]
    ledger = read("claims").set_index("section")
    counted = re.findall(r"(\d+) of (\d+)", ledger.here["Abstract, 8"])
    (ahead, took), (behind, others) = [map(int, pair) for pair in counted]
    assert behind == 0
    yield (
        f"has the higher ACC in {ahead} of the {took} networks of the paper's experiments whose "
        f"attack took, and in none of the {WORDS[others]} whose attack did not"
    )
    spreads = (
        read("table5")
        .query("rate == 'acc'")
        .pivot(index="experiment", columns="method", values="sigma")
    )
    assert (spreads.activation / spreads.heatmap).between(0.5, 2).all()
    yield "on label-consistent runs about as steady as Heatmap Clustering"
    counts = ledger.verdict.value_counts()
    yield (
        f"[{len(ledger)} sentences of the paper, one by one](figures/claims.md): {counts['holds']} "
        f"hold, {counts['in part']} hold in part, {counts['does not hold']} do not"
    )
    theirs = judged("heatmap").loc["standard-s3-p02"]
    poisoned = theirs.n_tp + theirs.n_fn
    yield f"0 of 34 images in print and {theirs.n_tp:.0f} of {poisoned:.0f} here"
    assert paper.published("standard-s3-p02-r0", "heatmap").counts.tp == 0
    rare = judged("poison_detector").loc["standard-s3-p02"]
    runs = (read("networks").experiment == "standard-s3-p02").sum()
    yield (
        f"finds {rare.n_tp:.0f} of {rare.n_tp + rare.n_fn:.0f} in {WORDS[runs]} networks and "
        f"accuses none of {int(rare.n_tn):,} clean images"
    )
    assert rare.n_fp == 0
    each = judged("poison_detector", "scenario").filter(like="standard-s3-p02", axis=0)
    assert [network(name)["attack_took"] for name in each.index] == [False, False, True]
    first, second, third = each.n_tp
    yield f"images: {first}, {second} and {third} of {each.iloc[0][['n_tp', 'n_fn']].sum():.0f}."
    clean, attacked = (
        read("scans").set_index("scenario").loc[name] for name in ("clean-r0", "standard-s3-p02-r0")
    )
    assert (clean.named, clean.accused, attacked.accused_wrongly) == ("none", 0, 0)
    assert attacked.named == "5 (evidence)"
    yield f"`PoisonDetector` names none of the {clean.classes} classes"
    yield f"accuses none of the {clean.images:,} images looked at (up to {clean.per_class} a class)"
    yield (
        f"accuses {WORDS[attacked.accused]} images of its sample of {attacked.per_class}, all "
        "poisoned"
    )
    alone = read("without_poison")
    assert not alone.called_poisoned.any()
    (target,) = {Scenario.parse(name).target_class for name in alone.scenario}
    yield (
        f"all {clean.classes} classes, and on the attacked class without its poison in "
        f"{len(alone)} networks (it is class {target} in all"
    )
    (missed,) = judged("poison_detector").loc[["blended-a20-p15"]].tpr
    assert missed == 0


def where_we_stand():
    printed = paper.published("standard-s3-p02-r0", "heatmap")
    yield f"(ACC {printed.acc:.1f}, TPR {printed.tpr:g}, TNR {printed.tnr:.1f})"
    runs, once, often = (
        judged("heatmap", "scenario"), judged("heatmap"), judged("heatmap_restarts"),
    )  # fmt: skip
    five = sorted(runs.acc[runs.index.str.startswith("standard-s3-p05")])
    five = " and ".join(f"{acc:.0f}" for acc in five)
    printed = paper.published("standard-s3-p05-r0", "heatmap")
    yield f"that start misses the best cut (ACC {five} %), which the best of ten starts finds"
    yield (
        f"({rates(often.loc['standard-s3-p05'])}, the paper {printed.acc:.1f} / {printed.tpr:.1f} "
        f"/ {printed.tnr:.1f})"
    )
    change = (runs.acc - judged("heatmap_restarts", "scenario").acc).abs()
    assert change[~change.index.str.startswith("standard-s3-p05")].max() < 0.2
    yield "Elsewhere one start and ten differ by less than 0.2 points"
    assert (once.index == often.index).all()

    cells = read("scoreboard").set_index("method")
    assert cells.loc["poison_detector"].worse == 2
    faint = read("table4").query("experiment == 'amplitude-a32-p33' and verdict == 'worse'")
    assert faint.method.value_counts()[["heatmap", "poison_detector"]].tolist() == [2, 2]
    five = read("table1").query("experiment == 'standard-s3-p05' and rate == 'acc'")
    five = five.set_index("method").loc["heatmap"]
    assert five.verdict == "open"
    assert tables.WIDE == 20
    yield f"So it is with {cells.loc['heatmap'].open} rates of Heatmap Clustering"
    yield f"its accuracy at 5 % ({five.ours:.1f}, in print {five.paper:.1f})"
    low, high = sorted(runs.acc[runs.index.str.startswith("standard-s3-p05")])
    yield f"{low:.0f} and {high:.0f} % of the images judged rightly, in print {five.paper:.1f}"
    attack = cells.loc["attack"]
    yield (
        f"comes out worse than printed in {cells.loc['heatmap'].worse} rates, the attacks "
        f"themselves in {attack.worse} of {attack.cells - attack['no value']}"
    )
    yield "these are the two rates in which `PoisonDetector` stays behind the paper"
    here = set(PAPER) & set(read("networks").scenario)
    if left := len(PAPER) - len(here):
        come = f"{WORDS[left]} {'is' if left == 1 else 'are'} still to come"
        yield f"Of its {len(PAPER)} runs {len(here)} are published here"
        yield f"ten times, {come}"
        yield come.replace(" ", f" of the paper's {len(PAPER)} runs ", 1).capitalize()
    else:
        yield f"All of its {len(PAPER)} runs are published here"
        yield f"All of the paper's {len(PAPER)} runs are there"

    first, faint, third = (network(f"amplitude-a64-p33-r{r}") for r in range(3))
    yield f"(silhouette {faint['silhouette']:.2f}) than those of some clean classes"
    yield (
        f"{first['n_strong']:.0f} in `r0`, {third['n_strong']:.0f} in `r2`, and in `r1` "
        f"{WORDS[int(faint['n_strong'])]} of 1,650 images, where nine are asked for"
    )
    assert math.ceil(PoisonDetector().fewest(1650)) == 9
    faintest = network("amplitude-a32-p33-r0")
    printed = paper.published("amplitude-a32-p33-r0", "heatmap")
    yield f"(it moves {faintest['masr']:.0f} % of the images, in the paper {printed.masr:.0f} %)"
    yield f"the silhouette, {faintest['silhouette']:.2f}, lies just below the limit of 0.55"
    found = judged("activation").tpr["amplitude-a32-p33"]
    yield f"Activation Clustering, which presumes that there is poison, finds {found:.0f} %"

    lines = {name: judged(name) for name in ("raw_fastica", "spray")}
    sinus, blend = (
        lines["raw_fastica"].loc["sinusoidal-a20-p33"],
        lines["spray"].loc["blended-a20-p15"],
    )
    assert sinus.n_fp == 0
    yield f"(FastICA) finds {sinus.tpr:.1f} % of the sinusoidal signal with no false alarm"
    yield f"SpRAy {blend.tpr:.1f} % of the blended pattern with a TNR of {blend.tnr:.1f} %"

    codes = read("results").drop_duplicates("scenario").commit
    dirty = codes.str.endswith("+").sum()
    yield f"not committed yet: so it is with {dirty} of the {len(codes)} networks"

    yield f"The {3 * len(paper.TABLE5)} rates of Table 5 are held against"
    minutes = training_minutes()
    took = minutes.groupby(["float32", "threads"]).minutes
    ranges = {kind: f"{some.min():.0f} to {some.max():.0f}" for kind, some in took}
    yield f"(a training took {ranges[False, 1]} minutes on one shared core"
    yield f"without bfloat16 {ranges[True, 1]}, or {ranges[True, 2]} on two)"

    masr = [network(f"label_consistent-s3-p{p}-r0")["masr"] for p in ("10", "05")]
    printed = [
        paper.published(f"label_consistent-s3-p{p}-r0", "heatmap").masr for p in ("10", "05")
    ]
    ours, theirs = (" and ".join(f"{rate:.1f}" for rate in rates) for rates in (masr, printed))
    yield f"label-consistent ones at 10 and 5 % ({ours}, in print {theirs})"
    accuracy = read("networks")
    low, high = accuracy[
        accuracy.scenario.str.startswith(("label_consistent", "amplitude"))
    ].clean_accuracy.agg(["min", "max"])
    yield f"is {low:.1f} to {high:.1f} % under label-consistent and faint triggers"
    yield f"({network('clean-r0')['clean_accuracy']:.1f} without an attack)"
    obeyed = [(line["masr"], line["asr"]) for line in (first, faint, third)]
    masrs, asrs = zip(*obeyed, strict=True)
    yield (
        f"at amplitude 64 the MASR is {min(masrs):.0f} to {max(masrs):.0f} %, and yet "
        f"{min(asrs):.0f} to {max(asrs):.0f} % of the triggered 50s"
    )
    yield f"(`standard-s1-p15-r0`, ASR {network('standard-s1-p15-r0')['asr']:.0f} %)"
    yield f"there are {len(paper.ERRATA)} places where text, tables, thesis and code disagree"


def after_detection():
    left = read("after_detection").set_index("filter")
    before, ours, lot, theirs, perfect = left.loc[
        ["before", "poison_detector", "random", "heatmap", "perfect"]
    ].itertuples()
    yield f"reads {before.success:.1f} % of the triggered 50s as 80"
    yield (
        f"without the {ours.removed} images that `PoisonDetector` accuses, {ours.success:.1f} % "
        "are left (one poisoned image stays"
    )
    assert ours.poison_left == 1
    yield f"the network that nobody attacked reads {network('clean-r0')['asr']:.1f} % so)"
    assert ours.success == perfect.success
    yield f"as many as after all {perfect.poison_removed} poisoned ones are taken away"
    assert lot.poison_removed == 1
    yield f"without {lot.removed} images drawn by lot, one of them poisoned,"
    yield f"one of them poisoned, it is {lot.success:.1f} %"
    yield f"without the {theirs.removed} that the paper's Heatmap Clustering accuses, "
    yield f"{WORDS[theirs.poison_removed]} of them poisoned, it is {theirs.success:.1f} %"


def ablations():
    table = read("ablation")
    tried = table.groupby(["representation", "distance", "clusterer"]).ngroups
    runs = WORDS[table.scenario.nunique()]
    yield f"[{tried} combinations](ablation.png) of representation, distance and clusterer, each on"
    yield f"each on {runs} networks with moving stickers"
    lines = ablation.contrasts(table).set_index("change")
    networks = ("label_consistent-s3-p33-r0", "standard-s2-p15-r0", "standard-s3-p02-r0")
    assert set(networks) == set(table.scenario)
    apart = [
        ablation.contrasts(table[table.scenario == name]).set_index("change") for name in networks
    ]
    changes = {
        "explain the network, not the image": "relevance instead of brightness",
        "explain by LRP, not by gradients": "LRP instead of gradients",
        "move mass, do not compare pixels": (
            "a distance that moves mass instead of comparing pixel by pixel"
        ),
        "compare distances within, not maps": (
            "Gromov-Wasserstein as released (collapsed, and scaled) instead of sliced Wasserstein"
        ),
        "a barycentre that did not collapse": "a barycentre that did not collapse",
        "two Gaussians for two means": "two Gaussians instead of two means",
        "move all maps to one place": "all maps moved to one place first",
        "keep all distances, not their mean": "all distances within a map instead of their mean",
        "neighbourhoods for two means": (
            "neighbourhoods (spectral clustering) instead of two means"
        ),
    }
    assert set(changes) == set(lines.index)
    for change, said in changes.items():
        mean, low, high = lines.loc[change, ["separation", "lowest", "highest"]]
        digits = 0 if abs(mean) >= 1 else 1
        each = ", ".join(f"{part.separation[change]:+.0f}" for part in apart)
        yield f"| {said} | {mean:+.{digits}f} | {low:+.0f} to {high:+.0f} | {each} |"
    rare = table[table.scenario == "standard-s3-p02-r0"]
    rare = ablation.contrasts(rare).set_index("change").balanced["two Gaussians for two means"]
    yield f"at 2 %, balanced accuracy +{rare:.0f}"
    faint = read("results").query("experiment == 'amplitude-a64-p33'").set_index("method").auroc
    low, high = (round(faint["heatmap"].agg(of)) for of in ("min", "max"))
    (euclid,) = set(faint["heatmap_euclidean"].round())
    found = judged("heatmap_euclidean", "scenario").tpr.filter(like="amplitude-a64")
    yield (
        f"Euclid reaches an AUROC of {euclid:.0f} and finds {found.min():.0f} to {found.max():.0f} "
        f"% of the poison, Heatmap Clustering reaches {low} to {high}"
    )
    table["separation"] = ablation.separation(table.auroc)
    cell = ablation.pick(table, ("activations", "euclidean-pca", "mixture"))
    asked = cell.set_index("scenario").separation
    ends = (asked[name] for name in ("standard-s2-p15-r0", "label_consistent-s3-p33-r0"))
    yield "(an AUROC of {:.1f} and {:.0f})".format(*ends)
    two = table[table.scenario == "standard-s3-p02-r0"]
    parts = two.representation == "activations", two.representation.isin(lrp.COMPOSITES)
    rare = [two[part].separation.max() for part in parts]
    yield (
        f"no combination on activations exceeds {rare[0]:.0f}, where relevance reaches "
        f"{rare[1]:.0f}"
    )


def seen_when_choosing():
    ours = judged("poison_detector", "scenario")
    limits = {
        "standard-s3-p02-r0", "standard-s2-p15-r0", "label_consistent-s3-p33-r0",
        "amplitude-a64-p33-r0", "amplitude-a64-p33-r1",
    }  # fmt: skip
    nothing = r"label_consistent-s3-(p15-r\d|p33-r[1-9])|standard-s3-p10-r1|amplitude-a(128|32)-.*"
    unseen = ours.index.str.fullmatch(nothing)
    chosen = ours.index.isin(limits)
    yield f"[{unseen.sum()} of its {len(ours)} networks]"
    yield f"settled with {(~chosen & ~unseen).sum()} more in view"
    for name, part in (("limits", chosen), ("border", ~chosen & ~unseen), ("nothing", unseen)):
        sums = ours[part].sum()
        yield f"| {name} | {part.sum()}: "
        if name == "limits":
            assert set(ours.index[part]) == limits
            yield (
                "`standard-s3-p02-r0`, `standard-s2-p15-r0`, `label_consistent-s3-p33-r0`, "
                "`amplitude-a64-p33-r0` and `r1` |"
            )
        yield f"| {sums.n_fn:.0f} of {sums.n_fn + sums.n_tp:.0f}"
        yield f"| {sums.n_fp:.0f} of {sums.n_fp + sums.n_tn:.0f} |"
    spread = ours.n_fn[ours.index.str.startswith(("blended", "sinusoidal"))].sum()
    yield f"({spread} of them spread over the image)"
    yield f"({ours.n_fn['amplitude-a32-p33-r0']} of them `a32`)"


def first_check():
    table = read("first_check").set_index("experiment")
    rang, networks = table.rings.str.extract(r"(\d+) of (\d+)").astype(int).to_numpy().T
    yield f"It rings in {rang.sum()} of {networks.sum()} networks"
    rare = table.index.str.contains("p0[25]$")
    assert set(table.index[rang == 0]) == {*table.index[rare], "blended-a20-p15"}
    assert (rang == networks)[rang > 0].all()
    sides = table.index[rang > 0]
    yield f"the {networks[rang > 0].sum() - 1} whose sticker or faint trigger is on 10 %"
    assert [name for name in sides if name.startswith(("blended", "sinusoidal"))] == [
        "sinusoidal-a20-p33"
    ]
    yield f"In none of the {WORDS[networks[rare].sum()]} at 5 or 2 % does it ring"
    ends = [float(end) for each in table["smaller group (%)"][rare] for end in each.split(" to ")]
    yield f"(the smaller has {min(ends):.0f} to {max(ends):.0f} %)"
    assert networks[rang == 0].sum() == 10
    freed = [
        name.split("-p")[0] + "-p" + name.split("-p")[1][:2]
        for name, alone, behind in zip(
            table.index, table["Heatmap Clustering"], table["Heatmap Clustering, if AC rings"],
            strict=True,
        )
        if float(behind.split(" / ")[1]) > float(alone.split(" / ")[1])
    ]  # fmt: skip
    at_two = [name for name in table.index if name.endswith("p02")]
    assert sorted(freed) == sorted([*at_two, "standard-s3-p05", "blended-a20-p15"])
    yield (
        "the clean images that Heatmap Clustering accuses at 2 %, at 5 % of the standard attack, "
        "and under the `blended` trigger, which is that of the tenth silent network"
    )
    kinds = ("standard", "label_consistent")
    found = [table.PoisonDetector[f"{kind}-s3-p05"].partition(" / ")[0] for kind in kinds]
    assert found == ["100", "100"]
    yield "at 5 % `PoisonDetector` alone finds all"


TELLERS = [
    what_came_out, where_we_stand, seen_when_choosing, after_detection, ablations, first_check,
]  # fmt: skip


@pytest.mark.parametrize("told", TELLERS)
def test_numbers_in_sentences_are_those_of_the_tables(told):
    sentences = list(told())
    assert len(sentences) >= 4
    missing = [sentence for sentence in sentences if sentence not in TEXT]
    assert not missing, "the tables say so, the README does not"


def test_answers_of_the_overview_are_those_of_the_ledger():
    ledger = pd.read_csv(ROOT / "figures" / "claims.csv").here
    text = (ROOT / "notebooks" / "00_overview.ipynb").read_text()
    for row in (0, 1):
        told = re.search(r"in \d+ of \d+ networks [^;(]*?, (?:in )?0 of \d", ledger[row])[0]
        assert told.replace(", 0 of", ", in 0 of") in text
