"""docs/real-arm.md, command by command in a terminal, with emulated arms and small budgets."""

import re

import pytest
from fixtures.pages import blocks, commands
from folders import REPOSITORY

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("websockets", reason="extra serve not installed")

PAGE = REPOSITORY / "docs" / "real-arm.md"
LEFT_OUT = ("robot find-port", "robot find-cameras")  # they ask a person to pull a cable, and to look
ADDED = {  # budgets, and what a busy machine needs
    "robot teleoperate": "--teleop-time-s 1", "record": "--episode-time-s 1.5 --warmup-time-s 0.5 --reset-time-s 0.5",
    "train": "--steps 2", "act": "--episode-time-s 1 --max-bad-share 1", "eval": "--episode-time-s 1"}
CALIBRATING = [("middle of its range, and press enter", 1, "\n"), ("Then press enter", 16, "\n")]
ANSWERS = {"robot calibrate": CALIBRATING, "act": [("press enter (q", 0.5, "\n")],
           "eval": [("enter: begin", 0.5, "\n"), ("1", 3, "1\n"), ("enter: begin", 0.5, "end\n"),
                    ("yes", 0.5, "yes\n")]}


def budget(command):
    """The command for emulated arms and an emulated camera, with 4 episodes instead of 20."""
    for old, new in (("type: opencv, index_or_path: 0", "type: emulated"),
                     ("/dev/ttyACM0", "$FOLLOWER"), ("/dev/ttyACM1", "$LEADER"),
                     ("--episodes 20", "--episodes 4"), ("--delete 3 11", "--delete 3"),
                     ("--episodes 3", "--episodes 1"), ("--host 0.0.0.0", "--port 8124"),
                     ("ws://gpu:8000", "ws://127.0.0.1:8124")):
        command = re.sub(old, new, command)
    verb = re.search(r"understudy ((?:robot )?\S+)", command)
    return f"{command} {ADDED.get(verb[1], '')}" if verb else command


@pytest.mark.slow
def test_the_page_of_a_real_arm_is_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import real_arm_session as session
    terminal = session.Terminal(tmp_path)
    done = []
    try:
        for step in session.STEPS[:1]:
            for command in step.commands:
                terminal.run(command, [])
        for block in blocks(PAGE):
            for command in commands(block) if block.language == "console" else ():
                if "emulate" in command or any(name in command for name in LEFT_OUT):
                    continue
                verb = (re.search(r"understudy ((?:robot )?\S+)", command) or [None, None])[1]
                if verb == "serve":
                    terminal.run(f"{budget(command)} > address.txt 2> server.log &", [])
                    terminal.run("until grep -q served address.txt; do sleep 1; done", [])
                else:
                    terminal.run(budget(command), list(ANSWERS.get(verb, [])))
                done.append(verb)
        terminal.run("kill $!; wait $!", [])
    finally:
        terminal.close()
    assert done == ["robot calibrate", "robot calibrate", "robot teleoperate", "record", "inspect", "audit", "replay",
                    "view", "train", "plot", "act", "eval", None, "serve", "act"]
    text = terminal.text()
    assert len(re.findall(r"episode 0: \d+ steps(?! came late)", text)) == 2  # here, and with the server
    assert "4 episodes, " in text
