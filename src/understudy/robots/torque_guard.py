"""A separate process that switches the torque of an arm off if the main program dies."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress

from . import torque_guard_process
from .base import RobotError
from .motors_bus import MotorsBus


class TorqueGuard:
    """Starts a process that waits for the end of this one, in a session of its own.

    `kill -9`, a crash and a second Ctrl-C end this process without a goodbye. The guard then opens the port, which
    nobody uses any more, and switches the torque off. A process that is stopped (Ctrl-Z) or waits for memory has not
    ended: its servos hold their last goal.

    Args:
        bus: The servos. The port must be open.
        place: Type and port, for messages.
    """

    def __init__(self, bus: MotorsBus, place: str):
        packet = bus.sync_write_packet("Torque_Enable", dict.fromkeys(bus.motors, 0))
        self._process = subprocess.Popen([sys.executable, "-P", torque_guard_process.__file__], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        task = {"port": bus.port_name, "baudrate": bus.baudrate, "packet": packet.hex(), "place": place}
        try:
            with suppress(OSError):
                self._process.stdin.write(json.dumps(task).encode() + b"\n")
                self._process.stdin.flush()
            with self._process.stdout as ready:
                if not ready.readline():
                    raise RobotError("the process that releases the arm after a crash cannot be started", where=place,
                                     hint="see the messages above. --robot.disable-torque-on-disconnect false does "
                                          "without it")
        except BaseException:
            self.abandon()
            raise

    def end(self, released: bool) -> None:
        """Ends the guard process, after the port was closed.

        Args:
            released: Whether the torque is off. Otherwise the guard tries to switch it off, in the background.
        """
        assert self._process.stdin is not None
        with suppress(OSError):
            if released:
                self._process.stdin.write(torque_guard_process.GOODBYE)
            self._process.stdin.close()
        if released:
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self.abandon()

    def abandon(self) -> None:
        """Ends the guard process at once, because this process continues to use the port."""
        self._process.kill()
        self._process.wait()
