"""Bring a document's copies back in sync (public surface follows with the engine)."""
