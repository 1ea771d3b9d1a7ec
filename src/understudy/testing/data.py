"""Contracts of codecs, formats and column changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..core import Feature, State, UserError, keys, role
from ..data.codec import Codec
from ..data.column_changes import ColumnChange, EpisodeTransform, LastStep
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset
from ..data.window import Window
from .base import STATE, ContractViolation, _metadata_as_json, _same_column, _structure, require, require_equal
from .random_data import random_dataset


def check_codec(codec: Codec, target: Feature | None = None) -> None:
    """Checks the contract of a codec.

    `decode` undoes `encode`. Columns without numeric values are left alone. The codec cannot be used before it is
    fitted.

    Args:
        target: Feature of the target. By default two numbers.
    """
    features = {STATE: Feature("float32", (2,)), "observation.images.front": Feature("uint8", (4, 4, 3), "image"),
                "observation.words": Feature("uint8", (9,), "text"),
                "observation.mode": Feature("int64", (1,), "discrete", num_classes=(3,)),
                "action": target or Feature("float32", (2,))}
    inputs = tuple(k for k in features if k != "action")
    data = random_dataset(features)
    windows = Window(2, 4).windows(data, inputs, "action")
    batch = windows.gather(np.arange(0, len(windows), 5))
    coder = codec.build(features, inputs, "action")
    if coder.state_dict() and not getattr(coder, "fitted", True):
        for use in (lambda: coder.encode(batch.action, batch.obs), lambda: coder.encode_obs(batch.obs)):
            try:
                use()
            except UserError:
                continue
            raise ContractViolation("statistics that were never taken must not be used")
    coder.fit_statistics(windows.scan)
    coded = coder.encode(batch.action, batch.obs)
    require(coded.shape == (*batch.action.shape[:2], coder.width), "coded actions must be (B, H, width)")
    back = coder.decode(coded, batch.obs)
    here = batch.mask.unsqueeze(-1)
    require_equal(back * here, batch.action.to(back.dtype) * here, "decode must undo encode", 1e-4)
    encoded = coder.encode_obs(batch.obs)
    require(set(encoded) == set(batch.obs), "a codec must keep every observation")
    for name in inputs:
        require(encoded[name].shape == batch.obs[name].shape, f"{name} must keep its shape")
        if features[name].kind != "vector":
            require_equal(encoded[name], batch.obs[name], f"{name} is not numeric and must be left alone")
    twin = codec.build(features, inputs, "action")
    twin.load_state_dict(coder.state_dict())
    require_equal(twin.encode(batch.action, batch.obs), coded, "statistics must be saved with the weights")


def check_format(to: str, data: Dataset, folder: Path, **options) -> None:
    """Checks the contract of a format that is written.

    Everything is read again with the side file, except for what the format declares as lost. Without the side file,
    columns are read again as the format's capability declares. Writing does not change the data.

    Args:
        folder: An existing folder for the files.
    """
    from ..data.formats import conversion_losses, write_dataset
    from ..data.formats.parts import sidecar
    from ..data.formats.registry import _format_module as module

    losses, before = conversion_losses(data, to, **options), data.fingerprint()
    places = module(to).capability(data, **options).columns
    path = folder / f"written-{to}"
    write_dataset(data, path, to, **options)
    require(data.fingerprint() == before, f"{to}: the data that were written are as they were")
    lost_columns = {loss.subject for loss in losses if not loss.in_sidecar}
    again = open_dataset(path)
    features = again.features()
    require(len(again) == len(data) and list(features) == list(data.features()),
            f"{to}: has {list(features)}, {len(again)} episodes")
    for e, (one, other) in enumerate(zip(data, again, strict=True)):
        for name, f in data.features().items():
            if name not in lost_columns:
                require(features[name] == f, f"{to}: {name} must be {f}, and is {features[name]}")
                _same_column(one.steps[name], other.steps[name], f"{to}: {name} of episode {e}")
        require(_metadata_as_json(one.metadata) == _metadata_as_json(other.metadata),
                f"{to}: the metadata of episode {e}")
    require(again.fps == data.fps, f"{to}: fps must be {data.fps}, and is {again.fps}")
    beside = sidecar.sidecar_path(path)
    if not beside.exists():
        return
    beside.unlink()
    alone = open_dataset(path)
    for name, place in places.items():
        for e, (one, other) in enumerate(zip(data, alone, strict=True)):
            stored, f = np.asarray(other.steps[place.name]), data.features()[name]
            rows = len(one) + 1 if place.repeats_last_row else len(one.steps[name]) if place.has_last_row else len(one)
            require((stored.dtype.kind in "UO" if f.kind == "string" else stored.dtype.name == place.dtype)
                    and stored.shape == (rows, *place.shape),
                    f"{to}: {name} of episode {e} must be {place} without the side file, and is {stored.dtype} "
                    f"{stored.shape}")
            if place.is_exact:
                expected = np.asarray(one.steps[name])
                expected = np.concatenate([expected, expected[-1:]])[:rows].reshape(stored.shape)
                _same_column(expected if f.kind == "string" else expected.astype(place.dtype), stored,
                             f"{to}: {name} of episode {e}, without the side file")


def check_column_change(change: EpisodeTransform, data: Dataset, provided: Sequence[str] = ()) -> None:
    """Checks that a policy observes the same columns while acting as in training.

    A function that is not a `ColumnChange` may add observations only if something else gives them while acting.

    A `ColumnChange` sees the recorded observations, actions and rewards one by one. In the first observation it also
    finds the first value of the column, as an `ObservationWrapper` would give it. It must give the columns that it adds
    to recorded episodes, and the recorded action back. Its state must keep its structure, and rows must not depend on
    each other.

    Args:
        data: Two or more episodes of different columns, without the added ones. Lengths may differ.
        provided: Columns that environments or planners give, such as "observation.goal".
    """
    if not isinstance(change, ColumnChange):
        unknown = [name for episode in data for name in _changed_observations(change, episode)
                   if name not in episode.steps and name not in provided]
        require(not unknown, f"{type(change).__name__} adds {', '.join(dict.fromkeys(unknown))}, which no environment "
                "shows: make it a ColumnChange, so that a policy that reads it can act")
        return
    change.check_online()
    together = _columns_while_acting(change, list(data))
    for episode, columns in zip(data, together, strict=True):
        for name, recorded in _changed_observations(change, episode).items():
            require(name in columns, f"the column change does not give {name!r} while acting")
            acting = columns[name][: len(recorded)]
            require(acting.shape == recorded.shape and acting.dtype.kind == recorded.dtype.kind,
                    f"{name!r} is {acting.dtype} {acting.shape[1:]} while acting, but {recorded.dtype} "
                    f"{recorded.shape[1:]} in training")
            is_equal = (np.allclose(acting, recorded, rtol=1e-4, atol=1e-4) if recorded.dtype.kind == "f"
                        else np.array_equal(acting, recorded))
            require(is_equal, f"{name!r} must have the same values while acting as in training")
        if "action" in (changed := change(episode)).steps:
            recorded = torch.tensor(np.asarray(episode.steps["action"]))
            action = change.transform_action(torch.tensor(np.asarray(changed.steps["action"])), recorded[0].numel())
            require_equal(action, recorded, "the environment must get the recorded action")
    for episode, columns in zip(data, together, strict=True):
        alone = _columns_while_acting(change, [episode])[0]
        for name, column in columns.items():
            require(np.array_equal(column[: len(alone[name])], alone[name]),
                    f"{name!r} must not depend on the other rows")


def _changed_observations(change: EpisodeTransform, episode: Episode) -> dict[str, np.ndarray]:
    """Returns the observations that a column change adds to a recorded episode or replaces there."""
    return {name: np.asarray(column) for name, column in change(episode).steps.items() if role(name) == "observation"
            and (name not in episode.steps or column is not episode.steps[name])}


def _columns_while_acting(change: ColumnChange, episodes: list[Episode]) -> list[dict[str, np.ndarray]]:
    """Returns the observations that a column change gives while acting along episodes at the same time."""
    rows = torch.arange(len(episodes))
    actions = [np.asarray(e.steps["action"]).reshape(len(e.steps["action"]), -1) for e in episodes]
    rewards = [np.asarray(e.steps["next.reward"], np.float32).reshape(-1) for e in episodes]

    def at(columns, t):
        return torch.from_numpy(np.stack([c[min(t, len(c) - 1)] for c in columns]))
    observed = {k: [np.asarray(e.steps[k]) for e in episodes] for k in episodes[0].steps if role(k) == "observation"}
    firsts = [{k: column[0] for k, column in _changed_observations(change, e).items() if k not in observed}
              for e in episodes]
    first_values = {k: torch.from_numpy(np.stack([first[k] for first in firsts])) for k in firsts[0]}
    lengths = [len(e) for e in episodes]
    state: State = {}
    steps = []
    for t in range(max(lengths) + 1):
        obs = {**{k: at(v, t) for k, v in observed.items()}, **first_values}
        last = LastStep(torch.full((len(rows),), t > 0), at(actions, max(t - 1, 0)) * (t > 0),
                        at(rewards, max(t - 1, 0)) * (t > 0))
        if t == 0:
            state = change.start(obs, keys(0, range(len(rows))))
        added, after = change.step(obs, last, state)
        require(_structure(after) == _structure(state), "the state must keep its names, shapes and dtypes")
        state = after
        steps.append({**first_values, **added})
    return [{k: np.stack([step[k][row].numpy() for step in steps])[: lengths[row] + 1] for k in steps[0]}
            for row in rows.tolist()]
