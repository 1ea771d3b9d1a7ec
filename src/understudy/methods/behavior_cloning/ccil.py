from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ...checkpoint import FromStage, check_trained
from ...core import Above, AtLeast, DataError, part
from ...data.codec import Normalizer
from ...data.episode import Dataset, Episode
from ...data.operations import Operation
from ...data.window import Window
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...learn.validation import warn_of_made_steps
from ...nets.feed_forward import FeedForward
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, NUMERIC_STATES
from ..registry import method


@part
class LipschitzLoss(AuxiliaryLoss):
    """Auxiliary loss that penalizes a network which changes faster than its inputs (Lipschitz).

    It is ``max(0, |f(x + d) - f(x)| / |d| - max_slope)``.

    x and f are coded, and d is Gaussian. The authors' code compares other quantities than their paper, and divides by
    nothing; here the penalty bounds the slope.

    Args:
        max_slope: Slope without penalty.
        distance: Standard deviation of d.
        n_samples: Number of d per window.
    """

    max_slope: Annotated[float, AtLeast(0)] = 2.0
    weight: Annotated[float, AtLeast(0)] = 0.1
    distance: Annotated[float, Above(0)] = 0.01
    n_samples: Annotated[int, AtLeast(1)] = 5

    def build(self, policy: Policy):
        def loss(policy, batch, rng, captured):
            coded = {k: v.repeat_interleave(self.n_samples, 0) for k, v in policy.codec.encode_obs(batch.obs).items()}
            step = {k: self.distance * torch.randn(v.shape, generator=rng, device=v.device) for k, v in coded.items()}
            moved = {k: v + step[k] for k, v in coded.items()}
            change = policy.sample(policy.encoder(moved), rng) - policy.sample(policy.encoder(coded), rng)
            slope = change.flatten(1).norm(dim=1) / torch.cat([d.flatten(1) for d in step.values()], 1).norm(dim=1)
            return self.weight * (slope - self.max_slope).clamp(min=0).reshape(-1, self.n_samples).mean(1)
        return loss


