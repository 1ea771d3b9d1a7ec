"""Does training in bf16 cost success? python benchmarks/bf16_success.py

Diffusion policies with the U-Net of 5 M weights on *fork*, trained in bf16 and in fp32 from the same seeds and on the
same batches, then run in closed loop from the same starts. The difference of the success rates has an interval over
training seeds and starts. The rule, written before the first run: at most 0.05 of success may be lost; the interval
says what loss is not excluded. Cells are kept in results/bf16-success/: a run that was stopped goes on. About 6
minutes of a core.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import measure

# Few enough updates that success is not at its ceiling, where a loss would not show.
SEEDS, STEPS, BATCH, EPISODES, SHOWN = 6, 200, 64, 100, 100
PRECISIONS = ("bf16", "fp32")


def method(precision: str):
    from understudy.methods.generative.diffusion_policy import diffusion_policy

    recipe = diffusion_policy()
    optimizer = replace(recipe.learner.optimizer, precision=precision, warmup_steps=50)
    return replace(recipe, learner=replace(recipe.learner, steps=STEPS, batch_size=BATCH, optimizer=optimizer))


def cell(precision: str, seed: int) -> dict:
    """Trains and runs one; "success" of each episode, and seconds of training."""
    from understudy import PolicyActor, make, rollout
    from understudy.execute.planners import FixedBatch
    from understudy.learn.fit_method import fit_method

    env, recipe = make("fork", EPISODES), method(precision)
    demonstrations = rollout(env.expert(), env, SHOWN, seed=1).filter(lambda e: e.metadata["success"])
    results = []
    seconds = measure.cpu(lambda: results.append(fit_method(recipe, demonstrations, seed)))
    policy = results[0].policy
    rollouts = rollout(PolicyActor(FixedBatch(policy, EPISODES), recipe.executor), env, EPISODES, seed=2)
    return {"precision": precision, "seed": seed, "steps": STEPS, "batch": BATCH, "shown": SHOWN,
            "weights": sum(p.numel() for p in policy.parameters()), "seconds": seconds,
            "success": [float(e.metadata["success"]) for e in rollouts]}


def main() -> None:
    measure.one_thread()
    import torch

    from understudy.evaluate.stats import two_level_difference
    from understudy.files import read_json, write_json
    from understudy.learn.optimizer import has_fast_bf16

    torch.set_num_threads(1)
    if not has_fast_bf16(torch.device("cpu")):
        measure.save("bf16_success", [measure.Line("success, bf16 against fp32", note="this processor is not fast at "
                                                   "bf16, so training takes fp32 by default")])
        return
    folder = measure.RESULTS / "bf16-success"
    folder.mkdir(parents=True, exist_ok=True)
    cells: dict[str, list[dict]] = {p: [] for p in PRECISIONS}
    for seed in range(SEEDS):
        for precision in PRECISIONS:
            path = folder / f"{precision}-{seed}.json"
            if not path.exists():
                write_json(path, cell(precision, seed))
            cells[precision].append(cell_results := read_json(path))
            print(f"{precision} seed {seed}: {sum(cell_results['success']):.0f} of {len(cell_results['success'])}, "
                  f"{cell_results['seconds']:.0f} s", file=sys.stderr, flush=True)
    gap, p = two_level_difference(*([c["success"] for c in cells[k]] for k in ("fp32", "bf16")))
    rates = {k: measure.Figure.of([sum(c["success"]) / len(c["success"]) for c in cell_results], "of starts")
             for k, cell_results in cells.items()}
    seconds = {k: [c["seconds"] for c in cells[k]] for k in cells}
    weights = cells["bf16"][0]["weights"] / 1e6
    what = f"fork, diffusion-policy ({weights:.2g} M weights), {STEPS} updates, {SEEDS} training seeds"
    measure.save("bf16_success", [
        measure.Line(f"{what}: success in bf16 beside fp32", rates["bf16"], rates["fp32"],
                     note=f"both ours; the median seed, {EPISODES} starts each"),
        measure.Line(f"{what}: success lost by bf16", measure.Figure(gap.estimate, gap.low, gap.high, "of starts"),
                     bound=0.05, note=f"95 % interval over seeds and starts [{gap.low:.3f}, {gap.high:.3f}], "
                                      f"p = {p:.2g}"),
        measure.compared(f"{what}: training", seconds, "bf16", "fp32", amount=STEPS * BATCH, unit="samples/s",
                         note="both ours")], more={"cells": str(folder.name)})


if __name__ == "__main__":
    main()
