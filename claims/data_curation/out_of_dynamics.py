"""Row 007: a demonstration is not infeasible because it is of another mode.

The published imitators are trained by adversarial reinforcement learning; here they clone the velocities that the
states imply, and the same kind of discriminator tells their rollouts from the demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from claims.worlds.curation import (
    CuratedMethod,
    cached_load,
    cloning_method,
    curated_arms,
    curated_success,
    successful_rollouts,
    train_curated,
    with_keep_columns,
)
from understudy.audit.scores.network_scores import NetworkEnsemble
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.data.episode import Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.fork import GOAL, ForkExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.heads.likelihood.gmm import GMM


def infer_actions(states: np.ndarray) -> Episode:
    """Of the demonstrator only states are known; the action is the velocity that leads from one to the next."""
    states = np.asarray(states, np.float32)
    return Episode({"observation.state": states, "action": np.clip(np.diff(states, axis=0) / 0.1, -1, 1)})


def straight_flights(episodes: int, rng: np.random.Generator) -> list[Episode]:
    """By one that the pillar does not stop: straight to the goal."""
    flights = []
    for _ in range(episodes):
        at = [0.03 * rng.standard_normal(2)]
        while np.linalg.norm(np.subtract(GOAL, at[-1])) > 0.1:
            aim = np.subtract(GOAL, at[-1])
            at.append(at[-1] + 0.1 * (aim / np.linalg.norm(aim) + 0.1 * rng.standard_normal(2)))
        flights.append(infer_actions(np.array(at)))
    return flights


@dataclass(frozen=True)
class MixedDynamicsDemonstrations(DemonstrationSource):
    """Demonstrations that pass the pillar of fork on the left, on the right, and over it. Each is weighed by how much
    it looks like what an imitator does that cloned its group.

    Args:
        n_per_group: Number of demonstrations of each of the three.
        n_groups: Number of groups that are found. Another weight is that of one group of all.
        shuffle_groups: Draw the group of each demonstration at random.
    """

    n_per_group: int
    n_groups: int = 5
    shuffle_groups: bool = False
    probe_sizes = {"n_groups": 2}

    @cached_load
    def load(self, seed):
        rng = np.random.default_rng(seed)
        around = [infer_actions(e.steps["observation.state"]) for part, side in enumerate((1, -1))
                  for e in successful_rollouts(ForkExpert(side=side), "fork", self.n_per_group, seed, part)]
        data = [*around, *straight_flights(self.n_per_group, rng)]
        able = np.arange(len(data)) < len(around)
        group = mode_labels(data, self.n_groups, seed)
        if self.shuffle_groups:
            group = rng.permutation(group)
        alike = np.zeros(len(data))
        for g in set(group.tolist()):
            at = np.flatnonzero(group == g)
            alike[at] = transferability([data[i] for i in at], seed)
        whole = transferability(data, seed)

        def auroc(f):
            wins = f[able][:, None] - f[~able]
            return float((wins > 0).mean() + (wins == 0).mean() / 2)
        figures = {"auroc.of its group": auroc(alike), "auroc.of all": auroc(whole)}
        return with_keep_columns(
            data,
            {"even": np.ones(len(data)), "of all": sharpen(whole), "of its group": sharpen(alike)},
            {"figures": figures},
        )


def mode_labels(data, count: int, seed: int) -> np.ndarray:
    """(E,) a number for each: groups of an embedding in which two looks at the same demonstration, at 6 moments with
    separate offsets, are near, and looks at others far (NT-Xent, Chen et al. 2020)."""
    rng = np.random.default_rng(seed)

    def look():
        rows = []
        for e in data:
            states = e.steps["observation.state"]
            at = (np.arange(6) + rng.random()) / 6 * (len(states) - 1)
            rows.append(states[at.astype(int)].ravel())
        return torch.as_tensor(np.stack(rows)).float()
    net = NetworkEnsemble(12, 8, seed=seed)
    optim = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(150):
        z = torch.nn.functional.normalize(torch.cat([net(look())[0], net(look())[0]]), dim=1)
        similarity = z @ z.T / 0.3 - 1e9 * torch.eye(len(z))
        loss = torch.nn.functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(data)))
        optim.zero_grad()
        loss.backward()
        optim.step()
    with torch.no_grad():
        z = torch.nn.functional.normalize(net(look())[0], dim=1).numpy()
    return kmeans2(z, count, minit="++", seed=seed)[1]


def transferability(data, seed: int) -> np.ndarray:
    """(E,) the sigmoid of the mean over an episode's transitions of the logit that they are an imitator's, which has
    cloned these demonstrations and acts in its own world."""
    marked = with_keep_columns(data, {"mine": np.ones(len(data))})
    policy = train_curated(CuratedMethod(cloning_method(3e-3, steps=300), "mine"), marked, seed)
    rollouts = rollout(
        PolicyActor(policy, cloning_method(3e-3).executor),
        make("fork", rows=20),
        20,
        recording_seed(seed),
        first=50_000,
    )

    def pairs(episodes):
        return [np.concatenate([s[:-1], np.diff(s, axis=0) / 0.1], 1)
                for s in (np.asarray(e.steps["observation.state"]) for e in episodes)]
    shows, does = pairs(data), pairs(rollouts)
    x = torch.as_tensor(np.concatenate([*shows, *does])).float()
    label = torch.cat([torch.zeros(sum(map(len, shows))), torch.ones(sum(map(len, does)))])
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    weight = torch.where(label > 0, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
    net, rng = NetworkEnsemble(4, 1, seed=seed), torch.Generator().manual_seed(seed)
    optim = torch.optim.Adam(net.parameters(), 2e-3, weight_decay=1e-3)
    for _ in range(200):
        at = torch.randint(len(x), (256,), generator=rng)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x[at])[0, :, 0], label[at], weight[at])
        optim.zero_grad()
        loss.backward()
        optim.step()
    with torch.no_grad():
        logit = net(x)[0, :, 0].numpy()
    ends = np.cumsum([len(s) for s in shows])
    return 1 / (1 + np.exp(-np.array([part.mean() for part in np.split(logit[: ends[-1]], ends[:-1])])))


def sharpen(f: np.ndarray) -> np.ndarray:
    """From 0 to 1, the high ones far above the others, as the authors do for their arm."""
    e = np.exp(f / 0.1)
    return (e - e.min()) / max(e.max() - e.min(), 1e-12)


def shuffled_groups(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffle_groups=True))


FORK = Experiment(
    MixedDynamicsDemonstrations(30),
    "fork",
    curated_arms(
        "even",
        "of all",
        "of its group",
        options=tuple(cloning_method(rate, GMM(), Window(2, 8), 4, steps=600) for rate in (3e-3, 1e-3)),
    ),
    curated_success,
    seeds=tuple(range(200, 220)),
    tuning_seeds=(910,),
    measures=(("auroc", SCORE),),
    starts_seed=200,
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    sanity=(("even", "success", 0.3), ("of all", "success", 0.5), ("of its group", "success", 0.5)),
)

CLAIM = Claim(
    name="out-of-dynamics",
    rows=("007",),
    parts=(ClaimPart("fork", FORK, AllOf((
        AboveBound("auroc", "of its group", 0.8), GreaterThan("auroc", "of its group", "of all"),
        GreaterThan("success", "of its group", "of all"), GreaterThan("success", "of its group", "even")))),),
    negative_control=NegativeControl(
        shuffled_groups, "fork", removes=(GreaterThan("auroc", "of its group", "of all"),), probed=False
    ),
)
