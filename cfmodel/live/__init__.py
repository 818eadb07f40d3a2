"""Films in a browser while they are made, their prompts changed in mid-stream."""
