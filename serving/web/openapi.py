"""The HTTP surface as a document. `serving/openapi.json` is its frozen form: a test refuses what would break a client.

python -m serving openapi > serving/openapi.json      after a change that breaks nobody
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

FROZEN = Path(__file__).parents[1] / "openapi.json"


def document() -> str:
    """The OpenAPI document of the code as it is, as JSON with sorted keys."""
    from dataclasses import replace

    from serving.recipes import mini
    from serving.web.api import build_api

    with tempfile.TemporaryDirectory() as folder:
        service = replace(mini(), data_folder=Path(folder))
        return json.dumps(build_api(service).openapi(), indent=1, sort_keys=True, ensure_ascii=False)
