"""Classifiers by words in a gap: rows, logits, training by every method, there and back, and mistakes through the command."""

import json
import re
import shutil

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, random_params, run_command, tiny_config
from decoders import FAMILIES, write_decoder
from safetensors.numpy import load_file
from test_generate import write_tokenizer
from torch_reference import inputs_for

from ftjax.data.template import Template
from ftjax.data.tokenize import load_tokenizer
from ftjax.descriptions import TEMPLATES
from ftjax.models import build
from ftjax.models.body import Cloze
from ftjax.objectives import Term
from ftjax.objectives.augment import SpanDeletion, TokenDropout, WordSwap
from ftjax.objectives.classification import Classification, class_logits
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.pretrained import load_pretrained
from ftjax.step import looked_up

TEMPLATE = TEMPLATES["encoder"]
WORDS = ("--description", "fresh=great", "fresh=fine", "rotten=awful")
CLOZE = ("--classifier", "cloze", *WORDS)
TINY = ("--max-length", "24", "--batch-size", "8", "--buckets", "1", "--learning-rate", "1e-3", "--epochs", 1)
TEXTS = ("a fine film", "a terrible bore, far too long", "")


# ---- texts in a template


@pytest.mark.parametrize("template", [TEMPLATE, "{label}: {text}", "Just {label}! {text} All in all."])
def test_a_short_text_is_what_the_tokenizer_makes_of_the_whole(template, minilm):
    tokenizer = load_tokenizer(minilm)
    placed = Template.of(template, tokenizer, causal=False, max_length=32)
    examples = placed.encode(TEXTS, tokenizer, 32)
    for row, text in enumerate(TEXTS):
        whole = template.replace("{label}", "[MASK]").replace("{text}", text)
        tokens = examples.tokens[examples.at(row)].tolist()
        assert tokens == tokenizer(whole)["input_ids"]
        assert tokens[placed.gap] == tokenizer.mask_token_id


