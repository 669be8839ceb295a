"""Owns `/openapi.json` and `/docs`: the document of all operations, and a page that shows it without anything from
elsewhere: no script, no font, no picture."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

import msgspec
from starlette.responses import Response

from service.web import openapi
from service.web.contract import Answer, AnyOperation, Call, Nothing, Operation

_LONG: Final = {"Cache-Control": "no-cache"}

# Nothing may be loaded or run, whatever somebody writes into a description.
_PAGE_HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", **_LONG}


def operations(others: Iterable[AnyOperation], version: str) -> list[AnyOperation]:
    """The two operations, which describe these others and themselves."""
    kept: dict[str, bytes] = {}

    async def openapi_document(_call: Call[Nothing, None]) -> Response:
        """This API as an OpenAPI 3.1 document."""
        return Response(kept["document"], headers=_LONG, media_type="application/json")

    async def reference(_call: Call[Nothing, None]) -> Response:
        """This API as a page to read."""
        return Response(kept["page"], headers=_PAGE_HEADERS, media_type="text/html")

    own: list[AnyOperation] = [
        Operation(
            "GET",
            "/openapi.json",
            openapi_document,
            scope=None,
            query=Nothing,
            answers=[Answer(200, dict[str, Any], "The document.")],
        ),
        Operation(
            "GET",
            "/docs",
            reference,
            scope=None,
            query=Nothing,
            answers=[Answer(200, str, "The page.", media_type="text/html")],
        ),
    ]
    document = openapi.described([*others, *own], version)
    kept["document"] = msgspec.json.encode(document)
    kept["page"] = page(msgspec.json.decode(kept["document"])).encode()
    return own


def page(document: Mapping[str, Any]) -> str:
    """The document as a page of HTML."""
    info = document["info"]
    found = [(path, method, one) for path, methods in document["paths"].items() for method, one in methods.items()]
    by_tag = [(tag, [one for one in found if tag["name"] in one[2]["tags"]]) for tag in document["tags"]]
    contents = "".join(f"<h3>{escape(tag['name'])}</h3><ul>{_contents(ones)}</ul>" for tag, ones in by_tag)
    sections = "".join(
        f"<section><h2>{escape(tag['name'])}</h2>{_prose(tag['description'])}{''.join(map(_operation, ones))}</section>"
        for tag, ones in by_tag
    )
    shapes = "".join(_shape(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])} {escape(info['version'])}</title><style>{_STYLE}</style>"
        f"<header><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"{_prose(info['description'])}"
        f"<p>The same as <a href=openapi.json>openapi.json</a>.</header><nav>{contents}"
        f"<h3><a href=#shapes>Shapes</a></h3></nav><main>{sections}"
        f"<section id=shapes><h2>Shapes</h2>{shapes}</section></main></html>"
    )


def _contents(found: Sequence[tuple[str, str, Any]]) -> str:
    return "".join(
        f"<li><a href='#{escape(one['operationId'])}'><b>{method.upper()}</b> {escape(path)}</a>"
        for path, method, one in found
    )


def _operation(found: tuple[str, str, Any]) -> str:
    path, method, one = found
    scopes = [scope for needed in one["security"] for scope in needed.get("token", [])]
    needs = f"<p>Needs a token with the scope <code>{escape(scopes[0])}</code>.</p>" if scopes else ""
    body = "".join(
        f"<h4>Body: <code>{escape(kind)}</code></h4>{_content(content)}"
        for kind, content in one.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(_answer(status, answer) for status, answer in one["responses"].items())
    return (
        f"<article id='{escape(one['operationId'])}'><h3><b>{method.upper()}</b> <code>{escape(path)}</code></h3>"
        f"<p><strong>{_inline(one['summary'])}.</strong></p>{_prose(one.get('description', ''))}{needs}"
        f"{_parameters(one['parameters'])}{body}<h4>Answers</h4>{answers}</article>"
    )


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code><td>{one['in']}{', required' if one['required'] else ''}"
        f"<td>{_type(one['schema'])}<td>{_inline(one['description'])}"
        for one in parameters
    )
    return f"<table><tr><th>Parameter<th>In<th>Takes<th>Meaning{rows}</table>" if rows else ""


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    contents = "".join(
        f"<p><code>{escape(kind)}</code></p>{_content(content)}" for kind, content in answer.get("content", {}).items()
    )
    headers = ", ".join(f"<code>{escape(name)}</code>" for name in answer["headers"])
    return (
        f"<details><summary><b>{status}</b> {_inline(answer['description'])}</summary>"
        f"<p>Headers: {headers}</p>{contents}</details>"
    )


def _content(content: Mapping[str, Any]) -> str:
    examples = [content["example"]] if "example" in content else []
    examples += [one["value"] for one in content.get("examples", {}).values()]
    return f"<p>{_type(content['schema'])}</p>" + "".join(f"<pre>{_json(example)}</pre>" for example in examples)


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else ' (optional)'}<td>{_type(kind)}"
        f"<td>{_inline(kind.get('description', ''))}"
        for field, kind in schema.get("properties", {}).items()
    )
    return (
        f"<article id='shape-{escape(name)}'><h3>{escape(name)}</h3>{_prose(schema.get('description', ''))}"
        f"<table>{rows}</table></article>"
    )


def _type(schema: Mapping[str, Any]) -> str:
    """What a value looks like, in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#shape-{name}'>{name}</a>"
    for key in ("anyOf", "allOf"):
        if key in schema:
            return " or ".join(_type(one) for one in schema[key] if "properties" not in one)
    if "enum" in schema:
        words = " | ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"])
    elif schema.get("type") == "array":
        words = f"a list of {_type(schema['items'])}"
    else:
        words = escape(schema.get("format") or schema.get("type") or "anything")
    limits = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    limits += [f"default {escape(str(schema['default']))}"] if schema.get("default") is not None else []
    return ", ".join([words, *limits])


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _json(value: Any) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode(), quote=False)


_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; display: grid; grid-template-columns: 21rem minmax(0, 1fr); }
header { grid-column: 1 / -1; padding: 1rem 2rem; border-bottom: 1px solid var(--line); max-width: 60rem; }
nav { padding: 1rem 2rem; font-size: .85rem; overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; }
main { padding: 1rem 2rem; max-width: 60rem; }
article { border-top: 1px solid var(--line); padding: .5rem 0 1rem; }
code, pre { font: .9em ui-monospace, monospace; background: var(--soft); border-radius: 3px; padding: 0 .2em; }
pre { padding: .6em; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); padding: .3em .6em .3em 0; }
summary { cursor: pointer; }
small { font-weight: normal; }
@media (max-width: 50rem) { body { display: block; } }
"""
