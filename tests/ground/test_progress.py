"""Progress of a study; the bars themselves are rich's."""

import io

import pytest
from rich.console import Console

from ablation_lens import progress
from ablation_lens.progress import progress_over, progress_over_cells
from tests.terminals import HOSTILE, SHOWN


def printed(monkeypatch, terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, legacy_windows=False)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    return output


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    output, now = printed(monkeypatch, terminal=False), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_over_cells(shown=True) as shown:
        shown.expect(1200)
        for cell in range(70):
            shown.describe(f"tiny-opt: cell [bold]{cell}")
            shown.advance()
            now[0] += 1
    assert output.getvalue().splitlines() == [
        "0 of 1,200 cells; tiny-opt: cell [bold]0",
        "30 of 1,200 cells; tiny-opt: cell [bold]30",
        "60 of 1,200 cells; tiny-opt: cell [bold]60",
    ]


def test_nothing_is_counted_in_a_log_before_it_is_known_what_there_is(monkeypatch):
    output = printed(monkeypatch, terminal=False)
    with progress_over_cells(shown=True) as shown:
        shown.describe("tiny-opt: loading")
    assert output.getvalue().splitlines() == ["tiny-opt: loading"]


def test_a_terminal_gets_a_bar_with_cells_done_and_the_one_at_hand(monkeypatch):
    output = printed(monkeypatch, terminal=True)
    with progress_over_cells(shown=True) as shown:
        assert shown.visible
        shown.expect(7)
        shown.describe("tiny-opt: peak, 50 %, seed 42 [bold]")
        for _ in range(3):
            shown.advance()
        with shown.paused():
            pass
    assert shown.done == 3
    assert "3/7" in output.getvalue()
    assert "tiny-opt: peak, 50 %, seed 42 [bold]" in output.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_any_kind_are_shown_on_one_line(monkeypatch, terminal):
    output = printed(monkeypatch, terminal=terminal)
    with progress_over_cells(shown=True) as cells:
        cells.describe(f"{HOSTILE} {'x' * 200}")
    with progress_over(HOSTILE, 3, shown=terminal) as advance:
        advance.describe(f"{HOSTILE} again")
    said = output.getvalue()
    assert SHOWN in said
    assert not any(order in said for order in ("\x1b[31mred", "\x1b]0;", "\x07", "\u202e"))
    assert terminal or said.count("\n") == 1  # a log has no width


def test_the_bar_comes_back_after_an_error_in_the_pause(monkeypatch):
    printed(monkeypatch, terminal=True)
    with progress_over_cells(shown=True) as shown:
        with pytest.raises(ZeroDivisionError), shown.paused():
            raise ZeroDivisionError
        assert shown._bar.live.is_started


def test_nobody_asked_nothing_is_printed_and_cells_are_counted(capsys):
    with progress_over_cells(shown=False) as shown:
        shown.expect(2)
        shown.describe("anything")
        with shown.paused():
            shown.advance()
    assert shown.done == 1
    assert not shown.visible
    assert capsys.readouterr() == ("", "")
