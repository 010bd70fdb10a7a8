"""What a client did wrong, or the server could not do, in OpenAI's error schema."""

from __future__ import annotations

from typing import Any, Optional

from pydantic import ValidationError

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """Ends one request with a status.

    Args:
        status: HTTP status, one of those above.
        message: what was found, what was expected, what to do.
        param: the field it is about.
        code: a word for programs.
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(
        self, status: int, message: str, *, param: Optional[str] = None, code: Optional[str] = None, retry_after: Optional[int] = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {"error": {"message": self.message, "type": _KINDS[self.status], "param": self.param, "code": self.code}}


def from_validation(error: ValidationError) -> ApiError:
    """A fault that pydantic found, as a 400 that names the field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = max(found, key=lambda fault: len(fault["loc"]))  # of a union's faults, that of the kind that the value fits best
    # pydantic writes the kinds of unions between the names of fields: messages, 0, content, list[...], 0, image_url, image_url, url
    names = [str(place) for place in first["loc"] if isinstance(place, int) or (place.isidentifier() and place != "str")]
    param = ".".join(name for place, name in enumerate(names) if not place or name != names[place - 1] or name.isdigit()) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)
