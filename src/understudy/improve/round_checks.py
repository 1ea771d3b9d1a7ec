"""Checks of the episodes of a collection round, and the sizes of their frames, before a policy learns them."""

from __future__ import annotations

import warnings

import numpy as np

from ..core import DataWarning
from ..data.codec import Normalizer
from ..data.episode import Dataset, Episode
from ..data.formats import check_finite
from ..data.running_statistics import is_constant
from ..data.video import resize
from ..learn.targets import REWARD
from ..policy import Policy, camera_sizes
from .gates import INTERVENTION


def check_rewards(number: int, episodes: Dataset, first: Dataset) -> None:
    """Refuses rewards that are not finite, and warns in the first round if there are none so far."""
    check_finite(Dataset(list(episodes), {"path": f"round {number}"}), (REWARD,))
    if number == 0 and not any(np.any(e.steps[REWARD]) for data in (first, episodes) for e in data):
        cause = ("check that the environment has rewards, or begin with demonstrations that reach them"
                 if not any(INTERVENTION in e.steps for e in episodes) else "nobody has taken over")
        warnings.warn(f"all rewards are 0, also those of the first {len(episodes)} collected episodes, so that no "
                      f"action is better than another yet: {cause}", DataWarning, stacklevel=4)


def warn_of_hidden_components(policy: Policy, episodes: Dataset) -> None:
    """Warns of components that a policy reads as constant, as they were in its data, but that vary in new episodes."""
    codec = policy.config.codec
    if type(codec) is not Normalizer or codec.group_by is not None:  # a subclass extends its statistics
        return
    for name in policy.inputs:
        if (statistics := policy.codec.obs_statistics(name)) is None:
            continue
        center, scale = (x.cpu().numpy() for x in statistics)
        varies = np.zeros(center.shape, bool)
        for episode in episodes:
            rows = np.asarray(episode.steps[name])
            observed = rows[np.asarray(episode.steps[name + "?"])] if name + "?" in episode.steps else rows
            low, high = (extreme(np.concatenate([observed, center[None]]), 0) for extreme in (np.min, np.max))
            varies |= ~is_constant(low, high, codec.min_scale)
        if (hidden := np.argwhere(varies & (scale == 0))).size:
            component = ", ".join(map(str, hidden[0]))
            warnings.warn(f"{name} has components that were constant in the first episodes, such as [{component}], and "
                          "vary in collected ones. The policy does not see them. Train again with first episodes in "
                          "which they vary, or unscaled, with --policy.codec.obs identity.", DataWarning, stacklevel=4)


def scaled_frames(episodes: Dataset, data: Dataset) -> Dataset:
    """Returns new episodes with camera frames of the size of those in the data, which were scaled for the policy."""
    sizes = camera_sizes(data.features()) if len(data) else {}

    def scale(episode: Episode) -> Episode:
        frames = {name: episode.steps[name] for name in sizes if name in episode.steps}
        return episode.replace({name: resize(np.asarray(value), sizes[name]) for name, value in frames.items()})
    return episodes.map(scale) if sizes else episodes
