"""The Analysis deployment: chips of faces in; age, gender, emotion and race out, batched by face across requests."""

from __future__ import annotations

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.attribute_packs import AnalysisLocation
from deployments.models.engine import AnalysisEngine, AnalysisRequest
from deployments.models.loading import load_attribute_models
from deployments.process import tune_process
from serve_app.attributes import Attribute, AttributeOutputs
from serve_app.faces import Chips

_CPU_BATCH_SIZE = 8
"""Attribute networks are small: eight faces together take a third less time a face than alone (docs/performance.md)."""


@serve.deployment
class Analysis:
    """`names`: the attribute models that must be on this node."""

    def __init__(self, location: AnalysisLocation, names: tuple[str, ...], intra_op_threads: int) -> None:
        tune_process()
        engine = AnalysisEngine(load_attribute_models(location, names, intra_op_threads))
        engine.warm_up()
        self._batcher: Batcher[AnalysisRequest, AttributeOutputs] = Batcher(
            engine.run,
            BatchConfig(),
            weight=len,
            default_batch_size=max(_CPU_BATCH_SIZE, location.pack.device.batch_size),
        )

    def reconfigure(self, user_config: dict[str, object]) -> None:
        self._batcher.configure(BatchConfig.model_validate(user_config))

    async def analyze(self, chips: Chips, attributes: tuple[Attribute, ...]) -> AttributeOutputs:
        """(N, S, S, 3) uint8 RGB chips of every spec that `attributes` need to one row a face for each of them."""
        return await self._batcher.submit(AnalysisRequest(chips, attributes))

    async def batching(self) -> BatchConfig:
        """The batching in force on this replica."""
        return self._batcher.config
