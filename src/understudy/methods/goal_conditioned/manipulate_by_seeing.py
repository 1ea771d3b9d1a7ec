from __future__ import annotations

from dataclasses import field

import torch

from ...core import Context, part
from ...data.window import Goal, Window
from ...heads.energy.motion_classifier import MotionClassifier, encodings
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import TokenEncoder, observed_column
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method

GOAL = Goal("").into


@part
class SharedGoalEncoder(Encoder):
    """Encoder that encodes an observation and its goal ("observation.goal") with the same network."""

    encoder: Encoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        return _SharedGoalEncoderNet(self, features, n_obs_steps)


class _SharedGoalEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        (self.name,) = features.keys() - {GOAL}
        self.body = config.encoder.build({self.name: features[self.name]}, 2 * n_obs_steps)
        self.tokens, self.width = self.body.tokens, self.body.width
        self.token_obs_steps = tuple(step % n_obs_steps for step in self.body.token_obs_steps)

    def forward(self, obs, rng=None):
        both = zip(*(observed_column(obs, name) for name in (self.name, GOAL)), strict=True)
        rows, present = (torch.cat(parts, 1) for parts in both)
        return self.body({self.name: rows, f"{self.name}?": present}, rng)


@part
class MotionPrediction(AuxiliaryLoss):
    """Auxiliary loss: squared distance of the predicted to the true encoding after the demonstrated chunk.

    It is 0 for a chunk that the end of the episode cuts off.
    """

    captures, next_obs, reads_actions = ("context", "context_mask"), True, True

    def build(self, policy):
        return _motion_error


def _motion_error(policy, batch, rng, captured):
    context = Context(captured["context"], captured["context_mask"])
    prediction = policy.config.head.predict(policy.net, context, policy.encode_batch(batch))
    error = (prediction - encodings(policy.training_context(batch.next, rng))[0]).square().mean(-1)
    return error * batch.mask.all(1)


@method("Wang et al. 2023, arXiv 2303.08135, whose encoder is pretrained", rows=("282",), needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, and each motion in its direction comes closer to it; `gcbc` was better "
             "on small pictures.")
def manipulate_by_seeing(column: str = "observation.state", n_motions: int = 64, horizon: int = 4,
                         temperature: float = 0.1) -> Method:
    """Takes the motion whose predicted result looks most like the goal, by distances that classify motions.

    Args:
        column: The column that is observed, and whose later values are goals: a camera, or numbers.
        horizon: Number of actions of a motion.
        n_motions: Number of motions, the centers of clusters of demonstrated chunks.
        temperature: Temperature of the classification.
    """
    policy = PolicyConfig(MotionClassifier(n_motions, temperature), FeedForward((128, 128)), SharedGoalEncoder(),
                          window=Window(1, horizon, goals=(Goal(column),)), inputs=(column, GOAL))
    return Method(policy, learner=BehaviorCloning(5000, auxiliary_losses=(MotionPrediction(),)))
