"""What is installed: five modules, one package, one command; beside another package `kernels`."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from toys import ROOT

MODULES = {"tsae.py", "tsae_kernels.py", "metrics.py", "probes.py", "experiment.py"}
IMPORTS = """
import kernels, tsae, tsae_kernels, metrics, probes, experiment
import tsae_lab.measures.lifetimes
lifetimes = tsae_lab.measures.lifetimes
for module in (kernels, tsae, tsae_kernels, metrics, probes, experiment, lifetimes):
    print(module.__file__)
print(kernels.WHOSE)
"""


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment or None
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*MODULES, "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "tsae_lab", source / "tsae_lab", ignore=shutil.ignore_patterns("__pycache__")
    )
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    call(sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", out, source, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder of packages that has the wheel and a package `kernels`, as GPU users have one."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text("WHOSE = 'somebody else'\n")
    install = ("install", "-q", "--no-deps", "--no-index", "--target")
    call(sys.executable, "-m", "pip", *install, folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_five_modules_one_package_and_one_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(points).decode()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == MODULES | {"tsae_lab"}
    assert commands.split() == ["[console_scripts]", "tsae", "=", "experiment:app"]
    packaged = {name for name in names if name.startswith("tsae_lab/")}
    sources = [*(ROOT / "tsae_lab").rglob("*.py"), *(ROOT / "tsae_lab/report/assets").iterdir()]
    assert packaged == {str(path.relative_to(ROOT)) for path in sources}


def test_its_modules_import_from_anywhere_beside_another_package_kernels(site, tmp_path):
    *files, whose = call(
        sys.executable, "-c", IMPORTS, cwd=tmp_path, PYTHONPATH=str(site)
    ).splitlines()
    assert whose == "somebody else"
    assert all(Path(file).is_relative_to(site) for file in files)
    assert Path(files[0]).parent == site / "kernels"


def test_the_command_tsae_is_installed_and_says_what_the_script_says(site, tmp_path):
    ours = {"PYTHONPATH": str(site), "COLUMNS": "100"}
    installed = call(sys.executable, site / "bin" / "tsae", "--help", cwd=tmp_path, **ours)
    script = call(sys.executable, site / "experiment.py", "--help", cwd=tmp_path, **ours)
    assert "stability" in installed
    assert installed.splitlines()[2:] == script.splitlines()[2:]  # the first names the program


def test_the_lowest_versions_that_are_tested_are_those_that_are_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {}
    for line in project["dependencies"]:
        requirement = Requirement(line)
        (lowest,) = (part.version for part in requirement.specifier if part.operator == ">=")
        asked[requirement.name] = Version(lowest)
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(version) for name, version in pins.items()} == asked
