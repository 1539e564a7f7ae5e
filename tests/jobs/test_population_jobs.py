"""The population jobs: every accuracy is that of a calibrated network, nothing is scored twice, processes share the work."""

import csv
import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DATA, PREPROCESSING, design_of, supernet_of

from ofasearch.data import ImageSet
from ofasearch.errors import InfeasibleError, MismatchError, NotFoundError, UnmeasuredError, UsageError
from ofasearch.evaluate.populations import PROTOCOLS
from ofasearch.evaluate.score import calibration_batches, predictions, recalibrate_bn, top1
from ofasearch.evaluate.store import Score, Store
from ofasearch.evaluate.subject import Subject, first_images, images_digest
from ofasearch.jobs import populations as job
from ofasearch.jobs.latency import LatencyProgress
from ofasearch.jobs.members import MembersResult
from ofasearch.jobs.populations import PopulationProgress, PopulationRequest, PopulationResult, evaluate_supernet
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import LatencyTable, TableKey
from ofasearch.report.populations import figure
from ofasearch.space.costs import macs_of
from ofasearch.space.families import mobile_space
from ofasearch.supernet.supernet import Supernet


@pytest.fixture(scope="module")
def supernets(tiny_space):
    """A supernet of 400 networks, the coupled one of 4 inside it, one of other depths, and a large one."""
    coupled = mobile_space(design_of("coupled", coupled=True, elastic_kernel=False, parent="tiny"))
    other = mobile_space(design_of("other", depths=(3, 4)))
    large = mobile_space(design_of("large", depths=(2, 3, 4), expands=(2, 3, 4)))
    spaces = {"tiny": tiny_space, "coupled": coupled, "other": other, "large": large}
    found = {name: supernet_of(name, space) for name, space in spaces.items()}
    return found | {"again": supernet_of("tiny", tiny_space, seed=2)}


@pytest.fixture(autouse=True)
def world(supernets, tmp_path, monkeypatch):
    """The supernets by name, one data set, a cache and a folder of the test's own."""

    def load(name):
        if name not in supernets:
            raise NotFoundError(f"supernet must be one of these, but got '{name}'")
        return supernets[name]

    monkeypatch.setattr(job.zoo, "load_supernet", load)
    monkeypatch.setattr(job, "load_data", lambda _: DATA)
    monkeypatch.setattr("ofasearch.jobs.members.load_data", lambda _: DATA)
    monkeypatch.setattr(job, "figure", lambda *_: b"")  # drawn where it is looked at
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scored(monkeypatch):
    """Networks get an accuracy by their MACs and split at once; keeps what was scored."""
    calls = []

    def score(self, codes, split):
        calls.append((self.name, self.space.arch(codes).id, split))
        macs = float(macs_of(self.space)(codes[None])[0])
        jitter = int(macs) % 97 / 1000 if split == "validation" else 0.0
        return Score(macs / 1e6 + jitter, 10)

    monkeypatch.setattr(Subject, "score", score)
    return calls


def run(protocol, supernet="tiny", **options):
    *progress, result = evaluate_supernet(PopulationRequest(supernet=supernet, data="noise", protocol=protocol, **options))
    assert isinstance(result, PopulationResult)
    assert all(isinstance(event, PopulationProgress) for event in progress)
    return result


def rows_of(result):
    with Path(result.record["files"]["subnets"]).open(newline="") as file:
        return list(csv.DictReader(file))


def facts_of(result):
    """The record without what differs between runs that found the same."""
    return {key: value for key, value in result.record.items() if key not in ("date", "evaluated_now", "files", "options")}


# -- every protocol --------------------------------------------------------------------------------------------

