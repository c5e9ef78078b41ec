"""One table an architecture: our parameter names beside Hugging Face's, read in both directions.

A rule is (ours, theirs, transposed). `*` stands for a layer number. PyTorch keeps a linear layer's weight as
(features_out, features_in); ours is (features_in, features_out), so those are transposed on the way.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

Rule = tuple[str, str, bool]


@dataclasses.dataclass(frozen=True)
class NameTable:
    """How an architecture's files name things.

    prefix: what task models put before the base model's names, and base models leave out ("bert.").
    rules: our name, theirs (base names carry the prefix), transposed. Theirs is NAME/PART where files keep several of ours
        in one tensor, side by side along its last axis in the order of the rules.
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
            if found := re.fullmatch(_expression(pattern), ours):
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

    def parts(self, canonical: str) -> list[str]:
        """Names of what a tensor of the files holds side by side, in order: NAME/PART each; [] where it holds one thing."""
        wholes = ((theirs.partition("/")[0], theirs.partition("/")[2]) for _, theirs, _ in self.rules if "/" in theirs)
        return [f"{canonical}/{part}" for whole, part in wholes if re.fullmatch(_expression(whole), canonical)]

    def join(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors by the table's names to those of the files: parts put together along the last axis."""
        wholes = {name.partition("/")[0]: self.parts(name.partition("/")[0]) for name in tensors}
        return {
            whole: np.concatenate([tensors[part] for part in parts], axis=-1) if parts else tensors[whole]
            for whole, parts in wholes.items()
        }

    def is_carried(self, canonical: str) -> bool:
        """Whether a tensor may be there without a place in the model, and is kept for export instead."""
        return any(re.fullmatch(pattern, canonical) for pattern in self.carried)


def _expression(pattern: str) -> str:
    """A name with * to a regular expression with a group for the number."""
    return re.escape(pattern).replace(r"\*", r"(\d+)")


def _dense(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (f"{ours}.kernel", f"{theirs}.weight", True), (f"{ours}.bias", f"{theirs}.bias", False)


def _norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (f"{ours}.scale", f"{theirs}.weight", False), (f"{ours}.bias", f"{theirs}.bias", False)


def _conv(ours: str, theirs: str, part: str = "") -> tuple[Rule, ...]:
    """Dense layers of GPT-2's files, which are (features_in, features_out) as ours are."""
    return (f"{ours}.kernel", f"{theirs}.weight{part}", False), (f"{ours}.bias", f"{theirs}.bias{part}", False)


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

GPT2 = NameTable(
    prefix="transformer.",
    rules=(
        *_embedding("decoder.embeddings.word", "transformer.wte"),
        *_embedding("decoder.embeddings.position", "transformer.wpe"),
        *_norm("decoder.layers.*.attention_norm", "transformer.h.*.ln_1"),
        *_conv("decoder.layers.*.attention.query", "transformer.h.*.attn.c_attn", "/query"),
        *_conv("decoder.layers.*.attention.key", "transformer.h.*.attn.c_attn", "/key"),
        *_conv("decoder.layers.*.attention.value", "transformer.h.*.attn.c_attn", "/value"),
        *_conv("decoder.layers.*.attention.output", "transformer.h.*.attn.c_proj"),
        *_norm("decoder.layers.*.mlp_norm", "transformer.h.*.ln_2"),
        *_conv("decoder.layers.*.mlp.up", "transformer.h.*.mlp.c_fc"),
        *_conv("decoder.layers.*.mlp.down", "transformer.h.*.mlp.c_proj"),
        *_norm("decoder.norm", "transformer.ln_f"),
        ("classifier.kernel", "score.weight", True),
        ("lm_head.kernel", "lm_head.weight", True),
    ),
    carried=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", r"lm_head\.weight", r"score\.weight"),
    classes=("GPT2ForSequenceClassification", "GPT2LMHeadModel"),
)


def _llama(classes: tuple[str, str], *, output_norms: bool = False) -> NameTable:
    """Llama's table, which its relatives share. output_norms: Gemma's, where post_attention_layernorm is another one."""
    layer = "model.layers.*"
    around = (("mlp_norm", "post_attention_layernorm"),)
    if output_norms:
        around = (
            ("attention_output_norm", "post_attention_layernorm"),
            ("mlp_norm", "pre_feedforward_layernorm"),
            ("mlp_output_norm", "post_feedforward_layernorm"),
        )
    norms = (
        ("attention_norm", "input_layernorm"),
        *around,
        ("attention.query_norm", "self_attn.q_norm"),
        ("attention.key_norm", "self_attn.k_norm"),
    )
    dense = (
        ("attention.query", "self_attn.q_proj"),
        ("attention.key", "self_attn.k_proj"),
        ("attention.value", "self_attn.v_proj"),
        ("attention.output", "self_attn.o_proj"),
        ("mlp.gate", "mlp.gate_proj"),
        ("mlp.up", "mlp.up_proj"),
        ("mlp.down", "mlp.down_proj"),
    )
    return NameTable(
        prefix="model.",
        rules=(
            *_embedding("decoder.embeddings.word", "model.embed_tokens"),
            *((f"decoder.layers.*.{ours}.scale", f"{layer}.{theirs}.weight", False) for ours, theirs in norms),
            *(rule for ours, theirs in dense for rule in _dense(f"decoder.layers.*.{ours}", f"{layer}.{theirs}")),
            ("decoder.norm.scale", "model.norm.weight", False),
            ("classifier.kernel", "score.weight", True),
            ("lm_head.kernel", "lm_head.weight", True),
        ),
        carried=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight", r"score\.weight"),
        classes=classes,
    )


TABLES: dict[str, NameTable] = {
    "bert": BERT,
    "gpt2": GPT2,
    "llama": _llama(("LlamaForSequenceClassification", "LlamaForCausalLM")),
    "mistral": _llama(("MistralForSequenceClassification", "MistralForCausalLM")),
    "qwen2": _llama(("Qwen2ForSequenceClassification", "Qwen2ForCausalLM")),
    "qwen3": _llama(("Qwen3ForSequenceClassification", "Qwen3ForCausalLM")),
    "gemma2": _llama(("Gemma2ForSequenceClassification", "Gemma2ForCausalLM"), output_norms=True),
    "gemma3_text": _llama(("Gemma3TextForSequenceClassification", "Gemma3ForCausalLM"), output_norms=True),
}
"""Supported architectures by config.json's `model_type`."""
