"""Jobs on one network: the same network from every spelling, the same score from every file, and no score without calibration."""

import io
import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import ofasearch
from ofasearch import zoo
from ofasearch.data import DataSet, ImageSet
from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.errors import ArchError, CalibrationError, FormatError, MismatchError, NotFoundError, UsageError, VerificationError
from ofasearch.jobs import subnet as job
from ofasearch.jobs.bench import bench
from ofasearch.jobs.deliver import load_subnet, onnx_bytes, prove, save_subnet, uncalibrated_subnet
from ofasearch.jobs.export import export
from ofasearch.jobs.inspect import inspect
from ofasearch.jobs.network import parse_codes
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar")
ARCH = "compofa-mbv3-cifar@r32-2-3-2-4-2"
CODES = np.array(SPACE.parse(ARCH).codes, dtype=np.int64)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The shipped weights without their members: the name of a supernet whose subnets need data."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / zoo.WEIGHTS_FILE).symlink_to(zoo._shipped("supernets") / zoo.DEFAULT_SUPERNET / zoo.WEIGHTS_FILE)
    return str(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory, quick):
    """The folder of one run of find; read only."""
    folder = tmp_path_factory.mktemp("find")
    ofasearch.find(macs=6e6, out=folder)
    return folder


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory, shipped):
    """A subnet.pt that says it was never calibrated."""
    path = tmp_path_factory.mktemp("uncalibrated") / "subnet.pt"
    save_subnet(path, uncalibrated_subnet(shipped.weights, CODES, "bare"), {})
    return path


def settings_text(**changes):
    return json.dumps({**job.settings_json(SPACE, CODES), **changes}, indent=2)  # longer than any file name may be


# -- spelling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [ARCH, settings_text(), settings_text(r=[32])], ids=["id", "json", "list"])
def test_every_spelling_names_the_same_network(text):
    assert parse_codes(text, SPACE).tolist() == CODES.tolist()
    assert job.cost(text, SPACE.name) == asdict(costs(SPACE.blueprint(CODES)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compofa-mbv3-cifar@r32-2-3-2-4-9", "s5.depth must be one of"),
        ("compofa-mbv3-cifar@r32-2-3-2-4", "must have 5 stages"),
        ("compofa-mbv3-cifar@r32-2-3-2-4-22", "must not have digits left over"),
        ("compofa-mbv3-cifar@r64-2-3-2-4-2", "resolution must be one of"),
        ("{", "must hold integers ks, e, d and r"),
        ("{}", "must hold integers ks, e, d and r"),
        (settings_text(r=None), "must hold integers ks, e, d and r"),
        (settings_text(d=[2, 3, 2, 4]), "d must hold 5 integers"),
        (settings_text(d=[2, 3, 2, 4, 7]), "s5.depth must be one of"),
        (settings_text(ks=[7] * 20), "ks of block 0 must be 3"),
    ],
)
def test_a_wrong_network_is_refused(text, message):
    with pytest.raises(ArchError, match=message):
        job.cost(text, SPACE.name)


def test_a_network_without_its_space_is_refused():
    with pytest.raises(UsageError, match="with --space"):
        job.cost(settings_text())


def test_costs_of_a_file_are_those_of_its_network(found):
    arch = load_subnet(found / "subnet.pt")[0].arch.id
    assert job.cost(str(found / "subnet.pt")) == job.cost(arch)
    assert set(job.cost(arch)) == {"macs", "params", "activation_bytes"}


def test_sampled_networks_come_with_their_costs():
    rows = job.sample("ofa-mbv3-w1.0", 3, seed=1)
    assert rows == job.sample("ofa-mbv3-w1.0", 3, seed=1) != job.sample("ofa-mbv3-w1.0", 3, seed=2)
    for row in rows:
        price = {key: row[key] for key in ("macs", "params", "activation_bytes")}
        assert job.cost(row["arch_id"]) == job.cost(json.dumps(row["arch"]), "ofa-mbv3-w1.0") == price


@pytest.mark.parametrize(("n", "seed"), [(-1, 0), (3, -1)])
def test_a_sample_of_nonsense_is_wrong_usage(n, seed):
    with pytest.raises(UsageError, match="must be at least"):
        job.sample("ofa-mbv3-w1.0", n, seed)


# -- scores ----------------------------------------------------------------------------------------------------


def test_an_architecture_is_calibrated_before_it_is_scored(bare):
    record = job.evaluate(ARCH, data="digits", split="validation")
    assert (record["n"], record["split"], record["data"], record["arch_id"]) == (144, "validation", "digits", ARCH)
    assert (record["calibration_images"], record["calibrated"]) == (58, "58 images of digits calibration")
    assert 0 <= record["top1"] <= 1
    assert record == job.evaluate(settings_text(), data="digits", split="validation", supernet=bare)


