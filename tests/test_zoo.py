"""Names: what is shipped loads without torch and fits together, what is not shipped is answered with what there is."""

import subprocess
import sys

import numpy as np
import pytest

from ofasearch import zoo
from ofasearch.errors import FormatError, NotFoundError
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import LatencyTable, Row, TableKey, save_table
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar")


@pytest.fixture(scope="module")
def shipped():
    return zoo.load_supernet(zoo.DEFAULT_SUPERNET)


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """Shipped rooms of our own, empty."""
    for room in ("supernets", "predictors", "latency_tables"):
        (tmp_path / room).mkdir()
    monkeypatch.setattr(zoo, "_shipped", lambda room: tmp_path / room)
    return tmp_path


def test_the_default_supernet_is_shipped_with_all_its_members(shipped):
    assert zoo.DEFAULT_SUPERNET in zoo.supernet_names()
    space, members = shipped.weights.space, shipped.members
    assert space.name == "compofa-mbv3-cifar"
    assert members.supernet_digest == shipped.weights.digest
    assert np.array_equal(members.codes, space.enumerate())
    for split in ("validation", "test"):
        labels = members.labels[split]
        assert members.predictions[split].shape == (len(members.codes), len(labels))
        assert set(labels) == set(range(space.classes))
    assert len(shipped.weights.class_names) == space.classes


def test_shipped_statistics_fit_every_member(shipped):
    arrays, members = shipped.weights.arrays, shipped.members
    for member in np.linspace(0, len(members.codes) - 1, 12).astype(int):
        for key, values in members.norm_statistics(member).items():
            assert values.ndim == 1
            assert 0 < len(values) <= len(arrays[key])
            assert "var" not in key or (values > 0).all()


def test_a_shipped_supernet_loads_where_torch_is_absent():
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it raises
        "from ofasearch import zoo\n"
        "found = zoo.load_supernet(zoo.DEFAULT_SUPERNET)\n"
        "zoo.get_table('rtx2080', found.weights.space)\n"
        "print(len(found.members.codes), sorted(m for m in ('pandas', 'onnx', 'onnxruntime') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["243", "[]\n"]


def test_a_supernet_is_found_by_name_by_folder_and_by_file(shipped):
    folder = zoo._shipped("supernets") / zoo.DEFAULT_SUPERNET
    for name in (str(folder), str(folder / zoo.WEIGHTS_FILE)):
        found = zoo.load_supernet(name)
        assert found.weights.digest == shipped.weights.digest
        assert len(found.members.codes) == len(shipped.members.codes)


def test_weights_alone_come_without_members(tmp_path):
    (tmp_path / zoo.WEIGHTS_FILE).symlink_to(zoo._shipped("supernets") / zoo.DEFAULT_SUPERNET / zoo.WEIGHTS_FILE)
    assert zoo.load_supernet(str(tmp_path)).members is None


def test_unknown_names_are_answered_with_what_exists(rooms, tmp_path):
    for folder in ("one", "two"):
        (rooms / "supernets" / folder).mkdir()
        (rooms / "supernets" / folder / zoo.WEIGHTS_FILE).touch()
    (rooms / "predictors" / "three.safetensors").touch()
    (rooms / "latency_tables" / "four.csv").touch()
    with pytest.raises(NotFoundError, match=r"supernet must be one of one, two, ofa_mbv3.* or an existing file, but got 'five'"):
        zoo.load_supernet("five")
    with pytest.raises(NotFoundError, match="predictor must be one of three or an existing file, but got 'five'"):
        zoo.get_predictor("five")
    with pytest.raises(NotFoundError, match=r"target must be cpu, one of four, .*rtx2080.*, but got 'five'"):
        zoo.get_table("five", SPACE)


def test_a_supernet_file_of_another_kind_is_refused(tmp_path):
    other = tmp_path / "model.pt"
    other.touch()
    with pytest.raises(FormatError, match="must be a once-for-all checkpoint"):
        zoo.load_supernet(str(other))


@pytest.mark.parametrize("name", DEVICES)
def test_a_known_card_is_estimated_at_the_asked_batch(name, rooms):
    table = zoo.get_table(name, SPACE, batch=8)
    assert name in zoo.table_names()
    assert (table.name, table.source, table.key.batch) == (name, "estimated", 8)
    assert table.rows == estimated_table(SPACE, DEVICES[name], batch=8).rows


def test_a_measured_table_outranks_an_estimate_of_its_name(rooms):
    estimate = zoo.get_table("rtx2080", SPACE)
    rows = {key: Row(2 * row.ms, 3 * row.ms, 50) for key, row in estimate.rows.items()}
    key = TableKey(device="rtx2080", runtime="tensorrt")
    save_table(rooms / "latency_tables" / "rtx2080.csv", LatencyTable("rtx2080", key, rows))
    found = zoo.get_table("rtx2080", SPACE)
    assert (found.source, found.key) == ("measured", key)
    codes = SPACE.largest()[None]
    assert found.cost(SPACE)(codes) == pytest.approx(2 * estimate.cost(SPACE)(codes), rel=1e-4)
    assert zoo.table_names().count("rtx2080") == 1


def test_a_table_is_found_by_file_and_by_folder(shared_data, tmp_path):
    save_table(tmp_path / "mine.csv", estimated_table(SPACE, DEVICES["v100"]))
    assert zoo.get_table(str(tmp_path / "mine.csv"), SPACE).name == "v100"
    assert zoo.get_table(str(shared_data / "ofa" / "note10"), SPACE).source == "imported"