OPTIONS = {
    "pareto": {"nets": 3, "buckets": 4},
    "random": {"nets": 3, "tolerance_macs": 5000.0},
    "cdf": {"nets": 3, "buckets": 2},
    "average": {"nets": 3, "target": "rtx2080", "buckets": 3},
    "boxes": {"nets": 3, "split": "validation"},
    "heatmap": {},
    "common": {"nets": 4, "other": "coupled"},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_writes_its_record_table_and_plot(protocol, scored, monkeypatch):
    monkeypatch.setattr(job, "figure", figure)
    result = run(protocol, **OPTIONS[protocol])
    record = result.record
    assert json.loads(Path(record["files"]["result"]).read_text()) == json.loads(json.dumps(record))
    assert Path(record["files"]["plot"]).read_bytes().startswith(b"\x89PNG")
    assert result.folder == Path.cwd() / "runs" / f"evaluate-tiny-{protocol}"
    rows = rows_of(result)
    assert len(rows) == record["networks"] == len({row["arch_id"] for row in rows})
    split = "validation" if protocol in ("pareto", "boxes") else "test"
    assert all(float(row[f"top1_{split}"]) > 0 and int(row["macs"]) > 0 and int(row["params"]) > 0 for row in rows)
    assert ("latency_ms" in rows[0]) == (protocol == "average")
    assert (record["supernet"], record["space"], record["data"], record["resolution"], record["seed"]) == ("tiny", "tiny", "noise", 8, 0)
    assert record["supernet_digest"]
    assert (record["calibration_images"], record["calibration_batch"]) == (24, 200)
    assert record["splits"] == ({"validation": 32, "test": 40} if protocol == "pareto" else {split: len(DATA[split])})
    if "buckets" in record:
        assert sum(b["networks"] for b in record["buckets"]) == sum(len(row["bucket"].split("; ")) for row in rows)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_scored_twice(protocol, scored):
    first = run(protocol, **OPTIONS[protocol])
    assert len(scored) == len(set(scored)) == first.record["evaluated_now"]
    scored.clear()
    second = run(protocol, **OPTIONS[protocol])
    assert scored == []
    assert second.record["evaluated_now"] == 0
    assert facts_of(first) == facts_of(second)


def test_a_score_is_that_of_the_network_alone(supernets, one_thread):
    result = run("heatmap")
    model, space = Supernet.from_arrays(supernets["tiny"].weights.space, supernets["tiny"].weights.arrays), supernets["tiny"].weights.space
    for cell in result.record["cells"]:
        network = model.extract(np.array(space.parse(cell["arch_id"]).codes))
        recalibrate_bn(network, calibration_batches(DATA, PREPROCESSING, resolution=8))
        predicted = predictions(network, DATA["test"], PREPROCESSING, resolution=8)
        assert cell["top1_test"] == top1(predicted, DATA["test"].labels)
    assert len({cell["top1_test"] for cell in result.record["cells"]}) > 1
    with Store() as store:
        subject = Subject("tiny", supernets["tiny"].weights, space, DATA)
        kept = store.get(subject.key(np.array(space.parse(cell["arch_id"]).codes), "test"))
    assert np.array_equal(kept.predicted, predicted)


def test_an_interrupted_run_loses_the_network_under_way_at_most(scored, monkeypatch):
    complete, score = run("cdf", nets=4, seed=1), Subject.score
    scored.clear()

    def interrupted(self, codes, split):
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, codes, split)

    monkeypatch.setattr(Subject, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("cdf", nets=4)
    monkeypatch.setattr(Subject, "score", score)
    before = list(scored)
    run("cdf", nets=4)
    assert len(before) == 3
    assert len(scored) == len(set(scored))
    assert complete.record["networks"] == 24


def test_progress_tells_what_is_left_and_the_best_so_far(scored):
    *progress, result = evaluate_supernet(PopulationRequest(supernet="tiny", data="noise", protocol="cdf", nets=2))
    assert [p.done for p in progress] == list(range(len(result.networks) + 1))
    assert {p.total for p in progress} == {len(result.networks)}
    assert (progress[0].best_top1, progress[0].eta_seconds) == (None, None)
    assert progress[-1].best_top1 == max(n.top1["top1_test"] for n in result.networks)
    assert progress[-1].eta_seconds == 0
    assert progress[1].eta_seconds > 0


def test_a_cache_that_cannot_be_written_is_told(scored, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "file"))
    result = run("common", other="again", nets=2)
    assert any("evaluations are not remembered" in note for note in result.record["notes"])
    assert len(scored) == 4


