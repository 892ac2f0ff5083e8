"""S4: a secret that a configuration names is on no disk and in no output: 50 planted, 0 found."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite import redaction
from lavis_lite.cli.main import run_command
from lavis_lite.config.compose import compose, to_yaml
from lavis_lite.datasets.loading.policy import BadSampleLog
from lavis_lite.errors import DataError
from lavis_lite.evaluation.results import Evaluation, write_predictions, write_samples
from lavis_lite.evaluation.resume import EvalCheckpoint
from lavis_lite.io import atomic
from lavis_lite.preflight import check
from lavis_lite.report.page import write_report
from lavis_lite.report.sample import ReportSample
from lavis_lite.runners.checkpointing import config_yaml
from lavis_lite.tracking.sinks import Console
from lavis_lite.tracking.tracker import JsonlLog, Tracker
from tests.helpers.toy import Toy

COUNT = 50
ODD = ["\"quoted'", "<tag>&amp", "slash/and\\back", "sp ace+plus", "ünïcode", "p@ss:word", "100%{}", "", "", ""]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Environment variables with secrets, some of odd characters."""
    rng = random.Random(1)
    secrets = {f"SECRET_{number}": f"{rng.getrandbits(64):016x}{ODD[number % len(ODD)]}" for number in range(COUNT)}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    redaction.forget()
    yield secrets
    redaction.forget()


def found_in(text: str, secrets: dict[str, str]) -> list[str]:
    """Names of secrets of which the sixteen hexadecimal digits, or a spelling of the whole, are in a text."""
    return [name for name, value in secrets.items() if value[:16] in text or value in text]


def found_under(folder: Path, secrets: dict[str, str]) -> list[tuple[str, str]]:
    content = {path: path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()}
    return [(str(path), name) for path, text in content.items() for name in found_in(text, secrets)]


def interpolations(secrets: dict[str, str]) -> list[str]:
    return [f"${{oc.env:{name}}}" for name in secrets]


def test_s4_every_file_of_a_run_has_what_was_written_in_the_yaml(planted: dict[str, str], tmp_path: Path) -> None:
    redaction.remember_environment({"run": interpolations(planted)})
    secrets = list(planted.values())
    samples = [ReportSample(number, prediction=value, prompt=value, references=[value], context=value, group=value,
                            scores={"accuracy": 0.0}) for number, value in enumerate(secrets)]
    write_samples(tmp_path / "samples.json", "test", 0, "toy", Evaluation({"accuracy": 0.0}, samples))
    write_report(tmp_path / "report.html", secrets[0], {"accuracy": 0.0}, samples, facts={"prompt": secrets[1]})
    write_predictions(tmp_path, "test", 0, {"toy": [{"id": number, "answer": value}
                                                    for number, value in enumerate(secrets)]})
    log = JsonlLog(tmp_path / "log.jsonl")
    tracker = Tracker([log, Console((tmp_path / "console.txt").open("w"))])
    for value in secrets:
        tracker.record({"step": 1, "event": value})
        tracker.log(f"a line about {value}")
    tracker.close()
    BadSampleLog(tmp_path / "bad.jsonl", 1.0).add([{"file": value, "reason": value} for value in secrets], 99)
    book = EvalCheckpoint(tmp_path, "val_toy_step0", {"prompt": secrets}, True, 0)
    book.append({"batch": 0, "rows": [{"id": 1, "answer": secrets[2]}], "samples": 1, "bad": []})
    book.close()
    atomic.write_text(tmp_path / "sealed.json", atomic.seal({"names": secrets}))
    assert atomic.read_sealed(tmp_path / "sealed.json")["names"] == interpolations(planted)
    assert found_under(tmp_path, planted) == []
    rows = json.loads((tmp_path / "results/test_step0_predictions.json").read_text())
    assert [row["answer"] for row in rows] == interpolations(planted)


def test_s4_a_checkpoint_keeps_interpolations_as_written(planted: dict[str, str], tmp_path: Path) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text("datasets: {mini_world_caption: {}}\nrun:\n  max_iters: 1\n  wandb_project: ${oc.env:SECRET_7}\n"
                    "  output_dir: out/${run.wandb_project}\n")
    composition = compose(yaml)
    assert composition.config.run.wandb_project == planted["SECRET_7"] and check(composition) == []
    runner = Toy(tmp_path / "toy", {"max_iters": 1}).build()
    runner.cfg = composition.config
    runner.store.prepare()
    runner._save()
    written = (runner.store.path(0) / "config.yaml").read_text()
    assert "wandb_project: ${oc.env:SECRET_7}" in written and "output_dir: out/${run.wandb_project}" in written
    assert "seed: 42" in written
    for text in (to_yaml(composition), to_yaml(composition, with_layers=True), config_yaml(composition.config)):
        assert found_in(text, planted) == []
    yaml.unlink()
    assert found_under(tmp_path, planted) == []


