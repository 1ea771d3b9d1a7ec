"""Row 248: what keeps encodings that predict themselves from collapsing, in exact gradients of small chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from understudy.data.episode import Dataset, Episode

N_STATES, WIDTH = 20, 4
NOTHING = 1e-9  # energy of the first direction below which encodings are a point; it begins at 1
COLUMN = "observation.transitions"


@dataclass(frozen=True)
class RandomChains(DemonstrationSource):
    """A chain with even visits and no symmetry: its matrix of transitions, (20, 20), in place of demonstrations.

    Args:
        n_moves: Number of random permutations that are mixed with random weights.
    """

    n_moves: int = 5

    def load(self, seed):
        rng = np.random.default_rng(seed)
        weights = rng.dirichlet(np.ones(self.n_moves))
        matrix = sum(w * np.eye(N_STATES)[rng.permutation(N_STATES)] for w in weights)
        return Dataset([Episode({COLUMN: np.asarray(matrix), "action": np.zeros((N_STATES, 1), np.float32)})])


@dataclass(frozen=True)
class SelfPredictive:
    """Encodings (20, 4) of all states, trained by exact gradients to predict the encoding of the next state.

    Args:
        predictor_rate: Learning rate of the predictor, in rates of the encodings. None: it is always the best one.
        full: The gradient also passes through the target.
        two_way: A second encoding of next states is predicted, and predicts the first one.
        even: All next states are equally likely in training, whatever the chain is.
    """

    predictor_rate: float | None = None
    full: bool = False
    two_way: bool = False
    even: bool = False
    rate: float = 1.0
    steps: int = 20_000


def best_predictor(x, y, joint):
    """The matrix P of least squares for x P = y, from the joint distribution of their rows."""
    return np.linalg.solve(x.T @ (joint.sum(1)[:, None] * x), x.T @ joint @ y)


def encodings(arm: SelfPredictive, matrix: np.ndarray, seed: int) -> np.ndarray:
    """The encodings after training."""
    rng = np.random.default_rng(seed)
    joint = np.full_like(matrix, 1 / N_STATES**2) if arm.even else matrix / N_STATES
    x, later = (np.linalg.qr(rng.normal(size=(N_STATES, WIDTH)))[0] for _ in range(2))
    predictor = rng.normal(size=(WIDTH, WIDTH)) / WIDTH
    for _ in range(arm.steps):
        y = later if arm.two_way else x
        if arm.predictor_rate is None:
            predictor = best_predictor(x, y, joint)
        error = (joint.sum(1)[:, None] * x) @ predictor - joint @ y  # mean error of each state, times its visits
        step = error @ predictor.T
        if arm.two_way:
            back = best_predictor(y, x, joint.T)
            later = later - arm.rate * ((joint.sum(0)[:, None] * y) @ back - joint.T @ x) @ back.T
        if arm.full:
            step = step + joint.sum(0)[:, None] * x - joint.T @ x @ predictor
        if arm.predictor_rate is not None:
            predictor = predictor - arm.rate * arm.predictor_rate * x.T @ error
        x = x - arm.rate * step
    return x


def measure(experiment, arm: SelfPredictive, data, seed, episodes, starts):
    """Effective rank of the encodings as a fraction of 4, and how much of the top singular subspace they span."""
    matrix = np.asarray(data[0].steps[COLUMN])
    x = encodings(arm, matrix, seed)
    energy = np.linalg.svd(x, compute_uv=False) ** 2
    energy[0] = max(energy[0], NOTHING)  # encodings that are all zero have the rank of a point
    energy = energy / energy.sum() + 1e-30
    basis, top = np.linalg.qr(x)[0], np.linalg.svd(matrix)[0][:, :WIDTH]
    rank, caught = np.exp(-(energy * np.log(energy)).sum()), np.square(basis.T @ top).sum()
    return {"rank": [min(float(rank) / WIDTH, 1.0)], "caught": [min(float(caught) / WIDTH, 1.0)]}


TABLE = Experiment(RandomChains(), env="four_rooms", first_seed=730, n_seeds=20, episodes=1, measure=measure,
                   arms={
    "best predictor": SelfPredictive(),
    "equal rates": SelfPredictive(1.0),
    "slow predictor": SelfPredictive(0.1),
    "full gradient": SelfPredictive(1.0, full=True),
    "two-way": SelfPredictive(two_way=True),
    "two-way, random next states": SelfPredictive(two_way=True, even=True)})
