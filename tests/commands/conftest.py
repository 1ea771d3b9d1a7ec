"""Fixtures that several files of this folder use."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.cli import TINY

from understudy.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with demonstrations ("demos") and two small runs ("a", "b")."""
    folder = tmp_path_factory.mktemp("cli")
    assert main(["record", "fork", "--out", str(folder / "demos"), "--episodes", "12"]) == 0
    for run, seed in (("a", "0"), ("b", "1")):
        assert main(["train", "bc", str(folder / "demos"), "--out", str(folder / run), "--seed", seed, *TINY]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """call(*args) -> (exit status, standard output, standard error)."""
    def run(*args):
        capsys.readouterr()
        status = main([str(a) for a in args])
        return status, *capsys.readouterr()
    return run
