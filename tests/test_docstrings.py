"""Docstrings name the arguments that there are, in short paragraphs."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from folders import REPOSITORY

ROOT = REPOSITORY / "src" / "understudy"
SECTION = re.compile(r"^(Args|Attributes):\n((?:[ ]+.*\n|\n)+)", re.MULTILINE)


def documented(text: str) -> list[str]:
    """The names in the sections `Args:` and `Attributes:` of a docstring."""
    names = []
    for _, block in SECTION.findall(text + "\n"):
        indent = len(block) - len(block.lstrip(" "))
        for line in block.splitlines():
            if line[:indent].isspace() and line[indent:indent + 1].strip() and ":" in line:
                names += re.findall(r"\w+", line.split(":")[0].split("(")[0])
    return names


def definitions(tree: ast.Module):
    """(name, documented names, what may be documented, whether it inherits) where any are documented."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if not (names := documented(ast.get_docstring(node) or "")):
            continue
        if isinstance(node, ast.ClassDef):
            init = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
            yield node.name, names, fields(node).union(*map(arguments, init)), bool(node.bases)
        else:
            yield node.name, names, arguments(node), False


def arguments(node) -> set[str]:
    a = node.args
    return {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))}


def fields(node) -> set[str]:
    """Fields and properties, and attributes that a method sets."""
    names = {b.target.id for b in node.body if isinstance(b, ast.AnnAssign) and isinstance(b.target, ast.Name)}
    names |= {t.id for b in node.body if isinstance(b, ast.Assign) for t in b.targets if isinstance(t, ast.Name)}
    names |= {b.name for b in node.body if isinstance(b, ast.FunctionDef)}
    return names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def wrong(source: str) -> list[str]:
    """Names that a docstring documents and that its class or function does not have."""
    tree = ast.parse(source)
    undocumented = [(name, n, inherits) for name, names, allowed, inherits in definitions(tree)
                    for n in names if n not in allowed]
    inherited = any(inherits for *_, inherits in undocumented) and set().union(
        *(fields(n) for n in ast.walk(tree) if isinstance(n, ast.ClassDef)))
    return [f"{name}: {n}" for name, n, inherits in undocumented if not (inherits and n in inherited)]


FILES = [*sorted(ROOT.rglob("*.py")), *sorted((REPOSITORY / "evidence").rglob("*.py"))]


def name_of(path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_documented_arguments_exist(path):
    assert wrong(path.read_text(encoding="utf-8")) == []


def paragraphs(source: str) -> list[str]:
    """Paragraphs of docstrings, of the texts of options, and of entries of a section such as `Args:`."""
    return [part for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            for part in re.split(r'\n\s*\n|\n(?=    \S)|\n(?=\s*(?:[-*] |``"))', inspect.cleandoc(node.value.value))]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_paragraph_has_more_than_80_words(path):
    long = [part for part in paragraphs(path.read_text(encoding="utf-8")) if len(part.split()) > 80]
    assert not long, f"split these: {[' '.join(part.split()[:12]) for part in long]}"


def test_a_long_paragraph_is_found():
    text = ("class A:\n    '''One\n    two.\n\n    Args:\n        n: Three\n            four.\n    '''\n"
            "    n: int\n    '''five'''\n")
    assert [" ".join(part.split()) for part in paragraphs(text)] == ["One two.", "Args:", "n: Three four.", "five"]


def test_a_wrong_name_is_found():
    good = """def f(x, y):
    '''Adds.

    Args:
        x: One.
        y: Other (see: there).
            More: of it.
    '''
"""
    assert wrong(good) == [] and wrong(good.replace("f(x, y)", "f(x, z)")) == ["f: y"]
