"""The parts of a file that several processes read are, one after the other, the rows that one process reads."""

import csv
import gzip
import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.data.files import read_dataset, read_file
from ftjax.data.parts import Part, part_of_lines
from ftjax.data.tables import load_table, load_tables
from ftjax.errors import InputError

BREAK = "very\n"
TEXTS = [f'a "film", {BREAK * (number % 5)} good; «{number}»' for number in range(97)]
LABELS = [("good", "bad", "")[number % 3] for number in range(97)]


def cells(table):
    return [list(table.cells(name)) for name in table.names]


def in_parts(path, of, load=load_table):
    """The columns of all parts, one after the other."""
    tables = [load(path, Part(i, i + 1, of)) for i in range(of)]
    assert all(table.names == tables[0].names for table in tables)
    return [[value for part in column for value in part] for column in zip(*map(cells, tables), strict=True)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same rows in every format."""
    directory = tmp_path_factory.mktemp("files")
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        with (directory / f"a{suffix}").open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerow(["the\ntext", "label"])
            writer.writerows(zip(TEXTS, LABELS, strict=True))
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    (directory / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), encoding="utf-8")
    (directory / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (directory / "a.txt").write_text("\n".join(text.replace("\n", " ") for text in TEXTS), encoding="utf-8-sig")
    words = ("".join(f"{word}\tO\n" for word in text.split()) + " \n" * (1 + number % 2) for number, text in enumerate(TEXTS))
    (directory / "a.conll").write_text("\n" + "".join(words), encoding="utf-8")
    (directory / "a.csv.gz").write_bytes(gzip.compress((directory / "a.csv").read_bytes()))
    datasets.Dataset.from_list(rows).to_parquet(directory / "a.parquet", batch_size=10)
    return directory


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.txt", "a.conll", "a.csv.gz", "a.parquet"])
@pytest.mark.parametrize("of", [1, 2, 3, 8, 20])
def test_parts_are_the_whole(files, name, of):
    assert in_parts(files / name, of) == cells(load_table(files / name))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.conll"])
def test_a_part_reads_about_its_share(files, name):
    size = (files / name).stat().st_size
    separator = "," if name == "a.csv" else None
    read = [len(part_of_lines(files / name, Part(i, i + 1, 4), separator, blank=name == "a.conll")) for i in range(4)]
    assert max(read) < size / 4 + 150  # a row, and a header


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(*[st.text(st.sampled_from('a",\n\r é;'), max_size=12)] * 2), min_size=1, max_size=30),
    of=st.integers(1, 6),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_csv_is_never_read_wrongly(tmp_path_factory, rows, of, end):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerows([("text", "label"), *rows])
    try:
        found = in_parts(path, of)
    except InputError:  # a break inside quotes was taken for the end of a row: then the file is read whole
        return
    assert found == cells(load_table(path))


def test_quotes_that_are_none_in_a_csv_are_no_harm(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f'6" by {n}",good\n' if n % 3 else f'"a, {n}\nb",bad\n' for n in range(60)))
    assert in_parts(path, 3) == cells(load_table(path))


@pytest.mark.parametrize(
    "text", ['"text,label\na,b\n', "", "\n\n", 'te"xt,label\na,b\nc,d\n', '"text"x,label\na,b\nc,d\n', "\x00,\u2028\na,b\n"]
)
def test_what_is_malformed_is_a_mistake_in_parts_too(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    try:
        found = in_parts(path, 2)
    except InputError:
        return
    assert found == cells(load_table(path))


def test_of_several_files_each_part_reads_some(files):
    paths = [files / name for name in ("a.jsonl", "a.parquet", "a.jsonl")]
    whole = load_tables(paths)
    assert whole.rows == 3 * 97
    for of in (2, 5):
        assert in_parts(paths, of, load_tables) == cells(whole)


def test_rows_know_that_they_are_a_part(files):
    rows = read_file(files / "a.jsonl", part=Part(1, 2, 3))
    assert rows.part and 20 < len(rows.texts) < 45 and rows.texts[0] in TEXTS
    assert not read_file(files / "a.jsonl").part
    with pytest.raises(InputError):
        read_file(files / "a.jsonl", part=Part(0, 1, 1_000_000))


def test_a_data_set_is_read_in_parts(tmp_path):
    saved = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})
    saved.save_to_disk(tmp_path / "saved")
    found = [read_dataset(str(tmp_path / "saved"), split="train", part=Part(i, i + 1, 3)) for i in range(3)]
    assert [text for rows in found for text in rows.texts] == TEXTS
