"""Every row of the tables in docs/guide/coming_from_lavis.md is checked: what is written there was measured.

Imports are run, names and signatures looked up, keys composed, decoding defaults compared with what reaches the
decoder. What needs a training has a test elsewhere, which `MEASURED` names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite.compat.lavis.finder import NotCarriedError
from lavis_lite.config.compose import compose
from lavis_lite.config.layers import parse_options
from lavis_lite.config.named import model_types
from lavis_lite.models.blip2 import scoring
from lavis_lite.registry import registry
from tests.end_to_end.conftest import ROOT
from tests.models.stage1_helpers import tiny_model
from tests.models.test_blip2_llm import images, model_of
from tests.tasks.test_decoding_defaults import STYLES, effective

PAGE = ROOT / "docs" / "guide" / "coming_from_lavis.md"
STAGE1, STAGE2 = (str(ROOT / "projects" / "blip2" / name) for name in ("stage1.yaml", "stage2_opt.yaml"))
Row = tuple[str, ...]

MEASURED = {
    "`python train.py --cfg-path F --options k=v`":
        "tests/compat/test_coming_from_lavis.py::test_options_in_both_spellings",
    "`python evaluate.py --cfg-path F`":
        "tests/end_to_end/test_runs.py::test_a_run_with_validation_in_every_other_way",
    "`python -m torch.distributed.run --nproc_per_node=8 train.py --cfg-path F`":
        "tests/runners/test_ranks.py::test_two_processes_equal_one_on_the_same_global_batch",
    "`bash run_scripts/blip2/eval/eval_ret_coco.sh` and the 12 others of `run_scripts/blip2`":
        "tests/config/test_lavis_recipes.py::test_all_scripts_of_lavis_start_their_recipe",
    "`--cfg-path lavis/projects/blip2/train/pretrain_stage1.yaml` and the 14 others of BLIP-2":
        "tests/config/test_lavis_recipes.py::test_a_recipe_path_of_lavis_is_the_same_experiment_here",
    "`--cfg-path lavis/projects/instructblip/...`":
        "tests/config/test_lavis_recipes.py::test_recipes_without_a_counterpart_are_refused_with_a_reason",
    "`model.finetuned` or `run.resume_ckpt_path` with a checkpoint to score":
        "tests/runs/test_run_composition.py::test_an_evaluation_has_the_runs_configuration_and_its_weights",
    "relative `storage:` under the cache root":
        "tests/io/test_files.py::test_names_resolve_in_the_working_folder_then_in_the_cache",
    "FlanT5 in stage 2 needs `text_input` and `text_output`":
        "tests/models/test_blip2_llm.py::test_a_model_with_an_encoder_reads_the_first_part_and_learns_the_rest",
    "logged losses": "tests/runners/test_training_log.py::test_the_losses_of_a_line_are_means_since_the_last_one",
    "a pair's own positive":
        "tests/parity/test_blip2_qformer.py::test_a_pair_without_a_negative_adds_no_term_where_lavis_draws_the_positive",
    "`max_length`, `min_length` of `generate`":
        "tests/models/test_blip2_llm.py::test_lavis_lengths_are_new_tokens_or_count_the_start",
    "`predict_answers` over OPT":
        "tests/models/language/test_room.py::test_the_last_row_that_fits_is_answered_and_scored",
    '"</s>", "[SEP]", "<pad>" inside a caption, question or candidate':
        "tests/models/test_control_tokens.py::test_no_text_spells_a_control_token",
    "`predict_answers` in the task `vqa`": "tests/tasks/test_decoding_defaults.py::test_what_the_run_says_goes_first",
    "`run.max_iters`, `run.log_freq`, `run.warmup_steps`":
        "tests/runners/test_schedules.py::test_cosine_warms_up_linearly_then_falls_to_min_lr",
    "`run.lr_sched: linear_warmup_cosine_lr`": "tests/runners/test_schedules.py::test_cosine_has_no_jump",
    "`run.lr_layer_decay`": "tests/runners/test_optim.py::test_layer_decay_really_scales_the_rate_of_every_step",
    "`run.amp: true`": "tests/runners/test_runner.py::test_amp_asks_the_device",
    "`run.output_dir`": "tests/end_to_end/test_train.py::test_a_whole_run",
    "`run.resume_ckpt_path`":
        "tests/runs/test_run_composition.py::test_to_resume_is_to_evaluate_that_checkpoint_and_a_training_is_left_alone",
    "`run.train_dataset_ratios`":
        "tests/datasets/loading/test_sampler.py::test_ranks_and_accumulation_share_the_same_global_batches",
    "`model.vit_precision: fp16`": "tests/zoo/test_loading.py::test_precisions_follow_device_wish_and_what_trains",
    "`run.lm_reduction: per_rank`":
        "tests/runners/test_objective.py::test_lavis_reduction_is_the_mean_of_the_micro_batches",
}
"""first cell of a row -> the test that measures its meaning"""

PORTED = {
    "keys of a section": "test_sections::test_all_keys_are_kept_and_handed_over_as_lavis_does",
    "a class under a name that LAVIS itself has, as in a copy of LAVIS that was changed in place":
        "test_forks::test_lavis_names_are_the_fork_s_and_lavis_files_the_package_s",
    "`PRETRAINED_MODEL_CONFIG_DICT`, `DATASET_CONFIG_DICT`":
        "test_forks::test_yamls_that_only_lavis_has_are_made_of_the_package_s",
    '`registry.mapping["paths"][...] = folder`':
        "test_forks::test_lavis_names_are_the_fork_s_and_lavis_files_the_package_s",
    '`samples["epoch"]`, `["iters"]`, `["num_iters_per_epoch"]`':
        "test_forks::test_a_fork_that_changed_lavis_in_place",
    "`compute_sim_matrix`": "test_forks::test_the_matrix_holds_itm_and_itc_of_the_best_candidates",
    "`load_checkpoint`, `load_checkpoint_from_config`": "test_blip2_models::test_checkpoints_by_config",
    "random numbers in a data set or processor":
        "test_adapters::test_a_data_set_is_read_with_the_sample_s_own_randomness",
    "samples that are not dictionaries": "test_adapters::test_questions_of_lavis_layout_become_flat_answers",
    "a data set that returns None": "test_adapters::test_a_data_set_is_read_with_the_sample_s_own_randomness",
    "`collater`": "test_adapters::test_batches_of_several_data_sets_have_shared_keys",
    "`valid_step`, `after_evaluation`": "test_projects::test_two_ranks_see_what_one_sees",
    "`load_model`, `load_model_and_preprocess` of `lavis.models`":
        "test_blip2_models::test_a_script_gets_a_model_with_lavis_parts_and_the_package_s_texts",
    "names that a module of LAVIS imports, such as `blip2_qformer.BlipOutputFeatures`":
        "test_blip2_models::test_modules_have_what_lavis_imports_there",
    "`registry.mapping[\"model_name_mapping\"].pop(name)`":
        "test_forks::test_a_name_that_is_taken_out_of_the_mapping_is_registered_again",
    "`build_model` of a task": "test_adapters::test_a_task_may_change_the_model_of_its_run",
    "`build_datasets` of a task": "test_forks::test_a_fork_that_changed_lavis_in_place",
    "a runner's `__init__(cfg, task, model, datasets, job_id)` and `lr_scheduler`":
        "test_projects::test_a_stage_1_with_learned_prompts_and_a_runner_of_its_own",
    "`epoch` in `after_evaluation`": "test_projects::test_a_chat_model_with_its_own_builder_and_keys",
    "`get_optimizer_params(weight_decay, lr_scale)`":
        "test_adapters::test_a_model_s_own_groups_reach_the_optimizer",
    "`self.Qformer`": "test_qformer::test_queries_and_text_together",
    "`Qformer.generate`": "test_own_copies::test_the_q_former_generates_as_the_package_does",
    "a language model with added words": "test_own_copies::test_stage_2_in_half_precision_with_tokens_added",
    "float16 weights": "test_own_copies::test_stage_2_in_half_precision_with_tokens_added",
    "`torch.distributed` in a class": "test_own_copies::test_stage_1_that_calls_torch_distributed_itself",
    "a task's option that a class's `generate` does not take":
        "test_own_copies::test_stage_1_that_calls_torch_distributed_itself",
    "a vision encoder": "test_blip2_models::test_the_parts_people_touch",
}
"""first cell of a row of porting_a_lavis_project.md -> the test of this folder that measures it"""


def tables(section: str, page: Path = PAGE) -> list[list[Row]]:
    """The tables of a section of a page, without their heads; an empty first cell repeats the one above."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.M | re.S)
    assert text, section
    found: list[list[Row]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text[1], re.M):
        rows = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in block.splitlines()]
        rows = [tuple(cell.strip("| ") for cell in row) for row in rows][2:]
        for number, row in enumerate(rows):
            rows[number] = (row[0] or rows[number - 1][0], *row[1:])
        found.append(rows)
    return found


