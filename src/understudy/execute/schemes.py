"""Named execution schemes: how the plans of a trained policy become actions.

A scheme changes the executor of a method, and for some how it plans. Nothing of it is trained, so the same run can be
evaluated with several schemes: `understudy eval RUN ENV --executor NAME`. The functions are in `learn.execution`,
which is imported only when a scheme is used.
"""

from __future__ import annotations

from dataclasses import dataclass

NOISE = "a head that samples, continuous actions"
CONTINUOUS = "continuous actions"
STEPWISE = "a head that samples step by step, such as Flow or Diffusion"


@dataclass(frozen=True)
class ExecutionScheme:
    """A named way to execute the plans of a policy.

    Args:
        paper: Authors, year and arXiv number, and how the scheme differs from the paper. Empty if there is no paper.
    """

    summary: str
    paper: str = ""
    needs: str = "any policy"


EXECUTION_SCHEMES: dict[str, ExecutionScheme] = {
    "receding-horizon": ExecutionScheme(
        "Execute some steps of a chunk, then plan again.", "Chi et al. 2023, arXiv 2303.04137"),
    "temporal-ensemble": ExecutionScheme(
        "Plan at every step, and average what all chunks contain for the current step.",
        "Zhao et al. 2023, arXiv 2304.13705", CONTINUOUS),
    "adaptive-ensemble": ExecutionScheme(
        "A temporal ensemble in which chunks count more if they agree in direction with the newest one.",
        "Li et al. 2024 (CogACT), arXiv 2411.19650, whose ensemble is over the last few chunks alone", CONTINUOUS),
    "chunk-blending": ExecutionScheme(
        "Average each new chunk with the rest of the old one.",
        "the exponential average in Liu et al. 2024, arXiv 2408.17355", CONTINUOUS),
    "bidirectional-decoding": ExecutionScheme(
        "Draw 15 plans, and take one that continues the last chunk and is typical of the policy.",
        "Liu et al. 2024, arXiv 2408.17355, here without the weak policy (the method bid-flow-policy has it)", NOISE),
    "adaptive-horizon": ExecutionScheme("Draw 8 plans, and execute one of them until they disagree.", needs=NOISE),
    "adaptive-chunking": ExecutionScheme(
        "Plan at every step, and keep the old chunk for as long as the new one agrees with it.",
        "So et al. 2025, arXiv 2510.12392"),
    "self-guided-chunking": ExecutionScheme(
        "Adaptive chunking of plans that are moved away from those for the last observation.",
        "So et al. 2025, arXiv 2510.12392, whose guidance scale is tuned for each task; 1 here", STEPWISE),
    "real-time-chunking": ExecutionScheme(
        "Execute the old chunk while the new one is computed, and make the new one agree with it.",
        "Black et al. 2025, arXiv 2506.07339", STEPWISE),
    "past-verification": ExecutionScheme(
        "Draw 10 plans, and execute the one whose past steps are closest to the executed actions.",
        "Torne et al. 2025, arXiv 2505.09561", f"{NOISE}, chunks that begin in the past"),
    "low-pass": ExecutionScheme(
        "Receding horizon with an exponential average of the executed actions.", needs=CONTINUOUS),
    "jerk-limit": ExecutionScheme(
        "Receding horizon with limits on the change, the acceleration and the jerk of the executed actions.",
        "averages as in Biagiotti and Melchiorri 2012, Control Engineering Practice", CONTINUOUS),
}
