"""Requests to an OpenAI-compatible API that takes an impairment, and says which it applied."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shapley.assess.levels import Applied, Level, read_applied
from shapley.errors import ShapleyError

try:
    import httpx
except ModuleNotFoundError:
    raise ShapleyError("shapley assess needs httpx: pip install 'neuron-shapley[server]'") from None

Messages = Sequence[Mapping[str, str]]
_TRIES = 7
_LONGEST_WAIT = 300.0  # seconds
_SHOWN = 300  # characters of a message that is somebody else's text


class Forbidden(Exception):
    """The operator does not allow this level: HTTP 403."""


@dataclass(frozen=True)
class Reply:
    """What the model said, and under which impairment."""

    text: str
    applied: Applied


@dataclass(frozen=True)
class Likelihoods:
    """``[choices]`` log-probabilities in nats, and under which impairment."""

    logprobs: list[float]
    applied: Applied


def read_key(file: Path | None, variable: str) -> str | None:
    """The API key: from the file, or else from the environment variable.

    Raises:
        ShapleyError: the file cannot be read, or there is something in it, or in the variable, that is no key.
    """
    if file is None:
        key, where = os.environ.get(variable), f"the environment variable {variable}"
    else:
        where = f"the key file {file}"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ShapleyError(f"cannot read {where}") from None
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise ShapleyError(f"{where} has no key: expected a line of ASCII characters")
    return key


class Client:
    """Requests of one model at one endpoint; greedy (temperature 0). May be used from several threads.

    Args:
        endpoint: the API's base, ``https://host`` or ``https://host/v1``.
        key: sent in the ``Authorization`` header, and kept nowhere else.
        timeout: seconds that a reply may take.
        say: is told when a request is tried again.
        transport, sleep: for tests.

    Raises:
        ShapleyError: an address that is none, or has a password in it, which would end up in the journal.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        key: str | None = None,
        timeout: float = 120.0,
        say: Callable[[str], None] = lambda line: None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base, self.model, self.key = base_address(endpoint), model, key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)
        self._say, self._sleep = say, sleep

    def applied(self, level: Level) -> Applied:
        """Ask for one token, to learn what is applied at a level.

        Raises:
            Forbidden: the operator does not allow it.
            ShapleyError: as ``generate``.
        """
        return self._completion({"prompt": "The", "max_tokens": 1}, level)[1]

    def generate(self, question: str | Messages, level: Level, max_tokens: int) -> Reply:
        """A completion of a prompt, or a reply to messages.

        Raises:
            Forbidden: the operator does not allow the level.
            ShapleyError: the endpoint cannot be reached, refuses, or does not answer in OpenAI's form or with what it applied.
        """
        if isinstance(question, str):
            choice, applied = self._completion({"prompt": question, "max_tokens": max_tokens}, level)
            return Reply(_text(choice.get("text")), applied)
        body = {"messages": list(question), "max_tokens": max_tokens}
        choices, applied = self._post("chat/completions", body, level)
        message = choices[0].get("message")
        return Reply(_text(message.get("content") if isinstance(message, dict) else None), applied)

    def loglikelihoods(self, prompt: str, continuations: Sequence[str], level: Level) -> Likelihoods:
        """log P(prompt and continuation), by echo: a completion of the two together gives their own log-probabilities.

        log P(continuation | prompt) but for a constant, so that they can be compared, wherever tokens meet the prompt's end.

        Raises:
            Forbidden, ShapleyError: as ``generate``; also where the endpoint gives no log-probabilities.
        """
        texts = [prompt + continuation for continuation in continuations]
        body = {"prompt": texts, "max_tokens": 1, "echo": True, "logprobs": 1}
        choices, applied = self._post("completions", body, level)
        if len(choices) != len(texts):
            raise ShapleyError(f"the endpoint gave {len(choices)} completions of {len(texts)} prompts")
        choices = sorted(choices, key=lambda choice: choice.get("index", 0))
        return Likelihoods([_logprob(choice) for choice in choices], applied)

    def _completion(self, body: dict[str, Any], level: Level) -> tuple[dict[str, Any], Applied]:
        choices, applied = self._post("completions", body, level)
        return choices[0], applied

    def _post(self, route: str, body: dict[str, Any], level: Level) -> tuple[list[dict[str, Any]], Applied]:
        asked = {"model": self.model, "temperature": 0, "seed": 0, "impairment": level.body(), **body}
        reply = self._send(f"{self.base}/{route}", asked)
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
            raise ShapleyError(f"{self.base}/{route} does not answer in OpenAI's form: no choices")
        if "impairment" not in reply:
            raise ShapleyError(
                f"{self.base} does not say which impairment it applied, and may have ignored it: "
                "an endpoint must return the field 'impairment'"
            )
        return choices, read_applied(reply["impairment"])

    def _send(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """With retries of what may pass: no connection, 429, 5xx."""
        problem = ""
        for again in range(_TRIES):
            wait = min(2.0**again, 60.0)
            try:
                response = self._http.post(url, json=body)
            except httpx.TransportError as error:
                problem = f"cannot be reached ({type(error).__name__})"
            except (httpx.HTTPError, httpx.InvalidURL):
                raise ShapleyError(f"{url}: no request can be made of this address") from None
            else:
                if response.status_code == 200:
                    return _json(response, url)
                problem = f"answers {response.status_code}: {_message(response)}"
                if response.status_code == 403:
                    raise Forbidden(_message(response))
                if response.status_code == 401:
                    raise ShapleyError(f"{url} does not accept the key: {_message(response)}")
                if response.status_code != 429 and response.status_code < 500:
                    raise ShapleyError(f"{url} {problem}")
                wait = _retry_after(response, wait)
            if again + 1 < _TRIES:
                wait = min(wait, _LONGEST_WAIT)
                self._say(f"{url} {problem}; trying again in {wait:g} s")
                self._sleep(wait)
        raise ShapleyError(f"{url} {problem}; tried {_TRIES} times. What was asked is stored: go on with --resume")


def base_address(endpoint: str) -> str:
    """``https://host/v1``, from that or from ``https://host``.

    Raises:
        ShapleyError: not such an address, or with a user or a query in it.
    """
    try:
        parts = urlsplit(endpoint)
        parts.port  # noqa: B018  (raises for a port that is none)
    except ValueError:
        raise ShapleyError(f"endpoint: expected an address such as https://host:8000/v1, not {endpoint!r}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ShapleyError(f"endpoint: expected an address such as https://host:8000/v1, not {endpoint!r}")
    if "@" in parts.netloc:
        raise ShapleyError(
            "endpoint: leave user and password out of the address; keys go into --key-file or the environment"
        )
    base = endpoint.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def _json(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ShapleyError(f"{url} does not answer in JSON: is it the API's address?")
    return body


def _message(response: httpx.Response) -> str:
    """From {"error": {"message": …}}, or what is there instead."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(text.split())[:_SHOWN] or "no message"


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds; the header's other form, a date, is not used by the APIs that this speaks to."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return otherwise
    return seconds if math.isfinite(seconds) and seconds >= 0 else otherwise


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ShapleyError("the endpoint's reply has no text where OpenAI's form has it")
    return value


def _logprob(choice: dict[str, Any]) -> float:
    """The sum over the tokens that were sent: the first has none before it and no log-probability, the last was generated."""
    try:
        values = choice["logprobs"]["token_logprobs"][1:-1]
        if values:
            return math.fsum(values)
    except (KeyError, TypeError):
        pass
    raise ShapleyError("the endpoint gives no log-probabilities of prompts (echo, logprobs), which 'choice' needs")
