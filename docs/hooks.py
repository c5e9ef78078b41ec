"""Pages of the site that are made from something else, so that nothing is written twice; and what no page may do.

mkdocs calls these functions while it builds (see `hooks` in mkdocs.yml).
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from ftjax.cli import COMMANDS, DESCRIPTION
from ftjax.flags import help_of, overview

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=.?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*\bhref=.?(?:https?:)?//")
"""What would make a browser ask another server when the page is looked at."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line's help, the changelog and how to contribute."""
    made = {"commands.md": commands(), "changelog.md": of_root("CHANGELOG.md"), "contributing.md": of_root("CONTRIBUTING.md")}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_post_page(output: str, page: object, config: MkDocsConfig) -> str:
    """Refuse a page that loads anything from another server."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page}: loads from elsewhere: {found.group()}")
    return output


def commands() -> str:
    """What `ftjax --help` and `ftjax COMMAND --help` print, as a page."""
    os.environ["COLUMNS"] = "100"  # the width of its lines
    sections = [f"## ftjax {name}\n\n```text\n{help_of(name, command)}\n```\n" for name, command in COMMANDS.items()]
    opening = f"# Command line\n\nWhat `--help` prints, made when this page was built.\n\n```text\n{overview(COMMANDS, DESCRIPTION)}\n```\n"
    return "\n".join([opening, *sections])


def of_root(name: str) -> str:
    """A page of the repository's root, whose links to docs/ stay within the site."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
