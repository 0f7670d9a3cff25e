"""What the C library does with memory that is given back to it."""

import ctypes

# Of glibc's malloc.h. All threads share one arena, because those of single threads are given back
# whole, whatever the threshold.
_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}


def keep_pages() -> bool:
    """Keep freed memory for the next call instead of handing it to the system at once.

    A compiled program gets its buffers from malloc. By default glibc maps every large one anew and
    unmaps it when it is freed, so each call takes a page fault for every 4 KiB, and the threads of
    all devices wait for each other in the system. That matters to whoever calls short programs
    with large arrays, such as a codec of many clients. A call of many rounds loses by it, as all
    threads then wait at one arena, so the experiment binaries do without. The price: a process
    stays as large as it ever was, and it holds for the whole process.

    Returns:
      Whether it is done: only glibc can be told so, and elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no such library
        return False
    return all(mallopt(setting, value) for setting, value in _SETTINGS.values())
