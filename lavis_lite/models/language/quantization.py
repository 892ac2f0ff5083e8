"""Weights of a frozen language model in 8 or 4 bits, by bitsandbytes through transformers.

The linear layers of the blocks are quantised while they are read; word embeddings, norms and the output layer keep the
model's precision. Gradients pass through to the soft prompt; none is kept for the weights.
"""

from __future__ import annotations

from typing import Any

import torch

from lavis_lite.errors import ConfigError
from lavis_lite.models.language.load_options import Quantization


def quantization_config(bits: Quantization, dtype: torch.dtype) -> Any:
    """What transformers' `from_pretrained` takes.

    8bit: LLM.int8(), columns with outliers stay in 16 bits (arXiv 2208.07339). 4bit: NF4 with quantised constants, as
    in QLoRA (arXiv 2305.14314), multiplied in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)


def from_pretrained(kind: Any, folder: str, bits: Quantization, dtype: torch.dtype, device: torch.device) -> Any:
    """A transformers model of class `kind` with quantised weights, on `device`.

    Raises:
        ConfigError: bitsandbytes is too old, or cannot compute on the devices here.
        OSError, ValueError: as transformers' `from_pretrained`.
    """
    try:
        return kind.from_pretrained(folder, dtype=dtype, quantization_config=quantization_config(bits, dtype),
                                    device_map={"": str(device)})
    except (ImportError, RuntimeError) as fault:
        raise ConfigError(f"model.llm_quantization: {bits} does not work here: {str(fault).splitlines()[0]} Set "
                          "model.llm_quantization=null, or update with pip install -U 'lavis_lite[quant]'.") from fault
