"""The simulated Ascend bites: each known way to misuse its kernels makes a check fail that the code as it is passes."""

from __future__ import annotations

import pytest

from mindspeed_vita.checks.parity.pool import LayoutPool

ATTENTION = "mindspeed_vita.ops.attention.npu"
TOKENWISE = "mindspeed_vita.ops.tokenwise.npu"
MUTANTS = {
    "statistics read in the wrong order": (
        ATTENTION,
        'return {"softmax_layout": "TND"} if order == "TND" else {}',
        "return {}",
        "blocks",
    ),
    "lengths with a leading 0": (
        ATTENTION,
        "        yield slice(first_row",
        "        lengths = {name: [0, *ends] for name, ends in lengths.items()}\n        yield slice(first_row",
        "blocks",
    ),
    # on the square segments of a diagonal both modes mean the same, so only the recorded call shows it
    "causal from the top left": (ATTENTION, "_CAUSAL_FROM_BOTTOM_RIGHT = 0, 3", "_CAUSAL_FROM_BOTTOM_RIGHT = 0, 2", "modes"),
    "no mask, which turns the mode off": (ATTENTION, '"atten_mask": _causal_mask(device), ', "", "blocks"),
    "a mask of the documents' own size": (ATTENTION, "_MASK_SIZE = 2048", "_MASK_SIZE = 333", "blocks"),
    "a mask on the host": (ATTENTION, ".triu(1).to(device)", ".triu(1)", "blocks"),
    "a causal tower": (
        ATTENTION,
        'query.shape[2], "BSND", scale=scale)[0]',
        'query.shape[2], "BSND", scale=scale, atten_mask=_causal_mask(query.device), sparse_mode=3)[0]',
        "tower",
    ),
    "a tower of strided views": (ATTENTION, "(x.contiguous() for x in (q_BPND, k_BPND, v_BPND))", "(q_BPND, k_BPND, v_BPND)", "tower"),
    "all gradients unpacked": (ATTENTION, ")[:3]  # 4 outputs", ")  # 4 outputs", "blocks"),
    "local statistics in the gradient": (ATTENTION, "softmax_sum=torch.ones_like(top)", "softmax_sum=1.3 * torch.ones_like(top)", "blocks"),
    "the scale forgotten in the gradient": (ATTENTION, "scale_value=rows.scale,", "scale_value=1.0,", "blocks"),
    "all documents in one call": (ATTENTION, "_MOST_SEQUENCES = 1024", "_MOST_SEQUENCES = 1 << 20", "many"),
    "merge without the leading 0": (ATTENTION, "torch.arange(2, dtype", "torch.arange(1, 2, dtype", "merge"),
    "merge by 32-bit lengths": (ATTENTION, "dtype=torch.int64, device=device", "dtype=torch.int32, device=device", "merge"),
    "merge by lengths on the host": (ATTENTION, "dtype=torch.int64, device=device", "dtype=torch.int64", "merge"),
    "merge at any width": (ATTENTION, " and out_TND.shape[-1] % 64 == 0", "", "merge"),
    "merge without the second sum": (ATTENTION, "return out, top[..., 0] + total[..., 0].log()", "return out, top[..., 0]", "merge"),
    "cached keys counted over all sequences": (ATTENTION, "sequences.lengths.tolist()", "sequences.lengths.cumsum().tolist()", "paged"),
    "cached keys' queries counted one by one": (ATTENTION, "sequences.query_ends.tolist()", "sequences.query_counts.tolist()", "paged"),
    "cached attention without its scale": (ATTENTION, "        scale=paged.scale,\n        block", "        block", "paged"),
    "cached attention without its log-sum-exp": (ATTENTION, "        softmax_lse_flag=True,\n", "", "paged"),
    "cached attention with a table on the host": (
        ATTENTION,
        "block_table=sequences.block_table",
        "block_table=sequences.block_table.cpu()",
        "paged",
    ),
    "cached keys head by head": (
        ATTENTION,
        "paged.k_BSGD.flatten(2)",
        "paged.k_BSGD.transpose(1, 2).reshape(paged.k_BSGD.flatten(2).shape)",
        "paged",
    ),
    "cached attention in fp32": (ATTENTION, "_PAGED_DTYPES = (", "_PAGED_DTYPES = (torch.float32, ", "paged"),
    "cached attention at any width": (ATTENTION, "_PAGED_WIDTHS = (64, 128)", "_PAGED_WIDTHS = (64, 80, 128)", "paged"),
    "a weight of another dtype": (TOKENWISE, "weight_H.to(x_XH.dtype)", "weight_H.float()", "tokenwise"),
    "tables of the wrong layout": (TOKENWISE, "[None, :, None, :]", "[None, None, :, :]", "tokenwise"),
}


@pytest.mark.parametrize("section", sorted({mutant[-1] for mutant in MUTANTS.values()}))
def test_the_code_as_it_is_passes(npus: LayoutPool, section: str) -> None:
    assert npus.run("tests.npu.runs:check", section=section)[0] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_shows(npus: LayoutPool, name: str) -> None:
    module, old, new, section = MUTANTS[name]
    failures = npus.run("tests.npu.runs:mutant", module=module, old=old, new=new, section=section)[0]
    assert failures, f"{name}: nothing noticed"
    assert not any("places like" in reason or "SyntaxError" in reason for _, reason in failures), failures
