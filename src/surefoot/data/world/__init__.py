"""An offline world with a known true reward (docs/world.md): no download, no GPU."""

from surefoot.data.world.preferences import VARIANTS
from surefoot.data.world.world import World, build_world

__all__ = ["VARIANTS", "World", "build_world"]
