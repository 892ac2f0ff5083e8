"""CapFilt: what is kept, that processes, batches and kills change nothing, and that wrong captions lose."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lavis_lite.capfilt.captioner import Sampling, ZooCaptioner, seed_of
from lavis_lite.capfilt.job import Job, best, run_job
from lavis_lite.capfilt.ranker import QFormerRanker, grouped, load_clip
from lavis_lite.cli.main import run_command
from lavis_lite.config.schema import BuildInfo, FileConfig
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.builders.images import ImageDatasetConfig, ImageShardBuilder
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.shards.index import ShardIndex
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.mini_world.captions import make_captions
from lavis_lite.mini_world.render import render
from lavis_lite.mini_world.scenes import make_scene
from lavis_lite.torchvision_shim import ensure_torchvision
from lavis_lite.zoo import load_model_and_preprocess


class Stub:
    """A captioner whose words are drawn from the image's stream, and a ranker that counts a word."""

    name = "stub"

    def __init__(self, wanted: str = "good") -> None:
        self.wanted, self.written = wanted, list[int]()

    def write(self, pictures: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[str]]:
        self.written += seeds
        streams = [random.Random(seed) for seed in seeds]
        return [[" ".join(stream.choices(["good", "bad", "dog"], k=4)) for _ in range(5)] for stream in streams]

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[text.split().count(self.wanted) / 4 for text in each] for each in texts]


def job(tmp_path: Path, out: str = "out", count: int = 10, **changes: Any) -> Job:
    folder = tmp_path / "images"
    if not folder.exists():
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (8, 6), (20 * number, 0, 0)).save(folder / f"{number}.png")
    rows = [(0, number + 1, {"image": f"{number}.png", "caption": f"web text {number}"}) for number in range(count)]
    stub = Stub()
    settings = {"captioner": stub, "ranker": stub, "per_part": 3, "batch": 2, **changes}
    return Job(RowTable(rows, ["a.json"]), ImageFolder(folder), "web", out=tmp_path / out, **settings)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")}


def quiet(text: str) -> None:
    """Takes the progress."""


def test_the_best_are_kept_the_original_among_them():
    row = best("a", ["web", "one", "two", "three"], [0.5, 0.1, 0.9, 0.5], ["Web"], 3)
    assert row == {"image": "a", "caption": ["two", "web", "three"], "scores": [0.9, 0.5, 0.5],
                   "written": [True, False, True]}


def test_a_job_keeps_the_top_two_in_shards(tmp_path):
    index = run_job(job(tmp_path), log=quiet)
    assert index is not None and index.samples == 10 and len(list((tmp_path / "out" / "parts").glob("*.jsonl"))) == 4
    stub = Stub()
    rows = [json.loads(line) for line in (tmp_path / "out" / "parts" / "00000.jsonl").read_text().splitlines()]
    (texts,) = stub.write([], [seed_of(42, "0.png")])
    ranked = sorted(dict.fromkeys(["web text 0", *texts]), key=lambda text: -text.split().count("good"))
    assert rows[0]["caption"] == ranked[:2] and rows[0]["scores"] == sorted(rows[0]["scores"], reverse=True)


def test_processes_and_batches_change_nothing(tmp_path):
    run_job(job(tmp_path, "one"), log=quiet)
    two = job(tmp_path, "two", batch=3)
    assert run_job(two, 1, 2, log=quiet) is None
    assert run_job(two, 0, 2, log=quiet) is not None
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_job_goes_on_without_doing_parts_again(tmp_path):
    run_job(job(tmp_path, "whole"), log=quiet)

    class Killed(Stub):
        def write(self, pictures: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[str]]:
            if len(self.written) >= 5:
                raise KeyboardInterrupt
            return super().write(pictures, seeds)

    with pytest.raises(KeyboardInterrupt):
        run_job(job(tmp_path, captioner=Killed()), log=quiet)
    assert sorted(path.name for path in (tmp_path / "out" / "parts").iterdir()) == ["00000.jsonl"]
    again = Stub()
    assert run_job(job(tmp_path, captioner=again), log=quiet) is not None
    assert len(again.written) == 7 and contents(tmp_path / "out") == contents(tmp_path / "whole")
    third = Stub()
    assert isinstance(run_job(job(tmp_path, captioner=third), log=quiet), ShardIndex) and not third.written


def test_other_settings_need_another_folder(tmp_path):
    run_job(job(tmp_path), log=quiet)
    for change in ({"keep": 1}, {"seed": 1}, {"per_part": 4}):
        with pytest.raises(DataError, match="other images, models or settings"):
            run_job(job(tmp_path, **change), log=quiet)


def test_a_damaged_note_needs_another_folder_too(tmp_path):
    run_job(job(tmp_path), log=quiet)
    for text in ("{", "[]", "{}", "3"):
        (tmp_path / "out" / "plan.json").write_text(text)
        with pytest.raises(DataError, match="other images, models or settings"):
            run_job(job(tmp_path), log=quiet)


