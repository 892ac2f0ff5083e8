"""Files of Hugging Face repositories: `hf://owner/name/path/to/file`, `hf://owner/name` for a whole one.

A revision may follow the name (`hf://owner/name@v1.0/file`); a path that ends in a slash is a folder. Files lie in the
hub's own cache, where transformers finds them too; the hub's client resumes broken downloads and shows whole files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavis_lite.errors import DataError, shown

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")


def is_repository(name: str) -> bool:
    """Whether a text is `name` or `owner/name` as the hub allows them."""
    return (len(name) <= 96 and _REPOSITORY.fullmatch(name) is not None and "--" not in name and ".." not in name
            and not name.endswith(".git"))


@dataclass(frozen=True)
class HubName:
    """A parsed name: repository `owner/name`, revision (None: the newest), path in it ("" for all of it)."""

    repository: str
    revision: str | None = None
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> HubName:
        """`hf://owner/name[@revision][/path]`.

        Raises:
            DataError: owner or name are missing.
        """
        owner, _, rest = url.partition("://")[2].partition("/")
        name, _, path = rest.partition("/")
        name, _, revision = name.partition("@")
        wrong = bool(revision) and _REVISION.fullmatch(revision) is None
        if not owner or not is_repository(f"{owner}/{name}") or wrong or ".." in path.split("/") or "\0" in path:
            raise DataError(f"{shown(url)}: write hf://owner/name/path/to/file, or hf://owner/name for a whole "
                            "repository.")
        return cls(f"{owner}/{name}", revision or None, path)

    @property
    def is_file(self) -> bool:
        """Whether one file is meant."""
        return bool(self.path) and not self.path.endswith("/")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{revision}" + (f"/{self.path}" if self.path else "")

    def command(self) -> str:
        """A shell command that does what `fetch` does."""
        what = self.path if self.is_file else f'--include "{self.path}*"' if self.path else ""
        revision = f"--revision {self.revision}" if self.revision else ""
        return " ".join(part for part in ("hf download", self.repository, what, revision) if part)


def cached(name: HubName, patterns: Sequence[str] | None = None) -> Path | None:
    """Where a name's file or folder is in the hub's cache, whole; None where it is not. Nothing is downloaded."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _load(name, patterns, local_only=True)
    except LocalEntryNotFoundError:
        return None


def fetch(name: HubName, offline: bool, patterns: Sequence[str] | None = None) -> Path:
    """The local path of a name's file or folder, downloaded if need be.

    Args:
        name: what is wanted.
        offline: take it from the cache or fail.
        patterns: of a whole repository, the files that are needed; None: all.

    Raises:
        DataError: it is not there, or the network is refused or fails; with the command to do it by hand.
    """
    try:
        return _load(name, patterns, local_only=offline)
    except (OSError, ValueError) as error:  # every error of the hub's client derives from one of these
        if offline:
            reason = "it is not in the hub cache, and LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids to fetch it"
        else:
            reason = f"could not fetch it: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        raise DataError(f"{name}: {reason}. To fetch it by hand: {name.command()}") from error


def check_upload(repository: str, offline: bool) -> None:
    """Refuse an upload that cannot work, before anything is computed.

    Raises:
        DataError: the name is not `owner/name`, or the offline switches forbid the network.
    """
    if "/" not in repository or not is_repository(repository):
        raise DataError(f"{shown(repository)}: write owner/name, as the repository is called on the hub.")
    if offline:
        raise DataError(f"{repository}: LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids to upload to the hub.")


def upload(folder: Path, repository: str, public: bool = False) -> str:
    """Upload a folder; returns the address. A repository that is not there is created, private unless `public`.

    Raises:
        DataError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    client = HfApi()
    try:
        client.create_repo(repository, private=not public, exist_ok=True)
        commit = client.upload_folder(repo_id=repository, folder_path=str(folder),
                                      commit_message="Upload a model of lavis_lite")
    except (OSError, ValueError) as error:  # every error of the hub's client derives from one of these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{repository}: the upload failed: {reason}. {folder} is complete. Log in with `hf auth login` "
                        f"if the hub does not know you, then: hf upload {repository} {folder} .") from error
    return str(commit.commit_url)


def _load(name: HubName, patterns: Sequence[str] | None, local_only: bool) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if name.is_file:
        return Path(hf_hub_download(name.repository, name.path, revision=name.revision, local_files_only=local_only))
    wanted = [f"{name.path}*"] if name.path else patterns
    folder = Path(snapshot_download(name.repository, revision=name.revision, local_files_only=local_only,
                                    allow_patterns=None if wanted is None else list(wanted))) / name.path
    if local_only:
        _refuse_partial(folder, patterns)
    return folder


def _refuse_partial(folder: Path, patterns: Sequence[str] | None) -> None:
    """Where weights are wanted, a folder that has only the configuration is as good as none.

    The hub's client knows what is lacking in a folder that it fetched as a whole, not in one of single files.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    weights = [pattern for pattern in patterns or () if pattern.endswith((".safetensors", ".bin"))]
    wanted = weights or list(patterns or ["*"])
    if not any(file for pattern in wanted for file in folder.glob(pattern)):
        raise LocalEntryNotFoundError(f"{folder} has none of {', '.join(wanted)}")
