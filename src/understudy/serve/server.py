"""The websocket server. It speaks the protocol of openpi, and more with clients of understudy.

The first message to a client is the metadata. Each request is then answered by one reply with `actions` and
`server_timing`, or by a text with an error, after which the connection is closed.

Options of a request are under its key `understudy`: `id` (a number that the reply repeats); `reset`, `seed` and
`episode` (start an episode, and its randomness); `executed` and `delay` (number of actions executed since the last
reply, and number until this reply is used); `deadline` (seconds until the reply is due, if less than the server's).

Further options are `mode` ("chunk" or "action") and `op` ("hello" compares `schema`, "plan" plans explicit windows,
"start" and "act" keep the rows of a rollout on the server).
"""

from __future__ import annotations

import asyncio
import http
import itertools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.typing import Origin, Subprotocol

from .access import SUBPROTOCOL, Log, SummarizedLog, is_allowed
from .address import cannot_listen
from .handshakes import ACCEPTED_AT_ONCE, CountedConnection, PendingHandshakes, connection_limits
from .inference import InferenceThread, Job
from .metrics import ServerMetrics
from .page import text_response
from .policy_service import describe_error
from .schema import SchemaMismatch, check_schema
from .service import OPTIONS, Fallback, Reply, Request, RequestError, Service, Session
from .wire import WireError, pack, unpack

INTERNAL_ERROR, POLICY_VIOLATION, GOING_AWAY = 1011, 1008, 1001


