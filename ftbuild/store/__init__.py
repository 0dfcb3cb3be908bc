"""The content-addressed store: digests and bytes, nothing of targets or rules."""
