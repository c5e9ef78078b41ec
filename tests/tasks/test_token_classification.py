"""Tags: every format gives the same rows, first tokens carry them, entities are counted whole, and mistakes name the row."""

import json

import numpy as np
import pyarrow
import pytest
from conftest import fail
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ftjax.data.tokenize import load_tokenizer
from ftjax.errors import InputError
from ftjax.pretrained.load import load_pretrained
from ftjax.tasks.token_classification import TASK, first_tokens, sentence

TINY = ("--task", "token-classification", "--max-length", "16", "--batch-size", "8", "--buckets", "1", "--epochs", "1")
ROWS = [
    {"tokens": ["Anna", "Berg", "flew", "to", "Rome"], "tags": ["B-per", "I-per", "O", "O", "B-loc"]},
    {"tokens": ["unbelievably", "sunny", "!"], "tags": ["O", "O", "O"]},
]
LABELS = ("O", "B-loc", "I-loc", "B-per", "I-per")


def task(rows=ROWS):
    return TASK(LABELS)


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Settings:
    text_column = text_pair_column = label_column = None


def read(path, **options):
    return TASK().read_file(path, Settings, **options)


def test_every_format_gives_the_same_rows(tmp_path):
    wanted = [tuple(row["tags"]) for row in ROWS]
    lines = "\n\n".join("\n".join(f"{w}\t{t}" for w, t in zip(row["tokens"], row["tags"], strict=True)) for row in ROWS)
    (tmp_path / "a.conll").write_text(f"-DOCSTART-\tO\n\n{lines}\n\t\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(f"\n{lines}\n", encoding="utf-8")
    (tmp_path / "c.conll").write_text(lines.replace("\t", " NN ").replace("\n", "\r\n"), encoding="utf-8")
    put(tmp_path / "d.jsonl", ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    (tmp_path / "f.csv").write_text(
        "tokens,tags\n" + "".join(f"{' '.join(row['tokens'])},{' '.join(row['tags'])}\n" for row in ROWS), encoding="utf-8"
    )
    for path in sorted(tmp_path.iterdir()):
        rows = read(path, require_labels=True)
        assert rows.labels == wanted, path
        assert [sentence(text)[0] for text in rows.texts] == [" ".join(row["tokens"]) for row in ROWS], path
    (tmp_path / "plain.txt").write_text("Anna flew\nto Rome\n")
    assert read(tmp_path / "plain.txt").texts == ["Anna flew", "to Rome"]


def test_a_data_set_says_what_its_numbers_mean(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-per", "I-per", "B-loc", "I-loc"])),
        }
    )
    data = datasets.Dataset.from_dict({"tokens": [ROWS[0]["tokens"]], "ner_tags": [[1, 2, 0, 0, 3]]}, features=features)
    data.save_to_disk(tmp_path / "data")
    settings = type("S", (Settings,), {"dataset": str(tmp_path / "data"), "dataset_config": None, "label_column": "ner_tags"})
    assert TASK().read_dataset(settings, "train").labels == [tuple(ROWS[0]["tags"])]


def test_the_first_token_of_a_word_has_its_tag_and_words_that_are_cut_count_as_outside(minilm):
    tokenizer = load_tokenizer(minilm)
    rows = TASK().checked(type_rows([*ROWS, {"tokens": ["a"] * 20, "tags": ["B-per"] * 20}]))
    examples = task().encode(rows, tokenizer, 12)
    first = examples.labels[examples.at(0)]
    pieces = tokenizer.convert_ids_to_tokens(examples.tokens[examples.at(0)])
    assert [p for p, n in zip(pieces, first, strict=True) if n >= 0] == ["anna", "berg", "flew", "to", "rome"]
    assert list(first[first >= 0]) == [3, 4, 0, 0, 1]
    second = tokenizer.convert_ids_to_tokens(examples.tokens[examples.at(1)])
    assert [p for p, n in zip(second, examples.labels[examples.at(1)], strict=True) if n == -100] == [
        *("[CLS]", *(p for p in second if p.startswith("##")), "[SEP]")
    ]
    assert examples.truncated == 1
    sure = [np.eye(5, dtype=np.float32)[np.maximum(examples.labels[examples.at(i)], 0)] * 50 for i in range(3)]
    found = task().scores(sure, rows, examples)
    assert found["precision"] == 1.0 and found["recall"] == pytest.approx((2 + 10) / (2 + 20))
    assert found["accuracy"] == pytest.approx((5 + 3 + 10) / 28) and found["loss"] < 1e-6
    lines = task().told(sure, rows, examples)
    assert lines[0]["prediction"] == [
        {"entity": "per", "text": "Anna Berg", "start": 0, "end": 9, "score": pytest.approx(1.0)},
        {"entity": "loc", "text": "Rome", "start": 18, "end": 22, "score": pytest.approx(1.0)},
    ]
    assert lines[0]["label"] == [{k: v for k, v in e.items() if k != "score"} for e in lines[0]["prediction"]]
    assert len(lines[2]["prediction"]) == 10


def type_rows(rows):
    from ftjax.data.files import Rows

    return Rows([tuple(r["tokens"]) for r in rows], None, [tuple(r["tags"]) for r in rows], "rows")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ab é.\u200b", max_size=5), max_size=8), st.booleans())
def test_words_of_a_list_and_their_tokens_are_found_whatever_they_hold(words, leading):
    """Tokens here are single characters, the first of a word with the space before it where `leading`."""
    text, spans = sentence(tuple(words))
    assert [text[start:end] for start, end in spans] == words
    starts = {start for start, _ in spans}
    tokens = [(at - (leading and at in starts and at > 0), at + 1) for at in range(len(text)) if text[at] != " " or not leading]
    first = first_tokens(spans, np.array([(0, 0), *tokens, (0, 0)], np.int32).reshape(-1, 2))
    for (start, end), token in zip(spans, first, strict=True):
        covering = [n for n, (a, b) in enumerate(tokens, start=1) if a < end and b > start]
        assert token == (covering[0] if covering else -1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [*ROWS, {"tokens": ["a", "b"], "tags": ["O", "I-per"]}],
            "tag 2 of row 3 is I-per after O; an entity begins with B-per",
        ),
        ([*ROWS, {"tokens": ["a", "b"], "tags": ["B-loc", "I-per"]}], "tag 2 of row 3 is I-per after B-loc"),
        ([{"tokens": ["a"], "tags": ["I-per"]}], "tag 1 of row 1 is I-per after no other"),
        ([*ROWS, {"tokens": ["a"], "tags": ["PER"]}], "tag 1 of row 3 is 'PER'; tags are O, B-TYPE or I-TYPE"),
        ([*ROWS, {"tokens": ["a"], "tags": [3]}], "tag 1 of row 3 is 3"),
        ([*ROWS, {"tokens": ["a"], "tags": 3}], "the tags of row 3 are a number, not a list"),
        ([*ROWS, {"tokens": ["a", "b"], "tags": ["O"]}], "row 3 has 2 words but 1 tags"),
        ([*ROWS, {"tokens": ["a", {}], "tags": ["O", "O"]}], "word 2 of row 3 is an object"),
        ([*ROWS, {"tokens": ["a"], "tags": None}], "1 of 3 rows have no label, the first is row 3"),
        (ROWS[1:], "every tag is O"),
        ([{"tokens": ["a"]}], "no column 'tags'"),
        ([{"text": "a", "label": "b"}], "no columns 'tokens' and 'tags'; its columns are: text, label"),
    ],
)
def test_rows_that_are_wrong_are_named(rows, words, tiny_bert, tmp_path, capsys):
    file = put(tmp_path / "train.jsonl", rows)
    said = fail(capsys, "train", *TINY, "--model", tiny_bert, "--train-file", file, "--output", tmp_path / "run")
    assert words in said and "train.jsonl" in said
    assert not (tmp_path / "run").exists()


