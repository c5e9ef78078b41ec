"""One table an architecture: our parameter names beside Hugging Face's, read in both directions.

A rule is (ours, theirs, transposed). `*` stands for a layer number. PyTorch keeps a linear layer's weight as
(features_out, features_in); ours is (features_in, features_out), so those are transposed on the way.
"""

from __future__ import annotations

import dataclasses
import re

Rule = tuple[str, str, bool]


@dataclasses.dataclass(frozen=True)
class NameTable:
    """How an architecture's files name things.

    prefix: what task models put before the base model's names, and base models leave out ("bert.").
    rules: our name, theirs (base names carry the prefix), transposed.
    classes: transformers' class for a classifier, and for a language model.
    carried: regular expressions of tensors that files may hold and the model here has no use for: buffers, copies of
        tied weights, heads of pretraining tasks. Anything else unexpected is an error.
    """

    prefix: str
    rules: tuple[Rule, ...]
    carried: tuple[str, ...]
    classes: tuple[str, str]

    def theirs(self, ours: str) -> tuple[str, bool]:
        """Our name to (their name, transposed). Raises KeyError for a name no rule covers."""
        for pattern, target, transposed in self.rules:
            if found := re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), ours):
                return target.replace("*", *found.groups()) if found.groups() else target, transposed
        raise KeyError(ours)

    def canonical(self, name: str) -> str:
        """A name as a file may spell it to the one of the table: old `gamma`/`beta` renamed, a missing prefix added."""
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        bases = {
            theirs.removeprefix(self.prefix).split(".")[0] for _, theirs, _ in self.rules if theirs.startswith(self.prefix)
        }
        return self.prefix + name if name.split(".")[0] in bases else name

    def is_carried(self, canonical: str) -> bool:
        """Whether a tensor may be there without a place in the model, and is kept for export instead."""
        return any(re.fullmatch(pattern, canonical) for pattern in self.carried)


def _dense(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (f"{ours}.kernel", f"{theirs}.weight", True), (f"{ours}.bias", f"{theirs}.bias", False)


def _norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (f"{ours}.scale", f"{theirs}.weight", False), (f"{ours}.bias", f"{theirs}.bias", False)


def _embedding(ours: str, theirs: str) -> tuple[Rule, ...]:
    return ((f"{ours}.embedding", f"{theirs}.weight", False),)


BERT = NameTable(
    prefix="bert.",
    rules=(
        *_embedding("encoder.embeddings.word", "bert.embeddings.word_embeddings"),
        *_embedding("encoder.embeddings.position", "bert.embeddings.position_embeddings"),
        *_embedding("encoder.embeddings.token_type", "bert.embeddings.token_type_embeddings"),
        *_norm("encoder.embeddings.norm", "bert.embeddings.LayerNorm"),
        *_dense("encoder.layers.*.attention.query", "bert.encoder.layer.*.attention.self.query"),
        *_dense("encoder.layers.*.attention.key", "bert.encoder.layer.*.attention.self.key"),
        *_dense("encoder.layers.*.attention.value", "bert.encoder.layer.*.attention.self.value"),
        *_dense("encoder.layers.*.attention.output", "bert.encoder.layer.*.attention.output.dense"),
        *_norm("encoder.layers.*.attention_norm", "bert.encoder.layer.*.attention.output.LayerNorm"),
        *_dense("encoder.layers.*.mlp.up", "bert.encoder.layer.*.intermediate.dense"),
        *_dense("encoder.layers.*.mlp.down", "bert.encoder.layer.*.output.dense"),
        *_norm("encoder.layers.*.mlp_norm", "bert.encoder.layer.*.output.LayerNorm"),
        *_dense("pooler", "bert.pooler.dense"),
        *_dense("classifier", "classifier"),
        *_dense("masked_lm.transform", "cls.predictions.transform.dense"),
        *_norm("masked_lm.norm", "cls.predictions.transform.LayerNorm"),
        ("masked_lm.bias", "cls.predictions.bias", False),
    ),
    carried=(
        r"bert\.embeddings\.(position_ids|token_type_ids)",
        r"bert\.pooler\.dense\.(weight|bias)",
        r"cls\.predictions\..*",
        r"cls\.seq_relationship\.(weight|bias)",
        r"classifier\.(weight|bias)",
        r"qa_outputs\.(weight|bias)",
    ),
    classes=("BertForSequenceClassification", "BertForMaskedLM"),
)

TABLES: dict[str, NameTable] = {"bert": BERT}
"""Supported architectures by config.json's `model_type`."""
