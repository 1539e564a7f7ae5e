"""Comparing networks: the numbers of the arrays, the same from shipped, live and saved predictions; the images that flip."""

import csv
import io
import json

import numpy as np
import pytest
from makers import image_folder
from PIL import Image

import ofasearch
from ofasearch.data import DataSet, ImageSet, load_data
from ofasearch.errors import FormatError, MismatchError, UsageError, WriteError
from ofasearch.evaluate.flips import compare, negative_flips, nfr_matrix, positive_flips
from ofasearch.evaluate.saved import Labelled, labelled
from ofasearch.jobs.deliver import onnx_bytes, save_subnet, shipped_subnet
from ofasearch.jobs.flips import FlipsRequest, FlipsResult, flips, write_flips
from ofasearch.report.flips import CELL, COLUMNS, GAP, LINE, SIDE, Comparison, chosen, contact_sheet, csv_text, record_of

SMALL, MIDDLE, LARGE = (f"compofa-mbv3-cifar@r32-{d}-{d}-{d}-{d}-{d}" for d in "234")
NAMES = ("ape", "bee", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick, shipped):
    """Three members as files."""
    folder = tmp_path_factory.mktemp("members")
    for name, arch in {"small": SMALL, "large": LARGE}.items():
        codes = np.array(shipped.weights.space.parse(arch).codes)
        subnet = shipped_subnet(shipped.weights, shipped.members, codes, shipped.name)
        save_subnet(folder / f"{name}.pt", subnet, {})
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(subnet))
    return folder


def predicted(shipped, *archs, split="test"):
    space = shipped.weights.space
    rows = shipped.members.index(np.array([space.parse(arch).codes for arch in archs]))
    return shipped.members.predictions[split][rows].astype(np.int64)


def comparison_of(seed=0, n=400, classes=3, part=None):
    """Networks that say something at random, and images of noise."""
    rng = np.random.default_rng(seed)
    labels, old, new = rng.integers(0, classes, (3, n))
    names = NAMES if classes == 3 else tuple(f"class {c}" for c in range(classes))
    images = Labelled(data="noise", split="test", labels=labels, class_names=names)
    part = ImageSet(rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), labels)
    return Comparison(old_name="a.pt", new_name="b.pt", old=old, new=new, images=images, source="live"), part


# -- numbers ---------------------------------------------------------------------------------------------------


def test_shipped_predictions_are_compared_without_data(shipped):
    record = ofasearch.flips(SMALL, LARGE)
    old, new = predicted(shipped, SMALL, LARGE)
    labels = shipped.members.labels["test"].astype(np.int64)
    found = compare(old, new, labels)
    assert {key: record[key] for key in found.to_json()} == found.to_json()
    assert (record["source"], record["data"], record["split"], record["n"]) == ("shipped", "cifar10", "test", 10_000)
    assert (record["old"], record["new"]) == (SMALL, LARGE)
    assert record["gain"] == pytest.approx(record["pfr"] - record["nfr"])
    assert [network["arch_id"] for network in record["networks"]] == [SMALL, LARGE]
    assert [network["top1"] for network in record["networks"]] == [record["top1_old"], record["top1_new"]]
    low, high = record["intervals"]["nfr"]
    assert low < record["nfr"] < high
    assert "files" not in record
    assert "nfr_matrix" not in record
    assert len(record["classes"]) == 10
    cat = next(row for row in record["classes"] if row["class"] == "cat")
    assert cat["nfr"] == negative_flips(old, new, labels)[labels == 3].mean()
    assert cat["n"] == 1000
    first = record["pairs"][0]
    names = shipped.weights.class_names
    was, now = names.index(first["label"]), names.index(first["predicted"])
    assert first["count"] == ((labels == was) & (old == was) & (new == now)).sum() == max(pair["count"] for pair in record["pairs"])


