from dataclasses import replace

from ...core import DataError, Schema
from ...data.window import Goal, Window
from ...learn.method import Method, Stage
from ...learn.objectives.representation import RepresentationLearning
from ...learn.objectives.value_objectives import INTENT, OUTCOME, IntentionValue
from ..needs import SOME_ACTIONS
from ..registry import method
from .dynamo import dynamo


@method("Ghosh et al. 2023 (ICVF), arXiv 2304.04782, who train the encoder on recordings of others: --prior",
        rows=("098",), needs=(SOME_ACTIONS,),
        when="if many recordings to different goals have no actions (--prior).")
def icvf(column: str = "observation.state", discount: float = 0.99, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which was trained on values of all outcomes for all intents.

    The encoder learns from all episodes, also from those without actions.

    Args:
        column: The only column that is read. Its later values are outcomes and intents.
    """
    if features is not None and column not in features:
        raise DataError(f"the data have no column {column!r}; the columns are {', '.join(features)}",
                        where="icvf, column", hint="name an observation of these: --column COLUMN")
    base = dynamo(features=features)
    policy = replace(base.policy, inputs=(column,))
    outcome = Goal(column, OUTCOME, p_curgoal=0.2, p_randomgoal=0.3)
    passive = replace(policy, target="", window=Window(goals=(outcome, replace(outcome, into=INTENT))))
    learner = RepresentationLearning((IntentionValue(discount=discount),))
    return replace(base, policy=policy, stages=(Stage("encoder", Method(passive, learner=learner)),))
