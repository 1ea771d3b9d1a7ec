"""The lists of slow and long tests: what they name exists, and times add to them."""

import ast

import pytest
import slow_tests
from folders import REPOSITORY


@pytest.mark.parametrize("path", slow_tests.LIMITS, ids=lambda path: path.stem)
def test_what_is_listed_exists(path):
    names = {name.removeprefix("! ").split("[")[0] for name in slow_tests.entries(path.read_text("utf-8"))}
    functions = {f"{file}::{node.name}" for file in {name.split("::")[0] for name in names}
                 for node in ast.walk(ast.parse((REPOSITORY / file).read_text("utf-8")))
                 if isinstance(node, ast.FunctionDef)}
    assert names <= functions, f"remove from {path}: {sorted(names - functions)}"


def test_a_listed_test_is_slow_by_its_name_or_its_function(request):
    listed = {"tests/a.py::test_b", "tests/a.py::test_c[2]"}
    chosen = ["tests/a.py::test_b[1]", "tests/a.py::test_c[2]", "tests/a.py::test_c[1]", "tests/a.py::test_bc"]
    assert [slow_tests.slow(listed, test) for test in chosen] == [True, True, False, False]
    assert not request.node.get_closest_marker("slow")


def test_times_add_what_is_above_the_limits(tmp_path, monkeypatch):
    slow, long = tmp_path / "slow.txt", tmp_path / "long.txt"
    monkeypatch.setattr(slow_tests, "LIMITS", {slow: 1.2, long: 12.0})
    slow.write_text("# a comment\n! tests/a.py::test_stays\ntests/a.py::test_known\n")
    long.write_text("")
    cases = {"test_stays[1]": 9, "test_known[2]": 13, "test_half[1]": 2, "test_half[2]": 1, "test_one[1]": 1.3,
             "test_one[2]": 1, "test_one[3]": 1.2, "test_fast": 0.1}
    lines = [f'<testcase classname="tests.a" name="{name}" time="{time}"/>' for name, time in cases.items()]
    (tmp_path / "times.xml").write_text(f"<testsuite>{''.join(lines)}</testsuite>")
    slow_tests.main(str(tmp_path / "times.xml"))
    assert slow.read_text().splitlines()[3:] == ["tests/a.py::test_half", "tests/a.py::test_one[1]"]
    assert long.read_text() == "tests/a.py::test_known\n"
