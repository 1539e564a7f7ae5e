"""What a user names as the old, the new or the reference network: anything that says a class of every image.

| text | what it is |
| --- | --- |
| `subnet.pt`, or the folder of a run that holds one | one of our networks, taken as it is |
| a folder with `net.config`, `run.config` and `init`, or that `net.config` | one of once-for-all's published networks, taken as it is |
| an arch id, or JSON with `ks`, `e`, `d`, `r` | a network of a supernet; with data its batch norm is recalibrated first, as in `eval` |
| `.onnx` | any ONNX classifier, ours or not |
| `.npz`, `.npy`, `.csv`, `.txt` | its predictions (`ofasearch.evaluate.saved`) |

Legend: n = images.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofasearch import zoo
from ofasearch.data import DataSet, Preprocessing, SplitName
from ofasearch.errors import CalibrationError, FormatError, MismatchError, OfaSearchError, UsageError
from ofasearch.evaluate.members import Members
from ofasearch.evaluate.saved import SPLITS, Labelled, Saved, is_saved, labelled, read_saved
from ofasearch.jobs.deliver import Subnet, calibrated_subnet, shipped_subnet, to_network, uncalibrated_subnet
from ofasearch.jobs.network import Network, digest_at, network_of, parse_codes, place_of, subnet_at
from ofasearch.jobs.onnx_file import input_size, network_in, open_onnx, predict_onnx, same_graph
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.records import file_digest, parse_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import costs

Kind = Literal["subnet", "onnx", "predictions"]
Predicted = npt.NDArray[np.int64]
PREPROCESSING_HINT = "add --preprocessing (imagenet, or JSON with mean and std)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """Something that says a class of every image.

    Of `subnet`, `onnx` and `saved`, the one of its kind is there. `trained` is the supernet of an architecture, whose batch norm
    is recalibrated before it predicts live. `network` are its layers, and the space and codes they belong to, only where that was
    checked. `classes` and `preprocessing` are None where nobody says. `digest` is that of the file or of what made the network.
    """

    name: str
    kind: Kind
    digest: str
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    network: Network | None = None
    subnet: Subnet | None = None
    trained: zoo.TrainedSupernet | None = None
    onnx: OnnxModel | None = None
    saved: Saved | None = None

    @property
    def arch_id(self) -> str | None:
        """Which network of its space it is, where that is sure."""
        return self.network.name if self.network is not None and self.network.space is not None else None

    @property
    def space(self) -> Space | None:
        """The space it belongs to, where that is sure."""
        return self.network.space if self.network is not None else None

    @property
    def supernet(self) -> str | None:
        """The supernet that it says it was cut from."""
        said = self.onnx.metadata.get("supernet") if self.onnx is not None else None
        return self.subnet.supernet if self.subnet is not None else said

    @property
    def codes(self) -> Codes | None:
        """Its codes (g,) in `space`."""
        return self.network.codes if self.network is not None else None

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of its layers, where these are sure."""
        return int(costs(self.network.blueprint).macs) if self.network is not None else None

    def to_json(self) -> dict[str, Any]:
        """As in answers; what is unknown is absent."""
        record = {"name": self.name, "kind": self.kind, "arch_id": self.arch_id, "macs": self.macs}
        if self.subnet is not None and self.trained is None:
            record["calibrated"] = self.subnet.calibrated
        return {key: value for key, value in record.items() if value is not None}


# -- reading ---------------------------------------------------------------------------------------------------


def read_classifier(text: str, *, supernet: str | None = None, preprocessing: Preprocessing | None = None) -> Classifier:
    """What a user names.

    An arch id belongs to `supernet` (default: the embedded one). `preprocessing` is for ONNX files that do not say theirs. Runs no
    code of a file. Raises ArchError, FormatError, NotFoundError.
    """
    if text.endswith(".onnx"):
        return _of_onnx(text, preprocessing)
    if not text.lstrip().startswith("{"):
        if is_saved(text):
            return Classifier(name=text, kind="predictions", saved=read_saved(Path(text)), digest=file_digest(Path(text)))
        place = place_of(text)
        if place is not None:
            subnet = subnet_at(place)
            return _of_subnet(text, digest_at(place), subnet, network_of(subnet))
    return _of_arch(text, zoo.load_supernet(supernet or zoo.DEFAULT_SUPERNET))


