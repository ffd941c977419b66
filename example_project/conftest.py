from __future__ import annotations

pytest_plugins = ["kapso_connect.testing.plugin"]
