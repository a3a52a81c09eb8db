"""Sockets and asyncio: addresses, listening sockets, connections and links."""
