"""Writes the mini world: JPEG pictures, COCO captions, VQA v2 questions and the ground truth, all generated.

    python -m lavis_lite.mini_world.world --root FOLDER

::

```
    FOLDER/manifest.json                        the arguments; written last
           images/{split}/000000.jpg            64 x 64 pixels
           annotations/captions_{split}.json    COCO captions layout; file_name is relative to images/
           annotations/questions_{split}.json, vqa_annotations_{split}.json     VQA v2 layout
           annotations/scenes_{split}.json      ground truth
```

The folder is written atomically, and unchanged if it already holds the same mini world. Several processes may call this
at once: one writes, the others wait.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from lavis_lite.errors import DataError
from lavis_lite.mini_world.records import (
    SceneRecord,
    answer_file,
    caption_file,
    describe_scene,
    file_name,
    question_file,
    scene_file,
    with_swapped_captions,
)
from lavis_lite.mini_world.render import encode_jpeg, render
from lavis_lite.mini_world.scenes import make_scene
from lavis_lite.process import exits
from lavis_lite.process.children import worker_pool
from lavis_lite.process.launch import usable_cores

# --- a folder, whole or not at all -----------------------------------------------------------------------------------
MANIFEST = "manifest.json"


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The folder's manifest, `name` and whatever decides its content; None if it is missing or unreadable."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def ensure(root: Path, wanted: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Make sure that a folder holds what is wanted. Of several processes at once, one writes and the others wait.

    Args:
        root: absolute; it must not exist, be empty, or be an earlier folder of the same name in its manifest.
        wanted: the manifest; `name` says what is written.
        fill: writes the content into a folder.

    Raises:
        DataError: the folder holds something else or cannot be written.
    """
    if read_manifest(root) == wanted:
        return
    what = str(wanted["name"]).replace("_", " ")
    with _writing(root, what), FileLock(str(root.parent / f".{root.name}.lock")):
        if read_manifest(root) != wanted:  # another process may have written it while this one waited
            _refuse_foreign(root, str(wanted["name"]), what)
            _swap_in(root, wanted, fill)


