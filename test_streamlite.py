"""Tests of streamlite: `python3 test_streamlite.py` or `python3 -m unittest`, on Python 3.6 and newer.

They need the standard library, streamlite.py beside this file and the loopback interface, nothing else.
Every server in here is a real socket that does what a script says, byte by byte:

    with Server(reply(503), stream_reply(HELLO)) as server: # a script for each request, the last one for all further
        stream = ask(client(server, max_retries=1))
        self.assertText(stream.collect(), 'Hello world')
    self.assertEqual(len(server.requests), 2)

A script is bytes to send (the connection is closed after a head with "Connection: close", else kept), or a function of
a `Peer`. No test sleeps: scripts wait for an Event or for `peer.wait_closed()`.
"""
import ast
import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import copy
import email.utils
import gc
import io
import itertools
import json
import logging
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
import unittest
import urllib.request
import warnings
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
    import ssl
except ImportError:
    ssl = None

import streamlite  # the one line to change for a vendored copy: from mypackage import streamlite

FOLDER = os.path.dirname(os.path.abspath(streamlite.__file__))
# Whatever must never be shown holds the mark; the end of every test looks for it in all that was said.
MARK = 'never-shown'
KEY = 'sk-' + MARK + '-key'
PASSWORD = 'pw-' + MARK
SAID = []  # every error's traceback, repr and attributes, and every log line, of the running test


# ---- what servers say ----------------------------------------------------------------------------

def delta(content=None, finish_reason=None, index=0, **fields):
    """A chunk, as a dict, with one choice; further fields go into its delta."""
    if content is not None:
        fields['content'] = content
    choice = {'index': index, 'delta': fields, 'finish_reason': finish_reason}
    return {'id': 'chatcmpl-1', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm', 'choices': [choice]}


def sse(*objects, done=True):
    """The bytes of an event stream: a dict becomes JSON, a str is an event's data, bytes are the stream as it is."""
    parts = []
    for item in objects + (('[DONE]',) if done else ()):
        if isinstance(item, dict):
            item = json.dumps(item, ensure_ascii=False)
        parts.append(item if isinstance(item, bytes) else b'data: %s\n\n' % item.encode())
    return b''.join(parts)


HELLO = sse(delta('Hel', role='assistant'), delta('lo '), delta('world'), delta(finish_reason='stop'))
HELLO_CUT = sse(delta('Hel', role='assistant'), delta('lo '), done=False)  # neither finish_reason nor [DONE]


def chunked(body, size=None, last=True):
    """The body in the chunked coding, in chunks of `size` bytes (all in one by default); `last=False`: not its end."""
    size = size or len(body) or 1
    pieces = [body[at:at + size] for at in range(0, len(body), size)] + ([b''] if last else [])
    return b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in pieces)


def head(status=200, headers=()):
    """A status line and a header block, with nothing added."""
    lines = ['HTTP/1.1 %d Scripted' % status] + ['%s: %s' % pair for pair in dict(headers).items()]
    return '\r\n'.join(lines + ['', '']).encode('latin-1')


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
    """An event stream whose end is told by its chunks, by its length, or by the close of the connection."""
    fields = {'Content-Type': 'text/event-stream'}
    if framing == 'chunked':
        fields['Transfer-Encoding'], body = 'chunked', chunked(body)
    elif framing == 'length':
        fields['Content-Length'] = len(body)
    else:
        fields['Connection'] = 'close'
    fields.update(headers)
    return head(200, fields) + body


CHUNKED_HEAD = head(200, {'Content-Type': 'text/event-stream', 'Transfer-Encoding': 'chunked'})


def begun(body):
    """A chunked event stream that has not ended."""
    return CHUNKED_HEAD + chunked(body, last=False)


def cut(data):
    """A script: send, then close."""
    return lambda peer: (peer.send(data), peer.close())


def reset(data):
    """A script: send, then reset the connection."""
    return lambda peer: (peer.send(data), peer.reset())


def stall(data=b''):
    """A script: send, then say nothing until the client goes away."""
    return lambda peer: (peer.send(data), peer.wait_closed())


# ---- the server ----------------------------------------------------------------------------------

class Request:
    """What came: `method`, `path`, `headers` (a dict, names in lower case), `body`, `connection` (1 for the first)."""

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
        # not the same as losing the last reference: the client is told at once, whoever else holds the socket
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
        self.socket.close()

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.socket.close()

    def wait_closed(self, timeout=5):
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


class Server:
    """A loopback server; a thread for each connection.

    `url` is its base URL, `port` its port, `requests` what came (a list of `Request`), `connections` how many were
    opened. On leaving `with` all connections are closed and an exception in a script is raised. `tls` is a server's
    SSLContext; `peer` a subclass of Peer that reads requests in another way.
    """

    def __init__(self, *scripts, tls=None, peer=Peer):
        self.requests, self.connections = [], 0
        self._scripts, self._tls, self._peer = list(scripts) or [stream_reply(HELLO)], tls, peer
        self._lock, self._peers, self._threads, self._failure, self._open = threading.Lock(), [], [], None, True

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
            thread.join(5)
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


# ---- asking --------------------------------------------------------------------------------------

def client(server, **options):
    """A client of the server (None with a base_url of its own), which retries only where a test says so."""
    options = dict({'api_key': KEY, 'base_url': server and server.url, 'max_retries': 0, 'timeout': 5}, **options)
    return streamlite.OpenAI(**options)


