"""The embedded broker: a real MQTT broker as a child process, for a demo, a test or a first try."""
