#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Stream chat completions from any OpenAI-compatible server with Python's standard library alone.

Copy this file; a program written for the official SDK runs with its import lines changed:

    from streamlite import OpenAI

    client = OpenAI()             # OPENAI_API_KEY and OPENAI_BASE_URL, or api_key= and base_url=
    with client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "Say hello."}],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content, end="", flush=True)
    print(stream.completion.usage)          # what was streamed, in the shape of a whole reply

From a shell: python3 -m streamlite --demo "Explain server-sent events"

What this file reads, opens and contacts:

    environment   OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID; for Azure
                  AZURE_OPENAI_API_KEY, AZURE_OPENAI_AD_TOKEN, AZURE_OPENAI_ENDPOINT,
                  OPENAI_API_VERSION; certificates: SSL_CERT_FILE, SSL_CERT_DIR,
                  REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE; proxies, as urllib reads them: HTTP_PROXY,
                  HTTPS_PROXY, NO_PROXY, REQUEST_METHOD; the command alone: OPENAI_MODEL,
                  NO_COLOR, TERM, PYTHONIOENCODING, and what --key-env and -H name
    files         certificates, for reading; the command alone: what -o KEY=@FILE and --cacert name,
                  in --chat readline's ~/.inputrc
    settings      the system's for proxies and certificates, where no variable names others
    hosts         the one of base_url, or the proxy before it; DemoServer listens on 127.0.0.1
    never         writes a file, starts a process, checks for updates, follows a redirect to
                  another origin, sends a key anywhere but to base_url; the synchronous client
                  starts no thread

A reply is a pull pipeline of generators.  Each stage knows the one before it and does no I/O:

    bytes received -> _framed -> _inflated -> _payloads -> _answer -> chunks -> your loop

What is wrong is raised where it is known, and so comes after all that preceded it.  Where nothing
has come yet, b"" or None passes through every stage to whoever drives the pipeline, and he waits.

The states of a stream, and who sets each:

    unopened    the constructor
    streaming   _begin, with an attempt; a retry is a new attempt
    whole       _finish, when _answer says so (or the list of models was read)
    failed      _retry, when there is to be no other attempt; _interrupt; _cut, which is close()

Where to find what (the sections follow in this order):

    Errors                what can be raised, and what every error carries
    Wire objects          the classes of the protocol
    Server-sent events    SSEDecoder and encode_sse
    Answers               _answer judges whether a reply is whole (_objects: one that was sent as a
                          whole); _Door mends chunks, _next_payload and _choices_by_position what
                          is around them
    Accumulation          chunks become a ChatCompletion; _ToolCalls tells tool calls apart
    Bodies                chunked coding, Content-Length, gzip
    Transport             _Call keeps the time, _Secrets hides keys, _Connection.fill receives,
                          _Pool.release keeps connections and _Pool.claim gives them out again,
                          _Transport.open sends a request
    Retries               the policy, _retry_wait
    Streams               Stream; _BaseStream._retry decides whether to ask again, _complete
                          completes every error
    Clients               OpenAI, AzureOpenAI, and the checks of what the caller passes
    Asynchronous clients  AsyncOpenAI: the same with asyncio; nothing above knows it
    Demo server           DemoServer
    Command line          python -m streamlite
    Licence               MIT

Runs on Python 3.6.1 and newer.
"""

import collections
import contextlib
import copy
import copyreg
import errno
import functools
import http.client
import io
import itertools
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
import zlib
from typing import (TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Deque, Dict, FrozenSet,
                    Generator, Generic, Iterable, Iterator, List, Mapping, NamedTuple, NoReturn,
                    Optional, Sequence, Set, Tuple, Type, TypeVar, Union, cast, overload)

try:
    import ssl
except ImportError:  # Some embedded Pythons have none; plain http still works.
    ssl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing import Literal

__version__ = "1.1"
__all__ = [
    "OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI", "Client", "AsyncClient", "Stream",
    "AsyncStream", "NOT_GIVEN", "NotGiven", "Timeout", "Omit", "omit", "not_given", "OpenAIError",
    "APIError", "APIConnectionError", "APITimeoutError", "APIStatusError",
    "APIResponseValidationError", "BadRequestError", "AuthenticationError",
    "PermissionDeniedError", "NotFoundError", "ConflictError", "UnprocessableEntityError",
    "RateLimitError", "InternalServerError", "LengthFinishReasonError",
    "ContentFilterFinishReasonError", "Request", "Response", "ServerSentEvent", "SSEDecoder",
    "encode_sse", "Accumulator", "DemoServer", "ChatCompletionChunk", "Choice", "ChoiceDelta",
    "ChoiceDeltaToolCall", "ChoiceDeltaToolCallFunction", "ChatCompletion", "CompletionChoice",
    "ChatCompletionMessage", "ChatCompletionMessageToolCall", "Function", "FunctionCall",
    "ChatCompletionAudio", "ChoiceLogprobs", "ChatCompletionTokenLogprob", "TopLogprob",
    "CompletionUsage", "PromptTokensDetails", "CompletionTokensDetails", "Model", "ModelPage",
    "ChatModel", "ChatCompletionReasoningEffort", "ChatCompletionMessageFunctionToolCall",
    "ChatCompletionMessageToolCallUnion", "ChatCompletionMessageParam",
    "ChatCompletionSystemMessageParam", "ChatCompletionDeveloperMessageParam",
    "ChatCompletionUserMessageParam", "ChatCompletionAssistantMessageParam",
    "ChatCompletionToolMessageParam", "ChatCompletionFunctionMessageParam",
    "ChatCompletionContentPartParam", "ChatCompletionContentPartTextParam",
    "ChatCompletionContentPartImageParam", "ChatCompletionContentPartInputAudioParam",
    "ChatCompletionToolParam", "ChatCompletionToolUnionParam", "ChatCompletionFunctionToolParam",
    "ChatCompletionMessageToolCallParam", "ChatCompletionMessageToolCallUnionParam",
    "ChatCompletionMessageFunctionToolCallParam", "ChatCompletionToolChoiceOptionParam",
    "ChatCompletionNamedToolChoiceParam", "ChatCompletionStreamOptionsParam",
    "CompletionCreateParams", "FunctionDefinition", "FunctionParameters", "ResponseFormat", "main"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_TIMEOUT = (5.0, 600.0)  # Seconds to connect, and to wait for the next event: the SDK's.
DEFAULT_MAX_RETRIES = 2         # The SDK's.

# What the other side may make us hold, and wait for.
MAX_EVENT = 16 * 1024 * 1024    # A line, an event or a whole reply; base64 images reach 10 MB.
MAX_DEPTH = 64                  # Objects and lists in one another; replies have about ten.
MAX_CHOICES = 1024              # Choices in an event, and tool calls in a choice of it.
MAX_OBJECTS = 1000000           # Objects and lists in an event; each takes sixty times its text.
MAX_TURN = 256                  # Chunks, before the clock is looked at though nothing waits.
MAX_INFLATED = 1 << 30          # A whole body after gzip or deflate,
MAX_RATIO = 256                 # and, beyond its first MiB, so many times what was received.
MAX_HEADERS = 256 * 1024        # A header block with interim answers, or trailers; nginx: 32 KiB.
MAX_CHUNK_LINE = 16 * 1024      # A chunk's size with its extensions; llhttp allows as much.
MAX_ERROR_BODY = 64 * 1024      # Of an error reply; what is beyond is not read.
MAX_IDLE = 16                   # Connections kept for later,
IDLE_SECONDS = 30.0             # so long: firewalls forget idle ones silently from one minute on.
PATIENCE = 5.0                  # Seconds for an error's body, or for the end of a finished stream.
MAX_RETRY_AFTER = 120.0         # A server that asks for more than these seconds gets no retry.
FIRST_BACK_OFF = 0.5            # Seconds before the first retry; doubled with each one
LAST_BACK_OFF = 8.0             # up to these: the SDK's.


def _log(level: str, message: str, *values: object) -> None:
    """Log to the "streamlite" logger.

    Nobody listens who has not imported logging, and importing it takes a third of our own time.
    """
    logging = sys.modules.get("logging")
    if logging is not None:
        getattr(logging.getLogger("streamlite"), level)(message, *values)


# --------------------------------------------------------------------------------------------------
# Errors
#
# The SDK's tree.  Whatever a server or a network does, one of these is raised and nothing else.
# --------------------------------------------------------------------------------------------------

class Request(NamedTuple):
    """What was asked, without headers and body, so that nothing secret travels with an error."""

    method: str
    url: str


class Response(NamedTuple):
    """The head of the server's answer, and of an error reply the text that was read.

    `headers` is an `email.message.Message`, whose `get` ignores case.
    """

    status_code: int
    headers: Any
    text: str = ""

    def json(self) -> Any:
        """Parse `text`.  Raises ValueError where it is no JSON."""
        return json.loads(self.text)

    @property
    def request_id(self) -> Optional[str]:
        """The id that the server's operators ask for."""
        return _request_id(self.headers)


def _request_id(headers: Any) -> Optional[str]:
    for name in ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid"):
        value = headers.get(name)
        if value:
            return str(value)
    return None


class OpenAIError(Exception):
    """The root of all errors here.

    partial:     the `ChatCompletion` so far, on every error raised after the stream began
    attempts:    requests made, retries included
    elapsed:     seconds since the call was made
    retry_after: seconds that the server asked to wait, or None
    """

    partial: "Optional[ChatCompletion]" = None
    attempts: int = 0
    elapsed: float = 0.0
    retry_after: Optional[float] = None

    def __reduce__(self) -> Any:
        # Exceptions are pickled as a call with `args`, which keyword-only arguments defeat.
        return copyreg.__newobj__, (type(self),) + self.args, self.__dict__  # type: ignore


class APIError(OpenAIError):
    """The call failed.

    `body` is the server's error object, or text, where it sent one; `code`, `param` and `type`
    are its members.
    """

    request: Request

    def __init__(self, message: str, request: Optional[Request] = None, *,
                 body: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.request = cast(Request, request)
        self.response: Optional[Response] = None
        self.body = body
        fields = body if isinstance(body, dict) else {}
        self.code: Any = fields.get("code")
        self.param: Any = fields.get("param")
        self.type: Any = fields.get("type")

    @property
    def request_id(self) -> Optional[str]:
        """The id that the server's operators ask for."""
        return _request_id(self.response.headers) if self.response else None


class APIResponseValidationError(APIError):
    """The server answered with something else than a chat completion; `body` is its start."""

    def __init__(self, response: Optional[Response] = None, body: Any = None, *,
                 message: str = "Data returned by API invalid for expected schema.") -> None:
        super().__init__(message, body=body)
        self.response = response

    @property
    def status_code(self) -> Optional[int]:
        return self.response.status_code if self.response else None


class APIConnectionError(APIError):
    """No connection, or it was lost before the answer was whole."""

    def __init__(self, *, message: str = "Connection error.",
                 request: Optional[Request] = None) -> None:
        super().__init__(message, request)


class APITimeoutError(APIConnectionError):
    """`timeout` or `deadline` passed."""

    def __init__(self, request: Optional[Request] = None, *,
                 message: str = "Request timed out.") -> None:
        super().__init__(message=message, request=request)


class APIStatusError(APIError):
    """The server refused: with this HTTP status, or with an error in the stream of this code."""

    response: Response

    def __init__(self, message: str, *, response: Optional[Response] = None,
                 body: Any = None) -> None:
        super().__init__(message, body=body)
        self.response = cast(  # pyright: ignore[reportIncompatibleVariableOverride]
            Response, response)
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


class LengthFinishReasonError(OpenAIError):
    """A reply was cut by the token limit: the SDK's `parse` raises it, nothing here does."""

    def __init__(self, *, completion: "ChatCompletion") -> None:
        super().__init__("the reply was cut: its length limit was reached")
        self.completion = completion


class ContentFilterFinishReasonError(OpenAIError):
    """A reply was cut by a content filter: the SDK's `parse` raises it, nothing here does."""

    def __init__(self, *, completion: "Optional[ChatCompletion]" = None) -> None:
        super().__init__("the reply was cut by a content filter")
        self.completion = completion


_STATUS_ERRORS: Dict[int, Type[APIStatusError]] = {
    400: BadRequestError, 401: AuthenticationError, 403: PermissionDeniedError,
    404: NotFoundError, 409: ConflictError, 422: UnprocessableEntityError, 429: RateLimitError}


def _status_error_class(status: int) -> Type[APIStatusError]:
    if status >= 500:
        return InternalServerError
    return _STATUS_ERRORS.get(status, APIStatusError)


def _excerpt(text: str, length: int = 200) -> str:
    """The start of a text that somebody else wrote, on one line, without control characters.

    Secrets must be hidden before, lest half of one is left at the cut.
    """
    text = "".join([c if c.isprintable() else " " for c in text[:4 * length]])
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + "..."


def _parse_int(digits: str) -> int:
    """Refuse what newer Pythons refuse, too: the conversion takes quadratic time."""
    if len(digits) > 4300:
        raise ValueError("an integer of %d digits" % len(digits))
    return int(digits)


_json_decoder = json.JSONDecoder(
    parse_int=None if hasattr(sys, "set_int_max_str_digits") else _parse_int)


def _parse_json(text: str) -> Any:
    """Parse JSON text.  Raises ValueError for whatever is wrong with it."""
    try:
        value = _json_decoder.decode(text)
    except RecursionError:
        raise ValueError("too deep") from None
    if _is_too_deep(value):
        raise ValueError("too deep")
    return value


def _is_too_deep(value: Any) -> bool:
    """Whether a JSON value is deeper than any reply.

    What passes may be walked by recursive functions, even if the caller is deep in recursion.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: List[Any] = []
        for outer in level:
            if isinstance(outer, dict):
                inner.extend(outer.values())
            elif isinstance(outer, list):
                inner.extend(outer)
        level = inner
    return bool(level)


def _server_error(body: Any) -> Tuple[Any, str]:
    """Find the error object in a JSON value that reports one, and the server's words in it."""
    if isinstance(body, list) and body and isinstance(body[0], dict):
        body = body[0]  # Google wraps its error in a list.
    if not isinstance(body, dict):
        return body, body if isinstance(body, str) else json.dumps(body)
    for key in ("error", "detail", "errors"):
        found = body.get(key)
        if not found:
            continue
        if isinstance(found, str):
            return body, found
        if isinstance(found, list):  # FastAPI and Cloudflare list what is wrong.
            return body, "; ".join([_server_error(item)[1] for item in found])
        if isinstance(found, dict):
            body = found
            break
    for key in ("message", "msg", "error_description", "title"):
        if isinstance(body.get(key), str) and body[key]:
            return body, _with_details(body[key], body)
    return body, json.dumps(body)


def _with_details(words: str, body: Dict[str, Any]) -> str:
    """Add to an error's words where it is (FastAPI) and what a provider said (OpenRouter)."""
    if isinstance(body.get("loc"), list):
        words = "%s: %s" % (".".join(map(str, body["loc"])), words)
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        words = "%s: %s" % (words, metadata["raw"])
    return words


def _with_code(words: str, body: Any) -> str:
    """Add the server's code where its words do not hold it: programs look for it in them."""
    code = body.get("code") if isinstance(body, dict) else None
    if isinstance(code, str) and code not in words:
        return "%s (code: %s)" % (words, code)
    return words


# --------------------------------------------------------------------------------------------------
# Wire objects
#
# A parsed JSON object *is* the instance's __dict__: a field costs a plain attribute lookup, one
# that only one vendor sends is there under its own name, a misspelt one is an AttributeError.
# Source of the fields: https://platform.openai.com/docs/api-reference/chat/streaming
# --------------------------------------------------------------------------------------------------

_T = TypeVar("_T")
_Wired = TypeVar("_Wired", bound="_WireObject")
_UNSET: Any = None


class _Field(tuple):  # type: ignore[type-arg]
    """A name and its value: iterating a wire object gives them, as `dict(reply)` needs it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError("this is a field of a whole reply: to iterate chunks, pass "
                             "stream=True to create(); to read it, use its attributes")


class _WireObject:
    """A JSON object of the protocol.  Documented fields that were not sent are None.

    A server may send any key, also one of our methods' names: it is then what the attribute
    gives, and so what is done here to an object is done through its class.
    """

    _nested: Tuple[Tuple[str, Type["_WireObject"]], ...] = ()  # Objects, or lists of objects.
    _joined: FrozenSet[str] = frozenset()    # Texts that come in pieces.
    _extended: FrozenSet[str] = frozenset()  # Lists that come in pieces.
    _hints: Dict[str, str] = {}              # What to use in place of attributes that are not here.

    def __init__(self, **fields: Any) -> None:
        self.__dict__ = _wire(type(self), _plain(fields)).__dict__

    def __init_subclass__(cls) -> None:
        copyreg.pickle(cls, _reduce)

    @property
    def __deepcopy__(self) -> Callable[[Any], Any]:  # noqa: PLE0302
        # A property, which no key of a server shadows; copy.deepcopy asks the instance for it.
        return lambda memo: _copied(self, _plain(self))

    def __getattr__(self, name: str) -> NoReturn:
        hint = type(self)._hints.get(name)
        raise AttributeError("%r object has no attribute %r%s" % (
            type(self).__name__, name, ": " + hint if hint else ""))

    def __getitem__(self, name: Any) -> NoReturn:
        raise TypeError("%s is an object: write .%s in place of [%r], or call to_dict()"
                        % (type(self).__name__, name, name))

    def __iter__(self) -> Iterator[Any]:
        return iter([_Field(item) for item in self.__dict__.items()])

    def __repr__(self) -> str:
        fields = ", ".join(["%s=%r" % item for item in self.__dict__.items()])
        return "%s(%s)" % (type(self).__name__, fields)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def to_dict(self, *, exclude_unset: bool = True, exclude_none: bool = False,
                **options: Any) -> Dict[str, Any]:
        """The object as plain dicts and lists.

        `exclude_unset=False` adds the documented fields that were not sent; `include` and
        `exclude` are sets of names; pydantic's other options change nothing here.
        """
        fields = _plain(self, exclude_unset, exclude_none)
        include, exclude = options.get("include"), options.get("exclude") or ()
        return {name: value for name, value in fields.items()
                if (include is None or name in include) and name not in exclude}

    def to_json(self, *, indent: Optional[int] = 2, **options: Any) -> str:
        """`to_dict` as JSON text, in ASCII."""
        return _dump_json(_WireObject.to_dict(self, **options), indent)

    def model_dump(self, *, exclude_unset: bool = False, **options: Any) -> Dict[str, Any]:
        """`to_dict` with the SDK's other default."""
        return _WireObject.to_dict(self, exclude_unset=exclude_unset, **options)

    def model_dump_json(self, *, indent: Optional[int] = None, exclude_unset: bool = False,
                        **options: Any) -> str:
        """`to_json` with the SDK's other defaults."""
        return _WireObject.to_json(self, indent=indent, exclude_unset=exclude_unset, **options)

    def model_copy(self: _Wired, *, update: Optional[Mapping[str, Any]] = None,
                   deep: bool = False) -> _Wired:
        """A copy, shallow unless `deep`, with other values for the fields in `update`."""
        fields = _plain(self) if deep else dict(self.__dict__)
        return _copied(self, dict(fields, **(update or {})))

    @property
    def model_extra(self) -> Dict[str, Any]:
        """The fields that are not documented: a vendor's."""
        documented = type(self).__annotations__
        return {name: value for name, value in self.__dict__.items() if name not in documented}

    @classmethod
    def model_validate(cls: Type[_Wired], fields: Mapping[str, Any]) -> _Wired:
        """Make one of plain dicts and lists."""
        return cls(**fields)

    @classmethod
    def model_validate_json(cls: Type[_Wired], text: Union[str, bytes]) -> _Wired:
        return cls(**json.loads(text))

    @classmethod
    def model_construct(cls: Type[_Wired], **fields: Any) -> _Wired:
        return cls(**fields)

    construct = model_construct
    dict = model_dump         # The SDK keeps pydantic's older names, too.
    json = model_dump_json


def _wire(cls: Type[_Wired], fields: Dict[str, Any]) -> _Wired:
    """Make an instance of `cls` whose __dict__ is `fields`, and the same of the objects in it."""
    for name, nested in cls._nested:
        if name in fields:
            value = fields[name]
            if value.__class__ is dict:
                fields[name] = _wire(nested, value)
            elif value.__class__ is list:
                fields[name] = [_wire(nested, item) if item.__class__ is dict else item
                                for item in value]
    return _instance(cls, fields)


_new = object.__new__


def _instance(cls: Type[_Wired], fields: Dict[str, Any]) -> _Wired:
    instance = _new(cls)
    instance.__dict__ = fields
    return instance


def _copied(wired: _Wired, fields: Dict[str, Any]) -> _Wired:
    """Another object of the class, which knows the same request."""
    copied = _wire(type(wired), fields)
    if isinstance(wired, ChatCompletion):
        cast(ChatCompletion, copied)._request_id = getattr(wired, "_request_id", None)
    return copied


def _reduce(wired: _WireObject) -> Any:
    """How a wire object is copied and pickled; found by its class, not by the instance's fields."""
    state: Any = wired.__dict__
    if isinstance(wired, ChatCompletion):
        state = state, {"_request_id": getattr(wired, "_request_id", None)}
    return copyreg.__newobj__, (type(wired),), state  # type: ignore[attr-defined]


def _plain(value: Any, exclude_unset: bool = True, exclude_none: bool = False) -> Any:
    """Undo `_wire`, copying."""
    if isinstance(value, _WireObject):
        fields: Dict[str, Any] = {}
        if not exclude_unset:
            fields = {name: None for name in type(value).__annotations__ if name[0] != "_"}
        fields.update(value.__dict__)
        value = fields
    if isinstance(value, dict):
        return {key: _plain(item, exclude_unset, exclude_none) for key, item in value.items()
                if not (exclude_none and item is None)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, exclude_unset, exclude_none) for item in value]
    return value


def _dump_json(value: Any, indent: Optional[int] = None) -> str:
    """Write JSON that every parser reads.

    Servers send NaN and Infinity (vLLM, in log probabilities); JSON has null.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        value = json.loads(json.dumps(value), parse_constant=lambda name: None)
        return json.dumps(value, indent=indent)


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
    _extended = frozenset(("content", "refusal"))
    content: Optional[List[ChatCompletionTokenLogprob]] = None
    refusal: Optional[List[ChatCompletionTokenLogprob]] = None


class ChatCompletionAudio(_WireObject):
    _joined = frozenset(("data", "transcript"))
    id: str = _UNSET
    data: Optional[str] = None
    expires_at: Optional[int] = None
    transcript: Optional[str] = None


class FunctionCall(_WireObject):
    """What older servers send in place of `tool_calls`."""

    _joined = frozenset(("arguments",))
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


# Servers send reasoning under these names, some under two of them.
_REASONING = ("reasoning_content", "reasoning", "thinking", "thinking_content", "thought")


class ChoiceDelta(_WireObject):
    """What a chunk adds to the message."""

    _nested = (("tool_calls", ChoiceDeltaToolCall), ("function_call", FunctionCall),
               ("audio", ChatCompletionAudio))
    _joined = frozenset(("content", "refusal") + _REASONING)
    _extended = frozenset(("annotations", "reasoning_details"))
    role: Optional[str] = None
    content: Optional[str] = None
    refusal: Optional[str] = None
    tool_calls: Optional[List[ChoiceDeltaToolCall]] = None
    function_call: Optional[FunctionCall] = None


class Choice(_WireObject):
    """One of `n` answers, in a chunk."""

    _nested = (("delta", ChoiceDelta), ("logprobs", ChoiceLogprobs))
    _hints = {"message": "a chunk has .delta; without stream=True a whole reply has .message"}
    index: int = _UNSET
    delta: ChoiceDelta = _UNSET
    finish_reason: Optional[str] = None
    logprobs: Optional[ChoiceLogprobs] = None


class ChatCompletionChunk(_WireObject):
    """One event of a stream, as the server sent it but for what `_Door` mends."""

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
        """`arguments` as Python values; the empty text of a tool without parameters is `{}`.

        Raises ValueError, showing the text, where the model wrote no JSON or was cut short.
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
    _hints = {"delta": "a whole reply has .message; with stream=True chunks have .delta"}
    index: int = _UNSET
    message: ChatCompletionMessage = _UNSET
    finish_reason: Optional[str] = None
    logprobs: Optional[ChoiceLogprobs] = None


class ChatCompletion(_WireObject):
    """A whole reply, sent as one or put together from chunks."""

    __slots__ = ("_request_id",)  # The SDK's name for it; no field of the wire.
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

    def __aiter__(self) -> NoReturn:
        raise TypeError("this is a whole reply: to iterate chunks, pass stream=True to create()")


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

    async def __aiter__(self) -> AsyncIterator[Model]:
        for model in self.data:
            yield model


# Names that programs import from `openai.types.chat`: those of what a request holds are plain
# dicts, which a program may also call (`ChatCompletionUserMessageParam(role="user", ...)`).
if TYPE_CHECKING:
    _Param = dict[str, Any]
else:
    _Param = dict
ChatModel = str
ChatCompletionReasoningEffort = Optional[str]
ChatCompletionMessageFunctionToolCall = ChatCompletionMessageToolCall
ChatCompletionMessageToolCallUnion = ChatCompletionMessageToolCall
ChatCompletionMessageParam = _Param
ChatCompletionSystemMessageParam = _Param
ChatCompletionDeveloperMessageParam = _Param
ChatCompletionUserMessageParam = _Param
ChatCompletionAssistantMessageParam = _Param
ChatCompletionToolMessageParam = _Param
ChatCompletionFunctionMessageParam = _Param
ChatCompletionContentPartParam = _Param
ChatCompletionContentPartTextParam = _Param
ChatCompletionContentPartImageParam = _Param
ChatCompletionContentPartInputAudioParam = _Param
ChatCompletionToolParam = _Param
ChatCompletionToolUnionParam = _Param
ChatCompletionFunctionToolParam = _Param
ChatCompletionMessageToolCallParam = _Param
ChatCompletionMessageToolCallUnionParam = _Param
ChatCompletionMessageFunctionToolCallParam = _Param
ChatCompletionToolChoiceOptionParam = Union[str, _Param]
ChatCompletionNamedToolChoiceParam = _Param
ChatCompletionStreamOptionsParam = _Param
CompletionCreateParams = _Param
FunctionDefinition = _Param
FunctionParameters = _Param
ResponseFormat = _Param


