"""Runs understudy in a process in which LeRobot's robots can be imported (run by tests/robots/test_lerobot.py):

    python upstream_lerobot_robots.py COMMAND ...
    python upstream_lerobot_robots.py python FILE ...

LeRobot needs torchvision, for which tests/upstream_lerobot.py has a stand-in.
"""

import runpy
import sys

import scservo_sdk
from upstream_lerobot import stand_in

from understudy.cli import main


def wait_longer() -> None:
    """Longer waits for packets: a machine that does many other things stands still for longer than LeRobot waits."""
    scservo_sdk.PortHandler.isPacketTimeout = lambda port: port.getTimeSinceStart() > port.packet_timeout + 1000


if __name__ == "__main__":
    stand_in()
    wait_longer()
    if sys.argv[1] == "python":
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.exit(main(sys.argv[1:]))
