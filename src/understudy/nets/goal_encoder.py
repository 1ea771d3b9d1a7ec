"""Goal encoder: one token for the goal, whether it is given as an observation, in words or by a class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..core import Context, UserError
from .base import Encoder, EncoderNet
from .encoders import TokenEncoder
from .linear import Linear


@dataclass(frozen=True)
class GoalEncoder(Encoder):
    """Tokens of all columns but the goals, and for each observation step one token of the goal.

    Several columns can give the goal, such as a later observation and a sentence. Each has its own encoder and its own
    two layers, and all write the same token: the mean over the columns that are present. So the trunk learns how to
    reach goals from all of them. The token is masked where no goal is present.

    `data.augment.ModalityDropout` trains with one goal at a time, `learn.goal_losses.ContrastiveAlignment` gives the
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
        for name in self.goals:
            if name not in features:
                raise UserError(f"The policy does not read a column {name!r}. It reads {', '.join(features)}.",
                                where="GoalEncoder.goals", hint="Name only inputs of the policy.")
        if not self.goals or len(self.goals) == len(features):
            raise UserError("Some inputs of the policy must be goals, and some must not.", where="GoalEncoder.goals",
                            hint="Name the columns that give the goal.")
        return _GoalEncoderNet(self, features, n_obs_steps)

    def check_policy(self, codec, augmentations):
        self.encoder.check_policy(codec, augmentations)


class _GoalEncoderNet(EncoderNet):
    goals: Any  # nn.ModuleList, which does not say of what: encoders

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
