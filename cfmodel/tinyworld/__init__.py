"""The tiny world: a procedural, captioned 3-D world in which memory matters. Torch only."""

from cfmodel.tinyworld.scene import Scene, sample_scene, scene_from_json

__all__ = ["Scene", "sample_scene", "scene_from_json"]
