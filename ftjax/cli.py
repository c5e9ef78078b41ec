"""The command line: one dataclass a command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import tyro

import ftjax
from ftjax.config import BenchmarkConfig, CompareConfig, ExportFormat, Parameters, PlanConfig, StepConfig, TaskName, TrainConfig
from ftjax.errors import InputError, Stopped, did_you_mean
from ftjax.flags import help_of, overview, prepared
from ftjax.redact import redact
from ftjax.zero_shot.config import ZeroShotConfig


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a trained model on a file: the loss and the metrics of its task, exact over every example."""

    model: str
    """Directory of a trained model (RUN/model) or adapter, or its hub id."""
    file: Path
    """Rows with labels."""
    task: TaskName | None = None
    """Its task, as in ftjax train. Default: what its config.json tells, else classification."""
    text_column: str | None = None
    """Column of the text. Default: that of the model's task, as in ftjax train."""
    text_pair_column: str | None = None
    """Column of the second text, for sentence pairs, or of the context. Default: that of the model's task."""
    label_column: str | None = None
    """Column of the label. Default: that of the model's task, as in ftjax train."""
    batch_size: int = 32
    """Rows at a time."""
    max_length: int | None = None
    """Longest row in tokens, longer ones are cut. Default: as many as the model has positions."""
    adapter: str | None = None
    """An adapter in PEFT's format for that model, a directory or hub id."""
    window_overlap: int | None = None
    """Tokens that windows of a long context have in common, as in ftjax train."""
    precision: str = "float32"
    """Operands of dot products: float32 or bfloat16."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Say what a trained model predicts for texts: one JSON object a line with text, prediction and scores."""

    model: str
    """Directory of a trained model (RUN/model) or adapter, or its hub id."""
    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to predict for."""
    file: Path | None = None
    """Rows to predict for, instead of texts."""
    output: Path | None = None
    """Write there instead of stdout; must not exist."""
    task: TaskName | None = None
    """Its task, as in ftjax train. Default: what its config.json tells, else classification."""
    max_new_tokens: int = 128
    """Longest text that a causal-lm or dialogue model writes, in tokens."""
    text_column: str | None = None
    """Column of the text. Default: that of the model's task, as in ftjax train."""
    text_pair_column: str | None = None
    """Column of the second text, for sentence pairs, or of the context. Default: that of the model's task."""
    batch_size: int = 32
    """Rows at a time."""
    max_length: int | None = None
    """Longest row in tokens, longer ones are cut. Default: as many as the model has positions."""
    adapter: str | None = None
    """An adapter in PEFT's format for that model, a directory or hub id."""
    window_overlap: int | None = None
    """Tokens that windows of a long context have in common, as in ftjax train."""
    precision: str = "float32"
    """Operands of dot products: float32 or bfloat16."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue texts with a decoder: the new text of each, or one JSON object a line with prompt, text and token_ids."""

    model: str
    """Directory of a decoder, a .gguf file or a hub id."""
    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    file: Path | None = None
    """Rows to continue, instead of prompts."""
    text_column: str = "text"
    """Column of the text."""
    max_new_tokens: int = 128
    """Longest continuation in tokens; it also ends where the model ends it."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn, the more freely the larger it is."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the draws."""
    batch_size: int = 8
    """Prompts at a time."""
    adapter: str | None = None
    """An adapter in PEFT's format for that model, a directory or hub id."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Operands of dot products: float32 or bfloat16, which is faster on accelerators and much slower on a CPU."""
    json: bool = False
    """Print one JSON object a line on stdout and nothing else."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """Talk with an instruction-tuned decoder; /quit or the end of the input ends it."""

    model: str
    """Directory of a decoder with a chat template, a .gguf file or a hub id."""
    system: str | None = None
    """A first message that tells the model how to answer."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn, the more freely the larger it is."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the draws."""
    adapter: str | None = None
    """An adapter in PEFT's format for that model, a directory or hub id."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Operands of dot products: float32 or bfloat16, which is faster on accelerators and much slower on a CPU."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a checkpoint of a run, or a model, as a Hugging Face model directory, an adapter or a program to serve."""

    output: Path
    """Directory to write; must not exist or be empty."""
    checkpoint: Path | None = None
    """A run's directory (its best checkpoint), or RUN/checkpoints/STEP."""
    model: str | None = None
    """Instead of a run: directory of a model or adapter, or its hub id."""
    adapter: str | None = None
    """An adapter in PEFT's format for --model, which is merged."""
    export_format: ExportFormat | None = None
    """huggingface: a directory that transformers loads. adapter: low-rank matrices that peft loads. stablehlo: a program for
    jax alone. savedmodel: one for TensorFlow. Default: the run's own, huggingface for a model."""
    push_to_hub: str | None = None
    """Upload it to this repository of the Hugging Face hub, OWNER/NAME, too; with the token of hf auth login or HF_TOKEN."""
    private: bool = False
    """Make the repository private, if it is new."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one page over several finished runs: which is best, at what cost, and what it rests on."""

    run: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs (--output of ftjax train)."""
    output: Path = Path("report.html")
    """File to write; an earlier report is replaced, nothing else is."""


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say what this machine has, what is missing and what to do about it."""

    json: bool = False
    """Print one JSON object on stdout and nothing else."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """Print a script that completes commands and flags in a shell; for bash: eval "$(ftjax completion bash)"."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Your shell."""


