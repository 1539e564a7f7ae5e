"""Files that say where a search stands: what is written is read, and files from outside are hostile."""

import io
import json
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
from problems import MIDDLE, budget, problem_of

from ofasearch.errors import FormatError, NotFoundError, UsageError, WriteError
from ofasearch.search import state as state_file
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Generation
from ofasearch.search.state import DTYPES, load_state, save_state

SHORT = EvolutionConfig(population=12, generations=3, keep=5)


def search(rng=None, start=None):
    return evolve(problem_of(MIDDLE, 1, (budget(MIDDLE, "macs", 0.3),)), SHORT, rng or np.random.default_rng(0), start)


@pytest.fixture(scope="module")
def state():
    """That of a search that has learned what to expect; no array is empty."""
    _, second, *_ = search()
    return replace(second.state, measured=second.state.F)


@pytest.fixture
def path(tmp_path, state):
    """A good file."""
    save_state(tmp_path / "search.state", state)
    return tmp_path / "search.state"


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **options)
    return stream.getvalue()


def header(text):
    """An array file with this header and no contents."""
    content = text.encode()
    content += b" " * (-(len(content) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


def with_meta(path, **changes):
    """The file with another description; None leaves an entry out."""
    contents = members(path)
    meta = json.loads(np.load(io.BytesIO(contents["meta.npy"])).tobytes()) | changes
    text = json.dumps({key: value for key, value in meta.items() if value is not None})
    write(path, contents | {"meta.npy": npy(np.frombuffer(text.encode(), dtype=np.uint8))})


def refused(path, reason=""):
    with pytest.raises(FormatError, match=rf"search.state must be a search state of ofasearch, but it cannot be read: .*{reason}"):
        load_state(path)


# -- what is written is read -----------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was(path, state):
    read = load_state(path)
    for field in fields(state):
        written, found = getattr(state, field.name), getattr(read, field.name)
        if field.name in DTYPES:
            assert (found.dtype, found.shape, found.tobytes()) == (written.dtype, written.shape, written.tobytes())
        else:
            assert found == written
    assert read.rng().random() == state.rng().random()


def test_the_same_state_makes_the_same_file(path, state, tmp_path):
    save_state(tmp_path / "again", state)
    assert members(path) == members(tmp_path / "again")


def test_a_state_that_cannot_be_written_leaves_the_former_one(path, state, tmp_path):
    before = path.read_bytes()
    with pytest.raises(WriteError, match="must be writable"):
        save_state(path / "below-a-file", state)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_told(tmp_path):
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError, match="must be an existing search state"):
            load_state(place)


@pytest.mark.parametrize("generator", [np.random.PCG64, np.random.PCG64DXSM])
def test_both_of_numpys_usual_generators_go_on(generator, tmp_path):
    first, *rest = search(np.random.Generator(generator(5)))
    save_state(tmp_path / "state", first.state)
    assert [g.F.tobytes() for g in search(start=load_state(tmp_path / "state"))] == [g.F.tobytes() for g in rest]


def test_a_generator_that_cannot_go_on_is_refused_at_the_start():
    with pytest.raises(UsageError, match="must draw from PCG64 or PCG64DXSM, but got MT19937"):
        next(search(np.random.Generator(np.random.MT19937(0))))


def test_a_generation_that_no_search_made_has_no_state(state):
    with pytest.raises(UsageError, match="must come from a search to be continued"):
        _ = Generation(0, state.codes, state.F, 0).state


# -- files from outside ----------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(path):
    content = path.read_bytes()
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        refused(path)


def test_a_file_with_a_flipped_byte_is_refused_or_reads_as_the_same(path, state):
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(content), size=400).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 0x20
        path.write_bytes(flipped)
        try:
            read = load_state(path)
        except FormatError:
            continue
        assert all(np.array_equal(getattr(read, name), getattr(state, name)) for name in DTYPES)


def test_no_pickle_is_run(path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    objects = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
    for name in ("codes.npy", "meta.npy"):
        write(path, members(path) | {name: objects})
        refused(path, "header")


@pytest.mark.parametrize("name", [*DTYPES, "meta"])
def test_an_array_too_few_is_refused(path, name):
    contents = members(path)
    del contents[f"{name}.npy"]
    write(path, contents)
    refused(path, "other arrays")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_too_many_is_refused(path):
    contents = members(path)
    for name in ("more.npy", "../codes.npy", "codes.npy"):
        write(path, contents)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, contents["codes.npy"])
        refused(path, "other arrays")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_compressed_arrays_are_refused_unread(path, compression):
    """A few bytes could become more than the memory holds."""
    write(path, members(path) | {"codes.npy": bytes(10**7)}, compression)
    refused(path, "compressed or too large")


