"""Row 308: two figures of a data set say which kind of learner it suits.

A maze small enough that six data sets, three learners and all their training are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr

from ..audit.scores import state_action_coverage, trajectory_quality
from ..audit.scores.network_scores import NetworkEnsemble
from ..data.episode import Dataset, Episode
from .base import (
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from .curation import cached_load

SIZE, LIMIT, DISCOUNT = 7, 60, 0.95
WALLS = {(3, y) for y in range(SIZE) if y not in (1, 5)} | {(x, 3) for x in range(SIZE) if x not in (1, 5)}
GOAL = (6, 6)
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))
SETS = ("random", "mixed", "replay", "halting", "noisy", "expert")


def next_cell(at: tuple[int, int], action: int) -> tuple[int, int]:
    x, y = at[0] + MOVES[action][0], at[1] + MOVES[action][1]
    return at if not (0 <= x < SIZE and 0 <= y < SIZE) or (x, y) in WALLS else (x, y)


def run_episode(act, name: str = "") -> Episode:
    """Runs from the corner until the goal or the step limit. The reward is MiniGrid's: 1 - 0.9 * steps / LIMIT at the
    goal, and 0 elsewhere."""
    at, seen, did = (0, 0), [(0, 0)], []
    while at != GOAL and len(did) < LIMIT:
        did.append(int(act(at)))
        at = next_cell(at, did[-1])
        seen.append(at)
    reward = np.zeros(len(did), np.float32)
    reward[-1] = (1 - 0.9 * len(did) / LIMIT) if at == GOAL else 0
    return Episode({"observation.state": np.array(seen, np.float32), "action": np.array(did)[:, None],
                    "next.reward": reward}, {"set": name})


@dataclass(frozen=True)
class GridDatasets(DemonstrationSource):
    """Six sets of `steps` steps: an agent that learns online (Q-learning in a table) gives all of its training, and its
    last policy with different shares of random actions. swapped: TQ is that of another of the sets."""

    steps: int = 2000
    online_steps: int = 20_000
    swap_datasets: bool = False

    @cached_load
    def load(self, seed):
        rng = np.random.default_rng(seed)
        q = np.zeros((SIZE, SIZE, 4))

        def by(random: float):
            return lambda at: rng.integers(4) if rng.random() < random else int(
                rng.choice(np.flatnonzero(q[at] == q[at].max())))
        replay = []
        while (done := sum(len(e) for e in replay)) < self.online_steps:
            replay.append(run_episode(by(max(1 - done / self.online_steps, 0.1)), "replay"))
            steps = replay[-1].steps
            seen = [tuple(int(v) for v in s) for s in steps["observation.state"]]
            for t in reversed(range(len(seen) - 1)):
                after = 1.0 if seen[t + 1] == GOAL else DISCOUNT * q[seen[t + 1]].max()
                q[(*seen[t], int(steps["action"][t, 0]))] += 0.5 * (after - q[(*seen[t], int(steps["action"][t, 0]))])
        whole = Dataset(replay)
        sets = {"random": self._collect(by(1.0), "random"), "halting": self._collect(by(0.5), "halting"),
                "noisy": self._collect(by(0.2), "noisy"), "expert": self._collect(by(0.0), "expert"),
                "replay": [replay[i] for i in rng.permutation(len(replay))]}
        cut = 4 * self.steps // 5
        sets["mixed"] = [
            *_truncate_to_steps(sets["random"], cut),
            *_truncate_to_steps(sets["expert"], self.steps - cut),
        ]
        sets["mixed"] = [replace(e, metadata={"set": "mixed"}) for e in sets["mixed"]]
        sets = {name: _truncate_to_steps(sets[name], self.steps) for name in SETS}
        low, best = (float(np.mean([e.steps["next.reward"].sum() for e in sets[k]])) for k in ("random", "expert"))
        tq = {k: trajectory_quality(Dataset(v), low, best) for k, v in sets.items()}
        if self.swap_datasets:
            tq = dict(zip(SETS, np.random.default_rng(seed).permutation(list(tq.values())), strict=True))
        share = {k: state_action_coverage(Dataset([v[i] for i in rng.permutation(len(v))]),
                             Dataset([whole[int(i)] for i in rng.permutation(len(whole))]), bins=SIZE)
                 for k, v in sets.items()}
        return Dataset([e for v in sets.values() for e in v], {"TQ": tq, "SACo": share, "random": low, "best": best})

    def _collect(self, act, name):
        found = []
        while sum(len(e) for e in found) < self.steps:
            found.append(run_episode(act, name))
        return found


def _truncate_to_steps(episodes, steps):
    ends = np.cumsum([len(e) for e in episodes])
    return list(episodes[: int(np.searchsorted(ends, steps)) + 1])


@dataclass(frozen=True)
class GridLearner:
    """cloning: the likeliest action. unconstrained: Q-learning with a network and a slower copy of it (DQN).
    constrained: the same, among actions that cloning finds at least `likely` times as likely as the likeliest (BCQ,
    Fujimoto et al. 2019)."""

    kind: Literal["cloning", "constrained", "unconstrained"]
    n_updates: int = 3000
    min_likelihood: float = 0.3


def one_hot_cells(at) -> torch.Tensor:
    at = torch.as_tensor(np.asarray(at)).long()
    return torch.cat([torch.nn.functional.one_hot(at[..., i], SIZE) for i in (0, 1)], -1).float()


def train_preferences(method: GridLearner, data: Dataset, seed: int):
    """(sets, SIZE, SIZE, 4): what the learner of each set prefers, all trained side by side."""
    rng, parts = torch.Generator().manual_seed(seed), []
    for name in SETS:
        some = [e.steps for e in data if e.metadata["set"] == name]
        state = np.concatenate([s["observation.state"][:-1] for s in some])
        after = np.concatenate([s["observation.state"][1:] for s in some])
        parts.append(
            (
                one_hot_cells(state),
                torch.as_tensor(np.concatenate([s["action"] for s in some]))[:, 0],
                one_hot_cells(after),
                torch.as_tensor((after == GOAL).all(1)).float(),
            )
        )
    grid = one_hot_cells(np.stack(np.meshgrid(range(SIZE), range(SIZE), indexing="ij"), -1).reshape(-1, 2))
    policy, q = (
        NetworkEnsemble(2 * SIZE, 4, len(SETS), seed=seed),
        NetworkEnsemble(2 * SIZE, 4, len(SETS), seed=seed + 1),
    )
    slow = NetworkEnsemble(2 * SIZE, 4, len(SETS), seed=seed + 1)
    clones, values = method.kind != "unconstrained", method.kind != "cloning"
    optim = torch.optim.Adam([*policy.parameters(), *q.parameters()], 1e-3)

    def allowed(x):
        if not clones:
            return torch.zeros(())
        log = policy(x).log_softmax(-1).detach()
        return torch.where(log >= log.amax(-1, keepdim=True) + np.log(method.min_likelihood), 0.0, -torch.inf)
    for n in range(method.n_updates):
        at = [torch.randint(len(p[0]), (64,), generator=rng) for p in parts]
        x, a, y, end = (torch.stack([p[k][i] for p, i in zip(parts, at, strict=True)]) for k in range(4))
        loss = torch.zeros(())
        if clones:
            loss = loss - policy(x).log_softmax(-1).gather(-1, a[..., None]).mean((1, 2)).sum()
        if values:
            with torch.no_grad():
                best = (q(y) + allowed(y)).argmax(-1, keepdim=True)
                wanted = end + (1 - end) * DISCOUNT * slow(y).gather(-1, best)[..., 0]
            loss = loss + (q(x).gather(-1, a[..., None])[..., 0] - wanted).square().mean(1).sum()
        optim.zero_grad()
        loss.backward()
        optim.step()
        if n % 50 == 0:
            slow.load_state_dict(q.state_dict())
    with torch.no_grad():
        found = policy(grid).log_softmax(-1) if not values else q(grid) + allowed(grid)
    return found.reshape(len(SETS), SIZE, SIZE, 4).numpy()


def rank_correlations(
    experiment, method: GridLearner, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """follows TQ, follows SACo: the rank correlation over the sets of the learner's return with that figure. at high
    TQ: its mean return, 0 random and 1 best, on sets with a TQ above 0.9."""
    prefers, rng = train_preferences(method, data, seed), np.random.default_rng([seed, abs(starts)])
    low, best = data.metadata["random"], data.metadata["best"]
    got = []
    for likes in prefers:
        def act(at, likes=likes):
            if method.kind != "cloning":
                return likes[at].argmax()
            odds = np.exp(likes[at])
            return rng.choice(4, p=odds / odds.sum())
        runs = [run_episode(act) for _ in range(episodes if method.kind == "cloning" else 1)]
        got.append((np.mean([e.steps["next.reward"].sum() for e in runs]) - low) / (best - low))
    tq, share = ([data.metadata[k][name] for name in SETS] for k in ("TQ", "SACo"))
    high = [g for g, q in zip(got, tq, strict=True) if q > 0.9] or [0.0]
    return {"follows TQ": [_rank_correlation(got, tq)], "follows SACo": [_rank_correlation(got, share)],
            "at high TQ": [float(np.mean(high))],
            **{f"on {name}": [float(g)] for name, g in zip(SETS, got, strict=True)}}


def _rank_correlation(got, figure) -> float:
    return float(spearmanr(got, figure)[0]) if np.ptp(got) > 0 else 0.0  # all alike follow nothing


def swapped_datasets(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, swap_datasets=True))


LEARNER_KINDS = ("cloning", "constrained", "unconstrained")
MAZE = Experiment(
    GridDatasets(),
    "grid",
    tuple(Arm(k, (GridLearner(k),)) for k in LEARNER_KINDS),
    rank_correlations,
    tuned_by="at high TQ",
    seeds=tuple(range(100, 106)),
    episodes=20,
    measures=(*((k, Measure("real", "correlation")) for k in ("follows TQ", "follows SACo")),
              *((k, Measure("real", "return fraction")) for k in ("at high TQ", *(f"on {name}" for name in SETS)))),
)

CLAIM = Claim(
    name="dataset-quality",
    rows=("308",),
    paper="Schweighofer et al. 2022, A Dataset Perspective on Offline Reinforcement Learning, arXiv 2111.04714",
    statement="Finally, the experiments show, that purely dataset-constrained Behavioral Cloning performs "
    "competitively to the best Offline RL algorithms for datasets with high TQ.",
    setup="a maze of four rooms, 7 x 7 cells, one start, one goal; six sets of 2,000 steps (random, mixed, all of the "
    "online agent's training, and its last policy with 50, 20 and 0 % of random actions); cloning, deep "
    "Q-learning and discrete BCQ, each a network of 64 x 2, judged after 3,000 updates. Over the sets, the "
    "return of cloning has a rank correlation above 0.8 with TQ, that of unconstrained Q-learning one above 0 "
    "with SACo; on sets with a TQ above 0.9 cloning is at most 0.1 below constrained and unconstrained "
    "Q-learning.",
    parts=(
        ClaimPart(
            "grid",
            MAZE,
            AllOf(
                (
                    AboveBound("follows TQ", "cloning", 0.8),
                    AboveBound("follows SACo", "unconstrained", 0.0),
                    GreaterThan("at high TQ", "cloning", "constrained", -0.1),
                    GreaterThan("at high TQ", "cloning", "unconstrained", -0.1),
                )
            ),
        ),
    ),
    negative_control=NegativeControl(
        "TQ exchanged between the sets", swapped_datasets, "grid",
        removes=(AboveBound("follows TQ", "cloning", 0.8),),
    ),
)
