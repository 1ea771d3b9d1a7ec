"""Weights, training time and time of a plan of all named methods: python benchmarks/method_cost.py [METHOD ...]

Each method is trained for a few updates on random episodes that have the columns it reads (numbers, unless it needs
something else; a camera has 64 x 64 pixels), on one CPU core. Measured in CPU seconds:

- the training: what comes before the first update, and a mean update times the number that the method makes by
  default, with those of its stages, but without episodes that it collects;
- a plan: the slowest of 32 steps of an episode, without the first, which also prepares what later steps reuse. Each
  step is the fastest of up to five episodes, because other work on the machine only adds to the time.

The weights are those of all networks that are trained, stages included. Results are stored after each method in
src/understudy/methods/costs.json, which `understudy methods` shows. Without METHOD, those that are missing are
measured.
"""

from __future__ import annotations

if __name__ == "__main__":
    import measure

    measure.one_thread()

import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from dataclasses import replace  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.core import Feature, Schema, keys  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.mixture import mix  # noqa: E402
from understudy.data.shown_demonstration import DEMONSTRATION  # noqa: E402
from understudy.execute.actor import LAST_REWARD, Actor  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.learn.fit_method import FitResult, fit_method  # noqa: E402
from understudy.learn.method import Method  # noqa: E402
from understudy.methods import find_method, method_files  # noqa: E402
from understudy.methods.registry import COSTS  # noqa: E402
from understudy.testing import random_dataset  # noqa: E402

EPISODES, STEPS = 20, 100
UPDATES = 5  # timed, after two that are not
REPEATS, ENOUGH = 5, 3.0  # episodes of a plan's time, and the CPU seconds after which none begins
ACTS = 32  # steps of an episode: more than the longest chunk

NUMBERS = {"observation.environment_state": Feature("float32", (10,)), "observation.state": Feature("float32", (10,)),
           "action": Feature("float32", (7,)), "next.reward": Feature("float32", ()),
           "next.terminated": Feature("float32", ())}
CHOICES = {**NUMBERS, "action": Feature("int64", (1,), "discrete", num_classes=(7,))}
CAMERA = Feature("uint8", (64, 64, 3), "image")
WORDS = {"observation.task": Feature("uint8", (32,), "text")}
CELLS = {"observation.grid": Feature("int64", (10, 10), "discrete", num_classes=(3,) * 100),
         "observation.cell": Feature("int64", (2,), "discrete", num_classes=(10, 10))}
COLUMNS: dict[str, Schema] = {  # of methods that need more than numbers
    "procedure-cloning": {**CELLS, "action": NUMBERS["action"]},
    "thought-cloning": {**NUMBERS, "thought": Feature("string", (), "string")},
    "interactive-language": {**NUMBERS, "subtask": Feature("string", (), "string")},
    "arp": {**NUMBERS, **WORDS},
    "dualmind": {**NUMBERS, **WORDS},
    "omnijarvis": {**NUMBERS, **WORDS},
    "midas": {"observation.objects": Feature("float32", (5, 8)), "action": NUMBERS["action"],
              "observation.prompt.words": Feature("int64", (16,), "discrete", num_classes=(5,) * 16),
              "observation.prompt.objects": Feature("float32", (16, 8))},
    "ec-diffuser": {"observation.objects": Feature("float32", (5, 8)), "action": NUMBERS["action"]},
    "maskdp": {**NUMBERS, "observation.goal": NUMBERS["observation.state"]},
    "attention-tuner": {**NUMBERS, "recalled": Feature("int64", (1,))},
    "irm-bc": {**NUMBERS, "place": Feature("int64", (1,))},
    "skill-bc": {**NUMBERS, "skill": Feature("int64", (1,), "discrete", num_classes=(8,))},
    **dict.fromkeys(("flow-dpo", "preference-reward"), {
        **NUMBERS, "segment": Feature("int64", (1,), "discrete", num_classes=(2,)),
        "preference": Feature("int64", (1,), "discrete", num_classes=(3,))}),
    "fourier-transporter": {"observation.images.top": CAMERA, "action": Feature("float32", (5,))},
    "chauffeurnet": {**NUMBERS, "action": Feature("float32", (8,))},
    "retrieve-align-replay": {**NUMBERS, "observation.state": NUMBERS["action"]},  # a pose, and its velocity
    "dp3": {**NUMBERS, "observation.points": Feature("float32", (512, 3))},
    **dict.fromkeys(("class-contrastive", "mcr", "rig", "vinn-byol"), {**NUMBERS, "observation.images.top": CAMERA}),
    **dict.fromkeys(("discrete-bcq", "discrete-cql", "discrete-sac", "dqn", "nfq"), CHOICES),
}


