"""A record goes stale with its code and with nothing else, and says what its figures say."""

import subprocess

import pytest

from understudy import config
from understudy.claims import records
from understudy.claims.base import (
    summarize,
)
from understudy.claims.runner import judge_again, judge_figures
from understudy.core import UserError
from understudy.files import read_json


def test_every_recorded_figure_is_of_the_kind_that_its_claim_declares():
    for name, claim in records.all_claims().items():
        if records.record_path(name).exists():
            parts, figures = read_json(records.record_path(name))["parts"], read_json(records.figures_path(name))
            for part in claim.parts:
                summary = summarize(figures[part.name], dict(part.experiment.measures))
                assert summary.keys() == parts[part.name]["summary"].keys()


def test_every_claim_stands_complete():
    claims = records.all_claims()
    rows = {row for c in claims.values() for row in c.rows}
    assert {"260", "264", "158", "079", "281", "003", "007", "009", "185", "301", "308", "327"} <= rows
    for name, claim in claims.items():
        assert name == claim.name and records.find_file(name).with_suffix(".py").exists()
        assert claim.negative_control.part in {p.name for p in claim.parts} and any(p.is_decisive for p in claim.parts)
        for part in claim.parts:
            assert len(part.experiment.seeds) >= 5 and set(part.rule.arms) <= {a.name for a in part.experiment.arms}
            if part.name == claim.negative_control.part:
                assert config.dump(claim.negative_control.change(part.experiment)) != config.dump(part.experiment)
            for arm in part.experiment.arms:
                assert all(config.load(config.dump(o), ("understudy", "claims")) == o for o in arm.options)


@pytest.mark.slow
def test_a_fingerprint_sees_code_and_not_comments(tmp_path, monkeypatch):
    claim = records.find_claim("diffusion-bc")
    before = records.fingerprint(claim)
    assert before == records.fingerprint(claim)
    original = records._module_file

    def changed(text, change):
        assert change(text) != text
        return change(text)

    def with_change(change):
        def file(module):
            path = original(module)
            if path is None or module != "understudy.heads.denoising.diffusion":
                return path
            copy = tmp_path / path.name
            copy.write_text(change(path.read_text()))
            return copy
        monkeypatch.setattr(records, "_module_file", file)
        return records.fingerprint(claim)

    def said_otherwise(text):
        for same in (lambda text: "# said otherwise\n" + text, lambda text: text.replace("\n\n", "\n\n\n\n"),
                     lambda text: text.replace("the action or a mixture of both", "the action or both"),  # a docstring
                     lambda text: text.replace('    n_train_steps: int = 100\n',
                                               '    n_train_steps: int = (\n        100)\n')):
            text = changed(text, same)
        return text
    assert with_change(said_otherwise) == before
    assert with_change(lambda text: text.replace("n_steps: int = 10", "n_steps: int = 11")) != before
    modules = []
    monkeypatch.setattr(records, "_module_file", lambda module: modules.append(module) or original(module))
    records.fingerprint(claim)
    assert {"understudy.heads.denoising.flow", "understudy.evaluate.rollout",
            "understudy.envs.toys.fork"} <= set(modules)
    assert "claims.evaluation.ema_oscillation" not in modules and "understudy.cli" not in modules
    assert "understudy.data.episode" in modules and "understudy.data.formats.detection" not in modules
    # What it names by a string is followed, and no other environment.
    assert "understudy.envs.toys.particle" not in modules


def test_a_commit_says_whether_the_code_is_that_of_the_commit(tmp_path, monkeypatch):
    def git(*args):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *args], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout.strip()
    (tmp_path / "claims/family/records").mkdir(parents=True)
    for name in ("ledger.tsv", "family/one.py", "family/one.md"):
        (tmp_path / "claims" / name).write_text("1")
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    assert records.provenance()["commit"] is None  # nothing is committed yet
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert records.provenance()["commit"] == head and len(head) == 40
    (tmp_path / "claims/family/records/one.json").write_text("{}")  # what a claim before this one wrote
    (tmp_path / "claims/family/one.md").write_text("another word")
    (tmp_path / "notes.md").write_text("elsewhere")
    assert records.provenance()["commit"] == head
    (tmp_path / "claims/family/one.py").write_text("2")
    assert records.provenance()["commit"] == f"{head} with uncommitted changes"


def test_the_stored_records_are_what_the_rules_say_of_the_stored_figures():
    for name, claim in records.all_claims().items():
        if records.record_path(name).exists():
            record = read_json(records.record_path(name))
            if records.is_redesigned(records.find_text(name).revision, record):
                with pytest.raises(UserError, match="has changed since its record"):
                    judge_again(claim, "2026-11-23", "A rule that was set after the figures.")
                continue
            judgment = judge_figures(claim, read_json(records.figures_path(name)))
            assert (record["verdict"], record["reason"]) == (judgment["verdict"], judgment["reason"]), name
            for part, stored in record["parts"].items():
                assert stored["verdict"] == judgment["parts"][part]["verdict"]
                for a, b in zip(stored["conditions"], judgment["parts"][part]["conditions"], strict=True):
                    assert (a["low"], a["high"]) == pytest.approx((b["low"], b["high"]), rel=1e-6, abs=1e-9)


def test_every_record_has_its_history():
    for name in records.all_claims():
        if records.record_path(name).exists():
            record = read_json(records.record_path(name))
            assert record["log"][-1]["verdict"] == record["verdict"]
            assert {e["kind"] for e in record["log"]} <= {"pilot", "run", "redesign", "judged again", "note"}
            assert all(e["change"] and e["date"] for e in record["log"])
            assert [e["date"] for e in record["log"]] == sorted(e["date"] for e in record["log"])
