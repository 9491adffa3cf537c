"""Text from outside made safe to print: ids and messages may hold terminal escapes, bidi controls or markup."""

from __future__ import annotations

from ._secrets import redacted


def one_line(message: str) -> str:
    """The message with every character that is not printable (control, bidi, surrogate, odd spaces) escaped.

    What came from the environment is replaced by the name of its variable.
    """
    message = redacted(message)
    if message.isprintable():
        return message
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in message
    )


def printable(text: str, width: int | None = None) -> str:
    """A document id as a person can read and tell apart.

    It is shown as it is if it is harmless, else as a quoted literal with escapes. With `width`, a longer one loses
    its middle.
    """
    plain = bool(text) and text.isprintable() and text == text.strip() and text[0] not in "'\""
    shown = text if plain else repr(text)
    if width is None or len(shown) <= width:
        return shown
    head = (width - 1) // 2
    return f"{shown[:head]}…{shown[head + 1 - width :]}"
