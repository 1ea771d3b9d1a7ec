"""The registry of methods: their names, and what is known about each, without importing them."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from ..config import UntrustedCode, current_name
from ..core import ConfigError, Schema, missing_action, unknown_name
from ..hints import command_line, trust_hint
from ..plugins import find_plugins, load_plugin, package_of
from ..user_code import import_module
from . import needs as all_needs
from .needs import NUMBERS, Need

if TYPE_CHECKING:
    from ..learn.method import Method

FOLDER = Path(__file__).parent
COSTS = FOLDER / "costs.json"  # written by benchmarks/method_cost.py
MAX_MENTIONS = 20  # a word that more methods mention, such as "arXiv", tells nothing
Function = TypeVar("Function", bound="Callable[..., Any]")


@dataclass(frozen=True)
class MethodInfo:
    """Where a method was published, when to choose it, and what it needs.

    Args:
        paper: Authors, year and arXiv number, and how the method differs from the paper.
        when: When to choose the method: the rest of a sentence that starts with "Choose it". It says what
            benchmarks found, also if it speaks against the method.
        rows: Rows of the table of systems, docs/evidence/systems.md, if it is in there.
        needs: What the data must have, and what must be given while acting. `find_method` checks each `Need` that has
            a check. A need without a check is checked when the training starts, by the part of the method that reads
            the column.
    """

    paper: str
    when: str
    rows: tuple[str, ...] = ()
    needs: tuple[Need | str, ...] = (NUMBERS,)


def method(paper: str, *, when: str, rows: tuple[str, ...] = (),
           needs: tuple[Need | str, ...] = (NUMBERS,)) -> Callable[[Function], Function]:
    """Decorator of an `Algorithm`, or of a function that returns a `Method`. Stores a `MethodInfo` on it.

    It takes the arguments of `MethodInfo`. In understudy itself each argument is a literal or a constant of
    `methods/needs.py`, because `read_info` reads it from the source.
    """
    info = MethodInfo(paper, when, rows, needs)

    def store(function: Function) -> Function:
        function.info = info  # ty: ignore[missing-attribute]
        return function

    return store


@functools.cache
def method_files() -> Mapping[str, Path]:
    """Returns the files of all bundled methods, by the names of the methods. Folders are families."""
    return {path.stem.replace("_", "-"): path for path in sorted(FOLDER.glob("*/*.py")) if path.stem != "__init__"}


@functools.cache
def method_families() -> Mapping[str, str]:
    """Returns title and summary of each family of bundled methods: the docstrings of the folders."""
    folders = dict.fromkeys(path.parent for path in method_files().values())
    return {folder.name: ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
            for folder in folders}


@functools.cache
def read_info(name: str) -> tuple[str, MethodInfo]:
    """Returns the summary of a bundled method and the arguments of its decorator. Imports nothing."""
    node, call = _definition(method_files()[name])
    arguments = {str(keyword.arg): _constant(keyword.value) for keyword in call.keywords}
    return _summary(ast.get_docstring(node) or ""), MethodInfo(*map(_constant, call.args), **arguments)


@functools.cache
def _definition(path: Path) -> tuple[ast.FunctionDef | ast.ClassDef, ast.Call]:
    """Returns the class or function of a file whose decorator is `method`, and that decorator."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next((node, decorator) for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "method")


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return getattr(all_needs, node.id)
    return tuple(map(_constant, node.elts)) if isinstance(node, ast.Tuple) else ast.literal_eval(node)


def _summary(docstring: str) -> str:
    return docstring.partition("\n\n")[0].replace("\n", " ")


def method_names() -> list[str]:
    """Returns the names of all methods: understudy's, then the methods that installed packages register."""
    bundled = method_files()
    return [*bundled, *(name for name in find_plugins("methods") if name not in bundled)]


