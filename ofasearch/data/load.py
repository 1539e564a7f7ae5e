"""From what a user names to a data set in four splits; what was decoded once is kept.

A source is `digits`, a Parquet file, a CIFAR archive, a folder of either, of idx files or of images, or the name of a
well-known set that lies in `$OFASEARCH_DATA/<name>`.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofasearch.data.folder import SUFFIXES, FolderSet, class_folders, list_images, read_small, small_size
from ofasearch.data.formats import CIFAR_ARCHIVES, CIFAR_FOLDERS, find_idx, image_set, read_cifar, read_idx, read_parquet
from ofasearch.data.sets import DataSet, ImageSet, Split, split_evaluation, split_pool
from ofasearch.errors import FormatError, NotFoundError, WriteError
from ofasearch.records import cache_dir, write_atomic

IDX_PLACES = (".", "raw", "MNIST/raw", "FashionMNIST/raw")  # below a folder; torchvision's among them
TRAINING, VALIDATION, TEST = ("train",), ("val", "validation", "valid"), ("test",)
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True, slots=True)
class Known:
    """A well-known data set: where to get it, and the md5 of each file as its authors (or torchvision) publish it."""

    home: str
    files: dict[str, str]
    note: str = ""


_MNIST = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
KNOWN: dict[str, Known] = {
    "cifar10": Known("https://www.cs.toronto.edu/~kriz/cifar.html", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}),
    "cifar100": Known("https://www.cs.toronto.edu/~kriz/cifar.html", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}),
    "mnist": Known(
        "http://yann.lecun.com/exdb/mnist",
        dict(
            zip(
                _MNIST,
                (
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "9fb629c4189551a2d022fa330f9573f3",
                    "ec29112dd5afa0611ce80d1b7f02629c",
                ),
                strict=True,
            )
        ),
    ),
    "fashion-mnist": Known(
        "https://github.com/zalandoresearch/fashion-mnist",
        dict(
            zip(
                _MNIST,
                (
                    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "25c81989df183df01b3e8a0aad5dffbe",
                    "bef4ecab320f06d8554ea6380940ec79",
                    "bb300cfdad3c16e7a12a480ee83cd310",
                ),
                strict=True,
            )
        ),
    ),
    "imagenet": Known("https://www.image-net.org", {}, "unpacked to train/<class>/*.JPEG and val/<class>/*.JPEG"),
}


def load_data(source: str) -> DataSet:
    """Read a data set; small images are decoded into memory and kept in the cache, photographs stay in their files.

    Raises NotFoundError (no such source), FormatError (damaged or foreign file), UsageError (too few images).
    """
    if source == "digits":
        images, names = _digits()
        return split_pool("digits", images, names)
    path = locate(source)
    if path.is_file():
        return _load_file(path)
    return _load_folder(path)


def locate(source: str) -> Path:
    """The file or folder that a source names.

    Raises NotFoundError; for a well-known set it says where to get it and how to check it.
    """
    path = Path(source)
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # a name that no file can have
        raise NotFoundError(f"data must be an existing file or folder, but '{source[:200]}' can be none") from None
    if source not in KNOWN:
        names = ", ".join(KNOWN)
        raise NotFoundError(f"data must be 'digits', an existing file or folder, or one of {names}, but '{source}' is none of these")
    home = named_folder(source)
    if home.exists():
        return home
    known = KNOWN[source]
    what = known.note or f"its files ({', '.join(known.files)})"
    raise NotFoundError(
        f"data set {source} must lie in {home}, but is not there; get it from {known.home}, put {what} there "
        f"(or set OFASEARCH_DATA to the folder above it), and check it by `ofasearch data check {source}`"
    )


def named_folder(name: str) -> Path:
    """Where a well-known data set is looked for."""
    root = os.environ.get("OFASEARCH_DATA")
    return (Path(root) if root else cache_dir() / "datasets") / name


def parquet_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The training and test files of a source in Parquet form; none of either where it is of another kind."""
    if path.is_file():
        return ([path] if path.suffix == ".parquet" else []), []
    train, test = (sorted(file for file in path.glob(f"{kind}*.parquet") if file.is_file()) for kind in ("train", "test"))
    return train, test


def _load_file(path: Path) -> DataSet:
    if path.suffix == ".parquet":
        (images,), names = _kept([path], lambda: _one(read_parquet([path])))
        return split_pool(path.stem, images, names)
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _cifar(path)
    raise NotFoundError(f"data must be 'digits', a .parquet file, a CIFAR .tar.gz or a folder, but '{path}' is another kind of file")


def _load_folder(path: Path) -> DataSet:
    train, test = parquet_files(path)
    if train:
        (images,), names = _kept(train, lambda: _one(read_parquet(train)))
        return split_pool(path.name, images, names, test=_kept(test, lambda: _one(read_parquet(test)))[0][0] if test else None)
    for folder in (path, *(path / name for name in CIFAR_FOLDERS)):
        if folder.name in CIFAR_FOLDERS and folder.is_dir():
            return _cifar(folder)
    for name in CIFAR_ARCHIVES:
        if (path / name).is_file():
            return _cifar(path / name)
    for folder in (path / place for place in IDX_PLACES):
        training, testing = find_idx(folder, "train"), find_idx(folder, "test")
        if training and testing:
            names = FASHION_CLASSES if "fashion" in str(folder.absolute()).lower() else tuple(str(d) for d in range(10))
            return split_pool(path.name, read_idx(*training), names, test=read_idx(*testing))
    return load_image_folder(path)


