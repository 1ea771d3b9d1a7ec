from dataclasses import replace
from typing import Literal

from ...execute.planners import KernelDensity, SampleSelector
from ...heads.denoising.diffusion import Diffusion
from ...heads.solvers import DDPM
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Pearce et al. 2023 (Diffusion-X, Diffusion-KDE), arXiv 2301.10677, with another network and noise schedule",
        rows=("260",),
        when="if demonstrations act in several ways and the robot must look after every action.")
def diffusion_bc(choice: Literal["plain", "extra-steps", "densest"] = "extra-steps", n_obs_steps: int = 2) -> Method:
    """Diffusion cloning of single actions, which takes a likely one by extra steps or as the densest of many.

    Args:
        choice: "plain" executes a sample, "extra-steps" moves it to a likely action by 8 more steps without noise
            (Diffusion-X), "densest" takes that of 100 samples to which the others are nearest (Diffusion-KDE).
    """
    head = Diffusion(50, DDPM(), 50, n_extra_steps=8 if choice == "extra-steps" else 0)
    inference = (SampleSelector(scorer=KernelDensity(0.1), n=100),) if choice == "densest" else ()
    base = flow_policy(n_obs_steps, horizon=1, n_action_steps=1)
    return replace(base, policy=replace(base.policy, head=head), inference=inference)
