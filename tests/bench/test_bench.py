"""The bench command: what is counted, which sides take turns, what a row holds, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from lavis_lite import products
from lavis_lite.bench import generate, loader, retrieval, stage1
from lavis_lite.bench.cases import cases
from lavis_lite.bench.counters import count
from lavis_lite.bench.options import PEERS, Options
from lavis_lite.bench.run import run
from lavis_lite.bench.sizes import CAPTION_LENGTHS, SIZES, caption_lengths, padding_share
from lavis_lite.bench.timing import OWN, Case, Side, interleave, ratios
from lavis_lite.bench.training import OurStep
from lavis_lite.cli import bench
from lavis_lite.device import Precision
from lavis_lite.errors import ConfigError, DataError, LavisLiteError
from lavis_lite.mini_world.captions import make_captions
from lavis_lite.mini_world.render import render
from lavis_lite.mini_world.scenes import make_scene
from lavis_lite.models.language import LanguageModel
from lavis_lite.runners.step import StepResult, TrainStep
from lavis_lite.zoo import load_model_and_preprocess
from tests.helpers.processes import run_processes

CPU = torch.device("cpu")


def mini(what: str, **settings: Any) -> Options:
    return Options(what, size="mini", steps=1, memory=False, **settings)


def test_lengths_are_drawn_as_often_as_coco_has_them() -> None:
    assert sum(CAPTION_LENGTHS.values()) == 25_014
    drawn = torch.tensor(caption_lengths(40_000, torch.Generator().manual_seed(0)), dtype=torch.float64)
    expected = sum(length * number for length, number in CAPTION_LENGTHS.items()) / 25_014
    assert float(drawn.mean()) == pytest.approx(expected, abs=5 * 2.4 / 200)
    assert set(drawn.long().tolist()) <= set(CAPTION_LENGTHS)
    assert caption_lengths(3, torch.Generator(), full=True) == [32] * 3
    assert padding_share([2, 4, 3, 3]) == 0.25


# --- counting ---------------------------------------------------------------------------------------------------------
def test_reads_of_the_host_are_counted() -> None:
    values = torch.arange(4.0)

    def turn() -> None:
        if values[0] == 0:
            values.sum().item()
        values.tolist()
        values.nonzero()
        values[values > 1]
        values[torch.tensor([1, 0])].exp().mean()

    assert count(turn, CPU).host_reads == 5


def test_flops_of_forward_and_backward_follow_from_the_shapes() -> None:
    left, right = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert count(lambda: (left @ right).sum().backward(), CPU).flops == 3 * 2 * 3 * 5 * 7
    query = torch.randn(2, 4, 6, 8)
    attention = count(lambda: nn.functional.scaled_dot_product_attention(query, query, query), CPU)
    assert attention.flops == 2 * 2 * (2 * 4 * 6 * 6 * 8)


def collectives() -> tuple[dict[str, int], dict[str, int], int]:
    """Bytes of a turn of my own, and of a stage-1 step; the latter's trained parameters."""
    model = nn.parallel.DistributedDataParallel(nn.Linear(10, 3))
    parts = [torch.empty(4) for _ in range(2)]

    def turn() -> None:
        dist.all_gather(parts, torch.ones(4))
        model(torch.ones(2, 10)).sum().backward()

    turn()
    turn()  # DDP arranges its buckets once more
    row = run(mini("stage1"), "", ranks=2, rank=dist.get_rank())[0]
    built = stage1.build(mini("stage1"), CPU, torch.float32)
    trained = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    return count(turn, CPU).collective_bytes, row.collective_bytes, trained


def test_bytes_of_collectives_include_the_gradients_of_ddp() -> None:
    for own, step, trained in run_processes(collectives, 2):
        assert own == {"allgather": 2 * 4 * 4, "allreduce": 4 * 33}
        assert 0 <= step["allreduce"] - 4 * trained <= 64  # besides the gradients: counts, and the vote of the ranks
        assert step["alltoall_base"] <= 2 * 8 * 5 * 32 * 4  # features of 8 chosen images at most, and their gradients


# --- turns ------------------------------------------------------------------------------------------------------------
def _note(order: list[tuple[str, int]], name: str, batch: int) -> None:
    order.append((name, batch))


def test_sides_take_turns_and_every_second_round_is_reversed() -> None:
    order: list[tuple[str, int]] = []
    sides = {name: Side(partial(_note, order, name), lambda batch: 1e9) for name in ("ours", "plain")}
    found = interleave(sides, range(3), 1, CPU)
    assert order == [("ours", 0), ("plain", 0), ("plain", 1), ("ours", 1), ("ours", 2), ("plain", 2)]
    assert [len(turns) for turns in found.values()] == [2, 2]
    assert all(turn.wall >= 5.0 for turns in found.values() for turn in turns)
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == (2.0, 2.0, 3.0)


