"""Tell somebody how a night went, by one HTTP POST. Knows no runs; what it tells is given to it.

A webhook's URL is itself a secret (Slack's is): only its host is ever shown. Nothing here can fail or hold up a
night: the wait is bounded, and what went wrong is one line that is returned.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity

from batchdet.errors import ConfigError
from batchdet.outlets import NotifyConfig

TRIES = 2
"""A request is made at most so often."""

_PAUSE_S = 0.5
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_HEADER_LETTERS = 150
_SECTION_LETTERS = 3000


@dataclass(frozen=True, slots=True)
class Message:
    """What is told.

    Attributes:
        title: one line: what ran, and how it ended.
        lines: a few facts, one line each; plain text.
        document: the night's summary as JSON text; `format: json` sends it as it is.
    """

    title: str
    lines: Sequence[str]
    document: str


class _Refused(Exception):  # noqa: N818 (it never leaves this module)
    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_transient = is_transient


def webhook_url(config: NotifyConfig, environ: Mapping[str, str] = os.environ) -> str:
    """Where to post to; ask before a night begins, so that a mistake is seen by who can mend it.

    Raises:
        ConfigError: the environment has no such variable, or it holds no HTTP URL.
    """
    if config.url is not None:
        return config.url
    url = environ.get(str(config.url_env), "").strip()
    if not url:
        raise ConfigError(f"notify.url_env: the environment has no {config.url_env}")
    if not _is_http(url):
        raise ConfigError(f"notify.url_env: {config.url_env} holds no http:// or https:// URL")
    return url


def tell(config: NotifyConfig, message: Message, environ: Mapping[str, str] = os.environ) -> str | None:
    """Post a message; waits `TRIES` times `config.timeout_s` and a little, whatever the other side does.

    Returns:
        None when it was taken, else one line that says why not, without the URL's path.
    """
    try:
        url = webhook_url(config, environ)
    except ConfigError as error:
        return str(error)
    outcome: list[str | None] = []
    body = payload(config, message)
    # A thread, as no client bounds the whole of a request: names that resolve slowly, answers that trickle.
    poster = threading.Thread(
        target=lambda: outcome.append(_post(url, body, config.timeout_s)), name="batchdet-notify", daemon=True
    )
    poster.start()
    poster.join(TRIES * config.timeout_s + _PAUSE_S)
    why = outcome[0] if outcome else f"no answer within {config.timeout_s:g} s"
    return None if why is None else f"webhook {_shown(url)}: {why}"


def payload(config: NotifyConfig, message: Message) -> bytes:
    """The body of the request."""
    if config.format == "json":
        return message.document.encode()
    return json.dumps(_slack(message), ensure_ascii=False).encode()


def _slack(message: Message) -> dict[str, Any]:
    """What Slack's incoming webhooks take; Mattermost, Rocket.Chat and others read the text."""
    title = " ".join(message.title.split())
    lines = _escaped("\n".join(message.lines))
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": title[:_HEADER_LETTERS], "emoji": False}}
    ]
    if lines:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": lines[:_SECTION_LETTERS]}})
    return {"text": f"{_escaped(title)}\n{lines}".strip()[:_SECTION_LETTERS], "blocks": blocks}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(url: str, body: bytes, timeout_s: float) -> str | None:
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, _Refused) and error.is_transient),
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_fixed(_PAUSE_S),
        reraise=True,
    )
    try:
        tries(_post_once, url, body, timeout_s)
    except _Refused as refused:
        return refused.reason
    return None


def _post_once(url: str, body: bytes, timeout_s: float) -> None:
    """One request. A redirect is not followed: what is told is for the host that was named.

    Raises:
        _Refused: it was not taken; in our own words, as the library's hold the URL.
    """
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "batchdet"}
    try:
        # The answer's body is not read: a stranger may make it as long as it likes.
        with requests.post(
            url, data=body, headers=headers, timeout=(timeout_s, timeout_s), allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
    except requests.Timeout as error:
        raise _Refused(f"no answer within {timeout_s:g} s", is_transient=True) from error
    except requests.ConnectionError as error:
        raise _Refused("cannot connect, or the connection broke off", is_transient=True) from error
    except (requests.RequestException, ValueError, OSError) as error:
        raise _Refused(f"cannot be posted to ({type(error).__name__})") from error
    if 300 <= status < 400:
        raise _Refused(f"answers with a redirect ({status}), which is not followed; give the URL it leads to")
    if not 200 <= status < 300:
        raise _Refused(f"answers {status}", is_transient=status in _TRANSIENT_STATUS)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/…"
