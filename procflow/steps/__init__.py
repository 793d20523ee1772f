"""Step kinds: what a worker does for each kind of ``StepCall``. One file per kind; workers import only what they run."""
