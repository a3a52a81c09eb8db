from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterReq(_message.Message):
    __slots__ = ("events", "process_cmd_goroutine_num", "features", "secret")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_CMD_GOROUTINE_NUM_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    events: int
    process_cmd_goroutine_num: int
    features: int
    secret: str
    def __init__(self, events: _Optional[int] = ..., process_cmd_goroutine_num: _Optional[int] = ..., features: _Optional[int] = ..., secret: _Optional[str] = ...) -> None: ...

class RegisterResp(_message.Message):
    __slots__ = ("code", "message", "conn_id", "features")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CONN_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    conn_id: str
    features: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., conn_id: _Optional[str] = ..., features: _Optional[int] = ...) -> None: ...

class UnRegisterReq(_message.Message):
    __slots__ = ("conn_id",)
    CONN_ID_FIELD_NUMBER: _ClassVar[int]
    conn_id: str
    def __init__(self, conn_id: _Optional[str] = ...) -> None: ...

class UnRegisterResp(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConnOpen(_message.Message):
    __slots__ = ("uniq_id", "raw_query", "x_forwarded_for", "x_real_ip", "remote_addr", "sub_protocols")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    RAW_QUERY_FIELD_NUMBER: _ClassVar[int]
    X_FORWARDED_FOR_FIELD_NUMBER: _ClassVar[int]
    X_REAL_IP_FIELD_NUMBER: _ClassVar[int]
    REMOTE_ADDR_FIELD_NUMBER: _ClassVar[int]
    SUB_PROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    raw_query: str
    x_forwarded_for: str
    x_real_ip: str
    remote_addr: str
    sub_protocols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_id: _Optional[str] = ..., raw_query: _Optional[str] = ..., x_forwarded_for: _Optional[str] = ..., x_real_ip: _Optional[str] = ..., remote_addr: _Optional[str] = ..., sub_protocols: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnOpenLegacy(_message.Message):
    __slots__ = ("uniq_id", "raw_query", "sub_protocols", "x_forwarded_for", "x_real_ip", "remote_addr")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    RAW_QUERY_FIELD_NUMBER: _ClassVar[int]
    SUB_PROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    X_FORWARDED_FOR_FIELD_NUMBER: _ClassVar[int]
    X_REAL_IP_FIELD_NUMBER: _ClassVar[int]
    REMOTE_ADDR_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    raw_query: str
    sub_protocols: _containers.RepeatedScalarFieldContainer[str]
    x_forwarded_for: str
    x_real_ip: str
    remote_addr: str
    def __init__(self, uniq_id: _Optional[str] = ..., raw_query: _Optional[str] = ..., sub_protocols: _Optional[_Iterable[str]] = ..., x_forwarded_for: _Optional[str] = ..., x_real_ip: _Optional[str] = ..., remote_addr: _Optional[str] = ...) -> None: ...

class ConnClose(_message.Message):
    __slots__ = ("uniq_id", "customer_id", "session", "topics")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    customer_id: str
    session: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_id: _Optional[str] = ..., customer_id: _Optional[str] = ..., session: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("uniq_id", "customer_id", "session", "topics", "data", "binary")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    customer_id: str
    session: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    binary: bool
    def __init__(self, uniq_id: _Optional[str] = ..., customer_id: _Optional[str] = ..., session: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ..., binary: _Optional[bool] = ...) -> None: ...

class ConnOpenResp(_message.Message):
    __slots__ = ("allow", "new_session", "new_customer_id", "new_topics", "data")
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_FIELD_NUMBER: _ClassVar[int]
    NEW_CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    allow: bool
    new_session: str
    new_customer_id: str
    new_topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, allow: _Optional[bool] = ..., new_session: _Optional[str] = ..., new_customer_id: _Optional[str] = ..., new_topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ConnInfoUpdate(_message.Message):
    __slots__ = ("uniq_id", "new_session", "new_customer_id", "new_topics", "data")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_FIELD_NUMBER: _ClassVar[int]
    NEW_CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    new_session: str
    new_customer_id: str
    new_topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, uniq_id: _Optional[str] = ..., new_session: _Optional[str] = ..., new_customer_id: _Optional[str] = ..., new_topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ConnInfoDelete(_message.Message):
    __slots__ = ("uniq_id", "del_session", "del_customer_id", "del_topic", "data")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    DEL_SESSION_FIELD_NUMBER: _ClassVar[int]
    DEL_CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    DEL_TOPIC_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    del_session: bool
    del_customer_id: bool
    del_topic: bool
    data: bytes
    def __init__(self, uniq_id: _Optional[str] = ..., del_session: _Optional[bool] = ..., del_customer_id: _Optional[bool] = ..., del_topic: _Optional[bool] = ..., data: _Optional[bytes] = ...) -> None: ...

class Broadcast(_message.Message):
    __slots__ = ("data", "binary", "exclude")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    binary: bool
    exclude: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, data: _Optional[bytes] = ..., binary: _Optional[bool] = ..., exclude: _Optional[_Iterable[str]] = ...) -> None: ...

