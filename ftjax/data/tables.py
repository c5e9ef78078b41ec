"""Data files -> tables of columns, to the letter: nothing is guessed to be a number, a date or a missing value.

So the parsers are those that do not guess and know the line they are at. In messages lines are those of the file and
rows those of the data, without the header; both count from 1.
"""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from ftjax.data.parts import Part, part_of_lines
from ftjax.errors import InputError, did_you_mean

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*SEPARATORS, *JSON, ".txt", ".parquet", ".conll")
OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns before they are chosen: names, the cells of one, how many rows, and the classes that columns declare.

    plain: lines of text, which have no column that could be named.
    """

    names: list[str]
    cells: Callable[[str], Iterable[Any]]
    rows: int
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    plain: bool = False

    def within(self, part: Part | None) -> Table:
        """The rows of a part, or all."""
        if part is None:
            return self
        start, stop = part.bounds(self.rows)
        return dataclasses.replace(self, cells=lambda name: islice(self.cells(name), start, stop), rows=stop - start)


def load_tables(paths: Sequence[Path], part: Part | None = None) -> Table:
    """Files with the same columns as one table, or a part of that, for which only parts of files are read."""
    parts: Sequence[Part | None] = [None] * len(paths)
    if part is not None:
        ends = [0, *accumulate(path.stat().st_size for path in paths)]
        start, stop = part.bounds(ends[-1])
        spans = [(max(start, a), min(stop, b), a, b) for a, b in pairwise(ends)]
        chosen = [(path, Part(i - a, j - a, b - a)) for path, (i, j, a, b) in zip(paths, spans, strict=True) if i < j]
        paths, parts = [path for path, _ in chosen], [each for _, each in chosen]
    tables = [load_table(path, each) for path, each in zip(paths, parts, strict=True)]
    for path, table in zip(paths, tables, strict=True):
        if set(table.names) != set(tables[0].names):
            here, first = listed(table.names), listed(tables[0].names)
            raise InputError(f"{shown(path)}: its columns are {here}, but those of {shown(paths[0])} are {first}.")
    cells = [table.cells for table in tables]
    rows = sum(table.rows for table in tables)
    return Table(tables[0].names, lambda name: chain.from_iterable(c(name) for c in cells), rows, tables[0].class_names)


def load_table(path: Path, part: Part | None = None) -> Table:
    """All columns of a file. InputError for one that is missing, of no known kind, malformed or not UTF-8.

    part: read only the rows of this part. Errors then count lines and rows from its begin.
    """
    try:
        try:
            return _table(path, part)
        except UnicodeDecodeError:
            raise InputError(not_utf8(path)) from None
    except MemoryError:
        raise InputError(f"{shown(path)}: is larger than the memory there is.") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:  # all but the first: a damaged compressed file
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{shown(path)}: cannot be read ({reason}).") from None


def _table(path: Path, part: Part | None) -> Table:
    kind = file_kind(path)
    if path.stat().st_size == 0:
        raise InputError(f"{shown(path)}: the file is empty.")
    if kind == ".parquet":
        return parquet_table(path, part)
    # csv must see the line breaks inside quotes as they are; elsewhere any of \n, \r\n and \r ends a line.
    newline = "" if kind in SEPARATORS else None
    if part is not None and kind != ".json" and path.suffix.lower() not in OPENERS:
        content = part_of_lines(path, part, SEPARATORS.get(kind), blank=kind == ".conll")
        mark = "-sig" if part.start == 0 or kind in SEPARATORS else ""  # stands at the begin of a file alone
        return _text_table(io.StringIO(content.decode(f"utf-8{mark}"), newline=newline), kind, path)
    with opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
        return _text_table(file, kind, path).within(part)


def _text_table(file: IO[str], kind: str, path: Path) -> Table:
    if kind in SEPARATORS:
        return csv_table(file, path, SEPARATORS[kind])
    if kind in JSON:
        return json_table(file.read(), path)
    texts = [line.removesuffix("\n") for line in file]
    if kind == ".conll":
        return conll_table(texts, path)
    return Table(["text"], {"text": texts}.__getitem__, len(texts), plain=True)


def file_kind(path: Path) -> str:
    """The suffix that says how to read a file. InputError where there is no such file, or none of a known kind."""
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(f"{shown(path)}: no such file.{near}")
    if not path.is_file():
        raise InputError(f"{shown(path)}: not a file; for a directory use --dataset.")
    if not known(path):
        kinds = f"known are {', '.join(SUFFIXES)}; all but .parquet also with {', '.join(OPENERS)}"
        raise InputError(f"{shown(path)}: unknown kind of file {path.suffix or '(no suffix)'!r}; {kinds}.")
    return suffix(path)


def suffix(path: Path) -> str:
    """The suffix in lower case, without that of a compression."""
    return Path(path.stem if path.suffix.lower() in OPENERS else path.name).suffix.lower()


def known(path: Path) -> bool:
    """Whether the file is of a kind that we read; .parquet is compressed within."""
    return suffix(path) in SUFFIXES and not (suffix(path) == ".parquet" != path.suffix.lower())


def opened(path: Path, mode: str, **options: Any) -> IO[Any]:
    """The file, unpacked if it is compressed; InputError once that becomes more than the memory could take."""
    if path.suffix.lower() not in OPENERS:
        return open(path, mode, **options)
    unpacked = io.BufferedReader(_Limited(OPENERS[path.suffix.lower()](path, "rb"), path), 2**16)
    return io.TextIOWrapper(unpacked, **options) if "t" in mode else unpacked


def whole_only(path: Path, part: Part | None) -> None:
    """InputError where a part is asked for of a file of which lines are no rows."""
    if part is not None:
        raise InputError(f"{shown(path)}: its lines are no rows; it is read whole.")


def most_bytes() -> int:
    """What a table may take: a quarter of the memory, since rows, tokens and more come to several times as much."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def check_size(size: int, path: Path) -> None:
    """InputError for more bytes than the memory could take: a small file can unpack to any number."""
    if size > most_bytes():
        raise InputError(f"{shown(path)}: unpacks to more than {most_bytes() / 1e9:.1f} GB, a quarter of the memory; split it.")


