"""A step is one objective: LM and ITG average over its tokens, however it is split into ranks and micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_lite.models.blip2.llm import OPT, T5, VICUNA
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.language import Limits
from lavis_lite.models.outputs import Blip2Output
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import Toy, ToyModel
from tests.models.stage1_helpers import tiny_model
from tests.models.test_blip2_llm import model_of
from tests.models.test_stage2_twins import exact_norms

SAMPLES = 8
SPLITS = {1: [(8, 1), (4, 2), (2, 4), (1, 8)], 2: [(4, 1), (2, 2), (1, 4)]}
"""ranks -> (samples of a micro-batch, micro-batches)"""


class OnlyItg(Blip2Qformer):
    """Stage 1 whose loss is ITG alone: ITC and ITM depend on the micro-batch by definition."""

    def forward(self, samples: dict[str, Any]) -> Blip2Output:
        output = super().forward(samples)
        loss = output["loss_lm"] + 0 * (output["loss_itc"] + output["loss_itm"])  # DDP wants every parameter used
        return Blip2Output(loss, output["loss_itc"], output["loss_itm"], output["loss_lm"])


def llm(name: str, style: Any) -> Any:
    def build() -> Any:
        model = model_of(name, style).double()
        model.language_model.model.double()  # a language model keeps its type when the whole is moved
        exact_norms(model)
        return model

    return build


MODELS: dict[str, Any] = {
    "opt": llm("opt", OPT), "t5": llm("t5", T5), "llama": llm("llama", VICUNA),
    "stage 1": lambda: tiny_model(cls=OnlyItg).double(),
}


class Captions:
    """Pictures with texts of 1 to 12 words; words are numbers, which every tokenizer of the tests reads."""

    words = (1, 12, 2, 5, 1, 1, 9, 3)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        numbers = torch.randint(3, 60, (self.words[index],), generator=generator).tolist()
        return {"image": torch.randn(3, 4, 4, generator=generator, dtype=torch.float64), "index": index,
                "text_input": " ".join(map(str, numbers))}


def first_step(folder: str, name: str, batch: int, accum: int, **run: Any) -> dict[str, Any]:
    """The losses of the first step and its gradients, which ranks have exchanged."""
    settings = {"batch_size_train": batch, "accum_grad_iters": accum, "max_iters": 1, "save_last": False, **run}
    toy = Toy(Path(folder), settings, model_class=lambda dropout: MODELS[name]())  # type: ignore[arg-type]
    runner = toy.build()
    runner.datasets = {"toy": {"train": Captions()}}
    losses = runner.one_step()
    grads = {key: value.grad for key, value in runner.model.named_parameters() if value.grad is not None}
    return {"losses": losses, "grads": grads}


def all_splits(folder: str, ranks: int) -> dict[str, Any]:
    """Every model and split in one group of processes."""
    return {f"{name} {batch}x{accum}": first_step(folder, name, batch, accum)
            for name in MODELS for batch, accum in SPLITS[ranks]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("objective"))
    return {1: all_splits(folder, 1), 2: run_processes(all_splits, 2, folder, 2)[0]}


@pytest.mark.parametrize("ranks", SPLITS)
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_do_not_depend_on_the_split(found: Any, name: str, ranks: int) -> None:
    whole = found[1][f"{name} 8x1"]
    assert whole["grads"]
    for batch, accum in SPLITS[ranks]:
        split = found[ranks][f"{name} {batch}x{accum}"]
        key = "loss_lm" if name == "stage 1" else "loss"
        assert split["losses"][key] == pytest.approx(whole["losses"][key], rel=1e-6)
        for parameter, expected in whole["grads"].items():
            rounding = 1e-6 * float(expected.abs().max()) + 1e-12
            np.testing.assert_allclose(split["grads"][parameter], expected.numpy(), rtol=1e-6, atol=rounding,
                                       err_msg=f"{parameter} {batch}x{accum}")


@pytest.mark.parametrize("name", ["opt", "stage 1"])
def test_lavis_reduction_is_the_mean_of_the_micro_batches(name: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, key = MODELS[name](), Captions(), "loss_lm" if name == "stage 1" else "loss"
    (model if name == "stage 1" else model.language_model).lm_reduction = "per_rank"
    samples = [{"image": data[row]["image"][None], "text_input": [data[row]["text_input"]]} for row in range(SAMPLES)]
    alone = [float(model(one)[key].detach()) for one in samples]
    monkeypatch.setitem(MODELS, name, lambda: model)
    found = first_step(str(tmp_path), name, 1, 8)["losses"]
    assert found[key] == pytest.approx(sum(alone) / SAMPLES, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_counting_terms_counts_no_text_as_read(name: str) -> None:
    model = MODELS[name]()
    samples = {"image": torch.randn(2, 3, 4, 4, dtype=torch.float64), "text_input": ["7 8 9", " ".join(["9"] * 30)],
               "uniform": torch.full((2, 2), 0.5, dtype=torch.float64)}
    before = {what: vars(count).copy() for what, count in model.cut_texts().items()}
    assert model.loss_terms(samples)
    assert {what: vars(count) for what, count in model.cut_texts().items()} == before


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("name", ["opt", "t5"])
def test_terms_are_the_tokens_that_are_learned(name: str, frames: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where positions, shared with the vectors of the pictures, cut the texts."""
    model = MODELS[name]()
    model.language_model.limits = Limits(300, 300)
    learned: list[int] = []
    losses = model.language_model.row_losses
    monkeypatch.setattr(model.language_model, "row_losses",
                        lambda *given: learned.append(len(found := losses(*given))) or found)
    shape = (2, 3, 4, 4) if frames is None else (2, 3, frames, 4, 4)
    samples = {"image": torch.randn(shape, dtype=torch.float64), "text_input": ["what?", "who?"],
               "text_output": ["7 8", "long " * 100]}
    terms = model.loss_terms(samples)
    model(samples)
    assert terms == {"loss": learned[0]}


