"""Record: the base of everything declared; frozen, strict, and with all its faults named at once.

Owns how a record finds keys that contradict each other. It knows no key by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = ["Conflicts", "Given", "Record"]

Given = Mapping[str, Any]
Conflicts = Iterator["tuple[str, str]"]
"""Keys that can't stand as given, each with the reason."""


class Record(BaseModel):
    """Base of all declared records: frozen, no unknown keys, no silent conversion."""

    # Validators are built on first use: a run that loads a file needs only that of the pipeline.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False, defer_build=True
    )

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Keys that contradict each other or that this record can't honour; ``given`` is as written, unchecked."""
        return iter(())

    @model_validator(mode="wrap")
    @classmethod
    def _everything_at_once(cls, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        # A validator that runs after the fields would be silent while any field is wrong; people want the whole list.
        faults = list(cls.conflicts(value)) if isinstance(value, dict) else []
        if not faults:
            return handler(value)
        details: list[InitErrorDetails] = []
        try:
            handler(value)
        except ValidationError as error:
            details = [
                _again(e["type"], e["msg"], e.get("ctx", {}), e["loc"], e["input"])
                for e in error.errors(include_url=False)
            ]
        details += [_again("conflict", reason, {}, (key,), value.get(key)) for key, reason in faults]
        raise ValidationError.from_exception_data(cls.__name__, details)

    @classmethod
    def given_keys(cls, given: Given) -> list[str]:
        """Keys that say something: neither null nor empty nor the default."""
        keys = []
        for key, value in given.items():
            field = cls.model_fields.get(key)
            if field is None or value is None or (isinstance(value, (list, tuple, dict)) and not value):
                continue
            if not (isinstance(value, (str, int)) and type(value) is type(field.default) and value == field.default):
                keys.append(key)
        return keys


def _again(
    kind: str, message: str, about: Mapping[str, Any], loc: tuple[int | str, ...], value: Any
) -> InitErrorDetails:
    # ``{reason}`` keeps braces of the message from being read as fields of a template.
    error = PydanticCustomError(kind, "{reason}", {**about, "reason": message})
    return InitErrorDetails(type=error, loc=loc, input=value)
