import bz2
import csv
import gzip
import json
import lzma

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ftjax.data.files import Rows, read_dataset, read_file
from ftjax.errors import InputError

TEXTS = ["NA", "null", "None", "123", "001", "", "1.0", "true", "2020-01-01", 'a "quote", a comma', " two\nlines ", "naïve 😀"]
LABELS = [str(i % 3) for i in range(len(TEXTS))]
ANY_TEXT = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8)
CSV, JSONL = "text,label\nhello,1\n", '{"text": "hello", "label": 1}\n'


def put(directory, name, content):
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def put_csv(path, texts, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["text", "label"], *([t, "a"] for t in texts)])
    return path


def put_rows(path, texts, labels):
    rows = [{"text": t, "label": n} for t, n in zip(texts, labels, strict=True)]
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["text", "label"], delimiter="," if path.suffix == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
        case ".json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case _:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def message(call, *holds):
    """The message of the InputError that the call raises: one line that holds all of these."""
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert said.splitlines() == [said]
    for part in holds:
        assert str(part) in said
    return said


def refused(directory, name, content, *holds, **options):
    path = put(directory, name, content)
    return message(lambda: read_file(path, **options), path, *holds)


# What is read


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".JSONL"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = put_rows(tmp_path / f"rows{suffix}", TEXTS, LABELS)
    assert read_file(path) == Rows(TEXTS, None, LABELS, str(path))
    assert read_file(str(path), text_column="label", text_pair_column="text", label_column=None) == Rows(
        LABELS, TEXTS, None, str(path)
    )


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize(("kind", "content"), [(".csv", CSV), (".jsonl", JSONL), (".txt", "hello")])
def test_compressed_files(tmp_path, suffix, pack, kind, content):
    rows = read_file(put(tmp_path, f"rows{kind}{suffix}", pack(content.encode())))
    assert rows.texts == ["hello"]
    assert rows.labels == (None if kind == ".txt" else ["1"])


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("a\n\nb", ["a", "", "b"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\n", [""]),
        ("\ufeffa\n", ["a"]),
        ("one\u2028line\x0cand\x85more\n  b \n", ["one\u2028line\x0cand\x85more", "  b "]),
    ],
)
def test_txt_is_a_text_a_line(tmp_path, content, texts):
    path = put(tmp_path, "rows.txt", content)
    # the columns are those of another file of the run: a .txt file has none
    assert read_file(path, text_column="review", label_column="stars") == Rows(texts, None, None, str(path))


@settings(deadline=None)
@given(texts=ANY_TEXT)
def test_any_text_survives_csv(tmp_path_factory, texts):
    assert read_file(put_csv(tmp_path_factory.mktemp("c") / "rows.csv", texts)).texts == texts


@settings(deadline=None)
@given(texts=ANY_TEXT)
def test_any_text_survives_tsv(tmp_path_factory, texts):
    assert read_file(put_csv(tmp_path_factory.mktemp("c") / "rows.tsv", texts, "\t")).texts == texts


@settings(deadline=None)
@given(texts=ANY_TEXT, ascii_only=st.booleans())
def test_any_text_survives_jsonl(tmp_path_factory, texts, ascii_only):
    content = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in texts)
    assert read_file(put(tmp_path_factory.mktemp("j"), "rows.jsonl", content)).texts == texts


