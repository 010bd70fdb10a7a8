"""Draws docs/figures/watch_view.png and report_page.png: `vita watch` and `vita report` on two runs of a tiny model, which it trains first.

    python scripts/figures/runs.py [FOLDER]

Needs Chromium. The runs, of 60 and 80 steps, take about a minute on a CPU.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))
from project_environment import packages_needed

with packages_needed():
    import yaml
    from playwright.sync_api import sync_playwright
    from rich.console import Console

    from mindspeed_vita.cli.main import main as vita
    from mindspeed_vita.config import recipe_to_dict
    from mindspeed_vita.report.run_files import RunFiles
    from mindspeed_vita.report.terminal import view
    from tests.tiny_data import TinyData, make_tiny
    from tests.unit.serving.chat_page import CHROMIUM

_TERMINAL = "<pre style='margin:0;display:inline-block;padding:6px;font:16px monospace;color:{foreground};background:#0c0c0c'>{code}</pre>"


def train(tiny: TinyData, folder: Path) -> list[Path]:
    """Two runs, the second from the weights of the first; returns their folders."""
    held_out = {"mixture": tiny.held_out, "media_root": str(tiny.folder), "every": 10, "packs": 2, "gate": 100.0}
    runs: list[Path] = []
    for name, steps, lr in (("align", 60, 1e-2), ("general", 80, 1e-3)):
        content: dict[str, Any] = recipe_to_dict(tiny.recipe(folder / name, train={"steps": steps, "lr": lr}, eval=held_out))
        content["name"], content["data"]["mixture"] = name, tiny.two_sources
        content["checkpoint"]["init_from"] = str(runs[-1]) if runs else ""
        recipe = folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(content))
        if vita(["train", str(recipe)]):
            raise SystemExit(f"{recipe}: the run failed, see its message above")
        runs.append(folder / name)
    return runs


def terminal(run: Path) -> str:
    """What `vita watch` shows, as HTML."""
    console, files = Console(record=True, width=108, file=io.StringIO(), force_terminal=True), RunFiles(Path(run.name))
    files.read()
    console.print(view(files))
    return console.export_html(code_format=_TERMINAL, inline_styles=True).replace("#000000", "#dddddd")


def main(output: Path) -> None:
    """Trains, draws and writes both pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        os.chdir(folder)  # the view has the path of the run as it was given
        runs = train(make_tiny(folder), folder)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1900}, color_scheme="light")
        vita(["report", *map(str, runs), "--output", str(folder / "page.html")])
        page.goto((folder / "page.html").as_uri())
        page.screenshot(path=output / "report_page.png")
        page.set_content(terminal(runs[-1]))
        page.locator("pre").screenshot(path=output / "watch_view.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "docs" / "figures")
