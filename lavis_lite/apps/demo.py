"""The demo page, in gradio: what it shows and which of `lavis_lite.apps.actions` each button calls."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lavis_lite.apps import actions
from lavis_lite.apps.models import Loaded, Models
from lavis_lite.errors import ConfigError, LavisLiteError, MissingExtraError
from lavis_lite.models.protocols import Answerer, Captioner, ChatModel, Matcher, Retriever

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "mini" / "scene.jpg"
THUMBNAIL = 320
"""pixels of the longer side of a found picture"""
FONTS = ("system-ui", "sans-serif")
"""fonts of the reader's machine: the page loads nothing from elsewhere"""
MINI = ("blip2_t5_instruct", "blip2_opt/mini_instruct", "blip2_opt", "blip2")
"""models of a page that names none: two for questions, one for captions, one for matching and search"""
_log = logging.getLogger(__name__)


def gradio() -> Any:
    """The package gradio.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("the demo page needs gradio, which is not installed: pip install 'lavis_lite[demo]'"
                                ) from error
    return gradio


Shown = tuple[str, Image.Image | None]
"""a text, and where each of its words looks"""


def spoken(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A handler with errors shown as messages on the page; what is not a user's mistake also goes to the log."""
    gr = gradio()

    @functools.wraps(handler)
    def safe(*given: Any) -> Iterator[Any]:
        try:
            yield from handler(*given)
        except LavisLiteError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            _log.exception("the demo page: %s failed", handler.__name__)
            raise gr.Error(f"this did not work ({type(error).__name__}); the program's log says more.",
                           print_exception=False) from error

    return safe


@dataclass
class Page:
    """The handlers of the page.

    Attributes:
        models: that may be chosen.
        any_folder: whether a reader may search folders by name; else only `folder`.
        folder: that is searched.
    """

    models: Models
    any_folder: bool = True
    folder: str = ""

    def warm_up(self) -> None:
        """Load every model, and use those that write once, so that the first answer does not wait."""
        for name in self.models.names:
            loaded = self.models.get(name)
            if loaded.can(Captioner):
                actions.caption(loaded, actions.opened(EXAMPLE), tokens=2)

    def __post_init__(self) -> None:
        self._album: tuple[tuple[str, str], actions.Album] | None = None

    def caption(self, name: str, picture: str | None, prompt: str, looks: bool) -> Iterator[Shown]:
        """A caption, and then where each of its words looks."""
        loaded, image = self.models.get(name), actions.opened(picture)
        text = actions.caption(loaded, image, prompt)
        yield text, None
        if looks:
            yield text, actions.look(loaded, image, text, prompt)

    def ask(self, name: str, picture: str | None, question: str, looks: bool) -> Iterator[Shown]:
        """An answer, and then where each of its words looks."""
        loaded, image = self.models.get(name), actions.opened(picture)
        text = actions.ask(loaded, image, question)
        yield text, None
        if looks:
            yield text, actions.look(loaded, image, text, question.strip())

    def compare(self, first: str, second: str, picture: str | None, question: str,
                looks: bool) -> Iterator[tuple[str, Image.Image | None, str, Image.Image | None]]:
        """Answers of two models, or their captions where there is no question, as they come."""
        answers: list[Shown] = [("", None), ("", None)]
        for number, name in enumerate((first, second)):
            for answers[number] in (self.ask(name, picture, question, looks) if question.strip() else
                                    self.caption(name, picture, "", looks)):
                yield *answers[0], *answers[1]

    def reply(self, name: str, picture: str | None, text: str, turns: list[dict[str, Any]],
            talk: actions.Talk | None) -> Iterator[tuple[list[dict[str, Any]], actions.Talk, str, None]]:
        """The turns with the answer so far, the conversation, an empty box for text, an empty box for the picture."""
        loaded = self.models.get(name)
        if talk is None or talk.loaded is not loaded:
            talk, turns = actions.Talk.begin(loaded), []
        images = [actions.opened(picture)] if picture else []
        shown = [{"role": "user", "content": {"path": picture, "alt_text": "your picture"}}] if picture else []
        turns = [*turns, *shown, {"role": "user", "content": text}]
        for answer in talk.reply(text, images):
            yield [*turns, {"role": "assistant", "content": answer or "(nothing)"}], talk, "", None

    def match(self, name: str, picture: str | None, texts: str) -> Iterator[tuple[list[list[Any]], Any]]:
        """Rows of probability, cosine and text, and Grad-CAM of the best."""
        found, drawn = actions.match(self.models.get(name), actions.opened(picture), texts)
        yield [[f"{one.probability:.4f}", f"{one.cosine:.4f}", one.text] for one in found], drawn

    def search(self, name: str, folder: str, text: str,
               picture: str | None) -> Iterator[tuple[list[tuple[Image.Image, str]], str]]:
        """The nearest pictures of a folder with their cosines, and a sentence on what was searched."""
        if not self.any_folder and folder != self.folder:
            raise ConfigError(f"only the folder {self.folder or '(none)'} may be searched here.")
        album = self._read(self.models.get(name), folder)
        found = album.by_picture(actions.opened(picture)) if picture and not text.strip() else album.by_text(text)
        unread = f"; {len(album.unread)} could not be read, {album.unread[0]} first" if album.unread else ""
        yield ([(_small(path), f"{value:.3f}  {path.name}") for path, value in found],
               f"{len(album.paths)} pictures were searched{unread}.")

    def _read(self, loaded: Loaded, folder: str) -> actions.Album:
        """The album of a folder; the last one is kept while its folder does not change."""
        root = Path(folder.strip()).expanduser()
        key = loaded.name, f"{root} {root.stat().st_mtime_ns if folder.strip() and root.is_dir() else 0}"
        if self._album is None or self._album[0] != key:
            self._album = key, actions.read_album(loaded, folder)
        return self._album[1]


