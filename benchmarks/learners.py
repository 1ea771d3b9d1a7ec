"""Which learner for which data: the learners of three questions on equal terms:
python benchmarks/learners.py [mixed | rewards | goals | --tiny | --page]

- mixed: good and poor episodes with rewards, and no environment. The world of the table `weighted-strata`: 100 episodes
  of the fork by demonstrators with noise from 0.1 to 0.8 m/s, half of whom aim through the pillar. Each step costs
  0.01. `td3-bc` learns without practice. Cloning learns all episodes, those that succeeded, or the quarter with the
  largest returns.
- rewards: three demonstrations without rewards, and an environment to practice in. The world of the tables
  `lipschitz-reward` and `transport-from-a-clone`: the fork with gusts, in which all episodes have 40 steps. The
  demonstrations are successes, so that filtered cloning is cloning. Practice has 15 rounds of 4 episodes, with one
  update for each step. `gail`, which learns from its newest round only, has its own rounds of 1,024 steps: 2 of them,
  which are about as many steps, and 23, which are about ten times as many. Cloning of 50 demonstrations is the rival of
  practice.
- goals: walks without a task, and a goal that is given while acting. The world of the table `hilbert-directions`: 100
  walks of four rooms that must be stitched. They have no outcome or reward by which cloning could be filtered.

Methods have their defaults, except that all arms of a question have the same networks (two layers of 64), batches
(128), learning rate (1e-3) and number of updates: 2,000, and 2,400 in rewards. Stages have as many of their own. These
numbers were chosen for the time that they take. Nothing is tuned, and no arm is left out after its run.

The rule, written before the first judged run: success in 300 starts, which are the same for all arms, and 5 training
seeds, which no table or pilot of one has. Each seed has new data. All pairs of arms are compared on the same seeds and
starts, by an interval over both, and the p-values of a question are adjusted by Holm's method. Arms that share a letter
cannot be told apart. The advice names the plainest arm that shares a letter with the best.

The cells, one for each seed and arm, are kept in results/learners/. A run that was stopped continues. --budget 8m
starts no cell later than that. --tiny keeps its cells in results/learners-tiny/, and shows only that everything runs.
--page writes the tables of docs/learners.md from the cells that there are, and from those of published_goals.py, which
have larger networks.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

sys.path.insert(0, str(measure.HERE.parent))
from arm_tables import ArmColumn, arm_table  # noqa: E402

from evidence.experiment import DemonstrationSource  # noqa: E402
from evidence.families.bad_demonstrations.mixed_demonstrations import GradedDemonstrations  # noqa: E402
from evidence.families.goals.named_goals import Walks  # noqa: E402
from evidence.families.matching_rewards.matching_rewards import Successes, WindyFork  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.mixture import DATASET_NAME  # noqa: E402
from understudy.data.operations import Filter, Operation, Select  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.envs.base import Env  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.evaluate.stats import Kind  # noqa: E402
from understudy.files import read_json, write_json  # noqa: E402
from understudy.learn.critic import CriticConfig  # noqa: E402
from understudy.learn.method import Method, load_actor  # noqa: E402
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward  # noqa: E402
from understudy.learn.train import train  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.methods.offline_rl.iw_sft import ReturnStrata  # noqa: E402
from understudy.nets.feed_forward import FeedForward  # noqa: E402

HIDDEN, BATCH, RATE = (64, 64), 128, 1e-3
N_ROUNDS, N_EPISODES = 15, 4  # of practice
ROWS = 50
N_PUBLISHED = 3  # training seeds of the cells of docs/published-tables.md


@dataclass(frozen=True)
class Arm:
    """A method on some of the episodes.

    Args:
        n_rounds: Rounds of practice, 0 for none.
    """

    method: str
    operations: tuple[Operation, ...] = ()
    n_rounds: int = 0


@dataclass(frozen=True)
class Published:
    """Cells of docs/published-tables.md that answer the question on a larger task.

    Args:
        file: The file of a cell, given an arm and a seed.
    """

    task: str
    file: str
    arms: tuple[str, ...]
    measure: str
    kind: Kind


@dataclass(frozen=True)
class Question:
    source: DemonstrationSource
    env: Callable[[int], Env]
    updates: int
    arms: dict[str, Arm]
    title: str
    published: tuple[Published, ...] = ()


def _practiced(name: str) -> Arm:
    return Arm(name, (FIRST,), N_ROUNDS)


FIRST, STITCH = Select((0, 1, 2)), Filter(DATASET_NAME, equals=("stitch",))
QUESTIONS = {
    "mixed": Question(GradedDemonstrations(), lambda rows: make("fork", rows, spread=0.25), 2000, {
        "cloning": Arm("bc"), "cloning, successes": Arm("bc", (Filter("success", equals=(True,)),)),
        "cloning, best quarter": Arm("bc", (ReturnStrata((0.25,)),)),
        **{f"`{name}`": Arm(name) for name in ("iql", "awac", "td3-bc", "rebrac", "fql", "idql", "xql")}},
        "Good and poor episodes with rewards"),
    "rewards": Question(Successes(50), WindyFork, 40 * N_EPISODES * N_ROUNDS, {
        "cloning": Arm("bc", (FIRST,)), "cloning, 50 demonstrations": Arm("bc"),
        **{f"`{name}`": _practiced(name) for name in ("dac", "airl", "sqil", "iq-learn", "pwil", "rot")},
        "`gail`": Arm("gail", (FIRST,), 2), "`gail`, ten times the steps": Arm("gail", (FIRST,), 23)},
        "A few demonstrations and an environment"),
    "goals": Question(Walks(), lambda rows: make("four_rooms", rows), 2000, {
        f"`{name}`": Arm(name, (STITCH,)) for name in ("gcbc", "gcivl", "hiql", "qrl", "crl", "gciql", "dwsl")},
        "Walks without a task", (Published(
            "pointmaze-medium-navigate of OGBench", "published-goals/pointmaze-medium-navigate/{}-{}.json",
            ("gcbc", "gcivl", "gciql", "qrl", "crl", "hiql"), "success", "rate"),)),
}


@dataclass(frozen=True)
class Size:
    """How much is run. The first numbers are those of the page."""

    folder: str = "learners"
    seeds: tuple[int, ...] = (5000, 5001, 5002, 5003, 5004)
    starts: int = 300
    updates: int | None = None  # for all questions, in place of their own number
    rounds: int | None = None


FULL, TINY = Size(), Size("learners-tiny", (100, 101), 20, 4, 1)


def equal(method: Method, updates: int) -> Method:
    """The method with the networks, batch, rate and updates of all arms, its stages too."""
    learner, changes = method.learner, {"steps": updates, "batch_size": BATCH}
    for name in ("optimizer", "policy_optimizer"):
        if (optimizer := getattr(learner, name, None)) is not None:
            changes[name] = replace(optimizer, lr=RATE)
    for name in ("critic", "value"):
        if isinstance(networks := getattr(learner, name, None), CriticConfig):
            changes[name] = replace(networks, hidden=HIDDEN)
    if isinstance(reward := getattr(learner, "reward", None), DiscriminatorReward):
        changes["reward"] = replace(reward, hidden=HIDDEN)
    stages = tuple(replace(stage, method=equal(stage.method, updates)) for stage in method.stages)
    return replace(method, policy=replace(method.policy, trunk=FeedForward(HIDDEN)), stages=stages,
                   learner=replace(learner, **changes))


def build(question: Question, arm: Arm, data: Dataset, size: Size) -> Method:
    rounds = {"n_rounds": size.rounds or arm.n_rounds} if arm.n_rounds else {}
    method = equal(find_method(arm.method, data.features(), **rounds), size.updates or question.updates)
    return replace(method, collection=method.collection if rounds else None,
                   transforms=(*arm.operations, *method.transforms))


def run_cell(question: Question, arm: Arm, data: Dataset, seed: int, size: Size) -> dict:
    """Trains an arm, and judges it."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        practice = question.env(N_EPISODES) if arm.n_rounds else None
        train(build(question, arm, data, size), data, Path(folder) / "run", seed=seed, device="cpu", val_fraction=0,
              progress=False, env=practice)
        seconds = time.process_time() - began
        rollouts = rollout(load_actor(Path(folder) / "run", rows=ROWS), question.env(ROWS), size.starts, seed=0)
    return {"success": [int(e.metadata["success"]) for e in rollouts], "seconds": round(seconds, 1)}


