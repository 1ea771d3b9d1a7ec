"""A hand moves three blocks between the left, the middle and the right third of a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from understudy.core import Feature, normal, uniform
from understudy.data.episode import Episode
from understudy.data.segments import LabeledSegment, SegmentDetector
from understudy.envs.raster import render_map
from understudy.envs.toy import Toy, distance, named_vector
from understudy.execute.actor import Actor

STATE, BLOCKS, GOAL = "observation.state", "observation.environment_state", "simulator.goal"
MISSION, WORDS, OBJECTS = "observation.mission", "observation.words", "observation.objects"
N_BLOCKS, N_ZONES = 3, 3
LANES = np.array([0.2, 0.5, 0.8], np.float32)  # y of each block
SPREAD, SPEED, GRASP = 0.06, 0.08, 0.05  # of places; largest way of the hand in a step; as near it takes a block


class InstructedTable(Toy):
    """The table, which says in several ways what is to be done.

    observation.state (3): position of the hand, and 1 if it is closed. observation.environment_state (6): positions of
    the blocks. observation.mission (3): the zone where each block is to be, from 1, or 0 if it may be anywhere.
    observation.words (3): the same of one block, which a speaker who watches the scene names at this step.
    observation.objects (3, 8): position from the hand, color and zone of each block.

    action (3): velocity, where 1 is 0.08 in a step, and above 0 to close the hand. A hand that closes within 0.05 of a
    block takes it. All blocks in their zones with an open hand end the episode with success.

    Args:
        n_named: Number of blocks with a goal, which is another zone than where the block lies at first. With 0 the
            episode never ends early.
    """

    state_columns = (STATE, BLOCKS, GOAL)

    def __init__(self, rows: int = 1, limit: int = 80, n_named: int = 2):
        self.n_named = n_named
        zones = Feature("int64", (N_BLOCKS,), "discrete", num_classes=(1 + N_ZONES,) * N_BLOCKS)
        self.features = {
            STATE: named_vector("x", "y", "closed"), BLOCKS: Feature("float32", (2 * N_BLOCKS,)), GOAL: zones,
            MISSION: zones, WORDS: zones, OBJECTS: Feature("float32", (N_BLOCKS, 2 + N_BLOCKS + N_ZONES)),
            "action": named_vector("x", "y", "close")}
        self.metadata = {"env": "zone_table", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": "each named block lies in its zone"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        count = torch.zeros_like(key)
        drawn = uniform(key, count, (N_BLOCKS, 5)).numpy()
        zone = 1 + (3 * drawn[..., 0]).astype(np.int64)
        goal = 1 + (zone + (2 * drawn[..., 1]).astype(np.int64)) % 3  # another zone
        order = drawn[..., 2].argsort(1).argsort(1)
        blocks = place_in_zone(zone, np.arange(N_BLOCKS), drawn[..., 3:])
        hand = 0.1 + 0.8 * uniform(key, count, (2,), stream=1).numpy()
        return {"hand": hand.astype(np.float32), "closed": np.zeros(len(key), bool),
                "held": np.full(len(key), -1, np.int64), "blocks": blocks,
                "goal": np.where(order < self.n_named, goal, 0)}

    def observe(self):
        s = self.state
        state, goal = np.concatenate([s["hand"], s["closed"][:, None]], 1).astype(np.float32), s["goal"]
        return {STATE: state, BLOCKS: s["blocks"].reshape(self.rows, -1), GOAL: goal, MISSION: goal,
                WORDS: named_by_speaker(state, s["blocks"], goal), OBJECTS: objects_from(state, s["blocks"])}

    def state_from_columns(self, steps):
        hand, blocks = steps[STATE][:, :2], steps[BLOCKS].reshape(-1, N_BLOCKS, 2)
        closed, gap = steps[STATE][:, 2] > 0.5, distance(blocks, hand[:, None])
        return {"hand": hand, "closed": closed, "blocks": blocks, "goal": steps[GOAL],
                "held": np.where(closed & (gap.min(1) == 0), gap.argmin(1), -1)}

    def advance(self, action):
        s, rows = self.state, np.arange(self.rows)
        s["hand"] = np.clip(s["hand"] + np.float32(SPEED) * action[:, :2], 0, 1)
        closes, gap = action[:, 2] > 0, distance(s["blocks"], s["hand"][:, None])
        taken = np.where(gap.min(1) < GRASP, gap.argmin(1), -1)
        s["held"] = np.where(closes, np.where(s["closed"], s["held"], taken), -1)
        s["closed"] = closes
        moved = s["blocks"].copy()
        moved[rows, np.maximum(s["held"], 0)] = s["hand"]
        s["blocks"] = np.where((s["held"] >= 0)[:, None, None], moved, s["blocks"])
        right = (s["goal"] == 0) | (zones_of_blocks(s["blocks"]) == s["goal"])
        success = right.all(1) & ~closes & (s["goal"] > 0).any(1)
        return success, success, np.zeros_like(success)

    def expert(self):
        return PlayExpert()

    def map(self):
        bands = [{"kind": "box", "at": (x, 0.5), "half": (0.15, 0.5), "role": "goal"} for x in (1 / 6, 0.5, 5 / 6)]
        return {"x": (0.0, 1.0), "y": (0.0, 1.0), "path": (STATE, 0, 1), "shapes": bands}

    def frame(self, row):
        hand = {"kind": "circle", "at": tuple(self.state["hand"][row]), "radius": 0.02, "role": "agent"}
        return render_map(self.map(), [hand])


def zones_of_blocks(blocks: np.ndarray) -> np.ndarray:
    """The zone of each block, from 1 to 3."""
    return 1 + np.clip(np.floor(3 * blocks[..., 0]), 0, 2).astype(np.int64)


def place_in_zone(zone: np.ndarray, block: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """A place for a block in a zone: in its own lane, near the middle of the zone, (..., 2)."""
    middle = np.stack(np.broadcast_arrays((2 * zone - 1) / 6, LANES[block]), -1)
    return (middle + SPREAD * (2 * drawn - 1)).astype(np.float32)


def named_by_speaker(state: np.ndarray, blocks: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The goal of the block in the hand, or else of the nearest one that is not where it should be, and 0 of others."""
    gap, rows = distance(blocks, state[:, None, :2]), np.arange(len(goal))
    misplaced = (goal > 0) & (zones_of_blocks(blocks) != goal)
    carried = (state[:, 2:] > 0.5) & (gap < 1e-6) & (goal > 0)
    block = np.where(carried.any(1), carried.argmax(1), np.where(misplaced, gap, np.inf).argmin(1))
    named = np.zeros_like(goal)
    named[rows, block] = goal[rows, block]
    return named


