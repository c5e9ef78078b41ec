"""Files and Hugging Face data sets -> rows: texts, second texts and label names."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftjax.data.parts import Part
from ftjax.data.tables import (
    Table,
    class_names,
    kind_of,
    known,
    listed,
    load_table,
    load_tables,
    one_line,
    shown,
)
from ftjax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

LABEL = "label"


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows as read: texts[i], pairs[i] and labels[i] belong together.

    texts, labels: what the task's `Reader` makes of a cell, strings for most. pairs: the second texts, or None without a
    pair column. labels: None for a row that has none; None as a whole without a label column. source: the file or data
    set, for messages. label_names: the data set's own order. part: whether they are one process's part, and others have the
    rest.
    """

    texts: list[Any]
    pairs: list[str] | None
    labels: list[Any] | None
    source: str
    label_names: tuple[str, ...] | None = None
    part: bool = False


def text(value: Any, source: str, row: int) -> str:
    """A cell as text: null is empty, a number its digits; InputError for a list, an object or half a character."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise InputError(f"{source}: the text of row {row} is {kind_of(value)}, not a string.")
    try:
        return str(value).encode().decode()
    except UnicodeEncodeError as error:  # JSON can spell one half of a surrogate pair, which no tokenizer takes
        raise InputError(f"{source}: the text of row {row} is not valid Unicode at character {error.start}.") from None


def label(value: Any, classes: tuple[str, ...] | None, source: str, row: int) -> str | None:
    """A cell as a class name: null and empty are none, numbers of declared classes their names, others their digits."""
    if value is None or value == "" or (classes and value == -1):  # -1 is how `datasets` writes an unlabelled row
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | str):
        return value if isinstance(value, str) else str(value).lower()
    if not isinstance(value, int):
        found = value if isinstance(value, float) else kind_of(value)
        raise InputError(f"{source}: the label of row {row} is {found}; labels are names or whole numbers.")
    if classes and not 0 <= value < len(classes):
        raise InputError(f"{source}: the label of row {row} is {value}, but there are {len(classes)} classes.")
    return classes[value] if classes else str(value)


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a task reads: the columns' usual names, and what makes a table of a file, a text of a cell, a label of a cell.

    label_column: the one column that a file need not have, unless labels are required.
    text: (cell, source, row) -> text. label: (cell, classes that the column declares, source, row) -> label, None where
    there is none. Both raise InputError naming source and row.
    """

    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = LABEL
    table: Callable[[Path, Part | None], Table] = load_table
    text: Callable[[Any, str, int], Any] = text
    label: Callable[[Any, tuple[str, ...] | None, str, int], Any] = label


READER = Reader()


def read_file(
    path: str | Path,
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str | None = LABEL,
    require_labels: bool = False,
    reader: Reader = READER,
    part: Part | None = None,
) -> Rows:
    """Read .csv, .tsv, .jsonl, .ndjson, .json, .parquet (columns by name) or .txt (a text a line, no columns).

    All but .parquet may be compressed, as in .csv.gz. label_column None reads no labels. Raises InputError, naming the
    file, for one that is missing, empty, malformed or not UTF-8, and for columns that are not there; with
    require_labels also for rows without a label. part: of its rows, see `ftjax.data.parts`; errors then count from its begin.
    """
    path = Path(path)
    table = reader.table(path, part)
    if table.plain:  # the columns asked for are those of the other files of a run
        rows = checked(Rows(list(table.cells("text")), None, None, shown(path)), require_labels)
    else:
        rows = select(table, shown(path), text_column, text_pair_column, label_column, require_labels, reader)
    return dataclasses.replace(rows, part=part is not None)


