"""Members of enums are what they were, and found without a call."""

from __future__ import annotations

import copy
import enum
import pickle

import pytest

from trio_repair import Presence, RepairPriority
from trio_repair._enums import plain_members


def test_members_are_attributes_of_the_class():
    """Not behind a property, as Python 3.11 alone has them: naming one runs no Python code."""
    assert Presence.LIVE is vars(Presence)["LIVE"]

    class Plain(enum.Enum):
        A = "a"

    assert plain_members(Plain) is Plain
    assert vars(Plain)["A"] is Plain.A is Plain("a") is Plain["A"]


def test_enums_are_as_strict_as_ever():
    """Listing, looking up, copying and pickling give the same members; nobody can assign to one."""
    assert ["ABSENT", "TOMBSTONE", "LIVE"] == [member.name for member in Presence]
    assert Presence.LIVE is pickle.loads(pickle.dumps(Presence.LIVE)) is copy.deepcopy(Presence.LIVE)
    assert RepairPriority.CRITICAL < RepairPriority.LOW
    with pytest.raises(AttributeError):
        Presence.LIVE = Presence.ABSENT
    with pytest.raises(ValueError, match="nothing"):
        Presence("nothing")
