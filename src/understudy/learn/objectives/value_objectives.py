"""Objectives that learn values of goals from data without actions and rewards."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, cast

import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, AtMost, Batch, UserError, part
from ...nets.ema import EMA, ConstantDecay
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy
from ..behavior_cloning import LaggedAuxiliaryLoss
from .representation_objectives import RepresentationObjective, TargetEncoder, encoding_size, flat_encoding

OUTCOME, INTENT = "observation.outcome", "observation.intent"  # goals of the window, which the encoder does not read
N_VALUES = 2


@part
class IntentionValue(RepresentationObjective):
    """Objective that learns how soon an outcome is reached by whoever acts with an intent (ICVF).

    The value is minus a discounted number of steps, ``V(s, s+, z) = A(T(z) * phi(s)) . B(T(z) * psi(s+))``. Here phi is
    the encoder, z is psi of the intent, and A, B are linear. No actions and rewards are read. The policy reads one
    column, and its window draws two goals of this column that are not inputs: ``Goal(column, "observation.outcome")``
    and ``Goal(column, "observation.intent")``.

    Args:
        expectile: Weight of transitions that are good for the intent. All other transitions have the weight ``1 -
            expectile``.
        discount: Per step. Outcomes that are never reached have the value ``-1 / (1 - discount)``.
        same: Fraction of the windows whose outcome is the intent. 1 learns a plain value of goals (GCIVL).
        intents: False learns the outcomes of the behavior in the data, without intents, to compare with.
        target_decay: Fraction of the target networks that each update keeps.

    References:
        Ghosh et al. (2023), Reinforcement Learning from Passive Data via Latent Intentions, arXiv:2304.04782.
    """

    expectile: Annotated[float, AtLeast(0), AtMost(1)] = 0.9
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.95
    same: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    intents: bool = True
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256, 256)
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    weight: float = 1.0

    next_obs = True

    def build(self, policy):
        if missing := [name for name in (OUTCOME, INTENT) if name not in {g.into for g in policy.window.goals}]:
            raise UserError(f"the window draws no goal {missing[0]!r}", where=type(self).__name__,
                            hint=f"add it: Window(goals=(Goal({policy.inputs[0]!r}, {OUTCOME!r}), "
                                 f"Goal({policy.inputs[0]!r}, {INTENT!r}))), and name the inputs of the policy")
        return _IntentionValueLoss(self, policy)


class _IntentionValueLoss(LaggedAuxiliaryLoss):
    def __init__(self, config: IntentionValue, policy: Policy):
        super().__init__()
        self.config, self.column = config, policy.inputs[0]
        self.networks = _ValueNetworks(policy, config)
        self.target = TargetEncoder(policy, config.target_decay)
        self.average = EMA(self.networks, ConstantDecay(config.target_decay))
        self.target_networks = cast(_ValueNetworks, self.average.module)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        assert batch.next is not None
        config, phi = self.config, flat_encoding(captured)
        is_same = torch.rand(len(batch), generator=rng, device=phi.device) < config.same
        coded = {name: policy.codec.encode_obs({self.column: batch.extra[name]}) for name in (OUTCOME, INTENT)}
        outcome = {k: torch.where(_like(is_same, x), coded[INTENT][k], x) for k, x in coded[OUTCOME].items()}
        reached = {name: batch.extra[f"{name}.reached"][:, 0] for name in (OUTCOME, INTENT)}
        reached[OUTCOME] = torch.where(is_same, reached[INTENT], reached[OUTCOME])
        with torch.no_grad():
            next_phi, old_phi = (self.target(policy, obs, rng) for obs in (batch.next, batch.obs))
            backup = self._backup(self.target_networks(next_phi, outcome, coded[INTENT]), reached[OUTCOME])
            own = self._backup(self.target_networks(next_phi, coded[INTENT], coded[INTENT]).amin(0), reached[INTENT])
            advantage = own - self.target_networks(old_phi, coded[INTENT], coded[INTENT]).mean(0)
        weight = (config.expectile - (advantage < 0).float() * config.intents).abs()
        value = self.networks(phi, outcome, coded[INTENT])
        return config.weight * (weight * (backup - value).square()).sum(0)

    def _backup(self, next_value: Tensor, reached: Tensor) -> Tensor:
        """Returns the value targets: the reward is -1 until the observation is the goal, and nothing follows then."""
        return torch.where(reached, 0.0, self.config.discount * next_value - 1)

    def after_update(self, policy):
        self.target.update(policy)
        self.average.update(self.networks)


class _ValueNetworks(nn.Module):
    """The value networks psi, T, A and B of ICVF, twice."""

    def __init__(self, policy: Policy, config: IntentionValue):
        super().__init__()
        size = encoding_size(policy)
        self.intents, self.psi = config.intents, copy.deepcopy(policy.encoder)
        self.transform = feed_forward_layers((size, *config.hidden, size))
        self.state_maps, self.outcome_maps = (
            nn.ModuleList(nn.Linear(size, size) for _ in range(N_VALUES)) for _ in range(2))

    def forward(self, phi: Tensor, outcome: Mapping[str, Tensor], intent: Mapping[str, Tensor]) -> Tensor:
        """Returns the values, (2, B), of encodings (B, D) and coded observations (B, 1, ...)."""
        psi = self.psi(outcome).flat()
        z = self.psi(intent).flat()
        gate = self.transform(z if self.intents else torch.ones_like(z))
        return torch.stack([(a(gate * phi) * b(gate * psi)).sum(-1)
                            for a, b in zip(self.state_maps, self.outcome_maps, strict=True)])


def _like(mask: Tensor, x: Tensor) -> Tensor:
    """Reshapes the mask (B,) to as many axes as x."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))
