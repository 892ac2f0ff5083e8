"""A caption, a matching score and features, by models of the zoo."""

from __future__ import annotations

from PIL import Image

from lavis_lite import Samples, load_model, load_model_and_preprocess


def main() -> tuple[list[str], float, int]:
    """Captions of a picture, how well the first fits, and the width of its features."""
    model, vis, _ = load_model_and_preprocess("blip2_opt", "mini", is_eval=True)
    samples: Samples = {"image": vis["eval"](Image.new("RGB", (64, 64), "red"))[None], "prompt": "a"}
    captions = model.generate(samples, num_beams=2, max_new_tokens=4)
    matcher = load_model("blip2_image_text_matching", "mini", is_eval=True)
    fit = matcher.match({"image": samples["image"], "text_input": captions[0]}, match_head="itc")
    extractor = load_model("blip2_feature_extractor", "mini", True, "cpu")
    features = extractor.extract_features({"image": samples["image"]}, mode="image")
    assert features.image_embeds is not None
    return captions, fit.item(), features.image_embeds.shape[-1]
