"""`python -m lavis_lite generate`: captions of pictures, or answers about them, by a model of the zoo or of a run."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite.cli import attention
from lavis_lite.cli.console import command_parser, seed
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.process import exits
from lavis_lite.registry import registry

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""hides progress bars and notes of transformers; the user's own settings win"""
OPTIONS = {
    "num_beams": (int, "width of beam search; 1: greedy"),
    "max_new_tokens": (int, "most tokens of a text"),
    "min_new_tokens": (int, "fewest tokens of a text"),
    "num_captions": (int, "texts per picture"),
    "top_p": (float, "with --nucleus: share of the probability to draw from"),
    "temperature": (float, "with --nucleus: above 1 more varied, below 1 less"),
    "repetition_penalty": (float, "above 1: tokens already written become less likely"),
    "length_penalty": (float, "of beam search: above 0 favours long texts, below 0 short ones"),
}


DRAWN = ("top_p", "temperature")
"""options without a meaning in beam search"""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("generate", "Write captions of pictures, or answers about them, with a model of the zoo "
                               "(--model) or of a training (--run).", [
                                   "--run output/blip2 --image photos",
                                   "--model blip2_opt --image a.jpg --prompt 'Question: what is it? Answer:'"])
    add_model(arguments, "blip2_opt")
    arguments.add_argument("--image", required=True, nargs="+", metavar="PATH", help="pictures, or folders of them")
    arguments.add_argument("--prompt", help='the text is continued, or the question answered: "Question: {} Answer:"')
    for name, (kind, help_) in OPTIONS.items():
        arguments.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{help_} (default: the arch's own)")
    arguments.add_argument("--penalise-prompt", action="store_true", help="--repetition-penalty also counts the prompt")
    arguments.add_argument("--nucleus", action="store_true", help="sample, instead of beam search")
    arguments.add_argument("--seed", type=seed, default=42, help="of --nucleus; nothing else changes the draws")
    arguments.add_argument("--batch-size", type=int, default=8)
    add_placement(arguments)
    arguments.add_argument("--attention", metavar="PNG|FOLDER",
                           help="draw where each written word looks: a .png file for one picture, a folder for several")
    arguments.add_argument("--json", action="store_true", help="one JSON object per picture and line")
    return arguments


def add_model(arguments: argparse.ArgumentParser, example: str) -> None:
    """Add the arguments that name a model of the zoo or of a run; `example` is an arch."""
    which = arguments.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="ARCH", help=f"for example {example}")
    which.add_argument("--run", metavar="RUN", help="a run folder, or a folder above runs: the run that saved last")
    arguments.add_argument("--type", metavar="MODEL_TYPE", help="of --model; see `python -m lavis_lite zoo` (default: "
                                                                "mini)")
    arguments.add_argument("--checkpoint", metavar="PATH|best|last|step_N",
                           help="with --model: weights instead of the type's own; with --run: best, last or step_N "
                                "(default: best, or last if no validation chose one)")
    arguments.add_argument("--allow-untrained", action="store_true",
                           help="continue although no checkpoint has some trainable weights, which stay random")


