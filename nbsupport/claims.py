"""The paper's sentences, one by one, and what came out here of each.

A claim carries the rule that turns results into a verdict: verdicts follow the numbers, and change
with them. Rates are in percent.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from nbsupport import paper
from nbsupport.ablation import separation
from nbsupport.scenarios import Scenario, paper_scenarios
from nbsupport.tables import experiment

__all__ = ["CLAIMS", "VERDICTS", "Claim", "ledger"]

VERDICTS = ("holds", "in part", "does not hold", "open")
"""What can be said of a claim; *open* where no finished run speaks of it."""

HOLDS, PARTLY, NOT, OPEN = VERDICTS

Answer = tuple[str, str]

_RATES = ["acc", "tpr", "tnr", "auroc", "n_tp", "n_fn"]
_ABOUT = ["asr", "masr", "attack_took", "n_poisoned", "n_class", "amplitude"]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper that finished runs can speak of.

    Parameters
    ----------
    where : str
        Place in the paper.
    sentence : str
        As printed; "..." for what is left out, brackets around what is added.
    judge : callable
        Takes the networks, a row each (`_networks`), and returns a verdict and its numbers.
    look : str
        Where in this edition to look closer.
    """

    where: str
    sentence: str
    judge: Callable[[pd.DataFrame], Answer]
    look: str


def ledger(results: pd.DataFrame) -> pd.DataFrame:
    """Hold every claim against the runs of the paper's experiments.

    Parameters
    ----------
    results : DataFrame
        From `results.collect` or results.csv, of one profile; other experiments are left out.

    Returns
    -------
    DataFrame
        One row a claim: ``section``, ``the paper says``, ``verdict`` (one of `VERDICTS`), ``here``
        (the numbers) and ``look`` (where in this edition).
    """
    networks = _networks(results)
    answers = [claim.judge(networks) for claim in CLAIMS]
    return pd.DataFrame(
        {
            "section": [claim.where for claim in CLAIMS],
            "the paper says": [claim.sentence for claim in CLAIMS],
            "verdict": [verdict for verdict, _ in answers],
            "here": [here if verdict != OPEN else "" for verdict, here in answers],
            "look": [claim.look for claim in CLAIMS],
        }
    )


def _networks(results: pd.DataFrame) -> pd.DataFrame:
    """Give each network a row: columns ``<rate>_<method>``, and what its attack is."""
    own = {experiment(one) for some in paper_scenarios().values() for one in some}
    rows = results[results["scenario"].map(experiment).isin(own)]
    wide = rows.pivot(index="scenario", columns="method", values=_RATES).astype(float)
    wide.columns = [f"{rate}_{method}" for rate, method in wide.columns]
    about = rows.drop_duplicates("scenario").set_index("scenario")[_ABOUT]
    parsed = [Scenario.parse(name) for name in about.index]
    about["attack"] = [one.attack for one in parsed]
    about["percent"] = [float(one.percent) for one in parsed]
    about["attack_took"] = about["attack_took"].astype(bool)
    return about.join(wide)


def _some(networks: pd.DataFrame, rule: str, rates: str = "") -> pd.DataFrame:
    """Choose networks by a rule, of those that have all of some rates."""
    needed = rates.split()
    columns = list(dict.fromkeys([*_ABOUT, "percent", *needed]))
    return networks.query(rule).reindex(columns=columns).dropna(subset=needed)


def _share(right: Iterable) -> str:
    right = list(right)
    return OPEN if not right else HOLDS if all(right) else PARTLY if any(right) else NOT


def _count(right: Sequence) -> str:
    return f"{sum(right)} of {len(right)}"


def _span(values: Sequence[float]) -> str:
    if not len(values):
        return "none"
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _consistently_better(networks: pd.DataFrame) -> Answer:
    rates = "acc_heatmap acc_activation"
    took = _some(networks, "attack_took", rates).eval("acc_heatmap > acc_activation")
    not_so = _some(networks, "not attack_took", rates).eval("acc_heatmap > acc_activation")
    here = f"higher ACC in {_count(took)} networks whose attack took"
    if len(not_so):
        here += f", in {_count(not_so)} others"
    behind = [name for name, ahead in took.items() if not ahead]
    return _share([*took, *not_so]), here + (f"; behind on {', '.join(behind)}" * bool(behind))


def _good_on_label_consistent(networks: pd.DataFrame) -> Answer:
    some = _label_consistent(networks, "acc_activation")
    some["right"] = some["acc_activation"] >= 95
    here = f"ACC of 95 or more in {_told_apart(some)} ({_span(some['acc_activation'])})"
    return _share(some["right"]), here


