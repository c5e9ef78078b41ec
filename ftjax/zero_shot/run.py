"""Texts -> scores -> predictions; with --adapt the surest scores become labels to train on, round after round."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftjax import machine, rundir
from ftjax.config import TrainConfig
from ftjax.data.files import Rows, read_file
from ftjax.data.tokenize import load_tokenizer
from ftjax.descriptions import TEMPLATES
from ftjax.errors import InputError
from ftjax.evaluation import predict_step, softmax
from ftjax.inference import Predictor
from ftjax.loop import fit
from ftjax.pretrained import load_pretrained, save_pretrained
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import check_cloze, read_config, refuse_seq2seq
from ftjax.tasks.classification import TextClassification, classification_metrics, scored
from ftjax.terminal import Terminal
from ftjax.zero_shot.config import ZeroShotConfig
from ftjax.zero_shot.scores import (
    Calibration,
    calibrated,
    described,
    kept,
    likelihood_scores,
    per_row,
    read_scores,
    surest,
    together,
)

HELD_OUT = 10  # of so many pseudo-labelled texts one is held out, to choose the epoch by


def classify(config: ZeroShotConfig, terminal: Terminal) -> list[dict[str, Any]] | dict[str, Any]:
    """Do what the settings say: predictions of the texts given, or what result.json holds.

    Raises InputError for a user's mistake, before anything is compiled or written.
    """
    config.check()
    columns: dict[str, Any] = {"text_column": config.text_column, "label_column": None}
    if config.text:
        first = () if config.unlabeled_file is None else read_file(config.unlabeled_file, **columns).texts
        scores = of_descriptions(config, [*first, *config.text], len(first) or None)[len(first) :]
        return scored(config.text, softmax(scores), tuple(config.descriptions()))
    assert config.output is not None
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise InputError(f"--output {config.output}: not empty; choose another directory.")
    start = time.perf_counter()
    paths = {"unlabeled": config.unlabeled_file, "test": config.test_file}
    files = {name: read_file(path, **columns) for name, path in paths.items() if path is not None}
    learnt, test = next(iter(files)), files.get("test")
    learnt_from, labels = files[learnt], list(config.descriptions())
    others = [
        {name: read_scores(directory, name, rows.texts, labels) for name, rows in files.items()}
        for directory in config.scores_from
    ]
    both = [text for rows in files.values() for text in rows.texts]
    scores = of_descriptions(config, both, len(learnt_from.texts))
    own = {"unlabeled": scores[: len(learnt_from.texts)], "test": scores[-len(test.texts) :] if test else scores}
    asked = {"base_model": config.model, "descriptions": config.descriptions(), "calibration": config.calibration}
    result: dict[str, Any] = {"labels": labels, "how": how(config), **asked, "rounds": []}
    config.output.mkdir(parents=True, exist_ok=True)
    rundir.write_json(config.output / "scores.json", kept(labels, {n: (rows.texts, own[n]) for n, rows in files.items()}))
    if test is not None:
        result["rounds"].append({"share": 0.0, **score(config, test, own["test"])})
        terminal.say(line("Descriptions alone", result["rounds"][-1]))
    of_unlabeled = own[learnt]
    if others:
        judges = [own, *others]
        over = [judge[learnt] for judge in judges]
        of_unlabeled = together(over, over)
        if test is not None:
            result["together"] = score(config, test, together([judge["test"] for judge in judges], over))
            terminal.say(line(f"Together with {', '.join(map(str, config.scores_from))}", result["together"]))
    for number, share in enumerate(config.confident_share if config.adapt else (), start=1):
        terminal.say(f"\nRound {number}: the surest {share:.0%} of {len(learnt_from.texts):,} texts become labels")
        run = train_round(config, learnt_from, of_unlabeled, share, number, terminal)
        model = Predictor.load(
            model_of(config, number), max_length=config.max_length, batch_size=config.batch_size, precision=config.precision
        )
        if number < len(config.confident_share):
            of_unlabeled = ordered(model, config, learnt_from)
        result["rounds"].append({"share": share, "agreement": run["eval"]["accuracy"], "seconds": run["train_seconds"]})
        if test is not None:
            result["rounds"][-1] |= score(config, test, ordered(model, config, test))
            terminal.say(line(f"After round {number}", result["rounds"][-1]))
    last = model_of(config, len(config.confident_share) if config.adapt else 0)
    if last.is_dir():
        result["model"] = str(last)
        terminal.say(f"\nModel: {last}; use it with: ftjax predict --model {last} TEXT")
    result |= {"seconds": time.perf_counter() - start, "peak_memory_bytes": machine.peak_memory_bytes()}
    rundir.write_json(config.output / "result.json", result)
    return json.loads((config.output / "result.json").read_text(encoding="utf-8"))


def how(config: ZeroShotConfig) -> str:
    """The way of scoring, `auto` resolved; InputError where it is not one of this model."""
    architecture = read_config(model_directory(config.model))[0]
    refuse_seq2seq(architecture, config.model)
    causal = architecture.causal
    chosen = config.how if config.how != "auto" else "likelihood" if causal else "similarity"
    if (chosen == "likelihood") != causal:
        kind, ways = ("a decoder", "likelihood") if causal else ("an encoder", "similarity or cloze")
        raise InputError(f"--how {chosen}: {config.model} is {kind}; take {ways}.")
    return chosen


def model_of(config: ZeroShotConfig, number: int) -> Path:
    """The classifier after a round; after round 0, the one made of the descriptions."""
    assert config.output is not None
    return config.output / f"round-{number}" / "model"


def of_descriptions(config: ZeroShotConfig, texts: Sequence[str], calibrate_on: int | None) -> np.ndarray:
    """Scores float32 (texts, classes) by the descriptions alone.

    calibrate_on: as many of the texts, the first ones, calibrate the scores if the settings ask for it. An encoder's
    classifier is saved as the model of round 0, with the calibration where it can hold that: with similarity. Nothing is
    saved for texts given one by one.
    """
    chosen, descriptions, labels = how(config), config.descriptions(), tuple(config.descriptions())
    directory = model_directory(config.model)
    longest = read_config(directory)[0].max_length
    if config.max_length > longest:
        raise InputError(f"--max-length {config.max_length} is longer than the model's {longest} positions.")
    sizes = {"max_length": config.max_length, "batch_size": config.batch_size}
    if chosen == "likelihood":
        pretrained = load_pretrained(config.model, labels=(), causal_lm=True, precision=config.precision)
        template = config.template or TEMPLATES["decoder"]
        scores = likelihood_scores(pretrained, descriptions, texts, template=template, **sizes)
    else:
        if chosen == "cloze":
            check_cloze(directory)
        tokenizer = load_tokenizer(directory)
        words = descriptions if chosen == "cloze" else None
        task = TextClassification(labels, words=words, template=config.template)
        task = task.with_tokenizer(tokenizer, config.max_length, causal=False)
        pretrained = load_pretrained(
            config.model,
            labels=labels,
            classifier="cloze" if chosen == "cloze" else "mean",
            cloze=task.cloze,
            precision=config.precision,
        )
        pretrained = dataclasses.replace(pretrained, raw_config={**pretrained.raw_config, **task.notes()})
        if chosen == "similarity":
            pretrained = described(pretrained, descriptions, **sizes)
        rows = task.encode(Rows(list(texts), None, None, "the texts given"), tokenizer, config.max_length)
        step = predict_step(pretrained.model)
        scores = per_row(step, pretrained, rows, config.batch_size, tokenizer.pad_token_id or 0)
    if calibrate_on is None:
        return scores
    calibration = Calibration.of(scores[:calibrate_on]) if config.calibration == "texts" else None
    if chosen != "likelihood" and not config.text:
        first = calibrated(pretrained, calibration) if calibration and chosen == "similarity" else pretrained
        save_pretrained(first, first.params, model_of(config, 0))
    return calibration(scores) if calibration else scores


def train_round(
    config: ZeroShotConfig, unlabeled: Rows, scores: np.ndarray, share: float, number: int, terminal: Terminal
) -> dict[str, Any]:
    """Train the model of round 0 (else the one given) on the texts that the scores are surest about; its result.json.

    Of every ten of them one is held out. The epoch that agrees best with those is chosen: no label was needed for it.
    """
    labels = list(config.descriptions())
    chosen = surest(scores, share)
    rows = np.random.default_rng(config.seed).permutation(np.flatnonzero(chosen >= 0))
    if len(set(chosen[rows])) < 2 or len(rows) < 2 * HELD_OUT:
        raise InputError(
            f"--confident-share {share:g}: gives {len(rows)} texts of {len(set(chosen[rows]))} classes to learn from; "
            "give more texts, a larger share or better descriptions."
        )
    held_out = rows[: len(rows) // HELD_OUT]
    sets = {"train": rows[len(held_out) :], "eval": held_out, "rest": np.flatnonzero(chosen < 0)}
    directory = model_of(config, number).parent
    data = directory.with_name(f"{directory.name}-data")
    data.mkdir()
    for name, numbers in sets.items():
        with (data / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows((unlabeled.texts[i], labels[chosen[i]] if chosen[i] >= 0 else "") for i in numbers)
    others = bool(config.self_supervised_loss) and len(sets["rest"]) > 0
    first = model_of(config, 0)
    run = TrainConfig(
        model=str(first) if first.is_dir() else config.model,
        **({} if first.is_dir() else in_words(config, data / "words.json")),
        output=directory,
        train_file=data / "train.csv",
        eval_file=data / "eval.csv",
        method="self-supervised" if others else "full" if config.train_parameters in (None, "all") else "partial",
        unlabeled_file=data / "rest.csv" if others else None,
        train_parameters=config.train_parameters,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        max_length=config.max_length,
        seed=config.seed,
        precision=config.precision,
        warmup_steps=min(10, config.epochs * -(-len(sets["train"]) // config.batch_size) // 4),
        labels_from_model=True,
    )
    if others:
        run = TrainConfig(
            **{
                **{name: getattr(run, name) for name in run.__dataclass_fields__},
                "self_supervised_loss": config.self_supervised_loss,
                "augmentation": config.augmentation,
                "unlabeled_ratio": config.unlabeled_ratio,
            }
        )
    return fit(run, terminal)


def in_words(config: ZeroShotConfig, file: Path) -> dict[str, Any]:
    """Settings with which a decoder goes on from what it says of the words already: as a cloze, if each is one token of it.

    With longer words a classifier begins anew, and knows nothing. file: where the words are written, by class.
    """
    template, words = config.template or TEMPLATES["decoder"], config.descriptions()
    task = TextClassification(tuple(words), words=words, template=template)
    try:
        task.with_tokenizer(load_tokenizer(model_directory(config.model)), config.max_length, causal=True)
    except InputError:
        return {}
    rundir.write_json(file, words)
    return {"classifier": "cloze", "template": template, "descriptions_file": file}


def ordered(model: Predictor, config: ZeroShotConfig, rows: Rows) -> np.ndarray:
    """A trained model's logits, its classes in the order of the descriptions."""
    logits, _ = model.outputs(rows)
    return np.stack(logits)[:, [model.task.labels.index(label) for label in config.descriptions()]]


def score(config: ZeroShotConfig, rows: Rows, scores: np.ndarray) -> dict[str, float]:
    """Write predictions; then, and only then, read the file's labels, if there are any, and say how good they are."""
    assert config.test_file is not None and config.output is not None
    labels, path = list(config.descriptions()), config.output / "predictions.jsonl"
    lines = scored(rows.texts, softmax(scores), labels)
    rundir.write_lines(path, ({"text": line["text"], "label": None, **line} for line in lines))
    given = read_file(config.test_file, text_column=config.text_column, label_column=config.label_column).labels
    if not given or not any(given):
        return {}
    if unknown := sorted({name for name in given if name is not None} - set(labels)):
        raise InputError(
            f"{config.test_file}: has the label {unknown[0]!r}, which no description is for; call classes as it does. "
            f"The predictions are in {path}."
        )
    numbers = np.array([-1 if name is None else labels.index(name) for name in given])
    return classification_metrics(scores, numbers)


def line(what: str, scores: dict[str, float]) -> str:
    """One line of scores."""
    found = [f"{name} {scores[name]:.4f}" for name in ("accuracy", "macro_f1", "matthews", "loss") if name in scores]
    return f"{what}: " + ("  ".join(found) or "predictions written; the file has no labels to score them by")
