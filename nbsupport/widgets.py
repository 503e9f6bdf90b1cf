"""Progress and controls: widgets where somebody watches, plain text where nobody can.

The only module that imports ipywidgets. Headless runs print whole lines and never rewrite one,
because a log keeps them all, and show no widget, because it would stay in the file as a dead one.
"""

import time
from collections.abc import Callable

import ipywidgets
from IPython.display import display

__all__ = ["browse", "reporter"]

PAUSE = 5.0
"""Seconds between two lines of a headless run, at least; a tenth of its time once that is more."""

REFRESH = 0.1
"""Seconds between two redraws of a bar, at least."""


def reporter(interactive: bool, label: str = "") -> Callable[..., None]:
    """Make the callback that long computations take to report how far they are.

    Parameters
    ----------
    interactive : bool
        Draw a bar; otherwise print a line now and then.
    label : str
        What is being done.

    Returns
    -------
    callable
        ``report(done, total, message="")``. The first and the last report always show. It may be
        used again: after a last report, or where ``done`` falls, the clock starts anew. What a
        first report beyond 1 finds done (a resumed training) does not count for the time left.
    """
    return _Bar(label) if interactive else _Lines(label)


def browse(function: Callable, **options) -> ipywidgets.Widget:
    """Call a function that shows a figure again whenever one of its controls changes.

    Parameters
    ----------
    function : callable
        Shows a figure made from its arguments.
    **options
        For each argument what ipywidgets.interact makes a control of: a (low, high, step) for a
        slider, a list for a menu, a bool for a box.

    Returns
    -------
    Widget
        The controls with their output; already displayed.
    """
    shown = ipywidgets.interact(function, **options).widget
    for control in shown.children:
        if hasattr(control, "continuous_update"):
            # Draw where the slider is let go, not at every value that it passes.
            control.continuous_update = False
        if hasattr(control, "description"):
            # Else ipywidgets cuts names off after some eleven letters.
            control.style.description_width = "initial"
    return shown


class _Report:
    """When to show a report, and its words."""

    pause: float

    def __init__(self, label: str):
        self.label = label
        self.start = time.monotonic()
        self.shown: float | None = None
        self.before = 0
        # From where the pace is taken: what a resumed work finds done cost it no time.
        self.pace_from = (0.0, 0)

    def __call__(self, done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        if done < self.before:
            self.start, self.shown, self.before = now, None, 0
        if not self.before:
            self.pace_from = (0.0, 0) if done == 1 else (now - self.start, done)
        self.before = done
        last = done >= total
        if self.shown is None or last or now - self.shown >= self.wait(now - self.start):
            self.shown = now
            self.show(done, total, self.words(done, total, now - self.start, message), last)
        if last:
            self.start, self.shown, self.before = now, None, 0

    def words(self, done: int, total: int, seconds: float, message: str) -> str:
        parts = [f"{done:,} of {total:,}", _duration(seconds)]
        since, had = self.pace_from
        if had < done < total:
            left = (seconds - since) / (done - had) * (total - done)
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts) + (f"; {message}" if message else "")

    def wait(self, elapsed: float) -> float:
        return self.pause

    def show(self, done: int, total: int, words: str, last: bool) -> None:
        raise NotImplementedError


class _Lines(_Report):
    pause = PAUSE

    def wait(self, elapsed: float) -> float:
        # A line every five seconds of a long training would fill pages of the notebook.
        return max(self.pause, elapsed / 10)

    def show(self, done: int, total: int, words: str, last: bool) -> None:
        print(f"{self.label}: {words}" if self.label else words, flush=True)


class _Bar(_Report):
    pause = REFRESH

    def __init__(self, label: str):
        super().__init__(label)
        self.bar: ipywidgets.IntProgress | None = None

    def show(self, done: int, total: int, words: str, last: bool) -> None:
        if self.bar is None:
            self.bar = ipywidgets.IntProgress(bar_style="info")
            self.text = ipywidgets.Label()
            display(ipywidgets.HBox([ipywidgets.Label(self.label), self.bar, self.text]))
        self.bar.max, self.bar.value, self.text.value = max(total, 1), done, words
        if last:
            self.bar.bar_style = "success"
            self.bar = None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
