"""A reader of headwater datasets in a local folder, written from SPEC.md alone; numbers in brackets: its sections."""
import base64
import hashlib
import hmac
import json
import re
from functools import cache, partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
import msgpack
import xxhash
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# Forms, for fits(): (low, high) is a number, a range a byte string of such a length, a text another text that it
# matches as a pattern, [form, form] an array of two, [form, ...] one of any length, a type or function what it says.
MIB, TOP, INT64, END, TIME = 1 << 20, 2**53 - 1, (-(2**63), 2**63 - 1), b"\xff" * 4097, (0, 9_000_000_000)
NUMBER, POSITIVE, SIZE, KEY, VALUE, HASH = (0, TOP), (1, TOP), (1, 16 * MIB), range(4097), range(MIB + 1), range(16, 17)
HEX, REF, HEAD_REF = "[0-9a-f]{32}", [range(32, 33), SIZE, SIZE], ["[0-9a-f]{64}", SIZE, SIZE]
BASE64 = "(?:B{4})+(?:B{4}|BB[AEIMQUYcgkosw048]=|B{5}[AQgw]==)".replace("B", "[A-Za-z0-9+/]")  # of 5 bytes or more
NOTE = f"headwater/1 ([A-Za-z0-9][A-Za-z0-9._-]{{0,63}})\n([^\0-\x1f]+)\n\n(?:— [^\\s\0-\x1f+]+ {BASE64}\n)*"
TYPES = {"int64": INT64, "float64": float, "text": str, "blob": bytes, "bool": bool, "json": msgpack.ExtType}
TABLE = [str, [[str, "|".join([*TYPES, "any"])], ...], [NUMBER, ...], [[str, bool, [NUMBER, ...]], ...]]
RANGE, PATCH = [NUMBER, POSITIVE], [bytes, HASH, bytes]
INTEGERS, STRING = b"|".join(b"[%c%c].{%d}" % (20 - s, 20 + s, s) for s in range(9)), rb"([^\0]*(?:\0\xff[^\0]*)*)\0"
ELEMENT = re.compile(rb"([\1-\3])|(%b)|\x21(.{8})|0%b|1%b" % (INTEGERS, STRING, STRING), re.DOTALL)
NAME, KEY_ID = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "[0-9a-f]{8}"
SECRET = re.compile(rf"HEADWATER-SECRET\+({NAME})\+({KEY_ID})\+([A-Za-z0-9+/]{{42}}[AEIMQUYcgkosw048]=)\n?")
BAD_PATH = re.compile(rb"(?:\A|/)\.{0,2}(?:/|\Z)|[^/]{256}|[\0-\x1f\x7f]")

class Refused(Exception):
    """Something breaks a rule of SPEC.md."""
class Mismatch(Refused):
    """A patch does not fit what is held; the diff does (5.7)."""
def need(fine, why, result=None):
    if not fine:
        raise Refused(why)
    return result
def attempt(function, *values, **options):
    try:
        return function(*values, **options)
    except Exception as why:
        raise Refused(f"{function}: {why}") from why
utf8 = partial(attempt, str, encoding="utf-8")
def unpack(data):
    """The one MessagePack value that the data consist of (4.3)."""
    attempt(msgpack.Unpacker(BytesIO(data), max_buffer_size=len(data)).skip)  # so what arrays declare is there
    return attempt(msgpack.unpackb, data)
def fits(value, form):
    kind = type(form)
    if kind is list and type(value) is list:
        forms = form[:1] * len(value) if form[-1] is ... else form
        return len(forms) == len(value) and all(map(fits, value, forms))
    return (type(value) is int and form[0] <= value <= form[1] if kind is tuple else
            type(value) is bytes and len(value) in form if kind is range else
            type(value) is str and re.fullmatch(form, value) if kind is str else
            type(value) is form if kind is type else callable(form) and form(value))
def check(value, form):
    return need(fits(value, form), f"a value that is not of the form {form}", value)

def frame(data, raw=None, dictionary=None, limit=16 * MIB):
    """The content of the one frame that the data consist of (4.1)."""
    header = attempt(zstandard.get_frame_parameters, data)
    need(0 < header.content_size <= limit and raw in (None, header.content_size), "content size of a frame")
    fine = data[:4] == b"\x28\xb5\x2f\xfd" and header.window_size <= 16 * MIB and header.dict_id == 0
    need(fine and (header.has_checksum or not dictionary), "magic number, window, dictionary ID or checksum of a frame")
    known = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    return attempt(zstandard.ZstdDecompressor(dict_data=known).decompress, data, allow_extra_data=False)
