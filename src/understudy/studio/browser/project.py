"""The folder of a studio: recordings, views, runs and reports, from which its whole state is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core import UserError
from ...data.episode import Dataset, Episode
from ...data.formats import open_dataset
from ...data.recording.recorder import repair
from ...files import file_name, read_json, try_lock, write_json
from ...improve.collection import FIRST_EPISODE, UNFINISHED
from ...improve.journal import EpisodeJournal
from ...learn.run import Run
from .robot_trials import StoredTrials

PROJECT = "project.json"  # says which environment or robot a project is about
DEMONSTRATIONS, VIEWS, RUNS, REPORTS = "demonstrations", "views", "runs", "reports"
ROLLOUTS, CHOICE, EXPORTS, TRIALS = "rollouts", "choice", "exports", "trials"


@dataclass(frozen=True)
class Edits:
    """What a person has changed about the demonstrations. It is stored as a view, and the recordings stay as they are.

    Args:
        left_out: Numbers of the episodes that are not learned.
        trims: The first step that is learned of an episode, and the step after the last one.
        labels: Whether an episode is a success, where the person has changed it.
        notes: What the person has noted about an episode.
    """

    left_out: frozenset[int] = frozenset()
    trims: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    labels: Mapping[int, bool] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """The options of `understudy view make`. It numbers the episodes again after some have been left out."""
        deleted = ["--delete", *map(str, sorted(self.left_out))] if self.left_out else []
        trims = [f"--crop={self._number_in_view(n)}={start}:{stop}" for n, (start, stop) in sorted(self.trims.items())
                 if n not in self.left_out]
        texts = [(n, f"success={str(value).lower()}") for n, value in sorted(self.labels.items())]
        texts += [(n, f"note={note}") for n, note in sorted(self.notes.items())]
        labels = [f"--label={self._number_in_view(n)}:{text}" for n, text in texts if n not in self.left_out]
        return [*deleted, *trims, *labels]

    def _number_in_view(self, number: int) -> int:
        return number - sum(n < number for n in self.left_out)

    @classmethod
    def of_view(cls, view: Mapping[str, Any]) -> Edits:
        """Returns the edits of a view that was made with `options`."""
        left_out = frozenset(n for o in view["operations"] if o["do"] == "delete" for n in o["episodes"])
        kept = [n for n in range(view["parents"][0]["episodes"]) if n not in left_out]
        trims = {kept[n]: (o["start"], o["stop"]) for o in view["operations"] if o["do"] == "crop"
                 for n in o["episodes"]}
        labels, notes = ({kept[n]: o["value"] for o in view["operations"] if o["do"] == "label" and o["field"] == name
                          for n in o["episodes"]} for name in ("success", "note"))
        return cls(left_out, trims, labels, {n: str(note) for n, note in notes.items()})


@dataclass(frozen=True)
class ShownEpisode:
    """An episode that a person has recorded.

    Attributes:
        number: Its number among all episodes of the project. It stays when others are left out.
        data: The recording that has it, where its number is `index`.
        success: As it was recorded, or as the person has changed it.
        is_interrupted: Whether the process ended while it was recorded. It is not learned.
        is_left_out: Whether the person has left it out.
        start: The first step that is learned.
        stop: The step after the last one that is learned.
        note: What the person has noted about it.
    """

    number: int
    data: Dataset = field(compare=False)
    index: int
    episode: Episode = field(compare=False)
    success: bool | None
    is_interrupted: bool
    is_left_out: bool
    start: int
    stop: int
    note: str

    @property
    def is_used(self) -> bool:
        """Whether it is learned."""
        return not (self.is_left_out or self.is_interrupted)


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


@dataclass(frozen=True)
class ProjectComparison:
    """A comparison of policies.

    Attributes:
        report: What `understudy compare --json` printed.
        rollouts: The episodes of each policy, which begin alike. Empty if they are not there.
        page: The report as a web page. It need not exist.
    """

    report: dict[str, Any]
    rollouts: tuple[Dataset, ...] = field(compare=False)
    page: Path

    def failures(self) -> dict[int, tuple[bool, ...]]:
        """The numbers of the starts from which a policy failed, and whether each succeeded.

        Starts that tell the policies apart come first.
        """
        successes = zip(*([bool(e.metadata.get("success")) for e in data] for data in self.rollouts), strict=True)
        failed = {number: won for number, won in enumerate(successes) if not all(won)}
        return dict(sorted(failed.items(), key=lambda entry: not any(entry[1])))


class Project:
    """A folder with demonstrations/N, views/N.json, runs and reports. All that the page shows is read from it.

    Each sitting has its own recording, because views and runs refuse a recording that has grown. Commands run in
    the folder, so that they name relative paths.

    Args:
        folder: Is made if it does not exist.
        env: Name of the environment, or type of the robot. None for that of a project that exists.
        robot: The options of `understudy record` that name the robot. Empty for those of a project that exists.

    Raises:
        UserError: The folder cannot be written, is not a project, or belongs to another environment.
    """

    def __init__(self, folder: Path, env: str | None = None, robot: Sequence[str] = ()):
        self.folder = folder.resolve()
        self.env, stored_robot = self._stored(folder, env)
        self.robot = list(robot) or stored_robot
        self.problems: list[str] = []  # what a killed process has left, and what could not be repaired
        try:
            for name in (DEMONSTRATIONS, VIEWS, RUNS, REPORTS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._store()
        except OSError as error:
            raise UserError(f"the folder of the project cannot be made: {error.strerror}", where=folder,
                            hint="choose another one: --out FOLDER") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder for one process, and repairs what a killed one has left.

        Raises:
            UserError: Another process has locked it.
        """
        with open(self.folder / ".lock", "w") as lock:
            if not try_lock(lock.fileno()):
                raise UserError("another studio has this project open", where=self.folder,
                                hint="use its page, or choose another folder: --out FOLDER")
            for sitting in _numbered(self.folder / DEMONSTRATIONS):
                try:
                    self.problems += repair(sitting).problems
                except UserError as error:
                    self.problems.append(str(error))
            for unfinished in self.folder.glob(f"{RUNS}/*/collection/{UNFINISHED}*"):
                EpisodeJournal(unfinished).recover()
            yield

    @staticmethod
    def _stored(folder: Path, env: str | None) -> tuple[str, list[str]]:
        """The environment and the robot's options of a project that exists, or of a new one."""
        if not (folder / PROJECT).exists():
            if env is None:
                raise UserError("this is not the folder of a project", where=folder,
                                hint="a project starts with the name of an environment: understudy studio push")
            return env, []
        document = read_json(folder / PROJECT)
        stored = str(document["env"])
        if env not in (None, stored):
            raise UserError(f"the project is about {stored}, not {env}", where=folder,
                            hint="open it with that environment, or choose another folder: --out FOLDER")
        return stored, list(document.get("robot", []))

    def _store(self) -> None:
        write_json(self.folder / PROJECT, {"env": self.env, **({"robot": self.robot} if self.robot else {})})

    @property
    def robot_options(self) -> list[list[str]]:
        """The options of the robot, of the teleoperator and of a recording, each with its values."""
        options: list[list[str]] = []
        for word in self.robot:
            if word.startswith("--"):
                options.append([word])
            else:
                options[-1].append(word)
        return options

    def robot_words(self, *prefixes: str) -> list[str]:
        """The options of the robot and what moves it that begin with a prefix, such as "--robot"."""
        return [word for words in self.robot_options if words[0].startswith(prefixes) for word in words]

    def set_robot_option(self, option: str, value: str) -> None:
        """Stores an option of the robot or the teleoperator, such as its port, in place of the value that it had."""
        kept = [words for words in self.robot_options if words[0] != option]
        self.robot = [word for words in [*kept, [option, value]] for word in words]
        self._store()

    # -- demonstrations -------------------------------------------------------------------------------------------

    def new_sitting(self) -> Path:
        return self.folder / DEMONSTRATIONS / _next(_numbered(self.folder / DEMONSTRATIONS))

    def sittings(self) -> list[Path]:
        """The recordings that have an episode, in order."""
        return [path for path in _numbered(self.folder / DEMONSTRATIONS) if (path / "meta" / "info.json").exists()]

    def episodes(self) -> list[ShownEpisode]:
        """All recorded episodes, also those that are left out."""
        edits, demonstrations = self.edits(), []
        recorded = [(data, index) for data in map(open_dataset, self.sittings()) for index in range(len(data))]
        for number, (data, index) in enumerate(recorded):
            episode = data[index]
            start, stop = edits.trims.get(number, (0, len(episode)))
            success = edits.labels.get(number, episode.metadata.get("success"))
            demonstrations.append(ShownEpisode(number, data, index, episode, success, "interrupted" in episode.metadata,
                                               number in edits.left_out, start, stop, edits.notes.get(number, "")))
        return demonstrations

    def edit_history(self) -> list[Edits]:
        """What the person has changed, in order: of each view, after the empty first one."""
        return [Edits(), *(Edits.of_view(read_json(path)) for path in _numbered(self.folder / VIEWS))]

    def edits(self) -> Edits:
        return self.edit_history()[-1]

    def edit(self, edits: Edits) -> list[list[str]]:
        """Returns the commands that make a view of all episodes with these edits."""
        commands, source = self._all_episodes()
        view = f"{VIEWS}/{_next(_numbered(self.folder / VIEWS))}.json"
        return [*commands, ["view", "make", source, "--out", view, *edits.options]]

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
        if not (edits := self.edits()).options:
            return commands, source
        newest = _numbered(self.folder / VIEWS)[-1]
        if read_json(newest)["parents"][0]["path"].endswith(Path(source).name):
            return [], f"{VIEWS}/{newest.name}"
        commands = self.edit(edits)
        return commands, commands[-1][4]

    def project_number(self, number: int) -> int:
        """Returns the number of an episode in the project, from its number in the data set to learn."""
        left_out = self.edits().left_out
        return [n for n in range(number + len(left_out) + 1) if n not in left_out][number]

    def audit_report(self) -> Path:
        """Where the findings about the data set to learn are stored."""
        return self.folder / REPORTS / f"audit of {self.training_data()[1].replace('/', ' ')}.json"

    def findings(self) -> list[dict[str, Any]] | None:
        """What `understudy audit --json` has found in the data set to learn. None before it was checked."""
        path = self.audit_report()
        return read_json(path)["findings"] if path.exists() else None

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

    def comparison(self) -> ProjectComparison | None:
        """The newest comparison of policies."""
        reports = [path for path in _numbered(self.folder / REPORTS) if path.suffix == ".json"]
        if not reports:
            return None
        number, report = reports[-1].stem, read_json(reports[-1])
        saved = [self.folder / ROLLOUTS / number / file_name(p["name"]) for p in report["policies"]]
        rollouts = tuple(open_dataset(path) for path in saved if path.exists())
        return ProjectComparison(report, rollouts if len(rollouts) == len(saved) else (),
                                 self.folder / REPORTS / f"{number}.html")

    def compare(self, first: str, second: str, starts: int) -> tuple[list[str], str]:
        """Returns the command that compares two policies, and the file for what it prints."""
        rollouts = self.folder / ROLLOUTS  # an interrupted comparison has rollouts and no report
        number = _next([*_numbered(self.folder / REPORTS), *(_numbered(rollouts) if rollouts.exists() else [])])
        return ["compare", first, second, "--env", self.env, "--episodes", str(starts), "--save",
                f"{ROLLOUTS}/{number}", "--html", f"{REPORTS}/{number}.html", "--json"], f"{REPORTS}/{number}.json"

    def trials(self) -> StoredTrials | None:
        """The newest blind trials of two policies on a robot."""
        folder = self.folder / TRIALS
        files = [path for path in _numbered(folder) if path.suffix == ".jsonl"] if folder.exists() else []
        stored = [trials for trials in map(StoredTrials.read, files) if trials.events]
        return stored[-1] if stored else None

    def trials_command(self, first: str, second: str) -> tuple[list[str], str]:
        """The words after "eval" of the command that begins blind trials or goes on with them, and their file."""
        newest, number = self.trials(), 1
        if newest is not None:
            goes_on = newest.policies == (first, second) and not newest.is_over
            number = int(newest.path.stem) + (not goes_on)
        path = f"{TRIALS}/{number}.jsonl"
        return [first, "--against", second, "--interactive", *self.robot_words("--robot"), "--save", path], path

    def exports(self) -> list[str]:
        """What was written for other software."""
        folder = self.folder / EXPORTS
        return [f"{EXPORTS}/{path.name}" for path in sorted(folder.iterdir())] if folder.exists() else []

    def new_export(self) -> str:
        """A folder for demonstrations that other software reads."""
        number = 1
        while f"{EXPORTS}/demonstrations-{number}" in self.exports():
            number += 1
        return f"{EXPORTS}/demonstrations-{number}"

    def choice(self) -> dict[str, Any] | None:
        """What `understudy choose --json` has last said about the methods."""
        choices = _numbered(self.folder / CHOICE) if (self.folder / CHOICE).exists() else []
        reports = [path for path in choices if path.suffix == ".json"]
        return read_json(reports[-1]) if reports else None

    def choose(self, data: str, minutes: int) -> tuple[list[str], str]:
        """Returns the command that finds a method by short trials, and the file for what it prints."""
        folder = self.folder / CHOICE
        number = _next(_numbered(folder) if folder.exists() else [])
        env = [] if self.robot else ["--env", self.env]
        return ["choose", data, *env, "--budget", f"{minutes}m", "--out", f"{CHOICE}/{number}",
                "--json"], f"{CHOICE}/{number}.json"


def _numbered(folder: Path) -> list[Path]:
    """What is in a folder under a name such as 3, 3.json or 3-1, in the order of numbers."""
    def numbers(path: Path) -> list[int]:
        return [int(text) for text in path.stem.split("-")]
    return sorted((p for p in folder.iterdir() if p.stem.replace("-", "").isdigit()), key=numbers)


def _next(paths: list[Path]) -> str:
    return str(max((int(path.stem.split("-")[0]) for path in paths), default=0) + 1)
