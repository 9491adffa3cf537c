"""The report: its table says what the files of figures say, and stands in the documents at its marked place only."""

from __future__ import annotations

import copy
import datetime as dt
import json
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from report_support import HAND_MADE, Read, figures_of, has, page_of, rows, spread, write

import trio_repair
from benchmarks import (
    __main__,
    _harness,
    _report,
    alternatives,
    check_scan,
    deadline_lateness,
    engine_cost,
    repair_throughput,
    simulated_latencies,
)
from benchmarks._figures import Finding, Limit, Spread, number

ROOT = Path(__file__).parents[2]
CLAIMS: dict[str, list[tuple[str, ...]]] = {
    "alternatives": [],
    "check_scan": [("measured", "1", "check_over_read")],
    "check_scan_large": [("measured", "0", "check_over_read")],
    "deadline_lateness": [("p99_over_trio", "settled")],
    "engine_cost": [("ratio",)],
    "growth": [("check", "2", "time_over_reference"), ("repair", "2", "time_over_reference")],
    "peers": [("peers", "taskiq", "over_engine"), ("peers", "asyncio", "engine_over")],
    "repair_throughput_full": [
        (over, other) for over in ("throughput_over", "apart_over") for other in ("script", "blind", "single")
    ],
    **{
        f"server_throughput_{index}": [
            ("throughput_over", "script"),
            ("check_over_read",),
            ("memory", "check", "1", "peak_rss_over_smallest"),
            ("memory", "repair", "1", "peak_rss_over_smallest"),
        ]
        for index in ("hnsw", "none")
    },
    "simulated_latencies": [("measured", "2", "engine", "ideal_over_wall")],
    "slow_commits_lancedb": [
        ("throughput_over", "single", "engine 1024"),
        ("throughput_over", "script", "engine 1024"),
    ],
    "slow_commits_tantivy": [
        ("throughput_over", "single", "engine 1024"),
        ("throughput_over", "script", "engine 1024"),
    ],
}
"""Where the figures are that the table must have, written down here a second time."""


def at(saved: Any, path: tuple[str, ...]) -> Any:
    """A part of saved figures."""
    for key in path:
        saved = saved[int(key) if isinstance(saved, list) else key]
    return saved


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_the_table_has_the_figures_of_the_file(name: str, tmp_path: Path) -> None:
    """Each claim's ratio, and the command; with a control: were the figure another one, that would be noticed."""
    saved = copy.deepcopy(HAND_MADE[name])
    table = _report.markdown(_report.load(write(tmp_path, {name: saved})))
    assert f"`python -m benchmarks {name}`" in table
    for path in CLAIMS[name]:
        figure = at(saved, path)
        assert has(table, figure), (path, table)
        for key in ("median", "min", "max"):
            changed = copy.deepcopy(saved)
            at(changed, path)[key] *= 1.1 if key == "max" else 0.95 if key == "min" else 1.05
            other = _report.markdown(_report.load(write(tmp_path, {name: changed})))
            assert not has(other, figure)
            assert has(other, at(changed, path))


def test_the_table_of_alternatives_counts_what_is_mended(tmp_path: Path) -> None:
    """Ours, the best other way that does not embed everything, and how much we embed."""
    table = _report.markdown(_report.load(write(tmp_path, {"alternatives": HAND_MADE["alternatives"]})))
    ours, theirs, embedded = (row[2] for row in rows(table)[:3])
    assert (number((8 * 9 + 1) / 80), number((7 * 4 + 1) / 70), number(40 / 2000)) == (ours, theirs, embedded)
    assert "langchain full" in rows(table)[1][0]


def test_the_table_of_limits_says_what_is_the_engines_own(tmp_path: Path) -> None:
    """Of each profile, what neither waits nor is Trio's, as a part of the wall time."""
    table = _report.markdown(_report.load(write(tmp_path, {"limits": HAND_MADE["limits"]})))
    assert [["0.460", "0.460 to 0.460", ""]] == [row[2:5] for row in rows(table) if "of repair" in row[0]]


def test_memory_is_told_over_that_of_the_smallest_size(tmp_path: Path) -> None:
    """The most at any size; with nearly a third more than the smallest the claim is missed."""
    table = _report.markdown(_report.load(write(tmp_path, {"growth": HAND_MADE["growth"]})))
    assert has(table, spread(62 / 50))
    assert has(table, spread(66 / 50))
    claimed = [row[4] for row in rows(table) if " to " in row[3]]
    memory = "peak memory by 30 % at most"
    assert ["by 20 % at most: missed", f"{memory}: holds", "by 20 % at most: missed", f"{memory}: missed"] == claimed


