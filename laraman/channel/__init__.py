"""The channel between processes."""
