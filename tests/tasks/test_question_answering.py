"""Answers: SQuAD's formats and scores, windows over long contexts, no answer, and mistakes that name the row."""

import json

import numpy as np
import pytest
from conftest import fail

from ftjax.data.files import Rows
from ftjax.data.tokenize import load_tokenizer
from ftjax.errors import InputError
from ftjax.tasks.question_answering import TASK, best_span, exact_match, word_f1

CONTEXT = "In 1889 the tower was built in Paris by Gustave Eiffel 's company , and it stands there still ."
TINY = ("--task", "question-answering", "--max-length", "24", "--batch-size", "8", "--buckets", "1", "--epochs", "1")


class Settings:
    text_column = text_pair_column = label_column = window_overlap = None


def answer(text, context=CONTEXT):
    return {"text": [text], "answer_start": [context.index(text)]}


ROWS = [
    {"question": "Where ?", "context": CONTEXT, "answers": answer("Paris")},
    {"question": "Who ?", "context": CONTEXT, "answers": answer("Gustave Eiffel 's")},
    {"question": "Why ?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    {"question": "How ?", "context": CONTEXT, "answers": None},
]


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_and_squads_own_files_give_the_same_rows(tmp_path):
    lines = TASK().read_file(put(tmp_path / "a.jsonl", ROWS), Settings)
    assert lines.labels == [(("Paris", 31),), (("Gustave Eiffel 's", 40),), (), None]
    questions = [
        {"question": r["question"], "id": str(i), "is_impossible": r["answers"] == {"text": [], "answer_start": []}}
        | ({} if r["answers"] is None else {"answers": [dict(zip(("text", "answer_start"), a, strict=True))
            for a in zip(*r["answers"].values(), strict=True)]})
        for i, r in enumerate(ROWS)
    ]  # fmt: skip
    nested = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    for indent in (None, 1):
        (tmp_path / "b.json").write_text(json.dumps(nested, indent=indent), encoding="utf-8")
        rows = TASK().read_file(tmp_path / "b.json", Settings)
        assert (rows.texts, rows.pairs, rows.labels) == (lines.texts, lines.pairs, lines.labels)


@pytest.fixture(scope="module")
def encoded(minilm):
    rows = Rows(
        [r["question"] for r in ROWS], [CONTEXT] * 4, [(("Paris", 31),), (("Gustave Eiffel 's", 40),), (), None], "rows"
    )
    task = TASK(("LABEL_0", "LABEL_1"), window_overlap=6, unanswerable=True)
    return task, rows, task.encode(rows, load_tokenizer(minilm), 16), load_tokenizer(minilm)


def test_windows_overlap_cover_the_context_and_know_where_the_answer_is(encoded):
    _, rows, examples, tokenizer = encoded
    whole = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    windows = np.flatnonzero(examples.rows == 0)
    assert len(windows) > 2 and examples.lengths.max() <= 16
    seen = []
    for window in windows:
        spans, tokens = examples.spans[examples.at(window)], examples.tokens[examples.at(window)]
        part = list(tokens[spans[:, 1] > spans[:, 0]])
        assert not seen or seen[-6:] == part[:6]
        seen += part[6:] if seen else part
    assert seen == whole
    for window, row in enumerate(examples.rows):
        first, last = examples.labels[window]
        spans = examples.spans[examples.at(window)]
        if row == 3:
            assert (first, last) == (-100, -100)
        elif (first, last) != (0, 0):
            text, start = rows.labels[row][0]
            assert (spans[first, 0], spans[last, 1]) == (start, start + len(text))
    assert all(any(examples.labels[examples.rows == row, 0] > 0) == (row < 2) for row in range(4))


def test_the_best_answer_over_all_windows_and_none_where_every_window_says_so(encoded):
    task, rows, examples, _ = encoded
    outputs = []
    for window in range(len(examples)):
        logits = np.zeros((2, 20), np.float32)  # padded to a longer bucket
        labels = np.maximum(examples.labels[window], 0)
        logits[(0, 1), labels] = 9.0
        logits[:, 0] += 1.0
        outputs.append(logits)
    lines = task.told(outputs, rows, examples)
    assert [line["prediction"] for line in lines[:3]] == ["Paris", "Gustave Eiffel 's", ""]
    assert [line["start"] for line in lines[:3]] == [31, 40, None]
    assert [line["label"] for line in lines] == [["Paris"], ["Gustave Eiffel 's"], [], None]
    scores = task.scores(outputs, rows, examples)
    assert scores["exact_match"] == scores["f1"] == 1.0 and 0 < scores["loss"] < 0.1
    always = TASK(task.labels, window_overlap=6)
    assert always.predictions(outputs, rows, examples)[2]["prediction"] != ""
    assert always.scores(outputs, rows, examples)["exact_match"] == pytest.approx(2 / 3)


def test_scores_are_those_of_squads_script():
    """Values of evaluate-v2.0.py."""
    assert exact_match("The Eiffel Tower!", "eiffel  tower") == 1
    assert exact_match("", "") == 1 and word_f1("", "") == 1 and word_f1("a", "Paris") == 0
    assert word_f1("in the city of Paris", "Paris") == pytest.approx(2 * (1 / 4) * 1 / (1 / 4 + 1))
    assert word_f1("Paris Paris", "Paris") == pytest.approx(2 / 3)


def test_a_span_neither_ends_before_it_begins_nor_is_too_long():
    logits = np.zeros((2, 50))
    logits[0, 40], logits[1, 3], logits[1, 45] = 5.0, 9.0, 1.0
    allowed = np.ones(50, bool)
    score, first, last = best_span(logits, allowed)
    assert (score, first <= 3, last) == (9.0, True, 3)
    allowed[:10] = False
    assert best_span(logits, allowed) == (6.0, 40, 45)
    logits[0, 10] = logits[1, 49] = 7.0
    assert best_span(logits, allowed)[0] == 12.0  # (40, 49): 10 to 49 would be 40 tokens
    assert best_span(logits, np.zeros(50, bool))[0] == -np.inf


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"answers": {"text": ["Paris"], "answer_start": [30]}},
            "row 5: its context has ' Pari' at character 30, not the answer",
        ),
        ({"answers": {"text": ["Lyon"], "answer_start": [-4]}}, "row 5: its context has"),
        ({"answers": {"text": [""], "answer_start": [3]}}, "not the answer ''"),
        ({"answers": {"text": ["Paris"], "answer_start": []}}, "the answers of row 5 (an object) are not as in SQuAD"),
        ({"answers": "Paris"}, "the answers of row 5 (a string) are not as in SQuAD"),
        ({"answers": [{"text": "Paris"}]}, "the answers of row 5 (a list) are not as in SQuAD"),
        ({"question": "why " * 30}, "the question of row 5 has 30 tokens; of --max-length 24"),
    ],
)
def test_rows_that_are_wrong_are_named(row, words, tiny_bert, tmp_path, capsys):
    file = put(tmp_path / "train.jsonl", [*ROWS[:3], ROWS[0], {**ROWS[0], **row}])
    said = fail(capsys, "train", *TINY, "--model", tiny_bert, "--train-file", file, "--output", tmp_path / "run")
    assert words in said and "train.jsonl" in said
    assert not (tmp_path / "run").exists()


