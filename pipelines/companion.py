"""A second pipeline that runs beside the first: a few labelled images with every batch of unlabelled ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from saccade.base.errors import UserError
from saccade.pipelines.pipeline import Batch, Pipeline


class CompanionPipeline(Pipeline):
    """`main`, each of whose batches carries in `companion` one of the other pipeline, which starts over when it ends.

    Length, source and position are main's; the companion's own position is saved and restored with it, so that a
    resumed run sees the same pairs.
    """

    def __init__(self, main: Pipeline, companion: Pipeline) -> None:
        super().__init__(main.source, main.recipe, main.order, main.device, main.dtype, main.renderer)
        self.main, self.companion, self.choice = main, companion, main.choice
        self._going: Iterator[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.main:
            self.epoch, self.seen = self.main.epoch, self.main.seen
            yield replace(batch, companion=self._next())

    def _next(self) -> Batch:
        while True:
            self._going = self._going or iter(self.companion)
            batch = next(self._going, None)
            if batch is not None:
                return batch
            self._going = None

    def _batches(self, epoch: int, shards: list) -> Iterator[Batch]:
        raise NotImplementedError("the two pipelines make the batches")

    def close(self) -> None:
        self._going = None
        self.main.close()
        self.companion.close()

    def state_dict(self) -> dict:
        return {**self.main.state_dict(), "companion": self.companion.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        if "companion" not in state:
            raise UserError(
                "the checkpoint was made without labelled images beside the data; leave out --labelled-data."
            )
        self.main.load_state_dict(state)
        self.companion.load_state_dict(state["companion"])
        self.epoch, self.seen, self._going = self.main.epoch, self.main.seen, None
