"""Keys that LAVIS' data-set sections have and this package's lack: translated, or passed with a note that says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lavis_lite.config.schema import Config, FileConfig

Report = Callable[[str, str], None]
"""takes (dotted key, sentence)"""

UNREAD = {"dataset_card": "LAVIS shows it to people; `python -m lavis_lite data card NAME` has cards",
          "build_info.instance_id_key": "no code of LAVIS reads it",
          "build_info.splits": "build_info.annotations has a key for each split"}
"""key of a data set's section -> why it has no effect"""
UNREAD_BY_PROCESSORS = {("alpro_video_eval", "min_scale"): "LAVIS' class does not use it: evaluation never crops",
                        ("alpro_video_eval", "max_scale"): "LAVIS' class does not use it: evaluation never crops",
                        ("alpro_video_train", "full_video"): "frames are always drawn from the whole video",
                        ("alpro_video_eval", "full_video"): "frames are always drawn from the whole video",
                        ("blip_question", "prompt"): "LAVIS' class does not use it; run.prompt is put around questions"}
"""(processor, parameter) -> why it has no effect"""
RENAMED = {"video_processor": "vis_processor", "image_processor": "vis_processor",
           "build_info.video": "build_info.videos", "build_info.image": "build_info.images",
           **{f"build_info.{split}": f"build_info.annotations.{split}" for split in ("train", "val", "test")}}
"""keys that some of LAVIS' sections write in this way -> where the others have them"""
OTHER_SENSES = {"sound": ("audio_processor", "build_info.audio"), "point clouds": ("pc_processor", "build_info.pc")}
"""what is outside of the scope -> keys of a section that hold it"""
OUT_OF_SCOPE = {
    "point clouds": ("modelnet40_", "objaverse_", "shapenet_", "image_pc_"),
    "sound": ("audiocaps_", "audioset_", "audio_", "clotho_", "esc50_", "wavcaps_", "musicavqa", "music_avqa", "valor_",
              "yt8m_", "avsd_mm_"),
    "pictures to generate": ("blip_diffusion_",)}
"""what data sets of LAVIS' other projects hold -> beginnings of their names"""
CLIPS = ("charade_", "coin_", "violin_", "vlep_", "webvid_", "youcook_")
"""beginnings of names of LAVIS' sets of clips without a row here"""
INSTRUCTION = "blip_instruction"
_TEMPLATES = {("image", "caption"): "caption", ("image", "qa"): "vqa", ("image", "classification"): "choice",
              ("video", "caption"): "video_caption", ("video", "qa"): "video_qa",
              ("video", "classification"): "choice"}


def translated(name: str, section: Mapping[str, Any], note: Report, error: Report) -> dict[str, Any]:
    """A data set's section as this package writes it.

    Args:
        name: of the data set.
        section: as it was composed.
        note, error: take what a user should read.
    """
    found = dict(section)
    for key, why in UNREAD.items():
        if _take(found, key.split(".")) is not None:
            note(f"datasets.{name}.{key}", f"has no effect: {why}.")
    _keys_of_others(name, found, error)
    _features(found)
    _answer_list(found)
    for kind in ("vis_processor", "text_processor"):
        pair = found.get(kind)
        for mode in ("train", "eval"):
            spec = pair.get(mode) if isinstance(pair, Mapping) else None
            if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
                key = f"datasets.{name}.{kind}.{mode}"
                found[kind] = {**found[kind], mode: _processor(key, spec, note, error)}
    return _instructions(name, found)


def _keys_of_others(name: str, found: dict[str, Any], error: Report) -> None:
    """Keys that some sections write in another place, and those of other senses."""
    if (ratio := _take(found, ["sample_ratio"])) is not None:
        error(f"datasets.{name}.sample_ratio", f"the run has it: run.train_dataset_ratios: {{{name}: {ratio}, ...}}."
              if not isinstance(ratio, Mapping) else "ratios by step are its sampling_factor.")
    for key, other in RENAMED.items():
        if (value := _take(found, key.split("."))) is not None:
            _put(found, other.split("."), value)
    for held, keys in OTHER_SENSES.items():
        if given := [key for key in keys if _take(found, key.split(".")) is not None]:
            error(f"datasets.{name}.{given[0]}", f"is for {held}, outside of this package's scope; take it out, with "
                                                 "what belongs to it in build_info and data_type.")


def _take(section: dict[str, Any], keys: list[str]) -> Any:
    """Remove a nested key and return its value; the containers on the way are copied."""
    for key in keys[:-1]:
        inner = section.get(key)
        if not isinstance(inner, Mapping):
            return None
        section[key] = section = dict(inner)
    return section.pop(keys[-1], None)


