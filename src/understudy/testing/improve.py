"""Contract test of data collection."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from .. import config
from ..core import UserError
from ..data.episode import Dataset
from ..data.formats import open_dataset
from ..envs.base import Env
from ..execute.actor import Actor
from ..learn.method import Method
from ..learn.run import Run
from ..learn.stages import packages_of
from ..learn.train import train
from ..policy import Policy
from .base import require


def check_collection(method: Method, data: Dataset, build_env: Callable[[int], Env] | None = None,
                     person: Actor | None = None) -> None:
    """Checks the contract of data collection.

    - The method survives its file.
    - Every round is stored, with the columns that training reads. A run does not depend on how many environments run
      side by side.
    - A run that breaks off before or within the updates of any round resumes bit for bit: checkpoints, stored episodes
      and metrics.
    - Rounds that are later than the checkpoint are dropped and collected again. If a person took part in them, they are
      kept, and the run is refused.

    Args:
        method: A method with a `collection` of two or more rounds. It is trained several times, so it should be small.
        build_env: `build_env(rows)` makes that many copies of the environment to collect in. None for none.
        person: The actor through which a person takes part. It must act the same each time.
    """
    require(method.collection is not None, "the method has no collection")
    text = json.dumps(config.dump(method))
    require(config.load(json.loads(text), ("understudy", *packages_of(method))) == method,
            "a collection must survive its file")
    with tempfile.TemporaryDirectory() as folder:
        def run(name: str, rows: int, crash: _Crash | None = None) -> Path:
            env = None if build_env is None else build_env(rows)
            try:
                train(method, data, Path(folder) / name, device="cpu", val_fraction=0.0, progress=False, env=env,
                      person=person, callbacks=() if crash is None else (crash,))
                require(crash is None, "the summary of each round must be logged, and updates must follow")
            except _Crashed:
                pass
            finally:
                if env is not None:
                    env.close()
            return Path(folder) / name

        whole = run("whole", 2)
        expected, rounds = _run_contents(whole), sorted((whole / "collection").glob("[0-9]*"))
        require(len(rounds) >= 2, f"the collection must have two rounds or more, and has {len(rounds)}")
        policy = Policy.load(whole, packages_of(method))
        for path in rounds:
            policy.windows(open_dataset(path / "episodes.npz"), extra=method.learner.extra)
        require(_run_contents(run("rows", 3)) == expected,
                "a run must not depend on how many environments run side by side")
        for number in range(len(rounds)):
            for in_update in (False, True):
                run("stopped", 2, _Crash(number, in_update))
        require(_run_contents(run("stopped", 2)) == expected, "a run that broke off must resume bit for bit")
        early = run("early", 2, _Crash(0, False))
        for path in rounds[1:]:  # as if later checkpoints had been lost; what these rounds hold is wrong
            shutil.copytree(rounds[0], early / "collection" / path.name)
        try:
            require(_run_contents(run("early", 2)) == expected,
                    "rounds later than the checkpoint must be collected again")
        except UserError:
            kept = sorted(p.name for p in (early / "collection").glob("[0-9]*"))
            require(person is not None and kept == [p.name for p in rounds],
                    "only rounds with a person may be kept when they are later than the checkpoint")


class _Crashed(Exception):
    pass


class _Crash:
    """Callback that interrupts a training at the end of a round, or at the next update, to test resuming."""

    def __init__(self, number: int, in_update: bool):
        self.number, self.in_update, self.is_due = number, in_update, False

    def __call__(self, step, learner, logged):
        if self.is_due or logged.get("round") == self.number and not self.in_update:
            raise _Crashed
        self.is_due = logged.get("round") == self.number


def _run_contents(run: Path) -> dict[str, object]:
    """Returns the contents of a run, except for times."""
    def without_times(document):
        return {k: v for k, v in document.items() if k != "seconds"}

    contents: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            contents[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        elif path.name == "episodes.npz":
            contents[name] = open_dataset(path).fingerprint()
        elif path.name == "metrics.jsonl":
            contents[name] = list(map(without_times, Run(path.parent).read_metrics()))
        elif path.suffix in (".json", ".md"):
            document = json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
            contents[name] = without_times(document) if path.name == "state.json" else document
    return contents
