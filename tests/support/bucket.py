"""A bucket of S3 on this machine: moto's server, stores that refuse, and what a process must know to find them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def served(address: str = "127.0.0.1") -> Iterator[str]:
    """The URL of a server that runs as long as the block."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server that answers by `handler` as long as the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Let AWS_... say that S3 is there. s3fs keeps its clients by their arguments, so it is made to forget others."""
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint, **variables}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def bucket(endpoint: str, name: str):
    """An empty bucket, as its client; nothing of it stays. AWS_... must say where it is."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=name)
    try:
        yield client
    finally:
        for key in keys(client, name):
            client.delete_object(Bucket=name, Key=key)
        client.delete_bucket(Bucket=name)


def keys(client, name: str) -> list[str]:
    return sorted(item["Key"] for item in client.list_objects_v2(Bucket=name).get("Contents", []))


def body(client, name: str, key: str) -> bytes:
    return client.get_object(Bucket=name, Key=key)["Body"].read()
