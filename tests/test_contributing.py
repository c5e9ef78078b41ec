"""What CONTRIBUTING shows is enough: its files, lines and tests, written into a copy of the repository, pass there."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import CACHE, ROOT

BLOCKS = re.findall(r"```(python|diff)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
FILES = {text.split("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}
CHANGES = [text.split("\n", 1) for kind, text in BLOCKS if kind == "diff"]


def changed(text, change):
    """The text with every part of a diff in it, each of which must fit in exactly one place."""
    for part in change.split("@@\n"):
        old, new = ("".join(f"{line[1:]}\n" for line in part.splitlines() if line[0] in signs) for signs in (" -", " +"))
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def copy(tmp_path):
    """The repository as it is after all that CONTRIBUTING says."""
    for name in ("ftjax", "tests", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    CACHE.mkdir(exist_ok=True)
    (tmp_path / CACHE.name).symlink_to(CACHE)
    for path, text in FILES.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text, encoding="utf-8")
    for first, change in CHANGES:
        path = tmp_path / first.removeprefix("--- ")
        path.write_text(changed(path.read_text(encoding="utf-8"), change), encoding="utf-8")
    return tmp_path


def run_tests(copy, marks):
    tests = [path for path in FILES if path.startswith("tests/")]
    environment = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'tests'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_is_a_file_and_a_test_and_one_place_that_lists_it():
    assert len(FILES) == 6 and len(CHANGES) == 3
    for first, change in CHANGES:
        text = (ROOT / first.removeprefix("--- ")).read_text(encoding="utf-8")
        assert changed(text, change) != text


@pytest.mark.pages
def test_their_tests_pass_in_a_repository_that_has_them(copy):
    assert "5 passed" in run_tests(copy, "not parity")


@pytest.mark.pages
@pytest.mark.parity
def test_the_architecture_equals_pytorchs(copy):
    assert "1 passed" in run_tests(copy, "parity")
