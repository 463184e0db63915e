"""Whether the service lives, whether it can answer, and what its problems mean."""

import math
from http import HTTPStatus

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.plugins.prometheus import PrometheusController

from api.bodies.operations import Readiness, Status
from api.bodies.problems import ProblemType, ProblemTypes
from api.problems import problem_of, status_of
from api.responses import problems
from api.service import Service
from booking.errors import ServiceStopping, TaxiError, UnknownProblem
from booking.postgres import reads


class HealthController(Controller):
    """For whoever watches over the service."""

    tags = ("operations",)

    @get("/health", responses=problems(), operation_id="get_health")
    async def health(self) -> Status:
        """Answer, to show that the process lives. Asks nothing of the database."""
        return Status("alive")

    @get("/ready", responses=problems(), operation_id="get_readiness")
    async def ready(self, service: NamedDependency[Service]) -> Readiness:
        """Say whether the service can answer; 503 if the database does not, or it is to stop.

        A stale index does not make the service unready: answers then come from the database.
        """
        if service.stopping.told:
            raise ServiceStopping
        await service.look(reads.ping)
        lag_s = service.follower.lag_s
        return Readiness(
            status="ready",
            database="answers",
            index="fresh" if service.follower.fresh else "stale",
            index_lag_s=round(lag_s, 3) if math.isfinite(lag_s) else None,
        )


class ProblemsController(Controller):
    """What the `type` of a problem leads to."""

    path = "/problems"
    tags = ("problems",)

    @get(responses=problems(), operation_id="list_problems")
    async def list(self) -> ProblemTypes:
        """List every kind of problem that this service answers with."""
        return ProblemTypes([_described(each) for each in _kinds()])

    @get("/{name:str}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_problem")
    async def read(self, name: str) -> ProblemType:
        """Say what one kind of problem means."""
        for kind in _kinds():
            described = _described(kind)
            if described.type == f"/problems/{name}":
                return described
        raise UnknownProblem(field="name")


class MetricsController(PrometheusController):
    """For Prometheus."""

    tags = ("operations",)
    include_in_schema = False


_MODULES = {"booking.errors", "api.problems"}


def _kinds() -> list[type[TaxiError]]:
    found: list[type[TaxiError]] = []
    waiting = [TaxiError]
    while waiting:
        kind = waiting.pop()
        if kind.__module__ in _MODULES:
            found.append(kind)
        waiting.extend(kind.__subclasses__())
    return sorted(found, key=lambda kind: kind.__name__)


def _described(kind: type[TaxiError]) -> ProblemType:
    return ProblemType(problem_of(kind()).type, kind.default_message(), status_of(kind))
