"""Rollouts of the bundled toys, 256 environments at once against a plain loop over one: python benchmarks/rollouts.py

Both sides play the same weights in the same environment and draw the same noise; the plain loop has no executor and
no padding: it plans at batch 1, carries out the chunk, and plans again. Our side plans with the policy as it is and
with the ONNX file that `understudy export` writes of it, in fp32 both; the file's plans are the policy's to rounding.
Weights are untrained: how good the actions are costs no time.
"""

from __future__ import annotations

import measure

measure.one_thread()

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from understudy import envs  # noqa: E402
from understudy.core import keys  # noqa: E402
from understudy.deploy import onnx  # noqa: E402
from understudy.evaluate.recording import UniformRandomActor  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.planners import FixedBatch  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.policy import Policy  # noqa: E402

ROWS, GOAL = 256, 50.0


@torch.no_grad()
def plain(policy: Policy, method, env, episodes: int) -> int:
    """Steps of `episodes` episodes, one after another."""
    row, steps = torch.arange(1), 0
    for number in range(episodes):
        key = keys(0, [number])
        obs, done, plans = env.reset(row, key), False, torch.zeros_like(key)
        windows = {k: obs[k].float().unsqueeze(1).expand(-1, policy.window.n_obs_steps, *obs[k].shape[1:])
                for k in policy.inputs}
        while not done:
            chunk = policy.plan(windows, policy.noise(key, plans))
            plans = plans + 1
            for i in range(method.executor.skip, method.executor.skip + method.executor.n_action_steps):
                out = env.step(chunk[:, i])
                windows = {k: torch.cat([v[:, 1:], out.obs[k].float().unsqueeze(1)], 1) for k, v in windows.items()}
                steps, done = steps + 1, bool(out.terminated | out.truncated)
                if done:
                    break
    return steps


def lines(chosen: str, toy: str, goal: float | None, episodes: int, alone: int, repeats: int) -> list[measure.Line]:
    """`episodes` of our side, `alone` of the plain loop's."""
    demonstrations = rollout(UniformRandomActor(envs.make(toy, 16)), envs.make(toy, 16), 16)
    method = find_method(chosen, demonstrations.features())
    torch.manual_seed(0)
    policy = Policy(method.policy, demonstrations.features()).fit_statistics(demonstrations).eval()
    with tempfile.TemporaryDirectory() as place:
        error = onnx.export(policy, Path(place) / "policy.onnx", method.executor)
        file = onnx.load(Path(place) / "policy.onnx")
    many, one, steps = envs.make(toy, ROWS), envs.make(toy, 1), {}

    def ours(name, planner):
        def call():
            steps[name] = sum(
                map(len, rollout(PolicyActor(FixedBatch(planner, ROWS), method.executor), many, episodes))
            )

        return call

    def roll_plain():
        steps["plain"] = plain(policy, method, one, alone)

    seconds = measure.interleaved({"file": ours("file", file), "policy": ours("policy", policy), "plain": roll_plain},
                                  repeats, warm=0)
    each = {name: [s / steps[name] for s in values] for name, values in seconds.items()}
    return [measure.compared(f"{chosen} on {toy}: ONNX file", each, "file", "plain", amount=1, unit="steps/s",
                             goal=goal, note=f"its plans are within {error:.1e} of the exact ones"),
            measure.compared(f"{chosen} on {toy}: the policy as it is", each, "policy", "plain", amount=1,
                             unit="steps/s", goal=goal)]


def main() -> None:
    torch.set_num_threads(1)
    lines_ = [line for toy in ("fork", "particle", "push") for line in lines("bc", toy, GOAL, 512, 4, measure.REPEATS)]
    measure.save("rollouts", lines_ + lines("diffusion-policy", "fork", None, 256, 1, 3), packages=(
        "torch", "numpy", "onnxruntime"))


if __name__ == "__main__":
    main()
