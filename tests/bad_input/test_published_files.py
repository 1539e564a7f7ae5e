"""Published networks that lie: configs with values of any type and size, and weights that are another network's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from damage import DESIGN
from publish import publish, their_state

from ofasearch.space.families import get_space
from ofasearch.space.mobile import mobile_space

SPACE = mobile_space(DESIGN)
BLUEPRINT = SPACE.blueprint(SPACE.largest())
COST, EXPORT = "space cost published --json", "export published -o former.onnx --json"
ODD = (None, True, -1, 0, 2.5, 10**6, 10**400, "many", "", "\ud800\x1b[2J\n", [], [[1]], {}, {"name": "ZeroLayer"})


def places(value, path=()):
    """The path of every entry of a config."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


def changed(config, path, value):
    *parents, last = path
    target = config
    for key in parents:
        target = target[key]
    target[last] = value


@pytest.fixture(params=["mobile", "resnet"])
def folder(request, desk):
    """A published network, of the forms in turn."""
    if request.param == "mobile":
        return desk / "published"
    space = get_space("ofa-resnet50", classes=3).with_resolutions([32])
    for file in (desk / "published").iterdir():
        file.unlink()
    (desk / "published").rmdir()
    return publish(desk / "published", space.blueprint(space.smallest()), weights=False)


def test_any_entry_may_be_anything(refuses, folder):
    """Seeded: every entry of the config meets one odd value; it is refused in one sentence, or makes no difference."""
    text = (folder / "net.config").read_text()
    every = list(places(json.loads(text)))
    rng, taken = np.random.default_rng(0), 0
    for index in rng.permutation(len(every))[:60]:
        config = json.loads(text)
        value = ODD[int(rng.integers(len(ODD)))]
        changed(config, every[index], value)
        (folder / "net.config").write_text(json.dumps(config))
        taken += refuses(COST, codes=(0, 1)) is None
    assert 0 < taken < 40  # dropout_rate, momentum and the like say nothing of what the network computes


HUGE = {
    "channels": (("blocks", 1, "conv", "mid_channels"), 99_999),
    "a list of lists": (("blocks",), [[[]] * 100] * 900),
    "many blocks": (("blocks",), [{}] * 5000),
    "deep nesting": (("classifier",), json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("case", HUGE)
def test_huge_configs_are_refused(refuses, desk, case):
    config = json.loads((desk / "published" / "net.config").read_text())
    changed(config, *HUGE[case])
    (desk / "published" / "net.config").write_text(json.dumps(config))
    refuses(COST, codes=(0, 1) if case == "channels" else (1,))
    refuses(EXPORT)


def test_a_network_that_no_memory_holds_is_refused(refuses, desk):
    """Each layer for itself would pass: what a file of some kilobytes asks for is added up before anything is made."""
    config = json.loads((desk / "published" / "net.config").read_text())
    block = config["blocks"][1] | {"shortcut": None}
    wide = dict(block["conv"], in_channels=99_999, out_channels=99_999, mid_channels=100_000, expand_ratio=2, stride=1)
    first = dict(wide, in_channels=block["conv"]["in_channels"])
    last = dict(wide, out_channels=config["final_expand_layer"]["in_channels"])
    config["blocks"] = [block | {"conv": conv} for conv in (first, *[wide] * 900, last)]
    config["blocks"][0]["conv"]["in_channels"] = config["first_conv"]["out_channels"]
    (desk / "published" / "net.config").write_text(json.dumps(config))
    assert "1,000,000,000 parameters" in refuses(COST)
    assert "1,000,000,000 parameters" in refuses("explain published --target cpu --json")


# -- weights ---------------------------------------------------------------------------------------------------


def rename(state, old, new):
    state[new] = state.pop(old)


LEAF = "blocks.2.conv.depth_conv.conv.weight"
CHANGES = {
    "a missing key": (lambda s: s.pop(LEAF), f"it lacks {LEAF}"),
    "an unknown key": (lambda s: s.update(extra=torch.zeros(3)), "it has the unknown extra"),
    "another name": (lambda s: rename(s, LEAF, f"{LEAF}s"), f"it lacks {LEAF}, it has the unknown {LEAF}s"),
    "another shape": (lambda s: s.update({LEAF: torch.zeros(3, 1, 3, 3)}), f"wrong shape of {LEAF} (3x1x3x3 for"),
    "a scalar": (lambda s: s.update({"classifier.linear.bias": torch.tensor(0.0)}), "classifier.linear.bias (a scalar for 3)"),
    "NaN": (lambda s: s["classifier.linear.bias"].fill_(float("nan")), "'classifier.linear.bias' has NaN"),
    "beyond float32": (
        lambda s: s.update({"classifier.linear.bias": torch.full((3,), 1e300, dtype=torch.float64)}),
        "NaN or a number beyond",
    ),
    "a negative variance": (lambda s: s["first_conv.bn.running_var"].fill_(-1), "'first_conv.bn.running_var' has a negative one"),
    "integers": (lambda s: s.update({LEAF: torch.zeros(3, dtype=torch.int64)}), "dense floating-point"),
    "sparse": (lambda s: s.update({LEAF: torch.zeros(3, 3).to_sparse()}), "damaged or holds code"),
    "stretched": (lambda s: s.update({LEAF: torch.zeros(1).expand(10**12)}), "claims more than it holds"),
    "a number": (lambda s: s.update({LEAF: 3}), "named tensors only"),
    "a control character": (lambda s: s.update({"\x1b[2J\n": torch.zeros(1)}), "unknown"),
    "half precision": (lambda s: s.update({k: v.half() for k, v in s.items() if v.is_floating_point()}), None),
    "parameters": (lambda s: s.update({k: torch.nn.Parameter(v) for k, v in s.items() if v.is_floating_point()}), None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_weights_must_be_those_of_the_layers(refuses, desk, case):
    change, why = CHANGES[case]
    state = their_state(BLUEPRINT)
    change(state)
    torch.save({"state_dict": state}, desk / "published" / "init")
    if why is None:
        assert refuses(EXPORT, codes=(0,)) is None
    else:
        assert why in refuses(EXPORT)


def test_weights_of_another_network_are_refused(refuses, desk):
    other = replace(DESIGN, stem=16, classes=4).build()
    torch.save({"state_dict": their_state(other.blueprint(other.largest()))}, desk / "published" / "init")
    sentence = refuses(EXPORT)
    assert "published/init must hold exactly the weights of the net.config beside it" in sentence
    assert "first_conv.conv.weight (16x3x3x3 for 8x3x3x3)" in sentence


@pytest.mark.parametrize("content", [[1], {"state_dict": [1]}, {"state_dict": None}, {}, {3: torch.zeros(1)}], ids=str)
def test_a_file_that_is_no_state_dict_is_refused(refuses, desk, content):
    torch.save(content, desk / "published" / "init")
    refuses(EXPORT)


def test_a_config_alone_has_costs_and_cannot_be_run(refuses, desk):
    (desk / "published" / "init").unlink()
    assert refuses(COST, codes=(0,)) is None
    for command in (EXPORT, "eval published --data images.parquet --json", "flips published subnet.pt --data images.parquet --json"):
        sentence = refuses(command)
        assert (
            sentence == "published must hold the weights of its net.config, as init (once-for-all's) or subnet.pt (ours), but has neither"
        )
