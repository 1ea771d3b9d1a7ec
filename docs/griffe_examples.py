"""Griffe extension: shows the section "Example:" of a docstring as code, and several "References:" as a list."""

import re

import griffe


class ExampleSection(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"(?<=^References:\n)(?: +\S.*\n?)+", _as_list, text, flags=re.MULTILINE)


def _as_list(section: re.Match) -> str:
    """The lines of a section. Each that begins with authors and a year becomes an item, if there are several."""
    lines = section[0].splitlines(keepends=True)
    is_first = [re.match(r" +[A-Z].{0,80}?\(\d{4}\)[,.:]", line) is not None for line in lines]
    if sum(is_first) < 2 or not is_first[0]:
        return section[0]
    return "".join(re.sub(r"^ +", r"\g<0>- " if first else r"\g<0>  ", line)
                   for line, first in zip(lines, is_first, strict=True))
