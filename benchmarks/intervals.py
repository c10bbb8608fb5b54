"""How often the 95 % intervals hold the true mean, and how often the permutation test cries wolf.

Data sets of n cases are drawn from distributions whose mean is known, and summarised by the functions that reports use.
An interval that keeps its promise holds the true mean in 95 % of the data sets. For the level of the test two runs are
drawn from the same distribution: at most 5 % of the comparisons should give p <= 0.05.

====================  =========================================================================================
normal                mean 0.85, standard deviation 0.05
beta                  Beta(9, 1): skewed, as Dice near 1 is
beta, failures        Beta(9, 1), and each case with a chance of 10 % a failure of Dice 0
beta, half failures   Beta(19, 1), and each case with a chance of 10 % from Beta(2, 2): anything between 0 and 1
====================  =========================================================================================

Usage::

    python benchmarks/intervals.py           # 4 000 repetitions, some minutes on one core
    python benchmarks/intervals.py --quick   # 400
    python benchmarks/intervals.py --json    # one line and nothing else
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medmdm.stats.comparison import sign_flip_test
from medmdm.stats.intervals import bca_interval, t_interval

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]

CASES = (8, 14, 20, 40, 80)
CONFIDENCE, LEVEL = 0.95, 0.05
RESAMPLES = 999  # of the test for many cases: its level does not depend on them, its time does
CHUNK = 200  # data sets that share their resamples


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.normal(0.85, 0.05, shape)


def beta(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.beta(9, 1, shape)


def failures(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.where(rng.random(shape) < 0.1, 0.0, rng.beta(9, 1, shape))


def half_failures(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.where(rng.random(shape) < 0.1, rng.beta(2, 2, shape), rng.beta(19, 1, shape))


DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (normal, 0.85),
    "beta": (beta, 0.9),
    "beta, failures": (failures, 0.9 * 0.9),
    "beta, half failures": (half_failures, 0.9 * 0.95 + 0.1 * 0.5),
}


def measure(draw: Draw, mean: float, n: int, repetitions: int, rng: np.random.Generator) -> dict[str, float]:
    """Return coverage and mean width of both intervals, and the level of the test, for n cases."""
    held: dict[str, list[NDArray[np.bool_]]] = {"t": [], "bca": []}
    widths: dict[str, list[Floats]] = {"t": [], "bca": []}
    found: list[NDArray[np.bool_]] = []
    for start in range(0, repetitions, CHUNK):
        shape = (min(CHUNK, repetitions - start), n)
        values, others = draw(rng, shape), draw(rng, shape)
        bounds = {
            "t": t_interval(values, CONFIDENCE),
            "bca": bca_interval(values, CONFIDENCE, seed=start),
        }
        for name, (low, high) in bounds.items():
            held[name].append((low <= mean) & (mean <= high))
            widths[name].append(high - low)
        p_values, _ = sign_flip_test(values - others, RESAMPLES, seed=start)
        found.append(np.asarray(p_values) <= LEVEL)
    result = {name: float(np.concatenate(parts).mean()) for name, parts in held.items()}
    result |= {f"{name}_width": float(np.concatenate(parts).mean()) for name, parts in widths.items()}
    return result | {"level": float(np.concatenate(found).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000, help="data sets for each line (default: 4000)")
    parser.add_argument("--quick", action="store_true", help="400 repetitions")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    repetitions = 400 if arguments.quick else arguments.repetitions
    if not arguments.json:
        print("| distribution | n | t covers (%) | BCa covers (%) | width of t | width of BCa | p ≤ 0.05 (%) |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for index, (name, (draw, mean)) in enumerate(DISTRIBUTIONS.items()):
        results[name] = {}
        for n in CASES:
            result = measure(draw, mean, n, repetitions, np.random.default_rng([arguments.seed, index, n]))
            results[name][str(n)] = result
            if not arguments.json:
                print(
                    f"| {name} | {n} | {100 * result['t']:.1f} | {100 * result['bca']:.1f} | {result['t_width']:.3f} | "
                    f"{result['bca_width']:.3f} | {100 * result['level']:.1f} |",
                    flush=True,
                )
    levels = [result["level"] for table in results.values() for result in table.values()]
    error = math.sqrt(LEVEL * (1 - LEVEL) / repetitions)
    if arguments.json:
        print(
            json.dumps(
                {
                    "repetitions": repetitions,
                    "results": results,
                    "highest_level": max(levels),
                    "level_within_monte_carlo_error": max(levels) <= LEVEL + 3 * error,
                }
            )
        )
    else:
        coverage_error = math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / repetitions)
        print(
            f"\nMonte Carlo error (one standard error) of a coverage of 95 %: {100 * coverage_error:.1f} %; of a level "
            f"of 5 %: {100 * error:.1f} %. Highest level of the {len(levels)} lines: {100 * max(levels):.1f} %."
        )


if __name__ == "__main__":
    main()
