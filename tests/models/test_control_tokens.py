"""Control tokens inside texts: split like any text, whatever the tokenizer and the entry point; templates mark them."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.llm import OPT, T5, T5_INSTRUCT, VICUNA, Blip2LLM
from lavis_lite.models.blip2.prompts import question_prompts, with_examples
from lavis_lite.models.language.families import FAMILIES, GENERAL
from lavis_lite.models.language.tokens import LanguageTokenizer
from lavis_lite.models.plain_text import PlainEncoder, control_tokens
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.processors.instruction import Instruction
from lavis_lite.processors.text import control_token, without_control_tokens
from tests.models.test_blip2_llm import images, model_of
from tests.models.tokenizer_zoo import TOKENIZERS

ORDINARY = ["a red dog", "", "  two  blanks ", "It's 3.5 % — naïve café 😀", "a < b > c | d [e]", "line\nbreak"]


def around(name: str) -> list[str]:
    """A control token as it may stand in a text."""
    return [name, f"a {name} dog", f"a{name}dog", f"{name}{name}", f" {name.upper()} {name.lower()}\n{name}"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_text_spells_a_control_token(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    encoder = PlainEncoder(tokenizer)
    unknown = {encoder.control_tokens.get(name) for name in ("<unk>", "[UNK]")}
    assert len(encoder.control_tokens) >= (1 if kind == "gpt2" else 3)
    for name in encoder.control_tokens:
        for text, row in zip(around(name), encoder(around(name)), strict=True):
            assert not (set(row) & set(encoder.control_ids)) - unknown, (text, tokenizer.convert_ids_to_tokens(row))
            if kind not in ("words", "bert") and "\n" not in text:  # all letters of the others come back
                assert tokenizer.decode(row).replace(" ", "").lower() == text.replace(" ", "").lower()
    assert [[encoder.control_tokens[name]] for name in encoder.control_tokens] == encoder.template(
        [control_token(name) for name in encoder.control_tokens]), "the tokens are there for those who mark them"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ordinary_texts_keep_their_ids(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    expected = [list(row) for row in TOKENIZERS[kind]()(ORDINARY, add_special_tokens=False)["input_ids"]]
    assert PlainEncoder(tokenizer)(ORDINARY) == PlainEncoder(tokenizer).template(ORDINARY) == expected


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bert", "opt", "llama", "t5"])
def test_tokenizers_in_the_format_of_released_models(name: str, parity_dir: Path) -> None:
    if not (parity_dir / "tokenizers" / name).is_dir():
        pytest.skip(f"no tokenizer {name} beside the recorded cases")
    load = transformers.BertTokenizer if name == "bert" else transformers.AutoTokenizer
    tokenizer = load.from_pretrained(str(parity_dir / "tokenizers" / name))
    encoder = PlainEncoder(tokenizer)
    texts = [text for token in encoder.control_tokens for text in around(token)]
    unknown = {tokenizer.unk_token_id}
    assert all(not (set(row) & set(encoder.control_ids)) - unknown for row in encoder(texts))
    plain = tokenizer(ORDINARY, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    assert encoder(ORDINARY) == [list(row) for row in plain]


# entry points ---------------------------------------------------------------------------------------------------------
class Spy:
    """Counts control ids in all ids that a language model reads or learns, and in those that the Q-Former reads."""

    def __init__(self, model: Blip2LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Counter[tuple[str, int]] = Counter()
        words = model.language_model.tokenizer
        unknown = {words.plain.control_tokens.get(name) for name in ("<unk>", "[UNK]")}
        self.control = words.plain.control_ids - unknown
        for name in ("prompts", "targets"):
            monkeypatch.setattr(words, name, self._watch(getattr(words, name), name, self.control))
        own = model.tokenizer.plain.control_ids
        monkeypatch.setattr(TextTokenizer, "__call__", self._watch(TextTokenizer.__call__, "Q-Former", own))

    def _watch(self, method: Any, what: str, control: frozenset[int]) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            found = method(*args, **kwargs)
            rows = found.ids.tolist() if isinstance(found, TextTokens) else found
            self.found.update((what, id_) for id_ in itertools.chain.from_iterable(rows) if id_ in control)
            return found

        return watched

    def taken(self) -> dict[tuple[str, int], int]:
        """Control ids since the last call."""
        found, self.found = dict(self.found), Counter()
        return found


def entry_points(model: Blip2LLM, text: str) -> list[Any]:
    """Everything that takes a text, with it."""
    given: dict[str, Any] = {"image": images(1)}
    short: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 1, "min_new_tokens": 0}
    example = {"text_input": [text], "text_output": [text]}
    return [
        lambda: model({**given, "text_input": text, "uniform": torch.zeros(1, 2)}),
        lambda: model({**given, "text_input": text, "text_output": text}),
        lambda: model.generate({**given, "prompt": text}, **short),
        lambda: model.generate({**given, "prompt": "read {}", "ocr_tokens": [[text, "x"]]}, **short),
        lambda: model.generate({**given, "prompt": "x", "few_shot_samples": example}, **short),
        lambda: model.predict_answers({**given, "text_input": [text]}, max_len=3, prompt="Question: {} Answer:"),
        lambda: model.predict_answers({**given, "text_input": [text]}, max_len=3),
        lambda: model.predict_answers({**given, "text_input": ["x"], "choices": [[text, "x"]]}, prompt="{} {}"),
        lambda: model.predict_answers({**given, "text_input": ["x"], "ocr_tokens": [[text]]}, prompt="{} {}",
                                      inference_method="rank", answer_list=[f"{text}a", "x"]),
        lambda: model.predict_class({**given, "prompt": text}, [f"{text}a", "x"]),
        lambda: model.score_candidates({**given, "prompt": "{}", "text_input": [text], "context": [text],
                                        "history": [text], "caption": [text]}, [[f"{text}a", "x"]]),
    ]


MODELS = {"opt": ("opt", OPT, False), "t5": ("t5", T5_INSTRUCT, True), "llama": ("llama", VICUNA, False),
          "bart": ("bart", T5, True)}


@pytest.mark.parametrize(("arch", "kind"), [
    *(("opt", kind) for kind in ("opt", "qwen2", "gemma", "phi", "llama", "words", "mini opt")), ("t5", "t5"),
    ("t5", "mini t5"), ("t5", "byt5"), ("bart", "words"), ("llama", "llama"), ("llama", "gemma")])
def test_every_entry_point(arch: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text with a control token brings as many control ids as one with "x" in its place."""
    model = model_of(*MODELS[arch])
    tokenizer = TOKENIZERS[kind]()
    family = {"opt": "gpt2", "llama": "vicuna"}.get(arch, arch)
    if family == "vicuna" and "</s>" not in control_tokens(tokenizer):
        family = "llama"
    model.language_model.tokenizer = LanguageTokenizer(tokenizer, FAMILIES[family], arch in ("t5", "bart"))
    model.tokenizer = TextTokenizer("mini", 20)
    control = model.language_model.tokenizer.plain.control_tokens
    model.language_model.model.resize_token_embeddings(max(300, len(tokenizer) + 1))
    model.qformer.embeddings.word_embeddings = torch.nn.Embedding(1100, 32)
    spy = Spy(model, monkeypatch)
    with torch.no_grad():
        plain = []
        for call in entry_points(model, "a x dog"):
            call()
            plain.append(spy.taken())
        assert any(plain) or kind == "words", "the prompts' own control tokens are seen"
        for name in (*list(control)[:2], "[SEP]"):
            for number, call in enumerate(entry_points(model, f"a {name} dog")):
                call()
                assert spy.taken() == plain[number], (name, number)


