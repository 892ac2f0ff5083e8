"""Unusable samples of all ranks, counted together and listed in one file by rank 0."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import location_of
from lavis_lite.datasets.loading.policy import BadRecord, BadSampleLog
from lavis_lite.errors import DataError, TextTooLongError
from lavis_lite.runners.hooks.base import Hook, RunContext

if TYPE_CHECKING:
    from lavis_lite.runners.step import StepResult


class BadSamples(Hook):
    """The hook that takes the records out of batches as they come, and shares them between ranks now and then.

    Args:
        cfg: `on_bad_sample` and `max_bad_fraction` are used; under `raise` there is nothing to share.
        run_dir: `bad_samples.jsonl` is written there.
    """

    name = "bad_samples"

    def __init__(self, cfg: RunConfig, run_dir: Path) -> None:
        self.active = cfg.on_bad_sample == "skip"
        self.log = BadSampleLog(Path(run_dir) / "bad_samples.jsonl", cfg.max_bad_fraction)
        self.newest: tuple[list[BadRecord], int] = [], 0
        """records and samples of the batch taken last"""
        self._records: list[BadRecord] = []
        self._samples = 0

    def take(self, batch: dict[str, Any], samples: int | None = None) -> bool:
        """Remove the records from a batch; False if nothing usable is left of it.

        Args:
            batch: as the loader gave it; changed in place.
            samples: samples that were read; by default the rows that remain and the records.
        """
        records = batch.pop("bad_samples", [])
        rows = max((len(value) for value in batch.values() if isinstance(value, Sized)), default=0)
        self.add(records, rows + len(records) if samples is None else samples)
        return bool(batch)

    def add(self, records: list[BadRecord], samples: int) -> None:
        """Count samples that were read, and the records among them; they are also `newest`."""
        self.newest = records, samples
        self._records += records
        self._samples += samples

    def too_long(self, dataset: object, tokens: Mapping[int, int], error: TextTooLongError) -> None:
        """Count samples of the batch taken last that have texts too long for the model.

        Args:
            dataset: knows where its rows come from.
            tokens: row of the data set -> tokens of its text.
            error: the model's, about them.

        Raises:
            DataError: such samples are not to be left out.
        """
        where = {row: location_of(dataset, row) for row in tokens}
        if not self.active:
            raise DataError(f"{next(iter(where.values()))}: {error} Or set run.on_bad_sample=skip to leave such "
                            "samples out (they are counted and listed).") from error
        records: list[BadRecord] = [{"file": path.rpartition(":")[0], "row": path,
                                     "reason": f"has a text of {tokens[row]} tokens, too long for the language model"}
                                    for row, path in where.items()]
        self._records += records
        self.newest = [*self.newest[0], *records], self.newest[1]

    def forget(self) -> None:
        """Drop what was taken since the last `share` (an evaluation that is done again later)."""
        self._records, self._samples = [], 0

    def share(self, **extra: Any) -> None:
        """Bring all ranks' records together; called by all ranks at once.

        Args:
            extra: fields for every line, such as step=12.

        Raises:
            DataError: too large a share of all samples was unusable; raised on all ranks.
        """
        if not self.active:
            return
        gathered = distributed.all_gather_object((self._records, self._samples))
        self.forget()
        records = [record for part, _ in gathered for record in part]
        samples = sum(count for _, count in gathered)
        if distributed.is_main():
            self.log.add(records, samples, **extra)
        else:  # counts alike, so that all ranks judge alike; the file is rank 0's
            self.log.read += samples
            self.log.bad += len(records)
        self.log.check()

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Share on the steps that are logged."""
        if run.train.schedule.logs(run.step, run.config.run):
            self.share(step=run.step)

    def on_save(self, run: RunContext) -> None:
        """The counts of a checkpoint are those of all ranks."""
        self.share(step=run.step)

    def state(self) -> dict[str, int]:
        """Counts, for a checkpoint."""
        return self.log.state_dict()

    def load_state(self, state: Mapping[str, int]) -> None:
        """Continue from saved counts; rank 0 drops the lines written after them."""
        if distributed.is_main():
            self.log.load_state_dict(dict(state))
        else:
            self.log.bad, self.log.read = state["bad"], state["read"]
