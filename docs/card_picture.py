"""Draws a card of `understudy push` as the hub shows it: python docs/card_picture.py README.md docs/images/hub-card.png

The file is the README.md of a repository. The metadata become the tags above the card, and the rest is rendered as
Markdown in a style like the hub's. It needs playwright, and Chromium in the search path.
"""

from __future__ import annotations

import json
import shutil
import sys
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from playwright.sync_api import sync_playwright

WIDTH = 760  # pixels of the hub's column of text
STYLE = """body{margin:0;padding:24px 28px;color:#1f2937;font:16px/1.6 system-ui,'Liberation Sans',Arial,sans-serif}
h1{font-size:26px;margin:24px 0 12px;border-bottom:1px solid #e5e7eb;padding-bottom:8px}
h2{font-size:21px;margin:28px 0 10px}p,ul{margin:10px 0}
code{font:14px/1.5 'Liberation Mono',monospace;background:#f3f4f6;border-radius:4px;padding:1px 5px}
pre{background:#f9fafb;border:1px solid #e5e7eb;border-radius:8px;padding:11px 14px;overflow:hidden}
pre code{background:none;padding:0}a{color:#1d4ed8}
table{border-collapse:collapse;font-size:14px}th,td{border:1px solid #e5e7eb;padding:5px 10px;text-align:left}
th{background:#f9fafb}.tags{display:flex;flex-wrap:wrap;gap:8px}
.tags span{border:1px solid #d1d5db;border-radius:8px;padding:1px 9px;font-size:14px}"""


def page(card: str) -> str:
    """Returns the HTML of a card."""
    _, metadata, text = card.split("---\n", 2)
    values = dict(line.split(": ", 1) for line in metadata.splitlines())
    tags = [value for key in ("pipeline_tag", "task_categories", "library_name", "tags") if key in values
            for value in _texts(values[key])]
    tags += [f"License: {value}" for value in _texts(values.get("license", "[]"))]
    shown = "".join(f"<span>{escape(tag)}</span>" for tag in dict.fromkeys(tags))
    return (f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><div class="tags">{shown}</div>'
            + MarkdownIt("commonmark").enable("table").render(text))


def _texts(value: str) -> list[str]:
    read = json.loads(value)
    return [read] if isinstance(read, str) else read


if __name__ == "__main__":
    card, picture = map(Path, sys.argv[1:])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": 400})
        view.set_content(page(card.read_text(encoding="utf-8")))
        view.screenshot(path=picture, full_page=True)
