"""A Redis server of one's own: on loopback, on a port of its own, in a directory of its own, ended by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

BINARY = "redis-server"
_PATIENCE = 20.0


class RedisServer:
    """Start it, then kill it, stop it for a while, or start it again on the same port with the same data.

    Args:
        directory: where it keeps its files; made if it is not there.
        options: what would stand in its configuration file, such as ``maxmemory="2mb"``; `_` stands for `-`.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        self.directory = directory
        self.port = _free_port()
        self._options = {name.replace("_", "-"): value for name, value in options.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str | None:
        """Why there can be no server; None if there can."""
        return None if shutil.which(BINARY) else f"{BINARY} is not on the path; install Debian's {BINARY}"

    @property
    def url(self) -> str:
        """Where it listens, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory),
            "daemonize": "no",
            "save": "",
            "appendonly": "no",
            **self._options,
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", *_words(value))]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([BINARY, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{BINARY} did not start; see {self.directory / 'log'}")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether it answers a PING, be it that it wants a password."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def stop(self) -> None:
        """End it, as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it where it is: it takes connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start it on the same port. What it did not write to its disk is lost."""
        self.kill()
        self.start()

    def command(self, *words: str | bytes, password: str | None = None) -> bytes:
        """Say one command, as any other program might; the answer as it comes over the wire.

        Raises:
            RuntimeError: the server refused it.
        """
        commands: list[tuple[str | bytes, ...]] = [("AUTH", password)] if password is not None else []
        address = "127.0.0.1", self.port
        with socket.create_connection(address, timeout=_PATIENCE) as client, client.makefile("rb") as reader:
            answer = b""
            for one in (*commands, words):
                raw = [word.encode() if isinstance(word, str) else word for word in one]
                client.sendall(b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in raw))
                answer = _answer(reader)
                if answer.startswith(b"-"):
                    raise RuntimeError(answer.decode(errors="replace"))
            return answer

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # one that is paused takes no other
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_PATIENCE)


def _answer(reader: object) -> bytes:
    """One answer: a bulk string without its frame, an array's elements joined by newlines, anything else as it is."""
    line: bytes = reader.readline().rstrip(b"\r\n")  # type: ignore[attr-defined]  # a socket's file
    if line.startswith(b"$"):
        length = int(line[1:])
        return b"" if length < 0 else reader.read(length + 2)[:-2]  # type: ignore[attr-defined,no-any-return]  # a socket's file
    if line.startswith(b"*"):
        return b"\n".join(_answer(reader) for _ in range(int(line[1:])))
    return line


def _words(value: str) -> list[str]:
    # An empty value has to be said too: `save ""` is "never".
    return [value] if not value else value.split()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
