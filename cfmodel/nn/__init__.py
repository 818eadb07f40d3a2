"""The networks, their attention, masks and rotary positions."""
