"""Users' own spaces: a file is read as it says, named after its content, and refused where it contradicts itself."""

import copy
import json
from pathlib import Path

import pytest

from ofasearch.errors import FormatError, NotFoundError
from ofasearch.space.families import find_design, get_space, part_name
from ofasearch.space.own import design_record, named_space, read_design, remember, space_card

EXAMPLES = Path(__file__).parents[2] / "examples" / "spaces"
CAMERA, RESNET = (json.loads((EXAMPLES / name).read_text()) for name in ("camera.json", "small-resnet.json"))


def changed(record, path, value):
    """A copy with one entry changed, or taken away by `...`."""
    found = copy.deepcopy(record)
    place = found
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return found


@pytest.mark.parametrize("name", ["camera.json", "small-resnet.json"])
def test_a_design_round_trips_and_keeps_its_name(name):
    design = read_design(EXAMPLES / name)
    again = remember(json.loads(json.dumps(design_record(design))))
    assert again == design
    assert get_space(design.name).genes == get_space(str(EXAMPLES / name)).genes


def test_another_content_has_another_name_and_order_means_nothing():
    name = remember(CAMERA).name
    assert name.startswith("camera-")
    assert remember(dict(reversed(CAMERA.items()))).name == name
    assert remember(CAMERA | {"eps": 1e-5}).name == name  # the default
    assert remember(CAMERA | {"classes": 11}).name != name


def test_choices_mean_what_the_file_says():
    space = get_space(str(EXAMPLES / "camera.json"))
    first, last = (space.blueprint(row) for row in (space.smallest(), space.largest()))
    assert [spec.c_out for spec in first if spec.kind == "mbconv"] == [16, 24, 40, 80, 96]
    assert [spec.kernel for spec in last if spec.slot.startswith("s3.")] == [7, 7, 7]
    assert [spec.c_mid for spec in last if spec.slot.startswith("s4.")] == [480]  # six times 80
    assert space.arch(space.largest()).id == f"{space.name}@r96-35c5c5c-35c5c5c-37c7c7c-156"


def test_a_part_of_an_own_space_is_named_and_known():
    base = read_design(EXAMPLES / "small-resnet.json").name
    name = part_name(base, (1,), (0.5,), (1,))
    assert name == f"{base}-d1-eb-w1"
    assert get_space(name).size == 1
    assert space_card(name)["design"]["name"] == "small-resnet"
    assert find_design(name).parent == base


def test_a_card_carries_the_design_of_an_own_space_and_of_no_other():
    name = remember(RESNET).name
    assert space_card("ofa-resnet50") == {"space": "ofa-resnet50"}
    card = json.loads(json.dumps(space_card(name)))
    assert named_space(card) == name
    assert card["design"]["kind"] == "resnet"
    with pytest.raises(FormatError, match="format must be"):
        named_space({"space": name, "design": {"format": "other"}})


WRONG = {
    "no object": ([], "it must be an object"),
    "other format": (changed(CAMERA, ["format"], "x"), "format must be ofasearch-space-1"),
    "other kind": (changed(CAMERA, ["kind"], "vit"), "kind must be mobilenet or resnet, but is vit"),
    "name": (changed(CAMERA, ["name"], "../x"), "name must be up to 40 small letters"),
    "missing": (changed(CAMERA, ["classes"], ...), "it must have 'classes'"),
    "unknown": (CAMERA | {"width": 2}, "it must not have 'width', which means nothing there"),
    "unknown in a stage": (changed(CAMERA, ["stages", 0, "se"], True), "stage 1 must not have 'se'"),
    "no stages": (changed(CAMERA, ["stages"], []), "stages must be a list of 1 to 12"),
    "classes": (changed(CAMERA, ["classes"], 0), "classes of it must be a whole number from 1"),
    "a true number": (changed(CAMERA, ["classes"], True), "classes of it must be a whole number"),
    "resolutions": (changed(CAMERA, ["resolutions"], [4]), "resolutions must be 1 to 256 sizes from 8"),
    "no resolutions": (changed(CAMERA, ["resolutions"], []), "resolutions must be 1 to 256 sizes"),
    "descending": (changed(CAMERA, ["depths"], [2, 1]), "depths of it must be ascending whole numbers"),
    "twice": (changed(CAMERA, ["expands"], [2, 2]), "expands of it must be ascending"),
    "even kernel": (changed(CAMERA, ["kernels"], [4]), "kernels of it must be ascending odd numbers"),
    "kernel gap": (changed(CAMERA, ["kernels"], [3, 7]), "kernels of stage 1 must be neighbouring odd numbers, but are .3, 7."),
    "no expansion": (changed(CAMERA, ["expands"], [1, 3]), r"expands of stage 1 must widen its (16|24) channels differently"),
    "same channels": (changed(CAMERA, ["expands"], [3, 3.01]), "expands of stage 1 must widen its"),
    "activation": (changed(CAMERA, ["stages", 0, "activation"], "gelu"), "activation of stage 1 must be one of none, relu, relu6, h_swish"),
    "flag": (changed(CAMERA, ["stages", 1, "squeeze_excite"], 1), "squeeze_excite of stage 2 must be true or false, but is 1"),
    "huge": (changed(CAMERA, ["stages", 0, "channels"], 10**9), "channels of stage 1 must be a whole number from 1 to 8,192"),
    "coupled": (CAMERA | {"coupled": True, "expands": [2, 6]}, "coupled stage 1 must have as many expands as depths, but has 2 and 3"),
    "head": (changed(CAMERA, ["head", "expand"], 0), "expand of head must be null or a whole number"),
    "eps": (CAMERA | {"eps": 0}, "eps must be a number from"),
    "same widths": (changed(RESNET, ["widths"], [0.99, 1.0]), "widths and expands must give .* different channels"),
    "same middle": (changed(RESNET, ["expands"], [0.25, 0.26]), "widths and expands must give .* different channels"),
    "no base depth": (changed(RESNET, ["depths"], [1, 2]), "depths of a resnet must begin with 0"),
    "base": (changed(RESNET, ["stages", 0, "base"], 0), "base of stage 1 must be a whole number from 1"),
    "too large": (changed(RESNET, ["stages"], RESNET["stages"] * 5), "stages must be a list of 1 to 12"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_design_that_contradicts_itself_is_refused_in_a_sentence(tmp_path, name):
    record, message = WRONG[name]
    (tmp_path / "s.json").write_text(json.dumps(record))
    with pytest.raises(FormatError, match=f"s.json must be the JSON of a design space, but .*{message}"):
        get_space(str(tmp_path / "s.json"))


def test_files_that_are_not_there_or_no_json_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="none"):
        get_space(str(tmp_path / "s.json"))
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(FormatError):
        get_space(str(tmp_path / "s.json"))


def test_an_own_name_that_was_never_read_is_unknown():
    with pytest.raises(NotFoundError, match=r"or a \.json file, but got 'camera-00000000'"):
        get_space("camera-00000000")
