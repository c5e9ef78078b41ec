"""PyTorch's side of experiments/partial_cost.py: `BertForSequenceClassification` and the Hugging Face Trainer.

    python experiments/torch_reviews.py TRAIN_CSV TEST_CSV SPEC SEED EPOCHS LEARNING_RATE OUTPUT_JSON [bfloat16]

Needs requirements/parity.txt. Batch 32, dynamic padding, AdamW with linear decay, float32 or
bfloat16 autocast: the Trainer's defaults.
"""

import csv
import json
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from ftjax.demo import reviews

PARTS = {
    "all": r".*",
    "head": r"(bert\.pooler|classifier)\..*",
    "bias": r".*\.bias",
    "layernorm": r".*LayerNorm\..*",
}


def rows(path: str) -> Dataset:
    """Texts and labels of a file."""
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return Dataset.from_dict({"text": [r["text"] for r in found], "label": [int(r["label"] == "fresh") for r in found]})


def pattern(part: str) -> str:
    """A part of a spec to the names of PyTorch's parameters."""
    if part.startswith("last:"):
        return rf"bert\.encoder\.layer\.({'|'.join(map(str, range(6 - int(part[5:]), 6)))})\..*"
    return PARTS[part]


if __name__ == "__main__":
    train_file, test_file, spec, seed, epochs, learning_rate, output, *precision = sys.argv[1:]
    torch.manual_seed(int(seed))
    model = BertForSequenceClassification.from_pretrained(reviews.model_dir(), num_labels=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(re.fullmatch(pattern(part), name) for part in spec.split(","))
    tokenizer = AutoTokenizer.from_pretrained(reviews.model_dir())
    encode = lambda batch: tokenizer(batch["text"], truncation=True, max_length=128)  # noqa: E731
    train, test = (rows(path).map(encode, batched=True, remove_columns=["text"]) for path in (train_file, test_file))
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            num_train_epochs=float(epochs),
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=float(learning_rate),
            seed=int(seed),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            bf16=precision == ["bfloat16"],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        accuracy = trainer.evaluate(test)["eval_accuracy"]
    result = {
        "train_seconds": seconds,
        "accuracy": accuracy,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(output).write_text(json.dumps(result), encoding="utf-8")
