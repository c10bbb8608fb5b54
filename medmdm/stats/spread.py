"""What makes a score vary: which cases are scored, which images were labelled, which seed the classifier had."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medmdm.errors import UserError
from medmdm.stats.intervals import Result


@dataclass(frozen=True)
class Spread(Result):
    """Three standard deviations of one metric that must not be mixed up.

    Args:
        mean: over all cases and runs, every draw of labelled images counting the same.
        case_sd: between cases, each averaged over all runs: how unlike the images are. NaN with one case.
        draw_sd: between draws of the labelled images (support), of the mean over cases, with what the seeds add taken
            out: how much depends on which images were labelled. NaN with one draw; 0 where the seeds explain it all.
        seed_sd: between seeds of the same draw, of the mean over cases: the "±" of most papers, and the smallest of
            the three. NaN where no draw has two seeds.
        n_cases: cases with a finite value in every run.
        n_draws: draws.
        n_seeds: the fewest and the most seeds that a draw has.
        undefined: cases left out, because a run has no finite value for them or lacks them.
    """

    mean: float
    case_sd: float
    draw_sd: float
    seed_sd: float
    n_cases: int
    n_draws: int
    n_seeds: tuple[int, int]
    undefined: int


def spread(
    table: pd.DataFrame, value: str = "value", case: str = "case", draw: str = "draw", seed: str = "seed"
) -> Spread:
    """Take the spread of a study of several runs apart.

    The variance between draws is that of a one-way analysis of variance with seeds nested in draws.

    Args:
        table: one row for each case of each run.
        value: column of the metric.
        case: column that names the case.
        draw: column that names the draw of labelled images; without such a column all runs share one.
        seed: column that names the seed; without such a column there is one a draw.

    Raises:
        UserError: a column is missing, there are no rows, or a case occurs twice in a run.
    """
    for column in (value, case):
        if column not in table.columns:
            raise UserError(f"The table of runs has no column {column!r}: it has {', '.join(map(str, table.columns))}.")
    rows = pd.DataFrame({"case": table[case].astype(str), "value": table[value].astype(float)})
    rows["draw"] = table[draw].astype(str) if draw in table.columns else ""
    rows["seed"] = table[seed].astype(str) if seed in table.columns else ""
    if rows.empty:
        raise UserError("The table of runs has no rows: give at least one run.")
    twice = rows[rows.duplicated(["case", "draw", "seed"])]
    if len(twice):
        name, in_draw, in_seed = twice.iloc[0][["case", "draw", "seed"]]
        raise UserError(f"Case {name!r} occurs twice in the run of draw {in_draw!r} and seed {in_seed!r}.")
    wide = rows.pivot(index="case", columns=["draw", "seed"], values="value")
    complete = wide[np.isfinite(wide).all(axis=1)]
    runs = complete.mean()
    by_draw = runs.groupby(level="draw")
    sizes, means = by_draw.size(), by_draw.mean()
    freedom = int((sizes - 1).sum())
    seed_variance = float((by_draw.var(ddof=1).fillna(0) * (sizes - 1)).sum() / freedom) if freedom else math.nan
    draw_variance = float(means.var(ddof=1)) if len(means) > 1 else math.nan
    if freedom:
        draw_variance -= seed_variance * float((1 / sizes).mean())
    per_case = complete.T.groupby(level="draw").mean().mean()
    some = len(complete) > 0
    return Spread(
        mean=float(means.mean()),
        case_sd=float(per_case.std(ddof=1)),
        draw_sd=math.sqrt(max(draw_variance, 0.0)) if some and len(means) > 1 else math.nan,
        seed_sd=math.sqrt(seed_variance) if some and freedom else math.nan,
        n_cases=len(complete),
        n_draws=len(means),
        n_seeds=(int(sizes.min()), int(sizes.max())),
        undefined=len(wide) - len(complete),
    )
