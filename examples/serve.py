"""An exported network as a service: POST an image, get its class and probability.

    python examples/serve.py subnet.onnx 8000
    curl --data-binary @image.jpg localhost:8000

Needs onnxruntime, numpy and Pillow, not ofasearch: the ONNX file says in its metadata how images become inputs.
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def server(path: str, port: int) -> ThreadingHTTPServer:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    how, classes = json.loads(about["preprocessing"]), json.loads(about["classes"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                image = Image.open(io.BytesIO(self.rfile.read(min(abs(int(self.headers["Content-Length"])), 2**24)))).convert("RGB")
                image = ImageOps.fit(image, (how["size"], how["size"]), Image.Resampling.BILINEAR, (1 - how.get("crop_pct", 1)) / 2)
                x = (np.asarray(image) * how["scale"] - how["mean"]) / how["std"]
                x = (x if how["layout"] == "NHWC" else x.transpose(2, 0, 1)).astype(how.get("dtype", "float32"))
                logits = session.run(None, {session.get_inputs()[0].name: x[None]})[0][0].astype(float)
                share = np.exp(logits - logits.max())
                status, answer = 200, {"class": classes[share.argmax()], "probability": share.max() / share.sum()}
            except Exception as error:  # decoders fail in many ways
                status, answer = 400, {"error": f"the body must be an image of at most 16 MiB, but cannot be read: {error}"}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server(sys.argv[1], int(sys.argv[2])).serve_forever()
