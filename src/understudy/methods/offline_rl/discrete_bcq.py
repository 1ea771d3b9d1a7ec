from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.categorical import Categorical
from ...learn.action_values import ActionValues, ActionValuesLearner
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import Policy, PolicyConfig
from ..needs import CLASSES, STEP_REWARDS
from ..registry import method

EXCLUDED = -1e9  # finite, because a logarithm of probabilities times 0 must be 0


@part
class FrequentClasses(Categorical):
    """Classes with a probability and a value each. The best value counts among the classes that are likely enough.

    Args:
        threshold: A class is left out if its probability is below this fraction of the largest one.
    """

    threshold: Annotated[float, AtLeast(0), AtMost(1)] = 0.3

    def build(self, trunk, coded_dim, spec):
        net = super().build(trunk, coded_dim, spec)
        net.trunk = trunk.build(0, 2 * coded_dim, 0, spec)
        return net

    def loss(self, net, context, action, mask, rng):
        """Cross-entropy of each step, (B, H)."""
        return -(self.outputs(net, context, action[..., :0])[0].log_softmax(-1) * action).sum(-1)

    def logits(self, net, context, like):
        """Returns the values of the classes, (B, H, classes), and a very low one for classes that are left out."""
        probable, values = self.outputs(net, context, like)
        ratio = (probable - probable.amax(-1, keepdim=True)).exp()
        return values.where(ratio >= self.threshold, EXCLUDED)

    def outputs(self, net, context, like) -> tuple[Tensor, Tensor]:
        """Returns the logits of the probabilities of the classes, and their values, (B, H, classes) each."""
        return net.trunk(like, like, context).chunk(2, -1)


@part
class DiscreteBCQ(ActionValues):
    """Double Q-learning among the classes that resemble the data, with the head `FrequentClasses`.

    Args:
        logit_weight: Weight of the mean square of the logits of the probabilities.

    References:
        Fujimoto et al. (2019), Benchmarking Batch Deep Reinforcement Learning Algorithms, arXiv:1910.01708.
    """

    logit_weight: Annotated[float, AtLeast(0)] = 0.01

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> DiscreteBCQLearner:
        if not isinstance(policy.config.head, FrequentClasses):
            raise Unsupported(f"{type(policy.config.head).__name__} does not say which classes are in the data",
                              where="DiscreteBCQ", hint="use the head FrequentClasses(), or train discrete-cql")
        return DiscreteBCQLearner(self, policy, seed, steps, data)


class DiscreteBCQLearner(ActionValuesLearner):
    """Learner of `DiscreteBCQ`."""

    config: DiscreteBCQ

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns that of double Q-learning plus the cross-entropy of the stored classes, (B,)."""
        logits, stored = self.outputs(self.policy, batch.obs)[0], self.policy.encode_batch(batch)[:, 0]
        cloning = -(logits.log_softmax(1) * stored).sum(1) + self.config.logit_weight * logits.square().mean(1)
        return super().value_loss(batch, rng) + cloning

    def values(self, policy, obs):
        return self.outputs(policy, obs)[1]

    def outputs(self, policy: Policy, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the logits of the probabilities of the classes, and their values, (B, classes) each."""
        context, head = policy.context(obs), policy.config.head
        assert isinstance(head, FrequentClasses)
        logits, values = head.outputs(policy.net, context, context.tokens.new_zeros(len(context.tokens), 1, 0))
        return logits[:, 0], values[:, 0]


@method("Fujimoto et al. 2019 (discrete BCQ), arXiv 1910.01708", needs=(CLASSES, STEP_REWARDS),
        when="if actions are classes, there are rewards and no environment, and rare actions must not be taken.")
def discrete_bcq(threshold: float = 0.3, features: Schema | None = None) -> Method:
    """Batch-constrained Q-learning for classes: the best of those that demonstrations take often enough.

    Args:
        threshold: A class is left out if its probability is below this fraction of the largest. 0 is double Q-learning,
            1 is cloning.
    """
    policy = PolicyConfig(FrequentClasses(threshold=threshold), FeedForward((256, 256)), simplest_encoder(features))
    return Method(policy, learner=DiscreteBCQ())