def _better_than_euclid(networks: pd.DataFrame) -> Answer:
    rates = ["auroc_heatmap", "auroc_heatmap_euclidean"]
    better, told = {}, []
    for where, same in (("in different positions", "!="), ("in one position", "==")):
        some = _some(networks, f"attack {same} 'amplitude'", " ".join(rates))
        apart = separation(some[rates])
        better[where] = list(apart[rates[0]] > apart[rates[1]])
        told += [f"{_count(better[where])} with triggers {where}"] * bool(len(apart))
    # The sentence is about the first kind; the second shows what it leaves out.
    here = f"higher AUROC, whichever group is called poison, in {', '.join(told)} (networks)"
    return _share(better["in different positions"]), here


def _two_thirds(networks: pd.DataFrame) -> Answer:
    one = _raw(networks)
    acc = [*one["acc_raw_pca"], *one["acc_raw_fastica"]]
    here = f"{' and '.join(f'{a:.1f}' for a in acc)}; accusing nobody gives {_nobody(one)}"
    return _share(abs(a - 200 / 3) < 5 for a in acc), here


def _pca_misses_half(networks: pd.DataFrame) -> Answer:
    one = _raw(networks)
    right = [*(one["tpr_raw_pca"] > one["tpr_raw_fastica"]), *one["tpr_raw_pca"].between(40, 60)]
    pca, ica = (_span(one[f"tpr_raw_{name}"]) for name in ("pca", "fastica"))
    return _share(right), f"TPR {pca} and {ica}"


def _nobody(networks: pd.DataFrame) -> str:
    """Accuracy of the method that accuses nobody."""
    return _span(100 - 100 * networks["n_poisoned"] / networks["n_class"])


def _raw(networks: pd.DataFrame) -> pd.DataFrame:
    rates = " ".join(f"{rate}_raw_{name}" for rate in ("acc", "tpr") for name in ("pca", "fastica"))
    return _some(networks, "scenario == 'standard-s3-p33-r0'", rates)


def _asr_100(networks: pd.DataFrame) -> Answer:
    asr = _some(networks, "attack == 'standard'", "asr").groupby("percent")["asr"]
    mean = asr.mean().sort_index(ascending=False)
    told = ", ".join(f"{value:.1f} at {percent:g} %" for percent, value in mean.items())
    return _share(mean >= 99.5), f"mean ASR {told}"


def _standard(networks: pd.DataFrame, rates: str, above: float = 2) -> pd.DataFrame:
    rule = f"attack == 'standard' and attack_took and percent > {above}"
    return _some(networks, rule, rates)


def _around_99_and_above_90(networks: pd.DataFrame) -> Answer:
    some = _standard(networks, "acc_heatmap tpr_heatmap")
    right = some.eval("acc_heatmap >= 98.5 and tpr_heatmap > 90")
    here = f"both (ACC 98.5 or more, TPR above 90) in {_count(right)} networks"
    return _share(right), here + _except(some["acc_heatmap"], right, "ACC")


def _close_to_perfect_tnr(networks: pd.DataFrame) -> Answer:
    tnr = _standard(networks, "tnr_heatmap")["tnr_heatmap"]
    right = tnr >= 99
    return _share(right), f"99 or more in {_count(right)} networks" + _except(tnr, right, "TNR")


def _tnr_not_that_high(networks: pd.DataFrame) -> Answer:
    rates = ["tnr_activation", "tnr_heatmap"]
    some = _standard(networks, " ".join(rates))
    lower = some[rates[0]] < some[rates[1]] - 1
    told = "; ".join(
        f"{' and '.join(f'{tnr:.1f}' for tnr in rows[rates].mean())} at {percent:g} %"
        for percent, rows in reversed(list(some.groupby("percent")))
    )
    here = f"lower by more than a point in {_count(lower)} networks (mean, AC and HC: {told})"
    return _share(lower), here


def _activation_above_90(networks: pd.DataFrame) -> Answer:
    tpr = _standard(networks, "tpr_activation", above=5)["tpr_activation"]
    right = tpr > 90
    return _share(right), f"in {_count(right)} networks ({_span(tpr)})"


def _except(values: pd.Series, right: pd.Series, rate: str) -> str:
    wrong = [f"{name}: {rate} {value:.1f}" for name, value in values[~right].items()]
    return f"; {', '.join(wrong)}" * bool(wrong)


def _none_at_two_percent(networks: pd.DataFrame) -> Answer:
    told, right = [], []
    for method, name in (("heatmap", "Heatmap"), ("activation", "Activation")):
        rule = "attack == 'standard' and percent == 2"
        counts = [f"n_tp_{method}", f"n_fn_{method}"]
        rows = _some(networks, rule, " ".join(counts))
        if len(rows):
            found, missed = rows[counts].sum().astype(int)
            worked = rows.loc[rows["attack_took"].astype(bool), counts].sum().astype(int)
            right.append(found < 0.1 * (found + missed))
            told.append(
                f"{name} Clustering finds {found} of {found + missed} ({worked.iloc[0]} of "
                f"{worked.sum()} where the attack took)"
            )
    return _share(right), f"{'; '.join(told)}; fewer than a tenth would count as none"


