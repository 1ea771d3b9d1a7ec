"""understudy: imitation learning from demonstrations of any origin."""

from importlib import import_module

__version__ = "0.2.0"

_WHERE = {
    "Batch": "core", "Feature": "core", "UserError": "core",
    "Dataset": "data.episode", "Episode": "data.episode", "ColumnSource": "data.episode", "Window": "data.window",
    "open_dataset": "data.formats",
    "Policy": "policy", "PolicyConfig": "policy",
    "Actor": "execute.actor", "PolicyActor": "execute.actor", "RecedingHorizon": "execute.chunking",
    "Method": "learn.method", "load_actor": "learn.method", "load_policy": "learn.method",
    "train": "learn.train", "fit": "learn.fit",
    "make": "envs", "rollout": "evaluate.rollout", "compare": "evaluate.evaluation",
}  # no name that a subpackage has (evaluate): Python would give the one or the other, depending on what was imported
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    # Importing torch takes a second; `import understudy` must not. Names are found when they are used.
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'understudy' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
