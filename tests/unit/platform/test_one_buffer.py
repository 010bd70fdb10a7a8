"""Several tensors in one buffer come out as they went in."""

import torch

from mindspeed_vita.platform.one_buffer import join, split


def test_tensors_of_any_type_and_shape_come_out_of_one_buffer() -> None:
    tensors = [
        torch.arange(7),
        torch.zeros(0, 3, dtype=torch.int32),
        torch.tensor(5, dtype=torch.int32),
        torch.tensor([[0.5, -1.0], [float("inf"), 3.0]]),
        torch.arange(12).view(3, 4)[:, ::2],
        torch.tensor([True, False, True]),
    ]
    buffer = join(tensors)
    found = split(buffer, tensors)
    for tensor, view in zip(tensors, found, strict=True):
        assert view.dtype == tensor.dtype and torch.equal(view, tensor)
        assert not tensor.numel() or view.untyped_storage().data_ptr() == buffer.data_ptr()
    found[0].add_(1)
    assert torch.equal(split(buffer, tensors)[0], torch.arange(1, 8)) and torch.equal(found[2], tensors[2])


def test_nothing_at_all_is_an_empty_buffer() -> None:
    assert len(join([])) == 0 and split(join([]), []) == []
