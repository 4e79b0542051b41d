"""Addresses as they may be shown, whatever is in a password, and those that are refused."""

from __future__ import annotations

import pytest

from puller.errors import UsageError
from puller.passwords import masked
from puller.postgresql import connect


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://app:Zk3/x9@host/db", "postgresql://app@host/db"),
        ("postgres://app:1/x9@host:5432/db", "postgres://app@host:5432/db"),
        ("postgresql://app:a?b#c@d@[::1]:5432/db", "postgresql://app@[::1]:5432/db"),
        ("postgresql://app@x:Zk3@host/db", "postgresql://app@x@host/db"),
        ("postgresql://app:Zk3@h1:1,h2:2/db?host=/run", "postgresql://app@h1:1,h2:2/db?host=/run"),
        ("postgresql://app@host:5432/db?application_name=me", "postgresql://app@host:5432/db?application_name=me"),
        (
            "postgresql://host:5432/db?application_name=a@b",
            "postgresql://host@b",
        ),  # more than need be, rather than less
        ("postgresql://app@host/db?password=a:b@c&x=1", "postgresql://app@host/db?password=…&x=1"),
        ("https://h:443?q=a@b", "https://h:443?q=a@b"),
        ("https://h:443/a@b", "https://h:443/a@b"),
        ("https://me:a@b@h/x@y", "https://me@h/x@y"),
        ("https://me@x:Zk3@h/", "https://me@x@h/"),
        ("https://me:Zk3/x9@h/", "https://me@h/"),
        ("https://[::1]:80/a@b", "https://[::1]:80/a@b"),
        ("2 of s3://a:b@c, http://d:e@f: me@h", "2 of s3://a@c, http://d@f: me@h"),
    ],
)
def test_what_is_shown(address, shown):
    assert masked(address) == shown


@pytest.mark.parametrize("password", ["Zk3/x9", "1/x9", "Zk3@x9", "99999/", "12?x9/a", "Zk3/", "Z:k3/x9"])
def test_an_address_that_libpq_would_read_otherwise_is_refused_at_once(password):
    with pytest.raises(UsageError, match=r"/, @, : .* percent-encoded") as caught:
        connect(f"postgresql://app:{password}@host.invalid/db")
    assert password not in str(caught.value)
