"""Images, labels, and the named splits that keep training, calibration, rewards and reports apart."""

from ofasearch.data.load import load_data
from ofasearch.data.sets import (
    IMAGENET,
    SPLIT_NAMES,
    DataSet,
    Images,
    ImageSet,
    Labels,
    Preprocessing,
    Split,
    SplitName,
    channel_statistics,
    pixels_of,
    split_pool,
)

__all__ = [
    "IMAGENET",
    "SPLIT_NAMES",
    "DataSet",
    "ImageSet",
    "Images",
    "Labels",
    "Preprocessing",
    "Split",
    "SplitName",
    "channel_statistics",
    "load_data",
    "pixels_of",
    "split_pool",
]
