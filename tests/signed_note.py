"""A verifier of signed notes, from the C2SP text (signed-note) and RFC 8032 alone, and of key sets, from SPEC.md (7.5).

It shares no code with the product.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


class BadNote(Exception):
    """The note is malformed, or a known key's signature does not verify."""


def add(a, b):
    """Points in extended homogeneous coordinates (RFC 8032, 5.1.4)."""
    x, y = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = y - x, d - c, d + c, y + x
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, point):
    result = (0, 1, 1, 0)
    while n:
        if n & 1:
            result = add(result, point)
        point, n = add(point, point), n >> 1
    return result


def decompress(data):
    """RFC 8032, 5.1.3."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - x2) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = decompress((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def is_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """RFC 8032, 5.1.7."""
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r, s = decompress(public), decompress(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    left, right = times(s, BASE), add(r, times(k, a))
    return not (left[0] * right[2] - right[0] * left[2]) % P and not (left[1] * right[2] - right[1] * left[2]) % P


def need(fine, why):
    if not fine:
        raise BadNote(why)


def decode(text: str) -> bytes:
    """Base64 in its one form."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadNote(f"no base64: {text}") from error
    need(base64.b64encode(data).decode() == text, f"base64 in another form: {text}")
    return data


def read_vkey(text: str) -> tuple[str, bytes, bytes]:
    """Name, key ID and public key of a verifier key; no public key where its type is not Ed25519."""
    need(isinstance(text, str) and text.count("+") >= 2, f"no verifier key: {text}")
    name, key_id, data = text.split("+", 2)
    need(re.fullmatch(r"[^\s\0-\x1f]+", name) and re.fullmatch("[0-9a-f]{8}", key_id), f"no verifier key: {text}")
    raw = decode(data)
    need(len(raw) > 1, f"no key in {text}")
    if raw[0] != 1:
        return name, bytes.fromhex(key_id), b""
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    need(len(raw) == 33 and bytes.fromhex(key_id) == expected, f"a mistyped key: {text}")
    return name, expected, raw[1:]


def open_note(note: bytes, vkeys: list[str]) -> tuple[str, list[str]]:
    """The note's text, and those of the keys that signed it. Raises BadNote."""
    known = {(name, key_id): (vkey, public) for vkey in vkeys for name, key_id, public in [read_vkey(vkey)]}
    try:
        decoded = note.decode()
    except UnicodeDecodeError as error:
        raise BadNote("no UTF-8") from error
    text, empty, lines = decoded.rpartition("\n\n")
    text += "\n"
    need(empty and not any(c < " " and c != "\n" for c in decoded) and (not lines or lines.endswith("\n")), "no note")
    need(lines.count("\n") <= 100, "too many signatures")
    signed = []
    for line in lines.split("\n")[:-1]:
        parts = line.split(" ")
        need(
            len(parts) == 3 and parts[0] == "\u2014" and parts[1] and "+" not in parts[1], f"no signature line: {line}"
        )
        blob = decode(parts[2])
        need(len(blob) > 4, "a signature that is too short")
        vkey, public = known.get((parts[1], blob[:4]), (None, b""))
        if not public:
            continue
        need(is_signature(public, text.encode(), blob[4:]), f"the signature by {vkey} does not verify")
        signed.append(vkey)
    return text, list(dict.fromkeys(signed))


def read_set(data: bytes) -> dict:
    """The object of a valid key set, with its name (SPEC 7.5)."""
    need(len(data) <= 65536, "too large")
    text, _ = open_note(data, [])
    found = re.fullmatch(r"headwater-trust/1 ([A-Za-z0-9][A-Za-z0-9._-]{0,63})\n(.*)\n", text)
    need(found, "no key set")

    def pairs(items):
        need(len(dict(items)) == len(items), "a name twice")
        return dict(items)

    try:
        fields = json.loads(found[2], object_pairs_hook=pairs)
    except ValueError as error:
        raise BadNote("no JSON") from error
    number, previous, keys, roots = (fields.get(name) for name in ("number", "previous", "keys", "roots"))
    for name, low, high in (
        ("number", 1, 2**53),
        ("epoch", 0, 2**53),
        ("time", 0, 9 * 10**9 + 1),
        ("threshold", 1, 65),
    ):
        need(type(fields.get(name)) is int and low <= fields[name] < high, name)
    need("previous" in fields and (previous is None) == (number == 1), "previous")
    need(previous is None or re.fullmatch("[0-9a-f]{64}", previous), "previous")
    for part in (keys, roots):
        need(type(part) is list and 1 <= len(part) <= 64, "keys")
        read = list(map(read_vkey, part))
        need(
            len({key[:2] for key in read}) == len(part) == len({vkey.split("+", 2)[2] for vkey in part}), "a key twice"
        )
    need(fields["threshold"] <= len(roots), "threshold")
    need(len(open_note(data, roots)[1]) >= fields["threshold"], "not signed by enough of its roots")
    return fields | {"name": found[1]}


def check_step(before: bytes, after: bytes) -> None:
    """Whether a key set follows another one (SPEC 7.5)."""
    old, new = read_set(before), read_set(after)
    need(
        (new["number"], new["name"]) == (old["number"] + 1, old["name"]) and new["epoch"] >= old["epoch"],
        "a wrong step",
    )
    need(new["previous"] == hashlib.sha256(before).hexdigest(), "another set before it")
    need(len(open_note(after, old["roots"])[1]) >= old["threshold"], "not signed by enough of the old roots")


def believe(data: bytes, name: str, head: dict, sets: dict[int, bytes], pinned: bytes | None, given: list[str]) -> None:
    """Raise BadNote unless HEAD is to be believed by a reader that pinned a set, or was given keys (SPEC 7.5)."""
    number = head["trust"]
    if number == 0:
        need(pinned is None and not given, "not signed")
        return
    if pinned is not None:
        first = read_set(pinned)["number"]
        need(number >= first, "an earlier set")
        chain = [pinned, *(sets.get(n, b"") for n in range(first + 1, number + 1))]
    else:
        chain = [sets.get(number, b"")]
        while given and not set(given) & set(open_note(chain[0], read_set(chain[0])["roots"])[1]):
            first = read_set(chain[0])["number"]
            need(first > 1, "not signed by a key that was given")
            chain.insert(0, sets.get(first - 1, b""))
    for before, after in pairwise(chain):
        check_step(before, after)
    last = read_set(chain[-1])
    need((last["number"], last["name"], last["epoch"]) == (number, name, head["epoch"]), "another set")
    need(open_note(data, last["keys"])[1], "not signed by a key of the set")
