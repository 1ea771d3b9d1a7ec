"""Writes the model card of a run: a page about it for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..files import write_text
from .method import Method, has_latent_actions
from .run import Run, comparable_scores, disk_space_errors
from .stages import packages_of


def write_model_card(run: Run, method: Method, provenance: dict[str, Any]) -> None:
    """Writes the model card of a run, with the origin from `train.make_provenance`, to CARD.md in its folder."""
    data, versions, device = provenance["data"], provenance["versions"], provenance["device"]
    places = run.named_checkpoints()
    lines: dict[int, dict[str, Any]] = {}
    for line in evaluations(run):
        lines[line["step"]] = {**lines.get(line["step"], {}), **line}
    figures = [f"| {which} | {step} | {_metric_of(lines.get(step, {}), 'score')} | "
               f"{_metric_of(lines.get(step, {}), 'validation/energy')} |"
               for which, step in ((k, int(v.rsplit('/', 1)[-1])) for k, v in sorted(places.items()))]
    parts = [(f.name, getattr(method.policy, f.name)) for f in dataclasses.fields(method.policy)]
    settings = [("run", method.executor), ("learn", method.learner), *(("data", r) for r in method.transforms), *parts]
    settings += [("wrapper", method.wrapper)] if method.wrapper is not None else []
    settings += [("collection", method.collection)] if method.collection is not None else []
    trusted = "".join(f" --trust {package}" for package in packages_of(method) if package != "understudy")
    held_out, left_out = provenance["held_out"], ", ".join(map(str, provenance["left_out"]))
    if any("score" in line for line in lines.values()):
        chosen = "The score chose the best checkpoint, so its success is not measured by it: evaluate on other seeds.\n"
    else:
        chosen = "The energy score chose the best checkpoint.\n" if lines else ""
    of_latents, unit = ("of latents ", "latents") if has_latent_actions(method) else ("", "actions")
    text = f"""# {type(method.policy.head).__name__} policy on {data["name"] or "a data set"}

Trained by understudy {versions["understudy"]} (PyTorch {versions["torch"]}) on {device["name"]} ({device["type"]}), \
seed {provenance["seed"]}, {max(run.saved_steps())} updates.

## Data

{data["episodes"]} episodes, {data["steps"]} steps{f", {data['fps']} a second" if data["fps"] else ""}; fingerprint \
`{data["fingerprint"]}`. {f"Held out for validation: episodes {', '.join(map(str, held_out))}." if held_out else
                          "No episode was held out."}\
{f" Left out because their recording was interrupted: episodes {left_out}." if left_out else ""}

## Figures

| checkpoint | update | score in training | energy score {of_latents}on held-out episodes |
|---|---|---|---|
{chr(10).join(figures)}

{chosen}The energy score is an error {of_latents}in units of the {unit}' standard deviation, not a success rate.

## Method

{chr(10).join(f"- {name}: `{value}`" for name, value in settings)}

## Commands
{f"{chr(10)}    {provenance['command']}" if provenance["command"] else ""}
    understudy eval RUN ENV --episodes 100{trusted}
    understudy eval RUN DATA{trusted}
"""
    with disk_space_errors(run.folder, "make room, and give the same command"):
        write_text(run.folder / "CARD.md", text)


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Returns the stored measurements of a run that judge a checkpoint."""
    return [line for line in comparable_scores(run.read_metrics()) if "score" in line or "validation/energy" in line]


def _metric_of(line: dict[str, Any], key: str) -> str:
    return "-" if line.get(key) is None else f"{line[key]:.4g}"
