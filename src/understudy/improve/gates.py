"""Gates: at which steps a supervisor acts in place of the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..checkpoint import FromStage, Scorer
from ..core import AtLeast, AtMost, State, UserError, part, uniform
from ..evaluate.failure_detection import DoubtScore
from ..execute.actor import Actor, with_new_plans
from ..execute.doubt import DOUBT
from ..learn.data_collection import Training

INTERVENTION = "intervention"  # column: True where the supervisor acted
POLICY_ACTION = "policy_action"  # column: the action of the policy, executed or not
SUPERVISOR_ACTION = "supervisor_action"  # column: the action of the supervisor, executed or not
BEST_ACTION = "best_action"  # column of supervisors who know better than they act: the action that would be right
ADVISED = "advised"  # column of gates that do not always ask: True where the supervisor was asked
GATE_STREAM = 10  # stream of random numbers


class BuiltGate(ABC):
    """The built form of a `Gate`, which decides at each step whether the policy or the supervisor acts.

    Attributes:
        needs_attention: Whether the supervisor has to follow the steps at which the policy acts. Otherwise it may say
            later what it would have done there.
        asks_always: Whether the supervisor is asked at every step.
    """

    needs_attention: ClassVar[bool] = True
    asks_always: ClassVar[bool] = True

    @abstractmethod
    def start(self, obs: Mapping[str, Tensor], key: Tensor, number: int) -> State:
        """Returns the state of the rule before the first step.

        Args:
            obs: The first observation of each row, (B, ...).
            key: Source of all randomness of each row, (B,) int64.
            number: Number of the collection round.
        """

    def wants_advice(self, obs: Mapping[str, Tensor], action: Tensor, state: State) -> tuple[Tensor, State]:
        """Decides whether the supervisor is asked for its action at this step, (B,) bool. By default it always is.

        Args:
            obs: The observation of each row, (B, ...), and the columns that the policy and the supervisor record at
                this step.
            action: Action of the policy, (B, A).
            state: The state that `start` or the last `decide` returned.

        Returns:
            Whether the supervisor is asked, and the state for `decide`. Its entry "record", if there is one, has
            columns that are written into the episode.
        """
        return torch.ones(len(action), dtype=torch.bool), state

    @abstractmethod
    def decide(self, obs: Mapping[str, Tensor], action: Tensor, supervisor_action: Tensor,
               state: State) -> tuple[Tensor, State]:
        """Decides who acts in one step.

        Args:
            obs: The observation of each row, (B, ...), and the columns that the policy and the supervisor record at
                this step.
            action: Action of the policy, (B, A).
            supervisor_action: Action of the supervisor, (B, A). The policy's action where the supervisor is not asked.
            state: The state that `wants_advice` returned.

        Returns:
            Whether the supervisor acts, (B,) bool, and the next state. It acts only where it is asked.
        """


class Gate(ABC):
    """Config of a rule that decides at each step who acts. Subclasses are frozen dataclasses.

    References:
        Ross et al. (2011), A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning,
        arXiv:1011.0686. Kelly et al. (2019), HG-DAgger: Interactive Imitation Learning with Human Experts,
        arXiv:1810.02890.
    """

    needs_attention: ClassVar[bool] = True

    @abstractmethod
    def build(self, training: Training, number: int) -> BuiltGate:
        """Builds the rule for one collection round. It depends on the arguments alone.

        Args:
            training: What has been trained so far, and the episodes that are stored.
            number: Number of the collection round.
        """


class FixedGate(Gate, BuiltGate):
    """Base class of gates that need neither networks nor data, so that the config is the rule itself."""

    def build(self, training, number):
        return self


@part
class RandomGate(FixedGate):
    """Gate that lets the supervisor act at random steps: the mixture policy of DAgger.

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
class HumanGate(FixedGate):
    """Gate by a person, who takes over, acts for as long as necessary, and gives back (HG-DAgger).

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
        return _control(obs, action), state


def _control(obs: Mapping[str, Tensor], action: Tensor) -> Tensor:
    """Returns in which environments the person is in control, (B,) bool."""
    if INTERVENTION not in obs:
        raise UserError("the supervisor does not say at which steps it is in control", where="HumanGate",
                        hint=f"return it from act: state['record'] = {{{INTERVENTION!r}: (rows,) bool}}")
    control = torch.as_tensor(obs[INTERVENTION])
    if control.dtype != torch.bool or control.shape != action.shape[:1]:
        raise UserError(f"whether the person is in control must be {len(action)} booleans, one for each row, and "
                        f"is {str(control.dtype).removeprefix('torch.')} of shape {tuple(control.shape)}",
                        where=f"HumanGate, state['record'][{INTERVENTION!r}]", hint="such as torch.tensor([True])")
    return control


@part
class SupervisorThresholdGate(FixedGate):
    """Base class of gates at which the supervisor acts while a number that it can see is above a threshold.

    With `delay`, `hold` and `slip` it stands for a person, who notices late and errs.

    Args:
        threshold: Number above which the supervisor takes over.
        release: Number up to which it gives control back.
        delay: Steps between noticing and taking over.
        hold: Smallest number of steps that it acts.
        slip: Probability of an error at each step: noticing nothing where there is something, or something where there
            is nothing.
    """

    threshold: Annotated[float, AtLeast(0)] = 0.5
    release: Annotated[float, AtLeast(0)] = 0.5
    delay: Annotated[int, AtLeast(0)] = 0
    hold: Annotated[int, AtLeast(1)] = 1
    slip: Annotated[float, AtLeast(0), AtMost(1)] = 0.0

    @abstractmethod
    def difference(self, obs: Mapping[str, Tensor], action: Tensor, supervisor_action: Tensor) -> Tensor:
        """Returns the number that is compared with the threshold, for each environment, (B,)."""

    def start(self, obs, key, number):
        return _start_takeovers(key)

    def decide(self, obs, action, supervisor_action, state):
        difference = self.difference(obs, action, supervisor_action)
        is_apart = difference > torch.where(state["acted"] > 0, self.release, self.threshold)
        return _decide_takeovers(self, is_apart, state, goes_on=True)


def _start_takeovers(key: Tensor) -> dict[str, Tensor]:
    zero = torch.zeros_like(key)
    return {"key": key, "count": zero, "acted": zero, "wait": zero - 1}  # wait: -1 if nothing was noticed


def _decide_takeovers(gate: SupervisorThresholdGate | ValueGate, has_reason: Tensor, state: dict[str, Tensor],
                      goes_on: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Decides who acts if the supervisor reacts late, holds on for some steps, and makes mistakes.

    Args:
        has_reason: Where there is a reason to act, (B,).
        goes_on: After `hold` steps it acts as long as there is a reason, and otherwise gives back.
    """
    in_control = state["acted"] > 0
    has_reason = has_reason ^ (uniform(state["key"], state["count"], (1,), stream=GATE_STREAM)[:, 0] < gate.slip)
    wait = torch.where(~in_control & has_reason & (state["wait"] < 0), gate.delay, state["wait"])
    acts = torch.where(in_control, has_reason & goes_on | (state["acted"] < gate.hold), wait == 0)
    return acts, {**state, "count": state["count"] + 1, "acted": torch.where(acts, state["acted"] + 1, 0),
                  "wait": torch.where(acts, -1, torch.where(wait > 0, wait - 1, wait))}


