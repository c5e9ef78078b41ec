"""What a run is told: one dataclass whose field names are the flags, the keys of the saved run config and of --json.

Checks here need no data and no model; they run before anything is read, written or compiled.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ftjax.descriptions import Descriptions, check_descriptions, check_template, described
from ftjax.errors import InputError, did_you_mean
from ftjax.tasks import TASKS, task_class
from ftjax.weight import Weight, parse_weight

Method = Literal["full", "partial", "self-supervised"]
METHODS: tuple[Method, ...] = ("full", "partial", "self-supervised")
Tracker = Literal["wandb", "trackio"]
ExportFormat = Literal["huggingface", "adapter", "stablehlo", "savedmodel"]
TaskName = Literal[*TASKS]  # type: ignore[valid-type]
Augmentation = Literal["token-dropout", "token-mask", "span-deletion", "word-swap", "dropout"]


class Auxiliary(typing.NamedTuple):
    """A self-supervised loss. weight: λ unless one is given. about: texts alone, the classes predicted or the labels given."""

    weight: str
    about: Literal["texts", "classes", "labels"] = "texts"


AUXILIARIES = {
    "masked-lm": Auxiliary("0.1"),
    "causal-lm": Auxiliary("0.1"),
    "contrastive": Auxiliary("0.1"),
    "label-pairs": Auxiliary("1", about="labels"),
    "consistency": Auxiliary("1", about="classes"),
    "pseudo-label": Auxiliary("1", about="classes"),
    "entropy": Auxiliary("0.1", about="classes"),
}
"""--self-supervised-loss. `entropy` is `LOSS` of the module `ftjax.objectives.entropy`, see `ftjax.objective.loss_of`."""
CLASS_LOSSES = tuple(name for name, loss in AUXILIARIES.items() if loss.about == "classes")
LABEL_LOSSES = tuple(name for name, loss in AUXILIARIES.items() if loss.about == "labels")

MOST_SECONDS = 1e6  # what a timer takes
Hidden = tyro.conf.Suppress  # a field that is no flag


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a model. A new head always trains; the log says how many parameters train and what they cost."""

    model: str
    """Directory of a Hugging Face model, its hub id (revision after an @), or demo:minilm and demo:smollm2 (extra demo)."""
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
    """Peak learning rate. 5e-5 suits full fine-tuning, 5e-4 the last layers or low-rank matrices, 1e-3 a head alone."""
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
    text_column: str | None = None
    """Column of the text. Default: text; token-classification: tokens (a list of words, or a text); question-answering:
    question."""
    text_pair_column: str | None = None
    """Column of the second text, for sentence pairs. question-answering: of the context. Default there: context."""
    label_column: str | None = None
    """Column of the label, empty or null where a row has none: names or whole numbers; multi-label: a list of them, or names
    with | between; regression: a number. Default: label; token-classification: tags (one a word: O, B-TYPE or I-TYPE);
    question-answering: answers (as in SQuAD)."""
    task: TaskName = TASKS[0]
    """What is learnt. classification: the one class of a text or a pair. multi-label: which of the classes. regression: a
    number. token-classification: a tag for each word. question-answering: a span of a context. causal-lm: texts, by a decoder.
    masked-lm: texts, by an encoder. dialogue: what the assistant says, in a column messages (role and content) or turns.
    seq2seq: texts (column source) into others (column target), by an encoder and a decoder."""
    from_scratch: bool = False
    """Initialise every parameter: of --model only the configuration and the tokenizer are read."""
    max_target_length: int = 128
    """seq2seq: longest target in tokens, of those given and those written."""
    window_overlap: int | None = None
    """question-answering: tokens that the windows of a context longer than --max-length have in common. Default: a third of
    --max-length."""

    classifier: Literal["pooled", "first-token", "last-token", "mean", "cloze"] | None = None
    """Head: pooled is transformers' BertForSequenceClassification; first-token and last-token are a linear layer on that
    token's last hidden state, mean one on the average of all, which suits sentence encoders; cloze has none of its own but asks
    the language model which class's word (--description) stands in --template after the text. Default: the model's own, pooled
    for encoders, last-token for decoders."""
    template: str | None = None
    """cloze: what every text is put into, with {text} and {label}; a long text is cut, the template never. Default: "{text} It
    was {label}."; of a decoder, whose template must end with {label}, "{text}\\nIt was {label}"."""
    description: tuple[str, ...] = ()
    """cloze: the word for a class, one token of the model: LABEL=WORD, as often as wanted; several of a class are averaged."""
    descriptions_file: Path | None = None
    """cloze: the same as a JSON file: {"LABEL": ["WORD", ...], ...}."""
    self_supervised_loss: tuple[str, ...] = ("masked-lm",)
    """L_self, one or more of masked-lm (encoders), causal-lm (decoders), contrastive, label-pairs, consistency, pseudo-label
    and entropy, each with a weight of its own if wanted: masked-lm=0.1 consistency=linear:0->1."""
    self_supervised_weight: str | None = None
    """λ of the losses that are given without one: a number, or a line over the run such as linear:0->1.
    Default: 0.1 for masked-lm, causal-lm, contrastive and entropy, 1 for the others."""
    supervised_weight: float = 1.0
    """Weight of the labelled term; 0 leaves it out."""
    unlabeled_ratio: float | None = None
    """Rows without a label for each one with a label, in every batch; the labelled ones come again as often as that takes.
    Default: as there are, but at most 3 (self-supervised)."""
    labels_per_class: int | None = None
    """Use the labels of so many rows a class, drawn by --seed; the others count as rows without a label where the method
    takes such, and are left out elsewhere."""
    mask_probability: float = 0.15
    """Share of the tokens that masked language modelling predicts."""
    mask_whole_words: bool = False
    """Mask whole words (WordPiece vocabularies)."""
    mask_once: bool = False
    """Mask a row in the same way at every step."""
    augmentation: Augmentation = "token-dropout"
    """The other view of a row for consistency and pseudo-label; dropout changes the model's dropout only."""
    augmentation_probability: float = 0.1
    """Share of the tokens that the augmentation changes."""
    confidence: float | None = None
    """Probability from which on a prediction is a target. Default: 0 for consistency, 0.95 for pseudo-label."""
    sharpening: float = 0.85
    """Temperature of consistency's targets; below 1 sharpens."""
    contrastive_temperature: float = 0.05
    """Temperature of the contrastive loss."""
    teacher_decay: float = 0.0
    """Above 0, the targets of consistency and pseudo-label come from a mean teacher that keeps so much of itself at every
    step, such as 0.99."""
    teacher_scores: Path | None = None
    """A file that ftjax predict has written of the rows without a label: the targets of consistency and pseudo-label are then
    what that model says (distillation). Rows with a label need not be in it, and none needs to have a label."""
    adapt_epochs: int = 0
    """Before all this, so many epochs of adaptation to the texts: by --adapt-loss alone, on all rows, labels aside."""
    adapt_loss: tuple[str, ...] = ("masked-lm",)
    """The losses of the adaptation, as in --self-supervised-loss; label-pairs is SetFit's, on the rows with a label."""
    adapt_learning_rate: float | None = None
    """Peak learning rate of the adaptation. Default: --learning-rate."""
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
    lora_dropout: float = 0.0
    """With lora:R, dropout rate of what goes into the low-rank matrices."""
    dora: bool = False
    """With lora:R, also train a magnitude for each output of these layers (DoRA, Liu et al., 2024)."""
    base_bits: Literal[4] | None = None
    """Keep the kernels of the layers that stay frozen in 4 bits (NF4, Dettmers et al., 2023) instead of --precision."""
    adapter: str | None = None
    """Start from --model with this adapter in PEFT's format, a directory or hub id: lora:R of its rank trains it further,
    any other choice merges it first."""
    export_format: Literal["huggingface", "adapter"] = "huggingface"
    """What --output/model is: a whole model with low-rank matrices merged, or with lora:R an adapter in PEFT's format."""
    packing: bool = False
    """Let short texts share rows, in tasks with classes, numbers or tags: hardly any padding, and one length to compile.
    --batch-size is then how many texts an update has on average."""
    vocabulary: Literal["all", "seen"] = "all"
    """seen: set the embeddings of words that no text of the run has aside and put them back in --output/model, with the weight
    decay that is all they would have had. Less time and memory an update; the model is the same, but for rounding."""
    scan_layers: bool = False
    """Run a decoder's layers as one loop, compiled once: how long compiling takes does not depend on their number."""
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
    unroll_accumulation: bool = False
    """Compile every microbatch by itself instead of one as a loop: what one sends is then hidden behind what another computes,
    which on several TPUs saves some percent of a step, for some of the memory saved and several times the compilation."""
    hidden_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What layers hand on and keep for the backward pass; sums, norms and activations are computed in float32. auto:
    --precision on TPUs and GPUs, where it saves time and memory; float32 on CPUs, where it costs time."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """In what gradients are sent to be summed over devices that keep parts of parameters (zero1, fsdp); bfloat16 halves it."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again instead of keeping it, which takes less memory and more time: nothing; all
    inside a layer but the outputs of its dense layers (dots); or all inside a layer (full). For accelerators: on CPUs the
    compiler keeps most of it all the same."""
    mesh: str = "auto"
    """How devices share the work: data=8, data=2,fsdp=4 or fsdp=4,tensor=2. data and fsdp split the batch; over fsdp all
    parameters are in parts too, gathered layer by layer; tensor splits heads and features within layers. auto: all devices
    along data, or along fsdp where the model is too large for that."""
    sharding: Literal["zero1", "replicated"] = "zero1"
    """Over the data axis, without fsdp: zero1 (each device keeps and updates a part of what trains) or replicated (all)."""
    parallel: Literal["jit", "pmap"] = "jit"
    """What compiles the step for several devices; pmap keeps everything whole on each of them."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, where several processes share a run and JAX cannot find that out by itself, as it can on Cloud
    TPU VMs, in SLURM steps and on GKE. --output must then be a directory that all of them see."""
    process_count: int | None = None
    """How many processes share the run, with --coordinator-address."""
    process_index: int | None = None
    """Which of them this is, from 0, with --coordinator-address."""
    process_timeout: int = 300
    """Seconds to wait for the other processes at the start. Later one that is not heard of for as long, or 100 s, is lost."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor keeps means of rows and columns in the place of AdamW's two moments: memory for moments all but vanishes."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of AdamW's first moment; the second needs float32."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; never on biases and norms."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns that off."""
    metric: str | None = None
    """Chooses the best epoch: loss or another of the task's scores, as result.json names them, such as accuracy or f1. Default:
    the one that README lists first, or loss where there are no labels."""
    early_stopping: int | None = None
    """Stop after this many evaluations without a better --metric."""
    buckets: int | None = None
    """Into how many lengths rows are padded; each costs one compilation. Default: up to 8, whatever makes padding and
    compiling together cheapest."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int | None = None
    """Steps between checkpoints, besides one at the end of every epoch."""
    tracker: tuple[Tracker, ...] = ()
    """Besides TensorBoard, send the numbers of metrics.jsonl to wandb (Weights & Biases), trackio or both."""
    tracker_project: str = "ftjax"
    """What --tracker calls the project."""
    push_to_hub: str | None = None
    """At the end, upload --output/model to this repository of the Hugging Face hub, OWNER/NAME; with the token of hf auth
    login or HF_TOKEN."""
    private: bool = False
    """Make the repository of --push-to-hub private, if it is new."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop the run, or skip that step's update and count it."""
    write_timeout: float = 1800.0
    """Seconds that a write to --output may take before the run gives up: a file system that does not answer."""
    labels_from_model: Annotated[bool, Hidden] = False
    """Whether a model made the labels, as in ftjax zero-shot: scores are then agreement with it, and nobody knows more."""

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
        for name in self.tracker:
            if importlib.util.find_spec(name) is None:
                raise InputError(f"--tracker {name}: not installed; pip install 'ftjax[{name}]'.")
        plain = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
        counts = ("epochs", "batch_size", "gradient_accumulation", "buckets", "log_every", "save_every", "early_stopping")
        for name in (*counts, "labels_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{flag(name)} {value}: must be at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate {self.learning_rate}: must be a positive number, such as 5e-5.")
        for name in ("warmup_steps", "weight_decay", "max_gradient_norm", "supervised_weight", "seed", "adapt_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{flag(name)} {value}: must be 0 or a positive number.")
        if self.packing and self.method == "self-supervised":
            raise InputError("--packing: is for labels alone; leave it out, or take --method full or partial.")
        if self.vocabulary == "seen" and self.optimizer != "adamw":
            raise InputError(f"--vocabulary seen: --optimizer {self.optimizer} changes rows by others; leave one of them out.")
        if self.packing and self.classifier == "cloze":
            raise InputError("--packing: a cloze reads one text a row; leave it out, or take another --classifier.")
        if self.classifier == "cloze":
            if self.task != TASKS[0]:
                raise InputError(f"--classifier cloze: is for --task {TASKS[0]}, not {self.task}.")
            if self.template is not None:
                check_template(self.template)
            check_descriptions(self.label_words)
        elif given := [name for name in CLOZE if getattr(self, name) != plain[name]]:
            raise InputError(f"{flag(given[0])} needs --classifier cloze.")
        if not 0 < self.write_timeout <= MOST_SECONDS:
            raise InputError(f"--write-timeout {self.write_timeout}: must be a positive number of seconds, such as 1800.")
        for name in ("dropout", "lora_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{flag(name)} {value}: must be at least 0 and below 1.")
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
        if self.method == "full" and (given := [name for name in LOW_RANK if getattr(self, name) != plain[name]]):
            raise InputError(
                f"{flag(given[0])} needs --method partial or self-supervised: --method full trains all parameters."
            )
        if self.adapter is not None and self.from_scratch:
            raise InputError("--from-scratch starts from new parameters, beside which an adapter means nothing.")
        if self.unfreeze and self.method == "full":
            raise InputError("--unfreeze needs --method partial or self-supervised: --method full trains all from the start.")
        for name in ("mask_probability", "augmentation_probability"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be between 0 and 1.")
        for name in ("sharpening", "contrastive_temperature", "unlabeled_ratio", "adapt_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{flag(name)} {value}: must be a positive number.")
        for name in ("confidence", "teacher_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{flag(name)} {value}: must be at least 0 and below 1.")
        if self.max_length < 8:
            raise InputError(f"--max-length {self.max_length}: must be at least 8.")
        if self.moment_dtype != "float32" and self.optimizer != "adamw":
            raise InputError(
                f"--moment-dtype {self.moment_dtype}: is for --optimizer adamw; {self.optimizer} has no first moment."
            )
        if self.batch_size % self.gradient_accumulation:
            raise InputError(
                f"--batch-size {self.batch_size} is not a multiple of --gradient-accumulation {self.gradient_accumulation}."
            )
        if self.max_target_length < 1:
            raise InputError(f"--max-target-length {self.max_target_length}: must be at least 1.")
        if not self.adapt_epochs and self.adapt_loss != TrainConfig.adapt_loss:
            raise InputError("--adapt-loss: there is no adaptation; say how long it is with --adapt-epochs.")
        if self.from_scratch and (self.method == "partial" or self.adapt_epochs):
            raise InputError("--from-scratch: a model without weights has nothing to keep or adapt; leave it to --method full.")
        if self.method == "full" and self.train_parameters not in (None, "all"):
            raise InputError(f"--method full trains all parameters; for {self.train_parameters!r} use --method partial.")
        if self.method == "partial" and self.train_parameters == "all":
            raise InputError("--method partial with --train-parameters all is --method full.")
        if self.method != "self-supervised":
            for name in SELF_SUPERVISED:
                adapts = self.adapt_epochs and name in ADAPTATION
                adapts |= self.task == "masked-lm" and name.startswith("mask_")
                if getattr(self, name) != plain[name] and not adapts:
                    way = " or --adapt-epochs" if name in ADAPTATION else ""
                    raise InputError(f"{flag(name)} needs --method self-supervised{way}.")
        losses = self.losses, read_losses(self.adapt_loss, "1", "--adapt-loss")
        if any(name in CLASS_LOSSES for name, _ in losses[1]):
            raise InputError(
                f"--adapt-loss takes masked-lm, causal-lm, contrastive and label-pairs, not {' '.join(self.adapt_loss)}."
            )
        for name in ("teacher_decay", "teacher_scores"):
            if getattr(self, name) and not any(loss in ("consistency", "pseudo-label") for loss, _ in losses[0]):
                raise InputError(f"{flag(name)} needs consistency or pseudo-label among --self-supervised-loss.")
        if self.teacher_decay and self.teacher_scores:
            raise InputError("--teacher-decay and --teacher-scores are two teachers; take one.")
        if self.metric is not None and self.metric not in (known := task_class(self.task).metrics):
            raise InputError(
                f"--metric {self.metric}: --task {self.task} has {', '.join(known)}.{did_you_mean(self.metric, known)}"
            )
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
    def label_words(self) -> Descriptions:
        """The words of a cloze, by class."""
        return described(self.description, self.descriptions_file)

    @property
    def losses(self) -> tuple[tuple[str, Weight], ...]:
        """The self-supervised losses and their weights λ; none of the other methods."""
        if self.method != "self-supervised":
            return ()
        return read_losses(self.self_supervised_loss, self.self_supervised_weight, "--self-supervised-loss")

    @property
    def adaptation(self) -> TrainConfig:
        """The run that adapts the model to the texts before this one trains it, in a directory of its own below --output."""
        plain: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
        return dataclasses.replace(
            self,
            output=self.output / "adaptation",
            classifier=None if self.classifier == "cloze" else self.classifier,  # texts as they are
            **{name: plain[name] for name in CLOZE},
            method="self-supervised",
            train_parameters=None,
            unfreeze=(),
            **{name: plain[name] for name in LOW_RANK},
            epochs=self.adapt_epochs,
            learning_rate=self.adapt_learning_rate or self.learning_rate,
            self_supervised_loss=self.adapt_loss,
            self_supervised_weight="1",
            supervised_weight=0.0,
            unlabeled_ratio=None,
            teacher_decay=0.0,
            teacher_scores=None,
            layer_decay=1.0,
            test_file=None,
            test_split=None,
            metric=None,
            early_stopping=None,
            vocabulary="all",  # words are predicted
            adapt_epochs=0,
            adapt_loss=TrainConfig.adapt_loss,
            push_to_hub=None,
        )

    @property
    def after_adaptation(self) -> TrainConfig:
        """The run itself, which starts from the adapted model."""
        if not self.adapt_epochs:
            return self
        model = str(self.adaptation.output / "model")
        unlabeled = self.unlabeled_file if self.method == "self-supervised" else None
        after = dataclasses.replace(self, model=model, adapter=None, unlabeled_file=unlabeled)
        return dataclasses.replace(after, adapt_epochs=0, adapt_loss=TrainConfig.adapt_loss)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> TrainConfig:
        """The settings of a run from its config.json; keys that are no setting are left aside.

        Raises InputError for a value that the setting cannot have, and where one is missing that has no default.
        """
        values: dict[str, Any] = {}
        for name, kind in typing.get_type_hints(TrainConfig).items():
            if name in saved:
                if not _is_of(saved[name], kind):
                    raise InputError(f"config.json of the run: {name} is {str(saved[name])[:100]!r}, which it cannot be.")
                value = saved[name]
                path = isinstance(value, str) and (kind is Path or Path in typing.get_args(kind))
                values[name] = Path(value) if path else tuple(value) if isinstance(value, list) else value
        if missing := {"model", "output"} - values.keys():
            raise InputError(f"config.json of the run: lacks {min(missing)}.")
        return TrainConfig(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, paths as strings."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a JSON value can be one of a field's type."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, each) for each in inside)
    if origin is Literal:
        return value in inside
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is_of(each, inside[0]) for each in value)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, str if kind is Path else kind)


