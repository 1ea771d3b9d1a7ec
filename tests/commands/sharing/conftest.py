"""Demonstrations and a run, which the tests of this folder share and do not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.cli import TINY
from fixtures.hub_server import hub  # noqa: F401  (a fixture)

from understudy.cli import main


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with demonstrations ("demos") and a small run ("a")."""
    folder = tmp_path_factory.mktemp("shared")
    assert main(["record", "fork", "--out", str(folder / "demos"), "--episodes", "12"]) == 0
    assert main(["train", "bc", str(folder / "demos"), "--out", str(folder / "a"), *TINY]) == 0
    return folder
