"""The Embedding deployment: aligned crops in, unit embeddings out, batched by face across requests."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.engine import EmbeddingEngine
from deployments.models.loading import load_recognizer
from deployments.models.packs import PackLocation, resolve
from deployments.process import tune_process
from deployments.routing import BY_WAIT
from serve_app.faces import Crops, FloatArray
from serve_app.observing.outlets import Outlets
from serve_app.observing.stages import Timed
from serve_app.replica import observed


@serve.deployment(request_router_config=BY_WAIT)
class Embedding:
    outlets: Outlets

    @observed
    def __init__(self, location: PackLocation, intra_op_threads: int) -> None:
        tune_process()
        engine = EmbeddingEngine(load_recognizer(resolve(location), location.device, intra_op_threads))
        self._batcher: Batcher[Crops, FloatArray] = Batcher(
            engine.run, BatchConfig(), weight=len, default_batch_size=location.device.batch_size
        )

    def reconfigure(self, user_config: dict[str, object]) -> None:
        self._batcher.configure(BatchConfig.model_validate(user_config))

    async def embed(self, crops: Crops, traces: Sequence[str] = ()) -> Timed[FloatArray]:
        """(N, 112, 112, 3) uint8 RGB to (N, D) float32 of unit L2 norm. `traces`: W3C traceparents of who waits for it."""
        with self.outlets.serving("Embedding.embed", traces) as spans:
            return await self._batcher.submit_timed(crops, spans)

    async def batching(self) -> BatchConfig:
        """The batching in force on this replica."""
        return self._batcher.config
