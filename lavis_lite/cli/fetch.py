"""`python -m lavis_lite fetch`: download what a YAML names, as far as a program may."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavis_lite.checkpoints.weights import required_weights
from lavis_lite.cli.console import program
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import Config
from lavis_lite.errors import DataError, Faults, RegistryError
from lavis_lite.preflight import missing
from lavis_lite.registry import registry


def main(argv: Sequence[str]) -> int:
    """Fetch annotations, weights and tokenizers; image collections that need a manual step are named.

    Raises:
        Faults: something could not be fetched, or has to be put in place by hand.
    """
    arguments = argparse.ArgumentParser(program("fetch"))
    arguments.add_argument("--cfg-path", required=True, metavar="YAML")
    arguments.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE")
    chosen = arguments.parse_args(list(argv))
    composition = compose(chosen.cfg_path, chosen.options)
    if composition.faults:
        raise Faults(f"{chosen.cfg_path} cannot be read:", composition.faults)
    problems = fetch_all(composition.config)
    left = [need for need in missing(composition.config) if not any(need in problem for problem in problems)]
    if problems or left:
        raise Faults(f"{chosen.cfg_path}: not everything could be fetched:", problems + left)
    print(f"{chosen.cfg_path}: everything it needs is here.")
    return 0


def fetch_all(config: Config) -> list[str]:
    """Try everything; what failed, as sentences."""
    problems = []
    for need in required_weights(config.model):
        try:
            print(f"model.{need.key}: {need.fetch()}")
        except DataError as fault:
            problems.append(str(fault))
    for name, section in config.datasets.items():
        try:
            registry.get_builder_class(section.builder or name)(name, section).fetch()
            print(f"datasets.{name}: annotations are here")
        except (DataError, RegistryError) as fault:
            problems.append(str(fault))
    return problems
