"""`bn-check`: samples of every size, judged on validation images alone; the numbers are those of the networks."""

import csv
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from tiny import DATA, PREPROCESSING, design_of, images_of, supernet_of

from ofasearch import zoo
from ofasearch.data import ImageSet
from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.flips import negative_flip_rate
from ofasearch.evaluate.score import batches, predictions, recalibrate_bn, top1
from ofasearch.jobs import bn_check as job
from ofasearch.jobs.deliver import save_subnet, to_network, uncalibrated_subnet
from ofasearch.report import bn_check as report
from ofasearch.report.sketch import to_text
from ofasearch.space import families
from ofasearch.space.families import mobile_space

ARCH = "tiny@r8-132-152"
IMAGES = replace(DATA, splits={**DATA.splits, "calibration": images_of(40, 7), "validation": images_of(150, 8)})


@pytest.fixture(autouse=True)
def supernet(monkeypatch, one_thread):
    supernet = supernet_of("tiny", mobile_space(design_of("tiny")), spread=0.5)
    monkeypatch.setitem(families.DESIGNS, "tiny", design_of("tiny"))
    monkeypatch.setattr(zoo, "load_supernet", lambda _: supernet)
    monkeypatch.setattr(job, "load_data", lambda _: IMAGES)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return supernet


def checked(**changes):
    *_, result = job.bn_check(job.BnCheckRequest(**{"subnet": ARCH, "data": "noise", "draws": 3} | changes))
    return result.record


def test_every_draw_is_what_the_network_then_predicts(supernet):
    record = checked(images=100, seed=5)
    codes = np.array(supernet.weights.space.parse(ARCH).codes)
    network = to_network(uncalibrated_subnet(supernet.weights, codes, "tiny"))
    judged = IMAGES["validation"].take(np.arange(100))
    orders = [np.random.default_rng([5, draw]).permutation(40) for draw in range(3)]

    def predicted(order, size):
        recalibrate_bn(network, batches(IMAGES["calibration"].take(order[:size]), PREPROCESSING, resolution=8, size=200))
        return predictions(network, judged, PREPROCESSING, resolution=8)

    assert [row["images"] for row in record["sizes"]] == [16, 32, 40]
    for row in record["sizes"]:
        found = [predicted(order, row["images"]) for order in orders]
        scores = [top1(one, judged.labels) for one in found]
        flips = [negative_flip_rate(predicted(order, 40), one, judged.labels) for order, one in zip(orders, found, strict=True)]
        assert row["draws"] == pytest.approx(scores)
        assert row["top1"] == pytest.approx(np.mean(scores))
        assert row["deviation"] == pytest.approx(np.std(scores, ddof=1))
        assert row["loss"] == pytest.approx(record["sizes"][-1]["top1"] - row["top1"])
        assert row["nfr"] == pytest.approx(np.mean(flips))
    assert (record["n"], record["split"], record["draws"], record["arch_id"]) == (100, "validation", 3, ARCH)


def test_equal_seeds_give_equal_answers_and_others_do_not():
    assert checked() == checked()
    assert checked()["sizes"] != checked(seed=1)["sizes"]


def test_the_test_split_is_not_touched(monkeypatch):
    expected = checked()
    monkeypatch.setattr(job, "load_data", lambda _: replace(IMAGES, splits={**IMAGES.splits, "test": images_of(9, 99)}))
    assert checked() == expected


def test_with_one_draw_nothing_is_said_of_the_spread():
    record = checked(draws=1)
    assert "suffices" not in record
    assert "suffices_on_average" in record
    assert not any({"deviation", "loss_bound"} & row.keys() for row in record["sizes"])
    assert report.sizes_table(record)[0] == ["images", "top-1", "below all", "NFR to all"]


def test_a_file_is_checked_whatever_statistics_it_has(tmp_path, supernet):
    codes = np.array(supernet.weights.space.parse(ARCH).codes)
    subnet = uncalibrated_subnet(supernet.weights, codes, "tiny")
    save_subnet(tmp_path / "no.pt", subnet, {})
    save_subnet(tmp_path / "some.pt", replace(subnet, calibrated="9 images of mine"), {})
    uncalibrated, some, arch = (checked(subnet=text) for text in (str(tmp_path / "no.pt"), str(tmp_path / "some.pt"), ARCH))
    assert uncalibrated == arch
    assert some.pop("own_top1") == top1(
        predictions(to_network(subnet), IMAGES["validation"], PREPROCESSING, resolution=8), IMAGES["validation"].labels
    )
    assert some == arch


def test_answer_table_and_plot_are_written_together(tmp_path):
    record = checked(out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "bn_check.json").read_text()) == record
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "bn_check.csv").read_text())))
    assert [float(row["top1"]) for row in rows] == [value for size in record["sizes"] for value in size["draws"]]
    assert (tmp_path / "out" / "bn_check.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bn_check.json", "bn_check.csv", "bn_check.png"}


def test_the_sketch_marks_what_suffices():
    record = checked(tolerance=0.5)
    assert record["suffices"] == 16
    text = to_text(report.sketch(record), 60)
    assert any("*" in line[5:] for line in text[2:-2])
    assert text[-1].split()[0] == "16"
    assert text[-1].endswith("40")
    headers, rows = report.sizes_table(record)
    assert len(headers) == len(rows[0]) == 6
    assert dict(report.facts(record))["suffices"].startswith("16 images: with 95 % confidence the mean is at most 50 points below all 40")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"images": 0}, UsageError, "--images must be at least 1"),
        ({"draws": 0}, UsageError, "--draws 1 to 100, but got 2000, 0 and 0"),
        ({"draws": 101}, UsageError, "--draws 1 to 100"),
        ({"seed": -1}, UsageError, "--seed at least 0"),
        ({"tolerance": 0.0}, UsageError, "--tolerance must lie between 0 and 100 points, but got 0"),
        ({"tolerance": float("nan")}, UsageError, "--tolerance must lie between"),
    ],
)
def test_questions_that_have_no_answer_are_refused(changes, error, text):
    with pytest.raises(error, match=text):
        checked(**changes)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        (
            {"calibration": images_of(15, 1)},
            MismatchError,
            "at least 16 images in its calibration split to draw samples of, but noise has 15",
        ),
        ({"validation": images_of(0, 1)}, MismatchError, "data must have labelled validation images"),
        (
            {split: ImageSet(np.zeros((20, 16, 16, 3), np.uint8), np.zeros(20, int)) for split in DATA.splits},
            MismatchError,
            "images of noise must have the 8 pixels of",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(monkeypatch, tmp_path, changed, error, text):
    monkeypatch.setattr(job, "load_data", lambda _: replace(IMAGES, splits={**IMAGES.splits, **changed}))
    with pytest.raises(error, match=text):
        checked(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
