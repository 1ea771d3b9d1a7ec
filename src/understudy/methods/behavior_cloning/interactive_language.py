from ...core import Schema
from ...data.segments import ColumnSegments, CutSegments, StoredSegments
from ...data.text_columns import TaskText
from ...data.window import Window
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import TokenEncoder
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, SUBTASKS
from ..registry import method


@method("Lynch et al. 2022 (Interactive Language), arXiv 2210.06407, with four images, attention from the words to "
        "them, frozen CLIP words and far larger networks", rows=("280",), needs=(NUMBERS_OR_CLASSES, SUBTASKS),
        when="if long recordings are labeled piece by piece, and a person gives new instructions while the robot "
             "acts.")
def interactive_language(column: str | None = "subtask", max_bytes: int = 64, extra_steps: int = 0,
                         features: Schema | None = None) -> Method:
    """Behavior cloning of labeled segments of long recordings, for instructions that may change at every step.

    Args:
        column: Column of text that says what is done at each step. Each run of the same text is a segment. None takes
            the segments in the metadata of each episode, which may overlap: see `StoredSegments`.
        max_bytes: Number of bytes of an instruction.
        extra_steps: Number of steps to keep after the end of each segment. Where another task begins at once, they
            would show the wrong one.
    """
    detector = StoredSegments() if column is None else ColumnSegments(column)
    # One observation: in a longer history, an old instruction would still be read after it has changed.
    policy = PolicyConfig(choose_head(features, Regression()), MLP(), TokenEncoder(), window=Window())
    return Method(policy, learner=BehaviorCloning(steps=10_000),
                  transforms=(CutSegments(detector, extra_steps), TaskText(max_bytes)))
