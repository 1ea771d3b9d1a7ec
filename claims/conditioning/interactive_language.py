"""Row 280: do labels of whole events in play teach more than labels of random windows, and does a policy do long tasks
when a speaker changes the sentence as the scene develops?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    RATE,
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature, normal, uniform
from understudy.data.column_changes import ColumnChange
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.segments import CutSegments, LabeledSegment, SegmentDetector
from understudy.data.text_columns import TaskText
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.instruction import InstructedActor, Speaker
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
STATE, BLOCKS, GOAL, WORDS = "observation.state", "observation.environment_state", "simulator.goal", "observation.words"
COLORS, ZONES = ("red", "green", "blue"), ("left", "middle", "right")
PAINT = ((205, 70, 62), (92, 160, 96), (70, 112, 190))
N_BLOCKS = len(COLORS)
LANES = np.array([0.2, 0.5, 0.8], np.float32)  # y of each block
SPREAD, SPEED, GRASP = 0.06, 0.08, 0.05  # of places; largest way of the hand in a step; as near it takes a block
LONGEST = len("red middle, green middle, blue middle")
TEXT = TaskText(LONGEST)


def sentence(goal) -> str:
    """The words of a goal, which has for each block 0 (anywhere) or the number of a zone from 1."""
    phrases = [f"{color} {ZONES[zone - 1]}" for color, zone in zip(COLORS, goal, strict=True) if zone]
    return ", ".join(phrases) or "nothing"


@lru_cache(256)
def parse_sentence(text: bytes) -> tuple[int, ...]:
    """The goal that a sentence names: the inverse of `sentence`, of UTF-8 bytes that may end with zeros."""
    zone_by_color = dict(part.split() for part in text.rstrip(b"\0").decode().split(", ") if " " in part)
    return tuple(1 + ZONES.index(zone_by_color[color]) if color in zone_by_color else 0 for color in COLORS)


def zones_of_blocks(blocks: np.ndarray) -> np.ndarray:
    """The zone of each block, from 1 to 3: the left, the middle and the right third of the table."""
    return 1 + np.clip(np.floor(3 * blocks[..., 0]), 0, 2).astype(np.int64)


class ZoneTable(Toy):
    """A hand moves three blocks between the left, the middle and the right third of a table.

    observation.state (3): position of the hand, and 1 if it is closed. observation.environment_state (6): positions of
    the blocks. simulator.goal (3): the zone where each block is to be, from 1 to 3, or 0 if it may be anywhere. A
    policy does not read it.

    action (3): velocity, where 1 is 0.08 in a step, and above 0 to close the hand. A hand that closes within 0.05 of a
    block takes it. All blocks in their zones with an open hand end the episode with success.

    Best possible success: 1.0. `PlayExpert(noise=0, wander=0)` attains it.

    Args:
        limit: Number of steps of an episode.
        n_named: Number of blocks with a goal, which is another zone than where the block lies at first. With 0 the
            episode never ends early.
    """

    state_columns = (STATE, BLOCKS, GOAL)

    def __init__(self, rows: int = 1, limit: int = 40, n_named: int = 1):
        self.n_named = n_named
        self.features = {
            STATE: named_vector("x", "y", "closed"),
            BLOCKS: named_vector(*(f"{color}.{axis}" for color in COLORS for axis in "xy")),
            GOAL: Feature("int64", (N_BLOCKS,), "discrete", num_classes=(1 + len(ZONES),) * N_BLOCKS),
            "action": named_vector("x", "y", "close"),
        }
        self.metadata = {"env": "zone_table", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": "each named block lies in its zone"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        count = torch.zeros_like(key)
        drawn = uniform(key, count, (N_BLOCKS, 5)).numpy()
        zone = 1 + (3 * drawn[..., 0]).astype(np.int64)
        goal = 1 + (zone - 1 + 1 + (2 * drawn[..., 1]).astype(np.int64)) % 3  # another zone
        order = drawn[..., 2].argsort(1).argsort(1)
        blocks = place_in_zone(zone, np.arange(N_BLOCKS), drawn[..., 3:])
        hand = 0.1 + 0.8 * uniform(key, count, (2,), stream=1).numpy()
        return {"hand": hand.astype(np.float32), "closed": np.zeros(len(key), bool),
                "held": np.full(len(key), -1, np.int64), "blocks": blocks,
                "goal": np.where(order < self.n_named, goal, 0)}

    def observe(self):
        s = self.state
        return {STATE: np.concatenate([s["hand"], s["closed"][:, None]], 1).astype(np.float32),
                BLOCKS: s["blocks"].reshape(self.rows, -1), GOAL: s["goal"]}

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
        s, canvas = {k: v[row:row + 1] for k, v in self.state.items()}, Canvas(1, 256, (0.0, 0.0), 1.0)
        flat = np.array([[1, 0]], np.float32)
        for x in (1 / 6, 0.5, 5 / 6):
            canvas.box(np.array([[x, 0.5]], np.float32), flat, (0.155, 0.5), COLOR_OF_ROLE["start"])
        for i, paint in enumerate(PAINT):
            canvas.box(s["blocks"][:, i], flat, (0.04, 0.04), paint)
        canvas.circle(s["hand"], 0.02 if s["closed"][0] else 0.03, (70, 74, 88))
        return canvas.image[0]


def place_in_zone(zone: np.ndarray, block: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """A place for a block in a zone: in its own lane, near the middle of the zone, (..., 2)."""
    middle = np.stack(np.broadcast_arrays((2 * zone - 1) / 6, LANES[block]), -1)
    return (middle + SPREAD * (2 * drawn - 1)).astype(np.float32)


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
        target_distance = ahead.norm(dim=1, keepdim=True)
        takes, arrives = ~idle & ~has & (target_distance < 0.6 * GRASP), has & (target_distance < 0.6 * GRASP)
        drawn = normal(state["key"], state["count"], (2,), stream=2)
        tremble = self.noise * target_distance.div(SPEED).clamp(0.05, 1) * drawn
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


# -- what happened in the play --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MovedBlocks(SegmentDetector):
    """A segment for each block that was put into another zone, from when the hand begins to approach it until the hand
    opens. Of several blocks it is one segment, whose sentence names all of them.

    Args:
        counts: For each number, a segment for each such number of different blocks that were moved one after the other.
            Those of the same number do not overlap.
    """

    counts: tuple[int, ...] = (1,)

    def detect(self, episode):
        moves, segments = self._moves(episode), []
        for count in self.counts:
            remaining = list(moves)
            while len(remaining) >= count:
                run = remaining[:count]
                zone = {block: to for _, _, block, to in run}
                if len(zone) == count:
                    segments.append(LabeledSegment(run[0][0], run[-1][1], sentence([zone.get(b, 0)
                                                                                   for b in range(N_BLOCKS)])))
                remaining = remaining[count if len(zone) == count else 1:]
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


@dataclass(frozen=True)
class RandomWindows(SegmentDetector):
    """As many windows at random times as `MovedBlocks` finds segments, and as long, each with the sentence of the event
    that ended in it. If there are two, it is the one with more steps in the window.

    Args:
        draws: A window in which nothing ended is drawn again, so often at most. Its sentence is "nothing".
    """

    draws: int = 100

    def detect(self, episode):
        events, segments = MovedBlocks().detect(episode), []
        rng = np.random.default_rng([280, episode.metadata["seed"] % 2**32, episode.metadata["number"]])
        for event in events:
            length = event.stop - event.start
            for _ in range(self.draws):
                start = int(rng.integers(len(episode) - length + 1))
                ended = [e for e in events if start < e.stop <= start + length]
                if ended:
                    break
            most = max(ended, key=lambda e: e.stop - max(e.start, start), default=None)
            segments.append(LabeledSegment(start, start + length, most.task if most else sentence((0, 0, 0))))
        return segments


@dataclass(frozen=True)
class PermutedTasks(Operation):
    """Permutes the sentences between the segments."""

    def apply(self, data):
        texts = np.random.default_rng(280).permutation([e.metadata["task"] for e in data])
        return Dataset([e.replace({"task": np.full(len(e), text)}) for e, text in zip(data, texts, strict=True)],
                       data.metadata)


@dataclass(frozen=True)
class SentenceGoal(ColumnChange):
    """Adds what a sentence says of each block, (T+1, 3) classes, in place of its words."""

    def __call__(self, episode):
        column = np.array([parse_sentence(bytes(row)) for row in np.asarray(episode.steps[TEXT.into])])
        episode = episode.replace({WORDS: column})
        return replace(episode, schema={**episode.schema, WORDS: ZoneTable().features[GOAL]})

    def step(self, obs, last, state):
        return {WORDS: torch.tensor([parse_sentence(bytes(row)) for row in obs[TEXT.into].numpy()])}, state


@dataclass(frozen=True)
class PlayEpisodes(DemonstrationSource):
    """Long episodes of play without tasks.

    Args:
        length: Number of steps of each.
    """

    episodes: int
    length: int = 300
    probe_sizes = {"episodes": 4}

    @cached_load
    def load(self, seed):
        env = ZoneTable(min(ROWS, self.episodes), self.length, n_named=0)
        return rollout(env.expert(), env, self.episodes, recording_seed(seed))


# -- who speaks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WholeGoalSpeaker(Speaker):
    """Says the whole goal in one sentence, and never anything else."""

    def speak(self, obs, state):
        return [sentence(goal) for goal in obs[GOAL].tolist()], state


@dataclass(frozen=True)
class WatchingSpeaker(Speaker):
    """Watches the scene, and names one block at a time: the one in the hand, or else the nearest one that is not where
    it should be.
    """

    def speak(self, obs, state):
        goal, blocks = obs[GOAL].numpy(), obs[BLOCKS].numpy().reshape(-1, N_BLOCKS, 2)
        hand, rows = obs[STATE].numpy(), np.arange(len(goal))
        gap = distance(blocks, hand[:, None, :2])
        misplaced = (goal > 0) & (zones_of_blocks(blocks) != goal)
        carried = (hand[:, 2:] > 0.5) & (gap < 1e-6) & (goal > 0)
        named = np.where(carried.any(1), carried.argmax(1), np.where(misplaced, gap, np.inf).argmin(1))
        spoken_goal = np.zeros_like(goal)
        spoken_goal[rows, named] = goal[rows, named]
        return [sentence(one) for one in spoken_goal.tolist()], state


@dataclass(frozen=True)
class DelayedSpeaker(WatchingSpeaker):
    """Says what `WatchingSpeaker` would have said some steps before. At first it says what it says at the first step.

    Args:
        delay: Number of steps.
    """

    delay: int = 30

    def start(self, obs, key):
        return {"seen": {k: obs[k].unsqueeze(1).repeat_interleave(self.delay, 1) for k in (STATE, BLOCKS, GOAL)}}

    def speak(self, obs, state):
        history = {k: torch.cat([v, obs[k].unsqueeze(1)], 1) for k, v in state["seen"].items()}
        sentences, _ = super().speak({k: v[:, 0] for k, v in history.items()}, {})
        return sentences, {"seen": {k: v[:, 1:] for k, v in history.items()}}


@dataclass(frozen=True)
class InstructedMethod:
    """A method, and who speaks to it."""

    method: Method
    speaker: Speaker


def instructed_success(experiment, option: InstructedMethod, data: Dataset, seed: int, episodes: int, starts: int
                       ) -> dict[str, list[float]]:
    """Trains a method on segments of play and rolls it out. Arms that differ in the speaker share the training.

    Returns:
        One value per start. "one block" and "three blocks": 0 or 1, whether all named blocks got to their zones.
        "placed": the part of three named blocks that did.
    """
    trained, measures, rows = train_once(experiment, option.method, data, seed), {}, min(ROWS, episodes)
    actor = InstructedActor(build_actor(trained.method, trained.modules, rows, features=trained.features),
                            option.speaker, TEXT)
    for name, n_named, limit in (("one block", 1, 80), ("three blocks", N_BLOCKS, 120)):
        rollouts = rollout(actor, ZoneTable(rows, limit, n_named), episodes, seed=starts)
        measures[name] = [float(e.metadata["success"]) for e in rollouts]
    last = [(zones_of_blocks(e.steps[BLOCKS][-1].reshape(N_BLOCKS, 2)) == e.steps[GOAL][-1]).mean() for e in rollouts]
    return {**measures, "placed": [float(v) for v in last]}


def segment_cloning(detector: SegmentDetector, *operations: Operation) -> Method:
    """Behavior cloning of labeled segments of the play."""
    policy = PolicyConfig(GMM(3, min_std=0.3), MLP(128, 2), TokenEncoder(32), inputs=(WORDS, STATE, BLOCKS))
    return Method(policy, RecedingHorizon(), BehaviorCloning(2500, 128, OptimizerConfig(lr=3e-3)),
                  (CutSegments(detector, extra_steps=2), *operations, TEXT, SentenceGoal()))


def with_permuted_sentences(experiment: Experiment) -> Experiment:
    def permute(option: InstructedMethod) -> InstructedMethod:
        cut, *others = option.method.transforms
        return replace(option, method=replace(option.method, transforms=(cut, PermutedTasks(), *others)))
    return experiment.change_options(permute)


SHORT_AND_LONG = segment_cloning(MovedBlocks((1, N_BLOCKS)))
TABLE = Experiment(
    PlayEpisodes(50),
    "zone_table",
    (
        Arm("live speaker", (InstructedMethod(SHORT_AND_LONG, WatchingSpeaker()),)),
        Arm("one sentence", (InstructedMethod(SHORT_AND_LONG, WholeGoalSpeaker()),)),
        Arm("delayed speaker", (InstructedMethod(SHORT_AND_LONG, DelayedSpeaker()),)),
        Arm("events", (InstructedMethod(segment_cloning(MovedBlocks()), WatchingSpeaker()),)),
        Arm("random windows", (InstructedMethod(segment_cloning(RandomWindows()), WatchingSpeaker()),)),
    ),
    instructed_success,
    tuned_by="three blocks",
    seeds=tuple(range(830, 836)),
    episodes=300,
    measures=(("one block", RATE), ("three blocks", RATE), ("placed", SCORE)),
    starts_seed=830,
    sanity=(("live speaker", "one block", 0.8), ("one sentence", "placed", 0.4), ("events", "one block", 0.8),
            ("random windows", "one block", 0.2)),
)
OVER_SENTENCE = GreaterThan("three blocks", "live speaker", "one sentence", 0.3)
OVER_WINDOWS = GreaterThan("one block", "events", "random windows", 0.3)

CLAIM = Claim(
    name="interactive-language",
    rows=("280",),
    parts=(
        ClaimPart("play", TABLE, AllOf((OVER_SENTENCE, OVER_WINDOWS))),
        ClaimPart("delayed speaker", TABLE, GreaterThan("three blocks", "live speaker", "delayed speaker"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(with_permuted_sentences, "play", removes=(OVER_SENTENCE, OVER_WINDOWS)),
)
