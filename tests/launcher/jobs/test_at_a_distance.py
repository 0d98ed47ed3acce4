"""Outputs of jobs in a bucket of S3: the bytes of a folder, whole or absent, compared, denied, missing."""

import json
import os
import re
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from support.bucket import KEYS, answering, body, bucket, keys, point_at, served
from support.places import environment
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.sections import RefineConfig
from launcher.doctor.places import outputs as looked_at
from launcher.errors import RunError
from launcher.evaluation.evaluate import evaluate
from launcher.files import OUTPUTS, place_masks, place_outputs
from launcher.jobs import output as jobs
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.run import folder
from shards import places, remote
from shards.folder import ShardFolder
from shards.masks import MaskFolder
from shards.schema import DataError

for needed in ("boto3", "moto.server", "s3fs"):
    pytest.importorskip(needed, reason="needs the extra `test`: moto[server] and s3fs")
pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore")]
SECRET = "AWS_SECRET_ACCESS_KEY"
CRF = RefineConfig(cams=("grad",), workers=1)
FAR = "s3://outputs/here"
MASKS = "here/student/masks/grad+crf/val"


@pytest.fixture(scope="module")
def endpoint():
    with served() as url:
        yield url


@pytest.fixture
def outputs(endpoint, in_tmp, monkeypatch):
    """The bucket that WSSS_OUTPUTS names, as its client."""
    point_at(endpoint, monkeypatch, WSSS_CACHE=str(in_tmp / "cache"), **{OUTPUTS: FAR})
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(remote, "TRIES", 2)
    with bucket(endpoint, "outputs") as client:
        yield client


