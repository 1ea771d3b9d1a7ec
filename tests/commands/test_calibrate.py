"""understudy calibrate, eval --detect and improve --with doubt."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.cli import document, refused

from understudy.data.formats import open_dataset
from understudy.evaluate.failure_detection import FailureDetector


@pytest.fixture
def calibrated(place, call) -> dict:
    return document(call("calibrate", place / "a", "fork", "--score", "novelty", "--rate", 0.2, "--episodes", 30,
                         "--json"))


def test_the_threshold_is_that_of_the_rollouts_and_eval_counts_its_alarms(place, call, tmp_path, calibrated):
    failed = calibrated["n_calibration"]
    assert calibrated["missed"] == {**calibrated["missed"], "count": int(0.2 * (failed + 1)) - 1, "episodes": failed}
    result = document(call("eval", place / "a", "fork", "--episodes", 8, "--detect", "--json", "--save",
                           tmp_path / "e"))
    detector, episodes = FailureDetector.load(place / "a"), open_dataset(tmp_path / "e")
    assert result["detection"]["threshold"] == detector.threshold == calibrated["threshold"]
    assert result["detection"]["missed"]["count"] == sum(
        e.steps["doubt"].max() < detector.threshold for e in episodes if not e.metadata["success"])
    plain = document(call("eval", place / "a", "fork", "--episodes", 8, "--json"))
    assert plain["detection"] is None and plain["success"] == result["success"] and plain["return"] == result["return"]
    text = call("eval", place / "a", "fork", "--episodes", 8, "--detect", "--html", tmp_path / "page.html")[1]
    assert "failures without an alarm" in (page := (tmp_path / "page.html").read_text()) and "Alarms" in page
    assert "failures without an alarm" in text and "; the stated rate is 20.0%." in text


def test_demonstrations_that_have_changed_since_the_calibration_are_refused(place, call, tmp_path, calibrated):
    """The nearest of more demonstrations is nearer, so that alarms would come later or not at all."""
    whole = place / "demos"
    shutil.copytree(whole, tmp_path / "demos")
    assert call("record", "fork", "--out", whole, "--episodes", 13)[0] == 0
    try:
        refused(call("eval", place / "a", "fork", "--episodes", 2, "--detect"), "demos: the demonstrations",
                "have changed since its failure detector was calibrated", "understudy calibrate")
    finally:
        shutil.rmtree(whole)
        shutil.copytree(tmp_path / "demos", whole)
    assert call("eval", place / "a", "fork", "--episodes", 2, "--detect")[0] == 0


@pytest.mark.slow
def test_workers_raise_the_same_alarms(place, call, calibrated):
    alone, shared = (document(call("eval", place / "a", "fork", "--episodes", 8, "--detect", "--workers", n, "--json"))
                     for n in (1, 2))
    assert shared["detection"] == alone["detection"]


def test_what_cannot_be_calibrated_or_used_is_refused(place, call, calibrated):
    refused(call("calibrate", place / "a", "fork", "--episodes", 5), "plans without randomness", "--score novelty")
    novelty = ("--score", "novelty")
    refused(call("calibrate", place / "a", "fork", *novelty, "--rate", 0), "--rate", "above 0 and below 1")
    refused(call("calibrate", place / "a", "fork", *novelty, "--rate", 0.01, "--episodes", 4), "at least 99 failures")
    refused(call("calibrate", place / "no", "fork"), "no")
    refused(call("eval", place / "a", place / "demos", "--detect"), "--detect", "needs an environment")
    refused(call("eval", place / "a", "fork", "--detect", "--sequential", "--threshold", 0.5), "--detect")
    refused(call("eval", place / "b", "fork", "--detect"), "the run has no failure detector", "understudy calibrate")
    shutil.copy(place / "a" / "detector.json", place / "b")
    refused(call("eval", place / "b", "fork", "--detect"), "for another checkpoint", "understudy calibrate")
    (place / "b" / "detector.json").unlink()
    refused(call("eval", place / "a", "fork", "--detect", "--executor", "temporal-ensemble"),
            "calibrated with no option of acting", "--executor temporal-ensemble")


def test_the_supervisor_acts_from_the_first_alarm_on(place, call, tmp_path, calibrated):
    out: Path = tmp_path / "better"
    status, _, err = call("improve", place / "a", "--with", "doubt", "--supervisor", "scripted", "--out", out,
                          "--rounds", 1, "--episodes", 4, "--steps", 3, "--compare", 4, "--device", "cpu")
    assert status == 0 and "the policy asks where its failure detector raises an alarm" in err
    threshold = json.loads((place / "a" / "detector.json").read_text())["threshold"]
    for episode in open_dataset(next((out / "collection").glob("*"))):
        asked = np.maximum.accumulate(episode.steps["doubt"] >= threshold)
        assert np.array_equal(episode.steps["intervention"], asked[:len(episode.steps["intervention"])])
    refused(call("improve", place / "b", "--with", "doubt", "--supervisor", "scripted", "--out", tmp_path / "c"),
            "the run has no failure detector")
