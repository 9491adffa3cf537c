"""`repair --metrics-port`: metrics over HTTP while a run lasts, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import DAMAGE, Done, Fifo, contents

if importlib.util.find_spec("prometheus_client") is None and os.environ.get("CI") != "true":
    pytest.skip("prometheus_client is not installed; pip install -e '.[prometheus]'", allow_module_level=True)


def test_metrics_are_served_while_a_run_lasts(
    damaged: Path,
    troubled: Callable[..., dict[str, str]],
    start: Callable[..., subprocess.Popen[bytes]],
    fifo: Callable[[str], Fifo],
) -> None:
    """The address is told; repairs that wait for a store are active; afterwards the port is closed."""
    reached, release = fifo("reached"), fifo("release")
    env = troubled(damaged, method="write", reached=str(reached.path), release=str(release.path))
    process = start("repair", "--dir", damaged, "--strategy", "text", "--metrics-port", "0", env=env)
    reached.wait()
    assert process.stderr is not None
    told = process.stderr.readline().decode()
    found = re.search(r"^trio-repair: metrics: (http://127\.0\.0\.1:\d+/metrics)$", told)
    assert found is not None, told
    # The write that was reached may be one that needs no text; those of the others are still being read then.
    read = re.compile(r'^trio_repair_store_call_documents_sum{operation="read",store="text"} [1-9]', re.MULTILINE)
    text, ends = "", time.monotonic() + 30
    while not read.search(text) and time.monotonic() < ends:
        with urllib.request.urlopen(found[1], timeout=30) as answer:
            text = answer.read().decode()
    active = re.search(r"^trio_repair_active_repairs (\S+)$", text, re.MULTILINE)
    assert active is not None
    assert 0 < float(active[1]) <= len(DAMAGE)
    assert read.search(text)
    assert not any(doc_id in text for doc_id in DAMAGE)
    release.release()
    process.communicate(timeout=30)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(found[1], timeout=30)


def test_a_port_that_is_taken(damaged: Path, call: Callable[..., Done]) -> None:
    """One line that names it, status 2, and nothing was written."""
    before = contents(damaged)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("repair", "--dir", damaged, "--strategy", "text", "--metrics-port", str(port))
    assert 2 == done.status
    assert f"--metrics-port: cannot listen on 127.0.0.1:{port} (Address already in use); name another port" == (
        done.complaint
    )
    assert before == contents(damaged)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_what_is_no_port(damaged: Path, call: Callable[..., Done], port: str) -> None:
    """It is named with its bounds."""
    done = call("repair", "--dir", damaged, "--strategy", "text", f"--metrics-port={port}")
    assert 2 == done.status
    assert f"--metrics-port: must be from 0 (any that is free) to 65535, not {port}" == done.complaint


def test_a_dry_run_serves_nothing(damaged: Path, call: Callable[..., Done]) -> None:
    """The two are refused together."""
    done = call("repair", "--dir", damaged, "--strategy", "text", "--dry-run", "--metrics-port", "0")
    assert 2 == done.status
    assert "--metrics-port" in done.complaint


def test_without_the_library(damaged: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is told, and nothing was written."""
    before = contents(damaged)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "trio_repair.instrumentation.prometheus", raising=False)
    done = call("repair", "--dir", damaged, "--strategy", "text", "--metrics-port", "0")
    assert 2 == done.status
    expected = '--metrics-port: needs prometheus-client; install it with: pip install "trio-repair[prometheus]"'
    assert expected == done.complaint
    assert before == contents(damaged)
