"""How Kahuna's answers become structures: whatever they hold, nothing is lost and nothing breaks.

Owns the tolerance: an unknown field, and one of a type that was not expected, is kept in `extra` under the vendor's
name and spoils neither its record nor its neighbours. Refuses to know any API.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar

import msgspec

NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What every structure from Kahuna has: the fields that are not the contract's, as they came.

    Its repr shows the fields in `shown` alone, since most others may be somebody's address. The fields in `derived`
    are ours: a field of the vendor's by the same name is not taken for them.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    derived: ClassVar[tuple[str, ...]] = ()

    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)
        return f"{type(self).__name__}({told})"


_Shape = TypeVar("_Shape", bound=Kept)


def read(
    shape: type[_Shape], document: Mapping[str, Any], names: Mapping[str, str] = NO_NAMES, **derived: Any
) -> _Shape:
    """The structure of a JSON object. `names` gives our field for the vendor's names that are not the same."""
    types = _types(shape)
    if not names and not derived and document.keys() <= types.keys():
        try:
            return msgspec.convert(document, shape)
        except (msgspec.ValidationError, RecursionError):
            pass  # field by field, to find the one
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    # Where the vendor's name for a field is there, our own name for it is some other field of the vendor's.
    meant = {field for name, field in names.items() if name in document and name != field}
    for key, value in document.items():
        field = names.get(key, "" if key in meant else key)
        try:
            known[field] = msgspec.convert(value, types[field])
        except (KeyError, msgspec.ValidationError, RecursionError):
            extra[key] = value
    return shape(**known, **derived, extra=extra)


def read_each(shape: type[_Shape], items: list[Any], names: Mapping[str, str] = NO_NAMES) -> list[_Shape]:
    """The structures of a list, as many and in the same order. What is no object is `extra` alone, named `value`."""
    return [read(shape, item if isinstance(item, dict) else {"value": item}, names) for item in items]


@cache
def _types(shape: type[Kept]) -> Mapping[str, Any]:
    ours = {"extra", *shape.derived}
    return MappingProxyType({f.name: f.type for f in msgspec.structs.fields(shape) if f.name not in ours})
