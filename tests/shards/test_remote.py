"""Shards over HTTP on the loopback, with failures; the cache; what a reader makes of both."""

import json
import os
import re
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from support.store import Store

from launcher.processes.group import GROUP_TIMEOUT
from shards import cache, remote
from shards.batches import waiting
from shards.batches.augment import Augment
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.cache import Cache, Wanted, release
from shards.digests import publish_noted, write_digests
from shards.folder import ShardFolder
from shards.image_bytes import encode_mask
from shards.index import Index
from shards.masks import MaskFolder
from shards.prefetch import Prefetch
from shards.remote import place_of
from shards.schema import DataError
from shards.verify import verify
from shards.write import write_tar

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*try . of")]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The folder of an empty cache; waits between tries are short."""
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.2)
    return tmp_path / "cache"


@pytest.fixture
def store(scenes, tmp_path, cached):
    store = Store(shutil.copytree(scenes, tmp_path / "store"))
    yield store
    store.stop()


def first_wanted(store):
    shard = Index.load(store.folder / "train").shards[0]
    return Wanted(url=f"{store.url}/train/{shard.name}", bytes=shard.bytes, sha256=shard.sha256)


def batches(folder, workers, steps=9):
    part = Slice(rank=0, ranks=1, global_batch_size=8)
    loader = iter(train_loader(ShardFolder(folder, "label"), Augment(size=16), seed=3, part=part, workers=workers))
    return [next(loader) for _ in range(steps)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_url_gives_the_batches_of_the_folder(store, scenes, workers):
    here, there = batches(scenes / "train", 0), batches(f"{store.url}/train/", workers)
    assert [batch["key"] for batch in there] == [batch["key"] for batch in here]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(here, there, strict=True))
    assert sorted(store.shards_asked()) == sorted(f"train/train-{n:05d}.tar" for n in range(12))  # each once


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "cut without a length", "flipped", "endless"])
def test_a_failure_that_passes_is_tried_again_and_changes_nothing(store, scenes, fault, caplog):
    store.faults = {"00000.tar": [fault, fault]}  # a reset connection is tried twice by aiohttp itself
    shards, local = ShardFolder(f"{store.url}/train"), ShardFolder(scenes / "train")
    assert shards.read(0, "jpg") == local.read(0, "jpg")
    assert re.search(r"train-00000.tar: try 1 of 9 failed \(.*; the next in 0\.\d s", caplog.messages[0])
    assert store.shards_asked() == ["train/train-00000.tar"] * 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", "not fetched after 9 tries in . s; last error: .*503.*check the store and the network"),
        ("403", "not fetched after 1 try in 0 s; last error: .*403.*check the address and the credentials"),
        ("flipped", "not fetched after 9 tries .*WrongBytes: its sha256 differs from the index"),
        (
            "cut without a length",
            r"not fetched after 9 tries .*WrongBytes: \d+ bytes arrived, but the index states \d+",
        ),
    ],
)
def test_a_failure_that_stays_is_told_with_address_tries_and_reason(store, cached, fault, message):
    store.faults = {"00000.tar": [fault] * 9}
    shards = ShardFolder(f"{store.url}/train")
    with pytest.raises(DataError, match=f"{store.url}/train/train-00000.tar: {message}"):
        shards.image(0)
    assert [path.name for path in cached.iterdir()] == [".lock"]  # no part, and nothing under a name that lies


def test_what_is_not_there_is_told_at_once(store):
    with pytest.raises(DataError, match=r"nowhere/index.json: not fetched after 1 try .*FileNotFoundError"):
        ShardFolder(f"{store.url}/nowhere")
    (store.folder / "train/train-00000.tar").unlink()
    with pytest.raises(DataError, match=r"train-00000.tar: not fetched after 1 try .*FileNotFoundError"):
        ShardFolder(f"{store.url}/train").image(0)
    with pytest.raises(DataError, match="not fetched after 1 try .*nosuch"):
        ShardFolder("nosuch://bucket/train")


