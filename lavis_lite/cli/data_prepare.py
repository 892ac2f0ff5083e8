"""`python -m lavis_lite data prepare NAME`: download a data set, as far as a program may."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.cli.console import add_config, command_parser
from lavis_lite.cli.sections import dataset_section
from lavis_lite.datasets.inventory import bring
from lavis_lite.errors import ErrorList
from lavis_lite.registry import registry


def main(argv: Sequence[str]) -> int:
    """Fetch annotations and archives; list the files that a person has to download, with their paths.

    Raises:
        ErrorList: a file could not be fetched, or needs a manual step.
        LavisLiteError: no such data set.
    """
    arguments = command_parser("data prepare", "Download and unpack the files of a data set. What must be downloaded "
                               "by hand is listed with its path.", ["coco_caption"])
    arguments.add_argument("target", metavar="NAME", help="a data set of the package or of --cfg-path")
    arguments.add_argument("--type", help="of a data set of the package")
    add_config(arguments)
    arguments.add_argument("--keep", action="store_true", help="keep archives after they are unpacked")
    chosen = arguments.parse_args(list(argv))
    name, section, _ = dataset_section(chosen.target, chosen.cfg_path, chosen.options, chosen.type)
    problems = bring(name, section, chosen.keep)
    builder = registry.get_builder_class(section.builder or name)(name, section)
    problems += [need for need in builder.missing_files() if not any(need in problem for problem in problems)]
    if problems:
        raise ErrorList(f"{name}: files are missing:", problems)
    print(f"{name}: all files are here. Check them with: python -m lavis_lite data check {name}")
    return 0
