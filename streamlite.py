#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Stream chat completions from any OpenAI-compatible server, with nothing but Python's standard library.

Copy this file; code written for the official SDK runs with one line changed:

    from streamlite import OpenAI

    client = OpenAI()                     # OPENAI_API_KEY and OPENAI_BASE_URL, or api_key= and base_url=
    with client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "Say hello."}],
        stream=True,
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content, end="", flush=True)
    print(stream.completion.usage)        # what was streamed, in the shape of a whole reply

From a shell: python3 -m streamlite --demo "Explain server-sent events"

What this file reads, opens and contacts:

    environment    OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID; certificates: SSL_CERT_FILE,
                   SSL_CERT_DIR, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE; proxies, as urllib reads them: HTTP_PROXY,
                   HTTPS_PROXY, NO_PROXY, REQUEST_METHOD; the command only: OPENAI_MODEL, NO_COLOR, and what
                   --key-env names
    files          certificates, for reading; the command only: what -o KEY=@FILE and --cacert name
    hosts          the one of base_url (or the proxy before it); DemoServer listens on 127.0.0.1
    never          writes a file, starts a process, checks for updates, follows a redirect to another origin, sends a
                   key anywhere but to base_url; the synchronous client starts no thread

A token's way, and the order of this file: socket -> body bytes -> SSEDecoder -> ServerSentEvent -> payloads ->
ChatCompletionChunk -> your loop, and beside it Accumulator -> ChatCompletion.  Runs on Python 3.6.1 and newer.
"""

import collections
import functools
import http.client
import io
import json
import math
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
import weakref
import zlib
from typing import (TYPE_CHECKING, Any, Callable, Deque, Dict, Generator, Iterable, Iterator, List, Mapping, NamedTuple,
                    NoReturn, Optional, Sequence, Set, Tuple, Type, TypeVar, Union, cast, overload)

try:
    import ssl
except ImportError:  # some embedded Pythons have none: plain http still works
    ssl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing import Literal

__version__ = "1.0"

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_TIMEOUT = (5.0, 600.0)  # seconds to connect, and to wait for the next event: the SDK's
DEFAULT_MAX_RETRIES = 2         # the SDK's

# What the other side may make us hold.  The largest events seen are images in base64, of some megabytes.
MAX_EVENT = 16 * 1024 * 1024    # a line, an event, or a whole JSON reply
MAX_INFLATED = 1 << 30          # a whole body after gzip or deflate
MAX_HEADERS = 256 * 1024        # a header block, interim answers and trailers included (nginx sends at most 32 KiB)
MAX_ERROR_BODY = 64 * 1024      # of an error reply; what is beyond is not read
MAX_IDLE = 16                   # connections kept for later
IDLE_SECONDS = 30.0             # a firewall may forget an idle connection, silently, from one minute on
PATIENCE = 5.0                  # seconds that an error's body, or the end of a finished stream, is waited for
MAX_RETRY_AFTER = 120.0         # a server that asks for more than these seconds gets no retry


def _log(level: int, message: str, *values: object) -> None:
    """Log to the "streamlite" logger: nobody listens who has not imported logging, and importing it is not free."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("streamlite").log(level, message, *values)


_DEBUG, _INFO = 10, 20


# ----------------------------------------------------------------------------------------------------------------------
# Errors: the SDK's tree.  Whatever a server or a network does, one of these is raised and nothing else.
# ----------------------------------------------------------------------------------------------------------------------

class Request(NamedTuple):
    """What was asked, without headers and body, so that nothing secret travels with an error."""

    method: str
    url: str


class Response(NamedTuple):
    """The head of the server's answer; `headers` is an `email.message.Message`: `get` ignores case."""

    status_code: int
    headers: Any

    @property
    def request_id(self) -> Optional[str]:
        """The id that the server's operators ask for."""
        for name in ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid"):
            if self.headers.get(name):
                return cast(str, self.headers.get(name))
        return None


class OpenAIError(Exception):
    """The root of all errors here.

    partial:     the `ChatCompletion` so far, on every error raised after the stream began, else None
    attempts:    requests made, retries included
    elapsed:     seconds since the call was made
    retry_after: seconds that the server asked to wait, or None
    """

    partial: "Optional[ChatCompletion]" = None
    attempts: int = 0
    elapsed: float = 0.0
    retry_after: Optional[float] = None

    def __reduce__(self) -> Any:  # keyword-only arguments defeat the way in which exceptions are pickled
        return _rebuild_error, (type(self), self.args, self.__dict__)


def _rebuild_error(cls: Type[OpenAIError], args: Tuple[Any, ...], fields: Dict[str, Any]) -> OpenAIError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(fields)
    return error


class APIError(OpenAIError):
    """The call failed.  `body` is the server's error object (or text) where it sent one; `code`, `param` and `type`
    are its members."""

    def __init__(self, message: str, request: Optional[Request] = None, *, body: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.request = request
        self.response: Optional[Response] = None
        self.body = body
        fields = body if isinstance(body, dict) else {}
        self.code: Any = fields.get("code")
        self.param: Any = fields.get("param")
        self.type: Any = fields.get("type")

    @property
    def request_id(self) -> Optional[str]:
        return self.response.request_id if self.response else None


class APIResponseValidationError(APIError):
    """The server answered with something else than a chat completion; `body` is the start of it."""

    def __init__(self, message: str = "Data returned by API invalid for expected schema.", *,
                 response: Optional[Response] = None, body: Any = None) -> None:
        super().__init__(message, body=body)
        self.response = response

    @property
    def status_code(self) -> Optional[int]:
        return self.response.status_code if self.response else None


class APIConnectionError(APIError):
    """No connection, or it was lost before the answer was whole."""

    def __init__(self, *, message: str = "Connection error.", request: Optional[Request] = None) -> None:
        super().__init__(message, request)


class APITimeoutError(APIConnectionError):
    """`timeout` or `deadline` passed."""

    def __init__(self, request: Optional[Request] = None, *, message: str = "Request timed out.") -> None:
        super().__init__(message=message, request=request)


class APIStatusError(APIError):
    """The server refused: with this HTTP status, or with an error in the stream that has this number as its code."""

    def __init__(self, message: str, *, response: Optional[Response] = None, body: Any = None) -> None:
        super().__init__(message, body=body)
        self.response = response
        self.status_code: int = response.status_code if response else 0


class BadRequestError(APIStatusError):
    """400"""


class AuthenticationError(APIStatusError):
    """401"""


class PermissionDeniedError(APIStatusError):
    """403"""


class NotFoundError(APIStatusError):
    """404"""


class ConflictError(APIStatusError):
    """409"""


class UnprocessableEntityError(APIStatusError):
    """422"""


class RateLimitError(APIStatusError):
    """429"""


class InternalServerError(APIStatusError):
    """500 and above"""


_STATUS_ERRORS: Dict[int, Type[APIStatusError]] = {
    400: BadRequestError, 401: AuthenticationError, 403: PermissionDeniedError, 404: NotFoundError,
    409: ConflictError, 422: UnprocessableEntityError, 429: RateLimitError}


def _status_error_class(status: int) -> Type[APIStatusError]:
    return _STATUS_ERRORS.get(status) or (InternalServerError if status >= 500 else APIStatusError)


def _excerpt(text: str, length: int = 200) -> str:
    """The start of a text that somebody else wrote, on one line and without control characters."""
    text = "".join(c if c.isprintable() else " " for c in text[:4 * length])
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + "..."


def _server_error(body: Any) -> Tuple[Any, str]:
    """Find the error object in a JSON value that reports one, and the server's words in it."""
    if isinstance(body, list) and body and isinstance(body[0], dict):
        body = body[0]  # Google wraps its error in a list
    for key in ("error", "detail", "errors"):
        found = body.get(key) if isinstance(body, dict) else None
        if isinstance(found, str) and found:
            return body, found
        if found and isinstance(found, list) and isinstance(found[0], dict):  # FastAPI, Cloudflare
            found = dict(found[0], message="; ".join(_server_error(item)[1] for item in found))
        if found and isinstance(found, dict):
            body = found
            break
    if isinstance(body, dict):
        for key in ("message", "msg", "error_description", "title"):
            if isinstance(body.get(key), str) and body[key]:
                place = body.get("loc")
                return body, "%s: %s" % (".".join(map(str, place)), body[key]) if isinstance(place, list) else body[key]
    return body, body if isinstance(body, str) else json.dumps(body)


# ----------------------------------------------------------------------------------------------------------------------
# Wire objects: a parsed JSON object *is* the instance's __dict__, so a field costs a plain attribute lookup, a field
# that only one vendor sends is there under its own name, and a misspelt one is an AttributeError.
# Source of the fields: https://platform.openai.com/docs/api-reference/chat/streaming
# ----------------------------------------------------------------------------------------------------------------------

_Wired = TypeVar("_Wired", bound="_WireObject")
_F = TypeVar("_F", bound=Callable[..., Any])
_UNSET: Any = None


class _Method:
    """A method as a data descriptor: unlike a plain function, no key that a server sends can shadow it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self.function.__get__(instance, owner)

    def __set__(self, instance: Any, value: Any) -> NoReturn:
        raise AttributeError("methods cannot be set")


def _method(function: _F) -> _F:
    return cast(_F, _Method(function))


class _WireObject:
    """A JSON object of the protocol.  Documented fields that were not sent are None."""

    _nested: Tuple[Tuple[str, Type["_WireObject"]], ...] = ()  # fields that are objects, or lists of objects

    def __init__(self, **fields: Any) -> None:
        self.__dict__ = _wire(type(self), fields).__dict__

    def __repr__(self) -> str:
        return "%s(%s)" % (type(self).__name__, ", ".join("%s=%r" % item for item in self.__dict__.items()))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    @_method
    def to_dict(self, *, mode: str = "python", exclude_unset: bool = True,
                exclude_none: bool = False) -> Dict[str, Any]:
        """The object as plain dicts and lists; `exclude_unset=False` adds the documented fields that were not sent."""
        return cast(Dict[str, Any], _plain(self, exclude_unset, exclude_none))

    @_method
    def to_json(self, *, indent: Optional[int] = 2, exclude_unset: bool = True, exclude_none: bool = False) -> str:
        """The object as JSON text, in ASCII."""
        return _dump_json(_plain(self, exclude_unset, exclude_none), indent)

    @_method
    def model_dump(self, *, mode: str = "python", exclude_unset: bool = False,
                   exclude_none: bool = False) -> Dict[str, Any]:
        """`to_dict` with the SDK's other default."""
        return cast(Dict[str, Any], _plain(self, exclude_unset, exclude_none))

    @_method
    def model_dump_json(self, *, indent: Optional[int] = None, exclude_unset: bool = False,
                        exclude_none: bool = False) -> str:
        """`to_json` with the SDK's other defaults."""
        return _dump_json(_plain(self, exclude_unset, exclude_none), indent)


def _wire(cls: Type[_Wired], fields: Dict[str, Any]) -> _Wired:
    """Make an instance of `cls` whose __dict__ is `fields`, and the same of the objects in it."""
    for name, nested in cls._nested:
        value = fields.get(name)
        if value.__class__ is dict:
            fields[name] = _wire(nested, value)
        elif value.__class__ is list:
            fields[name] = [_wire(nested, item) if item.__class__ is dict else item for item in value]
    instance = cls.__new__(cls)
    instance.__dict__ = fields
    return instance


def _plain(value: Any, exclude_unset: bool, exclude_none: bool) -> Any:
    """Undo `_wire`, copying."""
    if isinstance(value, _WireObject):
        fields = dict(value.__dict__)
        if not exclude_unset:
            for cls in type(value).__mro__[:-2]:
                for name in cls.__dict__.get("__annotations__", ()):
                    fields.setdefault(name, None)
        value = fields
    if isinstance(value, dict):
        return {key: _plain(item, exclude_unset, exclude_none) for key, item in value.items()
                if not (exclude_none and item is None)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, exclude_unset, exclude_none) for item in value]
    return value


