"""A checkpoint behind an OpenAI-compatible address: `bulwark serve` until it is told to end, or beside a job's work."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn

from bulwark.errors import BulwarkError
from bulwark.models.assistant import load
from bulwark.models.manifests import manifest_path
from bulwark.models.open import LanguageModel
from bulwark.models.placing.loading import Loading
from bulwark.serving.app import Service
from bulwark.serving.engine import Engine

NEW_TOKENS = 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECONDS_TO_END = 3  # that open connections have once the server is told to end


def serve(
    checkpoint: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    loading: Loading | None = None,
    name: str | None = None,
    new_tokens: int = NEW_TOKENS,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a checkpoint until Ctrl-C or SIGTERM.

    checkpoint, device, dtype, template, loading: as of `bulwark.load`. port: 0 takes a free one. name: under which
    clients ask for the model; None is `name_of`. new_tokens: the longest answer where a request names no limit. say:
    gets the lines that tell the address. Raises CheckpointError if the folder is not a whole checkpoint, BulwarkError
    if the address is taken.
    """
    with closing(listening(host, port)) as socket_:
        held = {"device": device, "dtype": dtype, "template": template, "loading": loading}
        language_model = load(checkpoint, **held).language_model
        name = name or name_of(checkpoint, language_model)
        engine = Engine(language_model).start()
        try:
            app = Service(engine, name, new_tokens).app()
            at = f"[{host}]:{socket_.getsockname()[1]}" if ":" in host else f"{host}:{socket_.getsockname()[1]}"
            say(f"{name} is served at http://{at}/v1 on {language_model.device} (Ctrl-C ends it)")
            if host not in LOOPBACK:
                say("Whoever reaches this address can use it: there is no key.")
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)
            uvicorn.Server(config).run(sockets=[socket_])
        finally:
            engine.close()


@contextmanager
def in_background(language_model: LanguageModel, name: str, new_tokens: int, most_rows: int = 64) -> Iterator[str]:
    """Within it a model is served to this process, on a free port of this machine. Yields the address, …/v1.

    name: under which clients ask for it. new_tokens: the longest answer where a request names no limit. most_rows:
    requests that are answered together at most.
    """
    with closing(listening(LOOPBACK[0], 0)) as socket_:
        engine = Engine(language_model, most_rows).start()
        app = Service(engine, name, new_tokens).app()
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]}, name="server", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise BulwarkError("The server did not start; the log says why.")
                time.sleep(0.01)
            yield f"http://{LOOPBACK[0]}:{socket_.getsockname()[1]}/v1"
        finally:
            engine.close()  # first: what is being asked gets its refusal while the server still sends
            server.should_exit = True
            thread.join()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises BulwarkError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise BulwarkError(
            f"{host}, port {port}, cannot be listened at: {error}. Take another --port or --host."
        ) from None


def name_of(checkpoint: str, language_model: LanguageModel) -> str:
    """model/recipe/seed<n> of a checkpoint of the workflow, else the name of its folder."""
    if language_model.manifest is not None:
        held = json.loads(language_model.manifest.read_text(encoding="utf-8"))
        if {"model", "recipe", "seed"} <= held.keys():
            return f"{held['model']}/{held['recipe']}/seed{held['seed']}"
    return manifest_path(checkpoint).parent.resolve().name or Path(checkpoint).name