@part
class DisagreementGate(SupervisorThresholdGate):
    """Gate that lets the supervisor take over where its action and the policy's differ, until they agree.

    SafeDAgger is one threshold, and LazyDAgger a lower one for giving back. Both predict the difference, which this
    gate knows. A difference is the root mean square over the components.

    Args:
        scale: A difference of 1 in each component, such as the standard deviation of demonstrated actions. Empty for 1.

    References:
        Zhang and Cho (2017), Query-Efficient Imitation Learning for End-to-End Autonomous Driving, arXiv:1605.06450.
        Hoque et al. (2021), LazyDAgger: Reducing Context Switching in Interactive Imitation Learning, arXiv:2104.00053.
    """

    scale: tuple[float, ...] = ()

    def difference(self, obs, action, supervisor_action):
        scale = torch.tensor(self.scale or (1.0,))
        return ((action - supervisor_action.to(action.dtype)) / scale).square().mean(1).sqrt()


@part
class ValueGate(FixedGate):
    """Gate that lets the supervisor take over where the policy's action has a lower value than the right one (RLIF).

    A critic gives the values. The right action is the supervisor's action, or the column `best_action` if the
    supervisor records it: a person may see what is wrong and still act badly. The margin is a difference of values,
    because a ratio would mean the opposite where values are negative. Between two takeovers the policy acts at least
    once.

    Args:
        critic: Scores an action for an observation, both of one step.
        margin: Loss of value above which the supervisor takes over.
        hold: Number of steps that the supervisor then acts.
        slip: Probability of taking over without a reason, and of not taking over where there is one.
        delay: Steps between the action and taking over. 0 if it is prevented, 1 if it is carried out and then noticed.

    References:
        Luo et al. (2024), RLIF: Interactive Imitation Learning as Reinforcement Learning, arXiv:2311.12996.
    """

    critic: FromStage | Scorer
    margin: Annotated[float, AtLeast(0)]
    hold: Annotated[int, AtLeast(1)] = 4
    slip: Annotated[float, AtLeast(0), AtMost(1)] = 0.05
    delay: Annotated[int, AtLeast(0)] = 0

    def start(self, obs, key, number):
        return _start_takeovers(key)

    @torch.no_grad()
    def decide(self, obs, action, supervisor_action, state):
        assert isinstance(self.critic, Scorer)  # and no longer the reference to a stage
        best = obs.get(BEST_ACTION, supervisor_action).to(action.dtype)
        windows = {name: obs[name].unsqueeze(1) for name in self.critic.inputs}
        scores = self.critic.score_plans(windows, torch.stack([best, action], 1).unsqueeze(2))
        return _decide_takeovers(self, scores[:, 0] - scores[:, 1] > self.margin, state, goes_on=False)


