"""What declarations are made of: their base class, common types, and errors that name the key, the value, the way out.

The modules of this folder declare; they decide no result. A rule passes resolved settings on, so that these values,
not this code, are what makes a result stale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from po_dynamics.errors import InputError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["constant", "linear", "cosine"]

Item = TypeVar("Item")


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(items)) < len(items):
        raise mistake("", list(items), "a list without repetition")
    return items


Some = Annotated[tuple[Item, ...], Field(min_length=1, strict=False)]  # a list of at least one entry
Distinct = Annotated[Some[Item], Field(json_schema_extra={"uniqueItems": True}), AfterValidator(_distinct)]
Steps = Annotated[Distinct[Count], AfterValidator(lambda steps: tuple(sorted(steps)))]


def like(key: str) -> Any:
    """A default that is the value of another key, which is declared before."""
    return Field(default_factory=lambda given: given[key], json_schema_extra={"x-default": key})


def mistake(key: str, seen: Any, allowed: str) -> PydanticCustomError:
    """What a check of a section raises about one of its keys (of a value: about itself, with key "")."""
    return PydanticCustomError("mistake", "{allowed}", {"key": key, "seen": seen, "allowed": allowed})


class Settings(BaseModel):
    """A section of the configuration. The line below a key says what it means; both go into docs/settings.md."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        unknown = [key for key in given if key not in cls.model_fields] if isinstance(given, Mapping) else []
        if unknown:
            raise PydanticCustomError("unknown", "", {"key": str(unknown[0]), "allowed": ", ".join(cls.model_fields)})
        return given

    @classmethod
    def of(cls, settings: Mapping[str, Any] | Self, key: str = "") -> Self:
        """Checked settings with all defaults; `key` is where they stand in the configuration.

        Raises:
            InputError: one line naming the key, the value and what is allowed.
        """
        if isinstance(settings, cls):
            return settings
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise InputError(_describe(error.errors(include_url=False), settings, key)) from None

    def resolved(self) -> dict[str, Any]:
        """All values, given or by default, as plain JSON."""
        return self.model_dump(mode="json")


def _describe(errors: Sequence[ErrorDetails], given: Any, root: str) -> str:
    """The first mistake in one line; where a value has several readings, of the reading that came furthest."""
    located = [(_place(error, given), error) for error in errors if error["type"] != "default_factory_not_called"]
    first = located[0][0]
    place = max((place for place, _ in located if place[: len(first)] == first), key=len)
    found = [error for other, error in located if other == place]
    key, context = ".".join([*filter(None, [root]), *place]), found[0].get("ctx", {})
    if found[0]["type"] == "unknown":
        return f"configuration key '{key}' is unknown; allowed here: {context['allowed']}"
    if found[0]["type"] in ("missing", "union_tag_not_found"):
        return f"configuration key '{key}' is missing"
    seen = context.get("seen", context.get("tag", found[0]["input"]))
    allowed = " or ".join(dict.fromkeys(map(_allowed, found)))
    return f"configuration key '{key}' is {seen!r}; it must be {allowed}"


def _place(error: ErrorDetails, given: Any) -> tuple[str, ...]:
    """The keys that lead to a mistake; pydantic also names the readings of a union, which stand in no configuration."""
    place: list[str] = []
    for part in error["loc"]:
        if isinstance(given, Mapping | Sequence) and (part in given or isinstance(part, int)):
            given = given[part]  # type: ignore[index]
            place.append(str(part))
    context = error.get("ctx", {})
    last = error["loc"][-1] if error["type"] == "missing" else context.get("key", context.get("discriminator", ""))
    return (*place, *filter(None, [str(last).strip("'")]))


def _allowed(error: ErrorDetails) -> str:
    context, kind = error.get("ctx", {}), error["type"]
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall("'([^']*)'", context.get("expected") or context["expected_tags"])
        return f"one of {', '.join(choices)}"
    if kind.endswith("_type"):
        return f"of type {_TYPES.get(kind, kind.removesuffix('_type'))}"
    wording = _WORDING.get(kind)
    return wording.format(**context) if wording else error["msg"]


_TYPES = {"int_type": "integer", "float_type": "number", "bool_type": "boolean", "model_type": "object"} | {
    f"{name}_type": word for name, word in {"dict": "object", "list": "array", "tuple": "array"}.items()
}
_WORDING = {
    "mistake": "{allowed}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "too_short": "of at least {min_length} entries",
}
