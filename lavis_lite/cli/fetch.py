"""`python -m lavis_lite fetch`: download what a YAML names, as far as a program may."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.checkpoints.weights import read_by_others, required_weights
from lavis_lite.cli.console import add_config, command_parser
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import Config
from lavis_lite.errors import DataError, ErrorList, RegistryError
from lavis_lite.preflight import missing
from lavis_lite.registry import registry


def main(argv: Sequence[str]) -> int:
    """Fetch annotations, weights and tokenizers; name image collections that need a manual step.

    Raises:
        ErrorList: a file could not be fetched, or needs a manual step.
    """
    arguments = command_parser("fetch", "Download the annotations, weights and tokenizers that a configuration names. "
                               "What must be downloaded by hand is listed.", ["--cfg-path projects/blip2/stage1.yaml"])
    add_config(arguments, required=True, positional=True)
    chosen = arguments.parse_args(list(argv))
    composition = compose(chosen.cfg_path, chosen.options)
    if composition.errors:
        raise ErrorList(f"{chosen.cfg_path} cannot be read:", composition.errors)
    problems = fetch_all(composition.config)
    left = [need for need in missing(composition.config) if not any(need in problem for problem in problems)]
    if problems or left:
        raise ErrorList(f"{chosen.cfg_path}: files could not be fetched:", problems + left)
    print(f"{chosen.cfg_path}: all files are here.")
    return 0


def fetch_all(config: Config) -> list[str]:
    """Try to fetch everything; return one sentence for each failure."""
    problems = []
    for need in [*required_weights(config.model), *read_by_others(config.model)]:
        try:
            print(f"model.{need.key}: {need.fetch()}")
        except DataError as error:
            problems.append(str(error))
    for name, section in config.datasets.items():
        try:
            registry.get_builder_class(section.builder or name)(name, section).fetch()
            print(f"datasets.{name}: annotations are here")
        except (DataError, RegistryError) as error:
            problems.append(str(error))
    return problems