def code(cell: str) -> list[str]:
    """The code spans of a cell."""
    return re.findall(r"`([^`]+)`", cell)


def rows(section: str, number: int = 0) -> Any:
    """Parameters of a test: the rows of a table."""
    return pytest.mark.parametrize("row", tables(section)[number], ids=lambda row: f"{row[0]} {row[1]}"[:60])


# names ----------------------------------------------------------------------------------------------------------------
@rows("Imports")
def test_both_sides_import(row: Row) -> None:
    for statement in (*code(row[0]), *code(row[1])):
        exec(statement, {})


@rows("Names")
def test_names_are_registered(row: Row) -> None:
    kinds = {"task": registry.task, "runner": registry.runner, "schedule": registry.lr_scheduler,
             "processor": registry.processor}
    for kind in code(row[0]) or [row[0]]:
        known: Any = kinds[kind].names() if kind in kinds else model_types(kind)
        assert kind in kinds or kind in registry.model
        assert [name for name in code(row[1]) if name not in known] == []


@rows("Calls")
def test_arguments_are_those_of_lavis(row: Row) -> None:
    (name,) = code(row[1])
    here: dict[str, Any] = {"lavis_lite": lavis_lite}
    for _, statement in tables("Imports")[0]:
        exec(code(statement)[0], here)
    target = eval(name, here)
    call: Any = ast.parse(code(row[0])[0], mode="eval").body
    ours = [parameter for name, parameter in inspect.signature(target).parameters.items() if name != "self"]
    wanted = [*(argument.id for argument in call.args), *(keyword.arg for keyword in call.keywords)]
    assert [parameter.name for parameter in ours[:len(wanted)]] == wanted
    assert {key.arg: ast.literal_eval(key.value) for key in call.keywords}.items() <= {
        parameter.name: parameter.default for parameter in ours}.items()


