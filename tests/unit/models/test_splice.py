"""Vision rows land on their own tokens, and a wrong count is refused."""

import pytest
import torch

from mindspeed_vita.models.splice import check_counts, splice


def test_rows_replace_their_tokens_and_gradients_split() -> None:
    embeddings = torch.randn(6, 1, 4, requires_grad=True)
    rows = torch.randn(2, 4, requires_grad=True)
    out = splice(embeddings, rows, torch.tensor([4, 1]))
    assert torch.equal(out[4, 0], rows[0]) and torch.equal(out[1, 0], rows[1]) and torch.equal(out[0], embeddings[0])
    out.sum().backward()
    assert embeddings.grad is not None and rows.grad is not None
    assert embeddings.grad[:, 0, 0].tolist() == [1, 0, 1, 1, 0, 1] and (rows.grad == 1).all()


def test_no_rows_leave_the_embeddings_but_stay_in_the_graph() -> None:
    embeddings, rows = torch.randn(3, 1, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    out = splice(embeddings, rows, torch.zeros(0, dtype=torch.int64))
    out.sum().backward()
    assert torch.equal(out, embeddings) and rows.grad is not None and rows.grad.shape == (0, 4)


def test_counts_must_agree() -> None:
    check_counts(8, 2, 4)
    with pytest.raises(ValueError, match="9 vision tokens but 2 tiles of 4 tokens"):
        check_counts(9, 2, 4)


def test_the_backward_pass_keeps_the_places_alone_and_equals_index_copys() -> None:
    embeddings, rows = torch.randn(6, 1, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    targets, factors = torch.tensor([4, 1]), torch.randn(6, 1, 4)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = splice(embeddings, rows, targets)
    assert [tensor.data_ptr() for tensor in kept] == [targets.data_ptr()]
    expected = embeddings.index_copy(0, targets, rows.unsqueeze(1))
    found = torch.autograd.grad((out * factors).sum(), (embeddings, rows))
    wanted = torch.autograd.grad((expected * factors).sum(), (embeddings, rows))
    assert torch.equal(out, expected) and all(map(torch.equal, found, wanted))
