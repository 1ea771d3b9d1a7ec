"""Features of frozen networks, computed once for a data set and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from ..core import Feature
from ..data import cache
from ..data.episode import ColumnSource, Dataset, episode_starts
from .base import ImageFeatures

_ROWS = 64  # images that are encoded at a time


def with_cached_features(data: Dataset, networks: Mapping[str, ImageFeatures]) -> Dataset:
    """Returns the data with features in place of the images, in the columns of `networks`.

    The features are in the cache under a digest of the images, the weights and the preprocessing. They are computed
    if the cache does not have them.
    """
    return Dataset(_FeatureSource(data, {name: _features(data, name, net) for name, net in networks.items()}))


def _features(data: Dataset, name: str, net: ImageFeatures) -> np.ndarray:
    """Computes the features of all rows of all episodes, end to end: (N, tokens, size) float32."""
    rows, shape = data.rows(name), net.feature_shape

    def fill(arrays: dict[str, np.ndarray]) -> None:
        out, first = arrays["features"], 0
        for number, length in enumerate(rows):
            images = data[number].steps[name]
            for i in range(0, int(length), _ROWS):
                part = torch.from_numpy(np.ascontiguousarray(images[i:i + _ROWS]))
                out[first + i:first + i + len(part)] = net.features(part).float().cpu().numpy()
            first += int(length)

    key = cache.json_digest("features", _images_digest(data, name), net.digest())
    return cache.columns(key, {"features": ((int(rows.sum()), *shape), np.float32)}, fill,
                         f"the features of {name}")["features"]


def _images_digest(data: Dataset, name: str) -> str:
    if data.source.key:  # the digest of the files
        return cache.json_digest(data.source.key, [int(i) for i in data.indices], name)
    digest = hashlib.sha256()
    for number in range(len(data)):
        column = np.ascontiguousarray(data[number].steps[name])
        digest.update(str(column.shape).encode())
        digest.update(column.data)
    return digest.hexdigest()


class _FeatureSource(ColumnSource):
    """Wraps a data source so that image columns are replaced by cached features."""

    def __init__(self, data: Dataset, arrays: Mapping[str, np.ndarray]):
        self._data, self._arrays = data, arrays
        self._starts = {name: episode_starts(data.rows(name)) for name in arrays}
        self.metadata, self.lengths = data.metadata, data.lengths
        self.schema = {**data.features(), **{name: Feature("float32", array.shape[1:])
                                             for name, array in arrays.items()}}

    def rows(self, name):
        return self._data.rows(name)

    def column(self, name, episode):
        if name not in self._arrays:
            return self._data[episode].steps[name]
        first = self._starts[name][episode]
        return self._arrays[name][first:first + self.rows(name)[episode]]

    def contiguous(self, name, indices):
        numbers = np.asarray(indices, np.int64)
        if name in self._arrays:
            return self._arrays[name], self._starts[name][numbers], self.rows(name)[numbers]
        column = self._data.column(name)
        return None if column is None else (column[0], column[1][numbers], column[2][numbers])

    def episode_metadata(self, episode):
        return self._data[episode].metadata