@rows("Not here")
def test_what_is_not_here_is_refused_by_name(row: Row, tmp_path: Path) -> None:
    for name in code(row[1]):
        if row[0].startswith("package"):
            with pytest.raises(NotCarriedError, match=name):
                importlib.import_module(f"lavis.models.{name}")
            continue
        if row[0] == "data set":
            errors = compose(STAGE1, [f"datasets.{name}={{}}"]).errors
            assert [error for error in errors if f"datasets.{name}: holds" in error], (name, errors)
            continue
        composition = compose(STAGE1, [f"{code(row[0])[0]}={name}"])
        assert [error for error in composition.errors if f"'{name}'" in error], (name, composition.errors)


def test_options_in_both_spellings() -> None:
    assert parse_options(["run.seed", "3", "run.amp", "true"]) == parse_options(["run.seed=3", "run.amp=true"])


# keys -----------------------------------------------------------------------------------------------------------------
def is_measured(row: Row) -> bool:
    """Whether the test that the table names is there."""
    path, _, name = MEASURED[row[0]].partition("::")
    return f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


@rows("Commands and recipes")
def test_commands_are_measured(row: Row) -> None:
    assert is_measured(row)


def test_what_porting_says_is_measured() -> None:
    (found,) = tables("What is the same, and what is not", PAGE.with_name("porting_a_lavis_project.md"))
    assert [row[0] for row in found] == [*PORTED]
    for target in PORTED.values():
        module, _, name = target.partition("::")
        assert f"def {name}(" in (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"), target


@rows("Training and decoding")
def test_differences_are_measured(row: Row) -> None:
    assert is_measured(row)


@rows("Data sets")
def test_data_sets_are_read(row: Row) -> None:
    if row[0] in MEASURED:
        assert is_measured(row)
        return
    name, *kinds = code(row[0])
    composition = compose(STAGE1, [f"datasets.{name}.type={kind}" for kind in kinds or ["default"]])
    assert composition.errors == []


@rows("Run files")
def test_keys_are_composed(row: Row) -> None:
    """A key with a value composes without an error, and with a note where the row names one."""
    assert row[0] not in MEASURED or is_measured(row)
    given = [item.replace(": ", "=") for item in code(row[0]) if ": " in item]
    composition = compose(STAGE2 if any(option.startswith("model.qformer") for option in given) else STAGE1, given)
    assert composition.errors == [] and (given or row[0] in MEASURED)
    for option in given:
        noted = any(option.partition("=")[0] in note for note in composition.config.notes)
        assert noted == ("note" in row[-1]), composition.config.notes


# decoding -------------------------------------------------------------------------------------------------------------
def recorded(entry: Row, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Any:
    """What reaches the decoder in a call of a model's method."""
    arch, method = code(entry[0])
    seen: list[Any] = []
    if arch == "blip2":
        model: Any = tiny_model()
        monkeypatch.setattr(scoring, "decode", lambda *args: seen.append(args[3]) or [])
        model.qformer.cfg = replace(model.qformer.cfg, max_positions=512)  # a copy: other tests share the sizes
    else:
        model = model_of(*STYLES[arch])
        monkeypatch.setattr(type(model), "_default_length", lambda self, _: self.defaults.max_length)
        monkeypatch.setattr(model, "_write", lambda *args: seen.append(args[3]) or [""] * 2)
    getattr(model, method)({"image": images(2), "text_input": ["q", "r"]}, **given)
    return seen


@rows("Training and decoding", 1)
def test_decoding_defaults(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent call decodes as one with the value of the last cell, and otherwise than one with another value."""
    name = code(row[1])[0].removeprefix("run.")
    value = ast.literal_eval(row[3].partition(";")[0])
    extra = {"use_nucleus_sampling": True} if "nucleus" in row[1] else {}
    for entry in code(row[0]) if row[0].startswith("task") else [""]:
        run: Any = partial(effective, entry, "blip2_opt", monkeypatch) if entry else partial(recorded, row, monkeypatch)
        if value == "generate":
            assert registry.get_task_class(entry).config_class.inference_method == value
            continue
        silent = run(**extra)
        assert silent and silent == run(**extra, **{name: value})
        assert silent != run(**extra, **{name: value / 2 if name == "top_p" else value + 2})
