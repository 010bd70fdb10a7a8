"""Ranks that share a model, each with rows of its own as an evaluator deals them, get one process's answers and likelihoods."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.native import checkpoint as native
from tests.pools import Pools
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

PROMPTS = ["Hi?", "What is it?", "A cat on a table.", "Two people?", "Yes or no?", "Look.", "How many?"]
CONTINUATIONS = ["A cat", "No.", "two"]


@pytest.mark.distributed
def test_a_rank_may_take_longer_than_the_timeout_until_it_has_requests(pools: Pools, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    native.save_full_weights(tmp_path / "run", random_weights(seed=8), tiny_recipe(tokenizer=str(tmp_path / "tokenizer")))
    arguments = {"folder": str(tmp_path / "run"), "timeout": 4.0, "seconds": 6.0}
    first, second = pools("installed").run("tests.distributed.evaluation_runs:late", cp=2, **arguments)
    assert len(first) == 2 and len(set(first)) == 1 and second == first


@pytest.mark.distributed
def test_every_rank_gets_the_answers_to_its_own_rows(pools: Pools, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    native.save_full_weights(tmp_path / "run", random_weights(seed=8), tiny_recipe(tokenizer=str(tmp_path / "tokenizer")))
    arguments = {"folder": str(tmp_path / "run"), "continuations": CONTINUATIONS}
    run = "tests.distributed.evaluation_runs:shared"
    (said, alone, problem), *_ = pools("installed").run(run, tp=1, cp=1, prompts=[PROMPTS], **arguments)
    assert problem.startswith("Hi?: a prompt of")
    expected = dict(zip(PROMPTS, said))
    dealt = [PROMPTS[rank::4] for rank in range(3)]  # the last rank has none, as where a benchmark has few rows
    dealt[2] += PROMPTS[3::4]
    found = pools("installed").run(run, tp=2, cp=2, prompts=[*dealt, []], **arguments)
    for rank, (texts, losses, problem) in enumerate(found):
        assert texts == [expected[prompt] for prompt in [*dealt, []][rank]]
        assert problem.startswith("Hi?: a prompt of"), "every rank learns of it"
        assert len(losses) == (len(CONTINUATIONS) if rank < 3 else 0)
    assert found[0][1] == pytest.approx(alone, abs=1e-4)


@pytest.mark.distributed
def test_all_ranks_use_the_step_that_the_first_one_found(pools: Pools, tmp_path: Path) -> None:
    """A run that trains may write a step between two looks. Each rank's own folder stands for its own look."""
    for rank, step in enumerate((5, 6)):
        folder = tmp_path / str(rank) / f"step_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "checksums.json").write_text("{}")
    run, folders = "tests.distributed.evaluation_runs:chosen", [str(tmp_path / name) for name in ("0", "1", "1", "1")]
    assert pools("installed").run(run, tp=2, cp=2, folders=folders) == [str(tmp_path / "0" / "step_0000005")] * 4
    (tmp_path / "empty").mkdir()
    for found in pools("installed").run(run, tp=2, cp=2, folders=[str(tmp_path / "empty"), *folders[1:]]):
        assert "holds no whole checkpoint" in found, "where the first one finds none, all end"