def read_dataset(
    name: str,
    *,
    split: str,
    config: str | None = None,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str | None = LABEL,
    require_labels: bool = False,
    reader: Reader = READER,
    part: Part | None = None,
) -> Rows:
    """Read one split of a data set: a directory written by `save_to_disk`, one of data files, or a hub id.

    Raises InputError for a data set that cannot be had (code of a data set is never run), an unknown split and, as
    `read_file`, for columns and labels.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said once, by the InputError
    if Path(name).is_file():
        raise InputError(f"--dataset {shown(name)}: a file, not a directory; use --train-file or --eval-file.")
    try:
        splits = find_splits(name, config)
    except Exception as error:  # the library has no common base for what goes wrong on its many ways
        raise InputError(f"--dataset {shown(name)}: cannot be loaded ({one_line(error)}).{mend(error)}") from None
    if split not in splits:
        near = did_you_mean(split, splits)
        raise InputError(f"--dataset {shown(name)}: no split {split!r}; its splits are: {listed(splits)}.{near}")
    source = f"{shown(name)} ({split})"
    table = splits[split](part)
    rows = select(table, source, text_column, text_pair_column, label_column, require_labels, reader)
    return dataclasses.replace(rows, part=part is not None)


def find_splits(name: str, config: str | None) -> dict[str, Callable[[Part | None], Table]]:
    """A data set's splits by name, each with a function that reads it, or a part of it."""
    import datasets

    directory = Path(name)
    if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
        saved = datasets.load_from_disk(name)
        found = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    elif directory.is_dir():
        # A cache of its own that is gone at once: a file that changes is never read stale, and runs do not collide.
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(name, config, cache_dir=cache)
            found_files = (builder.config.data_files or {}).items()
            files = {str(split): [Path(file) for file in paths] for split, paths in found_files}
            # The library says which file is of which split, but would guess types and turn the text NA into null.
            every = [path for paths in files.values() for path in paths]
            if every and builder.info.features is None and all(map(known, every)):
                return {split: partial(load_tables, paths) for split, paths in files.items()}
            found = datasets.load_dataset(name, config, cache_dir=cache, keep_in_memory=True)
    else:
        found = datasets.load_dataset(name, config)  # in the user's cache, which knows versions and locks
    return {str(split): partial(dataset_table, data) for split, data in found.items()}


def dataset_table(data: Dataset, part: Part | None = None) -> Table:
    """The columns of a data set, or of a part of it, as Python values whatever format it was saved with."""
    plain = data.with_format(None)
    if part is not None:
        plain = plain.select(range(*part.bounds(len(data))))
    return Table(data.column_names, lambda name: plain[name][:], len(plain), class_names(data.features))


def mend(error: Exception) -> str:
    """What the user can do about a data set that cannot be loaded; empty where the error says it."""
    if isinstance(error, ConnectionError):
        return " Check the connection and HF_ENDPOINT; offline only data sets that were fetched before can be loaded."
    if "scripts are no longer supported" in str(error):
        return " Code of a data set is never run; use one of data files, such as csv, jsonl or parquet."
    return ""


def select(
    table: Table,
    source: str,
    text_column: str,
    text_pair_column: str | None,
    label_column: str | None,
    require_labels: bool,
    reader: Reader,
) -> Rows:
    """The columns asked for, as texts and labels."""
    if not table.rows:
        raise InputError(f"{source}: holds no rows.")
    if repeated := next((name for name in table.names if table.names.count(name) > 1), None):
        raise InputError(f"{source}: the column {repeated!r} occurs more than once; rename one of them.")
    must_have_labels = require_labels or label_column != reader.label_column
    wanted = {
        "--text-column": text_column,
        "--text-pair-column": text_pair_column,
        "--label-column": label_column if must_have_labels else None,
    }
    if any(name is not None and name not in table.names for name in wanted.values()):
        wanted["--label-column"] = label_column  # said at once, although it may not be needed
        missing = {flag: name for flag, name in wanted.items() if name is not None and name not in table.names}
        near = "".join(did_you_mean(name, table.names) for name in missing.values())
        what = f"no column{'s' * (len(missing) > 1)} {' and '.join(map(repr, missing.values()))}"
        name_it = f"Name {'them' if len(missing) > 1 else 'it'} with {' and '.join(missing)}."
        raise InputError(f"{source}: {what}; its columns are: {listed(table.names)}.{near} {name_it}")

    def cells(column: str, read: Callable[..., Any], *more: Any) -> list[Any]:
        return [read(value, *more, source, row) for row, value in enumerate(table.cells(column), start=1)]

    classes = table.class_names.get(label_column or "")
    labels = cells(label_column, reader.label, classes) if label_column in table.names else None
    pairs = None if text_pair_column is None else cells(text_pair_column, text)
    return checked(Rows(cells(text_column, reader.text), pairs, labels, source, classes), require_labels)


def checked(rows: Rows, require_labels: bool) -> Rows:
    """The rows again; InputError where there are none, or labels are required and missing."""
    if not rows.texts:
        raise InputError(f"{rows.source}: holds no rows.")
    labels = rows.labels or [None] * len(rows.texts)
    if require_labels and (missing := [row for row, name in enumerate(labels, start=1) if name is None]):
        raise InputError(
            f"{rows.source}: {len(missing)} of {len(labels)} rows have no label, the first is row {missing[0]}; "
            "give them one, or train with --method self-supervised."
        )
    return rows
