"""Prints the rounds of understudy improve in words, as a table and as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .common import plain_table
from .improve_robot import learned_text, promotion_text

if TYPE_CHECKING:
    from ...evaluate.evaluation import Evaluation, PairedComparison

COSTS = ("acted", "labeled", "watched")  # steps of the supervisor


def print_round(n_rounds: int, step, learner, metrics) -> None:
    """Prints the episodes of a round, or how its policy compares. A callback of the training."""
    if "round" in metrics:
        costs = ", ".join(f"{name} {metrics[f'round/{name}']}" for name in COSTS if f"round/{name}" in metrics)
        print(f"round {int(metrics['round']) + 1} of {n_rounds}: {metrics['round/episodes']} episodes, "
              f"{metrics['round/steps']} steps" + (f" (of the supervisor: {costs})" if costs else "")
              + learned_text(metrics), file=sys.stderr)
    elif "gain" in metrics:
        unit = "success" if all(isinstance(value, bool) for value in metrics["outcomes"]) else "mean return"
        print(f"  {unit} {rate_text(metrics, unit)}, minus the best so far {gain_text(metrics, unit)}: "
              + promotion_text(metrics), file=sys.stderr)


def costs_of(row: dict[str, Any]) -> list[int]:
    return [row.get(f"round/{name}", 0) for name in COSTS]


def rate_text(line: dict[str, Any], unit: str) -> str:
    show = (lambda v: f"{v:.1%}") if unit == "success" else (lambda v: f"{v:.4g}")
    return f"{show(line['score'])} [{show(line['score/low'])}, {show(line['score/high'])}]"


def gain_text(line: dict[str, Any], unit: str) -> str:
    show = (lambda v: f"{100 * v:+.1f}") if unit == "success" else (lambda v: f"{v:+.4g}")
    return f"{show(line['gain'])} [{show(line['gain/low'])}, {show(line['gain/high'])}]"


def table_of(lines: list[dict[str, Any]], rounds: list[dict[str, Any]], unit: str, first: str):
    """Builds a table with one row for the base policy and for each round."""
    cells = []
    for line, row in zip(lines, [None, *rounds], strict=False):
        costs = [""] * len(COSTS) if row is None else costs_of(row)
        rate, _, interval = rate_text(line, unit).partition(" ")
        gain, _, gain_interval = gain_text(line, unit).partition(" ") if "gain" in line else ("", "", "")
        cells.append((first if row is None else f"round {row['round'] + 1}", *costs, rate, interval.strip("[]"), gain,
                      gain_interval.strip("[]"), "" if row is None else promotion_text(line)))
    return plain_table(("", *COSTS, unit, "95% interval", "minus best so far", "95% interval", ""), cells)


def rounds_json(lines: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def interval(line, key):
        return {"estimate": line[key], "low": line[f"{key}/low"], "high": line[f"{key}/high"]}
    return [{"step": line["step"], "score": interval(line, "score"), "promoted": line["promoted"],
             "gain": interval(line, "gain") if "gain" in line else None,
             "episodes": row and row["round/episodes"], "steps": row and row["round/steps"],
             **{name: row and row.get(f"round/{name}", 0) for name in COSTS},
             "learned": row and row.get("round/learned")}
            for line, row in zip(lines, [None, *rounds], strict=False)]


def fresh_json(base: Evaluation, best: Evaluation | None, paired: PairedComparison | None) -> dict[str, Any]:
    def summary(evaluation):
        rate = evaluation.success or evaluation.returns
        return {"estimate": rate.estimate, "low": rate.low, "high": rate.high}
    return {"of": "return" if base.success is None else "success", "episodes": len(base.episodes),
            "base": summary(base), "best": None if best is None else summary(best),
            "paired": paired and {"difference": paired.difference, "low": paired.low, "high": paired.high,
                                  "p": paired.p_value}}
