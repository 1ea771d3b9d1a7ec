"""Comparisons of two segments of recorded episodes: a person says which is better."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import UserError
from ..data.episode import Dataset, Episode, episode_fingerprints
from ..data.formats import open_dataset
from ..data.formats.parts.file_kinds import is_lerobot
from ..data.recording.recorder import repair, warn_of_losses
from ..envs.base import Env, Renderable, Restorable
from ..envs.devices import RecordingKeys
from ..evaluate.replay import recorded_actions, recorded_states, reset_to_start
from ..evaluate.teleoperate import render_ansi
from ..learn.rewards.learned_reward import LearnedReward
from ..learn.rewards.preference_reward import BETTER, PREFERENCE, SEGMENT
from ..learn.rewards.reward_models import RewardModel
from ..learn.targets import REWARD

HELP = "1: the left is better | 2: the right is better | 3: both are as good | s: skip | q: quit"
ANSWERS = {"1": "first", "2": "second", "3": "equal", "s": "skip", "q": "quit"}
PREFERENCES = {"first": BETTER, "second": 0, "equal": BETTER // 2}
_GAP = 4  # pixels between two frames


@dataclass(frozen=True)
class Segment:
    """A segment of a recorded episode: the number of the episode, and the first step."""

    episode: int
    start: int


def draw_pair(data: Dataset, length: int, seed: int, number: int) -> tuple[Segment, Segment]:
    """Returns pair `number` of a seed: segments of two episodes, each start equally likely."""
    long = [i for i, n in enumerate(data.lengths) if n >= length]
    if len(long) < 2:
        raise UserError(f"{len(long)} of {len(data)} episodes have {length} steps, and a pair needs two",
                        where=str(data.metadata.get("path", "data set")), hint="use a smaller --length")
    rng = np.random.default_rng([seed, number])
    first, second = (Segment(int(i), int(rng.integers(data.lengths[i] - length + 1)))
                     for i in rng.choice(long, 2, replace=False))
    return first, second


def comparison(data: Dataset, pair: tuple[Segment, Segment], length: int, answer: str) -> Episode:
    """Returns the episode of a comparison: the steps of both segments end to end, and which is better.

    Args:
        answer: "first", "second" or "equal".
    """
    schema = {name: feature for name, feature in data[pair[0].episode].features().items()
              if name.startswith("observation.") or name in ("action", REWARD)}
    steps = {name: np.concatenate([np.asarray(data[s.episode].steps[name][s.start:s.start + length]) for s in pair])
             for name in schema}
    preference = PREFERENCES[answer]
    steps[PREFERENCE] = np.repeat(np.array([preference, BETTER - preference]), length)[:, None]
    steps[SEGMENT] = np.repeat(np.arange(2), length)[:, None]
    recorded = data[pair[0].episode].metadata
    return Episode(steps, {**{name: recorded[name] for name in ("env", "simulator") if name in recorded},
                           **{name: [segment.episode, segment.start]
                              for name, segment in zip(("first", "second"), pair, strict=True)}}, schema=schema)


def judged_data(data: Dataset) -> str:
    """Describes the episodes that are compared, with a digest, for the metadata of comparisons.

    Raises:
        UserError: The episodes are comparisons themselves.
    """
    if {SEGMENT, PREFERENCE} <= data.features().keys():
        raise UserError("these episodes are comparisons themselves",
                        where=str(data.metadata.get("path", "data set")), hint="name the episodes that they compare")
    digest = hashlib.sha256("".join(episode_fingerprints(data)["digests"]).encode()).hexdigest()[:16]
    return f"{len(data)} episodes, {sum(data.lengths)} steps, digest {digest}"


def answered_pairs(out: Path, metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the number of answered comparisons in a folder, and the number of the next pair.

    Args:
        metadata: What the metadata of its episodes must say.
    """
    if not out.exists():
        return 0, 0
    if not is_lerobot(out):
        raise UserError(f"the {'folder' if out.is_dir() else 'file'} has no comparisons", where=out,
                        hint="choose another folder")
    warn_of_losses(out, repair(out))
    data = open_dataset(out)
    for number, episode in enumerate(data):
        place = f"{out}, episode {number}"
        if not metadata.keys() <= episode.metadata.keys():
            raise UserError("the episode is not a comparison", where=place, hint="choose another folder")
        if other := [name for name in metadata if episode.metadata[name] != metadata[name]]:
            label = {"judged": "the data", "by": "--judge"}.get(other[0], other[0])
            raise UserError(f"the comparison has {label} {episode.metadata[other[0]]}, and this call "
                            f"{metadata[other[0]]}", where=place,
                            hint="choose another folder, or use the options of the first call")
    return len(data), int(data[-1].metadata["pair"]) + 1 if len(data) else 0


