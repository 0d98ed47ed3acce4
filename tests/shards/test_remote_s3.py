"""Shards over the S3 API, of moto's server on the loopback."""

from http.server import BaseHTTPRequestHandler

import pytest
import torch
from support.bucket import answering, bucket, point_at, served

from shards import remote
from shards.batches.augment import Augment
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.folder import ShardFolder
from shards.schema import DataError

for needed in ("boto3", "moto.server", "s3fs"):
    pytest.importorskip(needed, reason="needs the extra `test`: moto[server] and s3fs")
botocore = pytest.importorskip("botocore.exceptions")
pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def endpoint():
    with served() as url:
        yield url


@pytest.fixture
def train(endpoint, scenes, tmp_path, monkeypatch):
    """s3://shards with the train split, as its client."""
    point_at(endpoint, monkeypatch, WSSS_CACHE=str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.02)
    with bucket(endpoint, "shards") as client:
        for path in (scenes / "train").iterdir():
            client.upload_file(str(path), "shards", f"voc/train/{path.name}")
        yield client


def batches(folder, workers):
    part = Slice(rank=0, ranks=1, global_batch_size=8)
    loader = iter(train_loader(ShardFolder(folder, "label"), Augment(size=16), seed=3, part=part, workers=workers))
    return [next(loader) for _ in range(6)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bucket_gives_the_batches_of_the_folder(train, scenes, workers):
    here, there = batches(scenes / "train", 0), batches("s3://shards/voc/train", workers)
    assert [batch["key"] for batch in there] == [batch["key"] for batch in here]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(here, there, strict=True))


def test_an_object_that_is_gone_or_was_changed_is_told(train):
    shards = ShardFolder("s3://shards/voc/train")
    body = train.get_object(Bucket="shards", Key="voc/train/train-00000.tar")["Body"].read()
    train.put_object(Bucket="shards", Key="voc/train/train-00000.tar", Body=body[:-1] + b"x")
    with pytest.raises(DataError, match="s3://shards/voc/train/train-00000.tar: not fetched after 9 tries .*sha256"):
        shards.image(0)
    train.delete_object(Bucket="shards", Key="voc/train/train-00000.tar")
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
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.05)
    with answering(handler) as url:
        point_at(url, monkeypatch, AWS_SESSION_TOKEN="old")
        with pytest.raises(DataError, match=r"not fetched after 1 try .*\(an expired token, a wrong clock"):
            ShardFolder("s3://bucket/train")


@pytest.mark.parametrize(("code", "lasting"), [("ExpiredToken", True), ("RequestTimeout", False), ("SlowDown", False)])
def test_which_answers_of_s3_pass_by_their_code(code, lasting):
    answer = botocore.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "GetObject")
    error = OSError(22, "Bad Request")
    error.__cause__ = answer
    assert remote.is_lasting(error) == lasting and f"({code})" in remote.described(error)