def test_a_store_that_goes_away_is_waited_for(store, scenes, caplog):
    shards = ShardFolder(f"{store.url}/train")
    store.stop()
    back = threading.Timer(0.4, store.start)
    back.start()
    assert shards.read(0, "jpg") == ShardFolder(scenes / "train").read(0, "jpg")
    assert "try 1 of 9 failed" in caplog.text
    back.join()


def test_a_reader_that_outruns_the_network_waits(store, scenes):
    store.slow_s = 0.1  # per shard: the reader is far ahead of it
    here, there = batches(scenes / "train", 0, 6), batches(f"{store.url}/train", 2, 6)
    assert [batch["key"] for batch in there] == [batch["key"] for batch in here]
    assert len(store.shards_asked()) == 12


def test_data_sets_with_equal_shard_names_never_mix(store, scenes):
    other = store.folder / "other/train"
    shutil.copytree(scenes / "train", other)
    names = sorted(path.name for path in other.glob("*.tar"))
    for name, source in zip(names, sorted((scenes / "tune").glob("*.tar")), strict=True):
        shutil.copy(source, other / name)
    content = json.loads((scenes / "tune/index.json").read_text())
    for name, shard in zip(names, content["shards"], strict=True):
        shard["name"] = name
    (other / "index.json").write_text(json.dumps(content))
    first, second = ShardFolder(f"{store.url}/train"), ShardFolder(f"{store.url}/other/train")
    assert first.index.shards[0].name == second.index.shards[0].name
    for shards, folder in ((first, "train"), (second, "tune"), (first, "train")):
        assert shards.read(0, "jpg") == ShardFolder(scenes / folder).read(0, "jpg")


def test_a_second_run_fetches_nothing_but_the_index(store):
    batches(f"{store.url}/train", 0, 6)
    store.asked.clear()
    batches(f"{store.url}/train", 0, 6)
    assert set(store.asked) == {"train/index.json"}


def test_the_next_shards_are_fetched_before_they_are_read(store):
    shards = ShardFolder(f"{store.url}/train")
    part = Slice(rank=0, ranks=1, global_batch_size=1)
    next(iter(train_loader(shards, Augment(size=16), seed=3, part=part, workers=0)))
    until = time.monotonic() + 20
    while len(set(store.shards_asked())) < 12 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(store.shards_asked()) == 12 and len(shards._files) == 1  # one read, all of this window and the next here


def test_what_cannot_be_fetched_early_is_left_to_its_reader_and_a_newer_list_ends_an_older_one(tmp_path):
    tried, got = [], []

    class Files:
        def held(self, wanted):
            return None

        def fetch(self, wanted):
            tried.append((wanted, threading.current_thread().daemon))
            if wanted == "gone":
                raise DataError("gone")
            if wanted == "turn":
                early.ask("newer", ["newest"])
            got.append(os.open(tmp_path, os.O_RDONLY))
            return got[-1]

    def wait():
        while threads := [thread for thread in threading.enumerate() if thread.name.endswith("(work)")]:
            threads[0].join()

    early = Prefetch(Files())
    early.ask("older", ["gone", "turn", "late"])
    wait()
    early.ask("newer", ["newest"])  # is the newest already
    wait()
    assert tried == [("gone", True), ("turn", True), ("newest", True)]
    for descriptor in got:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_the_masks_of_the_next_shards_are_fetched_before_they_are_read(scenes, tmp_path, cached):
    shards, masks = ShardFolder(scenes / "train"), tmp_path / "masks"
    masks.mkdir()
    for shard in shards.index.shards:
        members = [(key, {"png": encode_mask(np.zeros((32, 32), np.uint8))}) for key in shard.keys]
        write_tar(masks / shard.name, members, lambda written, _, name=shard.name: publish_noted(written, masks / name))
    write_digests(masks, [shard.name for shard in shards.index.shards])
    there, part = MaskFolder(f"file://{masks}", shards), Slice(rank=0, ranks=1, global_batch_size=1)
    next(iter(train_loader(shards, Augment(size=16), seed=3, part=part, workers=0, mask_of=there)))
    wanted, until = {written.sha256 for written in there._written.values()}, time.monotonic() + 20
    while not wanted <= {path.name for path in cached.iterdir()} and time.monotonic() < until:
        time.sleep(0.02)
    assert len(wanted) == 12 and wanted <= {path.name for path in cached.iterdir()} and len(there._spans) == 1