def _fairly_well(networks: pd.DataFrame) -> Answer:
    some = _label_consistent(networks, "acc_heatmap acc_activation")
    some["right"] = some.eval("acc_heatmap >= 95 and acc_activation >= 95")
    return _share(some["right"]), f"both ACC 95 or more in {_told_apart(some)}"


def _misses_fewer(networks: pd.DataFrame) -> Answer:
    some = _label_consistent(networks, "acc_heatmap acc_activation tpr_heatmap tpr_activation")
    some["right"] = some.eval("acc_heatmap > acc_activation and tpr_heatmap > tpr_activation")
    return _share(some["right"]), f"both higher in {_told_apart(some)}"


def _label_consistent(networks: pd.DataFrame, rates: str) -> pd.DataFrame:
    """Choose as Table 2 does, the row of 2 % included: its sentences leave none out."""
    return _some(networks, "attack == 'label_consistent' and attack_took", rates)


def _told_apart(some: pd.DataFrame) -> str:
    """Count the networks that are ``right``, those of 2 % by themselves."""
    rare = some["percent"] <= 2
    told = f"{_count(some.loc[~rare, 'right'])} networks above 2 %"
    return told + f", {_count(some.loc[rare, 'right'])} at 2 %" * bool(rare.any())


def _masr_decays(networks: pd.DataFrame) -> Answer:
    some = _some(networks, "attack == 'amplitude'", "masr")
    mean = some.groupby("amplitude")["masr"].mean().sort_index(ascending=False)
    told = ", ".join(f"{value:.1f} at {amplitude}" for amplitude, value in mean.items())
    if set(mean.index) != {128, 64, 32}:
        return OPEN, ""
    return _share([mean[32] < mean[64] < mean[128], mean[32] < mean[128] / 2]), f"mean MASR {told}"


