"""What goes wrong with a request, as the OpenAI API tells it: a status and a JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zaya_jax.errors import hint

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
_NAME, _TYPES = re.compile(r"[a-z_0-9]+"), ("str", "int", "float", "bool", "dict", "list")
"""What may be a field in the path of an error, beside which pydantic names types there, too."""
_PARAMETER = re.compile(r"([a-z_]+)(?:\[\d+\])?(?: =|:|\.)")


class ApiError(Exception):
    """A request that is refused, or that failed.

    Attributes:
      status: of HTTP.
      message: what was wrong, and what would be accepted.
      param: the field of the request, if it is one's fault.
      code: a name for programs.
      retry_after: seconds after which it is worth trying again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = KINDS.get(self.status, "server_error")
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def headers(self) -> dict[str, str]:
        """What is sent beside it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def of_user_error(error: Exception, param: str | None = None) -> ApiError:
    """A mistake that the engine or the chat template found.

    Its message begins with the field's name, where one is at fault.
    """
    message = str(error)
    found = _PARAMETER.match(message)
    code = None
    if "must hold it and" in message or "do not fit the " in message:
        code = "context_length_exceeded"
    return ApiError(400, message, param=param or (found[1] if found else None), code=code)


def unsupported(param: str, why: str) -> ApiError:
    """A parameter of the OpenAI API that this server does not have."""
    return ApiError(400, f"{param}: {why}", param=param, code="unsupported_parameter")


def of_validation(errors: Sequence[Mapping[str, Any]], fields: Iterable[str]) -> ApiError:
    """One of pydantic's errors about a request's body: of the first field, the one that says most.

    Args:
      errors: as `ValidationError.errors()` gives them, their paths beginning with `body`.
      fields: that a body may have.
    """
    # Of a field that may have several types each is complained about: that its type is wrong in
    # all but one of them.
    same = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    first = max(same, key=lambda e: (not e["type"].endswith("_type"), len(e["loc"])))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        where = first["loc"][-1]
        return ApiError(400, f"the body is not JSON: {reason} at character {where}", code="json")
    path = [str(part) for part in first["loc"][1:]]
    if not path:
        return ApiError(400, "the body must be a JSON object, sent as application/json")
    name = ".".join(part for part in path if _NAME.fullmatch(part) and part not in _TYPES)
    param = path[0]
    if first["type"] == "extra_forbidden":
        more = hint(path[-1], fields) if len(path) == 1 else ""
        message = f"unknown parameter {'.'.join(path)}{more}"
        return ApiError(400, message, param=path[0], code="unknown_parameter")
    message = str(first["msg"])
    message = message.removeprefix("Value error, ")
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=param, code="missing_parameter")
    return ApiError(400, f"{name}: {message[0].lower()}{message[1:]}", param=param)
