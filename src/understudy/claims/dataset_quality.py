"""Row 308: where demonstrations are good, cloning keeps up with the best offline reinforcement learning.

A grid small enough that four data sets, three learners and all their training are a minute. The negative control judges
the same learners on sets of low quality.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from ..audit.scores import state_action_coverage, trajectory_quality
from ..audit.scores.network_scores import NetworkEnsemble
from ..data.episode import Dataset, Episode
from .base import (
    REAL,
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
from .curation import cached_load

SIZE, LIMIT, DISCOUNT = 7, 100, 0.97  # cells, and duration of an episode
MUD_SHARE, MUD_DELAY = 0.5, 3  # of the cells, and what a muddy cell adds to the duration of a step into it
GOAL = (6, 6)
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))
SETS = ("random", "mixed", "replay", "noisy", "expert")
LOW_QUALITY, HIGH_QUALITY = ("mixed", "replay"), ("noisy", "expert")
LEARNED = (*LOW_QUALITY, *HIGH_QUALITY)  # no learner is judged on random actions
HIGH_TQ, MOST_AGENTS = 0.9, 1000  # agents are drawn until the TQ of both sets of high quality is above this


def next_cell(at: tuple[int, int], action: int) -> tuple[int, int]:
    x, y = at[0] + MOVES[action][0], at[1] + MOVES[action][1]
    return (x, y) if 0 <= x < SIZE and 0 <= y < SIZE else at


# The cell after each action in each cell, (SIZE, SIZE, 4, 2).
NEXT = np.array([[[next_cell((x, y), a) for a in range(len(MOVES))] for y in range(SIZE)] for x in range(SIZE)])


def draw_durations(rng: np.random.Generator) -> np.ndarray:
    """How long a step into each cell takes, (SIZE, SIZE): 1, or more if the cell is muddy. The goal is not."""
    mud = rng.random((SIZE, SIZE)) < MUD_SHARE
    mud[GOAL] = False
    return 1 + MUD_DELAY * mud


def run_episode(act, durations: np.ndarray, name: str = "") -> Episode:
    """Runs from the corner until the goal or the time limit.

    The reward is DISCOUNT ** (time until then) at the goal, and 0 elsewhere.
    """
    at, seen, did, took = (0, 0), [(0, 0)], [], []
    while at != GOAL and sum(took) < LIMIT:
        did.append(int(act(at)))
        at = next_cell(at, did[-1])
        seen.append(at)
        took.append(int(durations[at]))
    reward = np.zeros(len(did), np.float32)
    reward[-1] = DISCOUNT ** sum(took) if at == GOAL else 0
    return Episode({"observation.state": np.array(seen, np.float32), "action": np.array(did)[:, None],
                    "duration": np.array(took, np.float32), "next.reward": reward}, {"set": name})


def expected_return(policy: np.ndarray, durations: np.ndarray) -> float:
    """The exact mean return of a policy.

    Args:
        policy: Probability of each action in each cell, (SIZE, SIZE, 4).
        durations: Duration of a step into each cell, (SIZE, SIZE).
    """
    into = durations[NEXT[..., 0], NEXT[..., 1]]
    present, mean = np.zeros((LIMIT + 1 + MUD_DELAY, SIZE, SIZE)), 0.0  # probability of each cell at each time
    present[0, 0, 0] = 1
    for time in range(LIMIT):
        flow = present[time][..., None] * policy
        for took in (1, 1 + MUD_DELAY):
            moved, some = np.zeros((SIZE, SIZE)), into == took
            np.add.at(moved, (NEXT[..., 0][some], NEXT[..., 1][some]), flow[some])
            mean += moved[GOAL] * DISCOUNT ** (time + took)
            moved[GOAL] = 0
            present[time + took] += moved
    return float(mean)


def best_actions(values: np.ndarray) -> np.ndarray:
    """The policy that takes the action of the highest value, with even odds between equal ones. (SIZE, SIZE, 4)."""
    best = values == values.max(-1, keepdims=True)
    return best / best.sum(-1, keepdims=True)


def optimal_return(durations: np.ndarray) -> float:
    """The return of the best policy, by value iteration."""
    into, value = durations[NEXT[..., 0], NEXT[..., 1]], np.zeros((SIZE, SIZE))
    at_goal = (NEXT == GOAL).all(-1)
    for _ in range(SIZE**2):
        q = DISCOUNT**into * np.where(at_goal, 1.0, value[NEXT[..., 0], NEXT[..., 1]])
        value = q.max(-1)
    return expected_return(best_actions(q.round(9)), durations)


@dataclass(frozen=True)
class GridDatasets(DemonstrationSource):
    """Five sets of `steps` steps, as in the paper. An agent that learns online (Q-learning in a table) gives all of its
    training ("replay") and its last policy, without and with random actions ("expert", "noisy"). "mixed" is 80 % random
    and 20 % expert.

    An agent that is stopped early may not have learned to reach the goal. Agents are drawn, each on a new grid, until
    the TQ of "expert" and of "noisy" is above HIGH_TQ.

    Args:
        steps: Steps of each set.
        online_steps: Steps of the agent's training. With few, it ends with a way that is not the best.
        noise: Share of random actions in "noisy".
        judged: The sets on which learners are compared.
    """

    steps: int = 2000
    online_steps: int = 3000
    noise: float = 0.05
    judged: tuple[str, ...] = HIGH_QUALITY

    @cached_load
    def load(self, seed):
        for attempt in range(MOST_AGENTS):
            found = self._from_agent(np.random.default_rng([seed, attempt]))
            if found is not None and min(found.metadata["TQ"][name] for name in HIGH_QUALITY) > HIGH_TQ:
                return Dataset(list(found), {**found.metadata, "agents": attempt + 1})
        raise RuntimeError("no agent learns")

    def _from_agent(self, rng) -> Dataset | None:
        """The sets of one agent on one grid, or None if the agent was never better than random actions."""
        durations, q, replay, seen_returns = draw_durations(rng), np.zeros((SIZE, SIZE, 4)), [], []

        def by(random: float):
            return lambda at: rng.integers(4) if rng.random() < random else int(
                rng.choice(np.flatnonzero(q[at] == q[at].max())))
        while (done := sum(len(e) for e in replay)) < self.online_steps:
            replay.append(run_episode(by(max(1 - done / self.online_steps, 0.1)), durations, "replay"))
            steps = replay[-1].steps
            seen = [tuple(int(v) for v in s) for s in steps["observation.state"]]
            for t in reversed(range(len(seen) - 1)):
                after = 1.0 if seen[t + 1] == GOAL else q[seen[t + 1]].max()
                place = (*seen[t], int(steps["action"][t, 0]))
                q[place] += 0.5 * (DISCOUNT ** float(steps["duration"][t]) * after - q[place])
            seen_returns.append(expected_return(best_actions(q), durations))
        low, best = expected_return(np.full((SIZE, SIZE, 4), 0.25), durations), max(seen_returns)
        if best <= low:
            return None
        whole = Dataset(replay)
        sets = {"random": self._collect(by(1.0), durations, "random"),
                "noisy": self._collect(by(self.noise), durations, "noisy"),
                "expert": self._collect(by(0.0), durations, "expert"),
                "replay": [replay[i] for i in rng.permutation(len(replay))]}
        cut = 4 * self.steps // 5
        sets["mixed"] = [
            *_truncate_to_steps(sets["random"], cut),
            *_truncate_to_steps(sets["expert"], self.steps - cut),
        ]
        sets["mixed"] = [replace(e, metadata={"set": "mixed"}) for e in sets["mixed"]]
        sets = {name: _truncate_to_steps(sets[name], self.steps) for name in SETS}
        tq = {k: trajectory_quality(Dataset(v), low, best) for k, v in sets.items()}
        share = {k: state_action_coverage(Dataset([v[i] for i in rng.permutation(len(v))]),
                             Dataset([whole[int(i)] for i in rng.permutation(len(whole))]), bins=SIZE)
                 for k, v in sets.items()}
        return Dataset([e for v in sets.values() for e in v], {
            "TQ": tq, "SACo": share, "random": low, "best": best, "durations": durations.tolist(),
            "optimum": (optimal_return(durations) - low) / (best - low)})

    def _collect(self, act, durations, name):
        found, done = [], 0
        while done < self.steps:
            found.append(run_episode(act, durations, name))
            done += len(found[-1])
        return found


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


def train_preferences(method: GridLearner, data: Dataset, seed: int):
    """(sets, SIZE, SIZE, 4): what the learner of each of the sets `LEARNED` prefers, all trained side by side."""
    rng, parts = torch.Generator().manual_seed(seed), []
    for name in LEARNED:
        some = [e.steps for e in data if e.metadata["set"] == name]
        cells = [np.concatenate([s["observation.state"][rows] for s in some]) @ [SIZE, 1]
                 for rows in (slice(None, -1), slice(1, None))]
        did, took = np.concatenate([s["action"] for s in some])[:, 0], np.concatenate([s["duration"] for s in some])
        parts.append(np.stack([*cells, did, took]).astype(np.int64))
    size = min(p.shape[1] for p in parts)
    state, after, action, took = torch.as_tensor(np.stack([p[:, :size] for p in parts], 1))  # (sets, steps) each
    discount = DISCOUNT ** took.float()
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
        x, y, a = grid[state[each, drawn]], grid[after[each, drawn]], action[each, drawn]
        end, factor = at_goal[each, drawn], discount[each, drawn]
        loss = torch.zeros(())
        if kind != "CQL":
            loss = loss - policy(x).log_softmax(-1).gather(-1, a[..., None]).mean((1, 2)).sum()
        if kind != "cloning":
            values = q(x)
            taken = values.gather(-1, a[..., None])[..., 0]
            loss = loss + (taken - factor * (end + (1 - end) * next_value(y))).square().mean(1).sum()
            if kind == "CQL":
                loss = loss + (values.logsumexp(-1) - taken).mean(1).sum()
        optim.zero_grad()
        loss.backward()
        optim.step()
        if n % 25 == 0:
            slow.load_state_dict(q.state_dict())
    with torch.no_grad():
        found = {"BCQ": lambda: q(grid) + allowed(grid), "CQL": lambda: q(grid)}.get(
            kind, lambda: policy(grid).log_softmax(-1))()
    return found.reshape(len(LEARNED), SIZE, SIZE, 4).numpy()


_trained: dict[tuple, np.ndarray] = {}  # the negative control judges the same training on other sets


def normalized_returns(
    experiment, method: GridLearner, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Exact mean returns, 0 that of random actions and 1 the best that the online agent had during its training.

    Returns:
        "return 1", "return 2", "TQ 1", "TQ 2", "SACo 1", "SACo 2": of the two judged sets. "return on NAME": of each
        set. "optimum": the return of the best policy. "agents": how many were drawn.
    """
    source = replace(experiment.source, judged=HIGH_QUALITY)
    if (source, method, seed) not in _trained:
        _trained[source, method, seed] = train_preferences(method, data, seed)
    low, best = data.metadata["random"], data.metadata["best"]
    got = {}
    for name, likes in zip(LEARNED, _trained[source, method, seed], strict=True):
        odds = np.exp(likes - likes.max(-1, keepdims=True))
        policy = odds / odds.sum(-1, keepdims=True) if method.kind == "cloning" else best_actions(likes)
        got[name] = (expected_return(policy, np.array(data.metadata["durations"])) - low) / (best - low)
    found = {f"return on {name}": [value] for name, value in got.items()}
    for i, name in enumerate(experiment.source.judged, 1):
        found |= {f"return {i}": [got[name]], f"TQ {i}": [data.metadata["TQ"][name]],
                  f"SACo {i}": [data.metadata["SACo"][name]]}
    return {**found, "optimum": [data.metadata["optimum"]], "agents": [float(data.metadata["agents"])]}


