"""LAVIS' model classes: the package's numbers, LAVIS' names, subclasses that call LAVIS' constructors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite import load_model
from lavis_lite.compat.lavis import sizes
from lavis_lite.errors import ConfigError, ContractError, DataError
from lavis_lite.registry import registry
from tests.compat.helpers import MINI, VISION, lavis_tensors

from lavis.common.config import Config  # isort: skip
from lavis.models import load_model as load_lavis_model  # isort: skip
from lavis.models import load_model_and_preprocess  # isort: skip
from lavis.common.registry import registry as lavis_registry  # isort: skip
from lavis.models.blip2_models.blip2_opt import Blip2OPT  # isort: skip
from lavis.models.blip2_models.blip2_image_text_matching import Blip2ITM  # isort: skip
from lavis.models.blip2_models.blip2_qformer import Blip2Qformer  # isort: skip
from lavis.models.blip2_models.blip2_t5_instruct import Blip2T5Instruct  # isort: skip
from lavis.models.blip2_models.blip2_vicuna_instruct import Blip2VicunaInstruct  # isort: skip


def made(cls: type, checkpoint: str | None = None, **given: Any) -> Any:
    torch.manual_seed(0)
    with sizes(**MINI):
        model: Any = cls(**VISION, **given)
    if checkpoint:
        model.load_checkpoint(checkpoint)
    return model.eval()


@pytest.fixture(scope="module")
def opt() -> Any:
    return made(Blip2OPT, "mini/stage2_opt", opt_model="mini/opt", prompt="a photo of", max_txt_len=48)


@pytest.fixture(scope="module")
def core_opt() -> Any:
    return load_model("blip2_opt", "mini", is_eval=True)


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_captioning_over_opt_is_the_package_s(opt: Any, core_opt: Any) -> None:
    samples = {"image": pictures(), "text_input": ["a red circle", "two blue squares and a dog"]}
    torch.testing.assert_close(opt(samples)["loss"], core_opt(samples)["loss"])
    assert opt.generate({"image": pictures()}) == core_opt.generate({"image": pictures()})
    asked = {"image": pictures(), "text_input": ["which colour?", "how many?"]}
    assert opt.predict_answers(asked, prompt="Question: {} Answer:") == core_opt.predict_answers(
        asked, prompt="Question: {} Answer:")
    assert isinstance(opt, registry.get_model_class("blip2_opt"))


def test_the_names_are_lavis(opt: Any, core_opt: Any) -> None:
    wanted = lavis_tensors(core_opt.state_dict(), "opt")
    assert set(opt.state_dict()) - {"Qformer.bert.embeddings.position_ids"} == set(wanted)


def test_the_parts_people_touch(opt: Any) -> None:
    assert opt.visual_encoder.num_features == 128 and opt.visual_encoder(pictures()).shape == (2, 65, 128)
    assert opt.visual_encoder.get_num_layer("blocks.1.norm1.weight") == 2
    assert opt.opt_proj.in_features == opt.Qformer.config.hidden_size == 128
    assert opt.opt_tokenizer.eos_token and opt.tokenizer.bos_token == "[DEC]" and opt.query_tokens.shape == (1, 12, 128)
    assert opt.prompt_length == len(opt.opt_tokenizer("a photo of").input_ids)
    assert opt.opt_model.get_input_embeddings().weight.shape[1] == opt.opt_proj.out_features
    assert opt.show_n_params() == f"{sum(one.numel() for one in opt.parameters()) / 1e6:.1f}M"
    assert not any(one.requires_grad for one in (*opt.opt_model.parameters(), *opt.visual_encoder.parameters()))
    with opt.maybe_autocast():
        assert opt.ln_vision(torch.ones(1, 2, 128)).dtype == torch.float32


@pytest.mark.parametrize(("cls", "checkpoint", "arch", "kind", "given"), [
    (Blip2T5Instruct, "mini/instruct_t5", "blip2_t5_instruct", "mini", {"t5_model": "mini/t5", "max_txt_len": 48}),
])
def test_instructions_reach_the_q_former(cls: type, checkpoint: str, arch: str, kind: str, given: Any) -> None:
    theirs, ours = made(cls, checkpoint, **given), load_model(arch, kind, is_eval=True)
    samples = {"image": pictures(), "text_input": ["which colour is it?", "how many?"], "text_output": ["red", "two"]}
    torch.testing.assert_close(theirs(samples)["loss"], ours(samples)["loss"])
    candidates = ["red", "two", "a dog"]
    asked = {"image": pictures(), "prompt": samples["text_input"]}
    assert torch.equal(theirs.predict_class(asked, candidates), ours.predict_class(asked, candidates))


def test_a_video_is_read_frame_by_frame() -> None:
    model = made(Blip2VicunaInstruct, llm_model="mini/opt", max_txt_len=32)
    clip = torch.stack([pictures(1), pictures(2)[1:]], 2)
    found = model.query_output(clip, ["what happens?"])
    frames = [model.query_output(clip[:, :, number], ["what happens?"]) for number in range(2)]
    torch.testing.assert_close(found, torch.cat(frames, 1))
    shared = model.query_output(clip, ["what?", "who?"], torch.tensor([0, 0]))
    torch.testing.assert_close(shared[1:], model.query_output(clip, ["who?"]))


def test_stage_1_is_the_package_s() -> None:
    theirs = made(Blip2Qformer, "mini/stage1", embed_dim=64, max_txt_len=48)
    ours = load_model("blip2", "mini", is_eval=True)
    samples = {"image": pictures(3), "text_input": ["a red circle", "two squares", "green"],
               "uniform": torch.rand(3, 2, dtype=torch.float64)}
    found, wanted = theirs(samples), ours(samples)
    for name in ("loss", "loss_itc", "loss_itm", "loss_lm"):
        torch.testing.assert_close(found[name], wanted[name])
    found["loss"].backward()
    wanted["loss"].backward()
    torch.testing.assert_close(theirs.Qformer.bert.encoder.layer[0].attention.self.query.weight.grad,
                               ours.qformer.layers[0].self_attention.query.weight.grad)
    features = theirs.extract_features(samples, "image")
    torch.testing.assert_close(features.image_embeds_proj, ours.extract_features(samples, "image").image_embeds_proj)
    theirs.Qformer.cls = None
    with pytest.raises(ContractError, match="taken apart"):
        theirs(samples)


def test_matching_answers_by_head() -> None:
    theirs = made(Blip2ITM, "mini/stage1", embed_dim=64, max_txt_len=48)
    ours = load_model("blip2_image_text_matching", "mini", is_eval=True)
    samples = {"image": pictures(), "text_input": ["a red circle", "two squares"]}
    for head in ("itm", "itc"):
        torch.testing.assert_close(theirs(samples, match_head=head), ours(samples, match_head=head))


def test_a_subclass_with_its_own_generate_answers_through_it() -> None:
    class Shouting(Blip2OPT):
        def generate(self, samples: Any, num_beams: int = 5, max_length: int = 30, min_length: int = 1,
                     **more: Any) -> list[str]:
            return [f"{prompt}!{num_beams}/{max_length}" for prompt in samples["prompt"]]

    model = made(Shouting, opt_model="mini/opt")
    assert model.predict_answers({"image": pictures(1), "text_input": ["what?"]}, num_beams=2, max_len=7,
                                 prompt="Q: {} A:") == ["Q: what? A:!2/7"]


def test_prompt_and_answer_are_joined_without_padding_between(opt: Any) -> None:
    model = made(Blip2VicunaInstruct, llm_model="mini/opt")
    ids, lengths = model.concat_text_input_output(
        torch.tensor([[1, 5, 6, 0], [1, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
        torch.tensor([[1, 8, 2], [1, 9, 2]]), torch.tensor([[1, 1, 1], [1, 1, 1]]))
    assert ids["input_ids"].tolist() == [[1, 5, 6, 8, 2, 0], [1, 7, 9, 2, 0, 0]]
    assert ids["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert [int(length) for length in lengths] == [3, 2]


def test_checkpoints_by_config(opt: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.finetuned: Blip2OPT loads a checkpoint.*load_finetuned=false"):
        opt.load_checkpoint_from_config({})
    with pytest.raises(ConfigError, match=r"load_pretrained=false to start without"):
        opt.load_checkpoint_from_config({"load_finetuned": False})
    opt.load_checkpoint_from_config({"load_finetuned": False, "load_pretrained": False})
    loaded = opt.load_checkpoint("mini/stage2_opt")
    assert loaded.unexpected_keys == [] and "Qformer.bert.embeddings.position_ids" in loaded.missing_keys


def test_a_lavis_file_loads_by_its_names(opt: Any, tmp_path: Any) -> None:
    other = {name: tensor + 1 for name, tensor in opt.state_dict().items() if name.startswith(("Qformer.", "opt_proj."))
             and tensor.is_floating_point()}
    torch.save({"model": {**other, "vision_proj.weight": torch.ones(2, 2)}}, tmp_path / "lavis.pth")
    twin = made(Blip2OPT, opt_model="mini/opt")
    loaded = twin.load_checkpoint(str(tmp_path / "lavis.pth"))
    assert loaded.unexpected_keys == ["vision_proj.weight"]
    assert all(torch.equal(twin.state_dict()[name], tensor) for name, tensor in other.items())


def test_parameters_are_grouped_by_decay_and_layer() -> None:
    model = made(Blip2OPT, opt_model="mini/opt", freeze_vit=False)
    groups = model.get_optimizer_params(weight_decay=0.05, lr_scale=0.5)
    assert sum(len(group["params"]) for group in groups) == sum(one.requires_grad for one in model.parameters())
    scales = {group["lr_scale"] for group in groups}
    assert scales == {1.0, *(0.5 ** distance for distance in range(1, 6))}
    assert all(parameter.ndim > 1 for group in groups if group["weight_decay"] for parameter in group["params"])


def test_a_class_of_the_registry_builds_and_loads_as_lavis_does(opt: Any, tmp_path: Any) -> None:
    cls = lavis_registry.get_model_class("blip2_opt")
    assert cls is Blip2OPT and lavis_registry.mapping["model_name_mapping"]["blip2_opt"] is cls
    assert {"pretrain_opt2.7b", "caption_coco_opt6.7b"} <= cls.PRETRAINED_MODEL_CONFIG_DICT.keys()
    (tmp_path / "run.yaml").write_text("model: {arch: blip2_opt, model_type: mini}\nrun: {evaluate: true}\n")
    config = Config(SimpleNamespace(cfg_path=str(tmp_path / "run.yaml"), options=["model.prompt=a photo of"]))
    model = cls.from_config(config.model_cfg).eval()
    samples = {"image": pictures(), "text_input": ["a red circle", "two blue squares and a dog"]}
    torch.testing.assert_close(model(samples)["loss"], opt(samples)["loss"])
    section = OmegaConf.load(cls.default_config_path("caption_coco_opt2.7b")).model
    assert section.image_size == 364 and section.load_finetuned


@pytest.mark.parametrize(("arch", "kind"), [("blip2_opt", "mini_instruct"), ("blip2_vicuna_instruct", "mini")])
def test_a_script_gets_a_model_with_lavis_parts_and_the_package_s_texts(arch: str, kind: str) -> None:
    model, processors, _ = load_model_and_preprocess(arch, kind, is_eval=True)
    part = "opt" if arch == "blip2_opt" else "llm"
    assert all(hasattr(model, name) for name in ("visual_encoder", "ln_vision", "Qformer", f"{part}_proj"))
    samples = {"image": pictures(), "prompt": ["what is it?"] * 2}
    ours = load_model(arch, kind, is_eval=True)
    assert model.generate(samples, max_length=20) == ours.generate(samples, max_length=20)
    assert set(processors) == {"train", "eval"} and not model.training


def test_a_script_s_other_models_and_options_are_the_package_s() -> None:
    assert load_lavis_model("vision_language", "mini").connector is not None
    assert type(load_lavis_model("blip2_opt", "mini", dtype="fp32")) is registry.get_model_class("blip2_opt")
    with pytest.raises(DataError, match="eva_vit_g.pth"):  # before anything is built
        load_lavis_model("blip2_opt", "pretrain_opt2.7b")


def test_modules_have_what_lavis_imports_there() -> None:
    from lavis.models.blip2_models import blip2_qformer

    assert blip2_qformer.BlipOutputFeatures.__name__ == "Blip2Features"
    assert blip2_qformer.Blip2Base.__name__ == "Blip2Base"
    with pytest.raises(ImportError, match="no_such_name of LAVIS is not carried"):
        _ = blip2_qformer.no_such_name