def test_one_reader_fetches_and_the_others_wait(store, cached):
    store.slow_s = 0.3
    got = []
    wanted, own = first_wanted(store), Cache.from_environment()
    threads = [threading.Thread(target=lambda: got.append(own.open(wanted))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(got) == 4 and len(store.shards_asked()) == 1
    assert {os.fstat(descriptor).st_ino for descriptor in got} == {(cached / wanted.sha256).stat().st_ino}


def test_a_reader_that_was_killed_while_it_fetched_leaves_no_harm(store, cached):
    wanted, own = first_wanted(store), Cache.from_environment()
    own.part(wanted).write_bytes(b"half of it")
    release(own.open(wanted))
    assert sorted(path.name for path in cached.iterdir()) == sorted([".lock", wanted.sha256])


def test_a_process_that_hangs_while_it_fetches_is_told(store, monkeypatch):
    monkeypatch.setattr(cache, "STUCK_S", 0.2)
    wanted, own = first_wanted(store), Cache.from_environment()
    hanging = os.open(own.part(wanted), os.O_RDWR | os.O_CREAT)
    assert cache.try_lock(hanging, cache.fcntl.LOCK_EX, own.part(wanted))
    with pytest.raises(
        DataError, match=r"another process is fetching it .* 0 of \d+ bytes have arrived, none in the last 0 s"
    ):
        own.open(wanted)
    release(hanging)


def test_the_least_recently_used_make_room_but_nothing_in_use(store, cached):
    shards = Index.load(store.folder / "train").shards[:5]
    files = [Wanted(url=f"{store.url}/train/{s.name}", bytes=s.bytes, sha256=s.sha256) for s in shards]
    own = Cache(folder=cached, limit=3 * max(s.bytes for s in shards))
    (cached / "other").mkdir(parents=True)  # no file of the cache
    os.utime(cached / "other", (0, 0))
    held = own.open(files[0])
    for number, wanted in enumerate(files[1:3], start=1):
        release(own.open(wanted))
        os.utime(cached / wanted.sha256, (number, number))
    os.utime(cached / files[0].sha256, (0, 0))  # the oldest, but in use
    release(own.open(files[3]))
    assert {path.name for path in cached.iterdir()} == {".lock", "other", *(files[n].sha256 for n in (0, 2, 3))}
    release(held)
    os.utime(cached / files[2].sha256, (0, 0))
    release(own.open(files[2]))  # used now
    os.utime(cached / files[0].sha256, (1, 1))
    release(own.open(files[4]))
    assert {path.name for path in cached.iterdir()} == {".lock", "other", *(files[n].sha256 for n in (2, 3, 4))}


def test_a_shard_that_is_closed_may_make_room_though_a_fork_has_its_descriptor(store, cached, monkeypatch):
    monkeypatch.setattr("shards.folder.OPEN_REMOTE", 1)
    shards = ShardFolder(f"{store.url}/train")
    first, second = (cached / shard.sha256 for shard in shards.index.shards[:2])
    shards.read(0, "jpg")
    copy = os.dup(shards._files[0])
    assert not cache.remove_unused(first)
    shards.read(shards.numbers_of("train-00001.tar")[0], "jpg")
    assert cache.remove_unused(first) and not cache.remove_unused(second)
    os.close(copy)


def test_a_limit_that_cannot_hold_is_told_once_and_reading_goes_on(store, cached, monkeypatch, caplog):
    monkeypatch.setenv("WSSS_CACHE_GB", "0.00001")
    shards = ShardFolder(f"{store.url}/train")
    assert shards.image(0).shape == shards.image(len(shards) - 1).shape == (32, 32, 3)
    assert caplog.text.count("limit of 0.0 GB, which cannot be kept: raise WSSS_CACHE_GB") == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(
            ("WSSS_CACHE_GB", value, f"WSSS_CACHE_GB is '{value}'; wanted")
            for value in ("much", "0", "-1", "inf", "nan")
        ),
        ("WSSS_CACHE", "s3://bucket/cache", "WSSS_CACHE is s3://bucket/cache, a URL; name a folder"),
        ("WSSS_CACHE", "/dev/null/cache", "WSSS_CACHE: /dev/null/cache cannot be made"),
    ],
)
def test_what_cannot_be_a_cache_is_told(cached, monkeypatch, name, value, message):
    assert Cache.from_environment() == Cache(folder=cached, limit=50 * 10**9) and cached.is_dir()
    monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message):
        Cache.from_environment()


