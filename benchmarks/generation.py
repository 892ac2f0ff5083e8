"""Writing captions and answers on a CPU: this package's decoding against transformers' generate, interleaved.

    OMP_NUM_THREADS=1 python -m benchmarks.generation captions --llm opt --batch 16
    OMP_NUM_THREADS=1 python -m benchmarks.generation captions --llm t5
    OMP_NUM_THREADS=1 python -m benchmarks.generation answers --llm opt
    OMP_NUM_THREADS=1 python -m benchmarks.generation mini

* `captions`: captions of `--batch` images as LAVIS writes them for COCO (5 beams, at most 30 tokens, min_length 8),
  after soft prompts of 32 vectors and a prompt of 4 tokens. transformers multiplies the beams first and then reads the
  prompts (an encoder-decoder: after its encoder).
* `answers`: 5 questions of 8 to 16 tokens about each of `--batch` images, 5 beams, at most 10 tokens: soft prompts read
  once for all questions about an image (`ours`, with image_index), once for each question (`apart`), and transformers.
* `mini`: captions of generated pictures by the packaged BLIP-2 over OPT.

The other language models have random weights at the sizes of `LLMS`. Left alone they would not end their texts: the end
token's row of the output layer is wider than others and leans towards the mean hidden state, so that texts end at
different lengths, which the record tells.

Before anything is timed the ids of all sides are compared: a difference ends the run. Reported are medians, and medians
of paired ratios by the clock and by processor time. Appends to benchmarks/results/generation.jsonl, unless --no-record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.stage1_step import machine, paired, timed
from lavis_lite.models.language import GenerationConfig, LanguageModel, build_language_model

RESULTS = Path(__file__).parent / "results"
QUERIES, QUESTIONS = 32, 5
CAPTIONS = GenerationConfig(max_new_tokens=30, min_new_tokens=7, num_beams=5)
ANSWERS = GenerationConfig(max_new_tokens=10, min_new_tokens=0, num_beams=5, length_penalty=0.0)
CPU = torch.device("cpu")
LLMS: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "vocab_size": 50272, "hidden_size": 512, "word_embed_proj_dim": 512, "ffn_dim": 2048,
            "num_attention_heads": 8, "max_position_embeddings": 256, "pad_token_id": 1,
            "bos_token_id": 2, "eos_token_id": 2},
    "t5": {"model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8,
           "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1,
           "decoder_start_token_id": 0},
}
LAYERS = {"opt": "num_hidden_layers", "t5": "num_layers"}
SPREAD = 3.0
"""standard deviation of the logits: the likeliest of so many words then has a probability of 0.1 or so"""
Run = Callable[[], list[list[int]]]


class Ids:
    """A tokenizer for texts that come as ids."""

    def __init__(self, pad: int, end: int) -> None:
        self.pad_token_id, self.eos_token_id = pad, end


def build(llm: str, end_logit: float) -> LanguageModel:
    """The language model with random weights; the end token's logit is `end_logit` on average."""
    torch.manual_seed(0)
    sizes = LLMS[llm]
    model = build_language_model("", sizes=sizes, tokenizer=Ids(sizes["pad_token_id"], sizes["eos_token_id"]),
                                 family="general", precision="fp32")
    layer = model.model.get_output_embeddings()
    weight = torch.randn(layer.weight.shape)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)  # of its own, not the word embeddings'
    states: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda layer, given: states.append(given[0].flatten(0, -2)))
    ours(model, soft_prompts(model, 4), prompts_of([4] * 4), GenerationConfig(max_new_tokens=6, min_new_tokens=6))
    hook.remove()
    hidden = torch.cat(states)
    mean = hidden.mean(0)
    weight *= SPREAD / hidden.square().sum(1).mean().sqrt()
    weight[sizes["eos_token_id"]] *= 2
    weight[sizes["eos_token_id"]] += end_logit * mean / mean.square().sum()
    return model


def prompts_of(lengths: list[int]) -> list[list[int]]:
    """Rows of random ids."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 30000, (length,), generator=generator).tolist() for length in lengths]


def soft_prompts(model: LanguageModel, batch: int) -> Tensor:
    """float[B,32,D] of the size of word embeddings."""
    generator = torch.Generator().manual_seed(2)
    size = model.model.get_input_embeddings().weight.std()
    return size * torch.randn(batch, QUERIES, model.hidden_size, generator=generator)


@torch.no_grad()
def ours(model: LanguageModel, soft: Tensor, prompts: list[list[int]], options: GenerationConfig,
         image_index: list[int] | None = None) -> list[list[int]]:
    """`LanguageModel.generate` from ids to ids."""
    return model.generate_ids(soft, prompts, options, image_index)


@torch.no_grad()
def theirs(model: LanguageModel, soft: Tensor, prompts: list[list[int]], options: GenerationConfig) -> list[list[int]]:
    """transformers' generate with the same weights from the same embeddings."""
    embeds, mask = model.prefix_embeds(soft, prompts)  # type: ignore[operator]
    end = model.tokenizer.end
    rows = model.model.generate(inputs_embeds=embeds, attention_mask=mask.long(), do_sample=False,
                                max_new_tokens=options.max_new_tokens, min_new_tokens=options.min_new_tokens,
                                num_beams=options.num_beams, length_penalty=options.length_penalty, eos_token_id=end,
                                pad_token_id=model.pad).tolist()
    rows = [row[1:] for row in rows] if model.model.config.is_encoder_decoder else rows
    return [row[:row.index(end)] if end in row else row for row in rows]


