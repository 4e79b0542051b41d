"""The CloudFormation template and the Terraform module: each valid, both the same, and no right too many."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from puller.stores.base import Store
from tests.infra import aws

ACTIONS = {  # what S3 asks of who makes the requests of each method; the rest of `Store` makes none of its own
    "get": {"s3:GetObject"},
    "put": {"s3:PutObject"},
    "create": {"s3:PutObject"},
    "read_head": {"s3:GetObject"},
    "swap_head": {"s3:PutObject", "s3:GetObject"},  # If-Match needs both
    "list": {"s3:ListBucket"},
    "delete": {"s3:DeleteObject"},
}


def test_the_template_is_valid():
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--non-zero-exit-code", "informational", str(aws.TEMPLATE)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def defined(blocks) -> set[str]:
    names = {f"var.{name}" for group in blocks["variable"] for name in group}
    names |= {f"local.{name}" for group in blocks["locals"] for name in group}
    for kind, prefix in (("resource", ""), ("data", "data.")):
        names |= {
            f"{prefix}{kind_}.{name}" for group in blocks[kind] for kind_, named in group.items() for name in named
        }
    return names


def test_every_name_in_the_module_is_defined_and_used():
    blocks = aws.module()
    names = defined(blocks)
    used = set(re.findall(r"\b(?:var|local)\.\w+|\bdata\.\w+\.\w+|(?<!data\.)\baws_\w+\.\w+", json.dumps(blocks)))
    assert used - names == set()
    assert {name for name in names if name.startswith(("var.", "local.", "data."))} - used == set()
    for group in blocks["variable"]:
        for body in group.values():
            assert body["description"]
            assert "default" in body
    for kind in {kind for group in blocks["resource"] + blocks["data"] for kind in group}:
        assert kind.startswith("aws_")
    assert blocks["terraform"][0]["required_providers"][0]["aws"]["source"] == "hashicorp/aws"


def test_both_give_the_same_names_out():
    """Parameters and outputs, apart from how either spells them; a stack has a name, a module needs a variable for it."""

    def plain(names) -> set[str]:
        return {name.replace("_", "").lower() for name in names}

    blocks, template = aws.module(), aws.template()
    variables = {name for group in blocks["variable"] for name in group}
    assert plain(variables) - {"name", "bucketname"} == plain(template["Parameters"])
    assert plain(name for group in blocks["output"] for name in group) == plain(template["Outputs"])
    for group in blocks["variable"]:
        for name, body in group.items():
            for parameter, described in template["Parameters"].items():
                if plain([name]) == plain([parameter]):
                    assert body["default"] == described["Default"]


def test_both_set_up_the_same():
    one, other = aws.from_cloudformation(), aws.from_terraform()
    assert list(one) == list(other)
    for what in one:
        assert one[what] == other[what], what


@pytest.fixture(scope="module")
def facts():
    return aws.from_cloudformation()


def test_the_bucket_is_private_and_keeps_what_was_overwritten(facts):
    assert facts["public access blocked"]
    assert facts["ownership"] == "BucketOwnerEnforced"
    assert facts["encryption"] == "AES256"
    assert facts["versioning"] == "Enabled"
    assert facts["lifecycle"] == {"on": ["Enabled"], "abort": 1, "noncurrent": "<noncurrentdays>", "markers": True}
    assert aws.template()["Resources"]["Bucket"]["DeletionPolicy"] == "Retain"


def test_rights_are_the_fewest(facts):
    """The publisher's are what the store's methods need; CloudFront reads; nobody else may do anything, and only over TLS."""
    methods = {name for name in vars(Store) if not name.startswith("_")}
    assert set(ACTIONS) <= methods
    publisher = {(action, *s["resources"]) for s in facts["publisher"] for action in s["actions"]}
    assert {s["effect"] for s in facts["publisher"]} == {"Allow"}
    assert {action for action, *_ in publisher} == set().union(*ACTIONS.values())
    for action, *resources in publisher:
        assert resources == (["bucket"] if action == "s3:ListBucket" else ["bucket/*"])

    allowed = [s for s in facts["bucket policy"] if s["effect"] == "Allow"]
    assert sorted(action for s in allowed for action in s["actions"]) == ["s3:GetObject", "s3:ListBucket"]
    for s in allowed:
        assert s["principal"] == ("Service", "cloudfront.amazonaws.com")
        assert s["conditions"] == [("StringEquals", "AWS:SourceArn", "distribution")]
    (denied,) = [s for s in facts["bucket policy"] if s["effect"] == "Deny"]
    assert denied["conditions"] == [("Bool", "aws:SecureTransport", "false")]
    assert (denied["actions"], denied["resources"]) == (["s3:*"], ["bucket", "bucket/*"])
    assert facts["root object"] == "HEAD"  # "/" would list the bucket


def test_only_workflows_of_one_ref_may_publish(facts):
    (trust,) = facts["trust"]
    assert trust["principal"] == ("Federated", "provider")
    assert trust["actions"] == ["sts:AssumeRoleWithWebIdentity"]
    assert trust["conditions"] == [
        ("StringEquals", "token.actions.githubusercontent.com:aud", "sts.amazonaws.com"),
        ("StringEquals", "token.actions.githubusercontent.com:sub", "repo:<githubrepository>:ref:<githubref>"),
    ]


def test_caches_keep_each_file_for_as_long_as_it_may_be_kept(facts):
    behaviours = facts["behaviours"]

    def behaviour(path: str):
        return next(
            (b for pattern, b in behaviours.items() if pattern != "*" and fnmatch.fnmatchcase(path, pattern)),
            behaviours["*"],
        )

    assert len(behaviours) == 2
    for dataset in ("", "prices/", "team/prices/"):
        for path in ("HEAD", "heads/1-1", "trust/1"):
            assert behaviour(f"{dataset}{path}")["ttl"] == (0, 5, 3600)  # the last is HEAD's stale-if-error
        for path in (f"chunks/ab/{'ab' * 32}.zst", f"diffs/ab/{'ab' * 32}.zst"):
            assert behaviour(f"{dataset}{path}")["ttl"] == (0, 31536000, 31536000)
    for b in behaviours.values():
        assert b["key"]  # nothing but the path
        assert not b["compressed"]
        assert b["methods"] == (["GET", "HEAD", "OPTIONS"], ["GET", "HEAD"])
    assert facts["errors"] == dict.fromkeys((403, 404, 500, 502, 503, 504), 1)


def test_web_pages_may_read(facts):
    assert facts["bucket cors"] == [["<allowedorigin>"], ["GET", "HEAD"], ["*"], ["ETag"], 86400]
    assert facts["answers cors"] == [*facts["bucket cors"], False, True]