@dataclass(frozen=True)
class ServerOptions:
    """Options of a policy server.

    Args:
        port: Port. 0 for any that is free.
        tokens: Clients need one of them. Empty for everybody.
        origins: Pages whose scripts may connect, such as "https://lab.example". Browsers name the page.
        max_message: Largest message in bytes.
        max_rate: Requests per second of one client. Faster ones wait.
        max_clients: Number of clients at a time.
        max_batch: Largest number of requests that are planned together.
        deadline: Seconds until a reply is due. None for no limit. A client may ask for less.
        fallback: What a client gets when its reply is not ready by then.
        grace: Seconds for replies that are being computed when the server ends.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None
    origins: tuple[str, ...] = ()
    max_message: int = 16 * 2**20
    max_rate: float = 1000.0
    max_clients: int = 256
    max_batch: int = 64
    deadline: float | None = None
    fallback: Fallback = "stop"
    grace: float = 10.0


class PolicyServer:
    """Serves a policy until `stop` is called.

    Attributes:
        port: The port, when `run` has started.
    """

    def __init__(self, service: Service, options: ServerOptions = ServerOptions(),  # noqa: B008
                 log: Log = lambda event, **values: None):
        self.service, self.options, self.log = service, options, log
        self.metrics = ServerMetrics()
        self.port = options.port
        self._stopping = asyncio.Event()
        self._numbers = itertools.count()
        self._idle: dict[ServerConnection, bool] = {}
        self._summarized = SummarizedLog(log)
        logging.getLogger("websockets").setLevel(logging.CRITICAL)  # events are in our own log

    async def run(self, on_start: Callable[[], object] = lambda: None) -> None:
        """Serves until `stop` is called. Replies that are being computed are sent first.

        Args:
            on_start: Called when clients can connect.
        """
        o = self.options
        self._inference = InferenceThread(self.service, self.metrics, o.max_batch)
        self.metrics.checkpoint.set(1, checkpoint=self.service.checkpoint)
        loop = asyncio.get_running_loop()
        handler = loop.get_exception_handler()
        loop.set_exception_handler(self._report)
        n_pending, self._max_clients = connection_limits(o.max_clients)
        if self._max_clients < o.max_clients:
            self.log("warning", message=f"the limit of open files (ulimit -n) allows {self._max_clients} clients at a "
                     f"time, not {o.max_clients}")
        self._pending = PendingHandshakes(n_pending, self.metrics, self._summarized)
        try:
            server = await serve(
                self._handle, o.host, o.port, compression=None, max_size=o.max_message, backlog=ACCEPTED_AT_ONCE,
                create_connection=cast(type[ServerConnection],
                                       partial(CountedConnection, pending=self._pending, tls=o.tls)),
                process_request=self._process_request, origins=[None, *map(Origin, o.origins)],
                select_subprotocol=_select_subprotocol, server_header=None, ping_interval=20, ping_timeout=20)
        except OSError as error:
            raise cannot_listen(error, f"--host {o.host} --port {o.port}") from error
        for listening in server.sockets:  # so many are accepted at once, but more may wait
            with socket.fromfd(listening.fileno(), listening.family, listening.type) as same:
                same.listen(1024)
        self.port = next(iter(server.sockets)).getsockname()[1]
        self.log("serving", host=o.host, port=self.port, tls=o.tls is not None, tokens=len(o.tokens),
                 checkpoint=self.service.checkpoint)
        try:
            on_start()
            await self._stopping.wait()
        finally:
            await self._close(server)
            loop.set_exception_handler(handler)

    def stop(self) -> None:
        """Ends the server. Call it in the thread of the event loop, such as from a signal handler."""
        self._stopping.set()

    async def _close(self, server: Server) -> None:
        self.log("stopping", clients=len(self._idle))
        server.close(close_connections=False)
        self._pending.close()
        for connection, idle in list(self._idle.items()):
            if idle:  # busy connections close after their reply
                asyncio.ensure_future(connection.close(GOING_AWAY, "the server ends"))
        until = time.perf_counter() + self.options.grace
        while self._idle and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        server.close()
        await server.wait_closed()
        self._inference.close(max(1.0, until - time.perf_counter()))
        self._summarized.flush()
        self.log("stopped")

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict) -> None:
        """Logs an unexpected error as a line without a traceback."""
        error = context.get("exception")
        self._summarized("error", message=context["message"], error=None if error is None else describe_error(error))

    # -- connections ------------------------------------------------------------------------------------------------

    def _process_request(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        path, _, _ = request.path.partition("?")
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == "/client.js":
            text = (Path(__file__).parent / "client.js").read_text(encoding="utf-8")
            response = text_response(connection, text, "text/javascript; charset=utf-8")
            response.headers["Access-Control-Allow-Origin"] = "*"  # pages elsewhere may import it
            return response
        if path not in ("/", "/metrics"):
            return self._refuse(connection, "path", http.HTTPStatus.NOT_FOUND, "there is nothing at this path\n")
        if not is_allowed(self.options.tokens, request.headers):
            response = self._refuse(connection, "token", http.HTTPStatus.UNAUTHORIZED, "a valid token is needed\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/metrics":
            return text_response(connection, self.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
        if self._stopping.is_set() or len(self._idle) >= self._max_clients:
            return self._refuse(connection, "busy", http.HTTPStatus.SERVICE_UNAVAILABLE,
                                f"there are {len(self._idle)} clients, as many as this server takes\n")
        return None

    def _refuse(self, connection: ServerConnection, reason: str, status: http.HTTPStatus, text: str) -> Response:
        self.metrics.refused.add(reason=reason)
        self.log("refused", reason=reason, client=_address(connection))
        return connection.respond(status, text)

    async def _handle(self, connection: ServerConnection) -> None:
        self._pending.remove(connection)
        session = Session(next(self._numbers), _address(connection))
        self._idle[connection] = True
        self.metrics.clients.set(len(self._idle))
        self.log("connected", client=session.name, number=session.number)
        reason = "closed"
        try:
            await connection.send(pack(self.service.metadata))
            await self._serve(connection, session)
        except ConnectionClosed as closed:
            reason = str(closed)
        finally:
            del self._idle[connection]
            self.metrics.clients.set(len(self._idle))
            self.log("disconnected", client=session.name, number=session.number, reason=reason)

    async def _serve(self, connection: ServerConnection, session: Session) -> None:
        """Answers the requests of a client, one after the other."""
        pending: Job | None = None
        due = time.perf_counter()
        while not self._stopping.is_set():
            message = await connection.recv()
            began = time.perf_counter()
            self._idle[connection] = False
            if (wait := due - began) > 0:
                self.metrics.slowed.add()
                await asyncio.sleep(wait)
            due = max(due, began) + 1 / self.options.max_rate
            try:
                request = self._read(session, message)
                if request.options.get("op") == "hello":
                    reply, seconds = self._greet(request), 0.0
                else:
                    reply, seconds, pending = await self._answer(request, pending, began)
                timing = {"infer_ms": seconds * 1000}
                if session.previous_seconds is not None:
                    timing["prev_total_ms"] = session.previous_seconds * 1000
                sent = pack({**reply.values, "server_timing": timing, **self._extras(request, reply)})
            except Exception as error:
                await self._fail(connection, session, error)
                return
            await connection.send(sent)
            spent = time.perf_counter() - began
            session.previous_seconds = spent
            self.metrics.latency.add(spent)
            self.metrics.overhead.add(max(spent - seconds, 0))
            self._idle[connection] = True
        await connection.close(GOING_AWAY, "the server ends")

    def _read(self, session: Session, message: str | bytes) -> Request:
        try:
            if isinstance(message, str):
                raise WireError("a request is a binary message, but this is a text")
            columns = unpack(message)
        except WireError:
            self.metrics.malformed.add()
            raise
        options = columns.pop("understudy", None)
        if options is None:
            return Request(session, columns, {})
        if not isinstance(options, dict):
            raise RequestError("the options of a request (understudy) must be a map")
        if unknown := sorted(set(options) - OPTIONS):
            raise RequestError(f"there is no option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))}")
        return Request(session, columns, options)

    def _greet(self, request: Request) -> Reply:
        if self.service.schema is None:
            raise RequestError("this server does not know what its policy reads")
        check_schema(self.service.schema, request.options.get("schema"))
        return Reply({}, checkpoint=self.service.checkpoint)

    async def _answer(self, request: Request, pending: Job | None,
                      began: float) -> tuple[Reply, float, Job | None]:
        """Returns the reply, the seconds in the network, and the job that is not done if the reply is a fallback."""
        self.service.check(request)
        limit = self._deadline(request)
        if pending is not None and not await self._in_time(pending, limit, began):  # one plan of a client at a time
            return self._fall_back(request), 0.0, pending
        if (delay := request.whole("delay", None)) is not None:
            self.metrics.delay.add(delay)
        job = self._inference.submit(request)
        if not await self._in_time(job, limit, began):
            job.in_time = False
            return self._fall_back(request), 0.0, job
        reply, seconds = job.reply.result()
        self.metrics.requests.add(kind="plan")
        return reply, seconds, None

    async def _in_time(self, job: Job, limit: float | None, began: float) -> bool:
        if limit is None:
            with suppress(Exception):  # `result` raises it
                await job.reply
        elif not job.reply.done():
            await asyncio.wait([job.reply], timeout=max(0.0, limit - (time.perf_counter() - began)))
        return job.reply.done()

    def _deadline(self, request: Request) -> float | None:
        own, asked = self.options.deadline, request.options.get("deadline")
        if asked is None:
            return own
        if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked < 3600:
            raise RequestError(f"the option 'deadline' is {asked!r}, but must be a number of seconds")
        return float(asked) if own is None else min(own, float(asked))

    def _fall_back(self, request: Request) -> Reply:
        kind = self.options.fallback
        values = self.service.fallback(request, kind)
        self.metrics.fallbacks.add(kind=kind if values else "stop")
        self.log("late", client=request.session.name, fallback=kind if values else "stop")
        if values is None:
            raise DeadlinePassed("the reply was not ready by its deadline: stop")
        return Reply({**values, "fallback": kind})

    def _extras(self, request: Request, reply: Reply) -> dict[str, object]:
        """Returns the entries of a reply that only clients of understudy get."""
        if not request.options:
            return {}
        extras: dict[str, object] = {} if reply.checkpoint is None else {"checkpoint": reply.checkpoint}
        if "id" in request.options:
            extras["id"] = request.options["id"]
        return {"understudy": extras}

    async def _fail(self, connection: ServerConnection, session: Session, error: Exception) -> None:
        """Tells a client what was wrong, and closes the connection."""
        refused = isinstance(error, SchemaMismatch)
        kind = "late" if isinstance(error, DeadlinePassed) else "error"
        self.metrics.requests.add(kind=kind)
        if refused:
            self.metrics.refused.add(reason="schema")
        text = describe_error(error)
        self.log("refused" if refused else kind, client=session.name, error=text)
        await connection.send(text)
        await connection.close(POLICY_VIOLATION if refused else INTERNAL_ERROR,
                               "the error is in the message before")


class DeadlinePassed(TimeoutError):
    """Raised when a reply was not ready in time, and the client must stop."""


class BackgroundServer:
    """Runs a policy server in a background thread, for notebooks and tests.

    Args:
        options: How the server behaves. By default any free port is taken.

    Example:
        >>> with BackgroundServer(service) as server:
        ...     Client(server.url).infer(obs)
    """

    def __init__(self, service: Service, options: ServerOptions = ServerOptions(port=0)):  # noqa: B008
        self.service, self.options = service, options
        self.server: PolicyServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    @property
    def url(self) -> str:
        """Address of the server."""
        assert self.server is not None
        return f"{'ws' if self.options.tls is None else 'wss'}://{self.options.host}:{self.server.port}"

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Ends the server, after the replies that are being computed."""
        assert self.server is not None and self._loop is not None
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self.server.stop)

    def _run(self) -> None:
        async def serving() -> None:
            self._loop, self.server = asyncio.get_running_loop(), PolicyServer(self.service, self.options)
            await self.server.run(self._ready.set)
        try:
            asyncio.run(serving())
        except Exception as error:  # such as a port that is taken
            self._error = error
        finally:
            self._ready.set()


def _select_subprotocol(connection: ServerConnection, offered) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _address(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