class _Limited(io.RawIOBase):
    """A stream that counts what is read of it."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path, self._read = stream, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(len(buffer))
        self._read += len(part)
        check_size(self._read, self._path)
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._stream.close()
        super().close()


def not_utf8(path: Path) -> str:
    """The message for a file that is not UTF-8: the line and the byte, found by reading it again."""
    offset = 0
    with opened(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start
                return f"{shown(path)}: line {number} is not UTF-8 (byte {at}, counted from 0); save it as UTF-8."
            offset += len(line)
    return f"{shown(path)}: changed while it was read; try again."


def csv_table(file: Iterable[str], path: Path, separator: str) -> Table:
    """The columns that the header names; blank lines are skipped."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KB
    reader = csv.reader(file, delimiter=separator, strict=True)
    records: list[list[str]] = []
    line = 1  # where the record starts: one may span several lines
    try:
        for record in reader:
            if record and records and len(record) != len(records[0]):
                if len(records[0]) == 1 and len(cells := re.split("[;|\t]", records[0][0])) > 1:
                    other = records[0][0][len(cells[0])]
                    raise InputError(
                        f"{shown(path)}: its header seems to be separated by {other!r}; save it with {separator!r}."
                    )
                raise InputError(
                    f"{shown(path)}: line {line} has {len(record)} fields, the header has {len(records[0])}; "
                    "put quotes around texts that hold separators or line breaks."
                )
            records += [record] if record else []
            line = reader.line_num + 1
    except csv.Error as error:
        fix = "close every quote, and double those inside a quoted text"
        raise InputError(f"{shown(path)}: line {line}: {one_line(error)}; {fix}.") from None
    header, records = (records[0], records[1:]) if records else ([], [])
    return Table(header, lambda name: map(itemgetter(header.index(name)), records), len(records))


