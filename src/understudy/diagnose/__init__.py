"""Why a policy fails although its loss fell: checks of a run, its data, and rollouts."""

from .base import RunDiagnosis, RunFinding

__all__ = ["RunDiagnosis", "RunFinding"]
