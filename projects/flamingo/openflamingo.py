"""Weights of OpenFlamingo's releases for this Flamingo. Their names are known; no released file was tried.

    python -m projects.flamingo.openflamingo checkpoint.pt out.safetensors --image-token 50278

There gated layers read the resampler's vectors, Dv wide, and here a projection to the words' width D comes between.
It becomes the identity beside zeros, and the gated layers read its first Dv numbers, so that every number is the same.
"""

import argparse
import re
from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from lavis_lite.errors import CheckpointError

RESAMPLER = {"0.norm_media": "norm_features", "0.norm_latents": "norm_queries", "0.to_q": "attention.query",
             "0.to_out": "attention.output", "1.0": "feed_forward.0", "1.1": "feed_forward.1", "1.3": "feed_forward.3"}
GATED = {"attn.norm": "norm", "attn.to_q": "query", "attn.to_out": "output", "ff.0": "feed_forward.0",
         "ff.1": "feed_forward.1", "ff.3": "feed_forward.3"}
"""part of a layer in a release -> ours"""
WORDS = re.compile(r"lang_encoder\..*(?:wte|embed_tokens|embed_in)\.weight")


def from_openflamingo(theirs: Mapping[str, Tensor], image_token: int | None = None) -> dict[str, Tensor]:
    """Tensors of a release -> ours.

    Args:
        theirs: `perceiver.*`, `lang_encoder.gated_cross_attn_layers.*`, and the embeddings of words that were trained.
        image_token: the id of `<image>`, whose embedding is our mark.

    Raises:
        CheckpointError: a name that is none of these, or no resampler.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    if "perceiver.latents" not in tensors:
        raise CheckpointError(f"not of OpenFlamingo: no perceiver.latents among {', '.join(list(tensors)[:4])}.")
    narrow = tensors["perceiver.latents"].shape[1]
    numbers = sorted({int(name.split(".")[2]) for name in tensors if "gated_cross_attn_layers" in name})
    ours: dict[str, Tensor] = {"connector.queries": tensors.pop("perceiver.latents")[None]}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        inside = rest.split(".", 1)[1] if rest.startswith(("layers.", "gated_")) else ""
        number, _, part = inside.partition(".")
        layer, _, leaf = part.rpartition(".")
        if head == "perceiver" and layer == "0.to_kv":
            start = f"connector.layers.{number}.attention"
            ours |= dict(zip((f"{start}.key.weight", f"{start}.value.weight"), tensor.chunk(2), strict=True))
        elif head == "perceiver" and layer in RESAMPLER:
            ours[f"connector.layers.{number}.{RESAMPLER[layer]}.{leaf}"] = tensor
        elif rest.startswith("norm."):
            ours[f"connector.{rest}"] = tensor
        elif WORDS.fullmatch(name):
            ours |= {} if image_token is None else {"mark": tensor[image_token]}
        elif number.isdigit() and (layer in GATED or layer == "attn.to_kv"):
            start = f"gated.{numbers.index(int(number))}"
            width = len(tensors[name.replace(part, "attn.norm.weight")])
            wide = torch.nn.functional.pad(tensor, (0, width - narrow)) if layer == "attn.to_kv" else tensor
            ours[f"{start}.{GATED.get(layer, 'key_value')}.{leaf}"] = wide
            ours["connector.projection.weight"] = torch.eye(width, narrow, dtype=tensor.dtype)
            ours["connector.projection.bias"] = torch.zeros(width, dtype=tensor.dtype)
        elif part == "attn_gate":
            gates = [tensors[name], tensors[name.replace("attn_gate", "ff_gate")]]
            ours[f"gated.{numbers.index(int(number))}.gates"] = torch.cat([gate.reshape(1) for gate in gates])
        elif part != "ff_gate":
            raise CheckpointError(f"not of OpenFlamingo: {name}.")
    return ours


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("output")
    parser.add_argument("--image-token", type=int, help="id of <image> in the release's tokenizer")
    arguments = parser.parse_args()
    content = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    made = from_openflamingo(content.get("model_state_dict", content), arguments.image_token)
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, arguments.output)


if __name__ == "__main__":
    main()
