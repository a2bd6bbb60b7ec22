"""ComfyUI custom nodes: link or copy this folder into `custom_nodes/`, with `blockdance` installed beside ComfyUI. See docs/bridges.md."""

from .nodes import BlockDanceNode, PolicyScheduleNode

NODE_CLASS_MAPPINGS = {"BlockDance": BlockDanceNode, "BlockDancePolicySchedule": PolicyScheduleNode}
NODE_DISPLAY_NAME_MAPPINGS = {"BlockDance": "BlockDance", "BlockDancePolicySchedule": "BlockDance (policy's schedule)"}
