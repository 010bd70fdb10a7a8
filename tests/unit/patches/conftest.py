"""Fixtures: a made-up upstream that can be imported, and the real one where it is at hand."""

from tests.unit.integration.patching.made_up import packages, upstream_folder

__all__ = ["packages", "upstream_folder"]
