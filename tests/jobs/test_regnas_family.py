"""Families and trade-offs of REG-NAS on the shipped supernet: every network is the best by counting, every rate is numpy's."""

import json
from pathlib import Path

import numpy as np
import pytest
from brute import flips

import ofasearch
from ofasearch.errors import InfeasibleError, MismatchError
from ofasearch.jobs.deliver import load_subnet

SMALL, MIDDLE = (f"compofa-mbv3-cifar@r32-{d}" for d in ("2-2-2-2-2", "2-4-3-3-3"))
BUDGETS = (5e6, 7e6, 9e6, 12e6)
RATIOS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
PNG = b"\x89PNG\r\n"


pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(scope="module")
def family(tmp_path_factory, loaded_once, quick):
    folder = tmp_path_factory.mktemp("family") / "run"
    return ofasearch.regnas(family=BUDGETS, lambda2=2.0, out=folder), folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, loaded_once, quick):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    return ofasearch.regnas(ref=SMALL, sweep=RATIOS, out=folder), folder


@pytest.fixture
def undrawn(monkeypatch):
    """Plots take most of the time; they are drawn where they are looked at."""
    for name in ("family_plot", "sweep_plot"):
        monkeypatch.setattr(f"ofasearch.report.regnas.{name}", lambda *_: b"")


def rows_of(record, everything):
    return [everything.row(network["arch_id"]) for network in record["family"]]


# -- families --------------------------------------------------------------------------------------------------


def check_chain(record, everything, budgets, weights, *, base=(), contained=True):
    """Each network is the best by counting against all smaller ones, and contains them."""
    smaller = list(base)
    for network, budget in zip(record["family"], budgets, strict=True):
        olds = [everything.predicted["validation"][row] for row in smaller]
        within = smaller[-1] if smaller and contained else None
        highest, ids = everything.best(olds, macs=budget, weights=weights if smaller else (1, 0), within=within, without=smaller)
        row = everything.row(network["arch_id"])
        assert network["arch_id"] in ids
        rates = [everything.nfr(old)[row] for old in olds]
        own = weights if smaller else (1, 0)
        assert own[0] * everything.top1()[row] - own[1] * (np.mean(rates) if rates else 0) == pytest.approx(highest)
        if contained:
            assert all(everything.containing(one)[row] for one in smaller)
        smaller.append(row)


def test_each_network_is_the_best_against_all_smaller_ones_and_contains_them(family, everything):
    record = family[0]
    check_chain(record, everything, BUDGETS, (1, 2))
    assert [network["reward"] for network in record["family"]] == ["r0", "r2", "r2", "r2"]
    assert [network["budget_macs"] for network in record["family"]] == list(BUDGETS)
    assert [network["macs"] for network in record["family"]] == [everything.macs[row] for row in rows_of(record, everything)]
    assert (record["reward"], record["lambda1"], record["lambda2"], record["cas"]) == ("r2", 1, 2, True)
    assert "reference" not in record


