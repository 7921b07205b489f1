"""Distribute work to forked processes, where threads would wait for Python's lock.

A `ProcessPoolExecutor` would not do. After a signal it waits until its workers' work is done, and
its workers outlive a parent that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

T = TypeVar("T")
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def share_out(work: Callable[[int], T], count: int, workers: int) -> list[T]:
    """Return ``[work(0), …, work(count − 1)]``, computed by forked processes that each take the
    next piece when free.

    With one worker or one piece of work, this process does it. An exception of one worker ends all
    and is raised here, and so is that of a signal.

    Raises:
        ChildProcessError: a process was killed, usually because memory ran out.
    """
    workers = min(workers, count)
    if workers <= 1:
        return [work(number) for number in range(count)]
    context = multiprocessing.get_context("fork")
    counter = context.Value("l", 0)
    results: dict[int, T] = {}
    processes, readers = [], []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # no handler runs inside a fork
    try:
        for _ in range(workers):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_take_next, args=(work, count, counter, writer, os.getpid()), daemon=True
            )
            process.start()
            writer.close()
            processes.append(process)
            readers.append(reader)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while readers:
            for ready in cast(list[Connection], wait(readers)):
                try:
                    number, result, error = ready.recv()
                except EOFError:
                    readers.remove(ready)
                    continue
                if error is not None:
                    raise error
                results[number] = result
    finally:
        for process in processes:
            process.terminate()
            process.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if len(results) < count:
        statuses = [process.exitcode for process in processes]
        raise ChildProcessError(f"a worker was killed (exit statuses {statuses}): out of memory?")
    return [results[number] for number in range(count)]


def _take_next(
    work: Callable[[int], T], count: int, counter: Any, writer: Connection, parent: int
) -> None:
    for number in STOPPING:  # the parent handles Ctrl-C and ends its workers
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    while os.getppid() == parent:  # nobody reads the result of a killed parent
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        if number >= count:
            return
        try:
            writer.send((number, work(number), None))
        except Exception as error:
            writer.send((number, None, error))
            return


def available_cores() -> int:
    """Return the number of cores that this process may use, at most 8, as more do not make a disk
    faster. It is one on macOS, whose system libraries do not survive a fork."""
    return min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 1
