"""Contract test of methods."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..checkpoint import FromStage
from ..core import Feature, Schema, UserError, keys
from ..data.episode import Dataset
from ..data.mixture import mix
from ..execute.actor import LAST_REWARD
from ..execute.base import ActionConditionedExecutor
from ..learn.algorithm import Algorithm
from ..learn.fit import fit
from ..learn.fit_method import fit_method
from ..learn.method import Method, build_actor, build_planner, online_changes, resolve_references, training_data
from ..learn.train import train
from ..methods import Need, find_function, find_method, method_files, method_parameters
from ..policy import Policy
from .base import require
from .nets import check_encoder, check_trunk
from .random_data import random_dataset

VECTOR = Feature("float32", (2,))
CLASSES = Feature("int64", (1,), "discrete", num_classes=(4,))
MAX_LINES = 20
LOOPS = (ast.For, ast.While, ast.AsyncFor, ast.comprehension, ast.ClassDef, ast.Lambda)


def check_method(name: str, columns: Schema | None = None, trust: tuple[str, ...] = (), device: str = "cpu") -> None:
    """Checks the contract of a method.

    - Its function, or the function `method` of its class, has at most 20 lines besides its docstring, no loop, and a
      type and a default for each argument. Each field of the class has a default. A bundled method is the only one of
      its file.
    - The method is the same after it was written to JSON and read.
    - It trains for two updates and acts. The executor begins with the action of the window that is due now.
    - An encoder or a trunk that its file defines keeps its contract. Other parts need partners: test them with
      `check_learner`, `check_column_change` and so on.
    - Data that lack what one of its needs names are refused.

    Args:
        name: The name of the method, or "module:function".
        columns: The columns to train on. None: two numbers each as state, environment state and action, and the
            examples of its needs.
        device: Where it trains and acts.
    """
    function = find_function(name, trust)
    require(function is not None, f"there is no method {name!r}")
    assert function is not None
    _check_source(name, function)
    columns = columns or example_columns(name, trust)
    method = find_method(name, columns, trust)
    trust = (*trust, *config.packages_in([config.dump(method)]))
    require(config.load(json.loads(json.dumps(config.dump(method))), trust) == method, "JSON must give the same method")
    _check_training(method, function.__module__, columns, device)
    for need in _needs(function):
        _check_refusal(name, need, columns, trust, device)


def example_columns(name: str, trust: tuple[str, ...] = ()) -> Schema:
    """Returns columns on which a method can train: the example columns of its needs, and states and actions."""
    examples = {column: Feature.from_json(feature) for need in _needs(find_function(name, trust))
                for column, feature in need.example.items()}
    return {"observation.environment_state": Feature("float32", (3,)), "observation.state": VECTOR,
            "action": VECTOR} | examples


def _needs(function: Callable | None) -> list[Need]:
    info = getattr(function, "info", None)
    return [] if info is None else [need for need in info.needs if isinstance(need, Need)]


def _check_source(name: str, function: Any) -> None:
    build = function
    if isinstance(function, type):
        require(issubclass(function, Algorithm), f"{function.__name__} must be an Algorithm")
        build = function.method
        for option in method_parameters(function).values():
            require(option.default is not option.empty, f"{option.name} needs a default")
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(build))).body
    assert isinstance(node, ast.FunctionDef)
    first = node.body[1] if ast.get_docstring(node) is not None else node.body[0]
    lines = node.body[0].lineno - node.lineno + (node.end_lineno or 0) - first.lineno + 1
    require(lines <= MAX_LINES, f"a method has at most {MAX_LINES} lines besides its docstring, and not {lines}")
    loops = [type(n).__name__ for n in ast.walk(node) if isinstance(n, LOOPS)]
    require(not loops, f"a method is data, without {', '.join(loops)}")
    for argument in list(inspect.signature(build).parameters.values())[isinstance(function, type):]:
        require(argument.annotation is not argument.empty, f"{argument.name} needs a type")
        require(argument.default is not argument.empty, f"{argument.name} needs a default")
    if name in method_files():
        tree = ast.parse(method_files()[name].read_text(encoding="utf-8"))
        methods = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and any(
            ast.unparse(d).startswith("method(") for d in n.decorator_list)]
        require(len(methods) == 1 and methods[0].replace("_", "").lower() == name.replace("-", ""),
                f"the file has one method with its name, and not {methods}")


def example_data(columns: Schema) -> Dataset:
    """Returns random episodes of two tasks, half of them in a part "task" and half in a part "prior" of a mixture."""
    data = random_dataset(columns, episodes=4, steps=12)
    data = Dataset([replace(e, metadata={**e.metadata, "proficiency": i, "task": f"move {i % 2}", "trace": "up"})
                    for i, e in enumerate(data)])
    return mix(task=(data[:2], 0.5), prior=(data[2:], 0.5))[0]


def with_trained_stages(method: Method, data: Dataset, device: str = "cpu") -> Method:
    """Returns the method with stages that were trained for two updates."""
    results: dict[str, Any] = {}
    for stage in method.stages:
        short = replace(stage.method, learner=replace(stage.method.learner, steps=2))
        results[stage.name] = fit_method(short, data, 0, stages=results, device=device)
    return resolve_references(method, {FromStage(name, module): trained for name, result in results.items()
                                       for module, trained in result.modules.items()})


def _check_training(method: Method, module: str, columns: Schema, device: str) -> None:
    extra = {k: Feature("float32", ()) for k in ("next.reward", *method.learner.extra)}
    data = example_data({**extra, **columns})
    method = with_trained_stages(method, data, device)
    data = training_data(data, method)
    policy = Policy(method.policy, data.features()).to(device).fit_statistics(data)
    _check_timing(method, policy)
    if type(method.policy.encoder).__module__ == module:
        check_encoder(method.policy.encoder, {name: policy.features[name] for name in policy.inputs})
    if type(method.policy.trunk).__module__ == module:
        check_trunk(method.policy.trunk)
    learner = method.learner.build(policy, 0, 2, data)
    sampler, metrics = learner.batch_sampler(learner.annotate(data, None)), []
    fit(learner, lambda n: sampler.batch(8, n), 2, callbacks=[lambda n, learner, step: metrics.extend(step.values())])
    require(bool(torch.tensor(metrics).isfinite().all()), "metrics must be finite")
    modules = {**learner.modules, "policy": learner.trained_policy.eval()}
    obs = _observations(method, {**columns, **build_planner(method, modules).features})
    actor = build_actor(method, modules, features=columns)
    state = actor.start(obs, keys(0, range(3)))
    for _ in range(3):
        action, state = actor.act(obs, state)
        require(action.shape == (3, columns["action"].size), f"actions must be (3, {columns['action'].size})")
        require(bool(action.isfinite().all()), "actions must be finite")


def _check_timing(method: Method, policy: Policy) -> None:
    """Checks that the first action of the window is the first that the executor runs (Chi et al. 2023)."""
    executor, window = method.executor, method.policy.window
    executor.check_planner(policy)
    past = 1 if isinstance(executor, ActionConditionedExecutor) else getattr(executor, "skip", 0)
    require(past == -window.action_offset, f"the executor skips {past} actions of each plan, and the window has "
            f"{-window.action_offset} before now")
    require(past + getattr(executor, "n_action_steps", 1) <= window.horizon, "the executor needs a longer horizon")


def _observations(method: Method, columns: Schema) -> Mapping[str, Tensor]:
    """Returns three rows of everything that a method may read while acting."""
    obs = {k: torch.randn(3, *f.shape) if f.dtype == "float32" else torch.ones(3, *f.shape, dtype=f.torch_dtype)
           for k, f in columns.items() if k.startswith("observation.")} | {LAST_REWARD: torch.ones(3)}
    return obs | {part.open_condition: torch.ones(3, 1) for part in online_changes(method) if part.open_condition}


def _check_refusal(name: str, need: Need, columns: Schema, trust: tuple[str, ...], device: str) -> None:
    """Checks that a method refuses data that do not meet one of its needs."""
    others = {k: f for k, f in columns.items() if k not in (*need.example, "observation.environment_state")}
    data = example_data(others | {k: VECTOR if example.get("kind") == "discrete" else CLASSES
                                  for k, example in need.example.items() if k in ("observation.state", "action")})
    with TemporaryDirectory() as folder:
        try:
            train(find_method(name, data.features(), trust), data, Path(folder) / "run", steps=1, progress=False,
                  device=device)
        except UserError:
            return
    require(False, f"data without {need.text} must be refused, and they are not")
