"""An S3 server on a loopback address, and a bad network in front of it: what the tests of object stores run against.

The server is moto's; its clients get made-up credentials and reach nothing else.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import fsspec

BUCKET = "bucket"
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"})
_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of the requests, 0 to 1, that go wrong, drawn from a seed. methods: only these; all if empty.

    refused: answered 503, not done. lost: done, the connection closed without a word. stalled: done after `stall_s`.
    """

    refused: float = 0.0
    lost: float = 0.0
    stalled: float = 0.0
    stall_s: float = 5.0
    methods: frozenset[str] = frozenset()
    seed: int = 0


class FaultyProxy:
    """Passes requests on to a server, or does to them what `faults` says. counts: what was done how often."""

    def __init__(self, host: str, port: int, faults: Faults | None = None) -> None:
        self._reset(faults)
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _TIMEOUT_S
            upstream: http.client.HTTPConnection | None = None

            def handle_one_request(self) -> None:
                # A client that gave up, as one that is told to have no patience does, is no news.
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def finish(self) -> None:
                with contextlib.suppress(ConnectionError, ValueError):
                    super().finish()
                if self.upstream is not None:
                    self.upstream.close()

            def pass_on(self) -> None:
                body = self._body()
                fault = proxy.draw(self.command, self.path)
                if fault == "refused" or fault[0].isdigit():
                    status, code = error_of(fault)
                    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>"
                    self._answer(status, {"Content-Type": "application/xml"}, text.encode())
                    return
                if fault == "stalled":
                    time.sleep(proxy.faults.stall_s)
                status, headers, answer = self._asked(host, port, body)
                if fault == "lost":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self._answer(status, headers, answer)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

            def _asked(self, host: str, port: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
                if self.upstream is None:
                    self.upstream = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
                dropped = _HOP_BY_HOP | proxy.dropped_headers
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                self.upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
                response = self.upstream.getresponse()
                answer = response.read()
                kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
                # The answer to HEAD has the length of the object and no body.
                length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(answer))
                return response.status, {**kept, "Content-Length": length or "0"}, answer

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def reset(self, faults: Faults | None = None) -> None:
        """Begin anew with other faults, at the same address."""
        self.__dict__.pop("draw", None)  # a test's own
        self._reset(faults)

    def _reset(self, faults: Faults | None) -> None:
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()
        self.dropped_headers: frozenset[str] = frozenset()  # of requests, in lower case
        self._dice = random.Random(self.faults.seed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def draw(self, method: str, path: str) -> str:
        """Return what happens to the next request: refused, lost, stalled, "STATUS CODE" for another refusal, or "passed"."""
        faults = self.faults
        with self._lock:
            drawn = self._dice.random()
            fault = "passed"
            if not faults.methods or method in faults.methods:
                for name in ("refused", "lost", "stalled"):
                    share = getattr(faults, name)
                    if drawn < share:
                        fault = name
                        break
                    drawn -= share
            self.counts[fault] += 1
        return fault

    @property
    def num_faults(self) -> int:
        return sum(count for name, count in self.counts.items() if name != "passed")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


def error_of(fault: str) -> tuple[int, str]:
    """Return the status and S3's code of a fault: "refused", or "STATUS CODE"."""
    status, _, code = fault.partition(" ")
    return (503, "ServiceUnavailable") if fault == "refused" else (int(status), code)


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Give the address of an S3 server with one bucket, that ends with the block."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        connection.request("PUT", f"/{BUCKET}", headers={"Authorization": "AWS made:up"})
        assert connection.getresponse().status == 200
        connection.close()
        yield host, port
    finally:
        server.stop()


def environment(endpoint_url: str, **config: object) -> dict[str, str]:
    """Return what a process needs to reach the server as s3://bucket. config: for botocore's client, as `read_timeout`."""
    options = {"endpoint_url": endpoint_url, **({"config_kwargs": config} if config else {})}
    return {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "FSSPEC_S3": json.dumps(options),
    }


@contextlib.contextmanager
def reachable(endpoint_url: str, **config: object) -> Iterator[None]:
    """Let this process and those it starts reach the server as s3://bucket, within the block. config: as in `environment`."""
    variables = environment(endpoint_url, **config)
    # fsspec read the environment when it was imported.
    settings = mock.patch.dict(fsspec.config.conf, s3=json.loads(variables["FSSPEC_S3"]))
    with mock.patch.dict(os.environ, variables), settings:
        yield
