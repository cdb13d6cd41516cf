"""Errors of other libraries become ours here and nowhere else. Knows no filesystem, opens nothing.

Reasons are our own words: a foreign text may hold credentials, and is shown only where it cannot.
"""

import errno
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from batchdet.errors import AccessDeniedError, ConflictError, NotFoundError, StorageError, TransientStorageError

Verdict = tuple[type[StorageError], str]

_ROOTS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("botocore.parsers", "ResponseParserError"),
    ("aiohttp", "ClientError"),
    ("urllib3.exceptions", "HTTPError"),
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("obstore.exceptions", "BaseError"),
    ("deltalake.exceptions", "DeltaError"),
    ("pyiceberg.exceptions", "RESTError"),
    ("pyiceberg.exceptions", "CommitFailedException"),
    ("pyiceberg.exceptions", "ValidationException"),
    ("pyiceberg.exceptions", "ValidationError"),
    ("pyiceberg.exceptions", "NoSuchTableError"),
    ("pyiceberg.exceptions", "NoSuchNamespaceError"),
    ("pyiceberg.exceptions", "NotInstalledError"),
    ("sqlalchemy.exc", "SQLAlchemyError"),
)
"""What client libraries raise beside OSError and ValueError, each by the root of its tree."""

_ANSWERED = (
    ("aiohttp", "ClientResponseError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "HttpResponseError"),
)
"""Errors that carry an HTTP status; botocore's carry a response instead."""

_CREDENTIALS = (
    ("botocore.exceptions", "NoCredentialsError"),
    ("botocore.exceptions", "PartialCredentialsError"),
    ("botocore.exceptions", "CredentialRetrievalError"),
    ("botocore.exceptions", "ProfileNotFound"),
    ("botocore.exceptions", "TokenRetrievalError"),
    ("botocore.exceptions", "SSOError"),
    ("google.auth.exceptions", "DefaultCredentialsError"),
    ("google.auth.exceptions", "RefreshError"),
    ("azure.core.exceptions", "ClientAuthenticationError"),
)

_TLS = (
    ("botocore.exceptions", "SSLError"),
    ("aiohttp", "ClientSSLError"),
)

_UNREACHABLE = (
    ("botocore.exceptions", "EndpointConnectionError"),
    ("botocore.exceptions", "ConnectTimeoutError"),
    ("botocore.exceptions", "ProxyConnectionError"),
    ("aiohttp", "ClientConnectorError"),
    ("azure.core.exceptions", "ServiceRequestError"),
    ("google.auth.exceptions", "TransportError"),
)

_INTERRUPTED = (
    ("botocore.exceptions", "HTTPClientError"),
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.exceptions", "ChecksumError"),
    ("botocore.exceptions", "FlexibleChecksumError"),
    ("botocore.parsers", "ResponseParserError"),
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
    ("urllib3.exceptions", "HTTPError"),
    ("gcsfs.retry", "ChecksumError"),
    ("azure.core.exceptions", "ServiceResponseError"),
    ("azure.core.exceptions", "IncompleteReadError"),
)

_REFUSED_CODES = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "MissingSecurityHeader",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_TRANSIENT_CODES = {
    "BadDigest",
    "BandwidthLimitExceeded",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServerBusy",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_TRANSIENT_ERRNO = {
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ESTALE,
}
_NO_RIGHT_ERRNO = {errno.EACCES, errno.EPERM, errno.EROFS}

_OBSTORE = (("obstore.exceptions", "BaseError"),)
_OBSTORE_STATUS = re.compile(r"\n +inner: Status \{\n +status: (\d{3}),")
_OBSTORE_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_OBSTORE_KIND = re.compile(r"\bHttpError \{\n +kind: (\w+),")
_OBSTORE_URL = re.compile(r"\n +uri: Some\(\n +(\S+),\n")
"""What an error of obstore holds in its text alone, in lines that no key can hold."""

_CREDENTIALS_HINT = "set them in the environment (AWS_ACCESS_KEY_ID and the like), a profile or a role"
_RIGHTS_HINT = "check the URI and the rights of the credentials"
_TLS_VERDICT: Verdict = (StorageError, "TLS failed; check the endpoint's scheme and its certificate")


@contextmanager
def mapped_errors(uri: str) -> Iterator[None]:
    """Turn foreign storage errors raised inside into ours, naming `uri`.

    Raises:
        NotFoundError, AccessDeniedError, TransientStorageError, StorageError
    """
    try:
        yield
    except _foreign() as error:
        raise storage_error(uri, error) from error


def _foreign() -> tuple[type[BaseException], ...]:
    return (OSError, ValueError, ImportError, NotImplementedError, *_loaded(_ROOTS))


def storage_error(uri: str, error: BaseException) -> StorageError:
    """The error of ours that says what a foreign one means for `uri`; its message is one line without secrets."""
    shown = without_secrets(uri)
    for cause in _chain(error, contexts=False):
        answer = _Answer.of(cause)
        if answer is not None:
            kind, reason = answer.verdict()
            return kind(shown, reason)
    for cause in _chain(error, contexts=True):
        verdict = _by_class(cause) or _by_errno(cause)
        if verdict is not None:
            return verdict[0](shown, verdict[1])
    return StorageError(shown, one_line(str(error)) or type(error).__name__)


def one_line(text: str) -> str:
    """A foreign text on one line, cut to 200 characters, without credentials of URLs."""
    line = without_secrets(" ".join(text.split()))
    return line if len(line) <= 200 else f"{line[:199]}…"


def without_secrets(text: str) -> str:
    """`text` with passwords and signatures of the URLs in it blotted out."""
    text = re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*@", "…@", text)
    return re.sub(
        r"(?i)([?&](?:x-amz-\w[\w-]*|x-goog-\w[\w-]*|sig|signature|token|password|secret|awsaccesskeyid)=)[^&\s]+",
        r"\1…",
        text,
    )


@dataclass(frozen=True)
class _Answer:
    """What a store answered: its own word for the error, and the HTTP status."""

    code: str
    status: int

    @classmethod
    def of(cls, error: BaseException) -> "_Answer | None":
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") or code
            return cls(code, int(status) if str(status).isdigit() else 0)
        if isinstance(error, _loaded(_ANSWERED)):
            status = next(
                (getattr(error, name) for name in ("status_code", "status", "code") if hasattr(error, name)), 0
            )
            # Azure's errors share one tree: those without a status were raised before anything was answered.
            return cls(str(getattr(error, "error_code", None) or ""), int(status)) if status else None
        if isinstance(error, (FileNotFoundError, *_loaded(_OBSTORE))):
            return cls._of_text(str(error))
        return None

    @classmethod
    def _of_text(cls, text: str) -> "_Answer | None":
        if "\n            inner: BareRedirect,\n" in text:
            return cls("", 301)
        status = _OBSTORE_STATUS.search(text)
        if status is None:
            return None
        code = _OBSTORE_CODE.search(text, status.end())
        return cls(code[1] if code else "", int(status[1]))

    def verdict(self) -> Verdict:
        words = ("" if self.code.isdigit() else self.code, str(self.status or ""))
        said = " ".join(filter(None, words)) or "with an error it does not name"
        if self.code in ("NoSuchBucket", "ContainerNotFound"):
            return NotFoundError, "no such bucket; check its name and the endpoint"
        if self.code in _REFUSED_CODES or self.status == 401:
            return AccessDeniedError, f"the store refuses the credentials ({said}); {_CREDENTIALS_HINT}"
        if self.code in _TRANSIENT_CODES or self.status in _TRANSIENT_STATUS:
            return TransientStorageError, f"the store is busy or unwell ({said})"
        if self.status == 412 or self.code == "ConditionalRequestConflict":
            return ConflictError, "somebody else wrote it meanwhile"
        if self.code == "InvalidObjectState":
            return StorageError, "archived; restore it before it can be read"
        if self.status == 404 or self.code == "NoSuchKey":
            return NotFoundError, "not found"
        if self.status == 403 or self.code == "AccessDenied":
            return AccessDeniedError, f"access denied ({said}); {_RIGHTS_HINT}"
        if self.status in (301, 307):
            return StorageError, f"the bucket lives in another region or endpoint ({said}); set AWS_DEFAULT_REGION"
        return StorageError, f"the store answered {said}"


def _by_class(error: BaseException) -> Verdict | None:
    if isinstance(error, _loaded(_OBSTORE)):
        return _by_text(str(error))
    if isinstance(error, _loaded(_CREDENTIALS)):
        return AccessDeniedError, f"no usable credentials ({type(error).__name__}); {_CREDENTIALS_HINT}"
    if isinstance(error, _loaded(_TLS)):
        return _TLS_VERDICT
    if isinstance(error, _loaded(_UNREACHABLE)):
        return _unreachable(_endpoint_url(error))
    if isinstance(error, TimeoutError) or type(error).__name__.endswith("TimeoutError"):
        return TransientStorageError, "timed out"
    if isinstance(error, (ConnectionError, *_loaded(_INTERRUPTED))):
        return TransientStorageError, f"the connection broke off ({type(error).__name__})"
    if isinstance(error, ImportError):
        return StorageError, f"its filesystem is not installed: {one_line(str(error))}"
    if isinstance(error, NotImplementedError):
        return StorageError, "its filesystem cannot do this"
    return None


def _by_text(text: str) -> Verdict:
    kind = _OBSTORE_KIND.search(text)
    url = _OBSTORE_URL.search(text)
    if kind is None:
        return StorageError, "obstore cannot read it"
    if kind[1] == "Connect" and re.search(r"\b(?:InvalidCertificate|InvalidMessage|AlertReceived)\b", text):
        return _TLS_VERDICT
    if kind[1] == "Connect" or (kind[1] == "Timeout" and re.search(r"\n +ConnectError\(", text)):
        return _unreachable(url[1] if url else "")
    if kind[1] == "Timeout":
        return TransientStorageError, "timed out"
    return TransientStorageError, f"the connection broke off ({kind[1]})"


def _by_errno(error: BaseException) -> Verdict | None:
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError):
        return NotFoundError, "not found"
    # gcsfs has no class and no errno for a 403.
    if isinstance(error, PermissionError) or error.errno in _NO_RIGHT_ERRNO or str(error).startswith("Forbidden"):
        return AccessDeniedError, f"{(error.strerror or 'access denied').lower()}; {_RIGHTS_HINT}"
    if error.errno in _TRANSIENT_ERRNO:
        return TransientStorageError, (error.strerror or "interrupted").lower()
    if error.strerror:
        return StorageError, one_line(error.strerror.lower())
    return None


def _endpoint_url(error: BaseException) -> str:
    known = getattr(error, "kwargs", {})
    return str(known.get("endpoint_url") or known.get("proxy_url") or "") if isinstance(known, Mapping) else ""


def _unreachable(where: str) -> Verdict:
    url = urlsplit(where)
    port = f":{url.port}" if url.port else ""
    place = f"{url.scheme}://{url.hostname}{port}" if url.hostname else "the store"
    return TransientStorageError, f"cannot connect to {place}; check the endpoint and the network"


def _chain(error: BaseException, contexts: bool) -> Iterator[BaseException]:
    """The error and what it was raised from; with contexts, also what was being handled meanwhile."""
    # Contexts can run in a circle; the depth is bounded instead of remembered.
    for _ in range(8):
        yield error
        following = error.__cause__ or (error.__context__ if contexts else None)
        if following is None:
            return
        error = following


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[type[BaseException], ...]:
    """The exception classes of modules already imported: no other can have been raised, and none is imported for it."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if hasattr(sys.modules.get(module), name))
