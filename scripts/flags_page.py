"""Writes docs/mindspeed_llm_flags.md from the table of verdicts: `python scripts/flags_page.py`."""

from pathlib import Path

from mindspeed_vita.integration.mindspeed_llm.flag_page import page

if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "mindspeed_llm_flags.md"
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target}")
