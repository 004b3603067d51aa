"""ONNX Runtime sessions with the settings that measured best, and the device they run on."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from serve_app.errors import ConfigurationError


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"

    @property
    def batch_size(self) -> int:
        """Where larger batches stop paying: on a CPU with one thread a model at 1 (docs/performance.md)."""
        return 1 if self is Device.CPU else 32


_PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: "CUDAExecutionProvider"}


class TensorInfo(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...


class Session(Protocol):
    """The part of onnxruntime.InferenceSession that models use. `run` may be called from several threads at once."""

    def run(
        self, output_names: list[str] | None, input_feed: dict[str, npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]: ...
    def get_inputs(self) -> list[TensorInfo]: ...
    def get_outputs(self) -> list[TensorInfo]: ...


def session_options(intra_op_threads: int) -> onnxruntime.SessionOptions:
    """Threads that wait asleep: on shared cores spinning halved the throughput (docs/performance.md)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Models with a fixed batch in their metadata warn at every larger batch; the shapes that matter are tested.
    options.log_severity_level = 3
    return options


def providers(device: Device) -> list[str]:
    """ONNX Runtime providers for `device`.

    Raises ConfigurationError when the installed ONNX Runtime lacks it: silently running on the CPU is not an option.
    """
    provider = _PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ConfigurationError(
            f"device {device.value!r} needs ONNX Runtime's {provider}; this installation has {', '.join(available)}."
        )
    return [provider] if device is Device.CPU else [provider, _PROVIDERS[Device.CPU]]


def create_session(model: bytes | str, device: Device, intra_op_threads: int) -> Session:
    """`model`: serialised ONNX or a path."""
    session: Session = onnxruntime.InferenceSession(
        model, sess_options=session_options(intra_op_threads), providers=providers(device)
    )
    return session
