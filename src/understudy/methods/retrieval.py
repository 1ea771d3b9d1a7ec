"""Nothing is trained: what was done in the most similar situations is done again."""

from __future__ import annotations

from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.neighbors import Neighbors
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..nets.encoders import ConcatEncoder
from ..nets.vision import ResNet18
from ..policy import PolicyConfig


def knn(n_neighbors: int = 1, n_obs_steps: int = 1, horizon: int = 8, n_action_steps: int = 4) -> Method:
    """Nearest neighbors: the mean chunk of the `count` most similar situations; with one, a replay of the nearest.

    Paper: Cover and Hart 1967; as a policy in Pari et al. 2021, arXiv 2112.01511
    Rows: 079
    Needs: observations and actions that are numbers or choices
    """
    recipe = PolicyConfig(
        Neighbors(n_neighbors, weights="equal"), encoder=ConcatEncoder(), window=Window(n_obs_steps, horizon)
    )
    return Method(recipe, RecedingHorizon(n_action_steps), BehaviorCloning(steps=1))


def vinn(n_neighbors: int = 5, weights: str = "hf://timm/resnet18.a1_in1k") -> Method:
    """Visual imitation by nearest neighbors: near actions count more, by the features of a fixed image network.

    Paper: Pari et al. 2021, arXiv 2112.01511, whose network went on learning from the pictures alone
    Rows: 079
    Needs: actions that are numbers or choices; for cameras the weights of a ResNet-18 (the extra hub)
    """
    recipe = PolicyConfig(
        Neighbors(n_neighbors), encoder=ConcatEncoder(ResNet18(weights, pool="mean")), window=Window(1, 1)
    )
    return Method(recipe, RecedingHorizon(), BehaviorCloning(steps=1))
