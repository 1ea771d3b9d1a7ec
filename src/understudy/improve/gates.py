"""Gates: at which steps a supervisor acts in place of the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..core import AtLeast, AtMost, State, UserError, part, uniform
from ..execute.actor import Actor

INTERVENTION = "intervention"  # column: True where the supervisor acted
SUPERVISOR_ACTION = "supervisor_action"  # column: the action of the supervisor, executed or not
GATE_STREAM = 10  # stream of random numbers


class Gate(ABC):
    """A rule that decides at each step whether the policy or the supervisor acts. Subclasses are frozen dataclasses.

    References:
        Ross et al. (2011), A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning,
        arXiv:1011.0686. Kelly et al. (2019), HG-DAgger: Interactive Imitation Learning with Human Experts,
        arXiv:1810.02890.
    """

    @abstractmethod
    def start(self, obs: Mapping[str, Tensor], key: Tensor, number: int) -> State:
        """Returns the state before the first step.

        Args:
            obs: The first observation of each row, (B, ...).
            key: Source of all randomness of each row, (B,) int64.
            number: Number of the collection round.
        """

    @abstractmethod
    def decide(self, obs: Mapping[str, Tensor], action: Tensor, supervisor_action: Tensor,
               state: State) -> tuple[Tensor, State]:
        """Decides one step.

        Args:
            obs: The observation of each row, (B, ...), and the columns that the supervisor records at this step.
            action: Action of the policy, (B, A).
            supervisor_action: Action of the supervisor, (B, A).
            state: The state that `start` or the last `decide` returned.

        Returns:
            Whether the supervisor acts, (B,) bool, and the next state.
        """


@part
class RandomGate(Gate):
    """The supervisor acts at random steps: the mixture policy of DAgger.

    Args:
        probability: Probability that the supervisor acts at a step of round 0.
        decay: The probability is multiplied by this after each round.
    """

    probability: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    decay: Annotated[float, AtLeast(0), AtMost(1)] = 1.0

    def start(self, obs, key, number):
        probability = self.probability * self.decay**number
        return {"key": key, "count": torch.zeros_like(key), "probability": torch.full(key.shape, probability)}

    def decide(self, obs, action, supervisor_action, state):
        drawn = uniform(state["key"], state["count"], (1,), stream=GATE_STREAM)[:, 0]
        return drawn < state["probability"], {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class HumanGate(Gate):
    """A person decides: takes over, acts for as long as necessary, and gives back (HG-DAgger).

    The person is an actor whose state holds, after each `act`, ``state["record"]["intervention"]``, (B,) bool: whether
    the person is in control of each row. What the person does at other steps is not executed.

    References:
        Kelly et al. (2019), HG-DAgger: Interactive Imitation Learning with Human Experts, arXiv:1810.02890.

    Example:
        >>> collector = RolloutCollector(5, supervisor="person", gate=HumanGate())
        >>> policy = train(replace(method, collection=CollectionRounds(10, collector)), data, "runs/hg", env=env,
        ...                person=actor)
    """

    def start(self, obs, key, number):
        return {}

    def decide(self, obs, action, supervisor_action, state):
        if INTERVENTION not in obs:
            raise UserError("the supervisor does not say at which steps it is in control", where="HumanGate",
                            hint=f"return it from act: state['record'] = {{{INTERVENTION!r}: (rows,) bool}}")
        control = torch.as_tensor(obs[INTERVENTION])
        if control.dtype != torch.bool or control.shape != action.shape[:1]:
            raise UserError(f"whether the person is in control must be {len(action)} booleans, one for each row, and "
                            f"is {str(control.dtype).removeprefix('torch.')} of shape {tuple(control.shape)}",
                            where=f"HumanGate, state['record'][{INTERVENTION!r}]", hint="such as torch.tensor([True])")
        return control, state


@dataclass(frozen=True)
class GatedActor(Actor):
    """An actor with a supervisor that advises at every step and acts where a gate decides so.

    The episode gets two columns: `intervention`, whether the supervisor acted, and `supervisor_action`, its action.

    Args:
        supervisor: An expert, a person or another policy.
        gate: Decides who acts. None if the supervisor only advises.
        number: Number of the collection round.
    """

    actor: Actor
    supervisor: Actor
    gate: Gate | None = None
    number: int = 0

    def start(self, obs, key):
        gate = {} if self.gate is None else self.gate.start(obs, key, self.number)
        return {"actor": self.actor.start(obs, key), "supervisor": self.supervisor.start(obs, key), "gate": gate}

    def act(self, obs, state):
        action, actor_state = self.actor.act(obs, state["actor"])
        advice, supervisor_state = self.supervisor.act(obs, state["supervisor"])
        actor_state, supervisor_state, gate = dict(actor_state), dict(supervisor_state), state["gate"]
        advised = supervisor_state.pop("record", {})
        acts = torch.zeros(len(action), dtype=torch.bool)
        if self.gate is not None:
            acts, gate = self.gate.decide({**obs, **advised}, action, advice, gate)
        record = {**actor_state.pop("record", {}), **advised, INTERVENTION: acts, SUPERVISOR_ACTION: advice}
        chosen = torch.where(acts.unsqueeze(1), advice.to(action.dtype), action)
        return chosen, {"actor": actor_state, "supervisor": supervisor_state, "gate": gate, "record": record}
