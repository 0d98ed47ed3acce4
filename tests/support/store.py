"""A store of files over HTTP on this machine, which fails when it is told to."""

import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Store:
    """Serves the files below a folder.

    Attributes:
        url: of the folder.
        asked: paths below it, one per request, in order.
        faults: {end of a path: [fault, ...]}; each request takes the first of its list. See `Handler.FAULTS`.
        slow_s: before each answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.asked: list[str] = []
        self.faults: dict[str, list[str]] = {}
        self.slow_s = 0.0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.server.store = self  # type: ignore[attr-defined]
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections until the next start, on the same port."""
        self.server.shutdown()
        self.server.server_close()

    def fault_of(self, path: str) -> str | None:
        for end, faults in self.faults.items():
            if path.endswith(end) and faults:
                return faults.pop(0)
        return None

    def shards_asked(self) -> list[str]:
        return [path for path in self.asked if path.endswith(".tar")]


class Handler(BaseHTTPRequestHandler):
    FAULTS = ("503", "403", "reset", "cut", "cut without a length", "flipped", "endless")

    def do_GET(self) -> None:
        store: Store = self.server.store  # type: ignore[attr-defined]
        time.sleep(store.slow_s)
        here = urlsplit(self.path).path.lstrip("/")  # a proxy is asked for whole URLs
        store.asked.append(here)
        path, fault = store.folder / here, store.fault_of(here)
        if fault in ("503", "403") or not path.is_file():
            self.send_error(int(fault) if fault in ("503", "403") else 404)
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        data = path.read_bytes()
        if fault == "flipped":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        self.send_response(200)
        if fault not in ("cut without a length", "endless"):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data[: len(data) // 2] if fault and fault.startswith("cut") else data)
            while fault == "endless":
                self.wfile.write(bytes(1 << 16))
        except OSError:  # the reader has hung up
            pass

    def log_message(self, *_: object) -> None: ...
