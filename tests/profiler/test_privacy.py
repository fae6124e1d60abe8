"""Privacy: secrets, homes and hosts in texts, commands and records."""

import json
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optprof.profiler.machine import environment
from optprof.profiler.records.privacy import (
    disclosed,
    disclosed_command,
    disclosed_scenario,
    masked,
)
from optprof.profiler.records.record import Environment, Machine, Record, Watched
from optprof.profiler.running.resume import pending
from optprof.profiler.safety import whereabouts
from optprof.scenarios import Scenario

# Each with the part that no reader may see.
SECRETS = (
    ("--hf-token=abc", "abc"),
    ("--model-config=token=s3cr3t", "s3cr3t"),
    ("-capi_key=opensesame", "opensesame"),
    ("mine:Class:api_key=xyz,lr=0.1", "xyz"),
    ("mine:Class:lr=0.1,password=a b", "a b"),
    ("password=12345", "12345"),
    ("DB_PASSWORD=hunter2", "hunter2"),
    ("dbPassword='hunter2'", "hunter2"),
    ("client_secret=q", "=q"),
    ("credentials=file.json", "file.json"),
    ("AWS_SECRET_ACCESS_KEY_ID=abc", "abc"),
    ("aws_access_key_id=abc", "abc"),
    ("--auth=me", "=me"),
    ("AccountKey=abc==;Endpoint=here", "abc"),
    ("https://me:pass@example.org/x", "pass"),
    ("https://ghtoken@example.org/x", "ghtoken"),
    ("https://example.org/x?token=abc&size=1", "abc"),
    ("https://example.org/x?X-Amz-Signature=abc9", "abc9"),
    ("redis://:pass@example.org", "pass"),
    ("hf_AbCdEfGhIjKlMnOpQrSt", "AbCdEf"),
    ("hf_1234567890", "12345"),
    ("sk-proj-1234567890abcdef", "12345"),
    ("sk_live_1234567890abcdef", "12345"),
    ("ghp_1234567890abcdefghij", "12345"),
    ("github_pat_11ABCDEFG0abcdef", "11ABC"),
    ("glpat-1234567890abcdefghij", "12345"),
    ("xoxb-1234567890-abcdef", "12345"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("AIzaSyA1234567890abcdefghijklmnopqrstu", "SyA12345"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN", "hbGci"),
    ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKY", "wJalr"),
    ("WANDB=3f786850e387550fdab836ed7e6dc881de23001b", "3f78"),
    ("3f786850e387550fdab836ed7e6dc881", "3f78"),
    ("0f8fad5b-d9cb-469f-a165-70867728950e", "0f8f"),
    ("q7Rk2Xv9Tz4LmN8bW3cY6sHd", "q7Rk"),
    ("Authorization: Bearer abcdefgh", "abcdefgh"),
    ("{'password': 'x y', 'n': 1}", "x y"),
    ('{"api_key": "abc"}', "abc"),
    (r"{\"api_key\": \"abc\"}", "abc"),
    ("invalid token: abc123", "abc123"),
    ("hf_abcdefghijklmnopqrstuvwxyzabcdefgh", "abcdef"),
    ("mongodb://me:a/b9@example.org", "b9"),
    ("https://hooks.slack.com/services/T0/B0/abc", "abc"),
    ("123456789:AAF0abcdefghijklmnopqrstuvwxyz01234", "abcdef"),
    ('{"api_keys": ["abc", "xyz"]}', "xyz"),
    ("Config(api_key=b'abc')", "abc"),
    ("Config(api_key=SecretStr('abc'))", "abc"),
    ("{'password': 'a\\'xyz'}", "xyz"),
    ("api_key => abc", "abc"),
    ("Incorrect API key provided: abc123.", "abc123"),
    ("unrecognized arguments: --hf-token opensesame", "opensesame"),
    ("usage: ['train.py', '--hf-token', 'opensesame']", "opensesame"),
    ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nMIIE", "MIIE"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
)
HARMLESS = (
    "--keep-gradients",
    "n_layer=24",
    "tokens=1024",
    "max_tokens=8",
    "token=1024",
    "monkey=abc",
    "--seq-len=1024",
    "num_key_value_heads=8",
    "bos_token_id=50256",
    "pad_token=<pad>",
    "cls_token=[CLS]",
    "sort_key=name",
    "use_auth_token=True",
    "password=None",
    "class_token=gap",
    "https://localhost:8080/@x",
    "author=me",
    "sm3:momentum=0.9,betas=(0.9, 0.99)",
    "gnts:threshold=0.8",
    "auth:build",
    "secrets/model.py:build",
    "token:Model",
    "expandable_segments:True,max_split_size_mb:128",
    "runs/gpt2-xl-adamw-0f3c5a7b9d1e",
    "--out=runs/3f786850e387550fdab836ed7e6dc881de23001b",
    "resnet50_fp16_bs32_lr1e4_seed3_run",
    "LlamaForCausalLM2WithAdapter",
    "Conv2dBatchNorm2dReLU6Block3x3",
    "https://example.org/x?size=1",
    "hf_trainer:build",
    "sk-learn",
    "../data/x",
    "/data/x",
    "1e-08",
)
TEXTS = (
    "unrecognized arguments: --steps 10 --key --json -o adamw",
    "the password is needed; an API key was not given",
    "KeyError: 'lr' (mine.py, line 12)",
    "KeyError: key='exp_avg'",
    "SyntaxError: unexpected token: '}'",
    "state key exp_avg: 8 bytes, key=layers.0.weight",
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB",
    "'<=' not supported between instances of 'str' and 'int'",
    "needs 3.20 GiB by simulation; 12 tokens/s",
)


@pytest.fixture
def alice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.delenv("USERPROFILE", raising=False)


def record(**changes: object) -> Record:
    environment_of_record = Environment(
        time="2026-01-01",
        threads=1,
        command=("optprof",),
        machine=Machine(cpu="a"),
        platform="b",
        affinity=(0,),
        git_commit="c",
    )
    plain = Record(
        scenario=Scenario(model="gpt2"), origin="measured", environment=environment_of_record
    )
    return replace(plain, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_a_secret_is_masked_in_a_text_and_in_a_command(text: str, secret: str) -> None:
    assert secret not in masked(text)
    assert "***" in masked(text)
    if ": " not in text or text.startswith("{"):
        (word,) = disclosed_command([text])
        assert secret not in word


@pytest.mark.parametrize("word", HARMLESS)
def test_other_words_stay_in_a_command(word: str) -> None:
    assert disclosed_command([word]) == [word]


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_words_stay_in_a_text(text: str) -> None:
    assert masked(text) == text


def test_the_word_behind_an_option_that_holds_a_secret_is_masked() -> None:
    words = ["optprof", "--hf-token", "abc", "--key", "7", "--password", "--json", "--steps", "2"]
    shown = ["optprof", "--hf-token", "***", "--key", "***", "--password", "--json"]
    assert disclosed_command(words) == [*shown, "--steps", "2"]


@pytest.mark.parametrize("option", ["--on", "--rdzv-endpoint"])
def test_an_anonymous_command_names_no_machine_to_connect_to(option: str) -> None:
    for words in ([option, "node7:29400"], [f"{option}=node7:29400"]):
        assert "node7" in str(disclosed_command(words))
        assert "node7" not in str(disclosed_command(words, anonymous=True))


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--out=/home/alice/x", "--out=~/x"),
        ("-o/home/alice/x", "-o~/x"),
        ("'/home/alice'", "'~'"),
        ("/home/alice", "~"),
        ("file:///home/alice/x", "file://~/x"),
        ("/nfs/home/alice/x", "~/x"),
        ("/home/bob/x", "~/x"),
        ("/Users/bob/x", "~/x"),
        (r"C:\Users\Alice B\x", r"~\x"),
        (r"'c:\\users\\alice\\x'", r"'~\\x'"),
        ("C:/Users/alice", "~"),
        ("/scratch/alice/x", "/scratch/$USER/x"),
        ("/tmp/pytest-of-alice/x", "/tmp/pytest-of-$USER/x"),
        ("/data/malice/x", "/data/malice/x"),
        ("data/home/page", "data/home/page"),
    ],
)
def test_a_home_is_shortened_wherever_it_stands(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert disclosed_command([text]) == [shown]


def test_a_home_of_one_part_and_one_behind_a_link_are_found(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("real")
    link = folder.with_name("link-to-home")
    link.symlink_to(folder)
    monkeypatch.setenv("HOME", str(link))
    assert masked(f"{folder}/x and {link}/y") == "~/x and ~/y"

    monkeypatch.setenv("HOME", "/srv")
    assert masked("/srv/x, /mnt/srv/x, /srv2") == "~/x, /mnt/srv/x, /srv2"

    monkeypatch.setenv("HOME", "/")
    assert masked("/data/x") == "/data/x"


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file '/data/my x.bin' (pkg/mine.py, line 3)", "no file 'PATH' (mine.py, line 3)"),
        ("/home/alice/x is gone, ~/y and ./z too", "PATH is gone, PATH and PATH too"),
        (r"C:\data\x.bin", "PATH"),
        (r"'\\server\share'", "'PATH'"),
        ("see https://example.org/x", "see URL"),
        ("alice may not", "NAME may not"),
        ("12 tokens/s, and/or 1/3", "12 tokens/s, and/or 1/3"),
    ],
)
def test_an_anonymous_text_names_no_path(text: str, shown: str) -> None:
    assert masked(text, anonymous=True) == shown


@pytest.mark.parametrize("name", ["gpt2", "a100", "rtx3090", "h100-80", "sm3", "torch", "model"])
def test_a_host_or_user_with_an_ordinary_name_mangles_no_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"torch.OutOfMemoryError: {name} needs 4 bytes more for the model's state"
    monkeypatch.setattr(
        "optprof.profiler.safety.whereabouts.gethostname", lambda: f"{name}.example.org"
    )
    monkeypatch.setattr("optprof.profiler.safety.whereabouts.getuser", lambda: name)
    for cached in (whereabouts._host, whereabouts._people):
        cached.cache_clear()
    try:
        assert whereabouts.without_host(text) == text
        assert whereabouts.without_paths(text, str) == text
    finally:
        for cached in (whereabouts._host, whereabouts._people):
            cached.cache_clear()


def test_a_host_with_a_name_of_its_own_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "optprof.profiler.safety.whereabouts.gethostname", lambda: "box-17.example.org"
    )
    whereabouts._host.cache_clear()
    try:
        assert whereabouts.without_host("lost box-17") == "lost localhost"
        assert whereabouts.without_paths("lost box-17", str) == "lost NAME"
    finally:
        whereabouts._host.cache_clear()


