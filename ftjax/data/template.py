"""Every text in a template, as tokens: the text is cut where the whole would be too long, the template never.

    {text} It was {label}.

At {label} an encoder has its mask token, and for a decoder, which reads from left to right, the row ends. In PET (Schick and
Schütze, 2021, https://arxiv.org/abs/2001.07676, section 3.1) this is the pattern, and the words for the classes the verbaliser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from ftjax.data.tokenize import Examples, tokenized
from ftjax.descriptions import GAP, TEXT, check_template
from ftjax.errors import InputError
from ftjax.models.body import Cloze

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Template:
    """A template as one tokenizer spells it.

    before, after: token ids around every text, special ones included. gap: where the label's place is, as in
    `ftjax.models.body.Cloze`. text_lead: white space that goes with the text's first token. word_lead: with a word's.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    gap: int
    text_lead: str
    word_lead: str

    @classmethod
    def of(cls, template: str, tokenizer: PreTrainedTokenizerFast, *, causal: bool, max_length: int) -> Self:
        """causal: of a decoder. max_length: of rows, in tokens.

        InputError for a template in which a decoder would read on after the label, or that leaves no room for a text, and for
        an encoder's tokenizer without a mask token.
        """
        check_template(template)
        start, stop = special_tokens(tokenizer)
        word_lead = " " if tokenizer.convert_tokens_to_ids("Ġthe") not in (None, tokenizer.unk_token_id) else ""
        if causal:
            shown, _, rest = template.partition(GAP)
            if rest:
                raise InputError(f"--template {template!r}: must end with {GAP} for a decoder, which reads from left to right.")
            filled = shown.rstrip(" ")  # a space belongs to the word after it, as tokenizers of decoders have it
            word_lead, stop = shown[len(filled) :], []
        elif tokenizer.mask_token_id is None:
            raise InputError(f"--template {template!r}: the model's tokenizer has no mask token to put at {GAP}.")
        else:
            filled = template.replace(GAP, str(tokenizer.mask_token))
        left, _, right = filled.partition(TEXT)
        stripped = left.rstrip(" ")
        pieces = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (stripped, right))
        before, after = [*start, *next(pieces)], [*next(pieces), *stop]
        gap = -1
        if not causal:
            gaps = [i for i, token in enumerate([*before, *after]) if token == tokenizer.mask_token_id]
            if len(gaps) != 1:
                raise InputError(f"--template {template!r}: must not hold the mask token {tokenizer.mask_token} itself.")
            gap = gaps[0] if gaps[0] < len(before) else gaps[0] - len(before) - len(after)
        if (taken := len(before) + len(after)) >= max_length:
            raise InputError(
                f"--max-length {max_length}: --template {template!r} takes {taken} tokens and leaves no room for a text."
            )
        return cls(tuple(before), tuple(after), gap, left[len(stripped) :], word_lead)

    def encode(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        """The texts as rows without labels, each cut so that it has at most max_length tokens with the template."""
        texts = [self.text_lead + text for text in texts] if self.text_lead else texts
        return tokenized(texts, None, tokenizer, max_length, around=(self.before, self.after))

    def cloze(self, words: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerFast) -> Cloze:
        """What a classifier of these classes must know, whose words are given by the classes' names.

        InputError for a word that is not one token of the tokenizer, and for one that two classes share.
        """
        found: dict[str, tuple[int, ...]] = {}
        owner: dict[int, tuple[str, str]] = {}
        for label, every in words.items():
            found[label] = tuple(self._token(label, word, tokenizer) for word in every)
            for word, token in zip(every, found[label], strict=True):
                if owner.setdefault(token, (label, word))[0] != label:
                    other, same = owner[token]
                    raise InputError(
                        f"The labels {other!r} and {label!r} have the same word: {same!r} and {word!r} are one token."
                    )
        return Cloze(tuple(found.values()), len(self.before), len(self.after), self.gap)

    def _token(self, label: str, word: str, tokenizer: PreTrainedTokenizerFast) -> int:
        ids = tokenizer(self.word_lead + word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            shown = " ".join(tokenizer.convert_ids_to_tokens(ids)) or "nothing"
            raise InputError(
                f"The label {label!r}: {word!r} must be one token for cloze, the model has {shown}; "
                f"give another word with --description '{label}=...'."
            )
        return ids[0]


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text by itself."""
    bare, whole = (tokenizer("a", add_special_tokens=more)["input_ids"] for more in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]
