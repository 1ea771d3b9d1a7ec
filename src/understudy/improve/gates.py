"""Gates: at which steps a supervisor acts in place of the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..core import AtLeast, AtMost, State, UserError, part, uniform
from ..evaluate.failure_detection import DOUBT, DoubtScore
from ..execute.actor import Actor

INTERVENTION = "intervention"  # column: True where the supervisor acted
POLICY_ACTION = "policy_action"  # column: the action of the policy, executed or not
SUPERVISOR_ACTION = "supervisor_action"  # column: the action of the supervisor, executed or not
GATE_STREAM = 10  # stream of random numbers


class Gate(ABC):
    """A rule that decides at each step whether the policy or the supervisor acts. Subclasses are frozen dataclasses.

    Attributes:
        needs_attention: Whether the supervisor has to follow the steps at which the policy acts. Otherwise it may say
            later what it would have done there.

    References:
        Ross et al. (2011), A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning,
        arXiv:1011.0686. Kelly et al. (2019), HG-DAgger: Interactive Imitation Learning with Human Experts,
        arXiv:1810.02890.
    """

    needs_attention: ClassVar[bool] = True

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
            obs: The observation of each row, (B, ...), and the columns that the policy and the supervisor record at
                this step.
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

    needs_attention = False

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


@part
class DisagreementGate(Gate):
    """The supervisor takes over where its action and that of the policy differ, and gives back where they agree.

    SafeDAgger is one threshold, and LazyDAgger a lower one for giving back. Both predict the difference, which this
    gate knows. With `delay`, `hold` and `slip` it stands for a person, who notices late and errs.

    Args:
        threshold: Difference above which the supervisor takes over: the root mean square over the components.
        release: Difference up to which it gives back.
        scale: A difference of 1 in each component, such as the standard deviation of demonstrated actions. Empty for 1.
        delay: Steps between noticing a difference and taking over.
        hold: Number of steps that it acts at least.
        slip: Probability of taking a difference for none at a step, and the reverse.

    References:
        Zhang and Cho (2017), Query-Efficient Imitation Learning for End-to-End Autonomous Driving, arXiv:1605.06450.
        Hoque et al. (2021), LazyDAgger: Reducing Context Switching in Interactive Imitation Learning, arXiv:2104.00053.
    """

    threshold: Annotated[float, AtLeast(0)] = 0.5
    release: Annotated[float, AtLeast(0)] = 0.5
    scale: tuple[float, ...] = ()
    delay: Annotated[int, AtLeast(0)] = 0
    hold: Annotated[int, AtLeast(1)] = 1
    slip: Annotated[float, AtLeast(0), AtMost(1)] = 0.0

    def start(self, obs, key, number):
        zero = torch.zeros_like(key)
        return {"key": key, "count": zero, "acted": zero, "wait": zero - 1}  # wait: -1 if nothing was noticed

    def decide(self, obs, action, supervisor_action, state):
        scale = torch.tensor(self.scale or (1.0,))
        difference = ((action - supervisor_action.to(action.dtype)) / scale).square().mean(1).sqrt()
        in_control = state["acted"] > 0
        is_apart = difference > torch.where(in_control, self.release, self.threshold)
        is_apart ^= uniform(state["key"], state["count"], (1,), stream=GATE_STREAM)[:, 0] < self.slip
        wait = torch.where(~in_control & is_apart & (state["wait"] < 0), self.delay, state["wait"])
        acts = torch.where(in_control, is_apart | (state["acted"] < self.hold), wait == 0)
        return acts, {**state, "count": state["count"] + 1, "acted": torch.where(acts, state["acted"] + 1, 0),
                      "wait": torch.where(acts, -1, torch.where(wait > 0, wait - 1, wait))}


@part
class DoubtGate(Gate):
    """The policy asks for help where its doubt reaches a threshold: from then on the supervisor acts in the episode.

    Args:
        score: What is measured at each step.
        threshold: Doubt at which it asks, such as that of a `FailureDetector`, which states a rate of missed failures.
            The rate is that of the calibrated policy, so that it holds before the policy is trained further.
    """

    needs_attention = False

    score: DoubtScore
    threshold: float

    def start(self, obs, key, number):
        return {"asked": torch.zeros(key.shape, dtype=torch.bool)}

    def decide(self, obs, action, supervisor_action, state):
        asked = state["asked"] | (obs[DOUBT] >= self.threshold)
        return asked, {"asked": asked}


@dataclass(frozen=True)
class GatedActor(Actor):
    """An actor with a supervisor that advises at every step and acts where a gate decides so.

    The episode gets three columns: `intervention`, whether the supervisor acted, `policy_action` and
    `supervisor_action`, what the two did or would have done.

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
        advised, own = supervisor_state.pop("record", {}), actor_state.pop("record", {})
        acts = torch.zeros(len(action), dtype=torch.bool)
        if self.gate is not None:
            acts, gate = self.gate.decide({**obs, **own, **advised}, action, advice, gate)
        record = {**own, **advised, INTERVENTION: acts, POLICY_ACTION: action,
                  SUPERVISOR_ACTION: advice}
        chosen = torch.where(acts.unsqueeze(1), advice.to(action.dtype), action)
        return chosen, {"actor": actor_state, "supervisor": supervisor_state, "gate": gate, "record": record}
