"""How the robot of a studio is set up: its arms, whether each is calibrated, and the commands that do it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core import UserError
from ...data.formats import open_dataset
from ...files import read_json
from ...robots.calibration import find_calibration
from ...robots.drift import TOLERANCE
from ...robots.registry import NamedArm, RobotConfig, TeleoperatorConfig, named_arms
from ...robots.servo_arm import ARM_TYPES
from .jobs import Job
from .live import LiveSession, Picture
from .project import Project
from .robot_live import PageCommands, RobotLiveSession

FIND_PORT, MOTORS, CALIBRATE, CHECK, TELEOPERATE = (  # titles of jobs
    "Find port", "Set up motors", "Calibrate", "Check the arms", "Teleoperate")
REPORT = "setup/check.json"  # what `understudy robot check --json` has printed last
DEVICES = {"robot": "Robot arm", "teleop": "Leader arm"}
Configs = tuple[RobotConfig, TeleoperatorConfig]


@dataclass(frozen=True)
class SetupArm:
    """An arm of servos that can be set up: of the robot, or of what moves it.

    Attributes:
        named: Its name, and its port, which is empty if it is not known.
        calibration: The file of its calibration, if there is one.
    """

    named: NamedArm
    calibration: Path | None

    @property
    def title(self) -> str:
        return DEVICES[self.named.device] + (f", {self.named.side}" if self.named.side else "")

    @property
    def is_ready(self) -> bool:
        return bool(self.named.port) and self.calibration is not None

    @property
    def port_option(self) -> str:
        """The option of the project that names its port."""
        side = f"{self.named.side}-arm-" if self.named.side else ""
        return f"--{self.named.device}.{side}port"

    @property
    def words(self) -> list[str]:
        """The options that name this arm alone, for `understudy robot`."""
        named = self.named
        device, name, folder = f"--{named.device}", named.id, named.folder
        return [device, named.kind.name, f"{device}.port", named.port,
                *([f"{device}.id", name] if name else []),
                *([f"{device}.calibration-dir", str(folder)] if folder else [])]


@dataclass
class Dialog:
    """What a command with `--dialog` says and asks.

    Attributes:
        arm: The arm that it is about. None if it is about all.
        lines: What it has printed.
        question: What it waits for. None while it works.
        is_choice: Whether the answer is yes or no. Otherwise it is Enter.
        positions: The lowest, the present and the highest position of each joint that a person moves (steps).
        port: The port that it has found.
    """

    arm: SetupArm | None = None
    lines: list[str] = field(default_factory=list)
    question: str | None = None
    is_choice: bool = False
    positions: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    port: str | None = None

    def hear(self, line: str) -> None:
        """Takes in a line of the command."""
        if not line.startswith("{"):
            self.lines += [line] if line else []
            return
        event = json.loads(line)
        if "ask" in event or "confirm" in event:
            self.is_choice = "confirm" in event
            self.question = event["confirm" if self.is_choice else "ask"]
        self.positions = event.get("positions", self.positions)
        self.port = event.get("port", self.port)


@dataclass(frozen=True)
class JointFinding:
    """What a check says about a joint of an arm.

    Attributes:
        amount: How far it has moved, or is outside its range (degrees).
        is_wrong: Whether something is to be done about it.
    """

    joint: str
    text: str
    amount: float
    is_wrong: bool


@dataclass(frozen=True)
class ArmFindings:
    """What a check says about an arm."""

    title: str
    joints: tuple[JointFinding, ...]

    @property
    def differing(self) -> list[JointFinding]:
        return [joint for joint in self.joints if joint.is_wrong]


@dataclass
class RobotSetup:
    """Sets up the robot of a project.

    Args:
        read: Reads the options of the project (`Project.robot`).
        make: Makes the session of the robot from these options, without connecting.
        trust: Packages with code that may run.

    Attributes:
        dialog: What the last command says and asks.
    """

    project: Project
    read: Callable[[Sequence[str]], Configs]
    make: Callable[[Project], LiveSession]
    trust: Sequence[str] = ()
    dialog: Dialog = field(default_factory=Dialog, init=False)
    _read: tuple[list[str], Configs] | None = field(default=None, init=False)

    @property
    def configs(self) -> Configs:
        if self._read is None or self._read[0] != self.project.robot:  # reading takes a while
            self._read = self.project.robot, self.read(self.project.robot)
        return self._read[1]

    def arms(self) -> list[SetupArm]:
        """The arms of servos. There are none if the robot and what moves it are of other kinds."""
        return setup_arms(*self.configs)

    @property
    def is_ready(self) -> bool:
        """Whether each arm has a port and a calibration."""
        return all(arm.is_ready for arm in self.arms())

    def open(self) -> LiveSession:
        """Makes the session of the robot, or one that says why there is none."""
        try:
            return self.make(self.project)
        except UserError as error:
            return RobotToSetUp(self.project, str(error) if self.is_ready else None)

    def check(self) -> Job:
        """Compares all arms with their calibrations."""
        self.forget_findings()
        devices = {arm.named.device for arm in self.arms()}
        return Job(CHECK, [["robot", "check", *self._words(*sorted(devices)), "--json"]], output=REPORT)

    def find_port(self, arm: SetupArm) -> Job:
        return self._lead(FIND_PORT, arm, "find-port")

    def set_up_motors(self, arm: SetupArm) -> Job:
        return self._lead(MOTORS, arm, "setup", *arm.words)

    def calibrate(self, arm: SetupArm) -> Job:
        return self._lead(CALIBRATE, arm, "calibrate", *arm.words)

    def teleoperate(self) -> Job:
        """Lets the leader move the robot, without recording."""
        trust = ["--trust", *self.trust] if self.trust else []
        return self._lead(TELEOPERATE, None, "teleoperate", *self._words("robot", "teleop"), *trust)

    def _lead(self, title: str, arm: SetupArm | None, *words: str) -> Job:
        self.dialog = Dialog(arm)
        return Job(title, [["robot", *words, "--dialog"]], hear=self.dialog.hear)

    def take_over(self, job: Job) -> bool:
        """Takes over what a job has found. Returns whether the robot has changed, and must be made again."""
        arm, port = self.dialog.arm, self.dialog.port
        if job.title == FIND_PORT and job.state == "done" and arm is not None and port is not None:
            self.project.set_robot_option(arm.port_option, port)
            return True
        return job.title == CALIBRATE and job.state == "done"

    def _words(self, *devices: str) -> list[str]:
        """The options of devices, without cameras."""
        return [word for words in self.project.robot_options for word in words
                if words[0].partition(".")[0][2:] in devices and words[0] != "--robot.cameras"]

    def forget_findings(self) -> None:
        """Makes what was found before no longer count."""
        report = self.project.folder / REPORT
        report.parent.mkdir(exist_ok=True)
        report.unlink(missing_ok=True)

    def findings(self) -> list[ArmFindings]:
        """What the last check has found. Nothing if an arm has another port or was calibrated since."""
        path, arms = self.project.folder / REPORT, self.arms()
        if not path.exists() or not self.is_ready:
            return []
        documents, checked = read_json(path)["arms"], path.stat().st_mtime
        if [d["port"] for d in documents] != [arm.named.port for arm in arms] or any(
                arm.calibration is None or arm.calibration.stat().st_mtime > checked for arm in arms):
            return []
        return [ArmFindings(arm.title, tuple(joint_finding(*servo) for servo in document["servos"].items()))
                for arm, document in zip(arms, documents, strict=True)]


def setup_arms(*configs: RobotConfig | TeleoperatorConfig) -> list[SetupArm]:
    """Returns the arms of servos of a robot and a teleoperator. Their ports need not be known."""
    arms = []
    for config in configs:
        if config.type.removeprefix("bi_") not in ARM_TYPES:
            continue
        ports = {name: getattr(config, name) or "" for name in ("port", "left_arm_port", "right_arm_port")}
        for named in named_arms(replace(config, **ports)):
            folder = named.folder and named.folder.absolute()  # commands run in the folder of the project
            arms.append(SetupArm(replace(named, folder=folder), find_calibration(
                named.kind.name, named.id or named.kind.name, folder)))
    return arms


def joint_finding(joint: str, servo: dict[str, Any]) -> JointFinding:
    """Says in plain words what `understudy robot check --json` has found about a servo."""
    if not servo["is_same"]:
        moved = abs(servo["drift"])
        return JointFinding(joint, f"moved by {moved:.1f}°" if moved >= 0.1 else "another range", moved, True)
    if servo["outside"] > TOLERANCE:
        return JointFinding(joint, f"{servo['outside']:.1f}° outside its range", servo["outside"], True)
    return JointFinding(joint, "as calibrated", 0.0, False)


class RobotToSetUp(LiveSession):
    """The session of a robot that cannot be used yet.

    Args:
        problem: Why. None if a port or a calibration is missing, which the page says anyway.
    """

    has_picture = False
    label, help = RobotLiveSession.label, "The robot is not ready. Start with **Set up**."

    def __init__(self, project: Project, problem: str | None):
        super().__init__(project, PageCommands())
        self.error = problem
        sittings = project.sittings()
        self.features = dict(open_dataset(sittings[-1]).features()) if sittings else {}

    def picture(self):
        return Picture(0, [], "", False)

    def recorded(self, demonstration, step):
        return []

    def thumbnail(self, demonstration):
        return []

    def new_person(self, mode):
        raise RuntimeError("the robot is not ready. Start with Set up")

    def record(self, sitting):
        raise NotImplementedError("it never starts")

    def watch(self):
        raise NotImplementedError("it never starts")
