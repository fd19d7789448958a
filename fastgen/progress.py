"""Progress on stderr: a bar where there is a terminal, plain lines at intervals where not."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_LINE_SECONDS = 10.0  # between plain lines
_DRAW_SECONDS = 0.1  # between redraws of the bar: more is flicker, not information


class Progress:
    """A context manager that says how far a long task has come, how fast it goes and how long
    it will still take.

    label: the first word of every line.
    stream: where to write; default stderr. It gets a bar if it is a terminal, else plain lines.
    enabled: False writes nothing at all.
    """

    def __init__(self, label: str, *, stream: TextIO | None = None, enabled: bool = True):
        self.label = label
        self.stream = sys.stderr if stream is None else stream
        self.enabled = enabled
        isatty = getattr(self.stream, "isatty", lambda: False)
        self._is_terminal = enabled and isatty()
        encoding = getattr(self.stream, "encoding", None) or ""
        self._blocks = " ▏▎▍▌▋▊▉█" if encoding.lower().startswith("utf") else " #"
        self._began = self._drawn = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._text = self._written = ("", "", 0.0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    @property
    def due(self) -> bool:
        """Whether an update would be written now; the last one is, whenever it comes."""
        pause = _DRAW_SECONDS if self._is_terminal else _LINE_SECONDS
        return self.enabled and time.monotonic() - self._drawn >= pause

    def update(self, fraction: float, *, images: int = 0, **figures: float | str) -> None:
        """Tells that `fraction` (0 to 1) of the task is done, `images` so far.

        figures: further values to show, by name, in order; underscores become blanks and
        "per" a slash (test_bits_per_dim=1.85 reads "test bits/dim 1.85").
        """
        if not self.enabled:
            return
        now = time.monotonic()
        if self._first is None:  # a resumed task starts at neither zero nor zero images
            self._first, self._began = (fraction, images), now
        elapsed, gained = now - self._began, fraction - self._first[0]
        parts = [f"{_spell(name)} {_round(value)}" for name, value in figures.items()]
        if images > self._first[1] and elapsed > 0:
            rate = (images - self._first[1]) / elapsed
            parts.append(f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s")
        if fraction >= 1:
            parts.append(f"took {clock(elapsed)}")
        elif gained > 0:
            parts.append(f"ETA {clock(elapsed * (1 - fraction) / gained)}")
        percent = f"{100 * min(fraction, 1):3.0f} %"
        self._text = (percent, "  ".join(parts), min(fraction, 1.0))
        if self.due:
            self._drawn = now
            self._draw()

    def note(self, text: str) -> None:
        """Writes a line of its own without tearing the bar."""
        if self.enabled:
            self._wipe()
            self.stream.write(text + "\n")
            self.stream.flush()

    def close(self) -> None:
        """Writes the last state given, whenever that was."""
        if not self.enabled or not self._text[0]:
            return
        if self._text != self._written:
            self._draw()
        if self._is_terminal:
            self.stream.write("\n")
            self.stream.flush()
        self._text = self._written = ("", "", 0.0)

    def _draw(self) -> None:
        percent, parts, fraction = self._written = self._text
        if not self._is_terminal:
            self.stream.write(f"{self.label} {percent}  {parts}\n")
        else:
            columns = shutil.get_terminal_size().columns - 1
            room = columns - len(f"{self.label} {percent} || {parts}")
            bar = f"|{self._bar(fraction, min(room, 40))}| " if room >= 4 else ""
            self._wipe()
            self.stream.write(f"{self.label} {percent} {bar}{parts}"[:columns])
        self.stream.flush()

    def _bar(self, fraction: float, width: int) -> str:
        steps = len(self._blocks) - 1
        full, part = divmod(round(fraction * width * steps), steps)
        return (self._blocks[-1] * full + self._blocks[part] * (part > 0)).ljust(width)

    def _wipe(self) -> None:
        if self._is_terminal:
            self.stream.write("\r\033[K")


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _spell(name: str) -> str:
    return name.replace("_per_", "/").replace("_", " ")


def _round(value: float | str) -> str:
    if isinstance(value, str):
        return value
    size = abs(value)
    digits = ".0f" if size >= 100 else ".1f" if size >= 10 else ".3f" if size >= 1 else ".3g"
    return format(value, digits)
