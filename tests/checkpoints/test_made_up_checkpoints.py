"""A table of checkpoints as people have them: each loads right, tensor by tensor, or is refused with what helps."""

from __future__ import annotations

import argparse
import gzip
import json
import pickle
import re
import tarfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from lavis_lite.checkpoints import load_checkpoint, load_vision_weights, to_hf, to_lavis
from lavis_lite.checkpoints.load import load_state
from lavis_lite.checkpoints.reading import read_tensors
from lavis_lite.errors import CheckpointError
from tests.checkpoints.export_helpers import build, section_of_arch

State = dict[str, Tensor]
SOURCE: Any = build(section_of_arch("blip2", Path()), seed=1)
WHOLE: State = {name: value.clone() for name, value in SOURCE.state_dict().items()}
STATE: State = {name: value.clone() for name, value in SOURCE.trainable_state().items()}
LAVIS, HUGGING_FACE = to_lavis(STATE).tensors, to_hf(WHOLE).tensors
RESAVE = r"python -c \"import torch"


class Project:
    """A class of somebody's training script; nothing of it may run."""

    ran = False

    def __setstate__(self, state: Any) -> None:
        Project.ran = True


class Configuration(dict[str, Any]):
    """A dictionary of somebody's own class."""


def renamed(change: Callable[[str], str], state: State = STATE) -> State:
    return {change(name): value for name, value in state.items()}


def inside(piece: str, state: State = STATE) -> State:
    """A wrapper's piece in the middle of every name that has a middle."""
    return renamed(lambda name: name.replace(".", f".{piece}.", 1), state)


def broken(value: float) -> State:
    return {**STATE, "query_tokens": torch.full_like(STATE["query_tokens"], value)}


def shards(folder: Path, suffix: str = "safetensors") -> Path:
    """A folder with two shards and their index."""
    folder.mkdir()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(STATE)
    places = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        tensors = {name: STATE[name] for name in part}
        save_file(tensors, folder / file) if suffix == "safetensors" else torch.save(tensors, folder / file)
        places.update(dict.fromkeys(part, file))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def lightning(**more: Any) -> dict[str, Any]:
    return {"epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.5.0", "callbacks": {}, "loops": {},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
            "state_dict": renamed("model.{}".format), **more}


def deepspeed(state: State) -> dict[str, Any]:
    return {"module": state, "optimizer": None, "ds_config": {"zero": 2}, "buffer_names": ["a"], "global_steps": 9}


