"""The publisher's policy, as the CloudFormation template has it, enforced: it is enough, and each right is needed."""

from __future__ import annotations

import json

import boto3
import pytest

from tests.buckets import KEYS, NO_SETTINGS, s3_client, start_moto
from tests.conftest import publisher
from tests.infra import aws

# Without the last, nothing but garbage collection is refused.
RIGHTS = [None, "s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject"]


def policy(without: str | None) -> str:
    """The policy for the bucket `data`, but for one action."""
    arns = {"bucket": "arn:aws:s3:::data", "bucket/*": "arn:aws:s3:::data/*"}
    statements = [
        {
            "Effect": s["effect"],
            "Action": [action for action in s["actions"] if action != without] or ["s3:ListAllMyBuckets"],
            "Resource": [arns[name] for name in s["resources"]],
        }
        for s in aws.from_cloudformation()["publisher"]
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@pytest.mark.slow
def test_the_publishers_policy_is_enough_and_no_more(tmp_path, monkeypatch):
    for name, value in (KEYS | NO_SETTINGS).items():
        monkeypatch.setenv(name, value)
    source = tmp_path / "source"
    source.mkdir()
    calls = 1 + 3 * len(RIGHTS)
    with start_moto(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT=str(calls)) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client, iam = s3_client(f"http://127.0.0.1:{port}"), boto3.client("iam", region_name="us-east-1")
        client.create_bucket(Bucket="data")
        keys = []
        for number, without in enumerate(RIGHTS):
            name = f"publisher-{number}"
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy(without))
            keys.append(iam.create_access_key(UserName=name)["AccessKey"])
        for without, key in zip(RIGHTS, keys, strict=True):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
            (source / "tea").write_text(str(without))
            refused = without in ("s3:GetObject", "s3:PutObject", "s3:ListBucket")
            done = publisher("publish", source, f"s3://data/{keys.index(key)}", check=1 if refused else 0)
            assert not refused or f"{without} on arn:aws:s3:::data" in done.err
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0]["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[0]["SecretAccessKey"])
        assert "version 2" in publisher("publish", source, "s3://data/0").out
