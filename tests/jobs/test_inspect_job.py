"""`inspect`: all kinds of files and folders tell what they are, those of other tools too; hostile ones are one sentence."""

import json
import shutil
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import ofasearch
from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.errors import FormatError, NotFoundError, OfaSearchError
from ofasearch.jobs.export import export
from ofasearch.jobs.inspect import inspect
from ofasearch.jobs.subnet import evaluate
from ofasearch.latency.table import LatencyTable, Row, TableKey, save_table
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick):
    """The folder of one run of find; read only."""
    out = tmp_path_factory.mktemp("find")
    ofasearch.find(macs=6e6, out=out)
    return out


@pytest.fixture(scope="module")
def answer(folder):
    return json.loads((folder / "result.json").read_text())


def model_of(nodes, inputs, outputs, tensors=(), **options):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(tensors))
    opsets = options.pop("opsets", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


def value(name, kind=TensorProto.FLOAT, shape=("N", 3, "height", "width")):
    return helper.make_tensor_value_info(name, kind, shape)


# -- our ONNX files --------------------------------------------------------------------------------------------


def test_an_exported_file_tells_names_shapes_types_and_costs(tmp_path, folder, answer):
    export(str(folder / "subnet.pt"), out=tmp_path / "m.onnx", opset=13, embed_preprocessing=True, batch=4, input_name="image")
    told = inspect(tmp_path / "m.onnx")
    assert told["input"] == {"name": "image", "shape": [4, 32, 32, 3], "dtype": "uint8"}
    assert told["output"] == {"name": "logits", "shape": [4, 10], "dtype": "float32"}
    assert (told["opset"], told["ir_version"], told["made_by"], told["kind"]) == (13, 7, "ofasearch", "onnx")
    assert (told["quantised"], told["graph_checked"], told["calibrated"]) == (False, True, "shipped statistics")
    for key in ("macs", "params", "activation_bytes", "arch_id", "space"):
        assert told[key] == answer[key]
    assert told["size_bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert told["operators"]["Cast"] == 1
    folded = told["params"] - told["weights"]  # two numbers of each batch norm became one bias, pixels need six
    assert 0 < folded < 0.02 * told["params"]


def test_a_file_that_lies_about_its_network_is_not_believed(tmp_path, folder, shipped):
    model = onnx.load(folder / "subnet.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    space = shipped.weights.space
    helper.set_model_props(
        model, said | {"arch_id": space.arch(space.largest()).id, "kind": "other", "opset": "1", "graph_checked": "true"}
    )
    onnx.save(model, tmp_path / "m.onnx")
    told = inspect(tmp_path / "m.onnx")
    assert (told["graph_checked"], told["kind"], told["opset"]) == (False, "onnx", 17)
    assert "activation_bytes" not in told


# -- ONNX files of other tools ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchs_own_file_tells_what_can_be_known(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its own dependencies
        program = torch.onnx.export(network.eval(), (torch.zeros(1, 3, 8, 8),), dynamo=True, verbose=False)
    (tmp_path / "m.onnx").write_bytes(program.model_proto.SerializeToString())
    told = inspect(tmp_path / "m.onnx")
    assert told["made_by"].startswith("pytorch")
    assert told["input"]["shape"] == [1, 3, 8, 8]
    assert told["output"]["shape"] == [1, 5]
    assert told["operators"]["Conv"] == told["operators"]["Relu"] == 1
    assert told["weights"] >= sum(p.numel() for p in network.parameters())
    assert "graph_checked" not in told


def test_any_graph_is_told_without_being_run(tmp_path):
    external = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 5], data_location=TensorProto.EXTERNAL)
    external.external_data.add(key="location", value="../weights.bin")
    branch = helper.make_graph([helper.make_node("Sqrt", ["a"], ["r"])], "b", [], [value("r")])
    model = model_of(
        [
            helper.make_node("Own", ["a", "b"], ["c"], domain="custom"),
            helper.make_node("If", ["flag"], ["d"], then_branch=branch, else_branch=branch),
            helper.make_node("Constant", [], ["e"], value=numpy_helper.from_array(np.zeros((2, 3), np.float32))),
            helper.make_node("QuantizeLinear", ["c", "s"], ["q"]),
        ],
        [value("a"), value("b", TensorProto.INT64, ()), value("flag", TensorProto.BOOL, [])],
        [value("c"), value("q", TensorProto.UINT8), helper.make_value_info("d", helper.make_sequence_type_proto(value("x").type))],
        [external],
        producer_name="tool",
        opsets=[helper.make_opsetid("", 17), helper.make_opsetid("custom", 3)],
    )
    helper.set_model_props(model, {"note": "grün", "numbers": "[1, 2]"})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert inspect(tmp_path / "m.onnx") == {
        "kind": "onnx",
        "metadata": {"note": "grün", "numbers": [1, 2]},
        "inputs": [
            {"name": "a", "shape": ["N", 3, "height", "width"], "dtype": "float32"},
            {"name": "b", "shape": [], "dtype": "int64"},
            {"name": "flag", "shape": [], "dtype": "bool"},
        ],
        "outputs": [
            {"name": "c", "shape": ["N", 3, "height", "width"], "dtype": "float32"},
            {"name": "q", "shape": ["N", 3, "height", "width"], "dtype": "uint8"},
            {"name": "d", "dtype": "no tensor"},
        ],
        "opset": 17,
        "other_opsets": {"custom": 3},
        "ir_version": 8,
        "operators": {"Sqrt": 2, "Own": 1, "If": 1, "Constant": 1, "QuantizeLinear": 1},
        "weights": 15 + 6,
        "quantised": True,
        "external_data": ["../weights.bin"],
        "made_by": "tool",
        "size_bytes": (tmp_path / "m.onnx").stat().st_size,
    }


def test_old_files_that_list_weights_as_inputs_have_one_input(tmp_path):
    weights = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [value("x"), value("w", shape=[3])], [value("y")], [weights])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert inspect(tmp_path / "m.onnx")["input"]["name"] == "x"


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04", bytes(1000), b'{"kind": "onnx"}'])
def test_what_is_no_onnx_file_is_one_sentence(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.onnx must be an ONNX file, but"):
        inspect(tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_onnx_file_is_one_sentence(tmp_path, folder, share):
    content = (folder / "subnet.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(FormatError, match=r"m\.onnx must be an ONNX file, but it cannot be read: it is cut off"):
        inspect(tmp_path / "m.onnx")


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_is_told_or_refused(tmp_path, folder, seed, capsys):
    rng, content = np.random.default_rng(seed), bytearray((folder / "subnet.onnx").read_bytes())
    spot = int(rng.integers(20_000)) if seed % 2 else len(content) - 1 - int(rng.integers(3000))  # nodes, or metadata
    content[spot] ^= 1 << int(rng.integers(8))
    (tmp_path / "m.onnx").write_bytes(content)
    code = run(["inspect", str(tmp_path / "m.onnx"), "--json"])
    out, err = capsys.readouterr()
    assert (code, err == "", out == "") in ((0, True, False), (1, False, True))
    if code == 0:
        json.loads(out)


def test_sizes_that_no_file_holds_are_not_believed(tmp_path):
    lie = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**62, 2**62])
    odd = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[-1, 5])
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")], [lie, odd])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert inspect(tmp_path / "m.onnx")["weights"] == 2**124  # what it says; nothing of that size is made


