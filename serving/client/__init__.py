"""A small typed client of the service, synchronous and asynchronous; httpx and the standard library only.

client = Client("http://127.0.0.1:8000", api_key="dc_...")
job = client.animate("me.jpg", driving="dance.mp4", prompt="...", timeout=600, on_progress=print)
client.download(job.id, "me.mp4")
"""

from serving.client.asynchronous import AsyncClient
from serving.client.exchange import ApiError, Job, JobFailedError, JobTimeoutError, Medium
from serving.client.synchronous import Client

__all__ = ["ApiError", "AsyncClient", "Client", "Job", "JobFailedError", "JobTimeoutError", "Medium"]
