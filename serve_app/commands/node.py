"""`kinlens node`: this machine as one of a cluster."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from serve_app.commands.common import console, read_settings
from serve_app.environment import hold
from serve_app.errors import ConfigurationError
from serve_app.node import check_shared, node_environment, ray_command, ray_token, run_directory


def node(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the head of the cluster to join, such as HEAD:6379.")
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Begin a cluster: this machine is its head.")] = False,
    ip: Annotated[str | None, typer.Option(help="This machine's address for the others. Default: as Ray finds it.")] = None,
) -> None:
    """Run Ray on this machine, as the head of a cluster or a member of one, until it is stopped.

    Then, once, on the head: serve deploy CONFIG. Further options are those of `ray start`.
    """
    if head == (address is not None) or (address is not None and not address.rpartition(":")[2].isdigit()):
        raise ConfigurationError("Name the head with --address HOST:PORT, or begin a cluster with --head.")
    check_shared(read_settings())
    token = ray_token(os.environ, make=head)
    run_dir = run_directory()
    hold(run_dir)
    environment = node_environment(os.environ, token, run_dir)
    command = ray_command(address, ip, context.args)
    console.print("Ray: start" + (" a cluster" if head else f", join {address}"))
    # Replaced by Ray: signals reach it, and nothing is left to look after.
    os.execve(command[0], command, environment)  # noqa: S606
