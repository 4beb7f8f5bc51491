// An exported copy of the site: what a server would answer, Python in a worker answers, and pages take each other's place without a load,
// so that Python is loaded once. page.js knows nothing of it: it fetches as ever, and runs again for every page.
// A browser without the Navigation API loads each page anew, which then answers for its own address.
"use strict";
(() => {
  const script = document.currentScript, here = new URL("..", script.src), fetched = window.fetch.bind(window);
  const site = fetched(new URL("site.json", here), { cache: "no-cache" }).then((reply) => reply.json());
  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const note = element("p", { className: "loading", role: "status" });

  // One Python, loaded when it is first needed. Questions wait here, so that one that is given up is not asked.
  function python() {
    const waiting = [];
    let begun = false, worker = null, asked = null, failed = null;
    const next = () => {
      while (failed && waiting.length) waiting.shift().fail(failed);
      if (worker && !asked && (asked = waiting.shift())) worker.postMessage(asked.question);
    };
    const answered = (data) => {
      const { settle, fail } = asked;
      asked = null;
      if (data.error) fail(new Error(data.error)); else settle(data);
      next();
    };
    const broken = (said) => {
      failed = new Error("Python was not loaded: " + said);
      note.replaceChildren(failed.message);
      asked?.fail(failed);
      next();
    };
    const start = async () => {
      if (begun) return;
      begun = true;
      try {
        const { packages, bytes } = await site;
        const bar = element("progress", { max: bytes, value: 0, ariaLabel: "loaded" });
        note.replaceChildren("Loading Python, which answers here in your browser ", bar);
        worker = new Worker(new URL("worker.js", script.src), { type: "module", name: packages });
        worker.onerror = (event) => broken(event.message || "its files are not all there");
        worker.onmessage = ({ data }) => {
          if (data.loaded) bar.value = data.loaded;
          else if (data.ready) note.replaceChildren();
          else if (data.failed) broken(data.failed);
          else answered(data);
        };
        next();
      } catch (error) {
        broken(error.message);
      }
    };
    const ask = (question, signal) => new Promise((settle, fail) => {
      const one = { question, settle, fail };
      signal?.addEventListener("abort", () => {
        if (waiting.includes(one)) waiting.splice(waiting.indexOf(one), 1);
        fail(signal.reason);
      });
      waiting.push(one);
      start();
      next();
    });
    return { ask, start };
  }

  // Searches take seconds: they have a Python of their own, for which no answer waits.
  const answers = python(), searches = python(), slow = /^\/(more|offers)$/;

  // What page.js asks. A page that is left gives up its questions, and hears nothing of them.
  let stay = new AbortController();
  const leave = () => { stay.abort(); stay = new AbortController(); };
  window.fetch = (address, { body, signal } = {}) => new Promise((settle, fail) => {
    const { pathname: path, search } = new URL(address, here), left = stay.signal;
    const reply = ({ status, kind, text }) => settle(new Response(text, { status, headers: { "content-type": kind } }));
    const heard = (tell) => (said) => { if (!left.aborted) tell(said); };
    const { ask } = slow.test(path) ? searches : answers;
    ask({ path, query: search.slice(1), body }, AbortSignal.any(signal ? [left, signal] : [left])).then(heard(reply), heard(fail));
  });

  const parsed = (text) => new DOMParser().parseFromString(text, "text/html");

  // The document at an address of this copy: a file, or an answer; null where the answer leads on. Data are shown as they are.
  async function read(to, signal) {
    const path = "/" + decodeURIComponent(to.pathname.slice(here.pathname.length)).replace(/\/$/, "");
    const file = (path + "/index.html").replace(/^\/+/, "");
    if (!to.search && (await site).files.includes(file)) return parsed(await (await fetched(new URL(file, here), { signal })).text());
    const { status, kind, text } = await answers.ask({ path, query: to.search.slice(1) }, signal);
    if (status === 303) { location.replace(text); return null; }
    if (kind === "text/html") return parsed(text);
    const made = parsed(document.documentElement.outerHTML);
    made.title = path;
    made.querySelector("main").replaceChildren(element("pre", { tabIndex: 0, textContent: text }));
    return made;
  }

  // Another page in place of this one; page.js begins as after a load.
  async function show(to, signal) {
    const main = document.querySelector("main");
    main.inert = true;
    leave();
    const mine = stay;
    try {
      const made = await read(to, signal);
      if (!made || signal?.aborted) return;
      leave();
      document.title = made.title;
      for (const part of ["body > header", "main"]) document.querySelector(part).replaceWith(made.querySelector(part));
      document.dispatchEvent(new Event("DOMContentLoaded"));
    } catch (error) {
      if (!signal?.aborted) main.replaceChildren(element("p", { className: "lead" }, error.message));
    } finally {
      if (stay === mine) main.inert = false;
    }
  }

  const begin = () => { if (document.getElementById("scenario")) answers.start(); };
  document.addEventListener("DOMContentLoaded", () => {
    document.body.append(note);
    document.addEventListener("DOMContentLoaded", begin);
    if (!("missing" in script.dataset) && !location.search) return begin();
    document.querySelector("main").replaceChildren(element("p", { className: "lead" }, "This page is made here in your browser, in a few seconds."));
    show(location).then(() => { if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView(); });
  }, { once: true });

  window.navigation?.addEventListener("navigate", (event) => {
    const to = new URL(event.destination.url), stays = event.destination.sameDocument && event.navigationType !== "traverse";
    const ours = to.pathname.startsWith(here.pathname) && event.canIntercept && event.downloadRequest === null && !event.formData;
    if (!ours || stays || event.hashChange || event.navigationType === "reload") return;
    event.intercept({
      focusReset: "manual",
      handler: async () => {
        await show(to, event.signal);
        document.querySelector("main").focus({ preventScroll: true });
      },
    });
  });
})();
