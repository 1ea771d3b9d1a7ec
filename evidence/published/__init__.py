"""Published numbers, and the same here: which cells there are, how they run, and the page about them."""

from .cells import CELLS, Cell
from .figures import cells, interval, load, status
from .markdown import page
from .running import run

__all__ = ["CELLS", "Cell", "cells", "interval", "load", "page", "run", "status"]
