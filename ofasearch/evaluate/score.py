"""What a network predicts, after its batch norm was recalibrated.

Legend: n = images, B = batch. Predictions and labels are integer arrays (n,); rates are fractions of all n.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ofasearch.data import DataSet, Preprocessing, Split
from ofasearch.errors import CalibrationError
from ofasearch.supernet.elastic import norms

CALIBRATION_IMAGES = 2000
CALIBRATION_BATCH = 200
BATCH = 500  # small images
LARGE_BATCH = 64  # photographs: what a laptop's memory holds of a network's activations at 224 pixels
LARGE = 96  # pixels


def batches(images: Split, preprocessing: Preprocessing, *, resolution: int, size: int = BATCH) -> Iterator[Tensor]:
    """Normalised inputs (B, 3, resolution, resolution) of at most `size` images each, in order."""
    return map(torch.from_numpy, images.inputs(preprocessing, resolution=resolution, batch=size))


def calibration_images(data: DataSet) -> Split:
    """What batch norm is recalibrated on: at most 2,000 images of the calibration split."""
    images = data["calibration"]
    return images.take(np.arange(min(CALIBRATION_IMAGES, len(images))))


def calibration_batches(data: DataSet, preprocessing: Preprocessing, *, resolution: int) -> Iterator[Tensor]:
    """`calibration_images` as inputs; batches have the size at which batch norm's own statistics are taken."""
    return batches(calibration_images(data), preprocessing, resolution=resolution, size=CALIBRATION_BATCH)


def accelerator() -> torch.device:
    """Where networks are evaluated: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(slots=True)
class _Moments:
    """Sums of a batch norm's input moments over batches, weighted by batch size. It takes them from the norm's own statistics."""

    total: Tensor  # (2, C), float64: mean, biased variance
    images: int = 0

    def __call__(self, norm: nn.BatchNorm2d, args: tuple[Tensor], _: Tensor) -> None:
        """Forward hook of a norm that trains with momentum 1: its running statistics are those of the batch just seen."""
        images, values = len(args[0]), args[0].numel() // norm.num_features  # per channel
        mean, variance = _statistics(norm).double()
        self.total += images * torch.stack([mean, variance * (values - 1) / values])  # it keeps the unbiased one
        self.images += images


def _statistics(norm: nn.BatchNorm2d) -> Tensor:
    """Running mean and variance, (2, C)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return torch.stack([norm.running_mean, norm.running_var])


@torch.no_grad()
def recalibrate_bn(network: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Set every batch norm's statistics from `inputs` (B, ...) and return the network's outputs of that pass.

    While it runs, each batch is normalised by its own statistics; the running ones become the mean over batches,
    weighted by batch size, of batch mean and biased batch variance. A network's layers may be calibrated one after
    the other, each on the returned outputs of the one before, with the same result.

    Raises CalibrationError when there are no inputs. Reference: once-for-all, section 4.1; the averaging rule is that of
    the published code.
    """
    device = _device(network)
    with _recalibrating(network):
        outputs = [network(x.to(device)) for x in inputs]
        _check_some(len(outputs))
    return outputs


@torch.no_grad()
def recalibrate_together(networks: Sequence[nn.Module], inputs: Iterable[Tensor]) -> None:
    """`recalibrate_bn` of several networks in one pass over the inputs, which may take long to read."""
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(_recalibrating(network))
        passed = 0
        for x in inputs:
            passed += 1
            for network in networks:
                network(x.to(_device(network)))
        _check_some(passed)


def _check_some(batches: int) -> None:
    if batches == 0:
        raise CalibrationError("batch norm must be recalibrated on at least one batch of images, but got none")


@contextmanager
def _recalibrating(network: nn.Module) -> Iterator[None]:
    """Whatever the network is run on meanwhile becomes its statistics."""
    network.eval()
    device = _device(network)
    found = [(norm, _Moments(torch.zeros(2, norm.num_features, dtype=torch.float64, device=device))) for norm in norms(network).values()]
    former = [(norm.momentum, _statistics(norm).double()) for norm, _ in found]
    handles = [norm.register_forward_hook(moments) for norm, moments in found]
    for norm, _ in found:
        norm.reset_running_stats()  # momentum 1 takes nothing of them, but 0 times infinity
        norm.train()
        norm.momentum = 1.0
    try:
        yield
        for _, moments in found:
            moments.total /= moments.images
    except BaseException:
        for (_, moments), (_, statistics) in zip(found, former, strict=True):
            moments.total = statistics
        raise
    finally:
        for handle, (norm, moments), (momentum, _) in zip(handles, found, former, strict=True):
            handle.remove()
            norm.momentum = momentum
            norm.eval()
            norm.running_mean.copy_(moments.total[0])  # type: ignore[union-attr]
            norm.running_var.copy_(moments.total[1])  # type: ignore[union-attr]


def predictions(network: nn.Module, images: Split, preprocessing: Preprocessing, *, resolution: int) -> npt.NDArray[np.int64]:
    """Predicted class of each image (n,)."""
    return np.concatenate(list(predict(network, images, preprocessing, resolution=resolution)))


def predict(network: nn.Module, images: Split, preprocessing: Preprocessing, *, resolution: int) -> Iterator[npt.NDArray[np.int64]]:
    """`predictions`, batch by batch: photographs take their time."""
    for (part,) in predict_together([network], images, preprocessing, resolution=resolution):
        yield part


@torch.no_grad()
def predict_together(
    networks: Sequence[nn.Module], images: Split, preprocessing: Preprocessing, *, resolution: int
) -> Iterator[list[npt.NDArray[np.int64]]]:
    """What each network predicts of each batch of images: images are read once for all networks."""
    for network in networks:
        network.eval()
    size = BATCH if resolution <= LARGE else LARGE_BATCH
    for x in batches(images, preprocessing, resolution=resolution, size=size):
        yield [network(x.to(_device(network))).argmax(1).cpu().numpy() for network in networks]


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def top1(predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]) -> float:
    """Fraction of images whose predicted class is the label."""
    return float(np.mean(predicted == labels))