# -- what they say ---------------------------------------------------------------------------------------------


def test_pareto_chooses_on_validation_and_reports_test(scored):
    result = run("pareto", nets=5, buckets=3)
    networks = {n.arch_id: n for n in result.networks}
    bests = [b["best"] for b in result.record["buckets"]]
    costliest = []
    for bucket, best in zip(result.record["buckets"], bests, strict=True):
        inside = [n for n in networks.values() if bucket["label"] in n.buckets]
        assert best["top1_validation"] == max(n.top1["top1_validation"] for n in inside)
        costliest.append(best["macs"] == max(n.macs for n in inside))  # the best on test
    assert not all(costliest)
    ends = {result.record[name]["arch_id"] for name in ("smallest", "largest")}
    assert {n.arch_id for n in networks.values() if "top1_test" in n.top1} == {b["arch_id"] for b in bests} | ends
    assert sum(1 for _, _, split in scored if split == "test") == len({b["arch_id"] for b in bests} | ends)
    # accuracy is proportional to MACs on test: the mean height is that of the middle
    assert result.record["mean_pareto_accuracy"] == pytest.approx((bests[0]["macs"] + bests[-1]["macs"]) / 2e6)


def test_the_smallest_and_largest_network_compete_in_their_buckets(scored, supernets):
    space = supernets["tiny"].weights.space
    record = run("pareto", nets=1, buckets=2).record
    assert record["smallest"]["arch_id"] == space.arch(space.smallest()).id
    assert record["largest"]["arch_id"] == space.arch(space.largest()).id
    assert [b["networks"] for b in record["buckets"]] == [2, 2]
    assert record["networks"] == 4


def test_one_bucket_has_no_mean_pareto_accuracy(scored):
    assert "mean_pareto_accuracy" not in run("pareto", nets=2, buckets=1).record


def test_random_networks_lie_near_the_asked_costs(scored):
    result = run("random", nets=4, at_macs=(80_000.0, 120_000.0), tolerance_macs=4000.0)
    low, high = result.record["buckets"]
    assert all(76_000 <= n.macs <= 84_000 or 116_000 <= n.macs <= 124_000 for n in result.networks)
    assert (low["label"], high["label"]) == ("0.08 M", "0.12 M")
    assert result.record["drop"] == pytest.approx(high["median"] - low["median"])
    macs = sorted(n.macs / 1e6 for n in result.networks if n.macs > 100_000)
    assert high["median"] == pytest.approx(np.median(macs))
    assert (high["lower_quartile"], high["upper_quartile"]) == pytest.approx(tuple(np.quantile(macs, [0.25, 0.75])))


def test_short_buckets_are_named(scored):
    record = run("boxes", supernet="coupled", buckets=3, nets=3).record
    short = {b["label"]: b["networks"] for b in record["buckets"] if b["networks"] < 3}
    assert sum(b["networks"] for b in record["buckets"]) == 4
    for label, count in short.items():
        assert f"bucket {label} holds {f'only {count}' if count else 'none'} of the 3 networks that were asked for" in record["notes"]
    assert "variance" not in next(b for b in record["buckets"] if b["networks"] == 1)


def test_the_distribution_has_every_error_of_its_bucket(scored):
    result = run("cdf", nets=5, buckets=2)
    for bucket in result.record["buckets"]:
        inside = [n.top1["top1_test"] for n in result.networks if bucket["label"] in n.buckets]
        assert bucket["errors"] == pytest.approx(sorted(1 - t for t in inside))
        assert bucket["fractions"][-1] == 1


