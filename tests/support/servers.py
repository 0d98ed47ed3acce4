"""Servers that misbehave, on loopback: one that never answers, and a proxy that holds or loses answers."""

import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class SilentServer:
    """Takes connections and never says a word."""

    def __enter__(self) -> str:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Proxy:
    """Hands requests on to a port.

    Args:
        until: every answer waits for it.
        lose: so many answers to each path of a POST are lost: the server did what was asked, the client never hears.
    """

    def __init__(self, port: int, *, until: threading.Event | None = None, lose: int = 0) -> None:
        lost: dict[str, int] = {}

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                data = answer.read()
                if until is not None:
                    until.wait()
                path = self.path.split("?")[0]
                if self.command == "POST" and lost.get(path, 0) < lose:
                    lost[path] = lost.get(path, 0) + 1
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = answer

            def log_message(self, *_: Any) -> None: ...

        self.lost = lost
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"
