from ...checkpoint import FromStage
from ...core import Schema
from ...data.text_columns import ThoughtText
from ...execute.planners import Hierarchical
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...nets.encoders import TokenEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, THOUGHTS
from ..registry import method


@method("Hu and Clune 2023, arXiv 2306.00323, which trains both policies together, on thoughts of its own in later "
        "epochs, with recurrent networks and words one after the other", rows=("272",),
        needs=(NUMBERS_OR_CLASSES, THOUGHTS),
        when="if the expert says at each step what it is doing; its gain over cloning is undecided here.")
def thought_cloning(column: str = "thought", max_bytes: int = 64, width: int = 256, steps: int = 5000,
                    features: Schema | None = None) -> Method:
    """Thought cloning: one policy predicts what the expert thinks, as text, and another reads it and acts.

    Args:
        column: Column with the thought of the expert at each step, as text.
        max_bytes: Number of bytes of a thought.
        width: Width of the two hidden layers of both policies.
        steps: Number of updates of each of them.
    """
    predicted_text, observed_text = ThoughtText(column, max_bytes, "thought.text"), ThoughtText(column, max_bytes)
    trunk, learner = FeedForward((width, width)), BehaviorCloning(steps, 64)
    think = PolicyConfig(Categorical(), trunk, TokenEncoder(), target=predicted_text.into)
    act = PolicyConfig(choose_head(features, Regression(), Categorical(temperature=1.0)), trunk, TokenEncoder())
    return Method(act, learner=learner, transforms=(observed_text,),
                  stages=(Stage("thoughts", Method(think, learner=learner, transforms=(predicted_text,))),),
                  inference=(Hierarchical(FromStage("thoughts"), as_key=observed_text.into),))
