from __future__ import annotations

from typing import Annotated, cast

from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.likelihood.categorical import Categorical
from ...learn.critics.action_values import ActionValues, ActionValuesLearner, of_first_step
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
        of_values = self.width if self.draw_levels else self.n_quantiles * coded_dim
        net.trunk = trunk.build(0, coded_dim + of_values, 0, spec)
        return net

    def loss(self, net, context, action, mask, rng):
        """Cross-entropy of each step, (B, H)."""
        return -(self.outputs(net, context, action[..., :0])[0].log_softmax(-1) * action).sum(-1)

    def logits(self, net, context, like):
        """Returns the values of the classes, (B, H, classes), and a very low one for classes that are left out."""
        probable, quantiles = self.outputs(net, context, like)
        ratio = (probable - probable.amax(-1, keepdim=True)).exp()
        return quantiles.mean(0).where(ratio >= self.threshold, EXCLUDED)

    def quantiles(self, net, context, like, levels=None):
        return self.outputs(net, context, like, levels)[1]

    def outputs(self, net, context, like, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the logits of the probabilities of the classes, (B, H, classes), and the quantiles of their values,
        (n_quantiles, B, H, classes)."""
        outputs = net.trunk(like, like, context)
        probable, values = outputs.tensor_split((sum(net.num_classes),), -1)
        return probable, self.split_quantiles(net, values, levels)


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
        head, stored = cast(FrequentClasses, self.policy.config.head), self.policy.encode_batch(batch)[:, 0]
        logits = head.outputs(*of_first_step(self.policy, batch.obs))[0][:, 0]
        cloning = -(logits.log_softmax(1) * stored).sum(1) + self.config.logit_weight * logits.square().mean(1)
        return super().value_loss(batch, rng) + cloning


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
