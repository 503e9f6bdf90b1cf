"""Printed and own results against arithmetic: what they say about each other must hold."""

import math

import pandas as pd

from nbsupport.metrics import Confusion, audit, spread_range
from nbsupport.paper import AMPLITUDES, TABLE5, TABLES, Row

__all__ = ["audit_ours", "audit_paper"]

RATES = ("acc", "tpr", "tnr")

LAST_DIGIT = 0.005
"""Half a unit of the last printed digit, in percentage points."""


def audit_paper() -> pd.DataFrame:
    """Hold what the paper prints against arithmetic, and its lists against each other.

    Returns
    -------
    DataFrame
        One row per contradiction: ``where``, ``method``, ``printed``, ``but`` (what follows) and
        the ``erratum`` that deals with it.
    """
    found = []
    for row in (*TABLES, *TABLE5):
        report = audit(row.acc, row.tpr, row.tnr, row.n_poisoned, row.n_class)
        # A mean over runs need not be a fraction of whole images.
        whole = isinstance(row, Row)
        if report.ok or (report.consistent and not whole):
            continue
        stated = 100 * row.n_poisoned / row.n_class
        but = []
        if not report.consistent:
            but.append(
                f"TPR and TNR give ACC {report.implied_acc:.2f} at {stated:.1f} %; the three agree "
                f"at {report.implied_share:.1f} %"
            )
        if whole and report.unattainable:
            but.append(f"no number of images gives {', '.join(report.unattainable).upper()}")
        found.append(
            {
                "where": f"Table {row.table}, {row.scenario}",
                "method": row.method,
                "printed": f"{row.acc} / {row.tpr} / {row.tnr}",
                "but": "; ".join(but),
                "erratum": row.erratum,
            }
        )
    return pd.DataFrame(found + _audit_spreads() + _audit_amplitudes())


def _audit_spreads() -> list[dict]:
    """Find the rows of Table 5 whose spreads cannot be the variances that it says they are."""
    found = []
    for row in TABLE5:
        printed = row.acc_std, row.tpr_std, row.tnr_std
        sizes = row.n_poisoned, row.n_class
        _, bound = spread_range(*(math.sqrt(v) for v in printed[1:]), *sizes)
        # As far as rounding may have gone in favour of the print.
        _, highest = spread_range(*(math.sqrt(v + LAST_DIGIT) for v in printed[1:]), *sizes)
        if row.acc_std - LAST_DIGIT > highest**2:
            found.append(
                {
                    "where": f"Table 5, sigma^2, {row.scenario}",
                    "method": row.method,
                    "printed": " / ".join(map(str, printed)),
                    "but": f"as variances TPR and TNR allow at most {bound**2:.2f} for ACC; as "
                    "standard deviations all three agree",
                    "erratum": "table5-sigma",
                }
            )
    return found


def _audit_amplitudes() -> list[dict]:
    """Find the lists of amplitudes that are not those of the results."""
    used = set(AMPLITUDES["Table 4"])
    return [
        {
            "where": where,
            "method": "attack",
            "printed": ", ".join(map(str, listed)),
            "but": f"Table 4 has {', '.join(map(str, sorted(used)))}",
            "erratum": "amplitudes",
        }
        for where, listed in AMPLITUDES.items()
        if set(listed) != used
    ]


def audit_ours(results: pd.DataFrame) -> pd.DataFrame:
    """Hold our own rows of results against the same arithmetic.

    Parameters
    ----------
    results : DataFrame
        From `results.collect` or results.csv.

    Returns
    -------
    DataFrame
        ``scenario``, ``method`` and ``but`` of each contradiction; empty if there is none.
    """
    found = []
    for row in results.to_dict("records"):
        counts = Confusion(*(int(row[f"n_{name}"]) for name in ("tp", "fn", "tn", "fp")))
        rates = [round(row[rate], 2) for rate in RATES]
        report = audit(*rates, int(row["n_poisoned"]), int(row["n_class"]))
        if counts not in report.counts:
            told = f"{row['n_poisoned']} poisoned among {row['n_class']}"
            but = f"{told} cannot give {' / '.join(map(str, rates))} by {counts}"
            found.append({"scenario": row["scenario"], "method": row["method"], "but": but})
    return pd.DataFrame(found, columns=["scenario", "method", "but"])
