"""What importing torch_npu.contrib.transfer_to_npu does on Ascend, with the host in the NPU's place: torch.cuda means it."""

import torch
import torch._dynamo  # keeps a table of torch.cuda's functions, which must be made before they are replaced
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from torch_npu import npu

CPU = torch.device("cpu")
_RANDOM = (torch.rand, torch.randn, torch.randint)


def _host(device):
    """The host for a device of an accelerator, anything else unchanged."""
    if isinstance(device, int) and not isinstance(device, bool):
        return CPU
    kind = device.type if isinstance(device, torch.device) else device.split(":")[0] if isinstance(device, str) else None
    return CPU if kind in ("npu", "cuda") else device


class _OnHost(TorchFunctionMode):
    """Calls that name an accelerator get the host; their random numbers leave the host's generator alone, as a device's would."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if kwargs.get("device") is not None:
            asked, kwargs["device"] = kwargs["device"], _host(kwargs["device"])
            if function in _RANDOM and asked is not kwargs["device"]:
                state = torch.get_rng_state()
                try:
                    return function(*args, **kwargs)
                finally:
                    torch.set_rng_state(state)
        if function is torch.Tensor.to and len(args) > 1:
            args = (args[0], _host(args[1]) if not isinstance(args[1], torch.dtype) else args[1], *args[2:])
        return function(*args, **kwargs)


def _same(self, *args, **kwargs):
    return self


def _redirect_cuda():
    for name in dir(npu):
        value = getattr(npu, name)
        if not name.startswith("__") and name != "torch" and not isinstance(value, type(torch)):
            setattr(torch.cuda, name, value)
    for name in ("get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all", "manual_seed", "manual_seed_all"):
        setattr(torch.cuda.random, name, getattr(npu, name))


def _redirect_tensors():
    for owner in (torch.Tensor, torch.nn.Module):
        owner.npu = owner.cuda = _same
    torch.Tensor.pin_memory = _same
    torch.Tensor.record_stream = lambda self, stream: None
    plain_type = torch.Tensor.type

    def tensor_type(self, dtype=None, *args, **kwargs):
        if dtype is None:
            return "torch.npu." + plain_type(self).rsplit(".", 1)[1]
        return plain_type(self, dtype.replace("torch.cuda.", "torch.").replace("torch.npu.", "torch.") if isinstance(dtype, str) else dtype)

    torch.Tensor.type = tensor_type


def _on_gloo(make):
    def make_on_gloo(backend=None, *args, **kwargs):
        names = (backend, kwargs.pop("backend", None))
        for option in ("pg_options", "device_id"):
            kwargs.pop(option, None)
        return make(*args, backend="gloo" if any(isinstance(name, str) for name in names) else None, **kwargs)

    return make_on_gloo


def _redirect_groups():
    make_group, reduce = dist.new_group, dist.all_reduce

    def new_group(ranks=None, timeout=None, backend=None, pg_options=None, **kwargs):
        return make_group(ranks, timeout, "gloo" if backend else None, **kwargs)

    def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None, async_op=False):
        if op != dist.ReduceOp.AVG:  # which gloo does not know
            return reduce(tensor, op=op, group=group, async_op=async_op)
        reduce(tensor, group=group)
        tensor.div_(dist.get_world_size(group))
        return _Done() if async_op else None

    dist.init_process_group = _on_gloo(dist.init_process_group)
    dist.new_group = dist.distributed_c10d.new_group = new_group
    dist.all_reduce = dist.distributed_c10d.all_reduce = all_reduce
    for name in ("isend", "irecv"):
        setattr(dist, name, _kept(getattr(dist, name)))
        setattr(dist.distributed_c10d, name, getattr(dist, name))


class _Done:
    def wait(self, timeout=None):
        return True

    def is_completed(self):
        return True


_handles = []


def _kept(send):
    """HCCL goes through with an operation whose handle nobody keeps; gloo cancels it."""

    def keep(*args, **kwargs):
        work = send(*args, **kwargs)
        _handles.append((work, args))
        del _handles[:-1024]
        return work

    return keep


_redirect_cuda()
_redirect_tensors()
_redirect_groups()
_OnHost().__enter__()
