"""Static networks of random weights, in folders as once-for-all publishes them."""

import json
from dataclasses import replace

import numpy as np
import torch

from ofasearch.deploy.export import random_weights
from ofasearch.space.static import placed_layers
from ofasearch.space.static_write import net_config, run_config
from ofasearch.supernet.published import their_names

GAIN = 1.3  # of filters, with which images still differ by far in the logits of deep networks


def their_state(blueprint, seed=0):
    """A random state dict with once-for-all's names, as torch saves it; counters included."""
    layers = tuple(replace(spec, slot="") for spec in blueprint)
    names = their_names(placed_layers(net_config(layers), layers[0].hw_in))
    rng = np.random.default_rng(seed)
    state = {}
    for key, array in random_weights(layers, rng).items():
        drawn = rng.uniform(-0.3, 0.3, array.shape).astype(np.float32) if array.ndim == 1 else 0  # statistics that say something
        state[names[key]] = torch.from_numpy((array + drawn) * np.float32(GAIN if array.ndim == 4 else 1))
        if key.endswith("running_var"):
            state[names[key].replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return state


def publish(folder, blueprint, *, seed=0, weights=True):
    """Write net.config, run.config and, unless told otherwise, random weights; returns the folder."""
    folder.mkdir(parents=True)
    (folder / "net.config").write_text(json.dumps(net_config(blueprint), indent=4))
    (folder / "run.config").write_text(json.dumps(run_config(blueprint[0].hw_in)))
    if weights:
        torch.save({"state_dict": their_state(blueprint, seed)}, folder / "init")
    return folder
