from typing import Literal

from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.diffusion import Diffusion
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.transformer import Transformer
from ...nets.unet import UNet
from ...policy import PolicyConfig
from ..registry import method


@method('Chi et al. 2023, arXiv 2303.04137, which predicts the noise (prediction="epsilon") with a wider U-Net',
        rows=("260", "175"),
        when="if demonstrations act in several ways, and time for ten evaluations of a large network in each plan is "
             "there.")
def diffusion_policy(
    trunk: Literal["unet", "transformer"] = "unet",
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["epsilon", "sample", "v"] = "sample",
) -> Method:
    """Diffusion policy: a chunk of actions is denoised in ten DDIM steps, and half of it is carried out.

    Args:
        trunk: The network, "unet" or "transformer".
        prediction: What the network predicts: the noise, the action itself, or the velocity.
    """
    # The action itself is learned in far fewer updates than the noise, as DP3 (Ze et al. 2024) found too.
    head, window = Diffusion(prediction=prediction), Window(n_obs_steps, horizon, action_offset=1 - n_obs_steps)
    net = UNet() if trunk == "unet" else Transformer(256, 8, 4, causal=True)
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, betas=(0.95, 0.999), warmup_steps=500))
    return Method(
        PolicyConfig(head, trunk=net, window=window), RecedingHorizon(n_action_steps, skip=n_obs_steps - 1), learner
    )
