"""Optimizers by name: texts, what they make, and one clear line for each mistake."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from optprof import optimizers

ONE_LINE = r"^[^\n]*$"
MINE = """
from torch.optim import SGD

class Mine(SGD):
    def __init__(self, params, lr, *, foreach=None, fused=None):
        super().__init__(params, lr, foreach=foreach, fused=fused)

class Plain(SGD):
    def __init__(self, params, **anything):
        super().__init__(params, **anything)

class Compiled(SGD):
    def __init__(self, params, lr=0.1, *, foreach=None, compiled=False):
        super().__init__(params, lr, foreach=foreach)
        self.defaults["compiled"] = compiled

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("mine", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def params() -> list[Parameter]:
    return [Parameter(torch.ones(2, 3))]


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("sm3", "sm3", {}),
        (" sgd-sai : momentum = 0.5 ", "sgd-sai", {"momentum": 0.5}),
        ("lamb:betas=(0.9, 0.99),lr=1e-3", "lamb", {"betas": (0.9, 0.99), "lr": 1e-3}),
        (
            "adamw:amsgrad=true,foreach=None,fused=FALSE",
            "adamw",
            {"amsgrad": True, "foreach": None, "fused": False},
        ),
        ("lamb:preset=nvidia", "lamb", {"preset": "nvidia"}),
        ("lamb:preset='nvidia'", "lamb", {"preset": "nvidia"}),
        ("my.module:Class", "my.module:Class", {}),
        ("my.module:Class:lr=-1,note='a,b:c'", "my.module:Class", {"lr": -1, "note": "a,b:c"}),
        (
            "x:shape=[(1, 2), (3,)],names={'a': 1}",
            "x",
            {"shape": [(1, 2), (3,)], "names": {"a": 1}},
        ),
    ],
)
def test_text_is_read(text: str, name: str, options: dict[str, Any]) -> None:
    assert optimizers.parse(text) == (name, options)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":lr=1",
            "sm3:lr=",
            "sm3:lr=1,",
            "sm3:lr=1,momentum",
            "sm3:lr=1,lr=2",
            "sm3:betas=(0.9,lr=1",
            "sm3:2=3",
            "sm3:lr={[1]:2}",
        ),
        pytest.param(f"sm3:lr={'(' * 1_900}", id="too many brackets"),
        pytest.param(f"sm3:lr={'~' * 1_900}1", id="too deep"),
    ],
)
def test_unreadable_text_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=ONE_LINE) as caught:
        optimizers.parse(text)
    assert repr(text)[:40] in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("parse", [optimizers.parse, optimizers.parse_list])
def test_an_overlong_text_is_refused_at_once(parse: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"has at most \d+ letters, got"):
        parse(f"adamw:lr={'9' * 1_000_000}")


def test_a_list_is_split_between_names_not_between_options() -> None:
    specs = optimizers.parse_list(
        "adamw, sm3:momentum=0.9,lr=0.1,lamb:betas=(0.9, 0.99), lr=1,my:Class,my:Class:lr=1"
    )
    assert specs == (
        "adamw",
        "sm3:momentum=0.9,lr=0.1",
        "lamb:betas=(0.9, 0.99),lr=1",
        "my:Class",
        "my:Class:lr=1",
    )


@pytest.mark.parametrize("text", ["", "adamw,", "lr=0.1", "adamw,lr=0.1"])
def test_a_list_with_nothing_between_its_commas_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no optimizer before or after a comma|follows no other"):
        optimizers.parse_list(text)


