"""Small files of the right form: data sets as their authors publish them, checkpoints as once-for-all saves them."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import torch
from PIL import Image

from ofasearch.space.families import get_space
from ofasearch.supernet.foreign_keys import Naming, family_of_space
from ofasearch.supernet.weights import full_shapes, matrix_shapes

# -- pickles as Python 2 writes them ---------------------------------------------------------------------------


def python2(value):
    """The pickle of plain values and byte arrays that Python 2's cPickle writes: texts are byte strings."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, np.ndarray):
        shape = _python2(value.shape[0]) + _python2(value.shape[1]) + b"\x86"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        raw = value.tobytes()
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        return empty + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return b"U" + bytes([len(value)]) + value.encode()


def python3(protocol):
    """A writer of pickles with text keys."""
    return lambda value: pickle.dumps(value, protocol)


def bytes_keys(value):
    """The pickle that numpy users write again after reading with encoding='bytes'."""
    content = {k.encode(): v for k, v in value.items()}
    return pickle.dumps(content, 2)


# -- CIFAR ------------------------------------------------------------------------------------------------------

CIFAR = {10: "cifar-10-batches-py", 100: "cifar-100-python"}


def cifar_content(classes, *, train=200, test=20, seed=0):
    """(file name -> dictionary, images, labels): the training images of all batches, then the test images."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (train + test, 32, 32, 3), dtype=np.uint8)
    labels = [n % classes for n in range(train + test)]
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    names = [f"class {n}" for n in range(classes)]
    if classes == 10:
        each = train // 5
        bounds = {f"data_batch_{i + 1}": slice(i * each, (i + 1) * each) for i in range(5)} | {"test_batch": slice(train, None)}
        files = {name: {"data": rows[part], "labels": labels[part]} for name, part in bounds.items()}
        return files | {"batches.meta": {"label_names": names}}, images, labels
    bounds = {"train": slice(0, train), "test": slice(train, None)}
    coarse = [n // 5 for n in labels]
    files = {n: {"data": rows[p], "fine_labels": labels[p], "coarse_labels": coarse[p]} for n, p in bounds.items()}
    return files | {"meta": {"fine_label_names": names, "coarse_label_names": names[:20]}}, images, labels


def cifar_files(classes, write=python2, **sizes):
    """File name -> bytes of one archive."""
    return {name: write(content) for name, content in cifar_content(classes, **sizes)[0].items()}


def tar_gz(path, files):
    """Pack files, by their name inside."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_files(folder, files):
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# -- idx files --------------------------------------------------------------------------------------------------


def idx(array):
    """The bytes of an idx file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_files(*, packed=True, train=200, test=20):
    """File name -> bytes, and the grey images and labels, training before test."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    parts = {"train": slice(0, train), "t10k": slice(train, None)}
    files = {}
    for name, part in parts.items():
        files |= {f"{name}-images-idx3-ubyte": idx(images[part]), f"{name}-labels-idx1-ubyte": idx(labels[part])}
    if packed:
        files = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
    return files, images, labels


# -- image folders ----------------------------------------------------------------------------------------------


def encoded(size, seed=0, kind="PNG", mode="RGB"):
    """One encoded image of noise, (width, height)."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def image_folder(folder, per_class, *, classes=("ape", "bee", "cat"), sizes=((40, 30), (30, 50)), kind="PNG", suffix=".png", seed=0):
    """Class folders with images of noise of the given sizes in turn."""
    number = seed
    for name in classes:
        (folder / name).mkdir(parents=True)
        for n in range(per_class):
            number += 1
            (folder / name / f"{n:03d}{suffix}").write_bytes(encoded(sizes[n % len(sizes)], number, kind))
    return folder


# -- checkpoints ------------------------------------------------------------------------------------------------


def official_state(name="ofa-mbv3-w1.0", *, classes=3, matrices=False, seed=0):
    """A random state dict of a space with once-for-all's names, scaled so that activations stay finite."""
    space, family = get_space(name, classes=classes), family_of_space(name)
    rng = np.random.default_rng(seed)
    state = {}
    for key, shape in (full_shapes(space) | (matrix_shapes(space) if matrices else {})).items():
        values = rng.standard_normal(shape, dtype=np.float32) * (2.0 / max(1, int(np.prod(shape[1:])))) ** 0.5
        if len(shape) == 1:
            values = 0.1 * rng.standard_normal(shape, dtype=np.float32) + key.endswith(("bn.weight", "running_var"))
        state[family.their_key(key, Naming())] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return state
