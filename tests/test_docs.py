"""What the pages show in code runs, and what they name is there: README and all of docs/.

The blocks of a page run from top to bottom in a directory of its own, in which `desk` has laid out what pages take for granted.

python  All blocks of a page share their names. One that imports a package which is not installed is left out.
sh      `ftjax ...` runs. It is parsed alone where a word stands for another (`...`, MODEL, $FLAGS), and for commands that
        need more than a directory (`PARSED`). What follows `--` of the scripts for TPU VMs is parsed too. `cat > FILE <<'END'`
        writes the file. Other programs (make, pip, gcloud, python) are not started.
any     A block that begins with `# FILE` is that file. (Those of CONTRIBUTING run in a copy of the repository, in
        `tests/test_contributing.py`.)
"""

import dataclasses
import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import run_command, write_tiny_bert
from decoders import FAMILIES, write_decoder
from test_generate import CHAT_TEMPLATE, write_tokenizer

from ftjax.cli import COMMANDS, parse
from ftjax.flags import flags_of

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ENGLISH = [page for page in PAGES if page.parent.name != "zh" and not page.name.endswith(".zh-CN.md")]
PARSED = {"plan": "compiles for TPUs", "benchmark": "takes minutes", "chat": "is a conversation"}
NOT_OURS = ("peft", "tensorflow")  # make parity has them

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"^cat > (\S+) <<'END'\n(.*?)^END$", re.DOTALL | re.MULTILINE)
VARIABLE = re.compile(r"^(\w+)=\"(.*?)\"", re.DOTALL | re.MULTILINE)  # may span lines


