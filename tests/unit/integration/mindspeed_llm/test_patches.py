"""What the ledger puts over Megatron's functions does its work for a model of ours, and leaves any other alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mindspeed_vita.config import DebugConfig, TrainConfig
from mindspeed_vita.engine.module_dump import ModuleDump
from mindspeed_vita.engine.module_norms import by_key
from mindspeed_vita.engine.step_clock import StepClock
from mindspeed_vita.integration.mindspeed_llm.chunk_passes import ChunkPasses, chunk_of
from mindspeed_vita.integration.mindspeed_llm.patches import ParameterSettings, parameter_groups_wrapper
from mindspeed_vita.integration.mindspeed_llm.step import LOSS, ForwardStep, train_step_wrapper
from mindspeed_vita.integration.mindspeed_llm.telemetry import StepLog
from mindspeed_vita.platform import get_platform
from tests.fake_msprobe import stand_in

RATES = {"lr": 9.0, "min_lr": 0.9, "decoupled_lr": None, "decoupled_min_lr": None}
"""Upstream's arguments; the model's own settings count."""


class Wrapped(torch.nn.Module):
    """As DDP and Float16Module hold a model."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def upstream(model_chunks, no_weight_decay_cond, scale_lr_cond, lr_mult, lr, min_lr, decoupled_lr, decoupled_min_lr):
    return [("upstream", len(model_chunks), lr_mult, lr)]


def model() -> torch.nn.Module:
    parts = {"vision": torch.nn.Linear(2, 2), "projector": torch.nn.Linear(2, 2), "language": torch.nn.Linear(2, 2)}
    made = torch.nn.ModuleDict(parts)
    made["vision"].requires_grad_(False)
    made.parameter_settings = ParameterSettings(train=TrainConfig(lr=1e-2, min_lr=1e-3, projector_lr_mult=2.0), num_vision_layers=2)
    return made


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda into, mine: into.__setitem__(0, mine))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: None)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_model_with_settings_gets_its_own_groups(layers):
    ours = chunk = model()
    for _ in range(layers):
        chunk = Wrapped(chunk)
    groups = parameter_groups_wrapper(upstream)([chunk], None, None, 1.0, **RATES)
    seen = {(group["max_lr"], group["min_lr"], group["wd_mult"], group["lr_mult"]): group["params"] for group in groups}
    assert {key: [id(parameter) for parameter in members] for key, members in seen.items()} == {
        (2e-2, 2e-3, 1.0, 1.0): [id(ours["projector"].weight)],
        (2e-2, 2e-3, 0.0, 1.0): [id(ours["projector"].bias)],
        (1e-2, 1e-3, 1.0, 1.0): [id(ours["language"].weight)],
        (1e-2, 1e-3, 0.0, 1.0): [id(ours["language"].bias)],
    }
    assert not any(group["is_expert_parallel"] or group["is_decoupled_lr"] for group in groups)


def test_a_rank_that_trains_nothing_has_the_groups_of_the_others(monkeypatch):
    def gather(into, mine):
        into[:] = [mine, [(2.0, 0.0), (2.0, 1.0)]]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    frozen = model().requires_grad_(False)
    groups = parameter_groups_wrapper(upstream)([Wrapped(frozen)], None, None, 1.0, **RATES)
    assert [(group["max_lr"], group["wd_mult"], group["params"]) for group in groups] == [(2e-2, 1.0, []), (2e-2, 0.0, [])]
    assert torch.optim.AdamW(groups, lr=1e-2).param_groups[0]["params"] == []


def test_another_model_gets_upstreams_groups():
    other = Wrapped(torch.nn.Linear(2, 2))
    assert parameter_groups_wrapper(upstream)([other, other], None, None, 0.5, **RATES) == [("upstream", 2, 0.5, 9.0)]


def test_the_chunks_of_a_stage_share_their_groups():
    first, second = model(), model()
    groups = parameter_groups_wrapper(upstream)([Wrapped(first), Wrapped(second)], None, None, 1.0, **RATES)
    matrices = [group["params"] for group in groups if group["max_lr"] == 1e-2 and group["wd_mult"]]
    assert [[id(parameter) for parameter in part] for part in matrices] == [[id(chunk["language"].weight) for chunk in (first, second)]]


def test_every_chunk_takes_all_packs_in_their_order_and_each_is_asked_for_once():
    asked: list[int] = []
    packs = ChunkPasses((asked.append(number) or number for number in range(4)), 2)
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    for chunk, expected in order:
        model = Wrapped(torch.nn.Identity())
        model.module.vp_stage = chunk
        assert packs.take(chunk_of(model)) == expected
    assert asked == [0, 1, 2, 3]


class Steps(ForwardStep):
    """Notes what is called."""

    def __init__(self, seen: list, copies: int = 1) -> None:
        super().__init__(get_platform(), SimpleNamespace())  # type: ignore[arg-type]
        self.log = StepLog.__new__(StepLog)
        self.log.clock = StepClock(get_platform())
        train = SimpleNamespace(global_batch=2, lr=1.0, min_lr=0.1, steps=100)
        self.seen, self.recipe = seen, SimpleNamespace(train=train, logging=SimpleNamespace(every=4))
        self.log.recipe, self.log._norms, self.log._copies = self.recipe, None, copies  # type: ignore[assignment]
        self.logged: list = []
        self.norms: list = []
        self.done = 0

    def start_step(self) -> None:
        self.seen.append("start")

    def finish_step(self, losses, *, grad_norm, rate) -> None:
        self.seen.append("finish")
        self.done += 1
        self.norms.append(by_key(self.log._norms))
        self.log._norms = None
        self.logged.append((list(losses), grad_norm, rate))


