"""S4: YAML builds nothing but plain values, in little time and memory. S5: only registered names resolve."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from lavis_lite.config.compose import compose
from lavis_lite.errors import ConfigError, LavisLiteError, RegistryError
from lavis_lite.preflight import check
from lavis_lite.registry import registry

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize("text", [
    "run: !!python/object/apply:os.system ['touch MARK']", "run: !!python/object/new:os.system ['touch MARK']",
    "run: !!python/name:os.system ''", "run: !!python/module:os ''", "run: {seed: !!python/object/apply:eval ['1']}",
    "run: {output_dir: !!python/object/apply:pathlib.PosixPath [x]}", "run: {seed: !!binary 'eA=='}",
    "run: {seed: !!timestamp 2020-01-01}", "run: {seed: !!set {a, b}}", BOMB, "run: " + "[" * 2000 + "]" * 2000,
    "run: " + "{a: " * 2000 + "}" * 2000, "run: {seed: 1}\nrun: {seed: 2}", "run: {seed: 1, seed: 2}", "run: &a [*a]",
    "run: {seed: \"a\\0b\"}", "run: {output_dir: \"\\ud800\"}", "run: {seed: ${}", "run: {seed: '${'}",
    "run: {seed: '${run.seed}'}", "run: {seed: '${oc.select:run}'}", "run: {seed: '${oc.env:LAVIS_LITE_NOWHERE}'}",
    "imports: 3", "imports: os", "imports: ['']", "imports: [..x]", "imports: [os.path/../x]", "run: 3", "run: [1]",
    "model: text", "datasets: [a]", "datasets: {a: 3}", "datasets: {a: [1]}", "datasets: {? [a] : {}}", "[run]", "3",
], ids=lambda text: text[:40].replace("/", "_"))
def test_s4_what_is_not_plain_is_refused(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(LavisLiteError):
        compose(tmp_path / "run.yaml")
    assert time.process_time() - begun < 10 and not (tmp_path / "MARK").exists()


@pytest.mark.parametrize("key", ["run.task", "run.runner", "run.lr_sched", "model.arch",
                                 "datasets.mini_world_caption.builder",
                                 "datasets.mini_world_caption.vis_processor.train.name",
                                 "datasets.mini_world_caption.text_processor.train.name"])
@pytest.mark.parametrize("name", ["os.system", "builtins:eval", "../../x", "antigravity:x", "[os.system]", "{a: b}",
                                  "1"])
def test_s5_only_registered_names_resolve(tmp_path: Path, key: str, name: str) -> None:
    (tmp_path / "run.yaml").write_text("datasets: {mini_world_caption: {}}\nrun: {max_iters: 1}\n")
    faults = check(compose(tmp_path / "run.yaml", [f"{key}={name}"]))
    assert any(key.rpartition(".")[0] in fault for fault in faults), faults
    assert "antigravity" not in sys.modules


def test_s5_no_key_names_a_class_to_build(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("datasets: {mini_world_caption: {_target_: os.system, _args_: [true]}}\n"
                                       "run: {max_iters: 1, _target_: os.system}\n")
    assert sum("_target_" in fault for fault in check(compose(tmp_path / "run.yaml"))) == 2


@pytest.mark.parametrize("name", ["../models/blip2/mini", "../../configs/zoo", "a/b", "x" * 900])
def test_s5_names_of_data_sets_lead_to_no_other_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "run.yaml").write_text(f"datasets: {{'{name}': {{}}}}\nrun: {{max_iters: 1}}\n")
    assert any("neither a named data set" in fault for fault in check(compose(tmp_path / "run.yaml")))


@pytest.mark.parametrize("name", [["blip2"], {"a": 1}, 3, None, "blip", "__class__", "x" * 5000])
def test_s5_a_registry_takes_names_only(name: object) -> None:
    assert name not in registry.model
    with pytest.raises(RegistryError) as caught:
        registry.model.get(name)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 1000


def test_s4_a_file_of_another_kind_is_no_yaml(tmp_path: Path) -> None:
    for number, content in enumerate((b"\xff\xfe\x00", bytes(range(256)), b"PK\x03\x04" + b"\0" * 99)):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=str(path)):
            compose(path)
