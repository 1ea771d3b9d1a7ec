"""Converts LeRobot v2.1 data sets with lerobot's own converter, in place, and writes what lerobot reads then to one
.npz each (run by a test, in a process of its own):

    python upstream_lerobot_v21.py FOLDER [FOLDER ...]

The converter reads lines of JSON with a package, and takes an exception from another, that reading itself does not need
(jsonlines, requests): where they are not installed, these lines stand in.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from upstream_lerobot import Missing, read, stand_in


@contextmanager
def lines(path, mode="r"):
    with open(path, encoding="utf-8") as file:
        yield [json.loads(line) for line in file]


if __name__ == "__main__":
    stand_in()
    for name, attributes in (("jsonlines", {"open": lines}), ("requests", {"HTTPError": OSError})):
        if importlib.util.find_spec(name) is None:
            Missing(name, **attributes)
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    for folder in map(Path, sys.argv[1:]):
        convert_dataset(folder.name, root=folder.parent, push_to_hub=False)
        np.savez(f"{folder}.npz", **read(str(folder)))