def _of_onnx(text: str, preprocessing: Preprocessing | None) -> Classifier:
    path = Path(text)
    model, stated = open_onnx(path)
    return Classifier(
        name=text,
        kind="onnx",
        digest=file_digest(path),
        classes=model.classes,
        class_names=_stated_names(model),
        preprocessing=stated or preprocessing,
        network=network_in(path, model),
        onnx=model,
    )


def _stated_names(model: OnnxModel) -> tuple[str, ...]:
    """The class names that a file of ours holds; none where it holds something else."""
    try:
        names = parse_json(model.metadata.get("classes", "null"))
    except ValueError:
        return ()
    sound = isinstance(names, list) and len(names) == model.classes and all(isinstance(name, str) for name in names)
    return tuple(names) if sound else ()


def _of_arch(text: str, trained: zoo.TrainedSupernet) -> Classifier:
    space = trained.weights.space
    codes = parse_codes(text, space)
    if trained.members is not None and _member(trained.members, codes) is not None:
        subnet = shipped_subnet(trained.weights, trained.members, codes, trained.name)
    else:
        subnet = uncalibrated_subnet(trained.weights, codes, trained.name)
    network = Network(name=subnet.arch.id, blueprint=subnet.blueprint, space=space, codes=codes)
    return replace(_of_subnet(subnet.arch.id, _arch_digest(subnet), subnet, network), trained=trained)


def _of_subnet(name: str, digest: str, subnet: Subnet, network: Network) -> Classifier:
    return Classifier(
        name=name,
        kind="subnet",
        digest=digest,
        classes=subnet.classes,
        class_names=subnet.class_names,
        preprocessing=subnet.preprocessing,
        network=network,
        subnet=subnet,
    )


def _arch_digest(subnet: Subnet) -> str:
    return hashlib.sha256(f"{subnet.supernet_digest} {subnet.arch.id} {subnet.calibrated}".encode()).hexdigest()


def assume_preprocessing(classifiers: Sequence[Classifier], others: Sequence[Preprocessing] = ()) -> tuple[list[Classifier], list[str]]:
    """The classifiers, ONNX files that do not say their preprocessing with that of the others; and a note for each of those.

    Networks that are compared on one data set are nearly always fed alike, but nobody has said so: the notes do. `others` are further
    networks', such as a supernet's. Raises UsageError where the others do not say it either, or not the same.
    """
    silent = [c.name for c in classifiers if _is_silent(c)]
    stated = [*others, *(c.preprocessing for c in classifiers if c.preprocessing is not None)]
    sizes = {p.size for p in stated}
    alike = {replace(p, size=max(sizes) if len(sizes) == 1 else 0) for p in stated}
    if silent and len(alike) != 1:
        why = "differ in theirs" if stated else "do not say theirs"
        raise UsageError(
            f"preprocessing of {silent[0]} must be known, but the file does not say it, and the other networks {why}; {PREPROCESSING_HINT}"
        )
    found = [replace(c, preprocessing=min(alike, key=repr)) if _is_silent(c) else c for c in classifiers]
    return found, [f"{name} does not say how its images are preprocessed: taken as for the others" for name in silent]


def _is_silent(classifier: Classifier) -> bool:
    return classifier.onnx is not None and classifier.preprocessing is None


# -- live ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionProgress:
    """How many images were looked at."""

    phase: str
    done: int
    total: int
    eta_seconds: float | None = None


