"""Lines of methods, and of learners compared with d3rlpy's and OGBench's: python benchmarks/learner_lines.py [--page]

With --methods in place of --page, only the files of all methods are counted, at the commit `BEFORE` and now, and the
table is printed. These are all their lines.

In the comparison with others a line counts if it has code: docstrings, comments, imports and blank lines do not.
Statements are counted too, because lines are up to 120 characters wide here and in OGBench, and 80 in d3rlpy. What a
learner extends are the files of other learners that its own files import, and those that they import in turn. Files
that all learners share are counted apart. The sources are those of the environment .venv-peers/d3rlpy, and of a clone
of github.com/seohongpark/ogbench, whose folder `impls` is OGBENCH_IMPLS. The counts are in
benchmarks/results/learner_lines.json. With --page, only the tables are printed.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import statistics
import subprocess
import tarfile
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path

import measure

from understudy.files import read_json, write_json

OUT = measure.RESULTS / "learner_lines.json"
SOURCE = measure.HERE.parent / "src" / "understudy"
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
           tokenize.ENCODING}
BEFORE = "852280c4"  # when most methods had their learner in another file, in learn/
SHARED = {
    "understudy": [f"learn/{name}.py" for name in ("algorithm", "gradient_learner", "critic", "critics/critic_learning",
                                                   "targets")],
    "d3rlpy": ["algos/qlearning/base.py", "algos/qlearning/torch/utility.py"],
    "OGBench": ["utils/flax_utils.py", "utils/networks.py"]}
OFFLINE = {"bcq": "bcq", "bear": "bear", "crr": "crr", "plas": "plas", "prdc": "prdc", "cal_ql": "cal_ql", "cql": "cql",
           "iql": "iql", "awac": "awac", "rebrac": "rebrac", "nfq": "nfq"}
ONLINE = {"sac": "sac", "td3": "td3", "ddpg": "ddpg", "dqn": "dqn"}
OF_D3RLPY = {"interaction/td3_bc": "td3_plus_bc", **{f"offline_rl/{ours}": peer for ours, peer in OFFLINE.items()},
             **{f"online_rl/{ours}": peer for ours, peer in ONLINE.items()}}
OF_OGBENCH = {"behavior_cloning/gcbc": "gcbc", "online_rl/sac": "sac",
              **{f"goal_conditioned/{name}": name for name in ("gcivl", "gciql", "hiql", "qrl", "crl")}}


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def count(paths: Iterable[Path]) -> list[int]:
    """Lines and statements of code."""
    lines = statements = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
        left_out = [n for n in nodes if is_docstring(n) or isinstance(n, (ast.Import, ast.ImportFrom))]
        code = {line for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in NO_CODE
                for line in range(token.start[0], token.end[0] + 1)}
        lines += len(code - {line for n in left_out for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)})
        statements += len(nodes) - len(left_out)
    return [lines, statements]


def imported(path: Path, among: Sequence[Path]) -> set[Path]:
    """Which of these files a file imports by relative imports."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
            files |= {name for name in names if name in among}
    return files - {path}


def with_extended(own: Sequence[Path], among: Sequence[Path]) -> set[Path]:
    """The files of a learner, and of the learners that it extends."""
    files, new = set(), set(own)
    while new:
        files |= new
        new = {other for path in new for other in imported(path, among)} - files
    return files


def measured(own: Sequence[Path], among: Sequence[Path]) -> dict[str, list[int]]:
    return {"alone": count(own), "whole": count(with_extended(own, among))}


