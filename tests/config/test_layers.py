"""Reading YAML layers, base chains and command-line overrides."""

from pathlib import Path

import pytest

from lavis_lite.config.layers import Layer, base_chain, flatten, merge, parse_options, parse_value, read_yaml
from lavis_lite.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_base_chain_puts_the_farthest_ancestor_first(tmp_path):
    write(tmp_path / "a.yaml", "run: {seed: 1, max_epoch: 3}")
    write(tmp_path / "b.yaml", "base: a.yaml\nrun: {seed: 2}")
    write(tmp_path / "c.yaml", "base: b.yaml\nrun: {init_lr: 1e-5}")
    layers = base_chain(tmp_path / "c.yaml")
    assert [Path(layer.name).name for layer in layers] == ["a.yaml", "b.yaml", "c.yaml"]
    merged, provenance = merge(layers)
    assert merged["run"] == {"seed": 2, "max_epoch": 3, "init_lr": 1e-5}
    assert Path(provenance["run.seed"]).name == "b.yaml"
    assert Path(provenance["run.max_epoch"]).name == "a.yaml"


def test_missing_base_names_who_wanted_it_and_the_nearest_file(tmp_path):
    write(tmp_path / "stage1.yaml", "run: {}")
    write(tmp_path / "x.yaml", "base: stage_1.yaml")
    with pytest.raises(ConfigError, match=r"stage_1.yaml: no such file \(named by base: in .*x.yaml\).*'stage1.yaml'"):
        base_chain(tmp_path / "x.yaml")


def test_a_base_of_too_long_a_name_is_no_file(tmp_path):
    write(tmp_path / "x.yaml", f"base: {'a/' * 3000}")
    with pytest.raises(ConfigError, match="no such file"):
        base_chain(tmp_path / "x.yaml")


def test_a_recipe_outside_the_checkout_may_build_on_one_of_the_checkout(tmp_path):
    write(tmp_path / "x.yaml", "base: projects/blip2/stage1.yaml")
    assert base_chain(tmp_path / "x.yaml")[0].content["model"]["arch"] == "blip2"
    (tmp_path / "projects/blip2").mkdir(parents=True)
    write(tmp_path / "projects/blip2/stage1.yaml", "model: {arch: own}")
    assert base_chain(tmp_path / "x.yaml")[0].content["model"]["arch"] == "own"


def test_a_circle_of_bases_is_an_error(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml")
    write(tmp_path / "b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match="circular: a.yaml -> b.yaml -> a.yaml"):
        base_chain(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", [
    "run: [unclosed", "run: {seed: 1}\nrun: {seed: 2}", "- a\n- b", "run: !!python/object/apply:os.system ['true']",
    "a: " + "[" * 3000 + "]" * 3000, "\x00",
])
def test_what_is_no_mapping_of_sections_is_one_clear_error(tmp_path, text):
    with pytest.raises(ConfigError, match="bad.yaml"):
        read_yaml(write(tmp_path / "bad.yaml", text))


@pytest.mark.parametrize(("text", "value"), [
    ("1e-5", 1e-5), ("200", 200), ("true", True), ("null", None), ("[train, val]", ["train", "val"]),
    ("{a: 1}", {"a": 1}), ("Question: {} Answer:", "Question: {} Answer:"), ("a photo of", "a photo of"),
    ("output/x", "output/x"), ("", None),
])
def test_values_of_the_command_line(text, value):
    assert parse_value(text) == value


def test_both_spellings_of_options():
    assert parse_options(["run.seed=1", "run.init_lr", "1e-3"]).content == {"run": {"seed": 1, "init_lr": 1e-3}}


@pytest.mark.parametrize("options", [["run.seed"], ["rnu.seed=1"], ["run=1"], ["run.a=1", "run.a.b=2"]])
def test_options_that_cannot_be_read(options):
    with pytest.raises(ConfigError, match="--options"):
        parse_options(options)


def test_a_null_data_set_is_dropped_and_provenance_is_per_leaf():
    layers = [Layer("one", {"datasets": {"a": {"x": 1}, "b": {}}}), Layer("two", {"datasets": {"a": None}})]
    merged, provenance = merge(layers)
    assert merged["datasets"] == {"b": {}}
    assert provenance["datasets.a"] == "two"


def test_flatten_keeps_empty_sections():
    assert dict(flatten({"a": {"b": 1, "c": {}}})) == {"a.b": 1, "a.c": {}}
