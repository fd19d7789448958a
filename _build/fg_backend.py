"""In-tree PEP 517 backend: setuptools', plus sight of the torch installed where fastgen goes.

pip builds in an isolated environment whose `sys.prefix` is still the target's, so adding the
target's site-packages makes the installed torch importable: plain `pip install .` compiles against
the torch that will run, and never downloads another one.
"""

import site
import sysconfig

for _key in ("purelib", "platlib"):
    site.addsitedir(sysconfig.get_path(_key))

from setuptools.build_meta import *  # noqa: E402, F403  (re-export is the purpose of this file)