def test_a_cache_on_a_file_system_without_locks_is_told(store, monkeypatch):
    monkeypatch.setattr(cache, "take_lock", lambda *_, **__: None)
    with pytest.raises(DataError, match="this file system has no locks; name a folder on a local disk"):
        Cache.from_environment().open(first_wanted(store))


def test_a_cache_that_nobody_has_named_lies_at_home(tmp_path, monkeypatch):
    monkeypatch.delenv("WSSS_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache.from_environment().folder == tmp_path / ".cache/wsss"


def test_bytes_that_rot_in_the_cache_are_fetched_anew(store, cached, scenes):
    wanted = first_wanted(store)
    release(Cache.from_environment().open(wanted))
    assert not Cache.from_environment().drop_if_damaged(wanted) and (cached / wanted.sha256).exists()
    (cached / wanted.sha256).write_bytes(bytes(wanted.bytes))
    assert (ShardFolder(f"{store.url}/train").image(0) == ShardFolder(scenes / "train").image(0)).all()
    assert len(store.shards_asked()) == 2
    (cached / wanted.sha256).write_bytes(b"short")
    ShardFolder(f"{store.url}/train").image(0)
    assert len(store.shards_asked()) == 3


def test_verify_reads_every_shard_of_a_url(store, cached):
    assert verify(f"{store.url}/train").num_samples == 48
    release(Cache.from_environment().open(first_wanted(store)))  # whatever the cache holds
    store.faults = {"00000.tar": ["403"]}
    with pytest.raises(
        DataError, match="1 of 12 shards have changed since they were written:\n  train-00000.tar: .*403"
    ):
        verify(f"{store.url}/train")


def test_a_url_stays_as_it_is_and_holds_no_secret(tiny_config):
    config = tiny_config("classify", "data.train=s3://bucket/set/train", "data.val=data/val")
    assert config.data.train == "s3://bucket/set/train" and config.data.val == remote.Path("data/val")
    assert config.model_dump(mode="json")["data"]["train"] == "s3://bucket/set/train"
    for text in ("https://me:secret@host/train", "https://host/train?sig=secret", "", "http://[::1/x"):
        with pytest.raises(DataError) as told:
            place_of(text)
        assert "secret" not in str(told.value)


def test_what_cannot_get_better_is_not_tried_again():
    class NoCredentialsError(Exception):
        """botocore's, which is there only with wsss[s3]."""

    assert remote.is_lasting(NoCredentialsError()) and remote.is_lasting(PermissionError())
    assert not remote.is_lasting(ConnectionError()) and not remote.is_lasting(TimeoutError())


def test_a_cache_that_another_user_owns_is_told_as_such(store, cached, monkeypatch):
    def refuse(self, wanted, waited_s):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Cache, "fetch", refuse)
    with pytest.raises(DataError, match="WSSS_CACHE: .*Permission denied; .*; users who share it"):
        ShardFolder(f"{store.url}/train").image(0)


def test_each_wait_is_shorter_than_the_one_that_waits_for_it():
    """So the error that comes names the URL, the tries and the reason, and not a process that was late."""
    one_try_s = remote.CONNECT_S + remote.SILENCE_S
    assert remote.PATIENCE_S + one_try_s < cache.STUCK_S
    assert cache.STUCK_S + one_try_s < waiting.BATCH_S < GROUP_TIMEOUT.total_seconds()


