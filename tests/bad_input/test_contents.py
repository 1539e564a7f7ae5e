"""Files that are well-formed and lie: values of a wrong type, claims of huge sizes, numbers without end, names that lead elsewhere."""

import hashlib
import io
import json
import os
import struct
import zlib
from itertools import cycle

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damage import DOORS, encoded, png
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

ODD = {
    "null": None,
    "text": "many",
    "list": [[[1]]],
    "object": {"a": 1},
    "huge": 10**400,
    "infinite": float("inf"),
    "nan": float("nan"),
    "negative": -1,
    "surrogate": "\ud800\x1b[2J\n",
}


def odd_values(*fields, odd=ODD):
    """For every field a seeded third of the odd values; together the fields of a file meet all of them."""
    rng = np.random.default_rng(len(fields))
    chosen = [(field, name) for i, field in enumerate(fields) for name in rng.permutation(list(odd))[i % 3 :: 3]]
    return pytest.mark.parametrize(("field", "value"), [(f, odd[n]) for f, n in chosen], ids=[f"{f}-{n}" for f, n in chosen])


def put(record, field, value):
    """Set a value deep inside a record, `field` being its path with dots."""
    *parents, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in parents:
        record = record[part]
    record[last] = value


def nested(depth):
    return "[" * depth + "]" * depth


# -- safetensors -----------------------------------------------------------------------------------------------


def rewrite(path, change):
    """Change the card and the arrays of one of our safetensors files in place."""
    arrays, content = load_file(path), path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    card = json.loads(header["__metadata__"]["ofasearch"])
    change(card, arrays)
    save_file(arrays, path, metadata={"ofasearch": json.dumps(card)})


@odd_values("classes", "resolutions", "preprocessing.mean", "preprocessing.size")
def test_odd_values_in_a_supernet_card(refuses, desk, field, value):
    rewrite(desk / "net" / "supernet.safetensors", lambda card, arrays: put(card, field, value))
    refuses("inspect net/supernet.safetensors --json", codes=(0, 1) if field == "preprocessing.size" else (1,))


@odd_values("offset", "encoder.0.0", "encoder.0.1", "encoder.0.2", "encoder.0.2.1", "encoder.2", "card.held_out", "certainty")
def test_odd_values_in_a_predictor_card(refuses, desk, field, value):
    rewrite(desk / "predictor.safetensors", lambda card, arrays: put(card, field, value))
    refuses(DOORS["predictor"][1], codes=(0, 1) if field in ("offset", "card.held_out", "certainty") else (1,))


ARRAYS = {
    "float64": lambda a: a.astype(np.float64),
    "int32": lambda a: a.astype(np.int32),
    "nan": lambda a: np.full_like(a, np.nan),
    "negative": lambda a: a - 10,
    "larger": lambda a: np.concatenate([a, a]),
    "no axis": lambda a: a.sum(),
    "too large": lambda a: np.full_like(a, 1e38),
}


@pytest.mark.parametrize("change", ARRAYS)
def test_odd_arrays_in_a_supernet(refuses, desk, change):
    name = "s1.b1.depth.bn.running_var"
    rewrite(desk / "net" / "supernet.safetensors", lambda card, arrays: arrays.update({name: np.asarray(ARRAYS[change](arrays[name]))}))
    refuses(DOORS["supernet"][1])


@pytest.mark.parametrize("name", ["codes", "nodes", "offsets", "statistics", "predictions.validation", "labels.test"])
@pytest.mark.parametrize("change", ["float64", "negative", "larger", "no axis"])
def test_odd_arrays_in_measured_members(refuses, desk, name, change):
    rewrite(desk / "net" / "members.safetensors", lambda card, arrays: arrays.update({name: np.asarray(ARRAYS[change](arrays[name]))}))
    refuses(DOORS["members"][1])


@pytest.mark.parametrize("name", ["validation", "test"])
def test_members_without_a_split(refuses, desk, name):
    rewrite(desk / "net" / "members.safetensors", lambda card, arrays: [arrays.pop(f"{kind}.{name}") for kind in ("predictions", "labels")])
    refuses(DOORS["members"][1])