def test_the_catalogue_is_sorted_and_every_name_is_described() -> None:
    names = optimizers.available()
    assert list(names) == sorted(names)
    assert optimizers.available("optprof") == ("lamb", "lamb16", "sgd-sai", "sm3")
    assert optimizers.available("torch") == (
        "adafactor",
        "adagrad",
        "adam",
        "adamw",
        "muon",
        "rmsprop",
        "sgd",
    )
    assert {*optimizers.available("optprof", "torch")} <= set(names)
    assert optimizers.available("nobody") == ()
    for name in names:
        description = optimizers.describe(name)
        assert description.summary
        assert description.state
        assert description.paper.startswith("https://")
        assert set(description.decided_by) <= set(optimizers.option_defaults(name))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adafactor", torch.optim.Adafactor),
        ("adagrad", torch.optim.Adagrad),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
        ("sgd", torch.optim.SGD),
        ("sgd-sai", optimizers.SGDSaI),
        ("sm3", optimizers.SM3),
        ("lamb", optimizers.LAMB),
        ("lamb16", optimizers.LAMB16),
    ],
)
def test_a_name_makes_its_class(name: str, kind: type) -> None:
    assert type(optimizers.create(name, params())) is kind


def test_options_by_keyword_win_over_those_in_the_text_and_those_over_the_catalogues() -> None:
    assert optimizers.create("sgd", params()).defaults["momentum"] == 0.9
    assert optimizers.create("sgd:momentum=0.5", params()).defaults["momentum"] == 0.5
    assert optimizers.create("sgd:momentum=0.5", params(), momentum=0).defaults["momentum"] == 0
    assert optimizers.option_defaults("sgd:momentum=0.5", lr=1)["momentum"] == 0.5


def test_the_full_options_are_hyper_parameters_only() -> None:
    assert optimizers.option_defaults("sm3:momentum=0.9") == {
        "lr": 0.1,
        "momentum": 0.9,
        "beta": 0.0,
        "eps": 1e-30,
        "maximize": False,
    }


def test_an_implementation_is_chosen_by_name() -> None:
    assert optimizers.implementations("adamw") == ("loop", "foreach", "fused")
    loop, foreach, free = (
        optimizers.create("adamw", params(), implementation=way).defaults
        for way in ("loop", "foreach", None)
    )
    assert (loop["foreach"], loop["fused"]) == (False, False)
    assert (foreach["foreach"], foreach["fused"]) == (True, False)
    assert (free["foreach"], free["fused"]) == (None, None)
    assert optimizers.create("adamw", params(), implementation="fused").defaults["fused"] is True
    assert optimizers.create("sm3", params(), implementation="foreach").defaults["foreach"] is True
    for device in (None, "cpu", "cuda"):
        ways = ("loop", "foreach", "fused", "compiled")
        assert optimizers.implementations("sm3", device) == ways
    assert optimizers.implementations("adamw", "cuda") == ("loop", "foreach", "fused")


@pytest.mark.usefixtures("mine")
def test_an_optimizer_that_can_be_compiled_is_made_so_by_name() -> None:
    assert optimizers.implementations("mine:Compiled") == ("loop", "foreach", "compiled")
    made = {
        way: optimizers.create("mine:Compiled", params(), implementation=way).defaults
        for way in ("loop", "foreach", "compiled")
    }
    assert [(made[way]["foreach"], made[way]["compiled"]) for way in made] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert "compiled" not in optimizers.option_defaults("mine:Compiled")


def test_an_optimizer_with_one_implementation_has_the_loop() -> None:
    name = "torch.optim:LBFGS"
    assert optimizers.implementations(name) == ("loop",)
    optimizers.create(name, params(), implementation="loop")
    for way in ("foreach", "fused", "compiled"):
        with pytest.raises(ValueError, match=f"no {way} implementation"):
            optimizers.create(name, params(), implementation=way)
    with pytest.raises(
        ValueError, match="must be one of loop, foreach, fused, compiled, got 'fast'"
    ):
        optimizers.create(name, params(), implementation="fast")  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("mine")
