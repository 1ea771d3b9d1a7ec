"""How far actions here are from LeRobot's own, by its checkpoint and version: python benchmarks/lerobot_equality.py

The checkpoints are those of ../shared/fixtures/lerobot_policies. Each acts for 10 steps on the same observations three
times: by LeRobot's own functions, read into our parts, and as lerobot:PATH, in a process of LeRobot. The noise of
the plans is the same. Printed is the largest difference from LeRobot's actions, in standard deviations of the
demonstrated actions. LeRobot 0.4.4 of `make test` runs without torchvision, so that it cannot load policies with
cameras; the LeRobot of `make lerobot` is measured if it is there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from fixtures.lerobot_policies import NAMES, unpacked  # noqa: E402
from fixtures.lerobot_stand_in import write_python  # noqa: E402

from understudy.core import keys  # noqa: E402
from understudy.learn.method import load_policy  # noqa: E402
from understudy.policy import Policy  # noqa: E402
from understudy.serve.lerobot_process import LeRobotProcess, plan_seeds  # noqa: E402
from understudy.serve.remote import RemotePlanner, remote_actor  # noqa: E402

FIXTURES = REPOSITORY.parent / "shared" / "fixtures" / "lerobot_policies"
NEWEST = REPOSITORY / ".venv-peers" / "lerobot" / "bin" / "python"
PLANS = REPOSITORY / "tests" / "upstream_lerobot_plans.py"
STEPS, KEY = 10, keys(3, [5])


def observations(policy: Policy, checkpoint: str) -> dict[str, np.ndarray]:
    """An episode of one row, (T, 1, ...) a column: recorded vectors, with their constant components, and pictures."""
    recorded, rng = np.load(FIXTURES / checkpoint / "inputs.npz"), np.random.default_rng(0)
    return {name: rng.integers(0, 256, (STEPS, 1, *f.shape), np.uint8) if f.kind == "image" else
            np.resize(recorded[name], (STEPS, 1, *f.shape))
            for name, f in ((name, policy.features[name]) for name in policy.inputs)}


@torch.no_grad()
def acted_here(policy: Policy, n_executed: int, columns: dict[str, np.ndarray], seeds: np.ndarray) -> np.ndarray:
    """Actions of the policy as our parts compute them, (T, A)."""
    n_obs, chunks = policy.window.n_obs_steps, []
    for number, t in enumerate(range(0, STEPS, n_executed)):
        steps = np.maximum(np.arange(t - n_obs + 1, t + 1), 0)  # the first observation fills the history
        window = {name: torch.from_numpy(np.moveaxis(column[steps], 0, 1).copy()) for name, column in columns.items()}
        torch.manual_seed(int(seeds[number]))
        noise = torch.randn(1, *policy.noise_shape)
        chunks.append(policy.plan(window, noise)[0, n_obs - 1:n_obs - 1 + n_executed].numpy())
    return np.concatenate(chunks)[:STEPS]


@torch.no_grad()
def acted_in_process(folder: Path, python: Path, columns: dict[str, np.ndarray]) -> tuple[np.ndarray, int, str]:
    """Actions of the policy as lerobot:PATH, (T, A); the number of steps of a plan that are executed; the version."""
    process = LeRobotProcess(str(folder), python)
    actor, state, actions = remote_actor(RemotePlanner(process)), None, []
    for t in range(STEPS):
        obs = {name: torch.from_numpy(column[t]) for name, column in columns.items()}
        state = actor.start(obs, KEY) if state is None else state
        action, state = actor.act(obs, state)
        actions.append(action.numpy())
    process.close()
    version = process.summary.partition(" of LeRobot ")[2].partition(" ")[0]
    return np.concatenate(actions), process.policy["n_action_steps"], version


def acted_by_lerobot(folder: Path, python: Path, columns: dict[str, np.ndarray], seeds: np.ndarray,
                     place: Path) -> np.ndarray:
    """Actions of the policy by LeRobot's own functions, (T, A)."""
    images = {name: np.moveaxis(column, -1, -3).astype(np.float32) / 255 for name, column in columns.items()
              if column.dtype == np.uint8}
    np.savez(place / "in.npz", **{**columns, **images}, seeds=seeds)
    subprocess.run([python, PLANS, folder, place / "in.npz", place / "out.npz"], check=True, capture_output=True)
    return np.load(place / "out.npz")["actions"]


def main() -> None:
    print("| LeRobot | checkpoint | read into our parts | as `lerobot:PATH` |\n|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        stand_in = write_python(place / "python", "upstream_lerobot.stand_in")
        runs = [(stand_in, name) for name in NAMES if name.endswith("state")]
        runs += [(NEWEST, name) for name in NAMES if NEWEST.exists()]
        for number, (python, checkpoint) in enumerate(runs):
            folder = place / str(number)
            folder.mkdir()
            policy = load_policy(unpacked(FIXTURES / checkpoint, folder))
            columns = observations(policy, checkpoint)
            in_process, n_executed, version = acted_in_process(folder, python, columns)
            n_plans = -(-STEPS // n_executed)
            seeds = plan_seeds(np.repeat(KEY.numpy(), n_plans), np.arange(n_plans))
            expected = acted_by_lerobot(folder, python, columns, seeds, place)
            scale = policy.action_scale.numpy()
            differences = (np.abs((actions - expected) / scale).max() for actions in (
                acted_here(policy, n_executed, columns, seeds), in_process))
            print(f"| {version} | `{checkpoint}` |", " | ".join(f"{d:.1e}" for d in differences), "|", flush=True)


if __name__ == "__main__":
    main()
