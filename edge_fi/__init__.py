"""edge_fi: federated inference over MQTT, sealed end to end."""

__version__ = "0.1.0"
