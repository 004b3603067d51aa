"""The Analysis deployment: chips of faces in; age, gender, emotion and race out, batched by face across requests."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.attribute_packs import AnalysisLocation, Assignment
from deployments.models.engine import AnalysisEngine, AnalysisRequest
from deployments.models.loading import load_attribute_models
from deployments.process import tune_process
from deployments.routing import BY_WAIT
from serve_app.attributes import Asked, AttributeOutputs
from serve_app.faces import Chips
from serve_app.observing.outlets import Outlets
from serve_app.observing.stages import Timed
from serve_app.replica import observed

_CPU_BATCH_SIZE = 16
"""Attribute networks are small: together, faces take a third less time each than alone; and a call that is cut in two costs
a twelfth (docs/performance.md)."""


@serve.deployment(request_router_config=BY_WAIT)
class Analysis:
    """`assignment`: the models that must be on this node, each with the attributes it answers."""

    outlets: Outlets

    @observed
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

    async def analyze(self, chips: Chips, asked: Asked, traces: Sequence[str] = ()) -> Timed[AttributeOutputs]:
        """(N, S, S, 3) uint8 RGB chips of every spec that the models of `asked` need to one row a face for each attribute;
        an attribute whose model is not the one loaded is left out. `traces`: W3C traceparents of who waits for it."""
        with self.outlets.serving("Analysis.analyze", traces) as spans:
            return await self._batcher.submit_timed(AnalysisRequest(chips, asked), spans)

    async def batching(self) -> BatchConfig:
        """The batching in force on this replica."""
        return self._batcher.config
