"""What the contract lists, section by section: each needs a row."""

from __future__ import annotations

import uvicorn

PAGE: dict[str, list[str]] = {
    "1.0": [str(number) for number in range(1, 24)],
    "1.1": [*(parameter.opts[0] for parameter in uvicorn.main.params if parameter.name != "app"), "APP", "--help", "UVICORN_*"],
    "1.2": [
        *(
            "uvicorn",
            "uvicorn.config",
            "uvicorn.main",
            "uvicorn.supervisors",
            "uvicorn.server",
            "uvicorn.logging",
            "uvicorn.middleware.proxy_headers",
        ),
        *("uvicorn.middleware.wsgi", "uvicorn.protocols.utils", "LOGGING_CONFIG", "Config", "Server", "signals", "overrides", "run"),
    ],
    "1.3": ["access line", "start lines", "stop lines", "websocket lines", "lifespan lines", "load errors", "warnings", "errors"],
    "1.4": ["usage", "start", "signals", "max requests"],
    "1.5": ["reload", "lines"],
    "1.6": ["bind in the parent", "respawn", "health", "SIGHUP", "SIGTTOU", "lines"],
    "1.7": ["auto", "on", "off", "startup.failed", "state", "scope", "contextvars", "per worker", "forced exit"],
    "1.8": ["proto", "for", "others", "trust"],
    "1.9": [
        *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client", "server"),
        *("state", "subprotocols", "extensions", "no Host", "absolute-form", "OPTIONS *", "CONNECT"),
    ],
    "1.10": [
        *(
            "keep-alive",
            "slow head",
            "limits",
            "pipelining",
            "Connection: close",
            "framing",
            "disconnect",
            "100-continue",
            "send checks",
            "exceptions",
        ),
        *("message order", "response headers", "request bodies", "body back-pressure", "invalid requests", "upgrade", "limit-concurrency"),
    ],
    "1.11": [
        *("upgrade", "accept headers", "deflate", "messages", "deny", "websocket.http.response", "application", "back-pressure", "close codes"),
        *("disconnect codes", "ClientDisconnected", "protocol errors", "pings"),
    ],
    "1.12": ["order", "websocket", "requests", "idle", "deadline", "no deadline"],
}

#: What takes more than a row, and where that is.
ELSEWHERE = {
    "1.0 21": "tests/e2e/test_embedded.py",
    "1.0 23": "tests/e2e/test_dev.py",
}
