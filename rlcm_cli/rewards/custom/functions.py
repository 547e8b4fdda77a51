"""A reward of the user's own: `path/to/file.py:function` or `package.module:function`.

The function is a `RewardFn`, and this is all that the file needs:

    def redness(images, prompts, metadata):
        return images[:, 0].float().mean((1, 2)) / 255

A function that compares the images of one prompt is a `SetRewardFn`, and has an attribute that says so:

    def variety(images, prompt, metadata):
        ...

    variety.set_level = True

One that is computed from pixels with torch only can be trained through the last model call (`last_step.mode =
"backprop"`). It then takes float32 images of 0 … 255 as well as uint8 ones, and keeps their gradient:

    redness.differentiable = True

A file is run by itself, without the files next to it; code of several files is a module, found in the current
directory or among the installed packages. The reward's revision is the digest of its code: of the file that holds the
function and of what that imports from its own folder or package (`code_files`).

A function gets its own copies of images, prompts and metadata, so that it may change or keep them. What it changes in
the process (torch's default dtype, gradients, threads and random numbers, the current directory, the environment) is
put back after each call.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from rlcm_cli.errors import ConfigError, RewardError, RlcmError
from rlcm_cli.rewards.base.contract import RewardEntry
from rlcm_cli.rewards.custom.code_files import find_code_files
from rlcm_cli.rewards.custom.process_state import preserved_environment, preserved_process
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor


def custom_entry(name: str) -> RewardEntry:
    """Return the entry of a reward of the user's own; runs none of its code.

    Raises:
        ConfigError: If the name is neither FILE.py:FUNCTION nor PACKAGE.MODULE:FUNCTION.
    """
    target, _, function = name.rpartition(":")
    named = target.endswith(".py") or all(part.isidentifier() for part in target.split("."))
    if not named or not function.isidentifier():
        raise ConfigError(f"reward {name!r} is neither FILE.py:FUNCTION nor PACKAGE.MODULE:FUNCTION; fix the name")
    return RewardEntry(
        functools.partial(load_function, name),
        description="a function of your own",
        value_range="that of the function",
        needs=f"the {'file' if target.endswith('.py') else 'module'} {target}",
        revise=lambda settings: digest_code(name),
        obstacle=lambda settings: _obstacle(name),
    )


def load_function(name: str) -> _Yours:
    """Run the file or the module that a name points at and return its function.

    What the file raises, now or when the function is called, comes out as a `RewardError` with the line of the file,
    and the exception itself as its cause.

    Args:
        name: FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.

    Raises:
        RewardError: If there is no such file, module or function, it is not callable, or the file raises an
            exception.
    """
    source = code_source(name)
    target, _, wanted = name.rpartition(":")
    with preserved_process(), _naming_the_line(name, source):
        module = _run_file(source) if target.endswith(".py") else _import_module(target)
    try:
        function = getattr(module, wanted)
    except AttributeError:
        known = [key for key, value in vars(module).items() if _is_function(value) and not key.startswith("_")]
        nearest = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known) or 'none at all'}"
        raise RewardError(f"reward {name!r}: {source} has no function {wanted!r}; {hint}") from None
    if not _is_function(function):
        raise RewardError(
            f"reward {name!r}: {wanted!r} in {source} is of type {type(function).__name__}; name a function"
        )
    return _Yours(
        name,
        source,
        function,
        set_level=bool(getattr(function, "set_level", False)),
        differentiable=bool(getattr(function, "differentiable", False)),
    )


@dataclass(frozen=True)
class _Yours:
    """Calls the function of a user."""

    name: str
    source: Path
    function: Callable[..., Any]
    set_level: bool
    differentiable: bool

    def __call__(self, images: Tensor, prompts: Any, metadata: Sequence[Mapping[str, object]]) -> Any:
        prompts = prompts if isinstance(prompts, str) else list(prompts)
        with preserved_process(), preserved_environment(), _naming_the_line(self.name, self.source):
            return self.function(images.clone(), prompts, copy.deepcopy([dict(known) for known in metadata]))


def digest_code(name: str) -> str:
    """Return the SHA-256 (hex) of a reward's code, without running it. Raises `RewardError` where there is none."""
    source = code_source(name)
    others = sorted(code_files(name) - {source.resolve()})
    digest = hashlib.sha256(source.read_bytes())
    for file in others:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def code_files(name: str) -> set[Path]:
    """List the files that a reward's code is in, without running any: those that its import statements lead to.

    Of a file, those in its own folder or below; of a module in the current directory, those there; of an installed
    module, those of its own package. Raises `RewardError` where there is no such file or module.
    """
    source = code_source(name).resolve()
    target = name.rpartition(":")[0]
    module = "" if target.endswith(".py") else target
    if not module:
        return find_code_files(source, source.parent)
    root = _root(source, module)
    return find_code_files(source, root, None if root == Path.cwd().resolve() else module.split(".")[0])


