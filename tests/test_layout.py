"""The layout: how large folders and files are, and where tests are."""

import ast
import re
from pathlib import Path

from folders import REPOSITORY, TESTS

ROOT = REPOSITORY / "src" / "understudy"
FILES = sorted(ROOT.rglob("*.py"))
EVIDENCE = sorted((REPOSITORY / "evidence").rglob("*.py"))
BENCHMARKS = sorted((REPOSITORY / "benchmarks").rglob("*.py"))


def place(path):
    return path.relative_to(REPOSITORY).as_posix()


MAX_MODULES, MAX_FILE_LINES = 30, 500
# Files that are longer, and how long. A number may only fall.
LONG_FILES = {
    "benchmarks/defects.py": 670,
    "benchmarks/heads.py": 700,
    "benchmarks/published.py": 630,
    "src/understudy/audit/action_motion.py": 640,
    "src/understudy/audit/checks.py": 710,
    "src/understudy/audit/file_checks.py": 510,
    "src/understudy/choose.py": 640,
    "src/understudy/commands/parts/common.py": 580,
    "src/understudy/commands/train.py": 830,
    "src/understudy/core.py": 790,
    "src/understudy/data/formats/folder.py": 570,
    "src/understudy/data/formats/lerobot_read.py": 580,
    "src/understudy/data/formats/lerobot_write.py": 910,
    "src/understudy/data/formats/logs/message_logs.py": 520,
    "src/understudy/data/formats/logs/topic_mapping.py": 530,
    "src/understudy/data/formats/parts/hdf5.py": 520,
    "src/understudy/data/formats/rlds.py": 780,
    "src/understudy/data/operations.py": 660,
    "src/understudy/data/recording/recorder.py": 640,
    "src/understudy/data/recording/recovery.py": 710,
    "src/understudy/evaluate/action_prediction.py": 550,
    "src/understudy/evaluate/plots.py": 700,
    "src/understudy/evaluate/report.py": 660,
    "src/understudy/execute/planners.py": 710,
    "src/understudy/execute/wrappers.py": 510,
    "src/understudy/improve/collection.py": 780,
    "src/understudy/learn/train.py": 730,
    "src/understudy/policy.py": 1000,
    "src/understudy/robots/servo_arm.py": 640,
    "src/understudy/studio/html_page.py": 510,
}


def test_folders_are_small():
    sizes = {place(folder): len(list(folder.glob("*.py"))) for folder in {path.parent for path in (*FILES, *EVIDENCE)}}
    large = {folder: n for folder, n in sizes.items() if n > MAX_MODULES}
    assert "src/understudy/learn/critics" in sizes and not large, f"divide {large}"


def test_files_are_short():
    sizes = {place(path): len(path.read_text(encoding="utf-8").splitlines())
             for path in (*FILES, *EVIDENCE, *BENCHMARKS, *TESTS.rglob("*.py"))}
    long = {file: n for file, n in sizes.items() if n > LONG_FILES.get(file, MAX_FILE_LINES)}
    assert not long, f"divide these, or write less: {long}"
    short = {file for file in LONG_FILES if sizes.get(file, 0) <= MAX_FILE_LINES}
    assert not short, f"leave these out of LONG_FILES: {short}"


def is_export(node):
    """Whether a statement is a docstring, an import, or assigns a name such as `__all__`."""
    targets = [name for target in getattr(node, "targets", ()) for name in getattr(target, "elts", [target])]
    return (isinstance(node, ast.Import | ast.ImportFrom)
            or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            or bool(targets) and all(re.fullmatch("__[a-z]+__", getattr(name, "id", "")) for name in targets))


def test_packages_have_exports_alone():
    logic = [f"{place(path)}:{node.lineno}" for path in (*FILES, *EVIDENCE) if path.stem == "__init__"
             for node in ast.parse(path.read_text(encoding="utf-8")).body if not is_export(node)]
    assert not logic, f"move it to a module: {logic}"
    example = ast.parse("'A.'\nfrom a import b\n__getattr__, __all__ = b()\nc = 1\ndef __dir__(): pass\nb()\n")
    assert list(map(is_export, example.body)) == [True, True, True, False, False, False]


# Tests at the root that are of no module at the root of the package.
AT_THE_ROOT = {"architecture", "docs", "docstrings", "earlier_versions", "field_choices", "field_ranges", "gpu",
               "layout", "packaging", "real_arm_page", "real_input", "skips", "slow_tests"}


def test_tests_are_in_the_folder_of_what_they_test():
    folders = {path.parent.relative_to(ROOT) for path in FILES} | {Path("benchmarks"), Path("evidence")}
    for path in TESTS.rglob("test_*.py"):
        place = path.relative_to(TESTS)
        assert place.parent in folders, f"{place}: the folders of tests are those of understudy"
        name = path.stem.removeprefix("test_")
        assert place.parent != Path() or name in AT_THE_ROOT or (ROOT / f"{name}.py").exists(), \
            f"{place}: put it into the folder of what it tests"