@given(st.text(alphabet="ak=:/\\~ .-_@,*0Zhome{}", max_size=40), st.booleans())
def test_a_second_disclosure_changes_nothing(text: str, anonymous: bool) -> None:
    once = masked(text)
    assert masked(once) == once
    command = disclosed_command([text], anonymous=anonymous)
    assert disclosed_command(command, anonymous=anonymous) == command


@given(st.text(alphabet="ak/\\~ .-_@*0Z", min_size=1, max_size=30))
def test_a_scenario_has_one_anonymous_name_before_and_after(path: str) -> None:
    scenario = Scenario(model=f"{path}.py:build", options={"name": path, "token": "abc"})
    shown = disclosed_scenario(scenario)
    hidden = disclosed_scenario(scenario, anonymous=True)
    assert re.fullmatch(r"\*{3}[0-9a-f]{4}", shown.options["token"])
    assert disclosed_scenario(shown) == shown
    assert disclosed_scenario(shown, anonymous=True) == hidden
    assert disclosed_scenario(hidden, anonymous=True) == disclosed_scenario(hidden) == hidden


@pytest.mark.parametrize("name", ["norm_key", "token", "revision"])
def test_scenarios_that_differ_in_masked_values_stay_distinct(name: str) -> None:
    commits = "3f786850e387550fdab836ed7e6dc881de23001b", "89e6c98d92887913cadf06b2adb97f26cde4849b"
    scenarios = [Scenario(model="mine:build", config={name: commit}) for commit in commits]
    first, second = (disclosed_scenario(scenario).config[name] for scenario in scenarios)
    assert first != second
    for shown in (first, second):
        assert re.fullmatch(r"\*{3}[0-9a-f]{4}", str(shown))
    masked = disclosed(record(scenario=scenarios[0], environment=Environment()))
    assert pending(scenarios, [masked], Environment()) == scenarios[1:]


