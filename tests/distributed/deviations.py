"""How far layouts are from one process: lines that tests leave here stand at the end of pytest's output."""

LINES: list[str] = []


def note(line: str) -> None:
    """Show a line at the end."""
    LINES.append(line)
