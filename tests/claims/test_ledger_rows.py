"""The rows of the ledger."""

import re

import pytest

from understudy.claims import ledger, records
from understudy.claims.ledger import find_row, ledger_rows
from understudy.core import UserError


def test_the_rows_are_those_of_the_published_list(shared):
    head, *lines = (shared / "ledger/ledger.tsv").read_text(encoding="utf-8").splitlines()
    assert head.split("\t")[:6] == ledger.COLUMNS[:6] and len(lines) == len(ledger_rows()) == 296
    for line in lines:
        number, family, core, priority, _, title = line.split("\t")[:6]
        r = ledger_rows()[number]
        assert (r.id, r.family, r.is_core, r.priority, r.title) == (
            number,
            family,
            core == "core",
            int(priority),
            title,
        )


def test_a_row_is_three_digits_and_stands_once(tmp_path, monkeypatch):
    assert all(re.fullmatch(r"\d{3}", n) and r.id == n and r.priority in (1, 2, 3) for n, r in ledger_rows().items())
    assert all(re.fullmatch(r"(\d{4}\.\d{4,5})?", r.arxiv) for r in ledger_rows().values())
    papers = [r.arxiv for r in ledger_rows().values() if r.arxiv]
    assert len(papers) == len(set(papers)) > 100
    head = "\t".join(ledger.COLUMNS)
    good = "003\tf\tcore\t1\tname\ttitle\t"
    for text, message in ((f"{head}\n{good}\n{good}\n", "line 3: The id '003' is not"),
                          (f"{head}\n{good[1:]}\n", "line 2: The id '03' is not"),
                          (f"{head}\nno\n", "has 1 columns instead of 7")):
        (tmp_path / "claims").mkdir(exist_ok=True)
        (tmp_path / "claims/ledger.tsv").write_text(text)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=message):
            ledger_rows()


def test_claims_are_of_rows_and_cite_their_papers():
    texts = records.all_texts()
    for name, claim in records.all_claims().items():
        for number in claim.rows:
            paper, cited = find_row(number, name).arxiv, re.findall(r"\d{4}\.\d{4,5}", texts[name].paper)
            assert not paper or not cited or paper in cited
    with pytest.raises(UserError, match="the claim x: The ledger has no row '999'"):
        find_row("999", "x")
