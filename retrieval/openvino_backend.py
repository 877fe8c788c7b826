"""Token ids to vectors with openvino, on the processor's cores: one thread to a batch, as many batches as threads."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.batches import Backend, Batch
from retrieval.calibration import calibration_digest
from retrieval.devices import cores
from retrieval.openvino_models import begin, core, prepared, vectors_of
from retrieval.tokenizing import TextTokenizer
from retrieval.torch_backend import EmbeddingModule

_TOKENS_IN_A_BATCH = {"float32": 512, "bfloat16": 2048, "int8": 2048}
"""As many as a core's cache likes: of 512 to 4,096 tokens the worst are 5 to 7 % slower (benchmarks/LOG.md)."""


def open_backend(
    module: EmbeddingModule, texts: TextTokenizer, fields: Mapping[str, Any]
) -> tuple[Backend, dict[str, str]]:
    """Make, or find in the cache, the openvino model of a torch module, ready to run.

    Args:
        module: Weights of bfloat16 for dtype bfloat16, else of float32.
        texts: Its tokenizer, with the encoder's length.
        fields: Of the encoder: `dtype` is float32, bfloat16 or int8.

    Returns:
        The backend, and what is to be added to the fields: for int8 the digest of the calibration texts.

    Raises:
        InputError: The extra is not installed, or openvino cannot convert the module.
    """
    added = {"calibration": calibration_digest()} if fields["dtype"] == "int8" else {}
    model = prepared(module, texts, {**fields, **added})
    return OpenVINOBackend(model, fields["dtype"]), added


class OpenVINOBackend:
    """Runs a model on the processor.

    In `run` each batch is computed by one thread, so that the bytes do not depend on how many there are.

    Args:
        model: An `openvino.Model`.
        dtype: float32, bfloat16 or int8. The latter two compute what is not int8 in bfloat16 where the processor has
            instructions for it, else in float32: slower there, and no farther from float32 than the dtype allows.
        threads: None: as many as torch has, but no more than there are cores.
    """

    name = "openvino"

    def __init__(self, model: Any, dtype: str, threads: int | None = None) -> None:
        self.model = model
        self.dtype = dtype
        self.tokens_in_a_batch = _TOKENS_IN_A_BATCH[dtype]
        self.threads = threads or min(torch.get_num_threads(), cores())
        self._compiled: dict[int, Any] = {}

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (rows, vectors) for each batch, in order; as many again as are computed wait for a thread."""
        compiled = self._with_streams(self.threads)
        begun: deque[tuple[NDArray[np.int64], Any]] = deque()
        try:
            for batch in batches:
                if len(begun) < 2 * self.threads:
                    request = compiled.create_infer_request()
                else:  # use one again: its memory is there already
                    rows, request = begun.popleft()
                    yield rows, vectors_of(request)
                begun.append((batch.rows, begin(request, batch)))
            while begun:
                rows, request = begun.popleft()
                yield rows, vectors_of(request)
        except RuntimeError:
            self._compiled.clear()  # the thread in which a batch failed would fail at every later one too
            raise
        finally:
            for _, request in begun:
                with contextlib.suppress(RuntimeError):
                    request.wait()

    def run_one(self, batch: Batch) -> NDArray[np.float32]:
        """Vectors (b, d) of a batch that comes alone: all threads work on it together, as in the torch backend."""
        try:
            return vectors_of(begin(self._with_streams(1).create_infer_request(), batch))
        except RuntimeError:
            self._compiled.clear()
            raise

    def _with_streams(self, streams: int) -> Any:
        """The model compiled for so many batches at once, among which the threads are divided."""
        if streams not in self._compiled:
            native = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            options = {
                "INFERENCE_PRECISION_HINT": "bf16" if native and self.dtype != "float32" else "f32",
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": self.threads,
                "ENABLE_CPU_PINNING": False,  # other processes would be pinned to the same cores
            }
            self._compiled[streams] = core().compile_model(self.model, "CPU", options)
        return self._compiled[streams]
