"""understudy push: what is uploaded, the cards, and what comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.cli import document, refused, save
from fixtures.hub_server import PART, Repository
from folders import TESTS

from understudy.audit.base import Finding
from understudy.commands.sharing.cards import DataFacts, data_card, run_card
from understudy.core import Feature
from understudy.data.formats import open_dataset

LINE = {"env": "fork", "seed": 0, "episodes": 4, "date": "2026-05-01T10:00:00+00:00",
        "success": {"estimate": 0.5, "low": 0.25, "high": 0.75}, "return": {"mean": 1.5, "low": 1.0, "high": 2.0},
        "each": {"success": [True, False, True, False]}}


def test_data_come_back_with_the_same_fingerprint(call, hub, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "demos", "demos")
    Path("demos", "notes.txt").write_text("mine")
    status, out, err = call("push", "demos", "owner/fork", "--license", "cc-by-4.0")
    assert status == 0 and f"{hub.address}/datasets/owner/fork: " in out and "understudy pull owner/fork" in out
    assert "hf:owner/fork: uploading 9 files, " in err
    files = hub.repositories["datasets", "owner/fork"].files
    assert "notes.txt" not in files and not any("/." in name for name in files)
    assert files["data/chunk-000/file-000.parquet"] == (place / "demos/data/chunk-000/file-000.parquet").read_bytes()
    assert ("PUT", f"/lfs/{_oid(files['data/chunk-000/file-000.parquet'])}/2") in hub.requests  # in parts
    fingerprint = open_dataset(place / "demos").fingerprint()
    card = files["README.md"].decode()
    assert 'license: "cc-by-4.0"' in card and f"`{fingerprint}`" in card and "12 of 12 episodes succeeded" in card
    assert call("pull", "owner/fork")[0] == 0 and open_dataset("fork").fingerprint() == fingerprint
    assert document(call("inspect", "hf:owner/fork", "--json"))["episodes"] == 12


def _oid(content: bytes) -> str:
    import hashlib

    assert len(content) > PART
    return hashlib.sha256(content).hexdigest()


def test_other_formats_are_uploaded_in_lerobots_layout(call, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = document(call("push", save(tmp_path / "d.npz"), "owner/arrays", "--private", "--json"))
    repository = hub.repositories["datasets", "owner/arrays"]
    assert repository.private and set(told["files"]) | {".gitattributes"} == set(repository.files)
    assert json.loads(repository.files["meta/info.json"])["codebase_version"] == "v3.0"
    data = open_dataset(tmp_path / "d.npz")
    assert told["fingerprint"] == data.fingerprint()
    assert call("pull", "owner/arrays")[0] == 0 and open_dataset("arrays").fingerprint() == data.fingerprint()
    assert call("push", save(tmp_path / "e.npz", steps=(3, 4)), "owner/arrays")[0] == 0  # another revision
    assert open_dataset(tmp_path / "e.npz").steps == 7
    assert document(call("inspect", "hf:owner/arrays", "--json"))["steps"] == 7
    assert repository.tags == {"v3.0": repository.newest}  # by which LeRobot finds data of its version
    assert document(call("inspect", "hf:owner/arrays@v3.0", "--json"))["steps"] == 7


@pytest.mark.slow
def test_lerobot_reads_what_was_pushed(call, hub, tmp_path, monkeypatch):
    """Needs `pip install --no-deps -r benchmarks/peers/lerobot.txt`, which `make test` does."""
    monkeypatch.chdir(tmp_path)
    assert call("push", save(tmp_path / "d.npz"), "owner/arrays")[0] == 0 and call("pull", "owner/arrays")[0] == 0
    process = subprocess.run(
        [sys.executable, str(TESTS / "upstream_lerobot.py"), "arrays", "read.npz"], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    read, data = np.load("read.npz"), open_dataset(tmp_path / "d.npz")
    assert int(read["episodes"]) == len(data)
    np.testing.assert_array_equal(read["action"], np.concatenate([e.steps["action"] for e in data]))


def test_a_run_comes_back_with_the_same_figures(call, hub, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "a", "a")
    here = document(call("eval", "a", "fork", "--episodes", 6, "--json"))
    told = document(call("push", "a", "owner/fork-bc", "--json"))
    files = hub.repositories["models", "owner/fork-bc"].files
    assert json.loads(files["run.json"]) == {"last": told["checkpoint"]} and not told["lerobot"]
    assert not any("/train/" in name for name in files) and "eval/fork.jsonl" in files and "CARD.md" in files
    card = files["README.md"].decode()
    assert "| fork | 0 | 6 | " in card and "understudy eval RUN fork --episodes 6 --seed 0" in card
    assert "understudy train bc" in card and 'library_name: "understudy"' in card
    assert call("pull", "owner/fork-bc")[0] == 0
    for run in ("fork-bc", "hf:owner/fork-bc"):
        there = document(call("eval", run, "fork", "--episodes", 6, "--json"))
        assert [there[k] for k in ("successes", "success", "return")] == [
            here[k] for k in ("successes", "success", "return")]


def test_a_policy_of_lerobots_architecture_is_uploaded_in_its_layout_too(call, hub, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _adopt(shared / "fixtures" / "lerobot_policies" / "act_state", tmp_path / "run")
    told = document(call("push", "run", "owner/act", "--json"))
    assert told["lerobot"] and {"config.json", "model.safetensors", "run.json"} <= set(told["files"])
    assert "--policy.path=owner/act" in hub.repositories["models", "owner/act"].files["README.md"].decode()
    assert call("pull", "owner/act")[0] == 0
    from understudy.checkpoint import find_checkpoint

    assert find_checkpoint(tmp_path / "act") == tmp_path / "act" / told["checkpoint"]


def _adopt(checkpoint: Path, run: Path) -> None:
    """Makes a run of understudy of a checkpoint of LeRobot."""
    from understudy import config
    from understudy.files import write_json
    from understudy.learn.method import Method, TrainedRun

    folder = run / "checkpoints" / "000100"
    TrainedRun.load(checkpoint).policy.save(folder)
    write_json(folder / "method.json", config.dump(Method.load(checkpoint)))
    write_json(folder / "provenance.json", {
        "data": {"name": "lab/demos", "episodes": 1, "steps": 9, "fingerprint": "00"}, "seed": 0, "held_out": [],
        "versions": {"understudy": "0.3.0", "torch": "2"}, "command": None})
    write_json(run / "run.json", {"last": "checkpoints/000100"})


def test_what_cannot_be_pushed_says_what_to_do(call, hub, place, tmp_path, monkeypatch):
    refused(call("push", place / "demos", "fork"), "this is not the name of a repository")
    refused(call("push", place / "demos", "owner/fork@v1"), "an upload makes a new revision")
    refused(call("push", place / "demos", "somebody/fork"), "has no right to do this", "hf auth login")
    refused(call("push", place / "none", "owner/fork"), "there is no such file or folder")
    hub.repositories["datasets", "owner/open"] = Repository()
    hub.repositories["datasets", "owner/open"].commit({})
    refused(call("push", place / "demos", "owner/open", "--private"), "already a public repository")
    monkeypatch.delenv("HF_TOKEN")
    refused(call("push", place / "demos", "owner/fork"), "you are not logged in", "hf auth login", "HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    refused(call("push", place / "demos", "owner/fork"), "the hub does not answer", "check the network")


def test_the_card_of_data():
    card = data_card("lab/push", DataFacts(
        fingerprint="0123", episodes=2, steps=30, fps=10, successes=1, origin="push",
        features={"observation.state": Feature("float32", (4,)), "action": Feature("float32", (2,))},
        tasks=["push the block"], findings=[Finding("idle", "warning", "1 episode | rests", "cut it")]), None)
    assert card == """---
