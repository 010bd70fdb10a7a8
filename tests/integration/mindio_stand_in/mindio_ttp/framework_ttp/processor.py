"""One process's part (MindIO's processor), and what the first process decides (MindIO's controller)."""

import json
import os
import signal
import threading
import time
import traceback
from functools import wraps

import torch.distributed as dist

_LOOK = 0.2
_LOST = 12.0
"""Seconds without a heartbeat after which a process is lost."""
_PATIENCE = 120.0
"""Seconds that a process waits for the end of the checkpoint."""
_STATUS = 2
"""Exit status of the processes that MindIO ends."""


class _Processor:
    def __init__(self):
        self.handlers = {}
        self.replicas = []
        self.arguments = None
        self.step, self.updating = 0, False
        self.closed = threading.Event()
        self.ends = threading.Event()
        self.is_controller = False

    def start(self):
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        self.store = dist.PrefixStore("mindio_stand_in", store)
        threading.Thread(target=self._run, args=(self._follow,), daemon=True).start()
        if self.is_controller:
            threading.Thread(target=self._run, args=(self._control,), daemon=True).start()

    def _run(self, work):
        done = False
        try:
            work()
            done = True
        finally:
            if not done:  # a thread's fault would be seen by nobody
                traceback.print_exc()
                os._exit(1)

    def say(self, text):
        print(f"mindio stand-in: rank {self.rank}: {text}", flush=True)

    def read(self, key):
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def wait(self, key):
        """As `read`, once it is there. The store's own waiting would keep the other thread from it."""
        while (found := self.read(key)) is None:
            time.sleep(_LOOK)
        return found

    def _follow(self):
        """Beats; after a fault does what the first process decides."""
        plan = None
        while plan is None:
            if self.closed.wait(_LOOK):
                self.store.set(f"closed/{self.rank}", "1")
                return
            self.store.add(f"beat/{self.rank}", 1)
            plan = self.read("plan")
        if self.rank not in plan["faulty"]:
            self._dump(plan["faulty"])
        self.wait("exit")
        self.ends.set()
        if self.rank not in plan["faulty"]:  # a faulty one raises what it met
            os._exit(_STATUS)

    def _dump(self, faulty):
        """Stops, tells its step, and saves if it is one of those that hold a part of the optimizer."""
        self.handlers["stop"](self.arguments, None)
        self.handlers["clean"](False, self.arguments, None)
        while self.updating:  # on an NPU, too, an update that began is finished or lost
            time.sleep(_LOOK / 10)
        self.store.set(f"step/{self.rank}", json.dumps(self.step))
        decided = self.wait("step")
        if decided < 0:
            return
        savers = [{"type": number, "ranks": _holders(replica, faulty)} for number, replica in enumerate(self.replicas)]
        if any(self.rank in saver["ranks"] for saver in savers):
            self.say(f"saves step {decided} with {savers}")
            self.handlers["save"](decided, savers, self.arguments, None)
        self.store.set(f"saved/{self.rank}", "1")

    def _control(self):
        """Notices the first fault, lets all others save, and ends the run."""
        beats = {rank: (0, time.monotonic()) for rank in range(self.world)}
        while True:
            if self.closed.wait(_LOOK):
                return
            ranks = [rank for rank in range(self.world) if not self.store.check([f"closed/{rank}"])]
            for rank in ranks:
                count = self.store.add(f"beat/{rank}", 0)
                if count != beats[rank][0]:
                    beats[rank] = (count, time.monotonic())
            reported = [rank for rank in ranks if self.store.check([f"fault/{rank}"])]
            silent = [rank for rank in ranks if beats[rank][0] and time.monotonic() - beats[rank][1] > _LOST]
            if reported or silent:
                break
        faulty = sorted({*reported, *silent})
        self.say(f"fault of ranks {faulty}")
        self.store.set("plan", json.dumps({"faulty": faulty}))
        healthy = [rank for rank in range(self.world) if rank not in faulty]
        steps = {self.wait(f"step/{rank}") for rank in healthy}
        complete = len(steps) == 1 and all(_holders(replica, faulty) for replica in self.replicas)
        self.store.set("step", json.dumps(min(steps) if complete else -1))
        if complete:
            for rank in healthy:
                self.wait(f"saved/{rank}")
            self.handlers["rename"](min(steps), self.arguments)
        else:
            self.say(f"no checkpoint: steps {sorted(steps)}, or no copy of the optimizer is whole")
        self.store.set("exit", "1")


def _holders(replica, faulty):
    """A healthy process for each part of the optimizer, or none at all."""
    ranks, size = replica["rank_list"], len(replica["rank_list"]) // replica["replica_cnt"]
    parts = [[rank for rank in ranks[part::size] if rank not in faulty] for part in range(size)]
    return [part[0] for part in parts] if all(parts) else []


_processor = _Processor()


def _register(name):
    def register(function, context=None):
        _processor.handlers[name] = function

    return register


tft_register_save_ckpt_handler, tft_register_rename_handler = _register("save"), _register("rename")
tft_register_stop_handler, tft_register_clean_handler = _register("stop"), _register("clean")
tft_register_repair_handler, tft_register_rollback_handler = _register("repair"), _register("rollback")
tft_register_rebuild_group_handler, tft_register_stream_sync_handler = _register("rebuild"), _register("sync")
tft_register_zit_downgrade_rebuild_handler = tft_register_zit_upgrade_rebuild_handler = _register("zit")
tft_register_zit_upgrade_repair_handler = tft_register_zit_upgrade_rollback_handler = _register("zit")


def tft_register_exception_handler(words, state, function):
    """More words in an exception that lead to a repair. There are none here."""


def tft_init_controller(rank, world_size, local_copy, arf=False, zit=False):
    assert not arf and not zit, "the stand-in repairs nothing"
    _processor.is_controller = True


def tft_start_controller(address, port, tls, tls_info):
    """The controller starts with the processor, over the run's own store."""


def tft_init_processor(rank, world_size, local_copy, tls, tls_info, uce=False, arf=False, zit=False):
    assert not uce and not arf and not zit, "the stand-in repairs nothing"
    _processor.rank, _processor.world = rank, world_size
    for number in (signal.SIGTERM, signal.SIGINT):  # as MindIO does: a launcher must not end those that save
        signal.signal(number, lambda *_: _processor.say("ignores a signal"))


def tft_start_processor(address, port, local_address=""):
    _processor.start()


def tft_is_reboot_node():
    return False


def tft_set_optimizer_replica(rank, replicas):
    """Which processes hold the same parts of the optimizer."""
    _processor.replicas = replicas


def tft_set_dp_group_info(rank, ranks):
    """Which processes see other data. Only repairs need it."""


def tft_start_updating_os(backup_step=-1):
    _processor.updating = True


def tft_end_updating_os(step):
    _processor.step, _processor.updating = step, False


def tft_pause_train(step):
    """Holds the run where a switch of hosts asks for it. Nothing does here."""


def tft_exception_handler(train):
    """Around MindSpeed-LLM's train(): an exception is told to the controller, and raised once the others have saved."""

    @wraps(train)
    def wrapper(*arguments, **named):
        _processor.arguments = arguments
        try:
            result = train(*arguments, **named)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, RuntimeError) and "gloo" in text.lower():
                _processor.say("FORCE STOP")  # the other end is gone
            else:
                _processor.say(f"reports {text[:200]}")
                _processor.store.set(f"fault/{_processor.rank}", "1")
            _processor.ends.wait(_PATIENCE)
            raise
        _processor.closed.set()
        return result

    return wrapper
