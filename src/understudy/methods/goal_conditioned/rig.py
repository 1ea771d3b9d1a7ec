from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, AtMost, Batch, ConfigError, UserError, keys, normal, part
from ...data.codec import Normalizer
from ...data.column_changes import ColumnChange, get_column, with_column
from ...data.episode import Dataset, Episode
from ...data.window import Goal, Window
from ...execute.actor import Actor, PolicyActor, pass_record
from ...execute.planners import FixedBatch
from ...heads.likelihood.regression import Regression
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, Exploration, GaussianExploration, RolloutCollector
from ...improve.updates import PerNewStep
from ...learn.algorithm import Net, first, prepare
from ...learn.critic import CriticConfig
from ...learn.critics.td3 import TD3
from ...learn.fit_method import ROWS
from ...learn.method import Method, Stage
from ...learn.objectives.reconstruction_objectives import VAE
from ...learn.objectives.representation import RepresentationLearning
from ...learn.optimizer import OptimizerConfig
from ...learn.targets import REWARD, TERMINATED
from ...nets.encoders import ConcatEncoder, TokenEncoder
from ...nets.feed_forward import FeedForward
from ...policy import Policy, PolicyConfig, camera_sizes
from ..needs import CAMERAS, GIVEN_GOAL, NUMBERS
from ..registry import method

LATENT, LATENT_GOAL, LATER = "observation.latent", "observation.latent_goal", "observation.latent_later"


def imagined_goals(key: Tensor, size: int) -> Tensor:
    """Draws the goals to practice from N(0, I), one for each random key, (B, size)."""
    return normal(key, torch.zeros_like(key), (size,), stream=6)


@dataclass(frozen=True)
class Latents(ColumnChange):
    """Adds the latents of the observations, and of the goal, as columns.

    While acting, the goal is an observation, or its latent is given. Recorded episodes get an imagined goal: the one
    that the episode practiced, if `ImaginedGoals` has collected it.

    Args:
        encoder: Its encodings are the latents.
        column: The observation that is encoded, such as a camera.
        goal: The goal that is observed while acting.
    """

    encoder: FromStage | Policy
    column: str
    goal: str = Goal("").into

    def __call__(self, episode: Episode) -> Episode:
        latents = self.encode({self.column: torch.from_numpy(np.array(get_column(episode, self.column)))})
        seed, number = (x if isinstance(x := episode.metadata.get(k), int) else 0 for k in ("seed", "number"))
        goal = imagined_goals(keys(seed, [number]), latents.shape[1]).expand(len(latents), -1)
        return with_column(with_column(episode, LATENT, latents.numpy()), LATENT_GOAL, goal.numpy())

    def step(self, obs, last, state):
        latent = self.encode(obs)
        if LATENT_GOAL in obs:
            goal = obs[LATENT_GOAL]
        elif self.goal in obs and obs[self.goal].shape == obs[self.column].shape:
            goal = self.encode({self.column: obs[self.goal]})
        else:
            raise UserError(f"there is no goal that is shown as {self.column!r} is", where=f"observation {self.goal!r}",
                            hint="act in an environment that shows goals in this way, or give one with "
                                 "ObservationWrapper")
        return {LATENT: latent, LATENT_GOAL: goal}, state

    @torch.no_grad()
    def encode(self, obs) -> Tensor:
        """Returns the latents of observations, (B, D)."""
        assert isinstance(self.encoder, Policy)  # in place of the reference to a stage
        actor = PolicyActor(FixedBatch(self.encoder, ROWS), image_sizes=camera_sizes(self.encoder.features))
        windows, _ = actor.first_windows(obs, torch.zeros(len(obs[self.column]), dtype=torch.int64))
        return actor.planner.context(windows).flat().cpu()


@part
class ImaginedGoals(Exploration):
    """Exploration in which each episode practices for a random latent goal, whatever the environment shows.

    Args:
        noise: How the actions on the way explore.
    """

    noise: Exploration = field(default_factory=GaussianExploration)

    def build(self, actor, env, training):
        return self.noise.build(_Practicing(actor, training.data.features()[LATENT_GOAL].size), env, training)


@dataclass(frozen=True)
class _Practicing(Actor):
    actor: Actor
    size: int

    def start(self, obs, key):
        goal = imagined_goals(key, self.size)
        return {"inner": self.actor.start({**obs, LATENT_GOAL: goal}, key), "goal": goal}

    def act(self, obs, state):
        action, inner = self.actor.act({**obs, LATENT_GOAL: state["goal"]}, state["inner"])
        return action, pass_record(state, inner)


@method("Nair et al. 2018 (RIG), arXiv 1807.04742, with independent noise", rows=("231",),
        needs=(NUMBERS, CAMERAS, GIVEN_GOAL, "an environment"),
        when="if goals are pictures and the robot may practice alone, without rewards.")
