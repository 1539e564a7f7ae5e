"""What pyproject promises and what lies in the repository are the same."""

import inspect
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import ofasearch

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ofasearch"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
SHIPPED = ("latency_tables", "predictors", "supernets")


def test_every_package_is_listed():
    folders = {".".join(p.parent.relative_to(REPOSITORY).parts) for p in PACKAGE.rglob("__init__.py")}
    assert set(SETUP["packages"]) == folders | {f"ofasearch._shipped.{room}" for room in SHIPPED}
    assert {p.parent for p in PACKAGE.rglob("*.py")} == {p.parent for p in PACKAGE.rglob("__init__.py")}


@pytest.mark.parametrize("room", SHIPPED)
def test_shipped_rooms_hold_files_that_are_packaged(room):
    package = f"ofasearch._shipped.{room}"
    folder = REPOSITORY / SETUP["package-dir"][package]
    assert any(path.is_file() for path in folder.rglob("*"))  # git keeps no empty folder, and no build does without it
    assert SETUP["package-data"][package] == ["**/*"]


def test_files_that_the_build_names_exist():
    names = [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "ofasearch/py.typed"]
    assert [name for name in names if not (REPOSITORY / name).is_file()] == []


def test_version_is_that_of_the_package():
    assert PROJECT["project"]["version"] == ofasearch.__version__


def test_the_command_leads_to_the_entry_point():
    module, _, name = PROJECT["project"]["scripts"]["ofasearch"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_public_names_are_functions_whatever_was_imported_before():
    for room in {name.split(".")[1] for name in SETUP["packages"] if name.count(".") == 1}:
        import_module(f"ofasearch.{room}")  # a room sets an attribute of its own name
    assert ofasearch.__all__ == sorted(ofasearch.__all__)
    for name in ofasearch.__all__:
        function = getattr(ofasearch, name)
        assert inspect.isfunction(function), f"ofasearch.{name} is {function!r}"
        assert function.__doc__


def test_unknown_public_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        ofasearch.nonsense  # noqa: B018


def test_no_source_file_names_a_package_registry():
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("anaconda", "org"))]
    files = [p for room in ("ofasearch", "benchmarks", "examples", "tests") for p in (REPOSITORY / room).rglob("*.py")]
    files.append(REPOSITORY / "pyproject.toml")
    assert len(files) > 20
    assert [f"{p}: {host}" for p in files for host in hosts if host in p.read_text(encoding="utf-8")] == []