class Secret:
    """The secret of an encrypted dataset (11.1)."""
    def __init__(self, text):
        self.name, self.id, key = check(SECRET.fullmatch(text), re.Match).groups()
        self.keys = {use: HKDF(SHA256(), 32, None, f"headwater-secret/1 {use} {self.name}".encode()).derive(
            base64.b64decode(key)) for use in ("encrypt", "nonce", "id")}
        need(self.keys["id"][:4].hex() == self.id, "id of a secret")
    def text(self, data, about):  # what was encrypted with some data
        text = attempt(AESGCM(self.keys["encrypt"]).decrypt, data[:12], data[12:], about)
        return need(hmac.digest(self.keys["nonce"], about + text, "sha256")[:12] == data[:12], "nonce", text)
    def file(self, data):
        """The frame in a file, and its links as sets of (SHA-256, size) by area (11.3)."""
        end = 4 + 37 * int.from_bytes(data[:4])
        links = [data[at : at + 37] for at in range(4, need(end <= len(data), "number of links", end), 37)]
        names, sizes = [item[:33] for item in links], [int.from_bytes(item[33:]) for item in links]
        need(names == sorted(set(names)) and all(name[0] < 2 for name in names), "order or area of links")
        need(all(fits(size, SIZE) for size in sizes), "size of a link")
        found = [{(name[1:], size) for name, size in zip(names, sizes, strict=True) if name[0] == at} for at in (0, 1)]
        about = b"headwater-file/1 " + self.name.encode() + b"\n" + data[:end]
        return self.text(data[end:], about), dict(zip(("chunks", "diffs"), found, strict=True))
    def head(self, head):  # an object with what was sealed in it (11.2)
        first, second = (f"headwater-sealed/1 {self.name}", "{epoch} {version} {publish_id}".format(**head))
        root = "{version} {tree[0]}".format(**head["snapshot"])
        text = self.text(base64.b64decode(head["sealed"]), f"{first}\n{second} {root}\n".encode())
        fine = text[24:] in (b"files", b"table", b"bytes") and int.from_bytes(text[16:24]) <= TOP
        sealed = {"checksum": text[:16].hex(), "records": int.from_bytes(text[16:24]), "kind": text[24:].decode()}
        return need(fine, "upgrade needed: kind, or number of records", head | sealed)
def named(value):
    """The files that references anywhere in a value name, as a set of (SHA-256, size) (4.2)."""
    parts = [*value.values()] if type(value) is dict else value if type(value) is list else []
    return {tuple(parts[:2]) for _ in [0] if fits(parts[:3], REF)}.union(*map(named, parts))

def tree(ref, value):  # whether a value is the root of a tree, its reference being of the form ref (5.5)
    return fits(value, ref) or fits(value, [*ref, (0, 15), NUMBER, NUMBER])
def diff(value, ref):  # a diff, checked (5.6)
    count = 2 if len(check(value, list)) == 4 else 1
    a, b, *_ = check(value, [NUMBER, NUMBER, *[partial(tree, ref)] * count])
    return need(a < b and (count == 1 or b == a + 1), "versions of a diff", value)
def log(raw):
    """The diffs and the segments of a log (5.8)."""
    diffs, segments = check(unpack(raw), [list, [[NUMBER, NUMBER, POSITIVE, REF], ...]])
    need(len(raw) <= 4 * MIB and all(widest <= b - a for a, b, widest, _ in segments), "size or widest of a log")
    return [diff(item, REF) for item in diffs], segments
def piece(value, nesting=0):  # the number of files that build a piece, which is checked, and their size (5.4)
    _, _, raw, _, bases = check(value, [*REF, HASH, list])
    files, size = map(sum, zip((1, raw), *(piece(base, nesting + 1) for base in bases if nesting < 9), strict=True))
    need(nesting <= 8 and files <= 64 and size <= 64 * MIB, "nesting or files of a piece")
    return need(sum(base[2] for base in bases) <= min(8 * MIB, 8 * raw), "bases of a piece", (files, size))
