"""Which way to choose among demonstrations of which many are bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, rollout_policy
from evidence.worlds.curation import (
    CuratedMethod,
    cached_load,
    cloning_method,
    successful_rollouts,
    train_curated,
    with_keep_columns,
)
from understudy.audit.scores import ActionVariance, Alignment, Compatibility, FilterLikeYouTest, soft_capped_counts
from understudy.audit.scores.network_scores import NetworkEnsemble
from understudy.core import uniform
from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.envs.toys.fork import GOAL, ForkExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.heads.likelihood.regression import Regression

STATE = "observation.state"
LEFT, RIGHT = 1, -1
N_TRUSTED, N_GOOD, N_EACH = 3, 12, 10  # demonstrations: known to be good, good in the pool, bad ones of each kind


@dataclass(frozen=True)
class DetourExpert(Actor):
    """The expert, but for a circle of eight steps that it drives once. It records `extraneous`."""

    expert: ForkExpert

    def start(self, obs, key):
        at = 1 + (9 * uniform(key, torch.zeros_like(key), (1,), stream=5)[:, 0]).long()
        return {"expert": self.expert.start(obs, key), "clock": torch.zeros_like(key), "at": at}

    def act(self, obs, state):
        plain, expert = self.expert.act(obs, state["expert"])
        turn = (state["clock"] - state["at"]).float()
        busy, angle = (turn >= 0) & (turn < 8), 2 * torch.pi * turn / 8
        action = torch.where(busy[:, None], torch.stack([-torch.cos(angle), -torch.sin(angle)], 1), plain)
        return action, {**state, "expert": expert, "clock": state["clock"] + 1, "record": {"extraneous": busy}}


def straight_flights(episodes: int, rng: np.random.Generator) -> list[Episode]:
    """Flights straight to the goal, over the pillar. Actions are the velocities that the states imply."""
    flights = []
    for _ in range(episodes):
        at = [0.03 * rng.standard_normal(2)]
        while np.linalg.norm(np.subtract(GOAL, at[-1])) > 0.1:
            aim = np.subtract(GOAL, at[-1])
            at.append(at[-1] + 0.1 * (aim / np.linalg.norm(aim) + 0.1 * rng.standard_normal(2)))
        states = np.array(at, np.float32)
        flights.append(Episode({STATE: states, "action": np.clip(np.diff(states, axis=0) / 0.1, -1, 1)}))
    return flights


@dataclass(frozen=True)
class SpoiledDemonstrations(DemonstrationSource):
    """A few demonstrations that are known to be good, and a pool of good and bad ones that is not sorted.

    All good ones pass the pillar on the left. Of the bad ones, some drive a circle, some pass on the right, and some
    fly over the pillar, which the learner cannot.
    """

    @cached_load
    def load(self, seed):
        def record(actor, episodes, split):
            return [Episode({k: np.asarray(e.steps[k]) for k in (STATE, "action", "extraneous") if k in e.steps})
                    for e in successful_rollouts(actor, "fork", episodes, seed, split)]

        steady = ForkExpert(side=LEFT, noise=0.3)
        fine = [*record(steady, N_TRUSTED, 0), *record(steady, N_GOOD, 1)]
        circles = record(DetourExpert(steady), N_EACH, 2)
        right = record(ForkExpert(side=RIGHT, noise=0.3), N_EACH, 3)
        over = straight_flights(N_EACH, np.random.default_rng(seed))
        needed = [*([1.0] * len(fine)), *(~e.steps["extraneous"] for e in circles), *([0.0] * 2 * N_EACH)]
        data = Dataset([*fine, *(e.replace({"extraneous": None}) for e in circles), *right, *over])
        return with_keep_columns(data, {"fine": needed, **curation_weights(data, seed)})


def curation_weights(data: Dataset, seed: int) -> dict[str, Any]:
    """How often each curation samples: a weight for each episode, or for each of its steps."""
    trusted, pool = data[:N_TRUSTED], data[N_TRUSTED:]
    rng, n, trust = np.random.default_rng(seed), len(data), np.ones(N_TRUSTED)
    group, like = mode_labels(data, 4, seed), np.zeros(n)
    for g in set(group.tolist()):
        members = np.flatnonzero(group == g)
        like[members] = transferability([data[i] for i in members], seed)
    compared = Compatibility(trusted, error_threshold=2.0, novelty_threshold=0.2, seed=seed).compare_to_base(pool)
    score = FilterLikeYouTest(trusted, pool=pool, n_updates=1000, lr=0.1, scorer_lr=3e-3, seed=seed)
    aligned = Alignment(inputs=(STATE,), seed=seed).score_steps(data)
    return {
        "all": np.ones(n), "random half": best_half(rng.random(n)), "trusted": np.r_[trust, np.zeros(len(pool))],
        "half trusted": np.r_[trust * len(pool) / N_TRUSTED, np.ones(len(pool))],
        "EIL": [*trust, *(kept > 0.5 for kept in aligned[N_TRUSTED:])],
        "OOD-IL": sharpen(like), "compatible": np.r_[trust, compared.n_incompatible() <= 2],
        "consistent": best_half(np.asarray(ActionVariance(inputs=(STATE,))(data))),
        "FLYT": np.r_[trust, soft_capped_counts(score(pool), len(pool) // 2, seed=seed)],
        "permuted OOD-IL": rng.permutation(sharpen(like))}


def best_half(scores: np.ndarray) -> np.ndarray:
    """Whether each episode is in the half with the highest scores."""
    return np.argsort(np.argsort(-scores, kind="stable")) < len(scores) // 2


def mode_labels(data, count: int, seed: int) -> np.ndarray:
    """Groups of an embedding in which two looks at the same demonstration, at six moments with separate offsets, are
    near, and looks at others far (NT-Xent)."""
    rng, net = np.random.default_rng(seed), NetworkEnsemble(12, 8, seed=seed)

    def embed():
        rows = [e.steps[STATE][((np.arange(6) + rng.random()) / 6 * len(e)).astype(int)].ravel() for e in data]
        return net(torch.as_tensor(np.stack(rows)).float())[0]
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(150):
        z = normalize(torch.cat([embed(), embed()]), dim=1)
        similarity = z @ z.T / 0.3 - 1e9 * torch.eye(len(z))
        optimizer.zero_grad()
        cross_entropy(similarity, torch.arange(len(z)).roll(len(data))).backward()
        optimizer.step()
    with torch.no_grad():
        return kmeans2(normalize(embed(), dim=1).numpy(), count, minit="++", seed=seed)[1]


def transferability(data, seed: int) -> np.ndarray:
    """How much a discriminator takes each demonstration for a rollout of an imitator that cloned all of them."""
    method = cloning_method(3e-3, steps=300)
    policy = train_curated(CuratedMethod(method, "all"), with_keep_columns(data, {"all": np.ones(len(data))}), seed)
    rollouts = rollout(PolicyActor(policy, method.executor), make("fork", rows=20), 20, recording_seed(seed),
                       first=50_000)
    shows, does = ([np.concatenate([s[:-1], np.diff(s, axis=0) / 0.1], 1)
                    for s in (np.asarray(e.steps[STATE]) for e in episodes)] for episodes in (data, rollouts))
    x = torch.as_tensor(np.concatenate([*shows, *does])).float()
    label = torch.cat([torch.zeros(sum(map(len, shows))), torch.ones(sum(map(len, does)))])
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    weight = torch.where(label > 0, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
    net, rng = NetworkEnsemble(4, 1, seed=seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, weight_decay=1e-3)
    for _ in range(200):
        at = torch.randint(len(x), (256,), generator=rng)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(net(x[at])[0, :, 0], label[at], weight[at]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = np.split(net(x)[0, :, 0].numpy(), np.cumsum([len(s) for s in shows]))[:-1]
    return 1 / (1 + np.exp(-np.array([logit.mean() for logit in logits])))


def sharpen(likeness: np.ndarray) -> np.ndarray:
    """Weights from 0 to 1, of which the large ones are far above the others, as in the authors' code."""
    e = np.exp(likeness / 0.1)
    return (e - e.min()) / max(e.max() - e.min(), 1e-12)


def success(experiment, option: CuratedMethod, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success", 0 or 1 per start."""
    return flags(rollout_policy(experiment, train_curated(option, data, seed), option.method, episodes, starts))


def kept(name: str, **options) -> CuratedMethod:
    return CuratedMethod(cloning_method(3e-3, **options), name)


TABLE = Experiment(SpoiledDemonstrations(), env="fork", measure=success, first_seed=680, n_seeds=10, episodes=200,
                   env_options=(("limit", 25), ("gust", 0.4)), levels={"all": 0.3, "fine": 0.7}, arms={
    **{name: kept(name) for name in ("all", "random half", "trusted", "half trusted", "EIL", "OOD-IL", "compatible",
                                     "consistent", "FLYT", "fine")},
    "all, absolute error": kept("all", head=Regression("l1")),
    "permuted weights": kept("permuted OOD-IL")})
