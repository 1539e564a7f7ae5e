"""Where training images come from: the same pixels for the same request, in order, whoever decodes them."""

import threading
import time

import numpy as np
import pytest
import torch
from makers import encoded, image_folder
from PIL import Image
from scipy import stats

from ofasearch.data import ImageSet, folder
from ofasearch.data.folder import FolderSet, list_images, random_box, random_crop
from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.train import source
from ofasearch.train.source import FolderSource, MemorySource, Request

CPU = torch.device("cpu")
CLASSES = ("ape", "bee", "cat")
HINT = "`--skip-unreadable` leaves such images out"


def request(index, *key, resolution=16):
    return Request(np.array(index, dtype=np.int64), resolution, key or (0,))


def one(made, wanted):
    """The batch of a single request."""
    (batch,) = made.images([wanted])
    return batch


def folder_source(images, *, flip=True, workers=2, **options):
    return FolderSource(images, flip=flip, workers=workers, **options)


@pytest.fixture
def photographs(tmp_path):
    image_folder(tmp_path / "d", 12, classes=CLASSES, sizes=((40, 30), (30, 50), (60, 60)), kind="JPEG", suffix=".jpg")
    return list_images(tmp_path / "d", list(CLASSES))


@pytest.fixture
def plain(tmp_path):
    """Images of one colour each, which tells the class and the number: red 0, 80 or 160, green 0, 20, ..."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "p" / name).mkdir(parents=True)
        for n in range(12):
            Image.new("RGB", (30 + n, 30), (80 * label, 20 * n, 0)).save(tmp_path / "p" / name / f"{n:02d}.png")
    return list_images(tmp_path / "p", list(CLASSES))


def colours(batch):
    """(label, number) of each plain image."""
    assert (batch == batch[:, :1, :1]).all()
    return [(int(red) // 80, int(green) // 20) for red, green, _ in batch[:, 0, 0]]


def spoil(images, *positions):
    for position in positions:
        (images.root / images.files[position]).write_bytes(b"<html>not found</html>")


# -- small images ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, 20))


def test_images_in_memory_come_unchanged_without_padding_and_flip(small):
    made = MemorySource(small, crop_padding=0, flip=False, device=CPU)
    wanted = [request([3, 3, 19], 1, resolution=8), request([0], 2, resolution=8)]
    batches = list(made.images(wanted))
    assert [batch.dtype for batch in batches] == [torch.uint8] * 2
    assert all((batch.numpy() == small.images[r.index]).all() for batch, r in zip(batches, wanted, strict=True))
    assert (len(made), made.labels.tolist()) == (20, small.labels.tolist())


def test_images_in_memory_are_windows_of_the_reflected_image_half_of_them_mirrored(small):
    made = MemorySource(small, crop_padding=2, flip=True, device=CPU)
    batch = one(made, request([7] * 400, 5, resolution=8)).numpy()
    padded = np.pad(small.images[7], ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[y : y + 8, x : x + 8][:, ::step].tobytes(): step for y in range(5) for x in range(5) for step in (1, -1)}
    found = [image.tobytes() for image in batch]
    assert set(found) == set(windows)  # all 25 places, both ways
    assert 160 < sum(windows[image] == -1 for image in found) < 240


def test_the_key_alone_decides_what_happens_to_images_in_memory(small):
    made = MemorySource(small, crop_padding=2, flip=True, device=CPU)
    first, again, other = made.images(request(range(20), *key, resolution=8) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_small_images_are_never_resized(small):
    made = MemorySource(small, crop_padding=2, flip=True, device=CPU)
    with pytest.raises(MismatchError, match="images must have the 16 pixels of the network's input, but have 8"):
        one(made, request([0], resolution=16))
    made.close()


# -- the same pixels for the same request ----------------------------------------------------------------------


def test_the_number_of_workers_and_of_batches_ahead_changes_no_pixel(photographs):
    requests = [request(np.random.default_rng(n).integers(0, 36, 9), 4, n, resolution=(16, 24)[n % 2]) for n in range(6)]
    expected = list(folder_source(photographs, workers=1, ahead=0).images(requests))
    assert [tuple(batch.shape) for batch in expected] == [(9, r.resolution, r.resolution, 3) for r in requests]
    for workers, ahead in ((4, 0), (4, 2), (1, 9)):
        found = list(folder_source(photographs, workers=workers, ahead=ahead).images(requests))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_key_and_the_place_in_the_batch_decide_what_happens_to_a_photograph(photographs):
    made = folder_source(photographs)
    first, again, other = made.images(request([5, 5, 8], *key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def test_photographs_come_in_the_asked_order(plain):
    wanted = [[30, 2, 2, 17], [0], [], [35, 34, 33, 32, 31]]
    made = folder_source(plain, workers=4)
    batches = list(made.images(map(request, wanted)))
    assert [colours(batch) for batch in batches] == [[divmod(i, 12) for i in index] for index in wanted]
    assert (len(made), made.labels.tolist()) == (36, [0] * 12 + [1] * 12 + [2] * 12)
    assert made.skipped == ()


# -- ahead, but not further ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_requests_are_taken_no_sooner_than_their_batches_are_begun(plain, ahead):
    taken = []

    def requests():
        for n in range(8):
            taken.append(n)
            yield request([n])

    batches = folder_source(plain, ahead=ahead).images(requests())
    assert taken == []
    for n in range(8):
        assert colours(next(batches)) == [(0, n)]
        assert len(taken) == min(8, n + 1 + ahead)
    assert next(batches, None) is None


def test_the_next_batches_are_decoded_while_one_is_used(plain, monkeypatch):
    decoded = []
    monkeypatch.setattr(source, "random_crop", lambda path, *_, **__: decoded.append(path) or np.zeros((16, 16, 3), np.uint8))
    batches = folder_source(plain, ahead=2).images(request([n, n, n]) for n in range(9))
    next(batches)
    deadline = time.monotonic() + 5
    while len(decoded) < 9 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(decoded) == 9  # the batch in use, and two more
    batches.close()


# -- an early end ----------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Decoding that takes its time, and counts."""
    decoded = []
    monkeypatch.setattr(
        source, "random_crop", lambda path, *_, **__: time.sleep(0.01) or decoded.append(path) or np.zeros((16, 16, 3), np.uint8)
    )
    return decoded


