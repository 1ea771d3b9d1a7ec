"""Environments in which policies act: bundled toys, and adapters to the simulators of other packages."""

from ..lazy_exports import lazy_exports

# A robot's keyboard and gamepad are of this package, and a robot needs no PyTorch to be moved by hand.
__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "Env": "base", "HasExpert": "base", "Obs": "base", "PlanarMap": "base", "Renderable": "base", "Restorable": "base",
    "StepResult": "base", "make": "registry", "names": "registry"})
