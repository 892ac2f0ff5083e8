"""Where models look: equal to a softmax written out here, and right about objects of the mini world."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lavis_lite import load_model_and_preprocess
from lavis_lite.errors import ConfigError, DataError, TextTooLongError
from lavis_lite.mini_world.render import encode_jpeg, inside_distance, render
from lavis_lite.mini_world.scenes import IMAGE_SIZE, Scene, SceneObject, make_scene
from lavis_lite.models.attention import looking, recorded, shown, words_of

WRITERS = [("blip2_opt", "mini"), ("blip2_t5_instruct", "mini"), ("vision_language", "mini_mlp"),
           ("vision_language", "mini_resampler"), ("vision_language", "mini_abstractor")]


def loaded(arch: str, model_type: str = "mini") -> tuple[Any, Any]:
    model, images, _ = load_model_and_preprocess(arch, model_type, is_eval=True, allow_untrained=True)
    return model, images["eval"]


def noise(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# exactness ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch, model_type", WRITERS)
def test_keeping_weights_changes_no_vector(arch: str, model_type: str) -> None:
    model, _ = loaded(arch, model_type)
    model.double()
    model.vision_encoder.float()
    with torch.no_grad():
        plain = model.embed_image(noise(), ["what is it?"])
        with recorded(model, looking(model)) as kept:
            slow = model.embed_image(noise(), ["what is it?"])
    assert (plain - slow).abs().max() < 1e-12
    assert len(kept) == len(looking(model)) and all((one.sum(-1) - 1).abs().max() < 1e-12 for one in kept)
    assert "attend" not in vars(looking(model)[0]) if kept else True


def test_the_weights_of_the_q_former_are_a_plain_softmax() -> None:
    model, _ = loaded("blip2_opt")
    model.double()
    model.vision_encoder.float()
    layer = model.qformer.blocks[0]
    seen: list[Any] = []
    hook = layer.cross_attention.register_forward_pre_hook(lambda module, given: seen.append(given))
    [found] = model.attention({"image": noise(), "text_output": ["a red circle"]})
    hook.remove()
    hidden, [image], index = seen[0]
    heads = layer.cross_attention.num_heads
    width = hidden.shape[-1] // heads
    query = layer.cross_attention.query(hidden)[0]
    key = image.layer(index)[0][0]
    for head in range(heads):
        rows = query[:, head * width:(head + 1) * width]
        scores = (rows @ key[:, head].T / math.sqrt(width)).exp()
        expected = scores / scores.sum(1, keepdim=True)
        assert np.abs(found.query_weights[0, head] - expected.detach().numpy()).max() < 1e-12


def test_the_weights_of_words_are_a_plain_softmax_in_the_position_that_predicts_them() -> None:
    model, _ = loaded("blip2_opt")
    language = model.language_model.model.double()
    attention = language.model.decoder.layers[0].self_attn
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, args, given: seen.append(
        given.get("hidden_states", args[0] if args else None)), with_kwargs=True)
    [found] = model.attention({"image": noise(), "prompt": "a photo of", "text_output": ["red circle"]})
    hook.remove()
    hidden, heads = seen[-1][0], attention.num_heads
    prompt = model.language_model.tokenizer.prompts(["a photo of"])[0]
    queries = model.query_tokens.shape[1]
    query, key = attention.q_proj(hidden), attention.k_proj(hidden)
    width = hidden.shape[-1] // heads
    spelled = model.language_model.tokenizer.continuation("a photo of", "red circle")
    [ids] = model.language_model.tokenizer.targets([spelled], [9])
    _, members = words_of(ids, model.language_model.tokenizer.spelled)
    for word, own in enumerate(members):
        rows = [queries + len(prompt) - 1 + token for token in own]
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = [(query[row, part] @ key[:row + 1, part].T / math.sqrt(width)).softmax(-1)[:queries]
                       for row in rows]
            expected = torch.stack(weights).mean(0).detach().numpy()
            assert np.abs(found.word_weights[0, head, word] - expected).max() < 1e-6  # its softmax is in float32
    assert found.words == ("red", "circle") and language.config._attn_implementation != "eager"


def test_grad_cam_is_weight_times_positive_slope() -> None:
    model, _ = loaded("blip2")
    model.double()
    model.vision_encoder.float()
    pair = {"image": noise(), "text_input": ["a red circle"]}
    [cam] = model.gradcam(pair)
    module = looking(model)[1]
    place, step = (0, 2, 5, 17), 1e-6
    scores, weight = [], 0.0

    def nudged(by: float) -> Any:
        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            nonlocal weight
            weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            weight = float(weights[place].detach())
            change = torch.zeros_like(weights)
            change[place] = by
            return ((weights + change) @ value).transpose(1, 2).flatten(2)
        return attend

    for head in range(4):
        place = (0, head, 5, 17)
        both = []
        for by in (step, -step):
            module.attend = nudged(by)
            with torch.no_grad():
                both.append(float(model.match(pair)[0, 1]))
        scores.append(weight * max((both[0] - both[1]) / (2 * step), 0.0))
    assert sum(scores) > 0 and cam.values[0, 1, 5, 17] == pytest.approx(sum(scores) / 4, rel=1e-5)


def test_a_batch_is_its_samples_one_by_one() -> None:
    model, _ = loaded("blip2_t5_instruct")
    images, texts = noise(2), ["red", "two small circles"]
    samples = {"image": images, "prompt": ["what color?", "how many?"], "text_output": texts}
    both = model.gradcam(samples)
    for number, text in enumerate(texts):
        [alone] = model.gradcam({"image": images[number:number + 1], "prompt": samples["prompt"][number],
                                 "text_output": text})
        assert alone.words == both[number].words == tuple(text.split())
        assert np.abs(alone.values - both[number].values).max() < 1e-6
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("arch, model_type", [("blip2", "mini"), *WRITERS])
def test_shapes_sums_and_the_text_that_is_written_without_one(arch: str, model_type: str) -> None:
    model, _ = loaded(arch, model_type)
    samples = {"image": noise()} | ({} if arch == "blip2" else {"prompt": "a photo of"})
    [found] = model.attention(samples)
    assert " ".join(found.words) == " ".join(model.generate(samples)[0].split())
    vectors = found.query_weights.shape[2]
    assert found.word_weights.shape[2:] == (len(found.words), vectors) and found.grid == (8, 8)
    assert found.maps().shape == (len(found.words), 8, 8) and found.query_maps().shape == (vectors, 8, 8)
    assert (found.word_weights.sum(-1) < 1 + 1e-5).all() and (found.query_weights.sum(-1) < 1 + 1e-5).all()
    assert (found.maps().sum((1, 2)) < 1 + 1e-5).all() and (found.maps() >= 0).all()
    [seen] = shown(model, samples)
    assert seen.words == found.words and seen.maps().shape == found.maps().shape


def test_words_of_several_tokens_and_tokens_that_spell_nothing() -> None:
    pieces = {1: "<s>", 2: " tri", 3: "angle", 4: ",", 5: " red", 9: "</s>"}
    words, members = words_of([1, 2, 3, 4, 5, 9], lambda row: "".join(pieces[one] for one in row if one not in (1, 9)))
    assert words == ("triangle,", "red") and members == [[1, 2, 3], [4]]
    assert words_of([9], lambda row: "") == ((), [])


# refusals -------------------------------------------------------------------------------------------------------------
def test_what_cannot_be_shown_is_refused() -> None:
    opt, _ = loaded("blip2_opt")
    with pytest.raises(DataError, match="not for videos"):
        opt.attention({"video": noise()[:, :, None].repeat(1, 1, 2, 1, 1)})
    with pytest.raises(ConfigError, match="text_output: 2 texts for 1 samples"):
        opt.attention({"image": noise(), "text_output": ["a", "b"]})
    with pytest.raises(TextTooLongError, match="longer than the language model's positions"):
        opt.attention({"image": noise(), "text_output": ["red " * 300]})
    mlp, _ = loaded("vision_language", "mini_mlp")
    with pytest.raises(ConfigError, match="connector has no attention"):
        mlp.gradcam({"image": noise(), "text_output": "red"})
    with pytest.raises(ConfigError, match="conversations are not supported"):
        mlp.attention({"conversation": [], "image": noise()})
    opt.vision_encoder.num_patches = 60
    with pytest.raises(ConfigError, match="no square grid"):
        opt.attention({"image": noise(), "text_output": "red"})


def test_what_the_model_has_not_written_has_no_map() -> None:
    model, _ = loaded("blip2_opt")
    [found] = model.attention({"image": noise(), "text_output": [""]})
    [cam] = model.gradcam({"image": noise(), "text_output": [""]})
    assert found.words == cam.words == () and found.maps().shape == cam.maps().shape == (0, 8, 8)


# the mini world -------------------------------------------------------------------------------------------------------
WHOLE = slice(0, IMAGE_SIZE)


def covered(item: SceneObject) -> Any:
    """The share of each patch that an object covers: float[8,8]."""
    inside = np.clip(inside_distance(item, WHOLE, WHOLE) + 0.5, 0, 1)
    return inside.reshape(8, 8, 8, 8).mean((1, 3))


def scenes(request: pytest.FixtureRequest, unlike: bool = False) -> list[Scene]:
    """Unseen scenes of several objects; `unlike`: no other has the first one's shape. All 200 with --long."""
    found: list[Scene] = []
    number = 0
    while len(found) < (200 if request.config.getoption("--long") else 12):
        scene = make_scene(7, "test", number)
        same = sum(item.shape == scene.objects[0].shape for item in scene.objects)
        found += [scene] if len(scene.objects) > 1 and not (unlike and same > 1) else []
        number += 1
    return found


