"""Stands for CANN's Python binding, which MindSpeed-LLM imports; nothing that is run here calls it."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"the emulated acl has no {name}")

    return missing
