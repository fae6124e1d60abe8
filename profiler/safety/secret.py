"""Secrets in texts and commands, and what looks like one, are masked.

`MARKED` is the table of secrets that have a known form; `_SECRET` and `_PERHAPS` are the names of
options that hold one. In doubt a rule masks: a word too many costs a reader only a guess.
"""

import re
from functools import lru_cache

MASK = "***"

# Prefixes of the tokens of services; a digit or a capital distinguishes tokens from words.
_PREFIXES = (
    "hf_",  # Hugging Face
    "api_org_",
    "gh[opsur]_",  # GitHub
    "github_pat_",
    "gl[a-z]{2,6}-",  # GitLab
    "sk-",  # OpenAI, Anthropic
    "[spr]k_(?:live|test)_",  # Stripe
    "xox[a-z]-",  # Slack
    "xapp-",
    "npm_",
    "pypi-",
    "dop_v1_",
    "dckr_pat_",
    "nvapi-",
    "r8_",  # Replicate
    "gsk_",
    "pplx-",
    "tskey-",
    "lin_api_",
    "dapi",  # Databricks
    "ya29\\.",  # Google
    "SG\\.",  # SendGrid
    "local-",  # Weights & Biases
)

# A secret's form and its replacement.
MARKED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(form, re.DOTALL), replacement)
    for form, replacement in (
        (
            (
                r"-----BEGIN [A-Z ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z ]*PRIVATE KEY[A-Z"
                r" ]*-----|\Z)"
            ),
            MASK,
        ),
        # user:password@ in an address
        (r"(?<=://)[^\s/?#'\"]+@", f"{MASK}@"),
        # A password may hold a slash; a port is a number.
        (r"(?<=://)[^\s/?#'\"@:]+:(?!\d+/)[^\s'\"@]*@", f"{MASK}@"),
        (r"(?i)\b(bearer) +[\w.~+/=-]{6,}", rf"\1 {MASK}"),
        (r"(?i)\b(basic|token|digest) +(?=\S*\d)[\w.~+/=-]{8,}", rf"\1 {MASK}"),
        (
            (
                rf"(?<![A-Za-z0-9])(?:{'|'.join(_PREFIXES)})"
                r"(?:(?=[\w.-]{0,200}?[A-Z0-9])[\w.-]{8,}|[a-z]{20,})"
            ),
            MASK,
        ),
        # A Telegram bot's, and addresses that are secrets as a whole.
        (r"(?<![\w:])\d{8,10}:AA[\w-]{30,}", MASK),
        (
            r"(?<=://)(hooks\.slack\.com/\w+|discord(?:app)?\.com/api/webhooks)/[\w/-]+",
            rf"\1/{MASK}",
        ),
        # "Incorrect API key provided: abc1"
        (
            (
                r"(?i)\b(api[ _-]?key|password|passphrase|secret|(?:access|auth|api) token)"
                r"((?: (?:provided|given|is|was))?:? )(?=\S*\d)[\w.~+/=-]{6,}"
            ),
            rf"\1\2{MASK}",
        ),
        # AWS, Google, JSON web tokens
        (r"(?<![A-Za-z0-9])(?:A[KS]IA|AGPA|AROA|AIDA)[A-Z0-9]{12,}", MASK),
        (r"(?<![A-Za-z0-9])AIza[\w-]{30,}", MASK),
        (r"(?<![A-Za-z0-9])eyJ[\w-]{8,}(?:\.[\w-]*)*", MASK),
        # A digest that is a whole word may be a key; in the name of a file it is a digest.
        (r"(?<![\w/.~\\-])[0-9a-fA-F]{32,}(?![\w/\\-]|\.\w)", MASK),
        (r"(?<![\w/.~\\-])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![\w/\\-])", MASK),
    )
)

# The last word of names that hold a secret: api_secret, --password, dbPasswd.
_SECRET = re.compile(
    r"secret|secrets|password|passwords|passwd|passphrase|passcode|pwd|credential"
    r"|credentials|apikey|authorization|authentication|auth|bearer|jwt|privatekey"
    r"|secretkey|accesskey|pw|apikeys|passwort"
)
# The last word of names that may hold something else: token=, a key of the state.
_PERHAPS = re.compile(r"token|key|pass|pin|otp|sid|session|signature|sig|cookie|dsn|webhook")
# The previous word says that it does not hold a secret: bos_token, sort_key, forward_pass.
_HARMLESS = re.compile(
    r"bos|eos|pad|unk|cls|sep|mask|image|video|audio|start|end|special|prefix|suffix|by"
    r"|sort|group|state|cache|dict|batch|map|index|column|label|feature|input|output"
    r"|primary|foreign|num|per|query|attn|attention|value|forward|backward|first|second"
    r"|max|min|next|class|pooling|reg|register|position|norm|public"
)
_UNSET = re.compile(r"(?i)(?:true|false|none|null|auto|yes|no|on|off)?")
_NUMBER = re.compile(r"[-+]?[\d_.]{1,8}(?:e[-+]?\d+)?")
# As <pad> and [CLS].
_MARKER = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
# As layers.0.weight.
_IDENTIFIER = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*")