SELF_SUPERVISED = (
    *("unlabeled_file", "self_supervised_loss", "self_supervised_weight", "supervised_weight", "unlabeled_ratio"),
    *("mask_probability", "mask_whole_words", "mask_once", "augmentation", "augmentation_probability", "confidence"),
    *("sharpening", "contrastive_temperature", "teacher_decay", "teacher_scores"),
)
"""Settings that only --method self-supervised has a use for."""
LOW_RANK = ("lora_dropout", "dora", "base_bits", "export_format")
"""Settings that only a choice of what trains has a use for."""
CLOZE = ("template", "description", "descriptions_file")
"""Settings that only --classifier cloze has a use for."""
ADAPTATION = ("unlabeled_file", "mask_probability", "mask_whole_words", "mask_once", "contrastive_temperature")
"""Those of them that an adaptation before any method uses."""


def read_losses(asked: Sequence[str], default: str | None, where: str) -> tuple[tuple[str, Weight], ...]:
    """NAME or NAME=WEIGHT each, to names and weights; InputError, naming the flag, for what is unknown or given twice."""
    found: dict[str, Weight] = {}
    for text in asked:
        name, equals, weight = text.partition("=")
        if name not in AUXILIARIES:
            near = did_you_mean(name, AUXILIARIES)
            raise InputError(f"{where} {name}: unknown; known are {', '.join(AUXILIARIES)}.{near}")
        if name in found:
            raise InputError(f"{where}: {name} is given twice.")
        chosen = weight if equals else str(default if default is not None else AUXILIARIES[name].weight)
        found[name] = parse_weight(chosen, f"{where} {name}" if equals else "--self-supervised-weight")
    return tuple(found.items())


