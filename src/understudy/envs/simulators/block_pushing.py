"""Multimodal block pushing (Florence et al. 2021; Shafiullah et al. 2022): an arm pushes two blocks onto two
squares, in PyBullet."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sys
import weakref
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium
import numpy as np
import pybullet  # noqa: F401  (else its lack is first noticed inside the copy of diffusion_policy)
from gymnasium import spaces

from ...core import UserError
from .. import gymnasium_adapter
from .external import ExpertVector

VARIABLE = "UNDERSTUDY_DIFFUSION_POLICY"  # names the folder of the copy
FOLDER = "diffusion_policy/env/block_pushing"  # in the copy
PACKAGE = FOLDER.replace("/", ".")
STEPS_PER_SECOND = 10
STATE = tuple(f"{body}.{part}" for body, parts in (
    ("block", "x y angle"), ("block2", "x y angle"), ("effector", "x y"), ("effector_target", "x y"),
    ("target", "x y angle"), ("target2", "x y angle")) for part in parts.split())


def make(name: str, rows: int = 1, limit: int = 350, source: str | None = None, **options) -> ExpertVector:
    """Makes multimodal block pushing.

    Which block is pushed first, and onto which square, is free. The environment and its scripted expert come from a
    copy of https://github.com/real-stanford/diffusion_policy. The code of the copy runs in this process.

    observation.state (16): positions and angles of the blocks, position of the effector and where it is sent, positions
    and angles of the squares. action (2): how far the effector is sent in this step, m. info["one"]: a block has
    reached a square. The reward is 0.49 when a block first reaches a square, and 0.51 when the two blocks are on
    different squares.

    Args:
        source: Folder of the copy. None takes the environment variable UNDERSTUDY_DIFFUSION_POLICY.
        **options: Arguments of the environment's class, such as ``goal_dist_tolerance``.

    References:
        Florence et al. (2021), Implicit Behavioral Cloning, arXiv:2109.00137.
        Shafiullah et al. (2022), Behavior Transformers: Cloning k Modes with One Stone, arXiv:2206.11251.
        Chi et al. (2023), Diffusion Policy, arXiv:2303.04137.
    """
    if name != "block_pushing/multimodal":
        raise UserError(f"block pushing has no environment {name!r}", where=name,
                        hint="did you mean block_pushing/multimodal?")
    simulator, oracle = _load(Path(source or os.environ.get(VARIABLE, "")))
    vec = gymnasium_adapter.vectorize(lambda: BlockPushing(simulator, oracle, limit, options), rows)
    env = ExpertVector(vec, {
        "env": name, "version": f"pybullet {metadata.version('pybullet')}", "fps": STEPS_PER_SECOND, "limit": limit,
        "success": "both blocks on different squares at any step (info \"one\": one of them on a square)"}, ("one",))
    env.features = {**env.features,
                    "observation.state": replace(env.features["observation.state"], names=STATE)}
    return env


class BlockPushing(gymnasium.Env):
    """The block-pushing simulator with Gymnasium's signatures, and its expert."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": STEPS_PER_SECOND}
    render_mode = "rgb_array"

    def __init__(self, simulator: type, oracle: type, limit: int, options: dict):
        with _without_output():
            self.simulator = simulator(control_frequency=float(STEPS_PER_SECOND), **options)
        # Also before the process ends, when the client's own clean-up finds no modules any more.
        self._disconnect = weakref.finalize(self, _disconnect, self.simulator._pybullet_client)
        # What the expert asks of its environment. It does not use the two specs.
        self.oracle = oracle(SimpleNamespace(
            time_step_spec=lambda: None, action_spec=lambda: None,
            get_control_frequency=self.simulator.get_control_frequency, _rng=np.random.RandomState()))
        self.limit = limit
        size = sum(space.shape[0] for space in self.simulator.observation_space.spaces.values())
        self.observation_space = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (size,), np.float32)})
        self.action_space = spaces.Box(-0.1, 0.1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.simulator._rng = np.random.RandomState(seed)
            self.oracle._env._rng = np.random.RandomState([seed, 1])
        self.last_obs, self.steps, self.one, self.advice = self.simulator.reset(), 0, False, None
        return self._observation(), {"success": False, "one": False}

    def step(self, action):
        if self.advice is None and self.steps == 0:
            self.expert_action()  # the expert settles its order of the blocks at the first step
        self.last_obs, reward, done, _ = self.simulator.step(np.asarray(action, np.float64))
        self.steps, self.advice = self.steps + 1, None
        self.one = self.one or reward > 0
        return self._observation(), reward, done, self.steps >= self.limit, {"success": done, "one": self.one}

    def expert_action(self) -> np.ndarray:
        """Action of the scripted expert, (2,). It has a state: it helps only an episode in which it is asked at every
        step."""
        if self.advice is None:
            first = self.steps == 0
            step = SimpleNamespace(observation=self.last_obs, is_first=lambda: first)
            self.advice = np.asarray(self.oracle._action(step, ()).action)
        return self.advice

    def render(self):
        return np.asarray(self.simulator.render())[..., :3].astype(np.uint8)

    def close(self):
        self._disconnect()

    def _observation(self):
        return {"state": np.concatenate([np.ravel(value) for value in self.last_obs.values()]).astype(np.float32)}


def _disconnect(client) -> None:
    if client._client >= 0:
        client.disconnect()


@contextmanager
def _without_output() -> Iterator[None]:
    """Keeps output of PyBullet from standard output, where the JSON of a command may go. A context manager."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def _load(copy: Path) -> tuple[type, type]:
    """Loads the classes of the block-pushing simulator and of its expert."""
    if not (copy / FOLDER).is_dir():
        problem = f"there is no {FOLDER} in it" if copy.parts else f"the environment variable {VARIABLE} is not set"
        raise UserError(f"block pushing needs a copy of the repository diffusion_policy: {problem}",
                        where=str(copy) if copy.parts else "block_pushing/multimodal",
                        hint=f"git clone https://github.com/real-stanford/diffusion_policy, and {VARIABLE}=FOLDER")
    with _stand_ins(), _unchanged_logging():
        sys.path.insert(0, str(copy))
        try:
            simulator = importlib.import_module(f"{PACKAGE}.block_pushing_multimodal")
            oracle = importlib.import_module(f"{PACKAGE}.oracles.multimodal_push_oracle")
        finally:
            sys.path.remove(str(copy))
    quiet = logging.getLogger(PACKAGE)  # replaces the root logger, to which it reports each block that moves
    quiet.setLevel(logging.WARNING)
    vars(simulator)["logger"] = quiet
    return simulator.BlockPushMultimodal, oracle.MultimodalOrientedPushOracle


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Provides stand-ins for names that the simulator imports from the old Gym and from TensorFlow's agents."""
    class Policy:
        def __init__(self, *specs):
            pass

    names_by_module = {
        "gym": {"Env": gymnasium.Env, "spaces": spaces}, "gym.envs": {},
        "gym.envs.registration": {"registry": SimpleNamespace(env_specs={}), "register": lambda **options: None},
        "tf_agents": {}, "tf_agents.policies": {}, "tf_agents.policies.py_policy": {"PyPolicy": Policy},
        "tf_agents.trajectories": {}, "tf_agents.trajectories.time_step": {},
        "tf_agents.trajectories.policy_step": {"PolicyStep": namedtuple("PolicyStep", "action")},
        "tf_agents.typing": {}, "tf_agents.typing.types": {}}
    modules = {name: ModuleType(name) for name in names_by_module}
    for name, names in names_by_module.items():
        vars(modules[name]).update(names)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, modules[name])
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Keeps level and handlers of the root logger unchanged. A context manager."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