def low_quality(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, judged=LOW_QUALITY))


OFFLINE = ("BCQ", "CQL")
MARGIN = 0.05
# One rule for each of the judged sets and each of the other learners.
AS_GOOD_AS_BCQ = tuple(EquivalentTo(f"return {i}", "cloning", "BCQ", MARGIN) for i in (1, 2))
AS_GOOD_AS_CQL = tuple(EquivalentTo(f"return {i}", "cloning", "CQL", MARGIN) for i in (1, 2))
FRACTION = Measure("real", "return fraction")
GRID = Experiment(
    GridDatasets(),
    "grid",
    tuple(Arm(kind, (GridLearner(kind),)) for kind in ("cloning", *OFFLINE)),
    normalized_returns,
    tuned_by="return 1",
    seeds=tuple(range(220, 228)),
    tuning_seeds=(910,),
    starts_seed=220,
    episodes=1,
    looks=((5, 0.02), (8, 0.03)),
    measures=tuple((name, FRACTION) for name in (
        *(f"{name} {i}" for name in ("return", "TQ", "SACo") for i in (1, 2)),
        *(f"return on {name}" for name in LEARNED), "optimum")) + (("agents", REAL),),
    sanity=(("cloning", "optimum", 1.05), *((kind, f"return {i}", 0.9) for kind in OFFLINE for i in (1, 2)),
            *(("BCQ", f"return on {name}", 0.9) for name in LOW_QUALITY)),
)

