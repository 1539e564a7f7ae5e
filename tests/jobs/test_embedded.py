"""The supernet that comes with the package keeps what its card says."""

import re
from pathlib import Path

import numpy as np
import pytest

import ofasearch
from ofasearch import zoo
from ofasearch.jobs.train import landmarks
from ofasearch.space.costs import macs_of

NOISE = 0.008  # of top-1: two standard errors of a difference on 10,000 images, most of which both networks get right


@pytest.fixture(scope="module")
def embedded():
    return zoo.load_supernet(zoo.DEFAULT_SUPERNET)


def test_every_member_is_measured(embedded):
    members = embedded.members
    assert len(members.codes) == embedded.weights.space.size == 243
    assert {split: labels.size for split, labels in members.labels.items()} == {"validation": 5000, "test": 10_000}


def test_the_largest_and_the_smallest_are_as_good_as_promised(embedded):
    top1 = embedded.members.top1("test")
    marks = {name: top1[int(embedded.members.index(codes[None])[0])] for name, codes in landmarks(embedded.weights.space).items()}
    assert marks["largest"] >= 0.85
    assert marks["smallest"] >= 0.81


def test_a_larger_budget_never_costs_accuracy(embedded):
    """What a search finds under growing budgets, by validation, grows on the test split up to noise."""
    members = embedded.members
    macs, validation, test = macs_of(members.space)(members.codes), members.top1("validation"), members.top1("test")
    found = []
    for budget in np.quantile(macs, np.linspace(0, 1, 9)):
        feasible = np.flatnonzero(macs <= budget)
        found.append(test[feasible[validation[feasible].argmax()]])
    assert (np.diff(found) > -NOISE).all()
    assert found[-1] > found[0] + NOISE


def test_live_evaluation_agrees_with_what_is_shipped(shared_data, tmp_path):
    data = str(shared_data / "cifar10")
    shipped = ofasearch.find(macs=8e6, out=tmp_path / "shipped")
    live = ofasearch.find(macs=8e6, data=data, out=tmp_path / "live")
    assert (shipped["arch_id"], shipped["measured"]["source"], live["measured"]["source"]) == (live["arch_id"], "shipped", "live")
    assert abs(shipped["measured"]["top1"] - live["measured"]["top1"]) < 0.003


def test_the_whole_space_keeps_what_its_card_says(shared_data):
    card = (Path(zoo.supernet_folder("cifar10-ofa")) / "README.md").read_text(encoding="utf-8")
    promised = {row[0]: (row[1], float(row[2])) for row in re.findall(r"\| (\w+) \| `([^`]+)` \| [\d.]+ % \| ([\d.]+) % \|", card)}
    space = zoo.load_supernet("cifar10-ofa").weights.space
    assert {name: str(space.arch(codes)) for name, codes in landmarks(space).items()} == {
        name: arch for name, (arch, _) in promised.items()
    }
    arch, percent = promised["smallest"]
    live = ofasearch.evaluate_subnet(arch, supernet="cifar10-ofa", data=str(shared_data / "cifar10"), split="test")
    assert abs(100 * live["top1"] - percent) < 0.3
