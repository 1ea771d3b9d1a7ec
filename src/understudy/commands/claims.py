"""The command understudy claims."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..core import UserError, unknown_name
from ..files import read_json
from .parts.common import Output, command_line, parse, parse_duration, plain_table
from .parts.groups import HtmlFile, JsonOption, TrustOption, WorkerCount, command_options
from .parts.options import refuse_given

LEDGER = Path("docs/ledger.md")


@command_options
class ClaimsOptions(TrustOption, JsonOption):
    """Test published statements with small experiments that can fail.

    list: all claims with their verdicts. pilot NAME: run one claim with three seeds that never judge, and note how much
    seeds differ. run NAME: run one claim, from where it was stopped. run --all: run the claims that have no record, or
    whose probe no longer gives the same numbers, the cheapest by its last record first.

    check [NAME ...]: compare a short probe of each claim with the stored one. The exit status is 3 if a claim is due
    for a run because its numbers differ. judge [NAME ...]: judge the stored measurements again by the current rules.
    Nothing runs. spot-check: run randomly drawn claims again in full. The exit status is 3 if a verdict differs from
    its record. table: write the pages of the whole ledger, with and without claims.
    """

    subcommand: Annotated[
        Literal["list", "pilot", "run", "check", "judge", "spot-check", "table"],
        Positional,
        arg(metavar="list|pilot|run|check|judge|spot-check|table"),
    ]
    """what to do"""
    name: Annotated[tuple[str, ...], Positional, arg(metavar="[NAME ...]")] = ()
    """claims to run, check or judge; by default all"""
    all: bool = False
    """run all that are due; status 3 if one failed, or did not fit into the budget"""
    budget: Annotated[str | None, arg(metavar="TIME")] = None
    """with run --all and spot-check: start only claims that fit this time (90s, 30m, 2h)"""
    workers: WorkerCount = 1
    """with --all: number of claims at once, or `ray` for a cluster"""
    family: Annotated[str | None, arg(metavar="FAMILY")] = None
    """only claims of this family of the ledger (list, run --all)"""
    verdict: Annotated[Literal["holds", "fails", "undecided", "not run"] | None, arg(metavar="VERDICT")] = None
    """only claims with this verdict: holds, fails, undecided, "not run" (list)"""
    unchanged: bool = False
    """with check: do not probe claims whose source code has not changed since their record; changes of packages are
    then not seen"""
    save: bool = False
    """with check: store the commit at which each record was confirmed, so that it is not listed as stale"""
    stale: bool = False
    """with list: only claims whose code or data have changed since their record"""
    out: Annotated[Path, arg(metavar="FILE")] = LEDGER
    """where `table` writes the page; pages of families go to ledger/, pictures to images/claims/"""
    html: HtmlFile = None
    """with table: write one page to search and filter instead"""


def main(args: list[str]) -> None:
    o = parse(ClaimsOptions, "claims", args)
    if o.subcommand == "run" and bool(o.name) == o.all:
        raise UserError("give a claim's name or --all" + (", not both" if o.all else ""),
                        where="understudy claims run", hint="understudy claims list names them")
    if o.subcommand == "pilot" and len(o.name) != 1 or o.subcommand == "run" and len(o.name) > 1:
        raise UserError(f"understudy claims {o.subcommand} takes one name", where=" ".join(o.name) or None,
                        hint="run them one after the other" + ", or all that are due with --all" * (
                            o.subcommand == "run"))
    if o.subcommand in ("list", "table", "spot-check") and o.name:
        raise UserError(f"understudy claims {o.subcommand} takes no names",
                        where=f"understudy claims {o.subcommand}",
                        hint="leave them out" + "; --family FAMILY lists some" * (o.subcommand == "list"))
    uses = {"all": {"run --all"}, "budget": {"run --all", "spot-check"}, "workers": {"run --all"},
            "unchanged": {"check"}, "save": {"check"}, "verdict": {"list"}, "stale": {"list"}, "html": {"table"},
            "out": {"table"}}
    for name, subcommands in uses.items():
        if o.subcommand + " --all" * (o.all and o.subcommand == "run") not in subcommands:
            refuse_given(o, (name,), f"is for {' and '.join(sorted(subcommands))} only")
    from ..claims.folder import open_claims

    open_claims(o.trust)
    with Output(o.json) as out:
        {"list": _list_claims, "pilot": _run_pilot, "run": _run_all if o.all else _run_claim, "check": _check,
         "judge": _judge, "spot-check": _spot_check, "table": _write_table}[o.subcommand](o, out)


def _selected_claims(o: ClaimsOptions) -> list[dict]:
    from ..claims.listing_cache import cached_listing

    entries = cached_listing()
    if o.family is not None:
        from ..claims.ledger import find_row, ledger_rows

        families = sorted({r.family for r in ledger_rows().values()})
        if o.family not in families:
            raise unknown_name("family", o.family, families, "--family", owner="the ledger")
        entries = [e for e in entries if o.family in {find_row(number, e["name"]).family for number in e["rows"]}]
    return [e for e in entries if (o.verdict is None or e["verdict"] == o.verdict) and (not o.stale or e["stale"])]


def _list_claims(o: ClaimsOptions, out: Output) -> None:
    entries = _selected_claims(o)
    rows = ((e["name"], ", ".join(e["rows"]), _verdict_text(e) + (" (stale)" if e["stale"] else ""), e["statement"])
            for e in entries)
    out.print(plain_table(("claim", "rows", "verdict here", "statement"), rows) if entries else "no claim is like that")
    out.suggest("understudy claims run NAME", "understudy claims run --all --budget 2h", "understudy claims table")
    out.print_json(entries)


def _run_pilot(o: ClaimsOptions, out: Output) -> None:
    from ..claims.records import find_claim
    from ..claims.runner import run_pilot

    sentences = run_pilot(find_claim(o.name[0]), log=lambda text: print(text, file=sys.stderr))
    out.print("\n".join(sentences))
    out.suggest(command_line("claims", "run", o.name[0]))
    out.print_json(sentences)


def _run_claim(o: ClaimsOptions, out: Output) -> None:
    from ..claims.probe import store_all
    from ..claims.records import find_claim, find_text
    from ..claims.runner import run_claim

    claim = find_claim(o.name[0])
    record = run_claim(claim, revision=find_text(claim.name).revision, log=lambda text: print(text, file=sys.stderr))
    store_all([claim.name])
    out.print(f"\n{record['name']}: {_verdict_text(record)} here")
    out.suggest("understudy claims table")
    out.print_json(record)


def _run_all(o: ClaimsOptions, out: Output) -> None:
    from functools import partial

    from ..claims.records import find_claim, missing_requirements
    from ..claims.scheduler import confirm_stale, due_claims, run_all, try_claim

    budget = None if o.budget is None else parse_duration(o.budget)  # before anything takes time
    entries, confirmed = confirm_stale(due_claims(_selected_claims(o)), lambda text: print(text, file=sys.stderr))
    outcome = run_all(
        [{**e, "missing": missing_requirements(find_claim(e["name"]))} for e in entries],
        budget,
        o.workers,
        log=lambda text: print(text, file=sys.stderr),
        run_one=partial(try_claim, trust=o.trust))
    if not entries:
        out.print("every claim has a record of the code as it is")
    for names, text in ((dict.fromkeys(confirmed, ""), "confirmed by its probe"), (outcome.verdicts, "{} here"),
                        (outcome.unavailable, "not here, needs {}"), (outcome.failed, "failed: {}"),
                        (outcome.not_run, "left: {}")):
        for name, why in names.items():
            out.print(f"{name}: {text.format(why)}")
    out.suggest("understudy claims table", *([] if outcome.is_complete else ["understudy claims run --all"]))
    out.print_json(
        {"confirmed": confirmed, "ran": outcome.verdicts, "not_here": outcome.unavailable, "failed": outcome.failed,
         "left": outcome.not_run})
    if not outcome.is_complete:
        raise SystemExit(3)


def _check(o: ClaimsOptions, out: Output) -> None:
    from ..claims.probe import confirm_all, save_confirmation
    from ..claims.records import all_claims, find_claim

    answer, claims = [], [find_claim(name) for name in o.name] or list(all_claims().values())
    confirmations = confirm_all([claim.name for claim in claims], trust_source=o.unchanged)
    for claim, confirmation in zip(claims, confirmations, strict=True):
        answer.append({"name": claim.name, "status": confirmation.status, "detail": confirmation.detail,
                       "differences": list(confirmation.differences), "seconds": round(confirmation.seconds, 2)})
        text = f"{confirmation.status}: {confirmation.detail}" if confirmation.detail else confirmation.status
        out.print(f"{claim.name}: {text} ({confirmation.seconds:.1f} s)")
        if o.save and confirmation.status == "confirmed":
            save_confirmation(claim)
    due = [entry["name"] for entry in answer if entry["status"] == "due"]
    out.suggest(*(command_line("claims", "run", name) for name in due))
    out.print_json(answer)
    if due:
        raise SystemExit(3)


def _verdict_text(judged: dict) -> str:
    return judged["verdict"] + (f" ({judged['reason']})" if judged["reason"] else "")


def _judge(o: ClaimsOptions, out: Output) -> None:
    from ..claims.records import all_claims, find_claim, find_text, is_redesigned, record_path
    from ..claims.runner import judge_again

    answer = []
    for claim in [find_claim(name) for name in o.name] or list(all_claims().values()):
        if not record_path(claim.name).exists():
            if o.name:
                raise UserError(f"{claim.name} has no record to judge", where="understudy claims judge",
                                hint=f"run it first: understudy claims run {claim.name}")
            continue
        before = read_json(record_path(claim.name))
        if is_redesigned(find_text(claim.name).revision, before) and not o.name:
            out.print(f"{claim.name}: not judged, because its design has changed; a run is due")
            continue
        record = judge_again(claim, datetime.now(UTC).date().isoformat(), "Rules or statistics changed.")
        answer.append({"name": claim.name, "verdict": record["verdict"], "reason": record["reason"],
                       "before": before["verdict"]})
        change = "" if before["verdict"] == record["verdict"] else f", {before['verdict']} before"
        out.print(f"{claim.name}: {_verdict_text(record)}{change}")
    out.suggest("understudy claims table")
    out.print_json(answer)


def _spot_check(o: ClaimsOptions, out: Output) -> None:
    import numpy as np

    from ..claims.records import list_claims
    from ..claims.spot_check import check_records, disagreement, draw_claims, save

    budget = parse_duration(o.budget or "20m")
    names = draw_claims(list_claims(), budget, np.random.default_rng())
    checks = []
    for check in check_records(names, budget, lambda text: print(text, file=sys.stderr)):
        save([check])  # one by one, so that an interruption loses none
        checks.append(check)
        out.print(f"{check.name}: {check.new_verdict}, recorded {check.recorded_verdict}; largest difference of a "
                  f"figure {check.largest_difference:.2g} of its scale")
    if checks:
        rate = disagreement(checks)
        out.print(f"{sum(not c.agrees for c in checks)} of {len(checks)} disagree: {rate}")
    else:
        out.print("no claim fits the budget")
    out.suggest("understudy claims table")
    out.print_json([{**asdict(c), "agrees": c.agrees} for c in checks])
    if not all(c.agrees for c in checks):
        raise SystemExit(3)


def _write_table(o: ClaimsOptions, out: Output) -> None:
    from ..claims.learner_guide import write_guides
    from ..claims.ledger import write_html, write_table

    path = write_table(o.out) if o.html is None else write_html(o.html)
    if o.html is None:
        write_guides(path.parent)
    out.print(f"Written to {path}")
    out.print_json({"page": str(path)})
