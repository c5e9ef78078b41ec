"""What a table of names is, and the rules that most tables repeat."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from ftjax.models.body import OF_TOKENS, Classifier

TOKENS, SPANS = "ForTokenClassification", "ForQuestionAnswering"  # how transformers' classes of these heads end
Rule = tuple[str, str, bool]
"""(ours, theirs, transposed). `*` stands for a layer number. PyTorch keeps a linear layer's weight as (features_out,
features_in); ours is (features_in, features_out), so those are transposed on the way. Theirs is NAME/PART where files keep
several of ours in one tensor, side by side along its last axis in the order of the rules."""


@dataclasses.dataclass(frozen=True)
class NameTable:
    """How an architecture's files name things.

    prefix: what task models put before the base model's names, and base models leave out ("bert.").
    rules: our name, theirs (base names carry the prefix), transposed.
    classes: transformers' class for a classifier, and for a language model; "" where there is none.
    copies: (theirs, ours): tensors that files may hold and that repeat a parameter, such as the decoder of a language
        model that is tied to the word embeddings. One that stands in for a missing original is read in its place.
    carried: regular expressions of further tensors that files may hold and the model here has no use for: buffers, heads
        of pretraining tasks. Anything else unexpected is an error.
    """

    prefix: str
    rules: tuple[Rule, ...]
    carried: tuple[str, ...]
    classes: tuple[str, str]
    copies: tuple[tuple[str, str], ...] = ()

    def with_classifier(self, kind: Classifier | None) -> NameTable:
        """The table of files with such a classifier: those of tokens have a name, and a class, of their own."""
        if kind not in OF_TOKENS:
            return self
        name, ending = ("classifier", TOKENS) if kind == "every-token" else ("qa_outputs", SPANS)
        rules = tuple(rule for rule in self.rules if not rule[0].startswith("classifier."))
        classes = (self.classes[0].replace("ForSequenceClassification", ending), self.classes[1])
        return dataclasses.replace(self, rules=(*rules, *dense("classifier", name)), classes=classes)

    def theirs(self, ours: str) -> tuple[str, bool]:
        """Our name to (their name, transposed). Raises KeyError for a name no rule covers."""
        for pattern, target, transposed in self.rules:
            if found := re.fullmatch(_expression(pattern), ours):
                return target.replace("*", found[1]) if found.groups() else target, transposed
        raise KeyError(ours)

    def copies_of(self, ours: str) -> list[str]:
        """What files call the tensors that repeat this parameter."""
        return [theirs for theirs, original in self.copies if original == ours]

    def canonical(self, name: str) -> str:
        """A name as a file may spell it to the one of the table: old `gamma`/`beta` renamed, a missing prefix added."""
        name = re.sub(r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
        name = re.sub(r"(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)
        return self.prefix + name if name.split(".")[0] in self._first_words else name

    def parts(self, name: str) -> list[str]:
        """What a tensor of the files, in their spelling, holds side by side: NAME/PART each; [] where it holds one thing."""
        wholes = (theirs.partition("/") for _, theirs, _ in self.rules if "/" in theirs)
        canonical = self.canonical(name)
        return [f"{name}/{part}" for whole, _, part in wholes if re.fullmatch(_expression(whole), canonical)]

    def join(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors with parts by themselves to those of the files, in any spelling: parts put together along the last axis."""
        joined: dict[str, np.ndarray] = {}
        for name, array in tensors.items():
            whole = name.partition("/")[0]
            parts = self.parts(whole)
            if name not in parts:
                joined[name] = array
            elif name == parts[0]:
                joined[whole] = np.concatenate([tensors[part] for part in parts], axis=-1)
        return joined

    @functools.cached_property
    def _first_words(self) -> frozenset[str]:
        """The first words of the base model's names once the prefix is gone."""
        names = [theirs for _, theirs, _ in self.rules] + [pattern.replace("\\", "") for pattern in self.carried]
        return frozenset(n.removeprefix(self.prefix).split(".")[0] for n in names if n.startswith(self.prefix))

    def knows(self, canonical: str) -> bool:
        """Whether a model of the architecture may have a tensor of this name."""
        return self.is_carried(canonical) or any(
            re.fullmatch(_expression(t.partition("/")[0]), canonical) for _, t, _ in self.rules
        )

    def is_carried(self, canonical: str) -> bool:
        """Whether a tensor may be there without a place in the model, and is kept for export instead."""
        return canonical in dict(self.copies) or any(re.fullmatch(pattern, canonical) for pattern in self.carried)


def _expression(pattern: str) -> str:
    """A name with * to a regular expression with a group for the number."""
    return re.escape(pattern).replace(r"\*", r"(\d+)")


def dense(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A linear layer."""
    return (f"{ours}.kernel", f"{theirs}.weight", True), (f"{ours}.bias", f"{theirs}.bias", False)


def norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A layer norm."""
    return (f"{ours}.scale", f"{theirs}.weight", False), (f"{ours}.bias", f"{theirs}.bias", False)


def embedding(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A table of embeddings."""
    return ((f"{ours}.embedding", f"{theirs}.weight", False),)