def tars(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def bodies(client, folder):
    found = [key for key in keys(client, "outputs") if key.startswith(f"{folder}/")]
    return {key.rpartition("/")[2]: body(client, "outputs", key) for key in found}


def test_cams_masks_and_metrics_at_a_distance_are_those_of_a_folder(outputs, run, scenes, monkeypatch, capsys):
    assert infer(run, "val", scenes / "val") == f"{FAR}/student/cams/val"
    assert refine(run, ["val"], CRF) == [f"s3://outputs/{MASKS}"]
    report, there, val = evaluate(run, ["data.tune=null"]), bodies(outputs, MASKS), ShardFolder(scenes / "val")
    assert sorted(there) == ["job.json", "shards.json", *(f"val-{n:05d}.tar" for n in range(12))]
    assert not (run / "masks").exists() and not list(Path("cache").glob(".*.tmp"))
    masks = MaskFolder(place_masks("runs/student/masks/grad+crf/val"), val)
    far = [masks(number) for number in range(len(val))]

    with monkeypatch.context() as patch:
        patch.delenv(OUTPUTS)
        (folder,) = refine(run, ["val"], CRF)
        assert tars(folder) == {name: data for name, data in there.items() if name.endswith(".tar")}
        assert json.loads((folder / "shards.json").read_bytes()) == json.loads(there["shards.json"])
        near = MaskFolder(folder, val)
        assert all((far[number] == near(number)).all() for number in range(len(val)))
        assert evaluate(run, ["data.tune=null"])["sources"]["grad+crf"] == report["sources"]["grad+crf"]

    name, gone = f"{MASKS}/val-00003.tar", f"{MASKS}/val-00005.tar"
    at = there["val-00003.tar"].index(b"NUMPY") + 200  # in the scores, which decode as before
    flipped = there["val-00003.tar"][:at] + bytes([there["val-00003.tar"][at] ^ 1]) + there["val-00003.tar"][at + 1 :]
    outputs.put_object(Bucket="outputs", Key=name, Body=flipped)
    Path("cache", json.loads(there["shards.json"])["val-00003.tar"][1]).unlink()
    with pytest.raises(
        DataError, match=r"val-00003.tar: not fetched after 2 tries .* its sha256 differs from the index"
    ):
        masks(val.numbers_of("val-00003.tar")[0])
    outputs.delete_object(Bucket="outputs", Key=gone)  # as if its writer had been killed behind its note
    outputs.put_object(Bucket="outputs", Key=f"{MASKS}/.val-00005.json", Body=json.dumps([7, "0" * 64]).encode())
    Path("cache/.val-00005.tar.0123abcd.tmp").touch()
    refine(run, ["val"], CRF)
    assert {**there, "val-00003.tar.damaged": flipped} == bodies(outputs, MASKS)
    assert f"s3://outputs/{name}: its sha256 differs from what was written" in capsys.readouterr().err
    assert not list(Path("cache").glob(".*.tmp"))

    other = CRF.model_copy(update={"threshold": 0.5})
    with pytest.raises(RunError, match=rf"s3://outputs/{re.escape(MASKS)}: made with other settings \(threshold"):
        refine(run, ["val"], other)
    jobs.open_output(f"s3://outputs/{MASKS}", {"threshold": 0.5}, overwrite=True)
    assert {name: json.loads(data) for name, data in bodies(outputs, MASKS).items()} == {"job.json": {"threshold": 0.5}}


KILLED = """
import os, signal, sys
from pathlib import Path
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.sections import RefineConfig
from launcher.jobs.refine import refine
from shards import digests
plain, sent = digests.upload, []
def upload(here, url):
    sent.append(url)
    if len(sent) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(here, url)
digests.upload = upload
refine(Path("runs/student"), ["val"], RefineConfig(cams=("grad",), workers=1))
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_nothing_half_and_the_next_start_does_what_is_missing(outputs, run, scenes):
    infer(run, "val", scenes / "val")
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment(dict(os.environ)), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in bodies(outputs, MASKS) if name.endswith(".tar")] == ["val-00000.tar", "val-00001.tar"]
    assert len(list(Path("cache").glob(".val-00002.tar.*.tmp"))) == 1
    written = {name: data for name, data in bodies(outputs, MASKS).items() if name.endswith(".tar")}
    stamps = {name: outputs.head_object(Bucket="outputs", Key=f"{MASKS}/{name}")["LastModified"] for name in written}
    refine(run, ["val"], CRF)
    assert len(bodies(outputs, MASKS)) == 14 and not list(Path("cache").glob(".*.tmp"))
    for name in stamps:
        assert outputs.head_object(Bucket="outputs", Key=f"{MASKS}/{name}")["LastModified"] == stamps[name]


def test_parts_that_nobody_sends_any_more_are_dropped(outputs, monkeypatch):
    assert [found.state for found in looked_at()] == ["ok"] and keys(outputs, "outputs") == []
    begun = [outputs.create_multipart_upload(Bucket="outputs", Key=key) for key in ("here/a/x.tar", "here/ab/x.tar")]
    with monkeypatch.context() as patch:
        patch.setattr(places, "FORGOTTEN_S", 1e12)  # moto says that they were begun in 2010
        places.forget_parts("s3://outputs/here/a")
    assert len(outputs.list_multipart_uploads(Bucket="outputs")["Uploads"]) == 2  # they may still be sent
    places.forget_parts("s3://outputs/here/a")
    assert [one["Key"] for one in outputs.list_multipart_uploads(Bucket="outputs")["Uploads"]] == ["here/ab/x.tar"]
    outputs.abort_multipart_upload(Bucket="outputs", Key="here/ab/x.tar", UploadId=begun[1]["UploadId"])


class ReadOnly(BaseHTTPRequestHandler):
    """An empty bucket that nobody may write to."""

    protocol_version = "HTTP/1.1"  # which says "100 Continue" to who sends a body

    def do_GET(self):
        self.answer(200 if "list-type" in self.path else 404, "<ListBucketResult></ListBucketResult>")

    def do_HEAD(self):
        self.answer(404, "")

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def test_a_store_that_may_not_be_written_to_is_told_at_once_without_its_keys(outputs, monkeypatch):
    with answering(ReadOnly) as url:
        point_at(url, monkeypatch)
        with pytest.raises(DataError) as refused:
            jobs.open_output(f"{FAR}/run/cams/val", {"fingerprint": "x"})
        (found,) = looked_at()
    said = str(refused.value)
    assert said.startswith(f"{FAR}/run/cams/val/job.json: not written after 1 try") and KEYS[SECRET] not in said
    assert found.state == "fail" and "Access Denied" in found.found
    assert "Access Denied" in said and "these credentials may write to it" in said


def test_a_bucket_that_is_not_there_is_told_before_anything_is_made(outputs, run, scenes, monkeypatch):
    monkeypatch.setenv(OUTPUTS, "s3://nobucket/here")
    with pytest.raises(DataError, match=r"s3://nobucket/here/student/cams/val/job.json: not written after 1 try .*"
                       "The specified bucket does not exist .*; see that the bucket is there"):  # fmt: skip
        infer(run, "val", scenes / "val")
    with pytest.raises(RunError, match="no CAMs or masks of 'val' here"):
        evaluate(run)


def test_two_that_begin_at_once_with_other_settings_are_told_apart(outputs, monkeypatch):
    plain = jobs.create_at

    def late(place, content):
        monkeypatch.setattr(jobs, "create_at", plain)
        places.write_at(place, '{"threshold": 0.3}')
        plain(place, content)

    monkeypatch.setattr(jobs, "create_at", late)
    with pytest.raises(RunError, match=r"made with other settings \(threshold: 0.3, now 0.6\)"):
        jobs.open_output(f"{FAR}/x", {"threshold": 0.6})


def test_where_outputs_lie(in_tmp, monkeypatch):
    run = Path("runs/demo/x")
    assert place_outputs(run / "cams") == run / "cams"
    for asked, found in (("s3://b/r/", "s3://b/r/demo/x/cams"), ("/scratch/r", Path("/scratch/r/demo/x/cams"))):
        monkeypatch.setenv(OUTPUTS, asked)
        assert place_outputs(run / "cams") == found
    monkeypatch.setenv(OUTPUTS, "s3://b/r")
    assert place_masks("runs/demo/x/masks/m/train") == "s3://b/r/demo/x/masks/m/train"
    assert place_masks("s3://c/m") == "s3://c/m" and place_masks("elsewhere/m") == Path("elsewhere/m")
    with pytest.raises(DataError, match=r"/elsewhere/x: lies outside .*/runs, .* WSSS_OUTPUTS=s3://b/r"):
        place_outputs(Path("/elsewhere/x"))
    with pytest.raises(DataError, match=r"//\.\.\.@b/r: a URL of shards holds no user"):
        monkeypatch.setenv(OUTPUTS, "s3://me:secret@b/r")
        place_outputs(run)
    with pytest.raises(DataError, match=r"http://b/r/demo/x: outputs are written to a folder or to an object store"):
        jobs.open_output("http://b/r/demo/x", {})


def test_what_must_lie_on_this_machine_is_not_written_to_a_folder_named_s3(in_tmp, tiny_config, monkeypatch):
    for line in (
        ["shards", "synthetic", "--out", "s3://b/data"],
        ["infer", "s3://b/runs/x"],
        ["report", "s3://b/runs"],
        ["predict", "x.jpg", "--model", "x", "--out", "s3://b/seen"],
        ["export", "x", "--out", "s3://b/x.onnx"],
        ["init", "s3://b/project"],
    ):
        error = CliRunner().invoke(app, line).exception
        assert isinstance(error, DataError) and str(error).startswith("s3://b/"), (line, error)
    monkeypatch.setattr(folder, "RUNS", Path("s3://b/runs"))
    with pytest.raises(DataError, match="s3://b/runs: must be a local path"):
        folder.run_folder(tiny_config("classify"))
    assert not Path("s3:").exists()


def test_no_password_of_an_address_is_told():
    error = OSError('Could not connect to the endpoint URL: "http://me:secret@store:9/b"')
    assert remote.described(error) == 'OSError: Could not connect to the endpoint URL: "http://...@store:9/b"'
