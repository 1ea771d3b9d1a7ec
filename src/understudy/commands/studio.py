"""The command understudy studio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..core import AtLeast, AtMost, ConfigError, UserError
from ..files import file_name
from .calibrate import detector_source, load_detector
from .parts.arms import prepare_session
from .parts.common import acting_rate, parse
from .parts.eval_options import EvalOptions
from .parts.groups import ActingOptions, TrustOption, command_options
from .parts.interactive import describe_trials
from .parts.options import Advice, refuse_given
from .parts.policies import load_actor, run_folder, weights_digest, weights_path
from .parts.robot_options import (
    RECORDING_OPTIONS,
    RobotOptions,
    RobotRecordingOptions,
    TeleopOptions,
    recording_words,
)
from .parts.rollouts import calibrated_data
from .parts.sequential import build_test

if TYPE_CHECKING:
    from ..envs.base import Env
    from ..execute.actor import Actor
    from ..robots.base import Teleoperator
    from ..robots.registry import RobotConfig, TeleoperatorConfig
    from ..robots.safety import SafeRobot
    from ..studio.browser.live import LiveSession
    from ..studio.browser.plans import CalibratedDoubt
    from ..studio.browser.project import Project
    from ..studio.browser.robot_setup import RobotSetup
    from ..studio.browser.robot_trials import PreparedTrials

ROUNDS = 100  # of blind trials, at most: the default of `understudy eval --interactive`


@command_options
class StudioOptions(TrustOption, RobotRecordingOptions, TeleopOptions, RobotOptions):
    """Open a page in the browser on which you show a task, check, train, watch, take over and compare.

    With --robot and --teleop you do it on a robot, which the page also helps to set up: a leader arm shows the task and
    takes over, and you judge policies in blind trials.

    Everything stays in one folder: recordings in demonstrations, selections in views, and policies in runs. The page
    runs the other commands and can show them. Open the folder again, and the page shows the same.
    """

    env: Annotated[str | None, Positional, arg(metavar="ENV|FOLDER")] = None
    """a toy that can be moved with arrow keys, such as push or fork, or the folder of a project to open again; push, if
    there is no --robot"""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """folder of the project; it is made, or opened again (default: studio-ENV)"""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all, which needs --token-file"""
    port: Annotated[int | None, AtLeast(0), AtMost(65535), Advice("leave it out for one that is free"),
                    arg(metavar="N")] = None
    """port of the server; by default 8765, or a free one"""
    token_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """file with one token a line; the page asks for one of them"""
    tls_cert: Annotated[Path | None, arg(metavar="PEM")] = None
    """certificate, for https://"""
    tls_key: Annotated[Path | None, arg(metavar="PEM")] = None
    """private key of the certificate"""
    no_browser: bool = False
    """print the address and open no browser"""


def main(args: list[str]) -> None:
    o = parse(StudioOptions, "studio", args)
    try:
        import nicegui  # noqa: F401
    except ImportError:
        raise UserError("the studio needs the package nicegui", where="understudy studio",
                        hint="install it: pip install 'understudy[studio]'") from None
    from ..serve.access import read_tokens, readable_tokens_warning, refuse_strangers, tls_context
    from ..studio.browser.server import StudioAddress, free_port, serve_studio

    o.refuse_without_robot("understudy studio --help names the robots; a toy needs none")
    if o.robot is None:
        refuse_given(o, RECORDING_OPTIONS, "has no effect without a robot")
    elif o.env is not None:
        raise ConfigError("name an environment or a robot, not both", where="understudy studio",
                          hint="leave out the name before the options; --out FOLDER names the project")
    tokens = () if o.token_file is None else read_tokens(o.token_file)
    refuse_strangers(o.host, tokens, "give --token-file FILE, and the page asks for one of its tokens")
    has_tls = tls_context(o.tls_cert, o.tls_key) is not None
    if warning := readable_tokens_warning(o.host, tokens, has_tls):
        print(f"warning: {warning}", file=sys.stderr)
    session, setup = _open_session(o)
    with session.project.locked():
        address = StudioAddress(o.host, free_port(o.host, o.port), o.tls_cert, o.tls_key)
        print(f"understudy studio: {address}", flush=True)
        if tokens:
            print(f"The page asks for a token of {o.token_file}.", flush=True)
        print(f"Everything is kept in {session.project.folder}. Ctrl-C ends the server.", flush=True)
        serve_studio(session, address, tokens, show=not o.no_browser, setup=setup)


def _open_session(o: StudioOptions) -> tuple[LiveSession, RobotSetup | None]:
    """Opens a project, and the toy or the robot that it is about, and how it is set up."""
    from ..studio.browser.live import ToySession, playable_env
    from ..studio.browser.project import PROJECT, Project

    if o.robot is not None:
        session = _make_robot(o)
        project = Project(o.out or Path(f"studio-{file_name(o.robot)}"), o.robot, recording_words(o))
        return session(project), _robot_setup(o, project)
    if o.out is None and o.env is not None and Path(o.env, PROJECT).exists():
        project = Project(Path(o.env))
        if project.robot:
            stored = parse(StudioOptions, "studio", project.robot)
            return _make_robot(replace(stored, trust=o.trust, yes=o.yes))(project), _robot_setup(o, project)
        return ToySession(project, CommandPolicies(o.trust)), None
    name = o.env or "push"
    playable_env(name)  # before a folder is made
    project = Project(o.out or Path(f"studio-{file_name(name)}"), name)
    return ToySession(project, CommandPolicies(o.trust)), None


