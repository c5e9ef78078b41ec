"""What a run is told: one dataclass whose field names are the flags, the keys of the saved run config and of --json.

Checks here need no data and no model; they run before anything is read, written or compiled.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ftjax.errors import InputError

Method = Literal["full", "partial", "self-supervised"]
METHODS: tuple[Method, ...] = ("full", "partial", "self-supervised")
Metric = Literal["accuracy", "macro_f1", "matthews", "loss"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a model. A new head always trains; the log says how many parameters train and what they cost."""

    model: str
    """Directory of a Hugging Face model, or its hub id (revision after an @)."""
    output: Path
    """Directory of the run: config.json, metrics.jsonl, checkpoints/, model/, report.html."""
    train_file: Path | None = None
    """Training rows: .csv, .tsv, .jsonl, .json, .parquet or .txt."""
    eval_file: Path | None = None
    """Rows for evaluation after every epoch, which choose the best epoch."""
    test_file: Path | None = None
    """Rows scored once, at the end, with the model of the best epoch; they choose nothing."""
    unlabeled_file: Path | None = None
    """More training rows, without labels (self-supervised)."""
    method: Method = "full"
    """full: every parameter. partial: those of --train-parameters. self-supervised: L + weight x L_self."""
    train_parameters: str | None = None
    """What trains: all, head, last:K, top:FRACTION, every-other, attention, mlp, bias, layernorm, embeddings, lora:R,
    regex:PATTERN, joined by commas; or rules:FILE, a table of rules. Default: all; with --method partial last:2,head."""
    epochs: int = 3
    """Passes over the training rows."""
    batch_size: int = 32
    """Global batch size: rows of one update, over all devices and microbatches."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW. 5e-5 suits full fine-tuning; a head alone wants about 1e-3."""
    max_length: int = 128
    """Longest row in tokens; longer ones are cut and counted."""
    seed: int = 0
    """Fixes initialisation of new parameters, order of the data, dropout and masks."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Operands of dot products; parameters, sums, norms, softmax and loss are float32 either way."""
    resume: bool = False
    """Go on with the run in --output, from its last checkpoint; start one if there is none."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    dataset: str | None = None
    """Hugging Face data set instead of files: a hub id or a local directory."""
    dataset_config: str | None = None
    """Configuration of --dataset, such as sst2 of glue."""
    train_split: str = "train"
    """Split of --dataset to train on."""
    eval_split: str | None = None
    """Split of --dataset to evaluate on after every epoch."""
    test_split: str | None = None
    """Split of --dataset to score once, at the end."""
    text_column: str = "text"
    """Column of the text."""
    text_pair_column: str | None = None
    """Column of the second text, for sentence pairs."""
    label_column: str = "label"
    """Column of the label: names or whole numbers; empty or null where a row has none."""
    task: Literal["classification"] = "classification"
    """What is learnt."""

    classifier: Literal["pooled", "first-token"] = "pooled"
    """Head: pooled is transformers' BertForSequenceClassification; first-token a linear layer on last_hidden_state[:, 0]."""
    self_supervised_weight: float | None = None
    """Weight of masked language modelling in the objective. Default 0.1 with --method self-supervised."""
    mask_probability: float = 0.15
    """Share of the tokens that masked language modelling predicts."""
    dropout: float | None = None
    """Dropout rate everywhere, instead of the model's own."""
    unfreeze: tuple[str, ...] = ()
    """Gradual unfreezing: EPOCH=SPEC each, what trains from the end of that epoch on, such as 1=last:1,head 2=last:3,head."""
    layer_decay: float = 1.0
    """Multiplies the learning rate once for every layer between a parameter and the head, such as 0.9."""
    lora_alpha: float = 16.0
    """With lora:R, the low-rank product is multiplied by alpha / R."""
    lora_targets: str = r"attention\.(query|value)"
    """With lora:R, the dense layers that get low-rank matrices: a regular expression over names within a layer."""
    frozen_dropout: bool = False
    """Keep dropout on in layers that are frozen; their output must then be computed in every step."""
    prefix_cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Where the output of frozen first layers is kept from epoch to epoch; auto: in memory, on disk if it is larger."""
    prefix_cache_memory_gb: float = 2.0
    """Largest prefix cache in memory."""
    prefix_cache_disk_gb: float = 20.0
    """Largest prefix cache on disk."""
    prefix_cache_dir: Path | None = None
    """Directory of the prefix cache's files, which are then left there for other runs. Default: in --output, removed."""
    gradient_accumulation: int = 1
    """Microbatches a batch is cut into, one after the other, to save memory; the update stays that of the whole batch."""
    remat: bool = False
    """Compute what is inside a layer again in the backward pass instead of keeping it: less memory, more time."""
    sharding: Literal["zero1", "replicated"] = "zero1"
    """With several devices: zero1 (each keeps and updates a part of what trains) or replicated (each keeps all of it)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; never on biases and norms."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns that off."""
    metric: Metric | None = None
    """Chooses the best epoch. Default accuracy, or loss where there are no labels."""
    early_stopping: int | None = None
    """Stop after this many evaluations without a better --metric."""
    buckets: int | None = None
    """Into how many lengths rows are padded; each costs one compilation. Default: up to 8, whatever makes padding and
    compiling together cheapest."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int | None = None
    """Steps between checkpoints, besides one at the end of every epoch."""

    def check_data(self) -> None:
        """Raise InputError unless it is clear where the rows come from."""
        if (self.train_file is None) == (self.dataset is None) and not (self.unlabeled_file and not self.dataset):
            raise InputError("Give either --train-file or --dataset.")
        if self.dataset is None and (self.eval_split or self.test_split or self.dataset_config):
            raise InputError("--eval-split, --test-split and --dataset-config need --dataset.")
        if (self.eval_split and self.eval_file) or (self.test_split and self.test_file):
            raise InputError("Give a split or a file to evaluate on, not both.")

    def check(self) -> None:
        """Raise InputError for values that make no sense, alone or together."""
        self.check_data()
        for name in ("epochs", "batch_size", "gradient_accumulation", "buckets", "log_every", "save_every", "early_stopping"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{flag(name)} {value}: must be at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate {self.learning_rate}: must be a positive number, such as 5e-5.")
        for name in ("warmup_steps", "weight_decay", "max_gradient_norm", "self_supervised_weight", "seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{flag(name)} {value}: must be 0 or a positive number.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: must be at least 0 and below 1.")
        for name in ("layer_decay", "lora_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be a positive number.")
        for name in ("prefix_cache_memory_gb", "prefix_cache_disk_gb"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be 0 or a positive number.")
        for before, (epoch, _) in zip([(0, ""), *self.stages[1:]], self.stages[1:], strict=False):
            if not before[0] < epoch < self.epochs:
                raise InputError(
                    f"--unfreeze: epochs must rise from 1 to at most {self.epochs - 1} (--epochs {self.epochs}), not {epoch}."
                )
        if self.unfreeze and self.method == "full":
            raise InputError("--unfreeze needs --method partial or self-supervised: --method full trains all from the start.")
        if not 0 < self.mask_probability < 1:
            raise InputError(f"--mask-probability {self.mask_probability}: must be between 0 and 1.")
        if self.max_length < 8:
            raise InputError(f"--max-length {self.max_length}: must be at least 8.")
        if self.batch_size % self.gradient_accumulation:
            raise InputError(
                f"--batch-size {self.batch_size} is not a multiple of --gradient-accumulation {self.gradient_accumulation}."
            )
        if self.method == "full" and self.train_parameters not in (None, "all"):
            raise InputError(f"--method full trains all parameters; for {self.train_parameters!r} use --method partial.")
        if self.method == "partial" and self.train_parameters == "all":
            raise InputError("--method partial with --train-parameters all is --method full.")
        if self.method != "self-supervised":
            for name in ("unlabeled_file", "self_supervised_weight"):
                if getattr(self, name) is not None:
                    raise InputError(f"{flag(name)} needs --method self-supervised.")
        if not self.has_evaluation and (self.metric or self.early_stopping):
            raise InputError("--metric and --early-stopping need rows to evaluate on: give --eval-file or --eval-split.")

    @property
    def has_evaluation(self) -> bool:
        """Whether there are rows to evaluate on after every epoch."""
        return self.eval_file is not None or self.eval_split is not None

    @property
    def spec(self) -> str:
        """What trains, with the method's default filled in."""
        return self.train_parameters or ("last:2,head" if self.method == "partial" else "all")

    @property
    def stages(self) -> list[tuple[int, str]]:
        """(epoch, spec): what trains from the end of which epoch on; the first is (0, --train-parameters)."""
        found = [(0, self.spec)]
        for text in self.unfreeze:
            epoch, equals, spec = text.partition("=")
            if not (equals and epoch.isdecimal() and spec):
                raise InputError(f"--unfreeze {text}: must be EPOCH=SPEC, such as 1=last:2,head.")
            found.append((int(epoch), spec))
        return found

    @property
    def weight(self) -> float:
        """λ of L + λ·L_self, with the method's default filled in."""
        if self.method != "self-supervised":
            return 0.0
        return 0.1 if self.self_supervised_weight is None else self.self_supervised_weight

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> TrainConfig:
        """The settings of a run from its config.json; keys that are no setting are left aside."""
        fields = {f.name: f for f in dataclasses.fields(TrainConfig) if f.name in saved}
        paths = {name for name, field in fields.items() if "Path" in str(field.type)}
        values = {n: Path(saved[n]) if n in paths and saved[n] is not None else saved[n] for n in fields}
        return TrainConfig(**{n: tuple(value) if isinstance(value, list) else value for n, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, paths as strings."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class CompareConfig(TrainConfig):
    """Fine-tune by several methods, each in a directory of its own below --output, and compare them."""

    method: Annotated[Method, tyro.conf.Suppress] = "full"  # set for each run in turn
    methods: tuple[Method, ...] = METHODS
    """Which methods, in which order. --train-parameters is for partial; the self-supervised flags for that method."""
    partial_learning_rate: float | None = None
    """Learning rate of partial, which wants a larger one the less it trains. Default: --learning-rate."""

    def of(self, method: Method) -> TrainConfig:
        """The settings of one method's run."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        values |= {"method": method, "output": self.output / method}
        if method != "partial":
            values |= {"train_parameters": None, "unfreeze": ()}
        elif self.partial_learning_rate is not None:
            values["learning_rate"] = self.partial_learning_rate
        if method != "self-supervised":
            values |= {"unlabeled_file": None, "self_supervised_weight": None}
        return TrainConfig(**values)

    def check(self) -> None:
        """InputError for values that make no sense for one of the methods, before any of them runs."""
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError("--methods: name each method once.")
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"--output {self.output}: a file, not a directory.")
        ours = {*METHODS, "report.html"}
        if self.output.is_dir() and (others := [p.name for p in self.output.iterdir() if p.name not in ours]):
            raise InputError(
                f"--output {self.output}: holds {others[0]}, which is not of a comparison; choose another directory."
            )
        for method in self.methods:
            self.of(method).check()


Hidden = tyro.conf.Suppress


@dataclasses.dataclass(frozen=True)
class StepConfig(TrainConfig):
    """What of a run's settings decides the step that is compiled: those of `ftjax train` without files and outputs."""

    model: str
    """Directory of a Hugging Face model, its hub id, or a shape without weights: minilm-l6, bert-base, bert-large."""
    output: Annotated[Path, Hidden] = Path()
    train_file: Annotated[Path | None, Hidden] = None
    eval_file: Annotated[Path | None, Hidden] = None
    test_file: Annotated[Path | None, Hidden] = None
    unlabeled_file: Annotated[Path | None, Hidden] = None
    resume: Annotated[bool, Hidden] = False
    dataset: Annotated[str | None, Hidden] = None
    dataset_config: Annotated[str | None, Hidden] = None
    train_split: Annotated[str, Hidden] = "train"
    eval_split: Annotated[str | None, Hidden] = None
    test_split: Annotated[str | None, Hidden] = None
    text_column: Annotated[str, Hidden] = "text"
    text_pair_column: Annotated[str | None, Hidden] = None
    label_column: Annotated[str, Hidden] = "label"
    unfreeze: Annotated[tuple[str, ...], Hidden] = ()
    prefix_cache_memory_gb: Annotated[float, Hidden] = 2.0
    prefix_cache_disk_gb: Annotated[float, Hidden] = 20.0
    prefix_cache_dir: Annotated[Path | None, Hidden] = None
    metric: Annotated[Metric | None, Hidden] = None
    early_stopping: Annotated[int | None, Hidden] = None
    buckets: Annotated[int | None, Hidden] = None
    log_every: Annotated[int, Hidden] = 10
    save_every: Annotated[int | None, Hidden] = None
    num_labels: int = 2
    """Classes of the head, where --model names none."""

    def check_data(self) -> None:
        """Rows are made up."""


@dataclasses.dataclass(frozen=True)
class PlanConfig(StepConfig):
    """Compile the step that `ftjax train` would run for chips that need not be there: does it fit, how fast, how long."""

    topology: str = "v5e:2x4"
    """Chips: v3, v4, v5e, v5p or v6e and a size, such as v5e:2x4; or cpu or gpu, of this machine."""
    examples: int = 10_000
    """Training rows, for the hours of the run."""
    price_per_chip_hour: float | None = None
    """What a chip costs an hour, for the cost of the run."""
    search: bool = False
    """Try batch sizes, --remat and --sharding, and print the fastest that fits."""

    def check(self) -> None:
        """As for training; and the numbers of its own."""
        super().check()
        if self.examples < 1:
            raise InputError(f"--examples {self.examples}: must be at least 1.")
        if self.price_per_chip_hour is not None and not 0 <= self.price_per_chip_hour < math.inf:
            raise InputError(f"--price-per-chip-hour {self.price_per_chip_hour}: must be 0 or a positive number.")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(StepConfig):
    """Time the training step and the whole pipeline on this machine, beside PyTorch if asked."""

    train_file: Path | None = None
    """Rows for the pipeline; --model must then be a directory or hub id. Default: made-up rows of random lengths."""
    text_column: str = "text"
    """Column of the text."""
    label_column: str = "label"
    """Column of the label."""
    steps: int = 10
    """Timed steps."""
    against: Literal["torch"] | None = None
    """torch: PyTorch's counterpart, timed in turn with ours in the same minutes."""
    torch_python: str = sys.executable
    """A Python with torch and transformers for --against torch."""
    profile: Path | None = None
    """Directory for a trace of three steps, which XProf (or TensorBoard's profile plugin) opens."""

    def check_data(self) -> None:
        """Rows are made up, or come from --train-file."""

    def check(self) -> None:
        """As for training; and the numbers of its own."""
        super().check()
        if self.steps < 2:
            raise InputError(f"--steps {self.steps}: must be at least 2, or there is no spread.")


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Show what a choice of --train-parameters means: every parameter's treatment, and the memory that choices need."""

    model: str
    """Directory of a Hugging Face model, or its hub id."""
    train_parameters: str = "all"
    """What trains, as in ftjax train."""
    learning_rate: float = 5e-5
    """Peak learning rate; the table shows each parameter's own."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; never on biases and norms, unless a rule says so."""
    layer_decay: float = 1.0
    """Multiplies the learning rate once for every layer between a parameter and the head."""
    lora_alpha: float = 16.0
    """With lora:R, the low-rank product is multiplied by alpha / R."""
    lora_targets: str = r"attention\.(query|value)"
    """With lora:R, the dense layers that get low-rank matrices."""
    classifier: Literal["pooled", "first-token"] = "pooled"
    """Head, as in ftjax train."""
    num_labels: int = 2
    """Classes of the head that would be added, where the model has none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Operands of dot products; frozen matrices are kept in it."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""


def flag(name: str) -> str:
    """Field name to flag: `batch_size` to `--batch-size`."""
    return "--" + name.replace("_", "-")