@pytest.mark.parametrize("end", ["iterator", "source", "forgotten", "interrupt"])
def test_an_early_end_stops_the_workers(plain, slow, end):
    before, made = set(threading.enumerate()), folder_source(plain)
    batches = made.images(request(range(12), n) for n in range(100))
    next(batches)
    assert set(threading.enumerate()) > before
    if end == "iterator":
        batches.close()
    elif end == "source":
        made.close()
        assert next(batches, None) is None
    elif end == "forgotten":
        del batches
    else:
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())
    assert set(threading.enumerate()) == before
    assert len(slow) < 36  # of three batches begun


def test_a_closed_source_can_be_used_again(plain):
    made = folder_source(plain)
    made.close()
    before = one(made, request([1, 2]))
    made.close()
    assert torch.equal(one(made, request([1, 2])), before)


def test_an_unreadable_photograph_stops_the_workers(plain):
    before = set(threading.enumerate())
    spoil(plain, 5)
    with pytest.raises(FormatError):
        list(folder_source(plain).images(request(range(12), n) for n in range(100)))
    assert set(threading.enumerate()) == before


# -- the crop --------------------------------------------------------------------------------------------------


def boxes(width, height, count, **options):
    rng = np.random.default_rng(3)
    return np.array([random_box(width, height, rng, **options) for _ in range(count)])


