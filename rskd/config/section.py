"""What every section of a configuration is made of: its base class, and types of values with their rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


def _without_password(uri: str) -> str:
    if re.match(r"[^/]*://[^/@]*:[^/@]*@", uri):
        raise ValueError(
            "is a URI with a password: leave it out, and give it by the environment, as "
            "MLFLOW_TRACKING_PASSWORD or PGPASSWORD"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_password)]  # a configuration is logged, and shown in forms and reports


def _scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value!r} is no finite number, text, true or false: give it one of these")
    return value


Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]  # of a folder, of a model
Beta = Annotated[float, Field(ge=0, lt=1)]
Auto = Literal["auto"]  # `rskd.plan` puts a number in its place
Count = Annotated[int, Field(ge=1)] | Auto  # of workers, of windows in a forward pass
Gpus = Annotated[float, Field(ge=0)] | Auto


_LONGEST_NAME = 64  # of an output's folder


def check_names(names: Iterable[str]) -> None:
    """ValueError unless there are names, each a folder's on any file system and store, without quotes in a shell."""
    found = list(names)
    if not found:
        raise ValueError("is empty: name at least one entry, or leave the section out")
    for name in found:
        if not re.fullmatch(rf"[\w=+@%(][\w \-.=+@%,()~]{{0,{_LONGEST_NAME - 1}}}", name) or name != name.strip():
            raise ValueError(
                f"{name!r} cannot be a name: use letters, digits, spaces and any of -_.=+@%,()~, "
                f"at most {_LONGEST_NAME} of them"
            )


class Section(BaseModel):
    """A section: frozen, without unknown keys; numbers are finite, and `true` is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(item, bool) for item in values) and info.field_name is not None:
            kinds = _leaves(cls.model_fields[info.field_name].annotation)
            if bool not in kinds and kinds & {int, float}:
                raise ValueError(f"{str(value).lower()} is not a number: write one")
        return value

    def _refuse_unused(self, method: str, used: set[str], options: Sequence[str]) -> None:
        """Raise for an option that differs from its default though `method` does not use it."""
        for option in options:
            field = type(self).model_fields[option]
            value = getattr(self, option)
            if option not in used and value != field.get_default():
                raise ValueError(f"{option}={value!r} is not used by {method}: remove it")


def _leaves(annotation: Any) -> set[Any]:
    """The types that a type is made of: int and None of `int | None`."""
    parts = get_args(annotation)
    return set().union(*map(_leaves, parts)) if parts else {annotation}
