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
                   HTTPS_PROXY, NO_PROXY, REQUEST_METHOD; the command only: OPENAI_MODEL, NO_COLOR, TERM, and
                   what --key-env names
    files          certificates, for reading; the command only: what -o KEY=@FILE and --cacert name
    hosts          the one of base_url (or the proxy before it); DemoServer listens on 127.0.0.1
    never          writes a file, starts a process, checks for updates, follows a redirect to another origin, sends a
                   key anywhere but to base_url; the synchronous client starts no thread

A token's way, and the order of this file: socket -> body bytes -> SSEDecoder -> ServerSentEvent -> payloads ->
ChatCompletionChunk -> your loop, and beside it Accumulator -> ChatCompletion.  Runs on Python 3.6.1 and newer.
"""

import collections
import copy
import copyreg
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
from typing import (TYPE_CHECKING, Any, AsyncIterator, Callable, Deque, Dict, Iterable, Iterator, List, Mapping,
                    NamedTuple, NoReturn, Optional, Sequence, Set, Tuple, Type, TypeVar, Union, cast, overload)

try:
    import ssl
except ImportError:  # some embedded Pythons have none: plain http still works
    ssl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing import Literal

__version__ = "1.0"
__all__ = [
    "OpenAI", "AsyncOpenAI", "Client", "AsyncClient", "Stream", "AsyncStream", "NOT_GIVEN", "NotGiven", "Omit", "omit",
    "not_given", "OpenAIError", "APIError", "APIConnectionError", "APITimeoutError", "APIStatusError",
    "APIResponseValidationError", "BadRequestError", "AuthenticationError", "PermissionDeniedError", "NotFoundError",
    "ConflictError", "UnprocessableEntityError", "RateLimitError", "InternalServerError", "Request", "Response",
    "ServerSentEvent", "SSEDecoder", "encode_sse", "Accumulator", "DemoServer", "ChatCompletionChunk", "Choice",
    "ChoiceDelta", "ChoiceDeltaToolCall", "ChoiceDeltaToolCallFunction", "ChatCompletion", "CompletionChoice",
    "ChatCompletionMessage", "ChatCompletionMessageToolCall", "Function", "FunctionCall", "ChatCompletionAudio",
    "ChoiceLogprobs", "ChatCompletionTokenLogprob", "TopLogprob", "CompletionUsage", "PromptTokensDetails",
    "CompletionTokensDetails", "Model", "ModelPage", "main"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_TIMEOUT = (5.0, 600.0)  # seconds to connect, and to wait for the next event: the SDK's
DEFAULT_MAX_RETRIES = 2         # the SDK's

# What the other side may make us hold.  The largest events seen are images in base64, of some megabytes.
MAX_EVENT = 16 * 1024 * 1024    # a line, an event, or a whole JSON reply
MAX_DEPTH = 100                 # objects and lists in one another (replies have about ten)
MAX_INFLATED = 1 << 30          # a whole body after gzip or deflate
MAX_HEADERS = 256 * 1024        # a header block, interim answers and trailers included (nginx sends at most 32 KiB)
MAX_CHUNK_LINE = 16 * 1024      # a chunk's size with its extensions (llhttp allows as much)
MAX_ERROR_BODY = 64 * 1024      # of an error reply; what is beyond is not read
MAX_IDLE = 16                   # connections kept for later
IDLE_SECONDS = 30.0             # a firewall may forget an idle connection, silently, from one minute on
PATIENCE = 5.0                  # seconds that an error's body, or the end of a finished stream, is waited for
MAX_RETRY_AFTER = 120.0         # a server that asks for more than these seconds gets no retry


def _log(level: str, message: str, *values: object) -> None:
    """Log to the "streamlite" logger: nobody listens who has not imported logging, and importing it is not free."""
    logging = sys.modules.get("logging")
    if logging is not None:
        getattr(logging.getLogger("streamlite"), level)(message, *values)


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
        return _request_id(self.headers)


def _request_id(headers: Any) -> Optional[str]:
    names = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid")
    return next((headers[name] for name in names if headers.get(name)), None)


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
        return copyreg.__newobj__, (type(self),) + self.args, self.__dict__  # type: ignore[attr-defined]


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
        return _request_id(self.response.headers) if self.response else None


class APIResponseValidationError(APIError):
    """The server answered with something else than a chat completion; `body` is the start of it."""

    def __init__(self, response: Optional[Response] = None, body: Any = None, *,
                 message: str = "Data returned by API invalid for expected schema.") -> None:
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


def _parse_int(digits: str) -> int:
    """What newer Pythons refuse, too: converting takes quadratic time."""
    if len(digits) > 4300:
        raise ValueError("an integer of %d digits" % len(digits))
    return int(digits)


_json_decoder = json.JSONDecoder(parse_int=None if hasattr(sys, "set_int_max_str_digits") else _parse_int)


def _parse_json(text: str) -> Any:
    """Raises ValueError for whatever is wrong with it."""
    try:
        value = _json_decoder.decode(text)
    except RecursionError:
        raise ValueError("too deep") from None
    if _is_too_deep(value):
        raise ValueError("too deep")
    return value


def _is_too_deep(value: Any) -> bool:
    """Deeper than any reply, so that what walks through it may be recursive."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level if isinstance(outer, (dict, list))
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
    return bool(level)


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
                place, more = body.get("loc"), body.get("metadata")
                words = "%s: %s" % (".".join(map(str, place)), body[key]) if isinstance(place, list) else body[key]
                raw = more.get("raw") if isinstance(more, dict) else None  # what OpenRouter was told by its provider
                return body, "%s: %s" % (words, _excerpt(raw)) if isinstance(raw, str) else words
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
    def to_dict(self, *, exclude_unset: bool = True, exclude_none: bool = False, **options: Any) -> Dict[str, Any]:
        """The object as plain dicts and lists; `exclude_unset=False` adds the documented fields that were not sent.

        `include` and `exclude` are sets of names; pydantic's other options change nothing here.
        """
        fields = _plain(self, exclude_unset, exclude_none)
        include, exclude = options.get("include"), options.get("exclude") or ()
        return {name: value for name, value in fields.items()
                if (include is None or name in include) and name not in exclude}

    @_method
    def to_json(self, *, indent: Optional[int] = 2, **options: Any) -> str:
        """`to_dict` as JSON text, in ASCII."""
        return _dump_json(self.to_dict(**options), indent)

    @_method
    def model_dump(self, *, exclude_unset: bool = False, **options: Any) -> Dict[str, Any]:
        """`to_dict` with the SDK's other default."""
        return self.to_dict(exclude_unset=exclude_unset, **options)

    @_method
    def model_dump_json(self, *, indent: Optional[int] = None, exclude_unset: bool = False, **options: Any) -> str:
        """`to_json` with the SDK's other defaults."""
        return self.to_json(indent=indent, exclude_unset=exclude_unset, **options)


def _wire(cls: Type[_Wired], fields: Dict[str, Any]) -> _Wired:
    """Make an instance of `cls` whose __dict__ is `fields`, and the same of the objects in it."""
    for name, nested in cls._nested:
        if name in fields:
            value = fields[name]
            if value.__class__ is dict:
                fields[name] = _wire(nested, value)
            elif value.__class__ is list:
                fields[name] = [_wire(nested, item) if item.__class__ is dict else item for item in value]
    return _instance(cls, fields)


def _instance(cls: Type[_Wired], fields: Dict[str, Any]) -> _Wired:
    instance = cls.__new__(cls)
    instance.__dict__ = fields
    return instance


def _plain(value: Any, exclude_unset: bool, exclude_none: bool) -> Any:
    """Undo `_wire`, copying."""
    if isinstance(value, _WireObject):
        documented = [] if exclude_unset else [name for name in type(value).__annotations__ if name[0] != "_"]
        value = dict(dict.fromkeys(documented), **value.__dict__)
    if isinstance(value, dict):
        return {key: _plain(item, exclude_unset, exclude_none) for key, item in value.items()
                if not (exclude_none and item is None)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, exclude_unset, exclude_none) for item in value]
    return value


def _dump_json(value: Any, indent: Optional[int] = None) -> str:
    """JSON that every parser reads: servers send NaN and Infinity (vLLM, in log probabilities); JSON has null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=lambda name: None), indent=indent)


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

    __slots__ = ("_request_id",)  # the SDK's name; no field
    _nested = (("choices", CompletionChoice), ("usage", CompletionUsage))
    _request_id: Optional[str]
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
        self.failure: Optional[APIError] = None  # what feed raises at its next call

    def feed(self, data: bytes) -> List[ServerSentEvent]:
        """Return the events that `data` completes.

        Raises APIResponseValidationError once a line or an event has grown beyond MAX_EVENT bytes: at the next call if
        this one has events to return, so that none is lost.
        """
        if self.failure:
            raise self.failure
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
            self._give_up()
        if self.failure and not events:
            raise self.failure
        return events

    def close(self) -> List[ServerSentEvent]:
        """End the stream; return the last event, though its blank line is missing: servers often forget it."""
        return self.feed(b"\n\n")

    def _interpret(self, text: str, events: List[ServerSentEvent]) -> None:
        """Process whole lines, without the last one's end."""
        if self._start:
            self._start = False
            if text.startswith("\ufeff"):
                text = text[1:]
        known = len(self._data)
        large = len(text) + self._data_size > MAX_EVENT  # else none of the events can be
        for line in text.split("\n"):
            if line.startswith("data: "):  # nearly every line; the whole of the rules is in _field
                self._data.append(line[6:])
            elif line:
                self._field(line)
            else:
                if large and sum(map(len, self._data)) > MAX_EVENT:
                    return self._give_up()
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

    def _give_up(self) -> None:
        self.failure = APIResponseValidationError(message="the server sent an event of more than %d bytes" % MAX_EVENT)
        self._line, self._data = [], []


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

_raw_decode = _json_decoder.raw_decode
_skip_blank = re.compile(r"[ \t\r\n]*").match
_find_surrogate = re.compile(r"\\u[dD][89a-fA-F]").search
_BLANK = b" \t\r\n\xef\xbb\xbf"  # a byte order mark counts as blank
_REASONING = ("reasoning_content", "reasoning", "thinking", "thinking_content", "thought")
_JOINED = _REASONING + ("content", "text", "refusal", "tool_calls", "function", "function_call", "arguments", "audio",
                        "transcript")
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


