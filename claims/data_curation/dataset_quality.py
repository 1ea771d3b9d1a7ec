"""Row 308: where demonstrations are good, cloning keeps up with the best offline reinforcement learning.

A maze small enough that four data sets, three learners and all their training are a minute. The negative control judges
the same learners on sets of low quality.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.audit.scores import state_action_coverage, trajectory_quality
from understudy.audit.scores.network_scores import NetworkEnsemble
from understudy.claims.base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    Measure,
    NegativeControl,
)
from understudy.claims.memo import Memo
from understudy.data.episode import Dataset, Episode

SIZE, LIMIT, DISCOUNT = 7, 60, 0.95
WALLS = {(3, y) for y in range(SIZE) if y not in (1, 5)} | {(x, 3) for x in range(SIZE) if x not in (1, 5)}
GOAL = (6, 6)
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))
SETS = ("random", "mixed", "replay", "noisy", "expert")
LOW_QUALITY, HIGH_QUALITY = ("mixed", "replay"), ("noisy", "expert")
LEARNED = (*LOW_QUALITY, *HIGH_QUALITY)  # no learner is judged on random actions


def next_cell(at: tuple[int, int], action: int) -> tuple[int, int]:
    x, y = at[0] + MOVES[action][0], at[1] + MOVES[action][1]
    return at if not (0 <= x < SIZE and 0 <= y < SIZE) or (x, y) in WALLS else (x, y)


def run_episode(act, name: str = "") -> Episode:
    """Runs from the corner until the goal or the step limit. The reward is MiniGrid's: 1 - 0.9 * steps / LIMIT at the
    goal, and 0 elsewhere."""
    at, cells, did = (0, 0), [(0, 0)], []
    while at != GOAL and len(did) < LIMIT:
        did.append(int(act(at)))
        at = next_cell(at, did[-1])
        cells.append(at)
    reward = np.zeros(len(did), np.float32)
    reward[-1] = (1 - 0.9 * len(did) / LIMIT) if at == GOAL else 0
    return Episode({"observation.state": np.array(cells, np.float32), "action": np.array(did)[:, None],
                    "next.reward": reward}, {"set": name})


@dataclass(frozen=True)
class GridDatasets(DemonstrationSource):
    """Five sets of `steps` steps, as in the paper. An agent that learns online (Q-learning in a table) gives all of its
    training ("replay") and its last policy, without and with 20 % of random actions ("expert", "noisy"). "mixed" is
    80 % random and 20 % expert.

    Args:
        steps: Steps of each set.
        online_steps: Steps of the agent's training.
        judged: The sets on which learners are compared.
    """

    steps: int = 2000
    online_steps: int = 20_000
    judged: tuple[str, ...] = HIGH_QUALITY
    probe_sizes = {"steps": 600, "online_steps": 5000}

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
            cells = [tuple(int(v) for v in s) for s in steps["observation.state"]]
            for t in reversed(range(len(cells) - 1)):
                after = 1.0 if cells[t + 1] == GOAL else DISCOUNT * q[cells[t + 1]].max()
                q[(*cells[t], int(steps["action"][t, 0]))] += 0.5 * (after - q[(*cells[t], int(steps["action"][t, 0]))])
        whole = Dataset(replay)
        sets = {"random": self._collect(by(1.0), "random"), "noisy": self._collect(by(0.2), "noisy"),
                "expert": self._collect(by(0.0), "expert"), "replay": [replay[i] for i in rng.permutation(len(replay))]}
        cut = 4 * self.steps // 5
        sets["mixed"] = [
            *_truncate_to_steps(sets["random"], cut),
            *_truncate_to_steps(sets["expert"], self.steps - cut),
        ]
        sets["mixed"] = [replace(e, metadata={"set": "mixed"}) for e in sets["mixed"]]
        sets = {name: _truncate_to_steps(sets[name], self.steps) for name in SETS}
        low, best = (float(np.mean([e.steps["next.reward"].sum() for e in sets[k]])) for k in ("random", "expert"))
        tq = {k: trajectory_quality(Dataset(v), low, best) for k, v in sets.items()}
        share = {k: state_action_coverage(Dataset([v[i] for i in rng.permutation(len(v))]),
                             Dataset([whole[int(i)] for i in rng.permutation(len(whole))]), bins=SIZE)
                 for k, v in sets.items()}
        return Dataset([e for v in sets.values() for e in v], {"TQ": tq, "SACo": share, "random": low, "best": best})

    def _collect(self, act, name):
        episodes = []
        while sum(len(e) for e in episodes) < self.steps:
            episodes.append(run_episode(act, name))
        return episodes


def _truncate_to_steps(episodes, steps):
    ends = np.cumsum([len(e) for e in episodes])
    return list(episodes[: int(np.searchsorted(ends, steps)) + 1])


@dataclass(frozen=True)
class GridLearner:
    """A learner from one of the sets, without the environment.

    "cloning" samples its actions, as in the paper. The others are Q-learning with a network and a slower copy of it,
    and are kept near the data in one of two ways. "BCQ" takes actions that cloning finds at least `min_likelihood`
    times as likely as the likeliest. "CQL" lowers the values of all actions and raises those of the data.

    References:
        Fujimoto et al. (2019), Benchmarking Batch Deep Reinforcement Learning Algorithms, arXiv:1910.01708.
        Kumar et al. (2020), Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779.
    """

    kind: Literal["cloning", "BCQ", "CQL"]
    lr: float = 1e-3
    n_updates: int = 1500
    min_likelihood: float = 0.3
    probe_sizes = {"n_updates": 60}


def train_preferences(method: GridLearner, data: Dataset, seed: int):
    """(sets, SIZE, SIZE, 4): what the learner of each of the sets `LEARNED` prefers, all trained side by side."""
    rng, parts = torch.Generator().manual_seed(seed), []
    for name in LEARNED:
        some = [e.steps for e in data if e.metadata["set"] == name]
        cells = [np.concatenate([s["observation.state"][rows] for s in some]) @ [SIZE, 1]
                 for rows in (slice(None, -1), slice(1, None))]
        parts.append(np.stack([*cells, np.concatenate([s["action"] for s in some])[:, 0]]).astype(np.int64))
    size = min(p.shape[1] for p in parts)
    state, after, action = torch.as_tensor(np.stack([p[:, :size] for p in parts], 1))  # (sets, steps) each
    at_goal = (after == GOAL[0] * SIZE + GOAL[1]).float()
    each = torch.arange(len(LEARNED))[:, None]
    row, column = (torch.nn.functional.one_hot(i, SIZE).float() for i in (torch.arange(SIZE**2) // SIZE,
                                                                         torch.arange(SIZE**2) % SIZE))
    grid = torch.cat([row, column], 1)  # what the networks see of each cell
    policy, q = (
        NetworkEnsemble(2 * SIZE, 4, len(LEARNED), seed=seed),
        NetworkEnsemble(2 * SIZE, 4, len(LEARNED), seed=seed + 1),
    )
    slow = NetworkEnsemble(2 * SIZE, 4, len(LEARNED), seed=seed + 1)
    kind = method.kind
    trained = {"cloning": (policy,), "CQL": (q,)}.get(kind, (policy, q))
    optim = torch.optim.Adam([p for net in trained for p in net.parameters()], method.lr)

    def allowed(x):
        log = policy(x).log_softmax(-1).detach()
        return torch.where(log >= log.amax(-1, keepdim=True) + np.log(method.min_likelihood), 0.0, -torch.inf)

    @torch.no_grad()
    def next_value(y):
        """The value of the best action in the state after."""
        chosen = q(y) + allowed(y) if kind == "BCQ" else q(y)
        return slow(y).gather(-1, chosen.argmax(-1, keepdim=True))[..., 0]

    for n in range(method.n_updates):
        drawn = torch.randint(size, (len(LEARNED), 64), generator=rng)
        x, y, a, end = grid[state[each, drawn]], grid[after[each, drawn]], action[each, drawn], at_goal[each, drawn]
        loss = torch.zeros(())
        if kind != "CQL":
            loss = loss - policy(x).log_softmax(-1).gather(-1, a[..., None]).mean((1, 2)).sum()
        if kind != "cloning":
            values = q(x)
            taken = values.gather(-1, a[..., None])[..., 0]
            loss = loss + (taken - (end + (1 - end) * DISCOUNT * next_value(y))).square().mean(1).sum()
            if kind == "CQL":
                loss = loss + (values.logsumexp(-1) - taken).mean(1).sum()
        optim.zero_grad()
        loss.backward()
        optim.step()
        if n % 25 == 0:
            slow.load_state_dict(q.state_dict())
    with torch.no_grad():
        preferences = {"BCQ": lambda: q(grid) + allowed(grid), "CQL": lambda: q(grid)}.get(
            kind, lambda: policy(grid).log_softmax(-1))()
    return preferences.reshape(len(LEARNED), SIZE, SIZE, 4).numpy()


_trained = Memo()  # the negative control judges the same training on other sets


def normalized_returns(
    experiment, method: GridLearner, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Mean returns, 0 that of random actions and 1 that of the online agent.

    Returns:
        "return": the mean over the judged sets. "on NAME": on each set. "on low quality": the mean over mixed and
        replay. "TQ", "SACo": means of these two figures over the judged sets.
    """
    source = replace(experiment.source, judged=HIGH_QUALITY)
    learned = _trained.get((source, method, seed), lambda: train_preferences(method, data, seed))
    rng = np.random.default_rng([seed, abs(starts)])
    low, best = data.metadata["random"], data.metadata["best"]
    got = {}
    for name, likes in zip(LEARNED, learned, strict=True):
        def act(at, likes=likes):
            if method.kind != "cloning":
                return likes[at].argmax()
            odds = np.exp(likes[at])
            return rng.choice(4, p=odds / odds.sum())
        runs = [run_episode(act) for _ in range(episodes if method.kind == "cloning" else 1)]
        got[name] = float((np.mean([e.steps["next.reward"].sum() for e in runs]) - low) / (best - low))

    def mean(of, names):
        return [float(np.mean([of[name] for name in names]))]

    judged = experiment.source.judged
    return {"return": mean(got, judged), "on low quality": mean(got, LOW_QUALITY),
            "TQ": mean(data.metadata["TQ"], judged), "SACo": mean(data.metadata["SACo"], judged),
            **{f"on {name}": [value] for name, value in got.items()}}


