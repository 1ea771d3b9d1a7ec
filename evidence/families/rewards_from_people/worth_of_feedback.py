"""Rows 097, 278 and 294: what an action, a yes and a final result are worth, where all values can be computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.mdp import MDP, slippery_grid
from understudy.evaluate.stats import two_level_rate

Values = dict[str, list[float]]
GRAPH, GRID = "graph", "grid"
N_STATES, N_ACTIONS, HORIZON, GOAL, SLIP = 20, 4, 10, 6, 0.1  # of a graph
SIZE, N_HOLES, LIMIT, DISCOUNT = (8, 5), 6, 60, 0.95  # of a grid


def graph(rng: np.random.Generator) -> MDP:
    """A random process. One action of each state leads to the next state, the others lead up to three back.

    Each step in state 6 has reward 1. A slip leads to any state.
    """
    states = np.arange(N_STATES)
    after = np.stack([rng.integers(np.maximum(states - 3, 0), states + 1) for _ in range(N_ACTIONS)], 1)
    after[states, rng.integers(N_ACTIONS, size=N_STATES)] = np.minimum(states + 1, N_STATES - 1)
    rewards = np.zeros((N_STATES, N_ACTIONS, N_STATES))
    rewards[GOAL] = 1
    none = np.zeros(N_STATES, bool)
    return MDP((1 - SLIP) * np.eye(N_STATES)[after] + SLIP / N_STATES, rewards, np.eye(N_STATES)[0], none, none,
               np.zeros((N_STATES, 2)))


def grid(rng: np.random.Generator) -> MDP:
    """A grid of 8 x 5 cells with a start, a goal that can be reached, and six holes that end an episode."""
    marks = list("SG" + "H" * N_HOLES + "." * (SIZE[0] * SIZE[1] - N_HOLES - 2))
    while True:
        process = slippery_grid(["".join(row) for row in rng.permutation(marks).reshape(SIZE[::-1])], 0.0)
        if process.best_success(LIMIT):
            return process


def worlds(kind: str, seed: int, n: int) -> list[MDP]:
    """The first worlds of a training seed."""
    make = graph if kind == GRAPH else grid
    return [make(np.random.default_rng([seed, number])) for number in range(n)]


class Batch:
    """Several processes of one size: transitions (W, S, A, S), rewards (W, S, A) and so on.

    Nothing follows a final state, whose transitions are 0.
    """

    def __init__(self, processes: list[MDP]):
        self.moves = np.stack([p.transitions for p in processes])
        self.final, self.success = (np.stack([getattr(p, name) for p in processes]) for name in ("final", "success"))
        self.transitions = self.moves * ~self.final[:, :, None, None]
        self.rewards = np.stack([(p.transitions * p.rewards).sum(2) for p in processes])
        self.start = np.array([p.start.argmax() for p in processes])
        self.rows = np.arange(len(processes))


def draw(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One outcome for each row of probabilities (..., outcomes)."""
    return (p.cumsum(-1) < rng.random(p.shape[:-1])[..., None]).sum(-1).clip(max=p.shape[-1] - 1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def greedy(x: np.ndarray) -> np.ndarray:
    """All best actions with equal probability."""
    best = x >= x.max(-1, keepdims=True) - 1e-9
    return best / best.sum(-1, keepdims=True)


# -- demonstrations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demonstrations(DemonstrationSource):
    """Episodes of the best policy of each world. Their metadata have its kind and its number.

    Args:
        n_worlds: Worlds of each kind.
        n_graph: Demonstrations of a graph.
        n_steps: Demonstrated steps of a grid, at least.
    """

    n_worlds: int = 20
    n_graph: int = 64
    n_steps: int = 2000

    def load(self, seed):
        rng, episodes = np.random.default_rng([seed, 1]), []
        for kind, horizon in ((GRAPH, HORIZON), (GRID, LIMIT)):
            for number, process in enumerate(worlds(kind, seed, self.n_worlds)):
                best, steps, n = process.best_policy(horizon, 1.0 if kind == GRAPH else DISCOUNT), 0, 0
                while n < self.n_graph if kind == GRAPH else steps < self.n_steps:
                    episodes.append(demonstration(process, best, rng, {"kind": kind, "world": number}))
                    steps, n = steps + len(episodes[-1]), n + 1
        return Dataset(episodes)


def demonstration(process: MDP, best: np.ndarray, rng: np.random.Generator, metadata: dict) -> Episode:
    states, actions = [int(process.start.argmax())], []
    while len(actions) < len(best) and not process.final[states[-1]]:
        actions.append(int(draw(best[len(best) - 1 - len(actions), states[-1]], rng)))
        states.append(int(draw(process.transitions[states[-1], actions[-1]], rng)))
    return Episode({"observation.state": np.array(states), "action": np.array(actions)}, metadata)


def of_world(data: Dataset, kind: str, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """States (T + 1,) and actions (T,) of the demonstrations of a world."""
    return [(e.steps["observation.state"], e.steps["action"]) for e in data
            if e.metadata["kind"] == kind and e.metadata["world"] == number]


class Arm(ABC):
    """What learns from one kind of feedback. Subclasses are frozen dataclasses."""

    @abstractmethod
    def measure(self, data: Dataset, seed: int, n: int) -> Values:
        """Learns in the first `n` worlds of a training seed. One value per world."""


def learn_and_measure(experiment, arm: Arm, data: Dataset, seed: int, episodes: int, starts: int) -> Values:
    """A measure of arms: "episodes" are worlds, which are new in each training seed."""
    return arm.measure(data, seed, episodes)


# -- an action: demonstrations and regularization (294) ---------------------------------------------------------------

EPSILON = 0.05 * HORIZON  # largest gap to the best return
BONUS, WEIGHT = 0.2, 10.0


def backward(transitions, rewards, bonus=0.0, *, policy=None, reference=None, weight=0.0) -> tuple:
    """Values and policy of all steps to go, (HORIZON, W, S, A) each.

    Args:
        bonus: Added to each value, which never exceeds the number of steps to go.
        policy: Evaluate this policy. None for the best one.
        reference: The best policy then maximizes the return less `weight` times the divergence from this policy.
    """
    value, values, chosen = np.zeros(rewards.shape[:2]), [], []
    for h in range(HORIZON):
        q = np.minimum(rewards + np.einsum("wsat,wt->wsa", transitions, value) + bonus, h + 1)
        cost = 0.0
        if policy is not None:
            p = policy[h]
        elif reference is not None and weight:
            p = softmax(np.log(reference[h]) + q / weight)
            cost = weight * (p * np.log(np.maximum(p, 1e-300) / reference[h])).sum(-1)
        else:
            p = greedy(q)
        value = (p * q).sum(-1) - cost
        values.append(q)
        chosen.append(p)
    return np.array(values), np.array(chosen)


def expected_return(batch: Batch, policy: np.ndarray) -> np.ndarray:
    """Exact return of a policy in each world, (W,)."""
    values, _ = backward(batch.transitions, batch.rewards, policy=policy)
    return (policy[-1] * values[-1]).sum(-1)[batch.rows, batch.start]


def counts(data: Dataset, n_worlds: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How often the first `n` demonstrations took each action, by steps to go, and had each transition."""
    acted = np.zeros((HORIZON, n_worlds, N_STATES, N_ACTIONS))
    moved = np.zeros((n_worlds, N_STATES, N_ACTIONS, N_STATES))
    for w in range(n_worlds):
        for states, actions in of_world(data, GRAPH, w)[:n]:
            acted[np.arange(HORIZON)[::-1], w, states[:-1], actions] += 1
            np.add.at(moved[w], (states[:-1], actions, states[1:]), 1)
    return acted, moved


def smoothed(acted: np.ndarray) -> np.ndarray:
    """The clone that minimizes the loss with a logarithmic barrier: add-one smoothing."""
    return (acted + 1) / (acted + 1).sum(-1, keepdims=True)


@dataclass(frozen=True)
class Cloned(Arm):
    """The smoothed clone of `n` demonstrations."""

    n: int

    def measure(self, data, seed, n):
        batch = Batch(worlds(GRAPH, seed, n))
        best = expected_return(batch, backward(batch.transitions, batch.rewards)[1])
        return {"gap": (best - expected_return(batch, smoothed(counts(data, n, self.n)[0]))).tolist()}


@dataclass(frozen=True)
class Explored(Arm):
    """Optimistic value iteration until its policy is as good as the best one but for `EPSILON`.

    Args:
        use: "policy": the divergence from their clone costs. "transitions": they are counted as own steps. "nothing":
            the divergence from the uniform policy costs as much as with as many demonstrations.
        limit: Most episodes.
    """

    n: int = 0
    use: Literal["policy", "transitions", "nothing"] = "policy"
    limit: int = 2000

    def measure(self, data, seed, n):
        batch, rng = Batch(worlds(GRAPH, seed, n)), np.random.default_rng([seed, 2])
        acted, moved = counts(data, n, self.n)
        counted = moved if self.use == "transitions" else np.zeros_like(moved)
        options = {"reference": smoothed(acted * (self.use == "policy")),
                   "weight": 0.0 if self.use == "transitions" else
                   WEIGHT * EPSILON * self.n / (N_STATES * N_ACTIONS * HORIZON)}
        best = expected_return(batch, backward(batch.transitions, batch.rewards)[1])
        needed = np.full(n, self.limit)
        for episode in range(self.limit):
            visits = counted.sum(-1)
            model = counted / np.maximum(visits, 1)[..., None]
            gap = best - expected_return(batch, backward(model, batch.rewards, **options)[1])
            needed = np.where(gap <= EPSILON, np.minimum(needed, episode), needed)
            if needed.max() < self.limit:
                break
            bonus = BONUS * HORIZON * np.sqrt(np.log(N_STATES * N_ACTIONS * HORIZON) / np.maximum(visits, 1))
            bonus = np.where(visits > 0, bonus, HORIZON)
            _, policy = backward(model, batch.rewards, bonus, **options)
            state = batch.start
            for h in reversed(range(HORIZON)):
                action = draw(policy[h, batch.rows, state], rng)
                after = draw(batch.moves[batch.rows, state, action], rng)
                counted[batch.rows, state, action, after] += 1
                state = after
        return {"log episodes": np.log(np.maximum(needed, 1)).tolist()}


# -- a yes: evaluative feedback (097) ---------------------------------------------------------------------------------


class Person:
    """Somebody who judges actions in grids.

    Args:
        feedback: "advantage": of the present policy. "fading": 1 for a best action and -1 for another, times the
            probability that the present policy errs. "action": 1 and -1. "reward": 1 in the step that reaches the goal.
        judged: "own": the policy of the learner. "left": one that always goes left. "any": the uniform one.
    """

    def __init__(self, batch: Batch, feedback: str, judged: str):
        self.batch, self.feedback = batch, feedback
        self.reached = np.einsum("wsat,wt->wsa", batch.transitions, batch.success.astype(float))
        value = np.zeros(batch.final.shape)
        for _ in range(LIMIT):
            q = self.reached + DISCOUNT * np.einsum("wsat,wt->wsa", batch.transitions, value)
            value = q.max(-1)
        self.best = q >= value[..., None] - 1e-9
        other = np.eye(4)[2] if judged == "left" else np.full(4, 0.25)
        self.policy = None if judged == "own" else np.broadcast_to(other, q.shape)

    def judge(self, own: np.ndarray, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Feedback for an action in each world, (W,)."""
        policy, at = own if self.policy is None else self.policy, (self.batch.rows, state, action)
        if self.feedback == "reward":
            return self.reached[at]
        if self.feedback == "advantage":
            return self.advantage(policy)[at]
        sign = np.where(self.best[at], 1.0, -1.0)
        return sign * (1 - (policy * self.best).sum(-1)[self.batch.rows, state]) if self.feedback == "fading" else sign

    def advantage(self, policy: np.ndarray) -> np.ndarray:
        """Discounted value of each action less that of the policy, (W, S, A)."""
        moves = np.einsum("wsa,wsat->wst", policy, self.batch.transitions)
        value = np.linalg.solve(np.eye(moves.shape[1]) - DISCOUNT * moves, (policy * self.reached).sum(-1)[..., None])
        q = self.reached + DISCOUNT * np.einsum("wsat,wt->wsa", self.batch.transitions, value[..., 0])
        return q - value

    def chance_of_goal(self, policy: np.ndarray) -> np.ndarray:
        """Probability of reaching the goal within `LIMIT` steps, (W,)."""
        moves, value = np.einsum("wsa,wsat->wst", policy, self.batch.transitions), np.zeros(self.batch.final.shape)
        for _ in range(LIMIT):
            value = (policy * self.reached).sum(-1) + np.einsum("wst,wt->ws", moves, value)
        return value[self.batch.rows, self.batch.start].clip(0, 1)  # without errors of rounding


def coach_step(logits, trace, at, feedback, rate, decay):
    """One update of COACH: a trace of gradients of the log-probability, times the feedback.

    Args:
        at: (rows, states, actions), (W,) each, that the feedback is about.
    """
    rows, states, actions = at
    gradient = -softmax(logits[rows, states])
    gradient[rows, actions] += 1
    trace *= decay
    trace[rows, states] += gradient
    logits += rate * feedback[:, None, None] * trace


@dataclass(frozen=True)
class Coached(Arm):
    """A table that learns from a person's feedback on its own steps.

    Args:
        feedback: See `Person`.
        learner: "coach"; "tamer", which regresses the feedback and acts greedily; "q", whose reward it is.
        rate: Learning rate.
        delay: Steps until the feedback for an action arrives.
        compensated: Whether it changes the action that it is about. Otherwise the newest one.
        judged: The policy that the feedback is about, see `Person`.
    """

    feedback: str
    learner: Literal["coach", "tamer", "q"] = "coach"
    rate: float = 1.0
    delay: int = 0
    compensated: bool = True
    judged: str = "own"
    steps: int = 2000

    def measure(self, data, seed, n):
        batch, rng = Batch(worlds(GRID, seed, n)), np.random.default_rng([seed, 3])
        person, rows = Person(batch, self.feedback, self.judged), batch.rows
        table, to_policy = np.zeros_like(batch.rewards), softmax if self.learner == "coach" else greedy
        trace, state, clock, stream = np.zeros_like(table), batch.start, np.zeros(n, int), []
        for t in range(self.steps):
            policy = to_policy(table)
            action = draw(policy[rows, state], rng)
            after = draw(batch.moves[rows, state, action], rng)
            stream.append((state, action, after, person.judge(policy, state, action)))
            if t >= self.delay:
                s, a, then, _ = stream[t - self.delay if self.compensated else t]
                self.update(table, trace, (rows, s, a), stream[t - self.delay][3], batch.final[rows, then],
                            table[rows, then].max(-1))
            clock = clock + 1
            ended = batch.final[rows, after] | (clock >= LIMIT)
            state, clock = np.where(ended, batch.start, after), np.where(ended, 0, clock)
        return {"goal": person.chance_of_goal(to_policy(table)).tolist()}

    def update(self, table, trace, at, feedback, is_final, next_value):
        if self.learner == "coach":
            coach_step(table, trace, at, feedback, self.rate, 0.0)
        else:
            target = feedback + (0.9 * next_value * ~is_final if self.learner == "q" else 0)
            table[at] += self.rate * (target - table[at])


@dataclass(frozen=True)
class ClonedSteps(Arm):
    """The most frequent action of `n` demonstrated steps in each state of a grid, and any where there is none."""

    n: int

    def measure(self, data, seed, n):
        batch = Batch(worlds(GRID, seed, n))
        acted = np.zeros_like(batch.rewards)
        for w in range(n):
            states, actions = (np.concatenate(column)[:self.n] for column in zip(
                *((s[:-1], a) for s, a in of_world(data, GRID, w)), strict=True))
            np.add.at(acted[w], (states, actions), 1)
        return {"goal": Person(batch, "action", "own").chance_of_goal(greedy(acted)).tolist()}


# -- a final result: outcome rewards (278) ----------------------------------------------------------------------------

N_CONTEXTS, N_CHOICES, N_GOOD = 20, 50, 5


@dataclass(frozen=True)
class Outcome(Arm):
    """A softmax table that learns from samples which are right or wrong. A world has 20 questions with 50 answers.

    In each update and question, samples are drawn, and one right and one wrong one of them train.

    Args:
        negatives: What the wrong sample does. "none". "naive": its log-probability is lowered, with reward -1.
            "reshaped": the ratio of its probabilities is lowered, weighted by its leave-one-out advantage, as in
            OREAL. "ratio": the same, weighted by 1. "flipped": as "reshaped", in the wrong direction. "reinforce": all
            samples train by the policy gradient, and are drawn from the present policy.
        n: Number of samples.
    """

    negatives: Literal["none", "naive", "reshaped", "ratio", "flipped", "reinforce"] = "none"
    n: int = 16
    rate: float = 0.3
    steps: int = 4000

    def measure(self, data, seed, n):
        world, rng = np.random.default_rng([seed, 4]), np.random.default_rng([seed, 5])
        first = softmax(world.normal(size=(n, N_CONTEXTS, N_CHOICES)))
        is_right = world.random(first.shape).argsort(-1).argsort(-1) < N_GOOD
        best = first * is_right / (first * is_right).sum(-1, keepdims=True)
        logits, distances = np.log(first), []
        for t in range(self.steps):
            policy = softmax(logits)
            distances.append(np.abs(policy - best).sum(-1).mean(-1) / 2)
            logits += self.rate * (1 - t / self.steps) * self.gradient(policy, first, is_right, rng)
        last = np.abs(softmax(logits) - best).sum(-1).mean(-1) / 2
        return {"distance": last.tolist(), "log area": np.log(np.mean(distances, 0)).tolist()}

    def gradient(self, policy, first, is_right, rng):
        """Direction in which the logits move, for one draw of samples."""
        source = policy if self.negatives == "reinforce" else first
        drawn = draw(np.broadcast_to(source[:, :, None], (*source.shape[:2], self.n, source.shape[2])), rng)
        right = np.take_along_axis(is_right, drawn, -1)
        n_right, total = right.sum(-1), np.zeros_like(policy)
        if self.negatives == "reinforce":
            for j in range(self.n):
                push(total, policy, drawn[..., j], (right[..., j] - n_right / self.n) / (self.n - 1))
            return total
        positive, negative = (entry(drawn, (mask * rng.random(mask.shape)).argmax(-1)) for mask in (right, ~right))
        both = (n_right > 0) & (n_right < self.n)
        shaped = self.negatives in ("reshaped", "flipped")
        push(total, policy, positive, (n_right > 0) * (1 - (n_right - 1) / (self.n - 1) if shaped else 1.0))
        if self.negatives != "none":
            ratio = 1.0 if self.negatives == "naive" else entry(policy, negative) / entry(first, negative)
            size = both * ratio * (n_right / (self.n - 1) if shaped else 1.0)
            push(total, policy, negative, size if self.negatives == "flipped" else -size)
        return total


def entry(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The entry of the last axis with this index."""
    return np.take_along_axis(table, index[..., None], -1)[..., 0]


def push(total: np.ndarray, policy: np.ndarray, answer: np.ndarray, weight: np.ndarray) -> None:
    """Adds a weight times the gradient of the log-probability of an answer with respect to the logits."""
    total -= weight[..., None] * policy
    np.put_along_axis(total, answer[..., None], (entry(total, answer) + weight)[..., None], -1)


# -- the table --------------------------------------------------------------------------------------------------------

NUMBERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class InverseToNumber(Rule):
    """The episodes fall as a power of the number of demonstrations that is -1 up to 0.5."""

    arms = tuple(f"{n} demonstrations" for n in NUMBERS)
    measure = "log episodes"

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        values = np.array([measurements[arm][self.measure] for arm in self.arms])  # (numbers, seeds, worlds)
        x = np.log(NUMBERS) - np.mean(np.log(NUMBERS))
        slope = two_level_rate(np.tensordot(x, values, 1) / (x @ x) + 1, level, kind="real")
        condition = Condition("log episodes: 1 + exponent of the number of demonstrations", slope.estimate, slope.low,
                              slope.high, "within", 0.5)
        return RuleResult(condition.verdict, (condition,))


TABLE = Experiment(
    Demonstrations(), env="tabular", measure=learn_and_measure, first_seed=840, episodes=20,
    arms={
        **{f"{n} demonstrations": Explored(n) for n in NUMBERS},
        "optimism": Explored(), "16 as transitions": Explored(16, "transitions"), "clone of 64": Cloned(64),
        **{f"uniform, {n}": Explored(n, "nothing") for n in NUMBERS},
        "COACH, advantage": Coached("advantage", rate=100.0), "COACH, fading": Coached("fading", rate=10.0),
        "COACH, reward": Coached("reward", rate=10.0),
        "TAMER, advantage": Coached("advantage", "tamer", 0.3), "TAMER, fading": Coached("fading", "tamer", 0.3),
        "Q, advantage": Coached("advantage", "q", 0.3), "Q, fading": Coached("fading", "q", 0.3),
        "COACH, 3 steps late": Coached("advantage", rate=100.0, delay=3),
        "COACH, 3 steps late, unaware": Coached("advantage", rate=100.0, delay=3, compensated=False),
        "COACH, random walk judged": Coached("advantage", rate=100.0, judged="any"),
        "2,000 demonstrated steps": ClonedSteps(2000), "100 demonstrated steps": ClonedSteps(100),
        "another policy judged": Coached("advantage", rate=100.0, judged="left"),
        "best of 16": Outcome(), "best of 4": Outcome(n=4), "naive negatives": Outcome("naive"),
        "reshaped negatives": Outcome("reshaped"), "negatives by ratio": Outcome("ratio"),
        "policy gradient": Outcome("reinforce"),
        "flipped": Outcome("flipped")})