def test_files_and_architectures_of_one_network_compare_alike(folder):
    expected = ofasearch.flips(SMALL, LARGE, split="validation")
    assert expected["n"] == 5000
    for old, new in ((str(folder / "small.pt"), str(folder / "large.onnx")), (str(folder / "small.onnx"), LARGE)):
        record = ofasearch.flips(old, new, split="validation")
        assert {k: record[k] for k in ("nfr", "pfr", "classes", "pairs", "intervals")} == {
            k: expected[k] for k in ("nfr", "pfr", "classes", "pairs", "intervals")
        }


def test_a_family_is_compared_pair_by_pair(shipped):
    record = ofasearch.flips(SMALL, MIDDLE, LARGE, SMALL)
    expected = nfr_matrix(predicted(shipped, SMALL, MIDDLE, LARGE, SMALL), shipped.members.labels["test"])
    assert record["nfr_matrix"] == expected.tolist()
    assert record["nfr"] == record["nfr_matrix"][0][1]
    assert record["nfr_matrix"][0][3] == 0
    assert len(record["networks"]) == 4


def test_intervals_are_seeded():
    first, again, other = (ofasearch.flips(SMALL, LARGE, seed=seed)["intervals"] for seed in (1, 1, 2))
    assert first == again
    assert [first[rate] for rate in ("nfr", "pfr", "gain")] != [other[rate] for rate in ("nfr", "pfr", "gain")]
    assert first["seed"] == 1


def test_live_networks_are_run_each_in_its_way(folder):
    record = ofasearch.flips(SMALL, str(folder / "large.pt"), str(folder / "large.onnx"), data="digits")
    scores = [ofasearch.evaluate_subnet(text, data="digits")["top1"] for text in (SMALL, str(folder / "large.pt"))]
    assert [network["top1"] for network in record["networks"]] == [*scores, scores[1]]
    assert (record["source"], record["data"], record["n"]) == ("live", "digits", 359)
    assert record["networks"][0]["calibrated"] == "58 images of digits calibration"  # as in `eval`
    assert record["networks"][1]["calibrated"] == "shipped statistics"
    assert record["nfr_matrix"][1][2] == 0  # one network as two files
    assert record["notes"] == []


def test_a_silent_onnx_file_is_fed_as_the_others_or_as_the_supernet_and_said(tmp_path, folder):
    import onnx

    model = onnx.load(folder / "small.onnx")
    del model.metadata_props[:]
    for name in ("one.onnx", "two.onnx"):
        onnx.save(model, tmp_path / name)
    one, two = str(tmp_path / "one.onnx"), str(tmp_path / "two.onnx")
    record = ofasearch.flips(one, str(folder / "small.pt"), data="digits")
    assert (record["nfr"], record["pfr"]) == (0, 0)
    assert record["notes"] == [f"{one} does not say how its images are preprocessed: taken as for the others"]
    assert "arch_id" not in record["networks"][0]
    with pytest.raises(UsageError, match="the other networks do not say theirs; add --preprocessing"):
        ofasearch.flips(one, two, data="digits")
    assert len(ofasearch.flips(one, two, data="digits", supernet="cifar10-compofa")["notes"]) == 2
    told = ofasearch.flips(one, str(folder / "small.pt"), data="digits", preprocessing="imagenet")
    assert told["notes"] == []
    assert told["nfr"] + told["pfr"] > 0


# -- saved predictions -----------------------------------------------------------------------------------------


def test_saved_predictions_compare_as_the_networks_do(tmp_path, folder):
    texts = [SMALL, str(folder / "large.onnx")]
    files = [tmp_path / "small.npz", tmp_path / "large.npz"]
    for split in ("test", "validation"):
        for text, file in zip(texts, files, strict=True):
            answer = ofasearch.evaluate_subnet(text, data="digits", split=split, save_predictions=file)
            assert answer["predictions"] == str(file)
    for split in ("test", "validation"):
        live = ofasearch.flips(*texts, data="digits", split=split)
        for options in ({}, {"data": "digits"}):
            saved = ofasearch.flips(*map(str, files), split=split, **options)
            assert {k: saved[k] for k in ("n", "nfr", "pfr", "top1_old", "top1_new", "classes", "pairs", "intervals", "data")} == {
                k: live[k] for k in ("n", "nfr", "pfr", "top1_old", "top1_new", "classes", "pairs", "intervals", "data")
            }
            assert saved["source"] == ("live" if options else "saved")
        assert ofasearch.evaluate_subnet(str(files[0]), data="digits", split=split)["top1"] == live["top1_old"]