_NAMED = re.compile(
    r"(?P<name>[A-Za-z_][\w.-]{0,63})"
    r"(?P<between>\\?[\"']?\s{0,8}(?:[=-]>|=(?!=)|:(?![:/\\]))\s{0,8})"
)
# An option and its value as two words, or a name and its value in a list.
_NEXT = re.compile(
    r"(?<![\w-])(?P<quote>['\"]?)--?(?P<name>[A-Za-z][\w-]{0,63})"
    r"(?P<between>(?P=quote)(?:,\s?|\s)(?P=quote))(?P<value>[^\s'\"=-][^\s'\"]*)"
)
# As b'x', SecretStr('x') and ['x', 'y'].
_STRING = r"(?:\\\"[^\"]*\"|\\'[^']*'|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
_QUOTED = rf"{_STRING}|[A-Za-z_.]{{0,40}}\(?{_STRING}\)?|\[\s*{_STRING}(?:,\s*{_STRING})*\s*\]"
# In a text a value ends with the word, in a word of a command with the word or the next name.
_IN_TEXT = re.compile(rf"{_QUOTED}|[^\s&;]+?(?=,\s|,[\w.-]+=|[\s&;)\]}}'\"]|$)")
_IN_WORD = re.compile(rf"(?s){_QUOTED}|[^&;]+?(?=,\s*[\w.-]+=|[&;)\]}}'\"]|$)")
_RUN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z0-9]{20,}(?![A-Za-z0-9])|[A-Za-z0-9_-]{32,}"
    r"|(?<![\w+/.~-])[A-Za-z0-9+/]{40}={0,2}(?![\w+/.-])"
)
# Words that can be spoken.
_WRITTEN = re.compile(r"(?=[A-Z]?[a-z]*[aeiouy])[A-Z]?[a-z]{3,}")


def without_secrets(text: str, *, is_word: bool = False) -> str:
    """Return the text with its secrets masked; `is_word` is for a word of a command."""
    for form, replacement in MARKED:
        text = form.sub(replacement, text)
    text = _without_values(text, _IN_WORD if is_word else _IN_TEXT)
    if not is_word:
        text = _NEXT.sub(_without_next, text)
    return _RUN.sub(lambda match: MASK if _is_random(match[0]) else match[0], text)


def is_mask_needed(name: str, value: str, *, is_text: bool = False, is_prose: bool = False) -> bool:
    """Return whether an option of this name and value holds a secret.

    `is_text` is for a value in a text, `is_prose` for "name: value" in a text.
    """
    if not weight(name) or _UNSET.fullmatch(value):
        return False
    return weight(name) == 2 or not (
        _NUMBER.fullmatch(value)
        or _MARKER.fullmatch(value)
        # A text on a key of the state.
        or (is_text and name.lower() == "key" and _IDENTIFIER.fullmatch(value))
        or (is_prose and not any(map(str.isdigit, value)))
    )


@lru_cache(maxsize=4096)
def weight(name: str) -> int:
    """Return 2 for a name of secrets, 1 for one that may mean something else, 0 for all others."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]
    if len(words) > 1 and words[-1] in ("id", "value", "hash"):
        # AWS_SECRET_ACCESS_KEY_ID, password_hash
        words.pop()
    last, before = ["", "", *words][-1], ["", "", *words][-2]
    if _SECRET.fullmatch(last) or last.endswith(("password", "passwd", "apikey", "secret")):
        return 2
    if last in ("key", "keys") and before in ("api", "access", "secret", "private", "ssh", "auth"):
        return 2
    if _PERHAPS.fullmatch(last) or (last.endswith("token") and last != "token"):
        return 0 if _HARMLESS.fullmatch(before) else 1
    return 2 if {"secret", "password", "passwd", "credential", "credentials"} & {*words} else 0


def _without_values(text: str, value: re.Pattern[str]) -> str:
    """Mask the values of the names of secrets; a name may be part of another's value."""
    pieces, place = [], 0
    for match in _NAMED.finditer(text):
        between = match["between"]
        is_prose = ":" in between and between.lstrip("\\")[0] not in "'\""
        # module:Class is a word of a command.
        if match.start() < place or not weight(match["name"]) or (is_prose and value is _IN_WORD):
            continue
        if matched := value.match(text, match.end()):
            quote, inner = _unquoted(matched[0])
            where = {"is_text": value is _IN_TEXT, "is_prose": is_prose}
            if is_mask_needed(match["name"], inner, **where):
                pieces += [text[place : matched.start()], f"{quote}{MASK}{quote}"]
                place = matched.end()
    return "".join([*pieces, text[place:]])


def _without_next(match: re.Match[str]) -> str:
    value = match["value"]
    is_masked = is_mask_needed(match["name"], value)
    return match[0][: len(match[0]) - len(value)] + (MASK if is_masked else value)


def _unquoted(value: str) -> tuple[str, str]:
    quote = value[:2] if value[:1] == "\\" else value[:1] if value[:1] in ("'", '"') else ""
    is_closed = len(value) >= 2 * len(quote) and value.endswith(quote)
    return (quote, value[len(quote) : len(value) - len(quote)]) if is_closed else ("", value)


def _is_random(run: str) -> bool:
    """Return whether a long run of letters and digits is random rather than words."""
    run = run[:200]
    if re.fullmatch(r"[0-9a-fA-F_-]+", run) or not any(map(str.isdigit, run)):
        return False
    letters = [letter for letter in run if letter.isalpha()]
    is_mixed = any(map(str.isupper, letters)) and any(map(str.islower, letters))
    marks = sum(not letter.isalnum() for letter in run)
    written = sum(map(len, _WRITTEN.findall(run)))
    return is_mixed and 8 * marks <= len(run) and written < 0.4 * len(letters)
