"""What a person meets before a run starts: help, mistyped words, settings from a file, completion; and that it is quick."""

import json
import subprocess
import sys

import pytest
from conftest import command_environment, fail

from ftjax.cli import COMMANDS, main, parse
from ftjax.config import TrainConfig
from ftjax.errors import InputError
from ftjax.flags import FEW, GROUPS, flags_of, help_of

HEAVY = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "transformers",
    "datasets",
    "numpy",
    "sklearn",
    "scipy",
    "matplotlib",
    "rich",
    "pyarrow",
)


def test_help_imports_nothing_heavy():
    program = f"""
import sys
from ftjax.cli import main
for words in (["--help"], ["train", "--help"], ["--version"]):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=command_environment(), timeout=60
    )
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained_with_its_default(name):
    flags, shown = flags_of(COMMANDS[name]), help_of(name, COMMANDS[name])
    for flag in flags.values():
        assert flag.about, flag.name
        assert flag.positional or flag.spelled in shown
        told = flag.said_default or "Default" in flag.about
        assert told or flag.default is False, flag.name  # a switch is off
    if len(flags) > FEW:
        first = shown.split("What most runs need", 1)[1].split("\n\n")[0]
        assert 1 <= first.count("  --") <= 10
        assert name not in ("train", "compare") or first.count("  --") == 10


def test_flags_of_train_all_have_a_place():
    assert set(flags_of(TrainConfig)) == {name for names in GROUPS.values() for name in names} & set(flags_of(TrainConfig))


@pytest.mark.parametrize(
    "words, said",
    [
        (["trian"], "no command of ftjax. Did you mean 'train'?"),
        (["train", "--modle", "x"], "no flag --modle. Did you mean '--model'?"),
        (["train", "--model", "m"], "ftjax train needs --output."),
        (["train", "--model", "m", "--output", "o", "--method", "parital"], "--method parital: unknown; known are full,"),
        (["train", "--lr", "1e-4"], "no flag --lr. Did you mean '--learning-rate'?"),
        (["train", "--model=m", "--output=o", "--learning-rate=1e-5,5e-5"], "a number; ftjax compare takes several."),
        (["train", "--model=m", "--output=o", "--precision=bfloat61"], "Did you mean 'bfloat16'?"),
        (["train", "--model", "m", "--output", "o", "--epochs", "three"], "--epochs three: must be a whole number"),
        (["train", "--model", "m", "--output", "o", "--dropout", "x"], "--dropout x: must be a number"),
        (["train", "--model", "--output", "o"], "--model: needs a value"),
        (["train", "--model", "m", "n", "--output", "o"], "no place for 'n'"),
        (["compare", "--model", "m", "--output", "o", "--methods", "full,partail"], "Did you mean 'partial'?"),
        (["train", "--model", "m", "--output", "o", "--tracker", "wnadb"], "Did you mean 'wandb'?"),
        (["train", "--config", "nowhere.yaml"], "--config nowhere.yaml: cannot be read"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_said_in_a_line_with_the_near_word(words, said, capsys):
    assert said in fail(capsys, *words)


def test_settings_from_a_file_with_flags_on_top(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("""
model: m            # a comment
output: runs/a
learning-rate: 3e-5
self_supervised_loss: [masked-lm, contrastive=0.2]
method: self-supervised
resume: true
early_stopping: null
mask_once: false
""")
    found = parse(["train", "--config", str(file), "--epochs", "7", "--learning_rate=1e-4", "--no-resume"])
    assert (found.model, str(found.output), found.learning_rate, found.epochs) == ("m", "runs/a", 1e-4, 7)
    assert found.self_supervised_loss == ("masked-lm", "contrastive=0.2") and not found.resume and not found.mask_once
    assert parse(["train", "--config", str(file)]).resume
    grid = parse(["compare", "--config", str(file), "--learning-rate", "1e-3,1e-4", "--seeds", "0", "1"])
    assert grid.learning_rate == (1e-3, 1e-4) and grid.seeds == (0, 1)
    assert parse(["compare", "--config", str(file)]).learning_rate == (3e-5,)

    for text, said in (
        ("learning_rat: 1", "no setting 'learning_rat'. Did you mean 'learning_rate'?"),
        ("- 1", "must hold names and values"),
        ("model: {a: 1}", "model must be a value"),
        ("resume: maybe", "resume must be true or false"),
        ("label_column: no", "needs quotes"),
        ("method: fulll", "Did you mean 'full'?"),
        ("a: [", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(InputError) as error:
            parse(["train", "--config", str(file), "--output", "o", "--model", "m"])
        assert said in str(error.value)


def test_the_settings_of_a_run_are_a_config_too(tmp_path):
    config = TrainConfig(
        model="m", output=tmp_path / "a", method="partial", unfreeze=("1=last:1,head",), lora_targets=r"a\.(b|c)"
    )
    more = {"labels": ["a", "b"], "versions": {"jax": "1"}, "command": "ftjax train", "bucket_lengths": [8], "device": "cpu"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict() | more))
    assert parse(["train", "--config", str(file)]) == config


def test_completion_knows_commands_flags_and_values(tmp_path, capsys):
    main(["completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    for words, expected in (
        ("ftjax tra", "train"),
        ("ftjax train --lea", "--learning-rate"),
        ("ftjax train --method part", "partial"),
        ("ftjax train --conf", "--confidence --config"),
        ("ftjax plan --train-fil", ""),  # hidden there
    ):
        ask = f"""
source {tmp_path / "completion"}
COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}
_ftjax
echo "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60)
        assert (done.stdout.strip(), done.returncode) == (expected, 0), (words, done)
    main(["completion", "zsh"])
    assert "bashcompinit" in capsys.readouterr().out
    main(["completion", "fish"])
    shown = capsys.readouterr().out
    assert "-l method -r -f -a 'full partial self-supervised'" in shown and all(name in shown for name in COMMANDS)
