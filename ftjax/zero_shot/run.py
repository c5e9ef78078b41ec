"""Texts -> scores -> predictions; with --adapt the surest scores become labels to train on, round after round."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ftjax import machine, rundir
from ftjax.config import TrainConfig
from ftjax.data.files import Rows, read_file
from ftjax.errors import InputError
from ftjax.evaluation import classification_metrics, softmax
from ftjax.inference import TextClassifier
from ftjax.loop import fit
from ftjax.pretrained import load_pretrained
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import read_config
from ftjax.terminal import Terminal
from ftjax.zero_shot.config import TEMPLATES, ZeroShotConfig
from ftjax.zero_shot.scores import Calibration, cloze_scores, likelihood_scores, similarity_scores, surest

HELD_OUT = 10  # of so many pseudo-labelled texts one is held out, to choose the epoch by


def classify(config: ZeroShotConfig, terminal: Terminal) -> list[dict[str, Any]] | dict[str, Any]:
    """Do what the settings say: predictions of the texts given, or what result.json holds.

    Raises InputError for a user's mistake, before anything is compiled or written.
    """
    config.check()
    if config.text:
        labels, scores = tuple(config.descriptions()), class_scores(config, config.text)
        return [
            {"text": text, "prediction": labels[int(row.argmax())], "scores": dict(zip(labels, map(float, row), strict=True))}
            for text, row in zip(config.text, softmax(scores), strict=True)
        ]
    assert config.output is not None
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise InputError(f"--output {config.output}: not empty; choose another directory.")
    start = time.perf_counter()
    test = None if config.test_file is None else read_file(config.test_file, text_column=config.text_column, label_column=None)
    unlabeled = None
    if config.unlabeled_file is not None:
        unlabeled = read_file(config.unlabeled_file, text_column=config.text_column, label_column=None)
    parts = [rows for rows in (test, unlabeled) if rows is not None]
    scores = class_scores(config, [text for rows in parts for text in rows.texts])
    of_test = scores[: len(test.texts)] if test is not None else None
    of_unlabeled = scores[-len(unlabeled.texts) :] if unlabeled is not None else None
    if config.calibration == "texts":
        calibrate = Calibration.of(of_unlabeled if of_unlabeled is not None else scores)
        of_test, of_unlabeled = (part if part is None else calibrate(part) for part in (of_test, of_unlabeled))
    config.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"labels": list(config.descriptions()), "how": how(config)}
    if test is not None and of_test is not None:
        result["descriptions"] = score(config, test, of_test, config.output / "predictions.jsonl")
        terminal.say(line("Descriptions alone", result["descriptions"]))
    if config.adapt and unlabeled is not None and of_unlabeled is not None:
        result["rounds"] = []
        for number, share in enumerate(config.confident_share, start=1):
            terminal.say(f"\nRound {number}: the surest {share:.0%} of {len(unlabeled.texts):,} texts become labels")
            directory = config.output / f"round-{number}"
            run = train_round(config, unlabeled, of_unlabeled, share, directory, terminal)
            model = TextClassifier.load(
                directory / "model", max_length=config.max_length, batch_size=config.batch_size, precision=config.precision
            )
            of_unlabeled = ordered(model, config, unlabeled)
            result["rounds"].append({"share": share, "agreement": run["eval"]["accuracy"], "seconds": run["train_seconds"]})
            if test is not None:
                found = score(config, test, ordered(model, config, test), config.output / "predictions.jsonl")
                result["rounds"][-1] |= found
                terminal.say(line(f"After round {number}", found))
        result["model"] = str(directory / "model")
        terminal.say(f"\nModel: {directory / 'model'} (ftjax predict --model ...; loads in transformers)")
    result |= {"seconds": time.perf_counter() - start, "peak_memory_bytes": machine.peak_memory_bytes()}
    rundir.write_json(config.output / "result.json", result)
    return json.loads((config.output / "result.json").read_text(encoding="utf-8"))


def how(config: ZeroShotConfig) -> str:
    """The way of scoring, `auto` resolved; InputError where it is not one of this model."""
    causal = read_config(model_directory(config.model))[0].causal
    chosen = config.how if config.how != "auto" else "likelihood" if causal else "similarity"
    if (chosen == "likelihood") != causal:
        kind, ways = ("a decoder", "likelihood") if causal else ("an encoder", "similarity or cloze")
        raise InputError(f"--how {chosen}: {config.model} is {kind}; take {ways}.")
    return chosen


def class_scores(config: ZeroShotConfig, texts: list[str] | tuple[str, ...]) -> np.ndarray:
    """Scores float32 (texts, classes) by the descriptions alone."""
    chosen, descriptions = how(config), config.descriptions()
    sizes = {"max_length": config.max_length, "batch_size": config.batch_size}
    pretrained = load_pretrained(
        config.model, labels=(), masked_lm=chosen == "cloze", causal_lm=chosen == "likelihood", precision=config.precision
    )
    longest = pretrained.model.config.max_length
    if config.max_length > longest:
        raise InputError(f"--max-length {config.max_length} is longer than the model's {longest} positions.")
    if chosen == "similarity":
        return similarity_scores(pretrained, descriptions, texts, **sizes)
    score_words = cloze_scores if chosen == "cloze" else likelihood_scores
    return score_words(pretrained, descriptions, texts, template=config.template or TEMPLATES[chosen], **sizes)


def train_round(
    config: ZeroShotConfig, unlabeled: Rows, scores: np.ndarray, share: float, directory: Path, terminal: Terminal
) -> dict[str, Any]:
    """Train the model as it came on the texts that the scores are surest about; what its result.json holds.

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
    data = config.output / f"{directory.name}-data"  # type: ignore[operator]
    data.mkdir()
    for name, numbers in sets.items():
        with (data / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows((unlabeled.texts[i], labels[chosen[i]] if chosen[i] >= 0 else "") for i in numbers)
    others = bool(config.self_supervised_loss) and len(sets["rest"]) > 0
    run = TrainConfig(
        model=config.model,
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
        warmup_steps=10,
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


def ordered(model: TextClassifier, config: ZeroShotConfig, rows: Rows) -> np.ndarray:
    """A trained model's logits, its classes in the order of the descriptions."""
    logits, _ = model.logits(rows)
    return logits[:, [model.labels.index(label) for label in config.descriptions()]]


def score(config: ZeroShotConfig, rows: Rows, scores: np.ndarray, path: Path) -> dict[str, float]:
    """Write predictions; then, and only then, read the file's labels, if there are any, and say how good they are."""
    labels = list(config.descriptions())
    none = np.full(len(scores), -1)
    rundir.write_predictions(path, rows.texts, none, softmax(scores), labels)
    assert config.test_file is not None
    given = read_file(config.test_file, text_column=config.text_column, label_column=config.label_column).labels
    if not given or not any(given):
        return {}
    if unknown := sorted({name for name in given if name is not None} - set(labels)):
        raise InputError(
            f"{config.test_file}: has the label {unknown[0]!r}, which no description is for; the predictions are in {path}."
        )
    numbers = np.array([-1 if name is None else labels.index(name) for name in given])
    return classification_metrics(scores, numbers)


def line(what: str, scores: dict[str, float]) -> str:
    """One line of scores."""
    return f"{what}: " + ("  ".join(f"{name} {value:.4f}" for name, value in scores.items()) or "written (no labels to score)")
