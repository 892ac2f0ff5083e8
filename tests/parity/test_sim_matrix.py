"""Retrieval scores of the real model against those that LAVIS' compute_sim_matrix recorded (k_test = 3)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lavis_lite import distributed
from lavis_lite.models.blip2_config import Blip2QformerConfig
from lavis_lite.models.blip2_qformer import Blip2Qformer
from lavis_lite.models.checkpoints import load_checkpoint
from lavis_lite.tasks.gallery import Gallery
from lavis_lite.tasks.retrieval_parts import Sizes
from lavis_lite.tasks.retrieval_scoring import image_rows, retrieve
from tests.helpers.processes import run_processes

UNSCORED = -100.0
CASE = "compute_sim_matrix_k3"


class Texts:
    """What a gallery reads of a data set; LAVIS recorded scores only, so who is right does not matter."""

    def __init__(self, texts, images):
        self.text = texts
        self.img2txt = {image: [image] for image in range(images - 1)}
        self.img2txt[images - 1] = list(range(images - 1, len(texts)))


def build(folder):
    recorded = json.loads((folder / "config.json").read_text())
    vit, qformer, args = recorded["vit"], recorded["qformer"], recorded["model_args"]
    cfg = Blip2QformerConfig(
        vit_model=args["vit_model"], image_size=args["img_size"], vit_precision=args["vit_precision"],
        freeze_vit=args["freeze_vit"], num_query_token=args["num_query_token"], embed_dim=args["embed_dim"],
        cross_attention_freq=args["cross_attention_freq"], max_txt_len=args["max_txt_len"],
        vit_args={"depth": vit["depth"], "width": vit["embed_dim"], "heads": vit["num_heads"],
                  "mlp_ratio": vit["mlp_ratio"], "patch_size": vit["patch_size"]},
        tokenizer=str(folder / recorded["tokenizer_dirs"]["bert"]), qformer_weights=None,
        qformer_hidden_size=qformer["hidden_size"], qformer_layers=qformer["num_hidden_layers"],
        qformer_heads=qformer["num_attention_heads"], qformer_intermediate_size=qformer["intermediate_size"],
        qformer_max_positions=qformer["max_position_embeddings"])
    model = Blip2Qformer.from_config(cfg)
    load_checkpoint(model, folder / "weights.safetensors")
    return model.eval()


def sim_matrices(folder):
    """(score_i2t, score_t2i) as LAVIS lays them out, by the ranks that take part."""
    case = json.loads((folder / "inputs.json").read_text())[CASE]
    model, images = build(folder), load_file(folder / "inputs.safetensors")["image4"]
    rank, ranks = distributed.rank(), distributed.world_size()
    own = torch.arange(len(images)).split(2)[rank::ranks]
    with torch.no_grad():
        rows = [row for index in own for row in image_rows(model, {"image": images[index], "index": index}, True)]
    gallery = Gallery.of(Texts(case["texts"], len(images)), range(len(images)))
    _, found = retrieve(model, rows, gallery, case["k_test"], Sizes(image_block=2))
    return [_matrix(side, case["k_test"], columns) for side, columns in
            ((found.texts_of_image, len(case["texts"])), (found.images_of_text, len(images)))]


def _matrix(found, scored, columns):
    index, score = found.index[:, :scored], found.score[:, :scored]
    return torch.full((len(index), columns), UNSCORED).scatter(1, index, score)


pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def folder(parity_dir):
    found = next((path for path in (parity_dir, parity_dir / "blip2_qformer") if (path / "cases.json").is_file()), None)
    if found is None or CASE not in json.loads((found / "cases.json").read_text()):
        pytest.skip(f"{parity_dir} has no recorded similarity matrix")
    return found


def check(folder, found):
    expected = load_file(folder / "expected.safetensors")
    noise = json.loads((folder / "expected.json").read_text())["_fp32_vs_fp64_max_abs"]
    for name, matrix in zip(("score_i2t", "score_t2i"), found, strict=True):
        key = f"{CASE}/{name}"
        matrix, right = torch.as_tensor(matrix), expected[key]
        assert torch.equal(matrix > UNSCORED, right > UNSCORED), "other pairs were scored"
        scored = right > UNSCORED
        allowed = max(4 * noise[key], 1e-6)
        assert float((matrix - right)[scored].abs().max()) <= allowed


def test_scores_are_the_recorded_ones(folder):
    check(folder, sim_matrices(folder))


@pytest.mark.slow
def test_scores_are_the_recorded_ones_in_two_processes(folder):
    for found in run_processes(sim_matrices, 2, folder):
        check(folder, found)
