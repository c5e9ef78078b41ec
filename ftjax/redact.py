"""Secrets stay out of what is printed and kept: the hub's tokens, passwords in URLs, values of flags and variables named so."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
PATTERNS = (
    re.compile(r"\b(?=hf_)\w{16,}"),  # a token of the Hugging Face hub
    re.compile(r"(?<=://)[^\s/\"'@]+(?=@)"),  # https://user:password@host
    re.compile(r"(?i)(?<![\w-])(--?[\w-]*(?:token(?!s)|secret|password|api-?_?key)[\w-]*[= ]\s*)[^\s\"']+"),
)
VARIABLE = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|API_?KEY)$")


def redact(text: str) -> str:
    """The text with every secret that is known as one replaced by ***."""
    for name, value in os.environ.items():
        if VARIABLE.search(name) and len(value) >= 8:
            text = text.replace(value, HIDDEN)
    for pattern in PATTERNS:
        text = pattern.sub(lambda match: (match[1] if match.re.groups else "") + HIDDEN, text)
    return text
