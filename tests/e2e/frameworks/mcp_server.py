"""The MCP SDK's first server, mounted as its documentation has it, with a tool that reports its progress."""

import asyncio

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

mcp = MCPServer("Demo")


@mcp.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool()
async def long_task(steps: int, ctx: Context) -> str:
    """Take a while, and tell how far it is."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps)
        await asyncio.sleep(0.01)
    return "done"


@mcp.resource("greeting://{name}")
def get_greeting(name: str) -> str:
    """A greeting."""
    return f"Hello, {name}!"


app = mcp.streamable_http_app()
