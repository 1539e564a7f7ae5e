"""Files of small images -> arrays: Parquet, the CIFAR python archives, idx files. Nothing in them is trusted.

Legend: n = images. Each reader gives `ImageSet`s and class names, or raises FormatError.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from ofasearch.data.sets import Images, ImageSet
from ofasearch.errors import FormatError
from ofasearch.records import parse_json

PIXEL_LIMIT = 4096 * 4096  # of one image; more is a decompression bomb, not a photograph
ARCHIVE_LIMIT = 256 * 2**20  # bytes of one file inside an archive; the largest of CIFAR has 155 MB
UNPACKED_LIMIT = 512 * 2**20  # bytes of a whole unpacked archive; CIFAR's have 187 MB
ROW_LIMIT, ROWS_AT_ONCE = 10_000_000, 64  # of one Parquet file
GROWTH_FLOOR, GROWTH = 2**27, 100  # bytes that decoded images may take in any case, and bytes per byte of their files
CLASS_LIMIT = 100_000  # of a data set; a label beyond it is damage, and naming so many classes would fill the memory
# Those of PIL's formats that the suffixes of images stand for: others start programs (PostScript) or are rarely tested.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")

CIFAR_FOLDERS = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
CIFAR_ARCHIVES = {"cifar-10-python.tar.gz": "cifar-10-batches-py", "cifar-100-python.tar.gz": "cifar-100-python"}
_CIFAR_FILES = {
    "cifar10": ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "batches.meta", "labels", "label_names", 10),
    "cifar100": (["train"], ["test"], "meta", "fine_labels", "fine_label_names", 100),
}
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def image_set(images: list[Images] | Images, labels: Any, where: str, classes: int | None = None) -> ImageSet:
    """One array of images with labels, checked.

    Raises FormatError unless the images are square, of one size, and as many as the labels, which must be classes.
    """
    if not len(images):
        raise FormatError(f"{where} must hold images, but it is empty")
    shapes = {images.shape[1:]} if isinstance(images, np.ndarray) else {image.shape for image in images}
    if len(shapes) != 1:
        raise FormatError(f"{where} must hold images of one size, but sizes differ; give photographs as a folder of image files")
    height, width = next(iter(shapes))[:2]
    if height != width:
        raise FormatError(
            f"{where} must hold square images, but they have {width}x{height} pixels; give photographs as a folder of image files"
        )
    if np.shape(labels) != (len(images),):
        raise FormatError(f"{where} must hold one label for each of its {len(images)} images, but holds {np.size(labels)}")
    lowest, highest, most = min(labels), max(labels), classes if classes is not None else CLASS_LIMIT
    if lowest < 0 or highest >= most:
        raise FormatError(f"labels in {where} must be 0..{most - 1}, but range from {lowest} to {highest}")
    found = np.asarray(labels, dtype=np.int64)
    return ImageSet(images if isinstance(images, np.ndarray) else np.stack(images), found)


def decode(data: bytes, shape: tuple[int, ...] | None = None) -> Images:
    """The pixels (H, W, 3) of one encoded image, which must be of the given shape; what is of another is not decoded.

    Raises FormatError when it is no image, damaged, or larger than 16 M pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            size, large = f"{image.width}x{image.height}", image.width * image.height > PIXEL_LIMIT
            if not large and shape in (None, (image.height, image.width, 3)):
                return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FormatError(f"images must have at most {PIXEL_LIMIT} pixels, but one has more: {error}") from error
    except Exception as error:  # decoders of many formats fail in many ways
        raise FormatError(f"images must be readable, but one is not: {error}") from error
    if large:
        raise FormatError(f"images must have at most {PIXEL_LIMIT} pixels, but one has {size}")
    raise FormatError(f"a data set must hold images of one size, but sizes differ: one has {size}; give photographs as a folder")


# -- Parquet ---------------------------------------------------------------------------------------------------


