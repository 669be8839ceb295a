"""Owns the OpenAPI document: what `contract.Operation`s say, in the words of OpenAPI 3.1. Adds nothing of its own but
the meaning of segments of paths, and the problems that follow from what an operation takes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import cleandoc
from itertools import groupby
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

import msgspec

from service.web.contract import Answer, AnyOperation, Stream, plain_schema
from service.web.problems import PROBLEMS, document

VERSION: Final = "3.1.0"

PROBLEM_TYPE: Final = "application/problem+json"

NO_NUL: Final = "^[^\\u0000]*$"
"""No parameter takes a NUL, which PostgreSQL cannot keep."""

_REF: Final = "#/components/schemas/{name}"

_UUID: Final = {"type": "string", "format": "uuid"}

_SEGMENTS: Final[Mapping[str, tuple[dict[str, Any], str, Any]]] = {
    "channel": ({"enum": ["email", "sms"]}, "The channel of the address.", "email"),
    "address": (
        {"type": "string", "minLength": 1, "format": "address"},
        "An e-mail address, or a number with or without its plus sign. Percent-encode it once, as one segment.",
        "ann@example.com",
    ),
    "id": (_UUID, "Its id, as lists show it.", "0b6e7b5c-4f0e-4d0a-9d6a-1f2e3d4c5b6a"),
    "correction_id": ({"type": "integer", "minimum": 1, "maximum": 10**17}, "Its id, as lists show it.", 17),
    "batch_id": (_UUID, "The id of the batch.", "019c13a5-5c80-7000-8000-0123456789ab"),
    "entry_index": ({"type": "integer", "minimum": 0, "maximum": 999_999_999}, "Its place in the batch.", 0),
    "namespace": ({"type": "string", "minLength": 1}, "The namespace that the callback is for.", "default"),
    "token": ({"type": "string", "minLength": 1}, "The namespace's `CALLBACK_TOKEN`.", "7cyTSXuJ3Ge8"),
}

_TAGS: Final = {
    "Suppressions": "May we message them? Questions and writes of internal services.",
    "Operators": "What operators ask and decide.",
    "Callbacks": "Where Kahuna calls us.",
    "Service": "For machines that watch us, and this document.",
}

_ABOUT: Final = """\
One suppression list for both directions of Kahuna's Email Sync and SMS Sync.

Bodies are JSON in UTF-8, as they are or with `Content-Encoding: gzip`; times are RFC 3339 in UTC. Every answer
carries `X-Request-ID`: the one that was sent, or a new one. Errors are `application/problem+json` (RFC 9457) with a
stable slug as `type`; those that an operation may answer are listed with it. Beside them, any path may answer 404
`not-found` (nothing is there), 405 `method-not-allowed` with `Allow`, 414 `path-too-long` and 500 `internal-error`.
Unknown and repeated query parameters are errors. Whatever takes GET takes HEAD too, with the
same headers and no body."""

_STORAGE: Final = ("storage-unavailable", "storage-outdated", "storage-busy")


def described(operations: Iterable[AnyOperation], version: str) -> dict[str, Any]:
    """The document of these operations."""
    operations = list(operations)
    kinds = {kind for operation in operations for kind in _kinds_of(operation)}
    _, schemas = msgspec.json.schema_components(sorted(kinds, key=repr), ref_template=_REF)
    return {
        "openapi": VERSION,
        "info": {"title": "Kahuna Sync", "version": version, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": says} for name, says in _TAGS.items()],
        "paths": _paths(operations),
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM},
            "headers": {"RequestId": {"schema": {"type": "string"}, "description": "The id of the request."}},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token: `kahuna-sync token create --name … --scopes …`.",
                },
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Kahuna-Signature",
                    "description": "What Kahuna signs its callbacks with: the namespace's API Key, over the addresses.",
                },
            },
        },
    }


def path_of(path: str) -> str:
    """A path of the router's, as the document has it."""
    return re.sub(r":\w+}", "}", path)


