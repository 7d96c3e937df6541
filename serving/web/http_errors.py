"""Every refusal in one shape, OpenAI's: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from dynamictrl.errors import DynamiCtrlError, InputError, StoreError
from serving.jobs.patience import is_away
from serving.tenants.admission import QuotaError
from serving.web.answers import ErrorAnswer

logger = logging.getLogger(__name__)

TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
CODES = {401: "invalid_api_key", 404: "unknown_route", 405: "method_not_allowed", 413: "body_too_large"}


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The request is wrong; `param` names what is.",
        401: "No valid API key.",
        402: "The month's budget of GPU seconds is used up.",
        403: "The key lacks the scope; or, without keys, the request is not of this machine.",
        404: "There is no such thing, it is another tenant's, or it has expired.",
        413: "The body, or a medium in it, is too large.",
        415: "A body of a kind that is not read.",
        422: "The Idempotency-Key stands for a request of other content.",
        429: "Too many requests or jobs; `Retry-After` says when to come again.",
        500: "The service failed; its log has why.",
        503: "The job store or the storage is away; ask again after `Retry-After`.",
    }.items()
}
"""For the OpenAPI document: how every call under /v1 may refuse."""


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def body(status: int, code: str, message: str, param: str | None = None) -> dict[str, dict[str, str | None]]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": _sendable(message), "type": kind, "param": param and _sendable(param), "code": code}}


def _sendable(text: str) -> str:
    """What a client sent may be no Unicode (half a surrogate, in JSON) and stands in our answers to it."""
    return text.encode("utf-8", "backslashreplace").decode()


def response(
    status: int, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The code is a header too: logs and the audit read it there, and need no look into a body."""
    given = {"x-error-code": code, **(headers or {})}
    return JSONResponse(body(status, code, message, param), status_code=status, headers=given)


def of_validation(details: list[ErrorDetails]) -> ApiError:
    """The first thing pydantic minds, in our words."""
    first = details[0]
    # FastAPI puts "query", "path" or "body" before the name.
    names = [str(part) for part in first["loc"] if part not in ("query", "path", "body", "header")]
    param = ".".join(names) or None
    if first["type"] == "missing":
        return ApiError(400, "missing_parameter", f"{param} is required", param)
    if first["type"] == "extra_forbidden":
        return ApiError(400, "unknown_parameter", f"{param!r} is no parameter of this call", param)
    given = repr(first.get("input"))
    shown = given if len(given) <= 80 else given[:77] + "..."
    return ApiError(400, "invalid_value", f"{param} is {shown}: {first['msg']}", param)


def install(app: FastAPI) -> None:
    """Overrides FastAPI's own answers, whose {"detail": ...} leaves the SDK's code, param and type empty."""

    @app.exception_handler(ApiError)
    async def _api(_request: Request, problem: ApiError) -> JSONResponse:
        return response(problem.status, problem.code, str(problem), problem.param)

    @app.exception_handler(QuotaError)
    async def _quota(_request: Request, problem: QuotaError) -> JSONResponse:
        # The SDK tries a 429 again after `retry-after`; what only a new month or a deletion can mend is final.
        later = problem.retry_after_s
        headers = {"x-should-retry": "false"} if later is None else {"retry-after": str(later)}
        return response(problem.status, problem.code, str(problem), headers=headers)

    @app.exception_handler(DynamiCtrlError)
    async def _ours(_request: Request, problem: DynamiCtrlError) -> JSONResponse:
        if isinstance(problem, InputError):
            return response(400, problem.code, str(problem), problem.param)
        if isinstance(problem, StoreError):
            logger.warning("a request had to be put off: %s", problem)
            later = response(503, problem.code, "a part of the service is away or busy; ask again in a moment")
            later.headers["retry-after"] = "5"
            return later
        logger.error("a request failed", exc_info=problem)
        return response(500, problem.code, "the service is misconfigured; its log has why")

    app.add_exception_handler(SQLAlchemyError, _store_problem)

    @app.exception_handler(RequestValidationError)
    async def _query(_request: Request, problem: RequestValidationError) -> JSONResponse:
        refused = of_validation(list(problem.errors()))
        return response(refused.status, refused.code, str(refused), refused.param)

    @app.exception_handler(ValidationError)
    async def _model(_request: Request, problem: ValidationError) -> JSONResponse:
        refused = of_validation(problem.errors())
        return response(refused.status, refused.code, str(refused), refused.param)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, problem: HTTPException) -> JSONResponse:
        message = str(problem.detail)
        if problem.status_code in (404, 405):
            message = f"there is no {request.method} {request.url.path} here; see /openapi.json"
        code = CODES.get(problem.status_code, "bad_request")
        return response(problem.status_code, code, message)

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, problem: Exception) -> JSONResponse:
        logger.error("a request failed", exc_info=problem)
        return response(500, "internal_error", "the service failed; its log has why")


async def _store_problem(_request: Request, problem: Exception) -> JSONResponse:
    if not is_away(problem):
        logger.error("a request failed", exc_info=problem)
        return response(500, "internal_error", "the service failed; its log has why")
    logger.warning("a request had to be put off: the job store is away (%s)", type(problem).__name__)
    later = response(503, "store_unavailable", "the service's database does not answer; ask again in a moment")
    later.headers["retry-after"] = "2"
    return later
