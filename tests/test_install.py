"""Tests of the installation: what is locked and exported, and what make says."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMES = sum([PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values()], [])
NAMES = [name for name in NAMES if isinstance(name, str)]  # without groups in groups


def uv(*arguments):
    beside = Path(sys.executable).with_name("uv")  # where `make` installs it
    found = beside if beside.is_file() else shutil.which("uv") or pytest.skip("no uv here")
    done = subprocess.run([found, *arguments, "--offline"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}\nmake lock?"
    return done.stdout


def make(folder, *arguments, **environment):
    shutil.copy(ROOT / "Makefile", folder)
    command = [shutil.which("make"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment or None)


def test_the_lock_is_of_this_pyproject_and_the_requirements_are_of_the_lock():
    uv("lock", "--check")
    for name, arguments in {"requirements.txt": [], "service/requirements.txt": ["--only-group", "serve"]}.items():
        exported = uv("export", "--frozen", "--no-hashes", "--no-annotate", "--no-header", *arguments).splitlines()
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not line.startswith("#")] == exported, f"{name}: make lock?"


def test_every_dependency_has_a_reason_beside_it_and_no_version():
    lines = [line.partition("#") for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()]
    for name in NAMES:
        reasons = [reason.strip() for entry, _, reason in lines if entry.strip() == f'"{name}",']
        assert reasons and all(reasons), name
        assert re.fullmatch(r"[\w-]+(\[\w+\])?", name), f"{name}: versions stand in uv.lock"


def test_make_alone_lists_every_command_and_changes_nothing(tmp_path):
    done = make(tmp_path)
    phony = next(line for line in (tmp_path / "Makefile").read_text(encoding="utf-8").splitlines() if ".PHONY" in line)
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("make ")}
    assert listed == set(phony.split()[1:]) - {"help", "metal"}
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def test_a_python_that_is_too_new_is_named_with_ways_to_another(tmp_path):
    python = tmp_path / "python3"
    python.write_text(f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.version_info = (3, 14, 0, "final", 0); exec(sys.argv[1])' "$2"
""")
    python.chmod(0o755)
    for done in (make(tmp_path, "run", PATH=str(tmp_path)), make(tmp_path, "run", f"PYTHON={python}")):
        assert done.returncode and "uv python install 3.13" in done.stderr and "3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_mac_with_tensorflow_metal_is_warned(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    arguments = ("-o", ".venv/ready", "metal")
    assert make(tmp_path, *arguments).stderr == ""
    (tmp_path / "tensorflow_metal-1.2.0.dist-info").mkdir()
    (tmp_path / "tensorflow_metal-1.2.0.dist-info" / "METADATA").write_text("Name: tensorflow-metal\nVersion: 1.2.0\n")
    assert "tensorflow-metal" in make(tmp_path, *arguments, PYTHONPATH=str(tmp_path)).stderr
