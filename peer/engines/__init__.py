"""What runs passes: each engine fulfils ``peer.plan.Engine``."""
