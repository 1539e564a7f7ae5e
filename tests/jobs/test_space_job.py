"""What is told of a design space."""

from pathlib import Path

import pytest

from ofasearch.errors import FormatError, NotFoundError
from ofasearch.jobs.space import show
from ofasearch.space.costs import costs
from ofasearch.space.families import DESIGNS, get_space
from ofasearch.space.own import remember

CAMERA = Path(__file__).parents[2] / "examples" / "spaces" / "camera.json"


@pytest.mark.parametrize("name", DESIGNS)
def test_a_space_is_told_with_its_size_and_its_ends(name):
    space, found = get_space(name), show(name)
    assert (found["space"], found["size"]) == (name, str(space.size))
    largest = found["networks"][f"largest at {space.resolutions[-1]}"]
    assert largest["macs"] == costs(space.blueprint(space.largest())).macs
    stages = [stage["stage"] for stage in found["stages"]]
    assert stages == sorted(stages, key=lambda s: (s != "stem", s))
    assert all(stage["channels"] and stage["kernels"] for stage in found["stages"])


def test_choices_are_told_stage_by_stage():
    stem, *stages = show("ofa-resnet50")["stages"]
    assert (stem["channels"], stem["depths"], stem["expands"]) == ([40, 48, 64], [0, 2], None)
    assert [stage["channels"] for stage in stages] == [[168, 208, 256], [336, 408, 512], [664, 816, 1024], [1328, 1640, 2048]]
    assert stages[0]["expands"] == [0.2, 0.25, 0.35]
    assert [stage["kernels"] for stage in show("compofa-mbv3-w1.0")["stages"]] == [[3], [5], [3], [3], [5]]
    assert show("compofa-proxyless-w1.3")["stages"][-1] | {"channels": 0} == {
        "stage": "s6", "channels": 0, "stride": 1, "activation": "relu6", "squeeze_excite": False,
        "depths": [1], "kernels": [3], "expands": [3, 4, 6], "widths": None,
    }  # fmt: skip


def test_a_users_own_space_is_told_with_its_design_and_its_defaults():
    found = show(str(CAMERA))
    assert found["space"].startswith("camera-")
    assert found["design"]["eps"] == 1e-5  # which the file leaves out
    assert remember(found["design"]).name == found["space"]  # what is told is the same space
    assert show(found["space"]) == found


def test_what_is_no_space_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="space must be one of"):
        show("nowhere")
    (tmp_path / "s.json").write_text("[]")
    with pytest.raises(FormatError, match="must be the JSON of a design space, but it must be an object"):
        show(str(tmp_path / "s.json"))
