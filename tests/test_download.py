"""Official checkpoints come once, whole and checked, from a server that breaks off, lies, or is not there."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from makers import official_state

from ofasearch import download, zoo
from ofasearch.cli.main import run
from ofasearch.download import OFFICIAL, DownloadProgress, fetch, official_path
from ofasearch.errors import FormatError, NotFoundError, WriteError
from ofasearch.space.families import find_design

NAME = "ofa_mbv3_d234_e346_k357_w1.0"
CONTENT = np.random.default_rng(0).bytes(1_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A folder of files on this machine, and how it misbehaves."""

    address: str = ""
    files: dict = field(default_factory=dict)
    headers: dict = field(default_factory=dict)
    ranges: bool = True
    breaks_after: int | None = None  # bytes of the next answer
    claims: int | None = None  # Content-Length
    requests: list = field(default_factory=list)  # (path, Range)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The only server that the package knows."""
    state = Server(files={NAME: CONTENT})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            content = state.files.get(self.path.removeprefix("/"))
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            body = content[start:]
            for key, value in ({"Content-Length": str(state.claims or len(body))} | state.headers).items():
                if value is not None:
                    self.send_header(key, value)
            self.end_headers()
            if self.path.endswith(NAME) and state.breaks_after is not None:
                body, state.breaks_after = body[: state.breaks_after], None
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.address = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("OFASEARCH_MIRROR", raising=False)
        for name, official in OFFICIAL.items():
            monkeypatch.setitem(OFFICIAL, name, replace(official, addresses=(f"{state.address}/{name}",)))
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 5.0)
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        yield state
        listening.shutdown()
        thread.join()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_published_address_is_asked_here(server):
    assert all(a.startswith(server.address) for official in OFFICIAL.values() for a in official.addresses)


# -- what comes ------------------------------------------------------------------------------------------------


def test_a_whole_download_is_kept_with_its_card(server):
    *progress, path = fetch(NAME)
    assert path == official_path(NAME)
    assert path.read_bytes() == CONTENT
    assert all(isinstance(p, DownloadProgress) and p.total == len(CONTENT) for p in progress)
    assert [p.done for p in progress] == sorted({p.done for p in progress})
    assert progress[-1].done == len(CONTENT)
    card = json.loads(path.with_name(f"{NAME}.json").read_text())
    assert card == {"address": f"{server.address}/{NAME}", "size": len(CONTENT), "sha256": DIGEST, "announced": None}
    assert {p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")} == {NAME, f"{NAME}.json"}


def test_what_is_here_is_not_asked_for_again(server):
    list(fetch(NAME))
    asked = len(server.requests)
    assert list(fetch(NAME)) == [official_path(NAME)]
    assert len(server.requests) == asked


@pytest.mark.parametrize("ranges", [True, False], ids=["goes on", "begins again"])
def test_an_interrupted_download_gives_the_right_bytes(server, ranges):
    server.breaks_after, server.ranges = 400_000, ranges
    with pytest.raises(NotFoundError, match=r"broke after 400,000 of 1,000,000 bytes; run the command again to go on|Incomplete"):
        list(fetch(NAME))
    assert not official_path(NAME).exists()
    progress = list(fetch(NAME))
    assert official_path(NAME).read_bytes() == CONTENT
    assert [wanted for path, wanted in server.requests if path.endswith(NAME)] == [None, "bytes=400000-"]
    assert (progress[0].done > 400_000) is ranges
    assert progress[-2].done == progress[-2].total == len(CONTENT)


def test_an_interrupt_by_the_user_keeps_what_came(server):
    events = fetch(NAME)
    first = next(events)
    events.close()
    list(fetch(NAME))
    assert server.requests[1][1] == f"bytes={first.done}-"
    assert official_path(NAME).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_of_another_version(server):
    part = official_path(f"{NAME}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (len(CONTENT) + 5))
    list(fetch(NAME))
    assert official_path(NAME).read_bytes() == CONTENT


def test_a_server_that_tells_no_length_is_read_to_the_end(server):
    server.headers = {"Content-Length": None}
    progress = list(fetch(NAME))
    assert progress[0].total is None
    assert official_path(NAME).read_bytes() == CONTENT


def test_a_mirror_comes_first_and_the_published_address_next(server, monkeypatch):
    server.files[f"mirror/{NAME}"] = b"of the mirror"
    monkeypatch.setenv("OFASEARCH_MIRROR", f"{server.address}/mirror/")
    list(fetch(NAME))
    assert official_path(NAME).read_bytes() == b"of the mirror"
    official_path(NAME).unlink()
    monkeypatch.setenv("OFASEARCH_MIRROR", f"http://127.0.0.1:{closed_port()}")
    list(fetch(NAME))
    assert official_path(NAME).read_bytes() == CONTENT


# -- what must not be kept -------------------------------------------------------------------------------------


def test_another_size_than_announced_is_not_kept(server):
    server.claims = len(CONTENT) + 10
    with pytest.raises(NotFoundError, match=r"broke after 1,000,000 of 1,000,010 bytes|Incomplete"):
        list(fetch(NAME))
    assert not official_path(NAME).exists()


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag"])
def test_the_digest_in_a_header_is_compared(server, header):
    server.headers = {header: f'"{DIGEST}"'}
    list(fetch(NAME))
    assert json.loads(official_path(f"{NAME}.json").read_text())["announced"] == DIGEST
    official_path(NAME).unlink()
    server.headers = {header: f'"{"0" * 64}"'}
    with pytest.raises(FormatError, match=rf"must have sha256 0{{64}}, but what came has {DIGEST}; it was thrown away"):
        list(fetch(NAME))
    assert not official_path(NAME).exists()
    assert not official_path(f"{NAME}.part").exists()


def test_other_tags_are_no_digests(server):
    server.headers = {"ETag": 'W/"5f3-abc"'}
    list(fetch(NAME))
    assert official_path(NAME).read_bytes() == CONTENT


def test_the_digest_beside_a_file_is_compared(server):
    server.files[f"{NAME}.sha256"] = f"{DIGEST}  {NAME}\n".encode()
    list(fetch(NAME))
    official_path(NAME).unlink()
    server.files[f"{NAME}.sha256"] = b"1" * 64
    with pytest.raises(FormatError, match=r"must have sha256 1{64}, but what came has"):
        list(fetch(NAME))
    assert not official_path(NAME).exists()


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_of_gigabytes_is_refused(server, monkeypatch, announced):
    monkeypatch.setattr(download, "SIZE_LIMIT", 2**19)
    server.headers = {} if announced else {"Content-Length": None}
    with pytest.raises(FormatError, match="must have at most 0 MiB, but"):
        list(fetch(NAME))
    assert not official_path(NAME).exists()


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:500] + b"x" + c[501:], lambda _: b""], ids=["cut", "flipped", "empty"])
def test_a_file_that_changed_since_is_refused(server, change):
    list(fetch(NAME))
    official_path(NAME).write_bytes(change(CONTENT))
    with pytest.raises(FormatError, match=rf"must be the file that was fetched, but it has changed; delete it and {NAME}\.json"):
        list(fetch(NAME))


