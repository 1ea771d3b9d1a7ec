"""Takeover on a robot: a person watches a policy, holds it, takes over, and gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from ..core import UserError
from ..envs.base import StepResult
from ..execute.actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from ..execute.followed import FollowedActor
from ..execute.planners import FixedBatch
from ..robots.acting import plan_in_background
from ..robots.base import Robot, RobotError, Teleoperator
from ..robots.env import RobotEnv
from ..robots.handover import Handover
from ..robots.recording import CommandKeys
from ..robots.safety import SafeRobot
from .journal import WatchedEnv
from .takeover import ReplanningActor, Takeover

Phase = Literal["rests", "waits", "lost", "held", "late", "person", "policy"]
STATUS_KEYS = "p hold | t take over, give back | y n end | x discard | u unlearn | q quit"


def single_row(actor: Actor) -> Actor:
    """Wraps an actor so that its networks get the observation of one robot, without copies of it."""
    if isinstance(actor, (ObservationWrapper, TransformedActor, FollowedActor)):
        return replace(actor, actor=single_row(actor.actor))
    if isinstance(actor, PolicyActor) and isinstance(actor.planner, FixedBatch):
        return replace(actor, planner=actor.planner.planner)
    return actor


@dataclass
class RobotPerson:
    """The person at a robot: the teleoperator, the keys, and how control is handed over.

    Args:
        listening: Context in which keys are read one by one. It is entered for each episode.
    """

    handover: Handover
    keys: CommandKeys
    show: Callable[[str], None] = lambda text: None
    listening: Callable[[], AbstractContextManager] = field(default=nullcontext)

    @property
    def teleop(self) -> Teleoperator:
        return self.handover.teleop


class _DeviceLost(Exception):
    """Raised when a robot or a teleoperator does not answer."""

    def __init__(self, device: Robot | Teleoperator, error: UserError):
        self.device, self.error = device, error


class RobotTakeoverEnv(RobotEnv, WatchedEnv):
    """A robot on which a person watches a policy. The person says how an episode ends.

    Between two episodes the robot holds, or the person moves it, which is not recorded. Enter starts an episode. If a
    device is lost, the robot holds as far as it can be reached, and the episode continues after it is connected again.

    Args:
        robot: The robot. It must be connected while the environment is used.
        max_episode_steps: Number of steps after which the person is asked how the episode has ended.
        shows_success: Tells whether an observation, (1, ...), shows success, which ends the episode. None if only the
            person says so.
    """

    robot: SafeRobot

    def __init__(self, robot: SafeRobot, person: RobotPerson, fps: float, max_episode_steps: int,
                 clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep,
                 shows_success: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] | None = None):
        super().__init__(robot, fps, max_episode_steps, clock=clock, sleep=sleep)
        self.metadata = {**self.metadata, "success": "the person says so"}
        self.person, self.takeover, self.shows_success = person, Takeover(clock), shows_success
        self._command = self._goal = np.zeros(len(robot.limits.low))
        self._obs: dict[str, torch.Tensor] = {}
        self._is_handover, self._acting = False, "nobody"  # "policy", "person" or "nobody", while the robot holds
        self._lost_device: _DeviceLost | None = None
        self._keys, self._planning = ExitStack(), ExitStack()
        self._sent: list[np.ndarray] = []  # of the episode, by step
        self._is_begun: bool | None = None  # whether an episode has begun, or waits to begin

    @property
    def phase(self) -> Phase:
        """What happens now: it waits for a person to begin an episode, a device is lost, it is held, or who acts.

        In "late" the time is over, and the person says how the episode has ended.
        """
        if self._lost_device is not None:
            return "lost"
        if not self._is_begun:
            return "rests" if self._is_begun is None else "waits"
        if self._n_steps >= (self.max_episode_steps or np.inf):
            return "late"
        return "held" if self.takeover.is_held else "person" if self.takeover.is_person else "policy"

    def read(self) -> np.ndarray:
        """Returns the action of the person, (A,) float32. While the policy acts, this is the measured pose."""
        return self._command.astype(np.float32)

    def watched(self, actor, asks=False):
        """Wraps the policy's actor so that it plans chunks in another thread, while the robot keeps moving."""
        self._planning.close()
        self.takeover.asks = asks
        actor = plan_in_background(single_row(actor), self._planning, [], patience=0.5 * self.pace.period)
        return ReplanningActor(actor, self.takeover)

    def ask(self):
        self.takeover.ask()

    def annotate(self, episode):
        """Replaces the action of each step by the one sent to the robot, and adds what the person said."""
        return self.takeover.annotate(episode.replace({"action": np.stack(self._sent[:len(episode)])}))

    def annotate_step(self):
        return {"action": self._sent[-1], **self.takeover.annotate_step()}

    def close(self):
        self._planning.close()
        super().close()

    def reset(self, which, key):
        with self._at_rest_if_it_fails():
            self.takeover.begin()
            self._keys.close()
            self._keys.enter_context(self.person.listening())
            self.person.keys.commands()  # what was pressed before
            self._is_begun = False
            self._prepare()
            self._is_begun = True
            self.takeover.begin()
            self._n_steps, self._acting, self._sent = 0, "policy", []
            self.person.handover.watch()
            self.pace.restart()
            return self._next_obs()

    def step(self, action):
        with self._at_rest_if_it_fails():
            asks = self.takeover.is_asked  # the policy asks instead of acting
            self.takeover.count_step(asks or self._is_handover and self.takeover.is_person)
            if asks:
                self._stop()
                self._goal = self._command
            try:
                if not asks and not self.takeover.is_over:  # the person can end it before its first step
                    self._goal = self._ask(self.robot, lambda: self.robot.send(action[0].double().cpu().numpy()))
            except _DeviceLost as failure:
                self._lost_device = failure
            self._sent.append(np.asarray(self._goal, np.float32))
            self.pace.wait()
            self._n_steps += 1
            obs = self._next_obs()
            if self.takeover.is_over:
                self._stop()
                self._keys.close()
            reward, false = torch.tensor([float(bool(self.takeover.success))]), torch.tensor([False])
            result = StepResult(obs, reward, false, false, {"success": false})
            return self.takeover.ended(result)

    # -- between two steps --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Waits until the person presses enter. Meanwhile the robot holds, or the person moves it."""
        while True:
            commands = self.person.keys.commands()
            if "enter" in commands and self._lost_device is None:
                self._stop()
                return
            self.takeover.obey([c for c in commands if c in ("quit", "takeover")])
            self.takeover.n_returns = 0
            try:
                self._connect_again(commands)
                if self.takeover.is_person:
                    self._move()
                else:
                    self._stop()
            except _DeviceLost as failure:
                self._lost_device = failure
                self._stop()
            moves = "you move the robot | t: let it hold" if self.takeover.is_person else "t: move the robot"
            self.person.show(self._problem() or f"arrange the scene | {moves} | enter: begin the episode | q: quit")
            self.pace.wait()

    def _move(self) -> None:
        """Lets the person move the robot between episodes, without recording it."""
        self._take_over()
        self._ask(self.robot, self.robot.observe)
        command = self._ask(self.person.teleop, lambda: self.person.handover.read(self._goal))
        self._goal = self._ask(self.robot, lambda: self.robot.send(command))

    def _next_obs(self) -> dict[str, torch.Tensor]:
        """Obeys the person's keys, and returns the next observation once somebody acts or the episode has ended."""
        takeover = self.takeover
        while True:
            commands = self.person.keys.commands()
            takeover.obey(commands)
            is_late = self._n_steps >= (self.max_episode_steps or np.inf)
            try:
                self._connect_again(commands)
                if not takeover.is_over and (takeover.is_held or is_late):
                    self._stop()
                    question = f"step {takeover.n_steps}: the time is over. y, n: was it a success? | x discard"
                    self.person.show(question if is_late else self._apart() or f"{takeover.status()} | {STATUS_KEYS}")
                    self.pace.wait()
                    continue
                if not takeover.is_over:
                    self._begin_to_act()
                self._obs = self._ask(self.robot, self._observe)
                if not takeover.is_over and self._n_steps and self.shows_success is not None and bool(
                        self.shows_success(self._obs)):
                    takeover.success = True
                if not takeover.is_over:
                    self._read_person()
                    if takeover.is_held:
                        continue
                self.person.show(f"{takeover.status()} | {STATUS_KEYS}")
                return self._obs
            except _DeviceLost as failure:
                self._lost_device = failure
                if takeover.is_over:  # the last observation is the end
                    return self._obs
                takeover.is_held = True
                self._stop()
                self.person.show(self._problem())
                self.pace.wait()

    def _begin_to_act(self) -> None:
        """Prepares the first step of the person, or of the policy. A person who moves the leader takes over."""
        if not self.takeover.is_person:
            if self._acting == "nobody":  # its old plan no longer fits
                self.takeover.n_returns += 1
                self.pace.restart()
            if self._acting != "policy":
                self.person.handover.watch()
            self._acting = "policy"
            if self._ask(self.person.teleop, self.person.handover.is_wanted):
                self.takeover.obey(["takeover"])
        if self.takeover.is_person:
            self._take_over()

    def _take_over(self) -> None:
        if self._acting != "person":
            self._acting = "person"
            self._ask(self.person.teleop, lambda: self.person.handover.begin(
                self.robot, self.pace.period, self.person.show))
            self._goal = self.robot.position(self._ask(self.robot, self.robot.observe))
            self.pace.restart()

    def _read_person(self) -> None:
        """Reads the action of the person for the next step."""
        pose = self.robot.position({name: value[0].numpy() for name, value in self._obs.items()})
        if not self._n_steps:  # nothing was sent yet
            self._goal = pose
        if self.takeover.is_person:
            pose = self._ask(self.person.teleop, lambda: self.person.handover.read(self._goal))
            self._is_handover = not self.person.handover.is_complete
            self.takeover.is_held = bool(self.person.handover.problem)
        self._command = np.asarray(pose, np.float64)

    def _apart(self) -> str:
        """Returns the text to show while the robot holds because a handover does not complete. Empty otherwise."""
        if not self.takeover.is_person or not (problem := self.person.handover.problem):
            return ""
        return f"no handover: {problem} | move it there, p tries again | t give back | y n end | x discard | q quit"

    def _stop(self) -> None:
        """Makes the robot hold, if it does not hold already."""
        if self._acting != "nobody":
            self._acting = "nobody"
            with suppress(RobotError):
                self.robot.stop()

    # -- lost devices -------------------------------------------------------------------------------------------------

    def _ask(self, device: Robot | Teleoperator, function: Callable):
        """Calls a function of a robot or teleoperator, and returns its result.

        Raises:
            _DeviceLost: The device, or the robot if the function also needs it, does not answer.
        """
        try:
            return function()
        except UserError as error:
            if isinstance(error, RobotError) and device is not self.robot and self._robot_failed():
                device = self.robot
            if device is self.robot and not isinstance(error, RobotError):
                raise  # such as an action that is not finite
            raise _DeviceLost(device, error) from error

    def _robot_failed(self) -> bool:
        try:
            self.robot.observe()
        except RobotError:
            return True
        return False

    def _connect_again(self, commands: list[str]) -> None:
        """Connects the lost device again if the person asks for it. Raises _DeviceLost if it is still lost."""
        if self._lost_device is None:
            return
        if {"enter", "hold", "takeover"} & {*commands}:
            device, self._lost_device = self._lost_device.device, None
            with suppress(UserError):
                device.disconnect()
            self._ask(device, device.connect)
            self._acting, self.takeover.is_held = "nobody", True
            return
        raise self._lost_device

    def _problem(self) -> str:
        """Returns the text to show while a device is lost. Empty if there is none."""
        if self._lost_device is None:
            return ""
        what = "the robot" if self._lost_device.device is self.robot else "your device"
        problem = self._lost_device.error.problem
        return f"{what} is lost ({problem}) | enter: connect again | y n end | x discard | q quit"

    @contextmanager
    def _at_rest_if_it_fails(self) -> Iterator[None]:
        """Makes the robot hold and restores the terminal if the body raises an error. A context manager."""
        try:
            yield
        except BaseException:
            self._acting = "policy"  # so that `_stop` also stops a robot that seems to hold
            self._stop()
            self._keys.close()
            raise
