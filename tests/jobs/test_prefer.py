"""`--prefer`: what is read, what is refused, and which network of a front is taken."""

import numpy as np
import pytest

from ofasearch.errors import UsageError
from ofasearch.jobs.axes import COSTS, get_axes
from ofasearch.jobs.prefer import choose, nearest, parse_wishes
from ofasearch.jobs.quantities import fraction

FRONT = {
    "top1": np.array([0.90, 0.85, 0.80, 0.70]),
    "latency": np.array([20.0, 12.0, 10.0, 5.0]),
    "macs": np.array([9e6, 8e6, 8.5e6, 3e6]),
}


def taken(text, cost="latency"):
    found = choose(parse_wishes(text), FRONT, COSTS[cost])
    return found and (found.row, found.keeping, found.rule)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1>=76", [("top1", 0.76, False)]),
        ("top1>=0.76", [("top1", 0.76, False)]),
        (" TOP1 > 76 % , latency<15ms", [("top1", 0.76, True), ("latency", 15, True)]),
        ("top1>=1", [("top1", 1, False)]),
        ("top1>=1%", [("top1", 0.01, False)]),
        ("latency<=250us", [("latency", 0.25, False)]),
        ("flops<=300M,params<=5M", [("macs", 3e8, False), ("params", 5e6, False)]),
        ("memory<=2MB,lcb>=70%", [("memory", 2e6, False), ("lcb", 0.7, False)]),
    ],
)
def test_wishes_are_read_with_their_units(text, expected):
    found = [(wish.axis.name, pytest.approx(wish.limit), wish.strict) for wish in parse_wishes(text)]
    assert found == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must be limits with >=, <=, > or <, such as top1>=76,latency<=15ms, but got ''"),
        ("top1", "must be limits"),
        ("top1=76", "must be limits"),
        ("top1==76", "must be limits"),
        ("top1>=76,", "must be limits"),
        ("top1>=", "must be limits"),
        ("76<=top1<=80", "must be limits"),
        ("accuracy>=76", "must name top1, lcb, latency, macs, params, memory, but got 'accuracy'"),
        ("top1<=76", "must limit top1 from below, such as top1>=76, but got 'top1<=76'"),
        ("latency>=15ms", "must limit latency from above, such as latency<=15ms, but got 'latency>=15ms'"),
        ("top1>=76,top1>=80", "must limit each quantity once, but limits top1 more often"),
        ("flops<=3M,macs<=5M", "must limit each quantity once, but limits macs more often"),
        ("latency<=15", "the unit of latency must be one of us, µs, ms, s"),
        ("latency<=0ms", "latency must be positive"),
        ("latency<=-1ms", "latency must be a positive number with a unit"),
        ("top1>=101", "accuracy must be at most 100 %"),
        ("top1>=150%", "accuracy must be at most 100 %"),
        ("top1>=nan", "accuracy must be a positive number"),
        ("top1>=0", "accuracy must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(text, sentence):
    with pytest.raises(UsageError, match=sentence.replace("(", r"\(").replace("?", r"\?")):
        parse_wishes(text)


def test_accuracies_are_fractions_or_percent():
    assert [fraction(text) for text in ("76", "76%", "0.76", "0.76 %", "100", "1")] == pytest.approx([0.76, 0.76, 0.76, 0.0076, 1, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency<=15ms", (1, 3, "the most accurate")),
        ("top1>=75,latency<=15ms", (1, 2, "the most accurate")),
        ("top1>=75", (2, 3, "the least latency")),
        ("latency<=12ms", (1, 3, "the most accurate")),
        ("latency<12ms", (2, 2, "the most accurate")),
        ("top1>0.8", (1, 2, "the least latency")),
        ("macs<=8M", (1, 2, "the most accurate")),
        ("top1>=95", None),
        ("top1>=85,latency<=11ms", None),
    ],
)
def test_the_network_that_is_taken(text, expected):
    assert taken(text) == expected


def test_the_cheapest_is_so_by_the_first_cost():
    assert taken("top1>=75", cost="macs")[0] == 1


def test_of_equals_the_one_that_is_better_otherwise_is_taken():
    front = {"top1": np.array([0.8, 0.8, 0.7]), "latency": np.array([3.0, 2.0, 2.0])}
    assert choose(parse_wishes("latency<=5ms"), front, COSTS["latency"]).row == 1
    assert choose(parse_wishes("top1>=60"), front, COSTS["latency"]).row == 1


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("top1>=95", 0),
        ("latency<=1ms", 3),
        ("top1>=86,latency<=11ms", 1),  # lacks a point and a millisecond; the next lacks six points
        ("top1>0.9", 0),
        ("latency<5ms", 3),
    ],
)
def test_the_nearest_network_lacks_least_of_what_the_front_spans(text, row):
    assert nearest(parse_wishes(text), FRONT) == row


def test_wishes_are_told_as_they_were_meant():
    assert ", ".join(map(str, parse_wishes("top1>=0.76,latency<15ms,macs<=300M"))) == "top1 >= 76.00 %, latency < 15 ms, macs <= 300 M"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["top1"], "must be top1 or lcb, then one or more of latency, macs, params, memory, but got 'top1'"),
        (["macs", "top1"], "must be top1 or lcb, then"),
        (["top1", "lcb"], "must be top1 or lcb, then"),
        (["top1", "macs", "flops"], "must name each objective once, but got 'top1,macs,flops'"),
        (["top1", ""], "must name top1, lcb, latency"),
    ],
)
def test_objectives_are_an_accuracy_and_costs(names, sentence):
    with pytest.raises(UsageError, match=sentence):
        get_axes(names)
    assert [axis.name for axis in get_axes(["LCB", "flops", "memory"])] == ["lcb", "macs", "memory"]
