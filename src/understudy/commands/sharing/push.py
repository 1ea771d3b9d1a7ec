"""The command understudy push."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ...core import Unsupported, UserError
from ...files import read_json
from ...hints import command_line
from ...hub import Repository, push
from ..parts.common import Output, open_trained, parse, read_provenance, recorded_env
from ..parts.groups import JsonOption, TrustOption, command_options
from ..parts.policies import run_folder, tell_checkpoint, weights_digest
from .stored_evaluations import stored_evaluations

if TYPE_CHECKING:
    from ...data.episode import Dataset

_OF_DATA = ("data/", "meta/", "videos/", "understudy.npz")  # other files in the folder stay here
_OF_RUN = ("metrics.jsonl", "CARD.md", "eval/*.jsonl", "robustness/*.jsonl", "detector.json")


@command_options
class PushOptions(JsonOption, TrustOption):
    """Upload demonstrations or a trained policy to the Hugging Face hub, with a card.

    Demonstrations are uploaded in LeRobot's layout. Of a run, the checkpoint that its name stands for is uploaded, with
    what was measured, and in LeRobot's layout too if LeRobot has such a policy. The upload is one commit.
    """

    what: Annotated[Path, Positional, arg(metavar="RUN|DATA")]
    """demonstrations in any format, a run (its last checkpoint), RUN/best, or a checkpoint"""
    name: Annotated[str, Positional, arg(metavar="NAME")]
    """OWNER/NAME of the repository, which is made if there is none"""
    private: bool = False
    """make the new repository private"""
    license: Annotated[str | None, arg(metavar="LICENSE")] = None
    """the license that the card names, such as apache-2.0 or cc-by-4.0"""


def main(args: list[str]) -> None:
    o = parse(PushOptions, "push", args)
    with Output(o.json) as out, ExitStack() as temporary:
        place = Path(temporary.enter_context(tempfile.TemporaryDirectory(prefix="understudy-push-")))
        run = o.what.parent if o.what.name in ("best", "last") else o.what
        is_run = (run / "run.json").exists() or (o.what / "policy.json").exists()
        repository = Repository.parse("model" if is_run else "dataset", o.name)
        if repository.revision is not None:
            raise UserError("an upload makes a new revision, and cannot be given one", where=o.name,
                            hint=f"write {repository.name}")
        files, about = _run_files(o, repository, place) if is_run else _data_files(o, repository, place)
        address = push(files, repository, private=o.private, tag=about.pop("tag", None))
        out.print(f"{address}: {len(files)} files" + (", private" if o.private else "") + ".")
        out.suggest(command_line("pull", repository.name), command_line("eval", f"hf:{repository.name}", "ENV")
                    if is_run else command_line("train", "METHOD", f"hf:{repository.name}", "--out", "RUN"))
        out.print_json({"address": address, "kind": repository.kind, "name": repository.name, "files": sorted(files),
                        **about})


# -- data -------------------------------------------------------------------------------------------------------------


def _data_files(o: PushOptions, repository: Repository, place: Path) -> tuple[dict[str, Path | bytes], dict[str, Any]]:
    """Returns the files of a data set in LeRobot's layout with its card, and its fingerprint."""
    from ...audit.runner import find_problems
    from ...data.formats import open_dataset, write_dataset
    from .cards import DataFacts, data_card

    data = open_trained(o.what, None)
    findings = find_problems(data, data.metadata["path"])
    for finding in findings:
        if finding.severity != "note":
            print(f"{o.what}: {finding.severity}: {finding.message}. The card says so", file=sys.stderr)
    folder = _lerobot_folder(o.what)
    if folder is None:
        folder = place / "data"
        write_dataset(data, folder, "lerobot", images="png")
        data = open_dataset(folder)
    fingerprint = data.fingerprint()
    card = data_card(repository.name, DataFacts(
        fingerprint, len(data), data.steps, data.fps, data.features(), _successes(data),
        recorded_env(data) or data.metadata.get("robot_type"), _tasks(data), findings), o.license)
    files = {name: path for name, path in _visible_files(folder) if name.startswith(_OF_DATA)}
    version = read_json(folder / "meta" / "info.json")["codebase_version"]  # LeRobot looks for this tag
    return {**files, "README.md": card.encode()}, {"fingerprint": fingerprint, "tag": version}


def _lerobot_folder(path: Path) -> Path | None:
    """Returns the folder of data that are in LeRobot's layout already, which are uploaded as they are."""
    from ...data.formats.detection import detect_format
    from ...data.formats.remote import url_of

    if url_of(path) is not None:
        return None
    folder, kind = detect_format(path)
    is_current = kind == "lerobot" and read_json(folder / "meta" / "info.json")["codebase_version"].startswith("v3.")
    return folder if is_current else None


def _visible_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files of a folder with their names in it, but none that is hidden, such as a lock."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _successes(data: Dataset) -> int | None:
    if "next.success" not in data.features():
        return None
    return sum(bool(episode.steps["next.success"].any()) for episode in data)


def _tasks(data: Dataset) -> list[str]:
    from ...data.tasks import task_texts

    return list(dict.fromkeys(text for episode in data for text in map(str, task_texts(episode)) if text))


# -- runs -------------------------------------------------------------------------------------------------------------


def _run_files(o: PushOptions, repository: Repository, place: Path) -> tuple[dict[str, Path | bytes], dict[str, Any]]:
    """Returns the files of a run with one checkpoint and a card, and what identifies the checkpoint."""
    from ...checkpoint import find_checkpoint, is_lerobot_checkpoint
    from .cards import run_card

    tell_checkpoint(o.what)
    checkpoint, run = find_checkpoint(o.what), run_folder(o.what)
    if is_lerobot_checkpoint(checkpoint) or checkpoint == run:
        raise UserError("this is a policy without a run of understudy, which a card would describe", where=o.what,
                        hint=f"hf upload {repository.name} {checkpoint}")
    mark = weights_digest(checkpoint)
    lerobot, head = _lerobot_files(o, place)
    measured = {path.relative_to(run).as_posix(): path for pattern in _OF_RUN for path in sorted(run.glob(pattern))}
    card = run_card(repository.name, provenance=read_provenance(o.what), head=head, updates=int(checkpoint.name),
                    evaluations=stored_evaluations(run, mark), is_lerobot=bool(lerobot), license=o.license)
    named = f"checkpoints/{checkpoint.name}"
    weights = {f"{named}/{name}": path for name, path in _visible_files(checkpoint) if not name.startswith("train/")}
    return {**lerobot, **measured, **weights, "run.json": json.dumps({"last": named}).encode(),
            "README.md": card.encode()}, {"checkpoint": named, "mark": mark, "lerobot": bool(lerobot)}


def _lerobot_files(o: PushOptions, place: Path) -> tuple[dict[str, Path], str]:
    """Returns the policy in LeRobot's layout, or no files if LeRobot has no such policy; and the name of its head."""
    from ...learn.lerobot_export import write_lerobot_policy
    from ...learn.method import TrainedRun

    trained = TrainedRun.load(o.what, o.trust)
    method = trained.method
    head = type(method.policy.head).__name__
    if method.inference or method.wrapper is not None:
        return {}, head
    try:
        write_lerobot_policy(trained.policy, method.executor, place / "policy")
    except Unsupported:
        return {}, head
    return dict(_visible_files(place / "policy")), head
