"""The OpenAPI document is valid, and says what there is."""

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

Wish = Callable[..., dict[str, Any]]


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/docs/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_the_document_validates(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()
    broken = {key: value for key, value in document.items() if key != "info"}
    assert list(OpenAPIV31SpecValidator(broken).iter_errors()), "the control must not validate"


def test_every_operation_is_named_described_and_documents_its_problems(
    document: dict[str, Any],
) -> None:
    ids = []
    for path, method, operation in operations(document):
        ids.append(operation["operationId"])
        assert operation["description"], (path, method)
        for status, response in operation["responses"].items():
            if status == "304":
                assert "content" not in response
                continue
            found = "text/calendar" if path.endswith(".ics") else "application/json"
            found = "text/event-stream" if path.endswith("/stream") else found
            expected = "application/problem+json" if status >= "400" else found
            assert list(response["content"]) == [expected], (path, method, status)
    assert len(ids) == len(set(ids)) > 15


def test_whoever_asks_what_a_path_allows_is_told_every_method_that_is_documented(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    for path, item in document["paths"].items():
        told = client.options(re.sub(r"\{\w+_id\}", "1", path)).headers["Allow"].split(", ")
        assert {each.upper() for each in item} | {"OPTIONS"} == set(told) - {"HEAD"}, path


def test_every_request_that_changes_something_takes_an_idempotency_key(
    document: dict[str, Any],
) -> None:
    taking = {
        operation["operationId"]
        for _, method, operation in operations(document)
        if any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ()))
    }
    changing = {
        operation["operationId"] for _, method, operation in operations(document) if method != "get"
    }
    # What changes nothing; and what is not to be kept, as its body or its answer holds a secret.
    secret = {"create_token", "add_account", "change_password"}
    links = {"link_rider_calendar", "link_driver_calendar"}
    assert taking == changing - {"check_booking"} - secret - links


def test_the_headers_of_an_answer_that_is_late_or_given_again_are_documented(
    document: dict[str, Any],
) -> None:
    for path, method, operation in operations(document):
        takes = {each["name"] for each in operation.get("parameters", ())}
        answers = operation["responses"]
        assert "Retry-After" in answers["503"]["headers"], (path, method)
        said = {
            status for status, each in answers.items() if "Idempotency-Replayed" in each["headers"]
        }
        assert bool(said & {"200", "201"}) is ("Idempotency-Key" in takes), (path, method)
        assert said.isdisjoint({"400", "413", "415", "503"})


def test_a_body_that_may_be_left_out_is_documented_as_optional(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    for path, method, operation in operations(document):
        body = operation.get("requestBody")
        if body is None or method != "post":
            continue
        existing = path.replace("{booking_id}", str(2**52)).replace("{webhook_id}", "1")
        sent = client.post(existing)
        assert body["required"] is (sent.status_code != 404), path


def test_the_examples_of_a_booking_can_be_sent(
    client: httpx.Client, document: dict[str, Any], driver_id: int, rider_id: int
) -> None:
    content = document["paths"]["/bookings"]["post"]["requestBody"]["content"]
    examples = content["application/json"]["schema"]["examples"]
    assert len(examples) == 2
    for example in examples:
        own = {"rider_id": rider_id} | ({"driver_id": driver_id} if "driver_id" in example else {})
        assert client.post("/bookings", json=example | own).status_code == HTTPStatus.CREATED
