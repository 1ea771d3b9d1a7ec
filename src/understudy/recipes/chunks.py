"""Long chunks of actions, and what is done where they overlap."""

from __future__ import annotations

from ..data.codec import Scaled
from ..data.window import Window
from ..execute.chunked import Receding
from ..execute.ensemble import Ensemble
from ..heads.cvae import CVAE
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.transformer import Transformer
from ..policy import Recipe


def act(horizon: int = 30, ensemble: bool = False) -> Method:
    """Action chunking transformer: a conditional autoencoder of long chunks; `ensemble` averages where they overlap.

    Paper: Zhao et al. 2023, arXiv 2304.13705, whose chunks are 100 steps at 50 Hz, four times as wide
    Rows: 158
    Needs: actions that are numbers
    """
    trunk = Transformer(128, 1, 8, encoder_depth=4)
    recipe = Recipe(CVAE(), trunk=trunk, codec=Scaled(target="zscore"), window=Window(1, horizon))
    learn = Cloning(steps=4000, batch=32, optim=Optim(rate=3e-4, decay=1e-4, warmup=500))
    return Method(recipe, Ensemble(0.01) if ensemble else Receding(horizon), learn)
