from ...heads.memory.neighbors import Neighbors
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import ConcatEncoder
from ...nets.vision import ResNet
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Pari et al. 2021, arXiv 2112.01511, whose network was trained further on the images alone", rows=("079",),
        needs=(NUMBERS_OR_CLASSES, "for cameras the weights of a ResNet-18 (the extra hub)"),
        when="if there are few demonstrations with cameras and a pretrained image network; its gain is undecided "
             "here.")
def vinn(n_neighbors: int = 5, weights: str = "hf://timm/resnet18.a1_in1k") -> Method:
    """Visual imitation by nearest neighbors: nearer actions count more, by the features of a fixed image network.

    Args:
        n_neighbors: Number of situations. Nearer ones count more.
        weights: The weights of the image network, a ResNet-18.
    """
    policy = PolicyConfig(Neighbors(n_neighbors), encoder=ConcatEncoder(ResNet(weights, pool="mean")))
    return Method(policy, learner=BehaviorCloning(steps=1))