def test_a_users_class_is_imported_from_pythons_path() -> None:
    path = list(sys.path)
    made = optimizers.create("mine:Mine:lr=0.5", params(), implementation="foreach")
    assert type(made).__name__ == "Mine"
    assert made.defaults["lr"] == 0.5
    assert optimizers.create("mine:Plain:lr=0.5", params()).defaults["lr"] == 0.5
    assert sys.path == path


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("sm4", ["'sm4'", "did you mean sm3", "adamw"]),
        ("SGD_SaI", ["did you mean sgd-sai"]),
        ("sm3:momentun=0.9", ["option of sm3", "'momentun'", "did you mean momentum"]),
        ("sm3:xyzzy=1", ["'xyzzy'", "lr, momentum, beta, eps"]),
        ("sm3:params=3", ["'params'"]),
        ("sm3:momentum", ["option 'momentum' of sm3 has no value; write sm3:momentum=VALUE"]),
        ("sgd-sai:momentum", ["option 'momentum' of sgd-sai has no value"]),
        ("quantum", ["no optimizer is named 'quantum'; there are"]),
        ("adamw:lr=fast", ["adamw does not take lr='fast'"]),
        ("adamw:foreach=true", ["implementation 'loop'", "foreach"]),
        ("mine:Mine", ["mine:Mine needs lr", "mine:Mine:lr="]),
        ("mine:number", ["mine:number is 3", "torch.optim.Optimizer"]),
        ("mine:Nobody", ["class in mine", "'Nobody'", "Mine, Plain, Compiled"]),
        ("nowhere:Class", ["nowhere", "ModuleNotFoundError"]),
        ("./mine.py:Class", ["'./mine.py' is no module", "module:Class"]),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(spec: str, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=ONE_LINE) as caught:
        optimizers.create(spec, params(), implementation="loop")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.usefixtures("mine")
def test_an_error_of_a_users_module_propagates_with_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        optimizers.create("broken:Class", params())
    assert Path(caught.traceback[-1].path).name == "broken.py"


def test_our_classes_keep_their_names_wherever_their_code_is() -> None:
    sgd = torch.optim.SGD(params())
    gnts = optimizers.accumulation.GradientNormThreshold(sgd)
    names = [optimizers.name_of(each) for each in (optimizers.SM3(params()), sgd, gnts)]
    assert names == ["sm3", "sgd", "optprof.optimizers.accumulation:GradientNormThreshold"]
    assert optimizers.name_of(torch.optim.NAdam(params())) == "torch.optim.nadam:NAdam"


def test_an_unknown_name_has_no_description() -> None:
    with pytest.raises(ValueError, match="did you mean lamb"):
        optimizers.describe("lanb")


def test_a_wrong_list_of_parameters_is_torchs_own_error() -> None:
    with pytest.raises(TypeError, match="iterable of Tensors"):
        optimizers.create("sm3", params()[0])  # pyright: ignore[reportArgumentType]


def test_importing_prints_nothing() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import optprof.optimizers"],
        capture_output=True,
        check=True,
        cwd=Path(optimizers.__file__).parents[1],
    )
    assert (finished.stdout, finished.stderr) == (b"", b"")


def test_muon_takes_the_matrices_and_adamw_the_rest_under_one_name() -> None:
    shapes = [(4, 3), (4,), (2, 2, 2)]
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2}
    both = [Parameter(torch.ones(shape)) for shape in shapes]
    alone = [Parameter(torch.ones(shape)) for shape in shapes]
    one = optimizers.create("muon", both, **options)
    two = [
        torch.optim.Muon(alone[:1], adjust_lr_fn="match_rms_adamw", **options),
        torch.optim.AdamW(alone[1:], betas=(0.9, 0.95), **options),
    ]
    for seed in range(3):
        torch.manual_seed(seed)
        for param, other in zip(both, alone, strict=True):
            param.grad = torch.randn_like(param)
            other.grad = param.grad.clone()
        one.step()
        for optimizer in two:
            optimizer.step()
    for param, other in zip(both, alone, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=0)
    assert [(group["algorithm"], len(group["params"])) for group in one.param_groups] == [
        ("muon", 1),
        ("adamw", 2),
    ]


