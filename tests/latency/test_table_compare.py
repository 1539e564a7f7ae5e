"""Several latency tables: made one where they are of the same thing, and told apart row by row."""

from dataclasses import asdict, replace

import pytest

from ofasearch.errors import MismatchError, UsageError
from ofasearch.latency.compare import diff, merge
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, TableKey
from ofasearch.space.core import LayerSpec

KEY = TableKey(device="desk", runtime="onnxruntime", precision="fp32", batch=1, threads=1)
LAYERS = [LayerSpec(slot="", kind="conv", c_in=8 * n, c_mid=0, c_out=8, hw_in=8) for n in range(1, 8)]


def table(rows, name="desk", key=KEY, correction=None, **card):
    """A table of rows by layer number, or by (resolution, number)."""
    placed = {(place if isinstance(place, tuple) else (ANY, place)): row for place, row in rows.items()}
    found = {(at, LAYERS[number].shape): row for (at, number), row in placed.items()}
    return LatencyTable(name, key, found, correction or Correction(), card)


def row(ms, n=10, source="measured"):
    return Row(ms, ms, n, source)


def numbers(merged):
    return {(at, next(i for i, layer in enumerate(LAYERS) if layer.shape == shape)): r for (at, shape), r in merged.rows.items()}


def test_rows_of_all_tables_are_put_together():
    merged = merge([table({0: row(1.0), 1: row(2.0)}), table({2: row(3.0)})], "both")
    assert numbers(merged) == {(ANY, 0): row(1.0), (ANY, 1): row(2.0), (ANY, 2): row(3.0)}
    assert (merged.name, merged.key, merged.source) == ("both", KEY, "measured")


@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        (row(1.0, 10), row(2.0, 99), 1),
        (row(1.0, 99), row(2.0, 10), 0),
        (row(1.0, 10), row(2.0, 10), 0),
        (row(1.0, 999, "imported"), row(2.0, 10, "measured"), 1),
        (row(1.0, 0, "interpolated"), row(2.0, 5, "imported"), 1),
        (row(1.0, 0, "estimated"), row(2.0, 0, "interpolated"), 1),
        (row(1.0, 3, "measured"), row(2.0, 999, "estimated"), 0),
    ],
)
def test_the_better_known_row_wins_and_then_the_one_of_more_runs(first, second, wins):
    merged = merge([table({0: first}), table({0: second})], "both")
    assert numbers(merged) == {(ANY, 0): (first, second)[wins]}


def test_a_tied_row_gives_way_to_a_better_known_one_for_all():
    free, tied = table({0: row(1.0)}), table({(160, 0): row(2.0, 500, "imported"), (160, 1): row(3.0, 9, "imported")})
    assert numbers(merge([free, tied], "both")) == {(ANY, 0): row(1.0), (160, 1): row(3.0, 9, "imported")}
    as_good = table({(160, 0): row(2.0)})
    assert numbers(merge([free, as_good], "both")) == {(ANY, 0): row(1.0), (160, 0): row(2.0)}


@pytest.mark.parametrize(
    ("field", "value"), [("device", "phone"), ("runtime", "tflite"), ("precision", "int8"), ("batch", 64), ("threads", 4)]
)
def test_tables_of_another_key_are_refused_by_the_field_that_differs(field, value):
    other = table({0: row(1.0)}, name="other", key=replace(KEY, **{field: value}))
    message = rf"tables must be of the same {field} to be merged, but desk is of {getattr(KEY, field)} and other of {value}"
    with pytest.raises(MismatchError, match=message):
        merge([table({0: row(1.0)}), table({1: row(1.0)}), other], "all")


def test_one_table_is_nothing_to_merge():
    with pytest.raises(UsageError, match="at least two latency tables must be given to merge, but got 1"):
        merge([table({0: row(1.0)})], "one")


