"""Tests of streamlite: `python3 test_streamlite.py` or `python3 -m unittest`, from Python 3.6 on.

They need the standard library, streamlite.py beside this file and the loopback interface, nothing
else. The sections are those of streamlite.py, in its order and by its names; before them stand the
helpers, after them come programs that were written for the SDK and those of the README.

What is tested over a socket has a server at the other end that does what a script says, byte by
byte:

    with served(reply(503), stream_reply(HELLO), max_retries=1) as (server, asker):
        self.assertText(ask(asker), 'Hello world')
    self.assertEqual(len(server.requests), 2)

There is a script for each request, and the last one serves all further ones. A script is bytes to
send (the connection is closed after a head with "Connection: close", else kept), or a function of a
`Peer`. Nothing that must come waits for a time: scripts wait for an Event or for
`peer.wait_closed()`, tests for a condition. Nothing is measured closer than PROMPT, which is many
times what it takes: what must not wait has a peer that holds for LONG, and what takes linear time
has so much to do that anything else would take minutes.

The stages of a reply do no I/O, and are tested by tables of bytes or values in and values out; a
`Wire` stands for their connection.

Where no test is named, `python3 test_streamlite.py` shares the classes between four processes and
gives one report. `python3 -m unittest` runs all of them in one.
"""
import ast
import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import copy
import email.message
import email.utils
import errno
import gc
import http.client
import inspect
import io
import itertools
import json
import linecache
import logging
import math
import os
import pickle
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
import typing
import unicodedata
import unittest
import urllib.error
import urllib.parse
import urllib.request
import urllib.response
import warnings
import weakref
import zlib
from unittest import mock

try:
    import fcntl
    import pty
    import select
    import termios
except ImportError:  # Windows
    pty = None

try:
    import readline
except ImportError:
    readline = None

try:
    import ssl
except ImportError:
    ssl = None

import streamlite  # the one line to change for a vendored copy: from mypackage import streamlite


# --------------------------------------------------------------------------------------------------
# Helpers: what servers say, a server that says it, clients that ask, and the base of all tests
# --------------------------------------------------------------------------------------------------

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # nohup, or a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not for the programs started here

FOLDER = os.path.dirname(os.path.abspath(streamlite.__file__))
SCRIPT = os.path.abspath(streamlite.__file__)
MODULE = streamlite.main.__code__.co_filename  # as frames name it

# Seconds. A timeout of SHORT is meant to pass, and one of MEDIUM after something else has come.
# LONG is what scripts hold and clients wait where nobody is meant to wait for it, and PROMPT what
# even a busy machine needs where nobody did.
SHORT, MEDIUM, PROMPT, LONG = 0.1, 0.4, 10, 25

# Whatever must never be shown holds the mark; the end of every test looks for it in all that was
# said: every error's traceback, repr and attributes, and every log line.
MARK = 'never-shown'
KEY = 'sk-' + MARK + '-key'
PASSWORD = 'pw-' + MARK
SAID = []

PATH = '/v1/chat/completions'
AGAIN = {'retry-after-ms': '1'}  # a server that wants the next attempt at once
GZIP = {'Content-Encoding': 'gzip'}


def delta(content=None, finish_reason=None, index=0, **fields):
    """A chunk, as a dict, with one choice; further fields go into its delta."""
    if content is not None:
        fields['content'] = content
    return choice(index, finish_reason, delta=fields)


def choice(index=0, finish_reason=None, **fields):
    """A chunk, as a dict, with one choice of these fields."""
    fields.update(index=index, finish_reason=finish_reason)
    return {'id': 'chatcmpl-1', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm',
            'choices': [fields]}


def whole_reply(content='Hello world', finish_reason='stop', **message):
    """A whole completion, as a dict; further fields go into its message."""
    message = dict({'role': 'assistant', 'content': content}, **message)
    return {'id': 'chatcmpl-1', 'object': 'chat.completion', 'created': 1, 'model': 'm',
            'choices': [{'index': 0, 'message': message, 'finish_reason': finish_reason}]}


def call(index=None, id=None, name=None, arguments=None, **fields):
    """A fragment of a tool call, without what is None."""
    function = {'name': name, 'arguments': arguments}
    function = {key: value for key, value in function.items() if value is not None}
    fragment = {'index': index, 'id': id, 'function': function or None}
    return dict({key: value for key, value in fragment.items() if value is not None}, **fields)


def sse(*objects, done=True):
    """The bytes of an event stream.

    A dict becomes JSON, a str is an event's data, bytes are the stream as it is.
    """
    parts = []
    for item in objects + (('[DONE]',) if done else ()):
        if isinstance(item, dict):
            item = json.dumps(item, ensure_ascii=False)
        parts.append(item if isinstance(item, bytes) else b'data: %s\n\n' % item.encode())
    return b''.join(parts)


def framed(*payloads, before='data: ', after='\n\n'):
    """Payloads as another kind of server would send them."""
    return ''.join(before + payload + after for payload in payloads).encode()


STOP = delta(finish_reason='stop')
CHUNKS = [delta('Hel', role='assistant'), delta('lo '), delta('world'), STOP]
LINES = [json.dumps(chunk) for chunk in CHUNKS]
WHOLE = whole_reply()
MODELS = {'object': 'list',
          'data': [{'id': 'one', 'object': 'model'}, {'id': 'two', 'object': 'model'}]}
HEL, LO, WORLD, FINISH = (sse(chunk, done=False) for chunk in CHUNKS)
DONE = sse()
FINISHED = HEL + LO + WORLD + FINISH
HELLO = FINISHED + DONE
HELLO_CUT = HEL + LO  # neither finish_reason nor [DONE]


def chunked(body, size=None, last=True):
    """The body in the chunked coding, in chunks of `size` bytes (all in one by default).

    `last=False` leaves its end out.
    """
    size = size or len(body) or 1
    pieces = [body[at:at + size] for at in range(0, len(body), size)] + ([b''] if last else [])
    return b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in pieces)


def packed(body, window=31):
    """The body compressed: 31 makes gzip, 15 zlib, -15 raw deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    return packer.compress(body) + packer.flush()


def head(status=200, headers=()):
    """A status line and a header block, with nothing added."""
    lines = ['HTTP/1.1 %d Scripted' % status] + ['%s: %s' % pair for pair in dict(headers).items()]
    return '\r\n'.join(lines + ['', '']).encode('latin-1')


def packed_reply(body):
    """An event stream in gzip, ended by the close."""
    return head(200, dict(GZIP, Connection='close')) + packed(body)


def reply(status=200, headers=(), body=b''):
    """A whole answer; a body that is a dict or list is sent as JSON."""
    fields = {'Content-Type': 'text/plain'}
    if not isinstance(body, bytes):
        fields['Content-Type'], body = 'application/json', json.dumps(body).encode()
    fields['Content-Length'] = len(body)
    fields.update(headers)
    return head(status, fields) + body


def error_reply(status, headers=(), message='scripted failure', **fields):
    """An error answer with the usual JSON body."""
    error = dict({'message': message, 'type': 'scripted', 'param': None, 'code': None}, **fields)
    return reply(status, headers, {'error': error})


def stream_reply(body, framing='chunked', headers=()):
    """An event stream whose end is told by its chunks, by its length, or by the close."""
    fields = {'Content-Type': 'text/event-stream'}
    if framing == 'chunked':
        fields['Transfer-Encoding'], body = 'chunked', chunked(body)
    elif framing == 'length':
        fields['Content-Length'] = len(body)
    else:
        fields['Connection'] = 'close'
    fields.update(headers)
    return head(200, fields) + body


STREAM_HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n'  # without its end
CHUNKED_HEAD = head(200, {'Content-Type': 'text/event-stream', 'Transfer-Encoding': 'chunked'})


def begun(body):
    """A chunked event stream that has not ended."""
    return CHUNKED_HEAD + chunked(body, last=False)


WAITING = begun(HELLO_CUT)  # a stream that says "Hello " and then nothing more


def cut(data):
    """A script: send, then close."""
    return lambda peer: (peer.send(data), peer.close())


def reset(data):
    """A script: send, then reset the connection."""
    return lambda peer: (peer.send(data), peer.reset())


def stall(data=b''):
    """A script: send, then say nothing until the client goes away."""
    return lambda peer: (peer.send(data), peer.wait_closed())


def watched(data=WAITING):
    """A script as `stall` makes it, and an Event: its client has gone."""
    gone = threading.Event()
    return lambda peer: (peer.send(data), peer.wait_closed() and gone.set()), gone


def pace(what, start=b'', seconds=0.01):
    """A script that says `start`, then `what` again and again until the client has gone."""
    def script(peer):
        peer.send(start)
        while not peer.wait_closed(seconds):
            peer.send(what)
    return script


def flood(start, piece, most=1 << 28):
    """A script that says `piece` as fast as it is read.

    It fails when `most` bytes were taken; buffers take some.
    """
    def script(peer):
        peer.send(start)
        for _ in range(most // len(piece)):
            peer.send(piece)
        raise AssertionError('%d bytes were read' % most)
    return script


class Request:
    """What came.

    It has `method`, `path`, `headers` (a dict, names in lower case), `body` and `connection`, which
    is 1 for the server's first.
    """

    def __init__(self, start, body, connection):
        lines = start.decode('latin-1').split('\r\n')
        self.method, self.path = lines[0].split(' ')[:2]
        self.headers = {}
        for name, _, value in (line.partition(':') for line in lines[1:] if line):
            name = name.lower()
            self.headers[name] = ', '.join(filter(None, [self.headers.get(name), value.strip()]))
        self.body = body
        self.connection = connection

    @property
    def json(self):
        return json.loads(self.body.decode())


class Peer:
    """One connection, as its script sees it. `request` is the request to answer."""

    def __init__(self, sock, number):
        self.socket, self.number, self.request, self._buffer = sock, number, None, b''

    def send(self, data):
        self.socket.sendall(data)

    def close(self):
        # This is not the same as losing the last reference: the client is told at once, whoever
        # else holds the socket.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
        self.socket.close()

    def reset(self):
        linger = struct.pack('hh' if sys.platform == 'win32' else 'ii', 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()

    def wait_closed(self, timeout=LONG):
        """Whether the client goes away within `timeout`; what it still sends is thrown away."""
        self.socket.settimeout(timeout)
        try:
            while self.socket.recv(65536):
                pass
        except socket.timeout:
            return False
        except OSError:
            pass
        return True

    def start_tls(self, context):
        """What a proxy's script does after its answer to CONNECT."""
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def read_request(self):
        """The next request, or None when the client has closed."""
        self._fill(lambda: b'\r\n\r\n' in self._buffer)
        start, found, self._buffer = self._buffer.partition(b'\r\n\r\n')
        if not found:
            return None
        request = Request(start, b'', self.number)
        length = int(request.headers.get('content-length', 0))
        self._fill(lambda: len(self._buffer) >= length)
        request.body, self._buffer = self._buffer[:length], self._buffer[length:]
        return request

    def _fill(self, enough):
        while not enough():
            data = self.socket.recv(65536)
            if not data:
                break
            self._buffer += data


class Forgetful(Peer):
    """Reads a request and keeps nothing of its body."""

    size = 1 << 16  # bytes read at once

    def before_read(self):
        pass

    def read_request(self):
        self._fill(lambda: b'\r\n\r\n' in self._buffer)
        start, found, self._buffer = self._buffer.partition(b'\r\n\r\n')
        if not found:
            return None
        request = Request(start, b'', self.number)
        left = int(request.headers.get('content-length', 0)) - len(self._buffer)
        self._buffer = b''
        while left > 0:
            self.before_read()
            data = self.socket.recv(min(left, self.size))
            if not data:
                return None
            left -= len(data)
        return request


class SlowReader(Forgetful):
    """Takes longer than LONG for eight megabytes, by a clock that counts what `took` holds."""

    took = []

    def before_read(self):
        self.took.append(LONG / 100)


class Server:
    """A loopback server; a thread for each connection.

    `url` is its base URL, `port` its port, `requests` what came (a list of `Request`) and
    `connections` how many were opened. On leaving `with` all connections are closed and an
    exception in a script is raised. `tls` is a server's SSLContext; `peer` a subclass of Peer that
    reads requests in another way.
    """

    def __init__(self, *scripts, tls=None, peer=Peer):
        self.requests, self.connections = [], 0
        self._scripts, self._tls, self._peer = list(scripts) or [stream_reply(HELLO)], tls, peer
        self._lock, self._open, self._failure = threading.Lock(), True, None
        self._peers, self._threads = [], []

    def __enter__(self):
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(128)
        self.port = self._listener.getsockname()[1]
        self.url = '%s://127.0.0.1:%d/v1' % ('https' if self._tls else 'http', self.port)
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info):
        self._open = False
        socket.create_connection(('127.0.0.1', self.port)).close()  # wakes accept() on every system
        self._threads[0].join()
        self._listener.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(peer.socket, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(LONG)
        if self._failure and exc_info[0] is None:
            raise self._failure

    def script(self, *scripts):
        """Replace the scripts, where they need the server's port."""
        self._scripts = list(scripts)

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            sock = self._listener.accept()[0]
            if not self._open:
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            peer = self._peer(sock, self.connections)
            self._peers.append(peer)
            self._start(self._serve, peer)

    def _serve(self, peer):
        try:
            if self._tls:
                peer.start_tls(self._tls)
            while peer.socket.fileno() >= 0:
                peer.request = peer.read_request()
                if peer.request is None:
                    break
                with self._lock:
                    self.requests.append(peer.request)
                    script = self._scripts[0] if len(self._scripts) == 1 else self._scripts.pop(0)
                if callable(script):
                    script(peer)
                else:
                    peer.send(script)
                    if b'connection: close' in script.partition(b'\r\n\r\n')[0].lower():
                        break
        except OSError:
            pass  # the client went away, which many tests want
        except Exception as error:
            self._failure = error
        finally:
            peer.close()


@contextlib.contextmanager
def deaf_server():
    """A server that accepts connections and reads nothing."""
    over = threading.Event()

    class Deaf(Peer):
        def read_request(self):
            over.wait(LONG)

    with Server(peer=Deaf) as server:
        try:
            yield server
        finally:
            over.set()


class Blocking(urllib.request.BaseHandler):
    """A handler of urllib's that holds up whoever opens a stream."""

    def __init__(self):
        self.release, self.busy = threading.Event(), []

    def __copy__(self):
        return self

    def http_request(self, request):
        self.busy.append(request)
        self.release.wait(LONG)
        return request


def client(server, kind=streamlite.OpenAI, **options):
    """A client of the server, which retries only where a test says so.

    The server is None where the options hold a base_url.
    """
    usual = {'api_key': KEY, 'base_url': server and server.url, 'max_retries': 0, 'timeout': LONG}
    return kind(**dict(usual, **options))


def async_client(server, **options):
    """`client`, asynchronous."""
    return client(server, kind=streamlite.AsyncOpenAI, **options)


@contextlib.contextmanager
def served(*scripts, tls=None, peer=Peer, **options):
    """A server that does what the scripts say, and a client of it with these options."""
    with Server(*scripts, tls=tls, peer=peer) as server, client(server, **options) as asker:
        yield server, asker


def ask(client, **options):
    """A stream; `stream=False` a whole completion."""
    usual = {'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}], 'stream': True}
    return client.chat.completions.create(**dict(usual, **options))


def hasten(stream):
    """What has come has come; for the next event it waits no longer than SHORT."""
    stream._call.read = SHORT


def chat(text):
    """Messages that hold this text."""
    return [{'role': 'user', 'content': text}]


def text_of(completion):
    """Choice 0's text, '' where there is none yet."""
    choices = completion.choices if completion is not None else None
    return choices[0].message.content or '' if choices else ''


async def gather_text(stream):
    """The text of an asynchronous stream that is iterated to its end."""
    texts = []
    async for chunk in stream:
        texts.append(chunk.choices[0].delta.content or '' if chunk.choices else '')
    return ''.join(texts)


Outcome = collections.namedtuple('Outcome', 'result seconds requests connections')


def outcome(scripts, **options):
    """What streaming from such a server comes to: the text, or the error.

    Nothing but an OpenAIError is an outcome.
    """
    with Server(*scripts) as server:
        return outcome_of(server, **options)


def outcome_of(server, **options):
    start = time.monotonic()
    try:
        with client(server, **options) as asker, ask(asker) as stream:
            result = ''.join(stream.text())
    except streamlite.OpenAIError as error:
        remember(error)
        result = error
    return Outcome(result, time.monotonic() - start, server.requests, server.connections)


def outcomes(cases, **options):
    """The names of a table's cases and what comes of them, tried at the same time."""
    return zip(cases, at_once(*[lambda scripts=scripts: outcome(scripts, **options)
                                for scripts in cases.values()]))


def at_once(*calls):
    """What the calls return, all made at the same time: many short waits cost as much as one."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


class Interrupt(BaseException):
    """What a signal's handler raises: no error of the library's and no Exception."""


@contextlib.contextmanager
def interrupted(number):
    """Raise Interrupt at one call inside the module, made by this thread; yields how many came."""
    calls = [0]

    def profile(frame, event, argument):
        if event == 'call' and in_module(frame):
            calls[0] += 1
            if calls[0] == number:
                raise Interrupt

    # Python writes to standard error what is raised while a generator is thrown away.
    with contextlib.redirect_stderr(io.StringIO()):
        sys.setprofile(profile)
        try:
            yield calls
        finally:
            sys.setprofile(None)


def frames():
    """How many calls deep the caller is."""
    depth, frame = 0, sys._getframe(1)
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def no_waits():
    """While this is patched, nobody waits between attempts of which the server says nothing."""
    return mock.patch('random.random', return_value=4)


@contextlib.contextmanager
def switching_often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def dead_port():
    """A port of 127.0.0.1 at which nobody listens."""
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(('127.0.0.1', 0))
        yield unused.getsockname()[1]


def asyncio_run(coroutine):
    """asyncio.run, which Python 3.6 has not."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def read_file(path):
    """Its text, '' if there is none."""
    if not os.path.exists(path):
        return ''
    with io.open(path, encoding='utf-8') as file:
        return file.read()


def write_file(path, text):
    with io.open(path, 'w', encoding='utf-8', newline='\n') as file:
        file.write(text)


Ran = collections.namedtuple('Ran', 'code out err')  # an exit code, and the text on the two outputs


def run_python(*arguments, input=b'', cwd=FOLDER, **environment):
    """Run another Python, with pipes, beside streamlite.py unless told otherwise."""
    done = subprocess.run([sys.executable] + list(arguments), input=input, timeout=4 * LONG,
                          cwd=cwd,
                          env=dict(os.environ, **environment),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ran = Ran(done.returncode, read_pipe(done.stdout), read_pipe(done.stderr))
    SAID.extend(ran[1:])
    return ran


def read_pipe(data):
    """What a program wrote, whatever its system ends lines with."""
    return data.decode('utf-8').replace('\r\n', '\n')


def remember(error):
    """Keep all that an error shows, for the search at the end of the test."""
    SAID.append(''.join(traceback.format_exception(type(error), error, error.__traceback__)))
    SAID.append('%r %s %r' % (error, error, vars(error)))


def open_sockets():
    """The descriptors of this process that are sockets; on Windows none can be listed."""
    found = set()
    for name in os.listdir('/dev/fd') if os.path.isdir('/dev/fd') else ():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def splits(data):
    """The bytes as reads: cut in two at every place, and byte by byte.

    Between the reads there are looks that find nothing, which are b''.
    """
    for at in range(len(data) + 1):
        yield [data[:at], b'', data[at:]]
    yield [read for at in range(len(data)) for read in (b'', data[at:at + 1])]


class Wire:
    """A connection, as generators and pool see it: what a real one receives is in `reads`.

    Behind the reads comes the server's close, or `fault`, or with `silent` nothing for ever: then
    whoever waits has timed out, and whoever only looks finds nothing.
    """

    def __init__(self, *reads, fault=None, silent=False, route=None):
        self.ahead, self.ended, self.fault, self.route = b'', False, None, route
        self.reads, self.closed = list(reads), False
        self.waits, self.looks = [], []  # What was left of the call's time at each.
        self._fault = socket.timeout('timed out') if silent else fault
        self._silent = silent

    def fill(self, call=None, wait=True, size=16384):
        if call is not None:
            (self.waits if wait else self.looks).append(round(call.remaining, 6))
        if self.reads:
            self.ahead += self.reads.pop(0)
        elif self._silent and not wait:
            return False
        else:
            self.ended, self.fault = True, self._fault
        return True

    def close(self):
        self.closed = True

    @property
    def rest(self):
        """What nobody has taken."""
        return self.ahead + b''.join(self.reads)


Drained = collections.namedtuple('Drained', 'pieces error')


def drain(body, wire=None):
    """What a generator of bytes yields, and the error that ends it; b'' waits for the next read."""
    pieces = []
    try:
        for data in body:
            pieces.append(data)
            if wire is not None and not data:
                wire.fill()
    except OSError as error:
        return Drained(pieces, error)
    return Drained(pieces, None)


def head_of(**fields):
    """The head of an answer whose body has no framing and no coding but these."""
    usual = {'status': 200, 'reason': 'OK', 'headers': {}, 'keep': True, 'chunked': False,
             'length': None, 'coding': ''}
    return streamlite._Head(**dict(usual, **fields))


class Clock:
    """The call of an answer: it notes the seconds that its clock is started with."""

    def __init__(self, read=600):
        self.place, self.read, self.starts = 'http://server.test/v1', read, []

    def start(self, seconds):
        self.starts.append(seconds)


def plain(wired):
    """What a wire object holds, as dicts and lists."""
    return streamlite._plain(wired)


SAID_DONE = streamlite._DONE
RESET = ConnectionResetError('reset by peer')


def in_module(frame):
    """Whether the frame runs our code; what is raised in a __del__ Python drops."""
    if frame.f_code.co_filename != MODULE:
        return False
    while frame is not None:
        if frame.f_code.co_name == '__del__':
            return False
        frame = frame.f_back
    return True


OPENINGS = {number for number, line in enumerate(linecache.getlines(MODULE), 1)
            if line.split()[:1] in (['try:'], ['with'])}


@contextlib.contextmanager
def signalled(number, handler, where=in_module):
    """Run `handler` before one line of this thread, as a signal's would run, which may raise.

    Of the lines of all frames for which `where(frame)` is true it is the one of this number; yields
    a list that holds how many there were. Lines of `try` and `with` do not count: what is raised
    there comes from outside of their blocks on some Pythons, and no signal comes there.
    """
    lines, fired = [0], []

    def trace(frame, event, argument):
        return trace_line if where(frame) else None

    def trace_line(frame, event, argument):
        if event == 'line':
            is_ours = frame.f_code.co_filename == MODULE
            lines[0] += not (is_ours and frame.f_lineno in OPENINGS)
            if lines[0] == number and not fired:
                fired.append(number)
                handler()
        return trace_line

    before = sys.gettrace()
    # Python writes to standard error what is raised while a generator is thrown away.
    with contextlib.redirect_stderr(io.StringIO()):
        sys.settrace(trace)
        try:
            yield lines
        finally:
            sys.settrace(before)


def interrupt():
    raise Interrupt


def stream_of(*reads, kind=streamlite.Stream):
    """A stream that receives these bytes, and then the server's close, over no socket."""
    called = streamlite._Call('http://server.test/v1', LONG, LONG, math.inf)
    return kind(streamlite._Exchange(
        streamlite.Request('POST', called.place), streamlite._asked({}), called,
        streamlite._Secrets(), 0, lambda: '',
        lambda key: streamlite._Reply(Wire(*reads), head_of(), called, None)))


def in_time(test, work):
    """Run it in a thread: `work` fails where it waits for itself, and not for ever."""
    def run():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    failed, thread = [], threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PROMPT)
    test.assertFalse(thread.is_alive(), 'it waits for itself')
    for error in failed:
        raise error


needs_fork = unittest.skipUnless(hasattr(os, 'fork') and sys.platform != 'darwin',
                                 'this system has no fork that threads survive')


@contextlib.contextmanager
def forked():
    """Yields the child's id, which is 0 in the child; that leaves by os._exit()."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of forking beside threads, which the server has
        child = os.fork()
    try:
        yield child
    finally:
        if not child:
            os._exit(9)


BURST = stream_reply(sse('{}' * 2000))  # one event, and no more than one read


class TestCase(unittest.TestCase):
    """An environment without the user's own settings.

    A thread, socket, warning or secret that a test leaves behind fails it.
    """

    def setUp(self):
        patch = mock.patch.dict(os.environ)
        patch.start()
        self.addCleanup(patch.stop)
        for name in list(os.environ):
            ours = name.startswith(('OPENAI_', 'AZURE_', 'SSL', 'REQUESTS_CA', 'CURL_CA'))
            ours = ours or name == 'PYTHONUNBUFFERED'  # or nobody sees whether we flush
            if ours or name.lower().endswith('_proxy'):
                del os.environ[name]
        logger = logging.getLogger('streamlite')
        handler = logging.Handler()
        handler.emit = lambda record: SAID.append('%s %s' % (record.levelname, record.getMessage()))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        self.addCleanup(logger.removeHandler, handler)
        del SAID[:]
        self.addCleanup(self._check_left_over, set(threading.enumerate()), open_sockets())
        warned = self.enter(warnings.catch_warnings(record=True))
        warnings.simplefilter('always')
        self.addCleanup(self._check_warnings, warned)

    def enter(self, manager):
        """Enter a context manager that is left at the end of the test."""
        result = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return result

    def wait_until(self, condition):
        """Wait for what no Event tells."""
        end = time.monotonic() + PROMPT
        while not condition():
            self.assertLess(time.monotonic(), end, 'it does not come')
            time.sleep(0.001)

    def serve(self, *scripts, **options):
        """A server that lives until the end of the test."""
        return self.enter(Server(*scripts, **options))

    def _check_left_over(self, threads, sockets):
        for thread in set(threading.enumerate()) - threads:
            thread.join(PROMPT)
        self.assertEqual(set(threading.enumerate()) - threads, set(), 'threads left over')
        self.assertEqual(open_sockets() - sockets, set(), 'sockets left over')
        for said in SAID:
            self.assertNotIn(MARK, said)

    def _check_warnings(self, warned):
        self.assertEqual([str(warning.message) for warning in warned], [])

    @contextlib.contextmanager
    def _remembering(self, kind):
        with super().assertRaises(kind) as caught:
            try:
                yield caught
            except Exception as error:
                remember(error)
                raise

    def assertRaises(self, kind, call=None, *args, **kwargs):
        """As in unittest; the error is kept for the search for secrets."""
        if call is None:
            return self._remembering(kind)
        with self._remembering(kind):
            call(*args, **kwargs)

    def assertLogged(self, level, *words):
        """Exactly one log line of this level holds all the words."""
        lines = [said for said in SAID if said.startswith(level)
                 and all(word in said for word in words)]
        self.assertEqual(len(lines), 1, SAID)

    def assertText(self, completion, text, finish_reason='stop'):
        """The (whole) completion, or the stream when drained, says this."""
        if isinstance(completion, streamlite.Stream):
            completion = completion.collect()
        self.assertEqual(text_of(completion), text)
        self.assertEqual(completion.choices[0].finish_reason, finish_reason)

    def assertBroken(self, client, text, kind=None, **options):
        """A stream hands over `text` and then fails with an error that still has it.

        The error is returned.
        """
        seen = []
        with self.assertRaises(kind or streamlite.APIConnectionError) as caught:
            with ask(client, **options) as stream:
                seen.extend(stream.text())
        self.assertEqual(''.join(seen), text)
        self.assertEqual(text_of(caught.exception.partial), text)
        return caught.exception

    def assertSays(self, error, *words):
        """The message holds each of these words, whatever its prose."""
        for word in words:
            self.assertIn(str(word).lower(), str(error).lower())

    @contextlib.contextmanager
    def assertPrompt(self):
        """The block waits for none of the things that take LONG."""
        start = time.monotonic()
        yield
        self.assertLess(time.monotonic() - start, PROMPT)

    def assertLinear(self, work):
        """The work would take several times PROMPT if each part cost as much as the whole."""
        start = time.process_time()
        work()
        self.assertLess(time.process_time() - start, PROMPT)


class ReplyTestCase(TestCase):
    """One server and one client for a whole test; the answer is set by whoever asks."""

    def setUp(self):
        super().setUp()
        self.answer = b''
        self.server = self.serve(lambda peer: peer.send(self.answer))
        self.client = self.enter(client(self.server))

    def stream(self, *items, done=True):
        """A stream of these items, as `sse` takes them."""
        self.answer = stream_reply(sse(*items, done=done))
        return ask(self.client)

    def collect(self, *items, done=True):
        with self.stream(*items, done=done) as stream:
            return stream.collect()

    def message(self, *deltas, finish_reason='stop'):
        """The message that these deltas, each a dict, come to."""
        completion = self.collect(*[delta(**fields) for fields in deltas]
                                  + [delta(finish_reason=finish_reason)])
        return completion.choices[0].message

    def error_of(self, *items, done=True, kind=None):
        """The error that a stream of these items ends in."""
        with self.assertRaises(kind or streamlite.APIError) as caught:
            self.collect(*items, done=done)
        return caught.exception

    def error_of_answer(self, answer, kind):
        """The error that this answer, bytes as the server sends them, ends in."""
        self.answer = answer
        with self.assertRaises(kind) as caught:
            with ask(self.client) as stream:
                stream.collect()
        return caught.exception


class AsyncTestCase(TestCase):
    """Runs coroutines in the debug mode of asyncio.

    A word of complaint from it, or from a destructor, fails the test.
    """

    def setUp(self):
        super().setUp()
        complaints = logging.Handler()
        complaints.emit = lambda record: self.complaints.append(record.getMessage())
        self.complaints = []
        logging.getLogger('asyncio').addHandler(complaints)
        self.addCleanup(logging.getLogger('asyncio').removeHandler, complaints)

    def run_async(self, coroutine):
        loop = asyncio.new_event_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = PROMPT  # a busy machine is no fault
        asyncio.set_event_loop(loop)
        try:
            result = loop.run_until_complete(asyncio.wait_for(coroutine, 4 * LONG))
            loop.run_until_complete(loop.shutdown_asyncgens())
            gc.collect()
            loop.run_until_complete(asyncio.sleep(0))
        finally:
            # What is left where a test has failed must not fail the next one, too.
            tasks = (getattr(asyncio, 'all_tasks', None) or asyncio.Task.all_tasks)(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=PROMPT))
            asyncio.set_event_loop(None)
            loop.close()
        self.assertEqual(self.complaints, [])
        return result

    async def until(self, condition):
        """Wait until the condition holds, without holding up the loop."""
        end = time.monotonic() + PROMPT
        while not condition():
            self.assertLess(time.monotonic(), end, 'it does not come')
            await asyncio.sleep(0.001)


class LoopbackTestCase(TestCase):
    """Every name and address resolves to 127.0.0.1, so that no packet leaves the machine."""

    def setUp(self):
        super().setUp()
        resolve = socket.getaddrinfo
        self.enter(mock.patch('socket.getaddrinfo', lambda host, *args, **kwargs: resolve(
            '127.0.0.1', *args, **kwargs)))


class ProgramTestCase(TestCase):
    """With the demo server as what the environment names."""

    def setUp(self):
        super().setUp()
        self.server = self.enter(streamlite.DemoServer(delay=0))
        self.addCleanup(gc.collect)  # the programs close no client
        os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=self.server.base_url)
        if not hasattr(asyncio, 'run'):
            self.enter(mock.patch.object(asyncio, 'run', asyncio_run, create=True))

    def run_program(self, source, names):
        """What it prints."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, 'program', 'exec'), names)
        SAID.append(output.getvalue())
        return output.getvalue()


# How many processes share the tests: most of their time is waiting.
PROCESSES = 4

# The first argument of a process that runs some of the tests for another one.
OTHER_PROCESS = '--for-another-process'


class Elsewhere(str):
    """The name of a test that ran in another process."""

    def shortDescription(self):
        return None


class Result(unittest.TextTestResult):
    """Tells of the tests of other processes, too, and at the end what was skipped and why."""

    others = ()

    def stopTestRun(self):
        for process in self.others:
            told = json.loads(process.communicate()[0].decode())
            self.testsRun += told['run']
            for kind in 'errors', 'failures', 'skipped':
                getattr(self, kind).extend((Elsewhere(name), text) for name, text in told[kind])
        super().stopTestRun()

    def printErrors(self):
        super().printErrors()
        reasons = collections.Counter(reason for _, reason in self.skipped)
        for reason, count in sorted(reasons.items()):
            self.stream.writeln('%d skipped: %s' % (count, reason))


class Runner(unittest.TextTestRunner):
    resultclass = Result


def run_for_another_process(names):
    """Run the tests of these names and write to standard output what Result reads."""
    result = unittest.TestResult()
    suite = unittest.defaultTestLoader.loadTestsFromNames(names, sys.modules['__main__'])
    leave_modules_to_no_collection()
    suite.run(result)
    told = {kind: [(str(test), text) for test, text in getattr(result, kind)]
            for kind in ('errors', 'failures', 'skipped')}
    print(json.dumps(dict(told, run=result.testsRun)))


def run_in_processes():
    """Run all tests, each process its share of those of every class."""
    names = [kind.__name__ + '.' + test for kind in list(globals().values())
             if isinstance(kind, type) and issubclass(kind, unittest.TestCase)
             for test in unittest.defaultTestLoader.getTestCaseNames(kind)]
    command = [sys.executable, os.path.abspath(__file__), OTHER_PROCESS]
    with contextlib.ExitStack() as stack:
        Result.others = [
            stack.enter_context(subprocess.Popen(command + names[share::PROCESSES],
                                                 stdout=subprocess.PIPE))
            for share in range(1, PROCESSES)]
        leave_modules_to_no_collection()
        unittest.main(argv=sys.argv + names[::PROCESSES], testRunner=Runner)


def leave_modules_to_no_collection():
    """Each gc.collect() of a test costs 20 ms where it looks at all that was imported, too."""
    freeze = getattr(gc, 'freeze', None)  # from Python 3.7 on
    if freeze is not None:
        freeze()


# --------------------------------------------------------------------------------------------------
# Errors: the SDK's tree, and the server's words in whatever shape it sends them
# --------------------------------------------------------------------------------------------------

CLASSES = {
    400: streamlite.BadRequestError, 401: streamlite.AuthenticationError,
    402: streamlite.APIStatusError, 403: streamlite.PermissionDeniedError,
    404: streamlite.NotFoundError, 409: streamlite.ConflictError, 418: streamlite.APIStatusError,
    422: streamlite.UnprocessableEntityError, 429: streamlite.RateLimitError}
CLASSES.update((status, streamlite.InternalServerError)
               for status in (500, 502, 503, 504, 529, 599))


class ErrorTest(TestCase):

    def test_errors_are_made_as_tests_make_them(self):
        request = streamlite.Request('POST', 'http://server.test/v1')
        self.assertIs(streamlite.APIError('m', request).request, request)
        self.assertIs(streamlite.APIConnectionError(request=request).request, request)

        class Answer:
            status_code, headers = 429, {'x-request-id': 'req_7'}

        for error in (streamlite.APIResponseValidationError(Answer(), {'a': 1}),
                      streamlite.RateLimitError('m', response=Answer(), body={'a': 1})):
            self.assertEqual((error.status_code, error.request_id, error.body),
                             (429, 'req_7', {'a': 1}))

    def test_an_error_without_an_answer_has_no_request_id(self):
        for error in streamlite.APIError('m'), streamlite.APIConnectionError(message='m'):
            self.assertIsNone(error.request_id)
            self.assertEqual((error.partial, error.attempts, error.elapsed, error.retry_after),
                             (None, 0, 0.0, None))
        self.assertEqual(streamlite.APIStatusError('m', response=None, body=None).status_code, 0)

    def test_a_reply_that_was_cut_says_by_what_and_has_what_came(self):
        for kind, word in ((streamlite.LengthFinishReasonError, 'length'),
                           (streamlite.ContentFilterFinishReasonError, 'filter')):
            error = kind(completion='what came')
            self.assertSays(error, 'cut', word)
            self.assertEqual(error.completion, 'what came')
            self.assertIsInstance(error, streamlite.OpenAIError)

    def test_each_status_has_its_class_and_the_servers_words(self):
        for status, kind in CLASSES.items():
            answer = error_reply(status, {'x-request-id': 'req_7'}, 'that went wrong',
                                 type='t', code='c', param='p')
            with self.subTest(status), served(answer) as (server, asker):
                for options in {}, {'stream': False}:
                    with self.assertRaises(streamlite.APIStatusError) as caught:
                        ask(asker, **options)
                    error = caught.exception
                    self.assertIs(type(error), kind)
                    self.assertEqual((error.status_code, error.request_id), (status, 'req_7'))
                    self.assertEqual((error.type, error.code, error.param), ('t', 'c', 'p'))
                    self.assertEqual(error.body['message'], 'that went wrong')
                    self.assertEqual(error.response.status_code, status)
                    self.assertEqual(error.request.method, 'POST')
                    self.assertEqual(error.message, str(error))
                    self.assertSays(error, status, 'that went wrong')

    def test_a_status_that_http_does_not_know(self):
        for status in 204, 300, 304, 600, 999:
            with self.subTest(status):
                result = outcome([cut(head(status, dict(AGAIN, **{'Content-Length': 0})))],
                                 max_retries=2)
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertTrue(status == 204 or len(result.requests) == 1, 'it was retried')

    def test_a_wrong_key_and_an_unknown_model_come_with_what_to_do(self):
        with Server(error_reply(401, message='Incorrect API key provided'),
                    error_reply(404, message='The model `gpt-9` does not exist',
                                code='model_not_found')) as server:
            with client(server) as asker:
                with self.assertRaises(streamlite.AuthenticationError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'key', '127.0.0.1')
                with self.assertRaises(streamlite.NotFoundError) as caught:
                    ask(asker, model='gpt-9')
                self.assertSays(caught.exception, 'gpt-9')

    def test_an_excerpt_is_on_one_line_and_marks_its_cut(self):
        for text, length, shown in (('a\r\n\tb \x1b  c\n', 200, 'a b c'), ('abc', 3, 'abc'),
                                    ('abcd', 3, 'abc...'), (' ' * 50 + 'a', 20, 'a'), ('', 3, ''),
                                    (' ' * 80 + 'a', 20, '')):  # far behind nobody looks
            with self.subTest(text):
                self.assertEqual(streamlite._excerpt(text, length), shown)

    def test_an_excerpt_has_two_hundred_letters_unless_told_otherwise(self):
        self.assertEqual(streamlite._excerpt('x' * 201), 'x' * 200 + '...')
        self.assertEqual(streamlite._excerpt('x' * 200), 'x' * 200)

    def test_an_integer_of_more_digits_than_python_converts_is_refused_on_every_python(self):
        self.assertEqual(streamlite._parse_int('9' * 4300), 10 ** 4300 - 1)
        self.assertRaises(ValueError, streamlite._parse_int, '9' * 4301)


class ErrorBodyTest(ReplyTestCase):

    def test_the_servers_words_are_found_in_every_shape_of_body(self):
        words = 'the model is tired'
        usual = {'error': {'message': words}}
        for name, body in (
                ('a string', {'error': words}),
                ('a string and a code', {'code': 'nap', 'error': words}),
                ('detail', {'detail': words}),
                ('a list of details', {'detail': [
                    {'loc': ['body', 'model'], 'msg': words, 'type': 'value_error'}]}),
                ('message', {'message': words}),
                ('a flat error', {'object': 'error', 'message': words, 'type': 'nap',
                                  'param': None, 'code': '1500'}),
                ('a list of errors', [{'error': {'message': words, 'code': 429}}]),
                ('an empty error beside a message', {'error': None, 'message': words}),
                ('an empty message beside another', {'message': '', 'msg': words}),
                ('a nested message',
                 json.dumps({'error': {'message': {'detail': words}}}).encode()),
                ('a JSON string', json.dumps(words).encode()),
                ('an indented body', json.dumps(usual, indent=2).encode()),
                ('blank lines before', b'\n\n' + json.dumps(usual).encode()),
                ('an event', sse(usual, done=False)),
                ('plain text', words.encode()),
                ('HTML', b'<html><head><title>%s</title></head><hr></html>' % words.encode()),
                ('a byte that is no UTF-8', b'{"error": {"message": "%s \xff"}}' % words.encode()),
                ('a huge integer', b'{"error": {"message": "%s", "code": %s}}' % (
                    words.encode(), b'9' * 5000)),
                ('300 levels', b'{"error": {"message": "%s", "x": %s%s}}' % (
                    words.encode(), b'[' * 300, b']' * 300)),
                ('cut', b'{"error": {"message": "%s", "co' % words.encode())):
            for status in (400, 503):
                with self.subTest(name, status=status):
                    error = self.error_of_answer(reply(status, {}, body), CLASSES[status])
                    self.assertSays(error, status, words)
                    self.assertLess(len(str(error)), 2000)
                    if not isinstance(body, bytes):
                        self.assertNotRegex(str(error), '[{"]')

    def test_a_body_that_says_nothing_still_gives_the_status(self):
        for body in (b'', b' \n', b'null', b'42', b'[]', b'[1, 2, 3]', b'""', b'{}', b'true',
                     b'{"error": {}}', b'{"error": {"code": 1e999}}',
                     b'{"error": {"message": {"nested": true}, "code": 42}}',
                     b'{"a":' * 100000, b'[' * 60000, b'\xff\xfe\x00'):
            for status in (404, 500):
                with self.subTest(body[:20], status=status):
                    error = self.error_of_answer(reply(status, {}, body), CLASSES[status])
                    self.assertEqual(error.status_code, status)
                    self.assertSays(error, status)
        unknown = reply(500, {'Content-Encoding': 'br'}, b'\x0b\x02\x80hello\x03')
        self.assertSays(self.error_of_answer(unknown, streamlite.InternalServerError), 500)

    def test_of_a_body_that_never_ends_the_words_that_came_are_told(self):
        words = b'out of memory'
        long = head(500, {'Content-Length': 1000}) + words
        cases = {
            'cut': cut(long),
            'reset': reset(long),
            'cut in a chunk': cut(head(500, {'Transfer-Encoding': 'chunked'}) + b'20\r\n' + words),
            'stalled': stall(long),
            'dripping': pace(b'.', head(500) + words),
            'gzip': reply(500, GZIP, packed(words)),
        }
        with mock.patch.object(streamlite, 'PATIENCE', SHORT):
            for name, result in outcomes({name: [script] for name, script in cases.items()}):
                with self.subTest(name):
                    self.assertIs(type(result.result), streamlite.InternalServerError)
                    self.assertSays(result.result, 500, words.decode())
                    self.assertLess(len(str(result.result)), 2000)
                    self.assertLess(result.seconds, PROMPT)

    def test_only_the_start_of_a_huge_error_body_is_read(self):
        result = outcome([flood(head(500), b'e' * 65536, 1 << 28)])
        self.assertIs(type(result.result), streamlite.InternalServerError)
        self.assertLess(len(str(result.result.body)), 1 << 20)

    def test_no_more_of_it_is_received_either(self):
        wire = Wire(*[b'x' * 65536] * 100, silent=True)
        call = streamlite._Call('http://server.test/v1', LONG, LONG, math.inf)
        reply = streamlite._Reply(wire, head_of(status=500), call, None)
        body = streamlite._error_body(reply, call)
        self.assertEqual(len(body), streamlite.MAX_ERROR_BODY)
        self.assertLess(len(body) // 65536, 50)
        self.assertGreaterEqual(len(wire.reads), 99 - len(body) // 65536)

    def test_a_fault_without_words_is_told_by_its_name(self):
        class Failing(urllib.request.BaseHandler):
            def http_request(self, request):
                raise ConnectionResetError()

        self.assertSays(outcome([HELLO], handlers=[Failing()]).result, 'ConnectionResetError')

    def test_of_a_foreign_text_an_error_keeps_the_start(self):
        error = self.error_of_answer(reply(200, {}, b'It works! ' * 1000),
                                     streamlite.APIResponseValidationError)
        self.assertEqual(error.body, ('It works! ' * 1000)[:1000])

    evil = 'a\x1b[31mred\nERROR forged\r\n\x85\u2028\u2029\x00\x9b2J\x07' + 'x' * (1 << 17)

    def assertOneLine(self, text):
        self.assertLess(len(text), 3000)
        bad = [c for c in text if unicodedata.category(c) in ('Cc', 'Zl', 'Zp')]
        self.assertEqual(bad, [], text[:200])

    def test_the_words_of_a_server_are_one_bounded_line_wherever_they_stand(self):
        words, short = json.dumps(self.evil).encode(), self.evil[:60000]
        page = ('<html><title>%s</title></html>' % self.evil).encode()
        cases = {
            'an error event': stream_reply(HELLO_CUT + sse({'error': {'message': self.evil}})),
            'an error event, the text alone': stream_reply(sse({'error': self.evil})),
            'an event named error': stream_reply(b'event: error\ndata: %s\n\n' % words),
            'an event named error, no JSON': stream_reply(
                b'event: error\ndata: \x1b[31m%s\n\n' % (b'x' * 9999)),
            'an error object': stream_reply(sse({'object': 'error', 'message': self.evil})),
            'its numeric code': stream_reply(sse({'error': {'message': self.evil, 'code': 503}})),
            'its code': stream_reply(sse({'error': {'message': 'no', 'code': self.evil}})),
            'several errors': stream_reply(sse({
                'errors': [{'message': self.evil}] * 2, 'error': 1})),
            'a place': stream_reply(sse({
                'error': 1, 'detail': [{'loc': ['a', self.evil], 'msg': 'm'}]})),
            'a finish_reason of error': stream_reply(sse(delta(self.evil, 'error'))),
            'a JSON body': reply(200, {}, {'error': {'message': self.evil}}),
            'a list': reply(200, {}, [{'error': {'message': self.evil}}]),
            'a status': error_reply(400, message=short),
            'the code of a status': error_reply(400, message='no', code=short),
            'a status, no JSON': reply(400, {}, short.encode()),
            'a page': reply(502, {}, page[:60000]),
            'not ours': stream_reply(b'data: %s\n\n' % page),
            'a Location': head(302, {'Location': '/\x1b[31m' + 'x' * 9999, 'Content-Length': 0}),
        }
        for name, answer in cases.items():
            with self.subTest(name):
                error = self.error_of_answer(answer, streamlite.APIError)
                self.assertOneLine(str(error))
                self.assertOneLine(error.message)
        del SAID[:]
        answers = (stream_reply(sse({'error': {'message': self.evil, 'code': 503}})),
                   error_reply(503, AGAIN, short), stream_reply(HELLO))
        with no_waits():
            self.assertEqual(outcome(answers, max_retries=2).result, 'Hello world')
        self.assertEqual(len([said for said in SAID if said.startswith('INFO')]), 2)
        for said in SAID:
            self.assertOneLine(said)

    def test_the_body_of_an_error_is_as_it_came(self):
        error = self.error_of({'error': {'message': self.evil, 'code': 'c\n'}})
        self.assertEqual((error.body['message'], error.body['code']), (self.evil, 'c\n'))
        detail = {'detail': [{'loc': ['body', 'messages'], 'msg': 'field required'}]}
        error = self.error_of_answer(reply(422, {}, detail), streamlite.UnprocessableEntityError)
        self.assertEqual(error.body, detail)

    def test_an_error_says_where_in_the_request_it_is(self):
        detail = {'detail': [{'loc': ['body', 'messages', 0], 'msg': 'field required'}]}
        error = self.error_of_answer(reply(422, {}, detail), streamlite.UnprocessableEntityError)
        self.assertSays(error, 'body.messages.0: field required')

    def test_a_page_of_many_titles_takes_linear_time(self):
        self.assertLinear(lambda: streamlite._title('<html>' + '<title>' * 200000))

    def test_the_servers_code_stands_in_the_message_once(self):
        for status, words, code in (
                (429, 'You exceeded your current quota', 'insufficient_quota'),
                (400, 'Your input is too long', 'context_length_exceeded'),
                (401, 'Incorrect key', 'invalid_api_key'),
                (404, 'model_not_found: no gpt-9', 'model_not_found'),
                (400, 'no', None), (400, 'no', ''), (400, 'no', 7)):
            with self.subTest(code):
                answer = error_reply(status, message=words, code=code)
                error = self.error_of_answer(answer, streamlite.APIStatusError)
                self.assertSays(error, status, words)
                self.assertEqual(error.code, code)
                if isinstance(code, str) and code:
                    self.assertEqual(str(error).count(code), 1)
                self.assertNotIn('None', str(error))
                self.assertNotIn('()', str(error))
        failed = {'message': 'Try later', 'type': 'server_error', 'code': 'overloaded_now'}
        self.assertSays(self.error_of(delta('Hel'), {'error': failed}),
                        'Try later', 'overloaded_now')

    def test_an_error_has_the_answer_that_it_came_with(self):
        named = {'x-request-id': 'req_7', 'Retry-After': '3', 'x-should-retry': 'false'}
        error = self.error_of_answer(error_reply(429, named, 'slow down', code='too_fast'),
                                     streamlite.RateLimitError)
        response = error.response
        self.assertEqual((response.status_code, response.headers.get('retry-after'),
                          response.headers['X-Request-ID']), (429, '3', 'req_7'))
        self.assertEqual(response.json()['error']['code'], 'too_fast')
        self.assertIn('slow down', response.text)
        self.assertEqual((error.request.method, str(error.request.url)),
                         ('POST', self.server.url + '/chat/completions'))
        html = reply(503, {'Content-Type': 'text/html'}, b'<html>Down</html>')
        error = self.error_of_answer(html, streamlite.InternalServerError)
        self.assertEqual(error.response.text, '<html>Down</html>')
        self.assertRaises(ValueError, error.response.json)

    def test_the_title_of_a_page(self):
        for page, title in (('<html><TITLE>Bad gateway</TITLE>', ': Bad gateway'),
                            ('<title></title>', ': '), ('<html>no title</html>', ''),
                            ('<title>cut', ''), ('</title><p>x</p>', ''), ('</title><title>', '')):
            with self.subTest(page):
                self.assertEqual(streamlite._title(page), title)

    def test_what_a_status_hints_at(self):
        http, https = 'http://a.test/v1', 'https://a.test/v1'
        for status, url, location, words, hint in (
                (301, http, https, '', 'use the https URL'), (301, http, http + '/', '', None),
                (308, http, 'https://b.test/v1', '', None), (308, https, https + '/', '', None),
                (400, http, None, 'Speak HTTPS here', 'write https://'),
                (400, http, None, '', None), (400, https, None, 'https', None),
                (403, http, None, 'https', None), (404, 'https://a.test', None, '', '/v1?'),
                (404, https, None, '', None), (404, 'https://a.test/openai/x', None, '', None),
                (403, 'https://a.test', None, '', None)):
            with self.subTest(status, url=url, location=location, words=words):
                headers = {'location': location} if location else {}
                answer = head_of(status=status, headers=headers)
                said = streamlite._status_hint(answer, url, words, str)
                if location:
                    self.assertIn('redirects to ' + location, said)
                    self.assertEqual('use the https' in said, hint is not None)
                elif hint:
                    self.assertIn(hint, said)
                else:
                    self.assertEqual(said, '')

    def test_a_body_in_pieces_is_read_to_its_end(self):
        error = {'padding': 'x' * 40000, 'message': 'at the end'}  # more than is read at once
        error = self.error_of_answer(reply(400, {}, {'error': error}), streamlite.BadRequestError)
        self.assertEqual(error.body['message'], 'at the end')

    def test_what_the_provider_behind_a_gateway_said_is_told(self):
        error = {'message': 'Provider returned error', 'metadata': {'raw': 'context too long'}}
        error = self.error_of_answer(reply(400, {}, {'error': error}), streamlite.BadRequestError)
        self.assertSays(error, 'Provider returned error: context too long')
        for raw in 7, {'a': 7}, None:
            error = {'message': 'Provider returned error', 'metadata': {'raw': raw}}
            error = self.error_of_answer(reply(400, {}, {'error': error}),
                                         streamlite.BadRequestError)
            self.assertNotIn('error: ', str(error))

    def test_a_status_without_a_reason_has_the_usual_one(self):
        answer = b'HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n'
        self.assertSays(self.error_of_answer(answer, streamlite.NotFoundError), '404 Not Found')

    def test_of_a_page_only_its_title_is_told(self):
        page = b'<html><head><TITLE>Bad\ngateway</TITLE></head><body>nginx</body></html>'
        for body, told in (page, 'an HTML page: Bad gateway ('), (b'<p>no</p>', 'an HTML page ('):
            answer = reply(502, {'Content-Type': 'text/html'}, body)
            error = self.error_of_answer(answer, streamlite.InternalServerError)
            self.assertIn(told, str(error))

    def test_a_code_that_is_none_is_not_told(self):
        for code in '', None, [], {}:
            error = self.error_of_answer(error_reply(400, message='no', code=code),
                                         streamlite.BadRequestError)
            self.assertNotIn('code', str(error))

    def test_of_a_list_of_errors_each_is_told(self):
        for errors in ['too long', 'too hot'], [{'message': 'too long'}, {'message': 'too hot'}]:
            error = self.error_of_answer(reply(400, {}, {'errors': errors}),
                                         streamlite.BadRequestError)
            self.assertSays(error, 'too long; too hot')
        for nothing in [], {}, '', None:
            error = self.error_of_answer(reply(400, {}, {'error': nothing, 'detail': 'too long'}),
                                         streamlite.BadRequestError)
            self.assertSays(error, 'too long')

    def test_a_body_in_a_coding_that_was_not_asked_for_is_not_shown(self):
        answer = error_reply(400, {'Content-Encoding': 'br'}, 'scrambled')
        error = self.error_of_answer(answer, streamlite.BadRequestError)
        self.assertNotIn('scrambled', str(error))
        self.assertSays(error, 'no message')

    def test_an_error_in_a_coding_that_nobody_asked_for_has_its_status(self):
        brotli = b'\x8b\x02\x80hello\x03'
        for coding, body in ('br', brotli), ('br', packed(b'hello')), ('gzip', b'x'):
            answer = reply(400, {'Content-Encoding': coding}, body)
            error = self.error_of_answer(answer, streamlite.BadRequestError)
            self.assertSays(error, '400')


# --------------------------------------------------------------------------------------------------
# Wire objects: what a server sends, as objects
# --------------------------------------------------------------------------------------------------

# Keys that a server might send, and that are names of ours, of Python's or of its copying.
HOSTILE = ['pieces', 'made_id', 'to_dict', 'to_json', 'model_dump', 'model_dump_json', 'parsed',
           'parsed_arguments', '__deepcopy__', '__copy__', '__reduce__', '__reduce_ex__',
           '__getstate__', '__setstate__', '__getattr__', '__getattribute__', '__setattr__',
           '__class__', '__dict__', '__slots__', '__init__', '__new__', '__eq__', '__hash__',
           '__repr__', '__str__', '__iter__', '__len__', '__bool__', '__doc__', '__module__',
           '__annotations__', '_nested', '_request_id', 'choices', 'index', 'delta', 'message',
           'error', 'self', 'cls', 'copy', 'items', 'keys', 'get', 'update', 'name', 'id', '']


class WireObjectTest(ReplyTestCase):

    def chunk(self, **fields):
        with self.stream(dict(delta('Hi', role='assistant', reasoning_content='hm'), **fields),
                         STOP) as stream:
            return list(stream)[0]

    def test_documented_fields_default_to_none(self):
        chunk = self.chunk()
        for name in ('usage', 'service_tier', 'system_fingerprint'):
            self.assertIsNone(getattr(chunk, name), name)
        for name in ('refusal', 'tool_calls', 'function_call'):
            self.assertIsNone(getattr(chunk.choices[0].delta, name), name)
        self.assertIsNone(chunk.choices[0].finish_reason)
        self.assertIsNone(chunk.choices[0].logprobs)
        with self.stream({'choices': [{}], 'usage': {}}, done=True) as stream:
            bare, = stream
        for name in ('id', 'object', 'created', 'model'):
            self.assertIsNone(getattr(bare, name), name)
        self.assertIsNone(bare.usage.total_tokens)
        completion = self.collect(*CHUNKS)
        for name in ('refusal', 'tool_calls', 'function_call', 'audio', 'annotations'):
            self.assertIsNone(getattr(completion.choices[0].message, name), name)
        with self.stream(delta(tool_calls=[{'index': 0}]), STOP) as stream:
            call = list(stream)[0].choices[0].delta.tool_calls[0]
        self.assertEqual((call.index, call.id, call.type, call.function), (0, None, None, None))

    def test_equal_are_objects_of_one_class_with_equal_fields(self):
        chunk, same, other = self.chunk(), self.chunk(), self.chunk(id='another')
        self.assertTrue(chunk == same)
        for unequal in other, chunk.choices[0], chunk.to_dict(), None, 'chunk':
            self.assertFalse(chunk == unequal)
            self.assertTrue(chunk != unequal)
        message, delta = (kind.construct(content='Hi') for kind in (
            streamlite.ChatCompletionMessage, streamlite.ChoiceDelta))
        self.assertEqual(vars(message), vars(delta))
        self.assertFalse(message == delta)

    def test_a_misspelt_attribute_is_an_attribute_error(self):
        chunk, completion = self.chunk(), self.collect(*CHUNKS)
        for instance, name in ((chunk, 'choises'), (chunk.choices[0], 'detla'),
                               (chunk.choices[0].delta, 'contnet'),
                               (completion, 'choise'), (completion.choices[0].message, 'contnet')):
            with self.subTest(name):
                self.assertRaises(AttributeError, getattr, instance, name)

    def test_an_undocumented_field_is_simply_there(self):
        chunk = self.chunk(citations=['u'], x_vendor={'a': {'b': 1}})
        self.assertEqual(chunk.choices[0].delta.reasoning_content, 'hm')
        self.assertEqual(chunk.citations, ['u'])
        self.assertEqual(chunk.x_vendor, {'a': {'b': 1}})

    def test_no_key_of_the_server_breaks_what_we_do_with_it(self):
        hostile = [name for name in HOSTILE + dir(self.chunk())
                   if name not in ('choices', 'index', 'delta', 'message', 'error', 'name', 'id')]
        for value in (1, 'x', None, [], {}, [{}]):
            more = dict.fromkeys(hostile, value)
            function = dict(more, name='f', arguments='{"x":1}')
            sent = dict(more, choices=[dict(more, index=0, finish_reason=None, delta=dict(
                more, content='Hi', tool_calls=[dict(call(0, 'a'), function=function, **more)]))])
            with self.subTest(value), self.stream(sent, STOP) as stream:
                first, _ = stream
                message = stream.completion.choices[0].message
                self.assertEqual((message.content, message.tool_calls[0].function.arguments),
                                 ('Hi', '{"x":1}'))
                for original in first, first.choices[0].delta, stream.completion, message:
                    for twin in (copy.copy(original), copy.deepcopy(original),
                                 pickle.loads(pickle.dumps(original))):
                        self.assertIs(type(twin), type(original))
                        self.assertTrue(twin == original)
                    self.assertTrue(repr(original))
                accumulator = streamlite.Accumulator()
                accumulator.add(first)
                self.assertEqual(text_of(accumulator.completion), 'Hi')
                received, = sent_messages(self, message)
                self.assertEqual((received['content'], received['tool_calls'][0]['id']),
                                 ('Hi', 'a'))

    def test_a_chunk_is_what_the_server_sent(self):
        sent = dict(delta('Hi', role='assistant',
                          tool_calls=[{'index': 0, 'id': 'a',
                                       'function': {'name': 'f', 'arguments': ''}}],
                          vendor=[{'x': None}]),
                    usage={'total_tokens': 1, 'completion_tokens_details': {'reasoning_tokens': 0}},
                    vendor={'y': [1.5, True, 'é']})
        with self.stream(sent, STOP) as stream:
            chunk = list(stream)[0]
        self.assertEqual(chunk.to_dict(), sent)
        self.assertEqual(json.loads(chunk.to_json()), sent)

    def test_dumps_are_those_of_the_sdk(self):
        completion = self.collect(*CHUNKS)
        plain, every = completion.to_dict(), completion.model_dump()
        self.assertNotIn('service_tier', plain)
        self.assertEqual(json.loads(completion.to_json()), plain)
        self.assertIn('\n', completion.to_json())
        self.assertNotIn('\n', completion.to_json(indent=None))
        self.assertIsNone(every['service_tier'])
        self.assertIsNone(every['choices'][0]['message']['tool_calls'])
        self.assertEqual(json.loads(completion.model_dump_json()), every)
        self.assertNotIn('\n', completion.model_dump_json())
        self.assertNotIn('service_tier', completion.model_dump(exclude_none=True))
        self.assertEqual(completion.model_dump(exclude_unset=True), plain)
        self.assertEqual(set(completion.model_dump(include={'id', 'usage'})), {'id', 'usage'})
        self.assertEqual(set(every) - set(completion.model_dump(exclude={'choices'})), {'choices'})
        # These options have no meaning here.
        self.assertEqual(completion.model_dump(by_alias=True, mode='json', warnings=False), every)
        self.assertIs(type(plain['choices'][0]['message']), dict)
        plain['choices'][0]['message']['content'] = 'changed'
        self.assertText(completion, 'Hello world')

    def test_json_is_json_even_where_the_server_sent_none(self):
        chunk = self.chunk(x=float('nan'), y=[float('inf'), -float('inf')])
        self.assertEqual(json.loads(chunk.to_json(), parse_constant=self.fail)['y'], [None, None])

    def test_pickled_and_copied_it_is_the_same(self):
        chunk = self.chunk(x_vendor={'a': [1]})
        completion = self.collect(delta(tool_calls=[call(0, 'a', 'f', '{"x":1}')]),
                                  delta(finish_reason='tool_calls'),
                                  {'choices': [], 'usage': {'total_tokens': 1}})
        for original in (chunk, completion):
            for name, twin in (('pickle', pickle.loads(pickle.dumps(original))),
                               ('copy', copy.copy(original)),
                               ('deepcopy', copy.deepcopy(original))):
                with self.subTest(name, kind=type(original).__name__):
                    self.assertIs(type(twin), type(original))
                    self.assertEqual(twin.to_dict(), original.to_dict())
                    self.assertEqual(twin, original)
        twin = pickle.loads(pickle.dumps(completion))
        self.assertEqual(twin.choices[0].message.tool_calls[0].function.parsed_arguments, {'x': 1})

    def test_a_repr_shows_the_fields(self):
        for part in ('ChatCompletionChunk', "content='Hi'", "reasoning_content='hm'"):
            self.assertIn(part, repr(self.chunk()))

    def test_no_key_of_a_whole_reply_breaks_it_either(self):
        hostile = [name for name in HOSTILE + dir(self.chunk())
                   if name not in ('choices', 'index', 'delta', 'message', 'error', 'name', 'id')]
        for value in 'x', ['x']:
            more = dict.fromkeys(hostile, value)
            function = dict(more, name='f', arguments='{}')
            message = dict(more, content='Hi', tool_calls=[
                dict(more, id='a', type='function', function=function)])
            sent = dict(more, choices=[dict(more, index=0, finish_reason='stop', message=message)])
            sent['usage'] = dict(more, total_tokens=3)
            self.answer = reply(200, {}, sent)
            with self.subTest(value):
                completion = ask(self.client, stream=False)
                self.assertEqual((text_of(completion), completion.usage.total_tokens), ('Hi', 3))
                message = completion.choices[0].message
                self.assertEqual(message.tool_calls[0].function.parsed_arguments, {})
                for thing in completion, completion.usage, message, message.tool_calls[0]:
                    cls = type(thing)  # a key of a method's name is what the instance gives
                    plain = cls.to_dict(thing)
                    self.assertEqual(plain['to_dict'], value)
                    self.assertEqual(json.loads(cls.to_json(thing)), plain)
                    self.assertEqual(json.loads(cls.model_dump_json(thing, exclude_unset=True)),
                                     plain)
                    self.assertEqual(cls.model_dump(thing)['keys'], value)
                    for twin in copy.deepcopy(thing), pickle.loads(pickle.dumps(thing)):
                        self.assertTrue(twin == thing and type(twin) is cls)
                received, = sent_messages(self, message)
                self.assertEqual((received['content'], received['tool_calls'][0]['id']),
                                 ('Hi', 'a'))

    def test_a_reply_is_made_a_dict_copied_with_changes_and_made_again(self):
        completion = self.collect(*CHUNKS)
        self.assertIs(dict(completion)['choices'][0], completion.choices[0])
        self.assertEqual(completion.dict(), completion.model_dump())
        self.assertEqual(json.loads(completion.json()), completion.model_dump())
        self.assertFalse('error' in completion)
        changed = completion.model_copy(update={'id': 'other'})
        self.assertEqual((changed.id, completion.id), ('other', 'chatcmpl-1'))
        self.assertIsInstance(changed, streamlite.ChatCompletion)
        self.assertIs(changed.choices[0], completion.choices[0])
        deep = completion.model_copy(deep=True)
        deep.choices[0].message.content = 'changed'
        self.assertText(completion, 'Hello world')
        kept = copy.deepcopy(WHOLE)
        for made in (streamlite.ChatCompletion(**kept),
                     streamlite.ChatCompletion.model_validate(completion.model_dump()),
                     streamlite.ChatCompletion.model_validate_json(completion.to_json())):
            self.assertText(made, 'Hello world')
            made.choices[0].message.content = 'changed'
        self.assertEqual(kept, WHOLE)
        extra = [chunk.choices[0].delta.model_extra
                 for chunk in self.stream(delta(reasoning_content='Hm'), delta('Hi'), STOP)]
        self.assertEqual(extra, [{'reasoning_content': 'Hm'}, {}, {}])

    def test_a_copy_of_a_reply_knows_its_request(self):
        whole = streamlite.ChatCompletion.model_validate(WHOLE)
        whole._request_id = 'req-1'
        for name, twin in (('copy', copy.copy(whole)), ('deepcopy', copy.deepcopy(whole)),
                           ('pickle', pickle.loads(pickle.dumps(whole))),
                           ('model_copy', whole.model_copy())):
            with self.subTest(name):
                self.assertEqual((twin._request_id, twin), ('req-1', whole))

    def test_what_is_ours_alone_is_in_no_dump(self):
        completion = self.collect(delta('Hi'), STOP)
        for shown in completion.to_dict(), completion.model_dump(), json.loads(
                completion.to_json()), json.loads(completion.model_dump_json()):
            self.assertEqual([name for name in shown if name.startswith('_')], [])
            self.assertIn('choices', shown)


def sent_messages(test, *messages):
    """What the server of a ReplyTestCase receives of these messages."""
    test.answer = stream_reply(HELLO)
    ask(test.client, messages=list(messages)).collect()
    return test.server.requests[-1].json['messages']


class ReplayTest(ReplyTestCase):
    """Messages that were received are sent back."""

    def test_a_collected_message_goes_back_with_what_is_set_and_what_vendors_added(self):
        signature = {'google': {'thought_signature': 'c2ln'}}
        message = self.message(
            {'role': 'assistant', 'content': None, 'refusal': None, 'reasoning_content': 'Look '},
            {'reasoning_content': 'it up.'},
            {'tool_calls': [{'index': 0, 'id': 'a', 'type': 'function',
                             'function': {'name': 'f', 'arguments': ''},
                             'extra_content': signature}]},
            {'tool_calls': [{'index': 0, 'function': {'arguments': '{"x":1}'}}]},
            finish_reason='tool_calls')
        self.assertEqual(message.tool_calls[0].function.parsed_arguments, {'x': 1})
        question = {'role': 'user', 'content': 'hi'}
        answer = {'role': 'tool', 'tool_call_id': 'a', 'content': '7'}
        expected = {'role': 'assistant', 'reasoning_content': 'Look it up.', 'tool_calls': [
            {'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x":1}'},
             'extra_content': signature}]}
        self.assertEqual(sent_messages(self, question, message, answer),
                         [question, expected, answer])
        self.assertEqual(sent_messages(self, copy.deepcopy(message)), [expected])

    def test_text_goes_back_with_its_reasoning(self):
        message = self.message({'role': 'assistant', 'content': ''}, {'reasoning': 'hm'},
                               {'content': 'Hi 😀'})
        self.assertEqual(sent_messages(self, message),
                         [{'role': 'assistant', 'reasoning': 'hm', 'content': 'Hi 😀'}])

    def test_the_message_of_a_whole_reply_goes_back_without_its_nulls(self):
        self.answer = reply(200, {}, whole_reply('Hi', refusal=None, annotations=[], audio=None,
                                                 tool_calls=None, function_call=None))
        received, = sent_messages(self, ask(self.client, stream=False).choices[0].message)
        received.pop('annotations', None)
        self.assertEqual(received, {'role': 'assistant', 'content': 'Hi'})

    def test_wire_objects_inside_a_dict_go_back_too(self):
        calls = [{'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}]
        message = self.message({'tool_calls': [dict(calls[0], index=0)]})
        received, = sent_messages(self, {'role': 'assistant', 'content': None,
                                         'tool_calls': message.tool_calls})
        self.assertEqual(received['tool_calls'], calls)


# --------------------------------------------------------------------------------------------------
# Server-sent events: bytes in, events out, and back
# --------------------------------------------------------------------------------------------------

def event(data, name='message', id='', retry=None):
    return streamlite.ServerSentEvent(event=name, data=data, id=id, retry=retry)


def decode(*reads):
    """All events of a stream that comes in these reads."""
    decoder = streamlite.SSEDecoder()
    events = [event for read in reads for event in decoder.feed(read)]
    return events + decoder.close()


DECODED = (
    # lines
    ('LF', b'data: a\n\ndata: b\n\n', [event('a'), event('b')]),
    ('CRLF', b'data: a\r\n\r\ndata: b\r\n\r\n', [event('a'), event('b')]),
    ('CR', b'data: a\r\rdata: b\r\r', [event('a'), event('b')]),
    ('LF, then CRLF', b'data: a\n\r\ndata: b\n\r\n', [event('a'), event('b')]),
    ('CRLF, then LF', b'data: a\r\n\ndata: b\r\n\n', [event('a'), event('b')]),
    ('LF, then CR', b'data: a\n\rdata: b\n\r', [event('a'), event('b')]),
    ('CR, then CRLF', b'data: a\r\r\ndata: b\r\r\n', [event('a'), event('b')]),
    ('CRLF is one line end, not two', b'data: a\r\ndata: b\r\n\r\n', [event('a\nb')]),
    ('more blank lines than one', b'\n\r\n\rdata: a\n\n\n\r\n\r\n\rdata: b\n\n',
     [event('a'), event('b')]),
    ('what Unicode calls a line end is none here',
     'data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n\n'.encode(),
     [event('a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei')]),
    # characters
    ('one byte order mark at the start', b'\xef\xbb\xbfdata: a\n\n', [event('a')]),
    ('a second byte order mark is part of a name',
     b'\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n', [event('b')]),
    ('a byte order mark later is part of a name', b'data: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n',
     [event('a'), event('c')]),
    ('a byte order mark in a value', b'data: \xef\xbb\xbfa\n\n', [event('\ufeffa')]),
    ('half a byte order mark', b'\xef\xbbdata: a\n\ndata: b\n\n', [event('b')]),
    ('characters of one to four bytes', 'data: aé€😀\n\n'.encode(), [event('aé€😀')]),
    ('a byte that is not UTF-8', b'data: a\xffb\n\n', [event('a\ufffdb')]),
    ('a character cut by the end of its line', b'data: a\xf0\x9f\x98\n\n', [event('a\ufffd')]),
    ('a surrogate in UTF-8', b'data: \xed\xa0\x80\n\n', [event('\ufffd\ufffd\ufffd')]),
    ('NUL in data', b'data: a\0b\n\n', [event('a\0b')]),
    # data
    ('no space after the colon', b'data:a\n\n', [event('a')]),
    ('one space is taken off, not two', b'data:  a \n\n', [event(' a ')]),
    ('a tab is not taken off', b'data:\ta\n\n', [event('\ta')]),
    ('a colon in the value', b'data: a: b:c\n\n', [event('a: b:c')]),
    ('several lines', b'data: a\ndata:\ndata: b\n\n', [event('a\n\nb')]),
    ('a field without a colon', b'data\n\n', [event('')]),
    ('two of them', b'data\ndata\n\n', [event('\n')]),
    ('empty data', b'data:\n\n', [event('')]),
    # comments and unknown fields
    ('comments', b': one\n:\n\n::two\ndata: a\n:data: b\ndata: c\n\n', [event('a\nc')]),
    ('comments alone', b': ping\n\n: ping\n\n', []),
    ('unknown fields', b'datax: 1\nDATA: 2\n data: 3\ndata : 4\nfoo\ndata: a\n\n', [event('a')]),
    ('nothing', b'', []),
    # event
    ('a named event', b'event: ping\ndata: a\n\ndata: b\n\n', [event('a', 'ping'), event('b')]),
    ('the last name wins', b'event: x\ndata: a\nevent:y\n\n', [event('a', 'y')]),
    ('an empty name is "message"', b'event: x\nevent:\ndata: a\n\n', [event('a')]),
    ('a name without data is forgotten', b'event: ping\n\ndata: a\n\n', [event('a')]),
    ('the field "error" is an event named error', b'error: {"code":400}\n\ndata: a\n\n',
     [event('{"code":400}', 'error'), event('a')]),
    # id
    ('an id holds until the next', b'id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n',
     [event('a', id='1'), event('b', id='1'), event('c', id='2')]),
    ('an id alone dispatches nothing, but holds', b'id: 1\n\n: ping\n\ndata: a\n\n',
     [event('a', id='1')]),
    ('an empty id resets it', b'id: 1\ndata: a\n\nid\ndata: b\n\n',
     [event('a', id='1'), event('b')]),
    ('an id with NUL is ignored', b'id: 1\nid: 2\0\ndata: a\n\n', [event('a', id='1')]),
    # retry
    ('retry', b'retry: 3000\ndata: a\n\n', [event('a', retry=3000)]),
    ('retry counts for its own event', b'retry: 5\ndata: a\n\ndata: b\n\n',
     [event('a', retry=5), event('b')]),
    ('retry alone dispatches nothing', b'retry: 3000\n\n', []),
    ('retry with leading zeros', b'retry: 007\ndata: a\n\n', [event('a', retry=7)]),
) + tuple(
    ('retry is digits only: %r' % value, b'retry: %s\ndata: a\n\n' % value.encode(), [event('a')])
    for value in ('', '-1', '+1', '1.5', '1e3', '1_0', ' 1', '1 ', 'x', '\u0663', '\xb2')
) + (
    # the end
    ('a last event without its blank line', b'data: a\n\nevent: x\nid: 1\ndata: b\n',
     [event('a'), event('b', 'x', '1')]),
    ('a last event without any line end', b'data: a\n\ndata: b', [event('a'), event('b')]),
    ('a last event that ends in CR', b'data: a\r', [event('a')]),
    ('a last character cut in two', b'data: a\xe2\x82', [event('a\ufffd')]),
    ('a last block without data', b'data: a\n\nevent: x\nid: 2', [event('a')]),
    ('a last comment', b'data: a\n\n: bye', [event('a')]),
)


class ServerSentEventTest(TestCase):

    def test_every_stream_decodes_alike_whole_byte_by_byte_and_at_every_split(self):
        mixture = b'\n\n'.join(stream for _, stream, _ in DECODED)
        for name, stream, expected in DECODED + (('all of them', mixture, decode(mixture)),):
            with self.subTest(name):
                self.assertEqual(decode(stream), expected, 'whole')
                single = [stream[at:at + 1] for at in range(len(stream))]
                self.assertEqual(decode(*single), expected, 'byte by byte')
                self.assertEqual(decode(*[read for byte in single for read in (byte, b'')]),
                                 expected,
                                 'with empty reads')
                for at in range(len(stream)):
                    self.assertEqual(decode(stream[:at], stream[at:]), expected, 'split at %d' % at)

    def test_an_event_comes_out_of_the_feed_that_holds_the_last_byte_of_its_blank_line(self):
        for end in (b'\n\n', b'\r\r', b'\r\n\r\n', b'\n\r', b'\n\r\n', b'\r\n\n', b'\r\n\r',
                    b'\r\r\n'):
            with self.subTest(end):
                decoder = streamlite.SSEDecoder()
                self.assertEqual(decoder.feed(b'data: a'), [])
                self.assertEqual(decoder.feed(end[:1]), [], 'the line has ended, the event has not')
                self.assertEqual([event for byte in end[1:]
                                  for event in decoder.feed(bytes([byte]))], [event('a')])
                self.assertEqual(decoder.feed(b'data: b' + end), [event('b')], 'in the same read')
                self.assertEqual(decoder.close(), [])

    def test_an_event_waits_for_its_blank_line(self):
        for stream in (b'data: a', b'data: a\n', b'data: a\r', b'data: a\r\n', b'data: a\n:',
                       b'data: a\r\ndata: b\r\n'):
            with self.subTest(stream):
                decoder = streamlite.SSEDecoder()
                self.assertEqual(decoder.feed(stream), [])
                self.assertEqual(len(decoder.close()), 1)

    def test_close_hands_over_an_event_once(self):
        decoder = streamlite.SSEDecoder()
        decoder.feed(b'data: a\n')
        self.assertEqual(decoder.close(), [event('a')])
        self.assertEqual(decoder.close(), [])

    def test_a_retry_of_thousands_of_digits_does_no_harm(self):
        self.assertEqual([event.data
                          for event in decode(b'retry: %s\ndata: a\n\n' % (b'9' * 10000))], ['a'])

    def test_a_line_or_event_beyond_the_limit_is_an_error_after_what_came_before_it(self):
        endless = (
            ('a line', b'data: ' + b'x' * 2000),
            ('a comment', b': ' + b'x' * 2000),
            ('an event', b'data: 123456789\n' * 200),
            ('an event of empty lines', b'data\n' * 2000),
        )
        with mock.patch.object(streamlite, 'MAX_EVENT', 1000):
            for (name, tail), size in itertools.product(endless, (1, 100, 10000)):
                with self.subTest(name, size=size):
                    stream = b'data: first\n\n' + tail
                    decoder, events = streamlite.SSEDecoder(), []
                    with self.assertRaises(streamlite.APIError):
                        for at in range(0, len(stream), size):
                            events += decoder.feed(stream[at:at + size])
                        decoder.close()
                    self.assertEqual(events, [event('first')])
            small = b'data: %s\n\n' % (b'x' * 400)
            for size in (1, 10000):
                with self.subTest('many events below it', size=size):
                    stream = (b': ' + b'x' * 400 + b'\n' + small) * 10
                    self.assertEqual(len(
                        decode(*[stream[at:at + size] for at in range(0, len(stream), size)])), 10)

    def test_a_line_or_event_of_just_the_limit_is_none_of_that(self):
        with mock.patch.object(streamlite, 'MAX_EVENT', 1000):
            for size in 1, 999, 2000:
                for length, is_refused in (1000, False), (1001, True):
                    line = b':' + b'x' * (length - 1)
                    for stream in [line] if size < 1000 else [b'data: %s\n\n' % (b'x' * length)]:
                        with self.subTest(stream[:6], size=size, length=length):
                            decoder = streamlite.SSEDecoder()
                            try:
                                for at in range(0, len(stream), size):
                                    decoder.feed(stream[at:at + size])
                                refused = False
                            except streamlite.APIResponseValidationError:
                                refused = True
                            self.assertEqual(refused, is_refused)

    def test_every_line_of_an_event_counts_towards_its_size(self):
        first, line = b'data: first\n\n', b'data: ' + b'x' * 3000 + b'\n'
        with mock.patch.object(streamlite, 'MAX_EVENT', 5000):
            for name, reads, seen in (
                    ('an event in one read', [line * 2 + b'\n'], 0),
                    ('behind another one', [first + line * 2 + b'\n'], 1),
                    ('in two reads', [first + line, line], 1)):
                with self.subTest(name):
                    decoder, events = streamlite.SSEDecoder(), []
                    with self.assertRaises(streamlite.APIResponseValidationError):
                        for data in reads + [b'']:
                            events += decoder.feed(data)
                    self.assertEqual(events, [event('first')] * seen)
            self.assertRaises(streamlite.APIResponseValidationError,
                              streamlite.SSEDecoder().feed, line * 2)

    def test_what_an_event_stream_cannot_carry_is_refused(self):
        for fields in ({'id': 'a\0'}, {'id': 'a\nb'}, {'id': 'a\rb'}, {'event': 'a\nb'}):
            with self.subTest(fields):
                self.assertRaises(ValueError, streamlite.encode_sse, 'x', **fields)

    def test_decoding_takes_linear_time(self):
        for name, unit, size, reads in (
                ('one event in small reads', b'x' * 1024, 20000, 1024),
                ('one event of many lines', b'\ndata: ' + b'x' * 100, 110000, 1024),
                ('many events in one read', b'\n\ndata: ' + b'x' * 500, 27000, 1 << 30),
                ('a line in single bytes', b'x', 500000, 1)):
            def work():
                stream = b'data: ' + unit * size
                decoder, events = streamlite.SSEDecoder(), 0
                for at in range(0, len(stream), reads):
                    events += len(decoder.feed(stream[at:at + reads]))
                self.assertEqual(events + len(decoder.close()), stream.count(b'\n\n') + 1)

            with self.subTest(name), mock.patch.object(streamlite, 'MAX_EVENT', 1 << 30):
                self.assertLinear(work)

    def test_encode_sse_is_the_inverse_of_the_decoder(self):
        for one in (
                event(''), event('a'), event(' a '), event('a\nb'), event('\n'), event('\na\n\n'),
                event(': a'), event('data: a'),
                event('{"text": "é\u2028€😀\\n"}'), event('a', 'ping'),
                event('a\nb', 'x y', '7', 3000),
                event('a', id='é'), event('a', retry=0)):
            with self.subTest(one):
                encoded = streamlite.encode_sse(one.data, event=one.event, id=one.id or None,
                                                retry=one.retry)
                self.assertEqual(decode(encoded), [one])
                self.assertEqual(decode(encoded + encoded), [one, one])

    def test_encode_sse_writes_plain_data_as_one_line(self):
        self.assertEqual(streamlite.encode_sse('hi'), b'data: hi\n\n')

    def test_encode_sse_ends_a_line_at_CR_and_CRLF_too(self):
        self.assertEqual(decode(streamlite.encode_sse('a\r\nb\rc')), [event('a\nb\nc')])

    def test_encode_sse_refuses_what_would_break_out_of_its_field(self):
        for break_ in ('\n', '\r', '\r\n'):
            for field in ('event', 'id'):
                with self.subTest(field, break_=break_):
                    self.assertRaises(ValueError, streamlite.encode_sse, 'a',
                                      **{field: 'x%sdata: forged' % break_})


# --------------------------------------------------------------------------------------------------
# Answers: from events or a whole body to chunks, and whether they are whole
# --------------------------------------------------------------------------------------------------

class PayloadTest(ReplyTestCase):

    def test_forgives_what_servers_make_of_an_event_stream(self):
        whole = json.dumps(WHOLE).encode()
        pretty = [json.dumps(chunk, indent=2).replace('\n', '\ndata: ') for chunk in CHUNKS]
        for name, body in (
                ('plain', framed(*LINES + ['[DONE]'])),
                ('no space after the colon', framed(*LINES + ['[DONE]'], before='data:')),
                ('CRLF', framed(*LINES + ['[DONE]'], after='\r\n\r\n')),
                ('CR', framed(*LINES + ['[DONE]'], after='\r\r')),
                ('LF, then CRLF', framed(*LINES + ['[DONE]'], after='\n\r\n')),
                ('a byte order mark', b'\xef\xbb\xbf' + framed(*LINES + ['[DONE]'])),
                ('comments', b': ping\n\n:\n' + framed(*LINES + ['[DONE]'], before=': x\ndata: ',
                                                       after='\n: y\n\n: z\n\n')),
                ('comments right before [DONE]',
                 framed(*LINES) + b': tokens=3\n: cost=0\ndata: [DONE]\n\n'),
                ('wrapped comments',
                 framed(': PROCESSING', ':', *LINES + [' : PROCESSING', '[DONE]'])),
                ('empty data', framed('', ' ', *LINES + ['', '   ', '[DONE]'])),
                ('blocks without data', framed(
                    *LINES + ['[DONE]'],
                    before='retry: 3000\n\nid: 7\n\nevent: ping\n\ndata: ')),
                ('named events',
                 framed(*LINES + ['[DONE]'], before='event: completion\nid: 7\ndata: ')),
                ('no [DONE]', framed(*LINES)),
                ('no last blank line', framed(*LINES)[:-1]),
                ('no last line end', framed(*LINES)[:-2]),
                ('JSON over several lines', framed(*pretty + ['[DONE]'])),
                ('two objects glued together',
                 framed(LINES[0] + LINES[1], LINES[2] + ' ' + LINES[3], '[DONE]')),
                ('all objects glued together', framed(''.join(LINES))),
                ('one object to a line', framed(*LINES, after='\n')),
                ('JSON lines', framed(*LINES, before='', after='\n')),
                ('JSON lines with blank ones',
                 b'\n\r\n' + framed(*LINES, before='', after='\r\n\r\n')),
                ('JSON lines without the last end', framed(*LINES, before='', after='\n')[:-1]),
                ('a JSON body', whole),
                ('a JSON body after blank lines', b'\n\n \n' + whole),
                ('a JSON body, indented', json.dumps(WHOLE, indent=2).encode()),
                ('a JSON body after a byte order mark', b'\xef\xbb\xbf' + whole),
                ('a whole reply as the only event', framed(json.dumps(WHOLE), '[DONE]'))):
            for size in (None, 1, 7):
                with self.subTest(name, size=size):
                    self.answer = CHUNKED_HEAD + chunked(body, size)
                    self.assertText(ask(self.client), 'Hello world')

    def test_done_in_any_form_ends_a_stream_that_never_said_why(self):
        lines, late = LINES[:3], [LINES[1], '{not json', '{"error": "late"}']
        for name, body in (
                ('bare', framed(*lines + ['[DONE]'])),
                ('no space before it', framed(*lines + ['[DONE]'], before='data:')),
                ('quoted', framed(*lines + ['"[DONE]"'])),
                ('padded', framed(*lines + [' [DONE] \t'])),
                ('quoted and padded', framed(*lines + [' "[DONE]" '])),
                ('no blank line after it', framed(*lines + ['[DONE]'])[:-1]),
                ('no line end after it', framed(*lines + ['[DONE]'])[:-2]),
                ('nothing after it counts', framed(*lines + ['[DONE]'] + late)),
                ('nothing after it in its event counts',
                 framed(*lines + ['[DONE]'] + late, after='\n')),
                ('on a line of the last event', framed(*lines + ['[DONE]'], after='\n')),
                ('on a line of its own after JSON lines',
                 framed(*lines + ['[DONE]'], before='', after='\n')),
                ('after JSON lines, as an event',
                 framed(*lines, before='', after='\n') + b'data: [DONE]\n\n'),
                ('glued to JSON', framed(*lines, before='', after='') + b'data: [DONE]\n\n')):
            for size in (None, 1):
                with self.subTest(name, size=size):
                    self.answer = CHUNKED_HEAD + chunked(body, size)
                    self.assertText(ask(self.client), 'Hello world', None)

    def test_the_first_byte_decides_not_the_content_type(self):
        bodies = (framed(*LINES + ['[DONE]']), framed(*LINES, before='', after='\n'),
                  json.dumps(WHOLE).encode())
        for kind in ('text/event-stream', 'TEXT/Event-Stream ; Charset=UTF-8',
                     'text/event-stream; charset=utf-16',
                     'application/json',
                     'application/x-ndjson', 'text/plain', 'text/html; charset=latin-1', '', None):
            for body in bodies:
                with self.subTest(kind, body=body[:10]):
                    fields = {'Transfer-Encoding': 'chunked'}
                    if kind is not None:
                        fields['Content-Type'] = kind
                    self.answer = head(200, fields) + chunked(body)
                    self.assertText(ask(self.client), 'Hello world')

    def test_objects_that_share_an_event_are_chunks_of_their_own(self):
        for name, body in (('glued', framed(''.join(LINES))),
                           ('one to a line', framed(*LINES, after='\n'))):
            with self.subTest(name):
                self.answer = stream_reply(body)
                with ask(self.client) as stream:
                    self.assertEqual([chunk.to_dict() for chunk in stream], CHUNKS)

    def test_a_whole_reply_is_delivered_as_one_chunk_for_each_choice(self):
        calls = [{'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x":1}'}}]
        usage = {'prompt_tokens': 1, 'completion_tokens': 2, 'total_tokens': 3}
        second = whole_reply(None, 'tool_calls', tool_calls=calls)['choices'][0]
        choices = WHOLE['choices'] + [dict(second, index=1)]
        self.answer = reply(200, {}, dict(WHOLE, usage=usage, choices=choices))
        with ask(self.client) as stream:
            chunks = list(stream)
            completion = stream.collect()
        self.assertEqual([[choice.index for choice in chunk.choices] for chunk in chunks],
                         [[0], [1]])
        self.assertEqual(chunks[0].choices[0].delta.content, 'Hello world')
        fragment = chunks[1].choices[0].delta.tool_calls[0]
        self.assertEqual((fragment.index, fragment.function.name), (0, 'f'))
        self.assertEqual([chunk.choices[0].finish_reason for chunk in chunks],
                         ['stop', 'tool_calls'])
        self.assertText(completion, 'Hello world')
        self.assertEqual(completion.choices[1].message.tool_calls[0].to_dict(), calls[0])
        self.assertEqual(completion.usage.to_dict(), usage)
        self.assertEqual((completion.id, completion.model, completion.object),
                         ('chatcmpl-1', 'm', 'chat.completion'))

    def test_an_event_stream_may_come_in_place_of_a_whole_reply(self):
        self.answer = stream_reply(HELLO)
        self.assertText(ask(self.client, stream=False), 'Hello world')

    def test_what_is_no_completion_is_shown_with_the_likely_cause_and_not_asked_for_again(self):
        title = '<title>Sign in to the network</title>'
        page = '\n <!doctype html><html><head>%s%sbeyond</html>' % (title, '.' * 300)
        html, events = {'Content-Type': 'text/html'}, {'Content-Type': 'text/event-stream'}
        for name, answer, words in (
                ('HTML', reply(200, html, page.encode()), [title]),
                ('HTML by another name', reply(200, events, page.encode()), [title]),
                ('text', reply(200, {}, b'It works!'), ['It works!']),
                ('UTF-16', reply(200, events, HELLO.decode().encode('utf-16')), []),
                ('foreign JSON', reply(200, {}, {'hello': 'there'}), ['hello', 'there']),
                ('a status', reply(200, {}, {'status': 'ok', 'version': '1.2'}), ['version']),
                ('a list', reply(200, {}, {'object': 'list', 'data': []}), ['object', 'data']),
                ('an empty object', reply(200, {}, {}), [])):
            for stream in (True, False):
                with self.subTest(name, stream=stream), served(answer, max_retries=2) as (
                        server, asker):
                    with self.assertRaises(streamlite.APIResponseValidationError) as caught:
                        list(ask(asker, stream=stream))
                    error = caught.exception
                    self.assertSays(error, *words)
                    self.assertEqual((error.status_code, len(server.requests)), (200, 1))
                    if 'HTML' in name:
                        self.assertRegex(str(error).lower(), 'proxy|login|sign-in')
                        self.assertNotIn('beyond', str(error))
        for event in {'hello': 'there'}, {'type': 'response.created', 'response': {}}:
            with self.subTest('the only event', event=event):
                error = self.error_of(event, done=False, kind=streamlite.APIResponseValidationError)
                self.assertSays(error, *event)

    def test_a_body_without_an_event_is_a_lost_connection(self):
        for name, body in (('empty', b''), ('blank lines', b'\n\r\n\n'),
                           ('comments', b': ping\n\n: ping\n\n'),
                           ('no data', b'retry: 500\n\nevent: ping\n\n')):
            for framing in ('chunked', 'length', 'close'):
                with self.subTest(name, framing=framing):
                    answer = stream_reply(body, framing, AGAIN)
                    with served(answer, stream_reply(HELLO), max_retries=1) as (_, asker):
                        self.assertText(ask(asker), 'Hello world')
                    with served(answer) as (_, asker):
                        error = self.assertBroken(asker, '')
                        self.assertNotIsInstance(error, streamlite.APITimeoutError)

    def test_an_event_that_is_no_json_object_is_an_error_with_what_came_before(self):
        for payload in ('{not json', '{"id": "chatcmpl-1", "obj', "{'a': 1}", '<html>502</html>',
                        'Bad gateway', '42',
                        '"hi"', 'null', 'true', '[1]', '[]', '{"a": 1}}'):
            with self.subTest(payload):
                error = self.error_of(delta('Hel'), delta('lo'), payload, *CHUNKS,
                                      kind=streamlite.APIResponseValidationError)
                self.assertEqual(text_of(error.partial), 'Hello')
                self.assertSays(error, payload)

    def test_what_json_raises_never_comes_out(self):
        half = '{"choices": [{"index": 0, "delta": {"content": "\\ud83d", "vendor": %s}}]}'
        for name, payload in (
                ('deep lists', '{"choices": %s' % ('[' * 100000)),
                ('deep objects', '{"a":' * 100000),
                ('deep and whole', '{"a": %s%s}' % ('[' * 100000, ']' * 100000)),
                ('300 levels', '{"choices": [], "a": %s%s}' % ('[' * 300, ']' * 300)),
                ('300 levels of objects',
                 '{"choices": [], "a": %s1%s}' % ('{"a":' * 300, '}' * 300)),
                ('300 levels beside half a character', half % ('[' * 300 + ']' * 300)),
                # Converting it takes quadratic time, which newer Pythons refuse by themselves.
                ('an integer of 5,000 digits', '{"created": %s, "choices": []}' % ('9' * 5000)),
                ('a negative one', '{"created": -%s, "choices": []}' % ('9' * 5000))):
            with self.subTest(name):
                error = self.error_of(delta('Hel'), payload, STOP,
                                      kind=streamlite.APIResponseValidationError)
                self.assertEqual(text_of(error.partial), 'Hel')
        for number in '1e999', 'NaN', '-Infinity', '[' * 50 + ']' * 50:
            with self.subTest(number):
                completion = self.collect(delta('Hel'), '{"created": %s, "choices": []}' % number,
                                          STOP)
                self.assertText(completion, 'Hel')
                self.assertTrue(completion.to_json())

    def test_a_line_beyond_the_limit_ends_a_stream_after_what_came_before_it(self):
        with mock.patch.object(streamlite, 'MAX_EVENT', 5000):
            for name, tail in (('a line', b'data: ' + b'x' * 9000),
                               ('an event', b'data: 123456789\n' * 900)):
                body = sse(delta('Hel'), delta('lo'), tail, done=False)
                for script in (stream_reply(body), stall(begun(body))):
                    with self.subTest(name), served(script) as (_, asker):
                        error = self.assertBroken(asker, 'Hello', kind=streamlite.APIError)
                        self.assertNotIsInstance(error, streamlite.APITimeoutError)
            self.error_of_answer(reply(200, {}, dict(WHOLE, padding='x' * 9000)),
                                 streamlite.APIError)

    def test_many_objects_in_one_body_or_event_take_linear_time(self):
        line = json.dumps(delta('x' * 4000))
        for name, before, after in (('JSON lines', '', '\n'), ('one to a line', 'data: ', '\n'),
                                    ('glued', '', '')):
            def work():
                body = framed(*[line] * 6000, before=before, after=after)
                with mock.patch.object(streamlite, 'MAX_EVENT', 1 << 30):
                    payloads = collections.deque(streamlite._payloads(iter([body]), str), 1)
                self.assertTrue(payloads)

            with self.subTest(name):
                self.assertLinear(work)

    def test_a_whole_reply_is_whole_without_choices_and_without_a_finish_reason(self):
        usage = {'prompt_tokens': 1, 'completion_tokens': 0, 'total_tokens': 1}
        base = {'id': 'c', 'object': 'chat.completion', 'created': 1, 'model': 'm', 'usage': usage}
        message = {'role': 'assistant', 'content': 'Hi'}
        cases = {
            'no choices': ([], []),
            'null': (None, []),
            'no finish_reason': ([{'index': 0, 'message': message}], ['Hi']),
            'a finish_reason of null': (
                [{'index': 0, 'message': message, 'finish_reason': None}], ['Hi']),
            'an empty one': ([{'index': 0, 'message': message, 'finish_reason': ''}], ['Hi']),
            'an empty message': ([{'index': 0, 'message': dict(message, content='')}], ['']),
            'a message that is empty': ([{'index': 0, 'message': {}}], ['']),
            'a text': ([{'index': 0, 'text': 'Hi'}], ['Hi']),
            'fewer than n': ([{'index': 0, 'message': message}], ['Hi']),
        }
        for name, (choices, texts) in cases.items():
            self.answer = reply(200, {}, dict(base, choices=choices))
            fields = {'n': 2} if name == 'fewer than n' else {}
            for stream in False, True:
                with self.subTest(name, stream=stream):
                    completion = ask(self.client, stream=stream, **fields)
                    completion = completion.collect() if stream else completion
                    got = [choice.message.content or '' for choice in completion.choices]
                    self.assertEqual(got, texts)
                    self.assertEqual(completion.usage.total_tokens, 1)
        with self.subTest('yet one that was cut is not'):
            whole = json.dumps(dict(base, choices=[{'index': 0, 'message': message}])).encode()
            for end in range(1, len(whole), 17):
                self.answer = reply(200, {'Content-Type': 'application/json'}, whole[:end])
                with self.assertRaises(streamlite.APIError):
                    ask(self.client, stream=False)

    def test_what_is_nested_as_deeply_as_allowed_does_no_harm_to_a_deep_caller(self):
        def below(frames, work):
            return work() if frames <= 0 else below(frames - 1, work)

        depth = frames()
        self.addCleanup(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(1000)
        levels = streamlite.MAX_DEPTH - 5
        body = '{"choices":[{"delta":{"content":"x","v":%s},"finish_reason":"stop"}]}'
        for name, vendor in (('lists', '[' * levels + ']' * levels),
                             ('objects', '{"a":' * levels + '1' + '}' * levels),
                             ('half an emoji', '[' * levels + r'"\ud83d"' + ']' * levels)):
            for use in (list, lambda stream: list(stream.sse()),
                        lambda stream: stream.collect().to_json(),
                        lambda stream: [stream.collect().model_dump(), stream.completion.to_dict()],
                        lambda stream: copy.deepcopy(stream.collect())):
                with self.subTest(name):
                    self.answer = stream_reply(sse(body % vendor))
                    self.assertTrue(below(600 - depth, lambda: use(ask(self.client))))

    def test_a_list_is_an_error_of_the_servers_only_where_it_says_so(self):
        said = {'error': {'message': 'quota', 'code': 429}}
        for body, kind in (([said], streamlite.APIError),
                           ([{'x': 1}], streamlite.APIResponseValidationError),
                           ([], streamlite.APIResponseValidationError),
                           (['error'], streamlite.APIResponseValidationError)):
            with self.subTest(body):
                error = self.error_of_answer(reply(200, {}, body), kind)
                self.assertEqual('quota' in str(error), body == [said])


Read = collections.namedtuple('Read', 'payloads error looks')


def read_payloads(reads, fault=None, hide=str):
    """The payloads of a body that comes in these reads, up to [DONE], and the error that ends it.

    A payload is told by its member `n`. `looks` counts what said "nothing yet".
    """
    def body():
        yield from reads
        if fault is not None:
            raise fault

    payloads, looks = [], 0
    try:
        for fields in streamlite._payloads(body(), hide):
            if fields is None:
                looks += 1
                continue
            payloads.append('DONE' if fields is SAID_DONE else fields.get('n', 'no n'))
            if fields is SAID_DONE:
                break
    except (OSError, streamlite.APIError) as error:
        return Read(payloads, error, looks)
    return Read(payloads, None, looks)


ONE, TWO = ('{"choices":[{"delta":{}}],"n":%d}' % n for n in (1, 2))
TWO_LINES = ONE.replace(',', ',\ndata: ')
REPLY = '{"choices":[{"message":{}}],"n":1}'
BOM = b'\xef\xbb\xbf'

PAYLOADS = (
    # lines of an event stream
    ('LF', framed(ONE, TWO), [1, 2]),
    ('CRLF', framed(ONE, TWO, after='\r\n\r\n'), [1, 2]),
    ('CR', framed(ONE, TWO, after='\r\r'), [1, 2]),
    ('LF, then CRLF', framed(ONE, TWO, after='\n\r\n'), [1, 2]),
    ('no space after the colon', framed(ONE, TWO, before='data:'), [1, 2]),
    ('a byte order mark', BOM + framed(ONE), [1]),
    ('nothing', b'', []),
    ('a byte order mark alone', BOM, []),
    ('comments', b': ping\n\n:\n' + framed(ONE, TWO, after='\n: x\n\n'), [1, 2]),
    ('comments alone', b': ping\r\n\r\n: ping\r\n\r\n', []),
    ('blank lines alone', b'\n\r\n\r\n', []),
    ('lines of blanks alone', b' \n \t\n', []),
    ('fields without data', b'retry: 5\n\nevent: ping\n\nid: 1\n\n', []),
    ('a comment that a gateway has wrapped', framed(': ping\ndata: ' + ONE, TWO), [1, 2]),
    ('fields beside data', framed(ONE, TWO, before='event: x\nid: 7\nretry: 3\ndata: '), [1, 2]),
    ('a foreign line beside events', b'hello\n' + framed(ONE), [1]),
    ('no last blank line', framed(ONE, TWO)[:-1], [1, 2]),
    ('no last line end', framed(ONE, TWO)[:-2], [1, 2]),
    # what is in an event
    ('empty data', framed('', ' ', ONE, '', '\t'), [1]),
    ('a wrapped comment', framed(': PROCESSING', ONE, ' :'), [1]),
    ('a comment on a line of its own event', framed(': x\ndata: ' + ONE), [1]),
    ('wrapped twice', framed('data: ' + ONE, 'data:' + TWO), [1, 2]),
    ('wrapped in quotes', framed("'data: " + ONE + "'", 'data: ' + TWO + '"'), [1, 2]),
    ('an object over two lines', framed(TWO_LINES), [1]),
    ('two objects', framed(ONE + TWO), [1, 2]),
    ('two objects and blanks', framed(' %s \t %s ' % (ONE, TWO)), [1, 2]),
    ('two objects on two lines', framed(ONE, TWO, after='\n'), [1, 2]),
    ('an object without a field', framed(ONE) + TWO.encode() + b'\n\n', [1, 2]),
    ('an object that is no chunk, beside one', framed('{"type":"ping"}', ONE), ['no n', 1]),
    ('an empty error member', framed(ONE[:-1] + ',"error":null}', ONE[:-1] + ',"error":{}}'),
     [1, 1]),
    # [DONE]
    ('[DONE]', framed(ONE, '[DONE]'), [1, 'DONE']),
    ('[DONE] alone', framed('[DONE]'), ['DONE']),
    ('[DONE] without a space', framed(ONE, '[DONE]', before='data:'), [1, 'DONE']),
    ('[DONE] in quotes', framed(ONE, '"[DONE]"'), [1, 'DONE']),
    ('[DONE] in other quotes', framed(ONE, "'[DONE]'"), [1, 'DONE']),
    ('[DONE] with blanks', framed(ONE, ' [DONE] \t'), [1, 'DONE']),
    ('[DONE] with blanks and quotes', framed(ONE, ' " [DONE] " '), [1, 'DONE']),
    ('[DONE] without a blank line', framed(ONE, '[DONE]')[:-1], [1, 'DONE']),
    ('[DONE] without a line end', framed(ONE, '[DONE]')[:-2], [1, 'DONE']),
    ('[DONE] on a line of an event', framed(ONE, '[DONE]', '{no', after='\n'), [1, 'DONE']),
    # single texts
    ('JSON lines', framed(ONE, TWO, before='', after='\n'), [1, 2]),
    ('JSON lines, with blank ones', framed(ONE, TWO, before='\r\n', after='\r\n\r\n'), [1, 2]),
    ('JSON lines, the last without its end', framed(ONE, TWO, before='', after='\n')[:-1], [1, 2]),
    ('JSON lines without any end', framed(ONE, TWO, before='', after=''), [1, 2]),
    ('JSON lines, then [DONE]', framed(ONE, TWO, '[DONE]', before='', after='\n'), [1, 2, 'DONE']),
    ('JSON lines, then [DONE] as an event',
     framed(ONE, TWO, before='', after='\n') + framed('[DONE]'), [1, 2, 'DONE']),
    ('JSON, with [DONE] glued to it', ONE.encode() + framed('[DONE]'), [1, 'DONE']),
    ('one line that calls itself a chunk',
     ONE.replace('"n"', '"object":"chat.completion.chunk","n"').encode(), [1]),
    ('JSON lines of texts', b'{"choices":[{"text":"a"}],"n":1}\n{"choices":[{"text":"b"}],"n":2}',
     [1, 2]),
    ('a whole reply', REPLY.encode(), [1, 'DONE']),
    ('a whole reply of a text', b'{"choices":[{"text":"a"}],"n":1}', [1, 'DONE']),
    ('a whole reply that calls itself a chunk',
     REPLY.replace('"n"', '"object":"chat.completion.chunk","n"').encode(), [1, 'DONE']),
    ('a whole reply after blank lines', b'\r\n \t' + REPLY.encode() + b'\n', [1, 'DONE']),
    ('a whole reply after a byte order mark', BOM + REPLY.encode(), [1, 'DONE']),
    ('a whole reply on several lines', json.dumps(json.loads(REPLY), indent=1).encode(),
     [1, 'DONE']),
    ('a whole reply of two choices', b'{"choices":[{"message":{}},{"message":{}}],"n":1}',
     [1, 1, 'DONE']),
    ('a whole reply without choices', b'{"choices":[],"n":1}', [1, 'DONE']),
    ('a whole reply whose choices are null', b'{"choices":null,"n":1}', [1, 'DONE']),
    ('a whole reply whose choices are an object', b'{"choices":{"message":{}},"n":1}', [1, 'DONE']),
)

# What ends in an error: the payloads before it, the error's class, and words of its message.
BUSY = {'message': 'busy now', 'code': 429}
BUSY_TEXT = json.dumps({'error': BUSY})
REFUSED, INVALID = streamlite.RateLimitError, streamlite.APIResponseValidationError
FAILED = (
    # the server's own errors
    ('an event', framed(ONE, BUSY_TEXT, TWO), [1], REFUSED, 'busy now'),
    ('a first event', framed(BUSY_TEXT), [], REFUSED, 'busy now'),
    ('an event by name', framed(json.dumps(BUSY), before='event: error\ndata: '), [], REFUSED,
     'busy now'),
    ('an event by name, of plain text', framed('busy now', before='event: error\ndata: '), [],
     streamlite.APIError, 'busy now'),
    ('a field', framed(ONE) + framed(json.dumps(BUSY), before='error: '), [1], REFUSED,
     'busy now'),
    ('in an event behind a chunk', framed(ONE + BUSY_TEXT), [1], REFUSED, 'busy now'),
    ('a member beside choices', framed(ONE[:-1] + ',"error":"busy now"}'), [],
     streamlite.APIError, 'busy now'),
    ('an object called error', framed(json.dumps(dict(BUSY, object='error'))), [], REFUSED,
     'busy now'),
    ('an object without a field', framed(ONE) + BUSY_TEXT.encode() + b'\n\n', [1], REFUSED,
     'busy now'),
    ('without its blank line', framed(ONE, BUSY_TEXT)[:-2], [1], REFUSED, 'busy now'),
    ('a body', BUSY_TEXT.encode(), [], REFUSED, 'busy now'),
    ('a body on several lines', json.dumps({'error': BUSY}, indent=1).encode(), [], REFUSED,
     'busy now'),
    ('a body that calls itself error', json.dumps(dict(BUSY, object='error')).encode(), [],
     REFUSED, 'busy now'),
    ('a body in a list', ('[%s]' % BUSY_TEXT).encode(), [], REFUSED, 'busy now'),
    ('behind JSON lines', framed(ONE, BUSY_TEXT, before='', after='\n'), [1], REFUSED, 'busy now'),
    # what is no answer
    ('a page', b'\n<!doctype html><title>Sign in</title>', [], INVALID, 'HTML'),
    ('plain text', b'It works!', [], INVALID, 'It works!'),
    ('plain text on lines', b'It works!\n\nReally.\n', [], INVALID, 'It works!'),
    ('foreign JSON', b'{"status":"ok"}', ['no n'], INVALID, 'status'),
    ('an empty object', b'{}', ['no n'], INVALID, '{}'),
    ('a list', b'[1,2]', [], INVALID, '[1,2]'),
    ('an empty list', b'[]', [], INVALID, '[]'),
    ('a list that is no JSON', b'[oh dear, what is this]', [], INVALID, 'oh dear'),
    ('a foreign event', framed('{"type":"response.created"}'), ['no n'], INVALID,
     'response.created'),
    ('text in an event', framed(ONE, 'Bad gateway', TWO), [1], INVALID, 'Bad gateway'),
    ('a page in an event', framed(ONE, '<html>502</html>'), [1], INVALID, '<html>502'),
    ('a number in an event', framed(ONE, '42'), [1], INVALID, '42'),
    ('a list in an event', framed(ONE, '[1]'), [1], INVALID, '[1]'),
    ('half an object in an event', framed(ONE, '{"choices":['), [1], INVALID, 'choices'),
    ('more than an object in an event', framed(ONE, TWO + '}'), [1, 2], INVALID, '"n":2'),
    ('more than [DONE] in an event', framed(ONE, '[DONE]!'), [1], INVALID, '[DONE]!'),
    ('JSON with a fault near its end', b'{"choices" }', [], INVALID, 'choices'),
    ('JSON, then something else', ONE.encode() + b'\nBad gateway, try again', [1], INVALID,
     'Bad gateway'),
)


class PayloadStageTest(TestCase):
    """Bytes of a body become payloads, in whatever pieces they come."""

    def test_every_kind_of_body_at_every_split(self):
        for name, body, expected in PAYLOADS:
            with self.subTest(name):
                for reads in splits(body):
                    read = read_payloads(reads)
                    self.assertEqual((read.payloads, read.error), (expected, None), reads)

    def test_a_stream_is_read_event_by_event(self):
        body = framed(ONE, TWO, '[DONE]')
        seen = []
        for fields in streamlite._payloads((body[at:at + 1] for at in range(len(body))), str):
            seen.append(fields)
            if len(seen) == 1:
                break
        self.assertEqual(seen, [json.loads(ONE)])

        def no_more():
            yield framed(ONE)
            raise AssertionError('an event is there, and the next bytes are asked for')
        self.assertEqual(next(streamlite._payloads(no_more(), str)), json.loads(ONE))

    def test_nothing_yet_passes_once_for_each_look(self):
        for name, body, expected in PAYLOADS:
            if 'DONE' in expected[:-1] or expected[-1:] == ['DONE']:
                continue  # Nothing behind it is looked at.
            with self.subTest(name):
                read = read_payloads([part for at in range(len(body))
                                      for part in (b'', body[at:at + 1], b'')])
                self.assertEqual(read.looks, 2 * len(body))

    def test_every_error_at_every_split_after_what_came_before_it(self):
        for name, body, expected, kind, words in FAILED:
            with self.subTest(name):
                messages = set()
                for reads in splits(body):
                    read = read_payloads(reads)
                    self.assertEqual((read.payloads, type(read.error)), (expected, kind), reads)
                    self.assertIn(words, str(read.error))
                    self.assertEqual('an HTML page' in str(read.error), b'<' in body)
                    messages.add(str(read.error))
                self.assertEqual(len(messages), 1, messages)

    def test_a_fault_comes_after_what_can_be_made_of_the_bytes_before_it(self):
        for name, body, expected in PAYLOADS:
            fault = None if expected[-1:] == ['DONE'] else RESET
            with self.subTest(name):
                for reads in splits(body):
                    read = read_payloads(reads, RESET)
                    self.assertEqual(read.payloads, expected, reads)
                    self.assertIs(read.error, fault, reads)

    def test_a_fault_is_told_rather_than_what_a_cut_text_looks_like(self):
        for body in (b'<html>', b'{"status":"ok"}', b'It wo', b'{"choices":[', b'[1',
                     framed('{"type":"ping"}')):
            with self.subTest(body):
                self.assertIs(read_payloads([body], RESET).error, RESET)

    def test_an_answer_cut_anywhere_is_neither_foreign_nor_whole(self):
        rich = dict(WHOLE, n=1, a=[True, False, None, -1.5e-7, 'é\n\\ \u2028', {}, []])
        parts = [json.dumps(dict(delta(text), n=n)) for n, text in ((1, 'Hel'), (2, 'lo'))]
        for name, body in (
                ('events', framed(*parts)),
                ('events with CRLF', framed(*parts, after='\r\n\r\n')),
                ('events with fields', framed(*parts, before='event: x\nid: 7\n: y\ndata: ')),
                ('JSON lines', framed(*parts, before='', after='\n')),
                ('a whole reply', json.dumps(rich).encode()),
                ('a whole reply in UTF-8', json.dumps(rich, ensure_ascii=False).encode()),
                ('a whole reply on lines', json.dumps(rich, indent=1).encode())):
            whole = read_payloads([body]).payloads
            self.assertTrue(whole)
            for end, fault in itertools.product(range(len(body)), (None, RESET)):
                read = read_payloads([body[:end]], fault)
                with self.subTest(name, end=end, fault=fault):
                    self.assertIs(read.error, fault)
                    self.assertEqual(read.payloads, whole[:len(read.payloads)])
                    self.assertNotIn('DONE', read.payloads)

    def test_minus_infinity_cut_in_the_middle_is_not_foreign(self):
        body = b'{"choices":[{"message":{},"logprobs":{"content":[{"logprob":-Infinity'
        foreign = [body[:end] for end in range(len(body)) if read_payloads([body[:end]]).error]
        self.assertEqual(foreign, [])

    def test_a_list_of_errors_cut_in_the_middle_is_not_foreign(self):
        body = ('[%s]' % BUSY_TEXT).encode()
        foreign = [body[:end] for end in range(1, len(body)) if read_payloads([body[:end]]).error]
        self.assertEqual(foreign, [])

    def test_a_line_with_a_delta_is_not_a_whole_reply(self):
        self.assertEqual(read_payloads([ONE.encode() + b'\n']).payloads, [1])

    def test_half_an_event_at_the_end_is_ignored_whatever_it_begins_with(self):
        for half in (b'data: {"choices":[{"del', b'data: {', b'data: [DO', b'data: Bad gate',
                     b'data', b'd', b'event: mess', b'{"choices":', b'data: {"error":{"mess',
                     b'data: %s\ndata: {"a' % TWO.encode()[:-1], b': pin', b'\n', b'\r'):
            for before, expected in ((framed(ONE), [1]), (b'', [])):
                for fault in None, RESET:
                    read = read_payloads([before, half], fault)
                    with self.subTest(half, before=before, fault=fault):
                        self.assertEqual((read.payloads, read.error), (expected, fault))

    def test_what_is_larger_than_the_limit_is_an_error_after_what_came_before_it(self):
        large = (('an event', framed(ONE) + b'data: {"n":"' + b'x' * 900, [1]),
                 ('lines', framed(ONE) + b'data: 1\n' * 90, [1]),
                 ('a reply', b'{"n":"' + b'x' * 900, []),
                 ('JSON lines', framed(ONE, before='', after='\n') * 30, []))
        with mock.patch.object(streamlite, 'MAX_EVENT', 300):
            for (name, body, expected), size in itertools.product(large, (1, 64, 2000)):
                with self.subTest(name, size=size):
                    read = read_payloads([body[at:at + size] for at in range(0, len(body), size)])
                    self.assertEqual((read.payloads, type(read.error)), (expected, INVALID))
            self.assertEqual(read_payloads([framed(*[ONE] * 30)]).payloads, [1] * 30)

    def test_what_would_become_too_many_objects_is_an_error(self):
        many = '{"choices":[],"n":1,"a":[%s]}' % ','.join(['[]'] * 50)
        with mock.patch.object(streamlite, 'MAX_OBJECTS', 40):
            for body, expected in (framed(ONE, many), [1]), (many.encode(), []):
                with self.subTest(body):
                    read = read_payloads([body])
                    self.assertEqual((read.payloads, type(read.error)), (expected, INVALID))
            for body in framed(ONE, '{"n":"%s"}' % ('x' * 100)), REPLY.encode() + b' ' * 100:
                self.assertIsNone(read_payloads([body]).error)

    def test_choices_of_a_whole_reply_are_told_apart_by_position_where_indexes_do_not(self):
        none = {'message': {}}
        zero, one, three, five = (dict(none, index=index) for index in (0, 1, 3, 5))
        for name, given, expected in (
                ('missing', [none, none], [zero, one]), ('equal', [zero, zero], [zero, one]),
                ('one missing', [none, one], [none, one]),
                ('one missing that is taken', [none, zero], [zero, one]),
                ('digits', [dict(none, index='0'), dict(none, index='1')],
                 [dict(none, index='0'), dict(none, index='1')]),
                ('their own', [five, three], [five, three]), ('an object', none, [none]),
                ('objects and others', [7, none, None, 'x', none], [zero, one])):
            with self.subTest(name):
                body = json.dumps({'choices': given}).encode()
                found = [fields['choices'] for fields in streamlite._payloads(iter([body]), str)
                         if fields is not SAID_DONE]
                self.assertEqual(found, [[choice] for choice in expected])

    def test_calls_of_a_whole_reply_are_counted_where_they_have_no_index(self):
        calls = [call(None, 'a', 'f'), call(7, 'b', 'g'), call(None, 'c', 'h'), None, 'x']
        body = json.dumps(whole_reply(None, tool_calls=calls)).encode()
        fields = next(streamlite._payloads(iter([body]), str))
        found = fields['choices'][0]['message']['tool_calls']
        self.assertEqual([one['index'] for one in found[:3]], [0, 7, 2])

    def test_secrets_are_hidden_before_a_text_is_cut(self):
        key = 'sk-0123456789'
        for length in range(150, 205):
            for body in (b'x' * length + key.encode(), framed('x' * length + key),
                         ('<' + 'x' * length + key).encode(),
                         framed('x' * (length + 800) + key, before='event: error\ndata: '),
                         json.dumps({'error': 'x' * (length + 800) + key}).encode()):
                error = read_payloads([body], hide=lambda text: text.replace(key, '***')).error
                self.assertNotIn('sk-', str(error))

    def test_what_json_raises_is_our_error(self):
        deep, long = '[' * 100000, '9' * 5000
        for name, event in (('too deep', '{"a":' + deep),
                            ('too deep, and whole', '{"a":%s%s}' % ('[' * 200, ']' * 200)),
                            ('objects too deep', '{"a":' * 70 + '1' + '}' * 70),
                            ('too many digits', '{"a":%s}' % long)):
            for body in framed(ONE, event, TWO), framed(ONE, event, before='', after='\n'):
                with self.subTest(name, body=body[:5]):
                    read = read_payloads([body])
                    self.assertEqual((read.payloads, type(read.error)), ([1], INVALID))
        flat = '{"choices":[],"n":1,"a":[%s]}' % ','.join(['[{}]'] * 100)
        self.assertEqual(read_payloads([framed(flat)]).payloads, [1], 'many brackets are not deep')
        edge = '{"choices":[],"n":1,"a":%s%s}' % ('[' * 63, ']' * 63)
        self.assertEqual(read_payloads([framed(edge)]).payloads, [1], 'as deep as is allowed')


class ErrorEventTest(ReplyTestCase):

    def test_an_error_inside_a_200_is_raised_in_the_servers_words(self):
        said = {'message': 'the provider is gone', 'type': 'server_error', 'code': 502,
                'param': 'p'}
        words, coded, uncoded = json.dumps(
            said), streamlite.InternalServerError, streamlite.APIError
        member = json.dumps({'error': said})
        for name, tail, kind in (
                ('an object', framed(member), coded),
                ('an object beside choices',
                 sse(dict(delta(finish_reason='error'), error=said), done=False), coded),
                ('a string', sse({'error': said['message']}, done=False), uncoded),
                ('"object": "error"', sse(dict(said, object='error'), done=False), coded),
                ('an event named error', framed(words, before='event: error\ndata: '), coded),
                ('an event named error, with an error member',
                 framed(member, before='event: error\ndata: '), coded),
                ('an event named error, of plain text',
                 framed(said['message'], before='event: error\ndata: '),
                 uncoded),
                ('an event named error, of a JSON string',
                 framed(json.dumps(said['message']), before='event: error\ndata: '), uncoded),
                ('a field named error', framed(words, before='error: '), coded),
                ('JSON without a field', framed(member, before='', after='\n'), coded),
                ('JSON without a field or a line end', framed(member, before='', after=''), coded),
                ('glued to a chunk', framed(LINES[1] + member), coded)):
            for before, text in (([], ''), ([delta('Hel')], 'Hel')):
                with self.subTest(name, text=text):
                    error = self.error_of(*before + [tail], kind=kind)
                    self.assertIs(type(error), kind)
                    self.assertSays(error, said['message'])
                    self.assertNotRegex(str(error), '[{"]')
                    self.assertEqual(text_of(error.partial), text + 'lo ' * ('glued' in name))
                    if kind is coded:
                        self.assertEqual((error.code, error.type, error.param),
                                         (502, 'server_error', 'p'))

    def test_a_json_body_that_is_an_error_is_raised(self):
        words, events = 'the provider is gone', {'Content-Type': 'text/event-stream'}
        for body in ({'error': {'message': words, 'code': 503}}, {'error': words},
                     {'error': {'message': words, 'code': 'gone'}},
                     {'object': 'error', 'message': words}):
            for answer in (reply(200, {}, body),
                           reply(200, events, json.dumps(body, indent=1).encode())):
                with self.subTest(body):
                    error = self.error_of_answer(answer, streamlite.APIError)
                    self.assertSays(error, words)

    def test_a_numeric_code_decides_the_class(self):
        no_status = [(code, streamlite.APIError) for code in (None, 'server_error', [], True)]
        digits = [('503', streamlite.InternalServerError)]
        for code, kind in list(CLASSES.items()) + digits + no_status:
            with self.subTest(code):
                said = {'message': 'gone', 'type': 't', 'param': 'p', 'code': code}
                error = self.error_of(delta('Hel'), {'error': said})
                self.assertIs(type(error), kind)
                self.assertEqual((error.code, error.type, error.param), (code, 't', 'p'))
                if kind is not streamlite.APIError:
                    self.assertEqual(error.status_code, int(code))

    def test_a_finish_reason_of_error_is_an_error(self):
        error = self.error_of(delta('Hel'), delta('lo'), delta(finish_reason='error'))
        self.assertEqual(text_of(error.partial), 'Hello')

    def test_an_empty_error_member_is_none(self):
        for nothing in (None, {}, '', [], False):
            with self.subTest(nothing):
                self.assertText(self.collect(*[dict(chunk, error=nothing) for chunk in CHUNKS]),
                                'Hello world')

    def test_the_servers_words_always_encode(self):
        for payload in (r'{"error": "gone \ud83d"}',
                        r'{"error": {"message": "gone \ud83d", "code": 503}}'):
            with self.subTest(payload):
                error = self.error_of(delta('Hel'), payload)
                self.assertSays(error, 'gone')
                str(error).encode()

    def test_an_odd_error_member_is_still_an_error(self):
        for odd in (['overloaded'], {'message': None, 'code': 'x'},
                    {'message': {'nested': 'overloaded'}}, 42, True,
                    {'code': 10 ** 30}):
            with self.subTest(odd):
                error = self.error_of(delta('Hel'), {'error': odd})
                self.assertTrue(str(error))
                self.assertEqual(text_of(error.partial), 'Hel')

    def test_an_error_without_words_says_so(self):
        self.assertSays(self.error_of({'error': ' '}), 'the server reported an error without')


class DoorTest(ReplyTestCase):
    """What servers get wrong in a chunk is put right before anybody sees it."""

    def test_odd_chunks_do_no_harm(self):
        for name, odd in (
                ('choices null', {'choices': None}),
                ('choices missing', {'id': 'x'}),
                ('choices empty', {'choices': [], 'prompt_filter_results': [{}]}),
                ('choices a string', {'choices': 'none'}),
                ('choices an object', {'choices': {}}),
                ('choices a number', {'choices': 7}),
                ('a choice null', {'choices': [None]}),
                ('a choice a string', {'choices': ['x']}),
                ('a choice empty', {'choices': [{}]}),
                ('delta null', choice(delta=None)),
                ('delta missing', choice(content_filter_offsets={'check_offset': 1})),
                ('delta a number', choice(delta=5)),
                ('delta a list', choice(delta=['x'])),
                ('delta an empty string', choice(delta='')),
                ('content null', choice(delta={'content': None})),
                ('content empty', choice(delta={'content': ''})),
                ('content an empty list', choice(delta={'content': []})),
                ('message null', choice(message=None)),
                ('a ping', {'type': 'ping'}),
                ('an empty object', {}),
                ('odd types', dict(delta(''), id=5, created=1.5, model=None, object=''))):
            for at in range(len(CHUNKS) + 1):
                with self.subTest(name, at=at):
                    with self.stream(*CHUNKS[:at] + [odd] + CHUNKS[at:]) as stream:
                        texts = []
                        for chunk in stream:
                            self.assertIsInstance(chunk.choices, list)
                            texts += [one.delta.content for one in chunk.choices]
                    self.assertEqual(''.join(filter(None, texts)), 'Hello world')
                    self.assertText(stream.completion, 'Hello world')

    def test_text_is_found_wherever_servers_put_it(self):
        growing = [choice(delta={'content': new}, message={'role': 'assistant', 'content': whole})
                   for new, whole in (('Hel', 'Hel'), ('lo ', 'Hello '), ('world', 'Hello world'))]
        for name, chunks in (
                ('a whole message', [choice(message={'role': 'assistant', 'content': 'Hello world'},
                                            finish_reason='stop')]),
                ('a whole message after deltas', CHUNKS[:3] + [WHOLE]),
                ('a whole message after deltas and finish', CHUNKS + [WHOLE]),
                ('a growing message beside deltas', growing + [STOP]),
                ('text instead of a delta',
                 [choice(text='Hello '), choice(text='world', finish_reason='stop')]),
                ('no index', [{'choices': [{'delta': {'content': 'Hello '}}]},
                              {'choices': [{'delta': {'content': 'world'},
                                            'finish_reason': 'stop'}]}]),
                ('index null', [choice(index=None, delta={'content': 'Hello '}),
                                choice(delta={'content': 'world'}, finish_reason='stop')]),
                ('the last token with finish_reason',
                 [delta('Hello '), delta('world', finish_reason='stop')]),
                ('more after finish_reason',
                 [delta('Hello', finish_reason='stop'), delta(' world')]),
                ('parts', [delta([{'type': 'text', 'text': 'Hello '}]),
                           delta([{'type': 'text', 'text': 'wor'}, {'type': 'text', 'text': 'ld'}]),
                           STOP]),
                ('parts that are strings', [delta(['Hello ']), delta(['wor', 'ld']), STOP]),
                ('parts and strings',
                 [delta([{'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'hm'}]}]),
                                       delta('Hello'), delta([{'type': 'text', 'text': ' world'}]),
                                       STOP])):
            with self.subTest(name):
                with self.stream(*chunks) as stream:
                    self.assertEqual(''.join(stream.text()), 'Hello world')
                self.assertText(stream.completion, 'Hello world')

    def test_thinking_parts_are_reasoning(self):
        let, me, see, four = [{'type': 'text', 'text': said}
                              for said in ('Let ', 'me ', 'see.', '4')]
        message = self.message(
            {'content': [{'type': 'thinking', 'thinking': [let, me]}]},
            {'content': [{'type': 'thinking', 'thinking': [see]}, four]},
            {'content': [{'type': 'image_url', 'image_url': 'x'}, None, {'type': 'text'},
                         {'type': 'text', 'text': None}]},
            {'content': '2'})
        self.assertEqual((reasoning_of(message), message.content), ('Let me see.', '42'))
        message = self.message({'content': [{'type': 'thinking', 'thinking': 'hm'}]},
                               {'content': 'x'})
        self.assertEqual(reasoning_of(message), 'hm')

    def test_a_final_whole_message_is_not_added_to_its_deltas(self):
        calls = [call(0, 'a', 'f', '{"x":1}', type='function')]
        final = whole_reply('Hi', 'tool_calls', reasoning_content='hm', tool_calls=calls)
        completion = self.collect(delta(reasoning_content='hm'), delta('H'), delta('i'),
                                  delta(tool_calls=calls), dict(final, usage={'total_tokens': 3}))
        message = completion.choices[0].message
        self.assertEqual((message.content, message.reasoning_content), ('Hi', 'hm'))
        self.assertEqual([one.function.arguments for one in message.tool_calls], ['{"x":1}'])
        self.assertEqual(completion.choices[0].finish_reason, 'tool_calls')
        self.assertEqual(completion.usage.total_tokens, 3)

    def test_choices_are_told_apart_by_index(self):
        chunks = [delta('a', index=1, role='assistant'), delta('x', role='assistant'),
                  delta('b', index=1), delta('y'),
                  delta(index=1, finish_reason='length'),
                  delta(index=0, finish_reason='stop')]
        together = dict(STOP, choices=chunks[0]['choices'] + chunks[1]['choices'])
        for name, order in (('one to a chunk', chunks),
                            ('two in a chunk', [together] + chunks[2:])):
            with self.subTest(name):
                with self.stream(*order) as stream:
                    self.assertEqual(''.join(stream.text()), 'xy')
                found = [(one.index, one.message.content, one.finish_reason)
                         for one in stream.completion.choices]
                self.assertEqual(found, [(0, 'xy', 'stop'), (1, 'ab', 'length')])

    def test_two_choices_of_one_index_are_one_answer(self):
        second = {'tool_calls': [call(0, 'a', 'f', '{}')]}
        two = {'choices': [{'index': 0, 'delta': {'content': 'Hi'}},
                           {'index': 0, 'delta': second, 'finish_reason': 'tool_calls'}]}
        message, = [one.message for one in self.collect(two).choices]
        self.assertEqual((message.content, message.tool_calls[0].id), ('Hi', 'a'))

    def test_both_answers_of_a_whole_reply_come_out_whatever_their_indexes(self):
        for name, indexes in (('missing', (None, None)), ('equal', (0, 0)), ('strings', ('0', '1')),
                              ('equal strings', ('0', '0')), ('null and missing', ('null', None)),
                              ('equal, not 0', (1, 1)), ('right', (0, 1))):
            choices = []
            for index, text in zip(indexes, ('one', 'two')):
                message = {'role': 'assistant', 'content': text}
                choices.append({'index': index, 'message': message, 'finish_reason': 'stop'})
                if index is None:
                    del choices[-1]['index']
                elif index == 'null':
                    choices[-1]['index'] = None
            self.answer = reply(200, {}, {'object': 'chat.completion', 'choices': choices})
            for stream in False, True:
                with self.subTest(name, stream=stream):
                    completion = ask(self.client, n=2, stream=stream)
                    completion = completion.collect() if stream else completion
                    self.assertEqual([choice.message.content for choice in completion.choices],
                                     ['one', 'two'])
                    self.assertEqual(len({choice.index for choice in completion.choices}), 2)

    def test_string_indexes_of_a_stream_keep_its_answers_apart(self):
        for zero, one in (('0', '1'), (0, '1'), ('0', 1)):
            with self.subTest(zero=zero, one=one):
                stream = self.stream(
                    delta('a', index=zero), delta('b', index=one), delta('A', index=zero),
                    delta('B', 'stop', index=one), delta(None, 'stop', index=zero))
                choices = stream.collect().choices
                self.assertEqual([(choice.index, choice.message.content) for choice in choices],
                                 [(0, 'aA'), (1, 'bB')])
        with self.subTest('text() is choice 0'):
            stream = self.stream(delta('a', 'stop', index='0'), delta('b', 'stop', index='1'))
            self.assertEqual(list(stream.text()), ['a'])

    def test_reasoning_sent_as_parts_of_the_content_is_reasoning(self):
        def summary(text):
            return {'type': 'reasoning', 'summary': [{'type': 'summary_text', 'text': text}]}

        cases = {  # contents, reasoning, text
            'a summary (Databricks)': (
                [[summary('The')], [summary(' sky')], [{'type': 'text', 'text': 'Blue'}], '.'],
                'The sky', 'Blue.'),
            'a text': (
                [[{'type': 'reasoning', 'text': 'Hm'}], [{'type': 'text', 'text': 'Blue'}], '.'],
                'Hm', 'Blue.'),
            'both in one': (
                [[summary('The'), {'type': 'text', 'text': 'Blue'}], '.'], 'The', 'Blue.'),
            'thinking (Mistral)': (
                [[{'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'Hm'}]}], 'Blue.'],
                'Hm', 'Blue.'),
            'several summaries': (
                [[dict(summary('a'), summary=[{'type': 'summary_text', 'text': 'a'},
                                              {'type': 'summary_text', 'text': 'b'}])], 'Blue.'],
                'ab', 'Blue.'),
        }
        for name, (contents, reasoning, text) in cases.items():
            with self.subTest(name):
                events = [delta(content) for content in contents] + [delta(finish_reason='stop')]
                message = self.collect(*events).choices[0].message
                self.assertEqual((message.reasoning_content, message.content), (reasoning, text))
                self.assertEqual(''.join(self.stream(*events).text()), text)
                for chunk in self.stream(*events):
                    self.assertIn(type(chunk.choices[0].delta.content), (str, type(None)))
        with self.subTest('a whole reply'):
            parts = [summary('The'), {'type': 'reasoning', 'text': ' sky'},
                     {'type': 'text', 'text': 'Blue'}]
            self.answer = reply(200, {}, {'choices': [
                {'index': 0, 'finish_reason': 'stop', 'message': {
                    'role': 'assistant', 'content': parts}}]})
            message = ask(self.client, stream=False).choices[0].message
            self.assertEqual((message.reasoning_content, message.content), ('The sky', 'Blue'))


def through_door(payload, door=None):
    """The chunk that the door makes of a payload, plain."""
    chunk = (door or streamlite._Door()).chunk(json.loads(json.dumps(payload)))
    return plain(chunk)


def said(**delta):
    """A choice of index 0 with such a delta."""
    return {'index': 0, 'delta': delta}


NO_CHOICE, EMPTY = [], [{'index': 0, 'delta': {}}]
HI = {'content': 'Hi'}

# `choices` as it comes, and as it comes out.
CHOICES = (
    ('as it should be', [dict(said(**HI), finish_reason=None)],
     [dict(said(**HI), finish_reason=None)]),
    ('null', None, NO_CHOICE),
    ('empty', [], NO_CHOICE),
    ('a string', 'none', NO_CHOICE),
    ('a number', 7, NO_CHOICE),
    ('an object', said(**HI), [said(**HI)]),
    ('an empty object', {}, EMPTY),
    ('objects and others', [None, said(**HI), 'x', 7, [said(**HI)]], [said(**HI)]),
    ('an empty choice', [{}], EMPTY),
    # index
    ('index missing', [{'delta': HI}], [said(**HI)]),
    ('index null', [{'index': None, 'delta': HI}], [said(**HI)]),
    ('index of digits', [{'index': '12', 'delta': HI}], [{'index': 12, 'delta': HI}]),
    ('index of letters', [{'index': 'a1', 'delta': HI}], [said(**HI)]),
    ('index of digits and letters', [{'index': '1a', 'delta': HI}], [said(**HI)]),
    ('index of too many digits', [{'index': '9' * 10, 'delta': HI}], [said(**HI)]),
    ('index true', [{'index': True, 'delta': HI}], [said(**HI)]),
    ('index with a point', [{'index': 1.0, 'delta': HI}], [said(**HI)]),
    ('index a list', [{'index': [1], 'delta': HI}], [said(**HI)]),
    ('index negative', [{'index': -1, 'delta': HI}], [{'index': -1, 'delta': HI}]),
    # delta
    ('delta missing', [{'index': 0, 'vendor': 1}], [{'index': 0, 'delta': {}, 'vendor': 1}]),
    ('delta null', [{'index': 0, 'delta': None}], EMPTY),
    ('delta a list', [{'index': 0, 'delta': ['x']}], EMPTY),
    ('delta a string', [{'index': 0, 'delta': 'x'}], EMPTY),
    ('delta a number', [{'index': 0, 'delta': 5}], EMPTY),
    ('a message for a delta', [{'index': 0, 'message': HI}], [said(**HI)]),
    ('a message for an empty delta', [{'index': 0, 'delta': {}, 'message': HI}], [said(**HI)]),
    ('a message that is none', [{'index': 0, 'message': 'x'}],
     [{'index': 0, 'delta': {}, 'message': 'x'}]),
    ('a message beside a delta', [dict(said(content='H'), message=HI)],
     [dict(said(content='H'), message=HI)]),
    ('a text for a delta', [{'index': 0, 'text': 'Hi'}], [dict(said(**HI), text='Hi')]),
    ('a text that is none', [{'index': 0, 'text': 7}], [{'index': 0, 'delta': {}, 'text': 7}]),
    # finish_reason and logprobs
    ('finish_reason empty', [dict(said(), finish_reason='')], [dict(said(), finish_reason='')]),
    ('finish_reason a number', [dict(said(), finish_reason=1)],
     [dict(said(), finish_reason=None)]),
    ('finish_reason true', [dict(said(), finish_reason=True)],
     [dict(said(), finish_reason=None)]),
    ('finish_reason an object', [dict(said(), finish_reason={'type': 'stop'})],
     [dict(said(), finish_reason=None)]),
    ('logprobs', [dict(said(), logprobs={'content': []})],
     [dict(said(), logprobs={'content': []})]),
    ('logprobs null', [dict(said(), logprobs=None)], [dict(said(), logprobs=None)]),
    ('logprobs a list', [dict(said(), logprobs=[1])], [dict(said(), logprobs=None)]),
    ('logprobs false', [dict(said(), logprobs=False)], [dict(said(), logprobs=None)]),
)


def text_part(text, kind='text', name='text'):
    return {'type': kind, name: text}


def thought(content):
    return text_part(content, 'thinking', 'thinking')


# A delta as it comes, and as it comes out.
DELTAS = (
    ('a text', {'content': 'é'}, {'content': 'é'}),
    ('an empty text', {'content': ''}, {'content': ''}),
    ('null', {'content': None}, {'content': None}),
    ('a token taken for a number', {'content': 7}, {'content': '7'}),
    ('zero', {'content': 0}, {'content': '0'}),
    ('a number with a point', {'content': 0.5}, {'content': '0.5'}),
    ('an object without text', {'content': {'a': 1}}, {'content': None}),
    ('an object with text', {'content': {'text': 'Hi'}}, {'content': 'Hi'}),
    ('no parts', {'content': []}, {'content': None}),
    ('parts', {'content': [text_part('H'), text_part('i')]}, {'content': 'Hi'}),
    ('parts that are strings', {'content': ['H', 'i']}, {'content': 'Hi'}),
    ('parts of both kinds', {'content': ['H', text_part('i')]}, {'content': 'Hi'}),
    ('parts that are numbers', {'content': ['H', 1]}, {'content': 'H1'}),
    ('an empty part', {'content': [text_part('')]}, {'content': ''}),
    ('parts that are no text', {'content': [None, ['x'], {}, {'type': 'image_url'},
                                            text_part(None), text_part(['x'])]},
     {'content': None}),
    # reasoning in parts
    ('a thinking part', {'content': [thought('hm')]},
     {'reasoning_content': 'hm', 'content': None}),
    ('thinking in parts', {'content': [thought([text_part('h'), text_part('m')])]},
     {'reasoning_content': 'hm', 'content': None}),
    ('a part of type thinking with a text', {'content': [text_part('hm', 'thinking')]},
     {'reasoning_content': 'hm', 'content': None}),
    ('a reasoning part', {'content': [text_part('hm', 'reasoning')]},
     {'reasoning_content': 'hm', 'content': None}),
    ('a reasoning part with a summary',
     {'content': [text_part([text_part('hm', 'summary_text')], 'reasoning', 'summary')]},
     {'reasoning_content': 'hm', 'content': None}),
    ('thinking, then text', {'content': [thought('hm'), text_part('Hi')]},
     {'reasoning_content': 'hm', 'content': 'Hi'}),
    ('text between thinking', {'content': [thought('h'), text_part('Hi'), thought('m')]},
     {'reasoning_content': 'hm', 'content': 'Hi'}),
    ('thinking beside null', {'content': [thought('hm')], 'reasoning_content': None},
     {'reasoning_content': 'hm', 'content': None}),
    ('thinking as reasoning', {'reasoning': [thought('hm')]}, {'reasoning': 'hm'}),
    ('thinking behind other reasoning', {'reasoning_content': 'h', 'content': [thought('m')]},
     {'reasoning_content': 'hm', 'content': None}),
    ('thinking before other reasoning', {'content': [thought('h')], 'reasoning_content': 'm'},
     {'reasoning_content': 'hm', 'content': None}),
    # the other texts
    ('reasoning that is an object', {'reasoning_content': {'text': 'hm'}},
     {'reasoning_content': 'hm'}),
    ('reasoning in parts', {'reasoning': [text_part('h'), thought('m')]}, {'reasoning': 'hm'}),
    ('reasoning that is a number', {'reasoning': 7, 'reasoning_content': 0},
     {'reasoning': '7', 'reasoning_content': '0'}),
    ('reasoning without text', {'reasoning_content': {'a': 1}}, {'reasoning_content': None}),
    ('a refusal in parts', {'refusal': [text_part('no')]}, {'refusal': 'no'}),
    ('a refusal that is a number', {'refusal': 7}, {'refusal': '7'}),
    ('a role that is none', {'role': 7, 'content': 'x'}, {'role': None, 'content': 'x'}),
    # the other objects
    ('function_call a string', {'function_call': 'f'}, {'function_call': None}),
    ('function_call a list', {'function_call': [1]}, {'function_call': None}),
    ('function_call with parsed arguments', {'function_call': {'name': 'f', 'arguments': {'x': 1}}},
     {'function_call': {'name': 'f', 'arguments': '{"x": 1}'}}),
    ('function_call of numbers', {'function_call': {'name': 7, 'arguments': 7}},
     {'function_call': {'name': '7', 'arguments': '7'}}),
    ('function_call of neither', {'function_call': {'name': True, 'arguments': False}},
     {'function_call': {'name': None, 'arguments': None}}),
    ('audio a string', {'audio': 'QUJD'}, {'audio': None}),
    ('audio of numbers', {'audio': {'id': 1, 'data': 7, 'transcript': 7, 'expires_at': 7}},
     {'audio': {'id': 1, 'data': '7', 'transcript': '7', 'expires_at': 7}}),
    ('what a vendor added', {'content': None, 'vendor': [1, {'a': 'b'}], 'other': 7, 'third': 'x'},
     {'content': None, 'vendor': [1, {'a': 'b'}], 'other': 7, 'third': 'x'}),
)

# `tool_calls` of a delta as it comes, and as it comes out.
CALLS = (
    ('null', None, None),
    ('a string', 'x', None),
    ('a number', 7, None),
    ('no list', call(0, 'a', 'f', '{}'), [call(0, 'a', 'f', '{}')]),
    ('empty', [], []),
    ('objects and others', [None, 'x', 7, [{}], call(0, 'a')], [call(0, 'a')]),
    ('an empty one', [{}], [{}]),
    ('index missing', [call(None, 'a', 'f', '{}')], [call(None, 'a', 'f', '{}')]),
    ('index null', [{'index': None}], [{'index': None}]),
    ('index of digits', [{'index': '1'}], [{'index': 1}]),
    ('index of letters', [{'index': 'x'}], [{'index': None}]),
    ('index true', [{'index': True}], [{'index': None}]),
    ('index with a point', [{'index': 1.5}], [{'index': None}]),
    ('id a number', [{'id': 7}], [{'id': '7'}]),
    ('id and type true', [{'id': True, 'type': True}], [{'id': None, 'type': None}]),
    ('function null', [{'function': None}], [{'function': None}]),
    ('function a string', [{'function': 'f'}], [{'function': None}]),
    ('function empty', [{'function': {}}], [{'function': {}}]),
    ('name a number', [call(0, name=7)], [call(0, name='7')]),
    ('arguments an object', [call(0, arguments={'x': 1})], [call(0, arguments='{"x": 1}')]),
    ('arguments an empty object', [call(0, arguments={})], [call(0, arguments='{}')]),
    ('arguments a list', [call(0, arguments=[1])], [call(0, arguments='[1]')]),
    ('arguments null', [{'function': {'arguments': None}}], [{'function': {'arguments': None}}]),
    ('arguments a number', [call(0, arguments=7)], [call(0, arguments='7')]),
    ('arguments true', [call(0, arguments=True)],
     [{'index': 0, 'function': {'arguments': None}}]),
    ('a custom call', [{'custom': {'name': 'f', 'input': 'x'}}],
     [{'custom': {'name': 'f', 'input': 'x'}}]),
)

USAGES = (
    ('an object', {'total_tokens': 1}, {'total_tokens': 1}),
    ('an empty object', {}, {}),
    ('null', None, None),
    ('a string', 'none', None),
    ('a list', [7], None),
    ('a number', 7, None),
)

HIGH, LOW = '\ud83d', '\ude00'

# Deltas with halves of emoji, what the door makes of each, and what it has left at the end.
HALVES = (
    ('a whole one', [said(content='a😀')], [{'content': 'a😀'}], []),
    ('cut', [said(content='a' + HIGH), said(content=LOW + 'b')],
     [{'content': 'a'}, {'content': '😀b'}], []),
    ('cut, with null between', [said(content=HIGH), said(content=None), said(content=LOW)],
     [{'content': ''}, {'content': None}, {'content': '😀'}], []),
    ('cut, with an empty text between', [said(content=HIGH), said(content=''), said(content=LOW)],
     [{'content': ''}, {'content': ''}, {'content': '😀'}], []),
    ('cut, with another field between',
     [said(content=HIGH), said(reasoning_content='x'), said(content=LOW)],
     [{'content': ''}, {'reasoning_content': 'x'}, {'content': '😀'}], []),
    ('cut twice', [said(content=HIGH), said(content=LOW + HIGH), said(content=LOW)],
     [{'content': ''}, {'content': '😀'}, {'content': '😀'}], []),
    ('the first half twice', [said(content=HIGH), said(content=HIGH), said(content=LOW)],
     [{'content': ''}, {'content': '\ufffd'}, {'content': '😀'}], []),
    ('the other half never comes', [said(content='a' + HIGH), said(content='b')],
     [{'content': 'a'}, {'content': '\ufffdb'}], []),
    ('the other half never comes, and nothing else', [said(content='a' + HIGH)],
     [{'content': 'a'}], [said(content='\ufffd')]),
    ('in the middle of a text', [said(content='a' + HIGH + 'b')], [{'content': 'a\ufffdb'}], []),
    ('the second half alone', [said(content=LOW + 'a')], [{'content': '\ufffda'}], []),
    ('beside what is mended, too', [said(content='a' + HIGH, vendor=[1]), said(content=LOW)],
     [{'content': 'a', 'vendor': [1]}, {'content': '😀'}], []),
    ('the first and the last pair', [said(content='\ud800'), said(content='\udc00\udbff'),
                                     said(content='\udfff')],
     [{'content': ''}, {'content': '\U00010000'}, {'content': '\U0010ffff'}], []),
    ('in parts', [said(content=['a', HIGH]), said(content=[LOW])],
     [{'content': 'a'}, {'content': '😀'}], []),
    ('in two fields', [said(content=HIGH, reasoning_content=HIGH),
                       said(reasoning_content=LOW), said(content=LOW)],
     [{'content': '', 'reasoning_content': ''}, {'reasoning_content': '😀'}, {'content': '😀'}],
     []),
    ('in two choices', [said(content=HIGH), {'index': 1, 'delta': {'content': HIGH}},
                        said(content=LOW), {'index': 1, 'delta': {'content': LOW}}],
     [{'content': ''}, {'content': ''}, {'content': '😀'}, {'content': '😀'}], []),
    ('in two choices, for ever', [said(content=HIGH), {'index': 1, 'delta': {'refusal': HIGH}}],
     [{'content': ''}, {'refusal': ''}],
     [said(content='\ufffd'), {'index': 1, 'delta': {'refusal': '\ufffd'}}]),
    ('in thinking', [said(content=[thought('a' + HIGH)]), said(content=[thought(LOW)])],
     [{'reasoning_content': 'a', 'content': None}, {'reasoning_content': '😀', 'content': None}],
     []),
    ('in thinking, before text', [said(content=[thought('a' + HIGH)]), said(content='b'),
                                  said(content=[thought(LOW)])],
     [{'reasoning_content': 'a', 'content': None}, {'content': 'b'},
      {'reasoning_content': '😀', 'content': None}], []),
    ('in a field that is not joined', [said(vendor=HIGH), said(vendor=LOW)],
     [{'vendor': HIGH}, {'vendor': LOW}], []),
)


class DoorTableTest(TestCase):
    """What servers get wrong, and what comes out of the door."""

    def test_choices(self):
        for name, given, expected in CHOICES:
            with self.subTest(name):
                payload = {'id': 'x', 'choices': given, 'vendor': [1]}
                self.assertEqual(through_door(payload), dict(payload, choices=expected))
        self.assertEqual(through_door({'id': 'x'}), {'id': 'x', 'choices': []})

    def test_deltas(self):
        for name, given, expected in DELTAS:
            with self.subTest(name):
                chunk = through_door({'choices': [said(**given)]})
                self.assertEqual(chunk['choices'], [said(**expected)])

    def test_tool_calls(self):
        for name, given, expected in CALLS:
            with self.subTest(name):
                chunk = through_door({'choices': [said(tool_calls=given)]})
                self.assertEqual(chunk['choices'], [said(tool_calls=expected)])

    def test_usage(self):
        for name, given, expected in USAGES:
            with self.subTest(name):
                self.assertEqual(through_door({'usage': given}),
                                 {'choices': [], 'usage': expected})
        self.assertNotIn('usage', through_door({}))

    def test_halves_of_emoji(self):
        for name, given, expected, rest in HALVES:
            with self.subTest(name):
                door = streamlite._Door()
                found = [through_door({'choices': [choice]}, door) for choice in given]
                self.assertEqual([chunk['choices'][0]['delta'] for chunk in found], expected)
                self.assertEqual([chunk['choices'] for chunk in map(plain, door.rest())],
                                 [[choice] for choice in rest])
                self.assertEqual(door.rest(), [], 'once')

    def test_a_message_counts_only_where_no_delta_has_brought_anything(self):
        message = {'choices': [{'index': 0, 'message': HI}]}
        for before, expected in (([], HI), ([said(role='assistant')], HI), ([said(content='')], HI),
                                 ([said(content=None, role='assistant')], HI),
                                 ([{'index': 1, 'delta': HI}], HI),
                                 ([said(content='H')], {}), ([said(reasoning_content='h')], {}),
                                 ([said(tool_calls=[call(0, 'a')])], {}),
                                 ([{'index': 0, 'message': HI}], {})):
            with self.subTest(before):
                door = streamlite._Door()
                for choice in before:
                    through_door({'choices': [choice]}, door)
                self.assertEqual(through_door(message, door)['choices'][0]['delta'], expected)

    def test_what_comes_out_are_objects_with_their_documented_fields(self):
        chunk = streamlite._Door().chunk({'usage': {'total_tokens': 3}, 'choices': [{
            'delta': {'tool_calls': [call(0, 'a', 'f', '{}'), {}], 'audio': {'data': 'QUJD'},
                      'function_call': {'name': 'f'}},
            'logprobs': {'content': [{'token': 'a', 'top_logprobs': [{'token': 'b'}]}]}}]})
        choice, = chunk.choices
        self.assertEqual(chunk.usage.total_tokens, 3)
        self.assertIsNone(chunk.usage.prompt_tokens_details)
        self.assertIsNone(chunk.system_fingerprint)
        self.assertIsNone(choice.finish_reason)
        self.assertIsNone(choice.delta.content)
        first, second = choice.delta.tool_calls
        self.assertEqual((first.index, first.id, first.function.name), (0, 'a', 'f'))
        self.assertIsNone(second.function)
        self.assertEqual(choice.delta.function_call.name, 'f')
        self.assertIsNone(choice.delta.function_call.arguments)
        self.assertEqual(choice.delta.audio.data, 'QUJD')
        self.assertEqual(choice.logprobs.content[0].top_logprobs[0].token, 'b')
        self.assertIsNone(choice.logprobs.refusal)

    def test_a_chunk_of_a_plain_text_costs_no_mending(self):
        with mock.patch.object(streamlite._Door, '_mended', side_effect=AssertionError):
            for plain_delta in {'content': 'Hi', 'role': 'assistant'}, {'content': None}, {}:
                through_door({'choices': [said(**plain_delta)]})

    def test_what_a_chunk_brings(self):
        for delta, text, reasoning, brings in (
                ({'content': 'Hi'}, 'Hi', '', True), ({'content': ''}, '', '', False),
                ({'role': 'assistant'}, '', '', False), ({}, '', '', False),
                ({'content': None, 'vendor': 1}, '', '', True),
                ({'reasoning': 'hm', 'reasoning_content': 'hm'}, '', 'hm', True),
                ({'reasoning': 'hm', 'reasoning_content': ''}, '', 'hm', True),
                ({'thinking': 'hm'}, '', 'hm', True), ({'thought': 'hm'}, '', 'hm', True),
                ({'reasoning_details': [{'text': 'h'}, {'summary': 'm'}]}, '', 'hm', True),
                ({'tool_calls': [{}]}, '', '', True)):
            with self.subTest(delta):
                chunk = streamlite._Door().chunk({'choices': [said(**delta)]})
                self.assertEqual(streamlite._chunk_text(chunk), text)
                self.assertEqual(streamlite._reasoning_text(chunk.choices[0].delta), reasoning)
                self.assertEqual(streamlite._brings_something(chunk), brings)
        chunk = streamlite._Door().chunk({'choices': [
            said(content='a'), {'index': 1, 'delta': {'content': 'x'}}, said(content='b')]})
        self.assertEqual(streamlite._chunk_text(chunk), 'ab')

    def test_an_event_of_too_many_choices_or_calls_is_an_error(self):
        most = streamlite.MAX_CHOICES
        self.assertEqual(most, 1024)
        chunk = through_door({'choices': [said()] * most})
        self.assertEqual(len(chunk['choices']), most)
        chunk = through_door({'choices': [said(tool_calls=[{}] * most)]})
        self.assertEqual(len(chunk['choices'][0]['delta']['tool_calls']), most)
        for payload in ({'choices': [said()] * (most + 1)}, {'choices': [7] * (most + 1)},
                        {'choices': [said(tool_calls=[{}] * (most + 1))]}):
            with self.assertRaises(streamlite.APIResponseValidationError) as caught:
                through_door(payload)
            self.assertSays(caught.exception, 1024)

    def test_a_tool_call_that_says_null_has_none(self):
        nothing = {'index': None, 'id': None, 'type': None, 'function': {'name': None}}
        chunk = streamlite._Door().chunk({'choices': [{'delta': {'tool_calls': [nothing]}}]})
        called, = chunk.choices[0].delta.tool_calls
        self.assertEqual((called.id, called.type, called.function.name), (None, None, None))


class SurrogateTest(ReplyTestCase):
    """An emoji is two surrogates in JSON's escapes, and some servers cut between them."""

    WHOLE = '\U0001f600'

    def pieces(self, *deltas):
        """Deltas as chunks with escapes; each a dict, or the text of choice 0."""
        chunks = [delta(**piece) if isinstance(piece, dict) else delta(piece) for piece in deltas]
        return [json.dumps(chunk) for chunk in chunks + [STOP]]

    @staticmethod
    def relayed(stream, name):
        """A field of choice 0's deltas, as a browser reads it."""
        choices = [one for item in decode(stream) if item.data != '[DONE]'
                   for one in json.loads(item.data)['choices']]
        return [one['delta'].get(name) or '' for one in choices if one['index'] == 0]

    def test_text_comes_out_whole_and_always_encodes(self):
        for name, deltas, expected in (
                ('whole', ['a', self.WHOLE, 'b'], 'a😀b'),
                ('cut', ['a' + HIGH, LOW + 'b'], 'a😀b'),
                ('cut, with a chunk between', ['a' + HIGH, '', {'role': 'assistant'}, LOW + 'b'],
                 'a😀b'),
                ('cut twice', [HIGH, LOW + HIGH, LOW], '😀😀'),
                ('high alone at the end', ['a', HIGH], 'a\ufffd'),
                ('high alone in the middle', ['a' + HIGH + 'b', 'c'], 'a\ufffdbc'),
                ('high alone between deltas', ['a' + HIGH, 'b'], 'a\ufffdb'),
                ('low alone', [LOW + 'a', 'b' + LOW], '\ufffdab\ufffd'),
                ('the wrong way round', [LOW, HIGH, 'x'], '\ufffd\ufffdx'),
                ('two highs', [HIGH, HIGH, LOW], '\ufffd😀'),
                ('a high that another field follows', [HIGH, {'reasoning_content': LOW}, 'x'],
                 '\ufffdx'),
                ('a high that another choice follows', [HIGH, {'content': LOW, 'index': 1}, LOW],
                 '😀')):
            with self.subTest(name):
                chunks = self.pieces(*deltas)
                with self.stream(*chunks) as stream:
                    texts = list(stream.text())
                self.assertEqual(''.join(texts), expected, 'text()')
                for text in texts:
                    text.encode()
                self.assertEqual(text_of(stream.completion), expected, 'completion')
                stream.completion.to_json().encode()
                with self.stream(*chunks) as stream:
                    texts = self.relayed(b''.join(stream.sse()), 'content')
                self.assertEqual(''.join(texts), expected, 'sse()')
                for text in texts:
                    text.encode()

    def test_reasoning_and_arguments_come_out_whole(self):
        chunks = self.pieces(
            {'reasoning_content': 'a' + HIGH},
            {'reasoning_content': LOW + 'b' + HIGH},
            {'tool_calls': [call(0, 'a', 'f', '{"x":"' + HIGH)]},
            {'tool_calls': [call(1, 'b', 'g', '{"y":"' + HIGH)]},
            {'tool_calls': [call(0, arguments=LOW + '"}')]},
            {'tool_calls': [call(1, arguments='"}')]})
        with self.stream(*chunks) as stream:
            relayed = b''.join(stream.sse())
        for text in self.relayed(relayed, 'reasoning_content'):
            text.encode()
        for name, body in (('as it came', sse(*chunks)), ('relayed', relayed)):
            with self.subTest(name):
                self.answer = stream_reply(body)
                with ask(self.client) as stream:
                    message = stream.collect().choices[0].message
                self.assertEqual(message.reasoning_content, 'a😀b\ufffd')
                self.assertEqual([call.function.parsed_arguments for call in message.tool_calls],
                                 [{'x': '😀'}, {'y': '\ufffd'}])

    def test_a_half_that_waits_at_the_end_comes_out_at_its_place(self):
        for done in (True, False):
            with self.subTest(done=done):
                message = self.collect(*self.pieces(
                    {'tool_calls': [call(0, 'a', 'f', '{}')]},
                    {'tool_calls': [call(1, 'b', 'g', '{"y":"' + HIGH)]},
                    {'content': 'a' + HIGH}, {'reasoning_content': 'b' + HIGH}),
                                       done=done).choices[0].message
                self.assertEqual((message.content, message.reasoning_content),
                                 ('a\ufffd', 'b\ufffd'))
                self.assertEqual([call.function.arguments for call in message.tool_calls],
                                 ['{}', '{"y":"\ufffd'])

    def test_only_fields_that_are_joined_wait_for_the_other_half(self):
        first, second = [{'title': 'cut ' + HIGH}], [{'title': 'whole'}, {'title': LOW}]
        for name, deltas, expected in (
                ('the last', [{'annotations': first}, 'Hi'], [{'title': 'cut \ufffd'}]),
                ('one that another follows',
                 [{'annotations': first}, {'annotations': second}, 'Hi'],
                 [{'title': 'cut \ufffd'}, {'title': 'whole'}, {'title': '\ufffd'}])):
            with self.subTest(name):
                message = self.collect(*self.pieces(*deltas)).choices[0].message
                self.assertEqual((message.content, message.annotations), ('Hi', expected))

    def test_log_probabilities_encode(self):
        chunks = [choice(delta={'content': half}, logprobs={'content': [{'token': half}]})
                  for half in (HIGH, LOW)]
        one = self.collect(*[json.dumps(chunk) for chunk in chunks + [STOP]]).choices[0]
        self.assertEqual([token.token for token in one.logprobs.content], ['\ufffd', '\ufffd'])
        self.assertEqual(one.message.content, '😀')

    def test_the_completion_so_far_encodes_too(self):
        with self.stream(*self.pieces('a' + HIGH, LOW)) as stream:
            for _ in stream:
                text_of(stream.completion).encode()
                stream.completion.to_json().encode()
        self.assertEqual(text_of(stream.completion), 'a😀')

    def test_a_cut_stream_hands_over_what_encodes(self):
        error = self.error_of(json.dumps(delta('a' + HIGH)), done=False)
        self.assertIn(text_of(error.partial), ('a', 'a\ufffd'))


class VerdictTest(ReplyTestCase):
    """Whether an answer is whole: a half one that looks whole is the worst that could come out."""

    def test_an_end_without_done_needs_the_finish_of_every_choice(self):
        stop, more = STOP, delta('!', index=1)
        for name, chunks, whole in (
                ('finished', [delta('Hi'), stop], True),
                ('not finished', [delta('Hi')], False),
                ('an empty reason', [delta('Hi', finish_reason='')], False),
                ('one of two', [delta('Hi'), more, stop], False),
                ('both', [delta('Hi'), more, stop, delta(index=1, finish_reason='length')], True),
                ('n=2, of which the second never came', [delta('Hi'), stop], False),
                ('n=2, and both', [delta('Hi'), stop, delta('!', 'stop', 1)], True),
                ('finished, then usage',
                 [delta('Hi'), stop, {'choices': [], 'usage': {'total_tokens': 1}}], True),
                ('usage without choices does not finish',
                 [delta('Hi'), {'usage': {'total_tokens': 1}}], False),
                ('usage alone does not finish',
                 [delta('Hi'), {'choices': [], 'usage': {'total_tokens': 1}}], False),
                ('no choice at all', [{'choices': []}], False)):
            for framing in ('chunked', 'close'):
                with self.subTest(name, framing=framing):
                    fields = {'n': 2} if 'n=2' in name else {}
                    with served(stream_reply(sse(*chunks, done=False), framing)) as (_, asker):
                        if whole:
                            self.assertText(ask(asker, **fields), 'Hi')
                        else:
                            text = '' if 'no choice' in name else 'Hi'
                            error = self.assertBroken(asker, text, **fields)
                            self.assertIs(type(error), streamlite.APIConnectionError)

    def test_an_answer_that_was_cut_is_never_whole(self):
        cases = {
            'ended by the close': stream_reply(HELLO_CUT, 'close'),
            'its exact Content-Length': stream_reply(HELLO_CUT, 'length'),
            'a short Content-Length': cut(stream_reply(
                HELLO_CUT, 'length', {'Content-Length': len(HELLO)})),
            'a Content-Length inside an event': stream_reply(
                HELLO, 'length', {'Content-Length': len(HELLO_CUT) + 9}),
            'no last chunk': cut(begun(HELLO_CUT)),
            'a clean last chunk': stream_reply(HELLO_CUT),
            'a clean last chunk inside an event': stream_reply(HELLO_CUT + WORLD[:-20]),
            'reset': reset(begun(HELLO_CUT)),
            'truncated gzip, clean last chunk': stream_reply(packed(HELLO_CUT)[:-8], headers=GZIP),
            'whole gzip of half a stream': stream_reply(packed(HELLO_CUT), headers=GZIP),
        }
        for name, script in cases.items():
            with self.subTest(name), served(script) as (server, asker):
                error = self.assertBroken(asker, 'Hello ')
                self.assertIsNone(error.partial.choices[0].finish_reason)
                self.assertSays(error, '127.0.0.1:%d' % server.port, PATH)

    def test_a_cut_tool_call_keeps_its_fragments(self):
        error = self.error_of(delta(tool_calls=[call(0, 'call_1', 'look', '', type='function')]),
                              delta(tool_calls=[call(0, arguments='{"city": "Par')]), done=False)
        function = error.partial.choices[0].message.tool_calls[0].function
        self.assertEqual((function.name, function.arguments), ('look', '{"city": "Par'))
        self.assertRaises(ValueError, getattr, function, 'parsed_arguments')

    def test_a_last_event_cut_in_the_middle_is_ignored_and_the_end_judged_as_usual(self):
        self.answer = stream_reply(framed(*LINES) + b'data: {"id": "chatc')
        self.assertText(ask(self.client), 'Hello world')
        text = json.dumps(choice(text='Hello '))
        for name, body in (('an event', framed(*LINES[:2]) + b'data: {"id": "chatc'),
                           ('JSON lines of text', framed(text, before='', after='\n')),
                           ('JSON lines',
                            framed(*LINES[:2], before='', after='\n') + b'{"id": "chatc')):
            with self.subTest(name):
                self.answer = stream_reply(body)
                self.assertBroken(self.client, 'Hello ')

    def test_a_json_body_cut_in_the_middle_is_a_lost_connection(self):
        whole = json.dumps(WHOLE).encode()
        for at in (1, 20, len(whole) - 1):
            with self.subTest(at):
                self.answer = stream_reply(whole[:at])
                self.assertBroken(self.client, '')

    def test_after_done_or_finish_nothing_turns_success_into_an_error(self):
        cases = {}
        for name, body in (('finish_reason', FINISHED), ('[DONE]', HELLO)):
            start = begun(body)
            cases.update({
                name + ', then the end': cut(start),
                name + ', then a reset': reset(start),
                name + ', then garbage': cut(start + b'\xff\x00garbage\r\n\r\n'),
                name + ', then a bad chunk size': cut(start + b'-5\r\n'),
                name + ', then half a chunk': cut(start + b'20\r\ndata: {"cho'),
                name + ', then silence': stall(start),
                name + ', then comments': pace(chunked(b':\n\n', last=False), start),
            })
        late = sse({'error': {'message': 'late'}})
        cases['[DONE], then an error event'] = cut(CHUNKED_HEAD + chunked(HELLO + late))
        cases['truncated gzip'] = stream_reply(packed(HELLO)[:-8], headers=GZIP)
        with mock.patch.object(streamlite, 'PATIENCE', SHORT):
            for name, result in outcomes({name: [script] for name, script in cases.items()}):
                with self.subTest(name):
                    self.assertEqual(result.result, 'Hello world')
                    self.assertLess(result.seconds, PROMPT)

    def test_what_comes_behind_the_finish_reason_for_ever_is_not_waited_for(self):
        nothing = {'choices': []}
        count = dict(nothing, usage={'total_tokens': 1})
        cases = {name: [pace(chunked(sse(event, done=False), last=False), begun(FINISHED))]
                 for name, event in (('usage', count), ('no choices', nothing))}
        with mock.patch.object(streamlite, 'PATIENCE', MEDIUM):
            for name, result in outcomes(cases):
                with self.subTest(name):
                    self.assertEqual(result.result, 'Hello world')
                    self.assertLess(result.seconds, PROMPT)

    def test_usage_that_was_asked_for_is_waited_for(self):
        usage = dict(delta(), choices=[], usage={'total_tokens': 3})
        asked = {'stream_options': {'include_usage': True}}
        answered = begun(sse(delta('Hi', 'stop'), done=False))

        def later(done):  # than the patience with what is behind a whole answer
            end = chunked(sse(usage, done=done), last=done)
            return lambda peer: (peer.send(answered), peer.wait_closed(MEDIUM) or peer.send(end),
                                 peer.wait_closed())

        def tokens(script, fields):
            with served(script) as (_, asker), self.assertPrompt():
                completion = ask(asker, **fields).collect()
            self.assertText(completion, 'Hi')
            return completion.usage and completion.usage.total_tokens

        cases = {
            'asked for': (later(True), asked, 3),
            'in extra_body': (later(True), {'extra_body': asked}, 3),
            'silence behind it': (later(False), asked, 3),
            'not asked for': (stall(answered), {}, None),
        }
        with mock.patch.object(streamlite, 'PATIENCE', SHORT):
            told = at_once(*[lambda case=case: tokens(*case[:2]) for case in cases.values()])
        self.assertEqual(dict(zip(cases, told)), {name: case[2] for name, case in cases.items()})

    def test_how_many_choices_there_are_costs_nothing_at_each_read_and_chunk(self):
        def work():
            # The one that is not finished comes last wherever they are looked through.
            first = [choice(index=count, delta={'content': 'Hi'})]
            many = [choice(index=index, finish_reason='stop', delta={}) for index in range(count)]
            nothing = itertools.repeat(None, count)
            last = [choice(index=count, finish_reason='stop', delta={})]
            payloads = itertools.chain(first, many, nothing, last)
            found = streamlite._answer(payloads, streamlite._Asked(), Clock())
            self.assertEqual(len(list(found)), 2 * count + 2)

        count = 30000
        self.assertLinear(work)


Judged = collections.namedtuple('Judged', 'text verdict starts')


def judge(payloads, choices=1, usage=False, read=600):
    """What `_answer` makes of payloads: the text, its verdict, and what the clock was started with.

    A payload that is an exception is raised. The verdict is 'whole', or ('whole', fault) with what
    went wrong behind it, or the error that is raised.
    """
    def stage():
        for payload in payloads:
            if isinstance(payload, Exception):
                raise payload
            # The door changes what it is given.
            yield payload if payload is SAID_DONE else copy.deepcopy(payload)

    clock, text = Clock(read), ''
    answer = streamlite._answer(stage(), streamlite._Asked(choices, usage), clock)
    while True:
        try:
            chunk = next(answer)
        except StopIteration as end:
            trouble = end.value.trouble
            return Judged(text, ('whole', trouble) if trouble else 'whole', clock.starts)
        except Exception as error:
            return Judged(text, error, clock.starts)
        for choice in chunk.choices if chunk is not None else ():
            text += choice.delta.content or ''


CUT = streamlite.APIConnectionError  # An end that keeps the answer from being whole.
BUSY_ERROR = streamlite.RateLimitError('busy')
FOREIGN = streamlite.APIResponseValidationError(message='foreign')
TIMED_OUT = socket.timeout('timed out')
COUNT = {'choices': [], 'usage': {'total_tokens': 3}}
NO_COUNT = {'choices': [], 'usage': None}
PING = {'choices': []}
ROLE = {'choices': [{'index': 0, 'delta': {'role': 'assistant'}}]}
THINKING = {'choices': [{'index': 0, 'delta': {'reasoning_content': 'hm'}}]}
CALLING = {'choices': [{'index': 0, 'delta': {'tool_calls': [{'index': 0, 'id': 'a'}]}}]}
X, X_END = delta('a'), delta(finish_reason='stop')
Y, Y_END = delta('b', index=1), delta(finish_reason='length', index=1)

# The payloads, what of the request matters, and the verdict.
VERDICTS = (
    # what makes an answer whole
    ('[DONE]', [X, SAID_DONE], {}, 'whole'),
    ('[DONE] before any text', [SAID_DONE], {}, 'whole'),
    ('a finish_reason', [X, X_END], {}, 'whole'),
    ('a finish_reason beside the last text', [delta('a', 'stop')], {}, 'whole'),
    ('a finish_reason of any name', [delta('a', 'eos')], {}, 'whole'),
    ('a finish_reason, then [DONE]', [X, X_END, SAID_DONE], {}, 'whole'),
    ('a finish_reason, then a count', [X, X_END, COUNT], {}, 'whole'),
    ('a finish_reason, then more text of that choice', [X, X_END, delta('!')], {}, 'whole'),
    ('a finish_reason twice', [X, X_END, X_END], {}, 'whole'),
    # what does not
    ('nothing', [], {}, CUT),
    ('waiting, then nothing', [None], {}, CUT),
    ('text', [X], {}, CUT),
    ('an empty finish_reason', [delta('a', '')], {}, CUT),
    ('a count', [X, COUNT], {}, CUT),
    ('a count alone', [COUNT], {}, CUT),
    ('no choice', [PING], {}, CUT),
    # each choice
    ('one of two seen', [X, Y, X_END], {}, CUT),
    ('two of two seen', [X, Y, X_END, Y_END], {}, 'whole'),
    ('the second begins when the first has ended', [X, X_END, Y], {}, CUT),
    ('the second begins and ends when the first has ended', [X, X_END, Y, Y_END], {}, 'whole'),
    ('one twice, the other never', [X, Y, X_END, X_END], {}, CUT),
    ('one of two asked for', [X, X_END], {'choices': 2}, CUT),
    ('two of two asked for', [X, X_END, Y, Y_END], {'choices': 2}, 'whole'),
    ('two of two asked for, in one payload',
     [{'choices': [X_END['choices'][0], Y_END['choices'][0]]}], {'choices': 2}, 'whole'),
    ('three of two asked for, one without its end', [X_END, Y_END, delta('c', index=2)],
     {'choices': 2}, CUT),
    ('two of one asked for', [X_END, Y_END], {}, 'whole'),
    ('one of two asked for, then [DONE]', [X, X_END, SAID_DONE], {'choices': 2}, 'whole'),
    # a fault
    ('a fault at once', [RESET], {}, RESET),
    ('a fault after text', [X, RESET], {}, RESET),
    ('a fault behind a finish_reason', [X, X_END, RESET], {}, ('whole', RESET)),
    ('a fault behind a finish_reason and a count', [X, X_END, COUNT, RESET], {},
     ('whole', RESET)),
    ('a fault behind one finish_reason of two', [X, Y, X_END, RESET], {}, RESET),
    ('a time-out after text', [X, None, TIMED_OUT], {}, TIMED_OUT),
    ('a time-out behind a finish_reason', [X, X_END, None, TIMED_OUT], {}, ('whole', TIMED_OUT)),
    ('a time-out before the count', [X, X_END, None, TIMED_OUT], {'usage': True},
     ('whole', TIMED_OUT)),
    # what is no answer
    ('foreign data at once', [FOREIGN], {}, FOREIGN),
    ('foreign data after text', [X, FOREIGN], {}, FOREIGN),
    ('foreign data behind a finish_reason', [X, X_END, FOREIGN], {}, ('whole', FOREIGN)),
    # the server's word
    ("the server's error at once", [BUSY_ERROR], {}, BUSY_ERROR),
    ("the server's error after text", [X, BUSY_ERROR], {}, BUSY_ERROR),
    ("the server's error behind a finish_reason", [X, X_END, BUSY_ERROR], {}, BUSY_ERROR),
    ('a finish_reason of error', [X, delta(finish_reason='error')], {}, streamlite.APIError),
    ('a finish_reason of error behind another', [X, X_END, delta(finish_reason='error')], {},
     streamlite.APIError),
    ('nothing behind [DONE] is looked at', [X, SAID_DONE, RESET], {}, 'whole'),
    ("not even the server's error", [X, SAID_DONE, BUSY_ERROR], {}, 'whole'),
)

# The payloads, what of the request matters, and the seconds that the clock is started with. The
# answer may be read for 600 seconds, unless it says otherwise.
STARTS = (
    # before the answer is whole
    ('bytes are there', [X, X, X_END, SAID_DONE], {}, []),
    ('a chunk is waited for', [None, X, X_END], {}, [600]),
    ('keep-alives do not start it again', [None, None, None, X, X_END], {}, [600]),
    ('a chunk does', [None, X, None, None, X, None, X_END], {}, [600, 600, 600]),
    ('a chunk without text does, too', [None, PING, None, ROLE, None, X_END], {}, [600, 600, 600]),
    ('two chunks in one read', [None, X, X, None, X_END], {}, [600, 600]),
    # behind it: only more text renews the patience
    ('silence', [X, X_END, None, None, None], {}, [5]),
    ('waiting when it became whole', [None, X_END, None, None], {}, [600, 5]),
    ('counts for ever', [X_END] + [None, COUNT] * 5, {}, [5]),
    ('pings for ever', [X_END] + [None, PING] * 5, {}, [5]),
    ('roles for ever', [X_END] + [None, ROLE] * 5, {}, [5]),
    ('finish_reasons for ever', [X_END] + [None, X_END] * 5, {}, [5]),
    ('more text', [X_END, None, X, None, X, None], {}, [5, 5, 5]),
    ('more reasoning', [X_END, None, THINKING, None], {}, [5, 5]),
    ('more of a call', [X_END, None, CALLING, None], {}, [5, 5]),
    ('another choice begins', [X_END, None, Y, None, Y_END, None], {}, [5, 600, 5]),
    ('less time than the patience', [None, X_END, None], {'read': 2}, [2, 2]),
    # a count that was asked for is waited for
    ('no count yet', [X_END, None, None], {'usage': True}, [600]),
    ('the count comes', [X_END, None, COUNT, None, None], {'usage': True}, [600, 5]),
    ('the count comes at once', [X_END, COUNT, None], {'usage': True}, [5]),
    ('the count comes with the finish_reason', [dict(X_END, usage={'total_tokens': 3}), None],
     {'usage': True}, [5]),
    ('a count before the finish_reason is not the last', [COUNT, X_END, None], {'usage': True},
     [600]),
    ('no count in it', [X_END, None, NO_COUNT, None], {'usage': True}, [600]),
    ('counts for ever, asked for', [X_END] + [None, COUNT] * 5, {'usage': True}, [600, 5]),
    ('pings for ever, and no count', [X_END] + [None, PING] * 5, {'usage': True}, [600]),
    ('a count that was not asked for', [X_END, None], {}, [5]),
)


class VerdictTableTest(TestCase):
    """Payloads in, a verdict out, and the moments at which the clock is started."""

    def test_the_verdict(self):
        for name, payloads, asked, verdict in VERDICTS:
            # Whether all of it is there at once, or has to be waited for, changes nothing.
            for waiting in False, True:
                parts = [one for payload in payloads for one in ([None, payload] if waiting
                                                                 else [payload])]
                with self.subTest(name, waiting=waiting):
                    judged = judge(parts, **asked)
                    if isinstance(verdict, type):
                        self.assertIs(type(judged.verdict), verdict)
                    else:
                        self.assertEqual(judged.verdict, verdict)
                    ended = payloads.index(SAID_DONE) if SAID_DONE in payloads else None
                    self.assertEqual(judged.text, ''.join(
                        choice['delta'].get('content') or '' for payload in payloads[:ended]
                        if isinstance(payload, dict) for choice in payload['choices']))

    def test_the_clock(self):
        for name, payloads, asked, starts in STARTS:
            with self.subTest(name):
                self.assertEqual(judge(payloads, **asked).starts, starts)

    def test_the_clock_starts_when_the_next_chunk_is_wanted(self):
        clock = Clock()
        payloads = iter([copy.deepcopy(X), None, None])
        answer = streamlite._answer(payloads, streamlite._Asked(), clock)
        next(answer)
        self.assertEqual(clock.starts, [], 'the chunk is there, the next one is not wanted yet')
        next(answer)
        self.assertEqual(clock.starts, [600])

    def test_an_answer_that_is_not_whole_is_told_with_its_address_and_what_is_missing(self):
        for payloads, choices, counted in (([], 1, '0 of 1'), ([X], 1, '0 of 1'),
                                           ([X, Y, X_END], 1, '1 of 2'), ([X_END], 3, '1 of 3')):
            with self.subTest(counted):
                self.assertSays(judge(payloads, choices).verdict, 'http://server.test/v1', counted)

    def test_an_answer_that_an_interrupt_has_ended_is_not_whole(self):
        def interrupted():
            yield copy.deepcopy(X)
            yield copy.deepcopy(X_END)
            raise KeyboardInterrupt

        answer = streamlite._answer(interrupted(), streamlite._Asked(), Clock())
        with self.assertRaises(KeyboardInterrupt):
            list(answer)
        with self.assertRaises(StopIteration) as caught:
            next(answer)
        self.assertIsNone(caught.exception.value)

    def test_a_finish_reason_of_error_shows_the_chunk(self):
        error = judge([X, dict(delta(finish_reason='error'), vendor='gone')]).verdict
        self.assertEqual(error.body['vendor'], 'gone')

    def test_half_an_emoji_comes_out_before_the_verdict(self):
        half = delta('a\ud83d')
        for rest, verdict in (([], CUT), ([RESET], RESET), ([SAID_DONE], 'whole'),
                              ([BUSY_ERROR], BUSY_ERROR), ([X_END, RESET], ('whole', RESET))):
            with self.subTest(rest):
                judged = judge([half] + rest)
                self.assertEqual(judged.text, 'a\ufffd')
                if verdict is not CUT:
                    self.assertEqual(judged.verdict, verdict)

    def test_an_event_of_too_many_choices_spoils_no_whole_answer(self):
        large = {'choices': [said()] * 1025}
        self.assertIsInstance(judge([X, large]).verdict, streamlite.APIResponseValidationError)
        whole, trouble = judge([X, X_END, large]).verdict
        self.assertIsInstance(trouble, streamlite.APIResponseValidationError)

    def test_a_stream_that_ends_anywhere_is_a_lost_connection_until_it_says_its_end(self):
        body = sse(delta('Hel'), delta('lo'), STOP)
        told = body.index(b'}]}', body.index(b'"stop"')) + 3
        for end, fault in itertools.product(range(len(body) + 1), (None, RESET)):
            def cut():
                yield body[:end]
                if fault is not None:
                    raise fault
            verdict = judge(streamlite._payloads(cut(), str)).verdict
            with self.subTest(body[:end][-20:], fault=fault):
                if end < told:
                    self.assertIs(type(verdict), CUT if fault is None else ConnectionResetError)
                else:
                    self.assertIn(verdict, ('whole', ('whole', RESET)))

    def test_an_error_is_gone_when_nobody_holds_it(self):
        # Else each failed call would keep its frames, and all that is in them, until the collector.
        class Fault(OSError):
            pass

        def fail(stage):
            fault = Fault('scripted')
            gone.append(weakref.ref(fault))
            body = (piece for piece in [framed(ONE)])
            wire = Wire()
            wire.ended, wire.fault = True, fault
            del fault
            try:
                list(stage(itertools.chain(body, streamlite._received(wire))))
            except Fault:
                raised.append(True)

        gone, raised = [], []
        gc.collect()
        gc.disable()
        try:
            fail(lambda body: body)
            fail(lambda body: streamlite._payloads(body, str))
            fail(lambda body: streamlite._payloads(itertools.chain([b'{'], body), str))
            fail(lambda body: streamlite._answer(streamlite._payloads(body, str),
                                                 streamlite._Asked(), Clock()))
            self.assertEqual(([ref() for ref in gone], raised), ([None] * 4, [True] * 4))
        finally:
            gc.enable()

    def test_what_the_request_asks_for(self):
        usage = {'include_usage': True}
        for body, choices, wants_usage in (
                ({}, 1, False), ({'stream': True, 'stream_options': usage}, 1, True),
                ({'stream': True, 'stream_options': {}}, 1, False),
                ({'stream': True, 'stream_options': None}, 1, False),
                ({'stream': False, 'stream_options': usage}, 1, False),
                ({'stream_options': usage}, 1, False), ({'n': 3}, 3, False),
                ({'n': None}, 1, False), ({'n': '3'}, 1, False)):
            with self.subTest(body):
                asked = streamlite._asked(body)
                self.assertEqual((asked.choices, asked.usage), (choices, wants_usage))


# --------------------------------------------------------------------------------------------------
# Accumulation: from chunks to a completion
# --------------------------------------------------------------------------------------------------

def reasoning_of(message):
    """The reasoning, whichever of the two usual names it has."""
    return getattr(message, 'reasoning_content', None) or getattr(message, 'reasoning', None)


class MessageTest(ReplyTestCase):

    def test_the_role_is_kept(self):
        for name, roles in (('once', ['assistant', None]), ('repeated', ['assistant', 'assistant']),
                            ('then empty', ['assistant', '']), ('late', ['', 'assistant']),
                            ('never', [None, None])):
            with self.subTest(name):
                message = self.message(*[{'role': role, 'content': 'x'} for role in roles])
                self.assertEqual(message.role, 'assistant')
        self.assertEqual(self.message({'content': 'x'}).role, 'assistant')

    def test_content_is_none_where_no_text_came(self):
        message = self.message({'role': 'assistant', 'content': None},
                               {'tool_calls': [call(0, 'a', 'f', '{}')]})
        self.assertIsNone(message.content)

    def test_fields_that_come_in_pieces_are_joined(self):
        for name in ('content', 'refusal', 'reasoning_content', 'reasoning'):
            with self.subTest(name):
                message = self.message({name: 'I '}, {name: None}, {name: ''}, {name: 'can '}, {},
                                       {name: "not"})
                self.assertEqual(getattr(message, name), 'I can not')

    def test_reasoning_under_two_names_is_not_doubled(self):
        message = self.message(*[{'reasoning': said, 'reasoning_content': said}
                                 for said in ('h', 'm')])
        self.assertEqual((message.reasoning, message.reasoning_content), ('hm', 'hm'))

    def test_reasoning_details_are_all_kept(self):
        details = [{'type': 'reasoning.text', 'text': 'h', 'index': 0},
                   {'type': 'reasoning.encrypted', 'data': 'QUJD'}]
        message = self.message({'reasoning_details': details[:1]}, {'content': 'x'},
                               {'reasoning_details': details[1:]})
        self.assertEqual(message.reasoning_details, details)

    def test_reasoning_may_be_an_object(self):
        self.assertEqual(self.message(*[{'reasoning_content': {'text': part}}
                                        for part in 'hm']).reasoning_content,
                         'hm')

    def test_log_probabilities_are_extended(self):
        def token(name):
            return {'token': name, 'logprob': -1.5, 'bytes': [1],
                    'top_logprobs': [{'token': name, 'logprob': -1.5, 'bytes': None}]}

        chunks = [choice(delta={'content': 'ab'},
                         logprobs={'content': [token('a'), token('b')], 'refusal': None}),
                  choice(delta={'content': 'c'}, logprobs=None),
                  choice(delta={'content': 'd'},
                         logprobs={'content': [token('d')], 'refusal': [token('r')]}), STOP]
        logprobs = self.collect(*chunks).choices[0].logprobs
        self.assertEqual([one.token for one in logprobs.content], ['a', 'b', 'd'])
        self.assertEqual(logprobs.content[2].top_logprobs[0].logprob, -1.5)
        self.assertEqual([one.token for one in logprobs.refusal], ['r'])

    def test_audio_is_joined(self):
        audio = self.message({'audio': {'id': 'audio-1', 'transcript': 'Hel'}},
                             {'audio': {'data': 'QUJD', 'transcript': 'lo'}},
                             {'audio': {'data': 'REVG'}},
                             {'audio': {'expires_at': 7}}).audio
        self.assertEqual((audio.id, audio.data, audio.transcript, audio.expires_at),
                         ('audio-1', 'QUJDREVG', 'Hello', 7))

    def test_the_last_value_of_any_other_field_wins(self):
        chunks = [dict(delta('a'), id='', model='', system_fingerprint='fp-0',
                       citations=['u']),
                  dict(delta('b'), id='chatcmpl-7', model='big'),
                  dict(delta('c'), id='chatcmpl-7', model='big',
                       system_fingerprint='fp-1',
                       citations=None, service_tier='default')]
        chunks[1]['choices'][0]['content_filter_results'] = {'hate': {'filtered': False}}
        completion = self.collect(*chunks + [dict(STOP, id='chatcmpl-7', model='big')])
        self.assertEqual((completion.id, completion.model, completion.object, completion.created),
                         ('chatcmpl-7', 'big', 'chat.completion', 1))
        self.assertEqual((completion.system_fingerprint, completion.citations,
                          completion.service_tier),
                         ('fp-1', ['u'], 'default'))
        self.assertEqual(completion.choices[0].content_filter_results,
                         {'hate': {'filtered': False}})

    def test_the_last_finish_reason_that_is_not_empty_counts(self):
        for reasons, expected in (
                ([None, 'stop'], 'stop'), (['', '', 'stop'], 'stop'), (['stop', None], 'stop'),
                (['stop', ''], 'stop'),
                (['stop', 'tool_calls'], 'tool_calls'),
                (['stop', 'stop', 'stop'], 'stop'), (['length'], 'length'),
                (['content_filter'], 'content_filter'),
                (['eos'], 'eos'), (['COMPLETE'], 'COMPLETE'),
                ([None], None), ([''], None)):
            with self.subTest(reasons):
                self.assertText(
                    self.collect(*[delta('x', finish_reason=reason) for reason in reasons]),
                                'x' * len(reasons), expected)

    def test_a_completion_has_the_shape_of_a_whole_reply(self):
        self.assertEqual(self.collect(*CHUNKS).model_dump(exclude_none=True), WHOLE)

    def test_annotations_that_come_one_to_a_chunk_are_all_kept(self):
        notes = [{'type': 'url_citation', 'url_citation': {'url': 'http://%s.test' % name}}
                 for name in 'abc']
        events = [delta('x')] + [delta('', annotations=[note]) for note in notes]
        message = self.collect(*events + [delta(finish_reason='stop')]).choices[0].message
        self.assertEqual((message.content, message.annotations), ('x', notes))
        with self.subTest('several in a chunk, an empty list, null'):
            events = [delta('', annotations=value) for value in (notes[:2], [], None, notes[2:])]
            message = self.collect(*events + [delta(finish_reason='stop')]).choices[0].message
            self.assertEqual(message.annotations, notes)
        with self.subTest('for each answer its own'):
            events = [delta('', 'stop', index=index, annotations=notes[index:index + 1])
                      for index in (0, 1)]
            completion = self.collect(*events)
            self.assertEqual([choice.message.annotations for choice in completion.choices],
                             [notes[:1], notes[1:2]])


# The deltas' `tool_calls`, and the calls that they come to: id (None for one that is made up), name
# and arguments. `A` and `B` are the calls that most of them are about.
A, B = ('a', 'f', '{"x":1}'), ('b', 'g', '{"y":2}')
NOTHING = {'function': {'name': None, 'arguments': None}}
TOOL_CALLS = (
    ('as OpenAI sends it',
     [[call(0, 'a', 'f', '', type='function')],
      [call(0, arguments='{"x"')],
      [call(0, arguments=':1}')]],
     [A]),
    ('two, one after the other',
     [[call(0, 'a', 'f', '')],
      [call(0, arguments='{"x":1}')],
      [call(1, 'b', 'g', '')],
      [call(1, arguments='{"y":2}')]],
     [A, B]),
    ('two, interleaved',
     [[call(0, 'a', 'f')],
      [call(1, 'b', 'g')],
      [call(0, arguments='{"x"')],
      [call(1, arguments='{"y"')],
      [call(0, arguments=':1}'), call(1, arguments=':2}')]],
     [A, B]),
    ('each whole in a delta', [[call(0, *A)], [call(1, *B)]], [A, B]),
    ('both whole in one delta', [[call(0, *A), call(1, *B)]], [A, B]),
    # indexes
    ('no index', [[call(None, *A)], [call(None, *B)]], [A, B]),
    ('no index, both in one delta', [[call(None, *A), call(None, *B)]], [A, B]),
    ('no index, in fragments',
     [[call(None, 'a', 'f', '{"x"')],
      [call(arguments=':1}')],
      [call(None, 'b', 'g')],
      [call(arguments='{"y":2}')]],
     [A, B]),
    ('no index, the id on each fragment',
     [[call(None, 'a', 'f', '{"x"')],
      [call(None, 'b', 'g', '{"y"')],
      [call(id='a', arguments=':1}')],
      [call(id='b', arguments=':2}')]],
     [A, B]),
    ('no index and no id',
     [[call(name='f', arguments='{"x":1}')],
      [call(name='g', arguments='{"y":2}')]],
     [(None, 'f', '{"x":1}'), (None, 'g', '{"y":2}')]),
    ('index null',
     [[dict(call(None, 'a', 'f', '{"x"'), index=None)],
      [dict(call(arguments=':1}'), index=None)]],
     [A]),
    ('index as digits',
     [[call('0', 'a', 'f', '{"x"')],
      [call('1', *B)],
      [call('0', arguments=':1}')]],
     [A, B]),
    ('one index for all', [[call(0, *A)], [call(0, *B)]], [A, B]),
    ('one index for all, in one delta', [[call(0, *A), call(0, *B)]], [A, B]),
    ('one index for all, in fragments',
     [[call(0, 'a', 'f', '')],
      [call(0, arguments='{"x":1}')],
      [call(0, 'b', 'g', '')],
      [call(0, arguments='{"y":2}')]],
     [A, B]),
    ('one index for all, id and name on each fragment',
     [[call(0, 'a', 'f', '{"x"')],
      [call(0, 'b', 'g', '{"y"')],
      [call(0, 'a', 'f', ':1}')],
      [call(0, 'b', 'g', ':2}')]],
     [A, B]),
    ('one index and one name for all',
     [[call(0, *A)], [call(0, 'b', 'f', '{"x":1}')]],
     [A, ('b', 'f', '{"x":1}')]),
    ('indexes from 1',
     [[call(1, 'a', 'f', '{"x"')],
      [call(1, arguments=':1}')],
      [call(2, *B)]],
     [A, B]),
    ('the rest under another index',
     [[call(0, 'a', 'f')],
      [call(1, arguments='{"x"')],
      [call(1, arguments=':1}')]],
     [A]),
    ('a gap in the indexes',
     [[call(0, 'a', 'f', '{"x"')],
      [call(5, *B)],
      [call(0, arguments=':1}')]],
     [A, B]),
    # ids, names and types
    ('id and name on each fragment',
     [[call(0, 'a', 'f', '{"x"')],
      [call(0, 'a', 'f', ':1')],
      [call(0, 'a', 'f', '}')]],
     [A]),
    ('another type later',
     [[call(0, 'a', 'f', '{"x"', type='function')],
      [call(0, arguments=':1}', type='custom')]],
     [A]),
    ('empty id and name on the rest',
     [[call(0, 'a', 'f', '{"x"')],
      [call(0, '', '', ':1')],
      [call(0, '', '', '}', type='')]],
     [A]),
    ('another id without a name goes on',
     [[call(0, 'a', 'f', '{"x"')],
      [call(0, 'z1', arguments=':1')],
      [call(0, 'z2', '', '}')]],
     [A]),
    ('no id',
     [[call(0, name='f', arguments='{"x":1}')],
      [call(1, name='g', arguments='{"y"')],
      [call(1, arguments=':2}')]],
     [(None, 'f', '{"x":1}'), (None, 'g', '{"y":2}')]),
    ('the id comes late',
     [[call(0, name='f', arguments='{"x"')], [call(0, 'a', arguments=':1}')]],
     [A]),
    ('the name comes late',
     [[call(0, 'a', arguments='')], [call(0, name='f', arguments='{"x":1}')]],
     [A]),
    # arguments
    ('an object for arguments', [[call(0, 'a', 'f', {'x': 1})]], [A]),
    ('an empty object for arguments', [[call(0, 'a', 'f', {})]], [('a', 'f', '{}')]),
    ('null for arguments',
     [[call(0, 'a', function={'name': 'f', 'arguments': None})],
      [call(0, arguments='{"x":1}')],
      [call(0, **NOTHING)]],
     [A]),
    ('no arguments', [[call(0, 'a', 'f', '')]], [('a', 'f', '')]),
    ('no arguments at all', [[call(0, 'a', 'f')]], [('a', 'f', '')]),
    ('arguments cut short', [[call(0, 'a', 'f', '{"x": [1, ')]], [('a', 'f', '{"x": [1, ')]),
    # what is empty or odd
    ('null and nothing for tool_calls',
     [None,
      [call(0, 'a', 'f', '{"x"')],
      None,
      [],
      [call(0, arguments=':1}')],
      []],
     [A]),
    ('an empty call at the end, of the same index', [[call(0, *A)], [call(0, '', **NOTHING)]], [A]),
    ('an empty call at the end, of the next index', [[call(0, *A)], [call(1, '', **NOTHING)]], [A]),
    ('an empty call with an id', [[call(0, *A)], [call(1, 'ghost', arguments='')]], [A]),
    ('a single call instead of a list',
     [call(0, 'a', 'f', '{"x"'), call(0, arguments=':1}')],
     [A]),
    ('null beside the function',
     [[dict(call(0, 'a', 'f', '{"x"'), name=None, arguments=None)],
      [dict(call(0, arguments=':1}'), name=None)]],
     [A]),
    ('function missing at first',
     [[call(0, 'a')], [call(0, name='f')], [call(0, arguments='{"x":1}')]],
     [A]),
    ('function null',
     [[call(0, 'a', function=None)], [call(0, name='f', arguments='{"x":1}')]],
     [A]),
    ('odd members', [[None, 'x', 7, call(0, *A)], 'x', 7, [[]]], [A]),
)


class ToolCallTest(ReplyTestCase):

    def calls(self, *deltas, finish_reason='tool_calls'):
        """What such `tool_calls` of deltas come to."""
        return self.message(*[{'tool_calls': fragments} for fragments in deltas],
                            finish_reason=finish_reason).tool_calls

    def test_fragments_become_calls(self):
        for name, deltas, expected in TOOL_CALLS:
            chunks = [delta(tool_calls=fragments) for fragments in deltas]
            for looking in (False, True):  # what is read half-way changes nothing
                with self.subTest(name, looking=looking):
                    with self.stream(*chunks + [delta(finish_reason='tool_calls')]) as stream:
                        for _ in stream:
                            self.assertTrue(not looking or stream.completion)
                    calls = stream.completion.choices[0].message.tool_calls
                    ids = [one.id for one in calls]
                    self.assertEqual(
                        [(given and one.id, one.function.name,
                          one.function.arguments.replace(': 1}', ':1}'))
                         for one, (given, _, _) in zip(calls, expected)], expected)
                    self.assertEqual(len(calls), len(expected))
                    self.assertEqual({one.type for one in calls}, {'function'})
                    self.assertTrue(all(id and isinstance(id, str) for id in ids), ids)
                    self.assertEqual(len(set(ids)), len(ids), 'ids differ')

    def test_finish_reason_stop_takes_no_call_away(self):
        self.assertEqual(len(self.calls([call(0, 'a', 'f', '{}')], finish_reason='stop')), 1)

    def test_arguments_without_a_name_are_not_lost(self):
        found, = self.calls([call(0, 'a', arguments='{"x":1}')])
        self.assertEqual(found.function.arguments, '{"x":1}')

    def test_there_are_none_where_none_came(self):
        for deltas in ([], [None], [[]], [[call(0, '', **NOTHING)]]):
            with self.subTest(deltas):
                self.assertFalse(self.calls(*deltas))

    def test_each_choice_has_its_own(self):
        first, second = call(0, 'a', 'f', '{"x"'), call(0, 'b', 'g', '{"y"')
        completion = self.collect(delta(tool_calls=[first]), delta(index=1, tool_calls=[second]),
                                  delta(index=1, tool_calls=[call(0, arguments=':2}')]),
                                  delta(tool_calls=[call(0, arguments=':1}')]),
                                  delta(finish_reason='tool_calls'),
                                  delta(index=1, finish_reason='tool_calls'))
        self.assertEqual([[found.function.arguments for found in one.message.tool_calls]
                          for one in completion.choices], [['{"x":1}'], ['{"y":2}']])

    def test_a_call_has_the_shape_of_a_whole_reply_and_keeps_what_the_vendor_added(self):
        signature = {'google': {'thought_signature': 'c2ln'}}
        found, = self.calls([call(0, 'a', 'f', '{"x"', extra_content=signature)],
                            [call(0, arguments=':1}')])
        self.assertEqual(found.to_dict(), {'id': 'a', 'type': 'function',
                                           'function': {'name': 'f', 'arguments': '{"x":1}'},
                                           'extra_content': signature})
        found, = self.calls([call(0, 'a', 'f', '{}')], [call(0, extra_content=signature)])
        self.assertEqual(found.extra_content, signature)

    def test_the_older_function_call_is_joined_too(self):
        message = self.message({'function_call': {'name': 'f', 'arguments': ''}},
                               {'function_call': {'name': '', 'arguments': '{"x"'}},
                               {'function_call': {'arguments': ':1}'}},
                               finish_reason='function_call')
        self.assertEqual((message.function_call.name, message.function_call.arguments),
                         ('f', '{"x":1}'))

    def test_custom_calls_are_collected_as_function_calls_are(self):
        pieces = [{'index': 0, 'custom': {'input': piece}} for piece in ('SELECT ', '1')]
        first = {'index': 0, 'id': 'a', 'type': 'custom', 'custom': {'name': 'sql', 'input': ''}}
        whole = {'id': 'a', 'type': 'custom', 'custom': {'name': 'sql', 'input': 'SELECT 1'}}
        found = self.calls([first], *[[piece] for piece in pieces])
        self.assertEqual([one.to_dict() for one in found], [whole])
        self.answer = reply(200, {}, whole_reply(None, 'tool_calls', tool_calls=[whole]))
        found, = ask(self.client, stream=False).choices[0].message.tool_calls
        self.assertEqual((found.type, found.to_dict()['custom']), ('custom', whole['custom']))

    def test_parsed_arguments(self):
        for text, expected in (('{"x": [1, "é"]}', {'x': [1, 'é']}), ('', {}), ('{}', {}),
                               (' {"x":1}\n', {'x': 1})):
            with self.subTest(text):
                found, = self.calls([call(0, 'a', 'f', text)])
                self.assertEqual(found.function.parsed_arguments, expected)
        for text in ('{"x": [1, ', '{"x":1}{"y":2}', 'get_weather(Berlin)', "{'x': 1}"):
            with self.subTest(text):
                found, = self.calls([call(0, 'a', 'f', text)], finish_reason='length')
                self.assertEqual(found.function.arguments, text)
                with self.assertRaises(ValueError) as caught:
                    self.fail(found.function.parsed_arguments)
                self.assertIn(text.strip(), str(caught.exception))
        self.assertEqual(streamlite.Function.construct(arguments=None).parsed_arguments, {})

    def test_no_key_of_a_tool_call_injects_arguments_or_an_id(self):
        for key in 'pieces', 'made_id', 'spare_id', 'arguments', 'kind', 'body', 'fields':
            for value in 'evil', ['{"evil": 1}'], {'evil': 1}, 7, [7]:
                function = {'name': 'f', 'arguments': '{"a"'}
                calls = [{'index': 0, 'type': 'function', key: value, 'function': function},
                         {'index': 0, key: value, 'function': {'arguments': ': 1}'}}]
                if key == 'arguments':
                    calls = [dict(call, **{key: value}) for call in calls]
                with self.subTest(key, value=value):
                    message = self.message(*[{'tool_calls': [call]} for call in calls])
                    call, = message.tool_calls
                    if key != 'arguments':  # beside its function it means nothing
                        self.assertEqual(call.function.parsed_arguments, {'a': 1})
                        self.assertEqual(call.to_dict()[key], value)
                    self.assertIsInstance(call.id, str)
                    self.assertNotIn('evil', call.id)


def accumulate(*payloads):
    """The completion that payloads come to, plain."""
    door, accumulator = streamlite._Door(), streamlite.Accumulator()
    for payload in payloads:
        accumulator.add(door.chunk(json.loads(json.dumps(payload))))
    return plain(accumulator.completion)


def message_of(*deltas):
    """The message that deltas come to, plain."""
    return accumulate(*[{'choices': [said(**one)]} for one in deltas])['choices'][0]['message']


# The deltas, and the message, but for its role.
MESSAGES = (
    ('texts are joined', [{'content': 'H'}, {'content': 'i'}], {'content': 'Hi'}),
    ('null and nothing add nothing', [{'content': 'H'}, {'content': None}, {}, {'content': 'i'}],
     {'content': 'Hi'}),
    ('an empty content is a content', [{'content': ''}], {'content': ''}),
    ('other empty texts are none', [{'reasoning_content': '', 'vendor': ''}], {'content': None}),
    ('a list that comes in pieces', [{'annotations': [1]}, {}, {'annotations': [2, 3]}],
     {'content': None, 'annotations': [1, 2, 3]}),
    ('its pieces may be empty', [{'annotations': [1]}, {'annotations': []}],
     {'content': None, 'annotations': [1]}),
    ('a list behind something else', [{'annotations': 'x'}, {'annotations': [1]}],
     {'content': None, 'annotations': [1]}),
    ('any other list is replaced', [{'vendor': [1]}, {'vendor': [2]}],
     {'content': None, 'vendor': [2]}),
    ('any other text is replaced', [{'vendor': 'a'}, {'vendor': 'b'}],
     {'content': None, 'vendor': 'b'}),
    ('but not by an empty one', [{'vendor': 'a'}, {'vendor': ''}, {'vendor': None}],
     {'content': None, 'vendor': 'a'}),
    ('zero and false are values', [{'vendor': 1, 'other': True}, {'vendor': 0, 'other': False}],
     {'content': None, 'vendor': 0, 'other': False}),
    ('an object of a vendor is replaced', [{'vendor': {'a': 1}}, {'vendor': {'b': 2}}],
     {'content': None, 'vendor': {'b': 2}}),
    ('an object that we know is merged',
     [{'audio': {'id': 'x', 'data': 'QU'}}, {'audio': {'id': 'y', 'expires_at': 7}},
      {'audio': {'data': 'JD'}}],
     {'content': None, 'audio': {'id': 'y', 'data': 'QUJD', 'expires_at': 7}}),
    ('an object behind what is none', [{'audio': {'data': None}}, {'audio': {'data': 'QUJD'}}],
     {'content': None, 'audio': {'data': 'QUJD'}}),
    ('the older call',
     [{'function_call': {'name': 'f', 'arguments': '{'}}, {'function_call': {'arguments': '}'}}],
     {'content': None, 'function_call': {'name': 'f', 'arguments': '{}'}}),
    ('half an emoji in what is replaced', [{'vendor': [HIGH], 'other': {'a': LOW}}],
     {'content': None, 'vendor': ['\ufffd'], 'other': {'a': '\ufffd'}}),
)

# The deltas' `tool_calls`, and the calls that they come to, as in the table of ToolCallTest.
SLOTS = (
    ('no index, and a known id with a name',
     [[call(None, 'a', 'f', '{"x"')],
      [call(None, *B)],
      [call(None, 'a', 'f', ':1}')]],
     [A, B]),
    ('no index, and a new id without a name',
     [[call(None, *A)], [call(None, 'b', arguments='[]')]],
     [A, ('b', None, '[]')]),
    ('one id for all, with an index for each',
     [[call(0, 'a', 'f', '{"x"')],
      [call(1, 'a', 'g', '{"y"')],
      [call(0, arguments=':1}')],
      [call(1, arguments=':2}')]],
     [A, ('a', 'g', '{"y":2}')]),
    ('an index, then none',
     [[call(0, 'a', 'f', '{"x"')], [call(arguments=':1')], [call(id='a', arguments='}')]],
     [A]),
    ('an id that comes late, with a name, goes on',
     [[call(0, name='f', arguments='{"x"')], [call(0, 'a', 'f', ':1}')]],
     [A]),
    ('a second index for a new id is its own from then on',
     [[call(0, 'a', 'f', '{"x"')],
      [call(0, 'b', 'g', '{"y"')],
      [call(0, arguments=':2}')],
      [call(0, 'a', 'f', ':1}')]],
     [A, B]),
    ('another name for the same id',
     [[call(0, 'a', 'f', '{"x"')], [call(0, 'a', 'h', ':1}')]],
     [A]),
    ('a fragment before any call', [[call(arguments='{"x":1}')]], [(None, None, '{"x":1}')]),
    ('a negative index',
     [[call(-1, 'a', 'f', '{"x"')], [call(-1, arguments=':1}')]],
     [A]),
    ('an index of zero is one',
     [[call(1, 'a', 'f', '{"x"')], [call(0, *B)], [call(1, arguments=':1}')]],
     [A, B]),
    ('in the order in which they begin', [[call(1, *A)], [call(0, *B)]],
     [A, B]),
)


class MergeTest(TestCase):
    """What the fields of chunks come to."""

    def test_fields_are_joined_extended_merged_or_replaced(self):
        for name, deltas, expected in MESSAGES:
            with self.subTest(name):
                self.assertEqual(message_of(*deltas), dict(expected, role='assistant'))

    def test_fragments_find_their_call(self):
        for name, deltas, expected in SLOTS:
            with self.subTest(name):
                calls = message_of(*[{'tool_calls': fragments} for fragments in deltas])
                self.assertEqual([(given and one['id'], one['function'].get('name'),
                                   one['function']['arguments'])
                                  for one, (given, _, _) in zip(calls['tool_calls'], expected)],
                                 expected)
                self.assertEqual(len(calls['tool_calls']), len(expected))

    def test_what_a_call_keeps_and_what_it_takes_from_its_last_fragment(self):
        found, = message_of(
            {'tool_calls': [dict(call(0, 'a', 'f', '{', type='function'), extra={'a': 1}, n=1)]},
            {'tool_calls': [dict(call(0, 'z', None, '}', type='other'), extra={'b': 2}, n=None)]}
        )['tool_calls']
        self.assertEqual(found, {'id': 'a', 'type': 'function', 'extra': {'b': 2}, 'n': 1,
                                 'function': {'name': 'f', 'arguments': '{}'}})

    def test_custom_calls(self):
        for name, fragments, expected in (
                ('with a type', [{'id': 'a', 'type': 'custom', 'custom': {'name': 'f'}},
                                 {'custom': {'input': 'x'}}], 'x'),
                ('without a type', [{'id': 'a', 'custom': {'name': 'f', 'input': 'x'}}], 'x'),
                ('a fragment without a kind', [{'index': 0, 'custom': {'name': 'f', 'input': 'x'}},
                                               {'index': 0, 'id': 'a'}], 'x'),
                ('the kind comes late', [{'index': 0, 'id': 'a'},
                                         {'index': 0, 'custom': {'name': 'f', 'input': 'x'}}], 'x'),
                ('an object for its input', [{'id': 'a', 'custom': {'name': 'f',
                                                                    'input': {'x': 1}}}],
                 '{"x": 1}')):
            with self.subTest(name):
                found, = message_of(*[{'tool_calls': [one]} for one in fragments])['tool_calls']
                self.assertEqual(found, {'id': 'a', 'type': 'custom',
                                         'custom': {'name': 'f', 'input': expected}})

    def test_a_type_of_the_servers_own_is_kept(self):
        fragment = {'id': 'a', 'type': 'builtin', 'function': {'name': 'f', 'arguments': '{}'}}
        found, = message_of({'tool_calls': [fragment]})['tool_calls']
        self.assertEqual(found['type'], 'builtin')

    def test_a_made_up_id_is_made_once_and_is_like_no_other(self):
        accumulator, door = streamlite.Accumulator(), streamlite._Door()
        accumulator.add(door.chunk({'choices': [said(tool_calls=[call(0, name='f'),
                                                                 call(1, name='g')])]}))
        ids = [[one.id for one in accumulator.completion.choices[0].message.tool_calls]
               for _ in range(2)]
        self.assertEqual(*ids)
        self.assertEqual(len(set(ids[0])), 2)
        self.assertRegex(ids[0][0], r'^call_\w{8,}$')

    def test_the_fields_of_a_choice_and_of_the_completion(self):
        found = accumulate(
            dict(delta('a'), id='x', model='m', vendor=1, flag=True, object='chunk', n=[1]),
            dict(delta('b', ''), id='', model=None, vendor=0, flag=False, n=[2]),
            {'choices': [{'index': 0, 'text': 'c', 'stop_reason': 7, 'finish_reason': 'stop'}]},
            {'choices': [{'index': 0, 'message': {'content': 'abc'}, 'stop_reason': None}]},
            {'choices': [{'index': 0, 'delta': {}, 'finish_reason': ''}]})
        self.assertEqual(found, {
            'id': 'x', 'object': 'chat.completion', 'created': 1, 'model': 'm', 'vendor': 0,
            'flag': False, 'n': [2], 'usage': None,
            'choices': [{'index': 0, 'finish_reason': 'stop', 'logprobs': None, 'stop_reason': 7,
                         'message': {'role': 'assistant', 'content': 'abc'}}]})

    def test_choices_come_in_the_order_of_their_indexes(self):
        found = accumulate(delta('c', index=2), delta('a'), delta('b', index=1))
        self.assertEqual([(one['index'], one['message']['content']) for one in found['choices']],
                         [(0, 'a'), (1, 'b'), (2, 'c')])

    def test_log_probabilities_are_extended_each_list_by_itself(self):
        def chunk(**logprobs):
            return {'choices': [dict(said(), logprobs=logprobs)]}

        found = accumulate(chunk(content=[{'token': 'a'}], refusal=None),
                           {'choices': [dict(said(), logprobs=None)]},
                           chunk(content=None, refusal=[{'token': 'r'}]),
                           chunk(content=[{'token': 'b'}]))
        self.assertEqual(found['choices'][0]['logprobs'],
                         {'content': [{'token': 'a'}, {'token': 'b'}], 'refusal': [{'token': 'r'}]})

    def test_the_count_is_the_last_that_counts_anything(self):
        one, two = {'total_tokens': 1}, {'total_tokens': 2}
        for name, usages, expected in (
                ('one', [one], one), ('the last', [one, two], two), ('null', [one, None], one),
                ('zeros', [one, {'total_tokens': 0}], one), ('empty', [one, {}], one),
                ('details alone are no count', [one, {'prompt_tokens_details': {'n': 5}}], one),
                ('any number is', [one, {'total_tokens': 0, 'cost': 0.5}],
                 {'total_tokens': 0, 'cost': 0.5}),
                ('none', [None, {}, {'total_tokens': 0}], None)):
            with self.subTest(name):
                found = accumulate(*[{'choices': [], 'usage': usage} for usage in usages])
                self.assertEqual(found['usage'], expected)
        found = accumulate({'x_groq': {'usage': two}}, {'x_groq': {'id': 'x'}}, {'x_groq': 7})
        self.assertEqual(found['usage'], two)

    def test_a_completion_is_a_copy(self):
        accumulator, door = streamlite.Accumulator(), streamlite._Door()
        chunk = door.chunk({'vendor': {'a': [1]}, 'usage': {'total_tokens': 1, 'd': {'n': 1}},
                            'choices': [said(annotations=[{'a': 1}], vendor={'a': [1]})]})
        before = copy.deepcopy(plain(chunk))
        accumulator.add(chunk)
        first = accumulator.completion
        expected = plain(first)
        for place in (first.vendor, first.usage.d, first.choices[0].message.vendor,
                      first.choices[0].message.annotations[0]):
            place['a'] = place['n'] = 'changed'
        first.vendor['a'] = first.usage.total_tokens = 'changed'
        first.choices[0].message.annotations.append('changed')
        self.assertEqual(plain(accumulator.completion), expected)
        self.assertEqual(plain(chunk), before, 'nor is the chunk changed')


class UsageTest(ReplyTestCase):

    def test_the_last_block_with_a_count_is_the_usage(self):
        first, last = [{'prompt_tokens': 9, 'completion_tokens': n, 'total_tokens': 9 + n}
                       for n in (1, 3)]
        zero = {'prompt_tokens': 0, 'completion_tokens': 0, 'total_tokens': 0}
        content, end = dict(delta('x')), {'choices': []}
        for name, chunks in (
                ('a last chunk without choices', [content, STOP, dict(end, usage=last)]),
                ('null on all others',
                 [dict(content, usage=None), dict(STOP, usage=None), dict(end, usage=last)]),
                ('null after it', [content, dict(STOP, usage=last), dict(end, usage=None)]),
                ('growing on every chunk', [dict(content, usage=first), dict(STOP, usage=last)]),
                ('zeros before it',
                 [dict(content, usage=zero), dict(STOP, usage=zero), dict(end, usage=last)]),
                ('zeros after it', [dict(content, usage=last), STOP, dict(end, usage=zero)]),
                ('nothing after it', [content, STOP, dict(end, usage=last), dict(end, usage={})]),
                ('on the chunk that finishes', [content, dict(STOP, usage=last)]),
                ('on the first chunk alone', [dict(content, usage=last), STOP]),
                ('with choices null', [content, STOP, {'choices': None, 'usage': last}]),
                ('without choices', [content, STOP, {'usage': last}]),
                ('under x_groq', [content, dict(STOP, x_groq={'id': 'req', 'usage': last})]),
                ('under x_groq, beside null',
                 [content, dict(STOP, usage=None, x_groq={'usage': last})]),
                ('twice', [content, STOP, dict(end, usage=first), dict(end, usage=last)]),
                ('odd blocks', [content, STOP, dict(end, usage=last), dict(end, usage='none'),
                                dict(end, usage=[7]),
                                dict(end, usage=7), dict(end, x_groq='x')])):
            with self.subTest(name):
                completion = self.collect(*chunks)
                self.assertEqual(completion.usage.to_dict(), last)
                self.assertText(completion, 'x')

    def test_it_is_none_where_none_came(self):
        self.assertIsNone(self.collect(*CHUNKS).usage)
        self.assertIsNone(self.collect(*[dict(chunk, usage=None) for chunk in CHUNKS]).usage)
        self.assertIsNone(self.error_of(delta('Hel'), done=False).partial.usage)

    def test_its_details_are_objects_and_unknown_counts_are_kept(self):
        usage = self.collect(delta('x'), STOP, {'choices': [], 'usage': {
            'prompt_tokens': 1, 'completion_tokens': 2, 'total_tokens': 3, 'cost': 0.25,
            'prompt_tokens_details': {'cached_tokens': 1},
            'completion_tokens_details': {'reasoning_tokens': 2}}}).usage
        self.assertEqual((usage.completion_tokens_details.reasoning_tokens,
                          usage.prompt_tokens_details.cached_tokens,
                          usage.cost), (2, 1, 0.25))


def mutable_parts(value, found=None):
    """All lists, dicts and wire objects that a wire object holds, itself included, by their ids."""
    found = {} if found is None else found
    if isinstance(value, (list, dict)):
        items = value.values() if isinstance(value, dict) else value
    elif hasattr(value, '__dict__') and type(value).__module__ == streamlite.__name__:
        items = vars(value).values()
    else:
        return found
    found[id(value)] = value
    for item in items:
        mutable_parts(item, found)
    return found


class AccumulatorTest(ReplyTestCase):

    RICH = [
        delta('Hel', role='assistant'), delta('lo', reasoning_content='h'),
        delta(reasoning_content='m', index=1),
        delta(' world', index=1),
        choice(delta={}, logprobs={'content': [{'token': 'a', 'logprob': -1}], 'refusal': None}),
        choice(delta={}, logprobs={'content': [{'token': 'b', 'logprob': -1}]}),
        delta(tool_calls=[{'index': 0, 'id': 'a', 'type': 'function',
                           'function': {'name': 'f', 'arguments': ''}}]),
        delta(tool_calls=[{'index': 0, 'function': {'arguments': '{"x":'}}]),
        delta(tool_calls=[{'index': 0, 'function': {'arguments': '1}'}}]),
        delta(audio={'id': 'x', 'data': 'QUJD'}), delta(audio={'data': 'REVG'}),
        delta(finish_reason='tool_calls'),
        delta(index=1, finish_reason='stop'),
        {'choices': [], 'usage': {'prompt_tokens': 1, 'completion_tokens': 2, 'total_tokens': 3}}]

    def test_it_makes_of_chunks_what_the_stream_makes_of_them(self):
        with self.stream(*self.RICH) as stream:
            chunks = list(stream)
        for name in ('once', 'and again, since it changes no chunk'):
            with self.subTest(name):
                accumulator = streamlite.Accumulator()
                for chunk in chunks:
                    accumulator.add(chunk)
                self.assertEqual(accumulator.completion.to_dict(), stream.completion.to_dict())
                self.assertEqual([chunk.to_dict() for chunk in chunks], self.RICH)
        self.assertIsInstance(accumulator.completion, streamlite.ChatCompletion)
        logprobs = accumulator.completion.choices[0].logprobs
        self.assertEqual([one.token for one in logprobs.content], ['a', 'b'])

    def test_the_completion_can_be_read_at_any_time_and_grows(self):
        with self.stream(*CHUNKS) as stream:
            self.assertEqual(text_of(stream.completion), '')
            seen = [text_of(stream.completion) for _ in stream]
        self.assertEqual(seen, ['Hel', 'Hello ', 'Hello world', 'Hello world'])
        accumulator, snapshots = streamlite.Accumulator(), []
        with self.stream(*self.RICH) as stream:
            for chunk in stream:
                accumulator.add(chunk)
                snapshots.append((accumulator.completion, accumulator.completion.to_json()))
                self.assertEqual(accumulator.completion.to_json(), stream.completion.to_json())
        for completion, text in snapshots:
            self.assertEqual(completion.to_json(), text,
                             'one that was read does not change any more')

    def test_the_finish_reason_is_not_there_before_it_came(self):
        with self.stream(*CHUNKS) as stream:
            seen = [stream.completion.choices[0].finish_reason for _ in stream]
        self.assertEqual(seen, [None, None, None, 'stop'])

    def test_text_in_many_fragments_takes_linear_time(self):
        piece = 'xy' * 300
        fields = {'content': piece, 'reasoning_content': piece, 'audio': {'data': piece},
                  'tool_calls': [call(0, 'a', 'f', piece)]}
        for name, value in fields.items():
            with self.stream(delta(**{name: value}), STOP) as stream:
                chunk = next(stream)

            def work():
                accumulator = streamlite.Accumulator()
                for _ in range(20000):
                    accumulator.add(chunk)
                text = accumulator.completion.to_json()
                self.assertEqual(text.count('xy'), 20000 * 300)

            with self.subTest(name):
                self.assertLinear(work)

    def test_a_completion_shares_nothing_with_what_was_handed_out_before(self):
        token = {'token': 'x', 'bytes': [1], 'logprob': -1.0,
                 'top_logprobs': [{'token': 'x', 'logprob': -1.0}]}
        call = {'index': 0, 'id': 'c', 'type': 'function', 'extra_content': {'a': [1]},
                'function': {'name': 'f', 'arguments': '{}'}}
        event = delta('x', annotations=[{'type': 'url_citation', 'url_citation': {'url': 'u'}}],
                      reasoning_details=[{'type': 'reasoning.text', 'text': 'h'}],
                      vendor={'a': [1]}, audio={'id': 'a', 'data': 'b', 'vendor': [1]},
                      tool_calls=[call])
        event['choices'][0]['logprobs'] = {'content': [token], 'refusal': [token]}
        event['choices'][0]['extra'] = [{'a': 1}]
        event.update(citations=['u'], x_groq={'id': 'r', 'usage': {'total_tokens': 2}},
                     search=[{'a': [1]}],
                     usage={'total_tokens': 3, 'prompt_tokens_details': {'cached_tokens': 1}})
        handed = {}
        with self.stream(event, event, delta(finish_reason='stop')) as stream:
            for chunk in stream:
                handed.update(mutable_parts(chunk))
                for _ in range(2):
                    parts = mutable_parts(stream.completion)
                    self.assertEqual([parts[at] for at in set(parts) & set(handed)], [])
                    handed.update(parts)
            parts = mutable_parts(stream.collect())
            self.assertEqual([parts[at] for at in set(parts) & set(handed)], [])
            first = stream.completion
            first.usage.total_tokens = 99
            first.citations.append('evil')
            first.choices[0].message.annotations[0]['url_citation']['url'] = 'evil'
            first.choices[0].logprobs.content[0].token = 'evil'
            self.assertEqual(stream.completion.usage.total_tokens, 3)
            self.assertNotIn('evil', stream.completion.to_json())
        accumulator = streamlite.Accumulator()
        for chunk in self.stream(event, delta(finish_reason='stop')):
            accumulator.add(chunk)
            parts, others = mutable_parts(accumulator.completion), mutable_parts(chunk)
            self.assertEqual([parts[at] for at in set(parts) & set(others)], [])

    def test_fragments_of_calls_that_are_no_objects_are_left_out(self):
        so_far = streamlite.Accumulator()
        calls = [None, 'x', call(0, 'a', 'f', '{}'), 7]
        so_far.add(streamlite.ChatCompletionChunk.model_validate(delta(tool_calls=calls)))
        made = so_far.completion.choices[0].message.tool_calls
        self.assertEqual([one.function.name for one in made], ['f'])

    def test_a_chunk_that_was_made_by_hand_needs_neither_delta_nor_index(self):
        accumulator, door = streamlite.Accumulator(), streamlite._Door()
        accumulator.add(door.chunk(delta('Hi')))
        for value in None, 7, {'content': 'no'}:
            bare = door.chunk(delta(finish_reason='stop'))
            bare.choices[0].delta, bare.choices[0].index = value, None
            accumulator.add(bare)
        self.assertText(accumulator.completion, 'Hi')
        self.assertEqual(accumulator.completion.choices[0].index, 0)


class GarbageTest(ReplyTestCase):
    """Whatever comes, there is a completion or an error of our own, and both can be shown."""

    SEED = 20260

    RICH = dict(
        delta('Hi', role='assistant', refusal='no', reasoning_content='hm', reasoning='hm',
              reasoning_details=[{'type': 'reasoning.text', 'text': 'hm', 'index': 0}],
              tool_calls=[{'index': 0, 'id': 'a', 'type': 'function',
                           'function': {'name': 'f', 'arguments': '{"x":'},
                           'extra_content': {'s': 't'}}],
              function_call={'name': 'f', 'arguments': '{'},
              audio={'id': 'x', 'data': 'QUJD', 'transcript': 't'},
              annotations=[{'type': 'url'}]),
        usage={'prompt_tokens': 1, 'completion_tokens': 2, 'total_tokens': 3,
               'completion_tokens_details': {'reasoning_tokens': 1}},
        x_groq={'usage': {'total_tokens': 3}}, error=None, system_fingerprint='fp')

    RICH['choices'][0]['logprobs'] = {
        'content': [{'token': 'a', 'logprob': -1, 'bytes': [1], 'top_logprobs': []}],
        'refusal': None}

    def check(self, body, way):
        """Read the body in one of four ways."""
        self.answer = stream_reply(body)
        try:
            with ask(self.client) as stream:
                if way == 0:
                    stream.collect()
                elif way == 1:
                    for text in stream.text():
                        text.encode()
                elif way == 2:
                    for piece in stream.sse():
                        piece.decode()
                else:
                    for chunk in stream:
                        self.assertIsInstance(chunk.choices, list)
                        for one in chunk.choices:
                            self.assertTrue(hasattr(one, 'finish_reason')
                                            and hasattr(one.delta, 'content'), one)
        except streamlite.APIError as error:
            str(error).encode()
            self.assertEqual(error.partial, stream.completion)
        streamlite.ChatCompletion.to_json(stream.completion).encode()
        for one in stream.completion.choices:
            for name in ('content', 'refusal', 'reasoning_content', 'reasoning'):
                (getattr(one.message, name, None) or '').encode()
            for call in one.message.tool_calls or ():
                call.function.arguments.encode()

    def test_bytes_flipped_dropped_and_doubled(self):
        rand = random.Random(self.SEED)
        good = sse(*[self.RICH] + CHUNKS)
        for number in range(180):
            body = bytearray(good)
            for _ in range(rand.choice((1, 3, 30))):
                at, kind = rand.randrange(len(body)), rand.randrange(4)
                if kind == 0:
                    body[at] = rand.randrange(256)
                elif kind == 1:
                    del body[at:at + rand.choice((1, 5, 100))]
                elif kind == 2:
                    body[at:at] = body[at:at + rand.choice((1, 20, 300))]
                else:
                    body[at:at] = rand.choice((
                        b'\n\n', b'\r', b'data: ', b'{', b'}', b'"', b'\xff', b'\\ud800', b'null',
                        b'[DONE]', b'1e999', b'\0'))
            with self.subTest(number):
                self.check(bytes(body), number % 4)

    def test_json_values_of_every_type_in_every_place(self):
        values = [None, True, 0, -1, 1.5, 10 ** 30, '', 'x', '7', '\ud800', [], [None], ['x'], [[]],
                  [{}], {}, {'x': 1},
                  {'index': {}, 'message': []}, float('nan')]
        rand = random.Random(self.SEED)
        for path in self.paths(self.RICH):
            rand.shuffle(values)
            # A value that ends a stream hides the later ones, so each way has a part of them.
            for way in range(4):
                chunks = [json.dumps(self.changed(path, value)) for value in values[way::4]]
                with self.subTest(path, way=way):
                    self.check(sse(LINES[0], *chunks + [LINES[3]]), way)

    def test_hostile_names_in_every_object(self):
        rand = random.Random(self.SEED)
        values = [None, 1, 'x', [], {}, {'x': 1}, ['x'], [{}]]
        places = [path for path in [()] + list(self.paths(self.RICH))
                  if isinstance(self.at(self.RICH, path), dict)]
        for path in places:
            for way in range(4):
                chunk = copy.deepcopy(self.RICH)
                names = [name for name in HOSTILE if name not in self.at(chunk, path)]
                for name in rand.sample(names, len(names) // 2):
                    self.at(chunk, path)[name] = rand.choice(values)
                with self.subTest(path, way=way):
                    self.check(sse(LINES[0], chunk, LINES[3]), way)

    @staticmethod
    def at(value, path):
        for key in path:
            value = value[key]
        return value

    @classmethod
    def paths(cls, value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
            value, list) else ()
        for key, item in items:
            yield path + (key,)
            yield from cls.paths(item, path + (key,))

    @classmethod
    def changed(cls, path, value):
        chunk = place = copy.deepcopy(cls.RICH)
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return chunk


# --------------------------------------------------------------------------------------------------
# Bodies: chunks, lengths and codings
# --------------------------------------------------------------------------------------------------

class FramingTest(TestCase):

    def test_every_framing_and_head_delivers_the_whole_answer(self):
        cases = {
            'chunked': stream_reply(HELLO),
            'Content-Length': stream_reply(HELLO, 'length'),
            'ended by the close': stream_reply(HELLO, 'close'),
            'HTTP/1.0': cut(b'HTTP/1.0 200 OK\r\n\r\n' + HELLO),
            'no reason phrase': cut(b'HTTP/1.1 200\r\n\r\n' + HELLO),
            'a chunk for each byte': CHUNKED_HEAD + chunked(HELLO, 1),
            'extension, zeros, capitals, trailer':
                CHUNKED_HEAD + b'000%X;name="a;b"\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n'
            % (len(HELLO), HELLO),
            'no content type': cut(head(200) + HELLO),
            'another content type': stream_reply(
                HELLO, headers={'Content-Type': 'TEXT/Plain; Charset=no-such'}),
            'a folded header and one in latin-1': cut(
                STREAM_HEAD + b'X: a\r\n b\r\nY: \xe9\r\n\r\n' + HELLO),
            'interim answers before it': b'HTTP/1.1 100 Continue\r\n\r\n' + head(102)
            + head(103, {'Link': '</x>'}) +
                                         stream_reply(HELLO),
            'comments': stream_reply(b': ping\n\n' * 200 + HEL + b':\n\n' + LO + WORLD + FINISH
                                     + DONE),
            '[DONE] without its line end': stream_reply(FINISHED + b'data: [DONE]', 'close'),
            'finish_reason without its blank line': stream_reply(FINISHED.rstrip(), 'close'),
            'no [DONE]': stream_reply(FINISHED, 'close'),
        }
        for name, result in outcomes({name: [script] for name, script in cases.items()}):
            with self.subTest(name):
                self.assertEqual(result.result, 'Hello world')

    def test_a_bad_chunk_ends_the_stream_after_what_came_before_it(self):
        good = begun(HEL) + chunked(LO, last=False)
        rest = chunked(WORLD)[4:]
        sizes = [b'-5', b'', b'<html>']
        cases = {size: good + size + b'\r\n' + rest for size in sizes}
        cases.update({
            'a size that ends in LF': good + b'5\n' + rest,
            'a chunk longer than it says': good + b'3\r\nabcdef\r\n',
        })
        cases = {name: cut(answer) for name, answer in cases.items()}
        cases['an endless size'] = flood(good, b'0' * 500, 1 << 27)
        cases['an endless extension'] = flood(good + b'5;', b'x' * 500, 1 << 27)
        for name, script in cases.items():
            with self.subTest(name), served(script) as (server, asker), self.assertPrompt():
                self.assertBroken(asker, 'Hello ')

    def test_a_size_line_that_comes_byte_by_byte_is_not_searched_anew_for_each(self):
        class Received:  # what a connection has received: one byte at a time
            ended, fault = False, None

            def __init__(self, data):
                self.data, self.at = data, 0

            @property
            def ahead(self):
                self.at += 1
                return self.data[self.at - 1:self.at]

            @ahead.setter
            def ahead(self, data):
                pass

        def work():
            body = b'1;' + b'x' * 130000 + b'\r\n!\r\n0\r\n\r\n'
            self.assertEqual(b''.join(streamlite._unchunked(Received(body))), b'!')

        with mock.patch.object(streamlite, 'MAX_CHUNK_LINE', 1 << 17):
            self.assertLinear(work)


class CodingTest(TestCase):

    def test_gzip_and_deflate_are_undone_event_by_event(self):
        def speak(coding, window, seen):
            def script(peer):
                peer.send(head(200, {'Content-Encoding': coding, 'Transfer-Encoding': 'chunked'}))
                packer = zlib.compressobj(9, zlib.DEFLATED, window)
                for event in HEL, LO, WORLD, FINISH + DONE:
                    peer.send(chunked(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH),
                                      last=False))
                    seen.acquire(timeout=LONG)  # the client has this event before the next is sent
                peer.send(chunked(packer.flush()))
            return script

        for coding, window in ('gzip', 31), ('deflate', 15), ('deflate', -15), ('x-gzip', 31):
            seen = threading.Semaphore(0)
            with self.subTest(coding, window=window), Server(speak(coding, window, seen)) as server:
                with client(server, timeout=PROMPT) as asker, ask(asker) as stream:
                    texts = []
                    for text in stream.text():
                        texts.append(text)
                        seen.release()
                    self.assertEqual(texts, ['Hel', 'lo ', 'world'])
                    seen.release()

    def test_another_coding_is_named(self):
        for coding in ('br', 'zstd', 'x-foo'):
            with self.subTest(coding):
                result = outcome([stream_reply(HELLO, headers={'Content-Encoding': coding})],
                                 max_retries=2)
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertSays(result.result, coding)
                self.assertEqual(len(result.requests), 1)

    def test_a_coding_that_is_a_lie_is_our_error(self):
        for coding in 'gzip', 'deflate':
            result = outcome([stream_reply(HELLO, headers={'Content-Encoding': coding})]).result
            self.assertIsInstance(result, streamlite.APIError)
        self.assertEqual(outcome(
            [stream_reply(HELLO, headers={'Content-Encoding': 'identity'})]).result, 'Hello world')

    def test_what_compresses_well_by_right_is_no_bomb(self):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        parts = [packer.compress(sse(delta('word '), done=False)) + packer.flush(zlib.Z_SYNC_FLUSH)
                 for _ in range(3000)]
        parts.append(packer.compress(sse(delta(finish_reason='stop'))) + packer.flush())
        fields = {'Content-Encoding': 'gzip', 'Connection': 'close'}
        self.assertEqual(outcome([head(200, fields) + b''.join(parts)]).result, 'word ' * 3000)
        text = ' '.join('The quick brown fox %d.' % number for number in range(4000))
        self.assertEqual(outcome([packed_reply(sse(delta(text, 'stop')))]).result, text)
        small = sse(*[delta('a')] * 400 + [delta('b', 'stop')])
        self.assertEqual(outcome([packed_reply(small)]).result, 'a' * 400 + 'b')


NEXT = b'HTTP/1.1 200 OK\r\n'  # What follows a body on its connection.

# A head, and the bytes of a body as they are sent: framing and content in turns.
FRAMINGS = (
    ('a length', head_of(length=5), [b'', b'Hello']),
    ('a length of 0', head_of(length=0), [b'']),
    ('one chunk', head_of(chunked=True), [b'5\r\n', b'Hello', b'\r\n0\r\n\r\n']),
    ('two chunks', head_of(chunked=True),
     [b'2\r\n', b'He', b'\r\n3\r\n', b'llo', b'\r\n0\r\n\r\n']),
    ('no chunk', head_of(chunked=True), [b'0\r\n\r\n']),
    ('sizes of two digits', head_of(chunked=True),
     [b'1a\r\n', b'abcdefghijklmnopqrstuvwxyz', b'\r\n0\r\n\r\n']),
    ('capitals and zeros', head_of(chunked=True),
     [b'0000000000A\r\n', b'0123456789', b'\r\n000\r\n\r\n']),
    ('blanks behind the size', head_of(chunked=True), [b'5 \t\r\n', b'Hello', b'\r\n0 \r\n\r\n']),
    ('extensions', head_of(chunked=True),
     [b'2;a\r\n', b'He', b'\r\n3 ; a="b;c"\r\n', b'llo', b'\r\n0;end\r\n\r\n']),
    ('a long extension', head_of(chunked=True),
     [b'5;' + b'x' * 100 + b'\r\n', b'Hello', b'\r\n0\r\n\r\n']),
    ('trailers', head_of(chunked=True), [b'5\r\n', b'Hello', b'\r\n0\r\nX: 1\r\nY: 2\r\n\r\n']),
    ('trailers that end in LF', head_of(chunked=True), [b'5\r\n', b'Hello', b'\r\n0\r\nX: 1\n\n']),
    ('content that looks like framing', head_of(chunked=True),
     [b'9\r\n', b'\r\n0\r\n\r\n5\r', b'\r\n0\r\n\r\n']),
)
CLOSED = head_of()  # The body ends with its connection.

GOOD = b'5\r\nHello'
BAD_SIZES = tuple((size, GOOD + b'\r\n' + size + b'\r\n') for size in (
    b'-5', b'+5', b'0x5', b'5_0', b'5 5', b' 5', b'\t5', b'', b'g', b'5g', b'5,5', b'\xb2',
    b'5\0', b'"5"', b'F' * 16, b'0' * 31 + b'5', b'9' * 40, b'<html>')) + (
    ('a size that ends in LF', GOOD + b'\r\n5\nHello\r\n'),
    ('a size that ends in CR', GOOD + b'\r\n5\rHello\r\n'),
    ('an extension with CR in it', GOOD + b'\r\n5;a\rb\r\n'),
    ('a chunk longer than its size', GOOD + b'Hello\r\n'),
    ('a chunk longer by a letter', GOOD + b'!\r\n0\r\n\r\n'),
    ('a chunk that ends in LF', GOOD + b'\n0\r\n\r\n'),
    ('a chunk that ends in CR', GOOD + b'\r0\r\n\r\n'),
    ('a blank line behind a chunk', GOOD + b'\r\n\r\n0\r\n\r\n'),
)


class FramingStageTest(TestCase):

    def test_every_framing_at_every_split(self):
        for name, head, parts in FRAMINGS:
            encoded, body = b''.join(parts), b''.join(parts[1::2])
            with self.subTest(name):
                for reads in splits(encoded):
                    wire = Wire(*reads + [NEXT])
                    drained = drain(streamlite._framed(wire, head), wire)
                    self.assertEqual((b''.join(drained.pieces), drained.error), (body, None), reads)
                    # What is not its own is left, and not even asked for.
                    self.assertEqual((wire.rest, wire.reads[-1:]), (NEXT, [NEXT]), reads)

    def test_a_body_that_is_there_ends_without_a_look_at_the_connection(self):
        for name, head, parts in FRAMINGS:
            for following in b'', NEXT:
                with self.subTest(name, following=following):
                    wire = Wire(silent=True)
                    wire.ahead = b''.join(parts) + following
                    pieces = list(streamlite._framed(wire, head))
                    self.assertEqual(b''.join(pieces), b''.join(parts[1::2]))
                    self.assertNotIn(b'', pieces)
                    self.assertEqual(wire.ahead, following)

    def test_what_has_come_is_handed_out_at_once(self):
        for name, head, parts in FRAMINGS:
            sent, body = b'', b''
            for number, one in enumerate(parts):
                sent += one
                body += one if number % 2 else b''
                with self.subTest(name, sent=sent):
                    wire = Wire(silent=True)
                    wire.ahead = sent
                    pieces = list(itertools.islice(streamlite._framed(wire, head), 1))
                    self.assertEqual(b''.join(pieces), body)

    def test_an_end_that_comes_too_early_is_an_error_after_what_came_before_it(self):
        for name, head, parts in FRAMINGS:
            arrived, encoded = [b''], b''.join(parts)
            for number, one in enumerate(parts):
                for at in range(len(one)):
                    arrived.append(arrived[-1] + (one[at:at + 1] if number % 2 else b''))
            for fault, kind in (None, streamlite._BrokenReply), (RESET, ConnectionResetError):
                with self.subTest(name, fault=fault):
                    for size, body in enumerate(arrived[:-1]):
                        wire = Wire(encoded[:size], fault=fault)
                        drained = drain(streamlite._framed(wire, head), wire)
                        self.assertEqual((b''.join(drained.pieces), type(drained.error)),
                                         (body, kind), encoded[:size])

    def test_a_body_without_framing_ends_with_its_connection(self):
        for reads in splits(b'Hello'):
            for fault in None, RESET:
                wire = Wire(*reads, fault=fault)
                drained = drain(streamlite._framed(wire, CLOSED), wire)
                self.assertEqual((b''.join(drained.pieces), drained.error), (b'Hello', fault))

    def test_an_error_says_how_much_is_missing(self):
        wire = Wire(b'Hello')
        self.assertSays(drain(streamlite._framed(wire, head_of(length=12)), wire).error, ' 7 bytes')

    def test_a_bad_size_is_an_error_at_once_and_after_what_came_before_it(self):
        for name, encoded in BAD_SIZES:
            with self.subTest(name):
                for reads in splits(encoded):
                    # Nothing follows: whoever waits for more than the bad line waits in vain.
                    wire = Wire(*reads, silent=True)
                    drained = drain(streamlite._framed(wire, head_of(chunked=True)), wire)
                    self.assertEqual((b''.join(drained.pieces), type(drained.error)),
                                     (b'Hello', streamlite._BrokenReply), reads)
        for encoded in b'\r\n5\r\nHello\r\n', b'\n5\r\nHello\r\n', b' 5\r\nHello\r\n', b'HTTP/1.1':
            wire = Wire(encoded, silent=True)
            with self.subTest('the first', encoded=encoded):
                drained = drain(streamlite._framed(wire, head_of(chunked=True)), wire)
                self.assertIs(type(drained.error), streamlite._BrokenReply)

    def test_what_never_ends_is_an_error_before_it_is_large(self):
        line, most = GOOD + b'\r\n', streamlite.MAX_CHUNK_LINE
        for name, start, piece, limit in (
                ('a size', line, b'0' * 500, 40),
                ('a size with blanks', line + b'5', b' ' * 500, most),
                ('an extension', line + b'5;', b'x' * 500, most),
                ('one in large reads', line + b'5;', b'x' * 20000, most),
                ('a trailer', line + b'0\r\nX: ', b'x' * 8000, streamlite.MAX_HEADERS),
                ('trailers', line + b'0\r\n', b'X: 1\r\n' * 1000, streamlite.MAX_HEADERS)):
            with self.subTest(name):
                wire = Wire(start, *[piece] * 100, silent=True)
                drained = drain(streamlite._framed(wire, head_of(chunked=True)), wire)
                self.assertIs(type(drained.error), streamlite._BrokenReply)
                self.assertEqual(b''.join(drained.pieces), b'Hello')
                self.assertLessEqual((100 - len(wire.reads)) * len(piece), limit + len(piece))

    def test_a_line_as_long_as_is_allowed_is_none_of_that(self):
        for name, encoded in (
                ('an extension', b'5;' + b'x' * (streamlite.MAX_CHUNK_LINE - 5)
                 + b'\r\nHello\r\n0\r\n\r\n'),
                ('zeros', b'0' * 16 + b'5\r\nHello\r\n' + b'0' * 16 + b'\r\n\r\n'),
                ('a trailer', b'5\r\nHello\r\n0\r\nX: ' + b'x' * 262000 + b'\r\n\r\n')):
            for size in 1 if len(encoded) < 20000 else 1000, 1 << 20:
                with self.subTest(name, size=size):
                    wire = Wire(*[encoded[at:at + size] for at in range(0, len(encoded), size)])
                    drained = drain(streamlite._framed(wire, head_of(chunked=True)), wire)
                    self.assertEqual((b''.join(drained.pieces), drained.error), (b'Hello', None))

    def test_many_chunks_of_one_read_are_one_piece(self):
        wire = Wire(silent=True)
        wire.ahead = chunked(b'x' * 1000, 7)
        self.assertEqual(list(streamlite._framed(wire, head_of(chunked=True))), [b'x' * 1000])


CODINGS = (('gzip', 31), ('x-gzip', 31), ('deflate', 15), ('deflate', -15))


def inflate(reads, coding='gzip'):
    return drain(streamlite._inflated(iter(reads), head_of(coding=coding)))


class CodingStageTest(TestCase):

    TEXT = b'data: {"text": "Hello, world: Hello, world"}\n\n'

    def test_every_coding_at_every_split(self):
        for coding, window in CODINGS:
            encoded = packed(self.TEXT, window)
            with self.subTest(coding, window=window):
                for reads in splits(encoded):
                    drained = inflate(reads, coding)
                    self.assertEqual((b''.join(drained.pieces), drained.error), (self.TEXT, None),
                                     reads)
                    # What says "nothing yet" passes, each time.
                    self.assertEqual(drained.pieces.count(b''), reads.count(b''), reads)

    def test_deflate_of_every_header_and_of_none(self):
        for level, bits in itertools.product(range(10), range(9, 16)):
            packer = zlib.compressobj(level, zlib.DEFLATED, bits)
            encoded = packer.compress(self.TEXT) + packer.flush()
            drained = inflate([encoded], 'deflate')
            with self.subTest(encoded[:2]):
                self.assertEqual((b''.join(drained.pieces), drained.error), (self.TEXT, None))
        # Without a header the first two bytes may be any, also half of what makes a header one.
        texts = [b'%d %s' % (number, self.TEXT) for number in range(400)]
        alike = [text for text in texts
                 if int.from_bytes(packed(text, -15)[:2], 'big') % 31 == 0][:3]
        self.assertTrue(alike)
        for text in alike:
            self.assertEqual(b''.join(inflate([packed(text, -15)], 'deflate').pieces), text)

    def test_no_coding_is_left_alone(self):
        for reads in [b'a', b'', b'b'], [packed(b'x')]:
            self.assertEqual(inflate(reads, coding=''), Drained(reads, None))

    def test_each_event_comes_out_of_the_read_that_holds_it(self):
        for coding, window in CODINGS:
            packer = zlib.compressobj(9, zlib.DEFLATED, window)
            events = [b'data: %d\n\n' % number for number in range(5)]
            reads = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in events]
            with self.subTest(coding, window=window):
                body = streamlite._inflated(iter(reads + [packer.flush()]), head_of(coding=coding))
                self.assertEqual(list(body), events)

    def test_it_comes_in_pieces_of_a_bounded_size(self):
        text = b'0123456789abcdef' * 40000  # 640 KB, of 3 KB
        drained = inflate([packed(text)])
        self.assertEqual(b''.join(drained.pieces), text)
        self.assertLessEqual(max(map(len, drained.pieces)), 65536)

    def test_a_cut_is_an_error_after_what_came_before_it(self):
        for coding, window in CODINGS:
            encoded = packed(self.TEXT, window)
            for end in range(len(encoded)):
                drained = inflate([encoded[at:at + 1] for at in range(end)], coding)
                with self.subTest(coding, window=window, end=end):
                    self.assertIs(type(drained.error), streamlite._BrokenReply)
                    self.assertTrue(self.TEXT.startswith(b''.join(drained.pieces)))
            drained = inflate([encoded[at:at + 1] for at in range(len(encoded) - 1)], coding)
            if window != -15:  # What checks the text comes behind all of it.
                self.assertEqual(b''.join(drained.pieces), self.TEXT)

    def test_a_fault_of_the_body_passes(self):
        def body():
            yield packed(self.TEXT)[:-4]
            raise RESET
        drained = inflate(body())
        self.assertEqual((b''.join(drained.pieces), drained.error), (self.TEXT, RESET))

    def test_what_is_no_such_coding_is_an_error(self):
        wrong = bytearray(packed(self.TEXT))
        wrong[-8] ^= 1  # Of the checksum.
        for name, body, coding, words in (
                ('text', self.TEXT, 'gzip', 'cannot be decompressed'),
                ('text', self.TEXT, 'deflate', 'cannot be decompressed'),
                ('a wrong checksum', bytes(wrong), 'gzip', 'cannot be decompressed'),
                ('raw deflate as gzip', packed(self.TEXT, -15), 'gzip', 'cannot be decompressed'),
                ('half a header', b'\x1f', 'gzip', 'too early'), ('nothing', b'', 'gzip', 'early')):
            for reads in [body], [body[at:at + 1] for at in range(len(body))]:
                with self.subTest(name, coding=coding):
                    error = inflate(reads, coding).error
                    self.assertIs(type(error), streamlite._BrokenReply)
                    self.assertSays(error, words)

    def test_padding_behind_the_end_is_ignored(self):
        for padding in b'\0' * 512, b'junk':
            encoded = packed(self.TEXT)
            for reads in [encoded + padding], [encoded, b'', padding, b'']:
                drained = inflate(reads)
                self.assertEqual((b''.join(drained.pieces), drained.error), (self.TEXT, None))

    def test_what_grows_out_of_proportion_is_an_error_soon(self):
        bomb = packed(b'0' * (4 << 20))  # 4 MiB, of 4 KiB
        for size in 100, len(bomb):
            drained = inflate([bomb[at:at + size] for at in range(0, len(bomb), size)])
            with self.subTest(size):
                self.assertIs(type(drained.error), streamlite._BrokenReply)
                self.assertSays(drained.error, 'proportion')
                self.assertLess(len(b''.join(drained.pieces)),
                                (1 << 20) + streamlite.MAX_RATIO * len(bomb) + 65536)
        good = b'0' * (1 << 20)  # The first MiB may be made of anything.
        self.assertEqual(b''.join(inflate([packed(good)]).pieces), good)
        noise = bytes(random.Random(1).getrandbits(8) for _ in range(60000))
        with mock.patch.object(streamlite, 'MAX_INFLATED', 50000):
            drained = inflate([packed(noise)])
            self.assertIs(type(drained.error), streamlite._BrokenReply)
            self.assertLess(len(b''.join(drained.pieces)), 50001)

    def test_what_grows_in_proportion_passes_whatever_its_size(self):
        text = b''.join(b'data: {"number": %d}\n\n' % number for number in range(200000))
        encoded = packed(text)
        self.assertGreater(len(text), 4 << 20)
        for size in 1024, len(encoded):
            reads = [encoded[at:at + size] for at in range(0, len(encoded), size)]
            drained = inflate(reads)
            self.assertIsNone(drained.error)
            self.assertEqual(b''.join(drained.pieces), text)

    def test_nothing_at_all_is_two_bytes_in_raw_deflate(self):
        for reads in [packed(b'', -15)], [b'\x03', b'\0']:
            drained = inflate(reads, 'deflate')
            self.assertEqual((b''.join(drained.pieces), drained.error), (b'', None))

    def test_padding_behind_the_end_is_not_collected(self):
        def body():
            yield packed(self.TEXT)
            for _ in range(100):
                yield bytes(65536)

        tracemalloc.start()
        try:
            drained = drain(streamlite._inflated(body(), head_of(coding='gzip')))
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertEqual((b''.join(drained.pieces), drained.error), (self.TEXT, None))
        self.assertLess(most, 1 << 20)


class PipelineTest(TestCase):

    def test_all_stages_together_at_every_split(self):
        body = sse(delta('H'), delta('i'), STOP)
        for coding, window in (('', 0),) + CODINGS:
            content = packed(body, window) if coding else body
            for framing, head, encoded in (
                    ('chunked', head_of(chunked=True, coding=coding), chunked(content, 50)),
                    ('length', head_of(length=len(content), coding=coding), content),
                    ('close', head_of(coding=coding), content)):
                with self.subTest(framing, coding=coding, window=window):
                    for at in range(0, len(encoded), 3):
                        read = self.read(head, encoded[:at], b'', encoded[at:])
                        self.assertEqual(read, (['H', 'i', None], None), at)

    @staticmethod
    def read(head, *reads):
        """The texts, and what went wrong behind the answer."""
        wire, texts = Wire(*reads), []
        body = streamlite._inflated(streamlite._framed(wire, head), head)
        answer = streamlite._answer(streamlite._payloads(body, str), streamlite._Asked(), Clock())
        while True:
            try:
                chunk = next(answer)
            except StopIteration as end:
                return texts, end.value.trouble
            if chunk is None:
                wire.fill()
            else:
                texts.append(chunk.choices[0].delta.content)


# --------------------------------------------------------------------------------------------------
# Transport: heads, time, secrets, connections, redirects, proxies and TLS
# --------------------------------------------------------------------------------------------------

class HeadTest(TestCase):

    def test_whatever_is_no_http_is_our_connection_error(self):
        lengths = b'Content-Length: %d\r\nContent-Length: %d\r\n' % (len(HELLO), len(FINISHED))
        cases = {
            'HTTP/0.9': b'data: hello\n\n',
            'garbage': b'\x00\x01\x02garbage\r\n\r\n',
            'an HTTP/2 frame': b'\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64',
            'a status line of a megabyte': b'HTTP/1.1 200 ' + b'x' * 1000000,
            'a status of letters': b'HTTP/1.1 abc OK\r\n\r\n' + HELLO,
            'a status of two digits': b'HTTP/1.1 20 OK\r\n\r\n' + HELLO,
            'another protocol': b'SSH-2.0-OpenSSH_9.6\r\n',
            'an end in the head': b'HTTP/1.1 200 OK\r\nContent-Ty',
            'nothing': b'',
            '101': head(101, {'Upgrade': 'h2c'}),
            'two lengths': b'HTTP/1.1 200 OK\r\n' + lengths + b'\r\n' + HELLO,
        }
        for name, answer in cases.items():
            with self.subTest(name), served(cut(answer)) as (server, asker):
                error = self.assertBroken(asker, '')
                self.assertSays(error, '127.0.0.1:%d' % server.port)

    def test_a_doubtful_head_is_our_error_or_no_error(self):
        start = b'HTTP/1.1 200 OK\r\n'
        cases = {
            'a negative length': start + b'Content-Length: -1\r\n\r\n' + HELLO,
            'a length of letters': start + b'Content-Length: abc\r\n\r\n' + HELLO,
            'a length of other digits': start + b'Content-Length: \xb2\r\n\r\n' + HELLO,
            'length and chunked': start + b'Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n'
            + chunked(HELLO),
            'a header without a colon': start + b'nonsense\r\n\r\n' + HELLO,
            'NUL': start + b'X: a\x00b\r\n\r\n' + HELLO,
            'bare LF': start.replace(b'\r', b'') + b'X: 1\n\n' + HELLO,
            'chunks of another coding': start + b'Transfer-Encoding: gzip, chunked\r\n\r\n'
            + chunked(HELLO),
        }
        for name, result in outcomes({name: [cut(answer)] for name, answer in cases.items()}):
            with self.subTest(name):
                if isinstance(result.result, str):
                    self.assertEqual(result.result, 'Hello world')
                else:
                    self.assertIsInstance(result.result, streamlite.APIConnectionError)

    def test_an_answer_that_comes_before_the_request_was_read(self):
        def script(peer):
            peer.send(error_reply(413, {'Connection': 'close'}, 'the prompt is too long'))
            peer.close()

        class Early(Peer):
            def read_request(self):
                self._fill(lambda: b'\r\n\r\n' in self._buffer)  # the head alone
                return Request(self._buffer.partition(b'\r\n\r\n')[0], b'', self.number)

        with served(script, peer=Early) as (server, asker):
            with self.assertRaises(streamlite.APIError) as caught:
                ask(asker, messages=chat('x' * 20000000))
            # Other systems may throw the answer away when the reset comes.
            if sys.platform.startswith('linux'):
                self.assertSays(caught.exception, 413, 'too long')

    def test_a_head_with_faults_is_refused_and_no_text_is_lost_without_a_word(self):
        one, two, three = (sse(delta(text), done=False) for text in ('one ', 'two ', 'three'))
        end = sse(delta(finish_reason='stop'))
        pieces = one, two[:2], two[2:], three
        body = b''.join(chunked(piece, last=False) for piece in pieces) + chunked(end)
        coding = b'Transfer-Encoding: chunked\r\n'
        heads = {
            'two Transfer-Encodings': b'Transfer-Encoding: identity\r\n' + coding,
            'two, the other way round': coding + b'Transfer-Encoding: identity\r\n',
            'a line without a colon': b'X-Broken\r\n' + coding,
            'a blank before the colon': b'Transfer-Encoding : chunked\r\n',
            'a tab before the colon': b'Transfer-Encoding\t: chunked\r\n',
            'a blank in another name': b'X Broken: 1\r\n' + coding,
            'a name that is empty': b': 1\r\n' + coding,
            'a line of one blank': b' \r\n' + coding,
        }
        for name, lines in heads.items():
            with self.subTest(name):
                result = outcome([cut(STREAM_HEAD + lines + b'\r\n' + body)]).result
                if not isinstance(result, streamlite.APIError):
                    self.assertEqual(result, 'one two three')
        for name in 'two Transfer-Encodings', 'a line without a colon', 'a blank before the colon':
            with self.subTest(name + ' is an error'):
                result = outcome([cut(STREAM_HEAD + heads[name] + b'\r\n' + body)]).result
                self.assertIsInstance(result, streamlite.APIError)
                self.assertEqual(text_of(result.partial), '')

    def test_every_interim_answer_is_skipped_and_none_puts_the_next_one_out_of_step(self):
        other = stream_reply(sse(delta('other', 'stop')))
        for status in 100, 102, 103, 104, 110, 150, 199:
            for name, fields in (('bare', {}), ('a length', {'Content-Length': 7}),
                                 ('chunked', {'Transfer-Encoding': 'chunked'})):
                with self.subTest(status, fields=name):
                    first = head(status, fields) * 2 + stream_reply(HELLO)
                    with served(first, other) as (server, asker):
                        self.assertText(ask(asker), 'Hello world')
                        self.assertText(ask(asker), 'other')
        with self.subTest(101):
            result = outcome([head(101, {'Upgrade': 'x'}) + stream_reply(HELLO)]).result
            self.assertIsInstance(result, streamlite.APIError)


class TimeTest(TestCase):

    def test_no_byte_but_an_event_feeds_the_clock(self):
        chunk, comment = begun(HEL), chunked(b': ping\n\n', last=False)
        cases = {  # name: script, text that came
            'no answer': (stall(), ''),
            'a head that drips': (pace(b'x', b'HTTP/1.1 200 OK\r\nX: '), ''),
            'headers for ever': (pace(b'X: 1\r\n', b'HTTP/1.1 200 OK\r\n'), ''),
            '100 Continue for ever': (pace(b'HTTP/1.1 100 Continue\r\n\r\n'), ''),
            'nothing after the head': (stall(CHUNKED_HEAD), ''),
            'comments for ever': (pace(comment, CHUNKED_HEAD), ''),
            'blank lines for ever': (pace(b'\n', head(200)), ''),
            'comments after an event': (pace(comment, chunk), 'Hel'),
            'nothing after an event': (stall(chunk), 'Hel'),
            'half an event': (stall(begun(HEL + LO[:-5])), 'Hel'),
            'an event that drips': (pace(chunked(b'x', last=False), begun(HEL + b'data: ')), 'Hel'),
            'a chunk size that drips': (pace(b'0', chunk, 0.1), 'Hel'),
        }
        results = outcomes({name: [script] for name, (script, _) in cases.items()}, timeout=MEDIUM)
        for name, result in results:
            with self.subTest(name):
                self.assertIsInstance(result.result, streamlite.APITimeoutError)
                # On a busy machine the text may not have come in time.
                self.assertIn(text_of(result.result.partial), ('', cases[name][1]))
                self.assertLess(result.seconds, PROMPT)

    def test_a_deadline_ends_a_call_whatever_goes_on(self):
        event = chunked(HEL, last=False)
        cases = {
            'events for ever': [pace(event, CHUNKED_HEAD)],
            'an answer that never comes': [stall()],
            'interim answers': [pace(head(103))],
            'a status line': [pace(b'x', b'HTTP/1.1 200 ')],
            'an error body': [pace(b'x', head(500, {'Content-Length': 1 << 20}))],
            'the body of a redirect': [
                pace(b'x', head(307, {'Location': '/', 'Content-Length': 1 << 20}))],
            'an extension': [pace(b'x', CHUNKED_HEAD + b'5;')],
            'a trailer': [pace(b'X: 1\r\n', CHUNKED_HEAD + event + b'0\r\n')],
            'gzip': [pace(packed(HELLO)[:1], head(200, GZIP) + packed(HELLO)[:20])],
            'a wait between attempts': [error_reply(503, {'Retry-After': '30'})],
            'attempts for ever': [cut(b'')],
        }
        for name, result in outcomes(cases, deadline=MEDIUM, max_retries=1000):
            with self.subTest(name):
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertLess(result.seconds, PROMPT)

    def test_what_came_before_a_time_out_is_kept(self):
        with served(stall(WAITING)) as (_, asker), ask(asker) as stream:
            self.assertEqual(next(stream.text()), 'Hel')
            hasten(stream)
            with self.assertRaises(streamlite.APITimeoutError) as caught, self.assertPrompt():
                stream.collect()
            self.assertEqual(text_of(caught.exception.partial), 'Hello ')

    def test_a_list_of_models_that_is_lost_is_asked_for_again(self):
        lost = cut(head(200, {'Content-Length': 1000}) + b'{"data": ')
        with served(lost, reply(200, {}, MODELS), max_retries=1) as (server, asker), no_waits():
            self.assertEqual([model.id for model in asker.models.list()], ['one', 'two'])
            self.assertEqual(len(server.requests), 2)
        with served(lost, max_retries=1) as (server, asker), no_waits():
            with self.assertRaises(streamlite.APIConnectionError) as caught:
                asker.models.list()
            self.assertEqual((caught.exception.attempts, len(server.requests)), (2, 2))

    def test_timeouts_come_as_a_number_a_pair_or_an_object(self):
        class Timeout:
            connect, read = LONG, SHORT

        def of_client(timeout):
            with served(stall(), timeout=timeout) as (_, asker), self.assertPrompt():
                self.assertBroken(asker, '', streamlite.APITimeoutError)

        def of_call(timeout):
            with served(stall()) as (_, asker), self.assertPrompt():
                self.assertBroken(asker, '', streamlite.APITimeoutError, timeout=timeout)

        at_once(*[lambda way=way, timeout=timeout: way(timeout) for way in (of_client, of_call)
                  for timeout in (SHORT, (LONG, SHORT), Timeout())])

    def test_the_callers_own_time_does_not_count(self):
        # Whoever counts it finds the time over as soon as the text is asked for again.
        now, passed = time.monotonic, []
        with mock.patch('time.monotonic', lambda: now() + sum(passed)):
            with served(stream_reply(HELLO)) as (_, asker), ask(asker) as stream:
                text = next(stream.text())
                passed.append(2 * LONG)
                self.assertEqual(text + ''.join(stream.text()), 'Hello world')

    def test_late_heads_do_not_add_up(self):
        # If each head had its own time, the redirects would end with another error, and the body of
        # an error would be waited for with what its head left.
        now, passed = time.monotonic, []

        def late(answer, then=Peer.wait_closed):
            return lambda peer: (passed.append(0.6 * LONG), peer.send(answer), then(peer))

        redirects = late(reply(307, {'Location': PATH}), then=lambda peer: None)
        stalled = late(head(503, {'Content-Length': 1000}))
        with mock.patch('time.monotonic', lambda: now() + sum(passed)), mock.patch.object(
                streamlite, 'PATIENCE', SHORT):
            redirected, refused = [outcome([script]) for script in (redirects, stalled)]
        self.assertIs(type(redirected.result), streamlite.APITimeoutError)
        self.assertEqual(len(redirected.requests), 2)
        self.assertIs(type(refused.result), streamlite.InternalServerError)

    def test_no_time_is_too_long(self):
        rest = sse(delta('lo world'), STOP)
        for options in ({'timeout': 1e12}, {'timeout': (1e12, 1e15)}, {'timeout': None},
                        {'deadline': 1e15}):
            script = lambda peer: (peer.send(begun(HEL)), peer.wait_closed(0.01),
                                   peer.send(chunked(rest)))
            with self.subTest(options):
                self.assertEqual(outcome([script], **options).result, 'Hello world')

    def test_a_request_that_nobody_reads(self):
        with deaf_server() as server, client(server, timeout=SHORT) as asker, self.assertPrompt():
            with self.assertRaises(streamlite.APITimeoutError):
                ask(asker, messages=chat('x' * 12000000))

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_a_handshake_that_never_ends(self):
        with Server() as server:  # which waits for the end of a request that never comes
            with client(server, base_url='https://localhost:%d/v1' % server.port,
                        timeout=(SHORT, LONG)) as asker:
                with self.assertPrompt():
                    self.assertBroken(asker, '', streamlite.APITimeoutError)

    @unittest.skipUnless(sys.platform.startswith('linux'), 'other systems queue more connections')
    def test_an_address_that_accepts_no_connection(self):
        with contextlib.ExitStack() as stack:
            listener, *waiting = [stack.enter_context(contextlib.closing(socket.socket()))
                                  for _ in range(3)]
            listener.bind(('127.0.0.1', 0))
            listener.listen(0)
            for sock in waiting:  # fill its queue
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            url = 'http://127.0.0.1:%d/v1' % listener.getsockname()[1]
            with client(None, base_url=url, timeout=(SHORT, LONG)) as asker, self.assertPrompt():
                self.assertBroken(asker, '', streamlite.APITimeoutError)
            # The last address gets all the time that there is, loopback or not.
            with client(None, base_url=url, timeout=(MEDIUM, LONG)) as asker:
                error = self.assertBroken(asker, '', streamlite.APITimeoutError)
                self.assertGreaterEqual(error.elapsed, MEDIUM)
            # Where there is another address, loopback gets a moment: else both share the time.
            server = stack.enter_context(Server())
            addresses = [socket.getaddrinfo('127.0.0.1', port, 0, socket.SOCK_STREAM)[0]
                         for port in (listener.getsockname()[1], server.port)]
            with mock.patch('socket.getaddrinfo', return_value=addresses):
                url = 'http://localhost/v1'
                with client(None, base_url=url, timeout=LONG) as asker, self.assertPrompt():
                    self.assertText(ask(asker), 'Hello world')

    def test_an_interrupt_while_it_connects_tries_no_other_address(self):
        tried = []

        def connect(sock, address):
            tried.append(address)
            raise Interrupt

        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, '', ('127.0.0.1', port))
                     for port in (1, 2)]
        with mock.patch('socket.getaddrinfo', return_value=addresses):
            with mock.patch.object(socket.socket, 'connect', connect):
                with client(None, base_url='http://localhost/v1') as asker:
                    self.assertRaises(Interrupt, ask, asker)
        self.assertEqual(len(tried), 1)

    def error_of_connecting(self, hosts, connect):
        """What connecting to a name of these addresses ends in.

        `connect(call, sock)` stands for the system, at each of them.
        """
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, '', (host, 1)) for host in hosts]
        call = streamlite._Call('http://server.test/v1', LONG, LONG, math.inf)
        call.start(LONG)
        with mock.patch('socket.getaddrinfo', return_value=addresses), mock.patch.object(
                socket.socket, 'connect', lambda sock, address: connect(call, sock)):
            with self.assertRaises(OSError) as caught:
                streamlite._open_socket('server.test', 80, call)
        return caught.exception

    def test_of_addresses_that_fail_the_first_reason_is_told_and_a_refusal_before_silence(self):
        late, reset = socket.timeout('late'), ConnectionResetError('reset')
        refused = ConnectionRefusedError('refused')
        for faults, told in (([late, refused], refused), ([refused, late], refused),
                             ([late, late], late), ([reset, late, late], reset)):
            held, left = [], list(faults)

            def connect(call, sock):
                held.append(call._sock is sock)  # So whoever closes the stream ends it.
                raise left.pop(0)

            with self.subTest(faults):
                self.assertIs(self.error_of_connecting(['127.0.0.1'] * len(faults), connect), told)
                self.assertEqual(held, [True] * len(faults))
        self.assertSays(self.error_of_connecting([], None), 'no address')

    def test_addresses_share_the_time_and_loopback_gets_little_of_it_before_others(self):
        for hosts, shares in ((['192.0.2.1', '192.0.2.2'], [0.5, 1]), (['127.0.0.1'], [1]),
                              (['192.0.2.1', '127.0.0.1'], [0.5, 1]),
                              (['127.0.0.1', '192.0.2.1'], [0.3 / LONG, 1])):
            given = []

            def connect(call, sock):
                given.append(sock.gettimeout() / LONG)
                raise ConnectionRefusedError

            with self.subTest(hosts):
                self.error_of_connecting(hosts, connect)
                self.assertEqual(len(given), len(shares))
                for seconds, share in zip(given, shares):
                    self.assertLessEqual(seconds, share)
                    self.assertGreater(seconds, share * 0.6)

    def test_to_look_at_idle_connections_takes_no_more_than_the_call_has(self):
        def dripping(peer):
            peer.send(begun(HELLO) + b'ffff\r\n')
            while not peer.wait_closed(0.09):
                peer.send(b'\n')

        scripts = [dripping] * 15 + [stream_reply(HELLO)]
        with served(*scripts) as (server, asker):
            for stream in [ask(asker) for _ in scripts[1:]]:
                self.assertText(stream, 'Hello world')
            with self.assertPrompt():  # to look at each for a second would take longer
                try:
                    self.assertText(ask(asker.with_options(deadline=SHORT)), 'Hello world')
                except streamlite.APITimeoutError as error:
                    remember(error)

    def test_an_upload_that_makes_progress_is_not_a_dead_server(self):
        content = chat('x' * (8 << 20))
        now, took = time.monotonic, SlowReader.took
        del took[:]
        with mock.patch('time.monotonic', lambda: now() + sum(took)):
            with served(peer=SlowReader, timeout=LONG, max_retries=2) as (server, asker):
                self.assertText(ask(asker, messages=content), 'Hello world')
                self.assertEqual((len(server.requests), server.connections), (1, 1))
        self.assertGreater(sum(took), LONG)

    def test_a_deadline_ends_an_event_of_many_chunks(self):
        late, now = [0], time.monotonic
        clock = mock.patch('time.monotonic', lambda: now() + late[0])
        with clock, served(BURST, deadline=LONG) as (_, asker), ask(asker) as stream:
            next(stream)
            late[0] = LONG
            with self.assertRaises(streamlite.APITimeoutError):
                for count, _ in enumerate(stream):
                    self.assertLess(count, 300)


class SecretTest(TestCase):
    """The end of every test looks for secrets in all that was said.

    These provoke what others do not.
    """

    def test_the_search_finds_what_it_looks_for(self):
        for secret in (lambda: remember(ValueError(KEY)),
                       lambda: logging.getLogger('streamlite').info('%s', PASSWORD)):
            secret()
            with super().assertRaises(AssertionError):
                self._check_left_over(set(threading.enumerate()), open_sockets())
            del SAID[:]

    def test_no_repr_and_no_attribute_of_an_error_shows_the_key(self):
        with Server(stream_reply(HELLO), error_reply(401, AGAIN)) as server:
            with client(server,
                        default_headers={'api-key': PASSWORD}) as asker, ask(asker) as stream:
                other = asker.with_options(timeout=1)
                for thing in (asker, asker.chat, asker.chat.completions, other, stream,
                              stream.response):
                    self.assertNotIn(MARK, repr(thing) + str(thing))
                with self.assertRaises(streamlite.AuthenticationError) as caught:
                    ask(asker)
        error = caught.exception
        for thing in (error.request, error.response, error.body, error.__dict__, error.args,
                      error.__reduce__()):
            self.assertNotIn(MARK, repr(thing))

    def test_an_echoed_key_is_not_shown(self):
        # Servers repeat the key in part (OpenAI) or whole (vLLM's logs, small proxies).
        answers = error_reply(401, message='Incorrect API key provided: %s.'
                              % KEY), reply(401, {}, KEY.encode())
        with served(*answers) as (server, asker):
            for _ in answers:
                self.assertRaises(streamlite.AuthenticationError, ask, asker)

    def test_a_key_is_not_shown_however_it_is_echoed(self):
        key = 'sk-%s/+"key' % MARK
        escaped = json.dumps(key).strip('"').replace('/', r'\/').replace('+', r'\u002b')
        words = '{"error": {"message": "bad key %s", "param": "%s", "code": "%s", "%s": 1}}' % (
            (escaped,) * 4)
        cases = {
            'escaped': reply(401, {}, words.encode()),
            'in the reason phrase': ('HTTP/1.1 401 bad key %s\r\nContent-Length: 0\r\n\r\n'
                                     % key).encode(),
            'where the excerpt ends': error_reply(401, message='y' * 985 + key),
            'as HTML': reply(401, {}, ('<title>bad key %s</title>' % key).encode()),
            'in an event': stream_reply(HELLO_CUT + sse(words)),
            'in what is no JSON, where the excerpt ends': stream_reply(sse('{' + 'y' * 185 + key)),
            'as the status line': cut(b'HTTP/1.1 %s\r\n\r\n' % key.encode()),
            'as the size of a chunk': cut(begun(HELLO_CUT) + key.encode() + b'\r\n'),
            'in a finish_reason of error': stream_reply(
                sse(dict(delta(finish_reason='error'), error=key))),
        }
        for name, answer in cases.items():
            for options in {'api_key': key}, {'api_key': '', 'default_query': {'key': key}}, {
                    'api_key': '', 'default_headers': {'api-key': key}}:
                with self.subTest(name, options=list(options)):
                    error = outcome([answer], **options).result
                    self.assertIsInstance(error, streamlite.APIError)
                    # Not even a part of it is there.
                    self.assertNotIn('never-', repr([str(error), error.body, error.request]))

    key = 'sk-Q7vX2mZk9WpL4tRb3NcE'

    def assertNothingOf(self, secret, *texts):
        """No five characters of the secret, in whatever case, are in what was said."""
        parts = [secret[at:at + 5].lower() for at in range(len(secret) - 4)]
        for text in list(texts) + SAID:
            text = text.lower()
            for part in parts:
                at = text.find(part)
                self.assertEqual(at, -1, text[max(0, at - 60):at + 60])

    def test_no_part_of_the_key_is_shown_wherever_a_text_is_cut(self):
        key = self.key
        sources = {
            'the reason phrase': lambda text:
                b'HTTP/1.1 401 %s\r\nContent-Length: 0\r\n\r\n' % text,
            'a Location': lambda text:
                b'HTTP/1.1 302 F\r\nLocation: /%s\r\nContent-Length: 0\r\n\r\n' % text,
            'a Location that is none': lambda text:
                b'HTTP/1.1 302 F\r\nLocation: http://[%s\r\nContent-Length: 0\r\n\r\n' % text,
            'a Location elsewhere': lambda text: (
                b'HTTP/1.1 307 F\r\nLocation: http://example.test/%s\r\n'
                b'Content-Length: 0\r\n\r\n') % text,
            'what a provider said': lambda text: error_reply(502, metadata={'raw': text.decode()}),
            'a message': lambda text: error_reply(401, message=text.decode()),
            'a place': lambda text:
                reply(422, {}, {'detail': [{'loc': [text.decode()], 'msg': 'm'}]}),
            'a title': lambda text: reply(401, {}, b'<title>%s</title>' % text),
            'a Content-Encoding': lambda text: head(200, {'Content-Encoding': text.decode()}),
            'a Transfer-Encoding': lambda text: head(200, {'Transfer-Encoding': text.decode()}),
            'a Content-Length': lambda text: head(200, {'Content-Length': text.decode()}),
            'an answer that is no HTTP': lambda text: text + b'\r\n\r\n',
            'a header that is none': lambda text: STREAM_HEAD + text + b'\r\n\r\n',
            'a chunk size': lambda text: CHUNKED_HEAD + text + b'\r\n',
            'an error event': lambda text: stream_reply(sse({'error': {'message': text.decode()}})),
            'an event that is no JSON': lambda text: stream_reply(sse(text.decode(), done=False)),
            'a line that is no field': lambda text: stream_reply(text + b'\n\n'),
            'a page': lambda text: reply(200, {}, b'<html>' + text),
        }
        cuts = [0] + [limit - len(key) // 2 for limit in (60, 100, 200, 300, 800, 1000, 4000)]
        script = lambda peer: (peer.send(answer), peer.close())
        with served(script, api_key=key) as (server, asker):
            for name, source in sources.items():
                with self.subTest(name):
                    del SAID[:]
                    for at in cuts:
                        answer = source(b'y' * at + key.encode())
                        with self.assertRaises(streamlite.APIError) as caught:
                            ask(asker).collect()
                        error = caught.exception
                        shown = error.body, error.code, error.param, error.type, error.args
                        SAID.append(repr(shown))
                    self.assertNothingOf(key)
            del SAID[:]

    def test_no_part_of_the_key_is_shown_where_an_error_body_ends(self):
        key, result = self.key, None
        for back in 6, 18:
            body = b'y' * ((64 << 10) - back) + key.encode()
            result = outcome([reply(401, {}, body)], api_key=key).result
            self.assertIsInstance(result, streamlite.AuthenticationError)
            self.assertNothingOf(key, str(result.body))
        del SAID[:]

    def test_a_redirect_to_the_same_origin_logs_no_key(self):
        place = reply(307, {'Location': '/v1/%s?key=%s' % (KEY, KEY)})
        for answers, text in (((place, stream_reply(HELLO)), 'Hello world'), ((place,), None)):
            result = outcome(answers).result
            if text:
                self.assertEqual(result, text)
            else:
                self.assertIsInstance(result, streamlite.APIStatusError)

    def test_a_short_key_is_hidden_where_it_is_a_word_of_its_own(self):
        for key in 'abc1234', 'Xy-9', 'k3y':
            for words in ('bad key %s', 'bad key "%s".', 'key=%s, sorry', '%s', 'Bearer %s\nnext'):
                with self.subTest(key, words=words):
                    error = outcome([error_reply(401, message=words % key)], api_key=key).result
                    self.assertNotIn(key, str(error))
                    self.assertNotIn(key, repr(error.body))
                    self.assertSays(error, '***')
            with self.subTest(key, words='inside another word'):
                answer = error_reply(404, message='no model x%s9' % key)
                error = outcome([answer], api_key=key).result
                self.assertSays(error, 'x%s9' % key)

    def test_signatures_passwords_and_cookies_are_secrets(self):
        value, odd = 'Qm7' + MARK, 'a+b/' + MARK + '=='
        cookies = 'a=%s; session=%s' % (value, odd)
        quoted = [odd, urllib.parse.quote(odd, safe=''), urllib.parse.quote(odd)]
        cases = [({'default_headers': {'Cookie': cookies}}, [value, cookies] + quoted)]
        for name in 'code', 'sig', 'password', 'signature':
            cases += [({'default_query': {name: value}}, [value]),
                      ({'default_query': {name: odd}}, quoted),
                      ({'base_url': '?' + urllib.parse.urlencode({name: odd})}, quoted)]
        echoed = ''
        with Server(lambda peer: peer.send(
                error_reply(401, message='refused: ' + echoed, code=echoed))) as server:
            for options, echoes in cases:
                with self.subTest(options):
                    url = server.url + options.get('base_url', '')
                    with client(server, **dict(options, base_url=url)) as asker:
                        for echoed in echoes:
                            with self.assertRaises(streamlite.AuthenticationError) as caught:
                                ask(asker)
                            self.assertNotIn(MARK, str(caught.exception)
                                             + repr(caught.exception.body))

    def test_a_key_in_the_headers_of_an_answer_is_not_shown(self):
        echo = {'x-request-id': 'req ' + KEY, 'x-echo': KEY}
        with served(stream_reply(HELLO, headers=echo), error_reply(401, echo)) as (_, asker):
            with ask(asker) as stream:
                shown = [stream.response.request_id, stream.response.headers]
                stream.collect()
                shown.append(stream.completion._request_id)
            with self.assertRaises(streamlite.AuthenticationError) as caught:
                ask(asker)
            error = caught.exception
            shown += [error.request_id, error.response.request_id, error.response.headers]
        for value in shown:
            items = getattr(value, 'items', lambda: value)()
            self.assertNotIn(MARK, repr(items))
            self.assertIn('***', repr(items))

    def test_no_part_of_the_key_is_in_the_body_of_what_is_no_completion(self):
        answers = [stream_reply(sse({'x': 'y' * length + KEY}, done=False))
                   for length in range(970, 1001, 3)]
        with served(*answers) as (_, asker):
            for _ in answers:
                # What came is the answer so far, with the key: it is not looked at here.
                with unittest.TestCase.assertRaises(self, streamlite.APIError) as caught:
                    ask(asker).collect()
                shown = repr([caught.exception.body, str(caught.exception)])
                self.assertNotIn(KEY[:4], shown)

    def test_a_cause_that_holds_the_key_is_not_chained(self):
        class Leaky(urllib.request.BaseHandler):
            def http_request(self, request):
                raise OSError(words)

        for words, is_chained in ('no route', True), ('no route for ' + KEY, False):
            with client(None, base_url='http://127.0.0.1:9/v1', handlers=[Leaky()]) as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
            remember(caught.exception)
            self.assertEqual(caught.exception.__cause__ is not None, is_chained)
            self.assertSays(caught.exception, 'no route')


class SizeTest(TestCase):

    # In another process, whose memory can be measured; it prints what each of the URLs comes to.
    program = """if True:
        import resource, sys, streamlite

        def kilobytes():
            # On Linux getrusage starts with what the parent had at the fork.
            try:
                with open('/proc/self/status') as status:
                    return next(int(line.split()[1]) for line in status if line.startswith('VmHWM'))
            except (OSError, StopIteration):
                most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                return most // (1024 if sys.platform == 'darwin' else 1)

        for url in sys.argv[1:]:
            client = streamlite.OpenAI(api_key='k', base_url=url, max_retries=0, timeout=100)
            text = ''
            try:
                stream = client.chat.completions.create(model='m', messages=[], stream=True)
                what = 'OK %d' % len(stream.collect().choices[0].message.content)
            except streamlite.APIError as error:
                what = type(error).__name__
                if error.partial is not None and error.partial.choices:
                    text = error.partial.choices[0].message.content
            print(what, text, '|', kilobytes() // 1024, flush=True)
    """

    @unittest.skipIf(sys.platform == 'win32', 'Windows has no module resource')
    def test_what_never_ends_is_an_error_and_no_burden(self):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        start = packer.compress(HELLO_CUT + b'data: ') + packer.flush(zlib.Z_FULL_FLUSH)
        # This may be repeated, since it starts afresh.
        zeros = packer.compress(b'0' * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        events, text = head(200, {'Content-Type': 'text/event-stream'}) + HELLO_CUT, b'x' * 65536
        cases = [  # script, text delivered before it
            (flood(events + b'data: ', text), 'Hello '),
            (flood(events, b'data: x\n' * 8192), 'Hello '),
            (flood(head(200, GZIP) + start, zeros * 16), 'Hello '),
            (flood(events + b'data: {"choices": [{"delta": {"content": "', text), 'Hello '),
            (flood(head(200, {'Content-Type': 'application/json'}) + b'{"choices": "', text), ''),
            (flood(b'HTTP/1.1 200 OK\r\n', b'X-Header: 1\r\n' * 1000), ''),
            (flood(b'HTTP/1.1 200 OK\r\nX: ', text), ''),
            (flood(b'HTTP/1.1 200 ', text), ''),
            (flood(begun(HELLO_CUT) + b'5;', text), 'Hello '),
            (flood(CHUNKED_HEAD + chunked(HELLO_CUT)[:-2], b'X: 1\r\n' * 1000), 'Hello '),
            (flood(b'', b'HTTP/1.1 100 Continue\r\n\r\n' * 1000), ''),
            (flood(head(413), text), ''),
        ]
        big = 4 << 20  # a large event is no fault
        large = stream_reply(sse(delta('x' * big, 'stop')))
        # A few kilobytes on the wire may say many megabytes.
        many = b'{},' * (5 << 20) + b'{}'
        bombs = [packed_reply(bomb % many) for bomb in (
            b'data: {"choices":[%s]}\n\n', b'{"choices":[%s]}',
            b'data: {"choices":[{"delta":{"tool_calls":[%s]}}]}\n\n')]
        scripts = [script for script, _ in cases] + [large] + bombs
        servers = [self.serve(script) for script in scripts]
        ran = run_python('-B', '-c', self.program, *[server.url for server in servers])
        self.assertEqual(ran.err, '')
        lines = ran.out.splitlines()
        self.assertEqual(len(lines), len(servers), lines)
        cases += [(large, None)] + [(bomb, '') for bomb in bombs]
        for number, (line, (_, text)) in enumerate(zip(lines, cases)):
            with self.subTest(number):
                if text is None:
                    self.assertTrue(line.startswith('OK %d' % big))
                else:
                    self.assertRegex(line, '^API.*Error %s' % text)
                    self.assertNotIn('Timeout', line)
        megabytes = [int(line.split('|')[1]) for line in lines]  # the most that there ever were
        self.assertLess(megabytes[-len(bombs) - 1], 100, lines)
        self.assertLess(megabytes[-1], 300, lines)

    def test_a_long_list_of_models_takes_linear_time(self):
        def read():
            answer = streamlite._Reply(Wire(), head_of(), None, None)
            answer.body = iter([bytes(1024)] * 60000)
            self.assertEqual(len(answer.read(1 << 40)), 60000 * 1024)

        self.assertLinear(read)


class ConnectionTest(TestCase):

    def test_one_connection_serves_stream_after_stream(self):
        cases = {'chunked': stream_reply(HELLO), 'length': stream_reply(HELLO, 'length'),
                 'no [DONE]': stream_reply(FINISHED),
                 'one by one': CHUNKED_HEAD + chunked(HELLO, 50)}
        for name, answer in cases.items():
            with self.subTest(name), served(answer) as (server, asker):
                for _ in range(20):
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual((len(server.requests), server.connections), (20, 1))
        with served(reply(200, {}, WHOLE)) as (server, asker):
            for _ in range(5):
                self.assertText(ask(asker, stream=False), 'Hello world')
            self.assertEqual(server.connections, 1)

    def test_the_system_is_asked_to_send_at_once_and_to_notice_a_dead_peer(self):
        with served(stream_reply(HELLO)) as (_, asker), ask(asker) as stream:
            sock = stream._attempt.reply.connection.sock
            self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def test_framing_that_broke_behind_the_answer_ends_the_connection(self):
        broken = stall(begun(FINISHED) + b'zz\r\n')
        with served(broken, stream_reply(HELLO)) as (server, asker):
            for _ in range(2):
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual(server.connections, 2)

    def test_done_may_come_before_the_last_chunk(self):
        gate, sent = threading.Event(), threading.Event()

        def script(peer):
            peer.send(begun(HELLO))
            gate.wait(LONG)
            peer.send(b'0\r\n\r\n')
            sent.set()

        with served(script) as (server, asker):
            for _ in range(20):
                with self.assertPrompt():
                    self.assertText(ask(asker), 'Hello world')  # the last chunk is not waited for
                gate.set()
                self.assertTrue(sent.wait(LONG))
                gate.clear()
                sent.clear()
            self.assertEqual(server.connections, 1)

        held = threading.Event()
        with Server(lambda peer: (peer.send(begun(HELLO)), held.wait(LONG))) as server:
            with client(server) as asker:  # nor is a connection whose body has not ended used again
                self.assertText(ask(asker), 'Hello world')
                self.assertText(ask(asker), 'Hello world')
                self.assertEqual(server.connections, 2)
            held.set()

    def test_an_idle_connection_that_the_server_closed_costs_nothing(self):
        def ending(end):
            closed = threading.Event()
            return closed, lambda peer: (peer.send(stream_reply(HELLO)), end(peer), closed.set())

        def say_goodbye(peer):
            """What HAProxy and Apache do."""
            peer.send(reply(408, {'Connection': 'close'}, b'too slow'))
            peer.close()

        for end in Peer.close, Peer.reset, say_goodbye:
            closed, script = ending(end)
            with self.subTest(end.__name__), served(script, stream_reply(HELLO)) as (server, asker):
                self.assertText(ask(asker), 'Hello world')
                self.assertTrue(closed.wait(LONG))
                self.assertText(ask(asker), 'Hello world')
                self.assertEqual((len(server.requests), server.connections), (2, 2))
        # This one is closed in the moment in which the next request is on its way.
        with served(stream_reply(HELLO), cut(b''), stream_reply(HELLO)) as (server, asker):
            self.assertText(ask(asker), 'Hello world')
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.connection for request in server.requests], [1, 1, 2])
        # But who worked on it for a while may have done so to the end, and is not asked twice
        # unless retries are wanted.
        now, late = time.monotonic, []
        for end, retries in (Peer.close, 0), (Peer.reset, 0), (Peer.close, 1):
            script = lambda peer: (late.append(2), end(peer))
            with served(stream_reply(HELLO), script, max_retries=retries) as (server, asker):
                with mock.patch('time.monotonic', lambda: now() + sum(late)), no_waits():
                    self.assertText(ask(asker), 'Hello world')
                    with self.assertRaises(streamlite.APIConnectionError) as caught:
                        ask(asker)
                self.assertEqual((len(server.requests), caught.exception.attempts),
                                 (2 + retries, 1 + retries))

    def test_nobody_gets_the_bytes_of_another_answer(self):
        other = stream_reply(sse(delta('mine', 'stop')))
        evil = stream_reply(sse(delta('not mine', 'stop')))
        cases = {
            'a second answer': stream_reply(HELLO) + evil,
            'a second answer after its length': stream_reply(HELLO, 'length') + evil,
            'half a body': stall(begun(HELLO)),
            'a body of a longer length': stall(stream_reply(
                HELLO, 'length', {'Content-Length': len(HELLO) + 7})),
        }
        for name, script in cases.items():
            with self.subTest(name), served(script, other) as (server, asker):
                self.assertText(ask(asker), 'Hello world')
                self.assertText(ask(asker), 'mine')
                self.assertEqual(server.connections, 2)

    def test_a_broken_or_abandoned_stream_spoils_no_other(self):
        other = stream_reply(sse(delta('mine', 'stop')))
        with served(cut(begun(HELLO_CUT)), other) as (server, asker):
            self.assertBroken(asker, 'Hello ')
            self.assertText(ask(asker), 'mine')
        with served(stream_reply(HELLO), other) as (server, asker):
            with ask(asker) as stream:
                next(iter(stream))
            self.assertText(ask(asker), 'mine')
        with served(stream_reply(HELLO), other) as (server, asker):
            stream = ask(asker)
            next(iter(stream))
            self.assertText(ask(asker), 'mine')  # while the first is still held
            self.assertText(stream, 'Hello world')

    def test_a_connection_serves_its_own_origin_only(self):
        answers = [stream_reply(sse(delta(text, 'stop'))) for text in ('one', 'two')]
        with Server(answers[0]) as one, Server(answers[1]) as two:
            with client(one) as asker:
                for _ in range(2):
                    self.assertText(ask(asker), 'one')
                    self.assertText(ask(asker.with_options(base_url=two.url)), 'two')

    def test_how_many_idle_connections_are_kept_and_how_long_is_limited(self):
        with served() as (server, asker):
            with mock.patch.object(streamlite, 'IDLE_SECONDS', -1):
                self.assertText(ask(asker), 'Hello world')
                self.assertText(ask(asker), 'Hello world')
                self.assertEqual(server.connections, 2)
        gone = threading.Semaphore(0)
        with Server(lambda peer: (peer.send(stream_reply(HELLO)),
                                  peer.wait_closed() and gone.release())) as server:
            with client(server) as asker, mock.patch.object(streamlite, 'MAX_IDLE', 2):
                for stream in [ask(asker) for _ in range(4)]:
                    self.assertText(stream, 'Hello world')
                self.assertTrue(gone.acquire(timeout=PROMPT) and gone.acquire(timeout=PROMPT))
                self.assertEqual(len(asker._requester.transport.pool._idle), 2)

    def test_the_connection_of_an_error_reply_is_used_again(self):
        with served(error_reply(400), error_reply(401), stream_reply(HELLO)) as (server, asker):
            for _ in range(2):
                with self.assertRaises(streamlite.APIStatusError):
                    ask(asker)
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual(server.connections, 1)

    @needs_fork
    def test_a_forked_process_takes_a_connection_of_its_own(self):
        with served(stream_reply(HELLO)) as (server, asker):
            self.assertText(ask(asker), 'Hello world')
            with forked() as child:
                if not child:
                    os._exit(0 if text_of(ask(asker).collect()) == 'Hello world' else 1)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.connection for request in server.requests], [1, 2, 1])

    def test_sixteen_threads_share_a_client(self):
        def script(peer):
            text = peer.request.json['messages'][0]['content']
            peer.send(stream_reply(sse(*[delta(character) for character in text] + [STOP])))

        def work(name):
            for number in range(4):
                text = 'thread %d, question %d' % (name, number)
                self.assertText(ask(asker, messages=chat(text)), text)

        with served(script) as (server, asker):
            at_once(*[lambda name=name: work(name) for name in range(16)])
            self.assertEqual(len(server.requests), 64)
            self.assertLessEqual(server.connections, 16)

    def test_no_desynchronised_body_answers_another_request(self):
        evil = stream_reply(sse(delta('not mine', 'stop')))
        mine = stream_reply(sse(delta('mine', 'stop')))
        length = b'Content-Length: %d\r\n' % len(HELLO)
        start = STREAM_HEAD
        plain = {
            'two lengths': start + length + b'Content-Length: 5\r\n\r\n',
            'two lengths in one': start + b'Content-Length: %d, 5\r\n\r\n' % len(HELLO),
            'a length with a sign': start + b'Content-Length: +%d\r\n\r\n' % len(HELLO),
            'a shorter length': start + b'Content-Length: %d\r\n\r\n' % (len(HELLO) - 9),
            'length and chunks': start + length + b'Transfer-Encoding: chunked\r\n\r\n',
            'no length': start + b'\r\n',
            'HTTP/1.0': start.replace(b'1.1', b'1.0') + length + b'\r\n',
            '204': start.replace(b'200', b'204') + length + b'\r\n',
            '304': start.replace(b'200', b'304') + length + b'\r\n',
        }
        answers = {name: head + HELLO for name, head in plain.items()}
        answers['chunks'] = stream_reply(HELLO)
        answers['chunks, a trailer'] = CHUNKED_HEAD + chunked(HELLO)[:-2] + b'X: 1\r\n\r\n'
        answers['chunks without an end'] = begun(HELLO)

        def texts(answer):
            found = []
            with served(stall(answer + evil), mine) as (_, asker):
                for _ in range(2):
                    try:
                        found.append(text_of(ask(asker).collect()))
                    except streamlite.OpenAIError as error:
                        remember(error)
            return found

        cases = [(name, between) for name in answers for between in (b'', b'\r\n', b'\0')]
        found = at_once(*[lambda name=name, between=between: texts(answers[name] + between)
                          for name, between in cases])
        for case, said in zip(cases, found):
            with self.subTest(case):
                self.assertLessEqual(set(said), {'Hello world', 'mine'})
                self.assertEqual(said[-1:], ['mine'])

    def test_an_idle_connection_keeps_nothing_of_the_last_request(self):
        content = chat('x' * (4 << 20))
        with served(peer=Forgetful) as (server, asker):
            self.assertText(ask(asker), 'Hello world')  # what is made once is made
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            before = tracemalloc.get_traced_memory()[0]
            self.assertText(ask(asker, messages=content), 'Hello world')
            gc.collect()
            self.assertLess(tracemalloc.get_traced_memory()[0] - before, 2 << 20)
            self.assertEqual(server.connections, 1)

    def test_an_address_of_a_family_that_the_system_lacks_is_passed_over(self):
        unknown = (12345, socket.SOCK_STREAM, 6, '', ('::1', 9, 0, 0))  # as IPv6 switched off
        resolve = socket.getaddrinfo
        both = mock.patch('socket.getaddrinfo', lambda *args, **kwargs: (
            [unknown] + resolve(*args, **kwargs)))
        with served(stream_reply(HELLO)) as (_, asker), both:
            self.assertText(ask(asker), 'Hello world')
        nothing = mock.patch('socket.getaddrinfo', lambda *args, **kwargs: [unknown])
        with client(None, base_url='http://127.0.0.1:9') as asker, nothing:
            with self.assertRaises(streamlite.APIConnectionError) as caught:
                ask(asker)
        self.assertIsInstance(caught.exception.__cause__, OSError)

    def check_fork(self, use, more_first):
        """Fork amid a stream, `use` it in the child: it gets an error, the parent everything.

        `more_first` says whether more comes before the child has ended.
        """
        more = threading.Event()

        def script(peer):
            peer.send(begun(HEL))
            more.wait(LONG)
            peer.send(chunked(LO, last=False) + chunked(sse(delta('world'), STOP)))

        with served(script) as (_, asker), ask(asker) as stream:
            next(stream)
            with forked() as child:
                if not child:
                    try:
                        use(stream)
                    except streamlite.OpenAIError:
                        os._exit(0)
                    os._exit(1)
            if more_first:
                more.set()
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            more.set()
            self.assertText(stream, 'Hello world')

    @needs_fork
    def test_a_stream_that_a_forked_process_reads_too_loses_nothing(self):
        self.check_fork(next, True)

    @needs_fork
    def test_a_stream_that_a_forked_process_closes_goes_on(self):
        def close(stream):
            with stream:
                pass
            next(stream)

        def lose(stream):
            stream.__del__()
            next(stream)

        for use in close, lose:
            with self.subTest(use.__name__):
                self.check_fork(use, False)

    def test_a_connection_that_may_not_be_kept_is_not_used_again(self):
        older = stream_reply(HELLO, 'length').replace(b'HTTP/1.1', b'HTTP/1.0', 1)
        for name, answer in (('close', stream_reply(HELLO, headers={'Connection': 'close'})),
                             ('two lengths', stream_reply(HELLO, headers={'Content-Length': '5'})),
                             ('HTTP/1.0', older)):
            # The server itself leaves it open.
            with self.subTest(name), served(lambda peer: peer.send(answer)) as (server, asker):
                for _ in range(2):
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual(server.connections, 2)

    def test_a_port_that_is_left_out_is_that_of_the_scheme(self):
        proxy = {'https_proxy': 'http://proxy.test'}
        for url, environment, place in (
                ('http://a.test/v1', {}, ('a.test', 80)),
                ('http://b\xfccher.test/v1', {}, ('xn--bcher-kva.test', 80)),
                ('https://a.test/v1', {}, ('a.test', 443)),
                ('https://a.test/v1', proxy, ('proxy.test', 80)),
                ('https://a.test:8443/v1', {}, ('a.test', 8443))):
            if url.startswith('https') and not ssl:
                continue
            looked = []

            def look_up(host, port, *args):
                looked.append((host.decode(), port))
                raise socket.gaierror('scripted')

            with self.subTest(url, environment=environment), mock.patch.dict(
                    os.environ, environment), mock.patch('socket.getaddrinfo', look_up):
                with client(None, base_url=url) as asker:
                    self.assertRaises(streamlite.APIConnectionError, ask, asker)
                self.assertEqual(looked, [place])

    def test_a_kept_connection_at_which_nothing_can_be_sent_costs_nothing(self):
        sent = streamlite._Connection.send

        def send(connection, call, data):
            if connection is first:
                connection.sent_at = None
                streamlite._shut(connection.sock)
                raise ConnectionResetError('scripted')
            return sent(connection, call, data)

        with served(stream_reply(HELLO)) as (server, asker):
            with ask(asker) as stream:
                first = stream._attempt.reply.connection
                self.assertText(stream, 'Hello world')
            with mock.patch.object(streamlite._Connection, 'send', send):
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.connection for request in server.requests], [1, 2])

    def test_the_connection_that_brought_a_list_serves_the_next_request(self):
        with served(reply(200, {}, MODELS), stream_reply(HELLO)) as (server, asker):
            asker.models.list()
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual((len(server.requests), server.connections), (2, 1))
        self.assertLogged('DEBUG', '/models', 'ended: whole')

    def test_a_list_that_never_ends_is_cut_at_the_limit(self):
        def script(peer):
            peer.send(CHUNKED_HEAD)
            with contextlib.suppress(OSError):
                while True:
                    peer.send(chunked(b'{"data": [' + b' ' * 5000, last=False))

        with mock.patch.object(streamlite, 'MAX_EVENT', 100000), self.assertPrompt():
            with served(script) as (_, asker):
                self.assertRaises(streamlite.APIResponseValidationError, asker.models.list)

    def test_a_request_that_could_not_be_sent_was_not_sent_at_any_time(self):
        call = streamlite._Call('http://server.test/v1', LONG, LONG, math.inf)
        connection = streamlite._Connection(None, socket.socket(), 0.0)
        connection.sent_at = 5.0  # The request before.
        connection.close()
        self.assertRaises(OSError, connection.send, call, b'x')
        self.assertIsNone(connection.sent_at)

    def test_a_reply_that_a_handler_does_not_hand_on_is_closed(self):
        class Again(urllib.request.BaseHandler):
            def http_response(self, request, reply):
                if kept:
                    return reply
                kept.append(reply)
                return self.parent.open(request)

        kept = []
        with served(stream_reply(HELLO), handlers=[Again()]) as (server, asker):
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual(len(server.requests), 2)
            self.assertEqual(kept[0].connection.sock.fileno(), -1)

    def test_who_closes_a_stream_wakes_who_reads_from_a_connection_used_before(self):
        with served(stream_reply(HELLO), stall(WAITING)) as (server, asker):
            self.assertText(ask(asker), 'Hello world')
            with ask(asker) as stream, concurrent.futures.ThreadPoolExecutor(
                    1) as pool, self.assertPrompt():
                texts = stream.text()
                self.assertEqual(next(texts) + next(texts), 'Hello ')
                reading = pool.submit(next, stream)
                self.wait_until(stream._reading.locked)
                stream.close()
                self.assertIsInstance(reading.exception(), streamlite.APIConnectionError)
            self.assertEqual(server.connections, 1)

    def test_of_a_body_so_many_bytes_are_read(self):
        for reads in [b'x' * 9, b'y' * 5, b'z'], [b'x' * 9 + b'y' * 6], [b'x' * 9, b'y', b'z']:
            wire = Wire(*reads, silent=True)
            reply = streamlite._Reply(wire, head_of(), None, None)
            self.assertEqual(reply.read(10), b'x' * 9 + b'y')


class RedirectTest(TestCase):

    def test_307_and_308_to_the_same_origin_keep_everything(self):
        for status in 307, 308:
            with self.subTest(status), Server() as server:
                network = '//127.0.0.1:%d/network' % server.port
                places = [server.url + '/absolute?a=b', '/rooted', 'beside', network, '/last']
                server.script(*[reply(status, {'Location': place}) for place in places]
                              + [stream_reply(HELLO)])
                with client(server, default_headers={'api-key': KEY}) as asker:
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual([request.path for request in server.requests],
                                 [PATH, '/v1/absolute?a=b', '/rooted', '/beside', '/network',
                                  '/last'])
                for request in server.requests[1:]:
                    self.assertEqual((request.method, request.body),
                                     ('POST', server.requests[0].body))
                    self.assertEqual(request.headers['authorization'], 'Bearer ' + KEY)
                    self.assertEqual(request.headers['api-key'], KEY)

    def test_five_are_enough(self):
        result = outcome([reply(307, {'Location': '/v1/round'})], max_retries=2)
        self.assertIsInstance(result.result, streamlite.APIError)
        self.assertSays(result.result, '/v1/round')
        self.assertEqual(len(result.requests), 6)

    def test_no_credential_reaches_another_origin(self):
        headers = {'api-key': KEY, 'X-Custom': PASSWORD}
        with Server() as other:
            for status in 301, 302, 303, 307, 308:
                for place in 'http://127.0.0.1:%d/v1', 'http://localhost:%d/v1', '//127.0.0.1:%d/x':
                    place %= other.port
                    with self.subTest(status, place=place), Server(
                        reply(status, {'Location': place})) as server:
                        with client(server, default_headers=headers, max_retries=2) as asker:
                            error = self.assertBroken(asker, '', streamlite.APIStatusError)
                        self.assertSays(error, '%d' % other.port, status)
                        self.assertEqual(error.status_code, status)
                        self.assertEqual(len(server.requests), 1)
            self.assertEqual(other.connections, 0)

    def test_every_other_redirect_is_an_error_that_names_the_location(self):
        cases = [(301, '/v1/moved'), (302, '/v1/moved'), (303, '/v1/moved'), (300, '/v1/moved'),
                 (307, 'file:///etc/passwd'), (308, 'ftp://127.0.0.1/x'), (307, None), (307, ''),
                 (307, 'http://[bad'), (307, 'http://127.0.0.1:x/')]
        for status, place in cases:
            with self.subTest(status, place=place):
                result = outcome([reply(status, {} if place is None else {'Location': place})],
                                 max_retries=2)
                self.assertIsInstance(result.result, streamlite.APIStatusError)
                self.assertSays(result.result, status, place or '')
                self.assertEqual([request.method for request in result.requests], ['POST'])

    def test_a_location_that_is_no_address_raises_nothing_but_our_errors(self):
        for place in '/a b', '/\xe9', '/a\tb', '?', '#', '/%zz', '//', 'http://', '/' + 'x' * 60000:
            with self.subTest(place[:9]):
                outcome([reply(307, {'Location': place}), stream_reply(HELLO)])

    def test_a_move_to_https_says_which_url_to_use(self):
        for status in 301, 308:
            place = 'https://127.0.0.1/v1/chat/completions'
            result = outcome([reply(status, {'Location': place})])
            self.assertIsInstance(result.result, streamlite.APIStatusError)
            self.assertSays(result.result, 'https', 'base_url')

    def test_no_location_leads_a_request_to_another_origin(self):
        with Server() as other:
            port = other.port
            names = ['127.0.0.1:%d', 'localhost:%d', '127.0.0.1:%d/v1', 'user@127.0.0.1:%d',
                     'user:pw@127.0.0.1:%d', '127.0.0.1:%d#', '127.0.0.1:%d?', '127.0.0.1:%d\\@x',
                     '0x7f000001:%d', '2130706433:%d', '127.1:%d', '[::ffff:127.0.0.1]:%d']
            places = [start + name % port for name in names for start in ('http://', '//')]
            places += [start + '127.0.0.1:%d' % port for start in (
                'https://', 'HTTP://', 'hTTp:////', 'http:///', '\\\\', '/\\', 'http:\\\\',
                '\thttp://',
                'ftp://', 'file://', 'javascript:', 'http:', '///', '////')]
            place = None
            script = lambda peer: peer.send(reply(status, {'Location': place}))
            with served(script) as (server, asker):
                for place in places:
                    for status in 301, 302, 303, 307, 308:
                        with self.subTest(status, place=place):
                            self.assertRaises(streamlite.APIError, ask, asker)
            self.assertEqual(other.connections, 0)

    def test_the_port_of_an_origin_may_be_left_out(self):
        for url, same, others in (
                ('https://a.test', 'https://a.test:443/x', ['https://a.test:80', 'http://a.test']),
                ('http://a.test', 'http://a.test:80/x', ['http://a.test:443', 'http://b.test'])):
            with self.subTest(url):
                self.assertEqual(streamlite._origin(url), streamlite._origin(same))
                for other in others:
                    self.assertNotEqual(streamlite._origin(url), streamlite._origin(other))

    def test_a_location_that_no_request_line_can_hold_is_not_asked_for(self):
        for place in '/v1/caf\xe9', '/v1/a b', '/v1/\x01':
            with self.subTest(place), served(reply(307, {'Location': place})) as (server, asker):
                self.assertRaises(streamlite.APIError, ask, asker)
                self.assertEqual(len(server.requests), 1)


class KeyOverHttpTest(LoopbackTestCase):

    def test_a_key_over_plain_http_to_another_machine_is_warned_of_once(self):
        with Server() as server:
            for host in '127.0.0.1', 'localhost', '[::1]', '127.1.2.3':
                with client(server, base_url='http://%s:%d/v1' % (host, server.port)) as asker:
                    self.assertText(ask(asker), 'Hello world')
            self.assertEqual([said for said in SAID if said.startswith('WARNING')], [])
            with client(server, base_url='http://plain.example.test:%d/v1' % server.port,
                        api_key=None) as asker:
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual([said for said in SAID if said.startswith('WARNING')], [])
            for _ in range(2):
                with client(server,
                            base_url='http://plain.example.test:%d/v1' % server.port) as asker:
                    self.assertText(ask(asker), 'Hello world')
                    self.assertText(ask(asker), 'Hello world')
        self.assertLogged('WARNING', 'plain.example.test')


class ProxyTest(LoopbackTestCase):

    def through(self, *scripts, base_url='http://api.example.test/v1', **options):
        """What comes of asking http://api.example.test through such a proxy."""
        with Server(*scripts) as proxy:
            url = 'http://user:%s@127.0.0.1:%d' % (PASSWORD, proxy.port)
            os.environ.update(http_proxy=url, https_proxy=url)
            with client(None, base_url=base_url) as asker:
                self.assertNotIn(MARK, repr(asker))
            return outcome_of(proxy, base_url=base_url, **options)

    credentials = 'Basic ' + base64.b64encode(b'user:' + PASSWORD.encode()).decode()

    def test_plain_http_goes_through_the_proxy(self):
        result = self.through(stream_reply(HELLO))
        self.assertEqual(result.result, 'Hello world')
        request = result.requests[0]
        self.assertEqual((request.method, request.path), ('POST', 'http://api.example.test' + PATH))
        self.assertEqual(request.headers['host'], 'api.example.test')
        self.assertEqual(request.headers['proxy-authorization'], self.credentials)
        self.assertEqual(request.headers['authorization'], 'Bearer ' + KEY)

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_https_goes_through_connect(self):
        def connect(peer):
            peer.send(b'HTTP/1.1 200 Connection established\r\n\r\n')
            peer.start_tls(server_context())

        result = self.through(connect, stream_reply(HELLO), base_url='https://api.example.test/v1',
                              ssl_context=trusting_context())
        self.assertEqual(result.result, 'Hello world')
        tunnel, request = result.requests
        self.assertEqual((tunnel.method, tunnel.path), ('CONNECT', 'api.example.test:443'))
        self.assertEqual(tunnel.headers['proxy-authorization'], self.credentials)
        self.assertNotIn('authorization', tunnel.headers)
        self.assertEqual((request.method, request.path), ('POST', PATH))
        self.assertEqual(request.headers['authorization'], 'Bearer ' + KEY)
        self.assertNotIn('proxy-authorization', request.headers)
        result = self.through(connect, stream_reply(HELLO),
                              base_url='https://api.example.test:8443/v1',
                              ssl_context=trusting_context())
        self.assertEqual([request.path for request in result.requests],
                         ['api.example.test:8443', PATH])

    def test_a_407_says_what_the_proxy_asks_for_and_what_helps(self):
        for scheme in ['http', 'https'] if ssl else ['http']:
            for challenge in 'Negotiate', 'NTLM', 'Digest realm="x"', 'Basic realm="x"':
                url = scheme + '://api.example.test/v1'
                with self.subTest(url, challenge=challenge):
                    answer = reply(407, {'Proxy-Authenticate': challenge, 'Connection': 'close'},
                                   b'<html>no</html>')
                    result = self.through(answer, base_url=url, max_retries=2)
                    self.assertIsInstance(result.result, streamlite.APIError)
                    self.assertSays(result.result, 407, challenge.split(' ')[0], 'cntlm')
                    # They cannot answer a CONNECT's.
                    self.assertEqual('handlers' in str(result.result), scheme == 'http')
                    self.assertEqual(len(result.requests), 1)

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_a_proxy_that_refuses_or_breaks_the_tunnel_is_named(self):
        page = b'<html><title>Gateway trouble</title></html>'
        answers = reply(502, {'Connection': 'close'},
                        page), reply(403, {}, page), reply(300), cut(b''), cut(b'garbage\r\n\r\n')
        for answer in answers:
            with self.subTest(answer):
                result = self.through(answer, base_url='https://api.example.test/v1')
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertSays(result.result, 'proxy')
                self.assertNotIn('cntlm', str(result.result), 'what helps with a 407')
                if isinstance(answer, bytes):
                    self.assertSays(result.result, answer[9:12].decode())

    def test_a_407_that_does_not_say_what_it_asks_for(self):
        for scheme in ['http', 'https'] if ssl else ['http']:
            result = self.through(reply(407, {'Connection': 'close'}),
                                  base_url=scheme + '://api.example.test/v1')
            self.assertSays(result.result, 'asks for credentials')

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_what_a_proxy_says_before_the_server_could_is_refused(self):
        early = cut(b'HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n')
        result = self.through(early, base_url='https://api.example.test/v1')
        self.assertIsInstance(result.result, streamlite.APIConnectionError)
        self.assertSays(result.result, 'before the server could')

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_a_proxys_answer_that_never_comes_is_a_timeout(self):
        for script in stall(), pace(b'X: 1\r\n', b'HTTP/1.1 200 OK\r\n'):
            result = self.through(script, base_url='https://api.example.test/v1', timeout=SHORT)
            self.assertIsInstance(result.result, streamlite.APITimeoutError)
            self.assertLess(result.seconds, PROMPT)

    def test_no_proxy_holds_names_ports_and_networks(self):
        cases = [  # NO_PROXY, host, whether the host is reached without the proxy
            ('api.example.test', 'api.example.test', True),
            ('other.test, api.example.test', 'api.example.test', True),
            ('example.test', 'api.example.test', True),
            ('.example.test', 'api.example.test', True),
            ('API.Example.Test', 'api.example.test', True),
            ('ample.test', 'api.example.test', False),
            ('other.test', 'api.example.test', False),
            ('*', 'api.example.test', True),
            ('api.example.test:{port}', 'api.example.test', True),
            ('api.example.test:1', 'api.example.test', False),
            ('10.1.2.3', '10.1.2.3', True),
            ('10.0.0.0/8', '10.1.2.3', True),
            ('10.0.0.0/8', '11.1.2.3', False),
            ('10.0.0.0/99', '10.1.2.3', False),
            ('fd00::/8', '[fd00::1]', True),
            ('', '127.0.0.1', True),
            ('', 'localhost', True),
            ('', '127.9.9.9', True),
            ('', '[::1]', True),
            ('', 'api.example.test', False),
        ]
        with Server() as proxy, Server() as origin:
            os.environ['http_proxy'] = 'http://127.0.0.1:%d' % proxy.port
            for no_proxy, host, direct in cases:
                with self.subTest(no_proxy, host=host):
                    os.environ['no_proxy'] = no_proxy.format(port=origin.port)
                    del proxy.requests[:], origin.requests[:]
                    with client(None, base_url='http://%s:%d/v1' % (host, origin.port)) as asker:
                        self.assertText(ask(asker), 'Hello world')
                    self.assertEqual((len(proxy.requests), len(origin.requests)),
                                     (0, 1) if direct else (1, 0))

    def test_a_proxy_of_another_kind_is_refused_by_name(self):
        for scheme in 'socks5', 'socks5h', 'socks4', 'https':
            with self.subTest(scheme), Server() as proxy:
                place = 'user:%s@127.0.0.1:%d' % (PASSWORD, proxy.port)
                os.environ['http_proxy'] = scheme + '://' + place
                with self.assertRaises((streamlite.OpenAIError, ValueError)) as caught:
                    with client(None, base_url='http://api.example.test/v1') as asker:
                        ask(asker)
                self.assertSays(caught.exception, scheme, 'proxy')
                self.assertEqual(proxy.connections, 0)
                with Server() as local, client(local) as asker:  # which needs no proxy
                    self.assertText(ask(asker), 'Hello world')

    def test_handlers_answer_what_a_proxy_asks_for(self):
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, 'http://127.0.0.1', 'user', PASSWORD)
        passwords.add_password(None, 'http://api.example.test', 'user', PASSWORD)
        challenge = {
            'Proxy-Authenticate': 'Digest realm="office", nonce="n1", qop="auth", algorithm=MD5'}
        with Server(reply(407, challenge), stream_reply(HELLO)) as proxy:
            os.environ['http_proxy'] = 'http://127.0.0.1:%d' % proxy.port
            handlers = [urllib.request.ProxyDigestAuthHandler(passwords)]
            with client(None, base_url='http://api.example.test/v1', handlers=handlers) as asker:
                self.assertText(ask(asker), 'Hello world')
        first, second = proxy.requests
        self.assertTrue(second.headers['proxy-authorization'].startswith('Digest username="user"'))
        self.assertEqual((second.method, second.path, second.body),
                         (first.method, first.path, first.body))

    def test_a_proxy_handler_of_the_caller_s_is_the_only_one(self):
        with dead_port() as port, Server() as server:
            os.environ['http_proxy'] = 'http://127.0.0.1:%d' % port
            url = 'http://127.0.0.1:%d' % server.port
            for proxies, path in ({'http': url}, 'http://api.example.test:9' + PATH), ({}, PATH):
                host = 'api.example.test:%d' % (9 if proxies else server.port)
                mine = urllib.request.ProxyHandler(proxies)
                with self.subTest(proxies), client(None, base_url='http://%s/v1' % host,
                                                   handlers=[mine]) as asker:
                    self.assertText(ask(asker), 'Hello world')
                    self.assertEqual(server.requests[-1].path, path)

    def test_a_proxy_url_that_is_none_shows_no_password(self):
        for wrong in ('http://user:%s#1@127.0.0.1:1', 'http://user:%s/1@127.0.0.1:1',
                      'http://user:%s@[127.0.0.1:1',
                      '%s@', 'user:%s@127.0.0.1:x'):
            with self.subTest(wrong):
                os.environ['http_proxy'] = wrong % PASSWORD
                with self.assertRaises((streamlite.OpenAIError, ValueError)):
                    with client(None, base_url='http://api.example.test/v1') as asker:
                        ask(asker)

    def test_a_dead_proxy_is_named(self):
        with dead_port() as port:
            os.environ['http_proxy'] = 'http://user:%s@127.0.0.1:%d' % (PASSWORD, port)
            with client(None, base_url='http://api.example.test/v1') as asker:
                error = self.assertBroken(asker, '')
            self.assertSays(error, '127.0.0.1:%d' % port, 'proxy')

    def test_a_variable_named_default_proxy_is_no_proxy(self):
        for name in 'DEFAULT_PROXY', 'default_proxy':
            with self.subTest(name), Server() as proxy, Server() as server:
                os.environ[name] = 'http://127.0.0.1:%d' % proxy.port
                url = 'http://api.example.test:%d/v1' % server.port
                with client(None, base_url=url, api_key='') as asker:
                    try:
                        self.assertText(ask(asker), 'Hello world')
                    except streamlite.OpenAIError as error:
                        self.fail('it was asked through the proxy: %s' % error)
                self.assertEqual((len(proxy.requests), len(server.requests)), (0, 1))
            del os.environ[name]

    def test_a_proxy_url_that_is_not_utf_8_is_no_url(self):
        os.environ['http_proxy'] = 'http://us\udcffer:%s@127.0.0.1:9' % PASSWORD
        with client(None, base_url='http://api.example.test/v1', max_retries=5) as asker:
            with self.assertRaises(streamlite.OpenAIError) as caught:
                ask(asker)
        self.assertSays(caught.exception, 'HTTP_PROXY', 'valid')
        self.assertNotIsInstance(caught.exception, streamlite.APIConnectionError)

    def test_the_system_s_settings_count_where_the_environment_names_no_proxy(self):
        system = {'http': 'socks5://system.test:1'}
        for environment, words in (({}, ('system.test', "http proxy of the system's settings")),
                                   ({'http_proxy': 'socks5://own.test:1'},
                                    ('own.test', 'set http_proxy to'))):
            os.environ.update(environment)
            with self.subTest(environment), mock.patch('urllib.request.getproxies',
                                                       return_value=system):
                with client(None, base_url='http://api.example.test/v1') as asker:
                    with self.assertRaises(streamlite.OpenAIError) as caught:
                        ask(asker)
                self.assertSays(caught.exception, *words)

    def test_windows_proxies_in_one_form(self):
        for name, given, expected in (
                ('none', {}, {}), ('one', {'http': 'http://p:1'}, {'http': 'http://p:1'}),
                ('an empty one', {'http': 'http://', 'https': 'http://p:1'},
                 {'https': 'http://p:1'}),
                ('SOCKS is for all', {'socks': 'socks://p:1'},
                 dict.fromkeys(('http', 'https', 'socks'), 'socks://p:1')),
                ('that has no other', {'socks': 'socks://p:1', 'http': 'http://q:1'},
                 {'http': 'http://q:1', 'https': 'socks://p:1', 'socks': 'socks://p:1'})):
            with self.subTest(name):
                self.assertEqual(streamlite._windows_proxies(given), expected)
        with mock.patch.object(sys, 'version_info', (3, 8)):
            self.assertEqual(
                streamlite._windows_proxies({'https': 'https://p:1', 'http': 'http://q:1'}),
                {'https': 'http://p:1', 'http': 'http://q:1'})
        with mock.patch.object(sys, 'version_info', (3, 9)):
            self.assertEqual(streamlite._windows_proxies({'https': 'https://p:1'}),
                             {'https': 'https://p:1'})

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_a_proxy_without_a_user_gets_no_credentials(self):
        for scheme in 'http', 'https':
            with self.subTest(scheme), Server(reply(403, {'Connection': 'close'})) as proxy:
                os.environ['%s_proxy' % scheme] = 'http://127.0.0.1:%d' % proxy.port
                asked = outcome_of(proxy, base_url=scheme + '://api.example.test/v1')
                self.assertSays(asked.result, 403)
                self.assertNotIn('proxy-authorization', asked.requests[0].headers)

    def test_a_proxys_user_needs_no_password(self):
        with Server(stream_reply(HELLO)) as proxy:
            os.environ['http_proxy'] = 'http://me@127.0.0.1:%d' % proxy.port
            asked = outcome_of(proxy, base_url='http://api.example.test/v1')
        self.assertEqual(asked.result, 'Hello world')
        self.assertEqual(asked.requests[0].headers['proxy-authorization'],
                         'Basic ' + base64.b64encode(b'me:').decode())

    def test_the_parts_of_a_proxys_url(self):
        for proxy, parts in (
                ('http://proxy:3128', ('http', 'proxy', 3128, None)),
                ('proxy:3128', ('http', 'proxy', 3128, None)),
                ('http://me:p%23w@proxy', ('http', 'proxy', None, 'p%23w')),
                ('socks5://proxy:1080', ('socks5', 'proxy', 1080, None)),
                ('http://me:p#w@proxy:3128', None), ('http://me:12#34@proxy:3128', None),
                ('http://me:p/w@proxy:3128', None),
                ('http://me:p?w@proxy:3128', None), ('http://', None), ('http://:3128', None),
                ('http://proxy:0', None), ('http://proxy:99999', None), ('http://\ud800', None)):
            with self.subTest(ascii(proxy)):
                found = streamlite._split_proxy(proxy)
                self.assertEqual(found and (found.scheme, found.hostname, found.port,
                                            found.password), parts)

    def test_only_windows_settings_are_put_in_another_form(self):
        system = {'socks': 'socks5://system.test:1'}
        for name, has_proxy in ('posix', False), ('nt', True):
            with self.subTest(name), mock.patch.object(streamlite.os, 'name', name):
                with mock.patch('urllib.request.getproxies', return_value=system):
                    self.assertEqual(hasattr(streamlite._ProxyHandler(), 'http_open'), has_proxy)


# Made for these tests, for "localhost" and "api.example.test", until 2120.
# The key protects nothing.
CERTIFICATE = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgYtit2XBvM+imZJr2
asOSAfvsuYijoqpbmKFXmQP/GAqhRANCAASFrsSscmX+TuQL74zWiOHx4+spADY5
JktwwETfweeynBo7XIv1c8GewnRCX8mKs7JCoboBZCLejXzLlX5oJ2QJ
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBkTCCATegAwIBAgIBATAKBggqhkjOPQQDAjAbMRkwFwYDVQQDDBBzdHJlYW1s
aXRlIHRlc3RzMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAbMRkw
FwYDVQQDDBBzdHJlYW1saXRlIHRlc3RzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAEha7ErHJl/k7kC++M1ojh8ePrKQA2OSZLcMBE38HnspwaO1yL9XPBnsJ0Ql/J
irOyQqG6AWQi3o18y5V+aCdkCaNqMGgwJgYDVR0RBB8wHYIJbG9jYWxob3N0ghBh
cGkuZXhhbXBsZS50ZXN0MA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgKE
MB0GA1UdDgQWBBTvwp2LRTJkXigmCfcUdTHuWPJG4DAKBggqhkjOPQQDAgNIADBF
AiEAlOLv8i3792g4lua9uF6N7APFz29u3kkN9aPgF7IgnMECIBSI/6ML8GPnAZX2
xHeSCnOc2rQmm3SbfI/eWYdTTMfd
-----END CERTIFICATE-----
"""


@contextlib.contextmanager
def certificate_file():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'certificate.pem')
        write_file(path, CERTIFICATE)
        yield path


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with certificate_file() as path:
        context.load_cert_chain(path)
    return context


def trusting_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=CERTIFICATE[CERTIFICATE.index('-----BEGIN CERT'):])
    return context


def close_while_it_is_read(test, stream, gone):
    """Close a stream of HELLO_CUT while another thread waits for more of it."""
    reading = threading.Event()

    def read():
        try:
            for _ in stream.text():
                reading.set()
        except streamlite.OpenAIError as error:  # ended or failed, but by an error of ours
            remember(error)

    thread = threading.Thread(target=read)
    thread.start()
    test.assertTrue(reading.wait(LONG))
    test.assertFalse(gone.wait(0.05))  # by now it waits for the next event
    with test.assertPrompt():
        stream.close()
        thread.join(LONG)
    test.assertTrue(gone.wait(PROMPT))


@unittest.skipUnless(ssl, 'this Python has no ssl')
class TLSTest(TestCase):

    def tls(self, *scripts, host='localhost', trusted=True, **options):
        """A server that speaks TLS, and a client of it, both until the end of the test."""
        server = self.serve(*scripts, tls=server_context())
        if trusted:
            options['ssl_context'] = trusting_context()
        base_url = 'https://%s:%d/v1' % (host, server.port)
        return server, self.enter(client(server, base_url=base_url, **options))

    def test_a_connection_is_kept_alive(self):
        for answer in (stream_reply(HELLO), stream_reply(HELLO, 'length'),
                       CHUNKED_HEAD + chunked(HELLO, 30)):
            server, asker = self.tls(answer)
            for _ in range(20):
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual((len(server.requests), server.connections), (20, 1))

    @unittest.skipUnless(ssl and ssl.HAS_ALPN, 'this Python cannot say which protocol it speaks')
    def test_it_says_that_it_speaks_http_1_1(self):
        spoken = []
        context = server_context()
        context.set_alpn_protocols(['h2', 'http/1.1'])

        def script(peer):
            spoken.append(peer.socket.selected_alpn_protocol())
            peer.send(stream_reply(HELLO))

        server = self.serve(script, tls=context)
        with certificate_file() as path, mock.patch.dict(os.environ, SSL_CERT_FILE=path):
            with client(server, base_url='https://localhost:%d/v1' % server.port) as asker:
                self.assertText(ask(asker), 'Hello world')
        self.assertEqual(spoken, ['http/1.1'])

    def test_a_private_ca_comes_from_the_environment(self):
        with certificate_file() as path:
            for name in 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE':
                with self.subTest(name), mock.patch.dict(os.environ, {name: path}):
                    self.assertText(ask(self.tls(trusted=False)[1]), 'Hello world')
            with mock.patch.dict(os.environ, SSL_CERT_FILE=path):
                _, asker = self.tls(trusted=False)
            # It keeps what it read.
            self.assertText(ask(asker), 'Hello world')
            with mock.patch.dict(os.environ, SSL_CERT_FILE=path + '.missing'):
                with self.assertRaises(streamlite.OpenAIError) as caught:
                    ask(self.tls(trusted=False)[1])
                self.assertSays(caught.exception, 'SSL_CERT_FILE', 'missing')
            garbage = path + '.garbage'
            write_file(garbage, 'no certificate')
            with mock.patch.dict(os.environ, SSL_CERT_FILE=garbage):
                with self.assertRaises(streamlite.OpenAIError) as caught:
                    ask(self.tls(trusted=False)[1])
                self.assertSays(caught.exception, 'CA certificates in ' + garbage)
        with tempfile.TemporaryDirectory() as folder:
            for name in 'SSL_CERT_DIR', 'REQUESTS_CA_BUNDLE':
                with mock.patch.dict(os.environ, {name: folder}):
                    _, asker = self.tls(trusted=False)
                    self.assertSays(self.assertBroken(asker, ''), 'is not trusted')

    def test_a_key_log_is_not_written(self):
        with tempfile.TemporaryDirectory() as folder:
            os.environ['SSLKEYLOGFILE'] = os.path.join(folder, 'keys')
            with certificate_file() as path:
                os.environ['SSL_CERT_FILE'] = path
                self.assertText(ask(self.tls(trusted=False)[1]), 'Hello world')
            self.assertEqual(os.listdir(folder), [])

    def test_an_unknown_certificate_is_refused_with_a_remedy_before_any_byte_of_the_request(self):
        server, asker = self.tls(trusted=False, max_retries=2)
        error = self.assertBroken(asker, '')
        self.assertSays(error, 'localhost', 'certificate', 'SSL_CERT_FILE')
        self.assertEqual((server.requests, server.connections, error.attempts), ([], 1, 1))

    def test_a_certificate_for_another_host_is_refused(self):
        server, asker = self.tls(host='127.0.0.1', max_retries=2)
        error = self.assertBroken(asker, '')
        self.assertSays(error, '127.0.0.1', 'certificate')
        self.assertEqual((server.requests, server.connections, error.attempts), ([], 1, 1))

    def test_a_stream_cut_without_close_notify_is_broken(self):
        # `cut` closes TCP and tells TLS nothing.
        cases = {'close-delimited': cut(stream_reply(HELLO_CUT, 'close')),
                 'chunked': cut(begun(HELLO_CUT)),
                 'reset': reset(begun(HELLO_CUT))}
        for name, script in cases.items():
            with self.subTest(name):
                self.assertBroken(self.tls(script)[1], 'Hello ')
        _, asker = self.tls(cut(stream_reply(FINISHED, 'close')))
        self.assertText(ask(asker), 'Hello world')

    def test_an_idle_connection_that_the_server_closed_costs_nothing(self):
        closed = threading.Event()

        def script(peer):
            peer.send(stream_reply(HELLO))
            with contextlib.suppress(OSError):
                peer.socket.settimeout(0.1)
                peer.socket.unwrap()  # says close_notify
            peer.close()
            closed.set()

        server, asker = self.tls(script, stream_reply(HELLO))
        self.assertText(ask(asker), 'Hello world')
        self.assertTrue(closed.wait(LONG))
        self.assertText(ask(asker), 'Hello world')
        self.assertEqual((len(server.requests), server.connections), (2, 2))

    def test_time_holds_over_tls_too(self):
        _, asker = self.tls(stall(WAITING))
        with ask(asker) as stream:
            self.assertEqual(next(stream.text()), 'Hel')
            hasten(stream)
            with self.assertRaises(streamlite.APITimeoutError) as caught, self.assertPrompt():
                stream.collect()
            self.assertEqual(text_of(caught.exception.partial), 'Hello ')

    def test_close_from_another_thread_ends_a_blocked_read(self):
        script, gone = watched()
        close_while_it_is_read(self, ask(self.tls(script)[1]), gone)

    def test_plain_http_where_tls_is_meant_and_the_reverse(self):
        server, asker = self.tls()
        with asker.with_options(base_url='http://localhost:%d/v1' % server.port) as plain:
            self.assertBroken(plain, '')
        # What servers with a TLS port say to plain http, nginx first.
        for words in (b'<html><title>400 The plain HTTP request was sent to HTTPS port</title>',
                      b'Client sent an HTTP request to an HTTPS server.\n'):
            error = outcome([reply(400, {'Connection': 'close'}, words)]).result
            self.assertSays(error, 'write https:// in base_url')

        class Resetting(Peer):
            def read_request(self):
                self.reset()

        def https(server):
            return asker.with_options(base_url='https://localhost:%d/v1' % server.port)

        with Server(peer=Resetting) as server:
            self.assertBroken(https(server), '')

        class Plain(Peer):
            def read_request(self):
                return Request(b'PLAIN /\r\n', self.socket.recv(65536), self.number)

        with Server(cut(reply(400, {'Connection': 'close'}, b'what?')), peer=Plain) as server:
            self.assertSays(self.assertBroken(https(server), ''), 'localhost',
                            'write http:// in base_url')

    def test_the_remedy_for_a_certificate_is_that_of_its_cause(self):
        for reason, remedy in (
                ('certificate has expired', 'clock'), ('certificate is not yet valid', 'clock'),
                ("Hostname mismatch, certificate is not valid for '127.0.0.1'.", 'base_url'),
                ("hostname '127.0.0.1' doesn't match 'localhost'", 'base_url'),
                ("IP address mismatch, certificate is not valid for '127.0.0.1'.", 'base_url'),
                ('Missing Authority Key Identifier', 'VERIFY_X509_STRICT'),
                ('Basic Constraints of CA cert not marked critical', 'VERIFY_X509_STRICT'),
                ('unable to get local issuer certificate', 'SSL_CERT_FILE'),
                ('self signed certificate in certificate chain', 'SSL_CERT_FILE')):
            told = getattr(ssl, 'SSLCertVerificationError', ssl.CertificateError)
            fault = told('[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: %s' % reason)
            # The server, which has no part in it, speaks no TLS.
            with self.subTest(reason), Server() as server, mock.patch.object(
                    ssl.SSLSocket, 'do_handshake', side_effect=fault):
                url = 'https://localhost:%d/v1' % server.port
                with client(server, base_url=url, ssl_context=trusting_context()) as asker:
                    error = self.assertBroken(asker, '')
                self.assertSays(error, 'localhost', reason, remedy)
                others = {'clock', 'base_url', 'VERIFY_X509_STRICT', 'SSL_CERT_FILE'} - {remedy}
                for other in others:
                    self.assertNotIn(other, str(error))

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_of_windows_certificates_those_count_that_are_good_for_servers(self):
        class Context:
            def __init__(self):
                self.loaded = []

            def load_verify_locations(self, cadata):
                if cadata == b'bad':
                    raise ssl.SSLError('scripted')
                self.loaded.append(cadata)

            def cert_store_stats(self):
                return {'x509': len(self.loaded)}

        server = ssl.Purpose.SERVER_AUTH.oid
        kept = [(b'any', 'x509_asn', True), (b'server', 'x509_asn', {server, '1.2.3'})]
        others = [(b'client', 'x509_asn', {'1.2.3'}), (b'package', 'pkcs_7_asn', True),
                  (b'bad', 'x509_asn', True)]
        for certificates, expected in ((others + kept, [b'any', b'server'] * 2), (others, None)):
            context = Context()
            with mock.patch.object(ssl, 'enum_certificates', lambda store: certificates,
                                   create=True):
                if expected is None:
                    self.assertRaises(OSError, streamlite._load_certificates, context, '', '')
                else:
                    streamlite._load_certificates(context, '', '')
                    self.assertEqual(context.loaded, expected)

    def test_a_python_without_ssl_says_so(self):
        with mock.patch.object(streamlite, 'ssl', None):
            with self.assertRaises(streamlite.OpenAIError) as caught:
                streamlite._tls_context.__wrapped__('', '', '', '')
        self.assertSays(caught.exception, 'no ssl module')

    def test_a_file_a_folder_or_both_of_certificates_are_loaded(self):
        for file, folder in ('f', ''), ('', 'd'), ('f', 'd'):
            context = mock.Mock()
            streamlite._load_certificates(context, file, folder)
            context.load_verify_locations.assert_called_once_with(file or None, folder or None)

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_of_a_connection_with_tls_one_socket_is_open_and_none_afterwards(self):
        before = len(streamlite._open_sockets)
        server, asker = self.tls(stall(WAITING))
        with asker, ask(asker) as stream:
            next(stream)
            self.assertEqual(len(streamlite._open_sockets), before + 1)
        self.assertEqual(len(streamlite._open_sockets), before)


class Time:
    """A clock that goes on when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class ClockTestCase(TestCase):
    """Time stands still, unless the test moves it."""

    def setUp(self):
        super().setUp()
        self.time = Time()
        self.enter(mock.patch.object(streamlite.time, 'monotonic', self.time))

    def call(self, read=600, deadline=float('inf')):
        return streamlite._Call('http://server.test/v1', 5, read, deadline)


class CallTest(ClockTestCase):

    def test_a_wait_ends_when_its_seconds_or_those_of_the_deadline_are_over(self):
        for deadline, seconds, later, left in (
                (float('inf'), 10, 0, 10), (float('inf'), 10, 4, 6), (float('inf'), 10, 10, None),
                (float('inf'), 10, 11, None), (100, 10, 4, 6), (8, 10, 0, 8), (8, 10, 4, 4),
                (8, 10, 8, None), (8, 0, 0, None), (float('inf'), 0.5, 0.25, 0.25)):
            with self.subTest(deadline=deadline, seconds=seconds, later=later):
                call = self.call(deadline=deadline)
                self.assertEqual(call.start(seconds), self.time.now + min(seconds, deadline))
                self.time.now += later
                if left is None:
                    self.assertRaises(socket.timeout, call.left)
                    self.assertEqual(call.remaining, 0)
                else:
                    self.assertEqual((call.left(), call.remaining), (left, left))
                self.assertEqual(call.elapsed, later)

    def test_to_start_again_extends_a_wait_but_not_the_deadline(self):
        call = self.call(deadline=25)
        for expected in 10, 10, 5, None:
            if expected is None:
                call.start(10)
                self.assertRaises(socket.timeout, call.left)
            else:
                call.start(10)
                self.assertEqual(call.left(), expected)
                self.time.now += 10

    def test_a_step_on_the_way_shortens_a_wait_and_never_extends_it(self):
        call = self.call()
        call.start(10)
        for seconds, left in (3, 3), (30, 10):
            with call.within(seconds):
                self.assertEqual(call.left(), left)
            self.assertEqual(call.left(), 10)
        with contextlib.suppress(OSError), call.within(3):
            raise OSError('scripted')
        self.assertEqual(call.left(), 10, 'after a fault, too')
        with call.within(3):
            self.time.now += 3
            self.assertRaises(socket.timeout, call.left)
        self.assertEqual(call.left(), 7)

    def test_a_wait_can_be_gone_on_with(self):
        call = self.call()
        until = call.start(10)
        self.time.now += 4
        call.start(100)
        call.go_on(until)
        self.assertEqual(call.left(), 6)

    def test_no_limit_is_a_number_that_every_platform_takes(self):
        call = self.call()
        self.assertEqual(call.left(), 1e6)
        call.start(float('inf'))
        self.assertEqual(call.left(), 1e6)

    def test_what_was_cancelled_has_no_time_left(self):
        call = self.call()
        call.start(10)
        self.assertFalse(call.cancelled)
        call.cancel()
        self.assertTrue(call.cancelled)
        for _ in 'in time', 'and late':
            with self.assertRaises(OSError) as caught:
                call.left()
            self.assertNotIsInstance(caught.exception, socket.timeout)
            self.time.now += 20

    def test_a_call_looks_at_its_end_also_where_nobody_waits(self):
        call = self.call(deadline=10)
        call.start(1)
        self.time.now += 9
        call.look()
        self.time.now += 1
        self.assertRaises(socket.timeout, call.look)
        call = self.call()
        call.cancel()
        with self.assertRaises(OSError) as caught:
            call.look()
        self.assertNotIsInstance(caught.exception, socket.timeout)

    def test_a_sleep_ends_in_time_and_soon_after_a_cancellation(self):
        for seconds, cancelled_after, slept in ((3, None, 3), (0, None, 0), (-1, None, 0),
                                                (1e9, 2, 2), (1e9, 0, 0)):
            call, start = self.call(), self.time.now

            def sleep(seconds):
                self.time.now += seconds
                if cancelled_after is not None and self.time.now >= start + cancelled_after:
                    call.cancel()

            with self.subTest(seconds, cancelled_after=cancelled_after):
                if cancelled_after == 0:
                    call.cancel()
                with mock.patch.object(streamlite.time, 'sleep', sleep):
                    call.sleep(seconds)
                self.assertTrue(0 <= self.time.now - start - slept < 1)

    def test_a_cancellation_shuts_the_socket_in_use_and_no_other(self):
        for name, uses, shut, alone in (
                ('none', '', [], True), ('one in use', 'a', ['a'], False),
                ('one that was let go', 'a-', [], True), ('the last of two', 'ab', ['b'], False),
                ('one after another', 'a-b', ['b'], False)):
            with self.subTest(name), mock.patch.object(streamlite, '_shut') as shutter:
                call = self.call()
                for use in uses:
                    if use == '-':
                        self.assertTrue(call.let_go())
                    else:
                        call.hold(use)
                def shut_here():  # not what a garbage collection closes meanwhile
                    return [args[0] for args, _ in shutter.call_args_list
                            if isinstance(args[0], str)]

                call.cancel()
                self.assertEqual(shut_here(), shut)
                self.assertRaises(OSError, call.hold, 'c')
                self.assertFalse(call.let_go(), 'it may not serve another call')
                call.cancel()
                self.assertEqual(shut_here(), shut, 'let go of')

    def test_the_body_of_a_list_of_models_has_seconds_of_its_own(self):
        reading, read = threading.Event(), streamlite._Reply.read
        answer = reply(200, {}, MODELS)

        def script(peer):
            self.time.now += 9
            head, blank_line, body = answer.partition(b'\r\n\r\n')
            peer.send(head + blank_line)
            reading.wait(LONG)
            self.time.now += 9
            for byte in range(len(body)):
                peer.send(body[byte:byte + 1])

        def note(reply, size):
            reading.set()
            return read(reply, size)

        with mock.patch.object(streamlite._Reply, 'read', note):
            with served(script, timeout=10) as (server, asker):
                self.assertEqual([model.id for model in asker.models.list()], ['one', 'two'])

    def test_a_request_that_was_not_taken_may_have_an_answer_all_the_same(self):
        class Refusing(Wire):
            sock = None

            def send(self, call, data):
                raise refused

        refused = OSError('the request was not taken')
        handler = streamlite._Handler(streamlite._Pool(), None)
        for reads, fault in (([reply(413)], None), ([], None), ([], RESET), ([b'HTTP/1.1 '], None)):
            wire = Refusing(*reads, fault=fault)
            request = streamlite._Request(
                self.call(), streamlite._Secrets(), 'POST', 'http://server.test/v1', {}, b'x')
            with self.subTest(reads, fault=fault):
                if reads == [reply(413)]:
                    self.assertEqual(handler._exchange(wire, request).status, 413)
                    request.reply.release()
                else:
                    with self.assertRaises(OSError) as caught:
                        handler._exchange(wire, request)
                    self.assertIs(caught.exception, refused)
                self.assertTrue(wire.closed, 'it is in no state to be used again')

    def test_an_end_that_a_cancellation_made_is_a_fault(self):
        class Cancelling:
            def __enter__(self):
                call.cancel()

            def __exit__(self, *exc_info):
                pass

        ours, theirs = socket.socketpair()
        call, connection = self.call(), streamlite._Connection(None, ours, 0.0)
        with contextlib.closing(theirs), contextlib.closing(connection):
            call.hold(ours)
            call.network = Cancelling()
            self.assertTrue(connection.fill(call))
            self.assertTrue(connection.ended)
            self.assertIsInstance(connection.fault, OSError)

    def test_a_lost_connection_says_why(self):
        for fault, word in ((ConnectionResetError('by peer'), 'by peer'),
                            (ConnectionResetError(), 'ConnectionResetError')):
            error = streamlite._lost_connection(fault, self.call())
            self.assertSays(error, word, 'was lost')
            self.assertNotIn('after', str(error))
        self.assertSays(streamlite._lost_connection(OSError('x'), self.call(), 7), 'after 7 chunks')


BASIC = 'Basic ' + base64.b64encode(b'user:pass-word').decode()

# A header or field of a query, a text, and what of it may be shown.
HIDDEN = (
    # by name
    ('Authorization', 'Bearer sk-0123456789', 'key sk-0123456789!', 'key ***!'),
    ('Authorization', 'Bearer sk-0123456789', 'Bearer sk-0123456789', '***'),
    ('api-key', 'sk-0123456789', 'sk-0123456789 sk-0123456789', '*** ***'),
    ('x-goog-api-key', 'sk-0123456789', 'sk-0123456789', '***'),
    ('X-Auth-Token', 'sk-0123456789', 'sk-0123456789', '***'),
    ('client_secret', 'sk-0123456789', 'sk-0123456789', '***'),
    ('password', 'sk-0123456789', 'sk-0123456789', '***'),
    ('PASSWD', 'sk-0123456789', 'sk-0123456789', '***'),
    ('pwd', 'sk-0123456789', 'sk-0123456789', '***'),
    ('X-Amz-Credential', 'sk-0123456789', 'sk-0123456789', '***'),
    ('X-Amz-Signature', 'sk-0123456789', 'sk-0123456789', '***'),
    ('code', 'sk-0123456789', 'sk-0123456789', '***'),
    ('sig', 'sk-0123456789', 'sk-0123456789', '***'),
    ('x-pass', 'sk-0123456789', 'sk-0123456789', '***'),
    ('pass', 'sk-0123456789', 'sk-0123456789', '***'),
    # other names
    ('Accept', 'sk-0123456789', 'sk-0123456789', 'sk-0123456789'),
    ('api-version', 'sk-0123456789', 'sk-0123456789', 'sk-0123456789'),
    ('design', 'sk-0123456789', 'sk-0123456789', 'sk-0123456789'),
    ('encoder', 'sk-0123456789', 'sk-0123456789', 'sk-0123456789'),
    ('compass', 'sk-0123456789', 'sk-0123456789', 'sk-0123456789'),
    # parts of values
    ('Proxy-Authorization', BASIC, 'pass-word', '***'),
    ('Proxy-Authorization', BASIC, BASIC.split()[1], '***'),
    ('Proxy-Authorization', BASIC, 'user', 'user'),
    ('Authorization', 'Basic !!', 'Basic !!', '***'),
    ('Cookie', 'a=0123456789; b=abcdefghij', 'a=0123456789', 'a=***'),
    ('Cookie', 'a=0123456789; b=abcdefghij', 'it is abcdefghij.', 'it is ***.'),
    ('Cookie', 'a=0123456789; b=abcdefghij', 'a and b', 'a and b'),
    ('api-key', 'part=0123456789', '0123456789', '0123456789'),
    # short ones are words
    ('api-key', 'any', 'not any more', 'not *** more'),
    ('api-key', 'any', 'many of any, any-thing', 'many of ***, ***-thing'),
    ('api-key', 'ollama', 'ollama_llama_server of (ollama)', 'ollama_llama_server of (***)'),
    ('api-key', '1234567', 'x1234567 1234567', 'x1234567 ***'),
    ('api-key', '12345678', 'x12345678y', 'x***y'),
    ('api-key', '', 'nothing is secret', 'nothing is secret'),
    # as they may come back
    ('api-key', 'a/b+c "d"-long', 'a/b+c "d"-long', '***'),
    ('api-key', 'a/b+c "d"-long', 'a/b%2Bc%20%22d%22-long', '***'),
    ('api-key', 'a/b+c "d"-long', 'a%2Fb%2Bc%20%22d%22-long', '***'),
    ('api-key', 'a/b+c "d"-long', 'a/b+c \\"d\\"-long', '***'),
    ('api-key', 'a/b+c-long', 'a\\/b+c-long', '***'),
    ('api-key', 'a.b(c)*-long', 'a.b(c)*-long axb(c)*-long', '*** axb(c)*-long'),
    ('api-key', 'sk-0123456789', 'SK-0123456789', 'SK-0123456789'),
)


class SecretTableTest(TestCase):

    def test_what_is_hidden_of_a_text(self):
        for name, value, text, shown in HIDDEN:
            with self.subTest(name, value=value, text=text):
                secrets = streamlite._Secrets()
                secrets.add_header(name, value)
                self.assertEqual(secrets.hide(text), shown)

    def test_the_longest_of_several_is_hidden_whole(self):
        secrets = streamlite._Secrets()
        self.assertFalse(secrets)
        self.assertEqual(secrets.hide('0123456789abc'), '0123456789abc')
        secrets.add('0123456789', '', '0123456789abc')
        self.assertEqual(secrets.hide('0123456789abc 0123456789'), '*** ***')
        secrets.add('another-one')
        self.assertEqual(secrets.hide('another-one 0123456789'), '*** ***', 'one added later')
        self.assertTrue(secrets)

    def test_the_longest_form_of_a_secret_is_known(self):
        # So much of a text is kept behind a cut, lest half a secret is left there.
        secrets = streamlite._Secrets()
        self.assertEqual(secrets.longest, 1)
        for text in 'abc', '\x01' * 40, 'é/"\\' * 10:
            secrets.add(text)
            forms = json.dumps(text)[1:-1], urllib.parse.quote(text, safe='')
            self.assertGreater(secrets.longest, max(map(len, forms)))

    def test_values_of_json_are_searched_whole(self):
        secrets = streamlite._Secrets()
        secrets.add('0123456789')
        value = {'a': ['0123456789', 7, None, True, {'0123456789': 'x0123456789'}], 'b': 0.5}
        self.assertEqual(secrets.hide_in(value),
                         {'a': ['***', 7, None, True, {'***': 'x***'}], 'b': 0.5})
        self.assertIn('0123456789', str(value), 'the value itself is left as it is')


    def test_headers_are_searched_and_keep_their_order_and_repetitions(self):
        secrets = streamlite._Secrets()
        secrets.add('0123456789')
        headers = streamlite._parse_head(lines('X: 0123456789', 'Y: 1', 'x: 2')).headers
        hidden = secrets.hide_in_headers(headers)
        self.assertEqual(hidden.items(), [('X', '***'), ('Y', '1'), ('x', '2')])
        self.assertEqual(hidden.get('y'), '1')

    def test_a_header_that_is_no_credentials_hides_itself_and_nothing_else(self):
        for value in 'Basic !', 'Basic ' + base64.b64encode(b'\xff\xfe:x').decode(), 'Basic':
            with self.subTest(value):
                secrets = streamlite._Secrets()
                secrets.add_header('Authorization', value)
                self.assertNotIn(value, secrets.hide('sent: %s.' % value).split('sent: ')[1])
                self.assertEqual(secrets.hide('a word'), 'a word')
        secrets = streamlite._Secrets()
        secrets.add_header('Authorization', 'Token ' + base64.b64encode(b'me:word').decode())
        self.assertEqual(secrets.hide('a word'), 'a word', 'it is no Basic')


def tail_of(*pieces):
    """The rest of a body: a piece that is an error is raised."""
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


HERE = ('http', 'server.test:80', '')  # A route.
ELSEWHERE = ('http', 'other.test:80', '')


class PoolTest(ClockTestCase):
    """Connections are kept, and given out where nothing of the last answer is left in them."""

    def idle(self, *reads, route=HERE, **options):
        return Wire(*reads, route=route, **dict({'silent': True}, **options))

    def test_a_connection_is_used_again_where_the_body_has_ended_and_nothing_more_is_there(self):
        end = head_of(chunked=True)
        for name, wire, tail, age, reusable in (
                ('the body has ended', self.idle(), tail_of(), 10, True),
                ('the body has just ended', self.idle(), tail_of(), 0, True),
                ('its end is there', self.idle(b'0\r\n\r\n'), end, 10, True),
                ('its end comes', self.idle(b'0\r\n', b'\r\n'), end, 0, True),
                ('its end does not come in time', self.idle(b'0\r\n'), end, 0, False),
                ('its end is not there', self.idle(), end, 10, False),
                ('half of its end is there', self.idle(b'0\r\n'), end, 10, False),
                ('more text is there', self.idle(b'5\r\nHello\r\n0\r\n\r\n'), end, 10, True),
                ('text for ever', self.idle(), tail_of(*[b'x'] * 1000), 10, False),
                ('a fault in the body', self.idle(), tail_of(RESET), 10, False),
                ('a bad end', self.idle(b'x\r\n'), end, 10, False),
                ('something behind the end', self.idle(b'0\r\n\r\nHTTP'), end, 10, False),
                ('something comes behind the end', self.idle(b'0\r\n\r\n', b'HTTP'), end, 10,
                 False),
                ('the server closed', self.idle(silent=False), tail_of(), 10, False),
                ('the server closed behind the end', self.idle(b'0\r\n\r\n', silent=False), end, 10,
                 False),
                ('the server closed in the body', self.idle(silent=False), end, 10, False),
                ('a reset', self.idle(silent=False, fault=RESET), tail_of(), 10, False)):
            with self.subTest(name):
                if tail is end:
                    tail = streamlite._framed(wire, end)
                call = self.call()
                call.start(600)
                self.assertIs(streamlite._is_reusable(wire, tail, call, age), reusable)
                self.assertEqual(call.left(), 600, 'the call has its own time again')

    def test_bytes_that_were_taken_too_early_spoil_a_connection(self):
        wire = self.idle()
        wire.ahead = b'HTTP/1.1 200 OK\r\n'
        self.assertFalse(streamlite._is_reusable(wire, tail_of(), self.call(), 10))

    def test_only_a_young_one_is_waited_for_and_not_for_long(self):
        for age, waits, looks in ((0, [0.1], [600]), (0.04, [0.06], [600]), (0.1, [], [1, 600]),
                                  (10, [], [1, 600])):
            wire = self.idle(b'0\r\n\r\n')
            with self.subTest(age):
                call = self.call()
                call.start(600)
                tail = streamlite._framed(wire, head_of(chunked=True))
                self.assertTrue(streamlite._is_reusable(wire, tail, call, age))
                self.assertEqual((wire.waits, wire.looks), (waits, looks))

    def test_the_youngest_of_the_same_route_is_given_first_and_each_once(self):
        pool, call = streamlite._Pool(), self.call()
        first, second, other = self.idle(), self.idle(), self.idle(route=ELSEWHERE)
        for wire in first, second, other:
            pool.release(wire, tail_of())
            self.time.now += 1
        self.assertIs(pool.claim(HERE, call), second)
        self.assertIs(pool.claim(HERE, call), first)
        self.assertIsNone(pool.claim(HERE, call))
        self.assertIs(pool.claim(ELSEWHERE, call), other)
        self.assertFalse(first.closed or second.closed or other.closed)

    def test_one_that_cannot_be_used_is_closed_and_the_next_is_tried(self):
        pool, call = streamlite._Pool(), self.call()
        good, dead, busy = self.idle(), self.idle(silent=False), self.idle()
        for wire, tail in (good, tail_of()), (dead, tail_of()), (busy, tail_of(*[b'x'] * 100)):
            pool.release(wire, tail)
        self.time.now += 1
        self.assertIs(pool.claim(HERE, call), good)
        self.assertEqual([dead.closed, busy.closed, good.closed], [True, True, False])

    def test_one_that_was_idle_for_too_long_is_closed_unread(self):
        pool, call = streamlite._Pool(), self.call()
        old, young, other = self.idle(b'x'), self.idle(), self.idle(b'x', route=ELSEWHERE)
        pool.release(old, tail_of())
        pool.release(other, tail_of())
        self.time.now += 20
        pool.release(young, tail_of())
        self.time.now += 10.5
        self.assertIs(pool.claim(HERE, call), young)
        self.assertTrue(old.closed and other.closed)
        self.assertEqual((old.reads, other.reads), ([b'x'], [b'x']))
        self.assertIsNone(pool.claim(ELSEWHERE, call))
        pool.release(young, tail_of())
        self.time.now += 30
        self.assertIs(pool.claim(HERE, call), young, 'thirty seconds are not too long')

    def test_of_too_many_the_oldest_are_closed(self):
        pool = streamlite._Pool()
        wires = [self.idle() for _ in range(streamlite.MAX_IDLE + 2)]
        for wire in wires:
            pool.release(wire, tail_of())
        self.assertEqual([wire.closed for wire in wires],
                         [True] * 2 + [False] * streamlite.MAX_IDLE)
        self.assertEqual([pool.claim(HERE, self.call()) for _ in wires], wires[:1:-1] + [None] * 2)

    def test_a_pool_that_was_closed_keeps_none(self):
        pool = streamlite._Pool()
        before, after = self.idle(), self.idle()
        pool.release(before, tail_of())
        self.assertFalse(pool.closed or before.closed)
        pool.close()
        pool.release(after, tail_of())
        self.assertTrue(pool.closed and before.closed and after.closed)
        self.assertIsNone(pool.claim(HERE, self.call()))

    def test_a_forked_process_leaves_its_parents_connections_alone(self):
        pool, wire = streamlite._Pool(), self.idle()
        pool.release(wire, tail_of())
        with mock.patch.object(streamlite.os, 'getpid', return_value=-1):
            self.assertIsNone(pool.claim(HERE, self.call()))
            own = self.idle()
            pool.release(own, tail_of())
            self.assertIs(pool.claim(HERE, self.call()), own)
        self.assertFalse(wire.closed)

    def test_a_signal_handler_may_close_the_client_at_any_line_of_the_pool(self):
        def in_pool(frame):
            here = frame.f_locals.get('self')
            return in_module(frame) and isinstance(here, streamlite._Pool)

        def check():
            for number in itertools.count(1):
                with client(server) as asker:
                    with signalled(number, asker.close, in_pool) as lines:
                        for _ in range(2):
                            self.assertText(ask(asker), 'Hello world')
                    self.assertTrue(asker.is_closed() or lines[0] < number)
                if lines[0] < number:
                    done.append(number)
                    return

        done = []
        server = self.serve(stream_reply(HELLO))
        in_time(self, check)
        self.assertGreater(done[0], 20)


def lines(*headers, status='HTTP/1.1 200 OK', end='\r\n'):
    """A head of these lines."""
    return end.join((status,) + headers + ('', '')).encode('latin-1')


CHUNKED, LENGTH = 'Transfer-Encoding: chunked', 'Content-Length: 5'

# A head, and what it says: of the status, the reason, the framing, the length and the coding, what
# is not "200 OK", ended by the close, without a coding; and whether the connection can be kept.
HEADS = (
    ('nothing', lines(), {'keep': False}),
    ('another status', lines(LENGTH, status='HTTP/1.1 429 Too Many Requests'),
     {'status': 429, 'reason': 'Too Many Requests', 'length': 5}),
    ('no reason', lines(LENGTH, status='HTTP/1.1 200'), {'reason': '', 'length': 5}),
    ('an empty reason', lines(LENGTH, status='HTTP/1.1 200 '), {'reason': '', 'length': 5}),
    ('a reason in latin-1', lines(LENGTH, status='HTTP/1.1 200 \xe9'),
     {'reason': '\xe9', 'length': 5}),
    ('an unusual status', lines(LENGTH, status='HTTP/1.1 599 x'),
     {'status': 599, 'reason': 'x', 'length': 5}),
    ('line ends of LF', lines(LENGTH, end='\n'), {'length': 5}),
    # framing
    ('chunked', lines(CHUNKED), {'chunked': True}),
    ('Chunked', lines('transfer-encoding:  CHUNKED '), {'chunked': True}),
    ('identity', lines('Transfer-Encoding: identity', LENGTH), {'length': 5, 'keep': False}),
    ('a length', lines(LENGTH), {'length': 5}),
    ('a length with blanks', lines('Content-Length:\t 5 '), {'length': 5}),
    ('a length of 0', lines('Content-Length: 0'), {'length': 0}),
    ('a length with zeros', lines('Content-Length: 005'), {'length': 5}),
    ('the same length twice', lines(LENGTH, LENGTH), {'length': 5}),
    ('both', lines(CHUNKED, LENGTH), {'chunked': True, 'keep': False}),
    ('both, and the length is none', lines(CHUNKED, 'Content-Length: x'),
     {'chunked': True, 'keep': False}),
    ('no body', lines(CHUNKED, status='HTTP/1.1 204 No Content'),
     {'status': 204, 'reason': 'No Content', 'length': 0}),
    ('no body without a word of it', lines(status='HTTP/1.1 304 x'),
     {'status': 304, 'reason': 'x', 'length': 0}),
    # the connection
    ('close', lines(LENGTH, 'Connection: close'), {'length': 5, 'keep': False}),
    ('Close, and more', lines(LENGTH, 'connection: x, Close'), {'length': 5, 'keep': False}),
    ('keep-alive', lines(LENGTH, 'Connection: keep-alive'), {'length': 5}),
    ('HTTP/1.0', lines(LENGTH, status='HTTP/1.0 200 OK'), {'length': 5, 'keep': False}),
    ('HTTP/1.0 with keep-alive', lines(LENGTH, 'Connection: Keep-Alive', status='HTTP/1.0 200 OK'),
     {'length': 5}),
    ('keep-alive without framing', lines('Connection: keep-alive'), {'keep': False}),
    # the coding
    ('gzip', lines(LENGTH, 'Content-Encoding: GZip '), {'length': 5, 'coding': 'gzip'}),
    ('no coding', lines(LENGTH, 'Content-Encoding: Identity'), {'length': 5}),
    ('an empty coding', lines(LENGTH, 'Content-Encoding:'), {'length': 5}),
    # odd lines
    ('a continued line', lines('X: a', ' b', '\tc', LENGTH), {'length': 5}),
    ('a name of signs', lines("!#$%&'*+.^_`|~-09aZ: x", LENGTH), {'length': 5}),
    ('a value of latin-1', lines('X: \xe9\xff', LENGTH), {'length': 5}),
    ('a value with a tab', lines('X: a\tb', LENGTH), {'length': 5}),
)

REFUSED_HEADS = (
    # the status line
    lines(status='HTTP/2 200 OK'), lines(status='HTTP/1.2 200 OK'), lines(status='HTTP/1.1 20 OK'),
    lines(status='HTTP/1.1 2000 OK'), lines(status='HTTP/1.1 abc OK'), lines(status='HTTP/1.1'),
    lines(status='HTTP/1.1200 OK'), lines(status='HTTPS/1.1 200 OK'), lines(status=' HTTP/1.1 200'),
    lines(status='http/1.1 200 OK'), lines(status='HTTP/1.1 200OK'), lines(status=''),
    # the lines
    lines('nonsense'), lines('no sense'), lines(': x'), lines('X : 1'), lines('X\t: 1'),
    lines(' X: 1'), lines('\tX: 1'), lines('X: a\0b'), lines('X: a\rb'), lines('X: a\x0bb'),
    lines('X: a\x1fb'), lines('X\xe9: 1'), lines('(X): 1'), lines(LENGTH, 'x' * 10),
    # the framing
    lines('Content-Length: -1'), lines('Content-Length: +5'), lines('Content-Length: 5 5'),
    lines('Content-Length: 5, 5'), lines('Content-Length: 0x5'), lines('Content-Length: 5.0'),
    lines('Content-Length: \xb2'), lines('Content-Length:'), lines('Content-Length: ' + '9' * 19),
    lines(LENGTH, 'Content-Length: 6'), lines('Transfer-Encoding: gzip, chunked'),
    lines('Transfer-Encoding: gzip'), lines('Transfer-Encoding: chunked, chunked'),
    lines('Transfer-Encoding: xchunked'), lines('Transfer-Encoding:'), lines(CHUNKED, CHUNKED),
    lines(CHUNKED, 'Transfer-Encoding: identity'), lines('Transfer-Encoding: identity', CHUNKED),
)


class HeadTableTest(ClockTestCase):

    def test_what_a_head_says(self):
        for name, block, expected in HEADS:
            usual = {'status': 200, 'reason': 'OK', 'keep': True, 'chunked': False, 'length': None,
                     'coding': ''}
            with self.subTest(name):
                parsed = streamlite._parse_head(block)
                self.assertEqual({field: getattr(parsed, field) for field in usual},
                                 dict(usual, **expected))

    def test_headers_are_found_whatever_their_case(self):
        headers = streamlite._parse_head(lines('X-One: a', 'x-two:b', 'X-ONE: c', 'E:')).headers
        self.assertEqual((headers.get('x-one'), headers.get_all('X-One')), ('a', ['a', 'c']))
        self.assertEqual((headers.get('X-Two'), headers.get('e'), headers.get('none')),
                         ('b', '', None))

    def test_a_doubtful_head_is_refused(self):
        for block in REFUSED_HEADS:
            with self.subTest(block):
                with self.assertRaises(streamlite._BrokenReply):
                    streamlite._parse_head(block)

    def test_a_hundred_headers_more_than_http_client_takes_are_our_error(self):
        with self.assertRaises(streamlite._BrokenReply):
            streamlite._parse_head(lines(*['X: 1'] * 200))

    def read(self, *reads, **options):
        """The head that comes in these reads, and what is left for the body."""
        wire = Wire(*reads, **options)
        call = self.call()
        call.start(600)
        return streamlite._read_head(wire, call), wire

    def test_a_head_at_every_split(self):
        for interim in b'', lines(status='HTTP/1.1 100 Continue'), lines(
                'Link: </x>', status='HTTP/1.1 103 x') * 2 + lines(status='HTTP/1.1 102 x'):
            for end in '\r\n', '\n':
                block = interim + lines(LENGTH, end=end)
                for reads in splits(block):
                    head, wire = self.read(*reads + [b'Hello'])
                    self.assertEqual((head.status, head.length), (200, 5), reads)
                    self.assertEqual((wire.rest, wire.reads[-1]), (b'Hello', b'Hello'), reads)
                head, wire = self.read(block + b'Hello', silent=True)
                self.assertEqual(wire.rest, b'Hello')

    def test_what_is_no_head_is_refused_without_waiting_for_its_end(self):
        for start, words in ((b'\x15\x03\x01\0\x02\x02\x28', 'https'),
                             (b'\x16\x03\x01\0\x02\x02\x28', 'https'), (b'SSH-2.0-x\r\n', 'HTTP'),
                             (b'data: {}\n\n', 'HTTP'), (b'http/1.1 200 OK', 'HTTP'),
                             (b'\r\nHTTP/1.1 200 OK\r\n\r\n', 'HTTP'),
                             (lines(status='HTTP/1.1 101 x'), 'switch')):
            for reads in [start], [start[at:at + 1] for at in range(len(start))]:
                with self.subTest(start, reads=len(reads)):
                    with self.assertRaises(streamlite._BrokenReply) as caught:
                        self.read(*reads, silent=True)
                    self.assertSays(caught.exception, words)

    def test_an_end_in_the_head_says_whether_anything_had_come(self):
        block = lines(LENGTH)
        for size in range(len(block)):
            for fault in None, RESET:
                with self.subTest(block[:size], fault=fault):
                    with self.assertRaises(OSError) as caught:
                        self.read(block[:size], fault=fault)
                    if fault is not None:
                        self.assertIs(caught.exception, fault)
                    else:
                        self.assertSays(caught.exception, 'in the middle' if size else 'without an')

    def test_a_head_that_never_ends_is_an_error_before_it_is_large(self):
        limit = streamlite.MAX_HEADERS
        for name, start, piece in (('a status line', b'HTTP/1.1 200 ', b'x' * 4000),
                                   ('a header', b'HTTP/1.1 200 OK\r\nX: ', b'x' * 4000),
                                   ('headers', b'HTTP/1.1 200 OK\r\n', b'X: 1\r\n' * 700),
                                   ('interim answers', b'', lines(
                                       'X: ' + 'x' * 300, status='HTTP/1.1 103 x') * 15)):
            with self.subTest(name):
                wire = Wire(start, *[piece] * 200, silent=True)
                call = self.call()
                call.start(600)
                with self.assertRaises(streamlite._BrokenReply) as caught:
                    streamlite._read_head(wire, call)
                self.assertSays(caught.exception, 'longer')
                self.assertLess((200 - len(wire.reads)) * len(piece), limit + 2 * len(piece))
        large = lines(*['X-%d: %s' % (number, 'x' * 9000) for number in range(28)])
        self.assertEqual(self.read(large)[0].status, 200)


# --------------------------------------------------------------------------------------------------
# Retries: what is tried again, when, and how often
# --------------------------------------------------------------------------------------------------

class RetryTest(TestCase):

    def test_what_may_be_cured_is_asked_again_with_the_same_bytes(self):
        for status in 408, 409, 429, 500, 502, 503, 504, 529:
            answer = error_reply(
                status, dict(AGAIN, **({'Content-Encoding': 'br'} if status == 503 else {})))
            with self.subTest(status), Server(answer, answer, stream_reply(HELLO)) as server:
                with client(server, max_retries=2) as asker:
                    self.assertText(ask(asker), 'Hello world')
                first, second, third = server.requests
                self.assertEqual(first.body, second.body)
                self.assertEqual(first.body, third.body)
                self.assertEqual(first.json['messages'], [{'role': 'user', 'content': 'hi'}])
                self.assertEqual(first.headers, third.headers)

    def test_what_would_come_again_is_not(self):
        for answer in [error_reply(status, AGAIN)
                       for status in (400, 401, 402, 403, 404, 418, 422)] + [
                error_reply(429, AGAIN, code='insufficient_quota'),
                error_reply(429, AGAIN, type='insufficient_quota'),
                error_reply(503, dict(AGAIN, **{'x-should-retry': 'false'}))]:
            with self.subTest(answer), served(answer, max_retries=2) as (server, asker):
                with self.assertRaises(streamlite.APIStatusError) as caught:
                    ask(asker)
                self.assertEqual(len(server.requests), 1)
                self.assertEqual(caught.exception.attempts, 1)

    def test_x_should_retry_says_so_for_any_status(self):
        answer = error_reply(400, dict(AGAIN, **{'x-should-retry': 'true'}))
        self.assertEqual(outcome([answer, stream_reply(HELLO)], max_retries=2).result,
                         'Hello world')

    def test_the_server_says_when(self):
        cases = {  # least and most seconds of the wait, as the log tells them
            ('retry-after-ms', '30'): (0.03, 0.03),
            ('Retry-After', '0.03'): (0.03, 0.03),
            # Where the server says nothing of use, it is half a second less up to a quarter.
            ('Retry-After', 'soon'): (0.375, 0.5),
        }
        scripts = {header: [error_reply(429, dict([header]), 'case %d.' % number),
                            stream_reply(HELLO)]
                   for number, header in enumerate(cases)}
        for number, (header, result) in enumerate(outcomes(scripts, max_retries=1)):
            with self.subTest(header):
                self.assertEqual(result.result, 'Hello world')
                logged, = [said for said in SAID if 'case %d.' % number in said]
                least, most = cases[header]
                seconds = float(re.search(r'in ([\d.]+) s', logged).group(1))
                self.assertTrue(least - 0.01 <= seconds <= most + 0.01, logged)

    def test_a_wait_of_more_than_two_minutes_is_left_to_the_caller(self):
        date = email.utils.formatdate(time.time() + 300, usegmt=True)
        for name, value in (('Retry-After', '121'), ('Retry-After', date),
                            ('retry-after-ms', '999999')):
            with self.subTest(name, value=value):
                result = outcome([error_reply(429, {name: value}), stream_reply(HELLO)],
                                 max_retries=2)
                self.assertIsInstance(result.result, streamlite.RateLimitError)
                self.assertLess(result.seconds, PROMPT)
                self.assertGreater(result.result.retry_after, 120)

    def test_an_error_tells_how_often_and_how_long_was_tried(self):
        with served(error_reply(503, {'retry-after-ms': '20'}), max_retries=2) as (server, asker):
            with self.assertRaises(streamlite.InternalServerError) as caught:
                ask(asker)
            error = caught.exception
            self.assertEqual(len(server.requests), 3)
            self.assertEqual(error.attempts, 3)
            self.assertTrue(0 < error.elapsed < PROMPT, error.elapsed)
            self.assertAlmostEqual(error.retry_after, 0.02)
            self.assertIsNone(error.partial)
            self.assertEqual(len(set(request.connection for request in server.requests)), 1)
            with self.assertRaises(streamlite.InternalServerError) as caught:
                ask(asker.with_options(max_retries=0))
            self.assertEqual(caught.exception.attempts, 1)

    def test_a_server_may_be_away_for_as_long_as_is_wanted(self):
        with dead_port() as port, no_waits():
            with client(None, base_url='http://127.0.0.1:%d' % port, max_retries=1100) as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
        self.assertEqual(caught.exception.attempts, 1101)

    def test_each_retry_is_logged_with_its_cause(self):
        with Server(error_reply(503, AGAIN), error_reply(429, AGAIN),
                    stream_reply(HELLO)) as server:
            with client(server, max_retries=2) as asker:
                self.assertText(ask(asker), 'Hello world')
        self.assertLogged('INFO', ' 503 ')  # with spaces: a port may hold these digits
        self.assertLogged('INFO', ' 429 ')
        self.assertEqual(len([said for said in SAID if said.startswith('INFO')]), 2)

    def test_a_loss_before_the_first_chunk_is_invisible(self):
        cases = {
            'no answer': cut(b''),
            'a reset for an answer': reset(b''),
            'half a head': cut(b'HTTP/1.1 200 OK\r\nConte'),
            'the end after the head': cut(CHUNKED_HEAD),
            'a reset after the head': reset(CHUNKED_HEAD),
            'half an event': cut(begun(HEL[:20])),
            'an error event of the right number': stream_reply(
                sse({'error': {'message': 'busy', 'code': 503}})),
        }
        silent = {'silence': stall(), 'silence after the head': stall(CHUNKED_HEAD)}
        with no_waits():
            results = list(outcomes({name: [script, stream_reply(HELLO)]
                                     for name, script in cases.items()}, max_retries=1))
            results += outcomes({name: [script, stream_reply(HELLO)]
                                 for name, script in silent.items()},
                                max_retries=50, timeout=MEDIUM)
        for name, result in results:
            with self.subTest(name):
                self.assertEqual(result.result, 'Hello world')
                # Of a busy machine the second answer may be late, too.
                self.assertTrue(len(result.requests) == 2 or name in silent)
                self.assertEqual(result.requests[0].body, result.requests[1].body)

    def test_after_the_first_chunk_nothing_is_repeated_behind_the_callers_back(self):
        start = begun(HELLO_CUT)
        busy = sse({'error': {'message': 'busy', 'code': 503}})
        for script in (cut(start), reset(start), cut(CHUNKED_HEAD + chunked(HELLO_CUT + busy))):
            with served(script, stream_reply(HELLO), max_retries=2) as (server, asker):
                error = self.assertBroken(asker, 'Hello ', streamlite.APIError)
                self.assertEqual(len(server.requests), 1)
                self.assertEqual(error.attempts, 1)

    def test_collect_may_start_over_from_the_middle(self):
        lost, half_lost = cut(WAITING), cut(begun(HEL))
        for name, scripts, retries, started, expected in (
                ('whole at last', [lost, stream_reply(HELLO)], 1, 2, 'Hello world'),
                ('the longest of both', [lost, half_lost], 1, 2, streamlite.APIConnectionError),
                ('no retries', [lost], 0, 1, streamlite.APIConnectionError)):
            with self.subTest(name), served(*scripts, max_retries=retries) as (server, asker):
                with no_waits():
                    if isinstance(expected, str):
                        self.assertText(ask(asker).collect(), expected)
                    else:
                        with self.assertRaises(expected) as caught:
                            ask(asker).collect()
                        self.assertEqual(text_of(caught.exception.partial), 'Hello ')
                        self.assertEqual(caught.exception.attempts, started)
                self.assertEqual(len(server.requests), started)
        self.assertEqual(len([said for said in SAID if said.startswith('INFO')]), 2)

    def test_collect_starts_nothing_over_that_was_seen(self):
        with served(cut(WAITING), stream_reply(HELLO), max_retries=2) as (server, asker):
            stream = ask(asker)
            next(iter(stream))
            with self.assertRaises(streamlite.APIConnectionError) as caught:
                stream.collect()
            self.assertEqual(text_of(caught.exception.partial), 'Hello ')
            self.assertEqual(len(server.requests), 1)

    def test_a_whole_reply_that_was_cut_or_refused_is_asked_for_again(self):
        whole = reply(200, {}, WHOLE)
        for name, script in ('cut', cut(whole[:-9])), ('refused', error_reply(503, AGAIN)):
            with self.subTest(name), served(script, whole, max_retries=1) as (server, asker):
                with no_waits():
                    self.assertText(ask(asker, stream=False), 'Hello world')
                self.assertEqual(len(server.requests), 2)
        with served(cut(whole[:-9])) as (_, asker):
            self.assertRaises(streamlite.APIConnectionError, ask, asker, stream=False)

    def test_a_callable_key_is_asked_at_every_attempt(self):
        keys = iter([KEY + '1', KEY + '2'])
        with Server(error_reply(503, AGAIN), stream_reply(HELLO)) as server:
            with client(server, max_retries=1, api_key=lambda: next(keys)) as asker:
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.headers['authorization'][-1] for request in server.requests],
                             ['1', '2'])

    def test_what_the_server_says_behind_the_first_chunk_ends_it(self):
        for first, requests in (sse(done=False), 2), (sse(delta('Hel'), done=False), 1):
            failing = stream_reply(first + sse({'error': BUSY}))
            with self.subTest(requests), no_waits():
                with served(failing, stream_reply(HELLO), max_retries=1) as (server, asker):
                    with ask(asker) as stream, contextlib.suppress(streamlite.RateLimitError):
                        stream.collect()
                    self.assertEqual(len(server.requests), requests)


def answered(status, retry_after=None, code=None, type=None, event=False, **headers):
    """The error of an answer of this status; with `event`, of an event in an answer of 200.

    With None for `event` nothing is known of the answer.
    """
    body = {'message': 'scripted', 'code': code, 'type': type}
    error = streamlite._status_error_class(status)('scripted', body=body)
    error.status_code, error.retry_after = status, retry_after
    told = {name.replace('_', '-'): value for name, value in headers.items()}
    block = head(200 if event else status, told)
    if event is not None:
        error.response = streamlite.Response(200 if event else status,
                                             streamlite._parse_head(block).headers)
    return error


def lost(cause=None, kind=streamlite.APIConnectionError, retry_after=None):
    """A connection that was lost, and why."""
    error = kind(message='lost')
    error.__cause__, error.retry_after = cause, retry_after
    return error


def refused_by_proxy(status):
    return streamlite._ProxyError(head_of(status=status), 'scripted')


# An error, the attempts made, the most retries, a chance from 0 to 1, and the seconds to wait.
WAITS = (
    # statuses
    (answered(408), 1, 2, 0, 0.5), (answered(409), 1, 2, 0, 0.5), (answered(429), 1, 2, 0, 0.5),
    (answered(500), 1, 2, 0, 0.5), (answered(503), 1, 2, 0, 0.5), (answered(599), 1, 2, 0, 0.5),
    (answered(400), 1, 2, 0, None), (answered(401), 1, 2, 0, None), (answered(403), 1, 2, 0, None),
    (answered(404), 1, 2, 0, None), (answered(407), 1, 2, 0, None), (answered(410), 1, 2, 0, None),
    (answered(422), 1, 2, 0, None), (answered(428), 1, 2, 0, None), (answered(430), 1, 2, 0, None),
    (answered(499), 1, 2, 0, None), (answered(600), 1, 2, 0, None), (answered(302), 1, 2, 0, None),
    # an event of such a status, whether or not the answer's head is at hand
    (answered(503, event=None), 1, 2, 0, 0.5), (answered(404, event=None), 1, 2, 0, None),
    (answered(503, event=True), 1, 2, 0, 0.5), (answered(400, event=True), 1, 2, 0, None),
    # a quota is no rate
    (answered(429, code='insufficient_quota'), 1, 2, 0, None),
    (answered(429, type='insufficient_quota'), 1, 2, 0, None),
    (answered(429, code='rate_limit_exceeded'), 1, 2, 0, 0.5),
    (answered(429, code='insufficient_quota', x_should_retry='true'), 1, 2, 0, None),
    # the server's own word, of the reply's own status
    (answered(400, x_should_retry='true'), 1, 2, 0, 0.5),
    (answered(400, x_should_retry='True'), 1, 2, 0, 0.5),
    (answered(503, x_should_retry='false'), 1, 2, 0, None),
    (answered(503, x_should_retry='maybe'), 1, 2, 0, 0.5),
    (answered(400, x_should_retry='maybe'), 1, 2, 0, None),
    (answered(503, event=True, x_should_retry='false'), 1, 2, 0, 0.5),
    (answered(400, event=True, x_should_retry='true'), 1, 2, 0, None),
    # connections
    (lost(), 1, 2, 0, 0.5), (lost(RESET), 1, 2, 0, 0.5),
    (lost(kind=streamlite.APITimeoutError), 1, 2, 0, 0.5),
    (lost(OSError('[SSL: CERTIFICATE_VERIFY_FAILED] bad')), 1, 2, 0, None if ssl else 0.5),
    (lost(ssl.CertificateError('bad') if ssl else refused_by_proxy(407)), 1, 2, 0, None),
    (lost(refused_by_proxy(407)), 1, 2, 0, None), (lost(refused_by_proxy(403)), 1, 2, 0, None),
    (lost(refused_by_proxy(500)), 1, 2, 0, 0.5), (lost(refused_by_proxy(502)), 1, 2, 0, 0.5),
    # what is no such thing
    (streamlite.APIError('the server said so'), 1, 2, 0, None),
    (streamlite.APIResponseValidationError(message='foreign'), 1, 2, 0, None),
    # how often
    (lost(), 1, 0, 0, None), (lost(), 1, 1, 0, 0.5), (lost(), 2, 1, 0, None), (lost(), 2, 2, 0, 1),
    (lost(), 3, 2, 0, None), (lost(), 7, float('inf'), 0, 8),
    # how long: doubled each time, and less by chance
    (lost(), 1, 99, 0, 0.5), (lost(), 2, 99, 0, 1), (lost(), 3, 99, 0, 2), (lost(), 4, 99, 0, 4),
    (lost(), 5, 99, 0, 8), (lost(), 6, 99, 0, 8), (lost(), 5000, 9999, 0, 8),
    (lost(), 1, 99, 1, 0.375), (lost(), 1, 99, 0.5, 0.4375), (lost(), 9, 99, 1, 6),
    # the server says when, as it says it
    (answered(429, 3), 1, 2, 1, 3), (answered(429, 0), 1, 2, 1, 0), (answered(429, 0), 5, 9, 1, 0),
    (answered(429, 120), 1, 2, 0, 120), (answered(429, 120.5), 1, 2, 0, None),
    (answered(429, 3), 3, 2, 0, None), (answered(400, 3), 1, 2, 0, None),
    (lost(retry_after=7), 1, 2, 1, 7),
)

NOW = 1700000000
IN_A_MINUTE = email.utils.formatdate(NOW + 60, usegmt=True)

# Headers, and the seconds that they ask for.
RETRY_AFTER = (
    ({}, None),
    ({'Retry-After': '3'}, 3), ({'retry-after': ' 3 '}, 3), ({'Retry-After': '0'}, 0),
    ({'Retry-After': '1.5'}, 1.5), ({'Retry-After': '2.'}, 2),
    ({'Retry-After': '999999999999'}, 999999999999),
    ({'Retry-After-Ms': '250'}, 0.25), ({'retry-after-ms': '1.5'}, 0.0015),
    ({'Retry-After-Ms': '250', 'Retry-After': '3'}, 0.25),
    ({'Retry-After-Ms': 'soon', 'Retry-After': '3'}, 3),
    ({'Retry-After-Ms': '', 'Retry-After': '3'}, 3),
    ({'Retry-After': IN_A_MINUTE}, 60),
    ({'Retry-After': email.utils.formatdate(NOW - 60, usegmt=True)}, 0),
    ({'Retry-After-Ms': 'soon', 'Retry-After': IN_A_MINUTE}, 60),
    ({'Retry-After': ''}, None), ({'Retry-After': 'soon'}, None), ({'Retry-After': '-5'}, None),
    ({'Retry-After': 'nan'}, None), ({'Retry-After': 'inf'}, None), ({'Retry-After': '1e3'}, None),
    ({'Retry-After': '\xb2'}, None), ({'Retry-After': '9' * 13}, None),
    ({'Retry-After': '9' * 5000}, None), ({'Retry-After': '3 4'}, None),
    ({'Retry-After': 'Fri, 99 Foo 2026 99:99:99 GMT'}, None),
    ({'Retry-After': 'Fri, 31 Dec 99999 23:59:59 GMT'}, None),
)


class PolicyTableTest(TestCase):

    def test_whether_and_when_an_attempt_is_made_again(self):
        for error, attempts, max_retries, chance, seconds in WAITS:
            with self.subTest(repr(error), status=getattr(error, 'status_code', None),
                              cause=error.__cause__, attempts=attempts, max_retries=max_retries):
                self.assertEqual(streamlite._retry_wait(error, attempts, max_retries, chance),
                                 seconds)

    def test_when_the_server_wants_to_be_asked_again(self):
        with mock.patch.object(streamlite.time, 'time', lambda: NOW + 0.0):
            for headers, seconds in RETRY_AFTER:
                with self.subTest(headers):
                    found = streamlite._parse_head(head(429, headers)).headers
                    self.assertEqual(streamlite._retry_after(found), seconds)

    def test_only_errors_of_ours_are_transient(self):
        for error in OSError('x'), ValueError('x'), streamlite.OpenAIError('x'), Exception('x'):
            self.assertFalse(streamlite._is_transient(error))


# --------------------------------------------------------------------------------------------------
# Streams: reading one, leaving it, and handing it on to a browser
# --------------------------------------------------------------------------------------------------

class StreamTest(TestCase):

    def test_the_server_is_told_at_once_that_nobody_listens(self):
        def leave_with(stream):
            with stream:
                next(iter(stream))

        def close(stream):
            next(iter(stream))
            stream.close()
            stream.close()
            # An end without an error would look whole.
            with self.assertRaises(streamlite.OpenAIError):
                list(stream)

        def break_in_with(stream):
            with stream:
                for _ in stream.text():
                    break

        def raise_in_with(stream):
            with self.assertRaises(ZeroDivisionError), stream:
                for _ in stream:
                    raise ZeroDivisionError

        for leave in leave_with, close, break_in_with, raise_in_with:
            script, gone = watched()
            with self.subTest(leave.__name__), served(script) as (server, asker):
                leave(ask(asker))
                self.assertTrue(gone.wait(PROMPT))
        for used in None, iter, streamlite.Stream.text:
            script, gone = watched()
            with self.subTest('last reference', used=used), served(script) as (server, asker):
                stream = ask(asker)
                items = used(stream) if used else None
                if items:
                    next(items)
                del stream, items
                self.assertTrue(gone.wait(PROMPT))

    def test_the_end_of_a_client_closes_its_connections(self):
        def leave(asker):
            with asker:
                self.assertText(ask(asker), 'Hello world')

        def close(asker):
            self.assertText(ask(asker), 'Hello world')
            asker.close()

        def lose(asker):
            self.assertText(ask(asker), 'Hello world')

        def lose_in_a_cycle(asker):  # as the global of a program whose functions use it
            self.assertText(ask(asker), 'Hello world')
            names = {'asker': asker}
            exec('def use(): return asker', names)

        for end in leave, close, lose, lose_in_a_cycle:
            script, gone = watched(stream_reply(HELLO))
            with self.subTest(end.__name__), Server(script) as server:
                end(client(server))
                gc.collect()
                self.assertTrue(gone.wait(PROMPT))

    def test_a_stream_outlives_its_client(self):
        with Server() as server:
            self.assertText(ask(client(server)), 'Hello world')

    def test_break_leaves_a_stream_that_is_held_resumable(self):
        with served(stream_reply(HELLO)) as (server, asker), ask(asker) as stream:
            for _ in stream:
                break
            self.assertEqual(text_of(stream.completion), 'Hel')
            self.assertEqual(next(stream.text()), 'lo ')
            self.assertText(stream, 'Hello world')

    def test_close_from_another_thread_ends_a_blocked_read(self):
        script, gone = watched()
        with served(script) as (_, asker):
            close_while_it_is_read(self, ask(asker), gone)

    def test_close_from_another_thread_ends_a_wait_between_attempts(self):
        refused, ended = threading.Event(), []

        def read():
            try:
                list(stream)
            except streamlite.OpenAIError as error:
                remember(error)
                ended.append(error)

        answer = error_reply(503, {'Retry-After': str(LONG)})
        scripts = cut(CHUNKED_HEAD), lambda peer: (peer.send(answer), refused.set())
        with no_waits(), served(*scripts, max_retries=5) as (_, asker):
            stream = ask(asker)
            thread = threading.Thread(target=read)
            thread.start()
            self.assertTrue(refused.wait(LONG))
            self.assertFalse(threading.Event().wait(0.05))  # by now it waits
            with self.assertPrompt():
                stream.close()
                thread.join(LONG)
            self.assertEqual(len(ended), 1)

    def test_times_and_the_head_of_the_answer_are_there(self):
        with served(stream_reply(HELLO, headers={'x-request-id': 'req_1'})) as (server, asker):
            with ask(asker) as stream:
                self.assertEqual((stream.response.status_code, stream.response.request_id),
                                 (200, 'req_1'))
                self.assertEqual(stream.response.headers['content-type'], 'text/event-stream')
                list(stream)
            # A clock may stand still for 15.6 ms.
            self.assertTrue(0 <= stream.time_to_first_token <= stream.elapsed < PROMPT)

    def test_a_request_and_the_end_of_a_stream_are_a_debug_line_each(self):
        with served(stream_reply(HELLO)) as (server, asker):
            self.assertText(ask(asker), 'Hello world')
        self.assertEqual(len(SAID), 2)
        for said in SAID:
            self.assertTrue(said.startswith('DEBUG'))
            self.assertNotIn('Hello', said)
            self.assertNotIn('hi', said.split())

    def check_interrupted(self, use):
        """Interrupt `use` of a stream at each call in the module: then there is an error or all."""
        answer = stream_reply(sse(*[delta(text) for text in ('one ', 'two ', 'three')]
                                  + [delta(finish_reason='stop')]))
        errors = 0
        with served(answer, timeout=PROMPT) as (server, asker):
            for number in range(1, 2000):
                stream, texts = ask(asker), []
                try:
                    with interrupted(number) as calls:
                        use(stream, texts)
                except Interrupt:
                    pass
                if calls[0] < number:
                    stream.close()
                    break  # it came to its end before
                with self.subTest(number):
                    try:
                        use(stream, texts)
                    except streamlite.OpenAIError as error:
                        remember(error)
                        errors += 1
                        self.assertIsInstance(error.partial, streamlite.ChatCompletion)
                        self.assertTrue('one two three'.startswith(text_of(error.partial)))
                    else:
                        self.assertEqual(''.join(texts), 'one two three')
                        self.assertEqual(text_of(stream.completion), 'one two three')
                    stream.close()
            gc.collect()
            self.assertGreater(errors, 3, 'most interrupts come while bytes are at work')

    def test_an_interrupt_while_bytes_are_processed_never_leaves_a_hole(self):
        def iterate(stream, texts):
            while True:
                try:
                    chunk = next(stream)
                except StopIteration:
                    return
                texts.append(chunk.choices[0].delta.content or '')

        self.check_interrupted(iterate)

    def test_an_interrupt_in_collect_never_leaves_a_hole(self):
        def collect(stream, texts):
            completion = stream.collect()
            texts[:] = [text_of(completion)]

        self.check_interrupted(collect)

    @unittest.skipUnless(hasattr(signal, 'setitimer'), 'no SIGALRM')
    def test_a_signal_while_bytes_are_processed_never_leaves_a_hole(self):
        def interrupt(number, frame):
            raise Interrupt

        count, hit = 4000, 0
        whole = ''.join('%d ' % number for number in range(count))
        events = [delta('%d ' % number) for number in range(count)]
        body = sse(*events + [delta(finish_reason='stop')])
        before = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        with served(stream_reply(body)) as (server, asker):
            for turn in range(12):
                with ask(asker) as stream:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0028 * turn)
                        collections.deque(stream, maxlen=0)
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except Interrupt:
                        hit += 1
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    try:
                        completion = stream.collect()
                    except streamlite.OpenAIError as error:
                        self.assertTrue(whole.startswith(text_of(error.partial)))
                    else:
                        self.assertEqual(len(text_of(completion)), len(whole), 'after %d' % turn)
        self.assertGreater(hit, 0)

    def test_an_interrupt_inside_create_leaves_nothing_and_the_client_works(self):
        with served(stream_reply(HELLO)) as (server, asker):
            for number in range(1, 2000, 3):
                try:
                    with interrupted(number) as calls:
                        stream = ask(asker)
                except Interrupt:
                    pass
                if calls[0] < number:
                    stream.close()
                    break
                with self.subTest(number):
                    self.assertText(ask(asker), 'Hello world')
        gc.collect()

    def test_two_threads_that_read_one_stream_share_its_chunks(self):
        count, chance = 100, random.Random(3)

        def script(peer):
            peer.send(CHUNKED_HEAD)
            for number in range(count):
                peer.send(chunked(sse(delta('%d ' % number), done=False), last=False))
                peer.wait_closed(0.0005)  # so that there is one at a time
            peer.send(chunked(sse(delta(finish_reason='stop'))))

        def read():
            def profile(frame, event, argument):
                if event == 'call' and frame.f_code.co_filename == MODULE and chance.random() < 0.3:
                    time.sleep(0)  # lets another thread come between any two calls

            sys.setprofile(profile)
            try:
                return list(stream.text())
            finally:
                sys.setprofile(None)

        with served(script) as (server, asker):
            stream = ask(asker)
            texts = at_once(read, read, read)
            got = sorted(int(text) for part in texts for text in part)
            self.assertEqual(got, list(range(count)))
            self.assertEqual(len(text_of(stream.completion).split()), count)

    def test_the_completion_can_be_polled_from_another_thread(self):
        events = []
        for number in range(1500):
            event = delta('x', **{'key%d' % number: number})
            event['vendor%d' % number] = 1
            call = {'index': number, 'id': 'c%d' % number,
                    'function': {'name': 'f', 'arguments': ''}}
            event['choices'][0]['delta']['tool_calls'] = [call]
            events.append(event)
        events.append(delta(finish_reason='stop'))
        over, polling = threading.Event(), threading.Semaphore(0)

        def poll(stream):
            stream.completion
            polling.release()
            while not over.is_set():
                stream.completion

        def read(stream):
            try:
                next(stream)
                self.assertTrue(polling.acquire(timeout=LONG) and polling.acquire(timeout=LONG))
                for _ in stream:
                    pass
            finally:
                over.set()

        answer = stream_reply(sse(*events))
        with served(answer) as (server, asker), switching_often():
            stream = ask(asker)
            at_once(lambda: read(stream), lambda: poll(stream), lambda: poll(stream))
            self.assertEqual(len(stream.completion.choices[0].message.tool_calls), 1500)

    def test_close_never_hits_the_connection_of_another_request(self):
        more, second, last = threading.Event(), threading.Event(), threading.Event()
        shut_down, reading = socket.socket.shutdown, threading.Event()

        def first_script(peer):
            peer.send(begun(HELLO_CUT))
            more.wait(LONG)
            peer.send(chunked(sse(delta('world', 'stop'))))

        def second_script(peer):
            peer.send(begun(HELLO_CUT))
            last.wait(LONG)
            peer.send(chunked(sse(delta('world', 'stop'))))

        def close():
            reading.wait(LONG)
            threading.Event().wait(0.05)  # until the other one waits for the next event
            first.close()

        closer = threading.Thread(target=close)

        def late_shutdown(sock, how):
            if threading.current_thread() is closer:
                more.set()
                second.wait(0.2)  # longer, if the end of the stream waits for us
            return shut_down(sock, how)

        with served(first_script, second_script) as (server, asker):
            first = ask(asker)
            with mock.patch.object(socket.socket, 'shutdown', late_shutdown):
                closer.start()
                try:
                    for _ in first:
                        reading.set()
                except streamlite.OpenAIError as error:
                    remember(error)
                other = ask(asker)
                second.set()
                closer.join(LONG)
            last.set()
            self.assertText(other, 'Hello world')

    def test_a_stream_that_outlives_its_client_closes_its_connection(self):
        more, gone = threading.Event(), threading.Event()

        def script(peer):
            peer.send(begun(HELLO_CUT))
            more.wait(LONG)
            peer.send(chunked(sse(delta('world', 'stop'))))
            if peer.wait_closed():
                gone.set()

        with Server(script) as server:
            asker = client(server)
            stream = ask(asker)
            asker.close()
            more.set()
            self.assertText(stream, 'Hello world')
            self.assertTrue(gone.wait(PROMPT))
            asker.close()

    def test_a_stream_that_was_closed_says_so_and_does_not_blame_the_network(self):
        with served(stall(begun(HELLO_CUT))) as (server, asker):
            leave_with = lambda stream: stream.__exit__(None, None, None)
            for leave in streamlite.Stream.close, leave_with:
                stream = ask(asker)
                next(stream)
                leave(stream)
                for use in next, list, streamlite.Stream.collect:
                    with self.assertRaises(streamlite.OpenAIError) as caught:
                        use(stream)
                    self.assertNotIsInstance(caught.exception, streamlite.APIConnectionError)
                    self.assertEqual(text_of(caught.exception.partial), 'Hel')

    def test_streams_and_clients_lost_in_a_cycle_leave_no_warning(self):
        for held, script in (('stream', stall(WAITING)), ('client', stream_reply(HELLO)),
                             ('both', stall(WAITING))):
            with self.subTest(held), Server(script) as server:
                asker = client(server)
                stream = ask(asker)
                next(stream)
                cycle = {'stream': stream if held != 'client' else None,
                         'client': asker if held != 'stream' else None}
                cycle['itself'] = cycle
                del asker, stream, cycle
                gc.collect()  # a warning of an unclosed socket would fail this test

    def test_no_thread_gets_a_wrong_answer_beside_a_faulty_server(self):
        chance = random.Random(20)

        def script(peer):
            text = peer.request.json['messages'][0]['content']
            events = delta(text[:3]), delta(text[3:]), delta(finish_reason='stop')
            answer = stream_reply(sse(*events))
            at = chance.randrange(len(answer))
            fault = chance.randrange(9)
            if fault < 4:
                peer.send(answer)
            elif fault == 4:
                peer.send(answer[:at])
                peer.close()
            elif fault == 5:
                peer.send(answer[:at])
                peer.reset()
            elif fault == 6:
                peer.send(error_reply(503, AGAIN))
            elif fault == 7:
                peer.send(answer + b'\r\n' + stream_reply(sse(delta('wrong', 'stop'))))
            else:
                peer.send(head(103) + answer[:at])
                peer.send(answer[at:])

        def work(name):
            right = 0
            for number in range(12):
                text = 'answer %s.%d' % (name, number)
                try:
                    got = ''.join(ask(asker, messages=chat(text)).text())
                except streamlite.OpenAIError:
                    continue
                self.assertEqual(got, text)
                right += 1
            return right

        async def async_work(asker, name):
            right = 0
            for number in range(8):
                text = 'task %s.%d' % (name, number)
                try:
                    got = await gather_text(await ask(asker, messages=chat(text)))
                except streamlite.OpenAIError:
                    continue
                self.assertEqual(got, text)
                right += 1
            return right

        async def main():
            async with async_client(server) as asker:
                return await asyncio.gather(*[async_work(asker, name) for name in range(16)])

        with served(script) as (server, asker):
            right = at_once(*[lambda name=name: work(name) for name in range(16)])
            self.assertGreater(sum(right), 16)
            self.assertGreater(sum(asyncio_run(main())), 16)

    PIECES = ['one ', 'two']

    READS = [sse(delta(PIECES[0]), done=False), sse(delta(PIECES[1], 'stop'))]

    def read(self, stream, texts):
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content)

    def read_texts(self, stream, texts):
        for text in stream.text():
            texts.append(text)

    def check_never_half(self, stream, texts):
        """Read on: then there is an error, or all of the answer; tell whether it was an error."""
        self.assertFalse(stream._reading.locked(), 'whoever reads it now waits for ever')
        try:
            self.read(stream, texts)
        except streamlite.OpenAIError as error:
            remember(error)
            self.assertTrue(''.join(self.PIECES).startswith(text_of(error.partial)))
            return True
        self.assertEqual(texts, self.PIECES)
        self.assertEqual(text_of(stream.completion), ''.join(self.PIECES))
        self.assertEqual(stream.completion.choices[0].finish_reason, 'stop')
        return False

    def check_interrupted_anywhere(self, read, where, step, least):
        errors = 0
        for number in itertools.count(1, step):
            stream, texts = stream_of(*self.READS), []
            with contextlib.suppress(Interrupt), signalled(number, interrupt, where) as lines:
                read(stream, texts)
            if lines[0] < number:
                break  # it came to its end before
            with self.subTest(number):
                self.assertIsNone(stream._attempt, 'its connection is closed at once')
                errors += self.check_never_half(stream, texts)
        self.assertGreater(errors, least)

    def test_an_interrupt_at_any_line_never_leaves_a_hole(self):
        self.check_interrupted_anywhere(self.read, in_module, 3, 50)

    def test_an_interrupt_at_any_line_of_text_loses_none(self):
        def in_text(frame):
            return in_module(frame) and 'text' in frame.f_code.co_name

        self.check_interrupted_anywhere(self.read_texts, in_text, 1, 5)

    def test_a_second_interrupt_behind_the_first_never_leaves_a_hole(self):
        def interrupt_twice():
            calls = [0]

            def profile(frame, event, argument):
                if event in ('call', 'c_call') and in_module(frame):
                    calls[0] += 1
                    if calls[0] == second:
                        raise Interrupt

            sys.setprofile(profile)
            raise Interrupt

        # At so many calls behind the first one comes the second, and of so many lines one is tried.
        errors, steps = 0, {1: 5, 2: 15, 3: 15, 6: 30, 11: 30}
        for read, second in itertools.product((self.read, self.read_texts), steps):
            for first in itertools.count(1, steps[second]):
                stream, texts = stream_of(*self.READS), []
                with contextlib.redirect_stderr(io.StringIO()):  # Python writes of generators
                    try:
                        with signalled(first, interrupt_twice) as lines:
                            read(stream, texts)
                    except Interrupt:
                        pass
                    finally:
                        sys.setprofile(None)
                if lines[0] < first:
                    break  # it came to its end before
                with self.subTest(read.__name__, first=first, second=second):
                    errors += self.check_never_half(stream, texts)
        self.assertGreater(errors, 50)

    def test_an_interrupt_that_hinders_even_its_own_handling_leaves_no_hole(self):
        for place, read in (((streamlite.Accumulator, 'add'), next),
                            ((streamlite, '_chunk_text'), lambda stream: next(stream.text()))):
            stream = stream_of(*self.READS)
            with self.subTest(place[1]):
                with mock.patch.object(stream, '_interrupt', side_effect=Interrupt):
                    with mock.patch.object(*place, side_effect=Interrupt):
                        self.assertRaises(Interrupt, read, stream)
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    next(stream)
                self.assertSays(caught.exception, 'interrupted')
                self.assertTrue(stream._call.cancelled)

    def test_a_stream_that_was_never_opened_can_be_closed(self):
        for kind in streamlite.Stream, streamlite.AsyncStream:
            stream = stream_of(kind=kind)
            stream._cut()
            self.assertRaises(streamlite.OpenAIError, stream._is_over)

    def test_a_recursion_that_is_too_deep_never_leaves_a_hole(self):
        def read_deep(levels):
            if levels:
                read_deep(levels - 1)
            else:
                texts.append(next(stream).choices[0].delta.content)

        depth, errors = frames(), 0
        with contextlib.redirect_stderr(io.StringIO()):  # for what Python writes of generators
            for levels in range(sys.getrecursionlimit() - depth, 0, -1):
                stream, texts = stream_of(*self.READS), []
                texts.append(next(stream).choices[0].delta.content)
                with contextlib.suppress(RecursionError, streamlite.OpenAIError):
                    read_deep(levels)
                if len(texts) == 2:
                    break  # there was room enough
                with self.subTest(levels):
                    errors += self.check_never_half(stream, texts)
        self.assertGreater(errors, 0)

    def test_a_signal_handler_may_close_the_stream_at_any_line(self):
        def in_close(frame):
            return in_module(frame) or frame.f_code.co_filename == threading.__file__

        def in_call(frame):
            here = frame.f_locals.get('self')
            return in_close(frame) and not isinstance(here, streamlite.Stream) and (
                frame.f_code.co_name in ('hold', 'let_go', 'sleep', 'cancel', 'wait', 'set'))

        def check():
            for number in itertools.count(1):  # lines of close() itself, and of what it calls
                with ask(asker) as stream:
                    next(stream)
                    with signalled(number, stream.close, in_close) as lines:
                        stream.close()
                    self.assertRaises(streamlite.OpenAIError, next, stream)
                if lines[0] < number:
                    break
            for number in itertools.count(1):  # lines that hold a lock or wait
                with ask(asker, messages=chat('retry %d' % number)) as stream:
                    with signalled(number, stream.close, in_call) as lines:
                        try:
                            self.assertText(stream.collect(), 'Hello world')
                        except streamlite.OpenAIError as error:
                            remember(error)
                if lines[0] < number:
                    break
            numbers.append(number)

        def script(peer):
            content = peer.request.json['messages'][0]['content']
            if content == 'hi':
                stall(WAITING)(peer)
                return
            attempts.append(content)
            if attempts.count(content) == 1:
                cut(CHUNKED_HEAD)(peer)
            elif attempts.count(content) == 2:
                peer.send(error_reply(503, AGAIN))
            else:
                peer.send(stream_reply(HELLO))

        attempts, numbers = [], []
        with no_waits(), served(script, max_retries=5) as (_, asker):
            in_time(self, check)
        self.assertGreater(numbers[0], 10)

    def test_a_close_is_told_as_such_where_the_body_ends_with_the_connection(self):
        receive, closed = socket.socket.recv, []

        def close_and_receive(sock, size):
            if reader is threading.current_thread() and not closed:
                closed.append(stream.close())  # as another thread may, while this one waits
            return receive(sock, size)

        until_close = head(200, {'Connection': 'close'}) + HELLO_CUT
        with served(stall(until_close)) as (_, asker), ask(asker) as stream:
            self.assertEqual([next(stream.text()), next(stream.text())], ['Hel', 'lo '])
            reader = threading.current_thread()
            with mock.patch.object(socket.socket, 'recv', close_and_receive, create=True):
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    next(stream)
        self.assertEqual(len(closed), 1)
        self.assertSays(caught.exception, 'closed')
        self.assertNotIn('[DONE]', str(caught.exception))
        self.assertEqual(text_of(caught.exception.partial), 'Hello ')

    def test_the_time_of_a_stream_that_was_retried_goes_on(self):
        with served(error_reply(503, AGAIN), stall(WAITING), max_retries=1) as (_, asker):
            with ask(asker) as stream:
                next(stream)
                self.assertLessEqual(stream.time_to_first_token, stream.elapsed)
                before = stream.elapsed
                self.wait_until(lambda: stream.elapsed > before)

    def test_nothing_that_is_half_made_complains_when_it_goes(self):
        with served(stream_reply(HELLO)) as (_, asker), ask(asker) as stream:
            with contextlib.redirect_stderr(io.StringIO()) as told:
                for make in (copy.deepcopy, pickle.dumps):
                    for thing in (asker, stream):
                        with contextlib.suppress(TypeError, pickle.PicklingError):
                            make(thing)
                for kind in (streamlite.Stream, streamlite.AsyncStream, streamlite.OpenAI,
                             streamlite._Connection, streamlite._Transport):
                    kind.__new__(kind)
                with contextlib.suppress(TypeError):
                    client(None, base_url='http://server.test', handlers=[None])
                gc.collect()
            self.assertEqual(told.getvalue(), '')
            self.assertText(stream, 'Hello world')

    def test_a_stream_whose_end_was_interrupted_half_way_is_ended_when_it_is_read(self):
        with served(stream_reply(HELLO)) as (server, asker), ask(asker) as stream:
            stream._state = streamlite._FAILED  # and no more
            self.assertRaises(streamlite.APIConnectionError, stream.collect)
            self.assertIsNone(stream._attempt)
            self.assertRaises(OSError, stream._call.look)

    def test_a_stream_that_was_closed_is_not_asked_for_again(self):
        keys, streams, opened = [], [], threading.Event()

        def key():
            keys.append(KEY)
            return KEY

        def script(peer):
            peer.send(CHUNKED_HEAD)
            opened.wait(LONG)
            self.wait_until(streams[0]._reading.locked)
            streams[0].close()
            peer.wait_closed()

        with served(script, api_key=key, max_retries=3) as (server, asker):
            streams.append(ask(asker))
            opened.set()
            with self.assertRaises(streamlite.APIConnectionError) as caught:
                streams[0].collect()
        self.assertEqual((caught.exception.attempts, len(keys), len(server.requests)), (1, 1, 1))

    def test_what_only_a_completion_has_says_where_it_is(self):
        with served(stall(WAITING)) as (server, asker), ask(asker) as stream:
            for name in 'choices', 'usage', 'message':
                with self.assertRaises(AttributeError) as caught:
                    getattr(stream, name)
                self.assertRegex(str(caught.exception), "'%s': .*collect" % name)
            with self.assertRaises(AttributeError) as caught:
                stream.misspelt
            self.assertRegex(str(caught.exception), "'misspelt'$")

    def test_the_loss_of_a_stream_is_logged_and_has_its_cause(self):
        with served(cut(WAITING)) as (server, asker):
            error = self.assertBroken(asker, 'Hello ')
            self.assertIsInstance(error.__cause__, OSError)
        self.assertLogged('DEBUG', 'ended: APIConnectionError')

    @unittest.skipUnless(sys.implementation.name == 'cpython', 'it counts references')
    def test_nothing_of_a_stream_that_failed_waits_for_a_garbage_collection(self):
        gc.disable()
        self.addCleanup(gc.enable)
        for name, script in (('lost', cut(WAITING)), ('refused', error_reply(400)),
                             ('an error event', stream_reply(sse({'error': {'message': 'x'}})))):
            with self.subTest(name), served(script) as (server, asker):
                streams = []
                with contextlib.suppress(streamlite.APIError):
                    stream = ask(asker)
                    streams.append(weakref.ref(stream))
                    stream.collect()
                stream = None
                self.assertEqual([ref() for ref in streams], [None] * len(streams))

    def test_an_interrupt_closes_the_connection_and_stops_the_clock(self):
        with served(stall(WAITING)) as (server, asker), ask(asker) as stream:
            next(stream), next(stream)
            reply = stream._attempt.reply
            with mock.patch.object(reply, 'fill', side_effect=Interrupt):
                self.assertRaises(Interrupt, next, stream)
            self.assertEqual(reply.connection.sock.fileno(), -1)
            elapsed, now = stream.elapsed, time.monotonic
            with mock.patch('time.monotonic', lambda: now() + 1):
                self.assertEqual(stream.elapsed, elapsed)
            self.assertLogged('DEBUG', '2 events', 'ended: interrupted')

    def test_no_time_to_a_first_token_before_there_is_one(self):
        answer = stream_reply(sse(delta(role='assistant'), delta('Hi'), delta('Ho'), STOP))
        with served(answer) as (_, asker):
            with ask(asker) as stream:
                next(stream)
                self.assertIsNone(stream.time_to_first_token)
                next(stream)
                first, now = stream.time_to_first_token, time.monotonic
                self.assertGreaterEqual(first, 0)
                with mock.patch('time.monotonic', lambda: now() + 1):
                    next(stream)
                self.assertEqual(stream.time_to_first_token, first)

    def test_a_stream_that_failed_fails_alike_when_it_is_used_again(self):
        with served(cut(WAITING)) as (server, asker), ask(asker) as stream:
            said = []
            for use in stream.collect, stream.collect, lambda: next(stream), stream.collect:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    use()
                said.append(str(caught.exception))
                self.assertEqual(text_of(caught.exception.partial), 'Hello ')
            self.assertEqual(said, said[:1] * 4)
            self.assertEqual(len(server.requests), 1)

    def test_the_close_of_a_stream_is_logged_once(self):
        with served(stall(WAITING)) as (_, asker):
            stream = ask(asker)
            next(stream)
            stream.close()
            stream.close()
        told = [said for said in SAID if 'ended: ' in said]
        self.assertEqual(len(told), 1)
        self.assertIn('1 events', told[0])
        self.assertIn('ended: closed', told[0])

    def test_a_lock_that_an_interrupt_left_locked_holds_up_nobody(self):
        class Leaky:
            """Python 3.6 to 3.9 may leave a lock like this, if a signal comes as a block ends."""

            def __enter__(self):
                lock.acquire()

            def __exit__(self, *exc_info):
                raise Interrupt

            def acquire(self, blocking):
                return lock.acquire(blocking)

        def work():
            for use in next, streamlite.Stream.collect, list, lambda stream: list(stream.text()):
                self.assertRaises(streamlite.APIConnectionError, use, stream)
            stream.close()

        for use in next, streamlite.Stream.collect, lambda stream: next(stream.text()):
            stream, lock = stream_of(*self.READS), threading.Lock()
            stream._reading = Leaky()
            self.assertRaises(Interrupt, use, stream)
            self.assertTrue(lock.locked())
            in_time(self, work)

    def test_an_interrupt_between_a_chunk_and_its_text_ends_the_connection_at_once(self):
        stream = stream_of(*self.READS)
        with mock.patch.object(streamlite, '_chunk_text', side_effect=Interrupt):
            self.assertRaises(Interrupt, next, stream.text())
        self.assertIsNone(stream._attempt)


class RelayTest(AsyncTestCase):

    def relayed(self, *scripts, then=str, **options):
        """The events that a browser gets: the same from both kinds of clients.

        `then(stream)` is called when the first has come.
        """
        def relay(server):
            with client(server, **options) as asker, ask(asker) as stream:
                parts = stream.sse()
                first = next(parts, b'')
                then(stream)
                return first + b''.join(parts)

        async def relay_async(server):
            async with async_client(server, **options) as asker, await ask(asker) as stream:
                parts = []
                async for part in stream.sse():
                    parts.append(part)
                    if len(parts) == 1:
                        then(stream)
                return b''.join(parts)

        with Server(*scripts) as one, Server(*scripts) as other:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                job = pool.submit(relay, one)
                data = self.run_async(relay_async(other))
                self.assertEqual(job.result(), data)
            for port in one.port, other.port:
                self.assertNotIn(':%d' % port, data.decode())
        SAID.append(data.decode())
        return decode(data)

    def test_a_browser_gets_every_chunk_as_it_was(self):
        text = 'two\nlines\r\n\r\nand "quotes", \u2028, </script>, \U0001f600, data: x\n\n'
        last = delta(finish_reason='stop', vendor={'a': [1]})
        *chunks, done = self.relayed(stream_reply(sse(delta(text), last)))
        self.assertEqual((done.event, done.data), ('message', '[DONE]'))
        self.assertEqual([event.event for event in chunks], ['message'] * 2)
        first, last = (json.loads(event.data)['choices'][0] for event in chunks)
        self.assertEqual(first['delta']['content'], text)
        self.assertEqual((last['finish_reason'], last['delta']['vendor']), ('stop', {'a': [1]}))

    def test_an_event_goes_out_with_the_chunk_that_came(self):
        more = threading.Event()

        def script(peer):
            peer.send(WAITING)
            more.wait(LONG)
            peer.send(chunked(sse(STOP)))

        with served(script) as (_, asker), ask(asker) as stream:
            events = stream.sse()
            self.assertIn(b'Hel', next(events))
            self.assertIn(b'lo ', next(events))
            more.set()
            self.assertEqual(len(list(events)), 2)

    def test_an_error_is_an_event_that_tells_no_secret(self):
        own = {'message': 'the model fell over', 'type': 'overloaded', 'code': 503}
        for name, script, kind, words in (
                ("the server's own", stream_reply(HELLO_CUT + sse({'error': own})),
                 'overloaded', 'the model fell over'),
                ('cut', cut(WAITING), 'APIConnectionError', 'lost'),
                ('silent', stall(WAITING), 'APITimeoutError', 'time'),
                ('foreign', stream_reply(HELLO_CUT + b'data: <html>\n\n'),
                 'APIResponseValidationError', 'else')):
            with self.subTest(name):
                then = hasten if name == 'silent' else str
                *chunks, last = self.relayed(script, then=then)
                self.assertEqual([event.event for event in chunks], ['message'] * 2,
                                 'what came before it is relayed')
                self.assertEqual(last.event, 'error')
                error = json.loads(last.data)['error']
                self.assertEqual(error['type'], kind)
                self.assertIn(words, error['message'])
                for secret in '127.0.0.1', 'html':
                    self.assertNotIn(secret, last.data)

    def test_a_page_of_a_proxy_is_not_shown(self):
        page = reply(502, {}, b'<html><title>Bad gateway at backend-7.internal</title></html>')
        with no_waits():
            event, = self.relayed(cut(CHUNKED_HEAD), page, max_retries=1)
        error = json.loads(event.data)['error']
        self.assertEqual((event.event, error['type']), ('error', 'InternalServerError'))
        for word in 'internal', 'html', 'gateway':
            self.assertNotIn(word, event.data)

    def test_what_is_nested_too_deeply_is_an_error_event(self):
        deep = '{"choices": [], "x": %s%s}' % ('[' * 300, ']' * 300)
        first, last = self.relayed(stream_reply(sse(delta('Hi'), deep, STOP)))
        self.assertEqual((first.event, last.event), ('message', 'error'))

    def test_a_browser_that_goes_away_ends_the_upstream_stream(self):
        script, gone = watched()
        with served(script) as (_, asker):
            events = ask(asker).sse()
            next(events)
            events.close()
            self.assertTrue(gone.wait(PROMPT))

        async def main(server, gone):
            async with async_client(server) as asker:
                events = (await ask(asker)).sse()
                await events.__anext__()
                await events.aclose()
                await self.until(gone.is_set)

        script, gone = watched()
        with Server(script) as server:
            self.run_async(main(server, gone))

    def test_an_error_for_a_browser_is_bounded_and_on_one_line(self):
        evil = 'a\x1b[31m\nevent: done\r\n\u2028' + 'x' * 100000
        own = {'message': 'the model fell over', 'type': 'overloaded', 'code': 'busy'}
        for name, error in (('message', dict(own, message=evil)), ('code', dict(own, code=evil)),
                            ('type', dict(own, type=evil)),
                            ('a code of its own kind', {'message': 'm', 'code': {'a': [evil] * 3}}),
                            ('a type of its own kind', {'message': 'm', 'type': [evil]}),
                            ('a large number', {'message': 'm', 'code': int('9' * 3000)}),
                            ('a text', evil), ('its own words', own)):
            with self.subTest(name):
                with served(stream_reply(HELLO_CUT + sse({'error': error}))) as (_, asker):
                    *_, last = decode(b''.join(ask(asker).sse()))
                self.assertEqual(last.event, 'error')
                self.assertLess(len(last.data), 3000)
                self.assertNotIn('\n', last.data)
                told = json.loads(last.data)['error']
                for value in told.values():
                    self.assertTrue(value is None or str(value).isprintable(), value)
                if name == 'message':
                    self.assertEqual(len(told['message']), 1000 + len('...'))
                if error is own:
                    self.assertSays(told['message'], own['message'])
                    self.assertEqual((told['type'], told['code']), ('overloaded', 'busy'))

    def test_an_error_for_a_browser_has_a_code_only_if_there_is_one(self):
        for given, expected in (('busy', 'busy'), (7, 7), (0, 0), (None, None), ('', None)):
            with self.subTest(given):
                error = {'message': 'm', 'code': given}
                with served(stream_reply(HELLO_CUT + sse({'error': error}))) as (_, asker):
                    *_, last = decode(b''.join(ask(asker).sse()))
                self.assertEqual(json.loads(last.data)['error']['code'], expected)

    def test_a_relay_that_is_broken_off_ends_the_connection(self):
        script, gone = watched()
        with served(script) as (_, asker):
            stream = ask(asker)
            events = stream.sse()
            next(events)
            events.close()
            self.assertTrue(gone.wait(PROMPT))
            self.assertRaises(streamlite.OpenAIError, next, stream)


# --------------------------------------------------------------------------------------------------
# Clients: requests, settings and what is refused before anything is sent
# --------------------------------------------------------------------------------------------------

class RequestTest(TestCase):

    def test_the_head_of_a_request(self):
        with Server() as server:
            with client(server, organization='org', project='proj',
                        default_headers={'X-Mine': '1'}) as asker:
                ask(asker, extra_headers={'X-Yours': '2'}, temperature=0,
                    extra_body={'top_k': 5}).collect()
            request = server.requests[0]
        self.assertEqual((request.method, request.path), ('POST', PATH))
        self.assertEqual(request.json, {
            'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}], 'stream': True,
                                        'temperature': 0, 'top_k': 5})
        expected = {'host': '127.0.0.1:%d' % server.port, 'authorization': 'Bearer ' + KEY,
                    'content-type': 'application/json',
                    'accept': 'text/event-stream, application/json',
                    'accept-encoding': 'identity',
                    'openai-organization': 'org', 'openai-project': 'proj', 'x-mine': '1',
                    'x-yours': '2'}
        self.assertEqual({name: request.headers.get(name) for name in expected}, expected)
        self.assertRegex(request.headers['user-agent'], r'^streamlite/[\d.]+ Python/3\.\d+')

    def test_a_base_url_is_forgiven(self):
        cases = {'/v1': PATH, '/v1/': PATH, '': '/chat/completions', '/': '/chat/completions',
                 '/a/b/': '/a/b/chat/completions', '/v1/chat/completions': PATH,
                 '/v1/chat/completions/': PATH,
                 '/v1?api-version=1': PATH + '?api-version=1',
                 '/v1/?api-version=1': PATH + '?api-version=1',
                 '/v1/chat/completions?a=b%20c': PATH + '?a=b%20c'}
        for given, path in cases.items():
            with self.subTest(given), Server() as server:
                with client(server,
                            base_url='http://127.0.0.1:%d%s' % (server.port, given)) as asker:
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual(server.requests[0].path, path)

    def test_queries_are_added_up(self):
        with Server() as server, client(server, base_url=server.url + '?a=1',
                                        default_query={'b': '2 3'}) as asker:
            self.assertText(ask(asker, extra_query={'c': '&'}), 'Hello world')
            path, _, query = server.requests[0].path.partition('?')
        self.assertEqual((path, sorted(query.split('&'))), (PATH, ['a=1', 'b=2+3', 'c=%26']))

    def test_a_forgotten_v1_is_guessed(self):
        for answer in (error_reply(404, message='Not Found'),
                       reply(200, {}, b'<html>welcome</html>')):
            with self.subTest(answer), Server(answer) as server:
                with client(server, base_url='http://127.0.0.1:%d' % server.port) as asker:
                    self.assertSays(self.assertBroken(asker, '', streamlite.APIError), '/v1')

    def test_environment_and_arguments(self):
        with Server() as server:
            os.environ.update(OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY,
                              OPENAI_ORG_ID='org', OPENAI_PROJECT_ID='proj')
            with streamlite.OpenAI() as asker:
                self.assertText(ask(asker), 'Hello world')
            del os.environ['OPENAI_API_KEY']
            with streamlite.OpenAI() as asker:  # a local server needs none
                self.assertText(ask(asker), 'Hello world')
            first, second = server.requests
        names = 'authorization', 'openai-organization', 'openai-project'
        self.assertEqual([first.headers.get(name) for name in names],
                         ['Bearer ' + KEY, 'org', 'proj'])
        self.assertNotIn(KEY, str(second.headers))

    def test_models_are_listed(self):
        with served(reply(200, {}, MODELS)) as (server, asker):
            self.assertEqual([model.id for model in asker.models.list()], ['one', 'two'])
            self.assertEqual((server.requests[0].method, server.requests[0].path),
                             ('GET', '/v1/models'))
            self.assertNotIn('content-type', server.requests[0].headers)

    def test_the_framing_of_a_request_is_ours_alone(self):
        theirs = {'Content-Length': '0', 'content-LENGTH': '5', 'Transfer-Encoding': 'chunked',
                  'Connection': 'close', 'Keep-Alive': 'timeout=5', 'TE': 'trailers',
                  'Trailer': 'X', 'Upgrade': 'h2c', 'Expect': '100-continue', 'X-Mine': 'mine'}
        ours = []

        def script(peer):
            ours.append(peer.request)
            peer.send(stream_reply(HELLO))

        with served(script) as (server, asker):
            for name in theirs:
                own = {name: theirs[name], 'X-Mine': 'mine'}
                for wanted in (dict(extra_headers=own), dict(default_headers=own)):
                    with self.subTest(name, way=list(wanted)):
                        extra = wanted.get('extra_headers')
                        asking = asker.with_options(**dict(wanted, extra_headers=None))
                        self.assertText(ask(asking, extra_headers=extra), 'Hello world')
                        request = ours.pop()
                        self.assertEqual(request.headers['content-length'], str(len(request.body)))
                        self.assertEqual(request.headers['connection'], 'keep-alive')
                        self.assertEqual(request.headers['x-mine'], 'mine')
                        for absent in ('transfer-encoding', 'keep-alive', 'te', 'trailer',
                                       'upgrade', 'expect'):
                            self.assertNotIn(absent, request.headers)
        with served(reply(200, {}, {'data': []})) as (server, asker):
            asker.models.list(extra_headers=theirs)
            self.assertNotIn('content-length', server.requests[0].headers)
            self.assertNotIn('transfer-encoding', server.requests[0].headers)

    def test_any_mapping_is_an_object_of_the_request(self):
        mapping = collections.ChainMap({'a': 1}, {'b': collections.UserDict(c=2)})
        self.assertEqual(json.loads(streamlite._encode_body({'x': [mapping]}).decode()),
                         {'x': [{'a': 1, 'b': {'c': 2}}]})

    def test_what_is_not_given_is_false_and_says_what_it_is(self):
        self.assertFalse(streamlite.NOT_GIVEN)
        self.assertEqual(repr(streamlite.NOT_GIVEN), 'NOT_GIVEN')

    def test_messages_may_come_from_an_iterator(self):
        with served(error_reply(503, AGAIN), stream_reply(HELLO), max_retries=1) as (server, asker):
            self.assertText(ask(asker, messages=iter(chat('one') + chat('two'))), 'Hello world')
            for request in server.requests:
                self.assertEqual(request.json['messages'], chat('one') + chat('two'))


class SettingsTest(TestCase):
    """What a client was given stays with it, and goes nowhere else."""

    def asked(self, server, asker, **options):
        self.assertText(ask(asker, **options), 'Hello world')
        return server.requests[-1]

    def test_none_in_with_options_never_sends_a_key_where_it_was_not_meant_to_go(self):
        with Server() as server, Server() as other:
            os.environ.update(OPENAI_API_KEY='environment-' + KEY, OPENAI_BASE_URL=other.url)
            own, none = client(server, api_key='own-' + KEY), client(server, api_key='')
            with own as asker, none as keyless:
                for value in None, streamlite.NOT_GIVEN:
                    with self.subTest('api_key', value=value):
                        request = self.asked(server, asker.with_options(api_key=value))
                        self.assertEqual(request.headers['authorization'], 'Bearer own-' + KEY)
                    with self.subTest('no key', value=value):
                        request = self.asked(server, keyless.with_options(api_key=value))
                        self.assertNotIn('authorization', request.headers)
                    with self.subTest('base_url', value=value):
                        self.asked(server, asker.with_options(base_url=value))
                    with self.subTest('copy', value=value):
                        self.asked(server, asker.copy(base_url=value, api_key=value))
                request = self.asked(server, asker.with_options(api_key='third-' + KEY))
                self.assertEqual(request.headers['authorization'], 'Bearer third-' + KEY)
                self.assertEqual(other.requests, [])

    def test_none_means_as_it_was_for_every_setting_but_the_times(self):
        settings = {'api_key': 'k' * 9, 'organization': 'org', 'project': 'pro', 'max_retries': 7,
                    'timeout': 3, 'deadline': 9, 'base_url': 'http://127.0.0.1:9/v1'}
        os.environ.update(OPENAI_API_KEY='x' * 9, OPENAI_ORG_ID='x', OPENAI_PROJECT_ID='x')
        with streamlite.OpenAI(**settings) as asker:
            for name, was in settings.items():
                for value in None, streamlite.NOT_GIVEN:
                    with self.subTest(name, value=value):
                        changed = asker.with_options(**{name: value})
                        none = value is None and name in ('timeout', 'deadline')
                        self.assertEqual(getattr(changed, name), None if none else was)
            for name in ('ssl_context', 'handlers', 'default_headers', 'default_query',
                         'http_client'):
                with self.subTest(name):
                    asker.with_options(**{name: None})

    def test_none_in_the_constructor_is_as_if_it_were_left_out(self):
        with Server() as server:
            os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url)
            for value in None, streamlite.NOT_GIVEN:
                names = ('api_key', 'organization', 'project', 'base_url', 'max_retries',
                         'default_headers', 'default_query', 'ssl_context', 'handlers', 'deadline')
                for name in names:
                    with self.subTest(name, value=value):
                        with streamlite.OpenAI(**{name: value}) as asker:
                            sent = self.asked(server, asker).headers['authorization']
                            self.assertEqual(sent, 'Bearer ' + KEY)

    def test_no_default_headers_take_those_of_the_tenant_away(self):
        with Server() as server:
            settings = {'default_headers': {'X-Tenant': 'a'}, 'default_query': {'tenant': 'a'}}
            with client(server, **settings) as asker:
                for value in None, {}, streamlite.NOT_GIVEN:
                    with self.subTest(value=value):
                        changed = asker.with_options(default_headers=value, default_query=value)
                        for one in changed, changed.with_options(timeout=PROMPT):
                            request = self.asked(server, one)
                            self.assertEqual(request.headers['x-tenant'], 'a')
                            self.assertIn('tenant=a', request.path)
                more = asker.with_options(default_headers={'X-More': 'b'},
                                          default_query={'more': 'b'})
                request = self.asked(server, more)
                self.assertEqual(request.headers['x-tenant'], 'a')
                self.assertEqual(request.headers['x-more'], 'b')
                self.assertIn('tenant=a', request.path)
                self.assertIn('more=b', request.path)

    def test_an_omitted_authorization_sends_no_key(self):
        for name in 'Authorization', 'authorization':
            for value in streamlite.Omit(), streamlite.omit:
                with self.subTest(name, value=value), Server() as server:
                    with client(server, default_headers={name: value}) as asker:
                        self.assertNotIn('authorization', self.asked(server, asker).headers)
                        again = asker.with_options(timeout=PROMPT)
                        self.assertNotIn('authorization', self.asked(server, again).headers)
                    with client(server) as asker:
                        without = asker.with_options(default_headers={name: value})
                        self.assertNotIn('authorization', self.asked(server, without).headers)
                        request = self.asked(server, asker, extra_headers={name: value})
                        self.assertNotIn('authorization', request.headers)
                        sent = self.asked(server, asker).headers['authorization']
                        self.assertEqual(sent, 'Bearer ' + KEY)

    def test_a_timeout_may_have_the_name_of_the_sdk(self):
        timeout = streamlite.Timeout(9.0, connect=3.0)
        self.assertEqual((timeout.connect, timeout.read), (3.0, 9.0))
        full = streamlite.Timeout(connect=LONG, read=LONG, write=3.0, pool=4.0)
        with served(stream_reply(HELLO), timeout=full) as (_, asker):
            self.assertText(ask(asker, timeout=timeout), 'Hello world')
        with served(stall()) as (_, asker), self.assertPrompt():
            timeout = streamlite.Timeout(LONG, read=SHORT)
            self.assertBroken(asker, '', streamlite.APITimeoutError, timeout=timeout)

    def test_a_client_tells_whether_it_is_closed(self):
        with client(None, base_url='http://127.0.0.1:9') as asker:
            self.assertIs(asker.is_closed(), False)
        self.assertIs(asker.is_closed(), True)

    def test_an_argument_is_sent_if_and_only_if_it_was_given(self):
        nothing, tools = streamlite.NOT_GIVEN, [{'type': 'function'}]
        with served(reply(200, {}, WHOLE)) as (server, asker):
            for given, sent in (
                    ({}, {}),
                    ({'temperature': 0, 'stop': []}, {'temperature': 0, 'stop': []}),
                    ({'temperature': nothing, 'tools': nothing, 'max_tokens': streamlite.omit}, {}),
                    ({'stop': None, 'max_tokens': None}, {'stop': None, 'max_tokens': None}),
                    ({'tools': tools, 'tool_choice': 'auto', 'min_p': 0.1},
                     {'tools': tools, 'tool_choice': 'auto', 'min_p': 0.1}),
                    ({'temperature': 1, 'extra_body': {'temperature': 2}}, {'temperature': 2})):
                with self.subTest(given=given):
                    asker.chat.completions.create(model='m', messages=[], **given)
                    self.assertEqual(server.requests[-1].json,
                                     dict({'model': 'm', 'messages': []}, **sent))

    def test_an_assignment_that_is_refused_does_not_stay(self):
        with served(stream_reply(HELLO)) as (_, asker):
            for name, value in (('timeout', 'x'), ('api_key', 'a b\n'), ('api_key', 5),
                                ('max_retries', -1), ('deadline', 0), ('deadline', 'x'),
                                ('base_url', 'ftp://x'), ('organization', 'a\nb'),
                                ('project', 'a\nb'), ('default_headers', {'a\n': 'b'}),
                                ('default_query', 'x'), ('handlers', [5]), ('ssl_context', 5)):
                with self.subTest(name, value=value):
                    before = getattr(asker, name)
                    with self.assertRaises((streamlite.OpenAIError, TypeError)):
                        setattr(asker, name, value)
                    self.assertEqual(getattr(asker, name), before)
                    self.assertText(ask(asker), 'Hello world')

    def test_headers_query_and_handlers_can_be_assigned(self):
        class Note(urllib.request.BaseHandler):
            def http_request(self, request):
                request.add_unredirected_header('X-Note', 'noted')
                return request

        with served(stream_reply(HELLO)) as (server, asker):
            asker.default_headers = {'X-Mine': 'mine'}
            asker.default_query = {'q': '1'}
            asker.handlers = [Note()]
            self.assertText(ask(asker), 'Hello world')
        request = server.requests[0]
        self.assertEqual((request.path, request.headers['x-mine'], request.headers['x-note']),
                         (PATH + '?q=1', 'mine', 'noted'))

    def test_a_key_that_cannot_be_sent_is_refused_when_it_is_set(self):
        with streamlite.OpenAI(api_key=KEY) as asker:
            for key in KEY + ' ', KEY + '\n', KEY + 'é', 7, [KEY]:
                with self.subTest(type(key).__name__):
                    self.assertRaises(streamlite.OpenAIError, streamlite.OpenAI, api_key=key)
                    self.assertRaises(streamlite.OpenAIError, setattr, asker, 'api_key', key)
                    self.assertEqual(asker.api_key, KEY)

    def test_a_header_name_that_is_no_text_is_refused(self):
        for name in 7, None, b'X-Name', ('X',):
            with self.subTest(repr(name)):
                self.assertRaises(streamlite.OpenAIError, streamlite.OpenAI, api_key=KEY,
                                  default_headers={name: 'x'})

    def test_a_user_name_or_password_in_the_base_url_is_refused(self):
        for url in ('https://user:%s@server.test/v1' % PASSWORD, 'https://user@server.test/v1',
                    'https://user:%s@[::1]:8000' % PASSWORD,
                    'https://server.test/v1#%s@x' % PASSWORD):
            with self.assertRaises(streamlite.OpenAIError) as caught:
                streamlite.OpenAI(api_key=KEY, base_url=url)
            self.assertSays(caught.exception, 'user name', 'default_headers')

    def test_an_http_client_that_is_left_out_in_so_many_words_is_none(self):
        for nothing in None, streamlite.NOT_GIVEN:
            for kind in streamlite.OpenAI, streamlite.AsyncOpenAI:
                self.assertEqual(kind(api_key=KEY, http_client=nothing).api_key, KEY)

    def test_a_header_that_says_who_asks_needs_no_key_beside_it(self):
        for kind in streamlite.OpenAI, streamlite.AsyncOpenAI:
            self.assertRaises(streamlite.OpenAIError, kind)
            self.assertIsNone(kind(default_headers={'Authorization': 'Basic x'}).api_key)

    def test_what_a_copy_cannot_change_is_named(self):
        with streamlite.OpenAI(api_key=KEY) as asker:
            for name, hint in ('no_such', ''), ('http_client', 'ssl_context'):
                with self.assertRaises(TypeError) as caught:
                    asker.with_options(**{name: 7})
                self.assertSays(caught.exception, 'OpenAI has no argument %r' % name, hint)


class BadInputTest(TestCase):
    """Each is one clear error that names the input, before anything is sent."""

    def assertRefused(self, options, request, *words):
        with Server() as server:
            with self.assertRaises((streamlite.OpenAIError, TypeError, ValueError)) as caught:
                with client(server, **options) as asker:
                    ask(asker, **request)
            self.assertSays(caught.exception, *words)
            self.assertNotIsInstance(caught.exception, UnicodeError)
            self.assertEqual(server.requests, [])

    def test_no_key_for_the_default_base_url(self):
        with self.assertRaises(streamlite.OpenAIError) as caught:
            streamlite.OpenAI()
        self.assertSays(caught.exception, 'OPENAI_API_KEY', 'api_key')

    def test_what_is_half_a_timeout(self):
        class Connect:
            connect = 3

        class Read:
            read = 3

        for timeout in Connect(), Read(), (1, 2, 3), 'soon':
            with self.subTest(timeout):
                self.assertRefused({'timeout': timeout}, {}, 'timeout', repr(timeout)[:20])

    def test_an_argument_that_no_client_has(self):
        for kind in streamlite.OpenAI, streamlite.AsyncOpenAI, streamlite.AzureOpenAI:
            for name in 'apikey', 'organisation':
                with self.subTest(kind.__name__), self.assertRaises(TypeError) as caught:
                    kind(**{'api_key': KEY, name: 'x'})
                self.assertSays(caught.exception, kind.__name__, name)

    def test_a_handler_that_is_none(self):
        for handlers in [7], [object()], 7:
            self.assertRefused({'handlers': handlers}, {}, 'handlers must be', 'urllib.request')

    def test_a_model_that_is_none(self):
        for model in '', None, 7, []:
            self.assertRefused({}, {'model': model}, 'model')

    def test_a_header_whose_value_is_no_text(self):
        for value in 7, b'x', ['x']:
            self.assertRefused({'default_headers': {'X-Mine': value}}, {}, 'X-Mine', 'text')

    def test_a_host_that_is_none(self):
        for host in 'exa<mple', 'a,b', 'a"b', '[::1', 'a^b':
            self.assertRefused({'base_url': 'http://%s/v1' % host}, {}, 'base_url')

    def test_a_key_that_no_header_can_hold(self):
        for form in ('%s\n', '%s\r\nX-Evil: 1', 'a %s', '%s\u2026', '%s\xe9', '\u201c%s\u201d',
                     '%s\0'):
            key = form % KEY
            with self.subTest(ascii(form)):
                self.assertRefused({'api_key': key}, {}, 'key')
                self.assertRefused({'api_key': lambda key=key: key}, {}, 'key')

    def test_a_header_that_would_be_two(self):
        for value in PASSWORD + '\r\nX-Evil: 1', PASSWORD + '\n', PASSWORD + '\u20ac':
            with self.subTest(ascii(value)):
                self.assertRefused({'default_headers': {'X-Mine': value}}, {}, 'X-Mine')
                self.assertRefused({}, {'extra_headers': {'X-Mine': value}}, 'X-Mine')
        self.assertRefused({}, {'extra_headers': {'X-Mine: 1\r\nX-Evil': '1'}}, 'header')

    def test_a_base_url_that_is_none(self):
        for url, word in (('ftp://127.0.0.1/v1', 'ftp'), ('file:///etc/passwd', 'file'),
                          ('127.0.0.1:8080/v1', 'http'),
                          ('http://', 'base_url'), ('http://127.0.0.1:99999/v1', 'base_url'),
                          ('http://127.0.0.1:x/v1', 'base_url')):
            with self.subTest(url):
                self.assertRefused({'base_url': url}, {}, word)

    def test_a_base_url_cannot_add_a_header(self):
        for end in '/a b', '\r\nX-Evil: 1', ' HTTP/1.1\r\nX-Evil: 1\r\n', '\n':
            with self.subTest(end), Server() as server:
                with contextlib.suppress(streamlite.OpenAIError, ValueError):
                    with client(server, base_url=server.url + end) as asker:
                        ask(asker).collect()
                for request in server.requests:
                    self.assertNotIn('x-evil', request.headers)

    def test_credentials_in_a_url_are_not_shown(self):
        with dead_port() as port:
            with client(None, base_url='http://127.0.0.1:%d/v1?key=%s' % (port, PASSWORD)) as asker:
                self.assertNotIn(MARK, repr(asker) + str(asker))
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
                remember(caught.exception)
            for wrong in ('http://user:%s#1@127.0.0.1/v1', 'http://user:%s/1@127.0.0.1/v1',
                          'https:%s@127.0.0.1', '%s'):
                with self.subTest(wrong), self.assertRaises((streamlite.OpenAIError, ValueError)):
                    with client(None, base_url=wrong % PASSWORD) as asker:
                        ask(asker)

    def test_messages_that_are_none(self):
        for messages in 'hi', b'hi', {'role': 'user', 'content': 'hi'}, None, 5, ['hi'], [None]:
            with self.subTest(messages):
                self.assertRefused({}, {'messages': messages}, 'messages')
        for value in object(), {1, 2}, b'bytes':
            with self.subTest(value):
                self.assertRefused({}, {'messages': [{'role': 'user', 'content': value}]})
                self.assertRefused({}, {'temperature': value})

    def test_what_is_required_and_what_is_not_offered(self):
        with served() as (server, asker):
            for options in {'model': 'm'}, {'messages': []}:
                with self.assertRaises(TypeError):
                    asker.chat.completions.create(**options)
            with self.assertRaises(TypeError) as caught:
                client(server, http_client=object())
            self.assertSays(caught.exception, 'http_client')
            self.assertEqual(server.requests, [])

    def test_a_dead_port_is_named(self):
        with dead_port() as port:
            place = '127.0.0.1:%d' % port
            with client(None, base_url='http://%s/v1' % place) as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
        self.assertSays(caught.exception, place)
        self.assertEqual(caught.exception.attempts, 1)

    def test_a_name_that_does_not_resolve_is_named(self):
        error = socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        with mock.patch('socket.getaddrinfo', side_effect=error):
            with client(None, base_url='http://no.example.test/v1') as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'the host no.example.test is not known')
            os.environ['http_proxy'] = 'http://proxy.test:3128'
            with client(None, base_url='http://no.example.test/v1') as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'the host proxy.test:3128 is not known')

    def test_what_cannot_be_meant_is_an_error_that_names_the_argument(self):
        huge = 10 ** 400
        constructor = [
            ('timeout', huge), ('timeout', (1, huge)), ('timeout', 'x'), ('timeout', (1, 2, 3)),
            ('timeout', float('nan')), ('deadline', huge), ('deadline', 'x'),
            ('default_query', {'a': '\ud800'}), ('default_query', {'\ud800': 'a'}),
            ('default_query', 'x'), ('default_query', ['x']), ('default_headers', [('a', 'b')]),
            ('default_headers', 'x'), ('default_headers', ['x']),
            ('base_url', 'http://127.0.0.1:9/\ud800'), ('base_url', 'http://127.0.0.1:9?a=\ud800'),
            ('base_url', 'http://\ud800/v1'), ('base_url', b'http://127.0.0.1/v1'), ('base_url', 7)]
        create = [
            ('timeout', huge), ('timeout', 'x'), ('extra_body', 'x'), ('extra_body', [1]),
            ('extra_body', 7), ('extra_headers', [('a', 'b')]), ('extra_headers', ['x']),
            ('extra_headers', 'x'), ('extra_query', {'a': '\ud800'}), ('extra_query', 'x'),
            ('extra_query', [1])]
        https = {'base_url': 'https://127.0.0.1:9/v1'}
        cases = [(dict([case]), {}) for case in constructor]
        cases += [({}, dict([case])) for case in create]
        cases += [(dict(https, ssl_context=value), {})
                  for value in ('x', 7, object(), True, '/etc/ssl/cert.pem')]
        with Server() as server:
            for settings, fields in cases:
                name = list(fields or settings)[-1]
                with self.subTest(name, value=ascii((settings, fields))[:60]):
                    with self.assertRaises((TypeError, streamlite.OpenAIError)) as caught:
                        with client(server, **settings) as asker:
                            ask(asker, **fields)
                    self.assertIn(name, str(caught.exception))
                    self.assertNotIsInstance(caught.exception, streamlite.APIError)
            self.assertEqual(server.requests, [])
            with client(server) as asker:
                half = chat('a\ud800')
                self.assertText(ask(asker, messages=half), 'Hello world')

    def test_arguments_without_their_names(self):
        for kind in (streamlite.OpenAI, streamlite.AsyncOpenAI, streamlite.AzureOpenAI,
                     streamlite.AsyncAzureOpenAI):
            with self.subTest(kind.__name__), self.assertRaises(TypeError) as caught:
                kind(KEY)
            self.assertSays(caught.exception, 'api_key=')
        with client(None, base_url='http://127.0.0.1:9') as asker:
            for words, work in (
                    ('argument', lambda: asker.chat.completions.create('m', [])),
                    ('model', lambda: asker.chat.completions.create(messages=[])),
                    ('messages', lambda: asker.chat.completions.create(model='m'))):
                with self.subTest(words), self.assertRaises(TypeError) as caught:
                    work()
                self.assertSays(caught.exception, words)

    def test_handlers_that_give_back_something_else_are_named(self):
        def handler(**methods):
            methods = {name: lambda self, *args, make=make: make(*args)
                       for name, make in methods.items()}
            return type('Handler', (urllib.request.BaseHandler,),
                        dict(methods, handler_order=100))()

        def as_urllib_does(request):
            return urllib.response.addinfourl(
                io.BytesIO(b'{}'), email.message.Message(), request.full_url, 200)

        def fresh(request):
            return urllib.request.Request(request.full_url, request.data)

        for name, made in (
                ("urllib's reply", handler(http_open=as_urllib_does)),
                ('a number', handler(http_open=lambda request: 5)),
                ('no reply', handler(http_response=lambda request, answer: None)),
                ('a text', handler(http_response=lambda request, answer: 'x')),
                ("urllib's request", handler(http_request=fresh))):
            with self.subTest(name), served(stream_reply(HELLO), handlers=[made]) as (_, asker):
                with self.assertRaises(TypeError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'handlers')

    def test_no_argument_is_an_error_of_pythons_own(self):
        many, half = 10 ** 5000, '\ud800'
        with served(stream_reply(HELLO)) as (server, asker):
            for name, call in (
                    ('base_url', lambda: client(None, base_url=many)),
                    ('handlers', lambda: client(server, handlers=5)),
                    ('model', lambda: ask(asker, model=many)),
                    ('model', lambda: asker.models.retrieve(half)),
                    ('model', lambda: asker.models.retrieve(5))):
                with self.subTest(name):
                    with self.assertRaises((TypeError, streamlite.OpenAIError)) as caught:
                        call()
                    self.assertSays(caught.exception, name)
                    self.assertLess(len(str(caught.exception)), 500)

    def test_a_value_that_cannot_be_shown_is_told_by_its_type(self):
        class Odd:
            def __repr__(self):
                raise ValueError('too long')

        self.assertEqual(streamlite._shown(Odd()), 'such Odd')


class ClientTest(TestCase):
    """What programs do with the SDK's clients beside asking."""

    def test_what_is_assigned_to_a_client_counts_for_copies_too(self):
        with served(stream_reply(HELLO), base_url='http://nobody.invalid') as (server, asker):
            asker.api_key, asker.base_url, asker.max_retries = 'sk-new', server.url + '/?v=1', 7
            for other in asker, asker.with_options(timeout=PROMPT), asker.copy():
                self.assertText(ask(other), 'Hello world')
                self.assertEqual(other.max_retries, 7)
            self.assertEqual([(request.path, request.headers['authorization'])
                              for request in server.requests],
                             [('/v1/chat/completions?v=1', 'Bearer sk-new')] * 3)
            with self.assertRaises(streamlite.OpenAIError):
                asker.base_url = 'ftp://nobody.invalid'

    def test_what_is_patched_stays_patched_and_can_be_restored(self):
        with served(stream_reply(HELLO)) as (server, asker):
            for patch in (lambda: mock.patch.object(asker.chat.completions, 'create',
                                                    return_value='patched'),
                          lambda: mock.patch.object(asker.chat, 'completions',
                                                    **{'create.return_value': 'patched'}),
                          lambda: mock.patch.object(
                              asker, 'chat', **{'completions.create.return_value': 'patched'})):
                with patch():
                    self.assertEqual(ask(asker), 'patched')
                self.assertText(ask(asker), 'Hello world')
            # Tracing tools wrap it like this.
            asker.chat.completions.create = lambda **fields: fields['model']
            self.assertEqual(ask(asker), 'm')
            self.assertEqual(len(server.requests), 3)

    def test_the_request_id_is_in_the_completion(self):
        named = {'x-request-id': 'req_7'}
        with served(reply(200, named, WHOLE), stream_reply(HELLO, headers=named)) as (_, asker):
            for completion in ask(asker, stream=False), ask(asker).collect():
                self.assertEqual(completion._request_id, 'req_7')
                self.assertNotIn('_request_id', completion.to_dict())

    def test_arguments_of_the_sdk_are_understood(self):
        class Message:
            def model_dump(self, **options):
                return {'role': 'user', 'content': 'hi'}

        self.assertTrue(issubclass(streamlite.AsyncClient, streamlite.AsyncOpenAI))
        with Server(stream_reply(HELLO)) as server:
            with streamlite.Client(api_key=KEY, base_url=server.url,
                                   max_retries=float('inf')) as asker:
                self.assertText(ask(asker, messages=[Message()], seed=streamlite.omit,
                                    user=streamlite.NOT_GIVEN),
                                'Hello world')
            self.assertEqual(server.requests[0].json,
                             {'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}],
                              'stream': True})

    def test_what_is_missing_names_what_is_there(self):
        with client(None, base_url='http://nobody.invalid') as asker:
            for place, name in ((asker, 'embeddings'), (asker.models, 'delete'),
                                (asker.chat, 'sessions')):
                with self.assertRaises(AttributeError) as caught:
                    getattr(place, name)
                self.assertSays(caught.exception, name, 'chat completions')

    def test_models_are_retrieved_too(self):
        missing = error_reply(404, message='no such model', code='model_not_found')
        one = reply(200, {}, MODELS['data'][0])
        with served(one, one, missing) as (server, asker):
            self.assertEqual(asker.models.retrieve('org/model:1').id, 'one')
            self.assertEqual(asker.models.retrieve(model='one', timeout=PROMPT).id, 'one')
            with self.assertRaises(streamlite.NotFoundError) as caught:
                asker.models.retrieve('three')
            self.assertSays(caught.exception, 'model_not_found')
            with self.assertRaises((TypeError, ValueError)) as caught:
                asker.models.retrieve('')
            self.assertSays(caught.exception, 'model')
            self.assertEqual([request.path for request in server.requests],
                             ['/v1/models/org%2Fmodel:1', '/v1/models/one', '/v1/models/three'])


    def test_what_is_no_list_of_models_is_an_error(self):
        deep = b'{"id": "one", "data": [%s%s]}' % (b'[' * 100, b']' * 100)
        for body in b'<html>hello</html>', b'{', b'[]', b'{}', b'{"data": {}}', b'7', b'', deep:
            with self.subTest(body), served(reply(200, {}, body)) as (server, asker):
                for work in asker.models.list, lambda: asker.models.retrieve('one'):
                    with self.assertRaises(streamlite.APIResponseValidationError) as caught:
                        work()
                    remember(caught.exception)
        with served(reply(200, {}, {'error': {'message': 'no such thing'}})) as (_, asker):
            with self.assertRaises(streamlite.APIError) as caught:
                asker.models.list()
            self.assertSays(caught.exception, 'no such thing')
            self.assertNotIn('base_url', str(caught.exception))


class AzureTestCase(AsyncTestCase):
    """With no setting of Azure's in the environment."""

    PATH = '/openai/deployments/m/chat/completions?api-version=2024-10-21'

    def azure(self, server, kind=streamlite.AzureOpenAI, **options):
        """A client of the server as if it were a resource of Azure's."""
        usual = {'azure_endpoint': server.url[:-len('/v1')], 'api_version': '2024-10-21',
                 'max_retries': 0, 'timeout': LONG}
        return kind(**dict(usual, **options))

    @staticmethod
    def credentials(request):
        """What the request proves itself with."""
        return {name: value for name, value in request.headers.items()
                if name in ('api-key', 'authorization')}

    @staticmethod
    def tokens():
        """A function that has another token each time."""
        numbers = itertools.count(1)
        return lambda: 'token-%s-%d' % (MARK, next(numbers))


class AzureTest(AzureTestCase):

    def test_the_model_or_the_deployment_is_in_the_path(self):
        no_endpoint = {'azure_endpoint': None}
        with Server() as server:
            root = server.url[:-len('/v1')]
            for name, options, model, path in (
                    ('the model names the deployment', {}, 'gpt-4o', '/openai/deployments/gpt-4o'),
                    ('a model to quote', {}, 'my gpt/4', '/openai/deployments/my%20gpt%2F4'),
                    ('one deployment', {'azure_deployment': 'dep'}, 'm', '/openai/deployments/dep'),
                    ('a slash at the end', {'azure_endpoint': root + '/'}, 'm',
                     '/openai/deployments/m'),
                    ('a gateway with a path', {'azure_endpoint': root + '/gate'}, 'm',
                     '/gate/openai/deployments/m'),
                    ('base_url', dict(no_endpoint, base_url=root + '/openai'), 'm',
                     '/openai/deployments/m'),
                    ('base_url with a slash', dict(no_endpoint, base_url=root + '/openai/'), 'm',
                     '/openai/deployments/m'),
                    ('base_url with a deployment',
                     dict(no_endpoint, base_url=root + '/openai/deployments/dep'), 'm',
                     '/openai/deployments/dep')):
                with self.subTest(name), self.azure(server, api_key=KEY, **options) as asker:
                    self.assertIsInstance(asker, streamlite.OpenAI)
                    self.assertText(ask(asker, model=model), 'Hello world')
                    request = server.requests[-1]
                    self.assertEqual(request.path,
                                     path + '/chat/completions?api-version=2024-10-21')
                    self.assertEqual(self.credentials(request), {'api-key': KEY})
                    self.assertEqual(request.json['model'], model)

    def test_models_are_never_below_a_deployment(self):
        page, one = reply(200, {}, MODELS), reply(200, {}, MODELS['data'][0])
        with Server(page, page, one) as server:
            for options in {}, {'azure_deployment': 'dep'}:
                with self.azure(server, api_key=KEY, **options) as asker:
                    self.assertEqual([model.id for model in asker.models.list()], ['one', 'two'])
            with self.azure(server, api_key=KEY, azure_deployment='dep') as asker:
                self.assertEqual(asker.models.retrieve('one').id, 'one')
            version = '?api-version=2024-10-21'
            self.assertEqual([request.path for request in server.requests],
                             ['/openai/models' + version] * 2 + ['/openai/models/one' + version])

    def test_the_version_of_the_interface(self):
        os.environ['OPENAI_API_VERSION'] = 'e'
        older = {'default_query': {'a': 'b', 'api-version': '0'}}
        with Server() as server:
            for options, fields, query in (
                    ({'api_version': '1'}, {}, 'api-version=1'),
                    (dict(older, api_version='1'), {}, 'a=b&api-version=1'),
                    ({'api_version': '1'}, {'extra_query': {'api-version': '2'}}, 'api-version=2'),
                    ({'api_version': None}, {}, 'api-version=e')):
                with self.subTest(query), self.azure(server, api_key=KEY, **options) as asker:
                    self.assertText(ask(asker, **fields), 'Hello world')
                    sent = server.requests[-1].path.partition('?')[2]
                    self.assertEqual(sorted(sent.split('&')), query.split('&'))

    def test_what_proves_who_asks(self):
        token = 'token-' + MARK
        only_key = {'AZURE_OPENAI_API_KEY': 'env-' + KEY}
        both = dict(only_key, AZURE_OPENAI_AD_TOKEN='env-' + token)
        as_key, as_token = {'api-key': KEY}, {'authorization': 'Bearer ' + token}
        provider = {'azure_ad_token_provider': lambda: token}
        with Server() as server:
            for name, variables, options, sent in (
                    ('a key', {}, {'api_key': KEY}, as_key),
                    ('a function for the key', {}, {'api_key': lambda: KEY}, as_key),
                    ('a token', {}, {'azure_ad_token': token}, as_token),
                    ('a function for the token', {}, provider, as_token),
                    ('a key before the environment', both, {'api_key': KEY}, as_key),
                    ('a function before the environment', both, provider, as_token),
                    ('the key of the environment', only_key, {}, {'api-key': 'env-' + KEY}),
                    ('its token before its key', both, {},
                     {'authorization': 'Bearer env-' + token}),
                    ('not the key for another address',
                     dict(only_key, OPENAI_API_KEY='other-' + KEY), {},
                     {'api-key': 'env-' + KEY})):
                with self.subTest(name), mock.patch.dict(os.environ, variables):
                    with self.azure(server, **options) as asker:
                        self.assertText(ask(asker), 'Hello world')
                    self.assertEqual(self.credentials(server.requests[-1]), sent)

    def test_everything_may_come_from_the_environment(self):
        with Server() as server:
            os.environ.update(AZURE_OPENAI_API_KEY=KEY, OPENAI_API_VERSION='v', OPENAI_ORG_ID='org',
                              AZURE_OPENAI_ENDPOINT=server.url[:-len('/v1')],
                              OPENAI_BASE_URL='http://nobody.invalid/v1')
            with streamlite.AzureOpenAI(timeout=LONG, max_retries=0) as asker:
                self.assertText(ask(asker), 'Hello world')
            request, = server.requests
            self.assertEqual(request.path, '/openai/deployments/m/chat/completions?api-version=v')
            self.assertEqual(request.headers['openai-organization'], 'org')
            self.assertEqual(self.credentials(request), {'api-key': KEY})

    def test_what_is_missing_or_too_much_is_named_before_anything_is_sent(self):
        given = {'api_key': KEY, 'api_version': 'v', 'azure_endpoint': 'http://nobody.invalid'}
        # These are not for Azure.
        os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL='http://nobody.invalid/v1')
        for kind in streamlite.AzureOpenAI, streamlite.AsyncAzureOpenAI:
            for changes, words in (
                    ({'api_key': None}, ['api_key', 'AZURE_OPENAI_API_KEY', 'azure_ad_token']),
                    ({'api_version': None}, ['api_version', 'OPENAI_API_VERSION']),
                    ({'azure_endpoint': None}, ['azure_endpoint', 'AZURE_OPENAI_ENDPOINT']),
                    ({'azure_ad_token': 'token-' + MARK}, ['azure_ad_token']),
                    ({'azure_ad_token_provider': str}, ['azure_ad_token_provider']),
                    ({'base_url': 'http://nobody.invalid'}, ['base_url'])):
                with self.subTest(words, kind=kind.__name__):
                    with self.assertRaises((streamlite.OpenAIError, ValueError)) as caught:
                        kind(**dict(given, **changes))
                    self.assertSays(caught.exception, *words)

    def test_a_token_is_asked_for_at_every_attempt(self):
        with Server(error_reply(500, AGAIN), error_reply(401), stream_reply(HELLO)) as server:
            with self.azure(server, azure_ad_token_provider=self.tokens(), max_retries=1) as asker:
                self.assertRaises(streamlite.AuthenticationError, ask, asker)
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.headers['authorization'] for request in server.requests],
                             ['Bearer token-%s-%d' % (MARK, number) for number in (1, 2, 3)])

    def test_a_provider_that_has_no_token_sends_nothing(self):
        def fail():
            raise LookupError('no login')

        async def coroutine():
            return 'token'

        made = coroutine()
        self.addCleanup(made.close)
        ours = streamlite.OpenAIError, ValueError, TypeError
        with Server() as server:
            for name, provider, kind, word in (
                    ('nothing', lambda: None, ours, 'function'),
                    ('an empty text', str, ours, 'function'),
                    ('a number', lambda: 7, ours, 'function'),
                    ('a coroutine', lambda: made, ours, 'function'),
                    ('its own error', fail, LookupError, 'no login')):
                with self.subTest(name):
                    with self.azure(server, azure_ad_token_provider=provider) as asker:
                        with self.assertRaises(kind) as caught:
                            ask(asker)
                        self.assertSays(caught.exception, word)
            self.assertEqual(server.requests, [])

    def test_copies_keep_the_resource_and_may_change_how_they_prove_themselves(self):
        token = 'token-' + MARK
        as_token = {'authorization': 'Bearer ' + token}
        with Server() as server:
            with self.azure(server, azure_ad_token_provider=lambda: token,
                            azure_deployment='dep') as asker:
                for options, version, sent in (
                        ({}, '2024-10-21', as_token), ({'timeout': 3}, '2024-10-21', as_token),
                        ({'api_version': '2'}, '2', as_token),
                        ({'api_key': KEY}, '2024-10-21', {'api-key': KEY}),
                        ({'azure_ad_token': 'new-' + token}, '2024-10-21',
                         {'authorization': 'Bearer new-' + token})):
                    with self.subTest(options):
                        self.assertText(ask(asker.with_options(**options)), 'Hello world')
                        request = server.requests[-1]
                        path = '/openai/deployments/dep/chat/completions?api-version='
                        self.assertEqual(request.path, path + version)
                        self.assertEqual(self.credentials(request), sent)

    def test_azures_own_errors_and_filters_are_told(self):
        words = 'The API deployment for this resource does not exist.'
        missing = {'error': {'code': 'DeploymentNotFound', 'message': words}}
        denied = {'statusCode': 401, 'message': 'Access denied due to invalid subscription key.'}
        filtered = {'hate': {'filtered': False, 'severity': 'safe'}}
        first = {'choices': [], 'id': '', 'model': '', 'object': '',
                 'prompt_filter_results': [{'content_filter_results': filtered}]}
        streamed = stream_reply(sse(first, delta('Hi'), STOP))
        with Server(reply(404, {}, missing), reply(401, {}, denied), streamed) as server:
            with self.azure(server, api_key=KEY) as asker:
                with self.assertRaises(streamlite.NotFoundError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'DeploymentNotFound', 'does not exist')
                self.assertNotIn('/v1?', str(caught.exception), 'no advice that is wrong for Azure')
                with self.assertRaises(streamlite.AuthenticationError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'invalid subscription key')
                stream = ask(asker)
                found = next(stream).prompt_filter_results[0]['content_filter_results']
                self.assertEqual(found, filtered)
                self.assertText(stream, 'Hi')

    def test_nothing_secret_is_shown(self):
        token = 'token-' + MARK
        for options, secret in (({'api_key': KEY}, KEY), ({'azure_ad_token': token}, token),
                                ({'azure_ad_token_provider': lambda: token}, token)):
            with Server(error_reply(400, message='you sent ' + secret)) as server:
                with self.azure(server, **options) as asker:
                    self.assertNotIn(MARK, repr(asker))
                    with self.assertRaises(streamlite.BadRequestError) as caught:
                        ask(asker)
                    self.assertSays(caught.exception, 'you sent')

    def test_no_argument_is_an_error_of_pythons_own(self):
        half = '\ud800'
        with Server() as server:
            for name, settings, model in (
                    ('azure_endpoint', {'azure_endpoint': 5}, 'm'),
                    ('azure_deployment', {'azure_deployment': 5}, 'm'),
                    ('azure_deployment', {'azure_deployment': half}, 'm'),
                    ('model', {}, half), ('model', {}, 5)):
                with self.subTest(ascii((name, settings, model))):
                    with self.assertRaises((TypeError, streamlite.OpenAIError)) as caught:
                        with self.azure(server, api_key=KEY, **settings) as asker:
                            ask(asker, model=model)
                    self.assertSays(caught.exception, name)
            self.assertEqual(server.requests, [])

    def test_its_version_can_be_assigned(self):
        with Server() as server, self.azure(server, api_key=KEY) as asker:
            self.assertEqual(asker.api_version, '2024-10-21')
            asker.api_version = '2'
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual(server.requests[0].path.partition('?')[2], 'api-version=2')

    def test_a_key_in_a_header_of_the_call_s_own_is_the_one_that_is_sent(self):
        with Server() as server, self.azure(server, api_key='other-' + KEY) as asker:
            self.assertText(ask(asker, extra_headers={'api-key': KEY}), 'Hello world')
            self.assertEqual(self.credentials(server.requests[0]), {'api-key': KEY})


class ProcessTest(TestCase):

    program = """if True:
        import logging, sys, threading
        import streamlite
        url = sys.argv[1]
        with streamlite.OpenAI(api_key='k', base_url=url, max_retries=1) as client:
            for stream in (True, False):
                try:
                    answer = client.chat.completions.create(model='m', messages=[], stream=stream)
                    print((answer.collect() if stream else answer).choices[0].message.content)
                except streamlite.APIError as error:
                    print(type(error).__name__)
        print(threading.active_count())
    """

    scripts = error_reply(503, AGAIN), stream_reply(HELLO), error_reply(400)

    printed = 'Hello world\nBadRequestError\n1\n'

    def run_program(self, before, *options, **environment):
        with Server(*self.scripts) as server:
            ran = run_python('-B', *options + ('-c', before + self.program, server.url),
                             **environment)
        self.assertEqual(ran, Ran(0, self.printed, ''))

    @unittest.skipUnless(hasattr(sys, 'addaudithook'), 'Python 3.8 is the first with audit hooks')
    def test_the_synchronous_path_writes_no_file_and_starts_nothing(self):
        self.run_program("""if True:
            import os, sys
            writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
            refused = {'os.' + name for name in (
                'system fork forkpty posix_spawn exec spawn mkdir remove rename truncate').split()}
            refused |= {'_thread.start_new_thread', '_thread.start_joinable_thread'}
            modules = {'subprocess', 'shutil', 'tempfile'}
            def refuse(event, args):
                if event == 'open':
                    path, mode, flags = args
                    writes = flags & writing or set(mode or '') & set('wax+')
                    if writes and path != os.devnull:
                        os.write(2, ('writes %r' % (path,)).encode())
                elif event in refused or event.split('.')[0] in modules:
                    os.write(2, event.encode())
            sys.addaudithook(refuse)\n""")

    def test_it_works_without_ssl(self):
        blocked = "import sys\nsys.modules['_ssl'] = None\n"
        self.run_program(blocked)
        ran = run_python('-c', blocked + """if True:
            import streamlite
            try:
                streamlite.OpenAI(api_key='k', base_url='https://127.0.0.1:1/v1').models.list()
            except streamlite.OpenAIError as error:
                print(error)
        """)
        self.assertEqual(ran.err, '')
        self.assertIn('ssl', ran.out)

    def test_it_works_isolated_and_in_an_ascii_locale(self):
        path = "import sys\nsys.path.insert(0, %r)\n" % FOLDER
        self.run_program(path, '-I', '-S', LANG='C', LC_ALL='C', PYTHONIOENCODING='')


# --------------------------------------------------------------------------------------------------
# Asynchronous clients: the same, without holding up the loop
# --------------------------------------------------------------------------------------------------

class AsyncClientTest(AsyncTestCase):

    def test_everything_of_the_synchronous_stream_is_there(self):
        async def iterate(stream):
            return await gather_text(stream)

        async def iterate_in_a_block(stream):
            async with stream as same:
                self.assertIs(same, stream)
                return await gather_text(stream)

        async def text(stream):
            pieces = [piece async for piece in stream.text()]
            self.assertEqual(pieces, ['Hel', 'lo ', 'world'])
            return ''.join(pieces)

        async def collect(stream):
            completion = await stream.collect()
            self.assertEqual((stream.completion, completion.choices[0].finish_reason),
                             (completion, 'stop'))
            return text_of(completion)

        async def begin_then_collect(stream):
            async for _ in stream:
                self.assertEqual(text_of(stream.completion), 'Hel')
                break
            return text_of(await stream.collect())

        async def relay(stream):
            relayed = b''.join([part async for part in stream.sse()])
            events = [event.data for event in streamlite.SSEDecoder().feed(relayed)]
            self.assertEqual(events.pop(), '[DONE]')
            return ''.join(json.loads(event)['choices'][0]['delta'].get('content', '')
                           for event in events)

        async def main(server):
            async with async_client(server) as asker:
                for way in (iterate, iterate_in_a_block, text, collect, begin_then_collect, relay):
                    with self.subTest(way.__name__):
                        stream = await ask(asker)
                        self.assertIsInstance(stream, streamlite.AsyncStream)
                        self.assertEqual((stream.response.status_code, stream.response.request_id),
                                         (200, 'req-1'))
                        self.assertEqual(await way(stream), 'Hello world')
                        self.assertLessEqual(stream.time_to_first_token, stream.elapsed)

        with Server(stream_reply(HELLO, headers={'x-request-id': 'req-1'})) as server:
            self.run_async(main(server))
            self.assertEqual(server.connections, 1, 'connections are reused here, too')

    def test_whole_replies_and_the_list_of_models(self):
        async def main(server):
            async with async_client(server) as asker:
                self.assertText(await ask(asker, stream=False), 'Hello world')
                models = await asker.models.list()
                self.assertEqual([model.id for model in models.data], ['one', 'two'])
                self.assertEqual(await gather_text(await ask(asker.with_options(timeout=PROMPT))),
                                 'Hello world')

        with Server(reply(200, {}, WHOLE), reply(200, {}, MODELS), stream_reply(HELLO)) as server:
            self.run_async(main(server))
            self.assertEqual([request.path for request in server.requests],
                             ['/v1/chat/completions', '/v1/models', '/v1/chat/completions'])

    def test_the_key_may_be_asked_of_a_function_or_a_coroutine_at_every_attempt(self):
        keys = []

        def function():
            return keys.pop()

        async def coroutine():
            await asyncio.sleep(0)
            return keys.pop()

        async def main(server, key):
            async with async_client(server, api_key=key, max_retries=1) as asker:
                return await gather_text(await ask(asker))

        for key in (function, coroutine):
            keys[:] = KEY + '-2', KEY + '-1'
            scripts = error_reply(503, AGAIN), stream_reply(HELLO)
            with self.subTest(key.__name__), Server(*scripts) as server:
                self.assertEqual(self.run_async(main(server, key)), 'Hello world')
                self.assertEqual([request.headers['authorization'] for request in server.requests],
                                 ['Bearer %s-1' % KEY, 'Bearer %s-2' % KEY])

    def test_faults_come_out_as_in_the_synchronous_client(self):
        error_event = b'data: {"error": {"message": "the model fell over", "code": 503}}\n\n'
        faults = {
            'cut': cut(WAITING),
            'cut before the first chunk': cut(CHUNKED_HEAD),
            'reset': reset(WAITING),
            'ended without an end': stream_reply(HELLO_CUT),
            'silent': stall(WAITING),
            'silent from the start': stall(),
            'bad chunk size': begun(HELLO_CUT) + b'nonsense\r\n',
            'bad JSON': stream_reply(HELLO_CUT + b'data: {oops\n\n'),
            'HTML': stream_reply(b'<html><title>Log in</title></html>',
                                 headers={'Content-Type': 'text/html'}),
            'an error event': stream_reply(HELLO_CUT + error_event),
            'an error event alone': stream_reply(error_event),
            'wrong key': error_reply(401, message='Incorrect API key'),
            'rate limit': error_reply(429, AGAIN, message='Too fast'),
            'elsewhere': reply(302, {'Location': 'http://127.0.0.1:9/'}),
        }

        def told(error, text):
            remember(error)
            message = re.sub(r'\d+\.\d+ s', '# s', re.sub(r':\d+/', ':#/', str(error)))
            return type(error).__name__, message, text, text_of(
                error.partial), error.attempts, error.code

        def ask_in_turn(server, options, then):
            texts = []
            with self.assertRaises(streamlite.APIError) as caught:
                with client(server, **options) as asker, ask(asker) as stream:
                    for text in stream.text():
                        texts.append(text)
                        then(stream)
            return told(caught.exception, ''.join(texts))

        async def ask_at_once(server, options, then):
            texts = []
            with self.assertRaises(streamlite.APIError) as caught:
                async with async_client(server, **options) as asker, await ask(asker) as stream:
                    async for text in stream.text():
                        texts.append(text)
                        then(stream)
            return told(caught.exception, ''.join(texts))

        async def main(servers):
            return await asyncio.gather(*map(ask_at_once, servers, settings, then))

        settings = [{'timeout': SHORT} if 'from the start' in name else {} for name in faults]
        then = [hasten if name == 'silent' else str for name in faults]

        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(faults)))
            servers = [stack.enter_context(Server(script)) for script in list(faults.values()) * 2]
            expected = pool.map(ask_in_turn, servers[:len(faults)], settings, then)
            found = dict(zip(faults, self.run_async(main(servers[len(faults):]))))
            expected = dict(zip(faults, expected))
        for name in faults:
            with self.subTest(name):
                self.assertEqual(found[name], expected[name])

    def test_a_lost_connection_is_retried_up_to_the_first_chunk_and_by_collect_beyond(self):
        async def collect(stream):
            return text_of(await stream.collect())

        ways = {'refused': (error_reply(503, AGAIN), gather_text),
                'cut before the first chunk': (cut(CHUNKED_HEAD), gather_text),
                'cut in the middle, unseen': (cut(WAITING), collect)}

        async def main(server, use):
            async with async_client(server, max_retries=1) as asker:
                return await use(await ask(asker))

        async def all_ways(servers):
            return await asyncio.gather(*[main(server, use) for server,
                                          (_, use) in zip(servers, ways.values())])

        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(Server(script, stream_reply(HELLO))) for script,
                       _ in ways.values()]
            with no_waits():
                texts = self.run_async(all_ways(servers))
            for name, text, server in zip(ways, texts, servers):
                self.assertEqual((text, len(server.requests)), ('Hello world', 2), name)
        with Server(cut(WAITING), stream_reply(HELLO)) as server:
            with self.assertRaises(streamlite.APIConnectionError) as caught:
                self.run_async(main(server, gather_text))
            self.assertEqual((text_of(caught.exception.partial), len(server.requests)),
                             ('Hello ', 1))

    def test_the_deadline_holds_for_the_whole_call(self):
        async def main(server):
            async with async_client(server, deadline=SHORT) as asker:
                with self.assertRaises(streamlite.APIError):
                    await gather_text(await ask(asker))

        async def in_each_phase(*servers):
            await asyncio.gather(*map(main, servers))

        late = error_reply(503, {'retry-after': '60'})
        with Server(stall()) as head, Server(stall(WAITING)) as body, Server(late) as pause:
            with self.assertPrompt():
                self.run_async(in_each_phase(head, body, pause))

    async def _turns(self, reading, note):
        """What a coroutine returns, and what was noted at each turn of the loop meanwhile."""
        turns = []

        async def other():
            while True:
                turns.append(note())
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        result = await reading
        task.cancel()
        return result, turns

    def test_a_server_faster_than_its_reader_leaves_the_loop_to_others(self):
        async def main(server):
            async with async_client(server) as asker:
                return await gather_text(await ask(asker))

        body = sse(*[delta('x' * 50)] * 5000 + [STOP])
        with Server(stream_reply(body)) as server:
            text, turns = self.run_async(self._turns(main(server), bool))
        self.assertEqual(len(text), 250000)
        self.assertGreater(len(turns), 10)

    def test_a_body_that_comes_to_nothing_leaves_the_loop_to_others(self):
        nothing = b'\x00\x00\x00\xff\xff' * 4000  # blocks of deflate that hold no byte

        def script(peer):
            peer.send(head(200, GZIP) + zlib.compressobj(9, zlib.DEFLATED, 31).flush()[:10])
            with contextlib.suppress(OSError):
                while True:
                    peer.send(nothing)

        async def main(server):
            async with async_client(server, deadline=LONG) as asker:
                reading = asyncio.ensure_future(gather_text(await ask(asker)))
                for _ in range(10):
                    await asyncio.sleep(0.001)
                    self.assertFalse(reading.done())
                reading.cancel()
                await asyncio.wait([reading])

        with Server(script) as server, self.assertPrompt():
            self.run_async(main(server))

    def test_where_the_loop_cannot_watch_sockets_threads_read(self):
        async def stream(server):
            async with async_client(server) as asker:
                return await gather_text(await ask(asker))

        async def main(quiet, server, gone):
            waiting = [asyncio.ensure_future(stream(quiet)) for _ in range(12)]
            await self.until(lambda: len(quiet.requests) == 12)
            self.assertEqual(await asyncio.wait_for(stream(server), PROMPT), 'Hello world')
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await self.until(gone.is_set)

        script, gone = watched()
        with mock.patch.object(asyncio.SelectorEventLoop, 'add_reader',
                               side_effect=NotImplementedError):
            with Server(script) as quiet, Server(stream_reply(HELLO)) as server:
                self.run_async(main(quiet, server, gone))

    def test_64_streams_run_beside_a_default_executor_that_is_full(self):
        release = threading.Event()

        async def main(server):
            loop = asyncio.get_event_loop()
            jobs = [loop.run_in_executor(None, release.wait, LONG) for _ in range(64)]
            async with async_client(server) as asker:
                async def stream():
                    return await gather_text(await ask(asker))
                texts = await asyncio.gather(*[stream() for _ in range(64)])
                self.assertFalse(any(job.done() for job in jobs))
            release.set()
            await asyncio.gather(*jobs)
            if hasattr(loop, 'shutdown_default_executor'):
                await loop.shutdown_default_executor()
            else:
                loop._default_executor.shutdown()
            return texts

        with Server(stream_reply(HELLO)) as server:
            self.assertEqual(self.run_async(main(server)), ['Hello world'] * 64)

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_connections_that_hang_do_not_hold_up_other_streams(self):
        class Mute(Peer):
            def read_request(self):
                self.wait_closed()  # says nothing to the TLS handshake

        async def stream(server):
            async with async_client(server) as asker:
                return await gather_text(await ask(asker))

        async def main(mute, server):
            async with async_client(mute, base_url='https://127.0.0.1:%d/v1' % mute.port) as lost:
                hanging = [asyncio.ensure_future(ask(lost)) for _ in range(20)]
                await self.until(lambda: mute.connections >= 8)
                try:
                    return await asyncio.wait_for(stream(server), PROMPT)
                finally:
                    for task in hanging:
                        task.cancel()
                    await asyncio.gather(*hanging, return_exceptions=True)

        with Server(peer=Mute) as mute, Server(stream_reply(HELLO)) as server:
            self.assertEqual(self.run_async(main(mute, server)), 'Hello world')

    def test_a_thread_that_cannot_be_started_is_a_connection_error(self):
        async def main(server):
            async with async_client(server) as asker:
                with mock.patch.object(threading.Thread, 'start',
                                       side_effect=RuntimeError('no more threads')):
                    with self.assertRaises(streamlite.APIConnectionError) as caught:
                        await ask(asker)
                self.assertSays(caught.exception, 'no more threads')
                return await gather_text(await ask(asker))

        with Server(stream_reply(HELLO)) as server:
            self.assertEqual(self.run_async(main(server)), 'Hello world')

    def test_a_thread_that_cannot_be_started_fails_its_own_stream_only(self):
        start, started = threading.Thread.start, []

        def scarce(thread):
            if thread.name == 'streamlite':
                started.append(thread)
                if len(started) in (2, 7, 10):  # the last one is started by a worker that ends
                    raise RuntimeError('no more threads')
            start(thread)

        async def main(server):
            async with async_client(server, deadline=LONG) as asker:
                async def stream():
                    return await gather_text(await ask(asker))
                return await asyncio.gather(*[stream() for _ in range(16)], return_exceptions=True)

        few_threads = mock.patch.object(threading.Thread, 'start', scarce)
        with Server(stream_reply(HELLO)) as server, few_threads:
            results = self.run_async(main(server))
        self.assertEqual([type(result) for result in results if result != 'Hello world'],
                         [streamlite.APIConnectionError] * 3)

    def test_a_key_that_never_comes_obeys_the_deadline(self):
        async def key():
            await asyncio.get_event_loop().create_future()

        async def main(server):
            async with async_client(server, api_key=key, deadline=SHORT) as asker:
                with self.assertRaises(streamlite.APITimeoutError):
                    await ask(asker)

        with Server() as server, self.assertPrompt():
            self.run_async(main(server))

    def test_no_time_is_too_long(self):
        async def main(server, options):
            async with async_client(server, **options) as asker:
                return await gather_text(await ask(asker))

        for options in {'timeout': 1e12, 'deadline': 1e15}, {'timeout': None}:
            rest = chunked(sse(delta('world'), STOP))
            with self.subTest(options), Server(
                    lambda peer: (peer.send(WAITING), peer.wait_closed(0.05),
                                  peer.send(rest))) as server:
                self.assertEqual(self.run_async(main(server, options)), 'Hello world')

    def test_two_tasks_that_read_one_stream_are_told(self):
        more = threading.Event()

        async def read_text(stream):
            async for _ in stream.text():
                pass

        async def main(server):
            async with async_client(server) as asker, await ask(asker) as stream:
                first = asyncio.ensure_future(gather_text(stream))
                await self.until(lambda: text_of(stream.completion) == 'Hello ')
                for second in stream.__anext__, lambda: read_text(stream), stream.collect:
                    with self.assertRaises(RuntimeError) as caught:
                        await second()
                    self.assertSays(caught.exception, 'another task')
                more.set()
                return await first

        rest = chunked(sse(delta('world'), STOP))
        with Server(lambda peer: (peer.send(WAITING), more.wait(LONG), peer.send(rest))) as server:
            self.assertEqual(self.run_async(main(server)), 'Hello world')

    def test_nothing_is_asked_again_once_text_was_handed_out(self):
        async def main(server):
            async with async_client(server, max_retries=2) as asker:
                texts = []
                with self.assertRaises(streamlite.APIConnectionError):
                    async for text in (await ask(asker)).text():
                        texts.append(text)
                return texts

        with Server(stream_reply(HELLO_CUT), stream_reply(HELLO)) as server, no_waits():
            self.assertEqual(''.join(self.run_async(main(server))), 'Hello ')
            self.assertEqual(len(server.requests), 1)

    @needs_fork
    def test_a_process_forked_while_openings_are_busy_opens_streams(self):
        async def stream(server, *handlers):
            async with async_client(server, handlers=handlers) as asker:
                return await gather_text(await ask(asker))

        async def opened(server):
            streams = [asyncio.ensure_future(stream(server, blocking)) for _ in range(3)]
            await self.until(lambda: len(blocking.busy) == 2)
            return streams

        blocking = Blocking()
        with Server(stream_reply(HELLO)) as server:
            loop = asyncio.new_event_loop()
            opening = loop.run_until_complete(opened(server))
            with forked() as child:
                if not child:
                    text = asyncio_run(asyncio.wait_for(stream(server), PROMPT))
                    os._exit(0 if text == 'Hello world' else 1)
            code = os.waitpid(child, 0)[1]
            blocking.release.set()
            texts = loop.run_until_complete(asyncio.gather(*opening))
            loop.close()
            self.assertEqual((code, texts), (0, ['Hello world'] * 3))

    def test_a_client_outlives_its_event_loop(self):
        with Server(stream_reply(HELLO)) as server:
            asker = async_client(server)

            async def main():
                return await gather_text(await ask(asker))

            self.assertEqual([self.run_async(main()), self.run_async(main())], ['Hello world'] * 2)
            self.run_async(asker.close())
            self.assertEqual(server.connections, 1)

    def test_none_never_sends_a_key_where_it_was_not_meant_to_go(self):
        async def main(asker, **changes):
            async with asker.with_options(**changes) as changed:
                return await gather_text(await ask(changed))

        with Server() as server, Server() as other:
            os.environ.update(OPENAI_API_KEY='environment-' + KEY, OPENAI_BASE_URL=other.url)
            for changes in {'api_key': None}, {'base_url': None}:
                with self.subTest(changes):
                    text = self.run_async(main(async_client(server), **changes))
                    self.assertEqual(text, 'Hello world')
                    sent = server.requests[-1].headers['authorization']
                    self.assertEqual((sent, other.requests), ('Bearer ' + KEY, []))

    def test_models_are_iterated_in_every_way_and_a_client_tells_whether_it_is_closed(self):
        page, one = reply(200, {}, MODELS), reply(200, {}, MODELS['data'][0])

        async def main(server):
            async with async_client(server, http_client=None) as asker:
                self.assertEqual([model.id async for model in asker.models.list()], ['one', 'two'])
                awaited = await asker.models.list()
                self.assertEqual([model.id for model in awaited.data], ['one', 'two'])
                self.assertEqual([model.id async for model in awaited], ['one', 'two'])
                self.assertEqual((await asker.models.retrieve('one')).id, 'one')
                self.assertIs(asker.is_closed(), False)
            self.assertIs(asker.is_closed(), True)

        with Server(page, page, one) as server:
            self.run_async(main(server))
            self.assertEqual([request.path for request in server.requests],
                             ['/v1/models'] * 2 + ['/v1/models/one'])

    large = chat('x' * (16 << 20))

    async def end(self, tasks):
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def test_slow_uploads_hold_up_no_other_call(self):
        async def main(deaf, server):
            async with async_client(deaf) as loser, async_client(server) as asker:
                uploads = [asyncio.ensure_future(ask(loser, messages=self.large)) for _ in range(4)]
                try:
                    await self.until(lambda: deaf.connections >= 2)
                    stream = await asyncio.wait_for(ask(asker), PROMPT)
                    return await gather_text(stream)
                finally:
                    await self.end(uploads)

        with deaf_server() as deaf, Server() as server:
            self.assertEqual(self.run_async(main(deaf, server)), 'Hello world')

    def test_a_deadline_holds_while_a_call_waits_for_its_turn(self):
        async def main(server, handler):
            async with async_client(server, handlers=[handler]) as slow:
                async with async_client(server, deadline=SHORT) as asker:
                    others = [asyncio.ensure_future(ask(slow)) for _ in range(40)]
                    try:
                        await self.until(lambda: len(handler.busy) == 2)
                        with self.assertRaises(streamlite.APITimeoutError):
                            await asyncio.wait_for(ask(asker), PROMPT)
                    finally:
                        await self.end(others)
                        handler.release.set()

        with Server() as server:
            self.run_async(main(server, Blocking()))

    def test_callers_that_wait_for_a_thread_that_cannot_be_started_are_told(self):
        start, blocking = threading.Thread.start, Blocking()

        def scarce(thread):
            if blocking.release.is_set() and thread.name == 'streamlite':
                raise RuntimeError('no more threads')
            start(thread)

        async def main(server):
            async with async_client(server, handlers=[blocking]) as slow:
                async with async_client(server) as asker:
                    first = [asyncio.ensure_future(ask(slow)) for _ in range(2)]
                    await self.until(lambda: len(blocking.busy) == 2)
                    calls = [asyncio.ensure_future(ask(asker)) for _ in range(300)]
                    await asyncio.sleep(0)
                    blocking.release.set()
                    done, waiting = await asyncio.wait(calls + first, timeout=PROMPT)
                    await self.end(waiting)
                    self.assertEqual(len(waiting), 0)
                    for task in done:
                        if task.exception() is None:
                            await task.result().close()
                        else:
                            self.assertIsInstance(task.exception(), streamlite.APIConnectionError)

        self.addCleanup(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(500)  # what is done for one must not be nested in another's
        with Server() as server, mock.patch.object(threading.Thread, 'start', scarce):
            self.run_async(main(server))

    def test_a_small_compressed_reply_neither_stops_the_loop_nor_outlives_the_deadline(self):
        many = b'{},' * ((4 << 20) // 3)
        bombs = {
            'choices': b'data: {"choices":[' + many + b'{}]}\n\n',
            'objects in an event': b'data: ' + b'{"choices":[]}' * (2 << 16) + b'\n\n',
        }

        async def main(server):
            gaps, over = [0.0], []
            asyncio.get_event_loop().set_debug(False)  # which costs Python 3.6 most of the time

            async def beat():
                last = time.process_time()  # which no other process can make longer
                while not over:
                    await asyncio.sleep(0.01)
                    gaps.append(time.process_time() - last)
                    last = time.process_time()

            beating = asyncio.ensure_future(beat())
            start = time.monotonic()
            async with async_client(server, deadline=1) as asker:
                try:
                    await gather_text(await ask(asker))
                except streamlite.APIError as error:
                    remember(error)
                seconds = time.monotonic() - start
            over.append(True)
            await beating
            return max(gaps), seconds

        for name, bomb in bombs.items():
            with self.subTest(name), Server(packed_reply(bomb)) as server:
                gap, seconds = self.run_async(main(server))
                self.assertLess(gap, 3)  # seconds of this process's own time
                self.assertLess(seconds, PROMPT)

    def test_an_error_of_a_handler_is_not_called_a_lack_of_threads(self):
        class Broken(urllib.request.BaseHandler):
            def http_request(self, request):
                raise RuntimeError('mine')

        def key():
            raise RuntimeError('mine')

        async def main(server, options):
            async with async_client(server, **options) as asker:
                with self.assertRaises((RuntimeError, streamlite.OpenAIError)) as caught:
                    await ask(asker)
                return caught.exception

        for options in {'handlers': [Broken()]}, {'api_key': key}:
            with self.subTest(list(options)), Server() as server:
                error = self.run_async(main(server, options))
                self.assertIn('mine', str(error))
                self.assertNotIn('thread', str(error))

    def test_a_time_out_of_the_caller_s_own_is_not_called_the_deadline(self):
        own = asyncio.TimeoutError('mine')

        async def key():
            raise own

        async def main(server, options):
            async with async_client(server, api_key=key, **options) as asker:
                with self.assertRaises((asyncio.TimeoutError, streamlite.OpenAIError)) as caught:
                    await ask(asker)
                return caught.exception

        for options in {}, {'deadline': 60}:
            with self.subTest(options), Server() as server:
                error = self.run_async(main(server, options))
                self.assertNotIn('deadline', str(error))
                self.assertTrue(error is own or error.__cause__ is own, repr(error))

    def test_an_event_of_many_chunks_leaves_the_loop_to_others(self):
        chunks = []

        async def main(server):
            async with async_client(server) as asker, await ask(asker) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    if len(chunks) == 2000:
                        break

        with Server(BURST) as server, mock.patch.object(streamlite, 'MAX_TURN', 100):
            _, turns = self.run_async(self._turns(main(server), lambda: len(chunks)))
        # Turns between the first chunk and the last, where nothing is read.
        taken = {turn for turn in turns if 0 < turn < 2000}
        self.assertTrue(15 <= len(taken) < 100, len(taken))  # after each chunk would be slow

    def test_a_deadline_ends_an_event_of_many_chunks(self):
        async def main(server):
            async with async_client(server, deadline=LONG) as asker, await ask(asker) as stream:
                await stream.__anext__()
                stream._call.deadline = stream._call.started  # It has passed.
                with self.assertRaises(streamlite.APITimeoutError):
                    for count in range(2000):
                        await stream.__anext__()
                self.assertLess(count, 300)

        with Server(BURST) as server:
            self.run_async(main(server))

    def test_a_wait_that_is_over_leaves_no_timer(self):
        async def main(server):
            async with async_client(server, timeout=4 * LONG) as asker:
                await gather_text(await ask(asker))
                await asker.models.list()
            # What would run later than all that this test waits for.
            return [timer for timer in gc.get_objects() if isinstance(timer, asyncio.TimerHandle)
                    and 'streamlite' in repr(timer) and not timer._cancelled]

        halves = [chunked(half, last=False) for half in (HELLO[:20], HELLO[20:])]

        def script(peer):
            if 'models' in peer.request.path:
                return peer.send(reply(200, {}, MODELS))
            peer.send(CHUNKED_HEAD + halves[0])
            time.sleep(0.05)
            peer.send(halves[1] + b'0\r\n\r\n')

        with Server(script) as server:
            self.assertEqual(self.run_async(main(server)), [])

    def test_a_list_of_models_that_is_lost_is_asked_for_again(self):
        async def main(server):
            async with async_client(server, max_retries=1) as asker:
                return [model.id async for model in asker.models.list()]

        lost = cut(head(200, {'Content-Length': 1000}) + b'{"data": ')
        with Server(lost, reply(200, {}, MODELS)) as server, no_waits():
            self.assertEqual(self.run_async(main(server)), ['one', 'two'])
        with Server(lost) as server, no_waits():
            with self.assertRaises(streamlite.APIConnectionError):
                self.run_async(main(server))
            self.assertEqual(len(server.requests), 2)

    def test_a_key_that_does_not_come_ends_with_the_deadline_and_nothing_is_sent(self):
        async def key():
            await asyncio.sleep(2 * LONG)

        async def main(server):
            async with async_client(server, api_key=key, deadline=SHORT) as asker:
                with self.assertRaises(streamlite.APITimeoutError) as caught:
                    await ask(asker)
            self.assertSays(caught.exception, 'while the API key was asked for')

        with Server() as server, self.assertPrompt():
            self.run_async(main(server))
            self.assertEqual(server.connections, 0)

    def test_every_field_of_the_request_is_sent_as_by_the_synchronous_client(self):
        fields = {'temperature': 0.5, 'top_p': 0.9, 'max_tokens': 7, 'n': 2, 'stop': ['x'],
                  'tools': [WEATHER], 'tool_choice': 'auto', 'seed': 3,
                  'response_format': {'type': 'json_object'},
                  'stream_options': {'include_usage': True}, 'extra_body': {'vendor': 1},
                  'extra_headers': {'X-Mine': '1'}, 'extra_query': {'v': '2'}}

        async def main(server):
            async with async_client(server) as asker, await ask(asker, **fields):
                pass

        with served(stream_reply(HELLO)) as (server, asker):
            ask(asker, **fields).close()
            self.run_async(main(server))
            one, other = server.requests
            self.assertEqual(one.json, other.json)
            self.assertEqual(one.json['temperature'], 0.5)
            self.assertEqual(set(fields) - set(one.json),
                             {'extra_body', 'extra_headers', 'extra_query'})
            self.assertEqual((one.path, other.path), (PATH + '?v=2',) * 2)
            self.assertEqual(other.headers['x-mine'], '1')


class AsyncAzureTest(AzureTestCase):

    def test_tokens_come_from_functions_of_both_kinds(self):
        async def main(server, provider):
            async with self.azure(server, streamlite.AsyncAzureOpenAI, max_retries=1,
                                  azure_ad_token_provider=provider) as asker:
                self.assertIsInstance(asker, streamlite.AsyncOpenAI)
                self.assertEqual(await gather_text(await ask(asker)), 'Hello world')
                self.assertEqual(text_of(await ask(asker, stream=False)), 'Hello world')

        def later(tokens):
            async def token():
                await asyncio.sleep(0)
                return tokens()

            return token

        answers = error_reply(500, AGAIN), stream_reply(HELLO), reply(200, {}, WHOLE)
        for name, provider in (('a function', self.tokens()),
                               ('a coroutine function', later(self.tokens()))):
            with self.subTest(name), Server(*answers) as server:
                self.run_async(main(server, provider))
                self.assertEqual([(request.path, request.headers['authorization'])
                                  for request in server.requests],
                                 [(self.PATH, 'Bearer token-%s-%d' % (MARK, number))
                                  for number in (1, 2, 3)])

    def test_a_key_may_come_from_a_coroutine(self):
        async def key():
            return KEY

        async def main(server):
            async with self.azure(server, streamlite.AsyncAzureOpenAI, api_key=key) as asker:
                for one in asker, asker.with_options(timeout=PROMPT):
                    self.assertEqual(await gather_text(await ask(one)), 'Hello world')

        with Server() as server:
            self.run_async(main(server))
            for request in server.requests:
                self.assertEqual((request.path, self.credentials(request)),
                                 (self.PATH, {'api-key': KEY}))

    def test_a_provider_that_has_no_token_sends_nothing(self):
        async def nothing():
            return ''

        async def main(server):
            async with self.azure(server, streamlite.AsyncAzureOpenAI,
                                  azure_ad_token_provider=nothing) as asker:
                with self.assertRaises((streamlite.OpenAIError, ValueError)) as caught:
                    await ask(asker)
                self.assertSays(caught.exception, 'function')

        with Server() as server:
            self.run_async(main(server))
            self.assertEqual(server.requests, [])


class AsyncEndTest(AsyncTestCase):
    """A stream that is given up ends its connection, so that the server stops generating."""

    def test_cancelling_the_task_ends_the_connection(self):
        async def create(asker, ready):
            ready.set_result(None)
            await ask(asker)

        async def read(asker, ready):
            async for _ in await ask(asker):
                if not ready.done():
                    ready.set_result(None)

        async def collect(asker, ready):
            stream = await ask(asker)
            ready.set_result(None)
            await stream.collect()

        async def loop_body(asker, ready):
            async for _ in await ask(asker):
                ready.set_result(None)
                await asyncio.sleep(60)

        async def loop_body_in_a_block(asker, ready):
            async with await ask(asker) as stream:
                async for _ in stream.text():
                    ready.set_result(None)
                    await asyncio.sleep(60)

        async def relay(asker, ready):
            async for _ in (await ask(asker)).sse():
                if not ready.done():
                    ready.set_result(None)

        async def main(server, way, gone):
            async with async_client(server) as asker:
                ready = asyncio.get_event_loop().create_future()
                task = asyncio.ensure_future(way(asker, ready))
                await ready
                await self.until(lambda: server.requests)
                self.assertFalse(gone.is_set())
                task.cancel()
                await self.until(gone.is_set)
                with self.assertRaises(asyncio.CancelledError):
                    await task

        for way, data in ((create, b''), (read, WAITING), (collect, WAITING), (loop_body, WAITING),
                          (loop_body_in_a_block, WAITING), (relay, WAITING)):
            script, gone = watched(data)
            with self.subTest(way.__name__), Server(script) as server:
                self.run_async(main(server, way, gone))

    def test_a_timeout_of_asyncio_ends_the_connection(self):
        async def main(server, gone):
            async with async_client(server) as asker:
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(gather_text(await ask(asker)), 0.05)
                await self.until(gone.is_set)

        script, gone = watched()
        with Server(script) as server:
            self.run_async(main(server, gone))

    def test_a_cancellation_that_the_task_survives_ends_the_connection(self):
        async def main(server, gone):
            async def survive(stream):
                with contextlib.suppress(asyncio.CancelledError):
                    await gather_text(stream)
                await self.until(gone.is_set)
                with self.assertRaises(streamlite.APIConnectionError):
                    await gather_text(stream)

            async with async_client(server) as asker:
                stream = await ask(asker)
                task = asyncio.ensure_future(survive(stream))
                await self.until(lambda: text_of(stream.completion) == 'Hello ')
                task.cancel()
                await task

        script, gone = watched()
        with Server(script) as server:
            self.run_async(main(server, gone))

    def test_no_text_is_lost_wherever_a_cancellation_hits(self):
        async def persist(stream, texts):
            while True:
                try:
                    async for text in stream.text():
                        texts.append(text)
                    return
                except asyncio.CancelledError:
                    pass  # as a task does that goes on after asyncio.timeout

        async def main(server, turns):
            async with async_client(server) as asker:
                texts = []
                task = asyncio.ensure_future(persist(await ask(asker), texts))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if not turns:
                    await self.until(lambda: ''.join(texts) == 'Hello ')
                task.cancel()
                more.set()
                with self.assertRaises(streamlite.APIConnectionError):
                    await task
                return ''.join(texts)

        rest = chunked(sse(delta('world'), STOP))
        seen = set()
        for turns in range(8):
            more = threading.Event()
            script = lambda peer, more=more: (peer.send(WAITING), more.wait(LONG), peer.send(rest))
            with self.subTest(turns), Server(script) as server:
                seen.add(self.run_async(main(server, turns)))
        self.assertIn('Hello ', seen)
        self.assertLessEqual(seen, {'', 'Hello '})

    def test_no_callback_stays_on_the_task(self):
        async def main(server):
            current = getattr(asyncio, 'current_task', None) or asyncio.Task.current_task
            before = len(current()._callbacks or ())
            async with async_client(server) as asker:
                finished = await ask(asker)
                await finished.collect()
                async for _ in await ask(asker):
                    break
                gc.collect()
                async with await ask(asker) as stream:
                    await stream.__anext__()
                    self.assertLessEqual(len(current()._callbacks), before + 1)
            self.assertEqual(len(current()._callbacks or ()), before)

        with Server(stream_reply(HELLO)) as server:
            self.run_async(main(server))

    def test_leaving_the_block_and_close_end_the_connection(self):
        async def leave(stream):
            async with stream:
                await stream.__anext__()

        async def close(stream):
            await stream.__anext__()
            await stream.close()
            await stream.close()

        async def main(server, way, gone):
            async with async_client(server) as asker:
                stream = await ask(asker)
                await way(stream)
                await self.until(gone.is_set)
                self.assertEqual(text_of(stream.completion), 'Hel')

        for way in (leave, close):
            script, gone = watched()
            with self.subTest(way.__name__), Server(script) as server:
                self.run_async(main(server, way, gone))

    def test_close_ends_a_wait_in_another_task(self):
        async def main(server, gone):
            async with async_client(server) as asker:
                stream = await ask(asker)
                reading = asyncio.ensure_future(gather_text(stream))
                await self.until(lambda: text_of(stream.completion) == 'Hello ')
                await stream.close()
                with self.assertRaises(streamlite.APIConnectionError):
                    await asyncio.wait_for(reading, PROMPT)
                await self.until(gone.is_set)

        script, gone = watched()
        with Server(script) as server:
            self.run_async(main(server, gone))

    def test_an_abandoned_stream_leaves_nothing(self):
        async def main(server, way, gone):
            async with async_client(server) as asker:
                await way(asker)
                gc.collect()
                await self.until(gone.is_set)

        async def never_iterated(asker):
            await ask(asker)

        async def begun(asker):
            stream = await ask(asker)
            await stream.__anext__()

        async def broken_off(asker):
            async for _ in await ask(asker):
                break

        async def text_broken_off(asker):
            async for _ in (await ask(asker)).text():
                break

        for way in (never_iterated, begun, broken_off, text_broken_off):
            script, gone = watched()
            with self.subTest(way.__name__), Server(script) as server:
                self.run_async(main(server, way, gone))

    def test_a_loop_that_is_closed_under_a_stream_ends_it_silently(self):
        script, gone = watched()
        with Server(script) as server:
            loop = asyncio.new_event_loop()
            stream = loop.run_until_complete(ask(async_client(server)))
            loop.run_until_complete(stream.__anext__())
            loop.close()
            del stream
            self.wait_until(lambda: gc.collect() >= 0 and gone.is_set())
        self.assertEqual(self.complaints, [])
        # So it ends one that waits: asyncio complains of the task, but nothing of ours.
        async def read():
            async for text in (await ask(async_client(server))).text():
                texts.append(text)

        (script, gone), texts = watched(), []
        with Server(script) as server, contextlib.redirect_stderr(io.StringIO()) as said:
            loop = asyncio.new_event_loop()
            reading = asyncio.ensure_future(read(), loop=loop)
            loop.run_until_complete(self.until(lambda: len(texts) == 2))
            loop.close()
            del reading
            # The thread that opened it may hold it a moment longer, and it is part of a cycle.
            self.wait_until(lambda: gc.collect() >= 0 and gone.is_set())
        self.assertEqual(said.getvalue(), '')

    def test_a_slow_reader_slows_the_server_down(self):
        sent = []

        def script(peer):
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            peer.send(CHUNKED_HEAD)
            piece = chunked(sse(*[delta('x' * 1000)] * 60, done=False), last=False)
            for _ in range(500):
                peer.send(piece)
                sent.append(len(piece))

        async def main(server):
            async with async_client(server) as asker, await ask(asker) as stream:
                await stream.__anext__()
                before = -1
                while before != len(sent):  # until the server is stuck
                    before = len(sent)
                    await asyncio.sleep(0.05)

        with Server(script) as server:
            self.run_async(main(server))
        self.assertLess(sum(sent), 16e6, 'of %d that it would send' % 37e6)

    def check_close(self, close, *scripts):
        async def main(server):
            async with async_client(server, max_retries=3) as asker:
                stream = await ask(asker)
                reading = asyncio.ensure_future(gather_text(stream))
                await self.until(lambda: len(server.requests) == len(scripts))
                await asyncio.sleep(0.05)  # by now it waits
                thread = threading.Thread(target=close, args=[stream])
                thread.start()
                with self.assertRaises(streamlite.APIConnectionError):
                    await asyncio.wait_for(reading, PROMPT)
                await self.until(lambda: not thread.is_alive())

        with no_waits(), Server(*scripts) as server:
            self.run_async(main(server))

    def test_close_in_another_loop_wakes_the_reader(self):
        def in_another_loop(stream):
            asyncio_run(stream.close())

        refused = error_reply(503, {'Retry-After': '60'})
        with self.subTest(waits='for an event'):
            self.check_close(in_another_loop, stall(WAITING))
        with self.subTest(waits='between attempts'):
            self.check_close(in_another_loop, cut(CHUNKED_HEAD), refused)
        with self.subTest(waits='for an event, where the loop cannot watch sockets'):
            unable = NotImplementedError
            with mock.patch.object(asyncio.SelectorEventLoop, 'add_reader', side_effect=unable):
                self.check_close(in_another_loop, stall(WAITING))

    def test_random_cancellations_leave_nothing_and_spoil_no_other_call(self):
        chance = random.Random(11)

        async def one(asker):
            return await gather_text(await ask(asker))

        async def main(server):
            async with async_client(server) as asker:
                for _ in range(8):
                    tasks = [asyncio.ensure_future(one(asker)) for _ in range(12)]
                    for task in tasks:
                        await asyncio.sleep(chance.random() * 0.003)
                        if chance.random() < 0.8:
                            task.cancel()
                    for result in await asyncio.gather(*tasks, return_exceptions=True):
                        if not isinstance(result, asyncio.CancelledError):
                            self.assertEqual(result, 'Hello world')
                return await one(asker)

        with Server() as server:
            self.assertEqual(self.run_async(main(server)), 'Hello world')

    def test_streams_and_clients_lost_in_a_cycle_leave_no_warning(self):
        async def main(server):
            asker = async_client(server)
            stream = await ask(asker)
            await stream.__anext__()
            cycle = {'stream': stream, 'client': asker}
            cycle['itself'] = cycle
            del stream, asker, cycle
            gc.collect()  # a warning of an unclosed socket would fail this test

        for script in stream_reply(HELLO), stall(WAITING):
            with Server(script) as server:
                self.run_async(main(server))

    def test_close_at_any_moment_wakes_who_is_about_to_wait(self):
        def in_cut(frame):
            return in_module(frame) and frame.f_code.co_name == '_cut'

        async def main(number):
            """Whether close() has such a line; the thread that closes is held up there."""
            at_line, go_on, lines = threading.Event(), threading.Event(), []

            def close():
                with signalled(number, lambda: (at_line.set(), go_on.wait(LONG)), in_cut) as count:
                    asyncio_run(stream.close())
                lines.extend(count)
                at_line.set()

            scripts = cut(CHUNKED_HEAD), error_reply(503, {'Retry-After': '60'})
            with Server(*scripts) as server:
                async with async_client(server, max_retries=3) as asker:
                    stream = await ask(asker)
                    thread = threading.Thread(target=close)
                    thread.start()
                    try:
                        await self.until(at_line.is_set)
                        reading = asyncio.ensure_future(gather_text(stream))
                        await self.until(lambda: reading.done() or (
                            len(server.requests) == 2 and stream._waiter is not None))
                    finally:
                        go_on.set()
                    with self.assertRaises(streamlite.OpenAIError):
                        await asyncio.wait_for(reading, PROMPT)
                    await self.until(lambda: not thread.is_alive())
            return lines[0] >= number

        with no_waits():
            for number in itertools.count(1, 2):
                with self.subTest(number):
                    has_line = self.run_async(main(number))
                if not has_line:
                    break
        self.assertGreater(number, 8)

    def test_nothing_is_watched_while_nobody_waits(self):
        gate = threading.Event()

        def script(peer):
            peer.send(begun(HEL))
            gate.wait(LONG)
            peer.send(chunked(LO + WORLD + FINISH + DONE))

        async def main(server):
            if 'Proactor' in type(asyncio.get_event_loop()).__name__:
                raise unittest.SkipTest("Windows' proactor loop watches no sockets")
            async with async_client(server) as asker:
                stream = await ask(asker)
                await stream.__anext__()
                descriptor = stream._attempt.reply.connection.sock.fileno()
                waiting = asyncio.ensure_future(stream.__anext__())
                await self.until(lambda: stream._waiter is not None)
                gate.set()
                await waiting
                try:
                    watched = asyncio.get_event_loop().remove_reader(descriptor)
                except NotImplementedError:  # Windows' proactor loop
                    watched = False
                self.assertFalse(watched)
                self.assertText(await stream.collect(), 'Hello world')

        with Server(script) as server:
            self.run_async(main(server))

    def test_a_thread_does_not_wait_for_the_network_once_its_loop_is_closed(self):
        async def network():
            return streamlite._QueuedNetworkWait()

        before = streamlite._openers._at_work
        loop = asyncio.new_event_loop()
        network = loop.run_until_complete(network())
        with network:
            self.assertEqual(streamlite._openers._at_work, before - 1)
        loop.close()
        with self.assertRaises(OSError):
            network.__enter__()
        self.assertEqual(streamlite._openers._at_work, before)

    def test_an_interrupt_that_hinders_even_its_own_handling_leaves_no_hole(self):
        async def main(server):
            async with async_client(server) as asker:
                stream = await ask(asker)
                self.assertEqual((await stream.__anext__()).choices[0].delta.content, 'Hel')
                reading = stream.__anext__()
                reading.send(None)  # It waits now.
                with mock.patch.object(stream, '_interrupt', side_effect=Interrupt):
                    self.assertRaises(Interrupt, reading.throw, Interrupt)
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    await stream.__anext__()
                self.assertSays(caught.exception, 'interrupted')

        with Server(stall(begun(HEL))) as server:
            self.run_async(main(server))

    def test_the_same_where_a_chunk_was_taken_and_not_kept(self):
        async def main(server, place, read):
            async with async_client(server) as asker:
                stream = await ask(asker)
                with mock.patch.object(stream, '_interrupt', side_effect=Interrupt):
                    with mock.patch.object(*place, side_effect=Interrupt):
                        with self.assertRaises(Interrupt):
                            await read(stream)
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    await stream.__anext__()
                self.assertSays(caught.exception, 'interrupted')

        with Server() as server:
            for place, read in (
                    ((streamlite.Accumulator, 'add'), streamlite.AsyncStream.__anext__),
                    ((streamlite, '_chunk_text'), streamlite.AsyncStream._next_text)):
                with self.subTest(place[1]):
                    self.run_async(main(server, place, read))

    def test_an_interrupt_between_a_chunk_and_its_text_ends_the_connection_at_once(self):
        async def main(server):
            async with async_client(server) as asker:
                stream = await ask(asker)
                with mock.patch.object(streamlite, '_chunk_text', side_effect=Interrupt):
                    with self.assertRaises(Interrupt):
                        await stream._next_text()
                self.assertIsNone(stream._attempt)

        with Server() as server:
            self.run_async(main(server))

    def test_a_lock_that_an_interrupt_left_locked_is_not_called_another_task(self):
        async def main(server):
            async with async_client(server) as asker:
                stream = await ask(asker)
                stream._interrupt()
                stream._reading.acquire()
                for use in stream.__anext__, stream.collect, stream._next_text:
                    with self.assertRaises(streamlite.APIConnectionError) as caught:
                        await use()
                    self.assertSays(caught.exception, 'interrupted')

        with Server() as server:
            self.run_async(main(server))

    def test_who_was_cancelled_does_not_begin_to_wait(self):
        async def main(server):
            async with async_client(server) as asker, await ask(asker) as stream:
                stream._call.cancel()
                await stream._wait(LONG)

        with Server(stall(WAITING)) as server, self.assertPrompt():
            self.run_async(main(server))

    def test_a_second_interrupt_behind_the_first_never_leaves_a_hole(self):
        def step(coroutine):
            """Run a coroutine that waits for no event, without a loop."""
            while True:
                try:
                    coroutine.send(None)
                except StopIteration as end:
                    return end.value

        def interrupt_twice():
            def profile(frame, event, argument):
                if event in ('call', 'c_call') and in_module(frame):
                    raise Interrupt

            sys.setprofile(profile)
            raise Interrupt

        def text_of_next(stream):
            return step(stream.__anext__()).choices[0].delta.content

        def next_text(stream):
            text = step(stream._next_text())
            if text is None:
                raise StopAsyncIteration
            return text

        holes = 0
        for read in text_of_next, next_text:
            for first in itertools.count(1, 5):
                stream = stream_of(*StreamTest.READS, kind=streamlite.AsyncStream)
                stream._begin(stream._send(''))
                texts = []
                with contextlib.redirect_stderr(io.StringIO()):
                    try:
                        with signalled(first, interrupt_twice) as lines:
                            for _ in range(3):
                                texts.append(read(stream))
                    except (Interrupt, StopAsyncIteration):
                        pass
                    finally:
                        sys.setprofile(None)
                if lines[0] < first:
                    break  # it came to its end before
                with self.subTest(read.__name__, first=first):
                    try:
                        while True:
                            texts.append(text_of_next(stream))
                    except StopAsyncIteration:
                        self.assertEqual(texts, StreamTest.PIECES)
                    except streamlite.OpenAIError:
                        holes += 1
        self.assertGreater(holes, 50)

    def test_a_stream_has_the_close_of_asynchronous_generators_too(self):
        script, gone = watched()

        async def main(server):
            async with async_client(server) as asker:
                stream = await ask(asker)
                await stream.__anext__()
                await stream.aclose()
                await self.until(gone.is_set)

        with Server(script) as server:
            self.run_async(main(server))


# --------------------------------------------------------------------------------------------------
# Demo server: a server to try things with
# --------------------------------------------------------------------------------------------------

WEATHER = {'type': 'function', 'function': {
    'name': 'get_weather', 'description': 'The weather of a place', 'parameters': {
        'type': 'object', 'required': ['location'],
        'properties': {'location': {'type': 'string'}}}}}


def port_of(demo):
    return urllib.parse.urlsplit(demo.base_url).port


class DemoServerTest(TestCase):

    def setUp(self):
        super().setUp()
        self.server = streamlite.DemoServer(delay=0)
        self.addCleanup(self.server.close)
        self.client = streamlite.OpenAI(base_url=self.server.base_url, api_key=KEY)
        self.addCleanup(self.client.close)

    def test_text_is_streamed_word_by_word_and_says_what_it_is(self):
        with ask(self.client) as stream:
            first = next(stream)
            pieces = list(stream.text())
        self.assertEqual(first.choices[0].delta.role, 'assistant')
        pieces.insert(0, first.choices[0].delta.content)
        self.assertGreater(len(pieces), 10)
        self.assertIn('not a language model', ''.join(pieces))
        self.assertEqual(''.join(pieces), text_of(stream.completion))
        self.assertEqual((stream.completion.choices[0].finish_reason, stream.completion.usage),
                         ('stop', None))
        self.assertTrue(stream.response.request_id)

    def test_a_whole_reply_is_the_stream_put_together(self):
        whole = ask(self.client, stream=False)
        streamed = ask(self.client, stream_options={'include_usage': True}).collect()
        for completion in (whole, streamed):
            completion.created = 0
        self.assertEqual(whole, streamed)

    def test_usage_comes_when_asked_for_and_adds_up(self):
        with ask(self.client, stream_options={'include_usage': True}) as stream:
            *chunks, last = stream
        self.assertTrue(all(chunk.usage is None for chunk in chunks))
        self.assertEqual(last.choices, [])
        self.assertEqual(last.usage.total_tokens,
                         last.usage.prompt_tokens + last.usage.completion_tokens)
        self.assertEqual(last.usage.completion_tokens, len(chunks) - 1)
        with ask(self.client, messages=chat('one two three') + chat(None),
                 stream_options={'include_usage': True}) as stream:
            self.assertEqual(stream.collect().usage.prompt_tokens, 3)

    def test_tools_are_called_in_fragments_and_their_answer_is_taken(self):
        messages = [{'role': 'user', 'content': 'How is the weather in Berlin?'}]
        with ask(self.client, messages=messages, tools=[WEATHER]) as stream:
            chunks = list(stream)
        self.assertGreater(len(chunks), 3)
        choice = stream.completion.choices[0]
        call, = choice.message.tool_calls
        self.assertEqual((choice.finish_reason, call.function.name), ('tool_calls', 'get_weather'))
        self.assertEqual(call.function.parsed_arguments, {'location': 'Berlin'})
        messages += [choice.message,
                     {'role': 'tool', 'tool_call_id': call.id, 'content': '9 degrees'}]
        self.assertIn('9 degrees',
                      text_of(ask(self.client, messages=messages, tools=[WEATHER]).collect()))

    def test_the_length_and_the_number_of_answers_can_be_set(self):
        for name, value, length in (('max_tokens', 3, 3), ('max_completion_tokens', 2, 2)):
            completion = ask(self.client, n=2, **{name: value}).collect()
            self.assertEqual([len(choice.message.content.split()) for choice in completion.choices],
                             [length] * 2)
            self.assertEqual([choice.finish_reason for choice in completion.choices],
                             ['length'] * 2)

    def test_the_models_are_listed_and_the_misbehaving_ones_are_among_them(self):
        names = [model.id for model in self.client.models.list()]
        self.assertEqual(names, list(self.server.models))

    def test_a_rate_limit_passes(self):
        patient = self.client.with_options(max_retries=1)
        self.assertIn('demo', text_of(ask(patient, model='demo-rate-limit').collect()))
        with self.assertRaises(streamlite.RateLimitError) as caught:
            ask(self.client.with_options(max_retries=0), model='demo-rate-limit')
        self.assertTrue(caught.exception.retry_after)

    def test_a_stream_can_fail_in_the_middle(self):
        for model, kind, not_kind in (('demo-error', streamlite.APIError,
                                       streamlite.APIConnectionError),
                                      ('demo-lost', streamlite.APIConnectionError,
                                       streamlite.APITimeoutError)):
            with self.subTest(model):
                texts = []
                with self.assertRaises(kind) as caught:
                    texts.extend(ask(self.client, model=model).text())
                self.assertNotIsInstance(caught.exception, not_kind)
                self.assertTrue(text_of(caught.exception.partial).startswith('This is'))

    def test_what_is_wrong_is_refused(self):
        for name, settings, options, kind in (
                ('key', {'api_key': 'wrong'}, {}, streamlite.AuthenticationError),
                ('model', {}, {'model': 'no-such-model'}, streamlite.NotFoundError),
                ('tools', {}, {'tools': [1]}, streamlite.BadRequestError),
                ('path', {'base_url': self.server.base_url + '/elsewhere'}, {},
                 streamlite.NotFoundError)):
            with self.subTest(name), self.client.with_options(max_retries=0, **settings) as asker:
                with self.assertRaises(kind):
                    ask(asker, **options)
                if name == 'path':
                    with self.assertRaises(kind):
                        asker.models.list()

    def test_it_stops_working_for_a_client_that_has_gone(self):
        with streamlite.DemoServer(delay=0.1) as server, streamlite.OpenAI(
            base_url=server.base_url) as asker:
            with ask(asker) as stream:
                next(stream)
                self.assertEqual(server.active, 1)
            self.wait_until(lambda: server.active == 0)

    def test_what_is_no_request_is_refused(self):
        begin = '{"model":"m","messages":[{"role":"user","content":"x"}],'
        bodies = begin + '"n":1e999}', begin + '"max_tokens":1e999}', '[' * 100000
        with streamlite.DemoServer(delay=0) as server:
            for body in bodies:
                with self.subTest(body[-20:]):
                    with self.assertRaises(urllib.error.HTTPError) as caught:
                        urllib.request.urlopen(
                            server.base_url + '/chat/completions', body.encode(), LONG)
                    with caught.exception as answer:
                        self.assertEqual(answer.code, 400)
                        self.assertIn(b'not a chat completion request', answer.read())

    def test_its_models_that_fail_do_so_in_whole_replies_too(self):
        with streamlite.DemoServer(delay=0) as demo, client(None, base_url=demo.base_url) as asker:
            for model, kind in (('demo-lost', streamlite.APIConnectionError),
                                ('demo-error', streamlite.InternalServerError)):
                with self.subTest(model):
                    self.assertRaises(kind, ask, asker, model=model, stream=False)

    def test_tools_without_parameters_are_called_without_arguments(self):
        with streamlite.DemoServer(delay=0) as demo, client(None, base_url=demo.base_url) as asker:
            for more in {}, {'parameters': None}, {'parameters': {'properties': {}}}:
                tools = [{'type': 'function', 'function': dict(more, name='now')}]
                completion = ask(asker, tools=tools).collect()
                called = completion.choices[0].message.tool_calls[0].function
                self.assertEqual((called.name, called.arguments), ('now', '{}'))

    def test_it_keeps_connections_and_its_port_can_be_taken_again(self):
        def is_taken_again():
            with streamlite.DemoServer(delay=0) as demo:
                port = port_of(demo)
                with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port)) as asker:
                    for _ in range(2):
                        asker.request('GET', '/v1/models')
                        answer = asker.getresponse()
                        self.assertEqual((answer.version, answer.status), (11, 200))
                        answer.read()
                    demo.close()  # It ends the connection first, whose port then has to wait.
            if os.name == 'nt':
                return True
            try:
                streamlite.DemoServer(port).close()
            except OSError:
                return False
            return True

        # Meanwhile another process may have taken it.
        self.assertTrue(any(is_taken_again() for _ in range(5)))

    @unittest.skipIf(os.name == 'nt', 'a reset may come as an end there')
    def test_a_client_that_breaks_off_in_its_request_is_noted_and_does_no_harm(self):
        port = port_of(self.server)
        with socket.create_connection(('127.0.0.1', port)) as sock:
            sock.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n'
                         b'Expect: 100-continue\r\n\r\n')
            self.assertIn(b'100', sock.recv(100))  # it has begun to read
            Peer(sock, 1).reset()
        self.wait_until(lambda: any('demo server: [' in said for said in SAID))
        self.assertIn('not a language model', text_of(ask(self.client).collect()))

    def test_of_a_long_prompt_the_end_is_said_again(self):
        words = ['w%02d' % number for number in range(30)]
        for count in 20, 21, 30:
            text = text_of(ask(self.client, messages=chat(' '.join(words[:count]))).collect())
            self.assertTrue(text.endswith(' '.join(words[count - 20:count])), text)
            self.assertEqual('... w%02d' % (count - 20) in text, count > 20)

    def test_one_of_its_models_can_be_asked_for(self):
        self.assertEqual(self.client.models.retrieve('demo-error').id, 'demo-error')
        self.assertRaises(streamlite.NotFoundError, self.client.models.retrieve, 'nothing')

    def test_a_stream_ends_with_done(self):
        port = port_of(self.server)
        with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port)) as asker:
            asker.request('POST', '/v1/chat/completions', json.dumps(
                {'model': 'demo', 'messages': chat('hi'), 'stream': True}))
            events = decode(asker.getresponse().read())
        self.assertEqual([event.data for event in events].index('[DONE]'), len(events) - 1)
        self.assertGreater(len(events), 10)

    def test_it_keeps_nothing_of_connections_that_have_ended(self):
        for _ in range(3):
            with self.client.with_options(timeout=LONG) as asker:
                ask(asker, max_tokens=1).collect()
        self.client.close()
        self.wait_until(lambda: not self.server._connections)

    def test_nothing_follows_the_error_of_a_model_that_fails(self):
        asking = json.dumps({'model': 'demo-error', 'messages': chat('hi'), 'stream': True})
        with urllib.request.urlopen(
                self.server.base_url + '/chat/completions', asking.encode(), LONG) as answer:
            *_, last, done = decode(answer.read())
        self.assertIn('error', json.loads(last.data))
        self.assertEqual(done.data, '[DONE]')


# --------------------------------------------------------------------------------------------------
# Command line: in this process, in one of its own, and on a terminal
# --------------------------------------------------------------------------------------------------

# From FOLDER: a script would be compiled every time.
COMMAND = [sys.executable, '-m', os.path.basename(SCRIPT)[:-3]]


def command(*arguments, **options):
    """Run `python -m streamlite ARGUMENTS` in a process of its own, with pipes."""
    return run_python(*COMMAND[1:] + list(arguments), **options)


def run_main(*arguments, input='', stdin=None, stderr=None, **environment):
    """The same in this process, without the tenth of a second that a new one takes."""
    stdin = stdin or io.TextIOWrapper(io.BytesIO(input.encode()), encoding='utf-8')
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), encoding='utf-8',
                                      newline=''), stderr or io.StringIO()
    with mock.patch.multiple(sys, stdin=stdin, stdout=stdout,
                             stderr=stderr), mock.patch.dict(os.environ, environment):
        try:
            code = streamlite.main(list(arguments))
        except SystemExit as error:  # argparse's way
            code = error.code
        stdout.flush()
    ran = Ran(code, stdout.buffer.getvalue().decode(), stderr.getvalue())
    SAID.extend(ran[1:])
    return ran


class Screen(io.StringIO):
    """What a program takes for a terminal."""

    def isatty(self):
        return True


class CommandTestCase(TestCase):

    def setUp(self):
        super().setUp()
        os.environ.update(OPENAI_API_KEY=KEY, OPENAI_MODEL='m', PYTHONIOENCODING='utf-8')

    def serve(self, *scripts):
        """A server, at which the command asks."""
        server = super().serve(*scripts)
        os.environ['OPENAI_BASE_URL'] = server.url
        return server

    def conversation(self, request):
        return [(message['role'], message['content']) for message in request.json['messages']]

    def assertFails(self, ran, code, *words):
        """With this code and one line on standard error that holds the words."""
        self.assertEqual((ran.code, ran.err.count('\n')), (code, 1), ran)
        self.assertTrue(ran.err.startswith('streamlite: '), ran)
        for word in words:
            self.assertIn(word.lower(), ran.err.lower())


class CommandTest(CommandTestCase):

    def test_the_answer_and_nothing_else_goes_to_standard_output(self):
        thinking = sse(delta(reasoning_content='I think'), delta('Hello\nworld'), STOP)
        for name, stream, out in (('a newline is added', HELLO, 'Hello world\n'),
                                  ('but no second one', sse(delta('Hi\n'), STOP), 'Hi\n'),
                                  ('reasoning is not shown in a pipe', thinking, 'Hello\nworld\n'),
                                  ('what a terminal would act on is data here', sse(
                                      delta('\x1b[1m\x07'), STOP), '\x1b[1m\x07\n'),
                                  ('nothing', sse(STOP), '')):
            with self.subTest(name):
                self.serve(stream_reply(stream))
                self.assertEqual(run_main('hi'), Ran(0, out, ''))

    def test_the_prompt_is_the_words_after_what_is_piped_in(self):
        server = self.serve()
        for name, arguments, piped, content in (
                ('words are joined', ['why', 'did', 'this fail?'], '', 'why did this fail?'),
                ('wherever the options are', ['why', '-m', 'm', 'did', '--usage', 'this fail?'], '',
                 'why did this fail?'),
                ('a dash behind an option', ['sum', '-m', 'm', '-'], 'line 1\n', 'line 1\n\nsum'),
                ('standard input goes before them', ['why?'], 'line 1\nline 2\n',
                 'line 1\nline 2\n\nwhy?'),
                ('standard input alone', [], 'Say hello.\n', 'Say hello.'),
                ('the same, said with a dash', ['-'], 'Say hello.\n', 'Say hello.'),
                ('a byte order mark is none of the text', ['-'], '\ufeffcaf\xe9', 'caf\xe9')):
            with self.subTest(name):
                self.assertEqual(run_main(*arguments, input=piped).code, 0)
                self.assertEqual(server.requests[-1].json['messages'],
                                 [{'role': 'user', 'content': content}])

    def test_a_standard_input_that_brings_nothing_is_waited_for_with_a_word(self):
        class Told(io.StringIO):
            def write(self, text):
                told.set()
                return super().write(text)

        # The clock goes a hundred times as fast until the word has come.
        told, ended, now = threading.Event(), [], time.monotonic
        began = now()
        fast = mock.patch('time.monotonic', lambda: now() + (
            0 if told.is_set() else 99 * (now() - began)))
        server = self.serve()
        reading, writing = os.pipe()
        with io.open(reading, encoding='utf-8') as stdin, fast:
            thread = threading.Thread(
                target=lambda: ended.append(run_main('why?', stdin=stdin, stderr=Told())))
            thread.start()
            self.assertTrue(told.wait(LONG))
            os.write(writing, b'late')
            os.close(writing)
            thread.join(LONG)
        self.assertEqual((ended[0].code, ended[0].out), (0, 'Hello world\n'))
        self.assertIn('standard input', ended[0].err)
        self.assertEqual(server.requests[0].json['messages'][0]['content'], 'late\n\nwhy?')

    def test_without_a_prompt_it_says_how_it_is_used(self):
        self.assertEqual((run_main().code, run_main().out), (2, ''))
        self.assertIn('usage:', run_main().err)

    def test_model_system_and_fields_go_into_the_request(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'tools.json')
            write_file(path, json.dumps([WEATHER]))
            for arguments, wanted in (
                    (['-m', 'other'], {'model': 'other'}),
                    ([], {'model': 'm', 'stream': True}),
                    (['-s', 'Be brief.'], {'messages': [
                        {'role': 'system', 'content': 'Be brief.'},
                        {'role': 'user', 'content': 'hi'}]}),
                    (['-o', 'temperature=0', '-o', 'seed=7'], {'temperature': 0, 'seed': 7}),
                    (['-o', 'user=jane', '-o', 'stop=a=b', '-o', 'flag=true'],
                     {'user': 'jane', 'stop': 'a=b', 'flag': True}),
                    (['-o', 'response_format={"type": "json_object"}'],
                     {'response_format': {'type': 'json_object'}}),
                    (['-o', 'tools=@' + path], {'tools': [WEATHER]})):
                with self.subTest(arguments):
                    server = self.serve()
                    self.assertEqual(run_main('hi', *arguments), Ran(0, 'Hello world\n', ''))
                    body = server.requests[0].json
                    self.assertEqual({name: body[name] for name in wanted}, wanted)

    def test_without_a_model_the_only_one_of_the_server_is_asked(self):
        del os.environ['OPENAI_MODEL']
        server = self.serve(reply(200, {}, {'object': 'list', 'data': [{'id': 'one'}]}),
                            stream_reply(HELLO))
        self.assertEqual(run_main('hi'), Ran(0, 'Hello world\n', ''))
        self.assertEqual((server.requests[0].path, server.requests[1].json['model']),
                         ('/v1/models', 'one'))
        self.serve(reply(200, {}, MODELS))
        self.assertFails(run_main('hi'), 1, '-m', 'one, two')

    def test_a_server_without_models_is_told(self):
        del os.environ['OPENAI_MODEL']
        self.serve(reply(200, {}, {'object': 'list', 'data': []}))
        self.assertFails(run_main('hi'), 1, '-m', 'the server has: none')

    def test_tool_calls_are_printed_as_lines_of_json(self):
        with streamlite.DemoServer(delay=0) as server:
            ran = run_main('Weather in Berlin', '-o', 'tools=' + json.dumps([WEATHER]),
                           OPENAI_BASE_URL=server.base_url)
        self.assertEqual((ran.code, ran.err), (0, ''))
        call, = map(json.loads, ran.out.splitlines())
        self.assertEqual((call['type'], call['function']), (
            'function', {'name': 'get_weather', 'arguments': '{"location": "Berlin"}'}))

    def test_json_is_one_chunk_a_line(self):
        self.serve(stream_reply(HELLO))
        ran = run_main('--json', 'hi')
        self.assertEqual((ran.code, ran.err), (0, ''))
        deltas = [json.loads(line)['choices'][0]['delta'] for line in ran.out.splitlines()]
        self.assertEqual([fields.get('content') for fields in deltas],
                         ['Hel', 'lo ', 'world', None])

    def test_json_prints_tool_calls_in_their_chunks_alone(self):
        self.serve(stream_reply(sse(delta(tool_calls=[call(0, 'a', 'f', '{}')]),
                                    delta(finish_reason='tool_calls'))))
        ran = run_main('--json', 'hi')
        self.assertEqual([list(json.loads(line)) for line in ran.out.splitlines()],
                         [list(delta())] * 2)

    def test_tool_calls_behind_text_begin_a_line(self):
        called = delta(tool_calls=[call(0, 'a', 'f', '{}')])
        self.serve(stream_reply(sse(delta('Let me see'), called, STOP)))
        text, called = run_main('hi').out.splitlines()
        self.assertEqual((text, json.loads(called)['id']), ('Let me see', 'a'))

    def test_of_several_answers_the_first_is_shown(self):
        self.serve(stream_reply(sse(delta('one'), delta('two', index=1), STOP,
                                    delta(finish_reason='length', index=1))))
        self.assertEqual(run_main('hi', '-o', 'n=2'), Ran(0, 'one\n', ''))

    def test_who_has_read_enough_of_a_pipe_is_known_by_its_error(self):
        for system, error, is_closed in (
                ('posix', BrokenPipeError(), True), ('posix', OSError(errno.EINVAL, ''), False),
                ('nt', BrokenPipeError(), True), ('nt', OSError(errno.EINVAL, ''), True),
                ('nt', OSError(errno.ENOSPC, ''), False)):
            with self.subTest(system, error=error), mock.patch.object(os, 'name', system):
                self.assertEqual(streamlite._is_closed_pipe(error), is_closed)

    def test_json_tells_errors_in_json_too(self):
        for name, script, lines, code, kind in (
                ('refused', error_reply(401, type='auth', code='invalid_api_key'), 0, 1, 'auth'),
                ('cut', cut(WAITING), 2, 75, 'APIConnectionError')):
            with self.subTest(name):
                self.serve(script)
                ran = run_main('--json', '--retries', '0', 'hi')
                *chunks, error = map(json.loads, ran.out.splitlines())
                self.assertEqual((ran.code, len(chunks), error['error']['type']),
                                 (code, lines, kind))
                self.assertTrue(error['error']['message'])
                self.assertFails(ran, code)

    def test_the_whole_reply_at_once(self):
        server = self.serve(reply(200, {}, WHOLE))
        self.assertEqual(run_main('--no-stream', 'hi'), Ran(0, 'Hello world\n', ''))
        self.assertNotEqual(server.requests[0].json.get('stream'), True)
        ran = run_main('--no-stream', '--json', 'hi')
        self.assertEqual(json.loads(ran.out)['choices'][0]['message']['content'], 'Hello world')

    def test_models_are_listed(self):
        self.serve(reply(200, {}, MODELS))
        self.assertEqual(run_main('--models'), Ran(0, 'one\ntwo\n', ''))

    def test_usage_is_told_on_standard_error(self):
        counts = {'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12}
        usage = dict(delta(), choices=[], usage=counts)
        server = self.serve(stream_reply(sse(delta('Hello'), STOP, usage)))
        ran = run_main('--usage', 'hi')
        self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello\n', 1))
        self.assertRegex(ran.err, r'^5 \+ 7 tokens; first token after \d.* s, all after \d.* s\n$')
        self.assertEqual(server.requests[0].json['stream_options'], {'include_usage': True})

    def test_usage_falls_back_where_a_server_does_not_know_stream_options(self):
        for status in (400, 422):
            with self.subTest(status):
                refusal = error_reply(status, message='stream_options: extra fields not permitted')
                server = self.serve(refusal, stream_reply(HELLO))
                ran = run_main('--usage', 'hi')
                self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello world\n', 1))
                self.assertIn('no usage', ran.err)
                self.assertEqual(['stream_options' in request.json for request in server.requests],
                                 [True, False])
        server = self.serve(error_reply(400, message='stream_options: no'))
        self.assertFails(run_main('--usage', 'hi', '-o', 'stream_options={"a": 1}'), 1,
                         'stream_options')
        self.assertEqual(len(server.requests), 1, 'what was asked for by hand is not taken back')

    def test_a_reply_cut_by_a_limit_says_so(self):
        for reason, word in (('length', 'token limit'), ('content_filter', 'filter')):
            self.serve(stream_reply(sse(delta('Hel'), delta(finish_reason=reason))))
            ran = run_main('hi')
            self.assertEqual((ran.code, ran.out), (0, 'Hel\n'))
            self.assertIn(word, ran.err)

    def test_errors_are_one_line_that_says_what_to_do(self):
        models = reply(200, {}, MODELS)
        request_id = {'x-request-id': 'req-7'}
        for name, scripts, code, words in (
                ('wrong key', [error_reply(401, request_id, 'No such key')], 1,
                 ['401', 'No such key', 'req-7']),
                ('unknown model', [error_reply(404, message='no model m'), models], 1,
                 ['no model m', 'one, two']),
                ('unknown model, no list', [error_reply(404, message='no model m')], 1,
                 ['no model m']),
                ('too long', [error_reply(400, message='maximum context length is 8192 tokens')], 1,
                 ['8192']),
                ('rate limit', [error_reply(429, {'retry-after': '7'}, 'Slow down')], 75,
                 ['Slow down', '7 s']),
                ('quota', [error_reply(429, message='Buy more', code='insufficient_quota')], 1,
                 ['Buy more']),
                ('overloaded', [error_reply(503, request_id)], 75, ['503', 'req-7']),
                ('HTML', [reply(200, {'Content-Type': 'text/html'},
                                b'<html><title>Log in</title>')], 1, ['HTML']),
                ('elsewhere', [reply(302, {'Location': 'https://example.test/'})], 1,
                 ['example.test']),
                ('silent', [stall()], 75, ['timeout']),
                ('several lines', [error_reply(400, message='one\ntwo\x1b[2J')], 1, ['one two'])):
            with self.subTest(name):
                self.serve(*scripts)
                seconds = str(SHORT if name == 'silent' else LONG)
                ran = run_main('--retries', '0', '--timeout', seconds, 'hi')
                self.assertFails(ran, code, *words)
                self.assertEqual(ran.out, '')
                self.assertNotIn('\x1b', ran.err)

    def test_errors_before_anything_is_sent_are_one_line_too(self):
        with dead_port() as port:
            dead = 'http://127.0.0.1:%d/v1' % port
            for name, arguments, environment, code, words in (
                    ('dead port', [], {'OPENAI_BASE_URL': dead}, 75,
                     ['is the server running?', dead]),
                    ('no key', [], {'OPENAI_API_KEY': ''}, 1, ['OPENAI_API_KEY']),
                    ('a key with a line break', [], {'OPENAI_API_KEY': KEY + '\n'}, 1, ['key']),
                    ('no web address', ['--base-url', 'ftp://example.test'], {}, 2, ['http']),
                    ('no web address in the environment', [], {'OPENAI_BASE_URL': 'nowhere'}, 1,
                     ['http'])):
                with self.subTest(name):
                    ran = run_main('--retries', '0', *(arguments + ['hi']), **environment)
                    self.assertFails(ran, code, *words)
            ran = run_main('-o', 'messages=hi', OPENAI_BASE_URL=dead)
            self.assertFails(ran, 2, 'messages')

    def test_a_wrong_use_is_told_with_exit_code_2(self):
        self.serve()
        for arguments, word in ((['--no-such-option'], '--no-such-option'),
                                (['-o', 'x'], 'KEY=VALUE'),
                                (['-o', '=x'], 'KEY=VALUE'),
                                (['-H', 'X-Key'], 'NAME=ENVVAR'),
                                (['-H', 'X Key=OPENAI_MODEL', 'hi'], 'X Key'),
                                (['-o', 'x=@/no/such'], '/no/such'),
                                (['--timeout', 'soon'], 'soon'),
                                (['--key-env', 'NO_SUCH_NAME'], 'NO_SUCH_NAME'),
                                (['--key-env', KEY], '--key-env'),
                                (['--key', KEY], 'unrecognized: --key'),
                                (['--api-key', KEY], '--key-env'),
                                (['--api-key=' + KEY], 'OPENAI_API_KEY'),
                                (['--temperature', '0'], '-o temperature='),
                                (['--max_tokens=3'], '-o max_tokens='),
                                (['--cacert', '/no/such'], '/no/such'),
                                (['--models'], '--models'),
                                (['-o', 'x={"a": 1'], '-o x'), (['-o', 'x=[1,'], 'no JSON'),
                                (['--timeout', '0'], '--timeout'),
                                (['--timeout', 'nan'], '--timeout'),
                                (['--timeout', '-1'], '--timeout'),
                                (['--deadline', '0'], '--deadline'),
                                (['--retries', '-1'], '--retries'),
                                (['--demo', '--base-url', 'http://127.0.0.1:9'], '--base-url'),
                                (['--key=' + KEY], '--key'),
                                (['--Key', KEY], 'unrecognized'),
                                (['-o', 'x=@' + FOLDER], os.path.basename(FOLDER)),
                                (['-o', 'x=' + '[' * 100000], 'deep')):
            with self.subTest(arguments):
                ran = run_main('hi', *arguments)
                self.assertEqual((ran.code, ran.out), (2, ''))
                self.assertIn(word, ran.err)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'field')
            for content in b'\xff\xfe', b'[' * 100000:
                with io.open(path, 'wb') as file:
                    file.write(content)
                with self.subTest(content[:2]):
                    ran = run_main('hi', '-o', 'x=@' + path)
                    self.assertEqual((ran.code, ran.out), (2, ''))
                    self.assertIn('-o x', ran.err)

    def test_a_broken_stream_keeps_the_text(self):
        passing, lasting = (sse({'error': {'message': 'no', 'code': code}}) for code in (503, 400))
        for name, script, code in (
                ('cut', cut(WAITING), 75), ('reset', reset(WAITING), 75),
                ('ended', stream_reply(HELLO_CUT), 75),
                ('an error that passes', stream_reply(HELLO_CUT + passing), 75),
                ('an error that stays', stream_reply(HELLO_CUT + lasting), 1)):
            with self.subTest(name):
                server = self.serve(script)
                ran = run_main('hi')
                self.assertFails(ran, code)
                self.assertEqual((ran.out, len(server.requests)), ('Hello \n', 1))

    def test_time_and_retries_can_be_set(self):
        server = self.serve(*[error_reply(503, AGAIN)] * 3 + [stream_reply(HELLO)])
        self.assertEqual(run_main('--retries', '3', 'hi').out, 'Hello world\n')
        self.assertEqual(len(server.requests), 4)
        self.serve(stall(WAITING))
        with self.assertPrompt():
            self.assertFails(run_main('--deadline', str(SHORT), 'hi'), 75, 'deadline')

    def test_the_key_of_the_environment_goes_to_the_address_of_the_environment_only(self):
        server = self.serve()
        more = {'OPENAI_ORG_ID': 'org-' + MARK, 'OPENAI_PROJECT_ID': 'proj-' + MARK,
                'OTHER_KEY': 'sk-other'}
        for arguments, sent in (([], 'Bearer ' + KEY), (['--base-url', server.url], None),
                                (['--base-url', server.url, '--key-env', 'OTHER_KEY'],
                                 'Bearer sk-other'),
                                (['--key-env', 'OTHER_KEY'], 'Bearer sk-other')):
            with self.subTest(arguments):
                self.assertEqual(run_main('hi', *arguments, **more).code, 0)
                headers = server.requests[-1].headers
                self.assertEqual(headers.get('authorization'), sent)
                if '--base-url' in arguments:
                    self.assertNotIn(MARK, str(headers))

    def test_chat_in_a_pipe_answers_line_by_line(self):
        server = self.serve()
        typed = ['hi', '', '"""two', 'lines"""', '/reset', '/model other', '/system Be brief.',
                 'again', '/exit', 'no']
        ran = run_main('--chat', input='\n'.join(typed))
        self.assertEqual((ran.code, ran.out), (0, 'Hello world\n' * 3))
        one, two, three = map(self.conversation, server.requests)
        self.assertEqual(one, [('user', 'hi')])
        self.assertEqual(two,
                         [('user', 'hi'), ('assistant', 'Hello world'), ('user', 'two\nlines')])
        self.assertEqual(three, [('system', 'Be brief.'), ('user', 'again')])
        self.assertEqual([request.json['model'] for request in server.requests],
                         ['m', 'm', 'other'])

    def test_chat_may_begin_with_the_words_of_the_command(self):
        server = self.serve()
        self.assertEqual(run_main('--chat', 'good', 'day', input='again\n'),
                         Ran(0, 'Hello world\n' * 2, ''))
        self.assertEqual(self.conversation(server.requests[1]),
                         [('user', 'good day'), ('assistant', 'Hello world'), ('user', 'again')])

    def test_chat_goes_on_after_an_error_and_keeps_what_came(self):
        server = self.serve(error_reply(400, message='no'), cut(WAITING), stream_reply(HELLO))
        ran = run_main('--chat', input='one\ntwo\nthree\n')
        self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello \nHello world\n', 2))
        self.assertNotIn('partial', ran.err)
        self.assertEqual(self.conversation(server.requests[-1]),
                         [('user', 'two'), ('assistant', 'Hello '), ('user', 'three')])

    def test_chat_goes_on_where_the_server_could_not_be_asked_for_its_model(self):
        del os.environ['OPENAI_MODEL']
        server = self.serve(error_reply(401), reply(200, {}, {'data': [{'id': 'one'}]}),
                            stream_reply(HELLO))
        ran = run_main('--chat', input='one\ntwo\n')
        self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello world\n', 1))
        self.assertEqual(self.conversation(server.requests[-1]), [('user', 'two')])

    def test_the_help_fits_a_screen_and_has_three_examples(self):
        for option in ('--help', '-h'):
            ran = run_main(option)
            lines = ran.out.splitlines()
            self.assertEqual((ran.code, ran.err), (0, ''))
            self.assertLessEqual(len(lines), 24)
            self.assertLessEqual(max(map(len, lines)), 80)
            examples = [line for line in lines[1:] if 'python' in line and 'streamlite' in line]
            self.assertGreaterEqual(len(examples), 3)
        for option in ('--model', '-s', '-o', '--json', '--usage', '--no-stream', '--chat',
                       '--models', '--base-url',
                       '--key-env', '--timeout', '--deadline', '--retries', '--cacert', '-v',
                       '--demo', '--version'):
            self.assertIn(option, ran.out)

    def test_the_version(self):
        self.assertEqual(run_main('--version'),
                         Ran(0, 'streamlite %s\n' % streamlite.__version__, ''))

    def assertTold(self, ran, codes=(1,)):
        """One line on standard error, no traceback, and one of these codes."""
        self.assertNotIn('Traceback', ran.err)
        self.assertIn(ran.code, codes, ran)
        self.assertEqual(ran.err.count('\n'), 1, ran)

    def test_a_list_of_models_of_any_shape_is_listed_or_told(self):
        shapes = {
            'names alone': (['llama3'], 'llama3'),
            'without an id': ([{'object': 'model'}], None),
            'one with and one without': ([{'id': 'llama3'}, {'object': 'model'}], None),
            'an id that is none': ([{'id': None}], None),
            'an id that is a number': ([{'id': 7}], None),
            'an id that is a list': ([{'id': ['llama3']}], None),
            'null': ([None], None),
            'lists': ([['llama3']], None),
            'nothing': ([], None),
            'half an emoji': ([{'id': 'a\ud800'}], None),
        }
        for name, (data, shown) in shapes.items():
            with self.subTest(name, command='--models'):
                self.serve(reply(200, {}, {'object': 'list', 'data': data}))
                ran = run_main('--models')
                self.assertNotIn('Traceback', ran.err)
                self.assertIn(ran.code, (0, 1), ran)
                if ran.code:
                    self.assertTold(ran)
                elif shown:
                    self.assertIn(shown, ran.out)
            with self.subTest(name, command='the only model'):
                listed = reply(200, {}, {'object': 'list', 'data': data})
                server = self.serve(listed, stream_reply(HELLO))
                ran = run_main('hi', OPENAI_MODEL='')
                if ran.code or len(server.requests) < 2:
                    self.assertTold(ran)
                else:
                    self.assertEqual(ran.out, 'Hello world\n')
        with self.subTest('the other remedies ask for it too'):
            self.serve(error_reply(404), reply(200, {}, {'data': ['llama3']}))
            self.assertTold(run_main('hi'))

    def test_usage_of_any_shape_does_no_harm(self):
        for usage in ('12 tokens', 12, [1], True, {'completion_tokens': 'many'},
                      {'completion_tokens': [1]}, {'completion_tokens': -1},
                      {'prompt_tokens': 3, 'completion_tokens': 'many'},
                      {'prompt_tokens': 3, 'completion_tokens': [1]}, {'completion_tokens': 1e400},
                      {'prompt_tokens': None, 'completion_tokens': 3}, {'total_tokens': 3}):
            with self.subTest(usage=usage):
                last = dict(delta(finish_reason='stop'), usage=usage)
                self.serve(stream_reply(sse(delta('Hello'), last)))
                ran = run_main('--usage', 'hi')
                self.assertEqual((ran.code, ran.out), (0, 'Hello\n'), ran)
                self.assertNotIn('Traceback', ran.err)

    @unittest.skipIf(os.name == 'nt', 'the environment of Windows is text')
    def test_a_base_url_that_is_not_utf_8_is_told(self):
        for url in ('http://127.0.0.1:9/\udcff/v1', 'http://\udcff:9/v1',
                    'http://127.0.0.1:9/v1?a=\udcff'):
            for ran in (run_main('--retries', '0', 'hi', OPENAI_BASE_URL=url),
                        run_main('--retries', '0', '--base-url', url, 'hi')):
                self.assertTold(ran, (1, 2, 75))

    def test_json_without_a_key_writes_an_object(self):
        del os.environ['OPENAI_API_KEY']
        ran = run_main('--json', 'hi')
        self.assertEqual(ran.code, 1, ran)
        self.assertIn('OPENAI_API_KEY', json.loads(ran.out)['error']['message'])
        self.assertNotIn('Traceback', ran.err)
        with self.subTest('a base URL that is none'):
            ran = run_main('--json', 'hi', OPENAI_BASE_URL='nowhere')
            self.assertEqual(ran.code, 1)
            self.assertTrue(json.loads(ran.out)['error']['message'])

    def test_remedies_speak_the_language_of_the_command(self):
        page = reply(200, {'Content-Type': 'text/html'}, b'<html><title>Log in</title>')
        moved = reply(301, {'Location': 'https://127.0.0.1/v1/chat/completions'})
        for name, script, arguments, words in (
                ('refused', error_reply(401), ['--base-url', '%s/v1'], ['--key-env']),
                ('a wrong key', error_reply(401), [], ['OPENAI_API_KEY right?']),
                ('another wrong key', error_reply(401), ['--key-env', 'OPENAI_MODEL'],
                 ['OPENAI_MODEL right?']),
                ('no /v1', error_reply(404), ['--base-url', '%s'], ['--base-url', '/v1']),
                ('a page', page, [], ['OPENAI_BASE_URL']),
                ('moved', moved, ['--base-url', '%s/v1'], ['--base-url', 'https']),
                ('a proxy', reply(407, {'Proxy-Authenticate': 'NTLM'}), [], ['NTLM']),
                ('https', error_reply(400, message='this is an HTTPS port'), [],
                 ['https', 'OPENAI_BASE_URL']),
                ('cut', cut(WAITING), [], ['lost']),
                ('not whole', stream_reply(HELLO_CUT), [], ['not whole']),
                ('silent', stall(), ['--timeout', str(SHORT)], ['timed out']),
                ('late', stall(), ['--deadline', str(SHORT)], ['deadline']),
                ('an address', stall(), ['--base-url', 'ftp://127.0.0.1'], ['--base-url']),
                ('no model', error_reply(404), ['--base-url', '%s/v1', '-m', ''], ['-m'])):
            with self.subTest(name):
                server = self.serve(script)
                place = 'http://127.0.0.1:%d' % server.port
                ran = run_main('hi', '--retries', '0', *[word.replace('%s', place)
                                                         for word in arguments])
                self.assertNotEqual(ran.code, 0)
                self.assertEqual(ran.err.count('\n'), 1, ran)
                for word in words:
                    self.assertIn(word, ran.err)
                for word in ('api_key', 'partial', 'max_retries', 'base_url', 'default_headers',
                             'handlers', 'ssl_context', '(connect', 'create('):
                    self.assertNotIn(word, ran.err)
        del os.environ['OPENAI_API_KEY'], os.environ['OPENAI_BASE_URL']
        self.assertFails(run_main('hi'), 1, 'OPENAI_API_KEY', '--base-url', '--demo')

    def test_a_header_takes_its_value_from_a_variable(self):
        server = self.serve()
        ran = run_main('hi', '-H', 'X-Team=TEAM_KEY', '--base-url', server.url, TEAM_KEY='blue')
        self.assertEqual(ran, Ran(0, 'Hello world\n', ''))
        self.assertEqual(server.requests[0].headers['x-team'], 'blue')
        for header in 'X-Team=NO_SUCH_NAME', 'X-Team=' + KEY, 'X-Team':
            ran = run_main('hi', '-H', header)
            self.assertEqual((ran.code, ran.out), (2, ''))
            self.assertIn('-H', ran.err)

    def test_an_unknown_model_in_a_conversation_comes_with_the_command_that_changes_it(self):
        self.serve(error_reply(404, message='no model m'), reply(200, {}, MODELS))
        ran = run_main('--chat', input='hi\n')
        for words in 'one, two', '/model NAME':
            self.assertIn(words, ran.err)

    def test_models_as_lines_of_json(self):
        self.serve(reply(200, {}, MODELS))
        ran = run_main('--models', '--json')
        self.assertEqual(([json.loads(line) for line in ran.out.splitlines()], ran.err),
                         (MODELS['data'], ''))

    def test_a_whole_conversation_may_come_from_a_file(self):
        server = self.serve()
        messages = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'messages.json')
            write_file(path, json.dumps(messages))
            self.assertEqual(run_main('-o', 'messages=@' + path), Ran(0, 'Hello world\n', ''))
            for more in ['hi'], ['--chat'], ['-s', 'Be long.']:
                ran = run_main('-o', 'messages=@' + path, *more)
                self.assertEqual((ran.code, ran.out), (2, ''))
                self.assertIn('messages', ran.err)
        self.assertEqual([request.json['messages'] for request in server.requests], [messages])

    def test_input_in_another_coding_is_read_or_told(self):
        server = self.serve()
        text = 'caf\xe9 \u4e2d'
        for name, data, content, told in (
                ('UTF-16 (PowerShell)', text.encode('utf-16'), text, ''),
                ('UTF-16, the other order', b'\xfe\xff' + text.encode('utf-16-be'), text, ''),
                ('lines of Windows', b'one\r\ntwo\r\n', 'one\ntwo', ''),
                ('Latin-1', b'caf\xe9', None, 'no UTF-8')):
            with self.subTest(name):
                stdin = io.TextIOWrapper(io.BytesIO(data), encoding='utf-8')
                ran = run_main(stdin=stdin)
                self.assertEqual((ran.code, ran.out), (0, 'Hello world\n'))
                sent = server.requests[-1].json['messages'][0]['content']
                self.assertIn(told, ran.err)
                if content is None:  # the code page of Windows may have another letter there
                    self.assertEqual(sent[:3], 'caf')
                else:
                    self.assertEqual((sent, ran.err), (content, ''))

    def test_no_rate_is_told_where_it_means_nothing(self):
        counts = {'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12}
        self.serve(reply(200, {}, dict(WHOLE, usage=counts)))
        ran = run_main('--usage', '--no-stream', 'hi')
        self.assertRegex(ran.err, r'5 \+ 7 tokens; after \d')
        self.assertNotIn('tokens/s', ran.err)

    def test_what_chat_is_told_is_confirmed(self):
        server = self.serve()
        ran = run_main('--chat', input='/model\n/model other\n/system\n/system Be brief.\n/system\n'
                                       '/reset\n/nonsense\n/help\nhi\nexit\nno')
        self.assertEqual((ran.code, ran.out), (0, 'Hello world\n'))
        self.assertEqual(ran.err.splitlines()[:6], [
            '(model: m)', '(model: other)', '(system message: none)',
            '(system message: Be brief.)', '(system message: Be brief.)',
            '(the conversation was forgotten; model and system message stay)'])
        unknown, known = ran.err.splitlines()[6:8]
        self.assertEqual(unknown, 'no such command; ' + known)
        self.assertIn('/reset', known)
        self.assertEqual([self.conversation(request) for request in server.requests],
                         [[('system', 'Be brief.'), ('user', 'hi')]])
        for word in 'quit', '/exit', '/quit', '/bye', ' exit ':
            self.assertEqual(run_main('--chat', input=word + '\nno').out, '')

    def test_a_demonstration_without_a_prompt_serves(self):
        def is_served_at(port, stdin):
            stop = mock.patch('time.sleep', side_effect=KeyboardInterrupt)
            with mock.patch.object(streamlite, 'DEMO_PORT', port), stop:
                ran = run_main('--demo', stdin=stdin)
            self.assertEqual(ran.code, 130)
            address, = set(re.findall(r'http://127\.0\.0\.1:\d+/v1', ran.out + ran.err))
            self.assertEqual(ran.out,
                             'export OPENAI_BASE_URL=%s OPENAI_API_KEY=demo\n' % address)
            self.assertIn("$env:OPENAI_BASE_URL='%s'" % address, ran.err)
            self.assertIn('set OPENAI_BASE_URL=%s' % address, ran.err)
            self.assertIn('demo-rate-limit', ran.err)
            is_there = address == 'http://127.0.0.1:%d/v1' % port
            self.assertEqual('port %d is taken' % port in ran.err, not is_there)
            return is_there

        def is_served_at_a_free_port():
            with dead_port() as port:
                pass
            return is_served_at(port, Screen())

        self.assertEqual(streamlite.DEMO_PORT, 8642)
        # Meanwhile another process may have taken it.
        self.assertTrue(any(is_served_at_a_free_port() for _ in range(5)))
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen(1)
            # Without a terminal, too: in a container or a service.
            self.assertFalse(is_served_at(taken.getsockname()[1], None))

    def unreadable(self, code, *pieces):
        """A standard input at which reading fails after these pieces."""
        pieces = list(pieces)

        class Unreadable(io.RawIOBase):
            def readable(self):
                return True

            def readinto(self, buffer):
                if not pieces:
                    raise OSError(code, os.strerror(code))
                piece = pieces.pop()
                buffer[:len(piece)] = piece
                return len(piece)

        return io.TextIOWrapper(io.BufferedReader(Unreadable()), encoding='utf-8')

    def test_a_standard_input_that_breaks_is_told_and_half_of_it_is_not_sent(self):
        server = self.serve()
        for pieces in [], [b'half of it, ']:
            ran = run_main('why?', stdin=self.unreadable(errno.EIO, *pieces))
            self.assertFails(ran, 1, 'standard input', os.strerror(errno.EIO))
        self.assertEqual(server.requests, [])

    def test_a_standard_input_without_reading_is_none(self):
        server = self.serve()
        with io.open(os.open(os.devnull, os.O_WRONLY), encoding='utf-8') as stdin:  # as nohup's
            self.assertEqual(run_main('why?', stdin=stdin), Ran(0, 'Hello world\n', ''))
        ran = run_main('why?', stdin=self.unreadable(errno.EBADF))
        self.assertEqual(ran, Ran(0, 'Hello world\n', ''))
        self.assertEqual(self.conversation(server.requests[0]), [('user', 'why?')])

    def test_a_conversation_whose_input_breaks_does_not_blame_the_output(self):
        self.serve()
        with mock.patch('os.dup2'):  # that lets go of the standard output of these tests
            ran = run_main('--chat', stdin=self.unreadable(errno.EIO))
        self.assertFails(ran, 1, 'standard input')
        self.assertNotIn('written', ran.err)

    def test_the_names_of_models_are_bounded_and_on_one_line(self):
        names = {'data': [{'id': 'a\x1b[31m\nFAKE' + 'x' * 100000}, {'id': 'b'}]}
        self.serve(lambda peer: peer.send(
            reply(200, {}, names) if 'models' in peer.request.path else error_reply(404)))
        unknown = run_main('-m', 'q', 'hi')
        del os.environ['OPENAI_MODEL']
        for ran in unknown, run_main('hi'):
            self.assertFails(ran, 1, 'the server has: a')
            self.assertLess(len(ran.err), 1000)
            self.assertNotIn('\x1b', ran.err)

    def test_a_key_that_a_server_repeats_as_the_id_of_a_request_is_not_told(self):
        self.serve(error_reply(401, {'x-request-id': KEY}))
        self.assertFails(run_main('hi'), 1, '[request id ***]')

    def run_without(self, name, *arguments):
        """The command in a process that has no such standard stream."""
        return run_python('-c', 'import sys\nsys.%s = None\nimport streamlite\n'
                          'sys.exit(streamlite.main(%r))' % (name, list(arguments)))

    def test_a_conversation_without_any_standard_input_has_one_question(self):
        server = self.serve()
        ran = self.run_without('stdin', '--chat', 'hi')
        self.assertEqual((ran, len(server.requests)), (Ran(0, 'Hello world\n', ''), 1))

    def test_a_pipe_has_the_letters_of_its_locale_but_on_windows(self):
        class Wrapper(io.TextIOWrapper):
            isatty = Screen.isatty

        for system, kind, encoding in (('posix', io.TextIOWrapper, 'latin-1'),
                                       ('nt', io.TextIOWrapper, 'utf-8'),
                                       ('nt', Wrapper, 'latin-1')):
            stream = kind(io.BytesIO(), encoding='latin-1')
            for other in None, io.StringIO():
                with self.subTest(system, kind=kind.__name__, other=other), mock.patch.object(
                        os, 'name', system), mock.patch.multiple(sys, stdout=stream, stderr=other):
                    streamlite._write_utf8()
                    self.assertEqual(sys.stdout.encoding, encoding)
                    self.assertIs(sys.stderr, other)
                    stream = sys.stdout

    def test_a_401_does_not_say_that_no_key_was_sent_where_a_header_was(self):
        url = self.serve(error_reply(401)).url
        for more, is_told in ([], True), (['-H', 'X-Key=OPENAI_API_KEY'], False):
            with self.subTest(more):
                ran = run_main('--base-url', url, 'hi', *more)
                self.assertFails(ran, 1, '401')
                self.assertEqual('no key was sent' in ran.err, is_told)

    def test_an_answer_without_choices_leaves_nothing_in_a_conversation(self):
        for nothing in DONE, sse(STOP):
            server = self.serve(stream_reply(nothing), stream_reply(HELLO))
            ran = run_main('--chat', input='one\ntwo\n')
            self.assertEqual((ran.code, ran.out), (0, 'Hello world\n'))
            self.assertEqual(self.conversation(server.requests[1]), [('user', 'two')])

    def test_a_rate_is_told_where_it_means_something(self):
        measured = collections.namedtuple('Measured', 'time_to_first_token elapsed')
        for more, first, elapsed, tokens, said in (
                ([], 0.5, 2.5, 101, 'first token after 0.50 s, all after 2.50 s, 50.5 tokens/s'),
                (['--no-stream'], 0.5, 2.5, 101, 'after 2.50 s'),
                ([], 0.5, 2.5, 2, 'first token after 0.50 s, all after 2.50 s, 1.0 tokens/s'),
                ([], 0.5, 2.5, 1, 'first token after 0.50 s, all after 2.50 s'),
                ([], 0.5, 0.75, 9, 'first token after 0.50 s, all after 0.75 s, 36.0 tokens/s'),
                ([], 0.5, 0.5625, 9, 'first token after 0.50 s, all after 0.56 s'),
                ([], None, 2.0, 100, 'first token after 0.00 s, all after 2.00 s, 50.0 tokens/s')):
            with self.subTest(more, first=first, elapsed=elapsed, tokens=tokens):
                args = streamlite._parse_arguments(['--usage', 'hi'] + more)
                usage = streamlite.CompletionUsage(prompt_tokens=3, completion_tokens=tokens)
                self.assertEqual(
                    streamlite._Command(args, None).measures(measured(first, elapsed), usage),
                    '3 + %d tokens; %s' % (tokens, said))

    def test_what_is_piped_in_and_no_utf_8_is_read_as_the_system_writes(self):
        for system, devices, letters, encoding in (
                ('posix', {}, 'caf\xe9', 'latin-1'), ('nt', {2: 'cp850'}, 'caf\xe9', 'cp850'),
                ('nt', {1: 'cp852'}, 'caf\xe9', 'cp852'),
                ('nt', {1: 'cp852', 2: 'cp850'}, 'caf\xe9', 'cp850')):
            told = []
            with self.subTest(encoding), mock.patch.object(os, 'name', system), mock.patch.object(
                    os, 'device_encoding', devices.get):
                text = streamlite._decode_input(letters.encode(encoding), told.append)
            self.assertEqual(text, letters)
            self.assertEqual(len(told), 1)
            self.assertIn(encoding, told[0])

    def test_the_sign_of_waiting_comes_and_goes_once(self):
        for stderr, shown in (Screen(), '...\r   \r'), (io.StringIO(), ''):
            with mock.patch.object(sys, 'stderr', stderr):
                console = streamlite._Console()
                for begin in True, True, False, False:
                    console.wait(begin)
            self.assertEqual(stderr.getvalue(), shown)

    def test_openai_s_own_address_has_a_model_by_default(self):
        command = streamlite._Command(streamlite._parse_arguments(['hi']), None)
        with client(None, base_url=streamlite.DEFAULT_BASE_URL) as command.client:
            self.assertEqual(command.find_model(), 'gpt-4o-mini')

    @unittest.skipUnless(ssl, 'this Python has no ssl')
    def test_a_private_ca_can_be_named(self):
        server = self.enter(Server(stream_reply(HELLO), tls=server_context()))
        url = 'https://localhost:%d/v1' % server.port
        with certificate_file() as path:
            self.assertFails(run_main('hi', OPENAI_BASE_URL=url), 1, 'certificate')
            ran = run_main('--cacert', path, 'hi', OPENAI_BASE_URL=url)
        self.assertEqual(ran, Ran(0, 'Hello world\n', ''))

    def test_a_demonstration_may_name_its_model(self):
        self.assertFails(run_main('--demo', '-m', 'no-such-model', 'hi'), 1, 'no-such-model')

    @unittest.skipIf(os.name == 'nt', 'a console there needs not know escape sequences')
    def test_reasoning_is_dimmed_where_a_terminal_can_and_nobody_objects(self):
        for environment, is_dimmed in (({'TERM': 'xterm'}, True), ({'TERM': 'dumb'}, False),
                                       ({'TERM': 'xterm', 'NO_COLOR': '1'}, False),
                                       ({'TERM': 'dumb', 'NO_COLOR': '1'}, False)):
            with self.subTest(environment), mock.patch.object(sys, 'stderr', Screen()) as screen:
                os.environ.pop('NO_COLOR', None)
                with mock.patch.dict(os.environ, environment):
                    streamlite._Console().reason('hm')
                self.assertEqual(screen.getvalue() != 'hm', is_dimmed)
                self.assertIn('hm', screen.getvalue())

    def test_only_a_refused_key_is_asked_about(self):
        for status, is_asked in (401, True), (403, False), (400, False):
            with self.subTest(status):
                self.serve(error_reply(status))
                ran = run_main('hi')
                self.assertFails(ran, 1, str(status))
                self.assertEqual('is the key' in ran.err, is_asked)

    def test_the_sign_of_waiting_goes_where_nothing_is_said(self):
        self.serve(stream_reply(sse(STOP)))
        self.assertEqual(run_main('hi', stderr=Screen()), Ran(0, '', '...\r   \r'))

    def test_a_model_among_the_options_is_the_model(self):
        server = self.serve()
        for more in [], ['-m', 'other']:
            self.assertEqual(run_main('-o', 'model=mine', 'hi', *more).code, 0)
            self.assertEqual([request.json['model'] for request in server.requests], ['mine'])
            del server.requests[:]

    def test_of_several_answers_the_first_one_s_reasoning_is_shown(self):
        both = delta(reasoning_content='mine ')
        both['choices'] += delta(reasoning_content='not mine', index=1)['choices']
        self.serve(stream_reply(sse(both, delta('Hi'), STOP, delta('No', 'stop', index=1))))
        ran = run_main('hi', stderr=Screen(), NO_COLOR='1')
        self.assertEqual((ran.code, ran.out), (0, 'Hi\n'))
        self.assertIn('mine', ran.err)
        self.assertNotIn('not', ran.err)

    def test_a_whole_reply_has_its_usage_without_asking(self):
        server = self.serve(reply(200, {}, WHOLE))
        self.assertEqual(run_main('--usage', '--no-stream', 'hi').code, 0)
        self.assertNotIn('stream_options', server.requests[0].json)

    def test_without_any_standard_output_it_does_its_work(self):
        server = self.serve()
        ran = self.run_without('stdout', 'hi')
        self.assertEqual((ran, len(server.requests)), (Ran(0, '', ''), 1))

    def test_usage_is_asked_for_only_where_it_is_wanted(self):
        server = self.serve()
        for more, wanted in ([], None), (['--usage'], {'include_usage': True}):
            run_main('hi', *more)
            self.assertEqual(server.requests[-1].json.get('stream_options'), wanted)

    def test_a_lack_of_usage_is_told_to_who_asked_for_it(self):
        measured = collections.namedtuple('Measured', 'time_to_first_token elapsed')(0.5, 2.5)
        for option, is_told in ('--usage', True), ('-v', False):
            args = streamlite._parse_arguments([option, 'hi'])
            said = streamlite._Command(args, None).measures(measured, None)
            self.assertEqual('no usage was sent' in said, is_told)
            self.assertIn('all after 2.50 s', said)


class CommandProcessTest(CommandTestCase):
    """What only a process of its own can show."""

    def test_every_way_to_start_it_does_the_same(self):
        self.serve()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(SCRIPT, os.path.join(folder, 'streamlite.py'))
            for way in (['-B', '-m', 'streamlite'], ['-I', '-S', 'streamlite.py']):
                ran = run_python(*way + ['hi'], cwd=folder)
                self.assertEqual(ran, Ran(0, 'Hello world\n', ''), way)
            self.assertEqual(os.listdir(folder), ['streamlite.py'])

    def test_a_demonstration_needs_neither_key_nor_network(self):
        for name in ('OPENAI_API_KEY', 'OPENAI_MODEL'):
            del os.environ[name]
        os.environ.update(OPENAI_BASE_URL='http://nobody.invalid/v1',
                          HTTP_PROXY='http://nobody.invalid')
        ran = command('--demo', '-o', 'max_tokens=4', 'Explain')
        self.assertEqual((ran.code, len(ran.out.split())), (0, 4))

    def test_what_a_console_cannot_write_becomes_a_question_mark(self):
        chunks = [delta('caf\xe9 \u2192 \ud83d'), delta('\ude00'), STOP]  # an emoji in halves
        self.serve(stream_reply(sse(*map(json.dumps, chunks))))
        for encoding, out in (('ascii', b'caf? ? ?\n'), ('cp1252', b'caf\xe9 ? ?\n')):
            with self.subTest(encoding):
                os.environ['PYTHONIOENCODING'] = encoding
                process = self.start('hi')
                told = [said.replace(b'\r\n', b'\n') for said in process.communicate(timeout=LONG)]
                self.assertEqual(told, [out, b''])
                self.assertEqual(process.returncode, 0)

    def test_a_locale_without_letters_outside_ascii_does_no_harm(self):
        del os.environ['PYTHONIOENCODING']
        server = self.serve(stream_reply(sse(delta('caf\xe9'), STOP)))
        ran = command('-', input='caf\xe9?'.encode(), LC_ALL='C', PYTHONUTF8='0',
                      PYTHONCOERCECLOCALE='0')
        self.assertEqual((ran.code, ran.out[:3], ran.err), (0, 'caf', ''))
        self.assertEqual(server.requests[0].json['messages'][0]['content'], 'caf\xe9?')

    def test_verbose_tells_retries_and_timing(self):
        self.serve(error_reply(503, AGAIN, 'try later'), stream_reply(HELLO))
        ran = command('-v', 'hi')
        self.assertEqual((ran.code, ran.out), (0, 'Hello world\n'))
        self.assertRegex(ran.err, 'attempt 1 failed.*try later')
        self.assertRegex(ran.err, r'first token after \d')

    def start(self, *arguments):
        process = subprocess.Popen(COMMAND + list(arguments), cwd=FOLDER, bufsize=0,
                                   stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def test_a_closed_pipe_ends_it_quietly(self):
        gone = threading.Event()

        def script(peer):
            peer.send(CHUNKED_HEAD + chunked(sse(delta('line 1\n'), done=False), last=False))
            while not peer.wait_closed(0.01):
                peer.send(chunked(sse(delta('line\n'), done=False), last=False))
            gone.set()

        self.serve(script)
        process = self.start('hi')
        self.assertEqual(process.stdout.readline().strip(), b'line 1')
        process.stdout.close()
        self.assertTrue(gone.wait(LONG))
        self.assertEqual((process.wait(LONG), process.stderr.read()), (0, b''))

    def test_a_closed_pipe_turns_no_failure_into_success(self):
        asked, closed = threading.Event(), threading.Event()
        refusal = error_reply(401, {'Connection': 'close'})
        self.serve(lambda peer: (asked.set(), closed.wait(LONG), peer.send(refusal)))
        for arguments in ([], ['--json']):
            with self.subTest(arguments):
                asked.clear()
                closed.clear()
                process = self.start('hi', *arguments)
                self.assertTrue(asked.wait(LONG))
                process.stdout.close()
                closed.set()
                self.assertEqual(process.wait(LONG), 1)
                self.assertNotIn(b'Traceback', process.stderr.read())

    @unittest.skipUnless(os.path.exists('/dev/full'), 'no /dev/full')
    def test_a_full_disk_is_told(self):
        self.serve()
        for arguments in ['hi'], ['--help']:
            with self.subTest(arguments), io.open('/dev/full', 'wb') as full:
                done = subprocess.run(COMMAND + arguments, cwd=FOLDER, stdin=subprocess.DEVNULL,
                                      stdout=full,
                                      stderr=subprocess.PIPE, timeout=LONG)
                self.assertFails(Ran(done.returncode, '', read_pipe(done.stderr)), 1, 'space')

    @unittest.skipUnless(hasattr(os, 'killpg'),
                         'Windows has no SIGINT that can be sent to one process')
    def test_an_interrupt_keeps_what_came(self):
        script, gone = watched()
        self.serve(script)
        process = self.start('hi')
        self.assertEqual(process.stdout.read(3) + process.stdout.read(3), b'Hello ')
        until_asleep(process)
        process.send_signal(signal.SIGINT)
        self.assertTrue(gone.wait(LONG))
        self.assertEqual((process.wait(LONG), process.stdout.read(), process.stderr.read()),
                         (130, b'\n', b''))

    @unittest.skipUnless(hasattr(os, 'killpg'),
                         'Windows has no SIGINT that can be sent to one process')
    def test_an_interrupt_while_it_waits_for_standard_input_ends_it(self):
        process = subprocess.Popen(COMMAND + ['hi'], cwd=FOLDER, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        with process:
            # More than a pipe takes: it reads, and goes on to wait for the rest.
            process.stdin.write(bytes(1 << 20))
            process.stdin.flush()
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(LONG), 130)
            told = process.stdout.read(), process.stderr.read()
            self.assertEqual([text.strip() for text in told], [b'', b''])

    @unittest.skipIf(os.name == 'nt', 'pipes there always wait')
    def test_a_standard_input_in_which_nothing_stands_ready_is_empty(self):
        server = self.serve()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with io.open(writer, 'wb'), io.open(reader, 'rb') as stdin:
            done = subprocess.run(COMMAND + ['why?'], cwd=FOLDER, stdin=stdin, timeout=LONG,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, read_pipe(done.stdout)), (0, 'Hello world\n'))
        self.assertEqual(self.conversation(server.requests[0]), [('user', 'why?')])


def until_asleep(process):
    """Until it waits for something.

    CPython sees a signal that comes just before that only afterwards.
    """
    path = '/proc/%d/stat' % process.pid
    while os.path.exists(path):  # Linux
        with io.open(path) as file:
            if file.read().rpartition(') ')[2][0] != 'R':
                break
        time.sleep(0.001)


class Terminal:
    """The command in a pseudo-terminal: what a person types and sees."""

    def __init__(self, *arguments, columns=80, **environment):
        self.screen, self._seen = '', 0
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
        self.process = subprocess.Popen(
            COMMAND + list(arguments), cwd=FOLDER, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=dict(os.environ, **environment))
        os.close(slave)

    def type(self, text):
        os.write(self._master, text.encode())

    def interrupt(self, text=''):
        """Type `text` and Ctrl-C, once the program waits for a key or for its server."""
        if text:
            self.type(text)
            self.expect(text)
        until_asleep(self.process)
        self.type('\x03')

    def expect(self, text, timeout=LONG):
        """Read until this is on the screen, after what was expected before."""
        end = time.monotonic() + timeout
        while text not in self.screen[self._seen:]:
            if not self._read(end - time.monotonic()):
                raise AssertionError('%r does not come: %r' % (text, self.screen))
        self._seen = self.screen.index(text, self._seen) + len(text)

    def wait(self, timeout=LONG):
        """The exit code."""
        end = time.monotonic() + timeout
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(0, end - time.monotonic()))

    def _read(self, timeout):
        if not select.select([self._master], [], [], max(0, timeout))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux's way to tell the end
            return False
        self.screen += data.decode('utf-8')
        return bool(data)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        SAID.append(self.screen)


@unittest.skipUnless(pty, 'this system has no pseudo-terminals')
class TerminalTest(CommandTestCase):

    def terminal(self, *arguments, **options):
        terminal = Terminal(*arguments, **options)
        self.addCleanup(terminal.close)
        return terminal

    def test_a_sign_shows_that_it_waits_and_goes_with_the_first_token(self):
        more = threading.Event()
        self.serve(lambda peer: (more.wait(LONG), peer.send(stream_reply(HELLO))))
        terminal = self.terminal('hi')
        terminal.expect('...')
        more.set()
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(terminal.screen, '...\r   \rHello world\r\n')

    def test_reasoning_is_dimmed(self):
        self.serve(stream_reply(sse(delta(reasoning_content='I think'), delta('Hello'), STOP)))
        dimmed = self.terminal('hi', TERM='xterm')
        plain = self.terminal('hi', TERM='xterm', NO_COLOR='1')
        for terminal, screen in ((dimmed, '\x1b[2mI think\x1b[0m\r\nHello\r\n'),
                                 (plain, 'I think\r\nHello\r\n')):
            self.assertEqual(terminal.wait(), 0)
            self.assertEqual(terminal.screen, '...\r   \r' + screen)

    def test_nothing_that_the_model_says_acts_on_the_terminal(self):
        evil = ('\x1b[2Jred\x1b[31m', '\x1b]0;title\x07', '\x1b]52;c;aGk=\x07', '\x9b31m\x90q\x9c',
                '\x08\x7f\r\x00\x0b\x0c', 'a\tb')
        chunks = [delta(reasoning_content=evil[0])] + list(map(delta, evil)) + [STOP]
        self.serve(stream_reply(sse(*chunks)))
        terminal = self.terminal('hi', NO_COLOR='1')
        self.assertEqual(terminal.wait(), 0)
        shown = terminal.screen.replace('...\r   \r', '', 1).replace('\r\n', '\n')
        self.assertEqual(shown, '[2Jred[31m\n[2Jred[31m]0;title]52;c;aGk=31mqa\tb\n')

    def test_an_interrupt_keeps_what_came_on_the_screen(self):
        script, gone = watched()
        self.serve(script)
        terminal = self.terminal('hi')
        terminal.expect('Hello ')
        terminal.interrupt()
        self.assertEqual(terminal.wait(), 130)
        self.assertTrue(gone.wait(PROMPT))
        self.assertEqual(terminal.screen.replace('^C', ''), '...\r   \rHello \r\n')

    def test_a_log_line_has_a_line_of_its_own(self):
        def script(peer):
            peer.send(CHUNKED_HEAD + chunked(sse(delta('Hello '), done=False), last=False))
            peer.close()

        self.serve(script)
        terminal = self.terminal('-v', 'hi')
        terminal.wait()
        self.assertIn('Hello \r\nstreamlite: stream from', terminal.screen)

    def test_without_a_prompt_it_does_not_wait_but_says_how_it_is_used(self):
        terminal = self.terminal()
        terminal.expect('usage:')
        self.assertEqual(terminal.wait(), 2)

    def test_a_conversation(self):
        slow, stopped = watched()
        server = self.serve(stream_reply(HELLO), stream_reply(HELLO), slow, stream_reply(HELLO))
        terminal = self.terminal('--chat', columns=40, TERM='dumb')
        terminal.expect('> ')
        terminal.type('one\n')
        terminal.expect('Hello world\r\n')
        terminal.expect('> ')
        terminal.type('"""two\n')
        terminal.expect('. ')
        terminal.type('lines"""\n')
        terminal.expect('Hello world\r\n')
        terminal.expect('> ')
        terminal.type('three\n')
        terminal.expect('Hello ')
        terminal.interrupt()  # stops the answer
        terminal.expect('> ')
        self.assertTrue(stopped.wait(PROMPT))
        terminal.interrupt('never sent')  # clears the line
        terminal.expect('> ')
        terminal.type('/nonsense\n')
        terminal.expect('/exit')
        terminal.expect('> ')
        terminal.type('four\n')
        terminal.expect('Hello world\r\n')
        terminal.expect('> ')
        terminal.type('\x04')  # the end of the input
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(self.conversation(server.requests[-1]), [
            ('user', 'one'), ('assistant', 'Hello world'), ('user', 'two\nlines'),
            ('assistant', 'Hello world'),
            ('user', 'three'), ('assistant', 'Hello '), ('user', 'four')])
        self.assertNotIn('Traceback', terminal.screen)

    def test_two_interrupts_leave_a_conversation(self):
        terminal = self.terminal('--chat', TERM='dumb', OPENAI_BASE_URL='http://127.0.0.1:9')
        terminal.expect('> ')
        terminal.interrupt()
        terminal.expect('> ')
        terminal.interrupt()
        self.assertEqual(terminal.wait(), 130)
        self.assertNotIn('Traceback', terminal.screen)

    def test_a_conversation_names_the_model_that_the_server_has(self):
        del os.environ['OPENAI_MODEL']
        server = self.serve(reply(200, {}, {'data': [{'id': 'the-only-one'}]}), stream_reply(HELLO))
        terminal = self.terminal('--chat', TERM='dumb')
        terminal.expect('the-only-one answers; exit or Ctrl-D leaves')
        terminal.expect('> ')
        terminal.type('one\n')
        terminal.expect('Hello world\r\n')
        terminal.expect('> ')
        terminal.type('exit\n')
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(server.requests[1].json['model'], 'the-only-one')

    def screen(self, *texts):
        events = [delta(**text) for text in texts] + [STOP]
        self.serve(stream_reply(sse(*events)))
        terminal = self.terminal('hi', NO_COLOR='1')
        self.assertEqual(terminal.wait(), 0)
        return terminal.screen.replace('...\r   \r', '', 1).replace('\r\n', '\n')

    def test_no_control_and_no_turn_of_the_writing_reaches_the_terminal(self):
        turns = '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'
        controls = ''.join(map(chr, range(32))) + '\x7f' + ''.join(map(chr, range(0x80, 0xa0)))
        shown = self.screen({'reasoning_content': 'r\u202ex' + turns},
                            {'content': 'a\u202eb\u2066c' + turns},
                            {'content': '\U0001f468\u200d\U0001f469'},
                            {'content': 'd' + controls + 'e'})
        self.assertEqual(shown, 'rx\nabc\U0001f468\u200d\U0001f469d\t\ne\n')

    def test_a_demonstration_without_a_prompt_serves_until_it_is_interrupted(self):
        terminal = self.terminal('--demo', OPENAI_BASE_URL='http://nobody.invalid')
        terminal.expect('Ctrl-C')
        address = re.search('OPENAI_BASE_URL=(http://127.0.0.1:[0-9]+/v1)', terminal.screen)
        with streamlite.OpenAI(base_url=address.group(1), api_key='any') as asker:
            self.assertIn('demo', text_of(ask(asker, max_tokens=5).collect()))
        terminal.expect('POST /v1/chat/completions')
        terminal.expect('200')
        terminal.interrupt()
        self.assertEqual(terminal.wait(), 130)
        self.assertNotIn('Traceback', terminal.screen)

    @unittest.skipUnless(readline and 'libedit' not in (readline.__doc__ or ''),
                         'this Python has no GNU readline')
    def test_a_paste_of_several_lines_is_one_message(self):
        server = self.serve()
        terminal = self.terminal('--chat', TERM='xterm')
        terminal.expect('m answers; exit')
        terminal.expect('\x1b[?2004h')  # bracketed paste is on
        terminal.type('\x1b[200~one\ntwo\x1b[201~')
        terminal.type('\n')
        terminal.expect('Hello world')
        terminal.expect('> ')
        terminal.type('exit\n')
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual([self.conversation(request) for request in server.requests],
                         [[('user', 'one\ntwo')]])


# --------------------------------------------------------------------------------------------------
# Programs written for the SDK: their import line is changed, and nothing else
# --------------------------------------------------------------------------------------------------

PROGRAMS = {
    'print every delta': """
from openai import OpenAI
client = OpenAI()
stream = client.chat.completions.create(model='gpt-4o', messages=messages, stream=True)
for chunk in stream:
    delta = chunk.choices[0].delta
    if delta.content:
        print(delta.content, end='', flush=True)
""",
    'keep them, where usage may come': """
from openai import OpenAI
client = OpenAI()
stream = client.chat.completions.create(model='gpt-4o', messages=messages, stream=True,
                                        stream_options={'include_usage': True})
parts = []
for chunk in stream:
    if chunk.usage:
        counted = chunk.usage
        assert counted.prompt_tokens + counted.completion_tokens == counted.total_tokens
    elif chunk.choices and chunk.choices[0].delta.content:
        parts.append(chunk.choices[0].delta.content)
assert counted
print(''.join(parts))
""",
    'put tool calls together by hand': """
import json
from openai import OpenAI
client = OpenAI()
stream = client.chat.completions.create(model='gpt-4o', messages=messages, tools=tools, stream=True)
calls = {}
for chunk in stream:
    if not chunk.choices:
        continue
    for call in chunk.choices[0].delta.tool_calls or []:
        if call.id:
            calls[call.index] = {'name': call.function.name, 'arguments': ''}
        if call.function.arguments:
            calls[call.index]['arguments'] += call.function.arguments
for call in calls.values():
    print(call['name'], json.loads(call['arguments'])['location'])
""",
    'say what went wrong': """
from openai import OpenAI, APIConnectionError, APITimeoutError
client = OpenAI()
def ask(model):
    try:
        stream = client.chat.completions.create(model=model, messages=messages, stream=True)
        return ''.join(chunk.choices[0].delta.content or '' for chunk in stream)
    except APITimeoutError:
        return 'too slow'
    except APIConnectionError:
        return 'lost'
print(ask('demo-lost'))
""",
    'try again': """
from openai import OpenAI, APIError, APIConnectionError
client = OpenAI()
def ask(models):
    for model in models:
        try:
            stream = client.chat.completions.create(model=model, messages=messages, stream=True)
            return ''.join(chunk.choices[0].delta.content or '' for chunk in stream
                           if chunk.choices)
        except APIConnectionError:
            print('lost')
        except APIError as error:
            print('refused: %s' % error)
print(ask(['demo-lost', 'demo-error', 'demo']))
""",
    'without blocking': """
import asyncio
from openai import AsyncOpenAI
client = AsyncOpenAI()
async def ask(prompt: str):
    messages = [{'role': 'user', 'content': prompt}]
    stream = await client.chat.completions.create(model='gpt-4o', messages=messages, stream=True)
    text = ''
    async for chunk in stream:
        delta = chunk.choices[0].delta
        if delta.content:
            text += delta.content
    return text
print(asyncio.run(ask('Hello')))
""",
}


class SDKProgramTest(ProgramTestCase):

    def test_programs_written_for_the_sdk_run(self):
        messages = [{'role': 'user', 'content': 'Hello'}]
        with streamlite.OpenAI() as client:
            answer = text_of(ask(client, messages=messages, stream=False))
        wanted = {'print every delta': answer, 'keep them, where usage may come': answer + '\n',
                  'without blocking': answer + '\n',
                  'put tool calls together by hand': 'get_weather Hello\n',
                  'say what went wrong': 'lost\n',
                  'try again': 'lost\nrefused: The demo model fails here.\n' + answer + '\n'}
        for name, source in PROGRAMS.items():
            with self.subTest(name):
                source = source.replace('from openai', 'from ' + streamlite.__name__)
                names = {'messages': messages, 'tools': [WEATHER]}
                self.assertEqual(self.run_program(source, names), wanted[name])


class TypesTest(TestCase):
    """What programs import from the SDK's types, and write into annotations."""

    # Plain dicts; the SDK's are typed dictionaries, which programs call to make one.
    parameters = """
        ChatCompletionToolParam ChatCompletionUserMessageParam ChatCompletionSystemMessageParam
        ChatCompletionAssistantMessageParam ChatCompletionToolMessageParam
        ChatCompletionDeveloperMessageParam ChatCompletionFunctionMessageParam
        ChatCompletionContentPartTextParam ChatCompletionContentPartImageParam
        ChatCompletionContentPartInputAudioParam ChatCompletionMessageToolCallParam
        ChatCompletionNamedToolChoiceParam ChatCompletionStreamOptionsParam
        """.split()
    others = """
        ChatCompletionMessageParam ChatCompletionContentPartParam
        ChatCompletionToolChoiceOptionParam ChatCompletion ChatCompletionChunk
        ChatCompletionMessage ChatCompletionMessageToolCall
        ChatCompletionMessageFunctionToolCall Choice ChoiceDelta ChoiceDeltaToolCall
        ChoiceDeltaToolCallFunction Function CompletionUsage CompletionTokensDetails
        PromptTokensDetails ChoiceLogprobs ChatCompletionTokenLogprob Model
        """.split()

    def test_every_name_may_stand_in_an_annotation_and_parameters_are_made_as_dicts(self):
        for name in self.parameters + self.others:
            with self.subTest(name):
                kind = getattr(streamlite, name)
                self.assertTrue(typing.Optional[typing.List[kind]])
                self.assertTrue(typing.Union[kind, None])
                if name in self.parameters:
                    self.assertEqual(kind(role='user', content='hi'),
                                     {'role': 'user', 'content': 'hi'})

    def test_a_tool_call_has_both_of_its_names(self):
        kind = streamlite.ChatCompletionMessageFunctionToolCall
        self.assertIs(kind, streamlite.ChatCompletionMessageToolCall)
        made = kind(id='a', type='function',
                    function=streamlite.Function(name='f', arguments='{}'))
        self.assertEqual(made.to_dict(), {'id': 'a', 'type': 'function',
                                          'function': {'name': 'f', 'arguments': '{}'}})

    @unittest.skipIf(sys.version_info < (3, 7), 'a class can be subscripted from 3.7 on')
    def test_streams_may_be_subscripted(self):
        def show(stream: streamlite.Stream[streamlite.ChatCompletionChunk]) -> str:
            return ''.join(stream.text())

        self.assertTrue(typing.Optional[streamlite.AsyncStream[streamlite.ChatCompletionChunk]])
        with served() as (_, asker):
            self.assertEqual(show(ask(asker)), 'Hello world')

    def test_an_editor_is_told_the_common_arguments(self):
        common = ('messages model stream temperature max_tokens tools tool_choice response_format '
                  'top_p stream_options n stop timeout extra_body').split()
        for kind in streamlite.OpenAI, streamlite.AsyncOpenAI:
            create = kind(api_key=KEY).chat.completions.create
            self.assertLessEqual(set(common), set(inspect.signature(create).parameters))

    def test_every_name_that_is_offered_is_there(self):
        missing = [name for name in streamlite.__all__ if name not in vars(streamlite)]
        self.assertEqual(missing, [])
        self.assertEqual(len(streamlite.__all__), len(set(streamlite.__all__)))


class RefusedTest(TestCase):
    """What is not offered says what to do instead."""

    def assertTells(self, work, pattern, *kinds):
        with self.assertRaises(kinds or (TypeError, AttributeError)) as caught:
            work()
        self.assertRegex(str(caught.exception), pattern)
        return caught.exception

    def test_what_is_not_offered_says_what_is(self):
        class Model:
            pass

        parsed = {'model': 'm', 'messages': [], 'response_format': Model}
        with client(None, base_url='http://nobody.invalid') as asker:
            completions = asker.chat.completions
            for name, work, pattern in (
                    ('client.beta', lambda: asker.beta, r'json\.loads|response_format'),
                    ('parse of old', lambda: asker.beta.chat.completions.parse(),
                     r'json\.loads|response_format'),
                    ('parse', lambda: completions.parse(**parsed), r'json\.loads'),
                    ('a class as the format', lambda: completions.create(**parsed),
                     r'json\.loads'),
                    ('stream()', lambda: completions.stream(model='m', messages=[]),
                     r'create\(.*stream=True'),
                    ('raw', lambda: completions.with_raw_response.create(), 'response'),
                    ('raw client', lambda: asker.with_raw_response, 'response'),
                    ('chat.create', lambda: asker.chat.create(model='m'), 'completions'),
                    ('embeddings', lambda: asker.embeddings.create(input='x', model='m'),
                     'chat completions'),
                    ('responses', lambda: asker.responses.create(input='x', model='m'),
                     r'chat\.completions\.create'),
                    ('an HTTP client',
                     lambda: streamlite.OpenAI(api_key=KEY, http_client=object()),
                     'ssl_context|handlers')):
                with self.subTest(name):
                    self.assertTells(work, pattern)
        asker = streamlite.AsyncOpenAI(api_key=KEY, base_url='http://nobody.invalid')
        for work in lambda: asker.beta, lambda: asker.chat.completions.parse:
            self.assertTells(work, r'json\.loads|response_format')

    @unittest.skipIf(sys.version_info < (3, 7), 'a module has a __getattr__ from 3.7 on')
    def test_calls_at_the_top_of_the_module_say_what_to_make(self):
        for name, pattern in (('chat', r'OpenAI\('), ('api_key', r'OpenAI\('),
                              ('base_url', r'OpenAI\('), ('models', r'OpenAI\('),
                              ('embeddings', 'chat completions'), ('types', 'import'),
                              ('no_such_name', 'no_such_name')):
            with self.subTest(name):
                error = self.assertTells(lambda: getattr(streamlite, name), pattern, AttributeError)
                self.assertIn(name, str(error))
        self.assertFalse(hasattr(streamlite, 'types'))
        with self.assertRaises(ImportError):
            exec('from %s import no_such_name' % streamlite.__name__)
        self.addCleanup(vars(streamlite).pop, 'api_key', None)
        streamlite.api_key = KEY
        self.assertTells(lambda: streamlite.chat.completions, r'OpenAI\(api_key', AttributeError)


class SlipTest(AsyncTestCase):
    """The commonest slips end in an error that names the remedy."""

    assertTells = RefusedTest.assertTells

    def test_a_whole_reply_is_not_iterated_for_chunks(self):
        def use_chunks():
            for chunk in whole:
                print(chunk.choices[0].delta.content)

        async def use_chunks_later():
            async for _ in whole:
                pass

        with served(reply(200, {}, WHOLE)) as (_, asker):
            whole = ask(asker, stream=False)
        self.assertTells(use_chunks, 'stream=True')
        self.assertTells(lambda: asyncio_run(use_chunks_later()), 'stream=True')

    def test_a_stream_is_no_whole_reply_and_has_deltas(self):
        with served(stream_reply(HELLO), reply(200, {}, WHOLE)) as (_, asker):
            with ask(asker) as stream:
                chunk = next(stream)
                self.assertFalse(hasattr(stream, 'choices'))
                for work, pattern in (
                        (lambda: stream.choices[0].message.content, r'collect\(\)|stream=False'),
                        (lambda: stream.usage, r'collect\(\)|completion'),
                        (lambda: stream[0], 'iterate|for |subscriptable|indexing')):
                    self.assertTells(work, pattern)
                self.assertText(stream, 'Hello world')
            whole = ask(asker, stream=False)
        self.assertIsNone(getattr(chunk.choices[0], 'message', None))
        for work, pattern in (
                (lambda: chunk.choices[0].message, 'delta'),
                (lambda: whole.choices[0].delta, 'message'),
                (lambda: chunk.choices[0].text, 'text'),
                (lambda: chunk['choices'], r'\.choices|to_dict'),
                (lambda: whole['choices'], r'\.choices|to_dict'),
                (lambda: chunk.choices[0].delta['content'], r'\.content|to_dict')):
            self.assertTells(work, pattern)

    def test_a_stream_is_not_read_after_its_block(self):
        begins = stall(begun(HEL))
        reads = list, next, streamlite.Stream.collect, lambda stream: list(stream.text())
        with served(*[begins] * len(reads) + [stream_reply(HELLO)]) as (_, asker):
            for read in reads:
                with ask(asker) as stream:
                    next(stream)
                error = self.assertTells(lambda: read(stream), 'with|closed',
                                         streamlite.OpenAIError)
                self.assertNotIsInstance(error, streamlite.APIConnectionError)
                self.assertEqual((text_of(error.partial), text_of(stream.completion)),
                                 ('Hel', 'Hel'))
            with ask(asker) as stream:
                self.assertEqual(len(list(stream)), 4)
            self.assertEqual(list(stream), [], 'what was read to its end is no slip')
            self.assertText(stream, 'Hello world')

        async def main(server):
            async with async_client(server) as asker:
                async with await ask(asker) as stream:
                    await stream.__anext__()
                with self.assertRaises(streamlite.OpenAIError) as caught:
                    await gather_text(stream)
                self.assertNotIsInstance(caught.exception, streamlite.APIConnectionError)
                self.assertRegex(str(caught.exception), 'with|closed')
                async with await ask(asker) as stream:
                    await gather_text(stream)
                self.assertEqual(await gather_text(stream), '')
                await stream.aclose()

        with Server(begins, stream_reply(HELLO)) as server:
            self.run_async(main(server))

    def test_an_await_that_was_forgotten(self):
        async def main(server):
            made = []

            def create(**options):
                made.append(ask(asker, **options))
                return made[-1]

            async def iterate():
                async for _ in create():
                    pass

            async def enter():
                async with create():
                    pass

            async with async_client(server) as asker:
                self.assertTells(lambda: list(create()), 'await|coroutine')
                self.assertTells(lambda: create(stream=False).choices, 'await|coroutine')
                for wrong in iterate, enter:
                    with self.assertRaises((TypeError, AttributeError)) as caught:
                        await wrong()
                    self.assertRegex(str(caught.exception), 'await|coroutine|__ae')
                for coroutine in made:
                    coroutine.close()
            self.assertEqual(server.requests, [])

        with Server() as server:
            asyncio_run(main(server))  # the debug mode of 3.6 makes a coroutine iterable

    def test_an_async_that_is_missing_or_too_much(self):
        def use_for(stream):
            for _ in stream:
                pass

        def use_with(stream):
            with stream:
                pass

        async def iterate(stream):
            async for _ in stream:
                pass

        async def main(server):
            async with async_client(server) as asker, await ask(asker) as stream:
                self.assertTells(lambda: use_for(stream), 'async for', TypeError)
                self.assertTells(lambda: next(stream), 'async|iterator', TypeError)
                self.assertTells(lambda: use_with(stream), 'async with|context manager|__enter__')
                self.assertTells(lambda: stream.choices, r'collect\(\)|stream=False')
                self.assertEqual(await gather_text(stream), 'Hello world')

        with served() as (server, asker), ask(asker) as stream:
            self.run_async(main(server))
            self.assertTells(lambda: asyncio_run(iterate(stream)), 'AsyncOpenAI|Stream', TypeError)


# --------------------------------------------------------------------------------------------------
# README: what it shows and what it says is so
# --------------------------------------------------------------------------------------------------

README = read_file(os.path.join(FOLDER, 'README.md'))
if not README.startswith('# streamlite\n'):
    README = ''  # of the project that holds a copy
Block = collections.namedtuple('Block', 'language text line')
BLOCKS = [Block(match.group(1), match.group(2), README[:match.start()].count('\n') + 2)
          for match in re.finditer(r'^```(\w+)\n(.*?)^```$', README, re.M | re.S)]
FILES = {block.text.split('\n')[0][2:]: block.text for block in BLOCKS
         if re.match(r'# \w+\.py\n', block.text)}


@unittest.skipUnless(README, 'no README.md of streamlite beside it')
class ReadmeTest(ProgramTestCase):

    def test_the_recipes_run_and_print_what_it_says(self):
        handlers, level = logging.root.handlers[:], logging.getLogger('streamlite').level
        names = {}
        try:
            for block, following in zip(BLOCKS, BLOCKS[1:]):
                if block.language == 'python' and block.text not in FILES.values():
                    with self.subTest(line=block.line):
                        output = self.run_program('\n' * (block.line - 1) + block.text, names)
                        if following.language == 'text':
                            # ... stands for anything
                            pattern = '.*'.join(map(re.escape, following.text.split('...')))
                            told = re.match(pattern + r'\Z', output, re.S)
                            self.assertTrue(told, '%r\nis not\n%r' % (output, following.text))
        finally:
            logging.root.handlers[:] = handlers
            logging.getLogger('streamlite').setLevel(level)
            logging.getLogger('streamlite').propagate = False
            names.clear()

    def test_it_shows_the_help_as_it_is(self):
        shown, = [block.text for block in BLOCKS if block.text.startswith('usage:')]
        self.assertEqual(shown, run_main('--help', PYTHONIOENCODING='utf-8').out)

    def test_its_links_lead_somewhere(self):
        headings = re.findall('^#+ (.*)', README, re.M)
        anchors = {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-')
                   for heading in headings}
        self.assertLessEqual(set(re.findall(r'\]\(#(.*?)\)', README)), anchors)

    def test_it_tells_the_limits_as_they_are(self):
        units = {'': 1, 's': 1, 'KiB': 1 << 10, 'MiB': 1 << 20, 'GiB': 1 << 30}
        rows = re.findall(r'^\| `(MAX_\w+)` \| (\d+) ?(\w*) \|', README, re.M)
        self.assertEqual({name: int(number) * units[unit] for name, number, unit in rows}, {
            name: value for name, value in vars(streamlite).items() if name.startswith('MAX_')})


class RelayRecipeTest(ProgramTestCase):
    """The programs of the README that stand between a browser and a server."""

    def start(self, name, *arguments, **environment):
        """Run one beside this process; returns its address."""
        if name not in FILES:
            self.skipTest('no README.md of streamlite beside it')
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        write_file(os.path.join(folder, name), FILES[name])
        environment.update(PYTHONPATH=FOLDER, PYTHONIOENCODING='utf-8')
        process = subprocess.Popen([sys.executable, name, '0'] + list(arguments), cwd=folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=dict(os.environ, **environment))

        def stop():
            process.terminate()
            output, errors = map(read_pipe, process.communicate())
            SAID.append(output + errors)
            self.assertNotIn('Traceback', errors)

        self.addCleanup(stop)
        return process.stdout.readline().decode('utf-8').strip()

    def test_the_standard_library_relay_shows_tokens_as_they_come(self):
        text = 'two\nlines \u2028 "</script>" \U0001f600'
        stream = sse(delta(text), STOP)
        last, gone = watched()
        server = self.serve(stream_reply(stream), error_reply(401, message='wrong key ' + KEY),
                            cut(WAITING), last)
        address = self.start('relay.py', OPENAI_BASE_URL=server.url)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def events(prompt='hi'):
            with direct.open(address + 'stream?prompt=' + prompt, timeout=LONG) as response:
                self.assertEqual(response.headers['content-type'], 'text/event-stream')
                return streamlite.SSEDecoder().feed(response.read())

        with direct.open(address, timeout=LONG) as response:
            page = response.read().decode()
        self.assertIn('new EventSource', page)
        self.assertLessEqual(len(page.splitlines()), 30)
        first, _, done = events('a%20b%26c')
        self.assertEqual(json.loads(first.data)['choices'][0]['delta']['content'], text)
        self.assertEqual(done.data, '[DONE]')
        self.assertEqual(server.requests[0].json['messages'],
                         [{'role': 'user', 'content': 'a b&c'}])
        refused, = events()
        self.assertEqual(refused.event, 'error')
        self.assertIn('AuthenticationError', json.loads(refused.data)['error']['message'])
        *_, broken = events()
        self.assertEqual(broken.event, 'error')
        response = direct.open(address + 'stream?prompt=hi', timeout=LONG)
        self.assertIn(b'Hel', response.readline())  # while the model is still at it
        response.close()
        self.assertTrue(gone.wait(PROMPT),
                        'and it is told when the browser goes away, though it is silent')

    def test_the_recording_relay_keeps_every_stream_however_it_ends(self):
        try:
            import sqlite3
        except ImportError:
            self.skipTest('this Python has no sqlite3')
        usage = dict(delta(), choices=[],
                     usage={'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12})
        whole = stream_reply(sse(delta('Hello'), STOP, usage))
        last, gone = watched()
        server = self.serve(whole, error_reply(401), cut(WAITING), last)
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        database = os.path.join(folder, 'streams.db')
        address = self.start('recording_relay.py', database, OPENAI_BASE_URL=server.url)
        with streamlite.OpenAI(base_url=address, api_key='', max_retries=0) as client:
            completion = ask(client, model='one', temperature=0).collect()
            self.assertEqual((text_of(completion), completion.usage.total_tokens), ('Hello', 12))
            self.assertEqual(server.requests[0].json['temperature'], 0)
            with self.assertRaises(streamlite.InternalServerError):
                ask(client, model='two')
            with self.assertRaises(streamlite.APIError) as caught:
                list(ask(client, model='three'))
            self.assertEqual(text_of(caught.exception.partial), 'Hello ')
            with ask(client, model='four') as stream:
                next(stream)
                next(stream)
            self.assertTrue(gone.wait(PROMPT))

        def recorded():
            with contextlib.closing(sqlite3.connect(database)) as connection:
                return connection.execute('SELECT * FROM streams ORDER BY model').fetchall()

        self.wait_until(lambda: len(recorded()) == 4)
        rows = recorded()
        self.assertEqual([row[1:6] for row in rows], [
            ('four', 'the client left', 'Hello ', None, None), ('one', 'whole', 'Hello', 5, 7),
            ('three', 'APIConnectionError', 'Hello ', None, None),
            ('two', 'AuthenticationError', None, None, None)])
        first, last = rows[1][6:]
        self.assertTrue(0 <= first <= last < PROMPT)

    def test_the_fastapi_relay_streams_and_tells_what_it_could_not_ask(self):
        if 'fastapi_relay.py' not in FILES:
            self.skipTest('no README.md of streamlite beside it')
        try:
            import fastapi  # noqa: F401
        except ImportError:
            self.skipTest('FastAPI is not installed')
        names = {'__name__': 'fastapi_relay'}
        exec(FILES['fastapi_relay.py'], names)

        async def get(query):
            sent, received = [], [{'type': 'http.request', 'body': b'', 'more_body': False}]

            async def receive():
                if not received:
                    await asyncio.sleep(60)
                return received.pop()

            async def send(message):
                sent.append(message)

            scope = {'type': 'http', 'asgi': {'version': '3.0', 'spec_version': '2.3'},
                     'http_version': '1.1',
                     'method': 'GET', 'scheme': 'http', 'path': '/stream', 'raw_path': b'/stream',
                     'root_path': '',
                     'query_string': query, 'headers': [], 'client': ('127.0.0.1', 1),
                     'server': ('127.0.0.1', 2)}
            await asyncio.wait_for(names['app'](scope, receive, send), LONG)
            return sent[0]['status'], b''.join(message.get('body', b'') for message in sent[1:])

        status, body = asyncio_run(get(b'prompt=hi'))
        events = streamlite.SSEDecoder().feed(body)
        self.assertEqual((status, events[-1].data), (200, '[DONE]'))
        self.assertGreater(len(events), 10)
        names['model'] = 'no-such-model'
        status, body = asyncio_run(get(b'prompt=hi'))
        self.assertEqual(status, 502)
        self.assertIn('NotFoundError', json.loads(body.decode())['detail'])
        asyncio_run(names['client'].close())

    def test_the_recording_relay_records_no_failure_as_whole(self):
        try:
            import sqlite3
        except ImportError:
            self.skipTest('this Python has no sqlite3')
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        database = os.path.join(folder, 'streams.db')
        address = self.start('recording_relay.py', database, OPENAI_BASE_URL=self.server.base_url)
        parts = urllib.parse.urlsplit(address)
        whole = json.dumps({'model': 'demo', 'messages': chat('hi')}).encode()
        nested = b'[' * 50000 + b']' * 50000
        bodies = [b'[' * 100000, b'{"a":' * 100000, b'{"model": "m", "messages": %s}' % nested,
                  b'[]', b'7', b'{"model": "demo", "messages": 7}', whole]
        for body in bodies:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LONG)
            self.addCleanup(connection.close)
            connection.request('POST', '/v1/chat/completions', body)
            status = None
            with contextlib.suppress(http.client.HTTPException, OSError):
                answer = connection.getresponse()
                status = answer.status
                answer.read()
            self.assertEqual(status == 200, body is whole)
            connection.close()

        def recorded():
            with contextlib.suppress(sqlite3.OperationalError):
                with contextlib.closing(sqlite3.connect(database)) as connection:
                    return connection.execute('SELECT model, ended FROM streams').fetchall()
            return []

        self.wait_until(lambda: ('demo', 'whole') in recorded())
        self.assertEqual([row for row in recorded() if row[1] == 'whole'], [('demo', 'whole')])


class ApproverTest(TestCase):
    """What is told to whoever must approve the file is what the file does."""

    source = read_file(SCRIPT)

    by_urllib = {'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'REQUEST_METHOD'}

    # What stands for a name where the environment is read: a short name for the function; members
    # of the two tables; and what --key-env and -H name.
    variables = {'environ.get', 'name', 'variable', 'value', 'args.key_env'}

    def test_the_environment_variables_that_it_reads_are_the_ones_that_it_names(self):
        table = self.source.partition('    environment ')[2].partition('    files ')[0]
        named = set(re.findall(r'\b[A-Z][A-Z_]{3,}\b', table))
        read = set()
        uses = (r'environ\.get\(([^(),]+)|environ\[([^\]]+)\]|getenv\(([^(),]+)'
                r'|os\.(environ\.get)\n|(\S+) (?:not )?in os\.environ\b')
        read.update(re.findall(r'\benvironment\("([A-Z_]+)"\)', self.source))
        for subject in map(''.join, re.findall(uses, self.source)):
            if subject.startswith('"'):
                read.add(ast.literal_eval(subject))
            else:
                self.assertIn(subject, self.variables, 'a use that this test does not know')
        self.assertEqual(len(re.findall(r'\benviron\b|getenv', self.source)),
                         len(re.findall(uses, self.source)),
                         'a use that this test does not know')
        for table in r'_CA_VARIABLES = \(([^)]*)\)', r'for variable, name in \(([^:]*)\):':
            read.update(re.findall(r'"([A-Z_]+)"', re.search(table, self.source).group(1)))
        self.assertEqual(read | self.by_urllib, named)
        if README:
            told = re.search(r'\| environment variable \|.*?\n\n', README, re.S).group()
            self.assertEqual(set(re.findall(r'`([A-Z][A-Z_]{3,})`', told)), named)

    def test_it_imports_the_standard_library_and_runs_no_code_but_its_own(self):
        tree = ast.parse(self.source)
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split('.')[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                self.assertEqual(node.level, 0)
                modules.add(node.module.split('.')[0])
        known = getattr(sys, 'stdlib_module_names', None)  # from Python 3.10 on
        if known is not None:
            self.assertLessEqual(modules, known)
        self.assertEqual(modules & {'ctypes', 'hashlib', 'marshal', 'multiprocessing', 'pickle',
                                    'subprocess'}, set())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.assertEqual(names & {'eval', 'exec', 'compile', '__import__', 'open'}, set())

    @unittest.skipUnless(README, 'README.md is not here')
    def test_the_limits_are_those_that_the_readme_names(self):
        units = {'': 1, ' s': 1, ' KiB': 1 << 10, ' MiB': 1 << 20, ' GiB': 1 << 30}
        rows = re.findall(r'^\| `([A-Z_]+)` \| (\d+)( s| [KMG]iB|) \|', README, re.M)
        told = {name: int(value) * units[unit] for name, value, unit in rows}
        self.assertEqual(told, {name: getattr(streamlite, name) for name in told})
        self.assertEqual({name for name in vars(streamlite) if name.startswith('MAX_')},
                         {name for name in told if name.startswith('MAX_')})

    def test_the_defaults_are_those_of_the_sdk(self):
        with streamlite.OpenAI(api_key=KEY) as asker:
            self.assertEqual((asker.base_url, asker.max_retries, asker.timeout),
                             ('https://api.openai.com/v1', 2, (5.0, 600.0)))


if __name__ == '__main__':
    if sys.argv[1:2] == [OTHER_PROCESS]:
        run_for_another_process(sys.argv[2:])
    elif len(sys.argv) > 1:
        unittest.main(testRunner=Runner)
    else:
        run_in_processes()
