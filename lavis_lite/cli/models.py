"""`python -m lavis_lite models [PATTERN]`: what can be built."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavis_lite.cli.console import program


def main(argv: Sequence[str]) -> int:
    """Print one line per arch with its model types."""
    arguments = argparse.ArgumentParser(program("models"))
    arguments.add_argument("pattern", nargs="?", default="*", help="for example 'blip2*'")
    chosen = arguments.parse_args(list(argv))
    from lavis_lite.config.named import model_types
    from lavis_lite.zoo import list_models

    for arch in list_models(chosen.pattern):
        print(f"{arch:30} {', '.join(model_types(arch))}")
    return 0