class Multicast(_message.Message):
    __slots__ = ("uniq_ids", "data", "binary")
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    binary: bool
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ..., binary: _Optional[bool] = ...) -> None: ...

class MulticastByCustomerId(_message.Message):
    __slots__ = ("customer_ids", "data", "binary", "exclude")
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    binary: bool
    exclude: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ..., binary: _Optional[bool] = ..., exclude: _Optional[_Iterable[str]] = ...) -> None: ...

class SingleCast(_message.Message):
    __slots__ = ("uniq_id", "data", "binary")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    data: bytes
    binary: bool
    def __init__(self, uniq_id: _Optional[str] = ..., data: _Optional[bytes] = ..., binary: _Optional[bool] = ...) -> None: ...

class SingleCastBulk(_message.Message):
    __slots__ = ("uniq_ids", "data", "binary")
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    binary: bool
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ..., data: _Optional[_Iterable[bytes]] = ..., binary: _Optional[bool] = ...) -> None: ...

class SingleCastByCustomerId(_message.Message):
    __slots__ = ("customer_id", "data", "binary", "exclude")
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    customer_id: str
    data: bytes
    binary: bool
    exclude: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, customer_id: _Optional[str] = ..., data: _Optional[bytes] = ..., binary: _Optional[bool] = ..., exclude: _Optional[_Iterable[str]] = ...) -> None: ...

class SingleCastBulkByCustomerId(_message.Message):
    __slots__ = ("customer_ids", "data", "binary")
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    binary: bool
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ..., data: _Optional[_Iterable[bytes]] = ..., binary: _Optional[bool] = ...) -> None: ...

class TopicSubscribe(_message.Message):
    __slots__ = ("uniq_id", "topics", "data")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, uniq_id: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TopicUnsubscribe(_message.Message):
    __slots__ = ("uniq_id", "topics", "data")
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    uniq_id: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, uniq_id: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TopicDelete(_message.Message):
    __slots__ = ("topics", "data")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TopicPublish(_message.Message):
    __slots__ = ("topics", "data", "binary", "exclude")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    binary: bool
    exclude: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ..., binary: _Optional[bool] = ..., exclude: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicPublishBulk(_message.Message):
    __slots__ = ("topics", "data", "binary")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    binary: bool
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., data: _Optional[_Iterable[bytes]] = ..., binary: _Optional[bool] = ...) -> None: ...