def counts(ogbench: Path) -> dict:
    d3rlpy = next((measure.ENVIRONMENTS / "d3rlpy" / "lib").glob("python*/site-packages/d3rlpy"))
    roots = {"understudy": SOURCE, "d3rlpy": d3rlpy, "OGBench": ogbench}
    ours = [SOURCE / "learn" / "behavior_cloning.py", *(SOURCE / "learn" / "critics").glob("*.py"),
            *(SOURCE / "methods").glob("*/*.py")]
    ours = [path for path in ours if path.relative_to(SOURCE).as_posix() not in SHARED["understudy"]]
    folder = d3rlpy / "algos" / "qlearning"
    peers = [p for p in (*folder.glob("*.py"), *folder.glob("torch/*_impl.py"))
              if p.name not in ("__init__.py", "base.py", "explorers.py", "random_policy.py")]

    def own(name):
        return measured([SOURCE / "methods" / f"{name}.py"], ours)

    def of_d3rlpy(name):
        files = (folder / f"{name}.py", folder / "torch" / f"{name}_impl.py")
        return measured([path for path in files if path.exists()], peers)
    rows = [["d3rlpy", name, own(name), of_d3rlpy(peer)] for name, peer in OF_D3RLPY.items()]
    rows += [["OGBench", name, own(name), measured([ogbench / "agents" / f"{peer}.py"], [])]
             for name, peer in OF_OGBENCH.items()]
    return {"shared": {name: count(roots[name] / path for path in paths) for name, paths in SHARED.items()},
            "rows": rows}


def lines_at(commit: str) -> dict[str, int]:
    """Number of lines of every file of `methods/` and `learn/` at a commit, by its path in the package."""
    folders = [f"src/understudy/{name}" for name in ("methods", "learn")]
    archive = subprocess.run(["git", "archive", "--format=tar", commit, *folders], cwd=measure.HERE.parent, check=True,
                             stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return {member.name.removeprefix("src/understudy/"): len(files.extractfile(member).read().splitlines())
                for member in files if member.name.endswith(".py")}


def method_lines(lines: dict[str, int]) -> dict[str, float]:
    """What the lines of the files come to, for methods, which have one file each in the folder of their family."""
    methods = [n for path, n in lines.items() if re.fullmatch(r"methods/\w+/(?!__init__)\w+\.py", path)]
    learn = sum(n for path, n in lines.items() if path.startswith("learn/"))
    return {"methods": len(methods), "median lines of a method's file": statistics.median(methods),
            "mean lines of a method's file": round(statistics.mean(methods), 1),
            "lines of all files of methods": sum(methods), "lines of `learn/`": learn,
            "lines of both, for each method": round((sum(methods) + learn) / len(methods), 1)}


def method_table(before: dict[str, float], now: dict[str, float]) -> str:
    return "\n".join([f"| | {BEFORE} | now |", "|---|--:|--:|", *(
        f"| {name} | {before[name]:,} | {now[name]:,} |" for name in now)])


def page() -> str:
    stored = read_json(OUT)
    lines = ["| learner | here, alone | with what it extends | peer | there, alone | with what it extends |",
             "|---|--:|--:|---|--:|--:|"]
    for peer, name, *sides in sorted(stored["rows"]):
        cells = [f"{lines} ({statements})" for side in sides for lines, statements in (side["alone"], side["whole"])]
        lines.append(f"| `{Path(name).name.replace('_', '-')}` | {cells[0]} | {cells[1]} | {peer} | {cells[2]} | "
                     f"{cells[3]} |")
    shared = "; ".join(f"{name} {n:,} ({statements:,}): {', '.join(f'`{p}`' for p in SHARED[name])}"
                       for name, (n, statements) in stored["shared"].items())
    return "\n".join(lines) + (f"\n\nLines (statements) that all of them share: {shared}.\n\n"
                              + method_table(**stored["method_lines"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--methods", action="store_true")
    args = parser.parse_args()
    if not args.page:
        methods = {"before": method_lines(lines_at(BEFORE)), "now": method_lines(lines_at("HEAD"))}
        if args.methods:
            print(method_table(**methods))
            return
        write_json(OUT, {**counts(Path(os.environ["OGBENCH_IMPLS"])), "method_lines": methods})
    print(page())


if __name__ == "__main__":
    main()
