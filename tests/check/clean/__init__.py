"""An application as it should be: with caches, singletons that are made at their first use, tasks and threads, and nothing that leaks."""