def shares(maps: list[tuple[Scene, Any]]) -> tuple[float, float]:
    """Mass over area, both averaged over scenes: of the first object, and of the others."""
    mass, area, others = [], [], []
    for scene, values in maps:
        values = values / values.sum()
        named, *rest = scene.objects
        mass.append(float((values * covered(named)).sum()))
        area.append(float(covered(named).mean()))
        others += [float((values * covered(item)).sum() / covered(item).mean()) for item in rest]
    found = sum(mass) / sum(area), sum(others) / len(others)
    print(f"mass over area share in {len(maps)} scenes: named {found[0]:.2f}, others {found[1]:.2f}")
    return found


def picture(scene: Scene, images: Any) -> Tensor:
    seen: Tensor = images(Image.open(io.BytesIO(encode_jpeg(render(scene)))))[None]
    return seen


def test_matching_looks_at_the_named_object(request: pytest.FixtureRequest) -> None:
    model, images = loaded("blip2")
    maps = []
    for scene in scenes(request):
        text = "a " + " ".join(scene.objects[0].kind)
        [cam] = model.gradcam({"image": picture(scene, images), "text_input": [text]})
        maps.append((scene, cam.maps()[0]))
    named, others = shares(maps)
    assert named > 2 and named > 1.5 * others


@pytest.mark.parametrize("arch, model_type", [("blip2_t5_instruct", "mini"), ("blip2_opt", "mini_instruct")])
def test_an_answer_looks_at_the_object_of_the_question(arch: str, model_type: str,
                                                       request: pytest.FixtureRequest) -> None:
    model, images = loaded(arch, model_type)
    maps, looks = [], []
    for scene in scenes(request, unlike=True):
        samples = {"image": picture(scene, images), "prompt": f"what color is the {scene.objects[0].shape}?",
                   "text_output": [scene.objects[0].color]}
        maps.append((scene, model.gradcam(samples)[0].maps()[0]))
        looks.append((scene, model.attention(samples)[0].maps()[0]))
    named, others = shares(maps)
    assert named > 4 and named > 1.5 * others
    assert shares(looks)[0] > 2
