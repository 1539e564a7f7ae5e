"""Files whose bytes were damaged: cut, flipped, zeroed, replaced by another kind of file or by no file at all."""

import pytest
from damage import DOORS, FATAL, flip, recoded, strangers, swapped

TEXT = ("lookup", "table", "card", "pairs", "accuracies", "record", "config")


@pytest.mark.parametrize("kind", DOORS)
def test_an_undamaged_file_is_taken(refuses, kind):
    assert refuses(DOORS[kind][1], codes=(0,)) is None


@pytest.mark.parametrize("damage", FATAL)
@pytest.mark.parametrize("kind", DOORS)
def test_a_broken_file_is_refused(refuses, desk, kind, damage):
    name, command = DOORS[kind]
    FATAL[damage](desk / name)
    harmless = (("accuracies", "cut in the middle"), ("subnet", "a folder"))  # fewer lines are a CSV; a folder stands for what is in it
    refuses(command, codes=(0, 1) if (kind, damage) in harmless else (1,))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", DOORS)
def test_a_flipped_bit_is_refused_or_harmless(refuses, desk, kind, seed):
    name, command = DOORS[kind]
    flip(seed)(desk / name)
    refuses(command, codes=(0, 1))


@pytest.mark.parametrize(("kind", "other"), [(kind, other) for kind in DOORS for other in strangers(kind)])
def test_a_file_of_another_kind_is_refused(refuses, desk, kind, other):
    name, command = DOORS[kind]
    swapped(desk / DOORS[other][0])(desk / name)
    refuses(command, codes=(0,) if (kind, other) == ("record", "card") else (1,))  # `inspect` shows any JSON object


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("kind", TEXT)
def test_a_text_in_another_encoding_is_refused(refuses, desk, kind, encoding):
    name, command = DOORS[kind]
    recoded(encoding)(desk / name)
    refuses(command)
