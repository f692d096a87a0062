"""The folder of the embedded store: a pointer file a tenant, and the collections they point to.

    kb_<tenant>                          names the collection in use
    kb_<tenant>__<model>_<generation>/   a shard

A collection counts only once a pointer names it: it is made first and named after, and is forgotten first and removed
after. So a folder that no pointer names is what a crash left, and is removed.
"""

import os
import shutil
from pathlib import Path

from services.contracts.failures import Conflict
from services.contracts.tenants import TenantId
from services.knowledge.naming import MODEL_CHANGED, alias_name, collection_name, generation_of, is_collection_of


class EdgeFolder:
    """Resolves tenants to folders, for one embedding model. Every method blocks."""

    def __init__(self, root: Path, model: str) -> None:
        self._root = root
        self._model = model

    def prepare(self) -> None:
        """Makes the folder and removes what crashes left."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        named = {entry.read_text().strip() for entry in self._root.glob("kb_*") if entry.is_file()}
        for entry in self._root.iterdir():
            if entry.is_dir() and entry.name.startswith("kb_") and entry.name not in named:
                shutil.rmtree(entry)
            elif entry.is_file() and entry.name.startswith("."):
                entry.unlink()

    def current(self, tenant: TenantId) -> Path | None:
        """The folder of `tenant`'s collection; None when it has none.

        Raises:
            Rejected: `tenant` is not a tenant id.
            Conflict: the collection was made with another embedding model.
        """
        name = self._named(tenant)
        if name is None:
            return None
        if generation_of(name, tenant, self._model) is None:
            raise Conflict("EMBEDDING_MODEL_CHANGED", MODEL_CHANGED)
        return self._root / name

    def of_another_model(self, tenant: TenantId) -> Path | None:
        """The folder of `tenant`'s collection if it was made with another embedding model."""
        name = self._named(tenant)
        if name is None or generation_of(name, tenant, self._model) is not None:
            return None
        return self._root / name if is_collection_of(name, tenant) else None

    def next(self, tenant: TenantId) -> Path:
        """Where `tenant`'s next collection goes; nothing is there when this returns."""
        now = self.current(tenant)
        generation = 1 if now is None else (generation_of(now.name, tenant, self._model) or 0) + 1
        folder = self._root / collection_name(tenant, self._model, generation)
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def point(self, tenant: TenantId, folder: Path) -> None:
        """Makes `folder` the tenant's collection, at once and durably."""
        pointer = self._root / alias_name(tenant)
        draft = pointer.with_name(f".{pointer.name}")
        with draft.open("w") as file:
            file.write(folder.name + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(pointer)
        self._sync()

    def forget(self, tenant: TenantId) -> None:
        """Leaves `tenant` without a collection and removes the one it had."""
        pointer = self._root / alias_name(tenant)
        if pointer.exists():
            name = pointer.read_text().strip()
            pointer.unlink()
            self._sync()
            if name.startswith(f"{alias_name(tenant)}__"):
                shutil.rmtree(self._root / name, ignore_errors=True)

    def _named(self, tenant: TenantId) -> str | None:
        try:
            return (self._root / alias_name(tenant)).read_text().strip()
        except FileNotFoundError:
            return None

    def _sync(self) -> None:
        # A rename or unlink is durable only once its folder is.
        descriptor = os.open(self._root, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
