"""Row 098: encoders of intentions, from walks whose actions are not read. How well are values of new tasks linear?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import Experiment
from evidence.families.representation.hidden_goals import (
    FAST,
    NOISE,
    POSITION,
    ROWS,
    STATE,
    WalksAndGoal,
    cloning,
    goal_of,
    policy_config,
    rooms,
)
from evidence.measures import flags, train_policy
from understudy.checkpoint import FromStage
from understudy.core import Feature
from understudy.data.episode import Dataset
from understudy.data.window import Goal, Window
from understudy.envs.observation_wrappers import ObservationTransform, RandomFeatureObs
from understudy.envs.toys.four_rooms import CELLS, STEPS, FourRooms
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.reconstruction_objectives import Reconstruction
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.value_objectives import INTENT, OUTCOME, IntentionValue
from understudy.policy import Policy

N_CELLS, N_LABELED, N_TASKS, N_DRAWS = CELLS**2, 20, 200, 10
DISCOUNT, STEPS_PER_CELL = 0.98, 5
STRENGTHS = 10.0 ** np.arange(-4, 5)  # of ridge regression
HINDSIGHT = Goal(STATE, OUTCOME, p_curgoal=0.2, p_randomgoal=0.3)


class Joined(ObservationTransform):
    """The noise is in the same column as the features of the position."""

    def transform_features(self, features):
        size = features[STATE].size + features[NOISE].size
        return {**{k: f for k, f in features.items() if k != NOISE}, STATE: Feature("float32", (size,))}

    def transform_obs(self, obs):
        return {**{k: x for k, x in obs.items() if k != NOISE}, STATE: torch.cat([obs[STATE], obs[NOISE]], -1)}


@dataclass(frozen=True)
class JoinedWalks(WalksAndGoal):
    """The walks of `WalksAndGoal`, seen through `Joined`."""

    def load(self, seed):
        joined, walks = Joined(rooms()), super().load(seed)
        return Dataset([joined.transform_episode(episode) for episode in walks], walks.metadata)


def pretrained(learner, intent: Goal = HINDSIGHT) -> Method:
    """An encoder of the walks to random places, without their actions, and a policy on it of two walks to one goal."""
    window = Window(goals=(HINDSIGHT, replace(intent, into=INTENT)))
    policy = replace(policy_config(STATE), target="", window=window)
    stage = Stage("encoder", Method(policy, learner=learner), dataset="prior")
    frozen = InitializeFrom(FromStage("encoder"), load=("codec.obs_transforms", "encoder"), train=())
    return cloning(inputs=(STATE,), stages=(stage,), initialize_from=(frozen,))


def objective(loss, intent: Goal = HINDSIGHT) -> Method:
    return pretrained(RepresentationLearning((loss,), 3000, 128, optimizer=FAST), intent)


def intention(intent: Goal = HINDSIGHT, **options) -> Method:
    return objective(IntentionValue(0.9, DISCOUNT, hidden=(128, 128), target_decay=0.98, **options), intent)


def exact_values(rng: np.random.Generator) -> np.ndarray:
    """Optimal values of the cells, (64, 200). A task ends with reward 1 at the nearer one of two random cells."""
    pairs = np.stack([rng.choice(N_CELLS, 2, replace=False) for _ in range(N_TASKS)])
    return DISCOUNT ** (STEPS_PER_CELL * STEPS.reshape(N_CELLS, N_CELLS)[pairs].min(1).T)


def ridge_error(features: np.ndarray, values: np.ndarray, labeled: np.ndarray) -> float:
    """Mean squared error of ridge regression at the cells without labels, in variances of the values there.

    The strength has the least leave-one-out error of the labels of all tasks together.

    Args:
        features: Of each cell, (64, D).
        values: Of each cell and task, (64, N).
        labeled: Numbers of the cells whose values are known.
    """
    others = np.setdiff1d(np.arange(len(features)), labeled)
    x, mean = features - features[labeled].mean(0), values[labeled].mean(0)
    kernel, y = x[labeled] @ x[labeled].T, values[labeled] - mean
    inverses = [np.linalg.inv(kernel + strength * np.eye(len(y))) for strength in STRENGTHS]
    hats = [kernel @ inverse for inverse in inverses]
    left_out = [np.square((y - hat @ y) / (1 - 1 / len(y) - np.diag(hat))[:, None]).mean() for hat in hats]
    predicted = x[others] @ x[labeled].T @ inverses[int(np.argmin(left_out))] @ y + mean
    return float((np.square(predicted - values[others]).mean(0) / values[others].var(0)).mean())


@torch.no_grad()
def value_errors(policy: Policy, data: Dataset, seed: int) -> list[float]:
    """Errors of values from encodings of the middles of all cells, for ten draws of tasks, labeled cells and noise."""
    rng = np.random.default_rng(seed)

    def encode(obs):
        return policy.context({k: x[:, None].float() for k, x in obs.items()}).flat().double().numpy()
    walked = {k: torch.from_numpy(np.concatenate([e.steps[k] for e in data])) for k in (STATE, POSITION)}
    middles = torch.from_numpy(np.stack(np.divmod(np.arange(N_CELLS), CELLS), 1) + 0.5)
    position = RandomFeatureObs(FourRooms(), column=STATE).transform_obs({STATE: middles})[STATE]
    walks, errors = encode(walked), []
    for _ in range(N_DRAWS):
        noise = walked[STATE][rng.integers(len(walks), size=N_CELLS), position.shape[1]:]
        cells = encode({STATE: torch.cat([position, noise], -1), POSITION: middles})
        errors.append(ridge_error((cells - walks.mean(0)) / walks.std(0).clip(1e-6), exact_values(rng),
                                  rng.choice(N_CELLS, N_LABELED, replace=False)))
    return errors


def measure(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int):
    """Errors of values from the frozen encodings, and success of the policy on the hidden goal of the seed."""
    policy, env = train_policy(experiment, method, data, seed), Joined(rooms(goal=goal_of(seed)))
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), env, episodes, seed=starts)
    return {**flags(rollouts), "error": value_errors(policy, data, seed)}


TABLE = Experiment(JoinedWalks(), env="four_rooms", first_seed=3400, episodes=100, measure=measure,
                   levels={"position, 10 walks": 0.7}, arms={
    "intention": intention(),
    "without intents": intention(intents=False),
    "value of goals": intention(same=1.0),
    "autoencoder": objective(Reconstruction()),
    "untrained": pretrained(BehaviorCloning(0)),
    "position, 10 walks": cloning("task", "more", inputs=(POSITION,)),
    "intents of other rows": intention(Goal(STATE, p_randomgoal=1.0), same=0.0)})
