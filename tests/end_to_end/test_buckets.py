"""Datasets in buckets, with the real commands: what is asked of the service, what it is told, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import ssl
import subprocess
import sys
import threading

import boto3
import pytest

import publisher as library
from publisher.copies import copies_of
from publisher.keys import Keyring
from publisher.publish import Options, publish
from publisher.serve import make_server
from publisher.sources.folder import FolderSource
from puller.errors import FetchError, NotFound, Refused, Unavailable
from puller.fetch import open_fetcher
from puller.replica import Replica
from puller.stores import PUTS, open_store
from puller.stores.base import StoreError
from puller.stores.s3 import S3Store
from tests.buckets import KEYS, NO_SETTINGS, s3_client, start_moto, start_proxy
from tests.conftest import lines, publisher, puller, tree


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(2000):
        (folder / f"{n:04}.json").write_text(json.dumps({"number": n, "text": f"the text of number {n}"}))
    return folder


def test_many_small_files_take_few_requests(bucket, source, tmp_path):
    dest = f"{bucket.url}/data/files"
    publisher("publish", source, dest)
    assert (
        len(bucket.proxy.requests) * 20 <= 1000
    )  # a tool that copies files asks at least once for each: here half of them
    bucket.proxy.requests.clear()

    done = publisher("publish", "--no-cache", source, dest)
    assert "nothing new" in done.out
    assert {request.method for request in bucket.proxy.requests} == {"GET"}
    bucket.proxy.requests.clear()

    for version in range(2, 4):
        changed = random.Random(version).sample(range(2000), 20)
        for n in changed:
            (source / f"{n:04}.json").write_text(json.dumps({"number": n, "text": f"changed for {version}"}))
        publisher("publish", source, dest)
        assert len(bucket.proxy.requests) <= len(changed) + 5
        bucket.proxy.requests.clear()

    assert puller("pull", "--json", dest, tmp_path / "copy").json["requests"] == len(bucket.proxy.requests)
    assert tree(tmp_path / "copy") == tree(source)
    bucket.proxy.requests.clear()
    puller("pull", dest, tmp_path / "copy")
    assert [(request.method, request.status) for request in bucket.proxy.requests] == [("GET", 304)]


@pytest.mark.parametrize(
    ("kept", "patched", "last"),
    [
        (True, False, 20),
        pytest.param(True, False, 130, marks=pytest.mark.slow),
        pytest.param(True, True, 130, marks=pytest.mark.slow),
        pytest.param(False, False, 130, marks=pytest.mark.slow),
    ],
)
def test_one_changed_file_takes_few_requests_however_long_history_is(bucket, tmp_path, kept, patched, last):
    """HEAD, its diff, two HEADs; the file's chunk once, later a look at a file; now and then a wider diff, or the log.

    What the last process left behind is `kept`, or not: then as much is read as a first pull does, and the log and the
    key set. Where old and new are alike, the diff is `patched`.
    """
    folder, dest = tmp_path / "source", f"{bucket.url}/data/files"
    folder.mkdir()
    for n in range(100):
        (folder / str(n)).write_bytes(random.Random(n).randbytes(4000 if patched else 200))

    def requests(version):
        """What publishing a change takes: in all, and of these what puts chunks, diffs, patches, and the log."""
        name = folder / str(version % 100)
        data = name.read_bytes()
        name.write_bytes(b"%010d" % version + (data[10:] if patched else b""))
        for found in folder.iterdir():
            os.utime(found, (version, version))  # all look different: nothing but files of the bucket is remembered
        bucket.proxy.requests.clear()
        store = open_store(dest, kept=copies_of(dest) if kept else None)
        publish(store, lambda *_: FolderSource(str(folder)), "files", Options(), keyring=Keyring())
        made = bucket.proxy.requests
        assert version == 1 or {request.status for request in made} == {200}
        return len(made), sum(request.method == "PUT" and ".zst" in request.path for request in made)

    requests(1)
    counts = {version: requests(version) for version in range(2, last + 1)}
    if kept:
        limit = 1 + 5 + patched
        assert {version: n for version, n in counts.items() if n[0] > limit or n[0] - n[1] > 4} == {}
        assert sum(n[0] for n in counts.values()) / len(counts) < 5.6 + patched / 2
    else:
        limit = {version: 1 + 5 + 2 + 3 + 7 * math.log(version, 8) for version in counts}
        assert {version: n for version, n in counts.items() if n[0] > limit[version]} == {}


def test_copies_on_this_machine_do_not_hide_what_the_bucket_lost(bucket, tmp_path):
    """Each publish looks for one of the files that it took from here: soon the missing one is found, and put back."""
    folder, dest = tmp_path / "source", f"{bucket.url}/data/files"
    folder.mkdir()
    for n in range(5):
        (folder / str(n)).write_bytes(random.Random(n).randbytes(200))

    def change(number, check=None):
        (folder / str(number % 5)).write_text(f"changed by {number}")
        return publisher("publish", "--json", folder, dest, check=check)

    publisher("publish", folder, dest)
    change(1, check=0)
    (chunk,) = (key for key in bucket.listed() if "/chunks/" in key)
    bucket.client.delete_object(Bucket=bucket.name, Key=chunk)
    done = next(done for n in range(2, 60) if (done := change(n)).status)
    assert done.status == 5
    assert f"{chunk.removeprefix('data/files/')} was missing in" in done.err
    assert "put back" in done.err
    assert chunk in bucket.listed()
    assert change(61, check=0).json["changed"]
    puller("pull", dest, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(folder)


def test_what_is_put_says_how_long_it_keeps_and_what_it_is(bucket, tmp_path):
    dest = f"{bucket.url}/data"
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    publisher("publish", tmp_path / "rows.jsonl", dest, "--key", "a", "--max-age", "60")
    (tmp_path / "rows.jsonl").write_text('{"a": 2}\n{"a": 1}\n')
    publisher("publish", "--no-cache", tmp_path / "rows.jsonl", dest)
    keys = bucket.listed()
    assert {key.split("/")[1] for key in keys} == {"HEAD", "heads", "trust", "chunks", "diffs"}
    for key in keys:
        found = bucket.client.get_object(Bucket=bucket.name, Key=key)
        kept = "max-age=60, stale-while-revalidate=120" if key == "data/HEAD" else "max-age=31536000, immutable"
        assert kept in found["CacheControl"]
        assert found["ContentType"] == (
            "application/octet-stream" if key.endswith(".zst") else "text/plain; charset=utf-8"
        )
        assert "ContentEncoding" not in found
        if key.endswith(".zst"):
            assert hashlib.sha256(found["Body"].read()).hexdigest() == key.split("/")[-1].removesuffix(".zst")
    puts = [request for request in bucket.proxy.requests if request.method == "PUT" and ".probe-" not in request.path]
    assert len(puts) >= len(keys)
    assert all("x-amz-checksum-sha256" in request.headers for request in puts)
    assert all("if-match" in r.headers or "if-none-match" in r.headers for r in puts if not r.path.endswith(".zst"))
    assert not [request for request in bucket.proxy.requests if "list-type" in request.path][
        2:
    ]  # only where it was empty


class Gate:
    """Lets puts pass only in groups: the next ones come while the first of a group are kept waiting, or never."""

    def __init__(self, group, total):
        self.group, self.total = group, total
        self.came = 0
        self.stuck = False
        self.changed = threading.Condition()

    def __call__(self, request):
        if request.method == "PUT" and "/chunks/" in request.path:
            with self.changed:
                self.came += 1
                end = min(-(-self.came // self.group) * self.group, self.total)
                self.changed.notify_all()
                self.stuck |= not self.changed.wait_for(lambda: self.came >= end, 20)
        return "pass"


def test_puts_keep_the_pool_full(bucket):
    store = open_store(f"{bucket.url}/data")
    bucket.proxy.fate = gate = Gate(PUTS, 5 * PUTS)
    for n in range(5 * PUTS):
        store.put(f"chunks/{n:02x}/{n:064x}.zst", b"%d" % n)
    store.flush()
    assert not gate.stuck
    assert max(request.beside for request in bucket.proxy.requests) == PUTS
    assert len(bucket.listed()) == 5 * PUTS


@pytest.mark.slow
def test_a_thousand_puts_that_are_answered_late_keep_the_pool_full(bucket):
    store = open_store(f"{bucket.url}/data")
    bucket.proxy.delay = 0.03
    for n in range(1000):
        store.put(f"chunks/{n % 256:02x}/{n:064x}.zst", b"%d" % n)
    store.flush()
    beside = [request.beside for request in bucket.proxy.requests]
    assert (len(beside), max(beside)) == (1000, PUTS)
    assert sum(beside[PUTS:]) / len(beside[PUTS:]) > 0.85 * PUTS


def test_large_files_do_not_wait_for_each_other(bucket, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(PUTS):
        (folder / str(n)).write_bytes(random.Random(n).randbytes(1_048_700))
    bucket.proxy.fate = gate = Gate(PUTS, PUTS + 1)  # with the snapshot's leaf
    publisher("publish", folder, f"{bucket.url}/data")
    assert gate.came == PUTS + 1
    assert not gate.stuck


def test_a_put_that_failed_keeps_head_where_it_is(bucket, monkeypatch):
    monkeypatch.setattr("puller.fetch.again.__defaults__", (2, lambda _pause: None, lambda: 0.5))
    monkeypatch.setattr("puller.stores.s3.ATTEMPTS", 2)
    with library.open(f"{bucket.url}/data", kind="bytes", cache=False) as dataset:
        bucket.proxy.fate = lambda request: "refuse" if "/diffs/" in request.path else "pass"
        with pytest.raises(Unavailable, match="SlowDown"), dataset.batch() as batch:
            batch[b"key"] = b"value"
        bucket.proxy.fate = lambda _request: "pass"
        assert not [request for request in bucket.proxy.requests if "/heads/" in request.path]
        with dataset.batch() as batch:
            batch[b"key"] = b"value"
        assert dataset.version == 2
    with Replica(f"{bucket.url}/data") as replica:
        replica.pull()
        assert replica[b"key"] == b"value"


def test_a_bucket_that_ignores_conditions_is_refused_but_for_a_single_writer(careless_bucket, tmp_path):
    dest, rows = f"{careless_bucket.url}/data", tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1}\n')
    refused = publisher("publish", rows, dest, "--key", "a", check=3)
    assert "does not keep to conditional writes (If-None-Match is ignored)" in refused.err
    assert "--single-writer" in refused.err
    assert not [key for key in careless_bucket.listed() if not key.startswith("data/chunks/")]
    publisher("publish", rows, dest, "--key", "a", "--single-writer")
    rows.write_text('{"a": 1}\n{"a": 2}\n')
    assert "--single-writer" in publisher("publish", "--no-cache", rows, dest, check=3).err
    with library.open(dest, single_writer=True, cache=False) as dataset, dataset.batch() as batch:
        batch["data", 2] = {}
    with Replica(dest) as replica:
        replica.pull()
        assert list(replica) == [("data", 1), ("data", 2)]


def test_a_service_that_only_looks_first_loses_the_race(bucket):
    """Conditions are kept one after the other, and not in a race."""

    def fate(request):
        return "unconditional" if request.beside > 1 else "pass"

    bucket.proxy.fate = fate
    bucket.proxy.delay = 0.02
    with pytest.raises(Refused, match="writes at the same time came through"):
        open_store(f"{bucket.url}/data").probe()
    assert bucket.listed() == []


def test_a_service_without_checksums_or_conditions(bucket):
    """Some refuse what they do not know."""
    bucket.proxy.fate = lambda request: "unknown" if "x-amz-checksum-sha256" in request.headers else "pass"
    store = S3Store(f"{bucket.url}/data", connections=4)
    store.put("chunks/aa/x", b"one")
    store.put("chunks/aa/y", b"two")
    assert [request.status for request in bucket.proxy.requests] == [501, 200, 200]
    bucket.proxy.fate = lambda request: "unknown" if request.is_conditional else "pass"
    with pytest.raises(Refused, match="says that it has none"):
        store.probe()


def test_rights_and_settings_are_told_in_one_sentence(tmp_path, bucket, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1}\n')
    with pytest.raises(FetchError, match=r"^s3://no-such-bucket/x/HEAD: there is no bucket no-such-bucket at http://"):
        open_store("s3://no-such-bucket/x").read_head()
    monkeypatch.setattr("puller.stores.s3.ATTEMPTS", 1)
    with monkeypatch.context() as other:
        other.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(Unavailable, match="Could not connect"):
            open_store(bucket.url).read_head()
    assert "settings for AWS make no sense" in publisher("status", "--profile", "nobody", bucket.url, check=2).err
    for name in KEYS:
        monkeypatch.delenv(name)
    assert "no AWS credentials were found" in publisher("publish", rows, bucket.url, "--key", "a", check=1).err
    with pytest.raises(FetchError, match="no AWS credentials were found"):
        open_fetcher(bucket.url).fetch_head(None)


def test_options_and_profiles_lead_to_the_bucket(bucket, tmp_path, monkeypatch):
    rows, config = tmp_path / "rows.jsonl", tmp_path / "config"
    rows.write_text('{"a": 1}\n')
    config.write_text("[profile it]\naws_access_key_id = of-the-profile\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = [
        "--profile",
        "it",
        "--region",
        "eu-central-1",
        "--endpoint-url",
        bucket.proxy.url.replace("127.0.0.1", "localhost"),
    ]
    publisher("publish", rows, f"{bucket.url}/x", "--key", "a", *options)
    told = bucket.proxy.requests[-1].headers["authorization"]
    assert "Credential=of-the-profile/" in told
    assert "/eu-central-1/s3/aws4_request" in told
    assert bucket.proxy.requests[-1].path == f"/{bucket.name}/x/HEAD"
    assert bucket.proxy.requests[-1].headers["host"].startswith("localhost:")


def test_a_service_like_s3_over_tls_gets_plain_puts(bucket, moto_port, tmp_path, monkeypatch):
    """No chunked bodies and no trailers, which boto3 sends by default and others refuse."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert"))
    with start_proxy(moto_port) as proxy:
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("http:", "https:"))
        library.open(f"{bucket.url}/data", kind="bytes", cache=False).close()
        with Replica(f"{bucket.url}/data") as replica:
            replica.pull()
        puts = [request.headers for request in proxy.requests if request.method == "PUT"]
    assert puts
    assert not [
        headers for headers in puts if {"x-amz-trailer", "transfer-encoding", "content-encoding"} & set(headers)
    ]


