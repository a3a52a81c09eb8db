"""netsvr's HTTP callbacks, asked as the gateway asks: over HTTP, with protobuf bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from laraman import gateway
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

OPEN = pb.ConnOpen(uniq_id="7f00000117ae", raw_query="token=1", x_forwarded_for="f", x_real_ip="r", remote_addr="127.0.0.1")
CLOSE = pb.ConnClose(uniq_id="7f00000117ae", customer_id="c", session="s", topics=["t"])
HEADERS = {"content-type": "application/x-protobuf"}


async def post(app: Any, path: str, body: Any, method: str = "POST") -> httpx.Response:
    content = body if isinstance(body, bytes) else body.SerializeToString()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, content=content, headers=HEADERS)


def answer(response: httpx.Response) -> pb.ConnOpenResp:
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-protobuf")
    return pb.ConnOpenResp.FromString(response.content)


async def test_a_client_is_let_in_with_what_belongs_to_it() -> None:
    seen: list[gateway.Opened] = []

    async def admit(opened: gateway.Opened) -> gateway.Admission:
        seen.append(opened)
        return gateway.Admission(session="s", customer_id="c", topics=("t", "u"), data="hello")

    response = await post(gateway.callbacks(onopen=admit), "/onopen", OPEN)
    assert answer(response) == pb.ConnOpenResp(allow=True, new_session="s", new_customer_id="c", new_topics=["t", "u"], data=b"hello")
    assert seen == [gateway.Opened(uniq_id="7f00000117ae", raw_query="token=1", x_forwarded_for="f", x_real_ip="r", remote_addr="127.0.0.1")]


@pytest.mark.parametrize("said", [True, False])
async def test_yes_and_no(said: bool) -> None:
    assert answer(await post(gateway.callbacks(onopen=lambda _: said), "/onopen", OPEN)) == pb.ConnOpenResp(allow=said)


async def test_last_words_for_a_client_that_is_refused() -> None:
    app = gateway.callbacks(onopen=lambda _: gateway.Admission(allow=False, data=b"\xff"))
    assert answer(await post(app, "/onopen", OPEN)) == pb.ConnOpenResp(data=b"\xff")


async def test_a_closing_is_told_and_the_answer_is_empty() -> None:
    seen: list[gateway.Closed] = []
    response = await post(gateway.callbacks(onclose=seen.append), "/onclose", CLOSE)
    assert (response.status_code, response.content) == (200, b"")
    assert seen == [gateway.Closed(uniq_id="7f00000117ae", customer_id="c", session="s", topics=("t",))]


@pytest.mark.parametrize("dialect", ["d5", "d3"])
async def test_older_gateways_number_the_fields_differently(dialect: str) -> None:
    seen: list[gateway.Opened] = []

    def admit(opened: gateway.Opened) -> bool:
        seen.append(opened)
        return True

    legacy = pb.ConnOpenLegacy(uniq_id="a", raw_query="q", sub_protocols=["p"], x_forwarded_for="f", x_real_ip="r", remote_addr="1.2.3.4")
    assert answer(await post(gateway.callbacks(onopen=admit, dialect=dialect), "/onopen", legacy)).allow
    assert seen == [gateway.Opened(uniq_id="a", raw_query="q", sub_protocols=("p",), x_forwarded_for="f", x_real_ip="r", remote_addr="1.2.3.4")]


@pytest.mark.parametrize("path", ["/netsvr/onopen", "/netsvr/onOpen", "/netsvr/onopen/"])
async def test_mounted_in_an_application(path: str) -> None:
    app = Starlette(routes=[Mount("/netsvr", app=gateway.callbacks(onopen=lambda _: True))])
    assert answer(await post(app, path, OPEN)).allow


@pytest.mark.parametrize(("path", "method", "status"), [("/onclose", "POST", 404), ("/other", "POST", 404), ("/onopen", "GET", 405)])
async def test_what_is_not_there(path: str, method: str, status: int) -> None:
    response = await post(gateway.callbacks(onopen=lambda _: True), path, OPEN, method)
    assert response.status_code == status


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"], ids=["garbage", "no utf-8", "cut short"])
async def test_a_body_that_is_no_protobuf(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    called: list[Any] = []
    response = await post(gateway.callbacks(onopen=called.append), "/onopen", body)
    assert (response.status_code, called) == (400, [])
    assert caplog.text.count("no ConnOpen") == 1


async def test_a_body_that_is_too_large() -> None:
    called: list[Any] = []
    response = await post(gateway.callbacks(onclose=called.append, max_size=10), "/onclose", CLOSE)
    assert (response.status_code, called) == (413, [])


def _raise(_: Any) -> bool:
    raise ValueError("the database is away")


@pytest.mark.parametrize("handler", [_raise, lambda _: None, lambda _: "yes", lambda _: gateway.Admission(customer_id="\ud800")])
async def test_a_handler_that_fails_lets_nobody_in(handler: Callable[[Any], Any], caplog: pytest.LogCaptureFixture) -> None:
    response = await post(gateway.callbacks(onopen=handler), "/onopen", OPEN)
    assert (response.status_code, b"database" in response.content) == (500, False)
    assert caplog.text.count("for a gateway's callback raised") == 1


async def test_a_body_that_ends_early_is_not_taken_for_a_whole_one() -> None:
    messages = [{"type": "http.request", "body": OPEN.SerializeToString()[:16], "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []
    called: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway.callbacks(onopen=called.append)({"type": "http", "method": "POST", "path": "/onopen"}, receive, send)
    assert (sent[0]["status"], called) == (413, [])


async def test_nothing_but_http() -> None:
    async def never(*_: Any) -> Any: ...

    with pytest.raises(RuntimeError, match="websocket"):
        await gateway.callbacks()({"type": "websocket"}, never, never)
