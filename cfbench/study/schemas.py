"""Bodies that the study's routes take: one table checks them and describes them (OpenAPI)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cfbench.study.tables import ANSWERS
from cfbench.study.writer import RefusedError

LONGEST_S = 1e6
LONGEST_TEXT = 2000


class Text(NamedTuple):
    """A string of at most ``most`` characters; one of ``values`` where there are any."""

    most: int
    values: tuple[str, ...] = ()
    default: str | None = None

    def wrong(self, value: Any) -> str:
        """What is wrong with a value; empty when nothing is."""
        if not isinstance(value, str):
            return "expected a string"
        if self.values and value not in self.values:
            return f"expected one of {', '.join(self.values)}"
        if len(value) > self.most:
            return f"expected at most {self.most} characters"
        # A lone surrogate is no text that could be stored.
        return "" if value.isascii() or _is_unicode(value) else "expected Unicode text"

    def described(self) -> dict[str, Any]:
        """JSON schema."""
        if self.values:
            return {"type": "string", "enum": list(self.values)}
        return {"type": "string", "maxLength": self.most}


class Number(NamedTuple):
    """A number from 0 to ``most``."""

    most: float
    whole: bool = False
    default: float | None = None

    def wrong(self, value: Any) -> str:
        """What is wrong with a value; empty when nothing is."""
        kinds = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return "expected a whole number" if self.whole else "expected a number"
        # Not-a-number is between no two numbers.
        return "" if 0 <= value <= self.most else f"expected 0 to {self.most:g}"

    def described(self) -> dict[str, Any]:
        """JSON schema."""
        kind = "integer" if self.whole else "number"
        return {"type": kind, "minimum": 0, "maximum": self.most}


class Yes(NamedTuple):
    """The value true."""

    default: bool | None = None

    def wrong(self, value: Any) -> str:
        """What is wrong with a value; empty when nothing is."""
        return "" if value is True else "expected true"

    def described(self) -> dict[str, Any]:
        """JSON schema."""
        return {"type": "boolean", "const": True}


Body = Mapping[str, Text | Number | Yes]

SESSION: Body = {"consent": Yes(), "participant": Text(100, default="")}
RESUME: Body = {"token": Text(64)}
NOTHING: Body = {}
COMMENT: Body = {"text": Text(LONGEST_TEXT)}
VOTE: Body = {
    "item": Number(1e4, whole=True),
    "question": Text(40),
    "answer": Text(10, ANSWERS),
    "reason": Text(LONGEST_TEXT, default=""),
    "watched_left_s": Number(LONGEST_S),
    "watched_right_s": Number(LONGEST_S),
    "replays": Number(1e4, whole=True, default=0),
    "hidden_s": Number(LONGEST_S, default=0.0),
    "response_s": Number(LONGEST_S, default=0.0),
    "client": Text(64, default=""),
}

BODIES: Mapping[str, Body] = {
    "vote": VOTE, "session": SESSION, "resume": RESUME, "block": NOTHING, "comment": COMMENT
}  # fmt: skip
"""By route, ``/api/<name>``."""
REFUSALS = (404, 409, 413, 415, 422, 429)


def checked(tree: Any, body: Body) -> dict[str, Any]:
    """The values of a JSON tree that is as ``body`` says, defaults filled in.

    Raises:
        RefusedError: an unknown, missing or wrong value (422), with its name.
    """
    if not isinstance(tree, dict):
        raise RefusedError("expected a JSON object", 422)
    if not tree.keys() <= body.keys():
        raise RefusedError("the request has unknown fields", 422)
    found: dict[str, Any] = {}
    for name, field in body.items():
        value = tree.get(name, field.default)
        problem = field.wrong(value)
        if problem:
            raise RefusedError(f"{name}: {problem}", 422)
        found[name] = value
    return found


def described(body: Body) -> dict[str, Any]:
    """JSON schema of a body."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: field.described() for name, field in body.items()},
        "required": [name for name, field in body.items() if field.default is None],
    }


def openapi() -> dict[str, Any]:
    """What the routes take and answer, as an OpenAPI document; it is not served."""
    token = {"name": "x-study-token", "in": "header", "schema": {"type": "string"}}
    answers = {str(status): {"description": "refused"} for status in REFUSALS}
    paths = {
        f"/api/{name}": {
            "post": {
                "parameters": [token],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": described(body)}},
                },
                "responses": {"200": {"description": "done"}, **answers},
            }
        }
        for name, body in BODIES.items()
    }
    return {"openapi": "3.1.0", "info": {"title": "study", "version": "1"}, "paths": paths}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