def parquet_rows(path: Path) -> tuple[list[Any], list[Any], tuple[str, ...]]:
    """Encoded images, labels and class names of one file, not yet checked.

    Raises FormatError when the file or its columns are not those of an image set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded: list[Any] = []
    labels: list[Any] = []
    columns: list[str] = []
    allowed, held = _allowed([path]), 0
    try:
        with pq.ParquetFile(path) as file:
            columns, rows = file.schema_arrow.names, file.metadata.num_rows
            image_column = next(c for c in ("img", "image") if c in columns)
            label_column = next(c for c in ("label", "fine_label") if c in columns)
            if rows > ROW_LIMIT:
                raise ValueError(f"it claims {rows} rows, more than {ROW_LIMIT}")
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[image_column, label_column]):
                encoded += [row["bytes"] for row in batch.column(image_column).to_pylist()]
                labels += [int(v) for v in batch.column(label_column).to_pylist()]
                held += sum(len(picture) for picture in encoded[-batch.num_rows :] if picture)  # as bytes, not as Arrow packs them
                if held > allowed:
                    raise ValueError(f"its images take more than {allowed >> 20} MiB")
            if max(labels, default=0) >= CLASS_LIMIT:
                raise ValueError(f"a label is {max(labels)}, and no set has so many classes")
            return encoded, labels, _class_names(file.schema_arrow.metadata or {}, label_column)
    except StopIteration:
        raise FormatError(f"{path} must have columns img (or image) and label, but has {columns}") from None
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} must be a readable Parquet image file, but it is not: {error}") from error


def read_parquet(paths: list[Path]) -> tuple[ImageSet, tuple[str, ...]]:
    """The images of Parquet files that belong together."""
    encoded: list[bytes] = []
    labels: list[int] = []
    names: tuple[str, ...] = ()
    for path in paths:
        rows, more, found = parquet_rows(path)
        encoded, labels, names = encoded + rows, labels + more, names or found
    if not encoded:
        raise FormatError(f"{paths[0]} must hold images, but it is empty")
    with warnings.catch_warnings():  # Pillow warns of small faults of images, and of bombs before it refuses them
        warnings.simplefilter("ignore")
        first = decode(encoded[0])
        needed, allowed = first.nbytes * len(encoded), _allowed(paths)
        if needed > allowed:
            raise FormatError(f"{paths[0]} must hold images of at most {allowed >> 20} MiB, but they take {needed >> 20} MiB")
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda data: decode(data, first.shape), encoded, chunksize=256))
    found_set = image_set(images, labels, str(paths[0]), len(names) or None)
    return found_set, names or tuple(str(c) for c in range(int(found_set.labels.max()) + 1))


def _allowed(paths: list[Path]) -> int:
    """Bytes that files may stand for: images are not compressed a hundredfold."""
    return max(GROWTH_FLOOR, GROWTH * sum(path.stat().st_size for path in paths))


def _class_names(metadata: Mapping[bytes, bytes], label_column: str) -> tuple[str, ...]:
    """Class names from the schema metadata that image hubs write, or nothing."""
    try:
        record: Any = parse_json(metadata.get(b"huggingface", b"{}").decode())
        return tuple(str(n) for n in record["info"]["features"][label_column]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


# -- CIFAR python archives -------------------------------------------------------------------------------------


def read_cifar(path: Path) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Training and test images of CIFAR-10 or CIFAR-100: its folder or its tar.gz, which is read without unpacking."""
    files = dict(_archive_files(path)) if path.is_file() else {p.name: p.read_bytes() for p in path.iterdir() if _is_cifar_file(p)}
    kind = next((k for k, (training, _, meta, *_rest) in _CIFAR_FILES.items() if training[0] in files and meta in files), None)
    if kind is None:
        raise FormatError(f"{path} must hold the python version of CIFAR-10 or CIFAR-100, but its batch files are not there")
    training, testing, meta, label_key, names_key, classes = _CIFAR_FILES[kind]
    names = _plain(files[meta], f"{meta} of {path}").get(names_key)
    if not isinstance(names, list) or len(names) != classes:
        raise FormatError(f"{meta} of {path} must name {classes} classes, but does not")

    def joined(members: list[str]) -> ImageSet:
        images, labels = [], []
        for member in members:
            where = f"{member} of {path}"
            if member not in files:
                raise FormatError(f"{path} must hold {member}, but it is not there; download the archive again")
            content = _plain(files[member], where)
            data = content.get("data")
            if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
                raise FormatError(f"{where} must hold images as rows of 3072 bytes, but does not")
            images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += _integers(content.get(label_key), where)
        return image_set(np.concatenate(images), labels, str(path), classes)

    return joined(training), joined(testing), tuple(_text(name) for name in names)


def _is_cifar_file(path: Path) -> bool:
    known = {name for training, testing, meta, *_ in _CIFAR_FILES.values() for name in (*training, *testing, meta)}
    return path.name in known and path.is_file() and path.stat().st_size <= ARCHIVE_LIMIT


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The batch files of a tar, by base name; nothing is written to disk, so names in it cannot lead anywhere."""
    known = {name for training, testing, meta, *_ in _CIFAR_FILES.values() for name in (*training, *testing, meta)}
    try:
        with path.open("rb") as raw, _unpacked(raw) as unpacked, tarfile.open(fileobj=_Bounded(unpacked), mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in known and member.size <= ARCHIVE_LIMIT:
                    content = archive.extractfile(member)
                    if content is not None:
                        yield name, content.read()
            while unpacked.read(2**20):  # to the end, where gzip keeps the sum of it all
                _Bounded.check(unpacked.tell())
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise FormatError(f"{path} must be a readable tar archive, but it is not: {error}; download it again") from error


def _unpacked(file: BinaryIO) -> BinaryIO | gzip.GzipFile:
    """The tar in a file that may be packed by gzip."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file


