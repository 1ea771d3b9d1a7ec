"""Every format that is written keeps the contract: what it says it holds is read again, and nothing is lost unsaid."""

from pathlib import Path

import numpy as np
import pytest

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import WRITERS, open_dataset, write_dataset
from understudy.testing import check_format, random_dataset


def demonstrations(cameras: bool = True, **facts) -> Dataset:
    """Everything a data set may have: an observation after the last action, several columns, names, units, tasks in
    two languages, an episode of one step, both ways to end, facts of episodes."""
    rng = np.random.default_rng(0)
    features = {
        "observation.state": Feature("float32", (3,), names=("x", "y", "z"), unit="m"),
        "observation.force": Feature("float64", (2, 2)),
        **({"observation.images.front": Feature("uint8", (8, 8, 3), "image")} if cameras else {}),
        "action": Feature("float32", (2,), names=("dx", "dy")), "next.reward": Feature("float32", ()),
        "next.terminated": Feature("bool", ()), "next.truncated": Feature("bool", ()),
        "next.success": Feature("bool", ()), "task": Feature("string", (), "string"), "count": Feature("int64", ())}

    def episode(i, n):
        ends = np.arange(n) == n - 1
        columns = {
            "observation.state": rng.normal(size=(n + 1, 3)).astype(np.float32),
            "observation.force": rng.normal(size=(n + 1, 2, 2)),
            **({"observation.images.front": rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)} if cameras else {}),
            "action": rng.normal(size=(n, 2)).astype(np.float32), "next.reward": rng.normal(size=n).astype(np.float32),
            "next.terminated": ends & (i % 2 == 0), "next.truncated": ends & (i % 2 == 1),
            "next.success": ends & (i == 2), "task": np.array(["put it there", "öffne die Tür"][i % 2:][:1] * n),
            "count": np.arange(n) * 2**40}
        return Episode(columns, {"seed": i, "success": i == 2, "operator": "Ada"}, n, features)
    return Dataset([episode(i, n) for i, n in enumerate((5, 1, 4, 12))], {"fps": 10.0, "robot_type": "arm", **facts})


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
    found = open_dataset(folder / "c:d")
    np.testing.assert_array_equal(found.lengths, data.lengths)
    np.testing.assert_allclose(found[1].steps["action"], data[1].steps["action"])
