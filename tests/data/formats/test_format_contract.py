"""Every format that is written keeps the contract: what it says it holds is read again, and nothing is lost unsaid."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.contract_data import demonstrations

from understudy.core import Feature
from understudy.data.formats import WRITERS, open_dataset, write_dataset
from understudy.testing import check_format, random_dataset


@pytest.mark.parametrize("cameras", [True, False], ids=["images", "numbers"])
@pytest.mark.parametrize("to", WRITERS)
def test_format(to, cameras, tmp_path):
    check_format(to, demonstrations(cameras), tmp_path, **({"images": "png"} if to.startswith("lerobot") else {}))


@pytest.mark.parametrize("to", WRITERS)
def test_a_relative_path_may_have_a_colon(to, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = random_dataset({"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}, 2, 5)
    folder = Path("a:b")
    folder.mkdir()
    write_dataset(data, folder / "c:d", to)
    reopened = open_dataset(folder / "c:d")
    np.testing.assert_array_equal(reopened.lengths, data.lengths)
    np.testing.assert_allclose(reopened[1].steps["action"], data[1].steps["action"])
