from ...core import ConfigError
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.tokens.behavior_transformer import BeT
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("Shafiullah et al. 2022, arXiv 2206.11251, with a loss at every observation of the history", rows=("284",),
        when="if demonstrations act in several ways that form clusters of actions.")
def bet(n_obs_steps: int = 5, n_clusters: int = 24, horizon: int = 1, n_action_steps: int = 1,
        every_step: bool = False) -> Method:
    """Behavior transformer: choose a cluster of demonstrated actions, then correct its center.

    Args:
        n_obs_steps: Number of observations that the policy reads. Its history keeps it in the mode that it chose.
        horizon: Number of actions in a chunk. More than one are clustered as chunks.
        every_step: As in the paper, predict an action from each observation of the history and those before it: as many
            losses for a window as it has observations. Only the action for the newest one is executed.

    Raises:
        ConfigError: Chunks are longer than one action, and `every_step` is set.
    """
    if every_step and (horizon, n_action_steps) != (1, 1):
        raise ConfigError(f"every_step predicts one action for each observation, and horizon is {horizon}, "
                          f"n_action_steps {n_action_steps}", where="bet.every_step", hint="leave both at 1")
    past = n_obs_steps - 1 if every_step else 0
    window = Window(n_obs_steps, past + horizon, action_offset=-past, obs_pad_mask=every_step)
    trunk = Transformer(72, 4, 4, "block_causal") if every_step else Transformer(72, 4, 4)
    policy = PolicyConfig(BeT(n_clusters, joint=not every_step), trunk, TokenEncoder(72), window=window)
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, weight_decay=0.1, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps, skip=past), learner)
