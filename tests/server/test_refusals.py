"""Invalid HTTP requests, with gunicorn's errors as they are."""

import json
import logging
import socket

import pytest
from gunicorn.http import errors

from llama_api.faults import UNREADABLE
from llama_api.server.bad_requests import refuse_error


@pytest.mark.parametrize("error, status, slug", [
    (errors.LimitRequestLine(9, 8), 414, UNREADABLE[1]), (errors.InvalidHeader("secret"), 400, UNREADABLE[1]),
    (errors.LimitRequestHeaders("secret"), 431, UNREADABLE[1]),
    (errors.ExpectationFailed("secret"), 417, UNREADABLE[1]),
    (errors.ForbiddenProxyRequest("secret"), 403, UNREADABLE[1]),
    (errors.UnsupportedTransferCoding("secret"), 501, UNREADABLE[1]), (KeyError("a fault"), 500, "internal-error")])
def test_an_error_is_a_problem_and_a_line_of_the_log(caplog, error, status, slug):
    """Both have the id; only our own faults have a traceback, as the data may contain a prompt."""
    ours, client = socket.socketpair()
    caplog.set_level(logging.INFO, "llama_api.server.bad_requests")
    with ours, client:
        client.shutdown(socket.SHUT_WR)
        refuse_error(ours, error)
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    problem, (record,) = json.loads(body), caplog.records
    assert head.startswith(b"HTTP/1.1 %d " % status) and f"Content-Length: {len(body)}".encode() in head
    assert (problem["status"], problem["type"]) == (status, f"/problems/{slug}") and problem["detail"]
    assert f"X-Request-ID: {problem['request_id']}".encode() in head
    assert (record.fields["request_id"], record.fields["error"]) == (problem["request_id"], slug)
    assert (record.levelname == "ERROR") == (status >= 500) and (record.exc_info is not None) == (status == 500)
    assert "secret" not in record.getMessage() + body.decode()