@settings(deadline=None)
@given(texts=ANY_TEXT)
def test_any_text_survives_json_and_parquet(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("p")
    for name in ("rows.json", "rows.parquet"):
        assert read_file(put_rows(directory / name, texts, texts)).texts == texts


def test_csv_pitfalls(tmp_path):
    assert read_file(put(tmp_path, "bom.csv", "\ufefftext,label\nhello,1\n")).texts == ["hello"]
    assert read_file(put(tmp_path, "crlf.csv", CSV.replace("\n", "\r\n"))).texts == ["hello"]
    assert read_file(put(tmp_path, "index.csv", ",text,label\n0,hello,1\n")).texts == ["hello"]  # as pandas writes it
    assert read_file(put(tmp_path, "blank.csv", "text,label\n\nhello,1\n\n")).texts == ["hello"]
    assert read_file(put(tmp_path, "one.csv", 'text\na\n""\nb\n')).texts == ["a", "", "b"]
    long = "x" * 300_000
    assert read_file(put(tmp_path, "long.csv", f"text,label\n{long},1\n")).texts == [long]


def test_json_cells(tmp_path):
    lines = ['{"text": 1}', '{"text": 1.5}', '{"text": null}', "", '{"other": 1}', '{"text": "x", "label": "late"}']
    rows = read_file(put(tmp_path, "rows.jsonl", "\n".join(lines)))
    assert rows.texts == ["1", "1.5", "", "", "x"]
    assert rows.labels == [None] * 4 + ["late"]
    assert read_file(put(tmp_path, "lines.json", JSONL * 2)).texts == ["hello"] * 2
    assert read_file(put(tmp_path, "bom.jsonl", "\ufeff" + JSONL)).texts == ["hello"]


def test_labels_become_names(tmp_path):
    cells = [0, "1", 2.0, True, False, " kept ", "", None, -1]
    path = put_rows(tmp_path / "rows.jsonl", ["x"] * len(cells), cells)
    assert read_file(path).labels == ["0", "1", "2", "true", "false", " kept ", None, None, "-1"]
    path = put_rows(tmp_path / "rows.parquet", ["x"] * 3, [1.0, None, 0.0])
    assert read_file(path).labels == ["1", None, "0"]
    assert read_file(put(tmp_path, "rows.csv", "text,label\na,1.0\nb,\nc,NA\n")).labels == ["1.0", None, "NA"]


def test_a_changed_file_is_read_anew(tmp_path):
    for word in ("one", "two"):
        assert read_file(put(tmp_path, "rows.csv", CSV.replace("hello", word))).texts == [word]


# What is refused


def test_paths_that_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path, "train.csv", CSV)
    message(lambda: read_file(tmp_path / "trian.csv"), tmp_path / "trian.csv", "no such file", "Did you mean 'train.csv'?")
    message(lambda: read_file(tmp_path / "nowhere" / "train.csv"), "no such file")
    message(lambda: read_file(tmp_path), tmp_path, "not a file", "--dataset")
    message(lambda: read_file(tmp_path / "a\nb.csv"), r"a\nb.csv")
    for name in ("rows.xlsx", "rows", "rows.gz", "rows.parquet.gz"):
        refused(tmp_path, name, CSV, "unknown kind of file", ".csv, .tsv, .jsonl, .ndjson, .json, .txt, .parquet")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ftjax.data.tables.opened", denied)
    message(lambda: read_file(tmp_path / "train.csv"), tmp_path / "train.csv", "cannot be read (Permission denied)")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "txt", "parquet"])
def test_files_without_rows(tmp_path, suffix):
    refused(tmp_path, f"rows.{suffix}", b"", "the file is empty")


EMPTY_GZIP = gzip.compress(b"", mtime=0)  # without the time: it is part of a test's name


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "text,label\n"), ("b.csv", "\n\n"), ("c.json", "[]"), ("d.jsonl", "\n"), ("e.txt.gz", EMPTY_GZIP)],
)
def test_files_with_nothing_but_a_header(tmp_path, name, content):
    refused(tmp_path, name, content, "holds no rows")
    refused(tmp_path, name, content, "holds no rows", text_column="review", require_labels=True)