class ForceOffline(_message.Message):
    __slots__ = ("uniq_ids", "data")
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ForceOfflineByCustomerId(_message.Message):
    __slots__ = ("customer_ids", "data")
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ForceOfflineGuest(_message.Message):
    __slots__ = ("uniq_ids", "delay", "data")
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    delay: int
    data: bytes
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ..., delay: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class CheckOnlineReq(_message.Message):
    __slots__ = ("uniq_ids",)
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckOnlineResp(_message.Message):
    __slots__ = ("uniq_ids",)
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CustomerIdListResp(_message.Message):
    __slots__ = ("customer_ids",)
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CustomerIdCountResp(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class UniqIdListResp(_message.Message):
    __slots__ = ("uniq_ids",)
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class UniqIdCountResp(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class TopicListResp(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topics: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicCountResp(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class TopicUniqIdListReq(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topics: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicUniqIdListRespItem(_message.Message):
    __slots__ = ("uniq_ids",)
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicUniqIdListResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TopicUniqIdListRespItem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TopicUniqIdListRespItem, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, TopicUniqIdListRespItem]
    def __init__(self, items: _Optional[_Mapping[str, TopicUniqIdListRespItem]] = ...) -> None: ...

class TopicUniqIdCountReq(_message.Message):
    __slots__ = ("topics", "count_all")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    COUNT_ALL_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    count_all: bool
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., count_all: _Optional[bool] = ...) -> None: ...

class TopicUniqIdCountResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.ScalarMap[str, int]
    def __init__(self, items: _Optional[_Mapping[str, int]] = ...) -> None: ...

class TopicCustomerIdListReq(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topics: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicCustomerIdListRespItem(_message.Message):
    __slots__ = ("customer_ids",)
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicCustomerIdListResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TopicCustomerIdListRespItem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TopicCustomerIdListRespItem, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, TopicCustomerIdListRespItem]
    def __init__(self, items: _Optional[_Mapping[str, TopicCustomerIdListRespItem]] = ...) -> None: ...

class TopicCustomerIdToUniqIdsListReq(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topics: _Optional[_Iterable[str]] = ...) -> None: ...

class CustomerIdToUniqIdsRespItem(_message.Message):
    __slots__ = ("uniq_ids",)
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class TopicCustomerIdToUniqIdsListRespItem(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: CustomerIdToUniqIdsRespItem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[CustomerIdToUniqIdsRespItem, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, CustomerIdToUniqIdsRespItem]
    def __init__(self, items: _Optional[_Mapping[str, CustomerIdToUniqIdsRespItem]] = ...) -> None: ...

class TopicCustomerIdToUniqIdsListResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TopicCustomerIdToUniqIdsListRespItem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TopicCustomerIdToUniqIdsListRespItem, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, TopicCustomerIdToUniqIdsListRespItem]
    def __init__(self, items: _Optional[_Mapping[str, TopicCustomerIdToUniqIdsListRespItem]] = ...) -> None: ...

class TopicCustomerIdCountReq(_message.Message):
    __slots__ = ("topics", "count_all")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    COUNT_ALL_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    count_all: bool
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., count_all: _Optional[bool] = ...) -> None: ...

class TopicCustomerIdCountResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.ScalarMap[str, int]
    def __init__(self, items: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ConnInfoReq(_message.Message):
    __slots__ = ("uniq_ids", "req_session", "req_customer_id", "req_topic")
    UNIQ_IDS_FIELD_NUMBER: _ClassVar[int]
    REQ_SESSION_FIELD_NUMBER: _ClassVar[int]
    REQ_CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    REQ_TOPIC_FIELD_NUMBER: _ClassVar[int]
    uniq_ids: _containers.RepeatedScalarFieldContainer[str]
    req_session: bool
    req_customer_id: bool
    req_topic: bool
    def __init__(self, uniq_ids: _Optional[_Iterable[str]] = ..., req_session: _Optional[bool] = ..., req_customer_id: _Optional[bool] = ..., req_topic: _Optional[bool] = ...) -> None: ...

class ConnInfoRespItem(_message.Message):
    __slots__ = ("session", "customer_id", "topics")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    session: str
    customer_id: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[str] = ..., customer_id: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnInfoResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ConnInfoRespItem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ConnInfoRespItem, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, ConnInfoRespItem]
    def __init__(self, items: _Optional[_Mapping[str, ConnInfoRespItem]] = ...) -> None: ...

class ConnInfoByCustomerIdReq(_message.Message):
    __slots__ = ("customer_ids", "req_session", "req_uniq_id", "req_topic")
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    REQ_SESSION_FIELD_NUMBER: _ClassVar[int]
    REQ_UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    REQ_TOPIC_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    req_session: bool
    req_uniq_id: bool
    req_topic: bool
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ..., req_session: _Optional[bool] = ..., req_uniq_id: _Optional[bool] = ..., req_topic: _Optional[bool] = ...) -> None: ...

class ConnInfoByCustomerIdRespItem(_message.Message):
    __slots__ = ("session", "uniq_id", "topics")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    UNIQ_ID_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    session: str
    uniq_id: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[str] = ..., uniq_id: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnInfoByCustomerIdRespItems(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ConnInfoByCustomerIdRespItem]
    def __init__(self, items: _Optional[_Iterable[_Union[ConnInfoByCustomerIdRespItem, _Mapping]]] = ...) -> None: ...

class ConnInfoByCustomerIdResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ConnInfoByCustomerIdRespItems
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ConnInfoByCustomerIdRespItems, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[str, ConnInfoByCustomerIdRespItems]
    def __init__(self, items: _Optional[_Mapping[str, ConnInfoByCustomerIdRespItems]] = ...) -> None: ...

class MetricsRespItem(_message.Message):
    __slots__ = ("item", "count", "mean_rate", "mean_rate_max", "rate1", "rate1_max", "rate5", "rate5_max", "rate15", "rate15_max")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MEAN_RATE_FIELD_NUMBER: _ClassVar[int]
    MEAN_RATE_MAX_FIELD_NUMBER: _ClassVar[int]
    RATE1_FIELD_NUMBER: _ClassVar[int]
    RATE1_MAX_FIELD_NUMBER: _ClassVar[int]
    RATE5_FIELD_NUMBER: _ClassVar[int]
    RATE5_MAX_FIELD_NUMBER: _ClassVar[int]
    RATE15_FIELD_NUMBER: _ClassVar[int]
    RATE15_MAX_FIELD_NUMBER: _ClassVar[int]
    item: int
    count: int
    mean_rate: float
    mean_rate_max: float
    rate1: float
    rate1_max: float
    rate5: float
    rate5_max: float
    rate15: float
    rate15_max: float
    def __init__(self, item: _Optional[int] = ..., count: _Optional[int] = ..., mean_rate: _Optional[float] = ..., mean_rate_max: _Optional[float] = ..., rate1: _Optional[float] = ..., rate1_max: _Optional[float] = ..., rate5: _Optional[float] = ..., rate5_max: _Optional[float] = ..., rate15: _Optional[float] = ..., rate15_max: _Optional[float] = ...) -> None: ...

class MetricsResp(_message.Message):
    __slots__ = ("items",)
    class ItemsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: MetricsRespItem
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[MetricsRespItem, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.MessageMap[int, MetricsRespItem]
    def __init__(self, items: _Optional[_Mapping[int, MetricsRespItem]] = ...) -> None: ...

class LimitReq(_message.Message):
    __slots__ = ("on_open", "on_message")
    ON_OPEN_FIELD_NUMBER: _ClassVar[int]
    ON_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    on_open: int
    on_message: int
    def __init__(self, on_open: _Optional[int] = ..., on_message: _Optional[int] = ...) -> None: ...

class LimitResp(_message.Message):
    __slots__ = ("on_open", "on_message")
    ON_OPEN_FIELD_NUMBER: _ClassVar[int]
    ON_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    on_open: int
    on_message: int
    def __init__(self, on_open: _Optional[int] = ..., on_message: _Optional[int] = ...) -> None: ...
