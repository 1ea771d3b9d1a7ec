"""LeRobot data sets: v3.0 and v2.x are read, v3.0 is written (and v2.1, by lerobot_v21.py), as lerobot itself does.

What that format has no room for is kept in meta/understudy, which lerobot ignores: `last.parquet` (what was seen after
the last action), `episodes.jsonl` (facts of episodes) and `schema.json` (units, choices, exact shapes).
Source: huggingface/lerobot v0.4.4, src/lerobot/datasets/{utils,lerobot_dataset,compute_stats,video_utils}.py.
"""

from pathlib import Path

from ...core import UserError
from ..episode import Dataset
from . import interrupted_recording
from .lerobot_write import append, capability, create, write
from .read_errors import first_line

__all__ = ["append", "capability", "create", "open_lerobot", "write"]


def open_lerobot(path: Path) -> Dataset:
    """Opens a folder, and of a recording that was interrupted also what is still in its journal.

    Only what describes the data is read. Raises UserError if that contradicts itself.
    """
    try:
        return Dataset(interrupted_recording.open_recording(Path(path)))
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # JSON that says anything
        raise UserError("the metadata have a key or a value that LeRobot does not write "
                        f"({type(error).__name__}: {first_line(error)})", where=Path(path) / "meta",
                        hint="correct meta/info.json, or take it from a copy") from error