def _repetitions(networks: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Collect the rows of Table 5 that have two networks or more."""
    rates = " ".join(f"{r}_{m}" for r in ("acc", "tpr", "tnr") for m in ("heatmap", "activation"))
    rule = "attack == 'label_consistent' and percent in (33, 15)"
    groups = _some(networks, rule, rates).groupby("percent")
    return [(percent, rows) for percent, rows in groups if len(rows) > 1][::-1]


def _clear_advantage(networks: pd.DataFrame) -> Answer:
    right, told = [], []
    for percent, rows in _repetitions(networks):
        parts = []
        for rate in ("acc", "tpr", "tnr"):
            ours, theirs = (rows[f"{rate}_{method}"] for method in ("heatmap", "activation"))
            parts.append(f"{rate.upper()} {ours.mean():.1f} against {theirs.mean():.1f}")
            # A tie is no advantage, not even at 100: in print most of it lies in the TNR.
            right.append((ours > theirs).all())
        told.append(f"{percent:g} %, {len(rows)} networks: {', '.join(parts)}")
    return _share(right), f"label-consistent, {'; '.join(told)} (clear: higher in every network)"


def _two_orders(networks: pd.DataFrame) -> Answer:
    right, told = [], []
    for percent, rows in _repetitions(networks):
        ours, theirs = (rows[f"acc_{name}"].std(ddof=0) for name in ("heatmap", "activation"))
        right.append(theirs > 0 and theirs >= 30 * ours)
        told.append(f"{theirs:.2f} against {ours:.2f} at {percent:g} % ({len(rows)} networks)")
    # Nearly two orders are 36 and 63 times in print.
    printed = {(row.percent, row.method): row.acc_std for row in paper.TABLE5}
    factors = [printed[p, "activation"] / printed[p, "heatmap"] for p in ("33", "15")]
    here = f"label-consistent: {'; '.join(told)}; 30 times would do, in print it is "
    return _share(right), here + " and ".join(f"{factor:.0f}" for factor in factors)


def _due_to_tnr(networks: pd.DataFrame) -> Answer:
    right, told = [], []
    for percent, rows in _repetitions(networks):
        tnr, tpr = (rows[f"{rate}_activation"].std(ddof=0) for rate in ("tnr", "tpr"))
        right.append(tnr > tpr)
        told.append(f"{tnr:.2f} beside {tpr:.2f} of the TPR at {percent:g} %")
    return _share(right), f"label-consistent: {'; '.join(told)}"


def _amplitude_is_detected(networks: pd.DataFrame) -> Answer:
    rates = ["acc_activation", "acc_heatmap"]
    every = _some(networks, "attack == 'amplitude'", " ".join(rates))
    took = every["attack_took"].astype(bool)
    told = [
        f"{amplitude}: ACC {' and '.join(f'{acc:.1f}' for acc in rows[rates].mean())}"
        + " (the attack did not take)" * (not took[rows.index].any())
        for amplitude, rows in reversed(list(every.groupby("amplitude")))
    ]
    here = f"Activation and Heatmap Clustering at {'; '.join(told)}; accusing nobody: "
    return _share((every.loc[took, rates] > 80).any(axis=1)), here + _nobody(every)


def _spectral_fails(networks: pd.DataFrame) -> Answer:
    rates = "auroc_spectral"
    clean = _label_consistent(networks, rates).query("percent > 2")[rates]
    plain = _standard(networks, rates)[rates]
    if not len(clean) or not len(plain):
        return OPEN, ""
    here = (
        f"as an inference: AUROC {_span(clean)} on label-consistent, {_span(plain)} on standard "
        "attacks above 2 %"
    )
    return _share(separation(clean) < 60), here


CLAIMS = (
    Claim(
        "Abstract, 8",
        "Heatmap Clustering consistently performs better than Activation Clustering",
        _consistently_better,
        "5.3; erratum consistently-better",
    ),
    Claim(
        "Abstract",
        "when considering label-consistent poisoning attacks, [Activation Clustering] also yields "
        "good detection performance",
        _good_on_label_consistent,
        "5.3, Table 2",
    ),
    Claim(
        "2",
        "[on Clever Hans artifacts] SpecSig only produces results that are only slightly better "
        "than random guessing. Since the fundamental concept of label-consistent poisoning attacks "
        "and CH artifacts is the same ...",
        _spectral_fails,
        "5.6",
    ),
    Claim(
        "5.5",
        "we get a better distance measure in comparison to the euclidean distance in the sense, "
        'that images containing a backdoor trigger are still "close" even if the backdoor trigger '
        "is placed at different positions",
        _better_than_euclid,
        "notebook 7",
    ),
    Claim("7", "in both cases the accuracy is about 2/3 [raw images]", _two_thirds, "Table 3"),
    Claim(
        "7",
        "using PCA performs better than using FastICA, but still misses half of the poisoned data",
        _pca_misses_half,
        "Table 3",
    ),
    Claim(
        "7.1",
        "the attack success rate for all percentages of manipulated data is at 100%",
        _asr_100,
        "5.2, Table 1",
    ),
    Claim(
        "7.1",
        "both accuracy and true positive rate are around 99 percent and above 90 percent, "
        "respectively, for Heatmap Clustering and percentages of manipulated data above 2 percent",
        _around_99_and_above_90,
        "Table 1; 4.5 on starts",
    ),
    Claim(
        "7.1",
        "Heatmap clustering has a close to perfect true negative rate",
        _close_to_perfect_tnr,
        "Table 1; 4.5 on starts",
    ),
    Claim(
        "7.1",
        "the true negative rate for Activation Clustering is not that high",
        _tnr_not_that_high,
        "Table 1",
    ),
    Claim(
        "7.1",
        "For 33%, 15% and 10% manipulated data, the TPR of Activation clustering is also above 90 "
        "percent",
        _activation_above_90,
        "Table 1",
    ),
    Claim(
        "7.1",
        "For both detection algorithms, none of the poisoned data points is correctly detected in "
        "the experiment with 2 percent",
        _none_at_two_percent,
        "4.6; erratum two-percent",
    ),
    Claim(
        "7.2",
        "both detection methods detect the [label-consistent] attacks fairly well",
        _fairly_well,
        "Table 2",
    ),
    Claim(
        "7.2",
        "HC is missing a few poisoned data samples less, which results in higher TPR and slightly "
        "higher accuracy",
        _misses_fewer,
        "Table 2",
    ),
    Claim(
        "7.3",
        "reducing the amplitude from 128 to 32 results in a strong decay of the MASR",
        _masr_decays,
        "Table 4, Figure 6",
    ),
    Claim(
        "7.4",
        "a clear advantage of Heatmap Clustering when considering mean accuracy, TPR and TNR",
        _clear_advantage,
        "Table 5; erratum table5-setting",
    ),
    Claim(
        "7.4",
        "the standard deviation of the accuracy for Activation Clustering is nearly two orders of "
        "magnitude higher than for Heatmap Clustering",
        _two_orders,
        "Table 5; erratum table5-setting",
    ),
    Claim(
        "7.4",
        "Most of this effect is due to the much higher standard deviation for the TNR",
        _due_to_tnr,
        "Table 5; erratum table5-setting",
    ),
    Claim(
        "8",
        "The assumption ... that label-consistent poisoning attacks using an amplitude sticker as "
        "a trigger are impossible to detect was proven wrong",
        _amplitude_is_detected,
        "Table 4",
    ),
)
"""What the paper says that runs can speak of, in the order of its sections."""
