"""What a section of a configuration is, and the section `run`: the keys that all tasks share.

`schema` has the other sections, and names these too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from typing import Any, ClassVar, Literal, TypeVar

from lavis_lite.errors import UndefinedMethodError
from lavis_lite.registry import registry

S = TypeVar("S", bound="Section")

AFFECTS_ROWS = {"affects_rows": True}
SCORING_ONLY = {"affects_rows": False}
"""metadata of `run` keys, see `RunConfig.affects_rows`"""


class Section:
    """A dataclass that may also be read like LAVIS' config sections: `cfg.get("key", default)`, `cfg["key"]`."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` if it is absent or None."""
        value = getattr(self, key, None)
        return default if value is None else value

    def replaced(self: S, **changes: Any) -> S:
        """A copy with other values of existing keys."""
        return replace(self, **changes)  # type: ignore[type-var]

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __contains__(self, key: str) -> bool:
        return any(field_.name == key for field_ in fields(self))  # type: ignore[arg-type]


class OpenSection(Section):
    """A section without fixed keys: what reads it decides, by `opened`, which of those that are given it takes."""

    reader: ClassVar[type]
    """the class that reads the section"""
    suggested: ClassVar[frozenset[str]] = frozenset()
    """what a key that is not taken may have been meant for"""
    unread: ClassVar[frozenset[str]] = frozenset()
    """keys that are taken, although nothing reads them"""

    @classmethod
    def opened(cls, content: Mapping[str, Any]) -> type[OpenSection]:
        """The section's class for these keys, with a field for each that is taken."""
        raise UndefinedMethodError.of(cls, "opened")


