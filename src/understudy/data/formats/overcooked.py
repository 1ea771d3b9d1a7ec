"""Trials of people who cook together in Overcooked (Carroll et al. 2019): a .csv or .parquet table with one row per
step.

Layout: HumanCompatibleAI/overcooked_ai, human_aware_rl/static/human_data. A row has the state before its joint action.
A trial becomes an episode for each player who is a person, from the view of that player. The states of 2019 have their
objects by position and no layout. The file layouts.json next to the table has the layouts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError
from ...files import read_json
from .. import cache
from ..episode import ColumnSource
from .parts.column_names import format_list
from .parts.file_kinds import file_kind
from .parts.key_map import metadata
from .parts.read_errors import damaged

COLUMNS = {"state", "joint_action", "layout_name", "cur_gameloop"}  # and trial_id or trial
ACTIONS = ((0, -1), (0, 1), (1, 0), (-1, 0), (0, 0), "interact")  # north, south, east, west, stay
CELLS = "XPOTDS"  # counter, pot, onions, tomatoes, dishes, where soup is served; floor is none of them
ITEMS = ("onion", "tomato", "dish", "soup")
_OBJECTS = ("onion", "tomato", "dish", "soup's onions", "soup's tomatoes", "steps cooked", "cooks or is ready")


class OvercookedSource(ColumnSource):
    """Reader of a table of Overcooked trials. Each trial gives an episode for each human player.

    observation.state has position (x, y), direction and held object, first of the player and then of the second player.
    observation.layout (H, W, 6) has the kind of each cell, and observation.objects (H, W, 7) the objects on it. Smaller
    kitchens are padded. action is one of north, south, east, west, stay and interact. Metadata of an episode: trial,
    player, layout_name.
    """

    def __init__(self, path: Path):
        self.metadata = metadata("overcooked", path, [])
        self.path, self.key = path, cache.files_digest([path], "overcooked")
        rows: dict[str, list[tuple[str, dict]]] = {}  # of each trial: where a row is, and the row
        for at, row in enumerate(_rows(path)):
            rows.setdefault(str(row.get("trial_id", row.get("trial"))), []).append((f"{path}, row {at}", row))
        if not rows:
            raise damaged("the table has no rows", path)
        layouts_file = path.parent / "layouts.json"
        layouts = read_json(layouts_file) if layouts_file.exists() else {}
        kitchens = {trial: _kitchen(*of[0], layouts) for trial, of in rows.items()}
        high, wide = np.max([k.shape[:2] for k in kitchens.values()], 0)
        self._trials = {trial: _Trial(of, kitchens[trial], high, wide) for trial, of in rows.items()}
        self._views = [(trial, player) for trial, t in self._trials.items() for player in t.people]
        self.lengths = np.array([len(self._trials[trial]) for trial, _ in self._views], np.int64)
        own_names = ("x", "y", "dx", "dy", *(f"holds_{item}" for item in ITEMS))
        self.schema = {
            "observation.state": Feature("float32", (16,), names=(*own_names, *(f"other_{n}" for n in own_names))),
            "observation.layout": Feature("float32", (int(high), int(wide), len(CELLS))),
            "observation.objects": Feature("float32", (int(high), int(wide), len(_OBJECTS))),
            "action": Feature("int64", (1,), "discrete", num_classes=(len(ACTIONS),)),
            "next.reward": Feature("float32", ()), "next.terminated": Feature("bool", ()),
            "next.truncated": Feature("bool", ()), "timestamp": Feature("float32", ())}

    def rows(self, name):
        return self.lengths

    def column(self, name, episode):
        trial, player = self._views[episode]
        return self._trials[trial].column(name, player)

    def episode_metadata(self, episode):
        trial, player = self._views[episode]
        return {"trial": trial, "player": player, "layout_name": self._trials[trial].layout_name}


class _Trial:
    """The rows of one Overcooked trial, in the order of the game loop."""

    def __init__(self, rows: list[tuple[str, dict]], kitchen: np.ndarray, high: int, wide: int):
        loops = np.array([_number(row["cur_gameloop"], f"{place}, cur_gameloop") for place, row in rows])
        if len(gaps := np.flatnonzero(np.diff(loops) != 1)):
            raise UserError(f"step {loops[gaps[0] + 1]:g} of the game follows step {loops[gaps[0]]:g}",
                            where=f"{rows[gaps[0] + 1][0]}, cur_gameloop", hint="sort the rows, or split the trial")
        first = rows[0][1]
        self.layout_name = str(first["layout_name"])
        self.people = [p for p in (0, 1) if str(first.get(f"player_{p}_is_human", True)).lower() not in ("false", "0")]
        states = [(place, _json(row, "state", place)) for place, row in rows]
        self._players = np.stack([_players(*s) for s in states])  # (T, 2, 8)
        self._objects = np.zeros((len(rows), high, wide, len(_OBJECTS)), np.int16)
        for t, (place, state) in enumerate(states):
            _lay(self._objects[t], kitchen.shape, state, place)
        self._layout = np.zeros((high, wide, len(CELLS)), np.float32)
        self._layout[:kitchen.shape[0], :kitchen.shape[1]] = kitchen[..., None] == np.array(list(CELLS))
        self._actions = np.array([_actions(_json(row, "joint_action", place), place) for place, row in rows])
        self._reward = np.array([_number(row.get("reward", 0), f"{place}, reward") for place, row in rows])
        self._time = np.array([_number(row.get("time_elapsed", t), f"{place}, time_elapsed")
                               for t, (place, row) in enumerate(rows)])

    def __len__(self):
        return len(self._actions)

    def column(self, name: str, player: int) -> np.ndarray:
        last = np.arange(len(self)) == len(self) - 1
        return {
            "observation.state": lambda: self._players[:, [player, 1 - player]].reshape(len(self), 16),
            "observation.layout": lambda: np.broadcast_to(self._layout, (len(self), *self._layout.shape)),
            "observation.objects": lambda: self._objects.astype(np.float32),
            "action": lambda: self._actions[:, [player]], "next.reward": lambda: self._reward.astype(np.float32),
            "next.terminated": lambda: last & False, "next.truncated": lambda: last,  # the time is up
            "timestamp": lambda: (self._time - self._time[0]).astype(np.float32)}[name]()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if file_kind(path) == "parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(path.absolute()).to_pylist()
        return
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8-sig", newline="") as handle:
        for at, row in enumerate(csv.DictReader(handle)):
            if None in row or None in row.values():
                raise damaged(f"the row has {'more' if None in row else 'fewer'} fields than the first line names",
                              f"{path}, row {at}")
            yield row


def _json(row: dict, key: str, place: str):
    try:
        return json.loads(row[key])
    except (TypeError, ValueError) as error:
        raise damaged(f"this is not JSON: {str(row[key])[:40]!r} ({error})", f"{place}, {key}") from None


def _number(value, place: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise damaged(f"this is not a number: {value!r}", place) from None


def _kitchen(place: str, row: dict, layouts: dict) -> np.ndarray:
    """Returns the layout of the kitchen, (H, W) of single characters."""
    grid = _json(row, "layout", place) if row.get("layout") else layouts.get(row["layout_name"])
    if grid is None:
        raise UserError(f"the layout {row['layout_name']!r} is not known", where=place,
                        hint="put layouts.json next to the file, with the name and the rows of the grid")
    lines = [list(line) for line in grid] if isinstance(grid, list) else []
    if not lines or len({len(line) for line in lines}) > 1:
        raise damaged("the rows of the grid differ in length", f"{place}, layout")
    return np.array(lines)


def _players(place: str, state) -> np.ndarray:
    """Returns position, orientation and held item (one-hot) of both players, (2, 8)."""
    players = state.get("players", ()) if isinstance(state, dict) else ()
    if len(players) != 2:
        raise damaged(f"there are {len(players)} players instead of two", f"{place}, state")
    try:
        held_items = [(p.get("held_object") or {}).get("name") for p in players]
        return np.array([[*p["position"], *p["orientation"], *(h == item for item in ITEMS)]
                         for p, h in zip(players, held_items, strict=True)], np.float32)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged("a player has no position or no orientation", f"{place}, state") from None


def _lay(grid: np.ndarray, shape, state: dict, place: str) -> None:
    objects = state.get("objects") or []
    try:
        for thing in objects.values() if isinstance(objects, dict) else objects:
            x, y = thing["position"]
            if not (0 <= x < shape[1] and 0 <= y < shape[0]):
                raise damaged(f"the position {x}, {y} is outside the kitchen of {shape[1]} by {shape[0]}",
                              f"{place}, state, objects")
            cell = grid[y, x]
            if thing["name"] != "soup":
                cell[ITEMS.index(thing["name"])] += 1
            elif "state" in thing:  # files of 2019: ingredient, count, cooking time. The third starts cooking
                of, number, ticks = thing["state"]
                cell[3 + ("onion", "tomato").index(of)] += number
                cell[5:] = ticks, ticks > 0
            else:
                for part in thing["_ingredients"]:
                    cell[3 + ("onion", "tomato").index(part["name"])] += 1
                ticks = thing["_cooking_tick"]
                cell[5:] = max(ticks, 0), ticks >= 0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(f"an object has no valid name or position ({error})", f"{place}, state, objects") from None


def _actions(joint, place: str) -> list[int]:
    try:
        first, second = (a.lower() if isinstance(a, str) else tuple(a) for a in joint)
        return [ACTIONS.index(first), ACTIONS.index(second)]
    except (TypeError, ValueError):
        raise damaged(f"{joint} is not two actions, each of {format_list(map(str, ACTIONS))}",
                      f"{place}, joint_action") from None