def _stops_at_the_end(error: BaseException, text: str) -> bool:
    """The JSON text is cut, not wrong."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated") or error.pos >= len(text) - (0 if text.endswith("}") else 6))


def _slot_index(item: Dict[str, Any], default: int) -> int:
    index = item.get("index")
    return index if index.__class__ is int else default


class _ChunkReader:
    """The body of one reply: `feed` its bytes, `close` at its end; what comes out are chunks.

    done:  the server has said that this was all
    error: the APIError that ends the stream after the chunks that came out before it
    found: the JSON object that came, where something else than "choices" is `wanted`
    """

    def __init__(self, wanted: str = "choices", hide: Callable[[str], str] = str) -> None:
        self.done = False
        self.error: Optional[APIError] = None
        self.events = 0
        self.streamed: Set[int] = set()  # the choices of which a delta has brought something
        self.found: Dict[str, Any] = {}
        self._wanted = wanted
        self._hide = hide  # what must not be shown, before a text is cut and no longer known
        self._decoder = _LenientDecoder()
        self._whole: Optional[bytearray] = None  # the body, where it is no event stream
        self._sniffing = True
        self._head = ""                  # the start of the first payload
        self._recognised = False
        self._whole_reply = False        # a message has come that is no delta
        self._cut_short = False
        self._ended_in_error = False
        self._mending = False
        self._held: Dict[Any, str] = {}  # high surrogates that wait for their other half

    def feed(self, data: bytes) -> List[ChatCompletionChunk]:
        chunks: List[ChatCompletionChunk] = []
        try:
            if self._sniffing and data.strip(_BLANK):
                self._sniffing = False  # Content-Type is only a hint: the first byte that is not blank decides
                if data.lstrip(_BLANK)[:1] in (b"{", b"[", b"<"):
                    self._whole = bytearray()
            if self._whole is None:
                self._read_events(self._decoder.feed(data), chunks)
                if self._decoder.failure:
                    raise self._decoder.failure
            else:
                self._whole += data
                if len(self._whole) > MAX_EVENT:
                    raise APIResponseValidationError(message="the reply is longer than %d bytes" % MAX_EVENT)
        except APIError as error:
            self.error = error
        return chunks

    def close(self) -> List[ChatCompletionChunk]:
        """The body has ended, well or not: return what can still be made of its last bytes."""
        chunks: List[ChatCompletionChunk] = []
        try:
            if self._whole is not None:
                self._read_whole(self._whole.decode("utf-8-sig", "replace").strip(), chunks)
            elif not self.done:
                self._read_events(self._decoder.close(), chunks)
        except APIError as error:
            if self._whole is not None or not isinstance(error, APIResponseValidationError):
                self.error = error  # else half an event: the end will be judged without it
        return chunks + self._release_held()

    def verdict(self) -> Optional[APIError]:
        """What is wrong with a body that has ended well by HTTP's rules, if that can be told from what it held."""
        foreign = self._decoder.foreign.encode("utf-8", "replace")
        if self.events and not self._recognised:
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
                items = _parse_json(text)
                raise self._failure(items) if "error" in items[0] else self.not_ours(text)
            except (ValueError, LookupError, TypeError):
                raise self.not_ours(text) from None
        try:
            self._read_payload(text, chunks)
        except APIResponseValidationError:
            if self._cut_short:
                return
            raise
        if not self._recognised:
            raise self.not_ours(text)
        self.done = self.done or self._whole_reply or bool(self.found)

    def _read_payload(self, text: str, chunks: List[ChatCompletionChunk]) -> None:
        """Usually one JSON object; but some servers send several in an event, or forget the blank line between."""
        at = 0
        while at < len(text):
            if text[at] == "{":
                start = at
                try:
                    fields, at = _raw_decode(text, at)
                    if (at - start > 5 * MAX_DEPTH  # what is shorter cannot be deep enough to do harm
                            and text.count("{", start, at) + text.count("[", start, at) > MAX_DEPTH
                            and _is_too_deep(fields)):
                        raise ValueError("too deep")
                except (ValueError, RecursionError) as error:  # RecursionError: too deep for the parser
                    self._cut_short = _stops_at_the_end(error, text)
                    raise self.not_ours(text, str(error)) from None
                if not self.events:
                    self._head = text[:1000]
                self.events += 1
                if fields.get("error") or fields.get("object") == "error":
                    raise self._failure(fields)
                if self._wanted == "choices":
                    self._mending = bool(self._held or "\\" in text and _find_surrogate(text, start, at))
                    self._read_object(fields, chunks)
                else:
                    self.found, self._recognised = fields, isinstance(fields.get(self._wanted), list)
                if at == len(text):
                    return
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

    def _read_object(self, fields: Dict[str, Any], chunks: List[ChatCompletionChunk]) -> None:
        choices = fields.get("choices")
        self._recognised = self._recognised or "choices" in fields
        if choices.__class__ is not list:
            choices = [choices] if choices.__class__ is dict else []
        fields["choices"] = [self._choice(choice) for choice in choices if choice.__class__ is dict]
        if "usage" in fields and fields["usage"].__class__ is dict:
            fields["usage"] = _wire(CompletionUsage, fields["usage"])
        chunk = _instance(ChatCompletionChunk, fields)
        if self._ended_in_error:
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
        if self._mending:
            fields = {key: self._mend(value) for key, value in fields.items() if key != "delta"}
            delta = self._mend(delta, (index,))
        if "tool_calls" in delta and delta["tool_calls"].__class__ is dict:  # older TGI
            delta["tool_calls"] = [delta["tool_calls"]]
        if index not in self.streamed and any(value for key, value in delta.items() if key != "role"):
            self.streamed.add(index)
        fields["delta"] = _wire(ChoiceDelta, delta)
        if fields.get("logprobs").__class__ is dict:
            fields["logprobs"] = _wire(ChoiceLogprobs, fields["logprobs"])
        if fields.get("finish_reason") == "error":
            self._ended_in_error = True
        return _instance(Choice, fields)

    def _instead_of_delta(self, fields: Dict[str, Any], index: int) -> Dict[str, Any]:
        """A whole message, unless it repeats what deltas have said (MiniMax); or the text of a legacy completion."""
        message = fields.get("message")
        if message.__class__ is dict and index not in self.streamed:
            del fields["message"]
            self._whole_reply = True
            calls = message.get("tool_calls")
            for i, call in enumerate(calls if calls.__class__ is list else ()):
                if call.__class__ is dict:
                    call.setdefault("index", i)
            return cast(Dict[str, Any], message)
        text = fields.get("text")
        return {"content": text} if text.__class__ is str else {}

    def _mend(self, value: Any, path: Optional[Tuple[Any, ...]] = None) -> Any:
        """Let a high surrogate at the end of a text that is joined wait for the next one in the same place: servers
        that cut between UTF-16 units send an emoji as two halves."""
        if value.__class__ is str:
            if path:
                value = self._held.pop(path, "") + value
                if "\ud800" <= value[-1:] <= "\udbff":
                    self._held[path] = value[-1]
                    value = value[:-1]
            return _well_formed(value)
        if value.__class__ is dict:
            return {key: self._mend(item, path + (key,) if path and key in _JOINED else None)
                    for key, item in value.items()}
        if value.__class__ is list:
            return [self._mend(item, path + (_slot_index(item, i),) if path and item.__class__ is dict else None)
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
            body, words = _server_error(_parse_json(report) if isinstance(report, str) else report)
        except ValueError:
            body, words = report, report
        words = _well_formed(words) or "the server reported an error without a message"
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
        return APIResponseValidationError(body=text[:1000], message=(
            "the server answered with something else than a chat completion (%s): %s" % (reason, _excerpt(text))))


# ----------------------------------------------------------------------------------------------------------------------
# Accumulation: chunks become a whole reply.  Linear in what arrives.  No I/O.
# ----------------------------------------------------------------------------------------------------------------------

def _text_parts(value: Any) -> Tuple[str, str]:
    """Text and reasoning in a content, which Mistral's reasoning models send as a list of parts."""
    text = reasoning = ""
    for part in value if isinstance(value, list) else (value,):
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and "thinking" in part:
            reasoning += "".join(_text_parts(part["thinking"]))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            text += part["text"]
    return text, reasoning


def _chunk_text(chunk: ChatCompletionChunk) -> str:
    """What a chunk adds to the text of choice 0."""
    return "".join(_text_parts(choice.delta.content)[0] for choice in chunk.choices if choice.index == 0)


def _reasoning_text(delta: _WireObject) -> str:
    """The reasoning in a delta or message: once, though some servers send it under two names."""
    fields = delta.__dict__
    for key in _REASONING:
        if fields.get(key):
            return "".join(_text_parts(fields[key]))
    return _text_parts(fields.get("content"))[1] or "".join(_text_parts(fields.get("reasoning_details")))


class _ToolCalls:
    """The tool calls of one message, put together from their fragments."""

    def __init__(self) -> None:
        self._slots: List[Dict[str, Any]] = []
        self._by_index: Dict[int, Dict[str, Any]] = {}
        self._by_id: Dict[str, Dict[str, Any]] = {}

    def add(self, call: Dict[str, Any]) -> None:
        kind = "custom" if isinstance(call.get("custom"), dict) else "function"
        body = call.get(kind)
        body = body.__dict__ if isinstance(body, _WireObject) else body if isinstance(body, dict) else {}
        slot = self._slot(call.get("index"), call.get("id"), body.get("name"))
        for target, fields in ((slot, call), (slot.setdefault(kind, {}), body)):
            for key, value in fields.items():
                if value is None or key in ("index", "function", "custom"):
                    continue
                if key in ("arguments", "input"):
                    slot["pieces"].append(value if value.__class__ is str else _dump_json(value))
                elif key not in ("id", "type", "name") or not target.get(key):  # these are set once, never joined
                    target[key] = value

    def _slot(self, index: Any, id: Any, name: Any) -> Dict[str, Any]:
        """The slot of a fragment: that of its index, unless it begins a call of its own there (Ollama gives every
        parallel call index 0); without an index that of its id; and what has neither id nor name continues."""
        if index.__class__ is str and index[:9].isdecimal():
            index = int(index[:9])
        if not id and index.__class__ is int and index in self._by_index:
            return self._by_index[index]
        known = self._by_id.get(id) if id and id.__class__ is str else None
        slot = self._by_index.get(index) if index.__class__ is int else known
        if slot and id and name and slot.get("id") not in (None, "", id):
            slot = known
        if slot is None and self._slots and not (id or name):
            slot = self._slots[-1]
        if slot is None:
            slot = {"pieces": []}
            self._slots.append(slot)
        if index.__class__ is int:
            self._by_index[index] = slot
        if id and id.__class__ is str:
            self._by_id.setdefault(id, slot)
        return slot

    def whole(self) -> List[Dict[str, Any]]:
        calls = []
        for slot in self._slots:
            call = {key: value for key, value in slot.items() if key not in ("pieces", "made_id")}
            kind, member = ("custom", "input") if "custom" in slot else ("function", "arguments")
            text = _well_formed("".join(slot["pieces"]))
            if slot[kind].get("name") or text:  # DeepSeek ends with an empty call
                if not call.get("id"):  # without one the call cannot be answered
                    call["id"] = slot.setdefault("made_id", "call_" + os.urandom(12).hex())
                call["type"] = call.get("type") or kind
                call[kind] = dict(slot[kind], **{member: text})
                calls.append(call)
        return calls


class _Answer:
    """One choice so far."""

    def __init__(self) -> None:
        self.finish_reason: Optional[str] = None
        self._choice: Dict[str, Any] = {}       # last values
        self._message: Dict[str, Any] = {}
        self._texts: Dict[Any, List[str]] = {}  # pieces, by field or (field, member)
        self._lists: Dict[Any, List[Any]] = {}
        self._calls = _ToolCalls()

    def add(self, choice: Dict[str, Any]) -> None:
        for key, value in choice.items():
            if value is None or key == "message":
                continue
            if key == "delta":
                self._add_delta(value.__dict__)
            elif key == "finish_reason":
                if value and value.__class__ is str:
                    self.finish_reason = value
            elif key == "logprobs":
                for name, items in value.__dict__.items() if isinstance(value, _WireObject) else ():
                    if isinstance(items, list):
                        self._lists.setdefault((key, name), []).extend(items)
            else:
                self._choice[key] = value

    def _add_delta(self, delta: Dict[str, Any]) -> None:
        for key, value in delta.items():
            if value is None:
                continue
            if key == "content" and value.__class__ is str:
                self._texts.setdefault(key, []).append(value)
            elif key in ("content", "refusal") or key in _REASONING:
                text, reasoning = _text_parts(value)
                self._join(key, text)
                self._join("reasoning_content" if key == "content" else key, reasoning)
            elif key == "tool_calls":
                for call in value if value.__class__ is list else ():
                    if isinstance(call, _WireObject):
                        self._calls.add(call.__dict__)
            elif key == "reasoning_details" and value.__class__ is list:
                self._lists.setdefault(key, []).extend(value)
            elif key in ("function_call", "audio"):
                for name, item in value.__dict__.items() if isinstance(value, _WireObject) else ():
                    if name in ("arguments", "data", "transcript"):
                        self._join((key, name), item)
                    elif item:
                        self._message.setdefault(key, {})[name] = item
            elif value != "":
                self._message[key] = value

    def _join(self, key: Any, text: Any) -> None:
        if text and text.__class__ is str:
            self._texts.setdefault(key, []).append(text)

    def whole(self, index: int) -> Dict[str, Any]:
        message: Dict[str, Any] = {"role": "assistant", "content": None}
        for key, value in self._message.items():
            message[key] = dict(value) if key in ("function_call", "audio") else value
        choice: Dict[str, Any] = dict(
            self._choice, index=index, message=message, finish_reason=self.finish_reason, logprobs=None)
        for key, pieces in self._texts.items():
            text = _well_formed("".join(pieces))
            if isinstance(key, tuple):
                message.setdefault(key[0], {})[key[1]] = text
            else:
                message[key] = text
        for key, items in self._lists.items():
            if isinstance(key, tuple):
                choice["logprobs"] = dict(choice["logprobs"] or {}, **{key[1]: list(items)})
            else:
                message[key] = list(items)
        calls = self._calls.whole()
        if calls:
            message["tool_calls"] = calls
        return choice


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
                for choice in value or ():
                    index = choice.index or 0
                    answer = self._answers.get(index)
                    if answer is None:
                        answer = self._answers[index] = _Answer()
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

    def finished(self, choices: int = 1) -> bool:
        """At least so many choices were seen, and each has its finish_reason."""
        return len(self._answers) >= choices and all(answer.finish_reason for answer in self._answers.values())

    @property
    def completion(self) -> ChatCompletion:
        """The reply so far, a copy: in the shape of a whole one."""
        choices = [self._answers[index].whole(index) for index in sorted(self._answers)]
        whole = _wire(ChatCompletion, dict(self._fields, object="chat.completion", choices=choices, usage=self._usage))
        whole._request_id = None
        return whole


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

    # The CRLF that ends a chunk is read with the next one's size.
    _size = re.compile(rb"\r\n0{0,16}([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
    _size_start = re.compile(rb"\r(\n([0-9a-fA-F]{1,31}([ \t;\r]|\Z)|\Z)|\Z)")

    def __init__(self) -> None:
        super().__init__(0)
        self.ended = False
        self._rest = b"\r\n"     # a size line or trailer that has not ended; at first, as if a chunk had come before
        self._left = 0           # bytes of the chunk still to come
        self._in_trailer = False
        self._trailer_size = 0

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        pieces = []
        at, end = 0, len(data)
        while at < end and not self.ended and not self.error:
            if self._in_trailer:
                at = self._trailer(data, at)
                continue
            if not self._left:
                size = self._size.match(data, at)
                if not size:
                    self._incomplete(data[at:])
                    at = end
                    break
                at, self._left = size.end(), int(size.group(1), 16)
                self._in_trailer = not self._left
            piece = data[at:at + self._left]
            pieces.append(piece)
            at += len(piece)
            self._left -= len(piece)
        self.dirty = self.dirty or at < end
        return b"".join(pieces)

    def _incomplete(self, line: bytes) -> None:
        if b"\n" in line[2:] or len(line) > MAX_CHUNK_LINE or not self._size_start.match(line):
            self.error = _BodyError("a chunk of the reply has no valid size: %r" % line.lstrip()[:40])
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

_SSL_ERRORS: Tuple[Type[BaseException], ...] = (ssl.SSLError, ssl.CertificateError) if ssl else ()
_FAULTS: Tuple[Type[BaseException], ...] = (OSError, http.client.HTTPException, ValueError) + _SSL_ERRORS
_WOULD_BLOCK: Tuple[Type[BaseException], ...] = (BlockingIOError,) + ((ssl.SSLWantReadError,) if ssl else ())


class _Call:
    """The clock of one call, its retries included, and the socket in its use, so that another thread can end it."""

    def __init__(self, timeout: Any, deadline: Optional[float]) -> None:
        self.connect, self.read = _timeouts(timeout)
        self.started = time.monotonic()
        self.deadline = self.started + (math.inf if deadline is None else deadline)
        self.until = math.inf           # when the present wait ends
        self.answer_by: Optional[float] = None
        self.connecting = True
        self.proxy = ""                 # host:port
        self.secrets: Set[str] = set()  # what no error may show, though a server repeats it
        self.cancelled = threading.Event()
        self.waits: Callable[[bool], None] = lambda begin: None  # called when a wait for the network begins and ends
        self.sock: Any = None
        self._pid = os.getpid()

    def start(self, seconds: float) -> None:
        """Start to wait for something for so many seconds; bytes that are not it do not extend the wait."""
        self.until = min(time.monotonic() + seconds, self.deadline)

    def start_answer(self) -> None:
        """Start to wait for the answer, once in an attempt: redirects and error bodies are part of it."""
        if self.answer_by is None:
            self.answer_by = min(time.monotonic() + self.read, self.deadline)
        self.until = self.answer_by

    def left(self) -> Optional[float]:
        """Seconds for the next step on the socket.  Raises socket.timeout if there are none."""
        if self.cancelled.is_set():
            raise OSError("closed")
        left = self.until - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        return left if left < 1e6 else None  # what is far away need not fit the platform's time_t

    def attach(self, sock: Any) -> None:
        self.sock = sock
        sock.settimeout(self.left())

    def cancel(self) -> None:
        """End the call at once: `shutdown` wakes a thread that waits on the socket, which `close` does not."""
        self.cancelled.set()
        sock = self.sock
        if sock is not None and self._pid == os.getpid():  # after a fork the connection is the parent's
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket.shutdown would not spare the reader
            except OSError:
                pass

    def add_secrets(self, *texts: str) -> None:
        self.secrets.update(text for text in texts if len(text) > 7)  # hiding "ollama" would only blur messages

    def hide(self, value: Any) -> Any:
        """A JSON value without the secrets."""
        if isinstance(value, str):
            for secret in self.secrets:
                value = value.replace(secret, "***")
        elif isinstance(value, dict):
            value = {self.hide(key): self.hide(item) for key, item in value.items()}
        elif isinstance(value, list):
            value = [self.hide(item) for item in value]
        return value

    def hide_in(self, error: APIError) -> None:
        """Take the secrets out of an error; a server may have repeated them anywhere."""
        error.message, error.body = self.hide(error.message), self.hide(error.body)
        error.code, error.param, error.type = self.hide([error.code, error.param, error.type])
        error.args = (error.message,)
        cause = "%r %s" % (error.__cause__, error.__cause__)
        if self.hide(cause) != cause:
            error.__cause__ = error.__context__ = None

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


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
    """A urllib request that knows its call.  All its headers are unredirected: none leaves for another origin."""

    def __init__(self, call: _Call, method: str, url: str, headers: Dict[str, str], body: Optional[bytes],
                 redirects: int = 0) -> None:
        super().__init__(url, data=body, method=method)
        self.call = call
        self.redirects = redirects
        self.own_headers = headers
        self.response: Optional[_HTTPResponse] = None
        for name, value in headers.items():
            self.add_unredirected_header(name, value)

    @property
    def tunnel(self) -> str:
        """host:port that a proxy is asked to connect to."""
        host = getattr(self, "_tunnel_host", None) or ""  # where urllib's set_proxy puts it
        return host if not host or urllib.parse.urlsplit("//" + host).port else host + ":443"


class _Reader:
    """What http.client reads a response's head from, and we its body: through here comes every byte received, and
    each `recv` is given what is left of the call's time."""

    def __init__(self, sock: Any, raw: Any, call: _Call) -> None:
        self.sock = sock
        self.call = call
        self.received = 0
        self.ahead = b""         # received, not read yet
        self._raw = raw          # holds the socket open, though http.client may let go of it
        self._head_size = 0

    def recv(self, size: int, wait: bool = True) -> Optional[bytes]:
        """At most `size` bytes, none at the end of the connection, None if there are none yet and `wait` is False."""
        left = self.call.left()
        timeout = left if wait else 0
        if self.ahead:
            data, self.ahead = self.ahead[:size], self.ahead[size:]
            return data
        if timeout != self.sock.gettimeout():  # each setting is a system call
            self.sock.settimeout(timeout)
        try:
            data = cast(bytes, self.sock.recv(size))
        except _WOULD_BLOCK:
            return None
        self.received += len(data)
        return data

    def readline(self, limit: int) -> bytes:
        """A line of the head."""
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < limit:
            data = self.recv(65536)
            if not data:
                break
            end = min(data.find(b"\n") + 1 or len(data), limit - len(line))
            line += data[:end]
            self.ahead = data[end:]
        self._head_size += len(line)
        if self._head_size > MAX_HEADERS:
            raise _BodyError("the headers are longer than %d bytes" % MAX_HEADERS)
        return bytes(line)

    def flush(self) -> None:
        """http.client calls it."""

    def close(self) -> None:
        self._raw.close()


class _HTTPResponse(http.client.HTTPResponse):
    """A response whose body is read with `recv`, decoded, as it comes."""

    connection: "_HTTPConnection"

    def __init__(self, sock: Any, debuglevel: int = 0, method: Optional[str] = None, url: Optional[str] = None, *,
                 call: _Call) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.reader = _Reader(sock, self.fp.detach(), call)
        self.fp = self.reader  # type: ignore[assignment]
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
        if self.status in (204, 304):
            return
        if transfer == "chunked":
            self.framing = _ChunkedFraming()
        elif len(lengths) > 1 or not all(re.match("[0-9]{1,18}$", length.strip()) for length in lengths):
            raise _BodyError("the reply has no valid Content-Length: %s" % _excerpt(", ".join(lengths)))
        else:
            self.framing = _Framing(int(lengths.pop()) if lengths else None)
        coding = str(self.headers.get("content-encoding") or "").strip().lower()
        if coding in ("gzip", "x-gzip", "deflate"):
            self.inflater = _Inflater(coding)
        elif coding not in ("", "identity") and not 200 <= self.status < 300:
            self.framing, self.will_close = _Framing(0), True  # the status says enough
        elif coding not in ("", "identity"):
            raise APIResponseValidationError(
                message="the server compressed its reply with %s, though none was asked for" % _excerpt(coding))

    def recv(self, wait: bool = True) -> Optional[bytes]:
        """Some bytes of the body, decoded; none at its end; None if there are none yet and `wait` is False.

        Raises an error only after all that came before it.
        """
        turns = 0
        while True:
            error = self.framing.error or (self.inflater and self.inflater.error)
            if error:
                raise error
            if self.framing.ended:
                return b""
            # Deflate makes at most 1,032 bytes of one; and more chunks at once than fit the CPU's cache cost more each.
            data = self.reader.recv(1024 if self.inflater else 16384, wait)
            if data is None:
                return None
            if data:
                data = self.framing.feed(data)
            else:
                self.framing.close()
            if self.inflater:
                data = self.inflater.feed(data)
                if self.framing.ended:
                    self.inflater.close()
            if data:
                return data
            turns += 1
            if not wait and turns > 16 and not self.reader.ahead and not getattr(self.reader.sock, "pending", int)():
                return None  # many bytes that come to nothing must not keep an event loop from other work

    def is_reusable(self, age: float) -> bool:
        """The connection can carry another request: the body has ended, and there is nothing more to read.

        The last bytes of a body, after [DONE], may be some microseconds behind: if it is so young they get a moment.
        """
        reader, framing = self.reader, self.framing
        try:
            reader.sock.settimeout(0 if framing.ended else max(0.0, 0.1 - age))
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
        self.connection.close()


class _ProxyError(OSError):
    """The proxy refused to connect."""

    def __init__(self, status: int, reason: str, headers: Any) -> None:
        super().__init__("the proxy answered %d %s" % (status, _excerpt(reason, 60)))
        self.status = status
        self.headers = headers


class _HTTPConnection(http.client.HTTPConnection):
    """A connection, plain or TLS, straight or through a proxy; `served` is the request that it has at present."""

    def __init__(self, request: _Request, context: Any) -> None:
        self.default_port = 443 if request.type == "https" and not request.tunnel else 80
        super().__init__(request.host)
        self.served = request
        self.response: Optional[_HTTPResponse] = None
        self._context = context

    def response_class(self, *args: Any, **kwargs: Any) -> _HTTPResponse:  # type: ignore[override]
        """What http.client makes responses with."""
        self.response = _HTTPResponse(*args, call=self.served.call, **kwargs)
        return self.response

    def connect(self) -> None:
        """All of it within the call's connect timeout: every address, the proxy's answer, the TLS handshake."""
        request, call = self.served, self.served.call
        call.connecting = True
        call.start(call.connect)
        self.sock = self._tcp(call)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if request.tunnel:
            self._connect_through_proxy(request)
        if request.type == "https":
            host = urllib.parse.urlsplit(request.full_url).hostname
            self.sock = self._context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
            call.attach(self.sock)
            self.sock.do_handshake()

    def _tcp(self, call: _Call) -> socket.socket:
        addresses = socket.getaddrinfo(self.host.encode(), self.port, 0, socket.SOCK_STREAM)
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
        lines = ["CONNECT %s HTTP/1.1" % request.tunnel, "Host: " + request.tunnel, "User-Agent: " + _user_agent()]
        if request.has_header("Proxy-authorization"):
            lines.append("Proxy-Authorization: " + cast(str, request.get_header("Proxy-authorization")))
        request.call.attach(self.sock)
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        response = _HTTPResponse(self.sock, method="CONNECT", call=request.call)
        try:
            response.begin()
        finally:
            response.close()
        if not 200 <= response.status < 300:
            raise _ProxyError(response.status, response.reason, response.headers)


class _Handler(urllib.request.BaseHandler):
    """http and https for the opener, over connections that are kept for the next request; and redirects."""

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._idle: Deque[Tuple[float, int, _HTTPResponse]] = collections.deque()

    def http_open(self, request: Any) -> _HTTPResponse:
        if request.response is not None:
            request.response.discard()  # a handler of the caller's asks again
        connection = self._claim(request)
        if connection is not None:
            started = time.monotonic()
            try:
                return self._exchange(connection, request)
            except (ConnectionError,) + _SSL_ERRORS:
                # The server had closed it while it was idle, and so has seen no request: this is no failed attempt.
                # But who answers with a byte, or dies only after a while, was at work on it.
                if ((connection.response and connection.response.reader.received) or request.call.cancelled.is_set()
                        or time.monotonic() - started > 1.0):
                    raise
        return self._exchange(_HTTPConnection(request, self._context() if request.type == "https" else None), request)

    https_open = http_open

    def _exchange(self, connection: _HTTPConnection, request: _Request) -> _HTTPResponse:
        call = request.call
        connection.served, connection.response = request, None
        headers = {"Host": urllib.parse.urlsplit(request.full_url).netloc, "Connection": "keep-alive"}
        headers.update(request.headers)
        headers.update(request.unredirected_hdrs)
        if request.tunnel:
            headers.pop("Proxy-authorization", None)
        early: Optional[OSError] = None
        try:
            if connection.sock is None:
                call.waits(True)
                connection.connect()
                call.waits(False)
            call.connecting = False
            call.start_answer()
            call.attach(connection.sock)
            try:
                connection.request(request.get_method(), request.selector, request.data, headers)
            except OSError as error:  # a server that refuses may answer before it has read everything (413, 401)
                early = error
            call.waits(True)
            try:
                response = request.response = cast(_HTTPResponse, connection.getresponse())
            except _FAULTS:
                if early:
                    raise early from None
                raise
        except BaseException:
            connection.close()
            raise
        response.will_close = response.will_close or early is not None
        response.connection = connection
        response.msg = response.reason  # type: ignore[assignment]  # what urllib's handlers expect
        return response

    def _claim(self, request: _Request) -> Optional[_HTTPConnection]:
        """An idle connection that can carry the request."""
        while True:
            try:
                since, pid, response = self._idle.pop()
            except IndexError:
                return None
            if pid != os.getpid():
                continue  # forked since: it is the parent's
            connection = response.connection
            last = connection.served
            age = time.monotonic() - since
            if (age < IDLE_SECONDS and response.is_reusable(age)
                    and (last.type, last.host, last.tunnel) == (request.type, request.host, request.tunnel)):
                response.close()
                return connection
            response.discard()

    def release(self, response: _HTTPResponse, whole: bool) -> None:
        """The caller is done with the response.  If it was read to what it says is its end, keep the connection; it is
        looked at when it is next wanted."""
        response.reader.call.sock = None
        if not whole or response.will_close or response.connection.sock is None:
            response.discard()
            return
        self._idle.append((time.monotonic(), os.getpid(), response))
        self.close_idle(kept=MAX_IDLE)

    def close_idle(self, kept: int = 0) -> None:
        while len(self._idle) > kept:
            try:
                self._idle.popleft()[2].discard()
            except IndexError:  # another thread took it
                pass

    def http_error_307(self, request: Any, response: _HTTPResponse, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect that keeps method and body, to the same origin."""
        url = _location(response, request.full_url)
        if request.redirects >= 5 or not url or _origin(url) != _origin(request.full_url):
            return response
        _log("debug", "%d: redirected to %s", code, _bare(url))
        _read_error_body(response, request.call)
        self.release(response, response.framing.ended)
        again = _Request(request.call, request.get_method(), url, request.own_headers, request.data,
                         request.redirects + 1)
        return self.parent.open(again)

    http_error_308 = http_error_307

    def http_error_default(self, request: Any, response: Any, code: int, msg: str, headers: Any) -> Any:
        """No exceptions of urllib's: every answer is returned."""
        return response


class _ProxyHandler(urllib.request.ProxyHandler):
    """The proxies that urllib finds when the client is made; loopback is never proxied."""

    def proxy_open(self, request: Any, proxy: str, type: str) -> None:
        if request.tunnel or _bypasses_proxy(request.host, self.proxies):  # type: ignore[attr-defined]
            return
        try:
            parts = urllib.parse.urlsplit(proxy if "://" in proxy else "http://" + proxy)
            valid = parts.hostname and parts.port != 0 and ("@" in parts.netloc) == ("@" in proxy)
        except ValueError:
            valid = False
        if not valid:
            raise OpenAIError("%s_PROXY is not a valid URL: a # / ? or @ in its password must be written %%23 %%2F "
                              "%%3F %%40 (it is not shown here)" % type.upper())
        if parts.scheme != "http":
            raise OpenAIError(
                "the proxy for %s: is a %s: proxy (%s); only http: proxies are spoken here: set %s_PROXY to one, or "
                "unset it" % (type, parts.scheme, parts.hostname, type.upper()))
        if parts.username is not None:
            import base64
            user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
            credentials = base64.b64encode((user + ":" + password).encode()).decode()
            request.add_unredirected_header("Proxy-authorization", "Basic " + credentials)
            request.call.add_secrets(password, credentials)
        request.call.proxy = parts.netloc.rpartition("@")[2]
        request.set_proxy(request.call.proxy, "http")


def _bypasses_proxy(netloc: str, proxies: Dict[str, str]) -> bool:
    """NO_PROXY may hold names and ports, as urllib knows them, and networks (10.0.0.0/8)."""
    host = urllib.parse.urlsplit("//" + netloc).hostname or ""
    if _is_loopback(host):
        return True
    if "no" not in proxies:
        return bool(urllib.request.proxy_bypass(netloc))  # the system's own list, on Windows and macOS
    if urllib.request.proxy_bypass_environment(netloc, proxies):  # type: ignore[attr-defined]
        return True
    if "/" in proxies["no"]:
        import ipaddress  # only here: it is large
        for network in proxies["no"].split(","):
            try:
                if ipaddress.ip_address(host) in ipaddress.ip_network(network.strip(), strict=False):
                    return True
            except ValueError:
                pass  # a name
    return False


def _is_loopback(host: str) -> bool:
    return bool(re.match(r"(127(\.[0-9]{1,3}){3}|::1|(.*\.)?localhost)\Z", host))


def _origin(url: str) -> Tuple[str, Optional[str], int, Optional[str]]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.username


def _location(response: Any, url: str) -> str:
    """Where a redirect points to; "" if nowhere."""
    location = response.headers.get("location")
    try:
        target = urllib.parse.urljoin(url, location) if location else ""
        _origin(target)
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

_CA_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@functools.lru_cache(maxsize=None)
def _tls_context(cert_file: str, cert_dir: str, *bundles: str) -> Any:
    """A context that verifies certificates, made once per process and setting: that takes up to 20 ms."""
    if ssl is None:
        raise OpenAIError("this Python has no ssl module: only http: URLs work")
    for name, path in zip(_CA_VARIABLES, (cert_file, cert_dir) + bundles):
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
    bundle = bundles[0] or bundles[1]
    if bundle and not (cert_file or cert_dir):
        cert_file, cert_dir = ("", bundle) if os.path.isdir(bundle) else (bundle, "")
    try:
        if cert_file or cert_dir:  # OpenSSL reads these two variables itself, but is silent about what is wrong
            context.load_verify_locations(cert_file or None, cert_dir or None)
        else:
            context.load_default_certs()
    except OSError as error:
        raise OpenAIError("the CA certificates in %s cannot be read: %s" % (cert_file or cert_dir, error)) from error
    return context


# -- what went wrong, in our words --

_CERTIFICATE_REMEDY = (
    "if a private CA or an intercepting proxy issued it, set SSL_CERT_FILE to that CA's certificate; on macOS run "
    "\"Install Certificates.command\" of the Python folder once")
_STRICT_REMEDY = (
    "Python 3.13 made ssl.create_default_context() stricter than this CA's certificates: clear ssl.VERIFY_X509_STRICT "
    "in the verify_flags of the ssl_context that you pass")
_STRICTNESS = "(?i)key ?(identifier|usage)|basic constraints|critical|path length|name empty|ecc parameters|x509v3"


def _translate(error: BaseException, call: _Call, url: str, chunks: int = 0) -> APIError:
    """One of our errors for one of the standard library's: what happened, where, when, and what to do."""
    host = urllib.parse.urlsplit(url).hostname or ""
    place = _bare(url) + (" through the proxy %s" % call.proxy if call.proxy else "")
    when = " after %d chunks and %.1f s" % (chunks, call.elapsed) if chunks else ""
    reason = _excerpt(str(error) or type(error).__name__)
    if call.cancelled.is_set():
        message = "the stream from %s was closed%s" % (_bare(url), when)
    elif isinstance(error, (socket.timeout, TimeoutError)):
        if time.monotonic() >= call.deadline:
            limit = "the deadline of %g s passed" % (call.deadline - call.started)
        elif call.connecting:
            limit = "no connection within %g s (timeout)" % call.connect
        else:
            limit = "no event for %g s (timeout)" % call.read
        return APITimeoutError(message="%s%s: %s" % (limit, when, place))
    elif isinstance(error, _ProxyError):
        message = "%s for %s (%s); %s" % (reason, host, call.proxy, _proxy_remedy(error.status, error.headers))
    elif _is_certificate_error(error):
        message = "the certificate of %s is not trusted (%s); %s" % (
            host, reason, _STRICT_REMEDY if re.search(_STRICTNESS, reason) else _CERTIFICATE_REMEDY)
    elif isinstance(error, socket.gaierror):
        message = "the host %s is not known (%s): check base_url, or set HTTPS_PROXY if this network has a proxy" % (
            call.proxy or host, reason)
    elif isinstance(error, ConnectionRefusedError):
        message = "nothing listens at %s: is the %s running?" % (
            call.proxy or _bare(url), "proxy" if call.proxy else "server")
    elif call.connecting and isinstance(error, _SSL_ERRORS):
        message = "no TLS connection to %s (%s): does this port speak https?" % (host, reason)
    elif call.connecting:
        message = "no connection to %s: %s" % (place, reason)
    else:
        message = "the connection to %s was lost%s (%s); what had arrived is in `partial`" % (place, when, reason)
    return APIConnectionError(message=message)


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
    text = _read_error_body(response, call).decode("utf-8", "replace").strip()
    try:
        body, words = _server_error(_parse_json(text))
    except ValueError:
        body, words = text, text
    words = call.hide(words)
    if words.startswith("<"):
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
        "%d%s: %s%s (%s)" % (status, reason and " " + reason, _excerpt(words, 1000) or "no message", hint, _bare(url)),
        response=Response(status, response.headers), body=body)


def _read_error_body(response: _HTTPResponse, call: _Call) -> bytes:
    """The start of the body: it must not keep the status from the caller, however it ends."""
    body = b""
    call.until = min(call.until, time.monotonic() + PATIENCE)
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
    """One opener, with the connections that it keeps between requests."""

    def __init__(self, ssl_context: Any, handlers: Sequence[urllib.request.BaseHandler]) -> None:
        settings = tuple(os.environ.get(name, "") for name in _CA_VARIABLES)
        self._handler = _Handler(lambda: ssl_context or _tls_context(*settings))
        self.release = self._handler.release
        self._opener = urllib.request.OpenerDirector()
        mine: List[urllib.request.BaseHandler] = [self._handler, urllib.request.HTTPErrorProcessor()]
        if not any(isinstance(handler, urllib.request.ProxyHandler) for handler in handlers):
            mine.append(_ProxyHandler())
        for handler in mine + [copy.copy(handler) for handler in handlers]:  # an opener makes its handlers its own
            self._opener.add_handler(handler)

    def open(self, call: _Call, method: str, url: str, headers: Dict[str, str],
             body: Optional[bytes]) -> _HTTPResponse:
        """Send the request; return the response of a success, whose body has not been read."""
        call.answer_by = None
        try:
            response = cast(_HTTPResponse, self._opener.open(_Request(call, method, url, headers, body)))
            if not 200 <= response.status < 300:
                error = _status_error(response, url, call)
                self.release(response, response.framing.ended)
                raise error
            return response
        except _FAULTS as fault:
            raise _translate(fault, call, url) from fault
        finally:
            _log("debug", "%s %s: %.3f s", method, _bare(url), call.elapsed)

    def close(self) -> None:
        self._handler.close_idle()

    __del__ = close


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
    return error.status_code in (408, 409, 429) or 500 <= error.status_code < 600


def _retry_after(headers: Any) -> Optional[float]:
    """Seconds that the server asks to wait: milliseconds, seconds, or an HTTP date.  Anything else is no answer."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = str(headers.get(name) or "").strip()
        if re.match(r"[0-9]{1,12}(\.[0-9]*)?$", value):
            return float(value) * unit
    from email.utils import mktime_tz, parsedate_tz
    try:
        date = parsedate_tz(value)
        return max(0.0, mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError, LookupError):
        return None


class _Attempts:
    """The attempts at one call."""

    def __init__(self, call: _Call, max_retries: int) -> None:
        self.call = call
        self.made = 0
        self.closed = False  # no more of them: something was delivered, so a repetition would not be invisible
        self._retries_left = max_retries

    def delay(self, error: APIError) -> float:
        """The seconds to wait before the next attempt.  Raises `error` if there is to be none."""
        error.attempts = self.made
        error.elapsed = self.call.elapsed
        if error.response is not None:
            error.retry_after = _retry_after(error.response.headers)
        if error.retry_after is not None:
            seconds = error.retry_after
        else:
            import random
            seconds = min(0.5 * 2 ** min(self.made - 1, 10), 8.0) * (1 - 0.25 * random.random())
        self._retries_left -= 1
        if (self.closed or self.call.cancelled.is_set() or self._retries_left < 0 or not _is_transient(error)
                or seconds > MAX_RETRY_AFTER or time.monotonic() + seconds >= self.call.deadline):
            self.closed = True
            raise error
        _log("info", "attempt %d failed, the next is in %.2f s: %s", self.made, seconds, error)
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

class _BaseStream:
    """What both kinds of streams are: everything but the waiting."""

    def __init__(self, transport: _Transport, attempts: _Attempts, request: Request,
                 send: Callable[[Any], _HTTPResponse], key: Callable[[], Any], wanted: str = "choices",
                 choices: int = 1) -> None:
        self.response: Optional[Response] = None  # status_code, headers, request_id
        self._transport = transport
        self._attempts = attempts
        self._call = attempts.call
        self._request = request
        self._send = send
        self._key = key
        self._wanted = wanted
        self._choices = choices
        self._lock = threading.Lock()  # held by a thread that reads; who holds it closes
        self._http: Optional[_HTTPResponse] = None
        self._reader = _ChunkReader()
        self._accumulator = Accumulator()
        self._ready: Deque[ChatCompletionChunk] = collections.deque()
        self._iterated = False
        self._body_over = False
        self._fault: Optional[BaseException] = None  # what ended the body, unless it ended well
        self._over = False                           # the answer is whole
        self._failure: Optional[APIError] = None
        self._longest: Optional[ChatCompletion] = None  # what came of the attempt that came furthest
        self._most_events = 0
        self._latest: Optional[ChatCompletionChunk] = None
        self._patience_ends = 0.0
        self._first_token_at: Optional[float] = None
        self._ended_at: Optional[float] = None

    @property
    def completion(self) -> ChatCompletion:
        """What was handed out so far, in the shape of a whole reply."""
        completion = self._accumulator.completion
        completion._request_id = self.response and self.response.request_id
        return completion

    @property
    def time_to_first_token(self) -> Optional[float]:
        """Seconds from the call to the first content, None before."""
        return self._first_token_at and self._first_token_at - self._call.started

    @property
    def elapsed(self) -> float:
        """Seconds from the call to the end of the stream, or to now."""
        return (self._ended_at or time.monotonic()) - self._call.started

    def _take(self, seen: bool = True) -> ChatCompletionChunk:
        """Hand out a chunk; once one was seen, nothing is repeated behind the caller's back."""
        chunk = self._latest = self._ready.popleft()
        self._accumulator.add(chunk)
        self._attempts.closed = self._attempts.closed or seen
        return chunk

    def _connect(self, key: Any) -> None:
        """Send the request, read the head of the answer."""
        if self._attempts.closed:
            raise self._failure or _translate(OSError(), self._call, self._request.url)
        self._attempts.made += 1
        self.response = None
        self._reader = _ChunkReader(self._wanted, self._call.hide)
        self._accumulator = Accumulator()
        self._fault, self._body_over, self._ended_at = None, False, None
        self._http = self._send(key)
        self.response = Response(self._http.status, self._http.headers)
        if self._call.cancelled.is_set():
            raise _translate(OSError(), self._call, self._request.url)

    def _start_wait(self) -> None:
        """Comments, blank lines and single bytes are no event: they do not start the clock again.  Behind a whole
        answer only more of it does."""
        self._call.start(self._call.read)
        if self._latest is not None and self._accumulator.finished(self._choices):
            if any(value for choice in self._latest.choices for key, value in choice.delta.__dict__.items()
                   if key != "role") or not self._patience_ends:
                self._patience_ends = time.monotonic() + PATIENCE
            self._call.until = min(self._call.until, self._patience_ends)

    def _receive(self, wait: bool = True) -> Optional[bytes]:
        try:
            if self._http is None:
                raise OSError("closed")
            return self._http.recv(wait)
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
        """There are chunks to hand out, or the answer is whole.  Raises what has ended it, after what came before."""
        if self._ready:
            return True
        reader, finished = self._reader, self._accumulator.finished(self._choices)
        if reader.done:
            self._finish("[DONE]")
        elif reader.error and not (finished and isinstance(reader.error, APIResponseValidationError)):
            raise reader.error
        elif finished and (self._body_over or reader.error):  # whatever comes behind a whole answer, it stays whole
            self._fault = self._fault or reader.error
            self._finish("finish_reason")
        elif self._fault:
            raise _translate(self._fault, self._call, self._request.url, reader.events) from self._fault
        elif self._body_over:
            raise reader.verdict() or APIConnectionError(
                message="the reply of %s ended after %d chunks and %.1f s with neither [DONE] nor a finish_reason: it "
                        "is not whole; what had arrived is in `partial`"
                        % (self._request.url, reader.events, self._call.elapsed))
        return self._over

    def _finish(self, why: str) -> None:
        self._over = True
        self._end(why)
        self._let_go(self._fault is None)

    def _fail(self, error: APIError) -> None:
        """Complete an error that ends an attempt."""
        self._let_go()
        self._end(type(error).__name__)
        self._call.hide_in(error)
        self._failure = error
        error.request = self._request
        error.response = error.response or self.response
        partial = self._accumulator.completion
        if partial.choices and not isinstance(error, APIConnectionError):
            self._attempts.closed = True  # the server's own word in the middle is no lost connection
        if self.response and self._reader.events >= self._most_events:
            self._longest, self._most_events = partial, self._reader.events
        error.partial = self._longest

    def _end(self, why: str) -> None:
        self._ended_at = time.monotonic()
        _log("debug", "stream from %s: %d events, %.3f s, ended by %s", self._request.url, self._reader.events,
             self._call.elapsed, why)

    def _let_go(self, whole: bool = False) -> None:
        if self._http is not None:
            self._transport.release(self._http, whole)
            self._http = None

    def _cut(self) -> None:
        """End the connection, from any thread."""
        if not self._over:
            self._call.cancel()
            if self._lock.acquire(False):
                try:
                    self._let_go()
                finally:
                    self._lock.release()

    def __del__(self) -> None:
        self._cut()


class _Closing:
    """`with` closes it."""

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()  # type: ignore[attr-defined]


class Stream(_BaseStream, _Closing):
    """The chunks of one reply, as they come; `with` ends the connection, and so the server's work, when you leave.

        for chunk in stream: ...          # ChatCompletionChunk; `break` and iterate again to go on
        for text in stream.text(): ...    # the text of choice 0
        completion = stream.collect()     # the rest of it, as a ChatCompletion
        stream.completion                 # what has come so far, at any time

    Raises the errors of `create`, and APIError, or the subclass for its code, for an error that the server reports in
    the stream; APIConnectionError for a stream that ends too early; APITimeoutError; all with `partial`.
    """

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> ChatCompletionChunk:
        self._iterated = True
        while not self._ready:
            if self._over:
                raise StopIteration
            self._attempts.run(self._attempt)
        return self._take()

    def text(self) -> Iterator[str]:
        """Iterate the text of choice 0, without empty pieces."""
        return filter(None, map(_chunk_text, self))

    def collect(self) -> ChatCompletion:
        """Read to the end and return the whole reply, what was iterated before included.

        If nothing was, nobody has seen anything, and the loss of the connection may be cured by starting over.
        """
        if not self._iterated and not self._over:
            self._attempts.run(self._drain)
        for _ in self:
            pass
        return self.completion

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
        self._cut()

    def _attempt(self, read: bool = True) -> None:
        """Open the stream, if need be, and read until there are chunks to hand out, or the answer is whole."""
        with self._lock:
            if self._ready or self._over:
                return
            try:
                if self._http is None:
                    self._connect(self._key())
                if read:
                    self._start_wait()
                    while not self._settled():
                        self._absorb(self._receive())
            except APIError as error:
                self._fail(error)
                raise

    def _drain(self) -> None:
        """Read to the end; nobody sees anything before."""
        while not self._over:
            self._attempt()
            while self._ready:
                self._take(seen=False)


def _encode_error(error: APIError) -> bytes:
    if isinstance(error, APITimeoutError):
        words = "the model's server did not answer in time"
    elif isinstance(error, APIConnectionError):
        words = "the connection to the model's server was lost"
    elif isinstance(error, APIResponseValidationError):
        words = "the model's server sent something else than an answer"
    elif isinstance(error.body, dict):
        words = _excerpt(_server_error(error.body)[1], 1000)
    else:
        words = "the model's server refused"
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


Omit = NotGiven
NOT_GIVEN = not_given = omit = NotGiven()
_warned: Set[str] = set()

_STREAM_HAS = "create(stream=True) returns a Stream with `completion`, the reply so far, and `response`, its headers"
_NOT_OFFERED = {
    "http_client": "pass ssl_context for certificates, handlers for urllib handlers; proxies come from the environment",
    "parse": "send response_format as a dict, and json.loads the message's content",
    "stream": _STREAM_HAS, "with_raw_response": _STREAM_HAS, "with_streaming_response": _STREAM_HAS,
    "responses": "only chat completions are spoken here: client.chat.completions.create(...)",
}


class _HasParts:
    """What has `parts` makes them anew at each access, lest cycles keep clients alive; an assignment replaces one."""

    __slots__ = ()
    _parts: Dict[str, Any] = {}
    _client: Any

    def __getattr__(self, name: str) -> Any:
        if name in self._parts:
            return self._parts[name](self._client)
        raise AttributeError("%s has no %r: %s" % (
            type(self).__name__, name, _NOT_OFFERED.get(name, "only chat completions and models are offered here")))


class _Part(_HasParts):
    """A part of a client's interface; what people patch in it is kept by the client."""

    __slots__ = ("_client", "__dict__")

    def __init__(self, client: Any) -> None:
        self._client = client
        self.__dict__ = client.__dict__.setdefault("_patches", {}).setdefault(type(self).__name__, {})


def AzureOpenAI(*args: Any, **kwargs: Any) -> NoReturn:
    """Not offered."""
    raise TypeError("AzureOpenAI is not offered: use OpenAI(base_url='https://NAME.openai.azure.com/openai/v1', "
                    "api_key=...), or with default_headers={'api-key': ...} for older paths with ?api-version=")


AsyncAzureOpenAI = AzureOpenAI


def _check_key(key: Any) -> str:
    """A key that can be sent; an error must not show it."""
    if key is not None and not isinstance(key, str):
        raise OpenAIError("api_key must be a str, or a function that returns one, not %s" % type(key).__name__)
    if not re.match(r"[!-~]*\Z", key or ""):
        raise OpenAIError("the API key holds a space, a line break or a letter outside ASCII: was it copied with "
                          "something around it? (It is not shown here.)")
    return key or ""


def _merge_headers(headers: Dict[str, Tuple[str, str]], more: Mapping[str, Any]) -> None:
    """Later values win, whatever the case of the name; None takes a header out."""
    for name, value in more.items():
        if value is None or isinstance(value, NotGiven):
            headers.pop(name.lower(), None)
            continue
        if not re.match(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z", name):
            raise OpenAIError("the header name %r is not valid" % name)
        if not isinstance(value, str) or not re.match(r"[\t -~]*\Z", value):
            raise OpenAIError("the value of the header %s must be text of printable ASCII, without line breaks" % name)
        headers[name.lower()] = (name, value)


def _split_base_url(base_url: str) -> Tuple[str, str]:
    """A base URL without its query, and that."""
    try:
        parts = urllib.parse.urlsplit(base_url.strip())
        host, port = parts.hostname or "", parts.port
        if not re.match(r"[!-~]*\Z", host):
            host = host.encode("idna").decode()
    except ValueError:  # its text may hold what was taken for a port
        raise OpenAIError("base_url is not a valid URL, such as %s (it is not shown here)" % DEFAULT_BASE_URL) from None
    if "@" in parts.netloc or "@" in parts.fragment:
        raise OpenAIError("base_url must not hold a user name or password: pass default_headers={'Authorization': ...}")
    if parts.scheme not in ("http", "https") or not re.match(r"[\w.:%~-]+\Z", host):
        raise OpenAIError("base_url must be http://HOST/... or https://HOST/..., such as %s, not %s"
                          % (DEFAULT_BASE_URL, parts.scheme + ":..." if parts.scheme else "a text without http://"))
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        path = path[:-len("/chat/completions")]
    netloc = ("[%s]" % host if ":" in host else host) + ("" if port is None else ":%d" % port)
    safe = "/%:@!$&'()*+,;=~-._?"
    return ("%s://%s%s" % (parts.scheme, netloc, urllib.parse.quote(path, safe=safe)),
            urllib.parse.quote(parts.query, safe=safe))


def _completion_body(messages: Any, model: Any, stream: Any, extra_body: Any, fields: Dict[str, Any]) -> Dict[str, Any]:
    """The fields of a request for a completion, looked at before anything is sent."""
    if not isinstance(model, str) or not model:
        raise TypeError("model must be the name of a model, not %r" % (model,))
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TypeError("messages must be a list such as [{'role': 'user', 'content': '...'}], not %s"
                        % type(messages).__name__)
    messages = list(messages)
    for message in messages:
        if not isinstance(message, Mapping) and not hasattr(message, "model_dump"):
            raise TypeError("each of messages must be a dict such as {'role': 'user', 'content': '...'}, not %s"
                            % type(message).__name__)
    if isinstance(fields.get("response_format"), type):
        raise TypeError("response_format must be a dict; " + _NOT_OFFERED["parse"])
    body = dict({"messages": messages, "model": model}, **fields)
    if stream is not None:
        body["stream"] = stream
    body.update(extra_body or {})
    return {name: value for name, value in body.items() if not isinstance(value, NotGiven)}


def _encode_body(body: Dict[str, Any]) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, _WireObject):
            return _plain(value, True, True)  # strict servers refuse a null where they expect nothing
        if isinstance(value, Mapping):
            return dict(value)
        if hasattr(value, "model_dump"):  # a message of the SDK's
            return value.model_dump(exclude_none=True)
        raise TypeError("%s is no JSON value" % type(value).__name__)

    try:
        return json.dumps(body, default=default, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError("the request cannot be written as JSON: %s" % error) from None


_AnyStream = TypeVar("_AnyStream", bound=_BaseStream)
_AnyClient = TypeVar("_AnyClient", bound="_BaseClient")


class _BaseClient(_HasParts):
    """What both clients are: settings, and the streams made from them."""

    def __init__(self, *, api_key: Any = None, organization: Optional[str] = None, project: Optional[str] = None,
                 base_url: Optional[str] = None, timeout: Any = DEFAULT_TIMEOUT,
                 max_retries: int = DEFAULT_MAX_RETRIES, default_headers: Optional[Mapping[str, str]] = None,
                 default_query: Optional[Mapping[str, Any]] = None, ssl_context: Any = None,
                 handlers: Sequence[urllib.request.BaseHandler] = (), deadline: Optional[float] = None,
                 **unknown: Any) -> None:
        for name in unknown:
            raise TypeError("%s() has no argument %r%s" % (
                type(self).__name__, name, ": " + _NOT_OFFERED[name] if name in _NOT_OFFERED else ""))
        self.api_key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
        self.organization = os.environ.get("OPENAI_ORG_ID") if organization is None else organization
        self.project = os.environ.get("OPENAI_PROJECT_ID") if project is None else project
        self.base_url = str(base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
        self.timeout = DEFAULT_TIMEOUT if isinstance(timeout, NotGiven) else timeout
        self.max_retries = max_retries
        self.deadline = deadline
        self._options = {"default_headers": default_headers, "default_query": default_query,
                         "ssl_context": ssl_context, "handlers": handlers}
        self._query = dict(default_query or {})
        self._headers: Dict[str, Tuple[str, str]] = {}
        _merge_headers(self._headers, {
            "Accept": "text/event-stream, application/json", "Accept-Encoding": "identity", "User-Agent": _user_agent(),
            "OpenAI-Organization": self.organization or None, "OpenAI-Project": self.project or None})
        _merge_headers(self._headers, default_headers or {})
        if not isinstance(max_retries, (int, float)) or not max_retries >= 0:
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

    @property
    def base_url(self) -> str:
        """Without its query."""
        return self._base_url

    @base_url.setter
    def base_url(self, base_url: str) -> None:
        self._base_url, self._base_query = _split_base_url(str(base_url))

    def with_options(self: _AnyClient, **changes: Any) -> _AnyClient:
        """A client with other settings that shares this one's connections."""
        settings = {name: getattr(self, name) for name in (
            "api_key", "organization", "project", "timeout", "max_retries", "deadline")}
        settings.update(self._options, base_url=self._base_url + (self._base_query and "?" + self._base_query))
        for name in ("default_headers", "default_query"):
            if changes.get(name):
                changes[name] = dict(self._options[name] or {}, **changes[name])
        client = type(self)(**dict(settings, **changes))
        if not {"base_url", "ssl_context", "handlers"} & set(changes):
            client._transport = self._transport
        return client

    copy = with_options

    def _request(self, kind: Type[_AnyStream], path: str, body: Optional[Dict[str, Any]], extra_headers: Any = None,
                 extra_query: Any = None, timeout: Any = NOT_GIVEN) -> _AnyStream:
        """A stream that has not been opened: of chunks if there is a body.  What can be wrong is found here."""
        method, data, wanted = ("GET", None, "data") if body is None else ("POST", _encode_body(body), "choices")
        query = urllib.parse.urlencode(dict(self._query, **(extra_query or {})), doseq=True)
        query = "&".join(filter(None, [self._base_query, query]))
        url = self.base_url + path + ("?" + query if query else "")
        headers = dict(self._headers)
        if data is not None:
            _merge_headers(headers, {"Content-Type": "application/json"})
        _merge_headers(headers, extra_headers or {})
        bearer = "authorization" not in headers and "authorization" not in map(str.lower, extra_headers or {})
        call = _Call(self.timeout if isinstance(timeout, NotGiven) else timeout, self.deadline)
        for name, value in [(name, value) for name, (_, value) in headers.items()] + urllib.parse.parse_qsl(query):
            if re.search("auth|key|token|secret|cookie", name.lower()):
                call.add_secrets(urllib.parse.quote(value), value.split(" ")[-1])

        def send(key: Any) -> _HTTPResponse:
            if bearer and _check_key(key):
                headers["authorization"] = ("Authorization", "Bearer " + key)
                call.add_secrets(key)
            if key or call.secrets:
                self._warn_of_plain_http()
            return self._transport.open(call, method, url, dict(headers.values()), data)

        return kind(self._transport, _Attempts(call, self.max_retries), Request(method, _bare(url)), send,
                    self.api_key if callable(self.api_key) else lambda: self.api_key, wanted,
                    body["n"] if body and isinstance(body.get("n"), int) else 1)

    def _warn_of_plain_http(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or "") and self.base_url not in _warned:
            _warned.add(self.base_url)
            import logging
            logging.getLogger("streamlite").warning(
                "credentials go to %s over plain http, where the network can read it: use https", parts.hostname)

    def __repr__(self) -> str:
        return "%s(base_url=%r)" % (type(self).__name__, self.base_url)

    @property
    def _client(self) -> Any:
        return self


class Completions(_Part):
    """`client.chat.completions`"""

    @overload
    def create(self, *, messages: Iterable[Any], model: str, stream: "Literal[True]", **fields: Any) -> Stream: ...

    @overload
    def create(self, *, messages: Iterable[Any], model: str, stream: "Optional[Literal[False]]" = None,
               **fields: Any) -> ChatCompletion: ...

    def create(self, *, messages: Iterable[Any], model: str, stream: Optional[bool] = None, extra_headers: Any = None,
               extra_query: Any = None, extra_body: Any = None, timeout: Any = NOT_GIVEN,
               **fields: Any) -> Union[Stream, ChatCompletion]:
        """Ask for a completion; every other argument goes into the request as it is.

        messages: dicts, or messages of earlier replies
        stream:   True returns a `Stream` as soon as the server answers; else the whole `ChatCompletion`
        extra_headers, extra_query, extra_body: added to those of the client, and to the fields
        timeout:  seconds, as in `OpenAI`

        Raises TypeError for arguments that cannot be sent, OpenAIError for a key or header that cannot be, and the
        tree under APIError for what server and network do.
        Source: https://platform.openai.com/docs/api-reference/chat/create
        """
        body = _completion_body(messages, model, stream, extra_body, fields)
        result: Stream = self._client._request(
            Stream, "/chat/completions", body, extra_headers, extra_query, timeout)
        if not body.get("stream"):
            return result.collect()
        result._attempts.run(lambda: result._attempt(read=False))
        return result


class Chat(_Part):
    """`client.chat`"""

    _parts = {"completions": Completions}
    completions: Completions


class Models(_Part):
    """`client.models`"""

    def list(self, *, extra_headers: Any = None, extra_query: Any = None, timeout: Any = NOT_GIVEN) -> ModelPage:
        """What the server serves."""
        stream = self._client._request(Stream, "/models", None, extra_headers, extra_query, timeout)
        stream._attempts.run(stream._drain)
        return _wire(ModelPage, stream._reader.found)


class OpenAI(_BaseClient, _Closing):
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

    _parts = {"chat": Chat, "models": Models}
    chat: Chat
    models: Models

    def close(self) -> None:
        """Close the connections that are kept for later."""
        self._transport.close()


# ----------------------------------------------------------------------------------------------------------------------
# Asynchronous clients: the same streams.  A thread opens each (urllib's way is synchronous), then the loop reads the
# body as it comes; on loops that cannot watch a socket (Windows' proactor) a thread reads, too.
# ----------------------------------------------------------------------------------------------------------------------

class _Workers:
    """Daemon threads that are there while there is work.  None is started while some are busy: a thousand streams
    opened at once would else fight each other, and the loop, for the interpreter.  Who waits for the network is not
    busy.

    asyncio's default executor is not used: streams that wait would starve whatever else needs it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pid = os.getpid()
        self._busy = 0
        self._jobs: Deque[Callable[..., None]] = collections.deque()
        self._lock = threading.Lock()

    def run(self, job: Callable[..., None]) -> None:
        """Call `job` in a thread, or with the error that prevents that."""
        if self._pid != os.getpid():
            self.__init__(self._limit)  # type: ignore[misc]  # forked: the threads stayed with the parent
        self._jobs.append(job)
        self.count(0)

    def count(self, busy: int) -> None:
        """So many more workers are busy, or fewer: then another one may start."""
        with self._lock:
            self._busy += busy
            if not self._jobs or self._busy >= self._limit:
                return
            self._busy += 1
            job = self._jobs.popleft()
        try:
            threading.Thread(target=job, name="streamlite", daemon=True).start()
        except RuntimeError as error:
            job(error)


_workers = _Workers(2)


async def _in_thread(call: _Call, function: Callable[..., Any], *args: Any) -> Any:
    """Await a blocking function.  Cancelling ends it too, by cutting the call's connection."""
    import asyncio
    loop = asyncio.get_event_loop()
    future = loop.create_future()
    waiting = [False]

    def waits(begin: bool) -> None:
        if begin != waiting[0]:
            waiting[0] = begin
            _workers.count(-1 if begin else 1)

    def job(error: Optional[BaseException] = None) -> None:
        result, failure = None, error
        call.waits = waits
        try:
            if failure is None:
                result = function(*args)
        except BaseException as raised:  # for the one who waits
            failure = raised
        waits(True)  # for good
        try:
            loop.call_soon_threadsafe(_settle, future, result, failure)
        except RuntimeError:  # the loop was closed meanwhile
            call.cancel()

    _workers.run(job)
    try:
        return await future
    except RuntimeError as error:
        raise APIConnectionError(message="no thread can be started to open a stream: %s" % error) from error
    except asyncio.CancelledError:
        call.cancel()
        raise


def _settle(future: Any, result: Any = None, failure: Optional[BaseException] = None) -> None:
    if not future.done():
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)


class _AsyncClosing:
    """`async with` closes it."""

    async def __aenter__(self: _T) -> _T:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self.close()  # type: ignore[attr-defined]


class AsyncStream(_BaseStream, _AsyncClosing):
    """`Stream` with `async for`, `async with` and `await`; cancelling the task that uses it ends the connection."""

    _loop: Any = None
    _waiter: Any = None
    _watched = -1  # the descriptor that the loop watches
    _task: Any = None
    _done: Any = None

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        self._iterated = True
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            await self._run(self._attempt)
        return self._take()

    async def text(self) -> AsyncIterator[str]:
        """Iterate the text of choice 0, without empty pieces."""
        async for chunk in self:
            text = _chunk_text(chunk)
            if text:
                yield text

    async def collect(self) -> ChatCompletion:
        """As `Stream.collect`."""
        if not self._iterated and not self._over:
            await self._run(self._drain)
        async for _ in self:
            pass
        return self.completion

    async def sse(self) -> AsyncIterator[bytes]:
        """As `Stream.sse`."""
        try:
            async for chunk in self:
                yield encode_sse(chunk.to_json(indent=None))
            yield encode_sse("[DONE]")
        except APIError as error:
            yield _encode_error(error)
        finally:
            self._cut()

    async def close(self) -> None:
        """End the connection at once."""
        self._cut()

    aclose = close

    async def _run(self, attempt: Callable[[], Any]) -> None:
        """What _Attempts.run does; and cancelling it cuts the connection."""
        import asyncio
        self._watch_task()
        try:
            while True:
                try:
                    return cast(None, await attempt())
                except APIError as error:
                    await self._wait(time.monotonic() + self._attempts.delay(error))
        except asyncio.CancelledError:
            self._cut()
            raise

    async def _attempt(self, read: bool = True) -> None:
        import asyncio
        try:
            if self._http is None:
                key = self._key()
                if hasattr(key, "__await__"):
                    left = self._call.deadline - time.monotonic()
                    try:
                        key = await asyncio.wait_for(key, None if left == math.inf else left)
                    except asyncio.TimeoutError as error:
                        raise APITimeoutError(message="the deadline passed while api_key was asked") from error
                await _in_thread(self._call, self._connect, key)
            if read:
                self._start_wait()
            while read and not self._settled():
                data = self._receive(wait=False)
                if data is None:
                    await self._wait_for_data()
                else:
                    self._absorb(data)
                    await asyncio.sleep(0)  # a server faster than we are must not keep the loop from other work
        except APIError as error:
            self._fail(error)
            raise

    async def _drain(self) -> None:
        while not self._over:
            await self._attempt()
            while self._ready:
                self._take(seen=False)

    async def _wait_for_data(self) -> None:
        try:
            await self._wait(self._call.until, cast(_HTTPResponse, self._http).reader.sock.fileno())
        except NotImplementedError:  # Windows' proactor loop

            def read() -> Optional[bytes]:
                self._call.waits(True)  # from the start
                return self._receive()

            self._absorb(await _in_thread(self._call, read))

    async def _wait(self, until: float, descriptor: int = -1) -> None:
        """Until then, on the clock of time.monotonic(); or until `descriptor` has something to read; or `close`."""
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("another task reads this stream already")
        waiter = self._waiter = self._loop.create_future()
        timer = None
        try:
            if descriptor >= 0:
                self._loop.add_reader(descriptor, _settle, waiter)
                self._watched = descriptor
            if until < math.inf:
                timer = self._loop.call_later(max(0.0, until - time.monotonic()), _settle, waiter)
            await waiter
        finally:
            if not self._loop.is_closed():
                self._unwatch()
                waiter.cancel()
                if timer is not None:
                    timer.cancel()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1

    def _cut(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._unwatch()
            if self._waiter is not None:
                _settle(self._waiter)
        self._release_task()
        super()._cut()

    def _finish(self, why: str) -> None:
        self._release_task()
        super()._finish(why)

    def _watch_task(self) -> None:
        """A task cancelled in the body of `async for` never comes back here, and its traceback keeps us alive."""
        import asyncio
        self._loop = asyncio.get_event_loop()
        if sys.version_info >= (3, 7):
            task = asyncio.current_task()
        else:
            task = asyncio.Task.current_task()
        if task is not None and task is not self._task:
            self._release_task()
            this = weakref.ref(self)

            def done(task: Any) -> None:
                stream = this()
                if stream is not None and task.cancelled():
                    stream._cut()

            self._task, self._done = task, done
            task.add_done_callback(done)

    def _release_task(self) -> None:
        if self._task is not None:
            self._task.remove_done_callback(self._done)
            self._task = None


class AsyncCompletions(_Part):
    """`client.chat.completions`"""

    @overload
    async def create(self, *, messages: Iterable[Any], model: str, stream: "Literal[True]",
                     **fields: Any) -> AsyncStream: ...

    @overload
    async def create(self, *, messages: Iterable[Any], model: str, stream: "Optional[Literal[False]]" = None,
                     **fields: Any) -> ChatCompletion: ...

    async def create(self, *, messages: Iterable[Any], model: str, stream: Optional[bool] = None,
                     extra_headers: Any = None, extra_query: Any = None, extra_body: Any = None,
                     timeout: Any = NOT_GIVEN, **fields: Any) -> Union[AsyncStream, ChatCompletion]:
        """As `Completions.create`; with stream=True it returns an `AsyncStream`."""
        body = _completion_body(messages, model, stream, extra_body, fields)
        result: AsyncStream = self._client._request(
            AsyncStream, "/chat/completions", body, extra_headers, extra_query, timeout)
        if not body.get("stream"):
            return await result.collect()
        await result._run(lambda: result._attempt(read=False))
        return result


class AsyncChat(_Part):
    """`client.chat`"""

    _parts = {"completions": AsyncCompletions}
    completions: AsyncCompletions


class AsyncModels(_Part):
    """`client.models`"""

    async def list(self, *, extra_headers: Any = None, extra_query: Any = None, timeout: Any = NOT_GIVEN) -> ModelPage:
        """What the server serves."""
        stream = self._client._request(AsyncStream, "/models", None, extra_headers, extra_query, timeout)
        await stream._run(stream._drain)
        return _wire(ModelPage, stream._reader.found)


class AsyncOpenAI(_BaseClient, _AsyncClosing):
    """`OpenAI` with `await`; `api_key` may be a coroutine function, too."""

    _parts = {"chat": AsyncChat, "models": AsyncModels}
    chat: AsyncChat
    models: AsyncModels

    async def close(self) -> None:
        """Close the connections that are kept for later."""
        self._transport.close()


Client, AsyncClient = OpenAI, AsyncOpenAI  # the SDK has both names


# ======================================================================================================================
# The library ends here.  What follows runs only under `python -m streamlite`, or where a DemoServer is made.
# ======================================================================================================================

# ----------------------------------------------------------------------------------------------------------------------
# Demo server
# ----------------------------------------------------------------------------------------------------------------------

class DemoServer(_Closing):
    """A small OpenAI-compatible server on 127.0.0.1: to try this file without key and network, and to test programs.

        with DemoServer() as server:
            client = OpenAI(base_url=server.base_url, api_key="any")

    It streams, or replies as a whole; calls the first of `tools`, counts words as tokens, obeys max_tokens, n and
    stream_options.  Any model name is served, but some misbehave, to rehearse it: "demo-rate-limit" (429 to every other
    request), "demo-error" (an error in the middle of the stream), "demo-lost" (the connection breaks there),
    "no-such-model" (404).  The key "wrong" is refused (401).

    delay:  seconds between two words
    active: replies under way
    """

    models = ("demo", "demo-rate-limit", "demo-error", "demo-lost")

    def __init__(self, port: int = 0, delay: float = 0.03) -> None:
        from socketserver import ThreadingTCPServer  # HTTPServer would look up the machine's name

        class Server(ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                work = (threading.current_thread(), request)
                connections.add(work)
                super().process_request_thread(request, client_address)
                connections.discard(work)

            def handle_error(self, request: Any, client_address: Any) -> None:
                _log("debug", "demo server: %s", sys.exc_info()[1])

        connections = self._connections = set()  # type: Set[Tuple[threading.Thread, socket.socket]]
        self.delay = delay
        self.replies: Set[Any] = set()
        self.limited = False
        self._server = Server(("127.0.0.1", port), _demo_handler(self))
        self.base_url = "http://127.0.0.1:%d/v1" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        return len(self.replies)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for thread, connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            thread.join(1.0)


def _demo_reply(request: Dict[str, Any]) -> Tuple[List[Dict[str, Any]], str]:
    """The deltas of an answer, and its finish_reason."""
    said = request["messages"][-1]
    words = _text_parts(said.get("content"))[0]
    if request.get("tools") and said["role"] != "tool":
        function = request["tools"][0]["function"]
        names = (function.get("parameters") or {}).get("required") or ()
        arguments = json.dumps({name: (re.findall(r"\w+", words) or [""])[-1] for name in names})
        fragments = [{"name": function["name"], "arguments": ""}] + [
            {"arguments": arguments[i:i + 8]} for i in range(0, len(arguments), 8)]
        calls: List[Dict[str, Any]] = [{"index": 0, "function": fragment} for fragment in fragments]
        calls[0].update(id="call_demo", type="function")
        return [{"tool_calls": [call]} for call in calls], "tool_calls"
    text = "The tool answered: " + words if said["role"] == "tool" else (
        "This is streamlite's demo server, not a language model: it streams these words, each in a server-sent event "
        "of its own, as a model's server would. You wrote: " + words)
    tokens = re.findall(r"\s*\S+|\s+", text)
    limit = int(request.get("max_completion_tokens") or request.get("max_tokens") or len(tokens))
    return [{"content": token} for token in tokens[:limit]], "stop" if len(tokens) <= limit else "length"


def _demo_handler(demo: DemoServer) -> Any:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                return self.refuse(404, "There is nothing at %s." % self.path, "not_found")
            self.reply(200, {"object": "list", "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": "streamlite"} for name in demo.models]})

        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])).decode())
                model, _ = request["model"], int(request.get("n") or 1)
                deltas, reason = _demo_reply(request)
                if self.path.split("?")[0] != "/v1/chat/completions":
                    return self.refuse(404, "There is nothing at %s." % self.path, "not_found")
            except (ValueError, LookupError, TypeError, AttributeError):
                return self.refuse(400, "This is not a chat completion request.", "invalid_request_error")
            demo.limited = model == "demo-rate-limit" and not demo.limited
            if self.headers["Authorization"] == "Bearer wrong":
                return self.refuse(401, "Incorrect API key provided.", "invalid_api_key")
            if model == "no-such-model":
                return self.refuse(404, "The model %s does not exist." % model, "model_not_found")
            if demo.limited:
                return self.refuse(429, "Rate limit reached; the next request will pass.", "rate_limit_exceeded")
            demo.replies.add(self)
            try:
                self.answer(request, deltas, reason)
            except OSError:
                self.close_connection = True  # the client has gone: stop working for it
            finally:
                demo.replies.discard(self)

        def answer(self, request: Dict[str, Any], deltas: List[Dict[str, Any]], reason: str) -> None:
            base = {"id": "chatcmpl-demo", "created": int(time.time()), "model": request["model"]}
            usage = {"prompt_tokens": sum(len(_text_parts(said.get("content"))[0].split())
                                          for said in request["messages"]), "completion_tokens": len(deltas)}
            usage["total_tokens"] = sum(usage.values())
            indices = range(int(request.get("n") or 1))
            if deltas:
                deltas[0]["role"] = "assistant"
            chunks = [dict(base, object="chat.completion.chunk", choices=[
                {"index": i, "delta": dict(delta), "finish_reason": None if delta else reason}])
                for delta in deltas + [{}] for i in indices]
            if not request.get("stream"):
                whole = Accumulator()
                for chunk in chunks:
                    whole.add(_wire(ChatCompletionChunk, chunk))
                return self.reply(200, dict(whole.completion.to_dict(), usage=usage))
            if (request.get("stream_options") or {}).get("include_usage"):
                chunks.append(dict(base, object="chat.completion.chunk", choices=[], usage=usage))
            self.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
            for at, chunk in enumerate(chunks):
                if at == len(chunks) // 2 and request["model"] == "demo-lost":
                    raise OSError("the connection breaks here")
                if at == len(chunks) // 2 and request["model"] == "demo-error":
                    self.event(json.dumps({"error": {"message": "The demo model fails here.", "type": "server_error"}}))
                    break
                self.event(json.dumps(chunk))
                time.sleep(demo.delay)
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def event(self, data: str) -> None:
            event = encode_sse(data)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

        def refuse(self, status: int, message: str, code: str) -> None:
            self.reply(status, {"error": {"message": message, "type": "demo_error", "param": None, "code": code}})

        def reply(self, status: int, fields: Any) -> None:
            body = json.dumps(fields).encode()
            self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(body))})
            self.wfile.write(body)

        def head(self, status: int, headers: Dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("x-request-id", "req-demo")
            if status == 429:
                self.send_header("retry-after-ms", "100")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            _log("debug", "demo server: " + format, *args)

    return Handler


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------

DEFAULT_MODEL = "gpt-4o-mini"  # for OpenAI's own address
EX_TEMPFAIL = 75               # sysexits.h: trying again may help

_HELP = '''\
usage: python -m streamlite [options] [prompt ...]

Streams a chat completion. Piped text goes before the prompt; - is that alone.

  -m, --model NAME    else OPENAI_MODEL, else the only one the server has
  -s, --system TEXT   the system message
  -o KEY=VALUE        any field of the request; VALUE may be JSON, or @FILE
  --chat              a conversation; /model /system /reset /exit, """ for lines
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
  git diff | python -m streamlite -o temperature=0 "Sum this up"
  python -m streamlite --base-url http://localhost:11434/v1 --chat
'''


class _Console:
    """Standard output for the answer, standard error for all else; a terminal gets no control characters of others."""

    def __init__(self) -> None:
        self.person = sys.stderr is not None and sys.stderr.isatty()  # who sees reasoning and the sign of waiting
        color = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and os.name != "nt"
        self._dim = ("\x1b[2m", "\x1b[0m") if color else ("", "")
        self._unended: Any = None  # the stream whose last line has no end
        self._waiting = False

    def write(self, stream: Any, text: str, style: Tuple[str, str] = ("", "")) -> None:
        """Write at once; what the stream cannot encode becomes a question mark."""
        if stream is None or not text:
            return
        self.wait(False)
        if self._unended not in (None, stream):
            self.end_line()
        if stream.isatty():
            text = re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f]", "", text)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(style[0] + _well_formed(text).encode(encoding, "replace").decode(encoding) + style[1])
        stream.flush()
        self._unended = None if text.endswith("\n") else stream

    def answer(self, text: str) -> None:
        self.write(sys.stdout, text)

    def tell(self, text: str) -> None:
        self.end_line()
        self.write(sys.stderr, text + "\n")

    def reason(self, text: str) -> None:
        self.write(sys.stderr if self.person else None, text, self._dim)

    def end_line(self) -> None:
        stream, self._unended = self._unended, None
        self.write(stream, "\n")

    def wait(self, begin: bool) -> None:
        """A small sign until the first token."""
        if self.person and begin != self._waiting:
            self._waiting = begin
            sys.stderr.write("..." if begin else "\r   \r")
            sys.stderr.flush()


