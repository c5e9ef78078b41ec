"""What classes mean, in words: the flags --description, --descriptions-file and --template, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftjax.errors import InputError

Descriptions = Mapping[str, tuple[str, ...]]
"""Class name -> what describes it: one text or several."""

TEXT, GAP = "{text}", "{label}"
TEMPLATES = {"encoder": "{text} It was {label}.", "decoder": "{text}\nIt was {label}"}
"""What stands around a text, and where in it the class's words go, if nothing else is asked for."""


def check_template(template: str) -> None:
    """InputError unless it has a place for the text and one for the label."""
    if not template.count(TEXT) == template.count(GAP) == 1:
        raise InputError(f"--template {template!r}: must have {TEXT} and {GAP} once each.")


def read_descriptions(path: Path) -> dict[str, tuple[str, ...]]:
    """{"LABEL": "TEXT" or ["TEXT", ...], ...} of a JSON file; InputError for anything else."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--descriptions-file {path}: cannot be read ({error.strerror}).") from None
    except ValueError:
        raise InputError(f"--descriptions-file {path}: is not JSON in UTF-8.") from None
    texts = {n: [t] if isinstance(t, str) else t for n, t in read.items()} if isinstance(read, dict) else {}
    if not texts or not all(isinstance(t, list) and t and all(isinstance(s, str) for s in t) for t in texts.values()):
        raise InputError(f'--descriptions-file {path}: must be an object such as {{"good": ["a fine film"], "bad": ["dull"]}}.')
    return {name: tuple(described) for name, described in texts.items()}


def described(given: Sequence[str], file: Path | None, labels: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The descriptions of a file, then those given as LABEL=TEXT, in their order. labels: the only ones allowed, first
    in that order, () where nothing describes them; None: any.
    """
    found = {} if file is None else read_descriptions(file)
    for name in labels or ():
        found.setdefault(name, ())
    for text in given:
        name, equals, described = text.partition("=")
        if not equals or (labels is not None and name.strip() not in found):
            raise InputError(f"--description {text!r}: must be LABEL=TEXT{', with a label of --labels' if labels else ''}.")
        found[name.strip()] = (*found.get(name.strip(), ()), described)
    return found


def check_descriptions(descriptions: Descriptions) -> None:
    """InputError for descriptions that say nothing, or do not tell two classes apart."""
    owner: dict[str, str] = {}
    for name, texts in descriptions.items():
        if not all(text.strip() for text in texts):
            raise InputError(f"The label {name!r} has an empty description; give it with --description '{name}=...'.")
        for text in texts:
            same = " ".join(text.split()).casefold()
            if owner.setdefault(same, name) != name:
                raise InputError(f"The labels {owner[same]!r} and {name!r} have the same description {text!r}.")
