"""ONNX Runtime sessions with the settings that measured best, and the device they run on."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx
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


class Runner(Protocol):
    """Runs a model. May be called from several threads at once."""

    def run(
        self, output_names: list[str] | None, input_feed: dict[str, npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]: ...


class Session(Runner, Protocol):
    """The part of onnxruntime.InferenceSession that models use."""

    def get_inputs(self) -> list[TensorInfo]: ...
    def get_outputs(self) -> list[TensorInfo]: ...


class PlacedSession(Session, Protocol):
    """One that says where it runs."""

    def get_providers(self) -> list[str]: ...


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
    session: PlacedSession = onnxruntime.InferenceSession(
        model, sess_options=session_options(intra_op_threads), providers=providers(device)
    )
    check_device(session, device)
    return session


_AUDIT_TIMEOUT_S = 120
"""To load CUDA takes seconds; a driver that hangs never answers."""


def audit_device(device: Device) -> None:
    """Raises ConfigurationError when no session can run on `device` here: to be asked before anything is started for it.

    A GPU is asked by a process of its own: what CUDA takes of its memory stays taken as long as whoever asked lives.
    """
    providers(device)
    if device is Device.CPU:
        return
    program = f"from {__name__} import Device, try_device; try_device(Device({device.value!r}))"
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=_AUDIT_TIMEOUT_S)  # noqa: S603  of our own
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"ONNX Runtime on {device.value!r} did not answer in {_AUDIT_TIMEOUT_S} s.") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ConfigurationError(said or f"ONNX Runtime on {device.value!r} ended with exit code {done.returncode}.")


def try_device(device: Device) -> None:
    """Runs a session on `device` in this process; ends it with exit code 1, and what was wrong on standard error."""
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "audit", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    try:
        create_session(model.SerializeToString(), device, 1)
    except ConfigurationError as error:
        sys.exit(str(error))


def check_device(session: PlacedSession, device: Device) -> None:
    """Raises ConfigurationError when the session does not run on `device`.

    ONNX Runtime that was built with CUDA and does not find its libraries, or a GPU, only logs it and runs on the CPU.
    """
    found = session.get_providers()
    if found[:1] != [_PROVIDERS[device]]:
        raise ConfigurationError(
            f"device {device.value!r} was asked for, and ONNX Runtime runs on {', '.join(found) or 'nothing'}:"
            " it found no such device, or not its libraries (CUDA and cuDNN of the versions that it was built with)."
            " Its log says which."
        )
