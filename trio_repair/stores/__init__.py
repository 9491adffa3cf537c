"""Stores that come with the library; import the one you use from its module.

`memory` needs nothing more; `sqlite_text`, `sqlite_vector` and `sqlite_cache` need the extra ``trio-repair[sqlite]``,
`tantivy` needs ``trio-repair[tantivy]``, `lancedb` needs ``trio-repair[lancedb]``. With a server to talk to,
`postgres_text` and `pgvector` need ``trio-repair[postgres]``, and `redis` needs ``trio-repair[redis]``.
Other packages register theirs under the entry-point group ``trio_repair.stores``.
"""
