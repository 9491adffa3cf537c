"""What a store that keeps a document as it is has to prepare: to see that it can."""

from __future__ import annotations

from trio_repair import ContentDefinition, Document, InvalidValue, Prepared, StoreError, StoreRejected
from trio_repair._views import new_prepared

from ._encoding import metadata_json


def prepare_document(store: str, content: ContentDefinition, document: Document) -> Prepared | StoreError:
    """The document with its metadata as JSON, or why it can never be stored."""
    if document.text is None:
        return Prepared(document=document, payload="{}")
    problem = None
    try:
        if content.digest(document.text, document.metadata) != document.version.digest:
            problem = "its digest is not that of its content; use one ContentDefinition in all stores"
        document.text.encode()
        metadata = metadata_json(document.metadata)
    except UnicodeEncodeError:
        problem = "its text or metadata holds a lone surrogate, which is not UTF-8"
    except (InvalidValue, TypeError, ValueError, RecursionError) as error:
        problem = f"its content is not text and JSON ({type(error).__name__})"
    if problem is not None:
        return StoreRejected(store, problem, document.doc_id)
    return new_prepared(document, metadata)
