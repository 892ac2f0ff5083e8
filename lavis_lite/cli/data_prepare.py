"""`python -m lavis_lite data prepare NAME`: bring a data set here, as far as a program may."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavis_lite.cli.console import program
from lavis_lite.cli.data_check import named_section
from lavis_lite.datasets.inventory import bring
from lavis_lite.errors import Faults
from lavis_lite.registry import registry


def main(argv: Sequence[str]) -> int:
    """Fetch annotations and archives; what somebody has to put in place is named, with the place.

    Raises:
        Faults: something could not be fetched, or has to be put in place by hand.
        LavisLiteError: no such data set.
    """
    arguments = argparse.ArgumentParser(program("data prepare"), description="Download and unpack what may be "
                                        "downloaded, and say what has to be put where.")
    arguments.add_argument("target", metavar="NAME", help="a data set of the package or of --cfg-path")
    arguments.add_argument("--type", help="of a data set of the package")
    arguments.add_argument("--cfg-path", metavar="YAML", help="a run's configuration that has the data set's section")
    arguments.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE")
    arguments.add_argument("--keep", action="store_true", help="keep archives that were unpacked")
    chosen = arguments.parse_args(list(argv))
    name, section, _ = named_section(chosen)
    problems = bring(name, section, chosen.keep)
    builder = registry.get_builder_class(section.builder or name)(name, section)
    problems += [need for need in builder.missing_files() if not any(need in problem for problem in problems)]
    if problems:
        raise Faults(f"{name}: not everything is here:", problems)
    print(f"{name}: everything is here. To look through it: python -m lavis_lite data check {name}")
    return 0