def patch_piece(value):  # a piece in a patch, checked, some of whose bases may be ranges (5.7)
    *file, bases = check(value, [*REF, HASH, list])
    pieces = [base for base in bases if not fits(base, RANGE)]
    fine = piece([*file, pieces]) and sum(base[:3][-1] for base in bases) <= min(8 * MIB, 8 * file[2])
    return need(fine and (bases == pieces or len(bases) <= 4096), "ranges of a piece", True)
def entries(parts, depth, size):  # what stands for so many bytes in a large value or a list, checked (5.3)
    need(check(parts, [[*REF, POSITIVE] if depth else piece, ...]), "no entries")
    return need(sum(part[3 if depth else 2] for part in parts) == size, "sizes of entries", parts)
def large_value(value):
    """A large value as it stands in a leaf, checked (5.3)."""
    size, _, _, depth, parts = check(value, [(MIB + 1, TOP), HASH, range(32, 33), (0, 4), list])
    return need(len(msgpack.packb(entries(parts, depth, size))) <= 65536, "size of the entries of a large value", value)
PATCH_PIECES = [[NUMBER, [[NUMBER, patch_piece], ...]], ...]
def ordered(keys, lower, upper):  # keys or bounds, checked (5.1, 5.2)
    fine = not keys or lower <= keys[0] and keys[-1] < (END if upper is None else upper)
    return need(fine and keys == sorted(set(keys)), "order or range of keys", keys)
def leaf(raw, lower=b"", upper=None, deletions=False):
    """The records of a leaf as a dict; large values stay arrays, deletions are None (5.1)."""
    keys, values = check(unpack(raw), [[KEY, ...], list])
    fine = all(large_value(v) if type(v) is list else fits(v, VALUE) or v is None and deletions for v in values)
    return attempt(dict, zip(ordered(keys, lower, upper), need(fine, "values of a leaf", values), strict=True))
def patch_leaf(raw, olds, lower=b"", upper=None):
    """The records of a leaf of a patch as a dict; olds is the state at the version before, a dict (5.7)."""
    keys, digest, values, *pieces = check(unpack(raw), lambda v: fits(v, PATCH) or fits(v, [*PATCH, bytes]))
    names = check(unpack(keys := frame(keys, limit=8 * MIB)), [KEY, ...])
    known = msgpack.packb([old if fits(old, VALUE) else None for old in map(olds.get, names)])
    if len(known) > 8 * MIB or xxhash.xxh3_128_digest(known) != digest:
        raise Mismatch("a patch that does not fit what is held")
    records = leaf(b"\x92" + keys + frame(values, None, known, 8 * MIB), lower, upper, deletions=True)
    found = [item for data in pieces for item in check(unpack(frame(data, limit=8 * MIB)), PATCH_PIECES)]
    need(ordered([n for n, _ in found], 0, len(names)) or not pieces, "no pieces")
    for n, others in found:
        old, value = olds.get(names[n]), records[names[n]]
        need(type(value) is list and ordered([m for m, _ in others], 0, TOP), "pieces for another value, or none")
        for *_, bases in (other for _, other in others if type(old) is bytes):
            bases[:] = [old[base[0] : sum(base)] if len(base) == 2 else base for base in bases]
        value.append(dict(others) if type(old) is bytes else {})
    return records
def index(raw, level, lower=b"", upper=None):
    """The entries of an index, the upper bound added to each (5.2)."""
    found = check(unpack(raw), [[KEY, REF, (0, level - 1), POSITIVE, NUMBER, HASH], ...])
    bounds = ordered([entry[0] for entry in found], lower, upper)
    need(len(raw) <= 4 * MIB and level < 16 and bounds[:1] == [lower], "size, level or first bound of an index")
    return [[*entry, end] for entry, end in zip(found, [*bounds[1:], upper], strict=True)]
def record_hash(key, value):
    """The hash of a record, 16 bytes (6)."""
    return xxhash.xxh3_128_digest(len(key).to_bytes(4, "little") + key + value)
def totals(records):  # their number, the size of the large values, the checksum (5.2, 6)
    pairs = [v[:2] if type(v) is list else (0, record_hash(k, v)) for k, v in records.items() if v is not None]
    return [len(records), sum(size for size, _ in pairs), sum(int.from_bytes(digest) for _, digest in pairs) % 2**128]
