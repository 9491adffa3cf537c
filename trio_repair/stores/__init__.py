"""Stores that come with the library; import the one you use from its module.

`memory` needs nothing more; `sqlite_text`, `sqlite_vector` and `sqlite_cache` need the extra ``trio-repair[sqlite]``,
`tantivy` needs ``trio-repair[tantivy]``, `postgres_text` and `pgvector` need ``trio-repair[postgres]``.
`tantivy` needs ``trio-repair[tantivy]``, `redis` needs ``trio-repair[redis]`` and a server.
Other packages register theirs under the entry-point group ``trio_repair.stores``.
"""
