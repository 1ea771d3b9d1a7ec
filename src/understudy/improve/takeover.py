"""Takeover in simulation: a person watches a policy, holds it, takes over, and gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core import UserError, keys
from ..data.episode import Episode
from ..envs.base import Env, EnvWrapper, Renderable, StepResult
from ..envs.devices import JointKeyboard, Keyboard, KeyInput, RecordingKeys
from ..evaluate.teleoperate import Screen
from ..execute.actor import Actor, pass_record
from .gates import INTERVENTION
from .journal import EpisodeDiscarded, WatchedEnv
from .unlearned_steps import HANDOVER, UNDONE

KEYS = ("p: hold, continue | t: take over, give back | y, n: end as a success, a failure | x: discard | "
        "u: do not learn the last takeover | q: quit")
ASKING = "the policy asks for help: t takes over, p lets it continue"
_COMMANDS = {"p": "hold", "t": "takeover", "u": "undo"}


# -- keys -----------------------------------------------------------------------------------------------------------


class TakeoverKeyboard(Keyboard):
    """The keys of `Keyboard`, and p (hold), t (takeover) and u (undo)."""

    def _press(self, key: str, now: float) -> None:
        if key.lower() in _COMMANDS:
            self._commands.append(_COMMANDS[key.lower()])
        else:
            super()._press(key, now)


class TakeoverJointKeyboard(TakeoverKeyboard, JointKeyboard):
    """The keys of `JointKeyboard`, which move joints, and the keys for a takeover."""


class TakeoverKeys(TakeoverKeyboard, RecordingKeys):
    """The keys of a takeover while another device moves the robot. Space also holds and tab also takes over, as in
    LeRobot."""

    def _press(self, key: str, now: float) -> None:
        super()._press({" ": "p", "\t": "t"}.get(key, key), now)


# -- who acts -------------------------------------------------------------------------------------------------------


@dataclass
class Takeover:
    """The state of a takeover: who acts in the running episode, and what the person has said about it.

    The policy acts, or the person does. Either can be held: then no step follows until the person continues, takes
    over, gives back, or ends the episode.

    Attributes:
        is_person: Whether the person acts, or did before the hold.
        is_held: Whether nobody acts.
        is_asked: Whether it is held because the policy asks for help.
        asks: Whether the policy asks for help, so that nobody has to watch it. Holds in every episode.
        success: What the person says of the episode, which ends it. None while the person has not said anything.
        is_interrupted: Whether the person cannot be reached any more, which ends the episode, too.
        n_returns: How often the policy has begun to act again. It then needs a new plan.
        seconds: Time in which the person acted, and watched.
    """

    clock: Callable[[], float] = time.perf_counter
    asks: bool = False

    def __post_init__(self):
        self.begin()

    def begin(self) -> None:
        """Begins an episode. The policy acts."""
        self.is_person = self.is_held = self.is_asked = False
        self.success: bool | None = None
        self.is_interrupted = False
        self.n_takeovers, self.n_returns, self.undone = 0, 0, set[int]()
        self.seconds = {"acted": 0.0, "watched": 0.0}
        self._numbers, self._handovers = list[int](), list[bool]()  # by step: number of the takeover, or 0
        self._counted = self.clock()

    @property
    def n_steps(self) -> int:
        return len(self._numbers)

    def ask(self) -> None:
        """Holds the episode because the policy asks for help."""
        self.count_time()
        self.is_held = self.is_asked = True

    def obey(self, commands: Sequence[str]) -> None:
        """Obeys the commands that the person gave by keys. Unknown commands are ignored.

        Raises:
            KeyboardInterrupt: quit.
            EpisodeDiscarded: discard.
        """
        self.count_time()
        for command in commands:
            if command == "quit":
                raise KeyboardInterrupt
            if command == "discard":
                raise EpisodeDiscarded
            if command == "hold":
                self.is_held, self.is_asked = not self.is_held, False
            elif command == "takeover":
                self.is_person, self.is_held, self.is_asked = not self.is_person, False, False
                self.n_takeovers += self.is_person
                self.n_returns += not self.is_person
            elif command == "undo" and self.n_takeovers:
                self.undone.add(self.n_takeovers)
            elif command in ("success", "failure"):
                self.success = command == "success"
            elif command == "interrupt":
                self.is_interrupted = True

    @property
    def is_over(self) -> bool:
        """Whether the person has ended the episode."""
        return self.success is not None or self.is_interrupted

    def count_step(self, is_handover: bool = False) -> None:
        """Records who acts in one step.

        Args:
            is_handover: Whether the robot and the device of the person are still on their way to the same pose, or the
                robot holds because the policy asks for help.
        """
        self._numbers.append(self.n_takeovers if self.is_person else 0)
        self._handovers.append(is_handover)

    def count_time(self) -> None:
        """Adds the time since the last call to the time of whoever acts or watches."""
        now = self.clock()
        if self.is_person or self.is_held or not self.asks:
            self.seconds["acted" if self.is_person else "watched"] += now - self._counted
        self._counted = now

    def status(self) -> str:
        """Returns one line of status: the step, who acts, and whether the last takeover is learned."""
        no_one = ASKING if self.is_asked else "hold"
        who = no_one if self.is_held else "you act" if self.is_person else "the policy acts"
        undone = f", takeover {self.n_takeovers} is not learned" if self.n_takeovers in self.undone else ""
        return f"step {self.n_steps}: {who}{undone}"

    def ended(self, result: StepResult) -> StepResult:
        """Returns the result of the last step, marked as an end if the person has ended the episode."""
        if self.is_interrupted:
            return replace(result, truncated=torch.ones_like(result.truncated))
        if self.success is None:
            return result
        success = torch.full_like(result.terminated, self.success)
        return replace(result, terminated=torch.ones_like(success), info={**result.info, "success": success})

    def annotate_step(self) -> dict[str, np.ndarray]:
        """Returns the columns that `annotate` adds, of the last step, as far as they are known now."""
        return {HANDOVER: np.array(self._handovers[-1]), UNDONE: np.array(self._numbers[-1] in self.undone)}

    def annotate(self, episode: Episode) -> Episode:
        """Adds unlearned steps, success and times to an episode that has ended."""
        numbers = np.array(self._numbers, np.int64)
        columns = {HANDOVER: np.array(self._handovers, bool), UNDONE: np.isin(numbers, list(self.undone))}
        metadata = {**episode.metadata, **{f"seconds_{k}": round(v, 3) for k, v in self.seconds.items()}}
        if self.success is not None:
            metadata["success"] = self.success
        if self.is_interrupted:
            metadata["interrupted"] = True
        return replace(episode.replace(columns), metadata=metadata)


@dataclass(frozen=True)
class ReplanningActor(Actor):
    """A policy that makes a new plan from the present observation whenever it begins to act again."""

    actor: Actor
    takeover: Takeover

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "key": key,
                "returns": torch.full_like(key, self.takeover.n_returns)}

    def act(self, obs, state):
        key, inner = state["key"], state["inner"]
        if int(state["returns"][0]) != self.takeover.n_returns:  # draw other random numbers than at the start
            inner = self.actor.start(obs, keys(int(key[0]), [self.takeover.n_returns]).expand(len(key)))
        action, inner = self.actor.act(obs, inner)
        return action, pass_record({"key": key, "returns": torch.full_like(key, self.takeover.n_returns)}, inner)


@dataclass(frozen=True)
class TakeoverSupervisor(Actor):
    """Supervisor by keyboard: a person controls one environment while `takeover` says so.

    Args:
        read: Returns the present action of the device, (A,).
    """

    takeover: Takeover
    read: Callable[[], np.ndarray | None]

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        rows = len(next(iter(obs.values())))
        control = torch.full((rows,), self.takeover.is_person)
        action = self.read()
        assert action is not None  # a keyboard of classes waits for a key, and controls no toy here
        return torch.as_tensor(action)[None].expand(rows, -1), {"record": {INTERVENTION: control}}


# -- toys -----------------------------------------------------------------------------------------------------------


class SupervisedEnv(EnvWrapper, WatchedEnv):
    """Wraps a toy environment with one row so that a person watches it in real time.

    Enter starts an episode. Keys count from the next step on. The person ends an episode with y or n.

    Args:
        takeover: Who acts, with the same clock as the screen.
    """

    def __init__(self, env: Env, keyboard: KeyInput, takeover: Takeover, screen: Screen):
        if not isinstance(env, Renderable):
            raise UserError("the environment cannot be rendered, so that nobody can watch it",
                            where=env.metadata["env"], hint="use another supervisor, such as scripted")
        super().__init__(env)
        self.metadata, self.toy = env.metadata, env
        self.keyboard, self.takeover, self.screen = keyboard, takeover, screen
        self.period, self._due = 1 / float(env.metadata.get("fps") or 10), 0.0

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        while True:
            self._draw("enter: begin the episode | q: quit")
            commands = self.keyboard.commands()
            if "quit" in commands:
                raise KeyboardInterrupt
            if "enter" in commands:
                break
            self.screen.sleep(self.period)
        self.takeover.begin()
        self._due = self.screen.clock()
        return obs

    def step(self, action):
        self.takeover.count_step()
        result = self.env.step(action)
        self._wait()
        while self.takeover.is_held and not self.takeover.is_over:
            self._wait()
        return self.takeover.ended(result)

    def watched(self, actor, asks=False):
        self.takeover.asks = asks
        return ReplanningActor(actor, self.takeover)

    def ask(self):
        self.takeover.ask()

    def annotate(self, episode):
        return self.takeover.annotate(episode)

    def annotate_step(self):
        return self.takeover.annotate_step()

    def _wait(self) -> None:
        """Shows the environment for one period, and then does what the person has said."""
        self._draw(f"{self.takeover.status()}\n{KEYS}")
        now = self.screen.clock()
        self._due = max(self._due + self.period, now)
        self.screen.sleep(self._due - now)
        self.takeover.obey(self.keyboard.commands())

    def _draw(self, text: str) -> None:
        self.screen.draw(self.toy, text)
