"""The texts of claims: Markdown files beside the experiments. No fingerprint covers them.

A file begins with a TOML head between two lines "+++". The head has a table for each claim. The set-up follows in
paragraphs. Those under a heading with the name of a claim are about that claim, those before the first heading about
all claims of the file.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from ..core import UserError

# What a reader of the ledger wants to decide, in the order of its page.
LEARNER_DECISIONS = ("episodes of mixed quality", "missing actions", "goals named later", "which reward")
IMPROVEMENT_DECISIONS = ("demonstrate, label or take over", "rate, mark or rank", "correct, steer or fine-tune",
                         "demonstrations in reinforcement learning", "which part of the critic",
                         "reward only at the end", "what feedback is worth", "what must not be forgotten")
DECISIONS = ("which head", "few demonstrations", "wrong actions in my data", *LEARNER_DECISIONS,
             *IMPROVEMENT_DECISIONS, "what to record", "memory", "goals and words", "how to execute plans",
             "how many episodes to judge")


@dataclass(frozen=True)
class ClaimText:
    """What a Markdown file says about a claim.

    Args:
        decision: The decision that the advice is about, one of `DECISIONS`.
        paper: Authors, year, title and number of the paper.
        advice: One line for a practitioner.
        against: The strongest result against the advice.
        setup: Paragraphs: task, scale, arms, rules, pilots and differences from the paper.
        revision: What changed in the design since the previous run, for the log of the next run.
    """

    decision: str
    paper: str
    statement: str
    control: str
    advice: str
    against: str
    setup: tuple[str, ...]
    revision: str = ""


KEYS = tuple(f.name for f in fields(ClaimText) if f.name != "setup")
OPTIONAL = ("revision",)


def read_texts(file: Path) -> dict[str, ClaimText]:
    """The texts of a Markdown file by the names of its claims."""
    parts = re.match(r"\+\+\+\n(.*?)\n\+\+\+\n(.*)", file.read_text(encoding="utf-8"), re.DOTALL)
    if parts is None:
        raise UserError("The file has no TOML head between two lines +++.", where=file,
                        hint=f"begin it with +++, a table [NAME] with {', '.join(KEYS)}, and +++")
    try:
        head = tomllib.loads(parts[1])
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The head is not TOML: {error}", where=file, hint="correct the lines between +++") from error
    shared, *sections = re.split(r"^## (.+)$", parts[2], flags=re.MULTILINE)
    own = dict(zip(sections[::2], sections[1::2], strict=True))
    return {name: _claim_text(file, name, table, shared + own.get(name, "")) for name, table in head.items()}


def _claim_text(file: Path, name: str, table: dict, setup: str) -> ClaimText:
    missing = [key for key in KEYS if key not in table and key not in OPTIONAL]
    unknown = [key for key in table if key not in KEYS]
    if missing or unknown:
        problem = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {', '.join(unknown)}"
        raise UserError(f"The table [{name}] {problem}.", where=file, hint=f"its keys are {', '.join(KEYS)}")
    if table["decision"] not in DECISIONS:
        raise UserError(f"The table [{name}] has the unknown decision {table['decision']!r}.", where=file,
                        hint=f"take one of {', '.join(DECISIONS)}")
    paragraphs = (" ".join(text.split()) for text in re.split(r"\n\s*\n", setup))
    unbroken = {key: text.replace(" %", "\N{NO-BREAK SPACE}%") for key, text in table.items()}
    return ClaimText(**unbroken, setup=tuple(text for text in paragraphs if text))
