"""`Place`: where a trip begins or ends."""

from dataclasses import dataclass

from booking.errors import InvalidInput

_LATITUDE_DEG_MAX = 90
_LONGITUDE_DEG_MAX = 180


@dataclass(frozen=True, slots=True)
class Place:
    """A point on the Earth, in degrees of WGS 84: north and east are positive.

    Raises `InvalidInput`, naming the field, for a latitude beyond 90 or a
    longitude beyond 180 degrees, and for what is not a number.
    """

    latitude_deg: float
    longitude_deg: float

    def __post_init__(self) -> None:
        _check("latitude_deg", self.latitude_deg, _LATITUDE_DEG_MAX)
        _check("longitude_deg", self.longitude_deg, _LONGITUDE_DEG_MAX)


def _check(field: str, angle_deg: float, deg_max: int) -> None:
    # Written this way round, as every comparison with NaN is false.
    if not -deg_max <= angle_deg <= deg_max:
        name = field.removesuffix("_deg")
        raise InvalidInput(
            f"A {name} lies between -{deg_max} and {deg_max} degrees; this is {angle_deg}.",
            field=field,
        )
