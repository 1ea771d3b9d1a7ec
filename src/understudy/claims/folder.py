"""The folder `claims/` of a repository: where it is, and whether its code may run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from ..config import UntrustedCode
from ..core import UserError

PACKAGE = Path(__file__).resolve().parents[1]  # the code of understudy
NAME = "claims"  # of the folder, and of the package in it


def claims_folder() -> Path:
    """The folder of the repository that the working directory is in.

    Raises:
        UserError: The working directory is in no repository with claims.
    """
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / NAME / "ledger.tsv").is_file():
            return place / NAME
    raise UserError("there is no folder claims/ with a ledger.tsv here or above", where=here,
                    hint="claims are in the repository of understudy and not in the package: clone it and run the "
                    "command there")


def open_claims(trust: tuple[str, ...] = ()) -> Path:
    """Makes the modules of the folder importable as `claims`.

    Args:
        trust: Packages whose code may run. The folder beside the source code of this very understudy needs none.

    Raises:
        UntrustedCode: The folder is that of another checkout, and "claims" is not in `trust`.
    """
    folder = claims_folder()
    if list(getattr(sys.modules.get(NAME), "__path__", ())) == [str(folder)]:
        return folder
    own = PACKAGE.parents[1]
    if NAME not in trust and not (folder.parent == own and (own / "pyproject.toml").is_file()):
        raise UntrustedCode("The claims are not those of the understudy that is installed.", where=folder,
                            hint=f"add --trust {NAME} if you trust that code to run")
    for name in [n for n in sys.modules if n.partition(".")[0] == NAME]:
        del sys.modules[name]
    package = ModuleType(NAME)
    package.__path__ = [str(folder)]
    sys.modules[NAME] = package
    return folder
