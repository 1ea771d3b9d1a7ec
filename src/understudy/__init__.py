"""understudy: imitation learning from demonstrations of any origin."""

from .lazy_exports import lazy_exports

__version__ = "0.3.0"
# No name that a subpackage has (evaluate): Python would give the one or the other, depending on what was imported.
__getattr__, __dir__, __all__ = lazy_exports(__name__, {
    "Batch": "core", "Feature": "core", "UserError": "core",
    "Dataset": "data.episode", "Episode": "data.episode", "ColumnSource": "data.episode", "Window": "data.window",
    "open_dataset": "data.formats",
    "Policy": "policy", "PolicyConfig": "policy",
    "Actor": "execute.actor", "PolicyActor": "execute.actor", "RecedingHorizon": "execute.chunking",
    "Method": "learn.method", "load_actor": "learn.method", "load_policy": "learn.method",
    "train": "learn.train", "fit": "learn.fit",
    "make": "envs", "rollout": "evaluate.rollout", "compare": "evaluate.evaluation",
})
