"""Find a network of at most 6 M MACs in the embedded supernet and classify an image with it.

    python examples/find_and_run.py [IMAGE]

Needs neither data set nor download; without an image a grey one is classified.
"""

from __future__ import annotations

import json
import sys
import tempfile

import numpy as np
import onnxruntime
from PIL import Image

import ofasearch


def main(arguments: list[str]) -> str:
    """Search, load the ONNX file as any program would, and return the predicted class."""
    with tempfile.TemporaryDirectory() as folder:
        answer = ofasearch.find(macs=6e6, out=folder)
        session = onnxruntime.InferenceSession(answer["files"]["onnx"], providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map  # the file says how images become inputs
    how, classes = json.loads(about["preprocessing"]), json.loads(about["classes"])
    image = Image.open(arguments[0]).convert("RGB") if arguments else Image.new("RGB", (32, 32), "grey")
    pixels = np.asarray(image.resize((how["size"], how["size"])), dtype=np.float32) * how["scale"]
    inputs = ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    logits = session.run(None, {"input": inputs})[0][0]
    print(f"{answer['arch_id']}: {answer['macs'] / 1e6:.2f} M MACs, test top-1 {100 * answer['measured']['top1']:.2f} %")
    print(f"predicted class: {classes[int(logits.argmax())]}")
    return str(classes[int(logits.argmax())])


if __name__ == "__main__":
    main(sys.argv[1:])
