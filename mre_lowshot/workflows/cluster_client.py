"""The connection to a dask scheduler: calls on its workers, which are examined first."""

from __future__ import annotations

import importlib.util
import pkgutil
import queue
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mre_lowshot import __version__
from mre_lowshot.errors import UserError, install_extra
from mre_lowshot.files import not_written, partial_name
from mre_lowshot.workflows.cluster_worker import UNSEEN, examine
from mre_lowshot.workflows.reporting import Reporter

CONNECT_SECONDS = 10.0  # for the scheduler to answer
WORKER_SECONDS = 60.0  # for the first worker to appear: a batch system may start it later than the scheduler
SHARED_SECONDS = 5.0  # for a new file to be seen on other machines
POLL_SECONDS = 1.0


def require_cluster(scheduler: object) -> str:
    """The address or scheduler file as text.

    Raises:
        UserError: it is no text, or the extra is not installed.
    """
    if not isinstance(scheduler, (str, Path)) or not str(scheduler).strip() or "\0" in str(scheduler):
        raise UserError(f"--scheduler {scheduler!r}: give the address of a dask scheduler, as tcp://host:8786")
    if importlib.util.find_spec("distributed") is None:
        raise UserError(f"--scheduler: the package distributed is not installed; {install_extra('cluster')}")
    return str(scheduler).strip()


@contextmanager
def connected(scheduler: str, *, timeout: float | None = None) -> Iterator[Any]:
    """A `distributed.Client` of the scheduler at an address, or of a scheduler file.

    Raises:
        UserError: it does not answer.
    """
    import distributed

    seconds = CONNECT_SECONDS if timeout is None else timeout
    place = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = distributed.Client(**place, timeout=seconds, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as problem:
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(
            f"--scheduler {scheduler}: no dask scheduler answers within {seconds:g} s ({reason[:200]}); start one with "
            "'dask scheduler', and give the address that it prints"
        ) from None
    try:
        yield client
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=CONNECT_SECONDS)


