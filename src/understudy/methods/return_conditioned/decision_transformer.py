from ...core import Schema
from ...data.column_changes import LastAction, ReturnToGo
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, REWARDS
from ..registry import method


@method("Chen et al. 2021, arXiv 2106.01345, with 100,000 updates and an embedding of the step within the episode; "
        "here within the history", needs=(NUMBERS_OR_CLASSES, REWARDS, "while acting: a desired return"),
        when="if the data are of mixed quality with rewards, and a history tells what to do.")
def decision_transformer(n_obs_steps: int = 20, target_return: float | None = None, discount: float = 1.0,
                         features: Schema | None = None) -> Method:
    """Decision Transformer: a causal transformer over returns to go, observations and actions predicts each action.

    Args:
        n_obs_steps: Number of steps of the history.
        target_return: Desired return while acting. None: --condition return_to_go=NUMBER gives it.
        discount: Discount of the return to go.
    """
    head, past = choose_head(features, Regression(), Categorical(temperature=1.0)), n_obs_steps - 1
    trunk = Transformer(128, 1, 1, "block_causal", encoder_depth=3, dropout=0.1)
    window = Window(n_obs_steps, n_obs_steps, action_offset=-past, obs_pad_mask=True)  # a loss at every step
    learner = BehaviorCloning(10_000, 64, optimizer=OptimizerConfig(
        lr=1e-4, weight_decay=1e-4, warmup_steps=1000, lr_schedule="constant", grad_clip_norm=0.25))
    return Method(PolicyConfig(head, trunk, TokenEncoder(128), window=window), RecedingHorizon(1, skip=past), learner,
                  (LastAction(), ReturnToGo(discount, target=target_return)))
