from ...data.augment import ModalityDropout
from ...data.column_changes import OptionalColumn
from ...data.text_columns import TaskText
from ...data.window import Goal, Window
from ...execute.chunking import RecedingHorizon
from ...heads.edm import EDM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.goal_losses import ContrastiveAlignment, Foresight
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.goal_encoder import GoalEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Reuss et al. 2024, arXiv 2407.05996, with images, pretrained encoders of images and words, half of each batch "
        "with words, and the prediction of masked patches of later images", rows=("375",),
        needs=(NUMBERS, "a task in words for some episodes", "while acting: a goal, or a task in words"),
        when="if goals are later observations for all episodes, and words for a few of them.")
def mdt(column: str = "observation.state", horizon: int = 10, n_action_steps: int = 10) -> Method:
    """Multimodal diffusion transformer: later observations and words are goals of one policy; few words are enough.

    Where an episode has no task in words, a later observation is the goal. The policy acts on either.

    Args:
        column: The column whose later values are goals.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    goals = goal, _ = "observation.goal", "observation.task"
    window = Window(1, horizon, goals=(Goal(column, into=goal, discount=0.9),))
    policy = PolicyConfig(EDM(10, sigma_min=0.001), Transformer(128, 4, 4, encoder_depth=2),
                          GoalEncoder(goals, TokenEncoder(128)), window=window, augmentations=(ModalityDropout(goals),))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.9), warmup_steps=100)
    losses = ContrastiveAlignment(*goals), Foresight(column)
    transforms = TaskText(optional=True), OptionalColumn(goal, like=column)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer,
                                                                           auxiliary_losses=losses), transforms)