def test_limits_are_words_of_the_claim(tmp_path: Path) -> None:
    """What the table says was claimed stands in the first line of the benchmark, and no claim with a number lacks it."""
    limited = set()
    for result in _report.load(write(tmp_path, HAND_MADE)):
        for finding in [] if result.shown is None else result.shown.findings:
            if finding.limit is not None:
                limited.add(result.name)
                assert finding.limit.words in result.claim
    assert set(HAND_MADE) - {"alternatives", "limits"} == limited


def test_what_a_check_is_claimed_for(tmp_path: Path) -> None:
    """At most 1.3 times a read of 100,000 or more documents with little damage; of fewer, nothing is claimed."""
    saved = copy.deepcopy(HAND_MADE["check_scan"])

    def told() -> list[list[str]]:
        table = _report.markdown(_report.load(write(tmp_path, {"check_scan": saved})))
        return [row for row in rows(table) if row[0].startswith("a check of")]

    saved["measured"][0]["damaged_part"] = 0.001
    saved["measured"].append({**saved["measured"][1], "documents": 1_000_000, "check_over_read": spread(1.2)})
    assert ["", "at most 1.3 times: missed", "at most 1.3 times: holds"] == [row[4] for row in told()]
    saved["measured"][2]["check_over_read"] = spread(9.0)
    assert ("", True) == (told()[-1][4], "the dearest" in told()[-1][0])


def test_what_memory_is_claimed_for_on_servers(tmp_path: Path) -> None:
    """From ten thousand documents to a hundred thousand, by 30 % at most; at other sizes nothing is claimed of it."""
    words = "by 30 % at most"
    saved = copy.deepcopy(HAND_MADE["server_throughput_none"])
    saved["memory"]["repair"][1]["peak_rss_over_smallest"] = spread(1.31)
    table = _report.markdown(_report.load(write(tmp_path, {"server_throughput_none": saved})))
    share = "at least half the throughput: holds"
    assert [share, "", f"{words}: holds", f"{words}: missed"] == [row[4] for row in rows(table) if " to " in row[3]]
    for work in ("check", "repair"):
        saved["memory"][work][1]["documents"] = 99_999
    table = _report.markdown(_report.load(write(tmp_path, {"server_throughput_none": saved})))
    assert [share, "", "", ""] == [row[4] for row in rows(table) if " to " in row[3]]


@pytest.mark.parametrize(("median", "missed"), [(0.4, True), (0.5, False), (2.0, False), (2.1, True)])
def test_a_claim_holds_or_is_missed_by_its_median(median: float, missed: bool) -> None:
    """At the limit it holds."""
    limit = Limit(words="about the same", low=0.5, high=2)
    finding = Finding(what="a", against="b", ratio=Spread(median, 0.1, 9), limit=limit)
    assert missed is finding.missed
    assert f"about the same: {'missed' if missed else 'holds'}" == finding.claimed


def test_figures_of_other_sizes_than_the_claim_names_hold_and_miss_nothing(tmp_path: Path) -> None:
    """A tiny run proves nothing about ten thousand repairs or a million documents."""
    tiny = copy.deepcopy(
        {name: HAND_MADE[name] for name in ("deadline_lateness", "engine_cost", "growth", "simulated_latencies")}
    )
    tiny["deadline_lateness"]["repairs"] = 100
    tiny["engine_cost"]["jobs"] = 100
    for work in ("check", "repair"):
        tiny["growth"][work][-1]["documents"] = 20_000
    tiny["simulated_latencies"]["measured"][2]["concurrency"] = 999
    table = _report.markdown(_report.load(write(tmp_path, tiny)))
    assert 7 == len(figures_of(table))
    assert {""} == {row[4] for row in rows(table)}


def test_what_was_not_measured_is_listed(tmp_path: Path) -> None:
    """Every file that a benchmark writes has its rows, or says by which command it would be there."""
    results = _report.load(write(tmp_path, {"engine_cost": HAND_MADE["engine_cost"]}))
    table = _report.markdown(results)
    for name in {*HAND_MADE, "repair_throughput_normal"} - {"engine_cost"}:
        assert 1 == sum(row[0].replace("\\", "") == name and "not measured" in row for row in rows(table)), name
    assert "`python -m benchmarks repair_throughput --synchronous normal`" in table
    assert {result.name for result in results} == {*HAND_MADE, "repair_throughput_normal"}


