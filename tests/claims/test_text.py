"""The Markdown files of the claims: what their heads have, how long their paragraphs are, and what reads them."""

import ast
import re

import pytest

from understudy.claims import records
from understudy.claims.text import read_texts
from understudy.core import UserError
from understudy.files import read_json


def test_every_claim_has_a_text_with_short_paragraphs():
    texts = records.all_texts()
    assert texts.keys() == records.all_claims().keys()
    for name, text in texts.items():
        assert records.find_text(name) == text
        assert text.setup and max(len(p.split()) for p in text.setup) <= 80, name
        for line in (text.advice, text.against):
            assert 8 <= len(line.split()) <= 50 and line.endswith("."), name
        assert re.search(r"\d", text.advice), f"{name}: give figures"
        assert not text.control.endswith("."), "a sentence of the page ends it"


def test_advice_says_if_its_claim_does_not_hold():
    """A verdict that changes makes its advice wrong."""
    words = {"fails": r"\bfails\b", "undecided": r"\bundecided\b|is not shown"}
    for name, text in records.all_texts().items():
        if records.record_path(name).exists():
            verdict, both = read_json(records.record_path(name))["verdict"], f"{text.advice} {text.against}"
            if verdict == "holds":
                assert not re.search(r"claim (fails|is undecided)", both), name
            else:
                assert re.search(words[verdict], both), f"{name}: say that it {verdict}"


def test_texts_stand_once():
    """Neither in modules, where a changed word would make a record stale, nor in records."""
    for name in records.all_claims():
        file = records.find_file(name).with_suffix(".py")
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and "Claim" in ast.dump(statement.value):
                assert not [n.value for n in ast.walk(statement) if isinstance(n, ast.Constant)
                            and isinstance(n.value, str) and len(n.value.split()) > 25], file
        if records.record_path(name).exists():
            record = read_json(records.record_path(name))
            assert not {"paper", "statement", "setup"} & record.keys() and "change" not in record["negative_control"]


HEAD = """decision = "memory"
paper = "p"
statement = "s"
control = "c"
advice = "a"
against = "b"
"""


def test_claims_of_one_file_share_what_stands_before_the_first_heading(tmp_path):
    file = tmp_path / "family.md"
    file.write_text(f"+++\n[one]\n{HEAD}[two]\n{HEAD}revision = \"r\"\n+++\n\n"
                    "For\nboth.\n\n## two\n\nFor two.\n\nMore.\n")
    texts = read_texts(file)
    assert (texts["one"].setup, texts["two"].setup) == (("For both.",), ("For both.", "For two.", "More."))
    assert (texts["one"].revision, texts["two"].revision, texts["one"].against) == ("", "r", "b")


@pytest.mark.parametrize("text,problem", [
    ("no head\n", "no TOML head"), (f"+++\n[one\n{HEAD}+++\n", "The head is not TOML"),
    ("+++\n[one]\npaper = 'p'\n+++\n", r"\[one\] lacks decision, statement, control, advice, against"),
    (f"+++\n[one]\n{HEAD}+++\n".replace("memory", "memories"), "unknown decision 'memories'"),
    (f"+++\n[one]\n{HEAD}papr = 'p'\n+++\n", "unknown key papr")])
def test_a_head_that_is_wrong_is_told_with_its_file(tmp_path, text, problem):
    file = tmp_path / "one.md"
    file.write_text(text)
    with pytest.raises(UserError, match=problem) as error:
        read_texts(file)
    assert str(file) in str(error.value)