def test_a_correction_and_validation_that_all_share_are_kept():
    shared = {"correction": Correction(1.2, 0.1, 9), "validation": {"n": 20, "bias_ms": 0.0, "mape": 0.1, "kendall_tau": 0.9}}
    parts = [table({0: row(1.0)}, **shared), table({1: row(2.0)}, **shared)]
    merged = merge(parts, "both")
    assert (merged.correction, merged.card["validation"]) == (shared["correction"], shared["validation"])
    assert "note" not in merged.card
    another = replace(parts[1], card={"validation": {**shared["validation"], "mape": 0.2}})
    assert "validation" not in merge([parts[0], another], "both").card


def test_corrections_that_differ_are_dropped_with_a_note_and_kept_on_the_card():
    validation = {"n": 20, "bias_ms": 0.0, "mape": 0.1, "kendall_tau": 0.9}
    parts = [table({0: row(1.0)}, correction=Correction(slope, 0.0, 9), validation=validation) for slope in (1.1, 1.2)]
    merged = merge(parts, "both")
    assert merged.correction == Correction()
    assert "validation" not in merged.card
    assert "corrections differed and were dropped" in merged.card["note"]
    assert [part["correction"] for part in merged.card["merged"]] == [asdict(part.correction) for part in parts]
    assert [part["card"] for part in merged.card["merged"]] == [part.card for part in parts]


def test_a_table_differs_from_its_double_by_two_in_every_layer():
    first = table({n: row(n + 1.0) for n in range(5)})
    second = table({n: row(2 * n + 2.0) for n in range(1, 7)})
    found = diff(first, second)
    assert (found.common, found.zeros) == (4, 0)
    assert (found.median_ratio, found.p10_ratio, found.p90_ratio) == (2, 2, 2)
    assert found.kendall_tau == pytest.approx(1)
    assert found.only_first == ((ANY, LAYERS[0].shape),)
    assert found.only_second == ((ANY, LAYERS[5].shape), (ANY, LAYERS[6].shape))


def test_the_layers_that_differ_most_come_first_in_either_direction():
    first = table({n: row(1.0) for n in range(5)})
    second = table({0: row(1.0), 1: row(1.5), 2: row(0.2), 3: row(4.0), 4: row(1.1)})
    found = diff(first, second, most=3)
    assert [(pair.shape[1] // 8 - 1, pair.ratio) for pair in found.most] == [(2, 0.2), (3, 4.0), (1, 1.5)]
    assert len(diff(first, second).most) == 4  # the one that agrees does not differ
    assert found.kendall_tau is None  # equal times have no order
    assert (found.p10_ratio, found.median_ratio, found.p90_ratio) == pytest.approx((0.52, 1.1, 3.0))


def test_reversed_order_is_a_tau_of_minus_one():
    first, second = table({n: row(n + 1.0) for n in range(5)}), table({n: row(9.0 - n) for n in range(5)})
    assert diff(first, second).kendall_tau == pytest.approx(-1)


def test_a_row_for_all_is_the_partner_of_each_tied_one():
    free, tied = table({0: row(1.0), 1: row(1.0)}), table({(160, 0): row(2.0), (224, 0): row(4.0), (224, 2): row(1.0)})
    for first, second, ratios in ((free, tied, {(160, 2.0), (224, 4.0)}), (tied, free, {(160, 0.5), (224, 0.25)})):
        found = diff(first, second)
        assert {(pair.resolution, pair.ratio) for pair in found.most} == ratios
    assert found.only_first == ((224, LAYERS[2].shape),)
    assert found.only_second == ((ANY, LAYERS[1].shape),)


def test_rows_of_no_time_have_no_ratio_and_are_counted():
    found = diff(table({0: row(0.0), 1: row(1.0)}), table({0: row(1.0), 1: row(3.0)}))
    assert (found.common, found.zeros, found.median_ratio) == (2, 1, 3.0)
    nothing = diff(table({0: row(5e-324)}), table({0: row(1e9)}))
    assert (nothing.common, nothing.zeros, nothing.median_ratio, nothing.kendall_tau, nothing.most) == (1, 1, None, None, ())


def test_tables_without_a_common_layer_have_no_ratio():
    found = diff(table({0: row(1.0)}), table({1: row(1.0)}))
    assert (found.common, found.median_ratio, found.most) == (0, None, ())
