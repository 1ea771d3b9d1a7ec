"""One cell of benchmarks/return_curves.py with a single file of CleanRL, which calls this script.

The file does not evaluate its policy. It is judged when the file logs its speed, by a stand-in for the writer of
TensorBoard.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import torch

torch.set_num_threads(1)


class Curve:
    """The returns after every so many steps, and the CPU seconds without those of the evaluations."""

    def __init__(self, name: str, every: int, starts: list[int]):
        self.judged, self.every, self.starts = gymnasium.make(name), every, starts
        self.curve: dict[str, list[float]] = {"steps": [], "returns": [], "cpu_seconds": []}
        self.began, self.excluded = time.process_time(), 0.0

    def writer(self, folder: str) -> SimpleNamespace:
        return SimpleNamespace(add_text=lambda *args: None, add_scalar=self.look, close=lambda: None)

    def look(self, tag: str, value: float, step: int) -> None:
        if tag == "charts/SPS" and step % self.every == 0:
            now, script = time.process_time(), sys._getframe(1).f_globals
            self.curve["steps"].append(step)
            with torch.no_grad():
                returns = [self.judge(script["actor"], seed) for seed in self.starts]
            self.curve["returns"].append(sum(returns) / len(returns))
            self.curve["cpu_seconds"].append(round(now - self.began - self.excluded, 2))
            self.excluded += time.process_time() - now

    def judge(self, actor, seed: int) -> float:
        """The return of the deterministic policy from one start."""
        plan = (lambda obs: actor.get_action(obs)[2]) if hasattr(actor, "get_action") else actor
        obs, _ = self.judged.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            obs, reward, terminated, truncated, _ = self.judged.step(plan(torch.from_numpy(obs)[None])[0].numpy())
            total, is_over = total + float(reward), terminated or truncated
        return total


def main() -> None:
    repository, method, name, n_steps, every, seed, out, *starts = sys.argv[1:]
    curve = Curve(name, int(every), list(map(int, starts)))
    sys.modules["torch.utils.tensorboard"] = SimpleNamespace(SummaryWriter=curve.writer)  # ty: ignore
    sys.path.insert(0, repository)
    sys.argv = [method, "--env-id", name, "--total-timesteps", str(int(n_steps) + 1), "--learning-starts", "1000",
                "--seed", seed, "--no-cuda"]
    runpy.run_path(str(Path(repository) / "cleanrl" / f"{method}_continuous_action.py"), run_name="__main__")
    Path(out).write_text(json.dumps(curve.curve, indent=1) + "\n")


if __name__ == "__main__":
    main()