# --------------------------------------------------------------------------------------------------
# Server-sent events
#
# Bytes in, events out, and back.  No I/O.
# Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
# --------------------------------------------------------------------------------------------------

class ServerSentEvent(NamedTuple):
    """An event: type, data, the last event id in force, the reconnection time its block set."""

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: Optional[int] = None


_new_event = tuple.__new__  # Twice as fast as the named tuple's own.


class SSEDecoder:
    """Interprets an event stream, whatever pieces its bytes come in, in linear time.

    Each byte is copied a bounded number of times: the pieces of a line wait in a list and are
    joined once, when its end has come.

    Two steps go beyond the specification: a field named `error`, which llama.cpp sent until 2025,
    is an event of that name; and `close` hands over an event whose blank line is missing.
    """

    def __init__(self) -> None:
        self._line: List[bytes] = []   # Pieces of the line that has not ended.
        self._line_size = 0
        self._data: List[str] = []     # The data lines of the event that has not been dispatched.
        self._data_size = 0
        self._event = ""
        self._id = ""
        self._retry: Optional[int] = None
        self._at_start = True          # A byte order mark may come.
        self._after_cr = False         # The last byte was a CR; a line feed now belongs to it.
        self._too_large = False        # What feed raises for, at its next call at the latest.

    def feed(self, data: bytes) -> List[ServerSentEvent]:
        """Return the events that `data` completes.

        Raises APIResponseValidationError once a line or an event has grown beyond MAX_EVENT bytes:
        at the next call if this one has events to return, so that none is lost.
        """
        if self._too_large:
            raise self._size_error()
        if self._after_cr and data:
            # The CR has ended its line already, lest its event wait for the next read.
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
            lines = b"".join(self._line).decode("utf-8", "replace")
            self._line, self._line_size = [], 0
            data = data[end + 1:]
            self._interpret(lines, events)
        if data:
            self._line.append(data)
            self._line_size += len(data)
        if self._line_size + self._data_size > MAX_EVENT:
            self._too_large = True
        if self._too_large and not events:
            raise self._size_error()
        return events

    def close(self) -> List[ServerSentEvent]:
        """End the stream; return the last event even if its blank line is missing.

        The specification drops it.  But servers forget the blank line, and a final token or
        [DONE] would be lost.
        """
        return self.feed(b"\n\n")

    def _interpret(self, text: str, events: List[ServerSentEvent]) -> None:
        """Process whole lines, separated by line feeds."""
        if self._at_start:
            self._at_start = False
            if text.startswith("\ufeff"):
                text = text[1:]
        known = len(self._data)
        # Only if all of it is larger than the limit can an event in it be.
        may_be_large = len(text) + self._data_size > MAX_EVENT
        for line in text.split("\n"):
            if line.startswith("data: "):
                # Nearly every line; _field holds the whole of the rules, this one included.
                self._data.append(line[6:])
            elif line:
                self._field(line)
            else:
                if may_be_large and sum(map(len, self._data)) > MAX_EVENT:
                    self._too_large = True
                    return
                if self._data:
                    events.append(_new_event(ServerSentEvent, (
                        self._event or "message", "\n".join(self._data), self._id, self._retry)))
                    self._data, self._data_size, known = [], 0, 0
                self._event, self._retry = "", None
        # Each line is an object of its own, and costs memory even if it is empty.
        self._data_size += sum([len(line) + 64 for line in self._data[known:]])

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
            # "If the field value consists of only ASCII digits"; and no more than make sense.
            if re.match("[0-9]{1,19}$", value):
                self._retry = int(value)
        elif name == "error":
            self._event = "error"
            self._data.append(value)
        elif name:  # A comment has none.
            self._unknown(line)

    def _unknown(self, line: str) -> None:
        """A field that the specification says to ignore."""

    def _size_error(self) -> APIResponseValidationError:
        self._line, self._data = [], []
        return APIResponseValidationError(
            message="the server sent an event of more than %d bytes" % MAX_EVENT)


def encode_sse(data: str, event: Optional[str] = None, id: Optional[str] = None,
               retry: Optional[int] = None) -> bytes:
    """Write an event as SSEDecoder reads it.

    A line break in `data` (LF, CR or CRLF) starts another `data:` line.  Raises ValueError for
    what an event stream cannot carry: a line break in `event` or `id`, a NUL in `id`.
    """
    if re.search("[\r\n]", (event or "") + (id or "")):
        raise ValueError("event and id must not hold a line break")
    if id and "\0" in id:
        raise ValueError("id must not hold a NUL")
    lines = []
    if event:
        lines.append("event: " + event)
    if id is not None:
        lines.append("id: " + id)
    if retry is not None:
        lines.append("retry: %d" % retry)
    for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        lines.append("data: " + line)
    return _well_formed("\n".join(lines) + "\n\n").encode("utf-8")


def _well_formed(text: str) -> str:
    """Join surrogates that belong together and replace those that stand alone.

    JSON may name half of a UTF-16 pair (\\ud83d); a text that holds one cannot be encoded.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --------------------------------------------------------------------------------------------------
# Answers
#
# Body bytes become JSON objects (_payloads), these become chunks (_Door), and _answer judges
# whether they were a whole reply.  No I/O.
# --------------------------------------------------------------------------------------------------

class _Asked:
    """What of the request decides when its answer is whole."""

    def __init__(self, choices: int = 1, usage: bool = False) -> None:
        self.choices = choices  # The answers asked for (`n`).
        self.usage = usage      # Token counts were asked for; they come behind the finish_reason.


class _Whole:
    """The verdict on a whole answer, and what went wrong behind it."""

    def __init__(self, trouble: Optional[Exception]) -> None:
        self.trouble = trouble


def _answer(payloads: "Iterator[Optional[Dict[str, Any]]]", asked: _Asked,
            call: "_Call") -> "Generator[Optional[ChatCompletionChunk], None, _Whole]":
    """Hand out the chunks of one reply, and judge whether it was whole.

    Yields a chunk as soon as it is there, and None where nothing more has come yet: whoever
    iterates waits for bytes before he goes on.  Returns _Whole at the end of a whole answer, and
    raises what keeps an answer from being whole.  (A generator that an interrupt has ended
    returns None.)

    An answer is whole when the server says [DONE], or when each choice seen, and as many as were
    asked for, has its finish_reason, however the connection ends after that.  Anything else is a
    part of an answer that might look whole, which is the worst thing that could be handed out.
    An error that the server itself reports, also as a finish_reason, is raised in any case.
    """
    door = _Door()
    seen: Set[int] = set()
    finished: Set[int] = set()
    whole, usage_missing, waiting = False, asked.usage, False
    trouble: Optional[Exception] = None
    try:
        for fields in payloads:
            if fields is None:
                # The clock starts when the next chunk is wanted, not when bytes come that are
                # none: comments and blank lines do not feed a dead stream.
                if not waiting:
                    waiting = True
                    is_over = whole and not usage_missing
                    call.start(min(PATIENCE, call.read) if is_over else call.read)
                yield None
                continue
            if fields is _DONE:
                whole = True
                break
            chunk = door.chunk(fields)
            yield chunk
            # Each chunk starts the clock anew; but behind a whole answer only more of it does: what
            # else comes there must not be waited for without end.
            if not whole or _brings_something(chunk):
                waiting = False
            for choice in chunk.choices:
                if choice.index not in seen:
                    seen.add(choice.index)
                    whole = False
                if choice.finish_reason:
                    finished.add(choice.index)
                    whole = len(finished) == len(seen) >= asked.choices
                    if choice.finish_reason == "error":
                        raise APIError('the server ended the answer with finish_reason "error"',
                                       body=_plain(chunk))
            if usage_missing and whole and chunk.usage:
                usage_missing = waiting = False
    except (OSError, APIError) as error:
        trouble = error
    yield from door.rest()
    if whole and not _is_servers_word(trouble):
        return _Whole(trouble)
    try:
        raise trouble or APIConnectionError(message=(
            "the reply of %s ended with neither [DONE] nor a finish_reason for each choice (%d of "
            "%d): it is not whole" % (call.place, len(finished), max(len(seen), asked.choices))))
    finally:
        trouble = None  # An error whose traceback holds this frame, which holds the error: a cycle.


def _is_servers_word(error: Optional[Exception]) -> bool:
    """Whether the server reported this error, rather than that we could not read what it sent."""
    ours = (APIConnectionError, APIResponseValidationError)
    return isinstance(error, APIError) and not isinstance(error, ours)


_DONE: Dict[str, Any] = {"[DONE]": True}  # A payload, known by its identity.
_BLANK = b" \t\r\n\xef\xbb\xbf"           # A byte order mark counts as blank.
_FIELD_NAMES = ("data:", "event:", "id:", "retry:", "error:")

_scan_once = cast(Any, _json_decoder).scan_once  # Written in C; decode() calls it, too.
_find_text = re.compile(r"[^ \t\r\n]").search
_skip_data = re.compile(r"""[ \t\r"']*(data:[ ]?)+""").match


def _payloads(body: Iterator[bytes],
              hide: Callable[[str], str]) -> Iterator[Optional[Dict[str, Any]]]:
    """Read the JSON objects of a body: dicts, _DONE, and None where nothing more has come yet.

    Content-Type is only a hint: the first byte that is not blank decides whether the body is an
    event stream or a single text.  Raises the errors that the server reports, and
    APIResponseValidationError for what is no answer at all.  `hide` takes the secrets out of a
    text before some of it is shown.
    """
    decoder = _LenientDecoder()
    start = yield from _first_bytes(body, decoder)
    trimmed = start.lstrip(_BLANK)
    if trimmed[:1] in (b"{", b"[", b"<"):
        yield from _whole_payloads(itertools.chain((trimmed,), body), hide)
        return
    if start:
        body = itertools.chain((start,), body)
    first = ""
    recognised = False
    for event in _events(body, decoder):
        if event is None:
            yield None
            continue
        text = event.data
        if event.event == "error":
            raise _reported_error(text, hide)
        _check_objects(text)
        at = 0
        while at < len(text):
            try:
                fields, at = _next_payload(text, at, hide)
            except ValueError as error:
                if decoder.closed:
                    break  # Half an event, with which a body may end.
                raise _not_ours(text, hide, str(error)) from None
            if fields is None:
                continue
            if not recognised:
                recognised = "choices" in fields
                first = "" if recognised else first or text
            yield fields
    foreign = first or decoder.foreign
    if foreign and not recognised:
        raise _not_ours(foreign, hide)


def _first_bytes(body: Iterator[bytes],
                 decoder: "_LenientDecoder") -> Generator[None, None, bytes]:
    """Wait for something that is not blank, and return it."""
    for data in body:
        if data.strip(_BLANK):
            return data
        decoder.feed(data)
        if not data:
            yield None
    return b""


def _events(body: Iterator[bytes],
            decoder: "_LenientDecoder") -> Iterator[Optional[ServerSentEvent]]:
    """The events of a body, and None where nothing more has come yet.

    At its end, well or not, what can still be made of its last bytes comes first.
    """
    try:
        for data in body:
            yield from decoder.feed(data)  # Also b"": it raises what had to wait for events.
            if not data:
                yield None
    except OSError:
        yield from decoder.close()
        raise
    yield from decoder.close()


def _whole_payloads(body: Iterable[bytes],
                    hide: Callable[[str], str]) -> Iterator[Optional[Dict[str, Any]]]:
    """The payloads of a body that is one text: a whole reply, an error, a proxy's page."""
    pieces: List[bytes] = []
    size = 0
    broken: Optional[OSError] = None
    try:
        for data in body:
            pieces.append(data)
            size += len(data)
            if size > MAX_EVENT:
                raise APIResponseValidationError(
                    message="the reply is longer than %d bytes" % MAX_EVENT)
            if not data:
                yield None
    except OSError as error:
        broken = error
    try:
        text = b"".join(pieces).decode("utf-8-sig", "replace").strip()
        try:
            yield from _objects(text, hide)
        except APIResponseValidationError:
            if broken is None:
                raise
        if broken is not None:
            raise broken
    finally:
        broken = None


def _objects(text: str, hide: Callable[[str], str]) -> Iterator[Dict[str, Any]]:
    """The JSON objects of a text; whole replies become chunks, one for each choice.

    What was sent as a whole is whole, with or without a finish_reason: then _DONE comes last.
    """
    if text.startswith("["):
        yield from _listed_error(text, hide)
        return
    _check_objects(text)
    at = objects = parts = 0
    recognised = False
    while at < len(text):
        try:
            fields, at = _next_payload(text, at, hide)
        except ValueError as error:
            if _is_cut(error, text):
                return  # JSON that stops in the middle is no foreign text.
            raise _not_ours(text, hide, str(error)) from None
        if fields is None:
            continue
        if fields is _DONE:
            yield fields
            return
        objects += 1
        recognised = recognised or "choices" in fields
        choices = _choices_by_position(fields.get("choices"))
        if choices and "message" not in choices[0]:
            # JSON lines may be cut between two: what may be one of several is not the whole.
            is_chunk = "delta" in choices[0] or str(fields.get("object")).endswith(".chunk")
            parts += is_chunk or objects > 1
        if not choices:
            yield dict(fields, choices=[])
        for choice in choices:
            yield dict(fields, choices=[choice])
    if not recognised:
        raise _not_ours(text, hide)
    if not parts:
        yield _DONE


def _listed_error(text: str, hide: Callable[[str], str]) -> Iterator[Dict[str, Any]]:
    """Raise the error for a JSON list, in which Google wraps its errors; nothing if it is cut."""
    try:
        items = _parse_json(text)
    except ValueError as error:
        if _is_cut(error, text):
            return iter(())
        raise _not_ours(text, hide, str(error)) from None
    if items and isinstance(items[0], dict) and "error" in items[0]:
        raise _reported_error(items, hide)
    raise _not_ours(text, hide)


def _check_objects(text: str) -> None:
    """Refuse a text that would become very many objects: `[[],[],...` takes 60 times its size."""
    if len(text) > MAX_OBJECTS and text.count("{") + text.count("[") > MAX_OBJECTS:
        raise APIResponseValidationError(
            message="the server sent an event of more than %d objects" % MAX_OBJECTS)


def _choices_by_position(choices: Any) -> List[Dict[str, Any]]:
    """The choices of a whole reply, told apart by position where their indexes do not do so."""
    if isinstance(choices, dict):
        choices = [choices]
    if not isinstance(choices, list):
        return []
    copies: List[Dict[str, Any]] = [
        dict(choice) for choice in choices if isinstance(choice, dict)]
    if len({_index(choice.get("index"), 0) for choice in copies}) < len(copies):
        for position, choice in enumerate(copies):
            choice["index"] = position
    for choice in copies:
        message = choice.get("message")
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for position, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                call.setdefault("index", position)
    return copies