def test_a_file_beyond_the_limit_is_refused_unread(path, monkeypatch):
    monkeypatch.setattr(state_file, "LIMIT", path.stat().st_size - 1)
    refused(path, "larger than")


HEADERS = {
    "long": "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 26), }",
    "endless": "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 4000 + ", 26), }",
    "negative": "{'descr': '<i8', 'fortran_order': False, 'shape': (-1, -1), }",
    "wide and empty": "{'descr': '<i8', 'fortran_order': False, 'shape': (0, 9223372036854775807), }",
    "empty and wide": "{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775807, 0), }",
    "without bytes": "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000, 26), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (0, 26), }",
    "code": "{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (0, 26), }",
    "nested": "(" * 9000,
    "signs": "-" * 9000 + "1",
    "no header": "",
    "a list": "[]",
    "a type of types": "{'descr': [('a', '<i8', (1000000, 1000000))], 'fortran_order': False, 'shape': (0, 26), }",
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("name", ["codes", "meta"])
def test_headers_that_lie_are_refused(path, text, name):
    write(path, members(path) | {f"{name}.npy": header(text)})
    refused(path)


@pytest.mark.parametrize("name", DTYPES)
def test_arrays_of_another_type_or_form_are_refused(path, state, name):
    array = getattr(state, name)
    kinds = ["<i4", ">i8", "<u8", "<f8", "|S8", "<c16"] if array.dtype == np.int64 else ["<f2", ">f8", "<i8", "<U4", "<M8[s]"]
    for other in [*(array.astype(kind) for kind in kinds), array[None], array.ravel()[0]]:
        write(path, members(path) | {f"{name}.npy": npy(other)})
        refused(path, f"({name} must have . dimensions of |header)")


def test_arrays_of_another_version_are_refused(path, state):
    for version in ((2, 0), (3, 0)):
        write(path, members(path) | {"codes.npy": npy(state.codes, version=version)})
        refused(path, "header")


@pytest.mark.parametrize("name", ["F", "values", "share", "screen"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(path, state, name, value):
    array = getattr(state, name).copy()
    array.flat[0] = value
    save_state(path, replace(state, **{name: array}))
    refused(path, "not finite")


@pytest.mark.parametrize("pair", [("codes", "F"), ("archive", "values")])
def test_networks_without_objectives_are_refused(path, state, pair):
    for name in pair:
        save_state(path, replace(state, **{name: getattr(state, name)[1:]}))
        refused(path, "differ in number")


def test_a_column_major_array_is_read_as_it_was_meant(path, state):
    write(path, members(path) | {"codes.npy": npy(np.asfortranarray(state.codes))})
    read = load_state(path).codes
    assert np.array_equal(read, state.codes)
    assert read.flags.c_contiguous


# -- its description -------------------------------------------------------------------------------------------

BAD_META = [
    {"format": "ofasearch-search-0"},
    {"format": None},
    {"number": None},
    {"number": -1},
    {"number": 1.0},
    {"number": True},
    {"number": "1"},
    {"evaluations": 2**53},
    {"evaluations": [1]},
    {"identity": []},
    {"identity": "evolution"},
    {"generator": []},
    {"generator": {}},
    {"more": 1},
    {"codes": [[1]]},
]


@pytest.mark.parametrize("changes", BAD_META, ids=str)
def test_a_description_that_is_none_is_refused(path, changes):
    with_meta(path, **changes)
    refused(path)


BAD_GENERATORS = [
    {"bit_generator": "MT19937"},
    {"bit_generator": ["PCG64"]},
    {"bit_generator": None},
    {"state": None},
    {"state": 1},
    {"state": {}},
    {"state": {"state": -1, "inc": 1}},
    {"state": {"state": 2**128, "inc": 1}},
    {"state": {"state": 1.5, "inc": 1}},
    {"state": {"state": "1", "inc": "1"}},
    {"state": {"state": 10**4000, "inc": 1}},
    {"has_uint32": 2**80},
    {"has_uint32": "yes"},
    {"uinteger": -1},
    {"uinteger": []},
]


@pytest.mark.parametrize("changes", BAD_GENERATORS, ids=lambda changes: str(changes)[:60])
def test_a_generator_that_is_none_is_refused(path, state, changes):
    with_meta(path, generator={**state.generator, **changes})
    refused(path)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"7", b'{"format": NaN}', b"[" * 100_000, b'{"a":' * 100_000])
def test_a_description_that_is_no_json_is_refused(path, text):
    write(path, members(path) | {"meta.npy": npy(np.frombuffer(text, dtype=np.uint8))})
    refused(path)


def test_a_description_of_other_bytes_is_refused(path):
    for array in (np.zeros((2, 2), dtype=np.uint8), np.zeros(4, dtype=np.int8), np.zeros(0)):
        write(path, members(path) | {"meta.npy": npy(array)})
        refused(path, "description is no text")
