"""What decides a claim, the pages of the ledger, and which claims are run when."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, replace
from html import unescape

import pytest
from fixtures.toy_claims import run_one
from folders import REPOSITORY, TESTS

from understudy.claims import ledger, records
from understudy.claims import scheduler as due_module
from understudy.claims.base import Condition, MissingRequirement
from understudy.claims.folder import claims_folder
from understudy.claims.ledger import LedgerEntry, decisive_condition, interval_svg, ledger_rows
from understudy.claims.listing_cache import cached_listing as kept_listing
from understudy.claims.probe import Confirmation
from understudy.claims.runner import MECHANISM_ONLY
from understudy.claims.scheduler import due_claims, run_all, try_claim
from understudy.claims.text import DECISIONS
from understudy.cli import main
from understudy.commands.parts.common import parse_duration
from understudy.core import UserError

# -- what decides ---------------------------------------------------------------------------------------------------


def condition(label, low, high, side="above", bound=0.0) -> Condition:
    return Condition(label, (low + high) / 2, low, high, side, bound, 0.05)


@pytest.mark.parametrize("low,high,side,bound,verdict", [
    (0.2, 0.4, "above", 0.1, "holds"), (0.2, 0.4, "above", 0.3, "undecided"), (0.2, 0.4, "above", 0.5, "fails"),
    (0.2, 0.4, "below", 0.5, "holds"), (0.2, 0.4, "below", 0.3, "undecided"), (0.2, 0.4, "below", 0.1, "fails"),
    (-0.2, 0.4, "within", 0.5, "holds"), (-0.2, 0.4, "within", 0.3, "undecided"), (0.2, 0.4, "within", 0.1, "fails"),
    (-0.4, -0.2, "within", 0.1, "fails")])
def test_a_condition_has_a_margin_where_it_holds(low, high, side, bound, verdict):
    judged_condition = condition("success: a - b", low, high, side, bound)
    assert judged_condition.verdict == verdict and (judged_condition.margin > 0) == (verdict == "holds")


def record(verdict, *conditions, decides=True, reason="", control=()):
    parts = {str(i): {"decides": decides, "conditions": [asdict(c) for c in group]}
             for i, group in enumerate(conditions)}
    return {"verdict": verdict, "reason": reason, "parts": parts,
            "negative_control": {"conditions": [asdict(c) for c in control]}}


def test_what_decides_is_what_fails_or_is_open_or_holds_most_narrowly():
    good, narrow = condition("good", 0.5, 0.7), condition("narrow", 0.01, 0.7)
    opened, bad = condition("open", -0.1, 0.1), condition("bad", -0.3, -0.1)
    assert decisive_condition(record("holds", (good, narrow))).label == "narrow"
    assert decisive_condition(record("undecided", (good,), (narrow, opened))).label == "open"
    assert decisive_condition(record("fails", (opened,), (good,), (bad,))).label == "bad"
    inconclusive = record("undecided", (good, narrow), reason=ledger.CONTROL_INCONCLUSIVE, control=(bad, opened))
    assert decisive_condition(inconclusive).label == "open"
    assert decisive_condition(record("holds", (good,), decides=False)) is None


def test_the_parts_that_lead_to_a_verdict_are_named_where_several_decide():
    def parts(**verdicts):
        return {name: {"verdict": v, "decides": name != "aside"} for name, v in verdicts.items()}
    two = parts(first="holds", second="fails", aside="fails")
    assert ledger.deciding_parts({"verdict": "fails", "parts": two}) == ["second"]
    assert ledger.deciding_parts({"verdict": "fails", "parts": parts(first="fails", aside="fails")}) == []
    assert ledger.deciding_parts({"verdict": "holds", "parts": parts(first="holds", second="holds")}) == []


def test_every_record_of_ours_has_one_and_its_verdict_follows():
    for name in records.all_claims():
        if records.record_path(name).exists():
            record = json.loads(records.record_path(name).read_text())
            verdict = decisive_condition(record).verdict
            if record["reason"] == ledger.CONTROL_INCONCLUSIVE:
                assert verdict in ("holds", "undecided"), name
            elif record["reason"] == MECHANISM_ONLY:
                assert record["verdict"] == "undecided", name
            elif record["reason"]:  # an arm below its sanity level, whatever the comparison says
                parts = [p for p in record["parts"].values() if p["decides"] and p["reason"]]
                assert record["verdict"] == "undecided" == parts[0]["verdict"], name
                assert record["reason"] == parts[0]["reason"], name
            else:
                assert verdict == record["verdict"], name


def test_a_picture_has_interval_and_bound_where_they_are():
    svg = interval_svg(Condition("a", 2.0, 1.0, 3.0, "above", 0.0), "", standalone=True)
    low, high = map(float, re.search(r'class="i" d="M([\d.]+) 12H([\d.]+)M', svg).groups())
    at, bound = float(re.search(r'cx="([\d.]+)"', svg)[1]), float(re.search(r'class="b" d="M([\d.]+) ', svg)[1])
    assert bound < low < at < high and at - low == pytest.approx(high - at, abs=0.2)
    assert low - bound == pytest.approx(at - low, abs=0.2)  # 0, 1, 2: evenly
    start, width = map(float, re.search(r'class="w" x="([\d.]+)" y="2" width="([\d.]+)"', svg).groups())
    assert start == bound and start + width == pytest.approx(200)
    assert 'class="bar holds"' in svg and 'aria-label="a = 2.000 [1.000, 3.000], must be above 0"' in svg
    both = interval_svg(Condition("a", 0.0, -1.0, 1.0, "within", 0.5), "points")
    assert both.count('class="b"') == 2 and "undecided" in both and "<style>" not in both
    assert re.findall(r">([^<>]+)</text>", both) == ["-50\N{NO-BREAK SPACE}points", "50\N{NO-BREAK SPACE}points"]


# -- the pages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed():
    return records.list_claims()


@pytest.fixture(scope="module")
def all_entries(listed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "list_claims", lambda: listed)
        return ledger.ledger_entries()


@pytest.fixture(scope="module")
def all_pages(all_entries):
    return ledger.ledger_pages(all_entries)


def test_the_pages_have_every_row_once_and_fold_away_those_without_a_claim(all_entries, tmp_path):
    summary = ledger.write_table(tmp_path / "docs/ledger.md", all_entries).read_text()
    by_family = ledger.entries_by_family(all_entries)
    pages = {p.stem: p.read_text() for p in (tmp_path / "docs/ledger").glob("*.md")}
    assert pages.keys() == by_family.keys()
    for family, inside in by_family.items():
        folded = "".join(re.findall(r"<details markdown>.*?</details>", pages[family], re.S))
        opened = re.sub(r"<details markdown>.*?</details>", "", pages[family], flags=re.DOTALL)
        for page, expected_ids in ((folded, {e.row.id for e in inside if not e.claims}),
                                   (opened, {e.row.id for e in inside if e.claims})):
            lines = [line for line in page.splitlines() if re.match(r"\| \d{3} \|", line)]
            assert {line[2:5] for line in lines} == expected_ids
            assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} <= ({4} if page is folded else {6})
        assert f"(ledger/{family}.md)" in summary and "](../ledger.md)" in pages[family]
    assert {p.stem for p in (tmp_path / "docs/images/claims").glob("*.svg")} == set(re.findall(
        r"\(images/claims/(.*?)\.svg\)", summary))
    everything = "\n".join(pages.values())
    for name in records.all_claims():
        assert f".md#{name})" in summary and everything.count(f"\n## {name}\n") == 1
        assert f"understudy claims run {name}" in everything
        assert (f"(../images/claims/{name}.svg)" in everything) == records.record_path(name).exists()
    total = re.search(r"\| \*\*all\*\* \|(.*)\|", summary)[1].replace("*", "").split("|")
    systems, core, *each = map(int, total)
    assert systems == 296 == sum(each) and core == 145 and each[-1] == sum(not e.claims for e in all_entries)
    rows = [line[2:5] for line in summary.splitlines() if re.match(r"\| \d{3} \|", line)]
    assert rows == list(ledger_rows())
    why = tomllib.loads((claims_folder() / "untested.toml").read_text(encoding="utf-8"))
    without = {e.row.id for e in all_entries if not e.claims}
    assert set(why) <= without and all(re.search(rf"^\| {row} \| .* {re.escape(why[row])} \|$", summary, re.MULTILINE)
                                       for row in why)


def test_the_summary_begins_with_advice_and_has_each_claim_under_its_decision(all_pages):
    advice, body = all_pages[ledger.SUMMARY].split("\n## How to read a verdict\n")
    texts = records.all_texts()
    head, *sections = re.split(r"^## (.+)$", advice, flags=re.MULTILINE)
    assert len(head.split()) < 120 and "\n## All 296 systems\n" in body
    decided = {text.decision for text in texts.values()}
    assert [title.lower() for title in sections[::2]] == [decision for decision in DECISIONS if decision in decided]
    for title, section in zip(sections[::2], sections[1::2], strict=True):
        rows = {row[1]: line for line in section.splitlines() if (row := re.search(r"\| \[([\w-]+)\]\(ledger/", line))}
        assert rows.keys() == {name for name, text in texts.items() if text.decision == title.lower()}
        assert all(line.startswith(f"| {texts[name].advice} |") for name, line in rows.items())


def test_the_committed_pages_are_what_the_records_say(all_pages):
    """Except which records are stale, which changes with the code."""
    docs = REPOSITORY / "docs"
    committed = {p.name: p for p in (docs / "ledger.md", *(docs / "ledger").glob("*.md"))}
    assert committed.keys() == all_pages.keys()
    for name, text in all_pages.items():
        committed_text = committed[name].read_text(encoding="utf-8").replace(ledger.STALE_NOTE, "")
        assert committed_text == text.replace(ledger.STALE_NOTE, ""), "understudy claims table writes them again"


def test_rates_are_in_percent(all_pages):
    """Logs are quoted as they are."""
    for name, text in all_pages.items():
        assert not re.search(r"\d ?%", text), name  # the space does not break
        unquoted = re.sub(r"^\| \d{4}-.*", "", text, flags=re.MULTILINE)
        assert not re.search(r"\| success[^|]* \| -?[\d.]+ \[|success[^=|<]* = -?[\d.]+ \[", unquoted), name
    assert "success: pooled - one observation = 50.4\N{NO-BREAK SPACE}points [46.8, 54.1], must be above " \
        "30\N{NO-BREAK SPACE}points: holds" in all_pages["sequence-execution.md"]


def test_what_a_claim_is_about_comes_first_and_the_rest_is_folded(all_pages):
    texts = records.all_texts()
    for section in (s for page in all_pages.values() for s in re.split(r"^## ", page, flags=re.MULTILINE)):
        name = section.split("\n")[0]
        if name in texts and records.record_path(name).exists():
            opened = re.sub(r"<details markdown>.*?</details>", "", section, flags=re.DOTALL)
            advice, against, figure, table = map(opened.index, (
                texts[name].advice, texts[name].against, "](../images/claims/", "| arm |"))
            assert advice < against < figure < table, name
            assert re.search(r"^\*\*(Holds|Fails|Undecided) here", opened[table:], re.MULTILINE), name
            assert section.count("<details markdown>") == section.count("</details>") == 2, name


def test_a_long_note_is_split_between_sentences():
    sentences = [f"Sentence {i} has " + "word " * 30 + "and ends." for i in range(4)]
    assert ledger._short_paragraphs(" ".join(sentences)) == [" ".join(sentences[:2]), " ".join(sentences[2:])]
    assert ledger._short_paragraphs("one. two") == ["one. two"] and ledger._short_paragraphs("") == [""]


def test_every_record_names_a_commit_of_this_repository():
    def git(*args):
        return subprocess.run(["git", *args], cwd=TESTS, capture_output=True, text=True).stdout.split()

    history = set(git("rev-list", "HEAD")) if git("rev-parse", "--is-shallow-repository") == ["false"] else None
    for name in records.all_claims():
        if records.record_path(name).exists():
            commit = json.loads(records.record_path(name).read_text())["commit"].split()[0]
            assert re.fullmatch("[0-9a-f]{40}", commit) and (history is None or commit in history), name


def test_a_page_says_that_the_history_lacks_the_pilots_that_its_set_up_describes(all_pages):
    everything = "\n".join(all_pages.values())
    texts = records.all_texts()
    for name in ("adaflow-steps", "bet-modes"):  # both describe pilots, and the log of the second has one
        assert any("ilot" in paragraph for paragraph in texts[name].setup)
        section = everything.split(f"## {name}\n")[1].split("\n## ")[0]
        assert ("| pilots | The history has no entry" in section) == (name == "adaflow-steps")


def test_a_comparison_of_several_rows_leads_its_page_and_leaves_their_verdicts(all_entries, all_pages):
    entries = {e.row.id: e for e in all_entries}
    own = {e.row.id: [c for c in e.claims if len(c["rows"]) == 1] for e in all_entries}
    compared = [c["name"] for c in entries["249"].claims if len(c["rows"]) > 1]
    assert compared == ["retrieval-compared"] and [c["verdict"] for c in own["249"]] == [entries["249"].verdict]
    worse = [replace(e, claims=tuple({**c, "verdict": "fails"} if c["name"] in compared else c for c in e.claims))
             for e in all_entries]
    assert ledger.verdict_counts(worse) == ledger.verdict_counts(all_entries)
    sections = re.findall(r"^## (.+)$", all_pages["retrieval.md"], re.MULTILINE)
    assert sections[0] == "retrieval-compared"
    assert all_pages[ledger.SUMMARY].split("## Few demonstrations\n")[1].index("retrieval.md#retrieval-compared") < 1000
    table = all_pages["retrieval.md"].split("## retrieval-compared\n")[1].split("\n## ")[0]
    assert len(re.findall(r"^\| [^|]+ \| \d+\N{NO-BREAK SPACE}% \[[^]]*\] [a-z]+ \| ", table, re.MULTILINE)) == 10


def test_a_page_shows_the_history_and_says_what_came_before(all_entries, monkeypatch):
    entry = next(e for e in all_entries if e.row.id == "047")
    stored = json.loads(records.record_path("checkpoint-selection").read_text())

    def page(*steps, verdict="holds"):
        log = [{"date": "2026-01-01", "kind": kind, "change": f"a {kind}", "verdict": v, "reason": ""}
               for kind, v in steps]
        monkeypatch.setattr(ledger, "read_json", lambda path: {**stored, "verdict": verdict, "log": log})
        return ledger.ledger_pages([entry])[f"{entry.row.family}.md"]
    before = "An earlier run did not hold: see the history."
    text = page(("run", "holds"))
    assert before not in text and "| 2026-01-01 | run | a run | holds |" in text
    text = page(("run", "undecided"), ("redesign", "holds"))
    assert before in text and "| 2026-01-01 | run | a run | undecided |" in text
    assert before not in page(("run", "undecided"), ("redesign", "undecided"), verdict="undecided")
    assert "**Holds here.** a note" in page(("run", "holds"), ("note", "holds"))
    assert before not in page(("run", "holds"), ("redesign", "holds"))
    assert before not in page(("pilot", "undecided"), ("run", "holds"))  # its seeds do not judge
    beside = "**Holds here.** a note\n"  # a run of the same design, or a pilot of the next one, does not hide it
    assert beside in page(("redesign", "holds"), ("note", "holds"), ("run", "holds"), ("pilot", ""))
    assert "**Holds here.**\n" in page(("note", "holds"), ("redesign", "holds"))  # it was on the design before
    assert "**Holds here.**\n" in page(("pilot", ""), ("note", "undecided"), ("run", "holds"))  # on another verdict


def test_of_several_claims_the_worst_stands_for_the_row():
    def of(*verdicts):
        return LedgerEntry(ledger_rows()["003"], tuple({"verdict": v, "rows": ("003",)} for v in verdicts)).verdict
    assert of() == "no claim" and of("holds", "holds") == "holds" and of("holds", "not run") == "not run"
    assert of("holds", "undecided") == "undecided" and of("undecided", "fails", "holds") == "fails"


def test_the_page_to_search_has_all_and_asks_nobody(all_entries, tmp_path):
    text = ledger.write_html(tmp_path / "ledger.html", all_entries).read_text()
    assert re.findall(r'<article id="r(\d{3})"', text) == list(ledger_rows())
    assert not re.search(r'(src|href)="(?!https://arxiv\.org/abs/|#)', text)
    assert "{{" not in text and "@import" not in text
    for e in all_entries:
        assert f">{e.row.title}<" in unescape(text)
    assert text.count('class="bar ') == sum(ledger._decisive_of_claim(c["name"]) is not None for e in all_entries
                                            for c in e.claims)
    hostile_row = replace(ledger_rows()["003"], name='<script>alert("x")</script>', title="a & b | c", arxiv="")
    text = ledger.write_html(tmp_path / "odd.html", [LedgerEntry(hostile_row, ())]).read_text()
    assert "<script>alert" not in text and "a &amp; b | c" in text
    text = ledger.ledger_pages([LedgerEntry(hostile_row, ())])[f"{hostile_row.family}.md"]
    assert "\\| c" in text and "<script>" not in text.replace("\\<", "")


# -- which are due, and the budget ----------------------------------------------------------------------------------


def entry(name, took=None, date=None, stale=True, verdict="holds", **more):
    return {"name": name, "stale": stale, "verdict": verdict if took is not None else "not run", "seconds": took,
            "date": date, **more}


def test_what_is_due_is_stale_or_never_ran_and_the_cheapest_comes_first():
    listed = [entry("never"), entry("dear", 900.0, "2026-01-01"), entry("fresh", 1.0, "2026-01-01", stale=False),
              entry("cheap", 5.0, "2026-02-01"), entry("as cheap, older", 5.0, "2026-01-01")]
    assert [e["name"] for e in due_claims(listed)] == ["as cheap, older", "cheap", "dear", "never"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(due_module, "record_path", lambda name: tmp_path / f"{name}.json")
    return tmp_path


def told_apart(workers):
    """Of claims that end in every way; on a busy machine it may take minutes to start a process."""
    messages = []
    entries = [entry("quick", 0.1), entry("raises", 0.1), entry("dies", 0.1), entry("lacks", 0.1),
               entry("known", 0.1, missing=["the sim extra"]), entry("dear", 5000.0)]
    outcome = run_all(entries, 1000.0, workers, messages.append, run_one=run_one)
    assert outcome.verdicts == {"quick": "undecided"} and set(outcome.failed) == {"raises", "dies"}
    assert outcome.unavailable == {"lacks": "data", "known": "the sim extra"}
    assert "process died" in outcome.failed["dies"]
    assert set(outcome.not_run) == {"dear"} and "took 5000 s" in outcome.not_run["dear"] and not outcome.is_complete
    assert "quick: undecided here" in messages and "known: not here, needs the sim extra" in messages
    began = time.monotonic()
    outcome = run_all([entry("sleeps 900")], 5.0, workers, messages.append, run_one=run_one)
    assert "end of the budget" in outcome.not_run["sleeps 900"] and 5 <= time.monotonic() - began < 300
    return messages


@pytest.mark.slow
def test_a_budget_starts_nothing_that_does_not_fit_and_stops_what_does_not_end(results):
    assert "quick: half done" in told_apart(2) and not multiprocessing.active_children()
    assert json.loads((results / "quick.json").read_text())["verdict"] == "undecided"


def test_nothing_starts_without_time(results):
    outcome = run_all([entry("quick", 3.0), entry("never")], 0.0, run_one=run_one)
    assert set(outcome.not_run) == {"quick", "never"} and not outcome.verdicts and not outcome.is_complete
    outcome = run_all([entry("known", 1.0, missing=["x"])], run_one=run_one)
    assert outcome.is_complete and outcome.unavailable == {"known": "x"}  # what cannot run here is no failure


@pytest.mark.slow
def test_on_ray(results, monkeypatch):
    ray = pytest.importorskip("ray", reason="extra cluster not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        told_apart("ray")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert json.loads((results / "quick.json").read_text())["verdict"] == "undecided"


def test_what_a_claim_needs_is_looked_for_before_it_runs(monkeypatch, tmp_path):
    needs = ("the sim extra", "recorded demonstrations (UNDERSTUDY_DATA)")
    claim = replace(records.find_claim("ema-oscillation"), needs=needs)
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    monkeypatch.setattr(records, "_extra_packages", lambda name: ["no-such-package"])
    assert records.missing_requirements(claim) == ["the sim extra"]
    monkeypatch.setattr(records, "_extra_packages", lambda name: ["torch"])
    assert records.missing_requirements(claim) == []
    monkeypatch.delenv("UNDERSTUDY_DATA")
    assert records.missing_requirements(claim) == ["recorded demonstrations (UNDERSTUDY_DATA)"]
    monkeypatch.undo()
    assert {"mujoco", "metaworld"} <= set(records._extra_packages("sim")) and not records.installed_versions(
        "no-such-package")


def test_an_attempt_tells_what_is_absent_from_what_fails(monkeypatch):
    def absent(claim, **options):
        raise MissingRequirement("expected data, found none")

    def wrong(claim, **options):
        raise UserError("expected the data that the claim was made for")

    def defect(claim, **options):
        raise ZeroDivisionError
    for function, kind, text in ((absent, "absent", "found none"), (wrong, "failed", "was made for"),
                                 (defect, "failed", "ZeroDivisionError")):
        monkeypatch.setattr(due_module, "run_claim", function)
        monkeypatch.setattr(due_module, "store_all", lambda names: pytest.fail("no probe of a run that did not end"))
        attempt = try_claim("diffusion-bc")
        assert attempt[0] == kind and text in attempt[1]
    assert try_claim("no-such-claim")[0] == "failed"
    stored = []
    monkeypatch.setattr(due_module, "run_claim", lambda claim, **options: {"verdict": "holds"})
    monkeypatch.setattr(due_module, "store_all", stored.extend)
    assert try_claim("diffusion-bc") == ("done", {"verdict": "holds"}) and stored == ["diffusion-bc"]


@pytest.mark.parametrize("text,wanted", [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("1h30m", 5400),
                                         ("1d", 86400), ("10min", 600)])
def test_a_time(text, wanted):
    assert parse_duration(text) == wanted


@pytest.mark.parametrize("text", ["", "0s", "soon", "2 h", "1h30", "-1h", "h", "1x", "5 5"])
def test_no_time(text):
    with pytest.raises(UserError, match="is not a time such as"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["30", "0", "1.5"])
def test_a_time_has_a_unit(text):
    with pytest.raises(UserError, match=rf"{text} has no unit\n.*{text}s for seconds, {text}m for minutes"):
        parse_duration(text)


# -- the list, kept ---------------------------------------------------------------------------------------------------


def test_the_list_is_made_anew_when_a_file_or_a_record_changes_and_only_then(listed, tmp_path, monkeypatch):
    package, listings = tmp_path / "package", []
    record = tmp_path / "claims/family/records/x.json"
    record.parent.mkdir(parents=True)
    package.mkdir()
    (package / "core.py").write_text("A = 1")
    (tmp_path / "claims/ledger.tsv").write_text("")
    record.write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("understudy.claims.listing_cache.PACKAGE", package)
    monkeypatch.setattr(records, "list_claims", lambda: listings.append(1) or listed)

    def times() -> int:
        assert kept_listing() == listed
        return len(listings)
    assert (times(), times()) == (1, 1)
    (package / "core.py").write_text("A = 2")
    assert (times(), times()) == (2, 2)
    record.write_text("{ }")
    assert (times(), times()) == (3, 3)
    (package / "core.py").rename(package / "other.py")
    assert (times(), times()) == (4, 4)
    (tmp_path / "cache/claims/listing.json").write_text("[")  # damaged
    assert (times(), times()) == (5, 5)
    (tmp_path / "cache").rename(tmp_path / "moved")
    (tmp_path / "cache").write_text("no folder")  # it cannot be kept
    assert (times(), times()) == (6, 7)


# -- from the command line ------------------------------------------------------------------------------------------


def test_the_command(listed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ledger, "list_claims", lambda: listed)
    recorded = [{**e, "stale": False} for e in listed if e["verdict"] != "not run"]
    due_now = [{**e, "stale": e["name"] == "mip-two-steps"} for e in recorded]
    monkeypatch.setattr("understudy.claims.listing_cache.cached_listing", lambda: due_now)

    def call(*args, status=0):
        assert main(["claims", *map(str, args)]) == status
        return capsys.readouterr()
    assert [c["name"] for c in json.loads(call("list", "--json", "--stale").out)] == ["mip-two-steps"]
    heads = json.loads(call("list", "--json", "--family", "policy-heads").out)
    assert heads and all({ledger_rows()[n].family for n in c["rows"]} == {"policy-heads"} for c in heads)
    failing = json.loads(call("list", "--json", "--verdict", "fails").out)
    assert failing == [e for e in due_now if e["verdict"] == "fails"]
    for args, text in ((("list", "--family", "policy"), "did you mean 'policy-heads'?"), (("run",), "name or --all"),
                       (("run", "x", "--all"), "not both"), (("run", "--all", "--budget", "soon"), "a time such as"),
                       (("table", "--stale"), "--stale: is for list only"),
                       (("run", "diffusion-bc", "--budget", "1h"),
                        "--budget: is for run --all and spot-check only"),
                       (("list", "--html", "x"), "--html: is for table only")):
        assert text in call(*args, status=2).err
    saved = []
    monkeypatch.setattr(due_module, "save_confirmation", lambda claim: saved.append(claim.name))
    monkeypatch.setattr(due_module, "confirm_all", lambda names: [Confirmation("confirmed") for _ in names])
    report = call("run", "--all", "--budget", "1s", "--json")  # the probe says that the record stands
    assert json.loads(report.out)["confirmed"] == ["mip-two-steps"] == saved and not json.loads(report.out)["left"]
    monkeypatch.setattr(due_module, "confirm_all", lambda names: [Confirmation("due") for _ in names])
    report = call("run", "--all", "--budget", "1s", "--json", status=3)
    assert json.loads(report.out) == {"confirmed": [], "ran": {}, "not_here": {}, "failed": {}, "left": {
        "mip-two-steps": json.loads(report.out)["left"]["mip-two-steps"]}}
    assert "mip-two-steps: left for another time (took" in report.err
    monkeypatch.setattr("understudy.claims.listing_cache.cached_listing", lambda: recorded)
    assert "every claim has a record" in call("run", "--all").out
    call("table", "--html", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text().count("<article") == 296
