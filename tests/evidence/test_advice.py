"""Sentences of advice: their p-values, what survives, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from evidence import advice
from evidence.advice import Sentence, paired_p_value
from evidence.tables import Family, Table
from understudy.core import UserError
from understudy.diagnose.base import ORDER
from understudy.files import write_json
from understudy.methods import method_files

D = np.array([0.1, 0.3, 0.5])  # mean 0.3, standard error 0.1155, t = 2.5981; two-sided p of t(2) is 0.12169


def test_a_p_value_is_that_of_student():
    assert paired_p_value(D) == pytest.approx(0.12169, abs=1e-5)
    assert paired_p_value(D, one_sided=True) == pytest.approx(0.12169 / 2, abs=1e-5)
    assert paired_p_value(-D) == 1 and paired_p_value(np.array([0.2, 0.2])) == 0


def tables(folder, **differences):
    """A table for each world, in which the arm `new` differs from `plain` by these numbers."""
    family = Family("toys", "", "", {}, folder)
    for world, d in differences.items():
        write_json(folder / f"figures/{world}.json", {
            "seeds": list(range(100, 100 + len(d))), "commits": ["0123456789ab"], "exploratory": False, "seconds": 1,
            "figures": {"success": {"plain": [0.5] * len(d), "new": [0.5 + v for v in d]}}})
    return {world: Table(family, world, world, "", "plain") for world in differences}


def sentence(worlds, **options):
    return Sentence("one", "Do it.", "new", "plain", ("first", "second"), tables=worlds, **options)


def test_the_larger_p_value_of_both_worlds_counts(tmp_path):
    clear = [0.30, 0.31, 0.29, 0.30]
    assert sentence(tables(tmp_path, first=clear, second=[0.1, 0.3, 0.5])).p_value() == pytest.approx(0.12169, abs=1e-5)
    assert sentence(tables(tmp_path, first=clear, second=[-v for v in clear])).p_value() == 1


def test_what_costs_nothing_lies_within_the_margin_on_both_sides(tmp_path):
    """Differences of -0.01, 0 and 0.01: t is 0.05 / 0.005774 = 8.6603 on both sides, and p of t(2) is 0.006538."""
    small = [-0.01, 0.0, 0.01]
    within = sentence(tables(tmp_path, first=small, second=small), margin=0.05)
    assert within.p_value() == pytest.approx(0.006538, abs=1e-5)
    assert replace(within, margin=0.005).p_value() > 0.1


def test_what_survives_is_corrected_for_the_number_of_sentences(tmp_path, monkeypatch):
    """Holm multiplies the smallest p-value by the number of sentences, and at least by the 16 that are planned."""
    strong, weak = [0.30, 0.31, 0.29, 0.30], [0.20, 0.30, 0.25, 0.28]
    one = sentence(tables(tmp_path, first=strong, second=weak))
    assert 0.05 / 40 < one.p_value() < 0.05 / 16
    family = Family("toys", "", "", {}, tmp_path)
    waiting = Sentence("later", "Wait.", "new", "plain", ("third", "fourth"),
                       tables={world: Table(family, world, world, "", "plain") for world in ("third", "fourth")})
    for others, survives in ((0, True), (1, True), (39, False)):
        every = {"one": one, **{f"later-{i}": waiting for i in range(others)}}
        monkeypatch.setattr(advice, "sentences", lambda every=every: every)
        assert advice.judge() == {"one": survives}
    assert "## What did not hold up" in advice.page() and "## Not judged yet" in advice.page()
    assert advice.survivors() == []
    monkeypatch.setattr(advice, "sentences", lambda: {"one": one})
    (shipped,) = advice.survivors()
    assert shipped["sentence"] == "Do it."
    assert "80 % against 50 % [difference 29 to 31 points, 4 seeds] in first" in shipped["figures"]


@pytest.mark.parametrize("entry, problem", [
    ('rival = ""\nworlds = ["a", "b"]', "has no rival"),
    ('rival = "plain"\nworlds = ["no", "table"]', "names no table")])
def test_a_sentence_without_a_rival_or_a_world_is_refused(tmp_path, monkeypatch, entry, problem):
    file = tmp_path / "advice.toml"
    file.write_text(f'[one]\nsentence = "Do it."\narm = "new"\n{entry}\n')
    monkeypatch.setattr(advice, "FILE", file)
    with pytest.raises(UserError, match=problem):
        advice.sentences()


def test_the_sentences_of_the_repository_can_be_judged_and_looked_up():
    sentences = advice.sentences()
    assert set(advice.judge()) <= set(sentences) and len(sentences) <= 16
    about = {"choose ways", "inspect failures", *(f"methods {name}" for name in method_files()),
             *(f"diagnose {code}" for code in ORDER)}
    assert {topic for sentence in sentences.values() for topic in sentence.topics} <= about