HEADERS = {
    "terabytes of header": (2**42, b"{}"),
    "terabytes of array": (None, {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "more than all integers": (None, {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 8]}}),
    "a type of its own": (None, {"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}),
    "overlapping arrays": (None, {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}),
    "a name that leads elsewhere": (None, {"../../canary": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "a name with NUL": (None, {"a\0b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "nesting": (None, nested(100_000).encode()),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("kind", ["supernet", "predictor"])
def test_a_lying_header_is_refused(refuses, desk, kind, case):
    size, header = HEADERS[case]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (desk / DOORS[kind][0]).write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + bytes(8))
    refuses(DOORS[kind][1])


@pytest.mark.parametrize("name", ["net/supernet.safetensors", "subnet.pt", "table.csv", "record.json", "pairs.jsonl"])
def test_a_file_of_terabytes_is_refused_unread(refuses, desk, name):
    kind = next(kind for kind, (file, _) in DOORS.items() if file == name)
    os.truncate(desk / name, 2**40)  # sparse: it takes no room
    refuses(DOORS[kind][1])


def test_a_predictor_of_sparse_choices_takes_no_room(refuses, desk):
    def change(card, arrays):
        card["encoder"] = [["ks", 1, list(range(1, 10_001))], ["e", 1, [2]], ["r", 1, [16]]]
        arrays["0.w"] = np.zeros((10_002, 8), dtype=np.float32)

    rewrite(desk / "predictor.safetensors", change)
    refuses(DOORS["predictor"][1])


# -- torch files -----------------------------------------------------------------------------------------------


def laughs():
    """A few hundred bytes that print as many gigabytes."""
    value = ["ha"] * 10
    for _ in range(12):
        value = [value] * 10
    return value


ODD_TORCH = {
    "null": None,
    "text": "many",
    "nan": float("nan"),
    "huge": 10**400,
    "a tensor": torch.zeros(3),
    "stretched": torch.zeros(1).expand(30_000, 20_000),
    "a list of lists": laughs(),
    "bytes": b"1",
    "sparse": torch.zeros(2, 2).to_sparse(),
}


def resave(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())


@odd_values("format", "arch_id", "settings", "blueprint.0.hw_in", "blueprint.1.kernel", "preprocessing", "facts", odd=ODD_TORCH)
def test_odd_values_in_a_subnet(refuses, desk, field, value):
    resave(desk / "subnet.pt", lambda state: put(state, field, value))
    refuses("inspect subnet.pt --json", codes=(0, 1) if (field, type(value)) == ("arch_id", str) else (1,))


LAYERS = {
    "a wide layer": {"c_out": 2**20, "c_in": 2**20},
    "a large input": {"hw_in": 40_000},
    "no stride": {"stride": 0},
    "an even kernel": {"kernel": 4},
    "a sum of unequals": {"skip": True},
    "another kind": {"kind": "attention"},
    "another activation": {"act": "__class__"},
    "no epsilon": {"eps": float("nan")},
    "a name that leads elsewhere": {"slot": "../canary"},
    "no name": {"slot": "."},
}


@pytest.mark.parametrize(
    ("command", "change"),
    list(zip(cycle(["export subnet.pt -o former.onnx --json", "space cost subnet.pt --json"]), LAYERS, strict=False)),
    ids=LAYERS,
)
def test_odd_layers_in_a_subnet(refuses, desk, change, command):
    resave(desk / "subnet.pt", lambda state: state["blueprint"][0].update(LAYERS[change]))
    refuses(command)


@odd_values("step", "seconds", "epoch_losses", "weights", "optimizer.state", "optimizer.param_groups.0.momentum", odd=ODD_TORCH)
def test_odd_values_in_a_checkpoint(refuses, desk, field, value):
    resave(desk / "run" / "checkpoint.pt", lambda state: put(state, field, value))
    refuses(DOORS["checkpoint"][1])


@pytest.mark.parametrize("value", [-1, 10**6, torch.inf], ids=str)
def test_a_checkpoint_beyond_its_run(refuses, desk, value):
    resave(desk / "run" / "checkpoint.pt", lambda state: state.update(step=value))
    refuses(DOORS["checkpoint"][1])


@pytest.mark.parametrize("text", ["[]", "null", '{"space": 1}', nested(100_000), ""])
def test_an_odd_run_card(refuses, desk, text):
    (desk / "run" / "run.json").write_text(text)
    refuses(DOORS["checkpoint"][1])


@pytest.mark.parametrize("value", ODD_TORCH.values(), ids=ODD_TORCH)
def test_odd_values_in_a_tutorial_predictor(refuses, desk, value):
    resave(desk / "tutorial.pth", lambda state: state.update({"0.weight": value}))
    refuses(DOORS["tutorial"][1])


@odd_values("base_acc", "layers.0.0.weight", "layers.2.0.bias", "layers.3.weight", odd=ODD_TORCH)
def test_odd_values_in_a_predictor_of_the_newer_form(refuses, desk, field, value):
    resave(desk / "encoder.pth", lambda state: state.update({field: value}))
    refuses(DOORS["encoder"][1])


WIDE = {"one more input": 83, "no input": 0, "many inputs": 30_000}


@pytest.mark.parametrize("case", WIDE)
def test_a_predictor_of_other_inputs_is_refused(refuses, desk, case):
    resave(desk / "encoder.pth", lambda state: state.update({"layers.0.0.weight": torch.zeros(8, WIDE[case])}))
    refuses(DOORS["encoder"][1], codes=(2,) if WIDE[case] == 83 else (1,))


@pytest.mark.parametrize("name", ["p.safetensors/x.safetensors", "encoder.pth/x", "x" * 300, "."])
def test_an_imported_predictor_that_cannot_be_written(refuses, desk, name):
    (desk / "p.safetensors").write_text("a file, not a folder")
    refuses("predictor import encoder.pth --json -o", name)


@pytest.mark.parametrize("sizes", ["8,8", "7", "9" * 30, "-1", "x", "224"])
def test_odd_resolutions_of_an_imported_predictor(refuses, sizes):
    refuses("predictor import encoder.pth -o taken.safetensors --json --resolutions", sizes, codes=(1, 2))


# -- tables ----------------------------------------------------------------------------------------------------


@odd_values(
    "name",
    "rows",
    "rows_sha256",
    "rows.measured",
    "key.batch",
    "key.device",
    "correction.slope",
    "correction.offset_ms",
    "card",
    "card.validation",
)
def test_odd_values_in_a_table_card(refuses, desk, field, value):
    card = json.loads((desk / "table.json").read_text())
    put(card, field, value)
    (desk / "table.json").write_text(json.dumps(card))
    refuses(DOORS["card"][1], codes=(0, 1))


CELL_VALUES = {
    "nothing": "", "text": "many", "nan": "nan", "infinite": "1e999", "negative": "-1e300", "huge": "9" * 5000,
    "NUL": "\0", "a quote": '"', "a list": "[[1]]",
}  # fmt: skip


@odd_values("ms", "p90_ms", "n", "hw_in", "resolution", "kind", "skip", odd=CELL_VALUES)
def test_odd_values_in_a_table(refuses, desk, field, value):
    head, first, *rest = (desk / "table.csv").read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index(field)] = value
    (desk / "table.csv").write_text("\n".join([head, ",".join(cells), *rest]))
    card = json.loads((desk / "table.json").read_text())
    put(card, "rows_sha256", hashlib.sha256((desk / "table.csv").read_bytes()).hexdigest())  # a forged table, not a damaged one
    (desk / "table.json").write_text(json.dumps(card))
    refuses(DOORS["table"][1])


def first_key(path):
    return path.read_text().partition("\n")[0].strip("? ").removesuffix(":")


BOMB = "\n".join(["a0: &a0 {x: 1, y: 2}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 12)}]}}" for i in range(1, 9))])
ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 12)}]" for i in range(1, 9))])
YAML = {
    "merge keys without end": BOMB,
    "aliases without end": ALIASES,
    "code": "!!python/object/apply:os.system ['touch canary']",
    "code as a key": "? !!python/object/apply:os.system ['touch canary']\n: 1",
    "a module": "!!python/module:os",
    "huge keys": f"? [{'a, ' * 1000}]\n: 1",
    "two documents": "a: 1\n---\nb: 2",
    "nesting": nested(1000),
    "binary": "a: !!binary AAAA",
    "a tab": "a:\n\tb: 1",
    "control characters": '"a\\e[2J\\0": {count: 1, mean: 1}',
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_hostile_lookup_table(refuses, desk, text):
    (desk / "lookup" / "16_lookup_table.yaml").write_text(text)
    refuses(DOORS["lookup"][1])


@pytest.mark.parametrize("value", ["~", "many", "[1]", ".nan", "1e999", "-1", "9" * 400, "{mean: 1}", "2001-01-01"])
@pytest.mark.parametrize("field", ["mean", "count"])
def test_odd_values_in_a_lookup_table(refuses, desk, field, value):
    path = desk / "lookup" / "16_lookup_table.yaml"
    text = path.read_text()
    found = next(line for line in text.splitlines() if line.strip().startswith(field))
    path.write_text(text.replace(found, f"  {field}: {value}", 1))
    refuses(DOORS["lookup"][1], codes=(0, 1) if field == "count" else (1,))


# -- JSON: settings, pairs, records ----------------------------------------------------------------------------

GOOD = {"ks": [3, 3, 3, 3], "e": [2, 2, 2, 2], "d": [1, 1], "r": 16}


@odd_values("ks", "ks.0", "d", "r")
def test_odd_values_in_settings(refuses, field, value):
    record = json.loads(json.dumps(GOOD))
    put(record, field, value)
    refuses("space cost --space tiny --json", json.dumps(record))


TEXTS = {
    "nesting": '{"ks": ' + nested(100_000) + "}",
    "cut": '{"ks": [3, 3',
    "no object": "{3}",
    "nothing in it": "{}",
    "fractions": json.dumps({**GOOD, "ks": [3.7, 3, 3, 3]}),
    "text": json.dumps({**GOOD, "ks": ["3", "3", "3", "3"]}),
    "a path": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a NUL": "tiny@r16\0",
    "a name without end": "tiny@" + "r" * 5000,
    "digits that are no ASCII": "tiny@r\u0661\u0666-132-152",
    "a line break": "tiny@r16\n-132-152",
}


READERS = ("space cost --space tiny --json", "predictor predict predictor.safetensors --json", "export -o former.onnx --json")


@pytest.mark.parametrize(("command", "text"), list(zip(cycle(READERS), TEXTS.values(), strict=False)), ids=TEXTS)
def test_a_subnet_that_is_none(refuses, command, text):
    refuses(command, text)


def test_of_two_equal_keys_one_counts(refuses):
    assert refuses("space cost --space tiny --json", '{"r": 9, ' + json.dumps(GOOD)[1:], codes=(0,)) is None


@odd_values("ks", "ks.0", "top1", "r")
def test_odd_values_in_pairs(refuses, desk, field, value):
    lines = (desk / "pairs.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    put(record, field, value)
    (desk / "pairs.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]))
    refuses(DOORS["pairs"][1])


CELLS = {
    "code": "__import__('os').system('touch canary')",
    "code in a dictionary": "{'ks': open('canary', 'w')}",
    "brackets": "(" * 10_000,
    "signs": "-" * 50_000 + "1",
    "powers": "{'ks': 9**9**9}",
    "multiplied": "{'ks': [0] * 10**10}",
    "huge": "{'ks': [" + "9" * 3000 + "]}",
    "a set": "{1, 2}",
    "text": "'many'",
    "nothing": "",
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_a_hostile_cell_in_accuracies(refuses, desk, cell):
    (desk / "pairs.csv").write_text(f'n,Sub-network,Top-1 Acc (%)\n0,"{cell}",50\n')
    refuses(DOORS["accuracies"][1])


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pairs(refuses, desk, n):
    (desk / "pairs.jsonl").write_text("\n".join((desk / "pairs.jsonl").read_text().splitlines()[:n]))
    refuses(DOORS["pairs"][1])


RECORDS = {
    "nan": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "nesting": nested(100_000),
    "a number without end": '{"a": ' + "9" * 10_000 + "}",
    "a lone surrogate": '{"\\ud800": "\\ud800"}',
    "control characters": '{"\\u001b[2J": "\\u001b[2J\\n"}',
    "two equal keys": '{"a": 1, "a": 2}',
    "a byte order mark": '\ufeff{"a": 1}',
    "two objects": "{}{}",
    "a list": "[1]",
}


@pytest.mark.parametrize("text", RECORDS.values(), ids=RECORDS)
def test_an_odd_record(refuses, desk, text):
    (desk / "record.json").write_text(text)
    refuses("inspect record.json --json", codes=(0, 1))


def test_a_record_cannot_draw_on_the_terminal(desk, capfd):
    from ofasearch.cli.main import run

    (desk / "record.json").write_text(RECORDS["control characters"])
    assert run(["inspect", "record.json"]) == 0
    assert "\x1b" not in capfd.readouterr().out


# -- images ----------------------------------------------------------------------------------------------------


def png_of(width, height, data=b"0"):
    """A PNG with the given claim of its size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(canary) (w) file closefile\n%%EOF\n"
PICTURES = {
    "a bomb": png_of(60_000, 60_000),
    "a bomb that is warned of": png_of(10_000, 10_000),
    "an empty picture": png_of(0, 0),
    "a cut picture": png(0)[:60],
    "a flipped picture": png(0)[:40] + b"\xff" + png(0)[41:],
    "a program": EPS,
    "text": b"picture",
    "a link": b"/etc/passwd",
    "nothing": None,
    "another size": png(0, size=8),
}


def write_images(desk, pictures, labels=None, **options):
    images = [{"bytes": picture, "path": "../../canary"} for picture in pictures]
    labels = [n % 3 for n in range(len(images))] if labels is None else labels
    table = pa.table({"img": images, "label": labels})
    pq.write_table(table.replace_schema_metadata(options or None), desk / "images.parquet")


@pytest.mark.parametrize(("place", "picture"), list(zip(cycle((0, 299)), PICTURES.values(), strict=False)), ids=PICTURES)
def test_an_odd_picture(refuses, desk, picture, place):
    pictures = [png(n) for n in range(300)]
    pictures[place] = picture
    write_images(desk, pictures)
    refuses(DOORS["images"][1])


def test_pictures_that_are_large_together(refuses, desk):
    write_images(desk, [encoded(np.zeros((2048, 2048, 3), dtype=np.uint8))] * 300)  # 20 kB of file for 4 GB of pixels
    refuses(DOORS["images"][1])


def test_rows_without_end(refuses, desk):
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000_000, dtype=np.int32)), pa.array([bytes(1000)]))
    pq.write_table(
        pa.table({"img": pa.StructArray.from_arrays([column], ["bytes"]), "label": np.zeros(3_000_000, dtype=np.int8)}), "images.parquet"
    )
    refuses(DOORS["images"][1])


LABELS = {
    "huge": [2**62] * 300,
    "many": [200_000_000] * 300,
    "negative": [-1] * 300,
    "fractions": [float("inf")] * 300,
    "text": ["cat"] * 300,
    "lists": [[0]] * 300,
    "nothing": [None] * 300,
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_odd_labels(refuses, desk, labels):
    write_images(desk, [png(n) for n in range(300)], labels)
    refuses(DOORS["images"][1])


@pytest.mark.parametrize(
    "names", [nested(100_000), '{"info": {"features": {"label": {"names": 5}}}}', "\ud800".encode("utf-8", "surrogatepass"), b"\xff"]
)
def test_odd_class_names(refuses, desk, names):
    write_images(desk, [png(n) for n in range(300)], huggingface=names)
    refuses(DOORS["images"][1], codes=(0,))  # names are read where they can be


# -- ONNX ------------------------------------------------------------------------------------------------------


def graph(path, nodes, *, shape=("N", 3, 16, 16), kind=TensorProto.FLOAT, out=("N", 3), tensors=(), inputs=1, calibrated="yes"):
    """A small ONNX file with our metadata; not checked, so that it can be wrong."""
    named = [helper.make_tensor_value_info(f"x{i}" if i else "x", kind, shape) for i in range(inputs)]
    body = helper.make_graph(nodes, "g", named, [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)], list(tensors))
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(
        model, {"preprocessing": json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3, "size": 16}), "calibrated": calibrated}
    )
    path.write_bytes(model.SerializeToString())


def elsewhere(location):
    """A tensor whose numbers lie in another file."""
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


FLAT = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Slice", ["f", "b", "e", "a"], ["y"])]
SLICE = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("b", 0), ("e", 3), ("a", 1))]
ADD = [*FLAT[:1], helper.make_node("Slice", ["f", "b", "e", "a"], ["s"]), helper.make_node("Add", ["s", "w"], ["y"])]
ROOT = [*ADD[:2], helper.make_node("Sqrt", ["w"], ["n"]), helper.make_node("Add", ["s", "n"], ["y"])]
GRAPHS = {
    "an operator of its own": {"nodes": [helper.make_node("System", ["x"], ["y"], domain="evil")]},
    "integers as input": {"nodes": [helper.make_node("Cast", ["x"], ["y"], to=1)], "kind": TensorProto.INT64},
    "text as input": {"nodes": [helper.make_node("Cast", ["x"], ["y"], to=1)], "kind": TensorProto.STRING},
    "two inputs": {"nodes": [helper.make_node("Add", ["x", "x1"], ["y"])], "inputs": 2},
    "no input": {"nodes": [helper.make_node("Identity", ["b"], ["y"])], "inputs": 0, "tensors": SLICE},
    "a scalar": {"nodes": [helper.make_node("Identity", ["x"], ["y"])], "shape": (), "out": ()},
    "terabytes of input": {"nodes": FLAT, "tensors": SLICE, "shape": ("N", 3, 2**20, 2**20)},
    "gigabytes of input": {"nodes": FLAT, "tensors": SLICE, "shape": ("N", 3, 10_000, 10_000)},
    "more than all integers": {"nodes": FLAT, "tensors": SLICE, "shape": ("N", 2**62, 2**62, 2)},
    "numbers from above the folder": {"nodes": ADD, "tensors": [*SLICE, elsewhere("../weights.bin")]},
    "numbers from an absolute path": {"nodes": ADD, "tensors": [*SLICE, elsewhere("/etc/passwd")]},
    "a shape that contradicts itself": {
        "nodes": [helper.make_node("Reshape", ["x", "s"], ["y"])],
        "tensors": [helper.make_tensor("s", TensorProto.INT64, [2], [7, 11])],
        "out": (7, 11),
    },
    "other pixels": {"nodes": FLAT, "tensors": SLICE, "shape": ("N", 3, 8, 8)},
    "one channel": {"nodes": FLAT, "tensors": SLICE, "shape": ("N", 1, 16, 16)},
    "four axes of output": {"nodes": [helper.make_node("Identity", ["x"], ["y"])], "out": ("N", 3, 16, 16)},
    "nan": {"nodes": ROOT, "tensors": [*SLICE, helper.make_tensor("w", TensorProto.FLOAT, [3], [-1.0] * 3)]},
    "uncalibrated": {"nodes": FLAT, "tensors": SLICE, "calibrated": "no"},
}


@pytest.mark.parametrize("case", GRAPHS)
def test_an_odd_graph_is_not_scored(refuses, desk, case):
    (desk.parent / "weights.bin").write_bytes(bytes(12))
    graph(desk / "subnet.onnx", **GRAPHS[case])
    refuses(DOORS["onnx"][1])


@pytest.mark.parametrize("case", GRAPHS)
def test_an_odd_graph_is_not_timed_for_long(refuses, desk, case):
    harmless = ("other pixels", "one channel", "four axes of output", "nan", "uncalibrated")
    graph(desk / "subnet.onnx", **GRAPHS[case])
    refuses("bench subnet.onnx --seconds 0.01 --json", codes=(0,) if case in harmless else (1,))


@pytest.mark.parametrize("case", GRAPHS)
def test_an_odd_graph_is_told_without_being_run(refuses, desk, case):
    graph(desk / "subnet.onnx", **GRAPHS[case])
    refuses("inspect subnet.onnx --json", codes=(0,))


@pytest.mark.parametrize("case", GRAPHS)
def test_an_odd_graph_is_not_compared_with_torch(refuses, desk, case):
    graph(desk / "subnet.onnx", **GRAPHS[case])
    refuses("bench subnet.onnx --against torch --seconds 0.01 --json")


PIXELS = {
    "of floats": {"kind": TensorProto.FLOAT},
    "without channels": {"shape": ("N", 16, 16, 1)},
    "of another size": {"shape": ("N", 8, 8, 3)},
    "of any size": {"shape": ("N", "height", "width", 3)},
    "of two inputs": {"inputs": 2},
    "of three axes": {"shape": ("N", 16, 3)},
}


@pytest.mark.parametrize("case", PIXELS)
@pytest.mark.parametrize("said", ["embedded", "nothing", "floats"])
def test_odd_pixels_are_not_scored(refuses, desk, case, said):
    """A file of another tool that takes pixels, or says that it does: other shapes and types, with and without a word of it."""
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=1), helper.make_node("Flatten", ["c"], ["f"]), FLAT[1]]
    graph(desk / "subnet.onnx", nodes, tensors=SLICE, **{"kind": TensorProto.UINT8, "shape": ("N", 16, 16, 3)} | PIXELS[case])
    model, how = onnx.load(desk / "subnet.onnx"), {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 16}
    embedded = {"embedded": how, "size": 16, "layout": "NHWC", "dtype": "uint8", "mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1.0}
    props = {"embedded": {"preprocessing": json.dumps(embedded)}, "nothing": {}, "floats": {"preprocessing": json.dumps(how)}}
    del model.metadata_props[:]
    helper.set_model_props(model, props[said])
    onnx.save(model, desk / "subnet.onnx")
    refuses(DOORS["onnx"][1], codes=(0,) if (case, said) == ("of any size", "embedded") else (1,))


def test_a_plain_graph_is_scored(refuses, desk):
    graph(desk / "subnet.onnx", FLAT, tensors=SLICE)
    assert refuses(DOORS["onnx"][1], codes=(0,)) is None


@odd_values("mean", "std", "size")
def test_odd_preprocessing_in_an_onnx_file(refuses, desk, field, value):
    model = onnx.load(desk / "subnet.onnx")
    props = {p.key: p.value for p in model.metadata_props}
    helper.set_model_props(model, {**props, "preprocessing": json.dumps({**json.loads(props["preprocessing"]), field: value})})
    onnx.save(model, desk / "subnet.onnx")
    refuses(DOORS["onnx"][1], codes=(0, 1) if field == "size" else (1,))


# -- names -----------------------------------------------------------------------------------------------------

NAMES = ("../../nowhere", "/nowhere", "\udcff", "a\nb", "x" * 5000, "\x1b[2J", "")
COMMANDS = (
    "inspect",
    "bench",
    "find --flops 1G --supernet",
    "find --flops 1G --predictor",
    "find --latency 1s --target",
    "eval {arch} --data",
    "space sample",
)


@pytest.mark.parametrize(("command", "name"), [(COMMANDS[i % 7], name) for i, name in enumerate(3 * NAMES)])
def test_a_name_that_leads_nowhere(refuses, command, name):
    refuses(command, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_that_leads_nowhere(refuses, name):
    refuses("flips {arch} --supernet net --json", name)


# -- predictions -----------------------------------------------------------------------------------------------


PREDICTIONS = {
    "another length": lambda a: a.update(test=a["test"][:-1]),
    "no such class": lambda a: a.update(test=a["test"] + 3),
    "negative": lambda a: a.update(test=a["test"].astype(np.int8) - 100),
    "not a number": lambda a: a.update(test=np.full(len(a["test"]), np.nan)),
    "logits": lambda a: a.update(test=np.zeros((len(a["test"]), 3), dtype=np.int64)),
    "objects": lambda a: a.update(test=np.array([None] * len(a["test"]), dtype=object)),
    "other labels": lambda a: a.update({"labels.test": (a["labels.test"] + 1) % 3}),
    "more labels": lambda a: a.update({"labels.test": np.append(a["labels.test"], 0)}),
    "another split": lambda a: a.update(validation=a.pop("test")),
    "a card of noise": lambda a: a.update(card=a["card"][::-1]),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_odd_predictions_are_refused(refuses, desk, case):
    with np.load(desk / "predictions.npz") as file:
        arrays = dict(file)
    PREDICTIONS[case](arrays)
    np.savez(desk / "predictions.npz", **arrays)
    refuses(DOORS["predictions"][1])
    if case in ("another length", "no such class", "other labels", "another split"):  # without images as well
        refuses("flips predictions.npz {arch} --supernet net --json")


def test_predictions_of_another_network_are_left_as_they_are(refuses, desk):
    refuses("eval subnet.onnx --data images.parquet --save-predictions predictions.npz --json")
    np.savez(desk / "predictions.npz", test=np.zeros(3, dtype=np.int64))
    refuses("eval subnet.pt --data images.parquet --save-predictions predictions.npz --json")


@pytest.mark.parametrize("case", GRAPHS)
def test_an_odd_graph_is_no_reference(refuses, desk, case):
    (desk.parent / "weights.bin").write_bytes(bytes(12))
    graph(desk / "old.onnx", **GRAPHS[case])
    refuses("flips old.onnx subnet.pt --data images.parquet --json")


def test_a_foreign_graph_is_a_reference(refuses, desk):
    graph(desk / "old.onnx", FLAT, tensors=SLICE)
    assert refuses("flips old.onnx subnet.pt --data images.parquet --json", codes=(0,)) is None
