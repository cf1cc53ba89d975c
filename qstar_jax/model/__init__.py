"""The joint network, its step cache and its sampling."""
