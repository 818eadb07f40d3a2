"""What happens in long films: events, drift, camera and object motion. No network needed."""
