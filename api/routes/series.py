"""`/series`: bookings that come again and again, meant by the clock on the wall."""

from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg, JSONBody, PathParameter
from msgspec import structs

from api.bodies.bookings import Cancellation
from api.bodies.common import ID_MAX
from api.bodies.problems import Problem
from api.bodies.series import OccurrenceOut, SeriesDetail, SeriesIn, SeriesOut, SeriesProblem
from api.idempotency import Command, KeyHeader
from api.problems import problem_of
from api.requests import StrictRequest
from api.responses import LOCATION, BodyMayBeLeftOut, body_problems, problem_spec, problems
from api.service import Service
from booking.errors import TaxiError
from booking.postgres.series import (
    Series,
    SeriesRefused,
    StoredSeries,
    book_series_in,
    cancel_series_in,
    read_series,
)

SeriesPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]
SeriesBody = Annotated[
    SeriesIn,
    BodyKwarg(
        media_type=RequestEncodingType.JSON,
        examples=[
            Example(
                summary="Every weekday at half past seven in Berlin",
                value={
                    "rider_id": 1,
                    "recurrence": {
                        "zone": "Europe/Berlin",
                        "wall_clock": "07:30",
                        "duration_s": 1800,
                        "weekdays": ["monday", "tuesday", "wednesday", "thursday", "friday"],
                        "first_date": "2027-01-04",
                        "count": 10,
                    },
                    "on_conflict": "skip",
                },
            )
        ],
    ),
]


def _series_problems() -> dict[int, ResponseSpec]:
    return body_problems(HTTPStatus.NOT_FOUND) | {
        409: problem_spec(HTTPStatus.CONFLICT, SeriesProblem)
    }


class SeriesController(Controller):
    """Bookings that come again and again."""

    path = "/series"
    tags = ("series",)

    @post(responses=_series_problems(), response_headers=[LOCATION], operation_id="book_series")
    async def book(
        self,
        data: SeriesBody,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[SeriesOut]:
        """Book every occurrence of a recurrence, each checked and answered by itself.

        Half past seven stays half past seven when the clocks change. With
        `all_or_nothing` one occurrence that cannot be booked refuses them all; with
        `skip` the others are booked.
        """
        wanted = data.request()
        command = Command(
            lambda connection: book_series_in(service.ledger, connection, wanted),
            SeriesOut.of,
            explain=_explain,
            note=lambda series: _note(service, series),
            status=HTTPStatus.CREATED,
            collection="/series",
            takes_time=True,
        )
        return await service.commands.run(request, idempotency_key, command)

    @get("/{series_id:int}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_series")
    async def read(self, series_id: SeriesPath, service: NamedDependency[Service]) -> SeriesDetail:
        """Read a series: what was meant, and its bookings as they stand now."""
        return SeriesDetail.of(await service.look(lambda c: read_series(c, series_id)))

    @post(
        "/{series_id:int}/cancel",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="cancel_series",
        operation_class=BodyMayBeLeftOut,
    )
    async def cancel(
        self,
        series_id: SeriesPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Cancellation] | None = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[SeriesDetail]:
        """Cancel every booking of a series that has not begun, all at once."""
        reason = None if data is None else data.reason
        command = Command(
            lambda connection: cancel_series_in(service.ledger, connection, series_id, reason),
            SeriesDetail.of,
            note=lambda series: _note(service, series),
        )
        return await service.commands.run(request, idempotency_key, command)


def _note(service: Service, series: Series | StoredSeries) -> None:
    """Let this process see at once what was booked or cancelled."""
    booked = (
        series.bookings
        if isinstance(series, StoredSeries)
        else [each.booking for each in series.outcomes if each.booking is not None]
    )
    for booking in booked:
        service.advice.note(booking)


async def _explain(error: TaxiError) -> Problem:
    problem = problem_of(error)
    if not isinstance(error, SeriesRefused):
        return problem
    occurrences = [OccurrenceOut.of(each, booked=False) for each in error.outcomes]
    return SeriesProblem(**structs.asdict(problem), occurrences=occurrences)
