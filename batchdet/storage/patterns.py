"""Glob patterns over whole keys: `**`, `*`, `?`, `[…]`, `{a,b}`. Knows no storage.

`*`, `?` and `[…]` stay inside one folder; `**` as a whole segment is any number of folders, none among them.
`[[]`, `[?]`, `[*]` and `[{]` stand for the character itself.
"""

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_ALTERNATIVES = 1000


@dataclass(frozen=True, slots=True)
class Glob:
    """A compiled pattern.

    Attributes:
        prefix: literal text every match begins with.
        regex: matches whole keys.
        max_folders: folders a match can lie below the last folder of `prefix`; None with `**`.
    """

    prefix: str
    regex: re.Pattern[str]
    max_folders: int | None

    def matches(self, key: str) -> bool:
        """Whether the whole key fits."""
        return self.regex.fullmatch(key) is not None


def has_magic(pattern: str) -> bool:
    """Whether this is a pattern and not a plain name."""
    return re.search(r"[*?]|\[[^/]+\]|\{[^{}]*,[^{}]*\}", pattern) is not None


def compile_glob(pattern: str, extensions: Sequence[str]) -> Glob:
    """Compile a pattern.

    An alternative whose last segment names an extension (`*.jpg`, `*.[jt]if`) decides by itself, its extension compared
    without regard to case; any other (`**`, `IMG_*`, `*.*`) matches only keys that end in one of `extensions`.

    Raises:
        ValueError: braces that do not close, or that expand to too many alternatives.
    """
    alternatives = _expand(pattern)
    literals = [re.split(r"[*?\[]", alternative, maxsplit=1)[0] for alternative in alternatives]
    prefix = os.path.commonprefix(literals)  # noqa: RUF071 - keys, not paths
    folder = prefix.rpartition("/")[0]
    below = [alternative[len(folder) :].strip("/").count("/") for alternative in alternatives]
    endless = any("**" in alternative for alternative in alternatives)
    ending = "|".join(re.escape(extension) for extension in extensions)
    regex = "|".join(_translate(alternative, ending) for alternative in alternatives)
    return Glob(prefix, re.compile(regex, re.DOTALL), None if endless else max(below))


def _expand(pattern: str) -> list[str]:
    """Every alternative of the braces, outermost first; braces inside `[…]` are characters."""
    found = _find_braces(pattern)
    if found is None:
        return [pattern]
    begin, cuts = found
    end = cuts[-1]
    expanded = []
    for left, right in zip([begin, *cuts[:-1]], cuts, strict=True):
        expanded += _expand(pattern[:begin] + pattern[left + 1 : right] + pattern[end + 1 :])
        if len(expanded) > _MAX_ALTERNATIVES:
            raise ValueError(f"braces expand to more than {_MAX_ALTERNATIVES} alternatives")
    return expanded


def _find_braces(pattern: str) -> tuple[int, list[int]] | None:
    """Where the first brace opens, and where its commas and its end lie."""
    depth, begin, cuts, position = 0, 0, list[int](), 0
    while position < len(pattern):
        character = pattern[position]
        if character == "[" and (close := _class_end(pattern, position)):
            position = close
        elif character == "{":
            begin = position if depth == 0 else begin
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                return begin, [*cuts, position]
        elif character == "," and depth == 1:
            cuts.append(position)
        position += 1
    if depth:
        raise ValueError("a { is not closed; write [{] for the character itself")
    return None


def _class_end(pattern: str, begin: int) -> int | None:
    """Where the `[…]` that opens at `begin` closes; None if it is a plain bracket."""
    first = begin + 2 if pattern[begin + 1 : begin + 2] == "!" else begin + 1
    end = pattern.find("]", first + 1)
    return None if end < 0 or "/" in pattern[begin:end] else end


def _translate(pattern: str, ending: str) -> str:
    *folders, last = pattern.split("/")
    body = "".join("(?:[^/]+/)*" if folder == "**" else _segment(folder) + "/" for folder in folders)
    if last == "**":
        return rf"(?=.*\.(?i:{ending})\Z){body}.*"
    stem, dot, extension = last.rpartition(".")
    if dot and extension and "*" not in extension:
        return rf"{body}{_segment(stem)}\.(?i:{_segment(extension)})"
    return rf"(?=.*\.(?i:{ending})\Z){body}{_segment(last)}"


def _segment(text: str) -> str:
    """One segment without its slashes, as a regular expression."""
    parts, position = [], 0
    while position < len(text):
        character = text[position]
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[" and (end := _class_end(text, position)):
            parts.append(_class(text[position + 1 : end]))
            position = end
        else:
            parts.append(re.escape(character))
        position += 1
    return "".join(parts)


def _class(inside: str) -> str:
    negated = inside.startswith("!")
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
    return f"(?!/)[{'^' if negated else ''}{members}]"