class Clipping(torch.optim.SGD):
    """Clips its gradients within its update, once they are ready, as Megatron's optimizers do."""

    def prepare_grads(self) -> bool:
        return False

    def get_main_grads_for_grad_norm(self) -> list:
        return [parameter.grad for group in self.param_groups for parameter in group["params"]]

    def get_grad_stats_parallel_group(self) -> None:
        return None

    def step(self) -> None:
        self.prepare_grads()
        for gradient in self.get_main_grads_for_grad_norm():
            gradient.mul_(0.5)


def clipping() -> tuple[torch.nn.Module, Clipping]:
    """A model of two parameters with gradients, and the optimizer over them."""
    parts = torch.nn.ParameterDict({"projector": torch.nn.Parameter(torch.ones(1)), "language": torch.nn.Parameter(torch.ones(4))})
    rates = {"projector": 1.0, "language": 0.5}
    groups = [{"params": [parts[name]], "max_lr": rate, "min_lr": rate / 10, "lr_mult": 1.0} for name, rate in rates.items()]
    for parameter in parts.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    return parts, Clipping(groups, lr=1.0)


def schedule(optimizer):
    """Megatron's own, counted in samples: two steps of warm-up, eight steps in all."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    rates = {"init_lr": 0.0, "max_lr": 1.0, "min_lr": 0.1, "lr_warmup_steps": 4, "lr_decay_steps": 16, "lr_decay_style": "linear"}
    decay = {"start_wd": 0.0, "end_wd": 0.0, "wd_incr_steps": 16, "wd_incr_style": "constant"}
    return OptimizerParamScheduler(optimizer, **rates, **decay)


@pytest.mark.parametrize("ours", [True, False])
def test_a_step_has_the_learning_rate_of_its_own_number(ours):
    seen: list = []
    parts, optimizer = clipping()
    scheduler = schedule(optimizer)

    def train_step(forward_step_func, data_iterator, model, optimizer, opt_param_scheduler, config):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        opt_param_scheduler.step(increment=2)  # as Megatron does, after the update
        return dict(losses), 0, False, False, None, 7.5, None

    update = scheduler.optimizer.step
    losses = {LOSS: torch.tensor(1.0), "loss/pets": torch.tensor(2.0), "loss/text": torch.tensor(float("nan"))}
    kept = [LOSS, "loss/pets"] if ours else list(losses)  # no token of text in this step
    forward_step = Steps(seen, copies=4) if ours else object()
    for _ in range(3):
        found, *rest = train_step_wrapper(train_step)(forward_step, None, [Wrapped(parts)], scheduler.optimizer, scheduler, None)
        assert list(found) == kept and rest == [0, False, False, None, 7.5, None]
    assert scheduler.num_steps == 6
    rates = [entry for entry in seen if isinstance(entry, list)]
    third = 1.0 - 0.9 * (6 - 4) / (16 - 4)
    expected = [[0.5, 0.25], [1.0, 0.5], [third, third / 2]] if ours else [[0.0, 0.0], [0.5, 0.25], [1.0, 0.5]]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))
    assert seen[:3] == (["start", rates[0], "finish"] if ours else rates)
    assert scheduler.optimizer.step == update and not {"step", "prepare_grads"} & set(vars(optimizer)), "the optimizer is left as it was"
    if ours:  # the first step is logged
        assert forward_step.norms == [{"grad_norm/projector": 1.5, "grad_norm/language": 3.0}, {}, {}], "before clipping"
    if ours:  # what is logged is the rate of the update that was made
        assert [name for name, *_ in forward_step.log.clock._spans] == ["schedule", "optimizer"] * 3
        assert forward_step.logged == [(kept, 7.5, pytest.approx(rate)) for rate in (0.5, 1.0, third)]


def test_what_later_lines_hand_to_a_step_is_passed_on():
    """core 0.16 gives train_step the schedule, and its number by name."""
    given: list = []

    def train_step(*arguments, **named):
        given.append((arguments[5:], named))
        return {LOSS: torch.tensor(1.0)}, 0, False, False, None, 7.5, None, 0

    scheduler = schedule(clipping()[1])
    for forward_step in (Steps([]), object()):
        train_step_wrapper(train_step)(forward_step, None, [], scheduler.optimizer, scheduler, "config", "schedule", iteration=3)
    assert given == [(("config", "schedule"), {"iteration": 3})] * 2


def test_a_step_is_dumped_with_its_own_number_and_the_bare_model(monkeypatch, tmp_path):
    calls = stand_in(monkeypatch)
    (tmp_path / "config.json").write_text("{}")
    forward_step, bare = Steps([]), torch.nn.Linear(1, 1)
    forward_step.dump, forward_step.done = ModuleDump(DebugConfig(msprobe=str(tmp_path / "config.json")), tmp_path), 4
    scheduler = schedule(clipping()[1])

    def train_step(*arguments):
        calls.append("train_step")
        return {LOSS: torch.tensor(1.0)}, 0, False, False, None, 7.5, None

    train_step_wrapper(train_step)(forward_step, None, [Wrapped(bare)], scheduler.optimizer, scheduler, None)
    assert calls[1:] == [("set_init_step", 5), ("start", bare), "train_step", "stop", "step"]
