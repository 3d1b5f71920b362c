"""A headless Chromium with one page, and in it one LiteRT.js instance that several files share.

Nothing is listened on and nothing leaves the machine: every request of the page is answered from memory or refused. The
answers carry the headers that isolate the page from other origins, because only then does its clock tick every 5 us
instead of 100, and only then may WebAssembly use threads (https://web.dev/articles/coop-coep).
"""

import asyncio
import contextlib
import os
import pathlib
import shutil
import threading
import urllib.parse
from collections.abc import Coroutine, Sequence
from importlib import resources
from typing import Any, TypeVar

from reflow_tf.errors import Breakdown, InputError
from reflow_tf.foreign import say_why
from reflow_tf.runtimes.web.litertjs import SETUP, installed_folder, pinned_version

Result = TypeVar("Result")

ORIGIN = "https://reflow.invalid"  # a name that no server ever has (RFC 2606)
PROGRAM = "chromium"

_HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
# Not those of the machine's /etc/mime.types: Chromium compiles nothing that is called otherwise.
_TYPES = {".js": "text/javascript", ".wasm": "application/wasm"}
_START_SECONDS = 60
_STOP_SECONDS = 10


class PageError(Exception):
    """LiteRT.js failed; the message is its own."""


class Browser:
    """Chromium, running until `close`. Playwright lives in a thread of its own, so that Ctrl-C finds it in order.

    Args:
        threads: of LiteRT.js. One is its usual build; more need the threaded build, which has as many as CPU cores.

    Attributes:
        name: what runs the files, with versions and threads.
        threads: as asked for.

    Raises:
        InputError: Chromium, Playwright or LiteRT.js are missing, or there are not so many CPU cores.
    """

    def __init__(self, threads: int = 1):
        self.threads = threads
        executable = require_parts()
        self._folder = installed_folder()
        self._files: dict[int, bytes] = {}
        self._num_files = 0
        self._playwright: Any = None
        self._chromium: Any = None
        self._page: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reflow_tf browser", daemon=True)
        self._thread.start()
        try:
            self.name = self._wait(self._open(executable))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends Chromium; does nothing the second time."""
        if self._loop.is_closed():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)
            if not self._thread.is_alive():
                self._loop.close()

    @property
    def num_loaded(self) -> int:
        """How many files share the LiteRT.js instance."""
        return len(self._files)

    def load(self, content: bytes) -> tuple[int, dict[str, Any]]:
        """Loads a file; returns its number, the first argument of run, measure, ..., and its inputs and outputs.

        Raises:
            PageError: LiteRT.js cannot.
            InputError: Chromium is gone.
        """
        self._num_files += 1
        number = self._num_files
        self._files[number] = content
        try:
            return number, self.call("load", number, self.threads)
        except BaseException:
            self.unload(number)
            raise

    def unload(self, number: int) -> None:
        """Frees what a file takes, if there is a Chromium yet that holds it."""
        self._files.pop(number, None)
        if self._page is not None:
            with contextlib.suppress(PageError, InputError):
                self.call("unload", number)

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls a function of page.js and returns what it returns.

        Raises:
            PageError: LiteRT.js failed.
            InputError: Chromium is gone.
        """
        if self._page is None:
            raise ValueError("the browser is closed")
        return self._wait(self._evaluate(self._page, function, arguments))

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self, executable: str) -> str:
        from playwright.async_api import Error, async_playwright

        self._playwright = await async_playwright().start()
        try:
            self._chromium = await self._playwright.chromium.launch(
                executable_path=executable,
                chromium_sandbox=os.geteuid() != 0,  # Chromium refuses to start with a sandbox as root
                timeout=_START_SECONDS * 1000,
                handle_sigint=False,  # Ctrl-C is Python's business; `close` follows
                handle_sigterm=False,
                handle_sighup=False,
            )
            self._page = await self._chromium.new_page()
            await self._page.route("**/*", self._answer)
            await self._page.goto(ORIGIN)
            await self._page.wait_for_function("window.reflow")
            started = await self._evaluate(self._page, "start", [self.threads])
        except (Error, PageError) as error:
            raise InputError(
                f"--runtime=web needs a Chromium that starts, and in it LiteRT.js. Received: {executable}; "
                f"{say_why(error)}"
            ) from error
        if started["mostThreads"] < self.threads:
            raise InputError(
                f"--threads must be at most the number of CPU cores, {started['mostThreads']}. Received: {self.threads}"
            )
        return self._name(started["build"], self._chromium.version)

    def _name(self, build: str, version: str) -> str:
        # The names of the builds are those of LiteRT.js's src/load.ts: `compat` is for browsers without relaxed SIMD.
        simd = "SIMD" if "compat" in build else "relaxed SIMD"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"LiteRT.js {pinned_version()} (wasm, {simd}, {threads}) in Chromium {version}"

    async def _evaluate(self, page: Any, function: str, arguments: Sequence[Any]) -> Any:
        from playwright.async_api import Error

        try:
            script = f"arguments => window.reflow.{function}(...arguments)"
            result = await page.evaluate(script, list(arguments))
        except Error as error:
            raise Breakdown(
                f"Chromium must live until everything was run in it; memory may have run out. "
                f"Received: {say_why(error)}"
            ) from error
        if "failure" in result:
            raise PageError(result["failure"])
        return result.get("value")

    async def _shut(self) -> None:
        self._page = None
        for target, end in ((self._chromium, "close"), (self._playwright, "stop")):
            if target is not None:
                # Whoever is gone already cannot be ended; Chromium ends itself when Playwright's pipe to it is cut.
                await asyncio.wait([asyncio.ensure_future(getattr(target, end)())], timeout=_STOP_SECONDS)

    async def _answer(self, route: Any) -> None:
        path = urllib.parse.urlsplit(route.request.url).path
        content = self._read(path) if route.request.url.startswith(ORIGIN + "/") else None
        if content is None:
            await route.abort()
        else:
            kind = _TYPES.get(pathlib.PurePosixPath(path).suffix, "application/octet-stream")
            await route.fulfill(body=content, content_type="text/html" if path == "/" else kind, headers=_HEADERS)

    def _read(self, path: str) -> bytes | None:
        if path in ("/", "/page.js"):
            name = "page.html" if path == "/" else "page.js"
            return resources.files("reflow_tf.runtimes.web").joinpath(name).read_bytes()
        if path.startswith("/files/"):
            return self._files.get(int(path.removeprefix("/files/")))
        file = self._folder.joinpath(*pathlib.PurePosixPath(path).parts[1:])
        return file.read_bytes() if path.startswith("/node_modules/") and file.is_file() else None


def require_parts() -> str:
    """Returns the path of Chromium.

    Raises:
        InputError: Chromium or Playwright is missing; the message says what to install.
    """
    try:
        import playwright.async_api  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--runtime=web needs Playwright: pip install playwright, then {SETUP}. Received: {say_why(error)}"
        ) from error
    executable = shutil.which(PROGRAM)
    if executable is None:
        raise InputError(
            f"--runtime=web needs Chromium; on Debian: apt-get install -y --no-install-recommends chromium. "
            f"Received: no {PROGRAM} on the PATH"
        )
    return executable
