"""What the shop sells. Both sides import it: the pages list it, the ticker quotes it."""

from __future__ import annotations

from typing import NamedTuple


class Coffee(NamedTuple):
    symbol: str
    name: str
    origin: str
    notes: str


COFFEES = (
    Coffee("SIDAMO", "Sidamo", "Ethiopia", "jasmine, bergamot, honey"),
    Coffee("HUILA", "Huila", "Colombia", "caramel, red apple, cocoa"),
    Coffee("MANDHELING", "Mandheling", "Sumatra", "cedar, dark chocolate, low acidity"),
    Coffee("NYERI", "Nyeri", "Kenya", "blackcurrant, grapefruit, long finish"),
)

BY_SYMBOL = {coffee.symbol: coffee for coffee in COFFEES}
