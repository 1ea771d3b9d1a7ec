from ...data.augment import RandomMasking
from ...data.column_changes import TimeLeft
from ...data.relabel import ConcatColumns
from ...data.window import Window
from ...execute.planners import MaskedGoalPlanner
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS, NUMERIC_STATES
from ..registry import method


@method("Liu et al. 2022 (MaskDP), arXiv 2211.12740, which trains a network of width 256 on 64 steps with states of "
        "length 1 as targets", rows=("288",),
        needs=(NUMBERS, NUMERIC_STATES, "while acting: a goal, and the number of steps until then"),
        when="if goals are given with the number of steps until then.")
def maskdp(horizon: int = 32, time_left: int | None = None, ratios: tuple[float, ...] = (0.15, 0.35, 0.55, 0.75, 0.95),
           column: str = "observation.state") -> Method:
    """Masked decision prediction: complete trajectories with hidden states and actions, and act towards a goal.

    Args:
        horizon: Number of steps of a trajectory. Goals are at most horizon - 1 steps away.
        time_left: Number of steps in which the goal is to be reached. None: --condition time_left=NUMBER gives it.
        ratios: Fractions of hidden states and actions. Each window draws one.
        column: The column of states. Goals are values of it.
    """
    entries, joint = (column, "action"), ConcatColumns(("action", column), offset=0)
    window = Window(horizon, horizon, obs_offset=horizon - 1, obs_pad_mask=True)
    policy = PolicyConfig(Regression(), Transformer(128, 2, 4, encoder_depth=3), TokenEncoder(128), window=window,
                          inputs=entries, target=joint.into, augmentations=(RandomMasking(entries, ratios),))
    learner = BehaviorCloning(20_000, 128, OptimizerConfig(lr=3e-4, warmup_steps=500))
    return Method(policy, learner=learner, transforms=(joint, TimeLeft(length=time_left)),
                  inference=(MaskedGoalPlanner(column=column),))
