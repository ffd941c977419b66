"""The browsers inside of other apps, in which Facebook's login often fails."""

from __future__ import annotations

import re

IN_APP_BROWSER = re.compile(
    # Android's WebView: https://developer.chrome.com/docs/multidevice/user-agent/
    r"; wv\)"
    # Facebook and Messenger: https://github.com/matomo-org/device-detector/issues/5425
    r"|\bFBA[NV]/|\bFB_IAB/"
    # Instagram: https://github.com/DamonOehlman/detect-browser/issues/56
    r"|\bInstagram [0-9]"
    # LINE: https://zenn.dev/kecy/articles/f51851e42c4243
    r"|\bLine/[0-9]"
    # Any app's web view on an iPhone: https://github.com/woothee/woothee/issues/11
    r"|\((?:iPhone|iPad|iPod)[^)]*\) AppleWebKit/(?!.* Safari/)"
)


def is_in_app_browser(user_agent: str) -> bool:
    """Return whether ``user_agent`` is surely that of a browser inside of an app.

    Facebook refuses logins in Android's WebView, and in others they fail at times. An app that uses
    the phone's own browser, or looks like it, is not recognized; there, logins work.
    """
    return IN_APP_BROWSER.search(user_agent) is not None
