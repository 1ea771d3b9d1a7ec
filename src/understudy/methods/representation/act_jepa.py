from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...core import AtLeast, AtMost, Batch, Context, HeadSpec, Unsupported, part, unknown_name
from ...data.codec import Normalizer
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning, LaggedAuxiliaryLoss
from ...learn.method import Method
from ...learn.objectives.representation_objectives import TargetEncoder
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet, Trunk
from ...nets.encoders import TokenEncoder
from ...nets.pretrained.act import sequence_positions
from ...nets.transformer import Transformer, TransformerBlock, check_heads
from ...nets.vision import SmallConv, VisionEncoder
from ...policy import Policy, PolicyConfig
from ..registry import method


@part
class TransformerEncoder(Encoder):
    """Encoder with tokens of each column and observation step, which attend to each other.

    Steps have sinusoidal positions. Its module also encodes windows with other numbers of steps or fewer columns.
    """

    width: Annotated[int, AtLeast(1)] = 128
    depth: Annotated[int, AtLeast(0)] = 4
    heads: Annotated[int, AtLeast(1)] = 8
    vision: VisionEncoder = field(default_factory=SmallConv)

    def build(self, features, n_obs_steps):
        check_heads(self.width, self.heads, "TransformerEncoder")
        return _TransformerEncoderNet(self, features, n_obs_steps)


class _TransformerEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        columns = [TokenEncoder(config.width, vision=config.vision).build({k: f}, 1) for k, f in features.items()]
        self.columns, sizes = nn.ModuleList(columns), [column.tokens for column in columns]
        self.places = nn.ParameterList(0.02 * torch.randn(size, config.width) for size in sizes)
        blocks = Transformer(config.width, heads=config.heads)
        self.layers = nn.ModuleList(TransformerBlock(blocks, {"self"}, False) for _ in range(config.depth))
        self.norm, self.names = nn.LayerNorm(config.width), tuple(features)
        self.tokens, self.width = n_obs_steps * sum(sizes), config.width
        self.token_obs_steps = (n_obs_steps - 1,) * self.tokens

    def forward(self, obs, rng=None):
        """Returns the tokens, ordered by column, and within a column by step."""
        n_steps, device = next(iter(obs.values())).shape[1], self.norm.weight.device
        positions, tokens, masks = sequence_positions(n_steps, self.width).to(device), [], []
        for name, column, place in zip(self.names, self.columns, self.places, strict=True):
            if name in obs:
                context = column(obs, rng)
                tokens.append(context.tokens + (positions.unsqueeze(1) + place).flatten(0, 1))
                masks.append(context.mask)
        x, present = torch.cat(tokens, 1), torch.cat(masks, 1)
        attends = present[:, None, None] | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            x = layer(x, mask=attends)
        return Context(self.norm(x), present)


@part
class LatentPrediction(AuxiliaryLoss):
    """Auxiliary loss that predicts how a slow copy of the encoder encodes the coming observations.

    The copy reads the observations of all steps of the horizon as one sequence, the present one included, and its
    encodings are normalized. The loss is the mean absolute error over the steps that exist.

    Args:
        columns: Inputs of the policy that the copy reads, with one token a step: numbers, such as the robot's state.
        predictor: Network with one query for each step, which reads the encoding.
        target_decay: Fraction of the copy that each update keeps. The paper lets it rise to 1.

    References:
        Vujinovic and Kovacevic (2025), ACT-JEPA, arXiv:2501.14622.
        Assran et al. (2023), Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture,
        arXiv:2301.08243.
    """

    columns: tuple[str, ...] = ("observation.state",)
    predictor: Trunk = field(default_factory=lambda: Transformer(64, 1, 4))
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.996
    weight: Annotated[float, AtLeast(0)] = 1.0
    captures = ("context", "context_mask")

    def build(self, policy: Policy) -> LatentPredictionLoss:
        for name in self.columns:
            if name not in policy.inputs:
                raise unknown_name("input", name, policy.inputs, "LatentPrediction.columns", owner="the policy")
            if policy.features[name].kind == "image":
                raise Unsupported(f"{name!r} is an image, and coming images are not predicted",
                                  where="LatentPrediction.columns", hint="name inputs that are numbers")
        if not isinstance(policy.config.encoder, TransformerEncoder):
            raise Unsupported(f"{type(policy.config.encoder).__name__} does not encode a sequence of some of its "
                              "columns", where="LatentPrediction", hint="use the encoder TransformerEncoder")
        return LatentPredictionLoss(self, policy)


class LatentPredictionLoss(LaggedAuxiliaryLoss):
    """The loss function of `LatentPrediction`, with its predictor and the copy of the encoder."""

    def __init__(self, config: LatentPrediction, policy: Policy):
        super().__init__()
        self.config, encoder = config, policy.encoder
        self.target = TargetEncoder(policy, config.target_decay)
        spec = HeadSpec(policy.window.horizon, encoder.tokens, encoder.width, token_obs_steps=encoder.token_obs_steps)
        self.predictor = config.predictor.build(0, self.target_size(policy), 0, spec)

    def target_size(self, policy: Policy) -> int:
        """Returns the width of the target of a step."""
        return len(self.config.columns) * policy.encoder.width

    @torch.no_grad()
    def targets(self, policy: Policy, batch: Batch) -> Tensor:
        """Returns what is predicted of each step, (B, H, width)."""
        future = coming_observations(policy, batch, self.config.columns)
        present = {f"{name}?": batch.mask for name in future}
        tokens = self.target.encoder({**future, **present}).tokens
        steps = F.layer_norm(tokens, tokens.shape[-1:]).unflatten(1, (len(future), -1))
        return steps.transpose(1, 2).flatten(2)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        nothing = captured["context"].new_zeros(*batch.mask.shape, 0)
        prediction = self.predictor(nothing, nothing, Context(captured["context"], captured["context_mask"]))
        error = (prediction - self.targets(policy, batch)).abs().mean(-1) * batch.mask
        return self.config.weight * error.sum(1) / batch.mask.sum(1).clamp(min=1)

    def after_update(self, policy):
        self.target.update(policy)


def coming_observations(policy: Policy, batch: Batch, columns: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns coded observations at the steps of the horizon, (B, H, ...) each."""
    coded = policy.codec.encode_obs({**batch.obs, **{name: batch.extra[name] for name in columns}})
    return {name: coded[name] for name in columns}


@method("Vujinovic and Kovacevic 2025, arXiv 2501.14622, without the latent of ACT, as in the code that was read",
        rows=("067",),
        when="if a transformer clones chunks, and the observation holds much that does not matter; try `act` first.")
def act_jepa(horizon: int = 30, predicted: tuple[str, ...] = ("observation.state",)) -> Method:
    """Action chunking transformer whose encoder also predicts the encodings of coming observations (JEPA).

    Args:
        predicted: The observations whose encodings are predicted: numbers, such as the robot's state.
    """
    policy = PolicyConfig(Regression("l1"), Transformer(128, 1, 8), TransformerEncoder(),
                          codec=Normalizer(target="zscore"), window=Window(1, horizon))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=1e-4, warmup_steps=500)
    learner = BehaviorCloning(4000, 32, optimizer, auxiliary_losses=(LatentPrediction(predicted),))
    return Method(policy, RecedingHorizon(horizon), learner)
