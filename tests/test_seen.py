"""The words that no text has, left out of training: the model that is saved is the one that the whole vocabulary would give."""

import dataclasses
import functools
import json
import re
import signal

import decoders
import families
import jax
import numpy as np
import pytest
from conftest import fail, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_generate import write_tokenizer
from test_packed_texts import CLOZE, KINDS, examples_of
from test_resume import content, interrupt, logged

from ftjax.cli import main
from ftjax.config import TrainConfig
from ftjax.data.batches import make_batch
from ftjax.data.tokenize import Pieces
from ftjax.objectives.classification import class_logits
from ftjax.prepare import prepare
from ftjax.pretrained import load_pretrained
from ftjax.seen import Seen, table_name

WORDS = "bert.embeddings.word_embeddings.weight"
SEEN = ("--vocabulary", "seen")


@pytest.fixture(scope="module")
def arguments(tiny_bert, few_reviews):
    """A run but for its --output, with so much weight decay that words which only decay lose a third."""
    return [
        *("train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"]),
        *("--test-file", few_reviews["eval"], "--epochs", 2, "--batch-size", 16, "--learning-rate", "1e-3", "--max-length", 64),
        *("--weight-decay", 100, "--log-every", 1),
    ]


def finished(*arguments):
    """What a command that ends well said."""
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def saved(output):
    """(the tensors of the model, the scores) of a run."""
    result = json.loads((output / "result.json").read_text())
    scores = {(part, name): value for part in ("eval", "test") for name, value in result[part].items()}
    return load_file(output / "model" / "model.safetensors"), scores


