"""The whole workflow on a toy whose best possible result is known, in a few minutes: from demonstrations to evaluated
policies.

Budget and seeds are fixed here, before anything runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from .data.episode import Dataset
from .data.window import Window
from .envs import make
from .evaluate.evaluation import Evaluation, evaluate, recording_seed, verdict, verdict_parts
from .evaluate.recording import expert_actor, record_episodes
from .evaluate.report import (
    closed_loop_section,
    demonstrations_section,
    method_notes,
    next_step_section,
    training_section,
    write_page,
)
from .execute.chunking import RecedingHorizon
from .files import write_json
from .heads.base import Head
from .heads.denoising.flow import Flow
from .heads.likelihood.regression import Regression
from .hints import command_line
from .learn.behavior_cloning import BehaviorCloning
from .learn.method import Method, load_actor
from .learn.train import train
from .learn.training_curves import TrainingCurves
from .methods.registry import find_method
from .policy import PolicyConfig

TASK = "fork"  # around a pillar, left or right: both are equally good, and their mean hits the pillar
# So many that from any start about as many go left as right: a mean of few leans to one side, and gets by.
DEMONSTRATIONS, STEPS, EPISODES, SEED = 200, 2000, 200, 0
N_ACTION_STEPS = 4  # of every chunk that flow matching and mean regression plan
NAMES = {"flow": "flow matching", "regression": "mean regression", "bc": "bc"}  # by the name of the run
PURPOSES = {"flow": "learns all the ways that were shown, in chunks of actions",
            "regression": "has the same network and chunks, and learns the average of the ways",
            "bc": "is the plainest baseline, as `understudy train bc` makes it: the average, one action at a time"}
WHY = ("Mean regression fails because it averages the two ways and commits to the average for {steps} steps. bc "
       "averages them too, but plans again after every step: once it has left the middle, the demonstrations near it "
       "agree.")
ROWS = 16  # rows of every batch that a network gets in the evaluation


def method(head: Head) -> Method:
    """Builds one of the first two methods of the demo, which differ only in their heads."""
    return Method(PolicyConfig(head, window=Window(2, 8)), RecedingHorizon(N_ACTION_STEPS),
                  BehaviorCloning(steps=STEPS))


METHODS = {"flow": method(Flow()), "regression": method(Regression()), "bc": find_method("bc")}
Report = Callable[[str], None]


def demo(out: Path, *, device: str = "cpu", say: Report, bar) -> dict[str, Evaluation]:
    """Runs the demo in a folder. Steps that an earlier, interrupted call finished are not repeated.

    Args:
        bar: Called with (title, total). Returns a context manager that gives a function to call after each item.

    Returns:
        The evaluations by name of the run: "flow", "regression" and "bc".
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks as small as these gain nothing from more, and lose much on a busy machine
    try:
        return _run_demo(out, device, say, bar)
    finally:
        torch.set_num_threads(threads)


def _run_demo(out, device, say, bar):
    began, env = time.perf_counter(), make(TASK, 50)
    say(f"1/6  {DEMONSTRATIONS} demonstrations by the scripted expert of {TASK!r}: a point that must go round a "
        "pillar, on either side")
    with bar("recording", DEMONSTRATIONS) as progress:
        data = record_episodes(
            env,
            expert_actor(env),
            DEMONSTRATIONS,
            out / "demonstrations",
            recording_seed(SEED),
            actor_name="scripted",
            watch=lambda number, episode: progress(),
        )
    say(f"2/6  What is in them: {summary(data)}")
    for number, (run, chosen) in enumerate(METHODS.items(), 3):
        updates = chosen.learner.steps
        say(f"{number}/6  Training: {NAMES[run]}, which {PURPOSES[run]}; {updates} updates")
        train(chosen, data, out / run, seed=SEED, device=device, save_freq=updates // 4,
              command=command_line("demo", "--out", out.name),
              options={"command": "demo", "out": out.name, "device": device})
    say(f"6/6  All three in {TASK!r}, closed loop, from the same {EPISODES} starts, which no demonstration has")
    evaluations = {}
    for run, name in NAMES.items():
        with bar(name, EPISODES) as progress:
            evaluations[run] = evaluate(load_actor(out / run, device=device, rows=ROWS), env, EPISODES, SEED,
                                        watch=lambda number, episode, progress=progress: progress())
    write_json(out / "results.json", results(data, evaluations, env.metadata["optimum"]))
    head, certainty, scope = verdict_parts(evaluations["flow"], evaluations["regression"],
                                           (NAMES["flow"], NAMES["regression"]))
    rival = " ".join(verdict_parts(evaluations["flow"], evaluations["bc"], (NAMES["flow"], NAMES["bc"]))[:2])
    why = WHY.format(steps=N_ACTION_STEPS)
    named = {NAMES[run]: e for run, e in evaluations.items()}
    curves = {NAMES[run]: TrainingCurves.load(out / run) for run in evaluations}
    write_page(out / "report.html", f"Three policies from the same {DEMONSTRATIONS} demonstrations of {TASK!r}",
               [closed_loop_section(named, env), training_section(curves), demonstrations_section(data, env),
                *next_step_section({}, commands(out))],
               verdict=(head, f"{why} {rival}", f"{certainty} {scope}"), footer=method_notes(list(named.values())))
    for paragraph in (f"{head} {certainty}", why, rival, scope):
        say(f"\n{paragraph}")
    say(f"The best possible success in {TASK!r} is {env.metadata['optimum']:.1f}: {env.metadata['success']}.")
    say(f"That took {time.perf_counter() - began:.0f} s. Everything is in {out}")
    return evaluations


def commands(out: Path) -> list[tuple[str, str]]:
    """Returns commands to try next, and a description of each."""
    data = out / "demonstrations"
    return [(command_line("inspect", data), "What is in the demonstrations"),
            (command_line("eval", out / "flow", TASK, "--episodes", 100, "--against", out / "regression", "--seed", 1),
             "Two of them again, from other starts"),
            (command_line("train", "diffusion-policy", data, "--out", out / "mine", "--eval", TASK, "--save-freq", 400),
             "Another method on the same demonstrations, looked at while it trains")]


def summary(data: Dataset) -> str:
    """Describes the data of the demo in one line."""
    n_left = sum(e.steps["observation.state"][:, 1].mean() > 0 for e in data)
    won = sum(bool(e.metadata["success"]) for e in data)
    return (f"{len(data)} episodes, {data.steps} steps at {data.fps:g} a second, {won} succeeded; {n_left} go left of "
            f"the pillar, {len(data) - n_left} right")


def results(data: Dataset, evaluations: dict[str, Evaluation], optimum: float) -> dict:
    """Returns the results as JSON data, without numbers that differ between runs of the demo, such as times."""
    policies: dict[str, dict] = {}
    for run, e in evaluations.items():
        other = next(k for k in evaluations if k != run)
        measures = e.to_json(evaluations[other], other)
        assert e.successes is not None  # the toy tells of success
        policies[run] = {k: v for k, v in measures.items() if k != "seconds"} | {
            "updates": METHODS[run].learner.steps,
            "each": {"success": e.successes.tolist(), "return": e.episode_returns.tolist()}}
    return {"task": TASK, "optimum": optimum, "seed": SEED,
            "demonstrations": {"episodes": len(data), "steps": data.steps, "fingerprint": data.fingerprint()},
            "policies": policies,
            "verdict": verdict(*(evaluations[name] for name in ("flow", "regression")),
                               names=(NAMES["flow"], NAMES["regression"]))}
