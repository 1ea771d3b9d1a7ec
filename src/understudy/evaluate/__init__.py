"""How good is it, and how sure is that?"""

from .evaluation import aggregate_seeds, compare, evaluate, verdict
from .rollout import rollout
from .stats import Interval

__all__ = ["Interval", "aggregate_seeds", "compare", "evaluate", "rollout", "verdict"]
