"""A skip that nobody listed must fail the run: otherwise a test that never runs looks like one that passes."""

import pytest
from folders import TESTS as FOLDER

pytest_plugins = ["pytester"]

TESTS = {
    "listed": "import pytest\ndef test_it():\n    pytest.skip('no arm')\n",
    "unlisted": "import pytest\ndef test_it():\n    pytest.skip('felt like it')\n",
    "module": "import pytest\npytest.skip('felt like it', allow_module_level=True)\n",
    "import": "import pytest\npytest.importorskip('no_such_module')\n",
    "begins": "import pytest\n@pytest.mark.skipif(True, reason='robot 7 is away')\ndef test_it():\n    pass\n",
    "passes": "def test_it():\n    pass\n",
    "xfails": "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it():\n    assert False\n",
    "fails": "def test_it():\n    assert False\n",
}


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # no test here needs what takes long to import
    pytester.makeconftest((FOLDER / "conftest.py").read_text())
    pytester.path.joinpath("expected_skips.txt").write_text(
        "# nothing here is a reason\nno arm # the arm is in the other room\nrobot * # they come and go\n")

    def run(*names, options=()):
        pytester.makepyfile(**{f"test_{n}": TESTS[n] for n in names})
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return run


@pytest.mark.parametrize("names", [("listed",), ("begins",), ("listed", "begins", "passes", "xfails")])
def test_listed_skips_pass(suite, names):
    assert suite(*names).ret == pytest.ExitCode.OK


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["one process", "two"])
@pytest.mark.parametrize("name", ["unlisted", "module"])
def test_an_unlisted_skip_fails_and_is_named(suite, name, options):
    result = suite(name, "passes", options=options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*expected_skips.txt does not list*", f"*test_{name}.py*: felt like it"])


def test_a_module_that_is_not_installed_is_a_skip_like_any_other(suite):
    result = suite("import", "passes")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no_such_module*"])


def test_a_failure_stays_a_failure(suite):
    assert suite("fails", "unlisted").ret == pytest.ExitCode.TESTS_FAILED
