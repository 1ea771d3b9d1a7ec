"""Prompts that show the motion of an episode, from which inverse dynamics are learned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..core import DataError, Feature, check_range
from .episode import Episode
from .operations import Operation


@dataclass(frozen=True)
class MotionPrompt:
    """Replaces the prompt of an episode by "follow this motion", with frames of the same episode.

    A policy that learns from it learns inverse dynamics: which actions lead from one frame to the next. The first
    position of the new prompt is a word. The objects of each frame follow, in their order. Frames are evenly spaced
    from the first to the last observation. An episode with fewer observations shows all of them, and the positions
    after them are padding (0).

    While acting, the environment or an `ObservationWrapper` gives the prompt.

    Args:
        objects: Column with the objects of the scene, of shape (objects, features).
        words: Column with the class of the word at each position of the prompt. 0 for no word.
        prompt_objects: Column with the object at each position of the prompt, of shape (positions, features).
        word: The word at the first position.
        n_frames: Largest number of frames.

    References:
        Li et al. (2024), Mastering Robot Manipulation with Multimodal Prompts through Pretraining and Multi-task
        Fine-tuning (MIDAS), arXiv:2310.09676.
    """

    objects: str = "observation.objects"
    words: str = "observation.prompt.words"
    prompt_objects: str = "observation.prompt.objects"
    word: int = 1
    n_frames: int = 3

    def __post_init__(self):
        check_range(self, "word", "n_frames", at_least=1)

    def __call__(self, episode: Episode) -> Episode:
        features = episode.features()
        for name in (self.objects, self.words, self.prompt_objects):
            if name not in features:
                raise DataError(f"there is no column {name!r}; the episode has {', '.join(sorted(features))}",
                                where="MotionPrompt", hint="name a column that is there")
        words, shown = features[self.words], features[self.prompt_objects]
        frames = np.asarray(episode.steps[self.objects])
        count = min(self.n_frames, len(frames))
        frames = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
        frames = frames.reshape(-1, frames.shape[-1])
        if 1 + len(frames) > words.size:
            raise DataError(f"a word and {count} frames of {len(frames) // count} objects need {1 + len(frames)} "
                            f"positions, but a prompt has {words.size}", where="MotionPrompt.n_frames",
                            hint="show fewer frames, or record longer prompts")
        said, seen = np.zeros(words.shape, words.dtype), np.zeros(shown.shape, shown.dtype)
        said[0], seen[1:1 + len(frames)] = self.word, frames
        return _with_prompt(episode, {self.words: (said, words), self.prompt_objects: (seen, shown)})


@dataclass(frozen=True)
class AddMotionPrompts(Operation):
    """Adds each episode a second time, with a prompt that shows its motion.

    A policy that has learned to follow motions forgets it when it is trained on other prompts alone.

    Args:
        motion: How the prompt is made.
    """

    motion: MotionPrompt = MotionPrompt()

    def apply(self, data):
        return data + data.map(self.motion)


def _with_prompt(episode: Episode, columns: dict[str, tuple[np.ndarray, Feature]]) -> Episode:
    """The episode with columns that have the same value at every observation."""
    held = {name: np.broadcast_to(value, (len(episode.steps[name]), *value.shape))
            for name, (value, _) in columns.items()}
    schema = {**episode.schema, **{name: feature for name, (_, feature) in columns.items()}}
    return replace(episode.replace(held), schema=schema)
