"""run.compile: equal losses and gradients, few graphs, no breaks, unchanged names; and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lavis_lite.bench import stage2
from lavis_lite.bench.options import Options
from lavis_lite.bench.sizes import caption_lengths, random_rows
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.language.tokens import Limits
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.process import compiler
from lavis_lite.runners import placement
from lavis_lite.runners.placement import compile_model, eagerly
from tests.helpers.processes import run_processes
from tests.helpers.toy import Toy, ToyModel, same, weights
from tests.models.stage1_helpers import gradients, tiny_batch, tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def whole_graphs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Traced, not translated; a break of a graph is an error, and so is a read of the host inside.

    With --long, the backward passes are traced too.
    """
    use(monkeypatch.setattr, "aot_eager" if request.config.getoption("--long") else "eager")
    yield
    torch._dynamo.reset()


def use(put: Callable[[Any, str, Any], None], backend: str = "eager") -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    put(placement, "BACKEND", backend)
    plain = torch.compile
    put(torch, "compile", lambda function, **how: plain(function, **{"fullgraph": True, **how}))


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def stage1_batch(number: int, size: int = 6) -> dict[str, Any]:
    """Texts of real lengths, from a vocabulary of 61."""
    random = torch.Generator().manual_seed(number)
    rows = [[1, *row[2:], 2] for row in random_rows(caption_lengths(size, random), 61, random)]
    tokens = TextTokens.from_lists([row[:24] for row in rows], pad=0)
    return tiny_batch(size, number, torch.float64) | {"text_input": tokens}


def stage1_model() -> Blip2Qformer:
    model = tiny_model().double()
    model.tokenizer.max_length = 24  # all its positions
    return model


def stage2_model(llm: str, instruct: bool = False) -> Any:
    model = stage2.build(Options("stage2", size="mini").dimensions, llm, CPU, torch.float32, instruct)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    for part in (model.qformer, model.language_model.model, model.ln_vision, model.language_projection):
        for value in part.parameters():
            value.data = value.data.double()
    model.query_tokens.data = model.query_tokens.data.double()
    model.language_model.limits = Limits(32, 32, 32)  # LAVIS' max_txt_len
    return model


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    largest = max(float(value.abs().max()) for value in expected.values())
    assert found.keys() == expected.keys()
    assert max(float((found[name] - value).abs().max()) for name, value in expected.items()) <= 1e-10 * largest


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", pytest.param("blocks", marks=pytest.mark.long)])
def test_stage_1_equals_its_eager_twin_in_few_graphs(how: Any) -> None:
    plain, model = stage1_model(), stage1_model()
    compile_model(model, RunConfig(compile=how), CPU)
    assert list(model.state_dict()) == list(plain.state_dict()) and model.trainable_state().keys() == (
        plain.trainable_state().keys())
    widths, ids = set(), {"image_id": ["a", "b", "a", "c", "d", "e"]}
    for number in range(2):
        samples = stage1_batch(number) | ids
        widths.add(samples["text_input"].ids.shape[1])
        found, expected = model(samples), plain(samples)
        for name, value in expected.losses().items():
            assert abs(float(found.losses()[name] - value)) <= 1e-12 * max(1.0, abs(float(value))), name
        close(gradients(model, found.loss), gradients(plain, expected.loss))
    for number in range(2, 25):
        model(stage1_batch(number) | ids)
    assert len(widths) > 1 and not torch._dynamo.utils.counters["graph_break"]
    assert graphs() <= (4 if how == "full" else 8)  # blocks: of the Q-Former, by what they look at and return


