"""Serve a small character-level model over HTTP, and ask it for a few seconds what comes next.

The model learns nothing here: it counts which character follows which in the Python language reference (the text behind
`help("if")`), so the answers make sense and nothing is downloaded or trained. Ask it yourself, or let it ask itself:

    python examples/torch_serve.py --requests 300
    python examples/torch_serve.py --forever --port 8000
    curl -d 'The for statemen' http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import json
import threading
import urllib.error
import urllib.request
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

TEXT = "\n".join(topics.values())


class NextCharacter(nn.Module):
    """Scores what follows a character, by how often it did."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.characters = sorted(set(text))
        self.code_of = {character: code for code, character in enumerate(self.characters)}
        codes = torch.tensor([self.code_of[character] for character in text])
        size = len(self.characters)
        seen = torch.zeros(size * size).index_add(0, codes[:-1] * size + codes[1:], torch.ones(len(codes) - 1))
        self.scores = nn.Parameter((seen.view(size, size) + 0.01).log(), requires_grad=False)

    def forward(self, codes: Tensor) -> Tensor:
        if codes.numel() == 0:
            message = "there is no character to go on from"
            raise ValueError(message)
        return self.scores[codes[:, -1]]


class Service:
    """Turns text into the characters that are likely to follow."""

    def __init__(self, model: NextCharacter) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def continued(self, prompts: list[str], length: int = 8) -> list[str]:
        texts = list(prompts)
        for _ in range(length):
            codes = torch.tensor([[self.model.code_of.get(c, 0) for c in text[-1:]] for text in texts])
            chosen = self.model(codes).softmax(-1).multinomial(1)[:, 0]
            texts = [text + self.model.characters[int(code)] for text, code in zip(texts, chosen, strict=True)]
        return texts


def handler_of(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            try:
                answer = "\n".join(service.continued(body.split("\n"))).encode()
                self.send_response(HTTPStatus.OK)
            except ValueError as error:
                answer = json.dumps({"error": str(error)}).encode()
                self.send_response(HTTPStatus.BAD_REQUEST)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing a request."""

    return Handler


def ask(address: str, prompts: list[str]) -> str | None:
    """The service's answer, or None where it refuses."""
    try:
        with urllib.request.urlopen(address, "\n".join(prompts).encode(), timeout=30) as answer:  # noqa: S310 - our own
            return str(answer.read().decode())
    except urllib.error.HTTPError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="where to listen (default: any free port)")
    parser.add_argument("--forever", action="store_true", help="serve until interrupted, and ask nothing")
    parser.add_argument("--requests", type=int, default=300, help="how many to ask (default: %(default)s)")
    parser.add_argument("--empty", type=int, default=0, metavar="N", help="have every Nth request hold no text")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), handler_of(Service(NextCharacter(TEXT))))
    address = f"http://127.0.0.1:{server.server_port}"
    print(f"serving on {address}")
    if arguments.forever:
        server.serve_forever()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    refused = 0
    for number in range(arguments.requests):
        start = number * 97 % (len(TEXT) - 64)
        prompts = [" ".join(TEXT[start : start + 48].split())] * (1 + number % 4)
        empty = arguments.empty > 0 and number % arguments.empty == arguments.empty - 1
        answer = ask(address, [""] if empty else prompts)
        refused += answer is None
        if number % 100 == 0:
            print(f"request {number}: {answer!r}")
    print(f"{arguments.requests} requests, {refused} refused")
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
