"""Files and Hugging Face data sets -> rows: texts, second texts and label names, read through `datasets`.

Text is kept to the letter: nothing is guessed to be a number, a date or a missing value.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftjax.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES, JSON_LIST, PARQUET, TEXT = (".jsonl", ".ndjson"), (".json",), (".parquet",), (".txt",)
SUFFIXES = (*SEPARATORS, *JSON_LINES, *JSON_LIST, *PARQUET, *TEXT)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows as read: texts[i], pairs[i] and labels[i] belong together.

    pairs: the second texts, or None without a pair column. labels: names, None for a row that has none; None as a
    whole without a label column. source: the file or data set, for messages. label_names: the data set's own order.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[str | None] | None
    source: str
    label_names: tuple[str, ...] | None = None


def read_file(
    path: str | Path,
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    require_labels: bool = False,
) -> Rows:
    """Read .csv, .tsv, .jsonl, .ndjson, .json, .parquet (columns by name) or .txt (a text a line, no labels).

    Raises InputError, naming the file, for one that is missing, empty, malformed or not UTF-8, and for columns that
    are not there; with require_labels also for rows without a label.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(f"{path}: no such file.{near}")
    if not path.is_file():
        raise InputError(f"{path}: not a file; for a directory use --dataset.")
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file {suffix or '(no suffix)'!r}; known are {', '.join(SUFFIXES)}.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty.")
        if suffix not in PARQUET:
            check_utf8(path)
        if suffix in TEXT:
            texts = path.read_text(encoding="utf-8-sig").splitlines()
            return checked(Rows(texts, None, None, str(path)), require_labels)
        data = load_columns(path, suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    return select(data, str(path), text_column, text_pair_column, label_column, require_labels, numbering=suffix)


def read_dataset(
    name: str,
    *,
    split: str,
    config: str | None = None,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    require_labels: bool = False,
) -> Rows:
    """Read one split of a data set: a directory written by `save_to_disk`, one of data files, or a hub id.

    Raises InputError for a data set that cannot be had (code of a data set is never run), an unknown split and, as
    `read_file`, for columns and labels.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    directory = Path(name)
    try:
        if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
            loaded = datasets.load_from_disk(str(directory))
            found = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        else:
            found = datasets.load_dataset(name, config)
    except Exception as error:  # the library has no common base for what goes wrong on its many ways
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"--dataset {name}: cannot be loaded ({reason}).") from None
    if split not in found:
        near = did_you_mean(split, found)
        raise InputError(f"--dataset {name}: no split {split!r}; its splits are: {', '.join(found)}.{near}")
    source = f"{name} ({split})"
    return select(found[split], source, text_column, text_pair_column, label_column, require_labels, numbering="")


def check_utf8(path: Path) -> None:
    """InputError with the line and the byte where a file is not UTF-8, or holds a NUL character."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start
                raise InputError(f"{path}: line {number} is not UTF-8 (byte {at}); save the file as UTF-8.") from None
            if b"\0" in line:
                raise InputError(f"{path}: line {number} holds a NUL byte; save the file as UTF-8 text.")
            offset += len(line)


def load_columns(path: Path, suffix: str) -> Dataset:
    """The whole file as a data set in memory. InputError where it is malformed."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    kind: str
    options: dict[str, Any]
    if suffix in SEPARATORS:
        header = check_csv(path, SEPARATORS[suffix])
        strings = datasets.Features({name: datasets.Value("string") for name in header})
        kind = "csv"
        options = {"sep": SEPARATORS[suffix], "features": strings, "keep_default_na": False, "encoding": "utf-8-sig"}
    elif suffix in PARQUET:
        kind, options = "parquet", {}
    else:
        kind, options = "json", {}
    # A cache of its own that is gone at once: a file that changes is never read stale, and runs do not collide.
    with tempfile.TemporaryDirectory() as cache:
        try:
            return datasets.load_dataset(
                kind, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:
            cause = error.__cause__ or error
            reason = " ".join(str(cause).split())[:300] or type(cause).__name__
            raise InputError(f"{path}: malformed {suffix[1:]} ({reason}).") from None


def check_csv(path: Path, separator: str) -> list[str]:
    """The header's column names. InputError for names that repeat and for a line with too many or too few fields."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        header: list[str] = []
        try:
            for row in reader:
                if not header:
                    header = row
                elif row and len(row) != len(header):
                    raise InputError(
                        f"{path}: line {reader.line_num} has {len(row)} fields, the header has {len(header)}; "
                        "put quotes around texts that hold separators or line breaks."
                    )
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: {error}.") from None
    if repeated := {name for name in header if header.count(name) > 1}:
        raise InputError(f"{path}: the column {sorted(repeated)[0]!r} occurs more than once in the header.")
    return header


def select(
    data: Dataset,
    source: str,
    text_column: str,
    text_pair_column: str | None,
    label_column: str,
    require_labels: bool,
    numbering: str,
) -> Rows:
    """The columns asked for, as text and label names."""
    from datasets import ClassLabel

    if not len(data):
        raise InputError(f"{source}: the file holds no rows.")
    columns = data.column_names
    for name, its_flag in ((text_column, "--text-column"), (text_pair_column, "--text-pair-column")):
        if name is not None and name not in columns:
            raise InputError(missing_column(source, name, columns, its_flag))
    has_labels = label_column in columns
    if not has_labels and (require_labels or label_column != "label"):
        raise InputError(missing_column(source, label_column, columns, "--label-column"))
    labels: list[str | None] | None = None
    names: tuple[str, ...] | None = None
    if has_labels:
        feature = data.features[label_column]
        if isinstance(feature, ClassLabel):
            names = tuple(feature.names)
            labels = [None if n is None or n < 0 else names[n] for n in data[label_column]]
        else:
            labels = [label_name(value, source, row) for row, value in enumerate(data[label_column], start=1)]
    rows = Rows(
        texts=[text(value, source, row) for row, value in enumerate(data[text_column], start=1)],
        pairs=text_pair_column and [text(value, source, row) for row, value in enumerate(data[text_pair_column], start=1)],
        labels=labels,
        source=source,
        label_names=names,
    )
    return checked(rows, require_labels)


def checked(rows: Rows, require_labels: bool) -> Rows:
    """The rows again; InputError where there are none, or labels are required and missing."""
    if not rows.texts:
        raise InputError(f"{rows.source}: the file holds no rows.")
    if not require_labels:
        return rows
    labels = rows.labels or [None] * len(rows.texts)
    if missing := [row for row, name in enumerate(labels, start=1) if name is None]:
        raise InputError(
            f"{rows.source}: {len(missing)} of {len(labels)} rows have no label, the first is row {missing[0]}; "
            "give them one, or train with --method self-supervised."
        )
    return rows


def missing_column(source: str, name: str, columns: Iterable[str], its_flag: str) -> str:
    """The message for a column that is not there."""
    near = did_you_mean(name, columns)
    return f"{source}: no column {name!r}; its columns are: {', '.join(columns)}.{near} Name it with {its_flag}."


def text(value: Any, source: str, row: int) -> str:
    """A cell as text: null is empty, a number its digits; InputError for a list or an object."""
    if value is None:
        return ""
    if isinstance(value, list | dict | bytes):
        raise InputError(f"{source}: the text of row {row} is a {type(value).__name__}, not a string.")
    return str(value)


def label_name(value: Any, source: str, row: int) -> str | None:
    """A cell as a class name: null and empty are no label, whole numbers their digits, booleans true and false."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():
            raise InputError(f"{source}: the label of row {row} is {value}; labels are names or whole numbers.")
        return str(int(value))
    if isinstance(value, int | str):
        return str(value)
    raise InputError(f"{source}: the label of row {row} is a {type(value).__name__}; labels are names or whole numbers.")
