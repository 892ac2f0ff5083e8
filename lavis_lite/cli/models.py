"""`python -m lavis_lite models [PATTERN]`: the models that can be built."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.cli.console import command_parser


def main(argv: Sequence[str]) -> int:
    """Print one line per arch with its model types.

    Raises:
        RegistryError: no arch matches the pattern.
    """
    arguments = command_parser("models", "List models and their types, one arch a line.", ["", "'blip2*'"])
    arguments.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of arch names (default: all)")
    chosen = arguments.parse_args(list(argv))
    from lavis_lite.cli.zoo import no_model
    from lavis_lite.config.named import model_types
    from lavis_lite.zoo import list_models

    found = list_models(chosen.pattern)
    if not found:
        raise no_model(chosen.pattern)
    for arch in found:
        print(f"{arch:30} {', '.join(model_types(arch))}")
    return 0
