"""Names to loaded objects: the only file with paths of what is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ofasearch.download import OFFICIAL, DownloadProgress, fetch, official_path
from ofasearch.errors import NotFoundError
from ofasearch.evaluate.members import Members, load_members
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import LatencyTable, load_ofa_yaml, load_table
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.space.core import Space
from ofasearch.supernet.importers import load_official
from ofasearch.supernet.weights import Weights, load_weights

DEFAULT_SUPERNET = "cifar10-compofa"
WEIGHTS_FILE, MEMBERS_FILE = "supernet.safetensors", "members.safetensors"


def _shipped(room: str) -> Path:
    """The folder of shipped files: inside the installed package, or at the root of a checkout."""
    installed = Path(__file__).parent / "_shipped" / room
    return installed if installed.is_dir() else Path(__file__).parent.parent / room


@dataclass(frozen=True, slots=True)
class TrainedSupernet:
    """Weights of a supernet, and its measured members where it comes with them."""

    name: str
    weights: Weights
    members: Members | None


def supernet_names() -> tuple[str, ...]:
    """Shipped supernets."""
    return tuple(sorted(path.parent.name for path in _shipped("supernets").glob(f"*/{WEIGHTS_FILE}")))


def load_supernet(name: str) -> TrainedSupernet:
    """A shipped supernet or an official one (fetched if need be) by name, or one by path.

    A path is our file, the folder of a training run, or a once-for-all or CompOFA checkpoint.

    Raises NotFoundError, FormatError, MismatchError.
    """
    if name in supernet_names():
        folder = _shipped("supernets") / name
    elif Path(name).is_dir():
        folder = Path(name)
    elif Path(name).is_file():
        if Path(name).suffix != ".safetensors":
            return TrainedSupernet(Path(name).name, load_official(Path(name)), None)
        return _load(Path(name).stem, Path(name), Path(name).with_name(MEMBERS_FILE))
    elif name in OFFICIAL:
        for _ in fetch(name):
            pass  # who wants to show progress fetches first
        return TrainedSupernet(name, load_official(official_path(name), OFFICIAL[name].space), None)
    else:
        known = ", ".join((*supernet_names(), *OFFICIAL))
        raise NotFoundError(f"supernet must be one of {known} or an existing file, but got '{name}'")
    return _load(folder.resolve().name, folder / WEIGHTS_FILE, folder / MEMBERS_FILE)


def fetch_supernet(name: str | None) -> Iterator[DownloadProgress]:
    """Fetch what `load_supernet` would, with progress; nothing to do for other names.

    Raises NotFoundError, FormatError, WriteError.
    """
    if name in OFFICIAL and not Path(name).exists():
        for event in fetch(name):
            if isinstance(event, DownloadProgress):
                yield event


def supernet_folder(name: str) -> Path:
    """The folder of a supernet that `load_supernet` takes."""
    if name in supernet_names():
        return _shipped("supernets") / name
    return Path(name) if Path(name).is_dir() else Path(name).parent


def _load(name: str, weights_file: Path, members_file: Path) -> TrainedSupernet:
    weights = load_weights(weights_file)
    members = load_members(members_file, weights.space, weights.digest) if members_file.is_file() else None
    return TrainedSupernet(name, weights, members)


def predictor_names() -> tuple[str, ...]:
    """Shipped predictors."""
    return tuple(sorted(path.stem for path in _shipped("predictors").glob("*.safetensors")))


def get_predictor(name: str) -> Predictor:
    """A shipped predictor by name, or one by path.

    Raises NotFoundError, FormatError.
    """
    if name in predictor_names():
        return load_predictor(_shipped("predictors") / f"{name}.safetensors")
    if not Path(name).is_file():
        raise NotFoundError(f"predictor must be one of {', '.join(predictor_names())} or an existing file, but got '{name}'")
    return load_predictor(Path(name))


def shipped_tables() -> tuple[str, ...]:
    """Latency tables that are shipped as files; they outrank estimates of the same name."""
    return tuple(sorted(path.stem for path in _shipped("latency_tables").glob("*.csv")))


def table_names() -> tuple[str, ...]:
    """Shipped latency tables and the cards that can be estimated."""
    return tuple(sorted({*shipped_tables(), *DEVICES}))


def get_table(name: str, space: Space, *, batch: int = 1) -> LatencyTable:
    """A latency table by name, by CSV file, or a folder of once-for-all YAML tables; a known card is estimated.

    A measured table outranks an estimate of the same name. Raises NotFoundError, FormatError.
    """
    if name in shipped_tables():
        return load_table(_shipped("latency_tables") / f"{name}.csv")
    if name in DEVICES:
        return estimated_table(space, DEVICES[name], batch=batch)
    path = Path(name)
    if path.is_dir():
        return load_ofa_yaml(path)
    if path.is_file():
        return load_table(path)
    raise NotFoundError(
        f"target must be cpu, one of {', '.join(table_names())}, a table file or a folder of once-for-all YAML tables, but got '{name}'"
    )