WAYS = {
    "plain": (),
    "packed": ("--packing",),
    "some parameters": ("--method", "partial", "--train-parameters", "embeddings,head"),
    "views with words masked": (
        *("--method", "self-supervised", "--self-supervised-loss", "consistency", "--labels-per-class", 20),
        *("--augmentation", "token-mask"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_what_the_whole_vocabulary_gives(way, arguments, tiny_bert, tmp_path):
    finished(*arguments, *WAYS[way], "--output", tmp_path / "all")
    said = finished(*arguments, *WAYS[way], *SEEN, "--output", tmp_path / "seen")
    assert re.search(r"The texts have \d+ of 30,522 words; the others' embeddings are left out until the end.", said)
    (whole, scores), (put_back, others) = saved(tmp_path / "all"), saved(tmp_path / "seen")
    assert whole.keys() == put_back.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(put_back[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    assert scores == pytest.approx(others, rel=1e-3)
    before = load_file(tiny_bert / "model.safetensors")[WORDS]
    shrunk = np.median(whole[WORDS] / before)
    assert 0.3 < shrunk < 0.8  # most words are in no text, and that they decay can be seen
    config = json.loads((tmp_path / "seen" / "model" / "config.json").read_text())
    assert config["vocab_size"] == len(before)


def test_frozen_words_keep_their_bytes(arguments, tiny_bert, tmp_path):
    finished(*arguments, *SEEN, "--method", "partial", "--train-parameters", "last:1,head", "--output", tmp_path / "run")
    before = load_file(tiny_bert / "model.safetensors")[WORDS]
    assert saved(tmp_path / "run")[0][WORDS].tobytes() == before.tobytes()


def test_a_killed_run_and_an_export_end_with_the_same_bytes(arguments, tmp_path):
    more = (*SEEN, "--packing", "--save-every", 2, "--resume")
    finished(*arguments, *more, "--output", tmp_path / "whole")
    status, stderr = interrupt([*arguments, *more], tmp_path / "cut", signal.SIGKILL, logged(tmp_path / "cut", 5))
    assert status == -signal.SIGKILL, stderr
    assert "Resuming after step" in finished(*arguments, *more, "--output", tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    finished("export", "--checkpoint", tmp_path / "whole", "--output", tmp_path / "exported")
    model, exported = (path / "model.safetensors" for path in (tmp_path / "whole" / "model", tmp_path / "exported"))
    assert model.read_bytes() == exported.read_bytes()
    scores = json.loads(
        run_command(
            *("evaluate", "--model", tmp_path / "whole" / "model", "--file", arguments[6], "--max-length", 64, "--json")
        ).stdout
    )
    assert scores["accuracy"] == saved(tmp_path / "whole")[1]["test", "accuracy"]


def test_a_decoder_and_a_model_adapted_first_go_on_from_the_words_seen(tiny_mlm, few_reviews, tmp_path):
    decoders.write_decoder(tmp_path / "gpt2", decoders.FAMILIES["gpt2"])
    write_tokenizer(tmp_path / "gpt2")
    for number, command in enumerate((("--model", tmp_path / "gpt2"), ("--model", tiny_mlm, "--adapt-epochs", 1))):
        output = tmp_path / f"run{number}"
        rows = ("--train-file", few_reviews["train"], "--max-length", 64, "--epochs", 1)
        assert "The texts have " in finished("train", *command, *rows, *SEEN, "--output", output)
        tables = [load_file(path / "model.safetensors") for path in (command[1], output / "model")]
        names = {name for name in tables[1] if name in tables[0]}
        assert names and all(tables[0][name].shape == tables[1][name].shape for name in names)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--optimizer", "adafactor"),
            "--vocabulary seen: --optimizer adafactor changes rows by others; leave one of them out.",
        ),
        (("--task", "masked-lm"), "--vocabulary seen: --task masked-lm reads the whole vocabulary; leave the flag out."),
        (
            ("--method", "self-supervised", "--self-supervised-loss", "masked-lm"),
            "--vocabulary seen: a --self-supervised-loss reads the whole vocabulary; leave one of them out.",
        ),
        (CLOZE, "--vocabulary seen: --classifier cloze reads the whole vocabulary; leave one of them out."),
    ],
)
def test_what_reads_the_whole_vocabulary_is_refused(more, said, tiny_mlm, arguments, tmp_path, capsys):
    given = [tiny_mlm if value == arguments[2] else value for value in arguments]
    assert said in fail(capsys, *given, "--output", tmp_path / "run", *more, *SEEN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_says_of_the_words_seen_what_it_said_before(kind, run, tmp_path):
    families.write_golden(tmp_path, kind)
    whole = load_pretrained(tmp_path)
    pad = whole.model.config.pad_token_id
    examples = examples_of([9, 3, 12], vocab=families.VOCAB - 20, types=1)
    vocabulary = dataclasses.replace(run.data.vocabulary, pad_token_id=pad, mask_token_id=4, special_ids=(0, 2, 3))
    seen = Seen.of([examples], vocabulary, whole)
    assert len(seen.ids) < families.VOCAB
    batches = [
        make_batch(rows, np.arange(3), 12, 3, padding)
        for rows, padding in ((examples, pad), (seen.renumbered(examples), seen.vocabulary(vocabulary).pad_token_id))
    ]
    logits = [
        jax.jit(functools.partial(class_logits, given.model, seeds=None))(given.params, batch)
        for given, batch in zip((whole, seen.pretrained), batches, strict=True)
    ]
    assert np.array_equal(*logits)


@pytest.fixture(scope="module")
def run(tiny_bert, few_reviews, tmp_path_factory):
    """A run that has not begun, with all words."""
    return prepare(
        TrainConfig(str(tiny_bert), tmp_path_factory.mktemp("run") / "out", few_reviews["train"], max_length=64),
        lambda line: None,
    )


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=20), vocab=st.integers(7, 40_000))
def test_numbers_go_to_words_and_back(run, lengths, vocab):
    examples = examples_of(lengths, vocab=vocab)  # some beyond the table of 30,522, which are looked up in its last row
    seen = Seen.of([examples], run.data.vocabulary, run.pretrained)
    new = seen.renumbered(examples)
    assert np.array_equal(seen.ids[new.tokens], np.minimum(examples.tokens, 30_521))
    assert new.labeled is examples.labeled
    vocabulary = seen.vocabulary(run.data.vocabulary)
    for number, token in (
        (vocabulary.pad_token_id, run.data.vocabulary.pad_token_id),
        (vocabulary.mask_token_id, run.data.vocabulary.mask_token_id),
        *zip(vocabulary.special_ids, run.data.vocabulary.special_ids, strict=True),
    ):
        assert seen.ids[number] == token
    small = seen.pretrained
    table = small.params[table_name(small)]
    assert table.shape == small.model.shapes[table_name(small)].shape
    assert len(table) % 128 == 0 and (table[len(seen.ids) :] == 1).all() and len(table) > len(seen.ids)
    assert seen.put_back(small.params)[table_name(small)].tobytes() == seen.table.tobytes()


def test_texts_that_lie_in_files_of_several_processes_are_renumbered_alike(run):
    whole = examples_of([5, 9, 3])
    pieces = Pieces([whole.tokens[:14], whole.tokens[14:]])
    apart = Seen.of([whole], run.data.vocabulary, run.pretrained).renumbered(whole)
    cut = type(whole)(pieces, whole.token_types, whole.starts, whole.labels, 0, 0).knowing(whole.labeled)
    shared = Seen.of([cut], run.data.vocabulary, run.pretrained).renumbered(cut)
    assert np.array_equal(np.concatenate(shared.tokens.arrays), apart.tokens)


def test_several_devices_end_where_one_does(arguments, tmp_path):
    for name, mesh in (("one", "data=1"), ("cut", "data=2,fsdp=2,tensor=2"), ("rows", "data=8")):
        main([str(a) for a in (*arguments, *SEEN, "--mesh", mesh, "--output", tmp_path / name)])
    expected, scores = saved(tmp_path / "one")
    for name in ("cut", "rows"):
        found, others = saved(tmp_path / name)
        assert others == pytest.approx(scores, rel=1e-3)
        for parameter, value in expected.items():
            np.testing.assert_allclose(found[parameter], value, rtol=2e-4, atol=2e-5, err_msg=parameter)
