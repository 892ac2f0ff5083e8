"""Every recorded folder with its comparisons, whatever kind of model it is of."""

from __future__ import annotations

from pathlib import Path

from tests.parity import blip2_cases, blip2_checks, blip2_two_ranks, llm_cases, llm_checks, sim_matrix, vision_checks
from tests.parity.recordings import Comparison, Recording, folders_with


def recordings(parity: Path) -> list[tuple[Recording, list[Comparison]]]:
    """(what is recorded, everything that it can be compared in) of every folder of a known kind."""
    found: list[tuple[Recording, list[Comparison]]] = []
    for folder in vision_checks.case_folders(parity):
        seen = vision_checks.Recorded(folder)
        found.append((seen, vision_checks.comparisons_of(seen)))
    for folder in blip2_cases.case_folders(parity):
        stage1 = blip2_cases.Recorded(folder)
        found.append((stage1, stage1_comparisons(stage1)))
    for folder in llm_cases.case_folders(parity):
        written = llm_cases.Recorded(folder)
        found.append((written, llm_checks.comparisons_of(written)))
    return found


def stage1_comparisons(recorded: blip2_cases.Recorded) -> list[Comparison]:
    """Of one process, of two, and of similarity matrices."""
    return [one for part in (blip2_checks, blip2_two_ranks, sim_matrix) for one in part.comparisons_of(recorded)]


def unknown_folders(parity: Path) -> list[Path]:
    """Folders with recordings of a kind of model that nothing here compares."""
    known = {folder for cases in (vision_checks, blip2_cases, llm_cases) for folder in cases.case_folders(parity)}
    every = folders_with(parity, lambda config: True)
    return [folder for folder in every if folder not in known and (folder / "expected.safetensors").is_file()]