@part
class RIG(TD3):
    """Reaches goals in pictures after practice for imagined goals, drawn from a variational autoencoder (RIG).

    It is TD3 on latents, whose reward is minus the distance to the goal. In every batch, goals are drawn again: from
    N(0, I), or as the goal of the window is. Rewards are computed for the new goals, and nothing ends an episode.

    Args:
        p_imagined: Fraction of windows whose goal is drawn from N(0, I).
        p_practiced: Fraction of windows whose goal is the one that the episode practiced.

    References:
        Nair et al. (2018), Visual Reinforcement Learning with Imagined Goals, arXiv:1807.04742.
    """

    p_imagined: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    p_practiced: Annotated[float, AtLeast(0), AtMost(1)] = 0.1
    batch_size: Annotated[int, AtLeast(1)] = 128
    critic: CriticConfig = field(default_factory=lambda: CriticConfig((400, 300)))
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.99

    extra = ()

    def __post_init__(self):
        super().__post_init__()
        if self.p_imagined + self.p_practiced > 1 + 1e-9:
            raise ConfigError(f"p_imagined={self.p_imagined} and p_practiced={self.p_practiced} add up to more than 1",
                              where="RIG", hint="the rest, up to 1, are goals of the window, which come later")
        if self.reward is not None or self.n_step or self.critic_bc_weight:
            raise ConfigError("the reward is the distance to the goal after a step", where="RIG",
                              hint="leave reward, n_step and critic_bc_weight out")

    def method(self, column: str = "observation.images.top", latent_dim: int = 4, beta: float = 0.1,
               n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 4.0, noise: float = 0.2) -> Method:
        """Builds a method with an autoencoder as a stage, and with practice.

        Args:
            column: The camera. Goals are pictures of it.
            latent_dim: Number of components of the latent of a picture.
            beta: Weight of the autoencoder's divergence. With a large one, latents carry nothing.
            noise: Standard deviation of the noise on actions in practice, in their units.
        """
        scene = PolicyConfig(Regression(), encoder=TokenEncoder(latent_dim), inputs=(column,), target="")
        vae = RepresentationLearning((VAE(0, beta),), 5000, 128, optimizer=OptimizerConfig(lr=1e-3))
        policy = PolicyConfig(SquashedGaussian("free"), FeedForward((400, 300)), ConcatEncoder(),
                              Normalizer(unscaled=(LATENT, LATENT_GOAL)), Window(goals=(Goal(LATENT),)),
                              inputs=(LATENT, LATENT_GOAL))
        collector = RolloutCollector(n_steps=n_steps, exploration=ImaginedGoals(GaussianExploration(noise)))
        rounds = CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step))
        return Method(policy, learner=self, transforms=(Latents(FromStage("vae"), column),),
                      stages=(Stage("vae", Method(scene, learner=vae)),), collection=rounds)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets, window = super().networks(policy, data), policy.window
        if not {LATENT, LATENT_GOAL} <= set(policy.inputs) or len(window.goals) != 1 or window.horizon > 1:
            raise ConfigError(f"the policy reads {', '.join(policy.inputs)} in {window}", where="RIG",
                              hint=f"let it read {LATENT!r} and {LATENT_GOAL!r}, with one goal and a horizon of 1, as "
                                   "the method rig does")
        return nets

    def sampler(self, policy, data, weights):
        return self.window(policy).windows(data, policy.inputs, policy.config.target, next_obs=True,
                                           sampling_weights=weights)

    def window(self, policy: Policy) -> Window:
        """Returns the window of batches, with the goal of the policy's as `LATER`."""
        return replace(policy.window, goals=(replace(policy.window.goals[0], into=LATER),))

    @first
    @prepare
    def rewarded(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Draws goals for the batch, and adds the rewards for reaching them."""
        assert batch.next is not None
        goal = batch.obs[LATENT_GOAL]
        draw = torch.rand(len(batch), 1, 1, generator=rng, device=rng.device)
        imagined = torch.randn(len(batch), 1, goal.shape[-1], generator=rng, device=rng.device)
        goal = torch.where(draw < 1 - self.p_practiced, batch.extra[LATER], goal)
        goal = {LATENT_GOAL: torch.where(draw < self.p_imagined, imagined, goal)}
        batch = batch.replace(obs={**batch.obs, **goal}, next={**batch.next, **goal})
        reward = self.rewards(batch)
        return batch.replace(extra={**batch.extra, REWARD: reward, TERMINATED: torch.zeros_like(reward)})

    def rewards(self, batch: Batch) -> Tensor:
        """Returns minus the distance of the observation after each step to the goal, (B, 1)."""
        assert batch.next is not None
        return -(batch.next[LATENT] - batch.next[LATENT_GOAL])[:, -1:].norm(dim=-1)
