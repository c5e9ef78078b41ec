"""What `ftjax zero-shot` is told, and the checks of it that need neither model nor data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import tyro

from ftjax.config import Augmentation, flag, read_losses
from ftjax.descriptions import Descriptions, check_descriptions, check_template, described
from ftjax.errors import InputError

How = Literal["auto", "similarity", "cloze", "likelihood"]


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """Classify without labels: descriptions of the classes are compared with the texts; --adapt then trains on texts alone.

    No label is ever read, except at the very end to score --test-file, if it has any.
    """

    model: str
    """Directory of a Hugging Face model, or its hub id."""
    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to classify, one JSON object a line on stdout; or give --test-file and --output."""
    labels: str | None = None
    """The class names, separated by commas, where their names describe them well enough."""
    description: tuple[str, ...] = ()
    """What describes a class: LABEL=TEXT, as often as wanted; several of a class are averaged."""
    descriptions_file: Path | None = None
    """The same as a JSON file: {"LABEL": ["TEXT", ...], ...}."""
    test_file: Path | None = None
    """Rows to classify, into OUTPUT/predictions.jsonl."""
    unlabeled_file: Path | None = None
    """Texts to calibrate on, also for texts given one by one, and to adapt to. Its label column, if any, is not read."""
    output: Path | None = None
    """Directory for predictions.jsonl, scores.json, result.json and, with --adapt, every round's run and model/."""
    how: How = "auto"
    """similarity: cosine of embeddings (encoders). cloze: which class's word fills the gap of --template (models with a
    masked-language-modelling head). likelihood: of the class's words in --template (decoders). auto: by the model."""
    template: str | None = None
    """For cloze and likelihood, with {text} and {label}. Default: "{text} It was {label}."."""
    calibration: Literal["texts", "none"] = "texts"
    """texts: every class's scores get the same mean and spread over the texts, which are taken to be about as many of each
    class; none: scores as they are."""

    scores_from: tuple[Path, ...] = ()
    """--output of other zero-shot runs, of any model, on the same files: the mean of all scores, each with the same spread,
    decides which texts become labels."""

    adapt: bool = False
    """Train on the texts of --unlabeled-file: the surest predictions become labels, round after round."""
    confident_share: tuple[float, ...] = (0.2,)
    """Share of the texts that become labels in each round, as many of each class."""
    epochs: int = 1
    """Passes over them in a round."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""
    train_parameters: str | None = None
    """What trains, as in ftjax train. Default: all."""
    self_supervised_loss: tuple[str, ...] = ()
    """Losses on the other texts of a round, as in ftjax train, such as consistency or pseudo-label."""
    augmentation: Augmentation = "token-dropout"
    """The other view of a text for consistency and pseudo-label, as in ftjax train."""
    unlabeled_ratio: float | None = None
    """Texts without a label for each one with a label in a batch, as in ftjax train."""
    seed: int = 0
    """Fixes order, dropout and new parameters."""
    batch_size: int = 32
    """Texts at a time."""
    max_length: int = 128
    """Longest text in tokens; longer ones are cut."""
    text_column: str = "text"
    """Column of the text."""
    label_column: str = "label"
    """Column of --test-file's labels, read only to score the finished predictions."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Operands of dot products."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def check(self) -> None:
        """InputError for values that make no sense, alone or together."""
        if self.text and (self.test_file is not None or self.adapt):
            raise InputError("Texts given one by one are classified and no more; leave them out with --test-file or --adapt.")
        if self.text and self.output is not None:
            raise InputError(
                "--output: what texts given one by one are is printed; leave it out, or put them into --test-file."
            )
        if not self.text and self.test_file is None and not self.adapt:
            raise InputError("Give texts, or --test-file with rows to classify; it may be the same file as --unlabeled-file.")
        if not self.text and self.output is None:
            raise InputError("--output DIR is needed with --test-file or --adapt.")
        if self.adapt and self.unlabeled_file is None:
            raise InputError("--adapt needs texts to learn from: give --unlabeled-file.")
        if any(not text.strip() for text in self.text):
            raise InputError("a text is empty: there is nothing to classify.")
        if self.scores_from and self.text:
            raise InputError("--scores-from: other runs' scores are of files; give --test-file or --unlabeled-file.")
        if self.template is not None:
            check_template(self.template)
        if not self.confident_share or not all(0 < share <= 1 for share in self.confident_share):
            raise InputError("--confident-share: must be above 0 and at most 1.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate {self.learning_rate}: must be a positive number, such as 5e-5.")
        if self.max_length < 8:
            raise InputError(f"--max-length {self.max_length}: must be at least 8.")
        read_losses(self.self_supervised_loss, None, "--self-supervised-loss")
        self.descriptions()

    def descriptions(self) -> Descriptions:
        """The classes in the order given and what describes each; InputError where that cannot tell them apart."""
        names = None if self.labels is None else [name.strip() for name in self.labels.split(",")]
        found = described(self.description, self.descriptions_file, names)
        found = {name: texts or (name.replace("_", " "),) for name, texts in found.items()}
        if len(found) < 2:
            raise InputError("Name at least two classes: --labels a,b or --description a=... b=... or --descriptions-file.")
        check_descriptions(found)
        return found
