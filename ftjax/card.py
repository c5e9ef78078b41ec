"""A run -> the model card (README.md) of its model directory, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax.config import TrainConfig
from ftjax.report.formats import decimal, duration, finite, integer, memory

PIPELINES = {
    **dict.fromkeys(("classification", "multi-label", "regression"), "text-classification"),
    **{name: name for name in ("token-classification", "question-answering")},
    **dict.fromkeys(("causal-lm", "dialogue"), "text-generation"),
    **{"seq2seq": "text2text-generation", "masked-lm": "fill-mask"},
}
"""--task -> what the hub calls it."""
OF_CLASSES = ("classification", "multi-label", "token-classification")
"""Tasks that are done only where there were labels."""
LEFT_OUT = ("model", "output", "resume", "json", "tracker", "tracker_project", "push_to_hub", "private", "seed", "method")
"""Settings that the card says elsewhere, or that are nobody else's business."""


def card(config: Mapping[str, Any], result: Mapping[str, Any], *, name: str, library: str = "transformers") -> str:
    """The card's text. config, result: of config.json and result.json; scores that `result` does not have are left out.

    library: what loads the model: transformers, peft for an adapter, or ftjax for heads that transformers does not have.
    """
    from huggingface_hub import EvalResult, ModelCardData

    labels, files = list(config.get("labels") or ()), _files(config)
    known = not config.get("labels_from_model")  # else a score says how well the model agrees with itself
    scored = {split: found for split in ("test", "eval") if known and isinstance(found := result.get(split), Mapping)}
    task = str(config.get("task", "classification"))
    pipeline = PIPELINES.get(task) if labels or task not in OF_CLASSES else None
    results = [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=str(config["dataset"]) if _on_hub(config.get("dataset")) else "custom",
            dataset_name=str(config.get("dataset") or files.get(split) or "rows of one's own"),
            dataset_split="validation" if split == "eval" else split,
            metric_type=metric,
            metric_value=value,
        )
        for split, scores in scored.items()
        for metric, value in scores.items()
        if finite(value) is not None
    ]
    about = ModelCardData(
        library_name=library,
        base_model=str(config["model"]) if _on_hub(config.get("model")) else None,
        datasets=[str(config["dataset"])] if _on_hub(config.get("dataset")) else None,
        pipeline_tag=pipeline,
        tags=["ftjax", "jax"],
        metrics=sorted({metric for scores in scored.values() for metric in scores if metric != "loss"}) or None,
        model_name=name,
        eval_results=results or None,
    )
    parts = [f"---\n{about.to_yaml()}\n---", f"# {name}", _first(config, labels)]
    if scored:
        parts += ["## Scores", _table(["rows", "metric", "value"], [
            [split, metric, decimal(value)] for split, scores in scored.items() for metric, value in scores.items()
        ])]  # fmt: skip
    parts += ["## Data", _data(config, files, labels)]
    parts += ["## Method", _method(config, result)]
    parts += ["## Use", _use(pipeline, library)]
    if command := config.get("command"):
        parts += ["## Reproduce", _code(str(command), "sh")]
    versions = config.get("versions")
    if isinstance(versions, Mapping):
        parts.append(", ".join(f"{package} {version}" for package, version in versions.items()) + ".")
    return "\n\n".join(parts) + "\n"


def write_card(directory: Path, config: Mapping[str, Any], result: Mapping[str, Any], *, name: str) -> None:
    """README.md of a model's or an adapter's directory that has been written; of a program's none."""
    from ftjax.pretrained.tensors import read_json

    if (directory / "adapter_config.json").is_file():
        library = "peft"
    elif (directory / "config.json").is_file():
        library = "ftjax" if "ftjax_classifier" in read_json(directory / "config.json") else "transformers"
    else:
        return
    (directory / "README.md").write_text(card(config, result, name=name, library=library), encoding="utf-8")


