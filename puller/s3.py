"""Files in an S3 bucket, read over boto3, which is an extra; and what the service's errors mean."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from puller.errors import FetchError, NotFound, Unavailable, UsageError, Withheld
from puller.fetch import CONNECTIONS, TIMEOUT, Answer, Check
from puller.wire.head import HEAD, MAX_HEAD

_ADDRESS = re.compile(r"s3://([^/?#@]+)(/[^?#]*)?")
_ACTIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "list_objects_v2": "s3:ListBucket",
}
_BUSY = frozenset({"SlowDown", "RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException"})
_CREDENTIALS = {
    "InvalidAccessKeyId": "the access key is not known to the service",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "ExpiredToken": "the session token has expired; log in again",
    "ExpiredTokenException": "the session token has expired; log in again",
    "InvalidToken": "the session token is not valid; log in again",
    "RequestTimeTooSkewed": "this machine's clock is wrong by more than the service allows",
}
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"})


class Refusal(FetchError):
    """S3 refused a request; `status` is HTTP's, `code` the service's own."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Place:
    """A folder in a bucket. Sends each request once, and tells errors in this project's terms; safe for many threads."""

    def __init__(self, address: str, connections: int) -> None:
        """Raises UsageError where the address or the settings of boto3 make no sense. Nothing is sent yet."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise UsageError(f"{address} is no place in a bucket; write s3://bucket/prefix")
        self.bucket = match[1]
        prefix = (match[2] or "").strip("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.where = f"s3://{self.bucket}/{prefix}".rstrip("/")
        self._client = _client(connections)

    def send(self, operation: str, path: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one request on the file at `path`. Raises NotFound, Unavailable, Refusal or FetchError."""
        with self._telling(operation, path):
            answer: dict[str, Any] = getattr(self._client, operation)(
                Bucket=self.bucket, Key=self.prefix + path, **parameters
            )
        return answer

    def read(self, path: str, limit: int | None = None, **conditions: Any) -> tuple[bytes, dict[str, Any]]:
        """A file's bytes, at most `limit` of them, and what came with them. Raises as `send` does."""
        with self._telling("get_object", path):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.prefix + path, **conditions)
            body = answer["Body"]
            deadline = time.monotonic() + max(TIMEOUT, answer["ContentLength"] / 10_000)
            parts = []
            left = answer["ContentLength"] + 1 if limit is None else limit
            try:
                while left and (part := body.read(min(left, 1 << 20))):
                    parts.append(part)
                    left -= len(part)
                    if time.monotonic() > deadline:
                        raise Unavailable(f"{self.where}/{path}: the body came too slowly")
            finally:
                body.close()
        return parts[0] if len(parts) == 1 else b"".join(parts), answer

    def list(self, prefix: str, delimiter: str = "") -> Iterator[str]:
        """The paths that begin with `prefix`; what goes on after a delimiter counts once, up to and with that."""
        more = {"Delimiter": delimiter} if delimiter else {}
        for page in self._pages(prefix, **more):
            yield from (path for path, _, _ in self._objects(page))
            yield from (item["Prefix"][len(self.prefix) :] for item in page.get("CommonPrefixes", ()))

    def objects(self, prefix: str, after: str = "") -> Iterator[tuple[str, int, float]]:
        """Path, size and Unix time of what begins with `prefix`, in order; from the first path above `after` on."""
        more = {"StartAfter": self.prefix + after} if after else {}
        for page in self._pages(prefix, **more):
            yield from self._objects(page)

    def remove(self, paths: Sequence[str]) -> set[str]:
        """Delete up to 1,000 files with one request; return those that the service could not delete now."""
        items = [{"Key": self.prefix + path} for path in paths]
        with self._telling("delete_objects", paths[0]):
            answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": items, "Quiet": True})
        failed = answer.get("Errors", ())
        for error in failed:
            if error.get("Code") == "AccessDenied":
                raise Refusal(self._denied("delete_objects", error["Key"][len(self.prefix) :]), 403, "AccessDenied")
        return {error["Key"][len(self.prefix) :] for error in failed}

    def date(self) -> float:
        """The time by the service's clock, in Unix seconds."""
        with self._telling("list_objects_v2", ""):
            return date_of(self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1))

    def _pages(self, prefix: str, **more: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix, **more
        )
        found = iter(pages)
        while True:
            with self._telling("list_objects_v2", prefix):
                page = next(found, None)
            if page is None:
                return
            yield page

    def _objects(self, page: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # the others stand for folders in consoles
                yield item["Key"][len(self.prefix) :], item["Size"], item["LastModified"].timestamp()

    def close(self) -> None:
        """Give up connections."""
        self._client.close()

    @contextmanager
    def _telling(self, operation: str, path: str) -> Iterator[None]:
        import botocore.exceptions as errors
        from botocore.parsers import ResponseParserError

        file = f"{self.where}/{path}".rstrip("/")
        try:
            yield
        except errors.ClientError as error:
            raise self._refused(error.response, operation, path, file) from error
        except (errors.NoCredentialsError, errors.PartialCredentialsError) as error:
            raise FetchError(
                f"{file}: no AWS credentials were found, neither in the environment, nor in a profile (~/.aws), nor as a role of "
                "this machine; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except errors.ParamValidationError as error:
            raise UsageError(f"{file} is no place in a bucket: {_line(error)}") from error
        except (
            errors.HTTPClientError,
            errors.ConnectionError,
            errors.IncompleteReadError,
            ResponseParserError,
        ) as error:
            raise Unavailable(f"{file}: {_line(error)}") from error
        except errors.BotoCoreError as error:
            raise FetchError(f"{file}: the request could not be made: {_line(error)}") from error

    def _refused(self, answer: Any, operation: str, path: str, file: str) -> FetchError:
        code = str(answer["Error"].get("Code", ""))
        status = int(answer["ResponseMetadata"]["HTTPStatusCode"])
        said = f"{code}: {answer['Error'].get('Message', '')}".rstrip(": .")
        if code == "NoSuchBucket":
            return Refusal(
                f"{file}: there is no bucket {self.bucket} at {self._client.meta.endpoint_url}", status, code
            )
        if status == 404:
            return NotFound(f"there is no {file}")
        if code in _CREDENTIALS:
            return Refusal(f"{file}: {_CREDENTIALS[code]} ({said})", status, code)
        if code in _REGION:
            return Refusal(f"{file}: the bucket lies in another region; name it (AWS_REGION) ({said})", status, code)
        if code in _BUSY or status in (408, 429) or (status >= 500 and status != 501):
            return Unavailable(f"{file}: the service answers {status} ({said})")
        if status in (401, 403):
            return Refusal(f"{self._denied(operation, path)} ({said})", status, code)
        return Refusal(f"{file}: the service answers {status} ({said})", status, code)

    def _denied(self, operation: str, path: str) -> str:
        arn = f"arn:{self._client.meta.partition}:s3:::{self.bucket}"
        action = _ACTIONS[operation]
        if operation == "list_objects_v2":
            return f"{action} on {arn} is denied to these credentials"
        text = f"{action} on {arn}/{self.prefix}{path} is denied to these credentials"
        if operation == "get_object":
            text += f", or the file is missing, which S3 says only to who has s3:ListBucket on {arn}"
        return text


def _client(connections: int) -> Any:
    """boto3's client for S3, set up by boto3's own chain. It sends each request once: the callers know which may be repeated."""
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UsageError("s3:// needs boto3, which is not installed: pip install 'headwater[s3]'") from error

    options: dict[str, Any] = {
        "max_pool_connections": connections,
        "connect_timeout": 10.0,
        "read_timeout": TIMEOUT,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Services that only look like S3 do not all know the newer checksums, and refuse their trailers.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "user_agent_extra": "headwater",
    }
    try:
        core = botocore.session.get_session()
        core.register_component("data_loader", _descriptions())
        session = boto3.session.Session(botocore_session=core)
        region = session.region_name or os.environ.get("AWS_REGION")
        client = session.client("s3", region_name=region, config=Config(**options))
        if ".amazonaws.com" not in client.meta.endpoint_url and not (client.meta.config.s3 or {}).get(
            "addressing_style"
        ):
            # The names of buckets are rarely hosts' names elsewhere.
            options["s3"] = {**(client.meta.config.s3 or {}), "addressing_style": "path"}
            client = session.client("s3", region_name=region, config=Config(**options))
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"the settings for AWS make no sense: {_line(error)}") from error
    return client


@cache
def _descriptions() -> Any:
    """What boto3 knows of services, parsed once for all clients: that takes most of the time to make one."""
    from botocore.loaders import create_loader

    return create_loader()


def date_of(answer: dict[str, Any]) -> float:
    """When the service answered, by its own clock. Raises FetchError if it does not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        raise FetchError("the service does not say what time it is, so that it cannot be told how old files are")
    return parsedate_to_datetime(date).timestamp()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


class S3Fetcher:
    """Files in a bucket that need not be public. HEAD's tag is its ETag."""

    is_local = False

    def __init__(self, address: str) -> None:
        self._place = Place(address, CONNECTIONS)
        self.requests = 0
        self.received = 0

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        data = self._get(path, size + 1)[0]
        if check is not None:
            check(data)
        return data

    def fetch_head(self, etag: str | None) -> Answer:
        try:
            data, answer = self._get(HEAD, MAX_HEAD + 1, **({"IfNoneMatch": etag} if etag else {}))
        except Refusal as error:
            if etag and error.status == 304:
                return Answer(None, etag)
            raise
        return Answer(data, answer.get("ETag"))

    def close(self) -> None:
        self._place.close()

    def _get(self, path: str, limit: int, **conditions: str) -> tuple[bytes, dict[str, Any]]:
        self.requests += 1
        try:
            data, answer = self._place.read(path, limit, **conditions)
        except Refusal as error:
            if error.status == 403:
                raise Withheld(str(error)) from error
            raise
        self.received += len(data)
        return data, answer
