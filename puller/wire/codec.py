"""The one codec (SPEC 4): MessagePack inside a single Zstandard frame, named by SHA-256.

Pure functions from bytes to values and back: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import zstandard

from puller.errors import Corrupt, Invalid

MAX_STORED = 16 * 1024 * 1024
MAX_RAW = 16 * 1024 * 1024
MAX_WINDOW = 16 * 1024 * 1024
MAX_KEY = 4096
MAX_INLINE = 1024 * 1024
MAX_INTEGER = 2**53 - 1

CHUNKS = "chunks"
DIFFS = "diffs"


class Ref(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names an immutable file (SPEC 4.2): SHA-256 and size of its stored bytes, size of its raw bytes."""

    sha256: bytes
    stored: int
    raw: int


def path_of(area: str, sha256: bytes) -> str:
    """The path of an immutable file below the dataset's base address (SPEC 3)."""
    name = sha256.hex()
    return f"{area}/{name[:2]}/{name}.zst"


def check_ref(ref: Ref) -> Ref:
    """Return `ref` if it keeps the limits of SPEC 4.2; raise Invalid otherwise."""
    if len(ref.sha256) != 32:
        raise Invalid("a reference's SHA-256 is not 32 bytes long")
    if not (0 < ref.stored <= MAX_STORED and 0 < ref.raw <= MAX_RAW):
        raise Invalid(f"a reference's sizes are out of bounds: {ref.stored} stored, {ref.raw} raw")
    return ref


def compress(raw: bytes, level: int = 3, dictionary: bytes | None = None) -> bytes:
    """One Zstandard frame with content size; with a raw-content `dictionary`, a checksum as well (SPEC 4.1)."""
    if dictionary is None:
        return zstandard.ZstdCompressor(level=level).compress(raw)
    window = max(17, (len(dictionary) + len(raw)).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=min(24, window), hash_log=20, enable_ldm=True, write_checksum=True, write_dict_id=False
    )
    content = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=content).compress(raw)


def decompress(frame: bytes, raw_size: int | None, limit: int = MAX_RAW, dictionary: bytes | None = None) -> bytes:
    """The content of one frame (SPEC 4.1).

    The header is checked before anything is allocated: the content size must be there, equal `raw_size`
    (where that is known) and keep to `limit`. Raises Corrupt.
    """
    try:
        header = zstandard.get_frame_parameters(frame)
        size = header.content_size
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            raise Corrupt("a Zstandard frame does not say its content size")
        if not 0 < size <= limit or (raw_size is not None and size != raw_size):
            raise Corrupt(f"a Zstandard frame holds {size} bytes where {raw_size or limit} were declared")
        if header.window_size > MAX_WINDOW:
            raise Corrupt("a Zstandard frame needs a window over 16 MiB")
        if header.dict_id:
            raise Corrupt("a Zstandard frame names a dictionary id")
        if dictionary is not None and not header.has_checksum:
            raise Corrupt("a patched Zstandard frame has no checksum")
        content = (
            zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
        )
        decompressor = zstandard.ZstdDecompressor(dict_data=content, max_window_size=MAX_WINDOW)
        raw = decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError, MemoryError) as error:
        raise Corrupt(f"a Zstandard frame cannot be decoded: {error}") from error
    if len(raw) != size:
        raise Corrupt("a Zstandard frame is shorter than it says")
    return raw


def seal(raw: bytes, level: int = 3) -> tuple[Ref, bytes]:
    """Compress `raw` into a stored file; return its reference and its bytes."""
    stored = compress(raw, level)
    return check_ref(Ref(hashlib.sha256(stored).digest(), len(stored), len(raw))), stored


def check_stored(ref: Ref, stored: bytes) -> bytes:
    """Return `stored` if it is the file that `ref` names; raise Corrupt otherwise (SPEC 4.2)."""
    if len(stored) != ref.stored:
        raise Corrupt(f"{len(stored)} bytes where {ref.stored} were declared")
    if hashlib.sha256(stored).digest() != ref.sha256:
        raise Corrupt("its bytes do not match its name")
    return stored


encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """A strict MessagePack decoder for `type_` that raises Invalid; made when it is first used, which takes a while."""
    decode: Callable[[bytes], Any] | None = None

    def strict(raw: bytes) -> Any:
        nonlocal decode
        if decode is None:
            decode = msgspec.msgpack.Decoder(type_).decode
        try:
            return decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"MessagePack of an unexpected form: {error}") from error

    return strict
