"""What most people run: FastAPI with a path parameter, a query parameter and a response model."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    id: int
    name: str
    tags: list[str]


@app.get("/items/{number}")
async def item(number: int, tag: str = "new") -> Item:
    return Item(id=number, name=f"item {number}", tags=[tag])
