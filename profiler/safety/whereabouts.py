"""Whereabouts in texts: home folders, users, the host, and all other paths."""

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from getpass import getuser
from pathlib import Path
from socket import gethostname

HOME = "~"
USER = "$USER"

_END = r"(?![\w-]|\.\w)"
# Any user's home: another user's name is private too.
_POSIX_HOME = r"(?<![\w.~-])(?:/[\w.-]+){0,3}?/(?:home|Users)/[^\s/\\'\":,;)\]}]+"
_WINDOWS_HOME = r"(?i:[a-z]:[\\/]+Users[\\/]+(?:[^\\/:*?'\"<>|\r\n]+(?=[\\/])|[^\s\\/:'\",;]+))"
_ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s'\"<>)\]]+")
_WORD = r"[^\s'\":,;=()\[\]{}<>]+"
_PATH = re.compile(
    r"(?P<quote>['\"])[^\s'\"]*[\\/][^'\"]*(?P=quote)"
    rf"|(?<![\w.~-])(?:~|\$\w+|\.{{1,2}})?[\\/]{_WORD}"
    rf"|(?<![A-Za-z0-9])[A-Za-z]:[\\/]+{_WORD}"
    r"|(?<![\w.@+-])[\w.@+-]+(?:[\\/]+[\w.@+-]+)+"
)
# Words of errors and warnings that may also be the name of a host or a user: gpt2, a100, model.
_ORDINARY = re.compile(
    r"(?i)(?:gpt|llama|vit|resnet|bert|t|v|a|h|l|b|mi|rtx|gtx|gb|gh|sm|lamb|fp|bf|int|float)-?\d+[a-z]{0,2}"
    r"(?:-(?:\d+|xl|small|medium|large))?|(?:cuda|gpu|cpu|node)(?:[-:]?\d{1,2})?|adamw?|lamb|sgd|tiny|model|optimizer"
    r"|state|step|batch|bytes|memory|device|tensor|layer|weight|bias|loss|train|test|key|name|file|line|error|path|admin"
)


def without_homes(text: str) -> str:
    """Return the text with home folders as ~ and the user's name in other paths as $USER."""
    if "/" not in text and "\\" not in text:
        return text
    names = map(os.environ.get, ("HOME", "USERPROFILE", "LOGNAME", "USER"))
    homes, user = _people(_answer(lambda: str(Path.home())), *names)
    text = homes.sub(HOME, text)
    return user.sub(rf"\g<before>{USER}", text) if user else text


def without_host(text: str) -> str:
    """Return the text with the name of this machine as "localhost"."""
    host = _host()
    is_name = host and re.search(r"[\d-]", host) and not _is_ordinary(host)
    return _without_word(text, host, "localhost") if host and is_name else text


def without_paths(text: str, stand_in: Callable[[str], str]) -> str:
    """Return the text without addresses, paths, and the names of host and user.

    `stand_in` returns the replacement of a path.
    """
    text = _ADDRESS.sub("URL", text)
    text = _PATH.sub(lambda match: _without_path(match[0], stand_in), text)
    for name in filter(None, (_host(), _user())):
        if not _is_ordinary(name):
            text = _without_word(text, name, "NAME")
    return text


def _is_ordinary(name: str) -> bool:
    """Return whether a name is an ordinary word, such as "torch", that identifies no person."""
    return bool(_ORDINARY.fullmatch(name)) or name in sys.modules or name in sys.stdlib_module_names


def _without_path(path: str, stand_in: Callable[[str], str]) -> str:
    quote = path[0] if path[0] in "'\"" else ""
    inner = path.strip(quote) if quote else path
    is_rooted = inner[:1] in ("/", "\\", "~", ".", "$") or inner[1:2] == ":"
    if not quote and not is_rooted and not re.search(r"\.\w+$|[\\/].*[\\/]", inner):
        # tokens/s
        return path
    return f"{quote}{stand_in(inner)}{quote}"


def _without_word(text: str, word: str, other: str) -> str:
    return re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", other, text) if word in text else text


@lru_cache(maxsize=8)
def _people(*_names: str | None) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Return patterns of all users' homes, and of this user's name in a path."""
    own = sorted(_homes(), key=len, reverse=True)
    homes = re.compile("|".join([*map(_folder, own), _POSIX_HOME, _WINDOWS_HOME]))
    if not (name := _user()):
        return homes, None
    before = r"(?P<before>(?<![\w.~/-])/(?:[^\s'\":,;=]*/)?(?:[\w.]+-of-)?)"
    return homes, re.compile(rf"{before}{re.escape(name)}(?=[/'\"\s:,;)]|$)")


def _folder(home: str) -> str:
    parts = [re.escape(part) for part in re.split(r"[\\/]+", home) if part]
    joined = r"[\\/]+".join(parts)
    if re.match(r"[A-Za-z]:", home):
        return rf"(?i:{joined}){_END}"
    # /root is a part of many longer paths.
    start = r"(?:(?<![\w.~/\\-])|(?<=://)|(?<=^-[A-Za-z]))" if len(parts) == 1 else ""
    return rf"{start}[\\/]{joined}{_END}"


def _homes() -> set[str]:
    """Return the names of this user's home folder, also those through links."""
    named = {os.environ.get("HOME"), os.environ.get("USERPROFILE")}
    named |= {_answer(lambda: str(Path.home())), _answer(_listed_home)}
    folders = {name.rstrip("/\\") for name in named if name}
    folders |= {_answer(lambda name=name: str(Path(name).resolve())) or name for name in folders}
    return {folder for folder in folders if re.match(r"(?:[A-Za-z]:)?[\\/]+[^\\/]", folder)}


def _listed_home() -> str:
    # Windows has no such module.
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir


def _user() -> str | None:
    """Return the user's name if it identifies a person."""
    shared = ("root", "user", "users", "home", "runner", "ubuntu", "data", "models", "runs", "work")
    name = _answer(getuser)
    return name if name and len(name) >= 3 and name not in shared else None


@lru_cache(maxsize=1)
def _host() -> str | None:
    name = (_answer(gethostname) or "").partition(".")[0]
    return name if len(name) >= 2 and name != "localhost" else None


def _answer(ask: Callable[[], str]) -> str | None:
    """Return the answer of the system, None if it has none."""
    try:
        return ask()
    except (ImportError, KeyError, OSError, RuntimeError, AttributeError):
        return None