def test_a_group_can_select_adamw_for_a_matrix() -> None:
    embedding, weight = params() + params()
    groups: list[dict[str, Any]] = [
        {"params": [("embedding", embedding)], "algorithm": "adamw", "lr": 0.5},
        {"params": [("weight", weight)]},
    ]
    optimizer = optimizers.create("muon", groups)
    options = [
        (group["algorithm"], group["param_names"], group["lr"], group["eps"])
        for group in optimizer.param_groups
    ]
    assert options == [("adamw", ["embedding"], 0.5, 1e-8), ("muon", ["weight"], 1e-3, 1e-7)]


def test_muon_follows_a_learning_rate_set_after_it_was_loaded() -> None:
    (param,) = params()
    optimizer = optimizers.create("muon", [param])
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(param, params()[0])


PLUGIN = """
from optprof.optimizers import CatalogueEntry
from torch.optim import SGD

class Mine(SGD):
    '''SGD by another name.

    More of it.
    '''

entry = CatalogueEntry(
    factory=Mine, options={"momentum": 0.5}, package="theirs",
    summary="described", paper="https://example.org", state="4 bytes", decided_by=("momentum",),
)
number = 3
"""
POINTS = """
[optprof.optimizers]
theirs = theirs:Mine
theirs-described = theirs:entry
theirs-absent = theirs:Nobody
theirs-unimportable = nowhere:Mine
theirs-number = theirs:number
twice = theirs:Mine
adamw = theirs:Mine
"""


def package(folder: Path, name: str, points: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install two packages: one adds optimizers, the other repeats one of its names."""
    (tmp_path / "theirs.py").write_text(PLUGIN)
    package(tmp_path, "theirs", POINTS)
    package(tmp_path, "others", "[optprof.optimizers]\ntwice = others:Twice\n")
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("theirs")
def test_another_package_adds_an_optimizer_by_an_entry_point() -> None:
    assert {"theirs", "theirs-described"} <= set(optimizers.available())
    assert "theirs" in optimizers.available("theirs")
    assert "theirs" not in sys.modules
    assert optimizers.describe("theirs").summary == "SGD by another name."
    made = optimizers.create("theirs:lr=0.5", params(), implementation="foreach")
    assert (type(made).__name__, made.defaults["lr"], made.defaults["momentum"]) == ("Mine", 0.5, 0)
    assert optimizers.describe("theirs-described").state == "4 bytes"
    assert optimizers.create("theirs-described", params()).defaults["momentum"] == 0.5


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "theirs-absent",
            "cannot load theirs-absent, which theirs adds as theirs:Nobody: AttributeError",
        ),
        (
            "theirs-unimportable",
            (
                "cannot load theirs-unimportable, which theirs adds as nowhere:Mine:"
                " ModuleNotFoundError"
            ),
        ),
        (
            "theirs-number",
            (
                "theirs-number, which theirs adds as theirs:number, is 3, not a subclass of"
                " torch.optim.Optimizer"
            ),
        ),
        (
            "twice",
            (
                r"twice is the name of several optimizers, by (theirs \(theirs:Mine\),"
                r" others|others \(others:Twice\), theirs)"
            ),
        ),
        (
            "adamw",
            (
                r"adamw is the name of several optimizers, by torch, theirs \(theirs:Mine\); write"
                r" module:Class"
            ),
        ),
    ],
)
def test_a_broken_or_clashing_entry_point_is_an_error_when_its_name_is_used(
    name: str, message: str
) -> None:
    assert optimizers.available()
    assert optimizers.create("sm3", params())
    for use in (
        optimizers.describe,
        optimizers.implementations,
        lambda spec: optimizers.create(spec, params()),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            use(name)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("theirs")
def test_a_name_that_clashes_is_not_offered() -> None:
    assert not {"adamw", "twice"} & set(optimizers.available())
    optimizers.create("torch.optim:AdamW", params())


def test_other_objects_than_parameters_raise_torchs_own_error() -> None:
    # The catalogue sets momentum, not the user.
    with pytest.raises(
        TypeError, match="params argument given to the optimizer should be an iterable"
    ):
        optimizers.create("sgd", torch.ones(3))
