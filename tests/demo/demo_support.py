"""Small demo directories: making, damaging and checking them."""

from __future__ import annotations

from pathlib import Path

import attrs

from trio_repair import AutoRepairConfig, Divergence, Stores, check
from trio_repair.demo.build import claim_directory, clear_directory, create_stores, fill_stores
from trio_repair.demo.corpus import stdlib_documents
from trio_repair.demo.damage import STORIES, Damage, Story, damage_stores
from trio_repair.demo.proof import Proof, prove
from trio_repair.demo.workshop import open_workshop
from trio_repair.embedding import HashingEmbedder, WindowChunker

DOCUMENTS = 300
SEED = 7


async def make(directory: Path) -> None:
    """Fill a new directory with stores that agree."""
    claim_directory(directory)
    clear_directory(directory)
    async with create_stores(directory) as stores:
        corpus = stdlib_documents(documents=DOCUMENTS, seed=SEED)
        await fill_stores(stores, corpus, seed=SEED, progress=lambda _: None)


async def damage(directory: Path, stories: tuple[Story, ...] = STORIES) -> list[Damage]:
    """Let stories happen in a directory."""
    async with (
        create_stores(directory) as stores,
        open_workshop(stores, vector_file=directory / "vector.db") as shop,
    ):
        return await damage_stores(shop, seed=SEED, stories=stories)


async def find(stores: Stores) -> dict[str, Divergence]:
    """What `check` reports."""
    config = attrs.evolve(AutoRepairConfig(), settle=0.01)
    async with check(stores, config) as checking:
        return {divergence.doc_id: divergence async for divergence in checking}


def files(directory: Path) -> dict[str, Path]:
    """The stores' files, by role."""
    return {role: directory / f"{role}.db" for role in ("text", "vector", "cache")}


def identity() -> tuple[str, int, str]:
    """How demo documents are embedded."""
    embedder = HashingEmbedder()
    return embedder.model, embedder.dimension, WindowChunker().identity


def proof_of(directory: Path) -> Proof:
    """What the files say."""
    return prove(**files(directory), embedding=identity())
