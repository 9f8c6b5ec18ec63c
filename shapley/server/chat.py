"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from jinja2 import TemplateError
from starlette.requests import Request

from shapley.server.completions import head, token_text, usage
from shapley.server.errors import ApiError
from shapley.server.schema import ChatRequest
from shapley.server.sequence import Scored
from shapley.server.service import Service, Ticket

ROUTE = "chat"


async def prepare(service: Service, body: ChatRequest, request: Request) -> Ticket:
    """Check a request and let it in: its messages through the model's chat template, a sequence for every choice."""
    key = service.authorise(request)
    asked = service.asked(body.model, body.impairment, request)
    stack = service.stack(asked, key)
    if (body.logprobs or body.top_logprobs) and not key.policy.logprobs:
        raise ApiError(
            403, "this key does not give out log-probabilities", param="logprobs", code="logprobs_not_allowed"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs goes with logprobs: true", param="top_logprobs", code="invalid_value")
    ids = await asyncio.to_thread(_template, service, body)
    asked_for = body.max_completion_tokens or body.max_tokens
    if asked_for is not None and asked_for > service.settings.max_new:
        raise ApiError(
            400, f"max_tokens is at most {service.settings.max_new}", param="max_tokens", code="invalid_value"
        )
    max_new = asked_for or max(1, min(service.settings.max_new, service.context - len(ids)))
    service.check_prompt(ids, max_new)
    rows = [
        service.row(
            ids, stack, max_new, temperature=body.temperature, top_p=body.top_p, stop=body.stops,
            seed=None if body.seed is None else (body.seed % 2**64, 0, choice),
            n_top=(body.top_logprobs or 0) if body.logprobs else None,
        )
        for choice in range(body.n)
    ]  # fmt: skip
    return await service.admit(ROUTE, key, asked, rows, stack)


async def answer(service: Service, body: ChatRequest, ticket: Ticket, request: Request) -> dict[str, Any]:
    """The whole response."""
    async for _ in service.parts(ticket, request):
        pass
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": row.stream.text, "refusal": None},
            "finish_reason": row.reason,
            "logprobs": _logprobs(service, row.new) if body.logprobs else None,
        }
        for i, row in enumerate(ticket.rows)
    ]
    return {**head(body.model, ticket, "chat.completion"), "choices": choices, "usage": usage(ticket.rows)}


async def chunks(
    service: Service, body: ChatRequest, ticket: Ticket, request: Request
) -> AsyncIterator[dict[str, Any]]:
    """The response's events: roles, then text as it comes."""

    def chunk(i: int, delta: dict[str, str], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": i, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**head(body.model, ticket, "chat.completion.chunk"), "choices": [choice]}

    for i in range(len(ticket.rows)):
        yield chunk(i, {"role": "assistant", "content": ""})
    sent = [0] * len(ticket.rows)
    async for part in service.parts(ticket, request):
        scored = ticket.rows[part.index].new[sent[part.index] : part.tokens]
        sent[part.index] = part.tokens
        delta = {"content": part.text} if part.text else {}
        yield chunk(part.index, delta, part.reason, _logprobs(service, scored) if body.logprobs else None)
    if body.stream_options and body.stream_options.include_usage:
        yield {**head(body.model, ticket, "chat.completion.chunk"), "choices": [], "usage": usage(ticket.rows)}


def _template(service: Service, body: ChatRequest) -> list[int]:
    """Token ids of the messages."""
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    try:
        text = service.lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError):
        raise ApiError(
            400, "the model has no chat template, or it does not take these messages: use /v1/completions",
            param="messages", code="chat_template",
        ) from None  # fmt: skip
    return service.encode(text, special=False)


def _logprobs(service: Service, scored: Sequence[Scored]) -> dict[str, Any]:
    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(service, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {**one(own.token, own.logprob), "top_logprobs": [one(token, logprob) for token, logprob in own.top]}
        for own in scored
    ]
    return {"content": content, "refusal": None}
