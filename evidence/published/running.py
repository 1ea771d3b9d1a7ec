"""Runs the missing training seeds of a cell, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pyarrow.parquet

from understudy.core import Feature, UserError, unknown_name
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.envs import make
from understudy.envs.base import Env
from understudy.envs.gymnasium_adapter import vectorize, wrap_vector
from understudy.evaluate.evaluation import evaluate
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.files import read_json, write_json
from understudy.heads.likelihood.categorical import Categorical
from understudy.improve.collection import random_episodes
from understudy.learn.critics.action_values import InverseActionValues
from understudy.learn.critics.td3 import TD3
from understudy.learn.method import Method, load_actor, load_policy
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

from .cells import CELLS, LAYOUTS
from .figures import FIGURES, SEEDS, load

DATA = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data"))
ROOT, ROWS = Path(__file__).parents[2], 50
CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


def run(name: str) -> None:
    """Runs the training seeds of a cell that are missing, and stores each figure as it is made.

    An interrupted training continues from its checkpoint in runs/published, and its figures are the same.
    """
    if name not in CELLS:
        raise unknown_name("cell", name, CELLS, "run")
    cell, figures = CELLS[name], load(name)
    if name not in RUNS:
        raise UserError(f"this cell needs {cell.needs}" if cell.needs else "a benchmark made this cell's figures",
                        where=name, hint="run another one; python -m evidence published lists them")
    done = {figure["seed"] for figure in figures if figure["updates"] >= cell.planned}
    for seed in sorted(set(SEEDS) - done):
        commit, folder, began = _commit(), Path("runs/published", f"{name}-{seed}"), time.process_time()
        is_new = not folder.exists()
        updates, value = RUNS[name](seed, folder)
        seconds = round(time.process_time() - began, 1) if is_new else None
        figures = [figure for figure in figures if figure["seed"] != seed] + [{
            "seed": seed, "value": value, "updates": updates, "seconds": seconds,
            "versions": {package: version(package) for package in ("torch", "numpy", "gymnasium")}, "commit": commit}]
        write_json(FIGURES / f"{name}.json", sorted(figures, key=lambda figure: figure["seed"]))
        print(f"{name}, seed {seed}: {value:.4g} after {updates:,} updates, {seconds} CPU s", flush=True)


def _commit() -> str:
    """The commit of the code that runs, which must have no other changes."""
    git = partial(subprocess.check_output, cwd=ROOT, text=True)
    if changed := git(["git", "status", "--porcelain", "src", "evidence/published", ":!evidence/published/figures"]):
        raise UserError(f"a figure names its commit, and there are changes outside of it: {changed}", where=ROOT,
                        hint="commit them first")
    return git(["git", "rev-parse", "HEAD"]).strip()


def _mean_return(folder: Path, env: Env, episodes: int, seed: int) -> float:
    """The mean return of a run's last weights, in other episodes for each training seed."""
    judged = evaluate(load_actor(folder, rows=ROWS), env, episodes, seed).episodes
    return float(np.mean([np.sum(e.steps["next.reward"]) for e in judged]))


def _collected(method: Method, data: Dataset, seed: int, folder: Path, env: Env) -> int:
    """Trains a method that collects episodes, and returns its updates."""
    train(method, data, folder, seed=seed, val_fraction=0, env=env)
    return int(Path(read_json(folder / "run.json")["last"]).name)


def _cartpole(seed: int, folder: Path) -> tuple[int, float]:
    """Every 20th step of a demonstration of 500 steps, with the observation that follows it."""
    learned = [e for e in open_dataset(DATA / "imitation/cartpole_expert.npz") if len(e) == 500]
    steps = learned[np.random.default_rng(seed).integers(len(learned))].steps
    classes = Feature("int64", (1,), "discrete", num_classes=(2,))
    state, action = np.asarray(steps["observation.state"]), np.asarray(steps["action"]).astype(np.int64)
    data = Dataset([Episode({"observation.state": state[[t, t + 1]], "action": action[[t]].reshape(1, 1),
                             "next.terminated": np.zeros(1, bool)}, schema={"action": classes})
                    for t in range(0, 500, 20)])
    policy = PolicyConfig(Categorical(), FeedForward((64, 64), "elu"), codec=Normalizer("identity"))
    train(Method(policy, learner=InverseActionValues()), data, folder, seed=seed, val_fraction=0)
    return 3000, _mean_return(folder, make("CartPole-v1", ROWS), 100, seed)


def _pendulum(name: str, seed: int, folder: Path) -> tuple[int, float]:
    """20,000 steps: 10,000 random ones and then episodes of 200, or with SAC only one random episode."""
    env, n_random = make("Pendulum-v1"), 200 if name == "sac" else 10_000
    data, n_rounds = random_episodes(env, n_random, seed), (20_000 - n_random) // 200
    if name == "sac":
        method = find_method(name, data.features(), n_rounds=n_rounds, n_steps=200)
        method = replace(method, learner=replace(method.learner, optimizer=CONSTANT))
    else:  # the noise is 0.1 of the largest torque, which is 2
        method, hidden = find_method(name, data.features(), n_rounds=n_rounds, n_steps=200, noise=0.2), (400, 300)
        learner = cast(TD3, method.learner)
        learner = replace(learner, critic=replace(learner.critic, hidden=hidden), batch_size=100, discount=0.98,
                          optimizer=CONSTANT)
        method = replace(method, policy=replace(method.policy, trunk=FeedForward(hidden)), learner=learner)
    return _collected(method, data, seed, folder, env), _mean_return(folder, make("Pendulum-v1", ROWS), 750, seed)