def test_beside_it_stands_the_plain_search_by_accuracy(family, everything):
    plain = family[0]["plain"]
    top1 = everything.top1()
    assert [top1[row] for row in rows_of(plain, everything)] == [top1[everything.macs <= budget].max() for budget in BUDGETS]
    assert {network["reward"] for network in plain["family"]} == {"r0"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_matrices_are_those_of_numpy(family, everything, split):
    for record in (family[0], family[0]["plain"]):
        rows, right = rows_of(record, everything), everything.right(split)
        expected = [[(right[a] & ~right[b]).mean() for b in rows] for a in rows]
        assert np.array(record["nfr_matrix"][split]) == pytest.approx(np.array(expected), abs=1e-15)
        assert [network[split]["top1"] for network in record["family"]] == pytest.approx(everything.top1(split)[rows])
        assert {network[split]["n"] for network in record["family"]} == {len(everything.labels[split])}


def test_every_network_of_a_family_has_a_folder(family):
    record, folder = family
    names = {path.name for path in folder.iterdir()}
    assert names == {"A1", "A2", "A3", "A4", "family-validation.png", "family-test.png", "run.json", "result.json", "log.jsonl"}
    for number, network in enumerate(record["family"], start=1):
        own = folder / f"A{number}"
        assert network["files"] == {
            "net_config": str(own / "net.config"),
            "onnx": str(own / "subnet.onnx"),
            "card": str(own / "subnet.md"),
            "subnet": str(own / "subnet.pt"),
            **({"flips": str(own / "flips.json"), "flips_csv": str(own / "flips.csv")} if number > 1 else {}),
        }
        if number > 1:  # against the next smaller one
            flips = json.loads((own / "flips.json").read_text())
            assert flips["nfr"] == record["nfr_matrix"]["test"][number - 2][number - 1]
            assert flips["old"] == f"A{number - 1}"
        written = {"subnet.pt", "subnet.onnx", "subnet.md", "net.config", "run.config", "result.json"}
        assert {path.name for path in own.iterdir()} == written | ({"flips.json", "flips.csv"} if number > 1 else set())
        subnet, told = load_subnet(own / "subnet.pt")
        assert (subnet.arch.id, told["reward"]) == (network["arch_id"], network["reward"])
        answer = json.loads((own / "result.json").read_text())
        assert (answer["arch_id"], answer["measured"]["top1"]) == (network["arch_id"], network["test"]["top1"])


def test_the_plots_and_the_answer_lie_in_the_folder(family):
    record, folder = family
    assert record["files"] == {f"plot_{split}": str(folder / f"family-{split}.png") for split in ("validation", "test")}
    assert all(Path(file).read_bytes().startswith(PNG) for file in record["files"].values())
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_family_may_grow_from_a_reference(everything, tmp_path, undrawn):
    budgets = (6e6, 8e6)
    record = ofasearch.regnas(ref=SMALL, family=budgets, lambda2=0.5, out=tmp_path / "run")
    check_chain(record, everything, budgets, (1, 0.5), base=[everything.row(SMALL)])
    assert {network["reward"] for network in record["family"]} == {"r2"}
    assert all(network["contains_reference"] for network in record["family"])
    row = everything.row(SMALL)
    assert (record["reference"]["arch_id"], record["reference"]["macs"]) == (SMALL, everything.macs[row])
    assert [record["reference"][split]["top1"] for split in ("validation", "test")] == [
        everything.top1(s)[row] for s in ("validation", "test")
    ]


def test_a_family_need_not_contain_its_smaller_networks(everything, tmp_path, undrawn):
    budgets = (5e6, 7e6)
    record = ofasearch.regnas(family=budgets, cas=False, reward="r1", out=tmp_path / "run")
    check_chain(record, everything, budgets, (0, 1), contained=False)
    assert record["cas"] is False
    assert "lambda1" not in record


def test_a_family_keeps_a_cap_against_each_smaller_network(everything, tmp_path, undrawn):
    record = ofasearch.regnas(family=(5e6, 7e6, 9e6), nfr_cap=0.02, reward="r0", out=tmp_path / "run")
    assert record["nfr_cap"] == 0.02
    rows = rows_of(record, everything)
    for i, row in enumerate(rows):
        olds = [everything.predicted["validation"][one] for one in rows[:i]]
        highest, ids = everything.best(
            olds, macs=5e6 + 2e6 * i, weights=(1, 0), cap=0.02, within=rows[i - 1] if i else None, without=rows[:i]
        )
        assert everything.ids[row] in ids
        assert everything.top1()[row] == pytest.approx(highest)
        assert all(everything.nfr(old)[row] <= 0.02 for old in olds)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"family": (3e6, 5e6)}, r"MACs budget must be at least 4\.155 M \(the least of"),
        ({"family": (4.2e6, 5e6), "ref": MIDDLE}, r"MACs budget must be at least 8\.474 M, what the reference takes"),
        ({"family": (4.2e6, 4.3e6)}, "which it is compared with, is no answer; raise them, or add --no-cas"),
        ({"family": (5e6, 7e6), "nfr_cap": 0.0001}, "--nfr-cap must be at least"),
    ],
)
def test_a_family_that_cannot_be_leaves_no_folder(tmp_path, options, text):
    with pytest.raises(InfeasibleError, match=text):
        ofasearch.regnas(**options, out=tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []


# -- trade-offs ------------------------------------------------------------------------------------------------


def test_every_ratio_has_the_best_network_by_counting(sweep, everything):
    row = everything.row(SMALL)
    old = everything.predicted["validation"][row]
    assert [network["ratio"] for network in sweep[0]["sweep"]] == list(RATIOS)
    for network in sweep[0]["sweep"]:
        assert (network["lambda1"], network["lambda2"]) == (1, network["ratio"])
        weights = (1, network["ratio"])
        highest, ids = everything.best([old], macs=2 * everything.macs[row], weights=weights, within=row, without=[row])
        assert network["arch_id"] in ids
        assert network["validation"]["top1"] - network["ratio"] * network["validation"]["nfr"] == pytest.approx(highest)
        assert network["contains_reference"]


def test_a_larger_ratio_never_breaks_more_nor_is_more_accurate(sweep):
    found = [network["validation"] for network in sweep[0]["sweep"]]
    for key in ("nfr", "top1"):
        values = [scores[key] for scores in found]
        assert values == sorted(values, reverse=True)
    assert found[0]["nfr"] > found[-1]["nfr"]  # else this would prove nothing


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_figures_of_a_sweep_are_those_of_numpy(sweep, everything, split):
    predicted, labels = everything.predicted[split], everything.labels[split]
    for network in sweep[0]["sweep"]:
        expected = flips(predicted[everything.row(SMALL)], predicted[everything.row(network["arch_id"])], labels)
        assert {name: network[split][name] for name in expected} == pytest.approx(expected)
    assert sweep[0]["reference"][split]["top1"] == everything.top1(split)[everything.row(SMALL)]


def test_a_sweep_is_drawn(sweep):
    record, folder = sweep
    assert {path.name for path in folder.iterdir()} == {"sweep-validation.png", "sweep-test.png", "run.json", "result.json", "log.jsonl"}
    assert all(Path(file).read_bytes().startswith(PNG) for file in record["files"].values())
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_sweep_keeps_a_cap(everything, tmp_path, undrawn):
    record = ofasearch.regnas(ref=SMALL, macs=12e6, sweep=(0.0, 1.0), nfr_cap=0.015, cas=False, out=tmp_path / "run")
    assert record["nfr_cap"] == 0.015
    old = everything.predicted["validation"][everything.row(SMALL)]
    for network in record["sweep"]:
        weights = (1, network["ratio"])
        _, ids = everything.best([old], macs=12e6, weights=weights, cap=0.015, without=[everything.row(SMALL)])
        assert network["arch_id"] in ids


# -- repeated --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"family": (5e6, 7e6)}, {"ref": SMALL, "sweep": (0.1, 1.0)}])
def test_it_is_resumed_if_the_question_is_the_same(tmp_path, undrawn, options):
    def facts(record):
        return json.loads(json.dumps(record), object_hook=lambda o: {k: v for k, v in o.items() if k != "search_seconds"})

    found = ofasearch.regnas(**options, out=tmp_path / "run")
    assert facts(ofasearch.regnas(**options, resume=True, out=tmp_path / "run")) == facts(found)
    with pytest.raises(MismatchError, match="but asked changed"):
        ofasearch.regnas(**options, cas=False, resume=True, out=tmp_path / "run")