@pytest.mark.parametrize("template", [TEMPLATE, "{label}: {text}", "So {label}. {text}"])
def test_the_same_where_spaces_are_part_of_tokens(template, tmp_path):
    """A tokenizer like RoBERTa's: bytes, a mask token that takes the space before it, <s> and </s> around all."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "Ġ", "Ġthe", *(chr(c) for c in range(33, 127))])}
    made = Tokenizer(models.BPE(vocab=letters | {"Ġt": 99, "he": 100}, merges=[("h", "e"), ("Ġ", "t"), ("Ġt", "he")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", mask_token=mask)
    placed = Template.of(template, tokenizer, causal=False, max_length=64)
    examples = placed.encode(TEXTS[:2], tokenizer, 64)
    for row, text in enumerate(TEXTS[:2]):
        tokens = examples.tokens[examples.at(row)].tolist()
        assert tokens == tokenizer(template.replace("{label}", "<mask>").replace("{text}", text))["input_ids"]
        assert tokens[placed.gap] == tokenizer.mask_token_id
    assert placed.cloze({"a": ("the",)}, tokenizer).words == ((letters["Ġthe"],),)


def test_the_text_is_cut_and_never_the_template(minilm):
    tokenizer = load_tokenizer(minilm)
    placed = Template.of(TEMPLATE, tokenizer, causal=False, max_length=10)
    examples = placed.encode(["[MASK] word " * 50, "word"], tokenizer, 10)
    assert examples.lengths.tolist() == [10, 7] and examples.truncated == 1
    tokens = examples.tokens[examples.at(0)]
    assert tokenizer.decode(tokens[5:]) == "it was [MASK]. [SEP]"
    assert tokens[placed.gap] == tokenizer.mask_token_id and placed.gap == -3  # whatever masks the text itself has


def test_a_decoders_row_ends_where_the_word_goes(tmp_path):
    write_decoder(tmp_path, FAMILIES["gpt2"])
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    placed = Template.of("{text} is {label}", tokenizer, causal=True, max_length=32)
    examples = placed.encode(["a fine film"], tokenizer, 32)
    assert tokenizer.decode(examples.tokens) == "a fine film is" and (placed.gap, placed.word_lead) == (-1, " ")


# ---- the head


def small(cloze, **more):
    model = build(tiny_config(num_hidden_layers=1), num_labels=2, classifier="cloze", cloze=cloze, **more)
    return model, random_params(model)


@pytest.mark.parametrize("gap", [2, -3])
def test_logits_are_those_of_the_words_in_the_gap(gap):
    cloze = Cloze(((7, 9), (11,)), before=1, after=4, gap=gap)
    model, params = small(cloze)
    assert not any(name.startswith(("classifier", "pooler")) for name in params)
    batch = random_batch()
    module = model.bind(params)
    every = np.asarray(module.vocabulary_logits(module.hidden_states(batch)[-1]))
    found = np.asarray(class_logits(model, params, batch, None))
    for row, length in enumerate(batch["attention_mask"].sum(-1)):
        at = every[row, gap if gap >= 0 else length + gap]
        np.testing.assert_allclose(found[row], [(at[7] + at[9]) / 2, at[11]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in families.golden_shapes() if kind.endswith("ForMaskedLM")])
def test_logits_are_pytorchs_golden_ones(kind, tmp_path):
    families.write_golden(tmp_path, kind)
    cloze = Cloze(((0, 3), (6,)), before=1, after=1, gap=8)  # of the golden vocabulary every third token is there
    loaded = load_pretrained(tmp_path, labels=("no", "yes"), classifier="cloze", cloze=cloze)
    assert loaded.new == ()
    model_type = kind.split()[0]
    config = families.ENCODERS[model_type][1]
    batch = families.inputs(config["pad_token_id"], 2) | inputs_for(model_type, config)
    golden = np.load(families.GOLDEN / "families.npz")[f"{kind}/logits"][:, 8]
    expected = np.stack([golden[:, :2].mean(-1), golden[:, 2]], axis=-1)
    assert families.differ(class_logits(loaded.model, loaded.params, batch, None), expected) <= 1e-5


def test_only_the_words_rows_meet_the_gap():
    """No array of the compiled step has the vocabulary for one of its axes but the matrix, its bias and their gradients."""
    model, params = small(Cloze(((7,), (11,)), 1, 4, -3))
    batch = random_batch(rows=6, length=12)

    def loss(params, batch):
        (total, weight), _ = Classification(model)(params, batch, None)
        return total / weight

    text = jax.jit(jax.value_and_grad(loss)).lower(params, batch).as_text()
    shapes = {tuple(map(int, found.split("x"))) for found in re.findall(r"tensor<((?:\d+x)+)f32>", text.replace("xf32", "xf32"))
              for found in [found.rstrip("x")]}  # fmt: skip
    assert {shape for shape in shapes if 64 in shape} <= {(64,), (64, 16)}


def test_augmentations_and_masks_leave_the_template_alone():
    cloze = Cloze(((7,), (11,)), before=2, after=3, gap=-3)
    batch = random_batch(rows=8, length=16)
    batch["input_ids"] = np.random.default_rng(0).integers(5, 64, (8, 16)).astype(np.int32)
    batch["attention_mask"] = (np.arange(16) < np.array([[16], [12], [8], [7]] * 2)).astype(np.int32)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    seeds = jnp.arange(8, dtype=jnp.uint32)
    for augment in (TokenDropout, SpanDeletion, WordSwap):
        made = augment((0,), 0.9, template=(2, 3))(batch, seeds)
        for row in range(8):
            before, after = (np.asarray(b["input_ids"][row])[: int(b["attention_mask"][row].sum())] for b in (batch, made))
            assert (after[:2] == before[:2]).all() and (after[-3:] == before[-3:]).all()
            assert len(after) < len(before) or augment is WordSwap
    model, params = small(cloze)
    masks = MaskedLM(model, 4, (0, 4), probability=0.9)
    weights = np.asarray(masks.by_token(params, batch, seeds)[2]).sum(-1)
    assert (weights == np.round(0.9 * (np.asarray(batch["attention_mask"]).sum(-1) - 5))).all()


def test_a_matrix_that_is_read_in_rows_is_gathered_over_devices():
    model, _ = small(Cloze(((7,), (11,)), 1, 4, -3))
    plain = build(tiny_config(), num_labels=2)
    cuts = {"encoder.embeddings.word.embedding": 1}
    found = [looked_up((Term("classification", 1.0, Classification(m)),), cuts) for m in (model, plain)]
    assert found == [set(), {"encoder.embeddings.word.embedding"}]


# ---- training and back


def train(model, files, output, *more):
    done = run_command(
        *("train", "--model", model, "--train-file", files["train"], "--eval-file", files["eval"], "--output", output),
        *(*TINY, "--json", *more),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def predicted(model, *texts):
    done = run_command("predict", "--model", model, "--max-length", "24", *texts)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_is_trained_finds_its_words_again_and_untrained_it_is_zero_shot(tiny_mlm, few_reviews, tmp_path):
    """A learning rate of next to nothing: the model that comes out is the one that went in."""
    train(tiny_mlm, few_reviews, tmp_path / "run", *CLOZE, "--learning-rate", "1e-30", "--template", "{label}! {text}")
    model = tmp_path / "run" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and config["id2label"] == {"0": "fresh", "1": "rotten"}
    tokenizer = load_tokenizer(tiny_mlm)
    great, fine, awful = tokenizer.convert_tokens_to_ids(["great", "fine", "awful"])
    assert config["ftjax_cloze"] == {
        "template": "{label}! {text}",
        "words": {"fresh": {"great": great, "fine": fine}, "rotten": {"awful": awful}},
        "before": 3,
        "after": 1,
        "gap": 1,
    }
    names, before = set(load_file(model / "model.safetensors")), load_file(tiny_mlm / "model.safetensors")
    assert names == {name for name in before if "pooler" not in name}
    zero = run_command(
        *("zero-shot", *TEXTS[:2], "--model", tiny_mlm, "--how", "cloze", "--calibration", "none", "--max-length", "24"),
        *("--template", "{label}! {text}", *WORDS),
    )
    assert zero.returncode == 0, zero.stderr
    expected = [json.loads(line) for line in zero.stdout.splitlines()]
    found = predicted(model, *TEXTS[:2])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["prediction"] == theirs["prediction"]
        np.testing.assert_allclose(ours["scores"]["fresh"], theirs["scores"]["fresh"], rtol=1e-5)
    evaluated = run_command("evaluate", "--model", model, "--file", few_reviews["eval"], "--max-length", "24", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    np.testing.assert_allclose(json.loads(evaluated.stdout)["loss"], result["eval"]["loss"], rtol=1e-5)
    # and on from there without a word of it
    train(model, few_reviews, tmp_path / "again", "--method", "partial", "--train-parameters", "last:1,head")
    again = json.loads((tmp_path / "again" / "model" / "config.json").read_text())
    assert again["ftjax_cloze"] == config["ftjax_cloze"]
    # another head leaves all of it behind
    train(
        model, few_reviews, tmp_path / "pooled", "--classifier", "pooled", "--method", "partial", "--train-parameters", "head"
    )
    pooled = json.loads((tmp_path / "pooled" / "model" / "config.json").read_text())
    assert pooled["architectures"] == ["BertForSequenceClassification"] and "ftjax_cloze" not in pooled


@pytest.mark.long
def test_with_every_self_supervised_loss_and_few_labels(tiny_mlm, few_reviews, few, tmp_path):
    result = train(
        *(tiny_mlm, few_reviews | {"train": few}, tmp_path / "run", *CLOZE),
        *("--method", "self-supervised", "--labels-per-class", "4", "--log-every", "1"),
        *("--self-supervised-loss", "masked-lm", "consistency", "pseudo-label", "entropy", "contrastive", "label-pairs"),
        *("--augmentation", "token-mask", "--teacher-decay", "0.9", "--confidence", "0.1", "--unlabeled-ratio", "3"),
        *("--adapt-epochs", "1"),
    )
    assert "accuracy" in result["eval"]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    terms = ("classification", "masked_lm", "consistency", "pseudo_label", "entropy", "contrastive", "label_pairs")
    assert {f"{name}_loss" for name in terms} <= set(line)
    assert [entry["prediction"] in ("fresh", "rotten") for entry in predicted(tmp_path / "run" / "model", "a fine film")] == [
        True
    ]


def test_the_kept_output_of_frozen_layers_changes_nothing(tiny_mlm, few_reviews, tmp_path):
    partial = (*CLOZE, "--method", "partial", "--epochs", "2")
    for spec in ("last:1,head", "head"):
        found = [
            train(
                tiny_mlm,
                few_reviews,
                tmp_path / f"{spec}-{where}",
                *partial,
                "--train-parameters",
                spec,
                "--prefix-cache",
                where,
            )
            for where in ("memory", "off")
        ]
        weights = [(tmp_path / f"{spec}-{where}" / "model" / "model.safetensors").read_bytes() for where in ("memory", "off")]
        assert weights[0] == weights[1] and found[0]["eval"] == found[1]["eval"]


def test_adapting_to_texts_makes_the_head_that_a_checkpoint_lacks(tiny_bert, few_reviews, tmp_path):
    train(
        tiny_bert,
        few_reviews,
        tmp_path / "run",
        *CLOZE,
        "--adapt-epochs",
        "1",
        "--method",
        "partial",
        "--train-parameters",
        "head",
    )
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["ftjax_classifier"] == "cloze"


@pytest.mark.long
def test_low_rank_matrices_and_an_adapter(tiny_mlm, few_reviews, tmp_path):
    lora = ("--method", "partial", "--train-parameters", "lora:2", "--export-format", "adapter")
    train(tiny_mlm, few_reviews, tmp_path / "run", *CLOZE, *lora)
    (found,) = predicted(tmp_path / "run" / "model", "a fine film")
    exported = run_command("export", "--model", tmp_path / "run" / "model", "--output", tmp_path / "whole")
    assert exported.returncode == 0, exported.stderr
    np.testing.assert_allclose(
        predicted(tmp_path / "whole", "a fine film")[0]["scores"]["fresh"], found["scores"]["fresh"], rtol=1e-4
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_says_the_word_next(family, few_reviews, tmp_path):
    short = ("a fine film", "too long")  # zero-shot leaves room for the words
    write_decoder(tmp_path / "model", FAMILIES[family])
    write_tokenizer(tmp_path / "model")
    words = ("--classifier", "cloze", "--description", "fresh=a", "rotten=b", "--template", "{text}\n{label}")
    train(tmp_path / "model", few_reviews, tmp_path / "run", *words, "--learning-rate", "1e-30")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert "LM" in config["architectures"][0] and config["ftjax_cloze"]["gap"] == -1
    zero = run_command(
        *("zero-shot", *short, "--model", tmp_path / "model", "--calibration", "none", "--max-length", "24"),
        *("--template", "{text}\n{label}", "--description", "fresh=a", "rotten=b"),
    )
    assert zero.returncode == 0, zero.stderr
    for ours, theirs in zip(
        predicted(tmp_path / "run" / "model", *short), map(json.loads, zero.stdout.splitlines()), strict=True
    ):
        np.testing.assert_allclose(ours["scores"]["fresh"], theirs["scores"]["fresh"], rtol=1e-4)


# ---- mistakes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--description", "fresh=great"), "no word for the class 'rotten'"),
        ((), "no word for the class 'fresh'"),
        (("--description", "fresh=great", "rotten=awful", "stale=old"), "there is no such class; there are fresh, rotten"),
        (
            ("--description", "fresh=great", "rotten=unwatchable drivel"),
            "must be one token for cloze, the model has un ##watch",
        ),
        (("--description", "fresh=great", "rotten=\u200b"), "must be one token for cloze, the model has nothing"),
        (("--description", "fresh=great", "rotten=🎬"), "must be one token for cloze, the model has [UNK]"),
        (("--description", "fresh=great", "rotten= "), "has an empty description"),
        (("--description", "fresh=great", "rotten=Great "), "have the same description"),
        (("--description", "fresh=café", "rotten=cafe"), "have the same word: 'café' and 'cafe' are one token"),
        (("--description", "fresh"), "must be LABEL=TEXT"),
        ((*WORDS, "--template", "It was {label}."), "must have {text} and {label} once each"),
        ((*WORDS, "--template", "{text}"), "must have {text} and {label} once each"),
        ((*WORDS, "--template", "{text} is [MASK] and {label}"), "must not hold the mask token"),
        ((*WORDS, "--template", "{text}" + " and so on" * 9 + " {label}"), "leaves no room for a text"),
        ((*WORDS, "--task", "regression"), "is for --task classification, not regression"),
        ((*WORDS, "--text-pair-column", "text"), "a cloze has one text a row"),
        (("--descriptions-file", "nowhere.json"), "cannot be read"),
    ],
)
def test_mistakes_of_the_real_command(flags, said, tiny_mlm, few_reviews, tmp_path):
    refused(tiny_mlm, few_reviews, tmp_path, "--classifier", "cloze", *flags, said=said)


def test_words_without_a_cloze(tiny_mlm, few_reviews, tmp_path):
    refused(tiny_mlm, few_reviews, tmp_path, *WORDS, said="--description needs --classifier cloze")


def test_a_checkpoint_without_the_head(tiny_bert, few_reviews, tmp_path):
    refused(tiny_bert, few_reviews, tmp_path, *CLOZE, said="no trained masked-language-modelling head")


def test_a_tokenizer_without_a_mask_token(tiny_mlm, few_reviews, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_mlm, model, ignore=shutil.ignore_patterns("vocab.txt", "special_tokens_map.json"))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"})
    )
    refused(model, few_reviews, tmp_path, *CLOZE, said="no mask token")


def test_a_template_that_a_decoder_cannot_read(few_reviews, tmp_path):
    write_decoder(tmp_path / "model", FAMILIES["gpt2"])
    write_tokenizer(tmp_path / "model")
    said = "must end with {label} for a decoder"
    refused(tmp_path / "model", few_reviews, tmp_path, *CLOZE, "--template", TEMPLATE, said=said)


@pytest.mark.parametrize(
    "damage",
    [
        {"template": 3},
        {"words": {"fresh": {}, "rotten": {"awful": 3}}},
        {"words": {"fresh": {"great": 10**6}, "rotten": {"awful": 3}}},
        {"words": {"rotten": {"awful": 3}}},
        {"gap": "x"},
        {"gap": 1000},
        {"words": {"fresh": {"great": 5}, "rotten": {"awful": 3}}},
    ],
)
def test_a_damaged_config(damage, tiny_mlm, tmp_path):
    whole = {"template": TEMPLATE, "before": 1, "after": 5, "gap": -3}
    whole["words"] = {"fresh": {"great": 2307}, "rotten": {"awful": 9643}}
    shutil.copytree(tiny_mlm, tmp_path, dirs_exist_ok=True)
    config = json.loads((tiny_mlm / "config.json").read_text())
    names = {"id2label": {"0": "fresh", "1": "rotten"}, "ftjax_classifier": "cloze", "ftjax_cloze": {**whole, **damage}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **names}))
    done = run_command("predict", "--model", tmp_path, "--max-length", "24", "a text")
    assert done.returncode == 2 and "ftjax_cloze" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def refused(model, files, tmp_path, *flags, said):
    done = run_command(
        *("train", "--model", model, "--train-file", files["train"], "--output", tmp_path / "run", *TINY, *flags), cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ftjax: ") and said in last and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