def _parse_arguments(argv: Optional[Sequence[str]]) -> Any:
    import argparse
    parser = argparse.ArgumentParser(
        prog="python -m streamlite", add_help=False, allow_abbrev=False, usage="%(prog)s [options] [prompt ...]")
    parser.add_argument("prompt", nargs="*")
    parser.add_argument("-m", "--model", default=os.environ.get("OPENAI_MODEL"))
    parser.add_argument("-s", "--system")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE")
    for names in (["--chat"], ["--json"], ["--no-stream"], ["--usage"], ["--models"], ["--demo"], ["-v", "--verbose"],
                  ["-h", "--help"]):
        parser.add_argument(*names, action="store_true")
    for name in ("--base-url", "--key-env", "--cacert"):
        parser.add_argument(name)
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT)
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--retries", type=int, default=DEFAULT_MAX_RETRIES)
    parser.add_argument("--version", action="version", version="streamlite " + __version__)
    args, more = parser.parse_known_args(argv)
    unknown = [word.split("=")[0] for word in more if word.startswith("-") and word != "-"]
    if unknown:  # without their values: it might be a key
        names = [word for word in unknown if re.match("-[A-Za-z-]+$", word)]
        parser.error("unrecognized: %s; see --help" % " ".join(names))
    args.prompt += more  # words behind an option
    args.fields = {}
    for option in args.options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            parser.error("-o takes KEY=VALUE, not %r" % option)
        try:
            if value.startswith("@"):
                with io.open(value[1:], encoding="utf-8-sig") as file:
                    value = file.read()
        except (OSError, UnicodeError) as error:
            parser.error("-o %s: %s" % (option, error))
        try:
            args.fields[name] = json.loads(value)
        except ValueError:
            args.fields[name] = value  # a plain text
        except RecursionError:
            parser.error("-o %s: the value is nested too deeply" % name)
    if args.key_env and args.key_env not in os.environ:
        named = re.match("[A-Z][A-Z0-9_]*$", args.key_env)  # else it may be the key itself
        parser.error("--key-env: there is no environment variable %s" % (args.key_env if named else "of this name"))
    return args


