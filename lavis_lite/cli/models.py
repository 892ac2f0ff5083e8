"""`python -m lavis_lite models [PATTERN]`: the models that can be built."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.cli.console import command_parser


def main(argv: Sequence[str]) -> int:
    """Print one line per arch with its model types."""
    arguments = command_parser("models", "List models and their types, one arch a line.", ["", "'blip2*'"])
    arguments.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of arch names (default: all)")
    chosen = arguments.parse_args(list(argv))
    from lavis_lite.config.named import model_types
    from lavis_lite.zoo import list_models

    for arch in list_models(chosen.pattern):
        print(f"{arch:30} {', '.join(model_types(arch))}")
    return 0
