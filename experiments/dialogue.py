"""SmolLM2-135M-Instruct learns short English dialogues, with LoRA and with its last layers: held-out loss and replies.

    python experiments/dialogue.py [--output runs/dialogue] [--examples 400]

Model (4-bit, in llama.cpp's format) and dialogues come inside Python packages (requirements/demo.txt). What a conversation
begins with decides by its SHA-1 whether it is held out, so that the same question is never on both sides. The loss is that
of the assistant's tokens in the held-out conversations, the same before and after.
"""

import argparse
import contextlib
import io
import json
import time
from pathlib import Path

from ftjax.cli import main
from ftjax.demo.dialogues import model_file, write_data
from ftjax.generate import Sampling, TextGenerator, generate
from ftjax.launch import keep_programs, with_huge_pages

SPECS = {"LoRA": "lora:8", "last layers": "last:4"}
LEARNING_RATES = {"LoRA": "1e-3", "last layers": "3e-4"}
QUESTIONS = ("Hi, how is it going?", "What is your favorite food?", "Are you a robot?", "Tell me a joke")


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