def test_a_file_scores_alike_as_onnx_and_as_subnet(tmp_path, found):
    exported = export(str(found / "subnet.pt"), out=tmp_path / "again.onnx")
    scores = [job.evaluate(str(path), data="digits") for path in (found / "subnet.pt", found / "subnet.onnx", exported["onnx"])]
    assert len({score["top1"] for score in scores}) == 1
    assert {score["n"] for score in scores} == {359}
    assert scores[0]["calibration_images"] == 0  # a file is taken as it is


def test_a_calibrated_export_scores_as_its_architecture(tmp_path, bare):
    record = export(ARCH, out=tmp_path / "m.onnx", supernet=bare, data="digits")
    assert record["calibrated"] == "58 images of digits calibration"
    assert record["onnx_checked_on"] == "16 test images of digits"
    assert record["size_bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert record["onnx_max_abs_diff"] <= 2e-3  # the logits of these untrained weights reach 12
    expected = job.evaluate(ARCH, data="digits", supernet=bare)
    assert job.evaluate(str(tmp_path / "m.onnx"), data="digits")["top1"] == expected["top1"]


def test_an_architecture_without_statistics_or_data_is_refused(tmp_path, bare):
    with pytest.raises(CalibrationError, match=r"must be recalibrated .*add --data \(or --no-bn\)"):
        export(ARCH, out=tmp_path / "m.onnx", supernet=bare)
    assert not (tmp_path / "m.onnx").exists()


def test_an_uncalibrated_export_says_so_and_is_never_scored(tmp_path, bare, uncalibrated):
    record = export(ARCH, out=tmp_path / "m.onnx", supernet=bare, no_bn=True)
    assert record["calibrated"] == "no"
    assert inspect(tmp_path / "m.onnx")["calibrated"] == "no"
    for path in (uncalibrated, tmp_path / "m.onnx"):
        with pytest.raises(CalibrationError, match="must be calibrated before it is scored"):
            job.evaluate(str(path), data="digits")


@pytest.mark.parametrize("file", ["subnet.pt", "subnet.onnx"])
@pytest.mark.parametrize(("size", "classes", "word"), [(16, 10, "pixels"), (32, 7, "classes")])
def test_images_of_another_kind_are_refused(monkeypatch, found, file, size, classes, word):
    part = ImageSet(np.zeros((20, size, size, 3), dtype=np.uint8), np.zeros(20, dtype=np.int64))
    other = DataSet("other", tuple("abcdefghij"[:classes]), dict.fromkeys(("calibration", "validation", "test"), part))
    monkeypatch.setattr(job, "load_data", lambda _: other)
    with pytest.raises(MismatchError, match=word):
        job.evaluate(str(found / file), data="other")


def test_an_export_that_differs_is_not_written(monkeypatch, tmp_path, found):
    monkeypatch.setattr(OnnxModel, "__call__", lambda _, x: np.full((len(x), 10), np.nan, np.float32))
    with pytest.raises(VerificationError, match="differ by nan"):
        export(str(found / "subnet.pt"), out=tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


# -- files -----------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_subnet_file_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "subnet.pt", tmp_path / "ran"
    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        save({"format": "ofasearch-subnet-1", "state_dict": Bomb(mark)}, path)
        with pytest.raises(FormatError, match=r"subnet\.pt must be a subnet\.pt of ofasearch, .* but it cannot be read") as caught:
            inspect(path)
        assert "\n" not in str(caught.value)
        assert not mark.exists()


def changed(path, target, change):
    record = torch.load(path, weights_only=True)
    change(record)
    buffer = io.BytesIO()
    torch.save(record, buffer)
    target.write_bytes(buffer.getvalue())
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(format="other"),
        lambda r: r.pop("blueprint"),
        lambda r: r["blueprint"][0].update(c_out=8),
        lambda r: r["blueprint"][0].update(kind="nonsense"),
        lambda r: r["state_dict"].pop("stem.conv.weight"),
        lambda r: r["state_dict"].pop("s1.b1.depth.bn.running_var"),
        lambda r: r["preprocessing"].pop("mean"),
        lambda r: r.update(facts="{"),
    ],
    ids=["format", "blueprint", "shape", "kind", "weight", "statistic", "preprocessing", "facts"],
)
def test_a_damaged_subnet_file_is_refused(tmp_path, found, change):
    with pytest.raises(FormatError, match="must"):
        load_subnet(changed(found / "subnet.pt", tmp_path / "subnet.pt", change))


