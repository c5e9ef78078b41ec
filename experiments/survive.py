"""Kill a run again and again at random moments and compare its end, byte by byte, with the run that was let alone.

    python experiments/survive.py --kills 50                     # minutes; a tiny random model on made-up sentences

The kills (SIGKILL) come a random number of steps and a random moment after each start, in the middle of saving and scoring
too, so that some meet a checkpoint half written. No process may lose more than what it did since its last whole checkpoint.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ftjax.demo import reviews

TIMED = ("examples_per_second", "seconds", "step_seconds", "train_seconds", "peak_memory_bytes")
EVERY = 5  # steps between checkpoints
WORDS = (
    "a",
    "the",
    "film",
    "story",
    "actor",
    "plot",
    "is",
    "was",
    "not",
    "very",
    "good",
    "bad",
    "dull",
    "moving",
    "funny",
    "slow",
)


def tiny_model(directory: Path) -> Path:
    """A BERT of 2 layers with MiniLM's tokenizer, random."""
    from ftjax.models import build
    from ftjax.models.bert import NAMES as BERT
    from ftjax.models.bert import BertConfig

    sizes = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in build(BertConfig(**sizes), pooler=True).shapes.items():
        theirs, transposed = BERT.theirs(name)
        value = float(name.endswith(".scale")) + 0.05 * rng.standard_normal(shape.shape)
        tensors[theirs] = np.ascontiguousarray(value.T if transposed else value, np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(reviews.model_dir() / name, directory)
    return directory


def rows(path: Path, number: int, seed: int) -> Path:
    """Made-up sentences; the label is whether "good" is in it."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(number)]
    path.write_text("text,label\n" + "".join(f"{text},{int('good' in text)}\n" for text in texts))
    return path


def command(directory: Path, output: Path) -> list[str]:
    """The run: dropout, a ragged last batch, evaluation after each of 6 epochs, a checkpoint every few steps."""
    given = ["--model", directory / "model", "--train-file", directory / "train.csv", "--eval-file", directory / "eval.csv"]
    given += ["--output", output, "--epochs", 6, "--batch-size", 16, "--save-every", EVERY, "--log-every", 1, "--buckets", 1]
    return [sys.executable, "-m", "ftjax.cli", "train", *map(str, given), "--learning-rate", "1e-3", "--resume"]


def untimed(value: object) -> object:
    """A JSON value without what is measured."""
    return {k: untimed(v) for k, v in value.items() if k not in TIMED} if isinstance(value, dict) else value


def end(output: Path) -> tuple[bytes, list[object]]:
    """What must not depend on kills: the model's bytes, every line of metrics, the result."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((output / "result.json").read_text())
    return (output / "model" / "model.safetensors").read_bytes(), [untimed(row) for row in [*lines, result]]


def logged_step(output: Path) -> int:
    """The last step in metrics.jsonl; 0 before the first."""
    path = output / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def whole_step(output: Path) -> int:
    """The newest checkpoint's step; 0 before the first."""
    return max((int(path.name) for path in (output / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def kill(words: list[str], output: Path, rng: random.Random) -> str:
    """Start the run, kill it some steps and a moment later, and say where it was; "done" where it was faster."""
    target = whole_step(output) + rng.randint(1, 8 * EVERY)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and logged_step(output) < target:
            time.sleep(0.002)
        moment = time.monotonic() + rng.choice((0.0, rng.uniform(0, 0.1), rng.uniform(0, 1.0)))
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
    if process.returncode != -signal.SIGKILL:
        return "done" if process.returncode == 0 else f"exit {process.returncode}: {stderr}"
    reached, whole = logged_step(output), whole_step(output)
    half = any((output / "checkpoints").glob("*.orbax-checkpoint-tmp*")) if (output / "checkpoints").exists() else False
    if reached - whole > 2 * EVERY:  # a save takes its time while the next steps run
        return f"exit: step {reached} was reached and the last whole checkpoint is of step {whole}"
    return f"step {reached}, checkpoint {whole}" + (", while one was being written" if half else "")


def main() -> None:
    """The run that is let alone, then runs that are killed until there were as many kills as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rng, kills, runs, halves = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "programs"))
        tiny_model(directory / "model")
        rows(directory / "train.csv", 1000, seed=1)
        rows(directory / "eval.csv", 100, seed=2)
        subprocess.run(command(directory, directory / "whole"), check=True, stderr=subprocess.DEVNULL)
        expected = end(directory / "whole")
        while kills < options.kills:
            output = directory / f"killed-{runs}"
            runs += 1
            for _ in range(min(10, options.kills - kills)):
                where = kill(command(directory, output), output, rng)
                if where.startswith("exit"):
                    sys.exit(f"kill {kills + 1}, run {runs}: {where}")
                if where == "done":
                    break
                kills, halves = kills + 1, halves + where.endswith("written")
                print(f"kill {kills}, run {runs}: {where}", flush=True)
            subprocess.run(command(directory, output), check=True, stderr=subprocess.DEVNULL)
            if end(output) != expected:
                sys.exit(f"run {runs}: ended otherwise than the run that nothing happened to")
            print(f"run {runs} ended with the same bytes", flush=True)
    print(f"{kills} kills in {runs} runs ({halves} while a checkpoint was being written): every end the same, byte by byte")


if __name__ == "__main__":
    main()
