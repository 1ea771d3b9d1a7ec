from typing import Literal

from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.diffusion import Diffusion
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.in_context import InContextTransformer
from ...policy import PolicyConfig
from ..registry import method


@method("Hou et al. 2024 (Dita), arXiv 2410.15959, which predicts the noise, with a network of 12 layers of width 768, "
        "images, words and pretraining", rows=("352",),
        when="if several ways and context must be weighed at every denoising step, and a transformer is affordable.")
def dit_policy(
    n_obs_steps: int = 2, horizon: int = 10, n_action_steps: int = 5, causal: bool = True,
    prediction: Literal["epsilon", "sample", "v"] = "sample",
) -> Method:
    """Diffusion transformer policy: context, time and noisy actions are tokens of one causal transformer.

    Args:
        causal: Each token reads only those before it. False lets the actions of a chunk read each other.
        prediction: What the network predicts: the noise, the action itself, or the velocity.
    """
    policy = PolicyConfig(Diffusion(prediction=prediction), InContextTransformer(128, 4, 4, causal), TokenEncoder(128),
                          window=Window(n_obs_steps, horizon))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer))
