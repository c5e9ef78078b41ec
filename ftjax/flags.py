"""The flags of a command: help in groups, settings from a file, and one line about what was mistyped.

tyro makes a command's dataclass of its arguments; what a person reads before that is made here, from the same dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import os
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tyro

from ftjax.errors import InputError, did_you_mean

GROUPS = {
    "What most runs need": (
        *("model", "train_file", "eval_file", "test_file", "output", "method", "methods", "train_parameters", "epochs"),
        *("batch_size", "learning_rate"),
    ),
    "Data": (
        *("unlabeled_file", "dataset", "dataset_config", "train_split", "eval_split", "test_split", "text_column"),
        *("text_pair_column", "label_column", "labels_per_class", "max_length", "max_target_length", "window_overlap", "task"),
    ),
    "What trains": (
        *("classifier", "template", "description", "descriptions_file", "unfreeze", "layer_decay"),
        *("lora_alpha", "lora_targets", "dropout", "frozen_dropout"),
        *("partial_learning_rate", "from_scratch", "lora_dropout", "dora", "adapter"),
    ),
    "Optimisation": (
        *("seed", "seeds", "schedule", "warmup_steps", "weight_decay", "max_gradient_norm", "gradient_accumulation"),
        *("metric", "early_stopping", "optimizer"),
    ),
    "Self-supervision": (
        *("self_supervised_loss", "self_supervised_weight", "supervised_weight", "unlabeled_ratio", "mask_probability"),
        *("mask_whole_words", "mask_once", "augmentation", "augmentation_probability", "confidence", "sharpening"),
        *("contrastive_temperature", "teacher_decay", "teacher_scores", "adapt_epochs", "adapt_loss", "adapt_learning_rate"),
    ),
    "Speed and memory": (
        *("precision", "hidden_dtype", "reduce_dtype", "remat", "sharding", "scan_layers", "buckets", "packing"),
        *("vocabulary", "unroll_accumulation"),
        *("prefix_cache", "prefix_cache_memory_gb", "prefix_cache_disk_gb", "prefix_cache_dir", "base_bits", "moment_dtype"),
    ),
    "Devices and hosts": (*("mesh", "parallel", "coordinator_address", "process_count", "process_index", "process_timeout"),),
    "The run itself": (
        *("resume", "config", "tracker", "tracker_project", "log_every", "save_every", "nonfinite", "write_timeout"),
        *("export_format", "push_to_hub", "private", "json"),
    ),
}
"""Where the help of a command with many flags shows each of them; those named nowhere come last."""
FEW = 20
"""A command with no more flags than this shows them as they come."""
OF_A_RUN = ("labels", "bucket_lengths", "device", "versions", "command", "files", "tracker_run")
"""Keys of a run's config.json that are no settings."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    name: of the field. kind: the type of a value, or of each of several. read: makes the values of the words, for flags
    that are no plain type; ValueError says what is wrong.
    """

    name: str
    kind: Any
    metavar: str
    several: bool
    positional: bool
    default: Any
    about: str
    read: Callable[[list[str]], Any] | None = None

    @property
    def spelled(self) -> str:
        """As on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it takes, () if any."""
        return tuple(map(str, typing.get_args(self.kind))) if typing.get_origin(self.kind) is Literal else ()

    def check(self, values: list[str]) -> None:
        """Raise InputError for values that it cannot have."""
        if self.read is not None:
            try:
                self.read(values)
            except ValueError as error:
                raise InputError(f"{self.spelled} {' '.join(values)}: {error}") from None
        for value in values:
            self._check(value)

    def _check(self, value: str) -> None:
        if self.choices and value not in self.choices and value != "None":
            near = did_you_mean(value, self.choices)
            raise InputError(f"{self.spelled} {value}: unknown; known are {', '.join(self.choices)}.{near}")
        if self.kind in (int, float) and value != "None":
            try:
                self.kind(value)
            except ValueError:
                what = "a whole number" if self.kind is int else "a number"
                what += "; ftjax compare takes several" if "," in value else ""
                raise InputError(f"{self.spelled} {value}: must be {what}.") from None

    @property
    def said_default(self) -> str:
        """What it is when not given; nothing where `about` says so, or nothing is the default."""
        if self.default is dataclasses.MISSING:
            return "Required."
        if "Default" in self.about or self.default is False:
            return ""
        if isinstance(self.default, tuple):
            return f"Default: {(',' if '...' in self.metavar else ' ').join(map(str, self.default)) or 'none'}."
        return f"Default: {'none' if self.default is None else self.default}."


ABOUT_CONFIG = (
    "Settings from a YAML or JSON file, for ftjax train also a run's config.json; flags override them, --no-NAME turns a "
    "switch off. Default: none."
)
CONFIG = Flag("config", Path, "FILE", False, False, None, ABOUT_CONFIG)


@functools.cache
def flags_of(command: type) -> dict[str, Flag]:
    """Name -> flag, of what is not hidden."""
    found, abouts = {}, _docstrings(command)
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        hint, marks = hints[field.name], list[Any]()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
        if tyro.conf.Suppress in marks:
            continue
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        several = typing.get_origin(hint) is tuple
        kind = typing.get_args(hint)[0] if several else hint
        special = next((mark for mark in marks if isinstance(mark, tyro.constructors.PrimitiveConstructorSpec)), None)
        if special is not None:
            kind, metavar = str, special.metavar if isinstance(special.metavar, str) else "VALUE"
        elif typing.get_origin(kind) is Literal:
            metavar = "|".join(map(str, typing.get_args(kind)))
        else:
            metavar = {bool: "", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}.get(kind, "VALUE")
        metavar += " ..." if several and special is None else ""
        positional = tyro.conf.Positional in marks
        about, read = abouts.get(field.name, ""), None if special is None else special.instance_from_str
        found[field.name] = Flag(field.name, kind, metavar, several, positional, field.default, about, read)
    return found | {"config": CONFIG}


def _docstrings(command: type) -> dict[str, str]:
    """Field -> the string below it in the source, of a dataclass and those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(command.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for field, below in pairwise(typing.cast(ast.ClassDef, tree).body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = inspect.cleandoc(ast.literal_eval(below.value)).replace("\n", " ")
    return found


# Help


def overview(commands: Mapping[str, type], description: str) -> str:
    """What `ftjax --help` prints."""
    lines = ["usage: ftjax COMMAND ...", "", description, ""]
    for name, command in commands.items():
        about = _first_sentence(inspect.getdoc(command) or "")
        lines += _wrapped(about, first=f"  {_bold(f'{name:11}')} ", indent=14, taken=14)
    lines += [
        "",
        "ftjax COMMAND --help explains a command and its flags.",
    ]
    return "\n".join(lines)


def help_of(name: str, command: type) -> str:
    """What `ftjax NAME --help` prints."""
    flags = flags_of(command)
    required = [f"{f.spelled} {f.metavar}" for f in flags.values() if f.default is dataclasses.MISSING and not f.positional]
    positional = [f.metavar for f in flags.values() if f.positional]
    lines = [" ".join(["usage: ftjax", name, *required, "[flags]", *positional]), ""]
    for paragraph in (inspect.getdoc(command) or "").split("\n\n"):
        lines += [*_wrapped(paragraph.replace("\n", " ")), ""]
    for title, group in _grouped(flags):
        lines.append(_bold(title))
        for flag in group:
            what = flag.metavar if flag.positional else f"{flag.spelled} {flag.metavar}".rstrip()
            lines.append(f"  {_bold(what)}")
            lines += _wrapped(" ".join(filter(None, (flag.about, flag.said_default))), first=" " * 6, indent=6)
        lines.append("")
    return "\n".join(lines).rstrip()


def _grouped(flags: Mapping[str, Flag]) -> Iterator[tuple[str, list[Flag]]]:
    if len(flags) <= FEW:
        yield "Flags", list(flags.values())
        return
    for title, names in GROUPS.items():
        if group := [flags[name] for name in names if name in flags]:
            yield title, group
    placed = {name for names in GROUPS.values() for name in names}
    if rest := [flag for name, flag in flags.items() if name not in placed]:
        yield "More", rest


def _first_sentence(text: str) -> str:
    return text.split("\n\n")[0].replace("\n", " ")


def _wrapped(text: str, *, first: str = "", indent: int = 0, taken: int | None = None) -> list[str]:
    """Lines that fit the terminal. taken: columns that `first` takes, where some of its characters are not shown."""
    width = max(60, min(110, shutil.get_terminal_size().columns)) - 1
    opening = " " * (len(first) if taken is None else taken)
    lines = textwrap.wrap(text, width, initial_indent=opening, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [first + line[len(opening) :] if number == 0 else line for number, line in enumerate(lines)]


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


# Arguments


def prepared(name: str, command: type, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command as tyro takes them, those of --config among them.

    Raises InputError for a flag that does not exist, a value that its flag cannot have, and a required flag that is absent.
    """
    flags, rest = flags_of(command), list[str]()
    given: dict[str, list[str] | None] = {}
    for flag, values in _split(name, flags, arguments):
        if flag is None:
            rest += values or ()
        elif flag is CONFIG:
            (path,) = values or ("",)
            given = _settings(Path(path), name, command) | given
        else:
            given[flag.name] = values
    if rest and not any(flag.positional for flag in flags.values()):
        raise InputError(
            f"ftjax {name} has no place for {rest[0]!r}; what is before it takes one value. See ftjax {name} --help."
        )
    absent = [f for f in flags.values() if f.default is dataclasses.MISSING and not f.positional and f.name not in given]
    if absent:
        raise InputError(f"ftjax {name} needs {' and '.join(flag.spelled for flag in absent)}.")
    for field, values in given.items():
        if flags[field].kind is bool:
            rest += [flags[field].spelled] * (values is not None)
            continue
        flags[field].check(values or [])
        rest += [flags[field].spelled, *(values or ())]
    return rest


def _split(name: str, flags: Mapping[str, Flag], arguments: Sequence[str]) -> Iterator[tuple[Flag | None, list[str] | None]]:
    """Each flag with its values, in turn; None with what belongs to none. A switch that --no-... turns off has None."""
    spelled = {flag.spelled: flag for flag in flags.values() if not flag.positional}
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            yield None, [word]
            continue
        word, equals, value = word.partition("=")
        word = word.replace("_", "-")
        off = spelled.get("--" + word.removeprefix("--no-")) if word.startswith("--no-") else None
        if off is not None and off.kind is bool:
            yield off, None
            continue
        if word not in spelled:
            raise InputError(f"ftjax {name} has no flag {word}.{did_you_mean(word, spelled)} See ftjax {name} --help.")
        flag, values = spelled[word], [value] if equals else []
        most = 0 if flag.kind is bool else len(waiting) if flag.several else 1 - len(values)
        while waiting and most > 0 and not waiting[0].startswith("--"):
            values.append(waiting.pop(0))
            most -= 1
        if not values and not flag.several and flag.kind is not bool:
            raise InputError(f"{word}: needs a value ({flag.metavar}).")
        yield flag, values


def _settings(path: Path, name: str, command: type) -> dict[str, list[str] | None]:
    """Field -> values as on the command line, from a YAML or JSON file. What is null or belongs to another command is left."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        read = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"--config {path}: cannot be read ({reason}).") from None
    if not isinstance(read, dict):
        raise InputError(f"--config {path}: must hold names and values of flags, such as learning_rate: 3e-5.")
    flags, hidden = flags_of(command), {field.name for field in dataclasses.fields(command)}
    found: dict[str, list[str] | None] = {}
    for key, value in read.items():
        field = str(key).replace("-", "_")
        if field not in flags or flags[field].positional or field == "config":
            if field in hidden or field in OF_A_RUN:
                continue
            near = did_you_mean(field, flags)
            raise InputError(f"--config {path}: ftjax {name} has no setting {key!r}.{near}")
        if isinstance(value, dict):
            raise InputError(f"--config {path}: {key} must be a value or a list of values.")
        if value is None or value == []:
            continue
        if flags[field].kind is bool and not isinstance(value, bool):
            raise InputError(f"--config {path}: {key} must be true or false.")
        if flags[field].kind is not bool and isinstance(value, bool):
            raise InputError(f"--config {path}: {key} must not be {value}; a word such as no or on needs quotes in YAML.")
        if value is False:
            continue
        found[field] = [] if value is True else [str(item) for item in (value if isinstance(value, list) else [value])]
    return found
