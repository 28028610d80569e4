"""Diagnose a reward source: accuracy, calibration, and whether its variance predicts its errors (docs/diagnose.md)."""

from surefoot.diagnosis.data_seen import keep_held_out
from surefoot.diagnosis.run import check_source, diagnose, mean_rewards
from surefoot.diagnosis.scored import ScoredComparisons, score_comparisons

__all__ = [
    "ScoredComparisons",
    "check_source",
    "diagnose",
    "keep_held_out",
    "mean_rewards",
    "score_comparisons",
]
