"""Whoever is told, and however the other side behaves: a night is neither failed nor held up."""

import json
import socket
import threading
from contextlib import closing

import pytest

from batchdet.errors import ConfigError
from batchdet.job_file import load_config
from batchdet.notify import TRIES, Message, payload, tell, webhook_url
from batchdet.outlets import NotifyConfig
from tests.servers.hook import SECRET, Hook

NIGHT = Message(
    "batchdet nightly: done <&>", ["labelled 12", "failed a<b&c"], '{"status": "done", "uri": "s3://b/ü", "n": 1}\n'
)


def config(**fields: object) -> NotifyConfig:
    return NotifyConfig.model_validate({"url_env": "HOOK", "timeout_s": 5.0, **fields})


def post(hook: Hook, **fields: object) -> str | None:
    return tell(config(**fields), NIGHT, {"HOOK": hook.url})


def test_slack_is_told_in_its_own_shape(hook: Hook) -> None:
    assert post(hook) is None
    (body,) = hook.bodies
    assert json.loads(body) == {
        "text": "batchdet nightly: done &lt;&amp;&gt;\nlabelled 12\nfailed a&lt;b&amp;c",
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": "batchdet nightly: done <&>", "emoji": False}},
            {"type": "section", "text": {"type": "mrkdwn", "text": "labelled 12\nfailed a&lt;b&amp;c"}},
        ],
    }
    assert hook.paths == [f"/services/{SECRET}"]


def test_a_program_is_told_the_document_as_it_is_stored(hook: Hook) -> None:
    assert post(hook, format="json") is None
    assert hook.bodies == [NIGHT.document.encode()]


def test_no_line_is_too_long_for_slack() -> None:
    long = Message("t" * 9000, ["<" * 9000], "{}")
    told = json.loads(payload(config(), long))
    assert len(told["blocks"][0]["text"]["text"]) == 150
    assert len(told["blocks"][1]["text"]["text"]) == 3000
    assert len(told["text"]) == 3000
    assert "blocks" in json.loads(payload(config(), Message("only a title", [], "{}")))


@pytest.mark.parametrize(
    ("answers", "requests", "says"),
    [
        ([500], 2, None),
        ([429], 2, None),
        ([500, 503], 2, "answers 503"),
        ([404], 1, "answers 404"),
        ([403], 1, "answers 403"),
        ([204], 1, None),
    ],
)
def test_what_may_pass_is_tried_twice(hook: Hook, answers: list[int], requests: int, says: str | None) -> None:
    hook.answers = answers
    why = post(hook)
    assert why == (None if says is None else f"webhook http://127.0.0.1/…: {says}")
    assert len(hook.bodies) == requests <= TRIES


def test_a_redirect_is_not_followed(hook: Hook) -> None:
    hook.answers, hook.headers = [307], {"Location": "/elsewhere"}
    why = post(hook)
    assert why is not None
    assert "a redirect (307)" in why
    assert hook.paths == [f"/services/{SECRET}"]


def test_a_hook_that_never_answers_is_left(hook: Hook) -> None:
    hook.hang = threading.Event()
    assert post(hook, timeout_s=0.2) == "webhook http://127.0.0.1/…: no answer within 0.2 s"


def test_a_hook_that_trickles_for_ever_is_left(hook: Hook) -> None:
    """Each byte comes within the time-out of a read; the answer as a whole never does."""
    hook.trickle = True
    assert post(hook, timeout_s=0.3) == "webhook http://127.0.0.1/…: no answer within 0.3 s"
    assert len(hook.bodies) == 1


def test_nobody_there() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{SECRET}"
        assert tell(config(), NIGHT, {"HOOK": url}) == (
            "webhook http://127.0.0.1/…: cannot connect, or the connection broke off"
        )


def test_a_hook_that_speaks_no_http() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer() -> None:
            for _ in range(TRIES):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-hush\r\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        why = tell(config(), NIGHT, {"HOOK": f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}"})
        answering.join(30)
    assert why is not None
    assert "hush" not in why


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "notify.url_env: the environment has no HOOK"),
        ({"HOOK": " "}, "notify.url_env: the environment has no HOOK"),
        ({"HOOK": f"hooks.slack.com/{SECRET}"}, "notify.url_env: HOOK holds no http:// or https:// URL"),
    ],
)
def test_an_environment_without_the_url(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        webhook_url(config(), environ)
    assert str(raised.value) == says == tell(config(), NIGHT, environ)


@pytest.mark.parametrize("bad", ["http://[::1", "http://a b/", f"http://127.0.0.1:99999/{SECRET}", "https://\n"])
def test_a_url_nobody_can_post_to_is_one_line(bad: str) -> None:
    try:
        why = tell(config(), NIGHT, {"HOOK": bad})
    except ValueError as error:
        pytest.fail(f"raised {error!r}")
    assert why is not None
    assert "hush" not in why
    assert "\n" not in why


def test_a_url_without_a_secret_may_stand_in_the_file(hook: Hook) -> None:
    told = tell(NotifyConfig(url=hook.url, format="json"), NIGHT, {})
    assert told is None
    assert SECRET not in repr(NotifyConfig(url=hook.url))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "notify: give one of url_env and url"),
        ({"url": "https://h/x", "url_env": "A"}, "notify: give one of url_env and url"),
        ({"url": f"https://hooks.slack.com/services/{SECRET}"}, "notify.url holds a secret"),
        ({"url": f"https://me:{SECRET}@host/"}, "notify.url holds a secret"),
        ({"url": f"https://host/?token={SECRET}"}, "notify.url holds a secret"),
        ({"url_env": f"https://host/{SECRET}"}, "url_env"),
        ({"url": "ftp://host/"}, "url"),
        ({"url_env": "A", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_a_file_that_is_wrong_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(NotifyConfig, None, fields)


@pytest.mark.parametrize("field", ["url", "url_env"])
def test_a_refused_url_is_not_shown(field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(NotifyConfig, None, {field: f"https://hooks.slack.com/services/{SECRET}"})
    assert SECRET not in str(raised.value)
