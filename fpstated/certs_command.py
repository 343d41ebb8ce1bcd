"""``fpstated certs``: a development CA, the certificates that it issues, and what a folder of them holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

certs = typer.Typer(
    help="Make a development CA and certificates for mutual TLS. Needs: pip install 'fpstated[certs]'.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where the CA and its certificates lie.", file_okay=False)]
_Force = Annotated[bool, typer.Option("--force", help="Write over what is there.")]


@certs.command()
def init(
    folder: _Folder,
    trust_domain: Annotated[str, typer.Option(metavar="NAME", help="Of every identity it signs.")] = "fpstated.local",
    force: _Force = False,
) -> None:
    """Make a CA: DIR/ca.pem and DIR/ca.key."""
    with _complaints("init"):
        from fpstated.certs import init_ca

        print(init_ca(folder, trust_domain=trust_domain, force=force))


@certs.command()
def issue(
    folder: _Folder,
    identity: Annotated[
        str,
        typer.Argument(
            metavar="ROLE/NAME",
            help="host/NAME, guest/NAME, guest/NAME/vms/ID/ID, controller/NAME, operator/NAME or fault/NAME.",
        ),
    ],
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A DNS name or an IP address of a host. Several times.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long it is good, at most 825.")] = 90,
    name: Annotated[str, typer.Option(metavar="FILE", help="Of the files, without ending; default ROLE-NAME.")] = "",
    force: _Force = False,
) -> None:
    """Issue a certificate and its key: DIR/ROLE-NAME.pem and DIR/ROLE-NAME.key."""
    with _complaints("issue"):
        from fpstated.certs import issue as issue_one

        print(issue_one(folder, identity, file_name=name, hosts=host or (), days=days, force=force))


@certs.command()
def show(folder: _Folder) -> None:
    """Print what the certificates of DIR say. No key is opened."""
    with _complaints("show"):
        from fpstated.certs import describe

        print("\n".join(describe(folder)))


@contextmanager
def _complaints(command: str) -> Iterator[None]:
    """What cannot be done is said on standard error, and is status 2."""
    if find_spec("cryptography") is None:
        print(f"fpstated certs {command}: needs: pip install 'fpstated[certs]'", file=sys.stderr)
        raise typer.Exit(2)
    from fpstated.certs import CertsError

    try:
        yield
    except CertsError as error:
        print(f"fpstated certs {command}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
