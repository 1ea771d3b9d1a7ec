"""What every test stands on: one thread, a cache of its own, and skips that are known beforehand."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; children inherit it
CACHE = tempfile.mkdtemp(prefix="understudy-test-cache-") if "PYTEST_XDIST_WORKER" not in os.environ else None
if CACHE:
    os.environ["UNDERSTUDY_CACHE"] = CACHE

import pytest  # noqa: E402

pytest.register_assert_rewrite("fixtures")

from understudy.headless import prefer_offscreen  # noqa: E402

prefer_offscreen()  # before a test imports MuJoCo
HERE = Path(__file__).parent

# Waiting for the disk takes a quarter of a short training, and nothing that a process can see depends on it.
# What a power cut would leave is tested with every call of fsync recorded: see power.py.
os.fsync = lambda handle: None

# Shells let what they start in the background ignore Ctrl-C, and nohup lets it ignore a lost terminal. Tests need both.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# -- a test that is skipped proves nothing: every skip must be listed with its reason ------------------------------


class Skips:
    """Fails the run for a skip whose reason is not in expected_skips.txt."""

    def __init__(self, path: Path):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.expected = [_reason(line) for line in lines if line.strip() and not line.startswith("#")]
        self.seen: Counter[str] = Counter()
        self.unlisted: dict[str, str] = {}

    def see(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            self.seen[reason] += 1
            if not any(reason.startswith(e[:-1]) if e.endswith("*") else reason == e for e in self.expected):
                self.unlisted[report.nodeid] = reason

    def pytest_runtest_logreport(self, report):
        self.see(report)

    def pytest_collectreport(self, report):  # a module that skips itself
        self.see(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self.unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for reason, count in self.seen.most_common():
            terminalreporter.write_line(f"skipped {count}: {reason}")
        if self.unlisted:
            terminalreporter.section("skips that tests/expected_skips.txt does not list", red=True)
            for test, reason in self.unlisted.items():
                terminalreporter.write_line(f"{test}: {reason}")


def _reason(line: str) -> str:
    return line.split("\t")[0].split(" # ")[0].strip()


def pytest_unconfigure():
    if CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # of several processes, the one that hears them all
        config.pluginmanager.register(Skips(HERE / "expected_skips.txt"))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Marks what slow_tests.txt and long_tests.txt list, and skips tests with the marker gpu where there is no GPU."""
    if (HERE / "slow_tests.txt").exists():
        from slow_tests import LIST, LONG_LIST, entries, slow

        slow_names, long_names = (entries(path.read_text(encoding="utf-8")) for path in (LIST, LONG_LIST))
        for item in items:
            is_long = slow(long_names, item.nodeid)
            if is_long:
                item.add_marker(pytest.mark.long)
            if is_long or slow(slow_names, item.nodeid):
                item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch  # late: most commands of pytest need no PyTorch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """The garbage collector skips what is imported and collected: else each of its full passes takes half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def forget_modules_of_the_test():
    """Another test may write a module of the same name into its own folder. The checkout may be a temporary one too."""
    before, stay = set(sys.modules), (str(HERE.parent), sys.prefix)
    yield
    for name in sys.modules.keys() - before:
        file = str(getattr(sys.modules[name], "__file__", None))
        if file.startswith(tempfile.gettempdir()) and not file.startswith(stay):
            del sys.modules[name]


# -- shared by many tests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and fixtures beside the checkout, for the tests that need more than the clone has."""
    folder = HERE.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder")
    return folder


@pytest.fixture(scope="session")
def demos():
    """100 demonstrations of the fork's expert, which passes the obstacle on either side."""
    from understudy import make, rollout

    env = make("fork", 50)
    return rollout(env.expert(), env, 100, seed=0)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command of understudy in an empty folder. Returns its exit status, its output and its errors."""
    from understudy.cli import main

    monkeypatch.chdir(tmp_path)

    def command(*args):
        status = main([str(a) for a in args])
        return status, *capsys.readouterr()
    return command


@pytest.fixture
def train_bc(run):
    """Trains bc on new demonstrations of the fork."""
    def train(out, episodes, steps):
        assert run("record", "fork", "--out", "demos", "--episodes", episodes)[0] == 0
        assert run("train", "bc", "demos", "--out", out, "--steps", steps)[0] == 0
    return train
