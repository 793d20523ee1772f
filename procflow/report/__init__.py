"""Reports of runs: one HTML file, a trace for Perfetto, spans for OpenTelemetry.

All but the spans are made from what a run has left on disk, so they work for runs that go on, that were killed or resumed,
and in part for damaged ones. Nothing here writes to a state folder.
"""
