"""Execution schemes: functions that give a method another executor. `execute.schemes` lists them.

Each takes the number of steps that are executed from each chunk and the number of steps of a chunk that lie in the
past, and returns the executor and what plans in addition.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from ..core import ConfigError, Unsupported
from ..execute.adaptive import AdaptiveChunking, AdaptiveHorizon, ChunkBlending
from ..execute.base import ActionConditionedExecutor, Executor
from ..execute.chunking import ChunkedExecutor, RealTimeChunking, RecedingHorizon
from ..execute.filters import FilteredExecutor, JerkLimit, LowPassFilter
from ..execute.past_verification import PastVerification
from ..execute.planner_config import BidirectionalDecodingConfig, PlannerConfig, SelfGuidanceConfig
from ..execute.schemes import EXECUTION_SCHEMES
from ..execute.streaming import StreamingExecutor
from ..execute.temporal_ensemble import AdaptiveEnsemble, TemporalEnsemble
from .method import Method

BUILDERS: dict[str, Callable[[int, int], tuple[Executor, *tuple[PlannerConfig, ...]]]] = {
    "receding-horizon": lambda n, skip: (RecedingHorizon(n, skip),),
    "temporal-ensemble": lambda n, skip: (TemporalEnsemble(skip=skip),),
    "adaptive-ensemble": lambda n, skip: (AdaptiveEnsemble(skip=skip),),
    "chunk-blending": lambda n, skip: (ChunkBlending(n, skip),),
    "bidirectional-decoding": lambda n, skip: (RecedingHorizon(n, skip), BidirectionalDecodingConfig()),
    "adaptive-horizon": lambda n, skip: (AdaptiveHorizon(n, skip),),
    "adaptive-chunking": lambda n, skip: (AdaptiveChunking(skip=skip),),
    "self-guided-chunking": lambda n, skip: (AdaptiveChunking(skip=skip), SelfGuidanceConfig()),
    "real-time-chunking": lambda n, skip: (RealTimeChunking(n, skip=skip),),
    "past-verification": lambda n, skip: (PastVerification(n, skip),),
    "low-pass": lambda n, skip: (FilteredExecutor(RecedingHorizon(n, skip), LowPassFilter()),),
    "jerk-limit": lambda n, skip: (FilteredExecutor(RecedingHorizon(n, skip), JerkLimit()),),
}


def with_execution_scheme(method: Method, name: str) -> Method:
    """Returns a method with the executor of a scheme, and its way to plan after those that the method has.

    The number of steps that are executed from each chunk stays that of the method.

    Args:
        method: The method.
        name: Name of the scheme.

    Raises:
        ConfigError: There is no such scheme.
        Unsupported: The policy is trained for its own executor.
    """
    known, own = name.replace("_", "-"), method.executor
    if known not in EXECUTION_SCHEMES:
        near = difflib.get_close_matches(known, EXECUTION_SCHEMES, 1)
        raise ConfigError(f"there is no execution scheme {name!r}; there are {', '.join(EXECUTION_SCHEMES)}",
                          where="--executor", hint=f"did you mean {near[0]!r}?" if near else "name one of these")
    inner = own.executor if isinstance(own, FilteredExecutor) else own
    if isinstance(inner, (ActionConditionedExecutor, StreamingExecutor)):
        raise Unsupported(f"the policy is trained for {type(inner).__name__}, whose plans are not chunks",
                          where="--executor", hint="leave it out, or take a run of another method, such as flow-policy")
    window = method.policy.window
    skip = max(0, -window.action_offset)
    n_action_steps = inner.n_action_steps if isinstance(inner, ChunkedExecutor) else (window.horizon - skip + 1) // 2
    executor, *inference = BUILDERS[known](n_action_steps, skip)
    return replace(method, executor=executor, inference=(*method.inference, *inference))
