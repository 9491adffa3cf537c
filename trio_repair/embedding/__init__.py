"""Embedders and chunkers that need neither a model nor a network, and an adapter for embedders that block.

The seams are `trio_repair.abc.Embedder` and `trio_repair.abc.Chunker`; two lines each are enough to bring your own.
"""

from .hashing import HashingEmbedder
from .threads import InThread
from .windows import WindowChunker, rebuild_text

__all__ = ["HashingEmbedder", "InThread", "WindowChunker", "rebuild_text"]