@dataclass
class RunConfig(Section):
    """The settings of a run. "Step" always means an optimizer step."""

    task: str = field(default="image_text_pretrain", metadata=AFFECTS_ROWS)
    """registered name; decides what a step computes and how a split is scored"""
    runner: str = "runner_base"
    """runner_base: the run's length is in epochs; runner_iter: in steps"""
    # length -------------------------------------------------------------------------------------------------------
    max_epoch: int | None = None
    """runner_base: passes over the training data"""
    max_iters: int | None = None
    """optimizer steps; with runner_base, a run stops at max_iters or max_epoch, whichever comes first"""
    iters_per_inner_epoch: int | None = None
    """runner_iter: steps between validations"""
    sampling: Literal["together", "ratios", "size", "sqrt"] | None = None
    """together: all data sets are shuffled together. Else each step draws from one set: by train_dataset_ratios, or in
    proportion to the sizes or their square roots, times datasets.<name>.sampling_factor. Absent: ratios if
    train_dataset_ratios is given, else together"""
    train_dataset_ratios: dict[str, float] | None = None
    """probability weight of each training data set; `sampling_factor` of a data set changes it by step"""
    shuffle_window: int | None = None
    """samples. If given, shards (blocks of 1,024 rows of other sets) are shuffled, then samples within windows of this
    size, so that reads stay in few shards. Absent: all samples are shuffled"""
    # optimizer ----------------------------------------------------------------------------------------------------
    optimizer: str = "adamw"
    """registered name, or a class of torch.optim in any case (sgd, NAdam, adafactor ...)"""
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    """more arguments of the optimizer, such as {momentum: 0.9}"""
    lr_sched: str = "linear_warmup_cosine_lr"
    """registered name of the learning-rate schedule"""
    init_lr: float = 1e-4
    """learning rate after the warm-up"""
    min_lr: float = 0.0
    """learning rate at the end of the schedule"""
    warmup_lr: float = -1.0
    """learning rate at step 0 of the warm-up; below 0: init_lr"""
    warmup_steps: int = 0
    """steps in which the learning rate rises linearly"""
    lr_decay_rate: float | None = None
    """linear_warmup_step_lr: factor per epoch"""
    weight_decay: float = 0.05
    """of weight matrices; biases and norms have none"""
    beta1: float = 0.9
    """decay of the optimizer's mean of gradients"""
    beta2: float = 0.999
    """beta1 and beta2: of optimizers that have `betas` (the Adam family)"""
    lr_layer_decay: float = 1.0
    """factor per layer of a trained vision encoder, from the output down"""
    max_grad_norm: float | None = None
    """clip the global gradient norm; None: no clipping"""
    max_skipped_share: float = 0.2
    """the run stops if more than this share of the last 100 steps had a non-finite loss or gradient. Such steps change
    no weights. Runs of fewer than 20 steps count as 20"""
    accum_grad_iters: int = 1
    """micro-batches per optimizer step"""
    amp: bool = False
    """mixed precision, see amp_dtype"""
    amp_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: with amp, bf16 if the device has it, else fp16 (on a CPU: fp32, with a note); without amp, fp32"""
    tf32: bool | None = None
    """NVIDIA GPUs multiply float32 matrices in TF32, rounded to 11 bits: ITC's similarities, which grow with the ranks,
    and all of a run without amp. Absent: as amp"""
    compile: Literal["none", "blocks", "full"] = "none"
    """what of a training torch.compile translates. blocks: each transformer block; full: the losses as a whole.
    Texts are then padded to a few widths, so that little is translated twice. It is meant for GPUs"""
    lm_reduction: Literal["global", "per_rank"] = "global"
    """average of LM and ITG losses. Over all tokens of a step, independent of ranks and micro-batches; or LAVIS' mean
    of the means of each rank's micro-batches"""
    # data ---------------------------------------------------------------------------------------------------------
    batch_size_train: int = 16
    """samples per rank and micro-batch"""
    batch_size_eval: int = field(default=64, metadata=AFFECTS_ROWS)
    """samples per rank and batch of an evaluation"""
    decode_at_once: int | None = field(default=None, metadata=AFFECTS_ROWS)
    """of these, so many are answered at the same time; the others wait and take the places of those that are finished;
    null: all"""
    fixed_cache: bool | None = field(default=None, metadata=AFFECTS_ROWS)
    """keys and values have their final shape from the first token of an answer on; null: on a GPU"""
    num_workers: int = 4
    """loader processes per rank"""
    prefetch_factor: int = 2
    """batches that each loader process prepares in advance"""
    worker_start_method: Literal["fork", "spawn", "forkserver"] | None = None
    """how loader processes are started; None: the platform's default"""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    """splits that are learned"""
    valid_splits: list[str] = field(default_factory=list)
    """splits scored while training; the first one chooses the best checkpoint"""
    test_splits: list[str] = field(default_factory=list)
    """splits scored at the end with the best checkpoint"""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """unusable sample: raise stops the run, skip leaves it out and counts it"""
    max_bad_fraction: float = 0.01
    """skip stops the run when more than this share of the samples read was bad"""
    # hooks --------------------------------------------------------------------------------------------------------
    hooks: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """hooks of the training: registered hook -> its arguments ({}: defaults; null: the hook is off). A list of names,
    or of one-key sections, is also accepted"""
    weights: str | None = None
    """evaluation of a run (--run): evaluate the weights that this hook keeps (ema) instead of the trained ones"""
    # bookkeeping --------------------------------------------------------------------------------------------------
    seed: int = field(default=42, metadata=AFFECTS_ROWS)
    """of everything random in the run"""
    output_dir: str = "output"
    """parent folder; a run is <output_dir>/<time>/"""
    device: str = "auto"
    """auto: the rank's GPU if there is one, else cpu"""
    evaluate: bool = False
    """score the splits and do not train"""
    resume_ckpt_path: str | None = None
    """checkpoint folder to continue from, as --resume"""
    allow_untrained: bool = False
    """evaluate a model even if some trainable weights are random because no checkpoint has them"""
    resume_evaluation: bool = True
    """continue a stopped evaluation of the same weights, data and settings; false: start over"""
    log_freq: int = 50
    """steps between log lines"""
    save_freq: int = 5
    """runner_base: epochs between checkpoints; runner_iter: inner epochs. Below 1: only last and best"""
    save_every: int | None = None
    """steps between checkpoints, besides save_freq"""
    save_last: bool = True
    """whether to save a checkpoint at the end"""
    keep_checkpoints: int = 2
    """number of newest step checkpoints to keep, besides the best one"""
    val_freq: int = 1
    """epochs (runner_iter: inner epochs) between validations"""
    report: bool = True
    """write a page of samples (results/report.html) after each evaluation, if the task has samples to show"""
    report_samples: int = 5000
    """most samples on the page, evenly spaced"""
    tensorboard: bool = True
    """whether to write the log for TensorBoard"""
    wandb: bool = False
    """whether to send the log to Weights & Biases"""
    wandb_project: str = "lavis_lite"
    """its project there"""
    fsdp: Literal["none", "llm", "blocks"] = "none"
    """shard transformer blocks over the ranks (FSDP2), frozen or trained. llm: of the language model; blocks: of the
    vision encoder too"""
    find_unused_parameters: bool = False
    """DDP searches for parameters without a gradient in each step"""
    ddp_bucket_mb: float | None = None
    """MiB of gradients that ranks exchange at a time; None: torch's choice (25)"""
    gradient_compression: Literal["none", "bf16"] = "none"
    """bf16: ranks exchange gradients in half the bytes, rounded to 8 bits; the results change a little"""
    overlap_exchange: bool = False
    """while ranks exchange gradients, the frozen vision encoder sees the next step's images. The results are equal; a
    rank holds one more batch. No effect on one rank, on videos and on encoders that train"""
    dist_timeout_minutes: float = 10.0
    """longest wait for the other ranks within a step"""
    rendezvous_timeout_minutes: float = 5.0
    """longest wait for the other ranks at the start"""
    # kept from LAVIS so that its files run unchanged; no effect here ------------------------------------------------
    world_size: int | None = None
    """of LAVIS, without effect: the launcher decides"""
    dist_url: str | None = None
    """of LAVIS, without effect: the launcher decides"""
    distributed: bool | None = None
    """of LAVIS, without effect: the launcher decides"""
    use_dist_eval_sampler: bool | None = None
    """of LAVIS, without effect: an evaluation gives each sample to exactly one rank"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Errors of the task's own keys, beyond types, each as (key, sentence). Tasks' sections extend it."""
        return []

    @classmethod
    def affects_rows(cls, key: str) -> bool:
        """Whether the rows that an evaluation predicts depend on a key; if not, a resumed evaluation may change it.

        Of the keys of every task, those marked AFFECTS_ROWS do. Of a task's own keys, all do but those marked
        SCORING_ONLY, by which finished rows are scored and written. Subclasses that change a default keep the mark.
        """
        own = [base.__dict__.get("__dataclass_fields__", {}).get(key) for base in cls.__mro__]
        marks = [found.metadata["affects_rows"] for found in own if found and "affects_rows" in found.metadata]
        return marks[0] if marks else key not in RunConfig.__dataclass_fields__


