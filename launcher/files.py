"""Where runs lie, and how a file is written whole (see shards.files)."""

from pathlib import Path

from shards.files import appearing, publish, sync_to_disk, temporary_name, write_whole

__all__ = ["RUNS", "appearing", "publish", "sync_to_disk", "temporary_name", "write_whole"]

RUNS = Path("runs")
