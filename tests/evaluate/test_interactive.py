"""Trials judged by a person: the order is fair, no answer is lost, and nobody knows whose a trial was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.terminals import Terminal
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.cli import main
from understudy.core import UserError
from understudy.evaluate.interactive import LABELS, Round, TrialDesign, TrialLog
from understudy.evaluate.sequential import SequentialDifferenceTest, SequentialRateTest

TWO = TrialDesign(("left", "right"), SequentialDifferenceTest(max_rollouts=60))
ONE = TrialDesign(("alone",), SequentialRateTest(0.6, max_rollouts=60))


def said(*labels):
    """Trials that went so, one after the other."""
    return [e for label in labels for e in ({"event": "begin"}, {"event": "label", "label": label})]


def after(design, events):
    session = design.start()
    for event in events:
        session = design.update(session, event)
    return session


# -- the order ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 500))
def test_every_round_has_each_policy_once(seed, draw):
    assert sorted(TrialDesign(("a", "b"), SequentialDifferenceTest(), seed=seed).policy_order(draw)) == [0, 1]
    assert TrialDesign(("a",), SequentialRateTest(0.5), seed=seed).policy_order(draw) == (0,)


def test_who_comes_first_is_a_fair_coin_that_remembers_nothing():
    first = np.array(
        [
            [TrialDesign(("a", "b"), SequentialDifferenceTest(), seed=s).policy_order(d)[0] for d in range(200)]
            for s in range(20)
        ])
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(first.size)
    after_one = first[:, 1:][first[:, :-1] == 1]  # does the coin know what it showed before?
    assert abs(after_one.mean() - 0.5) < 4 * 0.5 / np.sqrt(after_one.size)
    other = [
        [TrialDesign(("a", "c"), SequentialDifferenceTest(), seed=s).policy_order(d)[0] for d in range(200)]
        for s in range(20)
    ]
    assert 0.4 < (first == np.array(other)).mean() < 0.6  # and other policies have other orders


def test_what_a_trial_says_does_not_say_whose_it_is():
    session = TWO.start()
    for _ in range(5):
        one = TWO.current_trial(session)
        session = after_begin = TWO.update(session, {"event": "begin"})
        assert TWO.current_trial(after_begin).index == one.index
        session = TWO.update(session, {"event": "label", "label": "failure"})
        two = TWO.current_trial(session)
        assert (two.start, two.index) == (one.start, one.index + 1) and (two.key == one.key).all()
        session = after_both = after(TWO, said(*["failure"] * (2 * one.start)))
        assert (
            TWO.current_trial(after_both).start == one.start + 1
            and not (TWO.current_trial(after_both).key == one.key).all())


# -- the session ----------------------------------------------------------------------------------------------------


def test_the_test_sees_complete_rounds_by_policy():
    session, won = TWO.start(), {0: "success", 1: "partial"}
    for n in range(6):
        session = TWO.update(session, {"event": "begin"})
        session = TWO.update(session, {"event": "label", "label": won[TWO.current_policy(session)]})
        assert TWO.test_state(session)["pairs"] == (n + 1) // 2 and TWO.next_event(session) == "begin"
    assert TWO.test_state(session) == {"pairs": 3, "first": 3, "second": 0}
    first, second = TWO.result(session)["policies"]
    assert first["labels"] == {"failure": 0, "partial": 0, "success": 3} and first["successes"] == 3
    assert second["labels"] == {"failure": 0, "partial": 3, "success": 0} and second["successes"] == 0
    while TWO.next_event(session) == "begin":
        session = TWO.update(session, {"event": "begin"})
        session = TWO.update(session, {"event": "label", "label": won[TWO.current_policy(session)]})
    # A fair coin shows eight times the same in one of 128 pairs of repetitions; nine are asked by the mixture of bets.
    assert TWO.verdict(session) == "first" and len(session.rounds) == 9 and TWO.next_event(session) == "end"
    with pytest.raises(UserError, match="although the result is clear"):
        TWO.update(session, {"event": "begin"})
    # One wrong answer, corrected: it was not settled after all.
    back = TWO.update(session, {"event": "correct", "label": "success" if session.rounds[-1].labels[-1] != "success"
                                else "failure"})
    assert TWO.verdict(back) is None and TWO.next_event(back) == "begin" and len(back.rounds) == 9


def test_spoilt_trials_are_run_again_and_counted():
    session = after(TWO, [*said("failure"), {"event": "begin"}, {"event": "spoilt"}])
    first, second = TWO.policy_order(0)
    assert TWO.current_policy(session) == second and session.discarded[second] == 1 and session.discarded[first] == 0
    session = after(TWO, [*said("failure"), {"event": "begin"}, {"event": "begin"}])  # interrupted
    assert TWO.current_policy(session) == second and session.discarded[second] == 1 and session.n_trials == 3
    scrapped = TWO.update(session, {"event": "scrap"})
    assert scrapped.discarded[second] == 2 and scrapped.discarded[first] == 1
    assert scrapped.current_round == Round(1) and not scrapped.is_running and TWO.test_state(scrapped)["pairs"] == 0
    assert (TWO.current_trial(scrapped).start, TWO.current_trial(scrapped).index) == (1, 4)


def test_what_cannot_happen_is_refused():
    running = after(TWO, [{"event": "begin"}])
    for session, event in ((TWO.start(), {"event": "label", "label": "success"}), (TWO.start(), {"event": "spoilt"}),
                           (TWO.start(), {"event": "correct", "label": "success"}), (running, {"event": "end"}),
                           (running, {"event": "label", "label": "great"}), (running, {"event": "label"}),
                           (running, {"event": "correct", "label": "success"}), (TWO.start(), {"event": "dance"}),
                           (TWO.start(), {}), (after(TWO, [{"event": "end"}]), {"event": "begin"})):
        with pytest.raises(UserError):
            TWO.update(session, event)
    for call in (
        lambda: TrialDesign(("a", "b"), SequentialRateTest(0.5)),
        lambda: TrialDesign(("a",), SequentialDifferenceTest()),
        lambda: TrialDesign(("a", "b", "c"), SequentialDifferenceTest()),
        lambda: TrialDesign(("a",), SequentialRateTest(0.5), labels=("won",)),
        lambda: TrialDesign(("a",), SequentialRateTest(0.5), labels=("won", "won")),
    ):
        with pytest.raises(UserError):
            call()


ANSWERS = st.lists(st.sampled_from([*LABELS, "spoilt", "scrap", "correct"]), max_size=40)


def happening(design, answers):
    """Events as a person makes them of these answers; what cannot come then is left out."""
    session, events = design.start(), []
    for answer in answers:
        step = design.next_event(session)
        if answer == "correct":
            can_correct = session.rounds or session.current_round.labels
            chosen_events = [{"event": "correct", "label": "partial"}] if can_correct else []
        elif step != "begin":
            break
        else:
            ends = {"event": answer} if answer in ("spoilt", "scrap") else {"event": "label", "label": answer}
            chosen_events = [{"event": "begin"}, ends]
        for event in chosen_events:
            session = design.update(session, event)
        events += chosen_events
    return events, session


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([TWO, ONE]), ANSWERS, st.data())
def test_going_on_anywhere_is_as_if_nothing_had_happened(tmp_path_factory, design, answers, data):
    events, whole = happening(design, answers)
    path = tmp_path_factory.mktemp("journal") / "trials.jsonl"
    with TrialLog.open(path, design.to_json()) as journal:
        for event in events:
            journal.write(event)
    text = path.read_bytes()
    cut = data.draw(st.integers(0, len(text)), "bytes that were on the disk when it stopped")
    path.write_bytes(text[:cut])
    with TrialLog.open(path, design.to_json()) as journal:
        kept = [{k: v for k, v in e.items() if k != "time"} for e in journal.events]
        assert kept == events[:len(kept)] and len(kept) >= text[:cut].count(b"\n") - 1
        for event in events[len(kept):]:
            journal.write(event)
    with TrialLog.open(path, design.to_json()) as journal:
        assert after(design, journal.events) == whole
    assert after(design, events[:len(kept)]) == after(design, kept)


def test_a_journal_is_of_one_evaluation_and_one_process(tmp_path):
    path = tmp_path / "t.jsonl"
    with TrialLog.open(path, TWO.to_json()) as journal:
        journal.write({"event": "begin"})
        assert path.read_text().count("\n") == 2  # on the disk, not in a buffer
        code = ("import sys; from understudy.evaluate.interactive import *; from understudy.core import UserError\n"
                "try:\n    TrialLog.open(sys.argv[1], {}).__enter__()\nexcept UserError as e:\n    print(e)")
        process = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert "another process" in process.stdout
    for changes, words in (({"policies": ["x", "y"]}, "begun with policies left and right, and not x and y"),
                           ({"most": 7}, "begun with --episodes 60, and not 7"),
                           ({"weights": ["a", "b"]}, "weights of these policies, which have been trained since")):
        with pytest.raises(UserError, match=words), TrialLog.open(path, {**TWO.to_json(), **changes}):
            pass
    for text, words in (("hello", "does not hold"), ("hello\n", "line 1"), ('{"event": "begin"}\n', "does not hold"),
                        (path.read_text() + "[1]\n", "line 3")):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(UserError, match=words), TrialLog.open(tmp_path / "bad", TWO.to_json()):
            pass
        assert (tmp_path / "bad").read_text() == text  # what is not ours stays as it is
    with pytest.raises(UserError, match="folder"), TrialLog.open(tmp_path, TWO.to_json()):
        pass


# -- at a terminal --------------------------------------------------------------------------------------------------


LOOP = '''
import time
from understudy import make
from understudy.evaluate.rollout import rollout

def judged(actor, trial):
    return rollout(actor, make("fork", 1), 1, seed=7, first=trial.start)[0].metadata["success"]

def silent(actor, trial):
    print("moving", flush=True)

def long(actor, trial):
    print("moving", flush=True)
    time.sleep(60)

def broken(actor, trial):
    print({}["no such joint"])

def strange(actor, trial):
    return 7

def factory(rows):
    pass
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("interactive")
    (folder / "robot_of_a_test.py").write_text(LOOP)
    tiny = [
        "--steps",
        "5",
        "--save-freq",
        "5",
        "--device",
        "cpu",
        "--policy.trunk.width",
        "8",
        "--policy.trunk.depth",
        "1",
    ]
    assert main(["record", "fork", "--out", str(folder / "demos"), "--episodes", "40"]) == 0
    assert main(["train", "bc", str(folder / "demos"), "--out", str(folder / "bad"), *tiny]) == 0
    assert main(["train", "knn", str(folder / "demos"), "--out", str(folder / "good"), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def call(capsys, monkeypatch, place):
    """call(answers, *args) -> (status, out, err), with these lines on standard input."""
    import io

    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))

    def run(answers, *args):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{a}\n" for a in answers)))
        status = main(["eval", *map(str, args)])
        return status, *capsys.readouterr()
    return run


def test_a_loop_that_judges_itself_is_settled_and_told(call, place, tmp_path):
    journal = tmp_path / "t.jsonl"
    args = ["bad", "robot_of_a_test:judged", "--trust", "robot_of_a_test", "--interactive", "--against", "good",
            "--save", journal]
    status, out, err = call([""] * 7, *args)  # the person leaves in the fourth round
    assert status == 130 and "the same command continues" in err
    assert "good succeeds" not in out  # nobody is told before the end
    assert not re.search(r"good|bad", "".join(journal.read_text().splitlines()[1:]))
    assert "In so many rounds a difference of 12 points shows four times in five at best" in out
    status, out, err = call([""] * 80, *args, "--json", "--html", tmp_path / "t.html")
    report = json.loads(out)
    page = (tmp_path / "t.html").read_text()
    assert "Looked at after every round" in page and "good succeeds more often" in page and "<svg" in page
    assert status == 0 and report["verdict"] == "second" and report["rounds"] == 9 and report["most"] == 100
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert lines[0]["policies"] == ["bad", "good"] and lines[-1]["result"] == report
    by_policy = {"bad": set(), "good": set()}
    labels = [e["label"] for e in lines if e["event"] == "label"]
    for name, label in zip((n for order in lines[-1]["orders"] for n in order), labels, strict=True):
        by_policy[name].add(label)
    assert by_policy == {"bad": {"failure"}, "good": {"success"}}
    status, out, _ = call([], *args)  # asked once more, it says the same
    assert status == 0 and "good succeeds more often than bad: 9 of 9 against 0 of 9" in out
    status, _, err = call([], *args, "--executor", "temporal-ensemble")  # trials of another way of acting
    assert status == 2 and "with options none, and not --executor and temporal-ensemble" in err


def test_a_server_that_changes_its_checkpoint_ends_the_evaluation(call, tmp_path, monkeypatch):
    messages = iter([None, "ws://gpu:8000 changed its checkpoint meanwhile: a, then b"])
    monkeypatch.setattr("understudy.commands.parts.interactive.changed_checkpoint", lambda name: next(messages))
    journal = tmp_path / "t.jsonl"
    status, _, err = call(["", ""], "good", "robot_of_a_test:judged", "--trust", "robot_of_a_test", "--interactive",
                          "--threshold", 0.5, "--save", journal)
    assert status == 2 and "a, then b. Trials of several checkpoints" in err and "without --watch" in err
    events = [json.loads(line)["event"] for line in journal.read_text().splitlines()]
    assert events[1:] == ["begin", "label", "begin", "spoilt"]


def test_a_person_answers_spoils_corrects_and_ends(call, tmp_path):
    args = ["good", "robot_of_a_test:silent", "--trust", "robot_of_a_test", "--interactive", "--threshold", "0.5",
            "--labels", "dropped", "grasped", "placed", "--save", tmp_path / "t.jsonl"]
    status, out, err = call(["", "perfect", "g slipped a little", "", "again", "", "p", "c", "1", "", "round", "3",
                             "what", "end", "no", "end", "yes"], *args)
    assert status == 0, err
    assert "'perfect' is none of these" in out and "'round' is none of these" in out and "'what' is none" in out
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    happened = [(e["event"], e.get("label"), e.get("note")) for e in lines[1:]]
    assert happened == [("begin", None, None), ("label", "grasped", "slipped a little"), ("begin", None, None),
                        ("spoilt", None, None), ("begin", None, None), ("label", "placed", None),
                        ("correct", "dropped", None), ("begin", None, None), ("label", "placed", None),
                        ("end", None, None)]
    [policy] = lines[-1]["result"]["policies"]
    assert policy["labels"] == {"dropped": 1, "grasped": 1, "placed": 1} and policy["spoilt"] == 1
    assert "Cannot tell whether good" in out and "1 of 3 so far" in out
    assert "In so many trials a rate of 32% or less or of 68% or more shows four times in five" in out


@pytest.mark.parametrize(("labels", "answers", "given"), [
    ((), ("y", "n", "yes", "no", "Y", "N really"), ("success", "failure") * 3),
    (("--labels", "nothing", "near", "done"), ("y", "no", "nothing", "nea", "1"),
     ("done", "nothing", "nothing", "near", "nothing")),  # "n" is the beginning of two of them
    (("--labels", "no", "yes"), ("y", "n", "yes"), ("yes", "no", "yes"))])
def test_yes_and_no_are_answers(call, tmp_path, labels, answers, given):
    args = ["good", "robot_of_a_test:silent", "--trust", "robot_of_a_test", "--interactive", "--threshold", "0.5",
            *labels, "--save", tmp_path / "t.jsonl"]
    status, out, err = call([word for answer in answers for word in ("", answer)], *args)
    assert status == 130 and "is none of these" not in out, (out, err)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert tuple(e["label"] for e in lines if e["event"] == "label") == given


def test_without_a_loop_a_name_that_gives_nothing_away_is_run(call, place, tmp_path):
    journal = tmp_path / "t.jsonl"
    args = ["good", "--interactive", "--against", "bad", "--save", journal]
    status, out, err = call([""], *args)
    assert status == 130 and f"The policy to run is {tmp_path / 't.policy'}" in out
    design = TrialDesign(("good", "bad"), SequentialDifferenceTest(max_rollouts=100))
    assert os.readlink(tmp_path / "t.policy") == str(place / design.policies[design.policy_order(0)[0]])
    call(["s", "", "f"], *args)
    assert os.readlink(tmp_path / "t.policy") == str(place / design.policies[design.policy_order(1)[0]])
    assert [json.loads(x).get("label") for x in journal.read_text().splitlines()] == [
        None, None, "success", None, "failure"]


def test_bad_input_at_the_table(call, place, tmp_path):
    trust, save = ["--trust", "robot_of_a_test"], ["--save", tmp_path / "t.jsonl"]

    def refused(args, *words, answers=()):
        status, out, err = call(answers, *args)
        assert status == 2 and "\n  -> " in err, (out, err)
        for word in words:
            assert word in err, err
    refused(["good", "--interactive"], "either --threshold RATE or --against RUN2")
    refused(["good", "fork", "--interactive", "--threshold", 0.5, *save], "module:actor_loop", "--sequential")
    refused(["good", "robot_of_a_test:silent", "--interactive", "--threshold", 0.5, *save], "--trust robot_of_a_test")
    refused(["good", "robot_of_a_test:factory", *trust, "--interactive", "--threshold", 0.5, *save], "(actor, trial)")
    refused(
        ["good", "robot_of_a_test:nobody", *trust, "--interactive", "--threshold", 0.5, *save], "no function 'nobody'")
    refused(["good", "--interactive", "--against", "good/best", *save], "the same")
    refused(["good", "--interactive", "--against", "nowhere", *save], "nowhere: there is no policy")
    refused(["good", "--interactive", "--threshold", 0.5, "--labels", "a", "a", *save], "different labels")
    refused(["good", "--interactive", "--threshold", 0.5, "--labels", "1", "2", *save], "a label must be one word")
    refused(["good", "--interactive", "--threshold", 0.5, "--episodes", 2, *save], "at least", "2 episodes are too few")
    assert not (tmp_path / "t.jsonl").exists()
    for loop, words in (("broken", "KeyError"), ("strange", "returned 7")):
        refused(["good", f"robot_of_a_test:{loop}", *trust, "--interactive", "--threshold", 0.5, "--save",
                 tmp_path / loop], words, "asks about this trial", answers=[""])
    refused(
        ["good", "robot_of_a_test:silent", *trust, "--interactive", "--threshold", 0.5, "--save", tmp_path / "broken"],
        "loop robot_of_a_test:broken, and not robot_of_a_test:silent")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_person_at_a_terminal_whose_machine_dies(place, tmp_path):
    args = ["bad", "robot_of_a_test:long", "--trust", "robot_of_a_test", "--interactive", "--against", "good", "--save",
            tmp_path / "t.jsonl"]
    t = Terminal("eval", *args, cwd=place)
    t.until("enter: begin | end | quit >")
    t.type("\n")
    t.until("moving")
    t.type("\n\n\n")  # fingers on the keyboard while the robot moves
    t.process.send_signal(signal.SIGINT)  # Ctrl-C stops the trial, and the question is asked
    t.until("stopped by you")
    t.until("again | round | quit >")
    time.sleep(0.5)
    t.type("partial\n")
    t.until("enter: begin | correct (it was partial) | end | quit >")
    time.sleep(0.5)
    t.type("\n")
    t.until("moving")
    t.process.kill()
    assert t.end()[0] == -signal.SIGKILL
    t = Terminal("eval", *args, cwd=place)
    t.until("trials begun 2")
    t.until("How did trial 2 go?")  # it was under way
    t.until("quit >")
    t.type("again\n")
    t.until("Round 1, second of two trials")
    t.until("quit >")
    t.type("quit\n")
    assert t.end()[0] == 130
    events = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()[1:]]
    assert [(e["event"], e.get("label")) for e in events] == [
        ("begin", None), ("label", "partial"), ("begin", None), ("spoilt", None)]