RUN_KEYS_WITHOUT_EFFECT = {
    "world_size": "the launcher (torchrun, srun) decides it",
    "dist_url": "the launcher (torchrun, srun) decides it",
    "distributed": "the launcher (torchrun, srun) decides it",
    "use_dist_eval_sampler": "evaluation is always shared over ranks without duplicates",
}
"""LAVIS keys that pass with a note."""

TASK_KEYS_OF_LAVIS: dict[str, type | tuple[type, ...]] = {
    "num_beams": int, "max_len": int, "min_len": int, "repetition_penalty": float, "length_penalty": float,
    "top_p": float, "temperature": float, "prompt": str, "inference_method": str, "num_ans_candidates": int,
    "k_test": int, "segments": int, "report_metric": bool, "annotation_file": str, "sample_id_key": str,
    "caption_key": str, "load_gt_from_file": bool, "img_ids": list, "ques_files": (dict, list),
    "anno_files": (dict, list),
}
"""LAVIS run keys that belong to one task; another task passes them with a note."""


# sections in which one key names the class that owns the others ------------------------------------------------------
def settings_of_others(merged: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[str]:
    """Dotted keys in the layers below (`merged`) of a connector or processor that a layer puts another in place of."""
    if _names_another(merged, content, ("model", "connector"), "type"):
        yield "model.connector"
    homes = [("preprocess",), *(("datasets", name) for name in _inside(content, ("datasets",)))]
    pairs = ((*home, kind) for home in homes for kind in ("vis_processor", "text_processor"))
    for path in ((*pair, mode) for pair in pairs for mode in ("train", "eval")):
        if _names_another(merged, content, path, "name"):
            kept = {"name", *_sizes_of(_inside(content, path)["name"])}
            yield from (".".join((*path, key)) for key in _inside(merged, path) if key not in kept)


def _names_another(merged: Mapping[str, Any], content: Mapping[str, Any], path: tuple[str, ...], key: str) -> bool:
    before, now = _inside(merged, path), _inside(content, path)
    return key in before and now.get(key, before[key]) != before[key]


def _inside(tree: Any, path: Sequence[str]) -> Mapping[str, Any]:
    """The section at a path; {} if it is absent."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _sizes_of(processor: Any) -> set[str]:
    """Arguments of a processor that say what the model takes; none if its name is unknown."""
    known = processor in registry.processor
    return {"image_size", "n_frms"} & set(signature(registry.processor.get(processor)).parameters if known else [])
