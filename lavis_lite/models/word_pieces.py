"""A BERT-like tokenizer from its one file, without transformers: the import of that takes longer than reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class WordPieces:
    """What reading and writing text needs of transformers' tokenizer of the same file, under the same names.

    Args:
        file: tokenizer.json with the tokens [PAD], [CLS] and [SEP].
        begin: the special token that is added, for text that is generated.
    """

    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()  # all are added tokens

    def __init__(self, file: Path, begin: str) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(file))
        self.backend_tokenizer.add_special_tokens([begin])
        self.backend_tokenizer.encode_special_tokens = True  # special tokens in a text are split like other words
        self.pad_token_id, self.bos_token_id, self.sep_token_id = (
            self.backend_tokenizer.token_to_id(token) for token in ("[PAD]", begin, "[SEP]"))

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
        """Ids of a text, or of each of several: {"input_ids": ...}; special tokens in it are always split."""
        found = self.backend_tokenizer.encode_batch([text] if isinstance(text, str) else list(text),
                                                    add_special_tokens=add_special_tokens)
        return {"input_ids": found[0].ids if isinstance(text, str) else [row.ids for row in found]}

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> token, of those beside the words."""
        found: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def decode(self, row: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Ids to text."""
        return str(self.backend_tokenizer.decode(list(row), skip_special_tokens=skip_special_tokens))
