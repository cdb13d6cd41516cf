"""File names that are not text become text, and are known again. Opens nothing.

A POSIX name is bytes; where they are not UTF-8, Python holds them as lone surrogates, which no table can store.
"""

import os
import re

_ODD = re.compile("[\\\\\ud800-\udfff]")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def printable_name(name: str) -> str:
    r"""The name itself if it is UTF-8; else each byte that is not as `\xff`, and a backslash as `\x5c`.

    Different names stay different among those that are escaped.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return _ODD.sub(_escaped, name)
    return name


def original_name(name: str) -> bytes | None:
    """The bytes that `printable_name` escaped; None where they are the name's own."""
    escaped = os.fsencode(name)
    plain = _ESCAPE.sub(lambda match: bytes.fromhex(match.group(1).decode()), escaped)
    return None if plain == escaped else plain


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return "\\x5c" if code == 0x5C else f"\\u{code:04x}"
