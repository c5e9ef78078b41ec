"""Settings -> the terms of the objective: L, λ·L_self or both."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, Self

from ftjax.config import CLASS_LOSSES, LABEL_LOSSES, TrainConfig
from ftjax.errors import InputError
from ftjax.models import Model
from ftjax.objectives import Loss, Objective, Term
from ftjax.objectives.augment import Augmentation, Identity, SpanDeletion, TokenDropout, WordSwap
from ftjax.objectives.consistency import Consistency
from ftjax.objectives.contrastive import DropoutPairs, LabelPairs
from ftjax.objectives.masked_lm import MaskedLM, wordpiece_continuations
from ftjax.objectives.pseudo_label import PseudoLabel
from ftjax.objectives.schedule import over
from ftjax.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What losses and tasks must know of the tokenizer. continuations: see `ftjax.objectives.masked_lm.MaskedLM`. decode:
    tokens to text.
    """

    pad_token_id: int
    mask_token_id: int | None
    special_ids: tuple[int, ...]
    continuations: bytes
    decode: Callable[[Sequence[int]], str] = str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> Self:
        """What they must know of this one, for a model of so many ids."""
        return cls(
            pad_token_id=tokenizer.pad_token_id or 0,
            mask_token_id=tokenizer.mask_token_id,
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
            continuations=wordpiece_continuations(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), vocab_size),
            decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
        )


def objective(config: TrainConfig, task: Task, vocabulary: Vocabulary, model: Model, *, labeled: bool, steps: int) -> Objective:
    """The terms that the settings ask for. labeled: whether any row has a label; L is left out otherwise. Other rows may have a
    teacher's scores (`config.teacher_scores`).

    Raises InputError where nothing is left to learn from, or a term cannot work with this model and these rows.
    """
    terms: list[Term] = []
    if labeled and config.supervised_weight:
        terms.append(Term(task.name.replace("-", "_"), config.supervised_weight, task.loss(model)))
    for name, weight in config.losses:
        if name in (*CLASS_LOSSES, *LABEL_LOSSES) and not task.row_classes:
            raise InputError(f"--self-supervised-loss {name} is about classes of rows, which --task {task.name} does not have.")
        if name in (*CLASS_LOSSES, *LABEL_LOSSES) and not (labeled or (config.teacher_scores and name in CLASS_LOSSES)):
            raise InputError(f"--self-supervised-loss {name} needs some rows with a label, and there are none.")
        if not weight.is_zero:
            loss = loss_of(name, config, vocabulary, model)
            terms.append(Term(name.replace("-", "_"), over(weight, steps), loss))
    if not terms:
        raise InputError("No row has a label and no self-supervised loss has a weight: there is nothing to learn from.")
    return tuple(terms)


class Masking(Protocol):
    """The settings of masked language modelling."""

    @property
    def model(self) -> str: ...
    @property
    def mask_probability(self) -> float: ...
    @property
    def mask_whole_words(self) -> bool: ...
    @property
    def mask_once(self) -> bool: ...


def masked_lm(config: Masking, vocabulary: Vocabulary, model: Model) -> MaskedLM:
    """InputError without a mask token, or where whole words are asked for and cannot be told."""
    if vocabulary.mask_token_id is None:
        raise InputError(f"{config.model}: its tokenizer has no mask token, which masked language modelling needs.")
    if config.mask_whole_words and not any(vocabulary.continuations):
        raise InputError(f"{config.model}: --mask-whole-words needs a WordPiece vocabulary (tokens such as ##ing).")
    return MaskedLM(
        model,
        vocabulary.mask_token_id,
        vocabulary.special_ids,
        config.mask_probability,
        whole_word=config.mask_whole_words,
        static=config.mask_once,
        continuations=vocabulary.continuations if config.mask_whole_words else b"",
    )


def augmentation(config: TrainConfig, vocabulary: Vocabulary, template: tuple[int, int]) -> Augmentation:
    """The other view of a row, whose template stays as it is."""
    special, probability, pad = vocabulary.special_ids, config.augmentation_probability, vocabulary.pad_token_id
    match config.augmentation:
        case "dropout":
            return Identity()
        case "token-dropout":
            return TokenDropout(special, probability, pad_token_id=pad, template=template)
        case "token-mask":
            if vocabulary.mask_token_id is None:
                raise InputError(f"{config.model}: its tokenizer has no mask token; take --augmentation token-dropout.")
            return TokenDropout(special, probability, vocabulary.mask_token_id, pad, template)
        case "span-deletion":
            return SpanDeletion(special, probability, pad, template)
        case "word-swap":
            return WordSwap(special, probability, template)


def consistency(config: TrainConfig, vocabulary: Vocabulary, model: Model) -> Loss:
    """UDA's, on rows without a label."""
    sure = 0.0 if config.confidence is None else config.confidence
    return Consistency(model, augmentation(config, vocabulary, model.template), config.sharpening, sure)


def pseudo_label(config: TrainConfig, vocabulary: Vocabulary, model: Model) -> Loss:
    """FixMatch's, on rows without a label."""
    sure = 0.95 if config.confidence is None else config.confidence
    return PseudoLabel(model, augmentation(config, vocabulary, model.template), threshold=sure)


FROM_SETTINGS: dict[str, Callable[[TrainConfig, Vocabulary, Model], Loss]] = {
    "masked-lm": masked_lm,
    "contrastive": lambda config, vocabulary, model: DropoutPairs(model, temperature=config.contrastive_temperature),
    "label-pairs": lambda config, vocabulary, model: LabelPairs(model),
    "consistency": consistency,
    "pseudo-label": pseudo_label,
}
"""The self-supervised losses that settings have a say in, or that share a module."""


def loss_of(name: str, config: TrainConfig, vocabulary: Vocabulary, model: Model) -> Loss:
    """The self-supervised loss of a name in `config.AUXILIARIES`: made from settings, or else `LOSS` of its module, of the
    model alone.
    """
    if name in FROM_SETTINGS:
        return FROM_SETTINGS[name](config, vocabulary, model)
    return importlib.import_module(f"ftjax.objectives.{name.replace('-', '_')}").LOSS(model)
