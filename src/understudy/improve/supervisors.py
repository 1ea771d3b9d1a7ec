"""Trained policies that act as supervisors of another policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..checkpoint import FromStage
from ..core import Schema, Unsupported, UserError
from ..execute.actor import Actor
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.fit_method import ROWS
from ..learn.method import ACTING, Method, build_actor, find_references, online_changes
from ..policy import Policy


@dataclass(frozen=True)
class PolicySupervisor:
    """A trained policy that supervises as its own method deploys it: with its executor, and in its own observations.

    Args:
        method: What acting needs of its method: see `acting_method`.
    """

    policy: FromStage | Policy
    method: Method

    def actor(self, features: Schema) -> Actor:
        """Returns the actor of the supervisor for an environment with these columns. The policy must be resolved."""
        assert isinstance(self.policy, Policy)
        return build_actor(self.method, {"policy": self.policy}, ROWS, features=features)


def acting_method(method: Method) -> Method:
    """Returns only the parts of a method that acting needs.

    Raises:
        Unsupported: It acts with networks of its stages, which are not in its checkpoint.
    """
    changes = tuple(online_changes(method))
    references = find_references((*(getattr(method, name) for name in ACTING), changes))
    if reference := next(references, None):
        raise Unsupported(f"the policy acts together with a network of its stage {reference.stage!r}",
                          where="--supervisor", hint="choose a run whose policy acts alone, or scripted")
    return replace(method, learner=BehaviorCloning(), transforms=changes, stages=(), initialize_from=(),
                   collection=None)


def check_units(supervisor: Schema, supervisor_rate: float | None, env: Schema, rate: float | None) -> None:
    """Refuses a supervisor that acts in other units, with other components, or at another rate than an environment.

    What is not known on both sides is not compared.

    Args:
        supervisor: The columns of its policy.
        supervisor_rate: Steps per second of the data that it was trained on.
        env: The columns of the environment, in which it has to act.
        rate: Steps per second of the environment.
    """
    for name in supervisor.keys() & env.keys():
        own, other = supervisor[name], env[name]
        for word, a, b in (("unit", own.unit, other.unit), ("components", own.names, other.names)):
            if a and b and a != b:
                raise UserError(f"the {word} of {name} are {_text(a)} for the supervisor and {_text(b)} in the "
                                "environment", where="--supervisor",
                                hint="train the supervisor on data in the units and columns of this environment")
    if supervisor_rate and rate and abs(supervisor_rate - rate) > 1e-3 * rate:
        raise UserError(f"the supervisor was trained at {supervisor_rate:g} steps a second, and the environment makes "
                        f"{rate:g}", where="--supervisor",
                        hint="train it on data at this rate, or choose another supervisor")


def _text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
