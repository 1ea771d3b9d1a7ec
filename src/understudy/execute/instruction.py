"""Instructions that may change at every step: a speaker watches the episode, and says in words what to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core import ConfigError, State, UserCodeError
from ..data.text_columns import TaskText
from .actor import Actor, pass_record

INSTRUCTION = "instruction"  # recorded column: what was said at each step, as bytes


class Speaker(ABC):
    """Says at each step what to do. Its state is a value with one row per environment. Subclasses are frozen
    dataclasses. The contract is `testing.check_speaker`."""

    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Returns the state before the first step.

        Args:
            obs: The first observation of each row, (B, ...).
            key: Source of all randomness of each row, (B,) int64.
        """
        return {"key": key}

    @abstractmethod
    def speak(self, obs: Mapping[str, Tensor], state: State) -> tuple[Sequence[str], State]:
        """Returns the instruction of each row for the current step, and the next state.

        Args:
            obs: The current observation, (B, ...): all that the environment shows, also what the policy does not read.
            state: What `start` or the last `speak` returned. It is not changed in place.
        """


@dataclass(frozen=True)
class ScheduledSpeaker(Speaker):
    """Speaker that says sentences at fixed steps, whatever happens.

    Args:
        sentences: (step, sentence) each, in order. A sentence holds until the next one. Before the first one the
            instruction is empty.
    """

    sentences: tuple[tuple[int, str], ...]

    def __post_init__(self):
        steps = [step for step, _ in self.sentences]
        if not steps or steps != sorted(set(steps)) or steps[0] < 0:
            raise ConfigError(f"the sentences are said at the steps {steps}", where="ScheduledSpeaker.sentences",
                              hint='say each after the one before: ((0, "take the cup"), (30, "put it down"))')

    def start(self, obs, key):
        return {"step": torch.zeros_like(key)}

    def speak(self, obs, state):
        sentences = [next((text for first, text in reversed(self.sentences) if step >= first), "")
                     for step in state["step"].tolist()]
        return sentences, {"step": state["step"] + 1}


@dataclass(frozen=True)
class LiveSpeaker(Speaker):
    """Speaker that gives all environments the text that a function returns, such as the newest typed line.

    Args:
        listen: Called without arguments at every step. It must return at once.
    """

    listen: Callable[[], str]

    def speak(self, obs, state):
        return [self.listen()] * len(state["key"]), state


@dataclass(frozen=True)
class InstructedActor(Actor):
    """Wraps an actor so that it reads what a speaker says, which may change at every step.

    For an instruction that stays the same, use `ObservationWrapper`. What was said is recorded as the column
    `instruction`.

    Args:
        text: How the words become the column that the actor reads. It is the `TaskText` of the policy's method.

    References:
        Lynch et al. (2022), Interactive Language: Talking to Robots in Real Time, arXiv:2210.06407.

    Example:
        >>> speaker = ScheduledSpeaker(((0, "push red left"), (40, "push blue to red")))
        >>> episodes = rollout(InstructedActor(actor, speaker), env, episodes=10)
    """

    actor: Actor
    speaker: Speaker
    text: TaskText = field(default_factory=TaskText)

    def start(self, obs, key):
        speaker = self.speaker.start(obs, key)
        words, _ = self._words(obs, speaker, len(key))  # the state is a value, so this call has no effect on it
        return {"inner": self.actor.start({**obs, self.text.into: words}, key), "speaker": speaker}

    def act(self, obs, state):
        words, speaker = self._words(obs, state["speaker"], len(next(iter(obs.values()))))
        action, inner = self.actor.act({**obs, self.text.into: words}, state["inner"])
        return action, pass_record({"speaker": speaker}, inner, {INSTRUCTION: words})

    def _words(self, obs, state: State, rows: int) -> tuple[Tensor, State]:
        """Returns what the speaker says, (B, max_bytes) uint8, and its next state."""
        sentences, state = self.speaker.speak(obs, state)
        name = type(self.speaker).__name__
        is_list = not isinstance(sentences, str) and len(sentences) == rows
        if not is_list or (non_texts := [text for text in sentences if not isinstance(text, str)]):
            reply = non_texts[0] if is_list else sentences
            raise UserCodeError(f"it said {reply!r} to {rows} rows", where=f"{name}.speak",
                                hint="return a list with one text for each row")
        return torch.from_numpy(np.stack([self.text.encode(text) for text in sentences])), state