def find_method(name: str, features: Schema | None = None, trust: tuple[str, ...] = (), **options) -> Method:
    """Returns a method by its name, from "module:function", or from a method.json, run or checkpoint.

    Args:
        name: Name of a method, "module:function", the path of a method.json, or the folder of a run or checkpoint.
        features: The columns of the data that it will be trained on.
        trust: Packages besides understudy whose code may be loaded. A name that an installed package registers needs
            none.
        **options: Arguments of the function (horizon, ...) or fields of the class, if `name` names one.

    Raises:
        UserError: There is no such name, the method has no such option, or the data lack what it needs.
        UntrustedCode: "module:function" names code of a package that is not trusted.
    """
    if (function := find_function(name, trust)) is not None:
        if features is not None:
            _check_needs(name.replace("_", "-"), function, features, options)
        return _build_method(function, name, features, options)
    if Path(name).exists():
        if options:
            raise ConfigError(f"{name} is a method already and takes no options",
                              where=f"--{next(iter(options)).replace('_', '-')}",
                              hint="leave it out: any field can be set, such as --steps 500")
        from ..learn.method import Method

        return Method.load(name, trust)
    word = name.replace("-", "_")
    if len(families := [f for f in method_families() if word in (f, f.partition("_")[0])]) == 1:
        raise ConfigError(f"{name!r} is not a method, but a family of methods",
                          hint=f"{command_line('methods', families[0].replace('_', '-'))} lists them")
    if 0 < len(mentions := _methods_about(name)) <= MAX_MENTIONS:
        raise ConfigError(f"there is no method {name!r}, but it is mentioned by {', '.join(mentions)}",
                          hint=f"did you mean {mentions[0]!r}?" if len(mentions) == 1 else
                          "name one of these; understudy methods describes them")
    raise unknown_name("method", name, method_names(), hint="understudy methods lists all; a module:function, "
                       "a method.json or a run can be named too")


def _methods_about(word: str) -> list[str]:
    """Returns the names of the methods whose name, summary or paper contains a word."""
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(word.replace('_', '-'))}(?![a-z0-9])", re.IGNORECASE)
    return [m["name"] for m in _descriptions() if pattern.search(f"{m['name']} {m['summary']} {m['paper']}")]


def recommend(features: Schema) -> str:
    """Returns the name of the method to start with: "bc" for discrete actions, else "bc-gmm".

    "bc-gmm" does not average different ways of doing the same thing, plans in one step, and trains in a minute on a
    CPU. Other methods can be better, above all `bc` where several steps must not be executed without looking (Hopper
    and Walker2d in docs/real-input.md). Compare them.
    """
    return "bc" if features["action"].kind == "discrete" else "bc-gmm"


def describe_methods() -> list[dict]:
    """Describes all methods as JSON values.

    Methods of other packages are listed and not loaded.

    Returns:
        For each method "name", "family", "rows" of the table of systems, "paper", "needs" (requirements of the data),
        "summary", "when" to choose it, and "cost" (see `method_costs`; None if it was not measured).
    """
    return list(_descriptions())


def method_costs() -> dict[str, dict[str, float]]:
    """Returns what methods cost on one CPU core, as measured by benchmarks/method_cost.py.

    Returns:
        By the name of a method: "weights" (number of weights of all networks that are trained), "train_seconds" (CPU
        time of all updates) and "plan_ms" (CPU milliseconds of a step at which it plans).
    """
    return json.loads(COSTS.read_text(encoding="utf-8"))["methods"]


def _descriptions() -> Iterator[dict]:
    bundled, costs = method_files(), method_costs()
    for name, path in bundled.items():
        yield _description(name, path.parent.name, *read_info(name), costs.get(name))
    for name, entry in find_plugins("methods").items():
        if name not in bundled:
            package = package_of(entry)
            yield _description(name, package, f"Registered by the package {package}.", None)


def describe_method(name: str) -> dict | None:
    """Describes one method, with the keys of `describe_methods`. None if there is no such name.

    A method that another package registers is loaded.
    """
    name = name.replace("_", "-")
    if name in method_files():
        return next(d for d in _descriptions() if d["name"] == name)
    entry = find_plugins("methods").get(name)
    if entry is None:
        return None
    function, package = load_plugin("methods", name), package_of(entry)
    summary = _summary(inspect.getdoc(function) or "") or f"Registered by the package {package}."
    return _description(name, package, summary, getattr(function, "info", None))


def _description(name: str, family: str, summary: str, info: MethodInfo | None,
                 cost: dict[str, float] | None = None) -> dict:
    info = info or MethodInfo("", "", needs=())
    return {"name": name, "family": family, "rows": list(info.rows), "paper": info.paper,
            "needs": [need.text if isinstance(need, Need) else need for need in info.needs],
            "summary": summary, "when": info.when, "cost": cost}


def _check_needs(name: str, function: Callable[..., Method], features: Schema, options: Mapping[str, Any]) -> None:
    """Checks whether the columns of the data meet the needs of a method."""
    info = getattr(function, "info", None)
    if info is not None and all_needs.NUMBERS_OR_CLASSES in info.needs and "action" not in features:
        raise missing_action(features, name)
    defaults = {p.name: p.default for p in method_parameters(function).values()}
    needs = info.needs if info is not None else ()
    for need in needs:
        if isinstance(need, Need) and need.check is not None:
            need.check(name, features, {**defaults, **options},
                       lambda need=need: _methods_without(need, name, needs))


