"""The reference's docstrings, as the code has them: what is said of an argument or a field begins a paragraph of its own."""

import re
from typing import Any

import griffe

NAMED = re.compile(r"(?:^|(?<=\. ))((?:[a-z]\w*, )*[a-z]\w*): (?=\S)", re.MULTILINE)
"""`name: what it is`, or several names, at the beginning of a line or after a full stop."""


class Named(griffe.Extension):
    """Sets such names apart."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = NAMED.sub(r"\n\n`\1`: ", obj.docstring.value)
