"""Which requests a check plays: those of a file, else every GET of the OpenAPI document, else every route that needs no parameters, else "/"."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from laraman.config.options import did_you_mean
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

#: In a path, header or body it stands for a word that is another one each time, and that tells whose request it was.
MARKER = "{marker}"
#: How long these words are at most.
MARKER_LENGTH = 24
#: Headers that each user has of one's own.
OF_USERS = ("user-agent", "accept-language", "authorization", "cookie", "x-user", "x-request-id")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. ``path`` may have a query; ``name`` is how it is reported."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""
    title: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.title or self.path}"


# A file ---------------------------------------------------------------------------------------------------------------------------


def read_requests(path: Path) -> list[Request]:
    """The requests of a file: a JSON list of objects, or a line ``METHOD /path`` for each. Raises ConfigError that names file and place."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not UTF-8 (at byte {exc.start})") from None
    found = _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _from_lines(text, path)
    if not found:
        raise ConfigError(f"{path}: has no requests")
    return found


def _from_lines(text: str, path: Path) -> list[Request]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ConfigError(f"{path}, line {number}: {line.strip()!r} is not of the form METHOD /path")
        found.append(_checked({"method": words[0], "path": words[1]}, f"{path}, line {number}"))
    return found


def _from_json(text: str, path: Path) -> list[Request]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path}, line {exc.lineno}: is not JSON: {exc.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except ValueError as exc:  # a number of thousands of digits
        raise ConfigError(f"{path}: cannot be read: {exc}") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: is not a list of requests, but an object")
    return [_checked(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]


_KEYS = ("method", "path", "headers", "body", "json")


def _checked(entry: Any, where: str) -> Request:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is not an object with method and path")
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f"{where}: there is no {key!r} in a request{did_you_mean(str(key), _KEYS)}")
    method, path = entry.get("method", "GET"), entry.get("path")
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise ConfigError(f"{where}: {method!r} is no method{did_you_mean(str(method).upper(), METHODS)}")
    if not isinstance(path, str) or not path.startswith("/") or not path.isprintable() or " " in path:
        raise ConfigError(f"{where}: {path!r} is not a path: it begins with / and has no spaces")
    headers = _headers(entry.get("headers", {}), where)
    body = entry.get("body", "")
    if not isinstance(body, str):
        raise ConfigError(f"{where}: the body is not a string; json takes what is to be sent as JSON")
    if "json" in entry:
        if body:
            raise ConfigError(f"{where}: either body or json, not both")
        body = json.dumps(entry["json"])
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers = (*headers, ("content-type", "application/json"))
    try:
        return Request(method.upper(), path, headers, body.encode())
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{where}: the body cannot be sent as UTF-8: {exc.reason}") from None


def _headers(given: Any, where: str) -> Headers:
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise ConfigError(f"{where}: headers are an object, or a list of pairs")
    checked = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ConfigError(f"{where}: {pair!r} is not a header: a name and a value, both strings")
        name, value = pair
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value):
            raise ConfigError(f"{where}: {name!r}: {value!r} cannot be sent as a header")
        checked.append((name, value))
    return tuple(checked)


# An OpenAPI document --------------------------------------------------------------------------------------------------------------


def from_openapi(document: Any) -> list[Request]:
    """Every GET of the document, with its parameters filled in; what does not look like a document has none."""
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        return []
    schemas = _Schemas(document)
    found = []
    for path, item in paths.items():
        operation = item.get("get") if isinstance(item, dict) else None
        if isinstance(operation, dict):
            parameters = [*_list(item.get("parameters")), *_list(operation.get("parameters"))]
            found.append(_filled(path, [schemas.resolve(parameter) for parameter in parameters], schemas))
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _filled(path: str, parameters: list[dict[str, Any]], schemas: _Schemas) -> Request:
    filled, query, headers = path, {}, {}
    for parameter in parameters:
        name, place = str(parameter.get("name", "")), parameter.get("in")
        value = schemas.parameter(parameter)
        if place == "path":
            text = _quoted(_text(value))
            filled = re.sub(rf"\{{{re.escape(name)}(:[^}}]*)?\}}", text.replace("\\", r"\\"), filled)
        elif value is None:
            continue
        elif place == "query":
            query[name] = [_text(item) for item in value] if isinstance(value, list) else _text(value)
        elif place == "header" and name.lower() not in OF_USERS:
            headers[name] = _text(value)
    searched = urlencode(query, doseq=True).replace(quote(MARKER, safe=""), MARKER)
    return Request("GET", f"{filled}?{searched}" if searched else filled, tuple(headers.items()), title=path)