def test_images_without_any_caption_are_not_ranked(tmp_path):
    class Silent(Stub):
        def write(self, pictures, seeds):
            return [[" "] for _ in seeds]

        def scores(self, pictures, texts):
            assert len(pictures) == len(texts) and all(texts), "rankers take no empty lists"
            return super().scores(pictures, texts)

    silent = Silent()
    whole = job(tmp_path, captioner=silent, ranker=silent)
    rows = [(0, number + 1, {"image": f"{number}.png", "caption": "" if number < 5 else "a"}) for number in range(10)]
    index = run_job(replace(whole, table=RowTable(rows, ["a.json"])), log=quiet)
    assert index is not None and index.samples == 5


def test_bad_images_stop_or_are_left_out_and_listed(tmp_path):
    whole = job(tmp_path, "bad")
    (tmp_path / "images" / "4.png").write_bytes(b"no")
    with pytest.raises(BadSample, match="4.png"):
        run_job(whole, log=quiet)
    with pytest.raises(DataError, match="1 of 10 images could not be used, more than --max-bad-fraction=0.001"):
        run_job(job(tmp_path, "bad", skip_bad=True), log=quiet)
    index = run_job(job(tmp_path, "bad", skip_bad=True, max_bad=0.2), log=quiet)
    assert index is not None and index.samples == 9
    record = json.loads((tmp_path / "bad" / "parts" / "00001.bad.jsonl").read_text())
    assert record["image"] == "4.png" and "not an image" in record["reason"]


def test_training_draws_one_of_the_kept_captions_by_the_samplers_stream(tmp_path):
    run_job(job(tmp_path), log=quiet)
    info = BuildInfo(annotations={"train": FileConfig(storage=str(tmp_path / "out" / "shards"))})
    cfg = ImageDatasetConfig(build_info=info, captions="random")
    cfg.vis_processor.train = {"name": "blip_image_eval", "image_size": 8}
    dataset = ImageShardBuilder("web", cfg).build("train", training=True)
    assert dataset is not None and len(dataset) == 10
    drawn = [[dataset.sample(0, random.Random(seed))["text_input"] for seed in range(20)] for _ in range(2)]
    kept = json.loads((tmp_path / "out" / "parts" / "00000.jsonl").read_text().splitlines()[0])["caption"]
    assert drawn[0] == drawn[1] and set(drawn[0]) == set(kept) and len(kept) == 2


def test_similarities_stay_with_their_image():
    image = torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    scores = grouped(image, text, [1, 2])
    assert [len(each) for each in scores] == [1, 2]
    assert scores[1][1] == pytest.approx(float((image[1] @ text[2]).max()), abs=1e-6)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of a few thousand parameters that spells words."""
    ensure_torchvision()
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 20, "bos_token_id": 52, "eos_token_id": 53,
            "pad_token_id": 53}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16},
                         projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_similarities_are_those_of_its_own_forward(tiny_clip):
    ranker = load_clip(str(tiny_clip), torch.device("cpu"))
    pictures = [Image.new("RGB", (40, 30), (255, 0, 0)), Image.effect_noise((50, 50), 90).convert("RGB")]
    texts = [["a red dog", "cat"], ["abc " * 40, "zz", "a"]]
    for picture, each, scores in zip(pictures, texts, ranker.scores(pictures, texts), strict=True):
        inputs = ranker.processor(text=each, images=picture, return_tensors="pt", padding=True, truncation=True,
                                  max_length=20)
        with torch.no_grad():
            logits = ranker.model(**inputs).logits_per_image[0] / ranker.model.logit_scale.exp()
        assert scores == pytest.approx(logits.tolist(), abs=1e-5)


def test_a_clip_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="--clip .*: cannot be loaded"):
        load_clip(str(tmp_path), torch.device("cpu"))


def test_a_clip_without_all_of_its_tensors_is_refused(tiny_clip, tmp_path):
    """transformers draws what is missing at random, and the scores would be too."""
    shutil.copytree(tiny_clip, tmp_path / "clip")
    tensors = load_file(tmp_path / "clip" / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 tensors of a CLIP model, such as text_projection.weight"):
        load_clip(str(tmp_path / "clip"), torch.device("cpu"))


@pytest.fixture(scope="module")
def mini_ranker() -> QFormerRanker:
    model, images, texts = load_model_and_preprocess("blip2_image_text_matching", "mini", True,
                                                     checkpoint="mini/stage1")
    return QFormerRanker("mini", model, images["eval"], texts["eval"])


@pytest.fixture(scope="module")
def mini_captioner() -> ZooCaptioner:
    model, images, _ = load_model_and_preprocess("blip2_opt", "mini", True)
    return ZooCaptioner("mini", model, images["eval"], Sampling(captions=6, top_p=0.97, temperature=2.2))


def scenes(count: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures that no packaged model has seen, and a right caption of each."""
    made = [make_scene(77, "val", number) for number in range(count)]
    return [Image.fromarray(render(scene)) for scene in made], [make_captions(scene)[0] for scene in made]


