"""Masks secrets in command lines, header values, connection strings and messages.

Called wherever something of the user's is stored, sent or printed: by the drain, the
store, the summary and the commands; never in the user's thread. It errs towards masking:
a value is hidden when its *name* sounds secret, when it has the shape of a known
credential, or when it stands where a URL has user and password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MASK", "argv", "is_secret", "text", "value"]

MASK = "****"

# Anywhere in the name, separators removed.
_SECRET_PARTS = (
    "password", "passwd", "passphrase", "secret", "apikey", "accesskey", "privatekey", "secretkey", "signingkey",
    "encryptionkey", "accountkey", "credential", "authorization", "authtoken", "accesstoken", "connectionstring",
    "cookie",
)  # fmt: skip
# The last word of the name.
_SECRET_ENDS = frozenset({"pwd", "pw", "dsn", "auth", "bearer", "headers", "header", "pat", "jwt"})
# Words before `token` or `pass` that speak of text or of training.
_PLAIN_TOKENS = frozenset({
    "pad", "eos", "bos", "unk", "mask", "sep", "cls", "special", "max", "min", "num", "n", "per", "image", "video",
    "audio", "stop", "start", "end", "next", "new", "last", "first", "decoder", "prompt", "text", "unexpected",
})  # fmt: skip
_PLAIN_PASSES = frozenset(
    {"forward", "backward", "single", "multi", "one", "two", "first", "second", "n", "num", "per"}
)

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_NAME = r"[A-Za-z_][\w.-]{0,127}"
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_SCHEME = r"(?:(?:Bearer|Basic|Token|Digest|ApiKey|Negotiate)\s+)?"

# `scheme://user:password@`; the second form has a slash in the password, which is no port.
_USERINFO = re.compile(
    r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,30}://)"
    r"(?:[^\s/?#'\"<>]{1,512}@|[^\s/:@'\"<>]{0,512}:(?!\d{1,5}(?:[/?#]|$))[^\s@'\"<>]{1,512}@)"
)
_QUERY = re.compile(r"(?i)([?&](?:[\w-]{0,60}signature|[\w-]{0,60}credential|sig|key|code|access_key_id)=)[^&\s#'\"]+")
_ASSIGNED = re.compile(rf"(?<![\w.-])({_NAME})[\"']?\s{{0,8}}[=:]\s{{0,8}}")
_CONTENT = re.compile(rf"{_QUOTED}|{_SCHEME}[^\s,;&'\"\])}}]+")
_FLAG = re.compile(rf"(?<![\w-])(--?{_NAME})(\s{{1,8}})({_QUOTED}|[^\s'\"-][^\s'\"]*)")
_SCHEMED = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9+/._~=-]{8,}")
_SHAPES = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
        sk-[A-Za-z0-9_-]{16,} | hf_[A-Za-z0-9]{16,} | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{16,}
        | glpat-[A-Za-z0-9_-]{16,} | xox[abeprs]-[A-Za-z0-9-]{10,} | (?:AKIA|ASIA)[A-Z0-9]{16}
        | AIza[A-Za-z0-9_-]{30,} | pypi-[A-Za-z0-9_-]{16,} | dapi[0-9a-f]{32}
        | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?
    )""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[\s\S]*?(-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
)


def is_secret(name: str) -> bool:
    """Whether a value of this name (a flag, a variable, a header, a key) is to be hidden."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    joined = "".join(words)
    if any(part in joined for part in _SECRET_PARTS):
        return True
    last = words[-1]
    before = words[-2] if len(words) > 1 else ""
    if last.endswith("token"):
        return (last.removesuffix("token") or before) not in _PLAIN_TOKENS
    if last == "pass":
        return before not in _PLAIN_PASSES
    return last in _SECRET_ENDS


def text(message: str) -> str:
    """A message, a log line or a URL with every secret in it masked; all else stays as it is."""
    message = _PRIVATE_KEY.sub(rf"\1{MASK}\2", message)
    message = _USERINFO.sub(rf"\1{MASK}@", message)
    message = _QUERY.sub(rf"\1{MASK}", message)
    message = _FLAG.sub(_mask_flag, message)
    message = _mask_assigned(message)
    message = _SCHEMED.sub(rf"\1\2{MASK}", message)
    return _SHAPES.sub(MASK, message)


def value(name: str, content: str) -> str:
    """The value of a variable or a header: masked whole where its name is secret, else what `text()` leaves."""
    return MASK if content and is_secret(name) else text(content)


def argv(words: Iterable[str]) -> list[str]:
    """A command line with every secret masked; as many words as before, in their places."""
    masked: list[str] = []
    waiting = False  # the word before was a secret flag that wants a value
    for word in words:
        name, given, _ = word.partition("=")
        flag = word.startswith("-")
        if waiting and not flag:
            masked.append(MASK)
            waiting = False
            continue
        waiting = flag and not given and is_secret(name)
        secret = given and not re.search(r"[\s/:('\"{\[]", name) and is_secret(name)
        masked.append(f"{name}={MASK}" if secret else text(word))
    return masked


def _mask_assigned(message: str) -> str:
    """What is assigned to a secret name, masked; what follows a plain one (`login failed: password=…`) is looked at."""
    parts: list[str] = []
    done = start = 0
    while found := _ASSIGNED.search(message, start):
        start = found.end()
        content = _CONTENT.match(message, start) if is_secret(found[1]) else None
        if content is not None and content[0] != MASK:
            quote = content[0][0] if content[0][0] in "'\"" else ""
            parts += [message[done:start], f"{quote}{MASK}{quote}"]
            done = start = content.end()
    return "".join([*parts, message[done:]])


def _mask_flag(found: re.Match[str]) -> str:
    name, between, _ = found.groups()
    return f"{name}{between}{MASK}" if is_secret(name) else found[0]
