"""What the CloudFormation template and the Terraform module set up, each read by itself into the same plain words.

References become words: `bucket`, `bucket/*` and `distribution` for their ARNs, `<var>` for a parameter or variable.
"""

from __future__ import annotations

import re
from typing import Any

import hcl2
import yaml

from tests.conftest import ROOT

TEMPLATE = ROOT / "infra/cloudformation/headwater.yaml"
MODULE = ROOT / "infra/terraform"


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Ref x` is {"Ref": x}, `!Sub x` is {"Fn::Sub": x}."""


def _short_form(loader: yaml.Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short_form)


def template() -> dict[str, Any]:
    return yaml.load(TEMPLATE.read_text(), _Loader)


def module() -> dict[str, list]:
    """All files of the module: lists of blocks by their type."""
    options = hcl2.SerializationOptions(strip_string_quotes=True, with_comments=False, explicit_blocks=False)
    merged: dict[str, list] = {}
    for path in sorted(MODULE.glob("*.tf")):
        for kind, blocks in hcl2.loads(path.read_text(), serialization_options=options).items():
            merged.setdefault(kind, []).extend(blocks)
    return merged


def _listed(value: Any) -> list:
    return sorted(value) if isinstance(value, list) else [value]


def _variable(name: str) -> str:
    return f"<{name.replace('_', '').lower()}>"


_ARN = "arn:${AWS::Partition}:cloudfront::${AWS::AccountId}:distribution/${Distribution}"
_PLAIN = {_ARN: "distribution", "${Bucket.Arn}/*": "bucket/*"}


def _cfn(value: Any) -> Any:
    """A value with its intrinsic functions as words."""
    if isinstance(value, list):
        return [_cfn(v) for v in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"Fn::GetAtt": "Bucket.Arn"}:
            return "bucket"
        case {"Fn::Sub": str(text)}:
            return _PLAIN.get(text) or re.sub(r"\$\{(\w+)\}", lambda m: _variable(m[1]), text)
        case {"Ref": str(name)}:
            return _variable(name)
    return {k: _cfn(v) for k, v in value.items()}


def _tf(value: Any, local: dict[str, Any]) -> Any:
    """A value with its references as words."""
    if isinstance(value, list):
        return [_tf(v, local) for v in value]
    if isinstance(value, dict):
        return {k: _tf(v, local) for k, v in value.items()}
    if not isinstance(value, str):
        return value
    if (whole := re.fullmatch(r"\$\{local\.(\w+)\}", value)) and isinstance(local[whole[1]], list):
        return local[whole[1]]
    value = value.replace("${aws_s3_bucket.datasets.arn}", "bucket")
    value = value.replace("${aws_cloudfront_distribution.datasets.arn}", "distribution")
    return re.sub(r"\$\{var\.(\w+)\}", lambda m: _variable(m[1]), value)


def _statement(sid, effect, principal, actions, resources, conditions) -> dict[str, Any]:
    return {
        "sid": sid,
        "effect": effect,
        "principal": principal,
        "actions": _listed(actions),
        "resources": _listed(resources),
        "conditions": sorted(conditions),
    }


def from_cloudformation() -> dict[str, Any]:
    resources = {name: _cfn(r.get("Properties", {})) for name, r in template()["Resources"].items()}
    bucket, distribution = resources["Bucket"], resources["Distribution"]["DistributionConfig"]
    rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
    (cors,) = bucket["CorsConfiguration"]["CorsRules"]
    headers = resources["Cors"]["ResponseHeadersPolicyConfig"]["CorsConfig"]
    access = resources["OriginAccess"]["OriginAccessControlConfig"]
    policies = {_variable(name): resources[name]["CachePolicyConfig"] for name in ("ImmutableCache", "HeadCache")}

    def behaviour(b: dict[str, Any]) -> dict[str, Any]:
        policy = policies[b["CachePolicyId"]]
        key = policy["ParametersInCacheKeyAndForwardedToOrigin"]
        assert b["ResponseHeadersPolicyId"] == "<cors>"
        return {
            "ttl": (policy["MinTTL"], policy["DefaultTTL"], policy["MaxTTL"]),
            "key": [key["HeadersConfig"], key["CookiesConfig"], key["QueryStringsConfig"]]
            == [{"HeaderBehavior": "none"}, {"CookieBehavior": "none"}, {"QueryStringBehavior": "none"}],
            "compressed": key["EnableAcceptEncodingGzip"] or key["EnableAcceptEncodingBrotli"] or b["Compress"],
            "viewers": b["ViewerProtocolPolicy"],
            "methods": (b["AllowedMethods"], b["CachedMethods"]),
        }

    def statements(document: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            _statement(
                s.get("Sid"),
                s["Effect"],
                principal(s.get("Principal")),
                s["Action"],
                s.get("Resource", []),
                [(test, k, v) for test, pairs in s.get("Condition", {}).items() for k, v in pairs.items()],
            )
            for s in document["Statement"]
        ]

    def principal(value: Any) -> tuple[str, str] | None:
        if isinstance(value, dict):
            ((kind, who),) = value.items()
            return kind, who if isinstance(who, str) else "provider"
        return (value, value) if value else None

    return {
        "public access blocked": all(bucket["PublicAccessBlockConfiguration"].values()),
        "ownership": bucket["OwnershipControls"]["Rules"][0]["ObjectOwnership"],
        "encryption": bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"][0][
            "ServerSideEncryptionByDefault"
        ]["SSEAlgorithm"],
        "versioning": bucket["VersioningConfiguration"]["Status"],
        "lifecycle": {
            "on": sorted({rule["Status"] for rule in rules.values()}),
            "abort": rules["abort-multipart"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"],
            "noncurrent": rules["expire-noncurrent"]["NoncurrentVersionExpiration"]["NoncurrentDays"],
            "markers": rules["expire-noncurrent"]["ExpiredObjectDeleteMarker"],
        },
        "bucket cors": [
            cors[k] for k in ("AllowedOrigins", "AllowedMethods", "AllowedHeaders", "ExposedHeaders", "MaxAge")
        ],
        "answers cors": [headers[f"AccessControlAllow{k}"]["Items"] for k in ("Origins", "Methods", "Headers")]
        + [
            headers["AccessControlExposeHeaders"]["Items"],
            headers["AccessControlMaxAgeSec"],
            headers["AccessControlAllowCredentials"],
            headers["OriginOverride"],
        ],
        "origin access": [access[k] for k in ("OriginAccessControlOriginType", "SigningBehavior", "SigningProtocol")],
        "root object": distribution["DefaultRootObject"],
        "http": (distribution["HttpVersion"], distribution["IPV6Enabled"], distribution["Enabled"]),
        "behaviours": {"*": behaviour(distribution["DefaultCacheBehavior"])}
        | {b["PathPattern"]: behaviour(b) for b in distribution["CacheBehaviors"]},
        "errors": {e["ErrorCode"]: e["ErrorCachingMinTTL"] for e in distribution["CustomErrorResponses"]},
        "bucket policy": statements(resources["BucketPolicy"]["PolicyDocument"]),
        "publisher": statements(resources["PublisherPolicy"]["PolicyDocument"]),
        "trust": statements(resources["PublisherRole"]["AssumeRolePolicyDocument"]),
        "session": resources["PublisherRole"]["MaxSessionDuration"],
        "provider": (resources["GitHubProvider"]["Url"], resources["GitHubProvider"]["ClientIdList"]),
    }


def from_terraform() -> dict[str, Any]:
    blocks = module()
    local = {name: value for group in blocks["locals"] for name, value in group.items()}
    found: dict[tuple[str, str], Any] = {
        (kind, name): _tf(body, local)
        for group in blocks["resource"] + blocks["data"]
        for kind, named in group.items()
        for name, body in named.items()
    }

    def s3(kind: str) -> dict[str, Any]:
        return found[f"aws_s3_bucket_{kind}", "datasets"]

    blocked = s3("public_access_block")
    rules = {rule["id"]: rule for rule in s3("lifecycle_configuration")["rule"]}
    (cors,) = s3("cors_configuration")["cors_rule"]
    (headers,) = found["aws_cloudfront_response_headers_policy", "cors"]["cors_config"]
    access = found["aws_cloudfront_origin_access_control", "datasets"]
    distribution = found["aws_cloudfront_distribution", "datasets"]

    def behaviour(b: dict[str, Any]) -> dict[str, Any]:
        name = re.fullmatch(r"\$\{aws_cloudfront_cache_policy\.(\w+)\.id\}", b["cache_policy_id"])[1]
        policy = found["aws_cloudfront_cache_policy", name]
        (key,) = policy["parameters_in_cache_key_and_forwarded_to_origin"]
        assert b["response_headers_policy_id"] == "${aws_cloudfront_response_headers_policy.cors.id}"
        return {
            "ttl": (policy["min_ttl"], policy["default_ttl"], policy["max_ttl"]),
            "key": [key["headers_config"], key["cookies_config"], key["query_strings_config"]]
            == [[{"header_behavior": "none"}], [{"cookie_behavior": "none"}], [{"query_string_behavior": "none"}]],
            "compressed": key["enable_accept_encoding_gzip"] or key["enable_accept_encoding_brotli"] or b["compress"],
            "viewers": b["viewer_protocol_policy"],
            "methods": (b["allowed_methods"], b["cached_methods"]),
        }

    def statements(name: str) -> list[dict[str, Any]]:
        return [
            _statement(
                s.get("sid"),
                s["effect"],
                principal(s.get("principals")),
                s["actions"],
                s.get("resources", []),
                [(c["test"], c["variable"], *c["values"]) for c in s.get("condition", [])],
            )
            for s in found["aws_iam_policy_document", name]["statement"]
        ]

    def principal(value: Any) -> tuple[str, str] | None:
        if not value:
            return None
        ((kind, (who,)),) = [(p["type"], p["identifiers"]) for p in value]
        return kind, "provider" if who == "${local.provider_arn}" else who

    return {
        "public access blocked": all(v for k, v in blocked.items() if k != "bucket") and len(blocked) == 5,
        "ownership": s3("ownership_controls")["rule"][0]["object_ownership"],
        "encryption": s3("server_side_encryption_configuration")["rule"][0]["apply_server_side_encryption_by_default"][
            0
        ]["sse_algorithm"],
        "versioning": s3("versioning")["versioning_configuration"][0]["status"],
        "lifecycle": {
            "on": sorted({rule["status"] for rule in rules.values()}),
            "abort": rules["abort-multipart"]["abort_incomplete_multipart_upload"][0]["days_after_initiation"],
            "noncurrent": rules["expire-noncurrent"]["noncurrent_version_expiration"][0]["noncurrent_days"],
            "markers": rules["expire-noncurrent"]["expiration"][0]["expired_object_delete_marker"],
        },
        "bucket cors": [
            cors[k]
            for k in ("allowed_origins", "allowed_methods", "allowed_headers", "expose_headers", "max_age_seconds")
        ],
        "answers cors": [headers[f"access_control_allow_{k}"][0]["items"] for k in ("origins", "methods", "headers")]
        + [
            headers["access_control_expose_headers"][0]["items"],
            headers["access_control_max_age_sec"],
            headers["access_control_allow_credentials"],
            headers["origin_override"],
        ],
        "origin access": [
            access[k] for k in ("origin_access_control_origin_type", "signing_behavior", "signing_protocol")
        ],
        "root object": distribution["default_root_object"],
        "http": (distribution["http_version"], distribution["is_ipv6_enabled"], distribution["enabled"]),
        "behaviours": {"*": behaviour(distribution["default_cache_behavior"][0])}
        | {b["path_pattern"]: behaviour(b) for b in distribution["ordered_cache_behavior"]},
        "errors": {e["error_code"]: e["error_caching_min_ttl"] for e in distribution["custom_error_response"]},
        "bucket policy": statements("bucket"),
        "publisher": statements("publisher"),
        "trust": statements("github"),
        "session": found["aws_iam_role", "publisher"]["max_session_duration"],
        "provider": (
            found["aws_iam_openid_connect_provider", "github"]["url"],
            found["aws_iam_openid_connect_provider", "github"]["client_id_list"],
        ),
    }
