"""Shards over the S3 API, of moto's server on the loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from shards import remote
from shards.batches.augment import Augment
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.folder import ShardFolder
from shards.schema import DataError

boto3 = pytest.importorskip("boto3", reason="needs the extra `test`: moto[server] and s3fs")
server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
botocore = pytest.importorskip("botocore.exceptions")
pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def bucket(endpoint, scenes, tmp_path, monkeypatch):
    """s3://shards with the train split, and its boto3 client."""
    host, port = endpoint.get_host_and_port()
    secrets = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "WSSS_CACHE": str(tmp_path / "cache"), **secrets}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.02)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for path in (scenes / "train").iterdir():
        client.upload_file(str(path), "shards", f"voc/train/{path.name}")
    yield client
    for item in client.list_objects_v2(Bucket="shards")["Contents"]:
        client.delete_object(Bucket="shards", Key=item["Key"])
    client.delete_bucket(Bucket="shards")


def batches(folder, workers):
    part = Slice(rank=0, ranks=1, global_batch_size=8)
    loader = iter(train_loader(ShardFolder(folder, "label"), Augment(size=16), seed=3, part=part, workers=workers))
    return [next(loader) for _ in range(6)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bucket_gives_the_batches_of_the_folder(bucket, scenes, workers):
    here, there = batches(scenes / "train", 0), batches("s3://shards/voc/train", workers)
    assert [batch["key"] for batch in there] == [batch["key"] for batch in here]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(here, there, strict=True))


def test_an_object_that_is_gone_or_was_changed_is_told(bucket):
    shards = ShardFolder("s3://shards/voc/train")
    body = bucket.get_object(Bucket="shards", Key="voc/train/train-00000.tar")["Body"].read()
    bucket.put_object(Bucket="shards", Key="voc/train/train-00000.tar", Body=body[:-1] + b"x")
    with pytest.raises(DataError, match="s3://shards/voc/train/train-00000.tar: not fetched after 9 tries .*sha256"):
        shards.image(0)
    bucket.delete_object(Bucket="shards", Key="voc/train/train-00000.tar")
    with pytest.raises(DataError, match="train-00000.tar: not fetched after 1 try .*FileNotFoundError"):
        shards.image(0)
    with pytest.raises(DataError, match="s3://nobucket/train/index.json: not fetched after 1 try"):
        ShardFolder("s3://nobucket/train")


class Refusing(BaseHTTPRequestHandler):
    """A store that refuses everything with one code."""

    status, code = 400, "ExpiredToken"

    def do_GET(self):
        data = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>No.</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "RequestTimeTooSkewed")])
def test_credentials_that_are_refused_are_told_at_once(status, code, monkeypatch):
    handler = type("Handler", (Refusing,), {"status": status, "code": code})
    store = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=store.serve_forever, args=(0.02,), daemon=True).start()
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.server_address[1]}", "AWS_SESSION_TOKEN": "old"}
    settings |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.05)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(DataError, match=r"not fetched after 1 try .*\(an expired token, a clock that is wrong"):
            ShardFolder("s3://bucket/train")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        store.shutdown()
        store.server_close()


@pytest.mark.parametrize(("code", "lasting"), [("ExpiredToken", True), ("RequestTimeout", False), ("SlowDown", False)])
def test_which_answers_of_s3_pass_by_their_code(code, lasting):
    answer = botocore.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "GetObject")
    error = OSError(22, "Bad Request")
    error.__cause__ = answer
    assert remote.is_lasting(error) == lasting and f"({code})" in remote.described(error)