def _small(path: Path) -> Image.Image:
    """A picture of a search; the page gets no path of the file."""
    image = actions.opened(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def built(page: Page) -> Any:
    """The page as gradio's Blocks."""
    gr = gradio()
    with gr.Blocks(title="lavis_lite", analytics_enabled=False) as blocks:
        gr.Markdown("# lavis_lite\nModels that look at pictures. Everything runs on this machine.")
        _look_tab(gr, page)
        _talk_tab(gr, page)
        _match_tab(gr, page)
        _search_tab(gr, page)
        _compare_tab(gr, page)
    return blocks


def _model(gr: Any, page: Page, protocol: type, label: str = "Model", which: int = 0) -> Any:
    """A choice among the models that have a protocol."""
    able = page.models.able(protocol)
    info = "or ARCH/TYPE, or the folder of a run" if page.models.any_name else None
    return gr.Dropdown(able, value=able[min(which, len(able) - 1)] if able else None, label=label, info=info,
                       allow_custom_value=page.models.any_name)


def _picture(gr: Any, label: str = "Picture", example: bool = True) -> Any:
    return gr.Image(str(EXAMPLE) if example else None, type="filepath", sources=["upload", "clipboard"], label=label,
                    height=300)


def _looks(gr: Any, label: str = "Where it looks, word by word") -> Any:
    return gr.Image(label=label, interactive=False, buttons=["download", "fullscreen"])


def _look_tab(gr: Any, page: Page) -> None:
    with gr.Tab("Ask"), gr.Row():
        with gr.Column():
            picture, model = _picture(gr), _model(gr, page, Answerer)
            question = gr.Textbox("what color is the triangle?", label="Question")
            looks = gr.Checkbox(True, label="Show where it looks")
            ask = gr.Button("Ask", variant="primary")
            writer = _model(gr, page, Captioner, "Model for captions", which=2)
            prompt = gr.Textbox(label="Beginning of the caption", placeholder="a photo of")
            write = gr.Button("Caption")
        with gr.Column():
            answer, seen = gr.Textbox(label="Answer", interactive=False, buttons=["copy"]), _looks(gr)
    gr.on([ask.click, question.submit], spoken(page.ask), [model, picture, question, looks], [answer, seen],
          api_name="ask")
    gr.on([write.click, prompt.submit], spoken(page.caption), [writer, picture, prompt, looks], [answer, seen],
          api_name="caption")


def _talk_tab(gr: Any, page: Page) -> None:
    with gr.Tab("Talk"), gr.Row():
        with gr.Column():
            model, picture = _model(gr, page, ChatModel), _picture(gr, "Picture of your next message")
        with gr.Column():
            talk = gr.State(None, time_to_live=3600)
            turns = gr.Chatbot(label="Conversation", height=360, buttons=["copy"])
            text = gr.Textbox(label="Message", placeholder="what color is the triangle?")
            with gr.Row():
                send, restart = gr.Button("Send", variant="primary"), gr.Button("Start over")
    gr.on([send.click, text.submit], spoken(page.reply), [model, picture, text, turns, talk],
          [turns, talk, text, picture], api_name="reply")
    restart.click(lambda: ([], None), None, [turns, talk], api_name=False)


def _match_tab(gr: Any, page: Page) -> None:
    with gr.Tab("Match"), gr.Row():
        with gr.Column():
            picture, model = _picture(gr), _model(gr, page, Matcher)
            texts = gr.Textbox("large striped blue triangle bottom left, small white circle bottom\n"
                               "large striped red star top, small white circle bottom", lines=4,
                               label="Texts, one a line")
            go = gr.Button("Match", variant="primary")
        with gr.Column():
            found = gr.Dataframe(headers=["ITM", "ITC", "text"], column_widths=["18%", "18%", "64%"], wrap=True,
                                 label="Match (ITM) and cosine (ITC), the best first", interactive=False)
            seen = _looks(gr, "Where the picture fits each text (Grad-CAM)")
    go.click(spoken(page.match), [model, picture, texts], [found, seen], api_name="match")


def _search_tab(gr: Any, page: Page) -> None:
    with gr.Tab("Search"), gr.Row():
        with gr.Column():
            model = _model(gr, page, Retriever)
            folder = gr.Textbox(page.folder, label="Folder of pictures", interactive=page.any_folder)
            text = gr.Textbox(label="Search by text", placeholder="a large red circle")
            picture = _picture(gr, "or by a picture", example=False)
            go = gr.Button("Search", variant="primary")
        with gr.Column():
            found = gr.Gallery(label="The nearest first", columns=3, object_fit="contain")
            note = gr.Markdown()
    gr.on([go.click, text.submit], spoken(page.search), [model, folder, text, picture], [found, note],
          api_name="search")


def _compare_tab(gr: Any, page: Page) -> None:
    with gr.Tab("Compare"):
        with gr.Row():
            picture = _picture(gr)
            with gr.Column():
                question = gr.Textbox("what color is the triangle?", label="Question; empty: captions")
                looks = gr.Checkbox(True, label="Show where they look")
                go = gr.Button("Compare", variant="primary")
        boxes, names = [], []
        with gr.Row():
            for number, side in enumerate(("First", "Second")):
                with gr.Column():
                    names.append(_model(gr, page, Answerer, f"{side} model", which=number))
                    boxes += [gr.Textbox(label=f"{side} answer", interactive=False), _looks(gr)]
    gr.on([go.click, question.submit], spoken(page.compare), [*names, picture, question, looks], boxes,
          api_name="compare")
