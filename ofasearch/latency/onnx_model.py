"""An ONNX file in ONNX Runtime, with what can be wrong with it said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import FormatError, NotFoundError
from ofasearch.latency.stopwatch import Action

INPUT_LIMIT = 3 * 2048**2  # numbers in one image of a batch
DTYPES: Mapping[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
Inputs = npt.NDArray[np.float32]
Given = npt.NDArray[np.float32 | np.uint8]


class OnnxModel:
    """An ONNX file in ONNX Runtime, with a fixed number of threads; `profile` is the start of a file name for its own profile."""

    def __init__(self, content: bytes | Path, *, threads: int = 1, provider: str = "CPUExecutionProvider", profile: Path | None = None):
        import onnxruntime as ort

        if provider not in ort.get_available_providers():
            raise NotFoundError(f"ONNX Runtime must have {provider} for this, but has {', '.join(ort.get_available_providers())}")

        self._name = content if isinstance(content, Path) else "the ONNX graph"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what stops it comes as an exception; its own log would be a second line
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            source = str(content) if isinstance(content, Path) else content
            self._session = ort.InferenceSession(source, options, providers=[provider])
        except Exception as error:  # ONNX Runtime raises many kinds for files it cannot run
            raise self._refusal(error) from error
        if provider not in self._session.get_providers():  # it falls back to the CPU without a word
            raise NotFoundError(f"ONNX Runtime must be able to use {provider}, but cannot start it here; are its libraries installed?")
        self.inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        dtypes: list[type[np.generic] | None] = [DTYPES.get(given.type) for given in self.inputs]
        if len(dtypes) != 1 or dtypes[0] is None or not outputs or outputs[0].type != "tensor(float)":
            raise FormatError(f"{self._name} must map one float32 (or uint8) tensor to a float32 one, but has other inputs or outputs")
        self.dtype = dtypes[0]  # of the input
        shape = self.input_shape(1)
        if not shape or min(shape) < 1 or math.prod(shape[1:]) > INPUT_LIMIT:
            raise FormatError(f"{self._name} must take at most {INPUT_LIMIT} numbers per image, but takes {list(shape)[:8]}")
        width = outputs[0].shape[-1] if outputs[0].shape else None
        self.classes = width if isinstance(width, int) else None
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Given) -> Inputs:
        """Output of the first input; (n, ...) -> (n, ...)."""
        return self._run({self.inputs[0].name: inputs})[0]  # type: ignore[no-any-return]

    def _run(self, feed: Mapping[str, Given]) -> Any:
        try:
            return self._session.run(None, feed)
        except Exception as error:  # a file can load and still contradict itself
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> FormatError:
        why = (str(error).splitlines() or ["no reason was given"])[0]
        return FormatError(f"{self._name} must be an ONNX file that ONNX Runtime can run, but it is not: {why}")

    def action(self, inputs: Given) -> Action:
        """One run on the given inputs, for the stopwatch."""
        feed = {self.inputs[0].name: np.ascontiguousarray(inputs)}
        return lambda: self._run(feed)

    def end_profile(self) -> Path:
        """Write the profile; where it lies."""
        return Path(self._session.end_profiling())

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """The shape that the file asks for, free dimensions filled with `batch`."""
        return tuple(d if isinstance(d, int) else batch for d in self.inputs[0].shape)
