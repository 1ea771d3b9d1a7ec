from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...core import AtLeast, Batch, Context, UserError, part
from ...data.augment import ModalityDropout
from ...data.column_changes import OptionalColumn
from ...data.text_columns import TaskText
from ...data.window import Goal, Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.edm import EDM
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...learn.objectives.representation_objectives import NetworkObjective, encoding_size, flat_encoding
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import TokenEncoder, check_inputs
from ...nets.feed_forward import feed_forward_layers
from ...nets.linear import Linear
from ...nets.transformer import Transformer
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@dataclass(frozen=True)
class GoalEncoder(Encoder):
    """Encoder with tokens of all columns but the goals, and one token of the goal for each observation step.

    Several columns can give the goal, such as a later observation and a sentence. Each has its own encoder and its own
    two layers, and all write the same token: the mean over the columns that are present. So the trunk learns how to
    reach goals from all of them. The token is masked where no goal is present.

    `data.augment.ModalityDropout` trains with one goal at a time, `ContrastiveAlignment` gives the
    same token to different goals of one window.

    Args:
        goals: Columns that give the goal. An image or a longer text counts by the mean of its tokens.
        encoder: Encoder of the other columns, and of each goal alone.

    References:
        Reuss et al. (2024), Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals,
        arXiv:2407.05996.
    """

    goals: tuple[str, ...] = ("observation.goal", "observation.task")
    encoder: TokenEncoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        check_inputs(features, self.goals, "GoalEncoder.goals")
        if not self.goals or len(self.goals) == len(features):
            raise UserError("Some inputs of the policy must be goals, and some must not.", where="GoalEncoder.goals",
                            hint="Name the columns that give the goal.")
        return _GoalEncoderNet(self, features, n_obs_steps)


class _GoalEncoderNet(EncoderNet):
    goals: Any  # an nn.ModuleList of encoders; its type does not say of what

    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        others = {name: f for name, f in features.items() if name not in config.goals}
        self.encoder, self.n_obs_steps = config.encoder.build(others, n_obs_steps), n_obs_steps
        self.goals = nn.ModuleList(config.encoder.build({g: features[g]}, n_obs_steps) for g in config.goals)
        self.width = width = self.encoder.width
        self.layers = nn.ModuleList(nn.Sequential(Linear(width, width), nn.GELU(), Linear(width, width))
                                    for _ in config.goals)
        self.token_obs_steps = (*self.encoder.token_obs_steps, *range(n_obs_steps))
        self.tokens = len(self.token_obs_steps)

    @property
    def cached_features(self):
        return {name: f for net in (self.encoder, *self.goals) for name, f in net.cached_features.items()}

    def forward(self, obs, rng=None):
        context = self.encoder(obs, rng)
        tokens, masks = [], []
        for net, layers in zip(self.goals, self.layers, strict=True):
            goal = net(obs, rng)  # the tokens of one step are adjacent
            tokens.append(layers(goal.tokens.unflatten(1, (self.n_obs_steps, -1)).mean(2)))
            masks.append(goal.mask.unflatten(1, (self.n_obs_steps, -1)).any(2))
        present = torch.stack(masks)  # (goals, B, To)
        weights = (present / present.sum(0).clamp(min=1)).unsqueeze(-1)
        goal = (torch.stack(tokens) * weights.to(tokens[0].dtype)).sum(0)
        return Context(torch.cat([context.tokens, goal], 1), torch.cat([context.mask, present.any(0)], 1),
                       context.named)


@part
class ContrastiveAlignment(AuxiliaryLoss):
    """Auxiliary loss that aligns two goals of the same window (contrastive latent alignment, CLA).

    The window is encoded twice, with one goal each, and each context is pooled by attention. A symmetric InfoNCE loss
    with a learned temperature finds the second pooled context of a window among the pooled contexts of the batch.
    Windows that do not have both goals get no loss and are not negatives. Two windows with the same `second` goal, such
    as the same sentence, are not negatives of each other.

    Args:
        first: Column of one goal, such as a later observation.
        second: Column of the other goal, such as a sentence. Only some windows need to have it: ``"<second>?"``.

    References:
        Reuss et al. (2024), Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals,
        arXiv:2407.05996 (weight 1; the same sentences are negatives).
        Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
    """

    first: str = "observation.goal"
    second: str = "observation.task"
    weight: float = 1.0

    def build(self, policy: Policy) -> nn.Module:
        """Builds the module that computes the loss of each window, (B,)."""
        check_inputs(policy.inputs, (self.first, self.second), "ContrastiveAlignment")
        return _ContrastiveAlignmentLoss(self, policy)


