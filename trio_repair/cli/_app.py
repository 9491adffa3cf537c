"""The command line: what can be typed, checked and handed to the commands, and one handler for all that goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import trio
from cyclopts import App, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from rich import box

from .. import __version__
from ._check import run_check
from ._configuration import FILE_NAME
from ._create import run_create
from ._dry_run import run_dry
from ._durations import parse_duration
from ._ids import IdFile, check_id, check_ids
from ._metrics import check_port
from ._options import (
    HERE,
    Flag,
    Json,
    Limit,
    StrategyName,
    Text,
    Where,
    Whole,
    check_limit,
    examples,
    refuse_same_file,
    refuse_together,
    seconds,
    whole_number,
)
from ._output import Output
from ._plan import run_plan
from ._plan_file import read_plan
from ._prepare import run_prepare
from ._purge import run_purge
from ._repair import Everything, Named, RepairRequest, run_repair
from ._search import run_search
from ._show import read_expected, run_resolve, run_show
from ._signals import open_interruption
from ._status import ExitStatus, UsageError
from ._strategy import chosen_strategy, overridden
from ._template import write_template

_EXAMPLES: Final = """\
Examples:

  trio-repair demo --dir demo
  trio-repair check --dir demo
  trio-repair repair --dir demo --strategy most-recent --dry-run
  trio-repair repair --config search.toml --strategy text

Exit status:

    0  all consistent, or done
    1  divergences found, something failed, or a person must decide
    2  wrong usage or configuration
    3  could not look: a store was unreachable, or another run is under way
   70  a bug, shown with where it was raised, without its message
  130  interrupted
