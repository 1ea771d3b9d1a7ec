"""benchmarks/published.py: the errors of actions that it measures, and its tables of cells that are made up."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from folders import BENCHMARKS

from understudy.envs.toys import peg_insertion
from understudy.files import read_json, write_json


@pytest.fixture
def published(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published

    for folder in ("ALL_RESULTS", "RESULTS"):
        monkeypatch.setattr(published, folder, tmp_path)
    monkeypatch.setattr(published, "PAGE", tmp_path / "published.md")
    yield published
    for name in ("published", "published_agents", "published_doors", "published_goals", "published_toys"):
        sys.modules.pop(name)


def test_what_neighbors_span_has_no_error_and_the_rest_counts_in_full(published):
    rng = np.random.default_rng(0)
    neighbors = rng.normal(size=(3, 5, 8, 3))
    inside = np.einsum("nk,nkha->nha", rng.normal(size=(3, 5)), neighbors)
    outside = rng.normal(size=(3, 8, 3))
    basis = neighbors.reshape(3, 5, 24)
    for i in range(3):  # made orthogonal to all neighbors
        q = np.linalg.qr(basis[i].T)[0]
        outside[i] -= (q @ (q.T @ outside[i].ravel())).reshape(8, 3)
    off = published.toys.off_manifold
    np.testing.assert_allclose(off(inside, neighbors), 0, atol=1e-9)
    np.testing.assert_allclose(off(inside + outside, neighbors), np.sqrt((outside**2).mean((1, 2))))
    same = np.repeat(neighbors[:, :1], 5, 1)  # neighbors that are equal span a line
    np.testing.assert_allclose(off(2 * same[:, 0], same), 0, atol=1e-9)


def test_neighbors_are_those_with_the_same_pose_at_the_hole(published):
    """Turning a scene changes neither the pose nor the actions that the hole sees."""
    toys, rng = published.toys, np.random.default_rng(0)
    n, turn = 20, 0.7
    outline = np.full(n, 2)
    pose = rng.uniform(0.1, 0.4, (n, 3)).astype(np.float32)
    actions = rng.normal(size=(n, 8, 3))
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.stack([cos * actions[..., 0] - sin * actions[..., 1], sin * actions[..., 0] + cos * actions[..., 1],
                       actions[..., 2]], 2)

    def scene(angle, done):
        hole = np.tile(np.array([0.1, -0.1, angle], np.float32), (n, 1))
        around = np.concatenate([hole, peg_insertion.RADII[outline]], 1)
        peg = peg_insertion._to_world(pose, hole, outline)
        return toys.Chunks({"observation.state": np.stack([peg, peg], 1),
                            "observation.environment_state": np.stack([around, around], 1)}, done, np.arange(n))
    straight, other = scene(0.0, actions), scene(turn, turned)
    np.testing.assert_allclose(other.poses(), pose / peg_insertion.STEP, atol=1e-5)
    np.testing.assert_allclose(other.seen_from_hole(turned), actions, atol=1e-6)
    chunks = toys.nearest_chunks(straight, other)
    assert chunks.shape == (n, toys.NEIGHBORS, 8, 3)
    np.testing.assert_allclose(chunks[:, 0], actions, atol=1e-6)


def test_held_out_states_are_moved_a_little_and_out_of_the_wall(published):
    toys = published.toys
    recorded, moved = toys.held_out(0.03, 10)
    assert len(recorded.episode) == len(moved.episode) > 20 and (recorded.episode == moved.episode).all()
    offset = moved.obs["observation.state"] - recorded.obs["observation.state"]
    np.testing.assert_allclose(offset[:, 0], offset[:, 1], atol=1e-6)
    spread = offset[:, 0].std(0) / toys.PERTURBATION
    assert (spread > 0.5).all() and (spread < 1.5).all()
    assert (moved.poses()[:, 1] > 0).all()
    assert toys.rms(moved.actions - recorded.actions).mean() < 0.5  # the expert still moves to the same hole


def test_the_page_says_what_the_cells_show(published):
    toys, size = published.toys, published.toys.FULL
    assert "0 of 18 cells have run" in published.page() and "0 of 24 cells have run" in published.page()
    wins = {"particle-2-energy": 98, "particle-8-energy": 97, "particle-16-energy": 96, "particle-2-regression": 97,
            "particle-8-regression": 80, "particle-16-regression": 20}
    errors = {"regression": 0.5, "no-noise": 0.5, "mip": 0.2, "flow": 0.2}
    for cell in (*toys.cells("particle"), *toys.cells("mip")):
        for seed in published.SEEDS:
            won = wins.get(cell.name, 80 if cell.name.endswith(("mip", "flow")) else 60)
            off = [errors[cell.name.split("-", 2)[2]] + 0.001 * i for i in range(10)] if "mip-" in cell.name else []
            write_json(published.ALL_RESULTS / size.folder / f"{cell.name}-{seed}.json", {
                "success": [1] * won + [0] * (100 - won), "seconds": 10.0, "validation": [0.1] * 10,
                "off_manifold": off, "off_expert": off, "expert_off_manifold": [0.1] * 10})
    page = published.page()
    assert "| 16 | 95 % or more | 96 % [" in page and "| less than 95 % | 20 % [" in page
    assert "implicit above explicit: **reproduced**" in page and "at every N: **reproduced**" in page
    assert "Explicit falls from N = 2 to 16: **reproduced**" in page
    assert "| 10 mm | mip | 1.02 | 1.00 | 80 % [" in page and "+20 [" in page
    assert page.count("lower off-manifold norm than regression: **reproduced**") == 2
    assert "larger at the higher precision: +0 [" in page
    assert f"Updates: {size.updates[2]:,}" in page
    assert "0 of 12 cells have run" in page
    for name, both in {"bet": 70, "bet-every-step": 30, "lstm-gmm": 5, "ibc": 70}.items():
        for seed in published.SEEDS:
            write_json(published.ALL_RESULTS / size.folder / f"block-pushing-{name}-{seed}.json", {
                "one": [1] * 90 + [0] * 10, "success": [1] * both + [0] * (100 - both), "updates": 10, "seconds": 1.0})
    page = published.page()
    assert "| bet | 96 % | 90 % [" in page and "| 71 % | 70 % [" in page
    assert "- bet above lstm-gmm, both blocks: **reproduced**" in page
    assert "- bet above ibc, both blocks: **undecided**" in page
    assert "- bet-every-step above ibc, both blocks: **not reproduced**" in page
    assert "0 of 9 cells have run; `python benchmarks/published.py blocks`" in page
    for name, one in {"bet": 60, "lstm-gmm": 20, "ibc": 90}.items():
        for seed in published.SEEDS:
            write_json(published.ALL_RESULTS / size.folder / f"blocks-{name}-{seed}.json", {
                "one": [1] * one + [0] * (100 - one), "success": [1] * 10 + [0] * 90, "updates": 10, "seconds": 1.0})
    page = published.page()
    assert "| bet | 60 % [" in page and "- bet above lstm-gmm, one block: **higher** (+40 [" in page
    assert "- bet above ibc, one block: **lower** (-30 [" in page  # no figure is published for this toy
    for seed in published.SEEDS:
        longer = published.ALL_RESULTS / size.folder / f"block-pushing-bet-{seed}.json"
        write_json(longer, {**read_json(longer), "updates": 250})
    page = published.page()
    assert "- bet above lstm-gmm, both blocks: **higher** (+65 [" in page
    assert "points, with 25 times the updates)" in page


@pytest.mark.slow
def test_the_toys_run_at_a_small_size_and_keep_what_they_did(published):
    assert published.main(["--tiny"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (published.ALL_RESULTS / "published-tiny").glob("*.json")}
    assert len(before) == 3 * (2 + 4)
    assert published.main(["--tiny"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert any("| N |" in line for line in published._particle(published.toys.TINY))
    assert any("| tolerance |" in line for line in published._mip(published.toys.TINY))


def test_the_table_of_goals_has_the_methods_of_which_all_seeds_have_run(published, tmp_path):
    folder = tmp_path / "published-goals"
    for task, name, rate, seeds in (
            ("pointmaze-medium-navigate", "gcbc", 0.1, 3), ("pointmaze-medium-navigate", "gcivl", 0.0, 3),
            ("pointmaze-medium-navigate", "qrl", 0.9, 3), ("pointmaze-medium-navigate", "hiql", 1.0, 2),
            ("cube-single-play", "gciql", 0.9, 3), ("cube-single-play", "hiql", 0.1, 3)):
        for seed in range(seeds):
            success = [[int(i < 50 * rate) for i in range(50)]] * 5
            write_json(folder / task / f"{name}-{seed}.json", {"success": success, "updates": 40_000})
    lines = "\n".join(published._goals())
    assert "gcivl **not reproduced**, qrl **reproduced**, hiql **not all have run**" in lines
    assert "| qrl | 82 | 90 [78, 97] | 80 [75, 85] | 90, 90, 90, 90, 90 | 40,000 |" in lines
    assert "| hiql | 79 |" not in lines
    assert "GCIQL above HIQL: gciql **reproduced**" in lines
    assert "| gciql | 68 | 90 [78, 97] | 80 [75, 85] | 90, 90, 90, 90, 90 | 40,000 |" in lines
    assert "| hiql | 15 | 10 [3, 22] |  |" in lines


def test_the_table_of_the_door_compares_learners_with_cloning_on_the_same_episodes(published, tmp_path):
    for seed in range(3):
        looks = [[float(i)] * 10 for i in range(20)]
        write_json(tmp_path / "published" / f"door-{seed}.json", {
            "last": [1.0] * 100, "looks": looks, "best": 60_000, "anew": [2.0] * 100, "updates": 100_000,
            "seconds": 400.0})
    assert published._rewards() == []
    for name, seeds in (("iql", 3), ("cql", 2)):
        for seed in range(seeds):
            write_json(tmp_path / "published-doors" / f"{name}-{seed}.json", {
                "last": [3.0] * 100, "best": [5.0] * 10, "anew": [4.0] * 100, "updates": 100_000,
                "diverged": "update 81577" if seed == 1 else None, "seconds": 600.0 if seed else None})
    lines = published._rewards()
    assert "| bc | 2.3 | 1.0 [1.0, 1.0] |  | 9.4 | 11.0 [11.0, 11.0] | 2.0 [2.0, 2.0] | 100,000 |" in lines
    assert any(line.startswith("| iql | 3.3 | 3.0 [3.0, 3.0] | 2.0 [2.0, 2.0] | 13.5 | 5.0") for line in lines)
    assert any(line.endswith("| 100,000 |") for line in lines)
    assert not any(line.startswith("| cql") for line in lines)
    assert any("seed 1 of iql at update 81577" in line for line in lines)
