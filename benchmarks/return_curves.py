"""Returns of SAC, TD3, PPO, DQN and GAIL while they learn, and in other libraries: python benchmarks/return_curves.py

SAC and TD3 learn Pendulum-v1, PPO and DQN learn CartPole-v1, from the environment alone, with the same settings in all
libraries: for SAC and PPO those that stable-baselines3 has by default, but 1,000 random steps before SAC and TD3 learn;
for TD3 and DQN those of understudy. Ours acts in eight environments. The noise of TD3 is 0.1 here, in units of an
action that reaches 2, and 0.1 of that range, which is 0.2, in the peers. DQN of the peer is not double, and clips
gradients at 10. The peers do not normalize observations. Steps are those that are learned. Some episodes that run
beside them are dropped; with one environment none is, and the training is the same. CleanRL's files of SAC and TD3 have
their own settings but for the random steps; their critics of SAC learn at 1e-3.

After every 1,000 or 2,000 steps the deterministic policy is evaluated from the same starts, 100 of Pendulum-v1 and 20
of CartPole-v1, whose time is not counted. One cell is one seed of one library on one thread; its file in
benchmarks/results/return-curves has the steps, the returns and the CPU seconds of the training, compilation included:
that of JAX, and that of SAC in another row, which starts without what the cache of PyTorch has from before.
The seconds were taken out of cells of SAC on Hopper from a slower machine. Cells that are there are not run again. With
--page, only the table is printed: the mean return at the end, the CPU seconds in all, and the steps and CPU seconds
until the mean return first reaches the level, each with the 95 % interval over seeds (Student's t).

SAC, TD3 and PPO also learn Hopper-v4, to a return of 2,300 in 20 episodes, at which a training is over.

GAIL learns CartPole-v1 from all 57 episodes of the trained agent of imitation, to nine tenths of its mean return. It is
compared with imitation, each with its own settings. The file of the episodes is in UNDERSTUDY_DATA/imitation.

Each peer has its environment, benchmarks/peers/NAME.txt. CleanRL runs if CLEANRL names its repository
(github.com/vwxyzjn/cleanrl, here at fe8d8a03).
"""

from __future__ import annotations

import measure

measure.one_thread()

import argparse  # noqa: E402
import math  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

from understudy.core import keys  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402

SEEDS = range(5)
AGAINST_SBX = 1.0  # CPU seconds of SBX to the level of SAC, in ours


class Task(NamedTuple):
    """What a method learns.

    Attributes:
        max_steps: After which a training ends.
        every: Steps between evaluations.
        n_episodes: Episodes of an evaluation.
        level: The return that the table asks for.
        stops: Whether the training ends at the level.
    """

    env: str
    max_steps: int
    every: int
    n_episodes: int
    level: float
    stops: bool = False


TASKS = {
    "sac": Task("Pendulum-v1", 10_000, 1000, 100, -160.0),
    "td3": Task("Pendulum-v1", 10_000, 1000, 100, -160.0),
    "ppo": Task("CartPole-v1", 40_000, 2000, 20, 475.0),
    "dqn": Task("CartPole-v1", 20_000, 2000, 20, 475.0),
    "gail": Task("CartPole-v1", 40_960, 2048, 20, 0.9 * 473.1),
    "sac-hopper": Task("Hopper-v4", 200_000, 5000, 20, 2300.0, stops=True),
    "td3-hopper": Task("Hopper-v4", 200_000, 5000, 20, 2300.0, stops=True),
    "ppo-hopper": Task("Hopper-v4", 500_000, 20_000, 20, 2300.0, stops=True),
}
ACTOR_CRITICS = ("stable-baselines3", "sbx", "cleanrl")
PEERS = {**dict.fromkeys(("sac", "td3", "sac-hopper", "td3-hopper"), ACTOR_CRITICS), "gail": ("imitation",),
         "ppo-hopper": ("stable-baselines3", "sbx")}
ENVIRONMENTS = {"stable-baselines3": "sb3"}  # of libraries whose environment has another name
DEMONSTRATIONS = Path(os.environ.get("UNDERSTUDY_DATA", "../shared/data")) / "imitation" / "cartpole_expert.npz"
FOLDER = measure.RESULTS / "return-curves"
COMPILED = "understudy-compiled"


def libraries(task: str) -> tuple[str, ...]:
    compiled = (COMPILED,) if task == "sac" else ()
    return "understudy", *compiled, *PEERS.get(task, ("stable-baselines3",))


def cell(task: str, library: str, seed: int) -> Path:
    return FOLDER / f"{task}-{library}-{seed}.json"


def method_name(task: str) -> str:
    return task.split("-")[0]


