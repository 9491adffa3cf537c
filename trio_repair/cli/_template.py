"""`trio-repair init`: a configuration file to start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ._status import UsageError

TEMPLATE: Final = """\
# Configuration of trio-repair. Relative paths are relative to this file.
# Lines that are commented out show the defaults.

[repair]
# Which copy a repair believes. There is no default: this decides which copy is lost.
#   "text"         the text store is the source of truth
#   "vector"       the vector store is
#   "most-recent"  the copy with the higher version number; undecidable cases are left to you
#   "manual"       nothing is written; every divergent document is left to you
# strategy = "most-recent"

# timeout = 30.0            # seconds for one attempt at one document
# concurrency = 64          # repairs at once
# max_retries = 3           # further attempts after a transient failure

# A bulk repair that would write or delete more than these fractions of all documents
# stops before it writes: a wrong or emptied store must not become a mass deletion.
# max_changed = 0.10
# max_deletes = 0.01

# missing_source = "refuse" # or "delete": what it means that the source of truth lacks a document
# cache = "refresh"         # or "invalidate", "fill": what happens to a cache entry that differs
# settle = 1.0              # seconds between the two looks that a divergence must survive
# store_call_timeout = 10.0 # seconds after which a call to a store is given up

[content]
# Metadata that belongs to a document's content, beside its text. All stores must agree on it.
# metadata_keys = ["title"]

# The stores must exist. Your application makes them, for instance with
# trio_repair.stores.sqlite_text.open_sqlite_text("text.db", create=True).

[stores.text]
kind = "sqlite-text"
path = "text.db"

[stores.vector]
kind = "sqlite-vector"
path = "vector.db"

# Any string of a store but its kind can come from the environment: { env = "NAME" } in its place.

[stores.vector.embedder]
kind = "hashing"
dimension = 256

# Without a cache, remove this section.
[stores.cache]
kind = "sqlite-cache"
path = "cache.db"
"""


def write_template(path: Path) -> None:
    """Write the template to a file that does not exist yet; mode 0600, because credentials may be put into it.

    Raises:
        UsageError: the file exists or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists already and was left as it is; name another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(TEMPLATE)