def _dump_json(value: Any, indent: Optional[int] = None) -> str:
    """JSON that every parser reads: servers send NaN and Infinity (vLLM, in log probabilities); JSON has null."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, indent=indent, separators=separators, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, separators=separators)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class PromptTokensDetails(_WireObject):
    cached_tokens: Optional[int] = None
    audio_tokens: Optional[int] = None


class CompletionTokensDetails(_WireObject):
    reasoning_tokens: Optional[int] = None
    audio_tokens: Optional[int] = None
    accepted_prediction_tokens: Optional[int] = None
    rejected_prediction_tokens: Optional[int] = None


class CompletionUsage(_WireObject):
    """Token counts."""

    _nested = (("prompt_tokens_details", PromptTokensDetails),
               ("completion_tokens_details", CompletionTokensDetails))
    prompt_tokens: int = _UNSET
    completion_tokens: int = _UNSET
    total_tokens: int = _UNSET
    prompt_tokens_details: Optional[PromptTokensDetails] = None
    completion_tokens_details: Optional[CompletionTokensDetails] = None


class TopLogprob(_WireObject):
    token: str = _UNSET
    bytes: Optional[List[int]] = None
    logprob: float = _UNSET


class ChatCompletionTokenLogprob(_WireObject):
    _nested = (("top_logprobs", TopLogprob),)
    token: str = _UNSET
    bytes: Optional[List[int]] = None
    logprob: float = _UNSET
    top_logprobs: List[TopLogprob] = _UNSET


class ChoiceLogprobs(_WireObject):
    _nested = (("content", ChatCompletionTokenLogprob), ("refusal", ChatCompletionTokenLogprob))
    content: Optional[List[ChatCompletionTokenLogprob]] = None
    refusal: Optional[List[ChatCompletionTokenLogprob]] = None


class ChatCompletionAudio(_WireObject):
    id: str = _UNSET
    data: Optional[str] = None
    expires_at: Optional[int] = None
    transcript: Optional[str] = None


class FunctionCall(_WireObject):
    """What older servers send in place of `tool_calls`."""

    name: Optional[str] = None
    arguments: Optional[str] = None


class ChoiceDeltaToolCallFunction(_WireObject):
    name: Optional[str] = None
    arguments: Optional[str] = None


class ChoiceDeltaToolCall(_WireObject):
    """A fragment of a tool call."""

    _nested = (("function", ChoiceDeltaToolCallFunction),)
    index: int = _UNSET
    id: Optional[str] = None
    type: Optional[str] = None
    function: Optional[ChoiceDeltaToolCallFunction] = None


class ChoiceDelta(_WireObject):
    """What a chunk adds to the message."""

    _nested = (("tool_calls", ChoiceDeltaToolCall), ("function_call", FunctionCall), ("audio", ChatCompletionAudio))
    role: Optional[str] = None
    content: Optional[str] = None
    refusal: Optional[str] = None
    tool_calls: Optional[List[ChoiceDeltaToolCall]] = None
    function_call: Optional[FunctionCall] = None


class Choice(_WireObject):
    """One of `n` answers, in a chunk."""

    _nested = (("delta", ChoiceDelta), ("logprobs", ChoiceLogprobs))
    index: int = _UNSET
    delta: ChoiceDelta = _UNSET
    finish_reason: Optional[str] = None
    logprobs: Optional[ChoiceLogprobs] = None


class ChatCompletionChunk(_WireObject):
    """One event of a stream, as the server sent it; but `choices` is always a list and each `delta` an object."""

    _nested = (("choices", Choice), ("usage", CompletionUsage))
    id: str = _UNSET
    object: str = _UNSET
    created: int = _UNSET
    model: str = _UNSET
    choices: List[Choice] = _UNSET
    usage: Optional[CompletionUsage] = None
    service_tier: Optional[str] = None
    system_fingerprint: Optional[str] = None


class Function(_WireObject):
    name: str = _UNSET
    arguments: str = _UNSET

    @property
    def parsed_arguments(self) -> Any:
        """`arguments` as Python values; a tool without parameters may get an empty string, which is `{}`.

        Raises ValueError, showing the text, where the model wrote no JSON or the reply was cut short.
        """
        if not (self.arguments or "").strip():
            return {}
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError("the arguments of %s are not JSON (%s): %s"
                             % (self.name, error, _excerpt(self.arguments))) from None


class ChatCompletionMessageToolCall(_WireObject):
    _nested = (("function", Function),)
    id: str = _UNSET
    type: str = _UNSET
    function: Function = _UNSET


class ChatCompletionMessage(_WireObject):
    """The answer; it can go back into `messages` as it is."""

    _nested = (("tool_calls", ChatCompletionMessageToolCall), ("function_call", FunctionCall),
               ("audio", ChatCompletionAudio))
    role: str = _UNSET
    content: Optional[str] = None
    refusal: Optional[str] = None
    tool_calls: Optional[List[ChatCompletionMessageToolCall]] = None
    function_call: Optional[FunctionCall] = None
    annotations: Optional[List[Any]] = None
    audio: Optional[ChatCompletionAudio] = None


class CompletionChoice(_WireObject):
    """One of `n` answers, in a whole reply."""

    _nested = (("message", ChatCompletionMessage), ("logprobs", ChoiceLogprobs))
    index: int = _UNSET
    message: ChatCompletionMessage = _UNSET
    finish_reason: Optional[str] = None
    logprobs: Optional[ChoiceLogprobs] = None


class ChatCompletion(_WireObject):
    """A whole reply, sent as one or put together from chunks."""

    _nested = (("choices", CompletionChoice), ("usage", CompletionUsage))
    id: str = _UNSET
    object: str = _UNSET
    created: int = _UNSET
    model: str = _UNSET
    choices: List[CompletionChoice] = _UNSET
    usage: Optional[CompletionUsage] = None
    service_tier: Optional[str] = None
    system_fingerprint: Optional[str] = None


class Model(_WireObject):
    id: str = _UNSET
    object: str = _UNSET
    created: int = _UNSET
    owned_by: str = _UNSET


class ModelPage(_WireObject):
    """The models that a server lists: in `data`, or by iterating."""

    _nested = (("data", Model),)
    object: str = _UNSET
    data: List[Model] = _UNSET

    def __iter__(self) -> Iterator[Model]:
        return iter(self.data)


# ----------------------------------------------------------------------------------------------------------------------
# Server-sent events: bytes in, events out, and back.  No I/O.
# Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
# ----------------------------------------------------------------------------------------------------------------------

class ServerSentEvent(NamedTuple):
    """An event: its type, its data, the last event id in force, and the reconnection time that its block set."""

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: Optional[int] = None


class SSEDecoder:
    """Interprets an event stream, whatever pieces its bytes come in, in time linear in their number.

    One step goes beyond the specification: a field named `error` (llama.cpp until 2025) is an event of that name.
    """

    def __init__(self) -> None:
        self._line: List[bytes] = []   # pieces of a line that has not ended, joined once when it has
        self._line_size = 0
        self._data: List[str] = []     # the data lines of an event that has not ended
        self._data_size = 0
        self._event = ""
        self._id = ""
        self._retry: Optional[int] = None
        self._start = True             # a byte order mark may come
        self._after_cr = False         # the last byte was a CR, which has ended its line: an LF now belongs to it
        self._failure: Optional[APIError] = None

    def feed(self, data: bytes) -> List[ServerSentEvent]:
        """Return the events that `data` completes.

        Raises APIResponseValidationError once a line or an event has grown beyond MAX_EVENT bytes: at the next call if
        this one has events to return, so that none is lost.
        """
        if self._failure:
            raise self._failure
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: List[ServerSentEvent] = []
        end = data.rfind(b"\n")
        if end >= 0:
            self._line.append(data[:end])
            self._interpret(b"".join(self._line).decode("utf-8", "replace"), events)
            data = data[end + 1:]
            self._line, self._line_size = [], 0
        if data:
            self._line.append(data)
            self._line_size += len(data)
        if self._line_size + self._data_size > MAX_EVENT:
            self._failure = APIResponseValidationError(
                "the server sent an event of more than %d bytes without its end" % MAX_EVENT)
            self._line, self._data = [], []
            if not events:
                raise self._failure
        return events

    def close(self) -> List[ServerSentEvent]:
        """End the stream; return the last event if only its blank line is missing (servers that forget it are common)."""
        return self.feed(b"\n\n")

    def _interpret(self, text: str, events: List[ServerSentEvent]) -> None:
        """Process whole lines, without the last one's end."""
        if self._start:
            self._start = False
            if text.startswith("\ufeff"):
                text = text[1:]
        known = len(self._data)
        for line in text.split("\n"):
            if line.startswith("data: "):  # nearly every line; the whole of the rules is in _field
                self._data.append(line[6:])
            elif line:
                self._field(line)
            else:
                if self._data:
                    events.append(ServerSentEvent(
                        self._event or "message", "\n".join(self._data), self._id, self._retry))
                    self._data, self._data_size, known = [], 0, 0
                self._event, self._retry = "", None
        self._data_size += sum(len(line) + 64 for line in self._data[known:])  # what a line costs, short or long

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        if value.startswith(" "):
            value = value[1:]
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            if "\0" not in value:
                self._id = value
        elif name == "retry":
            if value and len(value) < 20 and not value.strip("0123456789"):
                self._retry = int(value)
        elif name == "error":
            self._event = "error"
            self._data.append(value)
        elif name:  # none in a comment
            self._unknown(line)

    def _unknown(self, line: str) -> None:
        """A field that the specification says to ignore."""


