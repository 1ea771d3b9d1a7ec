"""The results of `understudy eval` that a run stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..parts.policies import ACTING


def stored_evaluations(run: Path, mark: str) -> list[dict[str, Any]]:
    """Returns the stored results of a fixed number of rollouts: the newest of each environment, seed and options.

    Args:
        run: The folder of the run.
        mark: The digest of the checkpoint that was evaluated. Results of others are left out.
    """
    newest: dict[str, dict[str, Any]] = {}
    for file in sorted((run / "eval").glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line.get("mark") == mark and isinstance(line.get("return"), dict):  # others have no fixed number
                newest[json.dumps([line["env"], line["seed"], *(line.get(name) for name in ACTING)])] = line
    return list(newest.values())
