"""Named sizes of trunks, from the papers that they come from."""

from __future__ import annotations

from typing import Literal

from ..core import ConfigError
from .base import Trunk
from .mlp import MLP
from .mlp_mixer import MLPMixer
from .transformer import Transformer
from .unet import UNet

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


def sized_trunk(kind: str, size: Literal["small", "base", "large"] = "small") -> Trunk:
    """Return a trunk of a published size.

    The sizes suit large data sets. For the toys and a CPU, the defaults of the trunks are better.

    Args:
        kind: ``"mlp"``, ``"unet"``, ``"transformer"`` (as DiT), ``"causal_transformer"`` (with a loss at every row of
            the history: ``Window(n_obs_steps=K, horizon=K, action_offset=1 - K)``), or ``"mlp_mixer"``.
        size: ``"small"``, ``"base"`` or ``"large"``.

    Raises:
        ConfigError: There is no such kind or size.

    Example:
        >>> policy = PolicyConfig(Flow(), trunk=sized_trunk("transformer", "base"), encoder=TokenEncoder(256))
    """
    if kind not in TRUNK_SIZES:
        raise ConfigError(f"There is no kind {kind!r} of trunk.", where="sized_trunk",
                          hint=f"Use one of {', '.join(TRUNK_SIZES)}.")
    if size not in TRUNK_SIZES[kind]:
        raise ConfigError(f"There is no size {size!r}.", where="sized_trunk",
                          hint=f"Use one of {', '.join(TRUNK_SIZES[kind])}.")
    return TRUNK_SIZES[kind][size]
