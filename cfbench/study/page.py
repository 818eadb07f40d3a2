"""The rater's page: Gradio Blocks for its parts and looks, our own script for what it does.

The Blocks have no event handler, so that there is no queue, no upload and no callable endpoint
behind them; all that changes goes through the study's own routes.
"""

import hashlib
import html
from importlib import resources
from typing import TYPE_CHECKING

from cfbench.study.routes import STATIC, static_text
from cfbench.study.tables import Design

if TYPE_CHECKING:
    from fastapi import FastAPI
    from gradio import Blocks


def client_hash() -> str:
    """What identifies the page's script and style; stored with each vote."""
    text = "".join(static_text(name) for name in sorted(STATIC))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def blocks(design: Design) -> "Blocks":
    """The page of a design."""
    import gradio as gr

    with gr.Blocks(title=design.title, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(part("study-consent", title=design.title, consent=design.consent))
        gr.HTML(part("study-pair"))
        gr.HTML(part("study-end"))
    return page


def mount(app: "FastAPI", design: Design) -> None:
    """Put the page at an application's root, all that Gradio adds to it switched off."""
    import gradio as gr

    client = client_hash()
    head = (
        f'<meta name="study-client" content="{client}">'
        f'<link rel="stylesheet" href="/study/study.css?{client}">'
        f'<script defer src="/study/study.js?{client}"></script>'
    )
    gr.mount_gradio_app(
        app, blocks(design), path="/", footer_links=[], run_history=False, show_error=False,
        enable_monitoring=False, mcp_server=False, ssr_mode=False, pwa=False, head=head,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )  # fmt: skip


def part(name: str, **texts: str) -> str:
    """A part of the page, texts escaped and in their places."""
    content = (resources.files("cfbench") / "static" / f"{name}.html").read_text(encoding="utf-8")
    for key, text in texts.items():
        content = content.replace("{{" + key + "}}", html.escape(text))
    return content
