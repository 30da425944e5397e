"""One run on disk: its folder, checkpoints, resuming, signals, tracking."""
