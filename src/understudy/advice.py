"""Advice that was tested in two worlds: the sentences of docs/evidence/advice.md that held up."""

from __future__ import annotations

from pathlib import Path

from .files import read_json

FILE = Path(__file__).with_suffix(".json")


def advice_about(*topics: str) -> list[str]:
    """Returns the tested sentences of advice about any of these topics, each with its figures.

    Args:
        topics: A command and its subject: "choose ways" (demonstrators act in several), "inspect failures" (some
            episodes fail), "methods iql" or "diagnose underfit".
    """
    return [f"Tested advice: {entry['sentence']} {entry['figures']}." for entry in read_json(FILE)
            if set(topics) & set(entry["topics"])]
