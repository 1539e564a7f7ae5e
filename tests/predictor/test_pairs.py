"""Pairs: every format to the digit and back, repeats averaged and told, and one sentence for whatever cannot be true."""

import csv
import json
import os
import re

import numpy as np
import pytest

from ofasearch.errors import ArchError, FormatError, MismatchError, NotFoundError, UsageError, WriteError
from ofasearch.evaluate.populations import Network
from ofasearch.predictor import LabelNoise, Pairs, Source, read_pairs, write_pairs
from ofasearch.predictor import pair_files as room
from ofasearch.report.populations import csv_text
from ofasearch.space.core import Settings
from ofasearch.space.families import get_space

SPACE = get_space("ofa-mbv3-w1.0")
GOOD = {"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": 160, "top1": 70.0}
OTHER = {**GOOD, "ks": [5] * 20, "r": 192}
FORMATS = ("pairs.jsonl", "pairs.csv", "pairs.dict", "pairs")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def accuracy(shared_data):
    return shared_data / "accuracy"


@pytest.fixture(scope="module")
def drawn():
    """40 networks of three resolutions with accuracies of 50 to 79 %."""
    space = SPACE.with_resolutions([128, 160, 224])
    settings = space.settings(space.sample(40, np.random.default_rng(3)))
    return Pairs(settings, 0.5 + np.arange(40) * 0.00748)


def lines(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def dictionary(path, *records, **json_options):
    """What once-for-all's builder of accuracy data dumps."""
    entries = {json.dumps({k: r[k] for k in ("ks", "e", "d")} | {"image_size": r["r"]}): r["top1"] for r in records}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, **json_options))
    return path


def read(path):
    return read_pairs([path], SPACE)


def same_networks(one, other):
    return all(np.array_equal(getattr(one.settings, name), getattr(other.settings, name)) for name in ("ks", "e", "d", "r"))


def sorted_rows(pairs):
    columns = [pairs.settings.r[:, None], pairs.settings.d, pairs.settings.ks, pairs.settings.e]
    rows = np.concatenate([*columns, np.round(1e9 * pairs.top1)[:, None]], axis=1)
    return rows[np.lexsort(rows.T)]


# -- reading ---------------------------------------------------------------------------------------------------


def test_pairs_are_read_from_json_lines(accuracy):
    pairs = read(accuracy / "ofa_mbv3_imagenet_r128-192.jsonl")
    assert len(pairs) == 2610
    assert set(pairs.settings.r) == {128, 160, 192}
    assert pairs.top1[0] == pytest.approx(0.682)
    assert 0.5 < pairs.top1.min() < pairs.top1.max() < 0.8  # percent became fractions
    d, ks = pairs.settings.d, pairs.settings.ks
    assert (d.sum(axis=1) == (ks > 0).sum(axis=1)).all()  # skipped blocks became 0


def test_pairs_are_read_from_dynas_csv(accuracy):
    paths = sorted(accuracy.glob("*.csv"))
    pairs = read_pairs(paths, SPACE)
    assert len(pairs) == 1819
    assert set(pairs.settings.r) == {224}
    assert [source.name for source in pairs.sources] == [path.name for path in paths]
    assert np.bincount(pairs.group).tolist() == [364, 540, 361, 554]
    first = read(accuracy / "ofa_mbv3_w1.0_imagenet_evoga_acc.csv").take(np.arange(1))
    assert first.top1 == pytest.approx([0.75448])
    assert first.settings.d.tolist() == [[2, 3, 2, 4, 3]]
    assert first.settings.ks[0, :4].tolist() == [5, 7, 0, 0]
    assert first.settings.e[0, 4:8].tolist() == [4, 6, 3, 0]


@pytest.mark.parametrize("indent", [None, 4])
def test_pairs_are_read_from_an_accuracy_dictionary(tmp_path, indent):
    pairs = read(dictionary(tmp_path / "acc.dict", GOOD, {**OTHER, "top1": 71.5}, indent=indent))
    assert pairs.top1.tolist() == [0.7, 0.715]
    assert pairs.settings.r.tolist() == [160, 192]
    assert pairs.settings.ks[:, 0].tolist() == [3, 5]


