"""Predictors with drawn weights, as once-for-all's files and as ours, for comparisons with its package."""

from itertools import pairwise

import numpy as np
from foreign import draw

from ofasearch.predictor import Predictor, blocks_encoder
from ofasearch.predictor.encode import Encoder
from ofasearch.predictor.layouts import LAYOUTS

LAYOUT = {layout.name: layout for layout in LAYOUTS}
SIZES = {  # image_size_list of each; one is in no order
    "mbv3": (160, 128, 224),
    "mbv2": (128, 160, 192, 224),
    "resnet50": (128, 144, 160, 176, 192, 224, 240, 256),
    "tutorial": tuple(range(112, 225, 16)),
}
SPACE = {"mbv3": "ofa-mbv3-w1.0", "mbv2": "ofa-proxyless-w1.3", "resnet50": "ofa-resnet50", "tutorial": "ofa-mbv3-w1.2"}


def newer_state(name):
    """A file of the newer form, as arrays."""
    shapes = {"base_acc": (1,)}
    for i, inputs in enumerate((LAYOUT[name].dims + len(SIZES[name]), 400, 400)):
        shapes |= {f"layers.{i}.0.weight": (400, inputs), f"layers.{i}.0.bias": (400,)}
    shapes["layers.3.weight"] = (1, 400)
    return {key: draw(f"{name}.{key}", shape) for key, shape in shapes.items()}


def ours(name):
    """A predictor as a fit of ours makes it: our order of features, an offset, a last bias."""
    encoder = {
        "tutorial": blocks_encoder((3, 5, 7), (3, 4, 6), (160, 192, 224), 20),
        "mbv3": blocks_encoder((3, 5, 7), (3, 4, 6), SIZES["mbv3"], 20),
        "mbv2": blocks_encoder((3, 5, 7), (3, 4, 6), SIZES["mbv2"], 21),
        "resnet50": Encoder(LAYOUT["resnet50"].encoder(SIZES["resnet50"]).parts[::-1]),
    }[name]
    sizes = list(pairwise((encoder.dims, 400, 400, 400, 1)))
    weights = tuple(draw(f"ours.{name}.{i}.w", shape[::-1]).T[None].copy() for i, shape in enumerate(sizes))
    biases = tuple(draw(f"ours.{name}.{i}.b", (shape[1],))[None] for i, shape in enumerate(sizes))
    return Predictor(encoder=encoder, weights=weights, biases=biases, offset=0.7512345678, space=SPACE[name])


def rows(name, records):
    """Dictionaries of networks as rows of numbers; `records` turns them back."""
    fields = _fields(name)
    return np.array([[float(v) for field in fields for v in np.atleast_1d(record[field])] for record in records])


def records(name, rows):
    """Dictionaries as once-for-all's encoders take them."""
    widths = {"d": len(_layout(name).depths), "image_size": 1, **{part.field: part.columns for part in _layout(name).parts}}
    cuts = np.cumsum([widths[field] for field in _fields(name)])[:-1]
    found = []
    for row in rows:
        values = dict(zip(_fields(name), np.split(row, cuts), strict=True))
        lists = {field: [v if name == "resnet50" and field == "e" else int(v) for v in part.tolist()] for field, part in values.items()}
        found.append({**lists, "image_size": lists["image_size"][0]})
    return found


def _layout(name):
    return LAYOUT["mbv3" if name == "tutorial" else name]


def _fields(name):
    return (*_layout(name).fields, "image_size")
