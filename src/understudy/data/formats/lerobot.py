"""LeRobot data sets: v3.0 and v2.x are read, v3.0 is written (and v2.1, by `lerobot_v21`).

What LeRobot cannot store is kept in meta/understudy, which lerobot ignores: `last.parquet` (the observations after the
last actions), `episodes.jsonl` (metadata of episodes) and `schema.json` (units, numbers of classes, exact shapes).
Source: huggingface/lerobot v0.4.4, src/lerobot/datasets/{utils,lerobot_dataset,compute_stats,video_utils}.py.
"""

from pathlib import Path

from ...core import UserError
from ..episode import Dataset
from . import interrupted_recording
from .lerobot_write import append, capability, create, write
from .parts.read_errors import first_line

__all__ = ["append", "capability", "create", "open_lerobot", "write"]


def open_lerobot(path: Path) -> Dataset:
    """Opens a folder in a LeRobot format. If its recording was interrupted, its journal's episodes are opened as well.

    Only metadata are read now.
    """
    try:
        return Dataset(interrupted_recording.open_recording(Path(path)))
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # JSON that says anything
        raise UserError("the metadata have a key or a value that LeRobot does not write "
                        f"({type(error).__name__}: {first_line(error)})", where=Path(path) / "meta",
                        hint="correct meta/info.json, or take it from a copy") from error
