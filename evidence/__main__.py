"""`python -m evidence`: runs experiments of the repository, and writes the pages about them."""

from __future__ import annotations

import argparse
import json
import sys

from understudy.core import UserError, unknown_name

from . import advice, published, systems
from .pages import write_pages
from .run import run_table
from .tables import all_tables, families


def run(name: str) -> None:
    """Runs a family, a table, a sentence of advice or a published cell. An interrupted run continues."""
    everything, tables, sentences = families(), all_tables(), advice.sentences()
    cells = [cell["cell"] for cell in published.cells()]
    if name in cells:
        published.run(name)
        return
    if name in sentences:
        names = list(sentences[name].worlds)
    elif name in everything:
        names = [table.name for table in everything[name].tables.values() if table.experiment]
    elif name in tables:
        names = [name]
    else:
        raise unknown_name("family, table, sentence or cell", name, [*everything, *tables, *sentences, *cells], "run")
    for each in names:
        run_table(tables[each])


def main(args: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help=run.__doc__).add_argument("name")
    commands.add_parser("pages", help="write the pages and src/understudy/advice.json")
    tables = {"systems": systems.table, "advice": advice.table, "published": published.cells}
    for name in tables:
        commands.add_parser(name, help=f"print the table of {name}").add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    try:
        if options.command == "run":
            run(options.name)
        elif options.command == "pages":
            print(*write_pages(), sep="\n")
        else:
            rows = tables[options.command]()
            print(json.dumps(rows, indent=1, ensure_ascii=False) if options.json else
                  "\n".join("\t".join(str(v) for v in row.values()) for row in rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
