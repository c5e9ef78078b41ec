"""What `ftjax zero-shot` is told, and the checks of it that need neither model nor data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import tyro

from ftjax.config import Augmentation, flag, read_losses
from ftjax.errors import InputError

How = Literal["auto", "similarity", "cloze", "likelihood"]
Descriptions = Mapping[str, tuple[str, ...]]
"""Class name -> what describes it: one text or several."""

GAP = "{label}"
"""Where a template has the class's words."""
TEMPLATES = {"cloze": "{text} It was {label}.", "likelihood": "{text}\nIt was {label}"}


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
    """Texts to calibrate on and to adapt to. Its label column, if any, is not read."""
    output: Path | None = None
    """Directory for predictions.jsonl, result.json and, with --adapt, every round's run and model/."""
    how: How = "auto"
    """similarity: cosine of embeddings (encoders). cloze: which class's word fills the gap of --template (models with a
    masked-language-modelling head). likelihood: of the class's words in --template (decoders). auto: by the model."""
    template: str | None = None
    """For cloze and likelihood, with {text} and {label}. Default: "{text} It was {label}."."""
    calibration: Literal["texts", "none"] = "texts"
    """texts: every class's scores get the same mean and spread over the texts, which are taken to be about as many of each
    class; none: scores as they are."""

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
        if bool(self.text) == (self.test_file is not None or self.adapt):
            raise InputError("Give either texts or --test-file.")
        if not self.text and self.output is None:
            raise InputError("--output DIR is needed with --test-file or --adapt.")
        if self.adapt and self.unlabeled_file is None:
            raise InputError("--adapt needs texts to learn from: give --unlabeled-file.")
        if self.template is not None and not (self.template.count("{text}") == self.template.count(GAP) == 1):
            raise InputError(f"--template {self.template!r}: must have {{text}} and {GAP} once each.")
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
        found: dict[str, tuple[str, ...]] = {}
        if self.descriptions_file is not None:
            found |= read_descriptions(self.descriptions_file)
        for name in self.labels.split(",") if self.labels is not None else ():
            found.setdefault(name.strip(), ())
        for text in self.description:
            name, equals, described = text.partition("=")
            if not equals or (self.labels is not None and name.strip() not in found):
                raise InputError(f"--description {text!r}: must be LABEL=TEXT, with a label of --labels.")
            found[name.strip()] = (*found.get(name.strip(), ()), described)
        found = {name: described or (name.replace("_", " "),) for name, described in found.items()}
        if len(found) < 2:
            raise InputError("Name at least two classes: --labels a,b or --description a=... b=... or --descriptions-file.")
        owner: dict[str, str] = {}
        for name, described in found.items():
            if not all(text.strip() for text in described):
                raise InputError(f"The label {name!r} has an empty description; give it with --description '{name}=...'.")
            for text in described:
                same = " ".join(text.split()).casefold()
                if owner.setdefault(same, name) != name:
                    raise InputError(f"The labels {owner[same]!r} and {name!r} have the same description {text!r}.")
        return found


def read_descriptions(path: Path) -> dict[str, tuple[str, ...]]:
    """{"LABEL": "TEXT" or ["TEXT", ...], ...} of a JSON file; InputError for anything else."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--descriptions-file {path}: cannot be read ({error.strerror}).") from None
    except ValueError:
        raise InputError(f"--descriptions-file {path}: is not JSON in UTF-8.") from None
    texts = {n: [t] if isinstance(t, str) else t for n, t in read.items()} if isinstance(read, dict) else {}
    if not texts or not all(isinstance(t, list) and t and all(isinstance(s, str) for s in t) for t in texts.values()):
        raise InputError(f'--descriptions-file {path}: must be an object such as {{"good": ["a fine film"], "bad": ["dull"]}}.')
    return {name: tuple(described) for name, described in texts.items()}
