from ...core import DataError, Schema
from ...data.missing_actions import KnownActions, PlaceholderActions
from ...data.relabel import ConcatColumns
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...execute.joint_plans import JointPlanner
from ...heads.denoising.joint_diffusion import JointDiffusion
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..needs import NUMERIC_STATES, SOME_NUMBERS
from ..registry import method


def _action_size(features: Schema | None) -> int | None:
    if features is not None and "action" not in features:
        raise DataError("the first episode has no actions, so that their number of components is unknown",
                        where="action", hint="name the data with actions first, and those without them with --prior")
    return None if features is None else features["action"].size


@method("Zhu et al. 2025 (UWM), arXiv 2504.02792, with videos behind a frozen autoencoder, a transformer of 12 layers, "
        "DDPM, and pretraining on DROID", rows=("350",), needs=(SOME_NUMBERS, NUMERIC_STATES),
        when="if one network should also predict what actions do; where few episodes have actions, `vpt` succeeded "
             "more often.")
def uwm(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8, column: str = "observation.state",
        ahead: int = 1, features: Schema | None = None) -> Method:
    """Unified world model: diffusion of actions and states, with a time for each, also where actions are unknown.

    Args:
        column: The column of states that are predicted with the actions.
        ahead: Each action is predicted with the state this many steps later.
    """
    marks, joint = KnownActions(), ConcatColumns(("action", column), ahead, known_column=KnownActions.into)
    policy = PolicyConfig(JointDiffusion(_action_size(features)), MLP(512, 3), window=Window(n_obs_steps, horizon),
                          target=joint.into)
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps), learner, (marks, PlaceholderActions(), joint),
                  inference=(JointPlanner(),))
