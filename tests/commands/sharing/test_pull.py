"""hf:NAME and understudy pull: downloads, what they say, and what can go wrong."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from fixtures.cli import TINY, document, refused
from fixtures.hub_server import Repository

from understudy import hub as library
from understudy.data.formats import open_dataset


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def stored(hub, place):
    """The hub with the demonstrations as owner/fork and the run as owner/fork-bc."""
    for key, folder in ((("datasets", "owner/fork"), "demos"), (("models", "owner/fork-bc"), "a")):
        hub.repositories[key] = Repository()
        hub.repositories[key].commit(files_in(place / folder))
    return hub


def test_data_are_downloaded_once_and_are_the_same(call, stored, place, tmp_path):
    commit = stored.repositories["datasets", "owner/fork"].newest
    status, out, err = call("inspect", "hf:owner/fork", "--json")
    names = sorted(files_in(place / "demos"))
    assert status == 0 and json.loads(out)["episodes"] == 12
    assert f"hf:owner/fork: downloading {len(names)} files, 0.1 MB, of the data set at revision {commit[:8]}" in err
    assert "data/chunk-000/file-000.parquet" in stored.downloads() and set(stored.downloads()) <= set(names)
    stored.requests.clear()
    assert "downloading" not in call("inspect", f"hf:owner/fork@{commit}")[2] and not stored.downloads()
    folder = library.download(library.Repository.parse("dataset", "hf:owner/fork"))
    assert open_dataset(folder).fingerprint() == open_dataset(place / "demos").fingerprint()


def test_a_policy_is_evaluated_and_its_folder_stays_as_it_is(call, stored, place, tmp_path):
    status, out, err = call("eval", "hf:owner/fork-bc", "fork", "--episodes", 4, "--json")
    assert status == 0 and "downloading" in err and "of the policy at revision" in err
    shutil.copytree(place / "a", tmp_path / "a")
    here = document(call("eval", tmp_path / "a", "fork", "--episodes", 4, "--json"))
    figures = json.loads(out)
    assert {k: figures[k] for k in ("successes", "return")} == {k: here[k] for k in ("successes", "return")}
    assert not (Path(figures["checkpoint"]).parents[1] / "eval").exists()


def test_training_reads_data_of_the_hub_and_names_them(call, stored, tmp_path):
    assert call("train", "bc", "hf:owner/fork", "--out", tmp_path / "run", *TINY)[0] == 0
    assert (tmp_path / "run" / "CARD.md").read_text().startswith("# Regression policy on owner/fork\n")


def test_pull_writes_a_folder_and_says_what_to_do_next(call, stored, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("pull", "owner/fork-bc")
    assert status == 0 and "next:\n  understudy eval fork-bc fork --episodes 100" in out and "downloading" in err
    assert files_in(tmp_path / "fork-bc") == files_in(place / "a")
    told = document(call("pull", "hf:owner/fork", "--to", "data", "--json"))
    assert told["kind"] == "dataset" and files_in(tmp_path / "data") == files_in(place / "demos")
    refused(call("pull", "owner/fork", "--to", "data"), "there is already a file or folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "fork-bc"]


def test_a_name_of_both_kinds_is_asked_about(call, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored.repositories["datasets", "owner/fork-bc"] = stored.repositories["datasets", "owner/fork"]
    refused(call("pull", "owner/fork-bc"), "understudy pull datasets/owner/fork-bc or understudy pull models/")
    assert document(call("pull", "models/owner/fork-bc", "--json"))["kind"] == "model"


def test_an_interrupted_download_continues(call, stored, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    large = next(name for name in files_in(place / "demos") if name.startswith("data/"))
    for command in (("pull", "owner/fork", "--to", "data"), ("inspect", "hf:owner/fork")):
        stored.cut = {large}
        refused(call(*command), "hf:owner/fork: ", "give the same command again")
        assert not (tmp_path / "data").exists() or command[0] == "inspect"
        assert set(stored.downloads()) > {large}
        stored.cut.clear()
        stored.requests.clear()
        assert call(*command)[0] == 0
        assert len(stored.downloads()) < len(files_in(place / "demos")) and large in stored.downloads()
        stored.requests.clear()
    assert files_in(tmp_path / "data") == files_in(place / "demos")


def test_a_damaged_file_is_refused_and_downloaded_again(call, stored, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = files_in(place / "a")
    weights = next(name for name in names if name.endswith("20/weights.safetensors"))
    small = next(name for name in names if name.endswith("20/policy.json"))
    for damaged, command in ((weights, ("pull", "owner/fork-bc", "--to", "run")),
                             (small, ("eval", "hf:owner/fork-bc", "fork", "--episodes", 1))):
        stored.damaged = {damaged}
        refused(call(*command), f"{damaged} is damaged: its checksum is not the one that the hub states")
        refused(call(*command), f"{damaged} is damaged")
        assert not (tmp_path / "run").exists() or command[0] == "eval"
        stored.damaged.clear()
        assert call(*command)[0] == 0
    assert files_in(tmp_path / "run") == names


def test_what_cannot_be_read_says_what_to_do(call, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored.repositories["models", "owner/secret"] = Repository(private=True)
    stored.repositories["models", "owner/gated"] = Repository(gated=True)
    for repository in (("models", "owner/secret"), ("models", "owner/gated")):
        stored.repositories[repository].commit({"README.md": b"x"})
    refused(call("inspect", "hf:fork"), "this is not the name of a repository", "hf:lerobot/pusht")
    refused(call("inspect", "hf:owner/none"), "there is no such data set on the hub, or it is private",
            "use an account that may read it (hf auth login)")
    refused(call("inspect", "hf:owner/fork-bc"), "this is a policy, not a data set", "takes RUN")
    refused(call("eval", "hf:owner/fork-bc@v9", "fork"), "the policy has no revision 'v9'")
    refused(call("calibrate", "hf:owner/fork-bc", "fork"), "understudy pull owner/fork-bc")
    refused(call("train", "bc", "demos", "--out", "hf:owner/new"), "understudy push FOLDER owner/new")
    monkeypatch.delenv("HF_TOKEN")
    refused(call("eval", "hf:owner/secret", "fork"), "there is no such policy", "hf auth login", "HF_TOKEN")
    refused(call("eval", "hf:owner/gated", "fork"), "gives access on request only", "/owner/gated")
    refused(call("pull", "owner/none"), "there is no such data set")


def test_without_a_network_what_was_downloaded_is_used(call, stored, place, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert call("inspect", "hf:owner/fork")[0] == 0
    stored.status = 503
    refused(call("eval", "hf:owner/fork-bc", "fork"), "the hub answers with the error 503", "wait a while")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    status, _, err = call("inspect", "hf:owner/fork")
    assert status == 0 and "hf:owner/fork: the hub cannot be reached; what was downloaded last is used" in err
    refused(call("eval", "hf:owner/fork-bc", "fork"), "the hub does not answer at http://127", "check the network")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(call("eval", "hf:owner/fork-bc", "fork"), "check the network")


def test_a_full_disk_and_a_missing_package_are_told(call, stored, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10))
    refused(call("inspect", "hf:owner/fork"), "GB of disk, and 0.00 GB are free", "HF_HOME")
    refused(call("pull", "owner/fork"), "choose another place with --to")
    assert not stored.downloads()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(call("inspect", "hf:owner/fork"), "needs the package huggingface_hub", "understudy[hub]")