class _Command:
    """One run of `python -m streamlite`; what returns an int returns the exit code."""

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
        prompt = "\n\n".join(filter(None, [self.read_stdin().rstrip("\n"), words]))
        if not prompt:
            self.console.write(sys.stderr, _HELP)
            return 2
        return self.ask([{"role": "user", "content": prompt}])

    def read_stdin(self) -> str:
        """What is piped in; a slow pipe is waited for, with a word."""
        if sys.stdin is None or sys.stdin.isatty() and "-" not in self.args.prompt:
            return ""
        timer = threading.Timer(3.0, self.console.tell, ["waiting for the end of standard input (< /dev/null if none)"])
        timer.daemon = True
        timer.start()
        try:
            return sys.stdin.buffer.read().decode("utf-8-sig", "replace")
        finally:
            timer.cancel()

    def find_model(self) -> str:
        if self.client.base_url == DEFAULT_BASE_URL:
            return DEFAULT_MODEL
        names = [model.id for model in self.client.models.list()]
        if len(names) != 1:
            raise OpenAIError("name a model with -m; the server has: " + (", ".join(names) or "none"))
        return names[0]

    def ask(self, messages: List[Any]) -> int:
        """Stream the answer to `messages` onto the screen and into `completion`."""
        self.completion = None
        if self.args.system:
            messages = [{"role": "system", "content": self.args.system}] + messages
        fields = {"messages": messages, "stream": not self.args.no_stream}
        if self.args.usage and not self.args.no_stream:
            fields["stream_options"] = {"include_usage": True}
        fields.update(self.args.fields)
        try:
            self.console.wait(True)
            self.args.model = self.args.model or self.find_model()
            fields.setdefault("model", self.args.model)
            try:
                self.answer(fields)
            except (BadRequestError, UnprocessableEntityError) as error:
                if "stream_options" not in str(error) or "stream_options" in self.args.fields:
                    raise  # else a server that does not know the field
                self.answer({name: value for name, value in fields.items() if name != "stream_options"})
            return 0
        except OpenAIError as error:
            self.completion = error.partial
            return self.fail(error)
        finally:
            self.console.wait(False)
            self.console.end_line()

    def answer(self, fields: Dict[str, Any]) -> None:
        body = _completion_body(fields["messages"], fields["model"], fields["stream"], None, fields)
        with self.client._request(Stream, "/chat/completions", body) as stream:
            try:
                if self.args.json and self.args.no_stream:
                    self.console.answer(stream.collect().to_json(indent=None) + "\n")
                for chunk in stream:
                    if self.args.json:
                        self.console.answer(chunk.to_json(indent=None) + "\n")
                        continue
                    for choice in chunk.choices[:1]:
                        self.console.reason(_reasoning_text(choice.delta))
                    self.console.answer(_chunk_text(chunk))
            finally:
                self.completion = stream.completion
            self.finish(stream, stream.completion)

    def finish(self, stream: Stream, completion: ChatCompletion) -> None:
        for choice in completion.choices[:1]:
            for call in choice.message.tool_calls or () if not self.args.json else ():
                self.console.end_line()
                self.console.answer(call.to_json(indent=None) + "\n")
            if choice.finish_reason in ("length", "content_filter"):
                self.console.tell("(cut short by the %s)" % (
                    "token limit" if choice.finish_reason == "length" else "content filter"))
        if self.args.usage or self.args.verbose:
            usage, first = completion.usage, stream.time_to_first_token or 0.0
            text = "first token after %.2f s, all after %.2f s" % (first, stream.elapsed)
            if usage and usage.completion_tokens:
                rate = usage.completion_tokens / max(stream.elapsed - first, 1e-6)
                text = "%s + %s tokens; %s, %.1f tokens/s" % (usage.prompt_tokens, usage.completion_tokens, text, rate)
            self.console.tell(text if usage else "no usage was sent; " + text)

    def fail(self, error: OpenAIError) -> int:
        """One line that says what to do."""
        text = " ".join(str(error).split())
        request_id = getattr(error, "request_id", None)
        if request_id:
            text += " [request id %s]" % request_id
        if error.retry_after:
            text += "; try again in %d s" % math.ceil(error.retry_after)
        if isinstance(error, NotFoundError):
            try:
                models = self.client.with_options(max_retries=0, timeout=PATIENCE).models.list()
                text += "; the server has: " + ", ".join(model.id for model in models.data[:20])
            except OpenAIError:
                pass
        try:
            if self.args.json:
                kind = getattr(error, "type", None) or type(error).__name__
                self.console.answer(_dump_json({"error": {
                    "message": text, "type": kind, "code": getattr(error, "code", None)}}) + "\n")
            self.console.tell("streamlite: " + text)
        except BrokenPipeError:
            pass  # it failed all the same
        return EX_TEMPFAIL if _is_transient(error) else 1

    def chat(self) -> int:
        try:
            import readline  # noqa: F401  # line editing and history
        except ImportError:
            pass
        history: List[Any] = []
        first: Optional[str] = " ".join(self.args.prompt)
        code, stopped = 0, False
        while True:
            try:
                line, first = first or self.read_message(), None
                stopped = False
                if line is None or line.split(" ")[0] in ("/exit", "/quit", "/bye"):
                    return code
                if line.startswith("/") and "\n" not in line:
                    history = self.obey(history, *line[1:].partition(" ")[::2])
                elif line.strip():
                    history.append({"role": "user", "content": line})
                    code = self.ask(history)
                    self.remember(history)
            except KeyboardInterrupt:
                self.console.tell("")
                if history and history[-1]["role"] == "user":
                    self.remember(history)  # it was the answer that was stopped
                elif stopped:
                    return 130
                else:
                    stopped = True

    def obey(self, history: List[Any], command: str, value: str) -> List[Any]:
        if command == "reset":
            return []
        if command in ("model", "system"):
            setattr(self.args, command, value.strip() or None)
        else:
            self.console.tell('/model NAME, /system TEXT, /reset, /exit; """ begins and ends several lines')
        return history

    def remember(self, history: List[Any]) -> None:
        """Keep what was answered; forget a question that was not."""
        message = self.completion.choices[0].message if self.completion and self.completion.choices else None
        if message and (message.content or message.tool_calls):
            history.append(message.to_dict(exclude_none=True))
        else:
            history.pop()

    def read_message(self) -> Optional[str]:
        """A line, or several between triple quotes; None at the end of the input."""
        prompt = "> " if sys.stdin.isatty() else ""
        try:
            line = input(prompt)
            if line.strip().startswith('"""'):
                line = line.strip()[3:]
                while not line.rstrip().endswith('"""'):
                    line += "\n" + input(prompt and ". ")
                line = line.rstrip()[:-3].strip("\n")
            return line
        except UnicodeDecodeError:
            self.console.tell("streamlite: standard input is not %s text" % sys.stdin.encoding)
            return None
        except EOFError:
            if prompt:
                self.console.tell("")
            return None


