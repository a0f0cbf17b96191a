"""The interface for compiled code: the capsule that `softxent_import` fetches, and where the headers are."""

from pathlib import Path

from softxent._dispatch import active, level

capsule = active.offer(level)


def get_include() -> str:
    """The folder of ``softxent.h``, for the include path of a compiler.

    Returns
    -------
    str
        An absolute path.

    Examples
    --------
    >>> import os
    >>> import softxent as sx
    >>> sorted(os.listdir(sx.get_include()))
    ['softxent.h']

    In the ``setup.py`` of another project: ``Extension(..., include_dirs=[softxent.get_include()])``.
    """
    return str(Path(__file__).with_name("include"))
