"""Serves a page that searches an index by photographs, and its JSON API.

    python -m proxynca_jax.serve --index photos.lance
    python -m proxynca_jax.serve --index photos.lance --host 0.0.0.0 --port 80

By default only this machine reaches it. There is no password: with --host, everyone who reaches the address sees the
images of the index. Ctrl-C stops it.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import contextlib
import ipaddress
import logging
import socket
from types import FrameType
from typing import TYPE_CHECKING

import PIL.Image

from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.machine.signals import install, interrupt, leave_at_once, restore
from proxynca_jax.vector_index.index import Index

if TYPE_CHECKING:
    import uvicorn

MAX_CONNECTIONS = 256
CLOSE_SECONDS = 3  # for answers that are under way at Ctrl-C
PORTS = (0, 65535)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.serve", description=summary)
    parser.add_argument("--index", required=True, metavar="ADDRESS", help="a folder, s3://…, or postgresql://…")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=integer(PORTS), default=8000, help="default: 8000; 0 takes any that is free")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        _serve(options)


def _serve(options: argparse.Namespace) -> None:
    try:
        import uvicorn

        from proxynca_jax.page.app import make_app
        from proxynca_jax.page.guard import LOCAL_NAMES
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs the package {error.name}: pip install 'proxynca_jax[serve]'.") from error
    with _listen(options.host, options.port) as listener:  # first, because the network takes seconds to load
        index = Index.open(options.index)
        host, port, *_ = listener.getsockname()
        app = make_app(index, LOCAL_NAMES if ipaddress.ip_address(host).is_loopback else None)
        # Compiles, so the first search is as fast as the others.
        index.embedder.with_batch_size(1).embed([PIL.Image.new("RGB", (64, 64))])
        config = uvicorn.Config(
            app,
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        address = f"[{host}]" if ":" in host else host
        print_line(f"{options.index}: {len(index):,} images at http://{address}:{port}/ (Ctrl-C stops)")
        _run(uvicorn.Server(config), listener)


def _run(server: "uvicorn.Server", listener: socket.socket) -> None:
    """Serves until a signal of `STOPPING` arrives. Answers that are under way are finished first."""
    arrived: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        server.should_exit = True
        install(leave_at_once)

    # Its own handlers leave SIGHUP out, and take signals that should stay ignored.
    server.capture_signals = contextlib.nullcontext  # pyright: ignore[reportAttributeAccessIssue]
    before = install(stop)
    try:
        server.run(sockets=[listener])
    finally:
        restore(before)
    if arrived:
        interrupt(arrived[0], None)


def _listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Raises:
        UserError: if it is in use or the host is not this machine's.
    """
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        fault, *_ = str(error.strerror).split(" (while")  # Python adds the address again
        raise UserError(
            f"cannot listen at {host}, port {port}: {fault}. Choose another --port, or --port 0 for any that "
            "is free; --host is an address of this machine."
        ) from error


if __name__ == "__main__":
    prepare_process()
    main()