def _methods_without(need: Need, name: str, needs: Sequence[Need | str]) -> list[str]:
    """Returns the methods that lack one of the needs of a method, and have no further need but other actions.

    Methods of its family come first. There are at most eight methods.
    """
    files = method_files()
    family = {other for other in files if name in files and files[other].parent == files[name].parent}

    def kinds(needs: Sequence[Need | str]) -> set[str]:  # "rewards" of "rewards, and which steps ended an episode"
        return {(n.text if isinstance(n, Need) else n).partition(",")[0] for n in needs}

    def fits(other: str) -> bool:
        other_needs = read_info(other)[1].needs
        return need.check not in {n.check for n in other_needs if isinstance(n, Need)} and all(
            "actions that are" in kind for kind in kinds(other_needs) - kinds(needs))
    names = list(filter(fits, files))
    return sorted(names, key=lambda other: (other not in family, other not in ("bc", "iql")))[:8]


def find_function(name: str, trust: tuple[str, ...] = ()) -> Callable[..., Any] | None:
    """Returns the function that builds a method, or the class that is one.

    Args:
        name: Name of a method, "module:function" or "module:Class".

    Returns:
        The function or class. None if `name` is the path of a file or folder, or unknown.
    """
    method_name = name.replace("_", "-")
    if (path := method_files().get(method_name)) is not None:
        return _import_function(f"{__package__}.{path.parent.name}.{path.stem}:{_definition(path)[0].name}", name)
    if method_name in find_plugins("methods"):
        return require_function(load_plugin("methods", method_name), name)
    if ":" not in name or Path(name).exists():
        return None
    package = name.partition(":")[0].split(".")[0]
    if package not in ("understudy", *trust):
        raise UntrustedCode(f"{name} is outside the trusted packages ({', '.join(('understudy', *trust))})",
                            hint=trust_hint(package))
    return _import_function(current_name(name), name)


def _import_function(path: str, name: str) -> Callable[..., Method]:
    module, _, attribute = path.partition(":")
    imported = import_module(module, name)
    try:
        function = getattr(imported, attribute)
    except AttributeError:
        raise unknown_name("function", attribute, (n for n in dir(imported) if callable(getattr(imported, n))), name,
                           owner=module, hint="check the name after the colon") from None
    return require_function(function, name)


def require_function(value, name: str) -> Callable[..., Method]:
    """Returns the function of this name, or raises an error that says what stands in its place."""
    from ..learn.method import Method
    from ..policy import PolicyConfig

    if isinstance(value, type) and not callable(getattr(value, "method", None)):
        raise ConfigError(f"the class {value.__name__} has no function `method`", where=name,
                          hint="derive it from understudy.learn.algorithm.Algorithm, and let `method(self, "
                               "features=None)` return the Method")
    if callable(value):
        return value
    attribute = name.rpartition(":")[2].replace("-", "_")
    expression = f"Method({attribute})" if isinstance(value, PolicyConfig) else attribute
    is_part = isinstance(value, (Method, PolicyConfig))
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    raise ConfigError(
        f"this is {article} {type(value).__name__}, and not a function", where=name,
        hint=f"write a function that returns it, and name the function: def {attribute.lower()}_method(): return "
             f"{expression}" if is_part else "name a function in that module")


def method_parameters(function: Any, *, fields: bool = True) -> dict[str, inspect.Parameter]:
    """Returns the options of a method by name, with their types and defaults.

    Args:
        function: A function that returns a `Method`, or an `Algorithm`.
        fields: Whether the fields of an `Algorithm` are among them, besides the arguments of its function `method`.
    """
    parts = [(function, False)] * (fields or not isinstance(function, type))
    if isinstance(function, type):
        parts.append((function.method, True))
    parameters = {}
    for part, has_self in parts:
        hints = get_type_hints(part)
        own = list(inspect.signature(part).parameters.values())[has_self:]
        parameters |= {p.name: p.replace(annotation=hints.get(p.name, p.annotation)) for p in own if
                       p.name != "features"}
    return parameters


def _build_method(function: Callable[..., Any], name: str, features: Schema | None, options: dict) -> Method:
    from ..learn.method import Method

    parameters = method_parameters(function)
    for key in options:
        if key not in parameters:
            raise unknown_name("option", key, parameters, owner=name, hint="leave it out")
    build = function
    if isinstance(function, type):
        own = method_parameters(function, fields=False)
        build = function(**{key: value for key, value in options.items() if key not in own}).method
        options = {key: value for key, value in options.items() if key in own}
    method = build(**options, **({"features": features} if "features" in inspect.signature(build).parameters else {}))
    if not isinstance(method, Method):
        raise ConfigError(f"the function returned {type(method).__name__} instead of a Method", where=name,
                          hint="return understudy.Method(...) from it")
    return method
