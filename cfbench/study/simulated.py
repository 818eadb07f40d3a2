"""Simulated raters: small HTTP clients on connections that stay open."""

import asyncio
import json
from typing import Any

LONGEST_S = 1e5


class Connection:
    """One open connection to the server; use ``connect``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> "Connection":
        """Connect to a server on this machine.

        Raises:
            OSError: it does not answer.
        """
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, name: str, body: dict[str, Any], token: str = "") -> tuple[int, Any]:
        """Status and JSON of a request.

        Raises:
            OSError: the connection broke; whether the server acted is not known.
        """
        content = json.dumps(body).encode()
        head = (
            f"POST /api/{name} HTTP/1.1\r\nhost: study\r\ncontent-type: application/json\r\n"
            f"x-study-token: {token}\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        try:
            answer = await self._reader.readuntil(b"\r\n\r\n")
            lines = answer.decode().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            tree = json.loads(await self._reader.readexactly(int(fields["content-length"])))
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the server went away") from error
        return int(lines[0].split(" ")[1]), tree

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


def vote(item: int, question: str, answer: str, reason: str = "") -> dict[str, Any]:
    """A vote as the page sends it."""
    return {
        "item": item, "question": question, "answer": answer, "reason": reason,
        "watched_left_s": LONGEST_S, "watched_right_s": LONGEST_S, "replays": 0, "hidden_s": 0.0,
        "response_s": 1.0, "client": "simulated",
    }  # fmt: skip
