"""Named sizes of trunks and encoders, from the papers that they come from."""

from __future__ import annotations

from typing import Literal, TypeVar

from ..core import unknown_name
from .base import Trunk
from .encoders import TokenEncoder
from .mlp import MLP
from .mlp_mixer import MLPMixer
from .point_cloud import PointNet
from .text_encoder import ByteEncoder
from .transformer import Transformer
from .unet import UNet
from .vision import ResNet

Size = Literal["small", "base", "large"]
T = TypeVar("T")

TRUNK_SIZES: dict[str, dict[str, Trunk]] = {
    # IDQL (Hansen-Estruch et al. 2023, arXiv:2304.10573) has one size, the smallest here. The others double its width.
    "mlp": {"small": MLP(256, 3), "base": MLP(512, 3), "large": MLP(1024, 3)},
    # Simple DP3 (Ze et al. 2024, arXiv:2403.03954), Diffusion Policy (Chi et al. 2023, arXiv:2303.04137), and DP3.
    "unet": {"small": UNet((128, 256, 384)), "base": UNet((256, 512, 1024), time_width=256),
             "large": UNet((512, 1024, 2048))},
    # DiT-S, DiT-B and DiT-L (Peebles and Xie 2023, arXiv:2212.09748).
    "transformer": {"small": Transformer(384, 12, 6), "base": Transformer(768, 12, 12),
                    "large": Transformer(1024, 24, 16)},
    # BeT (Shafiullah et al. 2022, arXiv:2206.11251), Octo-Small and Octo-Base (Octo Model Team 2024, arXiv:2405.12213).
    "causal_transformer": {"small": Transformer(72, 4, 4, "block_causal"),
                           "base": Transformer(384, 12, 6, "block_causal"),
                           "large": Transformer(768, 12, 12, "block_causal")},
    # Mixer-S, Mixer-B and Mixer-L (Tolstikhin et al. 2021, arXiv:2105.01601).
    "mlp_mixer": {"small": MLPMixer(512, 8), "base": MLPMixer(768, 12), "large": MLPMixer(1024, 24)},
}

ENCODER_SIZES: dict[str, TokenEncoder] = {
    # The widths come from DiT-S, DiT-B and DiT-L. Octo has the first two as well. ResNet-18, -34 and -50 (He et al.
    # 2016, arXiv:1512.03385): Diffusion Policy uses ResNet-18, VINN ResNet-50. PointNet: as in DP3, twice as wide, and
    # the original (Qi et al. 2017, arXiv:1612.00593). The encoder of bytes is our own. Its width doubles from size to
    # size.
    "small": TokenEncoder(384, vision=ResNet(), text=ByteEncoder(64), points=PointNet()),
    "base": TokenEncoder(768, vision=ResNet(depth=34), text=ByteEncoder(128), points=PointNet((128, 256, 512))),
    "large": TokenEncoder(1024, vision=ResNet(depth=50), text=ByteEncoder(256),
                          points=PointNet((64, 64, 64, 128, 1024))),
}


def sized_trunk(kind: str, size: Size = "small") -> Trunk:
    """Returns a trunk of a published size.

    The sizes suit large data sets. For the toys and a CPU, the defaults of the trunks are better.

    Args:
        kind: ``"mlp"``, ``"unet"``, ``"transformer"`` (as DiT), ``"causal_transformer"`` (with a loss at every row of
            the history: ``Window(n_obs_steps=K, horizon=K, action_offset=1 - K)``), or ``"mlp_mixer"``.

    Example:
        >>> policy = PolicyConfig(Flow(), trunk=sized_trunk("transformer", "base"), encoder=TokenEncoder(256))
    """
    return _named(_named(TRUNK_SIZES, "kind", kind, "sized_trunk"), "size", size, "sized_trunk")


def sized_encoder(size: Size = "small") -> TokenEncoder:
    """Returns an encoder of tokens of a published size: for vectors, classes, images, texts and point clouds.

    The columns that `TokenEncoder.point_clouds` names are read as point clouds. The sizes suit large data sets. They go
    with transformers from `sized_trunk` of the same size. For the toys and a CPU, the defaults of `TokenEncoder` are
    better.

    Example:
        >>> encoder = replace(sized_encoder("base"), point_clouds=("observation.point_cloud",))
    """
    return _named(ENCODER_SIZES, "size", size, "sized_encoder")


def _named(table: dict[str, T], word: str, name: str, where: str) -> T:
    if name not in table:
        raise unknown_name(word, name, table, where)
    return table[name]
