"""The embedded world: glyphs with names that leak, and images whose truth is known."""

from unleak.world.vocabulary import Caption, Placement, Polyseme, Scene, World, load

__all__ = ["Caption", "Placement", "Polyseme", "Scene", "World", "load"]
