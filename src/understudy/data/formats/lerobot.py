"""LeRobot data sets: v3.0 and v2.x are read, v3.0 is written (and v2.1, by lerobot_v21.py), as lerobot itself does.

What that format has no room for is kept in meta/understudy, which lerobot ignores: `last.parquet` (what was seen after
the last action), `episodes.jsonl` (facts of episodes) and `schema.json` (units, choices, exact shapes).
Source: huggingface/lerobot v0.4.4, src/lerobot/datasets/{utils,lerobot_dataset,compute_stats,video_utils}.py.
"""

from .lerobot_read import open_lerobot
from .lerobot_write import append, capability, create, write

__all__ = ["append", "capability", "create", "open_lerobot", "write"]
