"""A small GPT-2 trained from scratch on Shakespeare: bits per character on works that it has not seen.

    python experiments/shakespeare.py [--output runs/shakespeare] [--epochs 3]

42 works in plain text come inside a Python package (requirements/demo.txt); the SHA-1 of a work's name decides whether it is
held out, as a whole (4 of 42). The tokenizer is byte-level BPE learnt on the training works, so that any text can be written
and bits per character are exact. Beside the model: an n-gram model of characters with Witten-Bell smoothing, and xz, which
has read the training works when it compresses those held out.
"""

import argparse
import hashlib
import json
import lzma
import math
import time
from collections import Counter, defaultdict
from importlib.metadata import distribution
from pathlib import Path

from ftjax.cli import main
from ftjax.launch import keep_programs, with_huge_pages

PROMPT = "KING HENRY.\nWhat news,"


def works() -> dict[str, str]:
    """Name -> text of every work."""
    package = distribution("shakespeare")
    files = sorted(str(file) for file in package.files or () if str(file).endswith("_gut.txt"))
    paths = {Path(file).name.removesuffix("_gut.txt"): Path(str(package.locate_file(file))) for file in files}
    return {name: path.read_text(encoding="ascii") for name, path in paths.items()}


def held_out(name: str) -> bool:
    """Whether a work is kept from training: about one in ten."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 == 0


def write_data(directory: Path) -> dict[str, Path]:
    """train.jsonl and test.jsonl, a work a row."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = {split: directory / f"{split}.jsonl" for split in ("train", "test")}
    for split, path in paths.items():
        rows = [{"text": text} for name, text in works().items() if held_out(name) == (split == "test")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def write_model(directory: Path, texts: list[str], *, vocabulary: int, layers: int, hidden: int, positions: int) -> None:
    """A directory with config.json and a tokenizer, and no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)
    fast.save_pretrained(directory)
    config = {"model_type": "gpt2", "vocab_size": len(fast), "n_positions": positions, "n_embd": hidden, "n_layer": layers}
    config |= {"n_head": hidden // 64, "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    config |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # few passes over the data: nothing to dampen
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def n_gram_bits(train: str, test: str, order: int = 6) -> float:
    """Bits per character of `test` under an n-gram model of characters, Witten-Bell smoothed down to uniform bytes:

    p(c | context) = (count(context c) + types(context) · p(c | shorter context)) / (count(context) + types(context))
    """
    counts: list[dict[str, Counter[str]]] = [defaultdict(Counter) for _ in range(order)]
    for length in range(order):
        for i in range(length, len(train)):
            counts[length][train[i - length : i]][train[i]] += 1
    sums = [{context: (sum(found.values()), len(found)) for context, found in level.items()} for level in counts]
    bits = 0.0
    for i, character in enumerate(test):
        probability = 1 / 256
        for length in range(min(order, i + 1)):
            context = test[i - length : i]
            if context not in sums[length]:
                break
            total, types = sums[length][context]
            probability = (counts[length][context][character] + types * probability) / (total + types)
        bits -= math.log2(probability)
    return bits / len(test)


def xz_bits(train: str, test: str) -> float:
    """Bits per character that xz needs for `test` after `train`."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]  # a dictionary of 64 MB
    size = [len(lzma.compress(text.encode(), lzma.FORMAT_RAW, filters=filters)) for text in (train, train + test)]
    return 8 * (size[1] - size[0]) / len(test)


if __name__ == "__main__":
    with_huge_pages()
    keep_programs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/shakespeare"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", default="1e-3")
    parser.add_argument("--characters", type=int, help="use so much of each split only, to try the script")
    options = parser.parse_args()

    files = write_data(options.output / "data")
    texts = {}
    for split, path in files.items():
        rows = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        if options.characters:
            rows = ["".join(rows)[: options.characters]]
            path.write_text(json.dumps({"text": rows[0]}) + "\n", encoding="utf-8")
        texts[split] = rows
    write_model(
        options.output / "model",
        texts["train"],
        vocabulary=options.vocabulary,
        layers=options.layers,
        hidden=options.hidden,
        positions=options.max_length,
    )
    started = time.perf_counter()
    main(
        [
            *("train", "--task", "causal-lm", "--model", str(options.output / "model"), "--from-scratch"),
            *("--train-file", str(files["train"]), "--test-file", str(files["test"])),
            *("--epochs", str(options.epochs), "--batch-size", str(options.batch_size)),
            *("--max-length", str(options.max_length), "--learning-rate", options.learning_rate),
            *("--schedule", "cosine", "--warmup-steps", "50", "--weight-decay", "0.1"),
            *("--output", str(options.output / "run"), "--resume"),
        ]
    )
    seconds = time.perf_counter() - started
    result = json.loads((options.output / "run" / "result.json").read_text(encoding="utf-8"))
    train, test = ("".join(texts[split]) for split in ("train", "test"))
    print(f"\n{len(train):,} characters to train on, {len(test):,} held out. Bits per character of those:")
    print(f"  GPT-2, {result['trained_parameters']:,} parameters   {result['test']['bits_per_character']:.3f}")
    print(f"  6-grams of characters   {n_gram_bits(train, test):.3f}")
    print(f"  xz, training works read before   {xz_bits(train, test):.3f}")
    print(f"Training and scoring took {seconds:.0f} s.\n")
    trained = str(options.output / "run" / "model")
    main(["generate", "--model", trained, "--prompt", PROMPT, "--max-new-tokens", "60", "--temperature", "0.8", "--json"])