COMMANDS = {
    "train": TrainConfig,
    "compare": CompareConfig,
    "evaluate": Evaluate,
    "predict": Predict,
    "generate": Generate,
    "chat": Chat,
    "zero-shot": ZeroShotConfig,
    "parameters": Parameters,
    "plan": PlanConfig,
    "benchmark": BenchmarkConfig,
    "export": Export,
    "report": Report,
    "doctor": Doctor,
    "completion": Completion,
}
DESCRIPTION = "Fine-tune pretrained language models in JAX: fully, in part, or with a self-supervised loss."


def run(command: Any) -> None:
    """Do what a parsed command says; raises InputError for a mistake in what the user gave, `Stopped` after a signal."""
    match command:
        case CompareConfig():
            from ftjax.processes import is_first, join, last_word

            join(command)
            from ftjax.compare import compare
            from ftjax.compiler import elsewhere
            from ftjax.terminal import Terminal

            with last_word(), elsewhere(command.model), Terminal(quiet=not is_first()) as terminal:
                results = compare(command, terminal)
            if command.json and is_first():
                print_json(results)
        case PlanConfig():
            from ftjax.cost.topology import settle_environment

            settle_environment(command.topology)
            from ftjax.cost.plan import plan, show_plan
            from ftjax.terminal import Terminal

            found = plan(command, Terminal().say)
            if command.json:
                print_json(found)
            else:
                show_plan(found)
        case BenchmarkConfig():
            from ftjax.compiler import elsewhere
            from ftjax.cost.benchmark import benchmark, show_benchmark
            from ftjax.terminal import Terminal

            with elsewhere(command.model):
                found = benchmark(command, Terminal().say)
            if command.json:
                print_json(found)
            else:
                show_benchmark(found)
        case TrainConfig():
            from ftjax.processes import is_first, join, last_word

            join(command)  # before anything asks JAX for a device
            from ftjax.compiler import elsewhere
            from ftjax.loop import fit
            from ftjax.rundir import predicts
            from ftjax.terminal import Terminal, what_next

            with last_word(), elsewhere(command.model), Terminal(quiet=not is_first()) as terminal:
                result = fit(command, terminal)
                terminal.say(what_next(command, predicts=predicts(command.output)))
            if command.json and is_first():
                print_json(result)
        case Evaluate():
            model = predictor(command)
            scores = model.evaluate(model.task.read_file(command.file, command, require_labels=True))
            if command.json:
                print_json(scores)
            else:
                for name, value in scores.items():
                    print(f"{name:10} {value:.4f}" if isinstance(value, float) else f"{name:10} {value:,}")
        case Predict():
            predict(command)
        case Generate():
            generate(command)
        case Chat():
            chat(command)
        case ZeroShotConfig():
            from ftjax.terminal import Terminal
            from ftjax.zero_shot.run import classify

            with Terminal() as terminal:
                found = classify(command, terminal)
            for value in found if isinstance(found, list) else [found] * command.json:
                print_json(value)
        case Parameters():
            from ftjax.parameters import describe, show

            found = describe(command)
            if command.json:
                print_json(found)
            else:
                show(found)
        case Export():
            from ftjax.export import export, export_model

            if (command.checkpoint is None) == (command.model is None):
                raise InputError("Give either --checkpoint or --model.")
            if command.push_to_hub is not None:
                from ftjax.pretrained.hub import check_push, push

                check_push(command.push_to_hub)
            if command.checkpoint is not None:
                if command.adapter is not None:
                    raise InputError("--adapter goes with --model; a run knows its own.")
                export(command.checkpoint, command.output, command.export_format)
            elif command.model is not None:
                export_model(command.model, command.adapter, command.output, command.export_format)
            print(f"Model: {command.output}", file=sys.stderr)
            if command.push_to_hub is not None:
                print(f"On the hub: {push(command.output, command.push_to_hub, private=command.private)}", file=sys.stderr)
        case Report():
            from ftjax.report import read_run, table, write_report
            from ftjax.terminal import Terminal

            if command.output.exists() and (command.output.is_dir() or command.output.suffix != ".html"):
                raise InputError(f"--output {command.output}: exists and is not a report; choose another file, such as a.html.")
            if not command.output.parent.is_dir():
                raise InputError(f"--output {command.output}: its directory does not exist.")
            write_report(command.run, command.output)
            terminal = Terminal()
            terminal.console.print(table([read_run(directory) for directory in command.run]))
            terminal.say(f"Report: {command.output}")
        case Doctor():
            from ftjax.doctor import examine

            found = examine()
            if command.json:
                print_json(found)
            else:
                print(f"Python {found['python']}, " + ", ".join(f"{k} {v or 'missing'}" for k, v in found["packages"].items()))
                print(f"Devices: {', '.join(found['devices']) or 'none'}")
                print(f"Memory {found['memory_bytes'] / 1e9:.1f} GB, free disk {found['disk_free_bytes'] / 1e9:.1f} GB")
                for line in found["advice"]:
                    print(f"- {line}")
                print("Ready." if found["ok"] else "Not ready.")
            if not found["ok"]:
                raise SystemExit(2)
        case Completion():
            from ftjax.completion import completion

            sys.stdout.write(completion(command.shell, COMMANDS))


