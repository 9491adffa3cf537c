"""TLS in front of a server that does not speak it: certificates for a test, and a stream that is decrypted and passed on.

The client is the driver that is tested, with its own checks; the server behind may have been built without TLS.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

_POSTGRES_ASKS = bytes.fromhex("0000000804d2162f")
"""A PostgreSQL client's request for TLS: its length, and the code 80877103."""
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def missing() -> str | None:
    """What the tests of TLS lack."""
    return None if shutil.which("openssl") else "openssl is not on the path; install Debian's openssl"


@attrs.frozen
class Authority:
    """A certificate authority of a test's own, with files in one folder."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Authority:
        """A new one."""
        folder.mkdir()
        _openssl("req", "-x509", *_KEY, "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=test")
        return cls(folder)

    @property
    def certificate(self) -> Path:
        """What those need who trust it."""
        return self.folder / "ca.pem"

    def issue(self, host: str) -> tuple[Path, Path]:
        """A certificate for a host, and its key."""
        pem, key, request = (self.folder / f"{host}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.folder / f"{host}.ext"
        extensions.write_text(f"subjectAltName = DNS:{host}\nauthorityKeyIdentifier = keyid\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={host}")
        by = ("-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *by, "-out", pem, "-extfile", extensions)
        return pem, key

    def server(self, host: str = "localhost", *, asks_clients: bool = False) -> ssl.SSLContext:
        """What a server for this host speaks; with `asks_clients`, clients must show a certificate as well."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.certificate)
        context.load_cert_chain(*self.issue(host))
        if asks_clients:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert 0 == done.returncode, done.stderr


@asynccontextmanager
async def open_tls(context: ssl.SSLContext, server_port: int, *, postgres: bool) -> AsyncGenerator[int, None]:
    """A port of the loopback interface that speaks TLS, and passes on what it decrypts; `postgres`: once asked to."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            if postgres:
                asked = bytes(await stream.receive_some(len(_POSTGRES_ASKS)))
                assert _POSTGRES_ASKS == asked, asked
                await stream.send_all(b"S")
            client = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            await client.do_handshake()
            async with await trio.open_tcp_stream("127.0.0.1", server_port) as server, trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, server, client, nursery.cancel_scope)
                await _pass_on(client, server, nursery.cancel_scope)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client does not like the certificate, or has gone
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _pass_on(source: trio.abc.Stream, target: trio.abc.Stream, scope: trio.CancelScope) -> None:
    while piece := await source.receive_some():
        await target.send_all(piece)
    scope.cancel()