def test_patience_ends_before_the_tries_where_each_takes_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    began = []

    def silent():
        began.append(now[0])
        now[0] += remote.CONNECT_S + remote.SILENCE_S
        raise TimeoutError("nothing came")

    for waited_s, tries in ((0.0, 3), (remote.PATIENCE_S, 1)):
        now[0], began[:] = 0.0, []
        with pytest.raises(DataError, match=rf"x/a.tar: not fetched after {tries} (try|tries) .*TimeoutError: nothing"):
            remote.patiently("http://x/a.tar", silent, waited_s=waited_s)
        assert max(began) + waited_s <= remote.PATIENCE_S


def test_a_reader_that_has_waited_for_another_one_has_less_patience_left(store, monkeypatch):
    left = []

    def give_up(url, target, size, sha256, *, waited_s):
        left.append(waited_s)
        raise DataError("given up")

    monkeypatch.setattr(cache, "download", give_up)
    monkeypatch.setattr(cache.Patience, "waited_s", lambda self: 123.0)
    with pytest.raises(DataError, match="given up"):
        ShardFolder(f"{store.url}/train").image(0)
    assert left == [123.0]


def test_a_trickle_is_no_answer(store, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.0)
    monkeypatch.setattr(remote, "SLOWEST", 1e12)
    with pytest.raises(DataError, match="not fetched after 9 tries .*bytes arrived in .*the store is too slow"):
        ShardFolder(f"{store.url}/train").image(0)


def test_the_proxy_of_the_environment_is_used(scenes, cached, monkeypatch):
    """As by curl and MLflow: the name need not be known here."""
    proxy = Store(scenes)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    try:
        assert ShardFolder("http://data.example.invalid/train").image(0).shape == (32, 32, 3)
    finally:
        proxy.stop()


def test_what_the_user_sets_for_fsspec_is_kept(monkeypatch):
    from fsspec.config import conf

    monkeypatch.setitem(conf, "http", {"client_kwargs": {"trust_env": False, "headers": {"a": "b"}}})
    client = remote.file_system("http://x/a")[0].client_kwargs
    assert client["headers"] == {"a": "b"} and client["trust_env"] is False and client["timeout"].sock_read == 60


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("gs://b/x", "gcsfs"),
        ("az://b/x", "adlfs"),
        ("abfss://box@account.dfs.core.windows.net/x", "adlfs"),
        ("s3://b/x", "'wsss[s3]'"),
    ],
)
def test_a_store_whose_package_is_missing_is_one_line_that_names_it(url, package, monkeypatch):
    def missing(protocol):
        raise ValueError("Protocol not known: abfss") if protocol == "abfss" else ImportError(f"no {protocol}")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    with pytest.raises(DataError) as told:
        ShardFolder(url)
    said = str(told.value)
    assert said.startswith(f"{url}/index.json: not fetched after 1 try") and "\n" not in said
    assert said.endswith(f"; install the store's library: pip install {package}")


def test_an_error_of_many_lines_is_told_on_one():
    said = remote.described(OSError("no libjvm\n" + "\n".join(f"looked at /{n}" for n in range(200))))
    assert "\n" not in said and said.startswith("OSError: no libjvm looked at /0") and len(said) < 520


def test_an_answer_of_azure_is_its_reason_and_its_code():
    said = "This request is not authorized.\nRequestId:54244cd5\nTime:2026\nContent: <?xml version='1.0'?><Error/>"
    denied = OSError(said)
    denied.status_code, denied.error_code = 403, "AuthorizationFailure"
    assert remote.described(denied) == "OSError: This request is not authorized. (AuthorizationFailure)"
    assert remote.is_lasting(denied)


def test_the_container_of_azure_is_no_user():
    assert place_of("abfss://box@account/x") == "abfss://box@account/x"
    for user in ("abfss://me:secret@account/x", "s3://me@b/x"):
        with pytest.raises(DataError, match="holds no user"):
            place_of(user)
