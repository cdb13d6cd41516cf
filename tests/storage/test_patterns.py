"""Globs: tables of meanings, and Python's own glob as the oracle on a real folder."""

import glob
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchdet.errors import SourceError
from batchdet.storage.patterns import compile_glob, has_magic
from tests.storage.made import listed

EXTENSIONS = ("jpg", "png")

MATCHES = [
    ("b/*.jpg", "b/a.jpg", True, "star"),
    ("b/*.jpg", "b/c/a.jpg", False, "a star stays in its folder"),
    ("b/*.jpg", "b/a.JPG", True, "extensions have no case"),
    ("b/IMG*.jpg", "b/img1.jpg", False, "names have case"),
    ("b/*.JpG", "b/a.jpg", True, "nor does the extension of the pattern"),
    ("b/**/*.jpg", "b/a.jpg", True, "no folder in between"),
    ("b/**/*.jpg", "b/c/d/a.jpg", True, "two folders in between"),
    ("b/**", "b/c/a.png", True, "everything below that is an image"),
    ("b/**", "b/c/a.txt", False, "the pattern names no extension: images only"),
    ("b/*", "b/a.png", True, "likewise"),
    ("b/*", "b/a.parquet", False, "likewise"),
    ("b/*.*", "b/a.txt", False, "a star is no extension"),
    ("b/*.dat", "b/a.dat", True, "a named extension decides by itself"),
    ("b/*.{jpg,png}", "b/a.png", True, "braces"),
    ("b/*.{jpg,png}", "b/a.PNG", True, "braces, no case"),
    ("b/*.{jpg,png}", "b/a.gif", False, "braces"),
    ("b/{x,y/z}/*.jpg", "b/y/z/a.jpg", True, "braces over folders"),
    ("b/{x,y{1,2}}/*.jpg", "b/y2/a.jpg", True, "braces in braces"),
    ("b/*{.jpg,_small.png}", "b/a_small.png", True, "braces around the dot"),
    ("b/{a,b}", "b/a", False, "no extension, no image"),
    ("b/?.jpg", "b/é.jpg", True, "one character, not one byte"),
    ("b/?.jpg", "b/ab.jpg", False, "one character"),
    ("b/a?c.jpg", "b/a/c.jpg", False, "never a slash"),
    ("b/[a-c]*.jpg", "b/cat.jpg", True, "range"),
    ("b/[!a-c]*.jpg", "b/cat.jpg", False, "negated range"),
    ("b/[!a-c]*.jpg", "b//x.jpg", False, "a negated range is no slash"),
    ("b/*.[jp][pn]g", "b/a.PNG", True, "range in the extension"),
    ("b/a[[]1].jpg", "b/a[1].jpg", True, "a bracket for itself"),
    ("b/a[?].jpg", "b/a?.jpg", True, "a question mark for itself"),
    ("b/a[?].jpg", "b/ab.jpg", False, "and nothing else"),
    ("b/a[{]b,c}*.jpg", "b/a{b,c}1.jpg", True, "a brace for itself"),
    ("b/a(1)+.*jpg", "b/a(1)+.jpg", True, "nothing else is special"),
    ("b/[^a].jpg", "b/^.jpg", True, "a caret is a character"),
    ("b/[]].jpg", "b/].jpg", True, "a bracket first in a class"),
    ("b/2026-0*/**", "b/2026-05/x/a.jpg", True, "a prefix inside a name"),
    ("b/**/raw/**/*.jpg", "b/1/raw/2/3/a.jpg", True, "twice any folders"),
    ("b/**/raw/**/*.jpg", "b/raw/a.jpg", True, "twice none"),
    ("b/**/raw/*.jpg", "b/draw/a.jpg", False, "whole segments"),
    ("b/a\n*.jpg", "b/a\nb.jpg", True, "a newline is a character"),
]


@pytest.mark.parametrize(("pattern", "key", "expected", "reason"), MATCHES)
def test_match(pattern: str, key: str, expected: bool, reason: str) -> None:
    compiled = compile_glob(pattern, EXTENSIONS)
    assert compiled.matches(key) is expected, reason
    if expected:
        assert key.startswith(compiled.prefix), "every match lies under the listed prefix"


@pytest.mark.parametrize(
    ("pattern", "prefix", "max_folders"),
    [
        ("b/p/**/*.jpg", "b/p/", None),
        ("b/p/2026-0*/x/*.jpg", "b/p/2026-0", 2),
        ("b/p/*.jpg", "b/p/", 0),
        ("b/{p,q}/*.jpg", "b/", 1),
        ("b/{p/x,p/y}/*.jpg", "b/p/", 1),
        ("b/{p/x/z,p}/*.jpg", "b/p/", 2),
        ("b/{p/x,pq}/*.jpg", "b/p", 2),
    ],
)
def test_prefix_and_depth(pattern: str, prefix: str, max_folders: int | None) -> None:
    compiled = compile_glob(pattern, EXTENSIONS)
    assert (compiled.prefix, compiled.max_folders) == (prefix, max_folders)


@pytest.mark.parametrize("pattern", ["b/{a", "b/" + "{a,b,c,d,e,f,g,h,i,j}" * 4])
def test_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\{ is not closed|more than 1000"):
        compile_glob(pattern, EXTENSIONS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("s3://b/p/", False), ("s3://b/p [2026]/x", True), ("a/{x}/b", False), ("a/{x,y}/b", True), ("a/b#c%20", False)],
)
def test_has_magic(source: str, expected: bool) -> None:
    assert has_magic(source) is expected


FOLDERS = ["", "a/", "ab/", "a/b/", "d.jpg/", "a/b/c/"]
NAMES = ["a.jpg", "b.jpg", "ab.png", "c1.jpg", ".hidden.jpg", "x.tif", "[1].jpg"]
SEGMENT = st.sampled_from(["*", "?", "a", "a*", "*b", "[ab]", "[!a]*", "b.jpg", "**"])
LAST = st.sampled_from(["*.jpg", "?.jpg", "*.png", "[a-c]*.jpg", "a?.*g", "c[0-9].jpg", "*", "[[]1].jpg", "**"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        for name in NAMES:
            (root / folder / name).touch()
    return root


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segments=st.lists(SEGMENT, max_size=3), last=LAST)
def test_equals_pythons_glob(tree: Path, segments: list[str], last: str) -> None:
    pattern = str(tree.joinpath(*segments, last))
    found = glob.glob(pattern, recursive=True, include_hidden=True)  # noqa: PTH207
    expected = {f"file://{name}" for name in found if Path(name).is_file() and name.endswith((".jpg", ".png"))}
    if expected:
        assert set(listed(pattern, EXTENSIONS)) == expected
    else:
        with pytest.raises(SourceError, match=r"no images|not found|not a directory"):
            listed(pattern, EXTENSIONS)
