"""Accuracy without a single label on the review sentences: what describes the classes, before and after adaptation.

    python experiments/zero_labels.py --output runs/zero-labels              # MiniLM; about half an hour on 2 cores
    python experiments/zero_labels.py --output runs/zero-labels --smollm2    # SmolLM2-135M too, on fewer sentences
    python experiments/zero_labels.py --output runs/zero-labels --sets --taught --seeds 0    # MiniLM taught by SmolLM2

The command `ftjax zero-shot` reads the training sentences without their labels; the test split's labels are read once
the predictions are written. Every run is a process of its own; what is finished is not done twice.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from ftjax.demo import dialogues, reviews

HERE = Path(__file__).resolve().parent
SETS = ("words", "one", "five", "twenty-five")
"""What describes a class, in `descriptions/`: a word, one sentence, five or twenty-five sentences in the tone of reviews."""
JUDGE = ("--description", "rotten=bad", "fresh=good", "--template", "{text} This movie is {label}")
"""What SmolLM2 is asked."""


def zero_shot(output: Path, *arguments: object) -> dict:
    """One run's result.json. What a run that was stopped has left is done anew."""
    if not (output / "result.json").exists():
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "-m", "ftjax", "zero-shot", *arguments, "--output", output]
        subprocess.run([str(part) for part in command], check=True)
    return json.loads((output / "result.json").read_text(encoding="utf-8"))


def described(name: str) -> tuple[object, ...]:
    """MiniLM and what describes the classes to it."""
    return ("--model", reviews.model_dir(), "--descriptions-file", HERE / "descriptions" / f"{name}.json")


def minilm(name: str, seed: int, files: dict[str, Path], output: Path, precision: str = "bfloat16") -> dict:
    """MiniLM with a set of descriptions, adapted to the training sentences."""
    return zero_shot(
        output / f"{name}-seed{seed}",
        *(*described(name), "--adapt", "--unlabeled-file", files["train"], "--test-file", files["test"], "--seed", seed),
        *("--precision", precision),
    )


def first(files: dict[str, Path], output: Path, precision: str = "bfloat16") -> dict:
    """MiniLM with the last set of descriptions alone."""
    texts = ("--unlabeled-file", files["train"], "--test-file", files["test"])
    return zero_shot(output / "first", *described(SETS[-1]), *texts, "--precision", precision)


def told(model: Path, files: dict[str, Path], file: Path, precision: str = "bfloat16") -> Path:
    """The file in which a model has said what it thinks of the training sentences; their labels are not looked at."""
    if not file.exists():
        command = ("predict", "--model", model, "--file", files["train"], "--precision", precision, "--output", file)
        subprocess.run([sys.executable, "-m", "ftjax", *map(str, command)], check=True)
    return file


TRAIN = ("--batch-size", "32", "--warmup-steps", "10")
STUDENT = (
    *("--method", "self-supervised", "--self-supervised-loss", "consistency", "--augmentation", "dropout", "--sharpening", "1"),
    *("--learning-rate", "5e-5", "--epochs", "2"),
)
"""How MiniLM learns what a teacher says of all sentences (distillation)."""


def taught(seed: int, files: dict[str, Path], output: Path, precision: str = "bfloat16") -> dict:
    """MiniLM, taught by SmolLM2, which has learnt without a label from what both are surest about.

    (Co-training, Blum and Mitchell, 1998, with two models for two views, then distillation.)
    """
    start, each = first(files, output, precision), ("--seed", seed, "--precision", precision)
    learning = zero_shot(
        output / f"learning-seed{seed}",
        *("--model", dialogues.model_file(), *JUDGE, "--scores-from", output / "first", "--adapt", "--confident-share", 0.1),
        *("--train-parameters", "last:4", "--learning-rate", "1e-4", "--epochs", 2),
        *("--unlabeled-file", files["train"], "--test-file", files["test"], *each),
    )
    student = output / f"taught-0-seed{seed}"
    if not (student / "result.json").exists():
        scores = told(Path(learning["model"]), files, output / f"told-seed{seed}.jsonl", precision)
        command = (
            *("train", "--model", start["model"], *STUDENT, "--unlabeled-file", files["train"], "--teacher-scores", scores),
            *("--test-file", files["test"], *TRAIN, *each, "--output", student, "--resume"),
        )
        subprocess.run([sys.executable, "-m", "ftjax", *map(str, command)], check=True)
    accuracy = json.loads((student / "result.json").read_text(encoding="utf-8"))["test"]["accuracy"]
    return {"rounds": [*start["rounds"], {"accuracy": accuracy}], "teacher": learning["rounds"][-1]["accuracy"]}


def some(path: Path, number: int, columns: tuple[str, ...], output: Path) -> Path:
    """A file of so many of another's rows, spread over it."""
    found = output / f"{path.stem}-{number}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with found.open("w", encoding="utf-8", newline="") as file:
        lines = ([row[column] for column in columns] for row in rows[:: len(rows) // number][:number])
        csv.writer(file).writerows([columns, *lines])
    return found


def smollm2(seed: int, sentences: int, train: Path, test: Path, output: Path, precision: str) -> dict:
    """SmolLM2: how likely "good" and "bad" are after the sentence; its last layers adapted to some sentences, as a cloze."""
    model = dialogues.model_file()
    return zero_shot(
        output / f"smollm2-{train.stem}-{test.stem}-seed{seed}",
        *("--model", model, *JUDGE),
        *("--adapt", "--train-parameters", "last:4", "--learning-rate", "1e-4", "--epochs", 2),
        *("--confident-share", min(1.0, max(0.2, 40 / sentences))),  # of a few sentences more, or too few would become labels
        *("--unlabeled-file", train, "--test-file", test, "--seed", seed, "--precision", precision),
    )


def spread(values: list[float]) -> str:
    """Mean, standard deviation and number of seeds."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation} ({len(values)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/zero-labels"))
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS), help="for MiniLM; none: SmolLM2 alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--smollm2", action="store_true", help="run SmolLM2 too")
    parser.add_argument("--taught", action="store_true", help="MiniLM with the last set, taught by SmolLM2")
    parser.add_argument("--sentences", type=int, default=1000, help="training sentences for SmolLM2")
    parser.add_argument("--test-sentences", type=int, help="of the test split, for SmolLM2; default: all")
    parser.add_argument("--precision", default="bfloat16", help="float32 is faster on a CPU without AMX")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = reviews.write(Path("data/reviews"))
    rows = {
        name: [minilm(name, seed, files, options.output, options.precision) for seed in options.seeds] for name in options.sets
    }
    if options.smollm2:
        train, test = some(files["train"], options.sentences, ("text",), options.output), files["test"]
        if options.test_sentences:
            test = some(test, options.test_sentences, ("text", "label"), options.output)
        rows["SmolLM2, good/bad"] = [
            smollm2(seed, options.sentences, train, test, options.output, options.precision) for seed in options.seeds
        ]
    if options.taught:
        runs = [taught(seed, files, options.output, options.precision) for seed in options.seeds]
        rows["SmolLM2, with what MiniLM says"] = [{"rounds": [run["rounds"][0], {"accuracy": run["teacher"]}]} for run in runs]
        rows["twenty-five, taught by that SmolLM2"] = runs
    lines = [["descriptions", "before", "after adaptation"], ["---"] * 3]
    for name, runs in rows.items():
        alone = [run["rounds"][0]["accuracy"] for run in runs]
        adapted = [run["rounds"][-1]["accuracy"] for run in runs]
        lines.append([name, f"{alone[0]:.3f}", spread(adapted)])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
