"""Where policies act: bundled toys, and adapters to the simulators that others wrote."""

from importlib import import_module

_WHERE = {"Env": "base", "HasExpert": "base", "Obs": "base", "PlanarMap": "base", "Renderable": "base",
          "Restorable": "base", "StepResult": "base", "make": "registry", "names": "registry"}
__all__ = list(_WHERE)


def __getattr__(name: str):
    # A robot's keyboard and gamepad are of this package, and a robot needs no PyTorch to be moved by hand.
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
