"""The invariants of the engine, by number, each with the planted bugs that its check finds.

A drawn `Scenario` (what the stores hold, what goes wrong, what the application does) is played in virtual time;
the play leaves a `Trace`, and a check reads the trace. The same checks read the traces of engines with a planted bug.
"""