def test_a_secret_by_its_name_leaves_no_digest() -> None:
    shown = disclosed_scenario(Scenario(model="mine:build", config={"api_key": "abc"}))
    assert shown.config == {"api_key": "***"}


def test_models_of_one_name_in_two_folders_stay_distinct_when_anonymous() -> None:
    names = {
        disclosed_scenario(Scenario(model=model), anonymous=True).model
        for model in ("before/mine.py:build", "after/mine.py:build", "mine.py:build", "own:/x/mine")
    }
    assert len(names) == 4
    assert "mine.py:build" in names
    assert not any(word in name for name in names for word in ("/", "before", "after"))


@pytest.mark.usefixtures("alice")
def test_every_text_of_a_record_is_masked() -> None:
    leak = "/home/alice/x: hf_AbCdEfGhIjKlMnOpQrSt"
    masked = disclosed(
        record(
            scenario=Scenario(
                model="/home/alice/m.py:f", config={"token": "abc"}, options={"lr": 0.1}
            ),
            deciding_options={"token": "abc", "lr": 0.1},
            error=leak,
            warnings=(leak,),
            lost=(leak,),
            watched=Watched(warnings=(leak,)),
            environment=Environment(command=("optprof", "--out", "/home/alice/x")),
        )
    )
    line = masked.to_json()
    assert "alice" not in line
    assert "AbCd" not in line
    assert "abc" not in line
    assert masked.scenario.options == {"lr": 0.1}
    assert masked.deciding_options is not None
    assert masked.deciding_options["lr"] == 0.1
    assert masked.environment.command == ("optprof", "--out", "~/x")
    assert disclosed(masked) == masked


