"""Attribute models: chips of faces to years and probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from deployments.models.session import Session
from serve_app.attributes import Attribute, AttributeOutputs
from serve_app.faces import ChipArray, FloatArray


class AttributePredictor(Protocol):
    """May be called from several threads at once."""

    def predict(self, chips: ChipArray) -> AttributeOutputs:
        """(N, S, S, 3) uint8 RGB chips to one row a face, N >= 1, for every attribute the model knows."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """Network input = (pixel - mean) / std. `order`: rgb, bgr or grey."""

    order: str
    mean: tuple[float, ...]
    std: float


class Network:
    """An ONNX graph from chips (N, C, S, S) to class probabilities (N, K)."""

    def __init__(self, session: Session, network_input: NetworkInput, *, logits: bool) -> None:
        self._session = session
        self._name = session.get_inputs()[0].name
        self._input = network_input
        self._mean = np.asarray(network_input.mean, dtype=np.float32)
        self._logits = logits

    def run(self, chips: ChipArray) -> FloatArray:
        """(N, S, S, 3) uint8 RGB to (N, K) float32 probabilities."""
        if self._input.order == "grey":
            pixels = np.stack([cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY) for chip in chips])[..., None].astype(np.float32)
        else:
            pixels = chips.astype(np.float32) if self._input.order == "rgb" else chips[..., ::-1].astype(np.float32)
        pixels -= self._mean
        pixels /= np.float32(self._input.std)
        outputs = self._session.run(None, {self._name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))})[0]
        return softmax(outputs) if self._logits else outputs


class Classifier:
    def __init__(self, network: Network, attribute: Attribute) -> None:
        self._network = network
        self._attribute = attribute

    def predict(self, chips: ChipArray) -> AttributeOutputs:
        return {self._attribute: self._network.run(chips)}


class AgeDistribution:
    """Age as the expectation over classes of one year each (Rothe, Timofte and Van Gool, "Deep expectation of real and
    apparent age", IJCV 2018, DOI 10.1007/s11263-016-0940-3).

    `years`: (K,) the age that each class stands for.
    """

    def __init__(self, network: Network, years: FloatArray) -> None:
        self._network = network
        self._years = years

    def predict(self, chips: ChipArray) -> AttributeOutputs:
        probabilities = self._network.run(chips)
        mean = probabilities @ self._years
        deviation = np.sqrt((probabilities * (self._years - mean[:, None]) ** 2).sum(axis=1))
        return {Attribute.AGE: np.stack([mean, deviation], axis=1)}


class GenderAge:
    """InsightFace's two in one: (N, 3) of logits female and male, and age / 100 (insightface, model_zoo/attribute.py)."""

    def __init__(self, session: Session, mean: float, std: float) -> None:
        self._session = session
        self._name = session.get_inputs()[0].name
        self._mean, self._std = np.float32(mean), np.float32(std)

    def predict(self, chips: ChipArray) -> AttributeOutputs:
        pixels = np.ascontiguousarray(chips.transpose(0, 3, 1, 2), dtype=np.float32)
        outputs = self._session.run(None, {self._name: (pixels - self._mean) / self._std})[0]
        years = outputs[:, 2] * 100
        return {
            Attribute.AGE: np.stack([years, np.full_like(years, np.nan)], axis=1),
            Attribute.GENDER: softmax(outputs[:, :2]),
        }


def softmax(logits: FloatArray) -> FloatArray:
    """Of each row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def class_years(classes: int, first_year: float) -> FloatArray:
    """(classes,) 0, 1, 2, ... years with `first_year` in place of 0."""
    years = np.arange(classes, dtype=np.float32)
    years[0] = first_year
    return years
