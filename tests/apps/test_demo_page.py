"""The demo page in gradio: its errors, its options, and what a real browser makes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lavis_lite.apps import demo
from lavis_lite.apps.models import Models
from lavis_lite.cli.main import main
from lavis_lite.errors import DataError
from tests.report.driver import Browser, needs_driver


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "pip install 'lavis_lite[demo]'" in capsys.readouterr().err


class FakeGradio:
    """As much of gradio as errors need."""

    class Error(Exception):
        def __init__(self, message: str, print_exception: bool = True) -> None:
            super().__init__(message)


def test_errors_become_messages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(demo, "gradio", lambda: FakeGradio)

    def handler(kind: str) -> Iterator[int]:
        yield 1
        raise DataError("no picture yet") if kind == "user" else ZeroDivisionError("secret")

    answers = demo.spoken(handler)("user")
    assert next(answers) == 1
    with pytest.raises(FakeGradio.Error, match="no picture yet"):
        next(answers)
    assert not caplog.records
    with pytest.raises(FakeGradio.Error, match="did not work .ZeroDivisionError.; the program's log says more"):
        list(demo.spoken(handler)("other"))
    assert "handler failed" in caplog.text and "secret" in caplog.text


class Launched:
    """What `main` does with a page."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def launch(self, **given: Any) -> tuple[None, str, None]:
        self.given = given
        return None, "http://here/", None

    def block_thread(self) -> None:
        return


@pytest.mark.parametrize("host, open_", [("127.0.0.1", True), ("0.0.0.0", False)])
def test_only_this_machine_may_load_any_model(host: str, open_: bool, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    class Gradio:
        class themes:
            Base = dict

    page, built = Launched(), []
    monkeypatch.setattr(demo, "gradio", lambda: Gradio)
    monkeypatch.setattr(demo, "built", lambda handlers: built.append(handlers) or page)
    assert main(["demo", "--host", host, "--model", "blip2", "--port", "0", "--max-upload", "3"]) == 0
    assert page.given["server_name"] == host and page.given["max_file_size"] == 3 * 2**20
    assert page.given["share"] is False and "http://here/" in capsys.readouterr().err
    assert built[0].any_folder is built[0].models.any_name is open_ and built[0].models.get("blip2")


def test_impossible_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "gradio", lambda: None)
    monkeypatch.setattr(demo, "built", lambda handlers: pytest.fail("models were named"))
    assert main(["demo", "--host", "no.such.host.invalid"]) == 2
    assert "error: --port: no.such.host.invalid:7860 is in use or not of this machine" in capsys.readouterr().err
    assert main(["demo", "--max-upload", "0"]) == 2
    assert "--max-upload: must be at least 1 MB" in capsys.readouterr().err


# the real page --------------------------------------------------------------------------------------------------------
READY = "return [...document.querySelectorAll('.tabitem button')].some(one => one.textContent.trim() === 'Ask')"
CLICK = """const found = [...document.querySelectorAll('.tabitem button')].filter(
    one => one.textContent.trim() === '{}' && one.offsetParent); found[found.length - 1].click();"""
ANSWER = """const found = [...document.querySelectorAll('textarea')].filter(
    one => one.offsetParent && one.closest('.block').textContent.includes('{}')); return found[0].value;"""
TOAST = "const one = document.querySelector('.toast-body'); return one ? one.textContent : '';"
TAB = "[...document.querySelectorAll('button[role=tab]')].find(one => one.textContent.trim() === '{}').click();"


PHONE_TAB = """const all = () => [...document.querySelectorAll('button[role=tab], .overflow-dropdown button')].filter(
    one => one.offsetParent && one.textContent.trim() === '{}');
    if (!all().length) document.querySelector('.overflow-menu button').click();
    setTimeout(() => all()[0].click(), 50);"""
"""tabs that a phone has no room for are in a menu"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'lavis_lite[demo]'")
    page = demo.Page(Models(["blip2_t5_instruct", "blip2"], any_name=True))
    blocks = demo.built(page)
    page.warm_up()
    _, found, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    yield found
    blocks.close()


@pytest.mark.slow
@needs_driver
def test_a_browser_asks_talks_and_reads_errors(address: str) -> None:
    with Browser(1200, 900) as browser:
        browser.visit(address)
        browser.until(READY)
        browser.js(CLICK.format("Ask"))
        assert browser.until(ANSWER.format("Answer")) == "blue"
        assert browser.until("return [...document.querySelectorAll('.tabitem img')].filter("
                             "one => one.offsetParent && one.naturalWidth === 408).length") == 1
        browser.js("document.querySelector('button[aria-label=\"Remove Image\"], button[aria-label=Clear]').click()")
        browser.until("return !document.querySelector('.tabitem img[src*=scene]')")
        browser.js(CLICK.format("Ask"))
        assert "there is no picture yet: choose one first." in browser.until(TOAST)
        browser.js(TAB.format("Talk"))
        browser.until("return [...document.querySelectorAll('textarea')].filter("
                      "one => one.offsetParent && one.placeholder.includes('triangle')).map(one => one.focus()).length")
        browser.press("what color is the triangle?", "enter")
        assert browser.until("return [...document.querySelectorAll('.bot .message-content, .bot.message')].map("
                             "one => one.textContent.trim()).join()").startswith("blue")
        elsewhere = "return performance.getEntriesByType('resource').map(one => one.name).filter("
        assert browser.js(f"{elsewhere} name => !name.startsWith('{address}'))") == []


@pytest.mark.slow
@needs_driver
def test_it_fits_a_phone(address: str) -> None:
    with Browser(500, 900) as browser:
        browser.phone()
        browser.visit(address)
        browser.until(READY)
        for name in ("Ask", "Match", "Search", "Compare"):
            browser.js(PHONE_TAB.format(name))
            browser.until("return [...document.querySelectorAll('.tabitem button')].some("
                          f"one => one.offsetParent && one.textContent.trim() === '{name}')")
            width, window = browser.settled("return [document.documentElement.scrollWidth, innerWidth]")
            assert width <= window == 390, name