def test_other_code_multiplies_as_torch_does_and_this_package_does_not() -> None:
    seen: dict[str, bool] = {}

    def side(name: str) -> Side:
        return Side(lambda batch: seen.update({name: products._is_plain}))

    case = Case("", {name: partial(side, name) for name in (*OWN, "plain")}, lambda number: None)
    for name in case.sides:
        case.build(name).turn(None)
    assert seen == {"ours": False, "fp32": False, "plain": True}


# --- the benchmarks ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_all_sides_of_stage_2_train_on_the_same_batch_in_bf16(llm: str) -> None:
    """On a GPU bf16 is the default; there the frozen parts have it too."""
    case = cases(mini("stage2", llm=llm, precision="bf16", batch=2), CPU, 0)[0]
    assert set(case.sides) == {"ours", *PEERS["stage2"], "fp32"}
    batch = case.batch(0)
    assert batch["image"].shape == (2, 3, 28, 28) and max(map(len, batch["after"])) <= 32
    assert all(row[0] == 2 for row in batch["after"]) == (llm == "opt")
    for make in case.sides.values():
        make().turn(batch)


def test_instructblip_reads_its_prompts_twice() -> None:
    case = cases(mini("stage2", llm="t5", instruct=True, batch=8), CPU, 0)[0]
    assert case.name == "InstructBLIP, t5, mini, batch 8" and set(case.sides) == {"ours", "plain", "fp32"}
    batch = case.batch(0)
    lengths = [len(row) for row in batch["before"]]
    assert 5 <= min(lengths) < max(lengths) <= 32
    for make in case.sides.values():
        make().turn(batch)
    step: Any = case.sides["ours"]().turn
    assert step.model.reads_instructions


def test_stage_1_is_measured_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert bench.main(["stage1", "--size", "mini", "--steps", "2", "--no-memory", "--json", str(file)]) == 0
    row = json.loads(file.read_text())
    assert row["name"] == "stage 1, mini, batch 8" and row["against"] == "plain" and row["steps"] == 2
    assert row["ratio_cpu"] > 0.5 and row["spread_cpu"][0] <= row["ratio_cpu"] <= row["spread_cpu"][1]
    assert row["host_reads"] >= 1  # the last step's vote; others are of lengths, which stay on the host
    assert row["gflop"] == pytest.approx(0.63, rel=0.2) and row["command"].endswith(f"--json {file}")
    assert row["peak_mb"] is None and row["collective_bytes"] == {} and 0 < row["mfu"] < 1
    assert "stage 1, mini, batch 8" in capsys.readouterr().out


def test_steps_behind_a_loader_report_how_long_they_wait() -> None:
    row = run(mini("stage2", workers=0, batch=16), "")[0]
    assert row.against is None and row.data_wait is not None and row.images_per_s is not None and row.wall_s is not None
    assert 0.2 < row.data_wait < 1  # decoding 16 pictures takes longer than the step of a tiny model
    assert row.images_per_s == pytest.approx(16 * (1 - row.data_wait) / row.wall_s)


def test_memory_is_that_of_one_side_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis_lite.bench.memory import peak_of

    peak = peak_of(mini("stage1"), 0, "ours", 1)
    assert peak is not None and 150 < peak < 4000
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(LavisLiteError, match="stage1 .ours. could not be measured.*--no-memory"):
        peak_of(mini("stage1"), 0, "ours", 1)


def test_nothing_is_timed_if_texts_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = SIZES["mini"].llms["opt"]
    case = generate._compared("captions", 2, lambda: generate.captions(generate.build(sizes, CPU), 2))
    sides = {name: make() for name, make in case.sides.items()}
    case.check(sides)
    assert case.tokens > 10
    monkeypatch.setattr(LanguageModel, "generate_ids", lambda self, soft, prompts, options, index: [[1]] * len(prompts))
    with pytest.raises(LavisLiteError, match="2 of 2 texts of transformers differ"):
        case.check(sides)


def test_re_ranking_is_that_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = retrieval.shapes(mini("retrieval"))[0]
    found = retrieval.compare(shape, torch.float64, CPU)
    assert found["largest difference"] <= 1e-10 and found["ranks equal"] and found["spread"] > 0.01
    setting = retrieval.Setting(shape, torch.float32, CPU)
    image = setting.typical(0)
    assert setting.our_scale(image) * len(setting.pairs_of(image)) == pytest.approx(len(setting.pairs))
    assert setting.plain_scale(image) * (6 + 6) == 12 * 6 + 60 * 6
    monkeypatch.setattr(retrieval, "TOLERANCE", -1.0)
    with pytest.raises(LavisLiteError, match="nothing was timed"):
        cases(mini("retrieval"), CPU, 0)[0].check({})