def _well_formed(text: str) -> str:
    """Join surrogates that belong together and replace those that stand alone, so that the text can be encoded."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_sse(data: str, event: Optional[str] = None, id: Optional[str] = None, retry: Optional[int] = None) -> bytes:
    """Write an event as SSEDecoder reads it: a line break in `data` (LF, CR or CRLF) starts another `data:` line.

    Raises ValueError for what an event stream cannot carry: a line break in `event` or `id`, a NUL in `id`.
    """
    if re.search("[\r\n]", (event or "") + (id or "")) or "\0" in (id or ""):
        raise ValueError("event and id must not hold a line break, nor id a NUL")
    lines = ["event: " + event] if event else []
    if id is not None:
        lines.append("id: " + id)
    if retry is not None:
        lines.append("retry: %d" % retry)
    lines += ["data: " + line for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return _well_formed("\n".join(lines) + "\n\n").encode("utf-8")


# ----------------------------------------------------------------------------------------------------------------------
# Payloads: body bytes become chunks, or an error.  What servers get wrong about the envelope is forgiven here and
# nowhere else.  No I/O.
# ----------------------------------------------------------------------------------------------------------------------

_raw_decode = json.JSONDecoder().raw_decode
_skip_blank = re.compile(r"[ \t\r\n]*").match
_find_surrogate = re.compile(r"\\u[dD][89a-fA-F]").search
_BLANK = b" \t\r\n\xef\xbb\xbf"  # a byte order mark counts as blank
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"error:")


class _LenientDecoder(SSEDecoder):
    """Keeps what the specification ignores: a JSON object on a line without `data:` is an event (Lemonade's errors),
    anything else tells that this is no event stream at all."""

    foreign = ""  # the first unknown line

    def _unknown(self, line: str) -> None:
        if line.startswith("{"):
            self._data.append(line)
        elif not self.foreign:
            self.foreign = line


def _slot_index(item: Dict[str, Any], default: int) -> int:
    index = item.get("index")
    return index if index.__class__ is int else default  # type: ignore[return-value]


class _ChunkReader:
    """The body of one reply: `feed` its bytes, `close` at its end; what comes out are chunks.

    done:  the server has said that this was all
    error: the APIError that ends the stream after the chunks that came out before it
    hide:  blanks out what must not appear in an error
    """

    def __init__(self, hide: Callable[[str], str] = str) -> None:
        self.done = False
        self.error: Optional[APIError] = None
        self.events = 0
        self.streamed: Set[int] = set()  # the choices of which a delta has brought something
        self._hide = hide
        self._decoder = _LenientDecoder()
        self._whole: Optional[List[bytes]] = None  # the body, where it is no event stream
        self._whole_size = 0
        self._sniffing = True
        self._head = ""                  # the start of the first payload
        self._has_choices = False
        self._has_deltas = False
        self._mending = False
        self._held: Dict[Any, str] = {}  # high surrogates that wait for their other half

    def feed(self, data: bytes) -> List[ChatCompletionChunk]:
        chunks: List[ChatCompletionChunk] = []
        try:
            if self._sniffing and data.strip(_BLANK):
                self._sniffing = False  # Content-Type is only a hint: the first byte that is not blank decides
                if data.lstrip(_BLANK)[:1] in (b"{", b"[", b"<"):
                    self._whole = []
            if self._whole is None:
                self._read_events(self._decoder.feed(data), chunks)
                self._decoder.feed(b"")  # raises what feed left for the next call
            else:
                self._whole.append(data)
                self._whole_size += len(data)
                if self._whole_size > MAX_EVENT:
                    raise APIResponseValidationError("the reply is longer than %d bytes" % MAX_EVENT)
        except APIError as error:
            self.error = error
        return chunks

    def close(self) -> List[ChatCompletionChunk]:
        """The body has ended, well or not: return what can still be made of its last bytes."""
        chunks: List[ChatCompletionChunk] = []
        try:
            if self._whole is not None:
                self._read_whole(b"".join(self._whole).decode("utf-8-sig", "replace").strip(), chunks)
            elif not self.done:
                try:
                    self._read_events(self._decoder.close(), chunks)
                except APIResponseValidationError:
                    pass  # half an event: the end will be judged without it
        except APIError as error:
            self.error = error
        return chunks + self._release_held()

    def verdict(self) -> Optional[APIError]:
        """What is wrong with a body that has ended well by HTTP's rules, if that can be told from what it held."""
        foreign = self._decoder.foreign.encode("utf-8", "replace")
        if self.events and not self._has_choices:
            return self.not_ours(self._head)
        if not self.events and foreign and not any(field.startswith(foreign) for field in _FIELDS):
            return self.not_ours(self._decoder.foreign)
        return None

    def _read_events(self, events: List[ServerSentEvent], chunks: List[ChatCompletionChunk]) -> None:
        for event in events:
            if self.done:
                return
            if event.event == "error":
                raise self._failure(event.data)
            self._read_payload(event.data, chunks)

    def _read_whole(self, text: str, chunks: List[ChatCompletionChunk]) -> None:
        """A body that is no event stream: a server that ignores `stream`, an error, a proxy's page."""
        if text.startswith("["):  # Google wraps its errors in a list
            try:
                items = json.loads(text)
                raise self._failure(items) if "error" in items[0] else self.not_ours(text)
            except (ValueError, RecursionError, LookupError, TypeError):
                raise self.not_ours(text) from None
        try:
            self._read_payload(text, chunks)
        except APIResponseValidationError:
            if text.startswith("{") and text.count("{") > text.count("}"):
                return  # cut short
            raise
        if not self._has_choices:
            raise self.not_ours(text)
        self.done = self.done or not self._has_deltas

    def _read_payload(self, text: str, chunks: List[ChatCompletionChunk]) -> None:
        """Usually one JSON object; but some servers send several in an event, or forget the blank line between."""
        at = 0
        while at < len(text):
            if text[at] == "{":
                try:
                    fields, at = _raw_decode(text, at)
                except (ValueError, RecursionError) as error:  # too deep, or an integer of thousands of digits
                    raise self.not_ours(text, str(error)) from None
                if not self.events:
                    self._head = text[:1000]
                self.events += 1
                if fields.get("error") or fields.get("object") == "error":
                    raise self._failure(fields)
                self._read_object(fields, text, chunks)
            else:
                line, _, _ = text[at:at + 100].partition("\n")
                line = line.strip(" \t\r\"'")
                if line == "[DONE]":
                    self.done = True
                    chunks += self._release_held()
                    return
                if line.startswith("data:"):  # wrapped twice, or after a JSON body
                    at = text.index("data:", at) + 5
                elif line and not line.startswith(":"):  # a comment that a gateway has wrapped
                    raise self.not_ours(text)
                else:
                    at = text.find("\n", at) + 1 or len(text)
            at = _skip_blank(text, at).end()  # type: ignore[union-attr]

    def _read_object(self, fields: Dict[str, Any], text: str, chunks: List[ChatCompletionChunk]) -> None:
        choices = fields.get("choices")
        if "choices" in fields:
            self._has_choices = True
        if choices.__class__ is not list:
            choices = [choices] if choices.__class__ is dict else []
        self._mending = bool(self._held) or _find_surrogate(text) is not None
        fields["choices"] = [self._choice(choice) for choice in choices if choice.__class__ is dict]
        chunk = _wire(ChatCompletionChunk, fields)
        if any(choice.finish_reason == "error" for choice in chunk.choices):
            if any(choice.index in self.streamed for choice in chunk.choices):
                chunks.append(chunk)
            raise APIError('the server ended the answer with finish_reason "error"', body=chunk.to_dict())
        if self._whole is not None and len(chunk.choices) > 1:
            for choice in chunk.choices:
                chunks.append(_wire(ChatCompletionChunk, dict(fields, choices=[choice])))
        else:
            chunks.append(chunk)

    def _choice(self, fields: Dict[str, Any]) -> Choice:
        index = fields.get("index")
        if index.__class__ is not int:
            index = fields["index"] = 0
        delta = fields.get("delta")
        if not delta or delta.__class__ is not dict:
            delta = self._instead_of_delta(fields, index)
        else:
            self._has_deltas = True
        if self._mending:
            fields = {key: self._mend(value) for key, value in fields.items() if key != "delta"}
            delta = self._mend(delta, (index,))
        if delta.get("tool_calls").__class__ is dict:  # older TGI
            delta["tool_calls"] = [delta["tool_calls"]]
        if index not in self.streamed and any(value for key, value in delta.items() if key != "role"):
            self.streamed.add(index)
        fields["delta"] = delta
        return _wire(Choice, fields)

    def _instead_of_delta(self, fields: Dict[str, Any], index: int) -> Dict[str, Any]:
        """A whole message, unless it repeats what deltas have said (MiniMax); or the text of a legacy completion."""
        message = fields.get("message")
        if message.__class__ is dict and index not in self.streamed:
            del fields["message"]
            calls = message.get("tool_calls")
            for i, call in enumerate(calls if calls.__class__ is list else ()):
                if call.__class__ is dict:
                    call.setdefault("index", i)
            return cast(Dict[str, Any], message)
        text = fields.get("text")
        return {"content": text} if text.__class__ is str else {}

    def _mend(self, value: Any, path: Optional[Tuple[Any, ...]] = None) -> Any:
        """Let a high surrogate at the end of a delta's text wait for the next text in the same place (servers that cut
        between UTF-16 units send an emoji as two halves); elsewhere, where there is no path, nothing can be waited for.
        """
        if value.__class__ is str:
            if path:
                value = self._held.pop(path, "") + value
                if "\ud800" <= value[-1:] <= "\udbff":
                    self._held[path] = value[-1]
                    value = value[:-1]
            return _well_formed(value)
        if value.__class__ is dict:
            return {key: self._mend(item, path and path + (key,)) for key, item in value.items()}
        if value.__class__ is list:
            return [self._mend(item, path and item.__class__ is dict and path + (_slot_index(item, i),) or None)
                    for i, item in enumerate(value)]
        return value

    def _release_held(self) -> List[ChatCompletionChunk]:
        """The other half never came."""
        chunks = []
        for path in self._held:
            value: Any = "\ufffd"
            for key in reversed(path[1:]):
                value = [dict(value, index=key)] if key.__class__ is int else {key: value}
            chunks.append(_wire(ChatCompletionChunk, {"choices": [{"index": path[0], "delta": value}]}))
        self._held = {}
        return chunks

    def _failure(self, report: Any) -> APIError:
        """The error that the server tells of inside a reply of status 200, in its own words."""
        try:
            report = json.loads(self._hide(report if isinstance(report, str) else json.dumps(report)))
        except (ValueError, RecursionError):
            report = self._hide(str(report))
        body, words = _server_error(report)
        if isinstance(body, dict):
            for key in ("code", "status_code", "status"):
                code = str(body.get(key))
                if re.match("[45][0-9][0-9]$", code):
                    error = _status_error_class(int(code))(words, body=body)
                    error.status_code = int(code)
                    return error
        return APIError(words, body=body)

    def not_ours(self, text: str, reason: str = "") -> APIError:
        text = self._hide(text)
        if text.startswith("<"):
            reason = "an HTML page: a proxy's or login page, or a base_url without /v1?"
        elif not reason:
            reason = "neither a chat completion nor an error; is base_url right?"
        return APIResponseValidationError("the server answered with something else than a chat completion (%s): %s"
                                          % (reason, _excerpt(text)), body=text[:1000])


# ----------------------------------------------------------------------------------------------------------------------
# Accumulation: chunks become a whole reply.  Linear in what arrives.  No I/O.
# ----------------------------------------------------------------------------------------------------------------------

_REASONING = ("reasoning_content", "reasoning", "thinking", "thinking_content", "thought")


def _text_parts(value: Any) -> Tuple[str, str]:
    """Text and reasoning in `content`, which Mistral's reasoning models send as a list of parts."""
    if isinstance(value, str):
        return value, ""
    text = reasoning = ""
    for part in value if isinstance(value, list) else ():
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and "thinking" in part:
            reasoning += "".join(_text_parts(part["thinking"]))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            text += part["text"]
    return text, reasoning


def _reasoning_text(delta: Any) -> str:
    """The reasoning in a delta, under whatever name; once, though some servers send it under two."""
    fields = delta.__dict__
    for key in _REASONING:
        value = fields.get(key)
        if value:
            return str(value.get("text") or "") if isinstance(value, dict) else "".join(_text_parts(value))
    text = _text_parts(fields.get("content"))[1]
    details = fields.get("reasoning_details")
    if not text and isinstance(details, list):
        text = "".join(_text_parts(details))
    return text


class _ToolCalls:
    """The tool calls of one message, put together from their fragments."""

    def __init__(self) -> None:
        self._slots: List[Dict[str, Any]] = []
        self._by_index: Dict[int, Dict[str, Any]] = {}
        self._by_id: Dict[str, Dict[str, Any]] = {}

    def add(self, call: Dict[str, Any]) -> None:
        function = call.get("function")
        function = function.__dict__ if isinstance(function, _WireObject) else {}
        slot = self._slot(call.get("index"), call.get("id"), function.get("name"))
        for target, fields in ((slot, call), (slot["function"], function)):
            for key, value in fields.items():
                if key in ("id", "type", "name"):
                    if value and not target.get(key):  # set once; "" on continuations is usual
                        target[key] = value
                elif key == "arguments":
                    if value is not None:
                        slot["arguments"].append(value if value.__class__ is str else _dump_json(value))
                elif value is not None and key not in ("index", "function"):
                    target[key] = value

    def _slot(self, index: Any, id: Any, name: Any) -> Dict[str, Any]:
        if index.__class__ is str and index[:9].isdecimal():
            index = int(index[:9])
        slot = self._by_index.get(index) if index.__class__ is int else None
        known = self._by_id.get(id) if id and id.__class__ is str else None
        if index.__class__ is not int:
            slot = known
        elif slot and id and name and slot["id"] not in ("", id):
            slot = known  # Ollama gives every parallel call index 0
        if slot is None and self._slots and not (id or name):
            slot = self._slots[-1]
        if slot is None:
            slot = {"id": "", "type": "", "function": {"name": ""}, "arguments": [], "made": ""}
            self._slots.append(slot)
        if index.__class__ is int:
            self._by_index[index] = slot
        if id and id.__class__ is str:
            self._by_id.setdefault(id, slot)
        return slot

    def whole(self) -> List[Dict[str, Any]]:
        calls = []
        for slot in self._slots:
            arguments = _well_formed("".join(slot["arguments"]))
            if slot["function"]["name"] or arguments:  # DeepSeek ends with an empty call
                made = slot["made"] = slot["made"] or "call_" + os.urandom(12).hex()  # replaying it needs an id
                call = dict(slot, id=slot["id"] or made, type=slot["type"] or "function",
                            function=dict(slot["function"], arguments=arguments))
                del call["arguments"], call["made"]
                calls.append(call)
        return calls


class _Answer:
    """One choice so far."""

    def __init__(self) -> None:
        self.fields: Dict[str, Any] = {"finish_reason": None, "logprobs": None}
        self._message: Dict[str, Any] = {}
        self._content: List[str] = []
        self._has_content = False
        self._texts: Dict[str, List[str]] = {}
        self._lists: Dict[str, List[Any]] = {}
        self._calls: Optional[_ToolCalls] = None

    def add(self, choice: Dict[str, Any]) -> None:
        for key, value in choice.items():
            if key == "delta":
                self._add_delta(value.__dict__)
            elif value is None or value == "" or key == "message":
                continue
            elif key == "logprobs":
                if not isinstance(value, _WireObject):
                    continue
                merged = self.fields["logprobs"] = self.fields["logprobs"] or {}
                for name, items in value.__dict__.items():
                    if isinstance(items, list) and isinstance(merged.get(name), list):
                        merged[name] += items
                    elif items is not None:
                        merged[name] = list(items) if isinstance(items, list) else items
            elif key != "finish_reason" or value.__class__ is str:
                self.fields[key] = value

    def _add_delta(self, delta: Dict[str, Any]) -> None:
        for key, value in delta.items():
            if value is None:
                continue
            if key == "content":
                self._add_content(value)
            elif key == "tool_calls":
                self._calls = self._calls or _ToolCalls()
                for call in value if value.__class__ is list else ():
                    if isinstance(call, _WireObject):
                        self._calls.add(call.__dict__)
            elif key == "refusal" or key in _REASONING:
                if value.__class__ is dict:  # Envoy's gateway
                    value = value.get("text")
                self._join(key, "".join(_text_parts(value)))
            elif key == "reasoning_details" and value.__class__ is list:
                self._lists.setdefault(key, []).extend(value)
            elif key in ("function_call", "audio"):
                if isinstance(value, _WireObject):
                    self._add_object(key, value.__dict__)
            elif value != "":
                self._message[key] = value

    def _add_object(self, key: str, fields: Dict[str, Any]) -> None:
        target = self._message.setdefault(key, {})
        for name, value in fields.items():
            if name in ("arguments", "data", "transcript"):
                self._join(key + "." + name, value)
            elif value:
                target[name] = value

    def _add_content(self, value: Any) -> None:
        if value.__class__ is str:
            self._has_content = True
            self._content.append(value)
        else:
            text, reasoning = _text_parts(value)
            self._has_content = self._has_content or bool(text)
            self._content.append(text)
            self._join("reasoning_content", reasoning)

    def _join(self, key: str, text: Any) -> None:
        if text and text.__class__ is str:
            self._texts.setdefault(key, []).append(text)

    def whole(self, index: int) -> Dict[str, Any]:
        message: Dict[str, Any] = {"role": "assistant", "content": None}
        if self._has_content:
            message["content"] = _well_formed("".join(self._content))
        for key, value in self._message.items():
            message[key] = dict(value) if key in ("function_call", "audio") and value.__class__ is dict else value
        for key, pieces in self._texts.items():
            outer, _, inner = key.partition(".")
            (message[outer] if inner else message)[inner or outer] = _well_formed("".join(pieces))
        for key, items in self._lists.items():
            message[key] = list(items)
        if self._calls and self._calls.whole():
            message["tool_calls"] = self._calls.whole()
        logprobs = self.fields["logprobs"]
        if isinstance(logprobs, dict):
            logprobs = {key: list(items) if isinstance(items, list) else items for key, items in logprobs.items()}
        return dict(self.fields, index=index, message=message, logprobs=logprobs)


class Accumulator:
    """Puts the chunks of a stream together: `add` each, read `completion` at any time.

    Texts, reasoning, refusals, tool arguments and audio are joined, lists of log probabilities extended, usage is the
    last count that is not all zero; of any other field the last value that is not null wins.
    """

    def __init__(self) -> None:
        self._fields: Dict[str, Any] = {}
        self._answers: Dict[int, _Answer] = {}
        self._usage: Optional[CompletionUsage] = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        for key, value in chunk.__dict__.items():
            if key == "choices":
                for choice in value:
                    answer = self._answers.get(choice.index)
                    if answer is None:
                        answer = self._answers[choice.index] = _Answer()
                    answer.add(choice.__dict__)
            elif value is None or value == "":
                continue
            elif key == "usage":
                self._count(value)
            else:
                if key == "x_groq" and value.__class__ is dict and value.get("usage").__class__ is dict:
                    self._count(_wire(CompletionUsage, dict(value["usage"])))
                self._fields[key] = value

    def _count(self, usage: Any) -> None:
        if isinstance(usage, CompletionUsage) and any(
                isinstance(count, (int, float)) and count for count in usage.__dict__.values()):
            self._usage = usage

    @property
    def finished(self) -> bool:
        """Every choice seen has its finish_reason."""
        return bool(self._answers) and all(answer.fields["finish_reason"] for answer in self._answers.values())

    @property
    def completion(self) -> ChatCompletion:
        """The reply so far, a copy: in the shape of a whole one."""
        choices = [self._answers[index].whole(index) for index in sorted(self._answers)]
        return _wire(ChatCompletion, dict(self._fields, object="chat.completion", choices=choices, usage=self._usage))


# ----------------------------------------------------------------------------------------------------------------------
# Body framing: chunked coding, Content-Length, gzip and deflate, undone piece by piece.  No I/O.
# http.client's own reader takes a cut chunked body for its end and accepts sizes such as 0x9, 1_0 and -5.
# Source: RFC 9112, sections 6 and 7; RFC 1950 to 1952
# ----------------------------------------------------------------------------------------------------------------------

class _BodyError(http.client.HTTPException):
    """The body breaks the rules of its framing or coding."""


class _Framing:
    """Finds a body in the bytes of a connection.

    length: its Content-Length, None if the body ends with the connection
    ended:  the whole body has come
    dirty:  something came after it
    error:  the _BodyError that follows what `feed` returned
    """

    def __init__(self, length: Optional[int]) -> None:
        self.length = length
        self.ended = length == 0
        self.dirty = False
        self.error: Optional[_BodyError] = None

    def feed(self, data: bytes) -> bytes:
        if self.length is None:
            return data
        body = data[:self.length]
        self.dirty = self.dirty or len(data) > self.length
        self.length -= len(body)
        self.ended = self.length == 0
        return body

    def close(self) -> None:
        """The connection has ended."""
        if self.length is None:
            self.ended = True
        elif not self.ended:
            self.error = _BodyError("the connection was closed %d bytes before the end of the reply" % self.length)


class _ChunkedFraming(_Framing):
    """The chunked coding: CRLF and hexadecimal digits only; extensions and trailers are skipped."""

    _size = re.compile(rb"0*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")

    def __init__(self) -> None:
        super().__init__(0)
        self.ended = False
        self._rest = b""         # a size line or trailer that has not ended
        self._left = 0           # bytes of the chunk still to come, its CRLF included
        self._in_trailer = False
        self._trailer_size = 0

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        pieces = []
        at, end = 0, len(data)
        while at < end and not self.ended and not self.error:
            if self._left > 2:
                piece = data[at:at + self._left - 2]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
            elif self._left:
                if data[at:at + 1] != b"\r\n"[2 - self._left:3 - self._left]:
                    self.error = _BodyError("a chunk of the reply is longer than it says")
                self._left -= 1
                at += 1
            elif self._in_trailer:
                at = self._trailer(data, at)
            else:
                size = self._size.match(data, at)
                if size:
                    at = size.end()
                    self._left = int(size.group(1), 16) + 2
                    if self._left == 2:
                        self._left, self._in_trailer = 0, True
                else:
                    self._incomplete(data[at:])
                    at = end
        self.dirty = self.dirty or at < end
        return b"".join(pieces)

    def _incomplete(self, line: bytes) -> None:
        if b"\n" in line or len(line) > MAX_HEADERS or not re.match(rb"[0-9a-fA-F]+([ \t;\r]|$)", line):
            self.error = _BodyError("a chunk of the reply has no valid size: %r" % line[:40])
        self._rest = line

    def _trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        self._trailer_size += (end or len(data)) - at
        if self._trailer_size > MAX_HEADERS:
            self.error = _BodyError("the trailers of the reply are longer than %d bytes" % MAX_HEADERS)
        elif not end:
            self._trailer_size -= len(data) - at
            self._rest = data[at:]
        elif data[at:end].strip() == b"":
            self.ended = True
        return end or len(data)

    def close(self) -> None:
        if not self.ended:
            self.error = _BodyError("the connection was closed before the end of the reply")


class _Inflater:
    """gzip, or deflate with or without its zlib header, which servers disagree about."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._zlib: Any = None   # none before the first member and between members
        self._rest = b""         # a first byte that does not tell yet what follows
        self._members = 0
        self._size = 0
        self.error: Optional[_BodyError] = None

    def feed(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        text = b""
        while data and not self.error:
            if self._zlib is None:
                if len(data) < 2:
                    self._rest = data
                    break
                if self._members and data[:2] != b"\x1f\x8b":
                    break  # padding after the last member
                raw = self._coding == "deflate" and (data[0] & 15 != 8 or (data[0] << 8 | data[1]) % 31)
                self._zlib = zlib.decompressobj(-15 if raw else 47)
            text += self._inflate(data)
            data = self._zlib.unused_data
            if self._zlib.eof:
                self._members += 1
                self._zlib = None
        self._size += len(text)
        if self._size > MAX_INFLATED:
            self.error = _BodyError("the reply is longer than %d bytes after decompression" % MAX_INFLATED)
        return text

    def _inflate(self, data: bytes) -> bytes:
        before = self._zlib.copy()
        try:
            return cast(bytes, self._zlib.decompress(data))
        except zlib.error as error:
            self.error = _BodyError("the reply cannot be decompressed: %s" % error)
            text = b""
            try:
                for i in range(len(data)):  # what came before the bad byte counts
                    text += before.decompress(data[i:i + 1])
            except zlib.error:
                pass
            return text

    def close(self) -> None:
        if self._zlib is not None or not self._members:
            self.error = self.error or _BodyError("the compressed reply ends too early")


# ----------------------------------------------------------------------------------------------------------------------
# Transport: a request in, an open response or an error of ours out.  The one place that does I/O and that translates
# exceptions.  urllib's opener finds the proxy and runs the caller's handlers; http.client parses the response's head.
# ----------------------------------------------------------------------------------------------------------------------

_FAULTS: Tuple[Type[BaseException], ...] = (OSError, http.client.HTTPException, ValueError)
_WOULD_BLOCK: Tuple[Type[BaseException], ...] = (BlockingIOError,) + ((ssl.SSLWantReadError,) if ssl else ())


class _Call:
    """The clock of one call and the socket in its use, so that another thread can end it."""

    def __init__(self, timeout: Any, deadline: Optional[float]) -> None:
        self.connect, self.read = _timeouts(timeout)
        self.started = time.monotonic()
        self.deadline = self.started + (math.inf if deadline is None else deadline)
        self.secrets: Set[str] = set()  # what no error may show, though a server repeats it
        self.cancelled = threading.Event()
        self.on_connected: Callable[[], None] = _nothing
        self.connecting = True
        self.proxy = ""
        self._until = math.inf
        self._pid = os.getpid()
        self._sock: Any = None

    def start(self, seconds: float) -> None:
        """Start to wait for something for so many seconds; bytes that are not it do not extend the wait."""
        self._until = min(time.monotonic() + seconds, self.deadline)

    def left(self) -> Optional[float]:
        """Seconds for the next step on the socket.  Raises socket.timeout if there are none."""
        if self.cancelled.is_set():
            raise OSError("the stream was closed")
        if self._until == math.inf:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        return left

    @property
    def until(self) -> float:
        """When `left` will raise, on the clock of time.monotonic()."""
        return self._until

    def attach(self, sock: Any) -> None:
        self._sock = sock
        if self.cancelled.is_set():
            raise OSError("the stream was closed")

    def detach(self) -> None:
        self._sock = None

    def cancel(self) -> None:
        """End the call at once: `shutdown` wakes a thread that waits on the socket, which `close` does not."""
        self.cancelled.set()
        sock = self._sock
        if sock is not None and self._pid == os.getpid():  # after a fork the connection is the parent's
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket.shutdown would not spare the reader
            except OSError:
                pass

    def hide(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


def _nothing() -> None:
    pass


def _timeouts(timeout: Any) -> Tuple[float, float]:
    """(connect, read) from a number, a pair, an object with these two attributes, or None for no limit."""
    if hasattr(timeout, "connect") and hasattr(timeout, "read"):
        timeout = (timeout.connect, timeout.read)
    pair = tuple(timeout) if isinstance(timeout, (tuple, list)) else (timeout, timeout)
    if len(pair) != 2 or not all(value is None or _is_positive(value) for value in pair):
        raise OpenAIError("timeout must be seconds, (connect, read) in seconds, or None, not %r" % (timeout,))
    connect, read = (math.inf if value is None else float(value) for value in pair)
    return connect, read


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


class _Request(urllib.request.Request):
    """A urllib request that knows its call."""

    def __init__(self, call: _Call, method: str, url: str, headers: Dict[str, str], body: Optional[bytes],
                 redirects: int = 0) -> None:
        super().__init__(url, data=body, method=method)
        self.call = call
        self.redirects = redirects
        self.own_headers = headers
        for name, value in headers.items():
            self.add_unredirected_header(name, value)

    @property
    def tunnel(self) -> str:
        """host:port that a proxy is asked to connect to."""
        host = getattr(self, "_tunnel_host", None) or ""  # where urllib's set_proxy puts it
        return host if not host or _port(host) else host + ":443"


class _Reader:
    """What http.client reads a response's head from, and we its body: through here comes every byte received, and
    each `recv` is given what is left of the call's time."""

    def __init__(self, sock: Any, raw: Any, call: _Call) -> None:
        self.call = call
        self.received = 0
        self.sock = sock
        self._raw = raw          # holds the socket open, though http.client may let go of it
        self.ahead = b""        # received, not read yet
        self.head_size: Optional[int] = 0

    def recv(self, size: int) -> bytes:
        if self.ahead:
            data, self.ahead = self.ahead[:size], self.ahead[size:]
            return data
        self.sock.settimeout(self.call.left())
        data = cast(bytes, self.sock.recv(size))
        self.received += len(data)
        return data

    def recv_nowait(self, size: int) -> Optional[bytes]:
        """What has come already; None if nothing has."""
        if self.ahead:
            return self.recv(size)
        self.call.left()
        self.sock.settimeout(0)
        try:
            data = cast(bytes, self.sock.recv(size))
        except _WOULD_BLOCK:
            return None
        self.received += len(data)
        return data

    def readline(self, limit: int) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < limit:
            data = self.recv(65536)
            if not data:
                break
            end = min(data.find(b"\n") + 1 or len(data), limit - len(line))
            line += data[:end]
            self.ahead = data[end:]
        if self.head_size is not None:
            self.head_size += len(line)
            if self.head_size > MAX_HEADERS:
                raise _BodyError("the headers are longer than %d bytes" % MAX_HEADERS)
        return bytes(line)

    def fileno(self) -> int:
        return cast(int, self.sock.fileno())

    def flush(self) -> None:
        """http.client calls it."""

    def close(self) -> None:
        self._raw.close()


class _HTTPResponse(http.client.HTTPResponse):
    """A response whose body is read with `recv`, decoded, as it comes."""

    def __init__(self, sock: Any, debuglevel: int = 0, method: Optional[str] = None, url: Optional[str] = None, *,
                 call: _Call) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.reader = _Reader(sock, self.fp.detach(), call)  # type: ignore[attr-defined]
        self.fp = self.reader  # type: ignore[assignment]
        self.connection: Any = None
        self.framing = _Framing(0)
        self.inflater: Optional[_Inflater] = None

    def _read_status(self) -> Any:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status not in (102, 103):
                return version, status, reason
            while self.reader.readline(65537) not in (b"\r\n", b"\n", b""):
                pass  # http.client skips 100 alone, and takes these for the answer

    def begin(self) -> None:
        super().begin()
        if self.status == 101:
            raise _BodyError("the server wants to switch protocols")
        lengths = set(self.headers.get_all("content-length") or ())
        transfer = str(self.headers.get("transfer-encoding") or "").strip().lower()
        if transfer not in ("", "identity", "chunked"):
            raise _BodyError("the reply has the transfer coding %r" % transfer)
        if self.length == 0 and self.status in (204, 304):
            return
        if transfer == "chunked":
            self.framing = _ChunkedFraming()
        elif len(lengths) > 1 or not all(re.match(r"\d{1,18}$", length.strip(), re.ASCII) for length in lengths):
            raise _BodyError("the reply has no valid Content-Length: %s" % _excerpt(", ".join(lengths)))
        else:
            self.framing = _Framing(int(lengths.pop()) if lengths else None)
        coding = str(self.headers.get("content-encoding") or "").strip().lower()
        if coding in ("gzip", "x-gzip", "deflate"):
            self.inflater = _Inflater(coding)
        elif coding not in ("", "identity"):
            raise APIResponseValidationError(
                "the server compressed its reply with %r, though none was asked for" % coding)

    def recv(self, wait: bool = True) -> Optional[bytes]:
        """Some bytes of the body, decoded; none at its end; None if there are none yet and `wait` is False.

        Raises an error only after all that came before it.
        """
        while True:
            error = self.framing.error or (self.inflater and self.inflater.error)
            if error:
                raise error
            if self.framing.ended:
                return b""
            size = 4096 if self.inflater else 65536  # deflate makes at most 1,032 bytes of one
            data = self.reader.recv(size) if wait else self.reader.recv_nowait(size)
            if data is None:
                return None
            data = self.decode(data)
            if data:
                return data

    def decode(self, data: bytes) -> bytes:
        """Undo framing and coding of bytes from the connection; none means that it has ended."""
        if not data:
            self.framing.close()
            body = b""
        else:
            body = self.framing.feed(data)
            if self.inflater:
                body = self.inflater.feed(body)
        if self.inflater and self.framing.ended:
            self.inflater.close()
        return body

    def is_reusable(self) -> bool:
        """The connection can carry another request: the body has ended, and there is nothing more to read.

        The last bytes of a body, after [DONE], may be some microseconds behind: they get a moment.
        """
        reader, framing = self.reader, self.framing
        try:
            reader.sock.settimeout(0 if framing.ended else 0.02)
            for _ in range(16):
                data = reader.ahead or reader.sock.recv(4096)
                reader.ahead = b""
                framing.feed(data)
                if not data or framing.error or framing.dirty:
                    return False
                if framing.ended:
                    reader.sock.settimeout(0)
        except _WOULD_BLOCK:
            return framing.ended and not framing.dirty
        except _FAULTS:
            pass
        return False

    def discard(self) -> None:
        """Close the connection."""
        self.close()
        if self.connection is not None:
            self.connection.close()


class _HTTPConnection(http.client.HTTPConnection):
    """A connection, plain or TLS, straight or through a proxy."""

    def __init__(self, request: _Request, context: Any) -> None:
        self.default_port = 443 if request.type == "https" and not request.tunnel else 80
        super().__init__(request.host)
        self.key = (request.type, request.host, request.tunnel)
        self._context = context
        self.serve(request)

    def serve(self, request: _Request) -> None:
        """Take on the next request."""
        self._request = request
        self._response: Optional[_HTTPResponse] = None

    def response_class(self, *args: Any, **kwargs: Any) -> _HTTPResponse:
        """What http.client makes responses with."""
        self._response = _HTTPResponse(*args, call=self._request.call, **kwargs)
        return self._response

    @property
    def answered(self) -> bool:
        """Some byte of the response has come."""
        return bool(self._response and self._response.reader.received)

    def connect(self) -> None:
        """All of it within the call's connect timeout: every address, the proxy's answer, the TLS handshake."""
        request, call = self._request, self._request.call
        call.connecting = True
        call.start(call.connect)
        self.sock = self._tcp(call)
        call.attach(self.sock)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if request.tunnel:
            self._connect_through_proxy(request)
        if request.type == "https":
            host = urllib.parse.urlsplit(request.full_url).hostname
            self.sock = self._context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
            call.attach(self.sock)
            self.sock.settimeout(call.left())
            self.sock.do_handshake()
        call.connecting = False

    def _tcp(self, call: _Call) -> socket.socket:
        addresses = socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM)
        error: Optional[OSError] = None
        for i, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                call.attach(sock)
                left = call.left()  # shared between the addresses that have not been tried
                sock.settimeout(left and left / (len(addresses) - i))
                sock.connect(address)
                return sock
            except OSError as failed:
                error = error if isinstance(failed, socket.timeout) and error else failed
                sock.close()
        raise error or OSError("the host has no address")

    def _connect_through_proxy(self, request: _Request) -> None:
        call = request.call
        lines = ["CONNECT %s HTTP/1.1" % request.tunnel, "Host: " + request.tunnel, "User-Agent: " + _user_agent()]
        if request.has_header("Proxy-authorization"):
            lines.append("Proxy-Authorization: " + cast(str, request.get_header("Proxy-authorization")))
        self.sock.settimeout(call.left())
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        response = _HTTPResponse(self.sock, method="CONNECT", call=call)
        try:
            response.begin()
        finally:
            response.close()
        if not 200 <= response.status < 300:
            raise _ProxyError(response.status, response.reason, response.headers)


