"""Row 172: do policies that read words and objects in one prompt gain from inverse dynamics and from joint actions?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from understudy.checkpoint import FromStage
from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.envs.raster import Canvas
from understudy.envs.toy import Toy
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import FitResult
from understudy.learn.method import InitializeFrom, Method, Stage, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.representation.midas import AddMotionPrompts, MotionPrompt, MultimodalPromptEncoder
from understudy.nets.in_context import InContextTransformer
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
OBJECTS, WORDS, PROMPT = "observation.objects", "observation.prompt.words", "observation.prompt.objects"
PLAN = "simulator.state"
SIDE, KINDS, SLOTS = 3, 3, 3  # cells along each side, kinds of objects, and objects in a scene
FEATURES = KINDS + 2 * SIDE  # of an object: its kind, column and row, as one-hot vectors
MOVES, FRAMES = 2, 3
POSITIONS = 1 + FRAMES * SLOTS  # of a prompt: a word, and the objects of each frame
FOLLOW, PUT, INTO, ARRANGE = 1, 2, 3, 4  # words
TASKS = ("put", "arrange", "follow")
MOTION = MotionPrompt(OBJECTS, WORDS, PROMPT, FOLLOW, FRAMES)
EPISODES, WIDTH, DEPTH, BATCH, LR = 4000, 48, 2, 64, 5e-3
PRETRAINING_STEPS, STEPS = 800, 1500


class PromptedTabletop(Toy):
    """Three objects lie on a table of 3 x 3 cells. A prompt of words and objects says which to move, and where.

    Each object has one of three kinds. It is described by three one-hot vectors: kind, column and row. In "put" the
    prompt is "put A into B", with the descriptions of two objects, and A must be moved to the cell of B in one step.

    In "arrange" the prompt is "arrange" and the three objects where they should lie at the end. Two of them must be
    moved, and each may be the first. In "follow" the prompt is "follow" and three frames of all objects, and the two
    moves from frame to frame must be repeated in their order.

    observation.objects (3, 9). observation.prompt.words (10): 0 none, 1 follow, 2 put, 3 into, 4 arrange.
    observation.prompt.objects (10, 9): 0 where there is none. simulator.state (8): number of the task, of the moves
    that the expert has made, and of objects and cells of its moves, which are needed to restore a state.

    action (4): column and row of the cell where the hand takes an object, and of the cell where it puts it. A wrong
    move ends the episode. The right ones end it with reward 1.

    Best possible success: 1.0. `PromptedTabletopExpert()` attains it.

    Args:
        limit: Number of steps of an episode.
        tasks: The tasks. Each episode draws one.
    """

    state_columns = (OBJECTS, WORDS, PROMPT, PLAN)
    low, high = 0.0, SIDE - 1.0

    def __init__(self, rows: int = 1, limit: int = MOVES, tasks: tuple[str, ...] = ("put", "arrange")):
        self.tasks = tuple(TASKS.index(name) for name in tasks)
        self.features = {
            OBJECTS: Feature("float32", (SLOTS, FEATURES)),
            WORDS: Feature("int64", (POSITIONS,), "discrete", num_classes=(5,) * POSITIONS),
            PROMPT: Feature("float32", (POSITIONS, FEATURES)),
            PLAN: Feature("float32", (2 + 3 * MOVES,)),
            "action": Feature("int64", (4,), "discrete", num_classes=(SIDE,) * 4)}
        self.metadata = {"env": "prompted_tabletop", "version": 1, "fps": 1, "limit": limit, "optimum": 1.0,
                         "success": "the moves are those that the prompt asks for"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        n = len(key)
        drawn = uniform(key, torch.zeros_like(key), (1,)).numpy()[:, 0]
        order = uniform(key, torch.zeros_like(key), (SIDE**2,), stream=1).numpy().argsort(1)
        slots = uniform(key, torch.zeros_like(key), (SLOTS,), stream=2).numpy().argsort(1)
        kind = uniform(key, torch.zeros_like(key), (KINDS,), stream=3).numpy().argsort(1)[:, :SLOTS]
        task = np.array(self.tasks)[(len(self.tasks) * drawn).astype(np.int64)]
        at, free = np.stack(np.divmod(order, SIDE), 2)[:, :SLOTS], np.stack(np.divmod(order, SIDE), 2)[:, SLOTS:]
        container = at[np.arange(n), slots[:, 1]]
        cells = np.stack([np.where((task == 0)[:, None], container, free[:, 0]), free[:, 1]], 1)
        moves = np.concatenate([slots[:, :2, None], cells], 2)  # of which object to which cell, (n, MOVES, 3)
        words, prompt = write_prompts(task, kind, at, moves)
        return {"kind": kind, "at": at, "task": task, "moves": moves, "done": np.zeros(n, np.int64), "words": words,
                "prompt": prompt}

    def observe(self):
        s = self.state
        return {OBJECTS: object_features(s["kind"], s["at"]), WORDS: s["words"], PROMPT: s["prompt"],
                PLAN: np.concatenate([s["task"][:, None], s["done"][:, None], s["moves"].reshape(self.rows, -1)],
                                     1).astype(np.float32)}

    def state_from_columns(self, steps):
        plan = np.rint(steps[PLAN]).astype(np.int64)
        kind, column, row = (part.argmax(-1) for part in np.split(steps[OBJECTS], (KINDS, KINDS + SIDE), -1))
        return {"kind": kind, "at": np.stack([column, row], 2), "task": plan[:, 0], "done": plan[:, 1],
                "moves": plan[:, 2:].reshape(-1, MOVES, 3), "words": steps[WORDS], "prompt": steps[PROMPT]}

    def advance(self, action):
        s, rows, chosen = self.state, np.arange(self.rows), np.rint(action).astype(np.int64)
        here = (s["at"] == chosen[:, None, :2]).all(2)
        taken = here.argmax(1)
        before, at = s["at"], s["at"].copy()
        at[rows, taken] = np.where(here.any(1)[:, None], chosen[:, 2:], at[rows, taken])
        s["at"], step, moves = at, s["done"], s["moves"]
        s["done"] = s["done"] + 1
        (first, second), put, arrange = moves[:, :, 0].T, s["task"] == 0, s["task"] == 1
        done_moves = np.stack([(at[rows, slot] == moves[:, i, 1:]).all(1) for i, slot in enumerate((first, second))], 1)
        moved = (at != before).any(2)
        others = moved.copy()
        others[rows, first] = others[rows, second] = False
        in_order = np.where(step == 0, done_moves[:, 0] & ~moved[rows, second], done_moves.all(1))
        any_order = done_moves.sum(1) == step + 1
        right = np.where(put, done_moves[:, 0], np.where(arrange, any_order, in_order)) & ~others.any(1)
        success = right & (put | (step + 1 == MOVES))
        return success.astype(np.float32), success, ~right

    def expert(self):
        return PromptedTabletopExpert()

    def map(self):
        return {"x": (-0.5, SIDE - 0.5), "y": (-0.5, SIDE - 0.5), "path": (PLAN, 0, 1), "shapes": []}

    def frame(self, row):
        canvas, colors = Canvas(1, 252, (-0.5, -0.5), SIDE), np.linspace(40, 220, KINDS).astype(int)
        for kind, at in zip(self.state["kind"][row], self.state["at"][row], strict=True):
            canvas.circle(at[None].astype(np.float32), 0.3, (int(colors[kind]), 120, 255 - int(colors[kind])))
        return canvas.image[0]


def object_features(kind: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
    """Features of objects, (..., 9) float32.

    Args:
        kind: Kinds, (...).
        at: Cells, (..., 2). None leaves the places at 0.
    """
    cells = np.zeros((*kind.shape, 2 * SIDE)) if at is None else np.concatenate(
        [np.eye(SIDE)[at[..., 0]], np.eye(SIDE)[at[..., 1]]], -1)
    return np.concatenate([np.eye(KINDS)[kind], cells], -1).astype(np.float32)


def write_prompts(task: np.ndarray, kind: np.ndarray, at: np.ndarray, moves: np.ndarray
                  ) -> tuple[np.ndarray, np.ndarray]:
    """The prompts of episodes.

    Args:
        task: Number of the task, (n,).
        kind: Kinds of the objects, (n, SLOTS).
        at: Their first cells, (n, SLOTS, 2).
        moves: Which object the expert moves to which cell, (n, MOVES, 3).

    Returns:
        Words, (n, POSITIONS), and objects, (n, POSITIONS, FEATURES).
    """
    n, rows = len(task), np.arange(len(task))
    words, objects = np.zeros((n, POSITIONS), np.int64), np.zeros((n, POSITIONS, FEATURES), np.float32)
    frames = [at]
    for i in range(MOVES):
        frames.append(frames[-1].copy())
        frames[-1][rows, moves[:, i, 0]] = moves[:, i, 1:]
    descriptions = [object_features(kind, frame) for frame in frames]
    put, arrange, follow = (task == number for number in range(len(TASKS)))
    words[put, 0], words[put, 2], words[arrange, 0], words[follow, 0] = PUT, INTO, ARRANGE, FOLLOW
    objects[put, 1] = descriptions[0][rows, moves[:, 0, 0]][put]
    objects[put, 3] = descriptions[0][rows, moves[:, 1, 0]][put]
    objects[arrange, 1:1 + SLOTS] = descriptions[-1][arrange]
    objects[follow, 1:] = np.concatenate(descriptions, 1)[follow]
    return words, objects


@dataclass(frozen=True)
class PromptedTabletopExpert(Actor):
    """Makes the moves that the simulator has drawn."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        plan = obs[PLAN].round().long()
        rows, done = torch.arange(len(plan)), plan[:, 1].clamp(max=MOVES - 1)
        slot, target = plan[rows, 2 + 3 * done], torch.stack([plan[rows, 3 + 3 * done], plan[rows, 4 + 3 * done]], 1)
        column, row = (part.argmax(-1) for part in obs[OBJECTS][rows, slot].split((KINDS, SIDE, SIDE), -1)[1:])
        return torch.cat([torch.stack([column, row], 1), target], 1), state


