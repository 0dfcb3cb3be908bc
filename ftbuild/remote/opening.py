"""Opening: from the texts in settings and environment to the layers that they name."""

from collections.abc import Sequence
from pathlib import Path

from ftbuild.errors import UsageError
from ftbuild.remote import address as addresses
from ftbuild.remote import window
from ftbuild.remote.address import Address
from ftbuild.remote.backend import Backend
from ftbuild.remote.getting import RemoteLayer
from ftbuild.remote.guard import Guard, Tell
from ftbuild.remote.layer import Layer, StoreLayer, is_store
from ftbuild.remote.service import Accept, Supply
from ftbuild.store.store import Store


def open_supply(
    store: Store,
    texts: Sequence[str],
    *,
    root: Path,
    can_write: bool,
    tell: Tell,
    accept: Accept = lambda _: None,
) -> Supply:
    """Return the remote stores and other stores that `texts` name, in their order.

    Raises:
        UsageError: one of them is of no known form, or needs a library that is missing.
    """
    pool = window.pool("remote")
    layers: list[Layer] = []
    for text in texts:
        where = addresses.parse(text, root)
        if where.kind == "folder" and is_store(where.url):
            _refuse_itself(where, store)
            layers.append(StoreLayer(where.url, tell))
        else:
            layers.append(RemoteLayer(Guard(_backend(where), tell, can_write=can_write), pool))
    return Supply(store, layers, pool, tell, accept)


def _backend(where: Address) -> Backend:
    if where.kind == "folder":
        from ftbuild.remote.folder import Folder

        return Folder(where.url, where.name)
    if where.kind == "bucket":
        from ftbuild.remote.bucket import Bucket

        return Bucket(where)
    from ftbuild.remote.web import Web

    return Web(where, addresses.token())


def _refuse_itself(where: Address, store: Store) -> None:
    if Path(where.url).resolve() == store.root.resolve():
        raise UsageError(
            f"`{where.name}` is the store itself",
            code="E0570",
            fix="name another folder, in which remote stores keep theirs",
        )
