"""Impairments as requests name them; also in a notation that fits into a model's name: ``noise:0.5,cluster=toxic``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shapley.impairment import NOISE_KINDS, Impairment
from shapley.types import Kind, Site, Unit

MOST_NOISE = 100.0  # site standard deviations: far beyond where any model is broken
_NAME = r"^[A-Za-z0-9._-]{1,64}$"


class Asked(BaseModel):
    """An impairment by kind, strength, site and cluster.

    ``strength`` is in standard deviations of the site for noise, negative-noise and shift, and a fraction from 0 to 1 for the
    other kinds. ``cluster`` is the name of one that the operator registered; without it, everything is impaired.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    strength: Annotated[float, Field(ge=0, le=MOST_NOISE, allow_inf_nan=False)]
    site: Site = "mlp_hidden"
    cluster: Annotated[str, Field(pattern=_NAME)] | None = None

    @model_validator(mode="after")
    def _fraction(self) -> Asked:
        if self.kind not in NOISE_KINDS and self.strength > 1:
            raise ValueError(f"the strength of {self.kind} is a fraction from 0 to 1")
        return self

    def same_place(self, other: Asked) -> bool:
        """Whether both do the same thing to the same columns, but for how strongly."""
        return (self.kind, self.site, self.cluster) == (other.kind, other.site, other.cluster)

    def impairment(self, seed: int) -> Impairment:
        """With the server's noise. The maximum of negative noise is over a token's columns: over a prompt it would depend on
        whether tokens go through the model together or one by one."""
        unit: Unit = "sd" if self.kind in NOISE_KINDS else "absolute"
        return Impairment(self.kind, self.strength, self.site, unit, scope="token", seed=seed)

    def text(self) -> str:
        """In the notation that ``parse`` reads."""
        parts = [f"{self.kind}:{self.strength:g}"]
        if self.cluster is not None:
            parts.append(f"cluster={self.cluster}")
        if self.site != "mlp_hidden":
            parts.append(f"site={self.site}")
        return ",".join(parts)


def parse(text: str) -> Asked:
    """Read ``KIND:STRENGTH[,cluster=NAME][,site=SITE]``.

    Raises:
        ValueError: not in this notation, with a line that says what is wrong.
    """
    first, *settings = text.split(",")
    kind, colon, strength = first.partition(":")
    fields: dict[str, Any] = {"kind": kind.strip(), "strength": strength.strip()}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip()
        if not equals or name not in ("cluster", "site") or name in fields:
            raise ValueError(f"{setting.strip()!r}: expected cluster=NAME or site=SITE, each once")
        fields[name] = value.strip()
    if not colon:
        raise ValueError("expected KIND:STRENGTH[,cluster=NAME][,site=SITE], as noise:0.5 or scale:0.3,cluster=toxic")
    if "_" in strength:  # 1_0 would be read as ten
        raise ValueError("strength: expected a number")
    try:
        return Asked.model_validate(fields)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def first_problem(error: ValidationError) -> str:
    """The first of what is wrong, with the field's name and without its value."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    message = str(found["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