def low_quality(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, judged=LOW_QUALITY))


OFFLINE = ("BCQ", "CQL")
AS_GOOD_AS_THE_BEST = EquivalentTo("return", "cloning", "BCQ", 0.05)  # BCQ reaches the ceiling of 1 on every set
ON_EACH = tuple(EquivalentTo(f"on {name}", "cloning", "BCQ", 0.05) for name in HIGH_QUALITY)
MAZE = Experiment(
    GridDatasets(),
    "grid",
    tuple(Arm(kind, (GridLearner(kind),)) for kind in ("cloning", *OFFLINE)),
    normalized_returns,
    tuned_by="return",
    seeds=tuple(range(200, 205)),
    tuning_seeds=(910,),
    starts_seed=200,
    episodes=100,
    measures=tuple((name, Measure("real", "return fraction"))
                   for name in ("return", "on low quality", "TQ", "SACo", *(f"on {name}" for name in LEARNED))),
    sanity=(("cloning", "TQ", 0.9), ("cloning", "on expert", 0.9),
            *((kind, measure, least) for kind in OFFLINE for measure, least in
              (("return", 0.9), ("on low quality", 0.8)))),
)

CLAIM = Claim(
    name="dataset-quality",
    rows=("308",),
    parts=(
        ClaimPart("each set", MAZE, AllOf(ON_EACH)),
        ClaimPart("grid", MAZE, AS_GOOD_AS_THE_BEST, is_decisive=False),
    ),
    negative_control=NegativeControl(low_quality, "grid"),
)
