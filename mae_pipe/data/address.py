"""Where a file lies that is not on this machine: a URL of a known kind, and nothing that could run anything."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from mae_pipe.errors import DataError, closest

EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az"}  # protocol -> what mae-pipe[...] brings for it
WEB = ("http", "https")
PROTOCOLS = (*WEB, *EXTRAS, "hf", "file")
_KEYS = re.compile(r"(https?://)(?:[^/?#\s]*@)?([^?\s'\"]*)(?:\?[^\s'\"]*)?")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.+)", re.DOTALL)


def is_url(text: str) -> bool:
    """Whether it is meant as a URL, and not as a path; also such as will be refused."""
    return "://" in text or text.startswith("pipe:")


def without_keys(text: str) -> str:
    """A text whose URLs have no password, and nothing after a ``?``, where keys are."""
    return _KEYS.sub(r"\1\2", text)


@dataclass(frozen=True)
class Address:
    """A URL. As text it has neither a password nor what follows a ``?``, where keys are."""

    url: str

    @classmethod
    def of(cls, text: str) -> Address:
        """Check a URL that a user, or a manifest, gave."""
        found = _URL.fullmatch(text)
        if found is None or "::" in found[1] or "::" in found[2].partition("?")[0]:
            raise DataError(f"{text!r} is no URL that can be read; expected one such as s3://bucket/shards")
        protocol = found[1].lower()
        if protocol not in PROTOCOLS:
            raise DataError(
                f"{protocol}:// is not read{closest(protocol, PROTOCOLS)}; shards may lie at {', '.join(PROTOCOLS)}, "
                "and no URL runs a command"
            )
        if any(ord(letter) < 32 for letter in text):
            raise DataError(f"{text!r} has control characters in it; expected a URL such as s3://bucket/shards")
        if protocol in WEB and not urlsplit(text).hostname:
            raise DataError(f"{text!r} names no host; expected a URL such as https://host/shards")
        return cls(f"{protocol}://{found[2].rstrip('/') if protocol not in WEB else found[2]}")

    @property
    def protocol(self) -> str:
        return self.url.partition("://")[0]

    def __truediv__(self, name: str) -> Address:
        """A file below; ``name`` may begin with ``..``."""
        if self.protocol in WEB:
            parts = urlsplit(self.url)
            return Address(urlunsplit(parts._replace(path=_below(parts.path or "/", quote(name)))))
        protocol, _, rest = self.url.partition("://")
        root, slash, path = ("", "", rest) if protocol == "file" else rest.partition("/")
        return Address(f"{protocol}://{root}{slash or '/' * bool(root)}{_below(path, name)}")

    @property
    def parent(self) -> Address:
        return self / ".."

    @property
    def name(self) -> str:
        """After the last slash."""
        return urlsplit(self.url).path.rpartition("/")[2]

    def __str__(self) -> str:
        return without_keys(self.url) if self.protocol in WEB else self.url.partition("?")[0]


def _below(path: str, name: str) -> str:
    whole = posixpath.normpath(posixpath.join(path, name))
    if whole.lstrip("/").split("/")[0] == "..":
        raise DataError(f"{name!r} leads out of what {path!r} is in; do not use these shards")
    return "" if whole == "." else whole
