"""Every refusal in one shape, OpenAI's: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from dynamictrl.errors import DynamiCtrlError, InputError

logger = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "unknown_route", 405: "method_not_allowed", 413: "body_too_large"}


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def body(status: int, code: str, message: str, param: str | None = None) -> dict[str, dict[str, str | None]]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(status: int, code: str, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(body(status, code, message, param), status_code=status)


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

    @app.exception_handler(DynamiCtrlError)
    async def _ours(_request: Request, problem: DynamiCtrlError) -> JSONResponse:
        if isinstance(problem, InputError):
            return response(400, problem.code, str(problem), problem.param)
        logger.error("a request failed", exc_info=problem)
        return response(500, problem.code, "the service is misconfigured; its log has why")

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