def test_s4_messages_have_what_was_written(planted: dict[str, str], tmp_path: Path) -> None:
    keys = ["run.seed", "run.task", "run.runner", "run.lr_sched", "run.device", "run.amp", "model.arch",
            "model.model_type", "model.pretrained", "run.train_splits", "datasets.mini_world_caption.builder",
            "datasets.mini_world_caption.type", "datasets.mini_world_caption.build_info", "run.init_lr",
            "datasets.mini_world_caption.vis_processor.train.name", "datasets.mini_world_caption.prepare"]
    (tmp_path / "run.yaml").write_text("datasets: {mini_world_caption: {}}\nrun: {max_iters: 1}\n")
    for key, (name, value) in zip(keys, planted.items(), strict=False):
        try:
            text = "\n".join(check(compose(tmp_path / "run.yaml", [f"{key}=${{oc.env:{name}}}"])))
        except Exception as error:
            text = str(error)
        assert found_in(text, {name: value}) == [], key
    assert str(DataError(f"cannot read {planted['SECRET_3']}")) == "cannot read ${oc.env:SECRET_3}"


URLS = ["https://user:{}@example.org/x", "https://{}@example.org/x", "https://example.org/x?token={}",
        "https://example.org/x?a=1&api_key={}", "s3://example/x?X-Amz-Signature={}&X-Amz-Date=1",
        "https://example.org/x?sv=2020&sig={}", "https://example.org/x?X-Amz-Credential={}",
        "https://example.org/x?access_token={}#part", "http://{}:x@127.0.0.1:9/x"]


RUN = """
datasets: {mine: {builder: custom, build_info: {annotations: {train: {url: 'URL.json', storage: none}}}}}
run: {max_iters: 1}
"""


@pytest.mark.parametrize("url", URLS)
def test_s4_passwords_in_urls_are_masked(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = {"SECRET": "0123456789abcdef"}
    whole = url.format(secret["SECRET"])
    shown = redaction.mask(f"could not fetch {whole}, sorry")
    assert found_in(shown, secret) == [] and "***" in shown and shown.endswith("sorry")
    harmless = "https://example.org/a?page=2&v=3 and a@b.org"
    assert redaction.mask(harmless) == harmless
    (tmp_path / "run.yaml").write_text(RUN.replace("URL", whole))
    assert run_command("train", ["--cfg-path", str(tmp_path / "run.yaml")]) == 2
    assert run_command("train", ["--cfg-path", str(tmp_path / "run.yaml"), "--print-config"]) in (0, 2)
    captured = capsys.readouterr()
    assert found_in(captured.out + captured.err, secret) == []
    assert "***" in captured.err


def test_s4_short_values_and_numbers_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    redaction.forget()
    for value in ("1", "cuda", "123456789", ""):
        monkeypatch.setenv("PLAIN", value)
        redaction.remember_environment("${oc.env:PLAIN}")
    assert redaction.mask("1 cuda 123456789") == "1 cuda 123456789"
    monkeypatch.setenv("DATA", "/mnt/data")
    redaction.remember_environment(["${oc.env:DATA,/tmp}/coco", "${oc.env:'DATA'}"])
    assert redaction.mask("no /mnt/data/coco") == "no ${oc.env:DATA}/coco"
    redaction.forget()


@pytest.mark.slow
def test_s4_a_whole_run(planted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                        capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SECRET_7", str(tmp_path / planted["SECRET_7"]))
    folder = tmp_path / planted["SECRET_7"]
    folder.mkdir()
    rows = []
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 30, 30)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": "red"})
    (folder / "4.png").write_bytes(b"no picture")
    (folder / "rows.json").write_text(json.dumps([*rows, {"image": "4.png", "caption": "red"}]))
    yaml = tmp_path / "run.yaml"
    yaml.write_text("""
model: {arch: blip2, model_type: mini, load_pretrained: false}
datasets:
  mine:
    builder: custom
    build_info:
      annotations: {train: {storage: "${oc.env:SECRET_7}/rows.json"}}
      images: {storage: "${oc.env:SECRET_7}"}
    text_processor: {train: {name: blip_caption, prompt: "${oc.env:SECRET_8} "}}
run: {max_iters: 3, batch_size_train: 2, num_workers: 0, on_bad_sample: skip, max_bad_fraction: 1.0, log_freq: 1,
      wandb_project: "${oc.env:SECRET_9}", output_dir: OUT}
""".replace("OUT", str(tmp_path / "out")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_command("train", ["--cfg-path", str(yaml)]) == 0
        assert run_command("train", ["--cfg-path", str(yaml), "--print-config"]) == 0
        assert run_command("train", ["--cfg-path", str(yaml), "--options", "run.seed=${oc.env:SECRET_8}"]) == 2
    captured = capfd.readouterr()
    known = planted  # of SECRET_7, a path, the last part is the secret
    said = captured.out + captured.err
    assert [line for line in said.splitlines() if found_in(line, known)] == []
    assert found_under(tmp_path / "out", known) == []
    assert "${oc.env:SECRET_7}" in next((tmp_path / "out").glob("*/checkpoints/step_*/config.yaml")).read_text()
    assert "${oc.env:SECRET_7}" in next((tmp_path / "out").glob("*/bad_samples.jsonl")).read_text()