def _put(section: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested key; the containers on the way are copied."""
    for key in keys[:-1]:
        section[key] = section = dict(section.get(key) or {})
    section[keys[-1]] = value


def _features(section: dict[str, Any]) -> None:
    """LAVIS' build_info.features names the folder of all arrays; here each has its own."""
    arrays, info = section.get("arrays"), section.get("build_info")
    folder = info.get("features") if isinstance(info, Mapping) else None
    if isinstance(arrays, Mapping) and isinstance(folder, Mapping) and folder.get("storage"):
        home = str(folder["storage"]).rstrip("/")
        section["arrays"] = {name: {**array, "storage": f"{home}/{name}"} for name, array in arrays.items()}
        _take(section, ["build_info", "features"])


def _processor(key: str, spec: Mapping[str, Any], note: Report, error: Report) -> dict[str, Any]:
    kept = dict(spec)
    for (name, parameter), why in UNREAD_BY_PROCESSORS.items():
        if spec["name"] == name and kept.pop(parameter, None) is not None:
            if spec[parameter] is False:
                error(f"{key}.{parameter}", "false cuts clips by times that no data set here has; leave it out.")
            else:
                note(f"{key}.{parameter}", f"has no effect: {why}.")
    return kept


def _instructions(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """LAVIS' `blip_instruction` as a text processor becomes the key `instruction`, which has the templates here."""
    pair = section.get("text_processor")
    for mode in ("train", "eval"):
        spec = pair.get(mode) if isinstance(pair, Mapping) else None
        if not isinstance(spec, Mapping) or spec.get("name") != INSTRUCTION:
            continue
        modality, task = str(spec.get("modality", "image")), str(spec.get("task", "caption"))
        templates = templates_of(modality, task)
        words = {"name": "blip_caption" if task == "caption" else "blip_question",
                 **{key: spec[key] for key in ("max_words",) if key in spec}}
        section["text_processor"] = {**section["text_processor"], mode: words}
        made = {"name": "instruction", "templates": [spec["prompt"]] if spec.get("prompt") else templates}
        own: Any = section.get("instruction") or {}
        section["instruction"] = {**own, mode: made}
    return section


def templates_of(modality: str, task: str) -> str:
    """The list of templates for LAVIS' modality (image, video) and task (caption, qa, classification)."""
    return _TEMPLATES.get((modality, task), "vqa")


# files ----------------------------------------------------------------------------------------------------------------
def without_row(name: str) -> str | None:
    """Why a data set of LAVIS has no row here, as a clause; None if LAVIS has no such data set."""
    held = next((kind for kind, starts in OUT_OF_SCOPE.items() if name.startswith(starts)), None)
    if held is not None:
        return (f"holds {held}, which are outside of this package's scope (docs/guide/coming_from_lavis.md lists such "
                "data sets).")
    return ("has no row here. Its lists {video, caption} are read by `builder: video_caption`; add that line, and "
            "name the files." if name.startswith(CLIPS) else None)


def only_shards(section: object) -> bool:
    """Whether a section names shards by LAVIS' build_info.storage, and no annotations beside them."""
    info = section.get("build_info") if isinstance(section, Mapping) else None
    return isinstance(info, Mapping) and bool(info.get("storage")) and not info.get("annotations")


def file_names(section: object) -> tuple[str, ...]:
    """Names of the annotation files that a section lists, without their folders."""
    info = section.get("build_info") if isinstance(section, Mapping) else None
    entries = info.get("annotations") if isinstance(info, Mapping) else None
    values = [entry.get(key) for entry in (entries or {}).values() if isinstance(entry, Mapping)
              for key in ("url", "storage")] if isinstance(entries, Mapping) else []
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return tuple(text.rsplit("/", 1)[-1] for text in flat if isinstance(text, str))


def type_of_files(names: Any, rows: Mapping[str, Any]) -> str:
    """The type that reads the files which a section lists: `lavis` if some are only in LAVIS' rows, else `default`."""
    if "lavis" not in rows:
        return "default"
    own = set(file_names(rows["lavis"])) - set(file_names(rows["default"]))
    return "lavis" if own.intersection(names) else "default"


def _answer_list(section: dict[str, Any]) -> None:
    """LAVIS' four files of a split [rows, answer list, questions, annotations] -> [rows, annotations], answer_list."""
    info = section.get("build_info")
    entries = info.get("annotations") if isinstance(info, Mapping) else None
    if not isinstance(info, Mapping) or not isinstance(entries, Mapping):
        return
    kept = dict(entries)
    for split, entry in entries.items():
        files = entry.get("storage") if isinstance(entry, Mapping) else None
        if not isinstance(files, list) or len(files) < 2 or not all(isinstance(name, str) for name in files):
            continue
        at = next((number for number, name in enumerate(files) if "answer_list" in name.rsplit("/", 1)[-1]), -1)
        if at < 0:
            continue
        left = [number for number, name in enumerate(files) if number != at and "_questions" not in name]
        kept[split] = {key: [value[number] for number in left] if isinstance(value, list) and len(value) == len(files)
                       else value for key, value in entry.items()}
        if not section.get("answer_list"):
            section["answer_list"] = {key: value[at] for key, value in entry.items()
                                      if key in ("url", "storage") and isinstance(value, list)}
    section["build_info"] = {**info, "annotations": kept}


def references_of_run(config: Config) -> None:
    """`run.annotation_file` becomes the references of the splits that are evaluated."""
    run: Any = config.run
    path: str | None = getattr(run, "annotation_file", None)
    if not path:
        return
    for dataset in config.datasets.values():
        given = getattr(dataset, "references", None)
        splits = [split for split in (*run.valid_splits, *run.test_splits) if split in dataset.build_info.annotations]
        if given is not None:
            dataset.references = {  # type: ignore[attr-defined]
                **given, **dict.fromkeys(splits, FileConfig(**{"url" if "://" in path else "storage": path}))}


def note_unread_prompt(config: Config) -> None:
    """LAVIS' run files write the template of questions under `model`, where neither LAVIS nor this package reads it."""
    written = str(getattr(config.model, "prompt", None) or "")
    if "{}" in written and getattr(config.run, "inference_method", None) and not getattr(config.run, "prompt", None):
        config.notes.append(f"model.prompt: {written!r} is not put around questions, in LAVIS neither; run.prompt is.")
