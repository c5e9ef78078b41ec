"""The wheel: it holds all of the package and nothing else, and its command runs away from the repository."""

import ast
import email
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT, command_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the repository."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("ftjax", "tests", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    build = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, built], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(built.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {str(path.relative_to(ROOT)) for path in (ROOT / "ftjax").rglob("*") if path.suffix in (".py", ".typed")}
    entries = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("entry_points.txt"))
    assert "ftjax = ftjax.__main__:program" in zipfile.ZipFile(wheel).read(entries).decode()


def metadata(wheel):
    """METADATA of the wheel."""
    name = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(name))


def imported():
    """The distributions that the package's files import, at their top or within a function."""
    modules = set()
    for path in (ROOT / "ftjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    installed = packages_distributions()
    modules -= {"ftjax", *sys.stdlib_module_names, "torch", "tensorflow"}  # these two are asked for by name, and may be missing
    return {module: {canonicalize_name(name) for name in installed[module]} for module in modules}


def test_what_it_imports_it_declares_and_the_extras_are_there(wheel):
    about = metadata(wheel)
    extras = set(about.get_all("Provides-Extra"))
    assert {"tpu", "cuda", "demo", "docs", "test", "wandb", "trackio", "h5", "gguf", "ner", "seq2seq", "chat"} <= extras
    assert about["Requires-Python"] == ">=3.11"
    needs = [Requirement(text) for text in about.get_all("Requires-Dist")]
    everyday = {canonicalize_name(need.name) for need in needs if need.marker is None}
    optional = {canonicalize_name(need.name) for need in needs} - everyday
    undeclared = {module for module, names in imported().items() if not names & (everyday | optional)}
    assert not undeclared
    assert {module for module, names in imported().items() if not names & everyday} == {
        *("h5py", "gguf", "seqeval", "sacrebleu", "rouge_score"),  # each in an extra, and named in the line that misses it
    }


def test_it_is_typed_for_others(wheel):
    assert "ftjax/py.typed" in zipfile.ZipFile(wheel).namelist()
    assert "Typing :: Typed" in metadata(wheel).get_all("Classifier")


def test_its_command_runs_where_there_is_no_repository(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", tmp_path / "installed"]
    done = subprocess.run([*install, wheel], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    environment = command_environment() | {"PYTHONPATH": str(tmp_path / "installed")}
    where = "import ftjax, sys; print(ftjax.__file__, file=sys.stderr); from ftjax.__main__ import program; program()"
    command = [sys.executable, "-c", where, "train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--learning-rate" in done.stdout, done.stderr
    assert Path(done.stderr.splitlines()[-1]).is_relative_to(tmp_path)
