"""Seconds of Pallas kernels, of which a compiled program says nothing: counted in the instructions that the compiler writes.

The compiler for TPUs writes the final instructions of every operation into a directory, if it is told so before it is
loaded (`DUMP`). An instruction word (a bundle) takes a cycle. Those of a loop count as often as it turns, whose number the
text tells. Branches count as taken, also those by which a kernel leaves out what a mask hides, and nothing waits for
memory: the first makes the figure too high, the second too low. (`hlo` counts the bytes of a kernel beside its cycles.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

DUMP = ("--xla_jf_dump_llo_text=true", "--xla_jf_dump_llo_pass_label_regex=final_bundles", "--xla_jf_dump_to=")
"""Options of the compiler; the last is followed by the directory."""

OURS = "ftjax-plan-"
"""How the directory's name begins. Whoever has the compiler write elsewhere keeps what it writes."""

DELAY = 4
"""Bundles after a branch that run whether it is taken or not."""


def options(given: str, directory: str) -> str:
    """The compiler's options with ours; as they are if they have it write already."""
    return given if DUMP[-1] in given else " ".join([given, *DUMP]).strip() + directory


def take(called: Mapping[str, str]) -> dict[str, int]:
    """Operation -> cycles, of those that were compiled since, if their loops tell how often they turn; empties the directory.

    called: operation -> its program. One that is called several times may have been written once: all that have its program
    take as long. The directory is the one that LIBTPU_INIT_ARGS names, if it is ours.
    """
    named = re.search(rf"{DUMP[-1]}(\S*/{OURS}[^/\s]+)(?:\s|$)", os.environ.get("LIBTPU_INIT_ARGS", ""))
    found: dict[str, int] = {}
    for path in sorted(Path(named[1]).glob("*")) if named else ():
        is_of = re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name)
        if is_of and is_of[1] in called and (counted := cycles(path.read_text(encoding="utf-8", errors="replace"))):
            found[is_of[1]] = counted
        path.unlink()
    of_program = {called[name]: counted for name, counted in found.items()}
    return {name: of_program[program] for name, program in called.items() if program in of_program} | found


def cycles(text: str) -> int | None:
    """Bundles of an operation, loops by their turns; None where a loop does not tell how often it turns.

    A loop is a branch back to where its region starts. Its exit test compares a counter that begins at 0 with a number:
    `%p3 = scmp.ge.s32.totalorder %s5, 514 /* loop exit test */`, `%s5 = sadd.s32 1, %s6`.
    """
    bundles = re.split(r"^ *(?=(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: *>* *\{)", text, flags=re.MULTILINE)[1:]
    starts = {
        int(n): at for at, bundle in enumerate(bundles) for n in re.findall(r"\bStart(?:/End empty)? region (\d+)", bundle)
    }
    limit = {
        test: (counter, int(number))
        for test, counter, number in re.findall(
            r"(%p\w+) = scmp\.ge\.s32\.totalorder (?:\(%p\w+\), )?(%s\w+), (\d+) /\* loop exit test \*/", text
        )
    }
    step = {counter: int(by) for counter, by in re.findall(r"(%s\w+) = sadd\.s32 (?:\(!?%p\w+\), )?(\d+), %s\w+", text)}
    turns = [1] * len(bundles)
    for at, bundle in enumerate(bundles):
        for test, region in re.findall(r"sbr\.rel(?: \(!?(%p\w+)\))? target = \$region(\d+)", bundle):
            first = starts.get(int(region), at + 1)
            if first > at:
                continue
            counter, number = limit.get(test, ("", 0))
            if counter not in step:
                return None
            for inside in range(first, min(at + DELAY + 1, len(bundles))):
                turns[inside] *= -(-number // step[counter])
    return sum(turns)
