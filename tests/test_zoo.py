"""Names: what is shipped loads without torch and fits together, what is not shipped is answered with what there is."""

import subprocess
import sys

import numpy as np
import pytest

from ofasearch import zoo
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.jobs.setup import table_notes
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import LatencyTable, Row, TableKey, load_table, save_table
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
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
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


def table(ms=1.0, *, name="desk", source="measured", space=SPACE, n=50, **key):
    """A table of one latency for every layer of a space."""
    rows = {shape: Row(ms, ms, n, source) for shape in estimated_table(space, DEVICES["v100"]).rows}
    return LatencyTable(name, TableKey(**{"device": "desk", "runtime": "ort"} | key), rows)


def ms_of(found):
    """The latency of every layer of a table made here."""
    (value,) = {row.ms for row in found.rows.values()}
    return value


def keep(rooms, stem, made, *, shipped=False):
    folder = rooms / "latency_tables" if shipped else zoo.user_tables()
    save_table(folder / f"{stem}.csv", made)


def test_the_users_own_tables_have_names(rooms):
    keep(rooms, "mine", table(2.0, name="my phone"))
    assert {"mine", "my phone"} & set(zoo.table_names()) == {"my phone"}
    for name in ("mine", "my phone"):
        assert ms_of(zoo.get_table(name, SPACE)) == ms_of(zoo.open_table(name)) == 2.0


def test_tables_of_one_device_at_several_batches_live_side_by_side(rooms):
    for batch in (1, 64):
        keep(rooms, f"card-b{batch}", table(float(batch), name="card", batch=batch))
    for batch in (1, 64):
        assert ms_of(zoo.get_table("card", SPACE, batch=batch)) == batch
        assert zoo.open_table(f"card-b{batch}").key.batch == batch
    with pytest.raises(MismatchError, match=r"target card must be known at batch 8, fp32, but its tables are of batch 1, .*; batch 64, "):
        zoo.get_table("card", SPACE, batch=8)
    with pytest.raises(MismatchError, match="must mean one file, but card means several; say which: card-b1, card-b64"):
        zoo.open_table("card")


def test_a_file_named_for_another_batch_does_not_answer_either(rooms):
    keep(rooms, "card-b64", table(name="card", batch=64))
    with pytest.raises(MismatchError, match="target card-b64 must be known at batch 1"):
        zoo.get_table("card-b64", SPACE)


def test_threads_and_precision_are_asked_for_as_well(rooms):
    keep(rooms, "two", table(2.0, name="cpu-desk", threads=2))
    keep(rooms, "half", table(0.5, name="cpu-desk", precision="fp16"))
    assert ms_of(zoo.get_table("cpu-desk", SPACE, threads=2)) == 2.0
    assert ms_of(zoo.get_table("cpu-desk", SPACE)) == 2.0  # threads are not asked
    assert ms_of(zoo.get_table("cpu-desk", SPACE, precision="fp16")) == 0.5
    with pytest.raises(MismatchError, match=r"must be known at batch 1, fp32 and threads 1, but .* threads 2"):
        zoo.get_table("cpu-desk", SPACE, threads=1)


def test_published_tables_do_not_tell_threads_and_are_taken_for_any(rooms):
    keep(rooms, "phone", table(3.0, source="imported"))
    assert ms_of(zoo.get_table("phone", SPACE, threads=4)) == 3.0


def test_an_estimate_steps_in_at_another_batch_and_tells_of_the_measured_table(rooms):
    keep(rooms, "rtx2080-b64", table(name="rtx2080", batch=64))
    assert zoo.get_table("rtx2080", SPACE, batch=64).source == "measured"
    estimate = zoo.get_table("rtx2080", SPACE, batch=8)
    assert (estimate.source, estimate.key.batch) == ("estimated", 8)
    assert estimate.card["measured_at"] == ["batch 64, fp32, threads 1"]
    (first, second) = table_notes(estimate)
    assert "estimated from its published peaks, not measured" in first
    assert second == "there are tables of rtx2080, but for another question: batch 64, fp32, threads 1"