def captions(llm: str, batch: int, end_logit: float) -> dict[str, Run]:
    """Both sides of the first table."""
    model = build(llm, end_logit)
    given = (model, soft_prompts(model, batch), prompts_of([4] * batch), CAPTIONS)
    return {"ours": partial(ours, *given), "transformers": partial(theirs, *given)}


def answers(llm: str, batch: int, end_logit: float) -> dict[str, Run]:
    """The three sides of the second table."""
    model = build(llm, end_logit)
    soft = soft_prompts(model, batch)
    image_index = [image for image in range(batch) for _ in range(QUESTIONS)]
    lengths = torch.randint(8, 17, (len(image_index),), generator=torch.Generator().manual_seed(3)).tolist()
    prompts = prompts_of(lengths)
    return {"ours": partial(ours, model, soft, prompts, ANSWERS, image_index),
            "apart": partial(ours, model, soft[image_index], prompts, ANSWERS),
            "transformers": partial(theirs, model, soft[image_index], prompts, ANSWERS)}


def mini(batch: int) -> dict[str, Run]:
    """Both sides by the packaged model, from its soft prompts on."""
    from PIL import Image

    from lavis_lite import load_model_and_preprocess
    from lavis_lite.mini_world.render import render
    from lavis_lite.mini_world.scenes import make_scene

    model, processors, _ = load_model_and_preprocess("blip2_opt", "mini", is_eval=True, device="cpu")
    pictures = [Image.fromarray(render(make_scene(0, "val", index))) for index in range(batch)]
    with torch.no_grad():
        soft = model.embed_image(torch.stack([processors["eval"](picture) for picture in pictures]))
    language_model = model.language_model
    prompts = language_model.tokenizer.prompts([model.prompt] * batch)
    given = (language_model, soft, prompts, replace(CAPTIONS, min_new_tokens=0))
    return {"ours": partial(ours, *given), "transformers": partial(theirs, *given)}


def measure(runs: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Seconds of every side, taking turns; every second round runs in reverse order. The first run checks the ids."""
    texts = {name: run() for name, run in runs.items()}
    for name, found in texts.items():
        different = sum(one != other for one, other in zip(texts["ours"], found, strict=True))
        if different:
            raise SystemExit(f"{name}: {different} of {len(found)} texts differ from ours; nothing was timed.")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[::-1 if number % 2 else 1]:
            elapsed, processor = timed(partial(_quiet, runs[name]), CPU)
            seconds[name].append(elapsed)
            busy[name].append(processor)
    lengths = sorted(len(text) for text in texts["ours"])
    return {"seconds": seconds, "busy": busy, "lengths": lengths}


def _quiet(run: Run) -> None:
    run()


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Medians, and ratios of every other side to ours."""
    seconds, busy = found["seconds"], found["busy"]
    return {"date": datetime.date.today().isoformat(), "machine": machine(CPU), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "rounds": len(seconds["ours"]), "other_load": round(os.getloadavg()[0], 1),
            "new_tokens": found["lengths"], "median_s": {name: round(statistics.median(values), 3)
                                                         for name, values in seconds.items()},
            "median_cpu_s": {name: round(statistics.median(values), 3) for name, values in busy.items()},
            "ratio_clock_and_cpu": {name: [round(paired(times[name], times["ours"]), 2) for times in (seconds, busy)]
                                    for name in seconds if name != "ours"}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("captions", "answers", "mini"))
    parser.add_argument("--llm", choices=LLMS, default="opt")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--layers", type=int, default=8, help="of a language model with random weights")
    parser.add_argument("--end-logit", type=float, default=14.0, help="the larger, the shorter the texts")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    LLMS[args.llm].update({LAYERS[args.llm]: args.layers})
    if args.what == "mini":
        runs = mini(args.batch)
    else:
        runs = {"captions": captions, "answers": answers}[args.what](args.llm, args.batch, args.end_logit)
    row = {"what": args.what, "llm": args.llm, "batch": args.batch, "layers": args.layers,
           **summarise(measure(runs, args.rounds))}
    print(json.dumps(row, indent=1))
    if not args.no_record:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "generation.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
