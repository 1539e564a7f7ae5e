"""`find` for several devices at once: all limits hold, each device has its own table, and this machine is the one that measures."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pretended import Device

import ofasearch
from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import save_table
from ofasearch.space.families import get_space


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, shipped):
    load = zoo.load_supernet
    monkeypatch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))


@pytest.fixture
def device(monkeypatch, tmp_path):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    return Device().pretend(monkeypatch)


def published(shared_data):
    ofa = shared_data / "ofa"
    return {"space": "ofa-mbv3-w1.2", "predictor": str(ofa / "acc_predictor.pth"), "target": str(ofa / "note10"), "generations": 20}


def table_of(space, ms_of, name, path):
    """A table file whose rows take what a test says."""
    table = estimated_table(space, DEVICES["v100"])
    rows = {key: replace(row, ms=ms_of(key[1]), p90_ms=ms_of(key[1])) for key, row in table.rows.items()}
    save_table(path, replace(table, name=name, rows=rows))
    return str(path)


def test_all_limits_hold_and_each_device_has_its_own_table(shared_data, tmp_path):
    question = published(shared_data)
    record = ofasearch.find(**question, latency_ms=25, also={"rtx2080": 3.0}, out=tmp_path / "both")
    first, second = record["devices"]
    assert (first["target"], second["target"]) == ("note10", "rtx2080")
    assert (first["limit_ms"], second["limit_ms"]) == (25, 3.0)
    assert (first["latency_source"], second["latency_source"]) == ("imported", "estimated")
    assert first["latency_ms"] <= 25
    assert second["latency_ms"] <= 3.0
    assert (record["latency_ms"], record["latency_source"], record["target"]) == (first["latency_ms"], "imported", "note10")
    assert record["candidates"][0]["devices"] == {"note10": first["latency_ms"], "rtx2080": second["latency_ms"]}
    assert all(c["devices"]["rtx2080"] <= 3.0 for c in record["candidates"])
    alone = ofasearch.find(**question, latency_ms=25, out=tmp_path / "one")
    assert alone["predicted_top1"] > record["predicted_top1"]  # the second limit costs something, so it was felt
    assert len(alone["devices"]) == 1
    assert "devices" not in alone["candidates"][0]


def test_only_resolutions_that_all_tables_know_are_searched(shared_data, tmp_path):
    table = estimated_table(get_space("ofa-mbv3-w1.2"), DEVICES["v100"])
    few = {(r, shape): row for r in (160, 164) for (_, shape), row in table.rows.items()}
    save_table(tmp_path / "few.csv", replace(table, name="few", rows=few))
    question = published(shared_data)
    record = ofasearch.find(**question, latency_ms=25, also={str(tmp_path / "few.csv"): 50.0}, out=tmp_path / "run")
    assert record["arch"]["r"] == 160  # note10 has no table of 164


def test_people_see_a_column_per_device(capsys, tmp_path):
    argv = ("find", "--target", "rtx2080", "--latency", "20ms", "--target", "v100", "--latency", "30ms", "--out", tmp_path, "--quiet")
    assert run([*map(str, argv)]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "result.json").read_text())
    header, _, winner = out.splitlines()[:3]
    assert "rtx2080 (estimated)" in header
    assert "v100 (estimated)" in header
    assert all(f"{d['latency_ms']:.3f} ms" in winner for d in record["devices"])


def test_candidates_are_measured_on_the_one_device_that_is_here(device, tmp_path):
    record = ofasearch.find(target="rtx2080", latency_ms=20, also={"cpu": 0.13}, out=tmp_path / "run")
    elsewhere, here = record["devices"]
    assert "measured" not in elsewhere
    assert here["target"] == "cpu"
    assert here["measured"]["latency_ms_p50"] == record["measured"]["latency_ms_p50"] <= 0.13
    assert here["device"]["device"] == "pretended"
    assert record["candidates"][0]["accepted"]
    same = ofasearch.find(target="cpu", latency_ms=0.13, also={"rtx2080": 20}, out=tmp_path / "turned")
    assert same["arch_id"] == record["arch_id"]
    assert (same["target"], same["latency_ms"]) == ("cpu", here["latency_ms"])


def test_what_is_impossible_elsewhere_is_told_before_this_machine_is_measured(device, tmp_path):
    with pytest.raises(InfeasibleError, match=r"rtx2080 latency budget must be at least [\d.]+ ms \(the least of .*\), but got 0\.001 ms"):
        ofasearch.find(target="cpu", latency_ms=0.13, also={"rtx2080": 0.001}, out=tmp_path / "run")
    assert device.loaded == []
    assert not (tmp_path / "run").exists()


def test_limits_that_contradict_each_other_name_the_nearest_network(shipped, tmp_path):
    space = shipped.weights.space

    def at(name):
        return lambda shape: dict(zip(("kind", "c_in", "c_mid"), shape, strict=False))[name]

    wide = table_of(
        space, lambda s: 0.1 if at("kind")(s) == "mbconv" and at("c_mid")(s) > 4 * at("c_in")(s) else 1.0, "wide", tmp_path / "w.csv"
    )
    narrow = table_of(
        space, lambda s: 0.1 if at("kind")(s) == "mbconv" and at("c_mid")(s) < 4 * at("c_in")(s) else 1.0, "narrow", tmp_path / "n.csv"
    )
    bounds = {t: zoo.get_table(t, space).cost(space).bounds() for t in (wide, narrow)}
    limits = {t: 1.01 * b.lowest for t, b in bounds.items()}
    assert not np.all([zoo.get_table(t, space).cost(space)(space.enumerate()) <= limit for t, limit in limits.items()], axis=0).any()
    with pytest.raises(
        InfeasibleError, match=r"all budgets together, but none was found for wide .*; the nearest possible network takes wide latency"
    ):
        ofasearch.find(target=wide, latency_ms=limits[wide], also={narrow: limits[narrow]}, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ({"also": {"rtx2080": 3.0}}, "a latency budget needs a device"),
        ({"target": "rtx2080", "also": {"v100": 3.0}}, "every one of several targets must have its own latency budget"),
        ({"target": "rtx2080", "latency_ms": 3, "also": {"rtx2080": 4}}, "each target must be given once, but rtx2080 is given 2 times"),
        ({"target": "cpu", "latency_ms": 3, "also": {"cuda": 4}}, "one target at most can be this machine"),
        ({"target": "rtx2080", "latency_ms": 30, "also": {"v100": float("nan")}}, "v100 latency budget must be positive"),
        ({"target": "rtx2080", "latency_ms": 30, "also": {"v100": "5"}}, "a budget must be a number"),
        ({"target": "rtx2080", "latency_ms": 30, "also": {"v100": 4}, "measure": "direct"}, "--measure direct"),
    ],
)
def test_devices_that_cannot_be_asked_together_are_refused(tmp_path, question, text):
    with pytest.raises(UsageError, match=text):
        ofasearch.find(**question, out=tmp_path / "run")
