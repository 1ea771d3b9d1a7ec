from __future__ import annotations

from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.likelihood.categorical import Categorical
from ...learn.algorithm import Net, loss
from ...learn.critics.action_values import ActionValues, of_first_step
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import Policy, PolicyConfig
from ..needs import CLASSES, STEP_REWARDS
from ..registry import method

EXCLUDED = -1e9  # finite, because a logarithm of probabilities times 0 must be 0


@part
class FrequentClasses(Categorical):
    """Head with a probability and a value for each class. It takes the best class among the likely ones.

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
        """Returns the cross-entropy of each step, (B, H)."""
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


@method("Fujimoto et al. 2019 (discrete BCQ), arXiv 1910.01708", needs=(CLASSES, STEP_REWARDS),
        when="if actions are classes, there are rewards and no environment, and rare actions must not be taken.")
@part
class DiscreteBCQ(ActionValues):
    """Batch-constrained Q-learning for classes: the best of those that demonstrations take often enough.

    The head `FrequentClasses` decides which classes are frequent enough. It clones the data.

    Args:
        logit_weight: Weight of the mean square of the logits of the probabilities.

    References:
        Fujimoto et al. (2019), Benchmarking Batch Deep Reinforcement Learning Algorithms, arXiv:1910.01708.
    """

    logit_weight: Annotated[float, AtLeast(0)] = 0.01

    def method(self, features: Schema | None = None, threshold: float = 0.3) -> Method:
        """Returns the method of this learner.

        Args:
            threshold: A class is left out if its probability is below this fraction of the largest. 0 is double
                Q-learning, 1 is cloning.
        """
        policy = PolicyConfig(FrequentClasses(threshold=threshold), FeedForward((256, 256)), simplest_encoder(features))
        return Method(policy, learner=self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(policy.config.head, FrequentClasses):
            raise Unsupported(f"{type(policy.config.head).__name__} does not say which classes are in the data",
                              where="DiscreteBCQ", hint="use the head FrequentClasses(), or train discrete-cql")
        return super().networks(policy, data)

    @loss("policy")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of double Q-learning plus the cross-entropy of the stored classes, (B,)."""
        stored = nets.policy.encode_batch(batch)[:, 0]
        logits = nets.policy.config.head.outputs(*of_first_step(nets.policy, batch.obs))[0][:, 0]
        cloning = -(logits.log_softmax(1) * stored).sum(1) + self.logit_weight * logits.square().mean(1)
        values, logged = super().value_loss(nets, batch, rng)
        return values + cloning, logged
