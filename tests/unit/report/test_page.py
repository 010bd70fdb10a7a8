"""`vita report`: the page in a headless Chromium, with runs that were trained and with files that mean harm."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.cli.main import main
from mindspeed_vita.report.page import page as written
from mindspeed_vita.report.run_files import RunFiles
from tests.unit.report.conftest import write_lines
from tests.unit.serving.chat_page import needs_chromium
from tests.unit.serving.conftest import browser

__all__ = ["browser"]
_OUTSIDE = """[...document.querySelectorAll("svg > text")].filter((label) => {
    const box = label.getBBox(), chart = label.ownerSVGElement.viewBox.baseVal;
    return box.x < 0 || box.x + box.width > chart.width;
}).map((label) => label.textContent)"""
"""Labels that reach over the border of their chart."""
needs_chromium()


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """The page without a network, and what it asked for or complained about."""
    tab = browser.new_context(**settings).new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("request", lambda request: None if request.url == path.as_uri() else faults.append(request.url))
    tab.goto(path.as_uri())
    return tab, faults


def test_the_page_compares_two_runs_and_shows_the_hand_off(
    browser: Any, runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    assert capsys.readouterr() == (f"{output}\n", "")
    tab, faults = opened(browser, output, viewport={"width": 320, "height": 700}, color_scheme="dark")
    headings = ["Runs compared", "Loss", "Loss by source", "Throughput", "Waits", "Memory", "Optimisation", "Stage hand-offs"]
    assert tab.locator("h2").all_inner_texts() == [*headings, "Settings that differ"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    for title in (
        "Loss, pictures",
        "Held-out loss",
        "Tokens per second, all ranks",
        "Waiting for data, seconds",
        "Highest use of rank 0, GiB",
    ):
        figure = tab.locator("figure").filter(has=tab.get_by_text(title, exact=True))
        assert figure.locator("svg .line").count() == 2, title
        assert figure.locator(".legend").inner_text().split() == ["━", "align", "━", "general"]
        box = figure.locator("svg .line").first.bounding_box()
        assert box["width"] > 50, "the line is drawn"
    section = tab.locator("section").filter(has=tab.get_by_role("heading", name="Stage hand-offs"))
    assert section.locator("table").first.locator("td").all_inner_texts()[:3] == ["align", "4", "general"]
    assert section.get_by_text("gate held_out_loss: measured").count() == 2
    assert tab.get_by_role("cell", name="train.steps", exact=True).locator("..").inner_text().split() == ["train.steps", "4", "3"]
    joined = section.locator("figure").first.locator("svg > text").all_text_contents()
    assert "7" in joined, "the second run's three steps follow the first one's four"
    assert not faults
    assert tab.evaluate(_OUTSIDE) == [], "labels that the chart cuts off"
    assert not [title for title in tab.locator("figcaption").all_inner_texts() if "_" in title], "keys without a title"


def test_files_that_mean_harm_are_shown_as_text_and_damaged_lines_are_told_once(
    browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<img src=http://x.test/a onerror=alert(1)>\"'</svg><script>alert(1)</script>\ud800\x1b[2J"
    folder = tmp_path / "<b>run"
    losses = [3.0, float("nan"), 2.0, 1.0]
    lines: list[Any] = [{"step": step, "loss": loss, f"loss/{evil}": loss, evil: 2.0} for step, loss in enumerate(losses, 1)]
    torn = '{"step": 5, "loss"'
    write_lines(folder / "metrics.jsonl", *lines[:2], "no json", '{"step": 3, "loss": "2"}', '{"step": true, "loss": 2}', *lines[2:])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1e999, "lr": ' + "9" * 400 + "}\n" + torn)
    failed = {"step": 2, "sample_id": 7, "source": evil, "path": evil, "reason": evil}
    write_lines(folder / "quarantine.jsonl", failed, {"step": 0, "where": evil, "reason": "too long: 99"}, {"step": 1})
    output = tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(output)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition("; look")[0] for line in told] == [
        f"{folder / 'metrics.jsonl'}: 3 damaged lines were left out (line 3: it is no JSON)",
        f'{folder / "quarantine.jsonl"}: 1 damaged line was left out (line 3: it has no "reason")',
    ]
    tab, faults = opened(browser, output)
    assert tab.locator("script, img, b:not([class]), a, iframe").count() == 0
    shown = tab.locator("body").inner_text()
    assert shown.count("damaged line") == 2 and "the loss of 2 logged steps is not finite (step 2, 9)" in shown
    assert "<img src=http://x.test/a onerror=alert(1)>" in shown and "too long: 99" in tab.content()
    assert not faults


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "broken" / "metrics.jsonl", "no json")
    run = str(tmp_path / "empty")
    for arguments, message in {
        (run, "--output", "p.html"): "no step was logged in metrics.jsonl",
        (str(tmp_path / "broken"), "--output", "p.html"): "1 damaged line was left out (line 1",
        (str(tmp_path / "none"), "--output", "p.html"): "no such folder; expected the folder of a run",
        (run, "--output", "p.svg"): "name a file that ends in .html",
        (run, "--output", str(tmp_path / "no" / "p.html")): "make it first",
        (run, run + "/.", "--output", "p.html"): "is named twice",
    }.items():
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_steps_with_bad_numbers_are_listed_with_their_packs(tmp_path: Path) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 1, "loss": 2.0})
    packs = [{"pack": number, "samples": [number]} for number in range(100, 112)]
    numbers = {"loss": 250.5, "usual_loss": 2.0, "grad_norm": "nan", "usual_grad_norm": "nan"}
    bad = {"step": 2_000, "action": "roll_back", "why": "the gradient norm is not finite", **numbers, "packs": packs}
    write_lines(tmp_path / "run" / "bad_numbers.jsonl", bad, {"step": 3, "action": "<b>", "why": "<i>", "packs": [7, {}], "loss": None})
    run = RunFiles(tmp_path / "run")
    run.read()
    section = written([run]).partition("<h2>Bad steps</h2>")[2].partition("</section>")[0]
    cells = [cell.partition("</td>")[0] for cell in section.split("<td>")[1:]]
    done = "the run went back to its last checkpoint"
    listed = ", ".join(str(number) for number in range(100, 108)) + " and 4 more"
    assert cells[:9] == ["run", "2,000", "the gradient norm is not finite", "250.5", "2", "nan", "nan", done, listed]
    assert cells[9:] == ["run", "3", "&lt;i&gt;", "None", "-", "-", "-", "&lt;b&gt;", "?"]


def test_a_long_run_keeps_its_peaks_and_the_page_stays_small(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 7777.0 if step == 12_345 else 2.0 + step % 2, "seconds": 1e-300} for step in range(1, 30_001)]
    write_lines(tmp_path / "run" / "metrics.jsonl", *lines)
    run = RunFiles(tmp_path / "run")
    run.read()
    content = written([run])
    assert len(content) < 150_000 and "7,777" in content
    drawn = content.partition('class="raw" points="')[2].partition('"')[0].split()
    assert len(drawn) <= 600 and min(float(point.split(",")[1]) for point in drawn) == 12.0, "the peak touches the top"


def test_a_full_disk_names_the_page(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["report", str(runs[0]), "--output", str(tmp_path / "page.html")]) == 2
    assert f"{tmp_path / 'page.html'}: cannot be written (No space left on device); free space" in capsys.readouterr().err