def path(key):
    """The components of a path (8.1)."""
    first = re.sub("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]", "", utf8(check(key, KEY)).partition("/")[0])
    return need(not re.fullmatch(r"(?ai)\.headwater[. ]*", first) and not BAD_PATH.search(key), "path", key.split(b"/"))
def file_value(value):
    """Type and content of a value (8.2)."""
    return need(re.fullmatch(rb"[fx].*|d|l[^\0]{1,4095}", value, re.DOTALL), "value of a file", (value[:1], value[1:]))
def schema(value):
    """The tables of a schema by their names (9.1)."""
    tables = {table[0]: table for table in check(unpack(value), [TABLE, ...])}
    fine = len(value) <= 16 * MIB and len(tables) <= 65536 and msgpack.packb([*tables.values()]) == value
    for _, columns, primary, indexes in need(fine, "size, form or names of a schema", tables.values()):
        need(len(columns) <= 4096 and len(indexes) <= 64 and len(dict(columns)) == len(columns), "columns or indexes")
        for numbers in [primary, *(item[2] for item in indexes)]:
            need(numbers and len(set(numbers)) == len(numbers) and max(numbers) < len(columns), "column numbers")
        need(all(columns[at][1] != "json" for at in primary), "JSON in a primary key")
    return tables
def key(data):
    """The name of the table and the primary key that a key stands for (9.2)."""
    found, values = list(ELEMENT.finditer(check(data, KEY))), []
    need(b"".join(item[0] for item in found) == data, "elements of a key")
    for kind, body in ((item.lastindex, item[item.lastindex]) for item in found):
        value = (None, False, True)[body[0] - 1] if kind == 1 else body.replace(b"\0\xff", b"\0")
        if kind == 2:
            value = int.from_bytes(body[1:]) - (256 ** (len(body) - 1) - 1) * (body[0] < 20)
            need(abs(value) >= 256 ** (len(body) - 1) // 256 and fits(value, INT64), "integer in a key")
        if kind == 3:
            value = unpack(b"\xcb" + (int.from_bytes(body) ^ (2**63 if body[0] >> 7 else 2**64 - 1)).to_bytes(8))
            need(value == value and body != b"\x7f" + b"\xff" * 7, "NaN or -0.0 in a key")
        values.append(utf8(value) if kind == 4 else value)
    return need(values and type(values[0]) is str, "a key without a table", (*values[:1], tuple(values[1:])))
def allowed(column, value):  # whether a column of a type may hold a value (9.3)
    return value is None or any(fits(value, TYPES[name]) for name in TYPES if column in (name, "any"))
def row(value, table):
    """The values of a row in the columns outside the primary key, nils at the end included (9.3)."""
    values, primary = check(unpack(need(len(value) <= 256 * MIB, "size of a row", value)), list), set(table[2])
    columns = [kind for at, (_, kind) in enumerate(table[1]) if at not in primary]
    need(len(values) <= len(columns) and values[-1:] != [None] and all(map(allowed, columns, values)), "row")
    need(all(item.code == 1 and utf8(item.data) for item in values if type(item) is msgpack.ExtType), "JSON text")
    need(msgpack.packb([item if item == item else float("nan") for item in values]) == value, "not the shortest form")
    return values + [None] * (len(columns) - len(values))
def check_keys(kind, records):  # of a leaf, deletions too, by the rules of the kind (8.1, 9.1, 9.2)
    for name, value in records.items() if kind != "bytes" else ():
        path(name) if kind == "files" else key(name) if name else need(value is not None, "a deleted schema")
    return records
def check_state(kind, records):  # by the rules of the kind (8 to 10)
    for name, value in check_keys(kind, records).items() if kind == "files" else ():
        above = any(name[: slash.start()] in records for slash in re.finditer(b"/", name))
        need(file_value(value) and not above, f"{name!r} is under a key")
    tables = schema(records.get(b"", b"")) if kind == "table" and records else {}
    for name, values, value in ((*key(name), value) for name, value in records.items() if name and kind == "table"):
        columns = [tables[name][1][at][1] for at in tables[name][2]] if name in tables else []
        need(len(values) == len(columns) > 0 and all(map(allowed, columns, values)), "table or values of a key")
        row(value, tables[name])

HEAD = {"epoch": NUMBER, "version": POSITIVE, "time": TIME, "checksum": HEX, "records": NUMBER, "snapshot": dict,
        "diffs": list, "interval": (1, 604_800), "publish_id": HEX, "trust": NUMBER, "needs": list, "expires": TIME, "keep": TIME,
        "log": lambda log: log is None or fits(log, HEAD_REF)}
SEALED = {"encryption": lambda value: type(value) is dict and fits(value.get("key"), KEY_ID), "sealed": lambda text:
          fits(text, BASE64) and 53 <= len(base64.b64decode(text)) <= 116}
def parse_head(data):
    """Name and object of a HEAD, sealed if it is (11.2); of its signatures only the form is checked (7)."""
    need(data.startswith(b"headwater/1 "), "upgrade needed: format" if data.startswith(b"headwater/") else "no HEAD")
    found, bad = re.fullmatch(NOTE, need(len(data) <= 16384, "size of HEAD", utf8(data))), []
    head = attempt(json.loads, check(found, re.Match)[2], parse_float=bad.append, parse_constant=bad.append,
                   parse_int=lambda text: int(text) if abs(float(text)) <= TOP and text != "-0" else bad.append(text),
                   object_pairs_hook=lambda items: bad.extend(items[len(dict(items)):]) or dict(items))
    needs = check(head, dict).get("needs")
    unknown = {item for item in needs if type(item) is str} - {"encryption"} if type(needs) is list else set()
    encrypted = type(needs) is list and "encryption" in needs
    known = encrypted or head.get("kind") in ("files", "table", "bytes")
    need(known and not unknown, f"upgrade needed: {needs!a} or kind")  # 7.3
    depths = accumulate(1 if item in "[{" else -1 for item in re.sub(r'"(?:\\.|[^"\\])*"|[^][{}]', "", found[2]))
    need(not bad and fits(needs, [str, ...] if needs else list) and max(depths) <= 32, "a name twice, number or nesting")
    attempt(json.dumps(head, ensure_ascii=False).encode)  # no lone surrogate
    need(not encrypted or not {"kind", "checksum", "records"} & {*head}, "something in the clear")
    forms = HEAD | (SEALED | dict.fromkeys(("checksum", "records"), lambda value: value is None) if encrypted else {})
    need(all(fits(({"expires": 0, "keep": 0} | head).get(name), form) for name, form in forms.items()), "form of HEAD")
    fine = all(diff(item, HEAD_REF)[1] <= head["version"] for item in head["diffs"])
    fine = fine and fits(head["snapshot"].get("version"), (1, head["version"]))
    return need(fine and tree(HEAD_REF, head["snapshot"].get("tree")), "snapshot or diffs", (found[1], head))

class Dataset:
    """A dataset in a folder (3); secret is the text of its secret, if it is encrypted (11)."""
    def __init__(self, folder, head="HEAD", secret=None):
        self.folder, (self.name, self.head) = Path(folder), parse_head(attempt((Path(folder) / head).read_bytes))
        self.secret, key = secret and Secret(secret), self.head.get("encryption", {}).get("key")
        if "encryption" in self.head["needs"]:
            need(self.secret and (self.secret.name, self.secret.id) == (self.name, key), f"no secret {key}")
            self.head = self.secret.head(self.head)
        else:
            need(not secret, "not encrypted")
        self.links = {}
        need(head in ("HEAD", f"heads/{self.head['epoch']}-{self.head['version']}"), "HEAD of another version")
    def read(self, area, ref, dictionary=None):
        """The content of the file that a reference names (3, 4.1, 4.2)."""
        name = ref[0] if type(ref[0]) is str else ref[0].hex()
        data = attempt((self.folder / area / name[:2] / f"{name}.zst").read_bytes)
        need(len(data) == ref[1] and hashlib.sha256(data).hexdigest() == name, f"size or hash of {area} {name}")
        data, self.links[name] = self.secret.file(data) if self.secret else (data, None)
        return frame(data, ref[2], dictionary)
    def check_links(self, area, ref, found, exact=True):  # of a file, which names what was found, and perhaps more (11.3)
        links = self.links[ref[0] if type(ref[0]) is str else ref[0].hex()] or {"chunks": set(), "diffs": set()}
        links, other = links[area], links["diffs" if area == "chunks" else "chunks"]
        fine = not other and (links == found if exact else links >= found)
        return need(not self.secret or fine, "links of a file", found)
    def walk(self, area, root, decode, lower=b"", upper=None):
        """The records of a tree, given as [sha256, stored, raw, level, ...] (5.2, 5.5)."""
        raw, level, records = self.read(area, root), (root[3:] or [0])[0], {}
        found = index(raw, level, lower, upper) if level else []
        self.check_links(area, root, named(found)) if level else None
        for low, ref, inner, count, large, checksum, high in found:
            found = self.walk(area, [*ref, inner], decode, low, high)
            need(totals(found) == [count, large, int.from_bytes(checksum)], "records, large or checksum of an index")
            records |= found
        records = records if level else check_keys(self.head["kind"], decode(raw, lower=lower, upper=upper))
        patched = type(decode) is partial and decode.func is patch_leaf  # which leaves out what cannot be used
        level or self.check_links("chunks", root, named(records), not patched)
        return records
    def pieces(self, depth, parts):  # that entries stand for, in order (5.3)
        for part in parts if depth else ():
            found = unpack(need(part[2] <= 4 * MIB, "size of a list", part) and self.read("chunks", part))
            self.check_links("chunks", part, named(found))
            yield from self.pieces(depth - 1, entries(found, depth - 1, part[3]))
        yield from () if depth else parts
    def content(self, part):
        """The content of a piece, or of a range of what is held, which is given as it is (5.4, 5.7)."""
        if type(part) is bytes:
            return part
        data = self.read("chunks", part, part[4] and b"".join([bytes(8), *map(self.content, part[4])]))
        self.check_links("chunks", part, set())
        return need(xxhash.xxh3_128_digest(data) == part[3], "check of a piece", data)
    def diffs(self, version):
        """HEAD's diffs, and those in its log that lead to later versions than this (5.6, 5.8)."""
        diffs = [*self.head["diffs"]]
        @cache
        def read(ref):
            found = log(self.read("diffs", ref))
            self.check_links("diffs", ref, named([list(part) for part in found]))
            return found
        @cache
        def extent(ref, depth):  # lowest a, highest b and width of what a log lists, which is added to diffs
            found, segments = read(need(depth <= 8, "nesting of segments", ref))
            for a, b, widest, inner in segments:
                low, high, width = extent(tuple(inner), depth + 1) if b > version else (a, b, 0)
                need(a <= low and high <= b and width <= widest, "something outside its segment")
            diffs.extend(found)
            spans = [(TOP, 0, 0), *((a, b, b - a) for a, b, *_ in found), *(segment[:3] for segment in segments)]
            return [choose(span[at] for span in spans) for at, choose in enumerate((min, max, max))]
        return extent(tuple(self.head["log"]), 0) and diffs if self.head.get("log") else diffs
    def apply(self, records, version, patches=False):
        """The records of HEAD's version, from those of another version of its epoch, by diffs (2, 5.6, 5.7, 6)."""
        state, newest, diffs = dict(records), self.head["version"], self.diffs(version)
        while version != newest:
            usable = [item for item in diffs if item[0] <= version < item[1] <= newest]
            _, version, root, *patch = attempt(max, usable, key=lambda item: (patches and len(item) == 4, item[1]))
            try:
                changes = self.walk("diffs", patch[:patches][0], partial(patch_leaf, olds=state))
            except (IndexError, Mismatch):
                changes = self.walk("diffs", root, partial(leaf, deletions=True))
            state = {name: value for name, value in (state | changes).items() if value is not None}
        for name, value in [item for item in state.items() if type(item[1]) is list]:
            size, *hashes, depth, parts, others = [*value, {}][:6]
            pieces = [*self.pieces(depth, need(size <= 2 << 30, "room", parts))]
            fine = all(n < len(pieces) and pieces[n][2:4] == other[2:4] for n, other in others.items())
            found = (others.get(n, part) for n, part in enumerate(need(fine, "pieces of a patch", pieces)))
            whole = state[name] = b"".join(map(self.content, found))
            need([record_hash(name, whole), hashlib.sha256(whole).digest()] == hashes, "hash of a large value")
        need(totals(state) == [self.head["records"], 0, int(self.head["checksum"], 16)], "records or checksum")
        return check_state(self.head["kind"], state) or state
    def records(self, way="snapshot"):
        """The records of HEAD's version, from the snapshot on; way "patches" uses patches where there are some (2)."""
        start = self.head["snapshot"]
        return self.apply(self.walk("chunks", start["tree"], leaf), start["version"], way == "patches")