def blocks(page):
    """(language, text) of every block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text, variables):
    """(whether to run it here, words) of each line that is a command, or has one after `--`. variables: so far; added to."""
    variables |= dict(VARIABLE.findall(text))
    for line in HEREDOC.sub("", text).replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)
        if line.startswith("ftjax "):
            yield True, shlex.split(line, comments=True)[1:]
        elif " -- " in line and line.startswith("python experiments/tpu_vm/tpu.py "):
            yield False, shlex.split(line.split(" -- ")[1], comments=True)


def stands_for_another(word):
    """Whether a reader must put something in its place."""
    return word == "..." or word.startswith("$") or any(re.fullmatch("[A-Z_]+", part) for part in re.split("[/=:.]", word))


def parsed(name, *words):
    """The command as the real command line takes it; `...` stands for whatever it needs."""
    if "..." in words:
        words = [word for word in words if word != "..."]
        for flag in flags_of(COMMANDS[name]).values():
            if flag.default is dataclasses.MISSING and not flag.positional and flag.spelled not in words:
                words += [flag.spelled, "x"]
    return parse([name, *words])


@pytest.fixture(scope="session")
def desk(tmp_path_factory, minilm):
    """What pages take for granted: tiny models under the names of real ones, a few rows, a finished run."""
    desk = tmp_path_factory.mktemp("desk")
    for name in ("bert-base-uncased", "minilm", "decoder"):
        (desk / name).mkdir()
    config = {"max_position_embeddings": 128, "num_hidden_layers": 4}
    write_tiny_bert(desk / "bert-base-uncased", minilm, config=config, pooler=True, masked_lm=True)
    write_tiny_bert(desk / "minilm", minilm, config={"max_position_embeddings": 128}, pooler=True)
    write_decoder(desk / "decoder", FAMILIES["llama"] | {"max_position_embeddings": 256})
    write_tokenizer(desk / "decoder", template=CHAT_TEMPLATE)
    for name, rows in {"train": 40, "dev": 10, "test": 10, "texts": 60}.items():  # rows of each class
        lines = [
            f"{name} {i}: a {a} film,{label}" for i in range(rows) for a, label in (("good", "positive"), ("bad", "negative"))
        ]
        (desk / f"{name}.csv").write_text("text,label\n" + "".join(f"{line}\n" for line in lines))
    for name in ("tickets", "tickets-dev"):
        rows = [{"subject": f"no {i}", "body": "it is broken", "team": ("billing", "technical")[i % 2]} for i in range(8)]
        (desk / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--model", "bert-base-uncased", "--train-file", "train.csv", "--eval-file", "dev.csv", "--epochs", 1)
    done = run_command(
        "train", *arguments, "--train-parameters", "lora:8,head", "--method", "partial", "--output", "runs/a", cwd=desk
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(desk / "runs" / "a", desk / "runs" / "b")
    return desk


@pytest.mark.pages
@pytest.mark.parametrize("page", [page for page in ENGLISH if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page, desk, tmp_path, monkeypatch):
    run_page(page, desk, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", sorted({*PAGES} - {*ENGLISH}), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_chinese_page_shows_what_the_english_one_does_but_for_comments(page):
    english = README if page.parent == ROOT else ROOT / "docs" / page.name
    for text in (page, english):
        assert text.exists()
    assert [said(text) for _, text in blocks(page)] == [said(text) for _, text in blocks(english)]


def said(text):
    """A block without its comments, and the space before them."""
    return [line.partition("#")[0].rstrip() for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.pages
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks transformers
def test_what_runs_with_other_libraries_runs(desk, tmp_path, monkeypatch):
    pages = [
        page for page in ENGLISH for language, text in blocks(page) if language == "python" and imported(text) & {*NOT_OURS}
    ]
    assert pages
    for page in dict.fromkeys(pages):
        assert not run_page(page, desk, tmp_path, monkeypatch)


def run_page(page, desk, directory, monkeypatch):
    """Run its blocks; what was left out because a package is missing."""
    monkeypatch.chdir(directory)
    left, names, variables = [], {}, {}
    shutil.copytree(desk, directory, dirs_exist_ok=True)
    for language, text in blocks(page):
        if file := re.match(r"# (\S+\.\w+)\n", text):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            if missing := [name for name in imported(text) if find_spec(name) is None]:
                left += missing
            else:
                exec(compile(text, str(page), "exec"), names)
        elif language == "sh":
            for file, content in HEREDOC.findall(text):
                Path(file).write_text(content, encoding="utf-8")
            for here, (name, *words) in commands(text, variables):
                parsed(name, *words)
                if not here or name in PARSED or any(map(stands_for_another, words)):
                    continue
                done = run_command(name, *words, cwd=directory)
                if done.returncode == 2 and "pip install 'ftjax[" in done.stderr:
                    left.append(done.stderr)
                else:
                    assert done.returncode == 0, (name, *words, done.stderr)
    return left


def imported(text):
    """Packages that a block imports."""
    lines = re.findall(r"^(?:import|from) (.+?)(?: import .*)?$", text, re.MULTILINE)
    return {part.split(" as ")[0].strip().split(".")[0] for line in lines for part in line.split(",")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_path_and_target_that_a_page_names_is_there(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        made = {"commands.md", "changelog.md", "contributing.md"}  # docs/hooks.py writes them into the site
        assert target.exists() or target.name in made, link
        assert not anchor or anchor in anchors(target), link
    text = prose + "".join(f"\n{text}" for language, text in blocks(page) if language == "sh")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\b(?:experiments|docs|tests|requirements|ftjax)/[\w/.-]+\.\w+", text):
        assert stands_for_another(path) or (ROOT / path).exists(), path


def anchors(page):
    """What GitHub and the site call its headings, or the name that a heading gives itself: `{ #name }`."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    named = re.findall(r"\{ #([\w-]+) \}$", "\n".join(headings), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | {*named}


def test_results_in_readme_are_those_of_the_evidence():
    results = README.read_text(encoding="utf-8").partition("## Results")[2].partition("## What is inside")[0]
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    figures = set(re.findall(r"\d+[.,]\d+", results))
    assert len(figures) > 10
    assert not {figure for figure in figures if figure not in evidence}
