"""Write requirements.txt, the lock: one version of each package, for every machine that the study runs on.

    python scripts/lock.py             keeps the versions there that still fit (`make lock`)
    python scripts/lock.py --upgrade   takes the newest
    python scripts/lock.py --check     only checks the file there

uv finds versions that hold on every system and on the oldest Python supported. Then pip is asked, for each of SYSTEMS
and PYTHONS, whether each pin has a wheel there. A pin that would have to be compiled is named, and nothing is written.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.txt"
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")
SYSTEMS = {  # what pip calls them, and what the markers in the lock see
    "Linux x86-64": (["manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 29))],
                     ("linux", "Linux", "posix", "x86_64")),
    "Linux arm64": (["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 29))],
                    ("linux", "Linux", "posix", "aarch64")),
    "macOS arm64": (["macosx_14_0_arm64"], ("darwin", "Darwin", "posix", "arm64")),
    "Windows x86-64": (["win_amd64"], ("win32", "Windows", "nt", "AMD64")),
}
MARKERS = ("sys_platform", "platform_system", "os_name", "platform_machine")


def wanted():
    """Return the names of everything that the lock must hold: environment.yml, all groups, the service, pip."""
    def read(name, pattern=""):
        text = (ROOT / name).read_text(encoding="utf-8")
        return re.findall(pattern, text, re.MULTILINE) if pattern else text

    groups = tomllib.loads(read("pyproject.toml"))["dependency-groups"].values()
    return sorted({"pip", *read("environment.yml", r"^      - ([a-z][\w-]*)"),
                   *read("service/requirements.txt", r"^([a-z][\w-]*)"),
                   *(name for group in groups for name in group if isinstance(name, str))})


def pins_for(lock, python, markers):
    """Return the lines of a lock that hold on a system with this Python."""
    environment = dict(zip(MARKERS, markers)) | {
        "python_full_version": python, "python_version": python.rpartition(".")[0],
        "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    requirements = [Requirement(line) for line in lock.read_text(encoding="utf-8").splitlines()]
    return [f"{pin.name}{pin.specifier}" for pin in requirements if not pin.marker or pin.marker.evaluate(environment)]


def without_wheel(pins, python, platforms):
    """Return those of some pins that have no wheel for a Python on a system."""
    missing = []
    while len(missing) < len(pins):
        with tempfile.TemporaryDirectory() as folder:
            names = Path(folder) / "pins.txt"
            names.write_text("\n".join(pin for pin in pins if pin not in missing), encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
                 "--no-deps", "--ignore-installed", "--only-binary=:all:", "--target", folder,
                 "--python-version", python, *(f"--platform={platform}" for platform in platforms),
                 "--requirement", names], capture_output=True, text=True)
        if done.returncode == 0:
            break
        found = re.search(r"No matching distribution found for (\S+)", done.stderr)
        if not found:  # no network, say
            sys.exit(f"pip can't answer for Python {python}:\n{done.stderr.strip()}")
        missing.append(found[1])
    return missing


def check(lock):
    """Print, for each system and Python, whether all pins have wheels; return how many have none."""
    missing = 0
    for system, (platforms, markers) in SYSTEMS.items():
        for python in PYTHONS:
            pins = pins_for(lock, python, markers)
            found = without_wheel(pins, python, platforms)
            missing += len(found)
            print(f"{system}, Python {python}: {len(pins)} pins,",
                  f"no wheel for {', '.join(found)}" if found else "all with wheels", flush=True)
    return missing


def main():
    if sys.argv[1:] == ["--check"]:
        sys.exit(1 if check(LOCK) else 0)
    new = LOCK.with_name(f".unfinished-{os.getpid()}-{LOCK.name}")
    try:
        if LOCK.is_file():
            new.write_bytes(LOCK.read_bytes())  # uv keeps versions that it finds
        subprocess.run([sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-build",
                        "--python-version", PYTHONS[0], "--no-header", "--no-annotate", *sys.argv[1:],
                        "--output-file", new, "-"],
                       input="\n".join(wanted()), text=True, check=True, stdout=subprocess.DEVNULL)
        if check(new):
            sys.exit(f"{LOCK.name} stays as it was: choose other packages, or versions that have wheels everywhere")
        os.replace(new, LOCK)
    finally:
        new.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
