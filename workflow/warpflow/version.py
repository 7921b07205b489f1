"""The version, which merged checkpoints carry."""

VERSION = "0.1.0"