@pytest.mark.parametrize("name", ["subnet.pt", "subnet.onnx"])
def test_a_cut_file_is_refused(tmp_path, found, name):
    (tmp_path / name).write_bytes((found / name).read_bytes()[:5000])
    for look in (inspect, lambda path: job.evaluate(str(path), data="digits")):
        with pytest.raises(FormatError, match=name):
            look(tmp_path / name)


@pytest.mark.parametrize("name", ["none.pt", "none.onnx", "none.json"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(NotFoundError, match=rf"{name} must be an existing"):
        inspect(tmp_path / name)
    if name != "none.json":
        with pytest.raises(NotFoundError, match=rf"{name} must be an existing"):
            job.evaluate(str(tmp_path / name), data="digits")


def test_a_foreign_onnx_file_without_preprocessing_is_not_scored(tmp_path):
    spec = SPACE.blueprint(CODES)[:1]
    (tmp_path / "m.onnx").write_bytes(build_onnx(spec, random_weights(spec, np.random.default_rng(0))))
    with pytest.raises(FormatError, match="must say in its metadata how images are preprocessed"):
        job.evaluate(str(tmp_path / "m.onnx"), data="digits")


def test_inspect_tells_what_each_file_says_of_itself(found, shipped):
    answer = json.loads((found / "result.json").read_text())
    subnet, onnx = inspect(found / "subnet.pt"), inspect(found / "subnet.onnx")
    for told in (subnet, onnx):
        for key in ("arch_id", "arch", "space", "predicted_top1", "macs", "measured", "preprocessing"):
            assert told[key] == answer[key]
        assert told["supernet_digest"] == shipped.weights.digest
        assert told["calibrated"] == "shipped statistics"
        assert told["classes"] == list(shipped.weights.class_names)
    assert onnx["input"] == {"name": "input", "shape": ["N", 3, 32, 32], "dtype": "float32"}
    supernet = inspect(zoo._shipped("supernets") / zoo.DEFAULT_SUPERNET / zoo.WEIGHTS_FILE)
    assert (supernet["kind"], supernet["space"], supernet["digest"]) == ("supernet", SPACE.name, shipped.weights.digest)
    assert inspect(found / "result.json") == {"kind": "json", **answer}


@pytest.mark.parametrize(("name", "text"), [("a.json", "[1]"), ("a.json", "nonsense"), ("a.txt", "{}"), ("a.safetensors", "nonsense")])
def test_inspect_refuses_what_is_not_ours(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=name):
        inspect(tmp_path / name)


# -- time ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_onnx(tmp_path):
    spec = SPACE.blueprint(CODES)[-1:]
    weights = random_weights(spec, np.random.default_rng(0))
    for name, batch in (("free", None), ("fixed", 4)):
        (tmp_path / f"{name}.onnx").write_bytes(build_onnx(spec, weights, batch=batch))
    return tmp_path


def test_bench_tells_percentiles_throughput_and_where(small_onnx):
    record = bench(small_onnx / "free.onnx", batch=3, seconds=0.2)
    percentiles = [record[f"latency_ms_{p}"] for p in ("p50", "p90", "p95", "p99")]
    assert percentiles[0] > 0
    assert percentiles == sorted(percentiles)
    assert record["throughput"] == pytest.approx(3000 / record["latency_ms_mean"])
    assert (record["threads"], record["batch"]) == (1, 3)
    assert record["runtime"].startswith("onnxruntime ")
    assert record["device"]
    assert record["samples"] >= 30


@pytest.mark.parametrize("options", [{"batch": 0}, {"threads": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"batch": 2}])
def test_bench_refuses_what_it_cannot_run(small_onnx, options):
    with pytest.raises(UsageError, match="must be"):
        bench(small_onnx / "fixed.onnx", **options)


def test_bench_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="must be an existing ONNX file"):
        bench(tmp_path / "none.onnx")


def test_an_exported_file_takes_raw_metadata_and_any_batch(found):
    model = OnnxModel(found / "subnet.onnx")
    assert model(np.zeros((3, 3, 32, 32), dtype=np.float32)).shape == (3, 10)


def test_an_uncalibrated_network_of_large_logits_is_still_proved(shipped):
    """Foreign statistics let activations grow by orders of magnitude, and rounding with them."""
    grown = {
        k: a * 1e6 if k.startswith("head.classifier") else a
        for k, a in uncalibrated_subnet(shipped.weights, shipped.weights.space.largest(), "x").arrays.items()
    }
    subnet = replace(uncalibrated_subnet(shipped.weights, shipped.weights.space.largest(), "x"), arrays=grown)
    assert prove(subnet, onnx_bytes(subnet), None)[0] > 1e-4
    name = "head.classifier.linear.weight"
    other = replace(subnet, arrays=grown | {name: grown[name] * 1.001})
    with pytest.raises(VerificationError, match="must give the network's logits within"):
        prove(subnet, onnx_bytes(other), None)
