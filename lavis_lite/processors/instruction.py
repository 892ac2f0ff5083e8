"""The text processor that puts a text, and what belongs to it, into an instruction.

Captioning, VQA and VQG templates are those that InstructBLIP's paper lists (appendix), without the image in front: the
soft prompt comes before every text. The others are in their spirit and ask for short answers. `{}` takes the question
(VQA), the statement, or the answer (VQG); `Instruction` describes the other fields and the brackets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.processors.text import MOST_OCR_TOKENS, lettered, without_marks
from lavis_lite.registry import registry

PLACEHOLDER = "{}"

CAPTION = (
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "An image that shows",
    "Write a short description for the image.",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)
VQA = (
    "{}",
    "Question: {}",
    "{} A short answer to the question is",
    "Q: {} A:",
    "Question: {} Short answer:",
    "Given the image, answer the following question with no more than three words. {}",
    "Based on the image, respond to this question with a short answer: {}. Answer:",
    "Use the provided image to answer the question: {} Provide your answer as short as possible:",
    'What is the answer to the following question? "{}"',
    'The question "{}" can be answered using the image. A short answer is',
)
VQG = (
    "Given the image, generate a question whose answer is: {}. Question:",
    "Based on the image, provide a question with the answer: {}. Question:",
    'Given the visual representation, create a question for which the answer is "{}".',
    "From the image provided, craft a question that leads to the reply: {}. Question:",
    "Considering the picture, come up with a question where the answer is: {}.",
    "Taking the image into account, generate a question that has the answer: {}. Question:",
)

CAPTION_TEXT = (
    "A short image caption that mentions the text in the image:",
    "A short image description, with the words that can be read in it:",
    "A photo, with the text on it, of",
    "An image whose text and objects show",
    "Write a short description of the image that includes what is written in it.",
    "Write a description for the photo; read the signs and labels in it.",
    "Provide a description of the photo and of the text that it contains.",
    "Briefly describe the image, quoting its text where that matters.",
    "Can you briefly explain what the image shows and what it says?",
    "Could you use a few words to describe the photo and the writing in it?",
    "Please provide a short depiction of the picture that uses the text in it.",
    "Using the text that you can read in the image, provide a short account of it.",
)
CHOICE = (
    "[Context: {context} ]Question: {} Options: {choices}. Answer:",
    "[Context: {context} ]Question: {} Options: {choices}. Short answer:",
    "[{context} ]{} Choose from: {choices}. Answer:",
    "[{context} ]Q: {} Choices: {choices}. A:",
    "[Read this first: {context} ]Based on the image, which option answers this? {} Options: {choices}. Answer:",
    "[Context: {context} ]Given the image, pick the right option for this question: {} {choices}. The answer is",
    "[{context} ]Question: {} The possible answers are {choices}. The right one is",
    "[Background: {context} ]Use the image to choose one of the options. {} Options: {choices}. Answer:",
    "[{context} ]{} Select the best of these options: {choices}. Answer:",
    "[Context: {context} ]Here is a question about the image: {} Answer with one of these: {choices}. Answer:",
    '[{context} ]One of the options {choices} answers the question "{}". It is',
    "[Context: {context} ]Multiple choice question: {} Options: {choices}. Your choice:",
)
OCR = (
    "[OCR tokens: {ocr_tokens}. ]Question: {} Short answer:",
    "[OCR tokens: {ocr_tokens}. ]{}",
    "[OCR tokens: {ocr_tokens}. ]{} A short answer to the question is",
    "[Text in the image: {ocr_tokens}. ]Q: {} A:",
    "[The image says: {ocr_tokens}. ]Read the image to answer with no more than three words. {}",
    "[OCR tokens: {ocr_tokens}. ]Based on the text in the image, answer this question briefly: {} Answer:",
    "[Words found in the image: {ocr_tokens}. ]Use them to answer the question: {} Answer as short as possible:",
    '[OCR tokens: {ocr_tokens}. ]What does the writing in the image answer to the following question? "{}"',
    '[Text: {ocr_tokens}. ]The question "{}" can be answered by reading the image. A short answer is',
    "[OCR tokens: {ocr_tokens}. ]Look at what is written and answer briefly. Question: {} Answer:",
    "[Some words of the image: {ocr_tokens}. ]{} Give the answer in a few words:",
    "[OCR tokens: {ocr_tokens}. ]Question about the text in the picture: {} Short answer:",
)
TRUE_FALSE = (
    'Based on the image, is this statement true or false? "{}" Answer:',
    'Is the statement "{}" true or false for this image? Answer:',
    "Statement: {} True or false?",
    "True or false: {}",
    'Look at the image. Does "{}" describe it correctly? Answer true or false:',
    "Given the image, decide between true and false. {} Answer:",
    '"{}" Judging by the picture, this is',
    "Check this claim against the image: {} Answer with true or false.",
    'Would you call "{}" a true or a false statement about the photo? Short answer:',
    "Claim: {} Verdict, true or false:",
    "Say in one word whether this is true or false of the image: {}",
    'The caption "{}" of the image is either true or false. It is',
)
MEME = (
    'This is an image with: "{}" written on it. Is it hateful? Answer:',
    'The words "{}" are written on the image. Is it hateful? Short answer:',
    'Text on the image: "{}". Question: is the meme hateful? Answer:',
    'Does the picture, together with the text "{}", express hate? Answer yes or no:',
    'Considering the image and its text "{}", is this meme hateful? Answer:',
    'Given the image and the words "{}" on it, decide whether it is hateful. Answer yes or no:',
    'Meme text: "{}". Is this hate speech? Short answer:',
    'Somebody posts this image with "{}" on it. Is the post hateful? Answer:',
    'Look at the image and read "{}". Hateful, yes or no?',
    'Is the combination of this picture and the caption "{}" hateful towards people? A short answer is',
)
VIDEO_QA = (
    "{}",
    "Question: {} Short answer:",
    "{} A short answer to the question is",
    "Q: {} A:",
    "Given the video, answer the following question with no more than three words. {}",
    "Based on the video, respond to this question with a short answer: {} Answer:",
    "Use the frames of the video to answer the question: {} Provide your answer as short as possible:",
    'What is the answer to the following question about the video? "{}"',
    'The question "{}" can be answered using the video. A short answer is',
    "Watch the clip and answer in a word or two. Question: {} Answer:",
    "These are frames of a video. {} Short answer:",
    "Question about what happens in the clip: {} Answer:",
)
VIDEO_CAPTION = (
    "A short video caption:",
    "A short video description:",
    "A video of",
    "A video that shows",
    "Write a short description for the video.",
    "Write a description for what happens in the clip.",
    "Provide a description of what is presented in the video.",
    "Briefly describe the content of the video.",
    "Can you briefly explain what you see in the clip?",
    "Could you use a few words to describe what happens in the video?",
    "Please provide a short account of the clip.",
    "Use a few words to tell what is going on in these frames.",
)
DIALOG = (
    "[Dialog history: {history}\n ]Question: {} Short answer:",
    "[Caption: {caption} ][Dialog history: {history}\n ]Question: {} Short answer:",
    "[The image shows {caption}. ][Conversation so far: {history}\n ]Q: {} A:",
    "[{history}\n ]{} A short answer is",
    "[Image caption: {caption} ][Earlier questions and answers: {history}\n ]Now answer briefly: {}",
    "[Dialog: {history}\n ]Given the image and the dialog, answer the next question with a few words. {}",
    '[This image has the caption "{caption}". ][{history}\n ]Question: {} Answer:',
    "[History: {history}\n ]Based on the image, continue the conversation with a short answer. {} Answer:",
    "[Two people talk about the image. {history}\n ]The next question is: {} The short answer is",
    "[What was said before: {history}\n ]Use the image to reply to this question as short as possible: {}",
    '[{caption} ][{history}\n ]What is the reply to "{}"?',
)
REASONING = (
    "Question: {} Short answer:",
    "{} Use what you see and what you know. Short answer:",
    "Think about the image and answer briefly: {}",
    "Q: {} The answer takes some knowledge of the world. A:",
    "Given the image and common sense, answer with no more than three words. {}",
    "Combine the image with general knowledge to answer this question: {} Short answer:",
    "Reason about the picture. Question: {} Answer:",
    'What would you conclude from the image about this question? "{}" A short answer is',
    "The image alone does not say it all. {} Answer in a few words:",
    'The question "{}" can be answered by looking and thinking. A short answer is',
    "Question: {} Consider what the image shows and what follows from it. Answer:",
)
CHAT = ("[{history}\n]{}",)

TEMPLATES = {"caption": CAPTION, "caption_text": CAPTION_TEXT, "vqa": VQA, "vqg": VQG, "choice": CHOICE, "ocr": OCR,
             "true_false": TRUE_FALSE, "meme": MEME, "video_qa": VIDEO_QA, "video_caption": VIDEO_CAPTION,
             "dialog": DIALOG, "reasoning": REASONING, "chat": CHAT}
"""what a data set's `instruction` section may name; chat: texts that are instructions already (LLaVA's)"""
EVALUATION = {
    "caption": "A short image caption:",
    "caption_text": CAPTION_TEXT[0],
    "vqa": "Question: {} Short answer:",
    "vqg": VQG[0],
    "choice": "[Context: {context} ]Question: {} Options: {choices}. Answer:",
    "ocr": "[OCR tokens: {ocr_tokens}. ]Question: {} Short answer:",
    "video_qa": "Question: {} Short answer:",
    "video_caption": "A short video description:",
    "dialog": "[Dialog history: {history}\n ]Question: {} Short answer:",
    # held-out data sets, asked as InstructBLIP's authors did
    "nocaps": "A short image description:",
    "flickr30k": "A short image description:",
    "gqa": "Question: {} Short answer:",
    "vsr": 'Based on the image, is this statement true or false? "{}" Answer:',
    "iconqa": "Question: {} Options: {choices}. Short answer:",
    "textvqa": "[OCR tokens: {ocr_tokens}. ]Question: {} Short answer:",
    "visdial": "[Dialog history: {history}\n ]Question: {} Short answer:",
    "hatefulmemes": 'This is an image with: "{}" written on it. Is it hateful? Answer:',
    "vizwiz": "Question: {} Short answer:",
    "scienceqa": "[Context: {context} ]Question: {} Options: {choices}. Answer:",
    "msvd_qa": "Question: {} Short answer:",
    "msrvtt_qa": "Question: {} Short answer:",
    "ivqa": "Question: {} Short answer:",
}
"""the one that is asked where nothing is drawn, by list or by data set; lists that are not here ask their first"""


PLACE = "{}"
EXTRAS = ("choices", "context", "caption", "history", "ocr_tokens")
"""names of placeholders in a template, besides `{}`"""
_PLACEHOLDERS = re.compile(r"\{(|" + "|".join(EXTRAS) + r")\}")
_PARTS = re.compile(r"\[([^\[\]]*\{(?:" + "|".join(EXTRAS) + r")\}[^\[\]]*)\]")


@registry.register_processor("instruction")
class Instruction(BaseProcessor):
    """A question or an answer -> one of several instructions with it; a template without `{}` ignores it (captions).

    Other placeholders take extras of the question. `{choices}` becomes "(a) red (b) blue". `{ocr_tokens}` becomes the
    first 30 tokens, separated by commas. `{context}`, `{caption}` and `{history}` are texts. A part in brackets, such
    as "[Context: {context} ]", is left out if an extra of it is missing.

    Args:
        templates: the name of a list (a key of `TEMPLATES`), or your own list.
        draw: take any of them, by the sample's random numbers; false: always the same one, the list's evaluation
            template or the first of your own.

    Raises:
        ConfigError: an unknown list, or a template with more than one `{}`.
    """

    def __init__(self, templates: str | Sequence[str] = "vqa", draw: bool = True) -> None:
        if isinstance(templates, str):
            self.templates = _named(templates, draw)
        else:
            self.templates = list(templates) if draw else list(templates[:1])
        bad = [text for text in self.templates if not isinstance(text, str) or text.count(PLACEHOLDER) > 1]
        if bad or not self.templates:
            raise ConfigError("instruction: templates must be texts with at most one {}"
                              + (f", not {bad[0]!r}." if bad else "; the list is empty."))
        self.placeholders = frozenset(name for text in self.templates for name in _PLACEHOLDERS.findall(text)) - {""}

    def __call__(self, item: Any, rng: random.Random | None = None, extras: Mapping[str, Any] | None = None) -> str:
        """The text in its instruction; `extras` fill the placeholders of their names."""
        drawn = self.templates[0] if len(self.templates) == 1 else (rng or random).choice(self.templates)
        given = {name: without_marks(_text(name, value)) for name, value in (extras or {}).items()}
        whole = _PARTS.sub(lambda part: part[1] if all(
            given.get(name) for name in _PLACEHOLDERS.findall(part[1]) if name) else "", drawn)
        text = without_marks(str(item))
        return _PLACEHOLDERS.sub(lambda name: given.get(name[1], "") if name[1] else text, whole)


def _named(name: str, draw: bool) -> list[str]:
    """The templates of a list; without `draw` the one for evaluation."""
    if not draw and name in EVALUATION:
        return [EVALUATION[name]]
    if name not in TEMPLATES:
        known = list(TEMPLATES) if draw else [*TEMPLATES, *EVALUATION]
        raise ConfigError(f"instruction: there is no list of templates {name!r}; {did_you_mean(name, known)} "
                          f"A template of your own goes into a list: [{name!r}].")
    return list(TEMPLATES[name]) if draw else [TEMPLATES[name][0]]


def _text(name: str, value: Any) -> str:
    """An extra as text: options get letters, OCR tokens commas."""
    if name == "choices":
        return lettered(value)
    return ", ".join(value[:MOST_OCR_TOKENS]) if name == "ocr_tokens" else str(value)