def test_files_that_are_wrong_are_named(tiny_bert, tmp_path, capsys):
    train = ("train", *TINY, "--model", tiny_bert, "--output", tmp_path / "run")
    lines = tmp_path / "a.conll"
    lines.write_text("Anna\tB-per\nBerg\n", encoding="utf-8")
    assert "line 2 is 'Berg'; a line has a word, a TAB and its tag" in fail(capsys, *train, "--train-file", lines)
    known = put(tmp_path / "train.jsonl", ROWS)
    other = put(tmp_path / "eval.jsonl", [{"tokens": ["IBM"], "tags": ["B-org"]}])
    said = fail(capsys, *train, "--train-file", known, "--eval-file", other)
    assert "eval.jsonl: row 1 has the tag 'B-org', which training has not seen; known: O, B-loc, I-loc, B-per, I-per" in said
    pair = ("--text-pair-column", "tokens")
    assert "which tags one text" in fail(capsys, *train, "--train-file", known, *pair)


def test_without_the_package_that_counts_entities(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "seqeval", None)
    with pytest.raises(InputError, match=r"pip install 'ftjax\[ner\]'"):
        TASK.of(Settings)


def test_class_names_of_the_model_are_kept_where_they_will_do():
    rows = [type_rows(ROWS)]
    assert TASK().fitted(rows, ()).labels == LABELS
    own = ("B-per", "B-loc", "O", "I-per", "I-loc", "B-org")
    assert TASK().fitted(rows, own).labels == own
    assert TASK().fitted(rows, ("B-per", "I-per", "B-loc")).labels == LABELS


def test_nothing_of_the_head_of_another_task_is_taken_over(tiny_bert, tmp_path):
    from ftjax.pretrained import save_pretrained

    loaded = load_pretrained(tiny_bert, labels=("a", "b"), classifier="every-token")
    save_pretrained(loaded, loaded.params, tmp_path / "tokens")
    again = load_pretrained(tmp_path / "tokens")
    assert (again.labels, again.classifier, again.new) == (("a", "b"), "every-token", ())
    rows = load_pretrained(tmp_path / "tokens", labels=("a", "b"), classifier="first-token")
    assert set(rows.new) == {"classifier.kernel", "classifier.bias"}