def slugs_of(operation: AnyOperation) -> list[str]:
    """Everything that it may be refused with: what follows from what it takes, and its own."""
    slugs = [*operation.problems]
    if operation.app is None:
        slugs += _of_query(operation)
        slugs += ("unauthenticated", "missing-scope", "rate-limited", *_STORAGE) if operation.scope else ()
        slugs += _of_body(operation)
        slugs += ("unknown-channel", "other-channel") if "{channel}" in operation.path else ()
        slugs += ("bad-encoding", "impossible-address", "not-found") if "{address" in operation.path else ()
    return sorted(set(slugs), key=lambda slug: (PROBLEMS[slug].status, slug))


def _of_query(operation: AnyOperation) -> list[str]:
    fields = {one.encode_name: plain_schema(one.type) for one in msgspec.structs.fields(operation.query)}
    slugs = ["unknown-parameter"]
    if fields:
        slugs += ["repeated-parameter", "invalid-parameter"]
    if "namespace" in fields:
        slugs += ["namespace-required", "other-namespace", "unknown-namespace"]
    if any(schema.get("format") == "date-time" for schema in fields.values()):
        slugs.append("invalid-time")
    return slugs


def _of_body(operation: AnyOperation) -> list[str]:
    if operation.body is not None:
        return ["not-json", "invalid-body", "body-too-large", "body-too-slow", "unsupported-encoding", "not-gzip"]
    return ["unsupported-media-type"] if operation.streams else []


