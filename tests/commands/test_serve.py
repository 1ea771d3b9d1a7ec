"""understudy serve as a process, and the commands that run a served policy."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folders import REPOSITORY

pytest.importorskip("websockets", reason="extra serve not installed")

from understudy.cli import main  # noqa: E402
from understudy.serve.client import Client  # noqa: E402

pytestmark = pytest.mark.slow  # a training, and servers in processes

SRC = str(REPOSITORY / "src")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    assert main(["record", "fork", "--out", str(folder / "demos"), "--episodes", "5"]) == 0
    for seed, name in enumerate(("run", "later")):
        assert main(["train", "flow-policy", str(folder / "demos"), "--out", str(folder / name), "--steps", "2",
                     "--seed", str(seed)]) == 0
    return folder / "run"


@pytest.mark.parametrize(("options", "words"), [
    (("--steer", "fork", "--host", "0.0.0.0"), "give --open if that is meant"),
    (("--steer", "fork", "--host", "0.0.0.0", "--token-file", "tokens"), "--token-file: has no effect with --steer"),
    (("--host", "0.0.0.0"), "give --token-file FILE, or --open")])
def test_what_a_server_for_all_is_proposed_is_accepted(options, words, run, capsys):
    assert main(["serve", str(run), *options]) == 2
    assert words in (error := capsys.readouterr().err) and ("--token-file FILE" in error) == ("--steer" not in options)


class Served:
    """understudy serve in a process."""

    def __init__(self, run, *options, log):
        env = {**os.environ, "PYTHONPATH": SRC}
        self.log = log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "understudy", "serve", str(run), "--port", "0", *options], env=env,
                stdout=subprocess.PIPE, stderr=errors, text=True)
        line = self.process.stdout.readline()
        address = re.search(r"ws://[^ ]+:\d+", line)
        assert address, line + Path(log).read_text()
        self.url = address[0]

    def events(self):
        return [json.loads(line) for line in Path(self.log).read_text().splitlines()]

    def first(self, event):
        return next((e for e in self.events() if e["event"] == event), None)

    def wait_for(self, event, meanwhile):
        until = time.monotonic() + 40
        while self.first(event) is None and time.monotonic() < until:
            meanwhile()
        assert self.first(event) is not None, self.events()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_a_served_policy_is_evaluated_like_the_run(run, tmp_path, capsys):
    options = ["fork", "--episodes", "4", "--json"]
    assert main(["eval", str(run), *options]) == 0
    local = json.loads(capsys.readouterr().out)
    with Served(run, log=tmp_path / "log") as served:
        for executor in ([], ["--executor", "server"], ["--executor", "receding-horizon"]):
            assert main(["eval", served.url, *options, *executor]) == 0
            remote = json.loads(capsys.readouterr().out)
            for name in ("success", "return"):
                assert remote.get(name) == local.get(name), executor
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
    events = [e["event"] for e in served.events()]
    assert events[0] == "serving" and events[-1] == "stopped" and "connected" in events
    (policy,) = (e["message"] for e in served.events() if e["event"] == "policy")
    assert policy == f"{run}: checkpoint 000002, the last one, which also has the lowest error on held-out episodes"
    assert main(["eval", served.url, *options]) == 2
    assert "is it running" in capsys.readouterr().err


def test_an_address_keeps_both_its_slashes(run, tmp_path, capsys):
    with Served(run, log=tmp_path / "log") as served:
        assert main(["eval", served.url, "fork", "--episodes", "2"]) == 0
        assert f"understudy eval {served.url} fork" in capsys.readouterr().out
        assert main(["eval", served.url, "fork", "--episodes", "2", "--against", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["checkpoint"] == served.url
        assert main(["eval", served.url, str(run.parent / "demos")]) == 2
        assert f"{served.url} needs an environment: it is not a run" in capsys.readouterr().err
    improve = ["improve", "ws://gpu:8000", "--with", "dagger", "--supervisor", "scripted", "--out", str(tmp_path / "o")]
    for command in (improve, ["export", "ws://gpu:8000", "--out", "f.onnx"], ["plot", "ws://gpu:8000"]):
        assert main(command) == 2
        assert ("understudy: ws://gpu:8000: this is not a trained run or a checkpoint: it is the address of a server\n"
                "  -> name the run that is served there") in capsys.readouterr().err


def test_a_new_checkpoint_is_loaded_without_a_lost_reply(run, tmp_path):
    """Each reply names its checkpoint, and none is lost while the checkpoint is replaced."""
    folder = run.parent / "hot"
    shutil.copytree(run, folder)
    names, last = json.loads((folder / "run.json").read_text()), "000999"
    later = run.parent / "later"
    shutil.copytree(later / json.loads((later / "run.json").read_text())["last"], folder / "checkpoints" / last)
    untrained = folder / "checkpoints" / "000000"
    shutil.copytree(folder / names["last"], untrained)
    with Served(untrained, log=tmp_path / "untrained") as served:
        assert served.first("warning")["message"].endswith(f"not trained: use {folder}")
    with Served(folder, "--watch", log=tmp_path / "log") as served, Client(served.url) as client:
        checkpoints, planned, until = [], {}, time.monotonic() + 60
        obs = {"observation.state": np.zeros(2, np.float32)}
        while time.monotonic() < until and len(set(checkpoints)) < 2:
            reply = client.infer(obs, reset=True, episode=0)
            checkpoints.append(reply["understudy"]["checkpoint"])
            np.testing.assert_allclose(reply["actions"], planned.setdefault(checkpoints[-1], reply["actions"]),
                                       atol=1e-5)
            if len(checkpoints) == 50:
                (folder / "run.json").write_text(json.dumps({**names, "last": f"checkpoints/{last}"}))
        assert not np.allclose(*planned.values(), atol=1e-3)
        assert client.checkpoints == list(planned)
        assert len(set(checkpoints)) == 2
        assert checkpoints == sorted(checkpoints, key=list(dict.fromkeys(checkpoints)).index)
        (folder / "checkpoints" / last / "weights.safetensors").write_bytes(b"damaged")
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("reload_refused", lambda: client.infer(obs, reset=True))
        assert client.infer(obs, reset=True)["understudy"]["checkpoint"] == checkpoints[-1]


def test_a_checkpoint_that_plans_something_else_is_refused(run, tmp_path):
    """A run whose executor changed would plan for clients that were told something else."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    with Served(folder, log=tmp_path / "log") as served, Client(served.url) as client:
        before = client.infer({"observation.state": np.zeros(2)})["understudy"]["checkpoint"]
        for file in folder.glob("checkpoints/*/method.json"):
            changed, n = re.subn('"n_action_steps": [0-9]+', '"n_action_steps": 1', file.read_text())
            assert n == 1
            file.write_text(changed)
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("reload_refused", lambda: time.sleep(0.05))
        assert "it has another executor" in served.first("reload_refused")["error"]
        assert client.infer({"observation.state": np.zeros((2, 2))})["understudy"]["checkpoint"] == before


