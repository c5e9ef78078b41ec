"""Rows of text -> token ids, and label names -> numbers."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ftjax.data.files import Rows
from ftjax.data.tables import listed
from ftjax.errors import InputError, did_you_mean, refusing
from ftjax.launch import one_heap
from ftjax.objectives import NO_LABEL, has_label
from ftjax.pretrained import gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK = 4096  # texts a tokenizer call: bounds memory on large files


class Pieces:
    """Arrays end to end, sliced as if they were one; of those that are mapped files only what a slice asks for is read.

    A slice lies in one of them, as the tokens of a row do.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = tuple(arrays)
        self.ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    def __getitem__(self, where: slice) -> np.ndarray:
        number = int(np.searchsorted(self.ends, where.start, side="right"))
        before = self.ends[number] - len(self.arrays[number])
        return self.arrays[number][where.start - before : where.stop - before]


def end_to_end(*parts: np.ndarray | Pieces) -> Any:
    """One array, or `Pieces` where there are any among the parts."""
    if not any(isinstance(part, Pieces) for part in parts):
        return np.concatenate(parts)  # type: ignore[arg-type]
    return Pieces([array for part in parts for array in arrays_of(part)])


def arrays_of(part: np.ndarray | Pieces) -> tuple[np.ndarray, ...]:
    """The arrays that hold what is end to end."""
    return part.arrays if isinstance(part, Pieces) else (part,)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tokenised rows, stored end to end.

    tokens, token_types: int32 (all tokens,); row i is [starts[i], starts[i + 1]).
    labels: as in a batch (see `ftjax.objectives.Batch`), (rows, ...); or, where `per_token`, int32 (all tokens,).
    truncated, empty: how many rows were cut to max_length, and how many had no text.
    spans: int32 (all tokens, 2), the characters [start, end) of the text, or of the second of a pair, that each token stands
        for; an empty span where it stands for none. rows: int64 (rows,), where several examples are windows of one row as
        it was read, the number of that row. Both only where they were asked for.
    teacher_scores: another model's probabilities of the classes, float32 (rows, classes), where it teaches.

    Of training rows that several processes share, what has an item a token is `Pieces`, see `ftjax.shares`.
    """

    tokens: np.ndarray
    token_types: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    truncated: int
    empty: int
    per_token: bool = False
    spans: np.ndarray | None = None
    rows: np.ndarray | None = None
    teacher_scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 (rows,)."""
        return np.diff(self.starts)

    def at(self, row: int) -> slice:
        """Where the tokens of a row are."""
        return slice(self.starts[row], self.starts[row + 1])

    @functools.cached_property
    def labeled(self) -> np.ndarray:
        """Which rows have a label, bool (rows,)."""
        given = has_label(self.labels)
        return np.logical_or.reduceat(given, self.starts[:-1]) if self.per_token else given

    def knowing(self, labeled: np.ndarray) -> Self:
        """These examples, whose labels need not be read to know which rows have any."""
        vars(self)["labeled"] = labeled  # as `cached_property` does
        return self


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a directory or a GGUF file; InputError where there is none. Code beside it is never run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if one_heap() else "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no "PyTorch was not found": none is needed
    from transformers import AutoTokenizer

    if gguf.is_gguf(directory):
        return _with_padding(gguf.tokenizer(directory))
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise InputError(f"{directory}: no tokenizer; expected tokenizer.json or vocab.txt beside config.json.")
    with refusing(f"{directory}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast:
        raise InputError(f"{directory}: needs tokenizer.json (a fast tokenizer); this one has none.")
    return _with_padding(tokenizer)


def _with_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with a token for padding: the one that ends texts, where it has none. What is padding, the mask tells."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def label_names(rows: Sequence[Rows]) -> tuple[str, ...]:
    """The class names in the order of their numbers: a data set's own order, numbers by value, other names by alphabet."""
    if declared := next((r.label_names for r in rows if r.label_names), None):
        return declared
    names = {name for r in rows for name in r.labels or () if name is not None}
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int if numeric else None))