@pytest.mark.parametrize(("name", "first"), [("a.csv", CSV), ("b.jsonl", JSONL), ("c.txt", "hello\n")])
def test_not_utf8(tmp_path, name, first):
    refused(
        tmp_path, name, first.encode() + b"caf\xe9 1\n", f"line {first.count(chr(10)) + 1} ", f"byte {len(first) + 3}", "UTF-8"
    )
    refused(tmp_path, name + ".gz", gzip.compress(first.encode() + b"\xff"), f"byte {len(first)}", "save it as UTF-8")
    refused(tmp_path, name, first.encode("utf-16"), "line 1 ", "byte 0")
    far = first.encode() * 20_000  # beyond the buffers of the decoder
    refused(tmp_path, name, far + b"\xff", f"line {20_000 * first.count(chr(10)) + 1} ", f"byte {len(far)}")


def test_malformed_csv(tmp_path):
    refused(tmp_path, "a.csv", "text;label\na, b;1\n", "its header seems to be separated by ';'; save it with ','")
    refused(tmp_path, "many.csv", 'text,label\n"two\nlines",1\na,b,2\n', "line 4 has 3 fields, the header has 2", "quotes")
    refused(tmp_path, "few.tsv", "text\tlabel\na\n", "line 2 has 1 fields, the header has 2")
    refused(tmp_path, "open.csv", 'text,label\na,1\n"b,1\nc,2\n', "line 3", "quote")
    refused(tmp_path, "stray.csv", 'text,label\n"a" b,1\n', "line 2", "quote")
    refused(tmp_path, "twice.csv", "text,label,text\na,1,b\n", "'text' occurs more than once")


def test_malformed_json(tmp_path):
    refused(tmp_path, "bad.jsonl", JSONL + "\n{oops}\n", "line 3 is not valid JSON")
    refused(tmp_path, "cut.jsonl", JSONL + '{"text": "a', "line 2 is not valid JSON")
    refused(tmp_path, "list.jsonl", JSONL + "[1]\n", "line 2 is a list, not an object")
    refused(tmp_path, "bad.json", '[\n{"text": "a"},\n{"text": }\n]', "line 3 is not valid JSON")
    refused(tmp_path, "strings.json", '[{"text": "a"}, "b"]', "row 2 is a string, not an object")
    refused(tmp_path, "deep.jsonl", "[" * 100_000, "line 1 is not valid JSON")
    refused(tmp_path, "long.jsonl", '{"text": ' + "1" * 5_000 + "}", "line 1 is not valid JSON")


def test_malformed_cells(tmp_path):
    good = json.dumps({"text": "a", "label": 1})
    for cell, words in {"[1]": "a list", '{"a": 1}': "an object"}.items():
        refused(tmp_path, "t.jsonl", f'{good}\n{{"text": {cell}}}\n', "the text of row 2", words)
        refused(tmp_path, "l.jsonl", f'{good}\n{{"text": "b", "label": {cell}}}\n', "the label of row 2", words)
    refused(tmp_path, "f.jsonl", f'{good}\n{{"text": "b", "label": 0.5}}\n', "the label of row 2 is 0.5", "whole numbers")
    refused(tmp_path, "n.jsonl", '{"text": "b", "label": NaN}\n', "the label of row 1 is nan")
    refused(tmp_path, "s.jsonl", '{"text": "ab\\ud83d"}\n', "the text of row 1 is not valid Unicode at character 2")


def test_damaged_binary_files(tmp_path):
    whole = put_rows(tmp_path / "whole.parquet", TEXTS, LABELS).read_bytes()
    for content in (b"PAR1 junk", whole[:-20], whole[:10] + b"\xff" * 40 + whole[50:]):
        refused(tmp_path, "rows.parquet", content, "not a readable parquet file")
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        refused(tmp_path, f"rows.csv{suffix}", pack(CSV.encode() * 99)[:-12], "cannot be read")
        refused(tmp_path, f"junk.csv{suffix}", b"junk", "cannot be read")
    whole = gzip.compress(CSV.encode())
    refused(tmp_path, "flip.csv.gz", whole[:12] + b"\xff\xff\xff" + whole[15:], "cannot be read")


