.PHONY: run test bench readme clean

run:            ## install the example and serve it on port 8000
	scripts/run

test:           ## install what the tests need and run them
	scripts/test

bench:          ## compare with the peers (half an hour on a quiet machine), keep the result and show it in the README
	scripts/venv test,bench
	.venv/bin/python -m benchmarks.run --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.preload --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.reload --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.reload --watcher stat --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.memory --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.sandbox
	.venv/bin/python -m benchmarks.channel --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.tasks --json benchmarks/history.jsonl
	.venv/bin/python -m benchmarks.chaos --through hub redis nats
	$(MAKE) readme

readme:         ## write the generated tables into the README
	scripts/venv test
	.venv/bin/python scripts/readme.py

clean:
	rm -rf .venv .laraman .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
