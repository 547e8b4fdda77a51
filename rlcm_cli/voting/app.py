"""The voting page as an application: its addresses, and who may ask for what.

The page itself is the same for everybody and holds nothing. All else needs the key, which only the address that
`rlcm vote` prints has, in its fragment: browsers send that to no server. A page of another site, which knows no key,
can neither read nor vote; requests under a name that is not this machine's (DNS rebinding) or from another origin are
refused before. No request names a path.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from rlcm_cli.errors import RlcmError
from rlcm_cli.store.votes import Answer
from rlcm_cli.voting.session import Session

API = "/api"
MOST_BYTES = 1000
"""Of a request's body; a vote has 50."""
FILES = {  # a path of a request is only looked up here
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_BEARER = HTTPBearer(auto_error=False)
_log = logging.getLogger("rlcm.voting")
Handler = Callable[[Request], Awaitable[Response]]


class ShownVoter(BaseModel):
    """A voter, as the page lists it."""

    voter: str
    done: int


class Overview(BaseModel):
    """What a session asks."""

    images: int
    pairs: int
    voters: list[ShownVoter]


class ShownPair(BaseModel):
    """A pair: its number for the voter, and the names of its images in this session."""

    number: int
    prompt: str
    left: str
    right: str


class Progress(BaseModel):
    """How far a voter is, and the next pairs."""

    voter: str
    done: int
    total: int
    pairs: list[ShownPair]


class Ballot(BaseModel):
    """What a voter says of a pair."""

    model_config = ConfigDict(extra="forbid", strict=True)

    number: Annotated[int, Field(ge=0)]
    answer: Answer


def build_app(session: Session, key: str, host: str) -> FastAPI:
    """Make the application.

    Args:
        session: The votes.
        key: What a client must send as its bearer token.
        host: Address that the server is bound to.
    """
    app = FastAPI(title="rlcm vote", openapi_url=None, docs_url=None, redoc_url=None)
    guarded = APIRouter(prefix=API, dependencies=[Depends(_KeyCheck(key))])
    _add_votes(guarded, session)
    app.include_router(guarded)
    _add_files(app)
    names = {"localhost", host.lower(), socket.gethostname().lower()}

    @app.middleware("http")
    async def guard(request: Request, answer: Handler) -> Response:
        fault = find_fault(request, names)
        response = await answer(request) if fault is None else JSONResponse({"detail": fault[1]}, fault[0])
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(RlcmError)
    async def explain(request: Request, error: RlcmError) -> JSONResponse:
        # What it says names folders of this machine, which voters elsewhere need not know.
        _log.error("%s", error)
        return JSONResponse({"detail": "the vote could not be stored; the terminal of `rlcm vote` says why"}, 500)

    return app


def find_fault(request: Request, names: set[str]) -> tuple[int, str] | None:
    """Return status and reason where a request is refused unread; `names`: those of this machine, in small letters."""
    headers = request.headers
    named = headers.get("host", "")
    if not _is_own(named, names):
        return 421, "this server is not called so; use the address that `rlcm vote` printed"
    if request.url.path.startswith(API):
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if (origin is not None and urlsplit(origin).netloc != named) or site not in ("same-origin", "none"):
            return 403, "another site's page may not ask this"
    if request.method not in ("GET", "HEAD"):
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "the request does not say how long it is"
        if int(length) > MOST_BYTES:
            return 413, f"the request is larger than {MOST_BYTES} bytes"
    return None


def _is_own(named: str, names: set[str]) -> bool:
    """Return whether a Host header names this machine: by a name of its own, or by any address."""
    try:
        name = urlsplit(f"//{named}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class _KeyCheck:
    """Refuses a request without the key."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def __call__(self, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        given = credentials.credentials if credentials else ""
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise HTTPException(401, "the key is missing or wrong", {"WWW-Authenticate": "Bearer"})


def _add_files(app: FastAPI) -> None:
    """Add the three files of the page."""
    folder = resources.files(__package__) / "page"
    for path, (name, kind) in FILES.items():
        content = (folder / name).read_bytes()

        def show(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        app.add_api_route(path, show, include_in_schema=False, response_class=Response)


def _add_votes(guarded: APIRouter, session: Session) -> None:
    """Add the addresses of voters, pairs, images and votes. Handlers take turns: none waits for anything."""

    @guarded.get("/session")
    async def overview() -> Overview:
        voters = [ShownVoter(voter=name, done=len(own.answered)) for name, own in session.voters.items()]
        return Overview(images=session.images, pairs=session.planned, voters=voters)

    @guarded.post("/voters")
    async def join() -> Progress:
        return show_progress(session, session.join())

    @guarded.get("/voters/{voter}")
    async def resume(voter: str) -> Progress:
        return show_progress(session, voter)

    @guarded.post("/voters/{voter}")
    async def vote(voter: str, ballot: Annotated[Ballot, Body()]) -> Progress:
        try:
            session.answer(voter, ballot.number, ballot.answer)
        except (KeyError, IndexError):
            raise HTTPException(404, "there is no such voter or pair") from None
        return show_progress(session, voter)

    @guarded.get("/images/{name}")
    async def image(name: str) -> Response:
        try:
            return Response(session.encode(name), media_type="image/png")
        except KeyError:
            raise HTTPException(404, "there is no such image") from None


def show_progress(session: Session, voter: str) -> Progress:
    """Return how far a voter is. Raises `HTTPException` for an unknown one."""
    if voter not in session.voters:
        raise HTTPException(404, "there is no such voter")
    own = session.voters[voter]
    pairs = [
        ShownPair(
            number=number,
            prompt=own.pairs[number].prompt,
            left=session.name(own.pairs[number].left),
            right=session.name(own.pairs[number].right),
        )
        for number in own.coming()
    ]
    return Progress(voter=voter, done=len(own.answered), total=len(own.pairs), pairs=pairs)
