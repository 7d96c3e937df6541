"""Rules of the house that a machine can hold: what lies at the top, sizes, names, locks."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [p for folder in ("dynamictrl", "pipelines", "training", "serving") for p in (ROOT / folder).rglob("*.py")]
TOP_LEVEL = {
    "pipelines", "training", "serving", "dynamictrl", "infra", "tests", "docs",
    "pyproject.toml", "requirements.lock", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
}  # fmt: skip
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400
VAGUE_NAMES = {"utils", "common", "helpers", "base", "manager", "processor", "handler"}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_the_top_level_holds_only_what_the_user_fixed():
    tops = {name.split("/")[0] for name in tracked_files()}
    assert {t for t in tops if not t.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    long = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_file_has_a_vague_name():
    assert [p for p in SOURCES if p.stem in VAGUE_NAMES] == []


def test_locks_name_no_registry_host():
    locks = [ROOT / "requirements.lock", *(ROOT / "infra/docker").glob("requirements-*.lock")]
    for lock in locks:
        lines = lock.read_text().splitlines()
        assert [x for x in lines if "://" in x or "index-url" in x or "find-links" in x] == []
        assert any("--hash=sha256:" in x for x in lines)


def test_stages_and_the_method_import_ray_nowhere_but_at_their_edges():
    edges = ("pipelines/cluster/", "training/cluster/", "serving/cluster/")
    importers = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            if any(n == "ray" or n.startswith("ray.") for n in names):
                importers.add(str(path.relative_to(ROOT)))
    assert {name for name in importers if not name.startswith(edges)} == set()


def test_only_its_own_process_may_import_the_dwpose_package():
    importers = [p for p in SOURCES if "import dwpose" in p.read_text() and p.name != "dwpose_package.py"]
    assert importers == []