def test_latencies_cut_buckets_where_a_target_is_given(scored, supernets):
    space = supernets["tiny"].weights.space
    table = estimated_table(space, DEVICES["rtx2080"])
    result = run("average", target="rtx2080", bucket_width_ms=0.01, nets=2)
    assert result.record["axis"]["name"] == "latency"
    assert (result.record["latency_source"], result.record["target"]) == ("estimated", "rtx2080")
    assert any("rtx2080 are estimated from its published peaks, not measured, for batch 1" in note for note in result.record["notes"])
    bounds = {b["label"]: (b["low"], b["high"]) for b in result.record["buckets"]}
    assert all(high - low == pytest.approx(0.01) for low, high in bounds.values())
    for network in result.networks:
        assert network.latency_ms == pytest.approx(table.latency_ms(space.blueprint(network.codes)))
        (label,) = network.buckets
        assert bounds[label][0] <= network.latency_ms <= bounds[label][1]


def test_this_machine_is_measured_where_it_is_the_target(scored, monkeypatch):
    def measured(space, runtime):
        assert runtime.key.runtime.startswith("onnxruntime")
        yield LatencyProgress(done=1, total=2, what="a layer", eta_seconds=3.0)
        table = estimated_table(space, DEVICES["v100"])
        yield replace(table, name="cpu", rows={key: replace(row, source="measured") for key, row in table.rows.items()})

    monkeypatch.setattr(job, "build_table", measured)
    first, *_, result = evaluate_supernet(PopulationRequest(supernet="tiny", data="noise", protocol="boxes", nets=2, target="cpu"))
    assert first == PopulationProgress(phase="measuring this machine: a layer", done=1, total=2, eta_seconds=3.0)
    assert (result.record["target"], result.record["latency_source"]) == ("cpu", "measured")


def test_foreign_classes_are_told(scored, monkeypatch, supernets):
    trained = supernets["tiny"]
    named = replace(trained, weights=replace(trained.weights, class_names=("x", "y", "z")))
    monkeypatch.setattr(job.zoo, "load_supernet", lambda _: named)
    assert "noise names other classes than tiny was trained on" in run("heatmap").record["notes"]


def test_a_coupled_heatmap_says_what_it_lacks(scored):
    record = run("heatmap", supernet="coupled").record
    assert [(c["depth"], c["expand"]) for c in record["cells"]] == [(1, 2), (2, 3)]
    assert record["notes"] == ["coupled ties widths to depths: it has no networks of depth/expand ratio 1/3, 2/2"]


@pytest.mark.parametrize(("one", "other"), [("coupled", "tiny"), ("tiny", "coupled")])
def test_common_networks_are_scored_with_both_weights(one, other, supernets, one_thread):
    result = run("common", supernet=one, other=other, nets=20)
    assert result.record["networks"] == 4  # all of the smaller space
    rows = rows_of(result)
    column = {one: "top1_test", other: "top1_test_with"}
    for name in (one, other):
        space = supernets[name].weights.space
        alone = Subject(name, supernets[name].weights, space, DATA)
        ids = [row["arch_id"] for row in rows]
        codes = np.array([supernets[one].weights.space.parse(i).codes for i in ids])
        codes = codes if name == one else supernets[one].weights.space.lift(codes, space)
        assert [float(row[column[name]]) for row in rows] == [alone.score(row, "test").top1 for row in codes]
    difference = np.mean([float(row["top1_test"]) - float(row["top1_test_with"]) for row in rows])
    assert result.record["mean_difference"] == pytest.approx(difference)


def test_a_supernet_equals_itself_and_is_scored_once(scored):
    record = run("common", other="tiny", nets=3).record
    assert len(scored) == 3
    assert (record["mean_difference"], record["mean_difference_low"], record["mean_difference_high"]) == (0, 0, 0)


def test_supernets_of_one_name_are_told_apart(scored):
    record = run("common", other="again", nets=3).record
    assert (record["supernet"], record["with"]) == ("tiny", "again")
    assert record["supernet_digest"] != record["with_digest"]


def test_a_quick_look_scores_the_first_images(supernets):
    cut = first_images(DATA, 5)
    assert [len(cut[split]) for split in ("train", "calibration", "validation", "test")] == [8, 24, 5, 5]
    assert np.array_equal(cut["test"].images, DATA["test"].images[:5])
    record = run("heatmap", images=5).record
    assert record["splits"] == {"test": 5}
    assert all(cell["top1_test"] * 5 == pytest.approx(round(cell["top1_test"] * 5)) for cell in record["cells"])
    assert run("heatmap").record["evaluated_now"] == 4  # scores of five images are not those of all