CLAIM = Claim(
    name="dataset-quality",
    rows=("308",),
    paper="Schweighofer et al. 2022, A Dataset Perspective on Offline Reinforcement Learning, arXiv 2111.04714",
    statement="Finally, the experiments show, that purely dataset-constrained Behavioral Cloning performs "
    "competitively to the best Offline RL algorithms for datasets with high TQ.",
    setup="A grid of 7 x 7 cells with one start and one goal, in place of the paper's six environments. Half of the "
    "cells, drawn anew for each seed, are muddy: a step into them takes four times as long. The reward is 0.97 to the "
    "power of the time at the goal. Each seed trains an online agent (Q-learning in a table; the paper: DQN) for only "
    "3,000 steps, so that it ends with a way that is seldom the best: the best policy must have 1.05 or more on "
    "average, where random actions have 0 and the agent's own best has 1, as in the paper. So a learner can exceed "
    "the agent. The agent's steps make the paper's sets, of 2,000 steps in place of 100,000. The two of high quality "
    "are of the agent's last policy, with 5 % of random actions (set 1) and without (set 2). The paper's share is 20 "
    "%, with which TQ would not be high here. The statement is about sets of high TQ, so agents are drawn, each on a "
    "new grid, until the TQ of both sets is above 0.9; the number of agents drawn is reported. Cloning is compared "
    "with two of the paper's eight other learners: BCQ and CQL for discrete actions. Cloning and CQL train one "
    "network of 64 x 2, BCQ trains two, all with one learning rate and 1,500 updates, judged at the end (the paper: "
    "at the best evaluation during training). Cloning samples its actions, as in the paper; the others take the best. "
    "Nothing is tuned. Returns are exact, without rollouts. The claim holds if on each of the two sets the return of "
    "cloning is less than 0.05 away from that of BCQ and from that of CQL: \"competitively\" with the usual smallest "
    "effect. Eight seeds are planned, with one look after five (intervals of 98 % then, of 97 % after eight). BCQ and "
    "CQL must reach 0.9 on both sets. BCQ must also reach 0.9 on the paper's two sets of low quality (1 mixed, 2 "
    "replay), on which the negative control judges cloning and BCQ, so that its rule does not come from a learner "
    "that fails. The sets of low quality also have a higher coverage (SACo). Cloning copies its data, so its return "
    "is near TQ. The claim asks whether the others exceed it.",
    parts=(ClaimPart("grid", GRID, AllOf((*AS_GOOD_AS_BCQ, *AS_GOOD_AS_CQL))),),
    negative_control=NegativeControl(
        "the two sets of low quality in place of the two of high quality", low_quality, "grid",
        removes=AS_GOOD_AS_BCQ),
    revision="A new environment in which learners can exceed the agent that made the data: a grid with mud and an "
    "agent that is stopped early. In the maze before no learner could have more than 1. Agents are drawn until the TQ "
    "of both sets of high quality is above 0.9. A first run of this environment, with ten other seeds, stopped at an "
    "agent that had learned nothing. Each of the two sets is judged, against BCQ and against CQL, with a margin of "
    "0.05 (in that first run 0.1). Exact returns, eight new seeds. An earlier design held on the mean of both sets, "
    "and failed when each set was judged.",
)