def add_placement(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments that say where the model runs and in which type."""
    arguments.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")
    arguments.add_argument("--dtype", help="fp32 | bf16 | fp16")
    arguments.add_argument("--quantization", choices=("8bit", "4bit"), help="of the language model")


def main(argv: Sequence[str]) -> int:
    """Write texts for every picture; returns `exits.PROBLEMS` if a picture could not be read.

    Raises:
        LavisLiteError: impossible settings or names, before the model is built.
    """
    chosen = parser().parse_args(list(argv))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    source = model_source(chosen)
    settings = generation_settings(chosen, source.arch)
    paths, errors = pictures(chosen.image)
    if not paths:
        raise DataError("no pictures found: " + "; ".join(errors))
    for error in errors:
        _print_error(error, None, chosen.json)
    failed, drawn = len(errors), attention.targets(chosen.attention, paths, source.arch)
    for path, texts, reason in answers(chosen, source, settings, paths, drawn):
        failed += reason is not None
        if reason is not None:
            _print_error(reason, path, chosen.json)
        elif chosen.json:
            print(json.dumps({"image": str(path), "texts": texts}, ensure_ascii=False), flush=True)
        else:
            print("\n".join(f"{path}: {text}" for text in texts), flush=True)
    return exits.PROBLEMS if failed else exits.SUCCESS


@dataclass(frozen=True)
class ModelSource:
    """The model to load: its arch, and the arguments of `load_model_and_preprocess` that select it."""

    arch: str
    arguments: dict[str, Any]


def model_source(chosen: argparse.Namespace) -> ModelSource:
    """The model that --model, --type, --run and --checkpoint select. Nothing is built.

    Raises:
        CheckpointError, ConfigError: there is no such run or checkpoint, or the arguments exclude each other.
    """
    if chosen.run is None:
        return ModelSource(chosen.model, {"name": chosen.model, "model_type": chosen.type or "mini",
                                          "checkpoint": chosen.checkpoint})
    if chosen.type is not None:
        raise ConfigError(f"--type {chosen.type}: the run brings its own model; leave --type out.")
    from lavis_lite.runs import find_checkpoint, model_sections

    found = find_checkpoint(chosen.run, chosen.checkpoint)
    print(f"generating with {found.describe()}", file=sys.stderr, flush=True)
    return ModelSource(model_sections(found)[0].arch, {"run": found.folder})


def generation_settings(chosen: argparse.Namespace, arch: str) -> dict[str, Any]:
    """Keyword arguments of the model's `generate` that the command line sets, checked.

    Raises:
        RegistryError, ConfigError: an unknown arch, a model that writes no text, an unknown setting, impossible values.
    """
    settings = {name: getattr(chosen, name) for name in OPTIONS if getattr(chosen, name) is not None}
    if chosen.nucleus:
        settings["use_nucleus_sampling"] = True
    elif drawn := [name for name in DRAWN if name in settings]:
        raise ConfigError(f"--{drawn[0].replace('_', '-')} belongs to sampling: add --nucleus, or leave it out.")
    if chosen.penalise_prompt:
        settings["penalise_prompt"] = True
    cls = registry.get_model_class(arch)
    from lavis_lite.models.protocols import Captioner
    from lavis_lite.registry import lacking

    if lacking(cls, Captioner):
        raise ConfigError(f"{arch}: this model writes no text; try blip2_opt.")
    takes = inspect.signature(getattr(cls, "generate")).parameters  # noqa: B009 (not every model has it)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        for name in settings:
            if name not in takes:
                raise ConfigError(f"--{name.replace('_', '-')}: {arch} has no such setting; "
                                  f"{did_you_mean(name, [option for option in OPTIONS if option in takes])}")
    if chosen.prompt is not None and "prompt" not in cls.config_class.__dataclass_fields__:
        raise ConfigError(f"--prompt: {arch} writes captions without a prompt; leave it out, or use blip2_opt.")
    if chosen.batch_size < 1:
        raise ConfigError(f"--batch-size: must be at least 1, not {chosen.batch_size}.")
    _check_decoding(settings, takes)
    return settings


def _check_decoding(settings: dict[str, Any], takes: Any) -> None:
    from lavis_lite.models.decoding import Decoding

    values = {name: value for name, value in settings.items() if name != "use_nucleus_sampling"}
    if "num_beams" not in values:
        values["num_beams"] = takes["num_beams"].default
    Decoding(**values, sample="use_nucleus_sampling" in settings)


def pictures(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(files to read, errors of the other names); the pictures of a folder are sorted by name."""
    from lavis_lite.datasets.media.images import SUFFIXES

    paths, errors = list[Path](), list[str]()
    for name in names:
        path = Path(name).expanduser()
        try:
            path.stat()
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
            errors.append(f"{name}: {reason}")
            continue
        found = [path] if inside is None else [item for item in inside if item.suffix.lower() in SUFFIXES]
        paths += found
        if not found:
            errors.append(f"{name}: the folder has no pictures (suffixes: {', '.join(SUFFIXES)})")
    return paths, errors


def answers(chosen: argparse.Namespace, source: ModelSource, settings: dict[str, Any], paths: Sequence[Path],
            drawn: Mapping[Path, Path]) -> Iterator[tuple[Path, list[str], str | None]]:
    """(path, texts, None) for every picture in order; (path, [], reason) for one that cannot be read.

    Args:
        chosen: the arguments.
        source: the model.
        settings: of its `generate`.
        paths: of the pictures.
        drawn: picture -> where its attention is drawn.
    """
    import torch

    from lavis_lite.datasets.media.images import BadSample, load_rgb
    from lavis_lite.zoo import load_model_and_preprocess

    model, images, _ = load_model_and_preprocess(
        **source.arguments, is_eval=True, device=chosen.device, dtype=chosen.dtype, quantization=chosen.quantization,
        allow_untrained=chosen.allow_untrained)
    torch.manual_seed(chosen.seed)
    for start in range(0, len(paths), chosen.batch_size):
        tensors, reasons = {}, {}
        for number, path in enumerate(paths[start:start + chosen.batch_size], start):
            try:
                tensors[number] = images["eval"](load_rgb(path))
            except BadSample as error:
                reasons[number] = error.reason
        texts = dict(zip(tensors, _write(model, list(tensors.values()), chosen, settings), strict=True))
        for number in sorted([*tensors, *reasons]):
            if paths[number] in drawn and number in texts:
                samples = {**_samples(model, [tensors[number]], chosen), "text_output": texts[number][:1]}
                attention.draw(model, images["eval"], load_rgb(paths[number]), samples, drawn[paths[number]])
            yield paths[number], texts.get(number, []), reasons.get(number)


def _write(model: BaseModel, images: list[Any], chosen: argparse.Namespace,
           settings: dict[str, Any]) -> list[list[str]]:
    """A list of texts for each image."""
    from lavis_lite.models.protocols import Captioner
    from lavis_lite.registry import need

    if not images:
        return []
    samples = _samples(model, images, chosen)
    generate = need(model, Captioner, "generate").generate
    if chosen.nucleus and {"seeds", "num_captions"} & inspect.signature(generate).parameters.keys():
        settings = {**settings, "seeds": (chosen.seed,) * len(images)}
    texts = generate(samples, **settings)
    count = len(texts) // len(images)
    return [texts[start:start + count] for start in range(0, len(texts), count)]


def _samples(model: BaseModel, images: list[Any], chosen: argparse.Namespace) -> dict[str, Any]:
    import torch

    samples: dict[str, Any] = {"image": torch.stack(images).to(model.device)}
    return samples if chosen.prompt is None else {**samples, "prompt": chosen.prompt}


def _print_error(reason: str, path: Path | None, as_json: bool) -> None:
    if as_json and path is not None:
        print(json.dumps({"image": str(path), "error": reason}, ensure_ascii=False), flush=True)
    print(f"error: {path}: {reason}" if path is not None else f"error: {reason}", file=sys.stderr, flush=True)
