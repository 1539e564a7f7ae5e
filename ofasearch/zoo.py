"""Names to loaded objects: the only file with paths of what is shipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ofasearch.download import OFFICIAL, DownloadProgress, fetch, official_path
from ofasearch.errors import FormatError, MismatchError, NotFoundError, OfaSearchError, UsageError
from ofasearch.evaluate.members import Members, load_members
from ofasearch.latency.ofa_yaml import is_ofa_yaml, load_ofa_yaml
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import LatencyTable, Source, TableCard, TableKey, load_card, load_table
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.records import cache_dir
from ofasearch.space.core import Space
from ofasearch.supernet.importers import load_official
from ofasearch.supernet.weights import Weights, load_weights

DEFAULT_SUPERNET = "cifar10-compofa"
WEIGHTS_FILE, MEMBERS_FILE = "supernet.safetensors", "members.safetensors"
MEASURED_HERE = ("cpu", "cuda")  # targets that are this very machine, so no table can be asked for by these names
TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
    return load_predictor(predictor_file(name))


def predictor_file(name: str) -> Path:
    """The file that `get_predictor` reads.

    Raises NotFoundError.
    """
    if name in predictor_names():
        return _shipped("predictors") / f"{name}.safetensors"
    if not Path(name).is_file():
        raise NotFoundError(f"predictor must be one of {', '.join(predictor_names())} or an existing file, but got '{name}'")
    return Path(name)


def predictor_for(space: Space, supernet: TrainedSupernet | None) -> str | None:
    """The shipped predictor of a space's networks; None where there is none.

    It was fitted on the supernet's own weights, or, for an official supernet and where none is given, on published accuracies.
    """
    for name in predictor_names():
        found = get_predictor(name)
        fits = found.space in (space.name, space.parent)
        if supernet is None or supernet.name in OFFICIAL:
            trained = found.space if supernet is None else OFFICIAL[supernet.name].space  # CompOFA's weights are not once-for-all's
            fits = fits and found.supernet_digest is None and found.space == trained
        else:
            fits = fits and found.supernet_digest == supernet.weights.digest
        if fits:
            return name
    return None


# -- latency tables --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A latency table that is found by name: a CSV among the shipped ones, or in the user's own folder.

    It is called as its card says and as its file is; several files may bear one name, of several batches, say.
    """

    path: Path
    shipped: bool
    card: TableCard | None  # None: it cannot be read, for the reason in `failure`
    failure: OfaSearchError | None = None

    @property
    def name(self) -> str:
        """What to call it; tables named after a target that is measured here go by their file."""
        return self.path.stem if self.card is None or self.card.name in MEASURED_HERE else self.card.name

    @property
    def standing(self) -> tuple[int, bool]:
        """What goes first among tables of one name: the better known source, then the user's own."""
        sources: tuple[str, ...] = get_args(Source)
        return (sources.index(self.card.source) if self.card else len(sources)), self.shipped


def user_tables() -> Path:
    """The folder of the user's own latency tables; a CSV there, with its card, is a target by name."""
    return cache_dir() / "tables"


def user_table_path(name: str, key: TableKey) -> Path:
    """Where the user's own table of that name and key lies: one file each for another batch, threads or precision.

    Raises UsageError for a name that is no file's, or that is taken by a target measured here.
    """
    if not TABLE_NAME.fullmatch(name) or name in MEASURED_HERE:
        raise UsageError(
            f"a table's name must be up to 64 letters, digits, dots, dashes and underscores, begin with a letter or digit "
            f"and not be {' or '.join(MEASURED_HERE)}, but got {name!r}"
        )
    parts = [name]
    parts += [f"b{key.batch}"] * (key.batch != 1) + [f"t{key.threads}"] * (key.threads != 1)
    parts += [re.sub(r"[^A-Za-z0-9]", "", key.precision)[:16]] * (key.precision != "fp32")
    return user_tables() / f"{'-'.join(parts)}.csv"


def table_files() -> tuple[TableFile, ...]:
    """All latency tables that have a name, the user's own first; damaged ones among them."""
    files = [(path, False) for path in sorted(user_tables().glob("*.csv"))]
    files += [(path, True) for path in sorted(_shipped("latency_tables").glob("*.csv"))]
    found = []
    for path, shipped in files:
        try:
            found.append(TableFile(path=path, shipped=shipped, card=load_card(path)))
        except (OfaSearchError, OSError) as error:
            failure = error if isinstance(error, OfaSearchError) else FormatError(f"{path} must be readable, but it is not: {error}")
            found.append(TableFile(path=path, shipped=shipped, card=None, failure=failure))
    return tuple(found)