def test_right_captions_rank_above_wrong_ones(mini_ranker):
    pictures, right = scenes(24)
    wrong = right[1:] + right[:1]
    scores = mini_ranker.scores(pictures, list(zip(right, wrong, strict=True)))
    assert sum(good > bad for good, bad in scores) >= 22


def test_wrong_captions_of_the_annotation_lose_against_written_ones(tmp_path, mini_ranker, mini_captioner):
    pictures, right = scenes(12)
    (tmp_path / "images").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "images" / f"{number}.png")
    wrong = right[1:] + right[:1]
    rows = [(0, number, {"image": f"{number}.png", "caption": text}) for number, text in enumerate(wrong)]
    table = RowTable(rows, ["a.json"])
    folder = ImageFolder(tmp_path / "images")
    run_job(Job(table, folder, "web", mini_captioner, mini_ranker, tmp_path / "out", batch=12), log=quiet)
    kept = [json.loads(line) for line in (tmp_path / "out" / "parts" / "00000.jsonl").read_text().splitlines()]
    assert sum(row["written"][0] for row in kept) >= 11  # the best caption is a written one
    assert sum(all(row["written"]) for row in kept) >= 9  # nor is the wrong one second, unless too few were written


def test_other_weights_under_the_same_name_are_another_captioner_and_ranker(mini_ranker, mini_captioner):
    """A folder with captions of the weights before is not continued."""
    names = mini_captioner.name, mini_ranker.name
    for one in (mini_captioner, mini_ranker):
        with torch.no_grad():
            one.model.query_tokens.neg_()
    changed = (ZooCaptioner("mini", mini_captioner.model, quiet, mini_captioner.sampling),
               QFormerRanker("mini", mini_ranker.model, quiet, quiet))
    for one in changed:
        with torch.no_grad():
            one.model.query_tokens.neg_()
    again = ZooCaptioner("mini", mini_captioner.model, quiet, mini_captioner.sampling)
    assert changed[0].name != names[0] == again.name and changed[1].name != names[1]


def test_what_a_captioner_writes_does_not_depend_on_its_batch(mini_captioner):
    pictures, _ = scenes(3)
    seeds = [seed_of(1, str(number)) for number in range(3)]
    together = mini_captioner.write(pictures, seeds)
    assert [len(each) for each in together] == [6, 6, 6] and len({text for each in together for text in each}) > 6
    assert together == [mini_captioner.write([picture], [seed])[0]
                        for picture, seed in zip(pictures, seeds, strict=True)]


def test_mistakes_in_words(tmp_path, capsys):
    common = ["capfilt", "--dataset", "coco_caption", "--out", str(tmp_path)]
    assert run_command("data", [*common, "--ranker", "blip2:mini", "--k", "0"]) == 2
    assert "--k must be at least 1" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="several captions per image, such as blip2_opt"):
        ZooCaptioner("blip2", object(), quiet, Sampling())


WORLD = "datasets.mini_world_caption.prepare_args={train: 6, val: 1, test: 1, ood: 1, seed: 3}"


def test_the_command_shares_the_parts_among_processes(tmp_path, tiny_clip, monkeypatch, capsys):
    for name, value in {"LAVIS_LITE_CACHE": str(tmp_path / "cache"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555",
                        "LAVIS_LITE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    words = ["capfilt", "--dataset", "mini_world_caption", "--options", WORLD, "--clip", str(tiny_clip), "--k", "2",
             "--images-per-part", "2", "--batch-size", "2", "--device", "cpu", "--out"]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert run_command("data", [*words, str(tmp_path / "one")]) == 0
    assert "6 images in 1 shards" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("1", "[rank 1] done; the last process"), ("0", "to train on them: --options")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run_command("data", [*words, str(tmp_path / "two")]) == 0
        assert said in capsys.readouterr().out
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_models_of_one_name_with_other_weights_are_told_apart(mini_ranker, mini_captioner):
    """A run's folder keeps its name while its training goes on; a job that continues must not mix the two."""
    for held, again in ((mini_captioner, lambda one: ZooCaptioner("mini", one.model, one.processor, one.sampling)),
                        (mini_ranker, lambda one: QFormerRanker("mini", one.model, str, str))):
        assert again(held).name == held.name
        weight = next(held.model.parameters())
        with torch.no_grad():
            before = weight.clone()
            weight.add_(1)
            changed = again(held).name
            weight.copy_(before)
        assert changed != held.name
