"""Agents that act in an environment while they learn: published returns, and ours with their intervals.

    python benchmarks/published_agents.py                 runs what is missing; Ctrl-C and go on
    python benchmarks/published_agents.py sac-pendulum    of this table alone
    python benchmarks/published_agents.py --page          prints the tables of what has run
    python benchmarks/published_agents.py --tiny          a size that only shows that it runs

The protocols, fixed before the first run. Nothing is tuned. Each cell is judged by its last weights, without noise, in
new episodes that are the same ones for all seeds of a table.

- sac-pendulum: SAC, with the settings of rl-baselines3-zoo for Pendulum-v1: 20,000 steps, one update a step, rate
  1e-3, batch 256, networks of two layers of 256. 5 seeds of 100 episodes. Published: -157 +/- 89, the episodes of one
  run. What must show: the interval contains -157, or lies above.
- gail-cartpole: GAIL by PPO, the defaults of the method but `reward_every=1` and 100 rounds of 1,024 steps, on all
  57 episodes of the trained agent of `imitation` (mean length 473). 3 seeds of 50 episodes. Published: 500, one run.
  What must show: 500 in each seed.
- dagger-hopper and four others: DAgger by the settings of the course CS285, whose trained agent answers: 1,000
  updates on two of its episodes, then 9 rounds of 1,000 steps that the policy acts alone, of all episodes' labels 1,000
  updates each; batch 100, rate 5e-3, two tanh layers of 64. Beside it, cloning on the same two episodes with 1,000
  updates (`bc`) and with 10,000 (`bc-long`). 50 episodes and 5 seeds, of which two on Hopper and Walker2d were added
  when the first three were known. Published, single runs in an older simulator: Hopper 3773 of 3778, cloning 1059;
  Walker2d 4899, 661; HalfCheetah 3867, 3769; Ant 4734, 4513; Humanoid 8554, 4027. What must show: DAgger's return is
  95 % of the agent's, or more, by the interval. The agent of Humanoid was trained with another body (a torso of 8.32
  kg, 8.91 in MuJoCo 3.3) and reads its masses, which never changed. It is given those of its own body, and still falls
  in 3 of 20 episodes (seed 7, before any cell ran).
- hopper: 1 and 5 episodes of that agent, of which every 20th step is kept, from a random one of the first 20. BC, DAC,
  IQ-Learn and ROT, the defaults of the methods with networks of two layers of 128, rounds of 1,000 steps or more, and
  one update a step, until 40 rounds are over. ROT gets the kept steps of an episode as one episode, the others as
  transitions. BC has the weights that are best in 10 episodes of their own after 1, 2, 5, 10 and 20 thousand updates
  (batch 256, rate 1e-3). 3 seeds of 50 episodes. Nothing is published at this size. Predicted: DAC, IQ-Learn and ROT,
  each minus BC, lie above 0 with one episode. The first cell of DAC, one episode and seed 0, ended at a return of 4:
  its reward had no absorbing state, and it learned to fall. That was mended before the other cells ran.

The weights of the agents and the demonstrations are looked for in UNDERSTUDY_DATA.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import RESULTS as ALL_RESULTS  # noqa: E402
from measure import machine, one_thread, versions  # noqa: E402

from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.envs.base import EnvWrapper, HasExpert  # noqa: E402
from understudy.evaluate.evaluation import evaluate, recording_seed, validation_seed  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import two_level_difference, two_level_mean  # noqa: E402
from understudy.execute.actor import Actor, PolicyActor  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.execute.planners import FixedBatch  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.improve.collection import (  # noqa: E402
    CollectionRounds,
    RolloutCollector,
    SupervisorLabels,
    random_episodes,
)
from understudy.improve.updates import PerRound  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import Method, Stage, load_actor  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.nets.ema import ConstantDecay  # noqa: E402
from understudy.nets.feed_forward import FeedForward  # noqa: E402
from understudy.policy import Policy, PolicyConfig  # noqa: E402

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data"))
RUNS, RESULTS = Path("runs/published-agents"), ALL_RESULTS / "published-agents"
ROWS, KEPT, LOOKS = 10, 20, (1000, 2000, 5000, 10_000, 20_000)
UNCHANGED = 1e-4  # a standard deviation below it is that of rounding
STATE = "observation.state"


@dataclass(frozen=True)
class Table:
    env: str
    cells: tuple[str, ...]
    seeds: int
    episodes: int
    agent: str = ""  # the trained agent whose weights are under DATA
    env_options: tuple[tuple[str, object], ...] = ()

    def make(self, rows: int):
        return make(self.env, rows, **dict(self.env_options))


DAGGER = ("dagger", "bc", "bc-long")
TABLES = {
    "sac-pendulum": Table("Pendulum-v1", ("sac",), 5, 100),
    "gail-cartpole": Table("CartPole-v1", ("gail",), 3, 50),
    "dagger-hopper": Table("Hopper-v4", DAGGER, 5, 50, "hopper"),
    "dagger-walker2d": Table("Walker2d-v4", DAGGER, 5, 50, "walker2d"),
    "dagger-halfcheetah": Table("HalfCheetah-v4", DAGGER, 5, 50, "halfcheetah"),
    # This agent reads the forces of contact, 84 of its 111 numbers.
    "dagger-ant": Table("Ant-v4", DAGGER, 5, 50, "ant", (("use_contact_forces", True),)),
    "dagger-humanoid": Table("Humanoid-v4", DAGGER, 5, 50, "humanoid"),
    "hopper": Table("Hopper-v4", tuple(f"{name}-{n}" for n in (1, 5) for name in ("bc", "dac", "iq_learn", "rot")),
                    3, 50, "hopper"),
    "td3-halfcheetah": Table("HalfCheetah-v4", ("td3", "ddpg"), 3, 50),
}
PUBLISHED = {"sac": "-157", "td3": "5514", "gail": "500", "dagger-hopper": "3773 (of 3778)", "bc-hopper": "1059",
             "dagger-walker2d": "4899", "bc-walker2d": "661", "dagger-halfcheetah": "3867", "bc-halfcheetah": "3769",
             "dagger-ant": "4734", "bc-ant": "4513",
             "dagger-humanoid": "8554", "bc-humanoid": "4027"}
MOST = {"CartPole-v1": 500}  # the largest return that an episode can have


# -- trained agents -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent(Actor):
    """The mean action of a trained agent: a tanh network on standardized observations.

    An observation that never changed in its training, such as the mass of a part, is given to it as it was then.
    """

    weights: dict[str, np.ndarray]

    @classmethod
    def load(cls, name: str) -> Agent:
        with np.load(DATA / f"cs285/{name}_expert_policy.npz", allow_pickle=False) as arrays:
            return cls({key: arrays[key] for key in arrays if arrays[key].dtype.kind == "f"})

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        w = self.weights
        x = (obs[STATE].double().numpy() - w["obs_mean"]) / (w["obs_std"] + 1e-6)
        x = np.where(w["obs_std"] < UNCHANGED, 0, x)
        x = np.tanh(np.tanh(x @ w["W0"] + w["b0"]) @ w["W1"] + w["b1"])
        return torch.as_tensor(x @ w["W2"] + w["b2"]).float(), state


class WithAgent(EnvWrapper, HasExpert):
    """An environment whose expert is a trained agent."""

    def __init__(self, env, agent: Agent):
        super().__init__(env)
        self.agent = agent

    def expert(self):
        return self.agent


def demonstrations(table: Table, seed: int, count: int) -> Dataset:
    return rollout(Agent.load(table.agent), table.make(count), count, recording_seed(seed))


def with_ends(path: Path) -> Dataset:
    """Episodes of a file that says of each, not of each step, whether the environment ended it."""
    with np.load(path, allow_pickle=False) as arrays:
        ended = arrays["terminal"]
    data = open_dataset(path)
    return Dataset([Episode({**episode.steps, "action": np.asarray(episode.steps["action"]).reshape(-1, 1),
                             "next.terminated": (np.arange(len(episode)) == len(episode) - 1) & ended[i]})
                    for i, episode in enumerate(data)], data.metadata)


def kept_steps(data: Dataset, seed: int, whole: bool) -> Dataset:
    """Every 20th step: those of an episode as one episode, or each as an episode with the observation that follows."""
    rng, episodes = np.random.default_rng(seed), []
    for episode in data:
        obs, action = (np.asarray(episode.steps[k]) for k in (STATE, "action"))
        steps = np.arange(rng.integers(KEPT), len(episode), KEPT)
        if whole:
            parts = [(obs[[*steps, len(episode)]], action[steps])]
        else:
            parts = [(obs[[t, t + 1]], action[[t]]) for t in steps]
        episodes += [Episode({STATE: o, "action": a, "next.terminated": np.zeros(len(a), bool)}) for o, a in parts]
    return Dataset(episodes, {k: v for k, v in data.metadata.items() if k in ("env", "fps")})


# -- methods --------------------------------------------------------------------------------------------------------


def constant_rate(lr: float) -> OptimizerConfig:
    return OptimizerConfig(lr=lr, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


def cloning(hidden: tuple[int, ...], lr: float, batch_size: int, updates: int) -> Method:
    return Method(PolicyConfig(Regression(), FeedForward(hidden, "tanh"), window=Window(1, 1)), RecedingHorizon(),
                  BehaviorCloning(steps=updates, batch_size=batch_size, optimizer=constant_rate(lr),
                                  ema=ConstantDecay(0.0)))


def sac(features, n_rounds: int) -> Method:
    method = find_method("sac", features, n_rounds=n_rounds, n_steps=200)
    return replace(method, learner=replace(method.learner, optimizer=constant_rate(1e-3)))


def deterministic_actor_critic(name: str, features, n_rounds: int) -> Method:
    """TD3 or DDPG with the networks, rates and batches of the paper of TD3."""
    method, hidden = find_method(name, features, n_rounds=n_rounds, n_steps=1), (400, 300)
    learner = replace(method.learner, critic=replace(method.learner.critic, hidden=hidden), batch_size=100,
                      optimizer=constant_rate(1e-3))
    return replace(method, policy=replace(method.policy, trunk=FeedForward(hidden)), learner=learner)


def dagger(n_rounds: int, updates: int, n_steps: int) -> Method:
    collector = RolloutCollector(n_steps=n_steps, supervisor="expert")
    return replace(cloning((64, 64), 5e-3, 100, updates), collection=CollectionRounds(
        n_rounds, collector, relabel=(SupervisorLabels(),), updates=PerRound(updates), initial_updates=updates))


def from_demonstrations(name: str, n_rounds: int, n_steps: int) -> Method:
    """DAC, IQ-Learn or ROT with networks of 128 x 2."""
    method, trunk = find_method(name, n_rounds=n_rounds), FeedForward((128, 128))
    learner = replace(method.learner, critic=replace(method.learner.critic, hidden=(128, 128)))
    if name == "dac":
        learner = replace(learner, reward=replace(learner.reward, hidden=(128, 128)))
    collector = replace(method.collection.collector, n_episodes=None, n_steps=n_steps)
    stages = tuple(Stage(stage.name, replace(stage.method, policy=replace(stage.method.policy, trunk=trunk)))
                   for stage in method.stages)
    return replace(method, policy=replace(method.policy, trunk=trunk), learner=learner, stages=stages,
                   collection=replace(method.collection, collector=collector))


# -- cells ----------------------------------------------------------------------------------------------------------


def trained(name: str, cell: str, seed: int, folder: Path, tiny: bool) -> Actor:
    """The actor of a cell. An interrupted training goes on, but for the search of the best clone."""
    table, env = TABLES[name], TABLES[name].make(ROWS)
    if cell == "sac":
        first = random_episodes(env, 200, seed)
        method, data = sac(first.features(), 2 if tiny else 99), first
    elif name == "td3-halfcheetah":  # one row: each round is one episode
        env = table.make(1)
        data = random_episodes(env, 20 if tiny else 10_000, seed)
        method = deterministic_actor_critic(cell, data.features(), 1 if tiny else 90)
    elif cell == "gail":
        data = with_ends(DATA / "imitation/cartpole_expert.npz")
        method = find_method("gail", data.features(), n_rounds=2 if tiny else 100)
        method = replace(method, learner=replace(method.learner, reward_every=1))
    elif name != "hopper":
        data, env = demonstrations(table, seed, 2), WithAgent(env, Agent.load(table.agent))
        updates = 20 if tiny else 1000
        method = (dagger(1, updates, 20) if tiny else dagger(9, updates, 1000)) if cell == "dagger" else cloning(
            (64, 64), 5e-3, 100, updates * (10 if cell == "bc-long" else 1))
    else:
        kind, count = cell.rsplit("-", 1)
        data = kept_steps(demonstrations(table, seed, 5).select(range(int(count))), seed, whole=kind == "rot")
        if kind == "bc":
            return best_clone(data, seed, env, LOOKS[:2] if tiny else LOOKS)
        method = from_demonstrations(kind, *((1, 20) if tiny else (40, 1000)))
    collects = {} if method.collection is None else {"env": env}
    train(method, data, folder, seed=seed, val_fraction=0, **collects)
    return load_actor(folder, rows=ROWS)


def best_clone(data: Dataset, seed: int, env, looks: tuple[int, ...]) -> Actor:
    method, scores = cloning((128, 128), 1e-3, 256, looks[-1]), []

    def look(n_updates, learner, metrics):
        if n_updates not in looks or "loss" not in metrics:
            return
        policy = Policy(learner.policy.config, learner.policy.features)
        policy.load_state_dict(learner.trained_policy.state_dict())
        actor = PolicyActor(FixedBatch(policy.eval(), ROWS), method.executor)
        scores.append((evaluate(actor, env, 10, validation_seed(seed)).returns.estimate, n_updates, actor))
        print(f"bc, seed {seed}, {n_updates} updates: {scores[-1][0]:.0f}", flush=True)
    fit_method(method, data, seed, callbacks=(look,))
    return max(scores, key=lambda entry: entry[0])[2]


def run(name: str, cell: str, seed: int, runs: Path, results: Path, tiny: bool) -> None:
    table, began = TABLES[name], time.process_time()
    actor = trained(name, cell, seed, runs / f"{name}-{cell}-{seed}", tiny)
    seconds = time.process_time() - began
    returns = [float(np.sum(e.steps["next.reward"])) for e in
               evaluate(actor, table.make(ROWS), 2 if tiny else table.episodes, seed=0).episodes]
    rounds = runs.glob(f"{name}-{cell}-{seed}/collection/*/round.json")
    write_json(results / f"{name}-{cell}-{seed}.json", {
        "returns": returns, "collected": sum(read_json(path)["steps"] for path in rounds),
        "seconds": round(seconds, 1), "machine": machine(),
        "versions": versions("torch", "numpy", "gymnasium", "mujoco")})
    print(f"{name}, {cell}, seed {seed}: {np.mean(returns):.1f}, {seconds:.0f} CPU s", flush=True)


def agent_returns(name: str, results: Path, episodes: int) -> list[float]:
    """The returns of the trained agent in the episodes of a table."""
    file, table = results / f"{name}-agent.json", TABLES[name]
    if not file.exists():
        episodes_ = evaluate(Agent.load(table.agent), table.make(ROWS), episodes, seed=0).episodes
        write_json(file, {"returns": [float(np.sum(e.steps["next.reward"])) for e in episodes_]})
    return read_json(file)["returns"]


# -- tables ---------------------------------------------------------------------------------------------------------


def tables(results: Path) -> list[str]:
    """Lines of Markdown."""
    lines = ["| task, agent | published | here | percent of the agent | minus cloning | steps collected |",
             "|---|---|---|---|---|---|"]
    for name, table in TABLES.items():
        cells = {cell: [read_json(f) for seed in range(table.seeds)
                        if (f := results / f"{name}-{cell}-{seed}.json").exists()] for cell in table.cells}
        returns = {cell: np.array([entry["returns"] for entry in entries]) for cell, entries in cells.items()
                   if len(entries) == table.seeds}
        for cell, values in returns.items():
            clone = "bc-" + cell.rsplit("-", 1)[1] if name == "hopper" else "bc-long"
            against = signed(two_level_difference(values, returns[clone], kind="real")[0]) if (
                clone in returns and clone != cell) else ""
            file = results / f"{name}-agent.json"
            share = whole(two_level_mean(100 * values / np.mean(read_json(file)["returns"]))) if (
                file.exists()) else ""
            published = PUBLISHED.get(cell, PUBLISHED.get(f"{cell}-{table.agent}", ""))
            collected = np.mean([entry["collected"] for entry in cells[cell]])
            mean = two_level_mean(values)
            mean = replace(mean, high=min(mean.high, MOST.get(table.env, math.inf)))
            lines.append(f"| {table.env}, {cell} | {published} | {whole(mean)} | {share} | {against} "
                         f"| {collected:,.0f} |")
    return lines


def whole(interval) -> str:
    return f"{interval.estimate:,.0f} [{interval.low:,.0f}, {interval.high:,.0f}]"


def signed(interval) -> str:
    return f"{interval.estimate:+,.0f} [{interval.low:+,.0f}, {interval.high:+,.0f}]"


def main(arguments: list[str]) -> None:
    one_thread()
    names, tiny = [a for a in arguments if not a.startswith("--")], "--tiny" in arguments
    runs = Path("runs/published-agents-tiny") if tiny else RUNS
    results = runs / "results" if tiny else RESULTS
    for name in () if "--page" in arguments else names or TABLES:
        table = TABLES[name]
        if table.agent:
            agent_returns(name, results, 2 if tiny else table.episodes)
        for seed in range(1 if tiny else table.seeds):
            for cell in table.cells:
                if not (results / f"{name}-{cell}-{seed}.json").exists():
                    run(name, cell, seed, runs, results, tiny)
    print("\n".join(tables(results)))


if __name__ == "__main__":
    main(sys.argv[1:])