task_categories: ["robotics"]
tags: ["LeRobot", "understudy", "imitation-learning"]
configs: [{"config_name": "default", "data_files": "data/*/*.parquet"}]
---

# lab/push

2 episodes of demonstrations, 30 steps, 10 steps per second. Recorded in push. 1 of 2 episodes succeeded.

Fingerprint of the data, by which runs name them: `0123`.

## Columns

| column | type | shape |
|---|---|---|
| `observation.state` | float32 | 4 |
| `action` | float32 | 2 |

## Tasks

- push the block

## Audit

What `understudy audit` finds:

| severity | finding | |
|---|---|---|
| warning | `idle` | 1 episode \\| rests |

## Use

```bash
understudy train METHOD hf:lab/push --out RUN
```

The files have the layout of LeRobot, which opens them as `LeRobotDataset("lab/push")`.
"""


def test_the_card_of_a_run():
    provenance = {"data": {"name": "lab/push", "episodes": 2, "steps": 30, "fingerprint": "0123"}, "seed": 3,
                  "held_out": [1], "versions": {"understudy": "0.3.0", "torch": "2.12"}, "options": {"method": "bc"},
                  "command": "understudy train bc hf:lab/push --out run --seed 3"}
    card = run_card("lab/push-bc", provenance=provenance, head="Regression", updates=20, evaluations=[LINE],
                    is_lerobot=False, license="apache-2.0")
    assert card == """---
license: "apache-2.0"
library_name: "understudy"
pipeline_tag: "robotics"
datasets: ["lab/push"]
tags: ["robotics", "imitation-learning", "bc"]
---

# lab/push-bc

A policy of the method `bc` with the head Regression.
Trained with seed 3 in 20 updates by understudy 0.3.0 (PyTorch 2.12).
[CARD.md](CARD.md) has its settings and the measurements of the training.

## Evaluation

| environment | seed | episodes | success | mean return | date |
|---|--:|--:|--:|--:|---|
| fork | 0 | 4 | 50.0% [25.0%, 75.0%] | 1.5 [1, 2] | 2026-05-01 |

In brackets are 95% intervals. They are about this checkpoint: another training seed may come out otherwise.

## Known failures

- fork, seed 0: 2 of 4 starts failed, numbers 1, 3

## Use

```bash
understudy eval hf:lab/push-bc fork --episodes 100
```

## Data

`lab/push`: 2 episodes, 30 steps, with the fingerprint `0123`.
Held out: episodes 1.

## Commands that made it

```bash
understudy train bc hf:lab/push --out run --seed 3
understudy eval RUN fork --episodes 4 --seed 0
```
"""
    bare = run_card("lab/push-bc", provenance={**provenance, "command": None, "held_out": []}, head="Regression",
                    updates=20, evaluations=[], is_lerobot=True, license=None)
    for text in ("No evaluation of this checkpoint is stored.", "No failure is recorded.", "No command was recorded.",
                 "`--policy.path=lab/push-bc`", "understudy eval hf:lab/push-bc ENV --episodes 100"):
        assert text in bare
