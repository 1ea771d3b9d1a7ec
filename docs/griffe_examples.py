"""Griffe extension: shows the section "Example:" of a docstring as code, as it does with "Examples:"."""

import re

import griffe


class ExampleSection(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