def _swap_in(root: Path, wanted: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Fill a temporary sibling, then swap it in; what killed runs left behind goes first (the lock is held)."""
    for leftover in root.parent.glob(f".{root.name}.*.partial"):
        shutil.rmtree(leftover)
    partial = root.parent / f".{root.name}.{os.getpid()}.partial"
    try:
        (partial / "annotations").mkdir(parents=True)
        fill(partial)
        write_json(partial / MANIFEST, wanted)
        if root.exists():
            replaced = root.parent / f".{root.name}.{os.getpid()}.old.partial"
            root.rename(replaced)
            shutil.rmtree(replaced)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """JSON without spaces."""
    path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")


@contextmanager
def _writing(root: Path, what: str) -> Iterator[None]:
    """Turn the system's refusals into an error that says what to do."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        hint = "choose another folder, or make room and give yourself write permission there"
        raise DataError(f"{what}: cannot write {root}: {error.strerror or error}; {hint}") from error


def _refuse_foreign(root: Path, name: str, what: str) -> None:
    """Never replace a folder that this generator did not write."""
    manifest = read_manifest(root)
    ours = manifest is not None and manifest.get("name") == name
    if root.exists() and not ours and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{what}: {root} exists and is not a {what}; choose a new or empty folder")


# --- the mini world --------------------------------------------------------------------------------------------------
WORLD_VERSION = 1
"""Part of the manifest. Raise it with any change of pictures or words, so that folders are written again."""

DEFAULT_SIZES = {"train": 14_000, "val": 500, "test": 500, "ood": 500}
DEFAULT_SEED = 7

_CHUNK = 250

Job = tuple[Path, int, str, range]


def prepare_mini_world(
    root: Path | str,
    train: int = DEFAULT_SIZES["train"],
    val: int = DEFAULT_SIZES["val"],
    test: int = DEFAULT_SIZES["test"],
    ood: int = DEFAULT_SIZES["ood"],
    seed: int = DEFAULT_SEED,
    caption_noise: float = 0.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make sure that `root` holds the mini world of these sizes and seed, and return it.

    Args:
        root: the folder to write: new, empty, or an earlier mini world, which is replaced if the arguments differ.
        train: pictures in the split train; a split of 0 pictures is left out.
        val: pictures in val.
        test: pictures in test.
        ood: pictures in ood, the split of held-out colour-shape pairs.
        seed: of the whole world; same seed, same bytes.
        caption_noise: share of the training pictures, 0 to 1, with the captions of another picture.
        workers: processes that render; default one per available core, at most 8. The result does not depend on it.
        progress: show a progress line on stderr.

    Raises:
        DataError: the folder holds something else or cannot be written, a size is negative, or a share is not one.
    """
    root = Path(root).expanduser().absolute()
    sizes = {"train": train, "val": val, "test": test, "ood": ood}
    bad = [f"{split}={size}" for split, size in sizes.items() if not 0 <= size < 1_000_000]
    if bad:
        raise DataError(f"mini world: {', '.join(bad)}: the pictures of a split must be 0 to 999999")
    if not 0 <= caption_noise <= 1:
        raise DataError(f"mini world: caption_noise={caption_noise:g}: must be a share from 0 to 1")
    wanted = {"name": "mini_world", "version": WORLD_VERSION, "seed": seed, "sizes": sizes,
              **({"caption_noise": caption_noise} if caption_noise else {})}
    if not workers:
        workers = min(usable_cores(), 8)
    report = _progress_line(sum(sizes.values())) if progress else lambda done: None
    ensure(root, wanted, lambda folder: _write_splits(folder, wanted, workers, report))
    return root


def _write_splits(root: Path, wanted: dict[str, Any], workers: int, report: Callable[[int], None]) -> None:
    seed, info = wanted["seed"], {key: wanted[key] for key in ("name", "version", "seed")}
    done = 0
    with _mapper(workers) as run:
        for split, size in wanted["sizes"].items():
            if not size:
                continue
            (root / "images" / split).mkdir(parents=True)
            jobs = [(root, seed, split, range(i, min(i + _CHUNK, size))) for i in range(0, size, _CHUNK)]
            records: list[SceneRecord] = []
            for chunk in run(_write_chunk, jobs):
                records += chunk
                report(done + len(records))
            done += len(records)
            noise = wanted.get("caption_noise", 0) if split == "train" else 0
            for name, content in (("captions", caption_file(with_swapped_captions(records, noise, seed), info)),
                                  ("questions", question_file(records, info, split)),
                                  ("vqa_annotations", answer_file(records, info, split)),
                                  ("scenes", scene_file(records, info))):
                write_json(root / "annotations" / f"{name}_{split}.json", content)


def _write_chunk(job: Job) -> list[SceneRecord]:
    """Write some pictures; runs in a worker process."""
    root, seed, split, indices = job
    records = []
    for index in indices:
        scene = make_scene(seed, split, index)
        (root / "images" / file_name(split, index)).write_bytes(encode_jpeg(render(scene)))
        records.append(describe_scene(scene))
    return records


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Any]]:
    """An ordered map over jobs, in processes if the system can fork (the jobs use only numpy and Pillow)."""
    if workers <= 1 or not sys.platform.startswith("linux"):
        yield map
        return
    with worker_pool(workers, "drawing the mini world", "fork") as pool:
        yield pool.map


def _progress_line(total: int) -> Callable[[int], None]:
    """A line on stderr that overwrites itself on a terminal and appears about every five seconds elsewhere."""
    start, terminal = time.perf_counter(), sys.stderr.isatty()
    last = start

    def report(done: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if done < total and now - last < (0.1 if terminal else 5.0):
            return
        last = now
        rate = done / max(now - start, 1e-9)
        text = f"mini world: {done}/{total} pictures, {rate:.0f} a second"
        print(f"\r{text}" if terminal else text, end="\n" if done == total or not terminal else "", file=sys.stderr)

    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="write the mini world: pictures, captions, questions")
    parser.add_argument("--root", type=Path, required=True, help="folder to write")
    for split, size in DEFAULT_SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=size, help=f"pictures in {split} (default {size})")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--caption-noise", type=float, default=0.0,
                        help="share of the pictures in train with captions of another one (default 0)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core, at most 8)")
    options = vars(parser.parse_args(argv))
    try:
        with exits.stop_signals_raise():
            print(prepare_mini_world(**options))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return exits.USER_ERROR
    except (KeyboardInterrupt, exits.Terminated) as stop:
        print("\nstopped.", file=sys.stderr)
        return getattr(stop, "exit_code", exits.INTERRUPTED)
    return exits.SUCCESS


if __name__ == "__main__":
    sys.exit(main())