def json_table(content: str, path: Path) -> Table:
    """JSON Lines, or one JSON list of objects; columns are the keys of all rows, and a row may lack some."""
    if content.lstrip().startswith("["):
        rows = [(f"row {number}", row) for number, row in enumerate(parsed(content, path, line=1), start=1)]
    else:
        lines = enumerate(content.split("\n"), start=1)
        rows = [(f"line {number}", parsed(line, path, number)) for number, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f'{shown(path)}: {where} is {kind_of(row)}, not an object such as {{"text": "..."}}.')
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    return Table(names, lambda name: [row.get(name) for _, row in rows], len(rows))


def parsed(content: str, path: Path, line: int) -> Any:
    """A JSON value that starts at a line of the file."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = one_line(getattr(error, "msg", error))
        at = line + getattr(error, "lineno", 1) - 1
        raise InputError(f"{shown(path)}: line {at} is not valid JSON ({reason}).") from None


def conll_table(lines: Iterable[str], path: Path) -> Table:
    """A word a line with its tag, the last field, and empty lines between sentences: the columns `tokens` and `tags`.

    Fields are divided by a TAB, or by spaces where a line has none.
    """
    sentences: list[list[list[str]]] = [[]]
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == "-DOCSTART-":
            sentences.append([])
        elif len(fields) < 2:
            raise InputError(f"{shown(path)}: line {number} is {line!r}; a line has a word, a TAB and its tag.")
        else:
            sentences[-1].append([fields[0], fields[-1].strip()])
    whole = [sentence for sentence in sentences if sentence]
    cells = {name: [[fields[i] for fields in words] for words in whole] for i, name in enumerate(("tokens", "tags"))}
    return Table(list(cells), cells.__getitem__, len(whole))


def parquet_table(path: Path, part: Part | None = None) -> Table:
    """The columns of a parquet file, with the class names that `datasets` stores in it. Of a part only its groups are read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            # what a column says of its bytes may be that of a dictionary alone, so every cell counts too
            check_size(sum(max(g.total_byte_size, 8 * g.num_rows * g.num_columns) for g in groups), path)
            start, stop = (part or Part(0, 1, 1)).bounds(file.metadata.num_rows)
            ends = [0, *accumulate(group.num_rows for group in groups)]
            chosen = [i for i, (a, b) in enumerate(pairwise(ends)) if a < stop and start < b]
            table = file.read_row_groups(chosen).slice(start - ends[chosen[0]] if chosen else 0, stop - start)
        table.validate(full=True)
        classes = declared_classes((table.schema.metadata or {}).get(b"huggingface"))
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)}: not a readable parquet file ({one_line(error)}).") from None
    return Table(table.column_names, lambda name: table.column(name).to_pylist(), len(table), classes)


def declared_classes(metadata: bytes | None) -> dict[str, tuple[str, ...]]:
    """The class names in what `datasets` writes into a parquet file, {"info": {"features": {COLUMN: {"names": [...]}}}}."""
    try:
        features = dict(json.loads(metadata or b'{"info": {"features": {}}}')["info"]["features"])
    except (KeyError, TypeError):
        return {}
    single = {name: kind.get("feature", kind) for name, kind in features.items() if isinstance(kind, dict)}  # of a list
    classes = {n: kind for n, kind in single.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"}
    return {n: tuple(map(str, kind["names"])) for n, kind in classes.items() if isinstance(kind.get("names"), list)}


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The class names of the columns that declare them, for each cell or for the items of a list."""
    from datasets import ClassLabel

    declared = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(feature.names) for name, feature in declared.items() if isinstance(feature, ClassLabel)}


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def one_line(value: object) -> str:
    """An error's own words on one line, not too long."""
    return " ".join(str(value).split()).rstrip(".")[:300] or type(value).__name__


def shown(name: object) -> str:
    """A name as it is, or quoted where it holds line breaks and the like."""
    return str(name) if str(name).isprintable() else repr(str(name))


def listed(names: Iterable[str]) -> str:
    """Names for a message; those past the twentieth are counted."""
    every = [shown(name) or "''" for name in names]
    return ", ".join(every[:20]) + (f" and {len(every) - 20} more" if len(every) > 20 else "")