def test_an_anonymous_record_keeps_its_figures_and_versions_and_no_machine() -> None:
    command = ("optprof", "profile", "a/m.py:f", "--out=runs/x", "--html", "y", "-o", "sgd:lr=0.1")
    command += ("--on", "ray://10.1.2.3:10001")
    machine_environment = replace(record().environment, command=command, versions={"torch": "2"})
    anonymous = disclosed(record(environment=machine_environment), anonymous=True)
    shown = anonymous.environment.command
    data = json.loads(anonymous.to_json())["environment"]
    assert data == {
        "time": "2026-01-01",
        "command": list(shown),
        "seed": 0,
        "threads": 1,
        "keeps_freed_memory": None,
        "python": None,
        "versions": {"torch": "2"},
        "anonymous": True,
    }
    words = r"optprof profile m-\w{4}\.py:f --out=PATH --html PATH -o sgd:lr=0.1 --on CLUSTER"
    assert re.fullmatch(words, " ".join(shown))


def test_only_an_anonymous_run_resumes_from_anonymous_records() -> None:
    scenario = Scenario(model="a/m.py:f", device="cpu")
    here = Environment(versions={"torch": "2"}, machine=Machine(cpu="a"))
    open_record = record(scenario=scenario, environment=here)
    hidden = disclosed(open_record, anonymous=True)
    assert pending([scenario], [open_record], here) == []
    assert pending([scenario], [open_record], here, anonymous=True) == []
    assert pending([scenario], [hidden], here, anonymous=True) == []
    # Its times may be of another machine.
    assert pending([scenario], [hidden], here) == [scenario]
    simulated = Scenario(model="a/m.py:f")
    hidden = disclosed(record(scenario=simulated, environment=here), anonymous=True)
    assert pending([simulated], [hidden], here) == []


def test_the_arguments_of_a_watched_script_are_left_out_of_older_records() -> None:
    watched = record(environment=Environment(command=("train.py", "--name", "me"), seed=None))
    assert disclosed(watched).environment.command == ("train.py",)
    assert disclosed(watched, anonymous=True).environment.command == ()


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/usr/bin/optprof", "fit", "gpt2"], ["optprof", "fit", "gpt2"]),
        ([r"C:\Scripts\optprof.exe", "fit"], ["optprof", "fit"]),
        ([f"{environment._PACKAGE}/__main__.py", "fit"], ["optprof", "fit"]),
        (["/home/alice/optprof/__main__.py", "secret"], ["optprof"]),
        (["/home/alice/train.py", "--hf-token=abc", "secret"], ["train.py"]),
        (["/x/ipykernel_launcher.py", "-f", "/home/alice/kernel.json"], ["notebook"]),
        (["/x/colab_kernel_launcher.py", "-f", "x"], ["notebook"]),
        (["/x/package/__main__.py", "x"], ["package"]),
        (["-c", "x"], ["python -c"]),
        ([""], ["python"]),
        ([], ["python"]),
        (["optprof", "fit", "\udcff"], ["optprof", "fit", r"\xff"]),
    ],
)
def test_only_a_command_of_ours_has_its_arguments_recorded(
    words: list[str], shown: list[str]
) -> None:
    assert environment.command(words) == shown


def test_an_argument_of_any_length_leaves_a_record_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["optprof", "fit", "x" * 30_000])
    long_record = record(environment=environment.environment(seed=0))
    assert Record.from_dict(long_record.to_dict()) == long_record