@pytest.mark.parametrize("host, warns", [("0.0.0.0", True), ("127.0.0.2", False)])
def test_tokens_beyond_this_machine_need_tls(run, tmp_path, host, warns):
    (tmp_path / "tokens.txt").write_text("secret-of-16-chars\n")
    with Served(run, "--host", host, "--token-file", str(tmp_path / "tokens.txt"), log=tmp_path / "log") as server:
        server.wait_for("serving", lambda: time.sleep(0.1))
        warnings = [e["message"] for e in server.events() if e["event"] == "warning"]
    assert any("sent without TLS" in text for text in warnings) is warns


@pytest.mark.parametrize("options, says", [
    (["--host", "0.0.0.0"], "anybody in the network"), (["--tls-cert", "x.pem"], "both --tls-cert and --tls-key"),
    (["--deadline", "0"], "must be above 0"), (["--task", "go"], "trained without words"),
    (["--rename", "a=observation.other"], "does not read 'observation.other'"),
    (["--rename", "a=observation.stat"], "did you mean 'observation.state'?"),
    (["--rename", "a"], "'a' is not two names with ="),
    (["--reply", "chunk", "--executor", "temporal-ensemble"], "not executed in chunks")])
def test_options_that_do_not_fit_are_refused(run, options, says, capsys):
    assert main(["serve", str(run), *options]) == 2
    assert says in capsys.readouterr().err