def ask(client, **options):
    """A stream; `stream=False` a whole completion."""
    options = dict({'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}], 'stream': True}, **options)
    return client.chat.completions.create(**options)


def text_of(completion):
    """Choice 0's text, '' where there is none yet."""
    choices = completion.choices if completion is not None else None
    return choices[0].message.content or '' if choices else ''


def run_python(*arguments, input=None, timeout=20, **environment):
    """Another Python beside streamlite.py: its CompletedProcess, in text."""
    done = subprocess.run([sys.executable] + list(arguments), input=input, timeout=timeout, cwd=FOLDER,
                          env=dict(os.environ, **environment), universal_newlines=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    SAID.append(done.stdout + done.stderr)
    return done


def remember(error):
    """Keep all that an error shows, for the search at the end of the test."""
    SAID.append(''.join(traceback.format_exception(type(error), error, error.__traceback__)))
    SAID.append('%r %s %r' % (error, error, vars(error)))


class TestCase(unittest.TestCase):
    """An environment without the user's own settings; a thread, socket or secret that a test leaves behind fails it."""

    def setUp(self):
        patch = mock.patch.dict(os.environ)
        patch.start()
        self.addCleanup(patch.stop)
        for name in list(os.environ):
            ours = name.startswith(('OPENAI_', 'SSL_', 'SSLKEY', 'REQUESTS_CA', 'CURL_CA'))
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

    def _check_left_over(self, threads, sockets):
        for thread in set(threading.enumerate()) - threads:
            thread.join(1)
        self.assertEqual(set(threading.enumerate()) - threads, set(), 'threads left over')
        self.assertEqual(open_sockets() - sockets, set(), 'sockets left over')
        for said in SAID:
            self.assertNotIn(MARK, said)

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
        lines = [said for said in SAID if said.startswith(level) and all(word in said for word in words)]
        self.assertEqual(len(lines), 1, SAID)

    def assertText(self, completion, text, finish_reason='stop'):
        """The (whole) completion, or the stream when drained, says this."""
        if isinstance(completion, streamlite.Stream):
            completion = completion.collect()
        self.assertEqual(text_of(completion), text)
        self.assertEqual(completion.choices[0].finish_reason, finish_reason)

    def assertBroken(self, client, text, kind=None, **options):
        """A stream hands over `text` and then fails; the error still has the text, and is returned."""
        seen = []
        with self.assertRaises(kind or streamlite.APIConnectionError) as caught:
            with ask(client, **options) as stream:
                seen.extend(stream.text())
        self.assertEqual(''.join(seen), text)
        self.assertEqual(text_of(caught.exception.partial), text)
        return caught.exception

    def assertSays(self, error, *words):
        """The message holds each of these words, whatever its prose; a secret is looked for at the end of the test."""
        for word in words:
            self.assertIn(str(word).lower(), str(error).lower())

    @contextlib.contextmanager
    def assertTakes(self, least=0.0, most=0.5):
        """The block takes between so many seconds."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self.assertGreaterEqual(seconds, least)
        self.assertLessEqual(seconds, most)


def open_sockets():
    """The descriptors of this process that are sockets; none are known on Windows."""
    found = set()
    for name in os.listdir('/dev/fd') if os.path.isdir('/dev/fd') else ():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


# ==================================================================================================
# The core: events, payloads, accumulation
# ==================================================================================================

# ---- server-sent events --------------------------------------------------------------------------

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
    ('more blank lines than one', b'\n\r\n\rdata: a\n\n\n\r\n\r\n\rdata: b\n\n', [event('a'), event('b')]),
    ('what Unicode calls a line end is none here',
     'data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n\n'.encode(),
     [event('a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei')]),
    # characters
    ('one byte order mark at the start', b'\xef\xbb\xbfdata: a\n\n', [event('a')]),
    ('a second byte order mark is part of a name', b'\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n', [event('b')]),
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
    ('an id alone dispatches nothing, but holds', b'id: 1\n\n: ping\n\ndata: a\n\n', [event('a', id='1')]),
    ('an empty id resets it', b'id: 1\ndata: a\n\nid\ndata: b\n\n', [event('a', id='1'), event('b')]),
    ('an id with NUL is ignored', b'id: 1\nid: 2\0\ndata: a\n\n', [event('a', id='1')]),
    # retry
    ('retry', b'retry: 3000\ndata: a\n\n', [event('a', retry=3000)]),
    ('retry counts for its own event', b'retry: 5\ndata: a\n\ndata: b\n\n', [event('a', retry=5), event('b')]),
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


class ServerSentEventTests(TestCase):

    def test_every_stream_decodes_alike_whole_byte_by_byte_and_at_every_split(self):
        mixture = b'\n\n'.join(stream for _, stream, _ in DECODED)
        for name, stream, expected in DECODED + (('all of them', mixture, decode(mixture)),):
            with self.subTest(name):
                self.assertEqual(decode(stream), expected, 'whole')
                single = [stream[at:at + 1] for at in range(len(stream))]
                self.assertEqual(decode(*single), expected, 'byte by byte')
                self.assertEqual(decode(*[read for byte in single for read in (byte, b'')]), expected,
                                 'with empty reads')
                for at in range(len(stream)):
                    self.assertEqual(decode(stream[:at], stream[at:]), expected, 'split at %d' % at)

    def test_an_event_comes_out_of_the_feed_that_holds_the_last_byte_of_its_blank_line(self):
        for end in (b'\n\n', b'\r\r', b'\r\n\r\n', b'\n\r', b'\n\r\n', b'\r\n\n', b'\r\n\r', b'\r\r\n'):
            with self.subTest(end):
                decoder = streamlite.SSEDecoder()
                self.assertEqual(decoder.feed(b'data: a'), [])
                self.assertEqual(decoder.feed(end[:1]), [], 'the line has ended, the event has not')
                self.assertEqual([event for byte in end[1:] for event in decoder.feed(bytes([byte]))], [event('a')])
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
        self.assertEqual([event.data for event in decode(b'retry: %s\ndata: a\n\n' % (b'9' * 10000))], ['a'])

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
                    self.assertEqual(len(decode(*[stream[at:at + size] for at in range(0, len(stream), size)])), 10)

    def test_decoding_takes_linear_time(self):
        def seconds(stream, size):
            reads = [stream[at:at + size] for at in range(0, len(stream), size)]
            start = time.process_time()
            self.assertTrue(decode(*reads))
            return time.process_time() - start

        for name, unit, count, size in (
                ('one event of 10 MB in reads of 1 KB', b'x' * 1024, 10240, 1024),
                ('one event of many lines', b'\ndata: x', 40000, 1024),
                ('many events in one read', b'\n\ndata: x', 20000, 1 << 20),
                ('a line in single bytes', b'x', 50000, 1)):
            with self.subTest(name):
                small, large = (min(seconds(b'data: ' + unit * n, size) for _ in range(2)) for n in (count // 8, count))
                self.assertLess(large, 32 * small)  # half-way between linear (8) and quadratic (64), caches and all

    def test_encode_sse_is_the_inverse_of_the_decoder(self):
        for one in (
                event(''), event('a'), event(' a '), event('a\nb'), event('\n'), event('\na\n\n'),
                event(': a'), event('data: a'),
                event('{"text": "é\u2028€😀\\n"}'), event('a', 'ping'), event('a\nb', 'x y', '7', 3000),
                event('a', id='é'), event('a', retry=0)):
            with self.subTest(one):
                encoded = streamlite.encode_sse(one.data, event=one.event, id=one.id or None, retry=one.retry)
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
                    self.assertRaises(ValueError, streamlite.encode_sse, 'a', **{field: 'x%sdata: forged' % break_})


# ---- answers over a socket -----------------------------------------------------------------------

STOP = delta(finish_reason='stop')
CHUNKS = [delta('Hel', role='assistant'), delta('lo '), delta('world'), STOP]
LINES = [json.dumps(chunk) for chunk in CHUNKS]
WHOLE = {'id': 'chatcmpl-1', 'object': 'chat.completion', 'created': 1, 'model': 'm', 'choices': [
    {'index': 0, 'message': {'role': 'assistant', 'content': 'Hello world'}, 'finish_reason': 'stop'}]}


def framed(*payloads, before='data: ', after='\n\n'):
    """Payloads as another kind of server would send them."""
    return ''.join(before + payload + after for payload in payloads).encode()


class ReplyTests(TestCase):
    """One server and one client for a whole test; the answer is set by whoever asks."""

    def setUp(self):
        super().setUp()
        self.answer = b''
        server = Server(lambda peer: peer.send(self.answer))
        self.server = server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        self.client = client(self.server)
        self.addCleanup(self.client.close)

    def stream(self, *items, done=True):
        """A stream of these items, as `sse` takes them."""
        self.answer = stream_reply(sse(*items, done=done))
        return ask(self.client)

    def collect(self, *items, done=True):
        with self.stream(*items, done=done) as stream:
            return stream.collect()

    def message(self, *deltas, finish_reason='stop'):
        """The message that these deltas, each a dict, come to."""
        completion = self.collect(*[delta(**fields) for fields in deltas] + [delta(finish_reason=finish_reason)])
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


class PayloadTests(ReplyTests):

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
                ('comments right before [DONE]', framed(*LINES) + b': tokens=3\n: cost=0\ndata: [DONE]\n\n'),
                ('wrapped comments', framed(': PROCESSING', ':', *LINES + [' : PROCESSING', '[DONE]'])),
                ('empty data', framed('', ' ', *LINES + ['', '   ', '[DONE]'])),
                ('blocks without data', framed(*LINES + ['[DONE]'],
                                               before='retry: 3000\n\nid: 7\n\nevent: ping\n\ndata: ')),
                ('named events', framed(*LINES + ['[DONE]'], before='event: completion\nid: 7\ndata: ')),
                ('no [DONE]', framed(*LINES)),
                ('no last blank line', framed(*LINES)[:-1]),
                ('no last line end', framed(*LINES)[:-2]),
                ('JSON over several lines', framed(*pretty + ['[DONE]'])),
                ('two objects glued together', framed(LINES[0] + LINES[1], LINES[2] + ' ' + LINES[3], '[DONE]')),
                ('all objects glued together', framed(''.join(LINES))),
                ('one object to a line', framed(*LINES, after='\n')),
                ('JSON lines', framed(*LINES, before='', after='\n')),
                ('JSON lines with blank ones', b'\n\r\n' + framed(*LINES, before='', after='\r\n\r\n')),
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
                ('nothing after it in its event counts', framed(*lines + ['[DONE]'] + late, after='\n')),
                ('on a line of the last event', framed(*lines + ['[DONE]'], after='\n')),
                ('on a line of its own after JSON lines', framed(*lines + ['[DONE]'], before='', after='\n')),
                ('after JSON lines, as an event', framed(*lines, before='', after='\n') + b'data: [DONE]\n\n'),
                ('glued to JSON', framed(*lines, before='', after='') + b'data: [DONE]\n\n')):
            for size in (None, 1):
                with self.subTest(name, size=size):
                    self.answer = CHUNKED_HEAD + chunked(body, size)
                    self.assertText(ask(self.client), 'Hello world', None)

    def test_the_first_byte_decides_not_the_content_type(self):
        bodies = (framed(*LINES + ['[DONE]']), framed(*LINES, before='', after='\n'), json.dumps(WHOLE).encode())
        for kind in ('text/event-stream', 'TEXT/Event-Stream ; Charset=UTF-8', 'text/event-stream; charset=utf-16',
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
        for name, body in (('glued', framed(''.join(LINES))), ('one to a line', framed(*LINES, after='\n'))):
            with self.subTest(name):
                self.answer = stream_reply(body)
                with ask(self.client) as stream:
                    self.assertEqual([chunk.to_dict() for chunk in stream], CHUNKS)

    def test_a_whole_reply_is_delivered_as_one_chunk_for_each_choice(self):
        calls = [{'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x":1}'}}]
        usage = {'prompt_tokens': 1, 'completion_tokens': 2, 'total_tokens': 3}
        self.answer = reply(200, {}, dict(WHOLE, usage=usage, choices=WHOLE['choices'] + [
            {'index': 1, 'message': {'role': 'assistant', 'content': None, 'tool_calls': calls},
             'finish_reason': 'tool_calls'}]))
        with ask(self.client) as stream:
            chunks = list(stream)
            completion = stream.collect()
        self.assertEqual([[choice.index for choice in chunk.choices] for chunk in chunks], [[0], [1]])
        self.assertEqual(chunks[0].choices[0].delta.content, 'Hello world')
        fragment = chunks[1].choices[0].delta.tool_calls[0]
        self.assertEqual((fragment.index, fragment.function.name), (0, 'f'))
        self.assertEqual([chunk.choices[0].finish_reason for chunk in chunks], ['stop', 'tool_calls'])
        self.assertText(completion, 'Hello world')
        self.assertEqual(completion.choices[1].message.tool_calls[0].to_dict(), calls[0])
        self.assertEqual(completion.usage.to_dict(), usage)
        self.assertEqual((completion.id, completion.model, completion.object), ('chatcmpl-1', 'm', 'chat.completion'))

    def test_a_whole_reply_is_whole_without_a_finish_reason(self):
        whole = [{'index': 0, 'message': {'role': 'assistant', 'content': 'Hello world'}, 'finish_reason': None}]
        self.answer = reply(200, {}, dict(WHOLE, choices=whole))
        self.assertText(ask(self.client), 'Hello world', None)

    def test_html_is_shown_with_the_likely_cause(self):
        page = b'\n <!doctype html><html><head><title>Sign in to the network</title>%sbeyond</html>' % (b'.' * 300)
        for kind in ('text/html', 'text/event-stream'):
            with self.subTest(kind):
                error = self.error_of_answer(reply(200, {'Content-Type': kind}, page),
                                         streamlite.APIResponseValidationError)
                self.assertSays(error, '<title>Sign in to the network')
                self.assertTrue(any(word in str(error).lower() for word in ('proxy', 'login', 'sign-in')), str(error))
                self.assertNotIn('beyond', str(error))
                self.assertEqual(error.status_code, 200)

    def test_json_that_is_no_completion_is_shown(self):
        for body in ({'hello': 'there'}, {'status': 'ok', 'version': '1.2'}, {'object': 'list', 'data': []}, {}):
            with self.subTest(body):
                error = self.error_of_answer(reply(200, {}, body), streamlite.APIResponseValidationError)
                for key in body:
                    self.assertSays(error, key)
        for body in ({'hello': 'there'}, {'type': 'response.created', 'response': {}}):
            with self.subTest(body):
                error = self.error_of(body, done=False, kind=streamlite.APIResponseValidationError)
                for key in body:
                    self.assertSays(error, key)

    def test_a_body_without_an_event_is_a_lost_connection(self):
        for name, body in (('empty', b''), ('blank lines', b'\n\r\n\n'), ('comments', b': ping\n\n: ping\n\n'),
                           ('no data', b'retry: 500\n\nevent: ping\n\n')):
            for framing in ('chunked', 'length', 'close'):
                with self.subTest(name, framing=framing):
                    with Server(stream_reply(body, framing, {'Retry-After-Ms': '1'}),
                                stream_reply(HELLO)) as server, client(server, max_retries=1) as retrying:
                        self.assertText(ask(retrying), 'Hello world')
                    with Server(stream_reply(body, framing)) as server, client(server) as once:
                        error = self.assertBroken(once, '')
                        self.assertNotIsInstance(error, streamlite.APITimeoutError)

    def test_an_event_that_is_no_json_object_is_an_error_with_what_came_before(self):
        for payload in ('{not json', '{"id": "chatcmpl-1", "obj', "{'a': 1}", '<html>502</html>', 'Bad gateway', '42',
                        '"hi"', 'null', 'true', '[1]', '[]', '{"a": 1}}'):
            with self.subTest(payload):
                error = self.error_of(delta('Hel'), delta('lo'), payload, *CHUNKS,
                                      kind=streamlite.APIResponseValidationError)
                self.assertEqual(text_of(error.partial), 'Hello')
                self.assertSays(error, payload)

    def test_what_json_raises_never_comes_out(self):
        half = '{"choices": [{"index": 0, "delta": {"content": "\\ud83d", "vendor": %s}}]}'
        for name, payload in (('deep lists', '{"choices": %s' % ('[' * 100000)), ('deep objects', '{"a":' * 100000),
                              ('deep and whole', '{"a": %s%s}' % ('[' * 100000, ']' * 100000)),
                              ('300 levels', '{"choices": [], "a": %s%s}' % ('[' * 300, ']' * 300)),
                              ('300 levels of objects', '{"choices": [], "a": %s1%s}' % ('{"a":' * 300, '}' * 300)),
                              ('300 levels beside half a character', half % ('[' * 300 + ']' * 300)),
                              # converting it takes quadratic time, which newer Pythons refuse by themselves
                              ('an integer of 5,000 digits', '{"created": %s, "choices": []}' % ('9' * 5000)),
                              ('a negative one', '{"created": -%s, "choices": []}' % ('9' * 5000))):
            with self.subTest(name):
                error = self.error_of(delta('Hel'), payload, STOP, kind=streamlite.APIResponseValidationError)
                self.assertEqual(text_of(error.partial), 'Hel')
        for number in '1e999', 'NaN', '-Infinity', '[' * 50 + ']' * 50:
            with self.subTest(number):
                completion = self.collect(delta('Hel'), '{"created": %s, "choices": []}' % number, STOP)
                self.assertText(completion, 'Hel')
                self.assertTrue(completion.to_json())

    def test_a_line_beyond_the_limit_ends_a_stream_after_what_came_before_it(self):
        with mock.patch.object(streamlite, 'MAX_EVENT', 5000):
            for name, tail in (('a line', b'data: ' + b'x' * 9000), ('an event', b'data: 123456789\n' * 900)):
                body = sse(delta('Hel'), delta('lo'), tail, done=False)
                for script in (stream_reply(body), stall(CHUNKED_HEAD + chunked(body, last=False))):
                    with self.subTest(name), Server(script) as server, client(server) as one:
                        error = self.assertBroken(one, 'Hello', kind=streamlite.APIError)
                        self.assertNotIsInstance(error, streamlite.APITimeoutError)
            self.error_of_answer(reply(200, {}, dict(WHOLE, padding='x' * 9000)), streamlite.APIError)

    def test_many_objects_in_one_body_or_event_take_linear_time(self):
        def seconds(body):
            self.answer = reply(200, {}, body)
            start = time.process_time()
            self.assertEqual(ask(self.client).collect().choices[0].finish_reason, 'stop')
            return time.process_time() - start

        for name, before, after in (('JSON lines', '', '\n'), ('one to a line', 'data: ', '\n'), ('glued', '', '')):
            with self.subTest(name):
                small, large = (seconds(framed(*[LINES[1]] * n + [LINES[3]], before=before, after=after))
                                for n in (1000, 8000))
                self.assertLess(large, 32 * small)

    def test_a_last_event_cut_in_the_middle_is_ignored_and_the_end_judged_as_usual(self):
        self.answer = stream_reply(framed(*LINES) + b'data: {"id": "chatc')
        self.assertText(ask(self.client), 'Hello world')
        text = json.dumps(choice(text='Hello '))
        for name, body in (('an event', framed(*LINES[:2]) + b'data: {"id": "chatc'),
                           ('JSON lines of text', framed(text, before='', after='\n')),
                           ('JSON lines', framed(*LINES[:2], before='', after='\n') + b'{"id": "chatc')):
            with self.subTest(name):
                self.answer = stream_reply(body)
                self.assertBroken(self.client, 'Hello ')

    def test_a_json_body_cut_in_the_middle_is_a_lost_connection(self):
        whole = json.dumps(WHOLE).encode()
        for at in (1, 20, len(whole) - 1):
            with self.subTest(at):
                self.answer = stream_reply(whole[:at])
                self.assertBroken(self.client, '')


CLASSES = {
    400: streamlite.BadRequestError, 401: streamlite.AuthenticationError, 403: streamlite.PermissionDeniedError,
    404: streamlite.NotFoundError, 409: streamlite.ConflictError, 422: streamlite.UnprocessableEntityError,
    429: streamlite.RateLimitError, 500: streamlite.InternalServerError, 503: streamlite.InternalServerError,
    529: streamlite.InternalServerError, 402: streamlite.APIStatusError, 418: streamlite.APIStatusError}


class ErrorEventTests(ReplyTests):

    def test_an_error_inside_a_200_is_raised_in_the_servers_words(self):
        said = {'message': 'the provider is gone', 'type': 'server_error', 'code': 502}
        words, coded, uncoded = json.dumps(said), streamlite.InternalServerError, streamlite.APIError
        member = json.dumps({'error': said})
        for name, tail, kind in (
                ('an object', framed(member), coded),
                ('an object beside choices', sse(dict(delta(finish_reason='error'), error=said), done=False), coded),
                ('a string', sse({'error': said['message']}, done=False), uncoded),
                ('"object": "error"', sse(dict(said, object='error'), done=False), coded),
                ('an event named error', framed(words, before='event: error\ndata: '), coded),
                ('an event named error, with an error member', framed(member, before='event: error\ndata: '), coded),
                ('an event named error, of plain text', framed(said['message'], before='event: error\ndata: '),
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
                        self.assertEqual((error.code, error.type), (502, 'server_error'))

    def test_a_json_body_that_is_an_error_is_raised(self):
        for body in ({'error': {'message': 'the provider is gone', 'code': 503}}, {'error': 'the provider is gone'},
                     {'object': 'error', 'message': 'the provider is gone'}):
            for answer in (reply(200, {}, body), reply(200, {'Content-Type': 'text/event-stream'},
                                                       json.dumps(body, indent=1).encode())):
                with self.subTest(body):
                    self.assertSays(self.error_of_answer(answer, streamlite.APIError), 'the provider is gone')

    def test_a_numeric_code_decides_the_class(self):
        no_status = [(code, streamlite.APIError) for code in (None, 'server_error', [], True)]
        for code, kind in list(CLASSES.items()) + [('503', streamlite.InternalServerError)] + no_status:
            with self.subTest(code):
                error = self.error_of(delta('Hel'),
                                      {'error': {'message': 'gone', 'type': 't', 'param': 'p', 'code': code}})
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
                self.assertText(self.collect(*[dict(chunk, error=nothing) for chunk in CHUNKS]), 'Hello world')

    def test_the_servers_words_always_encode(self):
        for payload in (r'{"error": "gone \ud83d"}', r'{"error": {"message": "gone \ud83d", "code": 503}}'):
            with self.subTest(payload):
                error = self.error_of(delta('Hel'), payload)
                self.assertSays(error, 'gone')
                str(error).encode()

    def test_an_odd_error_member_is_still_an_error(self):
        for odd in (['overloaded'], {'message': None, 'code': 'x'}, {'message': {'nested': 'overloaded'}}, 42, True,
                    {'code': 10 ** 30}):
            with self.subTest(odd):
                error = self.error_of(delta('Hel'), {'error': odd})
                self.assertTrue(str(error))
                self.assertEqual(text_of(error.partial), 'Hel')


class ErrorReplyTests(ReplyTests):

    def test_the_servers_words_are_found_in_every_shape_of_body(self):
        words = 'the model is tired'
        for name, body in (
                ('a string', {'error': words}),
                ('a string and a code', {'code': 'nap', 'error': words}),
                ('detail', {'detail': words}),
                ('a list of details', {'detail': [{'loc': ['body', 'model'], 'msg': words, 'type': 'value_error'}]}),
                ('message', {'message': words}),
                ('a flat error', {'object': 'error', 'message': words, 'type': 'nap', 'param': None, 'code': '1500'}),
                ('a list of errors', [{'error': {'message': words, 'code': 429}}]),
                ('a nested message', json.dumps({'error': {'message': {'detail': words}}}).encode()),
                ('an empty error beside a message', {'error': None, 'message': words}),
                ('a JSON string', json.dumps(words).encode()),
                ('an indented body', json.dumps({'error': {'message': words}}, indent=2).encode()),
                ('blank lines before', b'\n\n' + json.dumps({'error': {'message': words}}).encode()),
                ('an event', b'data: {"error": {"message": "%s"}}\n\n' % words.encode()),
                ('plain text', words.encode()),
                ('HTML', b'<html><head><title>%s</title></head><body><hr></body></html>' % words.encode()),
                ('a byte that is not UTF-8', b'{"error": {"message": "%s \xff"}}' % words.encode()),
                ('a huge integer', b'{"error": {"message": "%s", "code": %s}}' % (words.encode(), b'9' * 5000)),
                ('cut', b'{"error": {"message": "%s", "co' % words.encode())):
            for status in (400, 503):
                with self.subTest(name, status=status):
                    error = self.error_of_answer(reply(status, {}, body), CLASSES[status])
                    self.assertSays(error, words)
                    if not isinstance(body, bytes):
                        self.assertNotRegex(str(error), '[{"]')

    def test_a_body_that_says_nothing_still_gives_the_status(self):
        for body in (b'', b' \n', b'null', b'42', b'[]', b'[1, 2, 3]', b'""', b'{}', b'true', b'{"error": {}}',
                     b'{"error": {"code": 1e999}}', b'{"a":' * 100000, b'[' * 60000, b'\xff\xfe\x00'):
            for status in (404, 500):
                with self.subTest(body[:20], status=status):
                    error = self.error_of_answer(reply(status, {}, body), CLASSES[status])
                    self.assertEqual(error.status_code, status)
                    self.assertSays(error, status)


# ---- from JSON to a completion -------------------------------------------------------------------

def choice(index=0, finish_reason=None, **fields):
    """A chunk with one choice of these fields."""
    return {'id': 'chatcmpl-1', 'choices': [dict({'index': index, 'finish_reason': finish_reason}, **fields)]}


def reasoning_of(message):
    """The reasoning, whichever of the two usual names it has."""
    return getattr(message, 'reasoning_content', None) or getattr(message, 'reasoning', None)


class EnvelopeTests(ReplyTests):

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
                ('text instead of a delta', [choice(text='Hello '), choice(text='world', finish_reason='stop')]),
                ('no index', [{'choices': [{'delta': {'content': 'Hello '}}]},
                              {'choices': [{'delta': {'content': 'world'}, 'finish_reason': 'stop'}]}]),
                ('index null', [choice(index=None, delta={'content': 'Hello '}),
                                choice(delta={'content': 'world'}, finish_reason='stop')]),
                ('the last token with finish_reason', [delta('Hello '), delta('world', finish_reason='stop')]),
                ('more after finish_reason', [delta('Hello', finish_reason='stop'), delta(' world')]),
                ('parts', [delta([{'type': 'text', 'text': 'Hello '}]),
                           delta([{'type': 'text', 'text': 'wor'}, {'type': 'text', 'text': 'ld'}]), STOP]),
                ('parts that are strings', [delta(['Hello ']), delta(['wor', 'ld']), STOP]),
                ('parts and strings', [delta([{'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'hm'}]}]),
                                       delta('Hello'), delta([{'type': 'text', 'text': ' world'}]), STOP])):
            with self.subTest(name):
                with self.stream(*chunks) as stream:
                    self.assertEqual(''.join(stream.text()), 'Hello world')
                self.assertText(stream.completion, 'Hello world')

    def test_thinking_parts_are_reasoning(self):
        let, me, see, four = [{'type': 'text', 'text': said} for said in ('Let ', 'me ', 'see.', '4')]
        message = self.message(
            {'content': [{'type': 'thinking', 'thinking': [let, me]}]},
            {'content': [{'type': 'thinking', 'thinking': [see]}, four]},
            {'content': [{'type': 'image_url', 'image_url': 'x'}, None, 7, {'type': 'text'},
                         {'type': 'text', 'text': None}]},
            {'content': '2'})
        self.assertEqual((reasoning_of(message), message.content), ('Let me see.', '42'))
        message = self.message({'content': [{'type': 'thinking', 'thinking': 'hm'}]}, {'content': 'x'})
        self.assertEqual(reasoning_of(message), 'hm')

    def test_a_final_whole_message_is_not_added_to_its_deltas(self):
        call = {'index': 0, 'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x":1}'}}
        final = dict(WHOLE, usage={'total_tokens': 3}, choices=[{'index': 0, 'finish_reason': 'tool_calls', 'message': {
            'role': 'assistant', 'content': 'Hi', 'reasoning_content': 'hm', 'tool_calls': [call]}}])
        completion = self.collect(delta(reasoning_content='hm'), delta('H'), delta('i'), delta(tool_calls=[call]),
                                  final)
        message = completion.choices[0].message
        self.assertEqual((message.content, message.reasoning_content), ('Hi', 'hm'))
        self.assertEqual([call.function.arguments for call in message.tool_calls], ['{"x":1}'])
        self.assertEqual(completion.choices[0].finish_reason, 'tool_calls')
        self.assertEqual(completion.usage.total_tokens, 3)

    def test_choices_are_told_apart_by_index(self):
        chunks = [delta('a', index=1, role='assistant'), delta('x', role='assistant'), delta('b', index=1), delta('y'),
                  delta(index=1, finish_reason='length'),
                  delta(index=0, finish_reason='stop')]
        together = dict(STOP, choices=chunks[0]['choices'] + chunks[1]['choices'])
        for name, order in (('one to a chunk', chunks), ('two in a chunk', [together] + chunks[2:])):
            with self.subTest(name):
                with self.stream(*order) as stream:
                    self.assertEqual(''.join(stream.text()), 'xy')
                found = [(one.index, one.message.content, one.finish_reason) for one in stream.completion.choices]
                self.assertEqual(found, [(0, 'xy', 'stop'), (1, 'ab', 'length')])

    def test_two_choices_of_one_index_are_one_answer(self):
        call = {'index': 0, 'id': 'a', 'function': {'name': 'f', 'arguments': '{}'}}
        two = dict(choice(), choices=[{'index': 0, 'delta': {'content': 'Hi'}},
                                      {'index': 0, 'delta': {'tool_calls': [call]}, 'finish_reason': 'tool_calls'}])
        message, = [one.message for one in self.collect(two).choices]
        self.assertEqual((message.content, message.tool_calls[0].id), ('Hi', 'a'))

    def test_the_role_is_kept(self):
        for name, roles in (('once', ['assistant', None]), ('repeated', ['assistant', 'assistant']),
                            ('then empty', ['assistant', '']), ('late', ['', 'assistant']),
                            ('never', [None, None])):
            with self.subTest(name):
                self.assertEqual(self.message(*[{'role': role, 'content': 'x'} for role in roles]).role, 'assistant')
        self.assertEqual(self.message({'content': 'x'}).role, 'assistant')

    def test_content_is_none_where_no_text_came(self):
        call = {'index': 0, 'id': 'a', 'function': {'name': 'f', 'arguments': '{}'}}
        self.assertIsNone(self.message({'role': 'assistant', 'content': None}, {'tool_calls': [call]}).content)

    def test_fields_that_come_in_pieces_are_joined(self):
        for name in ('content', 'refusal', 'reasoning_content', 'reasoning'):
            with self.subTest(name):
                message = self.message({name: 'I '}, {name: None}, {name: ''}, {name: 'can '}, {}, {name: "not"})
                self.assertEqual(getattr(message, name), 'I can not')

    def test_reasoning_under_two_names_is_not_doubled(self):
        message = self.message(*[{'reasoning': said, 'reasoning_content': said} for said in ('h', 'm')])
        self.assertEqual((message.reasoning, message.reasoning_content), ('hm', 'hm'))

    def test_reasoning_details_are_all_kept(self):
        details = [{'type': 'reasoning.text', 'text': 'h', 'index': 0}, {'type': 'reasoning.encrypted', 'data': 'QUJD'}]
        message = self.message({'reasoning_details': details[:1]}, {'content': 'x'}, {'reasoning_details': details[1:]})
        self.assertEqual(message.reasoning_details, details)

    def test_reasoning_may_be_an_object(self):
        self.assertEqual(self.message(*[{'reasoning_content': {'text': part}} for part in 'hm']).reasoning_content,
                         'hm')

    def test_log_probabilities_are_extended(self):
        def token(name):
            return {'token': name, 'logprob': -1.5, 'bytes': [1],
                    'top_logprobs': [{'token': name, 'logprob': -1.5, 'bytes': None}]}

        chunks = [choice(delta={'content': 'ab'}, logprobs={'content': [token('a'), token('b')], 'refusal': None}),
                  choice(delta={'content': 'c'}, logprobs=None),
                  choice(delta={'content': 'd'}, logprobs={'content': [token('d')], 'refusal': [token('r')]}), STOP]
        logprobs = self.collect(*chunks).choices[0].logprobs
        self.assertEqual([one.token for one in logprobs.content], ['a', 'b', 'd'])
        self.assertEqual(logprobs.content[2].top_logprobs[0].logprob, -1.5)
        self.assertEqual([one.token for one in logprobs.refusal], ['r'])

    def test_audio_is_joined(self):
        audio = self.message({'audio': {'id': 'audio-1', 'transcript': 'Hel'}},
                             {'audio': {'data': 'QUJD', 'transcript': 'lo'}}, {'audio': {'data': 'REVG'}},
                             {'audio': {'expires_at': 7}}).audio
        self.assertEqual((audio.id, audio.data, audio.transcript, audio.expires_at),
                         ('audio-1', 'QUJDREVG', 'Hello', 7))

    def test_the_last_value_of_any_other_field_wins(self):
        chunks = [dict(delta('a', annotations=[1]), id='', model='', system_fingerprint='fp-0', citations=['u']),
                  dict(delta('b', annotations=[1, 2]), id='chatcmpl-7', model='big'),
                  dict(delta('c', annotations=None), id='chatcmpl-7', model='big', system_fingerprint='fp-1',
                       citations=None, service_tier='default')]
        chunks[1]['choices'][0]['content_filter_results'] = {'hate': {'filtered': False}}
        completion = self.collect(*chunks + [dict(STOP, id='chatcmpl-7', model='big')])
        self.assertEqual((completion.id, completion.model, completion.object, completion.created),
                         ('chatcmpl-7', 'big', 'chat.completion', 1))
        self.assertEqual((completion.system_fingerprint, completion.citations, completion.service_tier),
                         ('fp-1', ['u'], 'default'))
        self.assertEqual(completion.choices[0].message.annotations, [1, 2])
        self.assertEqual(completion.choices[0].content_filter_results, {'hate': {'filtered': False}})

    def test_a_completion_has_the_shape_of_a_whole_reply(self):
        self.assertEqual(self.collect(*CHUNKS).model_dump(exclude_none=True), WHOLE)


class ToolCallTests(ReplyTests):

    @staticmethod
    def call(index=None, id=None, name=None, arguments=None, **fields):
        """A fragment, without what is None."""
        function = {key: value for key, value in (('name', name), ('arguments', arguments)) if value is not None}
        call = {key: value for key, value in (('index', index), ('id', id),
                                              ('function', function or None)) if value is not None}
        return dict(call, **fields)

    def calls(self, *deltas, finish_reason='tool_calls'):
        return self.message(*[{'tool_calls': fragments} for fragments in deltas],
                            finish_reason=finish_reason).tool_calls

    def test_fragments_become_calls(self):
        call = self.call
        one, two = ('a', 'f', '{"x":1}'), ('b', 'g', '{"y":2}')
        for name, deltas, expected in (
                ('as OpenAI sends it', [[call(0, 'a', 'f', '', type='function')], [call(0, arguments='{"x"')],
                                        [call(0, arguments=':1}')]], [one]),
                ('two, one after the other', [[call(0, 'a', 'f', '')], [call(0, arguments='{"x":1}')],
                                              [call(1, 'b', 'g', '')], [call(1, arguments='{"y":2}')]], [one, two]),
                ('two, interleaved', [[call(0, 'a', 'f')], [call(1, 'b', 'g')], [call(0, arguments='{"x"')],
                                      [call(1, arguments='{"y"')],
                                      [call(0, arguments=':1}'), call(1, arguments=':2}')]], [one, two]),
                ('each whole in one delta', [[call(0, 'a', 'f', '{"x":1}')], [call(1, 'b', 'g', '{"y":2}')]],
                 [one, two]),
                ('both whole in one delta', [[call(0, 'a', 'f', '{"x":1}'), call(1, 'b', 'g', '{"y":2}')]], [one, two]),
                ('no index', [[call(None, 'a', 'f', '{"x":1}')], [call(None, 'b', 'g', '{"y":2}')]], [one, two]),
                ('no index, both in one delta', [[call(None, 'a', 'f', '{"x":1}'), call(None, 'b', 'g', '{"y":2}')]],
                 [one, two]),
                ('no index, in fragments', [[call(None, 'a', 'f', '{"x"')], [call(None, arguments=':1}')],
                                            [call(None, 'b', 'g')], [call(None, arguments='{"y":2}')]], [one, two]),
                ('no index, the id on each fragment', [[call(None, 'a', 'f', '{"x"')], [call(None, 'b', 'g', '{"y"')],
                                                       [call(None, 'a', None, ':1}')], [call(None, 'b', None, ':2}')]],
                                                       [one, two]),
                ('no index and no id', [[call(None, None, 'f', '{"x":1}')], [call(None, None, 'g', '{"y":2}')]],
                 [(None, 'f', '{"x":1}'), (None, 'g', '{"y":2}')]),
                ('index null', [[dict(call(None, 'a', 'f', '{"x"'), index=None)],
                                [dict(call(None, None, None, ':1}'), index=None)]], [one]),
                ('index as digits', [[call('0', 'a', 'f', '{"x"')], [call('1', 'b', 'g', '{"y":2}')],
                                     [call('0', arguments=':1}')]], [one, two]),
                ('one index for all', [[call(0, 'a', 'f', '{"x":1}')], [call(0, 'b', 'g', '{"y":2}')]], [one, two]),
                ('one index for all, in one delta', [[call(0, 'a', 'f', '{"x":1}'), call(0, 'b', 'g', '{"y":2}')]],
                 [one, two]),
                ('one index for all, in fragments', [[call(0, 'a', 'f', '')], [call(0, arguments='{"x":1}')],
                                                     [call(0, 'b', 'g', '')], [call(0, arguments='{"y":2}')]],
                                                     [one, two]),
                ('one index for all, id and name on each fragment',
                 [[call(0, 'a', 'f', '{"x"')], [call(0, 'b', 'g', '{"y"')], [call(0, 'a', 'f', ':1}')],
                  [call(0, 'b', 'g', ':2}')]], [one, two]),
                ('one index and one name for all', [[call(0, 'a', 'f', '{"x":1}')], [call(0, 'b', 'f', '{"x":1}')]],
                 [one, ('b', 'f', '{"x":1}')]),
                ('id and name on each fragment', [[call(0, 'a', 'f', '{"x"')], [call(0, 'a', 'f', ':1')],
                                                  [call(0, 'a', 'f', '}')]], [one]),
                ('another type later', [[call(0, 'a', 'f', '{"x"', type='function')],
                                        [call(0, arguments=':1}', type='custom')]], [one]),
                ('empty id and name on the rest', [[call(0, 'a', 'f', '{"x"')], [call(0, '', '', ':1')],
                                                   [call(0, '', '', '}', type='')]], [one]),
                ('another id without a name goes on', [[call(0, 'a', 'f', '{"x"')], [call(0, 'z1', None, ':1')],
                                                       [call(0, 'z2', '', '}')]], [one]),
                ('no id', [[call(0, None, 'f', '{"x":1}')], [call(1, None, 'g', '{"y"')], [call(1, None, None, ':2}')]],
                 [(None, 'f', '{"x":1}'), (None, 'g', '{"y":2}')]),
                ('the id comes late', [[call(0, None, 'f', '{"x"')], [call(0, 'a', None, ':1}')]], [one]),
                ('the name comes late', [[call(0, 'a', None, '')], [call(0, None, 'f', '{"x":1}')]], [one]),
                ('an object for arguments', [[call(0, 'a', 'f', {'x': 1})]], [one]),
                ('an empty object for arguments', [[call(0, 'a', 'f', {})]], [('a', 'f', '{}')]),
                ('null for arguments', [[call(0, 'a', None, None, function={'name': 'f', 'arguments': None})],
                                        [call(0, arguments='{"x":1}')],
                                        [call(0, None, None, None, function={'name': None, 'arguments': None})]],
                                        [one]),
                ('null and nothing for tool_calls', [None, [call(0, 'a', 'f', '{"x"')], None, [],
                                                     [call(0, arguments=':1}')], []], [one]),
                ('an empty call at the end, of the same index', [[call(0, 'a', 'f', '{"x":1}')],
                                                                 [call(0, '', None, None,
                                                                       function={'arguments': None})]], [one]),
                ('an empty call at the end, of the next index', [[call(0, 'a', 'f', '{"x":1}')],
                                                                 [call(1, '', None, None,
                                                                       function={'arguments': None})]], [one]),
                ('an empty call with an id', [[call(0, 'a', 'f', '{"x":1}')], [call(1, 'ghost', None, '')]], [one]),
                ('indexes from 1', [[call(1, 'a', 'f', '{"x"')], [call(1, arguments=':1}')],
                                    [call(2, 'b', 'g', '{"y":2}')]], [one, two]),
                ('the rest under another index', [[call(0, 'a', 'f')], [call(1, arguments='{"x"')],
                                                  [call(1, arguments=':1}')]], [one]),
                ('a gap in the indexes', [[call(0, 'a', 'f', '{"x"')], [call(5, 'b', 'g', '{"y":2}')],
                                          [call(0, arguments=':1}')]], [one, two]),
                ('a single call instead of a list', [call(0, 'a', 'f', '{"x"'), call(0, arguments=':1}')], [one]),
                ('null beside the function', [[dict(call(0, 'a', 'f', '{"x"'), name=None, arguments=None)],
                                              [dict(call(0, arguments=':1}'), name=None)]], [one]),
                ('function missing at first', [[call(0, 'a')], [call(0, None, 'f')], [call(0, arguments='{"x":1}')]],
                 [one]),
                ('function null', [[call(0, 'a', function=None)], [call(0, None, 'f', '{"x":1}')]], [one]),
                ('odd members', [[None, 'x', 7, call(0, 'a', 'f', '{"x":1}')], 'x', 7, [[]]], [one]),
                ('no arguments', [[call(0, 'a', 'f', '')]], [('a', 'f', '')]),
                ('no arguments at all', [[call(0, 'a', 'f')]], [('a', 'f', '')]),
                ('arguments cut short', [[call(0, 'a', 'f', '{"x": [1, ')]], [('a', 'f', '{"x": [1, ')])):
            chunks = [delta(tool_calls=fragments) for fragments in deltas] + [delta(finish_reason='tool_calls')]
            for looking in (False, True):  # what is read half-way changes nothing
                with self.subTest(name, looking=looking):
                    with self.stream(*chunks) as stream:
                        for _ in stream:
                            self.assertTrue(not looking or stream.completion)
                    calls = stream.completion.choices[0].message.tool_calls
                    found = [(call.id, call.function.name, call.function.arguments.replace(': 1}', ':1}'))
                             for call in calls]
                    self.assertEqual([(id if given[0] else None, *rest) for (id, *rest), given in zip(found, expected)],
                                     expected)
                    self.assertEqual(len(found), len(expected))
                    self.assertEqual({call.type for call in calls}, {'function'})
                    self.assertTrue(all(id and isinstance(id, str) for id, _, _ in found), found)
                    self.assertEqual(len({id for id, _, _ in found}), len(found), 'ids differ')

    def test_a_made_up_id_stays_the_same(self):
        with self.stream(delta(tool_calls=[self.call(0, None, 'f', '{}')]),
                         delta(finish_reason='tool_calls')) as stream:
            stream.collect()
        self.assertEqual(*[stream.completion.choices[0].message.tool_calls[0].id for _ in range(2)])

    def test_finish_reason_stop_takes_no_call_away(self):
        self.assertEqual(len(self.calls([self.call(0, 'a', 'f', '{}')], finish_reason='stop')), 1)

    def test_arguments_without_a_name_are_not_lost(self):
        self.assertEqual([call.function.arguments for call in self.calls([self.call(0, 'a', None, '{"x":1}')])],
                         ['{"x":1}'])

    def test_there_are_none_where_none_came(self):
        for deltas in ([], [None], [[]], [[self.call(0, '', None, None, function={'arguments': None})]]):
            with self.subTest(deltas):
                self.assertFalse(self.calls(*deltas))

    def test_each_choice_has_its_own(self):
        first, second = self.call(0, 'a', 'f', '{"x"'), self.call(0, 'b', 'g', '{"y"')
        completion = self.collect(delta(tool_calls=[first]), delta(index=1, tool_calls=[second]),
                                  delta(index=1, tool_calls=[self.call(0, arguments=':2}')]),
                                  delta(tool_calls=[self.call(0, arguments=':1}')]), delta(finish_reason='tool_calls'),
                                  delta(index=1, finish_reason='tool_calls'))
        self.assertEqual([[call.function.arguments for call in one.message.tool_calls] for one in completion.choices],
                         [['{"x":1}'], ['{"y":2}']])

    def test_a_call_has_the_shape_of_a_whole_reply_and_keeps_what_the_vendor_added(self):
        signature = {'google': {'thought_signature': 'c2ln'}}
        call, = self.calls([self.call(0, 'a', 'f', '{"x"', extra_content=signature)], [self.call(0, arguments=':1}')])
        self.assertEqual(call.to_dict(), {'id': 'a', 'type': 'function',
                                          'function': {'name': 'f', 'arguments': '{"x":1}'},
                                          'extra_content': signature})
        call, = self.calls([self.call(0, 'a', 'f', '{}')], [self.call(0, extra_content=signature)])
        self.assertEqual(call.extra_content, signature)

    def test_the_older_function_call_is_joined_too(self):
        message = self.message({'function_call': {'name': 'f', 'arguments': ''}},
                               {'function_call': {'name': '', 'arguments': '{"x"'}},
                               {'function_call': {'arguments': ':1}'}},
                               finish_reason='function_call')
        self.assertEqual((message.function_call.name, message.function_call.arguments), ('f', '{"x":1}'))

    def test_custom_calls_are_collected_as_function_calls_are(self):
        fragments = [{'index': 0, 'id': 'a', 'type': 'custom', 'custom': {'name': 'sql', 'input': ''}}] + [
            {'index': 0, 'custom': {'input': piece}} for piece in ('SELECT ', '1')]
        whole = {'id': 'a', 'type': 'custom', 'custom': {'name': 'sql', 'input': 'SELECT 1'}}
        self.assertEqual([call.to_dict() for call in self.calls(*[[fragment] for fragment in fragments])], [whole])
        message = {'role': 'assistant', 'content': None, 'tool_calls': [whole]}
        answer = {'object': 'chat.completion', 'choices': [
            {'index': 0, 'message': message, 'finish_reason': 'tool_calls'}]}
        with Server(reply(200, {}, answer)) as server, client(server) as asker:
            call, = ask(asker, stream=False).choices[0].message.tool_calls
            self.assertEqual((call.type, call.to_dict()['custom']), ('custom', whole['custom']))

    def test_parsed_arguments(self):
        for text, expected in (('{"x": [1, "é"]}', {'x': [1, 'é']}), ('', {}), ('{}', {}), (' {"x":1}\n', {'x': 1})):
            with self.subTest(text):
                call, = self.calls([self.call(0, 'a', 'f', text)])
                self.assertEqual(call.function.parsed_arguments, expected)
        for text in ('{"x": [1, ', '{"x":1}{"y":2}', 'get_weather(Berlin)', "{'x': 1}"):
            with self.subTest(text):
                call, = self.calls([self.call(0, 'a', 'f', text)], finish_reason='length')
                self.assertEqual(call.function.arguments, text)
                with self.assertRaises(ValueError) as caught:
                    self.fail(call.function.parsed_arguments)
                self.assertIn(text.strip(), str(caught.exception))


class UsageTests(ReplyTests):

    def test_the_last_block_with_a_count_is_the_usage(self):
        first, last = [{'prompt_tokens': 9, 'completion_tokens': n, 'total_tokens': 9 + n} for n in (1, 3)]
        zero = {'prompt_tokens': 0, 'completion_tokens': 0, 'total_tokens': 0}
        content, end = dict(delta('x')), {'choices': []}
        for name, chunks in (
                ('a last chunk without choices', [content, STOP, dict(end, usage=last)]),
                ('null on all others', [dict(content, usage=None), dict(STOP, usage=None), dict(end, usage=last)]),
                ('null after it', [content, dict(STOP, usage=last), dict(end, usage=None)]),
                ('growing on every chunk', [dict(content, usage=first), dict(STOP, usage=last)]),
                ('zeros before it', [dict(content, usage=zero), dict(STOP, usage=zero), dict(end, usage=last)]),
                ('zeros after it', [dict(content, usage=last), STOP, dict(end, usage=zero)]),
                ('nothing after it', [content, STOP, dict(end, usage=last), dict(end, usage={})]),
                ('on the chunk that finishes', [content, dict(STOP, usage=last)]),
                ('on the first chunk alone', [dict(content, usage=last), STOP]),
                ('with choices null', [content, STOP, {'choices': None, 'usage': last}]),
                ('without choices', [content, STOP, {'usage': last}]),
                ('under x_groq', [content, dict(STOP, x_groq={'id': 'req', 'usage': last})]),
                ('under x_groq, beside null', [content, dict(STOP, usage=None, x_groq={'usage': last})]),
                ('twice', [content, STOP, dict(end, usage=first), dict(end, usage=last)]),
                ('odd blocks', [content, STOP, dict(end, usage=last), dict(end, usage='none'), dict(end, usage=[7]),
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
            'prompt_tokens_details': {'cached_tokens': 1}, 'completion_tokens_details': {'reasoning_tokens': 2}}}).usage
        self.assertEqual((usage.completion_tokens_details.reasoning_tokens, usage.prompt_tokens_details.cached_tokens,
                          usage.cost), (2, 1, 0.25))


class FinishReasonTests(ReplyTests):

    def test_the_last_one_that_is_not_empty_counts(self):
        for reasons, expected in (
                ([None, 'stop'], 'stop'), (['', '', 'stop'], 'stop'), (['stop', None], 'stop'), (['stop', ''], 'stop'),
                (['stop', 'tool_calls'], 'tool_calls'),
                (['stop', 'stop', 'stop'], 'stop'), (['length'], 'length'), (['content_filter'], 'content_filter'),
                (['eos'], 'eos'), (['COMPLETE'], 'COMPLETE'),
                ([None], None), ([''], None)):
            with self.subTest(reasons):
                self.assertText(self.collect(*[delta('x', finish_reason=reason) for reason in reasons]),
                                'x' * len(reasons), expected)

    def test_an_end_without_done_needs_the_finish_of_every_choice(self):
        stop, more = delta(finish_reason='stop'), delta('!', index=1)
        for name, chunks, whole in (
                ('finished', [delta('Hi'), stop], True),
                ('not finished', [delta('Hi')], False),
                ('an empty reason', [delta('Hi', finish_reason='')], False),
                ('one of two', [delta('Hi'), more, stop], False),
                ('both', [delta('Hi'), more, stop, delta(index=1, finish_reason='length')], True),
                ('n=2, of which the second never came', [delta('Hi'), stop], False),
                ('n=2, and both', [delta('Hi'), stop, delta('!', 'stop', 1)], True),
                ('finished, then usage', [delta('Hi'), stop, {'choices': [], 'usage': {'total_tokens': 1}}], True),
                ('usage without choices does not finish', [delta('Hi'), {'usage': {'total_tokens': 1}}], False),
                ('usage alone does not finish', [delta('Hi'), {'choices': [], 'usage': {'total_tokens': 1}}], False),
                ('no choice at all', [{'choices': []}], False)):
            for framing in ('chunked', 'length', 'close'):
                with self.subTest(name, framing=framing):
                    self.answer = stream_reply(sse(*chunks, done=False), framing)
                    fields = {'n': 2} if 'n=2' in name else {}
                    with Server(self.answer) as server, client(server) as one:
                        if whole:
                            self.assertText(ask(one, **fields), 'Hi')
                        else:
                            error = self.assertBroken(one, 'Hi' if 'no choice' not in name else '', **fields)
                            self.assertIs(type(error), streamlite.APIConnectionError)


class SurrogateTests(ReplyTests):
    """An emoji is two surrogates in JSON's escapes, and some servers cut between them."""

    HIGH, LOW, WHOLE = '\ud83d', '\ude00', '\U0001f600'

    def pieces(self, *deltas):
        """Deltas as chunks with escapes; each a dict, or the text of choice 0."""
        chunks = [delta(**piece) if isinstance(piece, dict) else delta(piece) for piece in deltas]
        return [json.dumps(chunk) for chunk in chunks + [STOP]]

    @staticmethod
    def relayed(stream, name):
        """A field of choice 0's deltas, as a browser reads it."""
        choices = [one for item in decode(stream) if item.data != '[DONE]' for one in json.loads(item.data)['choices']]
        return [one['delta'].get(name) or '' for one in choices if one['index'] == 0]

    def test_text_comes_out_whole_and_always_encodes(self):
        high, low = self.HIGH, self.LOW
        for name, deltas, expected in (
                ('whole', ['a', self.WHOLE, 'b'], 'a😀b'),
                ('cut', ['a' + high, low + 'b'], 'a😀b'),
                ('cut, with a chunk between', ['a' + high, '', {'role': 'assistant'}, low + 'b'], 'a😀b'),
                ('cut twice', [high, low + high, low], '😀😀'),
                ('high alone at the end', ['a', high], 'a\ufffd'),
                ('high alone in the middle', ['a' + high + 'b', 'c'], 'a\ufffdbc'),
                ('high alone between deltas', ['a' + high, 'b'], 'a\ufffdb'),
                ('low alone', [low + 'a', 'b' + low], '\ufffdab\ufffd'),
                ('the wrong way round', [low, high, 'x'], '\ufffd\ufffdx'),
                ('two highs', [high, high, low], '\ufffd😀'),
                ('a high that another field follows', [high, {'reasoning_content': low}, 'x'], '\ufffdx'),
                ('a high that another choice follows', [high, {'content': low, 'index': 1}, low], '😀')):
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
        call = ToolCallTests.call
        chunks = self.pieces(
            {'reasoning_content': 'a' + self.HIGH}, {'reasoning_content': self.LOW + 'b' + self.HIGH},
            {'tool_calls': [call(0, 'a', 'f', '{"x":"' + self.HIGH)]},
            {'tool_calls': [call(1, 'b', 'g', '{"y":"' + self.HIGH)]},
            {'tool_calls': [call(0, arguments=self.LOW + '"}')]}, {'tool_calls': [call(1, arguments='"}')]})
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
        call = ToolCallTests.call
        for done in (True, False):
            with self.subTest(done=done):
                message = self.collect(*self.pieces(
                    {'tool_calls': [call(0, 'a', 'f', '{}')]},
                    {'tool_calls': [call(1, 'b', 'g', '{"y":"' + self.HIGH)]},
                    {'content': 'a' + self.HIGH}, {'reasoning_content': 'b' + self.HIGH}), done=done).choices[0].message
                self.assertEqual((message.content, message.reasoning_content), ('a\ufffd', 'b\ufffd'))
                self.assertEqual([call.function.arguments for call in message.tool_calls], ['{}', '{"y":"\ufffd'])

    def test_only_fields_that_are_joined_wait_for_the_other_half(self):
        first, second = [{'title': 'cut ' + self.HIGH}], [{'title': 'whole'}, {'title': self.LOW}]
        for name, deltas, expected in (
                ('the last', [{'annotations': first}, 'Hi'], [{'title': 'cut \ufffd'}]),
                ('one that another follows', [{'annotations': first}, {'annotations': second}, 'Hi'],
                 [{'title': 'whole'}, {'title': '\ufffd'}])):
            with self.subTest(name):
                message = self.collect(*self.pieces(*deltas)).choices[0].message
                self.assertEqual((message.content, message.annotations), ('Hi', expected))

    def test_log_probabilities_encode(self):
        chunks = [choice(delta={'content': half}, logprobs={'content': [{'token': half}]})
                  for half in (self.HIGH, self.LOW)]
        one = self.collect(*[json.dumps(chunk) for chunk in chunks + [STOP]]).choices[0]
        self.assertEqual([token.token for token in one.logprobs.content], ['\ufffd', '\ufffd'])
        self.assertEqual(one.message.content, '😀')

    def test_the_completion_so_far_encodes_too(self):
        with self.stream(*self.pieces('a' + self.HIGH, self.LOW)) as stream:
            for _ in stream:
                text_of(stream.completion).encode()
                stream.completion.to_json().encode()
        self.assertEqual(text_of(stream.completion), 'a😀')

    def test_a_cut_stream_hands_over_what_encodes(self):
        error = self.error_of(json.dumps(delta('a' + self.HIGH)), done=False)
        self.assertIn(text_of(error.partial), ('a', 'a\ufffd'))


# ---- wire objects --------------------------------------------------------------------------------

class WireObjectTests(ReplyTests):

    def chunk(self, **fields):
        with self.stream(dict(delta('Hi', role='assistant', reasoning_content='hm'), **fields), STOP) as stream:
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

    def test_a_misspelt_attribute_is_an_attribute_error(self):
        chunk, completion = self.chunk(), self.collect(*CHUNKS)
        for instance, name in ((chunk, 'choises'), (chunk.choices[0], 'detla'), (chunk.choices[0].delta, 'contnet'),
                               (completion, 'choise'), (completion.choices[0].message, 'contnet')):
            with self.subTest(name):
                self.assertRaises(AttributeError, getattr, instance, name)

    def test_an_undocumented_field_is_simply_there(self):
        chunk = self.chunk(citations=['u'], x_vendor={'a': {'b': 1}})
        self.assertEqual(chunk.choices[0].delta.reasoning_content, 'hm')
        self.assertEqual(chunk.citations, ['u'])
        self.assertEqual(chunk.x_vendor, {'a': {'b': 1}})

    def test_no_key_of_the_server_shadows_a_method(self):
        names = [name for name in dir(self.chunk()) if callable(getattr(self.chunk(), name))]
        self.assertIn('to_dict', names)
        sent = dict(delta('Hi', **dict.fromkeys(names, 1)), **dict.fromkeys(names + ['__dict__', '__slots__'], 1))
        with self.stream(sent, STOP) as stream:
            chunk = list(stream)[0]
        for instance, expected in ((chunk, sent), (chunk.choices[0].delta, sent['choices'][0]['delta'])):
            self.assertEqual(instance.to_dict(), expected)
            self.assertEqual(json.loads(instance.to_json()), expected)
            self.assertEqual(instance.model_dump()['to_dict'], 1)
            self.assertEqual(json.loads(instance.model_dump_json())['to_dict'], 1)
            repr(instance)
        message = stream.completion.choices[0].message
        self.assertEqual(message.content, 'Hi')
        self.assertEqual(message.to_dict()['content'], 'Hi')

    def test_a_chunk_is_what_the_server_sent(self):
        sent = dict(delta('Hi', role='assistant',
                          tool_calls=[{'index': 0, 'id': 'a', 'function': {'name': 'f', 'arguments': ''}}],
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
        self.assertEqual(completion.model_dump(by_alias=True, mode='json', warnings=False), every)  # no meaning here
        self.assertIs(type(plain['choices'][0]['message']), dict)
        plain['choices'][0]['message']['content'] = 'changed'
        self.assertText(completion, 'Hello world')

    def test_json_is_json_even_where_the_server_sent_none(self):
        chunk = self.chunk(x=float('nan'), y=[float('inf'), -float('inf')])
        self.assertEqual(json.loads(chunk.to_json(), parse_constant=self.fail)['y'], [None, None])

    def test_pickled_and_copied_it_is_the_same(self):
        chunk = self.chunk(x_vendor={'a': [1]})
        completion = self.collect(delta(tool_calls=[{'index': 0, 'id': 'a',
                                                     'function': {'name': 'f', 'arguments': '{"x":1}'}}]),
                                                     delta(finish_reason='tool_calls'),
                                  {'choices': [], 'usage': {'total_tokens': 1}})
        for original in (chunk, completion):
            for name, twin in (('pickle', pickle.loads(pickle.dumps(original))), ('copy', copy.copy(original)),
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


class ReplayTests(ReplyTests):

    def sent(self, *messages):
        """What the server receives of these messages."""
        self.answer = stream_reply(HELLO)
        ask(self.client, messages=list(messages)).collect()
        return self.server.requests[-1].json['messages']

    def test_a_collected_message_goes_back_with_what_is_set_and_what_vendors_added(self):
        signature = {'google': {'thought_signature': 'c2ln'}}
        message = self.message(
            {'role': 'assistant', 'content': None, 'refusal': None, 'reasoning_content': 'Look '},
            {'reasoning_content': 'it up.'},
            {'tool_calls': [{'index': 0, 'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': ''},
                             'extra_content': signature}]},
            {'tool_calls': [{'index': 0, 'function': {'arguments': '{"x":1}'}}]}, finish_reason='tool_calls')
        self.assertEqual(message.tool_calls[0].function.parsed_arguments, {'x': 1})
        question, answer = {'role': 'user', 'content': 'hi'}, {'role': 'tool', 'tool_call_id': 'a', 'content': '7'}
        expected = {'role': 'assistant', 'reasoning_content': 'Look it up.', 'tool_calls': [
            {'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x":1}'},
             'extra_content': signature}]}
        self.assertEqual(self.sent(question, message, answer), [question, expected, answer])
        self.assertEqual(self.sent(copy.deepcopy(message)), [expected])

    def test_text_goes_back_with_its_reasoning(self):
        message = self.message({'role': 'assistant', 'content': ''}, {'reasoning': 'hm'}, {'content': 'Hi 😀'})
        self.assertEqual(self.sent(message), [{'role': 'assistant', 'reasoning': 'hm', 'content': 'Hi 😀'}])

    def test_the_message_of_a_whole_reply_goes_back_without_its_nulls(self):
        self.answer = reply(200, {}, dict(WHOLE, choices=[{'index': 0, 'finish_reason': 'stop', 'message': {
            'role': 'assistant', 'content': 'Hi', 'refusal': None, 'annotations': [], 'tool_calls': None,
            'function_call': None, 'audio': None}}]))
        message = ask(self.client, stream=False).choices[0].message
        received, = self.sent(message)
        self.assertEqual({name: value for name, value in received.items() if name != 'annotations'},
                         {'role': 'assistant', 'content': 'Hi'})

    def test_wire_objects_inside_a_dict_go_back_too(self):
        message = self.message({'tool_calls': [{'index': 0, 'id': 'a', 'type': 'function',
                                                'function': {'name': 'f', 'arguments': '{}'}}]},
                                                finish_reason='tool_calls')
        received, = self.sent({'role': 'assistant', 'content': None, 'tool_calls': message.tool_calls})
        self.assertEqual(received['tool_calls'],
                         [{'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}])


# ---- accumulation --------------------------------------------------------------------------------

class AccumulatorTests(ReplyTests):

    RICH = [
        delta('Hel', role='assistant'), delta('lo', reasoning_content='h'), delta(reasoning_content='m', index=1),
        delta(' world', index=1),
        choice(delta={}, logprobs={'content': [{'token': 'a', 'logprob': -1}], 'refusal': None}),
        choice(delta={}, logprobs={'content': [{'token': 'b', 'logprob': -1}]}),
        delta(tool_calls=[{'index': 0, 'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': ''}}]),
        delta(tool_calls=[{'index': 0, 'function': {'arguments': '{"x":'}}]),
        delta(tool_calls=[{'index': 0, 'function': {'arguments': '1}'}}]),
        delta(audio={'id': 'x', 'data': 'QUJD'}), delta(audio={'data': 'REVG'}), delta(finish_reason='tool_calls'),
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
            self.assertEqual(completion.to_json(), text, 'one that was read does not change any more')

    def test_the_finish_reason_is_not_there_before_it_came(self):
        with self.stream(*CHUNKS) as stream:
            seen = [stream.completion.choices[0].finish_reason for _ in stream]
        self.assertEqual(seen, [None, None, None, 'stop'])

    def test_a_megabyte_of_arguments_in_fragments_takes_linear_time(self):
        fragment = {'index': 0, 'function': {'arguments': '1,2,'}}
        with self.stream(delta(tool_calls=[{'index': 0, 'id': 'a', 'function': {'name': 'f', 'arguments': '['}}]),
                         delta(tool_calls=[fragment]), STOP) as stream:
            first, more, _ = stream

        def seconds(count):
            accumulator = streamlite.Accumulator()
            accumulator.add(first)
            start = time.process_time()
            for _ in range(count):
                accumulator.add(more)
            arguments = accumulator.completion.choices[0].message.tool_calls[0].function.arguments
            taken = time.process_time() - start
            self.assertEqual(len(arguments), 1 + 4 * count)
            return taken

        self.assertLess(seconds(1 << 18), 10 * seconds(1 << 16))


# ---- garbage -------------------------------------------------------------------------------------

class GarbageTests(ReplyTests):
    """Whatever comes, there is a completion or an error of our own, and both can be shown."""

    SEED = 20260
    RICH = dict(
        delta('Hi', role='assistant', refusal='no', reasoning_content='hm', reasoning='hm',
              reasoning_details=[{'type': 'reasoning.text', 'text': 'hm', 'index': 0}],
              tool_calls=[{'index': 0, 'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"x":'},
                           'extra_content': {'s': 't'}}],
              function_call={'name': 'f', 'arguments': '{'}, audio={'id': 'x', 'data': 'QUJD', 'transcript': 't'},
              annotations=[{'type': 'url'}]),
        usage={'prompt_tokens': 1, 'completion_tokens': 2, 'total_tokens': 3,
               'completion_tokens_details': {'reasoning_tokens': 1}},
        x_groq={'usage': {'total_tokens': 3}}, error=None, system_fingerprint='fp')
    RICH['choices'][0]['logprobs'] = {'content': [{'token': 'a', 'logprob': -1, 'bytes': [1], 'top_logprobs': []}],
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
                            self.assertTrue(hasattr(one, 'finish_reason') and hasattr(one.delta, 'content'), one)
        except streamlite.APIError as error:
            str(error).encode()
            self.assertEqual(error.partial, stream.completion)
        stream.completion.to_json().encode()
        for one in stream.completion.choices:
            for name in ('content', 'refusal', 'reasoning_content', 'reasoning'):
                (getattr(one.message, name, None) or '').encode()
            for call in one.message.tool_calls or ():
                call.function.arguments.encode()

    def test_bytes_flipped_dropped_and_doubled(self):
        rand = random.Random(self.SEED)
        good = sse(*[self.RICH] + CHUNKS)
        for number in range(240):
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
                    body[at:at] = rand.choice((b'\n\n', b'\r', b'data: ', b'{', b'}', b'"', b'\xff', b'\\ud800',
                                               b'null', b'[DONE]', b'1e999', b'\0'))
            with self.subTest(number):
                self.check(bytes(body), number % 4)

    def test_json_values_of_every_type_in_every_place(self):
        values = [None, True, 0, -1, 1.5, 10 ** 30, '', 'x', '7', '\ud800', [], [None], ['x'], [[]], [{}], {}, {'x': 1},
                  {'index': {}, 'message': []}, float('nan')]
        rand = random.Random(self.SEED)
        for path in self.paths(self.RICH):
            rand.shuffle(values)
            for way in range(4):  # a value that ends a stream hides the later ones, so each way has a part of them
                chunks = [json.dumps(self.changed(path, value)) for value in values[way::4]]
                with self.subTest(path, way=way):
                    self.check(sse(LINES[0], *chunks + [LINES[3]]), way)

    @classmethod
    def paths(cls, value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
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


# ==================================================================================================
# The network
# ==================================================================================================

PATH = '/v1/chat/completions'
HEL, LO, WORLD, FINISH = (sse(piece, done=False) for piece in (
    delta('Hel', role='assistant'), delta('lo '), delta('world'), delta(finish_reason='stop')))
DONE = sse()
FINISHED = HEL + LO + WORLD + FINISH
GZIP = {'Content-Encoding': 'gzip'}
AGAIN = {'retry-after-ms': '1'}  # a server that wants the next attempt at once keeps the tests short

Outcome = collections.namedtuple('Outcome', 'result seconds requests connections')


def outcome(scripts, url='%s', **options):
    """What streaming from such a server comes to: the text, or the error; nothing but an OpenAIError is an outcome."""
    with Server(*scripts) as server:
        start = time.monotonic()
        try:
            with client(server, **dict({'base_url': url % server.url}, **options)) as asker, ask(asker) as stream:
                result = ''.join(stream.text())
        except streamlite.OpenAIError as error:
            remember(error)
            result = error
        return Outcome(result, time.monotonic() - start, server.requests, server.connections)


def at_once(*calls):
    """What the calls return, all made at the same time, so that many short waits cost as much as one."""
    results = [None] * len(calls)

    def run(number, call):
        try:
            results[number] = call()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def outcomes(cases, **options):
    """The names of a table's cases and what comes of them, tried at the same time."""
    return zip(cases, at_once(*[lambda scripts=scripts: outcome(scripts, **options) for scripts in cases.values()]))


def pace(what, start=b'', seconds=0.01):
    """A script that says `start`, then `what` again and again until the client has gone."""
    def script(peer):
        peer.send(start)
        while not peer.wait_closed(seconds):
            peer.send(what)
    return script


def flood(start, piece, most):
    """A script that says `piece` as fast as it is read, and fails when `most` bytes were taken (buffers take some)."""
    def script(peer):
        peer.send(start)
        for _ in range(most // len(piece)):
            peer.send(piece)
        raise AssertionError('%d bytes were read' % most)
    return script


# ---- whole or an error ---------------------------------------------------------------------------

class FramingTest(TestCase):

    def test_every_framing_and_head_delivers_the_whole_answer(self):
        stream_head = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n'
        cases = {
            'chunked': stream_reply(HELLO),
            'Content-Length': stream_reply(HELLO, 'length'),
            'ended by the close': stream_reply(HELLO, 'close'),
            'HTTP/1.0': cut(b'HTTP/1.0 200 OK\r\n\r\n' + HELLO),
            'no reason phrase': cut(b'HTTP/1.1 200\r\n\r\n' + HELLO),
            'a chunk for each byte': CHUNKED_HEAD + chunked(HELLO, 1),
            'extension, zeros, capitals, trailer':
                CHUNKED_HEAD + b'000%X;name="a;b"\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n' % (len(HELLO), HELLO),
            'no content type': cut(head(200) + HELLO),
            'another content type': stream_reply(HELLO, headers={'Content-Type': 'TEXT/Plain; Charset=no-such'}),
            'a folded header and one in latin-1': cut(stream_head + b'X: a\r\n b\r\nY: \xe9\r\n\r\n' + HELLO),
            'interim answers before it': b'HTTP/1.1 100 Continue\r\n\r\n' + head(102) + head(103, {'Link': '</x>'}) +
                                         stream_reply(HELLO),
            'comments': stream_reply(b': ping\n\n' * 200 + HEL + b':\n\n' + LO + WORLD + FINISH + DONE),
            '[DONE] without its line end': stream_reply(FINISHED + b'data: [DONE]', 'close'),
            'finish_reason without its blank line': stream_reply(FINISHED.rstrip(), 'close'),
            'no [DONE]': stream_reply(FINISHED, 'close'),
        }
        for name, result in outcomes({name: [script] for name, script in cases.items()}):
            with self.subTest(name):
                self.assertEqual(result.result, 'Hello world')

    def test_an_answer_that_was_cut_is_never_whole(self):
        cases = {
            'ended by the close': stream_reply(HELLO_CUT, 'close'),
            'its exact Content-Length': stream_reply(HELLO_CUT, 'length'),
            'a short Content-Length': cut(stream_reply(HELLO_CUT, 'length', {'Content-Length': len(HELLO)})),
            'a Content-Length inside an event': stream_reply(HELLO, 'length', {'Content-Length': len(HELLO_CUT) + 9}),
            'no last chunk': cut(begun(HELLO_CUT)),
            'a clean last chunk': stream_reply(HELLO_CUT),
            'a clean last chunk inside an event': stream_reply(HELLO_CUT + WORLD[:-20]),
            'reset': reset(begun(HELLO_CUT)),
            'truncated gzip, clean last chunk': stream_reply(zlib_bytes(31, HELLO_CUT)[:-8], headers=GZIP),
            'whole gzip of half a stream': stream_reply(zlib_bytes(31, HELLO_CUT), headers=GZIP),
        }
        for name, script in cases.items():
            with self.subTest(name), Server(script) as server, client(server) as asker:
                error = self.assertBroken(asker, 'Hello ')
                self.assertIsNone(error.partial.choices[0].finish_reason)
                self.assertSays(error, '127.0.0.1:%d' % server.port, PATH)

    def test_a_cut_tool_call_keeps_its_fragments(self):
        call = {'index': 0, 'id': 'call_1', 'type': 'function', 'function': {'name': 'look', 'arguments': ''}}
        more = {'index': 0, 'function': {'arguments': '{"city": "Par'}}
        body = sse(delta(tool_calls=[call]), delta(tool_calls=[more]), done=False)
        with Server(stream_reply(body)) as server, client(server) as asker:
            error = self.assertBroken(asker, '')
        function = error.partial.choices[0].message.tool_calls[0].function
        self.assertEqual((function.name, function.arguments), ('look', '{"city": "Par'))
        self.assertRaises(ValueError, getattr, function, 'parsed_arguments')

    def test_a_chunked_answer_cut_at_every_byte(self):
        pieces = [b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text for text in (b'Hel', b'lo')]
        pieces += [b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', b'data: [DONE]\n\n']
        body = b''.join(pieces)
        wire, decoded = b'', [b'']  # decoded[n] is the body that the first n bytes on the wire hold
        for at in range(0, len(body), 30):
            piece = body[at:at + 30]
            framed = chunked(piece, last=False)
            start = framed.index(b'\n') + 1
            wire += framed
            decoded += [body[:at + min(max(0, n - start), len(piece))] for n in range(1, len(framed) + 1)]
        with Server(*[cut(CHUNKED_HEAD + wire[:n]) for n in range(len(decoded))]) as server, client(server) as asker:
            for n, arrived in enumerate(decoded):
                # an event counts from its blank line on, and may count from its last brace on
                least, most = arrived.count(b'\n\n'), arrived.count(b']}')
                with ask(asker) as stream:
                    try:
                        list(stream)
                        whole = True
                    except streamlite.APIConnectionError as error:
                        remember(error)
                        whole = False
                with self.subTest(cut_after=n):
                    texts = ['', 'Hel', 'Hello', 'Hello', 'Hello'][least:max(least, most) + 1]
                    self.assertIn(text_of(stream.completion), texts)
                    self.assertIn(whole, [True] if least >= 3 else [True, False] if most >= 3 else [False])

    def test_a_bad_chunk_ends_the_stream_after_what_came_before_it(self):
        good = begun(HEL) + chunked(LO, last=False)
        rest = chunked(WORLD)[4:]
        sizes = [b'-5', b'+5', b'0x10', b'1_0', b'F' * 40, b'', b'\xd9\xa5', b'5 5', b'x', b'<html>']
        cases = {size: good + size + b'\r\n' + rest for size in sizes}
        cases.update({
            'a size that ends in LF': good + b'5\n' + rest,
            'a chunk longer than it says': good + b'3\r\nabcdef\r\n',
        })
        cases = {name: cut(answer) for name, answer in cases.items()}
        cases['an endless size'] = flood(good, b'0' * 500, 1 << 27)
        cases['an endless extension'] = flood(good + b'5;', b'x' * 500, 1 << 27)
        for name, script in cases.items():
            with self.subTest(name), Server(script) as server, client(server) as asker, self.assertTakes(0, 1):
                self.assertBroken(asker, 'Hello ')

    def test_after_done_or_finish_nothing_turns_success_into_an_error(self):
        finished = chunked(FINISHED, last=False)
        done = chunked(FINISHED + DONE, last=False)
        cases = {}
        for name, start in (('finish_reason', finished), ('[DONE]', done)):
            start = CHUNKED_HEAD + start
            cases.update({
                name + ', then the end': cut(start),
                name + ', then a reset': reset(start),
                name + ', then garbage': cut(start + b'\xff\x00garbage\r\n\r\n'),
                name + ', then a bad chunk size': cut(start + b'-5\r\n'),
                name + ', then half a chunk': cut(start + b'20\r\ndata: {"cho'),
                name + ', then silence': stall(start),
                name + ', then comments': pace(chunked(b':\n\n', last=False), start),
            })
        cases['[DONE], then an error event'] = cut(CHUNKED_HEAD + chunked(HELLO + sse({'error': {'message': 'late'}})))
        compressed = zlib_bytes(31, HELLO)
        cases['truncated gzip'] = stream_reply(compressed[:-8], headers=GZIP)
        for name, result in outcomes({name: [script] for name, script in cases.items()}, timeout=0.2):
            with self.subTest(name):
                self.assertEqual(result.result, 'Hello world')
                self.assertLess(result.seconds, 1.5)


def zlib_bytes(window, body):
    """31: gzip, 15: zlib, -15: raw deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    return packer.compress(body) + packer.flush()


class OurErrorsTest(TestCase):

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
            with self.subTest(name), Server(cut(answer)) as server, client(server) as asker:
                error = self.assertBroken(asker, '')
                self.assertSays(error, '127.0.0.1:%d' % server.port)

    def test_a_doubtful_head_is_our_error_or_no_error(self):
        start = b'HTTP/1.1 200 OK\r\n'
        cases = {
            'a negative length': start + b'Content-Length: -1\r\n\r\n' + HELLO,
            'a length of letters': start + b'Content-Length: abc\r\n\r\n' + HELLO,
            'a length of other digits': start + b'Content-Length: \xb2\r\n\r\n' + HELLO,
            'length and chunked': start + b'Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n' + chunked(HELLO),
            'a header without a colon': start + b'nonsense\r\n\r\n' + HELLO,
            'NUL': start + b'X: a\x00b\r\n\r\n' + HELLO,
            'bare LF': start.replace(b'\r', b'') + b'X: 1\n\n' + HELLO,
            'chunks of another coding': start + b'Transfer-Encoding: gzip, chunked\r\n\r\n' + chunked(HELLO),
        }
        for name, result in outcomes({name: [cut(answer)] for name, answer in cases.items()}):
            with self.subTest(name):
                if isinstance(result.result, str):
                    self.assertEqual(result.result, 'Hello world')
                else:
                    self.assertIsInstance(result.result, streamlite.APIConnectionError)

    def test_what_is_no_completion_is_told_with_its_start_and_the_likely_cause(self):
        page = b'<!doctype html><html><title>Sign in to the guest network</title></html>'
        utf_16 = {'Content-Type': 'text/event-stream; charset=utf-16'}
        cases = {
            'HTML': (reply(200, {'Content-Type': 'text/html'}, page), 'guest network'),
            'foreign JSON': (reply(200, {}, {'weather': 'fine'}), 'weather'),
            'text': (reply(200, {}, b'It works!'), 'It works!'),
            'UTF-16': (reply(200, utf_16, HELLO.decode().encode('utf-16')), ''),
        }
        for name, (answer, words) in cases.items():
            with self.subTest(name), Server(answer) as server, client(server, max_retries=2) as asker:
                for options in {}, {'stream': False}:
                    with self.assertRaises(streamlite.APIResponseValidationError) as caught:
                        with ask(asker, **options) as stream:
                            list(stream)
                    self.assertSays(caught.exception, words)
                    self.assertEqual(caught.exception.status_code, 200)
                self.assertEqual(len(server.requests), 2)  # asking again would bring the same page

    def test_json_in_place_of_a_stream_is_delivered(self):
        whole = {'object': 'chat.completion', 'id': 'x', 'choices': [
            {'index': 0, 'message': {'role': 'assistant', 'content': 'Hello world'}, 'finish_reason': 'stop'}]}
        error = {'error': {'message': 'no such luck', 'code': 'unlucky'}}
        scripts = reply(200, {}, whole), stream_reply(HELLO), reply(200, {}, error)
        with Server(*scripts) as server, client(server) as asker:
            self.assertText(ask(asker), 'Hello world')
            self.assertText(ask(asker, stream=False), 'Hello world')  # and the reverse
            self.assertSays(self.assertBroken(asker, '', streamlite.APIError), 'no such luck')

    def test_an_error_event_has_the_servers_words(self):
        words = {'message': 'the model fell over', 'type': 'server_error', 'code': 'E7', 'param': 'p'}
        cases = {
            'an object': sse({'error': words}),
            'a string': sse({'error': 'the model fell over'}),
            'an event named error': b'event: error\n' + sse({'error': words}),
            'a flat one named error': b'event: error\n' + sse(words),
            'with choices': sse(dict(delta(finish_reason='error'), error=words)),
            'without data:': json.dumps({'error': words}).encode() + b'\n\n',
        }
        for name, event in cases.items():
            script = stream_reply(HEL + event)
            with self.subTest(name), Server(script) as server, client(server, max_retries=2) as asker:
                error = self.assertBroken(asker, 'Hel', streamlite.APIError)
                if name != 'without data:':  # a line that is no field of an event, in the middle of a stream
                    self.assertSays(error, 'the model fell over')
                    if name != 'a string':
                        self.assertEqual((error.type, error.code, error.param), ('server_error', 'E7', 'p'))
                self.assertEqual(len(server.requests), 1)


# ---- statuses ------------------------------------------------------------------------------------

class StatusTest(TestCase):

    def test_each_status_has_its_class_and_the_servers_words(self):
        cases = {400: 'BadRequestError', 401: 'AuthenticationError', 402: 'APIStatusError',
                 403: 'PermissionDeniedError', 404: 'NotFoundError', 409: 'ConflictError', 418: 'APIStatusError',
                 422: 'UnprocessableEntityError', 429: 'RateLimitError'}
        cases.update((status, 'InternalServerError') for status in (500, 502, 503, 504, 529, 599))
        for status, name in cases.items():
            answer = error_reply(status, {'x-request-id': 'req_7'}, 'that went wrong', type='t', code='c', param='p')
            with self.subTest(status), Server(answer) as server, client(server) as asker:
                for options in {}, {'stream': False}:
                    with self.assertRaises(streamlite.APIStatusError) as caught:
                        ask(asker, **options)
                    error = caught.exception
                    self.assertIs(type(error), getattr(streamlite, name))
                    self.assertEqual((error.status_code, error.request_id, error.type, error.code, error.param),
                                     (status, 'req_7', 't', 'c', 'p'))
                    self.assertEqual(error.body['message'], 'that went wrong')
                    self.assertEqual(error.response.status_code, status)
                    self.assertEqual(error.request.method, 'POST')
                    self.assertEqual(error.message, str(error))
                    self.assertSays(error, status, 'that went wrong')

    def test_a_strange_error_body_still_gives_the_status(self):
        length, in_chunks = {'Content-Length': 1000}, {'Transfer-Encoding': 'chunked'}
        cases = {
            'HTML': (reply(500, {}, b'<html><title>502 Bad Gateway</title></html>'), 'Bad Gateway'),
            'bytes that are no text': (reply(500, {}, b'\xff\xfe\xff bad'), 'bad'),
            'a JSON list': (reply(500, {}, [1, 2, 3]), ''),
            'a JSON string': (reply(500, {}, b'"overloaded"'), 'overloaded'),
            'null': (reply(500, {}, b'null'), ''),
            'FastAPI': (reply(500, {}, {'detail': [{'loc': ['body'], 'msg': 'field required'}]}), 'field required'),
            'Google': (reply(500, {}, [{'error': {'message': 'quota of the project'}}]), 'quota of the project'),
            'a message that is an object': (reply(500, {}, {'error': {'message': {'nested': True}, 'code': 42}}), ''),
            'a long integer': (reply(500, {}, b'{"error":{"message":"m","code":%s}}' % (b'9' * 5000)), ''),
            'deep JSON': (reply(500, {}, b'[' * 100000), ''),
            '300 levels': (reply(500, {}, b'{"error":{"message":"m","x":%s%s}}' % (b'[' * 300, b']' * 300)), ''),
            'empty': (reply(500), ''),
            'an error that is a string': (reply(500, {}, {'error': 'model not loaded'}), 'model not loaded'),
            'cut': (cut(head(500, length) + b'out of memory'), 'out of memory'),
            'reset': (reset(head(500, length) + b'out of memory'), 'out of memory'),
            'cut in a chunk': (cut(head(500, in_chunks) + b'20\r\nout of memory'), 'out of memory'),
            'stalled': (stall(head(500, length) + b'out of memory'), 'out of memory'),
            'dripping': (pace(b'.', head(500) + b'out of memory'), 'out of memory'),
            'gzip': (reply(500, GZIP, zlib_bytes(31, b'out of memory')), 'out of memory'),
            'brotli': (reply(500, {'Content-Encoding': 'br'}, b'\x0b\x02\x80hello\x03'), ''),
        }
        results = outcomes({name: [answer] for name, (answer, words) in cases.items()}, timeout=0.2)
        for name, result in results:
            with self.subTest(name):
                self.assertIs(type(result.result), streamlite.InternalServerError)
                self.assertSays(result.result, 500, cases[name][1])
                self.assertLess(len(str(result.result)), 2000)
                self.assertLess(result.seconds, 0.2 + 0.5)

    def test_only_the_start_of_a_huge_error_body_is_read(self):
        result = outcome([flood(head(500), b'e' * 65536, 1 << 28)])
        self.assertIs(type(result.result), streamlite.InternalServerError)
        self.assertLess(len(str(result.result.body)), 1 << 20)
        self.assertLess(result.seconds, 1)  # the quarter of a gigabyte takes longer

    def test_a_status_that_http_does_not_know(self):
        for status in 204, 300, 304, 600, 999:
            with self.subTest(status):
                result = outcome([cut(head(status, dict(AGAIN, **{'Content-Length': 0})))], max_retries=2)
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertTrue(status == 204 or len(result.requests) == 1, 'it was retried')

    def test_a_wrong_key_and_an_unknown_model_come_with_what_to_do(self):
        with Server(error_reply(401, message='Incorrect API key provided'),
                    error_reply(404, message='The model `gpt-9` does not exist', code='model_not_found')) as server:
            with client(server) as asker:
                with self.assertRaises(streamlite.AuthenticationError) as caught:
                    ask(asker)
                self.assertSays(caught.exception, 'key', '127.0.0.1')
                with self.assertRaises(streamlite.NotFoundError) as caught:
                    ask(asker, model='gpt-9')
                self.assertSays(caught.exception, 'gpt-9')


# ---- retries -------------------------------------------------------------------------------------

class RetryTest(TestCase):

    def test_what_may_be_cured_is_asked_again_with_the_same_bytes(self):
        for status in 408, 409, 429, 500, 502, 503, 504, 529:
            answer = error_reply(status, dict(AGAIN, **({'Content-Encoding': 'br'} if status == 503 else {})))
            with self.subTest(status), Server(answer, answer, stream_reply(HELLO)) as server:
                with client(server, max_retries=2) as asker:
                    self.assertText(ask(asker), 'Hello world')
                first, second, third = server.requests
                self.assertEqual(first.body, second.body)
                self.assertEqual(first.body, third.body)
                self.assertEqual(first.json['messages'], [{'role': 'user', 'content': 'hi'}])
                self.assertEqual(first.headers, third.headers)

    def test_what_would_come_again_is_not(self):
        for answer in [error_reply(status, AGAIN) for status in (400, 401, 402, 403, 404, 418, 422)] + [
                error_reply(429, AGAIN, code='insufficient_quota'), error_reply(429, AGAIN, type='insufficient_quota'),
                error_reply(503, dict(AGAIN, **{'x-should-retry': 'false'}))]:
            with self.subTest(answer), Server(answer) as server, client(server, max_retries=2) as asker:
                with self.assertRaises(streamlite.APIStatusError) as caught:
                    ask(asker)
                self.assertEqual(len(server.requests), 1)
                self.assertEqual(caught.exception.attempts, 1)

    def test_x_should_retry_says_so_for_any_status(self):
        answer = error_reply(400, dict(AGAIN, **{'x-should-retry': 'true'}))
        self.assertEqual(outcome([answer, stream_reply(HELLO)], max_retries=2).result, 'Hello world')

    def test_the_server_says_when(self):
        cases = {  # the header, least and most seconds of the wait
            ('retry-after-ms', '30'): (0.03, 0.37),
            ('Retry-After', '0.03'): (0.03, 0.37),
        }
        backoff = (0.375, 1.5)  # half a second less up to a quarter, where the server says nothing of use
        for value in ('', 'nan', '-5', 'inf', '1e400', '9' * 5000, 'soon', '\xb2', 'Fri, 31 Dec 1999 23:59:59 GMT',
                      'Fri, 99 Foo 2026 99:99:99 GMT'):
            cases[('Retry-After', value)] = backoff
        cases[('retry-after-ms', 'nan')] = backoff
        scripts = {header: [error_reply(429, dict([header])), stream_reply(HELLO)] for header in cases}
        for header, result in outcomes(scripts, max_retries=1):
            with self.subTest(header[0], value=header[1][:40]):
                least, most = cases[header]
                self.assertLess(result.seconds, most)
                if header[1][:3] in ('inf', '1e4', '999'):  # may as well be taken for too long
                    self.assertIn(len(result.requests), (1, 2))
                else:
                    self.assertEqual(result.result, 'Hello world')
                    self.assertGreaterEqual(result.seconds, 0 if 'Dec 1999' in header[1] else least)

    def test_a_wait_of_more_than_two_minutes_is_left_to_the_caller(self):
        date = email.utils.formatdate(time.time() + 300, usegmt=True)
        for name, value in ('Retry-After', '121'), ('Retry-After', date), ('retry-after-ms', '999999'):
            with self.subTest(name, value=value):
                result = outcome([error_reply(429, {name: value}), stream_reply(HELLO)], max_retries=2)
                self.assertIsInstance(result.result, streamlite.RateLimitError)
                self.assertLess(result.seconds, 1)
                self.assertGreater(result.result.retry_after, 120)

    def test_an_error_tells_how_often_and_how_long_was_tried(self):
        with Server(error_reply(503, {'retry-after-ms': '20'})) as server, client(server, max_retries=2) as asker:
            with self.assertRaises(streamlite.InternalServerError) as caught:
                ask(asker)
            error = caught.exception
            self.assertEqual(len(server.requests), 3)
            self.assertEqual(error.attempts, 3)
            self.assertGreaterEqual(error.elapsed, 0.04)
            self.assertLess(error.elapsed, 1)
            self.assertAlmostEqual(error.retry_after, 0.02)
            self.assertIsNone(error.partial)
            self.assertEqual(len(set(request.connection for request in server.requests)), 1)
            with self.assertRaises(streamlite.InternalServerError) as caught:
                ask(asker.with_options(max_retries=0))
            self.assertEqual(caught.exception.attempts, 1)

    def test_a_server_may_be_away_for_as_long_as_is_wanted(self):
        with contextlib.closing(socket.socket()) as unused, mock.patch('random.random', return_value=4):  # no waits
            unused.bind(('127.0.0.1', 0))
            url = 'http://127.0.0.1:%d/v1' % unused.getsockname()[1]
            with client(None, base_url=url, max_retries=1100) as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
        self.assertEqual(caught.exception.attempts, 1101)

    def test_each_retry_is_logged_with_its_cause(self):
        with Server(error_reply(503, AGAIN), error_reply(429, AGAIN), stream_reply(HELLO)) as server:
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
            'half an event': cut(CHUNKED_HEAD + chunked(HEL[:20], last=False)),
            'an empty body': reply(200),
            'comments alone': stream_reply(b': hello\n\n'),
            'silence': stall(),
            'silence after the head': stall(CHUNKED_HEAD),
            'an error event of the right number': stream_reply(sse({'error': {'message': 'busy', 'code': 503}})),
        }
        scripts = {name: [script, stream_reply(HELLO)] for name, script in cases.items()}
        for name, result in outcomes(scripts, max_retries=1, timeout=0.2):
            with self.subTest(name):
                self.assertEqual(result.result, 'Hello world')
                self.assertEqual(len(result.requests), 2)
                self.assertEqual(result.requests[0].body, result.requests[1].body)

    def test_after_the_first_chunk_nothing_is_repeated_behind_the_callers_back(self):
        start = begun(HELLO_CUT)
        busy = sse({'error': {'message': 'busy', 'code': 503}})
        for script in (cut(start), reset(start), cut(CHUNKED_HEAD + chunked(HELLO_CUT + busy))):
            with Server(script, stream_reply(HELLO)) as server, client(server, max_retries=2) as asker:
                error = self.assertBroken(asker, 'Hello ', streamlite.APIError)
                self.assertEqual(len(server.requests), 1)
                self.assertEqual(error.attempts, 1)

    def test_collect_and_a_whole_reply_may_start_over_from_the_middle(self):
        lost, half_lost = (cut(CHUNKED_HEAD + chunked(body, last=False)) for body in (HELLO_CUT, HEL))

        def collect(*scripts, **options):
            with Server(*scripts) as server, client(server, **options) as asker:
                try:
                    return text_of(ask(asker).collect()), len(server.requests)
                except streamlite.APIConnectionError as error:
                    remember(error)
                    return error, len(server.requests)

        def collect_after_the_first_chunk():
            with Server(lost, stream_reply(HELLO)) as server, client(server, max_retries=2) as asker:
                stream = ask(asker)
                next(iter(stream))
                try:
                    return stream.collect(), len(server.requests)
                except streamlite.APIConnectionError as error:
                    remember(error)
                    return error, len(server.requests)

        whole = reply(200, {}, {'choices': [{'message': {'content': 'Hello world'}, 'finish_reason': 'stop'}]})

        def ask_for_a_whole_reply(*scripts):
            with Server(*scripts) as server, client(server, max_retries=1) as asker:
                return text_of(ask(asker, stream=False)), len(server.requests)

        again, twice, never, seen, cut_reply, refused = at_once(
            lambda: collect(lost, stream_reply(HELLO), max_retries=1),
            lambda: collect(lost, half_lost, max_retries=1),
            lambda: collect(lost, stream_reply(HELLO), max_retries=0),
            collect_after_the_first_chunk,
            lambda: ask_for_a_whole_reply(cut(whole[:-9]), whole),
            lambda: ask_for_a_whole_reply(error_reply(503, AGAIN), whole))
        self.assertEqual(again, ('Hello world', 2))
        self.assertEqual((text_of(twice[0].partial), twice[1]), ('Hello ', 2))  # the longest of both
        self.assertEqual(twice[0].attempts, 2)
        self.assertEqual((text_of(never[0].partial), never[1]), ('Hello ', 1))
        self.assertEqual((text_of(seen[0].partial), seen[1]), ('Hello ', 1))
        self.assertEqual((cut_reply, refused), (('Hello world', 2), ('Hello world', 2)))
        self.assertEqual(len([said for said in SAID if said.startswith('INFO')]), 4)
        with Server(cut(whole[:-9])) as server, client(server) as asker:
            self.assertRaises(streamlite.APIConnectionError, ask, asker, stream=False)

    def test_a_callable_key_is_asked_at_every_attempt(self):
        keys = iter([KEY + '1', KEY + '2'])
        with Server(error_reply(503, AGAIN), stream_reply(HELLO)) as server:
            with client(server, max_retries=1, api_key=lambda: next(keys)) as asker:
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.headers['authorization'][-1] for request in server.requests], ['1', '2'])


# ---- time ----------------------------------------------------------------------------------------

class TimeTest(TestCase):

    def test_no_byte_but_an_event_feeds_the_clock(self):
        chunk = chunked(HEL, last=False)
        cases = {  # name: script, text that came
            'no answer': (stall(), ''),
            'a head that drips': (pace(b'x', b'HTTP/1.1 200 OK\r\nX: '), ''),
            'headers for ever': (pace(b'X: 1\r\n', b'HTTP/1.1 200 OK\r\n'), ''),
            '100 Continue for ever': (pace(b'HTTP/1.1 100 Continue\r\n\r\n'), ''),
            'nothing after the head': (stall(CHUNKED_HEAD), ''),
            'comments for ever': (pace(chunked(b': ping\n\n', last=False), CHUNKED_HEAD), ''),
            'blank lines for ever': (pace(b'\n', head(200)), ''),
            'comments after an event': (pace(chunked(b': ping\n\n', last=False), CHUNKED_HEAD + chunk), 'Hel'),
            'nothing after an event': (stall(CHUNKED_HEAD + chunk), 'Hel'),
            'half an event': (stall(CHUNKED_HEAD + chunk + chunked(LO[:-5], last=False)), 'Hel'),
            'an event that drips': (pace(chunked(b'x', last=False), begun(HEL + b'data: ')), 'Hel'),
            'a chunk size that drips': (pace(b'0', CHUNKED_HEAD + chunk), 'Hel'),
        }
        for name, result in outcomes({name: [script] for name, (script, _) in cases.items()}, timeout=0.25):
            with self.subTest(name):
                self.assertIsInstance(result.result, streamlite.APITimeoutError)
                self.assertEqual(text_of(result.result.partial), cases[name][1])
                self.assertGreater(result.seconds, 0.2)
                self.assertLess(result.seconds, 0.25 + 0.5)

    def test_a_deadline_ends_a_call_whatever_goes_on(self):
        cases = {
            'events for ever': ([pace(chunked(HEL, last=False), CHUNKED_HEAD)], 'Hel'),
            'an answer that never comes': ([stall()], ''),
            'a wait between attempts': ([error_reply(503, {'Retry-After': '30'})], ''),
            'attempts for ever': ([cut(b'')], ''),
        }
        results = outcomes({name: scripts for name, (scripts, _) in cases.items()}, deadline=0.2, max_retries=1000)
        for name, result in results:
            with self.subTest(name):
                self.assertIsInstance(result.result, streamlite.APIError)
                if cases[name][1]:
                    self.assertIsInstance(result.result, streamlite.APITimeoutError)
                    self.assertIn(cases[name][1], text_of(result.result.partial))
                self.assertLess(result.seconds, 0.2 + 0.5)

    def test_timeouts_come_as_a_number_a_pair_or_an_object(self):
        class Timeout:
            connect, read = 5, 0.1

        def of_client(timeout):
            with Server(stall()) as server, client(server, timeout=timeout) as asker, self.assertTakes(0.1, 0.6):
                self.assertBroken(asker, '', streamlite.APITimeoutError)

        def of_call(timeout):
            with Server(stall()) as server, client(server) as asker, self.assertTakes(0.1, 0.6):
                self.assertBroken(asker, '', streamlite.APITimeoutError, timeout=timeout)

        at_once(*[lambda way=way, timeout=timeout: way(timeout)
                  for way in (of_client, of_call) for timeout in (0.1, (5, 0.1), Timeout())])

    def test_the_callers_own_time_does_not_count(self):
        with Server(stream_reply(HELLO)) as server, client(server, timeout=0.1) as asker, ask(asker) as stream:
            text = next(stream.text())
            self.assertFalse(threading.Event().wait(0.2))
            self.assertEqual(text + ''.join(stream.text()), 'Hello world')

    def test_neither_a_finished_stream_nor_an_error_body_is_waited_for_long(self):
        with mock.patch.object(streamlite, 'PATIENCE', 0.1), self.assertTakes(0.1, 1):  # the module's own, made small
            self.assertEqual(outcome([stall(begun(FINISHED))]).result, 'Hello world')
            self.assertEqual(outcome([stall(head(401))]).result.status_code, 401)

    def test_behind_the_finish_reason_only_more_of_the_answer_extends_the_wait(self):
        def more(peer):
            peer.send(begun(FINISHED))
            for _ in range(6):
                peer.wait_closed(0.05)
                peer.send(chunked(sse(delta('!'), done=False), last=False))
            peer.send(chunked(DONE))

        count = chunked(sse({'choices': [], 'usage': {'total_tokens': 1}}, done=False), last=False)
        cases = {'usage for ever': [pace(count, begun(FINISHED))],
                 'no choices for ever': [pace(chunked(sse({'choices': []}, done=False), last=False), begun(FINISHED))],
                 'more of the answer': [more]}
        with mock.patch.object(streamlite, 'PATIENCE', 0.2):
            for name, result in outcomes(cases, deadline=2):
                with self.subTest(name):
                    self.assertEqual(result.result, 'Hello world' + ('!' * 6 if 'more' in name else ''))
                    self.assertLess(result.seconds, 1)

    def test_late_heads_and_stalled_bodies_do_not_add_up(self):
        def late(answer):
            return lambda peer: (peer.wait_closed(0.3), peer.send(answer))

        stalled = {'Content-Length': 1000, 'Location': PATH}
        cases = {'an error': [lambda peer: (late(head(503, stalled))(peer), peer.wait_closed())],
                 'redirects': [late(reply(307, {'Location': PATH}))]}
        for name, result in outcomes(cases, timeout=0.4):
            with self.subTest(name):
                self.assertIs(type(result.result), streamlite.InternalServerError if 'error' in name else
                              streamlite.APITimeoutError)
                self.assertLess(result.seconds, 0.65)

    def test_no_time_is_too_long(self):
        rest = sse(delta('lo world'), delta(finish_reason='stop'))
        for options in {'timeout': 1e12}, {'timeout': (1e12, 1e15)}, {'timeout': None}, {'deadline': 1e15}:
            script = lambda peer: (peer.send(begun(HEL)), peer.wait_closed(0.01), peer.send(chunked(rest)))
            with self.subTest(options):
                self.assertEqual(outcome([script], **options).result, 'Hello world')

    def test_a_request_that_nobody_reads(self):
        over = threading.Event()

        class Deaf(Peer):
            def read_request(self):
                over.wait(5)

        with Server(peer=Deaf) as server, client(server, timeout=0.2) as asker, self.assertTakes(0.2, 0.7):
            with self.assertRaises(streamlite.APITimeoutError):
                ask(asker, messages=[{'role': 'user', 'content': 'x' * 12000000}])
            over.set()

    @unittest.skipUnless(ssl, 'no ssl')
    def test_a_handshake_that_never_ends(self):
        with Server() as server:  # which waits for the end of a request that never comes
            with client(server, base_url='https://localhost:%d/v1' % server.port, timeout=(0.1, 5)) as asker:
                with self.assertTakes(0.1, 0.6):
                    self.assertBroken(asker, '', streamlite.APITimeoutError)

    @unittest.skipUnless(sys.platform.startswith('linux'), 'other systems queue more connections')
    def test_an_address_that_accepts_no_connection(self):
        with contextlib.ExitStack() as stack:
            listener, *waiting = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(3)]
            listener.bind(('127.0.0.1', 0))
            listener.listen(0)
            for sock in waiting:  # fill its queue
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            url = 'http://127.0.0.1:%d/v1' % listener.getsockname()[1]
            with client(None, base_url=url, timeout=(0.1, 5)) as asker, self.assertTakes(0.1, 0.6):
                self.assertBroken(asker, '', streamlite.APITimeoutError)
            # where the host has another address, both share the time
            server = stack.enter_context(Server())
            addresses = [socket.getaddrinfo('127.0.0.1', port, 0, socket.SOCK_STREAM)[0]
                         for port in (listener.getsockname()[1], server.port)]
            with mock.patch('socket.getaddrinfo', return_value=addresses):
                url = 'http://localhost/v1'
                with client(None, base_url=url, timeout=(0.2, 5)) as asker, self.assertTakes(0.1, 0.7):
                    self.assertText(ask(asker), 'Hello world')


# ---- codings -------------------------------------------------------------------------------------

class CodingTest(TestCase):

    def test_gzip_and_deflate_are_undone_event_by_event(self):
        def speak(coding, window, seen):
            def script(peer):
                peer.send(head(200, {'Content-Encoding': coding, 'Transfer-Encoding': 'chunked'}))
                packer = zlib.compressobj(9, zlib.DEFLATED, window)
                for event in HEL, LO, WORLD, FINISH + DONE:
                    peer.send(chunked(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH), last=False))
                    seen.acquire(timeout=5)  # the client has this event before the next is sent
                peer.send(chunked(packer.flush()))
            return script

        for coding, window in ('gzip', 31), ('deflate', 15), ('deflate', -15), ('x-gzip', 31):
            seen = threading.Semaphore(0)
            with self.subTest(coding, window=window), Server(speak(coding, window, seen)) as server:
                with client(server, timeout=1) as asker, ask(asker) as stream:
                    texts = []
                    for text in stream.text():
                        texts.append(text)
                        seen.release()
                    self.assertEqual(texts, ['Hel', 'lo ', 'world'])
                    seen.release()

    def test_members_and_cuts_of_gzip(self):
        members = zlib_bytes(31, HELLO[:300]) + zlib_bytes(31, HELLO[300:])
        self.assertEqual(outcome([stream_reply(members, headers=GZIP)]).result, 'Hello world')
        packed = zlib_bytes(31, HELLO_CUT)
        for cut_at in range(10, len(packed), 7):
            with self.subTest(cut_at):
                result = outcome([stream_reply(packed[:cut_at], headers=GZIP)]).result
                self.assertIsInstance(result, streamlite.APIConnectionError)
                self.assertTrue('Hello '.startswith(text_of(result.partial)))

    def test_another_coding_is_named(self):
        for coding in ('br', 'zstd', 'x-foo'):
            with self.subTest(coding):
                result = outcome([stream_reply(HELLO, headers={'Content-Encoding': coding})], max_retries=2)
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertSays(result.result, coding)
                self.assertEqual(len(result.requests), 1)

    def test_a_coding_that_is_a_lie_is_our_error(self):
        for coding in 'gzip', 'deflate':
            result = outcome([stream_reply(HELLO, headers={'Content-Encoding': coding})]).result
            self.assertIsInstance(result, streamlite.APIError)
        self.assertEqual(outcome([stream_reply(HELLO, headers={'Content-Encoding': 'identity'})]).result, 'Hello world')


# ---- connections ---------------------------------------------------------------------------------

class ConnectionTest(TestCase):

    def test_one_connection_serves_stream_after_stream(self):
        whole = reply(200, {}, {'choices': [{'message': {'content': 'Hello world'}, 'finish_reason': 'stop'}]})
        cases = {'chunked': stream_reply(HELLO), 'length': stream_reply(HELLO, 'length'),
                 'no [DONE]': stream_reply(FINISHED), 'one by one': CHUNKED_HEAD + chunked(HELLO, 50)}
        for name, answer in cases.items():
            with self.subTest(name), Server(answer) as server, client(server) as asker:
                for _ in range(20):
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual((len(server.requests), server.connections), (20, 1))
        with Server(whole) as server, client(server) as asker:
            for _ in range(5):
                self.assertText(ask(asker, stream=False), 'Hello world')
            self.assertEqual(server.connections, 1)

    def test_done_may_come_before_the_last_chunk(self):
        gate, sent = threading.Event(), threading.Event()

        def script(peer):
            peer.send(begun(HELLO))
            gate.wait(5)
            peer.send(b'0\r\n\r\n')
            sent.set()

        with Server(script) as server, client(server) as asker:
            for _ in range(20):
                with self.assertTakes(0, 1):
                    self.assertText(ask(asker), 'Hello world')  # the last chunk is not waited for
                gate.set()
                self.assertTrue(sent.wait(5))
                gate.clear(), sent.clear()
            self.assertEqual(server.connections, 1)

        held = threading.Event()
        with Server(lambda peer: (peer.send(begun(HELLO)), held.wait(5))) as server:
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
            with self.subTest(end.__name__), Server(script, stream_reply(HELLO)) as server, client(server) as asker:
                self.assertText(ask(asker), 'Hello world')
                self.assertTrue(closed.wait(5))
                self.assertText(ask(asker), 'Hello world')
                self.assertEqual((len(server.requests), server.connections), (2, 2))
        # closed in the moment in which the next request is on its way
        with Server(stream_reply(HELLO), cut(b''), stream_reply(HELLO)) as server, client(server) as asker:
            self.assertText(ask(asker), 'Hello world')
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.connection for request in server.requests], [1, 1, 2])
        # but who worked on it for a while may have done so to the end, and is not asked twice unless retries are wanted
        now, late = time.monotonic, []
        script = lambda peer: (late.append(2), peer.close())
        with Server(stream_reply(HELLO), script, stream_reply(HELLO)) as server, client(server) as asker:
            with mock.patch('time.monotonic', lambda: now() + sum(late)):
                self.assertText(ask(asker), 'Hello world')
                self.assertRaises(streamlite.APIConnectionError, ask, asker)
            self.assertEqual(len(server.requests), 2)

    def test_nobody_gets_the_bytes_of_another_answer(self):
        other = stream_reply(sse(delta('mine', 'stop')))
        evil = stream_reply(sse(delta('not mine', 'stop')))
        cases = {
            'a second answer': stream_reply(HELLO) + evil,
            'a second answer after its length': stream_reply(HELLO, 'length') + evil,
            'half a body': stall(begun(HELLO)),
            'a body of a longer length': stall(stream_reply(HELLO, 'length', {'Content-Length': len(HELLO) + 7})),
        }
        for name, script in cases.items():
            with self.subTest(name), Server(script, other) as server, client(server) as asker:
                self.assertText(ask(asker), 'Hello world')
                self.assertText(ask(asker), 'mine')
                self.assertEqual(server.connections, 2)

    def test_a_broken_or_abandoned_stream_spoils_no_other(self):
        other = stream_reply(sse(delta('mine', 'stop')))
        with Server(cut(begun(HELLO_CUT)), other) as server, client(server) as asker:
            self.assertBroken(asker, 'Hello ')
            self.assertText(ask(asker), 'mine')
        with Server(stream_reply(HELLO), other) as server, client(server) as asker:
            with ask(asker) as stream:
                next(iter(stream))
            self.assertText(ask(asker), 'mine')
        with Server(stream_reply(HELLO), other) as server, client(server) as asker:
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
        with Server() as server, client(server) as asker:
            with mock.patch.object(streamlite, 'IDLE_SECONDS', 0):  # the module's own, made small
                self.assertText(ask(asker), 'Hello world')
                self.assertText(ask(asker), 'Hello world')
                self.assertEqual(server.connections, 2)
        gone = threading.Semaphore(0)
        with Server(lambda peer: (peer.send(stream_reply(HELLO)), peer.wait_closed() and gone.release())) as server:
            with client(server) as asker, mock.patch.object(streamlite, 'MAX_IDLE', 2):
                for stream in [ask(asker) for _ in range(4)]:
                    self.assertText(stream, 'Hello world')
                self.assertTrue(gone.acquire(timeout=1) and gone.acquire(timeout=1))
                self.assertFalse(gone.acquire(timeout=0.05))

    def test_the_connection_of_an_error_reply_is_used_again(self):
        with Server(error_reply(400), error_reply(401), stream_reply(HELLO)) as server, client(server) as asker:
            for _ in range(2):
                with self.assertRaises(streamlite.APIStatusError):
                    ask(asker)
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual(server.connections, 1)

    @unittest.skipUnless(hasattr(os, 'fork') and sys.platform != 'darwin', 'no fork')
    def test_a_forked_process_takes_a_connection_of_its_own(self):
        with Server(stream_reply(HELLO)) as server, client(server) as asker:
            self.assertText(ask(asker), 'Hello world')
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of forking beside threads, which the server has
                child = os.fork()
            if not child:
                try:
                    os._exit(0 if text_of(ask(asker).collect()) == 'Hello world' else 1)
                finally:
                    os._exit(2)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual([request.connection for request in server.requests], [1, 2, 1])

    def test_sixteen_threads_share_a_client(self):
        def script(peer):
            text = peer.request.json['messages'][0]['content']
            peer.send(stream_reply(sse(*[delta(character) for character in text] + [delta(finish_reason='stop')])))

        def work(name):
            for number in range(4):
                text = 'thread %d, question %d' % (name, number)
                self.assertText(ask(asker, messages=[{'role': 'user', 'content': text}]), text)

        with Server(script) as server, client(server) as asker:
            at_once(*[lambda name=name: work(name) for name in range(16)])
            self.assertEqual(len(server.requests), 64)
            self.assertLessEqual(server.connections, 16)


class EndingTest(TestCase):

    def until_gone(self):
        """A script that sends two events and then waits, and the event that tells that the client went away."""
        gone = threading.Event()
        return gone, lambda peer: (peer.send(begun(HELLO_CUT)), peer.wait_closed() and gone.set())

    def test_the_server_is_told_at_once_that_nobody_listens(self):
        def leave_with(stream):
            with stream:
                next(iter(stream))

        def close(stream):
            next(iter(stream))
            stream.close()
            stream.close()
            with self.assertRaises(streamlite.OpenAIError):  # an end without an error would look whole
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
            gone, script = self.until_gone()
            with self.subTest(leave.__name__), Server(script) as server, client(server) as asker:
                leave(ask(asker))
                self.assertTrue(gone.wait(1))
        for used in None, iter, streamlite.Stream.text:
            gone, script = self.until_gone()
            with self.subTest('last reference', used=used), Server(script) as server, client(server) as asker:
                stream = ask(asker)
                items = used(stream) if used else None
                if items:
                    next(items)
                del stream, items
                self.assertTrue(gone.wait(1))

    def test_the_end_of_a_client_closes_its_connections(self):
        def leave(asker):
            with asker:
                self.assertText(ask(asker), 'Hello world')

        def close(asker):
            self.assertText(ask(asker), 'Hello world')
            asker.close()

        def lose(asker):
            self.assertText(ask(asker), 'Hello world')

        gone = threading.Semaphore(0)
        for end in leave, close, lose:
            with self.subTest(end.__name__), Server(
                    lambda peer: (peer.send(stream_reply(HELLO)), peer.wait_closed() and gone.release())) as server:
                end(client(server))
                self.assertTrue(gone.acquire(timeout=1))

    def test_a_stream_outlives_its_client(self):
        with Server() as server:
            self.assertText(ask(client(server)), 'Hello world')

    def test_break_leaves_a_stream_that_is_held_resumable(self):
        with Server(stream_reply(HELLO)) as server, client(server) as asker, ask(asker) as stream:
            for _ in stream:
                break
            self.assertEqual(text_of(stream.completion), 'Hel')
            self.assertEqual(next(stream.text()), 'lo ')
            self.assertText(stream, 'Hello world')

    def test_close_from_another_thread_ends_a_blocked_read(self):
        gone, script = self.until_gone()
        reading, ended = threading.Event(), []

        def read():
            try:
                for _ in stream.text():
                    reading.set()
            except streamlite.OpenAIError as error:  # ended or failed, but by an error of ours
                remember(error)
            ended.append(time.monotonic())

        with Server(script) as server, client(server) as asker:
            stream = ask(asker)
            thread = threading.Thread(target=read)
            thread.start()
            self.assertTrue(reading.wait(5))
            self.assertFalse(gone.wait(0.05))  # by now it waits for the next event
            start = time.monotonic()
            stream.close()
            thread.join(5)
            self.assertTrue(gone.wait(1))
            self.assertLess(ended[0] - start, 0.1 + 0.2)  # the second number is for a busy machine

    def test_close_from_another_thread_ends_a_wait_between_attempts(self):
        refused, ended = threading.Event(), []

        def read():
            try:
                list(stream)
            except streamlite.OpenAIError as error:
                remember(error)
            ended.append(time.monotonic())

        answer = error_reply(503, {'Retry-After': '30'})
        with Server(cut(CHUNKED_HEAD), lambda peer: (peer.send(answer), refused.set())) as server:
            with client(server, max_retries=5) as asker:
                stream = ask(asker)
                thread = threading.Thread(target=read)
                thread.start()
                self.assertTrue(refused.wait(5))
                self.assertFalse(threading.Event().wait(0.05))
                start = time.monotonic()
                stream.close()
                thread.join(5)
                self.assertLess(ended[0] - start, 0.1 + 0.2)

    def test_times_and_the_head_of_the_answer_are_there(self):
        with Server(stream_reply(HELLO, headers={'x-request-id': 'req_1'})) as server, client(server) as asker:
            with ask(asker) as stream:
                self.assertEqual((stream.response.status_code, stream.response.request_id), (200, 'req_1'))
                self.assertEqual(stream.response.headers['content-type'], 'text/event-stream')
                list(stream)
            self.assertLess(0, stream.time_to_first_token)
            self.assertLessEqual(stream.time_to_first_token, stream.elapsed)
            self.assertLess(stream.elapsed, 5)

    def test_a_request_and_the_end_of_a_stream_are_a_debug_line_each(self):
        with Server(stream_reply(HELLO)) as server, client(server) as asker:
            self.assertText(ask(asker), 'Hello world')
        self.assertEqual(len(SAID), 2)
        for said in SAID:
            self.assertTrue(said.startswith('DEBUG'))
            self.assertNotIn('Hello', said)
            self.assertNotIn('hi', said.split())


# ---- requests and addresses ----------------------------------------------------------------------

class RequestTest(TestCase):

    def test_the_head_of_a_request(self):
        with Server() as server:
            with client(server, organization='org', project='proj', default_headers={'X-Mine': '1'}) as asker:
                ask(asker, extra_headers={'X-Yours': '2'}, temperature=0, extra_body={'top_k': 5}).collect()
            request = server.requests[0]
        self.assertEqual((request.method, request.path), ('POST', PATH))
        self.assertEqual(request.json, {'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}], 'stream': True,
                                        'temperature': 0, 'top_k': 5})
        expected = {'host': '127.0.0.1:%d' % server.port, 'authorization': 'Bearer ' + KEY,
                    'content-type': 'application/json', 'accept': 'text/event-stream, application/json',
                    'accept-encoding': 'identity',
                    'openai-organization': 'org', 'openai-project': 'proj', 'x-mine': '1', 'x-yours': '2'}
        self.assertEqual({name: request.headers.get(name) for name in expected}, expected)
        self.assertRegex(request.headers['user-agent'], r'^streamlite/[\d.]+ Python/3\.\d+')

    def test_a_base_url_is_forgiven(self):
        cases = {'/v1': PATH, '/v1/': PATH, '': '/chat/completions', '/': '/chat/completions',
                 '/a/b/': '/a/b/chat/completions', '/v1/chat/completions': PATH, '/v1/chat/completions/': PATH,
                 '/v1?api-version=1': PATH + '?api-version=1', '/v1/?api-version=1': PATH + '?api-version=1',
                 '/v1/chat/completions?a=b%20c': PATH + '?a=b%20c'}
        for given, path in cases.items():
            with self.subTest(given), Server() as server:
                with client(server, base_url='http://127.0.0.1:%d%s' % (server.port, given)) as asker:
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual(server.requests[0].path, path)

    def test_queries_are_added_up(self):
        with Server() as server, client(server, base_url=server.url + '?a=1', default_query={'b': '2 3'}) as asker:
            self.assertText(ask(asker, extra_query={'c': '&'}), 'Hello world')
            path, _, query = server.requests[0].path.partition('?')
        self.assertEqual((path, sorted(query.split('&'))), (PATH, ['a=1', 'b=2+3', 'c=%26']))

    def test_a_forgotten_v1_is_guessed(self):
        for answer in error_reply(404, message='Not Found'), reply(200, {}, b'<html>welcome</html>'):
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
        self.assertEqual([first.headers.get(name) for name in names], ['Bearer ' + KEY, 'org', 'proj'])
        self.assertNotIn(KEY, str(second.headers))

    def test_models_are_listed(self):
        models = {'object': 'list', 'data': [{'id': 'a', 'object': 'model'}, {'id': 'b', 'object': 'model'}]}
        with Server(reply(200, {}, models)) as server, client(server) as asker:
            self.assertEqual([model.id for model in asker.models.list()], ['a', 'b'])
            self.assertEqual((server.requests[0].method, server.requests[0].path), ('GET', '/v1/models'))

    def test_an_answer_that_comes_before_the_request_was_read(self):
        def script(peer):
            peer.send(error_reply(413, {'Connection': 'close'}, 'the prompt is too long'))
            peer.close()

        class Early(Peer):
            def read_request(self):
                self._fill(lambda: b'\r\n\r\n' in self._buffer)  # the head alone
                return Request(self._buffer.partition(b'\r\n\r\n')[0], b'', self.number)

        with Server(script, peer=Early) as server, client(server) as asker:
            with self.assertRaises(streamlite.APIError) as caught:
                ask(asker, messages=[{'role': 'user', 'content': 'x' * 20000000}])
            if sys.platform.startswith('linux'):  # other systems may throw the answer away when the reset comes
                self.assertSays(caught.exception, 413, 'too long')


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

    def test_a_key_that_no_header_can_hold(self):
        for form in '%s\n', '%s\r\nX-Evil: 1', 'a %s', '%s\u2026', '%s\xe9', '\u201c%s\u201d', '%s\0':
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
        for url, word in (('ftp://127.0.0.1/v1', 'ftp'), ('file:///etc/passwd', 'file'), ('127.0.0.1:8080/v1', 'http'),
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
        with contextlib.closing(socket.socket()) as unused:
            unused.bind(('127.0.0.1', 0))
            port = unused.getsockname()[1]
            url = 'http://user:%s@127.0.0.1:%d/v1?key=%s' % (PASSWORD, port, PASSWORD)
            with self.assertRaises(streamlite.OpenAIError), client(None, base_url=url) as asker:
                self.assertNotIn(MARK, repr(asker) + str(asker))
                ask(asker)
            for wrong in 'http://user:%s#1@127.0.0.1/v1', 'http://user:%s/1@127.0.0.1/v1', 'https:%s@127.0.0.1', '%s':
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
        with Server() as server, client(server) as asker:
            for options in {'model': 'm'}, {'messages': []}:
                with self.assertRaises(TypeError):
                    asker.chat.completions.create(**options)
            with self.assertRaises(TypeError) as caught:
                client(server, http_client=object())
            self.assertSays(caught.exception, 'http_client')
            self.assertEqual(server.requests, [])

    def test_a_dead_port_is_named(self):
        with contextlib.closing(socket.socket()) as unused:
            unused.bind(('127.0.0.1', 0))  # bound, but nobody listens
            place = '127.0.0.1:%d' % unused.getsockname()[1]
            with client(None, base_url='http://%s/v1' % place) as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
        self.assertSays(caught.exception, place)
        self.assertEqual(caught.exception.attempts, 1)

    def test_a_name_that_does_not_resolve_is_named(self):
        error = socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        with mock.patch('socket.getaddrinfo', side_effect=error):
            with client(None, base_url='https://no.example.test/v1') as asker:
                with self.assertRaises(streamlite.APIConnectionError) as caught:
                    ask(asker)
        self.assertSays(caught.exception, 'no.example.test')


# ---- trust ---------------------------------------------------------------------------------------

class RedirectTest(TestCase):

    def test_307_and_308_to_the_same_origin_keep_everything(self):
        for status in 307, 308:
            with self.subTest(status), Server() as server:
                network = '//127.0.0.1:%d/network' % server.port
                places = [server.url + '/absolute?a=b', '/rooted', 'beside', network, '/last']
                server.script(*[reply(status, {'Location': place}) for place in places] + [stream_reply(HELLO)])
                with client(server, default_headers={'api-key': KEY}) as asker:
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual([request.path for request in server.requests],
                                 [PATH, '/v1/absolute?a=b', '/rooted', '/beside', '/network', '/last'])
                for request in server.requests[1:]:
                    self.assertEqual((request.method, request.body), ('POST', server.requests[0].body))
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
                    with self.subTest(status, place=place), Server(reply(status, {'Location': place})) as server:
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
                result = outcome([reply(status, {} if place is None else {'Location': place})], max_retries=2)
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


class LoopbackNames(TestCase):
    """Every name and address resolves to 127.0.0.1, so that no packet leaves the machine."""

    def setUp(self):
        super().setUp()
        resolve = socket.getaddrinfo
        patch = mock.patch('socket.getaddrinfo', lambda host, *args, **kwargs: resolve('127.0.0.1', *args, **kwargs))
        patch.start()
        self.addCleanup(patch.stop)


class KeyOverHttpTest(LoopbackNames):

    def test_a_key_over_plain_http_to_another_machine_is_warned_of_once(self):
        with Server() as server:
            for host in '127.0.0.1', 'localhost', '[::1]', '127.1.2.3':
                with client(server, base_url='http://%s:%d/v1' % (host, server.port)) as asker:
                    self.assertText(ask(asker), 'Hello world')
            self.assertEqual([said for said in SAID if said.startswith('WARNING')], [])
            with client(server, base_url='http://plain.example.test:%d/v1' % server.port, api_key=None) as asker:
                self.assertText(ask(asker), 'Hello world')
            self.assertEqual([said for said in SAID if said.startswith('WARNING')], [])
            for _ in range(2):
                with client(server, base_url='http://plain.example.test:%d/v1' % server.port) as asker:
                    self.assertText(ask(asker), 'Hello world')
                    self.assertText(ask(asker), 'Hello world')
        self.assertLogged('WARNING', 'plain.example.test')


class ProxyTest(LoopbackNames):

    def through(self, *scripts, **options):
        """What comes of asking http://api.example.test through such a proxy."""
        with Server(*scripts) as proxy:
            url = 'http://user:%s@127.0.0.1:%d' % (PASSWORD, proxy.port)
            os.environ.update(http_proxy=url, https_proxy=url)
            start = time.monotonic()
            try:
                with client(None, **dict({'base_url': 'http://api.example.test/v1'}, **options)) as asker:
                    self.assertNotIn(MARK, repr(asker))
                    with ask(asker) as stream:
                        result = ''.join(stream.text())
            except streamlite.OpenAIError as error:
                remember(error)
                result = error
            return Outcome(result, time.monotonic() - start, proxy.requests, proxy.connections)

    credentials = 'Basic ' + base64.b64encode(b'user:' + PASSWORD.encode()).decode()

    def test_plain_http_goes_through_the_proxy(self):
        result = self.through(stream_reply(HELLO))
        self.assertEqual(result.result, 'Hello world')
        request = result.requests[0]
        self.assertEqual((request.method, request.path), ('POST', 'http://api.example.test' + PATH))
        self.assertEqual(request.headers['host'], 'api.example.test')
        self.assertEqual(request.headers['proxy-authorization'], self.credentials)
        self.assertEqual(request.headers['authorization'], 'Bearer ' + KEY)

    @unittest.skipUnless(ssl, 'no ssl')
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

    def test_a_407_says_what_the_proxy_asks_for_and_what_helps(self):
        for url in ['http://api.example.test/v1'] + (['https://api.example.test/v1'] if ssl else []):
            with self.subTest(url):
                answer = reply(407, {'Proxy-Authenticate': 'NTLM', 'Connection': 'close'}, b'<html>no</html>')
                result = self.through(answer, base_url=url, max_retries=2)
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertSays(result.result, 407, 'NTLM', 'handlers')
                self.assertEqual(len(result.requests), 1)

    @unittest.skipUnless(ssl, 'no ssl')
    def test_a_proxy_that_refuses_or_breaks_the_tunnel_is_named(self):
        page = b'<html><title>Gateway trouble</title></html>'
        answers = reply(502, {'Connection': 'close'}, page), reply(403, {}, page), cut(b''), cut(b'garbage\r\n\r\n')
        for answer in answers:
            with self.subTest(answer):
                result = self.through(answer, base_url='https://api.example.test/v1')
                self.assertIsInstance(result.result, streamlite.APIError)
                self.assertSays(result.result, 'proxy')
                if isinstance(answer, bytes):
                    self.assertSays(result.result, answer[9:12].decode())

    @unittest.skipUnless(ssl, 'no ssl')
    def test_a_proxys_answer_that_never_comes_is_a_timeout(self):
        for script in stall(), pace(b'X: 1\r\n', b'HTTP/1.1 200 OK\r\n'):
            result = self.through(script, base_url='https://api.example.test/v1', timeout=0.1)
            self.assertIsInstance(result.result, streamlite.APITimeoutError)
            self.assertLess(result.seconds, 0.7)

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
                    self.assertEqual((len(proxy.requests), len(origin.requests)), (0, 1) if direct else (1, 0))

    def test_a_proxy_of_another_kind_is_refused_by_name(self):
        for scheme in 'socks5', 'socks5h', 'socks4', 'https':
            with self.subTest(scheme), Server() as proxy:
                os.environ['http_proxy'] = '%s://user:%s@127.0.0.1:%d' % (scheme, PASSWORD, proxy.port)
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
        challenge = {'Proxy-Authenticate': 'Digest realm="office", nonce="n1", qop="auth", algorithm=MD5'}
        with Server(reply(407, challenge), stream_reply(HELLO)) as proxy:
            os.environ['http_proxy'] = 'http://127.0.0.1:%d' % proxy.port
            handlers = [urllib.request.ProxyDigestAuthHandler(passwords)]
            with client(None, base_url='http://api.example.test/v1', handlers=handlers) as asker:
                self.assertText(ask(asker), 'Hello world')
        first, second = proxy.requests
        self.assertTrue(second.headers['proxy-authorization'].startswith('Digest username="user"'))
        self.assertEqual((second.method, second.path, second.body), (first.method, first.path, first.body))

    def test_a_proxy_url_that_is_none_shows_no_password(self):
        for wrong in ('http://user:%s#1@127.0.0.1:1', 'http://user:%s/1@127.0.0.1:1', 'http://user:%s@[127.0.0.1:1',
                      '%s@', 'user:%s@127.0.0.1:x'):
            with self.subTest(wrong):
                os.environ['http_proxy'] = wrong % PASSWORD
                with self.assertRaises((streamlite.OpenAIError, ValueError)):
                    with client(None, base_url='http://api.example.test/v1') as asker:
                        ask(asker)

    def test_a_dead_proxy_is_named(self):
        with contextlib.closing(socket.socket()) as unused:
            unused.bind(('127.0.0.1', 0))
            os.environ['http_proxy'] = 'http://user:%s@127.0.0.1:%d' % (PASSWORD, unused.getsockname()[1])
            with client(None, base_url='http://api.example.test/v1') as asker:
                error = self.assertBroken(asker, '')
            self.assertSays(error, '127.0.0.1:%d' % unused.getsockname()[1], 'proxy')


class SizeTest(TestCase):

    # In another process, whose memory can be measured; it prints what each of the URLs comes to.
    program = """if True:
        import resource, sys, streamlite
        for url in sys.argv[1:]:
            client = streamlite.OpenAI(api_key='k', base_url=url, max_retries=0, timeout=10)
            for stream in (True, False) if 'whole' in url else (True,):
                partial = None
                try:
                    answer = client.chat.completions.create(model='m', messages=[], stream=stream)
                    answer = answer.collect() if stream else answer
                    what = 'OK %d' % len(answer.choices[0].message.content)
                except streamlite.APIError as error:
                    partial = error.partial
                    what = type(error).__name__
                text = partial.choices[0].message.content if partial is not None and partial.choices else ''
                most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == 'darwin' else 1)
                try:  # on Linux the above starts with what the parent had at the fork; this starts with the program
                    with open('/proc/self/status') as status:
                        most = next(int(line.split()[1]) for line in status if line.startswith('VmHWM'))
                except (OSError, StopIteration):
                    pass
                print(what, text, '|', most // 1024, flush=True)
    """

    @unittest.skipIf(sys.platform == 'win32', 'no resource module')
    def test_what_never_ends_is_an_error_and_no_burden(self):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        start = packer.compress(HELLO_CUT + b'data: ') + packer.flush(zlib.Z_FULL_FLUSH)
        zeros = packer.compress(b'0' * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated: it starts afresh
        stream_head = head(200, {'Content-Type': 'text/event-stream'})
        text = b'x' * 65536
        cases = [  # script, text delivered before it
            (flood(stream_head + HELLO_CUT + b'data: ', text, 1 << 28), 'Hello '),
            (flood(stream_head + HELLO_CUT, b'data: x\n' * 8192, 1 << 28), 'Hello '),
            (flood(head(200, {'Content-Encoding': 'gzip'}) + start, zeros * 16, 1 << 28), 'Hello '),
            (flood(stream_head + HELLO_CUT + b'data: {"choices": [{"delta": {"content": "', text, 1 << 28), 'Hello '),
            (flood(head(200, {'Content-Type': 'application/json'}) + b'{"choices": "', text, 1 << 28), ''),
            (flood(b'HTTP/1.1 200 OK\r\n', b'X-Header: 1\r\n' * 1000, 1 << 28), ''),
            (flood(b'HTTP/1.1 200 OK\r\nX: ', text, 1 << 28), ''),
            (flood(b'HTTP/1.1 200 ', text, 1 << 28), ''),
            (flood(begun(HELLO_CUT) + b'5;', text, 1 << 28), 'Hello '),
            (flood(CHUNKED_HEAD + chunked(HELLO_CUT)[:-2], b'X: 1\r\n' * 1000, 1 << 28), 'Hello '),
            (flood(b'', b'HTTP/1.1 100 Continue\r\n\r\n' * 1000, 1 << 28), ''),
            (flood(head(413), text, 1 << 28), ''),
        ]
        big = 4 << 20
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(Server(script)) for script, _ in cases]
            servers.append(stack.enter_context(Server(stream_reply(sse(delta('x' * big, 'stop'))))))
            with self.assertTakes(0, 8):  # none of them by its timeout, which is longer
                done = run_python('-B', '-c', self.program, *[server.url for server in servers])
        self.assertEqual(done.stderr, '')
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), len(servers), lines)
        for number, (line, case) in enumerate(zip(lines, cases)):
            with self.subTest(number):
                self.assertRegex(line, '^API.*Error %s' % case[1])
        self.assertTrue(lines[-1].startswith('OK %d' % big))  # a large event is no fault
        self.assertLess(int(lines[-1].split('|')[1]), 100, lines)  # megabytes, the most that there ever were

    def test_a_thousand_headers_are_our_error_or_no_error(self):
        for answer in (stream_reply(HELLO, headers={'X-%d' % n: 'x' for n in range(1000)}),
                       stream_reply(HELLO, headers={'X': 'x' * 100000})):
            result = outcome([answer]).result
            if result != 'Hello world':
                self.assertIsInstance(result, streamlite.APIConnectionError)


class SecretTest(TestCase):
    """The end of every test looks for secrets in all that was said; these provoke what others do not."""

    def test_the_search_finds_what_it_looks_for(self):
        for secret in (lambda: remember(ValueError(KEY)), lambda: logging.getLogger('streamlite').info('%s', PASSWORD)):
            secret()
            with super().assertRaises(AssertionError):
                self._check_left_over(set(threading.enumerate()), open_sockets())
            del SAID[:]

    def test_no_repr_and_no_attribute_of_an_error_shows_the_key(self):
        with Server(stream_reply(HELLO), error_reply(401, AGAIN)) as server:
            with client(server, default_headers={'api-key': PASSWORD}) as asker, ask(asker) as stream:
                other = asker.with_options(timeout=1)
                for thing in asker, asker.chat, asker.chat.completions, other, stream, stream.response:
                    self.assertNotIn(MARK, repr(thing) + str(thing))
                with self.assertRaises(streamlite.AuthenticationError) as caught:
                    ask(asker)
        error = caught.exception
        for thing in error.request, error.response, error.body, error.__dict__, error.args, error.__reduce__():
            self.assertNotIn(MARK, repr(thing))

    def test_an_echoed_key_is_not_shown(self):
        # servers repeat the key in part (OpenAI) or whole (vLLM's logs, small proxies)
        answers = error_reply(401, message='Incorrect API key provided: %s.' % KEY), reply(401, {}, KEY.encode())
        with Server(*answers) as server, client(server) as asker:
            for _ in answers:
                self.assertRaises(streamlite.AuthenticationError, ask, asker)

    def test_a_key_is_not_shown_however_it_is_echoed(self):
        key = 'sk-%s/+"key' % MARK
        escaped = json.dumps(key).strip('"').replace('/', r'\/').replace('+', r'\u002b')
        words = '{"error": {"message": "bad key %s", "param": "%s", "code": "%s", "%s": 1}}' % ((escaped,) * 4)
        cases = {
            'escaped': reply(401, {}, words.encode()),
            'in the reason phrase': ('HTTP/1.1 401 bad key %s\r\nContent-Length: 0\r\n\r\n' % key).encode(),
            'where the excerpt ends': error_reply(401, message='y' * 985 + key),
            'as HTML': reply(401, {}, ('<title>bad key %s</title>' % key).encode()),
            'in an event': stream_reply(HELLO_CUT + sse(words)),
            'in what is no JSON, where the excerpt ends': stream_reply(sse('{' + 'y' * 185 + key)),
            'as the status line': cut(b'HTTP/1.1 %s\r\n\r\n' % key.encode()),
            'as the size of a chunk': cut(begun(HELLO_CUT) + key.encode() + b'\r\n'),
            'in a finish_reason of error': stream_reply(sse(dict(delta(finish_reason='error'), error=key))),
        }
        for name, answer in cases.items():
            for options in {'api_key': key}, {'api_key': '', 'default_query': {'key': key}}, {
                    'api_key': '', 'default_headers': {'api-key': key}}:
                with self.subTest(name, options=list(options)):
                    error = outcome([answer], **options).result
                    self.assertIsInstance(error, streamlite.APIError)
                    self.assertNotIn('never-', repr([str(error), error.body, error.request]))  # nor a part of it

    def test_the_dummy_keys_of_local_servers_blur_no_message(self):
        result = outcome([error_reply(404, message='model ollama not found')], api_key='ollama')
        self.assertSays(result.result, 'model ollama not found')


# ---- the process ---------------------------------------------------------------------------------

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
            done = run_python('-B', *options + ('-c', before + self.program, server.url), **environment)
        self.assertEqual((done.stdout, done.stderr), (self.printed, ''))

    @unittest.skipUnless(hasattr(sys, 'addaudithook'), 'Python 3.8 is the first with audit hooks')
    def test_the_synchronous_path_writes_no_file_and_starts_nothing(self):
        self.run_program("""if True:
            import os, sys
            def refuse(event, args):
                if event == 'open':
                    path, mode, flags = args
                    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or '') & set('wax+')
                    if writes and path != os.devnull:
                        os.write(2, ('writes %r' % (path,)).encode())
                elif event.split('.')[0] in ('subprocess', 'shutil', 'tempfile') or event in (
                        'os.system', 'os.fork', 'os.forkpty', 'os.posix_spawn', 'os.exec', 'os.spawn', 'os.mkdir',
                        'os.remove', 'os.rename', 'os.truncate', '_thread.start_new_thread',
                        '_thread.start_joinable_thread'):
                    os.write(2, event.encode())
            sys.addaudithook(refuse)\n""")

    def test_it_works_without_ssl(self):
        blocked = "import sys\nsys.modules['_ssl'] = None\n"
        self.run_program(blocked)
        done = run_python('-c', blocked + """if True:
            import streamlite
            try:
                streamlite.OpenAI(api_key='k', base_url='https://127.0.0.1:1/v1').models.list()
            except streamlite.OpenAIError as error:
                print(error)
        """)
        self.assertEqual(done.stderr, '')
        self.assertIn('ssl', done.stdout)

    def test_it_works_isolated_and_in_an_ascii_locale(self):
        path = "import sys\nsys.path.insert(0, %r)\n" % FOLDER
        self.run_program(path, '-I', '-S', LANG='C', LC_ALL='C', PYTHONIOENCODING='')


# ---- TLS -----------------------------------------------------------------------------------------

# Made for these tests, for "localhost" and "api.example.test", until 2120; the key protects nothing.
CERTIFICATE = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgYtit2XBvM+imZJr2
asOSAfvsuYijoqpbmKFXmQP/GAqhRANCAASFrsSscmX+TuQL74zWiOHx4+spADY5
JktwwETfweeynBo7XIv1c8GewnRCX8mKs7JCoboBZCLejXzLlX5oJ2QJ
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBjjCCATSgAwIBAgIBATAKBggqhkjOPQQDAjAbMRkwFwYDVQQDDBBzdHJlYW1s
aXRlIHRlc3RzMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAbMRkw
FwYDVQQDDBBzdHJlYW1saXRlIHRlc3RzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAEha7ErHJl/k7kC++M1ojh8ePrKQA2OSZLcMBE38HnspwaO1yL9XPBnsJ0Ql/J
irOyQqG6AWQi3o18y5V+aCdkCaNnMGUwJgYDVR0RBB8wHYIJbG9jYWxob3N0ghBh
cGkuZXhhbXBsZS50ZXN0MAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMB0G
A1UdDgQWBBTvwp2LRTJkXigmCfcUdTHuWPJG4DAKBggqhkjOPQQDAgNIADBFAiEA
gRrNDRh1M98g49R5iG6+LPSZCzso7V2MNWDwbCyOCsgCIBHM0Itg/vfCwGmOpODQ
6xoIzRCVn7KlxK55aQMyCpCo
-----END CERTIFICATE-----
"""


@contextlib.contextmanager
def certificate_file():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'certificate.pem')
        with open(path, 'w') as file:
            file.write(CERTIFICATE)
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


@unittest.skipUnless(ssl, 'no ssl')
class TLSTest(TestCase):

    def serve(self, *scripts):
        return Server(*scripts, tls=server_context())

    def client(self, server, host='localhost', **options):
        return client(server, base_url='https://%s:%d/v1' % (host, server.port), **options)

    def trusting_client(self, server, **options):
        return self.client(server, ssl_context=trusting_context(), **options)

    def test_a_connection_is_kept_alive(self):
        for answer in stream_reply(HELLO), stream_reply(HELLO, 'length'), CHUNKED_HEAD + chunked(HELLO, 30):
            with self.serve(answer) as server, self.trusting_client(server) as asker:
                for _ in range(20):
                    self.assertText(ask(asker), 'Hello world')
                self.assertEqual((len(server.requests), server.connections), (20, 1))

    def test_a_private_ca_comes_from_the_environment(self):
        with certificate_file() as path, self.serve() as server:
            for name in 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE':
                with self.subTest(name), mock.patch.dict(os.environ, {name: path}), self.client(server) as asker:
                    self.assertText(ask(asker), 'Hello world')
            with mock.patch.dict(os.environ, SSL_CERT_FILE=path):
                asker = self.client(server)
            with asker:  # which keeps what it read
                self.assertText(ask(asker), 'Hello world')
            with mock.patch.dict(os.environ, SSL_CERT_FILE=path + '.missing'):
                with self.assertRaises(streamlite.OpenAIError) as caught, self.client(server) as asker:
                    ask(asker)
                self.assertSays(caught.exception, 'SSL_CERT_FILE', 'missing')

    def test_a_key_log_is_not_written(self):
        with tempfile.TemporaryDirectory() as folder:
            os.environ['SSLKEYLOGFILE'] = os.path.join(folder, 'keys')
            with certificate_file() as path, self.serve() as server:
                os.environ['SSL_CERT_FILE'] = path
                with self.client(server) as asker:
                    self.assertText(ask(asker), 'Hello world')
            self.assertEqual(os.listdir(folder), [])

    def test_an_unknown_certificate_is_refused_with_a_remedy_before_any_byte_of_the_request(self):
        with self.serve() as server, self.client(server, max_retries=2) as asker:
            error = self.assertBroken(asker, '')
            self.assertSays(error, 'localhost', 'certificate', 'SSL_CERT_FILE')
            self.assertEqual((server.requests, server.connections, error.attempts), ([], 1, 1))

    def test_a_certificate_for_another_host_is_refused(self):
        with self.serve() as server:
            with self.trusting_client(server, host='127.0.0.1', max_retries=2) as asker:
                error = self.assertBroken(asker, '')
            self.assertSays(error, '127.0.0.1', 'certificate')
            self.assertEqual((server.requests, server.connections, error.attempts), ([], 1, 1))

    def test_a_stream_cut_without_close_notify_is_broken(self):
        cases = {'close-delimited': cut(stream_reply(HELLO_CUT, 'close')),  # cut closes TCP and tells TLS nothing
                 'chunked': cut(begun(HELLO_CUT)),
                 'reset': reset(begun(HELLO_CUT))}
        for name, script in cases.items():
            with self.subTest(name), self.serve(script) as server, self.trusting_client(server) as asker:
                self.assertBroken(asker, 'Hello ')
        with self.serve(cut(stream_reply(FINISHED, 'close'))) as server, self.trusting_client(server) as asker:
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

        with self.serve(script, stream_reply(HELLO)) as server, self.trusting_client(server) as asker:
            self.assertText(ask(asker), 'Hello world')
            self.assertTrue(closed.wait(5))
            self.assertText(ask(asker), 'Hello world')
            self.assertEqual((len(server.requests), server.connections), (2, 2))

    def test_time_holds_over_tls_too(self):
        with self.serve(stall(begun(HELLO_CUT))) as server:
            with self.trusting_client(server, timeout=0.2) as asker, self.assertTakes(0.2, 0.7):
                self.assertBroken(asker, 'Hello ', streamlite.APITimeoutError)

    def test_close_from_another_thread_ends_a_blocked_read(self):
        gone = threading.Event()

        def script(peer):
            peer.send(begun(HELLO_CUT))
            if peer.wait_closed():
                gone.set()

        with self.serve(script) as server, self.trusting_client(server) as asker:
            stream = ask(asker)
            reading = threading.Event()

            def read():
                with contextlib.suppress(streamlite.OpenAIError):
                    for _ in stream:
                        reading.set()

            thread = threading.Thread(target=read)
            thread.start()
            self.assertTrue(reading.wait(5))
            self.assertFalse(gone.wait(0.05))
            with self.assertTakes(0, 0.1 + 0.2):
                stream.close()
                thread.join(5)
            self.assertTrue(gone.wait(1))

    def test_plain_http_where_tls_is_meant_and_the_reverse(self):
        with self.serve() as server, client(server, base_url='http://localhost:%d/v1' % server.port) as asker:
            self.assertBroken(asker, '')

        class Resetting(Peer):
            def read_request(self):
                self.reset()

        with Server(peer=Resetting) as server, self.client(server) as asker:
            self.assertBroken(asker, '')

        class Plain(Peer):
            def read_request(self):
                return Request(b'PLAIN /\r\n', self.socket.recv(65536), self.number)

        with Server(cut(reply(400, {'Connection': 'close'}, b'what?')), peer=Plain) as server:
            with self.client(server) as asker:
                self.assertSays(self.assertBroken(asker, ''), 'localhost', 'http')


# ==================================================================================================
# Asynchronous clients, relay, demo server, command line, README
# ==================================================================================================

WAITING = CHUNKED_HEAD + chunked(HELLO_CUT, last=False)  # a stream that says "Hello " and then nothing more
AT_ONCE = {'retry-after-ms': '1'}  # a server that wants the next attempt at once keeps the tests short


# ---- asynchronous clients ------------------------------------------------------------------------

def async_client(server, **options):
    """`client`, asynchronous."""
    options = dict({'api_key': KEY, 'base_url': server.url, 'max_retries': 0, 'timeout': 5}, **options)
    return streamlite.AsyncOpenAI(**options)


async def gather_text(stream):
    """The text of a stream that is iterated to its end."""
    texts = []
    async for chunk in stream:
        texts.append(chunk.choices[0].delta.content or '' if chunk.choices else '')
    return ''.join(texts)


class AsyncTestCase(TestCase):
    """Runs coroutines in the debug mode of asyncio; fails for a word of complaint from it, or from a destructor."""

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
        loop.slow_callback_duration = 2  # a busy machine is no fault
        asyncio.set_event_loop(loop)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter('always')
                result = loop.run_until_complete(asyncio.wait_for(coroutine, 15))
                loop.run_until_complete(loop.shutdown_asyncgens())
                gc.collect()
                loop.run_until_complete(asyncio.sleep(0))
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        self.assertEqual(self.complaints + [str(warning.message) for warning in warned], [])
        return result

    async def happened(self, event):
        """Whether a threading.Event is set within half a second, without holding up the loop."""
        for _ in range(50):
            if event.is_set():
                return True
            await asyncio.sleep(0.01)
        return False


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
            self.assertEqual((stream.completion, completion.choices[0].finish_reason), (completion, 'stop'))
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
            return ''.join(json.loads(event)['choices'][0]['delta'].get('content', '') for event in events)

        async def main(server):
            async with async_client(server) as asker:
                for way in (iterate, iterate_in_a_block, text, collect, begin_then_collect, relay):
                    with self.subTest(way.__name__):
                        stream = await ask(asker)
                        self.assertIsInstance(stream, streamlite.AsyncStream)
                        self.assertEqual((stream.response.status_code, stream.response.request_id), (200, 'req-1'))
                        self.assertEqual(await way(stream), 'Hello world')
                        self.assertLessEqual(stream.time_to_first_token, stream.elapsed)

        with Server(stream_reply(HELLO, headers={'x-request-id': 'req-1'})) as server:
            self.run_async(main(server))
            self.assertEqual(server.connections, 1, 'connections are reused here, too')

    def test_whole_replies_and_the_list_of_models(self):
        whole = {'id': 'c', 'object': 'chat.completion', 'created': 1, 'model': 'm', 'choices': [
            {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': 'Hello'}}]}
        models = {'object': 'list', 'data': [{'id': 'm', 'object': 'model', 'created': 1, 'owned_by': 'us'}]}

        async def main(server):
            async with async_client(server) as asker:
                self.assertText(await ask(asker, stream=False), 'Hello')
                served = await asker.models.list()
                self.assertEqual([model.id for model in served.data], ['m'])
                self.assertEqual(await gather_text(await ask(asker.with_options(timeout=3))), 'Hello world')

        with Server(reply(200, {}, whole), reply(200, {}, models), stream_reply(HELLO)) as server:
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
            with self.subTest(key.__name__), Server(error_reply(503, AT_ONCE), stream_reply(HELLO)) as server:
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
            'bad chunk size': CHUNKED_HEAD + chunked(HELLO_CUT, last=False) + b'nonsense\r\n',
            'bad JSON': stream_reply(HELLO_CUT + b'data: {oops\n\n'),
            'HTML': stream_reply(b'<html><title>Log in</title></html>', headers={'Content-Type': 'text/html'}),
            'an error event': stream_reply(HELLO_CUT + error_event),
            'an error event alone': stream_reply(error_event),
            'wrong key': error_reply(401, message='Incorrect API key'),
            'rate limit': error_reply(429, AT_ONCE, message='Too fast'),
            'elsewhere': reply(302, {'Location': 'http://127.0.0.1:9/'}),
        }

        def told(error, text):
            remember(error)
            message = re.sub(r'\d+\.\d+ s', '# s', re.sub(r':\d+/', ':#/', str(error)))
            return type(error).__name__, message, text, text_of(error.partial), error.attempts, error.code

        def ask_in_turn(server):
            texts = []
            with self.assertRaises(streamlite.APIError) as caught:
                with client(server, timeout=0.3) as asker, ask(asker) as stream:
                    texts.extend(stream.text())
            return told(caught.exception, ''.join(texts))

        async def ask_at_once(server):
            texts = []
            with self.assertRaises(streamlite.APIError) as caught:
                async with async_client(server, timeout=0.3) as asker, await ask(asker) as stream:
                    async for text in stream.text():
                        texts.append(text)
            return told(caught.exception, ''.join(texts))

        async def main(servers):
            return await asyncio.gather(*map(ask_at_once, servers))

        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(faults)))
            servers = [stack.enter_context(Server(script)) for script in list(faults.values()) * 2]
            expected = pool.map(ask_in_turn, servers[:len(faults)])
            found = dict(zip(faults, self.run_async(main(servers[len(faults):]))))
            expected = dict(zip(faults, expected))
        for name in faults:
            with self.subTest(name):
                self.assertEqual(found[name], expected[name])

    def test_a_lost_connection_is_retried_up_to_the_first_chunk_and_by_collect_beyond(self):
        async def collect(stream):
            return text_of(await stream.collect())

        ways = {'refused': (error_reply(503, AT_ONCE), gather_text),
                'cut before the first chunk': (cut(CHUNKED_HEAD), gather_text),
                'cut in the middle, unseen': (cut(WAITING), collect)}

        async def main(server, use):
            async with async_client(server, max_retries=1) as asker:
                return await use(await ask(asker))

        async def all_ways(servers):
            return await asyncio.gather(*[main(server, use) for server, (_, use) in zip(servers, ways.values())])

        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(Server(script, stream_reply(HELLO))) for script, _ in ways.values()]
            for name, text, server in zip(ways, self.run_async(all_ways(servers)), servers):
                self.assertEqual((text, len(server.requests)), ('Hello world', 2), name)
        with Server(cut(WAITING), stream_reply(HELLO)) as server:
            with self.assertRaises(streamlite.APIConnectionError) as caught:
                self.run_async(main(server, gather_text))
            self.assertEqual((text_of(caught.exception.partial), len(server.requests)), ('Hello ', 1))

    def test_the_deadline_holds_for_the_whole_call(self):
        async def main(server):
            async with async_client(server, deadline=0.2) as asker:
                with self.assertRaises(streamlite.APIError):
                    await gather_text(await ask(asker))

        async def in_each_phase(*servers):
            await asyncio.gather(*map(main, servers))

        late = error_reply(503, {'retry-after': '60'})
        with Server(stall()) as head, Server(stall(WAITING)) as body, Server(late) as pause:
            with self.assertTakes(0.1, 1.5):
                self.run_async(in_each_phase(head, body, pause))

    def test_a_server_faster_than_its_reader_leaves_the_loop_to_others(self):
        async def main(server):
            turns = []

            async def other():
                while True:
                    turns.append(len(turns))
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(other())
            async with async_client(server) as asker:
                text = await gather_text(await ask(asker))
            task.cancel()
            return len(text), len(turns)

        body = sse(*[delta('x' * 50)] * 5000 + [delta(finish_reason='stop')])
        with Server(stream_reply(body)) as server:
            length, turns = self.run_async(main(server))
        self.assertEqual(length, 250000)
        self.assertGreater(turns, 10)

    def test_a_body_that_comes_to_nothing_leaves_the_loop_to_others(self):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        nothing = packer.flush() * 1000  # members of gzip that hold no byte

        def script(peer):
            peer.send(head(200, {'Content-Encoding': 'gzip'}))
            while True:
                peer.send(nothing)

        async def main(server):
            async with async_client(server, deadline=0.2) as asker:
                reading = asyncio.ensure_future(gather_text(await ask(asker)))
                turns = 0
                while not reading.done():
                    await asyncio.sleep(0.001)
                    turns += 1
                with self.assertRaises(streamlite.APITimeoutError):
                    await reading
                return turns

        with Server(script) as server:
            self.assertGreater(self.run_async(main(server)), 10)

    def test_where_the_loop_cannot_watch_sockets_threads_read(self):
        async def stream(server):
            async with async_client(server) as asker:
                return await gather_text(await ask(asker))

        async def main(quiet, server, gone):
            waiting = [asyncio.ensure_future(stream(quiet)) for _ in range(12)]
            while len(quiet.requests) < 12:
                await asyncio.sleep(0.001)
            self.assertEqual(await asyncio.wait_for(stream(server), 3), 'Hello world')  # less than they wait
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            self.assertTrue(await self.happened(gone))

        gone = threading.Event()
        with mock.patch.object(asyncio.SelectorEventLoop, 'add_reader', side_effect=NotImplementedError):
            with Server(lambda peer: (peer.send(WAITING), peer.wait_closed() and gone.set())) as quiet:
                with Server(stream_reply(HELLO)) as server:
                    self.run_async(main(quiet, server, gone))

    def test_64_streams_run_beside_a_default_executor_that_is_full(self):
        release = threading.Event()

        async def main(server):
            loop = asyncio.get_event_loop()
            jobs = [loop.run_in_executor(None, release.wait, 10) for _ in range(64)]
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
                while mute.connections < 8:
                    await asyncio.sleep(0.01)
                try:
                    return await asyncio.wait_for(stream(server), 3)  # less than the others wait
                finally:
                    for task in hanging:
                        task.cancel()
                    await asyncio.gather(*hanging, return_exceptions=True)

        with Server(peer=Mute) as mute, Server(stream_reply(HELLO)) as server:
            self.assertEqual(self.run_async(main(mute, server)), 'Hello world')

    def test_a_thread_that_cannot_be_started_is_a_connection_error(self):
        async def main(server):
            async with async_client(server) as asker:
                with mock.patch.object(threading.Thread, 'start', side_effect=RuntimeError('no more threads')):
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
            async with async_client(server, deadline=3) as asker:
                async def stream():
                    return await gather_text(await ask(asker))
                return await asyncio.gather(*[stream() for _ in range(16)], return_exceptions=True)

        with Server(stream_reply(HELLO)) as server, mock.patch.object(threading.Thread, 'start', scarce):
            results = self.run_async(main(server))
        self.assertEqual([type(result) for result in results if result != 'Hello world'],
                         [streamlite.APIConnectionError] * 3)

    def test_a_key_that_never_comes_obeys_the_deadline(self):
        async def key():
            await asyncio.get_event_loop().create_future()

        async def main(server):
            async with async_client(server, api_key=key, deadline=0.1) as asker:
                with self.assertRaises(streamlite.APITimeoutError):
                    await ask(asker)

        with Server() as server, self.assertTakes(0.1, 0.6):
            self.run_async(main(server))

    def test_no_time_is_too_long(self):
        async def main(server, options):
            async with async_client(server, **options) as asker:
                return await gather_text(await ask(asker))

        for options in {'timeout': 1e12, 'deadline': 1e15}, {'timeout': None}:
            rest = chunked(sse(delta('world'), delta(finish_reason='stop')))
            with self.subTest(options), Server(
                    lambda peer: (peer.send(WAITING), peer.wait_closed(0.05), peer.send(rest))) as server:
                self.assertEqual(self.run_async(main(server, options)), 'Hello world')

    def test_two_tasks_that_read_one_stream_are_told(self):
        more = threading.Event()

        async def main(server):
            async with async_client(server) as asker, await ask(asker) as stream:
                first = asyncio.ensure_future(gather_text(stream))
                while text_of(stream.completion) != 'Hello ':
                    await asyncio.sleep(0.001)
                with self.assertRaises(RuntimeError) as caught:
                    await stream.__anext__()
                self.assertSays(caught.exception, 'another task')
                more.set()
                return await first

        rest = chunked(sse(delta('world'), delta(finish_reason='stop')))
        with Server(lambda peer: (peer.send(WAITING), more.wait(5), peer.send(rest))) as server:
            self.assertEqual(self.run_async(main(server)), 'Hello world')

    @unittest.skipUnless(hasattr(os, 'fork'), 'no fork')
    def test_a_process_forked_while_openings_are_busy_opens_streams(self):
        async def stream(server):
            async with async_client(server, deadline=5) as asker:
                return await gather_text(await ask(asker))

        def look_up(*args):
            if os.getpid() == parent:
                answered.wait(5)
            return known(*args)

        parent, known, answered = os.getpid(), socket.getaddrinfo, threading.Event()
        with Server(stream_reply(HELLO)) as server, mock.patch('socket.getaddrinfo', look_up):
            loop = asyncio.new_event_loop()
            opening = [asyncio.ensure_future(stream(server), loop=loop) for _ in range(20)]
            loop.run_until_complete(asyncio.wait(opening, timeout=0))
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of forking beside threads
                child = os.fork()
            if not child:
                try:
                    os._exit(0 if asyncio_run(asyncio.wait_for(stream(server), 3)) == 'Hello world' else 1)
                finally:
                    os._exit(2)
            code = os.waitpid(child, 0)[1]
            answered.set()
            texts = loop.run_until_complete(asyncio.gather(*opening))
            loop.close()
            self.assertEqual((code, texts), (0, ['Hello world'] * 20))

    def test_a_client_outlives_its_event_loop(self):
        with Server(stream_reply(HELLO)) as server:
            asker = async_client(server)

            async def main():
                return await gather_text(await ask(asker))

            self.assertEqual([self.run_async(main()), self.run_async(main())], ['Hello world'] * 2)
            self.run_async(asker.close())
            self.assertEqual(server.connections, 1)


class AsyncEndTest(AsyncTestCase):
    """A stream that is given up ends its connection, so that the server stops generating."""

    def watched(self, data=WAITING):
        """A server that says `data`, and an Event: its client has gone."""
        gone = threading.Event()
        return Server(lambda peer: (peer.send(data), peer.wait_closed() and gone.set())), gone

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
                while not server.requests:
                    await asyncio.sleep(0.001)
                self.assertFalse(gone.is_set())
                task.cancel()
                self.assertTrue(await self.happened(gone))
                with self.assertRaises(asyncio.CancelledError):
                    await task

        for way, data in ((create, b''), (read, WAITING), (collect, WAITING), (loop_body, WAITING),
                          (loop_body_in_a_block, WAITING), (relay, WAITING)):
            server, gone = self.watched(data)
            with self.subTest(way.__name__), server:
                self.run_async(main(server, way, gone))

    def test_a_timeout_of_asyncio_ends_the_connection(self):
        async def main(server, gone):
            async with async_client(server) as asker:
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(gather_text(await ask(asker)), 0.05)
                self.assertTrue(await self.happened(gone))

        server, gone = self.watched()
        with server:
            self.run_async(main(server, gone))

    def test_a_cancellation_that_the_task_survives_ends_the_connection(self):
        async def main(server, gone):
            async def survive(stream):
                with contextlib.suppress(asyncio.CancelledError):
                    await gather_text(stream)
                self.assertTrue(await self.happened(gone))
                with self.assertRaises(streamlite.APIConnectionError):
                    await gather_text(stream)

            async with async_client(server) as asker:
                stream = await ask(asker)
                task = asyncio.ensure_future(survive(stream))
                while text_of(stream.completion) != 'Hello ':
                    await asyncio.sleep(0.001)
                task.cancel()
                await task

        server, gone = self.watched()
        with server:
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
                task.cancel()
                more.set()
                with self.assertRaises(streamlite.APIConnectionError):
                    await task
                return ''.join(texts)

        rest = chunked(sse(delta('world'), delta(finish_reason='stop')))
        seen = set()
        for turns in range(1, 8):
            more = threading.Event()
            script = lambda peer, more=more: (peer.send(WAITING), more.wait(5), peer.send(rest))
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
                    self.assertEqual(len(current()._callbacks), before + 1)
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
                self.assertTrue(await self.happened(gone))
                self.assertEqual(text_of(stream.completion), 'Hel')

        for way in (leave, close):
            server, gone = self.watched()
            with self.subTest(way.__name__), server:
                self.run_async(main(server, way, gone))

    def test_close_ends_a_wait_in_another_task(self):
        async def main(server, gone):
            async with async_client(server) as asker:
                stream = await ask(asker)
                reading = asyncio.ensure_future(gather_text(stream))
                while text_of(stream.completion) != 'Hello ':
                    await asyncio.sleep(0.001)
                await stream.close()
                with self.assertRaises(streamlite.APIConnectionError):
                    await asyncio.wait_for(reading, 1)
                self.assertTrue(await self.happened(gone))

        server, gone = self.watched()
        with server:
            self.run_async(main(server, gone))

    def test_an_abandoned_stream_leaves_nothing(self):
        async def main(server, way, gone):
            async with async_client(server) as asker:
                await way(asker)
                gc.collect()
                self.assertTrue(await self.happened(gone))

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
            server, gone = self.watched()
            with self.subTest(way.__name__), server:
                self.run_async(main(server, way, gone))

    def test_a_loop_that_is_closed_under_a_stream_ends_it_silently(self):
        server, gone = self.watched()
        with server:
            loop = asyncio.new_event_loop()
            stream = loop.run_until_complete(ask(async_client(server)))
            loop.run_until_complete(stream.__anext__())
            loop.close()
            del stream
            gc.collect()
            self.assertTrue(gone.wait(2))
        self.assertEqual(self.complaints, [])
        # one that waits, too: asyncio complains of the task, but nothing of ours
        server, gone = self.watched()
        with server, contextlib.redirect_stderr(io.StringIO()) as said:
            loop = asyncio.new_event_loop()
            reading = asyncio.ensure_future(self.read_all(server), loop=loop)
            loop.run_until_complete(asyncio.wait([reading], timeout=0.1))
            loop.close()
            del reading
            gc.collect()
            self.assertTrue(gone.wait(2))
        self.assertEqual(said.getvalue(), '')

    async def read_all(self, server):
        return await gather_text(await ask(async_client(server)))

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


# ---- the relay to a browser ----------------------------------------------------------------------

class RelayTest(AsyncTestCase):

    def relayed(self, server, **options):
        """The events that a browser gets, from the synchronous and from the asynchronous client: they are the same."""
        with client(server, **options) as asker, ask(asker) as stream:
            one = b''.join(stream.sse())

        async def main():
            async with async_client(server, **options) as asker, await ask(asker) as stream:
                return b''.join([part async for part in stream.sse()])

        other = self.run_async(main())
        self.assertEqual(one, other)
        SAID.append(one.decode())
        return streamlite.SSEDecoder().feed(one)

    def test_a_browser_gets_every_chunk_as_it_was(self):
        text = 'two\nlines\r\n\r\nand "quotes", \u2028, </script>, \U0001f600, data: x\n\n'
        with Server(stream_reply(sse(delta(text), delta(finish_reason='stop', vendor={'a': [1]})))) as server:
            *chunks, done = self.relayed(server)
        self.assertEqual((done.event, done.data), ('message', '[DONE]'))
        self.assertEqual([event.event for event in chunks], ['message'] * 2)
        first, last = (json.loads(event.data)['choices'][0] for event in chunks)
        self.assertEqual(first['delta']['content'], text)
        self.assertEqual((last['finish_reason'], last['delta']['vendor']), ('stop', {'a': [1]}))

    def test_an_event_goes_out_with_the_chunk_that_came(self):
        more = threading.Event()

        def script(peer):
            peer.send(WAITING)
            more.wait(5)
            peer.send(chunked(sse(delta(finish_reason='stop'))))

        with Server(script) as server, client(server) as asker, ask(asker) as stream:
            events = stream.sse()
            self.assertIn(b'Hel', next(events))
            self.assertIn(b'lo ', next(events))
            more.set()
            self.assertEqual(len(list(events)), 2)

    def test_an_error_is_an_event_that_tells_no_secret(self):
        error_event = {'error': {'message': 'the model fell over', 'type': 'overloaded', 'code': 503}}
        for name, script, kind, words in (
                ('the server\'s own', stream_reply(HELLO_CUT + sse(error_event)), 'overloaded', 'the model fell over'),
                ('cut', cut(WAITING), 'APIConnectionError', 'lost'),
                ('silent', stall(WAITING), 'APITimeoutError', 'time'),
                ('foreign', stream_reply(HELLO_CUT + b'data: <html>\n\n'), 'APIResponseValidationError', 'else')):
            with self.subTest(name), Server(script) as server:
                *chunks, last = self.relayed(server, timeout=0.1 if name == 'silent' else 5)
                self.assertEqual([event.event for event in chunks], ['message'] * 2, 'what came before it is relayed')
                self.assertEqual(last.event, 'error')
                error = json.loads(last.data)['error']
                self.assertEqual(error['type'], kind)
                self.assertIn(words, error['message'])
                for secret in ('127.0.0.1', str(server.port), 'html'):
                    self.assertNotIn(secret, last.data)

    def test_a_page_of_a_proxy_is_not_shown(self):
        page = reply(502, {}, b'<html><title>Bad gateway at backend-7.internal</title></html>')
        with Server(cut(CHUNKED_HEAD), page, cut(CHUNKED_HEAD), page) as server:
            with mock.patch('random.random', return_value=4):  # no wait between attempts
                event, = self.relayed(server, max_retries=1)
            self.assertEqual(len(server.requests), 4)
        self.assertEqual((event.event, json.loads(event.data)['error']['type']), ('error', 'InternalServerError'))
        for word in 'internal', 'html', 'gateway':
            self.assertNotIn(word, event.data)

    def test_what_is_nested_too_deeply_is_an_error_event(self):
        deep = '{"choices": [], "x": %s%s}' % ('[' * 300, ']' * 300)
        with Server(stream_reply(sse(delta('Hi'), deep, delta(finish_reason='stop')))) as server:
            first, last = self.relayed(server)
        self.assertEqual((first.event, last.event), ('message', 'error'))

    def test_a_browser_that_goes_away_ends_the_upstream_stream(self):
        gone = threading.Event()

        def script(peer):
            peer.send(WAITING)
            if peer.wait_closed():
                gone.set()

        with Server(script) as server, client(server) as asker:
            events = ask(asker).sse()
            next(events)
            events.close()
            self.assertTrue(gone.wait(1))
        gone.clear()

        async def main(server):
            async with async_client(server) as asker:
                events = (await ask(asker)).sse()
                await events.__anext__()
                await events.aclose()
                self.assertTrue(await self.happened(gone))

        with Server(script) as server:
            self.run_async(main(server))


# ---- the demo server -----------------------------------------------------------------------------

WEATHER = {'type': 'function', 'function': {'name': 'get_weather', 'description': 'The weather of a place',
                                            'parameters': {'type': 'object', 'required': ['location'],
                                                           'properties': {'location': {'type': 'string'}}}}}


class DemoServerTest(TestCase):

    def setUp(self):
        super().setUp()
        self.server = streamlite.DemoServer(delay=0)
        self.addCleanup(self.server.close)
        self.client = streamlite.OpenAI(base_url=self.server.base_url, api_key=KEY)
        self.addCleanup(self.client.close)

    def test_text_is_streamed_word_by_word_and_says_what_it_is(self):
        with ask(self.client) as stream:
            pieces = list(stream.text())
        self.assertGreater(len(pieces), 10)
        self.assertIn('not a language model', ''.join(pieces))
        self.assertEqual(''.join(pieces), text_of(stream.completion))
        self.assertEqual((stream.completion.choices[0].finish_reason, stream.completion.usage), ('stop', None))
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
        self.assertEqual(last.usage.total_tokens, last.usage.prompt_tokens + last.usage.completion_tokens)
        self.assertEqual(last.usage.completion_tokens, len(chunks) - 1)

    def test_tools_are_called_in_fragments_and_their_answer_is_taken(self):
        messages = [{'role': 'user', 'content': 'How is the weather in Berlin?'}]
        with ask(self.client, messages=messages, tools=[WEATHER]) as stream:
            chunks = list(stream)
        self.assertGreater(len(chunks), 3)
        choice = stream.completion.choices[0]
        call, = choice.message.tool_calls
        self.assertEqual((choice.finish_reason, call.function.name), ('tool_calls', 'get_weather'))
        self.assertEqual(call.function.parsed_arguments, {'location': 'Berlin'})
        messages += [choice.message, {'role': 'tool', 'tool_call_id': call.id, 'content': '9 degrees'}]
        self.assertIn('9 degrees', text_of(ask(self.client, messages=messages, tools=[WEATHER]).collect()))

    def test_the_length_and_the_number_of_answers_can_be_set(self):
        for name, value, length in (('max_tokens', 3, 3), ('max_completion_tokens', 2, 2)):
            completion = ask(self.client, n=2, **{name: value}).collect()
            self.assertEqual([len(choice.message.content.split()) for choice in completion.choices], [length] * 2)
            self.assertEqual([choice.finish_reason for choice in completion.choices], ['length'] * 2)

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
        for model, kind, not_kind in (('demo-error', streamlite.APIError, streamlite.APIConnectionError),
                                      ('demo-lost', streamlite.APIConnectionError, streamlite.APITimeoutError)):
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
                ('path', {'base_url': self.server.base_url + '/elsewhere'}, {}, streamlite.NotFoundError)):
            with self.subTest(name), self.client.with_options(max_retries=0, **settings) as asker:
                with self.assertRaises(kind):
                    ask(asker, **options)
                if name == 'path':
                    with self.assertRaises(kind):
                        asker.models.list()

    def test_it_stops_working_for_a_client_that_has_gone(self):
        with streamlite.DemoServer(delay=0.01) as server, streamlite.OpenAI(base_url=server.base_url) as asker:
            with ask(asker) as stream:
                next(stream)
                self.assertEqual(server.active, 1)
            end = time.monotonic() + 2
            while server.active and time.monotonic() < end:
                time.sleep(0.001)
            self.assertEqual(server.active, 0)


# ---- the command in pipes ------------------------------------------------------------------------

SCRIPT = os.path.abspath(streamlite.__file__)
COMMAND = [sys.executable, '-m', os.path.basename(SCRIPT)[:-3]]  # from FOLDER; a script would be compiled every time
Ran = collections.namedtuple('Ran', 'code out err')  # an exit code, and what was said on the two outputs


def command(*arguments, start=COMMAND, input=b'', cwd=FOLDER, **environment):
    """Run `python -m streamlite ARGUMENTS` in a process of its own, with pipes."""
    done = subprocess.run(start + list(arguments), input=input, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=cwd, env=dict(os.environ, **environment), timeout=20)
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    SAID.extend(ran[1:])
    return ran


def run_main(*arguments, input='', stdin=None, stderr=None, **environment):
    """The same in this process, without the tenth of a second that a new one takes."""
    stdin = stdin or io.TextIOWrapper(io.BytesIO(input.encode()), encoding='utf-8')
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', newline=''), stderr or io.StringIO()
    with mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr), mock.patch.dict(os.environ, environment):
        try:
            code = streamlite.main(list(arguments))
        except SystemExit as error:  # argparse's way
            code = error.code
        stdout.flush()
    ran = Ran(code, stdout.buffer.getvalue().decode(), stderr.getvalue())
    SAID.extend(ran[1:])
    return ran


class CommandTestCase(TestCase):

    def setUp(self):
        super().setUp()
        os.environ.update(OPENAI_API_KEY=KEY, OPENAI_MODEL='m', PYTHONIOENCODING='utf-8')

    def serve(self, *scripts):
        """A server, at which the command asks."""
        server = Server(*scripts)
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
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
        thinking = sse(delta(reasoning_content='I think'), delta('Hello\nworld'), delta(finish_reason='stop'))
        for name, stream, out in (('a newline is added', HELLO, 'Hello world\n'),
                                  ('but no second one', sse(delta('Hi\n'), delta(finish_reason='stop')), 'Hi\n'),
                                  ('reasoning is not shown in a pipe', thinking, 'Hello\nworld\n'),
                                  ('what a terminal would act on is data here', sse(
                                      delta('\x1b[1m\x07'), delta(finish_reason='stop')), '\x1b[1m\x07\n'),
                                  ('nothing', sse(delta(finish_reason='stop')), '')):
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
                ('standard input goes before them', ['why?'], 'line 1\nline 2\n', 'line 1\nline 2\n\nwhy?'),
                ('standard input alone', [], 'Say hello.\n', 'Say hello.'),
                ('the same, said with a dash', ['-'], 'Say hello.\n', 'Say hello.'),
                ('a byte order mark is none of the text', ['-'], '\ufeffcaf\xe9', 'caf\xe9')):
            with self.subTest(name):
                self.assertEqual(run_main(*arguments, input=piped).code, 0)
                self.assertEqual(server.requests[-1].json['messages'], [{'role': 'user', 'content': content}])

    def test_a_standard_input_that_brings_nothing_is_waited_for_with_a_word(self):
        class Sooner(threading.Timer):
            def __init__(self, interval, *args):
                super().__init__(interval / 100, *args)

        class Told(io.StringIO):
            def write(self, text):
                told.set()
                return super().write(text)

        told, ended = threading.Event(), []
        server = self.serve()
        reading, writing = os.pipe()
        with io.open(reading, encoding='utf-8') as stdin, mock.patch.object(threading, 'Timer', Sooner):
            thread = threading.Thread(target=lambda: ended.append(run_main('why?', stdin=stdin, stderr=Told())))
            thread.start()
            self.assertTrue(told.wait(5))
            os.write(writing, b'late')
            os.close(writing)
            thread.join(5)
        self.assertEqual((ended[0].code, ended[0].out), (0, 'Hello world\n'))
        self.assertIn('standard input', ended[0].err)
        self.assertEqual(server.requests[0].json['messages'][0]['content'], 'late\n\nwhy?')

    def test_without_a_prompt_it_says_how_it_is_used(self):
        self.assertEqual((run_main().code, run_main().out), (2, ''))
        self.assertIn('usage:', run_main().err)

    def test_model_system_and_fields_go_into_the_request(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'tools.json')
            with io.open(path, 'w', encoding='utf-8') as file:
                json.dump([WEATHER], file)
            for arguments, wanted in (
                    (['-m', 'other'], {'model': 'other'}),
                    ([], {'model': 'm', 'stream': True}),
                    (['-s', 'Be brief.'], {'messages': [
                        {'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]}),
                    (['-o', 'temperature=0', '-o', 'seed=7'], {'temperature': 0, 'seed': 7}),
                    (['-o', 'user=jane', '-o', 'stop=a=b', '-o', 'flag=true'],
                     {'user': 'jane', 'stop': 'a=b', 'flag': True}),
                    (['-o', 'response_format={"type": "json_object"}'], {'response_format': {'type': 'json_object'}}),
                    (['-o', 'tools=@' + path], {'tools': [WEATHER]})):
                with self.subTest(arguments):
                    server = self.serve()
                    self.assertEqual(run_main('hi', *arguments), Ran(0, 'Hello world\n', ''))
                    body = server.requests[0].json
                    self.assertEqual({name: body[name] for name in wanted}, wanted)

    def test_without_a_model_the_only_one_of_the_server_is_asked(self):
        del os.environ['OPENAI_MODEL']
        server = self.serve(reply(200, {}, {'object': 'list', 'data': [{'id': 'one'}]}), stream_reply(HELLO))
        self.assertEqual(run_main('hi'), Ran(0, 'Hello world\n', ''))
        self.assertEqual((server.requests[0].path, server.requests[1].json['model']), ('/v1/models', 'one'))
        self.serve(reply(200, {}, {'object': 'list', 'data': [{'id': 'one'}, {'id': 'two'}]}))
        self.assertFails(run_main('hi'), 1, '-m', 'one, two')

    def test_tool_calls_are_printed_as_lines_of_json(self):
        with streamlite.DemoServer(delay=0) as server:
            ran = run_main('Weather in Berlin', '-o', 'tools=' + json.dumps([WEATHER]), OPENAI_BASE_URL=server.base_url)
        self.assertEqual((ran.code, ran.err), (0, ''))
        call, = map(json.loads, ran.out.splitlines())
        self.assertEqual((call['type'], call['function']), (
            'function', {'name': 'get_weather', 'arguments': '{"location": "Berlin"}'}))

    def test_json_is_one_chunk_a_line(self):
        self.serve(stream_reply(HELLO))
        ran = run_main('--json', 'hi')
        self.assertEqual((ran.code, ran.err), (0, ''))
        deltas = [json.loads(line)['choices'][0]['delta'] for line in ran.out.splitlines()]
        self.assertEqual([fields.get('content') for fields in deltas], ['Hel', 'lo ', 'world', None])

    def test_json_tells_errors_in_json_too(self):
        for name, script, lines, code, kind in (
                ('refused', error_reply(401, type='auth', code='invalid_api_key'), 0, 1, 'auth'),
                ('cut', cut(WAITING), 2, 75, 'APIConnectionError')):
            with self.subTest(name):
                self.serve(script)
                ran = run_main('--json', '--retries', '0', 'hi')
                *chunks, error = map(json.loads, ran.out.splitlines())
                self.assertEqual((ran.code, len(chunks), error['error']['type']), (code, lines, kind))
                self.assertTrue(error['error']['message'])
                self.assertFails(ran, code)

    def test_the_whole_reply_at_once(self):
        whole = {'id': 'c', 'object': 'chat.completion', 'created': 1, 'model': 'm', 'choices': [
            {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': 'Hello'}}]}
        server = self.serve(reply(200, {}, whole))
        self.assertEqual(run_main('--no-stream', 'hi'), Ran(0, 'Hello\n', ''))
        self.assertNotEqual(server.requests[0].json.get('stream'), True)
        ran = run_main('--no-stream', '--json', 'hi')
        self.assertEqual(json.loads(ran.out)['choices'][0]['message']['content'], 'Hello')

    def test_models_are_listed(self):
        self.serve(reply(200, {}, {'object': 'list', 'data': [{'id': 'one'}, {'id': 'two'}]}))
        self.assertEqual(run_main('--models'), Ran(0, 'one\ntwo\n', ''))

    def test_usage_is_told_on_standard_error(self):
        counts = {'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12}
        usage = dict(delta(), choices=[], usage=counts)
        server = self.serve(stream_reply(sse(delta('Hello'), delta(finish_reason='stop'), usage)))
        ran = run_main('--usage', 'hi')
        self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello\n', 1))
        self.assertRegex(ran.err, r'\b5\b.*\b7\b.* tokens.* first token .*tokens/s')
        self.assertEqual(server.requests[0].json['stream_options'], {'include_usage': True})

    def test_usage_falls_back_where_a_server_does_not_know_stream_options(self):
        for status in (400, 422):
            with self.subTest(status):
                refusal = error_reply(status, message='stream_options: extra fields not permitted')
                server = self.serve(refusal, stream_reply(HELLO))
                ran = run_main('--usage', 'hi')
                self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello world\n', 1))
                self.assertIn('no usage', ran.err)
                self.assertEqual(['stream_options' in request.json for request in server.requests], [True, False])
        server = self.serve(error_reply(400, message='stream_options: no'))
        self.assertFails(run_main('--usage', 'hi', '-o', 'stream_options={"a": 1}'), 1, 'stream_options')
        self.assertEqual(len(server.requests), 1, 'what was asked for by hand is not taken back')

    def test_a_reply_cut_by_a_limit_says_so(self):
        for reason, word in (('length', 'token limit'), ('content_filter', 'filter')):
            self.serve(stream_reply(sse(delta('Hel'), delta(finish_reason=reason))))
            ran = run_main('hi')
            self.assertEqual((ran.code, ran.out), (0, 'Hel\n'))
            self.assertIn(word, ran.err)

    def test_errors_are_one_line_that_says_what_to_do(self):
        models = reply(200, {}, {'object': 'list', 'data': [{'id': 'one'}, {'id': 'two'}]})
        request_id = {'x-request-id': 'req-7'}
        for name, scripts, code, words in (
                ('wrong key', [error_reply(401, request_id, 'No such key')], 1, ['401', 'No such key', 'req-7']),
                ('unknown model', [error_reply(404, message='no model m'), models], 1, ['no model m', 'one, two']),
                ('unknown model, no list', [error_reply(404, message='no model m')], 1, ['no model m']),
                ('too long', [error_reply(400, message='maximum context length is 8192 tokens')], 1, ['8192']),
                ('rate limit', [error_reply(429, {'retry-after': '7'}, 'Slow down')], 75, ['Slow down', '7 s']),
                ('quota', [error_reply(429, message='Buy more', code='insufficient_quota')], 1, ['Buy more']),
                ('overloaded', [error_reply(503, request_id)], 75, ['503', 'req-7']),
                ('HTML', [reply(200, {'Content-Type': 'text/html'}, b'<html><title>Log in</title>')], 1, ['HTML']),
                ('elsewhere', [reply(302, {'Location': 'https://example.test/'})], 1, ['example.test']),
                ('silent', [stall()], 75, ['timeout']),
                ('several lines', [error_reply(400, message='one\ntwo\x1b[2J')], 1, ['one two'])):
            with self.subTest(name):
                self.serve(*scripts)
                ran = run_main('--retries', '0', '--timeout', '0.1' if name == 'silent' else '5', 'hi')
                self.assertFails(ran, code, *words)
                self.assertEqual(ran.out, '')
                self.assertNotIn('\x1b', ran.err)

    def test_errors_before_anything_is_sent_are_one_line_too(self):
        with socket.socket() as nobody:
            nobody.bind(('127.0.0.1', 0))
            dead = 'http://127.0.0.1:%d/v1' % nobody.getsockname()[1]
            for name, arguments, environment, code, words in (
                    ('dead port', [], {'OPENAI_BASE_URL': dead}, 75, ['is the server running?', dead]),
                    ('no key', [], {'OPENAI_API_KEY': ''}, 1, ['OPENAI_API_KEY']),
                    ('a key with a line break', [], {'OPENAI_API_KEY': KEY + '\n'}, 1, ['key']),
                    ('no web address', ['--base-url', 'ftp://example.test'], {}, 1, ['http']),
                    ('no authority', ['--base-url', 'https://127.0.0.1', '--cacert', '/no/such'], {}, 1, ['/no/such']),
                    ('no messages', ['-o', 'messages=hi'], {'OPENAI_BASE_URL': dead}, 2, ['messages'])):
                with self.subTest(name):
                    self.assertFails(run_main('--retries', '0', *(arguments + ['hi']), **environment), code, *words)

    def test_a_wrong_use_is_told_with_exit_code_2(self):
        self.serve()
        for arguments, word in ((['--no-such-option'], '--no-such-option'), (['-o', 'x'], 'KEY=VALUE'),
                                (['-o', 'x=@/no/such'], '/no/such'), (['--timeout', 'soon'], 'soon'),
                                (['--key-env', 'NO_SUCH_NAME'], 'NO_SUCH_NAME'), (['--key-env', KEY], '--key-env'),
                                (['--key', KEY], 'unrecognized: --key'), (['--key=' + KEY], '--key'),
                                (['--Key', KEY], 'unrecognized'),
                                (['-o', 'x=@' + FOLDER], FOLDER), (['-o', 'x=' + '[' * 100000], 'deep')):
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
                ('cut', cut(WAITING), 75), ('reset', reset(WAITING), 75), ('silent', stall(WAITING), 75),
                ('ended', stream_reply(HELLO_CUT), 75), ('an error that passes', stream_reply(HELLO_CUT + passing), 75),
                ('an error that stays', stream_reply(HELLO_CUT + lasting), 1)):
            with self.subTest(name):
                server = self.serve(script)
                ran = run_main('--timeout', '0.1' if name == 'silent' else '5', 'hi')
                self.assertFails(ran, code)
                self.assertEqual((ran.out, len(server.requests)), ('Hello \n', 1))

    def test_time_and_retries_can_be_set(self):
        server = self.serve(*[error_reply(503, AT_ONCE)] * 3 + [stream_reply(HELLO)])
        self.assertEqual(run_main('--retries', '3', 'hi').out, 'Hello world\n')
        self.assertEqual(len(server.requests), 4)
        self.serve(stall(WAITING))
        with self.assertTakes(0.1, 1):
            self.assertFails(run_main('--deadline', '0.1', 'hi'), 75, 'deadline')

    def test_the_key_of_the_environment_goes_to_the_address_of_the_environment_only(self):
        server = self.serve()
        more = {'OPENAI_ORG_ID': 'org-' + MARK, 'OPENAI_PROJECT_ID': 'proj-' + MARK, 'OTHER_KEY': 'sk-other'}
        for arguments, sent in (([], 'Bearer ' + KEY), (['--base-url', server.url], None),
                                (['--base-url', server.url, '--key-env', 'OTHER_KEY'], 'Bearer sk-other'),
                                (['--key-env', 'OTHER_KEY'], 'Bearer sk-other')):
            with self.subTest(arguments):
                self.assertEqual(run_main('hi', *arguments, **more).code, 0)
                headers = server.requests[-1].headers
                self.assertEqual(headers.get('authorization'), sent)
                if '--base-url' in arguments:
                    self.assertNotIn(MARK, str(headers))

    def test_chat_in_a_pipe_answers_line_by_line(self):
        server = self.serve()
        typed = ['hi', '', '"""two', 'lines"""', '/reset', '/model other', '/system Be brief.', 'again', '/exit', 'no']
        ran = run_main('--chat', input='\n'.join(typed))
        self.assertEqual((ran.code, ran.out), (0, 'Hello world\n' * 3))
        one, two, three = map(self.conversation, server.requests)
        self.assertEqual(one, [('user', 'hi')])
        self.assertEqual(two, [('user', 'hi'), ('assistant', 'Hello world'), ('user', 'two\nlines')])
        self.assertEqual(three, [('system', 'Be brief.'), ('user', 'again')])
        self.assertEqual([request.json['model'] for request in server.requests], ['m', 'm', 'other'])

    def test_chat_may_begin_with_the_words_of_the_command(self):
        server = self.serve()
        self.assertEqual(run_main('--chat', 'good', 'day', input='again\n'), Ran(0, 'Hello world\n' * 2, ''))
        self.assertEqual(self.conversation(server.requests[1]),
                         [('user', 'good day'), ('assistant', 'Hello world'), ('user', 'again')])

    def test_chat_goes_on_after_an_error_and_keeps_what_came(self):
        server = self.serve(error_reply(400, message='no'), cut(WAITING), stream_reply(HELLO))
        ran = run_main('--chat', input='one\ntwo\nthree\n')
        self.assertEqual((ran.code, ran.out, ran.err.count('\n')), (0, 'Hello \nHello world\n', 2))
        self.assertEqual(self.conversation(server.requests[-1]),
                         [('user', 'two'), ('assistant', 'Hello '), ('user', 'three')])

    def test_the_help_fits_a_screen_and_has_three_examples(self):
        for option in ('--help', '-h'):
            ran = run_main(option)
            lines = ran.out.splitlines()
            self.assertEqual((ran.code, ran.err), (0, ''))
            self.assertLessEqual(len(lines), 24)
            self.assertLessEqual(max(map(len, lines)), 80)
            examples = [line for line in lines[1:] if 'python' in line and 'streamlite' in line]
            self.assertGreaterEqual(len(examples), 3)
        for option in ('--model', '-s', '-o', '--json', '--usage', '--no-stream', '--chat', '--models', '--base-url',
                       '--key-env', '--timeout', '--deadline', '--retries', '--cacert', '-v', '--demo', '--version'):
            self.assertIn(option, ran.out)

    def test_the_version(self):
        self.assertEqual(run_main('--version'), Ran(0, 'streamlite %s\n' % streamlite.__version__, ''))


class CommandProcessTest(CommandTestCase):
    """What only a process of its own can show."""

    def test_every_way_to_start_it_does_the_same(self):
        self.serve()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(SCRIPT, os.path.join(folder, 'streamlite.py'))
            for way in (['-B', '-m', 'streamlite'], ['-I', '-S', 'streamlite.py']):
                ran = command('hi', start=[sys.executable] + way, cwd=folder)
                self.assertEqual(ran, Ran(0, 'Hello world\n', ''), way)
            self.assertEqual(os.listdir(folder), ['streamlite.py'])

    def test_a_demonstration_needs_neither_key_nor_network(self):
        for name in ('OPENAI_API_KEY', 'OPENAI_MODEL'):
            del os.environ[name]
        os.environ.update(OPENAI_BASE_URL='http://nobody.invalid/v1', HTTP_PROXY='http://nobody.invalid')
        ran = command('--demo', '-o', 'max_tokens=4', 'Explain')
        self.assertEqual((ran.code, len(ran.out.split())), (0, 4))

    def test_what_a_console_cannot_write_becomes_a_question_mark(self):
        chunks = [delta('caf\xe9 \u2192 \ud83d'), delta('\ude00'), delta(finish_reason='stop')]  # an emoji in halves
        self.serve(stream_reply(sse(*map(json.dumps, chunks))))
        for encoding, out in (('ascii', b'caf? ? ?\n'), ('cp1252', b'caf\xe9 ? ?\n')):
            with self.subTest(encoding):
                os.environ['PYTHONIOENCODING'] = encoding
                process = self.start('hi')
                self.assertEqual(process.communicate(timeout=20), (out, b''))
                self.assertEqual(process.returncode, 0)

    def test_a_locale_without_letters_outside_ascii_does_no_harm(self):
        del os.environ['PYTHONIOENCODING']
        server = self.serve(stream_reply(sse(delta('caf\xe9'), delta(finish_reason='stop'))))
        ran = command('-', input='caf\xe9?'.encode(), LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
        self.assertEqual((ran.code, ran.out[:3], ran.err), (0, 'caf', ''))
        self.assertEqual(server.requests[0].json['messages'][0]['content'], 'caf\xe9?')

    def test_verbose_tells_retries_and_timing(self):
        self.serve(error_reply(503, AT_ONCE, 'try later'), stream_reply(HELLO))
        ran = command('-v', 'hi')
        self.assertEqual((ran.code, ran.out), (0, 'Hello world\n'))
        self.assertRegex(ran.err, 'attempt 1 failed.*try later')
        self.assertRegex(ran.err, r'first token after \d')

    def start(self, *arguments):
        process = subprocess.Popen(COMMAND + list(arguments), cwd=FOLDER, bufsize=0, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
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
        self.assertEqual(process.stdout.read(7), b'line 1\n')
        process.stdout.close()
        self.assertTrue(gone.wait(5))
        self.assertEqual((process.wait(5), process.stderr.read()), (0, b''))

    def test_a_closed_pipe_turns_no_failure_into_success(self):
        asked, closed = threading.Event(), threading.Event()
        refusal = error_reply(401, {'Connection': 'close'})
        self.serve(lambda peer: (asked.set(), closed.wait(5), peer.send(refusal)))
        for arguments in ([], ['--json']):
            with self.subTest(arguments):
                asked.clear()
                closed.clear()
                process = self.start('hi', *arguments)
                self.assertTrue(asked.wait(10))
                process.stdout.close()
                closed.set()
                self.assertEqual(process.wait(5), 1)
                self.assertNotIn(b'Traceback', process.stderr.read())

    @unittest.skipUnless(os.path.exists('/dev/full'), 'no /dev/full')
    def test_a_full_disk_is_told(self):
        self.serve()
        for arguments in ['hi'], ['--help']:
            with self.subTest(arguments), io.open('/dev/full', 'wb') as full:
                done = subprocess.run(COMMAND + arguments, cwd=FOLDER, stdin=subprocess.DEVNULL, stdout=full,
                                      stderr=subprocess.PIPE, timeout=20)
                self.assertFails(Ran(done.returncode, '', done.stderr.decode()), 1, 'space')

    @unittest.skipUnless(hasattr(os, 'killpg'), 'Windows has no SIGINT to send')
    def test_an_interrupt_keeps_what_came(self):
        gone = threading.Event()
        self.serve(lambda peer: (peer.send(WAITING), peer.wait_closed() and gone.set()))
        process = self.start('hi')
        self.assertEqual(process.stdout.read(3) + process.stdout.read(3), b'Hello ')
        until_asleep(process)
        process.send_signal(signal.SIGINT)
        self.assertTrue(gone.wait(5))
        self.assertEqual((process.wait(5), process.stdout.read(), process.stderr.read()), (130, b'\n', b''))


# ---- the command on a terminal -------------------------------------------------------------------

def until_asleep(process):
    """Until it waits for something: CPython sees a signal that comes just before that only afterwards."""
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
            COMMAND + list(arguments), cwd=FOLDER, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), env=dict(os.environ, **environment))
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

    def expect(self, text, timeout=10):
        """Read until this is on the screen, after what was expected before."""
        end = time.monotonic() + timeout
        while text not in self.screen[self._seen:]:
            if not self._read(end - time.monotonic()):
                raise AssertionError('%r does not come: %r' % (text, self.screen))
        self._seen = self.screen.index(text, self._seen) + len(text)

    def wait(self, timeout=10):
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
        self.screen += data.decode()
        return bool(data)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        SAID.append(self.screen)


@unittest.skipUnless(pty, 'no pseudo-terminals on this system')
class TerminalTest(CommandTestCase):

    def terminal(self, *arguments, **options):
        terminal = Terminal(*arguments, **options)
        self.addCleanup(terminal.close)
        return terminal

    def test_a_sign_shows_that_it_waits_and_goes_with_the_first_token(self):
        more = threading.Event()
        self.serve(lambda peer: (more.wait(5), peer.send(stream_reply(HELLO))))
        terminal = self.terminal('hi')
        terminal.expect('...')
        more.set()
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(terminal.screen, '...\r   \rHello world\r\n')

    def test_reasoning_is_dimmed(self):
        self.serve(stream_reply(sse(delta(reasoning_content='I think'), delta('Hello'), delta(finish_reason='stop'))))
        dimmed, plain = self.terminal('hi', TERM='xterm'), self.terminal('hi', TERM='xterm', NO_COLOR='1')
        for terminal, screen in ((dimmed, '\x1b[2mI think\x1b[0m\r\nHello\r\n'), (plain, 'I think\r\nHello\r\n')):
            self.assertEqual(terminal.wait(), 0)
            self.assertEqual(terminal.screen, '...\r   \r' + screen)

    def test_nothing_that_the_model_says_acts_on_the_terminal(self):
        evil = ('\x1b[2Jred\x1b[31m', '\x1b]0;title\x07', '\x1b]52;c;aGk=\x07', '\x9b31m\x90q\x9c',
                '\x08\x7f\r\x00\x0b\x0c', 'a\tb')
        chunks = [delta(reasoning_content=evil[0])] + list(map(delta, evil)) + [delta(finish_reason='stop')]
        self.serve(stream_reply(sse(*chunks)))
        terminal = self.terminal('hi', NO_COLOR='1')
        self.assertEqual(terminal.wait(), 0)
        shown = terminal.screen.replace('...\r   \r', '', 1).replace('\r\n', '\n')
        self.assertEqual(shown, '[2Jred[31m\n[2Jred[31m]0;title]52;c;aGk=31mqa\tb\n')

    def test_an_interrupt_keeps_what_came_on_the_screen(self):
        gone = threading.Event()
        self.serve(lambda peer: (peer.send(WAITING), peer.wait_closed() and gone.set()))
        terminal = self.terminal('hi')
        terminal.expect('Hello ')
        terminal.interrupt()
        self.assertEqual(terminal.wait(), 130)
        self.assertTrue(gone.wait(1))
        self.assertEqual(terminal.screen.replace('^C', ''), '...\r   \rHello \r\n')

    def test_without_a_prompt_it_does_not_wait_but_says_how_it_is_used(self):
        terminal = self.terminal()
        terminal.expect('usage:')
        self.assertEqual(terminal.wait(), 2)

    def test_a_conversation(self):
        stopped = threading.Event()

        def slow(peer):
            peer.send(WAITING)
            if peer.wait_closed():
                stopped.set()

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
        self.assertTrue(stopped.wait(1))
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
            ('user', 'one'), ('assistant', 'Hello world'), ('user', 'two\nlines'), ('assistant', 'Hello world'),
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


# ---- programs written for the SDK, the import line changed ---------------------------------------

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
            return ''.join(chunk.choices[0].delta.content or '' for chunk in stream if chunk.choices)
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


def asyncio_run(coroutine):
    """asyncio.run, which Python 3.6 has not."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class ProgramTestCase(TestCase):
    """With the demo server as what the environment names."""

    def setUp(self):
        super().setUp()
        self.server = streamlite.DemoServer(delay=0)
        self.addCleanup(self.server.close)
        self.addCleanup(gc.collect)  # the programs close no client
        os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=self.server.base_url)
        if not hasattr(asyncio, 'run'):
            self.addCleanup(delattr, asyncio, 'run')
            asyncio.run = asyncio_run

    def run_program(self, source, names):
        """What it prints."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, 'program', 'exec'), names)
        SAID.append(output.getvalue())
        return output.getvalue()


class SDKProgramTest(ProgramTestCase):

    def test_programs_written_for_the_sdk_run(self):
        messages = [{'role': 'user', 'content': 'Hello'}]
        with streamlite.OpenAI() as client:
            answer = text_of(ask(client, messages=messages, stream=False))
        wanted = {'print every delta': answer, 'keep them, where usage may come': answer + '\n',
                  'without blocking': answer + '\n', 'put tool calls together by hand': 'get_weather Hello\n',
                  'say what went wrong': 'lost\n',
                  'try again': 'lost\nrefused: The demo model fails here.\n' + answer + '\n'}
        for name, source in PROGRAMS.items():
            with self.subTest(name):
                source = source.replace('from openai', 'from ' + streamlite.__name__)
                self.assertEqual(self.run_program(source, {'messages': messages, 'tools': [WEATHER]}), wanted[name])


class SDKCompatibilityTest(TestCase):
    """What programs do with the SDK's objects beside asking."""

    def test_what_is_assigned_to_a_client_counts_for_copies_too(self):
        with Server(stream_reply(HELLO)) as server, client(server, base_url='http://nobody.invalid') as asker:
            asker.api_key, asker.base_url, asker.max_retries = 'sk-new', server.url + '/?v=1', 7
            for other in asker, asker.with_options(timeout=3), asker.copy():
                self.assertText(ask(other), 'Hello world')
                self.assertEqual(other.max_retries, 7)
            self.assertEqual([(request.path, request.headers['authorization']) for request in server.requests],
                             [('/v1/chat/completions?v=1', 'Bearer sk-new')] * 3)
            with self.assertRaises(streamlite.OpenAIError):
                asker.base_url = 'ftp://nobody.invalid'

    def test_what_is_patched_stays_patched_and_can_be_restored(self):
        with Server(stream_reply(HELLO)) as server, client(server) as asker:
            for patch in (lambda: mock.patch.object(asker.chat.completions, 'create', return_value='patched'),
                          lambda: mock.patch.object(asker.chat, 'completions', **{'create.return_value': 'patched'}),
                          lambda: mock.patch.object(asker, 'chat', **{'completions.create.return_value': 'patched'})):
                with patch():
                    self.assertEqual(ask(asker), 'patched')
                self.assertText(ask(asker), 'Hello world')
            asker.chat.completions.create = lambda **fields: fields['model']  # as tracing tools wrap it
            self.assertEqual(ask(asker), 'm')
            self.assertEqual(len(server.requests), 3)

    def test_the_request_id_is_in_the_completion(self):
        named = {'x-request-id': 'req_7'}
        whole = {'choices': [{'index': 0, 'message': {'role': 'assistant', 'content': 'Hi'}, 'finish_reason': 'stop'}]}
        with Server(reply(200, named, whole), stream_reply(HELLO, headers=named)) as server, client(server) as asker:
            for completion in ask(asker, stream=False), ask(asker).collect():
                self.assertEqual(completion._request_id, 'req_7')
                self.assertNotIn('_request_id', completion.to_dict())

    def test_errors_are_made_as_tests_make_them(self):
        class Answer:
            status_code, headers = 429, {'x-request-id': 'req_7'}

        for error in (streamlite.APIResponseValidationError(Answer(), {'a': 1}),
                      streamlite.RateLimitError('m', response=Answer(), body={'a': 1})):
            self.assertEqual((error.status_code, error.request_id, error.body), (429, 'req_7', {'a': 1}))

    def test_arguments_of_the_sdk_are_understood(self):
        class Message:
            def model_dump(self, **options):
                return {'role': 'user', 'content': 'hi'}

        self.assertTrue(issubclass(streamlite.AsyncClient, streamlite.AsyncOpenAI))
        with Server(stream_reply(HELLO)) as server:
            with streamlite.Client(api_key=KEY, base_url=server.url, max_retries=float('inf')) as asker:
                self.assertText(ask(asker, messages=[Message()], seed=streamlite.omit, user=streamlite.NOT_GIVEN),
                                'Hello world')
            self.assertEqual(server.requests[0].json,
                             {'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}], 'stream': True})

    def test_what_is_missing_names_what_is_there(self):
        with client(None, base_url='http://nobody.invalid') as asker:
            for place, name in (asker, 'embeddings'), (asker.models, 'retrieve'), (asker.chat, 'sessions'):
                with self.assertRaises(AttributeError) as caught:
                    getattr(place, name)
                self.assertSays(caught.exception, name, 'chat completions')


# ---- the README ----------------------------------------------------------------------------------

def read_file(path):
    if not os.path.exists(path):
        return ''
    with io.open(path, encoding='utf-8') as file:
        return file.read()


README = read_file(os.path.join(FOLDER, 'README.md'))
if not README.startswith('# streamlite\n'):
    README = ''  # of the project that holds a copy
Block = collections.namedtuple('Block', 'language text line')
BLOCKS = [Block(match.group(1), match.group(2), README[:match.start()].count('\n') + 2)
          for match in re.finditer(r'^```(\w+)\n(.*?)^```$', README, re.M | re.S)]
FILES = {block.text.split('\n')[0][2:]: block.text for block in BLOCKS if re.match(r'# \w+\.py\n', block.text)}


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
                            pattern = '.*'.join(map(re.escape, following.text.split('...')))  # ... stands for anything
                            told = re.match(pattern + r'\Z', output, re.S)
                            self.assertTrue(told, '%r\nis not\n%r' % (output, following.text))
        finally:
            logging.root.handlers[:] = handlers
            logging.getLogger('streamlite').setLevel(level)
            logging.getLogger('streamlite').propagate = False
            names.clear()

    def test_it_shows_the_help_as_it_is(self):
        shown, = [block.text for block in BLOCKS if block.text.startswith('usage:')]
        self.assertEqual(shown, run_main('--help').out)

    def test_its_links_lead_somewhere(self):
        headings = re.findall('^#+ (.*)', README, re.M)
        anchors = {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}
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
        with io.open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
            file.write(FILES[name])
        process = subprocess.Popen([sys.executable, name, '0'] + list(arguments), cwd=folder, universal_newlines=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=dict(os.environ, PYTHONPATH=FOLDER, **environment))

        def stop():
            process.terminate()
            output, errors = process.communicate()
            SAID.append(output + errors)
            self.assertNotIn('Traceback', errors)

        self.addCleanup(stop)
        return process.stdout.readline().strip()

    def watched(self, *scripts):
        """A server, and an Event: the client of its last script has gone."""
        gone = threading.Event()
        server = Server(*scripts + (lambda peer: (peer.send(WAITING), peer.wait_closed() and gone.set()),))
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server, gone

    def test_the_standard_library_relay_shows_tokens_as_they_come(self):
        text = 'two\nlines \u2028 "</script>" \U0001f600'
        stream = sse(delta(text), delta(finish_reason='stop'))
        server, gone = self.watched(stream_reply(stream), error_reply(401, message='wrong key ' + KEY), cut(WAITING))
        address = self.start('relay.py', OPENAI_BASE_URL=server.url)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def events(prompt='hi'):
            with direct.open(address + 'stream?prompt=' + prompt, timeout=10) as response:
                self.assertEqual(response.headers['content-type'], 'text/event-stream')
                return streamlite.SSEDecoder().feed(response.read())

        with direct.open(address, timeout=10) as response:
            page = response.read().decode()
        self.assertIn('new EventSource', page)
        self.assertLessEqual(len(page.splitlines()), 30)
        first, _, done = events('a%20b%26c')
        self.assertEqual(json.loads(first.data)['choices'][0]['delta']['content'], text)
        self.assertEqual(done.data, '[DONE]')
        self.assertEqual(server.requests[0].json['messages'], [{'role': 'user', 'content': 'a b&c'}])
        refused, = events()
        self.assertEqual(refused.event, 'error')
        self.assertIn('AuthenticationError', json.loads(refused.data)['error']['message'])
        *_, broken = events()
        self.assertEqual(broken.event, 'error')
        response = direct.open(address + 'stream?prompt=hi', timeout=10)
        self.assertIn(b'Hel', response.readline())  # while the model is still at it
        response.close()
        self.assertTrue(gone.wait(1), 'and it is told when the browser goes away, though it is silent')

    def test_the_recording_relay_keeps_every_stream_however_it_ends(self):
        try:
            import sqlite3
        except ImportError:
            self.skipTest('this Python has no sqlite3')
        usage = dict(delta(), choices=[], usage={'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12})
        whole = stream_reply(sse(delta('Hello'), delta(finish_reason='stop'), usage))
        server, gone = self.watched(whole, error_reply(401), cut(WAITING))
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
            self.assertTrue(gone.wait(1))
        rows, end = [], time.monotonic() + 5
        while len(rows) < 4 and time.monotonic() < end:
            with contextlib.closing(sqlite3.connect(database)) as connection:
                rows = connection.execute('SELECT * FROM streams ORDER BY model').fetchall()
        self.assertEqual([row[1:6] for row in rows], [
            ('four', 'the client left', 'Hello ', None, None), ('one', 'whole', 'Hello', 5, 7),
            ('three', 'APIConnectionError', 'Hello ', None, None), ('two', 'AuthenticationError', None, None, None)])
        first, last = rows[1][6:]
        self.assertTrue(0 < first <= last < 10)

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

            scope = {'type': 'http', 'asgi': {'version': '3.0', 'spec_version': '2.3'}, 'http_version': '1.1',
                     'method': 'GET', 'scheme': 'http', 'path': '/stream', 'raw_path': b'/stream', 'root_path': '',
                     'query_string': query, 'headers': [], 'client': ('127.0.0.1', 1), 'server': ('127.0.0.1', 2)}
            await asyncio.wait_for(names['app'](scope, receive, send), 10)
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


class ApproverTest(TestCase):
    """What is told to whoever must approve the file is what the file does."""

    source = read_file(SCRIPT)
    by_urllib = {'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'REQUEST_METHOD'}

    def test_the_environment_variables_that_it_reads_are_the_ones_that_it_names(self):
        table = self.source.partition('    environment ')[2].partition('    files ')[0]
        named = set(re.findall(r'\b[A-Z][A-Z_]{3,}\b', table))
        read = set()
        uses = r'environ\.get\(([^(),]+)|environ\[([^\]]+)\]|getenv\(([^(),]+)|(\S+) (?:not )?in os\.environ\b'
        for subject in map(''.join, re.findall(uses, self.source)):
            if subject == 'name':  # each of a tuple
                read.update(re.findall(r'"(\w+)"', re.search(r'\("SSL_CERT_FILE",[^)]*\)', self.source).group()))
            elif subject != 'args.key_env':  # what --key-env names
                read.add(ast.literal_eval(subject))
        self.assertEqual(len(re.findall(r'\benviron\b|getenv', self.source)), len(re.findall(uses, self.source)),
                         'a use that this test does not know')
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
        self.assertLessEqual(modules, set(getattr(sys, 'stdlib_module_names', modules)))
        self.assertEqual(modules & {'ctypes', 'hashlib', 'marshal', 'multiprocessing', 'pickle', 'subprocess'}, set())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.assertEqual(names & {'eval', 'exec', 'compile', '__import__', 'open'}, set())


if __name__ == '__main__':
    unittest.main()
