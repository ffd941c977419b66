from __future__ import annotations

import pytest

from kapso_connect.pages.browsers import is_in_app_browser

# Recorded by others: see the sources in kapso_connect/pages/browsers.py, and
# https://51degrees.mobi/blog/importance-webview-detection
IN_APP = {
    "Facebook, Android": "Mozilla/5.0 (Linux; Android 14; SM-A146U Build/UP1A.231005.007; wv) "
    "AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/122.0.6261.88 Mobile Safari/537.36 "
    "[FB_IAB/FB4A;FBAV/453.0.0.40.107;]",
    "Facebook, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 11_2_5 like Mac OS X) "
    "AppleWebKit/604.5.6 (KHTML, like Gecko) Mobile/15D60 [FBAN/FBIOS;FBAV/157.0.0.42.96;"
    "FBBV/90008621;FBDV/iPhone9,1;FBMD/iPhone;FBSN/iOS;FBSV/11.2.5;FBSS/2;FBCR/Verizon;FBID/phone;"
    "FBLC/en_US;FBOP/5;FBRV/0]",
    "Facebook, iPad": "Mozilla/5.0 (iPad; CPU OS 12_5_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/16H62 [FBAN/FBIOS;FBDV/iPad4,4;FBMD/iPad;FBSN/iOS;FBSV/12.5.5;"
    "FBSS/2;FBID/tablet;FBLC/de_DE;FBOP/5]",
    "Instagram, Android": "Mozilla/5.0 (Linux; Android 7.0; SM-G930P Build/NRD90M; wv) "
    "AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/64.0.3282.137 Mobile Safari/537.36 "
    "Instagram 30.0.0.12.95 Android (24/7.0; 480dpi; 1080x1920; samsung; SM-G930P; heroqltespr; "
    "com; en_US; 89867442)",
    "Instagram, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 15_2_1 like Mac OS X) "
    "AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Instagram 221.0.0.9.115 (iPhone12,1; "
    "iOS 15_2_1; de_AT; de-AT; scale=2.00; 828x1792; 349031919)",
    "LINE, Android": "Mozilla/5.0 (Linux; Android 13; SM-N986N Build/TP1A.220624.014; wv) "
    "AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/115.0.5790.166 Mobile Safari/537.36 "
    "Line/13.12.0/IAB",
    "LINE, Android without wv": "Mozilla/5.0 (Linux; Android 4.4.2; G730-U00 Build/JLS36C) "
    "AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/30.0.0.0 Mobile Safari/537.36 "
    "Line/9.8.0",
    "LINE, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 15_7 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 Safari Line/12.12.0",
    "any app, Android": "Mozilla/5.0 (Linux; Android 8.1.0; SM-T585 Build/M1AJQ; wv) "
    "AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/92.0.4515.159 Safari/537.36",
    "any app, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 8_1 like Mac OS X) AppleWebKit/600.1.4 "
    "(KHTML, like Gecko) Mobile/12B411",
}

OTHERS = {
    "Safari, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_4 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.4 Mobile/15E148 Safari/604.1",
    "Chrome, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 16_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) CriOS/114.0.5735.124 Mobile/15E148 Safari/604.1",
    "Edge, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 16_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) EdgiOS/114.0.1823.67 Version/16.0 Mobile/15E148 Safari/604.1",
    "Firefox, iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 13_5 like Mac OS X) "
    "AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/110.1  Mobile/15E148 Safari/605.1.15",
    "Safari, Mac": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_12_1) AppleWebKit/602.2.14 "
    "(KHTML, like Gecko) Version/10.0.1 Safari/602.2.14",
    "Chrome, Android": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/141.0.0.0 Mobile Safari/537.36",
    "Samsung, Android": "Mozilla/5.0 (Linux; Android 14; SAMSUNG SM-S918B) AppleWebKit/537.36 "
    "(KHTML, like Gecko) SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
    "Firefox, Android": "Mozilla/5.0 (Android 8.1.0; Mobile; rv:91.0) Gecko/91.0 Firefox/91.0",
    "Firefox, Linux": "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0",
    "Chrome, Windows": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/91.0.4472.124 Safari/537.36",
    "WhatsApp's preview": "WhatsApp/2.23.18.78 i",
    "Meta's preview": "facebookexternalhit/1.1",
    "another word with Line": "Mozilla/5.0 (Linux; Android 10; K) Pipeline/1.0",
    "nothing": "",
}


@pytest.mark.parametrize("user_agent", IN_APP.values(), ids=IN_APP)
def test_browser_of_an_app_is_recognized(user_agent: str) -> None:
    assert is_in_app_browser(user_agent)


@pytest.mark.parametrize("user_agent", OTHERS.values(), ids=OTHERS)
def test_other_browsers_are_not(user_agent: str) -> None:
    assert not is_in_app_browser(user_agent)