def _first(config: Mapping[str, Any], labels: list[Any]) -> str:
    base = str(config.get("model"))
    directory = Path(base)
    named = f"{directory.parent.name}/model" if directory.name == "model" else directory.name
    base = f"[{base}](https://huggingface.co/{base.partition('@')[0]})" if _on_hub(base) else _code(named)
    what = f" Its labels are {', '.join(_code(str(label)) for label in labels)}." if labels else ""
    if config.get("labels_from_model"):
        what += " No label was given: a model made them from descriptions, so scores by them are left out here."
    task = _code(str(config.get("task", "classification")))
    return f"{base}, fine-tuned with ftjax for {task} by the method {_code(str(config.get('method')))}.{what}"


def _data(config: Mapping[str, Any], files: Mapping[str, str], labels: list[Any]) -> str:
    lines = [f"- {split}: {_code(file)}" for split, file in files.items()]
    if config.get("dataset"):
        part = f", {_code(str(config['dataset_config']))}" if config.get("dataset_config") else ""
        lines.insert(0, f"- data set: {_code(str(config['dataset']))}{part}")
    if labels:
        lines.append(f"- labels: {', '.join(_code(str(label)) for label in labels)}")
    return "\n".join(lines) or "Not said."


def _method(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Every setting that is not the default, and what the run took."""
    usual = TrainConfig(model="", output=Path()).to_dict()
    rows = [["method", config.get("method")], ["seed", config.get("seed")]]
    always = ("epochs", "batch_size", "learning_rate", "max_length", "precision")
    for key, default in usual.items():
        value = config.get(key, default)
        value = tuple(value) if isinstance(value, list) else value
        told_elsewhere = key in LEFT_OUT or key.endswith(("_file", "_dir")) or key.startswith("dataset")
        if not told_elsewhere and (key in always or value != default):
            rows.append([key, ", ".join(map(str, value)) if isinstance(value, tuple) else value])
    took = {
        "trained_parameters": integer(result.get("trained_parameters")),
        "frozen_parameters": integer(result.get("frozen_parameters")),
        "steps": integer(result.get("steps")),
        "training time": duration(result.get("train_seconds")),
        "peak memory": memory(result.get("peak_memory_bytes")),
        "device": config.get("device", ""),
    }
    return _table(["setting", "value"], [*rows, *([key, value] for key, value in took.items() if value not in ("", "–"))])


def _use(pipeline: str | None, library: str) -> str:
    ours = _code('ftjax predict "some text" --model THIS_MODEL', "sh")
    if pipeline is None:
        return _code("from ftjax.pretrained import load_pretrained\n\nmodel = load_pretrained('THIS_MODEL')", "python")
    if library != "transformers" or pipeline == "text2text-generation":  # which transformers has no pipeline for
        return ours
    asked = 'question="...", context="..."' if pipeline == "question-answering" else '"some text"'
    program = f'from transformers import pipeline\n\nprint(pipeline("{pipeline}", "THIS_MODEL")({asked}))'
    return "With transformers and PyTorch:\n\n" + _code(program, "python") + "\n\nor in JAX, without PyTorch:\n\n" + ours


def _files(config: Mapping[str, Any]) -> dict[str, str]:
    """Which rows -> the file's name, without its directory."""
    splits = {"training": "train_file", "unlabelled": "unlabeled_file", "eval": "eval_file", "test": "test_file"}
    return {split: Path(str(config[key])).name for split, key in splits.items() if config.get(key)}


def _on_hub(name: Any) -> bool:
    """Whether a model or data set was named by its id on the hub, not by a path."""
    text = str(name or "").partition("@")[0]
    return bool(text) and text.count("/") <= 1 and text[0] not in "./~" and ":" not in text and not Path(text).exists()


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _code(text: str, language: str | None = None) -> str:
    """Text as code, between more backticks than are in it."""
    most = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    if language is None:
        fence = "`" * (most + 1)
        pad = " " if "`" in text else ""
        return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"
    fence = "`" * max(3, most + 1)
    return f"{fence}{language}\n{text}\n{fence}"