def test_other_images_labels_or_preprocessing_have_another_digest():
    images = DATA["test"]
    other = ImageSet(images.images.copy(), images.labels.copy())
    digest = images_digest(images, PREPROCESSING)
    assert images_digest(other, PREPROCESSING) == digest
    other.images[0, 0, 0, 0] ^= 1
    assert images_digest(other, PREPROCESSING) != digest
    assert images_digest(ImageSet(images.images, (images.labels + 1) % 3), PREPROCESSING) != digest
    assert images_digest(images, replace(PREPROCESSING, mean=(0.5, 0.4, 0.31))) != digest


def test_photographs_are_judged_at_the_asked_resolution(tmp_path, monkeypatch):
    from makers import image_folder

    from ofasearch.data import load_data

    space = mobile_space(design_of("elastic", resolutions=(8, 16)))
    monkeypatch.setattr(job.zoo, "load_supernet", lambda _: supernet_of("elastic", space))
    monkeypatch.setattr(job, "load_data", load_data)
    for part, count in (("train", 70), ("val", 4)):
        image_folder(tmp_path / "photos" / part, count)
    for resolution, expected in ((None, 16), (8, 8)):
        request = PopulationRequest(supernet="elastic", data=str(tmp_path / "photos"), protocol="heatmap", resolution=resolution)
        *_, result = evaluate_supernet(request)
        assert result.record["resolution"] == expected
        assert all(f"@r{expected}-" in cell["arch_id"] for cell in result.record["cells"])
        assert result.record["evaluated_now"] == 4
        assert result.record["splits"] == {"test": 12}


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "options", "kind", "text"),
    [
        ("nonsense", {}, UsageError, "--protocol must be one of members, pareto, random, cdf, .*, but got 'nonsense'"),
        ("cdf", {"nets": 0}, UsageError, "--nets must be at least 1, but got 0"),
        ("cdf", {"images": 0}, UsageError, "--images must be at least 1, but got 0"),
        ("cdf", {"seed": -1}, UsageError, "--seed must be at least 0, but got -1"),
        ("cdf", {"split": "train"}, UsageError, "--split must be validation or test, but got 'train'"),
        ("cdf", {"buckets": 0}, UsageError, "--buckets must be 1 to 100, but got 0"),
        ("pareto", {"split": "test"}, UsageError, r"--split must go with a protocol that it means something to \(random, .*but got pareto"),
        ("members", {"images": 5}, UsageError, r"--images must go with .*\(all but members\), but got members"),
        ("heatmap", {"nets": 5}, UsageError, "--nets must go with a protocol that it means something to"),
        ("cdf", {"at_macs": (1e6,)}, UsageError, r"--at must go with a protocol that it means something to \(random\)"),
        ("cdf", {"other": "tiny"}, UsageError, r"--with must go with a protocol that it means something to \(common\)"),
        ("cdf", {"bucket_width_ms": 5.0}, UsageError, "--bucket-width must go with --target"),
        ("cdf", {"bucket_width_ms": 5.0, "target": "v100", "buckets": 3}, UsageError, "--bucket-width must go with --target"),
        ("cdf", {"bucket_width_ms": 1e-5, "target": "v100"}, UsageError, "--bucket-width must be at least"),
        ("random", {"tolerance_macs": 0.0}, UsageError, "--tolerance must be positive"),
        ("random", {}, UsageError, "--tolerance must be below .* M, half the range of the space, but got 0.5 M"),
        ("random", {"at_macs": (4e8,)}, InfeasibleError, "networks near 400 M must be among those of"),
        ("random", {"at_macs": (80_001.0,), "tolerance_macs": 0.5}, InfeasibleError, "some bucket must hold a network of tiny, but none"),
        ("common", {}, UsageError, "protocol common must have a second supernet"),
        ("common", {"other": "nowhere"}, NotFoundError, "supernet must be one of these"),
        ("common", {"other": "other"}, MismatchError, "two supernets must have networks in common .*, but tiny and other have none"),
        ("cdf", {"target": "nowhere"}, NotFoundError, "target must be cpu, one of"),
        ("cdf", {"resolution": 16}, UsageError, "--resolution must be one of 8, but got 16"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_scored(protocol, options, kind, text, scored):
    with pytest.raises(kind, match=text):
        run(protocol, **options)
    assert scored == []
    assert not Path("runs").exists()


def test_a_table_that_lacks_layers_is_refused(scored, monkeypatch):
    table = LatencyTable("poor", TableKey(device="d", runtime="r"), {})
    monkeypatch.setattr(job.zoo, "get_table", lambda *_: replace(table, rows={(0, ("x",)): None}))
    with pytest.raises(UnmeasuredError, match="latency table poor must hold every layer, but lacks 18 of tiny, such as conv 8x8x3->8"):
        run("pareto", target="poor")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (replace(DATA, class_names=()), "data noise must have labels to measure accuracy, but has none"),
        (replace(DATA, class_names=("a", "b")), "data noise must have the 3 classes of tiny, but has 2; give what it was trained on"),
        (
            replace(DATA, splits={**DATA.splits, "calibration": ImageSet(np.zeros((9, 9, 9, 3), np.uint8), np.zeros(9, np.int64))}),
            "images of noise must have 8 pixels for tiny, but have 9; give what it was trained on",
        ),
    ],
)
def test_data_of_another_kind_is_refused(scored, monkeypatch, data, text):
    monkeypatch.setattr(job, "load_data", lambda _: data)
    with pytest.raises(MismatchError, match=text):
        run("pareto")


