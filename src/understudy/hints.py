"""Commands in messages, quoted for a shell."""

from __future__ import annotations

import shlex


def command_line(*parts: object) -> str:
    """Joins the parts of a command of understudy, so that it can be pasted into a shell, with any path.

    Args:
        *parts: The arguments after `understudy`.
    """
    return shlex.join(["understudy", *map(str, parts)])