def test_an_accuracy_folder_is_read_size_by_size(tmp_path):
    folder = tmp_path / "acc"
    dictionary(folder / "src" / "192.dict", {**OTHER, "top1": 71.0})
    dictionary(folder / "src" / "160.dict", GOOD)
    (folder / "net_id.dict").write_text(json.dumps(["{}"]))
    dictionary(folder / "acc.dict", GOOD)  # merged before the second size was measured
    pairs = read(folder)
    assert pairs.settings.r.tolist() == [160, 192]
    assert pairs.top1.tolist() == [0.7, 0.71]
    assert pairs.sources == (Source("acc"),)


def test_a_folder_that_holds_only_merged_accuracies_is_read(tmp_path):
    dictionary(tmp_path / "acc" / "acc.dict", GOOD)
    assert read(tmp_path / "acc").top1.tolist() == [0.7]


def test_the_table_of_an_evaluation_is_read_where_it_tells_validation(tmp_path):
    space = SPACE.with_resolutions([176])  # no choice of the space that is asked
    rows = space.sample(3, np.random.default_rng(0))
    tops = ({"top1_validation": 0.71, "top1_test": 0.9}, {"top1_test": 0.9}, {"top1_validation": 0.725})
    networks = [Network(space.arch(row).id, row, 1, 2, None, ["a; b"], top1) for row, top1 in zip(rows, tops, strict=True)]
    (tmp_path / "subnets.csv").write_text(csv_text(networks))
    pairs = read(tmp_path / "subnets.csv")
    assert pairs.top1.tolist() == [0.71, 0.725]
    assert np.array_equal(pairs.settings.ks, space.settings(rows[[0, 2]]).ks)
    assert pairs.settings.r.tolist() == [176, 176]


def test_the_content_tells_the_format_not_the_name(tmp_path, accuracy):
    for content in ("ofa_mbv3_w1.0_imagenet_linasga_acc.csv", "ofa_mbv3_imagenet_r128-192.jsonl"):
        (tmp_path / "pairs.txt").write_bytes(b"\xef\xbb\xbf" + (accuracy / content).read_bytes())  # as some editors save
        assert same_networks(read(tmp_path / "pairs.txt"), read(accuracy / content))


def test_fractions_percent_and_listed_resolutions_are_understood(tmp_path):
    path = lines(tmp_path / "p.jsonl", GOOD, "", {**GOOD, "r": [160]}, {**GOOD, "r": 162}, {**OTHER, "top1": 0})
    pairs = read(path)
    assert pairs.top1.tolist() == [0.7, 0.7, 0.7, 0]  # nothing is nothing in both units
    assert pairs.settings.r.tolist() == [160, 160, 162, 192]  # what was measured need not be a choice of the space
    assert read(lines(path, {**GOOD, "top1": 0.7}, {**OTHER, "top1": 1})).top1.tolist() == [0.7, 1.0]


def test_of_equal_json_keys_the_last_counts(tmp_path):
    text = json.dumps(GOOD)
    assert read(lines(tmp_path / "p.jsonl", text[:-1] + ', "top1": 71.0}')).top1.tolist() == [0.71]


# -- writing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_again(tmp_path, drawn, name):
    write_pairs(tmp_path / name, drawn, SPACE)
    assert np.array_equal(sorted_rows(read(tmp_path / name)), sorted_rows(drawn))


def test_our_lines_keep_order_and_every_bit(tmp_path, drawn):
    write_pairs(tmp_path / "p.jsonl", drawn, SPACE)
    again = read(tmp_path / "p.jsonl")
    assert np.array_equal(again.top1, drawn.top1)
    assert same_networks(again, drawn)
    assert set(json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])) == set(GOOD)


