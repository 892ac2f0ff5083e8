"""Captions or answers of a few fixed samples, again and again while the model learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.registry import registry
from lavis_lite.runners.hooks.base import Hook, RunContext

if TYPE_CHECKING:
    from torch import Tensor

    from lavis_lite.runners.step import StepResult

INPUTS = ("text_input", "question", "prompt")
"""keys of texts that a model reads, the first of which is shown"""


@registry.register_hook("sample_predictions")
class SamplePredictions(Hook):
    """Shows what the model writes about some samples of a split, as a text in TensorBoard and W&B and in log.jsonl.

    The samples are spread evenly over the split and stay the same. Their pictures are shown once. The task predicts; if
    its rows hold no text, the model's `generate` does. The first texts are those before training. Rank 0 does the work.

    Args:
        samples: how many.
        split: null: the first of `run.valid_splits`, else of `run.test_splits`, else of `run.train_splits`.
        every: optimizer steps between two looks.
    """

    def __init__(self, samples: int = 8, split: str | None = None, every: int = 500) -> None:
        if samples < 1:
            raise ConfigError(f"run.hooks.sample_predictions.samples: must be above 0, not {samples}.")
        self.samples, self.split, self.every = samples, split, every
        self._dataset: Any = None
        self._batch: dict[str, Any] = {}

    def on_start(self, run: RunContext) -> None:
        """Read the samples, show their pictures and what the model makes of them so far.

        Raises:
            ConfigError: no data set has the split; nothing writes texts.
        """
        if run.is_main:
            self._dataset = self._find(run)
            self._batch = self._read(run)
            for row, picture in enumerate(pictures(self._batch)):
                run.tracker.image(run.step, f"{self.name}/{row}", picture)
        try:
            self._show(run)
        except DataError as error:  # the task cannot evaluate this data set
            raise ConfigError(f"run.hooks.sample_predictions.split is {self.split!r}: {error}") from error

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Show what the model writes now."""
        self._show(run)

    def _find(self, run: RunContext) -> Any:
        cfg = run.config.run
        self.split = self.split or [*cfg.valid_splits, *cfg.test_splits, *cfg.train_splits][0]
        found = [splits[self.split] for splits in run.datasets.values() if self.split in splits]
        if not found:
            present = sorted({split for splits in run.datasets.values() for split in splits})
            raise ConfigError(f"run.hooks.sample_predictions.split: no data set of the run has {self.split!r}; "
                              f"{did_you_mean(self.split, present)}")
        return next((dataset for dataset in found if run.task.takes(dataset)), found[0])

    def _read(self, run: RunContext) -> dict[str, Any]:
        from lavis_lite.datasets.loading.loader import collate_of
        from lavis_lite.datasets.loading.policy import EvaluationSamples

        samples = EvaluationSamples(self._dataset, run.config.run.seed, "raise")
        count = min(self.samples, len(samples))
        batch: Any = collate_of(self._dataset)([samples[row * len(samples) // count] for row in range(count)])
        if not isinstance(batch, dict):
            raise ConfigError(f"run.hooks.sample_predictions: {batch.message}")
        return batch

    def _show(self, run: RunContext) -> None:
        from lavis_lite.runners.placement import whole_blocks

        with whole_blocks(run.model):  # all ranks give their parts, and rank 0 answers
            texts = self._predict(run) if run.is_main else []
        if not run.is_main:
            return
        inputs = next((self._batch[key] for key in INPUTS if isinstance(self._batch.get(key), list)), None)
        lines = [f"{row}. {f'{inputs[row]} -> ' if inputs else ''}{text}" for row, text in enumerate(texts)]
        run.tracker.text(run.step, self.name, "\n".join(lines))

    def _predict(self, run: RunContext) -> list[str]:
        import torch

        from lavis_lite import distributed

        was_training = run.model.training
        run.model.eval()
        try:
            with torch.no_grad(), distributed.local(), run.precision.autocast():
                task = run.task.part_for(self._dataset)
                task.before_evaluation(self._dataset, str(self.split))
                batch = {key: value.to(run.device) if isinstance(value, torch.Tensor) else value
                         for key, value in self._batch.items()}
                rows = task.predict(run.model, dict(batch))
                texts = [", ".join(value for key, value in row.items() if isinstance(value, str) and key != "id")
                         for row in rows]
                if any(texts):
                    return texts
                generate = getattr(run.model, "generate", None)
                if generate is None:
                    raise ConfigError(f"run.hooks.sample_predictions: {type(run.model).__name__} has no `generate` "
                                      f"and run.task={run.config.run.task} predicts no texts; leave the hook out.")
                return list(generate({"image": batch["image"]}))
        finally:
            run.model.train(was_training)


def pictures(batch: dict[str, Any]) -> list[Tensor]:
    """float[3,H,W] from 0 to 1 each, whatever normalisation the processor used; the first frame of a video."""
    image = batch.get("image", batch.get("video"))
    if image is None or image.ndim not in (4, 5):
        return []
    found = []
    for one in (image if image.ndim == 4 else image[:, :, 0]).float():
        low, high = one.min(), one.max()
        found.append((one - low) / (high - low).clamp(min=1e-6))
    return found