def as_done(
    client: Any,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    resources: Mapping[str, float] | None = None,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Generator[tuple[int, Any], None, None]:
    """Call ``function`` on the workers, once for each of ``arguments``: the number of each call and its future, in the
    order in which they are done. What is left is cancelled where the iteration is ended early.

    Args:
        client: `distributed.Client`.
        function: to call.
        arguments: of each call.
        resources: that a worker must have free for a call.
        waiting: called while nothing is done, with the seconds since something was.
    """
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    run, left, numbers = uuid.uuid4().hex[:8], {}, {}
    try:
        for number, given in enumerate(arguments):
            key = f"mre-{run}-{number}"
            left[key] = client.submit(function, *given, key=key, pure=False, resources=resources)
            numbers[key] = number
            left[key].add_done_callback(arrived.put)
        idle = 0.0
        while left:
            try:
                future = arrived.get(timeout=POLL_SECONDS)
            except queue.Empty:
                idle += POLL_SECONDS
                waiting(idle)
                continue
            idle = 0.0
            yield numbers[future.key], future
            left.pop(future.key).release()  # a result that is held is computed again where its worker is lost
    finally:
        if left:
            with suppress(Exception):
                client.cancel(list(left.values()), force=True)


class ClusterClient:
    """A connection to a scheduler whose workers see the same folders as this process.

    Args:
        scheduler: address of the scheduler, or its scheduler file.
        device: for the workers; for ``cuda`` a call needs a worker with the resource ``GPU``.
        reporter: receives messages.
    """

    waiting_for = "cases"  # what is left, in messages
    go_on = "what is finished is kept; run it again"

    def __init__(self, scheduler: str, *, device: str, reporter: Reporter) -> None:
        self.scheduler, self.device, self.reporter = scheduler, device, reporter
        self._client: Any = None

    @contextmanager
    def connection(self, seen: Sequence[Path], folder: Path) -> Iterator[None]:
        """Hold a connection to the scheduler; the workers are examined first.

        Args:
            seen: files and folders that all workers must see.
            folder: that they must be able to write to.

        Raises:
            UserError: the scheduler does not answer, it has no worker, or a worker cannot take part.
        """
        from distributed import TimeoutError

        with connected(self.scheduler) as self._client:
            try:
                self._client.wait_for_workers(1, timeout=WORKER_SECONDS)
            except TimeoutError:
                raise UserError(
                    f"--scheduler {self.scheduler}: has no worker after {WORKER_SECONDS:g} s; start some with "
                    f"'dask worker {self.scheduler}'"
                ) from None
            self._examine(seen, folder)
            yield

    def calls(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Generator[tuple[int, Any], None, None]:
        """`as_done`, on workers with the device that is asked for."""
        resources = {"GPU": 1} if self._needs_gpu else None
        return as_done(self._client, function, arguments, resources=resources, waiting=self._waiting)

    def failure_of(self, future: Any) -> Exception | None:
        """Why a call failed; None where it did not, and its workers were not lost again and again.

        Raises:
            UserError: the scheduler is gone.
        """
        if future.status == "finished":
            return None
        if future.status != "error":  # cancelled: the client has lost its scheduler
            raise UserError(f"--scheduler {self.scheduler}: is no longer reachable; {self.go_on}")
        found: Exception = future.exception()
        return found

    @property
    def _needs_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def _waiting(self, seconds: float) -> None:
        """Nothing was done for ``seconds``: say so once where no worker is left."""
        if seconds >= WORKER_SECONDS > seconds - POLL_SECONDS and not self._client.nthreads():
            self.reporter.warning(
                f"warning: the scheduler {self.scheduler} has no worker; the {self.waiting_for} that are left wait for "
                "one (Ctrl-C ends the run)"
            )

    def _examine(self, seen: Sequence[Path], output: Path) -> None:
        """Refuse workers that cannot take part.

        Raises:
            UserError: names the first one.
        """
        self._require_versions()
        content, marker = uuid.uuid4().hex, output.absolute() / partial_name(output)
        files = [(path, path.stat().st_size) for path in seen if path.exists()]
        try:
            marker.write_text(content, encoding="utf-8", newline="")
            begun = time.monotonic()
            while True:
                found = self._on_workers(examine, files, marker, content)
                unseen = any(problem.startswith(UNSEEN) for problem, _, _ in found.values())
                if not unseen or time.monotonic() - begun > SHARED_SECONDS:
                    break
                time.sleep(POLL_SECONDS / 4)
        except OSError as failure:
            raise UserError(not_written(output, failure)) from None
        finally:
            with suppress(OSError):
                marker.unlink(missing_ok=True)
        for address, (problem, threads, _) in found.items():
            if problem:
                raise UserError(
                    f"worker {address}: {problem}; all files must lie in folders that all machines see "
                    "under the same path"
                )
            if threads > 1:
                self.reporter.warning(
                    f"warning: worker {address} has {threads} threads, but does one task at a time: the others "
                    "wait in it; start it with --nthreads 1"
                )
        if self._needs_gpu and not any(resources.get("GPU", 0) >= 1 for _, _, resources in found.values()):
            raise UserError(
                f"-device {self.device}: no worker of {self.scheduler} has the resource GPU; start workers with "
                "'dask worker --resources GPU=1', or give -device cpu"
            )
        self.reporter.info(f"scheduler: {self.scheduler}, {len(found)} worker(s)")

    def _require_versions(self) -> None:
        # a function of the standard library, as a worker without mre_lowshot could not read one of ours
        for address, version in self._on_workers(pkgutil.resolve_name, "mre_lowshot:__version__").items():
            if version != __version__:
                raise UserError(
                    f"worker {address}: has mre_lowshot {version}, this is {__version__}; install the same version on "
                    "all machines"
                )

    def _on_workers(self, function: Any, *arguments: Any) -> dict[str, Any]:
        """The result of ``function`` on each worker; workers that are lost meanwhile are left out.

        Raises:
            UserError: it fails on a worker.
        """
        from distributed.comm.core import CommClosedError

        found: dict[str, Any] = self._client.run(function, *arguments, on_error="return")
        for address, result in list(found.items()):
            if isinstance(result, ModuleNotFoundError):
                raise UserError(
                    f"worker {address}: {result.name or result} is not installed in its environment; install "
                    f"mre_lowshot {__version__} there"
                )
            if isinstance(result, (CommClosedError, ConnectionError)):
                del found[address]
            elif isinstance(result, BaseException):
                reason = (str(result).splitlines() or [type(result).__name__])[0]
                raise UserError(
                    f"worker {address}: cannot run mre_lowshot ({reason}); install the same versions of Python and "
                    "packages on all machines"
                )
        return found


def is_lost(failure: Exception) -> bool:
    """Whether a call failed because it lost its workers, several in a row."""
    return type(failure).__name__ == "KilledWorker"
