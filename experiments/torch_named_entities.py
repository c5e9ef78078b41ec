"""PyTorch's side of experiments/named_entities.py: `BertForTokenClassification` and the Hugging Face Trainer.

    python experiments/torch_named_entities.py TRAIN_CONLL TEST_CONLL SEED RECIPE_JSON OUTPUT_JSON

Needs requirements/parity.txt. Dynamic padding, AdamW with linear decay, float32: the Trainer's defaults, with the recipe's
numbers. The first token of a word has its tag; words that are cut count as O, as in ftjax.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset
from seqeval.metrics import f1_score, precision_score, recall_score
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ftjax.demo import reviews


def sentences(path: str) -> list[list[list[str]]]:
    """[word, tag] of every word of every sentence."""
    blocks = Path(path).read_text(encoding="utf-8").split("\n\n")
    return [[line.split("\t") for line in block.splitlines()] for block in blocks if block]


if __name__ == "__main__":
    train_file, test_file, seed, recipe, output = sys.argv[1:]
    recipe, (train, test) = json.loads(recipe), map(sentences, (train_file, test_file))
    types = sorted({tag[2:] for sentence in train for _, tag in sentence if tag != "O"})
    labels = ["O", *(f"{place}-{name}" for name in types for place in "BI")]
    set_seed(int(seed))
    model = BertForTokenClassification.from_pretrained(
        reviews.model_dir(), id2label=dict(enumerate(labels)), label2id={tag: i for i, tag in enumerate(labels)}
    )
    tokenizer = AutoTokenizer.from_pretrained(reviews.model_dir())

    def encoded(rows: list[list[list[str]]]) -> tuple[Dataset, list[list[int | None]]]:
        """The rows as tokens, and the word of each token."""
        words = [[word for word, _ in row] for row in rows]
        tokens = tokenizer(words, is_split_into_words=True, truncation=True, max_length=recipe["max-length"])
        places = [tokens.word_ids(i) for i in range(len(rows))]
        tags = [
            [labels.index(row[w][1]) if w is not None and w != before else -100 for before, w in zip([None, *at], at)]
            for row, at in zip(rows, places)
        ]
        return Dataset.from_dict({**tokens, "labels": tags}), places

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            num_train_epochs=float(recipe["epochs"]),
            per_device_train_batch_size=recipe["batch-size"],
            per_device_eval_batch_size=64,
            learning_rate=recipe["learning-rate"],
            weight_decay=recipe["weight-decay"],
            seed=int(seed),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        collate = DataCollatorForTokenClassification(tokenizer)
        trainer = Trainer(model=model, args=arguments, train_dataset=encoded(train)[0], data_collator=collate)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        rows, places = encoded(test)
        numbers = trainer.predict(rows).predictions.argmax(-1)
    given = [[tag for _, tag in sentence] for sentence in test]
    predicted = [["O"] * len(sentence) for sentence in test]
    for found, at, line in zip(predicted, places, numbers):
        for token, word in reversed(list(enumerate(at))):  # the first token of a word has the last word
            if word is not None:
                found[word] = labels[line[token]]
    scores = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    result = {name: float(score(given, predicted, zero_division=0)) for name, score in scores.items()}
    result |= {"seconds": seconds, "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    Path(output).write_text(json.dumps(result), encoding="utf-8")
