"""HTTP/1.1 without I/O: the bytes of one response in, the fields of a Response filled in. No sockets, no clock.

llhttp (httptools) does the parsing. A response ends as its framing says, or fails: no part is ever taken for the whole.
Whatever is not a body is bounded. Keeps invariant 12 for its part.
"""

from typing import Final

import httptools

from services.proxy.engine_http.errors import Malformed
from services.proxy.engine_http.response import Response, text_of

HEAD_BYTES_MAX: Final = 64 << 10  # of status line and headers; of trailers, and whatever else is not a body
HEADERS_MAX: Final = 128


class ResponseReader:
    """Reads one response; close() it at its end. The methods named on_* are the parser's."""

    __slots__ = ("_beside", "_is_head", "_is_interim", "_parser", "keeps", "response")

    def __init__(self, response: Response, *, is_head: bool) -> None:
        """Is head: the request was a HEAD, so the answer has no body."""
        self.response = response
        self.keeps = False  # the server keeps the connection for another request
        self._is_head = is_head
        self._is_interim = False  # a 1xx is being read
        self._beside = 0  # bytes since the last ones of a body
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def close(self) -> None:
        self._parser = None  # which refers to the reader

    def feed(self, data: bytes) -> None:
        """What follows; the response fails if that is not HTTP."""
        parser = self._parser
        if parser is None:
            return
        self._beside += len(data)
        try:
            parser.feed_data(data)
            if self._beside > HEAD_BYTES_MAX:
                raise Malformed(f"over {HEAD_BYTES_MAX} bytes that are not a body")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Malformed) as error:
            self.keeps = False
            self.response.fail(Malformed(f"not HTTP: {error.__context__ or error}"))  # what a callback raised, if so

    def on_message_begin(self) -> None:
        if self.response.ended:
            self.keeps = False  # nobody asked for a second one

    def on_status(self, reason: bytes) -> None:
        if not self.response.ended:
            self.response.reason += text_of(reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self.response
        if response.status:  # a trailer
            return
        if len(response.raw_headers) == HEADERS_MAX:
            raise Malformed(f"over {HEADERS_MAX} headers")
        if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise Malformed("a transfer encoding that nobody asked for")
        response.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        response, parser = self.response, self._parser
        if parser is None or response.ended:
            return
        status = parser.get_status_code()
        if status == 101 or status < 100:
            raise Malformed(f"status {status}")
        if status < 200:
            self._is_interim = True
            response.reason = ""
            response.raw_headers.clear()
            return
        response.status = status
        if self._is_head:
            self.keeps = parser.should_keep_alive()
            response.ended = True

    def on_body(self, chunk: bytes) -> None:
        if self.response.ended:  # of a HEAD
            self.keeps = False
            return
        self._beside = 0
        self.response.take(chunk)

    def on_message_complete(self) -> None:
        response, parser = self.response, self._parser
        if parser is None or response.ended:
            return
        if self._is_interim:
            self._is_interim = False
            return
        response.ended = True
        self.keeps = parser.should_keep_alive()
