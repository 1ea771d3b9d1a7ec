"""List the tests that are slow or long: python tests/slow_tests.py TIMES.xml, from pytest --junitxml=TIMES.xml."""

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

LIST = Path(__file__).with_name("slow_tests.txt")
LONG_LIST = Path(__file__).with_name("long_tests.txt")
LIMITS = {LIST: 1.2, LONG_LIST: 12.0}  # seconds


def entries(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")}


def slow(listed: set[str], test: str) -> bool:
    """If a test is listed, by its own name or with all cases of its function."""
    return test in listed or test.split("[")[0] in listed


def stays(listed: set[str], test: str) -> bool:
    return f"! {test.split('[')[0]}" in listed


def above(limit: float, seconds: dict[str, float]) -> list[str]:
    """Tests above the limit; the function, if half of its cases are."""
    cases = defaultdict(list)
    for test in seconds:
        cases[test.split("[")[0]].append(test)
    names = []
    for function, tests in cases.items():
        long = [test for test in tests if seconds[test] > limit]
        names += [function] if 2 * len(long) >= len(tests) else long
    return names


def measured(path: Path) -> dict[str, float]:
    """Seconds by test, as pytest names it."""
    return {f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0))
            for case in ElementTree.parse(path).iter("testcase")}


def add(path: Path, limit: float, seconds: dict[str, float]) -> None:
    text = path.read_text(encoding="utf-8")
    listed = entries(text)
    new = [name for name in above(limit, seconds) if not slow(listed, name) and not stays(listed, name)]
    path.write_text(text + "".join(f"{name}\n" for name in sorted(new)), encoding="utf-8")
    print(f"{len(new)} added to {path.name}")


def main(path: str) -> None:
    for listing, limit in LIMITS.items():
        add(listing, limit, measured(Path(path)))


if __name__ == "__main__":
    main(*sys.argv[1:])
