"""What every request goes through: its key, its impairment, its limits, the audit log, the engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from anyio import CancelScope
from starlette.requests import Request

from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.footprint import footprint
from shapley.hf.load import LanguageModel, describe
from shapley.impairment import SITES
from shapley.server.asked import Asked, parse
from shapley.server.audit import AuditLog
from shapley.server.engine import Engine
from shapley.server.errors import ApiError
from shapley.server.keys import Key, KeyFile, secret_of
from shapley.server.limits import Limits
from shapley.server.metrics import Metrics
from shapley.server.policy import NoCluster, Policy, Refused, Stack, resolve
from shapley.server.sampling import Sampler
from shapley.server.sequence import Reason, Running
from shapley.server.settings import Settings
from shapley.server.stream import TextStream

_OPEN = "open"  # the key's id where none is needed
HEADER = "X-Impairment"
APPLIED = "X-Impairment-Applied"


@dataclass
class Ticket:
    """A request that was let in."""

    id: str
    route: str
    key: Key
    stack: Stack
    tokens: int
    started: float
    rows: list[Running] = field(default_factory=list)

    @property
    def applied(self) -> list[dict[str, Any]]:
        """For the response, in the order in which they act."""
        return [layer.asked.model_dump() for layer in self.stack]


@dataclass(frozen=True)
class Part:
    """What is new of a sequence: its number, text, why it ended if it did, and how many tokens it has by then."""

    index: int
    text: str
    reason: Reason | None
    tokens: int


class Service:
    """A served model.

    Raises:
        ShapleyError: a cluster of another model, a folder that cannot be written, or a damaged key file.
    """

    def __init__(self, lm: LanguageModel, settings: Settings) -> None:
        self.lm = lm
        self.settings = settings
        self.keys = KeyFile(settings.folder)
        self.secret = secret_of(settings.folder)
        self.audit = AuditLog(settings.folder / "audit.jsonl")
        self.limits = Limits()
        self.clusters = _clusters(lm, settings)
        self._check_floors()
        self.engine = Engine(
            lm, self.clusters, max_rows=settings.max_rows, failed=lambda error: self.metrics.failures.inc()
        )
        self.metrics = Metrics(self.engine)
        self.vocabulary = lm.model.get_input_embeddings().weight.shape[0]
        context = lm.most_tokens or 2048
        self.context = min(int(context), settings.max_prompt + settings.max_new)
        self.ends = _end_tokens(lm)

    def start(self) -> None:
        for site in SITES:  # at the first start half a minute each, then from the cache: no client should wait for them
            self.lm.statistics(site)  # type: ignore[arg-type]
        self.audit.write("start", model=self.settings.name, fingerprint=self.lm.fingerprint)
        self.engine.start()

    def close(self) -> None:
        self.engine.close()
        self.audit.write("stop")
        self.audit.close()

    def authorise(self, request: Request) -> Key:
        """The request's key.

        Raises:
            ApiError: 401, none, or one that is not known or was revoked.
        """
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        key = self.keys.find(text.strip()) if scheme.lower() == "bearer" else None
        if key is None and self.settings.open_policy is not None:
            key = Key(id=_OPEN, organisation=_OPEN, sha256="", created="", policy=self.settings.open_policy)
        if key is not None:
            request.state.key = key
            return key
        message = "this key is not known, or was revoked" if text else "a key is needed: Authorization: Bearer KEY"
        raise ApiError(401, message, code="invalid_api_key")

    async def refused(self, request: Request, error: ApiError) -> None:
        """A line in the audit log where a known key asked for what it may not have."""
        key: Key | None = getattr(request.state, "key", None)
        if key is not None and error.status in (403, 429):
            route = request.url.path
            await asyncio.to_thread(
                self.audit.write,
                "refused",
                key=key.id,
                organisation=key.organisation,
                route=route,
                message=error.message,
            )

    def asked(self, model: str, body: Asked | None, request: Request) -> Asked | None:
        """The impairment that a request names: in its body, a header, the query or the model's name.

        Raises:
            ApiError: 404, another model; 400, not an impairment, or several that differ.
        """
        name, at, suffix = model.partition("@")
        if name != self.settings.name:
            raise ApiError(
                404, f"no such model: this server has {self.settings.name!r}", param="model", code="model_not_found"
            )
        if set(request.query_params) - {"impairment"}:
            raise ApiError(400, "of the query only impairment is known", param="query", code="invalid_value")
        texts = [("model", suffix)] if at else []
        texts += [(HEADER, text) for text in request.headers.getlist(HEADER)]
        texts += [("query", text) for text in request.query_params.getlist("impairment")]
        found = [] if body is None else [("body", body)]
        for where, text in texts:
            try:
                found.append((where, parse(text)))
            except ValueError as error:
                message = f"impairment in the {where}: {error}"
                raise ApiError(400, message, param=where, code="invalid_impairment") from None
        if len({asked for _, asked in found}) > 1:
            named = " and ".join(where for where, _ in found)
            raise ApiError(400, f"{named} name different impairments: give one", code="invalid_impairment")
        return found[0][1] if found else None

    def stack(self, asked: Asked | None, key: Key) -> Stack:
        """What is applied.

        Raises:
            ApiError: 403 where the key's policy does not allow it, 404 for a cluster that is not registered, 503 for a key
                whose floor this server cannot apply: a key may be made while it runs.
        """
        try:
            stack = resolve(asked, key.policy, key.organisation, self.secret, self.clusters)
        except NoCluster as unknown:
            raise ApiError(404, str(unknown), param="impairment", code="cluster_not_found") from None
        except Refused as refused:
            raise ApiError(403, str(refused), param="impairment", code="impairment_not_allowed") from None
        if self._unservable(key.policy):
            raise ApiError(
                503, "this key's floor cannot be applied here: tell the server's operator", code="floor_not_served"
            )
        return stack

    async def tokens_of(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Token ids of prompts; in a thread, as a long text takes a while and others wait."""
        return await asyncio.to_thread(lambda: [self.encode(one) if isinstance(one, str) else one for one in prompts])

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids, with the tokenizer's own special tokens or without. Raises ApiError 400 for half of a character."""
        try:
            ids: list[int] = self.lm.tokenizer(text, add_special_tokens=special)["input_ids"]
        except (TypeError, UnicodeError):
            message = "a text has half of a character (a lone surrogate)"
            raise ApiError(400, message, param="prompt", code="invalid_text") from None
        return ids

    def check_prompt(self, ids: Sequence[int], max_new: int) -> None:
        """Raises ApiError 400 for a prompt that the model cannot take."""
        if not ids:
            raise ApiError(400, "a prompt is empty: give it at least one token", param="prompt", code="empty_prompt")
        if max(ids) >= self.vocabulary:
            raise ApiError(400, f"token ids must be below {self.vocabulary}", param="prompt", code="invalid_token")
        if len(ids) > self.settings.max_prompt or len(ids) + max_new > self.context:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens and {max_new} are to be generated: at most {self.settings.max_prompt} and, "
                f"together, {self.context} are served",
                param="prompt",
                code="context_length_exceeded",
            )

    def row(self, ids: Sequence[int], stack: Stack, max_new: int, **options: Any) -> Running:
        """A sequence for the engine; options: ``temperature``, ``top_p``, ``seed``, ``stop``, and those of ``Running``."""
        sampler = Sampler(options.pop("temperature"), options.pop("top_p"), options.pop("seed"))
        stream = TextStream(self.lm.tokenizer, options.pop("stop"))
        return Running(ids, stack, max_new, sampler, stream, ends=self.ends, **options)

    def take(self, key: Key, tokens: int) -> None:
        """A request of so many tokens off what the key has left.

        Raises:
            ApiError: 429 where it has not enough.
        """
        wait = self.limits.take(key, tokens)
        if wait == float("inf"):
            raise ApiError(
                429,
                f"the request has {tokens} tokens, the key allows {key.policy.tokens_per_minute} a minute: make it smaller",
                code="request_too_large",
            )
        if wait:
            raise ApiError(
                429, "too many requests or tokens a minute for this key", code="rate_limit_exceeded", retry_after=wait
            )

    async def admit(self, route: str, key: Key, asked: Asked | None, rows: list[Running], stack: Stack) -> Ticket:
        """Let a request in: it is in the audit log, on the disk, before anything of it is run.

        Raises:
            ApiError: 429 beyond the key's limits, 503 with too many waiting.
        """
        tokens = sum(len(row.ids) + row.max_new for row in rows)
        if self.engine.load.waiting + len(rows) > self.settings.max_waiting:
            raise ApiError(503, "too many requests are waiting; try again", code="overloaded", retry_after=5)
        self.take(key, tokens)
        ticket = Ticket(f"{route}-{secrets.token_hex(12)}", route, key, stack, tokens, time.monotonic(), rows)
        prompts = {"prompts": [self.lm.tokenizer.decode(row.ids) for row in rows]} if self.settings.log_prompts else {}
        await asyncio.to_thread(
            self.audit.write,
            "request",
            id=ticket.id,
            key=key.id,
            organisation=key.organisation,
            asked=None if asked is None else asked.model_dump(),
            applied=ticket.applied,
            sequences=len(rows),
            tokens=tokens,
            **prompts,
        )
        return ticket

    async def parts(self, ticket: Ticket, request: Request) -> AsyncIterator[Part]:
        """Run a request's sequences; yields what is new of each, as it comes. A client that goes away, and a request that takes
        too long, cancel them.

        Raises:
            ApiError: 504 at the time limit, 500 if the model failed.
        """
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Part] = asyncio.Queue()

        def teller(i: int, row: Running) -> Callable[[str], None]:
            return lambda text: _tell(loop, news, Part(i, text, row.reason, len(row.new)))

        for i, row in enumerate(ticket.rows):
            row.emit = teller(i, row)
        self.engine.submit(ticket.rows)
        status = "cancelled"
        try:
            left = len(ticket.rows)
            while left:
                part = await self._next(news, ticket, request)
                if part.reason == "error":
                    status = "failed"
                    raise ApiError(500, "the model failed on this request; tell the server's operator if it persists")
                if part.reason == "cancelled":
                    raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=10)
                left -= part.reason is not None
                yield part
            status = "done"
        finally:
            for row in ticket.rows:
                row.cancelled.set()
            # A client that went away cancels what runs for it, but not its line in the log.
            with CancelScope(shield=True):
                await self._account(ticket, status)

    async def _next(self, news: asyncio.Queue[Part], ticket: Ticket, request: Request) -> Part:
        while True:
            left = self.settings.timeout - (time.monotonic() - ticket.started)
            if left <= 0:
                raise ApiError(
                    504, f"the request took more than {self.settings.timeout:g} s: ask for fewer tokens", code="timeout"
                )
            try:
                return await asyncio.wait_for(news.get(), min(left, 1.0))
            except asyncio.TimeoutError:
                if await request.is_disconnected():
                    raise ApiError(499, "the client went away") from None

    async def _account(self, ticket: Ticket, status: str) -> None:
        read, written = sum(len(row.ids) for row in ticket.rows), sum(len(row.new) for row in ticket.rows)
        self.limits.give_back(ticket.key, ticket.tokens - read - written)
        self.metrics.tokens.labels("read").inc(read)
        self.metrics.tokens.labels("written").inc(written)
        seconds = time.monotonic() - ticket.started
        self.metrics.seconds.labels(ticket.route).observe(seconds)
        await asyncio.to_thread(
            self.audit.write, "done", id=ticket.id, status=status, read=read, written=written, seconds=round(seconds, 3)
        )

    def _check_floors(self) -> None:
        """Raises ShapleyError for a key whose policy names a cluster that is not registered."""
        policies = [(key.id, key.policy) for key in self.keys.all() if key.revoked is None]
        policies += [(_OPEN, self.settings.open_policy)] if self.settings.open_policy else []
        for name, policy in policies:
            problem = self._unservable(policy)
            if problem:
                raise ShapleyError(f"key {name} {problem}, or revoke the key")

    def _unservable(self, policy: Policy) -> str | None:
        """Why a policy cannot be served, and what to do; ``None`` if it can."""
        if any(_undone(self.lm, asked) for asked in policy.floor):
            return (
                f"has a floor that scales all neurons alike, and {self.lm.name} has a norm after the MLP, which undoes that: "
                "take noise, a cluster, or site=mlp_out"
            )
        for asked in (*policy.floor, *policy.levels):
            if asked.cluster is not None and (asked.cluster, asked.site) not in self.clusters:
                return (
                    f"has a floor or level on cluster {asked.cluster!r}, which is not registered at {asked.site}: serve with "
                    f"--cluster {asked.cluster}=FILE"
                )
        return None


def _clusters(lm: LanguageModel, settings: Settings) -> Mapping[tuple[str, str], Cluster]:
    """Each registered cluster in the columns of every site that it has some in."""
    found = {}
    for name, path in settings.clusters.items():
        cluster = Cluster.load(path)
        cluster.check_model(describe(lm), path)
        for site in SITES if cluster.site == "mlp_hidden" else (cluster.site,):
            found[name, str(site)] = footprint(lm, cluster, site)  # type: ignore[arg-type]
    return found


def _tell(loop: asyncio.AbstractEventLoop, news: asyncio.Queue[Part], part: Part) -> None:
    """From the engine's thread; who shut the loop down does not wait for it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(news.put_nowait, part)


def _undone(lm: LanguageModel, asked: Asked) -> bool:
    """Whether a norm follows that divides a common gain out again."""
    common = asked.kind in ("scale", "zero") and asked.strength < 1 and asked.cluster is None
    return common and asked.site == "mlp_hidden" and lm.sites.undoes_gain


def _end_tokens(lm: LanguageModel) -> frozenset[int]:
    found = [getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None), lm.tokenizer.eos_token_id]
    return frozenset(
        int(token) for ids in found for token in (ids if isinstance(ids, list) else [ids]) if token is not None
    )