class _ProxyError(OSError):
    """The proxy refused to connect."""

    def __init__(self, status: int, reason: str, headers: Any) -> None:
        super().__init__("the proxy answered %d %s" % (status, _excerpt(reason, 60)))
        self.status = status
        self.headers = headers


class _Handler(urllib.request.BaseHandler):
    """http and https for the opener, over connections that are kept for the next request, and redirects."""

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._idle: Deque[Tuple[float, int, _HTTPResponse]] = collections.deque()

    def http_open(self, request: Any) -> _HTTPResponse:
        connection = self._claim(request)
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except (ConnectionError,) + _SSL_ERRORS:
                # The server had closed it while it was idle, and so has seen no request: this is no failed attempt.
                if connection.answered or request.call.cancelled.is_set():
                    raise
        return self._exchange(_HTTPConnection(request, self._context() if request.type == "https" else None), request)

    https_open = http_open

    def _exchange(self, connection: _HTTPConnection, request: _Request) -> _HTTPResponse:
        call = request.call
        connection.serve(request)
        headers = {"Host": urllib.parse.urlsplit(request.full_url).netloc, "Connection": "keep-alive"}
        headers.update(request.headers)
        headers.update(request.unredirected_hdrs)
        if request.tunnel:
            headers.pop("Proxy-authorization", None)
        try:
            if connection.sock is None:
                connection.connect()
            call.attach(connection.sock)
            call.start(call.read)
            connection.sock.settimeout(call.left())
            call.on_connected()
            early: Optional[OSError] = None
            try:
                connection.request(request.get_method(), request.selector, request.data, headers)
            except OSError as error:  # a server that refuses may answer before it has read everything (413, 401)
                early = error
            try:
                response = cast(_HTTPResponse, connection.getresponse())
            except _FAULTS:
                if early:
                    raise early from None
                raise
        except BaseException:
            connection.close()
            raise
        response.reader.head_size = None
        response.will_close = response.will_close or early is not None
        response.connection = connection
        response.msg = response.reason  # type: ignore[assignment]  # what urllib's handlers expect
        response.url = request.full_url
        return response

    def _claim(self, request: _Request) -> Any:
        while self._idle:
            try:
                since, pid, response = self._idle.pop()
            except IndexError:
                break
            if pid != os.getpid():
                continue  # forked since: it is the parent's
            connection = response.connection
            if (time.monotonic() - since < IDLE_SECONDS and response.is_reusable()
                    and connection.key == (request.type, request.host, request.tunnel)):
                response.close()
                return connection
            response.discard()
        return None

    def release(self, response: _HTTPResponse, whole: bool) -> None:
        """The caller is done with the response.  If it was read to what it says is its end, keep the connection; it is
        looked at when it is next wanted."""
        response.reader.call.detach()
        if not whole or response.will_close or response.connection.sock is None:
            response.discard()
            return
        self._idle.append((time.monotonic(), os.getpid(), response))
        if len(self._idle) > MAX_IDLE:
            self._idle.popleft()[2].discard()

    def close_idle(self) -> None:
        while self._idle:
            self._idle.pop()[2].discard()

    __del__ = close_idle

    def http_error_307(self, request: Any, response: _HTTPResponse, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect that keeps method and body, to the same origin."""
        url = _location(response, request.full_url)
        if request.redirects >= 5 or not url or _origin(url) != _origin(request.full_url):
            return response
        _log(_DEBUG, "%d: redirected to %s", code, _bare(url))
        _read_error_body(response, request.call)
        self.release(response, response.framing.ended)
        again = _Request(request.call, request.get_method(), url, request.own_headers, request.data,
                         request.redirects + 1)
        return self.parent.open(again)  # type: ignore[attr-defined]

    http_error_308 = http_error_307

    def http_error_default(self, request: Any, response: Any, code: int, msg: str, headers: Any) -> Any:
        """No exceptions of urllib's: every answer is returned."""
        return response


class _ProxyHandler(urllib.request.ProxyHandler):
    """The proxies that urllib finds when the client is made; loopback is never proxied."""

    def proxy_open(self, request: Any, proxy: str, type: str) -> None:
        if request.tunnel or _bypasses_proxy(request.host, self.proxies):  # type: ignore[attr-defined]
            return
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else "http://" + proxy)
        if parts.scheme != "http":
            raise OpenAIError(
                "the proxy for %s: is a %s: proxy (%s); only http: proxies are spoken here: set %s_PROXY to one, or "
                "unset it" % (type, parts.scheme, parts.hostname, type.upper()))
        if parts.username is not None:
            import base64
            login = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
            request.add_unredirected_header(
                "Proxy-authorization", "Basic " + base64.b64encode(login.encode()).decode())
        request.call.proxy = parts.netloc.rpartition("@")[2]
        request.set_proxy(parts.netloc.rpartition("@")[2], "http")


def _port(netloc: str) -> str:
    """The port in "host:port", if it is there."""
    found = re.search(r":(\d+)$", netloc)
    return found.group(1) if found else ""


def _bypasses_proxy(netloc: str, proxies: Dict[str, str]) -> bool:
    """NO_PROXY may hold names and ports, as urllib knows them, and networks (10.0.0.0/8)."""
    host = (netloc[:-len(_port(netloc)) - 1] if _port(netloc) else netloc).strip("[]").lower()
    if _is_loopback(host):
        return True
    if "no" not in proxies:
        return bool(urllib.request.proxy_bypass(netloc))  # the system's own list, on Windows and macOS
    if urllib.request.proxy_bypass_environment(netloc, proxies):  # type: ignore[attr-defined]
        return True
    if "/" not in proxies["no"]:
        return False
    import ipaddress  # only here: it is large
    for network in proxies["no"].split(","):
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(network.strip(), strict=False):
                return True
        except ValueError:
            pass  # a name
    return False


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    for family, loopback in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, b"\0" * 15 + b"\x01")):
        try:
            return socket.inet_pton(family, host).startswith(loopback)
        except OSError:
            pass
    return False


def _origin(url: str) -> Tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, (parts.hostname or "") if "@" not in parts.netloc else "@", port or (
        443 if parts.scheme == "https" else 80)


def _location(response: Any, url: str) -> str:
    """Where a redirect points to; "" if nowhere."""
    location = response.headers.get("location")
    try:
        target = urllib.parse.urljoin(url, location) if location else ""
        urllib.parse.urlsplit(target)
        return target
    except ValueError:
        return ""


def _bare(url: str) -> str:
    """A URL for messages: without query, user name and password."""
    parts = urllib.parse.urlsplit(url)
    return _excerpt("%s://%s%s" % (parts.scheme, parts.netloc.rpartition("@")[2], parts.path))