def test_a_model_that_tells_no_terms_averages_over_micro_batches(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {"batch_size_train": 2, "accum_grad_iters": 2}).build()
    batches = list(runner.train_state.batches(0, 1))
    assert runner.train_state.train_step._weighted(0, batches) is batches


def test_weights_are_shares_of_the_terms(tmp_path: Path) -> None:
    class Counted(ToyModel):
        def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
            return {"loss_fit": int(samples["index"][0]) + 1}

    runner = Toy(tmp_path, {"batch_size_train": 1, "accum_grad_iters": 4}, model_class=Counted).build()
    batches = list(runner.train_state.batches(0, 1))
    terms = [int(batch["index"][0]) + 1 for batch in batches]
    weighted = runner.train_state.train_step._weighted(0, batches)
    weights = [float(batch["loss_weights"]["loss_fit"]) for batch in weighted]
    assert weights == pytest.approx([4 * one / sum(terms) for one in terms])


# what is announced --------------------------------------------------------------------------------------------------
class Contrastive(ToyModel):
    in_batch_negatives = True


def told(runner: Any) -> list[str]:
    """What the run says to people."""
    lines: list[str] = []
    runner.tracker.log = lines.append
    return lines


@pytest.mark.parametrize("model", [ToyModel, Contrastive])
@pytest.mark.parametrize("accum", [1, 2])
def test_accumulation_of_in_batch_negatives_is_announced(model: Any, accum: int, tmp_path: Path) -> None:
    runner = Toy(tmp_path, {"accum_grad_iters": accum, "max_iters": 1}, model_class=model).build()
    lines = told(runner)
    runner.train()
    expected = accum > 1 and model is Contrastive
    notes = [line for line in lines if "ITC and ITM compare the samples of one micro-batch, 4 " in line]
    assert bool(notes) is expected and all("not those of a step, 8." in note for note in notes)


@pytest.mark.parametrize("model", [ToyModel, Contrastive])
def test_a_resume_that_changes_in_batch_negatives_is_announced(model: Any, tmp_path: Path) -> None:
    run = {"accum_grad_iters": 2, "max_iters": 2, "save_every": 1}
    Toy(tmp_path, run, model_class=model).build().train()
    checkpoint = tmp_path / "checkpoints/step_00000001"
    for change, announced in (({}, False), ({"batch_size_train": 8, "accum_grad_iters": 1}, model is Contrastive)):
        runner = Toy(tmp_path, {**run, **change}, model_class=model).build()
        lines = told(runner)
        runner.resume(checkpoint)
        warned = [line for line in lines if line.startswith("WARNING: the number of samples in a micro-batch was 4 ")]
        assert bool(warned) is announced and all("is 8 (run.batch_size_train" in line for line in warned)


def test_the_logged_loss_is_that_of_all_tokens(tmp_path: Path) -> None:
    for batch, accum in ((8, 1), (1, 8)):
        folder = tmp_path / f"{batch}"
        settings = {"batch_size_train": batch, "accum_grad_iters": accum, "max_iters": 2, "save_last": False}
        runner = Toy(folder, settings, model_class=lambda dropout: MODELS["opt"]()).build()  # type: ignore[arg-type]
        runner.datasets = {"toy": {"train": Captions()}}
        runner.train()
    one, other = ([row["loss"] for row in read(tmp_path / f"{batch}/log.jsonl")] for batch in (8, 1))
    assert one == pytest.approx(other, rel=1e-6) and len(one) == 2