def test_crops_have_the_share_and_the_aspect_of_the_paper():
    left, top, right, bottom = boxes(4000, 4000, 2000, scale=(0.1, 0.3)).T
    share, aspect = (right - left) * (bottom - top) / 4000**2, np.log((right - left) / (bottom - top)) / np.log(4 / 3)
    free = left / (4000 - (right - left))
    assert stats.kstest(share, stats.uniform(0.1, 0.2).cdf).pvalue > 0.01
    assert stats.kstest(aspect, stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert stats.kstest(free, stats.uniform(0, 1).cdf).pvalue > 0.01
    assert stats.kstest(top / (4000 - (bottom - top)), stats.uniform(0, 1).cdf).pvalue > 0.01


def reference_share(width, height, rng):
    """The share of a box of torchvision's RandomResizedCrop, by its documents: ten draws, then the centre."""
    for _ in range(10):
        share, aspect = rng.uniform(0.08, 1), (4 / 3) ** rng.uniform(-1, 1)
        w, h = (share * width * height * aspect) ** 0.5, (share * width * height / aspect) ** 0.5
        if w <= width and h <= height:
            return share
    return min(width, height * 4 / 3) * min(height, width * 4 / 3) / (width * height)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 480), (900, 300)], ids=str)
def test_crops_of_photographs_are_distributed_as_torchvisions(size):
    left, top, right, bottom = boxes(*size, 3000).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[0]).all() and (bottom <= size[1]).all()
    rng = np.random.default_rng(4)
    expected = np.array([reference_share(*size, rng) for _ in range(3000)])
    share = (right - left) * (bottom - top) / (size[0] * size[1])
    assert stats.ks_2samp(share.round(2), expected.round(2)).pvalue > 0.01


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 3000), (0, 1499, 1, 1500))], ids=str
)
def test_the_crop_of_a_line_is_its_centre(size, box):
    assert (boxes(*size, 20) == box).all()


@pytest.mark.parametrize("resolution", [1, 16, 224])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1000, 10), (2, 3000), (37, 41)], ids=str)
def test_every_size_of_photograph_serves_every_resolution(tmp_path, size, resolution):
    (tmp_path / "x.png").write_bytes(encoded(size))
    for seed in range(5):
        assert random_crop(tmp_path / "x.png", resolution, np.random.default_rng(seed)).shape == (resolution, resolution, 3)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGB"),
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("TIFF", "CMYK"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
        ("GIF", "P"),
    ],
)
def test_every_kind_of_image_becomes_rgb_and_is_resized_once(tmp_path, kind, mode):
    path = tmp_path / "x"
    path.write_bytes(encoded((55, 44), 1, kind, mode))
    with Image.open(path) as image:
        whole = image.convert("RGB")
    for seed in range(4):
        box = random_box(55, 44, np.random.default_rng(seed))
        found = random_crop(path, 48, np.random.default_rng(seed), flip=False)
        assert (found == np.asarray(whole.resize((48, 48), Image.Resampling.BILINEAR, box=box))).all()


