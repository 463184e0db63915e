"""Which values a field may have, for whoever gave another: msgspec says only that it is wrong."""

import re
from collections.abc import Sequence
from typing import Any

from msgspec.inspect import (
    CollectionType,
    DictType,
    EnumType,
    Metadata,
    StructType,
    Type,
    UnionType,
    type_info,
)

_WRONG = "Invalid enum value"
_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


def with_choices(rule: str, annotation: Any, path: str = "") -> str:
    """The rule that msgspec says was broken; of an enum, with its values.

    `annotation` is the type that was asked for, `path` where in it, as in `recurrence.weekdays[0]`.
    """
    if not rule.startswith(_WRONG):
        return rule
    choices = _choices(type_info(annotation), _STEP.findall(path))
    return f"{rule.rstrip('.')}; it may be {', '.join(choices)}." if choices else rule


def _choices(node: Type, steps: Sequence[str]) -> list[str]:
    within: Sequence[Type] = ()
    match node:
        case EnumType() if not steps:
            return [str(each.value) for each in node.cls]
        case Metadata():
            within = [node.type]
        case UnionType():
            within = node.types
        case StructType() if steps:
            within = [each.type for each in node.fields if each.encode_name == steps[0]]
            steps = steps[1:]
        case CollectionType() if steps:
            within, steps = [node.item_type], steps[1:]
        case DictType():
            within, steps = [node.value_type if steps else node.key_type], steps[1:]
        case _:
            pass
    return [each for one in within for each in _choices(one, steps)]