def test_dynas_csv_has_the_columns_costs_and_accuracies_of_the_published_one(tmp_path, accuracy):
    published = accuracy / "ofa_mbv3_w1.0_imagenet_linasnsga2_acc_macs.csv"
    write_pairs(tmp_path / "p.csv", read(published), SPACE)
    theirs, ours = (list(csv.DictReader(path.read_text().splitlines())) for path in (published, tmp_path / "p.csv"))
    assert list(ours[0]) == list(theirs[0])
    for column in ("Model Parameters", "MACs", "Top-1 Acc (%)"):
        assert [float(row[column]) for row in ours] == [float(row[column]) for row in theirs]
    assert {row["Latency (ms)"] for row in ours} == {""}  # nobody measured it


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.dict", "pairs"])
def test_skipped_blocks_hold_a_choice_for_programs_that_look_them_up(tmp_path, drawn, name):
    assert (drawn.settings.ks == 0).any()
    write_pairs(tmp_path / name, drawn, SPACE)
    entries, _ = room.read_entries(tmp_path / name)
    assert {k for entry in entries for k in entry.network["ks"]} == {3, 5, 7}
    assert {e for entry in entries for e in entry.network["e"]} == {3, 4, 6}


def test_the_folder_is_the_one_that_once_for_all_builds(tmp_path, drawn):
    write_pairs(tmp_path / "acc", drawn, SPACE)
    net_ids = json.loads((tmp_path / "acc" / "net_id.dict").read_text())
    assert net_ids == sorted(net_ids)
    assert list(json.loads(net_ids[0])) == ["ks", "e", "d"]
    sizes = {int(path.stem): json.loads(path.read_text()) for path in (tmp_path / "acc" / "src").iterdir()}
    assert set(sizes) == {128, 160, 224}
    for size, found in sizes.items():
        for key, value in found.items():
            network = json.loads(key)
            assert network.pop("image_size") == size
            assert json.dumps(network) in net_ids
            assert 50 <= value < 80
    merged = json.loads((tmp_path / "acc" / "acc.dict").read_text())
    assert merged == {key: value for found in sizes.values() for key, value in found.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_a_card_tells_whose_accuracies_they_are(tmp_path, drawn, name):
    write_pairs(tmp_path / name, drawn, SPACE, {"supernet_digest": "abc", "images": 2000})
    assert read(tmp_path / name).supernet_digest == "abc"
    assert json.loads(room.card_path(tmp_path / name).read_text())["images"] == 2000
    changed = tmp_path / name / "src" / "128.dict" if name == "pairs" else tmp_path / name
    changed.write_bytes(changed.read_bytes().replace(b"3", b"5", 1))
    with pytest.raises(FormatError, match=rf"{name} must hold the pairs that \S+.json was written for, but they were changed since"):
        read(tmp_path / name)
    room.card_path(tmp_path / name).unlink()
    if name == "pairs.jsonl":
        assert read(tmp_path / name).supernet_digest is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "another"}', '{"supernet_digest": "x"}', "[" * 100_000])
