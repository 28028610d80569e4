"""How far a reward source can be trusted, and whether its variance is worth anything (docs/diagnose.md)."""

from surefoot.diagnosis.run import check_source, diagnose, mean_rewards
from surefoot.diagnosis.scored import ScoredComparisons, score_comparisons

__all__ = [
    "ScoredComparisons",
    "check_source",
    "diagnose",
    "mean_rewards",
    "score_comparisons",
]