def shipped_tables() -> tuple[str, ...]:
    """Latency tables that are shipped as files."""
    return tuple(sorted(path.stem for path in _shipped("latency_tables").glob("*.csv")))


def table_names() -> tuple[str, ...]:
    """Names of latency tables, shipped and the user's own, and of the cards that can be estimated."""
    return tuple(sorted({*(file.name for file in table_files()), *DEVICES}))


def get_table(name: str, space: Space, *, batch: int = 1, threads: int | None = None, precision: str = "fp32") -> LatencyTable:
    """The latency table that answers a question at that batch (threads, precision): by name, or by path.

    By name: tables are looked for among the user's own and the shipped ones, by the name on the card and by that of the
    file. One of another batch, precision or number of threads is never taken (threads only count where something was
    timed by us: published tables do not tell them; None asks for none). Of those left, one that holds the layers of the
    space goes first, then the better known source, then the user's own. A table so found outranks the estimate of a
    known card; where there is only the estimate, its card tells at which batches the name was measured (`measured_at`).
    By path: our CSV, once-for-all's YAML file or a folder of such; it must be of what was asked as well.

    Raises NotFoundError, FormatError, MismatchError (the name or file is of other batches, threads or precisions).
    """

    def suits(source: Source, key: TableKey) -> bool:
        timed = source in ("measured", "interpolated")
        return (key.batch, key.precision) == (batch, precision) and (threads is None or not timed or key.threads == threads)

    named = [file for file in table_files() if name in (file.name, file.path.stem)]
    cards = [file.card for file in named if file.card is not None]
    fitting = sorted((f for f in named if f.card and suits(f.card.source, f.card.key)), key=lambda file: file.standing)
    if fitting:
        return _best(fitting, space)
    for file in named:
        if file.failure is not None:
            raise file.failure
    if name in DEVICES:
        table = estimated_table(space, DEVICES[name], batch=batch)
        elsewhere = sorted({_told(card.key) for card in cards})
        return table.corrected(table.correction, measured_at=elsewhere) if elsewhere else table
    asked = f"batch {batch}, {precision}" + (f" and threads {threads}" if threads is not None else "")
    if cards:
        there = "; ".join(sorted({_told(card.key) for card in cards}))
        raise MismatchError(f"target {name} must be known at {asked}, but its tables are of {there}; ask for one of these, or measure")
    table = _table_by_path(name)
    if not suits(table.source, table.key):
        raise MismatchError(
            f"table {table.name} must be of {asked}, but is of {_told(table.key)}; ask for that (--batch, --threads), or give another"
        )
    return table


def open_table(name: str) -> LatencyTable:
    """One latency table for itself, whatever its batch: by path, by its file's name, or by its card's where only one bears it.

    Raises NotFoundError, FormatError, MismatchError (several bear the name; it is an estimate, which needs a space).
    """
    files = table_files()
    named = [file for file in files if file.path.stem == name] or [file for file in files if file.name == name]
    own = [file for file in named if not file.shipped] or named  # the user's file of a name goes before the shipped one
    if len({file.path.stem for file in own}) > 1:
        stems = ", ".join(file.path.stem for file in own)
        raise MismatchError(f"the name of a table must mean one file, but {name} means several; say which: {stems}")
    if own:
        return load_table(own[0].path)
    if name in DEVICES:
        raise MismatchError(f"the estimate of {name} must be made for a space, but none was given; add --space")
    return _table_by_path(name)


def _table_by_path(name: str) -> LatencyTable:
    """A latency table by path alone; the error knows all names."""
    path = Path(name)
    if path.is_dir() or is_ofa_yaml(path):
        return load_ofa_yaml(path)
    if path.is_file():
        return load_table(path)
    raise NotFoundError(
        f"target must be cpu, one of {', '.join(table_names())}, a table file or a folder of once-for-all YAML tables, but got '{name}'"
    )


def _best(fitting: Sequence[TableFile], space: Space) -> LatencyTable:
    """Of tables in their order, the first that holds the layers of the space; the first of all where none does."""
    tables = [load_table(file.path) for file in fitting]
    return next((table for table in tables if _covers(table, space)), tables[0]) if len(tables) > 1 else tables[0]


def _covers(table: LatencyTable, space: Space) -> bool:
    """Whether a table prices every network of the space at the resolutions that both know."""
    known = [r for r in space.resolutions if table.resolutions is None or r in table.resolutions]
    return bool(known) and not table.missing(space.with_resolutions(known))


def _told(key: TableKey) -> str:
    return f"batch {key.batch}, {key.precision}, threads {key.threads}"