@pytest.mark.slow
@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_stage_2_equals_its_eager_twin(llm: str) -> None:
    plain, model = (stage2_model(llm) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    compile_model(model, RunConfig(compile="full"), CPU)
    samples = stage2.make_batch(Options("stage2", size="mini", llm=llm), 0, 0)
    expected, found = (stage2.LossFromIds(one)(samples) for one in (plain, model))
    assert abs(float((found - expected).detach())) <= 1e-12 * abs(float(expected.detach()))
    close(gradients(model, found), gradients(plain, expected))
    assert not torch._dynamo.utils.counters["graph_break"] and graphs() <= 5


@pytest.mark.slow
@pytest.mark.parametrize("llm", ["opt", pytest.param("t5", marks=pytest.mark.long)])
def test_instructions_come_in_few_widths(llm: str) -> None:
    plain, model = (stage2_model(llm, instruct=True) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    compile_model(model, RunConfig(compile="full"), CPU)
    samples = stage2.make_batch(Options("stage2", size="mini", llm=llm, batch=2), 0, 0)
    for longest in (2, 3, 20):
        losses = []
        for one in (plain, model):
            one.tokenizer = TextTokenizer("mini", 32)
            soft_prompt = one.embed_image(samples["image"], ["red", " ".join(["red"] * longest)])
            losses.append(one.language_model.row_losses(soft_prompt, samples["before"], samples["after"]).mean())
        assert abs(float((losses[0] - losses[1]).detach())) <= 1e-12 * abs(float(losses[0].detach()))
    close(gradients(model, losses[1]), gradients(plain, losses[0]))
    assert not torch._dynamo.utils.counters["graph_break"] and graphs() == 3  # two widths, and the language model


def count_graphs(model: nn.Module, loss: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(placement, "BACKEND", "eager")
    compile_model(model, RunConfig(compile="full"), CPU)  # type: ignore[arg-type]
    for step in range(1000):
        with torch.no_grad():
            loss(step)
    return graphs()


@pytest.mark.long
@pytest.mark.parametrize("what", ["stage 1", "opt", "t5"])
def test_a_thousand_steps_of_real_lengths_make_at_most_five_graphs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "stage 1":
        first = stage1_model()
        found = count_graphs(first, lambda step: first(stage1_batch(step, size=3)), monkeypatch)
    else:
        second = stage2_model(what)
        options = Options("stage2", size="mini", llm=what, batch=3)
        found = count_graphs(second, lambda step: stage2.LossFromIds(second)(stage2.make_batch(options, 0, step)),
                             monkeypatch)
    assert 1 < found <= 5


def two_ranks() -> list[float]:
    use(setattr, "eager")
    plain, inner = stage1_model(), stage1_model()
    model = nn.parallel.DistributedDataParallel(inner)
    compile_model(inner, RunConfig(compile="full"), CPU)
    rank = torch.distributed.get_rank()
    found = []
    for number in range(2):
        samples = stage1_batch(2 * number + rank)
        loss, expected = model(samples).loss, plain(samples).loss
        model.zero_grad()
        loss.backward()
        found.append(float((loss - expected).detach()))
    return [*found, *(float(value.grad.norm()) for value in model.parameters() if value.grad is not None)]


@pytest.mark.long
def test_ranks_compile_the_parts_between_their_exchanges() -> None:
    first, second = run_processes(two_ranks, 2, timeout=600)
    assert max(map(abs, first[:2] + second[:2])) <= 1e-12 and first[2:] == second[2:] and len(first) > 20


def test_an_evaluation_runs_as_it_is_written() -> None:
    model = tiny_model()
    run = RunConfig(compile="full")
    compile_model(model, run, CPU)
    with eagerly(run), torch.no_grad():
        model(tiny_batch())
    assert graphs() == 0
    compile_model(untouched := tiny_model(), RunConfig(compile="none"), CPU)
    assert "losses" not in vars(untouched) and not untouched.few_widths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "set_stance", None)  # would import the compiler
        assert isinstance(eagerly(RunConfig(compile="full", evaluate=True)), contextlib.nullcontext)


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_run_that_only_evaluates_compiles_nothing(tmp_path: Any, evaluate: bool) -> None:
    runner = Toy(tmp_path, {"compile": "full", "evaluate": evaluate}, model_class=CompiledToy).build()
    assert ("loss_of" in vars(runner.model)) is not evaluate


class Nothing(BaseModel):
    """Has no blocks, and no method to compile."""


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for how, other in (("full", "blocks"), ("blocks", "full")):
        with pytest.raises(ConfigError, match=f"Nothing has nothing to compile.*run.compile={other}"):
            compile_model(Nothing(), RunConfig(compile=how), CPU)
    monkeypatch.setattr(placement, "BACKEND", "inductor")
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"run.compile=full: .*no g\+\+ on this machine.*run.compile=none"):
        compile_model(tiny_model(), RunConfig(compile="full"), CPU)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "icpx")
    assert "no icpx on" in str(compiler.why_not("cpu")) and "no gcc or clang on" in str(compiler.why_not("cuda:1"))
    monkeypatch.setattr(compiler.shutil, "which", lambda name: name if name == "gcc" else None)
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h is missing" in str(compiler.why_not("auto"))
    (tmp_path / "Python.h").touch()
    assert compiler.why_not("auto") is None


class CompiledToy(ToyModel):
    """The toy, its loss a function of tensors."""

    traced = ("loss_of",)

    def forward(self, samples: dict[str, Any]) -> Any:
        return ModelOutput(loss=self.loss_of(samples["image"], samples["target"]))

    def loss_of(self, image: Tensor, target: Tensor) -> Tensor:
        hidden = self.hidden(self.frozen(image)) + self.tokens.mean(dim=(0, 1))
        return (self.out(hidden).squeeze(-1) * self.scale - target).square().mean()


def test_a_compiled_run_resumes_bit_for_bit_and_its_checkpoints_are_those_of_any_run(
        tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "BACKEND", "eager")
    ends = {}
    for name, how in (("eager", "none"), ("compiled", "full"), ("resumed", "full")):
        toy = Toy(tmp_path / name, {"max_iters": 4, "save_every": 2, "valid_splits": ["val"], "compile": how},
                  model_class=CompiledToy)
        runner = toy.build()
        if name == "resumed":
            runner.resume(tmp_path / "compiled" / "checkpoints" / "step_00000002")
        runner.train()
        ends[name] = weights(runner)
    assert graphs() == 1  # that of training, for both models; the validations have none
    assert same(ends["eager"], ends["compiled"]) and same(ends["compiled"], ends["resumed"])
    assert not any("_orig_mod" in name for name in ends["compiled"])
