"""What preflight knows before anything is built, generated or downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import machinery, util
from pathlib import Path

import pytest

from lavis_lite.config.compose import compose
from lavis_lite.datasets.media import video
from lavis_lite.preflight import check, missing
from lavis_lite.preflight import run as run_module

ROOT = Path(__file__).resolve().parents[2]
STAGE1, STAGE2 = "projects/blip2/stage1.yaml", "projects/blip2/stage2_opt.yaml"
ANSWERS = "projects/blip2/eval/mini_vqa_opt.yaml"
DATA = "datasets.mini_world_caption"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("recipe", "options", "words"), [
    (STAGE1, ["model.vit_model=vit_base_patch16_siglip_225"], "model.vit_model: unknown vision encoder 'vit_base_pat"),
    (STAGE1, ["model.vit_model=vit_base_patch16_siglip_225"], "did you mean 'vit_base_patch16_siglip_"),
    (STAGE1, ["model.vit_model=eva_clip_h"], "did you mean 'eva_clip_g'"),
    (STAGE1, ["model.vit_model=resnet50"], "is not a plain ViT"),
    (STAGE1, ["model.vit_model=vit_tiny_patch16_224", "model.image_size=65"], "model.image_size: 65 pixels are not a"),
    (STAGE1, ["model.image_size=60"], "model.image_size: 60 pixels are not a whole number of mini's"),
    (STAGE1, ["model.vit_args={depth: 3}"], "model.vit_args: the dimensions of 'mini' are fixed"),
    (STAGE1, ["model.vit_model=clip_L", "model.vit_args={heads: 7}"], "model.vit_args: width 1024 is not a multiple"),
    (STAGE1, ["model.vit_args={dept: 3}"], "model.vit_args.dept: a vision encoder has no such size; did you mean 'de"),
    (STAGE1, ["model.vit_weights=timm"], "model.vit_weights: timm has no weights of 'mini'"),
    (STAGE1, ["model.use_grad_checkpoint=fairscael"], "model.use_grad_checkpoint: must be true or false or"),
    (STAGE1, ["model.qformer_heads=7"], "model.qformer_hidden_size: 128 is not a multiple of qformer_heads: 7"),
    (STAGE1, ["model.num_query_token=0"], "model.num_query_token: must be at least 1"),
    (STAGE1, ["model.qformer_dropout=1"], "model.qformer_dropout: must be at least 0 and below 1"),
    (STAGE1, ["model.pretrained=my.pth"], "model.pretrained: would not be read, since model.load_pretrained is false"),
    (STAGE2, ["model.finetuned=my.pth"], "Add model.load_finetuned=true, or leave it out"),
    (STAGE1, [f"model.arch={'x' * 300}"], "model.arch: unknown model 'xxxx"),
    (STAGE1, ["model.max_txt_len=65"], "model.max_txt_len: 65 tokens are more than the 64 positions"),
    (STAGE1, ["model.itg_weight=-1"], "model.itg_weight: must not be negative"),
    (STAGE2, ["model.llm_family=vicunia"], "model.llm_family: unknown 'vicunia': did you mean 'vicuna'"),
    (STAGE2, ["model.few_shot_prob=2"], "model.few_shot_prob: must be between 0 and 1"),
    (STAGE2, ["model.few_shot_prob=0.5"], "model.num_few_shot_examples: must be at least 1"),
    (STAGE2, ["model.max_output_txt_len=0"], "model.max_output_txt_len: must be at least 1"),
    (STAGE2, ["run.caption_metrics=[cidre]"], "run.caption_metrics: no metric 'cidre'; did you mean 'cider'"),
    (STAGE2, ["run.num_beams=0"], "run.num_beams: must be at least 1"),
    (ANSWERS, ["run.prompt=Answer:"], "run.prompt: 'Answer:' has no {} for the question"),
    (ANSWERS, ["run.vqa_metrics=[anl]"], "run.vqa_metrics: no metric 'anl'; did you mean 'anls'"),
    (STAGE1, [f"{DATA}.vis_processor.train.image_size=32"], "gives pictures of 32 x 32 pixels, but the vision encoder"),
    (STAGE1, [f"{DATA}.vis_processor.train.image_size=0"], "image_size must be a number of pixels"),
    (STAGE1, [f"{DATA}.vis_processor.train={{name: alpro_video_train, image_size: 64}}"], "does not take images"),
    (STAGE1, [f"{DATA}.captions_per_image=0"], "captions_per_image must be at least 1"),
    (STAGE1, ["run.train_splits=[trian]"], "has no split 'trian'; did you mean 'train'"),
    (STAGE1, ["run.train_splits=[train, val]", "run.valid_splits=[val]"], "run.train_splits: 'val' is evaluated, too"),
    (STAGE1, ["model.vit_model=features", "model.vit_args={width: 8, streams: {audio: 2, video: 6}}",
              f"{DATA}.arrays={{video: {{tokens: 6}}, audio: {{tokens: 2}}}}"],
     "has the streams {'video': 6, 'audio': 2}, with their tokens, and model.vit_args.streams {'audio': 2,"),
    (STAGE1, ["run.train_splits=[train, train]"], "run.train_splits: names 'train' twice"),
    (STAGE1, ["datasets.coco_caption={}", "run.valid_splits=[vall]"], "none of the data sets has a split 'vall'"),
    (STAGE1, ["run.compile=full", "run.fsdp=llm"], "run.compile: full cannot be combined with run.fsdp=llm"),
    (STAGE1, ["run.compile=block"], "did you mean 'blocks'"),
    (STAGE1, ["run.sampling=ratios"], "run.sampling: ratios needs run.train_dataset_ratios"),
    (STAGE1, ["datasets.coco_caption={}", "run.train_dataset_ratios={coco_caption: 1}"], "lacks mini_world_caption"),
    (STAGE1, ["run.sampling=size", f"{DATA}.sampling_factor={{0: 1, half: 2}}"], "sampling_factor: 'half' is no step"),
    (STAGE1, [f"{DATA}.sampling_factor={{0: fast}}"], "sampling_factor.0: must be a number, not 'fast'"),
    (STAGE1, ["run.sampling=sqrt", f"{DATA}.sampling_factor={{0: 1, 9: 0}}"], "run.sampling: at step 9 the training"),
])
def test_what_would_stop_the_building_is_known_before(recipe: str, options: list[str], words: str) -> None:
    errors = check(compose(recipe, options))
    assert any(words in error for error in errors), errors


@pytest.mark.parametrize("options", [["model.pretrained=a", "model.finetuned=b", "model.load_finetuned=true"],
                                     ["model.pretrained=a", "model.load_pretrained=false"]])
def test_a_checkpoint_that_is_left_out_on_purpose_is_no_error(options: list[str]) -> None:
    assert check(compose(STAGE1, options)) == []


@pytest.mark.parametrize(("option", "note"), [
    ("run.temperature=0.5", "run.temperature has no effect, since run.use_nucleus_sampling is false."),
    ("run.lr_decay_rate=0.9", "run.lr_decay_rate has no effect, since run.lr_sched is linear_warmup_cosine_lr."),
    ("run.num_beams=2", "")])
def test_a_setting_without_effect_is_a_note(option: str, note: str) -> None:
    composition = compose(STAGE2, [option])
    assert not check(composition)
    assert [line for line in composition.config.notes if "no effect" in line] == [note] * bool(note)


def test_a_machine_without_a_compiler_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "why_not", lambda device: f"no compiler for {device}.")
    options = ["run.compile=blocks", "run.device=cuda"]
    assert any("run.compile: no compiler for cuda." in error for error in check(compose(STAGE1, options)))
    assert not check(compose(STAGE1, [*options, "run.evaluate=true"]))


@pytest.mark.parametrize("option", ["run.max_itres=3", "model.vit_model=vit_base_patch16_siglip_225",
                                    "run.caption_metrics=[cidre]"])
def test_a_mistake_is_answered_before_data_are_made(option: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "train.py", "--cfg-path", STAGE2, "--options", option]
    result = subprocess.run([*command, f"run.output_dir={tmp_path / 'out'}"], capture_output=True, text=True,
                            env={**os.environ, "LAVIS_LITE_CACHE": str(cache)})
    assert result.returncode == 2 and "cannot run: 1 error:" in result.stderr and option.split("=")[0] in result.stderr
    assert not cache.exists() and not (tmp_path / "out").exists()


def test_a_typing_error_on_the_command_line_needs_no_torch() -> None:
    code = ("import sys\nfrom lavis_lite.cli.main import run_command\n"
            f"code = run_command('train', ['--cfg-path', {STAGE1!r}, '--options', 'run.max_itres=3'])\n"
            "print(code, [name for name in ('torch', 'timm', 'transformers') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "2 []" and "did you mean 'max_iters'" in result.stderr


# packages -------------------------------------------------------------------------------------------------------------
def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if packages were not installed."""
    real = util.find_spec

    def find(name: str, package: str | None = None) -> machinery.ModuleSpec | None:
        return None if name in names else real(name, package)

    for module in (run_module, video):
        monkeypatch.setattr(module, "find_spec", find)
    monkeypatch.setattr(util, "find_spec", find)


