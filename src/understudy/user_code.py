"""Imports code of users: environments, methods and scores in their own files.

Errors inside such code are told with the user's file and line, so that they are not taken for errors of understudy.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from .core import UserCodeError, UserError

_PACKAGE = Path(__file__).resolve().parent
_STDLIB = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_DEBUG_HINT = "correct it there; --debug prints the whole traceback"


def trusted_packages(args: Sequence[str]) -> tuple[str, ...]:
    """Returns the packages that --trust names in the arguments of a command."""
    separate = [value for option, value in zip(args, args[1:], strict=False) if option == "--trust"]
    return *separate, *(a.removeprefix("--trust=") for a in args if a.startswith("--trust="))


def search_current_folder(trusted: Sequence[str]) -> None:
    """Lets modules in the current folder be imported, after all others, if a package is trusted."""
    if trusted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def import_module(module: str, where: str) -> ModuleType:
    """Imports a module that the user named.

    Args:
        where: The option or field that names it, for the error.

    Raises:
        UserError: There is no such module. An import that fails inside the module is raised as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that it imports itself
        raise UserError(f"there is no module {error.name!r}", where=where,
                        hint="check the name; the module must be importable from here (install it, or set PYTHONPATH)"
                        ) from error


def locate_user_error(error: BaseException, trusted: Sequence[str] = ()) -> UserCodeError | None:
    """Describes an exception that was raised in the user's code.

    User code is every file outside understudy, the standard library and the installed packages. Installed packages that
    the user trusts count as user code.

    Returns:
        An error that names the user's file and line. None if no user code was running.
    """
    for cause in _causes(error):
        if isinstance(cause, SyntaxError) and cause.filename and _is_user_file(cause.filename):
            return UserCodeError(f"{type(cause).__name__}: {cause.msg}",
                                 where=f"{_short_path(cause.filename)}, line {cause.lineno}", hint="correct the line")
        for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if not _is_user_file(frame.f_code.co_filename) and package not in trusted:
                continue
            name = frame.f_code.co_name
            place = f"{_short_path(frame.f_code.co_filename)}, line {line}"
            hint = "install what is missing, or correct the import" if isinstance(cause, ImportError) else _DEBUG_HINT
            return UserCodeError(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__,
                                 where=place if name == "<module>" else f"{place}, in {name}", hint=hint)
    return None


def refuse_python_file(name: str, command: str) -> None:
    """Raises an error for a Python file where a function name is expected, and says how to name one.

    The file is parsed and not run.

    Args:
        name: What the user wrote.
        command: The command up to this name, for the hint.
    """
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserCodeError(f"the Python file cannot be parsed: {error}", where=path, hint="correct the line") from None
    functions = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                 and not node.name.startswith("_")]
    function = next((f for f in functions if f.startswith("make")), functions[0] if functions else "FUNCTION")
    parts = path.resolve().relative_to(Path.cwd()).with_suffix("").parts if path.resolve().is_relative_to(Path.cwd()
                                                                                                       ) else ()
    module = ".".join(parts) or path.stem
    elsewhere = "" if parts else f", in the folder {path.resolve().parent}"
    names = f"; it has {', '.join(functions)}" if len(functions) > 1 else ""
    raise UserError(f"this is Python code: name a function in it, as module:function{names}", where=name,
                    hint=f"{command} {module}:{function} --trust {module.partition('.')[0]}{elsewhere}")


def user_code_digest() -> str:
    """Returns the SHA-256 of the imported files of the user's code, in hexadecimal digits.

    It tells whether a result may differ because the user has changed an environment or a part of a method.
    """
    modules = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
    digest = hashlib.sha256()
    for file in sorted({file for file in modules if file and _is_user_file(file)}):
        with suppress(OSError):  # a module in an archive
            digest.update(f"{file}\n".encode() + Path(file).read_bytes())
    return digest.hexdigest()


def describe_place(function: Callable) -> str:
    """Returns "FILE, line N, in NAME" of a function or method, or its qualified name without a source file."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return getattr(function, "__qualname__", repr(function))
    return f"{_short_path(code.co_filename)}, line {code.co_firstlineno}, in {code.co_name}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    visited = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_user_file(name: str) -> bool:
    if name.startswith("<"):  # frozen modules, generated methods
        return False
    path = Path(name).resolve()
    return not ({"site-packages", "dist-packages"} & set(path.parts)
                or any(path.is_relative_to(folder) for folder in (_PACKAGE, *_STDLIB)))


def _short_path(name: str) -> str:
    path = Path(name).resolve()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
