"""The end of a server while somebody is still being answered."""

from __future__ import annotations

import json
import signal
import socket
from urllib.parse import urlparse


def test_who_is_not_done_in_time_is_told_so(serve, folder, options):
    with serve(folder, *options, "--nowarm_up", "--drain_seconds=1.5", "--log_prompts") as server:
        where = urlparse(server.url)
        body = json.dumps({"prompt": "secret", "max_tokens": 900, "stream": True, "n": 4,
                           "ignore_eos": True}).encode()  # fmt: skip
        with socket.create_connection((where.hostname, where.port), timeout=60) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: long\r\n"
                b"Content-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            read = raw.makefile("rb")
            while not read.readline().startswith(b"data: "):
                pass
            server.process.send_signal(signal.SIGTERM)
            while (status := server.get("/ready")[0]) == 200:
                pass
            assert status == 503
            status, answer = server.post("/v1/completions", {"prompt": "x"})
            assert (status, answer["error"]["code"]) == (503, "stopping")
            events = [line for line in read if line.startswith(b"data: ")]
        assert server.process.wait(30) == 0
        assert json.loads(events[-1][6:])["error"]["code"] == "stopping"
    ended = [line for line in server.log if line.get("event") == "stopped"]
    assert ended and ended[0]["inside"] == 0
    (line,) = [line for line in server.log if line.get("id") == "long"]
    assert line["asked"]["prompt"] == "secret"  # as --log_prompts says
