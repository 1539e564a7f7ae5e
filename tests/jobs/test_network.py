"""Networks by any name: ids, settings, files of ours and of others, of any number of classes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ofasearch.cli.main import run
from ofasearch.data import Preprocessing
from ofasearch.deploy.export import random_weights
from ofasearch.errors import FormatError, NotFoundError, UsageError
from ofasearch.jobs import subnet as subnet_job
from ofasearch.jobs.deliver import Subnet, save_subnet, settings_json, write_configs
from ofasearch.jobs.network import read_network
from ofasearch.space.core import Arch
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar")
CODES = np.array(SPACE.parse("compofa-mbv3-cifar@r32-2-3-2-4-2").codes, dtype=np.int64)
ARCH = str(SPACE.arch(CODES))


def saved(path, space, codes, *, arch_id=None):
    """A subnet.pt of random weights."""
    blueprint = space.blueprint(codes)
    subnet = Subnet(
        arch=Arch(arch_id or space.arch(codes).id, space.name, ()),
        blueprint=blueprint,
        arrays=random_weights(blueprint, np.random.default_rng(0)),
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=32),
        class_names=(),
        classes=space.classes,
        supernet="none",
        supernet_digest="",
        calibrated="no",
        settings=settings_json(space, codes),
    )
    save_subnet(path, subnet, {})
    return path


def test_an_id_and_its_settings_name_one_network():
    by_id, by_json = read_network(ARCH), read_network(json.dumps(settings_json(SPACE, CODES)), space=SPACE.name)
    assert by_id.name == by_json.name == ARCH
    assert by_id.blueprint == by_json.blueprint == SPACE.blueprint(CODES)
    assert (by_id.resolution, by_id.codes.tolist()) == (32, CODES.tolist())


@pytest.mark.parametrize("classes", [10, 3, 101])
def test_a_subnet_file_belongs_to_its_space_with_any_number_of_classes(tmp_path, classes):
    space = get_space(SPACE.name, classes=classes)
    found = read_network(str(saved(tmp_path / "subnet.pt", space, CODES)))
    assert found.name == ARCH
    assert found.space.classes == classes
    assert found.space.blueprint(found.codes) == found.blueprint == space.blueprint(CODES)


def test_a_subnet_of_a_width_or_a_part_belongs_to_it(tmp_path):
    for name in ("ofa-mbv3-cifar-w0.25", "ofa-mbv3-cifar-d34-e6-k357"):
        space = get_space(name)
        found = read_network(str(saved(tmp_path / "subnet.pt", space, space.smallest())))
        assert (found.space.name, found.codes.tolist()) == (name, space.smallest().tolist())
        assert read_network(found.name).blueprint == found.blueprint


def test_a_subnet_file_whose_layers_are_not_those_of_its_id_belongs_to_no_space(tmp_path):
    other = SPACE.arch(SPACE.largest()).id
    found = read_network(str(saved(tmp_path / "subnet.pt", SPACE, CODES, arch_id=other)))
    assert (found.space, found.codes) == (None, None)
    assert found.blueprint == SPACE.blueprint(CODES)


def test_a_net_config_is_named_by_its_file_or_its_folder(tmp_path):
    path = write_configs(tmp_path / "some net", SPACE.blueprint(CODES))
    for text in (str(path), str(path.parent)):
        found = read_network(text)
        assert (found.name, found.space, found.codes) == ("some net", None, None)
        assert found.blueprint == tuple(replace(spec, slot="") for spec in SPACE.blueprint(CODES))


def test_the_cost_of_a_published_network_is_printed(shared_data, capsys):
    folder = shared_data / "ofa" / "specialized" / "flops-595M_top1-80.0_finetune-75"
    for text in (folder, folder / "net.config"):
        assert run(["space", "cost", str(text), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (round(found["macs"] / 1e6), round(found["params"] / 1e6, 1)) == (595, 9.1)


def test_a_net_config_costs_what_its_network_costs(tmp_path):
    path = write_configs(tmp_path, SPACE.blueprint(CODES))
    cost = costs(SPACE.blueprint(CODES))
    assert subnet_job.cost(str(path)) == {"macs": cost.macs, "params": cost.params, "activation_bytes": cost.activation_bytes}


@pytest.mark.parametrize("text", ["nothing", "{}", "compofa-mbv9@r32-2"])
def test_what_names_no_space_needs_one(text):
    with pytest.raises(UsageError, match="with --space"):
        read_network(text)


def test_missing_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "foreign.bin").write_bytes(b"x" * 100)
    with pytest.raises(NotFoundError, match=r"net\.config"):
        read_network(str(tmp_path))  # a folder without one
    with pytest.raises(NotFoundError, match=r"absent\.pt"):
        read_network(str(tmp_path / "absent.pt"))
    with pytest.raises(FormatError, match=r"foreign\.bin"):
        read_network(str(tmp_path / "foreign.bin"))
