"""A server of OpenAI's chat completions over models of this package, on FastAPI."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from lavis_lite.apps import chat_api
from lavis_lite.apps.answering import Answers
from lavis_lite.apps.batcher import Batcher, QueueFull
from lavis_lite.apps.chat_api import ChatAnswer, ChatRequest, Limits, refusal
from lavis_lite.apps.models import Models
from lavis_lite.errors import ConfigError, LavisLiteError, MissingExtraError, did_you_mean

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: why.
        kind: OpenAI's type of the error.
    """

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass
class Service:
    """What the server does, without HTTP.

    Attributes:
        models: each has a batcher of its own.
        limits: of one request.
        token: that requests must bring; "": none.
        batch: requests that are answered together.
        waiting: requests that may wait for a model.
        timeout: seconds until a request that waits is given up.
    """

    models: Models
    limits: Limits = field(default_factory=Limits)
    token: str = ""
    batch: int = 8
    waiting: int = 64
    timeout: float = 120.0

    def __post_init__(self) -> None:
        self.batchers: dict[str, Batcher[ChatRequest, ChatAnswer]] = {}
        for name in self.models.names:
            answers = Answers(self.models.get(name))
            self.batchers[name] = Batcher(answers, answers.kind, self.batch, self.waiting)

    def authorise(self, header: str | None) -> None:
        """Check the Authorization header.

        Raises:
            Refused: it does not bring the token.
        """
        if self.token and not hmac.compare_digest((header or "").encode(), f"Bearer {self.token}".encode()):
            raise Refused(401, "the request must bring the server's token: Authorization: Bearer TOKEN.",
                          "authentication_error")

    def request(self, body: bytes) -> ChatRequest:
        """A checked request for a model that is served.

        Raises:
            Refused, LavisLiteError: it is not such a request.
        """
        try:
            request = chat_api.parsed(json.loads(body), self.limits)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from error
        name = request.model or self.models.names[0]
        if name not in self.batchers:
            raise Refused(404, f"there is no model {name!r} here; {did_you_mean(name, self.batchers)}")
        return replace(request, model=name)

    def submit(self, request: ChatRequest) -> Future[ChatAnswer]:
        """The answer to come.

        Raises:
            Refused: too many requests wait.
        """
        try:
            return self.batchers[request.model].submit(request)
        except QueueFull as error:
            raise Refused(429, f"{self.waiting} requests wait already; try again in a moment.",
                          "rate_limit_error") from error

    def health(self) -> dict[str, Any]:
        """Whether all models answer, and how many requests wait for each."""
        return {"status": "ok" if all(one.alive for one in self.batchers.values()) else "failed",
                "waiting": {name: one.waiting for name, one in self.batchers.items()}}

    def close(self) -> None:
        """Answer what waits, and stop."""
        for batcher in self.batchers.values():
            batcher.close()


async def whole(service: Service, request: ChatRequest) -> dict[str, Any]:
    """The answer as a whole.

    Raises:
        Refused: it took too long.
    """
    coming = service.submit(request)
    try:
        answer = await asyncio.wait_for(asyncio.wrap_future(coming), service.timeout)
    except asyncio.TimeoutError as error:
        raise Refused(504, f"no answer within {service.timeout:g} seconds.", "server_error") from error
    return chat_api.completion(request.model, answer)


async def streamed(service: Service, request: ChatRequest) -> AsyncIterator[str]:
    """The answer as server-sent events; the request is in the queue when the first one is requested."""
    pieces: asyncio.Queue[Any] = asyncio.Queue()
    loop, gone, name = asyncio.get_running_loop(), threading.Event(), chat_api.new_id()

    def put(value: Any) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, value)

    coming = service.submit(replace(request, stream=put, cancelled=gone.is_set))
    coming.add_done_callback(put)
    return _events(pieces, gone, request.model, name)


