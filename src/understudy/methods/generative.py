"""From noise to a chunk of actions in a few steps, and what was found to matter in that."""

from __future__ import annotations

from typing import Literal

from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.diffusion import Diffusion
from ..heads.flow import Flow
from ..heads.mip import MIP
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..nets.mlp import MLP
from ..nets.transformer import Transformer
from ..nets.unet import UNet
from ..policy import PolicyConfig


def diffusion_policy(
    trunk: Literal["unet", "transformer"] = "unet",
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["epsilon", "sample", "v"] = "sample",
) -> Method:
    """Diffusion policy: a chunk of actions is denoised in ten DDIM steps, half of it carried out.

    Paper: Chi et al. 2023, arXiv 2303.04137, which predicts the noise (prediction="epsilon") with a wider U-Net
    Rows: 260, 175
    Needs: actions that are numbers
    """
    # The action itself is learned in far fewer updates than the noise, as DP3 (Ze et al. 2024) found too.
    head, window = Diffusion(prediction=prediction), Window(n_obs_steps, horizon, action_offset=1 - n_obs_steps)
    net = UNet() if trunk == "unet" else Transformer(256, 8, 4, causal=True)
    learn = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, betas=(0.95, 0.999), warmup_steps=500))
    return Method(
        PolicyConfig(head, trunk=net, window=window), RecedingHorizon(n_action_steps, skip=n_obs_steps - 1), learn
    )


def flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A chunk of actions by flow matching: ten steps along the straight line from noise.

    Paper: Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003
    Rows: 028
    Needs: actions that are numbers
    """
    recipe = PolicyConfig(Flow(), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        recipe,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )


def mip(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Minimal iterative policy: a regression, and a second one that looks at the first answer. No randomness.

    Paper: Pan et al. 2025, arXiv 2512.01809
    Rows: 264
    Needs: actions that are numbers
    """
    recipe = PolicyConfig(MIP(), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        recipe,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