def test_of_tables_that_suit_the_better_known_goes_first_and_then_the_users_own(rooms):
    keep(rooms, "a", table(1.0, source="imported"))
    keep(rooms, "b", table(2.0, source="measured"), shipped=True)
    assert ms_of(zoo.get_table("desk", SPACE)) == 2.0
    keep(rooms, "c", table(3.0, source="measured"))
    assert ms_of(zoo.get_table("desk", SPACE)) == 3.0


def test_a_table_that_holds_the_space_goes_before_a_better_known_one_that_does_not(rooms):
    other = get_space("compofa-mbv3-w1.2")
    keep(rooms, "a", table(1.0, source="measured", space=other.with_resolutions([160])))
    keep(rooms, "b", table(2.0, source="imported"))
    assert ms_of(zoo.get_table("desk", SPACE)) == 2.0
    assert ms_of(zoo.get_table("desk", other)) == 1.0


def test_a_table_named_after_this_machine_goes_by_its_file(rooms):
    keep(rooms, "office", table(name="cpu"))
    assert "office" in zoo.table_names()
    assert "cpu" not in zoo.table_names()
    assert zoo.get_table("office", SPACE).name == "cpu"


def test_a_damaged_table_is_named_but_never_stands_in_the_way_of_others(rooms):
    keep(rooms, "good", table())
    keep(rooms, "rtx2080", table())
    (zoo.user_tables() / "rtx2080.json").write_text("{")
    assert zoo.get_table("good", SPACE).name == "desk"
    with pytest.raises(FormatError, match=r"rtx2080\.json must be JSON"):  # not the estimate of that name in silence
        zoo.get_table("rtx2080", SPACE)
    (damaged,) = [file for file in zoo.table_files() if file.card is None]
    assert damaged.name == "rtx2080"


def test_an_estimate_alone_cannot_be_opened_without_a_space(rooms):
    with pytest.raises(MismatchError, match="the estimate of v100 must be made for a space"):
        zoo.open_table("v100")


@pytest.mark.parametrize(
    ("key", "stem"),
    [({}, "desk"), ({"batch": 64}, "desk-b64"), ({"batch": 2, "threads": 4}, "desk-b2-t4"), ({"precision": "fp/16"}, "desk-fp16")],
)
def test_own_tables_of_another_key_lie_in_files_of_their_own(rooms, key, stem):
    path = zoo.user_table_path("desk", table(**key).key)
    assert path == rooms / "cache" / "tables" / f"{stem}.csv"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-x", "a b", "a\n", "a\0", "\x1b[2J", "ü", "x" * 65, "cpu", "cuda"]
)
def test_names_that_lead_elsewhere_are_refused(rooms, name):
    with pytest.raises(UsageError, match="a table's name must be up to 64 letters"):
        zoo.user_table_path(name, table().key)


def test_a_table_by_path_of_another_batch_is_refused(rooms, tmp_path, shared_data):
    save_table(tmp_path / "mine.csv", table(batch=4))
    assert zoo.get_table(str(tmp_path / "mine.csv"), SPACE, batch=4).key.batch == 4
    with pytest.raises(MismatchError, match="table desk must be of batch 1, fp32, but is of batch 4, fp32, threads 1"):
        zoo.get_table(str(tmp_path / "mine.csv"), SPACE)
    with pytest.raises(MismatchError, match="table note10 must be of batch 4"):
        zoo.get_table(str(shared_data / "ofa" / "note10"), SPACE, batch=4)


def test_the_shipped_tables_are_whole_and_bear_the_names_of_their_files():
    folder = zoo._shipped("latency_tables")
    assert zoo.shipped_tables()
    for name in zoo.shipped_tables():
        assert load_table(folder / f"{name}.csv").name == name


def test_a_table_is_found_by_file_and_by_folder(shared_data, tmp_path):
    save_table(tmp_path / "mine.csv", estimated_table(SPACE, DEVICES["v100"]))
    assert zoo.get_table(str(tmp_path / "mine.csv"), SPACE).name == "v100"
    folder = shared_data / "ofa" / "note10"
    assert zoo.get_table(str(folder), SPACE).source == zoo.open_table(str(folder)).source == "imported"
    one = zoo.get_table(str(folder / "160_lookup_table.yaml"), SPACE)
    assert (one.resolutions, one.key.device) == ((160,), "note10")