def test_missing_packages_are_errors_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "wandb", "bitsandbytes", "decord", "av", "peft")
    [tracking] = check(compose(STAGE1, ["run.wandb=true"]))
    assert "run.wandb: needs the package wandb: pip install 'lavis_lite[track]'" in tracking
    [weights] = check(compose(STAGE2, ["model.llm_quantization=8bit"]))
    assert "model.llm_quantization: needs bitsandbytes: pip install 'lavis_lite[quant]'" in weights
    [adapters] = check(compose(STAGE2, ["model.lora={}"]))
    assert "pip install 'lavis_lite[lora]'" in adapters
    videos = check(compose("projects/instructblip/eval/msvd_qa_vicuna7b.yaml"))
    assert any("videos are read by decord or av, not installed here" in error for error in videos), videos


def test_what_a_run_does_without_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "spacy")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    composition = compose(STAGE2, ["run.caption_metrics=[coco, meteor]", "model.apply_lemmatizer=true"])
    assert check(composition) == []
    assert any("METEOR needs Java" in note for note in composition.config.notes)
    assert any("spaCy's en_core_web_sm is not installed" in note for note in composition.config.notes)


def test_of_a_model_with_a_wrong_type_nothing_else_is_reported() -> None:
    for option in ("model.model_type=mimi", "model.arch=blip2_llm"):
        wrong = compose(STAGE2, [option])
        assert len(check(wrong)) == 1 and "has no type" in check(wrong)[0] and missing(wrong.config) == []