def test_a_foreign_file_beside_is_no_card(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    assert read(lines(tmp_path / "p.jsonl", GOOD)).supernet_digest is None


def test_a_digest_that_is_no_text_is_none(tmp_path, drawn):
    write_pairs(tmp_path / "p.jsonl", drawn, SPACE, {"supernet_digest": ["x"]})
    assert read(tmp_path / "p.jsonl").supernet_digest is None


def test_writing_again_replaces_all_of_it(tmp_path, drawn):
    write_pairs(tmp_path / "acc", drawn, SPACE)
    small = drawn.take(np.flatnonzero(drawn.settings.r == 160))
    write_pairs(tmp_path / "acc", small, SPACE)
    assert sorted(path.name for path in (tmp_path / "acc").rglob("*.*")) == ["160.dict", "acc.dict", "card.json", "net_id.dict"]
    assert len(read(tmp_path / "acc")) == len(small)


def test_nothing_of_others_is_overwritten(tmp_path, drawn):
    (tmp_path / "acc").mkdir()
    write_pairs(tmp_path / "acc", drawn, SPACE)  # an empty folder is as good as none
    dictionary(tmp_path / "theirs" / "acc.dict", GOOD)
    with pytest.raises(
        UsageError, match=r"a folder for pairs must be new, empty or written as such before, but .*theirs holds other files"
    ):
        write_pairs(tmp_path / "theirs", drawn, SPACE)
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(UsageError, match=r"pairs have a card beside them, but .*p.json is another file; choose another name"):
        write_pairs(tmp_path / "p.jsonl", drawn, SPACE)
    assert (tmp_path / "p.json").read_text() == "{}"
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize("name", ["pairs.json", "pairs.txt", "pairs.parquet"])
def test_a_name_of_no_format_is_refused(tmp_path, drawn, name):
    with pytest.raises(UsageError, match=r"pairs must be written as .jsonl, .csv \(DyNAS-T\), .dict or a folder \(once-for-all\), but got"):
        write_pairs(tmp_path / name, drawn, SPACE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_place_that_cannot_be_written_is_refused(tmp_path, drawn, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="must be writable, but it is not"):
        write_pairs(tmp_path / "file" / name, drawn, SPACE)


@pytest.mark.parametrize("name", FORMATS)
def test_accuracies_that_percent_cannot_tell_from_fractions_are_kept_in_lines_only(tmp_path, drawn, name):
    pairs = Pairs(drawn.settings, np.where(np.arange(40) == 7, 0.004, drawn.top1))
    if name == "pairs.jsonl":
        write_pairs(tmp_path / name, pairs, SPACE)
        assert read(tmp_path / name).top1[7] == 0.004
        return
    with pytest.raises(FormatError, match=r"must hold accuracies above 1 %, because smaller ones read as fractions, but one is not"):
        write_pairs(tmp_path / name, pairs, SPACE)
    assert list(tmp_path.iterdir()) == []


# -- repeats ---------------------------------------------------------------------------------------------------


def repeated(top1, group, networks):
    """Pairs of uniform networks that differ by their resolution."""
    r = np.array(networks) * 8 + 128
    n = len(r)
    settings = Settings(np.full((n, 20), 3), np.full((n, 20), 3), np.full((n, 5), 2), r)
    return Pairs(settings, np.array(top1), np.array(group), (Source("a"), Source("b")))


def test_repeats_are_averaged_within_their_source():
    pairs = repeated([0.70, 0.50, 0.72, 0.60, 0.74, 0.61], [0, 0, 0, 1, 0, 1], [1, 2, 1, 1, 1, 1])
    merged = pairs.merged()
    assert merged.top1 == pytest.approx([0.72, 0.5, 0.605])
    assert merged.repeats.tolist() == [3, 1, 2]
    assert merged.spread == pytest.approx([0.02, 0, np.std([0.60, 0.61], ddof=1)])
    assert merged.group.tolist() == [0, 0, 1]
    assert merged.settings.r.tolist() == [136, 144, 136]


def test_merging_in_steps_is_merging_at_once():
    values = np.random.default_rng(0).normal(0.7, 0.01, 30)
    pairs = repeated(values, [0] * 30, [n % 4 for n in range(30)])
    half = pairs.take(np.arange(15)).merged(), pairs.take(np.arange(15, 30)).merged()
    parts = {name: np.concatenate([getattr(p, name) for p in half]) for name in ("top1", "repeats", "spread", "group")}
    r = np.concatenate([p.settings.r for p in half])
    stepwise = Pairs(pairs.settings.take(np.arange(len(r))), **parts)
    object.__setattr__(stepwise.settings, "r", r)
    once, twice = pairs.merged(), stepwise.merged()
    for name in ("top1", "repeats", "spread"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name))
    assert np.array_equal(once.merged().top1, once.top1)


def test_label_noise_is_the_pooled_deviation_of_repeats():
    pairs = repeated([0.70, 0.72, 0.60, 0.61, 0.62, 0.9], [0] * 6, [1, 1, 2, 2, 2, 3])
    noise = pairs.label_noise()
    squares = 2 * 0.01**2 + 2 * 0.01**2
    assert noise == LabelNoise(2, 5, pytest.approx(100 * np.sqrt(squares / 3)))
    assert pairs.merged().label_noise() == LabelNoise(2, 5, pytest.approx(noise.std_points))


def test_label_noise_leaves_out_what_sources_differ_by():
    a, jitter = np.array([0.70, 0.65, 0.60, 0.72]), np.array([0.001, -0.001, 0.001, -0.001])
    pairs = repeated([*a, *(a - 0.03 + jitter)], [0] * 4 + [1] * 4, [1, 2, 3, 4] * 2)
    noise = pairs.label_noise()
    assert (noise.networks, noise.measurements) == (4, 8)
    assert noise.std_points == pytest.approx(100 * np.sqrt((jitter**2).sum() / 2 / 3))  # eight less four networks less an offset


def test_copies_say_nothing_of_noise():
    assert repeated([0.7, 0.7, 0.6], [0, 0, 0], [1, 1, 2]).label_noise() == LabelNoise(0, 0, None)
    assert repeated([0.7, 0.6], [0, 1], [1, 1]).label_noise() == LabelNoise(1, 2, None)  # one difference is the offset itself


def test_the_published_searches_measured_a_hundred_networks_again(accuracy):
    pairs = read_pairs(sorted(accuracy.glob("*.csv")), SPACE)
    assert len(pairs.merged()) == 1819 - 51  # within one search, a network met again has the remembered value
    assert (pairs.merged().spread == 0).all()
    noise = pairs.label_noise()
    assert (noise.networks, noise.measurements) == (100, 200)
    assert 0.015 < noise.std_points < 0.03


def test_all_weights_are_named_or_none(drawn):
    def of(*digests):
        return Pairs(drawn.settings, drawn.top1, sources=tuple(Source(f"{n}.jsonl", digest) for n, digest in enumerate(digests)))

    assert of("a", "a").supernet_digest == "a"
    assert of("a", None).supernet_digest is None
    assert of(None).supernet_digest is None
    with pytest.raises(
        MismatchError, match=r"all pairs must be measured on one supernet's weights, but those of 0.jsonl and 1.jsonl differ"
    ):
        _ = of("a", "b").supernet_digest


def test_pairs_that_are_taken_keep_what_is_known_of_them():
    pairs = repeated([0.70, 0.72, 0.60], [0, 0, 1], [1, 1, 2]).merged().take(np.array([1, 0]))
    assert (pairs.group.tolist(), pairs.repeats.tolist(), pairs.sources[1].name) == ([1, 0], [1, 2], "b")
    assert pairs.spread[1] > 0


# -- what cannot be true ---------------------------------------------------------------------------------------

VALUES = {
    "no accuracy": ({"top1": None}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has none"),
    "negative": ({"top1": -1}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has -1"),
    "over 100": ({"top1": 101}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has 101"),
    "nan": ({"top1": float("nan")}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has nan"),
    "infinite": ({"top1": float("inf")}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has inf"),
    "huge accuracy": ({"top1": 10**400}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has 1000"),
    "text": ({"top1": "70"}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has '70'"),
    "truth": ({"top1": True}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has True"),
    "a list": ({"top1": [70]}, "top1 must be a number of 0 to 100 percent, but line 2 of PATH has a list"),
    "19 blocks": ({"ks": [3] * 19}, "ks must hold 20 integers, but that on line 2 of PATH holds 19"),
    "21 blocks": ({"e": [3] * 21}, "e must hold 20 integers, but that on line 2 of PATH holds 21"),
    "4 stages": ({"d": [2] * 4}, "d must hold 5 integers, but that on line 2 of PATH holds 4"),
    "no kernels": ({"ks": None}, "ks must be a list of 20 small whole numbers, but that on line 2 of PATH is not"),
    "text kernels": ({"ks": ["3"] * 20}, "ks must be a list of 20 small whole numbers, but that on line 2 of PATH is not"),
    "huge kernels": ({"ks": [10**30] * 20}, "ks must be a list of 20 small whole numbers, but that on line 2 of PATH is not"),
    "broken kernels": ({"ks": [3.7] * 20}, "ks must be a list of 20 small whole numbers, but that on line 2 of PATH is not"),
    "nested kernels": ({"ks": [[3]] * 20}, "ks must be a list of 20 small whole numbers, but that on line 2 of PATH is not"),
    "one depth": ({"d": 2}, "d must be a list of 5 small whole numbers, but that on line 2 of PATH is not"),
    "no resolution": ({"r": []}, "r must be a resolution of 8 to 1024 pixels, but line 2 of PATH has a list"),
    "two resolutions": ({"r": [160, 192]}, "r must be a resolution of 8 to 1024 pixels, but line 2 of PATH has a list"),
    "small resolution": ({"r": 7}, "r must be a resolution of 8 to 1024 pixels, but line 2 of PATH has 7"),
    "large resolution": ({"r": 2048}, "r must be a resolution of 8 to 1024 pixels, but line 2 of PATH has 2048"),
    "mixed units": ({"top1": 0.7}, "PATH must give all accuracies in percent or all as fractions, but line 1 has 70 and line 2 has 0.7"),
    "contradiction": (
        {"top1": 71.2},
        "PATH must hold accuracies within 1 point for each network, but ofa-mbv3-w1.0@r160-23333-23333-23333-23333-23333 has "
        "70.00 % on line 1 and 71.20 % on line 2",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), VALUES.values(), ids=VALUES)
def test_a_pair_that_cannot_be_is_named_by_its_line(tmp_path, changes, sentence):
    path = lines(tmp_path / "p.jsonl", GOOD, {**GOOD, **changes}, OTHER)
    with pytest.raises(FormatError, match=re.escape(sentence.replace("PATH", str(path)))):
        read(path)


@pytest.mark.parametrize("line", ["{", "3", "[]", "[" * 100_000, '{"a":' * 100_000, "nan"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    with pytest.raises(FormatError, match=r"line 2 of .*p.jsonl must be a JSON object, but"):
        read(lines(tmp_path / "p.jsonl", GOOD, line))


def test_lines_count_as_an_editor_counts_them(tmp_path):
    path = tmp_path / "p.csv"
    note = "'a note\nof two lines'"
    row = "{'ks': [3] * 2}"
    rows = [f'"{ {k: v for k, v in GOOD.items() if k != "top1"} | {"x": 1} }",70,{note.replace(chr(39), chr(34))}', f'"{row}",70,']
    path.write_text("Sub-network,Top-1 Acc (%),Note\n" + "\n".join(rows) + "\n")
    with pytest.raises(FormatError, match=r"line 4 of .*p.csv must hold settings such as"):
        read(path)


def test_measurements_a_point_apart_are_noise(tmp_path):
    path = lines(tmp_path / "p.jsonl", GOOD, {**GOOD, "top1": 71.0}, {**GOOD, "top1": 70.5})
    assert read(path).merged().top1 == pytest.approx([0.705])


def test_files_may_contradict_each_other(tmp_path):
    paths = [lines(tmp_path / f"{top1}.jsonl", {**GOOD, "top1": top1}) for top1 in (70.0, 0.75)]
    assert read_pairs(paths, SPACE).merged().top1.tolist() == [0.7, 0.75]  # other images, other units


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ks": [4] * 20}, r"s1.b1.kernel must be one of \[3, 5, 7\] in ofa-mbv3-w1.0, but got 4"),
        ({"e": [5] * 20}, r"s1.b1.expand must be one of \[3, 4, 6\] in ofa-mbv3-w1.0, but got 5"),
        ({"d": [5] * 5}, r"s1.depth must be one of \[2, 3, 4\] in ofa-mbv3-w1.0, but got 5"),
    ],
)
def test_a_network_outside_the_space_is_named(tmp_path, changes, reason):
    path = lines(tmp_path / "p.jsonl", *[GOOD] * 5, {**GOOD, **changes}, {**GOOD, "ks": [9] * 20}, OTHER)
    with pytest.raises(
        ArchError, match=rf"line 6 of .*p.jsonl must hold a network of ofa-mbv3-w1.0, but it is none \({reason}\): "
    ) as found:
        read(path)
    name, values = next(iter(changes.items()))
    assert f'"{name}": {json.dumps(values)}' in str(found.value)


def test_an_arch_id_of_another_space_is_named(tmp_path):
    arch = get_space("ofa-mbv3-w1.2").arch(get_space("ofa-mbv3-w1.2").smallest())
    (tmp_path / "p.csv").write_text(f"arch_id,top1_validation\n{arch},0.7\n")
    with pytest.raises(ArchError, match=r"line 2 of .*p.csv must hold a network of ofa-mbv3-w1.0, but it is none: an arch id of"):
        read(tmp_path / "p.csv")


@pytest.mark.parametrize("arch", ["", "x", "ofa-mbv3-w1.0@r\u0661", "ofa-mbv3-w1.0@r" + "9" * 5000, "@r160", "ofa-mbv3-w1.0@r160"])
def test_an_arch_id_that_is_none_is_refused(tmp_path, arch):
    (tmp_path / "p.csv").write_text(f"arch_id,top1_validation\n{arch},0.7\n", encoding="utf-8")
    with pytest.raises((ArchError, FormatError), match=r"line 2 of .*p.csv"):
        read(tmp_path / "p.csv")


def test_pairs_of_the_large_space_are_no_pairs_of_compofa(tmp_path):
    path = lines(tmp_path / "p.jsonl", {**GOOD, "e": [4] * 20})
    read(path)
    with pytest.raises(ArchError, match=r"must be 3 in compofa-mbv3-elastic-w1.0"):
        read_pairs([path], get_space("compofa-mbv3-elastic-w1.0"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1,2\n", "but begins like none of them"),
        ("[1]\n", "but begins like none of them"),
        ("arch_id,top1_test\nx,0.7\n", "must have a column 'top1_validation', but has none; evaluate with --split validation"),
        ("Sub-network,Top-1\n{},0.7\n", r"must have a column 'Top-1 Acc \(%\)', but has none"),
        ("Sub-network,Top-1 Acc (%)\n3,70\n", "line 2 of .* must hold settings such as .*, but holds int"),
        ("Sub-network,Top-1 Acc (%)\n\"__import__('os').getcwd()\",70\n", "line 2 of .* must hold settings such as"),
        ("Sub-network,Top-1 Acc (%)\n\"{'ks': [3]}\",70\n", "r must be a resolution"),
        ("Sub-network,Top-1 Acc (%)\n\"{'r': 160, 'ks': [3]}\",70\n", "ks must hold 20 integers"),
        ("Sub-network,Top-1 Acc (%)\n\"{'r': 160}\"\n", "top1 must be a number"),
        ("Sub-network,Top-1 Acc (%)\n" + "(" * 5000 + ",70\n", "line 2 of .* must hold settings such as"),
        ("Sub-network,Top-1 Acc (%)\n" + "-" * 50_000 + "1,70\n", "line 2 of .* must hold settings such as"),
        ("Sub-network,Top-1 Acc (%)\n" + "1" * 200_000 + ",70\n", "must be a CSV table, but cannot be read"),
        ('{"{\\"ks\\": 3', "must be a JSON object, but cannot be read"),
        ('{"{}": 70}', "r must be a resolution of 8 to 1024 pixels, but entry 1 of .* has none"),
        ('{"{": 70}', "entry 1 of .* must be a JSON object, but cannot be read"),
        ('{"{}": "many"}', "top1 must be a number of 0 to 100 percent, but entry 1 of .* has 'many'"),
        ('{"{' + "[" * 100_000 + '": 70}', "must be a JSON object, but cannot be read"),
        ("\xff\xfe", "but begins like none of them"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, text, reason):
    (tmp_path / "p").write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=reason):
        read(tmp_path / "p")


def test_bytes_are_no_text(tmp_path):
    (tmp_path / "p").write_bytes(b"{\xff\xfe")
    with pytest.raises(FormatError, match="but is no text"):
        read(tmp_path / "p")


@pytest.mark.parametrize("text", ["", "\n \n", "{}", "Sub-network,Top-1 Acc (%)\n", "arch_id,top1_validation\nx,\n"])
def test_no_pairs_are_refused(tmp_path, text):
    (tmp_path / "p").write_text(text)
    with pytest.raises(FormatError, match=r"p must hold at least one measured network, but holds none"):
        read_pairs([lines(tmp_path / "q.jsonl", GOOD), tmp_path / "p"], SPACE)


def test_missing_files_and_folders_without_accuracies_are_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"q.jsonl must be an existing pairs file or folder, but there is none"):
        read(tmp_path / "q.jsonl")
    (tmp_path / "net_id.dict").write_text("[]")
    with pytest.raises(FormatError, match=r"must hold src/<resolution>.dict or acc.dict, as once-for-all's accuracy folders do"):
        read(tmp_path)


def test_a_file_given_twice_is_refused(tmp_path):
    path = lines(tmp_path / "p.jsonl", GOOD)
    with pytest.raises(UsageError, match="every pairs file must be given once, but one is given twice"):
        read_pairs([path, tmp_path / "." / "p.jsonl"], SPACE)


def test_files_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PAIRS_LIMIT", 100)
    with pytest.raises(FormatError, match=r"p.jsonl must be at most 0 MiB, but is larger"):
        read(lines(tmp_path / "p.jsonl", GOOD))
