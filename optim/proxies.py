"""Which proxy of the environment stands between here and an address, for whoever cannot reach it.

Never its value, which may hold a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

_NETWORK = {
    "ClientConnectorError", "ClientHttpProxyError", "ClientProxyConnectionError", "ConnectError",
    "ConnectTimeout", "ConnectionError", "HTTPClientError", "LocalEntryNotFoundError",
    "ProxyError", "TimeoutError", "TimeoutException",
}  # fmt: skip
"""Of requests, httpx, aiohttp and botocore, by name, for none of them need be there."""


def proxy_between(address: str) -> str | None:
    """The variable that names the proxy by which an http(s):// address is asked; None for none."""
    from requests.utils import should_bypass_proxies

    scheme = urlsplit(address).scheme.lower()
    if scheme not in ("http", "https"):
        return None
    for kind in (scheme, "all"):
        for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY"):
            if name in os.environ:
                if not os.environ[name].strip():
                    break  # set to nothing: none
                return None if should_bypass_proxies(address, no_proxy=None) else name
    return None


def hub_address() -> str:
    """Where the hub is asked."""
    from huggingface_hub.constants import ENDPOINT

    return str(ENDPOINT)


def proxy_options(address: str) -> dict[str, Any]:
    """What fsspec has to be told so that it heeds the environment's proxies, as all others do."""
    is_http = address.startswith(("http://", "https://"))
    return {"client_kwargs": {"trust_env": True}} if is_http else {}


def proxy_words(address: str, error: BaseException | None = None) -> str:
    """A sentence that names the proxy between here and an address, with a space before it.

    Empty where there is none, and for an `error` that is not the network's.
    """
    if error is not None and not is_of_network(error):
        return ""
    name = proxy_between(address)
    if name is None:
        return ""
    host = urlsplit(address).hostname
    return (
        f" It was asked by way of the proxy in {name}: where that is wrong, add {host} to NO_PROXY"
    )


def is_of_network(error: BaseException) -> bool:
    """Whether an error, or what it came of, is that something was not reached."""
    return any(kind.__name__ in _NETWORK for each in _causes(error) for kind in type(each).__mro__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