# -- everything else -------------------------------------------------------------------------------------------


def test_a_run_tells_its_answer_from_the_folder(folder, answer):
    told = inspect(folder)
    assert told["kind"] == "run"
    assert told["folder"] == sorted(path.name for path in folder.iterdir())
    assert {key: told[key] for key in answer} == answer


def test_an_unfinished_run_tells_what_was_asked(tmp_path, folder):
    shutil.copy(folder / "run.json", tmp_path / "run.json")
    told = inspect(tmp_path)
    assert (told["kind"], told["folder"]) == ("unfinished run", ["run.json"])
    assert told["asked"]["top_k"] == 5


def test_a_net_config_tells_its_network(tmp_path, folder, answer):
    for name in ("net.config", "run.config"):
        shutil.copy(folder / name, tmp_path / name)
    told = inspect(tmp_path / "net.config")
    assert (told["kind"], told["resolution"], told["classes"]) == ("net.config", 32, 10)
    assert {key: told[key] for key in ("macs", "params", "activation_bytes")} == {
        key: answer[key] for key in ("macs", "params", "activation_bytes")
    }
    assert "weights" not in told
    (tmp_path / "init").write_bytes(b"")
    assert inspect(tmp_path) == told | {"weights": str(tmp_path / "init"), "folder": ["init", "net.config", "run.config"]}
    assert inspect(tmp_path / "run.config") == {"kind": "run.config", "image_size": 32}