class _Bounded(io.RawIOBase):
    """A file for `tarfile`, which reads whatever length a header claims: a small packed file can claim all memory."""

    def __init__(self, file: BinaryIO | gzip.GzipFile):
        self.file = file

    @staticmethod
    def check(offset: int) -> None:
        """Raise ValueError beyond the end of any archive we know."""
        if offset > UNPACKED_LIMIT:
            raise ValueError(f"it unpacks to more than {UNPACKED_LIMIT >> 20} MiB")

    def tell(self) -> int:
        """As of a file."""
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        if not 0 <= size <= ARCHIVE_LIMIT:
            raise ValueError(f"a header claims {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of a file."""
        self.check(offset)
        return self.file.seek(offset, whence)


def _integers(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
        raise FormatError(f"{where} must hold a list of integer labels, but does not")
    return value


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _RawDtype:
    """Stands in for numpy's dtype: remembers its name, ignores its state."""

    def __init__(self, name: Any, *_: Any):
        self.name = _text(name) if isinstance(name, str | bytes) else ""

    def __setstate__(self, _: Any) -> None:
        pass


class _RawArray:
    """Stands in for a numpy array under construction: keeps the state for us to check."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes_array(self) -> npt.NDArray[np.uint8]:
        """The array, if it holds plain bytes in C order."""
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _RawDtype) or dtype.name not in ("u1", "uint8") or fortran:
            raise ValueError("its arrays are not of bytes")
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _latin(text: Any, _: Any) -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"a text is {type(text).__name__}")
    return text.encode("latin-1")


class _TextDict(dict[Any, Any]):
    """A dictionary with texts as keys: hashing nested tuples that share their parts takes as long as a file wants."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | bytes):
            raise pickle.UnpicklingError(f"a key is {type(key).__name__}, not text")
        super().__setitem__(key, value)


class _PlainUnpickler(pickle._Unpickler):
    """Reads the pickles of CIFAR without running anything of theirs.

    The few names that arrays need are answered by stand-ins of our own. Python's own unpickler is used, not the C one,
    which reserves as much memory as a file asks for; of its opcodes, the one for byte arrays does so too, and those for
    sets hash what a file likes.
    """

    def refuse(self) -> None:
        """An opcode that no batch needs."""
        raise pickle.UnpicklingError("it is written in another way than CIFAR's batches are")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | dict.fromkeys(
        (pickle.BYTEARRAY8[0], pickle.EMPTY_SET[0], pickle.FROZENSET[0]), refuse
    )

    def load_dictionary(self) -> None:
        """An empty dictionary, or one of the items since the mark."""
        items = self.pop_mark()  # type: ignore[attr-defined]
        found = _TextDict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            found[key] = value
        self.append(found)  # type: ignore[attr-defined]

    dispatch[pickle.DICT[0]] = load_dictionary
    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(_TextDict())

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _RawArray
        if (module, name) == ("numpy", "dtype"):
            return _RawDtype
        if (module, name) == ("numpy", "ndarray"):
            return _RawArray
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes into an old pickle
            return _latin
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and nothing of a file is run")


def _plain(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of plain values and byte arrays, keys as text."""
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not a dictionary")
        return {_text(k): v.bytes_array() if isinstance(v, _RawArray) else v for k, v in content.items()}
    except Exception as error:  # a hostile pickle can fail anywhere
        raise FormatError(f"{where} must be a CIFAR batch, but it cannot be read: {str(error)[:200] or type(error).__name__}") from error


# -- idx files (MNIST and its likes) ---------------------------------------------------------------------------


def find_idx(folder: Path, kind: str) -> tuple[Path, Path] | None:
    """Image and label file of the training or test part, packed or not, as MNIST and Fashion-MNIST name them."""
    found = []
    for stem in _IDX_FILES[kind]:
        names = (stem, f"{stem}.gz", stem.replace("-idx", ".idx"))
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def read_idx(images: Path, labels: Path, classes: int = 10) -> ImageSet:
    """Grey images as RGB, and their labels."""
    pixels = _idx_array(images, 3)
    return image_set(np.repeat(pixels[..., None], 3, axis=3), _idx_array(labels, 1), str(images), classes)


def _idx_array(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(ARCHIVE_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path} must be a readable idx file, but it is not: {error}; download it again") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise FormatError(f"{path} must be an idx file of bytes in {dimensions} dimensions, but it is another kind of file")
    shape = tuple(int(n) for n in np.frombuffer(content[4:header], dtype=">u4"))
    if min(shape) == 0:  # else a few bytes could claim billions of images without pixels
        raise FormatError(f"{path} must hold images or labels, but its header says {'x'.join(map(str, shape))}; download it again")
    promised, held = int(np.prod(shape, dtype=object)), len(content) - header
    if promised != held:
        raise FormatError(f"{path} must hold the {promised} bytes that its header promises, but holds {held}; download it again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
