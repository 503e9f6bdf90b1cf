import ipywidgets
import pytest

from nbsupport import widgets


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(widgets, "time", clock)
    return clock


@pytest.fixture
def shown(monkeypatch):
    """Widgets that were displayed."""
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    return shown


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_headless_reports_are_rare_whole_lines(clock, capsys, shown):
    report = widgets.reporter(False, "training")
    for done in range(1, 101):
        clock.now += 1
        report(done, 100, f"loss {done}")
    printed = lines(capsys)
    assert printed[0] == "training: 1 of 100, 1 s, about 1 min 39 s left; loss 1"
    assert printed[1] == "training: 6 of 100, 6 s, about 1 min 34 s left; loss 6"
    assert printed[-1] == "training: 100 of 100, 1 min 40 s; loss 100"
    # Every five seconds at first, then each time a tenth of the time has passed.
    assert len(printed) == 17
    assert not any("\r" in line or "\x1b" in line for line in printed)
    assert shown == []


def test_first_and_last_report_always_show(clock, capsys):
    report = widgets.reporter(False)
    for done in (1, 2, 3):
        report(done, 3)
    assert lines(capsys) == ["1 of 3, 0 s, about 0 s left", "3 of 3, 0 s"]


def test_a_reporter_starts_anew(clock, capsys):
    report = widgets.reporter(False)
    report(5, 10)
    clock.now += 2
    report(1, 4)  # another loop, though the first never finished
    clock.now += 3
    report(4, 4)
    clock.now += 7200
    report(1, 2)
    assert lines(capsys) == [
        "5 of 10, 0 s",
        "1 of 4, 0 s, about 0 s left",
        "4 of 4, 3 s",
        "1 of 2, 2 h 00 min, about 2 h 00 min left",
    ]


def test_what_a_resumed_work_finds_done_promises_no_speed(clock, capsys):
    report = widgets.reporter(False, "training")
    clock.now += 1
    report(5000, 6000)
    clock.now += 50
    report(5100, 6000)
    assert lines(capsys) == [
        "training: 5,000 of 6,000, 1 s",
        "training: 5,100 of 6,000, 51 s, about 7 min 30 s left",
    ]


def test_nothing_to_do_is_finished(clock, capsys):
    widgets.reporter(False, "empty")(0, 0)
    assert lines(capsys) == ["empty: 0 of 0, 0 s"]


def test_interactive_reports_move_one_bar(clock, capsys, shown):
    report = widgets.reporter(True, "training")
    report(1, 4, "loss 2")
    clock.now += 10
    report(2, 4)
    (box,) = shown
    label, bar, text = box.children
    assert (label.value, bar.value, bar.max) == ("training", 2, 4)
    assert text.value == "2 of 4, 10 s, about 10 s left"
    report(4, 4)
    assert (bar.value, bar.bar_style) == (4, "success")
    report(1, 3)
    assert len(shown) == 2
    assert bar.value == 4
    assert lines(capsys) == []


def test_bars_are_not_redrawn_at_every_step(clock, shown):
    report = widgets.reporter(True)
    report(1, 1000)
    bar = shown[0].children[1]
    drawn = []
    bar.observe(lambda change: drawn.append(change.new), "value")
    for done in range(2, 1001):
        clock.now += 0.01
        report(done, 1000)
    assert drawn[-1] == 1000
    assert len(drawn) < 130


def test_browse_redraws_when_a_control_changes():
    calls = []
    box = widgets.browse(lambda side, grey: calls.append((side, grey)), side=(1, 5), grey=False)
    slider, check = (c for c in box.children if not isinstance(c, ipywidgets.Output))
    assert slider.continuous_update is False
    assert slider.style.description_width == "initial"
    slider.value = 4
    check.value = True
    assert calls[-2:] == [(4, False), (4, True)]
