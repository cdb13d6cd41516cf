"""What the sections of a job are made of: kinds of values, and what none may hold. Knows no section by name."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""0 to 1."""
Share = Annotated[float, Field(gt=0.0, le=1.0)]
"""0 to 1, and not 0."""
Inside = Annotated[float, Field(gt=0.0, lt=1.0)]
"""0 to 1, and neither."""
Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
"""Finite, from 0."""
Factor = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
"""Finite, over 0."""
Positive = Annotated[int, Field(ge=1)]
"""Whole, from 1."""
Count = Annotated[int, Field(ge=0)]
"""Whole, from 0."""
Text = Annotated[str, Field(min_length=1)]
"""Not empty."""

ANONYMOUS = ("anon", "cloud", "google_default", "browser")
"""Values of gcsfs's `token` that name a way to log in and hold no secret."""

_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]*@", re.IGNORECASE)
"""The start of a URL that carries a user's password."""

_SECRET_URL = re.compile(
    r"^[a-z]+://[^/\s]*@|://hooks\.slack\.com/|[?&](?:[\w-]*(?:token|secret|passw|sig|key)[\w-]*|code)=", re.IGNORECASE
)
"""A URL whose user, path or query lets whoever knows it in."""

_SECRET = re.compile(
    r"secret|passw|passphrase|token|authorization|cookie|privatekey|accountkey|customerkey|accesskey|apikey|sas|"
    r"connectionstring|credential|^key$"
)


class Section(BaseModel):
    """Part of a job: frozen, unknown keys refused, a docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: object, info: ValidationInfo) -> object:
        """A `true` is no 1: it stands where somebody mistook the field."""
        takes = bool in _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and not takes:
            raise PydanticCustomError("boolean", "expected another kind of value than true or false")
        return value


def refuse_passwords(uris: Mapping[str, str]) -> None:
    """Keep secrets out of what is recorded and shown.

    Args:
        uris: by field.

    Raises:
        ValueError: one carries a user's password or a signature; names its field.
    """
    for field, uri in uris.items():
        if _PASSWORD.match(uri):
            raise ValueError(f"{field} holds a password; put credentials in the environment instead")
        if is_signed(uri):
            raise ValueError(f"{field} holds a secret, and would be recorded; name the object by its plain URI")


def refuse_secrets(section: str, options: Mapping[str, Any]) -> None:
    """Keep secrets out of the options of other programs.

    Args:
        section: that holds them.
        options: by field.

    Raises:
        ValueError: a value looks like a secret, by its name or by a password inside a URL; names its field.
    """
    for path in _secret_paths(dict(options)):
        raise ValueError(f"{section}.{path} looks like a secret; put it in the environment instead")


def is_secret_url(url: str) -> bool:
    """Whether the URL itself lets whoever knows it in."""
    return _SECRET_URL.search(url) is not None


def is_signed(uri: str) -> bool:
    """Whether a URI of an object is one of the web whose query or user lets whoever knows it in."""
    return re.match("https?:", uri, re.IGNORECASE) is not None and is_secret_url(uri)


def refuse_above(low: tuple[str, float], high: tuple[str, float], so: str = "") -> None:
    """Keep two fields in order.

    Args:
        low: name and value of the one that must not be the greater.
        high: of the other.
        so: what would come of it.

    Raises:
        ValueError: they are not; names both.
    """
    if low[1] > high[1]:
        raise ValueError(f"{low[0]} {low[1]} is above {high[0]} {high[1]}{so}")


def _kinds(annotation: Any) -> set[Any]:
    """A field's type, and those it is made of."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


def _secret_paths(options: Any, path: str = "") -> list[str]:
    """Dotted paths of values that look like secrets, judged by their names and by passwords inside URLs."""
    if isinstance(options, dict):
        found = [f"{path}.{name}".lstrip(".") for name, value in options.items() if _is_secret(str(name), value)]
        return found or [deep for name, value in options.items() for deep in _secret_paths(value, f"{path}.{name}")]
    if isinstance(options, list):
        return [deep for place, value in enumerate(options) for deep in _secret_paths(value, f"{path}.{place}")]
    return [path.lstrip(".")] if isinstance(options, str) and _PASSWORD.match(options) else []


def _is_secret(name: str, value: object) -> bool:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return bool(value) and not isinstance(value, bool) and value not in ANONYMOUS and bool(_SECRET.search(plain))
