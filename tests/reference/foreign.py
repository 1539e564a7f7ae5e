"""Random weights for once-for-all's networks, drawn alike on every machine, and the images they are tried on."""

import hashlib

import numpy as np

IMAGE_SEED = 7
GAIN = 1.3  # of filters, with which images still differ by far in the logits of deep networks


def draw(name, shape):
    """Values of one tensor from its name alone; scaled so that activations neither vanish nor explode."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    values = rng.random(shape) * 2 - 1  # uniform: the simplest stream of numpy, and the most stable
    if name.endswith("running_var"):
        return (1.0 + 0.3 * values).astype(np.float32)
    if name.endswith("_matrix"):
        return (np.eye(shape[0]) + 0.05 * values).astype(np.float32)
    if len(shape) == 1:
        return (0.3 * values + (1.0 if name.endswith("bn.weight") else 0.0)).astype(np.float32)
    return (values * (3.0 / np.prod(shape[1:])) ** 0.5).astype(np.float32)


def foreign_state(shapes, gain=1.0):
    """Weights of a network with these names and shapes, filters times `gain`; counters are zero."""
    gains = {4: np.float32(gain)}
    return {name: draw(name, shape) * gains.get(len(shape), 1) if shape else np.zeros((), dtype=np.int64) for name, shape in shapes.items()}


def image(resolution, number):
    """One input (1, 3, r, r)."""
    return np.random.default_rng([IMAGE_SEED, number]).random((1, 3, resolution, resolution)).astype(np.float32) * 4 - 2
