"""How long it takes to begin: import, command line, and what an installation takes: python benchmarks/startup.py

Processor seconds of a whole start of Python each, in turns. Help needs no PyTorch and is promised in under 0.5 s, and
`import understudy` at no more than NumPy's import and 0.1 s. `train` says what it does within 2 s. Then `pip install`
of this checkout into an empty environment, with the PyTorch that TORCH names (the one in constraints.txt, if it names
none): what lies in its site-packages at the end. On Linux, PyPI's PyTorch is the one for CUDA; the one for CPUs comes
from pip's settings or, with its index, from TORCH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

ROOT = measure.HERE.parent
COMMANDS = (["--help"], ["--version"], ["train", "--help"], ["eval", "--help"], ["record", "--help"], ["methods"])
HELP, ABOVE_NUMPY, FIRST_LINE, INSTALLED = 0.5, 0.1, 2.0, 1.45  # s, s, s, GB


def python(*args: str):
    def start():
        subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)
    return start


def first_line(*args: str):
    """Starts a command, and ends it once it has said something."""
    def start():
        with subprocess.Popen([sys.executable, *args], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            process.stderr.readline()
            process.kill()
    return start


def starts() -> list[measure.Line]:
    imports = {name: python("-c", f"import {name}") for name in ("numpy", "understudy")}
    seconds = measure.interleaved({**imports, **{" ".join(c): python("-m", "understudy", *c) for c in COMMANDS},
                                   "train": first_line("-m", "understudy", "train", "bc", "DATA", "--out", "RUN")})
    figures = {name: measure.Figure.of(values, "s") for name, values in seconds.items()}
    lines = [measure.Line("import understudy; import numpy", figures["understudy"], figures["numpy"],
                          bound=figures["numpy"].value + ABOVE_NUMPY)]
    for command in COMMANDS:
        name = " ".join(command)
        promised = command[-1] in ("--help", "--version")
        lines.append(measure.Line(f"understudy {name}", figures[name], bound=HELP if promised else None))
    return [*lines, measure.Line("understudy train, until its first line", figures["train"], bound=FIRST_LINE)]


def installed() -> measure.Line:
    torch_version = os.environ.get("TORCH") or re.search(r"^torch==.*", (ROOT / "constraints.txt").read_text(), re.M)[0]
    with tempfile.TemporaryDirectory() as place:
        source, environment = Path(place) / "source", Path(place) / "environment"
        source.mkdir()  # pip would leave what it builds in the checkout
        shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *torch_version.split()], check=True)
        subprocess.run([*pip, source], check=True)
        site = next((environment / "lib").glob("python*/site-packages"))
        size = sum(f.stat().st_size for f in site.rglob("*") if f.is_file()) / 1e9
        torch = subprocess.run([environment / "bin" / "python", "-c", "import understudy.policy, torch; "
                                "print(torch.__version__)"], check=True, stdout=subprocess.PIPE, text=True, cwd=place)
        count = len(list(site.glob("*.dist-info")))
    return measure.Line("pip install . into an empty environment", measure.Figure(size, size, size, "GB"),
                        bound=INSTALLED, note=f"{count} distributions, PyTorch {torch.stdout.strip()}")


if __name__ == "__main__":
    measure.save("startup", [*starts(), installed()], packages=("numpy", "torch"))
