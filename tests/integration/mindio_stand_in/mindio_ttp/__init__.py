"""Stands in for MindIO's package mindio_ttp, which needs an NPU and a compiled part. Plain Python over the run's own TCPStore.

It has the functions that MindSpeed-LLM 26.1.0 imports, and does one of MindIO's works: after a fault it lets the processes that are left
write a checkpoint through MindSpeed-LLM's callbacks, and ends them. MindIO's order is kept: report, stop, clean, save, rename, exit.

It does not do the rest: repairs inside a run, a second controller, connections of its own with TLS, MindCluster. A process counts as lost
after seconds without a heartbeat. A stopped NPU raises FORCE STOP in the main thread; here that thread stays in its collective, or gloo
raises because the other end is gone, which counts as the same.
"""
