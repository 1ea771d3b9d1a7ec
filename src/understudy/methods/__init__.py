"""Named methods as data: functions of at most twenty lines, one file a family. None has a loop or a class.

A function may take `features`, the schema of the data, where the choice of parts depends on it (`bc` takes a
categorical head for actions that are choices); everything else has a default. Its docstring is the only place for what
is known of it: a sentence, then lines "Paper:", "Rows:" (of the ledger) and "Needs:" (of the data, apart by ";").
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from ..config import UntrustedCode
from ..core import Schema, UserError
from ..learn.method import Method
from . import behavior_cloning, chunking, generative, retrieval

METHODS: dict[str, Callable[..., Method]] = {
    "bc": behavior_cloning.bc,
    "bc-gmm": behavior_cloning.bc_gmm,
    "bc-rnn-gmm": behavior_cloning.bc_rnn_gmm,
    "gcbc": behavior_cloning.gcbc,
    "diffusion-policy": generative.diffusion_policy,
    "flow-policy": generative.flow_policy,
    "mip": generative.mip,
    "act": chunking.act,
    "knn": retrieval.knn,
    "vinn": retrieval.vinn,
}

CLASS_ACTIONS = "numbers or choices"  # in the needs of a method that learns either


def find_method(name: str, features: Schema | None = None, trust: tuple[str, ...] = (), **options) -> Method:
    """The method of this name, of "module:function", of a method.json, or of the folder of a run or checkpoint.

    features: of the data it will be trained on. options: of the function (horizon, ...), where it is one. Code that is
    not understudy's is imported only if its package is in `trust` (else Untrusted). Raises UserError for a name that is
    not there, for an option that the function does not have, and for actions that a named method cannot learn.
    """
    if (made_by := find_function(name, trust)) is not None:
        _check_needs(name, made_by, features)
        return _build_method(made_by, name, features, options)
    if Path(name).exists():
        if options:
            raise UserError(f"{name} is a method already, and takes no options", where="--" + next(iter(options)),
                            hint="leave it out: any field can be set, such as --learner.steps 500")
        return Method.load(name, trust)
    near = difflib.get_close_matches(name, METHODS, 1)
    raise UserError(f"there is no method {name!r}; there are {', '.join(METHODS)}",
                    hint=f"did you mean {near[0]!r}?" if near else "name one of these, a module:function, or a "
                                                                 "method.json that is there")


def recommend(features: Schema) -> str:
    """The method to begin with: it keeps several ways of doing the same apart, answers at once, and trains in a minute
    on a CPU. Others can be better, `bc` above all where several steps must not be run without looking (Hopper and
    Walker2d of docs/real-input.md): compare them."""
    return "bc" if features["action"].kind == "discrete" else "bc-gmm"


def describe_methods() -> list[dict]:
    """What is known of each method: "name", "family", "rows" of the ledger, "paper", what it "needs" of the data, and
    a "summary"."""
    return [_method_info(name, function) for name, function in METHODS.items()]


def _check_needs(name, made_by, features) -> None:
    action = (features or {}).get("action")
    if action is None or action.kind != "discrete" or made_by not in METHODS.values():
        return
    able = [m["name"] for m in describe_methods() if any(CLASS_ACTIONS in need for need in m["needs"])]
    if name.replace("_", "-") not in able:
        raise UserError("expected actions that are numbers, found choices", where=f"{name}, column 'action'",
                        hint=f"{', '.join(able)} learn choices")


def _method_info(name, function) -> dict:
    summary, _, rest = inspect.getdoc(function).partition("\n")
    facts = dict(line.split(": ", 1) for line in rest.strip().splitlines())
    return {"name": name, "family": function.__module__.rpartition(".")[2], "rows": facts["Rows"].split(", "),
            "paper": facts["Paper"], "needs": facts["Needs"].split("; "), "summary": summary}


def find_function(name: str, trust: tuple[str, ...] = ()) -> Callable[..., Method] | None:
    """What this name or "module:function" calls; None for the path of a method. Raises as `find` does."""
    if name.replace("_", "-") in METHODS:
        return METHODS[name.replace("_", "-")]
    if ":" not in name or Path(name).exists():
        return None
    path, _, attribute = name.partition(":")
    package = path.split(".")[0]
    if package not in ("understudy", *trust):
        raise UntrustedCode(f"{name} is outside the trusted packages ({', '.join(('understudy', *trust))})",
                        hint=f"add --trust {package} if you trust that code to run")
    try:
        found = getattr(importlib.import_module(path), attribute, None)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no module {error.name}", where=name,
                        hint="install the package, or run where its file is") from error
    if not callable(found):
        raise UserError(f"expected a function, found {type(found).__name__}", where=name,
                        hint="check the name after the colon")
    return found


def _build_method(function, name, features, options) -> Method:
    known = inspect.signature(function).parameters
    for key in options:
        if key not in known or key == "features":
            near = difflib.get_close_matches(key, known, 1)
            raise UserError(f"{name} has no option {key!r}; it has {', '.join(k for k in known if k != 'features')}",
                            hint=f"did you mean {near[0]!r}?" if near else "leave it out")
    method = function(**options, **({"features": features} if "features" in known else {}))
    if not isinstance(method, Method):
        raise UserError(f"expected a Method, found {type(method).__name__}", where=name,
                        hint="return understudy.Method(...) from it")
    return method
