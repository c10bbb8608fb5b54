"""Statistics over cases: means, intervals, paired tests, spread."""

from medmdm.stats.comparison import Comparison, holm, paired, sign_flip_test, with_holm
from medmdm.stats.intervals import (
    RiskCoverage,
    bca_interval,
    bootstrap_interval,
    crossed_interval,
    jackknife_interval,
    json_ready,
    risk_coverage,
    t_interval,
)
from medmdm.stats.spread import Spread, spread
from medmdm.stats.statistics import PAPER_LABELS, Summary, count_empty, paper_block, subgroups, summarise

__all__ = [
    "PAPER_LABELS", "Comparison", "RiskCoverage", "Spread", "Summary", "bca_interval", "bootstrap_interval",
    "count_empty", "crossed_interval", "holm", "jackknife_interval", "json_ready", "paired", "paper_block",
    "risk_coverage", "sign_flip_test", "spread", "subgroups", "summarise", "t_interval", "with_holm",
]  # fmt: skip