def test_loaders_read_as_many_pictures_as_they_report(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(loader, "_read", lambda batches: shapes.extend(tuple(each["image"].shape) for each in batches))
    views, alone, *_ = cases(mini("loader"), CPU, 0)
    assert views.images == alone.images == 48
    for make in alone.sides.values():
        make().turn(0)
    assert shapes == [(16, 3, 224, 224)] * 6


# --- bf16 -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["blip2", "blip2_opt"])
def test_training_in_bf16_on_a_cpu_keeps_the_loss(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The mean loss of a few steps from trained weights, on captions of other images, so that it is not near 0.

    Without dropout, which draws other numbers in another type.
    """
    scenes = [make_scene(0, "val", index) for index in range(7)]
    original, losses = TrainStep.run, dict[torch.dtype, list[float]]()

    def noted(step: TrainStep, *args: Any, **named: Any) -> StepResult:
        result = original(step, *args, **named)
        losses.setdefault(step.precision.dtype, []).append(float(result.losses["loss"]))
        return result

    monkeypatch.setattr(TrainStep, "run", noted)
    for dtype in (torch.float32, torch.bfloat16):
        model, processors, _ = load_model_and_preprocess(name, "mini", is_eval=True, device="cpu")
        turn = OurStep(model, model, CPU, Precision("cpu", dtype))
        for _ in range(3):
            turn({"image": torch.stack([processors["eval"](Image.fromarray(render(scene))) for scene in scenes[1:]]),
                  "text_input": [make_captions(scene)[0] for scene in scenes[:-1]],
                  "uniform": torch.full((6, 2), 0.5, dtype=torch.float64)})
    exact, rounded = losses[torch.float32], losses[torch.bfloat16]
    assert exact[0] > 1
    assert sum(rounded) == pytest.approx(sum(exact), rel=0.005) and rounded != exact
    assert exact[-1] < 0.98 * exact[0]


def test_a_step_alone_tells_its_phases_and_predicts_its_scaling() -> None:
    row = run(mini("stage1"), "")[0]
    assert set(row.phases) == {"frozen", "forward", "backward", "update"} and min(row.phases.values()) > 0
    assert list(row.scaling) == [8, 64, 256, 1024]
    assert 1 > row.scaling[8] > row.scaling[1024] > 0


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("arguments", "message"), [
    (["stage1", "--against", "transformers"], "--against transformers: stage1 has no such peer"),
    (["stage1", "--against", "fp32"], "with --precision bf16"),
    (["stage1", "--llm", "t5"], "stage1 has no language model"),
    (["all", "--against", "plain"], "leave it out with all"),
    (["loader", "--ranks", "2"], "only stage1 and stage2"),
    (["stage1", "--instruct"], "--instruct: stage1 has no use for it.*measure stage2"),
    (["stage2", "--instruct", "--against", "transformers"], "stage2 --instruct has no such peer; choose one of: plain"),
    (["stage1", "--images", "folder"], "--images: stage1 has no use for it.*with --workers"),
    (["generate", "--precision", "bf16"], "--precision: generate has no use for it"),
    (["retrieval", "--batch", "3"], "stage1 or stage2 or generate"),
    (["stage1", "--ranks", "2", "--against", "plain"], "leave --against out"),
    (["stage1", "--workers", "1", "--against", "plain"], "leave --against out"),
    (["retrieval", "--workers", "1"], "--workers: retrieval has no use for it"),
    (["stage1", "--workers", "-1"], "--workers is -1"),
    (["stage1", "--json", "README.md/rows.jsonl"], "is a file"),
    (["stage1", "--steps", "0"], "--steps is 0"),
    (["stage1", "--batch", "-1"], "--batch is -1"),
    (["stage1", "--size", "vitg", "--device", "cpu"], "needs a GPU"),
    (["stage1", "--ranks", "0"], "--ranks is 0"),
    (["stage1", "--ranks", "2", "--device", "cuda:99"], "cuda:99 is not here"),
    (["stage1", "--threads", "0"], "--threads is 0"),
])
def test_impossible_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.main(arguments)


def test_all_benchmarks_take_what_they_have_a_use_for() -> None:
    chosen = bench.parser().parse_args(["all", "--instruct", "--images", "folder", "--precision", "bf16"])
    found = {options.what: options for options in bench.benchmarks(chosen)}
    assert [found[what].instruct for what in ("stage1", "stage2")] == [False, True]
    assert [found[what].images_from for what in ("stage1", "loader")] == [None, "folder"]
    assert [found[what].amp(CPU).dtype for what in ("stage1", "generate")] == [torch.bfloat16, torch.float32]
    assert all(options.check() is None for options in found.values())
    gpu = torch.device("cuda")
    assert [mini(what).amp(gpu).dtype for what in ("stage1", "retrieval")] == [torch.bfloat16, torch.float32]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 0 JPEG files"):
        bench.main(["loader", "--images", str(tmp_path)])
    with pytest.raises(DataError, match="no such folder"):
        bench.main(["all", "--images", str(tmp_path / "nothing")])  # before the first benchmark
