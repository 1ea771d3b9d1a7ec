from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch.nn.functional import normalize

from ...core import Above, AtLeast, DataError, Feature, Schema, part
from ...data.episode import Dataset, LabeledEpisodes
from ...data.operations import Operation
from ...data.shown_demonstration import DEMONSTRATION, ShowDemonstration, numeric_observations, task_of
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...nets.base import Context, Encoder, EncoderNet, record_intermediate
from ...nets.encoders import check_kinds, observed_column
from ...nets.feed_forward import FeedForward, feed_forward_layers
from ...policy import PolicyConfig
from ..needs import NUMBERS, OBSERVED_NUMBERS
from ..registry import method


@part
class StyleEncoder(Encoder):
    """Encoder whose features of the observation are changed by the style of a shown demonstration.

    The submodules are "content", which makes the features, "style", which makes a vector of length 1 of the frames of
    the demonstration, and "blocks", whose output for both is added to the features. The style is recorded as "style"
    (B, 1, style_width), for auxiliary losses.

    Args:
        style_width: Number of components of the style.

    References:
        Liu et al. (2022), Towards Robust and Adaptive Motion Forecasting, arXiv:2111.14820.
    """

    width: Annotated[int, AtLeast(1)] = 64
    style_width: Annotated[int, AtLeast(1)] = 8

    def build(self, features, n_obs_steps):
        return _StyleEncoderNet(self, features, n_obs_steps)


class _StyleEncoderNet(EncoderNet):
    def __init__(self, config: StyleEncoder, features: Schema, n_obs_steps: int):
        super().__init__()
        check_kinds("StyleEncoder", features, ("vector",), "Leave the column out of inputs.")
        self.shown = tuple(name for name in features if name.startswith(DEMONSTRATION))
        self.observed = tuple(name for name in features if name not in self.shown)
        if not (self.shown and self.observed):
            raise DataError(f"the policy reads {'nothing besides' if self.shown else 'no'} frames of a demonstration",
                            where="StyleEncoder",
                            hint="let ShowDemonstration add the frames, and name them in inputs with observations")
        sizes = [sum(features[name].size for name in names) for names in (self.observed, self.shown)]
        self.content = feed_forward_layers((n_obs_steps * sizes[0], config.width, config.width))
        self.style = feed_forward_layers((sizes[1], config.width, config.style_width))
        self.blocks = feed_forward_layers((config.width + config.style_width, config.width, config.width))
        self.tokens, self.width, self.token_obs_steps = 1, config.width, (n_obs_steps - 1,)

    def forward(self, obs, rng=None):
        observed, frames = (torch.cat([observed_column(obs, name)[0].flatten(2) for name in names], -1)
                            for names in (self.observed, self.shown))
        content, style = self.content(observed.flatten(1)), normalize(self.style(frames[:, -1]), dim=-1)
        record_intermediate("style", style.unsqueeze(1))
        tokens = (content + self.blocks(torch.cat([content, style], -1))).unsqueeze(1)
        return Context(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool))


@part
class NumberTasks(Operation):
    """Adds a column with the number of each episode's task, among the tasks of the data."""

    into: str = "place"

    def apply(self, data: Dataset) -> Dataset:
        _, numbers = np.unique([task_of(episode) for episode in data], return_inverse=True)
        return Dataset(LabeledEpisodes(data, {self.into: Feature("int64", (1,))}, lambda i: {
            self.into: np.full((data.lengths[i], 1), numbers[i])}), data.metadata)


@part
class StyleContrast(AuxiliaryLoss):
    """Auxiliary loss that pulls styles of one environment together, and pushes styles of different ones apart.

    It is the cross-entropy of the other windows of the same place, among all others of the batch.

    Args:
        column: Column with the number of the place, of which the first predicted step counts.
        temperature: What the inner products of styles are divided by.

    References:
        Khosla et al. (2020), Supervised Contrastive Learning, arXiv:2004.11362.
    """

    column: str = "place"
    weight: Annotated[float, AtLeast(0)] = 1.0
    temperature: Annotated[float, Above(0)] = 0.07

    captures = ("style",)

    @property
    def columns(self):
        return (self.column,)

    def build(self, policy):
        def loss(policy, batch, rng, captured):
            style, place = captured["style"][:, 0], batch.extra[self.column].reshape(batch.mask.shape)[:, :1]
            itself = torch.eye(len(style), dtype=torch.bool, device=style.device)
            log_share = (style @ style.T / self.temperature).masked_fill(itself, -torch.inf).log_softmax(1)
            alike = (place == place.T) & ~itself
            return -self.weight * log_share.masked_fill(~alike, 0).sum(1) / alike.sum(1).clamp(min=1)
        return loss


@method("Liu et al. 2022, arXiv 2111.14820, with one demonstration of the place in place of a batch of other scenes",
        rows=("388",), needs=(NUMBERS, OBSERVED_NUMBERS, "several episodes of each of many tasks, which have a name",
                              "while acting: a demonstration"),
        when="if each place has a style, and a new one few demonstrations.")
def style_bc(inputs: tuple[str, ...] = (), n_frames: int = 8, features: Schema | None = None) -> Method:
    """Behavior cloning that reads the style of an environment from one demonstration, and adapts to it.

    The name of the place is the task of an episode.

    Args:
        inputs: Observed columns of numbers that the policy reads, also of the demonstration. Empty for all that the
            data have.
    """
    inputs = inputs or numeric_observations(features or {}) or ("observation.state",)
    show = ShowDemonstration(inputs, n_frames)
    policy = PolicyConfig(Regression(), FeedForward((64,)), StyleEncoder(), inputs=(*inputs, *show.into))
    learner = BehaviorCloning(batch_size=128, auxiliary_losses=(StyleContrast(),))
    return Method(policy, RecedingHorizon(), learner, (show, NumberTasks()))
