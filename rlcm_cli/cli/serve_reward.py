"""`rlcm serve-reward`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_reward
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from rlcm_cli.rewards import RewardSpec

EXTRA = ("fastapi", "httptools", "prometheus_client", "starlette", "uvicorn")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("serve-reward", epilog="Example: rlcm serve-reward aesthetic --port 8000")(serve_reward_command)


def serve_reward_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Rewards to serve; `rlcm rewards` lists them.", autocompletion=complete_reward
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free port.")] = 8000,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to bind; 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    assignments: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the reward, or NAME.KEY=VALUE with several rewards; repeatable.",
            show_default=False,
        ),
    ] = [],
    token_variable: Annotated[
        str | None,
        typer.Option(
            "--token-env",
            metavar="VAR",
            help="Environment variable with the token that clients must send.",
            show_default="RLCM_REWARD_TOKEN",
        ),
    ] = None,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0.001, help="Maximum size of a request in MiB.")] = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Maximum number of images to score in one call.")] = 64,
    batch_wait: Annotated[
        float,
        typer.Option(
            "--batch-wait", metavar="MS", min=0, help="Milliseconds that a request waits for others to join its batch."
        ),
    ] = 5,
    device: o.DeviceOption = "auto",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Begin with one machine-readable line on stdout.", rich_help_panel=o.OUTPUT),
    ] = False,
) -> None:
    """Serve rewards over HTTP to runs on this machine or others; Ctrl-C stops it."""
    from rlcm_cli.errors import ConfigError

    try:
        from rlcm_cli.rewards.remote import app, server
        from rlcm_cli.rewards.remote.service import Limits
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ConfigError(
            f"a reward server needs the package {error.name}, which is not installed; pip install 'rlcm[serve]'"
        ) from None
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.core.device import select_device
    from rlcm_cli.rewards.remote.protocol import TOKEN_VARIABLE
    from rlcm_cli.rewards.remote.served import load_served

    variable = token_variable or TOKEN_VARIABLE
    token = server.read_token(host, variable, named=token_variable is not None)
    limits = Limits(most_bytes=int(max_mb * 2**20), batch=batch, wait=batch_wait / 1000)
    rewards = load_served(parse_rewards(names, assignments))
    served_app = app.build_app(rewards, token=token, limits=limits, device=select_device(device))
    with server.listen(host, port) as sock:
        root = f"http://{server.reachable(host)}:{sock.getsockname()[1]}"
        described = {f"{root}/{served.name}": served for served in rewards}
        if as_json:
            print_json({"rewards": {url: served.revision for url, served in described.items()}})
        else:
            for url, served in described.items():
                typer.echo(f"{url}: {served.spec.entry.description} (revision {served.revision})")
            typer.echo("on the training machine:")
            if token:
                typer.echo(f"  export {TOKEN_VARIABLE}=…   # the token in this machine's {variable}")
            typer.echo(f"  curl {root}/health")
            typer.echo(f"  {command('loop', '--task', 'compression', '--reward', next(iter(described)))}")
        # A program that starts this one waits for these lines.
        typer.get_text_stream("stdout").flush()
        server.serve(served_app, sock)
    if not as_json:
        typer.echo("stopped; all pending requests were answered")


def parse_rewards(names: list[str], assignments: list[str]) -> list[RewardSpec]:
    """Return the rewards of a command line with their settings. Raises `ConfigError`."""
    from rlcm_cli.config import parse_assignment, split_key
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.rewards import RewardSpec

    settings: dict[str, dict[str, object]] = {name: {} for name in names}
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        if '"' in key or "'" in key:
            key = ".".join(split_key(key))
        owner = next((name for name in names if key.startswith(f"{name}.")), names[0] if len(names) == 1 else None)
        if owner is None:
            raise ConfigError(f"--set {assignment}: write NAME.KEY=VALUE with NAME one of {', '.join(names)}")
        settings[owner][key.removeprefix(f"{owner}.")] = value
    specs = [RewardSpec(name, values) for name, values in settings.items()]
    for spec in specs:
        _ = spec.resolved
    return specs