def predictor(command: Evaluate | Predict) -> Any:
    """The trained model that a command names."""
    from ftjax.inference import Predictor

    names = ("adapter", "max_length", "batch_size", "precision")
    return Predictor.load(command.model, **{name: getattr(command, name) for name in names}, settings=command)


def predict(command: Predict) -> None:
    """Predictions for the texts or the file's rows; a line of JSON each, with the number of the file's row."""
    if (command.file is None) == (not command.text):
        raise InputError("Give either texts or --file.")
    if command.output is not None and command.file is None:
        raise InputError("--output needs --file; the predictions of texts go to stdout.")
    if command.output is not None and command.output.exists():
        raise InputError(f"--output {command.output}: exists already; choose another file.")
    model = predictor(command)
    if command.file is not None:
        rows = model.task.read_file(command.file, command, labels=False)
    else:
        rows = model.task.asked(list(command.text))
    found = model.predict(rows, max_new_tokens=command.max_new_tokens)
    if command.file is not None:
        found = [{"row": number, **line} for number, line in enumerate(found, start=1)]
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
    if command.output is None:
        sys.stdout.write(lines)
    else:
        partial = command.output.with_name(f".{command.output.name}.partial")
        try:
            partial.write_text(lines, encoding="utf-8")
            os.replace(partial, command.output)
        except OSError as error:
            raise InputError(f"--output {command.output}: cannot be written ({error.strerror}).") from None


def generate(command: Generate) -> None:
    """Continue the prompts or the file's rows; a single prompt's text is shown as it grows."""
    from ftjax.generate import Sampling, TextGenerator, pieces

    if (command.file is None) == (not command.prompt):
        raise InputError("Give either --prompt or --file.")
    if command.batch_size < 1:
        raise InputError(f"--batch-size {command.batch_size}: must be at least 1.")
    sampling = Sampling(command.max_new_tokens, command.temperature, command.top_p, command.seed)
    sampling.check()
    prompts = list(command.prompt)
    if command.file is not None:
        from ftjax.data.files import read_file

        prompts = read_file(command.file, text_column=command.text_column, label_column=None).texts
    generator = TextGenerator.load(command.model, adapter=command.adapter, precision=command.precision)
    if len(prompts) == 1 and not command.json:
        for piece in pieces(generator.decode, generator.stream(generator.encode(prompts[0]), sampling)):
            print(piece, end="", flush=True)
        print()
        return
    for found in generator.generate(prompts, sampling, batch_size=command.batch_size):
        if command.json:
            print_json(found)
        else:
            print(f"{found['prompt']}{found['text']}\n")


