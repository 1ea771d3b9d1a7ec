"""Which claims there are, and whose code may run."""

import shutil
import sys

import pytest

from understudy import cli
from understudy.claims import records
from understudy.claims.folder import claims_folder
from understudy.core import UserError


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(UserError, match="no claim 'difusion-bc'\n.*did you mean 'diffusion-bc'.* list shows all$"):
        records.find_claim("difusion-bc")
    with pytest.raises(UserError, match="no claim 'nothing'\n  -> understudy claims list shows all$"):
        records.find_claim("nothing")


@pytest.fixture
def other_claims(tmp_path, monkeypatch):
    """The folder `claims` of another checkout, as the working directory has it."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    for name in [n for n in sys.modules if n.partition(".")[0] == "claims"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "claims"
    (folder / "family").mkdir(parents=True)
    shutil.copy(claims_folder() / "ledger.tsv", folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "claims"]:
        sys.modules.pop(name)


TEXT = """+++
[odd-claim]
decision = "which head"
paper = "p"
statement = "s"
control = "c"
advice = "a"
against = "b"
+++

How.
"""


@pytest.mark.parametrize("text,place,problem", [
    ("CLAIN = 1", "", "the module does not define CLAIM"),
    ("CLAIM = 'a claim'", "", "CLAIM is of type str, not Claim"),
    ("import not_there", ", line 1", "cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
    ("x = 1\n\nCLAIM = Claim()", ", line 3", "cannot be imported: NameError"),
    ("x = 1\nCLAIM = (", ", line 2", "cannot be imported: SyntaxError"),
    ("from fixtures.toy_claims import toy_claim\nCLAIM = toy_claim()", "",
     "'toy', and the head of their text has odd-claim"),
])
def test_a_module_that_is_no_claim_is_named(other_claims, monkeypatch, tmp_path, capsys, text, place, problem):
    file = other_claims / "family/odd_claim.py"
    file.write_text(text)
    file.with_suffix(".md").write_text(TEXT)
    for subcommand in ("list", "table"):
        page = ["--html", str(tmp_path / "x.html")] * (subcommand == "table")
        assert cli.main(["claims", subcommand, "--trust", "claims", *page]) == 2
        err = " ".join(capsys.readouterr().err.split())
        assert f"{file}{place}" in err and problem in err and "Traceback" not in err


def test_claims_run_beside_their_own_understudy_or_where_they_are_trusted(other_claims, monkeypatch, capsys):
    file = other_claims / "family/odd_claim.py"
    file.write_text("from pathlib import Path\nPath('ran').touch()\n")
    file.with_suffix(".md").write_text(TEXT)
    (other_claims.parent / "pyproject.toml").write_text('[project]\nname = "understudy"\n')
    assert cli.main(["claims", "list"]) == 2
    err = capsys.readouterr().err
    assert "not those of the understudy that is installed" in err and "--trust claims" in err
    assert not (other_claims.parent / "ran").exists()
    assert cli.main(["claims", "list", "--trust", "claims"]) == 2 and (other_claims.parent / "ran").exists()
    assert "does not define CLAIM" in capsys.readouterr().err
    file.unlink()
    file.with_suffix(".md").unlink()
    assert cli.main(["claims", "list", "--trust", "claims"]) == 0 and "no claim is like that" in capsys.readouterr().out


def test_claims_are_in_the_repository_and_not_in_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims", "list"]) == 2
    assert "claims are in the repository of understudy and not in the package" in " ".join(
        capsys.readouterr().err.split())