def test_files_that_unpack_to_more_than_the_memory(tmp_path, monkeypatch):
    """A few kilobytes can stand for gigabytes; nothing is read past the limit."""
    names = [f"rows{suffix}" for suffix in (".txt.gz", ".csv.bz2", ".jsonl.xz")]
    for name, packer in zip(names, (gzip, bz2, lzma), strict=True):
        put(tmp_path, name, packer.compress(b'{"text": 1}\n' * 10**5))
    parquet.write_table(pyarrow.table({"text": ["a"] * 10**5}), tmp_path / "rows.parquet")
    monkeypatch.setattr("ftjax.data.tables.most_bytes", lambda: 10**5)
    for name in (*names, "rows.parquet"):
        message(lambda name=name: read_file(tmp_path / name), name, "unpacks to more than 0.0 GB")


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "txt,labels,b\na,1,2\n"), ("b.json", '[{"txt": 1, "labels": 1, "b": 2}]')]
)
def test_missing_columns(tmp_path, name, content):
    columns = "its columns are: txt, labels, b."
    both = ("no columns 'text' and 'label'", columns, "Did you mean 'txt'? Did you mean 'labels'?")
    refused(tmp_path, name, content, *both, "Name them with --text-column and --label-column.")
    refused(tmp_path, name, content, "no column 'text'", columns, "Name it with --text-column.", label_column=None)
    given_text = {"text_column": "txt"}
    pair = {"text_pair_column": "c", "label_column": None, **given_text}
    refused(tmp_path, name, content, "no column 'c'", columns, "--text-pair-column", **pair)
    refused(tmp_path, name, content, "no column 'stars'", columns, "--label-column", label_column="stars", **given_text)
    refused(tmp_path, name, content, "no column 'label'", "'labels'?", "--label-column", require_labels=True, **given_text)
    assert read_file(tmp_path / name, **given_text).labels is None
    assert read_file(tmp_path / name, label_column=None, **given_text).labels is None


def test_strange_column_names_stay_on_one_line(tmp_path):
    refused(tmp_path, "a.csv", '"a\nb",c\n1,2\n', r"its columns are: 'a\nb', c.")
    refused(tmp_path, "b.csv", ",".join(f"c{i}" for i in range(50)) + "\n" + "," * 49 + "\n", "c19 and 30 more")


def test_required_labels(tmp_path):
    content = "text,label\na,1\nb,\nc,2\nd,\n"
    refused(tmp_path, "a.csv", content, "2 of 4 rows have no label, the first is row 2", require_labels=True)
    refused(tmp_path, "b.txt", "a\nb\n", "2 of 2 rows have no label", require_labels=True)
    assert read_file(tmp_path / "a.csv").labels == ["1", None, "2", None]


# Data sets


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("datasets")


@pytest.fixture
def reviews(library):
    features = library.Features({"text": library.Value("string"), "label": library.ClassLabel(names=["neg", "pos"])})
    return library.Dataset.from_dict({"text": ["NA", "b", None], "label": [1, -1, 0]}, features=features)


def test_class_names_of_a_data_set(tmp_path, library, reviews):
    wanted = (["NA", "b", ""], None, ["pos", None, "neg"])
    library.DatasetDict({"train": reviews, "test": reviews.select([0])}).save_to_disk(tmp_path / "all")
    reviews.with_format("numpy").save_to_disk(tmp_path / "one")
    reviews.to_parquet(tmp_path / "rows.parquet")
    name = str(tmp_path / "all")
    assert read_dataset(name, split="train") == Rows(*wanted, f"{name} (train)", ("neg", "pos"))
    assert read_dataset(name, split="test", require_labels=True).labels == ["pos"]
    assert read_dataset(str(tmp_path / "one"), split="train").labels == wanted[2]
    assert read_file(tmp_path / "rows.parquet") == Rows(*wanted, str(tmp_path / "rows.parquet"), ("neg", "pos"))
    message(lambda: read_dataset(name, split="tset"), name, "its splits are: train, test.", "Did you mean 'test'?")
    message(lambda: read_dataset(name, split="train", text_column="txt"), name, "its columns are: text, label.")
    message(lambda: read_dataset(name, split="train", require_labels=True), "1 of 3 rows", "row 2")