def _cifar(path: Path) -> DataSet:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())

    def read() -> tuple[list[ImageSet], tuple[str, ...]]:
        training, testing, names = read_cifar(path)
        return [training, testing], names

    (training, testing), names = _kept(files, read)
    folder = CIFAR_ARCHIVES.get(path.name, path.name)
    return split_pool(CIFAR_FOLDERS.get(folder, path.name), training, names, test=testing)


def _one(found: tuple[ImageSet, tuple[str, ...]]) -> tuple[list[ImageSet], tuple[str, ...]]:
    return [found[0]], found[1]


def _digits() -> tuple[ImageSet, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, enlarged to 32x32 RGB."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = np.clip(raw.images * (255 / 16), 0, 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(grey[..., None], 3, axis=3)
    return ImageSet(images, raw.target.astype(np.int64)), tuple(str(d) for d in range(10))


# -- image folders ---------------------------------------------------------------------------------------------


def image_parts(path: Path) -> tuple[dict[str, FolderSet], tuple[str, ...]]:
    """The parts of an image folder, not decoded: `train`, `val`, `test` as far as they have class folders, or `all`.

    Raises NotFoundError when there is no image anywhere.
    """
    parts: dict[str, Path] = {}
    for kind, names in (("train", TRAINING), ("val", VALIDATION), ("test", TEST)):
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is not None and class_folders(folder):
            parts[kind] = folder
    if not parts:
        parts = {"all": path}
    first = next(iter(parts.values()))
    classes = [folder.name for folder in class_folders(first)]
    try:
        found = {kind: list_images(folder, classes or None) for kind, folder in parts.items()}
    except FormatError as error:
        raise NotFoundError(
            f"data folder {path} must hold train*.parquet, CIFAR batches, idx files, or images in one folder per class "
            f"({', '.join(SUFFIXES[:3])}, ...; below train/ and val/ as in ImageNet), but does not"
        ) from error
    for folder in parts.values():
        strange = sorted({f.name for f in class_folders(folder)} - set(classes))
        if classes and strange:
            raise FormatError(f"{folder} must have the class folders of {first}, but has also {', '.join(strange[:3])}")
    return found, tuple(classes)


def load_image_folder(path: Path) -> DataSet:
    """An image folder in ImageNet's layout, or with class folders alone; without class folders it has no labels.

    Small square images of one size are kept in memory like any other small set. A validation folder beside a test
    folder is the validation split; alone beside the training images it is the test split, as ImageNet is reported.
    """
    folders, classes = image_parts(path)
    parts: dict[str, Split] = dict(folders)
    if all(small_size(part) for part in folders.values()):
        files = [part.root / name for part in folders.values() for name in part.files]
        sets, _ = _kept(files, lambda: (_small_sets(folders), classes))
        if sets:
            parts = {kind: ImageSet(s.images, folders[kind].labels) for kind, s in zip(folders, sets, strict=True)}
    name = path.absolute().name
    if "train" in parts:
        validation = parts.get("val") if "test" in parts else None
        return split_pool(name, parts["train"], classes, validation=validation, test=parts.get("test", parts.get("val")))
    if "all" in parts and classes:
        return split_pool(name, parts["all"], classes)
    return split_evaluation(name, next(iter(parts.values())), classes)


def _small_sets(folders: Mapping[str, FolderSet]) -> list[ImageSet]:
    """The images in memory; none where sizes differ after all."""
    pixels = [read_small(part) for part in folders.values()]
    if len({image.shape for part in pixels for image in part}) > 1:
        return []
    return [image_set(found, np.maximum(part.labels, 0), str(part.root)) for found, part in zip(pixels, folders.values(), strict=True)]


# -- the cache of decoded images -------------------------------------------------------------------------------


def _kept(files: list[Path], read: Callable[[], tuple[list[ImageSet], tuple[str, ...]]]) -> tuple[list[ImageSet], tuple[str, ...]]:
    """What `read` gives, from the cache while the files stay as they are."""
    cached = cache_dir() / "data" / f"{_stamp(files)}.npz"
    found = _read_cache(cached)
    if found is None:
        found = read()
        _write_cache(cached, *found)
    return found


def _stamp(files: list[Path]) -> str:
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _read_cache(path: Path) -> tuple[list[ImageSet], tuple[str, ...]] | None:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            sets = [ImageSet(file[f"images{i}"], file[f"labels{i}"]) for i in range(int(file["sets"]))]
            return sets, tuple(str(n) for n in file["names"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: decoded again


def _write_cache(path: Path, sets: list[ImageSet], names: tuple[str, ...]) -> None:
    arrays = {f"{kind}{i}": getattr(s, kind) for i, s in enumerate(sets) for kind in ("images", "labels")}
    buffer = io.BytesIO()
    np.savez(buffer, sets=np.array(len(sets)), names=np.array(names, dtype=np.str_), **arrays)
    try:
        write_atomic(path, buffer.getvalue())
    except WriteError:
        return  # a read-only home costs time, not correctness
