"""Training on the command line: `python -m training RECIPE`, `plan`, `convert`, `evaluate`, `summary`, `export`, ...

Exit codes: 0 done, 2 a usage or configuration error (before any cluster or GPU is touched), 1 a failure at run time.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from dynamictrl.errors import DynamiCtrlError
from training.attention import AttentionStudy, study
from training.config import Recipe, Run
from training.conversion import Convert
from training.recipes import RECIPES
from training.settings.evaluation import Evaluation
from training.settings.export import Export
from training.settings.hardware import Hardware

Quiet = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the run reads and writes."""

    data: Path
    """Data set folder written by `python -m pipelines`."""
    out: Path
    """Run folder; the exported model is `OUT/model`. The same command continues a run that was stopped."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    command, rest = arguments[0], arguments[1:]
    commands: dict[str, Callable[[list[str]], int]] = {
        "plan": _plan,
        "data": _data,
        "convert": _convert,
        "evaluate": _evaluate,
        "attention": _attention,
        "summary": _summary,
        "export": _export,
    }
    try:
        return commands[command](rest) if command in commands else _train(command, rest)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 1
    except DynamiCtrlError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1 if problem.code in ("run_failed", "run_stopped") else 2
    except OSError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1


def _overview() -> str:
    lines = [f"  {name:<39}{(make.__doc__ or '').strip().splitlines()[0]}" for name, make in RECIPES.items()]
    return "\n".join(
        [
            "usage: python -m training RECIPE --data DATASET --out RUN [--field value ...]",
            "       python -m training plan RECIPE [--gpus N] [--gpu h200] [--json] [--field value ...]",
            "       python -m training data RECIPE --data DATASET [--field value ...]",
            "       python -m training convert BASE --out FOLDER [--pose-control padaln] [--field value ...]",
            "       python -m training evaluate --model MODEL --data DATASET --out DIR",
            "       python -m training attention --model MODEL --image I --driving-video V --prompt P --out DIR",
            "       python -m training summary RUN [--out FILE.html]",
            "       python -m training export RUN --out FOLDER [--step N] [--weights ema|raw]",
            "",
            "Fine-tunes a DynamiCtrl model on a data set folder. `RECIPE --help` shows every field with its unit.",
            "",
            "recipes:",
            *lines,
        ]
    )


def _recipe_named(name: str) -> Recipe:
    known = name.replace("_", "-")
    if known in RECIPES:
        return RECIPES[known]()
    near = difflib.get_close_matches(known, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    print(f"error: there is no recipe {name!r}; {hint}recipes: {', '.join(RECIPES)}", file=sys.stderr)
    raise SystemExit(2)


def _train(name: str, arguments: list[str]) -> int:
    recipe = _recipe_named(name)

    def command(places: Places, recipe: Recipe = recipe) -> Run:
        return Run(name=name.replace("_", "-"), data=places.data, out=places.out, recipe=recipe)

    command.__doc__ = RECIPES[name.replace("_", "-")].__doc__
    run = tyro.cli(command, prog=f"python -m training {name}", args=arguments, config=Quiet)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from training.launch import launch

    model = launch(run)
    print(f"the model is {model}")
    device = " --device cuda" if run.recipe.workers.device == "cuda" else ""
    evaluation = run.out / "evaluation"
    print(f"next: python -m training evaluate --model {model} --data {run.data} --out {evaluation}{device}")
    return 0


def _plan(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m training plan RECIPE [--gpus N] [--gpu h200] [--json] [--field value ...]")
        print(f"recipes: {', '.join(RECIPES)}")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    recipe = _recipe_named(arguments[0])

    def command(hardware: Hardware = Hardware(), recipe: Recipe = recipe) -> tuple[Hardware, Recipe]:  # noqa: B008
        """What a run takes: parameters, tokens, FLOPs, memory per GPU, seconds per step. With --json as JSON."""
        return hardware, recipe

    fields = [argument for argument in arguments[1:] if argument != "--json"]
    hardware, recipe = tyro.cli(command, prog=f"python -m training plan {arguments[0]}", args=fields, config=Quiet)
    from training.planning.plan import plan

    result = plan(recipe, hardware)
    print(json.dumps(result.to_dict(), indent=1) if "--json" in arguments else result.text())
    if not result.fits:
        print(f"error: {result.refusal()}", file=sys.stderr)
        return 2
    return 0


def _data(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m training data RECIPE --data DATASET [--field value ...]")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    recipe = _recipe_named(arguments[0])

    def command(data: Path, recipe: Recipe = recipe) -> tuple[Path, Recipe]:
        """What a recipe makes of a data set folder: buckets, clips, hours, and what is left out."""
        return data, recipe

    data, recipe = tyro.cli(command, prog=f"python -m training data {arguments[0]}", args=arguments[1:], config=Quiet)
    from training.samples.data_table import data_table

    print(data_table(recipe, data))
    return 0


def _convert(arguments: list[str]) -> int:
    base = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    settings = tyro.cli(Convert, prog="python -m training convert BASE", args=arguments, config=Quiet)
    if not base:
        print("usage: python -m training convert BASE --out FOLDER: name a CogVideoX folder or hub id", file=sys.stderr)
        return 2
    from training.conversion import convert

    print(convert(base, settings).text())
    print(f"next: python -m training RECIPE --base {settings.out} --data DATASET --out RUN")
    return 0


def _export(arguments: list[str]) -> int:
    run = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    settings = tyro.cli(Export, prog="python -m training export RUN", args=arguments, config=Quiet)
    if not run:
        print("usage: python -m training export RUN --out FOLDER: name a run folder", file=sys.stderr)
        return 2
    from training.release.export import export_checkpoint

    print(f"the model is {export_checkpoint(Path(run), settings)}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    settings = tyro.cli(Evaluation, prog="python -m training evaluate", args=arguments, config=Quiet)
    from training.evaluate import evaluate

    page = evaluate(settings)
    print(f"metrics are in {page.parent / 'metrics.json'}; look at {page}")
    return 0


def _attention(arguments: list[str]) -> int:
    settings = tyro.cli(AttentionStudy, prog="python -m training attention", args=arguments, config=Quiet)
    folder = study(settings)
    print(f"look at {folder / 'figure3.png'}; numbers are in attention.json, all maps in maps.npz")
    return 0


def _summary(arguments: list[str]) -> int:
    def command(run: tyro.conf.Positional[Path], out: Path | None = None) -> tuple[Path, Path | None]:
        """One static page about a run, finished, running or failed.

        Args:
            run: Run folder.
            out: File to write; RUN/summary.html by default.
        """
        return run, out

    folder, out = tyro.cli(command, prog="python -m training summary", args=arguments, config=Quiet)
    from training.summary.page import write_summary

    print(f"look at {write_summary(folder, out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
