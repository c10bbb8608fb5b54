from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from medmdm import stats
from medmdm.errors import UserError


def study(cases: np.ndarray, draws: np.ndarray, seeds: np.ndarray) -> pd.DataFrame:
    """Return the table of a study where effects of cases, draws and seeds (``[draws, seeds]``) add up."""
    return pd.DataFrame(
        {"case": f"c{c}", "draw": d, "seed": s, "value": case + draws[d] + seeds[d, s]}
        for c, case in enumerate(cases)
        for d in range(len(draws))
        for s in range(seeds.shape[1])
    )


PLAIN = study(np.array([0.5, 0.7]), np.zeros(1), np.zeros((1, 1)))


def test_each_spread_is_that_of_its_own_cause(rng: np.random.Generator) -> None:
    cases, draws, seeds = rng.normal(0.8, 0.1, 12), rng.normal(0, 0.05, 6), rng.normal(0, 0.01, (6, 5))
    seeds -= seeds.mean(1, keepdims=True)
    found = stats.spread(study(cases, draws, seeds).sample(frac=1, random_state=0))
    assert (found.n_cases, found.n_draws, found.n_seeds, found.undefined) == (12, 6, (5, 5), 0)
    assert found.mean == pytest.approx(cases.mean() + draws.mean())
    assert found.case_sd == pytest.approx(cases.std(ddof=1))
    assert found.seed_sd == pytest.approx(math.sqrt((seeds**2).sum() / (6 * 4)))
    assert found.draw_sd == pytest.approx(math.sqrt(draws.var(ddof=1) - found.seed_sd**2 / 5))


def test_seeds_are_not_mistaken_for_draws(rng: np.random.Generator) -> None:
    # Draws make no difference; the means of draws differ all the same, because of the seeds.
    nothing = np.zeros(300)
    found = stats.spread(study(np.array([0.8]), nothing, rng.normal(0, 0.03, (300, 3))))
    assert found.seed_sd == pytest.approx(0.03, rel=0.1)
    assert found.draw_sd < 0.01
    assert math.isnan(found.case_sd)
    both = stats.spread(study(np.array([0.8]), rng.normal(0, 0.02, 300), rng.normal(0, 0.03, (300, 3))))
    assert both.draw_sd == pytest.approx(0.02, rel=0.2)


def test_what_was_not_repeated_has_no_spread() -> None:
    found = stats.spread(PLAIN)
    expected = (0.6, 0.2 / math.sqrt(2), math.nan, math.nan)
    assert (found.mean, found.case_sd, found.draw_sd, found.seed_sd) == pytest.approx(expected, nan_ok=True)
    bare = stats.spread(PLAIN[["case", "value"]]).as_dict()
    assert bare == found.as_dict()
    assert json.loads(json.dumps(bare, allow_nan=False)) == bare
    assert bare["draw_sd"] is None


def test_uneven_numbers_of_seeds() -> None:
    table = study(np.array([0.5, 0.6]), np.array([0.0, 0.2]), np.array([[0.0, 0.02], [0.0, 9.0]]))
    found = stats.spread(table[(table["draw"] == 0) | (table["seed"] == 0)])
    mean = (0.56 + 0.75) / 2  # draws count the same: not two runs against one
    seeds = 0.02**2 / 2
    draws = 0.19**2 / 2 - seeds * (1 / 2 + 1) / 2
    assert found.n_seeds == (1, 2)
    assert (found.mean, found.seed_sd, found.draw_sd) == pytest.approx((mean, math.sqrt(seeds), math.sqrt(draws)))


def test_cases_that_a_run_lacks_are_left_out_and_counted() -> None:
    table = study(np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.0, 0.1]), np.zeros((2, 2)))
    expected = stats.spread(table[table["case"].isin(["c2", "c3"])])
    table.loc[(table["case"] == "c0") & (table["draw"] == 1), "value"] = [math.nan, math.inf]
    table = table.drop(table.index[(table["case"] == "c1") & (table["draw"] == 0) & (table["seed"] == 1)])
    found = stats.spread(table)
    assert (found.n_cases, found.undefined) == (2, 2)
    assert (found.mean, found.draw_sd) == pytest.approx((expected.mean, expected.draw_sd))
    nothing = stats.spread(table.assign(value=math.nan))
    assert (nothing.n_cases, nothing.undefined) == (0, 4)
    assert np.isnan([nothing.mean, nothing.draw_sd, nothing.seed_sd]).all()


def test_unusable_tables() -> None:
    with pytest.raises(UserError, match="no column 'dice': it has case, draw, seed, value"):
        stats.spread(PLAIN, value="dice")
    with pytest.raises(UserError, match="Case 'c0' occurs twice"):
        stats.spread(pd.concat([PLAIN, PLAIN.iloc[:1]]))
    with pytest.raises(UserError, match="no rows"):
        stats.spread(PLAIN.iloc[:0])
