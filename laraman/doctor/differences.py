"""Where laraman differs from uvicorn on purpose. The one list: the contract's tests, ``laraman doctor`` and the README's table read it."""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """``row`` is the contract's section. ``option`` gives uvicorn's behaviour back; empty where nothing does."""

    row: str
    uvicorn: str
    laraman: str
    why: str
    option: str = ""


DIFFERENCES: dict[str, Difference] = {
    "brand": Difference(
        *("1.3", "`Uvicorn running on ...`", "`Laraman running on ...`"),
        *("its own name; `Application startup complete.` is the same", "`--log-brand uvicorn`"),
    ),
    "server": Difference("1.10", "`server: uvicorn`", "`server: laraman`", "its own name", "`--header server:uvicorn`"),
    "extensions": Difference(
        *("1.9", "the HTTP scope has no extensions", "`zerocopysend`, early hints, trailers; with TLS the extension `tls`"),
        *("applications can use them", "`--asgi-extensions none` (not `tls`)"),
    ),
    "stop": Difference(
        *("1.12", "a stop and a reload wait for ever for a stream that does not end", "they end within 8 s"),
        *("deploys and editors hang otherwise", "`--timeout-graceful-shutdown none` (a reload is bounded all the same)"),
    ),
    "slow head": Difference(
        *("1.10", "a client may take for ever to send the first head", "408 after 10 s; a silent one is closed"),
        *("slow clients take all connections otherwise", "`--timeout-request-header 0`"),
    ),
    "limits": Difference(
        *(
            "1.10",
            "heads and bodies of any size",
            "414, 431 and 413 beyond a request line of 8190 bytes, 100 fields, a head of 64 KiB, a body of 1 GiB",
        ),
        *("memory is finite", "`--limit-request-line`, `--limit-request-fields`, `--limit-request-head`, `--limit-request-body` with other numbers"),
    ),
    "context": Difference(
        *("1.7", "context variables that the lifespan sets are not seen by requests", "each request has a copy of what startup has left"),
        *("tracing and settings set at startup count everywhere", "`--reset-contextvars`"),
    ),
    "bleed": Difference(
        *("1.7", "a pipelined request sees the context variables of the one before", "never"),
        "that is another user's request",
    ),
    "lifespan": Difference(
        "1.7", "a second Ctrl+C skips the lifespan's shutdown", "it still runs, within a moment", "what it writes down would be lost"
    ),
    "exit codes": Difference(
        *("1.4", "SIGTERM: -15; a failed start of several workers: 0", "0 after a stop in order; 3 when the start has failed"),
        "a supervisor reads success and failure from it",
    ),
    "boot": Difference("1.4", "an application whose import raises: exit code 1", "3, as for every start that fails", "one code for one thing"),
    "bind first": Difference(
        *("1.4", "the lifespan starts and ends before a taken port is noticed", "the port is bound first"),
        "an application should not start for nothing",
    ),
    "SIGHUP": Difference("1.4", "SIGHUP kills a single process", "it reloads: workers are replaced one by one", "no request is lost"),
    "max requests": Difference(
        *("1.4", "`--limit-max-requests` ends a single process", "the worker is replaced; its successor is ready first"),
        "nobody else would start it again",
    ),
    "blocked": Difference(
        *(
            "1.6",
            "a worker whose event loop is blocked is not noticed",
            "it is replaced after `--timeout-worker-healthcheck`, and its stack is logged",
        ),
        "it answers nobody",
    ),
    "reload": Difference(
        "1.5", "while it reloads, or the new code has an error, nobody answers", "the old code answers", "a page in the browser stays usable"
    ),
    "master": Difference(
        "1.3",
        "one worker is the process itself",
        "a master watches over it, so `Started parent process` is logged",
        "a crash ends a worker, not the service",
    ),
    "closed": Difference(
        "1.3", "`connection closed` is logged only with `--ws websockets`", "always, as `connection open` is", "lines come in pairs"
    ),
    "unix socket": Difference("1.1", "SIGTERM leaves the socket's file", "it is removed", "what is left over looks like a server"),
    "host": Difference("1.9", "HTTP/1.1 without Host is accepted, except with `--http h11`", "400 with every parser", "RFC 9112 section 3.2"),
    "fields": Difference("1.9", "white space behind a field's value is a part of it", "it is not", "RFC 9112 section 5.1"),
    "twice": Difference("1.10", "an application's own `server` or `date` is sent beside the server's", "in its place", "RFC 9110 section 5.3"),
    "HTTP/1.0": Difference("1.10", "a stream to an HTTP/1.0 client is in chunks", "it ends with the connection", "RFC 9112 section 6.1"),
    "whole": Difference(
        *("1.10", "a response in one piece without a length is in chunks", "it has a content-length"),
        "fewer bytes, and clients know how much comes",
    ),
    "head": Difference("1.10", "the answer to a HEAD of a stream has no framing", "it has what the GET's would have", "RFC 9110 section 9.3.2"),
    "start only": Difference(
        *("1.10", "an application that sends only a head: 200 that is cut off", "500"),
        "nothing was sent yet, so the error can be told",
    ),
    "websocket ends": Difference(
        *("1.11", "an application that returns or raises: the connection is cut, clients see 1006", "a close with 1000 or 1011"),
        "clients can tell what happened",
    ),
    "statuses": Difference(
        *("1.11", "400 for another version of the websocket protocol; 500 for a request that a stop cancels", "426; 503"),
        "RFC 6455 section 4.4; clients may try again after a 503",
    ),
}


def table() -> str:
    """For the README."""
    lines = ["| uvicorn | laraman | Why | uvicorn's behaviour back |", "|---|---|---|---|"]
    lines += [f"| {found.uvicorn} | {found.laraman} | {found.why} | {found.option} |" for found in DIFFERENCES.values()]
    return "\n".join(lines)
