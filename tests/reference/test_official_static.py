"""Static networks are written for once-for-all, read from it, and computed with its weights as once-for-all itself does it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import GAIN, foreign_state, image

from ofasearch.jobs.deliver import to_network
from ofasearch.jobs.network import subnet_at
from ofasearch.space.core import Settings
from ofasearch.space.families import get_space
from ofasearch.space.static import blueprint_of, placed_layers
from ofasearch.space.static_write import net_config
from ofasearch.supernet.published import load_published, their_names, their_shapes

OUTPUTS = np.load(Path(__file__).with_name("ofa_static.npz"))
FAMILIES = ("ofa-mbv3-w1.0", "ofa-proxyless-w1.3", "ofa-resnet50")
RECORDS = {space: json.loads(OUTPUTS[space].tobytes()) for space in FAMILIES}
NETWORKS = [(space, number) for space in FAMILIES for number in range(4)]
every_network = pytest.mark.parametrize(("space", "number"), NETWORKS, ids=[f"{space}-{number}" for space, number in NETWORKS])


def blueprint(space, number):
    """The layers of one stored network, by the settings that once-for-all gives it."""
    arch, resolution = RECORDS[space][number]["arch"], RECORDS[space][number]["resolution"]
    found = get_space(space).with_resolutions([resolution])
    chosen = {key: np.array([arch[key]]) for key in arch}
    none = np.zeros((1, 0), dtype=np.int64)
    settings = Settings(chosen.get("ks", none), chosen["e"], chosen["d"], np.array([resolution]), chosen.get("w"))
    return found.blueprint(found.from_settings(settings)[0])


def without_slots(layers):
    return tuple(replace(spec, slot="") for spec in layers)


def state(record):
    drawn = foreign_state({name: tuple(shape) for name, shape in record["shapes"].items()}, GAIN)
    return {name: torch.from_numpy(array) for name, array in drawn.items()}


def published(folder, record, content):
    """A folder as once-for-all publishes its networks."""
    folder.mkdir()
    (folder / "net.config").write_text(json.dumps(record["theirs"]))
    (folder / "run.config").write_text(json.dumps({"image_size": record["resolution"]}))
    torch.save(content, folder / "init")
    return folder / "net.config"


@every_network
def test_a_config_that_once_for_all_writes_is_the_network_of_its_settings(space, number):
    record = RECORDS[space][number]
    assert blueprint_of(record["theirs"], record["resolution"]) == without_slots(blueprint(space, number))


@every_network
def test_the_config_that_we_write_is_what_once_for_all_has_read(space, number):
    record = RECORDS[space][number]
    written = json.loads(json.dumps(net_config(blueprint(space, number))))
    assert written == record["ours"]
    assert blueprint_of(written, record["resolution"]) == without_slots(blueprint(space, number))


@every_network
def test_weights_are_named_and_shaped_as_in_what_once_for_all_builds_of_our_config(space, number):
    record = RECORDS[space][number]
    placed = placed_layers(record["ours"], record["resolution"])
    expected = {name: tuple(shape) for name, shape in record["shapes"].items() if not name.endswith("num_batches_tracked")}
    assert their_shapes(placed) == expected
    assert sorted(their_names(placed).values()) == sorted(expected)


@pytest.mark.parametrize(
    ("space", "number"), [(space, number) for space, number in NETWORKS if space != "ofa-resnet50" or number in (1, 3)]
)
def test_a_published_network_computes_what_once_for_all_computes(tmp_path, space, number):
    record, expected = RECORDS[space][number], OUTPUTS[f"{space}-logits"]
    subnet = subnet_at(published(tmp_path / "net", record, {"state_dict": state(record)}))
    images = np.concatenate([image(record["resolution"], number), image(record["resolution"], number + 1)])
    with torch.no_grad():
        found, other = to_network(subnet)(torch.from_numpy(images)).numpy()
    assert np.abs(found - other).max() > 1e-2 * np.abs(found).max()  # images differ by far more than the tolerance
    assert np.abs(found[: expected.shape[1]] - expected[number]).max() < 1e-5 * max(1, np.abs(expected[number]).max())
    assert (subnet.arch.id, subnet.classes, subnet.blueprint[0].hw_in, subnet.preprocessing.size) == (
        "net",
        1000,
        *[record["resolution"]] * 2,
    )


def test_old_names_and_those_of_data_parallel_training_mean_the_same(tmp_path):
    record = RECORDS["ofa-mbv3-w1.0"][0]
    today = state(record)
    old = {
        "module." + name.replace(".conv.", ".mobile_inverted_conv.", 1) if name.startswith("blocks.") else name: t
        for name, t in today.items()
    }
    assert sum("mobile_inverted_conv" in name for name in old) > 100
    _, expected = load_published(published(tmp_path / "today", record, today))
    _, found = load_published(published(tmp_path / "old", record, {"state_dict": old, "epoch": 3}))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert {
        "layer0.conv.weight",
        "layer2.expand.bn.running_var",
        f"layer{len(blueprint('ofa-mbv3-w1.0', 0)) - 1}.linear.bias",
    } <= found.keys()
