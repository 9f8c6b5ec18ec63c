"""What requests may hold. Fields that are not known are refused: a misspelt ``impairment`` must not go unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shapley.server.asked import Asked

MOST_PROMPTS = 256
MOST_CHOICES = 16
MOST_TOP = 20
_TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Zero = Annotated[float, Field(ge=0, le=0)]


def _prompt(value: Any) -> Any:
    """Said once, and not once for each form that it is not in."""
    several = value if isinstance(value, list) else [value]
    ids = isinstance(value, list) and all(type(token) is int for token in value)
    forms = ids or all(isinstance(one, str) for one in several) or all(_token_ids(one) for one in several)
    if not several or not forms or (len(several) > MOST_PROMPTS and not ids):
        raise ValueError(f"expected text, a list of token ids, or a list of up to {MOST_PROMPTS} of either")
    return value


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _stop(value: Any) -> Any:
    several = value if isinstance(value, list) else [value]
    if value is not None and (
        len(several) > 4 or not all(isinstance(one, str) and 0 < len(one) <= 256 for one in several)
    ):
        raise ValueError("expected up to 4 texts of 1 to 256 characters")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    include_usage: bool = False


class _Sampling(_Strict):
    """What completions and chat have in common."""

    model: Annotated[str, Field(max_length=512, description="NAME, or NAME@KIND:STRENGTH[,cluster=NAME][,site=SITE]")]
    impairment: Asked | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[_Stop | Annotated[list[_Stop], Field(max_length=4)] | None, BeforeValidator(_stop)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    frequency_penalty: _Zero = 0.0
    presence_penalty: _Zero = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(_Sampling):
    """``POST /v1/completions``."""

    prompt: Annotated[
        str
        | Annotated[list[_TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Annotated[list[_TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)],
        BeforeValidator(_prompt),
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool = False
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or more."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("Sequence[str | list[int]]", self.prompt)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Annotated[str, Field(max_length=64)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class TokenizeRequest(_Strict):
    """``POST /tokenize``."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class DetokenizeRequest(_Strict):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: list[_TokenId]