@dataclass(frozen=True)
class TabletopDemonstrations(DemonstrationSource):
    """Episodes of the expert in the tasks "put" and "arrange"."""

    episodes: int

    def load(self, seed):
        env = PromptedTabletop(ROWS)
        return rollout(env.expert(), env, self.episodes, recording_seed(seed))


def prompts_followed(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                     ) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        0 or 1 per start. "shown": the tasks of the demonstrations. "put" and "arrange": each of them. "motion": the
        task "follow". "pretrained motion": the same, for the policy of the first stage, if there is one.
    """
    trained = train_once(experiment, method, data, seed)
    measures = {name: episode_successes(trained, tasks, episodes, starts) for name, tasks in TESTS.items()}
    for stage in method.stages:
        pretrained = train_once(experiment, stage.method, data, seed)
        measures["pretrained motion"] = episode_successes(pretrained, TESTS["motion"], episodes, starts)
    return measures


def episode_successes(trained: FitResult, tasks: tuple[str, ...], episodes: int, starts: int) -> list[float]:
    """Success of each episode, 0 or 1."""
    actor = build_actor(trained.method, trained.modules, ROWS, features=trained.features)
    rollouts = rollout(actor, PromptedTabletop(ROWS, tasks=tasks), episodes, seed=starts)
    return [float(e.metadata["success"]) for e in rollouts]


TESTS = {"shown": ("put", "arrange"), "put": ("put",), "arrange": ("arrange",), "motion": ("follow",)}


@dataclass(frozen=True)
class ExchangedMotions(Operation):
    """Gives each episode the prompt that shows the motion of the next one."""

    def apply(self, data):
        motions = data.map(MOTION)
        pairs = zip(motions, [*motions[1:], motions[0]], strict=True)
        return Dataset([with_prompt_of(one, other) for one, other in pairs], data.metadata)


def with_prompt_of(episode: Episode, other: Episode) -> Episode:
    """An episode with the prompt of another one."""
    prompt = {name: repeat_first(other.steps[name], len(episode) + 1) for name in (WORDS, PROMPT)}
    return replace(episode.replace(prompt), schema=episode.schema)


def repeat_first(column: np.ndarray, rows: int) -> np.ndarray:
    """The first value of a column in each of some rows."""
    return np.broadcast_to(column[0], (rows, *column.shape[1:]))


def prompted_policy(head: Categorical, residual: bool = True) -> PolicyConfig:
    """The policy of `methods.representation.midas`, with small networks."""
    return PolicyConfig(head, InContextTransformer(WIDTH, DEPTH, causal=False, feed_forward_ratio=2),
                        MultimodalPromptEncoder(OBJECTS, WORDS, PROMPT, residual, WIDTH),
                        inputs=(OBJECTS, WORDS, PROMPT), codec=Normalizer(unscaled=(OBJECTS, PROMPT)))


def cloning_method(policy: PolicyConfig, steps: int, *transforms: Operation | MotionPrompt) -> Method:
    """Behavior cloning of the actions."""
    learner = BehaviorCloning(steps, BATCH, OptimizerConfig(lr=LR, warmup_steps=100))
    return Method(policy, RecedingHorizon(), learner, transforms)


def pretrain(policy: PolicyConfig, *transforms: Operation | MotionPrompt, also: tuple[Operation, ...] = ()) -> Method:
    """Two stages: inverse dynamics, then the prompts of the demonstrations.

    Args:
        policy: The policy of both stages.
        transforms: How the prompts of the first stage are made.
        also: Transforms of the second stage.
    """
    stage = Stage("inverse_dynamics", cloning_method(policy, PRETRAINING_STEPS, *transforms))
    return replace(cloning_method(policy, STEPS, *also), stages=(stage,),
                   initialize_from=(InitializeFrom(FromStage("inverse_dynamics")),))


def with_exchanged_motions(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(Arm("full", (pretrain(JOINT, ExchangedMotions()),)))


JOINT, INDEPENDENT = prompted_policy(Categorical(autoregressive=True, width=WIDTH)), prompted_policy(Categorical())
FULL = Arm("full", (pretrain(JOINT, MOTION),))
TABLETOP = Experiment(
    TabletopDemonstrations(EPISODES),
    "prompted_tabletop",
    (
        FULL,
        Arm("no pretraining", (cloning_method(JOINT, PRETRAINING_STEPS + STEPS),)),
        Arm("independent", (pretrain(INDEPENDENT, MOTION),)),
    ),
    prompts_followed,
    tuned_by="shown",
    seeds=tuple(range(1720, 1725)),
    episodes=200,
    measures=(("shown", RATE), ("put", RATE), ("arrange", RATE), ("motion", RATE), ("pretrained motion", RATE)),
    starts_seed=1720,
    sanity=(("full", "shown", 0.6), ("full", "pretrained motion", 0.6), ("no pretraining", "shown", 0.6),
            ("independent", "put", 0.6)),
)
PRETRAINING = GreaterThan("motion", "full", "no pretraining", 0.1)
DEPENDENCE = GreaterThan("arrange", "full", "independent", 0.1)
ADDED = replace(TABLETOP, sanity=(), arms=(FULL, Arm("motions added", (
    pretrain(JOINT, MOTION, also=(AddMotionPrompts(MOTION),)),))))

CLAIM = Claim(
    name="multimodal-prompts",
    rows=("172",),
    parts=(
        ClaimPart("tabletop", TABLETOP, AllOf((PRETRAINING, DEPENDENCE))),
        ClaimPart("one way", replace(TABLETOP, sanity=()), EquivalentTo("put", "full", "independent", 0.1),
                  is_decisive=False),
        ClaimPart("motions added", ADDED, GreaterThan("motion", "motions added", "full", 0.1), is_decisive=False),
    ),
    negative_control=NegativeControl(with_exchanged_motions, "tabletop", removes=(PRETRAINING,)),
)
