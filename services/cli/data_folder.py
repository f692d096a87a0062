"""What the server and earlier commands left on this machine: its address, the admin key, tenants' keys."""

import json
from collections.abc import Mapping
from pathlib import Path

from services.contracts.tenants import TenantId, tenant_id
from services.runtime.process import RUN_FILE, write_private

ADMIN_KEY_FILE = "admin.key"
KEYS_FOLDER = "keys"


def default_data_folder(environment: Mapping[str, str]) -> Path:
    """`headwater` under XDG_DATA_HOME, which is ~/.local/share unless it names an absolute path."""
    configured = Path(environment.get("XDG_DATA_HOME", ""))
    home = configured if configured.is_absolute() else Path.home() / ".local" / "share"
    return home / "headwater"


class DataFolder:
    """The folder a server on this machine keeps its data in. Keys in it are for that server alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def server_address(self) -> str | None:
        """Where the server said it listens; None when none runs, or what it wrote cannot be read."""
        try:
            announced = json.loads((self.path / RUN_FILE).read_text("utf-8"))
            address = announced["address"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return address if isinstance(address, str) else None

    def admin_key(self) -> str | None:
        """The key the server made for its operator."""
        return _line(self.path / ADMIN_KEY_FILE)

    def tenant_key(self, tenant: TenantId) -> str | None:
        """The key that was saved for `tenant`."""
        return _line(self._key_file(tenant))

    def tenants(self) -> list[TenantId]:
        """The tenants whose keys were saved, by id."""
        return sorted(tenant_id(file.stem) for file in (self.path / KEYS_FOLDER).glob("[a-z]*.key"))

    def save_tenant_key(self, tenant: TenantId, key: str) -> Path:
        """Keeps `key` for later commands in a file only its owner may read."""
        file = self._key_file(tenant)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(file, key + "\n")
        return file

    def forget_key(self, key_id: str) -> TenantId | None:
        """Removes the saved key with this id; returns whose it was, None when none is saved."""
        for tenant in self.tenants():
            if (self.tenant_key(tenant) or "").startswith(f"hw_{key_id}_"):
                self._key_file(tenant).unlink(missing_ok=True)
                return tenant
        return None

    def _key_file(self, tenant: TenantId) -> Path:
        return self.path / KEYS_FOLDER / f"{tenant}.key"


def _line(file: Path) -> str | None:
    try:
        return file.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
