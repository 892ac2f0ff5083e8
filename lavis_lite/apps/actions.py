"""What the demo page does, without the page: pictures and texts in; texts, numbers and pictures out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lavis_lite.apps.models import Loaded
from lavis_lite.datasets.media.images import SUFFIXES, BadSample, load_rgb
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.attention import shown
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.decoding import Decoding
from lavis_lite.models.protocols import Answerer, Captioner, ChatModel, Looker, Matcher, Retriever
from lavis_lite.processors.chat_templates import ChatTemplate
from lavis_lite.report.overlay import as_seen, sheet

MOST_TEXTS, MOST_CHARACTERS, MOST_PICTURES, MOST_TOKENS = 50, 2000, 20_000, 256
PER_ROW = 3
"""pictures side by side, so that a phone shows them well"""
FOUND, AT_ONCE = 8, 32
"""pictures that a search shows; pictures that are encoded together"""


def able(loaded: Loaded, protocol: type, what: str) -> Any:
    """The model, if it has a protocol.

    Raises:
        ConfigError: it cannot do what is wanted.
    """
    if not loaded.can(protocol):
        raise ConfigError(f"{loaded.name} cannot {what}; choose another model.")
    return loaded.model


def opened(path: str | Path | None) -> Image.Image:
    """An uploaded picture.

    Raises:
        DataError: no picture was given, or it cannot be read.
    """
    if not path:
        raise DataError("there is no picture yet: choose one first.")
    try:
        return load_rgb(path)
    except BadSample as error:
        raise DataError(f"this file cannot be used: {error.reason}.") from error


def checked(text: str | None, what: str = "question") -> str:
    """A text without spaces around.

    Raises:
        DataError: it is empty or too long.
    """
    text = (text or "").strip()
    if not text:
        raise DataError(f"there is no {what} yet: write one first.")
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"the {what} has {len(text)} characters; at most {MOST_CHARACTERS} are read.")
    return text


def samples_of(loaded: Loaded, picture: Image.Image, **more: Any) -> dict[str, Any]:
    """One sample as the model takes it."""
    return {"image": loaded.images(picture)[None].to(loaded.model.device), **more}


# texts ----------------------------------------------------------------------------------------------------------------
def caption(loaded: Loaded, picture: Image.Image, prompt: str = "", beams: int = 3, tokens: int = 40) -> str:
    """A caption, or the prompt continued."""
    model = able(loaded, Captioner, "write captions")
    with loaded.lock:
        [text] = model.generate(samples_of(loaded, picture, **_prompted(model, prompt)), num_beams=beams,
                                max_new_tokens=min(tokens, MOST_TOKENS))
    return str(text)


def ask(loaded: Loaded, picture: Image.Image, question: str, template: str = "{}") -> str:
    """A short answer; the template has `{}` for the question."""
    model, question = able(loaded, Answerer, "answer questions"), checked(question)
    with loaded.lock:
        [text] = model.predict_answers(samples_of(loaded, picture, text_input=[question]), num_beams=3,
                                       max_len=20, prompt=_template(template))
    return str(text)


def _template(template: str) -> str:
    """A prompt template with one place for the question; none stands for the question alone."""
    if template.strip() and template.count("{}") != 1:
        raise DataError(f"the prompt has {template.count('{}')} places {{}} for the question; it must have one.")
    return template if template.strip() else "{}"


def _prompted(model: object, prompt: str) -> dict[str, Any]:
    """The prompt, for models that take one."""
    return {"prompt": prompt} if prompt and hasattr(model, "prompt") else {}


def look(loaded: Loaded, picture: Image.Image, text: str, prompt: str = "") -> Image.Image | None:
    """The picture once for each written word, bright where the word comes from; None if the model cannot show it."""
    if not text or not loaded.can(Looker):
        return None
    with loaded.lock:
        given = samples_of(loaded, picture, text_output=[text], **_prompted(loaded.model, prompt))
        [found] = shown(loaded.model, given)
    return sheet(as_seen(loaded.images, picture), found.words, found.maps(), per_row=PER_ROW)


# conversations --------------------------------------------------------------------------------------------------------
PLAIN = ChatTemplate(user="{} ", assistant="{}</s>")
"""turns as they are, for models that were never trained on conversations"""


def template_of(model: object) -> ChatTemplate | None:
    """How conversations with a model are written; None: as the model says."""
    return PLAIN if isinstance(model, Blip2Base) else None


@dataclass
class Talk:
    """A conversation with one model."""

    loaded: Loaded
    chat: Any

    @classmethod
    def begin(cls, loaded: Loaded, tokens: int = 64) -> Talk:
        """An empty conversation."""
        model = able(loaded, ChatModel, "hold conversations")
        return cls(loaded, model.chat(template_of(model), Decoding(max_new_tokens=min(tokens, MOST_TOKENS))))

    def reply(self, text: str, pictures: Sequence[Image.Image] = ()) -> Iterator[str]:
        """The answer so far, again and again until it is complete."""
        text, answer = checked(text, "message"), ""
        images = [self.loaded.images(one).to(self.loaded.model.device) for one in pictures]
        with self.loaded.lock:
            for piece in self.chat.stream(text, images):
                answer += piece
                yield answer
        if not answer:
            yield answer


# matching and search --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Match:
    """How well a text fits a picture.

    Attributes:
        text: one of those that were given.
        probability: that both belong together (ITM).
        cosine: of their features (ITC).
    """

    text: str
    probability: float
    cosine: float


def match(loaded: Loaded, picture: Image.Image, texts: str) -> tuple[list[Match], Image.Image | None]:
    """Texts, one a line, the best first; and where the picture fits each of the first ones (Grad-CAM)."""
    model = able(loaded, Matcher, "match texts with pictures")
    lines = [line.strip() for line in checked(texts, "text").splitlines() if line.strip()]
    if len(lines) > MOST_TEXTS:
        raise DataError(f"there are {len(lines)} texts; at most {MOST_TEXTS} are matched at once.")
    given = samples_of(loaded, picture, text_input=lines)
    with loaded.lock:
        with torch.no_grad():
            fits = model.match(given, match_head="itm").softmax(1)[:, 1].tolist()
            near = model.match(given, match_head="itc")[:, 0].tolist()
        found = sorted(map(Match, lines, fits, near), key=lambda one: -one.probability)
        best = [one.text for one in found[:5]]
        cams = model.gradcam({**given, "text_input": best}) if loaded.can(Looker) else []
    if not cams:
        return found, None
    maps = torch.tensor([cam.maps()[0].tolist() for cam in cams]).numpy()
    return found, sheet(as_seen(loaded.images, picture), best, maps, per_row=PER_ROW)


@dataclass
class Album:
    """The pictures of a folder with their features, to be searched by text or picture.

    Attributes:
        loaded: the model that made the features.
        paths: N pictures that could be read.
        features: float32[N,Q,E], unit length.
        unread: names of the others.
    """

    loaded: Loaded
    paths: list[Path]
    features: Tensor
    unread: list[str] = field(default_factory=list)

    def by_text(self, text: str) -> list[tuple[Path, float]]:
        """The pictures nearest to a text, and their cosines with it: the best of the query tokens, as in ITC."""
        model = self.loaded.model
        with self.loaded.lock, torch.no_grad():
            wanted = model.project_text(model.forward_text(model.tokenize([checked(text, "text")])))
        return self._best((self.features.to(wanted) @ wanted[0]).amax(1))

    def by_picture(self, picture: Image.Image) -> list[tuple[Path, float]]:
        """The pictures nearest to another one, and the mean cosine of their query tokens."""
        [wanted] = _features(self.loaded, [picture])
        return self._best((self.features * wanted).sum(-1).mean(1))

    def _best(self, scores: Tensor) -> list[tuple[Path, float]]:
        values, index = scores.sort(descending=True, stable=True)
        return [(self.paths[at], value) for value, at in zip(values[:FOUND].tolist(), index[:FOUND].tolist(),
                                                            strict=True)]


def read_album(loaded: Loaded, folder: str) -> Album:
    """The pictures of a folder, not of folders in it, as features.

    Raises:
        ConfigError: the model has no features to search by.
        DataError: there is no such folder, or it has no pictures or too many.
    """
    able(loaded, Retriever, "search")
    root = Path(checked(folder, "folder")).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}.")
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files or len(files) > MOST_PICTURES:
        raise DataError(f"{root} has {len(files)} pictures; a search needs at least one and at most {MOST_PICTURES}.")
    paths, features, unread = list[Path](), list[Tensor](), list[str]()
    for start in range(0, len(files), AT_ONCE):
        pictures = []
        for path in files[start:start + AT_ONCE]:
            try:
                pictures.append(load_rgb(path))
                paths.append(path)
            except BadSample:
                unread.append(path.name)
        features += [_features(loaded, pictures)] if pictures else []
    if not paths:
        raise DataError(f"none of the {len(files)} pictures in {root} can be read.")
    return Album(loaded, paths, torch.cat(features), unread)


def _features(loaded: Loaded, pictures: Sequence[Image.Image]) -> Tensor:
    """float32[N,Q,E] of pictures, on the CPU."""
    model = loaded.model
    images = torch.stack([loaded.images(one) for one in pictures]).to(model.device)
    with loaded.lock, torch.no_grad():
        hidden, _ = model.forward_image(images)
        features: Tensor = model.project_image(hidden).float().cpu()
    return features
