"""The two halves of an image-text model: pictures and texts to vectors that can be compared. Synchronous, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from deployments.models.clip_tokens import ClipTokenizer, read_tokenizer
from deployments.models.semantic_packs import MAX_DIM, ImageInput, SemanticPack
from deployments.models.session import Device, create_session
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import FloatArray, RGBImage
from serve_app.imaging.images import ImageLimits, decode
from serve_app.observing.stages import Stage, stage

_INTERPOLATION = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_NUMBERS: dict[str, type[np.generic]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_PIXELS: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_OUTPUTS = ("image_embeds", "text_embeds", "image_embedding", "text_embedding", "embedding")
_DECODED_SIDES = 4
"""A JPEG may be decoded smaller, where its longer side stays this many times the model's: a quarter of the time for 12
megapixels."""
_SHORTEST_NORM = 1e-6

Feed = dict[str, npt.NDArray[np.generic]]


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...
    @property
    def type(self) -> str: ...


class _Session(Protocol):
    """As onnxruntime.InferenceSession; `run` may be called from several threads at once."""

    def run(self, output_names: list[str], input_feed: Feed) -> list[npt.NDArray[np.float32]]: ...
    def get_inputs(self) -> list[_Tensor]: ...
    def get_outputs(self) -> list[_Tensor]: ...


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """`image`: encoded bytes."""

    image: bytes


@dataclass(frozen=True, slots=True)
class TextRequest:
    text: str


SemanticRequest = ImageRequest | TextRequest


class _Half:
    """One graph: rows of one input, and perhaps a mask, to unit vectors. Raises ConfigurationError for any other graph."""

    def __init__(self, session: _Session, what: str, types: dict[str, type[np.generic]]) -> None:
        self._session = session
        inputs = session.get_inputs()
        self.mask = next((one.name for one in inputs if one.name == "attention_mask"), None)
        fed = [one for one in inputs if one.name != self.mask]
        if len(fed) != 1 or fed[0].type not in types:
            shown = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise ConfigurationError(f"The {what} model takes {shown}; one input of {' or '.join(types)} was expected.")
        self.input, self.shape, self.dtype = fed[0].name, fed[0].shape, types[fed[0].type]
        self._mask_dtype = next((types.get(one.type, np.int64) for one in inputs if one.name == self.mask), np.int64)
        self._output = _output(session, what)
        # Some exports have a batch of one.
        self._single = isinstance(self.shape[0], int)

    def run(self, rows: npt.NDArray[np.generic], mask: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """(N, ...) to (N, D) float32 of unit L2 norm."""
        if self._single and len(rows) > 1:
            parts = range(len(rows))
            return np.concatenate([self.run(rows[i : i + 1], None if mask is None else mask[i : i + 1]) for i in parts])
        feed: Feed = {self.input: rows.astype(self.dtype)}
        if self.mask is not None and mask is not None:
            feed[self.mask] = mask.astype(self._mask_dtype)
        vectors = self._session.run([self._output], feed)[0].astype(np.float32)
        if vectors.shape[0] != len(rows) or vectors.ndim != 2 or not 0 < vectors.shape[1] <= MAX_DIM:
            raise ConfigurationError(f"The model made {vectors.shape} of {len(rows)} rows; ({len(rows)}, D) was expected.")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.all(np.isfinite(norms)) or float(norms.min()) < _SHORTEST_NORM:
            raise ArithmeticError("the model made a vector without a direction")
        return np.asarray(vectors / norms, dtype=np.float32)


class SemanticEngine:
    """Decodes, prepares and encodes; pictures together, texts together. Safe to call from several threads.

    An item that fails is answered with its ImageError; `limits`: of pictures that are stored.
    """

    def __init__(
        self,
        visual: _Session,
        textual: _Session,
        tokenizer: ClipTokenizer,
        image_input: ImageInput,
        context_length: int,
        limits: ImageLimits,
    ) -> None:
        self._visual = _Half(visual, "image", _PIXELS)
        self._textual = _Half(textual, "text", _NUMBERS)
        taken, side = self._visual.shape, image_input.size_px
        if len(taken) != 4 or any(
            isinstance(one, int) and one != set_ for one, set_ in zip(taken[1:], (3, side, side), strict=True)
        ):
            raise ConfigurationError(f"The image model takes {taken}; (N, 3, {side}, {side}) is set.")
        fixed = self._textual.shape[-1]
        if isinstance(fixed, int) and fixed != context_length:
            raise ConfigurationError(f"The text model reads {fixed} tokens; {context_length} are set.")
        self._tokenizer = tokenizer
        self._image_input = image_input
        self._context_length = context_length
        self._limits = limits

    def run(self, requests: Sequence[SemanticRequest]) -> list[FloatArray | ImageError]:
        """One answer a request, in order: (D,) float32 of unit L2 norm, or why the picture cannot be read."""
        answers: dict[int, FloatArray | ImageError] = {}
        prepared: dict[int, FloatArray] = {}
        texts: dict[int, str] = {}
        for index, request in enumerate(requests):
            if isinstance(request, TextRequest):
                texts[index] = request.text
                continue
            try:
                with stage(Stage.DECODE):
                    prepared[index] = prepare(_pixels(request.image, self._image_input, self._limits), self._image_input)
            except ImageError as error:
                answers[index] = error
        with stage(Stage.SEMANTIC):
            if prepared:
                answers.update(zip(prepared, self._visual.run(np.stack(list(prepared.values()))), strict=True))
            if texts:
                answers.update(zip(texts, self.encode_texts(list(texts.values())), strict=True))
        return [answers[index] for index in range(len(requests))]

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """(N, D) float32 of unit L2 norm."""
        tokens = [self._tokenizer.encode(text, self._context_length) for text in texts]
        mask = np.arange(self._context_length)[None, :] < np.array([one.used for one in tokens])[:, None]
        return self._textual.run(np.array([one.ids for one in tokens], dtype=np.int64), mask)

    def warm_up(self) -> int:
        """One picture and one text: what does not fit together must show at the start. The number of values of a vector."""
        side = self._image_input.size_px
        image = self._visual.run(prepare(np.zeros((side, side, 3), dtype=np.uint8), self._image_input)[None])
        text = self.encode_texts(["a photo"])
        if image.shape[1] != text.shape[1]:
            raise ConfigurationError(
                f"Pictures become {image.shape[1]} values and texts {text.shape[1]}: two different models."
            )
        return int(image.shape[1])


def load_semantic(pack: SemanticPack, device: Device, intra_op_threads: int, limits: ImageLimits) -> SemanticEngine:
    """Warmed up. Raises ConfigurationError when the files are no image-text model, or another than is stated."""
    spec = pack.spec
    engine = SemanticEngine(
        cast(_Session, create_session(str(pack.path(spec.visual)), device, intra_op_threads)),
        cast(_Session, create_session(str(pack.path(spec.textual)), device, intra_op_threads)),
        read_tokenizer(pack.path(spec.tokenizer), spec.pad),
        spec.image,
        spec.context_length,
        limits,
    )
    dim = engine.warm_up()
    if spec.dim is not None and dim != spec.dim:
        raise ConfigurationError(f"The files of {pack.name} make {dim} values; config/semantic.toml states {spec.dim}.")
    return engine


def prepare(pixels: RGBImage, wanted: ImageInput) -> FloatArray:
    """(H, W, 3) uint8 RGB to (3, S, S) float32, as the model was trained: torchvision's Resize and CenterCrop on a Pillow
    image. Only the part that is kept is computed, so that a picture of any shape costs the same."""
    height, width = pixels.shape[:2]
    side = wanted.size_px
    left = top = 0
    new_width = new_height = side
    if wanted.resize == "shortest":
        if width <= height:
            new_height = max(side, int(side * height / width))
        else:
            new_width = max(side, int(side * width / height))
        left, top = round((new_width - side) / 2.0), round((new_height - side) / 2.0)
    box = (left * width / new_width, top * height / new_height,
           (left + side) * width / new_width, (top + side) * height / new_height)  # fmt: skip
    # Rounding may end a hair outside.
    box = (box[0], box[1], min(box[2], float(width)), min(box[3], float(height)))
    square = Image.fromarray(pixels).resize((side, side), _INTERPOLATION[wanted.interpolation], box=box)
    mean, std = np.asarray(wanted.mean, np.float32), np.asarray(wanted.std, np.float32)
    values = (np.asarray(square, dtype=np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def _pixels(data: bytes, wanted: ImageInput, limits: ImageLimits) -> RGBImage:
    """Raises ImageError."""
    pixels = decode(data, limits, at_least_px=_DECODED_SIDES * wanted.size_px).pixels
    if min(pixels.shape[:2]) < wanted.size_px:
        # So long a picture that the scaled one would have to be enlarged; a small one is only decoded twice.
        pixels = decode(data, limits).pixels
    return pixels


def _output(session: _Session, what: str) -> str:
    """The one vector a row: others have the states of every token or patch."""
    outputs = session.get_outputs()
    named = [one.name for one in outputs if one.name in _OUTPUTS]
    flat = [one.name for one in outputs if len(one.shape) == 2]
    found = named or flat
    if not found:
        raise ConfigurationError(f"The {what} model has no output of one vector a row: {[one.name for one in outputs]}.")
    return found[0]