def _user_agent() -> str:
    """One of our own: firewalls answer "Python-urllib" with 403."""
    return "streamlite/%s Python/%d.%d" % ((__version__,) + sys.version_info[:2])


# -- TLS --

_SSL_ERRORS: Tuple[Type[BaseException], ...] = (ssl.SSLError, ssl.CertificateError) if ssl else ()
_FAULTS += _SSL_ERRORS
_contexts: Dict[Tuple[Optional[str], ...], Any] = {}


def _tls_context() -> Any:
    """A context that verifies certificates, made once per process and setting: that takes 20 ms."""
    if ssl is None:
        raise OpenAIError("this Python has no ssl module: only http: URLs work")
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    settings = tuple(os.environ.get(name) or None for name in names)
    context = _contexts.get(settings)
    if context is None:
        context = _contexts[settings] = _make_tls_context(names, settings)
    return context


def _make_tls_context(names: Sequence[str], settings: Sequence[Optional[str]]) -> Any:
    for name, path in zip(names, settings):
        if path and not any(os.path.exists(part) for part in path.split(os.pathsep)):
            raise OpenAIError("%s names %s, which does not exist: set it to a file (or folder) of CA certificates"
                              % (name, path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:  # Python 3.6
        context.options |= ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    if ssl.HAS_ALPN:
        context.set_alpn_protocols(["http/1.1"])
    cert_file, cert_dir, *bundles = settings
    bundle = next((path for path in bundles if path), None)
    try:
        if bundle and not (cert_file or cert_dir):
            context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
        else:
            if cert_file:
                context.load_verify_locations(cafile=cert_file)  # an error where OpenSSL's default is silence
            context.load_default_certs()
    except OSError as error:
        raise OpenAIError("the CA certificates in %s cannot be read: %s" % (cert_file or bundle, error)) from error
    return context


# -- what went wrong, in our words --

_CERTIFICATE_REMEDY = (
    "if a private CA or an intercepting proxy issued it, set SSL_CERT_FILE to that CA's certificate; on macOS run "
    "\"Install Certificates.command\" of the Python folder once")
_STRICT_REMEDY = (
    "Python 3.13 made ssl.create_default_context() stricter than this CA's certificates: clear ssl.VERIFY_X509_STRICT "
    "in the verify_flags of the ssl_context that you pass")


def _translate(error: BaseException, call: _Call, url: str, chunks: int) -> APIError:
    """One of our errors for one of the standard library's: what happened, where, when, and what to do."""
    if isinstance(error, APIError):
        return error
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    place = _bare(url) + (" through the proxy %s" % call.proxy if call.proxy else "")
    when = " after %d chunks and %.1f s" % (chunks, call.elapsed) if chunks else ""
    if call.cancelled.is_set():
        return APIConnectionError(message="the stream from %s was closed%s" % (_bare(url), when))
    reason = _excerpt(str(error) or type(error).__name__)
    if isinstance(error, (socket.timeout, TimeoutError)):
        if time.monotonic() >= call.deadline:
            limit = "the deadline of %g s passed" % (call.deadline - call.started)
        elif call.connecting:
            limit = "no connection within %g s (timeout)" % call.connect
        else:
            limit = "no event for %g s (timeout)" % call.read
        return APITimeoutError(message="%s%s: %s" % (limit, when, place))
    if isinstance(error, _ProxyError):
        return APIConnectionError(message="%s for %s; %s" % (reason, host, _proxy_remedy(error.status, error.headers)))
    if _is_certificate_error(error):
        remedy = _STRICT_REMEDY if re.search("Key Identifier|Basic Constraints|critical", reason) else (
            _CERTIFICATE_REMEDY)
        return APIConnectionError(message="the certificate of %s is not trusted (%s); %s" % (host, reason, remedy))
    if isinstance(error, socket.gaierror):
        remedy = "the host %s is not known (%s): check base_url, or set HTTPS_PROXY if this network has a proxy" % (
            call.proxy or host, reason)
    elif isinstance(error, ConnectionRefusedError):
        remedy = "nothing listens at %s: is the %s running?" % (
            call.proxy or _bare(url), "proxy" if call.proxy else "server")
    elif call.connecting and isinstance(error, _SSL_ERRORS):
        remedy = "no TLS connection to %s (%s): does this port speak https?" % (host, reason)
    elif call.connecting:
        remedy = "no connection to %s: %s" % (place, reason)
    else:
        remedy = "the connection to %s was lost%s (%s); what had arrived is in `partial`" % (place, when, reason)
    return APIConnectionError(message=remedy)


def _is_certificate_error(error: Optional[BaseException]) -> bool:
    return bool(ssl) and (isinstance(error, ssl.CertificateError) or "CERTIFICATE_VERIFY_FAILED" in str(error))


def _proxy_remedy(status: int, headers: Any) -> str:
    if status == 407:
        schemes = ", ".join(str(value).split(" ")[0] for value in headers.get_all("proxy-authenticate") or ())
        return ("it asks for %s: put user:password@ into the proxy's URL for Basic; for others pass `handlers`, or run "
                "px or cntlm on this machine and set HTTPS_PROXY to it" % (_excerpt(schemes) or "credentials"))
    return "check HTTPS_PROXY and NO_PROXY"


def _status_error(response: _HTTPResponse, url: str, call: _Call) -> APIStatusError:
    """The error for an answer that is no success, read to its end or to what of it can be had."""
    status = response.status
    text = call.hide(_read_error_body(response, call).decode("utf-8", "replace").strip())
    try:
        body, words = _server_error(json.loads(text))
    except (ValueError, RecursionError):
        body, words = text, ""
    words = words or text
    if re.match(r"\s*<", words):
        title = re.search("(?is)<title>(.*?)</title>", words)
        words = "an HTML page" + (": " + title.group(1) if title else "")
    hint = ""
    if 300 <= status < 400:
        target = _location(response, url)
        hint = "; it redirects to %s, which is not followed" % (
            _bare(target) if target else _excerpt(str(response.headers.get("location") or "nowhere")))
        if _origin(target)[:2] == ("https", _origin(url)[1]) and url.startswith("http:"):
            hint += ": use the https URL as base_url"
    elif status == 407:
        hint = "; " + _proxy_remedy(status, response.headers)
    elif status == 404 and "/v1" not in url:
        hint = "; should base_url end in /v1?"
    reason = _excerpt(response.reason or http.client.responses.get(status, ""), 60)
    return _status_error_class(status)(
        "%s: %s%s (%s)" % (("%d %s" % (status, reason)).strip(), _excerpt(words, 1000) or "no message", hint, _bare(url)),
        response=Response(status, response.headers), body=body)


def _read_error_body(response: _HTTPResponse, call: _Call) -> bytes:
    """The start of the body: it must not keep the status from the caller, however it ends."""
    body = b""
    call.start(min(call.read, PATIENCE))
    try:
        while len(body) < MAX_ERROR_BODY:
            data = response.recv()
            if not data:
                break
            body += data
    except _FAULTS:
        pass
    return body[:MAX_ERROR_BODY]


class _Transport:
    """One opener, with what it keeps between requests."""

    def __init__(self, ssl_context: Any, handlers: Sequence[urllib.request.BaseHandler]) -> None:
        self._handler = _Handler((lambda: ssl_context) if ssl_context else _tls_context)
        self.release = self._handler.release
        self.close = self._handler.close_idle
        self._opener = urllib.request.OpenerDirector()
        mine: List[urllib.request.BaseHandler] = [self._handler, urllib.request.HTTPErrorProcessor()]
        if not any(isinstance(handler, urllib.request.ProxyHandler) for handler in handlers):
            mine.append(_ProxyHandler())
        for handler in mine + list(handlers):
            self._opener.add_handler(handler)

    def open(self, call: _Call, method: str, url: str, headers: Dict[str, str],
             body: Optional[bytes]) -> _HTTPResponse:
        """Send the request; return the response of a success, whose body has not been read."""
        request = _Request(call, method, url, headers, body)
        try:
            response = cast(_HTTPResponse, self._opener.open(request))
            if not 200 <= response.status < 300:
                error = _status_error(response, url, call)
                self.release(response, response.framing.ended)
                raise error
            return response
        except _FAULTS as fault:
            raise _translate(fault, call, url, 0) from fault
        finally:
            _log(_DEBUG, "%s %s: %.3f s", method, _bare(url), call.elapsed)


# ----------------------------------------------------------------------------------------------------------------------
# Retries: one policy, for both clients.
# ----------------------------------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        refused = isinstance(cause, _ProxyError) and cause.status < 500
        return not (refused or _is_certificate_error(cause))
    if not isinstance(error, APIStatusError) or "insufficient_quota" in (error.code, error.type):
        return False
    if error.response is not None and error.response.status_code == error.status_code:
        told = str(error.response.headers.get("x-should-retry")).lower()
        if told in ("true", "false"):
            return told == "true"
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _retry_after(headers: Any) -> Optional[float]:
    """Seconds that the server asks to wait: milliseconds, seconds, or an HTTP date.  Anything else is no answer."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = str(headers.get(name) or "").strip()
        if re.match(r"[0-9]{1,12}(\.[0-9]*)?$", value):
            return float(value) * unit
    from email.utils import mktime_tz, parsedate_tz
    date = parsedate_tz(value)
    try:
        return max(0.0, mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError):
        return None


class _Attempts:
    """The attempts at one call."""

    def __init__(self, call: _Call, max_retries: int) -> None:
        self.call = call
        self.made = 0
        self.closed = False  # something was delivered: a repetition would not be invisible
        self._retries_left = max_retries

    def delay(self, error: APIError) -> float:
        """The seconds to wait before the next attempt.  Raises `error` if there is to be none."""
        error.attempts = self.made
        error.elapsed = self.call.elapsed
        if error.response is not None:
            error.retry_after = _retry_after(error.response.headers)
        if self.closed or self.call.cancelled.is_set() or self._retries_left <= 0 or not _is_transient(error):
            self.closed = True
            raise error
        if error.retry_after is not None:
            seconds = error.retry_after
        else:
            import random
            seconds = min(0.5 * 2 ** (self.made - 1), 8.0) * (1 - 0.25 * random.random())
        if seconds > MAX_RETRY_AFTER or time.monotonic() + seconds >= self.call.deadline:
            self.closed = True
            raise error
        self._retries_left -= 1
        _log(_INFO, "attempt %d failed, the next is in %.2f s: %s", self.made, seconds, error)
        return seconds

    def run(self, attempt: Callable[[], _T]) -> _T:
        while True:
            try:
                return attempt()
            except APIError as error:
                self.call.cancelled.wait(self.delay(error))


# ----------------------------------------------------------------------------------------------------------------------
# Streams
# ----------------------------------------------------------------------------------------------------------------------

class Stream:
    """The chunks of one reply, as they come; `with` ends the connection, and so the server's work, when you leave.

        for chunk in stream: ...          # ChatCompletionChunk; `break` and iterate again to go on
        for text in stream.text(): ...    # the text of choice 0
        completion = stream.collect()     # the rest of it, as a ChatCompletion
        stream.completion                 # what has come so far, at any time

    Raises the errors of `create`, and APIError, or the subclass for its code, for an error that the server reports in
    the stream; APIConnectionError for a stream that ends too early; APITimeoutError; all with `partial`.
    """

    def __init__(self, transport: _Transport, attempts: _Attempts, request: Request,
                 send: Callable[[str], _HTTPResponse], key: Callable[[], str]) -> None:
        self.response: Optional[Response] = None
        self._transport = transport
        self._attempts = attempts
        self._call = attempts.call
        self._request = request
        self._send = send
        self._key = key
        self._lock = threading.Lock()  # held while reading; who holds it closes
        self._http: Optional[_HTTPResponse] = None
        self._reader = _ChunkReader(self._call.hide)
        self._accumulator = Accumulator()
        self._ready: Deque[ChatCompletionChunk] = collections.deque()
        self._iterated = False
        self._body_over = False
        self._fault: Optional[BaseException] = None
        self._over = False
        self._failure: Optional[APIError] = None
        self._began = False
        self._longest: Optional[ChatCompletion] = None
        self._first_token_at: Optional[float] = None
        self._ended_at: Optional[float] = None

    # -- for the user --

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        self._iterated = True
        while True:
            while self._ready:
                yield self._take()
            if self._over:
                return
            self._attempts.run(self._advance)

    def __next__(self) -> ChatCompletionChunk:
        for chunk in self:
            return chunk
        raise StopIteration

    def text(self) -> Iterator[str]:
        """Iterate the text of choice 0, without empty pieces."""
        for chunk in self:
            text = _chunk_text(chunk)
            if text:
                yield text

    def collect(self) -> ChatCompletion:
        """Read to the end and return the whole reply, what was iterated before included.

        If nothing was, nobody has seen anything, and the loss of the connection may be cured by starting over.
        """
        if not self._iterated and not self._over:
            self._attempts.run(self._drain)
        for _ in self:
            pass
        return self.completion

    @property
    def completion(self) -> ChatCompletion:
        """What was handed out so far, in the shape of a whole reply."""
        return self._accumulator.completion

    def sse(self) -> Iterator[bytes]:
        """The stream as bytes for a browser's EventSource: each chunk as JSON in an event, then [DONE].

        An error becomes an event named `error`; it shows the server's words, but neither the server nor the network.
        """
        try:
            for chunk in self:
                yield encode_sse(chunk.to_json(indent=None))
            yield encode_sse("[DONE]")
        except APIError as error:
            yield _encode_error(error)
        finally:
            self.close()

    def close(self) -> None:
        """End the connection at once, from any thread: a read or a wait in another one ends with APIConnectionError."""
        if self._over:
            return
        self._call.cancel()
        if self._lock.acquire(False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_ended_at"):  # __init__ went through
            self.close()

    @property
    def time_to_first_token(self) -> Optional[float]:
        """Seconds from the call to the first content, None before."""
        return self._first_token_at and self._first_token_at - self._call.started

    @property
    def elapsed(self) -> float:
        """Seconds from the call to the end of the stream, or to now."""
        return (self._ended_at or time.monotonic()) - self._call.started

    # -- the way of the bytes; the asynchronous stream goes it too --

    def _take(self) -> ChatCompletionChunk:
        """Hand out a chunk; from now on nothing is repeated behind the caller's back."""
        chunk = self._ready.popleft()
        self._accumulator.add(chunk)
        self._attempts.closed = True
        return chunk

    def _open(self) -> None:
        """Make an attempt: send the request, read the head of the answer."""
        with self._lock:
            try:
                self._connect(self._key())
            except APIError as error:
                self._fail(error)
                raise

    def _advance(self) -> None:
        """Read until there are chunks to hand out, or the stream is over."""
        with self._lock:
            try:
                if self._http is None:
                    self._connect(self._key())
                self._start_wait()
                while not self._settled():
                    self._absorb(self._receive())
            except APIError as error:
                self._fail(error)
                raise

    def _drain(self) -> None:
        """Read to the end; nobody sees anything before."""
        while not self._over:
            self._advance()
            while self._ready:
                self._accumulator.add(self._ready.popleft())

    def _fetch(self) -> Dict[str, Any]:
        """Make an attempt at a reply that is a JSON object, and no completion."""
        with self._lock:
            try:
                self._connect(self._key())
                self._start_wait()
                body = b""
                while not self._body_over:
                    data = self._receive() or b""
                    body += data
                    self._body_over = not data or len(body) > MAX_EVENT
                if self._fault:
                    raise _translate(self._fault, self._call, self._request.url, 0) from self._fault
                try:
                    fields = json.loads(body.decode("utf-8-sig", "replace"))
                except (ValueError, RecursionError):
                    fields = None
                if not isinstance(fields, dict) or not isinstance(fields.get("data"), list):
                    raise self._reader.not_ours(body.decode("utf-8", "replace").strip())
                self._finish("its end")
                return fields
            except APIError as error:
                self._fail(error)
                raise

    def _connect(self, key: str) -> None:
        if self._attempts.closed:
            raise self._failure or _translate(OSError(), self._call, self._request.url, 0)
        self._attempts.made += 1
        self.response = None
        self._reader = _ChunkReader(self._call.hide)
        self._accumulator = Accumulator()
        self._fault, self._body_over = None, False
        http_response = self._send(key)
        self.response = Response(http_response.status, http_response.headers)
        self._http = http_response
        self._began = True
        if self._call.cancelled.is_set():
            raise _translate(OSError(), self._call, self._request.url, 0)

    def _start_wait(self) -> None:
        """Comments, blank lines and single bytes are no event: they do not start the clock again."""
        self._call.start(min(self._call.read, PATIENCE) if self._accumulator.finished else self._call.read)

    def _receive(self, wait: bool = True) -> Optional[bytes]:
        try:
            return cast(_HTTPResponse, self._http).recv(wait)
        except _FAULTS as fault:
            self._fault = fault
            return b""

    def _absorb(self, data: Optional[bytes]) -> None:
        """Take bytes of the body; none at its end, whether it was a good one (no _fault) or not."""
        reader = self._reader
        if data:
            self._ready.extend(reader.feed(data))
        else:
            self._body_over = True
            self._ready.extend(reader.close())
            if self._fault and isinstance(reader.error, APIResponseValidationError):
                reader.error = None  # no wonder
        if reader.streamed and self._first_token_at is None:
            self._first_token_at = time.monotonic()

    def _settled(self) -> bool:
        """There are chunks to hand out, or the stream is over.  Raises what has ended it, after all that came before."""
        reader = self._reader
        if self._ready:
            return True
        if reader.done:
            self._finish("[DONE]")
        elif isinstance(reader.error, APIResponseValidationError) and self._accumulator.finished:
            self._fault = reader.error  # garbage behind a whole answer
            self._finish("finish_reason, then garbage")
        elif reader.error:
            raise reader.error
        elif self._body_over and self._accumulator.finished:
            self._finish("finish_reason")
        elif self._body_over:
            if self._fault:
                raise _translate(self._fault, self._call, self._request.url, reader.events) from self._fault
            raise reader.verdict() or APIConnectionError(
                message="the reply of %s ended after %d chunks and %.1f s with neither [DONE] nor a finish_reason: it "
                        "is not whole; what had arrived is in `partial`"
                        % (_bare(self._request.url), reader.events, self._call.elapsed))
        return self._over

    def _finish(self, why: str) -> None:
        """The answer is whole."""
        self._over = True
        self._end(why)
        if self._http is not None:
            self._transport.release(self._http, self._fault is None)
            self._http = None

    def _fail(self, error: APIError) -> None:
        self._drop()
        self._end(type(error).__name__)
        self._failure = error
        if self._accumulator.completion.choices and not isinstance(error, APIConnectionError):
            self._attempts.closed = True  # the server's own word in the middle is no lost connection
        error.request = self._request
        if error.response is None:
            error.response = self.response
        if self._began:
            partial = self._accumulator.completion
            if self._longest is None or len(partial.to_json()) > len(self._longest.to_json()):
                self._longest = partial
            error.partial = self._longest

    def _end(self, why: str) -> None:
        self._ended_at = time.monotonic()
        _log(_DEBUG, "stream from %s: %d events, %.3f s, ended by %s", _bare(self._request.url), self._reader.events,
             self._call.elapsed, why)

    def _drop(self) -> None:
        if self._http is not None:
            self._call.detach()
            self._http.discard()
            self._http = None


def _chunk_text(chunk: ChatCompletionChunk) -> str:
    """What a chunk adds to the text of choice 0."""
    return "".join(_text_parts(choice.delta.content)[0] for choice in chunk.choices if choice.index == 0)


def _encode_error(error: APIError) -> bytes:
    if isinstance(error, APITimeoutError):
        words = "the model's server did not answer in time"
    elif isinstance(error, APIConnectionError):
        words = "the connection to the model's server was lost"
    elif isinstance(error, APIResponseValidationError):
        words = "the model's server sent something else than an answer"
    else:
        words = _server_error(error.body)[1] if error.body else "the model's server refused"
    fields = {"message": words, "type": error.type or type(error).__name__, "code": error.code}
    return encode_sse(_dump_json({"error": fields}), event="error")


# ----------------------------------------------------------------------------------------------------------------------
# Clients
# ----------------------------------------------------------------------------------------------------------------------

class NotGiven:
    """The SDK's way to say that an argument was left out."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN = NotGiven()
_warned: Set[str] = set()

_NOT_OFFERED = {
    "http_client": "pass ssl_context for certificates, handlers for urllib handlers; proxies come from the environment",
    "parse": "send response_format as a dict, and json.loads the message's content",
    "stream": "create(stream=True) returns a Stream: its `completion` is the reply so far, `collect()` the whole",
    "with_raw_response": "create(stream=True) returns a Stream: `response` has status, headers and request id",
    "with_streaming_response": "create(stream=True) returns a Stream: `response` has status, headers and request id",
    "responses": "only chat completions are spoken here: client.chat.completions.create(...)",
}


def _refuse(owner: str, name: str) -> NoReturn:
    hint = _NOT_OFFERED.get(name)
    raise AttributeError("%s has no %r%s" % (owner, name, ": " + hint if hint else ""))


def AzureOpenAI(*args: Any, **kwargs: Any) -> NoReturn:
    """Not offered."""
    raise TypeError("AzureOpenAI is not offered: use OpenAI(base_url='https://NAME.openai.azure.com/openai/v1', "
                    "api_key=...), or with default_headers={'api-key': ...} for older paths with ?api-version=")


AsyncAzureOpenAI = AzureOpenAI


def _check_header(name: str, value: Any) -> str:
    if not re.match(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+$", name):
        raise OpenAIError("the header name %r is not valid" % name)
    if not isinstance(value, str) or not re.match(r"[\t -~]*\Z", value):
        raise OpenAIError("the value of the header %s must be text of printable ASCII, without line breaks" % name)
    return value


def _check_key(key: Any) -> str:
    """A key that can be sent; an error must not show it."""
    if key is None:
        return ""
    if not isinstance(key, str):
        raise OpenAIError("api_key must be a str, or a function that returns one, not %s" % type(key).__name__)
    if not re.match(r"[!-~]*\Z", key):
        raise OpenAIError("the API key holds a space, a line break or a letter outside ASCII: was it copied with "
                          "something around it? (It is not shown here.)")
    return key


def _split_base_url(base_url: str) -> Tuple[str, str]:
    """A base URL without its query, which comes second."""
    try:
        parts = urllib.parse.urlsplit(base_url.strip())
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise OpenAIError("base_url is not a URL: %s" % error) from None
    if parts.username is not None or parts.password is not None:
        raise OpenAIError("base_url must not hold a user name or password: pass default_headers={'Authorization': ...}")
    if parts.scheme not in ("http", "https") or not re.match(r"[\w.:%~-]+$", host):
        raise OpenAIError("base_url must be http://HOST/... or https://HOST/..., such as %s, not %s"
                          % (DEFAULT_BASE_URL, _excerpt(base_url.split("?")[0])))
    netloc = ("[%s]" % host if ":" in host else host) + ("" if port is None else ":%d" % port)
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        path = path[:-len("/chat/completions")]
    quoted = urllib.parse.quote(path, safe="/%:@!$&'()*+,;=~-._")
    return "%s://%s%s" % (parts.scheme, netloc, quoted), urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")


def _json_body(fields: Dict[str, Any]) -> bytes:
    if "messages" in fields:
        messages = fields["messages"]
        if messages is None or isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
            raise TypeError("messages must be a list such as [{'role': 'user', 'content': '...'}], not %s"
                            % type(messages).__name__)
        fields["messages"] = messages = list(messages)
        for message in messages:
            if not isinstance(message, (Mapping, _WireObject)):
                raise TypeError("each of messages must be a dict such as {'role': 'user', 'content': '...'}, not %s"
                                % type(message).__name__)
    if isinstance(fields.get("response_format"), type):
        raise TypeError("response_format must be a dict; " + _NOT_OFFERED["parse"])
    try:
        return json.dumps(fields, default=_json_default, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError("the request cannot be written as JSON: %s" % error) from None


def _json_default(value: Any) -> Any:
    if isinstance(value, _WireObject):
        return _plain(value, True, True)  # strict servers refuse a null where they expect nothing
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError("%s is no JSON value" % type(value).__name__)


class _BaseClient:
    """What both clients are made of: settings, and requests made from them."""

    def __init__(self, *, api_key: Any = None, organization: Optional[str] = None, project: Optional[str] = None,
                 base_url: Optional[str] = None, timeout: Any = DEFAULT_TIMEOUT,
                 max_retries: int = DEFAULT_MAX_RETRIES, default_headers: Optional[Mapping[str, str]] = None,
                 default_query: Optional[Mapping[str, Any]] = None, ssl_context: Any = None,
                 handlers: Sequence[urllib.request.BaseHandler] = (), deadline: Optional[float] = None,
                 **unknown: Any) -> None:
        for name in unknown:
            raise TypeError("%s() has no argument %r%s" % (
                type(self).__name__, name, ": " + _NOT_OFFERED[name] if name in _NOT_OFFERED else ""))
        self._settings = dict(
            api_key=api_key, organization=organization, project=project, base_url=base_url, timeout=timeout,
            max_retries=max_retries, default_headers=default_headers, default_query=default_query,
            ssl_context=ssl_context, handlers=handlers, deadline=deadline)
        self.api_key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
        self.organization = os.environ.get("OPENAI_ORG_ID") if organization is None else organization
        self.project = os.environ.get("OPENAI_PROJECT_ID") if project is None else project
        given = str(base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
        self.base_url, self._base_query = _split_base_url(given)
        self.timeout = DEFAULT_TIMEOUT if isinstance(timeout, NotGiven) else timeout
        self.max_retries = max_retries
        self.deadline = deadline
        self._headers = self._make_headers(default_headers)
        self._query = dict(default_query or {})
        if not isinstance(max_retries, int) or max_retries < 0:
            raise OpenAIError("max_retries must be a number from 0, not %r" % (max_retries,))
        if deadline is not None and not _is_positive(deadline):
            raise OpenAIError("deadline must be seconds, or None, not %r" % (deadline,))
        _timeouts(self.timeout)
        if not callable(self.api_key):
            _check_key(self.api_key)
        if not self.api_key and self.base_url == DEFAULT_BASE_URL and "authorization" not in self._headers:
            raise OpenAIError("no API key for %s: pass api_key, or set the environment variable OPENAI_API_KEY"
                              % DEFAULT_BASE_URL)
        self._transport = _Transport(ssl_context, handlers)

    def _make_headers(self, default_headers: Optional[Mapping[str, str]]) -> Dict[str, Tuple[str, str]]:
        headers: Dict[str, Tuple[str, str]] = {}
        _merge_headers(headers, {
            "Accept": "text/event-stream, application/json", "Accept-Encoding": "identity", "User-Agent": _user_agent(),
            "OpenAI-Organization": self.organization or None, "OpenAI-Project": self.project or None})
        _merge_headers(headers, default_headers or {})
        return headers

    def _changed(self, changes: Dict[str, Any]) -> Dict[str, Any]:
        settings = dict(self._settings, **changes)
        for name in ("default_headers", "default_query"):
            if changes.get(name) is not None:
                settings[name] = dict(self._settings[name] or {}, **changes[name])
        return settings

    def _share_transport(self, other: "_BaseClient") -> None:
        same = all(self._settings[name] is other._settings[name] for name in ("ssl_context", "handlers"))
        if same and self.base_url == other.base_url:
            self._transport = other._transport

    def _request(self, method: str, path: str, fields: Optional[Dict[str, Any]], extra_headers: Any, extra_query: Any,
                 timeout: Any) -> Stream:
        """Everything that can be wrong about a request is found here, before anything is sent."""
        body = None if fields is None else _json_body(fields)
        query = "&".join(filter(None, [
            self._base_query, urllib.parse.urlencode(dict(self._query, **(extra_query or {})), doseq=True)]))
        url = self.base_url + path + ("?" + query if query else "")
        headers = dict(self._headers)
        if body is not None:
            _merge_headers(headers, {"Content-Type": "application/json"})
        extra = dict(extra_headers or {})
        _merge_headers(headers, extra)
        call = _Call(self.timeout if isinstance(timeout, NotGiven) else timeout, self.deadline)
        for name, value in headers.values():
            if re.search("auth|key|token|secret|cookie", name.lower()):
                call.secrets.update(part for part in value.split(" ") if len(part) > 5)

        def send(key: str) -> _HTTPResponse:
            all_headers = dict(headers)
            if _check_key(key) and "authorization" not in headers and not (
                    "Authorization" in extra and extra["Authorization"] is None):
                all_headers["authorization"] = ("Authorization", "Bearer " + key)
                if len(key) > 5:
                    call.secrets.add(key)
                self._warn_of_plain_http()
            return self._transport.open(call, method, url, dict(all_headers.values()), body)

        return Stream(self._transport, _Attempts(call, self.max_retries), Request(method, url), send, self._current_key)

    def _current_key(self) -> Any:
        return self.api_key() if callable(self.api_key) else self.api_key or ""

    def _warn_of_plain_http(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or "") and self.base_url not in _warned:
            _warned.add(self.base_url)
            import logging
            logging.getLogger("streamlite").warning(
                "the API key goes to %s over plain http, where the network can read it: use https", parts.hostname)

    def __repr__(self) -> str:
        return "%s(base_url=%r)" % (type(self).__name__, self.base_url)

    def __getattr__(self, name: str) -> Any:
        _refuse(type(self).__name__, name)


def _merge_headers(headers: Dict[str, Tuple[str, str]], more: Mapping[str, Any]) -> None:
    """Later values win, whatever the case of the name; None takes a header out."""
    for name, value in more.items():
        if value is None or isinstance(value, NotGiven):
            headers.pop(name.lower(), None)
        else:
            headers[name.lower()] = (name, _check_header(name, value))


def _completion_fields(messages: Any, model: str, stream: Optional[bool], extra_body: Any,
                       fields: Dict[str, Any]) -> Dict[str, Any]:
    body = {"messages": messages, "model": model, **fields}
    if not isinstance(model, str) or not model:
        raise TypeError("model must be the name of a model, not %r" % (model,))
    if stream is not None and not isinstance(stream, NotGiven):
        body["stream"] = bool(stream)
    body.update(extra_body or {})
    return {name: value for name, value in body.items() if not isinstance(value, NotGiven)}


class Completions:
    """`client.chat.completions`"""

    def __init__(self, client: "OpenAI") -> None:
        self._client = client

    @overload
    def create(self, *, messages: Iterable[Any], model: str, stream: "Literal[True]",
               extra_headers: Optional[Mapping[str, Any]] = None, extra_query: Optional[Mapping[str, Any]] = None,
               extra_body: Optional[Mapping[str, Any]] = None, timeout: Any = NOT_GIVEN, **fields: Any) -> Stream: ...

    @overload
    def create(self, *, messages: Iterable[Any], model: str, stream: "Optional[Literal[False]]" = None,
               extra_headers: Optional[Mapping[str, Any]] = None, extra_query: Optional[Mapping[str, Any]] = None,
               extra_body: Optional[Mapping[str, Any]] = None, timeout: Any = NOT_GIVEN,
               **fields: Any) -> ChatCompletion: ...

    def create(self, *, messages: Iterable[Any], model: str, stream: Optional[bool] = None,
               extra_headers: Optional[Mapping[str, Any]] = None, extra_query: Optional[Mapping[str, Any]] = None,
               extra_body: Optional[Mapping[str, Any]] = None, timeout: Any = NOT_GIVEN,
               **fields: Any) -> Union[Stream, ChatCompletion]:
        """Ask for a completion; every other argument goes into the request as it is.

        messages:  dicts, or messages of earlier replies
        stream:    True returns a `Stream` as soon as the server answers; else the whole `ChatCompletion`
        timeout:   seconds to connect and to wait for each event, as in `OpenAI`

        Raises TypeError for arguments that cannot be sent, OpenAIError for a key or header that cannot be, and the
        tree under APIError for what server and network do.
        Source: https://platform.openai.com/docs/api-reference/chat/create
        """
        body = _completion_fields(messages, model, stream, extra_body, fields)
        result = self._client._request("POST", "/chat/completions", body, extra_headers, extra_query, timeout)
        if not body.get("stream"):
            return result.collect()
        result._attempts.run(result._open)
        return result

    def __getattr__(self, name: str) -> Any:
        _refuse("chat.completions", name)


class Chat:
    """`client.chat`"""

    def __init__(self, client: "OpenAI") -> None:
        self.completions = Completions(client)


class Models:
    """`client.models`"""

    def __init__(self, client: "OpenAI") -> None:
        self._client = client

    def list(self, *, timeout: Any = NOT_GIVEN) -> ModelPage:
        """What the server serves."""
        stream = self._client._request("GET", "/models", None, None, None, timeout)
        return _wire(ModelPage, stream._attempts.run(stream._fetch))


class OpenAI(_BaseClient):
    """The SDK's client for chat completions; it can be shared between threads.

    api_key:         OPENAI_API_KEY if None; a function is asked at every attempt.  Servers that need none get none
    base_url:        OPENAI_BASE_URL, else OpenAI's; a query, a trailing slash or the whole endpoint is understood
    timeout:         seconds: a number, (connect, read), an object with these attributes, or None; `read` is the longest
                     wait for the next event
    deadline:        seconds that a whole call may take, retries and the reading of a stream included
    max_retries:     attempts after the first, while nothing has been delivered
    default_headers, default_query: added to every request
    ssl_context:     an ssl.SSLContext, for client certificates or a CA of your own
    handlers:        urllib handlers (digest, NTLM, ...) for the opener

    Raises OpenAIError for settings that cannot work.
    """

    @property
    def chat(self) -> Chat:
        return Chat(self)

    @property
    def models(self) -> Models:
        return Models(self)

    def with_options(self, **changes: Any) -> "OpenAI":
        """A client with other settings that shares this one's connections."""
        client = OpenAI(**self._changed(changes))
        client._share_transport(self)
        return client

    copy = with_options

    def close(self) -> None:
        """Close the connections that are kept for later."""
        self._transport.close()

    def __enter__(self) -> "OpenAI":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()


# ----------------------------------------------------------------------------------------------------------------------
# Asynchronous clients: the same streams.  A thread opens each (urllib's way is synchronous), then the loop reads the
# body as it comes; on loops that cannot watch a socket (Windows' proactor) a thread reads, too.
# ----------------------------------------------------------------------------------------------------------------------

class _Threads:
    """Runs functions in threads of their own, of which a bounded number may be busy: a thousand streams opened at once
    would else fight for the interpreter.  Who waits for the server's answer is not busy any more.

    asyncio's default executor is not used: streams that wait would starve whatever else needs it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy = 0
        self._waiting: Deque[Callable[[], None]] = collections.deque()
        self._lock = threading.Lock()

    def run(self, function: Callable[[], None]) -> None:
        self._waiting.append(function)
        self._start()

    def _start(self, freed: int = 0) -> None:
        import _thread
        with self._lock:
            self._busy -= freed
            if not self._waiting or self._busy >= self._limit:
                return
            function = self._waiting.popleft()
            self._busy += 1
        try:
            _thread.start_new_thread(function, ())  # threading.Thread.start would wait for the thread to run
        except RuntimeError:
            with self._lock:
                self._busy -= 1
            raise

    def idle(self) -> None:
        """A function that was started is done with its work, or waits."""
        self._start(freed=1)


_threads = _Threads(16)


async def _in_thread(call: _Call, function: Callable[..., _T], *args: Any) -> _T:
    """Await a blocking function.  Cancelling ends it too, by cutting the call's connection."""
    import asyncio
    loop = asyncio.get_event_loop()
    future = loop.create_future()
    freed: List[bool] = []

    def free() -> None:
        if not freed:
            freed.append(True)
            _threads.idle()

    def work() -> None:
        call.on_connected = free
        result: Any = None
        failure: Optional[BaseException] = None
        try:
            result = function(*args)
        except BaseException as error:  # to be raised by the one who waits
            failure = error
        free()
        try:
            loop.call_soon_threadsafe(_settle, future, result, failure)
        except RuntimeError:  # the loop was closed meanwhile
            call.cancel()

    try:
        _threads.run(work)
    except RuntimeError as error:
        raise APIConnectionError(message="no thread can be started to open a stream: %s" % error) from error
    try:
        return cast(_T, await future)
    except asyncio.CancelledError:
        call.cancel()
        raise


def _settle(future: Any, result: Any, failure: Optional[BaseException]) -> None:
    if not future.done():
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)


class AsyncStream:
    """`Stream` with `async for`, `async with` and `await`; cancelling the task that uses it ends the connection."""

    def __init__(self, stream: Stream, key: Callable[[], Any]) -> None:
        self._stream = stream
        self._key = key
        self._loop: Any = None
        self._waiter: Any = None
        self._watched_fd = -1
        self._task: Any = None

    # -- for the user --

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        stream = self._stream
        stream._iterated = True
        while not stream._ready:
            if stream._over:
                raise StopAsyncIteration
            await self._persist(self._advance)
        return stream._take()

    async def text(self) -> Any:
        """Iterate the text of choice 0, without empty pieces."""
        async for chunk in self:
            text = _chunk_text(chunk)
            if text:
                yield text

    async def collect(self) -> ChatCompletion:
        """As `Stream.collect`."""
        if not self._stream._iterated and not self._stream._over:
            await self._persist(self._drain)
        async for _ in self:
            pass
        return self.completion

    async def sse(self) -> Any:
        """As `Stream.sse`."""
        try:
            async for chunk in self:
                yield encode_sse(chunk.to_json(indent=None))
            yield encode_sse("[DONE]")
        except APIError as error:
            yield _encode_error(error)
        finally:
            self._close()

    async def close(self) -> None:
        """End the connection at once."""
        self._close()

    aclose = close

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self._close()

    @property
    def response(self) -> Optional[Response]:
        return self._stream.response

    @property
    def completion(self) -> ChatCompletion:
        """What was handed out so far, in the shape of a whole reply."""
        return self._stream.completion

    @property
    def time_to_first_token(self) -> Optional[float]:
        """Seconds from the call to the first content, None before."""
        return self._stream.time_to_first_token

    @property
    def elapsed(self) -> float:
        """Seconds from the call to the end of the stream, or to now."""
        return self._stream.elapsed

    # -- the way of the bytes: Stream's, but for the waiting --

    async def _persist(self, attempt: Callable[[], Any]) -> Any:
        """What _Attempts.run does."""
        self._watch_task()
        while True:
            try:
                return await attempt()
            except APIError as error:
                await self._wait(time.monotonic() + self._stream._attempts.delay(error))

    async def _open(self) -> None:
        try:
            await self._connect()
        except APIError as error:
            self._stream._fail(error)
            raise

    async def _advance(self) -> None:
        stream = self._stream
        try:
            if stream._http is None:
                await self._connect()
            stream._start_wait()
            while not stream._settled():
                stream._absorb(await self._receive())
        except APIError as error:
            stream._fail(error)
            raise

    async def _drain(self) -> None:
        stream = self._stream
        while not stream._over:
            await self._advance()
            while stream._ready:
                stream._accumulator.add(stream._ready.popleft())

    async def _fetch(self) -> Any:
        stream = self._stream
        stream._key = functools.partial(str, await self._current_key())
        return await _in_thread(stream._call, stream._fetch)

    async def _connect(self) -> None:
        await _in_thread(self._stream._call, self._stream._connect, await self._current_key())

    async def _current_key(self) -> str:
        key = self._key()
        if hasattr(key, "__await__"):
            key = await key
        return cast(str, key)

    async def _receive(self) -> Optional[bytes]:
        stream = self._stream
        data = stream._receive(wait=False)
        if data is not None:
            await self._wait(0.0)  # a server faster than we are must not keep the loop from other work
        while data is None:
            try:
                await self._wait(stream._call.until, cast(_HTTPResponse, stream._http).reader.fileno())
            except NotImplementedError:
                return await _in_thread(stream._call, stream._receive)
            data = stream._receive(wait=False)
        return data

    async def _wait(self, until: float, fd: int = -1) -> None:
        """Until then, on the clock of time.monotonic(); or until `fd` has something to read; or until `close`."""
        loop = self._loop
        waiter = self._waiter = loop.create_future()
        timer = None
        try:
            if fd >= 0:
                loop.add_reader(fd, _settle, waiter, None, None)
                self._watched_fd = fd
            if until < math.inf:
                timer = loop.call_later(max(0.0, until - time.monotonic()), _settle, waiter, None, None)
            await waiter
        finally:
            self._unwatch()
            if timer is not None:
                timer.cancel()

    def _unwatch(self) -> None:
        if self._watched_fd >= 0:
            self._loop.remove_reader(self._watched_fd)
            self._watched_fd = -1

    def _close(self) -> None:
        self._unwatch()
        self._stream.close()
        if self._waiter is not None:
            _settle(self._waiter, None, None)

    def _watch_task(self) -> None:
        """A task that is cancelled in the body of `async for` never comes back here, and its traceback keeps us alive."""
        import asyncio
        self._loop = asyncio.get_event_loop()
        current_task = getattr(asyncio, "current_task", None) or getattr(asyncio, "Task").current_task
        task = current_task()
        if task is not None and task is not self._task:
            self._task = task
            this = weakref.ref(self)

            def done(task: Any) -> None:
                stream = this()
                if stream is not None and stream._task is task and task.cancelled():
                    stream._close()

            task.add_done_callback(done)


class AsyncCompletions:
    """`client.chat.completions`"""

    def __init__(self, client: "AsyncOpenAI") -> None:
        self._client = client

    @overload
    async def create(self, *, messages: Iterable[Any], model: str, stream: "Literal[True]",
                     extra_headers: Optional[Mapping[str, Any]] = None, extra_query: Optional[Mapping[str, Any]] = None,
                     extra_body: Optional[Mapping[str, Any]] = None, timeout: Any = NOT_GIVEN,
                     **fields: Any) -> AsyncStream: ...

    @overload
    async def create(self, *, messages: Iterable[Any], model: str, stream: "Optional[Literal[False]]" = None,
                     extra_headers: Optional[Mapping[str, Any]] = None, extra_query: Optional[Mapping[str, Any]] = None,
                     extra_body: Optional[Mapping[str, Any]] = None, timeout: Any = NOT_GIVEN,
                     **fields: Any) -> ChatCompletion: ...

    async def create(self, *, messages: Iterable[Any], model: str, stream: Optional[bool] = None,
                     extra_headers: Optional[Mapping[str, Any]] = None, extra_query: Optional[Mapping[str, Any]] = None,
                     extra_body: Optional[Mapping[str, Any]] = None, timeout: Any = NOT_GIVEN,
                     **fields: Any) -> Union[AsyncStream, ChatCompletion]:
        """As `Completions.create`; with stream=True it returns an `AsyncStream`."""
        body = _completion_fields(messages, model, stream, extra_body, fields)
        result = self._client._async_request("POST", "/chat/completions", body, extra_headers, extra_query, timeout)
        if not body.get("stream"):
            return await result.collect()
        await result._persist(result._open)
        return result

    def __getattr__(self, name: str) -> Any:
        _refuse("chat.completions", name)


class AsyncChat:
    """`client.chat`"""

    def __init__(self, client: "AsyncOpenAI") -> None:
        self.completions = AsyncCompletions(client)


class AsyncModels:
    """`client.models`"""

    def __init__(self, client: "AsyncOpenAI") -> None:
        self._client = client

    async def list(self, *, timeout: Any = NOT_GIVEN) -> ModelPage:
        """What the server serves."""
        stream = self._client._async_request("GET", "/models", None, None, None, timeout)
        return _wire(ModelPage, await stream._persist(stream._fetch))


class AsyncOpenAI(_BaseClient):
    """`OpenAI` with `await`; `api_key` may be a coroutine function, too."""

    @property
    def chat(self) -> AsyncChat:
        return AsyncChat(self)

    @property
    def models(self) -> AsyncModels:
        return AsyncModels(self)

    def with_options(self, **changes: Any) -> "AsyncOpenAI":
        """A client with other settings that shares this one's connections."""
        client = AsyncOpenAI(**self._changed(changes))
        client._share_transport(self)
        return client

    copy = with_options

    def _async_request(self, *args: Any) -> AsyncStream:
        return AsyncStream(self._request(*args), self._current_key)

    async def close(self) -> None:
        """Close the connections that are kept for later."""
        self._transport.close()

    async def __aenter__(self) -> "AsyncOpenAI":
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self._transport.close()


# ======================================================================================================================
# The library ends here.  What follows is only run by `python -m streamlite`, and by who makes a DemoServer.
# ======================================================================================================================

# ----------------------------------------------------------------------------------------------------------------------
# Demo server
# ----------------------------------------------------------------------------------------------------------------------

class DemoServer:
    """A small OpenAI-compatible server on 127.0.0.1: to try this file without key and network, and to test programs.

        with DemoServer() as server:
            client = OpenAI(base_url=server.base_url, api_key="any")

    It streams, or replies as a whole; calls the first of `tools`, counts words as tokens, obeys max_tokens, n and
    stream_options.  Any model name is served, but these misbehave, to rehearse it: "demo-rate-limit" (429 to every other
    request), "demo-error" (an error in the middle of the stream), "demo-lost" (the connection breaks there),
    "no-such-model" (404).  The key "wrong" is refused (401).

    delay:  seconds between two words
    active: replies under way
    """

    models = ("demo", "demo-rate-limit", "demo-error", "demo-lost")

    def __init__(self, port: int = 0, delay: float = 0.03) -> None:
        from http.server import HTTPServer
        from socketserver import ThreadingMixIn
        server_class: Any = type("_Server", (ThreadingMixIn, HTTPServer), {"daemon_threads": True})
        self.delay = delay
        self.active = 0
        self.limited = False
        self._server = server_class(("127.0.0.1", port), _demo_handler(self))
        self.base_url = "http://127.0.0.1:%d/v1" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "DemoServer":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()


def _demo_reply(request: Dict[str, Any]) -> Tuple[List[Dict[str, Any]], str]:
    """The deltas of an answer, and its finish_reason."""
    messages = [message for message in request.get("messages") or () if isinstance(message, dict)]
    said = messages[-1] if messages else {}
    words = _text_parts(said.get("content"))[0]
    if said.get("role") == "tool":
        text = "The tool answered: " + words
    elif request.get("tools"):
        function = request["tools"][0]["function"]
        named = re.findall(r"\w+", words)[-1:] or ["nothing"]
        required = (function.get("parameters") or {}).get("required") or ()
        arguments = json.dumps({name: named[0] for name in required})
        call = {"index": 0, "id": "call_demo", "type": "function",
                "function": {"name": function["name"], "arguments": ""}}
        pieces = [arguments[i:i + 8] for i in range(0, len(arguments), 8)]
        return [{"tool_calls": [call]}] + [
            {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces], "tool_calls"
    else:
        text = ("This is streamlite's demo server, not a language model: it streams these words, each in a server-sent "
                "event of its own, as a model's server would. You wrote: " + words)
    tokens = re.findall(r"\s*\S+|\s+", text)
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or len(tokens)
    return [{"content": token} for token in tokens[:limit]], "stop" if len(tokens) <= limit else "length"


def _demo_handler(demo: DemoServer) -> Any:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "streamlite"} for name in demo.models]
            self._send(200, {"object": "list", "data": models})

        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
                deltas, reason = _demo_reply(request)
            except (ValueError, LookupError, TypeError, AttributeError):
                return self._refuse(400, "this is no chat completion request", "invalid_request_error")
            model = str(request.get("model"))
            demo.limited = model == "demo-rate-limit" and not demo.limited
            if self.headers.get("Authorization") == "Bearer wrong":
                self._refuse(401, "Incorrect API key provided.", "invalid_api_key")
            elif model == "no-such-model":
                self._refuse(404, "The model %s does not exist." % model, "model_not_found")
            elif demo.limited:
                self._refuse(429, "Rate limit reached; the next request will pass.", "rate_limit_exceeded")
            else:
                demo.active += 1
                try:
                    self._answer(request, model, deltas, reason)
                except OSError:
                    self.close_connection = True  # the client has gone: stop working for it
                finally:
                    demo.active -= 1

        def _answer(self, request: Dict[str, Any], model: str, deltas: List[Dict[str, Any]], reason: str) -> None:
            said = " ".join(str(message.get("content")) for message in request["messages"])
            usage = {"prompt_tokens": len(said.split()), "completion_tokens": len(deltas)}
            usage["total_tokens"] = sum(usage.values())
            base = {"id": "chatcmpl-demo", "created": int(time.time()), "model": model}
            choices = range(request.get("n") or 1)
            if not request.get("stream"):
                whole = Accumulator()
                for delta in deltas:
                    whole.add(ChatCompletionChunk(choices=[{"index": i, "delta": dict(delta)} for i in choices]))
                reply = whole.completion.to_dict()
                for choice in reply["choices"]:
                    choice["finish_reason"] = reason
                return self._send(200, dict(reply, usage=usage, **base))
            self._head(200, "text/event-stream", "Transfer-Encoding", "chunked")
            base["object"] = "chat.completion.chunk"
            start = dict(deltas[0], role="assistant") if deltas else {"role": "assistant"}
            for at, delta in enumerate([start] + deltas[1:]):
                if at == len(deltas) // 2 and model == "demo-lost":
                    raise OSError("the connection breaks here")
                if at == len(deltas) // 2 and model == "demo-error":
                    return self._event({"error": {
                        "message": "The demo model fails here.", "type": "server_error", "code": None}}, last=True)
                for i in choices:
                    self._event(dict(base, choices=[{"index": i, "delta": delta, "finish_reason": None}]))
                time.sleep(demo.delay)
            for i in choices:
                self._event(dict(base, choices=[{"index": i, "delta": {}, "finish_reason": reason}]))
            if (request.get("stream_options") or {}).get("include_usage"):
                self._event(dict(base, choices=[], usage=usage))
            self._event("[DONE]", last=True)

        def _event(self, data: Any, last: bool = False) -> None:
            event = encode_sse(data if isinstance(data, str) else json.dumps(data))
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event) + (b"0\r\n\r\n" if last else b""))

        def _refuse(self, status: int, message: str, code: str) -> None:
            self._send(status, {"error": {"message": message, "type": "demo_error", "param": None, "code": code}})

        def _send(self, status: int, fields: Any) -> None:
            body = json.dumps(fields).encode()
            self._head(status, "application/json", "Content-Length", str(len(body)))
            self.wfile.write(body)

        def _head(self, status: int, content_type: str, name: str, value: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header(name, value)
            self.send_header("x-request-id", "req-demo")
            if status == 429:
                self.send_header("retry-after-ms", "100")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            _log(_DEBUG, "demo server: " + format, *args)

    return Handler


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------

DEFAULT_MODEL = "gpt-4o-mini"  # for OpenAI's own address
EX_TEMPFAIL = 75               # sysexits.h: trying again may help

_HELP = '''\
usage: python -m streamlite [options] [prompt ...]

Streams a chat completion. What is piped in goes before the prompt; - is that alone.

  -m, --model NAME    else OPENAI_MODEL, else the only one the server has
  -s, --system TEXT   the system message
  -o KEY=VALUE        any field of the request; VALUE may be JSON, or @FILE
  --chat              a conversation; /model, /system, /reset, /exit, """ for lines
  --json              each chunk as a line of JSON
  --no-stream         the whole reply at once
  --usage             tokens and timing, on stderr
  --models            list the server's models
  --base-url URL      else OPENAI_BASE_URL; is sent no key but that of --key-env
  --key-env NAME      the variable with the key, else OPENAI_API_KEY
  --timeout S, --deadline S, --retries N, --cacert FILE
  --demo              against a demo server in this process: no key, no network
  -v, --verbose       retries, timing and log on stderr
  -h, --help, --version

  python -m streamlite --demo "Explain server-sent events"
  git diff | python -m streamlite -o temperature=0 "Write a commit message"
  python -m streamlite --base-url http://localhost:11434/v1 --chat
'''


class _Console:
    """Standard output for the answer, standard error for all else."""

    def __init__(self) -> None:
        self.shows = sys.stderr is not None and sys.stderr.isatty()
        self.plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or os.name == "nt"
        self._broken_line: Any = None  # the stream whose last line has no end
        self._waiting = False

    def write(self, stream: Any, text: str) -> None:
        """Write at once; what the stream cannot encode becomes "?", and a terminal gets no control characters."""
        self.wait(False)
        if stream is None or not text:
            return
        if stream.isatty():
            text = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(_well_formed(text).encode(encoding, "replace").decode(encoding))
        stream.flush()
        self._broken_line = None if text.endswith("\n") else stream

    def end_line(self) -> None:
        if self._broken_line is not None:
            self.write(self._broken_line, "\n")

    def tell(self, text: str) -> None:
        self.end_line()
        self.write(sys.stderr, text + "\n")

    def reason(self, text: str) -> None:
        """Reasoning: dimmed, and only for a person."""
        if text and self.shows:
            self.wait(False)
            sys.stderr.write("" if self.plain else "\x1b[2m")
            self.write(sys.stderr, text)
            sys.stderr.write("" if self.plain else "\x1b[0m")
            sys.stderr.flush()

    def answer(self, text: str) -> None:
        if text:
            if self._broken_line is sys.stderr:
                self.end_line()
            self.write(sys.stdout, text)

    def wait(self, begin: bool) -> None:
        """A small sign until the first token."""
        if self.shows and begin != self._waiting:
            self._waiting = begin
            sys.stderr.write("..." if begin else "\r   \r")
            sys.stderr.flush()


def _parse_arguments(argv: Optional[Sequence[str]]) -> Any:
    import argparse
    parser = argparse.ArgumentParser(prog="python -m streamlite", add_help=False, usage="%(prog)s [options] [prompt ...]")
    parser.add_argument("prompt", nargs="*")
    parser.add_argument("-m", "--model", default=os.environ.get("OPENAI_MODEL"))
    parser.add_argument("-s", "--system")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE")
    for name in ("--chat", "--json", "--no-stream", "--usage", "--models", "--demo"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="version", version="streamlite " + __version__)
    for name in ("--base-url", "--key-env", "--cacert"):
        parser.add_argument(name)
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT)
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--retries", type=int, default=DEFAULT_MAX_RETRIES)
    args = parser.parse_args(argv)
    args.fields = {}
    for option in args.options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            parser.error("-o takes KEY=VALUE, not %r" % option)
        if value.startswith("@"):
            try:
                with io.open(value[1:], encoding="utf-8-sig") as file:
                    value = file.read()
            except (OSError, ValueError) as error:
                parser.error("-o %s: %s" % (option, error))
        try:
            args.fields[name] = json.loads(value)
        except ValueError:
            args.fields[name] = value
    if args.key_env and args.key_env not in os.environ:
        parser.error("--key-env: there is no environment variable %s" % args.key_env)
    return args


