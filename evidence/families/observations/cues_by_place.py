"""Row 388: an observation holds a cue that goes along with the action by another law in each place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, train_once
from understudy.data.episode import Dataset
from understudy.envs.toys.particle import Particle, ParticleExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.irm_bc import RiskInvariance
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, CUE, PLACE, PERMUTED = "observation.state", "observation.cue", "place", "place.permuted"
TRAINING, DOUBLED, REVERSED = (1.0, 2.0, 4.0, 8.0), (16.0,), (-4.0,)


def flights(episodes: int, seed: int, strengths: tuple[float, ...]) -> Dataset:
    """Flights of an expert with noise. A cue is the length of the coming action plus 1, times the place's strength."""
    data = rollout(ParticleExpert(noise=0.3), Particle(ROWS), episodes, recording_seed(seed))
    rng = np.random.default_rng(seed)
    changed = []
    for number, episode in enumerate(data):
        place = number % len(strengths)
        length = np.linalg.norm(episode.steps["action"], axis=1, keepdims=True)
        cue = strengths[place] * (length + 1) + 0.3 * rng.normal(size=length.shape)
        changed.append(episode.replace({
            CUE: cue.astype(np.float32), PLACE: np.full(length.shape, place),
            PERMUTED: rng.integers(len(strengths), size=length.shape)}))
    return Dataset(changed, data.metadata)


@dataclass(frozen=True)
class FlightsInPlaces(DemonstrationSource):
    """As many flights in each of four places."""

    episodes: int = 200

    def load(self, seed):
        return flights(self.episodes, seed, TRAINING)


def cloning(*losses: RiskInvariance, inputs: tuple[str, ...] = (STATE, CUE)) -> Method:
    learner = BehaviorCloning(600, 512, OptimizerConfig(lr=1e-3), auxiliary_losses=losses)
    return Method(PolicyConfig(Regression(), FeedForward((64, 64)), inputs=inputs), learner=learner)


def action_errors(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """Squared errors of actions on new flights, as fractions of the variance, and the logarithm of one of them."""
    policy = train_once(experiment, method, data, seed).policy
    errors = {}
    for name, strengths in (("training places", TRAINING), ("16", DOUBLED), ("-4", REVERSED)):
        windows = policy.windows(flights(episodes, starts + seed, strengths))
        batch = windows.gather(np.arange(len(windows)))
        squares = (policy.plan(batch.obs, torch.zeros(len(batch), 1, 0)) - batch.action).square().mean()
        errors[f"error at {name}"] = [(squares / batch.action.var(0).mean()).item()]
    return {**errors, "log error at 16": [float(np.log(errors["error at 16"][0]))]}


TABLE = Experiment(FlightsInPlaces(), env="particle", first_seed=1560, n_seeds=20, episodes=50, measure=action_errors,
                   arms={
    "plain": cloning(),
    "IRM": cloning(RiskInvariance(weight=1000.0)),
    "V-REx": cloning(RiskInvariance(form="rex", weight=1000.0)),
    "without the cue": cloning(inputs=(STATE,)),
    "permuted places": cloning(RiskInvariance(PERMUTED, weight=1000.0))})
