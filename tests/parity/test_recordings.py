"""The harness itself: other folders give no failure of its own, and every recorded tensor is one that a test notices.

`LAVIS_LITE_PARITY_MUTATIONS=all pytest tests/parity/test_recordings.py -k noticed` changes every tensor in turn; by
default some of every folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import find_parity
from tests.parity.all_recordings import recordings, unknown_folders
from tests.parity.blip2_two_ranks import two_processes
from tests.parity.clip_stage1 import record_as_clip
from tests.parity.recordings import Comparison, Recording, changed, uncompared
from tests.parity.sim_matrix import scores_in_two_processes

pytestmark = pytest.mark.shared
ALL = os.environ.get("LAVIS_LITE_PARITY_MUTATIONS") == "all"
EACH = 4
"""tensors of each folder that are changed by default"""
IN_GROUPS = (two_processes, scores_in_two_processes)
"""comparisons that take seconds: processes have to form a group"""


def mutations() -> list[Any]:
    """(recording, comparison, key) of all keys, or of some that are spread over each folder's."""
    found = []
    for recorded, comparisons in recordings(find_parity()):
        by_key: dict[str, Comparison] = {}
        for one in comparisons:
            for key in one.keys:
                if key not in by_key or by_key[key].check in IN_GROUPS:
                    by_key[key] = one
        keys = sorted(key for key in by_key if ALL or by_key[key].check not in IN_GROUPS)
        chosen = keys if ALL else keys[::max(1, len(keys) // EACH)][:EACH]
        found += [pytest.param(recorded, by_key[key], key, id=f"{recorded.folder.name}-{key}") for key in chosen]
    return found


@pytest.mark.parametrize(("recorded", "comparison", "key"), mutations())
def test_a_changed_tensor_is_noticed(recorded: Recording, comparison: Comparison, key: str) -> None:
    """By 1e-3 of itself and 1e-3."""
    before = recorded.tensors[key]
    recorded.tensors[key] = changed(before)
    try:
        with pytest.raises(AssertionError):
            comparison.run(recorded)
    finally:
        recorded.tensors[key] = before


def test_every_recorded_folder_is_compared_or_named(parity_dir: Path) -> None:
    unknown = unknown_folders(parity_dir)
    recorded = {path.parent for path in parity_dir.rglob("expected.safetensors")}
    assert {found.folder for found, _ in recordings(parity_dir)} | set(unknown) == recorded
    if unknown:
        names = ", ".join(path.name for path in unknown)
        pytest.skip(f"no comparison for {names}: no config.json of a known arch")


def test_a_comparison_that_leaves_a_tensor_out_fails(parity_dir: Path) -> None:
    recorded, comparisons = recordings(parity_dir)[0]
    lazy = Comparison("lazy", lambda recorded, case: None, comparisons[0].keys)
    with pytest.raises(AssertionError, match="not compared"):
        lazy.run(recorded)
    recorded.tensors["something/new"] = recorded.tensors[min(comparisons[0].keys)]
    assert uncompared(recorded, comparisons) == ["something/new"]


# folders with other recordings ----------------------------------------------------------------------------------------
def copied(source: Path, target: Path, keep: Callable[[str], bool]) -> Path:
    """A folder with only those tensors and cases that `keep` wants; tokenizers are found beside it."""
    shutil.copytree(source, target)
    tensors = load_file(source / "expected.safetensors")
    save_file({key: value for key, value in tensors.items() if keep(key)}, target / "expected.safetensors")
    expected: Mapping[str, Any] = json.loads((source / "expected.json").read_text())
    kept = {case: value for case, value in expected.items() if case.startswith("_") or keep(f"{case}/")}
    (target / "expected.json").write_text(json.dumps(kept))
    if not (target.parent / "tokenizers").exists():
        (target.parent / "tokenizers").symlink_to(source.parent / "tokenizers")
    return target


LEFT_OUT = {
    "eva_vit": ("block0", "features_56", "grad_norms"),
    "blip2_qformer": ("extract_", "match_", "compute_itm", "compute_sim", "qformer_generate", "world_size_2",
                      "retrieval", "pretrain_b4", "pretrain_b2/grad/", "pretrain_b2/lm_logits"),
    "blip2_opt": ("generate_", "train_prompt_empty", "train_prompt_a_photo_of/llm_a", "train_prompt_a_photo_of/proj"),
    "blip2_t5_instruct": ("predict_", "generate_", "train/llm_decoder", "train/llm_labels", "train/llm_logits"),
}
"""folder -> how the keys begin that a smaller folder lacks"""


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_folder_with_fewer_recordings_is_compared_in_what_it_has(name: str, parity_dir: Path, tmp_path: Path) -> None:
    if not (parity_dir / name).is_dir():
        pytest.skip(f"{name} is not recorded here")
    folder = copied(parity_dir / name, tmp_path / "other_name", lambda key: not key.startswith(LEFT_OUT[name]))
    (recorded, comparisons), = recordings(folder)
    assert 0 < len(recorded.tensors) < len(load_file(parity_dir / name / "expected.safetensors"))
    assert uncompared(recorded, comparisons) == []
    for one in comparisons:
        one.run(recorded)


def test_stage_1_with_names_of_clip(parity_dir: Path, tmp_path: Path) -> None:
    """Gradients of the vision encoder under LAVIS' names for CLIP, which single names do not tell."""
    folder = copied(parity_dir / "blip2_qformer", tmp_path / "clip", lambda key: key.startswith("pretrain_b2"))
    record_as_clip(folder)
    (recorded, comparisons), = recordings(folder)
    assert "visual_encoder.class_embedding" in recorded.expected["pretrain_b2"]["grad_norms"]
    assert "pretrain_b2/grad/visual_encoder.class_embedding" in recorded.tensors
    assert uncompared(recorded, comparisons) == []
    for one in comparisons:
        one.run(recorded)
    key = "pretrain_b2/grad/visual_encoder.class_embedding"
    recorded.tensors[key] = changed(recorded.tensors[key])
    with pytest.raises(AssertionError, match="class_embedding"):
        next(one for one in comparisons if key in one.keys).run(recorded)


def test_an_unknown_arch_is_named(parity_dir: Path, tmp_path: Path) -> None:
    folder = copied(parity_dir / "blip2_opt", tmp_path / "of_tomorrow", lambda key: True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "arch": "blip3"}))
    assert recordings(tmp_path) == [] and unknown_folders(tmp_path) == [folder]


def test_changed_is_another_tensor() -> None:
    import torch

    values: list[Tensor] = [torch.zeros(2), torch.tensor([5.0]), torch.tensor([0, 1]), torch.tensor([-100])]
    assert all(not torch.equal(changed(value), value) and changed(value).dtype == value.dtype for value in values)
