"""`python -m lavis_lite convert`: a checkpoint from one format to another."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.cli.console import command_parser, new_file
from lavis_lite.errors import ConfigError
from lavis_lite.io import files, hub


def main(argv: Sequence[str]) -> int:
    """Convert, and print what was read and written.

    Raises:
        LavisLiteError: any mistake in the input; then nothing is written.
    """
    arguments = command_parser("convert", "Convert a checkpoint to another format.", [
        "--to hf --checkpoint RUN/checkpoints/step_00000200 --out model_hf",
        "--to hf --checkpoint RUN/checkpoints/step_00000200 --out model_hf --push me/my-model",
        "--to lite --checkpoint blip2.pth --model blip2_opt --type pretrain_opt2.7b --out model.safetensors"])
    arguments.add_argument("--to", required=True, metavar="hf|lavis|lite",
                           help="transformers' folder, LAVIS' .pth, or this project's folder (or .safetensors)")
    arguments.add_argument("--checkpoint", required=True, metavar="SRC",
                           help="a run's checkpoint folder, .pth, .safetensors, a folder or hub name in transformers' "
                                "format")
    arguments.add_argument("--out", required=True, metavar="DST", type=new_file, help="must not exist")
    arguments.add_argument("--model", metavar="ARCH", help="of SRC, if SRC does not name it")
    arguments.add_argument("--type", metavar="TYPE", help="a model type of ARCH")
    arguments.add_argument("--dtype", metavar="fp32|fp16|bf16", help="of the tensors; by default unchanged")
    arguments.add_argument("--whole", action="store_true",
                           help="for lavis and lite: the frozen parts too (hf always has them)")
    arguments.add_argument("--merge-lora", action="store_true",
                           help="for lite: add LoRA adapters to the language model's weights (hf and lavis always do)")
    arguments.add_argument("--allow-non-finite", action="store_true", help="convert tensors that hold NaN or infinity")
    arguments.add_argument("--push", metavar="OWNER/NAME",
                           help="for hf: upload the folder to the hub; a new repository is private")
    arguments.add_argument("--public", action="store_true", help="with --push: make a new repository public")
    given = arguments.parse_args(list(argv))
    if given.public and not given.push:
        raise ConfigError("--public makes a repository of --push public; add --push OWNER/NAME.")
    if given.push:
        if given.to != "hf":
            raise ConfigError("--push uploads transformers' folder, which has a model card: use it with --to hf.")
        hub.check_upload(given.push, files.offline())
    from lavis_lite.checkpoints.convert import convert  # imports torch

    print(convert(given.checkpoint, given.to, given.out, model=given.model, model_type=given.type, dtype=given.dtype,
                  whole=given.whole, merge_lora=given.merge_lora, allow_non_finite=given.allow_non_finite))
    if given.push:
        print(f"uploaded to {hub.upload(given.out, given.push, given.public)}")
    return 0