def test_texts_of_the_qformer() -> None:
    tokenizer = TextTokenizer("mini", 24)
    special = [tokenizer.loaded.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]", "[DEC]", "[PAD]", "[MASK]")]
    for name in ("[CLS]", "[SEP]", "[DEC]", "[PAD]", "[MASK]"):
        [row] = tokenizer([f"a {name} dog"]).ids.tolist()
        assert row[0] == special[0] and row[-1] == special[1] and not set(row[1:-1]) & set(special)
        assert tokenizer.lengths([f"a {name} dog"]) == [len(row)]
    assert tokenizer([control_token("</s>") + "a dog"]).ids.tolist() == tokenizer(["a dog"]).ids.tolist()
    plain = tokenizer.loaded("a red dog", truncation=True, max_length=4)["input_ids"]
    assert tokenizer(["a red dog"], 4).ids.tolist() == [plain]
    left = TextTokenizer("mini", 4, "left")
    assert left(["a red dog runs"]).ids.tolist() == [left.loaded("a red dog runs", truncation=True,
                                                                 max_length=4)["input_ids"]]


# templates ------------------------------------------------------------------------------------------------------------
def test_templates_mark_control_tokens_and_texts_cannot() -> None:
    words = LanguageTokenizer(TOKENIZERS["qwen2"](), GENERAL)
    start, end = (words.loaded.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>"))
    template = control_token("<|im_start|>") + "user {}" + control_token("<|im_end|>")
    for question in ("a dog?", control_token("<|im_end|>") + "?", "<|im_end|>?"):
        [prompt] = question_prompts({"text_input": [question]}, template, 1)
        [ids] = words.prompts([prompt])
        assert ids.count(start) == ids.count(end) == 1 and ids[-1] == end
    assert words.targets([control_token("<|im_end|>")], end=False) == words.targets(["<|im_end|>"], end=False)
    assert without_control_tokens(template) == "user {}"
    with pytest.raises(ConfigError, match=r"marks the control token '<\|im_strt\|>'.*did you mean '<\|im_start\|>'"):
        words.prompts([control_token("<|im_strt|>")])


def test_instructions_of_data_sets_and_examples_likewise() -> None:
    words = LanguageTokenizer(TOKENIZERS["qwen2"](), GENERAL)
    end = words.loaded.convert_tokens_to_ids("<|im_end|>")
    marked = control_token("<|im_end|>")
    instruction = Instruction(["{} [{choices}]" + marked], draw=False)
    prompt = instruction(f"a{marked}?", None, {"choices": [marked, "x"]})
    assert prompt.endswith(marked) and words.prompts([prompt])[0].count(end) == 1
    model = SimpleNamespace(tokenizer=SimpleNamespace(encoder=False))
    examples = {"few_shot_samples": {"text_input": [f"q{marked}"], "text_output": [marked]}}
    [shown] = with_examples([f"p{marked}"], examples, model)
    assert words.prompts([shown])[0].count(end) == 1


def test_a_line_break_in_a_target_does_not_end_it_where_line_breaks_end_answers() -> None:
    words = LanguageTokenizer(TOKENIZERS["opt"](), FAMILIES["opt"])
    [row] = words.targets(["red\nblue\r\n dog"])
    assert row.count(words.end) == 1 and row[-1] == words.end
    assert words.decode([row]) == ["red blue  dog"]
    other = LanguageTokenizer(TOKENIZERS["gpt2"](), FAMILIES["gpt2"])
    assert other.decode(other.targets(["red\nblue"])) == ["red\nblue"]


def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt_before_its_answer() -> None:
    """An encoder reads its input with the end; a decoder-only model would answer behind the end of another text."""
    tokenizer = TOKENIZERS["opt"]()
    start, end = ((name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[start, end])
    [decoded] = LanguageTokenizer(tokenizer, GENERAL).prompts(["ab"])
    [encoded] = LanguageTokenizer(tokenizer, GENERAL, encoder=True).prompts(["ab"])
    assert encoded == [*decoded, end[1]] and decoded[0] == start[1] and len(decoded) == 3


def test_a_model_reads_what_its_section_marks() -> None:
    """Written in YAML between double quotes, a mark reaches the tokenizer."""
    import yaml

    prompt = yaml.safe_load(r'"\uFDD0<|user|>\uFDD1 a photo of"')
    assert prompt == control_token("<|user|>") + " a photo of"
    assert yaml.safe_load(yaml.safe_dump(prompt, allow_unicode=True)) == prompt
    words = LanguageTokenizer(TOKENIZERS["phi"](), GENERAL)
    [row] = words.prompts([prompt])
    assert row[1] == words.loaded.convert_tokens_to_ids("<|user|>")


