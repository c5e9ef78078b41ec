"""Which bytes of a data file are one process's part of its rows, so that it reads no others.

A part ends where a row does. In a .csv a line break may stand inside quotes: there a row begins where the next rows have as
many fields as the header, every quote of them closed. Who takes a wrong place for the begin of a row leaves a quote open in
the part before, which is then no table: nothing is read wrongly.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ftjax.errors import InputError

ROWS = 3  # a row of a .csv begins where so many are whole
MOST = 2**20  # bytes that so many rows may have
TRIES = 1000  # lines at which a row might begin


@dataclasses.dataclass(frozen=True)
class Part:
    """From `start` / `of` of a file to `stop` / `of` of it."""

    start: int
    stop: int
    of: int

    def bounds(self, size: int) -> tuple[int, int]:
        """The same in whole bytes, or rows, of so many."""
        return size * self.start // self.of, size * self.stop // self.of


def part_of_lines(path: Path, part: Part, separator: str | None, *, blank: bool) -> bytes:
    """The rows of an uncompressed file that begin in the part, a line each.

    separator: of the fields of a .csv, whose header comes before every part of it. blank: rows are divided by blank lines.
    """
    with path.open("rb") as file:
        header, fields = (b"", 0) if separator is None else header_of(file, separator, path)

        def begins(offset: int) -> int:
            """Where the first row begins that does so at a byte or after it."""
            if offset <= len(header):
                return len(header)
            file.seek(offset - 1)
            file.readline()  # the rest of a line, if only its end
            while blank and file.readline().strip():
                pass
            if separator is not None and not any(whole_rows(file, separator, fields) for _ in range(TRIES)):
                file.seek(0, os.SEEK_END)
            return file.tell()

        start, stop = map(begins, part.bounds(path.stat().st_size))
        file.seek(start)
        return header + file.read(stop - start)


def header_of(file: IO[bytes], separator: str, path: Path) -> tuple[bytes, int]:
    """The bytes up to the end of the first row that is not blank, and how many fields that has."""
    read: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in file:
            read.append(line)
            yield line.decode("utf-8-sig", "replace")

    try:
        header = next((row for row in csv.reader(lines(), delimiter=separator, strict=True) if row), [])
    except csv.Error as error:
        raise InputError(f"{path}: its header is malformed ({error}).") from None
    return b"".join(read), len(header)


def whole_rows(file: IO[bytes], separator: str, fields: int) -> bool:
    """Whether whole rows of so many fields begin here, or the file ends here; if not, the file is put to the next line."""
    here, quotes = file.tell(), 0

    def lines() -> Iterator[str]:
        nonlocal quotes
        while (line := file.readline()) and file.tell() - here < MOST:
            quotes += line.count(b'"')
            yield line.decode("utf-8", "replace")

    try:
        rows = itertools.islice((row for row in csv.reader(lines(), delimiter=separator, strict=True) if row), ROWS)
        found = all(len(row) == fields and quotes % 2 == 0 for row in rows)
    except csv.Error:
        found = False
    file.seek(here)
    if not found:
        file.readline()
    return found