class _ContrastiveAlignmentLoss(nn.Module):
    def __init__(self, config: ContrastiveAlignment, policy: Policy):
        super().__init__()
        self.config = config
        width = policy.encoder.width
        self.attention, self.projector = nn.Linear(width, 1), feed_forward_layers((width, width, width), "gelu")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        first, second = self.config.first, self.config.second
        obs = policy.augment(batch.obs, rng)
        present = {name: batch.obs.get(name + "?", torch.ones(obs[name].shape[:2], dtype=torch.bool,
                                                              device=obs[name].device)) for name in (first, second)}
        hidden = {name + "?": torch.zeros_like(present[first]) for name in (first, second)}
        one, other = (F.normalize(self._pool(policy.context({**obs, **hidden, name + "?": present[name]},
                                                            rng if policy.training else None)), dim=-1)
                      for name in (first, second))
        logits = self.log_scale.exp() * one @ other.T
        logits = logits.masked_fill(~self._pairs(batch.obs[second], present), -torch.inf)
        rows = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, rows, reduction="none") + F.cross_entropy(logits.T, rows, reduction="none")
        return self.config.weight * loss / 2

    def _pairs(self, second: Tensor, has_goal: Mapping[str, Tensor]) -> Tensor:
        """Returns which pairs of windows are compared, (B, B). A window without both goals is compared with itself."""
        one, other = has_goal.values()
        has_both = (one & other)[:, -1]
        goals = second[:, -1].flatten(1) if second.ndim > 2 else second[:, -1:]
        same = (goals.unsqueeze(1) == goals).all(-1)
        itself = torch.eye(len(has_both), dtype=torch.bool, device=has_both.device)
        return itself | (has_both[:, None] & has_both & ~same)

    def _pool(self, context: Context) -> Tensor:
        score = self.attention(context.tokens).squeeze(-1).masked_fill(~context.mask, -1e9)
        return self.projector((score.softmax(-1).unsqueeze(-1) * context.tokens).sum(1))


@part
class Foresight(NetworkObjective):
    """Auxiliary loss that predicts the observation after the chunk from observation and goal (generative foresight).

    The encoding of a goal must then say where the goal leads. The loss is the squared error of the coded column.

    Args:
        column: What is predicted: an observed column of numbers.

    References:
        Reuss et al. (2024), Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals,
        arXiv:2407.05996, which predicts the masked patches of an image three steps ahead (weight 1).
    """

    column: str = "observation.state"
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (128,)
    weight: float = 1.0
    next_obs = True

    def networks(self, policy):
        if self.column not in policy.inputs or policy.features[self.column].kind != "vector":
            raise UserError(f"The policy does not read numbers from a column {self.column!r}. It reads "
                            f"{', '.join(policy.inputs)}.", where="Foresight.column",
                            hint="Name an observed column of numbers.")
        sizes = encoding_size(policy), *self.hidden, policy.features[self.column].size
        return {"predictor": feed_forward_layers(sizes)}

    def loss(self, networks, policy, batch, rng, captured):
        target = policy.codec.encode_obs(batch.next)[self.column][:, -1].flatten(1)
        prediction = networks.predictor(flat_encoding(captured))
        return self.weight * (prediction - target).square().mean(-1)


@method("Reuss et al. 2024, arXiv 2407.05996, with images, pretrained encoders of images and words, half of each batch "
        "with words, and the prediction of masked patches of later images", rows=("375",),
        needs=(NUMBERS, "a task in words for some episodes", "while acting: a goal, or a task in words"),
        when="if goals are later observations for all episodes, and words for a few of them.")
def mdt(column: str = "observation.state", horizon: int = 10, n_action_steps: int = 10) -> Method:
    """Multimodal diffusion transformer: later observations and words are goals of one policy; few words are enough.

    Where an episode has no task in words, a later observation is the goal. The policy acts on either.
    """
    goals = goal, _ = "observation.goal", "observation.task"
    window = Window(1, horizon, goals=(Goal(column, into=goal, discount=0.9),))
    policy = PolicyConfig(EDM(10, sigma_min=0.001), Transformer(128, 4, 4, encoder_depth=2),
                          GoalEncoder(goals, TokenEncoder(128)), window=window, augmentations=(ModalityDropout(goals),))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.9), warmup_steps=100)
    losses = ContrastiveAlignment(*goals), Foresight(column)
    transforms = TaskText(optional=True), OptionalColumn(goal, like=column)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer,
                                                                           auxiliary_losses=losses), transforms)
