"""What the storage tests share: impatience, nasty keys, and the options that make a store give up early."""

from batchdet.storage.patience import Patience

IMPATIENT = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, give_up_s=20.0, write_s=1.0)
SHORT_TIMEOUTS = {"config_kwargs": {"connect_timeout": 0.5, "read_timeout": 0.5}}

NASTY_NAMES = {
    "a b.jpg": "space",
    "100%.jpg": "percent that is no escape",
    "a%20b.jpg": "percent that looks like one",
    "a#b.jpg": "fragment mark",
    "a?b=c&d.jpg": "query mark",
    "a*b.jpg": "star",
    "a[0-9].jpg": "character class",
    "a{b,c}.jpg": "braces",
    "s3::a.jpg": "chain mark",
    "übergröße 日本 🐕.jpg": "unicode",
    "e\u0301.jpg": "unicode not in normal form",
    "a+b.jpg": "plus",
    "a;b,c=d@e:f.jpg": "punctuation",
    "~a.jpg": "home mark",
    ".hidden.jpg": "leading dot",
    "a\\b.jpg": "backslash",
    "a'b\"c.jpg": "quotes",
    "a<b>&amp;.jpg": "markup, as listings are XML",
    " lead and trail .jpg": "leading space",
}
"""File names by why they are nasty. Each is an ordinary S3 key and an ordinary Linux file name."""