def test_figures_without_anything_to_compare_with_are_listed(tmp_path: Path) -> None:
    """No peer was installed: that is said, in table and page, and not passed over."""
    alone = copy.deepcopy(HAND_MADE["peers"])
    alone["peers"] = {name: alone["peers"][name] for name in ("floor", "engine")}
    page = page_of(write(tmp_path, {"peers": alone}))
    assert "nothing to compare with" in Read(page).words
    table = (tmp_path / "report.md").read_text()
    assert [["peers", "", "nothing to compare with", "", "", "`python -m benchmarks peers`"]] == [
        row for row in rows(table) if row[0] == "peers"
    ]


def test_nothing_at_all_is_a_sentence(tmp_path: Path) -> None:
    """A folder that is not even there gives no table."""
    assert _report.NO_FIGURES == _report.markdown(_report.load(tmp_path / "none"))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"benchmark": "engine_cost"}', json.dumps({"ratio": {"median": 3, "min": 4, "max": 5}})]
)
def test_a_file_that_cannot_be_read_is_named_and_hides_no_other(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It costs the exit status, not the report."""
    write(tmp_path, {"check_scan": HAND_MADE["check_scan"]})
    (tmp_path / "engine_cost.json").write_text(text)
    assert 1 == __main__.main(["report", "--results", str(tmp_path)])
    assert "engine_cost.json cannot be read" in capsys.readouterr().err
    table = (tmp_path / "report.md").read_text()
    assert has(table, HAND_MADE["check_scan"]["measured"][1]["check_over_read"])
    assert ["engine_cost"] == [row[0].replace("\\", "") for row in rows(table) if row[2] == "cannot be read"]
    assert "Cannot be read" in (tmp_path / "report.html").read_text()


def test_the_documents_have_the_place_for_the_table() -> None:
    """One in each, that the writer finds; what stands there is the sentence or a whole table."""
    for name in _report.QUOTING:
        document = (ROOT / name).read_text()
        assert document == _report.fill(document, document.split(f"{_report.BEGIN}\n")[1].split(_report.END)[0])
        quoted = document.split(f"{_report.BEGIN}\n")[1].split(_report.END)[0]
        assert quoted == _report.NO_FIGURES or all(len(row) == 6 for row in rows(quoted) or [[]]), quoted


@pytest.mark.parametrize("name", _report.QUOTING)
def test_exactly_the_marked_place_is_replaced(name: str, tmp_path: Path) -> None:
    """What is around it stays, byte for byte; doing it twice changes nothing more."""
    document = (ROOT / name).read_text()
    table = _report.markdown(_report.load(write(tmp_path, HAND_MADE)))
    filled = _report.fill(document, table)
    before, _, rest = document.partition(_report.BEGIN)
    after = rest.partition(_report.END)[2]
    assert f"{before}{_report.BEGIN}\n{table}{_report.END}{after}" == filled
    assert filled == _report.fill(filled, table)
    assert document == _report.fill(filled, rest.partition(_report.END)[0].removeprefix("\n"))


@pytest.mark.parametrize("document", ["", f"{_report.BEGIN}\n", f"{_report.BEGIN}\n{_report.END}" * 2, _report.END])
def test_control_a_document_without_one_such_place_is_left_alone(document: str) -> None:
    """No place, no end, or two."""
    with pytest.raises(ValueError, match="one place"):
        _report.fill(document, "table")


def test_the_command_writes_table_page_and_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is printed, lies beside the page, and stands in the documents, twice the same."""
    monkeypatch.setattr(_harness, "ROOT", tmp_path)
    for name in _report.QUOTING:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"before\n\n{_report.BEGIN}\nold\n{_report.END}\n\nafter\n")
    folder = write(tmp_path / "figures", {"engine_cost": HAND_MADE["engine_cost"]})
    for _ in range(2):
        arguments = ["report", "--results", str(folder), "--out", str(tmp_path / "there" / "p.html"), "--readme"]
        assert 0 == __main__.main(arguments)
        table = (tmp_path / "there" / "p.md").read_text()
        assert has(table, HAND_MADE["engine_cost"]["ratio"])
        assert table in capsys.readouterr().out
        for name in _report.QUOTING:
            expected = f"before\n\n{_report.BEGIN}\n{table}{_report.END}\n\nafter\n"
            assert expected == (tmp_path / name).read_text()
    assert "- 2026-01-02 with python 3.11.9, trio 0.35.0, apsw 3.54.1, on 4 cores of Some CPU (x86\\_64)\n" in table


