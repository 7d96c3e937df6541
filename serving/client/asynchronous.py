"""The client for event loops: `synchronous.Client`, awaited."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from serving.client import exchange
from serving.client.exchange import ApiError, Call, EventReader, Job, JobFailedError, JobTimeoutError, Medium

OnProgress = Callable[[Job], object]


class AsyncClient:
    """One service. Close it, or use it in an `async with`."""

    def __init__(self, url: str, api_key: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None):
        """The key is DYNAMICTRL_API_KEY of the environment, unless one is given."""
        self._http = httpx.AsyncClient(**exchange.options(url, api_key, transport))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def upload(self, medium: Medium) -> str:
        """Sends a file ahead and returns its id; what the service knows already is returned as it is."""
        place = exchange.place_of(medium)
        if isinstance(place, str):
            return place
        with place.open("rb") as stream:
            try:
                answer = await self._http.post("/v1/files", files={"file": (place.name, stream)})
            except httpx.HTTPError as problem:
                raise exchange.unreachable(Call("POST", "/v1/files"), problem) from problem
        return exchange.checked(answer).json()["id"]

    async def create(
        self, image: Medium, prompt: str, *, driving: Medium | None = None, pose_video: Medium | None = None,
        mask: Medium | None = None, idempotency_key: str | None = None, **fields: Any,  # noqa: ANN401 - the API's own
    ) -> Job:  # fmt: skip
        """Starts a job; `fields` are those of POST /v1/videos (size, num_frames, seed, quality, ...)."""
        media = await self._sent(input_reference=image, driving_video=driving, pose_video=pose_video, mask=mask)
        key = idempotency_key or secrets.token_hex(16)
        return Job.of(await self._json(exchange.create({"prompt": prompt, **fields}, media, key)))

    async def preflight(
        self, image: Medium, prompt: str, *, driving: Medium | None = None, pose_video: Medium | None = None,
        mask: Medium | None = None, **fields: Any,  # noqa: ANN401 - the API's own
    ) -> dict[str, Any]:  # fmt: skip
        """What a job would come to; nothing is rendered."""
        media = await self._sent(input_reference=image, driving_video=driving, pose_video=pose_video, mask=mask)
        return await self._json(exchange.preflight({"prompt": prompt, **fields}, media))

    async def get(self, job_id: str) -> Job:
        return Job.of(await self._json(Call("GET", f"/v1/videos/{job_id}")))

    async def cancel(self, job_id: str) -> Job:
        return Job.of(await self._json(Call("POST", f"/v1/videos/{job_id}/cancel")))

    async def delete(self, job_id: str) -> None:
        await self._json(Call("DELETE", f"/v1/videos/{job_id}", repeatable=False))

    async def delete_file(self, file_id: str) -> None:
        await self._json(Call("DELETE", f"/v1/files/{file_id}", repeatable=False))

    async def jobs(self) -> AsyncIterator[Job]:
        """All jobs, newest first."""
        after: dict[str, str] = {}
        while True:
            page = await self._json(Call("GET", "/v1/videos", params={"limit": 100, **after}))
            for raw in page["data"]:
                yield Job.of(raw)
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    async def wait(self, job_id: str, *, timeout: float | None = None, on_progress: OnProgress | None = None) -> Job:
        """The completed job. After `timeout` seconds, or interrupted, it is cancelled: nobody waits for it any more.

        Raises JobTimeoutError, and JobFailedError for a job that failed or was cancelled by somebody else.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            async for job in self._changes(job_id, deadline):
                if on_progress is not None:
                    on_progress(job)
                if job.is_final:
                    break
            else:
                raise JobTimeoutError(f"{job_id} did not end within {timeout} s and was cancelled", code="timeout")
        except BaseException as problem:
            if not isinstance(problem, ApiError):
                with suppress(ApiError):
                    await asyncio.shield(self.cancel(job_id))
            raise
        if job.status != "completed":
            raise JobFailedError(job)
        return job

    async def download(self, job_id: str, target: str | Path, *, variant: str = "video") -> Path:
        """Writes a clip, thumbnail or sprite sheet, whole or not at all."""
        target = Path(target)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        call = Call("GET", f"/v1/videos/{job_id}/content", params={"variant": variant})
        try:
            async with self._http.stream(call.method, call.path, params=call.params, follow_redirects=True) as answer:
                if not answer.is_success:
                    await answer.aread()
                exchange.checked(answer)
                with partial.open("wb") as out:
                    async for chunk in answer.aiter_bytes():
                        out.write(chunk)
            partial.replace(target)
        except httpx.HTTPError as problem:
            raise exchange.unreachable(call, problem) from problem
        finally:
            partial.unlink(missing_ok=True)
        return target

    async def animate(
        self, image: Medium, prompt: str, *, driving: Medium | None = None, pose_video: Medium | None = None,
        mask: Medium | None = None, timeout: float | None = None, on_progress: OnProgress | None = None,
        **fields: Any,  # noqa: ANN401 - the API's own
    ) -> Job:  # fmt: skip
        """Sends what is needed, starts a job and waits for it: `create` and `wait`."""
        job = await self.create(image, prompt, driving=driving, pose_video=pose_video, mask=mask, **fields)
        return await self.wait(job.id, timeout=timeout, on_progress=on_progress)

    async def _sent(self, **media: Medium | None) -> dict[str, str | None]:
        # Looked at all together first: a missing mask should not be found after the video has been sent.
        for medium in media.values():
            if medium is not None:
                exchange.place_of(medium)
        return {name: None if medium is None else await self.upload(medium) for name, medium in media.items()}

    async def _json(self, call: Call) -> dict[str, Any]:
        attempt = 0
        while True:
            answer, problem = None, None
            try:
                answer = await self._http.request(
                    call.method, call.path, json=call.json, params=call.params, headers=call.headers
                )
            except httpx.HTTPError as error:
                problem = error
            if answer is not None and answer.is_success:
                return answer.json()
            seconds = exchange.pause(attempt, call, answer)
            if seconds is None:
                if answer is None:
                    assert problem is not None
                    raise exchange.unreachable(call, problem) from problem
                return exchange.checked(answer).json()
            await asyncio.sleep(seconds)
            attempt += 1

    async def _changes(self, job_id: str, deadline: float | None) -> AsyncIterator[Job]:
        """The job at each of its changes until it is final, over lost connections; ends at the deadline."""
        reader, lost = EventReader(), 0
        while True:
            left = exchange.READ_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            timeout = httpx.Timeout(min(left, exchange.READ_S), connect=exchange.CONNECT_S)
            try:
                path = f"/v1/videos/{job_id}/events"
                async with self._http.stream("GET", path, headers=reader.headers, timeout=timeout) as answer:
                    if answer.status_code == 204:
                        yield await self.get(job_id)
                        return
                    if not answer.is_success:
                        await answer.aread()
                    exchange.checked(answer)
                    async for line in answer.aiter_lines():
                        event = reader.feed(line)
                        if event is not None and "status" in event:
                            lost = 0
                            job = Job.of(event)
                            yield job
                            if job.is_final:
                                return
                        if deadline is not None and time.monotonic() > deadline:
                            return
            except httpx.TimeoutException:
                continue
            except (httpx.HTTPError, ApiError) as problem:
                lost += 1
                if lost >= exchange.TRIES or (isinstance(problem, ApiError) and problem.status < 500):
                    raise
                await asyncio.sleep(exchange.pause(lost - 1, Call("GET", ""), None) or 1.0)