def chat(command: Chat) -> None:
    """One turn after the other; each answer is shown as it grows."""
    from ftjax.generate import Sampling, TextGenerator, pieces

    sampling = Sampling(command.max_new_tokens, command.temperature, command.top_p, command.seed)
    sampling.check()
    generator = TextGenerator.load(command.model, adapter=command.adapter, precision=command.precision)
    messages = [] if command.system is None else [{"role": "system", "content": command.system}]
    generator.chat_prompt([*messages, {"role": "user", "content": ""}])  # fails now rather than after the first question
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.strip()})
        answer = ""
        for piece in pieces(generator.decode, generator.stream(generator.chat_prompt(messages), sampling)):
            print(piece, end="", flush=True)
            answer += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, ensure_ascii=False))


class LateCallbacks(asyncio.SelectorEventLoop):
    """An event loop that ignores callbacks once it is closed, and prints nothing about tasks that failed.

    When one write of a checkpoint fails, Orbax raises that and closes its loop while other writes are still under way.
    Each of them would print a traceback of its own around our one line about the disk.
    """

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing: the failure that matters is raised where the loop was run."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *arguments: Any, context: Any = None
    ) -> asyncio.Handle:
        """As the base class, but nothing happens after `close`."""
        if self.is_closed():
            return asyncio.Handle(callback, arguments, self, context)
        return super().call_soon_threadsafe(callback, *arguments, context=context)


class LoopPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes `LateCallbacks` the loop of this process."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A new, open loop."""
        return LateCallbacks()


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 a mistake in the input, 75 stopped by a signal after saving."""
    try:
        _main(arguments)
    except BrokenPipeError:  # whoever read our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def parse(arguments: list[str]) -> Any:
    """The command that the arguments ask for; prints help and exits where they ask for that. InputError for a mistake."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(overview(COMMANDS, DESCRIPTION))
        raise SystemExit(0)
    if name == "--version":
        print(f"ftjax {ftjax.__version__}")
        raise SystemExit(0)
    if name not in COMMANDS:
        raise InputError(f"{name}: no command of ftjax.{did_you_mean(name, COMMANDS)} See ftjax --help.")
    if "-h" in rest or "--help" in rest:
        print(help_of(name, COMMANDS[name]))
        raise SystemExit(0)
    words = prepared(name, COMMANDS[name], rest)
    return tyro.cli(COMMANDS[name], prog=f"ftjax {name}", args=words, config=(tyro.conf.FlagCreatePairsOff,))


def _main(arguments: list[str] | None) -> None:
    asyncio.set_event_loop_policy(LoopPolicy())
    # Libraries' notes to developers; ours are said in the log. Up to the very end of the process: a write of a checkpoint
    # that a full disk cut short leaves coroutines behind, and Python would complain of them after our one line.
    warnings.simplefilter("ignore")
    command = None
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        with heard(command):
            run(command)
    except InputError as error:
        print(f"ftjax: {redact(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print(f"ftjax: {stopped}", file=sys.stderr)
        raise SystemExit(75) from None
    except KeyboardInterrupt as interrupt:
        print(f"ftjax: interrupted{kept(command)}.", file=sys.stderr)
        raise SystemExit(75 if interrupt.args else 130) from None


@contextmanager
def heard(command: Any) -> Iterator[None]:
    """While inside, SIGTERM interrupts a run that has not begun to train, as Ctrl-C does, and Ctrl-C ends a plan at once.

    From its first step on a run hears signals itself, see ftjax/loop.py. While the compiler works, Python would hear nothing.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(number)

    match command:
        case PlanConfig():
            number, handler = signal.SIGINT, signal.SIG_DFL
        case TrainConfig() if has_run(command):
            number, handler = signal.SIGTERM, interrupt
        case _:
            yield
            return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def has_run(command: Any) -> bool:
    """Whether a command trains in a directory of its own, train or compare."""
    return isinstance(command, TrainConfig) and not isinstance(command, StepConfig)


def kept(command: Any) -> str:
    """What an interrupted command leaves, and how to go on."""
    if not has_run(command):
        return ""
    again = "the same command goes on" if command.resume else "go on with --resume"
    if any(command.output.glob("**/checkpoints/[0-9]*")):
        return f"; the checkpoints made so far are kept, {again}"
    return f" before the first checkpoint; {again if any(command.output.glob('**/config.json')) else 'start it again'}"


if __name__ == "__main__":
    from ftjax.__main__ import program

    program()
