"""Retrieval: the actions of the most similar situations, alone or together with what is trained."""

from __future__ import annotations

from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.mcnn import MCNN
from ..heads.neighbors import Neighbors
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..nets.encoders import ConcatEncoder
from ..nets.feed_forward import FeedForward
from ..nets.vision import ResNet18
from ..policy import PolicyConfig


def knn(n_neighbors: int = 1, n_obs_steps: int = 1, horizon: int = 8, n_action_steps: int = 4) -> Method:
    """Nearest neighbors: the mean chunk of the most similar situations.

    Args:
        n_neighbors: Number of situations. With one, its chunk is replayed.
        n_obs_steps: Number of observations that are compared.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(
        Neighbors(n_neighbors, weights="equal"), encoder=ConcatEncoder(), window=Window(n_obs_steps, horizon)
    )
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(steps=1))


def vinn(n_neighbors: int = 5, weights: str = "hf://timm/resnet18.a1_in1k") -> Method:
    """Visual imitation by nearest neighbors, by the features of a fixed image network.

    Args:
        n_neighbors: Number of situations. Nearer ones count more.
        weights: The weights of the image network, a ResNet-18.
    """
    policy = PolicyConfig(
        Neighbors(n_neighbors), encoder=ConcatEncoder(ResNet18(weights, pool="mean")), window=Window(1, 1)
    )
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=1))


def mcnn(memory_fraction: float = 0.1, decay: float = 10.0, n_obs_steps: int = 1, horizon: int = 1) -> Method:
    """Memory-consistent network: near a stored example its action, farther away a bounded network.

    Args:
        memory_fraction: Number of stored examples, as a fraction of the steps of the data.
        decay: Inverse distance at which the weight of a stored example is 1 / e.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk. All are executed before the next plan.
    """
    policy = PolicyConfig(MCNN(memory_fraction, decay), trunk=FeedForward(), encoder=ConcatEncoder(),
                          window=Window(n_obs_steps, horizon))
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(steps=5000, batch_size=256))
