"""The server of a study: our routes, Gradio's page, one guard before both."""

import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from cfbench.study import page, routes
from cfbench.study.guard import Guard
from cfbench.study.raters import Study

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
BACKLOG = 2048


def make_app(study: Study, *, with_page: bool = True) -> "FastAPI":
    """The application of a study, without the guard.

    Args:
        study: to serve; closed when the application stops.
        with_page: mount Gradio's page at the root too.
    """
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(_: "FastAPI") -> AsyncGenerator[None, None]:
        yield
        study.close()

    app = FastAPI(title="study", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    routes.add(app, study)
    if with_page:
        page.mount(app, study.design)
    return app


def serve(
    folder: Path, host: str, port: int, *, with_page: bool = True, behind_proxy: bool = False
) -> None:
    """Serve a study until it is stopped.

    Args:
        folder: of the study.
        host: address to listen on.
        port: to listen on.
        with_page: serve the raters' page, not the routes alone.
        behind_proxy: take raters' addresses and the scheme from what a proxy on this machine says.

    Raises:
        CfError: design or films have changed, or the votes cannot be written.
    """
    import uvicorn

    app = make_app(Study(folder), with_page=with_page)
    log.info("study at http://%s:%d", host, port)
    uvicorn.run(
        Guard(app), host=host, port=port, log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, backlog=BACKLOG,
        proxy_headers=behind_proxy,
    )  # fmt: skip