def test_a_transparent_palette_becomes_rgb_without_a_warning(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert (random_crop(tmp_path / "x.png", 8, np.random.default_rng(0)) == [40, 50, 60]).all()


def test_half_of_the_photographs_are_mirrored_if_asked(tmp_path):
    image_folder(tmp_path / "d", 1, classes=("ape",), sizes=((16, 16),))
    images = list_images(tmp_path / "d", ["ape"])
    with Image.open(images.root / images.files[0]) as image:
        whole = torch.tensor(np.asarray(image))
    for flip, least, most in ((True, 70, 130), (False, 0, 0)):
        batch = one(folder_source(images, flip=flip, crop_scale=(1.0, 1.0)), request([0] * 200))
        mirrored = sum(torch.equal(image, whole.flip(1)) for image in batch)
        assert mirrored + sum(torch.equal(image, whole) for image in batch) == 200
        assert least <= mirrored <= most


def test_the_same_box_is_cut_with_and_without_flip(photographs):
    both = [one(folder_source(photographs, flip=flip), request(range(36))) for flip in (True, False)]
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(1)) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_no_larger_than_its_crop_needs(tmp_path, monkeypatch, mode):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((501, 379), Image.Resampling.BICUBIC)
    smooth.convert(mode).save(tmp_path / "x.jpg", quality=95)
    smooth.convert(mode).save(tmp_path / "x.tif")
    decoded, rgb = [], folder._rgb
    monkeypatch.setattr(folder, "_rgb", lambda image: decoded.append(image.size) or rgb(image))
    shrunk = []
    for seed in range(40):
        left, top, right, bottom = random_box(501, 379, np.random.default_rng(seed))
        jpeg, other = (random_crop(tmp_path / name, 32, np.random.default_rng(seed)) for name in ("x.jpg", "x.tif"))
        factor = round(501 / decoded[-2][0])
        assert decoded[-2:] == [(-(-501 // factor), -(-379 // factor)), (501, 379)]
        assert min(right - left, bottom - top) / factor >= 32
        assert factor == 8 or min(right - left, bottom - top) / (2 * factor) < 32
        assert np.abs(jpeg.astype(int) - other).mean() < 1.5
        shrunk.append(factor)
    assert set(shrunk) == {2, 4, 8}


# -- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [lambda path: path.write_bytes(path.read_bytes()[:300]), lambda path: path.write_bytes(b""), lambda path: path.unlink()]
)
def test_an_unreadable_photograph_is_named_in_the_turn_of_its_batch(photographs, change):
    path = photographs.root / photographs.files[20]
    change(path)
    batches = folder_source(photographs).images([request([1]), request([2, 20]), request([3])])
    next(batches)
    with pytest.raises(FormatError, match=rf"^{path} must be a readable image, but it is not: .*; {HINT}$"):
        next(batches)


def test_an_image_of_too_many_pixels_is_named(photographs, monkeypatch):
    monkeypatch.setattr(folder, "PIXEL_LIMIT", 1200)
    one(folder_source(photographs), request([0]))
    with pytest.raises(FormatError, match=rf"001\.jpg must have at most 1200 pixels, but has 30x50; {HINT}$"):
        one(folder_source(photographs), request([1]))


def test_an_unreadable_photograph_gives_way_to_another_of_its_class_if_asked(plain):
    spoil(plain, 2, 14, 15)
    index = [2, 3, 14, 15, 14, 30]
    found = [one(folder_source(plain, workers=w, skip_unreadable=True), request(index, 7)) for w in (1, 4)]
    assert torch.equal(*found)
    pairs = colours(found[0])
    assert [label for label, _ in pairs] == [0, 0, 1, 1, 1, 2]  # as the labels say
    assert {(0, 2), (1, 2), (1, 3)}.isdisjoint(pairs)
    assert (pairs[1], pairs[5]) == ((0, 3), (2, 6))


def test_readable_photographs_are_the_same_whether_others_are_skipped(plain, photographs):
    for images in (plain, photographs):
        found = [one(folder_source(images, skip_unreadable=skip), request(range(36))) for skip in (False, True)]
        assert torch.equal(*found)


def test_skipped_photographs_are_told_once_each_when_their_batch_comes(plain):
    spoil(plain, 2, 14)
    made = folder_source(plain, skip_unreadable=True)
    seen = [made.skipped for _ in made.images([request([1]), request([14]), request([14, 0]), request([2, 14])])]
    assert [set(names) >= {"bee/02.png"} for names in seen] == [False, True, True, True]
    assert made.skipped == ("ape/02.png", "bee/02.png")


@pytest.mark.parametrize(("classes", "others"), [(range(12), 10), (range(3), 2), (range(1), 0)], ids=str)
def test_a_class_of_unreadable_photographs_ends_the_run(plain, classes, others):
    spoil(plain, *classes)
    images = plain.take(np.array([*classes, 20, 30]))
    with pytest.raises(FormatError, match=rf"ape/00\.png must be a readable image, .* it is not and {others} others are not; see"):
        one(folder_source(images, skip_unreadable=True), request([0]))


@pytest.mark.parametrize("options", [{"workers": 0}, {"ahead": -1}, {"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.5, 0.4)}], ids=str)
def test_a_source_that_cannot_work_is_refused(plain, options):
    with pytest.raises(UsageError, match="at least 1 worker, 0 batches ahead and crops of a share in"):
        FolderSource(plain, **{"flip": True, "workers": 1, **options})


def test_images_without_classes_train_nothing_but_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded((9, 9)))
    images = FolderSet(tmp_path, ("a.png",), np.array([-1]))
    assert one(folder_source(images), request([0])).shape == (1, 16, 16, 3)
