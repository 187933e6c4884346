"""What people install: the wheel, a wheel built from the sdist, and the editable checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
WHEEL = re.compile(r"vscsi_emu-[0-9.]+-cp311-abi3-(many)?linux.*\.whl")
PROBE = """
import vscsi_emu, vscsi_emu.backends, vscsi_emu._dataplane
from importlib.metadata import entry_points
assert "file" in {point.name for point in entry_points(group="vscsi_emu.backends")}
print(vscsi_emu.__file__, vscsi_emu.backends.__file__, vscsi_emu._dataplane.__file__, sep="\\n")
"""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(source: Path, kind: str, into: Path) -> Path:
    """The one file that ``build`` makes of `source`; dependencies are compiled once for all."""
    target = str(ROOT / "target")
    run(sys.executable, "-m", "build", f"--{kind}", "-o", into, source, CARGO_TARGET_DIR=target)
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, and one of the sdist."""
    source = ROOT
    if request.param == "sdist":
        unpacked = tmp_path_factory.mktemp("unpacked")
        run("tar", "-xzf", request.getfixturevalue("sdist"), "-C", unpacked)
        (source,) = unpacked.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_serves_every_later_python(wheel: Path) -> None:
    assert WHEEL.fullmatch(wheel.name), wheel.name


def test_wheel_holds_stubs_and_one_native_module(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "vscsi_emu/py.typed" in names
    assert "vscsi_emu/_dataplane.pyi" in names
    assert [name for name in names if name.endswith(".so")] == ["vscsi_emu/_dataplane.abi3.so"]
    assert not [name for name in names if name.startswith(("tests/", "dataplane/", "backends/"))]


def test_wheel_is_importable(wheel: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path))
    run(*pip, wheel)
    for place in run(sys.executable, "-c", PROBE, cwd=tmp_path, PYTHONPATH=str(tmp_path)).split():
        assert Path(place).is_relative_to(tmp_path)


PROJECT = """
def test_serves(scsi_disk, builtin_guest):
    disk = scsi_disk("1M", block_size=4096)
    found = builtin_guest().disks[disk.address]
    found.write(0, b"x" * 4096)
    assert found.read(0, 1) == b"x" * 4096

def test_from_the_wheel():
    import vscsi_emu
    assert "SITE" in vscsi_emu.__file__

test_again = test_serves
"""


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """A fresh virtual environment's interpreter: the wheel is installed there."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site,) = venv.glob("lib/python3.*/site-packages")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site))
    run(*pip, wheel)
    # What else it needs comes from here. This checkout, installed here as editable, does not: a
    # path that is listed so runs no .pth files of its own.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin/python"


@pytest.mark.parametrize("wheel", ["checkout"], indirect=True)
def test_the_pytest_plugin_works_from_the_wheel_in_an_empty_project(
    installed: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_disk.py").write_text(PROJECT.replace("SITE", str(installed.parents[1])))
    command = (installed, "-m", "pytest", "-n", "2", "-v")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        report = run(*command, cwd=project, PYTHONPATH="", TMPDIR=place)
        assert not list(Path(place).glob("vscsi-emu-*"))
    assert "3 passed" in report


@pytest.mark.parametrize("wheel", ["checkout"], indirect=True)
def test_the_commands_of_the_workflow_example_work(installed: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "examples/ci", project)
    workflow = yaml.safe_load((project / "workflow.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert len(commands) == 2
    for command in commands:
        assert "sudo" not in command
        path = f"{installed.parent}:{os.environ['PATH']}"
        run("bash", "-ec", command, cwd=project, PYTHONPATH="", PATH=path, PIP_NO_INDEX="1")
    suite = ElementTree.parse(project / "report.xml").getroot()[0].attrib
    assert (suite["tests"], suite["errors"], suite["failures"]) == ("4", "0", "0")


def test_editable_install_is_this_checkout(tmp_path: Path) -> None:
    for place in run(sys.executable, "-c", PROBE, cwd=tmp_path).split():
        assert Path(place).is_relative_to(ROOT)


def test_sdist_holds_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Cargo.toml", "Cargo.lock", "dataplane/src/lib.rs", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(".so") or "/target/" in name]
