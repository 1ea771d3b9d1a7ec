"""One cell of benchmarks/return_curves.py with a single file of CleanRL, which calls this script.

The file does not evaluate its policy. It is judged when the file logs its speed, by a stand-in for the writer of
TensorBoard.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from curve import Curve

torch.set_num_threads(1)


class Finished(Exception):
    pass


def logged_speed(curve: Curve, tag: str, value: float, step: int) -> None:
    """Evaluates the policy of the script that logs its speed, and ends the script if the training is over."""
    if tag == "charts/SPS":
        actor = sys._getframe(1).f_globals["actor"]
        plan = (lambda obs: actor.get_action(obs)[2]) if hasattr(actor, "get_action") else actor
        with torch.no_grad():
            if not curve.look(step, lambda obs: plan(torch.from_numpy(obs).float()[None])[0].numpy()):
                raise Finished


def main() -> None:
    repository, method, end, name, n_steps, every, seed, out, *starts = sys.argv[1:]
    curve = Curve(name, every, starts, float(end))
    writer = SimpleNamespace(add_text=lambda *args: None, add_scalar=partial(logged_speed, curve), close=lambda: None)
    sys.modules["torch.utils.tensorboard"] = SimpleNamespace(SummaryWriter=lambda folder: writer)  # ty: ignore
    sys.path.insert(0, repository)
    sys.argv = [method, "--env-id", name, "--total-timesteps", str(int(n_steps) + 1), "--learning-starts", "1000",
                "--seed", seed, "--no-cuda"]
    with suppress(Finished):
        runpy.run_path(str(Path(repository) / "cleanrl" / f"{method}_continuous_action.py"), run_name="__main__")
    curve.write(out)


if __name__ == "__main__":
    main()
