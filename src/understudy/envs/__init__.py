"""Where policies act: bundled toys, and adapters to the simulators that others wrote."""

from .base import Env, HasExpert, Obs, PlanarMap, Renderable, Restorable, StepResult
from .registry import make, names

__all__ = ["Env", "HasExpert", "Obs", "PlanarMap", "Renderable", "Restorable", "StepResult", "make", "names"]