def run_own(task: str, library: str, seed: int) -> None:
    """Writes the returns of one training of ours."""
    import copy

    from published_agents import with_ends

    from understudy import PolicyActor, make
    from understudy.evaluate.evaluation import evaluate
    from understudy.improve.collection import random_episodes
    from understudy.learn.captured import capture
    from understudy.learn.fit_method import fit_method
    from understudy.methods import find_method

    name, n_steps, every, n_episodes, level, stops = TASKS[task]
    method = method_name(task)
    env, judged = make(name, 8), make(name, n_episodes)
    began, excluded = now(), 0.0
    first = with_ends(DEMONSTRATIONS) if method == "gail" else random_episodes(env, 1000, seed)
    on_policy = method in ("ppo", "gail")
    options = {} if on_policy else {"n_steps": 200}
    chosen_method = find_method(method, first.features(), n_rounds=10_000, **options)
    counted = 0 if on_policy else first.steps  # PPO learns nothing but scales from random steps
    curve: dict[str, list[float]] = {"steps": [], "returns": [], "cpu_seconds": []}
    around_compilation: list[float] = []

    class Finished(Exception):
        pass

    def watch(n_updates, learner, metrics):
        nonlocal counted, excluded
        if library == COMPILED and len(around_compilation) < min(n_updates, 2):
            around_compilation.append(now())
            if n_updates == 1:
                capture(learner)
        if "round" not in metrics:
            return
        if counted >= every * (len(curve["steps"]) + 1) or counted >= n_steps:
            paused = now()
            actor = PolicyActor(copy.deepcopy(learner.trained_policy).eval(), chosen_method.executor)
            curve["steps"].append(counted)
            curve["returns"].append(evaluate(actor, judged, n_episodes).returns.estimate)
            curve["cpu_seconds"].append(round(paused - began - excluded, 2))
            excluded += now() - paused
            if stops and curve["returns"][-1] >= level:
                raise Finished
        if counted >= n_steps:
            raise Finished
        counted += int(metrics["round/steps"])
    try:
        fit_method(chosen_method, first, seed, env=env, callbacks=[watch])
        raise AssertionError("there are more rounds than steps")
    except Finished:
        if library == COMPILED:
            curve["compilation"] = [round(around_compilation[1] - around_compilation[0], 2)]
        write_json(cell(task, library, seed), curve)


def now() -> float:
    """CPU seconds of this process and of those that it waited for, such as compilers."""
    return sum(os.times()[:4])


def run(task: str, library: str, seed: int) -> None:
    if library in ("understudy", COMPILED):
        with tempfile.TemporaryDirectory() as cache:
            os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            process = multiprocessing.get_context("spawn").Process(target=run_own, args=(task, library, seed))
            process.start()
            process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
        return
    name, n_steps, every, n_episodes, level, stops = TASKS[task]
    method = method_name(task)
    end = str(level if stops else math.inf)
    scripts = {"imitation": ["imitation_return_curve.py", DEMONSTRATIONS],
               "cleanrl": ["cleanrl_return_curves.py", os.environ.get("CLEANRL", ""), method, end]}
    script, *first = scripts.get(library, ["sb3_return_curves.py", library, method, end])
    starts = [int(key) % 2**31 for key in keys(0, range(n_episodes))]  # as the adapter of Gymnasium makes them
    python = measure.installed(ENVIRONMENTS.get(library, library))
    subprocess.run([python, Path(__file__).parent / "peers" / script, *first, name, str(n_steps), str(every),
                    str(seed), cell(task, library, seed), *map(str, starts)], check=True, stdout=subprocess.DEVNULL)


def interval(values: list[float], digits: int = 0) -> str:
    """The mean, and its 95 % interval over seeds, if there are several."""
    from scipy import stats

    if len(values) < 2:
        return f"{values[0]:,.{digits}f}" if values else "–"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean:,.{digits}f} [{mean - half:,.{digits}f}, {mean + half:,.{digits}f}]"


def curves(task: str, library: str) -> dict[int, dict]:
    """The cells that have been run, by seed."""
    return {seed: read_json(path) for seed in SEEDS if (path := cell(task, library, seed)).exists()}


def at_level(task: str, curve: dict) -> int | None:
    """Which evaluation first reaches the level. None if none does."""
    return next((i for i, value in enumerate(curve["returns"]) if value >= TASKS[task].level), None)


def lines() -> list[measure.Line]:
    """SAC against SBX: CPU seconds to the level, of the seeds that reach it in both."""
    judged = []
    for library, words in (("understudy", ""), (COMPILED, ", compiled")):
        sides = curves("sac", library), curves("sac", "sbx")
        seconds: list[list[float]] = [[c["cpu_seconds"][i] for s, c in side.items() if s in sides[0] and s in sides[1]
                                       and (i := at_level("sac", c)) is not None] for side in sides]
        if not seconds[0] or len(seconds[0]) != len(seconds[1]):
            continue
        compilation = [x for c in sides[0].values() for x in c.get("compilation", ())]
        note = f"{len(seconds[0])} seeds" + (f"; compilation: {statistics.median(compilation):.0f} s, counted"
                                             if compilation else "")
        judged.append(measure.Line(
            f"SAC{words}, CPU seconds to {TASKS['sac'].level:g} on Pendulum-v1, against SBX",
            *(measure.Figure.of(values, "s") for values in seconds), measure.ratio(seconds[1], seconds[0]),
            AGAINST_SBX, note=note))
    return judged


def page() -> str:
    rows = ["| method, task and library | last return | CPU seconds | steps to the level | CPU seconds to the level | "
             "seeds that reach it |", "|---|--:|--:|--:|--:|--:|"]
    for task, spec in TASKS.items():
        for library in libraries(task):
            cells = [*curves(task, library).values()]
            if not cells:
                continue
            reached = [at_level(task, c) for c in cells]
            steps, seconds = ([c[k][i] for c, i in zip(cells, reached, strict=True) if i is not None and k in c]
                              for k in ("steps", "cpu_seconds"))
            last, whole = (interval([c[k][-1] for c in cells if k in c]) for k in ("returns", "cpu_seconds"))
            rows.append(f"| {task}, {spec.env} to {spec.level:g}, {library} | {last} | {whole} | {interval(steps)} | "
                         f"{interval(seconds)} | {len(steps)} of {len(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--only", choices=TASKS, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="run these, to share them out")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in () if options.page else options.seeds:
        for task in TASKS if options.only is None else (options.only,):
            for library in libraries(task):
                if not cell(task, library, seed).exists() and (library != "cleanrl" or "CLEANRL" in os.environ):
                    print(task, library, seed, file=sys.stderr, flush=True)
                    run(task, library, seed)
    print(page())


if __name__ == "__main__":
    main()
