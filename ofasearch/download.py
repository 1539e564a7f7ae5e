"""Official checkpoints by name: fetched once, in pieces if need be, checked, and kept.

The publishers give no digests of their own. So a fetched file must have the size that the server announces and, where
the server or a mirror names a sha256, that digest; its digest is then written beside it, and every later use compares.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ofasearch.errors import FormatError, NotFoundError, WriteError
from ofasearch.records import cache_dir, file_digest, file_lock, read_json, write_json

MIRROR = "OFASEARCH_MIRROR"  # environment: a folder's address, tried before the published ones
SIZE_LIMIT = 2**30  # bytes; the largest official file has 200 MB
CHUNK = 2**18
TIMEOUT_SECONDS = 30.0
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True, slots=True)
class Official:
    """A published checkpoint: the space it was trained for, where it lies, and the page that tells of it."""

    space: str
    addresses: tuple[str, ...]
    page: str


_HUB = "https://huggingface.co/han-cai/ofa/resolve/main"
_FILES = "https://raw.githubusercontent.com/han-cai/files/master/ofa/ofa_nets"
_LARGE = "https://media.githubusercontent.com/media/han-cai/files/master/ofa/ofa_nets"  # what GitHub keeps outside its repositories
_RESNET50 = "ofa_resnet50_d0-1-2_e0.2-0.25-0.35_w0.65-0.8-1.0"
_COMPOFA = "https://raw.githubusercontent.com/gatech-sysml/CompOFA/master/ofa/checkpoints"


_PAGE = "https://github.com/mit-han-lab/once-for-all"


def _ofa(name: str, space: str) -> Official:
    return Official(space, (f"{_HUB}/{name}", f"{_FILES}/{name}"), _PAGE)


def _compofa(name: str, space: str) -> Official:
    return Official(space, (f"{_COMPOFA}/{name}",), "https://github.com/gatech-sysml/CompOFA")


OFFICIAL: dict[str, Official] = {
    "ofa_mbv3_d234_e346_k357_w1.0": _ofa("ofa_mbv3_d234_e346_k357_w1.0", "ofa-mbv3-w1.0"),
    "ofa_mbv3_d234_e346_k357_w1.2": _ofa("ofa_mbv3_d234_e346_k357_w1.2", "ofa-mbv3-w1.2"),
    "ofa_proxyless_d234_e346_k357_w1.3": _ofa("ofa_proxyless_d234_e346_k357_w1.3", "ofa-proxyless-w1.3"),
    "ofa_resnet50": Official("ofa-resnet50", (f"{_HUB}/ofa_supernet_resnet50", f"{_LARGE}/{_RESNET50}"), _PAGE),
    "model_best_compofa_simple.pth.tar": _compofa("model_best_compofa_simple.pth.tar", "compofa-mbv3-w1.0"),
    "model_best_compofa_simple_elastic.pth.tar": _compofa("model_best_compofa_simple_elastic.pth.tar", "compofa-mbv3-elastic-w1.0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadProgress:
    """Bytes that are here; `total` is None while the server has not said."""

    name: str
    done: int
    total: int | None


def official_path(name: str) -> Path:
    """Where the file of an official checkpoint is kept, fetched or put there by hand."""
    return cache_dir() / "official" / name


def fetch(name: str) -> Iterator[DownloadProgress | Path]:
    """Get an official checkpoint unless it is here already; an interrupted download goes on where it stopped.

    Raises NotFoundError (no address answers: the sentence says where to put the file by hand), FormatError (the file
    is not what was announced, or has changed since it came), WriteError.
    """
    target = official_path(name)
    with file_lock(target):
        if target.is_file():
            _check_known(target)
        else:
            yield from _fetch_any(name, target)
    yield target


def _fetch_any(name: str, target: Path) -> Iterator[DownloadProgress]:
    official = OFFICIAL[name]
    mirror = os.environ.get(MIRROR)
    addresses = (*([f"{mirror.rstrip('/')}/{name}"] if mirror else []), *official.addresses)
    reasons = []
    for address in addresses:
        try:
            yield from _fetch(name, address, target)
        except FormatError:  # a ValueError too; an address that sends something else is to be known, not passed over
            raise
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            reasons.append(f"{address}: {getattr(error, 'reason', None) or error}")
        else:
            return
    raise NotFoundError(
        f"{name} must be fetched, but no address answered ({'; '.join(reasons)}); get it by hand (see {official.page}) "
        f"and put it at {target}, or set {MIRROR} to a folder's address that has it"
    )


def _fetch(name: str, address: str, target: Path) -> Iterator[DownloadProgress]:
    """Fetch one address into `<target>.part`, check it and rename it."""
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.is_file() else 0
        request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            part.unlink()  # longer than the file on the server: of another version
            have, response = 0, urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS)
        with response:
            if getattr(response, "status", None) != http.HTTPStatus.PARTIAL_CONTENT:
                have = 0  # the server sends the whole file
            length = response.headers.get("Content-Length")
            total = have + int(length) if length is not None else None
            digest = _announced_digest(response.headers)
            if total is not None and total > SIZE_LIMIT:
                raise FormatError(f"{address} must have at most {SIZE_LIMIT >> 20} MiB, but announces {total >> 20}")
            with part.open("ab" if have else "wb") as file:
                done = have
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    if done > SIZE_LIMIT:
                        raise FormatError(f"{address} must have at most {SIZE_LIMIT >> 20} MiB, but sends more")
                    yield DownloadProgress(name=name, done=done, total=total)
        if total is not None and done != total:
            raise ConnectionError(f"the connection broke after {done:,} of {total:,} bytes; run the command again to go on")
        found = file_digest(part)
        wanted = digest or _sidecar_digest(address)
        if wanted is not None and found != wanted:
            part.unlink()
            raise FormatError(f"{address} must have sha256 {wanted}, but what came has {found}; it was thrown away, fetch it again")
        write_json(_card_path(target), {"address": address, "size": part.stat().st_size, "sha256": found, "announced": wanted})
        part.replace(target)
    except OSError as error:
        if isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError):
            raise
        raise WriteError(f"{part} must be writable, but it is not ({error.strerror or error}); set OFASEARCH_CACHE") from error


def _announced_digest(headers: http.client.HTTPMessage) -> str | None:
    """The sha256 that a server names: hubs of large files give it as the entity tag."""
    for name in ("X-Linked-ETag", "ETag"):
        match = _SHA256.fullmatch(headers.get(name, ""))
        if match:
            return match[1]
    return None


def _sidecar_digest(address: str) -> str | None:
    """The sha256 in `<address>.sha256`, where there is such a file."""
    try:
        with urllib.request.urlopen(f"{address}.sha256", timeout=TIMEOUT_SECONDS) as response:
            words = response.read(200).decode("ascii", "replace").split()
    except (OSError, http.client.HTTPException):
        return None
    match = _SHA256.fullmatch(words[0]) if words else None
    return match[1] if match else None


def _card_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _check_known(target: Path) -> None:
    """Compare a kept file with what was written when it came; a file put there by hand has no card and is taken as it is."""
    card = _card_path(target)
    if not card.is_file():
        return
    known = read_json(card)
    if not isinstance(known, dict) or known.get("size") != target.stat().st_size or known.get("sha256") != file_digest(target):
        raise FormatError(f"{target} must be the file that was fetched, but it has changed; delete it and {card.name} to fetch it again")
