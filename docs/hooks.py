"""Pages of the site that are made from something else, so that nothing is written twice; and what no page may do.

mkdocs calls these functions while it builds (see `hooks` in mkdocs.yml).
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ftjax.cli import COMMANDS, DESCRIPTION
from ftjax.flags import help_of, overview

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Pages of the repository's root that are pages of the site too, in lower case."""
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=.?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*\bhref=.?(?:https?:)?//"
)
"""What would make a browser ask another server when the page is looked at."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line's help, the changelog and how to contribute."""
    made = {"commands.md": commands()} | {name.lower(): of_root(name) for name in COPIED}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A paragraph that is nothing but a link to a section of a README becomes that section; root pages are the site's own."""
    up = "../" * page.file.src_uri.count("/")
    for name in COPIED:
        markdown = markdown.replace(f"]({up}../{name}", f"]({up}{name.lower()}")
    return re.sub(
        r"^\[[^\]]*\]\((?:\.\./)+(README(?:\.zh-CN)?\.md)#([\w-]+)\)$",
        lambda link: section(link[1], link[2], up),
        markdown,
        flags=re.MULTILINE,
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads anything from another server."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page}: loads from elsewhere: {found.group()}")
    return output


def section(name: str, anchor: str, up: str) -> str:
    """What a README says below a heading, up to the next one, for a page that is `up` from the site's root."""
    parts = re.split(r"^#+ (.*)$", of_root(name, up), flags=re.MULTILINE)
    named = {heading.lower().replace(" ", "-"): text for heading, text in zip(parts[1::2], parts[2::2])}
    if anchor not in named:
        raise PluginError(f"{name} has no section #{anchor}.")
    return named[anchor]


def commands() -> str:
    """What `ftjax --help` and `ftjax COMMAND --help` print, as a page."""
    os.environ["COLUMNS"] = "88"  # the width of its lines
    made = [
        f"# Command line\n\nWhat `--help` prints, taken when this page was made.\n\n{shown(overview(COMMANDS, DESCRIPTION))}"
    ]
    made += [f"## ftjax {name}\n\n{shown(help_of(name, command))}" for name, command in COMMANDS.items()]
    return "\n".join(made)


def shown(text: str) -> str:
    """A block of plain text."""
    return f"```text\n{text}\n```\n"


def of_root(name: str, up: str = "") -> str:
    """A page of the repository's root as one of the site: links stay within it, and other files are named, not linked."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", f"]({up}")
    for copied in COPIED:
        text = text.replace(f"]({copied}", f"]({up}{copied.lower()}")
    return re.sub(r"\[([^\]]*)\]\(((?:experiments|ftjax|tests)/[^)]*)\)", r"\1 (`\2`)", text)
