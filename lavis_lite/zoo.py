"""What can be built, by name. Listing imports neither torch nor any model."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from lavis_lite.registry import registry


def list_models(pattern: str = "*") -> list[str]:
    """Registered model names (archs) that match a shell pattern such as "blip2*", sorted."""
    return [name for name in registry.list_models() if fnmatchcase(name, pattern)]


class ModelZoo:
    """All archs with their model types: iterate over (arch, [types]), print it as a table, take its length."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        from lavis_lite.config.compose import model_types  # YAML; a list of names needs none

        for arch in list_models():
            yield arch, list(model_types(arch))

    def __len__(self) -> int:
        return sum(len(types) for _, types in self)

    def __str__(self) -> str:
        head = f"{'Architectures':<30} Types"
        return "\n".join([head, "-" * len(head), *(f"{arch:<30} {', '.join(types)}" for arch, types in self)])


model_zoo = ModelZoo()