def check_fits(classifier: Classifier, data: DataSet, split: SplitName) -> Labelled:
    """The images of a split, if the classifier can be judged on them: all that can be checked without running it.

    Raises CalibrationError, FormatError (an ONNX file of unknown preprocessing), MismatchError (no labels; other classes, image size
    or preprocessing; saved predictions of other images).
    """
    images = labelled(data, split)
    if classifier.saved is not None:
        classifier.saved.predictions(images)
        return images
    _check_calibrated(classifier)
    preprocessing = _known_preprocessing(classifier)
    if classifier.classes not in (None, data.classes):
        raise MismatchError(f"data must have the {classifier.classes} classes of {classifier.name}, but {data.name} has {data.classes}")
    if classifier.onnx is not None:
        input_size(classifier.name, classifier.onnx, preprocessing, data[split])
    size = classifier.subnet.blueprint[0].hw_in if classifier.subnet is not None else None
    if None not in (size, data.pixels) and size != data.pixels:
        raise MismatchError(f"images of {data.name} must have the {size} pixels of {classifier.name}, but have {data.pixels}")
    _check_names(classifier, data.name, data.class_names)
    return images


def _check_calibrated(classifier: Classifier) -> None:
    """Raise CalibrationError for a file that says it was never calibrated; an architecture is calibrated before it is run."""
    said = classifier.onnx.metadata.get("calibrated", "") if classifier.onnx is not None else ""
    if classifier.subnet is not None and classifier.trained is None:
        said = classifier.subnet.calibrated
    if said == "no":
        raise CalibrationError(
            f"{classifier.name} must be calibrated before it is scored, but it says it is not; export it again with --data"
        )


def _check_names(classifier: Classifier, data: str, names: tuple[str, ...]) -> None:
    """Raise MismatchError where a class stands at another number, or where no class has the same name.

    Names that are only numbers say nothing, and a few other words for the same classes do no harm.
    """
    numbers = tuple(map(str, range(len(names))))
    mine = classifier.class_names
    if not mine or numbers in (mine, names):
        return
    place = {name: i for i, name in enumerate(names)}
    moved = next((name for i, name in enumerate(mine) if place.get(name, i) != i), None)
    if moved is not None or not set(mine) & set(names):
        why = f"'{moved}' is another number there" if moved is not None else f"they are {', '.join(mine[:3])} there"
        raise MismatchError(f"classes of {classifier.name} must be those of {data} ({', '.join(names[:3])}, ...), but {why}")


def _known_preprocessing(classifier: Classifier) -> Preprocessing:
    if classifier.preprocessing is None:
        raise FormatError(f"{classifier.name} must say in its metadata how images are preprocessed, but it does not; {PREPROCESSING_HINT}")
    return classifier.preprocessing


def calibrated(classifier: Classifier, data: DataSet) -> Classifier:
    """An architecture as a network whose batch norm was recalibrated on the data's calibration split; all others as they are."""
    if classifier.trained is None or classifier.codes is None:
        return classifier
    subnet = calibrated_subnet(classifier.trained.weights, classifier.codes, data, classifier.trained.name)
    return replace(classifier, subnet=subnet, digest=_arch_digest(subnet), trained=None)


def live_predictions(classifier: Classifier, data: DataSet, split: SplitName) -> Iterator[PredictionProgress | Predicted]:
    """Progress on the way and, at last, the predicted class of each image of a split (n,).

    Raises as `check_fits`, and FormatError for an ONNX file that gives no finite logits.
    """
    images = check_fits(classifier, data, split)
    if classifier.saved is not None:
        yield classifier.saved.predictions(images)
        return
    phase, total = f"evaluating {classifier.name} on {split}", len(images.labels)
    yield PredictionProgress(phase=phase, done=0, total=total)
    started, found = time.perf_counter(), list[Predicted]()
    for part in _batches(calibrated(classifier, data), data, split):
        found.append(part)
        done = sum(map(len, found))
        eta = (time.perf_counter() - started) / done * (total - done)
        yield PredictionProgress(phase=phase, done=done, total=total, eta_seconds=eta)
    yield np.concatenate(found)


def predictions_of(classifier: Classifier, data: DataSet, split: SplitName) -> Predicted:
    """What `live_predictions` ends with, for those who show no progress."""
    *_, found = live_predictions(classifier, data, split)
    assert isinstance(found, np.ndarray)
    return found


