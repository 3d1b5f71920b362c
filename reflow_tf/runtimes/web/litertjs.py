"""The files of LiteRT.js, exactly as package-lock.json pins them, fetched without npm."""

import json
import pathlib
import tarfile
from importlib import resources

from reflow_tf.errors import InputError
from reflow_tf.runtimes.installation import cache_folder, digest_of, download, install

SETUP = "python -m reflow_tf.tools.setup_runtime --runtime=web"

_LARGEST_FILE_BYTES = 64 << 20


def set_up() -> pathlib.Path:
    """Fetches the tarballs of the lock file, checks their sha512 and unpacks them; instant if that was done before.

    Returns:
        The folder that holds node_modules.

    Raises:
        InputError: no connection, another checksum, or a cache that cannot be written to.
    """
    return install(_folder_name(), _build)


def installed_folder() -> pathlib.Path:
    """The folder that holds node_modules.

    Raises:
        InputError: LiteRT.js was not set up.
    """
    folder = cache_folder() / _folder_name()
    if not folder.is_dir():
        raise InputError(f"LiteRT.js {pinned_version()} must be set up, once: {SETUP}. Received: no {folder}")
    return folder


def pinned_version() -> str:
    """Of @litertjs/core."""
    return str(_packages()["node_modules/@litertjs/core"]["version"])


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the plain files of an npm tarball, which lie below `package/`, into a folder that does not exist yet.

    Raises:
        InputError: a member is no plain file or folder, lies elsewhere, or is larger than any that LiteRT.js has.
    """
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            path = pathlib.PurePosixPath(member.name)
            inside = path.parts[:1] == ("package",) and ".." not in path.parts
            if not inside or not (member.isfile() or member.isdir()) or member.size > _LARGEST_FILE_BYTES:
                raise InputError(
                    f"An npm tarball must hold plain files below package/, {_LARGEST_FILE_BYTES} bytes at most. "
                    f"Received: {member.name} ({member.size} bytes) in {archive.name}"
                )
            source = members.extractfile(member)
            if source is not None:
                target = folder.joinpath(*path.parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())


def _build(folder: pathlib.Path) -> None:
    for place, package in _packages().items():
        archive = folder / "archive.tgz"
        download(package["resolved"], package["integrity"], archive)
        unpack(archive, folder / place)
        archive.unlink()


def _folder_name() -> str:
    return f"litertjs-{pinned_version()}-{digest_of(_lock())}"


def _lock() -> str:
    return resources.files("reflow_tf.runtimes.web").joinpath("package-lock.json").read_text(encoding="utf-8")


def _packages() -> dict[str, dict[str, str]]:
    """Place below the root -> what the lock file says of the package there; the root itself is not among them."""
    packages = json.loads(_lock())["packages"]
    return {place: package for place, package in packages.items() if place}
