"""The routes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shapley import __version__
from shapley.errors import ShapleyError
from shapley.server import chat, completions
from shapley.server.errors import ApiError, on_crash, on_http_error, on_invalid, on_stopped, unavailable
from shapley.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from shapley.server.service import APPLIED, Service, Ticket


def application(service: Service) -> FastAPI:
    """The app of a service; the engine runs while the app does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="Impairment as a service",
        version=__version__,
        lifespan=lifespan,
        description="An OpenAI-compatible API of a model that can be impaired by degrees.",
    )

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        await service.refused(request, error)
        return error.response()

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(ShapleyError, on_stopped)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_crash)
    app.add_middleware(Counted, service=service)
    app.add_middleware(BodyLimit, most=service.settings.max_body)
    _models(app, service)
    _generation(app, service)
    _tokens(app, service)
    _operation(app, service)
    return app


def _generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", responses=_ERRORS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Complete prompts, or score them (``echo`` with ``logprobs``)."""
        ticket = await completions.prepare(service, body, request)
        if body.stream:
            return _events(completions.chunks(service, body, ticket, request), ticket)
        return _whole(await completions.answer(service, body, ticket, request), ticket)

    @app.post("/v1/chat/completions", responses=_ERRORS)
    async def converse(body: ChatRequest, request: Request) -> Response:
        """Answer messages, through the model's chat template."""
        ticket = await chat.prepare(service, body, request)
        if body.stream:
            return _events(chat.chunks(service, body, ticket, request), ticket)
        return _whole(await chat.answer(service, body, ticket, request), ticket)


def _models(app: FastAPI, service: Service) -> None:
    card = {"id": service.settings.name, "object": "model", "created": 0, "owned_by": "operator"}

    @app.get("/v1/models", responses=_ERRORS)
    def models(request: Request) -> dict[str, Any]:
        """The model that is served."""
        service.authorise(request)
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    def model(name: str, request: Request) -> dict[str, Any]:
        """The model, by its name."""
        service.authorise(request)
        service.asked(name, None, request)
        return card


def _tokens(app: FastAPI, service: Service) -> None:
    tokenizer = service.lm.tokenizer

    @app.get("/tokenizer_info", responses=_ERRORS)
    def tokenizer_info(request: Request) -> dict[str, Any]:
        """What clients that tokenise for themselves need to know."""
        service.authorise(request)
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        return {name: getattr(tokenizer, name, None) for name in names}

    @app.post("/tokenize", responses=_ERRORS)
    def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
        """Token ids of a text."""
        service.take(service.authorise(request), 0)
        ids = service.encode(body.prompt, body.add_special_tokens)
        return {"tokens": ids, "count": len(ids), "max_model_len": service.context}

    @app.post("/detokenize", responses=_ERRORS)
    def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
        """The text of token ids."""
        service.take(service.authorise(request), 0)
        if body.tokens and max(body.tokens) >= service.vocabulary:
            raise ApiError(400, f"token ids must be below {service.vocabulary}", param="tokens", code="invalid_token")
        return {"prompt": tokenizer.decode(body.tokens, clean_up_tokenization_spaces=False)}


def _operation(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    def health() -> JSONResponse:
        """Whether it runs, and how much waits; without a key."""
        load, status = service.engine.load, "ok" if service.audit.writable else "the audit log cannot be written"
        return JSONResponse(
            {"status": status, "running": load.running, "waiting": load.waiting}, 200 if status == "ok" else 503
        )

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        """For Prometheus; without a key."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _whole(content: dict[str, Any], ticket: Ticket) -> JSONResponse:
    return JSONResponse(content, headers=_applied(ticket))


def _events(parts: AsyncIterator[dict[str, Any]], ticket: Ticket) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        try:
            async for part in parts:
                yield f"data: {json.dumps(part)}\n\n"
            yield "data: [DONE]\n\n"
        except (ApiError, ShapleyError) as error:  # too late for a status
            told = error if isinstance(error, ApiError) else unavailable(error)
            yield f"data: {json.dumps({'error': told.body()})}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_applied(ticket))


def _applied(ticket: Ticket) -> dict[str, str]:
    return {APPLIED: "; ".join(layer.asked.text() for layer in ticket.stack) or "none"}


_ERROR: dict[str, Any] = {
    "description": "An error in OpenAI's form.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(("4XX", "5XX", 422), _ERROR)


class BodyLimit:
    """Refuses bodies of more than ``most`` bytes, whether their length is announced or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = ApiError(413, f"the body is larger than {self.most} bytes", code="body_too_large")
        if announced.isdigit() and int(announced) > self.most:
            return await too_large.response()(scope, receive, send)
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            # The app is told that the body ended, and what it answers to that is dropped.
            return message if seen <= self.most else {"type": "http.request", "body": b"", "more_body": False}

        async def unless_too_large(message: Message) -> None:
            if seen <= self.most:
                await send(message)

        await self.app(scope, limited, unless_too_large)
        if seen > self.most:
            await too_large.response()(scope, receive, send)
        return None


class Counted:
    """Counts requests by route and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self.service.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        return await self.app(scope, receive, counted)
