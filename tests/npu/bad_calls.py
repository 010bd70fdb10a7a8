"""Calls of torch_npu's fused operators that their documentation forbids, made in a worker on a simulated NPU."""

from __future__ import annotations

from typing import Any, Callable

import torch

from tests.npu.runs import error


def _attention(**changes: Any) -> Any:
    """Two packed sequences of three and two tokens, changed."""
    import torch_npu

    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1).npu()
    call = {"query": _rows(5, 4), "key": _rows(5, 2), "value": _rows(5, 2), "head_num": 4, "input_layout": "TND", "scale": 0.25}
    call.update({"actual_seq_qlen": [3, 5], "actual_seq_kvlen": [3, 5], "atten_mask": mask, "sparse_mode": 3})
    return torch_npu.npu_fusion_attention(**{**call, **changes})


def _merge(width: int = 64, **changes: Any) -> Any:
    import torch_npu

    statistics = torch.ones(5, 4, 8).npu()
    call = {"prev_attn_out": _rows(5, 4, width), "cur_attn_out": _rows(5, 4, width)}
    call.update(dict.fromkeys(("prev_softmax_max", "prev_softmax_sum", "cur_softmax_max", "cur_softmax_sum"), statistics))
    bounds = torch.tensor([0, 5]).npu()
    return torch_npu.npu_ring_attention_update(
        **{**call, "actual_seq_qlen": bounds, "input_layout": "TND", "input_softmax_layout": "TND", **changes}
    )


def _cached(**changes: Any) -> Any:
    """Three queries of two sequences over blocks of 128 tokens, changed."""
    import torch_npu

    call = {"query": _rows(3, 4, 64).half(), "key": _rows(3, 128, 128).half(), "value": _rows(3, 128, 128).half()}
    call.update({"num_heads": 4, "num_key_value_heads": 2, "input_layout": "TND", "scale": 0.125, "softmax_lse_flag": True})
    call.update({"block_table": torch.tensor([[2, 0], [1, 0]], dtype=torch.int32).npu(), "block_size": 128})
    call.update({"actual_seq_lengths": [1, 3], "actual_seq_lengths_kv": [130, 7]})
    return torch_npu.npu_fused_infer_attention_score(**{**call, **changes})


def _rows(tokens: int, heads: int, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens + heads)
    return torch.randn(tokens, heads, width, generator=generator).npu()


def _strided() -> torch.Tensor:
    return _rows(4, 5).transpose(0, 1)


BAD: dict[str, Callable[[], Any]] = {
    "leading 0": lambda: _attention(actual_seq_qlen=[0, 3, 5], actual_seq_kvlen=[0, 3, 5]),
    "lengths that end early": lambda: _attention(actual_seq_qlen=[3, 4]),
    "lengths that fall": lambda: _attention(actual_seq_qlen=[5, 3, 5], actual_seq_kvlen=[3, 4, 5]),
    "no lengths": lambda: _attention(actual_seq_qlen=None, actual_seq_kvlen=None),
    "lengths on the device": lambda: _attention(actual_seq_qlen=torch.tensor([3, 5]).npu()),
    "1,025 sequences": lambda: _attention(
        query=_rows(1025, 4),
        key=_rows(1025, 2),
        value=_rows(1025, 2),
        actual_seq_qlen=list(range(1, 1026)),
        actual_seq_kvlen=list(range(1, 1026)),
    ),
    "rows masked as a whole, by mode 3": lambda: _attention(key=_rows(3, 2), value=_rows(3, 2), actual_seq_kvlen=[1, 3]),
    "rows masked as a whole, by a mask": lambda: _attention(sparse_mode=0, atten_mask=torch.ones(3, 3, dtype=torch.bool).npu()),
    "queries without keys": lambda: _attention(actual_seq_kvlen=[5, 5], atten_mask=None, sparse_mode=0),
    "a small mask": lambda: _attention(atten_mask=torch.ones(5, 5, dtype=torch.bool).triu(1).npu()),
    "a mask that is not causal": lambda: _attention(atten_mask=torch.ones(2048, 2048, dtype=torch.bool).tril(-1).npu()),
    "a mask on the host": lambda: _attention(atten_mask=torch.ones(2048, 2048, dtype=torch.bool).triu(1)),
    "strided queries": lambda: _attention(query=_strided()),
    "mixed dtypes": lambda: _attention(query=_rows(5, 4).half()),
    "fp64": lambda: _attention(query=_rows(5, 4).double(), key=_rows(5, 2).double(), value=_rows(5, 2).double()),
    "heads that do not divide": lambda: _attention(key=_rows(5, 3), value=_rows(5, 3)),
    "merge: no leading 0": lambda: _merge(actual_seq_qlen=torch.tensor([5]).npu()),
    "merge: bounds that end early": lambda: _merge(actual_seq_qlen=torch.tensor([0, 4]).npu()),
    "merge: bounds on the host": lambda: _merge(actual_seq_qlen=torch.tensor([0, 5])),
    "merge: 32-bit bounds": lambda: _merge(actual_seq_qlen=torch.tensor([0, 5], dtype=torch.int32).npu()),
    "merge: width 80": lambda: _merge(width=80),
    "cached: lengths of each query": lambda: _cached(actual_seq_lengths=[1, 2]),
    "cached: more keys than blocks": lambda: _cached(actual_seq_lengths_kv=[130, 300]),
    "cached: no keys": lambda: _cached(actual_seq_lengths_kv=[130, 0]),
    "cached: a table on the host": lambda: _cached(block_table=torch.tensor([[2, 0], [1, 0]], dtype=torch.int32)),
    "cached: a 64-bit table": lambda: _cached(block_table=torch.tensor([[2, 0], [1, 0]]).npu()),
    "cached: a block that is none": lambda: _cached(block_table=torch.tensor([[3, 0], [1, 0]], dtype=torch.int32).npu()),
    "cached: small blocks": lambda: _cached(block_size=64),
    "cached: fp32": lambda: _cached(query=_rows(3, 4, 64), key=_rows(3, 128, 128), value=_rows(3, 128, 128)),
    "merge: strided outputs": lambda: _merge(prev_attn_out=_rows(4, 5, 64).transpose(0, 1)),
}


def accepted(layout: Any) -> list[str]:
    """Bad calls that nothing refused. The calls they were made from are fine."""
    _attention()
    _merge()
    _cached()
    found = []
    for name, call in BAD.items():
        try:
            call()
        except (RuntimeError, TypeError, ValueError):
            continue
        found.append(name)
    return found


def silent_traps(layout: Any) -> dict[str, float]:
    """Legal calls that mean something else than they seem to; errors against what they really mean."""
    from mindspeed_vita.ops.attention import reference

    query, key, value = (x.cpu() for x in (_rows(5, 4), _rows(5, 2), _rows(5, 2)))
    whole, packed = torch.ones(5, 5, dtype=torch.bool), torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool()
    alone = {"actual_seq_qlen": [5], "actual_seq_kvlen": [5]}
    top = _attention(**alone, atten_mask=None)[1]
    again = _attention(**alone, atten_mask=None, softmax_layout="TND")[1]
    return {
        "without a mask a mode is off": error(_attention(atten_mask=None)[0], reference.masked(query, key, value, packed, 0.25)),
        "one sequence sees itself whole": error(_attention(**alone, atten_mask=None)[0], reference.masked(query, key, value, whole, 0.25)),
        "statistics are NTD by default": error(top[..., 0].reshape(4, 5).T, again[..., 0].cpu()),
        "statistics carry a gradient only in name": float(_attention(query=_rows(5, 4).requires_grad_())[1].requires_grad) - 1.0,
    }
