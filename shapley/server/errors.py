"""Errors as OpenAI's API has them: a status, and ``{"error": {"message", "type", "param", "code"}}``. No text of an exception
that is not ours goes out."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

log = logging.getLogger(__name__)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


_IN_WORDS = {
    "extra_forbidden": "this server knows no such field (see /docs)",
    "json_invalid": "the body is not JSON",
    "model_attributes_type": "the body must be a JSON object, with Content-Type: application/json",
    "none_required": "this server does not know this field's function: leave it out",
}


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        message: a sentence that names the thing, what was expected and what to do.
        param: the field that is wrong.
        code: for programs.
        retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.body()}, self.status, headers=self.headers)

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that does not fit the schema: the first field that is wrong, without its value."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    where = ".".join(str(part)[:64] for part in found["loc"] if part != "body")
    message = _IN_WORDS.get(found["type"]) or str(found["msg"]).removeprefix("Value error, ")
    return ApiError(
        400, f"{where}: {message}" if where else message, param=where or None, code="invalid_value"
    ).response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Unknown routes and methods."""
    assert isinstance(error, HTTPException)
    response = ApiError(error.status_code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


def unavailable(error: Exception) -> ApiError:
    """The audit log or the key file cannot be used: nothing is answered until it can. The server's log says why."""
    log.error("%s", error)
    return ApiError(503, "the server cannot answer now: tell its operator", code="unavailable", retry_after=60)


async def on_stopped(request: Request, error: Exception) -> JSONResponse:
    return unavailable(error).response()


async def on_crash(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours: nothing of it goes out; the log has it."""
    return ApiError(500, "the server failed to answer; try again, and tell its operator if it persists").response()
