"""What memory processes take, as Linux tells it."""

from pathlib import Path


def anonymous_bytes(process: int) -> int:
    """Bytes of anonymous memory that a process has now; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in lists for child in text.split()]
