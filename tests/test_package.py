"""The wheel: it holds all of the package and nothing else, and its command runs away from the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, command_environment


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


def test_its_command_runs_where_there_is_no_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = command_environment() | {"PYTHONPATH": str(tmp_path / "installed")}
    where = "import ftjax, sys; print(ftjax.__file__, file=sys.stderr); from ftjax.__main__ import program; program()"
    command = [sys.executable, "-c", where, "train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--learning-rate" in done.stdout, done.stderr
    assert Path(done.stderr.splitlines()[-1]).is_relative_to(tmp_path)
