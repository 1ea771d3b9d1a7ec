from ...core import Schema
from ...data.augment import camera_jitter
from ...heads.memory.neighbors import Neighbors
from ...learn.method import Method
from ...learn.objectives.representation import RepresentationLearning
from ...learn.objectives.representation_objectives import BYOL
from ...nets.encoders import TokenEncoder
from ...policy import PolicyConfig
from ..needs import CAMERAS, NUMBERS
from ..registry import method


@method("Pari et al. 2021, arXiv 2112.01511, whose network is a ResNet-50 from ImageNet", rows=("079",),
        needs=(NUMBERS, CAMERAS),
        when="if there are few demonstrations with cameras and no pretrained image network.")
def vinn_byol(n_neighbors: int = 5, crop: int = 4, features: Schema | None = None) -> Method:
    """Visual imitation by nearest neighbors, in the features of an encoder that learns from the images by BYOL.

    Args:
        n_neighbors: Number of situations. Nearer ones count more.
        crop: Pixels that are cut off each side of an image, at a random place in training.
        features: The columns of the data. The colors of each camera are changed in training.
    """
    policy = PolicyConfig(Neighbors(n_neighbors), encoder=TokenEncoder(crop=crop),
                          augmentations=camera_jitter(features))
    return Method(policy, learner=RepresentationLearning((BYOL(),)))
