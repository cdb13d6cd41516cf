"""Every client library's own errors become the right one of ours, without a secret in it."""

import errno

import aiohttp
import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.errors import AccessDeniedError, NotFoundError, StorageError, TransientStorageError
from batchdet.storage.foreign import mapped_errors, one_line, storage_error, without_secrets

SECRET = "hunter2"


def _azure(kind: type[Exception], status: int | None) -> Exception:
    error = kind(f"said {SECRET}")
    error.status_code = status  # type: ignore[attr-defined]
    return error


CASES: list[tuple[Exception, type[StorageError]]] = [
    (FileNotFoundError(errno.ENOENT, SECRET), NotFoundError),
    (PermissionError(errno.EACCES, "Permission denied"), AccessDeniedError),
    (OSError(errno.EROFS, "Read-only file system"), AccessDeniedError),
    (OSError(errno.ENOSPC, "No space left on device"), StorageError),
    (IsADirectoryError(errno.EISDIR, "Is a directory"), StorageError),
    (OSError(errno.ESTALE, "Stale file handle"), TransientStorageError),
    (TimeoutError(), TransientStorageError),
    (ConnectionResetError(errno.ECONNRESET, "reset"), TransientStorageError),
    (ModuleNotFoundError("No module named 'adlfs'"), StorageError),
    (NotImplementedError(), StorageError),
    (botocore.exceptions.NoCredentialsError(), AccessDeniedError),
    (botocore.exceptions.PartialCredentialsError(provider="env", cred_var=SECRET), AccessDeniedError),
    (botocore.exceptions.CredentialRetrievalError(provider="x", error_msg=SECRET), AccessDeniedError),
    (botocore.exceptions.ReadTimeoutError(endpoint_url=f"http://u:{SECRET}@h/b"), TransientStorageError),
    (botocore.exceptions.EndpointConnectionError(endpoint_url=f"http://u:{SECRET}@h/b"), TransientStorageError),
    (botocore.exceptions.SSLError(endpoint_url="https://h", error=SECRET), StorageError),
    (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), TransientStorageError),
    (aiohttp.ClientPayloadError(SECRET), TransientStorageError),
    (aiohttp.ServerDisconnectedError(SECRET), TransientStorageError),
]


def _cloud_cases() -> list[tuple[Exception, type[StorageError]]]:
    retry = pytest.importorskip("gcsfs.retry")
    google = pytest.importorskip("google.auth.exceptions")
    pytest.importorskip("adlfs")
    azure = pytest.importorskip("azure.core.exceptions")
    return [
        (retry.HttpError({"code": 503, "message": SECRET}), TransientStorageError),
        (retry.HttpError({"code": 401, "message": SECRET}), AccessDeniedError),
        (retry.HttpError({"code": 409, "message": SECRET}), StorageError),
        (retry.ChecksumError(SECRET), TransientStorageError),
        (OSError(f"Forbidden: https://storage/x {SECRET}"), AccessDeniedError),
        (google.DefaultCredentialsError(SECRET), AccessDeniedError),
        (google.TransportError(SECRET), TransientStorageError),
        (_azure(azure.ClientAuthenticationError, None), AccessDeniedError),
        (_azure(azure.ResourceNotFoundError, 404), NotFoundError),
        (_azure(azure.HttpResponseError, 403), AccessDeniedError),
        (_azure(azure.HttpResponseError, 503), TransientStorageError),
        (azure.ServiceRequestError(SECRET), TransientStorageError),
        (azure.ServiceResponseError(SECRET), TransientStorageError),
    ]


@pytest.mark.parametrize(("error", "kind"), CASES, ids=lambda value: type(value).__name__ if value else "")
def test_foreign_error_becomes_ours(error: Exception, kind: type[StorageError]) -> None:
    _assert_becomes(error, kind)


def test_errors_of_other_clouds_become_ours() -> None:
    for error, kind in _cloud_cases():
        _assert_becomes(error, kind)


def _assert_becomes(error: Exception, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError) as caught, mapped_errors("az://container/a.jpg"):
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("az://container/a.jpg: ")
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(KeyError), mapped_errors("s3://b/k"):
        raise KeyError("ours")


def test_ours_passes_untouched() -> None:
    ours = NotFoundError("s3://b/k", "not found")
    with pytest.raises(NotFoundError) as caught, mapped_errors("s3://other"):
        raise ours
    assert caught.value is ours


def test_what_was_handled_meanwhile_does_not_decide() -> None:
    def fail() -> None:
        try:
            raise TimeoutError  # noqa: TRY301
        except TimeoutError:
            raise PermissionError(errno.EACCES, "Permission denied")  # noqa: B904 (the point of the test)

    with pytest.raises(AccessDeniedError), mapped_errors("s3://b/k"):
        fail()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:hunter2@host/x", "https://…@host/x"),
        ("https://h/x?sv=1&sig=hunter2&a=b", "https://h/x?sv=1&sig=…&a=b"),
        (
            "https://h/x?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
            "https://h/x?X-Amz-Credential=…&X-Amz-Signature=…",
        ),
        ("s3://bucket/a@b:c.jpg", "s3://bucket/a@b:c.jpg"),
        ("s3://bucket/a?b=c&d=e.jpg", "s3://bucket/a?b=c&d=e.jpg"),
    ],
)
def test_secrets_of_urls_are_blotted_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@given(text=st.text())
def test_foreign_text_is_one_short_line(text: str) -> None:
    assert len(one_line(text)) <= 200
    assert len(one_line(text).splitlines()) <= 1


@given(depth=st.integers(1, 12))
def test_circles_of_causes_end(depth: int) -> None:
    errors = [ValueError(str(number)) for number in range(depth)]
    for error, following in zip(errors, [*errors[1:], errors[0]], strict=True):
        error.__context__ = following
    assert isinstance(storage_error("s3://b/k", errors[0]), StorageError)
