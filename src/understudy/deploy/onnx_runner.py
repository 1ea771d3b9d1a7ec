"""Runs an exported policy on a robot. Needs NumPy and ONNX Runtime only, so this file can be copied and used alone."""

import json
from collections import deque

import numpy as np

DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8", "tensor(bool)": "bool"}


class OnnxRunner:
    """Runs a policy from a file of `understudy export`: plans a chunk, executes its first actions, plans again.

    Args:
        path: The file. It contains the names of the inputs and the number of actions of a chunk that are executed.
        seed: Seed of the noise, for policies that sample.
    """

    def __init__(self, path, seed=0):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        metadata = json.loads(self.session.get_modelmeta().custom_metadata_map["understudy"])
        executor = metadata["executor"]
        if not executor["$"].endswith(":RecedingHorizon"):
            raise ValueError(f"{path}: its executor is {executor['$']}, but this runner is for RecedingHorizon only. "
                             "Load it with understudy (understudy.deploy.onnx.load_onnx_actor), or train a method with "
                             "RecedingHorizon.")
        self.executed = slice(executor["skip"], executor["skip"] + executor["n_action_steps"])
        self.n_obs_steps, self.rng = metadata["window"]["n_obs_steps"], np.random.default_rng(seed)
        self.inputs = metadata["inputs"]
        self.reset()

    def reset(self):
        """Starts an episode."""
        self.history, self.actions = deque(maxlen=self.n_obs_steps), deque()

    def act(self, obs):
        """Returns the next action, (A,), for an observation {column: value as recorded}. Call it at every step."""
        self.history.append({name: np.array(value) for name, value in obs.items()})  # the caller may reuse its arrays
        if not self.actions:
            feed = {i.name: self._value(i) for i in self.session.get_inputs()}
            chunk = np.asarray(self.session.run(["action"], feed)[0])[0, self.executed]
            if not np.isfinite(chunk).all():
                raise ValueError("the policy planned an action that is not finite")
            self.actions.extend(chunk)
        return self.actions.popleft()

    def _value(self, column):
        missing = self.n_obs_steps - len(self.history)  # before the start of an episode, its first row is repeated
        if column.name == "noise":
            value = self.rng.standard_normal(column.shape[1:])
        elif column.name.endswith("?") and column.name not in self.history[0]:  # which rows are in the episode
            value = [False] * missing + [True] * len(self.history)
        else:
            value = [obs[column.name] for obs in [self.history[0]] * missing + list(self.history)]
        value = np.asarray(value)
        if column.type == "tensor(uint8)" and np.any((value % 1 != 0) | (value < 0) | (value > 255)):
            raise TypeError(f"{column.name!r} is read as whole numbers from 0 to 255, as it was recorded, but this has "
                            "fractions or numbers beyond")
        if column.type == "tensor(int64)" and np.any(value % 1 != 0):
            raise TypeError(f"{column.name!r} is read as whole numbers, but this has fractions")
        if column.name + "?" not in self.inputs and not np.isfinite(value).all():  # with a mask it may lack values
            raise ValueError(f"{column.name!r} is not finite")
        return value.astype(DTYPES[column.type])[None]