def _quoted(text: str) -> str:
    """Quoted, but for the marker."""
    return quote(text).replace(quote(MARKER, safe=""), MARKER)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)


_FORMATS = {
    "date": "2024-02-29",
    "date-time": "2024-02-29T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "uuid": "8c3f1c1e-5f0b-4c53-9b0a-2f6f3f0f7a11",
    "email": "guest@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "byte": "bGFyYW1hbg==",
}
#: Tried where a pattern is asked for.
_CANDIDATES = tuple("a abc abcdef A ABC ABCDEF 1 123 1234 12345 123456 a1 A1 abc123 a-b a_b 2024-02-29 1.0 de".split())


class _Schemas:
    """What may stand for a value of a schema of this document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def resolve(self, node: Any) -> dict[str, Any]:
        """The object that it refers to; an empty one when that leads nowhere."""
        for _ in range(16):
            if not isinstance(node, dict):
                return {}
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return node
            node = self._document
            for part in reference.removeprefix("#/").split("/"):
                node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        return {}

    def parameter(self, parameter: Mapping[str, Any]) -> Any:
        """A plausible value; None for one that had better be left out."""
        given = _example(parameter)
        return self.value(parameter.get("schema"), 0) if given is None else given

    def value(self, node: Any, depth: int) -> Any:
        schema = self.resolve(node)
        if "default" in schema:
            return schema["default"]
        given = _example(schema)
        if given is not None:
            return given
        for several in ("anyOf", "oneOf", "allOf"):
            for choice in _list(schema.get(several)) if depth < 8 else ():
                if self.resolve(choice).get("type") != "null":
                    return self.value(choice, depth + 1)
        kind = schema.get("type", "string")
        kind = next((one for one in kind if one != "null"), "string") if isinstance(kind, list) else kind
        match kind:
            case "integer" | "number":
                return _number(schema, kind == "integer")
            case "boolean":
                return True
            case "array":
                return [self.value(schema.get("items"), depth + 1)] * max(1, int(schema.get("minItems", 1))) if depth < 8 else []
            case "object":
                return {}
        return _string(schema)


def _example(schema: Mapping[str, Any]) -> Any:
    """What the document itself gives as an example, or as the only possibilities."""
    if "const" in schema:
        return schema["const"]
    if "example" in schema:
        return schema["example"]
    examples = schema.get("examples")
    if isinstance(examples, dict):  # of a parameter: objects by name
        examples = [example["value"] for example in examples.values() if isinstance(example, dict) and "value" in example]
    choices = _list(examples) or _list(schema.get("enum"))
    return choices[0] if choices else None


def _number(schema: Mapping[str, Any], whole: bool) -> float:
    step = schema.get("multipleOf") or (1 if whole else 0.5)
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is None and isinstance(above, (int, float)) and not isinstance(above, bool):
        low = above + step
    if high is None and isinstance(below, (int, float)) and not isinstance(below, bool):
        high = below - step
    value: float = step * max(1, round(1 / step))
    if low is not None and value < low:
        value = -(-low // step) * step
    if high is not None and value > high:
        value = high // step * step
    return int(value) if whole else value


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "")
    if text:
        return text
    shortest, longest = int(schema.get("minLength", 0)), int(schema.get("maxLength", 2**31))
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        fits = (text for text in _CANDIDATES if shortest <= len(text) <= longest and _matches(pattern, text))
        return next(fits, "abc")
    if longest < MARKER_LENGTH:
        return "abcdefghijklmnopqrstuvw"[: min(max(shortest, 3), longest)]
    return MARKER + "x" * max(0, shortest - 8)


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


# Routes ---------------------------------------------------------------------------------------------------------------------------


def from_routes(app: Any) -> tuple[list[Request], int]:
    """Every GET without parameters that a Starlette application lists, and how many others it lists. None of them when it lists nothing."""
    for _ in range(16):  # middleware that wraps an application calls it ``app``
        if hasattr(app, "routes") or not hasattr(app, "app"):
            break
        app = app.app
    paths = list(dict.fromkeys(_paths(getattr(app, "routes", None), "")))
    plain = [Request("GET", path) for path in paths if "{" not in path]
    return plain, len(paths) - len(plain)


def _paths(routes: Any, prefix: str, depth: int = 0) -> Iterator[str]:
    if not isinstance(routes, (list, tuple)) or depth > 16:
        return
    for route in routes:
        path = f"{prefix}{getattr(route, 'path', '')}"
        methods: Iterable[str] | None = getattr(route, "methods", None)
        if methods is not None:
            if "GET" in methods:
                yield path or "/"
        else:
            yield from _paths(getattr(route, "routes", None), path, depth + 1)
