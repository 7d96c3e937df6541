"""`python -m serving up | animate | key | openapi`. Nothing heavy is imported before the arguments have been read."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace

import tyro

from dynamictrl.errors import CheckpointError, ConfigError, DynamiCtrlError, InputError
from serving.config import Service
from serving.recipes import RECIPES
from serving.rendering.clip_wanted import Animate
from serving.rendering.one_clip import animate_one
from serving.rollout.command import COMMANDS as ROLLOUT_COMMANDS
from serving.tenants.commands import COMMANDS as TENANT_COMMANDS

COMMANDS = {**TENANT_COMMANDS, **ROLLOUT_COMMANDS}
USAGE = """usage: python -m serving COMMAND [OPTIONS]

  up RECIPE      start the service on local or connected Ray, in the foreground; recipes: {recipes}
  animate        render one clip without a server; with --url URL on one that runs
  verify FILE    say what a clip's signature says of it, and whether it still holds
  key            make an API key and the hash to configure; key create | list | revoke: keys in the job store
  tenant set     what a tenant may use
  usage, audit   what tenants have used, what was done
  webhook        secret | list | replay
  rollout        status | promote | rollback: a new version of the model, and who gets it
  openapi        print the HTTP surface as an OpenAPI document

`python -m serving COMMAND --help` shows every option.
"""


def main(words: list[str]) -> int:
    """Runs one command; returns its exit code."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "up": up,
        "animate": animate,
        "verify": verify,
        "key": key,
        "openapi": openapi,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(RECIPES)), end="")
        return 0 if words else 2
    if words[0] not in commands and words[0] not in COMMANDS:
        print(f"there is no command {words[0]!r}; there are {', '.join([*commands, *COMMANDS])}", file=sys.stderr)
        return 2
    try:
        operator = operator_command(words)
        operator() if operator else commands[words[0]](words[1:])
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
    from serving.watching.process import name_it

    if "RAY_ADDRESS" not in os.environ:
        from serving.rendering.model_source import locate

        # On a cluster the model may lie where only the workers can see it.
        source = locate(service.model, service.transformer)
        note = " (mini: a small model for trying things out)" if source.mini else ""
        print(f"model {source.name} {source.version}{note} from {source.folder}", flush=True)
    log_format = service.log_format
    if log_format == "auto":
        # Decided here: the replicas have no terminal, and their lines come to this one.
        log_format = "text" if sys.stderr.isatty() else "json"
    service = replace(service, log_format=log_format)
    name_it(service, "up")
    from serving.cluster.lifecycle import run

    def announce(url: str) -> None:
        print(f"ready: {url}  (API at {url}/v1, playground at {url}/)", flush=True)
        if not service.api_key_hashes and not service.require_keys:
            print("no API keys are configured: the service listens on loopback only", flush=True)

    run(service, announce)


def animate(words: list[str]) -> None:
    """Renders one clip, here or, with --url, on a running service."""
    show = _progress_line if sys.stderr.isatty() else _progress_log
    if any(word == "--url" or word.startswith("--url=") for word in words):
        from serving.client.command import AnimateOnline, animate_online

        online = tyro.cli(AnimateOnline, prog="python -m serving animate --url URL", args=words)
        note = animate_online(online, show)
    else:
        note = animate_one(tyro.cli(Animate, prog="python -m serving animate", args=words), show=show)
    if note:
        print(note, file=sys.stderr)


def verify(words: list[str]) -> None:
    """Says what a clip says of itself; DynamiCtrlError, and so exit 1, where nothing holds."""
    from serving.results import verification

    wish = tyro.cli(verification.Verify, prog="python -m serving verify", args=words)
    found = verification.verify(wish)
    print(found.to_json() if wish.json else "\n".join(found.sentences(wish)))
    if not found.is_good:
        raise DynamiCtrlError(f"{wish.file} has no good signature", code="not_verified")


def key(words: list[str]) -> None:
    """Prints a fresh API key, and the hash to configure."""
    import hashlib

    tyro.cli(_no_options, prog="python -m serving key", args=words)
    secret = f"dc-{secrets.token_urlsafe(32)}"
    print(f"key (give it to one client, it is not kept): {secret}")
    print(f"hash (for --api-key-hashes):                {hashlib.sha256(secret.encode()).hexdigest()}")


def operator_command(words: list[str]) -> Callable[[], None] | None:
    """What to do for `key create ...` and its like; None where the words are no such command."""
    under = COMMANDS.get(words[0], {})
    named = words[1] if len(words) > 1 else ""
    kind = under.get(named) or under.get("")
    if kind is None:
        if words[0] == "key" and named in ("", "-h", "--help") or not under:
            return None
        raise ConfigError(f"write python -m serving {words[0]} {'|'.join(under)} [OPTIONS]; --help shows them")
    rest = words[2:] if named in under and named else words[1:]

    def run() -> None:
        for line in tyro.cli(kind, prog=f"python -m serving {words[0]} {named}".rstrip(), args=rest).run():
            print(line)

    return run


def openapi(words: list[str]) -> None:
    """Prints the OpenAPI document; `serving/openapi.json` is its frozen form."""
    tyro.cli(_no_options, prog="python -m serving openapi", args=words)
    from serving.web.openapi import document

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