def test_a_refused_action_is_named(tmp_path, monkeypatch):
    """Rights are those of IAM, which moto enforces after a number of calls."""
    for name, value in (KEYS | NO_SETTINGS).items():
        monkeypatch.setenv(name, value)
    with start_moto(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="4") as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        s3_client(f"http://127.0.0.1:{port}").create_bucket(Bucket="data")
        iam = boto3.client("iam", region_name="us-east-1")
        iam.create_user(UserName="reader")
        allowed = {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": ["arn:aws:s3:::data", "arn:aws:s3:::data/*"],
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=policy)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        with pytest.raises(FetchError, match="the access key is not known to the service"):
            open_store("s3://data/x").read_head()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        with pytest.raises(StoreError, match=r"s3:PutObject on arn:aws:s3:::data/x/.* is denied to these credentials"):
            library.open("s3://data/x", kind="bytes", cache=False)


def test_folders_that_a_console_made_are_no_files(bucket):
    for key in ("data/", "data/heads/"):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"")
    library.open(f"{bucket.url}/data", kind="bytes", cache=False).close()


def test_validators_and_the_small_server_reach_into_the_bucket(bucket, tmp_path):
    rows, dest = tmp_path / "rows.jsonl", f"{bucket.url}/data"
    rows.write_text('{"a": 1}\n')
    check = f'{sys.executable} -m puller.cli pull -q "$HEADWATER_CANDIDATE" {tmp_path}/copy.jsonl && test $HEADWATER_VERSION = 2'
    refused = publisher("publish", rows, dest, "--key", "a", "--validate", check, check=3)
    assert "there is still nothing published" in refused.err
    assert lines(tmp_path / "copy.jsonl") == [{"a": 1}]
    assert f"{dest.removeprefix(bucket.url)[1:]}/HEAD" not in bucket.listed()
    with library.open(dest, kind="bytes", cache=False) as dataset, dataset.batch() as batch:
        batch[b"key"] = b"value"
    with make_server(dest, "127.0.0.1", 0, quiet=True) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with Replica(url) as replica:
            replica.pull()
            assert replica[b"key"] == b"value"
        with pytest.raises(NotFound):
            open_fetcher(url).fetch("heads/1-7", 100)
        server.shutdown()


def test_a_mirror_in_a_bucket_serves_in_the_origin_s_place(bucket, tmp_path, source):
    dest, mirror = str(tmp_path / "d"), f"{bucket.url}/mirrored/files"
    for n in range(40, 2000):
        (source / f"{n:04}.json").unlink()
    publisher("publish", source, dest)
    done = puller("mirror", "--json", dest, mirror).json
    assert done["changed"]
    (source / "0001.json").write_text("changed")
    publisher("publish", source, dest)
    puller("mirror", dest, mirror)
    puller("mirror", "--exit-code", dest, mirror, check=10)
    puller("pull", mirror, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(source)
    puller("pull", "--exit-code", dest, tmp_path / "copy", check=10)
    assert publisher("status", "--json", mirror).json["version"] == 2
