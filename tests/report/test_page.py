"""report.html: what is in the file, that nothing in it can run, and what a real browser makes of it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite.errors import DataError
from lavis_lite.evaluation.results import sample_row
from lavis_lite.report.page import evenly, figures, in_order, inert, jpeg, thumbnails, ticks, write_report
from lavis_lite.report.sample import Candidate, Picture, ReportSample, ranked
from tests.report.chromium import Document, needs_chromium, opened, text_of
from tests.report.driver import Browser, needs_driver

HOSTILE = ["</script><script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">",
           "\u2028\u2029\r\x0b\x00 '\"`${1}&lt;", "<!--<script>", "{{title}} {{data}}", "\ud800 lone", "]]>",
           "</title><b>"]


def picture(number: int) -> Picture:
    return Picture(f"{number}.jpg", lambda: Image.new("RGB", (90, 60), (number * 40 % 256, 90, 120)))


def questions(count: int = 120) -> Iterator[ReportSample]:
    for n in range(count):
        score = (0.0, 0.3, 1.0)[n % 3]
        yield ReportSample(n, f"answer {n}", f"question {n}?", ["yes ×7", "no"], {"accuracy": score}, score >= 0.5,
                           picture(n // 2), group=("color", "count")[n % 2])


def data_of(page: Path) -> dict:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def test_a_page_holds_every_sample_and_each_picture_once(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", "T", {"accuracy": 0.43, "majority": 0.2, "loss": float("nan")},
                        questions(), facts={"step": "5"})
    text, data = page.read_text(), data_of(page)
    assert [row["i"] for row in data["samples"]] == [str(number) for number in range(120)]
    assert data["samples"][4] == {"i": "4", "p": "question 4?", "a": "answer 4", "g": "color", "r": ["yes ×7", "no"],
                                  "ok": False, "s": {"accuracy": 0.3}, "t": 2}
    assert [(row["name"], row["value"], row["baseline"]) for row in data["scores"]] == [
        ("accuracy", 0.43, False), ("majority", 0.2, True), ("loss", None, False)]
    chunks = [chunk.split("\n") for chunk in re.findall(r'id="chunk\d+">(.*?)</script>', text, re.DOTALL)]
    assert [len(chunk) for chunk in chunks] == [50, 10]
    assert all(base64.b64decode(one).startswith(b"\xff\xd8") for chunk in chunks for one in chunk)
    assert "http" not in text.replace("http-equiv", "") and "src=" not in text and "<link" not in text


def test_ids_above_two_to_the_53_are_not_rounded(tmp_path: Path) -> None:
    ids = [2**53, 2**53 + 1, 2**63 - 1, "9007199254740993"]
    page = write_report(tmp_path / "report.html", "T", {}, [ReportSample(one) for one in ids])
    assert [row["i"] for row in data_of(page)["samples"]] == list(map(str, ids))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_text_leaves_its_place(tmp_path: Path, hostile: str) -> None:
    sample = ReportSample(hostile, hostile, hostile, [hostile], {hostile: 0.5}, False, Picture(hostile, lambda: b""),
                          [Candidate(hostile, right=True)], group=hostile)
    plain = ReportSample("a", "b", "c", ["d"], {"e": 0.5}, False, Picture("f", lambda: b""),
                         [Candidate("g", right=True)], group="h")
    pages = [write_report(tmp_path / f"{number}.html", title, {title: 1.0}, [one], facts={title: title},
                          curves={title: {title: ([1, 2], [1.0, 2.0])}})
             for number, (title, one) in enumerate([("t", plain), (hostile, sample)])]
    tags = [Document(page.read_text()).tags for page in pages]
    assert tags[0] == tags[1]
    row = data_of(pages[1])["samples"][0]
    assert row["p"] == row["a"] == row["r"][0] == row["c"][0]["x"] == hostile


def test_json_of_a_page_is_ascii_and_has_no_marks_of_html() -> None:
    text = inert({"x": HOSTILE + ["ä 漢 &amp;"]})
    assert text.isascii() and not set(text) & set("<>&") and json.loads(text)["x"][:8] == HOSTILE


def test_pictures_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    def lost() -> bytes:
        raise DataError("a.jpg: there is no such file")

    shown = Picture("a", lost), Picture("b", lambda: b"no picture"), picture(1)
    samples = [ReportSample(number, picture=one) for number, one in enumerate(shown)]
    faults = data_of(write_report(tmp_path / "r.html", "T", {}, samples))["errors"]
    assert faults["0"] == "a.jpg: there is no such file" and "b" in faults["1"] and set(faults) == {"0", "1"}


def test_thumbnails_fit_their_budget_and_keep_their_shape() -> None:
    noise = Image.effect_noise((640, 480), 90).convert("RGB")
    small = jpeg(noise, 160, 3000)
    assert len(small) <= 3000 and Image.open(io.BytesIO(small)).size[0] <= 160
    many = list(thumbnails([Picture(str(n), lambda: noise) for n in range(8)], budget=8 * 5000))
    assert sum(len(one.data) for one in many) <= 8 * 5000
    tiny = Image.open(io.BytesIO(jpeg(Image.new("RGB", (64, 32)), 320, 9000)))
    assert tiny.size == (64, 32)


def test_of_too_many_samples_even_ones_are_shown(tmp_path: Path) -> None:
    assert list(evenly(range(10), 4)) == [0, 2, 5, 7] and list(evenly(range(3), 4)) == [0, 1, 2]
    data = data_of(write_report(tmp_path / "r.html", "T", {}, [ReportSample(n) for n in range(10)], most=4))
    assert data["total"] == 10 and [row["i"] for row in data["samples"]] == ["0", "2", "5", "7"]


def test_main_scores_come_first_and_parts_of_a_kind_together() -> None:
    names = "itc_r1 accuracy_answer_other accuracy_question_shape accuracy_answer_number accuracy chance".split()
    assert in_order(names, ["accuracy", "elsewhere"]) == [
        "accuracy", "itc_r1", "accuracy_answer_other", "accuracy_answer_number", "accuracy_question_shape", "chance"]


def test_a_page_leads_to_those_of_other_data_sets_and_has_context(tmp_path: Path) -> None:
    said = ReportSample(1, "3", "how many?", context="Q: is it? A: yes")
    page = write_report(tmp_path / "r.html", "T", {}, [said], others={"a <b>": "test_a b_report.html"})
    assert '<a href="test_a%20b_report.html">a &lt;b&gt;</a>' in page.read_text()
    assert data_of(page)["samples"][0]["h"] == "Q: is it? A: yes" and sample_row(said)["context"] == "Q: is it? A: yes"
    assert "<nav class=\"others\"" not in write_report(tmp_path / "s.html", "T", {}, []).read_text()


def test_candidates_are_ordered_by_likelihood_with_shares_of_one() -> None:
    found = ranked(["no", "yes", "maybe"], [-3.0, -1.0, -1000.0], ["yes"])
    assert [(one.text, one.right) for one in found] == [("yes", True), ("no", False), ("maybe", False)]
    assert sum(one.share or 0 for one in found) == pytest.approx(1)
    assert found[0].share == pytest.approx(0.8808, abs=1e-4)


def test_curves_are_lines_within_their_frame() -> None:
    steps = list(range(1, 2001))
    svg = figures({"loss <nats>": {"loss": (steps, [1 / step for step in steps]), "bad": ([1], [float("nan")])},
                   "empty": {}, "one": {"val": ([5], [0.5])}})
    assert svg.count("<figure") == 2 and svg.count("<polyline") == 1 and svg.count("<circle") == 1
    assert "loss &lt;nats&gt;" in svg and "style=" not in svg
    [(x, mark)] = re.findall(r'<text class="tick" x="([\d.]+)"[^>]*middle">(\d+)</text>', svg[svg.index("one"):])
    assert mark == "5" and f'cx="{x}"' in svg
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]+)"', svg)[0].split()]
    assert len(points) <= 402 and all(0 <= x <= 560 and 0 <= y <= 200 for x, y in points)
    assert ticks(0.0, 1.0, 5)[0] == 0 and ticks(0.0, 1.0, 5)[-1] == 1 and len(ticks(3.0, 3.0, 4)) >= 2


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    hostile = [ReportSample(1000 + n, text, text, [text], {"accuracy": 0.0}, False, picture(n)) for n, text in
               enumerate(HOSTILE)]
    return write_report(folder / "report.html", "T", {"accuracy": 0.43}, [*questions(), *hostile],
                        curves={"loss": {"loss": ([1, 2], [2.0, 1.0])}})


@needs_chromium
def test_a_browser_shows_samples_and_loads_only_pictures_that_come_near(page: Path) -> None:
    for budget in (3000, 30_000):  # on a busy machine Chromium may not see which pictures are near in the first one
        document = Document(dom := opened(page, budget=budget))
        if document.images:
            break
    assert document.cards == [str(n) for n in range(48)] and document.found == 128
    assert document.holders == 48 and 4 <= document.images < 40
    assert "question 0?" in text_of(dom) and document.root["data-ready"] is not None
    assert "owned" not in re.findall("<title>(.*?)</title>", dom)[0]


@needs_chromium
def test_a_browser_filters_by_what_the_address_says(page: Path) -> None:
    wrong = Document(opened(page, "filter=wrong&group=count&max=0.5&order=best"))
    assert wrong.cards[:3] == ["1", "7", "13"] and wrong.found == 40 and "3" in wrong.cards and "5" not in wrong.cards
    last = opened(page, "q=onerror&sample=1001")
    document = Document(last)
    assert document.cards == ["1001"] and HOSTILE[1].replace("<", "&lt;").replace(">", "&gt;") in last
    assert re.search(r"<dialog[^>]* open", last) and re.findall("<title>(.*?)</title>", last) == ["T"]


@needs_chromium
def test_an_open_sample_shows_where_the_model_looked(tmp_path: Path) -> None:
    words = [Candidate(text, picture=picture(number)) for number, text in enumerate(["two", "<b>dogs"], 7)]
    samples = [ReportSample(1, "two <b>dogs", picture=picture(1), attention=words), ReportSample(2, "a cat")]
    page = write_report(tmp_path / "a.html", "T", {}, samples)
    rows = data_of(page)["samples"]
    assert rows[0]["w"] == [{"x": "two", "t": 1}, {"x": "<b>dogs", "t": 2}] and "w" not in rows[1]
    shown = opened(page, "sample=1")
    assert text_of(shown).count("where the model looks for each word") == 1
    assert Document(shown).images == 4, "the card's, the sample's, and one for each word"
    assert 'alt="where the model looks for &lt;b&gt;dogs"' in shown
    assert "where the model looks" not in text_of(opened(page, "sample=2"))


STATE = """return [location.hash, document.activeElement.id || document.activeElement.className,
  document.getElementById('detail').open, document.querySelectorAll('.card').length,
  document.getElementById('group-field').offsetParent !== null]"""


@needs_driver
def test_the_keyboard_searches_turns_pages_and_walks_through_samples(tmp_path: Path) -> None:
    ungrouped = [ReportSample(n, "a", f"question {n}", scores={"accuracy": 0.0}, picture=picture(n)) for n in range(60)]
    with Browser() as browser:
        browser.open(write_report(tmp_path / "r.html", "T", {}, ungrouped))

        def after(*keys: str) -> list:
            browser.press(*keys)
            return browser.settled(STATE)

        assert after("right") == ["#page=2", "", False, 12, False] and after("left")[0] == ""
        assert after("/", "5", "9") == ["#q=59", "search", False, 1, False]
        assert after("escape") == ["", "search", False, 48, False] and after("escape")[1] == ""
        browser.js("document.querySelector('.open').focus()")
        assert after("enter") == ["#sample=0", "detail", True, 48, False]
        assert after("right", "right")[0] == "#sample=2" and after("left")[0] == "#sample=1"
        assert after("escape") == ["", "id open", False, 48, False]
        shown = "return [document.activeElement.closest('.card').dataset.id, document.querySelector('.card img').alt]"
        assert browser.js(shown) == ["1", "picture of 0"]