async def _events(pieces: asyncio.Queue[Any], gone: threading.Event, model: str, name: str) -> AsyncIterator[str]:
    try:
        yield _event(chat_api.chunk(model, name, {"role": "assistant", "content": ""}))
        while isinstance(piece := await pieces.get(), str):
            yield _event(chat_api.chunk(model, name, {"content": piece}))
        error = piece.exception()
        yield _event(refusal(message_of(error)) if error else chat_api.chunk(model, name, {}, piece.result().finish))
        yield "data: [DONE]\n\n"
    finally:
        gone.set()  # a client that left needs no further tokens


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def message_of(error: BaseException) -> str:
    """What a client may read of an error; what is not a user's mistake goes to the log instead."""
    if isinstance(error, (LavisLiteError, Refused)):
        return str(error)
    _log.error("a request failed", exc_info=error)
    return f"the server failed ({type(error).__name__}); its log says more."


def status_of(error: BaseException) -> tuple[int, str]:
    """HTTP's status of an error, and OpenAI's type."""
    if isinstance(error, Refused):
        return error.status, error.kind
    return (400, "invalid_request_error") if isinstance(error, LavisLiteError) else (500, "server_error")


# HTTP -----------------------------------------------------------------------------------------------------------------
def app_of(service: Service) -> Any:
    """The FastAPI application.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    fastapi = fastapi_package()
    from fastapi.responses import JSONResponse, StreamingResponse

    app = fastapi.FastAPI(title="lavis_lite", docs_url=None, redoc_url=None, openapi_url=None)

    async def refused(request: Any, error: Exception) -> Any:
        status, kind = status_of(error)
        return JSONResponse(refusal(message_of(error), kind), status, {"Retry-After": "1"} if status == 429 else {})

    for kind in (Refused, LavisLiteError, Exception):
        app.add_exception_handler(kind, refused)

    async def health() -> Any:
        found = service.health()
        return JSONResponse(found, 200 if found["status"] == "ok" else 503)

    async def models(request: Any) -> Any:
        service.authorise(request.headers.get("authorization"))
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "lavis_lite"} for name in service.batchers]
        return {"object": "list", "data": rows}

    async def completions(request: Any) -> Any:
        service.authorise(request.headers.get("authorization"))
        body = await read_body(request.stream(), service.limits.body)
        chat = await asyncio.to_thread(service.request, body)  # pictures are decoded beside the event loop
        if not chat.streams:
            return await whole(service, chat)
        return StreamingResponse(await streamed(service, chat), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    for function in (models, completions):  # FastAPI is imported only here
        function.__annotations__["request"] = fastapi.Request
    app.get("/health")(health)
    app.get("/v1/models")(models)
    app.post("/v1/chat/completions")(completions)
    return app


async def read_body(stream: AsyncIterator[bytes], most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is too large; the rest is not read.
    """
    parts, size = [], 0
    async for part in stream:
        size += len(part)
        if size > most:
            raise Refused(413, f"the request is larger than {most} bytes.")
        parts.append(part)
    return b"".join(parts)


def fastapi_package() -> Any:
    """The package fastapi.

    Raises:
        MissingExtraError: it or uvicorn is not installed.
    """
    try:
        import fastapi
        import uvicorn  # noqa: F401  # needed with it
    except ImportError as error:
        raise MissingExtraError("the server needs fastapi and uvicorn, which are not installed: "
                                "pip install 'lavis_lite[serve]'") from error
    return fastapi


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the address, before any model is loaded; clients are answered once `run` serves it.

    Raises:
        ConfigError: the address cannot be used.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()  # until then a second server could bind the same address, and fail after its model is loaded
    except OSError as error:
        found.close()
        raise ConfigError(f"--port: {host}:{port} is in use or not of this machine; choose another one "
                          f"({error.strerror or error}).") from error
    return found


def run(app: Any, address: socket.socket, close: Callable[[], None]) -> None:
    """Serve at an address until the program is stopped."""
    import uvicorn

    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run([address])
    finally:
        close()
