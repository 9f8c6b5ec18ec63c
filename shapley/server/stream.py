"""From tokens to text as they come: characters of several tokens are waited for, and stop sequences are cut out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "�"
_CONTEXT = 6  # tokens before the new ones: what a token reads as depends on its neighbours


class TextStream:
    """The text of a growing list of tokens.

    Args:
        tokenizer: a Hugging Face one.
        stop: the text ends before the first of these.

    Attributes:
        text: that may be given out so far.
        stopped: whether a stop sequence was reached.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._read = 0  # tokens whose text is in _whole
        self._whole = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What a token adds to ``text``: nothing while it may be a part of a character or of a stop sequence."""
        self._ids.append(token)
        self._whole += self._new()
        return self._release(held=self._held())

    def finish(self) -> str:
        """What was held back and is given out now that no token comes."""
        if not self.stopped:
            self._whole += self._new(final=True)
        return self._release(held=0)

    def _new(self, final: bool = False) -> str:
        start = max(0, self._read - _CONTEXT)
        before = self._decode(self._ids[start : self._read])
        after = self._decode(self._ids[start:])
        if after.endswith(_BROKEN) and not final:
            return ""
        self._read = len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _held(self) -> int:
        """Characters at the end that may begin a stop sequence."""
        longest = max(map(len, self._stop), default=1) - 1
        for n in range(min(longest, len(self._whole)), 0, -1):
            if any(stop.startswith(self._whole[-n:]) for stop in self._stop):
                return n
        return 0

    def _release(self, held: int) -> str:
        if self.stopped:
            return ""
        places = [place for stop in self._stop if (place := self._whole.find(stop)) >= 0]
        if places:
            self.stopped = True
        end = min(places) if places else len(self._whole) - held
        new = self._whole[len(self.text) : end]
        self.text += new
        return new