LOADS: dict[str, tuple[Any, str]] = {
    "plain": (STATE, r"^[^;]*$"),
    "under model, as LAVIS": ({"model": LAVIS, "optimizer": {"state": {0: {"x": torch.ones(1)}}}}, r"\(LAVIS\)"),
    "torch.compile": (renamed("_orig_mod.{}".format), r"names without `_orig_mod\.`"),
    "DDP": ({"model": renamed("module.{}".format)}, r"names without `module\.`"),
    "DDP of a compiled model": (renamed("module._orig_mod.{}".format), r"`module\.`, `_orig_mod\.`"),
    "compiled model of DDP, LAVIS' names": ({"model": renamed("_orig_mod.module.{}".format, LAVIS)}, r"`_orig_mod\.`"),
    "a compiled part": (inside("_orig_mod"), r"`_orig_mod\.`"),
    "a compiled part of LAVIS": (renamed(lambda name: name.replace("Qformer.", "Qformer._orig_mod."), LAVIS),
                                 r"\(LAVIS\).*`_orig_mod\.`"),
    "FSDP": (inside("_fsdp_wrapped_module", renamed("_fsdp_wrapped_module.{}".format)), "_fsdp_wrapped_module"),
    "FSDP and activation checkpointing": (
        renamed(lambda name: name.replace(".", "._fsdp_wrapped_module._checkpoint_wrapped_module.", 1)),
        "_checkpoint_wrapped_module"),
    "DeepSpeed": (deepspeed(renamed("module.{}".format)), r"`module\.`"),
    "Lightning": (lightning(), r"names without `model\.`"),
    "Lightning of a compiled model": (lightning(state_dict=renamed("model._orig_mod.{}".format)),
                                      r"`_orig_mod\.`, `model\.`"),
    "Lightning over DeepSpeed": (deepspeed(renamed("_forward_module.model.{}".format)), r"`_forward_module\.`"),
    "a prefix of somebody's own": (renamed("student.blip.{}".format), r"names without `student\.blip\.`"),
    "dictionaries in dictionaries": ({"checkpoint": {"state": {"model_state_dict": STATE}}, "step": 3}, "loaded"),
    "one dictionary for each part": (
        {"query_tokens": STATE["query_tokens"], "temp": STATE["temp"],
         **{part: {name.partition(".")[2]: value for name, value in STATE.items() if name.startswith(f"{part}.")}
            for part in {name.partition(".")[0] for name in STATE if "." in name}}}, "loaded"),
    "the model and its average": ({"model": STATE, "model_ema": broken(1.0)}, "not their average under 'model_ema'"),
    "the average alone": ({"ema": renamed("module.{}".format), "decay": 0.99}, "averaged weights under 'ema'"),
    "a Namespace": ({"model": STATE, "args": argparse.Namespace(lr=1.0)}, "not read: argparse.Namespace"),
    "OmegaConf": ({"model": STATE, "config": OmegaConf.create({"a": [1, {"b": 2}]})}, "not read: .*and [0-9]+ more"),
    "numpy scalars": ({"model": STATE, "best": np.float64(0.5)}, "not read: numpy"),
    "an object of a training script": ({"model": STATE, "trainer": Project(), "d": defaultdict(list)}, "Project"),
    "half precision": (renamed(str, {name: value.half() for name, value in STATE.items()}), "stored in float16"),
    "bfloat16, and some of it float32": (
        {name: value.bfloat16() if value.ndim > 1 else value for name, value in STATE.items()}, "stored in bfloat16"),
    "double precision": ({name: value.double() for name, value in STATE.items()}, "loaded"),
    "transformers, compiled": (renamed("_orig_mod.{}".format, HUGGING_FACE), r"\(Hugging Face\)"),
    "AveragedModel of torch": ({"n_averaged": torch.tensor(3), **renamed("module.{}".format)}, "averaged weights"),
    "a loss beside a dictionary of somebody's own": ({"student": STATE, "loss": torch.tensor(2.0)}, "loaded"),
    "parameters": ({name: torch.nn.Parameter(value) for name, value in STATE.items()}, "loaded"),
    "transposed views of the right shape": (
        {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in STATE.items()}, "loaded"),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "two wrappers' names become one": ({**STATE, "module.query_tokens": STATE["query_tokens"] + 1},
                                       r"two tensors of one name \('query_tokens'\).*save the file again"),
    "names of two modules": ({**renamed("model.{}".format), "criterion.weight": torch.ones(2)},
                             r"\d+ of \d+ names begin with `model\.`.*k\[6:\]: v for k, v.*startswith\('model\.'\)"),
    "an average beside its counters": (
        {**renamed("ema_model.{}".format), "initted": torch.tensor(True), "step": torch.tensor(3)},
        r"names begin with `ema_model\.`.*python -c"),
    "arrays of numpy": ({"model": {name: value.numpy() for name, value in STATE.items()}},
                        r"torch\.as_tensor\(v\) for k, v in c\['model'\]"),
    "LoRA for a model without": ({**STATE, "qformer.x.lora_A.default.weight": torch.ones(1, 2)}, "--merge-lora"),
    "NaN": (broken(float("nan")), r"query_tokens \(36 of 36 values\).*model\.allow_non_finite=true"),
    "infinity": (broken(float("inf")), "1 of .* tensors hold NaN or infinity"),
    "too large for the model": ({**STATE, "query_tokens": torch.full_like(
        STATE["query_tokens"], 1e300, dtype=torch.float64)}, "query_tokens .36 of 36 values"),
    "without values": ({name: torch.empty_like(value, device="meta") for name, value in STATE.items()},
                       "on the meta device.*save it after"),
    "sparse": ({name: value.to_sparse() if value.ndim == 2 else value for name, value in STATE.items()},
               r"torch\.sparse_coo.*to_dense"),
    "teacher and student": ({"teacher": STATE, "student": STATE},
                            r"2 dictionaries of tensors \('teacher', 'student'\).*torch\.save\(c\['student'\]"),
    "a class that is a dictionary": ({"model": STATE, "config": Configuration(a=1)}, f"Configuration.*{RESAVE}"),
    "the model itself": (torch.nn.Linear(2, 2), rf"Save model\.state_dict\(\).*{RESAVE}.*c\.state_dict\(\)"),
    "the model itself under model": ({"model": torch.nn.Linear(2, 2), "epoch": 1}, r"c\['model'\]\.state_dict\(\)"),
    "an optimizer alone": ({"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}, "step": 3},
                           "a training's state; the weights are in the same folder"),
    "nothing": ({}, "it holds: nothing"),
    "a list": ([torch.ones(1)], "an object of list"),
    "half of it": ({name: value for name, value in STATE.items() if not name.startswith("qformer.layers.1.")},
                   r"of the model's not in the file: qformer\.layers\.1"),
    "another size": ({name: torch.cat([value, value]) if value.ndim else value for name, value in STATE.items()},
                     "of another shape"),
    "transposed": ({name: value.t().contiguous() if value.ndim == 2 else value for name, value in STATE.items()},
                   r"\(transposed\)"),
    "empty tensors of ZeRO-3": ({name: torch.empty(0) for name in STATE}, r"python zero_to_fp32\.py"),
    "integers of a quantisation": ({name: value.to(torch.int8) for name, value in STATE.items()},
                                   r"stored as real numbers.*dequantize\(\)"),
    "a language model": ({"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)},
                         "model.llm_model takes its folder"),
    "a vision encoder": ({"blocks.0.attn.qkv.weight": torch.ones(2, 2)}, "model.vit_weights takes it"),
    "BLIP, the first": ({"text_decoder.bert.x": torch.ones(2), "visual_encoder.cls_token": torch.ones(1, 1, 2)},
                        "does not fit the model"),
    "a stage-2 model": ({"language_projection.weight": torch.ones(2, 2), **STATE}, r"arch blip2_t5_instruct"),
    "adapters of a language model": ({"base_model.model.model.decoder.layers.0.fc1.lora_A.weight": torch.ones(2, 2)},
                                     "LoRA adapters"),
}


def write(content: Any, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def loaded(path: Path) -> tuple[State, str]:
    """What a model of other values has after loading, and the load line."""
    target = build(section_of_arch("blip2", Path()), seed=2)
    line = str(load_checkpoint(target, path))
    return {name: target.state_dict()[name] for name in STATE}, line


def check(path: Path, words: str) -> None:
    found, line = loaded(path)
    assert re.search(words, line), line
    half = "float16" in line or "bfloat16" in line
    for name, value in STATE.items():
        if half or ("Hugging Face" in line and (name == "temp" or ".lm_head." in name)):
            continue
        assert torch.equal(found[name], value), name
    for name, value in STATE.items():
        if half:
            assert torch.allclose(found[name], value, rtol=1e-2, atol=1e-3) and found[name].dtype == torch.float32


@pytest.mark.parametrize("name", LOADS)
def test_it_loads_tensor_by_tensor_and_the_line_says_how(name: str, tmp_path: Path) -> None:
    content, words = LOADS[name]
    check(write(content, tmp_path / "x.pth"), words)
    assert not Project.ran


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_what_helps_and_nothing_is_loaded(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    path = write(content, tmp_path / "x.pth")
    target = build(section_of_arch("blip2", Path()), seed=2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(target, path)
    assert re.search(words, str(caught.value), re.DOTALL), str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_the_table_has_forty_rows() -> None:
    assert len(LOADS) + len(REFUSED) >= 40


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_with_their_index(suffix: str, tmp_path: Path) -> None:
    folder = shards(tmp_path / "sharded", suffix)
    check(folder, "2 shards")
    check(next(folder.glob("*.index.json")), "2 shards")
    one = next(folder.glob(f"*-00001-of-00002.{suffix}"))
    with pytest.raises(CheckpointError, match="not in the file"):
        loaded(one)
    one.unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 shards"):
        loaded(folder)


@pytest.mark.parametrize("name", ["DDP", "a Namespace", "numpy scalars", "an object of a training script"])
def test_files_of_before_torch_1_6(name: str, tmp_path: Path) -> None:
    content, words = LOADS[name]
    check(write(content, tmp_path / "x.pth", legacy=True), words)


@pytest.mark.parametrize(("file", "words"), [
    ("__0_0.distcp", "dcp_to_torch"), ("global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt", r"zero_to_fp32\.py"),
    ("adapter_model.safetensors", "LoRA adapters alone"), ("notes.txt", "is no checkpoint")])
def test_folders_that_are_something_else(file: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=words):
        loaded(tmp_path)


@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "is a web page"), (b"", "damaged|cannot be read"),
    (b"\x80\x04junk", r"torch\.load|damaged")])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_files_that_a_download_left(content: bytes, words: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        loaded(tmp_path / name)


@pytest.mark.parametrize(("name", "packed", "words"), [
    ("x.pth", "safetensors", r"rename it to x\.safetensors"), ("x.safetensors", "torch", r"rename it to x\.pth"),
    ("x.pth", "gzip", "gzip -dc"), ("x.ckpt", "tar", "tar -xf")])
def test_files_of_another_format_than_their_name_says(name: str, packed: str, words: str, tmp_path: Path) -> None:
    path, plain = tmp_path / name, write(STATE, tmp_path / "plain")
    if packed == "safetensors":
        save_file(STATE, path)
    elif packed == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(plain, "plain.pth")
    else:
        path.write_bytes(gzip.compress(plain.read_bytes()) if packed == "gzip" else plain.read_bytes())
    with pytest.raises(CheckpointError, match=words):
        loaded(path)


def test_torchscript_is_refused_with_the_command(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match=r"TorchScript.*torch\.jit\.load\('x\.pt', map_location='cpu'\)"):
        loaded(tmp_path / "x.pt")


def test_deepspeeds_folder_of_whole_weights(tmp_path: Path) -> None:
    write(deepspeed(STATE), tmp_path / "mp_rank_00_model_states.pt")
    check(tmp_path, "loaded")


def test_pieces_that_the_model_has_itself_stay_in_its_names() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Linear(2, 2)

        def frozen_names(self) -> set[str]:
            return set()

        def allowed_differences(self, given: Any) -> Any:
            return (), ()

    model = Own()
    state = {"_orig_mod.module.weight": torch.ones(2, 2), "_orig_mod.module.bias": torch.ones(2)}
    report = load_state(model, state, "x")
    assert float(model.module.weight.sum()) == 4 and report.notes == ["names without `_orig_mod.`"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model._orig_mod.", "visual_encoder._orig_mod."])
def test_an_encoders_own_file_in_wrappers(prefix: str, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in SOURCE.vision_encoder.vit.state_dict().items()}
    write({"state_dict": renamed(f"{prefix}{{}}".format, state)}, tmp_path / "vit.ckpt")
    encoder = build(section_of_arch("blip2", Path()), seed=2).vision_encoder
    assert "names without" in str(load_vision_weights(encoder, tmp_path / "vit.ckpt"))
    assert all(torch.equal(value, state[name]) for name, value in encoder.vit.state_dict().items())


def test_tensors_that_are_not_finite_load_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(broken(float("nan")), tmp_path / "x.pth")
    target = build(section_of_arch("blip2", Path()), seed=2)
    assert "hold NaN or infinity: query_tokens" in str(load_checkpoint(target, path, allow_non_finite=True))
    assert bool(target.query_tokens.isnan().all())


# nothing in a file runs -----------------------------------------------------------------------------------------------
class Payload:
    """What a hostile pickle is made of."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["zip", "legacy", "raw"])
def test_payloads_do_not_run(protocol: int, kind: str, tmp_path: Path) -> None:
    import os
    import subprocess

    mark = tmp_path / "ran"
    for function, arguments in ((os.system, (f"touch {mark}",)), (eval, (f"open({str(mark)!r}, 'w')",)),
                                (exec, (f"open({str(mark)!r}, 'w')",)), (subprocess.call, (["touch", str(mark)],)),
                                (Path.touch, (mark,)), (getattr, ("a", "upper"))):
        content = OrderedDict(STATE, payload=Payload(function, *arguments))
        path = tmp_path / "x.pth"
        if kind == "raw":
            path.write_bytes(pickle.dumps({"payload": content["payload"]}, protocol=protocol))
        else:
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
        try:
            read_tensors(path)
        except CheckpointError as fault:
            assert "can run code" in str(fault) or "torch.save" in str(fault) or "cannot be read" in str(fault)
        assert not mark.exists(), (function, protocol, kind)


def test_damage_anywhere_is_a_clear_error(tmp_path: Path) -> None:
    """Bytes changed or cut off at random: the file is read or refused, and no other error comes out."""
    content = {"model": {"a.w": torch.ones(4, 5), "b": torch.ones(3)}, "args": argparse.Namespace(lr=1.0)}
    good = [write(content, tmp_path / "zip.pth").read_bytes(), write(content, tmp_path / "old.pth", True).read_bytes()]
    random, refused = np.random.default_rng(0), 0
    for number in range(120):
        damaged = bytearray(good[number % 2])
        if number % 3 == 0:
            damaged = damaged[:random.integers(len(damaged))]
        else:
            for place in random.integers(len(damaged), size=random.integers(1, 9)):
                damaged[place] = random.integers(256)
        (tmp_path / "x.pth").write_bytes(damaged)
        try:
            read_tensors(tmp_path / "x.pth")
        except CheckpointError as fault:  # any other error fails the test
            assert "x.pth" in str(fault)
            refused += 1
    assert refused >= 40  # at least what was cut short; a changed byte of a tensor makes no file unreadable
