"""Naming a run, or asking for help, loads nothing heavy (contract section 1, house rules)."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "ray", "diffusers", "transformers", "deepspeed", "mlflow", "vllm", "cv2", "fastapi", "sqlalchemy"}
LIGHT_MODULES = [
    "dynamictrl",
    "dynamictrl.errors",
    "dynamictrl.poses.pose",
    "dynamictrl.samples.shards",
    "dynamictrl.weights",
    "pipelines.recipes",
    "pipelines.__main__",
    "training.config",
    "training.recipes",
    "training.__main__",
    "training.attention",
    "serving.config",
    "serving.recipes",
    "serving.__main__",
    "serving.client",
    "serving.client.command",
]
HELP = [
    ("pipelines", "--help"),
    ("pipelines", "curate-mini", "--help"),
    ("pipelines", "verify", "--help"),
    ("training", "--help"),
    ("training", "mini", "--help"),
    ("training", "plan", "--help"),
    ("training", "convert", "--help"),
    ("training", "attention", "--help"),
    ("training", "export", "--help"),
    ("training", "summary", "--help"),
    ("serving", "--help"),
    ("serving", "up", "--help"),
    ("serving", "animate", "--help"),
    ("serving", "key", "create", "--help"),
    ("serving", "webhook", "replay", "--help"),
]
REPORT_LOADED = """
import json, sys, resource
def report():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print("LOADED " + json.dumps([sorted(m for m in sys.modules if "." not in m), usage.ru_utime + usage.ru_stime]))
"""


def loaded_by(code: str) -> tuple[set[str], float]:
    """The top-level modules that a fresh interpreter holds after `code`, and its CPU seconds."""
    program = f"{REPORT_LOADED}\nimport atexit; atexit.register(report)\n{code}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["."])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    line = next((x for x in done.stdout.splitlines() if x.startswith("LOADED ")), None)
    assert line is not None, done.stderr[-2000:]
    modules, seconds = json.loads(line.removeprefix("LOADED "))
    return set(modules), seconds


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_naming_a_run_loads_nothing_heavy(module: str):
    loaded, _ = loaded_by(f"import {module}")
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_answers_without_heavy_imports_and_in_a_second(words: tuple[str, ...]):
    package, *arguments = words
    code = (
        f"import runpy, sys; sys.argv = ['{package}', *{arguments!r}]\n"
        f"try:\n    runpy.run_module('{package}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert stop.code in (0, None), stop.code"
    )
    loaded, seconds = loaded_by(code)
    assert loaded & HEAVY == set()
    # Three times the contract's second: CPU seconds on a shared machine are not exact.
    assert seconds < 3.0
