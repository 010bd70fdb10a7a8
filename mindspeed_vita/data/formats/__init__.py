"""Adapters: files of samples in other layouts than JSON, read as rows of the one schema."""

from mindspeed_vita.data.formats.registry import Adapter, adapter_for, format_names, holds_media, register_format

__all__ = ["Adapter", "adapter_for", "format_names", "holds_media", "register_format"]
