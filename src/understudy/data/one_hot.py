"""One-hot coding of targets with several components, each with its own number of classes.

Components with equally many classes, such as the cells of a map, are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

READS_VALUES: bool = True  # not while an update is captured as a graph


def encode_classes(classes: Tensor, num_classes: Sequence[int]) -> Tensor:
    """Codes classes, whole numbers (..., components), as one-hot vectors, float32 (..., sum(num_classes))."""
    if len(set(num_classes)) == 1:
        return _one_hot(classes, num_classes[0]).flatten(-2).float()
    parts = (_one_hot(c, n) for c, n in zip(classes.unbind(-1), num_classes, strict=True))
    return torch.cat(tuple(parts), -1).float()


def _one_hot(classes: Tensor, n_classes: int) -> Tensor:
    if READS_VALUES:  # it refuses what is not a class
        return F.one_hot(classes.long(), n_classes)
    return classes.long().unsqueeze(-1) == torch.arange(n_classes, device=classes.device)


def decode_classes(scores: Tensor, num_classes: Sequence[int]) -> Tensor:
    """Returns the class with the largest score in each component, int64 (..., components).

    Args:
        scores: One-hot vectors, logits or probabilities (..., sum(num_classes)).
    """
    if len(set(num_classes)) == 1:
        return scores.unflatten(-1, (-1, num_classes[0])).argmax(-1)
    return torch.stack([s.argmax(-1) for s in scores.split(tuple(num_classes), -1)], -1)


def map_components(function: Callable[[Tensor], Tensor], x: Tensor, num_classes: Sequence[int]) -> Tensor:
    """Applies a function to the n class scores of each component of (..., sum(num_classes)) separately."""
    if len(set(num_classes)) == 1:
        return function(x.unflatten(-1, (-1, num_classes[0]))).flatten(-2)
    return torch.cat([function(part) for part in x.split(tuple(num_classes), -1)], -1)