def _root(source: Path, module: str) -> Path:
    """Find the folder that a module's whole name counts from."""
    depth = module.count(".") + (source.name == "__init__.py")
    return source.parents[depth]


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _obstacle(name: str) -> str | None:
    try:
        code_source(name)
    except RewardError as error:
        return str(error)
    return None


def code_source(name: str) -> Path:
    """Return the file that holds a reward's function, without running anything. Raises `RewardError`."""
    target = name.rpartition(":")[0]
    if target.endswith(".py"):
        if not Path(target).is_file():
            raise RewardError(
                f"reward {name!r}: there is no file {target} (in {Path.cwd()}); "
                "fix the path, or bring the file to this machine"
            )
        return Path(target)
    file = _module_file(target)
    if file is None:
        raise RewardError(
            f"reward {name!r}: there is no Python module {target} in {Path.cwd()} or among the installed packages; "
            "fix the name, install it, or start from the directory that holds it"
        )
    return file


def _module_file(module: str) -> Path | None:
    """Return the file of a module. `importlib.util.find_spec` would run the packages above it."""
    top, *below = module.split(".")
    roots = [Path.cwd() / top]
    with contextlib.suppress(ValueError):  # A module made by hand, or __main__, has no spec.
        if spec := importlib.util.find_spec(top):
            roots += map(Path, spec.submodule_search_locations or [str(spec.origin).removesuffix(".py")])
    stems = [root.joinpath(*below) for root in roots]
    files = (file for stem in stems for file in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")))
    return next(filter(Path.is_file, files), None)


class _UncachedLoader(SourceFileLoader):
    """Reads the file itself: bytecode is known by size and second, and could be older than the digest."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run_file(source: Path) -> ModuleType:
    """Run a file as a module whose name nothing else has."""
    path = str(source.resolve())
    name = f"_rlcm_reward_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    loader = _UncachedLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(cast("ModuleSpec", spec))
    # Dataclasses and the like look their module up there.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(module: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        # As `python -m` does; it stays, for what the module imports later.
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    return importlib.import_module(module)


@contextlib.contextmanager
def _naming_the_line(name: str, source: Path) -> Iterator[None]:
    """Turn what a user's code raises into a `RewardError` with its file and line."""
    try:
        yield
    except RlcmError:
        raise
    # A script that ends with sys.exit() would end the run with it.
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward {name!r}: {_place(error, source)} raises {type(error).__name__}: {one_line(error)}; fix it"
        ) from error


def _place(error: BaseException, source: Path) -> str:
    """Return file and line of what does not parse, else of the last call in the user's file, else of the last call."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno},"
    calls = [
        (Path(frame.filename).resolve(), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen importlib")
    ]
    own = [call for call in calls if call[0] == source.resolve()]
    for file, line in (own or calls)[-1:]:
        return f"{file}, line {line},"
    return str(source)