"""


app = App(
    name="trio-repair",
    version=f"trio-repair {__version__}",
    help="Find and repair documents whose full-text, vector and cache copies do not agree.",
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    # Without boxes it reads the same on a terminal, in a pipe and in a mail.
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=box.Box("    \n" * 8), padding=(0, 0))),
    backend="trio",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


@app.command(help_epilogue=examples("check --dir demo", "check --config search.toml --json > divergences.jsonl"))
async def check(
    *, where: Where = HERE, json: Json = False, summary: Flag = False, limit: Limit = 10, after: Text = None
) -> ExitStatus:
    """Find documents on which the stores do not agree. Changes nothing.

    With --json: a line {"type": "divergence"} for each, then one {"type": "summary"}.

    Parameters
    ----------
    summary
        Counts only, no documents.
    after
        Check documents with a greater id only: the last one that an earlier check has dealt with.
    """
    if after is not None:
        check_id(after, what="--after")
    return await run_check(where.load(), Output(json=json), summary=summary, limit=check_limit(limit), after=after)


@app.command(
    help_epilogue=examples(
        "plan --dir demo --strategy most-recent --out plan.jsonl", "repair --dir demo --plan plan.jsonl"
    )
)
async def plan(
    *,
    out: Path,
    strategy: StrategyName | None = None,
    where: Where = HERE,
    json: Json = False,
    limit: Limit = 10,
) -> ExitStatus:
    """Write down what a repair would do, to look at and to carry out later with repair --plan.

    Parameters
    ----------
    out
        The file to write: JSON lines, a header and then one line for each document.
    strategy
        Which copy to believe.
    """
    configuration = where.load()
    return await run_plan(
        configuration,
        Output(json=json),
        strategy=chosen_strategy(configuration, strategy),
        out=out,
        limit=check_limit(limit),
    )


@app.command(
    help_epilogue=examples(
        "repair --dir demo --strategy most-recent --dry-run",
        "repair --dir demo --strategy text doc-1 doc-2",
        "repair --dir demo --ids-file ids.txt --receipts receipts.jsonl",
        "repair --dir demo --max-duration 10m",
    )
)
async def repair(
    *documents: str,
    strategy: StrategyName | None = None,
    timeout: Text = None,  # noqa: ASYNC109 - an option of the command, not of a coroutine
    concurrency: Annotated[int | None, Parameter(converter=whole_number)] = None,
    max_retries: Annotated[int | None, Parameter(converter=whole_number)] = None,
    dry_run: Flag = False,
    plan: Path | None = None,
    ids_file: Text = None,
    max_duration: Text = None,
    allow_mass: Flag = False,
    receipts: Path | None = None,
    metrics_port: Annotated[int | None, Parameter(converter=whole_number)] = None,
    where: Where = HERE,
    json: Json = False,
    limit: Limit = 10,
) -> ExitStatus:
    """Make the copies of documents agree: those named, or all that a check finds.

    Ctrl-C finishes the repairs under way, a second one cancels them. With --json: one line {"type": "repair"}.

    Parameters
    ----------
    documents
        Document ids; put -- before one that starts with a hyphen.
    strategy
        Which copy to believe. Must be named here or in the configuration.
    timeout
        What one attempt may take, for instance 30s.
    concurrency
        How many documents are repaired at once.
    max_retries
        Further attempts after a transient failure.
    dry_run
        Show what would be done, and write nothing.
    plan
        Do what this plan says and nothing else; documents that have changed since are refused.
    ids_file
        A file of document ids, one a line in UTF-8; - for stdin. Empty lines are skipped.
    max_duration
        Take no new documents after this time, for instance 10m.
    allow_mass
        Lift the limits for mass changes.
    receipts
        Append one JSON line for each result to this file.
    metrics_port
        Serve metrics for Prometheus on this port of the loopback interface while the run lasts; 0: any free one.
    """
    output = Output(json=json)
    attempt, whole = seconds("--timeout", timeout), seconds("--max-duration", max_duration)
    check_limit(limit)
    port = None if metrics_port is None else check_port(metrics_port)
    refuse_together(documents=bool(documents), ids_file=ids_file is not None, plan=plan is not None)
    refuse_together(plan=plan is not None, strategy=strategy is not None)
    refuse_together(dry_run=dry_run, receipts=receipts is not None)
    refuse_together(dry_run=dry_run, metrics_port=metrics_port is not None)
    refuse_same_file(receipts, plan=plan, ids_file=None if ids_file is None else Path(ids_file))
    configuration = where.load()
    config = overridden(
        configuration.engine,
        job_timeout_seconds=("--timeout", attempt),
        max_concurrent_jobs=("--concurrency", concurrency),
        allow_mass=("--allow-mass", True if allow_mass else None),
    )
    if max_retries is not None and max_retries < 0:
        raise UsageError(f"--max-retries: must be at least 0, not {max_retries}")
    what: Any
    ids: IdFile | None = None
    if plan is not None:
        what = read_plan(plan, configuration)
    elif ids_file is not None:
        ids = await _open_ids(ids_file)
        if ids is None:
            output.say("interrupted: nothing was changed")
            return ExitStatus.INTERRUPTED
        what = Named(ids, count=ids.count, bulk=True)
    elif documents:
        named = check_ids(documents)
        what = Named(named, count=len(named), bulk=False)
    else:
        what = Everything()
    request = RepairRequest(
        configuration=configuration,
        config=config,
        strategy=what.header.strategy if plan is not None else chosen_strategy(configuration, strategy),
        max_retries=configuration.max_retries if max_retries is None else max_retries,
        what=what,
        max_duration=whole,
        receipts=receipts,
        metrics_port=port,
        limit=limit,
    )
    try:
        return await run_dry(request, output) if dry_run else await run_repair(request, output)
    finally:
        if ids is not None:
            ids.close()


async def _open_ids(name: str) -> IdFile | None:
    """Read them in a thread, because a pipe may stay silent, and signals must still be heard. None: one was."""
    async with open_interruption() as interruption:
        with interruption.scope:
            return await trio.to_thread.run_sync(IdFile.open, name, abandon_on_cancel=True)
    return None


@app.command(help_epilogue=examples("show --dir demo doc-1", "show --dir demo doc-1 --json > seen.json"))
async def show(document: str, /, *, where: Where = HERE, json: Json = False) -> ExitStatus:
    """Show what each store holds of a document, what is wrong with it, and what each strategy would do.

    With --json: one line {"type": "document"}.

    Parameters
    ----------
    document
        The document's id.
    """
    return await run_show(where.load(), Output(json=json), doc_id=check_id(document))


@app.command(
    help_epilogue=examples(
        "resolve --dir demo doc-1 --take text", "resolve --dir demo doc-1 --take delete --expected-from seen.json"
    )
)
async def resolve(
    document: str,
    /,
    *,
    take: Literal["text", "vector", "delete"],
    expected_from: Path | None = None,
    timeout: Text = None,  # noqa: ASYNC109 - an option of the command, not of a coroutine
    where: Where = HERE,
    json: Json = False,
) -> ExitStatus:
    """Decide what only a person can decide: whose copy of a document is right, or that it shall be gone.

    It is refused if the document changes after it was shown. With --json: one line {"type": "resolution"}.

    Parameters
    ----------
    document
        The document's id.
    take
        The store whose copy is right, or delete.
    expected_from
        What show --json wrote: commit only if the stores still hold exactly this.
    timeout
        What it may take, for instance 30s.
    """
    doc_id = check_id(document)
    configuration = where.load()
    config = overridden(configuration.engine, job_timeout_seconds=("--timeout", seconds("--timeout", timeout)))
    expected = None if expected_from is None else read_expected(expected_from, doc_id)
    return await run_resolve(configuration, config, Output(json=json), doc_id=doc_id, take=take, expected=expected)


@app.command(help_epilogue=examples("purge --dir demo --older-than 30d --dry-run", "purge --dir demo --older-than 30d"))
async def purge(
    *,
    older_than: Annotated[str, Parameter(allow_leading_hyphen=True)],
    undated: Flag = False,
    dry_run: Flag = False,
    where: Where = HERE,
    json: Json = False,
) -> ExitStatus:
    """Forget old deletes: remove tombstones that every store holds.

    With --json: one line {"type": "purge"}.

    Parameters
    ----------
    older_than
        How long the text store must have held the tombstone, for instance 30d.
    undated
        With stores that do not record when they took a tombstone in: purge those without a time as well.
    dry_run
        Count only.
    """
    seconds = parse_duration("--older-than", older_than, unit_required=True, zero=True)
    return await run_purge(where.load(), Output(json=json), older_than=seconds, undated=undated, dry_run=dry_run)


@app.command(
    help_epilogue=examples("prepare --config search.toml", "prepare --config search.toml text.id-order --apply")
)
async def prepare(*names: str, apply: Flag = False, where: Where = HERE, json: Json = False) -> ExitStatus:
    """Show SQL that would make checks of existing tables faster, or their copies comparable. None of it is needed.

    With --json: a line {"type": "preparation"} for each.

    Parameters
    ----------
    names
        What is meant of what it shows, such as text.id-order; all of it if none is named.
    apply
        Run it, each store's in one transaction.
    """
    return await run_prepare(where.load(), Output(json=json), names=names, apply=apply)


@app.command(help_epilogue=examples("create --config search.toml", "create --config search.toml vector"))
async def create(*stores: str, where: Where = HERE, json: Json = False) -> ExitStatus:
    """Make the stores that are not there, empty: at first, or after one was lost. What is there is left as it is.

    With --json: a line {"type": "store"} for each.

    Parameters
    ----------
    stores
        Which of text, vector and cache; all that the configuration names if none is named.
    """
    return await run_create(where.load(), Output(json=json), roles=stores)


@app.command(help_epilogue=examples('search --dir demo "read a file"', "search --dir demo --in cache doc-1"))
async def search(
    query: str,
    /,
    *,
    in_: Annotated[Literal["text", "vector", "cache"] | None, Parameter(name="--in")] = None,
    where: Where = HERE,
    json: Json = False,
    limit: Limit = 10,
) -> ExitStatus:
    """Search the stores as an application would: by words in the text store, by nearness in the vector store.

    With --json: a line {"type": "hit"} for each hit.

    Parameters
    ----------
    query
        Words to search for; with --in cache, a document id.
    in_
        One store only; otherwise text and vector.
    """
    if limit < 1:
        raise UsageError(f"--limit: must be at least 1, not {limit}")
    if in_ == "cache":
        check_id(query)
    elif not query.strip():
        raise UsageError("QUERY: is empty; name at least one word to search for")
    return await run_search(where.load(), Output(json=json), query=query, role=in_, limit=limit)


@app.command(help_epilogue=examples("init", "init search.toml"))
def init(file: Path = Path(FILE_NAME), /) -> ExitStatus:
    """Write a commented configuration file. An existing file is left as it is.

    Parameters
    ----------
    file
        Where to.
    """
    write_template(file)
    Output(json=False).say(f"wrote {file}; name your stores in it, then: trio-repair check --config {file}")
    return ExitStatus.OK


@app.command(help_epilogue=examples("demo", "demo --dir demo --documents 1000"))
async def demo(
    *,
    dir: Path | None = None,  # noqa: A002
    documents: Annotated[int | None, Parameter(converter=whole_number)] = None,
    seed: Whole = 1,
) -> ExitStatus:
    """Make three real stores, damage them, and find and repair the damage before your eyes.

    Parameters
    ----------
    dir
        Where to; a new directory if none is named.
    documents
        How many documents, at least 200; all of the standard library's docstrings if none is named.
    seed
        Decides what is damaged.
    """
    from ._demo import run_demo  # noqa: PLC0415 - it loads what only the demonstration needs

    if documents is not None and documents < 1:
        raise UsageError(f"--documents: must be at least 1, not {documents}")
    return ExitStatus(await run_demo(dir, documents, seed, Output(json=False).out))


@app.command(help_epilogue=examples("simulate --seed 1 --hours 1000", "simulate --runs 500 --hours 2"))
def simulate(
    *,
    seed: Whole = 1,
    hours: float = 2.0,
    faults: Literal["none", "mild", "harsh"] = "harsh",
    runs: Whole = 1,
    json: Json = False,
) -> ExitStatus:
    """Hold the engine to its promises over stores that fail in every way, in virtual time. Touches none of yours.

    A seed gives one trace, here and elsewhere. With --json: one line {"type": "simulation"}.

    Parameters
    ----------
    seed
        Decides everything that happens.
    hours
        Simulated hours of each run.
    faults
        What goes wrong.
    runs
        How many runs, with the seeds that follow. The first violation ends them.
    """
    from ._simulate import run_simulate  # noqa: PLC0415 - it loads what only the simulation needs

    return run_simulate(Output(json=json), seed=seed, hours=hours, profile=faults, runs=runs)
