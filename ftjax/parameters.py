"""What `ftjax parameters` shows: every parameter and what would happen to it, and the memory that each choice needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from ftjax.config import Parameters
from ftjax.optimizer import decay_labels
from ftjax.partition import Treatment, labels_of, lora_part, treat, without_lora
from ftjax.pretrained.adapter import locate
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import Pretrained, load_pretrained, read_config, saved_labels
from ftjax.stages import adapt, layer_kernels, memory, new_heads

COMPARED = ("all", "last:2,head", "last:1,head", "lora:8,head", "bias,head", "head")
"""The choices whose memory stands beside that of the one asked for."""


def describe(config: Parameters) -> dict[str, Any]:
    """{"parameters": a dictionary each, "memory": one a choice}, JSON-ready. Nothing is compiled, no data is read.

    Raises InputError for a model or a spec as training would.
    """
    base, adapter = locate(config.model)
    _, raw_config, _ = read_config(model_directory(base), adapter)
    labels = saved_labels(raw_config) or tuple(f"LABEL_{i}" for i in range(config.num_labels))
    pretrained = load_pretrained(config.model, labels=labels, classifier=config.classifier, precision=config.precision)
    chosen, treatments = choose(config, pretrained, config.train_parameters, config.layer_decay)
    usual = {name: config.weight_decay if kind == "decay" else 0.0 for name, kind in decay_labels(treatments).items()}

    def row(name: str, treatment: Treatment) -> dict[str, Any]:
        shape, trains = chosen.model.shapes[name], treatment.trained
        decay = usual[name] if treatment.weight_decay is None else treatment.weight_decay
        return {
            "name": name,
            "shape": list(shape.shape),
            "count": shape.size,
            "trained": trains,
            "learning_rate": config.learning_rate * treatment.learning_rate if trains else None,
            "weight_decay": decay if trains else None,
            "new": name in chosen.new,
        }

    specs = dict.fromkeys((config.train_parameters, *COMPARED))
    return {
        "parameters": [row(name, treatment) for name, treatment in treatments.items()],
        "memory": [state_memory(config, pretrained, spec) for spec in specs],
    }


def choose(
    config: Parameters, pretrained: Pretrained, spec: str, layer_decay: float = 1.0
) -> tuple[Pretrained, dict[str, Treatment]]:
    """The model with what a spec adds to it, and every parameter's treatment."""
    chosen = adapt(pretrained, [spec], config, seed=0)
    layers = chosen.model.config.num_hidden_layers
    return chosen, treat(chosen.model.shapes, spec, layers=layers, always=new_heads(chosen), layer_decay=layer_decay)


def state_memory(config: Parameters, pretrained: Pretrained, spec: str) -> dict[str, Any]:
    """What the state of a run that trains `spec` takes, in bytes; activations come on top and depend on the batch.

    What has no meaning for this choice, such as DoRA without LoRA, is left out.
    """
    if lora_part(spec) is None:
        config = dataclasses.replace(config, dora=False, lora_dropout=0.0)
    names, layers = pretrained.model.shapes, pretrained.model.config.num_hidden_layers
    if {*layer_kernels(names)} <= without_lora(spec, names, layers=layers):
        config = dataclasses.replace(config, base_bits=None)
    chosen, treatments = choose(config, pretrained, spec)
    found = memory(chosen.model, labels_of(treatments))
    return {
        "train_parameters": spec,
        "trained_parameters": found.trained,
        "frozen_parameters": found.frozen,
        **{name: getattr(found, name) for name in ("parameters_bytes", "gradients_bytes", "moments_bytes", "bytes")},
    }


def show(found: dict[str, Any]) -> None:
    """The tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("parameter", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for name in ("count", "", "learning rate", "decay"):
        table.add_column(name, justify="left" if not name else "right")
    for row in found["parameters"]:
        trains = row["trained"]
        table.add_row(
            row["name"] + (" (new)" if row["new"] else ""),
            " x ".join(map(str, row["shape"])),
            f"{row['count']:,}",
            "trained" if trains else "frozen",
            f"{row['learning_rate']:.3g}" if trains else "",
            f"{row['weight_decay']:g}" if trains else "",
            style=None if trains else "dim",
        )
    needs = Table(box=None, pad_edge=False)
    needs.add_column("--train-parameters", no_wrap=True)
    for name in ("trained", "frozen", "parameters", "gradients", "moments", "in all"):
        needs.add_column(name, justify="right")
    for row in found["memory"]:
        sizes = (f"{row[name] / 1e6:,.1f} MB" for name in ("parameters_bytes", "gradients_bytes", "moments_bytes", "bytes"))
        needs.add_row(row["train_parameters"], f"{row['trained_parameters']:,}", f"{row['frozen_parameters']:,}", *sizes)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 110)  # a table that is too wide is easier to read than names cut short
    console.print(table)
    console.print("\nMemory of the state, in float32 where it trains; activations come on top.")
    console.print(needs)
