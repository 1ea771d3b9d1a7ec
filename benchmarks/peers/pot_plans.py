"""Transport plans of POT for fixed costs, which tests compare.

    .venv-peers/pot/bin/python benchmarks/peers/pot_plans.py tests/fixtures/pot_plans.json

The points are sines.
"""

import json
import sys

import numpy as np
import ot

SIZES, EPSILON, ITERATIONS = ((5, 5), (4, 7)), 0.1, 2000


def sines(shape, phase: float) -> np.ndarray:
    """Numbers from -1 to 1 without a pattern."""
    return np.sin(1.7 * np.arange(1, np.prod(shape, dtype=int) + 1) ** 1.3 + phase).reshape(shape)


def main(path: str) -> None:
    plans = []
    for n, m in SIZES:
        cost = ot.dist(sines((n, 2), 0), sines((m, 2), 9), metric="euclidean")
        plan = ot.sinkhorn(np.full(n, 1 / n), np.full(m, 1 / m), cost, EPSILON, method="sinkhorn_log",
                           numItermax=ITERATIONS, stopThr=1e-15)
        exact = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), cost)
        plans.append({"cost": cost.tolist(), "sinkhorn": plan.tolist(), "exact": exact.tolist()})
    with open(path, "w") as file:
        json.dump(plans, file)


if __name__ == "__main__":
    main(sys.argv[1])
