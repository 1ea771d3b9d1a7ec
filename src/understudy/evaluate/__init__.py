"""How good is it, and how sure is that?"""

from .judge import across, compare, evaluate, verdict
from .rollout import rollout
from .stats import Interval

__all__ = ["Interval", "across", "compare", "evaluate", "rollout", "verdict"]
