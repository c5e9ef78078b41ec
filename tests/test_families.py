"""Every encoder family through `ftjax train`: part of it, and with masked language modelling where it has that head."""

import csv
import json

import families
import numpy as np
import pytest
from safetensors.numpy import load_file

from ftjax.cli import main
from ftjax.pretrained import load_pretrained

FLAGS = ("--max-length", "32", "--batch-size", "8", "--buckets", "1", "--epochs", "1", "--learning-rate", "1e-3", "--json")
PIECES = {"roberta": "BPE", "xlm-roberta": "Unigram"}  # the others have word pieces


def write_tokenizer(directory, model_type, texts):
    """A small tokenizer of the family's kind, with padding where its config has it; returns its number of tokens."""
    import tokenizers
    import transformers
    from tokenizers import pre_tokenizers, processors, trainers

    pad = families.ENCODERS[model_type][1]["pad_token_id"]
    kind = PIECES.get(model_type, "WordPiece")
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"] if pad == 0 else ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    padding, start, end, unknown, mask = names
    special = names if pad == 0 else [start, padding, end, unknown, mask]
    model = getattr(tokenizers.models, kind)
    made = tokenizers.Tokenizer(model() if kind == "Unigram" else model(unk_token=unknown))
    made.pre_tokenizer = {
        "BPE": pre_tokenizers.ByteLevel(),
        "Unigram": pre_tokenizers.Metaspace(),
        "WordPiece": pre_tokenizers.BertPreTokenizer(),
    }[kind]
    more = {"unk_token": unknown} if kind == "Unigram" else {}
    trainer = {"BPE": trainers.BpeTrainer, "Unigram": trainers.UnigramTrainer, "WordPiece": trainers.WordPieceTrainer}[kind]
    made.train_from_iterator(texts, trainer(vocab_size=400, special_tokens=special, **more))
    ends = [(name, made.token_to_id(name)) for name in (start, end)]
    made.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    roles = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **dict(zip(roles, names, strict=True)))
    fast.save_pretrained(directory)
    assert fast.pad_token_id == pad
    return len(fast)


def write_model(directory, kind, file):
    """The golden model of a kind, with a vocabulary made of the file's texts."""
    config, shapes = families.golden_shapes()[kind]
    with file.open(encoding="utf-8", newline="") as opened:
        texts = [row["text"] for row in csv.DictReader(opened)]
    directory.mkdir()
    size = write_tokenizer(directory, kind.split()[0], texts)
    resized = {name: [size, *shape[1:]] if shape[0] == families.VOCAB else shape for name, shape in shapes.items()}
    return families.write(directory, {**config, "vocab_size": size}, resized)


def train(model, files, output, capsys, *more):
    """(exit status, what was printed on stdout, on stderr) of the command."""
    status = 0
    try:
        main(["train", "--model", str(model), "--train-file", str(files["train"]), "--output", str(output), *FLAGS, *more])
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("model_type", families.ENCODERS)
def test_the_last_layer_and_a_head_train_and_nothing_else(model_type, few_reviews, tmp_path, capsys):
    before = write_model(tmp_path / "model", f"{model_type} {families.HEADS[0]}", few_reviews["train"])
    more = ("--method", "partial", "--train-parameters", "last:1,head")
    status, out, err = train(tmp_path / "model", few_reviews, tmp_path / "run", capsys, *more)
    assert status == 0, err
    assert json.loads(out)["trained_parameters"] > 0
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {n for n, v in before.items() if v.shape != after[n].shape or not np.array_equal(v, after[n])}
    loaded = load_pretrained(tmp_path / "run" / "model")
    assert loaded.labels == ("fresh", "rotten")
    trained = [n for n in loaded.params if n.startswith(("encoder.layers.1.", "pooler.", "classifier."))]
    # a bias of the keys shifts all scores of a query alike: its gradient is rounding
    keys = loaded.spelled["encoder.layers.1.attention.key.bias"]
    assert changed | {keys} == {loaded.spelled[n] for n in trained}


@pytest.mark.long
@pytest.mark.parametrize("model_type", [kind.split()[0] for kind in families.golden_shapes() if kind.endswith("ForMaskedLM")])
def test_masked_language_modelling_trains_beside_the_labels(model_type, few_reviews, tmp_path, capsys):
    before = write_model(tmp_path / "model", f"{model_type} ForMaskedLM", few_reviews["train"])
    more = ("--method", "self-supervised", "--unlabeled-file", str(few_reviews["unlabeled"]))
    status, _, err = train(tmp_path / "model", few_reviews, tmp_path / "run", capsys, *more)
    assert status == 0, err
    assert "masked_lm" in (tmp_path / "run" / "metrics.jsonl").read_text()
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    words = next(name for name in before if "word_embeddings" in name)
    assert np.isfinite(after[words]).all()
    assert not np.array_equal(after[words], before[words])
    assert load_pretrained(tmp_path / "run" / "model").labels == ("fresh", "rotten")


def test_what_a_family_does_not_have_is_said_before_anything_is_written(few_reviews, tmp_path, capsys):
    write_model(tmp_path / "electra", f"electra {families.HEADS[0]}", few_reviews["train"])
    status, out, err = train(tmp_path / "electra", few_reviews, tmp_path / "run", capsys, "--method", "self-supervised")
    assert (status, out) == (2, "")
    assert "electra has no head for masked language modelling" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
