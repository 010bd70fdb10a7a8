"""What a start inside MindSpeed-LLM says of the checkouts of each node."""

from __future__ import annotations

import platform

import pytest

from mindspeed_vita.integration.mindspeed_llm import bootstrap
from mindspeed_vita.integration.patching.ledger import load_ledger


@pytest.mark.parametrize(
    "rank, local_rank, lines",
    [
        ("0", "0", ["commit", "bodies"]),
        ("8", "0", ["node1: commit", "node1: bodies"]),
        ("1", "1", []),
        ("9", "1", []),
        (None, None, ["commit", "bodies"]),
        ("3", None, []),
    ],
)
def test_the_first_process_of_every_node_compares_its_sources(monkeypatch, rank, local_rank, lines):
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "node", lambda: "node1")
    monkeypatch.setattr(bootstrap, "unknown_commits", lambda ledger: ["commit"])
    monkeypatch.setattr(bootstrap, "compare_sources", lambda ledger: ["bodies"])
    assert bootstrap.upstream_notes(load_ledger()) == lines
