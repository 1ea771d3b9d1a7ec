"""Plans with a policy of LeRobot, as a script of the Python of LeRobot's environment. `lerobot_process` starts it.

That environment has no understudy, so this file imports the standard library, NumPy, PyTorch and LeRobot alone, and
loads the wire format from the file beside it. Standard output and standard error are for messages of libraries.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import signal
import socket
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

TEXT = "observation.task"
TEXT_BYTES = 512
_READS_WORDS = ("token", "language", "task", "eagle")  # in names of processor steps of policies that read a task


class ChildPolicy:
    """A policy of LeRobot with its processors, which plans chunks from windows of observations.

    Args:
        name: The folder of a checkpoint, or the name of a repository of the Hugging Face hub.
        device: Where it computes. "auto" for what its config.json says.
    """

    def __init__(self, name: str, device: str):
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        _load_plugins()
        self.folder = _checkpoint_folder(name)
        config: Any = PreTrainedConfig.from_pretrained(str(self.folder))
        config.device = config.device if device == "auto" else device
        if "pretrained_backbone_weights" in vars(config):
            config.pretrained_backbone_weights = None  # the checkpoint has them, so nothing is downloaded
        self.config, self.shapes = config, {name: list(f.shape) for name, f in config.input_features.items()}
        self.policy: Any = get_policy_class(config.type).from_pretrained(str(self.folder), config=config).eval()
        place = {"device_processor": {"device": config.device}}
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            config, pretrained_path=str(self.folder),
            preprocessor_overrides=place if _has_step(self.folder, "device_processor") else {})
        self.images = [name for name in config.image_features if "empty_camera" not in name]
        self.vectors = [name for name in self.shapes if name not in config.image_features]
        self.columns = (*self.vectors, *self.images)
        self.reads_words = any(word in type(step).__name__.lower() for step in self.preprocessor.steps
                               for word in _READS_WORDS)
        self.action_dim = config.output_features["action"].shape[0]
        self.source: Any = self._captured
        self.draws = False
        self.horizon, self.seconds = self._try_out()

    def describe(self) -> dict[str, object]:
        """Returns what the policy reads and plans, the first message to the parent."""
        config = self.config
        steps = min(int(vars(config).get("n_action_steps") or 1), self.horizon)
        return {"type": config.type, "version": version("lerobot"), "horizon": self.horizon, "n_action_steps": steps,
                "n_obs_steps": int(config.n_obs_steps), "action_dim": self.action_dim, "draws": self.draws,
                "vectors": {name: self.shapes[name] for name in self.vectors},
                "images": {name: self.shapes[name] for name in self.images},
                "text_bytes": TEXT_BYTES if self.reads_words else 0, "seconds": self.seconds,
                "ensemble": vars(config).get("temporal_ensemble_coeff"), "device": str(config.device),
                "action_scale": self._action_scale(),
                "checkpoint": _digest(self.folder)}

    def _action_scale(self) -> list[float] | None:
        """Returns the standard deviation of each action in the training data, if the postprocessor says it.

        It is 1 for an action that was constant there.
        """
        for step in self.postprocessor.steps:
            if (deviations := step.state_dict().get("action.std")) is not None:
                return [deviation or 1.0 for deviation in deviations.flatten().tolist()]
        return None

    def plan(self, obs, seeds):
        """Returns chunks in the units of the data, (B, H, A).

        Args:
            obs: Windows of observations by column, (B, To, ...) arrays.
            seeds: The seed of each row. Rows of a policy that draws random numbers are planned one by one, so that a
                plan does not depend on the others.
        """
        import numpy as np
        import torch

        if not self.draws:
            return self._plan_rows(obs)
        chunks = []
        for i, seed in enumerate(seeds.tolist()):
            torch.manual_seed(seed)
            chunks.append(self._plan_rows({name: value[i:i + 1] for name, value in obs.items()}))
        return np.concatenate(chunks)

    def _plan_rows(self, obs):
        import torch

        rows, n_steps = obs[self.columns[0]].shape[:2]
        with torch.inference_mode():
            self.policy.reset()
            chunk = self.source([self.preprocessor(self._observation(obs, t)) for t in range(n_steps)])
            if chunk.ndim != 3 or len(chunk) != rows:
                raise ValueError(f"a chunk of this policy has shape {tuple(chunk.shape)}, not (rows, steps, actions)")
            # one step at a time, as LeRobot's own server does: a processor may count its rows
            actions = [self.postprocessor(chunk[:, t]) for t in range(chunk.shape[1])]
            return torch.stack([action.float().cpu() for action in actions], 1).numpy()

    def _observation(self, obs, t: int) -> dict:
        """Returns the observation of one step of a window as LeRobot's environments and robots give it."""
        import torch

        batch: dict = {name: torch.from_numpy(obs[name][:, t]).float() for name in self.vectors}
        for name in self.images:
            batch[name] = torch.from_numpy(obs[name][:, t]).movedim(-1, -3).float() / 255
        if self.reads_words:
            batch["task"] = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in obs[TEXT][:, t]]
        return batch

    # -- chunks of LeRobot's policies ---------------------------------------------------------------------------------

    def _captured(self, steps: list[dict]):
        """Returns the chunk that `select_action` plans at the last step, after it has seen the others."""
        import torch

        plan, captured, rows = self.policy.predict_action_chunk, [], len(steps[0][self.columns[0]])

        def one_action(batch, **options):  # so that the queue is empty at the next step
            return torch.zeros(rows, 1, self.action_dim, device=self.config.device)

        def captured_chunk(batch, **options):
            captured.append(plan(batch, **options))
            return captured[0]
        try:
            self.policy.predict_action_chunk = one_action
            for step in steps[:-1]:
                self.policy.select_action(step)
            self.policy.predict_action_chunk = captured_chunk
            self.policy.select_action(steps[-1])
        finally:
            del self.policy.predict_action_chunk
        if not captured:
            raise NotCaptured
        return captured[0]

    def _direct(self, steps: list[dict]):
        """Returns the chunk of a policy whose `select_action` does not call `predict_action_chunk`."""
        return self.policy.predict_action_chunk(steps[-1])

    def _single(self, steps: list[dict]):
        """Returns the action of a policy without chunks."""
        return self.policy.select_action(steps[-1])[:, None]

    def _try_out(self) -> tuple[int, float]:
        """Plans from observations of zeros, to learn which way leads to chunks, and whether random numbers are drawn.

        Returns:
            The steps of a chunk, and the seconds that a plan takes.
        """
        import numpy as np

        config, windows = self.config, {}
        for name in self.vectors:
            windows[name] = np.zeros((1, config.n_obs_steps, *self.shapes[name]), np.float32)
        for name in self.images:
            channels, height, width = self.shapes[name]
            windows[name] = np.zeros((1, config.n_obs_steps, height, width, channels), np.uint8)
        if self.reads_words:
            windows[TEXT] = np.zeros((1, config.n_obs_steps, TEXT_BYTES), np.uint8)
        before = _random_states()
        for source in (self._captured, self._direct, self._single):
            self.source = source
            with contextlib.suppress(NotCaptured, NotImplementedError):
                self._plan_rows(windows)
                break
            if config.n_obs_steps > 1:
                raise ValueError("its select_action does not plan by predict_action_chunk, so no history can be given")
        began = time.perf_counter()
        chunk = self._plan_rows(windows)
        seconds, self.draws = time.perf_counter() - began, before != _random_states()
        return chunk.shape[1], seconds