def listed(convert: Callable[[str], Any], metavar: str) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """A flag's values, separated by commas or spaces."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=lambda given: tuple(convert(value) for text in given for value in text.split(",") if value),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def read_method(name: str) -> Method:
    """A method's name; ValueError for another one."""
    if name not in METHODS:
        raise ValueError(f"{name!r} is no method; known are {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
    return name


Rates = Annotated[tuple[float, ...], listed(float, "FLOAT,...")]


@dataclasses.dataclass(frozen=True)
class CompareConfig(TrainConfig):
    """Fine-tune by several methods and compare them; with several learning rates or seeds, a sweep over all of them.

    Each run has a directory of its own below --output. A sweep runs every method with every learning rate and seed, chooses
    the best setting by its mean score on the evaluation rows, and scores the test rows with that one alone, once.
    """

    method: Annotated[Method, tyro.conf.Suppress] = "full"  # set for each run in turn
    push_to_hub: Annotated[str | None, tyro.conf.Suppress] = None  # ftjax export shares the best of them
    private: Annotated[bool, tyro.conf.Suppress] = False
    methods: Annotated[tuple[Method, ...], listed(read_method, "METHOD,...")] = METHODS
    """Which methods, in which order. --train-parameters is for partial; the self-supervised flags for that method."""
    learning_rate: Rates = (5e-5,)  # type: ignore[assignment]  # a run has one of them
    """Peak learning rate of AdamW, or several, which are tried in turn."""
    partial_learning_rate: Rates = ()
    """Learning rates of partial, which wants larger ones the less it trains. Default: --learning-rate."""
    seeds: Annotated[tuple[int, ...], listed(int, "INT,...")] = ()
    """Seeds to run every setting with. Default: --seed alone."""

    def rates(self, method: Method) -> tuple[float, ...]:
        """The learning rates to try a method with."""
        return (method == "partial" and self.partial_learning_rate) or self.learning_rate

    @property
    def is_sweep(self) -> bool:
        """Whether a method is run more than once."""
        return len(self.seeds) > 1 or any(len(self.rates(method)) > 1 for method in self.methods)

    def runs(self, method: Method) -> list[TrainConfig]:
        """The settings of a method's runs, seed by seed for each learning rate in turn."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        values["method"] = method
        plain = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
        if method != "partial":
            values |= {"train_parameters": None, "unfreeze": (), **{name: plain[name] for name in LOW_RANK}}
        if method != "self-supervised":
            adapts = ADAPTATION if self.adapt_epochs else ()
            values |= {name: plain[name] for name in SELF_SUPERVISED if name not in adapts}
        found = []
        for rate in self.rates(method):
            for seed in self.seeds or (self.seed,):
                name = f"{method}-lr-{rate:g}-seed-{seed}" if self.is_sweep else method
                found.append(TrainConfig(**values | {"learning_rate": rate, "seed": seed, "output": self.output / name}))
        return found

    def check(self) -> None:
        """InputError for values that make no sense for one of the runs, before any of them runs."""
        for name in ("methods", "learning_rate", "partial_learning_rate", "seeds"):
            given = getattr(self, name)
            if len(set(given)) < len(given) or (not given and name in ("methods", "learning_rate")):
                raise InputError(f"{flag(name)}: name each one once.")
        settings = sum(len(self.rates(method)) for method in self.methods)
        if self.is_sweep and settings > 1 and not self.has_evaluation:
            raise InputError("A sweep chooses by the rows to evaluate on: give --eval-file or --eval-split.")
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"--output {self.output}: a file, not a directory.")
        ours = (*METHODS, "report.html", "sweep.json")
        sweep = tuple(f"{method}-lr-" for method in METHODS)
        if self.output.is_dir() and (
            others := [p.name for p in self.output.iterdir() if p.name not in ours and not p.name.startswith(sweep)]
        ):
            raise InputError(
                f"--output {self.output}: holds {others[0]}, which is not of a comparison; choose another directory."
            )
        for method in self.methods:
            for run in self.runs(method):
                run.check()


@dataclasses.dataclass(frozen=True)
class StepConfig(TrainConfig):
    """What of a run's settings decides the step that is compiled: those of `ftjax train` without files and outputs."""

    model: str
    """Directory of a Hugging Face model, its hub id, or a shape without weights: minilm-l6, bert-base, bert-large,
    llama-1b (Llama 3.2), llama-8b (Llama 3)."""
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
    text_column: Annotated[str | None, Hidden] = None
    text_pair_column: Annotated[str | None, Hidden] = None
    label_column: Annotated[str | None, Hidden] = None
    window_overlap: Annotated[int | None, Hidden] = None
    labels_per_class: Annotated[int | None, Hidden] = None
    template: Annotated[str | None, Hidden] = None
    description: Annotated[tuple[str, ...], Hidden] = ()
    descriptions_file: Annotated[Path | None, Hidden] = None
    unlabeled_ratio: Annotated[float | None, Hidden] = None
    adapt_epochs: Annotated[int, Hidden] = 0
    adapt_loss: Annotated[tuple[str, ...], Hidden] = ("masked-lm",)
    adapt_learning_rate: Annotated[float | None, Hidden] = None
    coordinator_address: Annotated[str | None, Hidden] = None
    process_count: Annotated[int | None, Hidden] = None
    process_index: Annotated[int | None, Hidden] = None
    process_timeout: Annotated[int, Hidden] = 300
    unfreeze: Annotated[tuple[str, ...], Hidden] = ()
    adapter: Annotated[str | None, Hidden] = None
    export_format: Annotated[Literal["huggingface", "adapter"], Hidden] = "huggingface"
    prefix_cache_memory_gb: Annotated[float, Hidden] = 2.0
    prefix_cache_disk_gb: Annotated[float, Hidden] = 20.0
    prefix_cache_dir: Annotated[Path | None, Hidden] = None
    metric: Annotated[str | None, Hidden] = None
    early_stopping: Annotated[int | None, Hidden] = None
    packing: Annotated[bool, Hidden] = False
    vocabulary: Annotated[Literal["all", "seen"], Hidden] = "all"
    buckets: Annotated[int | None, Hidden] = None
    log_every: Annotated[int, Hidden] = 10
    save_every: Annotated[int | None, Hidden] = None
    tracker: Annotated[tuple[Tracker, ...], Hidden] = ()
    tracker_project: Annotated[str, Hidden] = "ftjax"
    write_timeout: Annotated[float, Hidden] = 1800.0
    push_to_hub: Annotated[str | None, Hidden] = None
    private: Annotated[bool, Hidden] = False
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
    text_column: str | None = None
    """Column of the text. Default: text."""
    label_column: str | None = None
    """Column of the label. Default: label."""
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
    lora_dropout: float = 0.0
    """With lora:R, dropout rate of what goes into the low-rank matrices."""
    dora: bool = False
    """With lora:R, also train a magnitude for each output of these layers."""
    base_bits: Literal[4] | None = None
    """Keep the kernels of the layers that stay frozen in 4 bits."""
    classifier: Literal["pooled", "first-token", "last-token", "mean"] | None = None
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
