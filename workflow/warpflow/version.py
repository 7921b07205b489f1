"""The version, which merged checkpoints carry."""

VERSION = "0.2.0"