def columns(name: str) -> Schema:
    """The columns that a method is measured on."""
    return COLUMNS.get(name, NUMBERS)


def demonstrations(name: str) -> Dataset:
    """Random episodes of a method's columns, half of them a task and half prior data."""
    data = random_dataset(columns(name), EPISODES, STEPS)
    if "segment" in columns(name):  # two segments of equal length, the first of which is better
        segment = np.arange(STEPS).reshape(-1, 1) * 2 // STEPS
        data = data.map(lambda e: e.replace({"segment": segment, "preference": 2 - 2 * segment}))
    data = Dataset([replace(e, metadata={**e.metadata, "proficiency": 1.0, "task": f"do {i % 5}", "trace": "up"})
                    for i, e in enumerate(data)])
    return mix(task=(data[: EPISODES // 2], 0.5), prior=(data[EPISODES // 2:], 0.5))[0]


def trained_briefly(method: Method, data: Dataset, stages: dict[str, FitResult]) -> tuple[FitResult, float]:
    """A method after a few updates, and the CPU seconds that all updates would take."""
    n_updates = method.learner.steps
    steps, ticks = min(n_updates, UPDATES + 2), [time.process_time()]
    short = replace(method, learner=replace(method.learner, steps=steps), stages=(), collection=None)
    result = fit_method(replace(short, stages=method.stages), data, 0, stages=stages,
                        callbacks=(lambda *_: ticks.append(time.process_time()),))
    if len(ticks) < 4:  # nothing is trained step by step
        return result, time.process_time() - ticks[0]
    return result, ticks[1] - ticks[0] + (ticks[-1] - ticks[2]) / (len(ticks) - 3) * (n_updates - 1)


def slowest_step(actor: Actor, schema: Schema, conditions: Iterable[str]) -> float:
    """CPU seconds of the slowest step after the first, with conditions such as a return or a number of steps."""
    obs = {k: torch.randn(1, *f.shape) if f.kind == "vector" else torch.ones(1, *f.shape, dtype=f.torch_dtype)
           for k, f in schema.items() if k.startswith("observation.")} | {LAST_REWARD: torch.ones(1)}
    obs |= dict.fromkeys(conditions, torch.full((1, 1), float(ACTS)))
    episodes: list[list[float]] = []
    while len(episodes) < REPEATS and sum(map(sum, episodes)) < ENOUGH:
        state, took = actor.start(obs, keys(0, range(1))), []
        for _ in range(ACTS):
            began = time.process_time()
            _, state = actor.act(obs, state)
            took.append(time.process_time() - began)
        episodes.append(took[1:])
    return max(map(min, zip(*episodes, strict=True)))


def cost(name: str) -> dict[str, float]:
    """Weights, CPU seconds of the training, and CPU milliseconds of a plan."""
    from understudy.commands.parts.conditions import open_conditions

    schema, data = columns(name), demonstrations(name)
    method = find_method(name, schema)
    stages: dict[str, FitResult] = {}
    seconds = 0.0
    for stage in method.stages:
        stages[stage.name], took = trained_briefly(stage.method, data, stages)
        seconds += took
    result, took = trained_briefly(method, data, stages)
    weights = {id(p): p.numel() for r in (*stages.values(), result) for m in r.modules.values()
               for p in m.parameters()}
    goals = {g.into: schema.get(g.column, CAMERA) for g in result.policy.window.goals}  # latents are of pictures
    extra = {k: f for k, f in result.policy.features.items() if k == "observation.task" or k.startswith(DEMONSTRATION)}
    plan = slowest_step(result.actor, {**schema, **goals, **extra}, open_conditions(result.method, schema))
    return {"weights": sum(weights.values()), "train_seconds": float(f"{seconds + took:.2g}"),
            "plan_ms": float(f"{1000 * plan:.2g}")}


def main(names: list[str]) -> None:
    import measure

    torch.set_num_threads(1)
    costs = read_json(COSTS) if COSTS.exists() else {"methods": {}}
    for name in names or [n for n in method_files() if n not in costs["methods"]]:
        costs["methods"][name] = cost(name)
        print(name, costs["methods"][name], file=sys.stderr, flush=True)
        costs["machine"] = measure.machine()["cpu"]
        costs["methods"] = {n: costs["methods"][n] for n in method_files() if n in costs["methods"]}
        write_json(COSTS, costs)


if __name__ == "__main__":
    main(sys.argv[1:])
