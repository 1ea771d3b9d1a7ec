"""Records rollouts into a data set, episode by episode, so that an interrupted recording can continue."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ..core import DataWarning, UserError, uniform
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset
from ..data.formats.detection import READABLE_FORMATS
from ..data.formats.lerobot_read import UNDERSTUDY_FOLDER, read_json_lines
from ..data.formats.parts.file_kinds import is_lerobot
from ..data.recording.recorder import Recorder, repair, warn_of_losses
from ..data.tasks import shown_texts
from ..envs.base import ROUNDED, Env, HasExpert
from ..execute.actor import Actor, CountingActor
from ..files import write_text
from .evaluation import user_seed
from .rollout import rollout
from .workers import WorkerPool

GROUP_SIZE = 64  # episodes per worker in one rollout: with fewer, rows are idle; more need memory


def record_episodes(env: Env, actor: Actor, episodes: int, out: Path | str, seed: int, *, actor_name: str,
                    images: Literal["video", "png"] = "video",
                    watch: Callable[[int, Episode], None] = lambda n, e: None,
                    on_saved: Callable[[int], None] = lambda n: None, workers: WorkerPool | None = None,
                    fps: float | None = None) -> Dataset:
    """Records episodes 0 to episodes-1 of a seed into a data set.

    Existing episodes remain. The same call therefore continues after an interruption, and a larger number adds
    episodes. All episodes are kept, also failures: `metadata["success"]` and `next.success` mark the successes. If an
    environment reported success for the first time after some episodes had been written, only the metadata mark these,
    as failures.

    Args:
        images: How images are stored. "png" loses nothing.
        watch: Called as `watch(number, episode)` when an episode ends.
        on_saved: Called from another thread with the number of each episode, in order, once it would survive a power
            cut.
        workers: Runs the rollouts instead of `actor` and `env`.
        fps: Steps per second, for an environment that does not state its own.
    """
    out = Path(out)
    first = n_recorded(out, env, seed, actor_name)
    recorder: Recorder | None = None
    finished: dict[int, Episode] = {}

    def put_down() -> None:
        """Writes the finished episodes in order, so that the numbers in the data have no gap."""
        nonlocal recorder, first
        while first in finished:
            if recorder is None:
                schema = open_dataset(out).features() if first else finished[first].features()
                recorder = Recorder(schema, out, fps=env.metadata.get("fps") or fps, clock=None, images=images,
                                    on_saved=on_saved, require_observation=False)
            recorder.add(finished.pop(first))
            first += 1

    def keep(number: int, episode: Episode) -> None:
        simulator, texts = env.metadata.get("simulator"), shown_texts(episode)
        finished[number] = replace(episode, metadata={
            **episode.metadata, "by": actor_name, **({"task": texts[0]} if texts else {}),
            **({"simulator": simulator} if simulator else {})})
        put_down()
        watch(number, episode)

    try:
        while first < episodes:
            if workers is None:
                rollout(actor, env, min(4 * env.rows, episodes - first), seed, first=first, watch=keep)
            else:
                group = 4 * env.rows if workers.count == 1 else GROUP_SIZE * workers.count
                workers.rollout(min(group, episodes - first), seed, first=first, watch=keep)
            if recorder is not None:
                recorder.flush()
    finally:  # also after an interruption
        try:
            put_down()
        finally:
            if recorder is not None:
                recorder.close()
                _mark_failures(out)
                _warn_of_rounding(out, env if workers is None else workers)
    return open_dataset(out)


def _warn_of_rounding(out: Path, env: Env | WorkerPool) -> None:
    """Warns of columns that lose their changes because they were recorded as float32."""
    for name, problem in env.metadata.get(ROUNDED, {}).items():
        warnings.warn(f"{out}: {name} loses precision, because it is recorded as float32: {problem}. Let the "
                      "environment subtract the offset, such as the first value of the episode", DataWarning,
                      stacklevel=3)


def _mark_failures(out: Path) -> None:
    """Marks the episodes that ended before the environment reported success for the first time."""
    file = out / UNDERSTUDY_FOLDER / "episodes.jsonl"
    rows = read_json_lines(file)
    if 0 < sum("success" in row["facts"] for row in rows) < len(rows):
        for row in rows:
            row["facts"].setdefault("success", False)
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def n_recorded(out: Path, env: Env, seed: int, actor_name: str) -> int:
    """Returns the number of episodes of a recording, after an interrupted one has been repaired.

    Args:
        env: The environment, which must be the recorded one.
    """
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        return 0
    if not is_lerobot(out):
        raise UserError("the folder does not contain a recording", where=out, hint="choose another folder")
    warn_of_losses(out, repair(out))
    data = open_dataset(out)
    for n, episode in enumerate(data):
        recorded = {k: episode.metadata.get(k) for k in ("env", "seed", "by", "number")}
        expected = {"env": env.metadata["env"], "seed": seed, "by": actor_name, "number": n}
        if recorded != expected:
            field = next(k for k in expected if recorded[k] != expected[k])
            there, here = (user_seed(v) if field == "seed" and isinstance(v, int) else v
                           for v in (recorded[field], expected[field]))
            raise UserError(f"the recording has {field} {there!r}, but this run has {field} {here!r}",
                            where=f"{out}, episode {n}",
                            hint="choose another folder, or use the options of the first call")
    return len(data)


@dataclass(frozen=True)
class UniformRandomActor(CountingActor):
    """Actor that samples actions uniformly within their limits."""

    env: Env

    def act(self, obs, state):
        action, metadata = self.env.features["action"], self.env.metadata
        drawn = uniform(state["key"], state["count"], action.shape, stream=3)
        if action.num_classes is not None:
            chosen = (drawn * torch.tensor(action.num_classes)).long()
        elif "low" in metadata:
            low, high = (torch.as_tensor(metadata[k], dtype=torch.float64) for k in ("low", "high"))
            chosen = (low + (high - low) * drawn).float()
        else:
            raise UserError("the actions have no limits", where=metadata["env"],
                            hint="uniform actions need limits: record --actor scripted, or wrap the environment")
        return chosen, {**state, "count": state["count"] + 1}


def expert_actor(env: Env) -> Actor:
    """Returns the expert of the environment."""
    if not isinstance(env, HasExpert):
        raise UserError(f"{env.metadata['env']} has no expert", hint="record random actions with "
                        "--actor random, or your own demonstrations with "
                        "understudy.data.recording.recorder.Recorder; data that you have are read from "
                        f"{READABLE_FORMATS}")
    return env.expert()
