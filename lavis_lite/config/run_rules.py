"""Rules for the values of a `run` section, and for values of other sections that depend on it."""

from __future__ import annotations

from collections.abc import Iterator

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import did_you_mean

POSITIVE = ("max_epoch", "max_iters", "iters_per_inner_epoch", "batch_size_train", "batch_size_eval",
            "accum_grad_iters", "shuffle_window", "log_freq", "save_every", "val_freq", "keep_checkpoints",
            "max_grad_norm", "dist_timeout_minutes")
NOT_NEGATIVE = ("init_lr", "min_lr", "warmup_steps", "weight_decay", "num_workers")
FRACTIONS = ("max_bad_fraction", "max_skipped_share", "lr_layer_decay")


def run_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    """(key of the run section, sentence) of every invalid value."""
    yield from _number_errors(run)
    yield from _length_errors(run)
    yield from _device_errors(run)
    yield from run.task_errors()
    if sharding := sharding_error(run):
        yield "fsdp", sharding


def _number_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    for key in POSITIVE:
        if getattr(run, key) is not None and not getattr(run, key) > 0:  # NaN is not above 0 either
            yield key, f"must be above 0, not {getattr(run, key)}."
    for key in NOT_NEGATIVE:
        if not getattr(run, key) >= 0:
            yield key, f"must not be negative, but is {getattr(run, key)}."
    for key in FRACTIONS:
        if not 0.0 <= getattr(run, key) <= 1.0:
            yield key, f"must be between 0 and 1, not {getattr(run, key)}."
    for key in ("beta1", "beta2"):
        if not 0.0 <= getattr(run, key) < 1.0:  # Adam divides by 1 - beta
            yield key, f"must be at least 0 and below 1, not {getattr(run, key)}."


def _length_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    if run.evaluate:
        if not run.valid_splits and not run.test_splits:
            yield "test_splits", "nothing to evaluate: name a split, such as --options run.test_splits=[test]."
    elif run.runner == "runner_iter" and run.max_iters is None:
        yield "max_iters", "runner_iter counts optimizer steps and needs it, for example run.max_iters=1000."
    elif run.max_iters is None and run.max_epoch is None:
        yield "max_epoch", "neither it nor run.max_iters says when to stop, for example run.max_epoch=10."


def _device_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    kind = run.device.split(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        yield "device", f"unknown device {run.device!r}; {did_you_mean(kind, ('auto', 'cpu', 'cuda'))}"
    if kind == "cpu" and run.amp_dtype == "fp16":
        yield "amp_dtype", "fp16 does not train on a CPU; use bf16 or fp32."


def sharding_error(run: RunConfig) -> str | None:
    """Why a run cannot shard its language model over the ranks, as a sentence; None if it can or does not.

    Ranks gather a block whenever one of them runs it, so all ranks must run equally many. They do in training, but not
    in generation, because each rank has other batches.
    """
    if run.fsdp == "none" or not (run.evaluate or run.valid_splits or run.test_splits):
        return None
    return ("a language model sharded over ranks can train but not generate. Set run.valid_splits=[] and "
            "run.test_splits=[]. Evaluate checkpoints with evaluate.py and model.llm_device_map=auto or "
            "model.llm_quantization=8bit.")
