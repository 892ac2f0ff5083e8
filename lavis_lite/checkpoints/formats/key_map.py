"""Key maps as tables: rows of two name templates that read in both directions.

A template is a name with placeholders. `{i}` stands for a layer number, `{p}` for weight or bias, `{qkv}` for query,
key or value, `{rest}` for anything; both templates of a row have the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

PLACEHOLDERS = {"i": r"\d+", "p": "weight|bias", "qkv": "query|key|value", "rest": ".+"}
DERIVED = {
    r"(.+\.)?position_ids": "0, 1, 2, ...",
    r"(opt_model|t5_model|llm_model|language_model)\..+\.rotary_emb\.inv_freq":
        "a constant that follows from the head's width",
}
"""Names (regular expressions) of buffers that some versions store although they hold nothing learned -> why."""


@dataclass(frozen=True)
class Row:
    """One rename.

    Attributes:
        theirs: template in the foreign layout.
        ours: template in this project's layout.
        leading: axes of size 1 that our tensor has in front and theirs lacks.
    """

    theirs: str
    ours: str
    leading: int = 0


def qformer_layer_rows(layer: str, inner: str) -> list[Row]:
    """A Q-Former layer under BERT's names, which LAVIS and transformers both keep.

    Args:
        layer: their template in front of a layer's names, with `{i}`.
        inner: how they call what is within an attention: self (LAVIS) or attention.
    """
    ours, rows = "qformer.layers.{i}.", []
    for theirs, name in (("attention", "self_attention"), ("crossattention", "cross_attention")):
        rows += [Row(f"{layer}{theirs}.{inner}.{{qkv}}.{{p}}", f"{ours}{name}.{{qkv}}.{{p}}"),
                 Row(f"{layer}{theirs}.output.dense.{{p}}", f"{ours}{name}.output.{{p}}"),
                 Row(f"{layer}{theirs}.output.LayerNorm.{{p}}", f"{ours}{name}.norm.{{p}}")]
    for theirs, name in (("", "text_ffn"), ("_query", "query_ffn")):
        rows += [Row(f"{layer}intermediate{theirs}.dense.{{p}}", f"{ours}{name}.up.{{p}}"),
                 Row(f"{layer}output{theirs}.dense.{{p}}", f"{ours}{name}.down.{{p}}"),
                 Row(f"{layer}output{theirs}.LayerNorm.{{p}}", f"{ours}{name}.norm.{{p}}")]
    return rows


@dataclass
class Translated:
    """A state dict in the other layout.

    Attributes:
        tensors: by their new names.
        unknown: names (in the old layout) that no row explains.
        dropped: old name -> why it has no counterpart (derived tensors, copies of tied ones).
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


class KeyMap:
    """Rows, tried in order; the first that matches a whole name decides."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._to_ours = [(_pattern(row.theirs), row.ours, row.leading) for row in self.rows]
        self._to_theirs = [(_pattern(row.ours), row.theirs, -row.leading) for row in self.rows]

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Translated:
        """Foreign layout -> this project's."""
        return _translate(tensors, self._to_ours)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> Translated:
        """This project's layout -> the foreign one."""
        return _translate(tensors, self._to_theirs)


def derived(name: str) -> str:
    """Why a foreign tensor needs no place here; "" for all others."""
    return next((why for pattern, why in DERIVED.items() if re.fullmatch(pattern, name)), "")


def _pattern(template: str) -> re.Pattern[str]:
    def placeholder(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{PLACEHOLDERS[match[1]]})"

    return re.compile(re.sub(r"\\{(\w+)\\}", placeholder, re.escape(template)))


def _translate(tensors: Mapping[str, Tensor], rows: list[tuple[re.Pattern[str], str, int]]) -> Translated:
    result = Translated()
    for name, tensor in tensors.items():
        for pattern, template, leading in rows:
            match = pattern.fullmatch(name)
            if match:
                result.tensors[template.format(**match.groupdict())] = _with_leading(tensor, leading)
                break
        else:
            result.unknown.append(name)
    return result


def _with_leading(tensor: Tensor, axes: int) -> Tensor:
    """Add axes of size 1 in front (axes > 0) or take them away (axes < 0)."""
    if axes >= 0:
        return tensor.reshape((1,) * axes + tuple(tensor.shape))
    return tensor.reshape(tuple(tensor.shape)[-axes:])
