"""A verifier of signed notes, from the C2SP text (signed-note) and RFC 8032 alone. It shares no code with the product."""

from __future__ import annotations

import base64
import hashlib

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


def read_vkey(text: str) -> tuple[str, bytes, bytes]:
    """Name, key ID and public key of an Ed25519 verifier key."""
    name, key_id, data = text.split("+", 2)
    raw = base64.b64decode(data, validate=True)
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if not name or raw[:1] != b"\1" or len(raw) != 33 or bytes.fromhex(key_id) != expected:
        raise BadNote(f"no Ed25519 verifier key: {text}")
    return name, expected, raw[1:]


def open_note(note: bytes, vkeys: list[str]) -> tuple[str, list[str]]:
    """The note's text, and those of the keys that signed it. Raises BadNote."""
    known = {(name, key_id): (vkey, public) for vkey in vkeys for name, key_id, public in [read_vkey(vkey)]}
    decoded = note.decode()
    text, empty, lines = decoded.rpartition("\n\n")
    text += "\n"
    if not empty or any(c < " " and c != "\n" for c in decoded) or (lines and not lines.endswith("\n")):
        raise BadNote("no note")
    signed = []
    for line in lines.splitlines():
        dash, name, encoded = line.split(" ")
        blob = base64.b64decode(encoded, validate=True)
        if dash != "\u2014" or not name or "+" in name or len(blob) < 5:
            raise BadNote(f"no signature line: {line}")
        vkey, public = known.get((name, blob[:4]), (None, b""))
        if vkey is None:
            continue
        if not is_signature(public, text.encode(), blob[4:]):
            raise BadNote(f"the signature by {vkey} does not verify")
        signed.append(vkey)
    return text, signed
