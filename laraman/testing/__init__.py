"""Kits for tests: what laraman's own tests use, for those who write protocols and backends of the channel for it."""

from laraman.testing.channels import check_channel as check_channel
from laraman.testing.protocols import check_protocol as check_protocol
from laraman.testing.tasks import inline_tasks as inline_tasks
from laraman.testing.tasks import task_workers as task_workers