def test_predictions_of_another_network_are_not_added_before_it_is_run(tmp_path, folder, monkeypatch):
    file = tmp_path / "p.npz"
    ofasearch.evaluate_subnet(str(folder / "small.pt"), data="digits", save_predictions=file)
    before = file.read_bytes()
    monkeypatch.setattr("ofasearch.jobs.subnet.predictions_of", None)
    with pytest.raises(MismatchError, match=r"must hold predictions of .*large\.pt to be added to, but holds those of .*small\.pt"):
        ofasearch.evaluate_subnet(str(folder / "large.pt"), data="digits", split="validation", save_predictions=file)
    with pytest.raises(UsageError, match=r"must be saved as \.npz"):
        ofasearch.evaluate_subnet(str(folder / "large.pt"), data="digits", save_predictions=tmp_path / "p.csv")
    assert file.read_bytes() == before


def test_predictions_from_elsewhere_are_held_against_shipped_labels(tmp_path, shipped):
    old, new = predicted(shipped, SMALL, LARGE)
    np.save(tmp_path / "old.npy", old)
    (tmp_path / "old.txt").write_text("\n".join(shipped.weights.class_names[c] for c in old))
    for name in ("old.npy", "old.txt"):
        record = ofasearch.flips(str(tmp_path / name), LARGE)
        assert record["nfr"] == compare(old, new, shipped.members.labels["test"]).nfr
        assert record["networks"][0] == {"name": str(tmp_path / name), "kind": "predictions", "top1": record["top1_old"]}
        assert record["source"] == "shipped"


def test_files_alone_need_labels_that_agree(tmp_path):
    labels, old, new = np.random.default_rng(0).integers(0, 5, (3, 50))
    np.savez(tmp_path / "with.npz", **{"test": old, "labels.test": labels})
    np.savez(tmp_path / "without.npz", test=new + 2)  # classes beyond those that occur as labels
    np.savez(tmp_path / "other.npz", **{"test": new, "labels.test": labels[::-1]})
    np.savez(tmp_path / "wild.npz", test=new + 10**9)
    (tmp_path / "named.txt").write_text("\n".join(map(str, new)))
    one, two, other, wild, named = (str(tmp_path / n) for n in ("with.npz", "without.npz", "other.npz", "wild.npz", "named.txt"))
    assert ofasearch.flips(one, two)["nfr"] == compare(old, new + 2, labels).nfr
    assert ofasearch.flips(named, one)["nfr"] == compare(new, old, labels).nfr
    with pytest.raises(UsageError, match=r"labels of the test images must be known, .* add --data \(or --supernet\)"):
        ofasearch.flips(two, two)
    with pytest.raises(MismatchError, match="holds those of test"):
        ofasearch.flips(one, two, split="validation")
    with pytest.raises(MismatchError, match=r"labels in .*other\.npz must be those of"):
        ofasearch.flips(one, other)
    with pytest.raises(FormatError, match="must be of at most 100,000 classes"):
        ofasearch.flips(one, wild)