@part
class CorrectiveLabels(Operation):
    """Adds steps near the demonstrations with actions that lead back to them, by a model of the dynamics.

    A label is a state ``x - f(x, a)``, from which the action a leads to about x, if the model adds f to a state. It is
    kept if its error is certainly small: at most the error of the model at the demonstrated step plus the slope of the
    model times the distance of the label from x. Each becomes an episode of one step.

    Args:
        dynamics: The policy that plans the next state from a state and an action, or the stage that trained it.
        noise: 0 leads back to each demonstrated state by its own action. Above 0 leads to the state after it, by its
            action with Gaussian noise of this size, as a multiple of the standard deviation of actions.
        n_copies: Labels per demonstrated step.
        max_slope: Of the model, from standardized states to standardized changes: see `LipschitzLoss`.
        max_error: Largest bound of a kept label's error, in standard deviations of the change that a step makes.

    References:
        Ke et al. (2024), CCIL: Continuity-based Data Augmentation for Corrective Imitation Learning, arXiv:2310.12972.
    """

    dynamics: FromStage | Policy
    noise: Annotated[float, AtLeast(0)] = 0.0
    n_copies: Annotated[int, AtLeast(1)] = 1
    max_slope: Annotated[float, Above(0)] = 2.0
    max_error: Annotated[float, Above(0)] = 10.0
    column: str = "observation.state"
    makes_episodes = True

    def apply(self, data: Dataset) -> Dataset:
        check_trained(self.dynamics, Policy, "CorrectiveLabels.dynamics", "policy")
        rows = [(e, t) for e in data for t in range(len(e.steps[self.column]) - 1) for _ in range(self.n_copies)]
        if len(rows) < 2:
            raise DataError(f"{len(rows)} steps are followed by an observation, and labels need at least 2",
                            where=data.metadata.get("path", "data set"), hint="record longer episodes")
        before, after = (_stacked([e.steps[self.column][t + i] for e, t in rows]) for i in (0, 1))
        action = _stacked([e.steps["action"][t] for e, t in rows])
        # a constant component has an error of 0, in any unit
        scale, change_scale = (x.std(0).clamp(min=torch.finfo(x.dtype).tiny) for x in (before, after - before))
        error = ((before + self.change(before, action, rows) - after) / change_scale).norm(dim=1)
        goal = after if self.noise else before
        rng = torch.Generator().manual_seed(0)
        action = action + self.noise * action.std(0) * torch.randn(action.shape, generator=rng)
        label = self.label(goal, action, rows)
        error = error + self.max_slope * ((label - goal) / scale).norm(dim=1)
        kept = (error <= self.max_error).nonzero().flatten().tolist()
        corrections = [self._step(*rows[i], label[i].numpy(), action[i].numpy()) for i in kept]
        warn_of_made_steps(data, self.column, len(corrections), "the error of each label may be above "
                           f"{self.max_error:g}, the smallest {error.min():.3g} (CorrectiveLabels.max_error)")
        return Dataset([*data, *corrections], data.metadata)

    def label(self, goal: Tensor, action: Tensor, rows: list[tuple[Episode, int]]) -> Tensor:
        """Returns the states from which actions lead to goals, (N, D)."""
        return goal - self.change(goal, action, rows)

    @torch.no_grad()
    def change(self, state: Tensor, action: Tensor, rows: list[tuple[Episode, int]]) -> Tensor:
        """Returns how an action changes each state, (N, D).

        Args:
            rows: The episode and the step that each state belongs to.
        """
        assert isinstance(self.dynamics, Policy)
        device, none = self.dynamics.device, torch.zeros(len(state), dtype=torch.int64)
        obs = {name: numbers.reshape(len(state), 1, *self.dynamics.features[name].shape).to(device)
               for name, numbers in ((self.column, state), ("action", action))}
        return self.dynamics.plan(obs, self.dynamics.noise(none, none).to(device))[:, 0].cpu() - state

    def _step(self, episode: Episode, t: int, state: np.ndarray, action: np.ndarray) -> Episode:
        columns = {k: np.array(v[t:t + 1]) for k, v in episode.steps.items()}
        changed = {name: numbers.reshape(columns[name][:1].shape)
                   for name, numbers in ((self.column, state), ("action", action))}
        return Episode({**columns, **changed}, episode.metadata, schema=episode.schema)


def _stacked(rows: list[np.ndarray]) -> torch.Tensor:
    """Returns rows of any shape as numbers, (N, D)."""
    return torch.from_numpy(np.stack(rows).reshape(len(rows), -1)).float()


@method("Ke et al. 2024, arXiv 2310.12972, whose labels are filtered by a distance that is tuned for each task",
        rows=("234",), needs=(NUMBERS, NUMERIC_STATES),
        when="if there are few demonstrations, and states are disturbed while acting.")
def ccil(noise: float = 1.0, max_slope: float = 2.0, column: str = "observation.state") -> Method:
    """Behavior cloning with added states near the demonstrations, from which a learned model finds the way back (CCIL).

    Args:
        noise: 0 leads back to demonstrated states by their own actions. Above 0: by actions with noise of this size.
        max_slope: Slope of the model above which it is penalized, between standardized states and changes.
        column: The column of states. A state and an action must tell the next state.
    """
    model = PolicyConfig(Regression(), FeedForward((256, 256)), codec=Normalizer(target="zscore", relative=column),
                         window=Window(action_offset=1), inputs=(column, "action"), target=column)
    optimizer = OptimizerConfig(lr=1e-3)
    learner = BehaviorCloning(4000, 256, optimizer, auxiliary_losses=(LipschitzLoss(max_slope),))
    labels = CorrectiveLabels(FromStage("dynamics"), noise, max_slope=max_slope, column=column)
    return Method(PolicyConfig(Regression()), learner=BehaviorCloning(4000, optimizer=optimizer), transforms=(labels,),
                  stages=(Stage("dynamics", Method(model, learner=learner)),))
