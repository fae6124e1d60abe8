"""Every assertion in these tests can fail."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def is_certain(test: ast.expr) -> bool:
    """Return whether a condition, or a branch of it, is always true, as a literal is."""
    match test:
        case ast.Constant(value):
            return bool(value)
        case ast.Tuple(elts) | ast.List(elts) | ast.Set(elts):
            return bool(elts)
        case ast.Dict(keys):
            return bool(keys)
        case ast.JoinedStr() | ast.Lambda() | ast.GeneratorExp():
            return True
        case ast.IfExp(body=body, orelse=orelse):
            return is_certain(body) or is_certain(orelse)
        case ast.BoolOp(values=values):
            return any(map(is_certain, values))
        case ast.UnaryOp(
            op=ast.Not(), operand=ast.Constant() | ast.Tuple() | ast.List() | ast.Set() | ast.Dict()
        ):
            return True
        case ast.NamedExpr(value=value):
            return is_certain(value)
        case ast.Compare(left=left, comparators=others):
            # Two calls may return different values.
            sides = [
                ast.dump(side)
                for side in (left, *others)
                if not any(isinstance(part, ast.Call) for part in ast.walk(side))
            ]
            return len({*sides}) < len(sides) or any(
                isinstance(side, ast.Lambda | ast.GeneratorExp) for side in others
            )
        case _:
            return False


def uncalled(tree: ast.Module) -> set[str]:
    """Return the module's functions that are not fixtures; their names stand for their values."""
    result = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in result if not node.decorator_list}


def certain_lines(text: str) -> list[int]:
    """Return the lines of the assertions that cannot fail."""
    tree = ast.parse(text)
    functions = uncalled(tree)
    tests = [(node.lineno, node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return [
        line
        for line, test in tests
        if is_certain(test) or (isinstance(test, ast.Name) and test.id in functions)
    ]


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_no_assertion_is_always_true(path: Path) -> None:
    assert certain_lines(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "condition",
    [
        'found == {"a", "b"} if starts_dense else {"a"}',
        '{"a"} if starts_dense else found == {"a", "b"}',
        '(found == 1, "one")',
        'found or "text"',
        "found == 1 or 2",
        "found and [1]",
        "(each for each in found)",
        "lambda: found",
        'f"{found}"',
        "not {}",
        "found == found",
        "found <= other.name <= other.name",
        "found == (each for each in other)",
        "(each := [found])",
        "helper",
    ],
)
def test_an_assertion_that_cannot_fail_is_detected(condition: str) -> None:
    assert certain_lines(f"def helper(): pass\nassert {condition}") == [2]


@pytest.mark.parametrize(
    "condition",
    [
        "result",
        "found == ({1} if dense else {2})",
        "found > 1 if rises else found < 1",
        "not [each for each in found if each]",
        "read() == read()",
        "found == []",
        "all(each for each in found)",
        "helper()",
    ],
)
def test_an_assertion_that_can_fail_is_left_alone(condition: str) -> None:
    assert certain_lines(f"def helper(): pass\nassert {condition}") == []
