"""python -m pipelines RECIPE --videos SRC [SRC ...] --out DATASET, or plan RECIPE ..., or one of the commands"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import tyro

from dynamictrl.errors import ConfigError, DynamiCtrlError, InputError
from pipelines.commands.diff import Diff
from pipelines.commands.explain import Explain
from pipelines.commands.fingerprint import FingerprintVideos
from pipelines.commands.marionettes import Marionettes
from pipelines.commands.quarantine import Quarantine
from pipelines.commands.remove import Remove
from pipelines.commands.report import Report
from pipelines.commands.reshard import Reshard
from pipelines.commands.size import Size
from pipelines.commands.verify import Verify
from pipelines.pipeline import Pipeline
from pipelines.recipes import RECIPES

DONE, FAILED, USAGE = 0, 1, 2


PLAN = "plan"
COMMANDS: dict[str, Any] = {
    "report": Report,
    "verify": Verify,
    "explain": Explain,
    "quarantine": Quarantine,
    "diff": Diff,
    "size": Size,
    "remove": Remove,
    "reshard": Reshard,
    "fingerprint": FingerprintVideos,
    "marionettes": Marionettes,
}


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code (contract section 1)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
            return DONE if arguments else USAGE
        name, rest = arguments[0], arguments[1:]
        _check_name(name)
        if name == PLAN:
            return _plan(rest)
        return _curate(name, rest) if name in RECIPES else _parse(name, COMMANDS[name], rest).run()
    except (ConfigError, InputError) as problem:
        return _fail(problem, USAGE)
    except DynamiCtrlError as problem:
        # A folder that is no data set, or weights that are not there, are the user's to correct.
        return _fail(problem, FAILED if problem.code == "busy" else USAGE)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except Exception as problem:
        logging.getLogger("pipelines").error("the run failed", exc_info=problem)
        return _fail(problem, FAILED)


def _fail(problem: BaseException, code: int) -> int:
    kind = "" if isinstance(problem, DynamiCtrlError) else f"{type(problem).__name__}: "
    print(f"error: {kind}{' '.join(str(problem).split())}", file=sys.stderr)
    return code


def _overview() -> str:
    """What `--help` says: recipes and commands with their first lines."""
    lines = [
        "usage: python -m pipelines RECIPE --videos SRC [SRC ...] --out DATASET [--field value ...]",
        "",
        "recipes",
    ]
    described: list[tuple[str, Callable[..., Any]]] = [*RECIPES.items(), *COMMANDS.items()]
    for number, (name, target) in enumerate(described):
        if number == len(RECIPES):
            lines += ["", "commands"]
            lines.append(
                f"  {PLAN:<13} Reads the sources, writes OUT/plan.json: clips, shards, cost. {PLAN} RECIPE --videos ..."
            )
        lines.append(f"  {name:<13} {(target.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", "`python -m pipelines NAME --help` shows every field with its unit."])


def _check_name(name: str) -> None:
    known = [*RECIPES, PLAN, *COMMANDS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no recipe or command {name!r}; {hint}", param="recipe")


def _pipeline(name: str, arguments: Sequence[str]) -> Pipeline:
    default = RECIPES[name]()
    required = replace(default, videos=tyro.MISSING, out=tyro.MISSING)
    return _parse(name, type(default), arguments, default=required, description=RECIPES[name].__doc__)


def _plan(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in RECIPES:
        given = f", not {arguments[0]!r}" if arguments and not arguments[0].startswith("-") else ""
        raise ConfigError(f"plan takes a recipe{given}: python -m pipelines plan {'|'.join(RECIPES)} --videos ...")
    return _planned(arguments[0], _pipeline(arguments[0], arguments[1:]))


def _planned(name: str, pipeline: Pipeline) -> int:
    from pipelines import plan

    print(plan.text(plan.make(name, pipeline), f"{pipeline.out}/{plan.NAME}"))
    return DONE


def _curate(name: str, arguments: Sequence[str]) -> int:
    pipeline = _pipeline(name, arguments)
    if pipeline.dry_run:
        return _planned(name, pipeline)
    from pipelines import job

    outcome = job.run(name, pipeline)
    counts = outcome.description["counts"]
    print(
        f"{'' if outcome.changed else 'nothing to do: '}{counts['sources']} sources, {counts['clips']} clips: "
        f"{counts['kept']} kept, {sum(counts['rejected'].values())} rejected; "
        f"{sum(counts['quarantined'].values())} sources quarantined"
    )
    print(f"look at {pipeline.out}/report/index.html")
    return DONE


def _parse(name: str, kind: Any, arguments: Sequence[str], **options: Any) -> Any:  # noqa: ANN401
    """The command line as a dataclass; ConfigError in one line where it is wrong."""
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            parsed, unknown = tyro.cli(
                kind, args=list(arguments), prog=f"python -m pipelines {name}", return_unknown_args=True, **options
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(complaints.getvalue())) from None
    if unknown:
        flags = _flags(options.get("default", kind))  # pyright: ignore[reportArgumentType]
        near = difflib.get_close_matches(unknown[0], flags, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`python -m pipelines {name} --help` lists the fields"
        raise ConfigError(f"{name} has no field {unknown[0]}; {hint}")
    return parsed


def _flags(target: Any) -> list[str]:  # noqa: ANN401
    """`--field` and `--stage.field` as tyro spells them."""
    flags = []
    for f in fields(target):
        value = getattr(target, f.name, None)
        inner = fields(value) if is_dataclass(value) else ()
        flags += [f"--{f.name}.{i.name}" for i in inner] if inner else [f"--{f.name}"]
    return [flag.replace("_", "-") for flag in flags]


def _one_line(box: str) -> str:
    """tyro's framed complaint without its frame."""
    words = "".join(" " if c in "│╭╮╰╯─" else c for c in box).split()
    text = " ".join(words).split("Argument helptext")[0].split("For full helptext")[0]
    for title in ("Parsing error", "Value error"):
        text = text.removeprefix(title).strip()
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
