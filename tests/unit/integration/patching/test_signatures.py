"""Signatures read the same from source and from the imported function, and their differences are spelled out."""

from __future__ import annotations

import ast
import functools

import pytest

from mindspeed_vita.integration.patching import signatures

WRITTEN = [
    "()",
    "(a)",
    "(a, b=None, *, c, d=1.5, **rest)",
    "(a, /, b=True, *more, c='x')",
    "(a, b, /)",
    "(a=(), b=[], c={}, d=(1, 2), e=-1)",
    "(self, x=...)",
    "(*, only)",
]


def node(text: str) -> ast.FunctionDef:
    found = ast.parse(f"def f{text}: pass").body[0]
    assert isinstance(found, ast.FunctionDef)
    return found


@pytest.mark.parametrize("text", WRITTEN)
def test_source_and_object_read_the_same(text: str):
    scope: dict = {}
    exec(f"def f{text}: pass", scope)
    assert signatures.of_node(node(text)) == text
    assert signatures.of_object(scope["f"]) == text
    assert signatures.difference(text, text) is None


def test_annotations_and_defaults_that_are_no_literals_do_not_count():
    scope: dict = {"Kind": type("Kind", (), {"one": object()})}
    text = "(a: int, kind: 'Kind' = Kind.one) -> None"
    exec(f"def f{text}: pass", scope)
    assert signatures.of_node(node(text)) == signatures.of_object(scope["f"]) == "(a, kind=...)"
    assert signatures.difference("(a, kind=...)", "(a, kind=3)") is None


def test_wraps_is_looked_through_and_a_class_is_its_constructor():
    def inner(a, b=2):
        pass

    @functools.wraps(inner)
    def outer(*args, **kwargs):
        pass

    class Made:
        def __init__(self, size=1):
            pass

    assert signatures.of_object(outer) == "(a, b=2)"
    assert signatures.of_object(Made) == "(self, size=1)"


@pytest.mark.parametrize(
    "found, said",
    [
        ("(a)", "'b' is gone"),
        ("(a, b=1, c=2)", "'c' is new"),
        ("(a, b)", "'b' has no default, not defaults to 1"),
        ("(a, b=2)", "'b' defaults to 2, not defaults to 1"),
        ("(a, *, b=1)", "'b' is keyword, not plain"),
        ("(b=1, a=3)", "the order changed"),
    ],
)
def test_differences_are_named(found: str, said: str):
    assert said in (signatures.difference("(a, b=1)", found) or "")


def test_what_is_no_signature_is_refused():
    with pytest.raises(ValueError, match="is no signature; write it like"):
        signatures.difference("a, b", "(a, b)")