def _is_cut(error: ValueError, text: str) -> bool:
    """Whether JSON text ends too early, rather than being wrong."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    if error.msg.startswith("Unterminated"):
        return True
    # A text that is cut in a name (-Infinity) is told some letters before its end.
    return error.pos >= len(text) - (0 if text.endswith("}") else 8)


class _LenientDecoder(SSEDecoder):
    """Keeps what the specification says to ignore.

    A JSON object on a line of its own is an event (Lemonade's errors); any other unknown line may
    tell that this is no event stream at all.
    """

    foreign = ""    # The first unknown line, unless it is the start of a field's name.
    closed = False  # What comes now may be half an event.

    def close(self) -> List[ServerSentEvent]:
        self.closed = True
        return super().close()

    def _unknown(self, line: str) -> None:
        if line.startswith("{"):
            self._data.append(line)
        elif line.strip() and not self.foreign:
            is_cut = any([name.startswith(line) for name in _FIELD_NAMES])
            self.foreign = "" if is_cut else line


def _next_payload(text: str, at: int,
                  hide: Callable[[str], str]) -> Tuple[Optional[Dict[str, Any]], int]:
    """Read what begins at `text[at]`: a JSON object, _DONE, or None for something to skip.

    Returns where to read on, too: most events hold one object, but some servers send several in an
    event, or forget the blank line between two.  Raises the error that an object reports, and
    ValueError for anything else.
    """
    if text[at] == "{":
        try:
            fields, end = _scan_once(text, at)
        except StopIteration as error:
            raise json.JSONDecodeError("Expecting value", text, error.value) from None
        except RecursionError:
            raise ValueError("too deep") from None
        # A text that is short, or has few brackets, cannot be deep; most need no closer look.
        if end - at > 5 * MAX_DEPTH:
            if text.count("{", at, end) + text.count("[", at, end) > MAX_DEPTH:
                if _is_too_deep(fields):
                    raise ValueError("too deep")
        if fields.get("error") or fields.get("object") == "error":
            raise _reported_error(fields, hide)
        return fields, end
    begin = _skip_blank(text, at)
    if begin > at:
        return None, begin
    line = text[at:at + 100].partition("\n")[0].strip(" \t\r\"'")
    if line == "[DONE]":
        return _DONE, len(text)
    if line.startswith("data:"):
        # Wrapped twice, or behind a JSON body.
        end = _skip_data(text, at).end()  # type: ignore[union-attr]
    elif not line or line.startswith(":"):
        # Nothing, or a comment that a gateway has wrapped.
        end = text.find("\n", at) + 1 or len(text)
    else:
        raise ValueError("no JSON object")
    return None, _skip_blank(text, end)


def _skip_blank(text: str, at: int) -> int:
    found = _find_text(text, at)
    return found.start() if found else len(text)


def _reported_error(report: Any, hide: Callable[[str], str]) -> APIError:
    """The error that the server tells of inside a reply of status 200, in its own words."""
    try:
        body, words = _server_error(_parse_json(report) if isinstance(report, str) else report)
    except ValueError:
        body, words = report, report
    words = _excerpt(hide(_well_formed(_with_code(words, body))), 1000)
    words = words or "the server reported an error without a message"
    if isinstance(body, dict):
        for key in ("code", "status_code", "status"):
            code = str(body.get(key))
            if re.match("[45][0-9][0-9]$", code):
                error = _status_error_class(int(code))(words, body=body)
                error.status_code = int(code)
                return error
    return APIError(words, body=body)


def _not_ours(text: str, hide: Callable[[str], str], reason: str = "") -> APIError:
    """The error for a reply that is no answer, which shows its start and the likely cause."""
    text = hide(text)
    if text.startswith("<"):
        reason = "an HTML page: a proxy's or login page, or a base_url without /v1?"
    elif not reason:
        reason = "neither a chat completion nor an error; is base_url right?"
    return APIResponseValidationError(body=text[:1000], message=(
        "the server answered with something else than a chat completion (%s): %s"
        % (reason, _excerpt(text))))


class _Door:
    """Makes chunks of JSON objects, and mends what servers get wrong in them.

    Behind it `choices` is a list of objects; each has an `index` that is an int and a `delta`;
    a text that the protocol names is a str or None; `tool_calls` is a list of objects.
    """

    def __init__(self) -> None:
        self._streamed: Set[int] = set()  # The choices of which a delta has brought something.
        # Servers that cut a text between UTF-16 units send an emoji as two halves: the first one
        # waits here, by choice and field, for the other.
        self._halves: Dict[Tuple[int, str], str] = {}

    def chunk(self, fields: Dict[str, Any]) -> ChatCompletionChunk:
        choices: Any = fields.get("choices")
        if choices.__class__ is not list:
            choices = [choices] if choices.__class__ is dict else []
        if len(choices) > MAX_CHOICES:
            raise APIResponseValidationError(
                message="the server sent an event of more than %d choices" % MAX_CHOICES)
        made = fields["choices"] = []
        for choice in choices:
            if choice.__class__ is dict:
                made.append(self._choice(choice))
        if "usage" in fields:
            if fields["usage"].__class__ is dict:
                fields["usage"] = _wire(CompletionUsage, fields["usage"])
            else:
                fields["usage"] = None
        return _instance(ChatCompletionChunk, fields)

    def rest(self) -> List[ChatCompletionChunk]:
        """Chunks for the halves whose other half never came."""
        halves, self._halves = self._halves, {}
        return [_wire(ChatCompletionChunk, {
            "choices": [{"index": index, "delta": {name: "\ufffd"}}]}) for index, name in halves]

    def _choice(self, fields: Dict[str, Any]) -> Choice:
        index: Any = fields.get("index")
        if index.__class__ is not int:
            index = fields["index"] = _index(index, 0)
        delta: Any = fields.get("delta")
        if delta.__class__ is not dict or not delta:
            delta = self._instead_of_delta(fields, index)
        for name, value in delta.items():
            if value.__class__ is str:
                is_plain = _is_ascii(value) or _is_well_formed(value)
                if self._halves or name in _OBJECTS or not is_plain:
                    delta = self._mended(delta, index)
                    break
            elif value is not None:
                delta = self._mended(delta, index)
                break
        if index not in self._streamed and any([delta[name] for name in delta if name != "role"]):
            self._streamed.add(index)
        fields["delta"] = _instance(ChoiceDelta, delta)
        reason = fields.get("finish_reason")
        if reason.__class__ is not str and reason is not None:
            fields["finish_reason"] = None
        logprobs = fields.get("logprobs")
        if logprobs is not None:
            is_object = logprobs.__class__ is dict
            fields["logprobs"] = _wire(ChoiceLogprobs, logprobs) if is_object else None
        return _instance(Choice, fields)

    def _instead_of_delta(self, fields: Dict[str, Any], index: int) -> Dict[str, Any]:
        """A whole message, or the text of a legacy completion."""
        message = fields.get("message")
        # MiniMax repeats what the deltas have said in a whole message at the end.
        if message.__class__ is dict and index not in self._streamed:
            del fields["message"]
            return cast(Dict[str, Any], message)
        text = fields.get("text")
        return {"content": text} if text.__class__ is str else {}

    def _mended(self, delta: Dict[str, Any], index: int) -> Dict[str, Any]:
        """A delta that holds more than plain texts."""
        mended: Dict[str, Any] = {}
        for name, value in delta.items():
            if name == "tool_calls":
                mended[name] = _tool_calls(value)
            elif name in _SPLIT_TEXTS:
                text, reasoning = _text_parts(value)
                if reasoning and name != "content":
                    text, reasoning = (text or "") + reasoning, ""
                for target, piece in ((name, text), ("reasoning_content", reasoning)):
                    if piece:
                        before = mended.get(target) or ""
                        mended[target] = before + self._letters(piece, index, target)
                mended.setdefault(name, text)
            elif name == "function_call":
                mended[name] = _object(FunctionCall, value, ("name", "arguments"))
            elif name == "audio":
                mended[name] = _object(ChatCompletionAudio, value, ("data", "transcript"))
            elif name == "role" and value.__class__ is not str:
                mended[name] = None
            else:
                mended[name] = value
        return mended

    def _letters(self, text: str, index: int, name: str) -> str:
        """The text without half a letter at its end, which waits for the other half."""
        text = self._halves.pop((index, name), "") + text
        if "\ud800" <= text[-1:] <= "\udbff":
            self._halves[index, name] = text[-1]
            text = text[:-1]
        return _well_formed(text)


_SPLIT_TEXTS = ChoiceDelta._joined
_OBJECTS = frozenset(("tool_calls", "function_call", "audio"))  # And never a text.


_is_ascii = getattr(str, "isascii", lambda text: False)  # New in Python 3.7.


def _is_well_formed(text: str) -> bool:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _index(value: Any, default: Any) -> Any:
    """An index that may be missing, or the digits of one."""
    if value.__class__ is int:
        return value
    if value.__class__ is str and re.match("[0-9]{1,9}$", value):
        return int(value)
    return default


def _object(cls: Type[_Wired], fields: Any, texts: Sequence[str]) -> Optional[_Wired]:
    """A wire object, or None where the server sent something else; its texts are texts."""
    if fields.__class__ is not dict:
        return None
    for name in texts:
        value = fields.get(name)
        if value.__class__ is not str and value is not None:
            fields[name] = _as_text(value)
    return _instance(cls, fields)


def _as_text(value: Any) -> Optional[str]:
    """What a server or gateway has taken for a number, object or list is JSON text again."""
    if isinstance(value, bool) or not isinstance(value, (int, float, dict, list)):
        return None
    return _dump_json(value)


def _tool_calls(calls: Any) -> Optional[List[ChoiceDeltaToolCall]]:
    """The fragments of tool calls; older TGI sends one without a list."""
    if calls.__class__ is dict:
        calls = [calls]
    if calls.__class__ is not list:
        return None
    if len(calls) > MAX_CHOICES:
        raise APIResponseValidationError(
            message="the server sent an event of more than %d tool calls" % MAX_CHOICES)
    return [_tool_call(call) for call in calls if call.__class__ is dict]


def _tool_call(fields: Dict[str, Any]) -> ChoiceDeltaToolCall:
    index = fields.get("index")
    if index is not None and index.__class__ is not int:
        fields["index"] = _index(index, None)
    for name in ("id", "type"):
        if name in fields and fields[name].__class__ is not str:
            fields[name] = _as_text(fields[name])
    if "function" in fields:
        fields["function"] = _object(
            ChoiceDeltaToolCallFunction, fields["function"], ("name", "arguments"))
    return _instance(ChoiceDeltaToolCall, fields)


def _text_parts(value: Any) -> Tuple[Optional[str], str]:
    """Text and reasoning in what should be a text.

    Mistral's and Databricks' reasoning models send a list of parts, some of type thinking or
    reasoning, whose text is in a member that may be a list of parts again.
    """
    if value is None:
        return None, ""
    text: Optional[str] = None
    reasoning = ""
    for part in value if isinstance(value, list) else (value,):
        if isinstance(part, (str, int, float)):
            text = (text or "") + (part if isinstance(part, str) else _as_text(part) or "")
        elif isinstance(part, dict):
            thought = part.get("thinking") or part.get("summary")
            if part.get("type") in ("thinking", "reasoning"):
                thought = thought or part.get("text")
            if thought:
                reasoning += "".join(filter(None, _text_parts(thought)))
            elif isinstance(part.get("text"), str):
                text = (text or "") + part["text"]
    return text, reasoning


def _chunk_text(chunk: ChatCompletionChunk) -> str:
    """What a chunk adds to the text of choice 0."""
    text = ""
    for choice in chunk.choices:
        if choice.index == 0:
            text += choice.delta.content or ""
    return text


def _brings_something(chunk: ChatCompletionChunk) -> bool:
    """Whether a chunk adds anything but a role to a choice."""
    for choice in chunk.choices:
        for name, value in choice.delta.__dict__.items():
            if value and name != "role":
                return True
    return False


def _reasoning_text(delta: _WireObject) -> str:
    """The reasoning in a delta: once, though some servers send it under two names."""
    fields = delta.__dict__
    for name in _REASONING:
        if fields.get(name):
            return str(fields[name])
    return "".join(filter(None, _text_parts(fields.get("reasoning_details"))))


# --------------------------------------------------------------------------------------------------
# Accumulation
#
# Chunks become a whole reply, in time linear in what arrives.  No I/O.
# --------------------------------------------------------------------------------------------------

class _Pieces(list):  # type: ignore[type-arg]
    """A text that comes in pieces, joined when it is read."""


def _merge(into: Dict[str, Any], wired: _WireObject) -> None:
    """Add the fields of a wire object to what its predecessors have brought.

    Texts that come in pieces are joined and lists extended, as the object's class says; objects
    are merged; of any other field the last value that is not null or empty wins.
    """
    cls = type(wired)
    for name, value in wired.__dict__.items():
        if value is None:
            continue
        kind = value.__class__
        if kind is str:
            if not value and name != "content":
                continue  # An empty content is what a model said that said nothing.
            if name in cls._joined:
                pieces: Any = into.get(name)
                if pieces.__class__ is not _Pieces:
                    pieces = into[name] = _Pieces()
                pieces.append(value)
            else:
                into[name] = value
        elif kind is list and name in cls._extended:
            items: Any = into.get(name)
            if items.__class__ is not list:
                items = into[name] = []
            items.extend(value)
        elif isinstance(value, _WireObject):
            inner: Any = into.get(name)
            if inner.__class__ is not dict:
                inner = into[name] = {}
            _merge(inner, value)
        else:
            into[name] = value


def _merged(value: Any) -> Any:
    """What was merged so far, copied, as plain dicts, lists and texts that can be encoded."""
    if value.__class__ is _Pieces:
        return _well_formed("".join(value))
    if isinstance(value, _WireObject):
        value = value.__dict__
    # The copies are made at once: another thread may add a chunk meanwhile.
    if isinstance(value, dict):
        return {name: _merged(item) for name, item in list(value.items())}
    if isinstance(value, list):
        return [_merged(item) for item in list(value)]
    return _well_formed(value) if isinstance(value, str) else value


class _ToolCall:
    """A tool call so far; `fields` and `body` are the server's, and so hold nothing of ours."""

    def __init__(self) -> None:
        self.kind = "function"              # Or "custom", whose text is its `input`.
        self.fields: Dict[str, Any] = {}
        self.body: Dict[str, Any] = {}      # The members of `function` or `custom`.
        self.arguments: List[str] = []      # In pieces.
        self.spare_id = ""                  # Made up where the server sent none.

    @staticmethod
    def set(fields: Dict[str, Any], name: str, value: Any) -> None:
        # Servers repeat id, name and type in every fragment: they are set once, never joined.
        is_set = name in ("id", "type", "name") and fields.get(name)
        if value is not None and not is_set:
            fields[name] = value


class _ToolCalls:
    """The tool calls of one message, put together from their fragments."""

    def __init__(self) -> None:
        self._calls: List[_ToolCall] = []
        self._by_index: Dict[int, _ToolCall] = {}
        self._by_id: Dict[str, _ToolCall] = {}

    def add(self, fragment: _WireObject) -> None:
        fields = fragment.__dict__
        kind = "custom" if isinstance(fields.get("custom"), dict) else "function"
        body = fields.get(kind)
        if isinstance(body, _WireObject):
            body = body.__dict__
        if not isinstance(body, dict):
            body = {}
        call = self._call(fields.get("index"), fields.get("id"), body.get("name"))
        if kind == "custom":
            call.kind = kind
        for name, value in fields.items():
            if name not in ("index", "function", "custom"):
                call.set(call.fields, name, value)
        for name, value in body.items():
            if name not in ("arguments", "input"):
                call.set(call.body, name, value)
            elif value is not None:
                call.arguments.append(value if value.__class__ is str else _dump_json(value))

    def _call(self, index: Any, id: Any, name: Any) -> _ToolCall:
        """The call that a fragment belongs to: that of its index, else of its id, else the last.

        An id that is new, together with a name, begins another call on an index that is taken:
        Ollama gives every parallel call index 0.  A new id without a name continues: Poolside
        changes it with every fragment.
        """
        has_index = index.__class__ is int
        if has_index and not id and index in self._by_index:
            return self._by_index[index]
        known = self._by_id.get(id) if id else None
        call = self._by_index.get(index) if has_index else known
        is_new = bool(id and name)
        if call is not None and is_new and call.fields.get("id") not in (None, "", id):
            call = known
        continues = not (id or name)
        if call is None and continues and self._calls:
            call = self._calls[-1]
        if call is None:
            call = _ToolCall()
            self._calls.append(call)
        if has_index:
            self._by_index[index] = call
        if id:
            self._by_id.setdefault(id, call)
        return call

    def whole(self) -> List[Dict[str, Any]]:
        calls = []
        for call in self._calls:
            text = _well_formed("".join(call.arguments))
            if not (call.body.get("name") or text):
                continue  # DeepSeek ends with an empty call.
            whole = _merged(call.fields)
            if not whole.get("id"):
                # Without one the call cannot be answered.
                call.spare_id = call.spare_id or "call_" + os.urandom(12).hex()
                whole["id"] = call.spare_id
            whole["type"] = whole.get("type") or call.kind
            whole[call.kind] = _merged(call.body)
            whole[call.kind]["input" if call.kind == "custom" else "arguments"] = text
            calls.append(whole)
        return calls


class _ChoiceSoFar:
    """One of the answers."""

    def __init__(self) -> None:
        self._fields: Dict[str, Any] = {}
        self._message: Dict[str, Any] = {"role": "assistant", "content": None}
        self._calls = _ToolCalls()

    def add(self, choice: Choice) -> None:
        for name, value in choice.__dict__.items():
            if value is None or name == "index":
                continue
            if name == "delta":
                self._add_delta(value)
            elif name == "logprobs" and isinstance(value, _WireObject):
                _merge(self._fields.setdefault(name, {}), value)
            elif value != "" and name not in ("message", "text"):
                self._fields[name] = value

    def _add_delta(self, delta: Any) -> None:
        if not isinstance(delta, _WireObject):
            return
        _merge(self._message, delta)
        calls: Any = delta.__dict__.get("tool_calls")
        if calls.__class__ is list:
            for call in calls:
                if isinstance(call, _WireObject):
                    self._calls.add(call)

    def whole(self, index: int) -> Dict[str, Any]:
        message = _merged(self._message)
        message.pop("tool_calls", None)  # The last fragments.
        calls = self._calls.whole()
        if calls:
            message["tool_calls"] = calls
        choice: Dict[str, Any] = {"finish_reason": None, "logprobs": None}
        choice.update(_merged(self._fields), index=index, message=message)
        return choice


class Accumulator:
    """Puts the chunks of a stream together: `add` each, read `completion` at any time.

    Texts, reasoning, refusals, tool arguments and audio are joined; lists of log probabilities,
    annotations and reasoning details extended; usage is the last count that is not all zero; of
    any other field the last value that is not null wins.
    """

    def __init__(self) -> None:
        self._fields: Dict[str, Any] = {}
        self._choices: Dict[int, _ChoiceSoFar] = {}
        self._usage: Optional[_WireObject] = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        fields = self._fields
        groq = chunk.__dict__.get("x_groq")
        if isinstance(groq, dict) and isinstance(groq.get("usage"), dict):
            self._count(_wire(CompletionUsage, _plain(groq["usage"])))
        for name, value in chunk.__dict__.items():
            if name == "choices":
                for choice in value or ():
                    index = choice.index or 0
                    so_far = self._choices.get(index)
                    if so_far is None:
                        so_far = self._choices[index] = _ChoiceSoFar()
                    so_far.add(choice)
            elif name == "usage":
                self._count(value)
            elif value or value not in (None, ""):
                fields[name] = value

    def _count(self, usage: Any) -> None:
        if isinstance(usage, _WireObject):
            counts = usage.__dict__.values()
            if any([count for count in counts if isinstance(count, (int, float))]):
                self._usage = usage

    @property
    def completion(self) -> ChatCompletion:
        """The reply so far, a copy, in the shape of a whole one."""
        fields = _merged(self._fields)
        fields["object"] = "chat.completion"
        fields["choices"] = [self._choices[index].whole(index) for index in sorted(self._choices)]
        fields["usage"] = _merged(self._usage)
        whole = _wire(ChatCompletion, fields)
        whole._request_id = None
        return whole


# --------------------------------------------------------------------------------------------------
# Bodies
#
# Chunked coding, Content-Length, gzip and deflate, undone piece by piece: generators that take what
# a connection has received, and put back what is not theirs.  http.client's own reader takes a cut
# chunked body for its end, and accepts sizes such as 0x9, 1_0 and -5.  No I/O.
# Source: RFC 9112, sections 6 and 7; RFC 1950 to 1952
# --------------------------------------------------------------------------------------------------

class _BrokenReply(OSError):
    """The reply breaks the rules of HTTP, or ends too early by them."""


def _received(connection: "_Connection") -> Iterator[bytes]:
    """The bytes of a connection as they come, b"" where there are none yet, until it is closed."""
    while True:
        data, connection.ahead = connection.ahead, b""
        if not data and connection.ended:
            fault, connection.fault = connection.fault, None
            if fault is None:
                return
            try:
                raise fault
            finally:
                fault = None  # Its traceback holds this frame: a cycle.
        yield data


def _framed(connection: "_Connection", head: "_Head") -> Iterator[bytes]:
    """The body that begins in what a connection has received, up to its end and no further."""
    if head.chunked:
        return _unchunked(connection)
    if head.length is not None:
        return _sized(connection, head.length)
    return _received(connection)


def _sized(connection: "_Connection", length: int) -> Iterator[bytes]:
    """A body whose length was told."""
    if not length:
        return
    for data in _received(connection):
        if len(data) >= length:
            connection.ahead = data[length:]
            yield data[:length]
            return
        length -= len(data)
        yield data
    raise _BrokenReply("the connection was closed %d bytes before the end of the reply" % length)


# CRLF and hexadecimal digits only.  The CRLF that ends a chunk is read with the next one's size.
_CHUNK_SIZE = re.compile(rb"\r\n0{0,16}([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNK_SIZE_BEGINS = rb"\r(\n([0-9a-fA-F]{1,31}([ \t;\r]|\Z)|\Z)|\Z)"


def _unchunked(connection: "_Connection") -> Iterator[bytes]:
    """A body in the chunked coding; extensions and trailers are skipped."""
    line = b"\r\n"  # A size line that has not ended; at first, as if a chunk had come before.
    left = 0        # Bytes of the chunk that are still to come.
    for data in _received(connection):
        if len(line) > 64 and b"\n" not in data:
            # A long extension: it is not looked at again for each of its pieces.
            line += data
            if len(line) > MAX_CHUNK_LINE:
                raise _bad_chunk()
            yield b""
            continue
        data, line = line + data, b""
        pieces: List[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if not left:
                size = _CHUNK_SIZE.match(data, at)
                if size is None:
                    line = data[at:]
                    break
                at, left = size.end(), int(size.group(1), 16)
                if not left:
                    if pieces:
                        yield b"".join(pieces)
                    connection.ahead = data[at:]
                    for _ in _until_blank_line(connection, b"\n", MAX_HEADERS):
                        yield b""
                    return
            piece = data[at:at + left]
            pieces.append(piece)
            at += len(piece)
            left -= len(piece)
        is_bad = line and not _may_become_size(line)
        if pieces or not is_bad:
            yield b"".join(pieces)
        if is_bad:
            raise _bad_chunk()
    raise _BrokenReply("the connection was closed before the end of the reply")


def _may_become_size(line: bytes) -> bool:
    ended = b"\n" in line[2:]
    return not ended and len(line) <= MAX_CHUNK_LINE and bool(re.match(_CHUNK_SIZE_BEGINS, line))


def _bad_chunk() -> _BrokenReply:
    return _BrokenReply("a chunk of the reply has no valid size")


_BLANK_LINE = re.compile(rb"\n\r?\n")


def _until_blank_line(connection: "_Connection", block: bytes,
                      limit: int) -> Generator[bytes, None, bytes]:
    """Take a block of lines up to the blank line that ends it, and return it.

    Yields b"" where more has to come.  `block` is what came before; b"\\n" lets it be empty.
    """
    taken = bytearray(block)
    for data in _received(connection):
        searched = max(0, len(taken) - 2)
        taken += data
        blank_line = _BLANK_LINE.search(taken, searched)
        if blank_line and blank_line.end() <= limit:
            connection.ahead = bytes(taken[blank_line.end():])
            return bytes(taken[:blank_line.end()])
        if len(taken) > limit:
            raise _BrokenReply("the headers are longer than %d bytes" % MAX_HEADERS)
        yield b""
    if not taken:
        raise ConnectionAbortedError("the connection was closed without an answer")
    raise _BrokenReply("the connection was closed in the middle of the headers")


def _inflated(body: Iterator[bytes], head: "_Head") -> Iterator[bytes]:
    """The body without its content coding, which was not asked for but may have come."""
    return _inflate(body, head.coding) if head.coding else body


def _inflate(body: Iterator[bytes], coding: str) -> Iterator[bytes]:
    """Undo gzip, or deflate with or without its zlib header, which servers disagree about.

    Comes in pieces of 64 KiB at most, and must not grow out of proportion to what was received:
    4 KiB may be made to say 4 MiB.
    """
    inflater: Any = None
    start = b""
    received = inflated = 0
    for data in body:
        if not data:
            yield b""
            continue
        received += len(data)
        if inflater is None:
            start += data
            if len(start) < 2:
                continue
            data = start
            inflater = zlib.decompressobj(_window(coding, data))
        piece = b"more"
        while piece and not inflater.eof:  # zlib would keep all that comes behind the end.
            try:
                piece = inflater.decompress(data, 65536)
            except zlib.error as error:
                raise _BrokenReply("the reply cannot be decompressed: %s" % error) from None
            data = inflater.unconsumed_tail
            inflated += len(piece)
            if inflated > min(MAX_INFLATED, (1 << 20) + MAX_RATIO * received):
                raise _BrokenReply("the reply grows out of proportion by decompression: %d bytes "
                                   "of %d" % (inflated, received))
            if piece:
                yield piece
    if inflater is None or not inflater.eof:
        raise _BrokenReply("the compressed reply ends too early")


def _window(coding: str, start: bytes) -> int:
    """zlib's parameter for what begins so: deflate may lack the header that RFC 1950 asks for."""
    has_header = start[0] & 15 == 8 and (start[0] << 8 | start[1]) % 31 == 0
    return -zlib.MAX_WBITS if coding == "deflate" and not has_header else zlib.MAX_WBITS | 32


# --------------------------------------------------------------------------------------------------
# Transport
#
# A request in, an open reply or an error of ours out: the one section that does I/O.  urllib's
# opener finds the proxy and runs the caller's handlers; http.client parses the lines of a head.
# --------------------------------------------------------------------------------------------------

_SSL_ERRORS: Tuple[Type[BaseException], ...] = (ssl.SSLError, ssl.CertificateError) if ssl else ()
_WOULD_BLOCK: Tuple[Type[BaseException], ...] = (BlockingIOError,)
if ssl:
    _WOULD_BLOCK += (ssl.SSLWantReadError, ssl.SSLWantWriteError)

# On Windows neither Ctrl-C nor the shutdown of a socket wakes who waits in a system call: there
# the waits to send and to receive are cut into slices, and the call is looked at between two.
_SLICE = 0.25 if os.name == "nt" else math.inf


class _NetworkWait:
    """What a call enters while it waits for the network; that matters to asynchronous ones."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: Any) -> None:
        pass


class _Call:
    """The clock of one call, its retries included, and the means to end it from any thread."""

    def __init__(self, place: str, connect: float, read: float, deadline: float,
                 network: Any = None) -> None:
        self.place = place         # The address, for messages.
        self.connect = connect     # Seconds to connect,
        self.read = read           # and to wait for the next event.
        self.started = time.monotonic()
        self.deadline = self.started + deadline
        self.network = network or _NetworkWait()  # Entered while the network is waited for.
        self._until = math.inf
        self._sock: Any = None     # In use by this call, and by no other.
        self._cancelled = False
        self._pid = os.getpid()
        self._lock = threading.RLock()  # A signal handler may cancel the call in its own thread.

    def start(self, seconds: float) -> float:
        """Start to wait for something for so many seconds; what is not it does not extend them.

        Returns the moment at which the wait ends, on the clock of time.monotonic().
        """
        self._until = min(time.monotonic() + seconds, self.deadline)
        return self._until

    def go_on(self, until: float) -> None:
        """Go on with a wait that was started earlier."""
        self._until = until

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Wait for something on the way, no longer than so many seconds."""
        until = self._until
        self._until = min(until, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._until = until

    def left(self) -> float:
        """Seconds for the next step.

        Raises socket.timeout if there are none, OSError if the call was cancelled.
        """
        if self._cancelled:
            raise OSError("closed")
        remaining = self.remaining
        if not remaining:
            raise socket.timeout("timed out")
        return min(remaining, 1e6)  # More need not fit the platform's time_t.

    def look(self) -> None:
        """Raise what ends the call, even if there is something to do that is no wait."""
        if self._cancelled:
            raise OSError("closed")
        if time.monotonic() >= self.deadline:
            raise socket.timeout("timed out")

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond a cancellation."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._cancelled:
            # An event would wake at once, but not be safe to set in a signal handler.
            time.sleep(max(0.0, min(end - time.monotonic(), 0.05)))

    def hold(self, sock: Any) -> None:
        """Use a socket, which `cancel` then shuts.  Raises OSError if the call was cancelled."""
        with self._lock:
            if self._cancelled:
                raise OSError("closed")
            self._sock = sock

    def let_go(self) -> bool:
        """Use no socket any more; return whether it was left alone, and may serve another call."""
        with self._lock:
            self._sock = None
            return not self._cancelled

    def cancel(self) -> None:
        """End the call at once."""
        with self._lock:
            self._cancelled = True
            sock = self._sock
            if sock is not None and self._pid == os.getpid():  # Else it is the parent's.
                _shut(sock)

    @property
    def remaining(self) -> float:
        """Seconds until the present wait ends."""
        return max(0.0, self._until - time.monotonic())

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


def _shut(sock: Any) -> None:
    """End a connection under whoever reads from it: `shutdown` wakes him, which `close` does not.

    SSLSocket's own `shutdown` would take the TLS object from under the reader.
    """
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


class _Secrets:
    """What no message, log line or traceback may show, though a server repeats it."""

    def __init__(self) -> None:
        self._texts: Set[str] = set()
        self._pattern: Any = None

    def __bool__(self) -> bool:
        return bool(self._texts)

    def add(self, *texts: str) -> None:
        self._texts.update(filter(None, texts))
        self._pattern = None

    def add_header(self, name: str, value: str) -> None:
        """Add what of a header, or of a field of a query, is secret by its name."""
        if not re.search(_SECRET_NAME, name.lower()):
            return
        self.add(value, value.split(" ")[-1])
        if "cookie" in name.lower():
            for cookie in value.split(";"):
                self.add(cookie.partition("=")[2].strip())
        if value.lower().startswith("basic "):
            import base64
            try:
                user, _, password = base64.b64decode(value[6:]).decode().partition(":")
                self.add(password)
            except ValueError:
                pass

    @property
    def longest(self) -> int:
        """Characters of the longest secret, however it is written."""
        return 6 * max([len(text) for text in self._texts] + [0]) + 1

    def hide(self, text: str) -> str:
        if not self._texts:
            return text
        if self._pattern is None:
            self._pattern = self._compiled()
        return str(self._pattern.sub("***", text))

    def _compiled(self) -> Any:
        """A pattern of the secrets in every form in which they may come back."""
        forms: Set[str] = set()
        for text in self._texts:
            forms.update((text, urllib.parse.quote(text), urllib.parse.quote(text, safe=""),
                          text.replace("/", "\\/"), json.dumps(text)[1:-1]))
        parts = []
        for form in sorted(forms, key=len, reverse=True):
            # A short key, such as "any", is hidden where it is a word of its own: anywhere else
            # it would only blur the message.
            part = re.escape(form)
            parts.append(part if len(form) > 7 else r"(?<!\w)%s(?!\w)" % part)
        return re.compile("|".join(parts))

    def hide_in_headers(self, headers: Any) -> Any:
        """The headers of an answer, in which a server may repeat what it was sent."""
        values = "\n".join(map(str, headers.values()))
        if self.hide(values) == values:
            return headers  # Hardly any server does.
        hidden = http.client.HTTPMessage()
        for name, value in headers.items():
            hidden[name] = self.hide(str(value))
        return hidden

    def hide_in(self, value: Any) -> Any:
        """A JSON value without the secrets."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide_in(key): self.hide_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide_in(item) for item in value]
        return value


_SECRET_NAME = (
    "auth|key|token|secret|cookie|passw|pwd|credential|signature|"
    "(^|[^a-z])(code|sig|pass)($|[^a-z])")


# Where a connection leads: scheme, host:port of the server or proxy, host:port that the proxy
# connects to.  A connection serves every request of the same route, and no other.
_Route = Tuple[str, str, str]

# Sockets of connections that were not closed.  A connection that is lost in a reference cycle
# closes its socket in its own finalizer; held here, the socket is no part of the cycle, and its
# finalizer, which would warn, does not come first.  `_Connection.close` takes it out.
_open_sockets: Set[Any] = set()


class _Connection:
    """A socket and what has been received from it; the pipeline's generators take that.

    It holds nothing of the request that it serves, and so nothing of the last one while idle.
    """

    def __init__(self, route: Optional[_Route], sock: Any, round_trip: float) -> None:
        self.route = route
        self.sock = sock
        self.round_trip = round_trip         # Seconds that the TCP handshake took.
        self.ahead = b""                     # Received, and not taken yet.
        self.ended = False                   # Nothing more will be received: the server closed,
        self.fault: Optional[OSError] = None  # or this happened.
        self.received = 0                    # Bytes, in all.
        self.sent_at: Optional[float] = None  # When the request had been sent.
        self._closing = False
        self._pid = os.getpid()
        self._in_use = threading.Lock()      # Held by whoever reads: a socket is not closed then.
        _open_sockets.add(sock)

    def fill(self, call: _Call, wait: bool = True, size: int = 16384) -> bool:
        """Receive some bytes: here comes every one of them, within what is left of the call's time.

        Returns False if there are none yet and `wait` is False.  A fault is kept, to be raised by
        whoever takes what came before it.
        """
        with self._in_use:
            try:
                data = self._receive(call, wait, size)
                if not data and call.cancelled:
                    raise OSError("closed")  # By us: that is no end of a body.
            except _WOULD_BLOCK:
                return False
            except OSError as fault:
                self.fault = fault
                data = b""
        if data:
            self.ahead += data
            self.received += len(data)
        else:
            self.ended = True
        if self._closing:
            self.close()
        return True

    def _receive(self, call: _Call, wait: bool, size: int) -> bytes:
        if self._pid != os.getpid():
            raise OSError("the connection belongs to the process that this one was forked from")
        while True:
            timeout = min(call.left(), _SLICE)
            if not wait:
                timeout = 0.0
            if timeout != self.sock.gettimeout():  # Each setting is a system call.
                self.sock.settimeout(timeout)
            try:
                if not wait:
                    return cast(bytes, self.sock.recv(size))
                with call.network:
                    return cast(bytes, self.sock.recv(size))
            except socket.timeout:
                pass  # It was a slice of the time, or left() raises.

    def send(self, call: _Call, data: bytes) -> None:
        """Send a request; progress restarts the wait: a slow upload is no dead server."""
        self.sent_at = None
        rest = memoryview(data)
        while True:
            began = time.monotonic()
            self.sock.settimeout(min(call.left(), _SLICE))
            try:
                with call.network:
                    sent = self.sock.send(rest[:16384])
            except socket.timeout:
                continue
            rest = rest[sent:]
            if not rest:
                break
            call.start(call.read)
        self.sent_at = began

    def start_tls(self, call: _Call, context: Any, host: str) -> None:
        plain, self.sock = self.sock, context.wrap_socket(
            self.sock, server_hostname=host, do_handshake_on_connect=False)
        _open_sockets.discard(plain)
        _open_sockets.add(self.sock)
        call.hold(self.sock)
        self.sock.settimeout(call.left())
        with call.network:
            self.sock.do_handshake()

    def close(self) -> None:
        """End the connection at once, but close its socket only when nobody reads from it.

        The reader's system call may have been looked up under a descriptor that the next
        connection of the process gets.
        """
        self._closing = True
        _open_sockets.discard(self.sock)
        if self._pid == os.getpid():  # After a fork the connection is the parent's.
            _shut(self.sock)
        if self._in_use.acquire(False):
            try:
                self.sock.close()
            finally:
                self._in_use.release()

    def __del__(self) -> None:
        if "_in_use" in self.__dict__:  # Unless it is half made.
            self.close()


class _Pool:
    """The connections that a client keeps for its next requests."""

    def __init__(self) -> None:
        self._idle: List[Tuple[float, _Connection, Iterator[bytes]]] = []
        self._lock = threading.RLock()  # A signal handler may close the client in its own thread.
        self._pid = os.getpid()
        self._closed = False

    def claim(self, route: _Route, call: _Call) -> Optional[_Connection]:
        """An idle connection that can carry a request, the youngest first."""
        if self._pid != os.getpid():
            self.__init__()  # type: ignore[misc]  # Forked since: they are the parent's.
        while True:
            now = time.monotonic()
            with self._lock:
                stale = [idle for idle in self._idle if now - idle[0] > IDLE_SECONDS]
                self._idle = self._idle[len(stale):]  # The oldest come first.
                known = [idle for idle in self._idle if idle[1].route == route]
                self._idle = [idle for idle in self._idle if idle not in known[-1:]]
            for _, connection, _ in stale:
                connection.close()
            if not known:
                return None
            since, connection, rest_of_body = known[-1]
            if _is_reusable(connection, rest_of_body, call, now - since):
                return connection
            connection.close()

    def release(self, connection: _Connection, rest_of_body: Iterator[bytes]) -> None:
        """Keep a connection that its user is done with, though the body may not have ended.

        Whether it has, `claim` looks at when the connection is next wanted.
        """
        with self._lock:
            if not self._closed:
                self._idle.append((time.monotonic(), connection, rest_of_body))
            surplus = self._idle[:-MAX_IDLE]
            del self._idle[:-MAX_IDLE]
            is_kept = not self._closed
        for _, old, _ in surplus:
            old.close()
        if not is_kept:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection, _ in idle:
            connection.close()

    @property
    def closed(self) -> bool:
        return self._closed


def _is_reusable(connection: _Connection, rest_of_body: Iterator[bytes], call: _Call,
                 age: float) -> bool:
    """Whether the last body has ended, and there is nothing more to read.

    The last bytes of a body, behind [DONE], may be some microseconds late: they get a moment.
    """
    is_young = age < 0.1
    try:
        with call.within(0.1 - age if is_young else 1.0):
            for data in itertools.islice(rest_of_body, 64):
                if not data and not connection.fill(call, wait=is_young):
                    return False
        if next(rest_of_body, None) is not None or connection.ahead:
            return False
        return not connection.fill(call, wait=False)
    except OSError:
        return False


# -- heads --

class _Head:
    """The head of an answer."""

    def __init__(self, status: int, reason: str, headers: Any, keep: bool, chunked: bool,
                 length: Optional[int], coding: str) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.keep = keep        # The connection can serve another request afterwards.
        self.chunked = chunked
        self.length = length    # Of the body; None if its end is told in another way.
        self.coding = coding    # Of the content: "" for none.


_STATUS_LINE = r"HTTP/1\.([01]) +([0-9]{3})(?: +(.*))?\Z"
_HEADER_LINE = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:|[ \t]"  # A blank continues the last one.


def _parse_head(block: bytes) -> _Head:
    """Parse the head of an answer, from its status line to its blank line.

    Raises _BrokenReply for what cannot be understood in one way only: whoever guesses where the
    body begins and ends hands out a part of it as the whole.
    """
    lines = block.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    status_line = re.match(_STATUS_LINE, lines[0])
    if not status_line:
        raise _BrokenReply("the answer is no HTTP/1.1")
    _check_header_lines(lines[1:])
    try:
        headers = http.client.parse_headers(io.BytesIO(block.partition(b"\n")[2]))
    except http.client.HTTPException as error:
        raise _BrokenReply("the headers of the answer cannot be read: %s" % error) from None
    version, status, reason = status_line.groups()
    chunked = _is_chunked(headers)
    length = None if chunked else _content_length(headers)
    if status in ("204", "304"):  # They have no body, whatever their headers say.
        chunked, length = False, 0
    has_end = chunked or length is not None
    coding = str(headers.get("content-encoding") or "").strip().lower()
    return _Head(int(status), reason or "", headers, has_end and _is_kept(headers, version),
                 chunked, length, "" if coding == "identity" else coding)


def _check_header_lines(lines: List[str]) -> None:
    for line in lines:
        if not re.match(_HEADER_LINE, line) or re.search("[\0-\x08\x0b-\x1f]", line):
            raise _BrokenReply("the headers of the answer have a line that is no header")
    if lines and lines[0].startswith((" ", "\t")):
        raise _BrokenReply("the headers of the answer begin with a continuation")


def _is_chunked(headers: Any) -> bool:
    codings = [str(value).strip().lower() for value in headers.get_all("transfer-encoding") or ()]
    if codings in ([], ["identity"], ["chunked"]):
        return codings == ["chunked"]
    raise _BrokenReply("the reply has transfer codings that are not understood")


def _content_length(headers: Any) -> Optional[int]:
    """The length of the body; None if its end is the connection's.  It may be told twice."""
    lengths = {str(value).strip() for value in headers.get_all("content-length") or ()}
    if not lengths:
        return None
    length = lengths.pop()
    if lengths or not re.match("[0-9]{1,18}$", length):
        raise _BrokenReply("the reply has no valid Content-Length")
    return int(length)


def _is_kept(headers: Any, version: str) -> bool:
    """Whether the server keeps the connection, and we may."""
    if "transfer-encoding" in headers and "content-length" in headers:
        return False  # This may be an attempt to smuggle a reply (RFC 9112, section 6.3).
    connection = str(headers.get("connection", "")).lower()
    if version == "0":
        return "keep-alive" in connection
    return "close" not in connection


def _read_head(connection: _Connection, call: _Call) -> _Head:
    """Read the head of the answer, and skip every interim answer (1xx) before it."""
    limit = MAX_HEADERS
    while True:
        while len(connection.ahead) < 5 and not connection.ended:
            connection.fill(call)
        if connection.ahead.startswith((b"\x15\x03", b"\x16\x03")):
            raise _BrokenReply("the answer is TLS: does this port speak https?")
        if not b"HTTP/".startswith(connection.ahead[:5]):
            raise _BrokenReply("the answer is no HTTP")
        reading = _until_blank_line(connection, b"", limit)
        block = _read_through(reading, connection, call)
        head = _parse_head(block)
        if head.status == 101:
            raise _BrokenReply("the server wants to switch protocols")
        if head.status >= 200:
            return head
        limit -= len(block)


def _read_through(reading: Generator[bytes, None, _T], connection: _Connection,
                  call: _Call) -> _T:
    """Run a generator to its end, receiving where it waits; return what it returns."""
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return cast(_T, end.value)
        connection.fill(call)


# -- urllib's part --

# Headers that say where a request ends and what becomes of its connection: a relay that passes on
# those of its own request must not make two requests of ours.
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "te",
                      "trailer", "upgrade", "expect"))


class _Request(urllib.request.Request):
    """A urllib request that knows its call.

    All its headers are unredirected ones: none leaves for another origin.
    """

    def __init__(self, call: _Call, secrets: _Secrets, method: str, url: str,
                 headers: Dict[str, str], body: Optional[bytes], redirects: int = 0) -> None:
        super().__init__(url, data=body, method=method)
        self.call = call
        self.secrets = secrets
        self.own_headers = headers
        self.redirects = redirects
        self.answer_by: Optional[float] = None  # Redirects share one wait.
        self.tunnel = ""   # host:port that the proxy is to connect to.
        self.proxy = ""    # host:port
        self.reply: Optional[_Reply] = None
        for name, value in headers.items():
            self.add_unredirected_header(name, value)

    def set_proxy(self, host: str, type: str) -> None:
        """What proxy handlers call, ours and the caller's."""
        if self.type == "https":
            parts = urllib.parse.urlsplit(self.full_url)
            self.tunnel = "%s:%d" % (_bracketed(parts.hostname or ""), parts.port or 443)
        else:
            self.selector = self.full_url
        self.host = self.proxy = host

    @property
    def through(self) -> str:
        """The proxy, for messages."""
        return " through the proxy %s" % self.proxy if self.proxy else ""

    def encoded(self) -> bytes:
        """The request as it is sent."""
        headers = {"Host": urllib.parse.urlsplit(self.full_url).netloc, "Connection": "keep-alive"}
        for name, value in itertools.chain(self.headers.items(), self.unredirected_hdrs.items()):
            is_proxys = name.lower() == "proxy-authorization" and self.tunnel
            if name.lower() not in _FRAMING and not is_proxys:
                headers[name] = value
        body = cast(Optional[bytes], self.data)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        lines = ["%s %s HTTP/1.1" % (self.get_method(), self.selector)]
        lines += ["%s: %s" % header for header in headers.items()]
        return "\r\n".join(lines + ["", ""]).encode("latin-1") + (body or b"")


class _Reply:
    """An answer whose body has not been read, as urllib's handlers and we see it."""

    def __init__(self, connection: _Connection, head: _Head, call: _Call,
                 pool: Optional[_Pool]) -> None:
        self.connection = connection
        self.head = head
        self.status = self.code = head.status
        self.reason = self.msg = head.reason
        self.headers = head.headers
        self.rest_of_body = _framed(connection, head)
        self.body = _inflated(self.rest_of_body, head)
        self._call = call
        self._pool = pool  # That keeps the connection; None if it cannot be used again.

    def info(self) -> Any:
        return self.headers

    def fill(self, wait: bool = True) -> bool:
        # Little at a time where a little can become much, so that the clock is looked at.
        return self.connection.fill(self._call, wait, 1024 if self.head.coding else 16384)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, waited for."""
        for data in self.body:
            if data:
                yield data
            else:
                self.fill()

    def read(self, size: int = MAX_ERROR_BODY) -> bytes:
        """At most so many bytes of the body."""
        pieces: List[bytes] = []
        left = size
        for data in self.pieces():
            pieces.append(data)
            left -= len(data)
            if left <= 0:
                break
        return b"".join(pieces)[:size]

    def release(self) -> None:
        """Be done with it: its connection may serve another request."""
        if self._call.let_go() and self._pool is not None:
            self._pool.release(self.connection, self.rest_of_body)
        else:
            self.connection.close()

    def close(self) -> None:
        """End its connection."""
        self.connection.close()


class _ProxyError(OSError):
    """The proxy refused to connect."""

    def __init__(self, head: _Head, reason: str) -> None:
        super().__init__("the proxy answered %d %s" % (head.status, reason))
        self.head = head


class _Handler(urllib.request.BaseHandler):
    """http and https for the opener, over connections that are kept; and redirects."""

    def __init__(self, pool: _Pool, context: Callable[[], Any]) -> None:
        self._pool = pool
        self._context = context

    def http_open(self, request: Any) -> _Reply:
        if not isinstance(request, _Request):
            raise TypeError("handlers: a handler must pass on the request that it gets")
        if request.reply is not None:
            request.reply.close()  # A handler of the caller's asks again.
        call = request.call
        call.start(call.connect)
        route = (request.type, request.host, request.tunnel)
        connection = self._pool.claim(route, call)
        if connection is not None:
            received = connection.received
            try:
                return self._exchange(connection, request)
            except (ConnectionError,) + _SSL_ERRORS:
                # A server that closed while the connection was idle has seen no request, and asking
                # again is no other attempt.  But whoever answers with a byte, or closes later than
                # a round trip after the request, may have worked on it.
                allowed = 0.1 + 2 * connection.round_trip
                since = connection.sent_at
                was_late = since is not None and time.monotonic() - since > allowed
                if was_late or connection.received > received:
                    raise
        return self._exchange(self._connect(request, route), request)

    https_open = http_open

    def http_response(self, request: Any, reply: Any) -> Any:
        if not isinstance(reply, _Reply):
            raise TypeError("handlers: a handler must return what the opener has given it")
        return reply

    https_response = http_response

    def _connect(self, request: _Request, route: _Route) -> _Connection:
        """Open a connection, all within the call's connect timeout: every address, the proxy's
        answer, the handshake; but not the look-up of the name, which the system bounds.
        """
        call = request.call
        context = self._context() if request.type == "https" else None
        default_port = 443 if context is not None and not request.tunnel else 80
        connection: Optional[_Connection] = None
        call.start(call.connect)
        try:
            started = time.monotonic()
            with call.network:
                sock = _open_socket(request.host, default_port, call)
            connection = _Connection(route, sock, time.monotonic() - started)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if request.tunnel:
                _connect_through_proxy(connection, request)
            if context is not None:
                host = urllib.parse.urlsplit(request.full_url).hostname
                connection.start_tls(call, context, host or "")
            return connection
        except BaseException as fault:
            if connection is not None:
                connection.close()
            if isinstance(fault, (OSError, ValueError)):
                raise _no_connection(fault, request) from fault
            raise

    def _exchange(self, connection: _Connection, request: _Request) -> _Reply:
        """Send the request, read the head of the answer."""
        call = request.call
        refused: Optional[OSError] = None
        try:
            call.hold(connection.sock)
            if request.answer_by is None:
                request.answer_by = call.start(call.read)
            call.go_on(request.answer_by)
            try:
                connection.send(call, request.encoded())
            except OSError as error:
                # A server that refuses may answer before it has read everything (413, 401).
                refused = error
            try:
                head = _read_head(connection, call)
            except OSError:
                if refused is not None:
                    raise refused from None
                raise
        except BaseException:
            call.let_go()
            connection.close()
            raise
        keep = head.keep and refused is None
        refused = None
        request.reply = _Reply(connection, head, call, self._pool if keep else None)
        return request.reply

    def http_error_307(self, request: Any, reply: _Reply, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect that keeps method and body, to the same origin."""
        url = _location(reply, request.full_url)
        if request.redirects >= 5 or not url or _origin(url) != _origin(request.full_url):
            return reply
        _log("debug", "%d: redirected to %s", code, _bare(url, request.secrets.hide))
        _error_body(reply, request.call)
        reply.release()
        again = _Request(request.call, request.secrets, request.get_method(), url,
                         request.own_headers, request.data, request.redirects + 1)
        again.answer_by = request.answer_by
        return self.parent.open(again)

    http_error_308 = http_error_307

    def http_error_default(self, request: Any, reply: Any, code: int, msg: str,
                           headers: Any) -> Any:
        """No exceptions of urllib's: every answer is returned."""
        return reply


def _open_socket(netloc: str, default_port: int, call: _Call) -> socket.socket:
    """Connect to the first address of a host that answers; the time is shared between them."""
    parts = urllib.parse.urlsplit("//" + netloc)
    host, port = parts.hostname or "", parts.port or default_port
    addresses = socket.getaddrinfo(host.encode(), port, 0, socket.SOCK_STREAM)
    first_error: Optional[OSError] = None
    for i, (family, kind, protocol, _, address) in enumerate(addresses):
        others = len(addresses) - i - 1
        sock: Optional[socket.socket] = None
        try:
            sock = socket.socket(family, kind, protocol)  # Fails where IPv6 is switched off.
            call.hold(sock)
            seconds = call.left() / (others + 1)
            if others and _is_loopback(str(address[0])):
                # Windows takes 2 s to refuse ::1, which "localhost" means first.
                seconds = min(seconds, 0.3)
            sock.settimeout(seconds)
            sock.connect(address)
            return sock
        except BaseException as error:
            if sock is not None:
                sock.close()
            if not isinstance(error, OSError):
                raise
            if first_error is None or not isinstance(error, socket.timeout):
                first_error = error
    try:
        raise first_error or OSError("the host has no address")
    finally:
        first_error = None


def _connect_through_proxy(connection: _Connection, request: _Request) -> None:
    lines = ["CONNECT %s HTTP/1.1" % request.tunnel, "Host: " + request.tunnel,
             "User-Agent: " + _user_agent()]
    if request.has_header("Proxy-authorization"):
        lines.append("Proxy-Authorization: %s" % request.get_header("Proxy-authorization"))
    call = request.call
    call.hold(connection.sock)
    connection.sock.settimeout(call.left())
    connection.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    head = _read_head(connection, call)
    if not 200 <= head.status < 300:
        raise _ProxyError(head, _excerpt(request.secrets.hide(head.reason), 60))
    if connection.ahead:
        raise _BrokenReply("the proxy sent something before the server could")


class _ProxyHandler(urllib.request.ProxyHandler):
    """The proxies that urllib finds when the client is made; loopback is never proxied."""

    def __init__(self) -> None:
        proxies = urllib.request.getproxies_environment()
        self._source = "%s_PROXY"
        # Windows and macOS have settings besides; elsewhere both functions are one.
        has_settings = urllib.request.getproxies is not urllib.request.getproxies_environment
        if has_settings and not proxies:
            proxies = urllib.request.getproxies()
            self._source = "the %s proxy of the system's settings"
            if os.name == "nt":
                proxies = _windows_proxies(proxies)
        self._no_proxy = proxies.get("no")
        super().__init__({name: proxies[name] for name in ("http", "https") if name in proxies})

    def proxy_open(self, req: Any, proxy: str, type: str) -> None:
        if req.proxy or _bypasses_proxy(req.host, self._no_proxy):
            return
        source = self._source % type.upper()
        parts = _split_proxy(proxy)
        if parts is None:
            raise OpenAIError("%s is not a valid URL: a # / ? or @ in its password must be written "
                              "%%23 %%2F %%3F %%40 (it is not shown here)" % source)
        if parts.scheme != "http":
            raise OpenAIError("the proxy for %s: is a %s: proxy (%s); only http: proxies are "
                              "spoken here: set %s to one, or unset it"
                              % (type, parts.scheme, parts.hostname, source))
        if parts.username is not None:
            import base64
            user = urllib.parse.unquote(parts.username)
            password = urllib.parse.unquote(parts.password or "")
            credentials = base64.b64encode((user + ":" + password).encode()).decode()
            req.add_unredirected_header("Proxy-authorization", "Basic " + credentials)
            req.secrets.add(password, credentials)
        req.set_proxy(parts.netloc.rpartition("@")[2], "http")


def _split_proxy(proxy: str) -> Optional[urllib.parse.SplitResult]:
    """The parts of a proxy's URL, whose scheme may be left out; None if it is not valid."""
    try:
        proxy.encode()
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else "http://" + proxy)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    # An @ that is not in the authority stood behind a letter that ends it.
    is_whole = ("@" in parts.netloc) == ("@" in proxy)
    return parts if has_host and is_whole else None


def _windows_proxies(proxies: Dict[str, str]) -> Dict[str, str]:
    """What urllib makes of the registry, in one form on every Python.

    Up to 3.8 it writes https://host:port for the proxy of https, which is an http: proxy; a SOCKS
    proxy is all that there is under the name "socks".
    """
    found = {}
    for name, url in proxies.items():
        if sys.version_info < (3, 9) and url.startswith("https://"):
            url = "http://" + url[len("https://"):]
        if not url.endswith("://"):
            found[name] = url
    if "socks" in found:
        for name in ("http", "https"):
            found.setdefault(name, found["socks"])
    return found


def _bypasses_proxy(netloc: str, no_proxy: Optional[str]) -> bool:
    """NO_PROXY may hold names and ports, as urllib knows them, and networks (10.0.0.0/8)."""
    host = urllib.parse.urlsplit("//" + netloc).hostname or ""
    if _is_loopback(host):
        return True
    if no_proxy is None:
        # The system's own list, on Windows and macOS.
        return bool(urllib.request.proxy_bypass(netloc))
    if urllib.request.proxy_bypass_environment(netloc, {"no": no_proxy}):  # type: ignore
        return True
    if "/" in no_proxy:
        import ipaddress  # Only here: it is large.
        for item in no_proxy.split(","):
            try:
                network = ipaddress.ip_network(item.strip(), strict=False)
                if ipaddress.ip_address(host) in network:
                    return True
            except ValueError:
                pass  # A name.
    return False


# -- addresses --

def _is_loopback(host: str) -> bool:
    return bool(re.match(r"(127(\.[0-9]{1,3}){3}|::1|(.*\.)?localhost)\Z", host))


def _bracketed(host: str) -> str:
    return "[%s]" % host if ":" in host else host


def _origin(url: str) -> Tuple[str, Optional[str], int, Optional[str]]:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname, port, parts.username


def _location(reply: _Reply, url: str) -> str:
    """Where a redirect points to; "" if nowhere that could be asked."""
    location = reply.headers.get("location")
    try:
        target = urllib.parse.urljoin(url, location) if location else ""
        target = urllib.parse.urldefrag(target).url
        _origin(target)
        return target if re.match(r"[!-~]*\Z", target) else ""
    except ValueError:
        return ""


def _bare(url: str, hide: Callable[[str], str] = str) -> str:
    """A URL for messages: without query, user name and password."""
    parts = urllib.parse.urlsplit(url)
    return _excerpt(hide("%s://%s%s" % (parts.scheme, parts.netloc.rpartition("@")[2], parts.path)))


def _user_agent() -> str:
    """One of our own: firewalls answer "Python-urllib" with 403."""
    return "streamlite/%s Python/%d.%d" % ((__version__,) + sys.version_info[:2])


# -- TLS --

_CA_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@functools.lru_cache(maxsize=None)
def _tls_context(cert_file: str, cert_dir: str, *bundles: str) -> Any:
    """A context that verifies certificates, made once per process and setting: it takes 20 ms."""
    if ssl is None:
        raise OpenAIError("this Python has no ssl module: only http: URLs work")
    for name, path in zip(_CA_VARIABLES, (cert_file, cert_dir) + bundles):
        if path and not any([os.path.exists(part) for part in path.split(os.pathsep)]):
            raise OpenAIError("%s names %s, which does not exist: set it to a file (or folder) of "
                              "CA certificates" % (name, path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:  # Python 3.6.
        context.options |= ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    if ssl.HAS_ALPN:
        context.set_alpn_protocols(["http/1.1"])
    bundle = bundles[0] or bundles[1]
    if not (cert_file or cert_dir):
        cert_file, cert_dir = ("", bundle) if os.path.isdir(bundle) else (bundle, "")
    try:
        _load_certificates(context, cert_file, cert_dir)
    except OSError as error:
        place = cert_file or cert_dir or "the system's store"
        raise OpenAIError("the CA certificates in %s cannot be read: %s"
                          % (place, error)) from error
    return context


def _load_certificates(context: Any, cert_file: str, cert_dir: str) -> None:
    if cert_file or cert_dir:
        # OpenSSL reads the two variables itself, but is silent about what is wrong.
        context.load_verify_locations(cert_file or None, cert_dir or None)
    elif hasattr(ssl, "enum_certificates"):
        _load_windows_store(context)
    else:
        context.load_default_certs()


def _load_windows_store(context: Any) -> None:
    """Windows' certificates, without the bad ones: load_default_certs fails for one of them."""
    if ssl is None:
        return
    for store in ("CA", "ROOT"):
        for data, encoding, trust in cast(Any, ssl).enum_certificates(store):
            is_trusted = trust is True or ssl.Purpose.SERVER_AUTH.oid in trust
            if encoding == "x509_asn" and is_trusted:
                try:
                    context.load_verify_locations(cadata=data)
                except (ssl.SSLError, ValueError):
                    pass
    if not context.cert_store_stats()["x509"]:
        raise OSError("none of them is valid")


# -- what went wrong, in our words --

def _no_connection(fault: BaseException, request: _Request) -> APIError:
    """The error for a fault before the request was sent: what happened, where, what to do."""
    call = request.call
    url = call.place
    host = urllib.parse.urlsplit(request.full_url).hostname or ""
    reason = _excerpt(str(fault) or type(fault).__name__)
    if call.cancelled:
        return APIConnectionError(message="the stream from %s was closed" % url)
    if isinstance(fault, (socket.timeout, TimeoutError)):
        return _timeout_error(call, "no connection within %g s%s" % (
            call.connect, request.through))
    if isinstance(fault, _ProxyError):
        message = "no connection to %s: %s (%s); %s" % (
            host, reason, request.proxy, _proxy_remedy(fault.head, request.secrets.hide))
    elif _is_certificate_error(fault):
        message = "no connection: the certificate of %s is not trusted (%s); %s" % (
            host, reason, _certificate_remedy(reason))
    elif isinstance(fault, socket.gaierror):
        message = ("no connection: the host %s is not known (%s): check base_url, or set "
                   "HTTPS_PROXY if this network has a proxy" % (request.proxy or host, reason))
    elif isinstance(fault, ConnectionRefusedError):
        message = "no connection: nothing listens at %s: is the %s running?" % (
            request.proxy or url, "proxy" if request.proxy else "server")
    elif isinstance(fault, _SSL_ERRORS):
        plain = re.search("(?i)wrong.version|http.request|record layer|unknown protocol", reason)
        message = "no TLS connection to %s (%s): %s" % (
            host, reason, "this port seems to speak plain http: write http:// in base_url"
            if plain else "does this port speak https?")
    else:
        message = "no connection to %s%s: %s" % (url, request.through, reason)
    return APIConnectionError(message=message)


def _lost_connection(fault: BaseException, call: _Call, chunks: int = 0) -> APIError:
    """The error for a fault after the request was sent."""
    place = call.place
    when = " after %d chunks and %.1f s" % (chunks, call.elapsed) if chunks else ""
    if call.cancelled:
        return APIConnectionError(message="the stream from %s was closed%s" % (place, when))
    if isinstance(fault, (socket.timeout, TimeoutError)):
        return _timeout_error(call, "no event for %g s" % call.read, when)
    return APIConnectionError(message="the connection to %s was lost%s (%s)" % (
        place, when, _excerpt(str(fault) or type(fault).__name__)))


def _timeout_error(call: _Call, limit: str, when: str = "") -> APITimeoutError:
    if time.monotonic() >= call.deadline:
        limit = "the deadline of %g s passed" % (call.deadline - call.started)
    else:
        limit += " (timeout)"
    return APITimeoutError(message="timed out: %s%s: %s" % (limit, when, call.place))


def _is_certificate_error(error: Optional[BaseException]) -> bool:
    if not ssl:
        return False
    return isinstance(error, ssl.CertificateError) or "CERTIFICATE_VERIFY_FAILED" in str(error)


_STRICTNESS = ("(?i)key ?(identifier|usage)|basic constraints|critical|path length|"
                         "name empty|ecc parameters|x509v3")


def _certificate_remedy(reason: str) -> str:
    lower = reason.lower()
    if "expired" in lower or "not yet valid" in lower:
        return "it is out of date, or the clock of this machine is wrong"
    if "match" in lower:
        return "it was issued for another name: check the host in base_url"
    if re.search(_STRICTNESS, reason):
        return ("Python 3.13 made ssl.create_default_context() stricter than this CA's "
                "certificates: clear ssl.VERIFY_X509_STRICT in the verify_flags of the "
                "ssl_context that you pass")
    return ("if a private CA or an intercepting proxy issued it, set SSL_CERT_FILE to that CA's "
            "certificate; on macOS run \"Install Certificates.command\" of the Python folder once")


def _proxy_remedy(head: _Head, hide: Callable[[str], str], others: str = "") -> str:
    if head.status == 407:
        challenges = head.headers.get_all("proxy-authenticate") or ()
        schemes = ", ".join([hide(str(value)).split(" ")[0] for value in challenges])
        return ("it asks for %s: put user:password@ into the proxy's URL for Basic; for others "
                "%srun px or cntlm on this machine and set HTTPS_PROXY to it"
                % (_excerpt(schemes) or "credentials", others))
    return "check HTTPS_PROXY and NO_PROXY"


def _status_error(reply: _Reply, url: str, call: _Call, secrets: _Secrets) -> APIStatusError:
    """The error for an answer that is no success, read to its end or to what can be had of it."""
    status, hide = reply.status, secrets.hide
    body_bytes = _error_body(reply, call)
    if len(body_bytes) >= MAX_ERROR_BODY:
        body_bytes = body_bytes[:-secrets.longest]  # Half a secret may stand where it was cut.
    text = body_bytes.decode("utf-8", "replace").strip()
    try:
        value = secrets.hide_in(_parse_json(text))
        text = _dump_json(value)
        body, words = _server_error(value)
    except ValueError:
        text = hide(text)
        body, words = text, text
    if words.startswith("<"):
        words = "an HTML page" + _title(words)
    else:
        words = _with_code(words, body)
    reason = _excerpt(hide(reply.reason or http.client.responses.get(status, "")), 60)
    message = "%s: %s%s (%s)" % (("%d %s" % (status, reason)).strip(),
                                 _excerpt(words, 1000) or "no message",
                                 _status_hint(reply, url, words, hide), _bare(url))
    return _status_error_class(status)(
        message, response=Response(status, secrets.hide_in_headers(reply.headers), text), body=body)


def _title(page: str) -> str:
    start = page.lower().find("<title>")
    end = page.lower().find("</title>", start)
    return ": " + page[start + len("<title>"):end] if 0 <= start < end else ""


def _status_hint(reply: _Reply, url: str, words: str, hide: Callable[[str], str]) -> str:
    """What to do about a status, where that is known."""
    status = reply.status
    if 300 <= status < 400:
        target = _location(reply, url)
        location = str(reply.headers.get("location") or "nowhere")
        shown = _bare(target, hide) if target else _excerpt(hide(location))
        hint = "; it redirects to %s, which is not followed" % shown
        if url.startswith("http:") and _origin(target)[:2] == ("https", _origin(url)[1]):
            hint += ": use the https URL as base_url"
        return hint
    if status == 407:
        return "; " + _proxy_remedy(reply.head, hide, "pass `handlers`, or ")
    if status == 404 and not re.search("/v1|/openai/", url):
        return "; should base_url end in /v1?"
    if status == 400 and url.startswith("http:") and "https" in words.lower():
        return "; this port seems to speak https: write https:// in base_url"
    return ""


_CODINGS = ("", "gzip", "x-gzip", "deflate")


def _error_body(reply: _Reply, call: _Call) -> bytes:
    """The start of the body: however it ends, it must not keep the status from the caller."""
    body = b""
    with call.within(PATIENCE):
        try:
            for data in reply.pieces():
                body += data
                if len(body) >= MAX_ERROR_BODY:
                    break
        except OSError:
            pass
    return body[:MAX_ERROR_BODY]


class _Transport:
    """One opener, and the connections that it keeps between requests."""

    def __init__(self, ssl_context: Any, handlers: Sequence[urllib.request.BaseHandler]) -> None:
        settings = tuple([os.environ.get(name, "") for name in _CA_VARIABLES])
        self.pool = _Pool()
        self._opener = urllib.request.OpenerDirector()
        mine: List[urllib.request.BaseHandler] = [
            _Handler(self.pool, lambda: ssl_context or _tls_context(*settings)),
            urllib.request.HTTPErrorProcessor()]
        if not any([isinstance(handler, urllib.request.ProxyHandler) for handler in handlers]):
            mine.append(_ProxyHandler())
        # An opener makes its handlers its own: the caller's are copied.
        for handler in mine + [copy.copy(handler) for handler in handlers]:
            self._opener.add_handler(handler)

    def open(self, call: _Call, secrets: _Secrets, method: str, url: str, headers: Dict[str, str],
             body: Optional[bytes]) -> _Reply:
        """Send a request; return the reply of a success, whose body has not been read."""
        request = _Request(call, secrets, method, url, headers, body)
        try:
            reply = cast(_Reply, self._opener.open(request))
            if not 200 <= reply.status < 300:
                error: APIError = _status_error(reply, url, call, secrets)
                reply.release()
                raise error
            if reply.head.coding not in _CODINGS:
                reply.close()
                coding = secrets.hide(str(reply.headers.get("content-encoding")))
                raise APIResponseValidationError(message=(
                    "the server compressed its reply, though that was not asked for, with %s"
                    % _excerpt(coding)))
            return reply
        except (OSError, ValueError, http.client.HTTPException) as fault:
            raise _lost_connection(fault, call) from fault
        finally:
            _log("debug", "%s %s: %.3f s", method, call.place, call.elapsed)

    def close(self) -> None:
        self.pool.close()

    def __del__(self) -> None:
        # The opener and its handlers hold each other, and the pool: connections would wait for a
        # garbage collection.  (A constructor that failed has left no pool.)
        if "pool" in self.__dict__:
            self.close()


# --------------------------------------------------------------------------------------------------
# Retries
#
# One policy for both clients: a function of the error and of the number of attempts.  No I/O.
# --------------------------------------------------------------------------------------------------

def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        if isinstance(cause, _ProxyError) and cause.head.status < 500:
            return False
        return not _is_certificate_error(cause)
    if not isinstance(error, APIStatusError):
        return False
    if "insufficient_quota" in (error.code, error.type):
        return False
    # The header speaks of the reply's own status, not of an error that came later in its body.
    if error.response is not None and error.response.status_code == error.status_code:
        told = str(error.response.headers.get("x-should-retry")).lower()
        if told in ("true", "false"):
            return told == "true"
    return error.status_code in (408, 409, 429) or 500 <= error.status_code < 600


def _retry_wait(error: APIError, attempts: int, max_retries: float,
                chance: float) -> Optional[float]:
    """Seconds to wait before another attempt; None if there is to be none.

    The server's word counts, up to MAX_RETRY_AFTER; else the back-off doubles with each attempt,
    less up to a quarter by `chance`, from 0 to 1, so that many clients do not come at once.
    """
    if attempts > max_retries or not _is_transient(error):
        return None
    seconds = error.retry_after
    if seconds is None:
        seconds = min(FIRST_BACK_OFF * 2 ** min(attempts - 1, 10), LAST_BACK_OFF)
        seconds *= 1 - 0.25 * chance
    return seconds if seconds <= MAX_RETRY_AFTER else None


def _retry_after(headers: Any) -> Optional[float]:
    """Seconds that a server asks to wait, told in milliseconds, seconds, or as an HTTP date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = str(headers.get(name, "")).strip()
        if re.match(r"[0-9]{1,12}(\.[0-9]*)?$", value):
            return float(value) * unit
    from email.utils import mktime_tz, parsedate_tz
    try:
        date = parsedate_tz(value)
        return max(0.0, mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError, LookupError):
        return None


# --------------------------------------------------------------------------------------------------
# Streams
#
# A stream drives the pipeline of its attempt: it takes the next chunk, and receives where there is
# none.  It opens another attempt where the policy says so, and completes every error.
# --------------------------------------------------------------------------------------------------

_Item = TypeVar("_Item")

_UNOPENED, _STREAMING, _WHOLE, _FAILED = "unopened", "streaming", "whole", "failed"


class _Attempt:
    """One request, and what comes of it."""

    def __init__(self, reply: _Reply, asked: _Asked, call: _Call, secrets: _Secrets) -> None:
        self.reply = reply
        self.chunks = _answer(_payloads(reply.body, secrets.hide), asked, call)
        self.events = 0          # Chunks received,
        self.look_at = MAX_TURN  # and after how many the clock is looked at.


class _Exchange:
    """A request that can be sent as often as it takes, and what is known of its answer."""

    def __init__(self, request: Request, asked: _Asked, call: _Call, secrets: _Secrets,
                 max_retries: float, key: Callable[[], Any], send: Callable[[Any], _Reply]) -> None:
        self.request = request
        self.asked = asked
        self.call = call
        self.secrets = secrets
        self.max_retries = max_retries
        self.key = key    # Asks the caller for the key, at every attempt.
        self.send = send  # Sends the request with a key.


class _BaseStream(Generic[_Item]):
    """What both kinds of streams are: everything but the waiting."""

    _state = _FAILED  # Until it is made: an interrupt may come before.
    _hints = ("a stream has chunks: iterate it, or call collect() for the whole reply; "
              "`completion` is what has come so far")

    def __init__(self, exchange: _Exchange) -> None:
        self.response: Optional[Response] = None  # status_code, headers, request_id
        self._exchange = exchange
        self._call = exchange.call
        self._attempt: Optional[_Attempt] = None
        self._at_rest = True  # Not while a chunk is taken: an interrupt may lose it.
        self._attempts = 0
        self._accumulator = Accumulator()
        self._handed_out = False             # The caller has seen a chunk: nothing is repeated.
        self._failure: Optional[OpenAIError] = None
        self._longest: Optional[ChatCompletion] = None  # Of the attempt that came furthest,
        self._most_events = -1                          # with so many events.
        self._first_token_at: Optional[float] = None
        self._ended_at: Optional[float] = None
        self._reading = threading.Lock()     # Held by whoever drives the pipeline.
        self._state = _UNOPENED

    def __getattr__(self, name: str) -> NoReturn:
        hint = self._hints if name in ("choices", "usage", "message", "delta", "id") else ""
        raise AttributeError("%r object has no attribute %r%s" % (
            type(self).__name__, name, hint and ": " + hint))

    @property
    def completion(self) -> ChatCompletion:
        """What has been read so far, in the shape of a whole reply."""
        completion = self._accumulator.completion
        completion._request_id = self.response.request_id if self.response else None
        return completion

    @property
    def time_to_first_token(self) -> Optional[float]:
        """Seconds from the call to the first content, None before."""
        if self._first_token_at is None:
            return None
        return self._first_token_at - self._call.started

    @property
    def elapsed(self) -> float:
        """Seconds from the call to the end of the stream, or to now."""
        return (self._ended_at or time.monotonic()) - self._call.started

    def _count_attempt(self) -> None:
        self._attempts += 1
        self._first_token_at = self._ended_at = None
        self.response = None
        self._accumulator = Accumulator()

    def _send(self, key: Any) -> _Attempt:
        """Send the request, read the head of the answer."""
        reply = self._exchange.send(key)
        if self._call.cancelled:
            reply.close()
            raise _lost_connection(OSError(), self._call)
        return _Attempt(reply, self._exchange.asked, self._call, self._exchange.secrets)

    def _begin(self, attempt: _Attempt) -> _Attempt:
        """An attempt was answered."""
        self._attempt = attempt
        self._state = _STREAMING
        secrets = self._exchange.secrets
        self.response = Response(attempt.reply.status,
                                 secrets.hide_in_headers(attempt.reply.headers))
        return attempt

    def _note_first(self, chunk: ChatCompletionChunk) -> None:
        """Note the moment at which the first content came."""
        if _brings_something(chunk):
            self._first_token_at = time.monotonic()

    def _finish(self, attempt: _Attempt, verdict: Optional[_Whole]) -> None:
        """The answer is whole, if there is a verdict: none comes from a dead generator."""
        if verdict is None or self._state is _FAILED:  # An interrupt may have come on the way.
            self._interrupt()
            self._is_over()
            return
        self._state = _WHOLE
        self._attempt = None
        if verdict.trouble is None:
            attempt.reply.release()
        else:
            attempt.reply.close()
        self._log_end(attempt.events, "whole")

    def _retry(self, fault: BaseException) -> float:
        """An attempt has failed: return the seconds to wait before the next one.

        Raises the error for the caller if there is to be none: because the policy says so, or
        because he has seen chunks, and must not get them again behind his back.
        """
        attempt, self._attempt = self._attempt, None
        events = attempt.events if attempt else 0
        if attempt:
            attempt.reply.close()
        error = fault
        if not isinstance(error, APIError):
            error = _lost_connection(fault, self._call, events)
            error.__cause__ = fault
        self._log_end(events, type(error).__name__)
        self._complete(error, events)
        seconds: Optional[float] = None
        is_told_midway = events > 0 and not isinstance(error, APIConnectionError)
        if not (self._handed_out or is_told_midway or self._call.cancelled):
            import random
            seconds = _retry_wait(
                error, self._attempts, self._exchange.max_retries, random.random())
        if seconds is None or time.monotonic() + seconds >= self._call.deadline:
            self._state = _FAILED
            self._failure = copy.copy(error)  # Without its traceback, which holds this stream.
            try:
                raise error
            finally:
                del error, fault
        _log("info", "attempt %d failed, the next is in %.2f s: %s",
             self._attempts, seconds, error)
        return seconds

    def _complete(self, error: APIError, events: int = 0) -> None:
        """Add to an error what is known of its call, and take the secrets out."""
        secrets = self._exchange.secrets
        error.request = self._exchange.request
        if error.response is None:
            error.response = self.response
        if self.response is not None and events >= self._most_events:
            self._longest, self._most_events = self.completion, events
        error.partial = self._longest
        error.attempts = self._attempts
        error.elapsed = self._call.elapsed
        if error.response is not None:
            error.retry_after = _retry_after(error.response.headers)
        error.message = secrets.hide(error.message)
        error.args = (error.message,)
        error.body = secrets.hide_in(error.body)
        error.code, error.param, error.type = secrets.hide_in(
            [error.code, error.param, error.type])
        cause = "%r %s" % (error.__cause__, error.__cause__)
        if secrets.hide(cause) != cause:
            error.__cause__ = error.__context__ = None

    def _log_end(self, events: int, why: str) -> None:
        self._ended_at = time.monotonic()
        _log("debug", "stream from %s: %d events, %.3f s, ended: %s", self._exchange.request.url,
             events, self._call.elapsed, why)

    def _is_over(self) -> bool:
        """Whether the answer is whole.  Raises what ended a stream that is used again."""
        if self._state is not _FAILED:
            return self._state is _WHOLE
        failure = self._failure
        if failure is None:
            failure = OpenAIError("this stream was closed: read it before close(), and inside "
                                  "its `with` block")
        if failure.partial is None:
            failure.partial, failure.attempts = self.completion, self._attempts
            failure.elapsed = self.elapsed
        raise copy.copy(failure)

    def _interrupt(self) -> None:
        """An exception that is none of ours came while the stream was read.

        Some of it may be lost (a Ctrl-C ends generators, an answer would have a hole): whoever
        uses the stream again gets an error.  Another interrupt may come at any call, that of this
        function included: who has taken a chunk notes first that the stream is not at rest.
        """
        if self._state is _FAILED and self._attempt is None:
            return
        self._state = _FAILED
        self._failure = APIConnectionError(
            message="the stream was interrupted while it was read",
            request=self._exchange.request)
        self._call.cancel()
        attempt = self._attempt
        if attempt is not None:
            attempt.reply.close()
            self._log_end(attempt.events, "interrupted")
            self._attempt = None  # Last: while there is one, all of this is done again.

    def _cut(self) -> None:
        """End the stream, from any thread; whoever reads it then gets an error."""
        if self._state in (_WHOLE, _FAILED):
            return
        self._call.cancel()
        if self._reading.acquire(False):
            try:
                if self._state not in (_WHOLE, _FAILED):
                    self._state = _FAILED
                    if self._attempt is not None:
                        attempt, self._attempt = self._attempt, None
                        attempt.reply.close()
                        self._log_end(attempt.events, "closed")
            finally:
                self._reading.release()

    def __del__(self) -> None:
        self._cut()


class _Closing:
    """`with` closes it."""

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()  # type: ignore[attr-defined]


class Stream(_BaseStream[_Item], _Closing):
    """The chunks of one reply, as they come.

    `with` ends the connection, and so the server's work, when you leave it.

        for chunk in stream: ...          # ChatCompletionChunk; `break` and iterate again to go on
        for text in stream.text(): ...    # the text of choice 0
        completion = stream.collect()     # the rest of it, as a ChatCompletion
        stream.completion                 # what has come so far, at any time

    Raises the errors of `create`; APIError, or the subclass for its code, for an error that the
    server reports in the stream; APIConnectionError for a stream that ends too early or is lost;
    APITimeoutError; each with `partial`.  Once a chunk was handed out, nothing is asked again.
    """

    def __iter__(self) -> "Stream[_Item]":
        return self

    def __aiter__(self) -> NoReturn:
        raise TypeError("this stream is synchronous: write `for`, or use AsyncOpenAI")

    def __next__(self) -> ChatCompletionChunk:
        try:
            chunk = self._next()
            if chunk is not None:
                self._handed_out = True
                return chunk
        except BaseException:
            self._at_rest = False
            self._interrupt()
            raise
        raise StopIteration

    def text(self) -> Iterator[str]:
        """Iterate the text of choice 0, without empty pieces."""
        return iter(self._next_text, None)

    def collect(self) -> ChatCompletion:
        """Read to the end and return the whole reply, what was iterated before included.

        If nothing was, nobody has seen anything: the loss of the connection in the middle may be
        cured by starting over.
        """
        try:
            while self._next() is not None:
                pass
        except BaseException:
            self._interrupt()
            raise
        return self.completion

    def sse(self) -> Iterator[bytes]:
        """The stream as bytes for a browser's EventSource: each chunk as JSON in an event, then
        [DONE].

        An error becomes an event named `error`.  It shows the server's words of its own error,
        bounded and on one line, but nothing of the server's address or of the network.
        """
        try:
            for chunk in self:
                yield encode_sse(_WireObject.to_json(chunk, indent=None))
            yield encode_sse("[DONE]")
        except APIError as error:
            yield _encode_error(error)
        finally:
            self.close()

    def close(self) -> None:
        """End the connection at once, from any thread.

        A read or a wait in another thread ends with APIConnectionError.
        """
        self._cut()

    def _next_text(self) -> Optional[str]:
        """The next text; None at the end of a whole answer."""
        try:
            while True:
                chunk = self._next()
                if chunk is None:
                    return None
                self._handed_out = True
                text = _chunk_text(chunk)
                if text:
                    return text
        except BaseException:
            self._at_rest = False
            self._interrupt()
            raise

    def _next(self) -> Optional[ChatCompletionChunk]:
        """The next chunk; None at the end of a whole answer."""
        if self._state is _FAILED and self._attempt is None:
            # The lock is not asked for: an interrupt at the end of a `with` block may have left it
            # locked, up to Python 3.9.
            self._is_over()
        with self._reading:
            if self._attempt is not None and not self._at_rest:
                self._interrupt()
            while True:
                attempt = self._attempt
                if attempt is None:
                    if self._is_over():
                        return None
                    attempt = self._open()
                self._at_rest = False
                try:
                    if attempt.events >= attempt.look_at:
                        attempt.look_at += MAX_TURN
                        self._call.look()
                    chunk = next(attempt.chunks)
                    if chunk is not None:
                        attempt.events += 1
                        self._accumulator.add(chunk)
                        if self._first_token_at is None:
                            self._note_first(chunk)
                        self._at_rest = True
                        return chunk
                    # No stage of the pipeline waits: an interrupt there would end its generators,
                    # which looks like the end of an answer.
                    attempt.reply.fill()
                except StopIteration as end:
                    self._finish(attempt, end.value)
                except (APIError, OSError) as fault:
                    self._call.sleep(self._retry(fault))

    def _open(self) -> _Attempt:
        """Make attempts until one is answered."""
        while True:
            key = self._exchange.key()  # What the caller's function raises is left as it is.
            self._count_attempt()
            try:
                return self._begin(self._send(key))
            except APIError as error:
                self._call.sleep(self._retry(error))

    def _start(self) -> None:
        """Open the stream before it is iterated."""
        try:
            with self._reading:
                self._open()
        except BaseException:
            self._interrupt()
            raise

    def _read(self, parse: Callable[[str, Callable[[str], str]], _T]) -> _T:
        """A reply that is no completion, such as the list of models."""
        while True:
            attempt = self._open()
            self._call.start(self._call.read)
            try:
                text = attempt.reply.read(MAX_EVENT).decode("utf-8-sig", "replace")
                result = parse(text, self._exchange.secrets.hide)
                self._finish(attempt, _Whole(None))
                return result
            except (APIError, OSError) as fault:
                self._call.sleep(self._retry(fault))


def _encode_error(error: APIError) -> bytes:
    """An error as an event for a browser."""
    words = "the model's server refused"
    code: Any = None
    if isinstance(error, APITimeoutError):
        words = "the model's server did not answer in time"
    elif isinstance(error, APIConnectionError):
        words = "the connection to the model's server was lost"
    elif isinstance(error, APIResponseValidationError):
        words = "the model's server sent something else than an answer"
    elif isinstance(error.body, dict):
        words = _excerpt(_server_error(error.body)[1], 1000)
        code = error.code
        if not (isinstance(code, int) and abs(code) < 1000000):
            code = _excerpt(str(code), 100) if code else None
    kind = _excerpt(str(error.type or type(error).__name__), 100)
    fields = {"message": words, "type": kind, "code": code}
    return encode_sse(_dump_json({"error": fields}), event="error")


# --------------------------------------------------------------------------------------------------
# Clients
#
# Settings, and the streams made from them; what can be wrong in a call is found before it is sent.
# --------------------------------------------------------------------------------------------------

class NotGiven:
    """The SDK's way to say that an argument was left out."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "NOT_GIVEN"


class Timeout:
    """The SDK's: one number for all, and others for some of them."""

    def __init__(self, timeout: Any = None, *, connect: Any = NotGiven, read: Any = NotGiven,
                 write: Any = None, pool: Any = None) -> None:
        self.connect = timeout if connect is NotGiven else connect
        self.read = timeout if read is NotGiven else read


Omit = NotGiven
NOT_GIVEN = not_given = omit = NotGiven()
_warned: Set[str] = set()

_STREAM_HAS = ("create(stream=True) returns a Stream with `completion`, the reply so far, and "
               "`response`, its status and headers")
_NOT_OFFERED = {
    "http_client": "pass ssl_context for certificates and handlers for urllib handlers; proxies "
                   "come from the environment",
    "parse": "send response_format as a dict, and json.loads the message's content",
    "beta": "for parse(), send response_format as a dict to chat.completions.create and "
            "json.loads the message's content",
    "stream": _STREAM_HAS, "with_raw_response": _STREAM_HAS, "with_streaming_response": _STREAM_HAS,
    "responses": "only chat completions are spoken here: client.chat.completions.create(...)",
    "create": "write client.chat.completions.create(...)",
}


def _given(value: Any, default: Any) -> Any:
    """The value, or the default where it was left out: None and NOT_GIVEN say so."""
    return default if value is None or isinstance(value, NotGiven) else value


def _shown(value: Any) -> str:
    """A value for a message; integers of thousands of digits refuse to be shown."""
    try:
        return _excerpt(repr(value), 60)
    except ValueError:
        return "such " + type(value).__name__


def _seconds(value: Any) -> Optional[float]:
    """A positive number of seconds; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _timeouts(timeout: Any) -> Tuple[float, float]:
    """(connect, read) from a number, a pair, an object with these attributes, or None."""
    pair: Any = (timeout, timeout)
    if isinstance(timeout, (tuple, list)):
        pair = timeout
    elif hasattr(timeout, "connect") and hasattr(timeout, "read"):
        pair = (timeout.connect, timeout.read)
    seconds = [math.inf if value is None else _seconds(value) for value in pair]
    if len(seconds) != 2 or None in seconds:
        raise OpenAIError("timeout must be seconds, (connect, read) in seconds, or None, not %s"
                          % _shown(timeout))
    return cast(Tuple[float, float], tuple(seconds))


def _check_key(key: Any) -> str:
    """A key that can be sent; an error must not show it."""
    if key is not None and not isinstance(key, str):
        raise OpenAIError("api_key must be a str, or a function that returns one, not %s"
                          % type(key).__name__)
    if not re.match(r"[!-~]*\Z", key or ""):
        raise OpenAIError("the API key holds a space, a line break or a letter outside ASCII: was "
                          "it copied with something around it? (It is not shown here.)")
    return key or ""


_Headers = Dict[str, Tuple[str, Optional[str]]]  # By name in lower case; None: not to be sent.


def _merge_headers(headers: _Headers, more: Any, argument: str) -> None:
    """Later values win, whatever the case of the name; None takes a header out."""
    if not isinstance(more, Mapping):
        raise TypeError("%s must be a dict of header names and values, not %s"
                        % (argument, type(more).__name__))
    for name, value in more.items():
        if not isinstance(name, str) or not re.match(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z", name):
            raise OpenAIError("%s: the header name %r is not valid" % (argument, name))
        if value is None or isinstance(value, NotGiven):
            headers[name.lower()] = (name, None)
            continue
        if not isinstance(value, str) or not re.match(r"[\t -~]*\Z", value):
            raise OpenAIError("%s: the value of the header %s must be text of printable ASCII, "
                              "without line breaks" % (argument, name))
        headers[name.lower()] = (name, value)


def _merge_query(query: Dict[str, Any], more: Any, argument: str) -> None:
    if not isinstance(more, Mapping):
        raise TypeError("%s must be a dict of names and values, not %s"
                        % (argument, type(more).__name__))
    try:
        urllib.parse.urlencode(dict(more), doseq=True)
    except (UnicodeError, TypeError, ValueError):
        raise OpenAIError("%s holds what a URL cannot carry" % argument) from None
    query.update({name: value for name, value in more.items() if not isinstance(value, NotGiven)})


def _split_base_url(base_url: str) -> Tuple[str, str]:
    """A base URL without its query, and that."""
    example = "base_url must be http://HOST/... or https://HOST/..., such as " + DEFAULT_BASE_URL
    try:
        parts = urllib.parse.urlsplit(base_url.strip())
        host, port = parts.hostname or "", parts.port
        if not re.match(r"[!-~]*\Z", host):
            host = host.encode("idna").decode()
        safe = "/%:@!$&'()*+,;=~-._?"
        path = urllib.parse.quote(parts.path.rstrip("/"), safe=safe)
        query = urllib.parse.quote(parts.query, safe=safe)
    except ValueError:
        # Its text may hold what was taken for a port: a password.
        raise OpenAIError("base_url is not a valid URL, such as %s (it is not shown here)"
                          % DEFAULT_BASE_URL) from None
    if "@" in parts.netloc or "@" in parts.fragment:
        raise OpenAIError("base_url must not hold a user name or password: pass "
                          "default_headers={'Authorization': ...}")
    if parts.scheme not in ("http", "https"):
        is_url = "://" in base_url
        raise OpenAIError("%s, not %s" % (
            example, _excerpt(parts.scheme) + ":..." if is_url else "a text without http://"))
    if not re.match(r"[\w.:%~-]+\Z", host):
        raise OpenAIError("%s: its host is not valid" % example)
    if path.endswith("/chat/completions"):
        path = path[:-len("/chat/completions")]
    netloc = _bracketed(host) + ("" if port is None else ":%d" % port)
    return "%s://%s%s" % (parts.scheme, netloc, path), query


def _completion_body(messages: Any, model: Any, stream: Any, extra_body: Any,
                     fields: Dict[str, Any]) -> Dict[str, Any]:
    """The fields of a request for a completion, looked at before anything is sent."""
    if not isinstance(model, str) or not model:
        raise TypeError("model must be the name of a model, not %s" % _shown(model))
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TypeError("messages must be a list such as [{'role': 'user', 'content': '...'}], "
                        "not %s" % type(messages).__name__)
    messages = list(messages)
    for message in messages:
        if not isinstance(message, Mapping) and not hasattr(type(message), "model_dump"):
            raise TypeError("each of messages must be a dict such as {'role': 'user', 'content': "
                            "'...'}, not %s" % type(message).__name__)
    if isinstance(fields.get("response_format"), type):
        raise TypeError("response_format must be a dict: " + _NOT_OFFERED["parse"])
    extra_body = _given(extra_body, {})
    if not isinstance(extra_body, Mapping):
        raise TypeError("extra_body must be a dict of fields, not %s" % type(extra_body).__name__)
    body = dict({"messages": messages, "model": model}, **fields)
    if stream is not None:
        body["stream"] = stream
    body.update(extra_body)
    return {name: value for name, value in body.items() if not isinstance(value, NotGiven)}


def _encode_body(body: Dict[str, Any]) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, _WireObject):
            return _plain(value, True, True)  # Strict servers refuse a null that is not expected.
        if isinstance(value, Mapping):
            return dict(value)
        if hasattr(value, "model_dump"):
            return value.model_dump(exclude_none=True)  # A message of the SDK's.
        raise TypeError("%s is no JSON value" % type(value).__name__)

    try:
        text = json.dumps(body, default=default, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError("the request cannot be written as JSON: %s" % error) from None
    return text.encode("ascii")


def _asked(body: Dict[str, Any]) -> _Asked:
    choices, options = body.get("n"), body.get("stream_options")
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    return _Asked(choices if isinstance(choices, int) else 1, usage and bool(body.get("stream")))


class _Requester:
    """What the parts of a client share: its settings and its connections."""

    changeable = frozenset((
        "api_key", "organization", "project", "base_url", "timeout", "max_retries", "deadline",
        "default_headers", "default_query", "ssl_context", "handlers"))
    _key_header = "Authorization"

    def __init__(self, settings: Dict[str, Any]) -> None:
        self.transport: Any = None
        self.change(settings)

    def change(self, settings: Dict[str, Any]) -> None:
        """Take settings over, unless they cannot work, which is told at once."""
        changed = copy.copy(self)
        changed._set(settings)
        self.__dict__.update(changed.__dict__)

    def _set(self, settings: Dict[str, Any]) -> None:
        for name, value in settings.items():
            setattr(self, name, value)
        _timeouts(self.timeout)
        if self.deadline is not None and _seconds(self.deadline) is None:
            raise OpenAIError("deadline must be seconds, or None, not %s" % _shown(self.deadline))
        is_number = isinstance(self.max_retries, (int, float))
        if not is_number or not self.max_retries >= 0:
            raise OpenAIError("max_retries must be a number from 0, not %s"
                              % _shown(self.max_retries))
        if not callable(self.api_key):
            _check_key(self.api_key)
        headers = self.headers({}, False)
        self.query({})
        has_key = self.api_key or not self._wants_key(headers)
        if not has_key and self._base_url == DEFAULT_BASE_URL:
            raise OpenAIError("no API key for %s: pass api_key, or set the environment variable "
                              "OPENAI_API_KEY" % DEFAULT_BASE_URL)
        if self.ssl_context is not None and not hasattr(self.ssl_context, "wrap_socket"):
            raise TypeError("ssl_context must be an ssl.SSLContext, not %s"
                            % type(self.ssl_context).__name__)
        if not isinstance(self.handlers, (list, tuple)):
            raise TypeError("handlers must be a list of urllib.request handlers, not %s"
                            % type(self.handlers).__name__)
        for handler in self.handlers:
            if not isinstance(handler, urllib.request.BaseHandler):
                raise TypeError("handlers must be urllib.request handlers, not %s"
                                % type(handler).__name__)
        if self.transport is None or {"base_url", "ssl_context", "handlers"} & set(settings):
            self.transport = _Transport(self.ssl_context, self.handlers)

    api_key: Any
    organization: Optional[str]
    project: Optional[str]
    timeout: Any
    max_retries: float
    deadline: Optional[float]
    default_headers: Mapping[str, Any]
    default_query: Mapping[str, Any]
    ssl_context: Any
    handlers: Sequence[urllib.request.BaseHandler]

    @property
    def base_url(self) -> str:
        """Without its query."""
        return self._base_url

    @base_url.setter
    def base_url(self, base_url: Any) -> None:
        if isinstance(base_url, (int, float, bytes)):
            raise TypeError("base_url must be a str, not %s" % type(base_url).__name__)
        self._base_url, self.base_query = _split_base_url(str(base_url))

    def headers(self, extra_headers: Any, has_body: bool) -> _Headers:
        headers: _Headers = {}
        _merge_headers(headers, {
            "Accept": "text/event-stream, application/json", "Accept-Encoding": "identity",
            "User-Agent": _user_agent()}, "")
        _merge_headers(headers, {"OpenAI-Organization": self.organization or None}, "organization")
        _merge_headers(headers, {"OpenAI-Project": self.project or None}, "project")
        _merge_headers(headers, self.default_headers, "default_headers")
        if has_body:
            _merge_headers(headers, {"Content-Type": "application/json"}, "")
        _merge_headers(headers, extra_headers, "extra_headers")
        return headers

    def query(self, extra_query: Any) -> str:
        query: Dict[str, Any] = {}
        _merge_query(query, self.default_query, "default_query")
        _merge_query(query, extra_query, "extra_query")
        encoded = urllib.parse.urlencode(query, doseq=True)
        return "&".join(filter(None, [self.base_query, encoded]))

    def url(self, path: str, body: Optional[Dict[str, Any]]) -> str:
        return self._base_url + path

    def _wants_key(self, headers: _Headers) -> bool:
        """Whether the caller has not said himself how he is known, or that he is not."""
        return "authorization" not in headers and self._key_header.lower() not in headers

    def _checked_key(self, key: Any) -> str:
        return _check_key(key)

    def _authorization(self, key: str) -> Tuple[str, str]:
        return "Authorization", "Bearer " + key

    def exchange(self, method: str, path: str, body: Optional[Dict[str, Any]] = None, *,
                 extra_headers: Any = None, extra_query: Any = None, timeout: Any = NOT_GIVEN,
                 network: Any = None) -> _Exchange:
        """Make a request ready to be sent.  What can be wrong with it is found here."""
        data = None if body is None else _encode_body(body)
        query = self.query(_given(extra_query, {}))
        url = self.url(path, body) + ("?" + query if query else "")
        headers = self.headers(_given(extra_headers, {}), data is not None)
        connect, read = _timeouts(self.timeout if isinstance(timeout, NotGiven) else timeout)
        deadline = math.inf if self.deadline is None else self.deadline
        call = _Call(_bare(url), connect, read, deadline, network)
        secrets = _Secrets()
        sent = {name: value for name, value in headers.values() if value is not None}
        for name, value in itertools.chain(sent.items(), urllib.parse.parse_qsl(query)):
            secrets.add_header(name, value)
        wants_key = self._wants_key(headers)
        transport = self.transport

        def send(key: Any) -> _Reply:
            if wants_key and self._checked_key(key):
                secrets.add(key)
                name, value = self._authorization(key)
                sent[name] = value
            if secrets:
                _warn_of_plain_http(url)
            reply: _Reply = transport.open(call, secrets, method, url, sent, data)
            return reply

        key = self.api_key
        return _Exchange(Request(method, call.place), _asked(body or {}), call, secrets,
                         self.max_retries, key if callable(key) else lambda: key, send)


def _warn_of_plain_http(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        if parts.netloc not in _warned:
            _warned.add(parts.netloc)
            import logging
            logging.getLogger("streamlite").warning(
                "credentials go to %s over plain http, where the network can read them: use https",
                parts.hostname)


class _Setting:
    """An attribute of a client that is one of its requester's."""

    def __set_name__(self, owner: Any, name: str) -> None:
        self._name = name

    def __get__(self, client: Any, owner: Any = None) -> Any:
        return self if client is None else getattr(client._requester, self._name)

    def __set__(self, client: Any, value: Any) -> None:
        client._requester.change({self._name: value})


class _Part:
    """A part of a client's interface."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError("%s has no %r: %s" % (type(self).__name__, name, _NOT_OFFERED.get(
            name, "only chat completions and models are offered here")))


_AnyClient = TypeVar("_AnyClient", bound="_BaseClient")


class _BaseClient(_Part):
    """What all clients are."""

    api_key = _Setting()
    organization = _Setting()
    project = _Setting()
    base_url = _Setting()
    timeout = _Setting()
    max_retries = _Setting()
    deadline = _Setting()
    default_headers = _Setting()
    default_query = _Setting()
    ssl_context = _Setting()
    handlers = _Setting()

    def __init__(self, *positional: NoReturn, api_key: Any = None,
                 organization: Optional[str] = None, project: Optional[str] = None,
                 base_url: Any = None, timeout: Any = NOT_GIVEN, max_retries: Any = None,
                 default_headers: Optional[Mapping[str, Any]] = None,
                 default_query: Optional[Mapping[str, Any]] = None, http_client: None = None,
                 ssl_context: Any = None, handlers: Sequence[urllib.request.BaseHandler] = (),
                 deadline: Optional[float] = None, **unknown: Any) -> None:
        _refuse(type(self).__name__, positional, http_client, unknown)
        environment = os.environ.get
        self._use(_Requester(_settings(
            timeout, max_retries, default_headers, default_query, ssl_context, handlers, deadline,
            api_key=_given(api_key, environment("OPENAI_API_KEY")),
            organization=_given(organization, environment("OPENAI_ORG_ID")),
            project=_given(project, environment("OPENAI_PROJECT_ID")),
            base_url=_given(base_url, environment("OPENAI_BASE_URL")) or DEFAULT_BASE_URL)))

    def _use(self, requester: Any) -> None:
        """Make the parts, which hold what they need, and not this client."""
        raise NotImplementedError

    def with_options(self: _AnyClient, **changes: Any) -> _AnyClient:
        """A client with other settings.

        It shares this one's connections, unless base_url, ssl_context or handlers are others.
        None and NOT_GIVEN mean "as it was", but for timeout and deadline, which may be None.
        Headers and query fields are added to those that there are.
        """
        may_be_none = ("timeout", "deadline")
        changes = {
            name: value for name, value in changes.items()
            if not isinstance(value, NotGiven) and (value is not None or name in may_be_none)}
        requester = copy.copy(self._requester)
        _refuse(type(self).__name__, (), None, {
            name: None for name in changes if name not in requester.changeable})
        for name in ("default_headers", "default_query"):
            if isinstance(changes.get(name), Mapping):
                changes[name] = dict(getattr(requester, name), **changes[name])
        requester.change(changes)
        client = type(self).__new__(type(self))
        client.__dict__.update(self.__dict__)
        client._use(requester)
        return client

    copy = with_options

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._requester.transport.pool.closed)

    def __repr__(self) -> str:
        return "%s(base_url=%r)" % (type(self).__name__, self.base_url)

    _requester: Any


def _settings(timeout: Any, max_retries: Any, default_headers: Any, default_query: Any,
              ssl_context: Any, handlers: Any, deadline: Any, **others: Any) -> Dict[str, Any]:
    """A client's settings, where they were left out by default."""
    return dict(
        others, timeout=DEFAULT_TIMEOUT if isinstance(timeout, NotGiven) else timeout,
        max_retries=_given(max_retries, DEFAULT_MAX_RETRIES),
        default_headers=_given(default_headers, {}), default_query=_given(default_query, {}),
        ssl_context=_given(ssl_context, None), handlers=_given(handlers, ()),
        deadline=_given(deadline, None))


def _refuse(client: str, positional: Sequence[Any], http_client: Any,
            unknown: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments that are not offered, with what to do instead."""
    if positional:
        raise TypeError("%s takes its arguments by name: %s(api_key=...)" % (client, client))
    if http_client is not None and not isinstance(http_client, NotGiven):
        raise TypeError("%s: http_client: %s" % (client, _NOT_OFFERED["http_client"]))
    for name in unknown:
        hint = _NOT_OFFERED.get(name)
        raise TypeError("%s has no argument %r%s" % (client, name, ": " + hint if hint else ""))


if TYPE_CHECKING:
    _Messages = Iterable[Union[Mapping[str, Any], _WireObject]]
    _Number = Union[float, None, NotGiven]
    _Count = Union[int, None, NotGiven]
    _Texts = Union[str, Sequence[str], None, NotGiven]
    _Fields = Union[Mapping[str, Any], None, NotGiven]
    _Tools = Union[Iterable[Mapping[str, Any]], None, NotGiven]
    _Tool = Union[str, Mapping[str, Any], None, NotGiven]


class Completions(_Part):
    """`client.chat.completions`"""

    def __init__(self, requester: _Requester) -> None:
        self._requester = requester

    @overload
    def create(
            self, *, messages: "_Messages", model: str, stream: "Literal[True]",
            temperature: "_Number" = ..., top_p: "_Number" = ..., max_tokens: "_Count" = ...,
            n: "_Count" = ..., stop: "_Texts" = ..., tools: "_Tools" = ...,
            tool_choice: "_Tool" = ..., response_format: "_Fields" = ...,
            stream_options: "_Fields" = ..., timeout: Any = ...,
            **fields: Any) -> Stream[ChatCompletionChunk]: ...

    @overload
    def create(
            self, *, messages: "_Messages", model: str,
            stream: "Union[Literal[False], None, NotGiven]" = ...,
            temperature: "_Number" = ..., top_p: "_Number" = ..., max_tokens: "_Count" = ...,
            n: "_Count" = ..., stop: "_Texts" = ..., tools: "_Tools" = ...,
            tool_choice: "_Tool" = ..., response_format: "_Fields" = ...,
            stream_options: "_Fields" = ..., timeout: Any = ...,
            **fields: Any) -> ChatCompletion: ...

    @overload
    def create(
            self, *, messages: "_Messages", model: str, stream: bool,
            temperature: "_Number" = ..., top_p: "_Number" = ..., max_tokens: "_Count" = ...,
            n: "_Count" = ..., stop: "_Texts" = ..., tools: "_Tools" = ...,
            tool_choice: "_Tool" = ..., response_format: "_Fields" = ...,
            stream_options: "_Fields" = ..., timeout: Any = ...,
            **fields: Any) -> Union[Stream[ChatCompletionChunk], ChatCompletion]: ...

    def create(
            self, *, messages: Any, model: str, stream: Any = None, temperature: Any = NOT_GIVEN,
            top_p: Any = NOT_GIVEN, max_tokens: Any = NOT_GIVEN, n: Any = NOT_GIVEN,
            stop: Any = NOT_GIVEN, tools: Any = NOT_GIVEN, tool_choice: Any = NOT_GIVEN,
            response_format: Any = NOT_GIVEN, stream_options: Any = NOT_GIVEN,
            extra_headers: Any = None, extra_query: Any = None, extra_body: Any = None,
            timeout: Any = NOT_GIVEN, **fields: Any) -> Any:
        """Ask for a completion; every other argument goes into the request as it is.

        messages: dicts, or messages of earlier replies
        stream:   True returns a `Stream` as soon as the server answers; else a `ChatCompletion`
        extra_headers, extra_query, extra_body: added to those of the client, and to the fields
        timeout:  seconds, as in `OpenAI`

        Raises TypeError for arguments that cannot be sent, OpenAIError for a key or header that
        cannot be, and the tree under APIError for what server and network do.
        Source: https://platform.openai.com/docs/api-reference/chat/create
        """
        fields.update(temperature=temperature, top_p=top_p, max_tokens=max_tokens, n=n, stop=stop,
                      tools=tools, tool_choice=tool_choice, response_format=response_format,
                      stream_options=stream_options)
        body = _completion_body(messages, model, stream, extra_body, fields)
        result: Stream[ChatCompletionChunk] = Stream(self._requester.exchange(
            "POST", "/chat/completions", body, extra_headers=extra_headers,
            extra_query=extra_query, timeout=timeout))
        if not body.get("stream"):
            return result.collect()
        result._start()
        return result


class Chat(_Part):
    """`client.chat`"""

    def __init__(self, requester: _Requester) -> None:
        self.completions = Completions(requester)


class Models(_Part):
    """`client.models`"""

    def __init__(self, requester: _Requester) -> None:
        self._requester = requester

    def list(self, **options: Any) -> ModelPage:
        """What the server serves.  Takes extra_headers, extra_query and timeout."""
        stream: Stream[Any] = Stream(self._requester.exchange("GET", "/models", **options))
        return stream._read(_model_page)

    def retrieve(self, model: str, **options: Any) -> Model:
        """One of the models."""
        stream: Stream[Any] = Stream(
            self._requester.exchange("GET", _model_path(model), **options))
        return stream._read(_model)


def _model_path(model: str) -> str:
    if model == "":
        raise ValueError("model must be the name of a model, not ''")
    return "/models/" + _quoted(model, "model", safe=":")


def _quoted(text: Any, argument: str, safe: str = "") -> str:
    """A text as a part of a URL's path."""
    if not isinstance(text, str):
        raise TypeError("%s must be a str, not %s" % (argument, type(text).__name__))
    try:
        return urllib.parse.quote(text, safe=safe)
    except UnicodeError:
        raise TypeError("%s holds what a URL cannot carry" % argument) from None


def _model_page(text: str, hide: Callable[[str], str]) -> ModelPage:
    """The list of models; names alone are taken, too, and what has no name is left out."""
    body = _json_object(text, hide)
    if not isinstance(body.get("data"), list):
        raise _not_ours(text, hide, "no list of models; is base_url right?")
    models = [{"id": item} if isinstance(item, str) else item for item in body["data"]]
    body["data"] = [model for model in models
                    if isinstance(model, dict) and isinstance(model.get("id"), str)]
    return _wire(ModelPage, body)


def _model(text: str, hide: Callable[[str], str]) -> Model:
    body = _json_object(text, hide)
    if not isinstance(body.get("id"), str):
        raise _not_ours(text, hide, "no model; is base_url right?")
    return _wire(Model, body)


def _json_object(text: str, hide: Callable[[str], str]) -> Dict[str, Any]:
    try:
        body = _parse_json(text)
    except ValueError as error:
        raise _not_ours(text.strip(), hide, str(error)) from None
    if not isinstance(body, dict):
        raise _not_ours(text, hide, "no JSON object; is base_url right?")
    if body.get("error"):
        raise _reported_error(body, hide)
    return body


class OpenAI(_BaseClient, _Closing):
    """The SDK's client for chat completions; it can be shared between threads.

    api_key:         OPENAI_API_KEY if None; a function is asked at every attempt.  Servers that
                     need none get none
    base_url:        OPENAI_BASE_URL, else OpenAI's; a query, a trailing slash or the whole
                     endpoint is understood
    timeout:         seconds: a number, (connect, read), an object with these attributes, or None;
                     `read` is the longest wait for the next event
    deadline:        seconds that a whole call may take, retries and reading included
    max_retries:     attempts after the first, while nothing has been delivered
    default_headers, default_query: added to every request
    ssl_context:     an ssl.SSLContext, for client certificates or a CA of your own
    handlers:        urllib handlers (digest, NTLM, ...) for the opener

    Raises OpenAIError for settings that cannot work.
    """

    chat: Chat
    models: Models

    def _use(self, requester: _Requester) -> None:
        self._requester = requester
        self.chat = Chat(requester)
        self.models = Models(requester)

    def close(self) -> None:
        """Close the connections that are kept for later."""
        self._requester.transport.close()


class _AzureSettingError(OpenAIError, ValueError):
    """A setting is missing: the SDK raises ValueError for it."""


class _AzureRequester(_Requester):
    """Azure's addresses hold the deployment, and its keys a header of their own."""

    changeable = _Requester.changeable | {
        "api_version", "azure_ad_token", "azure_ad_token_provider"}
    api_version: str

    def _set(self, settings: Dict[str, Any]) -> None:
        token = settings.pop("azure_ad_token", None)
        token = settings.pop("azure_ad_token_provider", None) or token
        if token:
            settings.update(api_key=token, _key_header="Authorization")
        elif "api_key" in settings:
            settings["_key_header"] = "api-key"
        super()._set(settings)

    def query(self, extra_query: Any) -> str:
        query = {"api-version": self.api_version}
        _merge_query(query, extra_query, "extra_query")
        return super().query(query)

    def url(self, path: str, body: Optional[Dict[str, Any]]) -> str:
        base = self.base_url
        if body is None:
            # The list of models is no deployment's.
            return re.sub("/deployments/[^/]*$", "", base) + path
        if "/deployments" not in urllib.parse.urlsplit(base).path:
            base += "/deployments/" + _quoted(body["model"], "model")
        return base + path

    def _checked_key(self, key: Any) -> str:
        if not isinstance(key, str) or not key:
            raise _AzureSettingError("azure_ad_token_provider, or the function that is api_key, "
                                     "must return a str that is not empty")
        return super()._checked_key(key)

    def _authorization(self, key: str) -> Tuple[str, str]:
        if self._key_header == "api-key":
            return "api-key", key
        return super()._authorization(key)


class _BaseAzure(_BaseClient):
    """What both Azure clients are."""

    api_version = _Setting()

    def __init__(self, *positional: NoReturn, azure_endpoint: Optional[str] = None,
                 azure_deployment: Optional[str] = None, api_version: Optional[str] = None,
                 api_key: Any = None, azure_ad_token: Optional[str] = None,
                 azure_ad_token_provider: Any = None, organization: Optional[str] = None,
                 project: Optional[str] = None, base_url: Any = None, timeout: Any = NOT_GIVEN,
                 max_retries: Any = None, default_headers: Optional[Mapping[str, Any]] = None,
                 default_query: Optional[Mapping[str, Any]] = None, http_client: None = None,
                 ssl_context: Any = None, handlers: Sequence[urllib.request.BaseHandler] = (),
                 deadline: Optional[float] = None, **unknown: Any) -> None:
        _refuse(type(self).__name__, positional, http_client, unknown)
        environment = os.environ.get
        self._use(_AzureRequester(_settings(
            timeout, max_retries, default_headers, default_query, ssl_context, handlers, deadline,
            organization=_given(organization, environment("OPENAI_ORG_ID")),
            project=_given(project, environment("OPENAI_PROJECT_ID")),
            api_version=_azure_version(_given(api_version, environment("OPENAI_API_VERSION"))),
            base_url=_azure_url(_given(base_url, None), _given(azure_endpoint, None),
                                _given(azure_deployment, None)),
            **_azure_credential(_given(api_key, None), _given(azure_ad_token, None),
                                _given(azure_ad_token_provider, None)))))


def _azure_credential(api_key: Any, token: Any, provider: Any) -> Dict[str, Any]:
    """The one credential there is: of the arguments, else of the environment."""
    found = {"api_key": api_key, "azure_ad_token": token, "azure_ad_token_provider": provider}
    found = {name: value for name, value in found.items() if value}
    if len(found) > 1:
        raise OpenAIError("pass only one of api_key, azure_ad_token and azure_ad_token_provider")
    if found:
        return found
    for variable, name in (("AZURE_OPENAI_AD_TOKEN", "azure_ad_token"),
                           ("AZURE_OPENAI_API_KEY", "api_key")):
        if os.environ.get(variable):
            return {name: os.environ[variable]}
    raise OpenAIError("no credentials: pass api_key, azure_ad_token or azure_ad_token_provider, or "
                      "set AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN")


def _azure_version(version: Optional[str]) -> str:
    if version is None:
        raise _AzureSettingError("no api_version: pass it, such as '2024-10-21', or set "
                                 "OPENAI_API_VERSION")
    return version


def _azure_url(base_url: Any, endpoint: Optional[str], deployment: Optional[str]) -> str:
    if base_url and endpoint:
        raise _AzureSettingError("pass either base_url or azure_endpoint")
    if base_url:
        return str(base_url)
    endpoint = endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
    if not endpoint:
        raise _AzureSettingError("no azure_endpoint: pass it, such as "
                                 "'https://NAME.openai.azure.com', or set AZURE_OPENAI_ENDPOINT")
    if not isinstance(endpoint, str):
        raise TypeError("azure_endpoint must be a str, not %s" % type(endpoint).__name__)
    url = endpoint.rstrip("/") + "/openai"
    return url + "/deployments/" + _quoted(deployment, "azure_deployment") if deployment else url


class AzureOpenAI(_BaseAzure, OpenAI):
    """The SDK's client for Azure's own addresses.

    azure_endpoint:   https://NAME.openai.azure.com; AZURE_OPENAI_ENDPOINT if None
    azure_deployment: the deployment for all calls; if None, `model` names it
    api_version:      OPENAI_API_VERSION if None
    api_key, azure_ad_token, azure_ad_token_provider: one of them, else AZURE_OPENAI_AD_TOKEN or
                      AZURE_OPENAI_API_KEY; the provider is asked at every attempt

    The other arguments are those of `OpenAI`, and so are the errors.
    """


# --------------------------------------------------------------------------------------------------
# Asynchronous clients
#
# The same streams with asyncio.  A thread opens each, since urllib's way is synchronous; then the
# loop reads the body as it comes, or a thread does on loops that cannot watch a socket (Windows'
# proactor).  Nothing above knows asyncio.
# --------------------------------------------------------------------------------------------------

_Job = Callable[[Optional[BaseException]], None]


class _Openers:
    """Daemon threads that do the blocking work of asynchronous calls, one for each job.

    No thread is started while so many are at work as `limit` says: a thousand streams opened at
    once would fight each other, and the loop, for the interpreter.  Who waits for the network is
    not at work, and goes on at once when it answers.

    asyncio's default executor is not used: streams that wait would starve whatever else needs it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._at_work = 0
        self._queue: Deque[_Job] = collections.deque()
        self._lock = threading.RLock()  # A garbage collection may withdraw a job in any thread.
        self._pid = os.getpid()

    def submit(self, job: _Job) -> None:
        """Call `job` in a thread, or with the error that prevents that."""
        if self._pid != os.getpid():
            self.__init__(self._limit)  # type: ignore[misc]  # Forked: the threads stayed behind.
        with self._lock:
            self._queue.append(job)
        self.count(0)

    def withdraw(self, job: _Job) -> bool:
        """Take a job back; return whether it had not begun."""
        with self._lock:
            try:
                self._queue.remove(job)
                return True
            except ValueError:
                return False

    def count(self, more: int) -> None:
        """So many more threads are at work, or fewer; start those that may be now."""
        with self._lock:
            self._at_work += more
        while True:
            with self._lock:
                if not self._queue or self._at_work >= self._limit:
                    return
                self._at_work += 1
                job = self._queue.popleft()
            try:
                threading.Thread(target=self._run, args=(job,), name="streamlite",
                                 daemon=True).start()
            except RuntimeError as error:
                with self._lock:
                    self._at_work -= 1
                job(error)

    def _run(self, job: _Job) -> None:
        try:
            job(None)
        finally:
            self.count(-1)


_openers = _Openers(2)


class _QueuedNetworkWait(_NetworkWait):
    """Gives the turn to another thread meanwhile."""

    def __init__(self) -> None:
        import asyncio
        self._loop = asyncio.get_event_loop()

    def __enter__(self) -> None:
        if self._loop.is_closed():
            raise OSError("the event loop was closed")
        _openers.count(-1)

    def __exit__(self, *exc_info: Any) -> None:
        _openers.count(1)


async def _in_thread(call: _Call, function: Callable[..., _T], *args: Any) -> _T:
    """Await a blocking function, whose time `call` keeps; cancelling ends that call, too."""
    import asyncio
    loop = asyncio.get_event_loop()
    future: Any = loop.create_future()

    def job(error: Optional[BaseException]) -> None:
        result: Any = None
        if error is not None:
            error = APIConnectionError(
                message="no connection: no thread can be started to open it: %s" % error)
        else:
            try:
                result = function(*args)
            except BaseException as raised:  # For the one who waits.
                error = raised
        try:
            loop.call_soon_threadsafe(_settle, future, result, error)
        except RuntimeError:  # The loop was closed meanwhile.
            call.cancel()

    def expire() -> None:
        if _openers.withdraw(job):
            _settle(future, None, socket.timeout("timed out"))

    timer = None
    if call.remaining < 1e6:
        timer = loop.call_later(call.remaining, expire)
    _openers.submit(job)
    try:
        return cast(_T, await future)
    except BaseException:
        if not future.done() or future.cancelled():
            call.cancel()
            _openers.withdraw(job)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def _settle(future: Any, result: Any = None, error: Optional[BaseException] = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class _AsyncClosing:
    """`async with` closes it."""

    async def __aenter__(self: _T) -> _T:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self.close()  # type: ignore[attr-defined]


class AsyncStream(_BaseStream[_Item], _AsyncClosing):
    """`Stream` with `async for`, `async with` and `await`.

    Cancelling the task that waits for it ends the connection.
    """

    _loop: Any = None    # While somebody waits: his loop,
    _waiter: Any = None  # and the future that he waits for.

    def __aiter__(self) -> "AsyncStream[_Item]":
        return self

    def __iter__(self) -> NoReturn:
        raise TypeError("this stream is asynchronous: write `async for`")

    async def __anext__(self) -> ChatCompletionChunk:
        try:
            chunk = await self._next()
            if chunk is not None:
                self._handed_out = True
                return chunk
        except _Busy:
            raise
        except BaseException:
            self._at_rest = False
            self._interrupt()
            raise
        raise StopAsyncIteration

    async def text(self) -> AsyncIterator[str]:
        """Iterate the text of choice 0, without empty pieces."""
        while True:
            text = await self._next_text()
            if text is None:
                return
            yield text

    async def collect(self) -> ChatCompletion:
        """As `Stream.collect`."""
        try:
            while await self._next() is not None:
                pass
        except _Busy:
            raise
        except BaseException:
            self._interrupt()
            raise
        return self.completion

    async def sse(self) -> AsyncIterator[bytes]:
        """As `Stream.sse`."""
        try:
            async for chunk in self:
                yield encode_sse(_WireObject.to_json(chunk, indent=None))
            yield encode_sse("[DONE]")
        except APIError as error:
            yield _encode_error(error)
        finally:
            self._cut()

    async def close(self) -> None:
        """End the connection at once; it may be called from any thread and loop."""
        self._cut()

    aclose = close

    async def _next_text(self) -> Optional[str]:
        """As `Stream._next_text`."""
        try:
            while True:
                chunk = await self._next()
                if chunk is None:
                    return None
                self._handed_out = True
                text = _chunk_text(chunk)
                if text:
                    return text
        except _Busy:
            raise
        except BaseException:
            self._at_rest = False
            self._interrupt()
            raise

    async def _next(self) -> Optional[ChatCompletionChunk]:
        """As `Stream._next`."""
        import asyncio
        if self._state is _FAILED and self._attempt is None:
            self._is_over()
        if not self._reading.acquire(False):
            raise _Busy("another task reads this stream already")
        try:
            if self._attempt is not None and not self._at_rest:
                self._interrupt()
            while True:
                attempt = self._attempt
                if attempt is None:
                    if self._is_over():
                        return None
                    attempt = await self._open()
                self._at_rest = False
                try:
                    if attempt.events >= attempt.look_at:
                        attempt.look_at += MAX_TURN
                        self._call.look()
                        await asyncio.sleep(0)
                    chunk = next(attempt.chunks)
                    if chunk is not None:
                        attempt.events += 1
                        self._accumulator.add(chunk)
                        if self._first_token_at is None:
                            self._note_first(chunk)
                        self._at_rest = True
                        return chunk
                    await self._fill(attempt.reply)
                except StopIteration as end:
                    self._finish(attempt, end.value)
                except (APIError, OSError) as fault:
                    await self._wait(self._retry(fault))
        finally:
            self._reading.release()

    async def _open(self) -> _Attempt:
        while True:
            key = self._exchange.key()
            if hasattr(key, "__await__"):
                key = await self._ask(key)
            self._count_attempt()
            connect = self._call.connect
            self._call.start(connect)
            try:
                return self._begin(await _in_thread(self._call, self._send, key))
            except APIError as error:
                await self._wait(self._retry(error))
            except socket.timeout:  # It waited for its turn.
                await self._wait(self._retry(_timeout_error(
                    self._call, "no connection within %g s" % connect)))

    async def _ask(self, key: Awaitable[Any]) -> Any:
        """Wait for the caller's coroutine, within the deadline; what it raises is left as it is."""
        import asyncio
        asking = asyncio.ensure_future(key)
        left = self._call.deadline - time.monotonic()
        try:
            await asyncio.wait([asking], timeout=None if left == math.inf else max(0.0, left))
            if asking.done():
                return asking.result()
        finally:
            asking.cancel()
        # The deadline has passed, so this raises.
        self._retry(_timeout_error(self._call, "", " while the API key was asked for"))

    async def _start(self) -> None:
        """As `Stream._start`."""
        try:
            with self._reading:
                await self._open()
        except BaseException:
            self._interrupt()
            raise

    async def _read(self, parse: Callable[[str, Callable[[str], str]], _T]) -> _T:
        """As `Stream._read`."""
        while True:
            attempt = await self._open()
            self._call.start(self._call.read)
            try:
                data = await _in_thread(self._call, attempt.reply.read, MAX_EVENT)
                result = parse(data.decode("utf-8-sig", "replace"), self._exchange.secrets.hide)
                self._finish(attempt, _Whole(None))
                return result
            except (APIError, OSError) as fault:
                await self._wait(self._retry(fault))

    async def _fill(self, reply: _Reply) -> None:
        """Receive, and let the loop go on with other work."""
        import asyncio
        if reply.fill(wait=False):
            # A server faster than we are must not keep the loop from other work.
            await asyncio.sleep(0)
            return
        try:
            await self._wait(self._call.remaining, reply.connection.sock.fileno())
        except NotImplementedError:  # Windows' proactor loop.
            await _in_thread(self._call, reply.fill)

    async def _wait(self, seconds: float, descriptor: int = -1) -> None:
        """So long, or until `descriptor` has something to read, or the stream is closed."""
        import asyncio
        loop = asyncio.get_event_loop()
        waiter = loop.create_future()
        timer = None
        self._loop, self._waiter = loop, waiter
        try:
            if descriptor >= 0:
                loop.add_reader(descriptor, _settle, waiter)
            if self._call.cancelled:
                return
            if seconds < 1e6:
                timer = loop.call_later(seconds, _settle, waiter)
            await waiter
        finally:
            self._loop = self._waiter = None
            if not loop.is_closed():
                if descriptor >= 0:
                    _stop_watching(loop, descriptor)
                if timer is not None:
                    timer.cancel()

    def _cut(self) -> None:
        """End the stream, from any thread; wake who waits for it."""
        super()._cut()
        loop, waiter = self._loop, self._waiter  # Who waits from now on sees that it is over.
        if waiter is not None:
            try:
                loop.call_soon_threadsafe(_settle, waiter)
            except RuntimeError:  # The loop was closed.
                pass


class _Busy(OpenAIError, RuntimeError):
    """Another task reads the stream; nothing has happened to it."""


def _stop_watching(loop: Any, descriptor: int) -> None:
    try:
        loop.remove_reader(descriptor)
    except NotImplementedError:
        pass


class AsyncCompletions(_Part):
    """`client.chat.completions`"""

    def __init__(self, requester: _Requester) -> None:
        self._requester = requester

    @overload
    async def create(
            self, *, messages: "_Messages", model: str, stream: "Literal[True]",
            temperature: "_Number" = ..., top_p: "_Number" = ..., max_tokens: "_Count" = ...,
            n: "_Count" = ..., stop: "_Texts" = ..., tools: "_Tools" = ...,
            tool_choice: "_Tool" = ..., response_format: "_Fields" = ...,
            stream_options: "_Fields" = ..., timeout: Any = ...,
            **fields: Any) -> AsyncStream[ChatCompletionChunk]: ...

    @overload
    async def create(
            self, *, messages: "_Messages", model: str,
            stream: "Union[Literal[False], None, NotGiven]" = ...,
            temperature: "_Number" = ..., top_p: "_Number" = ..., max_tokens: "_Count" = ...,
            n: "_Count" = ..., stop: "_Texts" = ..., tools: "_Tools" = ...,
            tool_choice: "_Tool" = ..., response_format: "_Fields" = ...,
            stream_options: "_Fields" = ..., timeout: Any = ...,
            **fields: Any) -> ChatCompletion: ...

    @overload
    async def create(
            self, *, messages: "_Messages", model: str, stream: bool,
            temperature: "_Number" = ..., top_p: "_Number" = ..., max_tokens: "_Count" = ...,
            n: "_Count" = ..., stop: "_Texts" = ..., tools: "_Tools" = ...,
            tool_choice: "_Tool" = ..., response_format: "_Fields" = ...,
            stream_options: "_Fields" = ..., timeout: Any = ...,
            **fields: Any) -> Union[AsyncStream[ChatCompletionChunk], ChatCompletion]: ...

    async def create(
            self, *, messages: Any, model: str, stream: Any = None, temperature: Any = NOT_GIVEN,
            top_p: Any = NOT_GIVEN, max_tokens: Any = NOT_GIVEN, n: Any = NOT_GIVEN,
            stop: Any = NOT_GIVEN, tools: Any = NOT_GIVEN, tool_choice: Any = NOT_GIVEN,
            response_format: Any = NOT_GIVEN, stream_options: Any = NOT_GIVEN,
            extra_headers: Any = None, extra_query: Any = None, extra_body: Any = None,
            timeout: Any = NOT_GIVEN, **fields: Any) -> Any:
        """As `Completions.create`; with stream=True it returns an `AsyncStream`."""
        fields.update(temperature=temperature, top_p=top_p, max_tokens=max_tokens, n=n, stop=stop,
                      tools=tools, tool_choice=tool_choice, response_format=response_format,
                      stream_options=stream_options)
        body = _completion_body(messages, model, stream, extra_body, fields)
        result: AsyncStream[ChatCompletionChunk] = AsyncStream(self._requester.exchange(
            "POST", "/chat/completions", body, extra_headers=extra_headers,
            extra_query=extra_query, timeout=timeout, network=_QueuedNetworkWait()))
        if not body.get("stream"):
            return await result.collect()
        await result._start()
        return result


class AsyncChat(_Part):
    """`client.chat`"""

    def __init__(self, requester: _Requester) -> None:
        self.completions = AsyncCompletions(requester)


class _AsyncModelPage:
    """The list of models, to `await` or to iterate with `async for`."""

    def __init__(self, ask: Callable[[], Awaitable[ModelPage]]) -> None:
        self._ask = ask

    def __await__(self) -> Generator[Any, None, ModelPage]:
        return self._ask().__await__()

    async def __aiter__(self) -> AsyncIterator[Model]:
        for model in (await self._ask()).data:
            yield model


class AsyncModels(_Part):
    """`client.models`"""

    def __init__(self, requester: _Requester) -> None:
        self._requester = requester

    def list(self, **options: Any) -> _AsyncModelPage:
        """What the server serves: `await` it, or iterate it with `async for`."""
        async def ask() -> ModelPage:
            stream: AsyncStream[Any] = AsyncStream(self._requester.exchange(
                "GET", "/models", network=_QueuedNetworkWait(), **options))
            return await stream._read(_model_page)

        return _AsyncModelPage(ask)

    async def retrieve(self, model: str, **options: Any) -> Model:
        """One of the models."""
        stream: AsyncStream[Any] = AsyncStream(self._requester.exchange(
            "GET", _model_path(model), network=_QueuedNetworkWait(), **options))
        return await stream._read(_model)


class AsyncOpenAI(_BaseClient, _AsyncClosing):
    """`OpenAI` with `await`; `api_key` may be a coroutine function, too."""

    chat: AsyncChat
    models: AsyncModels

    def _use(self, requester: _Requester) -> None:
        self._requester = requester
        self.chat = AsyncChat(requester)
        self.models = AsyncModels(requester)

    async def close(self) -> None:
        """Close the connections that are kept for later."""
        self._requester.transport.close()


class AsyncAzureOpenAI(_BaseAzure, AsyncOpenAI):
    """`AzureOpenAI` with `await`; the token provider may be a coroutine function, too."""


Client, AsyncClient = OpenAI, AsyncOpenAI  # The SDK has both names.


_MOVED = {
    "chat": "make a client: OpenAI(api_key=...).chat.completions.create(...)",
    "completions": "make a client: OpenAI(api_key=...).chat.completions.create(...)",
    "models": "make a client: OpenAI().models.list()",
    "types": "import the names of openai.types.chat from here: "
             "from %s import ChatCompletionMessageParam" % __name__,
    "api_key": "pass it to a client: OpenAI(api_key=...)",
    "base_url": "pass it to a client: OpenAI(base_url=...)",
    "api_base": "pass it to a client: OpenAI(base_url=...)",
    "error": "the errors are here: from %s import APIError" % __name__,
    "pydantic_function_tool": "write the tool's JSON schema as a dict",
    "DefaultHttpxClient": _NOT_OFFERED["http_client"],
}


def __getattr__(name: str) -> NoReturn:
    """What the SDK's module has and this one has not (Python 3.7 and newer ask here)."""
    raise AttributeError("module %r has no attribute %r: %s" % (
        __name__, name, _MOVED.get(name, "only chat completions and models are offered here")))


# ==================================================================================================
# The library ends here.  What follows runs only under `python -m streamlite`, or where a DemoServer
# is made.
# ==================================================================================================

# --------------------------------------------------------------------------------------------------
# Demo server
# --------------------------------------------------------------------------------------------------

class DemoServer(_Closing):
    """A small OpenAI-compatible server on 127.0.0.1, to try this file and to test programs.

        with DemoServer() as server:
            client = OpenAI(base_url=server.base_url, api_key="any")

    It streams, or replies as a whole; calls the first of `tools`, counts words as tokens, obeys
    max_tokens, n and stream_options.  Any model name is served, but some misbehave, so that the
    handling of errors can be rehearsed: "demo-rate-limit" (429 to every other request),
    "demo-error" (an error in the middle of the stream), "demo-lost" (the connection breaks there),
    "no-such-model" (404).  The key "wrong" is refused (401).

    delay:  seconds between two words
    told:   called with a line of text for each request
    active: replies under way
    """

    models = ("demo", "demo-rate-limit", "demo-error", "demo-lost")

    def __init__(self, port: int = 0, delay: float = 0.03,
                 told: Callable[[str], None] = lambda line: None) -> None:
        from socketserver import ThreadingTCPServer  # HTTPServer would look up the machine's name.
        connections: Set[Tuple[threading.Thread, socket.socket]] = set()

        class Server(ThreadingTCPServer):
            # On Windows this would let a second server take the port.
            allow_reuse_address = os.name != "nt"
            daemon_threads = True
            request_queue_size = 128

            def server_bind(self) -> None:
                exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
                if exclusive is not None:
                    self.socket.setsockopt(socket.SOL_SOCKET, exclusive, 1)
                super().server_bind()

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                work = (threading.current_thread(), request)
                connections.add(work)
                super().process_request_thread(request, client_address)
                connections.discard(work)

            def handle_error(self, request: Any, client_address: Any) -> None:
                _log("debug", "demo server: %s", sys.exc_info()[1])

        self.delay = delay
        self.told = told
        self.replies: Set[Any] = set()
        self.limited = False
        self._connections = connections
        self._server = Server(("127.0.0.1", port), _demo_handler(self))
        self.base_url = "http://127.0.0.1:%d/v1" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,),
                                        daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        return len(self.replies)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        left = list(self._connections)
        for _, connection in left:
            _shut(connection)
            if os.name == "nt":
                # There a shutdown wakes nobody, but the end of the handle does.
                handle = connection.detach()
                if handle >= 0:  # Else its thread has just closed it.
                    socket.socket(fileno=handle).close()
        end = time.monotonic() + 1.0
        for thread, _ in left:
            thread.join(max(0.0, end - time.monotonic()))


_DEMO_TEXT = (
    "This is streamlite's demo server, not a language model. Server-sent events are lines of text "
    "in one HTTP response that stays open: a server writes \"data: ...\" and a blank line for each "
    "event, and a browser or a program reads it at once. Every word here came in an event of its "
    "own, as the tokens of a model do. You wrote: ")


def _demo_reply(request: Dict[str, Any]) -> Tuple[List[Dict[str, Any]], str]:
    """The deltas of an answer, and its finish_reason."""
    said = request["messages"][-1]
    words = _text_parts(said.get("content"))[0] or ""
    if request.get("tools") and said["role"] != "tool":
        return _demo_tool_call(request["tools"][0]["function"], words), "tool_calls"
    if said["role"] == "tool":
        text = "The tool answered: " + words
    else:
        said_words = re.findall(r"\s*\S+", words)
        text = _DEMO_TEXT + ("..." if len(said_words) > 20 else "") + "".join(said_words[-20:])
    tokens = re.findall(r"\s*\S+", text)
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or len(tokens)
    deltas = [{"content": token} for token in tokens[:int(limit)]]
    return deltas, "stop" if len(tokens) <= int(limit) else "length"


def _demo_tool_call(function: Dict[str, Any], words: str) -> List[Dict[str, Any]]:
    """A call with the last word for each required argument, in fragments."""
    names = (function.get("parameters") or {}).get("required") or ()
    last = (re.findall(r"\w+", words) or [""])[-1]
    arguments = json.dumps({name: last for name in names})
    first = {"index": 0, "id": "call_demo", "type": "function",
             "function": {"name": function["name"], "arguments": ""}}
    fragments = [{"index": 0, "function": {"arguments": arguments[i:i + 8]}}
                 for i in range(0, len(arguments), 8)]
    return [{"tool_calls": [call]} for call in [first] + fragments]


def _demo_chunks(request: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The chunks of an answer, usage included where it was asked for."""
    deltas, reason = _demo_reply(request)
    prompt = [_text_parts(said.get("content"))[0] or "" for said in request["messages"]]
    usage = {"prompt_tokens": sum([len(text.split()) for text in prompt]),
             "completion_tokens": len(deltas)}
    usage["total_tokens"] = sum(usage.values())
    base = {"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": int(time.time()),
            "model": request["model"]}
    if deltas:
        deltas[0]["role"] = "assistant"
    chunks = []
    for delta in deltas + [{}]:
        for index in range(int(request.get("n") or 1)):
            chunks.append(dict(base, choices=[{
                "index": index, "delta": dict(delta), "finish_reason": None if delta else reason}]))
    options = request.get("stream_options") or {}
    if options.get("include_usage") or not request.get("stream"):
        chunks.append(dict(base, choices=[], usage=usage))
    return chunks


def _demo_handler(demo: DemoServer) -> Any:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        model = ""

        def do_GET(self) -> None:
            path, _, name = self.path.partition("/models")
            if path != "/v1" or name.strip("/") not in demo.models + ("",):
                self.refuse(404, "There is nothing at %s." % self.path, "not_found")
                return
            models = [{"id": model, "object": "model", "created": 0, "owned_by": "streamlite"}
                      for model in demo.models]
            known = [model for model in models if model["id"] == name.strip("/")]
            self.reply(200, known[0] if known else {"object": "list", "data": models})

        def do_POST(self) -> None:
            try:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length).decode())
                model, chunks = request["model"], _demo_chunks(request)
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
                    ValueError) as error:
                self.refuse(400, "This is not a chat completion request: %s: %s" % (
                    type(error).__name__, error), "invalid_request_error")
                return
            self.model = str(model)
            is_limited = demo.limited = model == "demo-rate-limit" and not demo.limited
            if self.path.split("?")[0] != "/v1/chat/completions":
                self.refuse(404, "There is nothing at %s." % self.path, "not_found")
            elif self.headers["Authorization"] == "Bearer wrong":
                self.refuse(401, "Incorrect API key provided.", "invalid_api_key")
            elif model == "no-such-model":
                self.refuse(404, "The model %s does not exist." % model, "model_not_found")
            elif is_limited:
                self.refuse(429, "Rate limit reached; the next request will pass.",
                            "rate_limit_exceeded")
            else:
                self.answer(request, chunks)

        def answer(self, request: Dict[str, Any], chunks: List[Dict[str, Any]]) -> None:
            demo.replies.add(self)
            try:
                if request.get("stream"):
                    self.stream(request["model"], chunks)
                    return
                if self.model == "demo-error":
                    self.refuse(500, "The demo model fails here.", "server_error")
                    return
                if self.model == "demo-lost":
                    self.head(200, {"Content-Type": "application/json", "Content-Length": "100"})
                    raise OSError("the connection breaks here")
                whole = Accumulator()
                for chunk in chunks:
                    whole.add(_wire(ChatCompletionChunk, chunk))
                self.reply(200, _plain(whole.completion))
            except (OSError, ValueError):
                self.close_connection = True  # The client has gone: stop working for it.
            finally:
                demo.replies.discard(self)

        def stream(self, model: str, chunks: List[Dict[str, Any]]) -> None:
            self.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
            for at, chunk in enumerate(chunks):
                if at == len(chunks) // 2 and model == "demo-lost":
                    raise OSError("the connection breaks here")
                if at == len(chunks) // 2 and model == "demo-error":
                    self.event(json.dumps({"error": {
                        "message": "The demo model fails here.", "type": "server_error"}}))
                    break
                self.event(json.dumps(chunk))
                time.sleep(demo.delay)
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def event(self, data: str) -> None:
            event = encode_sse(data)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

        def refuse(self, status: int, message: str, code: str) -> None:
            self.reply(status, {"error": {
                "message": message, "type": "demo_error", "param": None, "code": code}})

        def reply(self, status: int, fields: Any) -> None:
            body = json.dumps(fields).encode()
            self.head(status, {"Content-Type": "application/json",
                               "Content-Length": str(len(body))})
            self.wfile.write(body)

        def head(self, status: int, headers: Dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("x-request-id", "req-demo")
            if status == 429:
                self.send_header("retry-after-ms", "100")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            demo.told(_excerpt("%s %s %s: %d" % (self.command, self.path, self.model, code)))

        def log_message(self, format: str, *args: Any) -> None:
            _log("debug", "demo server: " + format, *args)

    return Handler


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------

DEFAULT_MODEL = "gpt-4o-mini"  # For OpenAI's own address.
DEMO_PORT = 8642               # Of --demo without a prompt, unless it is taken.
EX_TEMPFAIL = 75               # sysexits.h: trying again may help.

_HELP = '''\
usage: python -m streamlite [options] [prompt ...]

Streams a chat completion. Piped text goes before the prompt.

  -m, --model NAME    else OPENAI_MODEL, else the only one the server has
  -s, --system TEXT   the system message
  -o KEY=VALUE        any field of the request; VALUE may be JSON, or @FILE
  --chat              a conversation; exit leaves, /help lists its commands
  --json              each chunk as a line of JSON
  --no-stream         the whole reply at once
  --usage             tokens and timing, on stderr
  --models            list the server's models
  --base-url URL      else OPENAI_BASE_URL; gets no key but that of --key-env
  --key-env NAME      the variable with the key, else OPENAI_API_KEY
  -H NAME=ENVVAR      a header, its value from a variable
  --timeout S, --deadline S, --retries N, --cacert FILE
  --demo              a demo server: no key, no network; alone it serves
  -v, --verbose       retries, timing and log on stderr
  -h, --help, --version

  python -m streamlite --demo "Explain server-sent events"
  git diff | python -m streamlite -o temperature=0 "Sum this up"
  python -m streamlite --base-url http://localhost:11434/v1 --chat
'''

_CHAT_HELP = '/model NAME, /system TEXT, /reset, /exit; """ begins and ends several lines'


def _is_closed_pipe(error: OSError) -> bool:
    """Whether who read our output has gone; on Windows that is EINVAL."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


class _Console:
    """Standard output for the answer, standard error for all else.

    A terminal gets no control characters that somebody else wrote.
    """

    def __init__(self) -> None:
        if not os.environ.get("PYTHONIOENCODING"):
            _write_utf8()
        # Who looks on sees reasoning, and a sign of waiting.
        self._person = sys.stderr is not None and sys.stderr.isatty()
        has_color = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._dim = ("\x1b[2m", "\x1b[0m") if has_color and os.name != "nt" else ("", "")
        self._unended: Any = None  # The stream whose last line has no end.
        self._waiting = False

    def write(self, stream: Any, text: str, style: Tuple[str, str] = ("", "")) -> None:
        """Write at once; what the stream cannot encode becomes a question mark."""
        if stream is None or not text:
            return
        self.wait(False)
        if self._unended not in (None, stream):
            self.end_line()
        if stream.isatty():
            # Control characters, and those that turn the direction of writing.
            text = re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = _well_formed(text).encode(encoding, "replace").decode(encoding)
        stream.write(style[0] + text + style[1])
        stream.flush()
        self._unended = None if text.endswith("\n") else stream

    def answer(self, text: str) -> None:
        self.write(sys.stdout, text)

    def tell(self, text: str) -> None:
        self.end_line()
        self.write(sys.stderr, text + "\n")

    def reason(self, text: str) -> None:
        self.write(sys.stderr if self._person else None, text, self._dim)

    def end_line(self) -> None:
        stream, self._unended = self._unended, None
        self.write(stream, "\n")

    def wait(self, begin: bool) -> None:
        """A small sign until the first token."""
        if self._person and begin != self._waiting:
            self._waiting = begin
            sys.stderr.write("..." if begin else "\r   \r")
            sys.stderr.flush()


def _write_utf8() -> None:
    """Write UTF-8 where Python would not.

    On Windows, output that is no terminal has the code page's letters; up to Python 3.6, a C locale
    knows ASCII alone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.isatty() or not hasattr(stream, "buffer"):
            continue
        is_old = sys.version_info < (3, 7) and "ANSI" in str(stream.encoding)
        if not (os.name == "nt" or is_old):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
        else:  # Python 3.6.
            setattr(sys, name, io.TextIOWrapper(stream.detach(), "utf-8", "replace"))


def _read_all(source: Any, read: List[Any]) -> None:
    """Put all of a file into `read`, or what prevents that; nohup leaves one without reading."""
    try:
        read.append(source.read() or b"")
    except OSError as error:
        read.append(b"" if error.errno == errno.EBADF else error)


def _decode_input(data: bytes, tell: Callable[[str], None]) -> str:
    """Text that was piped in: UTF-8, or what a byte order mark says (PowerShell writes UTF-16)."""
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"
        if os.name == "nt":
            encoding = os.device_encoding(2) or os.device_encoding(1) or "oem"
        tell("(standard input is no UTF-8: it was read as %s)" % encoding)
        text = data.decode(encoding, "replace")
    return text.replace("\r\n", "\n")


# -- arguments --

class _Arguments:
    """What the command line says; argparse fills it in."""

    prompt: List[str]
    model: Optional[str]
    system: Optional[str]
    options: List[str]
    headers: List[str]
    chat: bool
    json: bool
    no_stream: bool
    usage: bool
    models: bool
    demo: bool
    verbose: bool
    help: bool
    base_url: Optional[str]
    key_env: Optional[str]
    cacert: Optional[str]
    timeout: Any
    deadline: Optional[float]
    retries: int
    fields: Dict[str, Any]


# Options that people try, and what to write instead.
_OTHER_OPTIONS = {
    "--api-key": "the key comes from the environment: set OPENAI_API_KEY, or name a variable with "
                 "--key-env",
    "--key": "the key comes from the environment: set OPENAI_API_KEY, or name a variable with "
             "--key-env",
    "--temperature": "write -o temperature=...", "-t": "write -o temperature=...",
    "--max-tokens": "write -o max_tokens=...",
    "--top-p": "write -o top_p=...", "--seed": "write -o seed=...",
}


def _parse_arguments(argv: Optional[Sequence[str]]) -> _Arguments:
    import argparse
    parser = argparse.ArgumentParser(
        prog="python -m streamlite", add_help=False, allow_abbrev=False,
        usage="%(prog)s [options] [prompt ...]")
    parser.add_argument("prompt", nargs="*")
    parser.add_argument("-m", "--model", default=os.environ.get("OPENAI_MODEL"))
    parser.add_argument("-s", "--system")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-H", dest="headers", action="append", default=[], metavar="NAME=ENVVAR")
    for names in (["--chat"], ["--json"], ["--no-stream"], ["--usage"], ["--models"], ["--demo"],
                  ["-v", "--verbose"], ["-h", "--help"]):
        parser.add_argument(*names, action="store_true")
    for name in ("--base-url", "--key-env", "--cacert"):
        parser.add_argument(name)
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT)
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--retries", type=int, default=DEFAULT_MAX_RETRIES)
    parser.add_argument("--version", action="version", version="streamlite " + __version__)
    words = [_as_utf8(word) for word in (sys.argv[1:] if argv is None else argv)]
    args, more = parser.parse_known_args(words, _Arguments())
    for word in more:
        if word.startswith("-") and word != "-":
            # Without its value, which might be a key.
            name = word.split("=")[0].replace("_", "-")
            shown = name if re.match("-[A-Za-z-]+$", name) else "an option"
            parser.error("unrecognized: %s; %s" % (shown, _OTHER_OPTIONS.get(name, "see --help")))
    args.prompt += more  # Words behind an option.
    _check_arguments(args, parser.error)
    return args


def _as_utf8(word: str) -> str:
    """An argument in a C locale on Python 3.6, where letters outside ASCII come as bytes."""
    if re.search("[\udc80-\udcff]", word):
        return os.fsencode(word).decode("utf-8", "replace")
    return word


def _check_arguments(args: _Arguments, refuse: Callable[[str], Any]) -> None:
    """Read the values of -o, and refuse what makes no sense."""
    args.fields = dict([_read_option(option, refuse) for option in args.options])
    if args.key_env:
        _check_variable("--key-env", args.key_env, refuse)
    for header in args.headers:
        name, equals, variable = header.partition("=")
        if not equals:
            refuse("-H takes NAME=ENVVAR: a header, and the variable that holds its value")
        _check_variable("-H " + name, variable, refuse)
    for option, seconds in (("--timeout", args.timeout), ("--deadline", args.deadline)):
        if isinstance(seconds, float) and not seconds > 0:
            refuse("%s must be greater than 0, not %g" % (option, seconds))
    if args.retries < 0:
        refuse("--retries must not be negative")
    if args.cacert and not os.path.exists(args.cacert):
        refuse("--cacert: there is no file %s" % args.cacert)
    if args.models and args.prompt:
        refuse("--models takes no prompt")
    if args.demo and args.base_url:
        refuse("--demo has a server of its own: leave --base-url out")
    has_other = args.prompt or args.chat or args.system
    if "messages" in args.fields and has_other:
        refuse("-o messages= is the whole conversation: leave the prompt, --system and --chat out")


def _read_option(option: str, refuse: Callable[[str], Any]) -> Tuple[str, Any]:
    """The name and value of KEY=VALUE, where VALUE may be JSON, or @FILE."""
    name, equals, text = option.partition("=")
    if not equals or not name:
        refuse("-o takes KEY=VALUE, not %r" % option)
    try:
        if text.startswith("@"):
            with io.open(text[1:], encoding="utf-8-sig") as file:
                text = file.read()
    except (OSError, ValueError) as error:
        refuse("-o %s: %s" % (option, error))
    try:
        return name, json.loads(text)
    except RecursionError:
        refuse("-o %s: the value is nested too deeply" % name)
    except ValueError as error:
        if text.lstrip().startswith(("{", "[")):
            refuse("-o %s: this is no JSON: %s" % (name, error))
    return name, text  # A plain text.


def _check_variable(option: str, variable: str, refuse: Callable[[str], Any]) -> None:
    if variable not in os.environ:
        is_name = re.match("[A-Z][A-Z0-9_]*$", variable)  # Else it may be the key itself.
        refuse("%s: there is no environment variable %s" % (
            option, variable if is_name else "of this name"))


# -- what is done --

class _Command:
    """One run of `python -m streamlite`; what returns an int returns the exit code."""

    def __init__(self, args: _Arguments, console: _Console) -> None:
        self.args = args
        self.console = console
        self.client: Any = None
        self.prompt = ""
        self.completion: Optional[ChatCompletion] = None

    def run(self) -> int:
        args = self.args
        if args.help:
            self.console.answer(_HELP)
            return 0
        if args.verbose:
            self.show_log()
        has_task = any([args.models, args.chat, "messages" in args.fields])
        demo: Optional[DemoServer] = None
        try:
            if not has_task:
                self.prompt = self.read_prompt()
            if not (has_task or self.prompt):
                return self.serve() if args.demo else self.explain()
            demo = DemoServer() if args.demo else None
            self.client = self.make_client(demo)
            with self.client:
                return self.work()
        except (OpenAIError, TypeError) as error:
            return self.fail(error)
        finally:
            if demo:
                demo.close()

    def explain(self) -> int:
        self.console.write(sys.stderr, _HELP)
        return 2

    def serve(self) -> int:
        """Run a demo server until Ctrl-C, for other programs to be pointed at."""
        console = self.console
        try:
            demo = DemoServer(DEMO_PORT, told=console.tell)
        except OSError:
            console.tell("(port %d is taken)" % DEMO_PORT)
            demo = DemoServer(told=console.tell)
        with demo:
            console.tell("A demo server listens; any key will do. In another terminal:\n")
            console.answer("export OPENAI_BASE_URL=%s OPENAI_API_KEY=demo\n" % demo.base_url)
            console.tell("\nor in PowerShell\n"
                         "$env:OPENAI_BASE_URL='%s'; $env:OPENAI_API_KEY='demo'\n"
                         "or in cmd\n"
                         "set OPENAI_BASE_URL=%s& set OPENAI_API_KEY=demo\n\n"
                         "Its models: %s. Ctrl-C ends it.\n"
                         % (demo.base_url, demo.base_url, ", ".join(demo.models)))
            while True:
                time.sleep(0.25)

    def show_log(self) -> None:
        import logging
        handler = logging.StreamHandler()
        handler.emit = (  # type: ignore[method-assign]
            lambda record: self.console.tell(handler.format(record)))
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s",
                            handlers=[handler])

    def make_client(self, demo: Optional[DemoServer]) -> OpenAI:
        args = self.args
        if args.cacert:
            os.environ["SSL_CERT_FILE"] = args.cacert
        settings: Dict[str, Any] = {"timeout": args.timeout, "deadline": args.deadline,
                                    "max_retries": args.retries}
        headers = [header.partition("=") for header in args.headers]
        settings["default_headers"] = {name: os.environ[value] for name, _, value in headers}
        if demo:
            args.base_url, args.model = demo.base_url, args.model or "demo"
        if args.base_url:
            # An address of the command line gets no credentials of the environment.
            settings.update(base_url=args.base_url, api_key="", organization="", project="")
        if args.key_env:
            settings["api_key"] = os.environ[args.key_env]
        return OpenAI(**settings)

    def work(self) -> int:
        args = self.args
        if args.models:
            for model in self.client.models.list():
                line = _WireObject.to_json(model, indent=None) if args.json else model.id
                self.console.answer(line + "\n")
            return 0
        if args.chat:
            return _Conversation(self).run()
        return self.ask([{"role": "user", "content": self.prompt}])

    def read_prompt(self) -> str:
        words = " ".join([word for word in self.args.prompt if word != "-"])
        return "\n\n".join(filter(None, [self.read_input().rstrip("\n"), words]))

    def read_input(self) -> str:
        """What is piped in; a slow pipe is waited for, with a word."""
        if sys.stdin is None or sys.stdin.isatty() and "-" not in self.args.prompt:
            return ""
        # Read in a thread, since on Windows Ctrl-C does not reach who reads from a pipe; and not
        # through the buffer, whose lock the interpreter wants at its end.
        source = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        read: List[Any] = []
        reader = threading.Thread(target=_read_all, args=(source, read), daemon=True)
        reader.start()
        began, is_told = time.monotonic(), False
        while reader.is_alive():
            reader.join(0.25)
            if not is_told and time.monotonic() - began > 3.0:
                is_told = True
                self.console.tell(
                    "waiting for the end of standard input (without any: < %s%s)" % (
                        os.devnull, ", in Git Bash winpty" if os.name == "nt" else ""))
        if isinstance(read[0], OSError):
            raise OpenAIError("standard input cannot be read: %s" % read[0])
        return _decode_input(read[0], self.console.tell)

    def find_model(self) -> str:
        if self.client.base_url == DEFAULT_BASE_URL:
            return DEFAULT_MODEL
        try:
            names: List[str] = [model.id for model in self.client.models.list()]
        except (NotFoundError, APIResponseValidationError):
            raise OpenAIError("name a model with -m: the server does not list its models") from None
        if len(names) != 1:
            raise OpenAIError("name a model with -m; the server has: %s"
                              % (_excerpt(", ".join(names), 500) or "none"))
        return names[0]

    def ask(self, messages: List[Any]) -> int:
        """Stream the answer to `messages` onto the screen and into `completion`."""
        args = self.args
        self.completion = None
        if args.system:
            messages = [{"role": "system", "content": args.system}] + messages
        fields = {"messages": messages, "stream": not args.no_stream}
        if args.usage and not args.no_stream:
            fields["stream_options"] = {"include_usage": True}
        fields.update(args.fields)
        try:
            self.console.wait(True)
            if "model" not in fields:
                args.model = args.model or self.find_model()
                fields["model"] = args.model
            try:
                self.answer(fields)
            except (BadRequestError, UnprocessableEntityError) as error:
                if "stream_options" not in str(error) or "stream_options" in args.fields:
                    raise
                # A server that does not know the field.
                del fields["stream_options"]
                self.answer(fields)
            return 0
        except (OpenAIError, TypeError) as error:
            return self.fail(error)
        finally:
            self.console.wait(False)
            self.console.end_line()

    def answer(self, fields: Dict[str, Any]) -> None:
        body = _completion_body(fields["messages"], fields["model"], fields["stream"], None, fields)
        stream: Stream[ChatCompletionChunk] = Stream(
            self.client._requester.exchange("POST", "/chat/completions", body))
        with stream:
            try:
                if self.args.json and self.args.no_stream:
                    whole = stream.collect()
                    self.console.answer(_WireObject.to_json(whole, indent=None) + "\n")
                for chunk in stream:
                    self.show(chunk)
            finally:
                self.completion = stream.completion
            self.finish(stream, stream.completion)

    def show(self, chunk: ChatCompletionChunk) -> None:
        if self.args.json:
            self.console.answer(_WireObject.to_json(chunk, indent=None) + "\n")
            return
        for choice in chunk.choices[:1]:
            self.console.reason(_reasoning_text(choice.delta))
        self.console.answer(_chunk_text(chunk))

    def finish(self, stream: Any, completion: ChatCompletion) -> None:
        for choice in completion.choices[:1]:
            calls = () if self.args.json else choice.message.tool_calls or ()
            for call in calls:
                self.console.end_line()
                self.console.answer(_WireObject.to_json(call, indent=None) + "\n")
            if choice.finish_reason == "length":
                self.console.tell("(cut short by the token limit)")
            elif choice.finish_reason == "content_filter":
                self.console.tell("(cut short by the content filter)")
        if self.args.usage or self.args.verbose:
            self.console.tell(self.measures(stream, completion.usage))

    def measures(self, stream: Any, usage: Any) -> str:
        first = stream.time_to_first_token or 0.0
        text = "first token after %.2f s, all after %.2f s" % (first, stream.elapsed)
        if self.args.no_stream:
            text = "after %.2f s" % stream.elapsed
        if usage is None:
            return ("no usage was sent; " if self.args.usage else "") + text
        tokens = usage.completion_tokens
        streamed = stream.elapsed - first
        # A rate of one token, or of a tick of the clock, means nothing.
        has_rate = isinstance(tokens, int) and tokens > 1 and streamed > 0.1
        if has_rate and not self.args.no_stream:
            text += ", %.1f tokens/s" % (tokens / streamed)
        return "%s + %s tokens; %s" % (usage.prompt_tokens, tokens, text)

    def fail(self, error: Exception) -> int:
        """One line that says what to do."""
        text = self.in_our_words(error)
        request_id = getattr(error, "request_id", None)
        if request_id:
            text += " [request id %s]" % _excerpt(request_id)
        retry_after = getattr(error, "retry_after", None)
        if retry_after:
            text += "; try again in %d s" % math.ceil(min(retry_after, 1e9))
        try:
            if self.args.json:
                kind = getattr(error, "type", None) or type(error).__name__
                self.console.answer(_dump_json({"error": {
                    "message": text, "type": kind, "code": getattr(error, "code", None)}}) + "\n")
            self.console.tell("streamlite: " + text)
        except OSError as failed:
            if not _is_closed_pipe(failed):
                raise  # Else it failed all the same.
        # Without a client it was an argument that was wrong.
        has_arguments = self.args.base_url or self.args.headers
        if isinstance(error, TypeError) or self.client is None and has_arguments:
            return 2
        return EX_TEMPFAIL if _is_transient(error) else 1

    def in_our_words(self, error: Exception) -> str:
        """An error's message, with remedies that the command has."""
        text = " ".join(str(error).split())
        if text.startswith("no API key"):
            return ("no API key: set OPENAI_API_KEY, or give the --base-url of a local server, or "
                    "try --demo")
        address = "--base-url" if self.args.base_url else "OPENAI_BASE_URL"
        for words, ours in (("pass default_headers={'Authorization': ...}", "use -H"),
                            ("set SSL_CERT_FILE to that CA's certificate",
                             "name that CA's certificate with --cacert"),
                            ("pass `handlers`, or ", ""), ("default_headers: ", "-H: "),
                            ("base_url", address)):
            text = text.replace(words, ours)
        if isinstance(error, AuthenticationError):
            variable = self.args.key_env or "OPENAI_API_KEY"
            has_key = self.args.key_env or self.args.headers or not self.args.base_url
            text += ("; is the key in %s right?" % variable if has_key else
                     "; no key was sent: --base-url gets that of --key-env NAME alone")
        if isinstance(error, NotFoundError):
            text += self.known_models()
            text += "; /model NAME changes it" if self.args.chat else ""
        return text

    def known_models(self) -> str:
        try:
            models = self.client.with_options(max_retries=0, timeout=PATIENCE).models.list()
            names = ", ".join([model.id for model in models.data])
            return "; the server has: " + _excerpt(names, 500)
        except OpenAIError:
            return ""


class _Conversation:
    """`--chat`"""

    def __init__(self, command: _Command) -> None:
        self._command = command
        self._args = command.args
        self._tell = command.console.tell
        self._history: List[Any] = []
        self._is_terminal = sys.stdin is not None and sys.stdin.isatty()

    def run(self) -> int:
        if self._is_terminal:
            _prepare_readline()
            self._args.model = self._args.model or self._command.find_model()
            self._tell("%s answers; exit or %s leaves, /help lists the commands" % (
                self._args.model, "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"))
        first: Optional[str] = " ".join(self._args.prompt)
        code, stopped = 0, False
        while True:
            try:
                line, first = first or self.read_message(), None
                stopped = False
                if line is None or line.strip() in ("exit", "quit", "/exit", "/quit", "/bye"):
                    return code
                command = re.match(r"/(\w+)( .*)?$", line)
                if command:
                    self.obey(command.group(1), command.group(2) or "")
                elif line.strip():
                    self._history.append({"role": "user", "content": line})
                    code = self._command.ask(self._history)
                    self.remember()
            except KeyboardInterrupt:
                self._tell("")
                if self._history and self._history[-1]["role"] == "user":
                    self.remember()  # It was the answer that was stopped.
                elif stopped:
                    return 130
                else:
                    stopped = True
                    self._tell("(Ctrl-C again, or exit, leaves)")

    def obey(self, command: str, value: str) -> None:
        value = value.strip()
        if command == "reset":
            self._history = []
            self._tell("(the conversation was forgotten; model and system message stay)")
        elif command == "model":
            self._args.model = value or self._args.model
            self._tell("(model: %s)" % (self._args.model or "the server's"))
        elif command == "system":
            self._args.system = value or self._args.system
            self._tell("(system message: %s)" % (self._args.system or "none"))
        else:
            self._tell(("" if command == "help" else "no such command; ") + _CHAT_HELP)

    def remember(self) -> None:
        """Keep what was answered; forget a question that was not."""
        completion = self._command.completion
        message = completion.choices[0].message if completion and completion.choices else None
        if message is not None and (message.content or message.tool_calls):
            self._history.append(_plain(message, exclude_none=True))
        else:
            self._history.pop()

    def read_message(self) -> Optional[str]:
        """A line, or several between triple quotes; None at the end of the input."""
        try:
            line = self.read_line("> ")
            if line.strip().startswith('"""'):
                line = line.strip()[3:]
                while not line.rstrip().endswith('"""'):
                    line += "\n" + self.read_line(". ")
                line = line.rstrip()[:-3].strip("\n")
            return line
        except EOFError:
            if self._is_terminal:
                self._tell("")
            return None

    def read_line(self, prompt: str) -> str:
        if self._is_terminal:
            return input(prompt)
        if sys.stdin is None:
            raise EOFError
        try:
            line = sys.stdin.buffer.readline()
        except OSError as error:
            raise OpenAIError("standard input cannot be read: %s" % error) from error
        if not line:
            raise EOFError
        return _decode_input(line, self._tell).rstrip("\n")


def _prepare_readline() -> None:
    """Line editing and history; and a paste of several lines is one message.

    Python 3.10 and newer switch readline's bracketed paste off.
    """
    try:
        import readline
        readline.parse_and_bind("set enable-bracketed-paste on")
    except ImportError:
        pass


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit code."""
    console = _Console()
    code = 0
    try:
        try:
            code = _Command(_parse_arguments(argv), console).run()
        except KeyboardInterrupt:
            code = 130
            console.end_line()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError as error:
        # Who read from a pipe has seen enough: that is no failure, nor does it hide one.
        if not _is_closed_pipe(error):
            code = code or 1
            console.tell("streamlite: the output cannot be written: %s" % error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


# --------------------------------------------------------------------------------------------------
# Licence
#
# MIT License
#
# Copyright (c) 2026 the streamlite authors
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
# associated documentation files (the "Software"), to deal in the Software without restriction,
# including without limitation the rights to use, copy, modify, merge, publish, distribute,
# sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
# furnished to do so, subject to the following conditions:
#
# The above copyright notice and this permission notice shall be included in all copies or
# substantial portions of the Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
# NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
# NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
# DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
# OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
# --------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    sys.exit(main())