def test_a_file_put_there_by_hand_is_taken(server):
    official_path(NAME).parent.mkdir(parents=True)
    official_path(NAME).write_bytes(b"by hand")
    assert list(fetch(NAME)) == [official_path(NAME)]
    assert server.requests == []


def test_no_network_is_one_sentence_with_the_place(server, monkeypatch, capsys):
    monkeypatch.setitem(OFFICIAL, NAME, replace(OFFICIAL[NAME], addresses=(f"http://127.0.0.1:{closed_port()}/{NAME}", "nonsense")))
    assert run(["supernet", "show", NAME]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for text in ("no address answered", "refused", str(official_path(NAME)), OFFICIAL[NAME].page, "OFASEARCH_MIRROR"):
        assert text in err


def test_a_name_that_the_server_lacks_is_told(server):
    server.files.clear()
    with pytest.raises(NotFoundError, match="Not Found"):
        list(fetch(NAME))


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(WriteError, match=r"must be writable, but it is not \(Not a directory\); set OFASEARCH_CACHE"):
        list(fetch(NAME))


def test_two_processes_fetch_one_file_once(server, tmp_path):
    code = (
        "from ofasearch import download\nfrom dataclasses import replace\n"
        f"o = download.OFFICIAL\no['{NAME}'] = replace(o['{NAME}'], addresses=('{server.address}/{NAME}',))\n"
        f"*_, path = download.fetch('{NAME}')\nprint(download.file_digest(path))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [DIGEST, DIGEST]
    assert [path for path, _ in server.requests if path.endswith(NAME)] == [f"/{NAME}"]


# -- by name, from the command line ----------------------------------------------------------------------------


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """Puts a checkpoint with few classes and random weights on the server, under one of the published names."""

    def put(name):
        if OFFICIAL[name].space == "ofa-resnet50":  # 200 MB
            monkeypatch.setitem(OFFICIAL, name, replace(OFFICIAL[name], space="ofa-resnet50-cifar"))
        torch.save({"state_dict": official_state(find_design(OFFICIAL[name].space).parent or OFFICIAL[name].space)}, tmp_path / "x.pth")
        server.files[name] = (tmp_path / "x.pth").read_bytes()
        return server

    return put


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "ofa_mbv3_d234_e346_k357_w1.2"])
def test_an_official_name_is_fetched_checked_and_shown(published, capsys, tmp_path, monkeypatch, name):
    server = published(name)
    monkeypatch.chdir(tmp_path)
    assert run(["supernet", "check", name, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["space"], checked["classes"], checked["missing"]) == (OFFICIAL[name].space, 3, [])
    assert run(["supernet", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == checked["digest"] == zoo.load_supernet(name).weights.digest
    assert run(["supernet", "list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["official"]}
    assert {n for n, entry in listed.items() if entry["fetched"]} == {name}
    assert len([path for path, _ in server.requests if path == f"/{name}"]) == 1


def test_every_family_has_an_official_name():
    assert {"ofa-mbv3-w1.0", "ofa-mbv3-w1.2", "ofa-proxyless-w1.3", "ofa-resnet50"} <= {official.space for official in OFFICIAL.values()}


def test_find_fetches_what_it_searches(published, capsys, tmp_path):
    name = "model_best_compofa_simple.pth.tar"
    published(name)
    assert run(["find", "--supernet", name, "--flops", "300M", "--out", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert f"fetching {name} ..." in err
    assert err.splitlines()[-1].startswith("ofasearch: a search of compofa-mbv3-w1.0 needs an accuracy predictor, but none was given")
    assert official_path(name).is_file()
