"""What is built from the repository works where there is no repository."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import onnxruntime
import pytest

REPOSITORY = Path(__file__).parents[1]
SHIPPED = ("latency_tables", "predictors", "supernets")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"
# Fills the memory of this machine by a stopwatch that hardly looks, so that the command itself has only candidates to time.
GLANCE = """
from ofasearch import zoo
from ofasearch.deploy.runtime import get_runtime
from ofasearch.jobs import latency, measuring
from ofasearch.latency.stopwatch import StopRule
measuring.NET_RULE = StopRule(min_bursts=2, max_bursts=2, warmup=1, min_sample_ms=0.0)
*_, table = latency.build_table(zoo.load_supernet(zoo.DEFAULT_SUPERNET).weights.space, get_runtime())
"""


def run(*argv, cwd, **environment):
    """Standard output of a command that must succeed, without anything that leads Python to the checkout."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OFASEARCH"))}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def tracked():
    """What git would give to someone who clones."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


def build(kind, source, target):
    name = run(sys.executable, "-c", BUILD, kind, target, cwd=source).splitlines()[-1]
    return target / name


def content(wheel):
    """Every file of a wheel with its checksum."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive of what is tracked; the checkout itself stays clean."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    return build("wheel", source, target), build("sdist", source, target)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of a fresh environment that holds the wheel, and finds its dependencies where this process has them."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", built[0], cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Folders named in a .pth file come after the environment's own, and .pth files in them (an editable install) are not read.
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith(("site-packages", "dist-packages"))))
    return python


def test_the_wheel_holds_the_package_and_all_that_is_shipped(built):
    packaged = {name for name in tracked() if name.startswith("ofasearch/")}
    packaged |= {f"ofasearch/_shipped/{name}" for name in tracked() if name.startswith(SHIPPED)}
    names = content(built[0]).keys()
    assert {name for name in names if not name.startswith("ofasearch-")} == packaged
    assert {f"ofasearch/_shipped/supernets/cifar10-compofa/{name}.safetensors" for name in ("supernet", "members")} <= names
    assert any(name.startswith("ofasearch/_shipped/predictors/") and name.endswith(".safetensors") for name in names)
    assert any(name.startswith("ofasearch/_shipped/latency_tables/") and name.endswith(".csv") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_source_archive_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert content(build("wheel", source, tmp_path)) == content(built[0])


def test_the_source_archive_holds_no_half_of_the_tests(built):
    """Tests without their conftest cannot run; they live in the repository."""
    with tarfile.open(built[1]) as archive:
        rooms = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "ofasearch", *SHIPPED} <= rooms
    assert "tests" not in rooms


def test_the_installed_command_finds_a_network_in_an_empty_folder(installed, tmp_path):
    cache = {"OFASEARCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(installed, "-c", f"{GLANCE}\nimport ofasearch; print(ofasearch.__file__)", cwd=empty, **cache).strip()
    assert Path(where).is_relative_to(installed.parents[1])
    command = next(path for path in installed.parent.iterdir() if path.stem == "ofasearch")
    record = json.loads(run(command, "find", "--target", "cpu", "--latency", "1s", "--json", cwd=empty, **cache))  # any network keeps that

    assert [path.name for path in empty.iterdir()] == ["runs"]
    (folder,) = (empty / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text()) == record
    names = {
        "result.json",
        "run.json",
        "log.jsonl",
        "net.config",
        "run.config",
        "subnet.md",
        "subnet.onnx",
        "subnet.pt",
        "table-cpu.csv",
        "table-cpu.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    files = [Path(path) for path in record["files"].values()]
    assert sorted(path.name for path in files) == ["net.config", "subnet.md", "subnet.onnx", "subnet.pt"]
    assert all(path.is_absolute() and path.samefile(folder / path.name) for path in files)
    assert (record["latency_source"], record["measured"]["source"]) == ("measured", "shipped")
    assert record["measured"]["top1"] > 0.5
    session = onnxruntime.InferenceSession(record["files"]["onnx"], providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["arch_id"] == record["arch_id"]


def test_the_installed_package_lists_all_that_is_shipped(installed, tmp_path):
    code = "from ofasearch import zoo; print(*zoo.supernet_names(), *zoo.predictor_names(), *zoo.shipped_tables())"
    shipped = {Path(name).parent.name for name in tracked() if name.endswith("/supernet.safetensors")}
    shipped |= {Path(name).stem for room, kind in (("predictors", "safetensors"), ("latency_tables", "csv"))
                for name in tracked() if name.startswith(room) and name.endswith(kind)}  # fmt: skip
    assert set(run(installed, "-c", code, cwd=tmp_path).split()) == shipped
