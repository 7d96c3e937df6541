"""`python -m serving up | animate | key | openapi`. Nothing heavy is imported before the arguments have been read."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable

import tyro

from dynamictrl.errors import CheckpointError, ConfigError, DynamiCtrlError, InputError
from serving.config import Service
from serving.one_clip import Animate, animate_one
from serving.recipes import RECIPES

USAGE = """usage: python -m serving COMMAND [OPTIONS]

  up RECIPE      start the service on local or connected Ray, in the foreground; recipes: {recipes}
  animate        render one clip without a server
  key            make an API key and the hash to configure
  openapi        print the HTTP surface as an OpenAPI document

`python -m serving COMMAND --help` shows every option.
"""


def main(words: list[str]) -> int:
    """Runs one command; returns its exit code."""
    commands: dict[str, Callable[[list[str]], None]] = {"up": up, "animate": animate, "key": key, "openapi": openapi}
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(RECIPES)), end="")
        return 0 if words else 2
    if words[0] not in commands:
        print(f"there is no command {words[0]!r}; there are {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        commands[words[0]](words[1:])
    except (InputError, ConfigError, CheckpointError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except (DynamiCtrlError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def up(words: list[str]) -> None:
    """Starts the service."""
    configs = {name: (recipe.__doc__ or "", recipe()) for name, recipe in RECIPES.items()}
    service = tyro.extras.overridable_config_cli(configs, prog="python -m serving up", args=words)
    _check_port(service)
    if "RAY_ADDRESS" not in os.environ:
        from serving.model_source import locate

        # On a cluster the model may lie where only the workers can see it.
        source = locate(service.model, service.transformer)
        note = " (mini: a small model for trying things out)" if source.mini else ""
        print(f"model {source.name} {source.version}{note} from {source.folder}", flush=True)
    _log()
    from serving.app import run

    def announce(url: str) -> None:
        print(f"ready: {url}  (API at {url}/v1, playground at {url}/)", flush=True)
        if not service.api_key_hashes:
            print("no API keys are configured: the service listens on loopback only", flush=True)

    run(service, announce)


def animate(words: list[str]) -> None:
    """Renders one clip."""
    wish = tyro.cli(Animate, prog="python -m serving animate", args=words)
    note = animate_one(wish, show=_progress_line if sys.stderr.isatty() else _progress_log)
    if note:
        print(note, file=sys.stderr)


def key(words: list[str]) -> None:
    """Prints a fresh API key, and the hash to configure."""
    import hashlib

    tyro.cli(_no_options, prog="python -m serving key", args=words)
    secret = f"dc-{secrets.token_urlsafe(32)}"
    print(f"key (give it to one client, it is not kept): {secret}")
    print(f"hash (for --api-key-hashes):                {hashlib.sha256(secret.encode()).hexdigest()}")


def openapi(words: list[str]) -> None:
    """Prints the OpenAPI document; `serving/openapi.json` is its frozen form."""
    tyro.cli(_no_options, prog="python -m serving openapi", args=words)
    from serving.openapi import document

    print(document())


def _no_options() -> None:
    """Takes no options."""


def _check_port(service: Service) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((service.host, service.port))
        except OSError as problem:
            raise ConfigError(
                f"port {service.port} of {service.host} cannot be listened on ({problem.strerror}); choose another "
                "with --port",
                code="port",
                param="port",
            ) from problem


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def _progress_line(stage: str, done: int, total: int) -> None:
    width = 30
    filled = width * done // max(1, total)
    line = f"\r{stage:<10} [{'#' * filled}{'.' * (width - filled)}] {done}/{total} "
    print(line, end="\n" if stage == "written" else "", file=sys.stderr, flush=True)


def _progress_log(stage: str, done: int, total: int) -> None:
    if done in (0, total) or stage != "denoising":
        print(f"{stage} {done}/{total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
