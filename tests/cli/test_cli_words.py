"""What is printed: hostile ids made harmless, durations read, statuses told apart."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_repair import CheckIncomplete, InvalidValue, StoreFileError, StoreUnavailable
from trio_repair.cli._durations import parse_duration
from trio_repair.cli._escape import one_line, printable
from trio_repair.cli._status import AnotherRun, ExitStatus, UsageError, report, status_of

HOSTILE = ["\x1b[31mred", "a\nb", "a\rb", "\u202eabc", "\u2066x", "\x9b31m", "\ud800", "a\u200bb", "\x7f", "tab\there"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_is_printed(text: str) -> None:
    """Escapes, line breaks, bidi controls, zero-width characters and surrogates come out as escapes."""
    assert printable(text).isprintable()
    assert one_line(text).isprintable()
    assert not text.isprintable()  # the control


@given(st.text(st.characters(exclude_categories=()), min_size=0, max_size=20))
def test_printable_is_printable_and_unambiguous(text: str) -> None:
    """Whatever an id holds, it is shown in printable characters, and no two ids look the same."""
    shown = printable(text)
    assert shown.isprintable()
    quoted = shown[:1] in {"'", '"'}
    assert text == (eval(shown) if quoted else shown)


def test_a_harmless_id_is_shown_as_it_is() -> None:
    """Paths, markup, spaces inside, other scripts and backslashes are not disfigured."""
    for text in ("doc-1", "a/b c.txt", "[red]x[/red]", "naïve-文書", "C:\\x"):
        assert text == printable(text)


def test_a_long_id_loses_its_middle() -> None:
    """It keeps its ends and exactly the width."""
    assert "aaaa…zzzzz" == printable("a" * 50 + "z" * 50, 10)
    assert 10 == len(printable("a" * 100, 10))
    assert "a" * 10 == printable("a" * 10, 10)


@given(st.text(st.characters(exclude_categories=())))
def test_one_line_is_one_line(text: str) -> None:
    """No message breaks out of its line, and printable ones are left alone."""
    shown = one_line(text)
    assert all(unicodedata.category(character)[0] != "C" for character in shown)
    assert not text.isprintable() or shown == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("30d", 2592000.0),
        (" 1W ", 604800.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """A number with or without a unit."""
    assert seconds == parse_duration("--timeout", text)


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-inf", "-5", "0", "1e999", "5 parsecs", "1:30", "٣"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Negative, not a number, infinite, zero, or something else: the option is named."""
    with pytest.raises(UsageError, match=r"^--timeout: "):
        parse_duration("--timeout", text)


def test_a_unit_can_be_required() -> None:
    """`--older-than 30` could mean days: it is not guessed."""
    with pytest.raises(UsageError, match="write 30d for days"):
        parse_duration("--older-than", "30", unit_required=True)
    assert 0.0 == parse_duration("--older-than", "0d", unit_required=True, zero=True)


def test_errors_have_the_status_that_is_documented() -> None:
    """Usage and files are 2, stores that cannot be reached and other runs are 3."""
    expected = {
        UsageError("x"): 2,
        InvalidValue("x", "y"): 2,
        StoreFileError("text", "x"): 2,
        StoreUnavailable("text", "x"): 3,
        CheckIncomplete("x", stores=["text"]): 3,
        AnotherRun("x"): 3,
    }
    assert expected == {error: status_of(error) for error in expected}


def test_groups_are_taken_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """A group of expected errors is a line each, without doubles; the graver status counts."""
    group = ExceptionGroup(
        "x", [StoreUnavailable("text", "gone"), ExceptionGroup("y", [StoreUnavailable("text", "gone")])]
    )
    assert ExitStatus.COULD_NOT_LOOK is report(group)
    assert "trio-repair: text store: gone\n" == capsys.readouterr().err


def test_a_bug_is_shown_as_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception that nobody expected keeps its traceback, not its message, and has a status of its own."""

    def buggy() -> None:
        raise ZeroDivisionError("the text of a document")

    try:
        buggy()
    except ZeroDivisionError as error:
        assert ExitStatus.BUG is report(ExceptionGroup("quoted", [UsageError("ours is shown"), error]))
    told = capsys.readouterr().err
    assert "builtins.ZeroDivisionError (its message is not shown)" in told
    assert ", in buggy" in told
    assert "ours is shown" in told
    assert "text of a document" not in told.replace('ZeroDivisionError("the text of a document")', "")  # our source
    assert "quoted" not in told.replace('ExceptionGroup("quoted"', "")


def test_an_interrupt_before_anything_began_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while modules load is no bug."""
    assert ExitStatus.INTERRUPTED is report(BaseExceptionGroup("x", [KeyboardInterrupt()]))
    assert "" == capsys.readouterr().err
