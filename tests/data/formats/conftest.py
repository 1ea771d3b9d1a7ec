"""Fixtures that several files of this folder use."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def files(shared):
    return shared / "fixtures"


@pytest.fixture
def expected(files):
    return lambda name: json.loads((files / f"expected/{name}.json").read_text())["episodes"]


@pytest.fixture
def fixtures(shared):
    return shared / "fixtures"
