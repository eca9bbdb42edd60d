"""Transport and directory over libp2p and a DHT: the one door to hivemind."""