def predicted_difference(reward: RewardModel, episode: Episode) -> float:
    """Returns the difference of the summed predicted rewards: first segment of a comparison minus second segment."""
    [rewarded] = LearnedReward(reward).apply(Dataset([episode]))
    is_second = np.reshape(episode.steps[SEGMENT], -1)[:len(episode)] > 0
    return float(np.where(is_second, -1, 1) @ rewarded.steps[REWARD])


def count_agreements(reward: RewardModel, comparisons: Dataset) -> tuple[int, int]:
    """Counts the comparisons in which the segment with the larger sum of rewards is the preferred one.

    Returns:
        The number of these comparisons, and the number of all comparisons that prefer a segment.
    """
    agreed = clear = 0
    for episode in comparisons:
        segment, preference = (np.reshape(episode.steps[name], -1) for name in (SEGMENT, PREFERENCE))
        if (first := preference[segment == 0][0]) != BETTER // 2:
            clear += 1
            agreed += int((predicted_difference(reward, episode) > 0) == (first == BETTER))
    return agreed, clear


def prefer_by_reward(data: Dataset, pair: tuple[Segment, Segment], length: int) -> str:
    """Returns the answer of somebody who knows the rewards: the segment with the larger sum is better."""
    if REWARD not in data[0].steps:
        raise UserError(f"there is no column {REWARD!r}", where=str(data.metadata.get("path", "data set")),
                        hint="judge yourself: --judge keyboard")
    first, second = (float(np.sum(np.asarray(data[s.episode].steps[REWARD][s.start:s.start + length], np.float64)))
                     for s in pair)
    return "equal" if first == second else "first" if first > second else "second"


# -- a person at the keyboard -----------------------------------------------------------------------------------------


@dataclass
class PreferenceKeys(RecordingKeys):
    """The keys with which a person answers which segment is better: 1, 2, 3, s (skip) and q (quit)."""

    def _press(self, key: str, now: float) -> None:
        if key.lower() in ANSWERS:
            self._commands.append(ANSWERS[key.lower()])


def segment_frames(data: Dataset, segment: Segment, length: int, env: Env | None) -> list[np.ndarray]:
    """Returns the pictures of a segment, (H, W, 3) uint8 each: of the first camera, or as an environment renders it.

    Args:
        env: The environment of the data. None for data with cameras.
    """
    episode, steps = data[segment.episode], range(segment.start, segment.start + length)
    cameras = [name for name, feature in episode.features().items() if feature.kind == "image"]
    if cameras:
        return [np.asarray(episode.steps[cameras[0]][t]) for t in steps]
    if not isinstance(env, Renderable):
        raise UserError("the data have no camera, and there is no environment that can draw them",
                        where=str(data.metadata.get("path", "data set")), hint="name it: --env ENV")
    frames = []
    reset_to_start(data, env, [segment.episode])
    if isinstance(env, Restorable):
        for t in steps:
            env.restore(torch.tensor([0]), recorded_states(episode, [t]))
            frames.append(np.array(env.frame(0)))
        return frames
    for t, action in enumerate(recorded_actions(episode, segment.episode)[:steps.stop]):
        if t in steps:
            frames.append(np.array(env.frame(0)))
        env.step(action[None])
    return frames


@dataclass(frozen=True)
class PreferenceScreen:
    """Shows two segments side by side in the terminal, again and again, until the person answers which is better.

    Args:
        period: Time between two frames (s).
        lines: Height of the pictures in lines, at most.
        columns: Width of the terminal in characters.
    """

    keyboard: PreferenceKeys
    show: Callable[[str], None]
    period: float
    lines: int = 24
    columns: int = 80
    sleep: Callable[[float], None] = field(default=time.sleep)

    def ask(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray], title: str) -> str:
        """Returns the answer: one of the values of `ANSWERS`."""
        self.keyboard.commands()  # what was pressed before
        while True:
            for one, other in zip(first, second, strict=True):
                gap = np.full((len(one), _GAP, 3), 128, np.uint8)
                picture = np.concatenate([one, gap, other], 1)
                lines = min(self.lines, int(self.columns * picture.shape[0] / (2 * picture.shape[1])))
                self.show(f"{render_ansi(picture, lines)}\n{title}\n{HELP}")
                self.sleep(self.period)
                if answers := self.keyboard.commands():
                    return answers[0]
            self.sleep(4 * self.period)  # so that the end is seen
