"use strict";

// For a page of the site's own: a form or a link with data-kapso-popup opens a window of its own.
// How that ended is a DOM event of the document, "kapso:connected" or "kapso:failed"; unless its
// default is prevented, the page is loaded again to show the new state.
(() => {
  if (globalThis.kapsoConnectPopup) return; // a page may have several customers
  globalThis.kapsoConnectPopup = true;
  const OPENED = "kapso_connect_opened";
  const FEATURES = "popup,width=560,height=760";
  let lastId = "";

  // The names of all windows, as several may be open at the same time.
  const opened = () => (sessionStorage.getItem(OPENED) ?? "").split(" ");

  const open = () => {
    const name = `kapso_connect_${Math.random().toString(36).slice(2)}`;
    // A window that the browser blocks is null: this one is used then.
    if (!window.open("", name, FEATURES)) return "";
    sessionStorage.setItem(OPENED, [...opened(), name].join(" "));
    return name;
  };

  addEventListener("submit", (event) => {
    if (event.defaultPrevented) return; // the site's own script has stopped it
    if (event.target.matches("form[data-kapso-popup]")) event.target.target = open();
  });

  addEventListener("click", (event) => {
    if (event.defaultPrevented) return;
    const link = event.target.closest?.("a[data-kapso-popup]");
    if (link) link.target = open();
  });

  // The same message comes on both ways, or on one.
  const receive = ({ data, origin }) => {
    if (origin !== location.origin || data?.type !== "kapso_connect") return;
    if (data.id === lastId || !opened().includes(data.window)) return;
    lastId = data.id;
    const name = `kapso:${data.status}`;
    const options = { cancelable: true, detail: { errorCode: data.error_code } };
    if (document.dispatchEvent(new CustomEvent(name, options))) location.reload();
  };
  addEventListener("message", receive);
  new BroadcastChannel("kapso_connect").addEventListener("message", receive);
})();