def test_a_directory_of_files_keeps_its_texts(tmp_path, capfd):
    for number in range(2):
        put_rows(tmp_path / f"train-{number}.csv", TEXTS, LABELS)
    put_rows(tmp_path / "test.csv", ["b"], ["1"])
    name = str(tmp_path)
    assert read_dataset(name, split="train") == Rows(TEXTS * 2, None, LABELS * 2, f"{name} (train)")
    assert read_dataset(name, split="test").texts == ["b"]
    put_rows(tmp_path / "test.csv", ["changed"], ["1"])
    assert read_dataset(name, split="test").texts == ["changed"]
    message(lambda: read_dataset(name, split="dev"), name, "no split 'dev'", "train, test")
    put(tmp_path, "train-1.csv", "text\na\n")
    message(lambda: read_dataset(name, split="train"), "train-1.csv", "its columns are text,", "text, label")
    assert capfd.readouterr() == ("", "")


def test_a_directory_that_declares_its_classes(tmp_path, capfd):
    put_rows(tmp_path / "train.jsonl", ["a", "b"], [1, 0])
    label = "{name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}"
    info = f"features: [{{name: text, dtype: string}}, {label}]"
    put(tmp_path, "README.md", f"---\ndataset_info: {{{info}}}\n---\n")
    for texts in (["a", "b"], ["c", "d"]):
        put_rows(tmp_path / "train.jsonl", texts, [1, 0])
        rows = read_dataset(str(tmp_path), split="train")
        assert (rows.texts, rows.labels, rows.label_names) == (texts, ["pos", "neg"], ("neg", "pos"))
    assert capfd.readouterr() == ("", "")


def test_data_sets_that_cannot_be_had(tmp_path, library, monkeypatch):
    def read(name):
        return lambda: read_dataset(str(name), split="train")

    message(read(put(tmp_path, "rows.csv", CSV)), "rows.csv", "--train-file")
    (tmp_path / "empty").mkdir()
    message(read(tmp_path / "empty"), tmp_path / "empty", "cannot be loaded")
    message(read(tmp_path / "nowhere"), tmp_path / "nowhere", "cannot be loaded")
    (tmp_path / "script").mkdir()
    put(tmp_path / "script", "script.py", "raise SystemExit('it ran')")
    message(read(tmp_path / "script"), tmp_path / "script", "Code of a data set is never run")
    (tmp_path / "broken").mkdir()
    put(tmp_path / "broken", "dataset_dict.json", "{oops")
    message(read(tmp_path / "broken"), tmp_path / "broken", "cannot be loaded")

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/reviews' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(library, "load_dataset", unreachable)
    message(read("someone/reviews"), "--dataset someone/reviews", "HF_ENDPOINT", "offline")


def test_a_data_set_of_the_hub(library, reviews, monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return library.DatasetDict({"train": reviews})

    monkeypatch.setattr(library, "load_dataset", load)
    rows = read_dataset("someone/reviews", config="small", split="train")
    assert rows.source == "someone/reviews (train)"
    assert rows.labels == ["pos", None, "neg"]
    assert asked == [(("someone/reviews", "small"), {})]  # above all: no trust_remote_code


def test_messages_name_the_row_of_an_unknown_class(tmp_path, library):
    features = library.Features({"text": library.Value("string"), "label": library.ClassLabel(names=["neg", "pos"])})
    table = pyarrow.table({"text": ["a"], "label": [5]}).replace_schema_metadata(features.arrow_schema.metadata)
    parquet.write_table(table, tmp_path / "rows.parquet")
    message(lambda: read_file(tmp_path / "rows.parquet"), "the label of row 1 is 5", "2 classes")
