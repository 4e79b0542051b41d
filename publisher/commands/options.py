"""Options that several commands of `publisher` share."""

from __future__ import annotations

import os

import click

from puller.console import Duration, together

encrypt_option = click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt a new dataset: pullers need its secret (refused where DEST is not encrypted).",
)


INTERVAL_HELP = "How long pullers should wait between polls, as 30s or 5m (30s, unless it was set before)."


signing_option = click.option(
    "--signing-key",
    metavar="FILE",
    help="The private key to sign with (default: $HEADWATER_SIGNING_KEY, or the one in the keys folder).",
)


unsigned_option = click.option(
    "--unsigned", is_flag=True, help="Do not sign a dataset that is created; go on with one that is not signed."
)


root_option = together(
    click.option("--root", "roots", multiple=True, metavar="FILE", help="The private key of a root; repeatable."),
    click.option("--old-root", "old_roots", multiple=True, metavar="FILE", help="One that only signs this change."),
    click.option("--threshold", type=click.IntRange(1, 64), help="How many roots must sign the next change."),
)
"""The options about the roots that sign key sets."""


BUCKET_OPTIONS = {
    "--endpoint-url": ("AWS_ENDPOINT_URL_S3", "URL", "The address of a service that is like S3, for s3:// addresses."),
    "--region": ("AWS_DEFAULT_REGION", "NAME", "The bucket's region."),
    "--profile": ("AWS_PROFILE", "NAME", "The AWS profile with the credentials."),
}
"""Options that boto3 knows as variables."""


def _set_variable(_context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Hand an option to boto3, and to validators, by the environment: it stands above profiles there."""
    if value is None:
        return
    if parameter.name == "profile":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            os.environ.pop(name, None)  # as with `aws --profile`, it stands above these
    if parameter.name == "endpoint_url":
        os.environ.pop("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", None)
    os.environ[BUCKET_OPTIONS[parameter.opts[0]][0]] = value


of_buckets = together(
    *(
        click.option(option, metavar=metavar, help=text, expose_value=False, callback=_set_variable)
        for option, (_, metavar, text) in BUCKET_OPTIONS.items()
    )
)
"""The options that say where s3:// leads."""


single_writer_option = click.option(
    "--single-writer",
    is_flag=True,
    help="Use a bucket without conditional writes: nobody else publishes there meanwhile.",
)


max_age_option = click.option(
    "--max-age",
    type=Duration(0, 86400),
    metavar="TIME",
    help="How long caches may keep a bucket's HEAD without asking (5s, unless it was set before).",
)