def _make_robot(o: StudioOptions) -> Callable[[Project], LiveSession]:
    """Prepares the robot and what moves it, before a folder is made. Returns the session of a project with them.

    If they have to be set up first, it is a session that says so.
    """
    from ..robots.base import RobotError
    from ..studio.browser.robot_setup import RobotToSetUp, setup_arms

    config = o.robot_config()
    teleop_config = o.teleop_config(config.use_degrees)
    if o.teleop == "keyboard":
        raise ConfigError("the keyboard moves a robot in a terminal alone", where="--teleop keyboard",
                          hint="use a leader arm, or record in a terminal: understudy record")
    try:
        robot, teleop, _ = prepare_session(config, teleop_config, o.trust, o.yes)
    except UserError as error:
        text = str(error)
        is_ready = all(arm.is_ready for arm in setup_arms(config, teleop_config))
        if is_ready and not isinstance(error, RobotError):
            raise
        return lambda project: RobotToSetUp(project, text if is_ready else None)
    return _session_of(o, robot, teleop)


def _session_of(o: StudioOptions, robot: SafeRobot, teleop: Teleoperator) -> Callable[[Project], LiveSession]:
    from ..studio.browser.robot_live import RobotLiveSession

    robot.check_rate(o.fps)
    policies = CommandPolicies(o.trust)
    return lambda project: RobotLiveSession(project, robot, teleop, o.fps, o.teleop or "", policies, o.task, o.times())


def _robot_setup(o: StudioOptions, project: Project) -> RobotSetup:
    """Returns how the robot of a project is set up. Nobody is asked in the terminal while the page is open."""
    from ..robots.registry import make_robot, make_teleoperator
    from ..studio.browser.robot_setup import RobotSetup

    def read(words: Sequence[str]) -> tuple[RobotConfig, TeleoperatorConfig]:
        stored = parse(StudioOptions, "studio", list(words))
        config = stored.robot_config()
        return config, stored.teleop_config(config.use_degrees)

    def make(project: Project) -> LiveSession:
        config, teleop_config = read(project.robot)
        robot = make_robot(config, o.trust)
        teleop, _ = make_teleoperator(teleop_config, robot, o.trust)
        return _session_of(parse(StudioOptions, "studio", project.robot), robot, teleop)(project)
    return RobotSetup(project, read, make, o.trust)


class CommandPolicies:
    """Loads policies as `understudy improve --robot` does, and blind trials as `understudy eval --interactive`.

    Args:
        trust: Packages whose code policies may use.
    """

    def __init__(self, trust: tuple[str, ...] = ()):
        self.trust = trust

    def rate(self, *runs: Path) -> float:
        """The steps per second at which policies act: that of their data.

        Raises:
            ConfigError: They were trained at different rates.
        """
        return acting_rate(None, *runs)

    def load(self, run: Path, env: Env) -> Actor:
        """Loads the actor of a run.

        Raises:
            UserError: It does not fit the robot, or acts only when it is told something.
        """
        return load_actor(run, env, ActingOptions(trust=self.trust), None)[0]

    def doubt(self, run: Path) -> CalibratedDoubt | None:
        """Loads the failure detector of a run. None if it was not calibrated.

        Raises:
            UserError: It was calibrated for another checkpoint or another way of acting, or its data are missing.
        """
        from ..evaluate.failure_detection import DETECTOR_FILE
        from ..studio.browser.plans import CalibratedDoubt

        if not (run_folder(run) / DETECTOR_FILE).exists():
            return None
        o = ActingOptions(trust=self.trust)
        detector = load_detector(run, o, None)
        source = detector_source(run, detector)
        return CalibratedDoubt(source.score, calibrated_data(run, o, source), detector.threshold)

    def trials(self, words: list[str], folder: Path, env: Env) -> PreparedTrials:
        """Loads both policies of blind trials.

        Args:
            words: Those of the command after "understudy eval", in `folder`.
        """
        from ..evaluate.interactive import TrialDesign
        from ..studio.browser.robot_trials import PreparedTrials

        o = replace(parse(EvalOptions, "eval", words), episodes=ROUNDS, trust=self.trust)
        assert o.against is not None
        names, runs = (str(o.run), str(o.against)), (folder / o.run, folder / o.against)
        design = TrialDesign(names, build_test(o), o.labels, o.seed)
        weights = [weights_digest(weights_path(run)) for run in runs]
        return PreparedTrials(design, describe_trials(o, design, weights, f"--robot {o.robot}"),
                              [load_actor(run, env, o, rows=None)[0] for run in runs])