def test_a_page_that_would_be_the_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the two would be lost."""
    with pytest.raises(SystemExit):
        _report.main(["--results", str(tmp_path), "--out", str(tmp_path / "x.md")])
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (1.724, "1.72"), (0.0351, "0.0351"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits_and_no_exponent(value: float, expected: str) -> None:
    """Enough to compare them."""
    assert expected == number(value)


@pytest.mark.parametrize(
    "saved", [{"median": 3, "min": 4, "max": 5}, {"median": 6, "min": 4, "max": 5}, {"median": 1}, {"median": "x"}, 3]
)
def test_control_what_is_no_spread_is_refused(saved: Any) -> None:
    """A figure outside of its own range is a mistake, not a figure."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Spread.of(saved)


def test_figures_are_saved_with_what_they_were_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Date in UTC, command, options, processor, cores, versions; of a folder only its own name."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    options = Namespace(documents=[10, 20], queue_jobs=0, dir=tmp_path / "my stores", only=[], against=None)
    path = _harness.save("some", {"ratio": 2}, prog="python -m benchmarks some", options=options)
    saved = json.loads(path.read_text())
    assert "python -m benchmarks some --documents 10 20 --queue-jobs 0 --dir 'my stores'" == saved["command"]
    assert saved["options"] == {**vars(options), "dir": "my stores"}
    assert str(tmp_path) not in path.read_text()
    age = dt.datetime.now(dt.timezone.utc) - dt.datetime.fromisoformat(saved["date"])
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
    on = saved["on"]
    assert (trio.__version__, trio_repair.__version__) == (on["trio"], on["trio_repair"])
    assert {"machine", "processor", "cores", "python", "attrs", "apsw"} <= set(on)
    assert on["cores"] >= 1
    assert on["processor"]


TINY: dict[str, tuple[Any, list[str]]] = {
    "engine_cost": (engine_cost, ["--jobs", "70", "--rounds", "2"]),
    "check_scan": (check_scan, ["--documents", "50", "200", "--damaged", "0.0", "0.05", "--rounds", "1"]),
    "deadline_lateness": (deadline_lateness, ["--repairs", "20", "--lead", "0.3", "--rounds", "1"]),
    "repair_throughput_normal": (
        repair_throughput,
        ["--documents", "20", "--single", "5", "--rounds", "1", "--synchronous", "normal"],
    ),
    "simulated_latencies": (simulated_latencies, ["--concurrency", "2", "4", "--waves", "1", "--rounds", "1"]),
}


def spreads(saved: Any) -> Iterator[tuple[float, float, float]]:
    """All medians, with minimum and maximum, that are anywhere in saved figures."""
    if isinstance(saved, dict) and {"median", "min", "max"} == set(saved) and not isinstance(saved["min"], dict):
        yield saved["median"], saved["min"], saved["max"]
    elif isinstance(saved, dict | list):
        for part in saved.values() if isinstance(saved, dict) else saved:
            yield from spreads(part)


@pytest.mark.parametrize("name", TINY)
def test_what_a_benchmark_saves_is_what_the_report_reads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run at a tiny size, reported, and compared with the file; the command that is told has all its options."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    module, arguments = TINY[name]
    module.main(arguments)
    saved = json.loads((tmp_path / f"{name}.json").read_text())
    page = page_of(tmp_path)
    table = (tmp_path / "report.md").read_text()
    shown = module.shown(saved)
    assert len(shown.findings) == len(figures_of(table))
    every = list(spreads(saved))
    for row in figures_of(table):
        assert any(row == pytest.approx(figure, rel=0.005) for figure in every), row
    assert saved["command"] in Read(page).words
    told = shlex.split(saved["command"])
    assert ["python", "-m", "benchmarks", module.__name__.removeprefix("benchmarks.")] == told[:4]
    assert all(argument in told[4:] for argument in arguments)


def test_the_command_that_is_told_is_the_one_that_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run again as told, defaults spelled out, it tells the same."""
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    engine_cost.main(["--jobs", "70", "--rounds", "1"])
    first = json.loads((tmp_path / "engine_cost.json").read_text())
    assert 0 == __main__.main(shlex.split(first["command"])[3:])
    again = json.loads((tmp_path / "engine_cost.json").read_text())
    assert (first["command"], first["options"]) == (again["command"], again["options"])


def test_one_way_of_telling_what_is_repaired() -> None:
    """The page and the screen say the same of a kind."""
    assert ["n/a", "3", "2 (1)"] == [alternatives.told(None, 0), alternatives.told(3, 0), alternatives.told(2, 1)]
