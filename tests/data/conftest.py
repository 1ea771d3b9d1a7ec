"""Fixtures that several files of this folder use."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.views import demonstrations

from understudy.data.formats import write_dataset


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_dataset(demonstrations(), folder / "demos", images="png")
    write_dataset(demonstrations((3, 8), seed=1), folder / "more", images="png")
    return folder
