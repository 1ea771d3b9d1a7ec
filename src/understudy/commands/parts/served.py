"""Connects commands to policies that are served."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import UserError
from ...serve.address import lerobot_name, served_address

if TYPE_CHECKING:
    from ...serve.client import Client
    from ...serve.lerobot_process import LeRobotProcess

LEROBOT_PYTHON = "UNDERSTUDY_LEROBOT_PYTHON"  # environment variable with the value of --lerobot-python
LEROBOT_DEVICE = "UNDERSTUDY_LEROBOT_DEVICE"  # and with that of --device


def changed_checkpoint(run: Path | str) -> str | None:
    """Returns the warning if a server has changed its checkpoint since this process connected.

    Returns:
        A sentence, or None for a run, and for a server that still has the same checkpoint.
    """
    if (address := served_address(run)) is None:
        return None
    checkpoints = served_client(address).checkpoints
    if len(set(checkpoints)) < 2:
        return None
    return f"{address} changed its checkpoint meanwhile: {', then '.join(checkpoints)}"


def served_client(address: str) -> Client | LeRobotProcess:
    """Returns the connection of this process to a server, or to a process of LeRobot.

    It is closed when the process ends.
    """
    return _connect(address, os.environ.get(LEROBOT_PYTHON), os.environ.get(LEROBOT_DEVICE, "auto"))


def set_lerobot_options(python: Path | None, device: str) -> None:
    """Sets how policies of LeRobot are opened, here and in the processes of --workers.

    Args:
        python: The Python of an environment with LeRobot. None for that of the environment variable.
    """
    os.environ[LEROBOT_DEVICE] = device
    if python is not None:
        command = shutil.which(python.expanduser())
        os.environ[LEROBOT_PYTHON] = str(Path(command or python).absolute())


@cache
def _connect(address: str, python: str | None, device: str) -> Client | LeRobotProcess:
    try:
        from ...serve.lerobot_process import LeRobotProcess
        from ...serve.remote import connect_policy
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed", where=address,
                        hint="pip install 'understudy[serve]'") from None
    if (name := lerobot_name(address)) is None:
        client = connect_policy(address)
    elif python is None:
        raise UserError("LeRobot runs in an environment of its own, and none is named", where=address,
                        hint="name its Python: --lerobot-python ~/lerobot/.venv/bin/python")
    else:
        client = LeRobotProcess(name, python, device)
        print(f"{address}: {client.summary}", file=sys.stderr)
    atexit.register(client.close)
    return client
