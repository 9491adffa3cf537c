"""Something that happens between two steps of the scheduler, at a step that the test names."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Stepper(trio.abc.Instrument):
    """Counts the steps of all tasks from `arm` to `disarm`, and acts after the one that it was told.

    It acts in Trio's own loop, between two steps, where no task runs: whatever a task did in one step without awaiting
    is one act, and everything else can be cut off.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.acted = False
        self.error: BaseException | None = None
        """Trio drops an instrument that raises, so what `watch` and the action raised is kept here."""
        self._armed = False
        self._step = 0
        self._action: Callable[[], object] | None = None
        self._watch: Callable[[], object] | None = None

    def arm(self, step: int, action: Callable[[], object], watch: Callable[[], object] | None = None) -> None:
        """Act after `step` more steps (0: never), and look on after every one."""
        self._armed, self._step, self._action, self._watch = True, step, action, watch

    def disarm(self) -> None:
        self._armed = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._armed or self.error is not None:
            return
        self.steps += 1
        try:
            if self._watch is not None:
                self._watch()
            if self.steps == self._step and self._action is not None:
                self.acted = True
                self._action()
        except BaseException as error:
            self.error = error
