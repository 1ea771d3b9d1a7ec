"""Rollouts of the bundled toys, 256 environments at once against a plain loop over one: python benchmarks/rollouts.py

Both sides play the same weights in the same environment and draw the same noise; the plain loop has no executor and
no padding: it plans at batch 1, carries out the chunk, and plans again. Weights are untrained: how good the actions are
costs no time.
"""

from __future__ import annotations

import measure

measure.one_thread()

import torch  # noqa: E402

from understudy import envs  # noqa: E402
from understudy.core import keys  # noqa: E402
from understudy.evaluate.record import Uniform  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.execute.actor import Plays  # noqa: E402
from understudy.execute.planners import Fixed  # noqa: E402
from understudy.policy import Policy  # noqa: E402
from understudy.recipes import find  # noqa: E402

ROWS, GOAL = 256, 50.0


@torch.no_grad()
def plain(policy: Policy, method, env, episodes: int) -> int:
    """Steps of `episodes` episodes, one after another."""
    row, steps = torch.arange(1), 0
    for number in range(episodes):
        key = keys(0, [number])
        obs, done, plans = env.reset(row, key), False, torch.zeros_like(key)
        seen = {k: obs[k].float().unsqueeze(1).expand(-1, policy.window.obs, *obs[k].shape[1:])
                for k in policy.inputs}
        while not done:
            chunk = policy.plan(seen, policy.noise(key, plans))
            plans = plans + 1
            for i in range(method.run.skip, method.run.skip + method.run.execute):
                out = env.step(chunk[:, i])
                seen = {k: torch.cat([v[:, 1:], out.obs[k].float().unsqueeze(1)], 1) for k, v in seen.items()}
                steps, done = steps + 1, bool(out.terminated | out.truncated)
                if done:
                    break
    return steps


def line(recipe: str, toy: str, goal: float | None, episodes: int, alone: int, repeats: int) -> measure.Line:
    """`episodes` of our side, `alone` of the plain loop's."""
    shown = rollout(Uniform(envs.make(toy, 16)), envs.make(toy, 16), 16)
    method = find(recipe, shown.features())
    torch.manual_seed(0)
    policy = Policy(method.policy, shown.features()).fit(shown).eval()
    many, one, steps = envs.make(toy, ROWS), envs.make(toy, 1), {}

    def ours():
        steps["ours"] = sum(map(len, rollout(Plays(Fixed(policy, ROWS), method.run), many, episodes)))

    def theirs():
        steps["plain"] = plain(policy, method, one, alone)

    seconds = measure.interleaved({"ours": ours, "plain": theirs}, repeats, warm=0)
    each = {name: [s / steps[name] for s in values] for name, values in seconds.items()}
    return measure.compared(f"{recipe} on {toy}", each, "ours", "plain", amount=1, unit="steps/s", goal=goal)


def main() -> None:
    torch.set_num_threads(1)
    toys = ("fork", "particle", "push")
    lines = [line("bc", toy, GOAL, 512, 4, measure.REPEATS) for toy in toys]
    lines += [line("diffusion-policy", toy, None, 256, 1, 3) for toy in ("fork",)]
    measure.save("rollouts", lines)


if __name__ == "__main__":
    main()