def _kinds_of(operation: AnyOperation) -> list[Any]:
    """The shapes that it speaks of. Parameters are not among them: they are told one by one."""
    answered = [kind for answer in operation.answers for kind in _alternatives(answer.kind)]
    return [*([operation.body.kind] if operation.body else []), *filter(_is_shape, answered)]


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _paths(operations: Sequence[AnyOperation]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for operation in operations:
        together = [o for o in operations if (o.path, o.method) == (operation.path, operation.method)]
        if together[0] is operation:
            paths.setdefault(path_of(operation.path), {})[operation.method.lower()] = _operation(together)
    return paths


def _operation(together: Sequence[AnyOperation]) -> dict[str, Any]:
    """One operation of the document: those of ours that only the kind of the body tells apart are one."""
    first = together[0]
    says = [
        cleandoc(operation.says or (operation.handler and operation.handler.__doc__) or "") for operation in together
    ]
    summary, rests = says[0].partition("\n\n")[0], [text.partition("\n\n")[2] for text in says]
    bodies = {media_type: body for operation in together for media_type, body in _bodies(operation).items()}
    required = not any(operation.body is not None and operation.body.optional for operation in together)
    slugs = {slug: None for operation in together for slug in slugs_of(operation)}
    return {
        "operationId": _id_of(first),
        "summary": " ".join(summary.split()).rstrip("."),
        **({"description": more} if (more := "\n\n".join(filter(None, rests))) else {}),
        "tags": [_tag(first.path)],
        "parameters": [*_in_path(first), *_in_query(first), *_in_headers(first)],
        **({"requestBody": {"required": required, "content": bodies}} if bodies else {}),
        "responses": _responses([answer for operation in together for answer in operation.answers], list(slugs)),
        "security": _security(first),
    }


def _security(operation: AnyOperation) -> list[dict[str, list[str]]]:
    if operation.scope is None:
        return []
    return [{"signature": []}] if operation.scope == "signature" else [{"token": [operation.scope]}]


def _id_of(operation: AnyOperation) -> str:
    if operation.handler is not None:
        return operation.handler.__name__
    words = re.findall(r"\w+", operation.path)
    return "_".join([operation.method.lower(), *words])


def _tag(path: str) -> str:
    tags = {"/v1/admin": "Operators", "/v1": "Suppressions", "/webhooks": "Callbacks", "/api": "Callbacks"}
    return next((tag for start, tag in tags.items() if path.startswith(start)), "Service")


def _in_path(operation: AnyOperation) -> list[dict[str, Any]]:
    found = []
    for name in re.findall(r"{(\w+)", operation.path):
        schema, says, example = _SEGMENTS[name]
        found.append(
            {"name": name, "in": "path", "required": True, "description": says, "schema": schema, "example": example}
        )
    return found


def _in_query(operation: AnyOperation) -> list[dict[str, Any]]:
    found = []
    for one in msgspec.structs.fields(operation.query):
        schema = plain_schema(one.type)
        says, examples = schema.pop("description", ""), schema.pop("examples", None)
        if schema.get("type") == "string" and not schema.keys() & {"format", "pattern"}:
            schema["pattern"] = NO_NUL
        if one.default not in (None, msgspec.NODEFAULT):
            schema["default"] = one.default
        found.append(
            {"name": one.encode_name, "in": "query", "required": one.required, "description": says, "schema": schema}
            | ({"example": examples[0]} if examples else {})
        )
    return found


def _in_headers(operation: AnyOperation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": says, "schema": _header_schema(name)}
        for name, says in operation.headers.items()
    ]


def _header_schema(name: str) -> dict[str, Any]:
    return {"enum": ["identity", "gzip"]} if name == "Content-Encoding" else {"type": "string"}


def _bodies(operation: AnyOperation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if operation.body is not None:
        found["application/json"] = {"schema": _schema(operation.body.kind), "example": operation.body.example}
    for media_type, told in operation.streams.items():
        stream = Stream(told) if isinstance(told, str) else told
        found[media_type] = {"schema": {**stream.schema, "description": stream.says}}
        if stream.example is not None:
            found[media_type]["example"] = stream.example
    return found


def _responses(answers: Sequence[Answer], slugs: Sequence[str]) -> dict[str, Any]:
    """By their status: the documents, and below them the problems."""
    found: dict[str, Any] = {}
    for answer in answers:
        response = found.setdefault(str(answer.status), {"description": answer.says, "headers": {}})
        response["headers"] |= _headers(answer.headers)
        if answer.kind is not None:
            response.setdefault("content", {})[answer.media_type] = _content(answer)
    for status, these in groupby(sorted(slugs, key=_status_of), key=_status_of):
        names = list(these)
        response = found.setdefault(str(status), {"description": "", "headers": {}})
        for name in names:
            response["headers"] |= _headers(_HEADERS.get(name, {}))
        response.setdefault("content", {})[PROBLEM_TYPE] = _problems(names)
        refused = f"Refused: {', '.join(f'`{name}`' for name in names)}."
        response["description"] = f"{response['description']} {refused}".strip()
    return dict(sorted(found.items()))


def _status_of(slug: str) -> int:
    return PROBLEMS[slug].status


_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    "unauthenticated": {"WWW-Authenticate": "`Bearer`."},
    "rate-limited": {"Retry-After": "Seconds to wait."},
    "storage-unavailable": {"Retry-After": "Seconds until the next try."},
}
"""What answers with these problems, and with others of the same status, carry."""


def _headers(headers: Mapping[str, str]) -> dict[str, Any]:
    request_id = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
    return request_id | {
        name: {"description": says, "required": True, "schema": {"type": "string"}} for name, says in headers.items()
    }


def _content(answer: Answer) -> dict[str, Any]:
    kinds = [_schema(kind) for kind in _alternatives(answer.kind)]
    content = {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}
    return content if answer.example is None else content | {"example": answer.example}


def _schema(kind: Any) -> dict[str, Any]:
    if kind is bytes:
        return {}
    return {"$ref": _REF.format(name=kind.__name__)} if _is_shape(kind) else msgspec.json.schema(kind)


def _is_shape(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _problems(slugs: Sequence[str]) -> dict[str, Any]:
    examples = {slug: {"value": document(slug, PROBLEMS[slug].says, PROBLEMS[slug].status)} for slug in slugs}
    known = {"properties": {"type": {"enum": list(slugs)}}}
    return {"schema": {"allOf": [{"$ref": _REF.format(name="Problem")}, known]}, "examples": examples}


_PROBLEM: Final = {
    "type": "object",
    "description": "What is wrong, and what to send instead (RFC 9457).",
    "properties": {
        "type": {"type": "string", "description": "A stable slug."},
        "title": {"type": "string", "description": "The slug in words."},
        "status": {"type": "integer", "description": "The status of the answer."},
        "detail": {"type": "string", "description": "What is wrong this time, and what to send instead."},
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": False,
}
