"""Processes: the declaration of what runs, the master that keeps it running, and how to talk to it. No event loop up here."""
