"""`python -m lavis_lite lab ABLATION`: the papers' ablations at mini scale."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from lavis_lite.cli.console import columns, command_parser, new_folder
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.io import atomic
from lavis_lite.lab.ablation import Ablation, find, names


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("lab", "Run an ablation of the papers at mini scale: variants and seeds of recipes. "
                               "It reports means with 95% confidence intervals, a figure, and whether the paper's "
                               "direction is found. If it was stopped, the same command continues.",
                               ["list", "itg --seeds 1 2 3 4 5 --jobs 2", "my_ablation.yaml --steps 20", "all"])
    arguments.add_argument("ablation", nargs="+", metavar="ABLATION",
                           help="names from `lab list`, YAML files of your own, `all`, or `list`")
    arguments.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="values of run.seed (default: the "
                                                                                "ablation's, mostly 1 2 3)")
    arguments.add_argument("--steps", type=int, metavar="N", help="optimizer steps of every training, for a short try")
    arguments.add_argument("--out", type=new_folder, default=Path("output/lab"), metavar="DIR",
                           help="folder of runs, figures and reports (default: output/lab); ablations in one folder "
                                "share runs")
    arguments.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, one thread each "
                                                                            "(default: 1, with all threads)")
    arguments.add_argument("--variants", nargs="+", metavar="NAME", help="only these variants")
    arguments.add_argument("--report-only", action="store_true", help="run nothing; report the runs that are finished")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Run the ablations, print what they show, write tables, figures and one page.

    Raises:
        LavisLiteError: an unknown ablation or an error in one, before any run starts.
    """
    chosen = parser().parse_args(list(argv))
    if chosen.ablation == ["list"]:
        print("\n".join(_listing()))
        return 0
    for word in ("list", "all"):
        if word in chosen.ablation and len(chosen.ablation) > 1:
            raise ConfigError(f"`lab {word}` takes no further names; leave out {word!r} or the others.")
    for name, value in (("--steps", chosen.steps), ("--jobs", chosen.jobs)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    out = chosen.out.absolute()
    ablations = [find(name) for name in (names() if chosen.ablation == ["all"] else chosen.ablation)]
    _run(ablations, chosen, out)
    _report(ablations, out)
    return 0


def _listing() -> list[str]:
    found = [find(name) for name in names()]
    return columns(("ablation", "what it compares", "variants"),
                   [(one.name, one.title, str(len(one.variants))) for one in found])


def _run(ablations: Sequence[Ablation], chosen: argparse.Namespace, out: Path) -> None:
    """Check all ablations, then run them one after the other and collect the rows of what is finished."""
    from lavis_lite.cli.data_cache_features import write_all
    from lavis_lite.lab import execute
    from lavis_lite.lab.plan import plan

    variants = [_variants(one, chosen.variants) for one in ablations]
    plans = [plan(one, out, chosen.seeds or one.seeds, chosen.steps) for one in ablations]
    for ablation, named, cells in zip(ablations, variants, plans, strict=True):
        if not chosen.report_only:
            print(f"{ablation.name}: {ablation.title}", flush=True)
            wanted = {cell: jobs for cell, jobs in cells.items() if cell[0] in named}
            execute.run(wanted, write_all, _command, chosen.jobs, lambda line: print(f"  {line}", flush=True))
        execute.write_rows(rows_file(out, ablation), execute.rows_of(ablation, cells))


def _command(words: Sequence[str]) -> int:
    """Run a command of the package; its errors end the ablation."""
    code: int = importlib.import_module(f"lavis_lite.cli.{words[0]}").main(words[1:])
    return code


def _variants(ablation: Ablation, named: list[str] | None) -> list[str]:
    """The variants to run.

    Raises:
        ConfigError: the ablation has no variant of a name.
    """
    for name in named or []:
        if name not in ablation.variants:
            raise ConfigError(f"--variants: {ablation.name} has no {name!r}; {did_you_mean(name, ablation.variants)}")
    return named or list(ablation.variants)


def rows_file(out: Path, ablation: Ablation) -> Path:
    """The file of an ablation's rows."""
    return out / f"{ablation.name}.jsonl"


def _report(ablations: Sequence[Ablation], out: Path) -> None:
    from lavis_lite.lab.figure import draw
    from lavis_lite.lab.findings import read_rows, summarise
    from lavis_lite.lab.page import page

    summaries = [summarise(one, read_rows(rows_file(out, one))) for one in ablations]
    figures = {}
    for summary in summaries:
        if summary.scores:
            figures[summary.ablation.name] = out / f"{summary.ablation.name}.png"
            draw(summary, figures[summary.ablation.name])
        head, rows = summary.table()
        print("", summary.ablation.title, *columns(head, rows), "", sep="\n")
        print("\n".join(finding.sentence() for finding in summary.findings))
    path = out / ("lab.html" if len(ablations) != 1 else f"{ablations[0].name}.html")
    atomic.write_text(path, page(summaries, figures))
    print(f"\nreport: {path}")
