"""A headless Chromium, driven by the W3C WebDriver protocol."""

import base64
import contextlib
import http.client
import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

# Debian's packages of the two programs that are needed.
_PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver"}
_FLAGS = [
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
  *("--disable-quic", "--no-first-run", "--disable-background-networking"),
  *("--disable-component-update", "--disable-sync"),
]
_TIMEOUT_SECONDS = 60
# The key of an element's id in the protocol.
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

KEYS = {
  "Home": "\ue011",
  "End": "\ue010",
  "Left": "\ue012",
  "Up": "\ue013",
  "Right": "\ue014",
  "Down": "\ue015",
  "Enter": "\ue007",
  "Tab": "\ue004",
}


def what_is_missing() -> str:
  """Why no browser can be started; empty if one can."""
  missing = [name for name in _PACKAGES if shutil.which(name) is None]
  packages = " ".join(_PACKAGES[name] for name in missing)
  return missing and (
    f"no {' and no '.join(missing)} on PATH: apt-get install {packages}"
  )


class Browser:
  """One window."""

  def __init__(self, connection: http.client.HTTPConnection, session: str):
    self._connection, self._session = connection, session

  def _call(self, method, path, **body):
    path = f"/session/{self._session}{path}"
    return _request(self._connection, method, path, body)

  def open(self, url: str) -> None:
    """Opens a page."""
    self._call("POST", "/url", url=url)

  def run(self, script: str, *args):
    """What a function body in the page returns."""
    return self._call("POST", "/execute/sync", script=script, args=args)

  def wait_for(self, script: str, *args):
    """What a function body in the page hands to its last argument."""
    return self._call("POST", "/execute/async", script=script, args=args)

  def click(self, selector: str) -> None:
    """Clicks the middle of an element."""
    found = self._call("POST", "/element", using="css selector", value=selector)
    self._call("POST", f"/element/{found[_ELEMENT]}/click")

  def press(self, *keys: str) -> None:
    """Types texts, and keys by their names in `KEYS`."""
    text = "".join(KEYS.get(key, key) for key in keys)
    actions = [
      {"type": kind, "value": key}
      for key in text
      for kind in ("keyDown", "keyUp")
    ]
    keyboard = {"type": "key", "id": "keyboard", "actions": actions}
    self._call("POST", "/actions", actions=[keyboard])

  def logged(self, kind: str) -> list:
    """New entries of "browser" (the console) or "performance"."""
    entries = self._call("POST", "/se/log", type=kind)
    if kind == "browser":
      return [entry["message"] for entry in entries]
    return [json.loads(entry["message"])["message"] for entry in entries]

  def forget_log(self) -> None:
    """Nothing that was logged before this is new."""
    self.logged("browser")
    self.logged("performance")

  def requests(self) -> list[str]:
    """URLs that were asked for since the last call."""
    return [
      event["params"]["request"]["url"]
      for event in self.logged("performance")
      if event["method"] == "Network.requestWillBeSent"
    ]

  def command(self, name: str, **params):
    """Sends a command of the DevTools protocol."""
    return self._call("POST", "/goog/cdp/execute", cmd=name, params=params)

  def screenshot(self) -> bytes:
    """The window as PNG."""
    return base64.b64decode(self._call("GET", "/screenshot"))


def _request(connection, method, path, body=None):
  content = None if method == "GET" else json.dumps(body or {})
  connection.request(
    method, path, content, {"Content-Type": "application/json"}
  )
  value = json.loads(connection.getresponse().read())["value"]
  if isinstance(value, dict) and "error" in value:
    raise AssertionError(f"{value['error']}: {value['message']}")
  return value


@contextlib.contextmanager
def open_browser(scratch: pathlib.Path) -> Iterator[Browser]:
  """A browser of its own, closed at the end.

  Args:
    scratch: an empty folder, for its profile.
  """
  options = {
    "args": [*_FLAGS, f"--user-data-dir={scratch}", "--window-size=1280,800"],
    "binary": shutil.which("chromium"),
    "perfLoggingPrefs": {"enableNetwork": True, "enablePage": False},
  }
  capabilities = {
    "goog:chromeOptions": options,
    "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
  }
  with _driver() as port:
    connection = http.client.HTTPConnection(
      "127.0.0.1", port, timeout=_TIMEOUT_SECONDS
    )
    with contextlib.closing(connection):
      session = _request(
        *(connection, "POST", "/session"),
        {"capabilities": {"alwaysMatch": capabilities}},
      )["sessionId"]
      try:
        browser = Browser(connection, session)
        browser.open("about:blank")  # Not the start page, which loads much.
        yield browser
      finally:
        _request(connection, "DELETE", f"/session/{session}")


@contextlib.contextmanager
def _driver() -> Iterator[int]:
  """A chromedriver; its port."""
  with subprocess.Popen(
    ["chromedriver", "--port=0"],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as driver:
    try:
      for line in driver.stdout:
        if "started successfully on port" in line:
          break
      yield int(line.rstrip(".\n").rpartition(" ")[2])
    finally:
      driver.terminate()
