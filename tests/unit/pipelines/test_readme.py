"""The filter that pipelines/README.md shows to who wants to add one: taken from the page and run as it stands there."""

import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pipelines import recipes
from pipelines.clip import Clip
from pipelines.stage import run_local
from tests.unit.pipelines.conftest import shot

PAGE = Path(recipes.__file__).with_name("README.md")
Make = Callable[..., Clip]


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[ModuleType]:
    """The page's only Python as the file that it says to write."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path / "keep_bright.py"
    file.write_text(textwrap.dedent(code))
    spec = importlib.util.spec_from_file_location("keep_bright", file)
    assert spec
    assert spec.loader
    module = sys.modules["keep_bright"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["keep_bright"]


def test_the_filter_on_the_page_measures_and_refuses(shown: ModuleType, cut_clip: Make):
    frames = shot(1, 12)
    (bright,) = run_local([shown.KeepBright()], [cut_clip(frames)])
    assert not bright.rejected
    assert bright.scores["brightness"] == pytest.approx(frames.mean(), abs=3)
    (dark,) = run_local([shown.KeepBright()], [cut_clip(frames // 16, source_sha256="cd" * 32)])
    assert (dark.rejected, dark.message) == ("dark", f"brightness {dark.scores['brightness']:.0f}")
