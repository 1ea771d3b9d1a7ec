"""Applies execution schemes, which give a method another executor. `execute.schemes` lists them.

Each takes the number of steps that are executed from each chunk and the number of steps of a chunk that lie in the
past, and returns the executor and what plans in addition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace

from ..config import find_class
from ..core import ConfigError, Unsupported, UserError, unknown_name
from ..execute.adaptive import AdaptiveChunking, AdaptiveHorizon, ChunkBlending
from ..execute.base import ActionConditionedExecutor, Executor
from ..execute.bidirectional import BidirectionalDecoding
from ..execute.chunking import ChunkedExecutor, RealTimeChunking, RecedingHorizon
from ..execute.filters import FilteredExecutor, JerkLimit, LowPassFilter
from ..execute.past_verification import PastVerification
from ..execute.planners import PlannerWrapper
from ..execute.schemes import EXECUTION_SCHEMES
from ..execute.self_guidance import SelfGuided
from ..execute.streaming import StreamingExecutor
from ..execute.temporal_ensemble import AdaptiveEnsemble, TemporalEnsemble
from .method import Method

BUILDERS: dict[str, Callable[[int, int], tuple[Executor, *tuple[PlannerWrapper, ...]]]] = {
    "receding-horizon": lambda n, skip: (RecedingHorizon(n, skip),),
    "temporal-ensemble": lambda n, skip: (TemporalEnsemble(skip=skip),),
    "adaptive-ensemble": lambda n, skip: (AdaptiveEnsemble(skip=skip),),
    "chunk-blending": lambda n, skip: (ChunkBlending(n, skip),),
    "bidirectional-decoding": lambda n, skip: (RecedingHorizon(n, skip), BidirectionalDecoding()),
    "adaptive-horizon": lambda n, skip: (AdaptiveHorizon(n, skip),),
    "adaptive-chunking": lambda n, skip: (AdaptiveChunking(skip=skip),),
    "self-guided-chunking": lambda n, skip: (AdaptiveChunking(skip=skip), SelfGuided()),
    "real-time-chunking": lambda n, skip: (RealTimeChunking(n, skip=skip),),
    "past-verification": lambda n, skip: (PastVerification(n, skip),),
    "low-pass": lambda n, skip: (FilteredExecutor(RecedingHorizon(n, skip), LowPassFilter()),),
    "jerk-limit": lambda n, skip: (FilteredExecutor(RecedingHorizon(n, skip), JerkLimit()),),
}


def with_execution_scheme(method: Method, name: str, trust: tuple[str, ...] = ()) -> Method:
    """Returns a method with the executor of a scheme, and its way to plan after those that the method has.

    The scheme has a name, or is the "module:Class" of an executor, whose other fields have their defaults. The method
    still decides how many steps are executed from each chunk.
    """
    scheme, current = name.replace("_", "-"), method.executor
    if ":" not in name and scheme not in EXECUTION_SCHEMES:
        raise unknown_name("execution scheme", name, EXECUTION_SCHEMES, "--executor")
    inner = current.executor if isinstance(current, FilteredExecutor) else current
    if isinstance(inner, (ActionConditionedExecutor, StreamingExecutor)):
        raise Unsupported(f"the policy is trained for {type(inner).__name__}, whose plans are not chunks",
                          where="--executor", hint="leave it out, or take a run of another method, such as flow-policy")
    window = method.policy.window
    skip = max(0, -window.action_offset)
    n_action_steps = inner.n_action_steps if isinstance(inner, ChunkedExecutor) else (window.horizon - skip + 1) // 2
    if ":" in name:
        return replace(method, executor=_build_executor(name, n_action_steps, skip, trust))
    executor, *inference = BUILDERS[scheme](n_action_steps, skip)
    return replace(method, executor=executor, inference=(*method.inference, *inference))


def _build_executor(name: str, n_action_steps: int, skip: int, trust: tuple[str, ...]) -> Executor:
    """Builds the executor "module:Class", with the numbers of steps of a method where it has such fields."""
    option = f"--executor {name}"
    try:
        executor_class = find_class(name, Executor, ("understudy", *trust), option)
    except UserError as error:
        raise type(error)(error.problem, where=option, hint=error.hint or "name a class of that module that derives "
                          "from understudy.execute.base.Executor") from None
    if not is_dataclass(executor_class):
        raise ConfigError(f"{executor_class.__name__} is not a frozen dataclass", where=option,
                          hint="write @dataclass(frozen=True) above it")
    numbers = {"n_action_steps": n_action_steps, "skip": skip}
    arguments = {f.name: numbers[f.name] for f in fields(executor_class) if f.name in numbers}
    if open_fields := [f.name for f in fields(executor_class) if f.init and f.name not in arguments and
                       f.default is MISSING and f.default_factory is MISSING]:
        raise ConfigError(f"{executor_class.__name__} needs {' and '.join(open_fields)}", where=option,
                          hint="give the field a default")
    return executor_class(**arguments)
