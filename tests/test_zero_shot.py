"""Classes from descriptions: no label is read, scores by hand, rounds of adaptation, and mistakes through the command."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_command
from decoders import FAMILIES, write_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_generate import write_tokenizer

from ftjax.data.tokenize import load_tokenizer
from ftjax.errors import InputError
from ftjax.evaluation import predict_step
from ftjax.pretrained import load_pretrained
from ftjax.zero_shot.config import ZeroShotConfig
from ftjax.zero_shot.scores import (
    Calibration,
    calibrated,
    described,
    likelihood_scores,
    per_row,
    relative,
    surest,
    together,
    tokenised,
)

TEXTS = ("a fine film", "a terrible bore, far too long", "the plot")


def config(**changes):
    return ZeroShotConfig(**{"model": "m", "text": ("a",), "labels": "good,bad", **changes})


def test_the_classifier_made_of_descriptions_is_the_cosine_with_their_mean(tiny_bert):
    descriptions = {"good": ("fine", "great film"), "bad": ("terrible",)}
    pretrained = load_pretrained(tiny_bert, labels=tuple(descriptions), classifier="mean")
    model = described(pretrained, descriptions, max_length=32, batch_size=2)
    tokenizer = load_tokenizer(tiny_bert)
    found = per_row(predict_step(model.model), model, tokenised(TEXTS, tokenizer, 32, "texts"), 2, 0)

    def embedding(text):  # one text at a time, without padding
        ids = np.array([tokenizer(text)["input_ids"]], np.int32)
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden = pretrained.model.bind(pretrained.params).hidden_states({k: jnp.asarray(v) for k, v in batch.items()})[-1]
        vector = np.asarray(hidden)[0].mean(0)
        return vector / np.linalg.norm(vector)

    for row, text in enumerate(TEXTS):
        for column, texts in enumerate(descriptions.values()):
            centre = np.mean([embedding(text) for text in texts], axis=0)
            cosine = embedding(text) @ centre / np.linalg.norm(centre)
            np.testing.assert_allclose(found[row, column], 16**0.5 * cosine, rtol=1e-4)
    calibration = Calibration.of(found)
    moved = calibrated(model, calibration)
    again = per_row(predict_step(moved.model), moved, tokenised(TEXTS, tokenizer, 32, "texts"), 2, 0)
    np.testing.assert_allclose(again, calibration(found), rtol=1e-3, atol=1e-4)


def test_likelihood_is_the_log_probability_of_the_words_after_the_text(tmp_path):
    write_decoder(tmp_path, FAMILIES["gpt2"])
    write_tokenizer(tmp_path)
    pretrained, tokenizer = load_pretrained(tmp_path, labels=(), causal_lm=True), load_tokenizer(tmp_path)
    descriptions, template = {"good": ("fine", "a joy"), "bad": ("poor",)}, "{text} is {label}"
    sizes = {"max_length": 32, "batch_size": 2}
    found = likelihood_scores(pretrained, descriptions, TEXTS, template=template, **sizes)
    module, columns = pretrained.model.bind(pretrained.params), []
    for every in descriptions.values():
        columns.append(0.0)
        for words in every:
            start, end = (tokenizer(s)["input_ids"] for s in (f"{TEXTS[0]} is", f" {words}"))
            ids = jnp.asarray([start + end], jnp.int32)
            hidden = module.hidden_states({"input_ids": ids, "attention_mask": jnp.ones_like(ids)})[-1]
            predicted = np.asarray(jax.nn.log_softmax(module.vocabulary_logits(hidden)[0]))[len(start) - 1 : -1]
            columns[-1] += predicted[np.arange(len(end)), end].sum() / len(every)
    np.testing.assert_allclose(found[0], columns, rtol=1e-4)
    with pytest.raises(InputError, match=r"must end with \{label\}"):
        likelihood_scores(pretrained, descriptions, TEXTS, template="{label}: {text}", **sizes)
    done = run_command(
        "zero-shot", "--model", tmp_path, "--labels", "fine,poor", "--max-length", "32", "--calibration", "none", *TEXTS
    )
    assert done.returncode == 0, done.stderr
    assert [set(json.loads(line)["scores"]) for line in done.stdout.splitlines()] == [{"fine", "poor"}] * 3


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(2, 4)), elements=st.floats(-5, 5, width=16)),
    st.floats(0.05, 1.0),
)
def test_the_surest_are_the_highest_margins_of_each_class(scores, share):
    chosen = surest(scores, share)
    most = round(share * len(scores) / scores.shape[1])
    ordered = np.sort(scores, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    for number in range(scores.shape[1]):
        taken, left = chosen == number, (scores.argmax(1) == number) & (chosen < 0)
        assert taken.sum() <= most and (scores[taken].argmax(1) == number).all()
        assert not left.any() or taken.sum() == most
        assert not (left.any() and taken.any()) or margin[taken].min() >= margin[left].max()


def test_calibration_gives_every_class_the_same_mean_and_spread():
    scores = np.random.default_rng(0).normal((1.0, -3.0, 2.0), (0.5, 2.0, 1.0), (200, 3))
    found = Calibration.of(scores)(scores)
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-9)
    np.testing.assert_allclose(found.std(0), relative(scores).std(0).mean())


def test_what_a_text_adds_to_the_scores_of_all_classes_changes_nothing():
    rng = np.random.default_rng(0)
    scores, common = rng.normal((1.0, -3.0), (0.5, 2.0), (200, 2)), rng.normal(0, 50, (200, 1))
    calibration = Calibration.of(scores)
    np.testing.assert_allclose(Calibration.of(scores + common)(scores + common), calibration(scores), atol=1e-10)
    margin = scores[:, 1] - scores[:, 0]  # of two classes nothing but their difference matters, and where it begins
    found = calibration(scores)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], margin - margin.mean(), atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": "good"}, "at least two classes"),
        ({"labels": None}, "at least two classes"),
        ({"description": ("good=Fine", "bad= fine ")}, "have the same description"),
        ({"description": ("good= ",)}, "empty description"),
        ({"description": ("god=fine",)}, "with a label of --labels"),
        ({"text": (), "test_file": "t.csv"}, "--output DIR is needed"),
        ({"text": (), "adapt": True, "output": "o"}, "give --unlabeled-file"),
        ({"text": ("a",), "test_file": "t.csv"}, "leave them out with --test-file"),
        ({"text": ("a",), "adapt": True}, "leave them out with --test-file or --adapt"),
        ({"text": ("a",), "output": "o"}, "is printed; leave it out"),
        ({"text": (), "unlabeled_file": "t.csv"}, "it may be the same file as --unlabeled-file"),
        ({"template": "{text} is"}, "must have {text} and {label} once each"),
        ({"confident_share": (0.0,)}, "above 0 and at most 1"),
        ({"self_supervised_loss": ("consistency=-1",)}, "must be 0 or a positive number"),
        ({"self_supervised_loss": ("consistncy",)}, "Did you mean 'consistency'?"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
    ],
)
def test_settings_that_make_no_sense(changes, said):
    with pytest.raises(InputError) as caught:
        config(**changes).check()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_descriptions_from_a_file(tmp_path):
    (tmp_path / "d.json").write_text('{"good": ["fine", "great"], "bad": "awful"}')
    assert config(labels=None, descriptions_file=tmp_path / "d.json").descriptions() == {
        "good": ("fine", "great"),
        "bad": ("awful",),
    }
    for content in ("[1]", "{", '{"good": [1], "bad": "x"}', '{"good": []}'):
        (tmp_path / "d.json").write_text(content)
        with pytest.raises(InputError, match="descriptions-file"):
            config(labels=None, descriptions_file=tmp_path / "d.json").check()


def test_texts_on_the_command_line(tiny_bert):
    done = run_command("zero-shot", *TEXTS, "--model", tiny_bert, "--labels", "good,bad", "--max-length", "64")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == list(TEXTS)
    assert all(set(line["scores"]) == {"good", "bad"} and sum(line["scores"].values()) == pytest.approx(1) for line in lines)


def test_texts_on_the_command_line_are_calibrated_on_those_of_a_file(tiny_bert, few_reviews, tmp_path):
    asked = ("zero-shot", "--model", tiny_bert, "--labels", "good,bad", "--max-length", "64")
    of_file = ("--test-file", few_reviews["unlabeled"], "--unlabeled-file", few_reviews["train"], "--output", tmp_path / "run")
    assert run_command(*asked, *of_file).returncode == 0
    line = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    done = run_command(*asked, line["text"], "--unlabeled-file", few_reviews["train"])
    assert json.loads(done.stdout)["scores"] == pytest.approx(line["scores"], abs=1e-5)


def adapt(model, files, output, *more, descriptions=("rotten=a bad film", "fresh=a good film")):
    return run_command(
        *("zero-shot", "--model", model, "--description", *descriptions, "--adapt"),
        *("--unlabeled-file", files["train"], "--test-file", files["eval"], "--output", output, "--max-length", "64"),
        *("--batch-size", "8", "--epochs", "1", "--confident-share", "0.5", "0.8", "--json", *more),
    )


WAYS = {
    "similarity": ("rotten=a bad film", "fresh=a good film"),
    "cloze": ("rotten=bad", "rotten=awful", "fresh=good"),
    "likelihood": ("rotten=bad", "fresh=very good"),  # a classifier of its own learns
    "likelihood of a token": ("rotten=b", "fresh=g", "--template", "{text} It was{label}"),  # what is said of the words does
}


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny-decoder")
    write_decoder(directory, FAMILIES["gpt2"])
    write_tokenizer(directory)
    return directory


@pytest.mark.long
@pytest.mark.parametrize("how", WAYS)
def test_adaptation_reads_no_label_of_any_file(how, tiny_bert, tiny_mlm, tiny_decoder, few_reviews, tmp_path):
    descriptions, in_words = WAYS[how], how in ("cloze", "likelihood of a token")
    how = how.split()[0]
    model = {"similarity": tiny_bert, "cloze": tiny_mlm, "likelihood": tiny_decoder}[how]
    noise = {}
    for number, (name, path) in enumerate((n, few_reviews[n]) for n in ("train", "eval")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        rng = np.random.default_rng(number)
        noise[name] = tmp_path / f"{name}.csv"
        with noise[name].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((row["text"], rng.choice(["fresh", "rotten"])) for row in rows)])
    found, by_noise = (
        adapt(model, files, tmp_path / output, "--how", how, descriptions=descriptions)
        for files, output in ((few_reviews, "labels"), (noise, "noise"))
    )
    assert found.returncode == 0, found.stderr
    result, other = json.loads(found.stdout), json.loads(by_noise.stdout)
    assert [r["share"] for r in result["rounds"]] == [0.0, 0.5, 0.8]
    assert [r.get("agreement") for r in result["rounds"]] == [r.get("agreement") for r in other["rounds"]]
    predictions = (tmp_path / "labels" / "predictions.jsonl").read_bytes()
    assert predictions == (tmp_path / "noise" / "predictions.jsonl").read_bytes()
    assert result["rounds"][-1]["loss"] != other["rounds"][-1]["loss"]  # by true labels, and by noise
    last = tmp_path / "labels" / "round-2" / "model"
    predicted = run_command("predict", "--model", last, "a fine film")
    assert predicted.returncode == 0, predicted.stderr
    assert ("ftjax_cloze" in json.loads((last / "config.json").read_text())) == in_words


@pytest.mark.long
def test_a_self_supervised_loss_on_the_other_texts(tiny_bert, few_reviews, tmp_path):
    done = adapt(tiny_bert, few_reviews, tmp_path / "run", "--self-supervised-loss", "consistency", "entropy=0.1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "round-1" / "metrics.jsonl").read_text().splitlines()]
    assert any("consistency_loss" in line and "entropy_loss" in line for line in lines)
    card = (tmp_path / "run" / "round-1" / "model" / "README.md").read_text()
    assert (
        "No label was given" in card
        and "scores by them are left out" in card
        and "accuracy" not in card
        and "`round-0/model`" in card
    )
    assert "by labels that a model made" in (tmp_path / "run" / "round-1" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["descriptions"]["fresh"] == ["a good film"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--how", "cloze"), "no trained masked-language-modelling head"),
        (("--how", "likelihood"), "is an encoder"),
        (("--max-length", "65"), "64 positions"),
        (("--descriptions-file", "no.json"), "cannot be read"),
        (("--description", "good=\u200b"), "has no token that the model knows"),
        (("--description", "good=Fine ", "bad=fine"), "have the same description"),
        (("--template", "{text}"), "must have {text} and {label} once each"),
    ],
)
def test_mistakes_through_the_command(tiny_bert, tmp_path, more, said):
    done = run_command(
        *("zero-shot", "--model", tiny_bert, "--labels", "good,bad", "--max-length", "64", "a text", *more), cwd=tmp_path
    )
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and not any(tmp_path.iterdir())


def test_scores_together_weigh_every_judge_alike():
    rng = np.random.default_rng(0)
    over = [rng.normal(3, 10, (200, 3)), rng.normal(-1, 0.1, (200, 3))]
    found = together([scores[:5] for scores in over], over)
    by_hand = sum((scores[:5] - scores.mean(0)) / scores.std(0) for scores in map(relative, over)) / 2
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    np.testing.assert_allclose(together([5 * over[0][:5] + 7, over[1][:5]], [5 * over[0] + 7, over[1]]), by_hand, rtol=1e-6)


@pytest.mark.long
def test_another_models_scores_help_to_choose_what_becomes_a_label(tiny_bert, tiny_decoder, few_reviews, tmp_path):
    files = ("--unlabeled-file", few_reviews["train"], "--test-file", few_reviews["eval"], "--max-length", "64", "--json")
    other = run_command(
        *("zero-shot", "--model", tiny_decoder, "--description", "fresh=very good", "rotten=bad", *files),
        *("--output", tmp_path / "other"),
    )
    assert other.returncode == 0, other.stderr
    done = adapt(tiny_bert, few_reviews, tmp_path / "run", "--scores-from", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["together"]["accuracy"] >= 0 and len(result["rounds"]) == 3
    own, theirs = (
        json.loads((tmp_path / name / "scores.json").read_text())["unlabeled"]["scores"] for name in ("run", "other")
    )
    both = together([np.array(own), np.array(theirs)[:, ::-1]], [np.array(own), np.array(theirs)[:, ::-1]])
    chosen = surest(both, 0.5)
    with (tmp_path / "run" / "round-1-data" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with few_reviews["train"].open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    named = {text: ("rotten", "fresh")[number] for text, number in zip(texts, chosen, strict=True) if number >= 0}
    assert rows and all(named[row["text"]] == row["label"] for row in rows)


def test_scores_of_another_run_that_do_not_fit(tiny_bert, few_reviews, tmp_path):
    asked = ("zero-shot", "--model", tiny_bert, "--labels", "rotten,fresh", "--test-file", few_reviews["eval"])
    asked += ("--max-length", "64")
    first = run_command(*asked, "--output", tmp_path / "first", "--json")
    assert first.returncode == 0, first.stderr
    kept = json.loads((tmp_path / "first" / "scores.json").read_text())

    def refused(said, **changes):
        name = f"changed-{len(list(tmp_path.iterdir()))}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({**kept, **changes}))
        done = run_command(*asked, "--scores-from", tmp_path / name, "--output", tmp_path / "no")
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "no").exists()

    refused("about the classes", labels=["rotten", "awful"])
    refused("about the classes", labels=3)
    refused("held other texts", test={**kept["test"], "texts_sha256": "0"})
    refused("not a number for every text", test={**kept["test"], "scores": [[1, "a"]]})
    refused("not a number for every text", test={**kept["test"], "scores": kept["test"]["scores"][1:]})
    refused("no scores of its --test-file", test=None)
    done = run_command(*asked, "--scores-from", tmp_path, "--output", tmp_path / "no")
    assert done.returncode == 2 and "has no scores.json" in done.stderr
