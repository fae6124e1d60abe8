"""One line for an exception: its message and its place in the user's code."""

from pathlib import Path

import pytest
import torch

from optprof.profiler.records.outcome import is_ours, one_line, user_line
from optprof.profiler.simulating.simulation import simulate
from optprof.scenarios import Scenario

USERS = """import json
import torch

def raises():
    raise KeyError("no such\\nkey")

def wraps():
    raise RuntimeError("use an argument, and by \\nmaking sure all is used\\nmore")

def shapes():
    return torch.nn.Linear(3, 4)(torch.ones(5))

def number():
    json.loads("{")

def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def users(tmp_path: Path) -> dict[str, object]:
    """Return the functions of a user's file."""
    file = tmp_path / "model.py"
    names: dict[str, object] = {}
    exec(compile(USERS, str(file), "exec"), names)
    return names


def error_of(call: object) -> BaseException:
    assert callable(call)
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        call()
    return raised.value


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "wraps",
            "RuntimeError: use an argument, and by making sure all is used (model.py, line 8)",
        ),
        ("raises", r"KeyError: 'no such\nkey' (model.py, line 5)"),
        ("shapes", "cannot be multiplied (1x5 and 3x4) (model.py, line 11)"),
        ("number", "(model.py, line 14)"),
        ("leaves", "SystemExit: 3 (model.py, line 17)"),
    ],
)
def test_an_exception_is_reported_with_the_line_of_the_users_code(
    users: dict[str, object], function: str, message: str
):
    line = one_line(error_of(users[function]))
    assert line.endswith(message)
    assert "\n" not in line


def test_a_syntax_error_is_reported_with_its_file(tmp_path: Path):
    error = error_of(lambda: compile("def f(:", str(tmp_path / "model.py"), "exec"))
    assert one_line(error) == "SyntaxError: invalid syntax (model.py, line 1)"


def test_our_own_refusals_are_reported_without_a_place():
    error = error_of(lambda: Scenario(model="gpt2", batch_size=0))
    assert is_ours(error)
    assert one_line(error) == "ValueError: batch_size must be a whole number >= 1, got 0"


def test_a_value_error_of_the_users_is_not_ours(users: dict[str, object]):
    assert not is_ours(error_of(users["number"]))


def test_a_users_line_is_found_below_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "crooked.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.reshape(7, 7)).sum()\n"
        "def build():\n"
        "    return Net(3, 4), {'x': torch.ones(2, 3)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    error = error_of(lambda: simulate(Scenario(model="crooked:build", optimizer="sgd")))
    assert user_line(error) == "crooked.py, line 4"


def test_a_line_of_torch_is_no_line_of_the_users():
    """An error that torch raises for our call has no place in torch; here tests are users' code."""
    place = user_line(
        error_of(lambda: torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=-1.0))
    )
    assert place is not None
    assert "test_outcome.py, line " in place
