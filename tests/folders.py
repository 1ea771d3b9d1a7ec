"""Folders of the repository."""

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
BENCHMARKS = REPOSITORY / "benchmarks"