def test_files_and_flags_that_are_wrong(tiny_bert, tmp_path, capsys):
    train = ("train", *TINY, "--model", tiny_bert, "--output", tmp_path / "run")
    (tmp_path / "a.json").write_text('{"data": [{"paragraphs": [{"qas": []}, 3]}]}')
    assert "not in SQuAD's format" in fail(capsys, *train, "--train-file", tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"data": [')
    assert "line 1 is not valid JSON" in fail(capsys, *train, "--train-file", tmp_path / "b.json")
    file = put(tmp_path / "c.jsonl", [{"question": "q", "answers": None}])
    assert "no column 'context'" in fail(capsys, *train, "--train-file", file)
    file = put(tmp_path / "train.jsonl", ROWS[:3])
    assert "--window-overlap -1" in fail(capsys, *train, "--train-file", file, "--window-overlap", "-1")
    assert "cannot overlap by 22" in fail(capsys, *train, "--train-file", file, "--window-overlap", "22")
    (tmp_path / "plain.txt").write_text("only text\n")
    more = ("--method", "self-supervised", "--unlabeled-file", tmp_path / "plain.txt")
    assert "plain.txt: --task question-answering needs a question and a context" in fail(
        capsys, *train, "--train-file", file, *more
    )


def test_a_text_alone_is_no_question_with_its_context():
    with pytest.raises(InputError, match=r"the texts given: .* needs a question and a context"):
        TASK().checked(Rows(["Where ?"], None, None, "the texts given"))