# -- small and large spaces ------------------------------------------------------------------------------------


def test_small_spaces_are_measured_whole_by_default(tmp_path):
    request = PopulationRequest(supernet="coupled", data="noise", out=tmp_path / "members.safetensors")
    *_, result = evaluate_supernet(request)
    assert isinstance(result, MembersResult)
    assert len(result.members.codes) == 4


def test_large_spaces_are_judged_by_their_best_networks_by_default(scored):
    *_, result = evaluate_supernet(PopulationRequest(supernet="large", data="noise", nets=2))
    assert result.record["protocol"] == "pareto"


# -- several processes -----------------------------------------------------------------------------------------


def share(rank, port, folder):
    """One of two processes; what it tells."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["OFASEARCH_CACHE"] = str(folder / "theirs")
    torch.set_num_threads(1)
    space = mobile_space(design_of("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.zoo, "load_supernet", lambda _: supernet_of("tiny", space))
        patch.setattr(job, "load_data", lambda _: DATA)
        patch.setattr(job, "figure", lambda *_: b"")
        request = PopulationRequest(supernet="tiny", data="noise", protocol="pareto", nets=2, buckets=2, out=folder / "two")
        events = list(evaluate_supernet(request))
    return [facts_of(event) if isinstance(event, PopulationResult) else event.done for event in events]


def test_two_processes_find_what_one_finds(tmp_path, one_thread):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        shares = pool.starmap_async(share, [(rank, port, tmp_path) for rank in (0, 1)], chunksize=1)
        alone = run("pareto", nets=2, buckets=2)
        first, second = shares.get(timeout=100)
    assert second == []  # the first process speaks for all
    assert first[-1] == facts_of(alone)
    reported = sum("top1_test" in network.top1 for network in alone.networks)
    assert first[:-1] == [0, 2, 4, 6, 0, *(min(done, reported) for done in range(2, reported + 2, 2))]  # two networks at a time
    assert (tmp_path / "two" / "subnets.csv").read_text() == Path(alone.record["files"]["subnets"]).read_text()


def test_members_are_measured_in_one_process(monkeypatch):
    from ofasearch.ranks import Ranks

    monkeypatch.setattr(Ranks, "gather", lambda _, value: [value])
    events = job._evaluate(PopulationRequest(supernet="coupled", data="noise"), Ranks(0, 2, 0))
    with pytest.raises(UsageError, match="protocol members must run in one process, but 2 were started; choose another --protocol"):
        next(events)
