"""The OpenAPI document, with the headers that many answers have and no route declares.

Litestar documents headers for the success of a route alone, and the others are the same
wherever they occur.
"""

from collections.abc import Iterator
from dataclasses import fields
from http import HTTPStatus
from typing import Any, override

from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import OpenAPI

_RETRY_AFTER = {
    "description": "After how many seconds to ask again.",
    "schema": {"type": "integer", "minimum": 0},
}
_RETRY_AFTER_IN_USE = _RETRY_AFTER | {
    "description": "After how many seconds to ask again, while the first request under this"
    " idempotency key is still running."
}
_REPLAYED = {
    "description": "That this is the answer of the first request under this idempotency key.",
    "schema": {"type": "string", "enum": ["true"]},
}

_LATER = (str(int(HTTPStatus.SERVICE_UNAVAILABLE)), str(int(HTTPStatus.TOO_MANY_REQUESTS)))
_REMEMBERED = {
    str(int(each))
    for each in (
        HTTPStatus.OK,
        HTTPStatus.CREATED,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )
}
"""What may be the answer of a request that was carried out, or refused by the domain."""


class _Document(OpenAPI):
    """What is served."""

    @override
    def to_schema(self) -> dict[str, Any]:
        document = super().to_schema()
        for operation in _operations(document):
            keyed = any(
                each["name"] == "Idempotency-Key" for each in operation.get("parameters", ())
            )
            for status, response in operation["responses"].items():
                headers = response.setdefault("headers", {})
                if status in _LATER:
                    headers["Retry-After"] = _RETRY_AFTER
                if keyed and status in _REMEMBERED:
                    headers["Idempotency-Replayed"] = _REPLAYED
                if keyed and status == str(int(HTTPStatus.CONFLICT)):
                    headers["Retry-After"] = _RETRY_AFTER_IN_USE
        return document


class DocumentConfig(OpenAPIConfig):
    """As Litestar's own, and it documents those headers."""

    @override
    def to_openapi_schema(self) -> OpenAPI:
        plain = super().to_openapi_schema()
        return _Document(**{each.name: getattr(plain, each.name) for each in fields(plain)})


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in document["paths"].values():
        yield from (each for each in item.values() if isinstance(each, dict))
