"""``POST /v1/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request

from shapley.server.errors import ApiError
from shapley.server.schema import CompletionRequest
from shapley.server.sequence import Running, Scored
from shapley.server.service import Part, Service, Ticket

ROUTE = "completions"


async def prepare(service: Service, body: CompletionRequest, request: Request) -> Ticket:
    """Check a request and let it in; one sequence for every prompt and choice, the choices of a prompt together."""
    key = service.authorise(request)
    asked = service.asked(body.model, body.impairment, request)
    stack = service.stack(asked, key)
    if body.logprobs is not None and not key.policy.logprobs:
        raise ApiError(
            403, "this key does not give out log-probabilities", param="logprobs", code="logprobs_not_allowed"
        )
    max_new = 16 if body.max_tokens is None else body.max_tokens
    if max_new > service.settings.max_new:
        raise ApiError(
            400, f"max_tokens is at most {service.settings.max_new}", param="max_tokens", code="invalid_value"
        )
    rows = []
    for i, ids in enumerate(await service.tokens_of(body.prompts)):
        service.check_prompt(ids, max_new)
        for choice in range(body.n):
            rows.append(
                service.row(
                    ids, stack, max_new, temperature=body.temperature, top_p=body.top_p, stop=body.stops,
                    seed=None if body.seed is None else (body.seed % 2**64, i, choice),
                    n_top=body.logprobs, score_prompt=body.echo and body.logprobs is not None,
                )
            )  # fmt: skip
    return await service.admit(ROUTE, key, asked, rows, stack)


async def answer(service: Service, body: CompletionRequest, ticket: Ticket, request: Request) -> dict[str, Any]:
    """The whole response."""
    async for _ in service.parts(ticket, request):
        pass
    choices = [
        {
            "index": i,
            "text": (_prompt_text(service, row) if body.echo else "") + row.stream.text,
            "finish_reason": row.reason,
            "logprobs": None
            if body.logprobs is None
            else _logprobs(service, [*row.prompt_scores, *row.new], body.logprobs),
        }
        for i, row in enumerate(ticket.rows)
    ]
    return {**head(body.model, ticket), "choices": choices, "usage": usage(ticket.rows)}


async def chunks(
    service: Service, body: CompletionRequest, ticket: Ticket, request: Request
) -> AsyncIterator[dict[str, Any]]:
    """The response's events."""
    sent, offsets = [0] * len(ticket.rows), [0] * len(ticket.rows)
    if body.echo:
        for i, row in enumerate(ticket.rows):
            text = _prompt_text(service, row)
            yield _chunk(service, body, ticket, Part(i, text, None, 0), [], 0)
            offsets[i] = len(text)
    async for part in service.parts(ticket, request):
        scored = ticket.rows[part.index].new[sent[part.index] : part.tokens]
        sent[part.index] = part.tokens
        yield _chunk(service, body, ticket, part, scored, offsets[part.index])
        offsets[part.index] += sum(len(token_text(service, one.token)) for one in scored)
    if body.stream_options and body.stream_options.include_usage:
        yield {**head(body.model, ticket), "choices": [], "usage": usage(ticket.rows)}


def _chunk(
    service: Service, body: CompletionRequest, ticket: Ticket, part: Part, scored: Sequence[Scored], start: int
) -> dict[str, Any]:
    choice = {
        "index": part.index,
        "text": part.text,
        "finish_reason": part.reason,
        "logprobs": None if body.logprobs is None else _logprobs(service, scored, body.logprobs, start),
    }
    return {**head(body.model, ticket), "choices": [choice]}


def head(model: str, ticket: Ticket, what: str = "text_completion") -> dict[str, Any]:
    """What every response and event begins with; ``impairment`` is what was applied."""
    return {
        "id": ticket.id,
        "object": what,
        "created": int(time.time()),
        "model": model,
        "impairment": ticket.applied,
    }


def usage(rows: Sequence[Running]) -> dict[str, int]:
    """Tokens."""
    read, written = sum(len(row.ids) for row in rows), sum(len(row.new) for row in rows)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _prompt_text(service: Service, row: Running) -> str:
    text: str = service.lm.tokenizer.decode(row.ids, clean_up_tokenization_spaces=False)
    return text


def _logprobs(service: Service, scored: Sequence[Scored], n_top: int, start: int = 0) -> dict[str, Any]:
    """Token by token; ``start`` characters came before. Where two of the likeliest tokens read alike, the likelier stands for
    both."""
    texts = [token_text(service, one.token) for one in scored]
    offsets = [start]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [_top(service, one, text) for one, text in zip(scored, texts, strict=True)] if n_top else None,
        "text_offset": offsets[:-1],
    }


def _top(service: Service, one: Scored, text: str) -> dict[str, float] | None:
    """By text, log-probabilities; the token's own too, as OpenAI's have it."""
    if one.logprob is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in one.top:
        found.setdefault(token_text(service, token), logprob)  # the likeliest comes first
    found.setdefault(text, one.logprob)
    return found


def token_text(service: Service, token: int) -> str:
    """A token by itself."""
    text: str = service.lm.tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text
