"""Evaluation: how good a policy is, and how certain that is."""

from .evaluation import aggregate_seeds, compare, evaluate, verdict
from .rollout import rollout
from .stats import Interval

__all__ = ["Interval", "aggregate_seeds", "compare", "evaluate", "rollout", "verdict"]