def _read_stdin(console: _Console) -> str:
    """What is piped in; a terminal is not waited for, a slow pipe is, with a word."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    timer = threading.Timer(3.0, console.tell, ["waiting for standard input to end (use < /dev/null if there is none)"])
    timer.daemon = True
    timer.start()
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    finally:
        timer.cancel()


class _Command:
    """One run of `python -m streamlite`; its methods return exit codes."""

    def __init__(self, args: Any, console: _Console, client: OpenAI) -> None:
        self.args = args
        self.console = console
        self.client = client
        self.completion: Optional[ChatCompletion] = None

    def run(self) -> int:
        if self.args.models:
            self.console.answer("".join(model.id + "\n" for model in self.client.models.list()))
            return 0
        if self.args.chat:
            return self.chat()
        words = " ".join(word for word in self.args.prompt if word != "-")
        piped = _read_stdin(self.console) if words or self.args.prompt or not sys.stdin.isatty() else ""
        prompt = "\n\n".join(filter(None, [piped.rstrip("\n"), words]))
        if not prompt:
            self.console.write(sys.stderr, _HELP)
            return 2
        return self.ask([{"role": "user", "content": prompt}])

    def model(self) -> str:
        if not self.args.model:
            self.args.model = DEFAULT_MODEL
            if self.client.base_url != DEFAULT_BASE_URL:
                names = [model.id for model in self.client.models.list()]
                if len(names) != 1 and not self.args.demo:
                    raise OpenAIError("name a model with -m; the server has: " + (", ".join(names) or "none"))
                self.args.model = names[0]
        return cast(str, self.args.model)

    def ask(self, messages: List[Any]) -> int:
        """Stream the answer to `messages` into `completion` and onto the screen."""
        self.completion = None
        fields = dict(self.args.fields)
        if self.args.system:
            messages = [{"role": "system", "content": self.args.system}] + messages
        if self.args.usage and not self.args.no_stream:
            fields.setdefault("stream_options", {"include_usage": True})
        try:
            self.console.wait(True)
            fields.setdefault("model", self.model())
            try:
                self.answer(dict({"messages": messages}, **fields))
            except (BadRequestError, UnprocessableEntityError) as error:
                if "stream_options" not in str(error) or "stream_options" in self.args.fields:
                    raise  # else an older server that does not know the field
                del fields["stream_options"]
                self.answer(dict({"messages": messages}, **fields))
            return 0
        except OpenAIError as error:
            self.completion = error.partial
            return self.fail(error)
        finally:
            self.console.wait(False)
            self.console.end_line()

    def answer(self, fields: Dict[str, Any]) -> None:
        console = self.console
        started = time.monotonic()
        first: Optional[float] = None
        if self.args.no_stream:
            self.completion = self.client.chat.completions.create(**fields)
            if self.args.json:
                console.answer(self.completion.to_json(indent=None) + "\n")
            else:
                message = self.completion.choices[0].message if self.completion.choices else None
                console.reason(_reasoning_text(message) if message else "")
                console.answer(message and message.content or "")
        else:
            with self.client.chat.completions.create(stream=True, **fields) as stream:
                try:
                    for chunk in stream:
                        if self.args.json:
                            console.answer(chunk.to_json(indent=None) + "\n")
                            continue
                        for choice in chunk.choices:
                            console.reason(_reasoning_text(choice.delta) if choice.index == 0 else "")
                        console.answer(_chunk_text(chunk))
                finally:
                    first = stream.time_to_first_token
                    self.completion = stream.completion
        self.finish(time.monotonic() - started, first)

    def finish(self, seconds: float, first: Optional[float]) -> None:
        assert self.completion is not None
        console, usage = self.console, self.completion.usage
        for choice in self.completion.choices[:1]:
            for call in choice.message.tool_calls or () if not self.args.json else ():
                console.end_line()
                console.answer(call.to_json(indent=None) + "\n")
            if choice.finish_reason == "length":
                console.tell("(cut short by the token limit)")
            elif choice.finish_reason == "content_filter":
                console.tell("(cut short by the content filter)")
        if self.args.usage or self.args.verbose:
            count = usage.completion_tokens if usage else None
            console.tell("%s; %s%.2f s in all%s" % (
                "%s + %s tokens" % (usage.prompt_tokens, count) if usage else "the server sent no usage",
                "first token after %.2f s, " % first if first is not None else "", seconds,
                ", %.1f tokens/s" % (count / max(seconds - (first or 0), 1e-6)) if count else ""))

    def fail(self, error: OpenAIError) -> int:
        """One line that says what to do, and the exit code."""
        text = str(error)
        request_id = getattr(error, "request_id", None)
        if request_id:
            text += " [request id %s]" % request_id
        if error.retry_after:
            text += "; try again in %.0f s" % math.ceil(error.retry_after)
        if isinstance(error, NotFoundError) and not self.args.models:
            try:
                names = [model.id for model in self.client.with_options(max_retries=0).models.list()]
                text += "; the server has: " + ", ".join(names[:20])
            except OpenAIError:
                pass
        if self.args.json:
            self.console.answer(_dump_json({"error": {
                "message": text, "type": getattr(error, "type", None) or type(error).__name__,
                "code": getattr(error, "code", None)}}) + "\n")
        self.console.tell("streamlite: " + " ".join(text.split()))
        return EX_TEMPFAIL if _is_transient(error) else 1

    def chat(self) -> int:
        try:
            import readline  # line editing and history  # noqa: F401
        except ImportError:
            pass
        history: List[Any] = []
        code, interrupted = 0, False
        while True:
            try:
                line = self.read_message()
                interrupted = False
                if line is None:
                    return code
                command, _, rest = line.partition(" ")
                if command in ("/exit", "/quit", "/bye"):
                    return code
                if command == "/reset":
                    history = []
                elif command in ("/model", "/system"):
                    setattr(self.args, command[1:], rest.strip() or None)
                elif command.startswith("/") and "\n" not in line:
                    self.console.tell("/model NAME, /system TEXT, /reset, /exit; \"\"\" begins and ends several lines")
                elif line.strip():
                    history.append({"role": "user", "content": line})
                    code = self.ask(history)
                    self.remember(history)
            except KeyboardInterrupt:
                self.console.tell("")
                if history and history[-1] is not None and history[-1]["role"] == "user":
                    self.remember(history)  # an answer was stopped
                elif interrupted:
                    return 130
                else:
                    interrupted = True

    def remember(self, history: List[Any]) -> None:
        """Keep what was answered, or forget what was asked."""
        choices = self.completion.choices if self.completion else []
        if choices and (choices[0].message.content or choices[0].message.tool_calls):
            history.append(choices[0].message.to_dict(exclude_none=True))
        else:
            history.pop()

    def read_message(self) -> Optional[str]:
        """A line, or several between triple quotes; None at the end of the input."""
        prompt = "> " if sys.stdin.isatty() else ""
        try:
            line = input(prompt)
            if line.strip().startswith('"""'):
                lines = [line.strip()[3:]]
                while not lines[-1].rstrip().endswith('"""'):
                    lines.append(input(prompt and ". "))
                lines[-1] = lines[-1].rstrip()[:-3]
                line = "\n".join(lines).strip("\n")
            return line
        except EOFError:
            if prompt:
                self.console.tell("")
            return None


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit code."""
    console = _Console()
    args = _parse_arguments(argv)
    try:
        if args.help:
            console.answer(_HELP)
            return 0
        return _run(args, console)
    except KeyboardInterrupt:
        console.end_line()
        return 130
    except BrokenPipeError:
        return 0


def _run(args: Any, console: _Console) -> int:
    if args.verbose:
        import logging
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    if args.cacert:
        os.environ["SSL_CERT_FILE"] = args.cacert
    settings: Dict[str, Any] = {"timeout": args.timeout, "deadline": args.deadline, "max_retries": args.retries}
    if args.base_url or args.demo:  # an address of the command line gets no credentials of the environment
        settings.update(base_url=args.base_url, api_key="", organization="", project="")
    if args.key_env:
        settings["api_key"] = os.environ[args.key_env]
    demo = DemoServer() if args.demo else None
    command = None
    try:
        if demo:
            settings.update(base_url=demo.base_url)
            args.model = args.model or "demo"
        with OpenAI(**settings) as client:
            command = _Command(args, console, client)
            return command.run()
    except OpenAIError as error:
        return command.fail(error) if command else (console.tell("streamlite: %s" % error), 1)[1]
    except TypeError as error:
        console.tell("streamlite: %s" % error)
        return 2
    finally:
        if demo:
            demo.close()


def _exit(code: int) -> None:
    """Leave; a pipe that was closed at the other end is no traceback, nor does it change the code."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


# ----------------------------------------------------------------------------------------------------------------------
# MIT License
#
# Copyright (c) 2026 the streamlite authors
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
# documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
# rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
# persons to whom the Software is furnished to do so, subject to the following conditions:
#
# The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
# Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
# WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
# COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
# OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
# ----------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    _exit(main())
