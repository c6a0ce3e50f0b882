"""Secrets, found and struck out of text that is kept: addresses with passwords, and the values of
environment variables whose names say that they are secret."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

STRUCK_OUT = "[redacted]"
_SECRET_NAME = re.compile(r"TOKEN|SECRET|KEY|PASSW|CREDENTIAL", re.IGNORECASE)
_NOT_SECRET = re.compile(r"^TOKENIZERS_|_(PATH|FILE|DIR|MODE|ID)$", re.IGNORECASE)
_MIN_LENGTH = 8
"""Of a value that is taken for a secret: what is shorter stands in every text by chance."""
# user:password@, but not the @ of a revision in a path.
_USER_INFO = re.compile(r"(?<=://)[^\s/?#:@\"']*:[^\s/?#@\"']+(?=@)")
_QUERY = re.compile(
    r"(?<=[?&])(X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|"
    r"AWSAccessKeyId|Signature|sig|token|access_token|api_?key|password|secret)=[^&\s\"'#]+",
    re.IGNORECASE,
)


def secret_values(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Value -> name of the environment's variables that hold secrets, the longest value first.

    What is a place (`/…`, `./…`, `~…`) is where a secret lies, and none.
    """
    found = {
        value: name
        for name, value in (os.environ if environment is None else environment).items()
        if _SECRET_NAME.search(name) and not _NOT_SECRET.search(name)
        if len(value) >= _MIN_LENGTH and not value.startswith(("/", "./", "~"))
    }
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


class Redaction:
    """Strikes out the secrets of the environment as it was when this was made."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        values = secret_values(environment)
        # As they are, and as they stand within JSON.
        self._values = [t for v in values for t in dict.fromkeys((v, json.dumps(v)[1:-1]))]

    def __call__(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, STRUCK_OUT)
        return strike_out_credentials(text)


def strike_out_credentials(text: str) -> str:
    """The text without passwords and signatures in its addresses."""
    text = _USER_INFO.sub(STRUCK_OUT, text)
    return _QUERY.sub(lambda match: f"{match[1]}={STRUCK_OUT}", text)


def secret_in(text: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What is secret in a text, in words that do not repeat it; None where nothing is."""
    if _USER_INFO.search(text):
        return "a user name and a password"
    query = _QUERY.search(text)
    if query is not None:
        return f"a signature or token (`{query[1]}=…`)"
    for value, name in secret_values(environment).items():
        if value in text:
            return f"the value of the environment variable {name}"
    return None