def _batches(classifier: Classifier, data: DataSet, split: SplitName) -> Iterator[Predicted]:
    preprocessing = _known_preprocessing(classifier)
    if classifier.onnx is not None:
        yield from predict_onnx(classifier.name, classifier.onnx, preprocessing, data[split], data.classes)
    elif classifier.subnet is not None:
        from ofasearch.evaluate.score import accelerator, predict

        network = to_network(classifier.subnet).to(accelerator())
        yield from predict(network, data[split], preprocessing, resolution=classifier.subnet.blueprint[0].hw_in)


# -- shipped ---------------------------------------------------------------------------------------------------


def shipped_images(trained: zoo.TrainedSupernet, split: SplitName) -> Labelled:
    """The images of which predictions came with a supernet. Raises MismatchError where none did."""
    members = _members(trained)
    if split not in SPLITS:
        raise UsageError(f"--split must be {' or '.join(SPLITS)}, but got {split}")
    classes = trained.weights.space.classes
    names = trained.weights.class_names or tuple(map(str, range(classes)))
    data = str(members.card.get("data", f"the data of {trained.name}"))
    return Labelled(data=data, split=split, labels=members.labels[split].astype(np.int64), class_names=names)


def shipped_predictions(classifier: Classifier, trained: zoo.TrainedSupernet, split: SplitName) -> Predicted:
    """Predicted classes (n,) that came with a supernet: of an architecture, or of a file that is exactly that network.

    Saved predictions are given back if they are of these images. Raises MismatchError, which says to add --data, for all others.
    """
    images = shipped_images(trained, split)
    if classifier.saved is not None:
        return classifier.saved.predictions(images)
    members, member = _members(trained), None
    if classifier.arch_id is not None and classifier.classes == trained.weights.space.classes:
        member = _shipped_member(classifier, classifier.arch_id, trained, members)
    if member is None:
        raise MismatchError(
            f"{classifier.name} must be a network of {trained.name} with its shipped statistics to be compared without images, "
            "but is another; add --data (or name its --supernet)"
        )
    return np.asarray(members.predictions[split][member], dtype=np.int64)


def _members(trained: zoo.TrainedSupernet) -> Members:
    if trained.members is None:
        raise MismatchError(f"supernet {trained.name} must come with predictions to be compared without images, but has none; add --data")
    return trained.members


def _member(members: Members, codes: Codes) -> int | None:
    """The row of a network among those measured."""
    try:
        return int(members.index(np.atleast_2d(codes))[0])
    except MismatchError:
        return None


def _shipped_member(classifier: Classifier, arch_id: str, trained: zoo.TrainedSupernet, members: Members) -> int | None:
    """The row of the measured member that a classifier is, with the same layers, weights, statistics and preprocessing."""
    try:
        codes = parse_codes(arch_id, members.space)
    except OfaSearchError:
        return None
    member = _member(members, codes)
    if member is None or (classifier.trained is not None and classifier.trained.weights.digest == trained.weights.digest):
        return member
    shipped = shipped_subnet(trained.weights, members, codes, trained.name)
    alike = fed_alike(classifier.preprocessing, shipped.preprocessing)
    if classifier.onnx is not None:
        return member if alike and same_graph(Path(classifier.name), shipped.blueprint, shipped.arrays) else None
    return member if alike and classifier.subnet is not None and _equal(classifier.subnet, shipped) else None


def fed_alike(one: Preprocessing | None, other: Preprocessing) -> bool:
    """Whether images become the same inputs at whatever size."""
    return one is not None and replace(one, size=0) == replace(other, size=0)


def _equal(subnet: Subnet, other: Subnet) -> bool:
    """Whether two networks have the same layers and the same numbers in them."""
    mine, theirs = subnet.arrays, other.arrays
    return (
        subnet.supernet_digest == other.supernet_digest
        and subnet.blueprint == other.blueprint
        and mine.keys() == theirs.keys()
        and all(np.array_equal(mine[key], theirs[key]) for key in mine)
    )
