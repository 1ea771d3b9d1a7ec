"""The folder of a studio: recordings, views, runs and reports, from which its whole state is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core import UserError
from ..data.formats import open_dataset
from ..data.recording.recorder import repair
from ..files import read_json
from ..improve.collection import FIRST_EPISODE, UNFINISHED
from ..learn.run import Run

DEMONSTRATIONS, VIEWS, RUNS, REPORTS = "demonstrations", "views", "runs", "reports"


@dataclass(frozen=True)
class ShownEpisode:
    """An episode that a person has recorded.

    Attributes:
        number: Its number among all episodes of the project. It stays when others are left out.
        is_used: Whether it is learned. A person may leave it out.
    """

    number: int
    steps: int
    success: bool | None
    is_used: bool


@dataclass(frozen=True)
class TrainedPolicy:
    """A run of the project.

    Attributes:
        name: Its folder in the project, such as "runs/1".
        losses: Updates and losses.
        n_corrections: Number of episodes that a person has watched, and that no policy has learned from yet.
    """

    name: str
    losses: tuple[tuple[int, float], ...]
    n_corrections: int


class Project:
    """A folder with demonstrations/N, views/N.json, runs and reports. All that the page shows is read from it.

    Each sitting is a recording of its own, because views and runs refuse a recording that has grown. Commands run in
    the folder, so that they name relative paths.

    Args:
        folder: Is made if it does not exist.
        env: Name of the environment.

    Raises:
        UserError: The folder cannot be written, or belongs to another environment.
    """

    def __init__(self, folder: Path, env: str):
        self.folder, self.env = folder.resolve(), env
        self.problems: list[str] = []  # what could not be repaired
        try:
            for name in (DEMONSTRATIONS, VIEWS, RUNS, REPORTS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder of the project cannot be made: {error.strerror}", where=folder,
                            hint="choose another one: --out FOLDER") from None
        for sitting in _numbered(self.folder / DEMONSTRATIONS):  # what a killed process has not closed
            try:
                repair(sitting)
            except UserError as error:
                self.problems.append(str(error))
        for sitting in self.sittings():
            recorded = next(iter(open_dataset(sitting).iterate_once())).metadata.get("env", env)
            if recorded != env:
                raise UserError(f"its demonstrations were recorded in {recorded}, not in {env}", where=folder,
                                hint="open it with that environment, or choose another folder: --out FOLDER")

    # -- demonstrations -------------------------------------------------------------------------------------------

    def new_sitting(self) -> Path:
        return self.folder / DEMONSTRATIONS / _next(_numbered(self.folder / DEMONSTRATIONS))

    def sittings(self) -> list[Path]:
        """The recordings that have an episode, in order."""
        return [path for path in _numbered(self.folder / DEMONSTRATIONS) if (path / "meta" / "info.json").exists()]

    def episodes(self) -> list[ShownEpisode]:
        """All recorded episodes, also those that are left out."""
        recorded, left_out = [e for path in self.sittings() for e in open_dataset(path)], self.left_out()
        return [ShownEpisode(i, len(episode), episode.metadata.get("success"), i not in left_out)
                for i, episode in enumerate(recorded)]

    def left_out(self) -> set[int]:
        """The numbers of the episodes that are left out: what the newest view deletes."""
        views = _numbered(self.folder / VIEWS)
        operations = read_json(views[-1])["operations"] if views else []
        return {number for operation in operations if operation["do"] == "delete" for number in operation["episodes"]}

    def select(self, left_out: set[int]) -> list[list[str]]:
        """Returns the commands that make a view of all episodes but these."""
        commands, source = self._all_episodes()
        deleted = ["--delete", *map(str, sorted(left_out))] if left_out else []
        view = f"{VIEWS}/{_next(_numbered(self.folder / VIEWS))}.json"
        return [*commands, ["view", "make", source, "--out", view, *deleted]]

    def _all_episodes(self) -> tuple[list[list[str]], str]:
        """The data set of all sittings, and the commands that make it if it is not there."""
        sittings = [f"{DEMONSTRATIONS}/{path.name}" for path in self.sittings()]
        if not sittings:
            raise UserError("there is no demonstration yet", where=self.folder, hint="show the task first")
        if len(sittings) == 1:
            return [], sittings[0]
        merged = f"{VIEWS}/all-{len(sittings)}.json"
        return ([] if (self.folder / merged).exists() else [["merge", *sittings, "--out", merged]]), merged

    def training_data(self) -> tuple[list[list[str]], str]:
        """The data set to learn, and the commands that make it: the newest view if it knows all sittings."""
        commands, source = self._all_episodes()
        if not (left_out := self.left_out()):
            return commands, source
        newest = _numbered(self.folder / VIEWS)[-1]
        if read_json(newest)["parents"][0]["path"].endswith(Path(source).name):
            return [], f"{VIEWS}/{newest.name}"
        commands = self.select(left_out)
        return commands, commands[-1][4]

    # -- policies -------------------------------------------------------------------------------------------------

    def new_run(self) -> str:
        return f"{RUNS}/{_next(_numbered(self.folder / RUNS))}"

    def policies(self) -> list[TrainedPolicy]:
        """The runs that have a checkpoint, in the order in which they were begun."""
        names = [f"{RUNS}/{path.name}" for path in _numbered(self.folder / RUNS) if Run(path).saved_steps()]
        return [TrainedPolicy(name, tuple((line["step"], line["loss"]) for line in Run(
            self.folder / name).read_metrics() if "loss" in line), len(self.corrections(name))) for name in names]

    def improved(self, run: str) -> str:
        """The run that learns from the next corrections of a policy: the first such name without a checkpoint."""
        number = 1
        while Run(self.folder / (name := f"{run}-{number}")).saved_steps():
            number += 1
        return name

    def corrections_folder(self, run: str) -> Path:
        """Where `understudy improve` looks for the episodes of its first round."""
        return self.folder / self.improved(run) / "collection" / f"{UNFINISHED}000000"

    def first_number(self, run: str) -> int:
        """The number of the first episode that `understudy improve` collects from a policy: after those that it and
        the policies before it have learned from."""
        parts, count = Path(run).name.split("-"), 0
        for n in range(2, len(parts) + 1):
            ancestor = Run(self.folder / RUNS / "-".join(parts[:n]))
            count += sum(line.get("round/episodes", 0) for line in ancestor.read_metrics())
        return FIRST_EPISODE + int(count)

    def corrections(self, run: str) -> list[Path]:
        """The episodes of a policy that a person has watched, and that no policy has learned from yet."""
        return sorted(self.corrections_folder(run).glob("[0-9]*"))

    # -- reports --------------------------------------------------------------------------------------------------

    def comparison(self) -> dict | None:
        """The newest comparison of policies, as `understudy compare --json` printed it."""
        reports = _numbered(self.folder / REPORTS)
        return read_json(reports[-1]) if reports else None

    def new_report(self) -> Path:
        return self.folder / REPORTS / f"{_next(_numbered(self.folder / REPORTS))}.json"


def _numbered(folder: Path) -> list[Path]:
    """What is in a folder under a name such as 3, 3.json or 3-1, in the order of numbers."""
    def numbers(path: Path) -> list[int]:
        return [int(text) for text in path.stem.split("-")]
    return sorted((p for p in folder.iterdir() if p.stem.replace("-", "").isdigit()), key=numbers)


def _next(paths: list[Path]) -> str:
    return str(max((int(path.stem.split("-")[0]) for path in paths), default=0) + 1)
