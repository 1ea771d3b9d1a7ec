"""Checks that a change moved code and changed no behavior: make same BASE=COMMIT

Compares this checkout with a commit: the help of all commands, and the names, needs and summaries of all
methods. Snapshots of commits are kept in build/same/.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_command(*words: str) -> str:
    return output_of(sys.executable, "-m", "understudy", *words, env={**os.environ, "COLUMNS": "100"})


def output_of(*command: str, **options) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def take_snapshot(workers: int) -> dict[str, object]:
    """Everything that is compared, by its place."""
    from understudy.cli import COMMANDS

    methods = {m["name"]: m for m in json.loads(run_command("methods", "--json"))}
    helps = {f"help of {name}": run_command(name, "--help") for name in COMMANDS}
    return helps | {f"method {name}": methods[name] for name in methods}


def snapshot_of(commit: str, workers: str) -> dict[str, object]:
    """The snapshot of a commit, taken by that commit's own copy of this file if there is one."""
    sha = output_of("git", "rev-parse", "--short=12", f"{commit}^{{commit}}", cwd=ROOT).strip()
    folder = ROOT / "build" / "same"
    path, tree = folder / f"{sha}.json", folder / sha
    if not path.exists():
        if not tree.exists():
            subprocess.run(["git", "worktree", "add", "--detach", tree, sha], check=True, cwd=ROOT)
        script = tree / "tests" / "same.py"
        take_in(tree, script if script.exists() else Path(__file__), path, workers)
        subprocess.run(["git", "worktree", "remove", "--force", tree], check=True, cwd=ROOT)
    return json.loads(path.read_text())


def take_in(tree: Path, script: Path, path: Path, workers: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1",
           "UNDERSTUDY_DATA": os.environ.get("UNDERSTUDY_DATA", str(ROOT.parent / "shared" / "data"))}
    subprocess.run([sys.executable, script, "--snapshot", path, workers], check=True, cwd=tree, env=env)


def differences(before: object, now: object) -> str | None:
    """The first difference of two snapshots of one place. None if they are equal."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        place = next(k for k in (*before, *now) if before.get(k, ...) != now.get(k, ...))
        return f"{place}: {str(before.get(place))[:200]} before, {str(now.get(place))[:200]} now"
    lines = (sorted(set(str(a).splitlines()) - set(str(b).splitlines())) for a, b in ((before, now), (now, before)))
    return "\n".join(f"  {sign} {line}" for sign, some in zip("-+", lines, strict=True) for line in some)


def main(base: str, workers: str) -> int:
    before = snapshot_of(base, workers)
    path = ROOT / "build" / "same" / "now.json"
    take_in(ROOT, Path(__file__), path, workers)
    now = json.loads(path.read_text())
    changed = {place: text for place in dict.fromkeys((*before, *now))
               if (text := differences(before.get(place), now.get(place))) is not None}
    for place, text in changed.items():
        print(f"{place}\n{text}")
    print(f"{len(now) - len(changed)} of {len(now)} places are the same as at {base}")
    return 1 if changed else 0


if __name__ == "__main__":
    if sys.argv[1] == "--snapshot":
        Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
        Path(sys.argv[2]).write_text(json.dumps(take_snapshot(int(sys.argv[3]))))
    else:
        raise SystemExit(main(sys.argv[1], sys.argv[2]))