def _doorkey(seed: int, folder: Path) -> tuple[int, float]:
    env = _flat_room(8)
    data = random_episodes(env, 1024, seed)
    method = find_method("ppo", data.features(), n_rounds=98, n_steps=1024, n_epochs=10)
    rate = replace(CONSTANT, lr=2.5e-4, grad_clip_norm=0.5)
    method = replace(method, learner=replace(method.learner, optimizer=rate))
    return _collected(method, data, seed, folder, env), _mean_return(folder, _flat_room(ROWS), 1500, seed)


def _flat_room(rows: int) -> Env:
    """DoorKey with the partial view and the mission as one vector, as the zoo has it."""
    from minigrid.wrappers import FlatObsWrapper

    name = "MiniGrid-DoorKey-5x5-v0"
    return wrap_vector(vectorize(lambda: FlatObsWrapper(gymnasium.make(name)), rows), {"env": name, "limit": 250})


def _maze(seed: int, folder: Path) -> tuple[int, float]:
    """The mean of the weights after 80, 90 and 100 % of the updates, and of five goals with 50 episodes each."""
    data, method = open_dataset(DATA / "ogbench/pointmaze-medium-navigate-v0.npz"), find_method("gcbc")
    updates = CELLS["pointmaze-medium-gcbc"].planned
    looks = {updates * tenths // 10: folder / f"look-{tenths}" for tenths in (8, 9, 10)}

    def keep(n_updates: int, learner: Any, metrics: Any) -> None:
        if n_updates in looks:
            learner.trained_policy.save(looks[n_updates])
    train(method, data, folder, seed=seed, steps=updates, callbacks=(keep,), save_freq=updates // 50)
    envs = [make(f"ogbench/pointmaze-medium-v0:{goal}", ROWS) for goal in range(1, 6)]
    actors = [PolicyActor(FixedBatch(Policy.load(look), ROWS), method.executor) for look in looks.values()]
    return updates, 100 * float(np.mean([evaluate(a, env, 50, seed).successes for a in actors for env in envs]))


def _overcooked(layout: str, seed: int, folder: Path) -> tuple[int, float]:
    data, held_out = (_play(layout, part) for part in ("train", "test"))
    method = find_method("bc", data.features())
    train(method, data, folder, seed=seed, val_fraction=0.25, save_freq=250)
    policy = load_policy(folder / "best")
    losses = [-policy.log_prob(policy.context(batch.obs), policy.encode_batch(batch), batch.mask)[:, 0]
              for batch in policy.windows(held_out).scan()]
    return method.learner.steps, float(np.mean(np.concatenate([loss.detach().numpy() for loss in losses])))


MOVES, THINGS = [[0, -1], [0, 1], [1, 0], [-1, 0], [0, 0], "INTERACT"], ("onion", "dish", "soup")


def _play(layout: str, part: str) -> Dataset:
    """The trials of people in a layout, each once from the view of each player."""
    trials: dict[int, list[dict]] = {}
    for step in pyarrow.parquet.read_table(DATA / f"overcooked/human_human_2019_{part}.parquet").to_pylist():
        if step["layout_name"] == layout:
            trials.setdefault(step["trial"], []).append(step)
    rows = json.loads((DATA / "overcooked/layouts.json").read_text())[layout]
    size, classes = (len(rows), len(rows[0])), Feature("int64", (1,), "discrete", num_classes=(len(MOVES),))

    def view(state: dict, player: int) -> np.ndarray:
        cells = np.zeros((*size, 5))
        for item in state["objects"].values():
            x, y = item["position"]
            cells[y, x, THINGS.index(item["name"])] = 1
            if item["name"] == "soup":
                cells[y, x, 3:] = item["state"][1] / 3, item["state"][2] / 20
        parts: list[Any] = [cells.ravel()]
        for who in (state["players"][player], state["players"][1 - player]):
            place, carried = np.zeros(size), who.get("held_object", {}).get("name")
            place[who["position"][1], who["position"][0]] = 1
            parts += [place.ravel(), [move == who["orientation"] for move in MOVES[:4]], [carried == t for t in THINGS]]
        return np.concatenate(parts).astype(np.float32)

    def episode(steps: list[dict], player: int) -> Episode:
        actions = [MOVES.index(json.loads(step["joint_action"])[player]) for step in steps]
        return Episode({"observation.state": np.stack([view(json.loads(step["state"]), player) for step in steps]),
                        "action": np.array(actions, np.int64)[:, None]}, schema={"action": classes})
    return Dataset([episode(steps, player) for steps in trials.values() for player in (0, 1)])


RUNS: dict[str, Callable[[int, Path], tuple[int, float]]] = {
    "iq-cartpole": _cartpole,
    **{f"{name}-pendulum": partial(_pendulum, name) for name in ("td3", "ddpg", "sac")}, "ppo-doorkey": _doorkey,
    "pointmaze-medium-gcbc": _maze, **{f"overcooked-{name}": partial(_overcooked, name) for name in LAYOUTS}}