def encode(rows: Rows, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...], max_length: int) -> Examples:
    """Tokenise rows, cutting each to max_length tokens; InputError for a label that is not among `labels`."""
    numbers = label_numbers(rows, labels)
    return dataclasses.replace(tokenized(rows.texts, rows.pairs, tokenizer, max_length), labels=numbers)


def label_numbers(rows: Rows, labels: tuple[str, ...]) -> np.ndarray:
    """Class numbers, int32 (rows,), -100 where a row has no label; InputError for a label that is not among `labels`."""
    number = {name: i for i, name in enumerate(labels)}
    given: Sequence[str | None] = rows.labels or [None] * len(rows.texts)
    for row, name in enumerate(given, start=1):
        if name is not None and name not in number:
            raise InputError(
                f"{rows.source}: row {row} has the label {name!r}, which training has not seen; known: {listed(labels)}."
                f"{did_you_mean(name, labels)}"
            )
    return np.array([NO_LABEL if name is None else number[name] for name in given], np.int32)


def tokenized(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    *,
    around: tuple[Sequence[int], Sequence[int]] | None = None,
    spans: bool = False,
    overlap: int | None = None,
) -> Examples:
    """The texts, or pairs of texts, as examples without labels, each cut to max_length tokens.

    A text without a token, where the tokenizer adds none of its own, gets the one that begins or ends texts.
    around: token ids to put before and after every text instead of the tokenizer's own special ones; they are never cut.
    spans: say what characters each token stands for. overlap: cut nothing but make an example of every window of the
    second text, which has so many tokens in common with the one before.
    """
    ids: list[list[int]] = []
    types: list[list[int]] = []
    places: list[tuple[int, int]] = []
    rows: list[int] = []
    truncated = 0
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    nothing = next((token for token in ends if token is not None), 0)
    how: dict[str, Any] = {"truncation": True}
    before, after = ([*part] for part in around or ((), ()))
    if around is not None:
        how["add_special_tokens"] = False
        max_length -= len(before) + len(after)
    if overlap is not None:
        how = {"truncation": "only_second", "stride": overlap, "return_overflowing_tokens": True}
    for start in range(0, len(texts), CHUNK):
        with refusing("The model's tokenizer fails on these texts"):
            encoded: Any = tokenizer(
                texts[start : start + CHUNK],
                None if pairs is None else pairs[start : start + CHUNK],
                max_length=max_length,
                return_token_type_ids=True,
                **how,
            )
        ids += [[*before, *row, *after] or [nothing] for row in encoded["input_ids"]]
        types += [[0] * len(before) + row + [0] * len(after) or [0] for row in encoded["token_type_ids"]]
        if overlap is None:
            truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        else:
            rows += [start + row for row in encoded["overflow_to_sample_mapping"]]
        if spans:
            text = 0 if pairs is None else 1
            for encoding in encoded.encodings:
                which = encoding.sequence_ids or [None]
                places += [at if i == text else (0, 0) for at, i in zip(encoding.offsets or [(0, 0)], which, strict=True)]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    with refusing("The model's tokenizer numbers its tokens as no vocabulary does"):
        tokens, token_types = (np.fromiter((t for r in part for t in r), np.int32, lengths.sum()) for part in (ids, types))
    return Examples(
        tokens=tokens,
        token_types=token_types,
        starts=np.concatenate([[0], lengths.cumsum()]),
        labels=np.full(len(ids), NO_LABEL, np.int32),
        truncated=truncated,
        empty=sum(not text.strip() for text in texts),
        spans=np.array(places, np.int32).reshape(-1, 2) if spans else None,
        rows=np.array(rows) if overlap is not None else None,
    )


def join(first: Examples, second: Examples) -> Examples:
    """The rows of both, first's before second's, to train on: where in which text they were is left out."""
    return Examples(
        tokens=end_to_end(first.tokens, second.tokens),
        token_types=end_to_end(first.token_types, second.token_types),
        starts=np.concatenate([first.starts, second.starts[1:] + first.starts[-1]]),
        labels=end_to_end(first.labels, second.labels),
        truncated=first.truncated + second.truncated,
        empty=first.empty + second.empty,
        per_token=first.per_token,
    ).knowing(np.concatenate([first.labeled, second.labeled]))