def _run(args: Any, console: _Console) -> int:
    if args.help:
        console.answer(_HELP)
        return 0
    if not (args.prompt or args.models or args.chat) and (sys.stdin is None or sys.stdin.isatty()):
        console.write(sys.stderr, _HELP)
        return 2
    if args.verbose:
        import logging
        handler = logging.StreamHandler()
        handler.emit = lambda record: console.tell(handler.format(record))  # type: ignore[method-assign]
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", handlers=[handler])
    if args.cacert:
        os.environ["SSL_CERT_FILE"] = args.cacert
    settings: Dict[str, Any] = {"timeout": args.timeout, "deadline": args.deadline, "max_retries": args.retries}
    demo = DemoServer() if args.demo else None
    if args.demo:
        args.base_url, args.model = demo and demo.base_url, args.model or "demo"
    if args.base_url:  # an address of the command line gets no credentials of the environment
        settings.update(base_url=args.base_url, api_key="", organization="", project="")
    if args.key_env:
        settings["api_key"] = os.environ[args.key_env]
    try:
        with OpenAI(**settings) as client:
            command = _Command(args, console, client)
            try:
                return command.run()
            except OpenAIError as error:
                return command.fail(error)
    except (OpenAIError, TypeError) as error:
        keyless = args.base_url and not args.key_env and "API key" in str(error)
        console.tell("streamlite: %s%s" % (error, "; with --base-url, name it with --key-env" if keyless else ""))
        return 1 if isinstance(error, OpenAIError) else 2
    finally:
        if demo:
            demo.close()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit code."""
    console = _Console()
    code = 0
    try:
        try:
            code = _run(_parse_arguments(argv), console)
        except KeyboardInterrupt:
            code = 130
            console.end_line()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError as error:
        # Who read from a pipe has seen enough: that is no failure, nor does it hide one.  A full disk is.
        if not isinstance(error, BrokenPipeError) and os.name != "nt":
            code = code or 1
            console.tell("streamlite: the output cannot be written: %s" % error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


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
    sys.exit(main())