@part
class DoubtGate(FixedGate):
    """Gate by which the policy asks for help where its doubt reaches a threshold, for the rest of the episode.

    Args:
        score: What is measured at each step.
        threshold: Doubt at which the policy asks, such as the threshold of a `FailureDetector`, which states a rate of
            missed failures. The rate was calibrated with one policy, so it holds only until the policy is trained
            further.
    """

    needs_attention, asks_always = False, False

    score: DoubtScore
    threshold: float

    def start(self, obs, key, number):
        return {"asked": torch.zeros(key.shape, dtype=torch.bool)}

    def wants_advice(self, obs, action, state):
        asked = state["asked"] | (obs[DOUBT] >= self.threshold)
        return asked, {"asked": asked}

    def decide(self, obs, action, supervisor_action, state):
        return state["asked"], state


@dataclass(frozen=True)
class PersonGate(BuiltGate):
    """Gate by a person, whom the policy asks for help where another gate would let a supervisor act.

    It asks once, until that gate has stopped asking, or the person has acted in between.

    Args:
        gate: Its column `advised` is true where it asks.
        number: Number of the collection round.
        ask: Called where the policy asks.
    """

    needs_attention = False

    gate: BuiltGate
    number: int
    ask: Callable[[], None]

    def start(self, obs, key, number):
        no = torch.zeros(key.shape, dtype=torch.bool)
        return {"gate": self.gate.start(obs, key, number), "key": key, "asks": no, "acted": no}

    def wants_advice(self, obs, action, state):
        control, inner = _control(obs, action), state["gate"]
        if bool((state["acted"] & ~control).any()):  # there is one row
            inner = self.gate.start(obs, state["key"], self.number)
        asks, inner = self.gate.wants_advice(obs, action, inner)
        if bool((asks & ~state["asks"] & ~control).any()):
            self.ask()
        return torch.ones_like(asks), {**state, "gate": inner, "asks": asks & ~control, "acted": control}

    def decide(self, obs, action, supervisor_action, state):
        _, inner = self.gate.decide(obs, action, supervisor_action, state["gate"])
        inner = dict(inner)
        return state["acted"], {**state, "gate": inner, "record": {**inner.pop("record", {}), ADVISED: state["asks"]}}


@dataclass(frozen=True)
class GatedActor(Actor):
    """An actor with a supervisor that advises at every step and acts where a gate decides so.

    The episode gets three columns: `intervention`, whether the supervisor acted, `policy_action` and
    `supervisor_action`, what the two did or would have done. A gate that does not always ask adds `advised`: where it
    is false, `supervisor_action` is the action of the policy.

    Args:
        supervisor: An expert, a person or another policy.
        gate: Decides who acts. None if the supervisor only advises.
        number: Number of the collection round.
        replans: Whether the policy drops its plan after each step of the supervisor. False for actors that do so by
            themselves when they act again.
    """

    actor: Actor
    supervisor: Actor
    gate: BuiltGate | None = None
    number: int = 0
    replans: bool = True

    def start(self, obs, key):
        gate = {} if self.gate is None else self.gate.start(obs, key, self.number)
        return {"actor": self.actor.start(obs, key), "supervisor": self.supervisor.start(obs, key), "gate": gate,
                "key": key, "acted": torch.zeros(key.shape, dtype=torch.bool)}

    def act(self, obs, state):
        actor_state, key = state["actor"], state["key"]
        if self.replans and len(rows := state["acted"].nonzero().flatten()):
            key = key + state["acted"]  # draws other random numbers than the plans before
            fresh = self.actor.start({name: column[rows] for name, column in obs.items()}, key[rows])
            actor_state = with_new_plans(actor_state, fresh, rows)
        action, actor_state = self.actor.act(obs, actor_state)
        advice, supervisor_state = self.supervisor.act(obs, state["supervisor"])
        actor_state, supervisor_state, gate = dict(actor_state), dict(supervisor_state), state["gate"]
        advised, own = supervisor_state.pop("record", {}), actor_state.pop("record", {})
        acts = torch.zeros(len(action), dtype=torch.bool)
        if self.gate is not None:
            asked, gate = self.gate.wants_advice({**obs, **own, **advised}, action, gate)
            if not self.gate.asks_always:
                advised = {**advised, ADVISED: asked}
                advice = torch.where(asked.unsqueeze(1), advice.to(action.dtype), action)
            acts, gate = self.gate.decide({**obs, **own, **advised}, action, advice, gate)
            acts, gate = acts & asked, dict(gate)
            advised = {**advised, **gate.pop("record", {})}
        record = {**own, **advised, INTERVENTION: acts, POLICY_ACTION: action,
                  SUPERVISOR_ACTION: advice}
        chosen = torch.where(acts.unsqueeze(1), advice.to(action.dtype), action)
        return chosen, {"actor": actor_state, "supervisor": supervisor_state, "gate": gate, "key": key, "acted": acts,
                        "record": record}
