"""Write the pages that are made from the program: methods.md and command-line.md. `make docs` runs it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
MADE = "<!-- made by docs/generate.py: change the source, not this page -->"
FAMILIES = {"behavior_cloning": "Likelihood and regression", "generative": "Iterative generation",
            "chunking": "Long chunks", "retrieval": "Retrieval", "interaction": "Collecting episodes",
            "representation": "Pretrained encoders", "skills": "Latent skills",
            "return_conditioned": "Conditioned on returns"}


METHODS = """# Methods

{made}

A named method is a function of at most twenty lines. It returns a frozen dataclass with the parts of the policy, the
executor that runs it, and the learner that trains it. `understudy methods NAME` prints the parts of a method, and
`understudy train NAME --help` lists every field with its default. The row numbers refer to the [ledger](ledger.md).

The costs are {cost_note}, or on the columns that a method needs (images have
64 x 64 pixels). `python benchmarks/method_cost.py` measured them on a core that was busy with other work at times, so
differences of a third say little. With larger observations, other settings or a GPU they differ. No method needs a GPU.

{methods}

## Execution schemes

`--executor NAME` of `train`, `eval`, `compare`, `robustness`, `export`, `act` and `serve` replaces the executor of a
method, and `--executor module:Class` takes an executor of your own. A scheme is refused if the policy lacks what it
needs. `streaming-flow-policy` and `streaming-diffusion-policy` have executors of their own, which cannot be replaced.
See [Execution](execution.md).

{schemes}

## Your own method

Write a function that returns a `Method` into a file. The parameters of the function become options of the command line,
and so do all fields of the method that it returns.

```python title="mine.py"
from understudy import Method, RecedingHorizon, PolicyConfig, Window
from understudy.heads.gmm import GMM
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.optimizer import OptimizerConfig


def steady(horizon: int = 8) -> Method:
    \"""A mixture of Gaussians over short chunks. Half of each chunk is executed.\"""
    policy = PolicyConfig(GMM(), window=Window(n_obs_steps=1, horizon=horizon))
    optimizer = OptimizerConfig(lr=3e-4, warmup_steps=200)
    return Method(policy, RecedingHorizon(horizon // 2), BehaviorCloning(steps=3000, optimizer=optimizer))
```

```console
$ understudy record fork --out demos --episodes 20
$ understudy train mine:steady demos --trust mine --out runs/steady --steps 500
```
"""

COMMAND_LINE = """# Command line

{made}

Every command ends with one of these exit statuses:

| status | meaning |
|---|---|
| 0 | the command finished, whatever its verdict |
| 1 | an error in understudy itself |
| 2 | an error that you can fix; a message on standard error explains it, and `--debug` shows where it came from |
| 3 | an audit found errors, a claim is due for a run, or more steps of `act` than allowed were clipped, stale or late |
| 130 | interrupted; the same command continues |

With `--json`, a command prints one JSON document on standard output and nothing else there.

{commands}
"""


def methods() -> str:
    from understudy.commands.methods import COST_NOTE
    from understudy.methods import METHODS as named
    from understudy.methods import describe_methods, find_method

    out, facts = [], [f for f in describe_methods() if f["name"] in named]
    for family in dict.fromkeys(f["family"] for f in facts):
        out.append(f"## {FAMILIES.get(family, family.capitalize())}")
        out += [_method(f, find_method(f["name"])) for f in facts if f["family"] == family]
    return METHODS.format(made=MADE, cost_note=COST_NOTE, methods="\n\n".join(out), schemes=schemes())


def schemes() -> str:
    from understudy.execute.schemes import EXECUTION_SCHEMES

    rows = [f"| `{name}` | {s.summary} | {s.paper} | {s.needs} |" for name, s in EXECUTION_SCHEMES.items()]
    return "\n".join(["| name | what it does | paper | needs |", "|---|---|---|---|", *rows])


def _method(f, method) -> str:
    from understudy.commands.methods import cost_texts

    weights, training, plan = cost_texts(f["cost"])
    policy, window = method.policy, method.policy.window
    parts = {"head": policy.head, "trunk": policy.trunk, "encoder": policy.encoder, "executor": method.executor,
             "learner": method.learner}
    if method.collection is not None:
        parts["collection"] = method.collection
    if method.wrapper is not None:
        parts["wrapper"] = method.wrapper
    table = [f"| {name} | `{_brief(part)}` |" for name, part in parts.items()]
    table += [f"| inference | `{_brief(part)}` |" for part in method.inference]
    table += [f"| stage {stage.name} | `{_brief(stage.method.learner)}` |" for stage in method.stages]
    seen = (f"{window.n_obs_steps} observation{'s' * (window.n_obs_steps > 1)}, "
            f"{window.horizon} action{'s' * (window.horizon > 1)}")
    return "\n".join([f"### {f['name']}", "", f["summary"], "", f"Choose it {f['when']}", "",
                      f"Paper: {f['paper']}. Needs: {'; '.join(f['needs'])}."
                      + (f" Ledger: {', '.join(f['rows'])}." if f["rows"] else "")
                      + f" Costs: {weights} weights, {training} of training, {plan} for a plan.", "",
                      "| part | |", "|---|---|", *table, f"| window | {seen} |"])


def _brief(part) -> str:
    """The expression of a dataclass, with the fields that differ from their defaults."""
    from dataclasses import MISSING, fields

    said = []
    for f in fields(part):
        value = getattr(part, f.name)
        default = f.default if f.default is not MISSING else f.default_factory() if (
            f.default_factory is not MISSING) else MISSING
        if value != default:
            said.append(f"{f.name}={_brief(value) if hasattr(value, '__dataclass_fields__') else repr(value)}")
    return f"{type(part).__name__}({', '.join(said)})"


def command_line() -> str:
    from understudy.cli import COMMANDS

    sections = [("understudy", ["--help"]), *((c, [c, "--help"]) for c in COMMANDS)]
    return COMMAND_LINE.format(made=MADE, commands="\n\n".join(
        f"## {name}\n\n```text\n{help_of(words)}```" for name, words in sections))


def help_of(words: list[str]) -> str:
    from understudy.cli import main

    out = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(out):
        assert main(words) == 0, words
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip().splitlines()
    return "\n".join("\n".join(textwrap.wrap(line, 100)) if len(line) > 100 else line.rstrip() for line in lines) + "\n"


def picture(name: str, episode: int = 1) -> bytes:
    """PNG of an episode of the toy's expert: its first, middle and last frame, side by side."""
    import numpy as np
    import torch

    from understudy import make, rollout
    from understudy.data.video import encode_png

    env = make(name)
    steps = rollout(env.expert(), env, episode + 1)[episode].steps
    rows = len(steps["observation.state"]) - 1
    frames = []
    for row in (0, rows // 2, rows):
        env.restore(torch.tensor([0]), {k: torch.as_tensor(steps[k][row:row + 1]) for k in env.state_columns})
        frames.append(np.pad(env.frame(0), ((0, 0), (0, 8), (0, 0)), constant_values=255))
    return encode_png(np.concatenate(frames, 1)[:, :-8])


PAGES = {"methods.md": methods, "command-line.md": command_line}
TOYS = ("fork", "particle", "push", "blocks", "maze", "memory", "arms", "drive", "words")
EPISODES = {"drive": 0}  # where somebody crosses

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
    for toy in TOYS:
        (HERE / "images" / f"{toy}.png").write_bytes(picture(toy, EPISODES.get(toy, 1)))