# -- refusals come first ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"networks": (SMALL,)}, "2 to 100 networks, but got 1"),
        ({"networks": (SMALL,) * 101}, "2 to 100 networks, but got 101"),
        ({"split": "train"}, "--split must be validation or test, but got train"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_a_question_of_nonsense_is_wrong_usage(change, text):
    with pytest.raises(UsageError, match=text):
        FlipsRequest(**{"networks": (SMALL, LARGE), **change})


def test_nothing_is_run_before_all_is_checked(tmp_path, monkeypatch, folder):
    monkeypatch.setattr("ofasearch.jobs.flips.live_predictions", None)
    np.save(tmp_path / "short.npy", np.zeros(7, dtype=np.int64))
    with pytest.raises(MismatchError, match="for each of the 359 test images of digits, but holds 7"):
        ofasearch.flips(SMALL, str(tmp_path / "short.npy"), data="digits")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="must be writable"):
        ofasearch.flips(SMALL, LARGE, data="digits", out=tmp_path / "file")
    with pytest.raises(MismatchError, match="supernet cifar10-ofa must come with predictions"):
        ofasearch.flips(str(folder / "small.pt"), str(folder / "large.pt"), supernet="cifar10-ofa")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "short.npy"]


def test_progress_names_each_network():
    *progress, result = flips(FlipsRequest(networks=(SMALL, LARGE), data="digits"))
    assert isinstance(result, FlipsResult)
    assert list(dict.fromkeys(event.phase for event in progress)) == [f"evaluating {arch} on test" for arch in (SMALL, LARGE)]


# -- files -----------------------------------------------------------------------------------------------------


def test_the_files_of_a_comparison_tell_what_the_answer_tells(tmp_path):
    out = tmp_path / "new" / "out"
    record = ofasearch.flips(SMALL, LARGE, data="digits", out=out)
    assert record["files"] == {
        name: str(out / file) for name, file in (("flips", "flips.json"), ("flips_csv", "flips.csv"), ("flips_png", "flips.png"))
    }
    assert json.loads((out / "flips.json").read_text()) == record
    rows = list(csv.DictReader(io.StringIO((out / "flips.csv").read_text())))
    assert sum(row["flip"] == "negative" for row in rows) == record["negative_flips"]
    assert sum(row["flip"] == "positive" for row in rows) == record["positive_flips"]
    with Image.open(out / "flips.png") as image:
        assert image.width == COLUMNS * (CELL + GAP) + GAP
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    assert ofasearch.flips(SMALL, LARGE, data="digits", out=out) == record
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents


def test_without_images_there_is_no_sheet(tmp_path):
    record = ofasearch.flips(SMALL, LARGE, out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flips.csv", "flips.json"]
    assert set(record["files"]) == {"flips", "flips_csv"}


def test_arrays_can_be_written_as_they_are(tmp_path):
    comparison, part = comparison_of()
    files = write_flips(tmp_path, comparison, part)
    assert json.loads((tmp_path / "flips.json").read_text()) == {**record_of(comparison), "files": files}


def test_the_list_of_flips_is_that_of_the_arrays():
    comparison, _ = comparison_of()
    arrays = comparison.old, comparison.new, comparison.images.labels
    rows = list(csv.reader(io.StringIO(csv_text(comparison))))
    assert rows[0] == ["index", "label", "old", "new", "flip"]
    for kind, mask in {"negative": negative_flips(*arrays), "positive": positive_flips(*arrays)}.items():
        own = [row for row in rows[1:] if row[-1] == kind]
        assert [int(row[0]) for row in own] == np.flatnonzero(mask).tolist()
        for index, label, old, new, _ in own:
            assert (NAMES.index(label), NAMES.index(old), NAMES.index(new)) == tuple(int(a[int(index)]) for a in arrays[2:] + arrays[:2])


def place(row, column):
    return GAP + column * (CELL + GAP), 3 * LINE + GAP + row * (SIDE + 2 * LINE + GAP)


def test_the_sheet_shows_the_flipped_images_class_by_class():
    comparison, part = comparison_of(n=60)
    arrays = comparison.old, comparison.new, comparison.images.labels
    with Image.open(io.BytesIO(contact_sheet(comparison, part))) as image:
        pixels = np.asarray(image.convert("RGB"))
    row = -1
    for label in range(3):
        own = np.flatnonzero(negative_flips(*arrays) & (comparison.images.labels == label))
        assert len(own) > 0
        for i, index in enumerate(own):
            row += i % COLUMNS == 0  # a class begins a row
            left, top = place(row, i % COLUMNS)
            shown = pixels[top : top + SIDE, left : left + SIDE]
            assert (shown == part.images[index].repeat(3, axis=0).repeat(3, axis=1)).all()
            assert (pixels[top + SIDE : top + SIDE + 2 * LINE, left : left + CELL] < 128).any()  # its caption
    assert pixels.shape[0] == place(row + 1, 0)[1]


def test_a_sheet_of_many_classes_is_packed():
    comparison, part = comparison_of(n=300, classes=60)
    arrays = comparison.old, comparison.new, comparison.images.labels
    comparison.old[:] = comparison.images.labels
    count = int(negative_flips(*arrays).sum())
    assert count > 100
    with Image.open(io.BytesIO(contact_sheet(comparison, part))) as image:
        assert image.height == place(-(-100 // COLUMNS), 0)[1]


def test_where_there_are_too_many_classes_are_cut_evenly():
    labels = np.repeat(np.arange(4), [50, 3, 20, 60])
    flipped = np.arange(len(labels))
    found = chosen(flipped, labels, 40)
    assert len(found) == len(set(found.tolist())) == 40
    counts = np.bincount(labels[found], minlength=4)
    assert counts[1] == 3  # all there are
    assert np.delete(counts, 1).max() - np.delete(counts, 1).min() <= 1
    assert (np.diff(labels[found]) >= 0).all()  # class by class
    for label in range(4):
        own = found[labels[found] == label]
        assert own.tolist() == np.flatnonzero(labels == label)[: len(own)].tolist()
    assert chosen(flipped, labels, 1000).tolist() == flipped.tolist()
    assert chosen(flipped[:0], labels).tolist() == []


def test_a_sheet_of_nothing_says_so():
    comparison, part = comparison_of()
    comparison.new[:] = comparison.old
    with Image.open(io.BytesIO(contact_sheet(comparison, part))) as image:
        assert image.height == place(0, 0)[1]
        assert (np.asarray(image.convert("L")) < 128).any()


def test_photographs_are_named_and_shown(tmp_path):
    data = load_data(str(image_folder(tmp_path / "animals", 90, classes=NAMES)))
    images = labelled(data, "test")
    old, new = images.labels, (images.labels + 1) % 3
    comparison = Comparison(old_name="a", new_name="b", old=old, new=new, images=images, source="live")
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert [row["file"] for row in rows] == list(images.files)
    with Image.open(io.BytesIO(contact_sheet(comparison, data["test"]))) as image:
        left, top = place(0, 0)
        assert np.asarray(image.convert("L"))[top : top + SIDE, left : left + SIDE].std() > 10


def test_names_of_any_script_and_length_are_written():
    comparison, part = comparison_of(n=30)
    odd = Labelled(data="δ\n" * 300, split="test", labels=comparison.images.labels, class_names=("猫" * 200, "\x1b[2J", ""))
    changed = Comparison(old_name="ü" * 500, new_name="", old=comparison.old, new=comparison.new, images=odd, source="live")
    assert contact_sheet(changed, part)[:4] == b"\x89PNG"


def test_a_data_set_serves_its_own_images(tmp_path):
    """Images of another size than usual, and larger than their place."""
    rng = np.random.default_rng(0)
    part = ImageSet(rng.integers(0, 256, (8, 128, 128, 3)).astype(np.uint8), rng.integers(0, 3, 8))
    images = labelled(DataSet("large", NAMES, {"test": part}), "test")
    comparison = Comparison(old_name="a", new_name="b", old=part.labels, new=(part.labels + 1) % 3, images=images, source="live")
    assert contact_sheet(comparison, part)[:4] == b"\x89PNG"
