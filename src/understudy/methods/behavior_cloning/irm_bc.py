from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from ...core import AtLeast, Batch, Unsupported, part
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, PLACES
from ..registry import method


@part
class RiskInvariance(AuxiliaryLoss):
    """Auxiliary loss that penalizes a different mean loss in different environments (invariant risk minimization).

    Args:
        column: Column with the number of the place, of which the first predicted step counts.
        form: ``"irm"``: the square of the derivative of a place's risk by a factor on the prediction, averaged over
            places. It is estimated without bias by the product of the derivatives of two halves of the place's
            windows. The head must be a `Regression`. ``"rex"``: the variance of the risks over places, for any head.

    References:
        Arjovsky et al. (2019), Invariant Risk Minimization, arXiv:1907.02893, for "irm".
        Krueger et al. (2021), Out-of-Distribution Generalization via Risk Extrapolation, arXiv:2003.00688, for "rex".
    """

    column: str = "place"
    form: Literal["irm", "rex"] = "irm"
    weight: Annotated[float, AtLeast(0)] = 1.0

    @property
    def columns(self):
        return (self.column,)

    def build(self, policy: Policy):
        if self.form == "irm" and not isinstance(policy.config.head, Regression):
            raise Unsupported(f"the output of {type(policy.config.head).__name__} is not a prediction that a factor "
                              "can scale", where="RiskInvariance", hint='use the head Regression, or form="rex"')

        def loss(policy, batch, rng, captured):
            place = batch.extra[self.column].reshape(batch.mask.shape)[:, 0]
            groups = [(place == number).nonzero().flatten() for number in place.unique()]
            scale = torch.ones((), device=batch.mask.device, requires_grad=True)
            losses = _scaled_loss(policy, batch, rng, scale)
            if self.form == "rex":
                penalty = torch.stack([_risk(losses, batch, rows) for rows in groups]).var(correction=0)
            else:
                slopes = [[torch.autograd.grad(_risk(losses, batch, half), scale, create_graph=True)[0]
                           for half in (rows[::2], rows[1::2])] for rows in groups if len(rows) > 1]
                penalty = torch.stack([first * second for first, second in slopes]).mean() if slopes else 0 * scale
            return (self.weight * penalty).expand(len(batch))
        return loss


def _scaled_loss(policy: Policy, batch: Batch, rng: Generator, scale: Tensor) -> Tensor:
    """Returns the loss of each step, (B, H), if the output of the network is multiplied by a factor."""
    def net(*inputs):
        return scale * policy.net(*inputs)
    context = policy.training_context(batch.obs, rng)
    return policy.config.head.loss(net, context, policy.encode_batch(batch), batch.mask, rng) * batch.mask


def _risk(losses: Tensor, batch: Batch, rows: Tensor) -> Tensor:
    return losses[rows].sum() / batch.mask[rows].sum().clamp(min=1)


@method("Liu et al. 2022, arXiv 2111.14820, without styles, with the penalty that their code uses", rows=("388",),
        needs=(NUMBERS, PLACES),
        when="if data come from several places, and in each a cue goes along with the action by another law.")
def irm_bc(column: str = "place", weight: float = 1000.0) -> Method:
    """Behavior cloning that avoids inputs whose relation to the action differs between environments (IRM).

    Args:
        column: Column with the number of the place.
        weight: Weight of the penalty. Too little does nothing, and too much ruins the prediction.
    """
    learner = BehaviorCloning(batch_size=512, auxiliary_losses=(RiskInvariance(column, weight=weight),))
    return Method(PolicyConfig(Regression()), learner=learner)