def test_the_published_networks_are_told(shared_data):
    told = inspect(shared_data / "ofa" / "specialized" / "note10_lat-8ms_top1-71.4_finetune-25")
    assert (told["kind"], told["classes"]) == ("net.config", 1000)
    assert told["macs"] > 50e6


def test_a_latency_table_tells_its_card(tmp_path):
    space = get_space("compofa-mbv3-cifar")
    rows = {(0, spec.shape): Row(0.1, 0.2, 30) for spec in space.layers()}
    save_table(tmp_path / "t.csv", LatencyTable("desk", TableKey(device="desk", runtime="ort", batch=4), rows, card={"note": "x"}))
    told = inspect(tmp_path / "t.csv")
    assert (told["kind"], told["name"], told["device"], told["batch"]) == ("latency table", "desk", "desk", 4)
    assert told["rows"] == len(rows)
    assert told["card"]["note"] == "x"


def test_predictions_tell_their_splits(tmp_path, folder):
    evaluate(str(folder / "subnet.pt"), data="digits", save_predictions=tmp_path / "p.npz")
    told = inspect(tmp_path / "p.npz")
    assert (told["kind"], told["splits"]) == ("predictions", {"test": {"images": 359, "labels": True}})
    (tmp_path / "p.csv").write_text("1\n2\n3\n")
    with pytest.raises(OfaSearchError, match=r"p\.csv must"):
        inspect(tmp_path / "p.csv")


def test_predictors_of_both_formats_are_told(shared_data):
    told = inspect(shared_data / "ofa" / "acc_predictor.pth")
    assert (told["kind"], told["space"]) == ("predictor", "ofa-mbv3-w1.2")


def test_a_supernet_is_told_by_file_and_folder(shipped):
    folder = zoo._shipped("supernets") / zoo.DEFAULT_SUPERNET
    told = inspect(folder)
    assert (told["kind"], told["digest"]) == ("supernet", shipped.weights.digest)
    assert told == inspect(folder / zoo.WEIGHTS_FILE) | {"folder": told["folder"]}


def test_a_torch_file_of_something_else_is_one_sentence(tmp_path):
    torch.save({"weights": torch.zeros(3), "epoch": 1}, tmp_path / "c.pt")
    with pytest.raises(FormatError, match=r"c\.pt must be a subnet\.pt .* but it is none of these: it holds weights, epoch"):
        inspect(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.csv", "m.npz", "net.config", "result.json", "m.safetensors", "m.txt", "m", "m.tar"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe nonsense", b"[1]", b"{}"])
def test_nonsense_is_one_sentence(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    code = run(["inspect", str(tmp_path / name), "--json"])
    out, err = capsys.readouterr()
    assert code == (0 if (name, content) == ("result.json", b"{}") else 1)
    assert (len(err.splitlines()), out == "") == ((1, True) if code else (0, False))


def test_a_folder_of_nothing_known_is_one_sentence(tmp_path):
    with pytest.raises(FormatError, match="must be the folder of a run, a supernet, a net"):
        inspect(tmp_path)
    with pytest.raises(NotFoundError, match="must be an existing file"):
        inspect(tmp_path / "none")


def test_people_see_one_line_for_each_value(folder, capsys):
    for path, least in ((folder / "subnet.onnx", 15), (folder, 20), (folder / "subnet.pt", 10)):
        assert run(["inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) >= least
        assert max(map(len, lines)) < 1200


def test_costs_are_those_of_the_layers(folder, shipped, answer):
    codes = np.array(shipped.weights.space.parse(answer["arch_id"]).codes, dtype=np.int64)
    assert inspect(folder / "subnet.onnx")["macs"] == costs(shipped.weights.space.blueprint(codes)).macs
