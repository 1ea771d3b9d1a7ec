"""What a stranger gets from `pip install .`: everything that runs, nothing large, no repository needed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from folders import REPOSITORY

SOURCES = {p.relative_to(REPOSITORY / "src").as_posix() for p in (REPOSITORY / "src/understudy").rglob("*.py")}
PAGE = {f"understudy/studio/inspect.{kind}" for kind in ("html", "css", "js")}
PAGE |= {"understudy/advice.json", "understudy/deploy/onnx_runner.mjs"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel), of a copy of the sources alone: no git, no make, nothing built before."""
    folder = tmp_path_factory.mktemp("package")
    copy = shutil.copytree(REPOSITORY, folder / "sources", ignore=shutil.ignore_patterns(
        ".*", "*.egg-info", "build", "dist", "site", "__pycache__", "shared", "understudy-demo", "node_modules"))
    build = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    for what in ("build_sdist", "build_wheel"):
        subprocess.run([sys.executable, "-c", build, what, folder], cwd=copy, check=True, capture_output=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_both_hold_all_the_code_and_its_types(built):
    sdist, wheel = built
    expected_files = SOURCES | PAGE | {"understudy/py.typed"}
    with tarfile.open(sdist) as tar:
        inside = {re.sub(r"^[^/]+/src/", "", n) for n in tar.getnames()}
        assert expected_files <= inside
        assert {"LICENSE", "README.md"} <= {n.split("/", 1)[-1] for n in tar.getnames()}
    with zipfile.ZipFile(wheel) as whole:
        assert expected_files <= set(whole.namelist())


def test_the_wheel_holds_nothing_else_and_nothing_large(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as whole:
        strays = [n for n in whole.namelist() if not re.match(r"understudy(-[\d.]+\.dist-info)?/", n)]
        assert not strays
        assert not [i.filename for i in whole.infolist() if i.file_size > 1_000_000]
        assert not [n for n in whole.namelist() if n.startswith("evidence/") or n.endswith("systems.tsv")]
    assert list((REPOSITORY / "evidence").glob("families/*/figures/*.json"))  # in the repository alone
    assert wheel.stat().st_size < 2_500_000
    assert sdist.stat().st_size < 5_000_000


def test_the_wheel_runs_where_it_is_put(built, tmp_path):
    """The command and the import, from the wheel's files and not from the checkout's."""
    with zipfile.ZipFile(built[1]) as whole:
        whole.extractall(tmp_path)
    code = "import understudy, sys; print(understudy.__file__); from understudy.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert "demo" in done.stdout


def _bounds():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    from packaging.requirements import Requirement
    for group, needs in {"core": project["dependencies"], **project["optional-dependencies"]}.items():
        for need in needs:
            yield group, Requirement(need)


def test_extras_that_are_named_exist_and_the_readme_names_them_all():
    """`pip install 'understudy[sim]'` warns of an extra that does not exist, and ends with status 0."""
    extras = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    readme = (REPOSITORY / "README.md").read_text()
    assert {name for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", readme.partition("| extra |")[2], re.MULTILINE)
            for name in re.findall(r"\w+", row)} == extras
    sources = (*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md")
    named = {(p.name, extra) for p in sources
             for extra in re.findall(r"""(?:understudy|\.)\[(\w+)\]'|import_optional\(.*"(\w+)"\)""",
                                     p.read_text(encoding="utf-8"))}
    named = {(file, one or other) for file, (one, other) in named}
    files = {file for file, _ in named}
    assert {"onnx.py", "hdf5.py", "message_logs.py", "remote.py", "README.md", "deploy.md"} <= files
    assert {extra for _, extra in named} <= extras


def test_the_pins_satisfy_every_bound_and_pin_everything_named():
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in pins, f"{name} is pinned twice"
            pins[canonicalize_name(name)] = version
    for group, need in _bounds():
        name = canonicalize_name(need.name)
        assert name in pins, f"{need} ({group}) is not pinned in constraints.txt"
        assert pins[name] in need.specifier, f"constraints.txt pins {name}=={pins[name]}, {group} wants {need}"


def test_the_extras_have_the_names_that_were_promised():
    assert {"formats", "sim", "onnx", "cluster", "test", "docs"} <= {group for group, _ in _bounds()}


@pytest.mark.slow
def test_the_names_at_the_top_are_what_they_say_whatever_was_imported_before():
    """A name that is also a subpackage's would be either, by the order of imports."""
    code = ("import pkgutil, importlib, types, understudy\n"
            "for m in pkgutil.walk_packages(understudy.__path__, 'understudy.'):\n"
            "    try:\n"
            "        if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
            "    except ModuleNotFoundError as error:  # an adapter whose simulator is not installed\n"
            "        adapter = m.name.startswith('understudy.envs.simulators.')\n"
            "        if not adapter or error.name.startswith('understudy'): raise\n"
            "print([n for n in understudy.__all__ if isinstance(getattr(understudy, n), types.ModuleType)])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_importing_understudy_does_not_import_torch():
    code = "import sys, understudy; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
