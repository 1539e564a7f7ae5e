"""Checkpoints of all families as once-for-all saves them, with random weights."""

import torch
from foreign import foreign_state

from ofasearch.space.families import get_space
from ofasearch.supernet.foreign_keys import Naming, family_of_space
from ofasearch.supernet.weights import full_shapes, matrix_shapes

NEW = Naming()
SMALL = ("ofa-mbv3-cifar", "ofa-proxyless-cifar", "ofa-resnet50-cifar")  # one of each family, with the same keys as the large


def names_of(space_name, naming=NEW, *, matrices=True, classes=None):
    """Once-for-all's names and shapes of a whole supernet."""
    space, family = get_space(space_name, classes=classes), family_of_space(space_name)
    shapes = full_shapes(space) | (matrix_shapes(space) if matrices else {})
    named = {family.their_key(key, naming): shape for key, shape in shapes.items()}
    counters = {name.removesuffix("running_mean") + "num_batches_tracked": () for name in named if name.endswith("running_mean")}
    return named | counters


def state(space_name, naming=NEW, **kinds):
    """A random state dict as torch saves it; values follow the new elastic names, as the reference's do."""
    new = names_of(space_name, **kinds)
    values = foreign_state(new)
    return {name: torch.from_numpy(values[key]) for name, key in zip(names_of(space_name, naming, **kinds), new, strict=True)}