def objects_from(state: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Position from the hand, color and zone of each block, (T, 3, 8)."""
    color = np.broadcast_to(np.eye(N_BLOCKS), (len(blocks), N_BLOCKS, N_BLOCKS))
    zone = np.eye(N_ZONES)[zones_of_blocks(blocks) - 1]
    return np.concatenate([blocks - state[:, None, :2], color, zone], 2).astype(np.float32)


@dataclass(frozen=True)
class PlayExpert(Actor):
    """Moves one block after the other to another zone, and wanders about in between. In each round it moves each block
    once, the nearest first. Where there is a goal, it moves the blocks that are not where they should be.

    Args:
        noise: Standard deviation of its unsteadiness, as a fraction of the largest velocity.
        wander: It wanders for less than this number of steps.
    """

    noise: float = 0.15
    wander: int = 8

    def start(self, obs, key):
        none = torch.zeros_like(key)
        wander, to = self._wander(key, none)
        return {"key": key, "count": none, "n_moves": none, "wander": wander, "to": to, "block": none,
                "place": torch.zeros(len(key), 2), "moved": torch.zeros(len(key), N_BLOCKS, dtype=torch.bool)}

    def _wander(self, key, n_moves):
        """How many steps it wanders before a move, plus one to choose the block, and to where."""
        drawn = uniform(key, n_moves, (3,), stream=6)
        return 1 + (self.wander * drawn[:, 0]).long(), drawn[:, 1:].float()

    def act(self, obs, state):
        hand, closed = obs[STATE].split((2, 1), 1)
        blocks, rows = obs[BLOCKS].reshape(-1, N_BLOCKS, 2), torch.arange(len(hand))
        now, goal_zones = zones_of_blocks(blocks.numpy()), obs[GOAL].numpy()
        placed = torch.from_numpy((goal_zones == 0) | (goal_zones == now))
        to_move = torch.where((obs[GOAL] > 0).any(1, keepdim=True), ~placed, ~state["moved"])
        gap = (blocks - hand[:, None]).norm(dim=2)
        chooses = state["wander"] == 1  # the nearest block that is left to be moved
        block = torch.where(chooses, torch.where(to_move, gap, torch.inf).argmin(1), state["block"])
        lot = uniform(state["key"], state["n_moves"], (6,), stream=6)[:, 3:].numpy()
        other = 1 + (now[rows, block] + (2 * lot[:, 0]).astype(np.int64)) % 3
        zone = np.where(goal_zones[rows, block] > 0, goal_zones[rows, block], other)
        new = place_in_zone(zone, block.numpy(), lot[:, 1:])
        goal = torch.where(chooses[:, None], torch.from_numpy(new), state["place"])
        idle = (state["wander"] > 1)[:, None]
        has = (closed > 0.5) & (gap[rows, block] < 1e-6)[:, None]
        ahead = torch.where(idle, state["to"], torch.where(has, goal, blocks[rows, block])) - hand
        distance = ahead.norm(dim=1, keepdim=True)
        takes, arrives = ~idle & ~has & (distance < 0.6 * GRASP), has & (distance < 0.6 * GRASP)
        tremble = self.noise * distance.div(SPEED).clamp(0.05, 1) * normal(state["key"], state["count"], (2,), stream=2)
        velocity = torch.where(takes | arrives, 0.0, (ahead / SPEED).clamp(-1, 1) + tremble)
        action = torch.cat([velocity, torch.where(takes | has & ~arrives, 1.0, -1.0)], 1).float()
        done = arrives[:, 0]
        moved = state["moved"] | done[:, None] & torch.nn.functional.one_hot(block, N_BLOCKS).bool()
        n_moves = state["n_moves"] + done
        wander, to = self._wander(state["key"], n_moves)
        return action, {"key": state["key"], "count": state["count"] + 1, "n_moves": n_moves, "block": block,
                        "place": goal, "moved": moved & ~moved.all(1, keepdim=True),
                        "wander": torch.where(done, wander, (state["wander"] - 1).clamp(min=0)),
                        "to": torch.where(done[:, None], to, state["to"])}


@dataclass(frozen=True)
class MovedBlocks(SegmentDetector):
    """Segments in which a number of different blocks were put into other zones, one after the other. A segment begins
    when the hand begins to approach the first, and ends when the hand opens. Its task is the zone of each block, or 0.

    Args:
        count: Number of blocks.
    """

    count: int = 1

    def detect(self, episode):
        remaining, segments = self._moves(episode), []
        while len(remaining) >= self.count:
            run = remaining[:self.count]
            zone = {block: to for _, _, block, to in run}
            if len(zone) == self.count:
                task = " ".join(str(zone.get(block, 0)) for block in range(N_BLOCKS))
                segments.append(LabeledSegment(run[0][0], run[-1][1], task))
            remaining = remaining[self.count if len(zone) == self.count else 1:]
        return segments

    def _moves(self, episode: Episode) -> list[tuple[int, int, int, int]]:
        """Start, stop, block and its new zone."""
        state, blocks = episode.steps[STATE], episode.steps[BLOCKS].reshape(-1, N_BLOCKS, 2)
        closed, zone, moves = state[:, 2] > 0.5, zones_of_blocks(blocks), []
        changes = np.flatnonzero(closed[1:] != closed[:-1]) + 1
        for first, last in zip(changes[::2], changes[1::2], strict=False):
            block = int(distance(blocks[first], state[first, :2]).argmin())
            if zone[first, block] == zone[last, block]:
                continue
            gap, start = distance(state[:, :2], blocks[first - 1, block]), first - 1
            while start > 0 and gap[start - 1] > gap[start] + 0.1 * SPEED:
                start -= 1
            moves.append((int(start), int(last), block, int(zone[last, block])))
        return moves
