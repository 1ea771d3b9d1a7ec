"""Plans with a policy of LeRobot in a process of another Python, which takes the place of a policy server."""

from __future__ import annotations

import json
import math
import re
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgpack
import numpy as np

from .. import config
from ..checkpoint import find_lerobot_checkpoint
from ..child_processes import exit_reason
from ..core import Feature, Unsupported, UserError
from ..data.tasks import SHOWN_TASK
from ..data.window import Window
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.temporal_ensemble import TemporalEnsemble
from .client import MalformedReply
from .schema import PROTOCOL
from .wire import WireError, receive_frame, send_frame

CHILD = Path(__file__).with_name("lerobot_child.py")
LOAD_SECONDS = 900.0  # until the policy must be loaded: weights of gigabytes, which may have to be downloaded
PLAN_SECONDS = 10.0  # until a plan must come, besides the time that it took when the policy was loaded
_LAST_LINES = 6  # of what a process that failed has printed


def plan_seeds(key: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Returns the seeds of PyTorch's random numbers for plans, (B,).

    Args:
        key: The key of each row, (B,) int64.
        count: The number of the plan within its episode, (B,).
    """
    words = [np.random.SeedSequence([int(k) % 2**64, int(n)]).generate_state(2) for k, n in
             zip(key, count, strict=True)]
    return np.array([(int(high) << 31) + (int(low) >> 1) for high, low in words], np.int64)


class LeRobotProcess:
    """Connection to a policy of LeRobot that plans in a process of its own. `RemotePlanner` takes it as a `Client`.

    The process is one of this machine that the user's own Python runs. Its messages are those of a policy server, so
    that nothing in them can run code here.

    Args:
        name: The folder of a run or a checkpoint of LeRobot, or the name of a repository of the Hugging Face hub.
        python: The Python of an environment in which LeRobot is installed.
        device: Where the policy computes. "auto" for what its config.json says.

    Attributes:
        url: The name of the RUN, such as "lerobot:outputs/train/act".
        policy: What a policy server says of its policy.
        checkpoints: The checkpoint, as the only one.
        seconds: The time that a plan took when the policy was loaded.

    Raises:
        UserError: The process cannot be started, or it ended before the policy was loaded.
    """

    def __init__(self, name: str, python: Path | str, device: str = "auto"):
        self.url, self.python = f"lerobot:{name}", str(python)
        self._lock = threading.Lock()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        own_end, other_end = socket.socketpair()
        options = {"policy": _place(name), "device": device, "socket": other_end.fileno(),
                   "msgpack": msgpack.__file__}
        self._connection = own_end
        with other_end:
            try:
                self._process = subprocess.Popen([self.python, str(CHILD), json.dumps(options)],
                                                 stdin=subprocess.DEVNULL, stdout=self._printed, stderr=self._printed,
                                                 pass_fds=[other_end.fileno()])
            except OSError as error:
                own_end.close()
                raise UserError(f"this Python cannot be started: {error.strerror}", where=f"--lerobot-python {python}",
                                hint="name the Python of an environment with LeRobot, such as "
                                     "--lerobot-python ~/lerobot/.venv/bin/python") from None
        about = self._receive(LOAD_SECONDS)
        self.seconds = float(about["seconds"])
        self.policy: dict = _describe_policy(about)
        self.checkpoints = [str(about["checkpoint"])]
        self.summary = _summarize(about)

    def request(self, message: Mapping[str, object]) -> dict:
        """Returns the reply to a request of `RemotePlanner`.

        Raises:
            UserError: The process has ended, is late, or cannot plan.
        """
        options = message["understudy"]
        assert isinstance(options, dict)
        # the last chunk helps a policy that uses it, and does not have to be used
        if options["op"] != "plan" or any(guide["kind"] != "last_chunk" for guide in options["guides"]):
            what = "guided plans" if options["op"] == "plan" else "actions without chunks"
            raise Unsupported(f"a policy of LeRobot plans chunks from observations alone, not {what}", where=self.url,
                              hint="leave --executor out, or choose receding-horizon or temporal-ensemble")
        seeds = plan_seeds(options["key"], options["count"])
        obs = {name: value for name, value in message.items() if name != "understudy"}
        with self._lock:
            try:
                self._connection.settimeout(PLAN_SECONDS)
                send_frame(self._connection, {"obs": obs, "seeds": seeds})
            except OSError as error:
                raise self._failed(error) from None
            reply = self._receive(PLAN_SECONDS + 5 * self.seconds * len(seeds))
        if "error" in reply:
            raise UserError(f"LeRobot cannot plan: {reply['error']}", where=self.url,
                            hint="does the policy act with lerobot-eval there? What it printed before:\n"
                                 + self._last_lines())
        return reply

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()  # at which it ends by itself
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._printed.close()

    def _receive(self, seconds: float) -> dict:
        try:
            self._connection.settimeout(seconds)
            reply = receive_frame(self._connection)
        except OSError as error:
            raise self._failed(error, seconds) from None
        except WireError as error:
            raise MalformedReply(f"{self.url}: the reply cannot be read ({error})") from None
        if reply is None:
            raise self._failed(None)
        return reply

    def _failed(self, error: OSError | None, seconds: float = PLAN_SECONDS) -> UserError:
        """Ends the process, and returns the error that says why nothing came from it."""
        if isinstance(error, TimeoutError) and self._process.poll() is None:
            self._process.kill()
            problem = f"nothing came from the process of LeRobot within {seconds:.0f} s, so it was ended"
            hint = "does the policy act with lerobot-eval there? Is the device in use by something else?"
        else:
            try:
                status = self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                status = self._process.wait()
            problem, hint = f"the process of LeRobot has ended: {exit_reason(status)}", ""
        self._process.wait()
        self._connection.close()
        lines = self._last_lines()
        return UserError(f"{problem}. Its last lines:\n{lines}" if lines else problem, where=self.url,
                         hint=hint or _remedy(lines, self.python))

    def _last_lines(self) -> str:
        if self._printed.closed:
            return ""
        self._printed.seek(0)
        lines = self._printed.read()[-20_000:].decode(errors="replace").splitlines()
        return "\n".join(f"  {line.rstrip()}" for line in [line for line in lines if line.strip()][-_LAST_LINES:])


def _place(name: str) -> str:
    """Returns the folder of a checkpoint, or the name of a repository of the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (checkpoint := find_lerobot_checkpoint(folder)) is None:
            raise UserError("there is no policy of LeRobot in this folder: no config.json with model.safetensors",
                            where=f"lerobot:{name}", hint="name the folder of a run of LeRobot, or pretrained_model of "
                                                          "one of its checkpoints")
        return str(checkpoint.absolute())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError("there is no such folder", where=f"lerobot:{name}",
                        hint="name the folder of a run of LeRobot, or OWNER/NAME of the Hugging Face hub")
    return name


def _remedy(lines: str, python: str) -> str:
    """Returns what to do about a process that ended, from the last lines that it printed."""
    missing = re.search(r"No module named '([\w.]+)'", lines)
    if (missing is not None and missing[1].startswith("lerobot.")) or re.search(r"cannot import name .* from 'lerobot",
                                                                                lines):
        return f"LeRobot 0.4 or newer is needed: {shlex.join([python, '-m', 'pip', 'install', '-U', 'lerobot'])}"
    if missing is not None:
        package = missing[1].partition(".")[0]
        return f"install it there: {shlex.join([python, '-m', 'pip', 'install', package])}"
    if "policy_preprocessor.json" in lines:
        return "the checkpoint is of LeRobot 0.3 or older: convert it with LeRobot (migrate_policy_normalization)"
    return "does the policy load there? It must act with LeRobot's own lerobot-eval. If memory ran out, close others"


# -- the description --------------------------------------------------------------------------------------------------


def _describe_policy(about: Mapping) -> dict:
    """Returns the metadata of a policy server for what a process says of its policy."""
    features = {name: Feature("float32", tuple(shape)) for name, shape in about["vectors"].items()}
    features |= {name: Feature("uint8", (height, width, channels), "image")
                 for name, (channels, height, width) in about["images"].items()}
    texts = [SHOWN_TASK] if about["text_bytes"] else []
    features |= {name: Feature("uint8", (about["text_bytes"],), "text") for name in texts}
    inputs, action = list(features), Feature("float32", (about["action_dim"],))
    executor: Executor = RecedingHorizon(about["n_action_steps"]) if about["ensemble"] is None \
        else TemporalEnsemble(float(about["ensemble"]))
    entries = {name: {**asdict(f), "shape": list(f.shape)} for name, f in {**features, "action": action}.items()}
    schema = {"observations": {name: entries[name] for name in inputs if name not in texts},
              "action": entries["action"], "fps": None, "normalization": "none", "action_convention": None}
    return {"protocol": PROTOCOL, "schema": schema, "checkpoint": about["checkpoint"], "horizon": about["horizon"],
            "n_obs_steps": about["n_obs_steps"], "n_action_steps": about["n_action_steps"], "skip": 0, "chunks": True,
            "texts": texts, "action_scale": about["action_scale"], "inputs": inputs, "defaults": [],
            "features": entries, "action_dim": about["action_dim"], "is_discrete": False,
            "is_deterministic": not about["draws"], "executor": config.dump(executor),
            "window": config.dump(Window(about["n_obs_steps"], about["horizon"]))}


def _summarize(about: Mapping) -> str:
    """Describes in a line what is known before anything moves: chunks, latency and actions."""
    executed = (f"the first {about['n_action_steps']} are executed" if about["ensemble"] is None else
                "all plans of a step are averaged")
    milliseconds = max(1, math.ceil(1000 * about["seconds"]))
    return (f"{about['type']} of LeRobot {about['version']} on {about['device']}: it plans {about['horizon']} steps of "
            f"{about['action_dim']} numbers, of which {executed}. A plan takes {milliseconds} ms")
