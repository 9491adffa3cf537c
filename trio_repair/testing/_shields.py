"""How a cancellation reaches tasks that are shielded from it. Trio offers no way: its private part is used here."""

from __future__ import annotations

import trio


def remove_shields(task: trio.lowlevel.Task) -> None:
    """Take the shields away that `task` and all tasks under it have at this moment. The run is broken afterwards.

    To be called in the thread of the run, between two of its steps.
    """
    waiting = [task]
    while waiting:
        one = waiting.pop()
        status: trio._core._run.CancelStatus | None = one._cancel_status
        while status is not None:
            status._scope.shield = False
            status = status._parent
        waiting.extend(child for nursery in one.child_nurseries for child in nursery.child_tasks)
