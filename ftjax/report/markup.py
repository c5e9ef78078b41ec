"""HTML that is escaped unless it says otherwise, and the page's style sheet."""

from __future__ import annotations

import html
import re
from typing import Any


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: Any) -> Html:
    """Text as HTML. Characters that HTML or UTF-8 cannot hold become U+FFFD."""
    if isinstance(text, Html):
        return text
    clean = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", str(text))
    return Html(html.escape(clean))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element; what is no `Html` in it is escaped. The attribute `aria_label` is aria-label, `class_` is class."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    said = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return Html(f"<{name}{said}>{join(content)}</{name}>")


def join(parts: Any) -> Html:
    """Parts one after the other, escaped unless they are `Html`."""
    return Html("".join(map(escape, parts)))


DARK = """
    --ground: #14171b; --ink: #e4e8ec; --quiet: #9aa5b1; --line: #323941; --soft: #1d2227; --accent: #6cb6f5;
    --series-0: #62b4f0; --series-1: #f58a4b; --series-2: #3fc99a;
    --series-3: #e39ac4; --series-4: #e8c547; --series-5: #b9a3f5;
"""

STYLE = (
    f"""
:root {{
    color-scheme: light dark;
    --ground: #ffffff; --ink: #1a1f25; --quiet: #59636e; --line: #dde2e7; --soft: #f4f6f8; --accent: #0069b4;
    --series-0: #0072b2; --series-1: #d55e00; --series-2: #00875f;
    --series-3: #b0568e; --series-4: #8a6d00; --series-5: #6a4fc0;
}}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
"""
    + """
* { box-sizing: border-box; }
body {
    margin: 0; background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%;
    font: 100%/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.5rem; }
main { padding-top: 3.5rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 650; text-wrap: balance; }
h1 { margin: 0; font-size: 1rem; color: var(--quiet); overflow-wrap: anywhere; }
h2 { margin: 3.5rem 0 1rem; font-size: 1.3rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; }
p { margin: 0 0 .75rem; max-width: 44rem; }
.answer { margin: .6rem 0 1rem; font-size: clamp(1.3rem, 1rem + 1.5vw, 1.75rem); line-height: 1.35; text-wrap: pretty; }
.quiet, figcaption, footer { color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1.5rem .5rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { vertical-align: bottom; font-size: .8125rem; font-weight: 500; color: var(--quiet); }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
tbody th, thead th:first-child:not(.text) { position: sticky; left: 0; background: var(--ground); }
tbody th { white-space: nowrap; }
.best > * { font-weight: 650; }
.wide { width: 100%; }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .5em; border-radius: 50%; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 2rem; }
.figures.narrow { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: .5rem; }
figcaption strong { font-weight: 600; color: var(--ink); }
svg { display: block; width: 100%; height: auto; color: var(--quiet); }
svg text { fill: currentColor; font-family: inherit; }
.matrix th, .matrix td { padding: .5rem .8rem; border: 0; }
.matrix thead th, .matrix td { text-align: center; }
table.matrix tbody th { white-space: normal; }
.matrix th { font-size: .875rem; font-weight: 500; max-width: 12rem; overflow-wrap: anywhere; }
.matrix tr > th:first-child { padding-left: 0; text-align: left; }
.matrix tbody th { vertical-align: middle; }
.matrix td {
    min-width: 5.5rem; border: 2px solid var(--ground); border-radius: 6px;
    background: color-mix(in srgb, var(--accent) calc(var(--share) * .45), var(--soft));
}
.matrix small, .bar + small { display: block; color: inherit; opacity: .8; }
.text { min-width: 16rem; width: 100%; overflow-wrap: anywhere; }
.setting { overflow-wrap: break-word; min-width: 5rem; max-width: 40rem; }
summary { margin: 0 0 .75rem; color: var(--quiet); font-size: .875rem; cursor: pointer; }
.bar { display: block; height: 5px; margin-top: .3rem; border-radius: 3px; background: var(--line); min-width: 6rem; }
.bar > span { display: block; height: 100%; border-radius: 3px; background: var(--accent); width: var(--share); }
pre {
    margin: 0 0 1rem; padding: 1rem 1.15rem; border-radius: 8px; background: var(--soft); font-size: .875rem;
    white-space: pre-wrap; overflow-wrap: anywhere;
}
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { padding-top: 3rem; padding-bottom: 3rem; }
@media (max-width: 40rem) {
    main, footer { padding-left: 1.1rem; padding-right: 1.1rem; }
    main { padding-top: 2rem; }
    h2 { margin-top: 2.75rem; }
    th, td { padding-right: 1.1rem; }
    .matrix td { min-width: 4.5rem; }
    .text { min-width: 11rem; }
}
@media print {
    @page { margin: 18mm 15mm; }
    :root { color-scheme: light; }
    * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
    body { font-size: 10.5pt; }
    main, footer { max-width: none; padding: 0; }
    .scroll { overflow: visible; }
    .quiet, figcaption { font-size: 8.5pt; }
    .figures, .figures.narrow { grid-template-columns: 1fr 1fr; gap: 1.5rem; }
    tbody th, thead th:first-child:not(.text) { position: static; }
    table { font-size: 8.5pt; }
    th, td { padding-right: .8rem; }
    h2, h3 { break-after: avoid; }
    figure, tr, pre { break-inside: avoid; }
}
"""
)
