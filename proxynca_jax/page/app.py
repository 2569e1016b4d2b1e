"""The page and its API as an ASGI application."""

import asyncio
import collections
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from jaxtyping import Float32
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp

from proxynca_jax.machine.output import printable
from proxynca_jax.page.answers import About, Answer, Fault, Found, Label
from proxynca_jax.page.guard import Guard
from proxynca_jax.page.pictures import Pictures
from proxynca_jax.page.queue import Queue
from proxynca_jax.page.upload import MAX_BYTES, decode, receive
from proxynca_jax.vector_index.engine import columns, text
from proxynca_jax.vector_index.index import Index
from proxynca_jax.version import __version__

STATIC = Path(__file__).parent / "static"
PLACES = 32  # requests that hold a photograph of at most `upload.MAX_BYTES`, or wait for the device
MAX_K = 200
FAULTS: dict[int | str, dict[str, Any]] = {code: {"model": Fault} for code in (400, 404, 408, 413, 415, 422, 503)}
IMAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}, 404: {"model": Fault}}
# A picture is named by its content, so a browser may keep it as long as it likes.
FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}

Id = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="of an image, as a search returns it")]
K = Annotated[int, Query(ge=1, le=MAX_K, description="how many to find at most")]
LabelOf = Annotated[str | None, Query(max_length=1000, description="find only images of this label")]
MinScore = Annotated[float, Query(ge=-1, le=1, allow_inf_nan=False, description="find only images of this score")]


def make_app(index: Index, names: Collection[str] | None) -> ASGIApp:
    """Makes the application.

    Args:
        index: what is searched.
        names: of the server in Host headers, as for `Guard`.
    """
    app = FastAPI(title="proxynca serve", version=__version__, docs_url=None, redoc_url=None, responses=FAULTS)
    _say_faults(app)
    queue, pictures, engine = Queue(PLACES), Pictures(index.engine), index.engine
    embedder = index.embedder.with_batch_size(1)

    def find(
        vector: Float32[np.ndarray, "1 dim"], k: int, label: str | None, min_score: float, but: str = ""
    ) -> Answer:
        conditions = [f"label = {text(label)}"] if label is not None else []
        conditions += [f"digest != {text(but)}"] if but else []
        [matches] = engine.search(vector, k, " AND ".join(conditions) or None)
        matches = [match for match in matches if match.score >= min_score]
        some = ", ".join(text(match.path) for match in matches)
        digests = dict(columns(engine, ("path", "digest"), f"path IN ({some})")) if matches else {}
        # A row that was removed between the two reads is left out.
        found = [Found(id=digests[match.path], **match._asdict()) for match in matches if match.path in digests]
        return Answer(matches=found)

    @app.post("/api/search", openapi_extra=_photograph_body())
    async def search(request: Request, k: K = 10, label: LabelOf = None, min_score: MinScore = -1.0) -> Answer:
        """Finds the images that are most similar to a photograph, the body of the request."""
        async with queue.place():
            content = await receive(request)
            async with queue.turn():
                vector = await asyncio.to_thread(lambda: embedder.embed([decode(content)]))
        return await asyncio.to_thread(find, vector, k, label, min_score)

    @app.get("/api/similar/{id}")
    def similar(id: Id, k: K = 10, label: LabelOf = None, min_score: MinScore = -1.0) -> Answer:
        """Finds the images that are most similar to an image of the index. Its own content is left out."""
        vector = next(columns(engine, ("vector",), f"digest = {text(id)}"), None)
        if vector is None:
            raise HTTPException(404, "The index has no such image.")
        return find(np.array(vector, np.float32), k, label, min_score, but=id)

    @app.get("/api/labels")
    def labels() -> list[Label]:
        """Lists the labels and how many images each has."""
        counts = collections.Counter(label for (label,) in columns(engine, ("label",)))
        return [Label(label=label, images=images) for label, images in sorted(counts.items()) if label]

    @app.get("/api/about")
    def about() -> About:
        """Describes the index."""
        points = index.about.get("operating_points") or []
        model = Path(index.about.get("model", "")).name
        return About(images=len(index), model=model, operating_points=points, max_bytes=MAX_BYTES)

    @app.get("/thumbnail/{id}", response_class=Response, responses=IMAGE)
    def thumbnail(id: Id) -> Response:
        """Returns an image of the index, made small."""
        return _jpeg(pictures.thumbnail(id))

    @app.get("/image/{id}", response_class=Response, responses=IMAGE)
    def image(id: Id) -> Response:
        """Returns an image of the index, large enough for a screen."""
        return _jpeg(pictures.large(id))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    return Guard(app, names)


def _photograph_body() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": {"image/*": binary, "application/octet-stream": binary}}}


def _jpeg(picture: bytes | None) -> Response:
    if picture is None:
        raise HTTPException(404, "The index has no such image, or its file is gone or changed.")
    return Response(picture, media_type="image/jpeg", headers=FOREVER)


def _say_faults(app: FastAPI) -> None:
    """Makes every error an object with one sentence."""

    @app.exception_handler(AnyHTTPException)
    def _refused(_: Request, error: AnyHTTPException) -> JSONResponse:
        what = "There is no such page." if error.detail == "Not Found" else error.detail
        return JSONResponse({"error": what}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def _wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()]
        return JSONResponse({"error": printable("; ".join(faults))}, 422)

    @app.exception_handler(Exception)
    def _failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "The server could not do this; its terminal says why."}, 500)