class NotCaptured(Exception):
    """`select_action` of a policy plans in another way than by `predict_action_chunk`."""


def _load_plugins() -> None:
    """Imports the packages of users that add policies to LeRobot."""
    try:
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError:  # LeRobot 0.4.0 has none
        return
    register_third_party_plugins()


def _checkpoint_folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name))


def _has_step(folder: Path, name: str) -> bool:
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    return any(step.get("registry_name") == name for step in steps)


def _digest(folder: Path) -> str:
    """Returns what `Run.fingerprint` returns for the checkpoint."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("policy_*.json")), *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _random_states() -> list[bytes]:
    import torch

    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    return [state.numpy().tobytes() for state in states]


def _load_module(name: str, path: Path):
    """Imports a module from a file that is not on the path of modules."""
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(options: dict) -> None:
    sys.path.pop(0)  # the folder of this file, whose names are those of understudy
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends this one
    if importlib.util.find_spec("msgpack") is None:
        _load_module("msgpack", Path(options["msgpack"]))  # it works in any version of Python, if slower
    wire = _load_module("understudy_wire", Path(__file__).with_name("wire.py"))
    policy = ChildPolicy(options["policy"], options["device"])
    with socket.socket(fileno=options["socket"]) as connection:
        wire.send_frame(connection, policy.describe())
        while (request := wire.receive_frame(connection)) is not None:
            began = time.perf_counter()
            try:
                actions = policy.plan(request["obs"], request["seeds"])
                reply = {"actions": actions, "seconds": time.perf_counter() - began}
            except Exception as error:  # of LeRobot or of its plugins: the parent says it
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            wire.send_frame(connection, reply)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
