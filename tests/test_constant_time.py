"""Secrets are compared in constant time: nowhere in the product is one compared with == or !=.

Read with `ast`: by the last name of what stands on either side. Not seen: a secret under a name that does
not say so.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECRET = re.compile(r"(\w*_)?(mac|macs|tag|token|psk|secret|password|preimage|settle|digest_key|seal_key)")
MODULES = sorted(path for package in ("edge_fi", "broker") for path in (ROOT / package).rglob("*.py"))


def last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return last_name(value)
        case ast.Call(func=func):
            return last_name(func)
    return ""


def faults(source: str) -> Iterator[str]:
    """Comparisons that take the longer the more of a secret is guessed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            sides = [node.left, *node.comparators]
            # A size, an empty value and a constant are no secrets.
            if any(isinstance(side, ast.Constant) or last_name(side) == "len" for side in sides):
                continue
            for side in sides:
                if SECRET.fullmatch(last_name(side)):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_secret_is_compared_with_equals(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "if parsed.mac == hello_mac(key, maced): pass",
        "assert invite.token != token",
        "x = join_password(token) == given",
        "y = settle_preimage(a, b, c) == preimage",
        "z = frame[1:].mac == other",
    ],
)
def test_a_comparison_that_tells_by_its_time_is_found(source: str) -> None:
    assert len(list(faults(f"def f():\n    {source}"))) >= 1


@pytest.mark.parametrize("source", ["len(token) != 16", "secret == b''", "mac_count == 3", "a == b"])
def test_a_comparison_that_is_of_no_secret_is_not(source: str) -> None:
    assert list(faults(source)) == []


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("crypto/keys.py", "is_equal"),
        ("crypto/seal.py", "check_hello_mac"),
        ("crypto/seal.py", "check_join_mac"),
        ("crypto/seal.py", "check_settled"),
        ("claim.py", "_read"),
        ("admission.py", "open"),
        ("adapters/tls.py", "fetch_ca"),
    ],
)
def test_where_a_secret_is_checked_it_is_by_compare_digest(module: str, function: str) -> None:
    tree = ast.parse((ROOT / "edge_fi" / module).read_text(encoding="utf-8"))
    (found,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    called = {last_name(node) for node in ast.walk(found) if isinstance(node, ast.Call)}
    assert called & {"is_equal", "compare_digest"}
