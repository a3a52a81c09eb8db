"""GatewayWorker's everyday words, for those who come from it: clients, uids and groups instead of uniqIds, customerIds and topics.

    await gateway.bind_uid(message.uniq_id, "ada")
    await gateway.join_group(message.uniq_id, "lobby")
    await gateway.send_to_group("lobby", "good morning", exclude=message.uniq_id)

They are names, not a layer: each is a call or two of this process's ``laraman.gateway.bus``, and the README has the table. A client is a uniqId.
A client has one uid at most, a uid any number of clients; a group exists while it has a client. Ids are given one at a time or as a list, data
as text or bytes. Sends return ``Sent``. Where several gateways serve, a list holds what those know that answered, and a count of uids
adds up what each knows. Raises what the bus raises: LinkDown, Busy, TimeoutError, UnknownGateway.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from laraman import gateway

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laraman.gateway.results import Sent

__all__ = [
    "bind_uid",
    "close_client",
    "get_all_client_count",
    "get_all_client_id_list",
    "get_all_client_sessions",
    "get_all_group_client_count",
    "get_all_group_client_id_list",
    "get_all_group_id_list",
    "get_all_group_uid_count",
    "get_all_group_uid_list",
    "get_all_uid_count",
    "get_all_uid_list",
    "get_client_count_by_group",
    "get_client_id_by_uid",
    "get_client_id_list_by_group",
    "get_client_sessions_by_group",
    "get_session",
    "get_uid_by_client_id",
    "get_uid_count_by_group",
    "get_uid_list_by_group",
    "is_online",
    "is_uid_online",
    "join_group",
    "leave_group",
    "send_to_all",
    "send_to_client",
    "send_to_group",
    "send_to_uid",
    "session_of",
    "set_session",
    "unbind_uid",
    "ungroup",
    "update_session",
]


# Sending --------------------------------------------------------------------------------------------------------------------------


async def send_to_all(data: str | bytes, exclude: str | Iterable[str] = ()) -> Sent:
    """sendToAll: every client but ``exclude``."""
    return await gateway.bus.broadcast(data, exclude=exclude)


async def send_to_client(client: str | Iterable[str], data: str | bytes, exclude: str | Iterable[str] = ()) -> Sent:
    """sendToClient, and sendToAll with a list: these clients but ``exclude``, each once."""
    spared = {exclude} if isinstance(exclude, str) else {*exclude}
    if isinstance(client, str) and not spared:
        return await gateway.bus.single_cast(client, data)
    clients = (client,) if isinstance(client, str) else client
    return await gateway.bus.multicast([one for one in dict.fromkeys(clients) if one not in spared], data)


async def send_to_uid(uid: str | int | Iterable[str | int], data: str | bytes, exclude: str | Iterable[str] = ()) -> Sent:
    """sendToUid: every client of these uids but ``exclude``."""
    return await gateway.bus.multicast_by_customer_id(uid, data, exclude=exclude)


async def send_to_group(group: str | int | Iterable[str | int], data: str | bytes, exclude: str | Iterable[str] = ()) -> Sent:
    """sendToGroup: every client in these groups but ``exclude``; who is in two of them receives it twice."""
    return await gateway.bus.topic_publish(group, data, exclude=exclude)


# Binding --------------------------------------------------------------------------------------------------------------------------


async def bind_uid(client: str, uid: str | int) -> Sent:
    """bindUid: the client is this uid's from now on, and no other's."""
    return await gateway.bus.conn_info_update(client, new_customer_id=str(uid))


async def unbind_uid(client: str) -> Sent:
    """unbindUid."""
    return await gateway.bus.conn_info_delete(client, del_customer_id=True)


async def join_group(client: str, group: str | int | Iterable[str | int]) -> Sent:
    """joinGroup, with one group or several."""
    return await gateway.bus.topic_subscribe(client, group)


async def leave_group(client: str, group: str | int | Iterable[str | int]) -> Sent:
    """leaveGroup, with one group or several."""
    return await gateway.bus.topic_unsubscribe(client, group)


async def ungroup(group: str | int | Iterable[str | int]) -> Sent:
    """ungroup: nobody is in these groups any more."""
    return await gateway.bus.topic_delete(group)


async def close_client(client: str | Iterable[str], data: str | bytes = b"") -> Sent:
    """closeClient: these last words, if any, and the connection ends with code 1008."""
    return await gateway.bus.force_offline(client, data)


# Presence -------------------------------------------------------------------------------------------------------------------------


async def is_online(client: str) -> bool:
    """isOnline."""
    return client in await gateway.bus.check_online(client)


async def is_uid_online(uid: str | int) -> bool:
    """isUidOnline: whether this uid has a client."""
    return bool(await get_client_id_by_uid(uid))


async def get_client_id_by_uid(uid: str | int) -> list[str]:
    """getClientIdByUid: all clients of this uid."""
    found = await gateway.bus.conn_info_by_customer_id(str(uid), req_session=False, req_topic=False)
    return [item.uniq_id for item in found.items.get(str(uid), ())]


async def get_uid_by_client_id(client: str) -> str | None:
    """getUidByClientId: None when it has none, or is not there."""
    found = await gateway.bus.conn_info(client, req_session=False, req_topic=False)
    return found.items[client].customer_id or None if client in found.items else None


async def get_all_client_id_list() -> list[str]:
    """getAllClientIdList."""
    return list((await gateway.bus.uniq_id_list()).uniq_ids)


async def get_all_client_count() -> int:
    """getAllClientCount, getAllClientIdCount."""
    return (await gateway.bus.uniq_id_count()).count


async def get_all_uid_list() -> list[str]:
    """getAllUidList."""
    return list((await gateway.bus.customer_id_list()).customer_ids)


async def get_all_uid_count() -> int:
    """getAllUidCount."""
    return (await gateway.bus.customer_id_count()).count


async def get_client_id_list_by_group(group: str | int) -> list[str]:
    """getClientIdListByGroup."""
    return list((await gateway.bus.topic_uniq_id_list(str(group))).items.get(str(group), ()))


async def get_client_count_by_group(group: str | int) -> int:
    """getClientCountByGroup, getClientIdCountByGroup."""
    return (await gateway.bus.topic_uniq_id_count(str(group))).items.get(str(group), 0)


async def get_uid_list_by_group(group: str | int) -> list[str]:
    """getUidListByGroup."""
    return list((await gateway.bus.topic_customer_id_list(str(group))).items.get(str(group), ()))


async def get_uid_count_by_group(group: str | int) -> int:
    """getUidCountByGroup."""
    return (await gateway.bus.topic_customer_id_count(str(group))).items.get(str(group), 0)


async def get_all_group_id_list() -> list[str]:
    """getAllGroupIdList."""
    return list((await gateway.bus.topic_list()).topics)


async def get_all_group_client_id_list() -> dict[str, list[str]]:
    """getAllGroupClientIdList: the clients of each group."""
    return dict((await gateway.bus.topic_uniq_id_list(await get_all_group_id_list())).items)


async def get_all_group_client_count() -> dict[str, int]:
    """getAllGroupClientIdCount: how many clients are in each group."""
    return dict((await gateway.bus.topic_uniq_id_count(all_topic=True)).items)


async def get_all_group_uid_list() -> dict[str, list[str]]:
    """getAllGroupUidList: the uids of each group."""
    return dict((await gateway.bus.topic_customer_id_list(await get_all_group_id_list())).items)


async def get_all_group_uid_count() -> dict[str, int]:
    """getAllGroupUidCount: how many uids are in each group."""
    return dict((await gateway.bus.topic_customer_id_count(all_topic=True)).items)


# Session --------------------------------------------------------------------------------------------------------------------------


def session_of(event: Any) -> dict[str, Any]:
    """$_SESSION: the session that came with a Message or Closed, without asking the gateway. Raises ValueError as ``get_session`` does."""
    return _load(event.session)


async def get_session(client: str) -> dict[str, Any]:
    """getSession: empty when there is none. Raises ValueError when another program has put something there that is not a JSON object."""
    found = await gateway.bus.conn_info(client, req_customer_id=False, req_topic=False)
    return _load(found.items[client].session) if client in found.items else {}


async def set_session(client: str, session: Mapping[str, Any]) -> Sent:
    """setSession: this and nothing else, as a JSON object. It travels with every message of the client: keep it small."""
    if not session:
        return await gateway.bus.conn_info_delete(client, del_session=True)
    return await gateway.bus.conn_info_update(client, new_session=json.dumps(session, ensure_ascii=False, separators=(",", ":")))


async def update_session(client: str, changes: Mapping[str, Any]) -> Sent:
    """updateSession: what is in ``changes``, key by key and objects in objects. Two at once for one client: the later one wins."""
    return await set_session(client, _merged(await get_session(client), changes))


async def get_all_client_sessions() -> dict[str, dict[str, Any]]:
    """getAllClientSessions: the session of each client."""
    return await _sessions(await get_all_client_id_list())


async def get_client_sessions_by_group(group: str | int) -> dict[str, dict[str, Any]]:
    """getClientSessionsByGroup."""
    return await _sessions(await get_client_id_list_by_group(group))


async def _sessions(clients: list[str]) -> dict[str, dict[str, Any]]:
    found = await gateway.bus.conn_info(clients, req_customer_id=False, req_topic=False)
    return {client: _load(item.session) for client, item in found.items.items()}


def _load(text: str) -> dict[str, Any]:
    session = json.loads(text) if text else {}
    if not isinstance(session, dict):
        raise ValueError("the session is not a JSON object")
    return session


def _merged(session: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(session)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
