"""The Analysis deployment: chips of faces in; age, gender, emotion and race out, batched by face across requests."""

from __future__ import annotations

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.attribute_packs import AnalysisLocation, Assignment
from deployments.models.engine import AnalysisEngine, AnalysisRequest
from deployments.models.loading import load_attribute_models
from deployments.process import tune_process
from serve_app.attributes import Asked, AttributeOutputs
from serve_app.faces import Chips

_CPU_BATCH_SIZE = 8
"""Attribute networks are small: eight faces together take a third less time a face than alone (docs/performance.md)."""


@serve.deployment
class Analysis:
    """`assignment`: the models that must be on this node, each with the attributes it answers."""

    def __init__(self, location: AnalysisLocation, assignment: Assignment, intra_op_threads: int) -> None:
        tune_process()
        self._engine = AnalysisEngine(load_attribute_models(location, assignment, intra_op_threads))
        self._engine.warm_up()
        self._batcher: Batcher[AnalysisRequest, AttributeOutputs] = Batcher(
            self._engine.run,
            BatchConfig(),
            weight=len,
            default_batch_size=max(_CPU_BATCH_SIZE, location.pack.device.batch_size),
        )

    def reconfigure(self, user_config: dict[str, object]) -> None:
        self._batcher.configure(BatchConfig.model_validate(user_config))
        # Also of a picture whose faces alone are more than a batch.
        self._engine.max_faces = self._batcher.max_batch_size

    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        """(N, S, S, 3) uint8 RGB chips of every spec that the models of `asked` need to one row a face for each attribute;
        an attribute whose model is not the one loaded is left out."""
        return await self._batcher.submit(AnalysisRequest(chips, asked))

    async def batching(self) -> BatchConfig:
        """The batching in force on this replica."""
        return self._batcher.config
