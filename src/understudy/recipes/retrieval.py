"""Nothing is trained: what was done in the most similar situations is done again."""

from __future__ import annotations

from ..data.window import Window
from ..execute.chunked import Receding
from ..heads.neighbors import Neighbors
from ..learn.clone import Cloning
from ..learn.method import Method
from ..nets.encoders import Flat
from ..nets.vision import ResNet18
from ..policy import Recipe


def knn(count: int = 1, obs: int = 1, horizon: int = 8, execute: int = 4) -> Method:
    """Nearest neighbours: the mean chunk of the `count` most similar situations; with one, a replay of the nearest.

    Paper: Cover and Hart 1967; as a policy in Pari et al. 2021, arXiv 2112.01511
    Rows: 079
    Needs: observations and actions that are numbers or choices
    """
    recipe = Recipe(Neighbors(count, weights="equal"), encoder=Flat(), window=Window(obs, horizon))
    return Method(recipe, Receding(execute), Cloning(steps=1))


def vinn(count: int = 5, weights: str = "hf://timm/resnet18.a1_in1k") -> Method:
    """Visual imitation by nearest neighbours: near actions count more, by the features of a fixed image network.

    Paper: Pari et al. 2021, arXiv 2112.01511, whose network went on learning from the pictures alone
    Rows: 079
    Needs: actions that are numbers or choices; for cameras the weights of a ResNet-18 (the extra hub)
    """
    recipe = Recipe(Neighbors(count), encoder=Flat(ResNet18(weights, pool="mean")), window=Window(1, 1))
    return Method(recipe, Receding(), Cloning(steps=1))