def cell_path(size: Size, name: str, seed: int, arm: str) -> Path:
    words = arm.replace("`", "").replace(",", "").replace(" ", "-")
    return measure.RESULTS / size.folder / f"{name}-{seed}-{words}.json"


def run(size: Size, names: list[str], until: float) -> None:
    """Runs what is missing until the time is over."""
    for name in names:
        question = QUESTIONS[name]
        for seed in size.seeds:
            missing = [arm for arm in question.arms if not cell_path(size, name, seed, arm).exists()]
            data = question.source.load(seed) if missing else None
            for arm in missing:
                if time.monotonic() < until:
                    cell = run_cell(question, question.arms[arm], data, seed, size)
                    write_json(cell_path(size, name, seed, arm), cell)
                    print(f"{name}, seed {seed}, {arm}: {np.mean(cell['success']):.2f}, {cell['seconds']} s",
                          file=sys.stderr, flush=True)


def page_text(size: Size) -> str:
    """The tables of the documentation."""
    return "\n\n".join(filter(None, (_section(size, question) for question in QUESTIONS)))


def _section(size: Size, name: str) -> str:
    question = QUESTIONS[name]
    files = {arm: [cell_path(size, name, seed, arm) for seed in size.seeds] for arm in question.arms}
    tables = [_published_table(published) for published in question.published]
    if all(file.exists() for of in files.values() for file in of):
        won = {arm: np.array([read_json(file)["success"] for file in of], float) for arm, of in files.items()}
        tables.insert(0, _table(f"`{name}`, {len(size.seeds)} training seeds, {size.starts} starts, "
                                f"{size.updates or question.updates:,} updates", "success", won, "rate"))
    return "\n\n".join([f"### {question.title}", *tables]) if tables else ""


def _table(about: str, column: str, values: dict[str, np.ndarray], kind: Kind) -> str:
    return "\n".join([f"{about}:", "", *arm_table({column: ArmColumn(values, kind, "%" if kind == "rate" else "")})])


def _published_table(published: Published) -> str:
    cells = {arm: [read_json(measure.RESULTS / published.file.format(arm, seed)) for seed in range(N_PUBLISHED)]
             for arm in published.arms}
    values = {f"`{arm.replace('_', '-')}`": np.array([cell[published.measure] for cell in of], float).reshape(
        N_PUBLISHED, -1) for arm, of in cells.items()}
    return _table(f"{published.task}, {N_PUBLISHED} training seeds", published.measure, values, published.kind)


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)  # such as of successes that are not enough for a validation
    o = measure.task_options(__doc__, list(QUESTIONS))
    size = TINY if o.tiny else FULL
    if not o.page:
        run(size, o.tasks or list(QUESTIONS), o.until)
    measure.publish("learners", page_text(size), "learners.md", o.tiny)


if __name__ == "__main__":
    main()
