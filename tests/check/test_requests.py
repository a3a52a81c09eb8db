"""Where the requests of a check come from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from fastapi import FastAPI, Header, Query
from fastapi import Path as PathParameter
from starlette.applications import Starlette
from starlette.routing import Mount, Route, WebSocketRoute

from laraman.check.requests import MARKER, Request, from_openapi, from_routes, read_requests
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def written(path: Path, text: str | bytes) -> Path:
    file = path / "requests.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


# Files ----------------------------------------------------------------------------------------------------------------------------


def test_a_line_for_each_request(tmp_path: Path) -> None:
    file = written(tmp_path, "\ufeff# what matters\n\nGET /\n  post   /orders?x=1\n")
    assert read_requests(file) == [Request("GET", "/"), Request("POST", "/orders?x=1")]


def test_a_list_of_objects(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """[{"path": "/a"}, {"method": "put", "path": "/b", "headers": {"X-A": "1"}, "body": "text"},
        {"method": "POST", "path": "/c", "headers": [["x-a", "1"], ["x-a", "2"]], "json": {"name": "{marker}"}},
        {"method": "POST", "path": "/d", "headers": {"Content-Type": "application/vnd.api+json"}, "json": null}]""",
    )
    assert read_requests(file) == [
        Request("GET", "/a"),
        Request("PUT", "/b", (("X-A", "1"),), b"text"),
        Request("POST", "/c", (("x-a", "1"), ("x-a", "2"), ("content-type", "application/json")), b'{"name": "{marker}"}'),
        Request("POST", "/d", (("Content-Type", "application/vnd.api+json"),), b"null"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("GET /\nGTE /b\n", "line 2: 'GTE' is no method; did you mean 'GET'?"),
        ("GET", "line 1: 'GET' is not of the form METHOD /path"),
        ("GET / HTTP/1.1", "line 1: 'GET / HTTP/1.1' is not of the form METHOD /path"),
        ("GET orders", "line 1: 'orders' is not a path"),
        ("# nothing\n", "has no requests"),
        ("[]", "has no requests"),
        ('[{"path": "/"},\n{"path" "/"}]', "line 2: is not JSON: "),
        ("[" * 100_000, "is nested too deeply"),
        ('{"path": "/"}', "is not a list of requests, but an object"),
        ('["GET /"]', "entry 1: 'GET /' is not an object"),
        ('[{"path": "/"}, {"pth": "/"}]', "entry 2: there is no 'pth' in a request; did you mean 'path'?"),
        ('[{"method": 5, "path": "/"}]', "entry 1: 5 is no method"),
        ('[{"method": "GET"}]', "entry 1: None is not a path"),
        ('[{"path": "/a\\nb"}]', "is not a path"),
        ('[{"path": "/", "body": "\\ud800"}]', "entry 1: the body cannot be sent as UTF-8: surrogates not allowed"),
        ('[{"path": "/", "json": ' + "1" * 5000 + "}]", "cannot be read: "),
        ('[{"path": "/", "headers": 5}]', "entry 1: headers are an object"),
        ('[{"path": "/", "headers": {"a": 5}}]', "is not a header: a name and a value, both strings"),
        ('[{"path": "/", "headers": {"a b": "c"}}]', "cannot be sent as a header"),
        ('[{"path": "/", "headers": {"a": "b\\r\\nc: d"}}]', "cannot be sent as a header"),
        ('[{"path": "/", "body": {}}]', "entry 1: the body is not a string"),
        ('[{"path": "/", "body": "a", "json": 1}]', "entry 1: either body or json"),
        (b"GET /\xff", "is not UTF-8 (at byte 5)"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(tmp_path: Path, text: str | bytes, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        read_requests(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        read_requests(tmp_path / "none.txt")


# OpenAPI --------------------------------------------------------------------------------------------------------------------------


def one(parameter: dict[str, Any], **document: Any) -> str:
    """The path that this query parameter ``q`` leads to."""
    operation = {"parameters": [{"name": "q", "in": "query", **parameter}]}
    [request] = from_openapi({"paths": {"/": {"get": operation}}, **document})
    return request.path


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "default": "d", "example": "e"}, "d"),
        ({"type": "string", "example": "e", "enum": ["x"]}, "e"),
        ({"type": "string", "examples": ["e1", "e2"]}, "e1"),
        ({"enum": ["x", "y"]}, "x"),
        ({"const": 5}, "5"),
        ({"type": "integer"}, "1"),
        ({"type": "integer", "minimum": 10}, "10"),
        ({"type": "integer", "exclusiveMinimum": 3}, "4"),
        ({"type": "integer", "maximum": 0}, "0"),
        ({"type": "integer", "multipleOf": 5}, "5"),
        ({"type": "integer", "multipleOf": 5, "minimum": 6}, "10"),
        ({"type": "number", "exclusiveMaximum": 1}, "0.5"),
        ({"type": "boolean"}, "true"),
        ({"type": "string", "format": "uuid"}, "8c3f1c1e-5f0b-4c53-9b0a-2f6f3f0f7a11"),
        ({"type": "string", "format": "date"}, "2024-02-29"),
        ({"type": "string", "pattern": "^[A-Z]{3}$"}, "ABC"),
        ({"type": "string", "maxLength": 2}, "ab"),
        ({"type": "string"}, MARKER),
        ({"type": "string", "minLength": 10}, f"{MARKER}xx"),
        ({}, MARKER),
        ({"type": ["null", "integer"]}, "1"),
        ({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 7}]}, "7"),
        ({"allOf": [{"$ref": "#/components/schemas/Colour"}]}, "red"),
        ({"$ref": "#/components/schemas/Colour"}, "red"),
        ({"$ref": "#/nowhere"}, MARKER),
    ],
)
def test_values_by_schema(schema: dict[str, Any], value: str) -> None:
    assert one({"schema": schema}, components={"schemas": {"Colour": {"enum": ["red"]}}}) == f"/?q={value}"


def test_examples_of_the_parameter_itself() -> None:
    assert one({"schema": {"type": "string"}, "example": "a b"}) == "/?q=a+b"
    assert one({"schema": {"type": "string"}, "examples": {"first": {"value": "x&y"}}}) == "/?q=x%26y"
    assert one({"schema": {"type": "array", "items": {"type": "integer"}, "minItems": 2}}) == "/?q=1&q=1"
    assert one({"schema": {"type": "string", "default": None}}) == "/"


def test_a_document_that_refers_to_itself_comes_to_an_end() -> None:
    schemas = {"A": {"anyOf": [{"$ref": "#/components/schemas/A"}]}, "B": {"$ref": "#/components/schemas/B"}}
    for name in schemas:
        assert one({"schema": {"$ref": f"#/components/schemas/{name}"}}, components={"schemas": schemas}) == f"/?q={MARKER}"


@pytest.mark.parametrize("document", [None, [], "x", {}, {"paths": []}, {"paths": {"/": None}}, {"paths": {"/": {"get": 5}}}])
def test_what_is_no_document_has_no_requests(document: Any) -> None:
    assert from_openapi(document) == []


def test_what_fastapi_writes_is_answered_with_200() -> None:
    app = FastAPI()

    @app.get("/items/{number}/{colour}/{rest:path}")
    def item(
        number: Annotated[int, PathParameter(gt=3)],
        colour: Literal["red", "green"],
        rest: str,
        word: Annotated[str, Query(pattern="^[A-Z]{3}$")],
        page: int | None = None,
        x_token: Annotated[str, Header()] = "t",
    ) -> None: ...

    @app.post("/items")
    def add() -> None: ...

    [request] = from_openapi(app.openapi())
    assert request == Request("GET", "/items/4/red/{marker}?word=ABC&page=1", (("x-token", "t"),), title="/items/{number}/{colour}/{rest}")
    assert request.name == "GET /items/{number}/{colour}/{rest}"


# Routes ---------------------------------------------------------------------------------------------------------------------------


async def endpoint(request: Any) -> None: ...


def test_routes_without_parameters() -> None:
    inner = Starlette(routes=[Route("/", endpoint), Route("/b", endpoint), Route("/{x}", endpoint)])
    app: Any = Starlette(
        routes=[
            Route("/", endpoint),
            Route("/post", endpoint, methods=["POST"]),
            Route("/{x}", endpoint),
            WebSocketRoute("/ws", endpoint),
            Mount("/inner", inner),
            Mount("/raw", endpoint),
        ]
    )

    class Wrapped:
        def __init__(self, app: Any) -> None:
            self.app = app

    assert from_routes(Wrapped(Wrapped(app))) == ([Request("GET", "/"), Request("GET", "/inner/"), Request("GET", "/inner/b")], 2)
    assert from_routes(endpoint) == ([], 0)


def test_what_each_user_sends_is_not_in_the_documents_stead() -> None:
    parameters = [{"name": name, "in": "header", "schema": {"type": "string"}} for name in ("X-User", "x-tenant")]
    [request] = from_openapi({"paths": {"/": {"get": {"parameters": parameters}}}})
    assert request.headers == (("x-tenant", "{marker}"),)
